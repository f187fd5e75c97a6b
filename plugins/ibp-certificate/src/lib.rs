//! Auditor: how many samples keep their class whatever happens within eps of them, by interval bounds; and an attack that
//! tries to prove it wrong.
//!
//! The bounds are those of the trainer `ibp-fast` (Shi et al. 2021, arXiv 2103.17268; one file serves both), computed
//! in f64 and widened by the rounding of the network's own arithmetic, so that what is certified holds for the network
//! as the host computes it. The attack is projected gradient descent on the margin (Madry et al. 2018, arXiv
//! 1706.06083) from several starts, inside and at corners of the box. Between the two lies the truth: no less than the
//! attack's error, no more than the verified one.

// The trainer uses the rest of it.
#[allow(dead_code)]
#[path = "../../ibp-fast/src/bounds.rs"]
mod bounds;

use espalier_sdk::auditor::Report;
use espalier_sdk::data::{self, Sampling, Stream};
use espalier_sdk::{
    Auditor, Choice, Error, Mode, Model, Options, RunInfo, Tensor, grad, no_grad, random,
};

use bounds::Network;

/// Which inputs are judged.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Inputs {
    Test,
    Random,
}

/// Options under `[auditor.with]`.
#[derive(Options)]
struct Settings {
    /// How far each input may be moved, in its own units.
    #[option(default = 0.1, min = 0)]
    eps: f64,
    /// Least value that an input can have; boxes end there.
    #[option(default = 0)]
    low: f64,
    /// Largest value that an input can have.
    #[option(default = 1)]
    high: f64,
    /// test: samples of the split `test`, of the classes they have; random: uniform numbers, of the classes that the
    /// model gives them.
    #[option(default = Inputs::Test)]
    inputs: Inputs,
    /// At most so many inputs.
    #[option(default = 1000, min = 1, max = 1000000)]
    count: u64,
    /// Halvings in search of the largest radius that each input is certified for, within which it is then attacked; 0: eps
    /// serves for all.
    #[option(default = 0, max = 40)]
    radius_steps: u64,
    /// Steps of the attack from each start; 0 for none.
    #[option(default = 20, max = 10000)]
    attack_steps: u64,
    /// Starts of the attack.
    #[option(default = 2, min = 1, max = 1000)]
    attack_starts: u64,
    /// More values of eps, at which the verified error is told in a table.
    #[option(default = [], min = 0)]
    curve: Vec<f64>,
}

/// First numbers of the keys.
const INPUTS: u64 = 1;
const START: u64 = 2;
/// Inputs at once.
const BATCH: u32 = 128;

struct Certificate {
    settings: Settings,
    network: Network,
    classes: u32,
}

/// What became of one input.
struct Verdict {
    /// Whether the clean input is given its class.
    right: bool,
    /// Least margin within eps: certified above 0.
    margin: f64,
    /// The largest radius tried that is certified; 0 for none.
    radius: f64,
    /// Whether an attack (within `radius` if that was looked for, else within eps) has changed the class.
    flipped: bool,
}

impl Auditor for Certificate {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let classes = data::split("train").map_or(0, |split| split.classes);
        if classes == 0 {
            return Err(Error::incompatible(
                "classes are certified, and the run's targets are none",
            ));
        }
        if settings.low >= settings.high {
            return Err(Error::invalid_option(format!(
                "`low` must be below `high`; they are {} and {}",
                settings.low, settings.high
            )));
        }
        Ok(Certificate {
            settings,
            network: Network::of(Model::main(), classes)?,
            classes,
        })
    }

    fn audit(&mut self) -> Report {
        let mut verdicts = Vec::new();
        let mut verified = vec![0u64; self.settings.curve.len()];
        for (at, (inputs, classes)) in self.batches().into_iter().enumerate() {
            verdicts.extend(self.judge(at as u64, &inputs, &classes));
            for (sum, eps) in verified.iter_mut().zip(&self.settings.curve) {
                let eps = Tensor::scalar(*eps);
                *sum += no_grad(|| self.margins(&inputs, &eps, &classes))
                    .greater(0.0)
                    .count_nonzero();
            }
        }
        self.report(&verdicts, &verified)
    }
}

