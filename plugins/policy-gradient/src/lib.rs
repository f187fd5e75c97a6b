//! Trainer: policy gradients for verified responses and for worlds to act in.
//!
//! For an environment with tasks: an optional warm start on known solutions, then in every step responses to some
//! prompts, verdicts, advantages from the run's normaliser, and one or more updates on them (`tasks.rs`). For a world:
//! a categorical or Gaussian policy, a value network of this plugin's own and generalised advantage estimation
//! (`world.rs`). Both share the losses (`loss.rs`).
//!
//! REINFORCE is Williams 1992; PPO Schulman et al. 2017; group-wise sampling without a value network Shao et al. 2024
//! (section 4.1); the gradient-preserving clip Klear-Reasoner (arXiv 2508.07629).

mod loss;
mod tasks;
mod world;

use espalier_sdk::data::Batch;
use espalier_sdk::options::Value;
use espalier_sdk::parameters::{AdamOptions, clip_grad_norm};
use espalier_sdk::rollouts::{EnvironmentKind, environment};
use espalier_sdk::schedule::Schedule;
use espalier_sdk::state::{Reader, Writer};
use espalier_sdk::{
    Error, Options, ParameterSet, Prediction, RunInfo, StepInfo, StepReport, Tensor, Trainer,
    autograd, random,
};

use loss::{Aggregation, Rule, Surrogate};

/// Options under `[trainer.with]`.
#[derive(Options)]
struct Settings {
    /// Learning rate of the policy before the schedule.
    #[option(default = 1e-3, min = 0, live)]
    lr: f64,
    /// How the learning rates go down over a round.
    #[option(default = Schedule::Constant)]
    schedule: Schedule,
    /// Decay rates of the two moments of AdamW.
    #[option(default = [0.9, 0.999], min = 0, max = 1)]
    adam_betas: Vec<f64>,
    /// Added to the root of the second moment.
    #[option(default = 1e-8, min = 0)]
    eps: f64,
    /// Weight decay, of the weight itself.
    #[option(default = 0, min = 0)]
    weight_decay: f64,
    /// Largest norm of all gradients together; 0 for no limit.
    #[option(default = 1, min = 0)]
    clip_grad_norm: f64,
    /// Passes over the rollouts of a step.
    #[option(default = 1, min = 1, max = 1000)]
    epochs: u32,
    /// Updates of a pass.
    #[option(default = 1, min = 1, max = 1000)]
    minibatches: u32,
    /// What the advantage of a token multiplies.
    #[option(default = Rule::Ppo)]
    loss: Rule,
    /// How far below 1 the ratio of probabilities goes before it is clipped.
    #[option(default = 0.2, min = 0, max = 1)]
    clip_low: f64,
    /// How far above 1 the ratio of probabilities goes before it is clipped.
    #[option(default = 0.28, min = 0)]
    clip_high: f64,
    /// Most that a negative advantage is multiplied by; 0 for no limit.
    #[option(default = 0, min = 0)]
    dual_clip: f64,
    /// What gppo multiplies the two clipped cases by: the low one, the high one.
    #[option(default = [1.0, 1.0], min = 0)]
    gppo_betas: Vec<f64>,
    /// Coefficient of the policy's entropy, which is rewarded.
    #[option(default = 0, min = 0, live)]
    entropy: f64,
    /// Tasks: responses to each prompt.
    #[option(default = 8, min = 1, max = 4096)]
    group_size: u32,
    /// Tasks: divides the logits when responses are drawn.
    #[option(default = 1, min = 0.01)]
    temperature: f64,
    /// Tasks: only the likeliest tokens whose probabilities together reach this are drawn.
    #[option(default = 1, min = 0.01, max = 1)]
    top_p: f64,
    /// Tasks: how the losses of tokens become one number.
    #[option(default = Aggregation::TokenMean)]
    aggregation: Aggregation,
    /// Tasks: coefficient of the divergence from the policy as it was after the warm start.
    #[option(default = 0, min = 0, live)]
    kl: f64,
    /// Tasks: coefficient of the negative log-likelihood of responses that are right.
    #[option(default = 0, min = 0, live)]
    positive_sft: f64,
    /// Tasks: whether the responses to a prompt begin by stating the environment's budgets in turn.
    #[option(default = false)]
    budgets: bool,
    /// Tasks: most steps of supervised learning of known solutions before the first rollouts.
    #[option(default = 0)]
    warm_up_steps: u64,
    /// Tasks: success rate of drawn responses at which the warm start ends early.
    #[option(default = 1, min = 0, max = 1)]
    warm_up_until: f64,
    /// Tasks: solutions a step of the warm start; 0 for as many as a step has prompts.
    #[option(default = 0)]
    warm_up_prompts: u32,
    /// Tasks: learning rate of the warm start.
    #[option(default = 1e-3, min = 0)]
    warm_up_lr: f64,
    /// World: steps of every instance before an update.
    #[option(default = 32, min = 1, max = 100000)]
    horizon: u32,
    /// World: what a reward is worth a step later.
    #[option(default = 0.99, min = 0, max = 1)]
    discount: f64,
    /// World: lambda of generalised advantage estimation.
    #[option(default = 0.95, min = 0, max = 1)]
    gae_lambda: f64,
    /// World: whether advantages are brought to mean 0 and deviation 1 in each step.
    #[option(default = true)]
    whiten: bool,
    /// World: learning rate of the value network.
    #[option(default = 1e-3, min = 0)]
    critic_lr: f64,
    /// World: units of each of the value network's two hidden layers.
    #[option(default = 64, min = 1, max = 4096)]
    critic_width: u32,
    /// World: rewards are multiplied by this before anything is learned from them.
    #[option(default = 1)]
    reward_scale: f64,
    /// World: logarithm of the deviation of a continuous action at first, in halves of its range.
    #[option(default = -0.5, min = -5, max = 2)]
    log_deviation: f64,
}

