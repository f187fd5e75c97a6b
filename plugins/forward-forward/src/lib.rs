//! Trainer: Forward-Forward. Every layer learns to be active for right labels and quiet for wrong ones.
//!
//! Hinton 2022, "The Forward-Forward Algorithm". The label, one-hot, overwrites the first inputs. Layer:
//! h = f(W x / |x| + b), goodness G = sum h^2, loss softplus(theta - G(right label)) + softplus(G(wrong label) -
//! theta), by Adam, the input of each layer a constant. The wrong label is uniform over the others. Prediction:
//! the label with the largest goodness, summed over the layers.
//!
//! The model's last layer, which has one output a class, takes no part in this: with `predict = "softmax"` it is
//! trained as a classifier of the last hidden activity under a neutral label (1 / classes everywhere), which
//! predicts in one pass instead of one a class. All layers learn in the same sweep; `greedy` trains them one
//! after the other. Works with chains of linear layers and activations.

use espalier_sdk::blocks::{Block, hidden_and_head};
use espalier_sdk::data::{self, Batch, Stream};
use espalier_sdk::options::Value;
use espalier_sdk::parameters::AdamOptions;
use espalier_sdk::schedule::Schedule;
use espalier_sdk::{
    Choice, Dtype, Error, Mode, Model, Options, ParameterSet, Prediction, RunInfo, StepInfo,
    StepReport, Tensor, Trainer, no_grad, random,
};

/// What predicts.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Predict {
    Goodness,
    Softmax,
}

/// Options under `[trainer.with]`.
#[derive(Options)]
struct Settings {
    /// Learning rate of Adam before the schedule.
    #[option(default = 3e-3, min = 0, live)]
    lr: f64,
    /// How the learning rate goes down over a round.
    #[option(default = Schedule::Constant)]
    schedule: Schedule,
    /// Steps over which the learning rate rises at the start of a round.
    #[option(default = 0)]
    warmup_steps: u64,
    /// Goodness that divides right from wrong.
    #[option(default = 2, min = 0)]
    theta: f64,
    /// Height of the label among the inputs.
    #[option(default = 1, min = 0)]
    label_scale: f64,
    /// Layers one after the other, an equal share of the round each, instead of all at once.
    #[option(default = false)]
    greedy: bool,
    /// goodness: tries every label; softmax: the model's last layer, trained on the last hidden activity.
    #[option(default = Predict::Goodness)]
    predict: Predict,
    /// Leaves the first layer out when goodness is summed for a prediction, as Hinton does.
    #[option(default = false)]
    skip_first: bool,
}

/// Uses of randomness: first number of a key.
const WRONG_LABELS: u64 = 1;
const WRONG_LABELS_OF_OBJECTIVE: u64 = 2;

struct ForwardForward {
    settings: Settings,
    steps: u64,
    classes: u32,
    model: Model,
    stream: Stream,
    layers: Vec<Block>,
    head: Block,
    main: ParameterSet,
}

impl Trainer for ForwardForward {
    type Options = Settings;

    fn new(run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let model = Model::main();
        let classes = data::split("train").map_or(0, |split| split.classes);
        let (layers, head) = hidden_and_head(&model, classes)?;
        check(&layers, classes)?;
        let stream = Stream::train(run.batch_size, &[0]);
        let (steps, main) = (run.steps, ParameterSet::main());
        Ok(ForwardForward {
            settings,
            steps,
            classes,
            model,
            stream,
            layers,
            head,
            main,
        })
    }

