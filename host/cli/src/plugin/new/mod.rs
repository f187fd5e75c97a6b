//! `espalier plugin new`: a folder with a plugin that builds, passes its tests and runs as it stands.
//!
//! Promise: nothing that exists is written over. What is laid down needs no checkout of Espalier: the SDK is the one
//! that this command carries unless another is named, and the plugins that the run file needs beside the new one
//! lie in the folder as components.

mod python;
mod rust;
mod sdk;

use std::path::{Path, PathBuf};

use espalier_runtime::component::{INTERFACE, sha256};
use espalier_runtime::conformance::{Company, company};
use espalier_runtime::diagnostic::{Diagnostic, nearest};
use espalier_runtime::registry::Registry;

use crate::args::{Lang, New, NewSlot, Template};
use crate::output::{self, Stream};

/// A file to be laid down: its path in the new folder, and what is in it.
struct File {
    path: String,
    bytes: Vec<u8>,
}

impl File {
    fn text(path: &str, text: impl Into<String>) -> File {
        File {
            path: path.into(),
            bytes: text.into().into_bytes(),
        }
    }
}

/// Lays down a new plugin.
pub fn new(args: &New) -> Result<(), Diagnostic> {
    named(&args.name)?;
    let folder = args.dir.join(&args.name);
    if folder.exists() {
        return Err(
            Diagnostic::new(format!("`{}` is there already", folder.display()))
                .expected("a name for which there is no folder yet")
                .help("choose another name, or another place with --dir"),
        );
    }
    let (mut files, note) = match args.lang {
        Lang::Rust => {
            let sdk = sdk::find(args.sdk.as_deref(), &args.dir)?;
            (rust::files(args, &sdk.path)?, sdk.note)
        }
        Lang::Python => (python::files(args)?, None),
    };
    files.push(File::text("run.toml", run_file(args)));
    files.push(File::text("README.md", readme(args)));
    let beside = beside(args.slot);
    let project = project_registry(&args.dir, &args.name)?;
    if project.is_none() {
        files.push(File::text("registry.toml", registry(args, &beside)));
        for one in &beside {
            files.push(File {
                path: format!("company/{}.wasm", one.name),
                bytes: one.bytes.to_vec(),
            });
        }
    }
    lay_down(&folder, &files)?;
    if let Some((file, names)) = &project {
        extend(file, args, &beside, names)?;
    }
    for file in &files {
        output::line(
            Stream::Out,
            format!("  {}", folder.join(&file.path).display()),
        );
    }
    let registry = project.map(|(file, _)| file);
    output::line(
        Stream::Error,
        next(args, &folder, note, registry.as_deref()),
    );
    Ok(())
}

/// Refuses a name that is none for a package and a plugin.
fn named(name: &str) -> Result<(), Diagnostic> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let fine = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(plain)
        && !name.ends_with('-')
        && !name.contains("--")
        && name.len() <= 64;
    if fine {
        return Ok(());
    }
    let better: String = name
        .to_lowercase()
        .chars()
        .map(|c| if plain(c) { c } else { '-' })
        .collect();
    let better = better
        .trim_matches(|c: char| c == '-' || c.is_ascii_digit())
        .to_string();
    Err(Diagnostic::new("this name is none for a plugin")
        .expected("lower-case letters, digits and single -, a letter first")
        .found(format!("{name:?}"))
        .help_if(
            Some(better)
                .filter(|b| !b.is_empty())
                .map(|better| format!("espalier plugin new {better} ...")),
        ))
}

/// The plugins that the new one's run file needs beside it.
fn beside(slot: NewSlot) -> Vec<&'static Company> {
    let names: &[&str] = match slot {
        NewSlot::Trainer => &[],
        NewSlot::Pruner
        | NewSlot::Architecture
        | NewSlot::Tuner
        | NewSlot::Auditor
        | NewSlot::Transform => &["backprop"],
        NewSlot::Normalizer | NewSlot::NormalizerTracking => {
            &["policy-gradient", "modular-arithmetic"]
        }
        NewSlot::EnvironmentTasks => &["policy-gradient", "reinforce-baseline"],
        NewSlot::EnvironmentMdp => &["policy-gradient"],
        NewSlot::Searcher => &["modular-arithmetic"],
    };
    names.iter().filter_map(|name| company(name)).collect()
}

/// The registry of the folder in which the new one is made, and the names in it.
fn project_registry(dir: &Path, name: &str) -> Result<Option<(PathBuf, Vec<String>)>, Diagnostic> {
    let file = dir.join("registry.toml");
    if !file.is_file() {
        return Ok(None);
    }
    let registry = Registry::load(&file)?;
    let names: Vec<String> = registry
        .entries
        .iter()
        .map(|entry| entry.name.clone())
        .collect();
    if names.iter().any(|known| known == name) {
        return Err(Diagnostic::new(format!(
            "`{}` names a plugin `{name}` already",
            file.display()
        ))
        .help("choose another name"));
    }
    Ok(Some((file, names)))
}

