//! What a run is, after the run file, the registry and the command line have been read and checked:
//! plain data, complete (every default filled in), nothing left to look up.
//!
//! `runfile` makes a [`Plan`], `run` carries it out, the lock records it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A checked run: data, model, schedule and the plugins that fill the slots.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Name shown to people and used for the run folder; the run file's stem unless it says otherwise.
    pub name: String,
    /// Every random number of the run follows from this.
    pub seed: u64,
    /// Threads for arithmetic. Results do not depend on it.
    pub threads: usize,
    /// How often the list of stages is gone through.
    #[serde(default = "once", skip_serializing_if = "is_once")]
    pub repeat: u32,
    /// Where samples come from and how they are split; none where an environment takes their place.
    pub data: Option<DataPlan>,
    /// A run's folder, or a checkpoint, whose model and parameters this run begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<PathBuf>,
    /// The layers, in order; empty for those of `from`.
    pub model: Vec<LayerPlan>,
    /// How long to train and when to look, in the first stage.
    pub schedule: SchedulePlan,
    /// What a run that searches, and does nothing else, searches.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<SearchPlan>,
    /// The first stage's trainer, its pruners in the order in which they act on an event, its auditors; what later
    /// stages add to them; the environment, the normaliser, the transforms.
    pub plugins: Vec<PluginPlan>,
    /// The stages as the run file lists them; empty where it lists none and the run is one stage.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<StagePlan>,
    /// How often the run is made safe.
    pub checkpoint: CheckpointPlan,
    /// Runs that train side by side, steered by a tuner; none for a run by itself.
    #[serde(default)]
    pub population: Option<PopulationPlan>,
}

/// Runs that train side by side, each with a seed of its own, steered by a tuner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PopulationPlan {
    /// How many, at least 1.
    pub members: u32,
    /// How long all of them train between two decisions of the tuner.
    pub every: Every,
    /// What they are compared by: `SPLIT/NAME`, measured by the host.
    pub metric: String,
    /// Which values of the metric are better.
    pub goal: Goal,
    /// What the tuner may change, in the order of the names.
    pub space: Vec<KnobPlan>,
}

/// A length of training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Every {
    /// Passes over the training split.
    Epochs(u64),
    /// Calls of the trainer's `step`.
    Steps(u64),
}

/// Which values of a metric are better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Goal {
    /// Higher ones.
    Max,
    /// Lower ones.
    Min,
}

/// Something of a run that may be changed between two steps, and what it may be set to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KnobPlan {
    /// `trainer.OPTION` or `model.LAYER.SETTING`.
    pub name: String,
    /// Where the run file names it, for messages: `file:line`.
    pub place: String,
    /// What it may be set to.
    pub domain: KnobDomain,
}

/// What a knob may be set to. Whether it is a whole number follows from the option.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KnobDomain {
    /// A number within bounds, themselves allowed.
    Interval {
        /// The smallest value.
        low: f64,
        /// The largest value.
        high: f64,
        /// Whether ratios count, as with a learning rate.
        log: bool,
    },
    /// One of these words.
    Choices(Vec<String>),
}

fn once() -> u32 {
    1
}

fn is_once(repeat: &u32) -> bool {
    *repeat == 1
}

/// The split that trainers learn from unless a stage says otherwise.
pub const TRAIN: &str = "train";

/// One stage of a run: a schedule, and the plugins that act in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StagePlan {
    /// Unique among the stages; `stage1` and so on unless the run file names it.
    pub name: String,
    /// The split that its trainer sees as `train`.
    pub train: String,
    /// True if the run's parameters may not change in it.
    pub freeze: bool,
    /// Its trainer, as a place in the plan's plugins; none for a stage without steps.
    pub trainer: Option<usize>,
    /// Its other plugins, as places in the plan's plugins, in the order in which they act.
    pub plugins: Vec<usize>,
    /// How long it is and what is measured.
    pub schedule: SchedulePlan,
    /// What its searcher searches, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<SearchPlan>,
}

