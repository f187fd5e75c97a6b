//! Auditor: flags a model that answers one class far more often than any other.
//!
//! Put the paper and its equation here, and say where this differs and why.

use espalier_sdk::auditor::Report;
use espalier_sdk::{Auditor, Batch, Error, Options, RunInfo, Tensor, data, model};

/// Options under `[auditor.with]`.
#[derive(Options)]
struct Settings {
    /// The result is flagged where one class has at least this share of the answers.
    #[option(default = 0.5, min = 0, max = 1)]
    flag_at: f64,
}

struct __TYPE__ {
    flag_at: f64,
}

/// The largest share of equal numbers.
fn largest_share(answers: &[f64]) -> f64 {
    let same = |a: &f64| answers.iter().filter(|b| *b == a).count();
    let most = answers.iter().map(same).max().unwrap_or_default();
    most as f64 / answers.len().max(1) as f64
}

impl Auditor for __TYPE__ {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        Ok(__TYPE__ {
            flag_at: settings.flag_at,
        })
    }

    fn audit(&mut self) -> Report {
        if data::split("test").is_none_or(|split| split.classes == 0) {
            return Report::new("There are no classes to look at.");
        }
        // The decision: what to look at, and what to distrust.
        let inputs = data::field("test", "inputs");
        let index = Tensor::indices(0..u64::from(inputs.size(0)));
        let batch = Batch::new(vec![("inputs".into(), inputs)], index);
        let answers = model::predict(&batch).output().argmax(-1).to_list();
        let share = largest_share(&answers);
        Report::new("The share of the most frequent answer.")
            .number("largest-share", share)
            .flag(share >= self.flag_at)
    }
}

espalier_sdk::export!(auditor: __TYPE__);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_answer_counts() {
        assert_eq!(largest_share(&[1.0, 2.0, 1.0, 3.0]), 0.5);
        assert_eq!(largest_share(&[]), 0.0);
        assert_eq!(Settings::defaults().flag_at, 0.5);
    }
}
