//! Trainer: BO-REP, bilevel optimisation whose upper step has a fixed length.
//!
//! Hao, Gong and Liu 2024 (ICLR, arXiv 2401.09587). Minimise `f(x, y*(x))` over x, where y*(x) minimises `g(x, y)`.
//! The lower variables y are the run's model, trained by SGD on g; the upper ones x are a set of this plugin's:
//! a weight for each training sample (data cleaning), or the strength of the weight decay. A step is
//!
//! 1. every `every` steps: `lower-steps` of SGD, `y <- y - a dg/dy`;
//! 2. `z <- z - nu (d2g/dy2 z - df/dy)`, which goes towards `(d2g/dy2)^-1 df/dy`;
//! 3. `h = df/dx - (d2g/dxdy) z`, `m <- b m + (1 - b) h`, `x <- x - e m / (|m| + 1e-10)`.
//!
//! Before the first step y is solved for longer (`refine` steps), and so once more after the last, for the final x.
//!
//! Differences: the last iterate of the lower steps is used, not their average, and nothing is projected (as in the
//! released code); all derivatives of g are taken on training samples, which that code does not do.

mod problem;

use espalier_sdk::autograd::Grad;
use espalier_sdk::data::Batch;
use espalier_sdk::options::Value;
use espalier_sdk::parameters::{Kind, SgdOptions};
use espalier_sdk::schedule::Schedule;
use espalier_sdk::{
    Choice, Error, Mode, Model, Options, ParameterSet, Prediction, RunInfo, StepInfo, StepReport,
    Tensor, Trainer, grad, log,
};

use problem::{Problem, Samples, Task};

/// Which problem of two levels is solved.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Which {
    DataCleaning,
    WeightDecay,
    Quadratic,
    Cosh,
}

/// What the lower level makes of the training samples.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Weights {
    Learned,
    Equal,
    Clean,
}

/// Options under `[trainer.with]`.
#[derive(Options)]
struct Settings {
    /// data-cleaning: a weight sigmoid(x) for each training sample; weight-decay: a decay of e^x / 2; quadratic and
    /// cosh: two numbers with a known answer, for checks, beside which the model is not trained.
    #[option(default = Which::DataCleaning)]
    problem: Which,
    /// learned: the method; equal: plain training, the baseline; clean: on the samples whose label is right alone, the
    /// best that cleaning could reach (it knows which ones `label-noise` has changed).
    #[option(default = Weights::Learned)]
    weights: Weights,
    /// Length of the upper step; with normalized = false the factor of the averaged gradient.
    #[option(default = 0.5, min = 0, live)]
    upper_lr: f64,
    /// Learning rate of the lower level's SGD.
    #[option(default = 0.5, min = 0, live)]
    lower_lr: f64,
    /// Rate of the linear system; must stay below 2 over the largest curvature of the lower level.
    #[option(default = 0.1, min = 0)]
    system_lr: f64,
    /// Share of the old average in the new one of upper gradients.
    #[option(default = 0.9, min = 0, max = 1)]
    momentum: f64,
    /// Upper steps of fixed length; false: of the gradient's, as in SOBA.
    #[option(default = true)]
    normalized: bool,
    /// How the upper learning rate goes down over a round.
    #[option(default = Schedule::Constant)]
    schedule: Schedule,
    /// Upper steps between two visits to the lower level.
    #[option(default = 2, min = 1)]
    every: u64,
    /// SGD steps of such a visit.
    #[option(default = 10, min = 1)]
    lower_steps: u64,
    /// SGD steps of the lower level before the first upper step and after the last.
    #[option(default = 200)]
    refine: u64,
    /// Times the squared norm of the model's parameters, in the lower level of data-cleaning: makes that of a linear model
    /// strongly convex.
    #[option(default = 1e-3, min = 0)]
    decay: f64,
    /// Where x begins; each of its numbers.
    #[option(default = 0)]
    start: f64,
    /// Share of the training labels that are replaced by others, at random: for experiments.
    #[option(default = 0, min = 0, max = 1)]
    label_noise: f64,
    /// Share of the training samples that serve the upper level where the run has no split `validation`.
    #[option(default = 0.2, min = 0, max = 0.9)]
    trusted: f64,
}

const X: &str = "x";
const M: &str = "m";
/// First numbers of the keys: SGD before, between and after upper steps, and the samples of the upper step itself.
const REFINE: u64 = 0;
const LOWER: u64 = 1;
const LAST: u64 = 2;
const SYSTEM: u64 = 3;
const UPPER: u64 = 4;

struct BoRep {
    settings: Settings,
    steps: u64,
    task: Task,
    model: Model,
    /// x, m, and z by the name of its lower parameter.
    upper: ParameterSet,
}

impl Trainer for BoRep {
    type Options = Settings;

    fn new(run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let task = Task::new(run, &settings)?;
        let upper = ParameterSet::own("upper");
        let x = task.start(settings.start);
        upper.create(X, Kind::Weight, &x, true);
        upper.create(M, Kind::Buffer, &x.zeros_like(), false);
        for name in &task.lower_names {
            let zeros = task.lower_set.value(name).zeros_like();
            upper.create(&z_name(name), Kind::Buffer, &zeros, false);
        }
        Ok(BoRep {
            settings,
            steps: run.steps,
            task,
            model: Model::main(),
            upper,
        })
    }