    fn step(&mut self, at: &StepInfo) -> StepReport {
        let batch = self.stream.next_endless();
        let factor = self
            .settings
            .schedule
            .factor(at.step, self.steps, self.settings.warmup_steps);
        let lr = self.settings.lr * factor;
        let learning = match self.settings.greedy {
            true => ((at.step * self.layers.len() as u64 / self.steps.max(1)) as usize)
                .min(self.layers.len() - 1),
            false => 0,
        };
        let mut x = self.right_and_wrong(&batch, &[WRONG_LABELS, at.step]);
        for layer in &self.layers[..learning] {
            x = no_grad(|| self.activity(layer, &x, Mode::Eval));
        }
        let mut total = Tensor::scalar(0.0);
        for layer in &self.layers[learning..] {
            let h = self.activity(layer, &x, Mode::Train);
            x = h.detach();
            let loss = self.contrast(&h).mean(&[]);
            total = total + loss.detach();
            self.update(&layer.parameters, &loss, lr);
            if self.settings.greedy {
                break;
            }
        }
        if self.settings.predict == Predict::Softmax {
            let features = no_grad(|| self.neutral_activity(&batch));
            let logits = self
                .head
                .forward(&self.model, &self.head.shaped(&features), Mode::Train);
            self.update(
                &self.head.parameters,
                &logits.cross_entropy(batch.targets()).mean(&[]),
                lr,
            );
        }
        StepReport::new(total.item(), batch.count())
    }

    fn objective(&self, batch: &Batch) -> Tensor {
        let mut x = self.right_and_wrong(batch, &[WRONG_LABELS_OF_OBJECTIVE]);
        let mut total = Tensor::zeros(&[batch.count()]);
        for layer in &self.layers {
            let h = self.activity(layer, &x, Mode::TrainFrozenStats);
            total = total + self.contrast(&h);
            x = h.detach();
        }
        if self.settings.predict == Predict::Softmax {
            let features = no_grad(|| self.neutral_activity(batch));
            let features = self.head.shaped(&features);
            let logits = self
                .head
                .forward(&self.model, &features, Mode::TrainFrozenStats);
            total = total + logits.cross_entropy(batch.targets());
        }
        total
    }

