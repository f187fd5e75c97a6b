//! The `espalier` command: words in, words out. Everything that computes is in `espalier-runtime`.

mod args;
mod completions;
mod key;
mod output;
mod plugin;
mod profile;
mod run;
mod verify;
mod view;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = args::Args::parse();
    match args.command {
        args::Command::Run(args) => run::command(args),
        args::Command::Verify(args) => verify::command(args),
        args::Command::Plugin(args) => plugin::command(args),
        args::Command::Completions { shell } => completions::command(shell),
        args::Command::Key(args) => key::command(args),
    }
}
