//! What the host measures of predictions. Sums are kept in f64 over samples, in order, so that the size of the
//! evaluation batches changes nothing but the last bits of a float.

use std::collections::BTreeMap;

use espalier_tensor::{DType, Tensor};

use crate::plan::Loss;

/// How to read a trainer's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prediction {
    /// Unnormalised log-probabilities [n, classes], or [n, t, classes] of a series.
    Logits,
    /// Probabilities, of the same shapes.
    Probabilities,
    /// Values [n, ...].
    Values,
    /// Mean and variance [n, .., 2].
    MeanVariance,
    /// Something the host has no measure for yet.
    Other,
}

/// Sums over the samples of a split.
#[derive(Clone, Debug)]
pub struct Sums {
    loss_kind: Loss,
    classes: u32,
    /// Whether the classes are bytes.
    bytes: bool,
    samples: u64,
    /// Answers: one a sample, or one for each of its steps or values.
    values: u64,
    loss: f64,
    correct: u64,
    calibration: Option<Calibration>,
}

/// Bins of a probability from 0 to 1.
const BINS: usize = 15;

/// What came true in each bin of equal width: events, the sum of their probabilities, and how many happened.
#[derive(Clone, Copy, Debug, Default)]
struct Bin {
    events: f64,
    probability: f64,
    happened: f64,
}

/// Probabilities beside how often they come true.
#[derive(Clone, Debug)]
struct Calibration {
    /// Of the likeliest class.
    top: [Bin; BINS],
    /// Of each class.
    classes: Vec<[Bin; BINS]>,
    brier: f64,
}

impl Calibration {
    fn add(&mut self, row: &[f64], best: usize, class: usize) {
        let put = |bins: &mut [Bin; BINS], p: f64, happened: bool| {
            // A bin holds its upper edge, as in Guo et al. 2017; no number is in the lowest.
            let at = ((p * BINS as f64).ceil() as usize).clamp(1, BINS) - 1;
            bins[at].events += 1.0;
            bins[at].probability += p;
            bins[at].happened += f64::from(u8::from(happened));
        };
        put(&mut self.top, row[best], best == class);
        for (k, (bins, &p)) in self.classes.iter_mut().zip(row).enumerate() {
            put(bins, p, k == class);
            self.brier += (p - f64::from(u8::from(k == class))).powi(2);
        }
    }
}

/// Sum over the bins of |happened - probability| events / n.
fn calibration_error(bins: &[Bin; BINS]) -> f64 {
    let events: f64 = bins.iter().map(|bin| bin.events).sum();
    let gaps: f64 = bins
        .iter()
        .map(|bin| (bin.happened - bin.probability).abs())
        .sum();
    gaps / events.max(1.0)
}

impl Sums {
    /// Nothing measured yet. `classes` is 0 for regression.
    pub fn new(loss_kind: Loss, classes: u32) -> Sums {
        Sums {
            loss_kind,
            classes,
            bytes: false,
            samples: 0,
            values: 0,
            loss: 0.0,
            correct: 0,
            calibration: None,
        }
    }

    /// Probabilities of classes are compared with how often they come true.
    pub fn with_calibration(mut self) -> Sums {
        if self.classes > 0 {
            self.calibration = Some(Calibration {
                top: [Bin::default(); BINS],
                classes: vec![[Bin::default(); BINS]; self.classes as usize],
                brier: 0.0,
            });
        }
        self
    }

    /// The classes are the bytes of a text: the cross-entropy is given in bits as well.
    pub fn of_bytes(mut self) -> Sums {
        self.bytes = true;
        self
    }

    /// Adds a batch; an error says in words what does not fit.
    pub fn add(
        &mut self,
        kind: Prediction,
        output: &Tensor,
        targets: &Tensor,
    ) -> Result<(), String> {
        if !matches!(output.dtype(), DType::F32 | DType::F64) {
            return Err(format!(
                "predictions are {}, expected floats",
                output.dtype()
            ));
        }
        let n = targets.shape().first().copied().unwrap_or(0);
        // Shapes are compared before anything is read: a view may have more elements than memory holds.
        let list = |t: &Tensor| t.to_list().map_err(|e| e.to_string());
        match (kind, self.classes) {
            (Prediction::Logits | Prediction::Probabilities, classes) if classes > 0 => {
                let width = classes as usize;
                let expected = [targets.shape(), &[width]].concat();
                if output.shape() != expected {
                    return Err(format!(
                        "predictions have shape {:?}, expected {expected:?}",
                        output.shape()
                    ));
                }
                for (row, &class) in list(output)?.chunks_exact(width).zip(&list(targets)?) {
                    self.classified(kind, row, class as usize);
                }
            }
            (Prediction::Values | Prediction::MeanVariance | Prediction::Logits, _)
                if self.classes == 0 =>
            {
                let step = if kind == Prediction::MeanVariance {
                    2
                } else {
                    1
                };
                if output.numel() != targets.numel() * step {
                    return Err(format!(
                        "predictions have shape {:?}, targets {:?}",
                        output.shape(),
                        targets.shape()
                    ));
                }
                for (p, t) in list(output)?.chunks_exact(step).zip(&list(targets)?) {
                    self.loss += (p[0] - t) * (p[0] - t);
                    self.values += 1;
                }
            }
            _ => {
                return Err(format!(
                    "a prediction of kind {kind:?} can't be compared with these targets"
                ));
            }
        }
        self.samples += n as u64;
        Ok(())
    }

