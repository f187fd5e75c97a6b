//! Transform: inputs with mean 0 and deviation 1, and new noise on every training batch.
//!
//! Put the paper and its equation here, and say where this differs and why.

use espalier_sdk::data::SplitInfo;
use espalier_sdk::transform::{Derived, Samples};
use espalier_sdk::{Batch, Error, Options, RunInfo, StepInfo, Tensor, Transform, random};

/// Options under `[transform.with]`.
#[derive(Options)]
struct Settings {
    /// Deviation of the noise on training batches, in deviations of the inputs.
    #[option(default = 0.1, min = 0)]
    noise: f64,
    /// Name of a split of test samples with this noise, to be measured with `evaluate`; none where it is empty.
    #[option(default = "noisy")]
    derive: String,
}

struct __TYPE__ {
    settings: Settings,
    /// Of the training inputs.
    mean: f64,
    deviation: f64,
}

impl __TYPE__ {
    fn scaled(&self, inputs: &Tensor) -> Tensor {
        (inputs - self.mean) * scale(self.deviation)
    }

    /// The key says of what the noise is, so that no two are alike.
    fn noisy(&self, inputs: &Tensor, key: &[u64]) -> Tensor {
        inputs + random::normal(key, &inputs.shape()) * self.settings.noise
    }
}

/// What to multiply with; 1 where all inputs are equal.
fn scale(deviation: f64) -> f64 {
    match deviation > 0.0 {
        true => 1.0 / deviation,
        false => 1.0,
    }
}

const BATCH: u64 = 0;
const SPLIT: u64 = 1;

impl Transform for __TYPE__ {
    type Options = Settings;
    const BATCHES: bool = true;

    fn new(
        _run: &RunInfo,
        settings: Settings,
        train: &Samples,
        _splits: &[SplitInfo],
    ) -> Result<Self, Error> {
        let inputs = train.inputs();
        Ok(__TYPE__ {
            settings,
            mean: inputs.mean(&[]).item(),
            deviation: inputs.std(&[], 0.0).item(),
        })
    }

    fn prepare(&mut self, split: &SplitInfo, samples: &Samples) -> Vec<Derived> {
        let inputs = self.scaled(samples.inputs());
        let mut all = Vec::new();
        if split.name == "test" && !self.settings.derive.is_empty() {
            let noisy = samples.with("inputs", self.noisy(&inputs, &[SPLIT]));
            all.push(Derived::new(&self.settings.derive, split.classes, noisy));
        }
        all.push(Derived::of(split, samples.with("inputs", inputs)));
        all
    }

    fn apply(&mut self, batch: Batch, at: &StepInfo) -> Batch {
        let key = [BATCH, u64::from(at.round), at.step];
        let fields = batch.fields().iter().map(|(name, t)| {
            let changed = match name.as_str() {
                "inputs" => self.noisy(t, &key),
                _ => t.clone(),
            };
            (name.clone(), changed)
        });
        Batch::new(fields.collect(), batch.index().clone())
    }
}

espalier_sdk::export!(transform: __TYPE__);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_inputs_are_not_divided_by_nothing() {
        assert_eq!((scale(0.0), scale(0.5)), (1.0, 2.0));
        assert_eq!(Settings::defaults().derive, "noisy");
    }
}
