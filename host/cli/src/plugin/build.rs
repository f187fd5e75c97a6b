//! `espalier plugin build`: a folder's source as a release component.

use std::path::{Path, PathBuf};

use espalier_runtime::component::{self, Inspection};
use espalier_runtime::diagnostic::Diagnostic;
use serde::Serialize;

use super::target::Target;
use super::unwritable;
use crate::output::{self, Stream};

#[derive(Serialize)]
struct Built {
    #[serde(flatten)]
    inspection: Inspection,
    /// The component file.
    file: PathBuf,
    /// False if nothing had changed.
    built: bool,
}

/// Builds a folder's plugin and says what came of it.
pub fn build(folder: &Path, json: bool) -> Result<(), Diagnostic> {
    let target = Target::of_folder(folder)?;
    let inspection = component::inspect(&target.name, &target.bytes)?;
    let here = std::env::current_dir().unwrap_or_default();
    let file = target
        .file
        .strip_prefix(&here)
        .unwrap_or(&target.file)
        .to_path_buf();
    let built = Built {
        inspection,
        file,
        built: target.built,
    };
    if json {
        output::line(
            Stream::Out,
            serde_json::to_string(&built).map_err(unwritable)?,
        );
        return Ok(());
    }
    let it = &built.inspection;
    let rows = [
        ["file".to_string(), built.file.display().to_string()],
        ["size".into(), output::bytes(it.size)],
        ["sha256".into(), it.sha256.clone()],
    ];
    let rows: Vec<Vec<String>> = rows.into_iter().map(Vec::from).collect();
    let fresh = if built.built { "" } else { ", unchanged" };
    output::line(
        Stream::Out,
        format!(
            "{} {}, {}{fresh}\n{}",
            it.name,
            it.version,
            it.slot.with_article(),
            output::table(&rows, &[])
        ),
    );
    output::line(
        Stream::Error,
        format!("\n  next: espalier plugin test {}", folder.display()),
    );
    Ok(())
}
