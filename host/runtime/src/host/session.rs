//! One plugin in one run: a store, an instance, and calls that come back or end in a [`Death`].
//!
//! Promise: whatever a guest does in a call, the call ends within its time budget plus one host operation, and
//! the host, other plugins and the parameters stay usable. After a death the store is gone for good; the run's
//! policy decides what follows.

pub mod architecture;
mod auditor;
mod searcher;
mod transform;
pub use transform::Derived;
mod tuner;

use std::rc::Rc;
use std::time::{Duration, Instant};

use espalier_tensor::{Tensor, account::Account, autograd, capture};
use wasmtime::component::{HasSelf, Linker};
use wasmtime::{Store, Trap, WasmBacktrace};

use super::bindings::architecture::ArchitecturePlugin;
use super::bindings::auditor::Auditor;
use super::bindings::mdp::EnvironmentMdp;
use super::bindings::normalizer::Normalizer;
use super::bindings::normalizer_tracking::NormalizerTracking;
use super::bindings::pruner::Pruner;
use super::bindings::searcher::Searcher;
use super::bindings::tasks::EnvironmentTasks;
use super::bindings::tasks::exports::espalier::plugin::tasks::Response;
use super::bindings::trainer::Trainer;
use super::bindings::trainer::espalier::plugin::control::{MdpSpec, Transition};
use super::bindings::trainer::espalier::plugin::model::PredictionKind;
use super::bindings::trainer::espalier::plugin::options::Value;
use super::bindings::trainer::espalier::plugin::rewards::{
    Advantage, Drift, Prompt, RewardSpec, Rollout, TaskSpec, Verdict,
};
use super::bindings::trainer::espalier::plugin::run::{
    Directive, Error, ErrorCode, Event, RunInfo, StepInfo, StepReport,
};
use super::bindings::trainer::exports::espalier::plugin::plugin::Description;
use super::bindings::transform::Transform;
use super::bindings::tuner::Tuner;
use super::guest::{Guest, Refusal, bytes, misuse};
use super::rollouts::{unfit, unfit_verdict};
use super::state::Shared;
use super::wasi;
use crate::component::{Loaded, TICK, World};
use crate::data::Batch;
use crate::diagnostic::Diagnostic;
use crate::plan::Limits;
use crate::profile;

/// What a plugin died of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// A call took too long.
    Time,
    /// A budget of memory, tensors, handles or text was used up.
    Budget,
    /// A trap, misuse, or what another plugin refused.
    Other,
}

/// How a plugin's instance came to its end.
#[derive(Clone, Debug, thiserror::Error)]
#[error("plugin `{plugin}` failed in `{call}`: {what}")]
pub struct Death {
    /// The plugin.
    pub plugin: String,
    /// The export that was called.
    pub call: &'static str,
    /// What it died of.
    pub cause: Cause,
    /// What happened, in one line.
    pub what: String,
    /// Labelled facts: budget, use, the plugin's own line.
    pub details: Vec<(String, String)>,
    /// What to do.
    pub help: Option<String>,
}

impl Death {
    /// The error for people; `at` says where the run was.
    pub fn diagnostic(&self, at: &str) -> Diagnostic {
        let mut d = Diagnostic::new(format!("plugin `{}` {}", self.plugin, self.what))
            .at(format!("`{}`, {at}", self.call));
        for (label, text) in &self.details {
            d = d.detail(label, text);
        }
        d.help_if(self.help.clone())
    }
}

/// Most bytes that a plugin may ask the host to remember for it: they stand as numbers in a checkpoint's header.
pub const MOST_SAVED: usize = 8 << 20;

/// What a call gives.
pub type Called<T> = Result<T, Death>;

enum Exports {
    Trainer(Trainer),
    Pruner(Pruner),
    Normalizer(Normalizer),
    NormalizerTracking(NormalizerTracking),
    Tasks(EnvironmentTasks),
    Mdp(EnvironmentMdp),
    Architecture(ArchitecturePlugin),
    Tuner(Tuner),
    Auditor(Auditor),
    Transform(Transform),
    Searcher(Searcher),
}

