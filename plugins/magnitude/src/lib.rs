//! Pruner: the smallest weights go, at once or bit by bit while the network trains.
//!
//! One-shot: Han et al. 2015, with the absolute value as what a weight is worth. Gradual: Zhu and Gupta
//! 2017, equation 1: s(t) = s_f (1 - (1 - (t - t_0) / (t_1 - t_0))^3), every few steps. Counts are exact: a
//! number of weights is kept, no threshold is compared. What is pruned stays pruned.

use espalier_sdk::prune::{Weights, cubic_sparsity, keep_count};
use espalier_sdk::{Choice, Directive, Error, Event, EventKind, Options, Pruner, RunInfo, log};

/// When weights go.
#[derive(Choice, Clone, Copy, PartialEq)]
enum When {
    Gradual,
    OneShot,
}

/// What is compared with what.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Scope {
    Global,
    Layer,
}

/// Options under `[pruner.with]`.
#[derive(Options)]
struct Settings {
    /// Fraction of the prunable weights that are 0 at the end.
    #[option(default = 0.9, min = 0, max = 1)]
    sparsity: f64,
    /// gradual: along the cubic schedule from begin to end; one-shot: all at `at`.
    #[option(default = When::Gradual)]
    when: When,
    /// global: the smallest of all weights together; layer: the same fraction of each tensor.
    #[option(default = Scope::Global)]
    scope: Scope,
    /// Where gradual pruning begins, as a fraction of the round.
    #[option(default = 0.1, min = 0, max = 1)]
    begin: f64,
    /// Where it has reached the sparsity; the rest of the round recovers.
    #[option(default = 0.7, min = 0, max = 1)]
    end: f64,
    /// Steps between two prunings of the gradual schedule.
    #[option(default = 20, min = 1)]
    every_steps: u64,
    /// Where one-shot pruning happens, as a fraction of the round.
    #[option(default = 0.5, min = 0, max = 1)]
    at: f64,
    /// The same in steps; 0 for `at`.
    #[option(default = 0)]
    at_step: u64,
    /// The same in epochs; 0 for `at`.
    #[option(default = 0, min = 0)]
    at_epoch: f64,
    /// Weights left alone: parameters, layers or groups, separated by commas.
    #[option(default = "")]
    exclude: String,
    /// Leaves the weights of the last layer alone.
    #[option(default = false)]
    keep_last_layer: bool,
}

/// From which step to which, and how often in between. In steps done.
#[derive(Debug, PartialEq)]
struct Window {
    begin: u64,
    end: u64,
    every: u64,
}

impl Window {
    fn new(settings: &Settings, run: &RunInfo) -> Result<Window, Error> {
        let of_round = |fraction: f64| ((fraction * run.steps as f64).round() as u64).max(1);
        if settings.when == When::OneShot {
            let at = match (settings.at_step, settings.at_epoch) {
                (0, 0.0) => of_round(settings.at),
                (0, epochs) => ((epochs * run.steps_per_epoch as f64).round() as u64).max(1),
                (step, 0.0) => step,
                _ => {
                    return Err(Error::invalid_option(
                        "set one of `at-step` and `at-epoch`, not both",
                    ));
                }
            };
            if at > run.steps {
                return Err(Error::invalid_option(format!(
                    "pruning at step {at} never happens: a round has {} steps",
                    run.steps
                )));
            }
            return Ok(Window {
                begin: at,
                end: at,
                every: 1,
            });
        }
        if settings.begin > settings.end {
            return Err(Error::invalid_option(format!(
                "`begin` ({}) must not be after `end` ({})",
                settings.begin, settings.end
            )));
        }
        let (begin, end) = (of_round(settings.begin), of_round(settings.end));
        Ok(Window {
            begin,
            end,
            every: settings.every_steps,
        })
    }

    fn prunes_at(&self, step: u64) -> bool {
        step == self.end
            || (self.begin < step
                && step < self.end
                && (step - self.begin).is_multiple_of(self.every))
    }
}

struct Magnitude {
    settings: Settings,
    window: Window,
    weights: Weights,
}

impl Pruner for Magnitude {
    type Options = Settings;
    const EVENTS: &'static [EventKind] = &[EventKind::Step, EventKind::Round];

    fn new(run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let window = Window::new(&settings, run)?;
        let mut weights = Weights::of_run(&settings.exclude)?;
        if settings.keep_last_layer {
            weights = weights.without_last_layer()?;
        }
        Ok(Magnitude {
            settings,
            window,
            weights,
        })
    }

    fn on_event(&mut self, event: &Event) -> Directive {
        let step = event.at.step;
        match event.kind {
            EventKind::Step if self.window.prunes_at(step) => self.prune(step),
            // A trainer may end a round before its last step.
            EventKind::Round if step < self.window.end => {
                log::warn(
                    "the round ended before the schedule did: the rest is pruned now, nothing recovers",
                );
                self.prune(self.window.end);
            }
            _ => {}
        }
        Directive::Continue
    }
}

impl Magnitude {
    fn prune(&self, step: u64) {
        let (begin, end) = (self.window.begin as f64, self.window.end as f64);
        let sparsity = cubic_sparsity(step as f64, begin, end, 0.0, self.settings.sparsity);
        match self.settings.scope {
            Scope::Global => self
                .weights
                .keep_largest(keep_count(self.weights.total(), sparsity)),
            Scope::Layer => {
                let sizes = self.weights.sizes();
                let keep: Vec<u64> = sizes.iter().map(|&n| keep_count(n, sparsity)).collect();
                self.weights.keep_largest_of_each(&keep);
            }
        }
        if step == self.window.end {
            self.weights.report();
        }
    }
}

espalier_sdk::export!(pruner: Magnitude);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn run(steps: u64) -> RunInfo {
        let (seed, stage, rank, world) = (0, 0, 0, 1);
        RunInfo {
            seed,
            stage,
            steps,
            steps_per_epoch: 10,
            batch_size: 32,
            rank,
            world,
        }
    }

    #[test]
    fn gradual_pruning_ends_exactly_at_the_end_of_its_window() {
        let settings = Settings {
            every_steps: 7,
            ..Settings::defaults()
        };
        let window = Window::new(&settings, &run(100)).unwrap();
        let steps: Vec<u64> = (1..=100).filter(|&step| window.prunes_at(step)).collect();
        assert_eq!(steps, [17, 24, 31, 38, 45, 52, 59, 66, 70]);
    }

    #[test]
    fn one_shot_pruning_happens_once_where_it_is_asked_for() {
        let one_shot = |at_step, at_epoch| Settings {
            when: When::OneShot,
            at_step,
            at_epoch,
            ..Settings::defaults()
        };
        let steps = |settings: Settings| -> Vec<u64> {
            let window = Window::new(&settings, &run(100)).unwrap();
            (1..=100).filter(|&step| window.prunes_at(step)).collect()
        };
        assert_eq!(steps(one_shot(0, 0.0)), [50]);
        assert_eq!(steps(one_shot(31, 0.0)), [31]);
        assert_eq!(steps(one_shot(0, 2.5)), [25]);
        assert!(Window::new(&one_shot(31, 2.5), &run(100)).is_err());
        assert!(Window::new(&one_shot(101, 0.0), &run(100)).is_err());
    }

    #[test]
    fn a_window_that_ends_before_it_begins_is_refused() {
        let settings = Settings {
            begin: 0.8,
            end: 0.2,
            ..Settings::defaults()
        };
        assert!(Window::new(&settings, &run(100)).is_err());
    }
}
