//! A world to act in that keeps every law but the one it is told to break.

use espalier_sdk::control::{ActionSpace, MdpSpec, Transition};
use espalier_sdk::state::{Reader, Writer};
use espalier_sdk::{Choice, Error, Mdp, Options, RunInfo, random};

/// What is wrong with it.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Fault {
    Nothing,
    Remembers,
    Unsaved,
    LeavesItsRange,
    NeverEnds,
    NoActions,
}

/// Options under `[environment.with]`.
#[derive(Options)]
struct Settings {
    /// The fault.
    #[option(default = Fault::Nothing)]
    fault: Fault,
}

struct Faulty {
    fault: Fault,
    resets: f64,
    key: Vec<u64>,
    /// Place and steps of each instance.
    places: Vec<(f64, u64)>,
}

const MOST: u64 = 30;

impl Mdp for Faulty {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        Ok(Faulty {
            fault: settings.fault,
            resets: 0.0,
            key: Vec::new(),
            places: Vec::new(),
        })
    }

    fn spec(&self) -> MdpSpec {
        MdpSpec {
            observation: vec![(-1.0, 1.0)],
            action: ActionSpace::Discrete(if self.fault == Fault::NoActions { 0 } else { 2 }),
            max_steps: MOST as u32,
        }
    }

    fn reset(&mut self, n: u32, key: &[u64]) -> Vec<f64> {
        self.resets += 1.0;
        self.key = key.to_vec();
        self.places = (0..n).map(|i| (self.start(i), 0)).collect();
        self.seen()
    }

    fn step(&mut self, actions: &[f64]) -> Transition {
        let mut truncated = Vec::new();
        let mut last_observations = Vec::new();
        for (i, action) in actions.iter().enumerate() {
            let start = self.start(i as u32);
            let (place, steps) = &mut self.places[i];
            let next = *place + 0.2 * (*action - 0.5);
            *place = match self.fault {
                Fault::LeavesItsRange => next,
                _ => next.clamp(-1.0, 1.0),
            };
            *steps += 1;
            let cut = *steps >= MOST && self.fault != Fault::NeverEnds;
            truncated.push(cut);
            if cut {
                last_observations.push(*place);
                (*place, *steps) = (start, 0);
            }
        }
        let n = self.places.len();
        Transition {
            observations: self.seen(),
            rewards: vec![1.0; n],
            terminated: vec![false; n],
            truncated,
            last_observations,
        }
    }

    fn save(&self) -> Vec<u8> {
        let mut state = Writer::new(1).f64(self.resets).u64(self.key.len() as u64);
        state = self.key.iter().fold(state, |state, word| state.u64(*word));
        state = state.u64(self.places.len() as u64);
        for (place, steps) in &self.places {
            let steps = if self.fault == Fault::Unsaved {
                0
            } else {
                *steps
            };
            state = state.f64(*place).u64(steps);
        }
        state.finish()
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut state = Reader::new(bytes, 1)?;
        self.resets = state.f64()?;
        let words = state.u64()?;
        self.key = (0..words).map(|_| state.u64()).collect::<Result<_, _>>()?;
        self.places.clear();
        for _ in 0..state.u64()? {
            self.places.push((state.f64()?, state.u64()?));
        }
        state.end()
    }
}

impl Faulty {
    fn start(&self, instance: u32) -> f64 {
        let key = [self.key.as_slice(), &[u64::from(instance)]].concat();
        let start = random::uniform_list(&key, 1)[0] - 0.5;
        match self.fault {
            Fault::Remembers => start / (1.0 + self.resets),
            _ => start,
        }
    }

    fn seen(&self) -> Vec<f64> {
        self.places.iter().map(|(place, _)| *place).collect()
    }
}

espalier_sdk::export!(mdp: Faulty);