/// What a searcher searches, and its budget.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SearchPlan {
    /// The searcher, as a place in the plan's plugins.
    pub part: usize,
    /// The split of the environment whose prompts are answered.
    pub split: String,
    /// Prompts that the searcher is asked to take in a step.
    pub prompts_per_step: u32,
    /// Most steps; none for as many as it takes.
    pub max_steps: Option<u64>,
    /// The search ends after the step in which so many tokens have been drawn; none for no end.
    pub max_tokens: Option<u64>,
}

impl Plan {
    /// All stages in the order in which they happen, repeated ones with a number after their name. A plan without
    /// stages is one stage, without a name, of all plugins that a stage can have.
    pub fn whole(&self) -> Vec<StagePlan> {
        if self.stages.is_empty() {
            let places = |trainer: bool| {
                let all = self.plugins.iter().enumerate();
                all.filter(move |(_, p)| {
                    p.slot.of_a_stage() && (p.slot == Slot::Trainer) == trainer
                })
                .map(|(place, _)| place)
            };
            return vec![StagePlan {
                name: String::new(),
                train: TRAIN.into(),
                freeze: false,
                trainer: places(true).next(),
                plugins: places(false).collect(),
                schedule: self.schedule.clone(),
                search: self.search.clone(),
            }];
        }
        let mut all = Vec::new();
        for pass in 1..=self.repeat.max(1) {
            all.extend(self.stages.iter().map(|stage| StagePlan {
                name: match pass {
                    1 => stage.name.clone(),
                    pass => format!("{}-{pass}", stage.name),
                },
                ..stage.clone()
            }));
        }
        all
    }
}

/// Where samples come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DataPlan {
    /// The source and what only it needs to know.
    pub source: DataSource,
    /// Fraction of the samples kept for testing where the source has no test split of its own, in [0, 1).
    pub test: f64,
    /// Fraction of the training samples kept for validation, in [0, 1).
    pub validation: f64,
    /// Seed of the split alone, so that runs with different seeds are measured on the same samples.
    pub split_seed: u64,
    /// At most this many training samples, the first ones after the seeded split shuffle.
    pub train_limit: Option<usize>,
    /// At most this many test samples.
    pub test_limit: Option<usize>,
    /// How inputs are scaled.
    pub normalize: Normalize,
}

/// A data set the host can read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum DataSource {
    /// UCI handwritten digits, 1,797 images of 8x8 (shape [1, 8, 8]), 10 classes; embedded in the program.
    Digits,
    /// A folder of IDX files as MNIST and Fashion-MNIST use them, gzipped or not; shape [1, h, w].
    Idx {
        /// Folder with `train-images-idx3-ubyte[.gz]` and the three other files.
        path: PathBuf,
    },
    /// One CSV file with a header; numeric columns only.
    Csv {
        /// The file.
        path: PathBuf,
        /// Column to predict.
        target: String,
        /// True if the target is a class (any text or number), false if it is a number to regress.
        classes: bool,
    },
    /// Two NPY files with the same first axis.
    Npy {
        /// Inputs, any rank from 2.
        inputs: PathBuf,
        /// Targets: integers are classes, floats are values.
        targets: PathBuf,
    },
    /// A text as bytes, 256 classes: the targets are the inputs, one byte later.
    Text {
        /// The file, plain or gzip.
        path: PathBuf,
        /// Bytes a sample.
        context: u32,
    },
    /// One graph: the nodes are the samples.
    Graph {
        /// CSV file of the nodes: features and a class.
        path: PathBuf,
        /// CSV file of the edges: two node numbers a line.
        edges: PathBuf,
        /// Column with the class.
        target: String,
        /// How many nodes have a known class.
        labelled: Labelled,
    },
    /// Series of sines with noise, drawn; the class of a series is one of its frequencies; shape [1, length].
    Sines(Sines),
    /// A graph drawn from a stochastic block model.
    BlockModel {
        /// What it is like.
        model: BlockModel,
        /// How many nodes have a known class.
        labelled: Labelled,
    },
}

