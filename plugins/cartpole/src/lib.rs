//! Environment: a pole to be balanced on a cart by pushes to the left and right.
//!
//! Equations of motion by Barto, Sutton and Anderson 1983 (appendix), without friction, in the form and with the
//! constants of the common benchmark (OpenAI Gym's CartPole-v1): explicit Euler with 0.02 s, a start uniform in
//! +-0.05, an end where the cart leaves the track or the pole leans more than 12 degrees, 500 steps, reward 1 for
//! every step, the last included. A mean return over 475 counts as solved.
//!
//! Observation: position (m), velocity (m/s), angle (rad), angular velocity (rad/s). Actions: 0 pushes to the left,
//! 1 to the right.

use std::f64::consts::PI;

use espalier_sdk::control::{ActionSpace, MdpSpec, Transition};
use espalier_sdk::state::{Reader, Writer};
use espalier_sdk::{Error, Mdp, Options, RunInfo, random};

/// m/s^2.
const GRAVITY: f64 = 9.8;
/// kg.
const CART: f64 = 1.0;
/// kg.
const POLE: f64 = 0.1;
/// Half of the pole's length, m.
const HALF_LENGTH: f64 = 0.5;
/// N.
const FORCE: f64 = 10.0;
/// s.
const STEP: f64 = 0.02;
/// m from the middle of the track.
const TRACK: f64 = 2.4;
/// rad.
const LEAN: f64 = 12.0 * PI / 180.0;
/// The start is uniform between minus and plus this.
const START: f64 = 0.05;

/// Options under `[environment.with]`.
#[derive(Options)]
struct Settings {
    /// Steps after which an episode is cut off.
    #[option(default = 500, min = 1)]
    max_steps: u32,
}

/// Position, velocity, angle, angular velocity.
type State = [f64; 4];

/// One cart.
#[derive(Clone, Debug, PartialEq)]
struct Instance {
    state: State,
    /// Steps done in this episode.
    steps: u32,
    /// Episodes done before this one since the reset.
    episode: u64,
}

struct CartPole {
    max_steps: u32,
    key: Vec<u64>,
    instances: Vec<Instance>,
}

impl Mdp for CartPole {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        Ok(CartPole {
            max_steps: settings.max_steps,
            key: Vec::new(),
            instances: Vec::new(),
        })
    }

    fn spec(&self) -> MdpSpec {
        let any = (f64::NEG_INFINITY, f64::INFINITY);
        // An episode's last observation lies beyond the limits, by less than their size.
        let (track, lean) = (2.0 * TRACK, 2.0 * LEAN);
        MdpSpec {
            observation: vec![(-track, track), any, (-lean, lean), any],
            action: ActionSpace::Discrete(2),
            max_steps: self.max_steps,
        }
    }

    fn reset(&mut self, n: u32, key: &[u64]) -> Vec<f64> {
        self.key = key.to_vec();
        let begin = |i| Instance {
            state: start(&draw(key, i, 0)),
            steps: 0,
            episode: 0,
        };
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
            state = state.f64s(&instance.state);
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
            let numbers = state.f64s()?;
            let [a, b, c, d] = numbers[..] else {
                return Err(Error::invalid_state("the saved cart has not four numbers"));
            };
            self.instances.push(Instance {
                state: [a, b, c, d],
                steps: u32::try_from(state.u64()?)
                    .map_err(|_| Error::invalid_state("the saved episode is too long"))?,
                episode: state.u64()?,
            });
        }
        state.end()
    }
}

impl CartPole {
    fn observations(&self) -> Vec<f64> {
        let states = self.instances.iter().flat_map(|instance| instance.state);
        states.collect()
    }

    /// One step of every instance; `draw` gives the numbers from which the next episode of an instance starts.
    fn step_with(
        &mut self,
        actions: &[f64],
        draw: impl Fn(&[u64], u64, u64) -> Vec<f64>,
    ) -> Transition {
        let (mut terminated, mut truncated) = (Vec::new(), Vec::new());
        let mut last_observations = Vec::new();
        for (place, (instance, &action)) in self.instances.iter_mut().zip(actions).enumerate() {
            instance.state = advance(instance.state, action >= 0.5);
            instance.steps += 1;
            let over = fallen(instance.state);
            let cut = !over && instance.steps >= self.max_steps;
            if over || cut {
                last_observations.extend(instance.state);
                instance.episode += 1;
                instance.steps = 0;
                instance.state = start(&draw(&self.key, place as u64, instance.episode));
            }
            terminated.push(over);
            truncated.push(cut);
        }
        Transition {
            observations: self.observations(),
            rewards: vec![1.0; self.instances.len()],
            terminated,
            truncated,
            last_observations,
        }
    }
}

/// Four numbers in [0, 1) for an episode of an instance, whatever the others do.
fn draw(key: &[u64], instance: u64, episode: u64) -> Vec<f64> {
    random::uniform_list(&[key, &[instance, episode]].concat(), 4)
}

fn start(numbers: &[f64]) -> State {
    std::array::from_fn(|i| START * (2.0 * numbers[i] - 1.0))
}

/// One step of explicit Euler.
fn advance([x, velocity, angle, spin]: State, right: bool) -> State {
    let force = if right { FORCE } else { -FORCE };
    let (sin, cos) = angle.sin_cos();
    let mass = CART + POLE;
    let push = (force + POLE * HALF_LENGTH * spin * spin * sin) / mass;
    let inertia = HALF_LENGTH * (4.0 / 3.0 - POLE * cos * cos / mass);
    let spin_change = (GRAVITY * sin - cos * push) / inertia;
    let change = push - POLE * HALF_LENGTH * spin_change * cos / mass;
    [
        x + STEP * velocity,
        velocity + STEP * change,
        angle + STEP * spin,
        spin + STEP * spin_change,
    ]
}