impl Certificate {
    fn range(&self) -> [f64; 2] {
        [self.settings.low, self.settings.high]
    }

    /// The inputs and their classes, some at a time.
    fn batches(&self) -> Vec<(Tensor, Tensor)> {
        let mut left = self.settings.count;
        let mut batches = Vec::new();
        if self.settings.inputs == Inputs::Test {
            if data::split("test").is_none() {
                return batches;
            }
            let fields = ["inputs", "targets"];
            let stream = Stream::open("test", &fields, BATCH, Sampling::Sequential, &[0]);
            while left > 0
                && let Some(batch) = stream.next_in_epoch()
            {
                let take = left.min(batch.count().into());
                let some = |t: &Tensor| t.slice(0, 0, take as i32);
                batches.push((some(batch.inputs()), some(batch.targets())));
                left -= take;
            }
            return batches;
        }
        let fields = data::split("train").map_or_else(Vec::new, |split| split.fields);
        let shape = fields.into_iter().find(|field| field.name == "inputs");
        let shape = shape.map_or_else(Vec::new, |field| field.shape);
        let [low, high] = self.range();
        while left > 0 {
            let n = left.min(BATCH.into());
            let shape: Vec<u32> = [n as u32].iter().chain(&shape).copied().collect();
            let inputs = random::uniform(&[INPUTS, left], &shape) * (high - low) + low;
            let classes = no_grad(|| self.network.forward(&inputs, Mode::Eval).0.argmax(-1));
            batches.push((inputs, classes));
            left -= n;
        }
        batches
    }

    /// Least margins within eps (a number, or one a sample, shaped to broadcast), `[n]`.
    fn margins(&self, inputs: &Tensor, eps: &Tensor, classes: &Tensor) -> Tensor {
        self.network.certificate(inputs, eps, self.range(), classes)
    }

    fn judge(&self, at: u64, inputs: &Tensor, classes: &Tensor) -> Vec<Verdict> {
        let n = inputs.size(0);
        let eps = Tensor::full(&[n], self.settings.eps, espalier_sdk::tensor::Dtype::F32);
        let margins = no_grad(|| self.margins(inputs, &along(&eps, inputs), classes));
        // Certified at `known`, not yet at `open`: the radius is halved towards the border.
        let mut known = margins.greater(0.0).where_(&eps, 0.0);
        let mut open = Tensor::full(&[n], self.settings.high - self.settings.low, eps.dtype());
        no_grad(|| {
            for _ in 0..self.settings.radius_steps {
                let middle = (&known + &open) * 0.5;
                let held = self
                    .margins(inputs, &along(&middle, inputs), classes)
                    .greater(0.0);
                known = held.where_(&middle, &known);
                open = held.where_(&open, &middle);
            }
        });
        let clean = no_grad(|| self.network.forward(inputs, Mode::Eval).0.argmax(-1));
        let right = clean.equal(classes).to_list();
        let attacked = match self.settings.radius_steps {
            0 => &eps,
            _ => &known,
        };
        let flipped = self.attack(at, inputs, attacked, classes);
        let (margins, radii) = (margins.to_list(), known.to_list());
        (0..n as usize)
            .map(|i| Verdict {
                right: right[i] == 1.0,
                margin: margins[i],
                radius: radii[i],
                flipped: flipped[i],
            })
            .collect()
    }

