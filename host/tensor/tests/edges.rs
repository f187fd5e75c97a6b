#![allow(clippy::unwrap_used)]
//! Fast kernels at the edges of their vectors, tiles, blocks and threads, beside loops that anybody can check, on
//! numbers among which are NaN, both infinities, both zeros and numbers below the normal range.
//!
//! Sizes: vectors hold 16 numbers, sums take 64 at a time, softmax and norms whole rows, products are cut at 256 and
//! optimisers at 4096, maps at 16 * 1024, and from 64 * 1024 on threads share the work.

mod common;

use common::{Rng, SHOWS, shown, store};
use espalier_tensor::optim::{Adam, Sgd, adam_step, sgd_step};
use espalier_tensor::threads::Pool;
use espalier_tensor::{DType, Result, Tensor, nn, ops};

/// f32 numbers as f64: mostly ordinary, now and then special. The last one overflows in many functions, and is left
/// out where what comes of that depends on the order of additions.
fn numbers(n: usize, special: bool, rng: &mut Rng) -> Vec<f64> {
    chosen(n, if special { 8 } else { 0 }, rng)
}

fn chosen(n: usize, specials: usize, rng: &mut Rng) -> Vec<f64> {
    const SPECIAL: [f32; 8] = [
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        0.0,
        -0.0,
        1e-40,
        -3e-45,
        3e38,
    ];
    (0..n)
        .map(|_| {
            let one = if specials > 0 && rng.below(41) == 0 {
                SPECIAL[rng.below(specials)]
            } else {
                rng.between(-3.0, 3.0) as f32
            };
            f64::from(one)
        })
        .collect()
}

fn plain(values: &[f64], shape: &[usize]) -> Tensor {
    Tensor::from_f64s(values, shape, DType::F32).unwrap()
}

/// Whether an f32 result is the expected number: within `relative` of it or of `scale`, the largest thing that was
/// added up on the way; of one kind with it where it is not a finite f32.
fn agrees(found: f64, expected: f64, scale: f64, relative: f64) -> bool {
    if expected.is_nan() {
        return found.is_nan();
    }
    let rounded = f64::from(expected as f32);
    // Near the end of the range, one rounding decides between the largest number and infinity.
    let edge = expected.abs() > 3.4e38 && found.abs() > 3.4e38;
    let apart = (found - expected).abs();
    found == rounded
        || edge && found.signum() == rounded.signum()
        || apart <= relative * scale.max(expected.abs()) + 3e-45
}

fn all_agree(what: &str, found: &Tensor, expected: &[(f64, f64)], relative: f64) {
    let found = found.to_list().unwrap();
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (found, (expected, scale))) in found.iter().zip(expected).enumerate() {
        assert!(
            agrees(*found, *expected, *scale, relative),
            "{what}: element {i} is {found}, expected {expected}"
        );
    }
}

const LENGTHS: [usize; 22] = [
    0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 127, 129, 255, 257, 512, 1023, 4095, 4097,
];
const LONG: [usize; 4] = [16_383, 16_385, 65_537, 131_073];