    fn predict(&self, batch: &Batch) -> Prediction {
        if self.settings.predict == Predict::Softmax {
            let features = self.head.shaped(&self.neutral_activity(batch));
            return Prediction::logits(self.head.forward(&self.model, &features, Mode::Eval));
        }
        let skipped = usize::from(self.settings.skip_first && self.layers.len() > 1);
        let mut goodness = Vec::new();
        for label in 0..self.classes {
            let labels = Tensor::full(&[batch.count()], f64::from(label), Dtype::I64);
            let mut x = self.with_label(batch.inputs(), &labels.one_hot(self.classes));
            let mut total = Tensor::zeros(&[batch.count()]);
            for (i, layer) in self.layers.iter().enumerate() {
                x = self.activity(layer, &x, Mode::Eval);
                if i >= skipped {
                    total = total + x.square().sum(&[1]);
                }
            }
            goodness.push(total);
        }
        Prediction::logits(Tensor::stack(&goodness.iter().collect::<Vec<_>>(), 1))
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

impl ForwardForward {
    /// The inputs with the right labels, then the same with wrong ones: [2 n, d].
    fn right_and_wrong(&self, batch: &Batch, key: &[u64]) -> Tensor {
        let (classes, right) = (f64::from(self.classes), batch.targets());
        // 1 to classes - 1 further on, around the end.
        let further = random::below(key, &[batch.count()], self.classes - 1) + 1.0;
        let wrong = right + further;
        let wrong = wrong.less(classes).where_(&wrong, &(&wrong - classes));
        let positive = self.with_label(batch.inputs(), &right.one_hot(self.classes));
        let negative = self.with_label(batch.inputs(), &wrong.one_hot(self.classes));
        Tensor::concat(&[&positive, &negative], 0)
    }

    /// Inputs [n, d] whose first ones are the label [n, classes].
    fn with_label(&self, inputs: &Tensor, label: &Tensor) -> Tensor {
        let x = inputs.flatten();
        let rest = x.slice(1, self.classes as i32, x.size(1) as i32);
        Tensor::concat(&[&(label * self.settings.label_scale), &rest], 1)
    }

    /// A layer's activity [n, width] on inputs of length 1: only their direction tells it anything.
    fn activity(&self, layer: &Block, x: &Tensor, mode: Mode) -> Tensor {
        layer
            .forward(&self.model, &layer.shaped(&direction(x)), mode)
            .flatten()
    }

    /// Direction of the last hidden activity under a label that says nothing.
    fn neutral_activity(&self, batch: &Batch) -> Tensor {
        let neutral = Tensor::full(
            &[batch.count(), self.classes],
            1.0 / f64::from(self.classes),
            Dtype::F32,
        );
        let mut x = self.with_label(batch.inputs(), &neutral);
        for layer in &self.layers {
            x = self.activity(layer, &x, Mode::Eval);
        }
        direction(&x)
    }

    /// Loss of each sample from the activities of right and wrong labels, [2 n, width] -> [n].
    fn contrast(&self, h: &Tensor) -> Tensor {
        let goodness = h.square().sum(&[1]);
        let n = goodness.size(0) as i32 / 2;
        let (right, wrong) = (goodness.slice(0, 0, n), goodness.slice(0, n, 2 * n));
        (self.settings.theta - right).softplus() + (wrong - self.settings.theta).softplus()
    }

    fn update(&self, names: &[String], loss: &Tensor, lr: f64) {
        if names.is_empty() {
            return;
        }
        let grads = self.main.grad(loss, names);
        self.main.adam(
            names,
            &grads,
            AdamOptions {
                lr,
                ..AdamOptions::default()
            },
        );
    }
}

/// x / |x|, row by row; a row of zeros stays one.
fn direction(x: &Tensor) -> Tensor {
    x / x.vector_norm_keepdims(&[1], 1e-16)
}

/// Layers whose squared activity means something, and room for the label.
fn check(layers: &[Block], classes: u32) -> Result<(), Error> {
    let Some(first) = layers.first() else {
        return Err(Error::incompatible(
            "forward-forward needs at least one hidden layer",
        ));
    };
    const KINDS: [&str; 8] = [
        "flatten", "linear", "relu", "gelu", "tanh", "sigmoid", "dropout", "identity",
    ];
    for (name, kind) in layers.iter().flat_map(|layer| &layer.kinds) {
        if !KINDS.contains(&kind.as_str()) {
            return Err(Error::incompatible(format!(
                "forward-forward trains chains of {}; the layer `{name}` is a {kind}",
                KINDS.join(", ")
            )));
        }
    }
    let inputs: u32 = first.in_shape.iter().product();
    if classes < 2 || inputs <= classes {
        return Err(Error::incompatible(format!(
            "the label takes the place of {classes} inputs (at least 2 classes), a sample has {inputs}"
        )));
    }
    Ok(())
}

espalier_sdk::export!(trainer: ForwardForward);

#[cfg(test)]
mod tests {
    use super::*;

    fn block(kinds: &[&str], inputs: u32) -> Block {
        Block {
            layers: 0..kinds.len() as u32,
            reads: "inputs".into(),
            parameters: Vec::new(),
            kinds: kinds
                .iter()
                .map(|kind| (format!("{kind}1"), kind.to_string()))
                .collect(),
            in_shape: vec![inputs],
            out_shape: vec![8],
        }
    }

    #[test]
    fn models_it_cannot_train_are_refused_by_name() {
        assert!(check(&[block(&["flatten", "linear", "relu"], 64)], 10).is_ok());
        let message =
            |layers: &[Block], classes| check(layers, classes).err().map(|error| error.message);
        assert!(
            message(&[block(&["conv2d", "relu"], 64)], 10).is_some_and(|m| m.contains("`conv2d1`"))
        );
        assert!(message(&[], 10).is_some_and(|m| m.contains("hidden layer")));
        assert!(
            message(&[block(&["linear"], 10)], 10).is_some_and(|m| m.contains("a sample has 10"))
        );
    }

    #[test]
    fn every_default_lies_in_its_own_range() {
        assert_eq!(Settings::defaults().theta, 2.0);
    }
}
