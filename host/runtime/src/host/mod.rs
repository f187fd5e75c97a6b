//! The host side of `wit/`: what a plugin can call, what it may use, and how it is called.
//!
//! `guest` holds one plugin's handles and budgets; `tensors`, `parameters`, `data`, `model` and `rollouts` fill
//! the interfaces; `wasi` answers what every component imports; `session` makes the calls; `state` is what all
//! plugins of a run share. No arithmetic here, and no policy about what follows a failure.
pub mod bindings;
pub mod capture;
pub(crate) mod data;
pub mod guest;
mod model;
mod parameters;
pub mod rollouts;
pub mod session;
pub mod state;
mod tensors;
mod wasi;

/// Whether a WASI interface (without its version) is one that the host answers.
pub fn wasi_allowed(interface: &str) -> bool {
    wasi::ALLOWED
        .iter()
        .any(|a| *a == interface || (a.ends_with('/') && interface.starts_with(a)))
}