#[test]
fn maps_at_the_edges_of_vectors_blocks_and_threads() {
    type Engine = fn(&Tensor) -> Result<Tensor>;
    /// Name, engine, reference, units of 2^-24 allowed.
    type Case = (&'static str, Engine, fn(f64) -> f64, f64);
    let cases: [Case; 13] = [
        ("exp", ops::exp, f64::exp, 4.0),
        ("expm1", ops::expm1, f64::exp_m1, 6.0),
        ("log", ops::log, f64::ln, 4.0),
        ("sqrt", ops::sqrt, f64::sqrt, 2.0),
        ("sin", ops::sin, f64::sin, 4.0),
        ("cos", ops::cos, f64::cos, 4.0),
        ("tanh", ops::tanh, f64::tanh, 12.0),
        ("sigmoid", ops::sigmoid, |x| 1.0 / (1.0 + (-x).exp()), 8.0),
        ("abs", ops::abs, f64::abs, 0.0),
        (
            "relu",
            ops::relu,
            |x| if x > 0.0 || x.is_nan() { x } else { 0.0 },
            0.0,
        ),
        (
            "softplus",
            ops::softplus,
            |x| x.max(0.0) + (-x.abs()).exp().ln_1p() + 0.0 * x.clamp(-1.0, 1.0),
            8.0,
        ),
        ("silu", nn::silu, |x| x * (1.0 / (1.0 + (-x).exp())), 12.0),
        ("square", |x| ops::multiply(x, x), |x| x * x, 2.0),
    ];
    let mut rng = Rng(1);
    for (name, engine, naive, units) in cases {
        for n in LENGTHS.into_iter().chain(LONG) {
            let mut values = numbers(n, true, &mut rng);
            // Angles for which the fast way is not taken, in one group of 64.
            if n > 100 {
                values[70] = 1e9;
            }
            for v in &mut values {
                *v = f64::from(*v as f32);
            }
            let expected: Vec<_> = values.iter().map(|&v| (naive(v), 0.0)).collect();
            for show in SHOWS {
                let x = shown(show, &store(show, &values, &[n], DType::F32));
                let what = format!("{name} of {n} shown {show:?}");
                all_agree(&what, &engine(&x).unwrap(), &expected, units / 16_777_216.0);
            }
        }
    }
}

#[test]
fn gelu_and_its_slope_at_the_edges() {
    let mut rng = Rng(2);
    for n in LENGTHS.into_iter().chain(LONG) {
        let values = numbers(n, false, &mut rng);
        let phi = |x: f64| 0.5 * (1.0 + libm::erf(x / 2f64.sqrt()));
        let density = |x: f64| (-x * x / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
        let x = plain(&values, &[n]).with_requires_grad();
        let y = ops::gelu(&x).unwrap();
        let expected: Vec<_> = values.iter().map(|&x| (x * phi(x), 1.0)).collect();
        all_agree(&format!("gelu of {n}"), &y, &expected, 4e-7);
        let ones = Tensor::ones(&[n], DType::F32).unwrap();
        let slope = espalier_tensor::autograd::vjp(&[&y], &[&ones], &[&x]).unwrap();
        let expected: Vec<_> = values
            .iter()
            .map(|&x| (phi(x) + x * density(x), 1.0))
            .collect();
        all_agree(&format!("slope of gelu of {n}"), &slope[0], &expected, 1e-6);
    }
}

#[test]
fn sums_and_maxima_at_the_edges_of_lanes_rows_and_parts() {
    let mut rng = Rng(3);
    let mut check = |rows: usize, columns: usize, special: bool| {
        let values = numbers(rows * columns, special, &mut rng);
        let add = |line: &[f64]| {
            let total: f64 = line.iter().sum();
            (total, line.iter().map(|v| v.abs()).sum())
        };
        let line = |j: usize| -> Vec<f64> { (0..rows).map(|i| values[i * columns + j]).collect() };
        let down: Vec<_> = (0..columns).map(|j| add(&line(j))).collect();
        let across: Vec<_> = (0..rows)
            .map(|i| add(&values[i * columns..][..columns]))
            .collect();
        for show in SHOWS {
            let x = shown(show, &store(show, &values, &[rows, columns], DType::F32));
            let what = format!("{rows} x {columns} shown {show:?}");
            all_agree(&what, &ops::sum(&x, &[1], false).unwrap(), &across, 1e-7);
            all_agree(&what, &ops::sum(&x, &[0], false).unwrap(), &down, 1e-7);
            all_agree(
                &what,
                &ops::sum(&x, &[], false).unwrap(),
                &[add(&values)],
                1e-7,
            );
            if columns > 0 {
                let largest = |line: &[f64]| {
                    let any = line.iter().any(|v| v.is_nan());
                    let most = line.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    (if any { f64::NAN } else { most }, 0.0)
                };
                let most: Vec<_> = (0..rows)
                    .map(|i| largest(&values[i * columns..][..columns]))
                    .collect();
                all_agree(&what, &ops::max(&x, 1, false).unwrap(), &most, 0.0);
            }
        }
    };
    for columns in LENGTHS {
        check(3, columns, false);
        check(5, columns, true);
    }
    for (rows, columns) in [
        (1, 65_537),
        (1, 131_073),
        (65, 1025),
        (1025, 65),
        (4097, 17),
        (131, 512),
    ] {
        check(rows, columns, false);
        check(rows, columns, true);
    }
}

#[test]
fn products_at_the_edges_of_tiles() {
    let mut rng = Rng(4);
    let mut check = |m: usize, k: usize, n: usize, specials: usize| {
        let (a, b) = (
            chosen(m * k, specials, &mut rng),
            chosen(k * n, specials, &mut rng),
        );
        let bias = numbers(n, false, &mut rng);
        let mut product = vec![(0.0, 0.0); m * n];
        for i in 0..m {
            for l in 0..k {
                for j in 0..n {
                    let term = a[i * k + l] * b[l * n + j];
                    product[i * n + j].0 += term;
                    product[i * n + j].1 += term.abs();
                }
            }
        }
        let close = |what: &str, found: &Tensor, plus: bool| {
            for (i, found) in found.to_list().unwrap().into_iter().enumerate() {
                let (mut want, scale) = product[i];
                want += if plus { bias[i % n] } else { 0.0 };
                assert!(
                    agrees(found, want, scale + 3.0, 4e-7 * (k as f64).sqrt()),
                    "{what}: element {i} is {found}, expected {want}"
                );
            }
        };
        for (left, right) in [(0, 0), (1, 1), (2, 0), (0, 1), (1, 2)] {
            let (left, right) = (SHOWS[left], SHOWS[right]);
            let x = shown(left, &store(left, &a, &[m, k], DType::F32));
            let y = shown(right, &store(right, &b, &[k, n], DType::F32));
            let what = format!("{m} x {k} x {n}, shown {left:?} and {right:?}");
            close(&what, &ops::matmul(&x, &y).unwrap(), false);
            let w = ops::permute_dims(&y, &[1, 0]).unwrap();
            let linear = nn::linear(&x, &w, Some(&plain(&bias, &[n]))).unwrap();
            close(&format!("linear {what}"), &linear, true);
        }
    };
    for (m, k, n) in [
        (1, 1, 1),
        (1, 17, 65),
        (6, 16, 64),
        (7, 15, 63),
        (5, 33, 49),
        (13, 1, 97),
        (31, 64, 129),
        (32, 65, 31),
        (97, 3, 48),
        (128, 32, 16),
        (129, 7, 130),
        (255, 20, 17),
        (257, 19, 33),
        (33, 513, 34),
        (16, 257, 257),
    ] {
        check(m, k, n, 0);
        check(m, k, n, 7);
    }
}

#[test]
fn rows_at_the_edges_of_vectors() {
    let mut rng = Rng(5);
    for columns in [1, 2, 15, 16, 17, 31, 63, 64, 65, 129, 257, 1025, 4097] {
        for rows in [1, 3, 70] {
            for special in [false, true] {
                let values = numbers(rows * columns, special, &mut rng);
                let x = plain(&values, &[rows, columns]);
                let lines = || values.chunks_exact(columns);
                let what = format!("{rows} x {columns}");
                let softmax: Vec<_> = lines().flat_map(softmax_of).map(|p| (p, 0.0)).collect();
                let found = ops::softmax(&x, -1).unwrap();
                all_agree(&format!("softmax {what}"), &found, &softmax, 2e-6);
                let logs: Vec<_> = lines().flat_map(log_softmax_of).map(|p| (p, 1.0)).collect();
                let found = ops::log_softmax(&x, -1).unwrap();
                all_agree(&format!("log_softmax {what}"), &found, &logs, 2e-6);
                let targets: Vec<i64> = (0..rows).map(|i| (i * 7 % columns) as i64).collect();
                let picked = targets.iter().enumerate();
                let losses: Vec<_> = picked
                    .map(|(i, &c)| (-logs[i * columns + c as usize].0, 1.0))
                    .collect();
                let targets = Tensor::from_vec(targets, &[rows]).unwrap();
                let found = ops::cross_entropy(&x, &targets).unwrap();
                all_agree(&format!("cross_entropy {what}"), &found, &losses, 2e-6);
                if !special {
                    let norms: Vec<_> = lines().flat_map(norm_of).map(|y| (y, 4.0)).collect();
                    let found = ops::layer_norm(&x, &[-1], None, None, 1e-5).unwrap();
                    all_agree(&format!("layer_norm {what}"), &found, &norms, 4e-6);
                }
            }
        }
    }
}

fn most(line: &[f64]) -> f64 {
    line.iter().copied().fold(f64::NEG_INFINITY, f64::max)
}

/// NaN for a row with NaN or +inf, as `exp(x - max)` gives it.
fn softmax_of(line: &[f64]) -> Vec<f64> {
    let (top, any) = (most(line), line.iter().any(|v| v.is_nan()));
    let total: f64 = line.iter().map(|v| (v - top).exp()).sum();
    let one = |v: &f64| {
        if any {
            f64::NAN
        } else {
            (v - top).exp() / total
        }
    };
    line.iter().map(one).collect()
}

fn log_softmax_of(line: &[f64]) -> Vec<f64> {
    let (top, any) = (most(line), line.iter().any(|v| v.is_nan()));
    let total: f64 = line.iter().map(|v| (v - top).exp()).sum();
    let one = |v: &f64| if any { f64::NAN } else { v - top - total.ln() };
    line.iter().map(one).collect()
}

fn norm_of(line: &[f64]) -> Vec<f64> {
    let n = line.len() as f64;
    let mean = line.iter().sum::<f64>() / n;
    let variance = line.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
    line.iter()
        .map(|v| (v - mean) / (variance + 1e-5).sqrt())
        .collect()
}

#[test]
fn optimisers_at_the_edges_of_blocks_and_threads() {
    const SGD: Sgd = Sgd {
        lr: 0.1,
        momentum: 0.9,
        weight_decay: 0.01,
        nesterov: false,
    };
    const ADAM: Adam = Adam {
        lr: 0.01,
        beta1: 0.9,
        beta2: 0.99,
        eps: 1e-6,
        weight_decay: 0.1,
        decoupled: true,
    };
    let mut rng = Rng(6);
    let sizes = [
        1, 15, 17, 4095, 4096, 4097, 8191, 65_535, 65_536, 65_537, 70_001,
    ];
    for (n, threads) in sizes.into_iter().zip([1, 2, 3].into_iter().cycle()) {
        let (start, grad) = (numbers(n, false, &mut rng), chosen(n, 7, &mut rng));
        let (mut x, g, mut buf) = (plain(&start, &[n]), plain(&grad, &[n]), None);
        let (mut y, mut m, mut v) = (plain(&start, &[n]), None, None);
        Pool::new(threads).unwrap().install(|| {
            for step in 1..=2 {
                sgd_step(&mut x, &g, &mut buf, &SGD, None).unwrap();
                adam_step(&mut y, &g, &mut m, &mut v, step, &ADAM, None).unwrap();
            }
        });
        let (mut by_sgd, mut by_adam) = (Vec::new(), Vec::new());
        for (&start, &grad) in start.iter().zip(&grad) {
            let (mut x, mut buf) = (start, 0.0);
            let (mut y, mut m, mut v) = (start, 0.0, 0.0);
            for step in 1..=2 {
                let g = grad + 0.01 * x;
                buf = if step == 1 { g } else { 0.9 * buf + g };
                x -= 0.1 * buf;
                m += 0.1 * (grad - m);
                // Rounded as the state is: the square of a number below the normal range is 0.
                v = f64::from((0.99 * v + 0.01 * grad * grad) as f32);
                let (first, second) = (1.0 - 0.9f64.powi(step), 1.0 - 0.99f64.powi(step));
                y = y * (1.0 - 0.01 * 0.1) - 0.01 / first * (m / ((v / second).sqrt() + 1e-6));
            }
            by_sgd.push((x, 4.0));
            by_adam.push((y, 4.0));
        }
        all_agree(&format!("sgd of {n}"), &x, &by_sgd, 1e-6);
        all_agree(&format!("adam of {n}"), &y, &by_adam, 1e-5);
    }
}
