//! Trainer: networks with a certificate against small changes of their input, after a short warm-up.
//!
//! Shi, Wang, Zhang, Yi and Hsieh 2021 (NeurIPS, arXiv 2103.17268). Interval bounds ([`bounds`]) of every layer for all
//! inputs within eps of a sample give a lower bound `m_j` of the margin to each other class; the loss is
//! `log(1 + sum_j exp(-m_j))`. What makes a short warm-up of eps enough:
//!
//! 1. weights begin as `N(0, 2 pi / n^2)`, n the fan-in, so that bounds are as wide in every layer; half of that behind a
//!    sum of two branches;
//! 2. batch normalisation, if the run file's model has it, uses the statistics of the clean samples for the bounds too;
//! 3. during the warm-up two regularisers keep bounds narrow and ReLUs balanced, with the weight
//!    `regularizer (1 - eps / eps_max)`.
//!
//! Differences: the warm-up and the milestones are shares of a round, not epochs.

mod bounds;

use std::f64::consts::PI;

use espalier_sdk::data::{self, Batch, Stream};
use espalier_sdk::options::Value;
use espalier_sdk::parameters::{AdamOptions, Kind, clip_grad_norm};
use espalier_sdk::{
    Choice, Error, Mode, Model, Options, Prediction, RunInfo, StepInfo, StepReport, Tensor,
    Trainer, log, random,
};

use bounds::{Arithmetic, Bounds, Network, Statistics};

/// How weights begin.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Init {
    Ibp,
    Kaiming,
    Model,
}

/// Options under `[trainer.with]`.
#[derive(Options)]
struct Settings {
    /// How far each input may be moved, in its own units; what is trained for after the warm-up.
    #[option(default = 0.1, min = 0, live)]
    eps: f64,
    /// Least value that an input can have; boxes end there.
    #[option(default = 0)]
    low: f64,
    /// Largest value that an input can have.
    #[option(default = 1)]
    high: f64,
    /// ibp: the paper's, for constant width; kaiming: normal, 2 over the fan-in; model: as the host has it.
    #[option(default = Init::Ibp)]
    init: Init,
    /// Weight of the two warm-up regularisers at the start; 0 for none.
    #[option(default = 0.5, min = 0, live)]
    regularizer: f64,
    /// What the regularisers tolerate: bounds 1 / tolerance as wide as the input's, ratios of that much.
    #[option(default = 0.5, min = 0.01, max = 1)]
    tolerance: f64,
    /// Share of the round with eps = 0, before the warm-up.
    #[option(default = 0.025, min = 0, max = 1, live)]
    warmup_begin: f64,
    /// Share of the round after which eps is whole.
    #[option(default = 0.375, min = 0, max = 1, live)]
    warmup_end: f64,
    /// Learning rate of Adam.
    #[option(default = 2e-3, min = 0, live)]
    lr: f64,
    /// Shares of the round at which the learning rate falls.
    #[option(default = [0.7, 0.85], min = 0, max = 1)]
    milestones: Vec<f64>,
    /// What it is multiplied with there.
    #[option(default = 0.2, min = 0, max = 1)]
    lr_decay: f64,
    /// Largest norm of all gradients together.
    #[option(default = 10, min = 0)]
    clip_grad_norm: f64,
    /// Whether to log how wide the bounds are in each layer at the first step, and what is certified after the last.
    #[option(default = true)]
    report: bool,
}

/// First number of the keys of initial weights.
const WEIGHTS: u64 = 1;
/// Bounds of the regularisers before the warm-up.
const LEAST: f64 = 1e-6;

struct IbpFast {
    settings: Settings,
    steps: u64,
    network: Network,
    stream: Stream,
}

impl Trainer for IbpFast {
    type Options = Settings;

    fn new(run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let classes = data::split("train").map_or(0, |split| split.classes);
        if classes == 0 {
            return Err(Error::incompatible(
                "this trainer certifies classes; the run's targets are none",
            ));
        }
        if settings.low >= settings.high {
            return Err(Error::invalid_option(format!(
                "`low` must be below `high`; they are {} and {}",
                settings.low, settings.high
            )));
        }
        let network = Network::of(Model::main(), classes)?;
        if network.trainable.is_empty() {
            return Err(Error::incompatible("the model has no trainable parameters"));
        }
        let trainer = IbpFast {
            settings,
            steps: run.steps,
            network,
            stream: Stream::train(run.batch_size, &[0]),
        };
        trainer.initialise();
        Ok(trainer)
    }

