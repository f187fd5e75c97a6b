//! An auditor with one fault at a time. `tests/tests/conformance.rs` says by which law each is found, and
//! `tests/tests/auditors.rs` what follows in a run.

use std::cell::Cell;

use espalier_sdk::auditor::Report;
use espalier_sdk::parameters::{Kind, SgdOptions};
use espalier_sdk::{
    Auditor, Batch, Choice, Error, Mode, Model, Options, ParameterSet, RunInfo, Tensor, data, model,
};

/// What is wrong with it.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Fault {
    Nothing,
    Assigns,
    Masks,
    Updates,
    Snapshots,
    NotANumber,
    SaysNothing,
    UnevenTable,
    NeverEnds,
    PanicsOnNothing,
}

/// Options under `[auditor.with]`.
#[derive(Options)]
struct Settings {
    /// What is wrong with it.
    #[option(default = Fault::Nothing)]
    fault: Fault,
    /// What the report says of the result.
    #[option(default = false)]
    flag: bool,
}

struct Faulty {
    settings: Settings,
    calls: Cell<u64>,
}

/// Sum of the absolute values of all weights.
fn weight() -> f64 {
    let set = ParameterSet::main();
    let of = |name: &String| set.value(name).abs().sum(&[]).item();
    set.list().iter().map(|info| of(&info.name)).sum()
}

impl Auditor for Faulty {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        Ok(Faulty {
            settings,
            calls: Cell::new(0),
        })
    }

    fn audit(&mut self) -> Report {
        let set = ParameterSet::main();
        let infos = set.list();
        let first = infos.iter().find(|info| info.kind == Kind::Weight);
        let name = first.map(|info| info.name.clone()).unwrap_or_default();
        let trainable = set.trainable();
        match self.settings.fault {
            Fault::Assigns => set.assign(&name, &set.value(&name).zeros_like()),
            Fault::Masks => set.set_mask(&name, &set.value(&name).ones_like()),
            Fault::Snapshots => set.snapshot("mine"),
            Fault::Updates => {
                let grads: Vec<Tensor> = set
                    .values(&trainable)
                    .iter()
                    .map(Tensor::ones_like)
                    .collect();
                let options = SgdOptions {
                    lr: 0.1,
                    ..Default::default()
                };
                set.sgd(&trainable, &grads, options);
            }
            Fault::NeverEnds => loop {
                self.calls.set(self.calls.get() + 1);
            },
            Fault::PanicsOnNothing => {
                let live = infos.iter().any(|i| i.kind == Kind::Weight && i.trainable);
                assert!(live, "nothing to look at");
            }
            _ => {}
        }
        // A copy may be trained, and the trainer may be asked.
        let inputs = data::field("test", "inputs");
        let targets = data::field("test", "targets");
        let count = u64::from(inputs.size(0));
        let copy = Model::main().copy("copy");
        let own = copy.parameters();
        let names = own.trainable();
        let fields = [("inputs".to_string(), inputs.clone())];
        let before = copy.forward(&fields, Mode::Eval);
        if !names.is_empty() {
            let loss = copy.forward(&fields, Mode::Train).square().mean(&[]);
            let grads = own.grad(&loss, &names);
            own.sgd(
                &names,
                &grads,
                SgdOptions {
                    lr: 0.1,
                    ..Default::default()
                },
            );
        }
        let moved = (copy.forward(&fields, Mode::Eval) - &before)
            .abs()
            .sum(&[])
            .item();
        let index = Tensor::indices(0..count);
        let batch = Batch::new(
            vec![("inputs".into(), inputs), ("targets".into(), targets)],
            index,
        );
        let objective = model::objective(&batch).mean(&[]).item();
        let predicted = model::predict(&batch).output().size(0);
        let weight = weight();
        let report = match self.settings.fault {
            Fault::SaysNothing => return Report::new(""),
            Fault::NotANumber => Report::new("").number("weight", f64::NAN),
            Fault::UnevenTable => Report::new("").table("t", &["a", "b"], vec![vec![1.0]]),
            _ => Report::new("A look at the weights.").number("weight", weight),
        };
        report
            .number("moved", moved)
            .number("objective", objective)
            .number("predicted", f64::from(predicted))
            .flag(self.settings.flag)
    }
}

espalier_sdk::export!(auditor: Faulty);
