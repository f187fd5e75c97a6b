//! Carries out a plan: starts the plugins, drives the schedule, measures, checkpoints, resumes.
//!
//! ```text
//! start every plugin                         the environment (the model follows from it), the trainer,
//!                                            pruners in the run file's order, the normaliser
//! for each stage                             one, unless the run file lists several: see `stages`
//!   for each round
//!     for each step
//!         trainer.step                       pulls its own batches or rollouts, changes parameters
//!         normalizer.observe                 if it tracks the policy and was asked in this step
//!         pruner.on-event(step)              each pruner that asked for it, in order
//!         at the end of an epoch: evaluate, pruner.on-event(epoch), checkpoint
//!     pruner.on-event(round)                 `rewind` here begins another round
//!   pruner.on-event(stage)
//!   evaluate on the test split, auditor.audit
//! checkpoint, finish
//! ```
//!
//! Promises: one plan gives one result, to the last bit, whatever the number of threads, interrupted or not;
//! metrics come from the host; a plugin's death leaves the last checkpoint as it was.

mod architecture;
mod compose;
mod measure;
mod member;
mod search;
mod source;
mod stages;
mod transforms;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use espalier_tensor::account::Account;
use espalier_tensor::random::Key;
use espalier_tensor::{DType, Tensor, ops, threads};
use serde::{Deserialize, Serialize};

use crate::component::{self, Loaded};
use crate::diagnostic::Diagnostic;
use crate::events::{
    ComposedData, ComposedModel, ComposedPlugin, Composition, Ending, Event, Finished, Observer,
    PluginCounters,
};
use crate::folder::{Lock, LockedPlugin, RunFolder};
use crate::host::bindings::tasks::exports::espalier::plugin::tasks::Response;
use crate::host::bindings::trainer::espalier::plugin::control::{ActionSpace, MdpSpec};
use crate::host::bindings::trainer::espalier::plugin::model::PredictionKind;
use crate::host::bindings::trainer::espalier::plugin::options::Value;
use crate::host::bindings::trainer::espalier::plugin::rewards::{Drift, RewardSpec, TaskSpec};
use crate::host::bindings::trainer::espalier::plugin::run as wit;
use crate::host::guest::{bytes as bytes_text, shown};
use crate::host::rollouts::{EVALUATION, Environment, Rollouts, Sequence, Tracked, unfit_tasks};
use crate::host::session::{Called, Death, MOST_SAVED, Session};
use crate::host::state::{ModelId, RunState, RunTag, SetId, Shared, inner_tag};
use crate::lock::{self, LockFile};
use crate::model::generate::Request;
use crate::model::{FieldShape, Model};
use crate::parameters::{Kind, ParameterSet};
use crate::plan::{
    CheckpointPlan, DataPlan, DataSource, LayerPlan, Length, Loss, OnFailure, OptionValue, Plan,
    PluginPlan, Slot, StagePlan,
};
use crate::profile::{self, PluginMemory};
use crate::registry::Registry;
use crate::{checkpoint, data, metrics, options};

use self::compose::compose;
pub(crate) use self::member::Portrait;
use self::source::{Source, answers_in, with_vocabulary};

/// Where a run is kept and what it starts from.
#[derive(Clone, Debug)]
pub struct RunOptions {
    /// The folder of the run; a new one under `runs/` if none is given.
    pub out: Option<PathBuf>,
    /// The folder of a run to go on with.
    pub resume: Option<PathBuf>,
    /// The registry file.
    pub registry: PathBuf,
    /// Set from outside to end the run after the current step, with a checkpoint.
    pub cancel: Arc<AtomicBool>,
}

/// Most times one plugin is started again in a run.
const MAX_RESTARTS: u64 = 3;

/// What else decides which components a run takes.
#[derive(Clone, Debug, Default)]
pub struct Pins {
    /// A trust policy instead of the usual ones.
    pub trust: Option<PathBuf>,
    /// The lock file to prefer and to write.
    pub lock: Option<PathBuf>,
    /// True if nothing may differ from the lock.
    pub locked: bool,
}

/// Resolves, checks and carries out a plan, with the usual policy of trust and no lock file.
///
/// # Errors
/// As [`execute_pinned`].
pub fn execute(
    plan: &Plan,
    run: &RunOptions,
    observer: &mut (dyn Observer + Send),
) -> Result<Ending, Diagnostic> {
    execute_pinned(plan, run, &Pins::default(), observer)
}

/// Resolves, checks and carries out a plan.
///
/// # Errors
/// Anything wrong with registry, components, options, data or model before the first step; a plugin's death
/// whose policy is `fail`; a folder that can't be written.
pub fn execute_pinned(
    plan: &Plan,
    run: &RunOptions,
    pins: &Pins,
    observer: &mut (dyn Observer + Send),
) -> Result<Ending, Diagnostic> {
    let building = profile::part(profile::Part::Build);
    let mut registry = Registry::load_with(&run.registry, pins.trust.as_deref())?;
    let before = match &pins.lock {
        Some(file) => LockFile::load(file)?,
        None => None,
    };
    registry.prefer(before.as_ref().map(LockFile::versions).unwrap_or_default());
    let resolved = registry.resolve_plan(&plan.plugins, &mut |b| {
        observer.event(&Event::Building(b.clone()))
    })?;
    let now = match &pins.lock {
        Some(file) => Some(lock::compare(
            file,
            before.as_ref(),
            &resolved,
            pins.locked,
        )?),
        None => None,
    };
    drop(building);
    let loading = profile::part(profile::Part::Load);
    let mut parts = Vec::new();
    for (plugin, (entry, resolved)) in plan.plugins.iter().zip(resolved) {
        let loaded = component::load(&plugin.name, &resolved.bytes)?;
        parts.push(Part::new(plugin, &entry.version, loaded)?);
    }
    if let (Some(file), Some(now)) = (&pins.lock, now)
        && Some(&now) != before.as_ref()
        && let Err(error) = lock::write(file, &now)
    {
        // A folder of examples may belong to somebody else; the run is as good without.
        observer.event(&Event::Warning {
            text: error.what,
            help: Some("without it a later run may resolve to other versions".into()),
        });
    }
    if let Some(population) = &plan.population {
        drop(loading);
        return crate::population::execute(plan, population, run, parts, observer);
    }
    let pool = threads::Pool::new(plan.threads)
        .map_err(|error| Diagnostic::new("the threads could not be started").because(&error))?;
    drop(loading);
    let recorder = profile::take();
    pool.install(|| {
        profile::put(recorder);
        let shared = Rc::new(Shared::new(RunState::empty(plan.seed)));
        let ending = Runner::new(plan, run, parts, observer, shared).and_then(Runner::drive);
        drop(profile::take());
        ending
    })
}