/// Everything or nothing: a folder of another name becomes the new one once it is whole.
fn lay_down(folder: &Path, files: &[File]) -> Result<(), Diagnostic> {
    let failed = |path: &Path, error: &std::io::Error| {
        Diagnostic::new(format!("`{}` could not be written", path.display())).because_io(error)
    };
    let parent = folder.parent().unwrap_or(Path::new("."));
    let stem = folder.file_name().unwrap_or_default().to_string_lossy();
    let partial = parent.join(format!(".{stem}.{}", std::process::id()));
    let write = || -> Result<(), Diagnostic> {
        for file in files {
            let path = partial.join(&file.path);
            let folder = path.parent().unwrap_or(&partial);
            std::fs::create_dir_all(folder).map_err(|error| failed(folder, &error))?;
            std::fs::write(&path, &file.bytes).map_err(|error| failed(&path, &error))?;
        }
        std::fs::rename(&partial, folder).map_err(|error| failed(folder, &error))
    };
    let written = write();
    if written.is_err() {
        // The error that led here is the one to tell.
        let _ = std::fs::remove_dir_all(&partial);
    }
    written
}

/// Entries for the project's registry, at its end.
fn extend(
    file: &Path,
    args: &New,
    beside: &[&Company],
    known: &[String],
) -> Result<(), Diagnostic> {
    let failed = |error: std::io::Error| {
        Diagnostic::new(format!("`{}` could not be written", file.display())).because_io(&error)
    };
    let folder = args.dir.join(&args.name);
    let mut text = std::fs::read_to_string(file).map_err(failed)?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    text.push('\n');
    text.push_str(&own_entry(args, &args.name));
    for one in beside
        .iter()
        .filter(|one| known.iter().all(|name| name != one.name))
    {
        let path = format!("{}/company/{}.wasm", args.name, one.name);
        let place = folder.join("company");
        std::fs::create_dir_all(&place).map_err(failed)?;
        std::fs::write(place.join(format!("{}.wasm", one.name)), one.bytes).map_err(failed)?;
        text.push_str(&company_entry(one, &path));
    }
    let partial = file.with_extension("toml.tmp");
    std::fs::write(&partial, text).map_err(failed)?;
    std::fs::rename(&partial, file).map_err(failed)
}

fn interface() -> &'static str {
    let second = INTERFACE.match_indices('.').nth(1);
    second.map_or(INTERFACE, |(at, _)| &INTERFACE[..at])
}

fn own_entry(args: &New, path: &str) -> String {
    format!(
        "[[plugin]]\nname = {:?}\nversion = \"0.1.0\"\nslot = {:?}\nsummary = {:?}\ninterface = {:?}\nlicence = \"MIT OR Apache-2.0\"\nsource = {{ path = {path:?} }}\n",
        args.name,
        args.slot.slot(),
        summary(args),
        interface(),
    )
}

fn company_entry(one: &Company, path: &str) -> String {
    format!(
        "\n[[plugin]]\nname = {:?}\nversion = \"0.1.0\"\nslot = {:?}\nsummary = {:?}\ninterface = {:?}\nlicence = \"MIT OR Apache-2.0\"\nsource = {{ file = {path:?}, sha256 = {:?} }}\n",
        one.name,
        one.slot.as_str(),
        one.summary,
        interface(),
        sha256(one.bytes)
    )
}

fn registry(args: &New, beside: &[&Company]) -> String {
    let mut text = format!(
        "# The plugins that run.toml may use.\nschema = 1\n\n{}",
        own_entry(args, ".")
    );
    for one in beside {
        text.push_str(&company_entry(one, &format!("company/{}.wasm", one.name)));
    }
    text
}

/// One line for manifests and registries.
fn summary(args: &New) -> String {
    let slot = match args.slot {
        NewSlot::Trainer => "Trainer",
        NewSlot::Pruner => "Pruner",
        NewSlot::Normalizer | NewSlot::NormalizerTracking => "Normaliser",
        NewSlot::EnvironmentTasks => "Environment with tasks",
        NewSlot::EnvironmentMdp => "Environment to act in",
        NewSlot::Tuner => "Tuner",
        NewSlot::Architecture => "Architecture",
        NewSlot::Searcher => "Searcher",
        NewSlot::Auditor => "Auditor",
        NewSlot::Transform => "Transform",
    };
    format!("{slot}: what {} does, in one line", args.name)
}

