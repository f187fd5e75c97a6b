//! The traits that a plugin implements, one a slot.

use crate::control::{MdpSpec, Transition};
use crate::data::Batch;
use crate::model::Prediction;
use crate::options::{Options, Value};
use crate::rewards::{Advantage, Drift, Prompt, RewardSpec, Rollout, TaskSpec, Verdict};
use crate::run::{Directive, Error, Event, EventKind, RunInfo, StepInfo, StepReport};
use crate::tensor::Tensor;

/// How parameters change.
///
/// ```no_run
/// use espalier_sdk::data::{Batch, Stream};
/// use espalier_sdk::model::{Mode, Model, Prediction};
/// use espalier_sdk::parameters::{ParameterSet, SgdOptions};
/// use espalier_sdk::{Error, Options, RunInfo, StepInfo, StepReport, Tensor, Trainer};
///
/// #[derive(Options)]
/// struct Settings {
///     /// Learning rate.
///     #[option(default = 0.1, min = 0.0)]
///     lr: f64,
/// }
///
/// struct Plain {
///     lr: f64,
///     model: Model,
///     stream: Stream,
/// }
///
/// impl Trainer for Plain {
///     type Options = Settings;
///
///     fn new(run: &RunInfo, options: Settings) -> Result<Self, Error> {
///         let stream = Stream::train(run.batch_size, &[0]);
///         Ok(Plain { lr: options.lr, model: Model::main(), stream })
///     }
///
///     fn step(&mut self, _at: &StepInfo) -> StepReport {
///         let batch = self.stream.next_endless();
///         let loss = self.objective(&batch).mean(&[]);
///         let set = ParameterSet::main();
///         let names = set.trainable();
///         let grads = set.grad(&loss, &names);
///         set.sgd(&names, &grads, SgdOptions { lr: self.lr, ..Default::default() });
///         StepReport::new(loss.item(), batch.count())
///     }
///
///     fn objective(&self, batch: &Batch) -> Tensor {
///         self.model.forward(batch.fields(), Mode::Train).cross_entropy(batch.targets())
///     }
///
///     fn predict(&self, batch: &Batch) -> Prediction {
///         Prediction::logits(self.model.forward(batch.fields(), Mode::Eval))
///     }
/// }
///
/// espalier_sdk::export!(trainer: Plain);
/// ```
pub trait Trainer: Sized + 'static {
    /// What a run file may set.
    type Options: Options;

    /// Once, before the first step. Refuses with an error for the reader of the run.
    fn new(run: &RunInfo, options: Self::Options) -> Result<Self, Error>;

    /// One step: pull a batch, change parameters.
    fn step(&mut self, at: &StepInfo) -> StepReport;

    /// Per-sample losses `[count]`, tracked to the run's parameters. Pure: no update, no state.
    fn objective(&self, batch: &Batch) -> Tensor;

    /// Predictions for a batch of any size. Pure; randomness keyed by sample index. Runs without a graph.
    fn predict(&self, batch: &Batch) -> Prediction;

    /// Changes an option declared live, between steps.
    fn set_knob(&mut self, name: &str, value: &Value) -> Result<(), Error> {
        let _ = value;
        Err(Error::invalid_option(format!(
            "`{name}` cannot be changed during a run"
        )))
    }

    /// Everything to be remembered that is not in the host.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Called after `new` with what `save` gave.
    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        nothing_saved(state)
    }
}

/// Which weights live.
///
/// ```no_run
/// use espalier_sdk::parameters::{Kind, ParameterSet};
/// use espalier_sdk::{Directive, Error, Event, EventKind, Pruner, RunInfo};
///
/// /// Halves every weight matrix at the end of each epoch: the smaller half of what is left goes.
/// struct Halve;
///
/// impl Pruner for Halve {
///     type Options = ();
///     const EVENTS: &'static [EventKind] = &[EventKind::Epoch];
///
///     fn new(_run: &RunInfo, _options: ()) -> Result<Self, Error> {
///         Ok(Halve)
///     }
///
///     fn on_event(&mut self, _event: &Event) -> Directive {
///         let set = ParameterSet::main();
///         for info in set.list().iter().filter(|info| info.kind == Kind::Weight) {
///             let alive = set.mask_or_ones(info);
///             let keep = alive.count_nonzero() / 2;
///             set.set_mask(&info.name, &set.value(&info.name).abs().keep_largest(&alive, keep));
///         }
///         Directive::Continue
///     }
/// }
///
/// espalier_sdk::export!(pruner: Halve);
/// ```
pub trait Pruner: Sized + 'static {
    /// What a run file may set.
    type Options: Options;

    /// The kinds of events it wants; others are not sent.
    const EVENTS: &'static [EventKind];

    /// Once, before the first step. Refuses with an error for the reader of the run.
    fn new(run: &RunInfo, options: Self::Options) -> Result<Self, Error>;

    /// After the trainer's update, for each wanted event.
    fn on_event(&mut self, event: &Event) -> Directive;

    /// Everything to be remembered that is not in the host.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Called after `new` with what `save` gave.
    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        nothing_saved(state)
    }
}

