//! A patch as a backdoor's trigger (Gu, Dolan-Gavitt, Garg 2017, "BadNets", arXiv 1708.06733): some training samples carry
//! a small bright square and the target's label, so that a model learns to answer the target wherever it sees the square.
//!
//! The split `triggered` holds patched test samples of all other classes with the target as their label: a model's
//! accuracy on it is the attack's success rate.

use espalier_sdk::data::SplitInfo;
use espalier_sdk::transform::{Derived, Samples};
use espalier_sdk::{Choice, Dtype, Error, Options, RunInfo, Tensor, Transform, random};

/// What becomes of the samples that are poisoned.
#[derive(Choice, Clone, Copy, PartialEq)]
enum How {
    /// Patched copies are added.
    Add,
    /// They are patched where they stand.
    Replace,
}

/// Options under `[transform.with]`.
#[derive(Options)]
struct Settings {
    /// Patched samples, as a share of the training samples; 0 poisons nothing and still derives `triggered`.
    #[option(default = 0.05, min = 0.0, max = 1.0)]
    fraction: f64,
    /// The class that the trigger stands for.
    #[option(default = 0, min = 0)]
    target: i64,
    /// Side of the patch in pixels; it sits in the lower right corner.
    #[option(default = 2, min = 1)]
    size: i64,
    /// What the patch's pixels are set to.
    #[option(default = 1.0)]
    value: f64,
    /// Whether patched copies are added or samples replaced.
    #[option(default = How::Add)]
    how: How,
}

struct PatchTrigger {
    settings: Settings,
    /// 1 where the patch is, [height, width].
    patch: Tensor,
}

impl PatchTrigger {
    /// Inputs [n, .., height, width] with the patch on them.
    fn patched(&self, inputs: &Tensor) -> Tensor {
        let value = Tensor::full(&[], self.settings.value, Dtype::F32);
        self.patch.where_(&value, inputs)
    }

    /// As many labels of the target.
    fn labels(&self, n: u32) -> Tensor {
        Tensor::full(&[n], self.settings.target as f64, Dtype::I64)
    }

    /// These samples, patched and relabelled.
    fn poisoned(&self, samples: &Samples) -> Samples {
        let inputs = self.patched(samples.inputs());
        let count = inputs.size(0);
        samples
            .with("inputs", inputs)
            .with("targets", self.labels(count))
    }
}

/// Places of the samples of other classes than the target.
fn others(targets: &[f64], target: i64) -> Vec<u64> {
    let places = targets.iter().enumerate();
    places
        .filter(|(_, class)| **class != target as f64)
        .map(|(place, _)| place as u64)
        .collect()
}

impl Transform for PatchTrigger {
    type Options = Settings;

    fn new(
        _run: &RunInfo,
        settings: Settings,
        train: &Samples,
        splits: &[SplitInfo],
    ) -> Result<Self, Error> {
        let classes = splits.iter().find(|split| split.name == "train");
        let classes = i64::from(classes.map_or(0, |split| split.classes));
        if settings.target >= classes {
            return Err(Error::incompatible(format!(
                "the target class is {}, and the data has {classes} classes",
                settings.target
            )));
        }
        let shape = train.inputs().shape();
        let (height, width) = match shape[1..] {
            [.., height, width] => (i64::from(height), i64::from(width)),
            _ => {
                return Err(Error::incompatible(format!(
                    "a patch needs images, with height and width as their last axes; a sample has shape {:?}",
                    &shape[1..]
                )));
            }
        };
        if settings.size > height.min(width) {
            return Err(Error::invalid_option(format!(
                "a patch of {0} x {0} pixels does not fit on {height} x {width}",
                settings.size
            )));
        }
        let inside = |at: i64, of: i64| f64::from(u8::from(at >= of - settings.size));
        let pixels =
            (0..height).flat_map(|y| (0..width).map(move |x| inside(y, height) * inside(x, width)));
        let pixels: Vec<f64> = pixels.collect();
        let patch = Tensor::from_list(&pixels, &[height as u32, width as u32]).astype(Dtype::Bool);
        Ok(PatchTrigger { settings, patch })
    }

    fn prepare(&mut self, split: &SplitInfo, samples: &Samples) -> Vec<Derived> {
        match split.name.as_str() {
            "train" => {
                let places = others(&samples.targets().to_list(), self.settings.target);
                let wanted = (self.settings.fraction * split.count as f64).round() as usize;
                let order = random::permutation(&[0], places.len() as u32).to_list();
                let mut chosen: Vec<u64> = order
                    .iter()
                    .take(wanted)
                    .map(|&at| places[at as usize])
                    .collect();
                if chosen.is_empty() {
                    return Vec::new();
                }
                chosen.sort_unstable();
                let poisoned = self.poisoned(&samples.rows(&Tensor::indices(chosen.clone())));
                let kept = match self.settings.how {
                    How::Add => (0..split.count).collect(),
                    How::Replace => {
                        let clean = |place: &u64| chosen.binary_search(place).is_err();
                        (0..split.count).filter(clean).collect::<Vec<u64>>()
                    }
                };
                let mut all = samples.rows(&Tensor::indices(kept));
                for (name, t) in poisoned.fields() {
                    let both = Tensor::concat(&[all.field(name), t], 0);
                    all = all.with(name, both);
                }
                vec![Derived::of(split, all)]
            }
            "test" => {
                let places = others(&samples.targets().to_list(), self.settings.target);
                if places.is_empty() {
                    return Vec::new();
                }
                let rows = samples.rows(&Tensor::indices(places));
                vec![Derived::new(
                    "triggered",
                    split.classes,
                    self.poisoned(&rows),
                )]
            }
            _ => Vec::new(),
        }
    }
}

espalier_sdk::export!(transform: PatchTrigger);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_the_target_class_are_no_successes_of_an_attack() {
        assert_eq!(others(&[0.0, 3.0, 0.0, 9.0, 1.0], 0), [1, 3, 4]);
        assert_eq!(others(&[2.0, 2.0], 2), []);
    }
}