/// One plugin in one run.
pub struct Session {
    store: Store<Guest>,
    exports: Exports,
    /// A budget smaller than the plugin's own, for the next call only.
    shorter: Option<Duration>,
    /// What the environment pays, told to a normaliser at its start.
    rewards: Option<RewardSpec>,
}

impl Session {
    /// Instantiates a loaded component with its own store and budgets.
    pub fn new(
        component: &Loaded,
        name: &str,
        limits: Limits,
        account: Account,
        shared: Rc<Shared>,
    ) -> Called<Session> {
        let engine = component.engine().clone();
        let guest = Guest::new(name, component.slot, limits.clone(), account, shared);
        let mut store = Store::new(&engine, guest);
        store.limiter(|guest| &mut guest.memory);
        store.set_epoch_deadline(ticks(limits.call));
        // wasmtime counts own and lent handles; the budget proper is counted by `Guest`.
        store.set_max_component_handles(limits.handles as usize * 2 + 4096);
        store.set_hostcall_fuel(usize::try_from(limits.memory).unwrap_or(usize::MAX));
        let mut linker: Linker<Guest> = Linker::new(&engine);
        let mut instantiate = || -> wasmtime::Result<Exports> {
            wasi::add_to_linker(&engine, component.component(), &mut linker)?;
            // Each world's linker holds the world's imports and nothing else.
            macro_rules! instance {
                ($world:ident, $exports:ident) => {{
                    $world::add_to_linker::<_, HasSelf<Guest>>(&mut linker, |g| g)?;
                    Exports::$exports($world::instantiate(
                        &mut store,
                        component.component(),
                        &linker,
                    )?)
                }};
            }
            Ok(match component.world {
                World::Trainer => instance!(Trainer, Trainer),
                World::Pruner => instance!(Pruner, Pruner),
                World::Normalizer => instance!(Normalizer, Normalizer),
                World::NormalizerTracking => instance!(NormalizerTracking, NormalizerTracking),
                World::Tasks => instance!(EnvironmentTasks, Tasks),
                World::Mdp => instance!(EnvironmentMdp, Mdp),
                World::Architecture => instance!(ArchitecturePlugin, Architecture),
                World::Tuner => instance!(Tuner, Tuner),
                World::Auditor => instance!(Auditor, Auditor),
                World::Transform => instance!(Transform, Transform),
                World::Searcher => instance!(Searcher, Searcher),
            })
        };
        match instantiate() {
            Ok(exports) => Ok(Session {
                store,
                exports,
                shorter: None,
                rewards: None,
            }),
            Err(error) => Err(death(store.data(), "instantiate", &error)),
        }
    }

    /// What the host keeps for the plugin.
    pub fn guest(&self) -> &Guest {
        self.store.data()
    }

    /// The same, to be changed.
    pub fn guest_mut(&mut self) -> &mut Guest {
        self.store.data_mut()
    }

    /// The next call has at most this much time.
    pub(super) fn shorten(&mut self, budget: Duration) {
        self.shorter = Some(budget);
    }

