//! Discrete Fourier transforms of real rows: `rfft` and its inverse.
//!
//! A spectrum is a real tensor whose last axis is (re, im); there is no complex element type. Frequencies
//! 0 to n/2 stand for all n: those above are their conjugates. Both kernels weigh the frequencies that have
//! no conjugate partner (0, and n/2 where n is even) and all others by two numbers; so each is the other's
//! gradient, to any order:
//!
//! ```text
//! forward(x)  [k]  = w_k sum_t x_t e^(-2 pi i k t / n)             its gradient is backward with w_k, w_k / 2
//! backward(c) [t]  = sum over all n frequencies of w_k c_k e^(2 pi i k t / n)    ... forward with w_k, 2 w_k
//! ```

use std::sync::{Arc, Mutex, PoisonError};

use realfft::num_complex::Complex;
use realfft::{ComplexToReal, FftNum, RealFftPlanner, RealToComplex};

use crate::autograd::record;
use crate::capture;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::ops;
use crate::ops::rows::{axis_of, one_float_type, rows_per_block};
use crate::tensor::Tensor;
use crate::threads::for_blocks;

/// The spectrum of the real rows along `axis`, unscaled: X_k = sum over t of x_t e^(-2 pi i k t / n) for k from
/// 0 to n/2. In the place of n the axis has n/2 + 1 frequencies, and a new last axis is (re, im).
///
/// # Errors
/// [`Error::Axis`]; [`Error::DType`] for integers and truth values; [`Error::Argument`] for rows of length 0;
/// [`Error::Shape`] where there is no room for another axis; [`Error::Budget`].
pub fn rfft(t: &Tensor, axis: isize) -> Result<Tensor> {
    const OP: &str = "rfft";
    one_float_type(OP, &[t])?;
    let axis = axis_of(OP, t, axis)?;
    let mut to_end: Vec<usize> = (0..t.rank()).filter(|&a| a != axis).collect();
    to_end.push(axis);
    let rows = ops::permute_dims(t, &to_end)?;
    let spectrum = forward(OP, &rows, Weights::ONE)?;
    let mut back: Vec<usize> = (0..t.rank() - 1).collect();
    back.insert(axis, t.rank() - 1);
    back.push(t.rank());
    ops::permute_dims(&spectrum, &back)
}

/// The real rows of length `n` with these spectra, the inverse of [`rfft`] (which means a division by `n`).
/// `t` has (re, im) as its last axis, and n/2 + 1 frequencies along `axis`, which counts the axes of the result.
/// The imaginary parts of the frequencies 0 and, for even `n`, n/2 are not read.
///
/// # Errors
/// [`Error::Axis`]; [`Error::DType`] for integers and truth values; [`Error::Argument`] for `n` of 0;
/// [`Error::Shape`] unless the axes are n/2 + 1 and 2 long; [`Error::Budget`].
pub fn irfft(t: &Tensor, n: usize, axis: isize) -> Result<Tensor> {
    const OP: &str = "irfft";
    one_float_type(OP, &[t])?;
    let Some(rank) = t.rank().checked_sub(1).filter(|&rank| rank > 0) else {
        return Err(Error::shape(
            OP,
            "needs frequencies and a last axis (re, im)",
            &[t.shape()],
        ));
    };
    let from_front = if axis < 0 { axis + rank as isize } else { axis };
    if !(0..rank as isize).contains(&from_front) {
        return Err(Error::Axis {
            op: OP,
            axis: axis as i64,
            rank,
        });
    }
    let axis = from_front as usize;
    let mut to_end: Vec<usize> = (0..rank).filter(|&a| a != axis).collect();
    to_end.extend([axis, rank]);
    let spectrum = ops::permute_dims(t, &to_end)?;
    let scale = 1.0 / n.max(1) as f64;
    let weights = Weights {
        edge: scale,
        inner: scale,
    };
    let rows = backward(OP, &spectrum, n, weights)?;
    let mut back: Vec<usize> = (0..rank - 1).collect();
    back.insert(axis, rank - 1);
    ops::permute_dims(&rows, &back)
}

/// Factors of the frequencies: those without a conjugate partner, and the others.
#[derive(Clone, Copy)]
struct Weights {
    edge: f64,
    inner: f64,
}

impl Weights {
    const ONE: Weights = Weights {
        edge: 1.0,
        inner: 1.0,
    };

