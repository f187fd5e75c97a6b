//! Trainer: Counter-Current Learning. A second network runs from the targets towards the inputs; at each level the two
//! pull each other together, and no error passes more than one layer of either.
//!
//! Kao and Hariharan 2024 (arXiv 2409.19841), the classifier of the authors' code. Levels k = 0..L have widths d_0
//! (the inputs) to d_L (the classes). Forward: `a_k = f_k(a_{k-1})`, a block of the run's model with its input
//! detached. Feedback: `s_L = I`, one row a class, and `s_{k-1} = phi(s_k V_k)` with s_k detached, without phi at
//! level 0. With `M_k = a_k s_k'` [batch, classes] and the one-hot labels T, level k < L has the loss
//! `kappa mean (M_k - T)^2 256 / d_k`; the last level has the cross-entropy. Gradients of each network are clipped by
//! their own norm; plain SGD. Only the forward network predicts.
//!
//! Differences: the feedback of a convolution is a full matrix over its flattened map, where the authors upsample and
//! convolve; their gradient centralisation, masking of sure samples and autoencoder are left out.

use espalier_sdk::blocks::{Block, hidden_and_head};
use espalier_sdk::data::{self, Batch, Stream};
use espalier_sdk::options::Value;
use espalier_sdk::parameters::{Kind, SgdOptions, clip_grad_norm};
use espalier_sdk::schedule::Schedule;
use espalier_sdk::{
    Choice, Dtype, Error, Mode, Model, Options, ParameterSet, Prediction, RunInfo, StepInfo,
    StepReport, Tensor, Trainer, grad, log, random,
};

/// What follows each matrix of the feedback network but the last.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Activation {
    Elu,
    Tanh,
    Relu,
}

/// Options under `[trainer.with]`.
#[derive(Options)]
struct Settings {
    /// Learning rate of both networks before the schedule. 1 goes with clipping only.
    #[option(default = 1, min = 0, live)]
    lr: f64,
    /// How the learning rate goes down over a round.
    #[option(default = Schedule::Constant)]
    schedule: Schedule,
    /// Weight of the local losses; a level of 256 units has exactly this one.
    #[option(default = 0.5, min = 0)]
    kappa: f64,
    /// Largest norm of the gradients of each network; 0 for no limit.
    #[option(default = 1, min = 0)]
    clip_grad_norm: f64,
    /// What follows each matrix of the feedback network but the last; best the model's own.
    #[option(default = Activation::Elu)]
    feedback_activation: Activation,
}

/// Uses of randomness: first number of a key.
const FEEDBACK: u64 = 1;

struct CounterCurrent {
    settings: Settings,
    steps: u64,
    classes: u32,
    model: Model,
    stream: Stream,
    /// The blocks of the model, the last one without a local loss.
    blocks: Vec<Block>,
    /// d_0 to d_L.
    widths: Vec<u32>,
    main: ParameterSet,
    /// Trainable parameters of the blocks.
    forward: Vec<String>,
    feedback: ParameterSet,
    /// `v1` to `vL`; `vK` is [d_K, d_(K-1)].
    matrices: Vec<String>,
}

/// What the two networks give for a batch.
struct Levels {
    /// Losses of the samples at each level below the last, [count] each.
    local: Vec<Tensor>,
    /// What the sample's activity and its own class's feedback have in common at each level, [count] each.
    agreement: Vec<Tensor>,
    /// Cross-entropy at the last level, [count].
    output: Tensor,
}

impl Trainer for CounterCurrent {
    type Options = Settings;

    fn new(run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let model = Model::main();
        let train = data::split("train");
        let classes = train.as_ref().map_or(0, |split| split.classes);
        let (mut blocks, head) = hidden_and_head(&model, classes)?;
        let fields = train.map_or_else(Vec::new, |split| split.fields);
        let numbers = |f: &data::FieldInfo| f.name != "inputs" || f.dtype == Dtype::F32;
        if !fields.iter().all(numbers) {
            return Err(Error::incompatible(
                "the inputs must be numbers (f32): the feedback network ends in something like an input",
            ));
        }
        blocks.push(head);
        let first: u32 = blocks[0].in_shape.iter().product();
        let widths: Vec<u32> = [first]
            .into_iter()
            .chain(blocks.iter().map(Block::width))
            .collect();
        let feedback = ParameterSet::own("feedback");
        let mut matrices = Vec::new();
        for (k, pair) in (1u64..).zip(widths.windows(2)) {
            let bound = 1.0 / f64::from(pair[1]).sqrt();
            let unit = random::uniform(&[FEEDBACK, k], &[pair[1], pair[0]]);
            let name = format!("v{k}");
            feedback.create(&name, Kind::Weight, &((unit * 2.0 - 1.0) * bound), true);
            matrices.push(name);
        }
        let forward = blocks.iter().flat_map(|b| b.parameters.clone()).collect();
        Ok(CounterCurrent {
            settings,
            steps: run.steps,
            classes,
            model,
            stream: Stream::train(run.batch_size, &[0]),
            blocks,
            widths,
            main: ParameterSet::main(),
            forward,
            feedback,
            matrices,
        })
    }