    /// Every call goes through here: budget, account, gradient mode, counters, and the translation of errors.
    fn call<T>(
        &mut self,
        call: &'static str,
        grad: bool,
        f: impl FnOnce(&mut Store<Guest>, &Exports) -> wasmtime::Result<T>,
    ) -> Called<T> {
        let _profile = profile::call(&self.store.data().name, call);
        let started = Instant::now();
        let limit = self.store.data().limits.call;
        let budget = self.shorter.take().map_or(limit, |d| d.min(limit));
        self.store.set_epoch_deadline(ticks(budget));
        let caller_mode = autograd::grad_enabled();
        let guest = self.store.data_mut();
        guest.due(started + budget);
        guest.grad_allowed = caller_mode && grad;
        guest.memory.refused = None;
        autograd::set_grad_enabled(guest.grad_allowed && guest.no_grad == 0);
        let scope = guest.account.enter();
        let recording = capture::is_recording();
        // Another plugin's step is being recorded: what this one does is its own affair. An architecture has no state
        // and sees nothing but what the step gives it: its kernels are the step's.
        if !matches!(self.exports, Exports::Architecture(_)) {
            capture::refuse("it calls another plugin");
        }
        let result = f(&mut self.store, &self.exports);
        if !recording && capture::is_recording() {
            capture::abandon();
        }
        self.store.data_mut().performing = None;
        drop(scope);
        autograd::set_grad_enabled(caller_mode);
        let guest = self.store.data_mut();
        guest.counters.total += started.elapsed();
        *guest.counters.calls.entry(call).or_default() += 1;
        result.map_err(|error| {
            let guest = self.store.data();
            let death = death(guest, call, &error);
            guest.shared.death.replace(Some(death.clone()));
            death
        })
    }

    fn wrong_slot<T>() -> wasmtime::Result<T> {
        misuse("the plugin fills another slot")
    }

    /// Name, version and options.
    pub fn describe(&mut self) -> Called<Description> {
        // The worlds share the types of what they import, but each has its own of what it exports.
        macro_rules! description {
            ($exports:expr, $store:expr) => {{
                let d = $exports.espalier_plugin_plugin().call_describe($store)?;
                Ok(Description {
                    name: d.name,
                    version: d.version,
                    summary: d.summary,
                    options: d.options,
                    events: d.events,
                })
            }};
        }
        self.call("describe", true, |store, exports| match exports {
            Exports::Trainer(t) => t.espalier_plugin_plugin().call_describe(store),
            Exports::Pruner(p) => description!(p, store),
            Exports::Normalizer(n) => description!(n, store),
            Exports::NormalizerTracking(n) => description!(n, store),
            Exports::Tasks(e) => description!(e, store),
            Exports::Mdp(e) => description!(e, store),
            Exports::Architecture(a) => description!(a, store),
            Exports::Tuner(t) => description!(t, store),
            Exports::Auditor(a) => description!(a, store),
            Exports::Transform(t) => description!(t, store),
            Exports::Searcher(s) => description!(s, store),
        })
    }

    /// Starts the plugin; a normaliser is started by [`Session::start_normalizer`]. The inner error is the
    /// plugin's own refusal.
    pub fn start(
        &mut self,
        info: RunInfo,
        settings: &[(String, Value)],
    ) -> Called<Result<(), Error>> {
        self.call("start", true, |store, exports| match exports {
            Exports::Trainer(t) => t
                .espalier_plugin_training()
                .call_start(store, info, settings),
            Exports::Pruner(p) => p
                .espalier_plugin_pruning()
                .call_start(store, info, settings),
            Exports::Tasks(e) => e.espalier_plugin_tasks().call_start(store, info, settings),
            Exports::Mdp(e) => e.espalier_plugin_mdp().call_start(store, info, settings),
            Exports::Architecture(a) => a
                .espalier_plugin_architecture()
                .call_start(store, info, settings),
            Exports::Auditor(a) => a
                .espalier_plugin_auditing()
                .call_start(store, info, settings),
            Exports::Searcher(s) => s
                .espalier_plugin_searching()
                .call_start(store, info, settings),
            // These are told more at their start: each has its own function.
            Exports::Normalizer(_)
            | Exports::NormalizerTracking(_)
            | Exports::Tuner(_)
            | Exports::Transform(_) => Self::wrong_slot(),
        })
    }

    /// One step of a trainer.
    pub fn step(&mut self, at: StepInfo) -> Called<StepReport> {
        self.call("step", true, |store, exports| match exports {
            Exports::Trainer(t) => t.espalier_plugin_training().call_step(store, at),
            _ => Self::wrong_slot(),
        })
    }