    fn of(self, k: usize, n: usize) -> f64 {
        if k == 0 || 2 * k == n {
            self.edge
        } else {
            self.inner
        }
    }

    /// The same, with the weight of the others times `factor`.
    fn inner_times(self, factor: f64) -> Weights {
        Weights {
            inner: self.inner * factor,
            ..self
        }
    }
}

/// [.., n] to [.., n/2 + 1, 2].
fn forward(op: &'static str, t: &Tensor, weights: Weights) -> Result<Tensor> {
    let n = t.shape().last().copied().unwrap_or(0);
    if n == 0 {
        return Err(Error::argument(op, "rows of length 0 have no spectrum"));
    }
    let source = t.dense(op)?;
    let mut shape = t.shape().to_vec();
    shape.pop();
    shape.extend([n / 2 + 1, 2]);
    let out = match t.dtype() {
        DType::F64 => forward_rows::<f64>(op, &source, &shape, n, weights),
        _ => forward_rows::<f32>(op, &source, &shape, n, weights),
    }?;
    let words = [weights.edge.to_bits(), weights.inner.to_bits()];
    capture::note("fft_forward", &words, &[t], &out, || {
        move |t: &[Tensor]| forward(op, &t[0], weights)
    });
    Ok(record(op, out, &[t], move |flow| {
        let weights = weights.inner_times(0.5);
        Ok(vec![Some(backward(op, &flow.grad, n, weights)?)])
    }))
}

/// [.., n/2 + 1, 2] to [.., n].
fn backward(op: &'static str, t: &Tensor, n: usize, weights: Weights) -> Result<Tensor> {
    if n == 0 {
        return Err(Error::argument(op, "rows of length 0 have no spectrum"));
    }
    let [.., frequencies, parts] = t.shape() else {
        return Err(Error::shape(op, "needs [.., n/2 + 1, 2]", &[t.shape()]));
    };
    if *frequencies != n / 2 + 1 || *parts != 2 {
        return Err(Error::shape(
            op,
            format!(
                "rows of length {n} have {} frequencies of (re, im)",
                n / 2 + 1
            ),
            &[t.shape()],
        ));
    }
    let source = t.dense(op)?;
    let mut shape = t.shape().to_vec();
    shape.truncate(shape.len() - 2);
    shape.push(n);
    let out = match t.dtype() {
        DType::F64 => backward_rows::<f64>(op, &source, &shape, n, weights),
        _ => backward_rows::<f32>(op, &source, &shape, n, weights),
    }?;
    let words = [n as u64, weights.edge.to_bits(), weights.inner.to_bits()];
    capture::note("fft_backward", &words, &[t], &out, || {
        move |t: &[Tensor]| backward(op, &t[0], n, weights)
    });
    Ok(record(op, out, &[t], move |flow| {
        let weights = weights.inner_times(2.0);
        Ok(vec![Some(forward(op, &flow.grad, weights)?)])
    }))
}

fn forward_rows<T: Planned>(
    op: &'static str,
    source: &Tensor,
    shape: &[usize],
    n: usize,
    weights: Weights,
) -> Result<Tensor> {
    let from = source.data::<T>()?;
    let plan = T::plans().forward(n);
    Tensor::build::<T>(op, shape, |out| {
        let (width, total) = (2 * (n / 2 + 1), cost(out.len()));
        for_blocks(out, rows_per_block(n) * width, total, |first, block| {
            let mut row = plan.make_input_vec();
            let mut spectrum = plan.make_output_vec();
            let mut scratch = plan.make_scratch_vec();
            let from = &from[first / width * n..];
            for (x, y) in from.chunks_exact(n).zip(block.chunks_exact_mut(width)) {
                row.copy_from_slice(x);
                // Errs only where lengths differ from the plan's, and all are its own.
                let _ = plan.process_with_scratch(&mut row, &mut spectrum, &mut scratch);
                for (k, (y, c)) in y.chunks_exact_mut(2).zip(&spectrum).enumerate() {
                    let weight = T::of(weights.of(k, n));
                    y[0] = c.re * weight;
                    y[1] = c.im * weight;
                }
            }
        });
    })
}