    fn step(&mut self, at: &StepInfo) -> StepReport {
        let batch = self.stream.next_endless();
        let levels = self.levels(&batch, Mode::Train);
        if at.step == 0 || at.step + 1 == self.steps {
            for (k, agreement) in levels.agreement.iter().enumerate().skip(1) {
                log::metric(&format!("agreement-{k}"), agreement.mean(&[]).item());
            }
        }
        let output = levels.output.mean(&[]);
        let local = levels.local.iter().map(|loss| loss.mean(&[]));
        let total = local.fold(output.clone(), |sum, loss| sum + loss);

        let mut values = self.main.values(&self.forward);
        values.extend(self.feedback.values(&self.matrices));
        let mut grads = grad(&total, &values.iter().collect::<Vec<_>>());
        // While a value is held, the optimiser has to copy it.
        drop(values);
        let of_feedback = grads.split_off(self.forward.len());
        let factor = self.settings.schedule.factor(at.step, self.steps, 0);
        let options = SgdOptions {
            lr: self.settings.lr * factor,
            ..SgdOptions::default()
        };
        self.main.sgd(&self.forward, &self.clipped(grads), options);
        let of_feedback = self.clipped(of_feedback);
        self.feedback.sgd(&self.matrices, &of_feedback, options);
        StepReport::new(output.item(), batch.count())
    }

    fn objective(&self, batch: &Batch) -> Tensor {
        let levels = self.levels(batch, Mode::TrainFrozenStats);
        let add = |sum: Tensor, loss: &Tensor| sum + loss;
        levels.local.iter().fold(levels.output, add)
    }

    fn predict(&self, batch: &Batch) -> Prediction {
        Prediction::logits(self.model.forward(batch.fields(), Mode::Eval))
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

impl CounterCurrent {
    fn levels(&self, batch: &Batch, mode: Mode) -> Levels {
        let labels = batch.targets().one_hot(self.classes);
        let prototypes = self.prototypes();
        let (mut local, mut agreement) = (Vec::new(), Vec::new());
        let mut x = batch.inputs().clone();
        for (k, block) in self.blocks.iter().enumerate() {
            let matches = x.flatten().matmul(&prototypes[k].t());
            let weight = level_weight(self.settings.kappa, self.widths[k]);
            let error = (&matches - &labels).square().mean(&[1]);
            local.push(error * weight);
            agreement.push((matches.detach() * &labels).sum(&[1]));
            x = block.forward(&self.model, &x.detach(), mode);
        }
        Levels {
            local,
            agreement,
            output: x.cross_entropy(batch.targets()),
        }
    }

    /// s_0 to s_(L-1), [classes, d_k] each; the gradient of each reaches its own matrix only.
    fn prototypes(&self) -> Vec<Tensor> {
        let mut s = Tensor::eye(self.classes);
        let mut all = Vec::new();
        for (k, name) in self.matrices.iter().enumerate().rev() {
            s = s.detach().matmul(&self.feedback.value(name));
            if k > 0 {
                s = match self.settings.feedback_activation {
                    Activation::Elu => s.elu(1.0),
                    Activation::Tanh => s.tanh(),
                    Activation::Relu => s.relu(),
                };
            }
            all.push(s.clone());
        }
        all.reverse();
        all
    }

    fn clipped(&self, grads: Vec<Tensor>) -> Vec<Tensor> {
        match self.settings.clip_grad_norm {
            0.0 => grads,
            limit => clip_grad_norm(&grads, limit).0,
        }
    }
}

/// Weight of the local loss at a level of so many units.
fn level_weight(kappa: f64, width: u32) -> f64 {
    kappa * 256.0 / f64::from(width)
}

espalier_sdk::export!(trainer: CounterCurrent);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_of_256_units_weighs_kappa_and_a_smaller_one_more() {
        assert_eq!(level_weight(0.5, 256), 0.5);
        assert_eq!(level_weight(0.5, 2), 64.0);
    }

    #[test]
    fn every_default_lies_in_its_own_range() {
        let settings = Settings::defaults();
        assert_eq!((settings.lr, settings.clip_grad_norm), (1.0, 1.0));
    }
}