fn run_file(args: &New) -> String {
    let name = &args.name;
    let digits = r#"[data]
source = "digits"

[model]
layers = [
  { kind = "flatten" },
  { kind = "linear", features = 64 },
  { kind = "relu" },
  { kind = "linear", features = 10 },
]

[schedule]
epochs = 5
batch-size = 64
"#;
    let transformer = r#"[model]
layers = [
  { kind = "embedding", features = 32, deviation = 0.1 },
  { kind = "position" },
  { kind = "transformer-block", features = 32, heads = 4 },
  { kind = "layer-norm" },
  { kind = "tied-linear" },
]

[schedule]
steps = 60
batch-size = 32
steps-per-epoch = 20
"#;
    let policy = "[trainer]\nplugin = \"policy-gradient\"\nwith = { warm-up-steps = 200, warm-up-until = 0.3, group-size = 8, lr = 5e-4 }\n";
    let (comment, body) = match args.slot {
        NewSlot::Trainer => (
            "Handwritten digits, two layers.",
            format!("{digits}\n[trainer]\nplugin = \"{name}\"\n"),
        ),
        NewSlot::Pruner => (
            "Handwritten digits, two layers, pruned while they are trained.",
            format!(
                "{digits}\n[trainer]\nplugin = \"backprop\"\nwith = {{ lr = 0.1, momentum = 0.9 }}\n\n[pruner]\nplugin = \"{name}\"\nwith = {{ sparsity = 0.8 }}\n"
            ),
        ),
        NewSlot::Tuner => (
            "Handwritten digits, four networks side by side whose learning rates are tuned as they train.",
            format!(
                "{}\n[trainer]\nplugin = \"backprop\"\nwith = {{ momentum = 0.9 }}\n\n[tuner]\nplugin = \"{name}\"\nmembers = 4\n\n[tuner.space]\n\"trainer.lr\" = {{ low = 1e-4, high = 1.0, log = true }}\n",
                digits.replace(
                    "source = \"digits\"\n",
                    "source = \"digits\"\nvalidation = 0.2\n"
                )
            ),
        ),
        NewSlot::Auditor | NewSlot::Transform => (
            match args.slot {
                NewSlot::Auditor => "Handwritten digits, two layers, and a look at the result.",
                _ => "Handwritten digits, changed before they are learned.",
            },
            format!(
                "{digits}\n[trainer]\nplugin = \"backprop\"\nwith = {{ lr = 0.1, momentum = 0.9 }}\n\n[[{}]]\nplugin = \"{name}\"\n",
                args.slot.slot()
            ),
        ),
        NewSlot::Normalizer | NewSlot::NormalizerTracking => (
            "Sums modulo 10, learned from rewards.",
            format!(
                "[environment]\nplugin = \"modular-arithmetic\"\nwith = {{ modulus = 10, operands = 10 }}\n\n{transformer}\n{policy}\n[normalizer]\nplugin = \"{name}\"\n"
            ),
        ),
        NewSlot::Architecture => (
            "Handwritten digits.",
            format!(
                "[data]\nsource = \"digits\"\n\n[architecture]\nplugin = \"{name}\"\n\n[schedule]\nepochs = 5\nbatch-size = 64\n\n[trainer]\nplugin = \"backprop\"\nwith = {{ lr = 0.1, momentum = 0.9 }}\n"
            ),
        ),
        NewSlot::Searcher => (
            "Sums modulo 10, answered by a model that knows nothing: add `from = \"runs/...\"` to [model] for one that does.",
            format!(
                "[environment]\nplugin = \"modular-arithmetic\"\nwith = {{ modulus = 10, operands = 10, held-out = 0.5 }}\n\n{}\n[searcher]\nplugin = \"{name}\"\nprompts-per-step = 10\n",
                transformer.split("\n[schedule]").next().unwrap_or_default()
            ),
        ),
        NewSlot::EnvironmentTasks => (
            "A small transformer that learns the tasks from rewards.",
            format!(
                "[environment]\nplugin = \"{name}\"\n\n{transformer}\n{policy}\n[normalizer]\nplugin = \"reinforce-baseline\"\n"
            ),
        ),
        NewSlot::EnvironmentMdp => (
            "A small policy that learns to act from rewards.",
            format!(
                "[environment]\nplugin = \"{name}\"\n\n[model]\nlayers = [\n  {{ kind = \"linear\", features = 32 }},\n  {{ kind = \"tanh\" }},\n  {{ kind = \"linear\", features = 2 }},\n]\n\n[schedule]\nsteps = 40\nbatch-size = 16\nsteps-per-epoch = 10\n\n[trainer]\nplugin = \"policy-gradient\"\nwith = {{ horizon = 64, lr = 3e-3, critic-lr = 3e-3 }}\n"
            ),
        ),
    };
    format!("# {comment}\n\n{body}")
}

