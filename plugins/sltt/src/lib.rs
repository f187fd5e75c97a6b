//! Trainer: Spatial Learning Through Time. A spiking network whose every time step learns by itself, so that memory does
//! not grow with their number.
//!
//! Meng et al. 2023 (arXiv 2302.14311). In place of each activation of the run's model stand leaky integrate-and-fire
//! neurons: charge `u_t = k v_(t-1) + x_t` with k = 1 - 1/tau, spike `s_t = H(u_t - threshold)`, reset by subtraction
//! `v_t = u_t - threshold s_t`, v_0 = 0. H has a surrogate's derivative on the way back. The model reads the same inputs
//! at each of T steps and gives out_t; its loss is the mean over the steps of
//! `(1 - lambda) CE(out_t, y) + lambda MSE(out_t, target)`.
//! - `sltt`: v_(t-1) is a constant. A step's gradient is complete when the step is: it is added up, and its graph is gone.
//! - `sltt` with `gradient-steps = K`: that at K random steps; the others only move the membranes (SLTT-K). The scale
//!   stays 1/T, as published.
//! - `bptt`: backpropagation through time, the reset included; all T graphs live until the end.
//!
//! Prediction: the mean of out_t. Difference: Adam is the default, where the paper has SGD with momentum.

use std::ops::Range;

use espalier_sdk::data::{self, Batch, Stream};
use espalier_sdk::model::{LayerInfo, LayerInput};
use espalier_sdk::options::Value;
use espalier_sdk::parameters::{AdamOptions, Selection, SgdOptions};
use espalier_sdk::schedule::Schedule;
use espalier_sdk::{
    Choice, Error, Mode, Model, Options, ParameterSet, Prediction, RunInfo, StepInfo, StepReport,
    Tensor, Trainer, log, no_grad, random,
};

/// Which gradient.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Method {
    Sltt,
    Bptt,
}

/// The derivative of a spike, by z = u - threshold.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Surrogate {
    Triangle,
    Rectangle,
    Sigmoid,
}

/// What the squared error pulls the outputs to.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Target {
    Ones,
    OneHot,
}

/// Which optimiser.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Optimizer {
    Adam,
    Sgd,
}

/// Options under `[trainer.with]`.
#[derive(Options)]
struct Settings {
    /// sltt: no gradient through the membrane; bptt: through all of time.
    #[option(default = Method::Sltt)]
    method: Method,
    /// Time steps T for which the inputs are shown.
    #[option(default = 6, min = 1, max = 1000)]
    time_steps: u32,
    /// sltt: steps with a gradient, drawn anew for each batch; 0 for all.
    #[option(default = 0, max = 1000)]
    gradient_steps: u32,
    /// Time constant of the membrane: what is left of it after a step is 1 - 1/tau.
    #[option(default = 1.1, min = 1)]
    tau: f64,
    /// Potential at which a neuron fires.
    #[option(default = 1, min = 1e-6)]
    threshold: f64,
    /// triangle: max(0, 1 - |z|); rectangle: 1 for |z| up to 1/2; sigmoid: that of 4 z.
    #[option(default = Surrogate::Triangle)]
    surrogate: Surrogate,
    /// Share of the squared error in the loss.
    #[option(default = 0.05, min = 0, max = 1)]
    lambda: f64,
    /// What the squared error pulls the outputs to: 1 for every class, or the label.
    #[option(default = Target::Ones)]
    target: Target,
    /// Which optimiser.
    #[option(default = Optimizer::Adam)]
    optimizer: Optimizer,
    /// Learning rate before the schedule.
    #[option(default = 1e-3, min = 0, live)]
    lr: f64,
    /// Momentum of sgd.
    #[option(default = 0.9, min = 0, max = 1)]
    momentum: f64,
    /// Added to the gradient, times the weight.
    #[option(default = 0, min = 0)]
    weight_decay: f64,
    /// How the learning rate goes down over a round.
    #[option(default = Schedule::Constant)]
    schedule: Schedule,
    /// Logs the cosine between the gradients of sltt and bptt at the first and the last step of a round. Takes the
    /// memory of bptt there.
    #[option(default = false)]
    compare: bool,
}