/// Times a run that `execute` carries out on this thread: the run's last event but one is [`Event::Profile`]. The
/// trace is written to `trace`, or to `profile.json` in the run's folder.
///
/// # Errors
/// As `execute`, and a trace that can't be written.
pub fn profiled(
    trace: Option<&Path>,
    execute: impl FnOnce() -> Result<Ending, Diagnostic>,
) -> Result<Ending, Diagnostic> {
    profile::begin(trace.map(Path::to_path_buf));
    let ending = execute();
    drop(profile::take());
    ending
}

/// A plugin of the run before it is instantiated.
#[derive(Clone)]
pub(crate) struct Part {
    plan: PluginPlan,
    version: String,
    loaded: Loaded,
    settings: Vec<(String, OptionValue)>,
    events: Vec<String>,
    /// The options that may be changed during a run.
    live: Vec<options::OptionInfo>,
}

impl Part {
    pub(crate) fn new(
        plan: &PluginPlan,
        version: &str,
        loaded: Loaded,
    ) -> Result<Part, Diagnostic> {
        if loaded.slot != plan.slot {
            return Err(Diagnostic::new(format!(
                "`{}` is not {}",
                plan.name,
                plan.slot.with_article()
            ))
            .expected(format!("a component that fills the slot `{}`", plan.slot))
            .found(format!("one that fills the slot `{}`", loaded.slot))
            .help("the registry entry names the wrong slot, or the wrong component"));
        }
        let about = component::describe(&plan.name, &loaded)?;
        if about.version != version {
            return Err(Diagnostic::new(format!(
                "plugin `{}` is not the version that the registry names",
                plan.name
            ))
            .expected(format!("{version}, as the registry says"))
            .found(format!("{}, as the component says", about.version))
            .help("correct the registry entry, or bring that version of the component"));
        }
        let settings = options::check(
            &plan.name,
            &about.options,
            &plan.options,
            &plan.option_places,
        )?;
        Ok(Part {
            plan: plan.clone(),
            version: version.to_string(),
            loaded,
            settings,
            events: about.events,
            live: about.options.into_iter().filter(|o| o.live).collect(),
        })
    }

    fn wit_settings(&self) -> Vec<(String, Value)> {
        self.settings
            .iter()
            .map(|(name, value)| (name.clone(), component::wit_value(value)))
            .collect()
    }

    fn wants(&self, event: wit::EventKind) -> bool {
        let name = event_name(event);
        self.events.is_empty() || self.events.iter().any(|e| e == name)
    }
}

fn event_name(event: wit::EventKind) -> &'static str {
    match event {
        wit::EventKind::Step => "step",
        wit::EventKind::Epoch => "epoch",
        wit::EventKind::Round => "round",
        wit::EventKind::Stage => "stage",
    }
}

/// How far the run has come; part of every checkpoint.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Progress {
    /// Steps done, rewound ones included.
    pub(crate) steps_done: u64,
    /// Number of the stage.
    #[serde(default)]
    pub(crate) stage: usize,
    /// Splits that plugins had added when the stage began.
    #[serde(default)]
    splits: usize,
    /// Steps done in this round.
    round_step: u64,
    /// Rounds done.
    pub(crate) round: u32,
    /// True once the trainer or a pruner has ended the round.
    round_over: bool,
    /// True once the last round is over.
    stage_over: bool,
    /// Wall time so far, in seconds.
    seconds: f64,
    /// The newest metrics by full name.
    #[serde(with = "exact")]
    pub(crate) metrics: BTreeMap<String, f64>,
    /// The last metrics of each stage, by the stage's name and theirs.
    #[serde(with = "exact", default)]
    stage_metrics: BTreeMap<String, f64>,
    /// Length of `metrics.jsonl` when this was written: what comes after belongs to steps that are lost.
    metrics_bytes: u64,
}

/// Numbers as their bits: JSON has no word for NaN and the infinities, which a run that diverged measures.
mod exact {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(
        numbers: &BTreeMap<String, f64>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_map(numbers.iter().map(|(name, x)| (name, x.to_bits())))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<BTreeMap<String, f64>, D::Error> {
        let bits = BTreeMap::<String, u64>::deserialize(from)?;
        Ok(bits
            .into_iter()
            .map(|(name, x)| (name, f64::from_bits(x)))
            .collect())
    }
}

/// The part of a checkpoint that is not tensors.
#[derive(Clone, Serialize, Deserialize)]
struct Saved {
    progress: Progress,
    sets: Vec<(SetId, serde_json::Value)>,
    streams: data::Streams,
    tags: BTreeMap<String, RunTag>,
    mask_owners: BTreeMap<String, String>,
    #[serde(default)]
    effective_owners: BTreeMap<String, String>,
    /// Bytes of each plugin still in the run, by name.
    plugins: BTreeMap<String, Vec<u8>>,
    /// Plugins that a failure has taken out.
    skipped: Vec<String>,
    /// The layers of the run's model, which may be an adopted one.
    layers: Vec<crate::plan::LayerPlan>,
    /// Splits that plugins added: name and fields.
    splits: Vec<(String, Vec<String>)>,
    /// Instances that the trainer acts in.
    instances: u32,
    /// The last response to each prompt, for a normaliser that tracks the policy.
    tracked: BTreeMap<u64, Tracked>,
    /// How far a search has come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    search: Option<crate::search::Search>,
}

/// A pruner in the run. `None` once it was skipped.
pub(crate) struct Pruner {
    part: usize,
    pub(crate) session: Option<Session>,
}

/// A run at work. The conformance suite drives one step by step; everybody else calls [`execute`].
pub(crate) struct Runner<'a> {
    plan: &'a Plan,
    parts: Vec<Part>,
    pub(crate) shared: Rc<Shared>,
    pub(crate) pruners: Vec<Pruner>,
    folder: RunFolder,
    pub(crate) progress: Progress,
    /// All stages; at least one.
    stages: Vec<StagePlan>,
    /// The stage whose split, length and freezing hold now.
    entered: usize,
    /// The stage that the trainer at work belongs to.
    trainer_stage: usize,
    /// Auditors of this stage.
    auditors: Vec<Pruner>,
    /// The searcher of this stage.
    pub(crate) searcher: Option<Session>,
    /// Costs of instances that have ended with their stage, and whether they did anything.
    ended: Vec<(PluginCounters, bool)>,
    steps_per_epoch: u64,
    steps_per_round: u64,
    started: Instant,
    seconds_before: f64,
    cancel: Arc<AtomicBool>,
    observer: &'a mut (dyn Observer + Send),
    /// Each plugin's bytes at the last checkpoint, for the policy `restart`.
    last_saved: BTreeMap<String, Vec<u8>>,
    /// Counters of instances that are gone, by plugin.
    restarts: BTreeMap<String, u64>,
    density: (u64, u64),
    mask_changes: u64,
    /// A second instance of a world to act in: measurements do not disturb the trainer's episodes.
    evaluation: Option<Session>,
    /// What a tuner has set: a plugin that is started again gets it too.
    knobs: BTreeMap<String, OptionValue>,
}

