//! Environment to act in: a walk to the right end of a line.
//!
//! Say here what is observed, what an action does, what is paid, and when an episode ends.

use espalier_sdk::control::{ActionSpace, MdpSpec, Transition};
use espalier_sdk::state::{Reader, Writer};
use espalier_sdk::{Error, Mdp, Options, RunInfo};

/// Options under `[environment.with]`.
#[derive(Options)]
struct Settings {
    /// Places of the line; an episode begins in the middle.
    #[option(default = 9, min = 3, max = 1000)]
    places: u32,
    /// Steps after which an episode is cut off.
    #[option(default = 40, min = 1, max = 100000)]
    max_steps: u32,
}

/// One walker.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Walker {
    place: u32,
    /// Steps done in this episode.
    steps: u32,
}

struct __TYPE__ {
    settings: Settings,
    walkers: Vec<Walker>,
}

impl Mdp for __TYPE__ {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        Ok(__TYPE__ {
            settings,
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

    fn reset(&mut self, n: u32, _key: &[u64]) -> Vec<f64> {
        self.walkers = vec![self.start(); n as usize];
        self.observations()
    }

    fn step(&mut self, actions: &[f64]) -> Transition {
        let start = self.start();
        let last = self.settings.places - 1;
        let (mut rewards, mut terminated, mut truncated) = (Vec::new(), Vec::new(), Vec::new());
        let mut last_observations = Vec::new();
        for (walker, &action) in self.walkers.iter_mut().zip(actions) {
            walker.place = moved(walker.place, action >= 0.5, last);
            walker.steps += 1;
            let arrived = walker.place == last;
            let cut = !arrived && walker.steps >= self.settings.max_steps;
            rewards.push(f64::from(u8::from(arrived)));
            terminated.push(arrived);
            truncated.push(cut);
            if arrived || cut {
                last_observations.push(f64::from(walker.place) / f64::from(last));
                *walker = start;
            }
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
        let state = Writer::new(1).u64(self.walkers.len() as u64);
        let state = self.walkers.iter().fold(state, |state, walker| {
            state.u64(walker.place.into()).u64(walker.steps.into())
        });
        state.finish()
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut state = Reader::new(bytes, 1)?;
        self.walkers.clear();
        for _ in 0..state.u64()? {
            let (place, steps) = (state.u64()? as u32, state.u64()? as u32);
            self.walkers.push(Walker { place, steps });
        }
        state.end()
    }
}

impl __TYPE__ {
    fn start(&self) -> Walker {
        Walker {
            place: (self.settings.places - 1) / 2,
            steps: 0,
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