/// Uses of randomness: first number of a key.
const GRADIENT_STEPS: u64 = 1;

/// Kinds of layers in whose place neurons stand.
const ACTIVATIONS: [&str; 7] = ["relu", "elu", "tanh", "sigmoid", "gelu", "silu", "hardtanh"];

struct Sltt {
    settings: Settings,
    steps: u64,
    classes: u32,
    /// What is left of a membrane after a step.
    leak: f64,
    model: Model,
    stream: Stream,
    /// Layers between neurons; the last part gives the outputs.
    parts: Vec<Range<u32>>,
    main: ParameterSet,
    names: Vec<String>,
    weights: Selection,
}

/// The membranes of each population of neurons; none before the first step.
type Membranes = Vec<Option<Tensor>>;

impl Trainer for Sltt {
    type Options = Settings;

    fn new(run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let classes = data::split("train").map_or(0, |split| split.classes);
        if classes == 0 {
            return Err(Error::incompatible(
                "this trainer classifies; the targets of this data are numbers",
            ));
        }
        if settings.gradient_steps > settings.time_steps {
            return Err(Error::invalid_option(format!(
                "`gradient-steps` ({}) must not be above `time-steps` ({})",
                settings.gradient_steps, settings.time_steps
            )));
        }
        if settings.method == Method::Bptt && settings.gradient_steps > 0 {
            return Err(Error::invalid_option(
                "`gradient-steps` is for method = \"sltt\"; through time every step has a gradient",
            ));
        }
        let model = Model::main();
        let layers = model.layers();
        let parts = parts(&layers)?;
        if layers.last().map(|l| &l.out_shape[..]) != Some(&[classes]) {
            return Err(Error::incompatible(format!(
                "the model must end in a layer with one output a class ({classes})"
            )));
        }
        let main = ParameterSet::main();
        let names = main.trainable();
        if names.is_empty() {
            return Err(Error::incompatible("the model has no trainable parameters"));
        }
        Ok(Sltt {
            steps: run.steps,
            classes,
            leak: 1.0 - 1.0 / settings.tau,
            model,
            stream: Stream::train(run.batch_size, &[0]),
            parts,
            weights: main.select(&names),
            main,
            names,
            settings,
        })
    }

    fn step(&mut self, at: &StepInfo) -> StepReport {
        let batch = self.stream.next_endless();
        if self.settings.compare && (at.step == 0 || at.step + 1 == self.steps) {
            self.compare(&batch);
        }
        let (grads, loss) = match self.settings.method {
            Method::Bptt => self.through_time(&batch, Mode::Train),
            Method::Sltt => self.step_by_step(&batch, &self.chosen(at), Mode::Train),
        };
        let factor = self.settings.schedule.factor(at.step, self.steps, 0);
        let (lr, weight_decay) = (self.settings.lr * factor, self.settings.weight_decay);
        match self.settings.optimizer {
            Optimizer::Adam => {
                let options = AdamOptions {
                    lr,
                    weight_decay,
                    ..AdamOptions::default()
                };
                self.main.adam(&self.names, &grads, options);
            }
            Optimizer::Sgd => {
                let options = SgdOptions {
                    lr,
                    momentum: self.settings.momentum,
                    weight_decay,
                    ..SgdOptions::default()
                };
                self.main.sgd(&self.names, &grads, options);
            }
        }
        StepReport::new(loss.item(), batch.count())
    }

    fn objective(&self, batch: &Batch) -> Tensor {
        let mut membranes = self.at_rest();
        let mut total = Tensor::zeros(&[batch.count()]);
        for _ in 0..self.settings.time_steps {
            let out = self.advance(
                batch,
                &mut membranes,
                self.settings.method,
                Mode::TrainFrozenStats,
            );
            total = total + self.losses(&out, batch);
        }
        total
    }