fn backward_rows<T: Planned>(
    op: &'static str,
    source: &Tensor,
    shape: &[usize],
    n: usize,
    weights: Weights,
) -> Result<Tensor> {
    let from = source.data::<T>()?;
    let plan = T::plans().backward(n);
    Tensor::build::<T>(op, shape, |out| {
        let (width, total) = (2 * (n / 2 + 1), cost(out.len()));
        for_blocks(out, rows_per_block(n) * n, total, |first, block| {
            let mut spectrum = plan.make_input_vec();
            let mut row = plan.make_output_vec();
            let mut scratch = plan.make_scratch_vec();
            let from = &from[first / n * width..];
            for (x, y) in from.chunks_exact(width).zip(block.chunks_exact_mut(n)) {
                for (k, (x, c)) in x.chunks_exact(2).zip(&mut spectrum).enumerate() {
                    let weight = T::of(weights.of(k, n));
                    let partner = k != 0 && 2 * k != n;
                    *c = Complex {
                        re: x[0] * weight,
                        im: if partner { x[1] * weight } else { T::of(0.0) },
                    };
                }
                let _ = plan.process_with_scratch(&mut spectrum, &mut row, &mut scratch);
                y.copy_from_slice(&row);
            }
        });
    })
}

/// Work of so many outputs, in plain operations, for deciding whether to split it.
fn cost(outputs: usize) -> usize {
    outputs.saturating_mul(8)
}

/// Plans made so far, by rustfft's own cache.
pub(crate) struct Plans<T: FftNum> {
    planner: Mutex<(Option<RealFftPlanner<T>>, usize)>,
}

/// Elements of the plans that are kept: tables are on nobody's account, so their number is bounded.
const MOST_PLANNED: usize = 1 << 20;

impl<T: FftNum> Plans<T> {
    const fn new() -> Plans<T> {
        Plans {
            planner: Mutex::new((None, 0)),
        }
    }

    fn with<P>(&self, n: usize, make: impl FnOnce(&mut RealFftPlanner<T>) -> P) -> P {
        let kept = &mut *self.planner.lock().unwrap_or_else(PoisonError::into_inner);
        // Counts a plan again that is there already: after enough use all are made anew, which is cheap.
        kept.1 += n;
        if kept.1 > MOST_PLANNED.max(64 * n) {
            *kept = (None, n);
        }
        make(kept.0.get_or_insert_with(RealFftPlanner::new))
    }

    fn forward(&self, n: usize) -> Arc<dyn RealToComplex<T>> {
        self.with(n, |planner| planner.plan_fft_forward(n))
    }

    fn backward(&self, n: usize) -> Arc<dyn ComplexToReal<T>> {
        self.with(n, |planner| planner.plan_fft_inverse(n))
    }
}

/// A float type with its plans.
trait Planned: Element + FftNum {
    fn plans() -> &'static Plans<Self>;
    fn of(x: f64) -> Self;
}

impl Planned for f32 {
    fn plans() -> &'static Plans<f32> {
        static PLANS: Plans<f32> = Plans::new();
        &PLANS
    }
    fn of(x: f64) -> f32 {
        x as f32
    }
}

