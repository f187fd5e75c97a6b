//! Trainer: NoProp. Every block learns by itself to denoise an embedding of the label; nothing passes through the
//! network in training, neither forward nor backward.
//!
//! Li, Teh and Pascanu 2025 (arXiv 2503.24322). With u_y the embedding of the label and a rising signal level
//! `s_0 < .. < s_T`, block t sees the inputs and `z_(t-1) ~ N(sqrt(s_(t-1)) u_y, 1 - s_(t-1))`.
//! - `dt`: T blocks. `g = softmax(block(z, x)) W` with the table W of embeddings; block t has the loss
//!   `T/2 eta (SNR(t) - SNR(t-1)) |g - u_y|^2`.
//! - `ct`: one block that also reads time features, at t uniform on [0, 1]: `eta/2 SNR'(t) |g - u_y|^2`.
//! - `fm`: the block is a velocity, `z_t = t u_y + (1 - t) z_0`: `|block(z_t, x, t) - (u_y - z_0)|^2`.
//!
//! The model's last layer reads the class: it learns from `z_T ~ q(z_T | y)`, under `fm` from `z_t + (1 - t) block`. A
//! learned table learns from all losses and from KL(q(z_0 | y), N(0, I)). Prediction begins with noise and applies the
//! blocks in turn (`dt`, `ct`: the posterior step of `diffusion`; `fm`: Euler); its noise belongs to the sample, so it
//! is the same in any batch.
//!
//! The blocks are layers of the run's model (see `layout`): pruners see them, and another trainer may train the same
//! chain. Differences: the schedule of `ct` is the fixed cosine, and embeddings are one-hot or learned, not prototypes.

mod diffusion;
mod layout;

use espalier_sdk::data::{self, Batch, Stream};
use espalier_sdk::options::Value;
use espalier_sdk::parameters::{AdamOptions, Kind};
use espalier_sdk::schedule::Schedule;
use espalier_sdk::{
    Choice, Dtype, Error, Mode, Model, Options, ParameterSet, Prediction, RunInfo, StepInfo,
    StepReport, Tensor, Trainer, grad, no_grad, random,
};

use diffusion::{Reverse, kl_constant, ratio, ratio_slope, signal};
use layout::{Layout, Piece, Seen};

/// Which of the three methods.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Variant {
    Dt,
    Ct,
    Fm,
}

/// What stands for a label.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Embedding {
    OneHot,
    Learned,
}

/// Options under `[trainer.with]`.
#[derive(Options)]
struct Settings {
    /// dt: a block for each of T times; ct: one block for all times; fm: one block, a velocity.
    #[option(default = Variant::Dt)]
    variant: Variant,
    /// one-hot: the classes themselves; learned: of as many dimensions as the layer `noise` has features.
    #[option(default = Embedding::OneHot)]
    embedding: Embedding,
    /// Learning rate of AdamW before the schedule.
    #[option(default = 1e-3, min = 0, live)]
    lr: f64,
    /// How the learning rate goes down over a round.
    #[option(default = Schedule::Constant)]
    schedule: Schedule,
    /// How much AdamW shrinks the weights.
    #[option(default = 1e-3, min = 0)]
    weight_decay: f64,
    /// Weight of the denoising losses of dt and ct; 0 for the paper's, 0.1 and 1.
    #[option(default = 0, min = 0)]
    eta: f64,
    /// Steps of a prediction of ct and fm; dt has one a block.
    #[option(default = 40, min = 1, max = 10000)]
    inference_steps: u32,
    /// Adds the noise of the posterior between the steps of a prediction, as the paper does; without it each goes
    /// to the mean.
    #[option(default = true)]
    stochastic: bool,
}

/// Uses of randomness: first number of a key.
const TABLE: u64 = 1;
const TRAINING: u64 = 2;
const TIMES: u64 = 3;
const OBJECTIVE: u64 = 4;
const OBJECTIVE_TIMES: u64 = 5;
const PREDICTION: u64 = 6;

/// Rows of the noise that samples are given by their numbers.
const ROWS: u32 = 1024;

struct NoProp {
    settings: Settings,
    steps: u64,
    eta: f64,
    model: Model,
    stream: Stream,
    layout: Layout,
    main: ParameterSet,
    /// `table` [classes, width], the embeddings.
    own: ParameterSet,
}

