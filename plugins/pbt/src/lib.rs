//! Tuner: population based training. From time to time a poor member of a population becomes a copy of a better one
//! ("exploit") and varies the hyperparameters that it took over ("explore"). Nothing is trained anew, and what comes
//! out is a schedule of hyperparameters along with the model.
//!
//! Jaderberg et al. 2017 (arXiv 1711.09846), section 3. Three ways to exploit: truncation (the worst fifth copies
//! from the best fifth), a binary tournament, and Welch's t-test over the last scores. Exploring multiplies each
//! number by one of two factors, or adds normal noise, and draws it anew with some probability; `exploit = "none"` is
//! random search with the same beginnings.
//!
//! Differences: the population goes in step, so that a result does not depend on timing; every member is measured
//! after a copy and before the next decision. Ties in the ranking are broken by chance, keyed by seed, generation and
//! member. A member without a score (its metric is not finite) ranks last and is never copied.

mod exploit;
mod student;

use espalier_sdk::options::{Setting, Value};
use espalier_sdk::state::{Reader, Writer};
use espalier_sdk::tuner::{Change, Domain, KnobInfo, MemberReport, Tuner};
use espalier_sdk::{Choice, Error, Options, RunInfo, random};

use exploit::{Standing, sources};

/// Who becomes a copy of whom.
#[derive(Choice, Clone, Copy, Debug, PartialEq)]
enum Exploit {
    Truncation,
    Tournament,
    TTest,
    None,
}

/// How a number is varied after a copy.
#[derive(Choice, Clone, Copy, Debug, PartialEq)]
enum Explore {
    Perturb,
    Add,
    None,
}

/// What is copied.
#[derive(Choice, Clone, Copy, Debug, PartialEq)]
enum Copies {
    Both,
    Weights,
    Knobs,
}

/// The knobs with which members begin.
#[derive(Choice, Clone, Copy, Debug, PartialEq)]
enum Initial {
    Drawn,
    Given,
}

/// Options under `[tuner.with]`.
#[derive(Options, Clone)]
struct Settings {
    /// Who becomes a copy of whom; none: nobody, which is random search.
    #[option(default = Exploit::Truncation)]
    exploit: Exploit,
    /// Share of the population that copies, and that is copied from, with truncation; at least one member each.
    #[option(default = 0.2, min = 0, max = 0.5)]
    fraction: f64,
    /// Scores that the t-test compares.
    #[option(default = 10, min = 2, max = 1000)]
    window: u32,
    /// Two-sided level below which the t-test sees a difference.
    #[option(default = 0.05, min = 0, max = 1)]
    significance: f64,
    /// How a number is varied after a copy: times a factor, plus normal noise, or not at all.
    #[option(default = Explore::Perturb)]
    explore: Explore,
    /// The factors, equally likely. The product of 0.8 and 1.2 is below 1: numbers drift down by chance.
    #[option(default = [0.8, 1.2], min = 0)]
    factors: Vec<f64>,
    /// Standard deviation of the noise, in the knob's own units.
    #[option(default = 0.1, min = 0)]
    deviation: f64,
    /// Probability with which a knob is drawn anew from its domain in place of being varied.
    #[option(default = 0, min = 0, max = 1)]
    resample: f64,
    /// Knobs at the beginning: drawn from their domains, or those of the run file.
    #[option(default = Initial::Drawn)]
    initial: Initial,
    /// What is copied: weights and knobs, or one of the two. With weights alone the knobs stay as they are.
    #[option(default = Copies::Both)]
    copy: Copies,
}

/// Uses of randomness: first number of a key.
const PRIOR: u64 = 0;
const SOURCE: u64 = 1;
const TIES: u64 = 2;
const ANEW: u64 = 3;
const VARIED: u64 = 4;

/// A number uniform on [0, 1) that depends on the key alone.
type Draw<'a> = &'a dyn Fn(&[u64]) -> f64;

fn of_host(key: &[u64]) -> f64 {
    random::uniform_list(key, 1)[0]
}

struct Pbt {
    settings: Settings,
    space: Vec<KnobInfo>,
    generation: u64,
    /// The last scores of each member's weights, the newest last: a copy takes them over.
    scores: Vec<Vec<f64>>,
}

impl Tuner for Pbt {
    type Options = Settings;

    fn new(
        _run: &RunInfo,
        settings: Settings,
        space: &[KnobInfo],
        members: u32,
    ) -> Result<Self, Error> {
        if settings.factors.is_empty() {
            return Err(Error::invalid_option(
                "`factors` is empty; give at least one, as [0.8, 1.2]",
            ));
        }
        Ok(Pbt {
            settings,
            space: space.to_vec(),
            generation: 0,
            scores: vec![Vec::new(); members as usize],
        })
    }

