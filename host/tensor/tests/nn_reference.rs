#![allow(clippy::unwrap_used)]
//! The layer operations against plain loops written from their definitions, the same bits on any number of
//! threads, and an error for every misuse.

use espalier_tensor::autograd::grad;
use espalier_tensor::random::{Key, bits, normal, uniform};
use espalier_tensor::threads::Pool;
use espalier_tensor::{DType, Error, Result, Tensor, nn, ops};

fn random(word: u64, shape: &[usize]) -> Tensor {
    normal(&Key::new(&[word]), shape, DType::F64).unwrap()
}

/// Random small sizes: `size(i)` in 1..=most.
fn sizes(case: u64, most: &[usize]) -> Vec<usize> {
    let words = bits(&Key::new(&[1000, case]), most.len());
    words
        .iter()
        .zip(most)
        .map(|(w, &m)| 1 + (w % m as u64) as usize)
        .collect()
}

fn list(t: &Tensor) -> Vec<f64> {
    t.to_list().unwrap()
}

fn tensor(values: &[f64], shape: &[usize]) -> Tensor {
    Tensor::from_f64s(values, shape, DType::F64).unwrap()
}

/// Equal within `tolerance` (relative above 1); NaN and infinities must be at the same places.
fn same(what: &str, got: &Tensor, want: &[f64], shape: &[usize], tolerance: f64) {
    assert_eq!(got.shape(), shape, "{what}");
    for (i, (a, b)) in list(got).iter().zip(want).enumerate() {
        let equal =
            (a.is_nan() && b.is_nan()) || a == b || (a - b).abs() <= tolerance * (1.0 + b.abs());
        assert!(equal, "{what}, element {i}: {a}, not {b}");
    }
}

/// The same tensor stored with its axes in reverse order.
fn backwards(t: &Tensor) -> Tensor {
    let axes: Vec<usize> = (0..t.rank()).rev().collect();
    let reversed = ops::permute_dims(t, &axes).unwrap().contiguous().unwrap();
    ops::permute_dims(&reversed, &axes).unwrap()
}

/// Compares `f` with `want` in f64, then in f32 on the rounded input.
fn in_both_types(
    what: &str,
    inputs: &[&Tensor],
    shape: &[usize],
    f: impl Fn(&[Tensor]) -> Result<Tensor>,
    want: impl Fn(&[Vec<f64>]) -> Vec<f64>,
) {
    for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 2e-5)] {
        let inputs: Vec<Tensor> = inputs
            .iter()
            .map(|t| ops::astype(t, dtype).unwrap())
            .collect();
        let lists: Vec<Vec<f64>> = inputs.iter().map(list).collect();
        let got = f(&inputs).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(got.dtype(), dtype, "{what}");
        same(
            &format!("{what} in {dtype}"),
            &got,
            &want(&lists),
            shape,
            tolerance,
        );
        // The same bits through views with gaps.
        let views: Vec<Tensor> = inputs.iter().map(backwards).collect();
        let seen = f(&views).unwrap_or_else(|e| panic!("{what}, through views: {e}"));
        for (a, b) in list(&seen).iter().zip(list(&got)) {
            assert!(
                a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan(),
                "{what}, views: {a}, not {b}"
            );
        }
    }
}

/// With NaN and infinities at a few places.
fn spoiled(t: &Tensor) -> Tensor {
    let mut values = list(t);
    let n = values.len();
    if n > 0 {
        values[n / 2] = f64::NAN;
        values[n / 3] = f64::INFINITY;
        values[n / 5] = f64::NEG_INFINITY;
    }
    tensor(&values, t.shape())
}

#[test]
fn convolution_is_the_sum_of_products() {
    for case in 0..30 {
        let s = sizes(case, &[3, 3, 7, 7, 3, 3, 3, 2, 2, 2, 2, 2]);
        let groups = s[9];
        let (n, c, h, w, o) = (
            s[0] - usize::from(case % 10 == 0),
            s[1] * groups,
            s[2],
            s[3],
            s[4] * groups,
        );
        let (kh, kw, stride) = (s[5], s[6], (s[7], s[8]));
        let (padding, dilation) = ((kh, kw / 2), (s[10], s[11]));
        let out = |size: usize, k: usize, s: usize, p: usize, d: usize| {
            (size + 2 * p)
                .checked_sub(d * (k - 1) + 1)
                .map(|room| room / s + 1)
        };
        let (Some(oh), Some(ow)) = (
            out(h, kh, stride.0, padding.0, dilation.0),
            out(w, kw, stride.1, padding.1, dilation.1),
        ) else {
            continue;
        };
        let x = random(case, &[n, c, h, w]);
        let x = if case % 3 == 1 { spoiled(&x) } else { x };
        let (weight, bias) = (
            random(case + 100, &[o, c / groups, kh, kw]),
            random(case + 200, &[o]),
        );
        in_both_types(
            &format!("case {case}"),
            &[&x, &weight, &bias],
            &[n, o, oh, ow],
            |t| nn::conv2d(&t[0], &t[1], Some(&t[2]), stride, padding, dilation, groups),
            |t| {
                let mut y = Vec::new();
                for at in 0..n * o * oh * ow {
                    let (b, channel, r, q) = (
                        at / (o * oh * ow),
                        at / (oh * ow) % o,
                        at / ow % oh,
                        at % ow,
                    );
                    let mut sum = t[2][channel];
                    for p in 0..c / groups * kh * kw {
                        let (i, j) = (p / kw % kh, p % kw);
                        let from = channel / (o / groups) * (c / groups) + p / (kh * kw);
                        let line = (r * stride.0 + i * dilation.0).wrapping_sub(padding.0);
                        let column = (q * stride.1 + j * dilation.1).wrapping_sub(padding.1);
                        if line < h && column < w {
                            let weight = t[1][channel * (c / groups) * kh * kw + p];
                            sum += t[0][((b * c + from) * h + line) * w + column] * weight;
                        }
                    }
                    y.push(sum);
                }
                y
            },
        );
    }
}

