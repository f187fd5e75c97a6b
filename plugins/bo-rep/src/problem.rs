//! The two levels: which losses, of which variables, on which samples.

use espalier_sdk::data;
use espalier_sdk::parameters::Kind;
use espalier_sdk::tensor::Dtype;
use espalier_sdk::{Error, Mode, Model, ParameterSet, RunInfo, Tensor, random};

use crate::{Settings, Weights, Which};

/// Curvature of the quadratic's lower level, and weight of x itself in its upper one.
const A: f64 = 2.0;
const C: f64 = 0.5;
/// First numbers of the keys: which labels are changed, and which samples are trusted.
const NOISE: u64 = 10;
const TRUSTED: u64 = 11;

/// What the losses are.
pub enum Problem {
    /// `g = mean w_i CE_i + decay |y|^2` with `w = sigmoid(x)` (or 1), `f` = mean CE of trusted samples.
    DataCleaning {
        /// Weights by x; else all 1.
        learned: bool,
        /// Times the squared norm of y.
        decay: f64,
        /// For each training sample: whether it is in the lower level, with another label than its own.
        changed: Vec<Option<bool>>,
    },
    /// `g = mean CE + e^x / 2 |y|^2`, `f` = mean CE of trusted samples.
    WeightDecay,
    /// `g = a y^2 / 2 - x y`, `f = (y - 1)^2 / 2 + c x^2 / 2`, with a = 2, c = 0.5: y* = x / a, minimum at x = 2 / 3.
    Quadratic,
    /// `g = (y - x)^2 / 2`, `f = cosh 2x + y^2 / 2`: the gradient has no Lipschitz constant. Minimum at 0.
    Cosh,
}

/// Some samples, with their places in the training split.
pub struct Samples {
    inputs: Tensor,
    targets: Tensor,
    index: Tensor,
}

impl Samples {
    /// How many.
    pub fn count(&self) -> u32 {
        self.index.size(0)
    }

    /// All of them, or `size` drawn with replacement.
    fn some(&self, size: u32, key: &[u64]) -> Samples {
        if size >= self.count() {
            return self.rows(None);
        }
        self.rows(Some(&random::below(key, &[size], self.count())))
    }

    fn rows(&self, rows: Option<&Tensor>) -> Samples {
        let of = |t: &Tensor| rows.map_or_else(|| t.clone(), |rows| t.take(rows, 0));
        Samples {
            inputs: of(&self.inputs),
            targets: of(&self.targets),
            index: of(&self.index),
        }
    }
}

/// A problem on the samples of this run.
pub struct Task {
    /// What the losses are.
    pub problem: Problem,
    /// Where y is: the run's model, or a number of this plugin's.
    pub lower_set: ParameterSet,
    /// Its parameters.
    pub lower_names: Vec<String>,
    training: Samples,
    trusted: Samples,
    /// Samples of the training split, also those that are not in the lower level.
    count: u32,
    batch: u32,
}

