//! Tuner: truncation selection. The worst share of a population copies from the best share, and varies what it took over.
//!
//! Jaderberg et al. 2017 (arXiv 1711.09846), section 3. Put your own paper and equation here, and say where this differs
//! and why.

use espalier_sdk::options::{Setting, Value};
use espalier_sdk::state::{Reader, Writer};
use espalier_sdk::tuner::{Change, Domain, KnobInfo, MemberReport, Tuner};
use espalier_sdk::{Error, Options, RunInfo, random};

/// Options under `[tuner.with]`.
#[derive(Options)]
struct Settings {
    /// Share of the population that copies, and that is copied from; at least one member each.
    #[option(default = 0.2, min = 0, max = 0.5)]
    fraction: f64,
    /// What a number is multiplied by after a copy: this, or one over it.
    #[option(default = 1.2, min = 1)]
    factor: f64,
}

/// Uses of randomness: first number of a key.
const PRIOR: u64 = 0;
const SOURCE: u64 = 1;
const FACTOR: u64 = 2;

struct __TYPE__ {
    settings: Settings,
    space: Vec<KnobInfo>,
    members: u32,
    generation: u64,
}

impl Tuner for __TYPE__ {
    type Options = Settings;

    fn new(
        _run: &RunInfo,
        settings: Settings,
        space: &[KnobInfo],
        members: u32,
    ) -> Result<Self, Error> {
        Ok(__TYPE__ {
            settings,
            space: space.to_vec(),
            members,
            generation: 0,
        })
    }

    fn propose(&mut self) -> Vec<Vec<Setting>> {
        let knobs = |member: u32| {
            let draws = random::uniform_list(&[PRIOR, u64::from(member)], self.space.len() as u32);
            let each = self.space.iter().zip(draws);
            each.map(|(knob, u)| (knob.name.clone(), knob.domain.at(u)))
                .collect()
        };
        (0..self.members).map(knobs).collect()
    }

    fn decide(&mut self, members: &[MemberReport]) -> Vec<Change> {
        self.generation += 1;
        let ranked = ranking(members);
        let count = share(self.settings.fraction, members.len());
        let best: Vec<usize> = ranked[..count]
            .iter()
            .copied()
            .filter(|&place| members[place].score.is_some())
            .collect();
        let worst = ranked[ranked.len() - count..].iter();
        let mut changes = Vec::new();
        for member in worst.map(|&place| &members[place]).filter(|m| !m.done) {
            let key = [SOURCE, self.generation, u64::from(member.member)];
            let u = random::uniform_list(&key, 1)[0];
            let Some(&from) = best.get((u * best.len() as f64) as usize) else {
                continue;
            };
            changes.push(Change {
                copy_from: Some(members[from].member),
                knobs: self.vary(&members[from].knobs, member.member),
                ..Change::of(member.member)
            });
        }
        changes
    }

    fn save(&self) -> Vec<u8> {
        Writer::new(1).u64(self.generation).finish()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        let mut state = Reader::new(state, 1)?;
        self.generation = state.u64()?;
        state.end()
    }
}

impl __TYPE__ {
    fn vary(&self, knobs: &[Setting], member: u32) -> Vec<Setting> {
        let key = [FACTOR, self.generation, u64::from(member)];
        let draws = random::uniform_list(&key, self.space.len() as u32);
        let mut varied = Vec::new();
        for (knob, u) in self.space.iter().zip(draws) {
            let Some((name, value)) = knobs.iter().find(|(name, _)| *name == knob.name) else {
                continue;
            };
            let factor = match u < 0.5 {
                true => self.settings.factor,
                false => 1.0 / self.settings.factor,
            };
            varied.push((name.clone(), times(&knob.domain, value, factor)));
        }
        varied
    }
}

/// Members from the best to the worst; those without a score come last, equals in their order.
fn ranking(members: &[MemberReport]) -> Vec<usize> {
    let rank = |place: &usize| members[*place].score.unwrap_or(f64::NEG_INFINITY);
    let mut ranked: Vec<usize> = (0..members.len()).collect();
    ranked.sort_by(|a, b| rank(b).total_cmp(&rank(a)));
    ranked
}

/// A fraction of the members rounded down, at least one, at most half.
fn share(fraction: f64, members: usize) -> usize {
    ((fraction * members as f64) as usize)
        .max(1)
        .min(members / 2)
}

/// A number times a factor, within its domain; words stay as they are.
fn times(domain: &Domain, value: &Value, factor: f64) -> Value {
    match (domain, value) {
        (Domain::Number(interval), Value::Number(x)) => Value::Number(interval.clip(x * factor)),
        (Domain::Integer(interval), Value::Integer(n)) => {
            Value::Integer(interval.clip((*n as f64 * factor).round()) as i64)
        }
        _ => value.clone(),
    }
}

espalier_sdk::export!(tuner: __TYPE__);

#[cfg(test)]
mod tests {
    use super::*;
    use espalier_sdk::tuner::Interval;

    #[test]
    fn at_least_one_member_copies_and_at_most_half() {
        assert_eq!([share(0.2, 1), share(0.2, 4), share(0.2, 10), share(0.5, 5)], [0, 1, 2, 2]);
    }

    #[test]
    fn numbers_stay_within_their_bounds() {
        let interval = Interval {
            low: 0.1,
            high: 1.0,
            log: true,
        };
        let varied = times(&Domain::Number(interval), &Value::Number(0.9), 1.2);
        assert!(matches!(varied, Value::Number(x) if x == 1.0));
    }

    #[test]
    fn members_without_a_score_rank_last() {
        let member = |member, score| MemberReport {
            member,
            step: 10,
            score,
            metrics: Vec::new(),
            knobs: Vec::new(),
            done: false,
        };
        let members = [member(0, None), member(1, Some(-0.2)), member(2, Some(0.9))];
        assert_eq!(ranking(&members), [2, 1, 0]);
    }

    #[test]
    fn defaults_lie_in_their_ranges() {
        assert_eq!(Settings::defaults().factor, 1.2);
    }
}