/// What the run resolved to.
pub(crate) fn lock_of(plan: &Plan, parts: &[Part]) -> Lock {
    Lock {
        plan: plan.clone(),
        interface: component::INTERFACE.into(),
        plugins: parts
            .iter()
            .map(|p| LockedPlugin {
                name: p.plan.name.clone(),
                slot: p.plan.slot,
                version: p.version.clone(),
                sha256: p.loaded.sha256.clone(),
                options: p.settings.iter().cloned().collect(),
            })
            .collect(),
    }
}

fn run_info(plan: &Plan) -> wit::RunInfo {
    wit::RunInfo {
        seed: plan.seed,
        stage: 0,
        steps: 0,
        steps_per_epoch: 0,
        batch_size: plan.schedule.batch_size,
        rank: 0,
        world: 1,
    }
}

/// A new instance of a part, started; a normaliser is told what the environment pays.
fn new_session(
    part: &Part,
    shared: &Rc<Shared>,
    info: wit::RunInfo,
    rewards: Option<&RewardSpec>,
    whereabouts: &str,
) -> Result<Session, Diagnostic> {
    let name = &part.plan.name;
    let account = Account::new(Some(part.plan.limits.tensors));
    let at = |death: Death| death.diagnostic(whereabouts);
    let mut session = Session::new(
        &part.loaded,
        name,
        part.plan.limits.clone(),
        account,
        shared.clone(),
    )
    .map_err(at)?;
    let started = match rewards {
        Some(rewards) => session.start_normalizer(info, &part.wit_settings(), rewards),
        None => session.start(info, &part.wit_settings()),
    };
    started
        .map_err(at)?
        .map_err(|refusal| refused(name, refusal, "start"))?;
    Ok(session)
}

impl<'a> Runner<'a> {
    /// Checks data and model and starts every plugin. `shared` holds nothing yet.
    pub(crate) fn new(
        plan: &'a Plan,
        run: &RunOptions,
        parts: Vec<Part>,
        observer: &'a mut (dyn Observer + Send),
        shared: Rc<Shared>,
    ) -> Result<Runner<'a>, Diagnostic> {
        let loading = profile::part(profile::Part::Data);
        let source = match &plan.data {
            Some(from) => Source::of_data(plan, from, &parts, &shared)?,
            None => {
                let part = parts
                    .iter()
                    .find(|part| part.plan.slot == Slot::Environment)
                    .ok_or_else(|| {
                        Diagnostic::new("the run has neither data nor an environment")
                            .help("add [data] or [environment] to the run file")
                    })?;
                Source::of_environment(plan, part, &shared)?
            }
        };
        drop(loading);
        let _preparing = profile::part(profile::Part::Prepare);
        let steps_per_epoch = source.steps_per_epoch;
        let steps_per_round = match plan.schedule.length {
            Length::Epochs(n) => n.saturating_mul(steps_per_epoch),
            Length::Steps(n) => n,
        };

        // The folder of a run to go on with is opened, and its checkpoint read, before anything is started.
        let lock = lock_of(plan, &parts);
        let (opened, restored) = match &run.resume {
            Some(dir) => {
                let mut folder = RunFolder::open(dir, &lock)?;
                let found = checkpoint::newest(&folder.checkpoints())
                    .map_err(|error| edge("no checkpoint could be read", &error))?;
                if found.is_none() {
                    // Stopped before its first checkpoint: every step is done again.
                    folder.truncate_metrics(0)?;
                }
                (Some(folder), found)
            }
            None => (None, None),
        };

        let origin = match (&plan.from, &restored) {
            (Some(from), None) => Some(source::Origin::load(from)?),
            _ => None,
        };
        let layers = match (&restored, &origin) {
            (Some(found), _) => saved(&found.meta)?.layers,
            (None, Some(origin)) if plan.model.is_empty() => origin.layers.clone(),
            _ => with_vocabulary(&plan.model, &source.environment),
        };
        let architecture = parts
            .iter()
            .find(|part| part.plan.slot == Slot::Architecture);
        let built = match architecture {
            Some(part) => {
                let info = wit::RunInfo {
                    steps: steps_per_round,
                    steps_per_epoch,
                    ..run_info(plan)
                };
                Some(architecture::build(part, &shared, info, &source)?)
            }
            None => None,
        };
        // A run without layers has an architecture, unless it has adopted a model of built-in ones since.
        let (model, mut main, architecture) = match built {
            Some(built) if layers.is_empty() => {
                (built.model, built.parameters, Some(built.session))
            }
            built => {
                let mut main = ParameterSet::new();
                let model = Model::build(&layers, &source.inputs, &[plan.seed], &mut main)
                    .map_err(|error| edge("the model could not be built", &error))?;
                (model, main, built.map(|built| built.session))
            }
        };
        if let Some(origin) = origin {
            main = origin.parameters(&main)?;
        }
        if let Environment::Tasks { spec, .. } = &source.environment {
            answers_in(&model, spec)?;
        }
        let composition = compose(plan, &parts, &source, &model, &main, steps_per_round);
        // A new run has a folder only once nothing is wrong with its data and model.
        let folder = match opened {
            Some(folder) => folder,
            None => RunFolder::create(run.out.as_deref(), &plan.name, &lock)?,
        };

