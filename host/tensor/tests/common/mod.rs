//! Shared by the test tables: a small random generator, shapes from patterns, and ways to show the same
//! values through a view.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;

use espalier_tensor::{DType, Tensor, ops};

/// SplitMix64: enough for test data, and the same everywhere.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// In `low..high`.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        let unit = (self.next() >> 11) as f64 / (1u64 << 53) as f64;
        low + (high - low) * unit
    }
}

/// Which values an operation is tried on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Domain {
    /// -2 to 2.
    Any,
    /// 0.3 to 3: for logarithms, roots, divisors.
    Positive,
    /// -0.9 to 0.9.
    Unit,
    /// All different by at least 0.3, none nearer to 0 than 0.15: for operations with kinks or an order.
    Distinct,
}

impl Domain {
    pub fn values(self, n: usize, rng: &mut Rng) -> Vec<f64> {
        match self {
            Domain::Any => (0..n).map(|_| rng.between(-2.0, 2.0)).collect(),
            Domain::Positive => (0..n).map(|_| rng.between(0.3, 3.0)).collect(),
            Domain::Unit => (0..n).map(|_| rng.between(-0.9, 0.9)).collect(),
            Domain::Distinct => {
                let mut grid: Vec<f64> = (0..n)
                    .map(|i| (i as f64 - (n / 2) as f64 + 0.5) * 0.3)
                    .collect();
                for i in (1..n).rev() {
                    grid.swap(i, rng.below(i + 1));
                }
                grid
            }
        }
    }
}

/// Sizes from a pattern such as "b 1 m 3": a letter is one random size in a trial, a number is itself.
pub fn shape(
    pattern: &str,
    sizes: &mut BTreeMap<String, usize>,
    max: usize,
    rng: &mut Rng,
) -> Vec<usize> {
    pattern
        .split_whitespace()
        .map(|word| match word.parse() {
            Ok(size) => size,
            Err(_) => *sizes
                .entry(word.to_string())
                .or_insert_with(|| 1 + rng.below(max)),
        })
        .collect()
}

/// A way to lay a tensor out without changing what it holds.
#[derive(Clone, Copy, Debug)]
pub enum Show {
    /// Row-major.
    Contiguous,
    /// Stored with its axes reversed, and permuted back.
    Transposed,
    /// The middle of a larger tensor along its last axis.
    Sliced,
}

pub const SHOWS: [Show; 3] = [Show::Contiguous, Show::Transposed, Show::Sliced];

/// The stored tensor (what a leaf would be) for `values` of `shape` shown this way.
pub fn store(show: Show, values: &[f64], shape: &[usize], dtype: DType) -> Tensor {
    let plain = Tensor::from_f64s(values, shape, dtype).unwrap();
    match show {
        Show::Contiguous => plain,
        Show::Transposed => {
            let axes: Vec<usize> = (0..shape.len()).rev().collect();
            let reversed = ops::permute_dims(&plain, &axes).unwrap();
            Tensor::from_f64s(&reversed.to_list().unwrap(), reversed.shape(), dtype).unwrap()
        }
        Show::Sliced if shape.is_empty() => plain,
        Show::Sliced => {
            let mut edge = shape.to_vec();
            *edge.last_mut().unwrap() = 2;
            let edge = Tensor::full(&edge, 1.0, dtype).unwrap();
            let edge = ops::astype(&edge, dtype).unwrap();
            ops::concat(&[&edge, &plain, &edge], -1).unwrap()
        }
    }
}

/// The tensor itself, from its stored form; gradients flow back to that.
pub fn shown(show: Show, stored: &Tensor) -> Tensor {
    match show {
        Show::Contiguous => stored.clone(),
        Show::Transposed => {
            let axes: Vec<usize> = (0..stored.rank()).rev().collect();
            ops::permute_dims(stored, &axes).unwrap()
        }
        Show::Sliced if stored.rank() == 0 => stored.clone(),
        Show::Sliced => {
            let size = stored.shape()[stored.rank() - 1] as isize;
            ops::slice(stored, -1, 2, size - 2).unwrap()
        }
    }
}