    fn predict(&self, batch: &Batch) -> Prediction {
        let mut membranes = self.at_rest();
        let mut total: Option<Tensor> = None;
        for _ in 0..self.settings.time_steps {
            let out = self.advance(batch, &mut membranes, self.settings.method, Mode::Eval);
            total = Some(match total {
                Some(sum) => sum + out,
                None => out,
            });
        }
        let total = total.unwrap_or_else(|| Tensor::zeros(&[batch.count(), self.classes]));
        Prediction::logits(total / f64::from(self.settings.time_steps))
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

impl Sltt {
    fn at_rest(&self) -> Membranes {
        vec![None; self.parts.len() - 1]
    }

    /// One time step: the outputs [n, classes]; the membranes move on.
    fn advance(
        &self,
        batch: &Batch,
        membranes: &mut Membranes,
        method: Method,
        mode: Mode,
    ) -> Tensor {
        let mut x = batch.inputs().clone();
        for (i, part) in self.parts.iter().enumerate() {
            if !part.is_empty() {
                x = self.model.forward_range(part.clone(), &x, mode);
            }
            let Some(membrane) = membranes.get_mut(i) else {
                continue;
            };
            let charge = match membrane.take() {
                Some(v) => v * self.leak + x,
                None => x,
            };
            x = self.spikes(&charge);
            let rest = charge - &x * self.settings.threshold;
            *membrane = Some(match method {
                // Here the two methods part: what comes next sees a number, or what it came from.
                Method::Sltt => rest.detach(),
                Method::Bptt => rest,
            });
        }
        x
    }

    /// 1 where the charge reaches the threshold, else 0; on the way back the surrogate's derivative.
    fn spikes(&self, charge: &Tensor) -> Tensor {
        let z = charge - self.settings.threshold;
        let (fired, slope) = no_grad(|| {
            let slope = match self.settings.surrogate {
                Surrogate::Triangle => (1.0 - z.abs()).relu(),
                Surrogate::Rectangle => z.abs().less_equal(0.5).astype(z.dtype()),
                Surrogate::Sigmoid => {
                    let s = (&z * 4.0).sigmoid();
                    &s * (1.0 - &s) * 4.0
                }
            };
            (z.greater_equal(0.0).astype(z.dtype()), slope)
        });
        let soft = z * slope;
        // Exactly 0 or 1: what is added is x - x.
        fired + (&soft - soft.detach())
    }

    /// Losses of the samples at a time step, a T-th of them.
    fn losses(&self, out: &Tensor, batch: &Batch) -> Tensor {
        let lambda = self.settings.lambda;
        let mut losses = out.cross_entropy(batch.targets()) * (1.0 - lambda);
        if lambda > 0.0 {
            let error = match self.settings.target {
                Target::Ones => out - 1.0,
                Target::OneHot => out - batch.targets().one_hot(self.classes),
            };
            losses = losses + error.square().mean(&[1]) * lambda;
        }
        losses / f64::from(self.settings.time_steps)
    }

    /// Gradients and loss of sltt: one time step's graph at a time, of the steps that are `chosen`.
    fn step_by_step(&self, batch: &Batch, chosen: &[bool], mode: Mode) -> (Vec<Tensor>, Tensor) {
        let mut membranes = self.at_rest();
        let mut sum: Option<Vec<Tensor>> = None;
        let mut total = Tensor::scalar(0.0);
        for &learns in chosen {
            let mut advance = || {
                let out = self.advance(batch, &mut membranes, Method::Sltt, mode);
                self.losses(&out, batch).mean(&[])
            };
            if !learns {
                total = total + no_grad(advance);
                continue;
            }
            let loss = advance();
            total = total + loss.detach();
            let grads = self.weights.gradients(&loss);
            sum = Some(match sum {
                Some(sum) => sum.into_iter().zip(grads).map(|(a, b)| a + b).collect(),
                None => grads,
            });
        }
        (sum.unwrap_or_default(), total)
    }

    /// Gradients and loss of backpropagation through time.
    fn through_time(&self, batch: &Batch, mode: Mode) -> (Vec<Tensor>, Tensor) {
        let mut membranes = self.at_rest();
        let mut total = Tensor::scalar(0.0);
        for _ in 0..self.settings.time_steps {
            let out = self.advance(batch, &mut membranes, Method::Bptt, mode);
            total = total + self.losses(&out, batch).mean(&[]);
        }
        (self.weights.gradients(&total), total.detach())
    }

    /// Which time steps have a gradient in a step of training.
    fn chosen(&self, at: &StepInfo) -> Vec<bool> {
        let (all, some) = (self.settings.time_steps, self.settings.gradient_steps);
        if some == 0 || some == all {
            return vec![true; all as usize];
        }
        let key = [GRADIENT_STEPS, u64::from(at.round), at.step];
        first_of_order(&random::bits(&key, all), some as usize)
    }

    fn compare(&self, batch: &Batch) {
        let all = vec![true; self.settings.time_steps as usize];
        let mode = Mode::TrainFrozenStats;
        let [a, b] = [
            self.step_by_step(batch, &all, mode).0,
            self.through_time(batch, mode).0,
        ]
        .map(|grads| Tensor::flat(&grads.iter().collect::<Vec<_>>()));
        log::metric("gradient-cosine", a.cosine_similarity(&b, 0).item());
    }
}

/// The `some` places with the smallest words: a random choice among all.
fn first_of_order(words: &[u64], some: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..words.len()).collect();
    order.sort_by_key(|&i| words[i]);
    let mut chosen = vec![false; words.len()];
    for &i in order.iter().take(some) {
        chosen[i] = true;
    }
    chosen
}

/// The layers between activations, one part more than there are activations.
fn parts(layers: &[LayerInfo]) -> Result<Vec<Range<u32>>, Error> {
    let mut parts = Vec::new();
    let mut start = 0;
    for (i, layer) in (0u32..).zip(layers) {
        for input in &layer.inputs {
            let across = match input {
                LayerInput::Layer(from) => from + 1 < start,
                LayerInput::Field(_) => start > 0,
            };
            if across {
                return Err(Error::incompatible(format!(
                    "the layer `{}` reads across an activation; where neurons stand the model must be a chain",
                    layer.name
                )));
            }
        }
        if ACTIVATIONS.contains(&&layer.kind[..]) {
            parts.push(start..i);
            start = i + 1;
        }
    }
    if parts.is_empty() {
        return Err(Error::incompatible(format!(
            "the model has no activation in whose place neurons could stand: {}",
            ACTIVATIONS.join(", ")
        )));
    }
    parts.push(start..layers.len() as u32);
    Ok(parts)
}

espalier_sdk::export!(trainer: Sltt);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn chain(kinds: &[&str], extra: Option<(usize, u32)>) -> Vec<LayerInfo> {
        let layer = |i: usize| {
            let mut inputs = match i {
                0 => vec![LayerInput::Field("inputs".into())],
                _ => vec![LayerInput::Layer(i as u32 - 1)],
            };
            inputs.extend(extra.filter(|e| e.0 == i).map(|e| LayerInput::Layer(e.1)));
            LayerInfo {
                index: i as u32,
                name: format!("{}{i}", kinds[i]),
                kind: kinds[i].to_string(),
                inputs,
                parameters: Vec::new(),
                in_shape: vec![4],
                out_shape: vec![4],
                macs: 0,
                settings: Vec::new(),
            }
        };
        (0..kinds.len()).map(layer).collect()
    }