        *shared.run.borrow_mut() = RunState {
            data: source.dataset,
            sets: BTreeMap::from([(SetId::Main, main)]),
            models: BTreeMap::from([(ModelId::Main, model)]),
            inputs: source.inputs,
            layers,
            rollouts: Rollouts::of(source.environment),
            ..RunState::empty(plan.seed)
        };
        *shared.architecture.borrow_mut() = architecture;
        *shared.environment.borrow_mut() = source.session;
        let mut runner = Runner {
            plan,
            parts,
            shared,
            pruners: Vec::new(),
            folder,
            progress: Progress::default(),
            stages: plan.whole(),
            entered: 0,
            trainer_stage: 0,
            auditors: Vec::new(),
            searcher: None,
            ended: Vec::new(),
            steps_per_epoch,
            steps_per_round,
            started: Instant::now(),
            seconds_before: 0.0,
            cancel: run.cancel.clone(),
            observer,
            last_saved: BTreeMap::new(),
            restarts: BTreeMap::new(),
            density: (0, 0),
            mask_changes: 0,
            evaluation: None,
            knobs: BTreeMap::new(),
        };
        match runner.start(restored, composition) {
            Ok(()) => Ok(runner),
            Err(error) => {
                runner.release();
                if run.resume.is_none() {
                    runner.folder.discard();
                }
                Err(error)
            }
        }
    }

    /// The stores of these hold the shared state, which holds them: breaks the circles.
    pub(crate) fn release(&mut self) {
        self.shared.trainer.borrow_mut().take();
        self.shared.architecture.borrow_mut().take();
        self.shared.transforms.borrow_mut().clear();
        self.shared.environment.borrow_mut().take();
        self.shared.normalizer.borrow_mut().take();
    }

    /// Puts a checkpoint over whatever the plugins did in `start`; gives the plugins left out.
    fn restore(&mut self, found: checkpoint::Checkpoint) -> Result<(), Diagnostic> {
        for text in &found.skipped {
            self.tell(Event::Warning {
                text: text.clone(),
                help: None,
            })?;
        }
        let saved = saved(&found.meta)?;
        self.restore_run(&found, &saved)?;
        self.folder.truncate_metrics(saved.progress.metrics_bytes)?;
        self.seconds_before = saved.progress.seconds;
        self.progress = saved.progress;
        self.last_saved = saved.plugins;
        for pruner in &mut self.pruners {
            if saved.skipped.contains(&self.parts[pruner.part].plan.name) {
                pruner.session = None;
            }
        }
        let mut trainer = self.shared.trainer.borrow_mut().take();
        let mut environment = self.shared.environment.borrow_mut().take();
        let mut normalizer = self.shared.normalizer.borrow_mut().take();
        let sessions = trainer
            .iter_mut()
            .chain(self.pruners.iter_mut().filter_map(|p| p.session.as_mut()))
            .chain(self.searcher.iter_mut())
            .chain(environment.iter_mut())
            .chain(normalizer.iter_mut());
        for session in sessions {
            let name = session.guest().name.clone();
            if let Some(bytes) = self.last_saved.get(&name) {
                let restored = session.restore(bytes);
                let restored =
                    restored.map_err(|death| death.diagnostic("before the first step"))?;
                restored
                    .map_err(|refusal| refused(&name, refusal, "go on from its saved state"))?;
            }
        }
        *self.shared.trainer.borrow_mut() = trainer;
        *self.shared.environment.borrow_mut() = environment;
        *self.shared.normalizer.borrow_mut() = normalizer;
        Ok(())
    }

    fn restore_run(
        &mut self,
        found: &checkpoint::Checkpoint,
        saved: &Saved,
    ) -> Result<(), Diagnostic> {
        let run = &mut *self.shared.run.borrow_mut();
        stages::import_sets(run, found, saved, |_| true)?;
        stages::import_splits(run, found, &saved.splits)?;
        run.streams = saved.streams.clone();
        run.tags = saved.tags.clone();
        run.mask_owners = saved.mask_owners.clone();
        run.effective_owners = saved.effective_owners.clone();
        run.steps_done = saved.progress.steps_done;
        run.rollouts.instances = saved.instances;
        run.rollouts.tracked = saved.tracked.clone();
        run.rollouts.search = saved.search.clone();
        Ok(())
    }

    pub(crate) fn info(&self) -> wit::RunInfo {
        wit::RunInfo {
            stage: self.entered as u32,
            steps: self.steps_per_round,
            steps_per_epoch: self.steps_per_epoch,
            batch_size: self.stages[self.entered].schedule.batch_size,
            ..run_info(self.plan)
        }
    }

    pub(crate) fn at(&self) -> wit::StepInfo {
        wit::StepInfo {
            step: self.progress.round_step,
            epoch: self.progress.round_step as f64 / self.steps_per_epoch as f64,
            round: self.progress.round,
        }
    }

    fn whereabouts(&self) -> String {
        let (step, run) = (self.progress.steps_done, &self.plan.name);
        match self.plan.stages.is_empty() {
            true => format!("step {step} of run `{run}`"),
            false => format!("step {step} of run `{run}`, stage `{}`", self.stage().name),
        }
    }

    /// A new instance of a part, started.
    fn instantiate(&self, part: usize) -> Result<Session, Diagnostic> {
        let rewards = match &self.shared.run.borrow().rollouts.environment {
            Environment::Tasks { spec, .. } => Some(spec.rewards.clone()),
            _ => None,
        };
        let part = &self.parts[part];
        let rewards = rewards.filter(|_| part.plan.slot == Slot::Normalizer);
        if part.plan.slot == Slot::Normalizer && rewards.is_none() {
            return Err(Diagnostic::new(format!(
                "normaliser `{}` has nothing to normalise: the environment is a world to act in",
                part.plan.name
            ))
            .help("remove [normalizer]: the trainer works out advantages from the rewards of each step"));
        }
        let at = self.whereabouts();
        let _starting = profile::part(profile::Part::Start);
        new_session(part, &self.shared, self.info(), rewards.as_ref(), &at)
    }

    fn start(
        &mut self,
        checkpoint: Option<checkpoint::Checkpoint>,
        composition: Composition,
    ) -> Result<(), Diagnostic> {
        if let Some(found) = &checkpoint {
            let saved = saved(&found.meta)?;
            self.resume_stage(found, &saved)?;
        }
        self.start_stage()?;
        for part in 0..self.parts.len() {
            // The architecture and the environment were started before the model was built, which comes from them; a
            // world to act in has a second instance.
            match self.parts[part].plan.slot {
                Slot::Environment if self.parts[part].loaded.world == component::World::Mdp => {
                    self.evaluation = Some(self.instantiate(part)?);
                }
                Slot::Normalizer => {
                    let session = self.instantiate(part)?;
                    *self.shared.normalizer.borrow_mut() = Some(session);
                }
                _ => {}
            }
        }
        if let Some(checkpoint) = checkpoint {
            self.restore(checkpoint)?;
        }
        self.observer.event(&Event::Composition(composition));
        self.drain()?;
        self.density = self.count_density()?;
        let run = self.folder.path().to_path_buf();
        self.tell(Event::Started {
            run,
            step: self.progress.steps_done,
            of: self.of(),
        })?;
        self.tell_stage()
    }

    /// Steps in sight; none where a search has no budget of steps.
    fn of(&self) -> Option<u64> {
        let here = self.stages.iter().skip(self.progress.stage);
        let mut searches = here.filter_map(|stage| stage.search.as_ref());
        match searches.any(|search| search.max_steps.is_none()) {
            true => None,
            false => Some(self.steps_in_sight()),
        }
    }

    fn steps_in_sight(&self) -> u64 {
        let left = self
            .steps_per_round
            .saturating_sub(self.progress.round_step);
        self.progress.steps_done + left + self.steps_to_come()
    }

    fn tell(&mut self, event: Event) -> Result<(), Diagnostic> {
        let _reporting = profile::part(profile::Part::Reports);
        self.folder.record(&event)?;
        self.observer.event(&event);
        Ok(())
    }

    /// Passes on what plugins said in the last call.
    fn drain(&mut self) -> Result<(), Diagnostic> {
        let said = std::mem::take(&mut *self.shared.events.borrow_mut());
        said.into_iter().try_for_each(|event| self.tell(event))
    }

    /// Calls the trainer; a death is handled by its policy and then tried once more, or ends the run.
    fn trainer<T>(&mut self, call: impl Fn(&mut Session) -> Called<T>) -> Result<T, Diagnostic> {
        loop {
            let result = match self.shared.trainer.borrow_mut().as_mut() {
                Some(session) => call(session),
                None => {
                    return Err(Diagnostic::new("the run has no trainer")
                        .help("add a [trainer] to the run file"));
                }
            };
            self.drain()?;
            match result {
                Ok(value) => return Ok(value),
                Err(death) => {
                    let session = self.revive(self.trainer_part().unwrap_or(0), &death)?;
                    *self.shared.trainer.borrow_mut() = session;
                }
            }
        }
    }

    /// What follows a death: `Err` to end the run, a new session, or none to go on without the plugin.
    fn revive(&mut self, part: usize, death: &Death) -> Result<Option<Session>, Diagnostic> {
        let plan = &self.parts[part].plan;
        let name = plan.name.clone();
        let error = death.diagnostic(&self.whereabouts());
        // A plugin can die of another one's death; then that one's policy is not asked.
        if death.plugin != name {
            return Err(error);
        }
        match plan.on_failure {
            OnFailure::Fail => Err(error),
            OnFailure::Skip if plan.slot != Slot::Trainer => {
                let text = format!(
                    "plugin `{name}` failed in `{}` and is left out: {}",
                    death.call, death.what
                );
                self.tell(Event::Warning {
                    text,
                    help: death.help.clone(),
                })?;
                Ok(None)
            }
            OnFailure::Skip => {
                Err(error
                    .help("a run can't go on without its trainer: use on-failure = \"restart\""))
            }
            OnFailure::Restart => {
                let count = self.restarts.entry(name.clone()).or_default();
                *count += 1;
                if *count > MAX_RESTARTS {
                    return Err(error.detail("restarts", MAX_RESTARTS.to_string()));
                }
                let text = format!(
                    "plugin `{name}` failed in `{}` and is started again: {}",
                    death.call, death.what
                );
                self.tell(Event::Warning {
                    text,
                    help: death.help.clone(),
                })?;
                self.restart(part).map(Some)
            }
        }
    }

    /// A new instance with the state of the last save. `start` is called as at first; what it does to the run
    /// is undone.
    fn restart(&mut self, part: usize) -> Result<Session, Diagnostic> {
        let before = {
            let run = self.shared.run.borrow();
            (
                run.sets.clone(),
                run.streams.clone(),
                run.tags.clone(),
                run.mask_owners.clone(),
                run.effective_owners.clone(),
                run.data.splits.clone(),
            )
        };
        if self.parts[part].plan.slot == Slot::Trainer {
            // Only a trainer adds splits; it may add them in `start` again.
            let data = &mut self.shared.run.borrow_mut().data;
            let mut earlier = self.progress.splits;
            data.splits.retain(|split| {
                let of_earlier = split.added && earlier > 0;
                earlier -= usize::from(of_earlier);
                !split.added || of_earlier
            });
        }
        let mut session = self.instantiate(part)?;
        {
            let run = &mut *self.shared.run.borrow_mut();
            (
                run.sets,
                run.streams,
                run.tags,
                run.mask_owners,
                run.effective_owners,
                run.data.splits,
            ) = before;
            run.new_tags.clear();
        }
        let name = &self.parts[part].plan.name;
        if let Some(bytes) = self.last_saved.get(name) {
            let restored = session
                .restore(bytes)
                .map_err(|death| death.diagnostic(&self.whereabouts()))?;
            restored.map_err(|refusal| refused(name, refusal, "go on from its saved state"))?;
        }
        if self.parts[part].plan.slot == Slot::Trainer {
            self.hand_knobs_to(&mut session)?;
        }
        Ok(session)
    }

    fn drive(mut self) -> Result<Ending, Diagnostic> {
        let ending = self.rounds();
        self.release();
        ending
    }

    fn rounds(&mut self) -> Result<Ending, Diagnostic> {
        loop {
            if let Some(ending) = self.advance()? {
                return Ok(ending);
            }
        }
    }

    /// One step, or what follows the last step of a round or of the stage; the ending once all is done.
    pub(crate) fn advance(&mut self) -> Result<Option<Ending>, Diagnostic> {
        if self.progress.stage_over {
            self.event(wit::EventKind::Stage)?;
            return match self.end_stage()? {
                true => self.finish().map(Some),
                false => Ok(None),
            };
        }
        if self.progress.round_over || self.progress.round_step >= self.steps_per_round {
            match self.event(wit::EventKind::Round)? {
                Some(wit::Directive::Rewind(_)) => {}
                _ => self.progress.stage_over = true,
            }
            return Ok(None);
        }
        if self.cancel.load(Ordering::Relaxed) {
            self.checkpoint()?;
            self.tell_profile()?;
            let run = self.folder.path().to_path_buf();
            let step = self.progress.steps_done;
            self.tell(Event::Interrupted {
                run: run.clone(),
                step,
            })?;
            return Ok(Some(Ending::Interrupted { run, step }));
        }
        self.step()?;
        Ok(None)
    }

    fn step(&mut self) -> Result<(), Diagnostic> {
        if self.searcher.is_some() {
            return self.search_step();
        }
        let began = Instant::now();
        let at = self.at();
        {
            let run = &mut *self.shared.run.borrow_mut();
            run.passes = 0;
            run.at = (at.step, at.epoch, at.round);
            run.rollouts.begin_step();
        }
        profile::step(self.progress.steps_done, self.steps_per_epoch);
        let stepping = profile::part(profile::Part::Steps);
        let report = self.trainer(|session| session.step(at))?;
        drop(stepping);
        self.complete_tags()?;
        self.observe()?;
        self.adopt()?;
        self.progress.steps_done += 1;
        self.progress.round_step += 1;
        self.shared.run.borrow_mut().steps_done = self.progress.steps_done;
        let epoch = (self.progress.round_step - 1) / self.steps_per_epoch;
        self.tell(Event::Step {
            step: self.progress.steps_done,
            of: self.of(),
            epoch,
            round: self.progress.round.into(),
            loss: Some(report.loss),
            samples: report.samples.into(),
            seconds: began.elapsed().as_secs_f64(),
        })?;
        if report.done {
            self.progress.round_over = true;
        }
        let mut rewound = matches!(
            self.event(wit::EventKind::Step)?,
            Some(wit::Directive::Rewind(_))
        );
        let over = self.progress.round_over || self.progress.round_step >= self.steps_per_round;
        let epoch_ends = self
            .progress
            .round_step
            .is_multiple_of(self.steps_per_epoch);
        if !rewound && (epoch_ends || over) {
            let epochs = self.progress.round_step.div_ceil(self.steps_per_epoch);
            let every = self.stage().schedule.evaluate_every.max(1);
            if over || epochs.is_multiple_of(u64::from(every)) {
                self.evaluate_progress(epochs)?;
            }
            rewound = matches!(
                self.event(wit::EventKind::Epoch)?,
                Some(wit::Directive::Rewind(_))
            );
        }
        let every = self.plan.checkpoint.every;
        let due = match every {
            0 => epoch_ends || over,
            n => self.progress.steps_done.is_multiple_of(n),
        };
        let asked = every == CheckpointPlan::ASKED;
        if (due || rewound) && !asked {
            self.checkpoint()?;
        }
        Ok(())
    }

    /// Sends an event to every pruner that wants it and does what they answer: `stop` before `rewind`.
    pub(crate) fn event(
        &mut self,
        kind: wit::EventKind,
    ) -> Result<Option<wit::Directive>, Diagnostic> {
        let _events = profile::part(profile::Part::Events);
        let mut metrics: Vec<wit::Metric> = Vec::new();
        for (name, &value) in &self.progress.metrics {
            metrics.push(wit::Metric {
                name: name.clone(),
                value,
                measured: true,
            });
        }
        let event = wit::Event {
            kind,
            at: self.at(),
            metrics,
        };
        let mut answer: Option<(usize, wit::Directive)> = None;
        for i in 0..self.pruners.len() {
            let part = self.pruners[i].part;
            if !self.parts[part].wants(kind) {
                continue;
            }
            let Some(session) = self.pruners[i].session.as_mut() else {
                continue;
            };
            let result = session.on_event(&event);
            self.drain()?;
            let directive = match result {
                Ok(directive) => directive,
                Err(death) => {
                    self.pruners[i].session = self.revive(part, &death)?;
                    wit::Directive::Continue
                }
            };
            self.complete_tags()?;
            if !matches!(directive, wit::Directive::Continue)
                && let Some(session) = self.pruners[i].session.as_mut()
            {
                session.guest_mut().counters.acted = true;
            }
            let stronger = match (&answer, &directive) {
                (_, wit::Directive::Continue) => false,
                (None, _) | (Some((_, wit::Directive::Rewind(_))), wit::Directive::Stop) => true,
                _ => false,
            };
            if stronger {
                answer = Some((part, directive));
            }
            self.note_density(part)?;
        }
        match &answer {
            Some((_, wit::Directive::Stop)) => {
                self.progress.round_over = true;
                self.progress.stage_over = true;
            }
            Some((part, wit::Directive::Rewind(tag))) if kind != wit::EventKind::Stage => {
                let (part, tag) = (*part, tag.clone());
                self.rewind(part, &tag)?;
            }
            _ => {}
        }
        Ok(answer.map(|(_, directive)| directive))
    }

    fn note_density(&mut self, part: usize) -> Result<(), Diagnostic> {
        let changes = self.shared.run.borrow().mask_changes;
        if std::mem::replace(&mut self.mask_changes, changes) == changes {
            return Ok(());
        }
        let density = self.count_density()?;
        if density == self.density {
            return Ok(());
        }
        self.density = density;
        let (alive, total) = density;
        let plugin = self.parts[part].plan.name.clone();
        let sparsity = sparsity(density);
        self.tell(Event::Pruned {
            plugin,
            step: self.progress.steps_done,
            sparsity,
            alive,
            total,
        })
    }

    fn count_density(&self) -> Result<(u64, u64), Diagnostic> {
        let run = self.shared.run.borrow();
        let main = run.sets.get(&SetId::Main).map(ParameterSet::density);
        main.transpose()
            .map(Option::unwrap_or_default)
            .map_err(|error| edge("the weights could not be counted", &error))
    }

    /// Another round from a tag. Masks stay as they are now.
    fn rewind(&mut self, part: usize, tag: &str) -> Result<(), Diagnostic> {
        let plugin = self.parts[part].plan.name.clone();
        let trainer = self.trainer_name();
        let unknown = || {
            Diagnostic::new(format!(
                "plugin `{plugin}` rewinds to the tag `{tag}`, which does not exist"
            ))
            .at(self.whereabouts())
            .help("the plugin has to call parameters.snapshot on the run's set with that tag first")
        };
        let saved = {
            let run = &mut *self.shared.run.borrow_mut();
            let saved = run.tags.get(tag).cloned().ok_or_else(unknown)?;
            let main = run.sets.get_mut(&SetId::Main).ok_or_else(unknown)?;
            main.restore_keeping_masks(tag)
                .map_err(|error| edge("the run could not be rewound", &error))?;
            let inner = inner_tag(tag);
            for (id, set) in &mut run.sets {
                if id.owner() == Some(trainer.as_str()) && set.has_tag(&inner) {
                    set.rollback(&inner)
                        .map_err(|error| edge("the run could not be rewound", &error))?;
                }
            }
            run.streams = rewound(&trainer, &run.streams, &saved.streams);
            saved
        };
        self.progress.round_step = saved.round_step;
        self.progress.round += 1;
        self.progress.round_over = false;
        self.progress.stage_over = false;
        let refused = self.trainer(|session| session.restore(&saved.trainer))?;
        if let Err(refusal) = refused {
            return Err(Diagnostic::new(format!(
                "plugin `{trainer}` refuses to go back to `{tag}`"
            ))
            .detail("because", shown(&refusal.message)));
        }
        // The bytes of the tag hold the knobs of that time, which may be another member's.
        self.set_knobs_again()?;
        let (step, round) = (self.progress.steps_done, self.progress.round.into());
        self.tell(Event::Rewound {
            plugin,
            tag: tag.to_string(),
            step,
            round,
        })
    }

    /// Adds to new tags of the run's set what the host remembers with them.
    fn complete_tags(&mut self) -> Result<(), Diagnostic> {
        let new = std::mem::take(&mut self.shared.run.borrow_mut().new_tags);
        if new.is_empty() {
            return Ok(());
        }
        let bytes = self.trainer(|session| session.save())?;
        let trainer = self.trainer_name();
        let run = &mut *self.shared.run.borrow_mut();
        for tag in new {
            for (id, set) in &mut run.sets {
                if id.owner() == Some(trainer.as_str()) {
                    set.snapshot(&inner_tag(&tag));
                }
            }
            let streams = run.streams.positions_alone();
            run.tags.insert(
                tag,
                RunTag {
                    round_step: self.progress.round_step,
                    streams,
                    trainer: bytes.clone(),
                },
            );
        }
        let kept: usize = run.tags.values().map(|tag| tag.trainer.len()).sum();
        if kept > MOST_SAVED {
            return Err(Diagnostic::new(format!(
                "the states that plugin `{trainer}` saved with tags are too large together"
            ))
            .expected(format!("at most {}", bytes_text(MOST_SAVED as u64)))
            .found(format!(
                "{} with {} tags",
                bytes_text(kept as u64),
                run.tags.len()
            ))
            .help("keep tensors in a parameter set, or use a tag again"));
        }
        Ok(())
    }

    /// Makes an adopted model the run's.
    fn adopt(&mut self) -> Result<(), Diagnostic> {
        let mut guard = self.shared.run.borrow_mut();
        let run = &mut *guard;
        let Some(id) = run.adopt.take() else {
            return Ok(());
        };
        if let (Some(model), Some(set)) = (run.models.get(&id).cloned(), run.sets.get(&id.set())) {
            let set = set.duplicate();
            run.layers = run.own_layers.get(&id).cloned().unwrap_or_default();
            run.models.insert(ModelId::Main, model);
            run.sets.insert(SetId::Main, set);
            // Tags and mask owners speak of parameters that are gone.
            run.tags.clear();
            run.mask_owners.clear();
            run.effective_owners.clear();
        }
        drop(guard);
        self.set_knobs_again()
    }

    /// Every plugin's bytes, all tensors and numbers.
    fn collect(&mut self) -> Result<(Vec<(String, Tensor)>, Saved), Diagnostic> {
        let mut plugins = BTreeMap::new();
        let mut skipped = Vec::new();
        if self.trainer_part().is_some() {
            let bytes = self.trainer(|session| session.save())?;
            plugins.insert(self.trainer_name(), bytes);
        }
        for i in 0..self.pruners.len() {
            let part = self.pruners[i].part;
            let name = self.parts[part].plan.name.clone();
            let Some(session) = self.pruners[i].session.as_mut() else {
                skipped.push(name);
                continue;
            };
            match session.save() {
                Ok(bytes) => {
                    plugins.insert(name, bytes);
                }
                Err(death) => self.pruners[i].session = self.revive(part, &death)?,
            }
            self.drain()?;
        }
        if let Some(session) = self.searcher.as_mut() {
            let saved = session.save();
            let name = session.guest().name.clone();
            let bytes = saved.map_err(|death| death.diagnostic(&self.whereabouts()))?;
            plugins.insert(name, bytes);
        }
        for slot in [&self.shared.environment, &self.shared.normalizer] {
            let mut session = slot.borrow_mut();
            let Some(session) = session.as_mut() else {
                continue;
            };
            let bytes = session
                .save()
                .map_err(|death| death.diagnostic(&self.whereabouts()))?;
            plugins.insert(session.guest().name.clone(), bytes);
        }
        self.drain()?;
        self.progress.seconds = self.seconds_before + self.started.elapsed().as_secs_f64();
        self.progress.metrics_bytes = self.folder.sync_metrics()?;
        let (tensors, saved) = {
            let run = self.shared.run.borrow();
            let mut tensors: Vec<(String, Tensor)> = Vec::new();
            let mut sets = Vec::new();
            for (number, (id, set)) in run.sets.iter().enumerate() {
                let (more, meta) = set.export(&format!("set{number}"));
                tensors.extend(more);
                sets.push((id.clone(), meta));
            }
            let mut splits = Vec::new();
            for split in run.data.splits.iter().filter(|split| split.added) {
                for (field, t) in &split.fields {
                    tensors.push((format!("split/{}/{field}", split.name), t.clone()));
                }
                splits.push((
                    split.name.clone(),
                    split
                        .fields
                        .iter()
                        .map(|(field, _)| field.clone())
                        .collect(),
                ));
            }
            let saved = Saved {
                progress: self.progress.clone(),
                sets,
                streams: run.streams.clone(),
                tags: run.tags.clone(),
                mask_owners: run.mask_owners.clone(),
                effective_owners: run.effective_owners.clone(),
                plugins: plugins.clone(),
                skipped,
                layers: run.layers.clone(),
                splits,
                instances: run.rollouts.instances,
                tracked: run.rollouts.tracked.clone(),
                search: run.rollouts.search.clone(),
            };
            (tensors, saved)
        };
        self.last_saved = plugins;
        Ok((tensors, saved))
    }

    /// The whole run in one file.
    pub(crate) fn checkpoint(&mut self) -> Result<(), Diagnostic> {
        let _writing = profile::part(profile::Part::Checkpoints);
        let (tensors, saved) = self.collect()?;
        let meta = serde_json::to_string(&saved).map_err(|error| {
            Diagnostic::new("the run's state could not be written as JSON").because(&error)
        })?;
        let named: Vec<(String, &Tensor)> =
            tensors.iter().map(|(name, t)| (name.clone(), t)).collect();
        let write = || -> checkpoint::Result<PathBuf> {
            let path = checkpoint::write(
                &self.folder.checkpoints(),
                self.progress.steps_done,
                &named,
                &meta,
            )?;
            checkpoint::keep_newest(&self.folder.checkpoints(), self.plan.checkpoint.keep)?;
            Ok(path)
        };
        let path = write().map_err(|error| edge("the checkpoint could not be written", &error))?;
        self.tell(Event::Checkpoint {
            step: self.progress.steps_done,
            path,
        })
    }

    fn finish(&mut self) -> Result<Ending, Diagnostic> {
        self.density = self.count_density()?;
        self.progress
            .metrics
            .insert("sparsity".into(), sparsity(self.density));
        self.checkpoint()?;
        for plugin in self.idle_plugins() {
            let text = format!("plugin `{plugin}` changed nothing in the whole run");
            let help =
                Some("check its options: the schedule may end before it begins to act".to_string());
            self.tell(Event::Warning { text, help })?;
        }
        let plugins = self.counters();
        self.tell(Event::Counters { plugins })?;
        self.tell_profile()?;
        let finished = Finished {
            run: self.folder.path().to_path_buf(),
            seconds: self.progress.seconds,
            steps: self.progress.steps_done,
            metrics: {
                let named = self.progress.stage_metrics.clone().into_iter();
                named.chain(self.progress.metrics.clone()).collect()
            },
        };
        self.tell(Event::Finished(finished.clone()))?;
        Ok(Ending::Finished(finished))
    }

    /// Ends the profile of a run that is profiled.
    fn tell_profile(&mut self) -> Result<(), Diagnostic> {
        let memory = self.counters().into_iter().map(|plugin| PluginMemory {
            plugin: plugin.name,
            peak_tensor_bytes: plugin.peak_tensor_bytes,
            peak_handles: plugin.peak_handles,
        });
        let memory = memory.collect();
        match profile::finish(self.folder.path(), self.plan.threads, memory) {
            None => Ok(()),
            Some(Ok(profile)) => self.tell(Event::Profile(profile)),
            Some(Err(error)) => Err(edge("the trace could not be written", &error)),
        }
    }

    fn idle_plugins(&self) -> Vec<String> {
        let trainer = self.shared.trainer.borrow();
        let sessions = trainer
            .iter()
            .chain(self.pruners.iter().filter_map(|p| p.session.as_ref()));
        let now = sessions.map(|s| {
            (
                s.guest().slot,
                s.guest().name.clone(),
                s.guest().counters.acted,
            )
        });
        let ended = self.ended.iter();
        let ended = ended.map(|(cost, acted)| (cost.slot, cost.name.clone(), *acted));
        let mut acted: BTreeMap<String, bool> = BTreeMap::new();
        let changes = |slot: &Slot| matches!(slot, Slot::Trainer | Slot::Pruner);
        for (_, name, did) in ended.chain(now).filter(|(slot, ..)| changes(slot)) {
            *acted.entry(name).or_default() |= did;
        }
        // A resumed run has forgotten what happened before it; a frozen one is not to be changed.
        let whole = self.seconds_before == 0.0 && !self.stages.iter().any(|stage| stage.freeze);
        let idle = acted.into_iter().filter(|(_, did)| whole && !did);
        idle.map(|(name, _)| name).collect()
    }

    /// What each plugin has cost so far, those of earlier stages first.
    fn counters(&self) -> Vec<PluginCounters> {
        let trainer = self.shared.trainer.borrow();
        let architecture = self.shared.architecture.borrow();
        let environment = self.shared.environment.borrow();
        let normalizer = self.shared.normalizer.borrow();
        let transforms = self.shared.transforms.borrow();
        let sessions = trainer
            .iter()
            .chain(self.pruners.iter().filter_map(|p| p.session.as_ref()))
            .chain(architecture.iter())
            .chain(self.searcher.iter())
            .chain(environment.iter())
            .chain(normalizer.iter())
            .chain(transforms.iter().map(|(session, _)| session));
        let now: Vec<PluginCounters> = sessions.map(|session| self.cost(session)).collect();
        let mut all: Vec<PluginCounters> = Vec::new();
        for one in self.ended.iter().map(|(cost, _)| cost).cloned().chain(now) {
            let same = |c: &&mut PluginCounters| (c.slot, &c.name) == (one.slot, &one.name);
            match all.iter_mut().find(same) {
                Some(before) => before.add(&one),
                None => all.push(one),
            }
        }
        all
    }

    fn cost(&self, session: &Session) -> PluginCounters {
        let restarts = self.restarts.get(&session.guest().name);
        PluginCounters {
            restarts: restarts.copied().unwrap_or_default(),
            ..cost_of(session)
        }
    }
}