fn readme(args: &New) -> String {
    let name = &args.name;
    format!(
        "# {name}\n\n{}.\n\n## Claim\n\nWhat it should do better than what, on which data, by how much.\n\n## Command\n\n```sh\nespalier run run.toml\n```\n\n## Numbers\n\n| | measured | the paper's |\n| --- | --- | --- |\n| five seeds, mean and deviation | | |\n\nThe machine, the date, and the command of each row.\n\n## Source\n\nAuthors, title, year, equation; where this differs and why.\n",
        summary(args)
    )
}

/// What to do next.
fn next(args: &New, folder: &Path, note: Option<String>, registry: Option<&Path>) -> String {
    let test = match args.lang {
        Lang::Rust => "  cargo test                 the plugin's own tests\n",
        Lang::Python => "",
    };
    let added = registry.map_or(String::new(), |file| {
        format!("\nadded to {}", file.display())
    });
    let note = note.map_or(String::new(), |note| format!("\n{note}"));
    format!(
        "{added}{note}\n\nnext:\n  cd {}\n{test}  espalier plugin test       the laws that every plugin of its slot keeps to\n  espalier run run.toml      an experiment with it\n\nthen put the method into {}, and the claim and the numbers into README.md",
        folder.display(),
        match args.lang {
            Lang::Rust => "src/lib.rs".to_string(),
            Lang::Python => format!("{}.py", args.name.replace('-', "_")),
        }
    )
    .trim_start_matches('\n')
    .to_string()
}

/// The template's text with the plugin's name in its places.
fn filled(template: &str, args: &New) -> String {
    template
        .replace("__TYPE__", &type_name(&args.name))
        .replace("__NAME__", &args.name)
        .replace("__MODULE__", &args.name.replace('-', "_"))
}

/// `thin-layers` is `ThinLayers`; a name that a template uses itself gets an ending.
fn type_name(name: &str) -> String {
    let mut all = String::new();
    for part in name.split('-') {
        let mut letters = part.chars();
        all.extend(letters.next().map(|first| first.to_ascii_uppercase()));
        all.push_str(letters.as_str());
    }
    const TAKEN: [&str; 40] = [
        "Advantage",
        "ActionSpace",
        "Batch",
        "BTreeMap",
        "Box",
        "Directive",
        "Drift",
        "Err",
        "Error",
        "Event",
        "EventKind",
        "Mdp",
        "MdpSpec",
        "Mode",
        "Model",
        "None",
        "Normalizer",
        "Ok",
        "Option",
        "Options",
        "ParameterSet",
        "Prediction",
        "Prompt",
        "Pruner",
        "Reader",
        "Response",
        "Result",
        "RewardSpec",
        "Rollout",
        "RunInfo",
        "Schedule",
        "Self",
        "Settings",
        "Some",
        "Stream",
        "String",
        "Tensor",
        "Trainer",
        "Vec",
        "Writer",
    ];
    const ALSO: [&str; 22] = [
        "Auditor",
        "Derived",
        "Report",
        "Samples",
        "Architecture",
        "Build",
        "Dtype",
        "Layer",
        "LayerInfo",
        "Pass",
        "TaskSpec",
        "Tasks",
        "TrackingNormalizer",
        "Transition",
        "Value",
        "Verdict",
        "Walker",
        "Weights",
        "Window",
        "SgdOptions",
        "StepInfo",
        "StepReport",
    ];
    if TAKEN.contains(&all.as_str()) || ALSO.contains(&all.as_str()) {
        all.push_str("Plugin");
    }
    all
}

/// A template that there is not, and those that there are.
fn no_template(what: &str, wanted: &str, all: &[&str]) -> Diagnostic {
    let near = nearest(wanted, all.iter().copied()).map(|near| format!("did you mean `{near}`?"));
    Diagnostic::new(format!("there is no template {what}"))
        .expected(all.join(", "))
        .help_if(near)
}

/// The name of a template in messages.
fn shown(template: Template) -> &'static str {
    match template {
        Template::Blank => "blank",
        Template::Example => "example",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kebab_case_and_types_collide_with_nothing() {
        assert!(named("thin-layers").is_ok() && named("a1").is_ok());
        for wrong in ["", "Thin", "1st", "a_b", "a--b", "a-", "über", "../x"] {
            assert!(named(wrong).is_err(), "{wrong}");
        }
        assert_eq!(type_name("thin-layers"), "ThinLayers");
        assert_eq!(type_name("option"), "OptionPlugin");
    }
}
