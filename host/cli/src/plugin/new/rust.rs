//! A plugin in Rust: a crate of its own, in no workspace.

use std::path::Path;

use espalier_runtime::diagnostic::Diagnostic;

use super::{File, filled, summary};
use crate::args::{New, NewSlot, Template};

macro_rules! template {
    ($name:literal) => {
        include_str!(concat!("../../../templates/", $name, ".rs"))
    };
}

fn source(slot: NewSlot, template: Template) -> &'static str {
    match (slot, template) {
        (NewSlot::Trainer, Template::Blank) => template!("trainer-blank"),
        (NewSlot::Trainer, Template::Example) => template!("trainer-example"),
        (NewSlot::Pruner, Template::Blank) => template!("pruner-blank"),
        (NewSlot::Pruner, Template::Example) => template!("pruner-example"),
        (NewSlot::Normalizer, Template::Blank) => template!("normalizer-blank"),
        (NewSlot::Normalizer, Template::Example) => template!("normalizer-example"),
        (NewSlot::NormalizerTracking, Template::Blank) => template!("normalizer-tracking-blank"),
        (NewSlot::NormalizerTracking, Template::Example) => {
            template!("normalizer-tracking-example")
        }
        (NewSlot::EnvironmentTasks, Template::Blank) => template!("environment-tasks-blank"),
        (NewSlot::EnvironmentTasks, Template::Example) => template!("environment-tasks-example"),
        (NewSlot::EnvironmentMdp, Template::Blank) => template!("environment-mdp-blank"),
        (NewSlot::EnvironmentMdp, Template::Example) => template!("environment-mdp-example"),
        (NewSlot::Tuner, Template::Blank) => template!("tuner-blank"),
        (NewSlot::Tuner, Template::Example) => template!("tuner-example"),
        (NewSlot::Searcher, Template::Blank) => template!("searcher-blank"),
        (NewSlot::Searcher, Template::Example) => template!("searcher-example"),
        (NewSlot::Architecture, Template::Blank) => template!("architecture-blank"),
        (NewSlot::Architecture, Template::Example) => template!("architecture-example"),
        (NewSlot::Auditor, Template::Blank) => template!("auditor-blank"),
        (NewSlot::Auditor, Template::Example) => template!("auditor-example"),
        (NewSlot::Transform, Template::Blank) => template!("transform-blank"),
        (NewSlot::Transform, Template::Example) => template!("transform-example"),
    }
}

/// The crate's files.
pub(super) fn files(args: &New, sdk: &Path) -> Result<Vec<File>, Diagnostic> {
    let manifest = format!(
        r#"[package]
name = "espalier-plugin-{}"
version = "0.1.0"
edition = "2024"
description = {:?}
license = "MIT OR Apache-2.0"

[package.metadata.espalier]
# Where the method was published.
# paper = "arXiv 0000.00000"

[lib]
crate-type = ["cdylib", "rlib"]
doctest = false

[dependencies]
espalier-sdk = {{ path = {:?} }}

# A workspace of its own, wherever it lies.
[workspace]
"#,
        args.name,
        summary(args),
        sdk.display().to_string()
    );
    Ok(vec![
        File::text("Cargo.toml", manifest),
        File::text(".gitignore", "/target\n/runs\n"),
        File::text("src/lib.rs", filled(source(args.slot, args.template), args)),
    ])
}
