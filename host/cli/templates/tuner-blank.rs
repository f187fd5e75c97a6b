//! Tuner: every member begins with knobs of its own; the worst becomes a copy of the best.
//!
//! Put the paper and its equation here, and say where this differs and why.

use espalier_sdk::options::Setting;
use espalier_sdk::tuner::{Change, KnobInfo, MemberReport, Tuner};
use espalier_sdk::{Error, Options, RunInfo, random};

/// Options under `[tuner.with]`.
#[derive(Options)]
struct Settings {
    /// Whether the worst member becomes a copy of the best one.
    #[option(default = true)]
    copy: bool,
}

struct __TYPE__ {
    settings: Settings,
    space: Vec<KnobInfo>,
    members: u32,
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
        })
    }

    fn propose(&mut self) -> Vec<Vec<Setting>> {
        let knobs = |member: u32| {
            let draws = random::uniform_list(&[u64::from(member)], self.space.len() as u32);
            let each = self.space.iter().zip(draws);
            each.map(|(knob, u)| (knob.name.clone(), knob.domain.at(u)))
                .collect()
        };
        (0..self.members).map(knobs).collect()
    }

    fn decide(&mut self, members: &[MemberReport]) -> Vec<Change> {
        if !self.settings.copy {
            return Vec::new();
        }
        let copy = |(worst, best): (usize, usize)| Change {
            copy_from: Some(members[best].member),
            knobs: members[best].knobs.clone(),
            ..Change::of(members[worst].member)
        };
        worst_and_best(members).map(copy).into_iter().collect()
    }
}

/// The decision: which member copies which. Members without a score have diverged; one that is done stays as it is.
fn worst_and_best(members: &[MemberReport]) -> Option<(usize, usize)> {
    let rank = |place: &usize| members[*place].score.unwrap_or(f64::NEG_INFINITY);
    let by_rank = |a: &usize, b: &usize| rank(a).total_cmp(&rank(b));
    let best = (0..members.len()).max_by(by_rank)?;
    let worst = (0..members.len())
        .filter(|&place| !members[place].done)
        .min_by(by_rank)?;
    (members[best].score.is_some() && rank(&worst) < rank(&best)).then_some((worst, best))
}

espalier_sdk::export!(tuner: __TYPE__);

#[cfg(test)]
mod tests {
    use super::*;

    fn member(member: u32, score: Option<f64>, done: bool) -> MemberReport {
        MemberReport {
            member,
            step: 10,
            score,
            metrics: Vec::new(),
            knobs: Vec::new(),
            done,
        }
    }

    #[test]
    fn the_worst_member_copies_the_best() {
        let scores = [Some(0.5), Some(0.9), Some(0.1)];
        let members: Vec<_> = (0..).zip(scores).map(|(i, s)| member(i, s, false)).collect();
        assert_eq!(worst_and_best(&members), Some((2, 1)));
        assert_eq!(worst_and_best(&members[1..2]), None);
        assert_eq!(worst_and_best(&[]), None);
    }

    #[test]
    fn a_member_without_a_score_copies_and_one_that_is_done_does_not() {
        let members = [
            member(0, None, false),
            member(1, Some(0.2), false),
            member(2, Some(0.1), true),
        ];
        assert_eq!(worst_and_best(&members), Some((0, 1)));
        assert_eq!(worst_and_best(&members[1..]), None);
    }

    #[test]
    fn defaults_lie_in_their_ranges() {
        assert!(Settings::defaults().copy);
    }
}