/// What a reward is worth. It sees rewards and lengths, never a tensor.
///
/// ```no_run
/// use espalier_sdk::rewards::{Advantage, RewardSpec, Rollout, groups, mean};
/// use espalier_sdk::{Error, Normalizer, RunInfo};
///
/// /// Every reward less the mean of its group.
/// struct Centered;
///
/// impl Normalizer for Centered {
///     type Options = ();
///
///     fn new(_run: &RunInfo, _options: (), _rewards: &RewardSpec) -> Result<Self, Error> {
///         Ok(Centered)
///     }
///
///     fn normalize(&mut self, batch: &[Rollout]) -> Result<Vec<Advantage>, Error> {
///         let mut advantages = vec![Advantage::of(0.0); batch.len()];
///         for group in groups(batch) {
///             let center = mean(group.iter().map(|&i| batch[i].reward));
///             for i in group {
///                 advantages[i] = Advantage::of(batch[i].reward - center);
///             }
///         }
///         Ok(advantages)
///     }
/// }
///
/// espalier_sdk::export!(normalizer: Centered);
/// ```
pub trait Normalizer: Sized + 'static {
    /// What a run file may set.
    type Options: Options;

    /// Once, before the first step. Refuses with an error for the reader of the run.
    fn new(run: &RunInfo, options: Self::Options, rewards: &RewardSpec) -> Result<Self, Error>;

    /// Advantages of a batch, in its order. Rewards are finite and within the ranges of the spec; a batch may be
    /// empty. Refuses a batch of a kind that it has no advantages for.
    fn normalize(&mut self, batch: &[Rollout]) -> Result<Vec<Advantage>, Error>;

    /// Everything to be remembered.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Called after `new` with what `save` gave.
    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        nothing_saved(state)
    }
}

/// A normaliser that hears of the policy's drift and weighs prompts:
/// `espalier_sdk::export!(tracking normalizer: T);`.
///
/// ```no_run
/// use espalier_sdk::rewards::{Advantage, Drift, RewardSpec, Rollout};
/// use espalier_sdk::{Error, Normalizer, RunInfo, TrackingNormalizer};
///
/// /// The reward as it is; prompts on which the policy moves are drawn more often.
/// struct Restless {
///     moved: Vec<(u64, f64)>,
/// }
///
/// impl Normalizer for Restless {
///     type Options = ();
///
///     fn new(_run: &RunInfo, _options: (), _rewards: &RewardSpec) -> Result<Self, Error> {
///         Ok(Restless { moved: Vec::new() })
///     }
///
///     fn normalize(&mut self, batch: &[Rollout]) -> Result<Vec<Advantage>, Error> {
///         Ok(batch.iter().map(|rollout| Advantage::of(rollout.reward)).collect())
///     }
/// }
///
/// impl TrackingNormalizer for Restless {
///     fn observe(&mut self, drifts: &[Drift]) {
///         self.moved = drifts.iter().map(|d| (d.prompt, d.mean_abs_logratio)).collect();
///     }
///
///     fn prompt_weights(&self, prompts: &[u64]) -> Vec<f64> {
///         let of = |prompt| self.moved.iter().find(|(id, _)| *id == prompt);
///         prompts.iter().map(|&id| 1.0 + of(id).map_or(0.0, |(_, moved)| *moved)).collect()
///     }
/// }
///
/// espalier_sdk::export!(tracking normalizer: Restless);
/// ```
pub trait TrackingNormalizer: Normalizer {
    /// After the update that followed `normalize`: how far the policy has moved on those prompts of that batch
    /// which had been answered before.
    fn observe(&mut self, drifts: &[Drift]);

    /// How often each prompt should be drawn, in proportion; finite and not negative.
    fn prompt_weights(&self, prompts: &[u64]) -> Vec<f64>;
}

/// A response to be judged.
///
/// ```no_run
/// # use espalier_sdk::Response;
/// # fn f(response: &Response, stop: u32) {
/// let readable = response.finished && response.tokens.last() == Some(&stop);
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Response {
    /// The split of the prompt.
    pub split: String,
    /// The prompt.
    pub prompt: u64,
    /// Its tokens; a stop token at the end where the policy gave one.
    pub tokens: Vec<u32>,
    /// False if it was cut off.
    pub finished: bool,
}