impl Task {
    /// Makes the problem that the options ask for, or says why the run has none.
    pub fn new(run: &RunInfo, settings: &Settings) -> Result<Task, Error> {
        let train = data::split("train")
            .filter(|split| split.classes > 0)
            .ok_or_else(|| {
                Error::incompatible(
                    "this trainer weighs samples of classes; the run's targets are none",
                )
            })?;
        let count = train.count as u32;
        let targets = data::field("train", "targets");
        let labels: Vec<u64> = targets
            .to_list()
            .iter()
            .map(|&label| label as u64)
            .collect();
        let given = noisy(
            &labels,
            u64::from(train.classes),
            settings.label_noise,
            &random::bits(&[NOISE], 2 * count),
        );

        // The places of the lower level, and the samples of the upper one with their own labels.
        let inputs = data::field("train", "inputs");
        let mut lower: Vec<u64> = (0..u64::from(count)).collect();
        let trusted = if data::split("validation").is_some() {
            let inputs = data::field("validation", "inputs");
            let index = Tensor::indices(0..u64::from(inputs.size(0)));
            Samples {
                targets: data::field("validation", "targets"),
                inputs,
                index,
            }
        } else {
            let trusted = ((f64::from(count) * settings.trusted).round() as u32).max(1);
            if trusted >= count {
                return Err(Error::incompatible(format!(
                    "the upper level needs samples of its own: the run has no split `validation`, and {count} training \
                     samples are too few to set some apart; set `validation` in [data]"
                )));
            }
            let order = random::permutation(&[TRUSTED], count).to_list();
            let mut set_apart: Vec<u64> = order[..trusted as usize]
                .iter()
                .map(|&place| place as u64)
                .collect();
            set_apart.sort_unstable();
            lower.retain(|place| set_apart.binary_search(place).is_err());
            let index = Tensor::indices(set_apart);
            Samples {
                inputs: inputs.take(&index, 0),
                targets: targets.take(&index, 0),
                index,
            }
        };
        let is_changed = |place: &u64| given[*place as usize] != labels[*place as usize];
        let mut changed = vec![None; count as usize];
        for place in &lower {
            changed[*place as usize] = Some(is_changed(place));
        }
        if settings.weights == Weights::Clean {
            lower.retain(|place| !is_changed(place));
        }
        if lower.is_empty() {
            return Err(Error::incompatible(
                "no training sample has kept its label; lower `label-noise`",
            ));
        }
        let index = Tensor::indices(lower);
        let whole = Samples {
            inputs: inputs.take(&index, 0),
            targets: Tensor::indices(given).take(&index, 0),
            index,
        };

        let problem = match settings.problem {
            Which::DataCleaning => Problem::DataCleaning {
                learned: settings.weights == Weights::Learned,
                decay: settings.decay,
                changed,
            },
            Which::WeightDecay => Problem::WeightDecay,
            Which::Quadratic => Problem::Quadratic,
            Which::Cosh => Problem::Cosh,
        };
        let scalar = matches!(problem, Problem::Quadratic | Problem::Cosh);
        let lower_set = match scalar {
            true => ParameterSet::own("lower"),
            false => ParameterSet::main(),
        };
        if scalar {
            let zero = Tensor::full(&[1], 0.0, Dtype::F64);
            lower_set.create("y", Kind::Weight, &zero, true);
        }
        let lower_names = lower_set.trainable();
        if lower_names.is_empty() {
            return Err(Error::incompatible("the model has no trainable parameters"));
        }
        Ok(Task {
            problem,
            lower_set,
            lower_names,
            training: whole,
            trusted,
            count,
            batch: run.batch_size,
        })
    }

    /// What x is at first. In f64: the length of a step is exact then, however many numbers it has.
    pub fn start(&self, value: f64) -> Tensor {
        let size = match self.problem {
            Problem::DataCleaning { .. } => self.count,
            _ => 1,
        };
        Tensor::full(&[size], value, Dtype::F64)
    }

    /// The lower variables, tracked.
    pub fn lower(&self) -> Vec<Tensor> {
        self.lower_set.values(&self.lower_names)
    }

    /// Training samples for one derivative.
    pub fn training(&self, key: [u64; 4]) -> Samples {
        self.training.some(self.batch, &key)
    }

    /// Trusted samples for one derivative.
    pub fn trusted(&self, key: [u64; 4]) -> Samples {
        self.trusted.some(self.batch, &key)
    }

    /// g: what the lower level minimises over y.
    pub fn lower_loss(&self, model: &Model, x: &Tensor, y: &[Tensor], samples: &Samples) -> Tensor {
        match &self.problem {
            Problem::DataCleaning { learned, decay, .. } => {
                let mut losses = losses(model, samples);
                if *learned {
                    let weights = x.take(&samples.index, 0).sigmoid();
                    losses = losses * weights.astype(Dtype::F32);
                }
                losses.mean(&[]) + *decay * squared(y)
            }
            Problem::WeightDecay => {
                let strength = x.exp().sum(&[]).astype(Dtype::F32) * 0.5;
                losses(model, samples).mean(&[]) + strength * squared(y)
            }
            Problem::Quadratic => (y[0].square() * (0.5 * A) - x * &y[0]).sum(&[]),
            Problem::Cosh => (&y[0] - x).square().sum(&[]) * 0.5,
        }
    }

    /// f: what the upper level minimises over x.
    pub fn upper_loss(&self, model: &Model, x: &Tensor, y: &[Tensor], samples: &Samples) -> Tensor {
        match self.problem {
            Problem::DataCleaning { .. } | Problem::WeightDecay => losses(model, samples).mean(&[]),
            Problem::Quadratic => ((&y[0] - 1.0).square() * 0.5 + x.square() * (0.5 * C)).sum(&[]),
            Problem::Cosh => {
                let cosh = ((x * 2.0).exp() + (x * -2.0).exp()) * 0.5;
                (cosh + y[0].square() * 0.5).sum(&[])
            }
        }
    }
}