fn fallen([x, _, angle, _]: State) -> bool {
    x.abs() > TRACK || angle.abs() > LEAN
}

espalier_sdk::export!(mdp: CartPole);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Natively the host's randomness is not there: numbers made of the instance and the episode.
    fn made(_key: &[u64], instance: u64, episode: u64) -> Vec<f64> {
        let number = (instance * 7 + episode * 3) as f64 * 0.013;
        vec![number % 1.0, 0.5, 1.0 - number % 1.0, 0.25]
    }

    fn carts(n: u64, max_steps: u32) -> CartPole {
        let begin = |i| Instance {
            state: start(&made(&[], i, 0)),
            steps: 0,
            episode: 0,
        };
        CartPole {
            max_steps,
            key: vec![4, 2],
            instances: (0..n).map(begin).collect(),
        }
    }

    #[test]
    fn motion_follows_the_equations() {
        // By hand from rest: push F/M, spin change -push / (l (4/3 - m/M)), change push + m l spin change / M.
        let push = 10.0 / 1.1;
        let spin_change = -push / (0.5 * (4.0 / 3.0 - 0.1 / 1.1));
        let change = push - 0.05 * spin_change / 1.1;
        let [x, velocity, angle, spin] = advance([0.0; 4], true);
        assert_eq!((x, angle), (0.0, 0.0));
        assert!((velocity - 0.02 * change).abs() < 1e-12, "{velocity}");
        assert!((spin - 0.02 * spin_change).abs() < 1e-12, "{spin}");
    }

    #[test]
    fn left_and_right_mirror_each_other() {
        let state = [0.3, -0.2, 0.1, 0.4];
        let mirrored = advance(state.map(|x| -x), false);
        assert_eq!(mirrored.map(|x| -x), advance(state, true));
    }

    #[test]
    fn an_episode_ends_beyond_the_track_or_the_lean() {
        assert!(!fallen([2.4, 9.0, 0.2094, 9.0]));
        assert!(fallen([2.41, 0.0, 0.0, 0.0]) && fallen([-2.41, 0.0, 0.0, 0.0]));
        assert!(fallen([0.0, 0.0, 0.2095, 0.0]) && fallen([0.0, 0.0, -0.2095, 0.0]));
    }

    #[test]
    fn pushing_one_way_lets_the_pole_fall_and_another_episode_begins() {
        let mut carts = carts(2, 500);
        let (mut steps, mut ended) = (0, None);
        while ended.is_none() && steps < 30 {
            steps += 1;
            let now = carts.step_with(&[1.0, f64::from(steps % 2)], made);
            assert_eq!(now.rewards, [1.0, 1.0]);
            assert!(!now.terminated[1] && now.truncated == [false, false]);
            ended = now.terminated[0].then_some(now);
        }
        let ended = ended.unwrap();
        assert!((8..=12).contains(&steps), "{steps}");
        assert_eq!(ended.last_observations.len(), 4);
        assert!(ended.last_observations[2].abs() > LEAN);
        assert_eq!(ended.observations[..4], start(&made(&[], 0, 1)));
        assert_eq!(
            (carts.instances[0].steps, carts.instances[1].steps),
            (0, steps as u32)
        );
    }

    #[test]
    fn an_episode_is_cut_off_at_its_greatest_length() {
        let mut carts = carts(1, 5);
        for step in 1..=5 {
            let now = carts.step_with(&[f64::from(step % 2)], made);
            assert_eq!((now.terminated[0], now.truncated[0]), (false, step == 5));
            assert_eq!(now.last_observations.len(), if step == 5 { 4 } else { 0 });
        }
        assert_eq!(
            (carts.instances[0].steps, carts.instances[0].episode),
            (0, 1)
        );
    }

    #[test]
    fn what_is_restored_goes_on_to_the_bit() {
        let mut carts = carts(3, 50);
        let play = |carts: &mut CartPole, from: u64| -> Vec<u64> {
            let act = |t: u64| {
                (0..3)
                    .map(|i| f64::from(u8::from((t * 7 + i).is_multiple_of(3))))
                    .collect()
            };
            (from..from + 40)
                .flat_map(|t| {
                    let actions: Vec<f64> = act(t);
                    carts.step_with(&actions, made).observations
                })
                .map(f64::to_bits)
                .collect()
        };
        play(&mut carts, 0);
        let saved = carts.save();
        let mut resumed = CartPole {
            key: Vec::new(),
            instances: Vec::new(),
            max_steps: 50,
        };
        resumed.restore(&saved).unwrap();
        assert_eq!(
            (&resumed.key, &resumed.instances),
            (&carts.key, &carts.instances)
        );
        assert_eq!(play(&mut resumed, 40), play(&mut carts, 40));
        for cut in 0..saved.len() {
            assert!(resumed.restore(&saved[..cut]).is_err());
        }
    }

    #[test]
    fn strange_actions_are_survived() {
        let mut carts = carts(3, 10);
        let now = carts.step_with(&[f64::NAN, f64::INFINITY, -1e300], made);
        assert!(now.observations.iter().all(|x| x.is_finite()));
    }
}
