//! What the suite must be told of a plugin that it cannot find out: `conformance.toml` beside it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use crate::diagnostic::Diagnostic;
use crate::plan::{Limits, OptionValue};

/// A kind of toy problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Problem {
    /// Samples of four classes.
    Classes,
    /// Samples with a number to predict.
    Values,
    /// Prompts and verified responses.
    Tasks,
    /// A world to act in.
    World,
    /// Texts whose next bytes are to be guessed.
    Text,
}

impl Problem {
    /// Every kind, in the order in which a trainer is offered them.
    pub const ALL: [Problem; 5] = [
        Problem::Classes,
        Problem::Values,
        Problem::Tasks,
        Problem::World,
        Problem::Text,
    ];

    /// The problem in words.
    pub fn words(self) -> &'static str {
        match self {
            Problem::Classes => "samples of four classes",
            Problem::Values => "samples with a number to predict",
            Problem::Tasks => "prompts and verified responses",
            Problem::World => "a world to act in",
            Problem::Text => "texts whose next bytes are to be guessed",
        }
    }
}

/// How a plugin is tried.
#[derive(Clone, Debug, PartialEq)]
pub struct Setup {
    /// Options for every law; the plugin's defaults for the others.
    pub options: BTreeMap<String, OptionValue>,
    /// The only problem to offer; each in turn until the plugin takes one if there is none.
    pub problem: Option<Problem>,
    /// Steps of a round.
    pub steps: u64,
    /// Layers of the ordinary model with samples, for a plugin that trains only models of a certain form.
    pub layers: Vec<toml::Table>,
    /// Why equal rewards have advantages other than 0, where a normaliser means them to.
    pub constant_rewards: Option<String>,
    /// What a plugin may use.
    pub limits: Limits,
    /// The seed of every run.
    pub seed: u64,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            options: BTreeMap::new(),
            problem: None,
            steps: 24,
            layers: Vec::new(),
            constant_rewards: None,
            limits: Limits {
                memory: 64 << 20,
                tensors: 256 << 20,
                handles: 10_000,
                call: Duration::from_secs(5),
                log: 256 << 10,
            },
            seed: 1,
        }
    }
}

/// The name of the file.
pub const FILE: &str = "conformance.toml";

/// The file as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
struct Written {
    options: BTreeMap<String, toml::Value>,
    problem: Option<Problem>,
    steps: Option<u64>,
    layers: Vec<toml::Table>,
    constant_rewards: Option<String>,
}

impl Setup {
    /// Reads a folder's `conformance.toml`; the defaults if there is none.
    ///
    /// # Errors
    /// A file that is no TOML, has unknown keys, or values that can't be.
    pub fn of_folder(folder: &Path) -> Result<Setup, Diagnostic> {
        let file = folder.join(FILE);
        match file.is_file() {
            true => Self::load(&file),
            false => Ok(Setup::default()),
        }
    }

    /// Reads such a file.
    ///
    /// # Errors
    /// A file that can't be read, is no TOML, has unknown keys, or values that can't be.
    pub fn load(file: &Path) -> Result<Setup, Diagnostic> {
        let shown = file.display();
        let text = std::fs::read_to_string(file).map_err(|error| {
            Diagnostic::new(format!("`{shown}` could not be read")).because_io(&error)
        })?;
        let wrong = |problem: String| {
            Diagnostic::new(format!("`{shown}` says something that can't be"))
                .detail("because", problem)
                .expected("options = { .. }, problem = \"classes\", \"values\", \"tasks\", \"world\" or \"text\", steps = N, layers = [..] as in a run file, constant-rewards = \"why\"; all may be left out")
        };
        let written: Written =
            toml::from_str(&text).map_err(|error| wrong(error.message().to_string()))?;
        let mut setup = Setup::default();
        if let Some(steps) = written.steps {
            if !(3..=10_000).contains(&steps) {
                return Err(wrong(format!("steps = {steps} is not from 3 to 10000")));
            }
            setup.steps = steps;
        }
        setup.problem = written.problem;
        setup.layers = written.layers;
        setup.constant_rewards = written
            .constant_rewards
            .filter(|why| !why.trim().is_empty());
        for (name, value) in written.options {
            let value = option_value(&value).ok_or_else(|| {
                wrong(format!(
                    "option `{name}` is neither a truth value, a number, text nor a list of numbers"
                ))
            })?;
            setup.options.insert(name, value);
        }
        Ok(setup)
    }
}

fn option_value(value: &toml::Value) -> Option<OptionValue> {
    Some(match value {
        toml::Value::Boolean(flag) => OptionValue::Bool(*flag),
        toml::Value::Integer(n) => OptionValue::Integer(*n),
        toml::Value::Float(x) => OptionValue::Float(*x),
        toml::Value::String(text) => OptionValue::Text(text.clone()),
        toml::Value::Array(all) => {
            let number = |x: &toml::Value| x.as_float().or(x.as_integer().map(|n| n as f64));
            OptionValue::Floats(all.iter().map(number).collect::<Option<_>>()?)
        }
        _ => return None,
    })
}