/// Cross-entropy of each sample.
fn losses(model: &Model, samples: &Samples) -> Tensor {
    let fields = [("inputs".to_string(), samples.inputs.clone())];
    let logits = model.forward(&fields, Mode::Train);
    logits.cross_entropy(&samples.targets)
}

fn squared(y: &[Tensor]) -> Tensor {
    let first = y[0].square().sum(&[]);
    y[1..]
        .iter()
        .fold(first, |sum, t| sum + t.square().sum(&[]))
}

/// Labels of which a share is replaced by another class, each with the same chance; two words a label.
fn noisy(labels: &[u64], classes: u64, share: f64, words: &[u64]) -> Vec<u64> {
    let unit = |word: u64| (word >> 11) as f64 / (1u64 << 53) as f64;
    let mut noisy = Vec::with_capacity(labels.len());
    for (&label, words) in labels.iter().zip(words.chunks_exact(2)) {
        let others = classes.saturating_sub(1);
        let changed = unit(words[0]) < share && others > 0;
        let by = 1 + (unit(words[1]) * others as f64) as u64;
        noisy.push(if changed {
            (label + by) % classes
        } else {
            label
        });
    }
    noisy
}

/// Chance that a sample with its own label has a larger x than one with a changed label, ties counted half; none
/// where there are not both. `changed` is none for samples that are in neither.
pub fn area_under_curve(x: &[f64], changed: &[Option<bool>]) -> Option<f64> {
    let mut ranked: Vec<(f64, bool)> = x
        .iter()
        .zip(changed)
        .filter_map(|(&x, changed)| Some((x, (*changed)?)))
        .collect();
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
    let bad = ranked.iter().filter(|(_, changed)| *changed).count() as f64;
    let good = ranked.len() as f64 - bad;
    if bad == 0.0 || good == 0.0 {
        return None;
    }
    let (mut below, mut wins) = (0.0, 0.0);
    for equal in ranked.chunk_by(|a, b| a.0 == b.0) {
        let bad_here = equal.iter().filter(|(_, changed)| *changed).count() as f64;
        wins += (equal.len() as f64 - bad_here) * (below + 0.5 * bad_here);
        below += bad_here;
    }
    Some(wins / (good * bad))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changed_labels_are_others_and_as_many_as_asked() {
        let labels: Vec<u64> = (0..1000).map(|i| i % 10).collect();
        // A Weyl sequence is as even as words can be.
        let words: Vec<u64> = (0..2000u64)
            .map(|i| i.wrapping_mul(0x9e37_79b9_7f4a_7c15))
            .collect();
        let given = noisy(&labels, 10, 0.4, &words);
        let changed = labels.iter().zip(&given).filter(|(a, b)| a != b).count();
        assert!((380..=420).contains(&changed), "{changed}");
        assert!(given.iter().all(|&label| label < 10));
        assert_eq!(noisy(&labels, 10, 0.0, &words), labels);
        let all = noisy(&labels, 10, 1.0, &words);
        assert!(labels.iter().zip(&all).all(|(a, b)| a != b));
        assert_eq!(noisy(&[0, 0], 1, 1.0, &words), [0, 0]);
    }

    #[test]
    fn the_area_counts_pairs_in_order_and_ties_half() {
        let (good, bad) = (Some(false), Some(true));
        let area = |x: &[f64], c: &[Option<bool>]| area_under_curve(x, c).unwrap_or(f64::NAN);
        assert_eq!(area(&[2.0, 1.0, 3.0, 0.0], &[good, bad, good, bad]), 1.0);
        assert_eq!(area(&[0.0, 1.0], &[good, bad]), 0.0);
        assert_eq!(area(&[1.0, 1.0, 9.0], &[good, bad, None]), 0.5);
        // Of the pairs (3,1), (3,2), (2,1), (2,2) three and a half are right.
        assert_eq!(area(&[3.0, 2.0, 1.0, 2.0], &[good, good, bad, bad]), 0.875);
        assert_eq!(area_under_curve(&[1.0, 2.0], &[good, good]), None);
    }
}
