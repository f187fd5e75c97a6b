#![allow(clippy::unwrap_used)]
//! First and second derivatives of the layer operations against central differences, in f64.

use espalier_tensor::autograd::grad;
use espalier_tensor::random::{Key, normal};
use espalier_tensor::{DType, Result, Tensor, nn, ops};

/// The function under test.
type F<'a> = &'a dyn Fn(&[Tensor]) -> Result<Tensor>;

fn random(words: &[u64], shape: &[usize]) -> Tensor {
    normal(&Key::new(words), shape, DType::F64).unwrap()
}

/// The same numbers laid out with the axes in reverse order, and every second element of a larger block.
fn with_gaps(t: &Tensor) -> Tensor {
    let axes: Vec<usize> = (0..t.rank()).rev().collect();
    let reversed = ops::permute_dims(t, &axes).unwrap();
    let spread = ops::concat(&[&reversed, &reversed], -1).unwrap();
    let last = *reversed.shape().last().unwrap() as isize;
    let view = ops::permute_dims(&ops::slice(&spread, -1, 0, last).unwrap(), &axes).unwrap();
    let wide = t.shape().iter().filter(|&&size| size > 1).count();
    assert!(wide < 2 || !view.is_contiguous());
    assert_eq!(view.to_list().unwrap(), t.to_list().unwrap());
    view
}

fn inner(a: &Tensor, b: &Tensor) -> f64 {
    a.to_list()
        .unwrap()
        .iter()
        .zip(b.to_list().unwrap())
        .map(|(x, y)| x * y)
        .sum()
}

fn moved(t: &Tensor, at: usize, by: f64) -> Tensor {
    let mut values = t.to_list().unwrap();
    values[at] += by;
    Tensor::from_f64s(&values, t.shape(), DType::F64).unwrap()
}

fn near(name: &str, what: &str, got: &[f64], want: &[f64], scale: f64) {
    assert_eq!(got.len(), want.len(), "{name}: {what}");
    for (i, (a, b)) in got.iter().zip(want).enumerate() {
        assert!(
            (a - b).abs() <= 2e-6 * (scale + b.abs()),
            "{name}: {what}, element {i}: {a} and {b}"
        );
    }
}

/// sum_i <v_i, d<u, f(x)> / d x_i>, with the fused first-order rules.
fn slope(f: F, x: &[Tensor], u: &Tensor, v: &[Tensor]) -> f64 {
    let leaves: Vec<Tensor> = x.iter().map(Tensor::with_requires_grad).collect();
    let y = f(&leaves).unwrap();
    let inputs: Vec<&Tensor> = leaves.iter().collect();
    let g = grad(&[&y], &[Some(u)], &inputs, false, false).unwrap();
    g.iter().zip(v).map(|(g, v)| inner(g, v)).sum()
}

/// Checks d<u, f(x)>/dx element by element, then the derivative of its product with random v by x and u.
fn check(name: &str, shapes: &[&[usize]], f: F) {
    let x: Vec<Tensor> = shapes
        .iter()
        .enumerate()
        .map(|(i, s)| random(&[name.len() as u64, i as u64], s))
        .collect();
    check_at(name, x, f);
}

