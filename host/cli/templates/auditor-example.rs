//! Auditor: how many answers change when noise is added to the inputs, at several strengths.
//!
//! Put the paper and its equation here, and say where this differs and why.

use espalier_sdk::auditor::Report;
use espalier_sdk::{Auditor, Batch, Error, Options, RunInfo, Tensor, data, model, random};

/// Options under `[auditor.with]`.
#[derive(Options)]
struct Settings {
    /// The split whose inputs are disturbed.
    #[option(default = "test")]
    split: String,
    /// Deviation of the strongest noise.
    #[option(default = 0.3, min = 0)]
    deviation: f64,
    /// How many strengths, evenly spaced up to the strongest.
    #[option(default = 5, min = 1, max = 100)]
    steps: i64,
    /// The result is flagged where at least this share of answers changes under the strongest noise.
    #[option(default = 0.2, min = 0, max = 1)]
    flag_at: f64,
}

struct __TYPE__ {
    settings: Settings,
}

/// The share of places at which two lists differ.
fn differing(one: &[f64], two: &[f64]) -> f64 {
    let differ = one.iter().zip(two).filter(|(a, b)| a != b).count();
    differ as f64 / one.len().max(1) as f64
}

/// What the trainer answers for these inputs.
fn answers(inputs: Tensor) -> Vec<f64> {
    let index = Tensor::indices(0..u64::from(inputs.size(0)));
    let batch = Batch::new(vec![("inputs".into(), inputs)], index);
    model::predict(&batch).output().argmax(-1).to_list()
}

impl Auditor for __TYPE__ {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        match data::split(&settings.split) {
            Some(split) if split.classes > 0 => Ok(__TYPE__ { settings }),
            Some(_) => Err(Error::incompatible(
                "the targets are no classes, so there are no answers to compare".to_string(),
            )),
            None => Err(Error::incompatible(format!(
                "there is no split `{}`",
                settings.split
            ))),
        }
    }

    fn audit(&mut self) -> Report {
        let s = &self.settings;
        let inputs = data::field(&s.split, "inputs");
        let before = answers(inputs.clone());
        let mut rows = Vec::new();
        for step in 1..=s.steps {
            let deviation = s.deviation * step as f64 / s.steps as f64;
            let noise = random::normal(&[step as u64], &inputs.shape());
            let noisy = &inputs + noise * deviation;
            rows.push(vec![deviation, differing(&before, &answers(noisy))]);
        }
        let worst = rows.last().and_then(|row| row.last()).copied();
        let worst = worst.unwrap_or_default();
        Report::new(format!(
            "{:.1} % of the answers change under noise of deviation {}.",
            100.0 * worst,
            s.deviation
        ))
        .number("changed", worst)
        .table("by noise", &["deviation", "changed"], rows)
        .flag(worst >= s.flag_at)
    }
}

espalier_sdk::export!(auditor: __TYPE__);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differing_answers_are_counted() {
        assert_eq!(differing(&[1.0, 2.0], &[1.0, 3.0]), 0.5);
        assert_eq!(Settings::defaults().steps, 5);
    }
}