    fn step(&mut self, at: &StepInfo) -> StepReport {
        let settings = &self.settings;
        let now = [u64::from(at.round), at.step];
        if at.step == 0 {
            self.solve(settings.refine, REFINE, now);
        }
        if at.step.is_multiple_of(settings.every) {
            self.solve(settings.lower_steps, LOWER, now);
        }
        let trusted = self.task.trusted([UPPER, now[0], now[1], 0]);
        let loss = match settings.weights {
            Weights::Learned => self.upper_step(&trusted, now),
            Weights::Equal | Weights::Clean => {
                let y = self.task.lower();
                self.task
                    .upper_loss(&self.model, &self.upper.value(X), &y, &trusted)
                    .item()
            }
        };
        if at.step + 1 == self.steps {
            self.solve(settings.refine, LAST, now);
            self.report();
        }
        StepReport::new(loss, trusted.count())
    }

    /// Plain losses of the samples given. The learned weights stay out: a batch does not say of which split its
    /// `index` counts.
    fn objective(&self, batch: &Batch) -> Tensor {
        self.model
            .forward(batch.fields(), Mode::TrainFrozenStats)
            .cross_entropy(batch.targets())
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

impl BoRep {
    /// Some steps of SGD on the lower level, with x as it is.
    fn solve(&self, steps: u64, use_: u64, [round, step]: [u64; 2]) {
        let options = SgdOptions {
            lr: self.settings.lower_lr,
            ..SgdOptions::default()
        };
        let Task {
            lower_set,
            lower_names,
            ..
        } = &self.task;
        let x = self.upper.value(X).detach();
        for inner in 0..steps {
            let samples = self.task.training([use_, round, step, inner]);
            let y = self.task.lower();
            let loss = self.task.lower_loss(&self.model, &x, &y, &samples);
            // While a value is held, the optimiser has to copy it.
            drop(y);
            lower_set.sgd(lower_names, &lower_set.grad(&loss, lower_names), options);
        }
    }

    /// One step of z, m and x; gives the upper loss before it.
    fn upper_step(&self, trusted: &Samples, [round, step]: [u64; 2]) -> f64 {
        let settings = &self.settings;
        let samples = self.task.training([SYSTEM, round, step, 0]);
        let (x, y) = (self.upper.value(X), self.task.lower());
        let lower: Vec<&Tensor> = y.iter().collect();

        let f = self.task.upper_loss(&self.model, &x, &y, trusted);
        let both: Vec<&Tensor> = lower.iter().copied().chain([&x]).collect();
        let mut df = grad(&f, &both);
        let df_dx = df.split_off(lower.len()).remove(0);

        let g = self.task.lower_loss(&self.model, &x, &y, &samples);
        let dg = Grad::of(&g).create_graph().wrt(&lower);
        let names: Vec<String> = self.task.lower_names.iter().map(|n| z_name(n)).collect();
        let old: Vec<Tensor> = names
            .iter()
            .map(|name| self.upper.value(name).detach())
            .collect();
        let curved = along(&dg, &old).retain_graph().wrt(&lower);
        let mut z = Vec::with_capacity(old.len());
        for ((old, curved), df) in old.iter().zip(curved).zip(df) {
            z.push(old - settings.system_lr * (curved - df));
        }
        for (name, z) in names.iter().zip(&z) {
            self.upper.assign(name, z);
        }

        let mixed = along(&dg, &z).wrt(&[&x]).remove(0);
        let h = df_dx - mixed;
        let b = settings.momentum;
        let m = b * self.upper.value(M).detach() + (1.0 - b) * h;
        let length = m.square().sum(&[]).sqrt();
        let direction = match settings.normalized {
            true => &m / (length + 1e-10),
            false => m.clone(),
        };
        let rate = settings.upper_lr * settings.schedule.factor(step, self.steps, 0);
        let next = x.detach() - rate * direction;
        self.upper.assign(M, &m);
        self.upper.assign(X, &next);
        f.item()
    }

    /// How well the weights tell clean samples from others, or where the decay has come to.
    fn report(&self) {
        let x = self.upper.value(X);
        match &self.task.problem {
            Problem::DataCleaning { changed, .. } if self.settings.weights == Weights::Learned => {
                if let Some(area) = problem::area_under_curve(&x.to_list(), changed) {
                    log::metric("clean-auc", area);
                }
            }
            Problem::DataCleaning { .. } => {}
            _ => log::metric("x", x.sum(&[]).item()),
        }
    }
}

/// The derivative of `<dg, direction>`, ready to be taken; the direction is a constant.
fn along<'a>(dg: &'a [Tensor], direction: &'a [Tensor]) -> Grad<'a> {
    let pairs = dg.iter().zip(direction);
    pairs.fold(Grad::default(), |sum, (dg, v)| sum.and(dg).cotangent(v))
}

fn z_name(lower: &str) -> String {
    format!("z-{lower}")
}

espalier_sdk::export!(trainer: BoRep);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_lies_in_its_own_range() {
        assert_eq!(Settings::defaults().momentum, 0.9);
    }
}
