//! What the command line accepts.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

/// What the process answers to its caller; `--help` says the same.
pub mod exit {
    /// Everything went well.
    pub const OK: u8 = 0;
    /// The run began and failed, or its repetition is another.
    pub const FAILED: u8 = 1;
    /// The input was wrong: arguments, run file, registry, data, component.
    pub const WRONG_INPUT: u8 = 2;
    /// Stopped by Ctrl-C or SIGTERM.
    pub const INTERRUPTED: u8 = 130;
}

const EXIT_CODES: &str = "\
Exit codes:
  0    it went well
  1    the run began and failed
  2    the input was wrong: arguments, run file, registry, data or component
  130  stopped by Ctrl-C or SIGTERM; a run that had begun is checkpointed first";

const TEST_HELP: &str = "\
The plugin is a black box in whatever language, tried on problems that the host makes up.
docs/conformance.md tells every law. Exit codes: 0 no law is broken, 1 some are, 2 the input was wrong.";

const COMPLETIONS_HELP: &str = "\
Where they go:
  bash  espalier completions bash > ~/.local/share/bash-completion/completions/espalier
  zsh   espalier completions zsh > DIR/_espalier      DIR being a folder of $fpath
  fish  espalier completions fish > ~/.config/fish/completions/espalier.fish";

/// Compose trainers and pruners, each a WebAssembly component, into one run.
#[derive(Debug, Parser)]
#[command(version, after_help = EXIT_CODES, arg_required_else_help = true)]
pub struct Args {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train, prune and measure as a run file says
    Run(Run),
    /// Repeat a run from its lock and say whether it comes out the same, to the last bit
    #[command(after_help = EXIT_CODES)]
    Verify(Verify),
    /// See which plugins there are and what each may do
    #[command(after_help = EXIT_CODES)]
    Plugin(Plugin),
    /// Keys: the author's own, which signs plugins, and those of others that are trusted
    #[command(after_help = EXIT_CODES)]
    Key(Key),
    /// Print completions for a shell, to be read where it starts
    #[command(after_help = COMPLETIONS_HELP)]
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// A shell that completions are written for.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Train, prune and measure as a run file says.
#[derive(Debug, clap::Args)]
#[command(after_help = EXIT_CODES)]
pub struct Run {
    /// The run file (TOML)
    pub file: PathBuf,
    /// Say something over the run file, such as schedule.epochs=5 or model.layers.0.features=64
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_and_value)]
    pub sets: Vec<(String, String)>,
    /// Every random number of the run follows from this (over run.seed)
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Threads for arithmetic; results do not depend on it (over run.threads)
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Go on with a run that was stopped, from its last checkpoint
    #[arg(long, value_name = "DIR")]
    pub resume: Option<PathBuf>,
    /// The run's folder, which must be new or empty [default: runs/NAME with a number]
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    pub out: Option<PathBuf>,
    /// Write events to standard output, one JSON object a line; words for people go to standard error
    #[arg(long)]
    pub json: bool,
    /// Say at the end where the time went, and write a trace for Perfetto or chrome://tracing
    /// [default: profile.json in the run's folder]
    #[arg(long, value_name = "FILE.json", num_args = 0..=1, value_parser = crate::profile::trace_file)]
    pub profile: Option<Option<PathBuf>>,
    /// The registry [default: registry.toml in the run file's folder or above it]
    #[arg(long, value_name = "FILE")]
    pub registry: Option<PathBuf>,
    /// The trust policy [default: trust.toml beside the registry and in ~/.config/espalier]
    #[arg(long, value_name = "FILE")]
    pub trust: Option<PathBuf>,
    /// Refuse to run anything but what espalier.lock beside the run file says
    #[arg(long)]
    pub locked: bool,
}

/// Repeat a run from its lock.
#[derive(Debug, clap::Args)]
pub struct Verify {
    /// The run's folder
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Keep the repetition in this new folder
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Write the verdict to standard output as JSON
    #[arg(long)]
    pub json: bool,
    /// The registry [default: registry.toml in the current folder or above it]
    #[arg(long, value_name = "FILE")]
    pub registry: Option<PathBuf>,
    /// The trust policy [default: trust.toml beside the registry and in ~/.config/espalier]
    #[arg(long, value_name = "FILE")]
    pub trust: Option<PathBuf>,
}

/// See which plugins there are and what each may do.
#[derive(Debug, clap::Args)]
pub struct Plugin {
    #[command(subcommand)]
    pub command: PluginCommand,
}