/// What a plugin has cost since its instance was made.
pub(crate) fn cost_of(session: &Session) -> PluginCounters {
    let guest = session.guest();
    let c = &guest.counters;
    PluginCounters {
        slot: guest.slot,
        name: guest.name.clone(),
        calls: c
            .calls
            .iter()
            .map(|(name, n)| (name.to_string(), *n))
            .collect(),
        guest_seconds: c.total.saturating_sub(c.host).as_secs_f64(),
        host_seconds: c.host.as_secs_f64(),
        peak_tensor_bytes: guest.account.peak_bytes(),
        peak_graph_nodes: guest.account.peak_nodes(),
        peak_handles: c.peak_handles,
        restarts: 0,
    }
}

/// Positions after a rewind: the trainer's as they were, the others' as they are. A stream of the trainer's
/// that began since then begins anew.
fn rewound(trainer: &str, now: &data::Streams, then: &data::Streams) -> data::Streams {
    let positions = |streams: &data::Streams| Vec::from(streams.clone());
    let others = positions(now)
        .into_iter()
        .filter(|(id, _)| id.plugin != trainer);
    let back = positions(then)
        .into_iter()
        .filter(|(id, _)| id.plugin == trainer);
    others.chain(back).collect::<Vec<_>>().into()
}

pub(crate) fn readable(kind: PredictionKind) -> metrics::Prediction {
    match kind {
        PredictionKind::Logits => metrics::Prediction::Logits,
        PredictionKind::Probabilities => metrics::Prediction::Probabilities,
        PredictionKind::Values => metrics::Prediction::Values,
        PredictionKind::MeanVariance => metrics::Prediction::MeanVariance,
        PredictionKind::Quantiles | PredictionKind::Mixture | PredictionKind::Samples => {
            metrics::Prediction::Other
        }
    }
}