    fn classified(&mut self, kind: Prediction, row: &[f64], class: usize) {
        // As argmax: the lowest index wins ties; a NaN counts as no answer.
        let mut best = 0;
        for (i, x) in row.iter().enumerate() {
            if *x > row[best] {
                best = i;
            }
        }
        let clean = row.iter().all(|x| !x.is_nan());
        self.correct += u64::from(clean && best == class);
        self.values += 1;
        if let Some(calibration) = &mut self.calibration {
            match kind {
                Prediction::Logits => {
                    let top = row[best];
                    let sum: f64 = row.iter().map(|x| (x - top).exp()).sum();
                    let row: Vec<f64> = row.iter().map(|x| (x - top).exp() / sum).collect();
                    calibration.add(&row, best, class);
                }
                _ => calibration.add(row, best, class),
            }
        }
        let p = row.get(class).copied().unwrap_or(f64::NAN);
        self.loss += match (self.loss_kind, kind) {
            (Loss::CrossEntropy, Prediction::Logits) => {
                let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                top + row.iter().map(|x| (x - top).exp()).sum::<f64>().ln() - p
            }
            (Loss::CrossEntropy, _) => -p.ln(),
            (Loss::Mse, _) => {
                let error = |(i, x): (usize, &f64)| (x - f64::from(u8::from(i == class))).powi(2);
                row.iter().enumerate().map(error).sum::<f64>() / row.len() as f64
            }
        };
    }