    fn step(&mut self, at: &StepInfo) -> StepReport {
        let settings = &self.settings;
        let batch = self.stream.next_endless();
        let done = at.step as f64 / self.steps.max(1) as f64;
        let eps = settings.eps * warmup(done, settings.warmup_begin, settings.warmup_end);
        let (logits, statistics) = self.network.forward(batch.inputs(), Mode::Train);
        let (x, all) = self.bounds(&batch, eps.max(LEAST), &statistics);
        let mut loss = match eps > 0.0 {
            true => self.robust(&x, &all, batch.targets()).mean(&[]),
            false => logits.cross_entropy(batch.targets()).mean(&[]),
        };
        let warming = match settings.eps > 0.0 {
            true => settings.regularizer * (1.0 - eps / settings.eps),
            false => 0.0,
        };
        if warming > 0.0
            && done < settings.warmup_end
            && let Some(regularizer) = self.regularizer(&x, &all)
        {
            loss = loss + warming * regularizer;
        }
        if at.step == 0 && settings.report {
            self.report_widths(&batch, &statistics);
        }
        // While a graph holds a parameter's value, the optimiser has to copy it.
        drop((x, all, logits, statistics));
        let (set, names) = (self.network.set(), &self.network.trainable);
        let mut grads = set.grad(&loss, names);
        if settings.clip_grad_norm > 0.0 {
            grads = clip_grad_norm(&grads, settings.clip_grad_norm).0;
        }
        let options = AdamOptions {
            lr: settings.lr * fallen(done, &settings.milestones, settings.lr_decay),
            ..AdamOptions::default()
        };
        set.adam(names, &grads, options);
        if at.step + 1 == self.steps && settings.report {
            self.report_certified();
        }
        StepReport::new(loss.item(), batch.count())
    }

    /// The robust loss at the whole eps.
    fn objective(&self, batch: &Batch) -> Tensor {
        let (_, statistics) = self.network.forward(batch.inputs(), Mode::TrainFrozenStats);
        let (x, all) = self.bounds(batch, self.settings.eps, &statistics);
        self.robust(&x, &all, batch.targets())
    }

