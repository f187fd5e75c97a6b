//! What all plugins of one run share: parameters, models, data and where the run is.
//!
//! Everything of one run happens on one thread, so interior mutability is a `RefCell`; the rule is that no
//! borrow of [`RunState`] is held while a guest is called.

use std::cell::RefCell;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::guest::misuse;
use super::rollouts::Rollouts;
use super::session::{Death, Session};
use crate::data::{Dataset, Streams};
use crate::events::Event;
use crate::model::{FieldShape, Model};
use crate::parameters::ParameterSet;
use crate::plan::LayerPlan;

/// Which set of parameters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SetId {
    /// The run's.
    Main,
    /// One that a plugin made.
    Own {
        /// The plugin.
        plugin: String,
        /// The plugin's name for it.
        name: String,
    },
    /// That of a model which a plugin built or cloned.
    OfModel {
        /// The plugin.
        plugin: String,
        /// The plugin's name for the model.
        name: String,
    },
}

impl SetId {
    /// The plugin that made the set; none for the run's.
    pub fn owner(&self) -> Option<&str> {
        match self {
            SetId::Main => None,
            SetId::Own { plugin, .. } | SetId::OfModel { plugin, .. } => Some(plugin),
        }
    }
}

impl std::fmt::Display for SetId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            SetId::Main => f.write_str("the run's set"),
            SetId::Own { plugin, name } => write!(f, "set `{name}` of `{plugin}`"),
            SetId::OfModel { plugin, name } => {
                write!(f, "the parameters of model `{name}` of `{plugin}`")
            }
        }
    }
}

/// Which model.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ModelId {
    /// The run's.
    Main,
    /// One that a plugin built or cloned.
    Own {
        /// The plugin.
        plugin: String,
        /// The plugin's name for it.
        name: String,
    },
}

impl ModelId {
    /// The set that holds the model's parameters.
    pub fn set(&self) -> SetId {
        match self {
            ModelId::Main => SetId::Main,
            ModelId::Own { plugin, name } => SetId::OfModel {
                plugin: plugin.clone(),
                name: name.clone(),
            },
        }
    }
}

/// What the host remembers beside the parameters when the run's set is tagged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunTag {
    /// Steps done in the round.
    pub round_step: u64,
    /// Positions of all streams.
    pub streams: Streams,
    /// What the trainer saved.
    pub trainer: Vec<u8>,
}

/// The run, as plugins reach it through the interface.
pub struct RunState {
    /// The run's seed.
    pub seed: u64,
    /// The data.
    pub data: Dataset,
    /// Positions in the data.
    pub streams: Streams,
    /// All parameters.
    pub sets: BTreeMap<SetId, ParameterSet>,
    /// The run's model and the plugins' own.
    pub models: BTreeMap<ModelId, Model>,
    /// What a sample of the run's inputs looks like.
    pub inputs: Vec<FieldShape>,
    /// The layers of the run's model, which `adopt` may replace.
    pub layers: Vec<LayerPlan>,
    /// Layers of the plugins' own models, by the key in `models`.
    pub own_layers: BTreeMap<ModelId, Vec<LayerPlan>>,
    /// Steps done in the whole run.
    pub steps_done: u64,
    /// Forward passes in this step; keys dropout.
    pub passes: u64,
    /// Tags of the run's set.
    pub tags: BTreeMap<String, RunTag>,
    /// Tags set in this call, to be completed by the run loop once the call is over.
    pub new_tags: Vec<String>,
    /// A model to become the run's at the end of the step.
    pub adopt: Option<ModelId>,
    /// Which plugin masks which parameter of the run's set: a second one is refused.
    pub mask_owners: BTreeMap<String, String>,
    /// The same for values that stand for a parameter's own in forward and backward passes.
    pub effective_owners: BTreeMap<String, String>,
    /// Different streams opened.
    pub streams_opened: u64,
    /// Grows with every change of a mask or an effective value of the run's set.
    pub mask_changes: u64,
    /// Prompts and responses, or a world to act in.
    pub rollouts: Rollouts,
    /// Where the run is: step, epoch and round of the step at work.
    pub at: (u64, f64, u32),
    /// Why nobody may change the run's parameters now.
    pub locked: Option<String>,
}

impl RunState {
    /// A run with nothing in it.
    pub fn empty(seed: u64) -> RunState {
        RunState {
            seed,
            data: Dataset::default(),
            streams: Streams::new(),
            sets: BTreeMap::from([(SetId::Main, ParameterSet::new())]),
            models: BTreeMap::new(),
            inputs: Vec::new(),
            layers: Vec::new(),
            own_layers: BTreeMap::new(),
            steps_done: 0,
            passes: 0,
            tags: BTreeMap::new(),
            new_tags: Vec::new(),
            adopt: None,
            mask_owners: BTreeMap::new(),
            effective_owners: BTreeMap::new(),
            streams_opened: 0,
            mask_changes: 0,
            rollouts: Rollouts::default(),
            at: (0, 0.0, 0),
            locked: None,
        }
    }