/// Series that are drawn, not read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sines {
    /// Training samples.
    pub count: u32,
    /// Test samples.
    pub test_count: u32,
    /// Steps of a series.
    pub length: u32,
    /// The frequency of each class, in periods a series.
    pub frequencies: Vec<f64>,
    /// Standard deviation of the noise.
    pub noise: f64,
}

/// How many nodes of each class have a known class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Labelled {
    /// For training.
    pub train: u32,
    /// For validation.
    pub validation: u32,
}

/// A stochastic block model with features.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlockModel {
    /// Number of classes.
    pub classes: u32,
    /// Nodes of each class.
    pub nodes_per_class: u32,
    /// Probability of an edge within a class.
    pub p_in: f64,
    /// Probability of an edge between classes.
    pub p_out: f64,
    /// Features of a node.
    pub features: u32,
    /// Norm of a class's centre, in standard deviations of the noise.
    pub radius: f64,
}

/// How inputs are scaled before a plugin sees them; statistics come from the training split alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Normalize {
    /// As the source gives them (images: 0 to 1).
    None,
    /// Subtract the mean of all inputs, divide by their standard deviation.
    Standard,
    /// The same for each feature by itself.
    PerFeature,
}

/// One layer of the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerPlan {
    /// Unique in the model; the kind and a number (`linear1`) unless the run file names it.
    pub name: String,
    /// One of the built-in kinds, as `model::KINDS` lists them.
    pub kind: String,
    /// Names of the layers (or fields) it reads; empty means the layer before it, or the field `inputs`.
    pub inputs: Vec<String>,
    /// True if no optimiser may change its parameters.
    #[serde(default)]
    pub frozen: bool,
    /// A name for several layers together, by which plugins may choose; empty for none.
    #[serde(default)]
    pub group: String,
    /// The kind's settings by name: `features`, `kernel`, `stride`, ... Booleans are 0 and 1.
    pub settings: BTreeMap<String, Vec<f64>>,
}

/// How long to train and when to look.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SchedulePlan {
    /// Length of one round.
    pub length: Length,
    /// Samples a step: prompts of an environment with tasks, instances of one to act in.
    pub batch_size: u32,
    /// Steps that count as an epoch where an environment takes the place of data; none for one pass over its
    /// training prompts, or the whole round where there are none.
    pub steps_per_epoch: Option<u64>,
    /// Episodes of a measurement in an environment to act in.
    pub evaluation_episodes: u32,
    /// Epochs between two evaluations on the validation split (or the test split where there is none).
    pub evaluate_every: u32,
    /// Samples a `predict` call at evaluation; no metric depends on it.
    pub evaluation_batch: u32,
    /// What the host measures and what `model.loss` stands for.
    pub loss: Loss,
    /// Further splits that are measured at the end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evaluate: Vec<String>,
    /// Whether probabilities are compared with how often they come true.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub calibration: bool,
}

/// Length of a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Length {
    /// Passes over the training split.
    Epochs(u64),
    /// Calls of the trainer's `step`.
    Steps(u64),
}

/// The run's loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// Mean over samples of -log softmax(logits)\[class\].
    CrossEntropy,
    /// Mean over samples and outputs of the squared difference.
    Mse,
}

/// One plugin in one slot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PluginPlan {
    /// The slot it fills.
    pub slot: Slot,
    /// Its name in the registry.
    pub name: String,
    /// Where the run file names it, for messages: `file:line`.
    pub place: String,
    /// Options given in the run file, unchecked until the component has said which it has.
    pub options: BTreeMap<String, OptionValue>,
    /// Where each option stands in the run file, for messages: `file:line`.
    pub option_places: BTreeMap<String, String>,
    /// What it may use.
    pub limits: Limits,
    /// What follows when it dies.
    pub on_failure: OnFailure,
}

