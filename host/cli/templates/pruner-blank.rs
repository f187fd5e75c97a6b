//! Pruner: the smallest weights go, all at once in the middle of the round.
//!
//! Put the paper and its equation here, and say where this differs and why.

use espalier_sdk::prune::{Weights, keep_count};
use espalier_sdk::{Directive, Error, Event, EventKind, Options, Pruner, RunInfo};

/// Options under `[pruner.with]`.
#[derive(Options)]
struct Settings {
    /// Fraction of the prunable weights that are 0 at the end.
    #[option(default = 0.8, min = 0, max = 1)]
    sparsity: f64,
}

struct __TYPE__ {
    sparsity: f64,
    /// The step after which weights go.
    at: u64,
    weights: Weights,
}

/// The middle of a round of so many steps.
fn middle(steps: u64) -> u64 {
    (steps / 2).max(1)
}

impl Pruner for __TYPE__ {
    type Options = Settings;
    const EVENTS: &'static [EventKind] = &[EventKind::Step];

    fn new(run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        Ok(__TYPE__ {
            sparsity: settings.sparsity,
            at: middle(run.steps),
            weights: Weights::of_run("")?,
        })
    }

    fn on_event(&mut self, event: &Event) -> Directive {
        if event.at.step == self.at {
            // The decision: how many weights live, and which.
            let keep = keep_count(self.weights.total(), self.sparsity);
            self.weights.keep_largest(keep);
        }
        Directive::Continue
    }
}

espalier_sdk::export!(pruner: __TYPE__);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_of_one_step_has_a_middle() {
        assert_eq!((middle(1), middle(100)), (1, 50));
        assert_eq!(Settings::defaults().sparsity, 0.8);
    }
}
