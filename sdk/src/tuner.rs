//! Tuners: which hyperparameters come next, for one run or for a population of runs that train side by side.

use crate::options::{Options, Setting, Value};
use crate::run::{Error, RunInfo};

/// What becomes of a member of the population: first the copy, then the knobs. Both of [`Change::of`] are empty.
///
/// ```
/// # use espalier_sdk::tuner::Change;
/// let change = Change { copy_from: Some(3), ..Change::of(0) };
/// assert_eq!((change.member, change.stop), (0, false));
/// ```
pub use crate::bindings::tuner::exports::espalier::plugin::tuning::Change;
/// What a knob may be set to.
///
/// ```
/// # use espalier_sdk::tuner::{Domain, Interval};
/// # use espalier_sdk::options::Value;
/// let lr = Domain::Number(Interval { low: 1e-4, high: 1.0, log: true });
/// // Half way in ratios.
/// let Value::Number(middle) = lr.at(0.5) else { unreachable!() };
/// assert!((middle - 1e-2).abs() < 1e-12);
/// ```
pub use crate::bindings::tuner::exports::espalier::plugin::tuning::Domain;
/// Bounds of a number.
///
/// ```
/// # use espalier_sdk::tuner::Interval;
/// let rate = Interval { low: 0.0, high: 0.7, log: false };
/// assert!(rate.low < rate.high);
/// ```
pub use crate::bindings::tuner::exports::espalier::plugin::tuning::Interval;
/// A knob: something of the run that may be changed between two steps.
///
/// ```
/// # use espalier_sdk::tuner::{Domain, Interval, KnobInfo};
/// # use espalier_sdk::options::Value;
/// let lr = KnobInfo {
///     name: "trainer.lr".into(),
///     domain: Domain::Number(Interval { low: 1e-4, high: 1.0, log: true }),
///     default: Value::Number(0.1),
/// };
/// assert_eq!(lr.name, "trainer.lr");
/// ```
pub use crate::bindings::tuner::exports::espalier::plugin::tuning::KnobInfo;
/// How a member of the population stands. `score` is higher for the better member whatever the metric is, and none
/// for one that could not be measured or is not finite.
///
/// ```
/// # use espalier_sdk::tuner::MemberReport;
/// fn best(members: &[MemberReport]) -> Option<u32> {
///     let scored = members.iter().filter_map(|m| Some((m.score?, m.member)));
///     scored.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, member)| member)
/// }
/// assert_eq!(best(&[]), None);
/// ```
pub use crate::bindings::tuner::exports::espalier::plugin::tuning::MemberReport;

/// Which hyperparameters come next. It sees numbers alone: no parameter, no model, no data.
///
/// ```no_run
/// use espalier_sdk::options::Setting;
/// use espalier_sdk::tuner::{Change, KnobInfo, MemberReport, Tuner};
/// use espalier_sdk::{Error, RunInfo, random};
///
/// /// Every member begins with knobs of its own; the worst one copies the best one, and takes its knobs too.
/// struct CopyTheBest {
///     space: Vec<KnobInfo>,
///     members: u32,
/// }
///
/// impl Tuner for CopyTheBest {
///     type Options = ();
///
///     fn new(_run: &RunInfo, _options: (), space: &[KnobInfo], members: u32) -> Result<Self, Error> {
///         Ok(CopyTheBest { space: space.to_vec(), members })
///     }
///
///     fn propose(&mut self) -> Vec<Vec<Setting>> {
///         let knobs = |member: u32| {
///             let draws = random::uniform_list(&[u64::from(member)], self.space.len() as u32);
///             let each = self.space.iter().zip(draws);
///             each.map(|(knob, u)| (knob.name.clone(), knob.domain.at(u))).collect()
///         };
///         (0..self.members).map(knobs).collect()
///     }
///
///     fn decide(&mut self, members: &[MemberReport]) -> Vec<Change> {
///         let mut ranked: Vec<&MemberReport> = members.iter().filter(|m| m.score.is_some()).collect();
///         ranked.sort_by(|a, b| b.score.partial_cmp(&a.score).unwrap_or(std::cmp::Ordering::Equal));
///         match ranked[..] {
///             [best, .., worst] if !worst.done => vec![Change {
///                 copy_from: Some(best.member),
///                 knobs: best.knobs.clone(),
///                 ..Change::of(worst.member)
///             }],
///             _ => Vec::new(),
///         }
///     }
/// }
///
/// espalier_sdk::export!(tuner: CopyTheBest);
/// ```
pub trait Tuner: Sized + 'static {
    /// What a run file may set.
    type Options: Options;

    /// Once, before anything else, with the knobs there are and the number of members. Refuses with an error for
    /// the reader of the run.
    fn new(
        run: &RunInfo,
        options: Self::Options,
        space: &[KnobInfo],
        members: u32,
    ) -> Result<Self, Error>;

    /// The knobs with which each member begins, member after member; a knob not named has its default.
    fn propose(&mut self) -> Vec<Vec<Setting>>;

    /// After so many steps of every member: what becomes of them. A member not named goes on as it is. All copies
    /// are taken from the members as they are now. A member that is done cannot be changed; it can be copied from.
    fn decide(&mut self, members: &[MemberReport]) -> Vec<Change>;

    /// Everything to be remembered.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Called after `new` with what `save` gave.
    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        crate::slots::nothing_saved(state)
    }
}

