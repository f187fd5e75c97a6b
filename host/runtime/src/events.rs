//! What happens in a run, in the order in which it happens: the same facts for the terminal, for
//! `--json` and for tests.
//!
//! Each event is one JSON object with an `event` field in kebab-case. A number that is not finite is
//! written as `null`, because JSON has no other word for it. The last event of a run that ended is
//! [`Event::Finished`], of a run that was asked to stop [`Event::Interrupted`], of one that died
//! [`Event::Failed`]; nothing follows any of the three.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use crate::diagnostic::Diagnostic;
use crate::plan::{OptionValue, Slot};
use crate::profile::Profile;

/// Told of every event, on the thread that drives the run; what it does delays the run.
pub trait Observer {
    /// Called once for each event.
    fn event(&mut self, event: &Event);
}

/// An observer that listens to nothing.
impl Observer for () {
    fn event(&mut self, _event: &Event) {}
}

/// Keeps every event, for tests.
impl Observer for Vec<Event> {
    fn event(&mut self, event: &Event) {
        self.push(event.clone());
    }
}

/// Something that happened in a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// A plugin with a path source is being built, or the wasm target installed. Several may follow each
    /// other; the first run-related event ends them.
    Building(Building),
    /// What the run is made of, once everything has been resolved and checked.
    Composition(Composition),
    /// The first step is about to begin.
    Started {
        /// The run's folder.
        run: PathBuf,
        /// Steps already done: 0, or more after a resume.
        step: u64,
        /// Steps of the whole run as far as is known now; a pruner that rewinds adds to it.
        of: Option<u64>,
    },
    /// A stage begins, in a run of several; what follows belongs to it. Again after a resume.
    Stage {
        /// Its number, from 0.
        number: u64,
        /// How many there are.
        of: u64,
        /// Its name.
        name: String,
        /// Steps done.
        step: u64,
        /// Steps of one of its rounds.
        steps: u64,
    },
    /// One step of the trainer is over.
    Step {
        /// Steps done in the whole run, rewound ones included.
        step: u64,
        /// Steps of the whole run as far as is known now.
        of: Option<u64>,
        /// Epoch that this step belongs to, from 0, counted within the round.
        epoch: u64,
        /// Round, from 0: how often the run was rewound.
        round: u64,
        /// The trainer's own word for progress; metrics never come from it.
        #[serde(skip_serializing_if = "Option::is_none")]
        loss: Option<f64>,
        /// Samples that the step used.
        samples: u64,
        /// Wall time of the step.
        seconds: f64,
    },
    /// The host has measured the model on a split.
    Evaluated {
        /// `train`, `validation` or `test`.
        split: String,
        /// Steps done.
        step: u64,
        /// Epochs done in this round.
        epoch: u64,
        /// Round, from 0.
        round: u64,
        /// `accuracy`, `loss`, ... without the split's name, measured by the host.
        metrics: BTreeMap<String, f64>,
        /// Wall time of the measurement.
        seconds: f64,
    },
    /// A plugin has reported a number of its own through `log`.
    PluginMetric {
        /// Which plugin.
        plugin: String,
        /// The plugin's name for it.
        name: String,
        /// Its value.
        value: f64,
        /// Steps done.
        step: u64,
    },
    /// A plugin has said something: through `log`, or on its standard output or error.
    Log {
        /// Which plugin.
        plugin: String,
        /// How much it matters.
        level: Level,
        /// One line or several.
        text: String,
        /// Steps done.
        step: u64,
    },
    /// A pruner has changed the masks.
    Pruned {
        /// Which plugin.
        plugin: String,
        /// Steps done.
        step: u64,
        /// Fraction of prunable weights that are masked now, in [0, 1].
        sparsity: f64,
        /// Weights that live.
        alive: u64,
        /// Prunable weights in all.
        total: u64,
    },
    /// A pruner has sent the run back to a tagged state; a new round begins.
    Rewound {
        /// Which plugin.
        plugin: String,
        /// The tag.
        tag: String,
        /// Steps done when it asked.
        step: u64,
        /// The round that begins, from 1.
        round: u64,
    },
    /// An auditor has looked at the model.
    Audited(Audit),
    /// The run is safe up to this step.
    Checkpoint {
        /// Steps done.
        step: u64,
        /// The checkpoint.
        path: PathBuf,
    },
    /// Something the person should know that does not end the run.
    Warning {
        /// One sentence.
        text: String,
        /// The next thing to do.
        #[serde(skip_serializing_if = "Option::is_none")]
        help: Option<String>,
    },
    /// Something that happened in a member of a population.
    Member {
        /// Which one, from 0.
        member: u32,
        /// What happened.
        told: Box<Event>,
    },
    /// A generation of a population is over, and the tuner has decided.
    Generation(Generation),
    /// How the best member of a population came to be what it is; just before `counters`.
    Schedule(Schedule),
    /// What each plugin has cost; just before `finished`.
    Counters {
        /// In the order of the composition.
        plugins: Vec<PluginCounters>,
    },
    /// Where the time went, of a run that was profiled; just before `finished` or `interrupted`.
    Profile(Profile),
    /// The run is over and whole.
    Finished(Finished),
    /// The run was asked to stop, and has stopped after a checkpoint.
    Interrupted {
        /// The run's folder, for `--resume`.
        run: PathBuf,
        /// Steps done.
        step: u64,
    },
    /// The run, or what leads to it, has failed.
    Failed {
        /// Why.
        error: Diagnostic,
    },
}