fn check_at(name: &str, x: Vec<Tensor>, f: F) {
    const H: f64 = 1e-5;
    for gaps in [false, true] {
        let x: Vec<Tensor> = x
            .iter()
            .map(|t| if gaps { with_gaps(t) } else { t.clone() })
            .collect();
        let leaves: Vec<Tensor> = x.iter().map(Tensor::with_requires_grad).collect();
        let y = f(&leaves).unwrap();
        let u = random(&[7, 7], y.shape()).with_requires_grad();
        let u = if gaps {
            with_gaps(&u.detach()).with_requires_grad()
        } else {
            u
        };
        let inputs: Vec<&Tensor> = leaves.iter().collect();

        let fused = grad(&[&y], &[Some(&u)], &inputs, false, true).unwrap();
        let tracked = grad(&[&y], &[Some(&u)], &inputs, true, true).unwrap();
        for (i, t) in x.iter().enumerate() {
            let name = format!("{name}, gaps {gaps}, input {i}");
            assert_eq!(fused[i].shape(), t.shape(), "{name}");
            let want: Vec<f64> = (0..t.numel())
                .map(|at| {
                    let value = |by: f64| {
                        let mut x = x.clone();
                        x[i] = moved(t, at, by);
                        inner(&f(&x).unwrap(), &u)
                    };
                    (value(H) - value(-H)) / (2.0 * H)
                })
                .collect();
            near(
                &name,
                "first derivative",
                &fused[i].to_list().unwrap(),
                &want,
                10.0,
            );
            near(
                &name,
                "first derivative under create_graph",
                &tracked[i].to_list().unwrap(),
                &want,
                10.0,
            );
        }

        let v: Vec<Tensor> = x
            .iter()
            .enumerate()
            .map(|(i, t)| random(&[9, i as u64], t.shape()))
            .collect();
        let mut seconds: Vec<&Tensor> = inputs.clone();
        seconds.push(&u);
        let outputs: Vec<&Tensor> = tracked.iter().collect();
        let cotangents: Vec<Option<&Tensor>> = v.iter().map(Some).collect();
        let second = grad(&outputs, &cotangents, &seconds, false, false).unwrap();
        for (i, got) in second.iter().enumerate() {
            let base = if i < x.len() { &x[i] } else { &u.detach() };
            let want: Vec<f64> = (0..base.numel())
                .map(|at| {
                    let value = |by: f64| {
                        let mut x = x.clone();
                        let mut u = u.detach();
                        match x.get_mut(i) {
                            Some(x) => *x = moved(base, at, by),
                            None => u = moved(base, at, by),
                        }
                        slope(f, &x, &u, &v)
                    };
                    (value(H) - value(-H)) / (2.0 * H)
                })
                .collect();
            let name = format!("{name}, gaps {gaps}, by {i}");
            near(
                &name,
                "second derivative",
                &got.to_list().unwrap(),
                &want,
                30.0,
            );
        }
    }
}

#[test]
fn conv2d_and_its_gradients() {
    check("conv2d", &[&[2, 2, 4, 5], &[3, 2, 2, 3]], &|x| {
        ops::conv2d(&x[0], &x[1], (1, 1), (0, 0), (1, 1), 1)
    });
    check("conv2d strided", &[&[1, 4, 5, 4], &[4, 2, 2, 2]], &|x| {
        ops::conv2d(&x[0], &x[1], (2, 1), (1, 2), (1, 2), 2)
    });
    check("conv2d pixels", &[&[2, 3, 2, 2], &[2, 3, 1, 1]], &|x| {
        ops::conv2d(&x[0], &x[1], (1, 1), (0, 0), (1, 1), 1)
    });
    check(
        "conv2d with bias",
        &[&[2, 2, 3, 3], &[2, 2, 2, 2], &[2]],
        &|x| nn::conv2d(&x[0], &x[1], Some(&x[2]), (1, 1), (1, 1), (1, 1), 1),
    );
}

#[test]
fn pooling() {
    check("max_pool2d", &[&[2, 2, 4, 5]], &|x| {
        nn::max_pool2d(&x[0], (2, 2), (2, 2), (0, 0))
    });
    check("max_pool2d overlapping", &[&[1, 2, 5, 4]], &|x| {
        nn::max_pool2d(&x[0], (3, 2), (1, 2), (1, 1))
    });
    check("avg_pool2d", &[&[2, 2, 4, 5]], &|x| {
        nn::avg_pool2d(&x[0], (2, 3), (2, 1), (1, 1))
    });
}

