//! Discrete Fourier transforms of real rows. Trainers, architectures and auditors only.
//!
//! A spectrum is a real tensor whose last axis is (re, im). Frequencies 0 to n/2 stand for all n.

use crate::bindings::host::espalier::plugin::fft as host;
use crate::tensor::Tensor;

/// Spectra of the rows along `axis`, unscaled: in the place of n the axis has n/2 + 1 frequencies, and (re, im) is a new
/// last axis.
///
/// ```no_run
/// # use espalier_sdk::{Tensor, fft};
/// # fn f(series: &Tensor) {
/// let power = (fft::rfft(series, -1) * fft::rfft(series, -1)).sum(&[-1]);
/// # }
/// ```
pub fn rfft(t: &Tensor, axis: i32) -> Tensor {
    Tensor::from_raw(host::rfft(t.raw(), axis))
}

/// The rows of length `n` that have these spectra: the inverse of [`rfft`], so divided by n. `axis` counts the axes of
/// the result.
///
/// ```no_run
/// # use espalier_sdk::{Tensor, fft};
/// # fn f(series: &Tensor, keep: &Tensor) {
/// let filtered = fft::irfft(&(fft::rfft(series, -1) * keep), 64, -1);
/// # }
/// ```
pub fn irfft(t: &Tensor, n: u32, axis: i32) -> Tensor {
    Tensor::from_raw(host::irfft(t.raw(), n, axis))
}

/// Magnitudes of a spectrum: the root of re^2 + im^2, without its last axis.
///
/// ```no_run
/// # use espalier_sdk::{Tensor, fft};
/// # fn f(series: &Tensor) {
/// let loudest = fft::magnitudes(&fft::rfft(series, -1)).argmax(-1);
/// # }
/// ```
pub fn magnitudes(spectrum: &Tensor) -> Tensor {
    (spectrum * spectrum).sum(&[-1]).sqrt()
}