/// What an audit found: the auditor's own word.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Audit {
    /// Which plugin.
    pub auditor: String,
    /// The stage at whose end it looked; empty in a run without stages.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stage: String,
    /// Steps done.
    pub step: u64,
    /// True if the result should not be trusted; none where the audit only measures.
    pub flagged: Option<bool>,
    /// Its numbers by name, in its order.
    #[serde(serialize_with = "in_order")]
    pub numbers: Vec<(String, f64)>,
    /// Its tables.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tables: Vec<AuditTable>,
    /// One or two sentences.
    pub note: String,
}

/// A table of an audit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct AuditTable {
    /// What it shows.
    pub name: String,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// One number a column.
    pub rows: Vec<Vec<f64>>,
}

/// Pairs as one object.
fn in_order<S: serde::Serializer>(numbers: &[(String, f64)], to: S) -> Result<S::Ok, S::Error> {
    to.collect_map(numbers.iter().map(|(name, x)| (name, x)))
}

/// A generation of a population.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Generation {
    /// Its number, from 1.
    pub generation: u64,
    /// Steps done by the member that has done most.
    pub step: u64,
    /// The same in epochs.
    pub epoch: f64,
    /// What the members are compared by.
    pub metric: String,
    /// The best member; none if the metric is finite for none.
    pub best: Option<Leader>,
    /// The mean over the members for which the metric is finite.
    pub mean: Option<f64>,
    /// Members for which it is not.
    pub unmeasured: u32,
    /// Copies that were made after it.
    pub copies: Vec<Copied>,
    /// Wall time, the decisions included.
    pub seconds: f64,
}

/// The best member of a generation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Leader {
    /// Its number, from 0.
    pub member: u32,
    /// Its metric.
    pub value: f64,
}

/// A member that became a copy of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Copied {
    /// The member, from 0.
    pub member: u32,
    /// What it became a copy of.
    pub from: u32,
}

/// The knobs with which a population's best member was trained, from the first step on, along the members that it was
/// copied from.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Schedule {
    /// The member, from 0.
    pub member: u32,
    /// What the members are compared by.
    pub metric: String,
    /// Its value at the end; none if it is not finite.
    pub value: Option<f64>,
    /// A row for each generation.
    pub rows: Vec<ScheduleRow>,
}

/// A generation on the way to the best member.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct ScheduleRow {
    /// The generation, from 1.
    pub generation: u64,
    /// Epochs done when it began.
    pub from_epoch: f64,
    /// Epochs done when it was over.
    pub to_epoch: f64,
    /// The member that was trained.
    pub member: u32,
    /// The member that it had become a copy of just before.
    pub copied_from: Option<u32>,
    /// Its knobs.
    pub knobs: Vec<(String, OptionValue)>,
    /// The metric at the end; none if it is not finite.
    pub value: Option<f64>,
}

/// Progress of building plugins.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Building {
    /// The plugins that this is about.
    pub plugins: Vec<String>,
    /// What is being done.
    pub stage: BuildStage,
    /// One line for people.
    pub text: String,
}

/// A stage of building plugins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum BuildStage {
    /// The compilation target is missing and is being installed through rustup.
    InstallingTarget,
    /// cargo has begun.
    Compiling,
    /// cargo has finished a crate; `text` names it.
    Crate,
    /// Everything is built.
    Done,
}

/// What a run is made of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Composition {
    /// The run's name.
    pub name: String,
    /// The run's seed.
    pub seed: u64,
    /// Threads for arithmetic.
    pub threads: usize,
    /// The data.
    pub data: ComposedData,
    /// The model.
    pub model: ComposedModel,
    /// The trainer, then the pruners in the order in which they act.
    pub plugins: Vec<ComposedPlugin>,
    /// The schedule in one line: `40 epochs of 21 steps, 64 samples a step`. Of a run of several stages, how many.
    pub schedule: String,
    /// Each stage in one line, of a run of several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<String>,
}

