//! `espalier plugin ...`: one file a command.

mod add;
mod build;
mod inspect;
mod list;
mod new;
mod publish;
mod target;
mod test;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use espalier_runtime::diagnostic::Diagnostic;
use espalier_runtime::registry::Registry;

use crate::args::{self, PluginCommand, exit};
use crate::output;

/// Carries out `espalier plugin ...`.
pub fn command(args: args::Plugin) -> ExitCode {
    let result = match args.command {
        PluginCommand::List { json, registry } => list::list(&[], json, registry),
        PluginCommand::Search {
            words,
            json,
            registry,
        } => list::list(&words, json, registry),
        PluginCommand::Inspect {
            plugin,
            json,
            registry,
        } => inspect::inspect(&plugin, json, registry),
        PluginCommand::Publish(args) => publish::publish(&args),
        PluginCommand::Add(args) => add::add(&args),
        PluginCommand::New(args) => new::new(&args),
        PluginCommand::Build { folder, json } => build::build(&folder, json),
        PluginCommand::Test {
            plugin,
            json,
            registry,
            setup,
        } => match test::test(&plugin, json, registry, setup.as_deref()) {
            Ok(true) => Ok(()),
            Ok(false) => return ExitCode::from(exit::FAILED),
            Err(error) => Err(error),
        },
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

fn unwritable(error: serde_json::Error) -> Diagnostic {
    Diagnostic::new("this has no JSON form").because(&error)
}
