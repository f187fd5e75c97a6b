//! Trainer: Mono-Forward. Every layer has a class projection of its own and learns from it alone.
//!
//! Gong, Li and Abdulla 2025 (arXiv 2501.09238), compared with backpropagation in arXiv 2509.19063. Layer i gives
//! `a_i = f(W_i a_{i-1} + b_i)` and the goodness `G_i = a_i M_i^T`. Its loss is the cross-entropy of `G_i`;
//! `W_i`, `b_i` and `M_i` follow the gradient of that loss by Adam, with `a_{i-1}` a constant. No gradient passes
//! from layer to layer.
//!
//! Differences: the model's own last layer serves as the projection of the last hidden one (so it has an offset,
//! and the trained model is the model); a model with no hidden layer is a softmax regression. The projection of
//! the raw input, a diagnostic in the paper, is left out. Default is the sweep in which all layers learn at
//! once; `greedy` trains them one after the other.

use espalier_sdk::blocks::{Block, hidden_and_head};
use espalier_sdk::data::{self, Batch, Stream};
use espalier_sdk::options::Value;
use espalier_sdk::parameters::{AdamOptions, Kind};
use espalier_sdk::schedule::Schedule;
use espalier_sdk::{
    Choice, Error, Mode, Model, Options, ParameterSet, Prediction, RunInfo, StepInfo, StepReport,
    Tensor, Trainer, grad, no_grad, random,
};

/// What predicts.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Predict {
    Last,
    Sum,
}

/// Options under `[trainer.with]`.
#[derive(Options)]
struct Settings {
    /// Learning rate of Adam before the schedule.
    #[option(default = 1e-3, min = 0, live)]
    lr: f64,
    /// Added to the gradient, times the weight.
    #[option(default = 0, min = 0)]
    weight_decay: f64,
    /// How the learning rate goes down over a round.
    #[option(default = Schedule::Constant)]
    schedule: Schedule,
    /// Steps over which the learning rate rises at the start of a round.
    #[option(default = 0)]
    warmup_steps: u64,
    /// Layers one after the other, an equal share of the round each, instead of all at once.
    #[option(default = false)]
    greedy: bool,
    /// last: the last layer predicts; sum: the goodness of all layers together.
    #[option(default = Predict::Last)]
    predict: Predict,
}

/// A block and the name of its projection; the last one has none.
struct Unit {
    block: Block,
    projection: Option<String>,
}

struct MonoForward {
    settings: Settings,
    steps: u64,
    model: Model,
    stream: Stream,
    units: Vec<Unit>,
    main: ParameterSet,
    projections: ParameterSet,
}

impl Trainer for MonoForward {
    type Options = Settings;

    fn new(run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let model = Model::main();
        let classes = data::split("train").map_or(0, |split| split.classes);
        let (mut hidden, head) = hidden_and_head(&model, classes)?;
        let last = match hidden.pop() {
            Some(block) => block.join(&head),
            None => head,
        };
        let projections = ParameterSet::own("projections");
        let mut units = Vec::new();
        for (i, block) in hidden.into_iter().enumerate() {
            let width = block.width();
            let init = random::normal(&[i as u64], &[classes, width]) / f64::from(width).sqrt();
            let name = format!("projection{i}");
            projections.create(&name, Kind::Weight, &init, true);
            units.push(Unit {
                block,
                projection: Some(name),
            });
        }
        units.push(Unit {
            block: last,
            projection: None,
        });
        let stream = Stream::train(run.batch_size, &[0]);
        let main = ParameterSet::main();
        Ok(MonoForward {
            settings,
            steps: run.steps,
            model,
            stream,
            units,
            main,
            projections,
        })
    }