#[test]
fn pooling_walks_over_windows() {
    for case in 0..30 {
        let s = sizes(case, &[3, 3, 8, 8, 3, 3, 3, 3]);
        let (n, c, h, w) = (s[0] - usize::from(case % 10 == 0), s[1], s[2], s[3]);
        let (kernel, stride) = ((s[4], s[5]), (s[6], s[7]));
        let (kernel, stride) = if case % 4 == 0 {
            ((2, 2), (2, 2))
        } else {
            (kernel, stride)
        };
        let padding = if case % 4 == 0 {
            (0, 0)
        } else {
            (kernel.0 / 2, kernel.1 / 2)
        };
        if h + 2 * padding.0 < kernel.0 || w + 2 * padding.1 < kernel.1 {
            continue;
        }
        let oh = (h + 2 * padding.0 - kernel.0) / stride.0 + 1;
        let ow = (w + 2 * padding.1 - kernel.1) / stride.1 + 1;
        let x = random(case, &[n, c, h, w]);
        let x = if case % 3 == 1 { spoiled(&x) } else { x };
        let windows = |x: &[f64], fold: &dyn Fn(&[f64]) -> f64| -> Vec<f64> {
            let window = |at: usize| {
                let (plane, r, q) = (at / (oh * ow), at / ow % oh, at % ow);
                let mut inside = Vec::new();
                for i in 0..kernel.0 * kernel.1 {
                    let line = (r * stride.0 + i / kernel.1).wrapping_sub(padding.0);
                    let column = (q * stride.1 + i % kernel.1).wrapping_sub(padding.1);
                    if line < h && column < w {
                        inside.push(x[(plane * h + line) * w + column]);
                    }
                }
                fold(&inside)
            };
            (0..n * c * oh * ow).map(window).collect()
        };
        let largest = |v: &[f64]| {
            v.iter().fold(f64::NEG_INFINITY, |a, &b| {
                if a.is_nan() || b.is_nan() {
                    f64::NAN
                } else {
                    a.max(b)
                }
            })
        };
        let mean = |v: &[f64]| v.iter().sum::<f64>() / (kernel.0 * kernel.1) as f64;
        let name = format!("case {case}: {kernel:?} {stride:?} over {h} x {w}");
        let shape = [n, c, oh, ow];
        in_both_types(
            &name,
            &[&x],
            &shape,
            |t| nn::max_pool2d(&t[0], kernel, stride, padding),
            |t| windows(&t[0], &largest),
        );
        in_both_types(
            &name,
            &[&x],
            &shape,
            |t| nn::avg_pool2d(&t[0], kernel, stride, padding),
            |t| windows(&t[0], &mean),
        );
    }
}

fn mean_and_variance(v: &[f64]) -> (f64, f64) {
    let mean = v.iter().sum::<f64>() / v.len() as f64;
    (
        mean,
        v.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / v.len() as f64,
    )
}

#[test]
fn batch_norm_standardises_each_channel() {
    for case in 0..20 {
        let s = sizes(case, &[4, 70, 3, 3]);
        let shape = if case % 2 == 0 {
            vec![s[0], s[1]]
        } else {
            s.clone()
        };
        let (n, c) = (s[0], s[1]);
        let rest: usize = shape[2..].iter().product();
        let x = random(case, &shape);
        let x = if case % 5 == 4 { spoiled(&x) } else { x };
        let (weight, bias) = (random(case + 100, &[c]), random(case + 200, &[c]));
        let channel = |x: &[f64], k: usize| -> Vec<f64> {
            (0..n)
                .flat_map(|i| x[(i * c + k) * rest..(i * c + k + 1) * rest].to_vec())
                .collect()
        };
        let eps = 0.01;
        let want = |t: &[Vec<f64>],
                    mean: &dyn Fn(usize) -> f64,
                    variance: &dyn Fn(usize) -> f64|
         -> Vec<f64> {
            (0..t[0].len())
                .map(|i| {
                    let k = i / rest % c;
                    (t[0][i] - mean(k)) / (variance(k) + eps).sqrt() * t[1][k] + t[2][k]
                })
                .collect()
        };
        in_both_types(
            "batch_norm",
            &[&x, &weight, &bias],
            &shape,
            |t| Ok(ops::batch_norm(&t[0], Some(&t[1]), Some(&t[2]), None, eps)?.0),
            |t| {
                let stats: Vec<(f64, f64)> = (0..c)
                    .map(|k| mean_and_variance(&channel(&t[0], k)))
                    .collect();
                want(t, &|k| stats[k].0, &|k| stats[k].1)
            },
        );
        let (_, mean, variance) = ops::batch_norm(&x, None, None, None, eps).unwrap();
        let stats: Vec<(f64, f64)> = (0..c)
            .map(|k| mean_and_variance(&channel(&list(&x), k)))
            .collect();
        same(
            "mean",
            &mean,
            &stats.iter().map(|s| s.0).collect::<Vec<_>>(),
            &[c],
            1e-12,
        );
        same(
            "variance",
            &variance,
            &stats.iter().map(|s| s.1).collect::<Vec<_>>(),
            &[c],
            1e-12,
        );
        let given = (
            random(case + 300, &[c]),
            uniform(&Key::new(&[case]), &[c], DType::F64).unwrap(),
        );
        let (y, m, v) = ops::batch_norm(
            &x,
            Some(&weight),
            Some(&bias),
            Some((&given.0, &given.1)),
            eps,
        )
        .unwrap();
        let (a, b) = (list(&given.0), list(&given.1));
        let lists = [list(&x), list(&weight), list(&bias)];
        same(
            "with statistics",
            &y,
            &want(&lists, &|k| a[k], &|k| b[k]),
            &shape,
            1e-12,
        );
        assert_eq!((list(&m), list(&v)), (a, b));
    }
}