/// One of the two ways to learn.
enum Way {
    Tasks(tasks::Answers),
    World(world::Actor),
}

struct PolicyGradient {
    settings: Settings,
    learner: Learner,
    way: Way,
}

/// What both ways use: the losses, and the optimiser with its schedule.
struct Learner {
    surrogate: Surrogate,
    adam: AdamOptions,
    schedule: Schedule,
    steps: u64,
    clip_grad_norm: f64,
    /// Of the policy.
    names: Vec<String>,
}

/// Version of the saved bytes.
const FORMAT: u8 = 1;

impl Trainer for PolicyGradient {
    type Options = Settings;

    fn new(run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let two = |name: &str, given: &[f64]| match given {
            [a, b] => Ok([*a, *b]),
            _ => Err(Error::invalid_option(format!(
                "`{name}` must be two numbers; there are {}",
                given.len()
            ))),
        };
        let [beta1, beta2] = two("adam-betas", &settings.adam_betas)?;
        let names = ParameterSet::main().trainable();
        if names.is_empty() {
            return Err(Error::incompatible("the model has no trainable parameters"));
        }
        let learner = Learner {
            surrogate: Surrogate {
                rule: settings.loss,
                clip_low: settings.clip_low,
                clip_high: settings.clip_high,
                dual_clip: settings.dual_clip,
                betas: two("gppo-betas", &settings.gppo_betas)?,
            },
            adam: AdamOptions {
                lr: settings.lr,
                beta1,
                beta2,
                eps: settings.eps,
                weight_decay: settings.weight_decay,
            },
            schedule: settings.schedule,
            steps: run.steps,
            clip_grad_norm: settings.clip_grad_norm,
            names,
        };
        let way = match environment() {
            EnvironmentKind::Tasks(spec) => Way::Tasks(tasks::Answers::new(run, &settings, spec)?),
            EnvironmentKind::Mdp(spec) => Way::World(world::Actor::new(run, &settings, spec)?),
            EnvironmentKind::None => {
                return Err(Error::incompatible(
                    "this trainer learns from rewards and the run has no environment; put [environment] with \
                     plugin = \"modular-arithmetic\", say, in the place of [data]",
                ));
            }
        };
        Ok(PolicyGradient {
            settings,
            learner,
            way,
        })
    }

    fn step(&mut self, at: &StepInfo) -> StepReport {
        match &mut self.way {
            Way::Tasks(answers) => answers.step(at, &self.settings, &self.learner),
            Way::World(actor) => actor.step(at, &self.settings, &self.learner),
        }
    }

