//! What happened in a population, generation by generation, and the document from which it goes on.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::diagnostic::Diagnostic;
use crate::events::{Schedule, ScheduleRow};
use crate::plan::{Goal, OptionValue};
use crate::store;

/// The name of the document in the run's folder. Written last: the checkpoints that it speaks of are there.
const DOCUMENT: &str = "population.json";

/// One line for each member and generation.
const LINES: &str = "schedule.jsonl";

/// The winner's own way.
const WINNER: &str = "schedule.json";

const VERSION: u32 = 1;

/// A number that comes back to the bit: JSON has no word for some, and its readers round others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(super) struct Bits(u64);

impl From<f64> for Bits {
    fn from(x: f64) -> Bits {
        Bits(x.to_bits())
    }
}

impl Bits {
    pub(super) fn number(self) -> f64 {
        f64::from_bits(self.0)
    }
}

/// The value of a knob, to the bit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Kept {
    Number(Bits),
    Integer(i64),
    Text(String),
}

impl Kept {
    /// None for what no knob holds.
    pub(super) fn new(value: &OptionValue) -> Option<Kept> {
        match value {
            OptionValue::Float(x) => Some(Kept::Number((*x).into())),
            OptionValue::Integer(n) => Some(Kept::Integer(*n)),
            OptionValue::Text(text) => Some(Kept::Text(text.clone())),
            OptionValue::Bool(_) | OptionValue::Floats(_) => None,
        }
    }

    pub(super) fn value(&self) -> OptionValue {
        match self {
            Kept::Number(bits) => OptionValue::Float(bits.number()),
            Kept::Integer(n) => OptionValue::Integer(*n),
            Kept::Text(text) => OptionValue::Text(text.clone()),
        }
    }
}

/// Knobs in the order of the space.
pub(super) type Knobs = Vec<(String, Kept)>;

/// A member in one generation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Stretch {
    /// The member that it was a copy of when the generation began.
    pub(super) copied_from: Option<u32>,
    /// The knobs with which it trained.
    pub(super) knobs: Knobs,
    /// Steps done at the end.
    pub(super) steps: u64,
    /// The metric at the end; none where it is not finite.
    pub(super) value: Option<Bits>,
    /// Whether it had ended before: nothing was trained.
    pub(super) idle: bool,
}

/// A member as the next generation finds it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Member {
    pub(super) steps: u64,
    pub(super) over: bool,
    pub(super) knobs: Knobs,
    pub(super) value: Option<Bits>,
    pub(super) copied_from: Option<u32>,
    /// Its newest metrics, which the tuner sees.
    pub(super) metrics: Vec<(String, Bits)>,
}

/// Where a population is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    version: u32,
    /// Steps of an epoch.
    pub(super) steps_per_epoch: u64,
    pub(super) members: Vec<Member>,
    /// What the tuner has saved.
    pub(super) tuner: Vec<u8>,
    /// Every generation so far: a stretch for each member.
    pub(super) generations: Vec<Vec<Stretch>>,
    /// Length of `metrics.jsonl`: what comes after belongs to work that is lost.
    pub(super) metrics_bytes: u64,
    pub(super) seconds: f64,
}

impl State {
    pub(super) fn new(steps_per_epoch: u64, knobs: Vec<Knobs>) -> State {
        let member = |knobs| Member {
            steps: 0,
            over: false,
            knobs,
            value: None,
            copied_from: None,
            metrics: Vec::new(),
        };
        State {
            version: VERSION,
            steps_per_epoch,
            members: knobs.into_iter().map(member).collect(),
            tuner: Vec::new(),
            generations: Vec::new(),
            metrics_bytes: 0,
            seconds: 0.0,
        }
    }

    /// The state of a folder; none if it was stopped before the first generation was over.
    pub(super) fn read(folder: &Path) -> Result<Option<State>, Diagnostic> {
        let file = folder.join(DOCUMENT);
        if !file.exists() {
            return Ok(None);
        }
        let wrong = || {
            Diagnostic::new(format!("`{}` could not be read", file.display()))
                .help("it was written by another version of Espalier, or changed by hand")
        };
        let bytes = store::read_plain(&file)?;
        let state: State =
            serde_json::from_slice(&bytes).map_err(|error| wrong().because(&error))?;
        if state.version != VERSION {
            return Err(wrong().expected(format!("version {VERSION}")));
        }
        Ok(Some(state))
    }

    /// Makes the state safe, whole or not at all, and the lines that people read of it.
    pub(super) fn write(&self, folder: &Path) -> Result<(), Diagnostic> {
        let bytes = serde_json::to_vec(self).map_err(|error| {
            Diagnostic::new("the population's state could not be written as JSON").because(&error)
        })?;
        store::replace(&folder.join(DOCUMENT), &bytes)?;
        store::replace(&folder.join(LINES), self.lines().as_bytes())
    }