    fn predict(&self, batch: &Batch) -> Prediction {
        Prediction::logits(self.network.forward(batch.inputs(), Mode::Eval).0)
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

impl IbpFast {
    fn range(&self) -> [f64; 2] {
        [self.settings.low, self.settings.high]
    }

    /// Bounds of the inputs and of every layer but the last.
    fn bounds(&self, batch: &Batch, eps: f64, statistics: &Statistics) -> (Bounds, Vec<Bounds>) {
        let how = Arithmetic::Plain;
        let x = Bounds::around(batch.inputs(), &Tensor::scalar(eps), self.range(), how);
        let all = self.network.propagate(&x, statistics, how);
        (x, all)
    }

    /// `log(1 + sum_j exp(-m_j))` for each sample: the cross-entropy of the worst scores, that of the class being 0.
    fn robust(&self, x: &Bounds, all: &[Bounds], targets: &Tensor) -> Tensor {
        let last = self.network.before_last(x, all);
        let margins = self.network.margins(last, targets, Arithmetic::Plain);
        (-margins).cross_entropy(targets)
    }

    /// Bounds of what each ReLU reads, with its name.
    fn before_relus<'a>(&self, x: &'a Bounds, all: &'a [Bounds]) -> Vec<(String, &'a Bounds)> {
        use espalier_sdk::model::LayerInput;
        let relus = self
            .network
            .layers()
            .iter()
            .filter(|layer| layer.kind == "relu");
        relus
            .map(|layer| match layer.inputs.first() {
                Some(LayerInput::Layer(from)) => (layer.name.clone(), &all[*from as usize]),
                _ => (layer.name.clone(), x),
            })
            .collect()
    }

    /// Both regularisers; none without a ReLU.
    fn regularizer(&self, x: &Bounds, all: &[Bounds]) -> Option<Tensor> {
        let relus = self.before_relus(x, all);
        let tolerance = self.settings.tolerance;
        let first = x.radius().mean(&[]).detach();
        let excess = |ratio: &Tensor| (tolerance - ratio).relu() / tolerance;
        let mut sum: Option<Tensor> = None;
        for (_, bounds) in &relus {
            let tight = excess(&(&first / bounds.radius().mean(&[]).maximum(1e-12)));
            let c = bounds.centre();
            let active = bounds.lower.greater(0.0);
            let inactive = bounds.upper.less(0.0);
            // Means over all elements, those of the other kind counted as 0.
            let of = |mask: &Tensor, values: &Tensor| mask.where_(values, 0.0).mean(&[]);
            let spread = (&c - c.mean(&[])).square();
            let means = balance(&of(&active, &c), &-of(&inactive, &c), tolerance);
            let variances = balance(&of(&active, &spread), &of(&inactive, &spread), tolerance);
            let both = tight + means + variances;
            sum = Some(sum.map_or(both.clone(), |sum| sum + both));
        }
        sum.map(|sum| sum / relus.len() as f64)
    }

    /// Draws the weights of every layer but the last.
    fn initialise(&self) {
        let set = self.network.set();
        let layers = self.network.layers();
        for layer in &layers[..layers.len() - 1] {
            let name = format!("{}.weight", layer.name);
            let Some(info) = set
                .list()
                .into_iter()
                .find(|p| p.name == name && p.kind == Kind::Weight && p.trainable)
            else {
                continue;
            };
            let n: u32 = info.shape[1..].iter().product();
            let deviation = match self.settings.init {
                Init::Model => continue,
                Init::Kaiming => (2.0 / f64::from(n)).sqrt(),
                Init::Ibp if after_sum(layers, layer.index) => constant_width(n) / 2.0,
                Init::Ibp => constant_width(n),
            };
            let key = [WEIGHTS, u64::from(layer.index)];
            set.assign(&name, &(random::normal(&key, &info.shape) * deviation));
        }
    }

    /// How wide the bounds before each ReLU are at the whole eps, beside the input's, and how many units have one sign.
    fn report_widths(&self, batch: &Batch, statistics: &Statistics) {
        espalier_sdk::no_grad(|| {
            let (x, all) = self.bounds(batch, self.settings.eps, statistics);
            let first = x.radius().mean(&[]);
            for (name, bounds) in self.before_relus(&x, &all) {
                let width = bounds.radius().mean(&[]) / &first;
                log::metric(&format!("width-{name}"), width.item());
                let share = |mask: Tensor| {
                    mask.astype(espalier_sdk::tensor::Dtype::F32)
                        .mean(&[])
                        .item()
                };
                log::metric(&format!("active-{name}"), share(bounds.lower.greater(0.0)));
                log::metric(&format!("inactive-{name}"), share(bounds.upper.less(0.0)));
            }
        });
    }

    /// The share of samples of each split measured that is not certified at the whole eps.
    fn report_certified(&self) {
        for split in ["validation", "test"] {
            let Some(info) = data::split(split) else {
                continue;
            };
            let fields = ["inputs", "targets"];
            let order = data::Sampling::Sequential;
            let stream = Stream::open(split, &fields, 256, order, &[0]);
            let mut certified = 0;
            espalier_sdk::no_grad(|| {
                while let Some(batch) = stream.next_in_epoch() {
                    certified += self
                        .network
                        .certified(&batch, self.settings.eps, self.range());
                }
            });
            let error = 1.0 - certified as f64 / info.count.max(1) as f64;
            log::metric(&format!("verified-error-{split}"), error);
        }
    }
}

/// What is missing for the ratio of two numbers to be from `tolerance` to its inverse, as a share of the tolerance; 0
/// where one of them is 0.
fn balance(a: &Tensor, b: &Tensor, tolerance: f64) -> Tensor {
    let there = a.greater(0.0).logical_and(&b.greater(0.0));
    let ratio = there.where_(a, 1.0) / there.where_(b, 1.0);
    let missing = (tolerance - ratio.minimum(&ratio.reciprocal())).relu() / tolerance;
    there.where_(&missing, 0.0)
}

/// Whether a layer reads a sum, with nothing but activations and normalisations between.
fn after_sum(layers: &[espalier_sdk::model::LayerInfo], index: u32) -> bool {
    use espalier_sdk::model::LayerInput;
    match layers[index as usize].inputs.first() {
        Some(LayerInput::Layer(from)) => match &layers[*from as usize].kind[..] {
            "add" => true,
            "relu" | "batch-norm" | "flatten" | "identity" => after_sum(layers, *from),
            _ => false,
        },
        _ => false,
    }
}

/// Deviation of normal weights with which bounds are as wide behind a layer of `n` inputs and a ReLU as before: with
/// `E|w| = s sqrt(2 / pi)` and half of the width lost in the ReLU, `n s sqrt(2 / pi) / 2 = 1`.
fn constant_width(n: u32) -> f64 {
    (2.0 * PI).sqrt() / f64::from(n)
}

/// The share of eps when a share `done` of the round is done: 0 before the warm-up, then `a s^4` up to a quarter of it and
/// a straight line from there, with one value and slope where they meet.
fn warmup(done: f64, begin: f64, end: f64) -> f64 {
    const MIDDLE: f64 = 0.25;
    let s = match end > begin {
        true => (done - begin) / (end - begin),
        false => f64::from(u8::from(done >= end)),
    };
    if s <= 0.0 {
        return 0.0;
    }
    let a = 1.0 / (MIDDLE.powi(3) * (4.0 * (1.0 - MIDDLE) + MIDDLE));
    match s {
        s if s <= MIDDLE => a * s.powi(4),
        s if s < 1.0 => {
            let at_middle = a * MIDDLE.powi(4);
            at_middle + (1.0 - at_middle) * (s - MIDDLE) / (1.0 - MIDDLE)
        }
        _ => 1.0,
    }
}

/// The factor of the learning rate after the milestones passed.
fn fallen(done: f64, milestones: &[f64], decay: f64) -> f64 {
    let passed = milestones.iter().filter(|share| done >= **share).count();
    decay.powi(passed as i32)
}

espalier_sdk::export!(trainer: IbpFast);

#[cfg(test)]
mod tests {
    use super::*;