#[test]
fn norms() {
    let eps = 1e-3;
    check("batch_norm", &[&[3, 2, 2, 2], &[2], &[2]], &|x| {
        Ok(ops::batch_norm(&x[0], Some(&x[1]), Some(&x[2]), None, eps)?.0)
    });
    check("batch_norm of rows", &[&[5, 3], &[3]], &|x| {
        Ok(ops::batch_norm(&x[0], None, Some(&x[1]), None, eps)?.0)
    });
    check("batch_norm's mean", &[&[3, 2, 2]], &|x| {
        Ok(ops::batch_norm(&x[0], None, None, None, eps)?.1)
    });
    check("batch_norm's variance", &[&[3, 2, 2]], &|x| {
        Ok(ops::batch_norm(&x[0], None, None, None, eps)?.2)
    });
    check(
        "batch_norm with another batch's statistics",
        &[&[3, 2, 2], &[4, 2, 2], &[2]],
        &|x| {
            let (_, mean, variance) = ops::batch_norm(&x[1], None, None, None, eps)?;
            Ok(ops::batch_norm(&x[0], Some(&x[2]), None, Some((&mean, &variance)), eps)?.0)
        },
    );
    check("layer_norm", &[&[2, 3, 4], &[4], &[4]], &|x| {
        ops::layer_norm(&x[0], &[-1], Some(&x[1]), Some(&x[2]), eps)
    });
    check(
        "layer_norm over leading axes",
        &[&[2, 3, 4], &[2, 3]],
        &|x| ops::layer_norm(&x[0], &[1, 0], None, Some(&x[1]), eps),
    );
}

#[test]
fn softmax_and_cross_entropy() {
    check("softmax", &[&[3, 4]], &|x| ops::softmax(&x[0], -1));
    check("softmax in the middle", &[&[2, 3, 2]], &|x| {
        ops::softmax(&x[0], 1)
    });
    check("log_softmax", &[&[3, 4]], &|x| ops::log_softmax(&x[0], 1));
    check("log_softmax in front", &[&[3, 4]], &|x| {
        ops::log_softmax(&x[0], 0)
    });
    let classes = Tensor::from_vec(vec![2i64, 0, 1, 1, 2, 0], &[2, 3]).unwrap();
    check("cross_entropy against classes", &[&[2, 3, 3]], &|x| {
        ops::cross_entropy(&x[0], &classes)
    });
    check("cross_entropy against numbers", &[&[4, 3], &[4, 3]], &|x| {
        ops::cross_entropy(&x[0], &x[1])
    });
}

#[test]
fn layers() {
    check("linear", &[&[3, 4], &[2, 4], &[2]], &|x| {
        nn::linear(&x[0], &x[1], Some(&x[2]))
    });
    check("linear on three axes", &[&[2, 3, 4], &[2, 4]], &|x| {
        nn::linear(&x[0], &x[1], None)
    });
    check("linear on one axis", &[&[4], &[2, 4], &[2]], &|x| {
        nn::linear(&x[0], &x[1], Some(&x[2]))
    });
    let key = Key::new(&[3]);
    check("dropout", &[&[4, 5]], &|x| nn::dropout(&x[0], 0.4, &key));
    check("elu", &[&[4, 5]], &|x| nn::elu(&x[0], 0.7));
    check("silu", &[&[4, 5]], &|x| nn::silu(&x[0]));
    check("group_sort", &[&[3, 6]], &|x| nn::group_sort(&x[0], 3));
    check("hardtanh", &[&[4, 5]], &|x| nn::hardtanh(&x[0], -0.5, 0.8));
}

#[test]
fn attention() {
    let attend = ops::scaled_dot_product_attention;
    check("attention", &[&[2, 3, 2], &[2, 4, 2], &[2, 4, 3]], &|x| {
        attend(&x[0], &x[1], &x[2], None, false)
    });
    check(
        "causal attention",
        &[&[2, 4, 2], &[2, 4, 2], &[2, 4, 2], &[4]],
        &|x| attend(&x[0], &x[1], &x[2], Some(&x[3]), true),
    );
    check(
        "attention with broadcasting",
        &[&[2, 2, 3, 2], &[1, 4, 2], &[2, 1, 4, 2], &[2, 1, 3, 1]],
        &|x| attend(&x[0], &x[1], &x[2], Some(&x[3]), false),
    );
}