    fn propose(&mut self) -> Vec<Vec<Setting>> {
        let knobs = |member| match self.settings.initial {
            Initial::Drawn => self.prior(member, &of_host),
            Initial::Given => Vec::new(),
        };
        (0..self.scores.len() as u64).map(knobs).collect()
    }

    fn decide(&mut self, members: &[MemberReport]) -> Vec<Change> {
        self.decide_by(members, &of_host)
    }

    fn save(&self) -> Vec<u8> {
        let state = Writer::new(1)
            .u64(self.generation)
            .u64(self.scores.len() as u64);
        self.scores
            .iter()
            .fold(state, |state, scores| state.f64s(scores))
            .finish()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        let mut state = Reader::new(state, 1)?;
        self.generation = state.u64()?;
        let members = state.u64()?;
        if members != self.scores.len() as u64 {
            return Err(Error::invalid_state(format!(
                "it was saved with {members} members, there are {}",
                self.scores.len()
            )));
        }
        for scores in &mut self.scores {
            *scores = state.f64s()?;
        }
        state.end()
    }
}

impl Pbt {
    /// The knobs with which a member begins, drawn from their domains.
    fn prior(&self, member: u64, draw: Draw) -> Vec<Setting> {
        let each = self.space.iter().zip(0..);
        each.map(|(knob, number)| {
            let u = draw(&[PRIOR, member, number]);
            (knob.name.clone(), knob.domain.at(u))
        })
        .collect()
    }

    fn decide_by(&mut self, members: &[MemberReport], draw: Draw) -> Vec<Change> {
        self.generation += 1;
        let window = self.settings.window as usize;
        for member in members.iter().filter(|member| !member.done) {
            let (Some(scores), Some(score)) =
                (self.scores.get_mut(member.member as usize), member.score)
            else {
                continue;
            };
            scores.push(score);
            let surplus = scores.len().saturating_sub(window);
            scores.drain(..surplus);
        }
        let standings: Vec<Standing> = members
            .iter()
            .zip(&self.scores)
            .map(|(member, scores)| Standing {
                score: member.score,
                done: member.done,
                scores,
            })
            .collect();
        let generation = self.generation;
        let copies = sources(&self.settings, &standings, &|use_, member| {
            draw(&[use_, generation, member as u64])
        });
        let taken: Vec<Vec<f64>> = copies
            .iter()
            .map(|&(_, from)| self.scores[from].clone())
            .collect();
        let mut changes = Vec::new();
        for (&(member, from), scores) in copies.iter().zip(taken) {
            let mut change = Change::of(members[member].member);
            if self.settings.copy != Copies::Knobs {
                change.copy_from = Some(members[from].member);
                self.scores[member] = scores;
            }
            if self.settings.copy != Copies::Weights {
                change.knobs = self.explore(&members[from].knobs, member as u64, draw);
            }
            changes.push(change);
        }
        changes
    }

    /// The knobs of the member that is copied, varied.
    fn explore(&self, knobs: &[Setting], member: u64, draw: Draw) -> Vec<Setting> {
        let vary = |(knob, number): (&KnobInfo, u64)| {
            let (_, value) = knobs.iter().find(|(name, _)| *name == knob.name)?;
            let key = |use_| [use_, self.generation, member, number];
            let value = match draw(&key(ANEW)) < self.settings.resample {
                true => knob.domain.at(draw(&key(PRIOR))),
                false => self.varied(&knob.domain, value, &key(VARIED), draw),
            };
            Some((knob.name.clone(), value))
        };
        self.space.iter().zip(0..).filter_map(vary).collect()
    }

    fn varied(&self, domain: &Domain, value: &Value, key: &[u64], draw: Draw) -> Value {
        let settings = &self.settings;
        let vary = |x: f64| match settings.explore {
            Explore::None => x,
            Explore::Perturb => {
                let place = (draw(key) * settings.factors.len() as f64) as usize;
                x * settings.factors[place.min(settings.factors.len() - 1)]
            }
            Explore::Add => {
                // Box and Muller; the logarithm's argument is above 0.
                let second = [key, &[1]].concat();
                let radius = (-2.0 * (1.0 - draw(key)).ln()).sqrt();
                let normal = radius * (std::f64::consts::TAU * draw(&second)).cos();
                x + settings.deviation * normal
            }
        };
        match (domain, value) {
            (Domain::Number(interval), Value::Number(x)) => Value::Number(interval.clip(vary(*x))),
            (Domain::Integer(interval), Value::Integer(n)) => {
                let (old, new) = (*n as f64, vary(*n as f64));
                // A small number would never leave its place by rounding.
                let step = match new.round() == old {
                    true if new > old => old + 1.0,
                    true if new < old => old - 1.0,
                    _ => new.round(),
                };
                Value::Integer(interval.clip(step) as i64)
            }
            // A word has no neighbours: it changes when it is drawn anew.
            _ => value.clone(),
        }
    }
}

espalier_sdk::export!(tuner: Pbt);

#[cfg(test)]
mod tests;