    /// The loss of the newest rollouts, the same for every sample of the batch, whatever the batch holds: its mean
    /// is what the last step minimised, so a pruner that asks for gradients gets the policy's. Before there are
    /// rollouts: the negative log-likelihood of solutions (tasks), or 0 (world).
    fn objective(&self, batch: &Batch) -> Tensor {
        let loss = match &self.way {
            Way::Tasks(answers) => answers.objective(&self.settings, &self.learner, batch.count()),
            Way::World(actor) => actor.objective(&self.settings, &self.learner, batch),
        };
        loss.broadcast_to(&[batch.count()])
    }

    fn predict(&self, batch: &Batch) -> Prediction {
        match &self.way {
            Way::Tasks(answers) => answers.predict(batch),
            Way::World(actor) => actor.predict(batch),
        }
    }

    fn set_knob(&mut self, name: &str, value: &Value) -> Result<(), Error> {
        self.settings.set_live(name, value)?;
        self.learner.adam.lr = self.settings.lr;
        Ok(())
    }

    fn save(&self) -> Vec<u8> {
        let state = Writer::new(FORMAT).bytes(&self.settings.save_live());
        match &self.way {
            Way::Tasks(answers) => answers.save(state),
            Way::World(actor) => actor.save(state),
        }
        .finish()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        let mut state = Reader::new(state, FORMAT)?;
        self.settings.restore_live(state.bytes()?)?;
        self.learner.adam.lr = self.settings.lr;
        match &mut self.way {
            Way::Tasks(answers) => answers.restore(&mut state)?,
            Way::World(actor) => actor.restore(&mut state)?,
        }
        state.end()
    }
}

impl Learner {
    /// The factor of the learning rates at a step.
    fn factor(&self, at: &StepInfo) -> f64 {
        self.schedule.factor(at.step, self.steps, 0)
    }

    /// Whether a step's metrics are told. All are in a run of up to 2000 steps; in longer ones and in later rounds
    /// fewer, at most 4000 in all, so that the log's limit holds whatever the length of the run.
    fn tells(&self, at: &StepInfo) -> bool {
        at.step
            .is_multiple_of((1 + self.steps / 2000) << at.round.min(32))
    }

    /// One step of AdamW on all trainable parameters of the given sets; the norm of the gradient before clipping.
    fn update(&self, sets: &[(&ParameterSet, &[String])], loss: &Tensor, lr: f64) -> f64 {
        let values: Vec<Tensor> = sets
            .iter()
            .flat_map(|(set, names)| set.values(names))
            .collect();
        let grads = autograd::grad(loss, &values.iter().collect::<Vec<_>>());
        // Held over the update, the values would have to be copied first.
        drop(values);
        let limit = match self.clip_grad_norm {
            0.0 => f64::INFINITY,
            limit => limit,
        };
        let (mut grads, norm) = clip_grad_norm(&grads, limit);
        for (set, names) in sets {
            let rest = grads.split_off(names.len());
            set.adamw(names, &grads, AdamOptions { lr, ..self.adam });
            grads = rest;
        }
        norm.item()
    }
}

/// The numbers 0..n in a random order, in so many parts of nearly one size.
fn parts(n: usize, count: u32, key: &[u64]) -> Vec<Vec<usize>> {
    let bits = random::bits(key, n as u32);
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by_key(|&place| (bits[place], place));
    cut(&order, count)
}

fn cut(order: &[usize], count: u32) -> Vec<Vec<usize>> {
    let count = (count as usize).clamp(1, order.len().max(1));
    let border = |part: usize| order.len() * part / count;
    (0..count)
        .map(|part| order[border(part)..border(part + 1)].to_vec())
        .collect()
}

espalier_sdk::export!(trainer: PolicyGradient);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_lies_in_its_own_range() {
        let settings = Settings::defaults();
        assert_eq!((settings.clip_low, settings.clip_high), (0.2, 0.28));
        let live: Vec<_> = Settings::infos()
            .into_iter()
            .filter(|info| info.live)
            .collect();
        assert_eq!(live.len(), 4);
    }

    #[test]
    fn parts_hold_everything_once_and_differ_by_one_at_most() {
        let order: Vec<usize> = (0..10).collect();
        let sizes: Vec<usize> = cut(&order, 4).iter().map(Vec::len).collect();
        assert_eq!(sizes, [2, 3, 2, 3]);
        assert_eq!(cut(&order, 4).concat(), order);
        assert_eq!(cut(&order[..2], 5).len(), 2);
        assert_eq!(cut(&[], 3), [Vec::<usize>::new()]);
    }
}
