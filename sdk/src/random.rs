//! Keyed randomness.
//!
//! Output depends on the run's seed, the plugin's name and the key only. Put the step into the key, and a
//! number for each use: `&[USE_NOISE, at.step]`. Nothing is drawn from a hidden stream, so nothing is lost when
//! a run is resumed.

use crate::bindings::host::espalier::plugin::{random, random_tensors};
use crate::tensor::{Dtype, Tensor};

/// `n` random 64-bit words.
///
/// ```no_run
/// # use espalier_sdk::random;
/// let word = random::bits(&[0], 1)[0];
/// ```
pub fn bits(key: &[u64], n: u32) -> Vec<u64> {
    random::bits(key, n)
}

/// `n` numbers uniform on [0, 1), as plain numbers.
///
/// ```no_run
/// # use espalier_sdk::random;
/// # fn f(step: u64) {
/// let coin = random::uniform_list(&[0, step], 1)[0] < 0.5;
/// # }
/// ```
pub fn uniform_list(key: &[u64], n: u32) -> Vec<f64> {
    bits(key, n).into_iter().map(unit).collect()
}

/// f32 uniform on [0, 1).
///
/// ```no_run
/// # use espalier_sdk::random;
/// # fn f(step: u64) {
/// let noise = random::uniform(&[1, step], &[64, 10]);
/// # }
/// ```
pub fn uniform(key: &[u64], shape: &[u32]) -> Tensor {
    Tensor::from_raw(random_tensors::uniform(key, shape, Dtype::F32))
}

/// f32 standard normal.
///
/// ```no_run
/// # use espalier_sdk::random;
/// # fn f(step: u64) {
/// let noise = random::normal(&[2, step], &[64, 10]) * 0.1;
/// # }
/// ```
pub fn normal(key: &[u64], shape: &[u32]) -> Tensor {
    Tensor::from_raw(random_tensors::normal(key, shape, Dtype::F32))
}

/// bool, each true with probability `p`.
///
/// ```no_run
/// # use espalier_sdk::random;
/// # fn f(step: u64) {
/// let kept = random::bernoulli(&[3, step], &[64, 10], 0.9);
/// # }
/// ```
pub fn bernoulli(key: &[u64], shape: &[u32], p: f64) -> Tensor {
    uniform(key, shape).less(p)
}

/// A random order of 0..n, i64 `[n]`.
///
/// ```no_run
/// # use espalier_sdk::random;
/// # fn f(epoch: u64) {
/// let order = random::permutation(&[4, epoch], 1000);
/// # }
/// ```
pub fn permutation(key: &[u64], n: u32) -> Tensor {
    uniform(key, &[n]).argsort(0, false)
}

/// i64 uniform on 0..n.
///
/// ```no_run
/// # use espalier_sdk::random;
/// # fn f(step: u64) {
/// let classes = random::below(&[5, step], &[64], 10);
/// # }
/// ```
pub fn below(key: &[u64], shape: &[u32], n: u32) -> Tensor {
    let last = f64::from(n) - 1.0;
    (uniform(key, shape) * f64::from(n))
        .minimum(last)
        .astype(Dtype::I64)
}

/// The upper 53 bits of a word as a number in [0, 1).
pub(crate) fn unit(word: u64) -> f64 {
    (word >> 11) as f64 / (1_u64 << 53) as f64
}