    /// Per-sample losses of a trainer, [count].
    pub fn objective(&mut self, batch: Batch) -> Called<Tensor> {
        let count = batch.count as usize;
        self.call("objective", true, |store, exports| match exports {
            Exports::Trainer(t) => {
                let batch = store.data_mut().put_batch(batch)?;
                let losses = t
                    .espalier_plugin_training()
                    .call_objective(&mut *store, &batch)?;
                let losses = store.data_mut().take_tensor(losses)?;
                if losses.shape() != [count] {
                    return misuse(format!(
                        "returned losses of shape {:?}, expected one loss a sample: [{count}]",
                        losses.shape()
                    ));
                }
                Ok(losses)
            }
            _ => Self::wrong_slot(),
        })
    }

    /// Predictions of a trainer for a batch.
    pub fn predict(&mut self, batch: Batch) -> Called<(PredictionKind, Tensor)> {
        let count = batch.count as usize;
        self.call("predict", false, |store, exports| match exports {
            Exports::Trainer(t) => {
                let batch = store.data_mut().put_batch(batch)?;
                let prediction = t.espalier_plugin_training().call_predict(&mut *store, &batch)?;
                let output = store.data_mut().take_tensor(prediction.output)?;
                if output.shape().first() != Some(&count) {
                    return misuse(format!(
                        "returned predictions of shape {:?}, expected {count} samples along the first axis",
                        output.shape()
                    ));
                }
                Ok((prediction.kind, output))
            }
            _ => Self::wrong_slot(),
        })
    }

    /// Tells a pruner of an event.
    pub fn on_event(&mut self, event: &Event) -> Called<Directive> {
        self.call("on-event", true, |store, exports| match exports {
            Exports::Pruner(p) => p.espalier_plugin_pruning().call_on_event(store, event),
            _ => Self::wrong_slot(),
        })
    }

    /// Changes a live option of a trainer.
    pub fn set_knob(&mut self, name: &str, value: &Value) -> Called<Result<(), Error>> {
        self.call("set-knob", true, |store, exports| match exports {
            Exports::Trainer(t) => t
                .espalier_plugin_training()
                .call_set_knob(store, name, value),
            _ => Self::wrong_slot(),
        })
    }

    /// What the plugin must remember, at most [`MOST_SAVED`] bytes.
    pub fn save(&mut self) -> Called<Vec<u8>> {
        self.call("save", true, |store, exports| {
            let bytes = match exports {
                Exports::Trainer(t) => t.espalier_plugin_training().call_save(store),
                Exports::Pruner(p) => p.espalier_plugin_pruning().call_save(store),
                Exports::Normalizer(n) => n.espalier_plugin_normalizing().call_save(store),
                Exports::NormalizerTracking(n) => n.espalier_plugin_normalizing().call_save(store),
                Exports::Tasks(e) => e.espalier_plugin_tasks().call_save(store),
                Exports::Mdp(e) => e.espalier_plugin_mdp().call_save(store),
                Exports::Tuner(t) => t.espalier_plugin_tuning().call_save(store),
                Exports::Searcher(s) => s.espalier_plugin_searching().call_save(store),
                Exports::Architecture(_) | Exports::Auditor(_) | Exports::Transform(_) => {
                    Ok(Vec::new())
                }
            }?;
            if bytes.len() > MOST_SAVED {
                return misuse(format!(
                    "returned {}, at most {} are kept; tensors belong in a parameter set",
                    super::guest::bytes(bytes.len() as u64),
                    super::guest::bytes(MOST_SAVED as u64)
                ));
            }
            Ok(bytes)
        })
    }

