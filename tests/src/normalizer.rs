//! A normaliser by itself: the real component, asked about rollouts that a test chooses.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};

use espalier_runtime::component::{self, Loaded};
use espalier_runtime::events::Event;
use espalier_runtime::host::bindings::trainer::espalier::plugin::options::Value;
use espalier_runtime::host::bindings::trainer::espalier::plugin::run::RunInfo;
use espalier_runtime::host::session::Session;
use espalier_runtime::host::state::{RunState, Shared};
use espalier_runtime::options;
use espalier_runtime::plan::{Limits, OptionValue, Slot};
use espalier_runtime::registry::Registry;
use espalier_tensor::account::Account;

pub use espalier_runtime::host::bindings::trainer::espalier::plugin::rewards::{
    Advantage, Bounds, Drift, RewardSpec, Rollout,
};

use crate::workspace;

/// A loaded component with its options and what the environment pays.
pub struct Normalizer {
    name: String,
    loaded: Loaded,
    settings: Vec<(String, Value)>,
    spec: RewardSpec,
    shared: Rc<Shared>,
    session: Session,
}

impl Normalizer {
    /// A plugin of the project's registry, started with these options and the defaults of the others.
    ///
    /// # Panics
    /// If anything is refused.
    pub fn new(name: &str, given: &[(&str, OptionValue)], spec: &RewardSpec) -> Normalizer {
        let registry = workspace().join("registry.toml");
        Self::of(&registry, name, given, spec).unwrap_or_else(|refusal| panic!("{refusal}"))
    }

    /// The same from another registry; the error is the plugin's own refusal to start.
    ///
    /// # Panics
    /// If there is no such plugin or option.
    pub fn of(
        registry: &Path,
        name: &str,
        given: &[(&str, OptionValue)],
        spec: &RewardSpec,
    ) -> Result<Normalizer, String> {
        let loaded = loaded(registry, name);
        let about = component::describe(name, &loaded).unwrap_or_else(|error| panic!("{error}"));
        let given: BTreeMap<String, OptionValue> = given
            .iter()
            .map(|(name, value)| (name.to_string(), value.clone()))
            .collect();
        let settings = options::check(name, &about.options, &given, &BTreeMap::new())
            .unwrap_or_else(|error| panic!("{error}"))
            .iter()
            .map(|(name, value)| (name.clone(), component::wit_value(value)))
            .collect();
        Self::start(name.to_string(), loaded, settings, spec.clone())
    }

    /// Another instance of the same component with the same options, as at first.
    ///
    /// # Panics
    /// If it refuses what the first one took.
    pub fn fresh(&self) -> Normalizer {
        Self::start(
            self.name.clone(),
            self.loaded.clone(),
            self.settings.clone(),
            self.spec.clone(),
        )
        .unwrap_or_else(|refusal| panic!("{refusal}"))
    }

    fn start(
        name: String,
        loaded: Loaded,
        settings: Vec<(String, Value)>,
        spec: RewardSpec,
    ) -> Result<Normalizer, String> {
        let shared = Rc::new(Shared::new(RunState::empty(0)));
        let limits = Limits::default();
        let account = Account::new(Some(limits.tensors));
        let mut session = Session::new(&loaded, &name, limits, account, shared.clone())
            .unwrap_or_else(|death| panic!("{death:?}"));
        let info = RunInfo {
            seed: 0,
            stage: 0,
            steps: 100,
            steps_per_epoch: 10,
            batch_size: 8,
            rank: 0,
            world: 1,
        };
        session
            .start_normalizer(info, &settings, &spec)
            .unwrap_or_else(|death| panic!("{death:?}"))
            .map_err(|refusal| refusal.message)?;
        Ok(Normalizer {
            name,
            loaded,
            settings,
            spec,
            shared,
            session,
        })
    }

