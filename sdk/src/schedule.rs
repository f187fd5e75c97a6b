//! Factors of the learning rate over a run.

/// How the learning rate goes down.
///
/// ```
/// # use espalier_sdk::schedule::Schedule;
/// let lr = 0.1 * Schedule::Cosine.factor(50, 100, 0);
/// assert!((lr - 0.05).abs() < 1e-12);
/// ```
#[derive(espalier_sdk_derive::Choice, Clone, Copy, Debug, PartialEq)]
pub enum Schedule {
    /// It does not.
    Constant,
    /// Along half a cosine to 0: (1 + cos(pi t)) / 2.
    Cosine,
    /// A tenth after half, a hundredth after three quarters of the run.
    Step,
    /// In a straight line to 0.
    Linear,
}

impl Schedule {
    /// The factor for a step of `steps`, after a linear rise over the first `warmup` of them.
    ///
    /// ```
    /// # use espalier_sdk::schedule::Schedule;
    /// assert_eq!(Schedule::Linear.factor(4, 110, 10), 0.5); // rising
    /// assert_eq!(Schedule::Linear.factor(60, 110, 10), 0.5); // falling
    /// ```
    pub fn factor(self, step: u64, steps: u64, warmup: u64) -> f64 {
        if step < warmup {
            return (step + 1) as f64 / warmup as f64;
        }
        let t = (step - warmup) as f64 / steps.saturating_sub(warmup).max(1) as f64;
        let t = t.min(1.0);
        match self {
            Schedule::Constant => 1.0,
            Schedule::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * t).cos()),
            Schedule::Step if t >= 0.75 => 0.01,
            Schedule::Step if t >= 0.5 => 0.1,
            Schedule::Step => 1.0,
            Schedule::Linear => 1.0 - t,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warmup_rises_to_one_and_the_schedule_begins_after_it() {
        assert_eq!(Schedule::Linear.factor(0, 110, 10), 0.1);
        assert_eq!(Schedule::Linear.factor(9, 110, 10), 1.0);
        assert_eq!(Schedule::Linear.factor(10, 110, 10), 1.0);
        assert_eq!(Schedule::Linear.factor(60, 110, 10), 0.5);
    }

    #[test]
    fn each_schedule_has_its_known_points() {
        assert!((Schedule::Cosine.factor(50, 100, 0) - 0.5).abs() < 1e-12);
        assert_eq!(Schedule::Cosine.factor(100, 100, 0), 0.0);
        assert_eq!(Schedule::Step.factor(49, 100, 0), 1.0);
        assert_eq!(Schedule::Step.factor(50, 100, 0), 0.1);
        assert_eq!(Schedule::Step.factor(75, 100, 0), 0.01);
        assert_eq!(Schedule::Constant.factor(99, 100, 0), 1.0);
        assert_eq!(Schedule::Linear.factor(5, 0, 0), 0.0);
    }
}