    /// Gives saved bytes back.
    pub fn restore(&mut self, state: &[u8]) -> Called<Result<(), Error>> {
        let state = state.to_vec();
        self.call("restore", true, |store, exports| match exports {
            Exports::Trainer(t) => t.espalier_plugin_training().call_restore(store, &state),
            Exports::Pruner(p) => p.espalier_plugin_pruning().call_restore(store, &state),
            Exports::Normalizer(n) => n.espalier_plugin_normalizing().call_restore(store, &state),
            Exports::NormalizerTracking(n) => {
                n.espalier_plugin_normalizing().call_restore(store, &state)
            }
            Exports::Tasks(e) => e.espalier_plugin_tasks().call_restore(store, &state),
            Exports::Mdp(e) => e.espalier_plugin_mdp().call_restore(store, &state),
            Exports::Tuner(t) => t.espalier_plugin_tuning().call_restore(store, &state),
            Exports::Searcher(s) => s.espalier_plugin_searching().call_restore(store, &state),
            Exports::Architecture(_) | Exports::Auditor(_) | Exports::Transform(_) => Ok(Ok(())),
        })
    }

    /// Starts a normaliser.
    pub fn start_normalizer(
        &mut self,
        info: RunInfo,
        settings: &[(String, Value)],
        rewards: &RewardSpec,
    ) -> Called<Result<(), Error>> {
        self.rewards = Some(rewards.clone());
        self.call("start", true, |store, exports| match exports {
            Exports::Normalizer(n) => n
                .espalier_plugin_normalizing()
                .call_start(store, info, settings, rewards),
            Exports::NormalizerTracking(n) => n
                .espalier_plugin_normalizing()
                .call_start(store, info, settings, rewards),
            _ => Self::wrong_slot(),
        })
    }

    /// Advantages of a batch, one each and finite. The inner error is a refusal: the host's, of rewards that are
    /// no numbers or outside their declared range, or the normaliser's.
    pub fn normalize(&mut self, batch: &[Rollout]) -> Called<Result<Vec<Advantage>, Error>> {
        let problem = self.rewards.as_ref().and_then(|spec| unfit(batch, spec));
        if let Some(message) = problem {
            let code = ErrorCode::Incompatible;
            return Ok(Err(Error { code, message }));
        }
        self.call("normalize", true, |store, exports| {
            let answer = match exports {
                Exports::Normalizer(n) => n.espalier_plugin_normalizing().call_normalize(store, batch),
                Exports::NormalizerTracking(n) => {
                    n.espalier_plugin_normalizing().call_normalize(store, batch)
                }
                _ => Self::wrong_slot(),
            }?;
            let Ok(advantages) = answer else {
                return Ok(answer);
            };
            if advantages.len() != batch.len() {
                return misuse(format!(
                    "returned {} advantages for {} rollouts",
                    advantages.len(),
                    batch.len()
                ));
            }
            for (place, (advantage, rollout)) in advantages.iter().zip(batch).enumerate() {
                let values = &advantage.values;
                if values.len() != 1 && values.len() != rollout.segments.len() {
                    return misuse(format!(
                        "returned {} values for rollout {place}, expected one, or one for each of its {} segments",
                        values.len(),
                        rollout.segments.len()
                    ));
                }
                if let Some(wrong) = values.iter().find(|x| !x.is_finite()) {
                    return misuse(format!(
                        "returned the advantage {wrong} for rollout {place}, expected a finite number"
                    ));
                }
            }
            Ok(Ok(advantages))
        })
    }

    /// Whether the plugin is a normaliser that hears of drift and weighs prompts.
    pub fn tracks(&self) -> bool {
        matches!(self.exports, Exports::NormalizerTracking(_))
    }

    /// Tells a tracking normaliser how far the policy has moved.
    pub fn observe(&mut self, drifts: &[Drift]) -> Called<()> {
        self.call("observe", true, |store, exports| match exports {
            Exports::NormalizerTracking(n) => {
                n.espalier_plugin_tracking().call_observe(store, drifts)
            }
            _ => Self::wrong_slot(),
        })
    }

