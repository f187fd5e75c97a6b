//! Environment: a pendulum to be swung up by a bounded torque.
//!
//! A rod that turns about one end, as in the common benchmark (OpenAI Gym's Pendulum-v1): angle 0 is upright,
//! angular acceleration 3 g / (2 l) sin(angle) + 3 / (m l^2) torque, semi-implicit Euler with 0.05 s, speed within
//! +-8, torque within +-2, which is too weak to lift the rod at once. The cost of a step is
//! angle^2 + 0.1 speed^2 + 0.001 torque^2 of the state before it, the angle taken in (-pi, pi]; the reward is minus
//! the cost. An episode starts at any angle with a speed within +-1 and is cut off after 200 steps; it never ends
//! by itself. The swing-up is Doya's (2000, section 5.1) with other constants.
//!
//! Observation: cos(angle), sin(angle), speed (rad/s). Action: the torque (N m).

use std::f64::consts::PI;

use espalier_sdk::control::{ActionSpace, MdpSpec, Transition};
use espalier_sdk::state::{Reader, Writer};
use espalier_sdk::{Error, Mdp, Options, RunInfo, random};

/// m/s^2.
const GRAVITY: f64 = 10.0;
/// kg.
const MASS: f64 = 1.0;
/// m.
const LENGTH: f64 = 1.0;
/// s.
const STEP: f64 = 0.05;
/// N m.
const TORQUE: f64 = 2.0;
/// rad/s.
const SPEED: f64 = 8.0;

/// Options under `[environment.with]`.
#[derive(Options)]
struct Settings {
    /// Steps after which an episode is cut off.
    #[option(default = 200, min = 1)]
    max_steps: u32,
}

/// One pendulum.
#[derive(Clone, Debug, PartialEq)]
struct Instance {
    /// rad, 0 upright; counts whole turns.
    angle: f64,
    /// rad/s.
    speed: f64,
    /// Steps done in this episode.
    steps: u32,
    /// Episodes done before this one since the reset.
    episode: u64,
}

struct Pendulum {
    max_steps: u32,
    key: Vec<u64>,
    instances: Vec<Instance>,
}

impl Mdp for Pendulum {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        Ok(Pendulum {
            max_steps: settings.max_steps,
            key: Vec::new(),
            instances: Vec::new(),
        })
    }

    fn spec(&self) -> MdpSpec {
        MdpSpec {
            observation: vec![(-1.0, 1.0), (-1.0, 1.0), (-SPEED, SPEED)],
            action: ActionSpace::Continuous(vec![(-TORQUE, TORQUE)]),
            max_steps: self.max_steps,
        }
    }

    fn reset(&mut self, n: u32, key: &[u64]) -> Vec<f64> {
        self.key = key.to_vec();
        let begin = |i| begin(0, &draw(key, i, 0));
        self.instances = (0..u64::from(n)).map(begin).collect();
        self.observations()
    }

    fn step(&mut self, actions: &[f64]) -> Transition {
        self.step_with(actions, draw)
    }

    fn save(&self) -> Vec<u8> {
        let mut state = Writer::new(1).u64(self.key.len() as u64);
        state = self.key.iter().fold(state, |state, &word| state.u64(word));
        state = state.u64(self.instances.len() as u64);
        for instance in &self.instances {
            state = state.f64(instance.angle).f64(instance.speed);
            state = state.u64(u64::from(instance.steps)).u64(instance.episode);
        }
        state.finish()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        let mut state = Reader::new(state, 1)?;
        self.key = (0..state.u64()?)
            .map(|_| state.u64())
            .collect::<Result<_, _>>()?;
        self.instances.clear();
        for _ in 0..state.u64()? {
            self.instances.push(Instance {
                angle: state.f64()?,
                speed: state.f64()?,
                steps: u32::try_from(state.u64()?)
                    .map_err(|_| Error::invalid_state("the saved episode is too long"))?,
                episode: state.u64()?,
            });
        }
        state.end()
    }
}

impl Pendulum {
    fn observations(&self) -> Vec<f64> {
        self.instances
            .iter()
            .flat_map(Instance::observation)
            .collect()
    }

    /// One step of every instance; `draw` gives the numbers from which the next episode of an instance starts.
    fn step_with(
        &mut self,
        actions: &[f64],
        draw: impl Fn(&[u64], u64, u64) -> Vec<f64>,
    ) -> Transition {
        let (mut rewards, mut truncated) = (Vec::new(), Vec::new());
        let mut last_observations = Vec::new();
        for (place, (instance, &action)) in self.instances.iter_mut().zip(actions).enumerate() {
            rewards.push(-instance.advance(action));
            instance.steps += 1;
            let cut = instance.steps >= self.max_steps;
            if cut {
                last_observations.extend(instance.observation());
                let episode = instance.episode + 1;
                *instance = begin(episode, &draw(&self.key, place as u64, episode));
            }
            truncated.push(cut);
        }
        Transition {
            observations: self.observations(),
            rewards,
            terminated: vec![false; self.instances.len()],
            truncated,
            last_observations,
        }
    }
}

impl Instance {
    fn observation(&self) -> [f64; 3] {
        [self.angle.cos(), self.angle.sin(), self.speed]
    }

