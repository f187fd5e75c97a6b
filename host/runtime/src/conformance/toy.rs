//! Toy problems, from numbers that are the same on every machine.

use crate::host::bindings::trainer::espalier::plugin::rewards::{Bounds, RewardSpec, Rollout};

/// A stream of numbers: splitmix64.
pub(super) struct Draw(u64);

impl Draw {
    pub(super) fn new(seed: u64) -> Draw {
        Draw(seed)
    }

    pub(super) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to 1.
    pub(super) fn unit(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// From 0 up to `n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }

    /// The numbers below `n` in some order.
    pub(super) fn order(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

/// An outcome from 0 to 1 and one term from 0 to 1.
pub(super) fn pays() -> RewardSpec {
    let bounds = |name: &str| Bounds {
        name: name.into(),
        min: 0.0,
        max: 1.0,
    };
    RewardSpec {
        outcome: bounds(""),
        terms: vec![bounds("form")],
    }
}

/// A readable response of eight tokens; right from a reward of 0.5 on.
pub(super) fn rollout(sample: usize, group: u64, reward: f64) -> Rollout {
    Rollout {
        sample: sample as u64,
        prompt: group,
        group,
        parent: None,
        task: String::new(),
        reward,
        terms: vec![("form".into(), reward)],
        correct: reward >= 0.5,
        well_formed: true,
        length: 8,
        tags: Vec::new(),
        segments: Vec::new(),
    }
}

/// Groups of rollouts as environments give them: mixed rewards, lengths and stated budgets.
pub(super) fn rollouts(seed: u64, groups: u64, size: usize) -> Vec<Rollout> {
    let mut draw = Draw::new(seed);
    let mut batch = Vec::new();
    for group in 0..groups {
        let chance = draw.unit();
        for i in 0..size {
            let reward = f64::from(u8::from(draw.unit() < chance));
            let mut one = rollout(batch.len(), group, reward);
            one.length = 1 + draw.below(60) as u32;
            one.well_formed = one.correct || draw.unit() < 0.9;
            one.terms = vec![("form".into(), f64::from(u8::from(one.well_formed)))];
            one.tags = vec![("budget".into(), [8.0, 16.0, 32.0, 64.0][i % 4])];
            batch.push(one);
        }
    }
    batch
}
