//! Pruner: the lottery ticket. Train, prune the smallest surviving weights, rewind the others, and again.
//!
//! Frankle and Carbin 2019 (arXiv 1803.03635): survivors go back to their values at the start. Frankle et al. 2019
//! (arXiv 1903.01611): back to step k, which deep networks need; `rewind-step`. Of n survivors of a layer
//! round(rate n) go, exactly, half as many in the last layer. Masks are nested, at least one weight of each tensor
//! lives.
//!
//! Two controls replace what the last round starts from, with masks found as before: `reinit` draws new initial
//! values under the same masks, `random-mask` puts as many living weights of each tensor at random places.

use espalier_sdk::model::LayerSpec;
use espalier_sdk::prune::Weights;
use espalier_sdk::{
    Choice, Directive, Error, Event, EventKind, Model, Options, ParameterSet, Pruner, RunInfo, log,
    state,
};

/// What is compared with what.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Scope {
    Global,
    Layer,
}

/// What the last round starts from.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Control {
    None,
    Reinit,
    RandomMask,
}

/// Options under `[pruner.with]`.
#[derive(Options)]
struct Settings {
    /// Fraction of the surviving weights that goes after each round.
    #[option(default = 0.2, min = 0, max = 1)]
    rate: f64,
    /// The same for the last layer, as a fraction of `rate`; only with scope layer.
    #[option(default = 0.5, min = 0, max = 1)]
    last_layer: f64,
    /// How often is pruned; there is one round of training more.
    #[option(default = 10, min = 1)]
    rounds: u32,
    /// layer: each tensor by itself, for small networks; global: all together, for deep ones.
    #[option(default = Scope::Layer)]
    scope: Scope,
    /// Survivors go back to their values after so many steps of the first round.
    #[option(default = 0)]
    rewind_step: u64,
    /// Weights left alone: parameters, layers or groups, separated by commas.
    #[option(default = "")]
    exclude: String,
    /// none: the ticket; reinit: its mask with new initial values; random-mask: its values, another mask.
    #[option(default = Control::None)]
    control: Control,
}

/// Where a round goes back to.
const TICKET: &str = "ticket";
const REINIT: &str = "reinit";

/// Uses of randomness: first number of a key.
const NEW_VALUES: u64 = 1;
const RANDOM_MASKS: u64 = 2;

struct LotteryTicket {
    settings: Settings,
    weights: Weights,
    /// How often has been pruned.
    pruned: u32,
}

impl Pruner for LotteryTicket {
    type Options = Settings;
    const EVENTS: &'static [EventKind] = &[EventKind::Step, EventKind::Round];

    fn new(run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        if settings.rewind_step > run.steps {
            return Err(Error::invalid_option(format!(
                "`rewind-step` is {}, a round has {} steps",
                settings.rewind_step, run.steps
            )));
        }
        let weights = Weights::of_run(&settings.exclude)?;
        ParameterSet::main().snapshot(TICKET);
        if settings.control == Control::Reinit {
            snapshot_of_new_values();
        }
        Ok(LotteryTicket {
            settings,
            weights,
            pruned: 0,
        })
    }

    fn on_event(&mut self, event: &Event) -> Directive {
        let k = self.settings.rewind_step;
        match event.kind {
            EventKind::Step if self.pruned == 0 && k > 0 && event.at.step == k => {
                ParameterSet::main().snapshot(TICKET);
                Directive::Continue
            }
            EventKind::Round if self.pruned < self.settings.rounds => {
                self.prune();
                self.pruned += 1;
                self.weights.report();
                Directive::Rewind(self.next_start().to_string())
            }
            _ => Directive::Continue,
        }
    }

    fn save(&self) -> Vec<u8> {
        state::Writer::new(1).u64(u64::from(self.pruned)).finish()
    }

    fn restore(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut state = state::Reader::new(bytes, 1)?;
        self.pruned = u32::try_from(state.u64()?)
            .map_err(|_| Error::invalid_state("the saved number of rounds is too large"))?;
        state.end()
    }
}

impl LotteryTicket {
    fn prune(&self) {
        let alive = self.weights.alive();
        match self.settings.scope {
            Scope::Global => self
                .weights
                .keep_largest(survivors(alive.iter().sum(), self.settings.rate)),
            Scope::Layer => {
                let rate = |i: usize| match self.weights.is_last(&self.weights.infos()[i]) {
                    true => self.settings.rate * self.settings.last_layer,
                    false => self.settings.rate,
                };
                let keep: Vec<u64> = alive
                    .iter()
                    .enumerate()
                    .map(|(i, &n)| survivors(n, rate(i)))
                    .collect();
                self.weights.keep_largest_of_each(&keep);
            }
        }
    }

    /// The tag of the next round; the last one is the control's.
    fn next_start(&self) -> &'static str {
        if self.pruned < self.settings.rounds {
            return TICKET;
        }
        match self.settings.control {
            Control::None => TICKET,
            Control::Reinit => {
                log::info("control: the last round starts from new initial values");
                REINIT
            }
            Control::RandomMask => {
                log::info("control: the last round has random masks");
                let masks = self
                    .weights
                    .random_masks(&self.weights.alive(), RANDOM_MASKS);
                self.weights.set_masks(&masks);
                TICKET
            }
        }
    }
}

/// Remembers the run at its start with other initial values: those of a model built from the same layers.
fn snapshot_of_new_values() {
    let layers = Model::main().layers();
    let spec = |layer: espalier_sdk::model::LayerInfo| LayerSpec {
        name: layer.name,
        kind: layer.kind,
        inputs: layer.inputs,
        settings: layer.settings,
    };
    let specs: Vec<LayerSpec> = layers.into_iter().map(spec).collect();
    let fresh = Model::build("reinit", &specs, &[NEW_VALUES]).parameters();
    let set = ParameterSet::main();
    for info in set.list() {
        set.assign(&info.name, &fresh.value(&info.name));
    }
    set.snapshot(REINIT);
    set.rollback(TICKET);
}

/// How many of n survive: n - round(rate n). A single one always does.
fn survivors(n: u64, rate: f64) -> u64 {
    let cut = (rate * n as f64).round() as u64;
    n.saturating_sub(cut).max(n.min(1))
}

espalier_sdk::export!(pruner: LotteryTicket);

#[cfg(test)]
mod tests {
    use super::*;

    /// Counts after each of some rounds.
    fn rounds(mut n: u64, rate: f64, rounds: usize) -> Vec<u64> {
        (0..rounds)
            .map(|_| {
                n = survivors(n, rate);
                n
            })
            .collect()
    }

    #[test]
    fn each_round_counts_only_survivors() {
        assert_eq!(rounds(100, 0.2, 4), [80, 64, 51, 41]);
        assert_eq!(rounds(1000, 0.2, 4), [800, 640, 512, 410]);
    }

    #[test]
    fn exactly_the_rounded_count_goes() {
        assert_eq!(survivors(5, 0.2), 4);
        assert_eq!(survivors(7, 0.0), 7);
    }

    #[test]
    fn the_last_weight_of_a_tensor_stays() {
        assert_eq!(survivors(1, 0.9), 1);
        assert_eq!(survivors(2, 1.0), 1);
        assert_eq!(survivors(0, 0.5), 0);
    }
}