    /// Advantages, or the words of a refusal.
    ///
    /// # Panics
    /// If the plugin dies.
    pub fn normalize(&mut self, batch: &[Rollout]) -> Result<Vec<Advantage>, String> {
        let answer = self
            .session
            .normalize(batch)
            .unwrap_or_else(|death| panic!("{death:?}"));
        answer.map_err(|refusal| refusal.message)
    }

    /// The first number of each advantage.
    ///
    /// # Panics
    /// If the plugin refuses or dies.
    pub fn values(&mut self, batch: &[Rollout]) -> Vec<f64> {
        let advantages = self
            .normalize(batch)
            .unwrap_or_else(|refusal| panic!("{refusal}"));
        advantages.iter().map(|a| a.values[0]).collect()
    }

    /// Whether it hears of drift.
    pub fn tracks(&self) -> bool {
        self.session.tracks()
    }

    /// Tells it of drift.
    ///
    /// # Panics
    /// If it does not track or dies.
    pub fn observe(&mut self, drifts: &[Drift]) {
        self.session
            .observe(drifts)
            .unwrap_or_else(|death| panic!("{death:?}"));
    }

    /// How often it wants prompts.
    ///
    /// # Panics
    /// If it does not track or dies.
    pub fn prompt_weights(&mut self, prompts: &[u64]) -> Vec<f64> {
        self.session
            .prompt_weights(prompts)
            .unwrap_or_else(|death| panic!("{death:?}"))
    }

    /// What it remembers.
    ///
    /// # Panics
    /// If it dies.
    pub fn save(&mut self) -> Vec<u8> {
        self.session
            .save()
            .unwrap_or_else(|death| panic!("{death:?}"))
    }

    /// Gives saved bytes back; the error is its refusal.
    ///
    /// # Errors
    /// The words of the refusal.
    ///
    /// # Panics
    /// If it dies.
    pub fn restore(&mut self, state: &[u8]) -> Result<(), String> {
        let answer = self
            .session
            .restore(state)
            .unwrap_or_else(|death| panic!("{death:?}"));
        answer.map_err(|refusal| refusal.message)
    }

    /// The numbers that it reported since this was last asked, the newest of each name.
    pub fn metrics(&self) -> BTreeMap<String, f64> {
        let events = std::mem::take(&mut *self.shared.events.borrow_mut());
        let numbers = events.into_iter().filter_map(|event| match event {
            Event::PluginMetric { name, value, .. } => Some((name, value)),
            _ => None,
        });
        numbers.collect()
    }
}

/// Built and loaded once for each test program.
fn loaded(registry: &Path, name: &str) -> Loaded {
    static LOADED: Mutex<BTreeMap<(PathBuf, String), Loaded>> = Mutex::new(BTreeMap::new());
    let key = (registry.to_path_buf(), name.to_string());
    let mut all = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let load = || {
        let registry = Registry::load(registry).unwrap_or_else(|error| panic!("{error}"));
        let entry = registry
            .lookup(name, Slot::Normalizer)
            .unwrap_or_else(|error| panic!("{error}"));
        let resolved = registry
            .resolve(&[entry], &mut |_| {})
            .unwrap_or_else(|error| panic!("{error}"));
        component::load(name, &resolved[0].bytes).unwrap_or_else(|error| panic!("{error}"))
    };
    all.entry(key).or_insert_with(load).clone()
}

/// An outcome reward in a range, and no terms.
pub fn pays(min: f64, max: f64) -> RewardSpec {
    RewardSpec {
        outcome: Bounds {
            name: String::new(),
            min,
            max,
        },
        terms: Vec::new(),
    }
}

/// A readable response of eight tokens to the prompt with its group's number; right from a reward of 0.5 on.
pub fn rollout(group: u64, reward: f64) -> Rollout {
    Rollout {
        sample: 0,
        prompt: group,
        group,
        parent: None,
        task: String::new(),
        reward,
        terms: Vec::new(),
        correct: reward >= 0.5,
        well_formed: true,
        length: 8,
        tags: Vec::new(),
        segments: Vec::new(),
    }
}
