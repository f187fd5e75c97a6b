//! A transform with one fault at a time. `tests/tests/conformance.rs` says by which law each is found, and
//! `tests/tests/transforms.rs` what follows in a run.

use espalier_sdk::data::SplitInfo;
use espalier_sdk::transform::{Derived, Samples};
use espalier_sdk::{Batch, Choice, Error, Options, RunInfo, StepInfo, Tensor, Transform, random};

/// What is wrong with it.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Fault {
    Nothing,
    OtherShape,
    OtherCount,
    ClassBeyond,
    NoSample,
    TakenName,
    ShufflesBatches,
    CountsBatches,
    Hoards,
    NeverEnds,
    PanicsOnFew,
}

/// Options under `[transform.with]`.
#[derive(Options)]
struct Settings {
    /// What is wrong with it.
    #[option(default = Fault::Nothing)]
    fault: Fault,
    /// What training inputs are multiplied with, batch by batch.
    #[option(default = 1.0)]
    scale: f64,
}

struct Faulty {
    settings: Settings,
    mean: Tensor,
    calls: u64,
    kept: Vec<Tensor>,
}

impl Transform for Faulty {
    type Options = Settings;
    const BATCHES: bool = true;

    fn new(
        _run: &RunInfo,
        settings: Settings,
        train: &Samples,
        _splits: &[SplitInfo],
    ) -> Result<Self, Error> {
        if settings.fault == Fault::PanicsOnFew {
            assert!(train.inputs().size(0) > 4, "too few to work with");
        }
        Ok(Faulty {
            settings,
            mean: train.inputs().mean(&[0]),
            calls: 0,
            kept: Vec::new(),
        })
    }

    fn prepare(&mut self, split: &SplitInfo, samples: &Samples) -> Vec<Derived> {
        let inputs = samples.inputs() - &self.mean;
        let centred = samples.with("inputs", inputs.clone());
        let train = split.name == "train";
        let wrong = match self.settings.fault {
            Fault::OtherShape if train => {
                centred.with("inputs", inputs.reshape(&[inputs.size(0) as i32, -1]))
            }
            Fault::OtherCount if train => centred.with("inputs", inputs.slice(0, 0, 1)),
            Fault::ClassBeyond if train => centred.with("targets", samples.targets() + 1.0),
            Fault::NoSample if train => centred.rows(&Tensor::indices([])),
            Fault::NeverEnds => loop {
                self.calls = self.calls.wrapping_add(1);
            },
            _ => centred,
        };
        let name = match self.settings.fault {
            Fault::TakenName => "test",
            _ => "noisy",
        };
        let mut all = vec![Derived::of(split, wrong)];
        if train {
            let noise = random::normal(&[7], &inputs.shape());
            all.push(Derived::new(
                name,
                split.classes,
                samples.with("inputs", inputs + noise),
            ));
        }
        all
    }

    fn apply(&mut self, batch: Batch, at: &StepInfo) -> Batch {
        self.calls += 1;
        let inputs = batch.inputs() * self.settings.scale;
        let count = batch.count();
        let key = match self.settings.fault {
            Fault::CountsBatches => self.calls,
            _ => at.step,
        };
        let inputs = inputs + random::normal(&[8, key], &[1]) * 0.01;
        if self.settings.fault == Fault::Hoards {
            self.kept.push(inputs.clone());
        }
        let rows = match self.settings.fault {
            Fault::ShufflesBatches => Tensor::indices((0..u64::from(count)).rev()),
            _ => Tensor::indices(0..u64::from(count)),
        };
        let fields = batch.fields().iter().map(|(name, t)| match name.as_str() {
            "inputs" => (name.clone(), inputs.take(&rows, 0)),
            _ => (name.clone(), t.take(&rows, 0)),
        });
        Batch::new(fields.collect(), batch.index().take(&rows, 0))
    }
}

espalier_sdk::export!(transform: Faulty);