/// Where noise comes from.
enum Noise<'a> {
    /// A key of the step: all rows differ in all steps.
    Step(&'a StepInfo),
    /// The numbers of the samples.
    Samples(&'a Tensor),
}

/// The parts of a batch's loss, [count] each, with what learns from them.
struct Part {
    losses: Tensor,
    learners: Vec<String>,
}

impl Trainer for NoProp {
    type Options = Settings;

    fn new(run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let classes = data::split("train").map_or(0, |split| split.classes);
        if classes == 0 {
            return Err(Error::incompatible(
                "this trainer classifies; the targets of this data are numbers",
            ));
        }
        let model = Model::main();
        let layout = Layout::of(&model)?;
        check(&layout, &settings, classes)?;
        let own = ParameterSet::own("embedding");
        let learned = settings.embedding == Embedding::Learned;
        let table = match learned {
            true => random::normal(&[TABLE], &[classes, layout.width]),
            false => Tensor::eye(classes),
        };
        let kind = if learned {
            Kind::Embedding
        } else {
            Kind::Buffer
        };
        own.create("table", kind, &table, learned);
        let eta = match (settings.eta, settings.variant) {
            (0.0, Variant::Dt) => 0.1,
            (0.0, _) => 1.0,
            (eta, _) => eta,
        };
        Ok(NoProp {
            settings,
            steps: run.steps,
            eta,
            model,
            stream: Stream::train(run.batch_size, &[0]),
            layout,
            main: ParameterSet::main(),
            own,
        })
    }

    fn step(&mut self, at: &StepInfo) -> StepReport {
        let batch = self.stream.next_endless();
        let noise = Noise::Step(at);
        let factor = self.settings.schedule.factor(at.step, self.steps, 0);
        let options = AdamOptions {
            lr: self.settings.lr * factor,
            weight_decay: self.settings.weight_decay,
            ..AdamOptions::default()
        };
        let seen = self.layout.look(&self.model, &batch, Mode::Train);
        let learned = self.settings.embedding == Embedding::Learned;
        let (mut total, mut of_table) = (Tensor::scalar(0.0), None);
        // One part after the other, so that one block's graph lives at a time.
        for part in 0..self.parts() {
            let Part { losses, learners } = self.part(part, &batch, &seen, &noise, Mode::Train);
            let loss = losses.mean(&[]);
            total = total + loss.detach();
            let mut values = self.main.values(&learners);
            if learned {
                values.push(self.own.value("table"));
            }
            if values.is_empty() {
                continue;
            }
            let mut grads = grad(&loss, &values.iter().collect::<Vec<_>>());
            // While a value is held, the optimiser has to copy it.
            drop(values);
            if learned && let Some(more) = grads.pop() {
                of_table = Some(of_table.map_or(more.clone(), |sum: Tensor| sum + more));
            }
            if !learners.is_empty() {
                self.main.adamw(&learners, &grads, options);
            }
        }
        if let Some(grads) = of_table {
            let options = AdamOptions {
                weight_decay: 0.0,
                ..options
            };
            self.own.adamw(&["table".to_string()], &[grads], options);
        }
        StepReport::new(total.item(), batch.count())
    }

    fn objective(&self, batch: &Batch) -> Tensor {
        let mode = Mode::TrainFrozenStats;
        let seen = self.layout.look(&self.model, batch, mode);
        let noise = Noise::Samples(batch.index());
        let parts = (0..self.parts()).map(|part| self.part(part, batch, &seen, &noise, mode));
        parts.fold(Tensor::zeros(&[batch.count()]), |sum, part| {
            sum + part.losses
        })
    }

    fn predict(&self, batch: &Batch) -> Prediction {
        let seen = self.layout.look(&self.model, batch, Mode::Eval);
        let noise = Noise::Samples(batch.index());
        let draw = |t: u32| self.normal(&noise, PREDICTION, u64::from(t), batch.count());
        let steps = match self.settings.variant {
            Variant::Dt => self.layout.blocks.len() as u32,
            Variant::Ct | Variant::Fm => self.settings.inference_steps,
        };
        let mut z = draw(0);
        for i in 1..=steps {
            let (from, to) = (
                f64::from(i - 1) / f64::from(steps),
                f64::from(i) / f64::from(steps),
            );
            let block = match self.settings.variant {
                Variant::Dt => &self.layout.blocks[i as usize - 1],
                Variant::Ct | Variant::Fm => &self.layout.blocks[0],
            };
            let time = Tensor::full(&[batch.count()], from, Dtype::F32);
            let output = self.run(block, &seen, &z, &time, Mode::Eval);
            if self.settings.variant == Variant::Fm {
                z = z + output / f64::from(steps);
                continue;
            }
            let step = Reverse::between(signal(from), signal(to));
            z = self.guess(&output) * step.a + z * step.b;
            if self.settings.stochastic {
                z = z + draw(i) * step.c.sqrt();
            }
        }
        let head = &self.layout.head;
        Prediction::logits(head.run(&self.model, &seen, &z, None, Mode::Eval))
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

impl NoProp {
    /// How many parts a batch's loss has: under dt one a block, then the head's with the divergence of the start.
    fn parts(&self) -> usize {
        match self.settings.variant {
            Variant::Dt | Variant::Ct => self.layout.blocks.len() + 1,
            Variant::Fm => 1,
        }
    }

    fn part(&self, part: usize, batch: &Batch, seen: &Seen, noise: &Noise, mode: Mode) -> Part {
        let u = self.table().take(batch.targets(), 0);
        match (self.settings.variant, self.layout.blocks.get(part)) {
            (Variant::Fm, Some(block)) => self.flow(block, &u, batch, seen, noise, mode),
            (variant, Some(block)) => {
                let count = batch.count();
                let (time, level, weight) = match variant {
                    Variant::Dt => {
                        let blocks = self.layout.blocks.len() as f64;
                        let (from, to) = (part as f64 / blocks, (part + 1) as f64 / blocks);
                        let growth = ratio(signal(to)) - ratio(signal(from));
                        let all = |x: f64| Tensor::full(&[count], x, Dtype::F32);
                        (all(from), all(signal(from)), all(0.5 * blocks * growth))
                    }
                    _ => {
                        let time = self.times(noise, count);
                        let t = time.to_list();
                        let of = |f: fn(f64) -> f64| -> Tensor {
                            let values: Vec<f64> = t.iter().map(|&t| f(t)).collect();
                            Tensor::from_list(&values, &[count])
                        };
                        let weight = of(ratio_slope) * 0.5;
                        (time, of(signal), weight)
                    }
                };
                let z = self.noisy(&u, &level, noise, part as u64);
                let output = self.run(block, seen, &z, &time, mode);
                let distance = (self.guess(&output) - &u).square().sum(&[1]);
                Part {
                    losses: distance * weight * self.eta,
                    learners: block.parameters.clone(),
                }
            }
            (_, None) => {
                let last = Tensor::full(&[batch.count()], signal(1.0), Dtype::F32);
                let z = self.noisy(&u, &last, noise, part as u64);
                let head = &self.layout.head;
                let logits = head.run(&self.model, seen, &z, None, mode);
                let kl = u.square().sum(&[1]) * (0.5 * signal(0.0))
                    + kl_constant(signal(0.0), self.layout.width);
                Part {
                    losses: logits.cross_entropy(batch.targets()) + kl,
                    learners: head.parameters.clone(),
                }
            }
        }
    }

    /// The loss of fm: the velocity's error, and the class of where it leads.
    fn flow(
        &self,
        block: &Piece,
        u: &Tensor,
        batch: &Batch,
        seen: &Seen,
        noise: &Noise,
        mode: Mode,
    ) -> Part {
        let start = self.normal(noise, self.uses(noise), 0, batch.count());
        let time = self.times(noise, batch.count());
        let t = time.expand_dims(1);
        let rest = 1.0 - &t;
        let z = u * &t + &start * &rest;
        let velocity = self.run(block, seen, &z, &time, mode);
        let error = (&velocity - (u - &start)).square().sum(&[1]);
        let mut end = &z + velocity * &rest;
        if self.settings.embedding == Embedding::OneHot {
            // Embeddings that can't collapse need no anchor: the class does not speak to the velocity.
            end = end.detach();
        }
        let head = &self.layout.head;
        let logits = head.run(&self.model, seen, &end, None, mode);
        Part {
            losses: error + logits.cross_entropy(batch.targets()),
            learners: [&block.parameters[..], &head.parameters[..]].concat(),
        }
    }

    /// Embeddings of all classes, tracked where they are learned.
    fn table(&self) -> Tensor {
        self.own.value("table")
    }

    /// The embedding that a block's output means, [n, width].
    fn guess(&self, output: &Tensor) -> Tensor {
        output.softmax(-1).matmul(&self.table())
    }

    fn run(&self, block: &Piece, seen: &Seen, z: &Tensor, time: &Tensor, mode: Mode) -> Tensor {
        let features = self.layout.time.map(|n| time_features(time, n));
        block.run(&self.model, seen, z, features.as_ref(), mode)
    }

    /// A sample of N(sqrt(level) u, 1 - level).
    fn noisy(&self, u: &Tensor, level: &Tensor, noise: &Noise, part: u64) -> Tensor {
        let level = level.expand_dims(1);
        let eps = self.normal(noise, self.uses(noise), part, u.size(0));
        u * level.sqrt() + eps * (1.0 - &level).sqrt()
    }

    /// Standard normal numbers [count, width].
    fn normal(&self, noise: &Noise, uses: u64, part: u64, count: u32) -> Tensor {
        let width = self.layout.width;
        match noise {
            Noise::Step(at) => {
                let key = [uses, u64::from(at.round), at.step, part];
                random::normal(&key, &[count, width])
            }
            Noise::Samples(index) => {
                random::normal(&[uses, part], &[ROWS, width]).take(&row(index), 0)
            }
        }
    }

    /// Times uniform on [0, 1), [count].
    fn times(&self, noise: &Noise, count: u32) -> Tensor {
        match noise {
            Noise::Step(at) => random::uniform(&[TIMES, u64::from(at.round), at.step], &[count]),
            Noise::Samples(index) => {
                random::uniform(&[OBJECTIVE_TIMES], &[ROWS]).take(&row(index), 0)
            }
        }
    }

    fn uses(&self, noise: &Noise) -> u64 {
        match noise {
            Noise::Step(_) => TRAINING,
            Noise::Samples(_) => OBJECTIVE,
        }
    }
}

/// The row of noise of each sample.
fn row(index: &Tensor) -> Tensor {
    let rows = f64::from(ROWS);
    let whole = (index.astype(Dtype::F32) / rows).astype(Dtype::I64);
    index - whole * rows
}

/// sin and cos of pi k t for k = 1 to n / 2, [count, n].
fn time_features(time: &Tensor, n: u32) -> Tensor {
    no_grad(|| {
        let k = Tensor::arange(1.0, f64::from(n / 2) + 1.0, 1.0) * std::f64::consts::PI;
        let angles = time.expand_dims(1) * k.expand_dims(0);
        Tensor::concat(&[&angles.sin(), &angles.cos()], 1)
    })
}

/// Whether the model goes with the options.
fn check(layout: &Layout, settings: &Settings, classes: u32) -> Result<(), Error> {
    let blocks = layout.blocks.len();
    let (variant, one) = match settings.variant {
        Variant::Dt => ("dt", false),
        Variant::Ct => ("ct", true),
        Variant::Fm => ("fm", true),
    };
    if one && (blocks != 1 || layout.time.is_none()) {
        return Err(Error::incompatible(format!(
            "`variant` {variant} has one block that reads the layer `time` beside `noise`; this model has {blocks} \
             blocks{}",
            if layout.time.is_none() {
                " and no layer `time`"
            } else {
                ""
            }
        )));
    }
    if layout.time.is_some_and(|n| n == 0 || n % 2 == 1) {
        return Err(Error::incompatible(
            "the layer `time` needs an even number of features: half are sines, half cosines",
        ));
    }
    let out = match settings.variant {
        Variant::Fm => layout.width,
        Variant::Dt | Variant::Ct => classes,
    };
    if blocks > 1 && layout.width != classes {
        return Err(Error::incompatible(format!(
            "the layer `noise` has {} features; a block after the first reads the one before it, which gives {classes}: \
             give `noise` as many",
            layout.width
        )));
    }
    for (i, block) in layout.blocks.iter().enumerate() {
        if block.width != out {
            return Err(Error::incompatible(format!(
                "`block{}` gives {} numbers, `variant` {variant} needs {out}",
                i + 1,
                block.width
            )));
        }
    }
    if layout.head.width != classes {
        return Err(Error::incompatible(format!(
            "the last layer gives {} numbers, there are {classes} classes",
            layout.head.width
        )));
    }
    if settings.embedding == Embedding::OneHot && layout.width != classes {
        return Err(Error::incompatible(format!(
            "the layer `noise` has {} features; one-hot embeddings of {classes} classes need {classes}: change it, or \
             set embedding = \"learned\"",
            layout.width
        )));
    }
    Ok(())
}

espalier_sdk::export!(trainer: NoProp);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_lies_in_its_own_range() {
        let settings = Settings::defaults();
        assert!(settings.variant == Variant::Dt && settings.stochastic);
        assert_eq!(settings.inference_steps, 40);
    }
}
