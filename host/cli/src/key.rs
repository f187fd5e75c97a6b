//! `espalier key new`, `key show` and `key trust`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use espalier_runtime::diagnostic::Diagnostic;
use espalier_runtime::trust::{self, PublicKey, SecretKey};

use crate::args::{self, KeyCommand, exit};
use crate::output::{self, Stream};

/// Carries out `espalier key ...`.
pub fn command(args: args::Key) -> ExitCode {
    let result = match args.command {
        KeyCommand::New { out, no_password } => new(out, no_password),
        KeyCommand::Show { file } => show(file),
        KeyCommand::Trust {
            key,
            names,
            owner,
            trust,
        } => trust_key(&key, &names, &owner, trust),
    };
    match result {
        Ok(()) => ExitCode::from(exit::OK),
        Err(error) => {
            output::error(&error);
            ExitCode::from(exit::WRONG_INPUT)
        }
    }
}

/// A file of the user's own folder of settings.
fn settings(name: &str) -> Result<PathBuf, Diagnostic> {
    let folder = trust::config_folder().ok_or_else(|| {
        Diagnostic::new("there is no folder for your settings")
            .expected("HOME or XDG_CONFIG_HOME in the environment")
            .help("name a file instead")
    })?;
    Ok(folder.join(name))
}

/// The author's key, where no other is named.
pub fn default_file() -> Result<PathBuf, Diagnostic> {
    settings("author.key")
}

fn new(out: Option<PathBuf>, no_password: bool) -> Result<(), Diagnostic> {
    let file = out.map_or_else(default_file, Ok)?;
    let key = SecretKey::create(&file, !no_password)?;
    let public = trust::public_file(&file);
    output::line(Stream::Out, key.as_str());
    output::line(
        Stream::Error,
        format!(
            "\n  secret  {}{}\n  public  {}\n\n  Keep the secret half. Publish the public one where people already know you.",
            file.display(),
            if no_password {
                ", readable by whoever has the file"
            } else {
                ", under your password"
            },
            public.display()
        ),
    );
    Ok(())
}

fn show(file: Option<PathBuf>) -> Result<(), Diagnostic> {
    let file = file.map_or_else(default_file, Ok)?;
    let is_public = file.extension().is_some_and(|extension| extension == "pub");
    let public = if is_public {
        file
    } else {
        trust::public_file(&file)
    };
    output::line(Stream::Out, PublicKey::load(&public)?.as_str());
    Ok(())
}

fn trust_key(
    key: &str,
    names: &[String],
    owner: &str,
    policy: Option<PathBuf>,
) -> Result<(), Diagnostic> {
    let key = match PublicKey::parse(key) {
        Some(key) => key,
        None => PublicKey::load(Path::new(key))?,
    };
    let file = policy.map_or_else(|| settings(trust::FILE_NAME), Ok)?;
    trust::trust_key(&file, &key, owner, names)?;
    output::line(
        Stream::Out,
        format!(
            "{} may sign {} now, says {}",
            key.as_str(),
            names.join(", "),
            file.display()
        ),
    );
    Ok(())
}
