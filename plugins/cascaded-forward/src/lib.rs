//! Trainer: Cascaded-Forward. Every block of the model has a linear predictor; their predictions add up.
//!
//! Zhao et al. 2023 (arXiv 2303.09728), compared with backpropagation in arXiv 2509.19063. `rand-ce`: the
//! blocks keep their random values, each predictor learns by cross-entropy on what its block gives. `dfa-ce`:
//! for the first part of a round the blocks learn by direct feedback alignment (Nokland 2016): the error e =
//! softmax - one-hot of the model's last layer reaches block i as e B_i, with a fixed Gaussian B_i [classes,
//! width] whose rows have length 1, and goes back through that block alone; the last block and the last layer
//! follow the true gradient. Then the blocks stand still and the predictors learn.
//!
//! The model's own last layer is the predictor of the last block. Blocks that stand still run in evaluation mode,
//! so that their running statistics stand still too.

use espalier_sdk::autograd::vjp;
use espalier_sdk::blocks::{Block, hidden_and_head};
use espalier_sdk::data::{self, Batch, Stream};
use espalier_sdk::options::Value;
use espalier_sdk::parameters::{AdamOptions, Kind};
use espalier_sdk::{
    Choice, Error, Mode, Model, Options, ParameterSet, Prediction, RunInfo, StepInfo, StepReport,
    Tensor, Trainer, no_grad, random,
};

/// How the blocks get their values.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Method {
    RandCe,
    DfaCe,
}

/// What is added up.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Combine {
    Logits,
    Probabilities,
}

/// Options under `[trainer.with]`.
#[derive(Options)]
struct Settings {
    /// rand-ce: random blocks; dfa-ce: blocks trained by direct feedback alignment first.
    #[option(default = Method::DfaCe)]
    method: Method,
    /// Learning rate of Adam for the predictors.
    #[option(default = 1e-3, min = 0, live)]
    lr: f64,
    /// Learning rate of Adam for the blocks under dfa-ce.
    #[option(default = 1e-3, min = 0)]
    block_lr: f64,
    /// Fraction of a round in which dfa-ce trains the blocks.
    #[option(default = 0.5, min = 0, max = 1)]
    blocks_until: f64,
    /// Predictions are the mean over the blocks of the logits or of the probabilities.
    #[option(default = Combine::Logits)]
    combine: Combine,
}

/// Uses of randomness: first number of a key.
const PREDICTORS: u64 = 1;
const FEEDBACK: u64 = 2;

struct CascadedForward {
    settings: Settings,
    steps: u64,
    classes: u32,
    model: Model,
    stream: Stream,
    blocks: Vec<Block>,
    head: Block,
    main: ParameterSet,
    /// `weightI` [classes, width], `biasI` [classes] and `feedbackI` [classes, width] of each block but the last.
    own: ParameterSet,
}

impl Trainer for CascadedForward {
    type Options = Settings;

    fn new(run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let model = Model::main();
        let classes = data::split("train").map_or(0, |split| split.classes);
        let (blocks, head) = hidden_and_head(&model, classes)?;
        let own = ParameterSet::own("predictors");
        for (i, block) in blocks
            .iter()
            .enumerate()
            .take(blocks.len().saturating_sub(1))
        {
            let shape = [classes, block.width()];
            let weight =
                random::normal(&[PREDICTORS, i as u64], &shape) / f64::from(block.width()).sqrt();
            let feedback = random::normal(&[FEEDBACK, i as u64], &shape);
            let feedback = &feedback / feedback.vector_norm_keepdims(&[1], 0.0);
            own.create(&format!("weight{i}"), Kind::Weight, &weight, true);
            own.create(
                &format!("bias{i}"),
                Kind::Bias,
                &Tensor::zeros(&[classes]),
                true,
            );
            own.create(&format!("feedback{i}"), Kind::Buffer, &feedback, false);
        }
        let stream = Stream::train(run.batch_size, &[0]);
        let (steps, main) = (run.steps, ParameterSet::main());
        Ok(CascadedForward {
            settings,
            steps,
            classes,
            model,
            stream,
            blocks,
            head,
            main,
            own,
        })
    }

    fn step(&mut self, at: &StepInfo) -> StepReport {
        let batch = self.stream.next_endless();
        let blocks_until = (self.settings.blocks_until * self.steps as f64).round() as u64;
        let loss = match self.settings.method {
            Method::DfaCe if at.step < blocks_until => self.align_blocks(&batch),
            _ => self.train_predictors(&batch),
        };
        StepReport::new(loss.item(), batch.count())
    }

