//! A pruner that keeps every law but the one it is told to break.

use espalier_sdk::parameters::{Kind, ParameterSet};
use espalier_sdk::prune::{Weights, keep_count};
use espalier_sdk::{
    Choice, Directive, Error, Event, EventKind, Options, Pruner, RunInfo, Tensor, random,
};

/// What is wrong with it.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Fault {
    Nothing,
    MissesSparsity,
    PrunesBiases,
    PrunesFrozen,
    ScoresAsMasks,
    DrawsAnew,
    LeaksHandles,
    Unsaved,
    RewindsForEver,
    PrunesNothing,
    PanicsOnNothing,
}

/// Options under `[pruner.with]`.
#[derive(Options)]
struct Settings {
    /// Fraction of the prunable weights that are 0 at the end.
    #[option(default = 0.5, min = 0, max = 1)]
    sparsity: f64,
    /// The fault.
    #[option(default = Fault::Nothing)]
    fault: Fault,
}

struct Faulty {
    settings: Settings,
    at: u64,
    weights: Weights,
    /// Events so far: remembered, and not saved.
    events: u64,
    kept: Vec<Tensor>,
}

impl Pruner for Faulty {
    type Options = Settings;
    const EVENTS: &'static [EventKind] = &[EventKind::Step, EventKind::Round];

    fn new(run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let prunable = |info: &espalier_sdk::parameters::ParameterInfo| {
            info.kind == Kind::Weight && info.trainable
        };
        if settings.fault == Fault::PanicsOnNothing {
            let list = ParameterSet::main().list();
            assert!(list.iter().any(prunable), "there is always a weight");
        }
        Ok(Faulty {
            settings,
            at: (run.steps / 2).max(1),
            weights: Weights::of_run("")?,
            events: 0,
            kept: Vec::new(),
        })
    }

    fn on_event(&mut self, event: &Event) -> Directive {
        let fault = self.settings.fault;
        if event.kind == EventKind::Round {
            return match fault {
                Fault::RewindsForEver => {
                    ParameterSet::main().snapshot("here");
                    Directive::Rewind("here".into())
                }
                _ => Directive::Continue,
            };
        }
        self.events += 1;
        let set = ParameterSet::main();
        let total = self.weights.total();
        let due = match fault {
            // Its own count of steps starts anew on a resume.
            Fault::Unsaved => self.events == self.at + 2,
            Fault::PrunesNothing => false,
            _ => event.at.step == self.at,
        };
        if due {
            let sparsity = match fault {
                Fault::MissesSparsity => 0.95 * self.settings.sparsity,
                _ => self.settings.sparsity,
            };
            self.weights.keep_largest(keep_count(total, sparsity));
        }
        match fault {
            Fault::PrunesBiases | Fault::PrunesFrozen if due => {
                for info in set.list() {
                    let wanted = match fault {
                        Fault::PrunesBiases => info.kind == Kind::Bias,
                        _ => info.kind == Kind::Weight && !info.trainable,
                    };
                    if wanted {
                        let alive = set.mask_or_ones(&info);
                        set.set_mask(
                            &info.name,
                            &set.value(&info.name).detach().abs().keep_largest(&alive, 1),
                        );
                    }
                }
            }
            Fault::ScoresAsMasks if due => {
                let info = &self.weights.infos()[0];
                set.set_mask(&info.name, &set.value(&info.name).detach().abs());
            }
            Fault::DrawsAnew => {
                let keep: Vec<u64> = self.weights.sizes().iter().map(|n| n / 2).collect();
                self.weights
                    .set_masks(&self.weights.random_masks(&keep, self.events));
            }
            Fault::LeaksHandles => self.kept.push(random::normal(&[self.events], &[2])),
            _ => {}
        }
        Directive::Continue
    }
}

espalier_sdk::export!(pruner: Faulty);
