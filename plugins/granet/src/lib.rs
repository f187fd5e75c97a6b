//! Pruner: GraNet. Gradual magnitude pruning, and after each pruning as many weights regrow as are removed once
//! more, where the gradient is largest ("zero-cost neuroregeneration").
//!
//! Liu et al. 2021 (arXiv 2106.10404). Every few steps within a window: the sparsity follows the cubic schedule by
//! a global comparison of magnitudes; then in each tensor the smallest `r` of the living weights go and equally
//! many dead ones with the largest absolute gradient come to life, at 0 and without momentum; `r` falls along a
//! cosine from 0.5 to 0.005 over the round. The start is dense, or sparse with the Erdos-Renyi-kernel densities
//! (Evci et al. 2020).
//!
//! Differences: counts are exact instead of a strict comparison with a threshold; the gradient is that of a fresh
//! batch instead of the step's own, because the trainer may have none of the whole network. A weight that goes
//! and regrows at once keeps its value.

use espalier_sdk::data::Stream;
use espalier_sdk::prune::{Weights, cubic_sparsity, keep_count};
use espalier_sdk::{
    Directive, Error, Event, EventKind, Options, Pruner, RunInfo, grad, log, model,
};

/// Options under `[pruner.with]`.
#[derive(Options)]
struct Settings {
    /// Fraction of the prunable weights that are 0 at the end.
    #[option(default = 0.9, min = 0, max = 1)]
    sparsity: f64,
    /// The same at the start; above 0 the start has random masks.
    #[option(default = 0, min = 0, max = 1)]
    initial_sparsity: f64,
    /// Where pruning begins, as a fraction of the round.
    #[option(default = 0, min = 0, max = 1)]
    begin: f64,
    /// Where it has reached the sparsity.
    #[option(default = 0.7, min = 0, max = 1)]
    end: f64,
    /// Steps between two updates of the masks.
    #[option(default = 40, min = 1)]
    every_steps: u64,
    /// Fraction of a tensor's living weights that moves at an update, at the start of the round.
    #[option(default = 0.5, min = 0, max = 1)]
    regrow_rate: f64,
    /// The same at the end of the round.
    #[option(default = 0.005, min = 0, max = 1)]
    regrow_rate_end: f64,
    /// Weights go on moving after the window.
    #[option(default = true)]
    regrow_after_window: bool,
    /// Weights left alone: parameters, layers or groups, separated by commas.
    #[option(default = "")]
    exclude: String,
}

/// Uses of randomness: first number of a key.
const START: u64 = 1;
const BATCHES: u64 = 2;

struct GraNet {
    settings: Settings,
    /// Steps of a round; first and last step of the window.
    steps: u64,
    window: (u64, u64),
    weights: Weights,
    stream: Stream,
}

impl Pruner for GraNet {
    type Options = Settings;
    const EVENTS: &'static [EventKind] = &[EventKind::Step, EventKind::Round];

    fn new(run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let of_round = |fraction: f64| (fraction * run.steps as f64).round() as u64;
        let window = (of_round(settings.begin), of_round(settings.end).max(1));
        if settings.begin > settings.end {
            return Err(Error::invalid_option(format!(
                "`begin` ({}) must not be after `end` ({})",
                settings.begin, settings.end
            )));
        }
        if settings.initial_sparsity > settings.sparsity {
            return Err(Error::invalid_option(format!(
                "`initial-sparsity` ({}) must not be above `sparsity` ({})",
                settings.initial_sparsity, settings.sparsity
            )));
        }
        let weights = Weights::of_run(&settings.exclude)?;
        if settings.initial_sparsity > 0.0 {
            let shapes: Vec<Vec<u32>> = weights
                .infos()
                .iter()
                .map(|info| info.shape.clone())
                .collect();
            let densities = erdos_renyi_kernel(&shapes, 1.0 - settings.initial_sparsity);
            let alive: Vec<u64> = weights
                .sizes()
                .iter()
                .zip(&densities)
                .map(|(&n, d)| keep_count(n, 1.0 - d))
                .collect();
            weights.set_masks(&weights.random_masks(&alive, START));
        }
        let stream = Stream::train(run.batch_size, &[BATCHES]);
        Ok(GraNet {
            settings,
            steps: run.steps,
            window,
            weights,
            stream,
        })
    }

    fn on_event(&mut self, event: &Event) -> Directive {
        let step = event.at.step;
        match event.kind {
            EventKind::Step if self.prunes_at(step) => {
                self.prune(step);
                self.regrow(step);
            }
            EventKind::Step if self.only_regrows_at(step) => self.regrow(step),
            EventKind::Round => {
                // A trainer may end a round before its last step.
                if step < self.window.1 {
                    log::warn("the round ended before the window did: the rest is pruned now");
                    self.prune(self.window.1);
                }
                self.weights.report();
            }
            _ => {}
        }
        Directive::Continue
    }
}

