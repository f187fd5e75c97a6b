//! The plugins that keep another one company while it is tried: a pruner needs a trainer, a trainer of policies an
//! environment. They are the repository's own, built once and carried by the host, so that nothing must be
//! installed, built or downloaded; `host/runtime/company/README.md` says how they were made.

use crate::plan::Slot;

/// A component that the host carries.
pub struct Company {
    /// Its name, as in the repository's registry.
    pub name: &'static str,
    /// The slot it fills.
    pub slot: Slot,
    /// What it does, in a line.
    pub summary: &'static str,
    /// The component.
    pub bytes: &'static [u8],
}

/// All of them; every one has version 0.1.0.
pub const COMPANY: [Company; 5] = [
    Company {
        name: "backprop",
        slot: Slot::Trainer,
        summary: "Backpropagation with SGD, momentum, Adam or AdamW, schedules and gradient clipping",
        bytes: include_bytes!("../../company/backprop.wasm"),
    },
    Company {
        name: "policy-gradient",
        slot: Slot::Trainer,
        summary: "Policy gradients for verified responses and for worlds to act in",
        bytes: include_bytes!("../../company/policy-gradient.wasm"),
    },
    Company {
        name: "modular-arithmetic",
        slot: Slot::Environment,
        summary: "Sums, differences and products modulo a number, as prompts of single characters",
        bytes: include_bytes!("../../company/modular-arithmetic.wasm"),
    },
    Company {
        name: "cartpole",
        slot: Slot::Environment,
        summary: "A pole to be balanced on a cart by pushes to the left and right",
        bytes: include_bytes!("../../company/cartpole.wasm"),
    },
    Company {
        name: "reinforce-baseline",
        slot: Slot::Normalizer,
        summary: "The reward less a baseline: the mean of its group, of the batch, or none",
        bytes: include_bytes!("../../company/reinforce-baseline.wasm"),
    },
];

/// The one of that name.
pub fn company(name: &str) -> Option<&'static Company> {
    COMPANY.iter().find(|one| one.name == name)
}