#[derive(Debug, Subcommand)]
pub enum PluginCommand {
    /// The plugins of the registry
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
        /// The registry [default: registry.toml here or in a folder above]
        #[arg(long, value_name = "FILE")]
        registry: Option<PathBuf>,
    },
    /// The registry's plugins whose name, slot or summary holds every one of some words
    Search {
        /// Words, in any case and order
        #[arg(required = true)]
        words: Vec<String>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
        /// The registry [default: registry.toml here or in a folder above]
        #[arg(long, value_name = "FILE")]
        registry: Option<PathBuf>,
    },
    /// What a plugin is: slot, version, options, capabilities, digest and size
    Inspect {
        /// A plugin's name in the registry, or a component file
        #[arg(value_name = "NAME|FILE")]
        plugin: String,
        /// One JSON object
        #[arg(long)]
        json: bool,
        /// The registry [default: registry.toml here or in a folder above]
        #[arg(long, value_name = "FILE")]
        registry: Option<PathBuf>,
    },
    /// Begin a plugin: a folder that builds, passes its tests and runs as it stands
    New(New),
    /// Compile a plugin's folder to a release component, and show its size and digest
    Build {
        /// The folder with the plugin's source
        #[arg(value_name = "PATH", default_value = ".")]
        folder: PathBuf,
        /// One JSON object
        #[arg(long)]
        json: bool,
    },
    /// Put a plugin into somebody's registry: built, tested, signed, written whole or not at all
    Publish(Publish),
    /// Take somebody's plugin into this project's registry: found, checked, kept by digest
    Add(Add),
    /// Try a plugin on the laws that every plugin of its slot must keep to
    #[command(after_help = TEST_HELP)]
    Test {
        /// The folder with its source, its name in the registry, or a component file
        #[arg(value_name = "PATH|NAME|FILE", default_value = ".")]
        plugin: String,
        /// One JSON object
        #[arg(long)]
        json: bool,
        /// The registry [default: registry.toml here or in a folder above]
        #[arg(long, value_name = "FILE")]
        registry: Option<PathBuf>,
        /// What the suite must be told [default: conformance.toml in the plugin's folder]
        #[arg(long, value_name = "FILE")]
        setup: Option<PathBuf>,
    },
}

/// Begin a plugin: a folder that builds, passes its tests and runs as it stands.
#[derive(Debug, clap::Args)]
pub struct New {
    /// The plugin's name: lower-case letters, digits and -
    #[arg(value_name = "NAME")]
    pub name: String,
    /// What it decides
    #[arg(long, value_name = "SLOT")]
    pub slot: NewSlot,
    /// The least that works, or a method with its usual options
    #[arg(long, value_name = "TEMPLATE", default_value = "blank")]
    pub template: Template,
    /// Where the folder NAME is made
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub dir: PathBuf,
    /// The language
    #[arg(long, value_name = "LANG", default_value = "rust")]
    pub lang: Lang,
    /// A checkout of Espalier with the SDK to build on [default: a checkout around DIR, else the SDK in this command]
    #[arg(long, value_name = "PATH")]
    pub sdk: Option<PathBuf>,
}

/// What a new plugin decides: a world of the interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum NewSlot {
    /// How parameters change
    Trainer,
    /// Which weights live
    Pruner,
    /// What a reward is worth
    Normalizer,
    /// What a reward is worth, knowing how far the policy has moved
    NormalizerTracking,
    /// Prompts, and what responses to them are worth
    #[value(aliases = ["environment", "tasks"])]
    EnvironmentTasks,
    /// A world to act in
    #[value(alias = "mdp")]
    EnvironmentMdp,
    /// Which hyperparameters come next, for one run or a population
    Tuner,
    /// What a model computes
    Architecture,
    /// Which candidate comes next: inference-time search
    Searcher,
    /// Whether to trust the result
    Auditor,
    /// What the data looks like
    Transform,
}

impl NewSlot {
    /// The slot as registries name it.
    pub fn slot(self) -> &'static str {
        match self {
            NewSlot::Trainer => "trainer",
            NewSlot::Pruner => "pruner",
            NewSlot::Normalizer | NewSlot::NormalizerTracking => "normalizer",
            NewSlot::EnvironmentTasks | NewSlot::EnvironmentMdp => "environment",
            NewSlot::Tuner => "tuner",
            NewSlot::Architecture => "architecture",
            NewSlot::Searcher => "searcher",
            NewSlot::Auditor => "auditor",
            NewSlot::Transform => "transform",
        }
    }
}

/// How much a new plugin begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Template {
    /// The least that works
    Blank,
    /// A method with its usual options
    Example,
}

/// What a new plugin is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Lang {
    /// A crate
    Rust,
    /// A module, built by componentize-py
    Python,
}