    /// Forgets the sets, models and streams of every plugin that does not stay.
    pub fn forget_plugins(&mut self, stays: impl Fn(&str) -> bool) {
        let kept = |id: &ModelId| match id {
            ModelId::Main => true,
            ModelId::Own { plugin, .. } => stays(plugin),
        };
        self.sets.retain(|id, _| id.owner().is_none_or(&stays));
        self.models.retain(|id, _| kept(id));
        self.own_layers.retain(|id, _| kept(id));
        let streams = Vec::from(std::mem::take(&mut self.streams));
        let streams = streams.into_iter().filter(|(id, _)| stays(&id.plugin));
        self.streams = streams.collect::<Vec<_>>().into();
    }
}

/// Most sets of one plugin, its models' included. They outlive their handles, so no other budget counts them.
const MOST_SETS: usize = 1024;

/// Most parameters in one plugin's sets, its models' and its own tags' included: each costs the host a few
/// hundred bytes beside its tensors.
const MOST_ENTRIES: usize = 1 << 16;

impl RunState {
    fn sets_of<'a>(&'a self, plugin: &'a str) -> impl Iterator<Item = &'a ParameterSet> {
        let own = self
            .sets
            .iter()
            .filter(|(id, _)| id.owner() == Some(plugin));
        own.map(|(_, set)| set)
    }

    /// Refuses a plugin's next set where it has too many.
    pub fn room_for_set(&self, what: &str, plugin: &str) -> wasmtime::Result<()> {
        match self.sets_of(plugin).count() < MOST_SETS {
            true => Ok(()),
            false => misuse(format!(
                "{what}: more than {MOST_SETS} parameter sets and models; use a name again"
            )),
        }
    }

    /// Refuses a plugin's next `more` parameters where it would have too many.
    pub fn room_for_entries(&self, what: &str, plugin: &str, more: usize) -> wasmtime::Result<()> {
        let kept: usize = self.sets_of(plugin).map(ParameterSet::entries_kept).sum();
        match kept.saturating_add(more) <= MOST_ENTRIES {
            true => Ok(()),
            false => misuse(format!(
                "{what}: more than {MOST_ENTRIES} parameters in the plugin's sets, models and tags together"
            )),
        }
    }
}

impl RunState {
    /// Refuses an architecture's next parameter where its model has too many.
    pub fn room_in_model(&self, what: &str, id: &SetId) -> wasmtime::Result<()> {
        match self.sets.get(id).map_or(0, ParameterSet::len) < MOST_ENTRIES {
            true => Ok(()),
            false => misuse(format!(
                "{what}: more than {MOST_ENTRIES} parameters in a model"
            )),
        }
    }
}

/// The tag under which a plugin's own sets go with a tag of the run's set.
pub fn inner_tag(tag: &str) -> String {
    format!("run:{tag}")
}

/// Whether the host made a set's tag to go with one of the run's set.
pub fn is_inner_tag(tag: &str) -> bool {
    tag.starts_with("run:")
}

/// Everything that plugins of one run share.
pub struct Shared {
    /// The run.
    pub run: RefCell<RunState>,
    /// The trainer, which other plugins may ask for its objective and predictions. None while it is called.
    pub trainer: RefCell<Option<Session>>,
    /// The architecture, which computes the run's model and its clones, where there is one.
    pub architecture: RefCell<Option<Session>>,
    /// The environment, asked for the trainer and for measurements.
    pub environment: RefCell<Option<Session>>,
    /// The normaliser, asked for the trainer.
    pub normalizer: RefCell<Option<Session>>,
    /// Transforms in their order, each with whether it changes training batches.
    pub transforms: RefCell<Vec<(Session, bool)>>,
    /// Said and reported by plugins in this call.
    pub events: RefCell<Vec<Event>>,
    /// The last plugin that died, and how.
    pub death: RefCell<Option<Death>>,
}

impl Shared {
    /// Around a run.
    pub fn new(run: RunState) -> Shared {
        Shared {
            run: RefCell::new(run),
            trainer: RefCell::new(None),
            architecture: RefCell::new(None),
            environment: RefCell::new(None),
            normalizer: RefCell::new(None),
            transforms: RefCell::default(),
            events: RefCell::default(),
            death: RefCell::default(),
        }
    }
}
