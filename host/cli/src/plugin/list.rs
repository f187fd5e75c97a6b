//! `espalier plugin list`: the plugins of the registry.

use std::path::PathBuf;

use espalier_runtime::diagnostic::Diagnostic;

use super::{open, unwritable};
use crate::output::{self, Stream};

/// Prints the registry's plugins as a table, or as one JSON object a line.
pub fn list(json: bool, registry: Option<PathBuf>) -> Result<(), Diagnostic> {
    let registry = open(registry)?;
    if json {
        for entry in &registry.entries {
            output::line(
                Stream::Out,
                serde_json::to_string(entry).map_err(unwritable)?,
            );
        }
        return Ok(());
    }
    let mut rows = vec![
        ["slot", "name", "version", "summary"]
            .map(String::from)
            .to_vec(),
    ];
    rows.extend(registry.entries.iter().map(|entry| {
        vec![
            entry.slot.to_string(),
            entry.name.clone(),
            entry.version.clone(),
            entry.summary.clone(),
        ]
    }));
    output::line(Stream::Out, output::table(&rows, &[]));
    output::line(Stream::Out, format!("\n  from {}", registry.file.display()));
    Ok(())
}