/// Put a plugin into somebody's registry: built, tested, signed, written whole or not at all.
#[derive(Debug, clap::Args)]
pub struct Publish {
    /// The folder with its source, or a component file
    #[arg(value_name = "PATH", default_value = ".")]
    pub path: PathBuf,
    /// The registry file, which is made if it is missing, or oci://HOST/FOLDER
    #[arg(long, value_name = "FILE|OCI")]
    pub registry: String,
    /// Sign with this secret key [default: ~/.config/espalier/author.key if it is there]
    #[arg(long, value_name = "KEY")]
    pub sign: Option<PathBuf>,
    /// Publish without a signature
    #[arg(long, conflicts_with = "sign")]
    pub unsigned: bool,
    /// The plugin's name in the registry [default: the component's own, without `espalier-plugin-`]
    #[arg(long)]
    pub name: Option<String>,
    /// Its licence as an SPDX expression [default: the package's]
    #[arg(long, value_name = "SPDX")]
    pub licence: Option<String>,
    /// Where its method was published [default: package.metadata.espalier.paper]
    #[arg(long)]
    pub paper: Option<String>,
    /// What the conformance suite must be told [default: conformance.toml in the plugin's folder]
    #[arg(long, value_name = "FILE")]
    pub setup: Option<PathBuf>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Take somebody's plugin into this project's registry: found, checked, kept by digest.
#[derive(Debug, clap::Args)]
pub struct Add {
    /// The plugin, and the version as cargo reads one: 1.2 is ^1.2, =1.2.3 is that one
    #[arg(value_name = "NAME[@VERSION]")]
    pub plugin: String,
    /// A registry file or a folder with one, a component, https:// of either, or oci://HOST/FOLDER
    #[arg(long, value_name = "PLACE")]
    pub from: String,
    /// The digest that the component must have: you vouch for it, whoever signed it
    #[arg(long, value_name = "DIGEST")]
    pub sha256: Option<String>,
    /// The licence of a component that stands in no registry
    #[arg(long, value_name = "SPDX")]
    pub licence: Option<String>,
    /// Let a lower version replace a higher one
    #[arg(long)]
    pub downgrade: bool,
    /// The project's registry [default: registry.toml here or in a folder above]
    #[arg(long, value_name = "FILE")]
    pub registry: Option<PathBuf>,
    /// The trust policy [default: trust.toml beside the registry and in ~/.config/espalier]
    #[arg(long, value_name = "FILE")]
    pub trust: Option<PathBuf>,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
}

/// Keys: the author's own, which signs plugins, and those of others that are trusted.
#[derive(Debug, clap::Args)]
pub struct Key {
    #[command(subcommand)]
    pub command: KeyCommand,
}

#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key pair: the secret half in FILE, the public half in FILE.pub
    New {
        /// The file, which must be new [default: ~/.config/espalier/author.key]
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Write the secret key as it is, for machines that sign by themselves
        #[arg(long)]
        no_password: bool,
    },
    /// Print the public half of a key, for others to trust
    Show {
        /// The secret key's file [default: ~/.config/espalier/author.key]
        #[arg(value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Trust a key of somebody else for plugins of these names
    Trust {
        /// The public key, or its file
        #[arg(value_name = "KEY")]
        key: String,
        /// A name it may sign; `lab-*` for all that begin so
        #[arg(long = "for", value_name = "NAME", required = true)]
        names: Vec<String>,
        /// Whose key it is
        #[arg(long, default_value = "")]
        owner: String,
        /// The policy to write it into [default: ~/.config/espalier/trust.toml]
        #[arg(long, value_name = "FILE")]
        trust: Option<PathBuf>,
    },
}

fn key_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.trim().is_empty() => {
            Ok((key.trim().to_string(), value.to_string()))
        }
        _ => Err("expected KEY=VALUE, such as schedule.epochs=5".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_name_every_command() {
        use clap::CommandFactory;
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let mut script = Vec::new();
            crate::completions::write(shell, &mut script);
            let script = String::from_utf8_lossy(&script).into_owned();
            for command in Args::command().get_subcommands() {
                assert!(
                    script.contains(command.get_name()),
                    "{shell:?} lacks {command}"
                );
            }
            assert!(script.contains("inspect") && script.contains("profile"));
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Args::command().debug_assert();
    }

    #[test]
    fn a_value_may_hold_an_equals_sign_and_a_key_may_not_be_missing() {
        assert_eq!(key_and_value("a.b=c=d"), Ok(("a.b".into(), "c=d".into())));
        assert!(key_and_value("=1").is_err());
        assert!(key_and_value("a").is_err());
    }
}