    /// How often a tracking normaliser wants each prompt: one finite number each, none negative.
    pub fn prompt_weights(&mut self, prompts: &[u64]) -> Called<Vec<f64>> {
        self.call("prompt-weights", true, |store, exports| {
            let weights = match exports {
                Exports::NormalizerTracking(n) => n
                    .espalier_plugin_tracking()
                    .call_prompt_weights(store, prompts),
                _ => Self::wrong_slot(),
            }?;
            if weights.len() != prompts.len() {
                return misuse(format!(
                    "returned {} weights for {} prompts",
                    weights.len(),
                    prompts.len()
                ));
            }
            match weights.iter().find(|w| !w.is_finite() || **w < 0.0) {
                None => Ok(weights),
                Some(wrong) => misuse(format!(
                    "returned the weight {wrong} for a prompt, expected a finite number from 0 on"
                )),
            }
        })
    }

    /// What an environment's tasks are like.
    pub fn task_spec(&mut self) -> Called<TaskSpec> {
        self.call("spec", true, |store, exports| match exports {
            Exports::Tasks(e) => e.espalier_plugin_tasks().call_spec(store),
            _ => Self::wrong_slot(),
        })
    }

    /// The splits of an environment with tasks, and how many prompts each has.
    pub fn task_splits(&mut self) -> Called<Vec<(String, u64)>> {
        self.call("splits", true, |store, exports| match exports {
            Exports::Tasks(e) => {
                let splits = e.espalier_plugin_tasks().call_splits(store)?;
                Ok(splits.into_iter().map(|s| (s.name, s.count)).collect())
            }
            _ => Self::wrong_slot(),
        })
    }

    /// Some prompts of a split, in the order asked.
    pub fn prompts(&mut self, split: &str, ids: &[u64]) -> Called<Vec<Prompt>> {
        self.call("prompts", true, |store, exports| {
            let prompts = match exports {
                Exports::Tasks(e) => e.espalier_plugin_tasks().call_prompts(store, split, ids),
                _ => Self::wrong_slot(),
            }?;
            if !prompts
                .iter()
                .map(|prompt| prompt.id)
                .eq(ids.iter().copied())
            {
                return misuse(format!(
                    "returned other prompts than the {} asked for, or in another order",
                    ids.len()
                ));
            }
            Ok(prompts)
        })
    }

    /// Verdicts on responses, in their order, with rewards as declared.
    pub fn verify(&mut self, responses: &[Response], rewards: &RewardSpec) -> Called<Vec<Verdict>> {
        self.call("verify", true, |store, exports| {
            let verdicts = match exports {
                Exports::Tasks(e) => e.espalier_plugin_tasks().call_verify(store, responses),
                _ => Self::wrong_slot(),
            }?;
            if verdicts.len() != responses.len() {
                return misuse(format!(
                    "returned {} verdicts for {} responses",
                    verdicts.len(),
                    responses.len()
                ));
            }
            for (response, verdict) in responses.iter().zip(&verdicts) {
                if let Some(problem) = unfit_verdict(verdict, response.tokens.len(), rewards) {
                    return misuse(format!(
                        "judged a response to prompt {} of `{}`: {problem}",
                        response.prompt, response.split
                    ));
                }
            }
            Ok(verdicts)
        })
    }

    /// What a world to act in is like.
    pub fn mdp_spec(&mut self) -> Called<MdpSpec> {
        self.call("spec", true, |store, exports| match exports {
            Exports::Mdp(e) => e.espalier_plugin_mdp().call_spec(store),
            _ => Self::wrong_slot(),
        })
    }

    /// Begins `n` episodes; the observations, each `size` numbers.
    pub fn reset(&mut self, n: u32, key: &[u64], size: usize) -> Called<Vec<f64>> {
        self.call("reset", true, |store, exports| {
            let observations = match exports {
                Exports::Mdp(e) => e.espalier_plugin_mdp().call_reset(store, n, key),
                _ => Self::wrong_slot(),
            }?;
            numbers("observations", &observations, n as usize * size)?;
            Ok(observations)
        })
    }