impl Change {
    /// No change of this member yet.
    ///
    /// ```
    /// # use espalier_sdk::tuner::Change;
    /// let change = Change::of(2);
    /// assert!(change.copy_from.is_none() && change.knobs.is_empty() && !change.stop);
    /// ```
    pub fn of(member: u32) -> Change {
        Change {
            member,
            copy_from: None,
            knobs: Vec::new(),
            stop: false,
        }
    }
}

impl Interval {
    /// The number nearest to `x` that lies within.
    ///
    /// ```
    /// # use espalier_sdk::tuner::Interval;
    /// assert_eq!(Interval { low: 0.0, high: 0.7, log: false }.clip(0.9), 0.7);
    /// ```
    pub fn clip(&self, x: f64) -> f64 {
        if x.is_nan() {
            self.low
        } else {
            x.max(self.low).min(self.high)
        }
    }

    /// The number that lies at a fraction `u` of the way from `low` to `high`, in ratios where the interval is of
    /// that kind.
    fn at(&self, u: f64) -> f64 {
        let x = if self.log && self.low > 0.0 {
            (self.low.ln() + u * (self.high.ln() - self.low.ln())).exp()
        } else {
            self.low + u * (self.high - self.low)
        };
        self.clip(x)
    }
}

impl Domain {
    /// The value at a fraction `u` in [0, 1) of the domain: a uniform `u` draws from it, in ratios where an interval
    /// is of that kind.
    ///
    /// ```
    /// # use espalier_sdk::tuner::{Domain, Interval};
    /// # use espalier_sdk::options::Value;
    /// let layers = Domain::Integer(Interval { low: 1.0, high: 4.0, log: false });
    /// assert!(matches!(layers.at(0.99), Value::Integer(4)));
    /// let rule = Domain::Choice(vec!["sgd".into(), "adam".into()]);
    /// assert!(matches!(rule.at(0.1), Value::Text(name) if name == "sgd"));
    /// ```
    pub fn at(&self, u: f64) -> Value {
        match self {
            Domain::Number(interval) => Value::Number(interval.at(u)),
            Domain::Integer(interval) if interval.log => {
                Value::Integer(interval.at(u).round() as i64)
            }
            // Every whole number has the same share of [0, 1).
            Domain::Integer(Interval { low, high, .. }) => {
                Value::Integer((low + u * (high - low + 1.0)).floor().min(*high) as i64)
            }
            Domain::Choice(names) => {
                let place = (u * names.len() as f64) as usize;
                let name = names.get(place).or(names.last());
                Value::Text(name.cloned().unwrap_or_default())
            }
        }
    }

    /// Whether a value may be set.
    ///
    /// ```
    /// # use espalier_sdk::tuner::{Domain, Interval};
    /// # use espalier_sdk::options::Value;
    /// let rate = Domain::Number(Interval { low: 0.0, high: 0.7, log: false });
    /// assert!(rate.holds(&Value::Number(0.5)) && !rate.holds(&Value::Number(0.9)));
    /// ```
    pub fn holds(&self, value: &Value) -> bool {
        match (self, value) {
            (Domain::Number(interval), Value::Number(x)) => {
                (interval.low..=interval.high).contains(x)
            }
            (Domain::Integer(interval), Value::Integer(n)) => {
                (interval.low..=interval.high).contains(&(*n as f64))
            }
            (Domain::Choice(names), Value::Text(name)) => names.contains(name),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_is_drawn_lies_within_its_domain() {
        let interval = |low, high, log| Interval { low, high, log };
        let domains = [
            Domain::Number(interval(1e-5, 1.0, true)),
            Domain::Number(interval(0.0, 0.7, false)),
            Domain::Integer(interval(1.0, 4.0, false)),
            Domain::Integer(interval(1.0, 1000.0, true)),
            Domain::Choice(vec!["a".into(), "b".into(), "c".into()]),
        ];
        for domain in &domains {
            for step in 0..=1000 {
                let u = f64::from(step) / 1000.0;
                assert!(domain.holds(&domain.at(u)), "{domain:?} at {u}");
            }
        }
    }

    #[test]
    fn each_whole_number_and_each_choice_is_as_likely() {
        let domain = Domain::Integer(Interval {
            low: 1.0,
            high: 4.0,
            log: false,
        });
        let mut counts = [0; 5];
        for step in 0..1000 {
            if let Value::Integer(n) = domain.at(f64::from(step) / 1000.0) {
                counts[n as usize] += 1;
            }
        }
        assert_eq!(counts, [0, 250, 250, 250, 250]);
    }
}
