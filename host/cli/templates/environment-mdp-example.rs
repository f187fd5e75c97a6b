//! Environment to act in: a walk to the right end of a line, against a wind that sometimes blows back.
//!
//! Say here what is observed, what an action does, what is paid, and when an episode ends.

use espalier_sdk::control::{ActionSpace, MdpSpec, Transition};
use espalier_sdk::state::{Reader, Writer};
use espalier_sdk::{Error, Mdp, Options, RunInfo, random};

/// Uses of chance: last number of a key.
const WIND: u64 = 1;
const START: u64 = 2;

/// Options under `[environment.with]`.
#[derive(Options)]
struct Settings {
    /// Places of the line; an episode begins anywhere but at its ends.
    #[option(default = 9, min = 3, max = 1000)]
    places: u32,
    /// Steps after which an episode is cut off.
    #[option(default = 40, min = 1, max = 100000)]
    max_steps: u32,
    /// How often the wind turns a step around.
    #[option(default = 0.1, min = 0, max = 0.5)]
    wind: f64,
}

/// One walker.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Walker {
    place: u32,
    /// Steps done in this episode.
    steps: u32,
    /// Steps done since the reset: no two draws have one number.
    all_steps: u64,
}

struct __TYPE__ {
    settings: Settings,
    /// What all chance follows from.
    key: Vec<u64>,
    walkers: Vec<Walker>,
}

impl Mdp for __TYPE__ {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        Ok(__TYPE__ {
            settings,
            key: Vec::new(),
            walkers: Vec::new(),
        })
    }

    fn spec(&self) -> MdpSpec {
        MdpSpec {
            observation: vec![(0.0, 1.0)],
            action: ActionSpace::Discrete(2),
            max_steps: self.settings.max_steps,
        }
    }

    fn reset(&mut self, n: u32, key: &[u64]) -> Vec<f64> {
        self.key = key.to_vec();
        let begin = |i| self.start(i, 0);
        self.walkers = (0..u64::from(n)).map(begin).collect();
        self.observations()
    }

    fn step(&mut self, actions: &[f64]) -> Transition {
        let last = self.settings.places - 1;
        let (mut rewards, mut terminated, mut truncated) = (Vec::new(), Vec::new(), Vec::new());
        let mut last_observations = Vec::new();
        for i in 0..self.walkers.len() {
            let mut walker = self.walkers[i];
            let wind = self.draw(i as u64, walker.all_steps, WIND) < self.settings.wind;
            walker.place = moved(walker.place, (actions[i] >= 0.5) != wind, last);
            walker.steps += 1;
            walker.all_steps += 1;
            let arrived = walker.place == last;
            let cut = !arrived && walker.steps >= self.settings.max_steps;
            rewards.push(f64::from(u8::from(arrived)));
            terminated.push(arrived);
            truncated.push(cut);
            if arrived || cut {
                last_observations.push(f64::from(walker.place) / f64::from(last));
                walker = self.start(i as u64, walker.all_steps);
            }
            self.walkers[i] = walker;
        }
        Transition {
            observations: self.observations(),
            rewards,
            terminated,
            truncated,
            last_observations,
        }
    }

    fn save(&self) -> Vec<u8> {
        let mut state = Writer::new(1).u64(self.key.len() as u64);
        state = self.key.iter().fold(state, |state, word| state.u64(*word));
        state = state.u64(self.walkers.len() as u64);
        for walker in &self.walkers {
            state = state.u64(walker.place.into()).u64(walker.steps.into());
            state = state.u64(walker.all_steps);
        }
        state.finish()
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut state = Reader::new(bytes, 1)?;
        let words = state.u64()?;
        self.key = (0..words).map(|_| state.u64()).collect::<Result<_, _>>()?;
        self.walkers.clear();
        for _ in 0..state.u64()? {
            let (place, steps) = (state.u64()? as u32, state.u64()? as u32);
            let all_steps = state.u64()?;
            self.walkers.push(Walker {
                place,
                steps,
                all_steps,
            });
        }
        state.end()
    }
}

impl __TYPE__ {
    /// A number in [0, 1) for a walker, a step since the reset and a use.
    fn draw(&self, walker: u64, step: u64, what: u64) -> f64 {
        let key = [self.key.as_slice(), &[walker, step, what]].concat();
        random::uniform_list(&key, 1)[0]
    }

    fn start(&self, walker: u64, all_steps: u64) -> Walker {
        let inner = f64::from(self.settings.places - 2);
        let place = 1 + (self.draw(walker, all_steps, START) * inner) as u32;
        Walker {
            place,
            steps: 0,
            all_steps,
        }
    }

    fn observations(&self) -> Vec<f64> {
        let last = f64::from(self.settings.places - 1);
        self.walkers
            .iter()
            .map(|walker| f64::from(walker.place) / last)
            .collect()
    }
}

/// The decision: where a step leads.
fn moved(place: u32, right: bool, last: u32) -> u32 {
    match right {
        true => (place + 1).min(last),
        false => place.saturating_sub(1),
    }
}

espalier_sdk::export!(mdp: __TYPE__);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_leaves_the_line() {
        assert_eq!(
            [moved(0, false, 8), moved(4, true, 8), moved(8, true, 8)],
            [0, 5, 8]
        );
    }

    #[test]
    fn defaults_lie_in_their_ranges() {
        assert_eq!(Settings::defaults().places, 9);
    }
}