    /// One step of `n` episodes, whose observations are `size` numbers each.
    pub fn act(&mut self, actions: &[f64], n: usize, size: usize) -> Called<Transition> {
        self.call("step", true, |store, exports| {
            let t = match exports {
                Exports::Mdp(e) => e.espalier_plugin_mdp().call_step(store, actions),
                _ => Self::wrong_slot(),
            }?;
            if t.terminated.len() != n || t.truncated.len() != n {
                return misuse(format!(
                    "returned {} and {} ends of {n} episodes",
                    t.terminated.len(),
                    t.truncated.len()
                ));
            }
            let ended = t.terminated.iter().zip(&t.truncated);
            let ended = ended.filter(|(a, b)| **a || **b).count();
            numbers("rewards", &t.rewards, n)?;
            numbers("observations", &t.observations, n * size)?;
            numbers("last observations", &t.last_observations, ended * size)?;
            Ok(t)
        })
    }
}

/// Refuses another number of numbers than expected, and any that is not finite.
fn numbers(what: &str, list: &[f64], expected: usize) -> wasmtime::Result<()> {
    if list.len() != expected {
        return misuse(format!(
            "returned {} numbers as {what}, expected {expected}",
            list.len()
        ));
    }
    match list.iter().find(|x| !x.is_finite()) {
        None => Ok(()),
        Some(wrong) => misuse(format!("returned {wrong} among its {what}")),
    }
}

fn ticks(budget: Duration) -> u64 {
    (budget.as_nanos() / TICK.as_nanos()) as u64 + 1
}