#[test]
fn layer_norm_standardises_rows() {
    for case in 0..12 {
        let s = sizes(case, &[5, 40, 3]);
        let x = random(case, &s);
        let x = if case % 5 == 4 { spoiled(&x) } else { x };
        let (weight, bias) = (random(case + 100, &s[1..]), random(case + 200, &s[1..]));
        let row = s[1] * s[2];
        in_both_types(
            "layer_norm",
            &[&x, &weight, &bias],
            &s,
            |t| ops::layer_norm(&t[0], &[2, 1], Some(&t[1]), Some(&t[2]), 0.1),
            |t| {
                let normalise = |x: &[f64]| -> Vec<f64> {
                    let (mean, variance) = mean_and_variance(x);
                    let each = |(i, v): (usize, &f64)| {
                        (v - mean) / (variance + 0.1).sqrt() * t[1][i] + t[2][i]
                    };
                    x.iter().enumerate().map(each).collect()
                };
                t[0].chunks(row).flat_map(normalise).collect()
            },
        );
    }
    let constant = Tensor::full(&[2, 5], 3.0, DType::F32).unwrap();
    let y = ops::layer_norm(&constant, &[-1], None, None, 1e-5).unwrap();
    assert_eq!(list(&y), [0.0; 10], "a constant row gives zeros");
}

#[test]
fn softmax_and_its_logarithm_by_definition() {
    for case in 0..12 {
        let s = sizes(case, &[4, 50, 3]);
        let x = ops::multiply(&random(case, &s), 20.0).unwrap();
        let column = |x: &[f64], i: usize| -> (Vec<f64>, usize) {
            let (outer, inner) = (i / (s[1] * s[2]), i % s[2]);
            let values = (0..s[1])
                .map(|j| x[(outer * s[1] + j) * s[2] + inner])
                .collect();
            (values, i / s[2] % s[1])
        };
        let log = |x: &[f64], i: usize| {
            let (values, at) = column(x, i);
            let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            values[at] - max - values.iter().map(|v| (v - max).exp()).sum::<f64>().ln()
        };
        let n = x.numel();
        in_both_types(
            "softmax",
            &[&x],
            &s,
            |t| ops::softmax(&t[0], 1),
            |t| (0..n).map(|i| log(&t[0], i).exp()).collect(),
        );
        in_both_types(
            "log_softmax",
            &[&x],
            &s,
            |t| ops::log_softmax(&t[0], -2),
            |t| (0..n).map(|i| log(&t[0], i)).collect(),
        );
    }
}

#[test]
fn softmax_of_special_rows() {
    let (inf, nan) = (f64::INFINITY, f64::NAN);
    for dtype in [DType::F32, DType::F64] {
        let of = |row: &[f64]| {
            let t = Tensor::from_f64s(row, &[1, row.len()], dtype).unwrap();
            (
                list(&ops::softmax(&t, 1).unwrap()),
                list(&ops::log_softmax(&t, 1).unwrap()),
            )
        };
        assert_eq!(of(&[0.0, -inf, 0.0]).0, [0.5, 0.0, 0.5]);
        assert_eq!(of(&[0.0, -inf]).1, [0.0, -inf]);
        assert!(of(&[-inf, -inf]).0.iter().all(|v| v.is_nan()));
        assert!(of(&[1.0, nan, 2.0]).0.iter().all(|v| v.is_nan()));
        assert!(of(&[1.0, inf]).0[1].is_nan());
        assert_eq!(of(&[1000.0, -1000.0]).0, [1.0, 0.0]);
    }
}