impl GraNet {
    fn prunes_at(&self, step: u64) -> bool {
        let (begin, end) = self.window;
        step == end
            || (begin < step
                && step < end
                && (step - begin).is_multiple_of(self.settings.every_steps))
    }

    fn only_regrows_at(&self, step: u64) -> bool {
        let (begin, end) = self.window;
        let due = step > end
            && step < self.steps
            && (step - begin).is_multiple_of(self.settings.every_steps);
        due && self.settings.regrow_after_window
    }

    fn prune(&self, step: u64) {
        let (begin, end) = (self.window.0 as f64, self.window.1 as f64);
        let (first, last) = (self.settings.initial_sparsity, self.settings.sparsity);
        let sparsity = cubic_sparsity(step as f64, begin, end, first, last);
        self.weights
            .keep_largest(keep_count(self.weights.total(), sparsity));
    }

    /// Moves living weights of each tensor; their number stays the same.
    fn regrow(&self, step: u64) {
        let values = self.weights.values();
        let batch = self.stream.next_endless();
        let loss = model::objective(&batch).mean(&[]);
        let grads = grad(&loss, &values.iter().collect::<Vec<_>>());
        let rate = regrow_rate(
            step,
            self.steps,
            self.settings.regrow_rate,
            self.settings.regrow_rate_end,
        );
        let (alive, masks) = (self.weights.alive(), self.weights.masks());
        let moved = values.iter().zip(&grads).zip(masks.iter().zip(&alive)).map(
            |((value, grad), (mask, &alive))| {
                let moving = (rate * alive as f64).ceil() as u64;
                let staying = value
                    .detach()
                    .abs()
                    .keep_largest(mask, alive - moving.min(alive));
                let grown = grad
                    .abs()
                    .keep_largest(&staying.logical_not(), moving.min(alive));
                staying.logical_or(&grown)
            },
        );
        self.weights.set_masks(&moved.collect::<Vec<_>>());
    }
}

/// Half a cosine from `first` to `last` over the round.
fn regrow_rate(step: u64, steps: u64, first: f64, last: f64) -> f64 {
    let t = step as f64 / steps.max(1) as f64;
    last + 0.5 * (first - last) * (1.0 + (std::f64::consts::PI * t.min(1.0)).cos())
}

/// Density of each tensor: in proportion to the sum over the product of its sizes, at most 1, so that the whole
/// has density `density`.
fn erdos_renyi_kernel(shapes: &[Vec<u32>], density: f64) -> Vec<f64> {
    let sum: Vec<f64> = shapes
        .iter()
        .map(|shape| shape.iter().map(|&n| f64::from(n)).sum())
        .collect();
    let product: Vec<f64> = shapes
        .iter()
        .map(|shape| shape.iter().map(|&n| f64::from(n)).product())
        .collect();
    let wanted = density * product.iter().sum::<f64>();
    let mut dense = vec![false; shapes.len()];
    loop {
        let of = |all: &[f64], dense_ones: bool| -> f64 {
            all.iter()
                .zip(&dense)
                .filter(|(_, d)| **d == dense_ones)
                .map(|(x, _)| x)
                .sum()
        };
        let left = of(&sum, false);
        let scale = if left > 0.0 {
            (wanted - of(&product, true)).max(0.0) / left
        } else {
            0.0
        };
        let densities: Vec<f64> = (0..shapes.len())
            .map(|i| {
                if dense[i] {
                    1.0
                } else {
                    scale * sum[i] / product[i]
                }
            })
            .collect();
        let before = dense.clone();
        for (dense, density) in dense.iter_mut().zip(&densities) {
            *dense |= *density > 1.0;
        }
        if dense == before {
            return densities;
        }
    }
}

espalier_sdk::export!(pruner: GraNet);

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-6, "{a} is not {b}");
    }

    #[test]
    fn the_regrow_rate_falls_along_a_cosine() {
        close(regrow_rate(0, 100, 0.5, 0.005), 0.5);
        close(regrow_rate(50, 100, 0.5, 0.005), 0.2525);
        close(regrow_rate(100, 100, 0.5, 0.005), 0.005);
    }

    #[test]
    fn sparse_starts_have_the_known_densities() {
        let densities = erdos_renyi_kernel(&[vec![10, 10], vec![100, 100]], 0.1);
        close(densities[0], 0.918182);
        close(densities[1], 0.091818);
    }

    #[test]
    fn a_tensor_that_would_be_denser_than_full_is_full_and_the_rest_makes_up() {
        let densities = erdos_renyi_kernel(&[vec![10, 10], vec![100, 100]], 0.2);
        close(densities[0], 1.0);
        close(densities[1], (0.2 * 10100.0 - 100.0) / 10000.0);
        assert_eq!(erdos_renyi_kernel(&[vec![4, 4]], 1.0), [1.0]);
        assert_eq!(erdos_renyi_kernel(&[vec![4, 4]], 0.0), [0.0]);
    }
}