/// A plugin's refusal, for people.
fn refused(name: &str, refusal: wit::Error, what: &str) -> Diagnostic {
    let help = match refusal.code {
        wit::ErrorCode::InvalidOption => "change the plugin's options under `with` in the run file",
        wit::ErrorCode::Incompatible => {
            "choose another plugin, or change the model, data or schedule it refuses"
        }
        wit::ErrorCode::InvalidState => {
            "the checkpoint was written by another version of the plugin"
        }
        wit::ErrorCode::Other => "see the plugin's README",
    };
    Diagnostic::new(format!("plugin `{name}` refuses to {what}"))
        .detail("because", shown(&refusal.message))
        .help(help)
}

fn sparsity((alive, total): (u64, u64)) -> f64 {
    if total == 0 {
        0.0
    } else {
        1.0 - alive as f64 / total as f64
    }
}

fn edge(what: &str, error: &dyn std::error::Error) -> Diagnostic {
    Diagnostic::new(what).because(error)
}

fn saved(meta: &str) -> Result<Saved, Diagnostic> {
    serde_json::from_str(meta).map_err(|error| {
        Diagnostic::new("the checkpoint was written by another version of Espalier")
            .because(&error)
            .help("run from the beginning, or use the version that wrote it")
    })
}

/// What is wrong with the spec of a world to act in.
pub(crate) fn unfit_mdp(spec: &MdpSpec) -> Option<String> {
    let actions = match &spec.action {
        ActionSpace::Discrete(n) => *n as usize,
        ActionSpace::Continuous(ranges) => match ranges.iter().all(|(low, high)| low <= high) {
            true => ranges.len(),
            false => 0,
        },
    };
    if spec.observation.is_empty() || spec.observation.len() > 1 << 20 {
        Some(format!(
            "observations of {} numbers",
            spec.observation.len()
        ))
    } else if actions == 0 || actions > 1 << 20 {
        Some("no action, too many, or a range without numbers".into())
    } else if spec.max_steps == 0 {
        Some("episodes of no step".into())
    } else {
        None
    }
}

/// The final parameters of a run's newest checkpoint: the run's own set. For tests and tools.
///
/// # Errors
/// No checkpoint, or one that can't be read.
pub fn parameters_of(folder: &Path) -> Result<ParameterSet, Diagnostic> {
    let found = checkpoint::newest(&folder.join("checkpoints"))
        .map_err(|error| edge("no checkpoint could be read", &error))?
        .ok_or_else(|| Diagnostic::new(format!("`{}` holds no checkpoint", folder.display())))?;
    let saved = saved(&found.meta)?;
    for (number, (id, meta)) in saved.sets.iter().enumerate() {
        if *id == SetId::Main {
            return ParameterSet::import(&format!("set{number}"), &found.tensors, meta)
                .map_err(|error| edge("the checkpoint does not hold what it should", &error));
        }
    }
    Err(Diagnostic::new(
        "the checkpoint holds no parameters of the run",
    ))
}