    fn step(&mut self, at: &StepInfo) -> StepReport {
        let batch = self.stream.next_endless();
        let factor = self
            .settings
            .schedule
            .factor(at.step, self.steps, self.settings.warmup_steps);
        let learning = match self.settings.greedy {
            true => learning_unit(at.step, self.steps, self.units.len()),
            false => 0,
        };
        let mut x = batch.inputs().clone();
        for unit in &self.units[..learning] {
            x = no_grad(|| unit.block.forward(&self.model, &x, Mode::Eval));
        }
        let mut shown = 0.0;
        for (i, unit) in self.units.iter().enumerate().skip(learning) {
            let (activity, goodness) = self.goodness(unit, &x, Mode::Train);
            x = activity.detach();
            let loss = goodness.cross_entropy(batch.targets()).mean(&[]);
            self.update(unit, &loss, self.settings.lr * factor);
            if i + 1 == self.units.len() || self.settings.greedy {
                shown = loss.item();
                break;
            }
        }
        StepReport::new(shown, batch.count())
    }

    fn objective(&self, batch: &Batch) -> Tensor {
        let mut x = batch.inputs().clone();
        let mut total = Tensor::zeros(&[batch.count()]);
        for unit in &self.units {
            let (activity, goodness) = self.goodness(unit, &x, Mode::TrainFrozenStats);
            total = total + goodness.cross_entropy(batch.targets());
            x = activity.detach();
        }
        total
    }

    fn predict(&self, batch: &Batch) -> Prediction {
        let mut x = batch.inputs().clone();
        let mut sum: Option<Tensor> = None;
        for (i, unit) in self.units.iter().enumerate() {
            if self.settings.predict == Predict::Last && i + 1 < self.units.len() {
                x = unit.block.forward(&self.model, &x, Mode::Eval);
                continue;
            }
            let (activity, goodness) = self.goodness(unit, &x, Mode::Eval);
            x = activity;
            sum = Some(sum.map_or(goodness.clone(), |sum| sum + goodness));
        }
        Prediction::logits(sum.unwrap_or(x))
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

impl MonoForward {
    /// Activity [n, ..] and goodness [n, classes] of a unit.
    fn goodness(&self, unit: &Unit, x: &Tensor, mode: Mode) -> (Tensor, Tensor) {
        let activity = unit.block.forward(&self.model, x, mode);
        let goodness = match &unit.projection {
            Some(name) => activity
                .flatten()
                .linear(&self.projections.value(name), None),
            None => activity.clone(),
        };
        (activity, goodness)
    }

    fn update(&self, unit: &Unit, loss: &Tensor, lr: f64) {
        let names = &unit.block.parameters;
        let mut values = self.main.values(names);
        values.extend(
            unit.projection
                .as_ref()
                .map(|name| self.projections.value(name)),
        );
        if values.is_empty() {
            return;
        }
        let grads = grad(loss, &values.iter().collect::<Vec<_>>());
        // While a value is held, the optimiser has to copy it.
        drop(values);
        let options = AdamOptions {
            lr,
            weight_decay: self.settings.weight_decay,
            ..AdamOptions::default()
        };
        let (of_block, of_projection) = grads.split_at(names.len());
        if !names.is_empty() {
            self.main.adam(names, of_block, options);
        }
        if let Some(name) = &unit.projection {
            self.projections
                .adam(std::slice::from_ref(name), of_projection, options);
        }
    }
}

/// Which of `units` learns at a step of a greedy round: each has an equal share, in order.
fn learning_unit(step: u64, steps: u64, units: usize) -> usize {
    let unit = u128::from(step) * units as u128 / u128::from(steps.max(1));
    (unit as usize).min(units - 1)
}

espalier_sdk::export!(trainer: MonoForward);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_rounds_are_shared_equally_and_in_order() {
        let units: Vec<usize> = (0..10).map(|step| learning_unit(step, 10, 3)).collect();
        assert_eq!(units, [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]);
        assert_eq!(learning_unit(99, 10, 3), 2);
        assert_eq!(learning_unit(0, 0, 1), 0);
    }

    #[test]
    fn every_default_lies_in_its_own_range() {
        assert_eq!(Settings::defaults().lr, 1e-3);
    }
}
