//! What a token (or an action) costs the policy, and how the costs are put together.
//!
//! With r = exp(log p - log p when it was drawn) and the advantage A, l and h the clip widths, sg the value without
//! its gradient:
//!
//! | rule | loss | where |
//! | --- | --- | --- |
//! | reinforce | -A log p | everywhere |
//! | ppo | max(-A r, -A clip(r, 1 - l, 1 + h)) | no gradient beyond the bound in the rewarded direction |
//! | gppo | -A b2 (1 + h) r / sg(r) | A > 0 and r > 1 + h |
//! |      | -A b1 (1 - l) r / sg(r) | A < 0 and r < 1 - l |
//! |      | -A r | elsewhere |
//! | cispo | -A sg(clip(r, 1 - l, 1 + h)) log p | everywhere |
//!
//! Williams 1992; Schulman et al. 2017, equation 7; Klear-Reasoner (arXiv 2508.07629), the gradient-preserving clip;
//! MiniMax-M1 (arXiv 2506.13585), CISPO. The second bound of Ye et al. 2020 ("dual clip") comes after ppo and gppo:
//! for A < 0 the loss is at most -A c, without gradient beyond.

use espalier_sdk::{Choice, Tensor};

/// What the advantage of a token multiplies.
#[derive(Choice, Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    Reinforce,
    Ppo,
    Gppo,
    Cispo,
}

/// How the losses of tokens become one number.
#[derive(Choice, Clone, Copy, Debug, PartialEq)]
pub enum Aggregation {
    /// The mean over all tokens: long responses weigh more.
    TokenMean,
    /// The mean over responses of the mean over their tokens.
    SequenceMean,
    /// The mean over responses of the sum over their tokens.
    SequenceSum,
}

/// A rule with its bounds.
#[derive(Clone, Debug)]
pub struct Surrogate {
    pub rule: Rule,
    /// l: how far below 1 the ratio goes.
    pub clip_low: f64,
    /// h: how far above 1 the ratio goes.
    pub clip_high: f64,
    /// c; 0 for none.
    pub dual_clip: f64,
    /// b1 and b2 of gppo.
    pub betas: [f64; 2],
}

/// Beyond this a log-ratio is cut before it becomes a ratio, so that nothing overflows.
const MOST: f64 = 20.0;

impl Surrogate {
    /// Losses, one an element; `logprobs` tracked, `old` and `advantages` without graph, all of one shape.
    pub fn losses(&self, logprobs: &Tensor, old: &Tensor, advantages: &Tensor) -> Tensor {
        if self.rule == Rule::Reinforce {
            return -(advantages * logprobs);
        }
        let change = logprobs - old;
        let ratio = change.clip(-MOST, MOST).exp();
        let (low, high) = (1.0 - self.clip_low, 1.0 + self.clip_high);
        if self.rule == Rule::Cispo {
            return -(ratio.clip(low, high).detach() * advantages * logprobs);
        }
        // 1, with the gradient of r / sg(r): exact where r itself would be 0 or infinite.
        let one = match self.rule {
            Rule::Gppo => (&change - change.detach()).exp(),
            _ => change.ones_like(),
        };
        let [below, above] = match self.rule {
            Rule::Gppo => self.betas,
            _ => [1.0, 1.0],
        };
        let (praised, blamed) = (advantages.greater(0.0), advantages.less(0.0));
        let too_high = praised.logical_and(&ratio.greater(high));
        let too_low = blamed.logical_and(&ratio.less(low));
        let bounded = too_low.where_(&(&one * (below * low)), &ratio);
        let bounded = too_high.where_(&(&one * (above * high)), &bounded);
        let losses = -(advantages * bounded);
        match self.dual_clip {
            0.0 => losses,
            most => blamed.where_(&losses.minimum(&(advantages * -most)), &losses),
        }
    }

    /// Whether ppo would cut the gradient of an element.
    pub fn cuts(&self, logprob: f64, old: f64, advantage: f64) -> bool {
        let ratio = (logprob - old).exp();
        advantage > 0.0 && ratio > 1.0 + self.clip_high
            || advantage < 0.0 && ratio < 1.0 - self.clip_low
    }
}

/// The estimate of the divergence from a reference that has no bias and is never negative (Schulman's k3):
/// q/p - 1 - log(q/p) with p the policy and q the reference. Gradient through p.
pub fn divergence(logprobs: &Tensor, reference: &Tensor) -> Tensor {
    let change = (reference - logprobs).clip(-MOST, MOST);
    change.expm1() - change
}

/// What the loss of a token of each response is multiplied by before all are added up; `lengths` are those of the
/// responses that take part, 0 for one that is left out. All zeros if none takes part.
pub fn weights(lengths: &[usize], aggregation: Aggregation) -> Vec<f64> {
    let tokens: usize = lengths.iter().sum();
    let responses = lengths.iter().filter(|&&length| length > 0).count();
    let weight = |&length: &usize| match (length, aggregation) {
        (0, _) => 0.0,
        (_, Aggregation::TokenMean) => 1.0 / tokens as f64,
        (_, Aggregation::SequenceMean) => 1.0 / (responses * length) as f64,
        (_, Aggregation::SequenceSum) => 1.0 / responses as f64,
    };
    lengths.iter().map(weight).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_response_weighs_as_the_aggregation_says() {
        let lengths = [1, 3, 0];
        assert_eq!(weights(&lengths, Aggregation::TokenMean), [0.25, 0.25, 0.0]);
        assert_eq!(
            weights(&lengths, Aggregation::SequenceMean),
            [0.5, 1.0 / 6.0, 0.0]
        );
        assert_eq!(weights(&lengths, Aggregation::SequenceSum), [0.5, 0.5, 0.0]);
        assert_eq!(weights(&[0, 0], Aggregation::TokenMean), [0.0, 0.0]);
        assert!(weights(&[], Aggregation::SequenceMean).is_empty());
    }

    #[test]
    fn only_the_rewarded_direction_is_cut() {
        let surrogate = Surrogate {
            rule: Rule::Ppo,
            clip_low: 0.2,
            clip_high: 0.28,
            dual_clip: 0.0,
            betas: [1.0, 1.0],
        };
        let cuts = |ratio: f64, advantage| surrogate.cuts(ratio.ln(), 0.0, advantage);
        assert!(cuts(1.5, 1.0) && cuts(0.5, -1.0));
        assert!(!cuts(0.5, 1.0) && !cuts(1.5, -1.0) && !cuts(1.2, 1.0) && !cuts(1.5, 0.0));
    }
}