#[test]
fn self_attention() {
    check("self-attention", &[&[2, 3, 12]], &|x| {
        nn::self_attention(&x[0], 2, false)
    });
    check("causal self-attention", &[&[2, 4, 6]], &|x| {
        nn::self_attention(&x[0], 1, true)
    });
}

#[test]
fn self_attention_agrees_with_attention_on_its_parts() {
    // Around the block of 64 queries; more than one thread's worth; one head and several.
    for (case, (n, t, heads, width)) in [
        (1, 1, 1, 1),
        (2, 5, 3, 2),
        (3, 63, 2, 7),
        (2, 64, 4, 16),
        (1, 65, 2, 3),
        (2, 130, 1, 8),
    ]
    .into_iter()
    .enumerate()
    {
        let causal = case % 2 == 1;
        let f = heads * width;
        let stacked = random(&[case as u64], &[n, t, 3 * f]).with_requires_grad();
        let u = random(&[case as u64, 1], &[n, t, f]);
        let apart = |x: &Tensor, at: usize| {
            let part = ops::slice(x, 2, (at * f) as isize, ((at + 1) * f) as isize).unwrap();
            let shape = [n, t, heads, width].map(|size| size as i64);
            ops::permute_dims(&ops::reshape(&part, &shape).unwrap(), &[0, 2, 1, 3]).unwrap()
        };
        let parts = [0, 1, 2].map(|at| apart(&stacked, at));
        let [q, k, v] = &parts;
        let mixed = ops::scaled_dot_product_attention(q, k, v, None, causal).unwrap();
        let mixed = ops::permute_dims(&mixed, &[0, 2, 1, 3]).unwrap();
        let want = ops::reshape(&mixed, &[n, t, f].map(|size| size as i64)).unwrap();
        let got = nn::self_attention(&stacked, heads, causal).unwrap();
        let name = format!("self-attention {n} {t} {heads} {width}");
        let list = |t: &Tensor| t.to_list().unwrap();
        near(&name, "values", &list(&got), &list(&want), 1e-3);
        let gradient =
            |y: &Tensor| list(&grad(&[y], &[Some(&u)], &[&stacked], false, false).unwrap()[0]);
        near(&name, "gradients", &gradient(&got), &gradient(&want), 1e-3);
    }
    let mut values = vec![0.5; 2 * 3 * 6];
    values[3] = f64::NAN;
    let poisoned = Tensor::from_f64s(&values, &[2, 3, 6], DType::F64).unwrap();
    let y = nn::self_attention(&poisoned, 1, false)
        .unwrap()
        .to_list()
        .unwrap();
    assert!(
        y[..6].iter().all(|v| v.is_nan()),
        "a NaN key reaches its sample"
    );
    assert!(y[6..].iter().all(|v| v.is_finite()), "and no other");
    assert!(nn::self_attention(&poisoned, 4, false).is_err());
}

#[test]
fn recurrence() {
    check("lstm", &[&[2, 3, 2], &[8, 2], &[8, 2], &[8], &[8]], &|x| {
        nn::lstm(&x[0], &x[1], &x[2], Some(&x[3]), Some(&x[4]))
    });
    check("lstm of one step", &[&[2, 1, 2], &[4, 2], &[4, 1]], &|x| {
        nn::lstm(&x[0], &x[1], &x[2], None, None)
    });
    check("rnn", &[&[2, 4, 3], &[2, 3], &[2, 2], &[2]], &|x| {
        nn::rnn(&x[0], &x[1], &x[2], None, Some(&x[3]))
    });
}
