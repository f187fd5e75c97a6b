//! `espalier plugin list` and `espalier plugin inspect`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use espalier_runtime::diagnostic::Diagnostic;
use espalier_runtime::registry::Registry;

use crate::args::{self, PluginCommand, exit};
use crate::output::{self, Stream};

/// Carries out `espalier plugin ...`.
pub fn command(args: args::Plugin) -> ExitCode {
    let result = match args.command {
        PluginCommand::List { json, registry } => list(json, registry),
        PluginCommand::Inspect {
            plugin,
            json,
            registry,
        } => inspect(&plugin, json, registry),
    };
    match result {
        Ok(()) => ExitCode::from(exit::OK),
        Err(error) => {
            output::error(&error);
            ExitCode::from(exit::WRONG_INPUT)
        }
    }
}

fn open(registry: Option<PathBuf>) -> Result<Registry, Diagnostic> {
    let file = registry.map_or_else(|| Registry::find(Path::new("")), Ok)?;
    Registry::load(&file)
}

fn list(json: bool, registry: Option<PathBuf>) -> Result<(), Diagnostic> {
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

fn inspect(_plugin: &str, _json: bool, _registry: Option<PathBuf>) -> Result<(), Diagnostic> {
    Err(Diagnostic::new(
        "this build of espalier cannot inspect components yet",
    ))
}

fn unwritable(error: serde_json::Error) -> Diagnostic {
    Diagnostic::new("this has no JSON form").because(&error)
}