    #[test]
    fn neurons_stand_in_place_of_activations() {
        let kinds = [
            "flatten", "linear", "relu", "linear", "tanh", "dropout", "linear",
        ];
        assert_eq!(parts(&chain(&kinds, None)).unwrap(), [0..2, 3..4, 5..7]);
        let ends = parts(&chain(&["linear", "relu"], None)).unwrap();
        assert_eq!(ends, [0..1, 2..2]);
    }

    #[test]
    fn models_that_are_no_chain_or_have_no_activation_are_refused() {
        assert!(parts(&chain(&["linear", "linear"], None)).is_err());
        let kinds = ["linear", "relu", "linear", "add", "linear"];
        assert!(parts(&chain(&kinds, Some((3, 0)))).is_err());
        assert!(parts(&chain(&kinds, Some((3, 1)))).is_ok());
    }

    #[test]
    fn as_many_steps_learn_as_are_asked_for() {
        assert_eq!(first_of_order(&[5, 1, 9, 3], 2), [false, true, false, true]);
        assert_eq!(first_of_order(&[5, 1], 2), [true, true]);
    }

    #[test]
    fn every_default_lies_in_its_own_range() {
        let settings = Settings::defaults();
        assert_eq!((settings.time_steps, settings.gradient_steps), (6, 0));
    }
}
