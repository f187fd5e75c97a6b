//! `espalier completions`: what a shell needs to know to complete the command line.

use std::io::Write;
use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::{Generator, aot};

use crate::args::{Args, Shell, exit};
use crate::output::{self, Stream};

/// Prints the completions.
pub fn command(shell: Shell) -> ExitCode {
    let mut script = Vec::new();
    write(shell, &mut script);
    output::line(Stream::Out, String::from_utf8_lossy(&script).trim_end());
    ExitCode::from(exit::OK)
}

/// Writes the completions.
pub fn write(shell: Shell, to: &mut dyn Write) {
    match shell {
        Shell::Bash => generate(aot::Bash, to),
        Shell::Zsh => generate(aot::Zsh, to),
        Shell::Fish => generate(aot::Fish, to),
    }
}

fn generate(generator: impl Generator, mut to: &mut dyn Write) {
    clap_complete::generate(generator, &mut Args::command(), "espalier", &mut to);
}
