//! Prompts, verdicts, rollouts and advantages: what environments, normalisers and trainers tell each other.

use std::collections::BTreeMap;

use crate::bindings::host::espalier::plugin::rewards as host;

pub use host::{Advantage, Bounds, Drift, Prompt, RewardSpec, Rollout, Segment, TaskSpec, Verdict};

impl RewardSpec {
    /// An outcome reward from `min` to `max` and no terms.
    ///
    /// ```
    /// # use espalier_sdk::rewards::RewardSpec;
    /// let spec = RewardSpec::outcome(0.0, 1.0);
    /// assert!(spec.terms.is_empty());
    /// ```
    pub fn outcome(min: f64, max: f64) -> RewardSpec {
        RewardSpec {
            outcome: Bounds {
                name: String::new(),
                min,
                max,
            },
            terms: Vec::new(),
        }
    }

    /// The same with another term.
    ///
    /// ```
    /// # use espalier_sdk::rewards::RewardSpec;
    /// let spec = RewardSpec::outcome(0.0, 1.0).term("format", 0.0, 0.1);
    /// assert_eq!(spec.terms[0].name, "format");
    /// ```
    pub fn term(mut self, name: &str, min: f64, max: f64) -> RewardSpec {
        self.terms.push(Bounds {
            name: name.into(),
            min,
            max,
        });
        self
    }
}

impl Bounds {
    /// The reward on a scale from 0 (`min`) to 1 (`max`); 0 where the range is a point.
    ///
    /// ```
    /// # use espalier_sdk::rewards::RewardSpec;
    /// assert_eq!(RewardSpec::outcome(-1.0, 3.0).outcome.unit(1.0), 0.5);
    /// ```
    pub fn unit(&self, reward: f64) -> f64 {
        match self.max > self.min {
            true => (reward - self.min) / (self.max - self.min),
            false => 0.0,
        }
    }
}

impl Verdict {
    /// Right or wrong: reward 1 or 0, readable, no terms, no parts.
    ///
    /// ```
    /// # use espalier_sdk::rewards::Verdict;
    /// assert_eq!(Verdict::outcome(true).reward, 1.0);
    /// ```
    pub fn outcome(correct: bool) -> Verdict {
        Verdict {
            reward: f64::from(u8::from(correct)),
            terms: Vec::new(),
            correct,
            well_formed: true,
            segments: Vec::new(),
        }
    }
}

impl Verdict {
    /// What the environment pays for the way: its term `process`, or the outcome reward where it has none.
    ///
    /// ```
    /// # use espalier_sdk::rewards::Verdict;
    /// let mut verdict = Verdict::outcome(false);
    /// assert_eq!(verdict.process(), 0.0);
    /// verdict.terms.push(("process".into(), 0.7));
    /// assert_eq!(verdict.process(), 0.7);
    /// ```
    pub fn process(&self) -> f64 {
        let term = self.terms.iter().find(|(name, _)| name == "process");
        term.map_or(self.reward, |(_, value)| *value)
    }
}

impl Rollout {
    /// What the trainer states under a name.
    ///
    /// ```no_run
    /// # use espalier_sdk::rewards::Rollout;
    /// # fn f(rollout: &Rollout) {
    /// let hinted = rollout.tag("hint").is_some();
    /// # }
    /// ```
    pub fn tag(&self, name: &str) -> Option<f64> {
        let found = self.tags.iter().find(|(tag, _)| tag == name);
        found.map(|(_, value)| *value)
    }

    /// The number of tokens that the response was told to use, where it was told.
    ///
    /// ```no_run
    /// # use espalier_sdk::rewards::Rollout;
    /// # fn f(rollout: &Rollout) {
    /// let over = rollout.budget().is_some_and(|tokens| f64::from(rollout.length) > tokens);
    /// # }
    /// ```
    pub fn budget(&self) -> Option<f64> {
        self.tag("budget")
    }
}

impl Advantage {
    /// The same for every token.
    ///
    /// ```
    /// # use espalier_sdk::rewards::Advantage;
    /// assert_eq!(Advantage::of(0.5).values, [0.5]);
    /// ```
    pub fn of(value: f64) -> Advantage {
        Advantage {
            values: vec![value],
            keep: true,
        }
    }

    /// The trainer leaves the rollout out.
    ///
    /// ```
    /// # use espalier_sdk::rewards::Advantage;
    /// assert!(!Advantage::dropped().keep);
    /// ```
    pub fn dropped() -> Advantage {
        Advantage {
            values: vec![0.0],
            keep: false,
        }
    }
}

/// Places of the rollouts of each group, groups in the order in which they first appear.
///
/// ```no_run
/// # use espalier_sdk::rewards::{Rollout, groups, mean};
/// # fn f(batch: &[Rollout]) {
/// let means: Vec<f64> = groups(batch).iter().map(|group| mean(group.iter().map(|&i| batch[i].reward))).collect();
/// # }
/// ```
pub fn groups(batch: &[Rollout]) -> Vec<Vec<usize>> {
    let mut number: BTreeMap<u64, usize> = BTreeMap::new();
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for (place, rollout) in batch.iter().enumerate() {
        let group = *number.entry(rollout.group).or_insert_with(|| {
            groups.push(Vec::new());
            groups.len() - 1
        });
        groups[group].push(place);
    }
    groups
}

/// The mean; 0 of nothing.
///
/// ```
/// # use espalier_sdk::rewards::mean;
/// assert_eq!(mean([1.0, 2.0, 6.0]), 3.0);
/// ```
pub fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let (sum, count) = values
        .into_iter()
        .fold((0.0, 0_u64), |(sum, count), x| (sum + x, count + 1));
    match count {
        0 => 0.0,
        n => sum / n as f64,
    }
}

/// The standard deviation with `n - 1` below the sum of squares (the unbiased variance's root), as PyTorch's `std`;
/// 0 of fewer than two values.
///
/// ```
/// # use espalier_sdk::rewards::deviation;
/// assert_eq!(deviation(&[1.0, 3.0, 5.0]), 2.0);
/// ```
pub fn deviation(values: &[f64]) -> f64 {
    if values.len() < 2 {
        return 0.0;
    }
    let center = mean(values.iter().copied());
    let squares: f64 = values.iter().map(|x| (x - center) * (x - center)).sum();
    (squares / (values.len() - 1) as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout(group: u64) -> Rollout {
        Rollout {
            sample: 0,
            prompt: group,
            group,
            parent: None,
            task: String::new(),
            reward: 0.0,
            terms: Vec::new(),
            correct: false,
            well_formed: true,
            length: 1,
            tags: vec![("budget".into(), 8.0)],
            segments: Vec::new(),
        }
    }

    #[test]
    fn groups_keep_the_order_of_the_batch() {
        let batch = [7, 3, 7, 9, 3].map(rollout);
        assert_eq!(groups(&batch), [vec![0, 2], vec![1, 4], vec![3]]);
        assert_eq!(batch[0].budget(), Some(8.0));
        assert_eq!(batch[0].tag("hint"), None);
    }

    #[test]
    fn statistics_of_few_values_are_defined() {
        assert_eq!(
            (mean([]), deviation(&[]), deviation(&[3.0])),
            (0.0, 0.0, 0.0)
        );
        assert!((deviation(&[1.0, 0.0, 0.0, 0.0]) - 0.5).abs() < 1e-15);
        assert_eq!(RewardSpec::outcome(-1.0, 3.0).outcome.unit(1.0), 0.5);
        assert_eq!(RewardSpec::outcome(1.0, 1.0).outcome.unit(1.0), 0.0);
    }
}
