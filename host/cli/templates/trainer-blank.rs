//! Trainer: plain stochastic gradient descent, w <- w - lr g.
//!
//! Put the paper and its equation here, and say where this differs and why.

use espalier_sdk::data::{Batch, Stream};
use espalier_sdk::parameters::{ParameterSet, SgdOptions};
use espalier_sdk::{
    Error, Mode, Model, Options, Prediction, RunInfo, StepInfo, StepReport, Tensor, Trainer,
};

/// Options under `[trainer.with]`.
#[derive(Options)]
struct Settings {
    /// Learning rate.
    #[option(default = 0.1, min = 0)]
    lr: f64,
}

struct __TYPE__ {
    lr: f64,
    model: Model,
    stream: Stream,
}

impl Trainer for __TYPE__ {
    type Options = Settings;

    fn new(run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        if ParameterSet::main().trainable().is_empty() {
            return Err(Error::incompatible("the model has nothing to train"));
        }
        if espalier_sdk::data::split("train").is_none_or(|split| split.classes == 0) {
            return Err(Error::incompatible("this trainer needs data with classes"));
        }
        Ok(__TYPE__ {
            lr: settings.lr,
            model: Model::main(),
            stream: Stream::train(run.batch_size, &[0]),
        })
    }

    fn step(&mut self, _at: &StepInfo) -> StepReport {
        let batch = self.stream.next_endless();
        let output = self.model.forward(batch.fields(), Mode::Train);
        let loss = output.cross_entropy(batch.targets()).mean(&[]);
        let set = ParameterSet::main();
        let names = set.trainable();
        let gradients = set.grad(&loss, &names);
        // The decision: how far along which gradient.
        let options = SgdOptions {
            lr: self.lr,
            ..Default::default()
        };
        set.sgd(&names, &gradients, options);
        StepReport::new(loss.item(), batch.count())
    }

    fn objective(&self, batch: &Batch) -> Tensor {
        let output = self.model.forward(batch.fields(), Mode::TrainFrozenStats);
        output.cross_entropy(batch.targets())
    }

    fn predict(&self, batch: &Batch) -> Prediction {
        Prediction::logits(self.model.forward(batch.fields(), Mode::Eval))
    }
}

espalier_sdk::export!(trainer: __TYPE__);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_lie_in_their_ranges() {
        assert_eq!(Settings::defaults().lr, 0.1);
    }
}