/// The data of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ComposedData {
    /// What it is: `digits`, or the path.
    pub source: String,
    /// Shape of one input.
    pub shape: Vec<usize>,
    /// Number of classes, or `None` for values.
    pub classes: Option<usize>,
    /// Samples for training.
    pub train: usize,
    /// Samples for validation.
    pub validation: usize,
    /// Samples for testing.
    pub test: usize,
}

/// The model of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ComposedModel {
    /// One line: `linear 128 · relu · linear 10`.
    pub text: String,
    /// Number of layers.
    pub layers: usize,
    /// Trainable numbers.
    pub parameters: u64,
    /// Of those, the ones a pruner may mask.
    pub prunable: u64,
}

/// A plugin of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ComposedPlugin {
    /// Its slot.
    pub slot: Slot,
    /// Its name in the registry.
    pub name: String,
    /// Its version.
    pub version: String,
    /// SHA-256 of the component, in hexadecimal.
    pub sha256: String,
    /// Size of the component in bytes.
    pub size: u64,
    /// Options, defaults included, in the order in which the plugin declares them.
    pub options: Vec<(String, OptionValue)>,
}

/// How much a log line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Level {
    /// Of interest to the plugin's author.
    Debug,
    /// Of interest.
    Info,
    /// Something is not as it should be.
    Warning,
    /// Something failed.
    Error,
}

/// What a plugin has cost in a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PluginCounters {
    /// Its slot.
    pub slot: Slot,
    /// Its name.
    pub name: String,
    /// Calls into it, by export: `step`, `on-event`, `predict`, ...
    pub calls: BTreeMap<String, u64>,
    /// Seconds spent in its own code.
    pub guest_seconds: f64,
    /// Seconds the host worked for it.
    pub host_seconds: f64,
    /// Most bytes of host tensors alive at once on its account.
    pub peak_tensor_bytes: u64,
    /// Most nodes of the autograd graph alive at once on its account.
    pub peak_graph_nodes: u64,
    /// Most handles alive at once.
    pub peak_handles: u64,
    /// Times it was started again after a failure.
    pub restarts: u64,
}

impl PluginCounters {
    /// Adds what another instance of the same plugin has cost.
    pub fn add(&mut self, other: &PluginCounters) {
        for (call, n) in &other.calls {
            *self.calls.entry(call.clone()).or_default() += n;
        }
        self.guest_seconds += other.guest_seconds;
        self.host_seconds += other.host_seconds;
        self.peak_tensor_bytes = self.peak_tensor_bytes.max(other.peak_tensor_bytes);
        self.peak_graph_nodes = self.peak_graph_nodes.max(other.peak_graph_nodes);
        self.peak_handles = self.peak_handles.max(other.peak_handles);
        self.restarts = self.restarts.max(other.restarts);
    }
}

/// The end of a run that went through.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finished {
    /// The run's folder.
    pub run: PathBuf,
    /// Wall time from the first step to the last measurement, earlier parts of a resumed run included.
    pub seconds: f64,
    /// Steps done, rewound ones included.
    pub steps: u64,
    /// `test/accuracy`, `test/loss`, `sparsity`, ... measured by the host at the end.
    pub metrics: BTreeMap<String, f64>,
}

/// How a run that did not fail came to its end.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    /// It went through.
    Finished(Finished),
    /// It was asked to stop and has made a checkpoint.
    Interrupted {
        /// The run's folder, for `--resume`.
        run: PathBuf,
        /// Steps done.
        step: u64,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(event: &Event) -> String {
        serde_json::to_string(event).unwrap_or_else(|error| error.to_string())
    }

    #[test]
    fn the_last_line_has_exactly_the_promised_form() {
        let metrics = [
            ("sparsity", 0.9),
            ("test/accuracy", 0.97),
            ("test/loss", 0.125),
        ];
        let event = Event::Finished(Finished {
            run: "runs/digits".into(),
            seconds: 1.5,
            steps: 840,
            metrics: metrics
                .map(|(name, value)| (name.to_string(), value))
                .into(),
        });
        let want = r#"{"event":"finished","run":"runs/digits","seconds":1.5,"steps":840,"metrics":{"sparsity":0.9,"test/accuracy":0.97,"test/loss":0.125}}"#;
        assert_eq!(json(&event), want);
    }

    #[test]
    fn names_are_kebab_case_and_numbers_that_are_not_finite_are_null() {
        let event = Event::PluginMetric {
            plugin: "p".into(),
            name: "n".into(),
            value: f64::NAN,
            step: 3,
        };
        let want = r#"{"event":"plugin-metric","plugin":"p","name":"n","value":null,"step":3}"#;
        assert_eq!(json(&event), want);
        let event = Event::Building(Building {
            plugins: vec![],
            stage: BuildStage::InstallingTarget,
            text: "".into(),
        });
        assert_eq!(
            json(&event),
            r#"{"event":"building","plugins":[],"stage":"installing-target","text":""}"#
        );
    }
}
