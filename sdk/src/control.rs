//! Worlds to act in: spaces and transitions.

use crate::bindings::host::espalier::plugin::control as host;

pub use host::{ActionSpace, MdpSpec, Transition};

impl MdpSpec {
    /// How many numbers an observation has.
    ///
    /// ```no_run
    /// # use espalier_sdk::control::MdpSpec;
    /// # fn f(spec: &MdpSpec, observations: &[f64]) {
    /// for instance in observations.chunks(spec.observation_size()) {
    ///     assert!(instance.iter().all(|x| x.is_finite()));
    /// }
    /// # }
    /// ```
    pub fn observation_size(&self) -> usize {
        self.observation.len()
    }

    /// How many numbers an action has: 1 for a discrete one.
    ///
    /// ```no_run
    /// # use espalier_sdk::control::MdpSpec;
    /// # fn f(spec: &MdpSpec) {
    /// let rest = vec![0.0; 8 * spec.action_size()]; // eight instances that do nothing
    /// # }
    /// ```
    pub fn action_size(&self) -> usize {
        match &self.action {
            ActionSpace::Discrete(_) => 1,
            ActionSpace::Continuous(ranges) => ranges.len(),
        }
    }
}
