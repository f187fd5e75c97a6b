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
        }
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

    /// `loss`, `accuracy` where there are classes, and `bits-per-byte` where those are bytes.
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