    fn near(found: f64, expected: f64, tolerance: f64) {
        assert!(
            (found - expected).abs() < tolerance,
            "{found}, expected {expected}"
        );
    }

    #[test]
    fn the_initial_deviation_keeps_the_width_and_kaimings_does_not() {
        near(constant_width(784), 0.003_197_23, 1e-8);
        // Width behind a layer and its ReLU over the width before.
        let gain = |deviation: f64, n: f64| n * deviation * (2.0 / PI).sqrt() / 2.0;
        for (n, kaiming) in [(64u32, 4.5135), (256, 9.0270), (784, 15.797)] {
            let wide = f64::from(n);
            near(gain(constant_width(n), wide), 1.0, 1e-12);
            near(gain((2.0 / wide).sqrt(), wide), kaiming, 1e-3);
        }
    }

    #[test]
    fn eps_rises_smoothly_from_nothing_to_the_whole() {
        assert_eq!(warmup(0.1, 0.1, 0.5), 0.0);
        assert_eq!(warmup(0.5, 0.1, 0.5), 1.0);
        assert_eq!(warmup(0.9, 0.1, 0.5), 1.0);
        near(warmup(0.25, 0.0, 1.0), 1.0 / 13.0, 1e-12);
        let slope = |s: f64, h: f64| (warmup(s + h, 0.0, 1.0) - warmup(s, 0.0, 1.0)) / h;
        near(slope(0.25, -1e-6), 16.0 / 13.0, 1e-4);
        near(slope(0.25, 1e-6), 16.0 / 13.0, 1e-4);
        // No warm-up at all.
        assert_eq!((warmup(0.0, 0.0, 0.0), warmup(0.1, 0.2, 0.2)), (1.0, 0.0));
    }

    #[test]
    fn the_learning_rate_falls_at_each_milestone() {
        let at = |done| fallen(done, &[0.7, 0.85], 0.2);
        near(at(0.69), 1.0, 1e-12);
        near(at(0.7), 0.2, 1e-12);
        near(at(0.9), 0.04, 1e-12);
    }

    #[test]
    fn every_default_lies_in_its_own_range() {
        assert_eq!(Settings::defaults().regularizer, 0.5);
    }
}
