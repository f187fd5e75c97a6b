//! Trainer: backpropagation with SGD, Adam or AdamW.
//!
//! Rumelhart, Hinton and Williams 1986. Optimisers as in PyTorch: SGD with (Nesterov) momentum, Adam (Kingma and
//! Ba 2015), AdamW (Loshchilov and Hutter 2019). Learning-rate factors in `espalier_sdk::schedule`; gradients
//! may be clipped by their common norm (Pascanu et al. 2013).

use espalier_sdk::data::{self, Batch, Stream};
use espalier_sdk::options::Value;
use espalier_sdk::parameters::{AdamOptions, Selection, SgdOptions, clip_grad_norm};
use espalier_sdk::schedule::Schedule;
use espalier_sdk::{
    Choice, Error, Mode, Model, Options, ParameterSet, Prediction, RunInfo, StepInfo, StepReport,
    Tensor, Trainer,
};

/// How a gradient changes a parameter.
#[derive(Choice, Clone, Copy)]
enum Optimizer {
    Sgd,
    Adam,
    Adamw,
}

/// What is minimised.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Loss {
    Auto,
    CrossEntropy,
    Mse,
}

/// Options under `[trainer.with]`.
#[derive(Options)]
struct Settings {
    /// How a gradient changes a parameter.
    #[option(default = Optimizer::Sgd)]
    optimizer: Optimizer,
    /// Learning rate before the schedule; about 0.1 for sgd, 0.001 for adam.
    #[option(default = 0.1, min = 0, live)]
    lr: f64,
    /// Momentum of sgd.
    #[option(default = 0.9, min = 0, max = 1)]
    momentum: f64,
    /// Nesterov momentum in sgd.
    #[option(default = false)]
    nesterov: bool,
    /// Decay rates of the two moments of adam and adamw.
    #[option(default = [0.9, 0.999], min = 0, max = 1)]
    betas: Vec<f64>,
    /// Added to the root of adam's second moment.
    #[option(default = 1e-8, min = 0)]
    eps: f64,
    /// Weight decay: in the gradient for sgd and adam, of the weight itself for adamw.
    #[option(default = 0, min = 0)]
    weight_decay: f64,
    /// What is minimised; auto: cross-entropy where the targets are classes, else the mean squared error.
    #[option(default = Loss::Auto)]
    loss: Loss,
    /// How the learning rate goes down over a round.
    #[option(default = Schedule::Constant)]
    schedule: Schedule,
    /// Steps over which the learning rate rises at the start of a round.
    #[option(default = 0)]
    warmup_steps: u64,
    /// Largest norm of all gradients together; 0 for no limit.
    #[option(default = 0, min = 0)]
    clip_grad_norm: f64,
}

struct Backprop {
    settings: Settings,
    steps: u64,
    model: Model,
    stream: Stream,
    set: ParameterSet,
    names: Vec<String>,
    weights: Selection,
}

impl Trainer for Backprop {
    type Options = Settings;

    fn new(run: &RunInfo, mut settings: Settings) -> Result<Self, Error> {
        let [_, _] = settings.betas[..] else {
            return Err(Error::invalid_option(format!(
                "`betas` must be two numbers, as [0.9, 0.999]; there are {}",
                settings.betas.len()
            )));
        };
        let train = data::split("train")
            .filter(|split| split.fields.iter().any(|field| field.name == "targets"))
            .ok_or_else(|| {
                Error::incompatible(
                    "this trainer learns from targets, and the run has none; a run with an [environment] learns from \
                     rewards: choose plugin = \"policy-gradient\"",
                )
            })?;
        let classes = train.classes;
        if settings.loss == Loss::Auto {
            settings.loss = if classes > 0 {
                Loss::CrossEntropy
            } else {
                Loss::Mse
            };
        }
        if settings.loss == Loss::CrossEntropy && classes == 0 {
            return Err(Error::incompatible(
                "the loss cross-entropy needs targets that are classes, this data has numbers; set loss = \"mse\"",
            ));
        }
        let set = ParameterSet::main();
        let names = set.trainable();
        if names.is_empty() {
            return Err(Error::incompatible("the model has no trainable parameters"));
        }
        let stream = Stream::train(run.batch_size, &[0]);
        Ok(Backprop {
            settings,
            steps: run.steps,
            model: Model::main(),
            stream,
            weights: set.select(&names),
            set,
            names,
        })
    }

    fn step(&mut self, at: &StepInfo) -> StepReport {
        let batch = self.stream.next_endless();
        let loss = self.losses(&batch, Mode::Train).mean(&[]);
        self.update(&loss, at.step);
        StepReport::new(loss.item(), batch.count())
    }

    fn objective(&self, batch: &Batch) -> Tensor {
        self.losses(batch, Mode::TrainFrozenStats)
    }

    fn predict(&self, batch: &Batch) -> Prediction {
        let output = self.model.forward(batch.fields(), Mode::Eval);
        match self.settings.loss {
            Loss::Mse => Prediction::values(output),
            Loss::Auto | Loss::CrossEntropy => Prediction::logits(output),
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

impl Backprop {
    fn losses(&self, batch: &Batch, mode: Mode) -> Tensor {
        let output = self.model.forward(batch.fields(), mode);
        match self.settings.loss {
            Loss::Mse => output
                .mse(&batch.targets().reshape_as(&output))
                .per_sample(),
            Loss::Auto | Loss::CrossEntropy => output.cross_entropy(batch.targets()),
        }
    }

    fn update(&self, loss: &Tensor, step: u64) {
        let Settings {
            clip_grad_norm: limit,
            momentum,
            nesterov,
            eps,
            weight_decay,
            ..
        } = self.settings;
        let lr = self.settings.lr
            * self
                .settings
                .schedule
                .factor(step, self.steps, self.settings.warmup_steps);
        let adam = AdamOptions {
            lr,
            beta1: self.settings.betas[0],
            beta2: self.settings.betas[1],
            eps,
            weight_decay,
        };
        let sgd = SgdOptions {
            lr,
            momentum,
            weight_decay,
            nesterov,
        };
        if limit > 0.0 {
            let grads = clip_grad_norm(&self.weights.gradients(loss), limit).0;
            return match self.settings.optimizer {
                Optimizer::Sgd => self.set.sgd(&self.names, &grads, sgd),
                Optimizer::Adam => self.set.adam(&self.names, &grads, adam),
                Optimizer::Adamw => self.set.adamw(&self.names, &grads, adam),
            };
        }
        match self.settings.optimizer {
            Optimizer::Sgd => self.weights.minimize_sgd(loss, sgd),
            Optimizer::Adam => self.weights.minimize_adam(loss, adam),
            Optimizer::Adamw => self.weights.minimize_adamw(loss, adam),
        }
    }
}

espalier_sdk::export!(trainer: Backprop);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_lies_in_its_own_range() {
        let settings = Settings::defaults();
        assert_eq!((settings.lr, settings.momentum), (0.1, 0.9));
        assert!(
            Settings::infos()
                .iter()
                .any(|info| info.name == "lr" && info.live)
        );
    }
}
