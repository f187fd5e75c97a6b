//! Trainer: gradient descent with momentum, gradients clipped to a norm, the learning rate along a schedule.
//!
//! Put the paper and its equation here, and say where this differs and why.

use espalier_sdk::data::{self, Batch, Stream};
use espalier_sdk::options::Value;
use espalier_sdk::parameters::{ParameterSet, SgdOptions, clip_grad_norm};
use espalier_sdk::schedule::Schedule;
use espalier_sdk::{
    Error, Mode, Model, Options, Prediction, RunInfo, StepInfo, StepReport, Tensor, Trainer,
};

/// Options under `[trainer.with]`.
#[derive(Options)]
struct Settings {
    /// Learning rate before the schedule.
    #[option(default = 0.1, min = 0, live)]
    lr: f64,
    /// How much of the last update an update keeps.
    #[option(default = 0.9, min = 0, max = 1)]
    momentum: f64,
    /// How the learning rate goes down over a round.
    #[option(default = Schedule::Cosine)]
    schedule: Schedule,
    /// Steps over which the learning rate rises at the start of a round.
    #[option(default = 0)]
    warmup_steps: u64,
    /// Largest norm of all gradients together; 0 for no limit.
    #[option(default = 1, min = 0)]
    clip: f64,
}

impl Settings {
    /// The learning rate of a step.
    fn lr_at(&self, step: u64, steps: u64) -> f64 {
        self.lr * self.schedule.factor(step, steps, self.warmup_steps)
    }
}

struct __TYPE__ {
    settings: Settings,
    /// Steps of a round.
    steps: u64,
    /// False where targets are values.
    classes: bool,
    model: Model,
    stream: Stream,
}

impl Trainer for __TYPE__ {
    type Options = Settings;

    fn new(run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        if ParameterSet::main().trainable().is_empty() {
            return Err(Error::incompatible("the model has nothing to train"));
        }
        let Some(split) = data::split("train") else {
            return Err(Error::incompatible("this trainer needs data"));
        };
        if !split.fields.iter().any(|field| field.name == "targets") {
            return Err(Error::incompatible("this trainer needs data with targets"));
        }
        Ok(__TYPE__ {
            settings,
            steps: run.steps,
            classes: split.classes > 0,
            model: Model::main(),
            stream: Stream::train(run.batch_size, &[0]),
        })
    }

    fn step(&mut self, at: &StepInfo) -> StepReport {
        let batch = self.stream.next_endless();
        let loss = self.losses(&batch, Mode::Train).mean(&[]);
        let set = ParameterSet::main();
        let names = set.trainable();
        let mut gradients = set.grad(&loss, &names);
        if self.settings.clip > 0.0 {
            (gradients, _) = clip_grad_norm(&gradients, self.settings.clip);
        }
        let options = SgdOptions {
            lr: self.settings.lr_at(at.step, self.steps),
            momentum: self.settings.momentum,
            ..Default::default()
        };
        set.sgd(&names, &gradients, options);
        StepReport::new(loss.item(), batch.count())
    }

    fn objective(&self, batch: &Batch) -> Tensor {
        self.losses(batch, Mode::TrainFrozenStats)
    }

    fn predict(&self, batch: &Batch) -> Prediction {
        let output = self.model.forward(batch.fields(), Mode::Eval);
        match self.classes {
            true => Prediction::logits(output),
            false => Prediction::values(output),
        }
    }

    fn set_knob(&mut self, name: &str, value: &Value) -> Result<(), Error> {
        self.settings.set_live(name, value)
    }

    fn save(&self) -> Vec<u8> {
        self.settings.save_live()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        self.settings.restore_live(state)
    }
}

impl __TYPE__ {
    /// Losses of the samples, [count].
    fn losses(&self, batch: &Batch, mode: Mode) -> Tensor {
        let output = self.model.forward(batch.fields(), mode);
        match self.classes {
            true => output.cross_entropy(batch.targets()),
            false => {
                let targets = batch.targets().reshape(&[batch.count() as i32, -1]);
                (output - targets).square().mean(&[-1])
            }
        }
    }
}

espalier_sdk::export!(trainer: __TYPE__);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_learning_rate_rises_and_falls_over_the_round() {
        let settings = Settings {
            lr: 1.0,
            warmup_steps: 10,
            ..Settings::defaults()
        };
        assert_eq!(settings.lr_at(0, 110), 0.1);
        assert!((settings.lr_at(60, 110) - 0.5).abs() < 1e-12);
        assert_eq!(settings.lr_at(110, 110), 0.0);
    }
}
