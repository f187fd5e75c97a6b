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
pub struct Scored {
    /// Log-probability of each token at temperature 1, tracked; 0 for padding: `[n, length]`.
    pub logprobs: Tensor,
    /// f32: 1 for tokens of the response, 0 for padding: `[n, length]`.
    pub mask: Tensor,
    /// Entropy of the distribution from which each token came, in nats, tracked; 0 for padding: `[n, length]`.
    pub entropy: Option<Tensor>,
}

/// `count` responses to a prompt at temperature 1 from all tokens, up to the environment's stop token.
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
pub fn environment() -> EnvironmentKind {
    host::environment()
}

/// So many different prompts of the training split, drawn at random, or with the normaliser's weights where it has
/// some.
pub fn prompts(n: u32) -> Vec<Prompt> {
    host::prompts(n)
}

/// Responses of a policy, request after request. The host keeps them until the next step begins.
pub fn generate(model: &Model, requests: &[SampleRequest]) -> Vec<Sample> {
    host::generate(model.raw(), requests)
}

/// The tokens of samples under a policy as it is now.
pub fn score(model: &Model, samples: &[u64], entropy: bool) -> Scored {
    let scored = host::score(model.raw(), samples, entropy);
    Scored {
        logprobs: Tensor::from_raw(scored.logprobs),
        mask: Tensor::from_raw(scored.mask),
        entropy: scored.entropy.map(Tensor::from_raw),
    }
}

/// Asks the environment.
pub fn verify(samples: &[u64]) -> Vec<Verdict> {
    host::verify(samples)
}

/// Asks the normaliser about verified samples, once for each update of the policy.
pub fn advantages(samples: &[Grouped]) -> Vec<Advantage> {
    host::advantages(samples)
}

/// Begins an episode in each of `n` instances; the observations, instance after instance.
pub fn reset(n: u32, key: &[u64]) -> Vec<f64> {
    host::reset(n, key)
}

/// One action for each instance.
pub fn step(actions: &[f64]) -> Transition {
    host::step(actions)
}
