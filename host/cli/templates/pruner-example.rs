//! Pruner: the smallest weights go bit by bit while the network trains.
//!
//! Zhu and Gupta 2017, equation 1: s(t) = s_f (1 - (1 - (t - t_0) / (t_1 - t_0))^3), every few steps. Put your own
//! paper and equation here, and say where this differs and why.

use espalier_sdk::prune::{Weights, cubic_sparsity, keep_count};
use espalier_sdk::{Directive, Error, Event, EventKind, Options, Pruner, RunInfo, log};

/// Options under `[pruner.with]`.
#[derive(Options)]
struct Settings {
    /// Fraction of the prunable weights that are 0 at the end.
    #[option(default = 0.8, min = 0, max = 1)]
    sparsity: f64,
    /// Where pruning begins, as a fraction of the round.
    #[option(default = 0.1, min = 0, max = 1)]
    begin: f64,
    /// Where it has reached the sparsity; the rest of the round recovers.
    #[option(default = 0.7, min = 0, max = 1)]
    end: f64,
    /// Steps between two prunings.
    #[option(default = 10, min = 1)]
    every_steps: u64,
    /// Weights left alone: parameters, layers or groups, separated by commas.
    #[option(default = "")]
    exclude: String,
}

/// From which step to which, and how often in between.
#[derive(Debug, PartialEq)]
struct Window {
    begin: u64,
    end: u64,
    every: u64,
}

impl Window {
    fn new(settings: &Settings, steps: u64) -> Result<Window, Error> {
        if settings.begin > settings.end {
            return Err(Error::invalid_option(format!(
                "`begin` ({}) must not be after `end` ({})",
                settings.begin, settings.end
            )));
        }
        let of_round = |fraction: f64| ((fraction * steps as f64).round() as u64).max(1);
        Ok(Window {
            begin: of_round(settings.begin),
            end: of_round(settings.end),
            every: settings.every_steps,
        })
    }

    fn prunes_at(&self, step: u64) -> bool {
        let between = self.begin < step && step < self.end;
        step == self.end || (between && (step - self.begin).is_multiple_of(self.every))
    }
}

struct __TYPE__ {
    sparsity: f64,
    window: Window,
    weights: Weights,
}

impl Pruner for __TYPE__ {
    type Options = Settings;
    const EVENTS: &'static [EventKind] = &[EventKind::Step];

    fn new(run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        Ok(__TYPE__ {
            sparsity: settings.sparsity,
            window: Window::new(&settings, run.steps)?,
            weights: Weights::of_run(&settings.exclude)?,
        })
    }

    fn on_event(&mut self, event: &Event) -> Directive {
        let step = event.at.step;
        if self.window.prunes_at(step) {
            let (begin, end) = (self.window.begin as f64, self.window.end as f64);
            let sparsity = cubic_sparsity(step as f64, begin, end, 0.0, self.sparsity);
            let keep = keep_count(self.weights.total(), sparsity);
            self.weights.keep_largest(keep);
            log::metric("kept", keep as f64);
        }
        Directive::Continue
    }
}

espalier_sdk::export!(pruner: __TYPE__);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn pruning_ends_exactly_at_the_end_of_its_window() {
        let window = Window::new(&Settings::defaults(), 100).unwrap();
        let steps: Vec<u64> = (1..=100).filter(|&step| window.prunes_at(step)).collect();
        assert_eq!(steps, [20, 30, 40, 50, 60, 70]);
    }

    #[test]
    fn a_window_that_ends_before_it_begins_is_refused() {
        let settings = Settings {
            begin: 0.9,
            ..Settings::defaults()
        };
        assert!(Window::new(&settings, 100).is_err());
    }
}
