//! Trainer: backpropagation with SGD, Adam or AdamW.
//!
//! Rumelhart, Hinton and Williams 1986. Optimisers as in PyTorch: SGD with (Nesterov) momentum, Adam (Kingma and
//! Ba 2015), AdamW (Loshchilov and Hutter 2019). Learning-rate factors in `espalier_sdk::schedule`; gradients
//! may be clipped by their common norm (Pascanu et al. 2013).

use espalier_sdk::capture::{Captured, Step};
use espalier_sdk::data::{self, Batch, FieldInfo, Stream};
use espalier_sdk::options::Value;
use espalier_sdk::parameters::{AdamOptions, Selection, SgdOptions, clip_grad_norm};
use espalier_sdk::schedule::Schedule;
use espalier_sdk::{
    Choice, Error, Mode, Model, Options, ParameterSet, Prediction, RunInfo, StepInfo, StepReport,
    Tensor, Trainer,
};

/// How a gradient changes a parameter.
#[derive(Choice, Clone, Copy, PartialEq)]
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
    #[option(default = 0.9, min = 0, max = 1, live)]
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
    #[option(default = 0, min = 0, live)]
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
    /// Whether the host records the step and replays it, with the same results, faster. Where the step cannot be
    /// recorded the log says why.
    #[option(default = false)]
    capture: bool,
}

/// What a step depends on beside its batch, the parameters and the learning rate.
#[derive(Clone, PartialEq)]
struct Plan {
    loss: Loss,
    /// Whether a sample has several targets, one for each of its steps.
    series: bool,
    optimizer: Optimizer,
    sgd: SgdOptions,
    adam: AdamOptions,
    clip_grad_norm: f64,
    names: Vec<String>,
}

struct Backprop {
    settings: Settings,
    plan: Plan,
    steps: u64,
    stream: Stream,
    model: Model,
    set: ParameterSet,
    weights: Selection,
    captured: Option<Captured<Plan>>,
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
        let several = |field: &FieldInfo| field.name == "targets" && !field.shape.is_empty();
        let series = train.fields.iter().any(several);
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
        let captured = settings
            .capture
            .then(|| Captured::over("backprop", &stream));
        Ok(Backprop {
            weights: set.select(&names),
            set,
            model: Model::main(),
            plan: Plan {
                loss: settings.loss,
                series,
                optimizer: settings.optimizer,
                sgd: settings.sgd(),
                adam: settings.adam(),
                clip_grad_norm: settings.clip_grad_norm,
                names,
            },
            settings,
            steps: run.steps,
            stream,
            captured,
        })
    }

    fn step(&mut self, at: &StepInfo) -> StepReport {
        let Settings {
            schedule,
            warmup_steps,
            ..
        } = self.settings;
        let lr = self.settings.lr * schedule.factor(at.step, self.steps, warmup_steps);
        if let Some(captured) = &mut self.captured {
            let done = captured.step(&self.plan, &[lr], Plan::captured_step);
            return StepReport::new(done.values[0], done.count);
        }
        let batch = self.stream.next_endless();
        let plan = &self.plan;
        let loss = plan.losses(&self.model, &batch, Mode::Train).mean(&[]);
        let (sgd, adam) = (
            SgdOptions { lr, ..plan.sgd },
            AdamOptions { lr, ..plan.adam },
        );
        if plan.clip_grad_norm > 0.0 {
            let grads = clip_grad_norm(&self.weights.gradients(&loss), plan.clip_grad_norm).0;
            match plan.optimizer {
                Optimizer::Sgd => self.set.sgd(&plan.names, &grads, sgd),
                Optimizer::Adam => self.set.adam(&plan.names, &grads, adam),
                Optimizer::Adamw => self.set.adamw(&plan.names, &grads, adam),
            }
        } else {
            match plan.optimizer {
                Optimizer::Sgd => self.weights.minimize_sgd(&loss, sgd),
                Optimizer::Adam => self.weights.minimize_adam(&loss, adam),
                Optimizer::Adamw => self.weights.minimize_adamw(&loss, adam),
            }
        }
        StepReport::new(loss.item(), batch.count())
    }

    fn objective(&self, batch: &Batch) -> Tensor {
        self.plan.losses(&self.model, batch, Mode::TrainFrozenStats)
    }

    fn predict(&self, batch: &Batch) -> Prediction {
        let output = self.model.forward(batch.fields(), Mode::Eval);
        match self.settings.loss {
            Loss::Mse => Prediction::values(output),
            Loss::Auto | Loss::CrossEntropy => Prediction::logits(output),
        }
    }

    fn set_knob(&mut self, name: &str, value: &Value) -> Result<(), Error> {
        self.settings.set_live(name, value)?;
        self.take_settings();
        Ok(())
    }

    fn save(&self) -> Vec<u8> {
        self.settings.save_live()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        self.settings.restore_live(state)?;
        self.take_settings();
        Ok(())
    }
}

impl Settings {
    fn sgd(&self) -> SgdOptions {
        SgdOptions {
            momentum: self.momentum,
            weight_decay: self.weight_decay,
            nesterov: self.nesterov,
            ..SgdOptions::default()
        }
    }

    /// `betas` are two numbers.
    fn adam(&self) -> AdamOptions {
        AdamOptions {
            beta1: self.betas[0],
            beta2: self.betas[1],
            eps: self.eps,
            weight_decay: self.weight_decay,
            ..AdamOptions::default()
        }
    }
}

impl Backprop {
    /// The optimisers' settings after a live option has changed; a step that was recorded is recorded anew.
    fn take_settings(&mut self) {
        self.plan.sgd = self.settings.sgd();
        self.plan.adam = self.settings.adam();
    }
}

impl Plan {
    fn losses(&self, model: &Model, batch: &Batch, mode: Mode) -> Tensor {
        let output = model.forward(batch.fields(), mode);
        match self.loss {
            Loss::Mse => output
                .mse(&batch.targets().reshape_as(&output))
                .per_sample(),
            // A series has a class at each step; its loss is the mean of theirs.
            Loss::Auto | Loss::CrossEntropy if self.series => {
                output.cross_entropy(batch.targets()).per_sample()
            }
            Loss::Auto | Loss::CrossEntropy => output.cross_entropy(batch.targets()),
        }
    }

    /// The step as the host records it; number 0 is the learning rate.
    fn captured_step(&self, step: &Step) -> Vec<Tensor> {
        let set = ParameterSet::main();
        let losses = self.losses(&Model::main(), step.batch(), Mode::Train);
        let loss = losses.mean(&[]);
        let mut grads = set.grad(&loss, &self.names);
        if self.clip_grad_norm > 0.0 {
            grads = clip_grad_norm(&grads, self.clip_grad_norm).0;
        }
        match self.optimizer {
            Optimizer::Sgd => step.sgd(&set, &self.names, &grads, self.sgd, 0),
            Optimizer::Adam => step.adam(&set, &self.names, &grads, self.adam, 0),
            Optimizer::Adamw => step.adamw(&set, &self.names, &grads, self.adam, 0),
        }
        vec![loss]
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
        let live: Vec<String> = Settings::infos()
            .into_iter()
            .filter(|info| info.live)
            .map(|info| info.name)
            .collect();
        assert_eq!(live, ["lr", "momentum", "weight-decay"]);
    }
}