    fn objective(&self, batch: &Batch) -> Tensor {
        let mut total = Tensor::zeros(&[batch.count()]);
        let mut x = batch.inputs().clone();
        for (i, block) in self.blocks.iter().enumerate() {
            let activity = block.forward(&self.model, &x, Mode::TrainFrozenStats);
            let logits = self.predictor(i, &activity, Mode::TrainFrozenStats);
            total = total + logits.cross_entropy(batch.targets());
            x = activity.detach();
        }
        if self.blocks.is_empty() {
            let logits = self.head.forward(&self.model, &x, Mode::TrainFrozenStats);
            return logits.cross_entropy(batch.targets());
        }
        total
    }

    fn predict(&self, batch: &Batch) -> Prediction {
        let mut x = batch.inputs().clone();
        let mut all = Vec::new();
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&self.model, &x, Mode::Eval);
            all.push(self.predictor(i, &x, Mode::Eval));
        }
        if all.is_empty() {
            return Prediction::logits(self.head.forward(&self.model, &x, Mode::Eval));
        }
        let of_all = |all: &[Tensor]| Tensor::stack(&all.iter().collect::<Vec<_>>(), 0).mean(&[0]);
        match self.settings.combine {
            Combine::Logits => Prediction::logits(of_all(&all)),
            Combine::Probabilities => {
                let all: Vec<Tensor> = all.iter().map(|logits| logits.softmax(-1)).collect();
                Prediction::probabilities(of_all(&all))
            }
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

impl CascadedForward {
    /// What block `i` predicts from its output: the last block through the model's last layer.
    fn predictor(&self, i: usize, activity: &Tensor, mode: Mode) -> Tensor {
        if i + 1 == self.blocks.len() {
            return self.head.forward(&self.model, activity, mode);
        }
        let (weight, bias) = (
            self.own.value(&format!("weight{i}")),
            self.own.value(&format!("bias{i}")),
        );
        activity.flatten().linear(&weight, Some(&bias))
    }

    /// One step of every predictor; the blocks stand still. Gives the loss of the last.
    fn train_predictors(&self, batch: &Batch) -> Tensor {
        let mut x = batch.inputs().clone();
        let last = self.blocks.len().saturating_sub(1);
        for (i, block) in self.blocks.iter().enumerate() {
            x = no_grad(|| block.forward(&self.model, &x, Mode::Eval));
            if i < last {
                let loss = self
                    .predictor(i, &x, Mode::Train)
                    .cross_entropy(batch.targets())
                    .mean(&[]);
                let names = [format!("weight{i}"), format!("bias{i}")];
                update(&self.own, &names, &loss, self.settings.lr);
            }
        }
        let loss = self
            .head
            .forward(&self.model, &x, Mode::Train)
            .cross_entropy(batch.targets())
            .mean(&[]);
        update(&self.main, &self.head.parameters, &loss, self.settings.lr);
        loss.detach()
    }

    /// One step of the blocks by direct feedback alignment. Gives the loss of the last layer.
    fn align_blocks(&self, batch: &Batch) -> Tensor {
        let mut x = batch.inputs().clone();
        let mut activities = Vec::new();
        let before_last = self.blocks.len().saturating_sub(1);
        for block in &self.blocks[..before_last] {
            let activity = block.forward(&self.model, &x, Mode::Train);
            x = activity.detach();
            activities.push(activity);
        }
        let tail = match self.blocks.last() {
            Some(block) => block.clone().join(&self.head),
            None => self.head.clone(),
        };
        let logits = tail.forward(&self.model, &x, Mode::Train);
        let loss = logits.cross_entropy(batch.targets()).mean(&[]);
        let error = logits.detach().softmax(-1) - batch.targets().one_hot(self.classes);
        let error = error / f64::from(batch.count());
        update(&self.main, &tail.parameters, &loss, self.settings.block_lr);
        for (i, (block, activity)) in self.blocks.iter().zip(&activities).enumerate() {
            if block.parameters.is_empty() {
                continue;
            }
            let feedback = self.own.value(&format!("feedback{i}")).detach();
            let cotangent = error.matmul(&feedback).reshape_as(activity);
            let values = self.main.values(&block.parameters);
            let grads = vjp(activity, &cotangent, &values.iter().collect::<Vec<_>>());
            // While a value is held, the optimiser has to copy it.
            drop(values);
            let options = AdamOptions {
                lr: self.settings.block_lr,
                ..AdamOptions::default()
            };
            self.main.adam(&block.parameters, &grads, options);
        }
        loss.detach()
    }
}

fn update(set: &ParameterSet, names: &[String], loss: &Tensor, lr: f64) {
    if names.is_empty() {
        return;
    }
    let grads = set.grad(loss, names);
    set.adam(
        names,
        &grads,
        AdamOptions {
            lr,
            ..AdamOptions::default()
        },
    );
}

espalier_sdk::export!(trainer: CascadedForward);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_lies_in_its_own_range() {
        let settings = Settings::defaults();
        assert!(settings.method == Method::DfaCe && settings.combine == Combine::Logits);
        assert_eq!(settings.blocks_until, 0.5);
    }
}