/// Why a call ended, in words.
fn death(guest: &Guest, call: &'static str, error: &wasmtime::Error) -> Death {
    // A death in a plugin that this one asked for something is that plugin's.
    if let Some(inner) = error.downcast_ref::<Death>() {
        return inner.clone();
    }
    let mut details = Vec::new();
    // What a plugin says or names stands in these texts.
    let mut detail =
        |label: &str, text: String| details.push((label.to_string(), super::guest::shown(&text)));
    let mut help = None;
    let mut cause = Cause::Other;
    let refusal = guest
        .memory
        .refused
        .as_ref()
        .or_else(|| error.downcast_ref::<Refusal>());
    let limit = |field: &str| {
        Some(format!(
            "raise `limits.{field}` of this plugin in the run file, or mend the plugin"
        ))
    };
    let what = if let Some(refusal) = refusal {
        cause = match refusal {
            Refusal::Deadline { .. } | Refusal::TooLong { .. } => Cause::Time,
            Refusal::Handles { .. } | Refusal::Memory { .. } | Refusal::Log { .. } => Cause::Budget,
            Refusal::Wasi(_) | Refusal::Misuse(_) => Cause::Other,
        };
        match refusal {
            Refusal::Handles { limit: n } => {
                detail("budget", format!("{n} handles"));
                help = Some(
                    "drop tensors that are no longer needed, or raise `limits.handles`".into(),
                );
                "keeps more handles than this run grants it".to_string()
            }
            Refusal::Deadline { limit: d } => {
                detail("budget", super::guest::seconds(*d));
                help = limit("call");
                "did not return in time".to_string()
            }
            Refusal::TooLong {
                operation,
                estimate,
                limit: d,
            } => {
                detail(
                    "operation",
                    format!("{operation}, about {estimate:.1e} multiply-accumulates"),
                );
                detail("budget", super::guest::seconds(*d));
                help = limit("call");
                "asked for an operation that can't end in time".to_string()
            }
            Refusal::Memory { wanted, limit: n } => {
                detail("budget", bytes(*n));
                detail("asked for", bytes(*wanted));
                help = limit("memory");
                "asked for more guest memory than this run grants it".to_string()
            }
            Refusal::Log { limit: n } => {
                detail("budget", format!("{} of text in the whole run", bytes(*n)));
                help = limit("log");
                "writes more log than this run grants it".to_string()
            }
            Refusal::Wasi(name) => {
                detail("called", name.clone());
                help = Some(
                    "a plugin has no files, network, clock to wait on or process to leave".into(),
                );
                "called something that no plugin gets".to_string()
            }
            Refusal::Misuse(text) => {
                detail("because", text.clone());
                "was stopped".to_string()
            }
        }
    } else if let Some(error) = error.downcast_ref::<espalier_tensor::Error>() {
        match error {
            espalier_tensor::Error::Budget {
                op,
                asked,
                used,
                limit: n,
            } => {
                cause = Cause::Budget;
                detail("operation", op.to_string());
                detail(
                    "budget",
                    format!(
                        "{}, in use {}, asked for +{}",
                        bytes(*n),
                        bytes(*used),
                        bytes(*asked)
                    ),
                );
                help = Some(
                    "drop tensors kept between steps, or raise `limits.tensors` of this plugin"
                        .into(),
                );
                "asked for more tensor memory than this run grants it".to_string()
            }
            other => {
                detail("because", other.to_string());
                "made a mistake in a tensor operation".to_string()
            }
        }
    } else if let Some(trap) = error.downcast_ref::<Trap>() {
        match trap {
            Trap::Interrupt => {
                cause = Cause::Time;
                detail("budget", super::guest::seconds(guest.limits.call));
                help = limit("call");
                "did not return in time".to_string()
            }
            Trap::UnreachableCodeReached => {
                let said = guest.stderr_tail.trim();
                if !said.is_empty() {
                    detail("said", last_lines(said, 3));
                }
                "panicked".to_string()
            }
            Trap::MemoryOutOfBounds | Trap::StackOverflow => {
                help = Some(
                    "in a Rust plugin this usually is a stack overflow: look for endless recursion"
                        .into(),
                );
                format!("trapped: {trap}")
            }
            other => format!("trapped: {other}"),
        }
    } else {
        let text = error.root_cause().to_string();
        if text.contains("too much data is being copied") {
            cause = Cause::Budget;
            detail("budget", bytes(guest.limits.memory));
            help = limit("memory");
            "passed more data in one call than this run grants it".to_string()
        } else if text.contains("handle") && text.contains("limit") {
            cause = Cause::Budget;
            detail("budget", format!("{} handles", guest.limits.handles));
            "keeps more handles than this run grants it".to_string()
        } else {
            detail("because", text);
            "failed".to_string()
        }
    };
    if let Some(line) = error.downcast_ref::<WasmBacktrace>().and_then(author_line) {
        detail("source", line);
    }
    Death {
        plugin: guest.name.clone(),
        call,
        cause,
        what,
        details,
        help,
    }
}

fn last_lines(text: &str, n: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(n)..].join("\n")
}

/// The innermost line that the plugin's author wrote: not the standard library's, not the SDK's, not generated
/// bindings' (which stand at line 1, column 1 of the file that asked for them).
fn author_line(trace: &WasmBacktrace) -> Option<String> {
    for frame in trace.frames() {
        for symbol in frame.symbols() {
            let (Some(file), Some(line)) = (symbol.file(), symbol.line()) else {
                continue;
            };
            let foreign = [
                "/rustc/",
                "/library/",
                "/sdk/src/",
                "espalier-sdk-",
                "/cargo/registry/",
                "/rust/deps/",
                "wasisdk://",
            ];
            if foreign.iter().any(|part| file.contains(part))
                || (line, symbol.column()) == (1, Some(1))
            {
                continue;
            }
            return Some(match symbol.column() {
                Some(column) => format!("{file}:{line}:{column}"),
                None => format!("{file}:{line}"),
            });
        }
    }
    None
}
