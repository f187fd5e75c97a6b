//! Transform: training inputs with some noise.
//!
//! Put the paper and its equation here, and say where this differs and why.

use espalier_sdk::data::SplitInfo;
use espalier_sdk::transform::{Derived, Samples};
use espalier_sdk::{Error, Options, RunInfo, Transform, random};

/// Options under `[transform.with]`.
#[derive(Options)]
struct Settings {
    /// Deviation of the noise.
    #[option(default = 0.1, min = 0)]
    deviation: f64,
}

struct __TYPE__ {
    deviation: f64,
}

impl Transform for __TYPE__ {
    type Options = Settings;

    fn new(
        _run: &RunInfo,
        settings: Settings,
        _train: &Samples,
        _splits: &[SplitInfo],
    ) -> Result<Self, Error> {
        Ok(__TYPE__ {
            deviation: settings.deviation,
        })
    }

    fn prepare(&mut self, split: &SplitInfo, samples: &Samples) -> Vec<Derived> {
        if split.name != "train" {
            return Vec::new();
        }
        // The decision: what becomes of the samples.
        let inputs = samples.inputs();
        let noise = random::normal(&[0], &inputs.shape());
        let noisy = inputs + noise * self.deviation;
        vec![Derived::of(split, samples.with("inputs", noisy))]
    }
}

espalier_sdk::export!(transform: __TYPE__);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_little_noise_is_the_default() {
        assert_eq!(Settings::defaults().deviation, 0.1);
    }
}
