//! Prompts, responses, verified rewards and advantages, and worlds to act in. Trainers only.
//!
//! The host calls the run's environment and its normaliser; a trainer can't tell which they are.

use crate::bindings::host::espalier::plugin::rollouts as host;
use crate::model::Model;
use crate::rewards::{Advantage, Prompt, TaskSpec, Verdict};
use crate::tensor::Tensor;

pub use crate::control::Transition;
pub use host::{EnvironmentKind, Grouped, Sample, SampleEnd, SampleRequest};

/// Samples under a policy: n samples, `length` tokens the longest.
///
/// ```no_run
/// # use espalier_sdk::rollouts::Scored;
/// # fn f(scored: &Scored) {
/// let tokens = scored.mask.sum(&[]);
/// let loss = -(&scored.logprobs * &scored.mask).sum(&[]) / tokens;
/// # }
/// ```
pub struct Scored {
    /// Log-probability of each token at temperature 1, tracked; 0 for padding: `[n, length]`.
    pub logprobs: Tensor,
    /// f32: 1 for tokens of the response, 0 for padding: `[n, length]`.
    pub mask: Tensor,
    /// Entropy of the distribution from which each token came, in nats, tracked; 0 for padding: `[n, length]`.
    pub entropy: Option<Tensor>,
}

/// `count` responses to a prompt at temperature 1 from all tokens, up to the environment's stop token.
///
/// ```no_run
/// # use espalier_sdk::rewards::TaskSpec;
/// # use espalier_sdk::rollouts;
/// # fn f(tasks: &TaskSpec, step: u64) {
/// let requests: Vec<_> = rollouts::prompts(16)
///     .iter()
///     .map(|prompt| rollouts::request(tasks, prompt, 8, &[step, prompt.id]))
///     .collect();
/// # }
/// ```
pub fn request(tasks: &TaskSpec, prompt: &Prompt, count: u32, key: &[u64]) -> SampleRequest {
    SampleRequest {
        prompt: prompt.id,
        context: prompt.tokens.clone(),
        forced: Vec::new(),
        count,
        stop: vec![vec![tasks.stop]],
        max_tokens: tasks.max_response,
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        key: key.to_vec(),
    }
}

/// One sample made of given tokens: of a known solution, say.
///
/// ```no_run
/// # use espalier_sdk::rewards::Prompt;
/// # use espalier_sdk::rollouts;
/// # fn f(prompt: &Prompt) {
/// let solution = prompt.solution.as_ref().map(|tokens| rollouts::given(prompt, tokens));
/// # }
/// ```
pub fn given(prompt: &Prompt, tokens: &[u32]) -> SampleRequest {
    SampleRequest {
        prompt: prompt.id,
        context: prompt.tokens.clone(),
        forced: tokens.to_vec(),
        count: 1,
        stop: Vec::new(),
        max_tokens: 0,
        temperature: 1.0,
        top_p: 1.0,
        top_k: 0,
        key: Vec::new(),
    }
}

/// What the run's environment is.
///
/// ```no_run
/// # use espalier_sdk::rollouts::{self, EnvironmentKind};
/// if let EnvironmentKind::Tasks(tasks) = rollouts::environment() {
///     espalier_sdk::log::info(format!("{} tokens", tasks.vocabulary.len()));
/// }
/// ```
pub fn environment() -> EnvironmentKind {
    host::environment()
}

/// So many different prompts of the training split, drawn at random, or with the normaliser's weights where it has
/// some.
///
/// ```no_run
/// # use espalier_sdk::rollouts;
/// let prompts = rollouts::prompts(16);
/// ```
pub fn prompts(n: u32) -> Vec<Prompt> {
    host::prompts(n)
}

/// Responses of a policy, request after request. The host keeps them until the next step begins.
///
/// ```no_run
/// # use espalier_sdk::Model;
/// # use espalier_sdk::rewards::{Prompt, TaskSpec};
/// # use espalier_sdk::rollouts;
/// # fn f(tasks: &TaskSpec, prompt: &Prompt) {
/// let samples = rollouts::generate(&Model::main(), &[rollouts::request(tasks, prompt, 8, &[0])]);
/// # }
/// ```
pub fn generate(model: &Model, requests: &[SampleRequest]) -> Vec<Sample> {
    host::generate(model.raw(), requests)
}

/// The tokens of samples under a policy as it is now.
///
/// ```no_run
/// # use espalier_sdk::Model;
/// # use espalier_sdk::rollouts;
/// # fn f(samples: &[u64]) {
/// let scored = rollouts::score(&Model::main(), samples, false);
/// # }
/// ```
pub fn score(model: &Model, samples: &[u64], entropy: bool) -> Scored {
    let scored = host::score(model.raw(), samples, entropy);
    Scored {
        logprobs: Tensor::from_raw(scored.logprobs),
        mask: Tensor::from_raw(scored.mask),
        entropy: scored.entropy.map(Tensor::from_raw),
    }
}

/// Asks the environment.
///
/// ```no_run
/// # use espalier_sdk::rollouts;
/// # fn f(samples: &[u64]) {
/// let correct = rollouts::verify(samples).iter().filter(|verdict| verdict.correct).count();
/// # }
/// ```
pub fn verify(samples: &[u64]) -> Vec<Verdict> {
    host::verify(samples)
}

/// Asks the normaliser about verified samples, once for each update of the policy.
///
/// ```no_run
/// # use espalier_sdk::rollouts::{self, Grouped};
/// # fn f(samples: &[Grouped]) {
/// let kept = rollouts::advantages(samples).into_iter().filter(|a| a.keep);
/// # }
/// ```
pub fn advantages(samples: &[Grouped]) -> Vec<Advantage> {
    host::advantages(samples)
}

/// Begins an episode in each of `n` instances; the observations, instance after instance.
///
/// ```no_run
/// # use espalier_sdk::rollouts;
/// let observations = rollouts::reset(8, &[0]);
/// ```
pub fn reset(n: u32, key: &[u64]) -> Vec<f64> {
    host::reset(n, key)
}

/// One action for each instance.
///
/// ```no_run
/// # use espalier_sdk::rollouts;
/// # fn f(actions: &[f64]) {
/// let transition = rollouts::step(actions);
/// let total: f64 = transition.rewards.iter().sum();
/// # }
/// ```
pub fn step(actions: &[f64]) -> Transition {
    host::step(actions)
}
