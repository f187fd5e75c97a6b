//! An architecture that keeps every law but the one it is told to break: a perceptron with a normalisation.

use std::cell::{Cell, RefCell};

use espalier_sdk::architecture::{Architecture, Build, Layer, Pass, Weights};
use espalier_sdk::model::LayerInfo;
use espalier_sdk::parameters::Kind;
use espalier_sdk::{Choice, Error, Mode, Options, RunInfo, Tensor, random};

/// What is wrong with it.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Fault {
    Nothing,
    CountsBuilds,
    SkipsAhead,
    MixesSamples,
    DropsInEval,
    MovesInEval,
    DetachesWeights,
    RemembersWeights,
    OtherShape,
    KeepsTensors,
}

/// Options under `[architecture.with]`.
#[derive(Options)]
struct Settings {
    /// The fault.
    #[option(default = Fault::Nothing)]
    fault: Fault,
}

const UNITS: u32 = 12;
const LAYERS: [&str; 4] = ["flat", "hidden", "norm", "out"];

struct Faulty {
    fault: Fault,
    built: u64,
    /// What the layer before gave last, whoever asked.
    before: RefCell<Option<Tensor>>,
    weight: RefCell<Option<Tensor>>,
    kept: RefCell<Vec<Tensor>>,
    passes: Cell<u64>,
}

impl Architecture for Faulty {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        Ok(Faulty {
            fault: settings.fault,
            built: 0,
            before: RefCell::default(),
            weight: RefCell::default(),
            kept: RefCell::default(),
            passes: Cell::new(0),
        })
    }

    fn build(&mut self, build: &mut Build<'_>) -> Result<(), Error> {
        let features: u32 = build.inputs()?.shape.iter().product();
        let outputs = build.outputs();
        self.built += 1;
        let first = match self.fault {
            Fault::CountsBuilds => random::normal(&[self.built], &[features, UNITS]) * 0.3,
            _ => random::normal(&[1], &[features, UNITS]) * 0.3,
        };
        build.create("hidden.weight", Kind::Weight, &first, true);
        build.create("mean", Kind::Buffer, &Tensor::zeros(&[UNITS]), false);
        build.weight("out.weight", &[UNITS, outputs], 0.3);
        build.bias("out.bias", &[outputs]);
        build.layer(Layer::new(LAYERS[0], "flatten").out(&[features]))?;
        build.layer(
            Layer::new(LAYERS[1], "dense")
                .parameters(&["hidden.weight"])
                .out(&[UNITS]),
        )?;
        build.layer(
            Layer::new(LAYERS[2], "centre")
                .parameters(&["mean"])
                .out(&[UNITS]),
        )?;
        build.layer(
            Layer::new(LAYERS[3], "dense")
                .parameters(&["out.weight", "out.bias"])
                .out(&[outputs]),
        )
    }

    fn forward(
        &self,
        layer: &LayerInfo,
        inputs: &[Tensor],
        weights: &Weights<'_>,
        pass: &mut Pass,
    ) -> Tensor {
        let x = &inputs[0];
        match layer.index {
            0 => {
                let features = layer.out_shape[0] as i32;
                x.reshape(&[x.size(0) as i32, features])
            }
            1 => {
                let weight = weights.value("hidden.weight");
                if self.fault == Fault::KeepsTensors {
                    self.kept.borrow_mut().push(x.detach() * 1.0);
                }
                let weight = match self.fault {
                    Fault::DetachesWeights => weight.detach(),
                    Fault::RemembersWeights => self
                        .weight
                        .borrow_mut()
                        .get_or_insert_with(|| weight.detach())
                        .straight_through_to(&weight),
                    _ => weight,
                };
                let y = x.matmul(&weight).tanh();
                *self.before.borrow_mut() = (self.fault == Fault::SkipsAhead).then(|| y.clone());
                y
            }
            2 => {
                let skipped = self.before.borrow_mut().take();
                let x = skipped.as_ref().map_or(x.clone(), |y| (x + y) * 0.5 + 0.01);
                let (mean, mode) = (weights.value("mean"), pass.mode());
                let own = x.mean(&[0]);
                if mode == Mode::Train || self.fault == Fault::MovesInEval {
                    weights.assign("mean", &(&mean * 0.9 + own.detach() * 0.1));
                }
                match self.fault {
                    Fault::MixesSamples => x - own,
                    Fault::DropsInEval => {
                        self.passes.set(self.passes.get() + 1);
                        (x - mean).dropout(0.5, &[self.passes.get()])
                    }
                    _ => x - mean,
                }
            }
            _ => {
                let y = x.matmul(&weights.value("out.weight")) + weights.value("out.bias");
                match self.fault {
                    Fault::OtherShape => y.expand_dims(1),
                    _ => y,
                }
            }
        }
    }
}

/// Yesterday's value with today's gradient.
trait Stale {
    fn straight_through_to(&self, now: &Tensor) -> Tensor;
}

impl Stale for Tensor {
    fn straight_through_to(&self, now: &Tensor) -> Tensor {
        self + (now - now.detach())
    }
}

espalier_sdk::export!(architecture: Faulty);