impl Planned for f64 {
    fn plans() -> &'static Plans<f64> {
        static PLANS: Plans<f64> = Plans::new();
        &PLANS
    }
    fn of(x: f64) -> f64 {
        x
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn row(values: &[f64]) -> Tensor {
        Tensor::from_f64s(values, &[values.len()], DType::F64).unwrap()
    }

    /// The sum by its definition.
    fn naive(x: &[f64]) -> Vec<f64> {
        let n = x.len();
        let mut out = Vec::new();
        for k in 0..n / 2 + 1 {
            let angle = |t: usize| -2.0 * std::f64::consts::PI * (k * t % n) as f64 / n as f64;
            out.push((0..n).map(|t| x[t] * angle(t).cos()).sum());
            out.push((0..n).map(|t| x[t] * angle(t).sin()).sum());
        }
        out
    }

    fn near(found: &[f64], expected: &[f64], slack: f64) {
        assert_eq!(found.len(), expected.len());
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() < slack, "{found:?} is not {expected:?}");
        }
    }

    #[test]
    fn spectra_are_the_sums_of_the_definition_for_even_odd_prime_and_single_lengths() {
        for n in [1, 2, 3, 4, 5, 7, 8, 12, 31, 64, 97] {
            let x: Vec<f64> = (0..n)
                .map(|t| ((t * t * 7 + 3) % 11) as f64 - 5.0)
                .collect();
            let spectrum = rfft(&row(&x), 0).unwrap();
            assert_eq!(spectrum.shape(), [n / 2 + 1, 2]);
            near(&spectrum.to_list().unwrap(), &naive(&x), 1e-10);
            near(
                &irfft(&spectrum, n, 0).unwrap().to_list().unwrap(),
                &x,
                1e-12,
            );
        }
    }

    #[test]
    fn a_unit_at_one_frequency_is_the_cosine_that_the_inverse_says() {
        // T = 8: bin 0 is 1/8 everywhere, bin 1 is 1/4 cos(2 pi t / 8), bin 4 is 1/8 (-1)^t.
        let unit = |k: usize| {
            let mut c = vec![0.0; 10];
            c[2 * k] = 1.0;
            let c = Tensor::from_f64s(&c, &[5, 2], DType::F64).unwrap();
            irfft(&c, 8, -1).unwrap().to_list().unwrap()
        };
        let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>().sqrt();
        near(&unit(0), &[0.125; 8], 1e-15);
        let cosine: Vec<f64> = (0..8)
            .map(|t| 0.25 * (std::f64::consts::PI * t as f64 / 4.0).cos())
            .collect();
        near(&unit(1), &cosine, 1e-15);
        let signs: Vec<f64> = (0..8)
            .map(|t| 0.125 * (1.0 - 2.0 * (t % 2) as f64))
            .collect();
        near(&unit(4), &signs, 1e-15);
        near(
            &[norm(&unit(0)), norm(&unit(1)), norm(&unit(4))],
            &[0.353553, 0.5, 0.353553],
            1e-6,
        );
    }

    #[test]
    fn energy_in_time_is_energy_in_frequency() {
        let x: Vec<f64> = (0..16).map(|t| ((t * 5 + 1) % 7) as f64 - 2.5).collect();
        let c = rfft(&row(&x), 0).unwrap().to_list().unwrap();
        let squares: Vec<f64> = c.chunks(2).map(|c| c[0] * c[0] + c[1] * c[1]).collect();
        let inner: f64 = squares[1..8].iter().sum();
        let energy: f64 = x.iter().map(|x| x * x).sum();
        near(
            &[(squares[0] + squares[8] + 2.0 * inner) / 16.0],
            &[energy],
            1e-10,
        );
    }

    #[test]
    fn any_axis_is_transformed_and_the_parts_come_last() {
        let x: Vec<f64> = (0..30).map(|i| ((i * 7) % 13) as f64).collect();
        let t = Tensor::from_f64s(&x, &[2, 5, 3], DType::F64).unwrap();
        let c = rfft(&t, 1).unwrap();
        assert_eq!(c.shape(), [2, 3, 3, 2]);
        let all = c.to_list().unwrap();
        for (a, b) in [(0, 0), (0, 2), (1, 1)] {
            let line: Vec<f64> = (0..5).map(|t| x[a * 15 + t * 3 + b]).collect();
            let found: Vec<f64> = (0..3)
                .flat_map(|k| [0, 1].map(|p| all[((a * 3 + k) * 3 + b) * 2 + p]))
                .collect();
            near(&found, &naive(&line), 1e-10);
        }
        near(&irfft(&c, 5, 1).unwrap().to_list().unwrap(), &x, 1e-12);
        near(&irfft(&c, 5, -2).unwrap().to_list().unwrap(), &x, 1e-12);
    }

    #[test]
    fn what_has_no_spectrum_is_refused_by_name() {
        let said = |r: Result<Tensor>| r.unwrap_err().to_string();
        let empty = Tensor::zeros(&[3, 0], DType::F32).unwrap();
        assert!(said(rfft(&empty, 1)).contains("rfft"));
        let whole = Tensor::zeros(&[4], DType::I64).unwrap();
        assert!(said(rfft(&whole, 0)).contains("f32 or f64"));
        let c = Tensor::zeros(&[5, 2], DType::F32).unwrap();
        assert!(said(irfft(&c, 7, 0)).contains("4 frequencies"));
        assert!(said(irfft(&c, 8, 1)).contains("irfft"));
        assert!(said(irfft(&c, 0, 0)).contains("length 0"));
        let most = Tensor::zeros(&[1, 1, 1, 1, 1, 4], DType::F32).unwrap();
        assert!(rfft(&most, 5).is_err(), "a seventh axis");
    }
}