/// A kind of decision with its own WIT world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Slot {
    /// How parameters change.
    Trainer,
    /// Which weights live.
    Pruner,
    /// What the world answers.
    Environment,
    /// What a reward is worth.
    Normalizer,
    /// What a model computes.
    Architecture,
    /// Which hyperparameters come next.
    Tuner,
    /// Whether to trust the result.
    Auditor,
    /// What the data looks like.
    Transform,
    /// Which candidate comes next.
    Searcher,
}

impl Slot {
    /// All of them, in the order in which listings group plugins.
    pub const ALL: [Slot; 9] = [
        Slot::Trainer,
        Slot::Architecture,
        Slot::Pruner,
        Slot::Normalizer,
        Slot::Environment,
        Slot::Tuner,
        Slot::Auditor,
        Slot::Transform,
        Slot::Searcher,
    ];

    /// The name used in run files, registries and `wit/`.
    pub fn as_str(self) -> &'static str {
        match self {
            Slot::Trainer => "trainer",
            Slot::Pruner => "pruner",
            Slot::Environment => "environment",
            Slot::Normalizer => "normalizer",
            Slot::Architecture => "architecture",
            Slot::Tuner => "tuner",
            Slot::Auditor => "auditor",
            Slot::Transform => "transform",
            Slot::Searcher => "searcher",
        }
    }
}

impl Slot {
    /// What it decides, in a few words for listings.
    pub fn decides(self) -> &'static str {
        match self {
            Slot::Trainer => "how parameters change",
            Slot::Pruner => "which weights live",
            Slot::Environment => "what the world answers",
            Slot::Normalizer => "what a reward is worth",
            Slot::Architecture => "what a model computes",
            Slot::Tuner => "which hyperparameters come next",
            Slot::Auditor => "whether to trust the result",
            Slot::Transform => "what the data looks like",
            Slot::Searcher => "which candidate comes next",
        }
    }

    /// Whether a stage can have plugins of its own in this slot. The others are for the whole run.
    pub fn of_a_stage(self) -> bool {
        matches!(
            self,
            Slot::Trainer | Slot::Pruner | Slot::Tuner | Slot::Auditor | Slot::Searcher
        )
    }

    /// The name with its article, for sentences.
    pub fn with_article(self) -> String {
        match self {
            Slot::Environment | Slot::Architecture | Slot::Auditor => format!("an {self}"),
            _ => format!("a {self}"),
        }
    }
}

impl std::fmt::Display for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The value of one option.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum OptionValue {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Integer(i64),
    /// A number.
    Float(f64),
    /// Text, or one of a set of choices.
    Text(String),
    /// Several numbers.
    Floats(Vec<f64>),
}

/// What one plugin may use.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of guest memory, all linear memories together.
    pub memory: u64,
    /// Bytes of host tensors alive at once on its account.
    pub tensors: u64,
    /// Handles alive at once.
    pub handles: u32,
    /// Wall time of one call into the plugin, host work included.
    pub call: Duration,
    /// Bytes of log text in the whole run.
    pub log: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            memory: 256 << 20,
            tensors: 4 << 30,
            handles: 100_000,
            call: Duration::from_secs(60),
            log: 1 << 20,
        }
    }
}

/// What follows when a plugin traps or breaks a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnFailure {
    /// The run ends with an error; the last checkpoint stays.
    Fail,
    /// A new instance with the state of the last save; counted and shown.
    Restart,
    /// The run goes on without it. Not for a trainer.
    Skip,
}

/// How often the run is made safe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckpointPlan {
    /// Steps between two checkpoints; 0 means only at the end of each epoch, [`CheckpointPlan::ASKED`] never by
    /// itself.
    pub every: u64,
    /// How many of the newest are kept, at least 1.
    pub keep: usize,
}

impl CheckpointPlan {
    /// Written only when somebody asks for it: the member of a population, which is made safe with the others.
    pub const ASKED: u64 = i64::MAX as u64;
}