    fn lines(&self) -> String {
        let mut text = String::new();
        for (generation, members) in self.generations.iter().enumerate() {
            for (member, stretch) in members.iter().enumerate().filter(|(_, s)| !s.idle) {
                let knobs: serde_json::Map<_, _> = stretch
                    .knobs
                    .iter()
                    .map(|(name, value)| (name.clone(), serde_json::json!(value.value())))
                    .collect();
                let line = serde_json::json!({
                    "generation": generation + 1,
                    "member": member,
                    "step": stretch.steps,
                    "epoch": stretch.steps as f64 / self.steps_per_epoch.max(1) as f64,
                    "copied-from": stretch.copied_from,
                    "value": stretch.value.map(Bits::number),
                    "knobs": knobs,
                });
                text.push_str(&line.to_string());
                text.push('\n');
            }
        }
        text
    }

    /// The best member by its last value: the first of those that are equal; none if no value is finite.
    pub(super) fn best(&self, goal: Goal) -> Option<usize> {
        let mut best: Option<(usize, f64)> = None;
        for (place, member) in self.members.iter().enumerate() {
            let Some(score) = score(goal, member.value) else {
                continue;
            };
            if best.is_none_or(|(_, most)| score > most) {
                best = Some((place, score));
            }
        }
        best.map(|(place, _)| place)
    }

    /// How a member came to be what it is: back along the copies, to the first generation.
    pub(super) fn way(&self, member: usize, metric: &str) -> Schedule {
        let mut rows = Vec::new();
        let mut at = member;
        for (number, members) in self.generations.iter().enumerate().rev() {
            let Some(stretch) = members.get(at) else {
                break;
            };
            if !stretch.idle {
                let before = number
                    .checked_sub(1)
                    .and_then(|n| self.generations[n].get(at));
                let epoch = |steps: u64| steps as f64 / self.steps_per_epoch.max(1) as f64;
                rows.push(ScheduleRow {
                    generation: number as u64 + 1,
                    from_epoch: epoch(before.map_or(0, |before| before.steps)),
                    to_epoch: epoch(stretch.steps),
                    member: at as u32,
                    copied_from: stretch.copied_from,
                    knobs: stretch
                        .knobs
                        .iter()
                        .map(|(name, value)| (name.clone(), value.value()))
                        .collect(),
                    value: stretch.value.map(Bits::number),
                });
            }
            if let Some(from) = stretch.copied_from {
                at = from as usize;
            }
        }
        rows.reverse();
        let value = self.members.get(member).and_then(|m| m.value);
        Schedule {
            member: member as u32,
            metric: metric.to_string(),
            value: value.map(Bits::number),
            rows,
        }
    }

    /// Writes the winner's way beside the lines of all.
    pub(super) fn write_way(folder: &Path, way: &Schedule) -> Result<(), Diagnostic> {
        let bytes = serde_json::to_vec_pretty(way).map_err(|error| {
            Diagnostic::new("the schedule could not be written as JSON").because(&error)
        })?;
        store::replace(&folder.join(WINNER), &bytes)
    }
}

/// Higher is better, whatever the metric.
pub(super) fn score(goal: Goal, value: Option<Bits>) -> Option<f64> {
    let value = value?.number();
    Some(match goal {
        Goal::Max => value,
        Goal::Min => -value,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretch(steps: u64, copied_from: Option<u32>, lr: f64) -> Stretch {
        Stretch {
            copied_from,
            knobs: vec![("trainer.lr".into(), Kept::Number(lr.into()))],
            steps,
            value: Some(lr.into()),
            idle: false,
        }
    }

    fn state() -> State {
        let mut state = State::new(10, vec![Vec::new(), Vec::new()]);
        state.generations = vec![
            vec![stretch(10, None, 0.1), stretch(10, None, 0.2)],
            vec![stretch(20, Some(1), 0.3), stretch(20, None, 0.2)],
            vec![stretch(30, None, 0.3), stretch(30, Some(0), 0.4)],
        ];
        state
    }

    #[test]
    fn the_way_of_a_member_follows_its_copies() {
        let way = state().way(1, "validation/loss");
        let rows: Vec<_> = way
            .rows
            .iter()
            .map(|row| (row.member, row.copied_from, row.to_epoch))
            .collect();
        assert_eq!(rows, [(1, None, 1.0), (0, Some(1), 2.0), (1, Some(0), 3.0)]);
    }

    #[test]
    fn the_best_is_the_first_of_equals_and_never_one_without_a_value() {
        let mut state = state();
        assert_eq!(state.best(Goal::Max), None);
        state.members[1].value = Some(0.5.into());
        assert_eq!(state.best(Goal::Max), Some(1));
        state.members[0].value = Some(0.5.into());
        assert_eq!(state.best(Goal::Max), Some(0));
        state.members[1].value = Some(0.4.into());
        assert_eq!(state.best(Goal::Min), Some(1));
    }

    #[test]
    fn knobs_come_back_to_the_bit() -> Result<(), serde_json::Error> {
        for x in [0.1, 1e-5 * 1.2, f64::MIN_POSITIVE, 0.30000000000000004] {
            let kept = Kept::Number(x.into());
            let back: Kept = serde_json::from_str(&serde_json::to_string(&kept)?)?;
            assert_eq!(back, kept);
        }
        Ok(())
    }
}