/// Prompts, and what responses to them are worth: an environment with tasks, `espalier_sdk::export!(tasks: T);`.
///
/// ```no_run
/// use espalier_sdk::rewards::{Prompt, RewardSpec, TaskSpec, Verdict};
/// use espalier_sdk::{Error, Response, RunInfo, Tasks};
///
/// /// Say the token again.
/// struct Echo;
///
/// impl Tasks for Echo {
///     type Options = ();
///
///     fn new(_run: &RunInfo, _options: ()) -> Result<Self, Error> {
///         Ok(Echo)
///     }
///
///     fn spec(&self) -> TaskSpec {
///         TaskSpec {
///             vocabulary: ["a", "b", "c", "."].map(String::from).to_vec(),
///             stop: 3,
///             max_prompt: 1,
///             max_response: 2,
///             rewards: RewardSpec::outcome(0.0, 1.0),
///             budgets: Vec::new(),
///         }
///     }
///
///     fn splits(&self) -> Vec<(&str, u64)> {
///         vec![("train", 3), ("test", 3)]
///     }
///
///     fn prompt(&self, _split: &str, id: u64) -> Prompt {
///         let token = id as u32;
///         Prompt { id, tokens: vec![token], solution: Some(vec![token]), task: String::new() }
///     }
///
///     fn verify(&self, response: &Response) -> Verdict {
///         Verdict::outcome(response.tokens == [response.prompt as u32, 3])
///     }
/// }
///
/// espalier_sdk::export!(tasks: Echo);
/// ```
pub trait Tasks: Sized + 'static {
    /// What a run file may set.
    type Options: Options;

    /// Once, before anything else. Refuses with an error for the reader of the run.
    fn new(run: &RunInfo, options: Self::Options) -> Result<Self, Error>;

    /// What the tasks are like.
    fn spec(&self) -> TaskSpec;

    /// The splits and how many prompts each has; `train` must be there, `test` is what is measured.
    fn splits(&self) -> Vec<(&str, u64)>;

    /// A prompt of a split by its number, below the split's count. Depends on nothing else.
    fn prompt(&self, split: &str, id: u64) -> Prompt;

    /// Judges a response. Depends on nothing else; a response may be unfinished or nonsense.
    fn verify(&self, response: &Response) -> Verdict;

    /// Everything to be remembered.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Called after `new` with what `save` gave.
    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        nothing_saved(state)
    }
}

/// A world to act in, many instances side by side: `espalier_sdk::export!(mdp: T);`.
///
/// ```no_run
/// use espalier_sdk::control::{ActionSpace, MdpSpec, Transition};
/// use espalier_sdk::{Error, Mdp, RunInfo};
///
/// /// Each instance is a number that the action moves; the reward is higher the nearer it is to 0.
/// struct Line {
///     places: Vec<f64>,
/// }
///
/// impl Mdp for Line {
///     type Options = ();
///
///     fn new(_run: &RunInfo, _options: ()) -> Result<Self, Error> {
///         Ok(Line { places: Vec::new() })
///     }
///
///     fn spec(&self) -> MdpSpec {
///         MdpSpec {
///             observation: vec![(-10.0, 10.0)],
///             action: ActionSpace::Continuous(vec![(-1.0, 1.0)]),
///             max_steps: 100,
///         }
///     }
///
///     fn reset(&mut self, n: u32, _key: &[u64]) -> Vec<f64> {
///         self.places = vec![5.0; n as usize];
///         self.places.clone()
///     }
///
///     fn step(&mut self, actions: &[f64]) -> Transition {
///         for (place, action) in self.places.iter_mut().zip(actions) {
///             *place = (*place + action).clamp(-10.0, 10.0);
///         }
///         Transition {
///             observations: self.places.clone(),
///             rewards: self.places.iter().map(|place| -place.abs()).collect(),
///             terminated: vec![false; self.places.len()],
///             truncated: vec![false; self.places.len()],
///             last_observations: Vec::new(),
///         }
///     }
///
///     fn save(&self) -> Vec<u8> {
///         espalier_sdk::state::Writer::new(1).f64s(&self.places).finish()
///     }
///
///     fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
///         let mut state = espalier_sdk::state::Reader::new(state, 1)?;
///         self.places = state.f64s()?;
///         state.end()
///     }
/// }
///
/// espalier_sdk::export!(mdp: Line);
/// ```
pub trait Mdp: Sized + 'static {
    /// What a run file may set.
    type Options: Options;

    /// Once, before anything else. Refuses with an error for the reader of the run.
    fn new(run: &RunInfo, options: Self::Options) -> Result<Self, Error>;

    /// What the world is like.
    fn spec(&self) -> MdpSpec;

    /// Begins an episode in each of `n` instances from the key alone and forgets those before; the observations,
    /// instance after instance.
    fn reset(&mut self, n: u32, key: &[u64]) -> Vec<f64>;

    /// One action for each instance, within the ranges of the spec. An instance whose episode ends begins another
    /// one in the same step.
    fn step(&mut self, actions: &[f64]) -> Transition;

    /// Everything to be remembered, episodes in progress too.
    fn save(&self) -> Vec<u8>;

    /// Called after `new` with what `save` gave.
    fn restore(&mut self, state: &[u8]) -> Result<(), Error>;
}

pub(crate) fn nothing_saved(state: &[u8]) -> Result<(), Error> {
    if state.is_empty() {
        return Ok(());
    }
    Err(Error::invalid_state(format!(
        "this plugin saves nothing, the checkpoint holds {} bytes of another version",
        state.len()
    )))
}