    /// One step of semi-implicit Euler; the cost of the state and the torque before it.
    fn advance(&mut self, torque: f64) -> f64 {
        // The host clips to the ranges of the spec; a torque that is no number does nothing.
        let torque = if torque.is_nan() {
            0.0
        } else {
            torque.clamp(-TORQUE, TORQUE)
        };
        let lean = (self.angle + PI).rem_euclid(2.0 * PI) - PI;
        let cost = lean * lean + 0.1 * self.speed * self.speed + 0.001 * torque * torque;
        let change =
            1.5 * GRAVITY / LENGTH * self.angle.sin() + 3.0 / (MASS * LENGTH * LENGTH) * torque;
        self.speed = (self.speed + STEP * change).clamp(-SPEED, SPEED);
        self.angle += STEP * self.speed;
        cost
    }
}

/// Two numbers in [0, 1) for an episode of an instance, whatever the others do.
fn draw(key: &[u64], instance: u64, episode: u64) -> Vec<f64> {
    random::uniform_list(&[key, &[instance, episode]].concat(), 2)
}

fn begin(episode: u64, numbers: &[f64]) -> Instance {
    Instance {
        angle: PI * (2.0 * numbers[0] - 1.0),
        speed: 2.0 * numbers[1] - 1.0,
        steps: 0,
        episode,
    }
}

espalier_sdk::export!(mdp: Pendulum);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Natively the host's randomness is not there: numbers made of the instance and the episode.
    fn made(_key: &[u64], instance: u64, episode: u64) -> Vec<f64> {
        vec![((instance * 7 + episode * 3) as f64 * 0.17) % 1.0, 0.25]
    }

    fn pendulums(n: u64, max_steps: u32) -> Pendulum {
        Pendulum {
            max_steps,
            key: vec![4, 2],
            instances: (0..n).map(|i| begin(0, &made(&[], i, 0))).collect(),
        }
    }

    fn at(angle: f64, speed: f64) -> Instance {
        Instance {
            angle,
            speed,
            ..begin(0, &[0.0, 0.0])
        }
    }

    #[test]
    fn motion_and_cost_follow_the_equations() {
        // Hanging at a right angle with torque 1: acceleration 15 + 3, so the speed is 0.9 after 0.05 s.
        let mut rod = at(PI / 2.0, 0.0);
        let cost = rod.advance(1.0);
        assert!((cost - (PI * PI / 4.0 + 0.001)).abs() < 1e-12);
        assert!((rod.speed - 0.9).abs() < 1e-12);
        assert!((rod.angle - (PI / 2.0 + 0.045)).abs() < 1e-12);
        // Upright and at rest: nothing moves, nothing is paid.
        let mut rod = at(0.0, 0.0);
        assert_eq!((rod.advance(0.0), rod.angle, rod.speed), (0.0, 0.0, 0.0));
    }

    #[test]
    fn the_angle_of_the_cost_is_that_to_the_upright() {
        for (angle, lean) in [
            (2.0 * PI + 0.5, 0.5),
            (-2.0 * PI - 0.5, 0.5),
            (1.5 * PI, PI / 2.0),
        ] {
            let cost = at(angle, 2.0).advance(0.0);
            assert!((cost - (lean * lean + 0.4)).abs() < 1e-9, "{angle}: {cost}");
        }
    }

    #[test]
    fn torque_and_speed_are_bounded_and_costs_too() {
        let mut rod = at(PI / 2.0, 7.9);
        let cost = rod.advance(1e9);
        assert_eq!(rod.speed, 8.0);
        assert!(cost <= PI * PI + 6.4 + 0.004);
        assert!(at(1.0, 1.0).advance(f64::NAN).is_finite());
    }

    #[test]
    fn an_episode_is_cut_off_and_another_begins() {
        let mut rods = pendulums(2, 4);
        for step in 1..=4 {
            let now = rods.step_with(&[0.5, -0.5], made);
            assert_eq!((now.terminated[0], now.truncated[1]), (false, step == 4));
            assert_eq!(now.last_observations.len(), if step == 4 { 6 } else { 0 });
        }
        assert_eq!(rods.instances[1], begin(1, &made(&[], 1, 1)));
    }

    #[test]
    fn what_is_restored_goes_on_to_the_bit() {
        let mut rods = pendulums(3, 50);
        let play = |rods: &mut Pendulum, from: u32| -> Vec<u64> {
            let seen = (from..from + 40).flat_map(|t| {
                let torque = f64::from(t).sin() * 2.0;
                rods.step_with(&[torque, -torque, 0.1], made).observations
            });
            seen.map(f64::to_bits).collect()
        };
        play(&mut rods, 0);
        let saved = rods.save();
        let mut resumed = Pendulum {
            key: Vec::new(),
            instances: Vec::new(),
            max_steps: 50,
        };
        resumed.restore(&saved).unwrap();
        assert_eq!(
            (&resumed.key, &resumed.instances),
            (&rods.key, &rods.instances)
        );
        assert_eq!(play(&mut resumed, 40), play(&mut rods, 40));
        for cut in 0..saved.len() {
            assert!(resumed.restore(&saved[..cut]).is_err());
        }
    }
}