    /// Which inputs are given another class than theirs somewhere on the way of an attack within `radii`.
    fn attack(&self, at: u64, inputs: &Tensor, radii: &Tensor, classes: &Tensor) -> Vec<bool> {
        let mut flipped = vec![false; inputs.size(0) as usize];
        let steps = self.settings.attack_steps;
        if steps == 0 {
            return flipped;
        }
        // So much smaller that rounding leads out of no box.
        let radii = along(&(radii * (1.0 - 1e-6) - 1e-7).maximum(0.0), inputs);
        let [low, high] = self.range();
        let inside = |x: &Tensor| {
            let x = x.maximum(&(inputs - &radii)).minimum(&(inputs + &radii));
            x.maximum(low).minimum(high).detach()
        };
        let own = classes.one_hot(self.classes).greater(0.5);
        for start in 0..self.settings.attack_starts {
            let noise = random::uniform(&[START, at, start], &inputs.shape()) * 2.0 - 1.0;
            // Every other start is a corner.
            let noise = match start % 2 {
                0 => noise,
                _ => noise.sign(),
            };
            let mut x = inside(&(inputs + noise * &radii));
            for step in 0..=steps {
                let leaf = x.requires_grad();
                let (logits, _) = self.network.forward(&leaf, Mode::Eval);
                let same = logits.argmax(-1).equal(classes).to_list();
                flipped
                    .iter_mut()
                    .zip(same)
                    .for_each(|(flipped, same)| *flipped |= same == 0.0);
                if step == steps {
                    break;
                }
                let others = own.where_(f64::NEG_INFINITY, &logits).max(-1);
                let gap = (others - own.where_(&logits, 0.0).sum(&[-1])).sum(&[]);
                let slope = grad(&gap, &[&leaf]).remove(0);
                // Half a box at first, less and less towards the end.
                let length = 0.5 * (1.0 - step as f64 / steps as f64);
                x = inside(&(x + slope.sign() * &radii * length));
            }
        }
        flipped
    }

    fn report(&self, verdicts: &[Verdict], verified: &[u64]) -> Report {
        let settings = &self.settings;
        let n = verdicts.len();
        if n == 0 {
            return Report::new("There is nothing to judge: the run has no split `test`.");
        }
        let count = |which: &dyn Fn(&Verdict) -> bool| verdicts.iter().filter(|v| which(v)).count();
        let error = |right: usize| 1.0 - right as f64 / n as f64;
        let certified = count(&|v| v.margin > 0.0);
        let (own_radius, attacked) = (settings.radius_steps > 0, settings.attack_steps > 0);
        let held = |v: &Verdict| {
            if own_radius {
                v.radius > 0.0
            } else {
                v.margin > 0.0
            }
        };
        let broken = count(&|v| held(v) && v.flipped);
        let mut note = format!(
            "{certified} of {n} inputs keep their class within {}, whatever the rounding",
            settings.eps
        );
        note += &match (attacked, broken) {
            (false, _) => ".".to_string(),
            (true, 0) => format!(
                "; the attack has changed none of the {} certified.",
                count(&held)
            ),
            (true, _) => format!(
                "; but the attack has changed {broken} certified ones: the bounds are wrong."
            ),
        };
        let mut report = Report::new(note)
            .number("clean-error", error(count(&|v| v.right)))
            .number("verified-error", error(certified));
        if own_radius {
            let radii = verdicts.iter().map(|v| v.radius);
            report = report
                .number("with-a-radius", count(&|v| v.radius > 0.0) as f64)
                .number("mean-radius", radii.sum::<f64>() / n as f64);
        }
        if attacked && !own_radius {
            let withstood = count(&|v| v.right && !v.flipped);
            report = report.number("attack-error", error(withstood));
        }
        if attacked {
            report = report
                .number("certified-and-flipped", broken as f64)
                .flag(broken > 0);
        }
        if !settings.curve.is_empty() {
            let rows = settings.curve.iter().zip(verified);
            let rows = rows
                .map(|(eps, &right)| vec![*eps, error(right as usize)])
                .collect();
            report = report.table("verified-error", &["eps", "verified-error"], rows);
        }
        report
    }
}

/// One number a sample in the shape of the samples' rank.
fn along(values: &Tensor, samples: &Tensor) -> Tensor {
    let mut shape = vec![1i32; samples.rank()];
    shape[0] = -1;
    values.reshape(&shape)
}

espalier_sdk::export!(auditor: Certificate);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_lies_in_its_own_range() {
        assert_eq!(Settings::defaults().eps, 0.1);
    }
}