    /// `loss`, `accuracy` where there are classes, and `bits-per-byte` where those are bytes; with calibration the
    /// expected calibration error of the likeliest class, `ece`, the mean of that of every class, `class-ece`, both in
    /// 15 bins of equal width, and the squared error of the probabilities, `brier`.
    pub fn finish(&self) -> BTreeMap<String, f64> {
        let mut out = BTreeMap::new();
        if self.samples > 0 {
            out.insert("loss".to_string(), self.loss / self.values.max(1) as f64);
            if self.classes > 0 {
                out.insert(
                    "accuracy".to_string(),
                    self.correct as f64 / self.values.max(1) as f64,
                );
            }
            if self.bytes && self.loss_kind == Loss::CrossEntropy {
                let nats = self.loss / self.values.max(1) as f64;
                out.insert("bits-per-byte".to_string(), nats / std::f64::consts::LN_2);
            }
            if let Some(found) = &self.calibration {
                let every: f64 = found.classes.iter().map(calibration_error).sum();
                out.insert("ece".to_string(), calibration_error(&found.top));
                out.insert("class-ece".to_string(), every / f64::from(self.classes));
                out.insert("brier".to_string(), found.brier / self.values.max(1) as f64);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn t(values: &[f64], shape: &[usize], dtype: DType) -> Tensor {
        Tensor::from_f64s(values, shape, dtype).unwrap()
    }

    #[test]
    fn logits_give_the_mean_cross_entropy_and_the_share_of_right_answers() {
        let mut sums = Sums::new(Loss::CrossEntropy, 2);
        let logits = t(&[0.0, 0.0, 2.0, 0.0], &[2, 2], DType::F32);
        sums.add(
            Prediction::Logits,
            &logits,
            &t(&[1.0, 0.0], &[2], DType::I64),
        )
        .unwrap();
        let m = sums.finish();
        // ln 2 and ln(1 + e^-2); the tie of the first row goes to class 0, which is wrong.
        let want = (2f64.ln() + (1.0 + (-2f64).exp()).ln()) / 2.0;
        assert!((m["loss"] - want).abs() < 1e-12, "{m:?}");
        assert_eq!(m["accuracy"], 0.5);
    }

    #[test]
    fn each_step_of_a_series_is_an_answer() {
        let mut sums = Sums::new(Loss::CrossEntropy, 2).of_bytes();
        // One sample of two steps: probabilities 1/2 and 3/4 for what came.
        let logits = t(&[0.0, 0.0, 0.0, 3f64.ln()], &[1, 2, 2], DType::F64);
        let targets = t(&[0.0, 1.0], &[1, 2], DType::I64);
        sums.add(Prediction::Logits, &logits, &targets).unwrap();
        let m = sums.finish();
        assert_eq!(m["accuracy"], 1.0);
        let bits = (1.0 + (4f64 / 3.0).log2()) / 2.0;
        assert!((m["bits-per-byte"] - bits).abs() < 1e-12, "{m:?}");
        assert!((m["loss"] - bits * 2f64.ln()).abs() < 1e-12, "{m:?}");
        let flat = t(&[0.0; 4], &[2, 2], DType::F64);
        let error = sums.add(Prediction::Logits, &flat, &targets).unwrap_err();
        assert_eq!(error, "predictions have shape [2, 2], expected [1, 2, 2]");
    }

    #[test]
    fn calibration_compares_probabilities_with_how_often_they_come_true() {
        let mut sums = Sums::new(Loss::CrossEntropy, 2).with_calibration();
        // Sure to 0.9 four times and right three times; sure to 0.6 once and wrong.
        let rows = [0.9, 0.1, 0.9, 0.1, 0.9, 0.1, 0.1, 0.9, 0.6, 0.4];
        let targets = t(&[0.0, 0.0, 1.0, 1.0, 1.0], &[5], DType::I64);
        sums.add(
            Prediction::Probabilities,
            &t(&rows, &[5, 2], DType::F64),
            &targets,
        )
        .unwrap();
        let m = sums.finish();
        // |3 - 3.6| and |0 - 0.6| over 5.
        assert!((m["ece"] - 1.2 / 5.0).abs() < 1e-12, "{m:?}");
        // Class 0 at 0.9: 2 of 2.7 expected; at 0.6: 0 of 0.6; at 0.1: 0 of 0.1. Class 1 the same.
        assert!(
            (m["class-ece"] - (0.7 + 0.6 + 0.1) / 5.0).abs() < 1e-12,
            "{m:?}"
        );
        // 0.01 + 0.01 three times, 0.81 + 0.81, 0.36 + 0.36.
        assert!(
            (m["brier"] - (0.06 + 1.62 + 0.72) / 5.0).abs() < 1e-12,
            "{m:?}"
        );
        // Logits are turned into probabilities first.
        let mut sums = Sums::new(Loss::CrossEntropy, 2).with_calibration();
        let logits: Vec<f64> = rows.iter().map(|p: &f64| p.ln() + 3.0).collect();
        sums.add(
            Prediction::Logits,
            &t(&logits, &[5, 2], DType::F64),
            &targets,
        )
        .unwrap();
        assert!((sums.finish()["brier"] - m["brier"]).abs() < 1e-12);
        assert!(
            !Sums::new(Loss::Mse, 0)
                .with_calibration()
                .finish()
                .contains_key("ece")
        );
    }

    #[test]
    fn a_row_with_nan_is_a_wrong_answer() {
        let mut sums = Sums::new(Loss::CrossEntropy, 2);
        let logits = t(&[f64::NAN, 0.0], &[1, 2], DType::F32);
        sums.add(Prediction::Logits, &logits, &t(&[0.0], &[1], DType::I64))
            .unwrap();
        assert_eq!(sums.finish()["accuracy"], 0.0);
    }

    #[test]
    fn values_give_the_mean_squared_error() {
        let mut sums = Sums::new(Loss::Mse, 0);
        let predicted = t(&[1.0, 2.0, 3.0, 5.0], &[2, 2], DType::F32);
        sums.add(
            Prediction::Values,
            &predicted,
            &t(&[1.0, 2.0, 3.0, 3.0], &[2, 2], DType::F32),
        )
        .unwrap();
        assert_eq!(sums.finish()["loss"], 1.0);
    }

    #[test]
    fn a_wrong_shape_is_told() {
        let mut sums = Sums::new(Loss::CrossEntropy, 3);
        let error = sums.add(
            Prediction::Logits,
            &t(&[0.0; 4], &[2, 2], DType::F32),
            &t(&[0.0, 1.0], &[2], DType::I64),
        );
        assert_eq!(
            error.unwrap_err(),
            "predictions have shape [2, 2], expected [2, 3]"
        );
    }
}
