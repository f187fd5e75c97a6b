//! Worlds to act in: spaces and transitions.

use crate::bindings::host::espalier::plugin::control as host;

pub use host::{ActionSpace, MdpSpec, Transition};

impl MdpSpec {
    /// How many numbers an observation has.
    pub fn observation_size(&self) -> usize {
        self.observation.len()
    }

    /// How many numbers an action has: 1 for a discrete one.
    pub fn action_size(&self) -> usize {
        match &self.action {
            ActionSpace::Discrete(_) => 1,
            ActionSpace::Continuous(ranges) => ranges.len(),
        }
    }
}