#[test]
fn cross_entropy_by_definition() {
    for case in 0..12 {
        let s = sizes(case, &[6, 3, 20]);
        let x = random(case, &s);
        let rows = s[0] * s[1];
        let loss = |x: &[f64], p: &dyn Fn(usize) -> f64| -> f64 {
            let normaliser = x.iter().map(|v| v.exp()).sum::<f64>().ln();
            x.iter()
                .enumerate()
                .map(|(i, v)| {
                    if p(i) == 0.0 {
                        0.0
                    } else {
                        p(i) * (normaliser - v)
                    }
                })
                .sum()
        };
        let classes: Vec<i64> = bits(&Key::new(&[case]), rows)
            .iter()
            .map(|w| (w % s[2] as u64) as i64)
            .collect();
        let target = Tensor::from_vec(classes.clone(), &s[..2]).unwrap();
        in_both_types(
            "classes",
            &[&x],
            &s[..2],
            |t| ops::cross_entropy(&t[0], &target),
            |t| {
                let rows = t[0].chunks(s[2]).zip(&classes);
                rows.map(|(x, &c)| loss(x, &|i| f64::from(u8::from(i as i64 == c))))
                    .collect()
            },
        );
        let p = ops::softmax(&random(case + 50, &s), -1).unwrap();
        in_both_types(
            "distribution",
            &[&x, &p],
            &s[..2],
            |t| ops::cross_entropy(&t[0], &t[1]),
            |t| {
                t[0].chunks(s[2])
                    .zip(t[1].chunks(s[2]))
                    .map(|(x, p)| loss(x, &|i| p[i]))
                    .collect()
            },
        );
    }
}

#[test]
fn attention_by_definition() {
    for case in 0..12 {
        let s = sizes(case, &[2, 3, 9, 70, 5, 4]);
        let (b, heads, t, keys, d, e) = (s[0], s[1], s[2], s[3], s[4], s[5]);
        let causal = case % 2 == 1;
        let q = random(case, &[b, heads, t, d]);
        let k = random(case + 100, &[b, 1, keys, d]);
        let v = random(case + 200, &[heads, keys, e]);
        let bias = random(case + 300, &[heads, 1, keys]);
        in_both_types(
            &format!("case {case}: {s:?}"),
            &[&q, &k, &v, &bias],
            &[b, heads, t, e],
            |x| ops::scaled_dot_product_attention(&x[0], &x[1], &x[2], Some(&x[3]), causal),
            |x| {
                let mut out = Vec::new();
                for row in 0..b * heads * t {
                    let (sample, head, i) = (row / (heads * t), row / t % heads, row % t);
                    let seen = if causal { keys.min(i + 1) } else { keys };
                    let weight = |j: usize| {
                        let key = &x[1][(sample * keys + j) * d..];
                        let dot: f64 = x[0][row * d..(row + 1) * d]
                            .iter()
                            .zip(key)
                            .map(|(a, b)| a * b)
                            .sum();
                        (dot / (d as f64).sqrt() + x[3][head * keys + j]).exp()
                    };
                    let total: f64 = (0..seen).map(weight).sum();
                    for c in 0..e {
                        let value = |j: usize| weight(j) * x[2][(head * keys + j) * e + c];
                        out.push((0..seen).map(value).sum::<f64>() / total);
                    }
                }
                out
            },
        );
    }
}

#[test]
fn a_bias_of_minus_infinity_hides_a_key() {
    let (q, k, v) = (random(1, &[2, 3]), random(2, &[4, 3]), random(3, &[4, 2]));
    let hide = tensor(&[0.0, f64::NEG_INFINITY, 0.0, f64::NEG_INFINITY], &[4]);
    let hidden = ops::scaled_dot_product_attention(&q, &k, &v, Some(&hide), false).unwrap();
    let kept = Tensor::from_vec(vec![0i64, 2], &[2]).unwrap();
    let (k, v) = (
        ops::take(&k, &kept, 0).unwrap(),
        ops::take(&v, &kept, 0).unwrap(),
    );
    let without = ops::scaled_dot_product_attention(&q, &k, &v, None, false).unwrap();
    same("hidden keys", &hidden, &list(&without), &[2, 2], 1e-12);
}

#[test]
fn linear_layers_multiply_by_the_transpose() {
    for case in 0..12 {
        let s = sizes(case, &[20, 3, 40, 30]);
        let (x, w, b) = (
            random(case, &s[..3]),
            random(case + 100, &[s[3], s[2]]),
            random(case + 200, &[s[3]]),
        );
        in_both_types(
            "linear",
            &[&x, &w, &b],
            &[s[0], s[1], s[3]],
            |t| nn::linear(&t[0], &t[1], Some(&t[2])),
            |t| {
                let mut y = Vec::new();
                for x in t[0].chunks(s[2]) {
                    for (w, b) in t[1].chunks(s[2]).zip(&t[2]) {
                        y.push(b + x.iter().zip(w).map(|(x, w)| x * w).sum::<f64>());
                    }
                }
                y
            },
        );
    }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

#[test]
fn recurrent_layers_step_by_step() {
    for case in 0..8 {
        let s = sizes(case, &[6, 5, 4, 9]);
        let (n, t, f, h) = (s[0], s[1], s[2], s[3]);
        for gates in [1, 4] {
            let x = random(case, &[n, t, f]);
            let (wi, wh) = (
                random(case + 1, &[gates * h, f]),
                random(case + 2, &[gates * h, h]),
            );
            let (bi, bh) = (
                random(case + 3, &[gates * h]),
                random(case + 4, &[gates * h]),
            );
            let run = |v: &[Tensor]| match gates {
                1 => nn::rnn(&v[0], &v[1], &v[2], Some(&v[3]), Some(&v[4])),
                _ => nn::lstm(&v[0], &v[1], &v[2], Some(&v[3]), Some(&v[4])),
            };
            in_both_types(
                &format!("{gates} gates, {s:?}"),
                &[&x, &wi, &wh, &bi, &bh],
                &[n, t, h],
                run,
                |v| {
                    let dot = |w: &[f64], x: &[f64], r: usize| -> f64 {
                        w[r * x.len()..(r + 1) * x.len()]
                            .iter()
                            .zip(x)
                            .map(|(a, b)| a * b)
                            .sum()
                    };
                    let mut out = Vec::new();
                    for sample in 0..n {
                        let (mut hidden, mut cell) = (vec![0.0; h], vec![0.0; h]);
                        for step in 0..t {
                            let x = &v[0][(sample * t + step) * f..(sample * t + step + 1) * f];
                            let z: Vec<f64> = (0..gates * h)
                                .map(|r| {
                                    dot(&v[1], x, r) + v[3][r] + dot(&v[2], &hidden, r) + v[4][r]
                                })
                                .collect();
                            for j in 0..h {
                                hidden[j] = if gates == 1 {
                                    z[j].tanh()
                                } else {
                                    cell[j] = sigmoid(z[h + j]) * cell[j]
                                        + sigmoid(z[j]) * z[2 * h + j].tanh();
                                    sigmoid(z[3 * h + j]) * cell[j].tanh()
                                };
                            }
                            out.extend(&hidden);
                        }
                    }
                    out
                },
            );
        }
    }
}

#[test]
fn activations_by_definition() {
    let x = spoiled(&ops::multiply(&random(1, &[60]), 3.0).unwrap());
    let each = |name: &str, f: &dyn Fn(&Tensor) -> Result<Tensor>, want: &dyn Fn(f64) -> f64| {
        in_both_types(
            name,
            &[&x],
            &[60],
            |t| f(&t[0]),
            |t| t[0].iter().map(|&v| want(v)).collect(),
        );
    };
    each("elu", &|t| nn::elu(t, 0.5), &|v| {
        if v > 0.0 { v } else { 0.5 * v.exp_m1() }
    });
    each("hardtanh", &|t| nn::hardtanh(t, -1.0, 2.0), &|v| {
        if v.is_nan() { v } else { v.clamp(-1.0, 2.0) }
    });
    each("silu", &|t| nn::silu(t), &|v| v * sigmoid(v));
}

#[test]
fn group_sort_sorts_neighbours() {
    let x = tensor(
        &[3.0, 1.0, 2.0, 9.0, 8.0, 7.0, 0.0, 0.0, -1.0, 5.0, 4.0, 6.0],
        &[2, 6],
    );
    let y = nn::group_sort(&x, 3).unwrap();
    assert_eq!(
        list(&y),
        [1.0, 2.0, 3.0, 7.0, 8.0, 9.0, -1.0, 0.0, 0.0, 4.0, 5.0, 6.0]
    );
}

#[test]
fn dropout_zeros_a_share_and_keeps_the_mean() {
    let x = Tensor::ones(&[100, 100], DType::F32).unwrap();
    let y = list(&nn::dropout(&x, 0.25, &Key::new(&[1])).unwrap());
    let kept = y.iter().filter(|&&v| v != 0.0).count();
    // 7500 expected, spread sqrt(10000 * 0.25 * 0.75) = 43.
    assert!((7300..7700).contains(&kept), "{kept}");
    assert!(y.iter().all(|&v| v == 0.0 || (v - 4.0 / 3.0).abs() < 1e-6));
    let again = |key: &[u64]| list(&nn::dropout(&x, 0.25, &Key::new(key)).unwrap());
    assert_eq!(y, again(&[1]));
    assert_ne!(y, again(&[2]));
    assert_eq!(
        list(&nn::dropout(&x, 0.0, &Key::new(&[1])).unwrap()),
        list(&x)
    );
}

#[test]
fn an_empty_batch_gives_an_empty_result_and_zero_gradients() {
    let make = |shape: &[usize]| random(1, shape).with_requires_grad();
    let check = |what: &str, y: Tensor, shape: &[usize], leaves: &[&Tensor]| {
        assert_eq!(y.shape(), shape, "{what}");
        let u = Tensor::zeros(shape, DType::F64).unwrap();
        for g in grad(&[&y], &[Some(&u)], leaves, false, false).unwrap() {
            assert!(list(&g).iter().all(|&v| v == 0.0), "{what}");
        }
    };
    let (x, w) = (make(&[0, 2, 5, 5]), make(&[3, 2, 3, 3]));
    check(
        "conv2d",
        ops::conv2d(&x, &w, (1, 1), (0, 0), (1, 1), 1).unwrap(),
        &[0, 3, 3, 3],
        &[&x, &w],
    );
    check(
        "max_pool2d",
        nn::max_pool2d(&x, (2, 2), (2, 2), (0, 0)).unwrap(),
        &[0, 2, 2, 2],
        &[&x],
    );
    check(
        "avg_pool2d",
        nn::avg_pool2d(&x, (2, 2), (2, 2), (0, 0)).unwrap(),
        &[0, 2, 2, 2],
        &[&x],
    );
    check(
        "layer_norm",
        ops::layer_norm(&x, &[1, 2, 3], None, None, 1e-5).unwrap(),
        &[0, 2, 5, 5],
        &[&x],
    );
    check(
        "softmax",
        ops::softmax(&x, 1).unwrap(),
        &[0, 2, 5, 5],
        &[&x],
    );
    check(
        "log_softmax",
        ops::log_softmax(&x, 1).unwrap(),
        &[0, 2, 5, 5],
        &[&x],
    );
    let y = ops::batch_norm(&x, None, None, None, 1e-5).unwrap().0;
    assert_eq!(y.shape(), [0, 2, 5, 5]);
    let (x, w) = (make(&[0, 4]), make(&[3, 4]));
    check(
        "linear",
        nn::linear(&x, &w, None).unwrap(),
        &[0, 3],
        &[&x, &w],
    );
    let classes = Tensor::zeros(&[0], DType::I64).unwrap();
    check(
        "cross_entropy",
        ops::cross_entropy(&x, &classes).unwrap(),
        &[0],
        &[&x],
    );
    check("group_sort", nn::group_sort(&x, 2).unwrap(), &[0, 4], &[&x]);
    let (x, w, r) = (make(&[0, 3, 4]), make(&[8, 4]), make(&[8, 2]));
    check(
        "lstm",
        nn::lstm(&x, &w, &r, None, None).unwrap(),
        &[0, 3, 2],
        &[&x, &w, &r],
    );
    let y = ops::scaled_dot_product_attention(&x, &x, &x, None, true).unwrap();
    check("attention", y, &[0, 3, 4], &[&x]);
    // No features or no channels: an empty sum is zero.
    let y = nn::linear(&make(&[2, 0]), &make(&[3, 0]), None).unwrap();
    assert_eq!(list(&y), [0.0; 6]);
    let y = ops::conv2d(
        &make(&[1, 0, 3, 3]),
        &make(&[2, 0, 2, 2]),
        (1, 1),
        (0, 0),
        (1, 1),
        1,
    )
    .unwrap();
    assert_eq!(list(&y), [0.0; 8]);
}

#[test]
fn the_number_of_threads_does_not_show() {
    let run = |threads: usize| -> Vec<Vec<f32>> {
        Pool::new(threads).unwrap().install(|| {
            let make = |word: u64, shape: &[usize]| {
                normal(&Key::new(&[word]), shape, DType::F32)
                    .unwrap()
                    .with_requires_grad()
            };
            let mut results = Vec::new();
            let mut keep = |leaves: &[&Tensor], y: Tensor| {
                let u = normal(&Key::new(&[99]), y.shape(), DType::F32).unwrap();
                results.push(y.to_vec::<f32>().unwrap());
                for g in grad(&[&y], &[Some(&u)], leaves, false, false).unwrap() {
                    results.push(g.to_vec::<f32>().unwrap());
                }
            };
            let (x, w, b) = (
                make(1, &[13, 6, 20, 21]),
                make(2, &[20, 3, 3, 3]),
                make(3, &[20]),
            );
            keep(
                &[&x, &w, &b],
                nn::conv2d(&x, &w, Some(&b), (1, 1), (1, 1), (1, 1), 2).unwrap(),
            );
            let (one, large) = (make(4, &[1, 6, 60, 61]), make(5, &[40, 6, 3, 3]));
            keep(
                &[&one, &large],
                ops::conv2d(&one, &large, (1, 1), (1, 1), (1, 1), 1).unwrap(),
            );
            let wide = make(6, &[20, 16, 24, 24]);
            keep(
                &[&wide],
                nn::max_pool2d(&wide, (2, 2), (2, 2), (0, 0)).unwrap(),
            );
            keep(
                &[&wide],
                nn::max_pool2d(&wide, (3, 3), (1, 1), (1, 1)).unwrap(),
            );
            keep(
                &[&wide],
                nn::avg_pool2d(&wide, (3, 3), (2, 2), (1, 1)).unwrap(),
            );
            let scale = make(7, &[16]);
            let y = ops::batch_norm(&wide, Some(&scale), None, None, 1e-5)
                .unwrap()
                .0;
            keep(&[&wide, &scale], y);
            let rows = make(8, &[700, 300]);
            let (g, b) = (make(9, &[300]), make(10, &[300]));
            keep(
                &[&rows, &g, &b],
                ops::layer_norm(&rows, &[1], Some(&g), Some(&b), 1e-5).unwrap(),
            );
            keep(
                &[&rows, &g],
                ops::batch_norm(&rows, Some(&g), None, None, 1e-5)
                    .unwrap()
                    .0,
            );
            keep(&[&rows], ops::softmax(&rows, 1).unwrap());
            keep(&[&rows], ops::log_softmax(&rows, 0).unwrap());
            let classes =
                Tensor::from_vec((0..700).map(|i| i * 7 % 300).collect::<Vec<i64>>(), &[700])
                    .unwrap();
            keep(&[&rows], ops::cross_entropy(&rows, &classes).unwrap());
            let w = make(11, &[130, 300]);
            keep(&[&rows, &w], nn::linear(&rows, &w, None).unwrap());
            let q = make(12, &[9, 100, 16]);
            keep(
                &[&q],
                ops::scaled_dot_product_attention(&q, &q, &q, None, true).unwrap(),
            );
            let (x, wi, wh) = (
                make(13, &[33, 12, 10]),
                make(14, &[80, 10]),
                make(15, &[80, 20]),
            );
            keep(&[&x, &wi, &wh], nn::lstm(&x, &wi, &wh, None, None).unwrap());
            results
        })
    };
    let one = run(1);
    for threads in [2, 3] {
        for (i, (a, b)) in one.iter().zip(run(threads)).enumerate() {
            assert!(
                *a == b,
                "result {i} differs between 1 and {threads} threads"
            );
        }
    }
}

#[test]
fn every_misuse_is_an_error_that_names_the_operation() {
    let t = |shape: &[usize]| random(1, shape);
    let i = |shape: &[usize]| Tensor::zeros(shape, DType::I64).unwrap();
    let one = (1, 1);
    let conv = |x: &Tensor, w: &Tensor, stride, dilation, groups| {
        ops::conv2d(x, w, stride, (0, 0), dilation, groups).map(|_| ())
    };
    let (x, w) = (t(&[1, 4, 5, 5]), t(&[6, 4, 3, 3]));
    let stats = (t(&[4]), t(&[3]));
    let key = Key::new(&[]);
    let negative = Tensor::from_vec(vec![-1i64, 0], &[2]).unwrap();
    let beyond = Tensor::from_vec(vec![0i64, 3], &[2]).unwrap();
    let attend = |q: &[usize], k: &[usize], v: &[usize], bias: Option<&Tensor>| {
        ops::scaled_dot_product_attention(&t(q), &t(k), &t(v), bias, false).map(|_| ())
    };
    let pool = |x: &Tensor, kernel, stride, padding| {
        nn::max_pool2d(x, kernel, stride, padding).map(|_| ())
    };
    let f32s = Tensor::zeros(&[6, 4, 3, 3], DType::F32).unwrap();
    let cases: Vec<(&str, &str, Result<()>)> = vec![
        (
            "conv2d",
            "[n, c, h, w]",
            conv(&t(&[4, 5, 5]), &w, one, one, 1),
        ),
        ("conv2d", "stride", conv(&x, &w, (0, 1), one, 1)),
        ("conv2d", "dilation", conv(&x, &w, one, (1, 0), 1)),
        ("conv2d", "groups", conv(&x, &w, one, one, 0)),
        ("conv2d", "divide", conv(&x, &w, one, one, 3)),
        ("conv2d", "channels", conv(&x, &w, one, one, 2)),
        ("conv2d", "fit", conv(&x, &t(&[6, 4, 6, 3]), one, one, 1)),
        ("conv2d", "fit", conv(&x, &w, one, (usize::MAX, 1), 1)),
        ("conv2d", "fit", conv(&x, &t(&[6, 4, 0, 3]), one, one, 1)),
        ("conv2d", "float", conv(&x, &f32s, one, one, 1)),
        (
            "conv2d",
            "float",
            conv(&i(&[1, 4, 5, 5]), &i(&[6, 4, 3, 3]), one, one, 1),
        ),
        (
            "conv2d",
            "bias",
            nn::conv2d(&x, &w, Some(&t(&[5])), one, one, one, 1).map(|_| ()),
        ),
        (
            "conv2d",
            "fit",
            ops::conv2d(&x, &w, one, (usize::MAX, 0), one, 1).map(|_| ()),
        ),
        (
            "max_pool2d",
            "[n, c, h, w]",
            pool(&t(&[5, 5]), one, one, (0, 0)),
        ),
        ("max_pool2d", "kernel", pool(&x, (0, 1), one, (0, 0))),
        ("max_pool2d", "stride", pool(&x, one, (1, 0), (0, 0))),
        ("max_pool2d", "half", pool(&x, (2, 2), one, (2, 0))),
        ("max_pool2d", "fit", pool(&x, (6, 1), one, (0, 0))),
        (
            "max_pool2d",
            "fit",
            pool(&t(&[1, 1, 0, 4]), (2, 2), one, (1, 1)),
        ),
        (
            "avg_pool2d",
            "fit",
            nn::avg_pool2d(&x, (1, 9), one, (0, 0)).map(|_| ()),
        ),
        (
            "batch_norm",
            "[n, c, ..]",
            ops::batch_norm(&t(&[4]), None, None, None, 0.1).map(|_| ()),
        ),
        (
            "batch_norm",
            "[4]",
            ops::batch_norm(&x, Some(&t(&[5])), None, None, 0.1).map(|_| ()),
        ),
        (
            "batch_norm",
            "[4]",
            ops::batch_norm(&x, None, None, Some((&stats.0, &stats.1)), 0.1).map(|_| ()),
        ),
        (
            "layer_norm",
            "axes",
            ops::layer_norm(&x, &[], None, None, 0.1).map(|_| ()),
        ),
        (
            "layer_norm",
            "axes",
            ops::layer_norm(&x, &[3, -1], None, None, 0.1).map(|_| ()),
        ),
        (
            "layer_norm",
            "axis 4",
            ops::layer_norm(&x, &[4], None, None, 0.1).map(|_| ()),
        ),
        (
            "layer_norm",
            "sizes",
            ops::layer_norm(&x, &[2, 3], Some(&t(&[5])), None, 0.1).map(|_| ()),
        ),
        ("softmax", "axis 4", ops::softmax(&x, 4).map(|_| ())),
        ("softmax", "float", ops::softmax(&i(&[3]), 0).map(|_| ())),
        (
            "log_softmax",
            "axis -2",
            ops::log_softmax(&t(&[3]), -2).map(|_| ()),
        ),
        (
            "cross_entropy",
            "classes",
            ops::cross_entropy(&t(&[]), &i(&[])).map(|_| ()),
        ),
        (
            "cross_entropy",
            "class",
            ops::cross_entropy(&t(&[2, 0]), &i(&[2])).map(|_| ()),
        ),
        (
            "cross_entropy",
            "without its last axis",
            ops::cross_entropy(&t(&[2, 3]), &i(&[3])).map(|_| ()),
        ),
        (
            "cross_entropy",
            "index -1",
            ops::cross_entropy(&t(&[2, 3]), &negative).map(|_| ()),
        ),
        (
            "cross_entropy",
            "index 3",
            ops::cross_entropy(&t(&[2, 3]), &beyond).map(|_| ()),
        ),
        (
            "cross_entropy",
            "distribution",
            ops::cross_entropy(&t(&[2, 3]), &t(&[2])).map(|_| ()),
        ),
        (
            "scaled_dot",
            "queries",
            attend(&[3], &[2, 3], &[2, 3], None),
        ),
        (
            "scaled_dot",
            "queries",
            attend(&[2, 3], &[2, 4], &[2, 3], None),
        ),
        (
            "scaled_dot",
            "queries",
            attend(&[2, 3], &[4, 3], &[5, 3], None),
        ),
        (
            "scaled_dot",
            "broadcast",
            attend(&[2, 2, 3], &[3, 2, 3], &[2, 3], None),
        ),
        (
            "scaled_dot",
            "bias",
            attend(&[2, 3], &[4, 3], &[4, 3], Some(&t(&[3, 4]))),
        ),
        (
            "linear",
            "weight",
            nn::linear(&t(&[2, 3]), &t(&[4, 2]), None).map(|_| ()),
        ),
        (
            "linear",
            "input",
            nn::linear(&t(&[]), &t(&[4, 2]), None).map(|_| ()),
        ),
        (
            "linear",
            "bias",
            nn::linear(&t(&[2, 3]), &t(&[4, 3]), Some(&t(&[3]))).map(|_| ()),
        ),
        ("dropout", "[0, 1)", nn::dropout(&x, 1.0, &key).map(|_| ())),
        ("dropout", "[0, 1)", nn::dropout(&x, -0.1, &key).map(|_| ())),
        (
            "dropout",
            "[0, 1)",
            nn::dropout(&x, f64::NAN, &key).map(|_| ()),
        ),
        (
            "hardtanh",
            "lo <= hi",
            nn::hardtanh(&x, 1.0, 0.0).map(|_| ()),
        ),
        ("group_sort", "group", nn::group_sort(&x, 0).map(|_| ())),
        ("group_sort", "divide", nn::group_sort(&x, 3).map(|_| ())),
        ("elu", "float", nn::elu(&i(&[2]), 1.0).map(|_| ())),
        (
            "lstm",
            "weights",
            nn::lstm(&t(&[1, 2, 3]), &t(&[8, 3]), &t(&[7, 2]), None, None).map(|_| ()),
        ),
        (
            "lstm",
            "[n, t, f]",
            nn::lstm(&t(&[2, 3]), &t(&[8, 3]), &t(&[8, 2]), None, None).map(|_| ()),
        ),
        (
            "rnn",
            "bias",
            nn::rnn(
                &t(&[1, 2, 3]),
                &t(&[2, 3]),
                &t(&[2, 2]),
                Some(&t(&[3])),
                None,
            )
            .map(|_| ()),
        ),
        (
            "uniform",
            "f32 or f64",
            uniform(&key, &[2], DType::I64).map(|_| ()),
        ),
    ];
    for (operation, word, result) in cases {
        let error = result
            .expect_err(&format!("{operation}: {word}"))
            .to_string();
        assert!(
            error.contains(operation) && error.contains(word),
            "{operation}, {word}: {error}"
        );
    }
}

#[test]
fn a_result_over_the_budget_is_refused() {
    let account = espalier_tensor::account::Account::new(Some(100_000));
    let scope = account.enter();
    let x = random(1, &[1, 1, 4, 4]);
    let w = random(2, &[1, 1, 1, 1]);
    let error = ops::conv2d(&x, &w, (1, 1), (1000, 1000), (1, 1), 1).unwrap_err();
    assert!(matches!(error, Error::Budget { .. }), "{error}");
    let huge = ops::conv2d(&x, &w, (1, 1), (1 << 40, 1 << 40), (1, 1), 1).unwrap_err();
    assert!(
        matches!(huge, Error::Size { .. } | Error::Budget { .. }),
        "{huge}"
    );
    drop(scope);
}

#[test]
fn kernels_far_larger_than_their_input_cost_no_more_than_the_input() {
    let huge = 1usize << 40;
    let x = random(1, &[1, 1, 2, 3]).with_requires_grad();
    let largest = nn::max_pool2d(&x, (huge, huge), (1, 1), (huge / 2, huge / 2)).unwrap();
    assert_eq!(largest.shape(), [1, 1, 3, 4]);
    let means = nn::avg_pool2d(&x, (huge, 1), (1, 1), (huge / 2, 0)).unwrap();
    assert_eq!(means.shape(), [1, 1, 3, 3]);
    // A weight without output channels holds nothing, whatever its kernel.
    let w = Tensor::zeros(&[0, 1, huge, 1], DType::F64).unwrap();
    let y = ops::conv2d(&x, &w, (1, 1), (huge / 2, 0), (1, 1), 1).unwrap();
    let u = Tensor::zeros(y.shape(), DType::F64).unwrap();
    let dx = grad(&[&y], &[Some(&u)], &[&x], false, false).unwrap();
    assert_eq!(list(&dx[0]), [0.0; 6]);
}
