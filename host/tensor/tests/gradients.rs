//! Every differentiable operation, first and second order, against central differences in f64, on random
//! shapes, with broadcasting, through contiguous tensors and views.
//!
//! To add an operation, add a row to [`cases`]: a name, its inputs as shape patterns (a letter is a random
//! size, the same letter the same size; a number is itself) with the values it accepts, and a function.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use common::{Domain, Rng, SHOWS, Show, shape, shown, store};
use espalier_tensor::autograd::grad;
use espalier_tensor::random::Key;
use espalier_tensor::{DType, Result, Tensor, nn, ops};

use Domain::{Any, Distinct, Positive, Unit};

struct Case {
    name: &'static str,
    inputs: &'static [(&'static str, Domain)],
    f: fn(&[Tensor]) -> Result<Tensor>,
}

const fn case(
    name: &'static str,
    inputs: &'static [(&'static str, Domain)],
    f: fn(&[Tensor]) -> Result<Tensor>,
) -> Case {
    Case { name, inputs, f }
}

/// i64 indices that depend on the sizes alone and repeat some values.
fn indices(n: usize, size: usize) -> Tensor {
    let values: Vec<i64> = (0..n).map(|i| ((i * 7 + i / 2) % size) as i64).collect();
    Tensor::from_vec(values, &[n]).unwrap()
}

fn core_cases() -> Vec<Case> {
    vec![
        case("add", &[("a b", Any), ("a b", Any)], |x| {
            ops::add(&x[0], &x[1])
        }),
        case("add, broadcast", &[("a 1 c", Any), ("b 1", Any)], |x| {
            ops::add(&x[0], &x[1])
        }),
        case("add to itself", &[("a b", Any)], |x| ops::add(&x[0], &x[0])),
        case("add a scalar", &[("a b", Any)], |x| ops::add(&x[0], 2.0)),
        case("subtract", &[("a b", Any), ("b", Any)], |x| {
            ops::subtract(&x[0], &x[1])
        }),
        case("subtract from 1", &[("a", Any)], |x| {
            ops::subtract(1.0, &x[0])
        }),
        case("multiply", &[("a b", Any), ("a b", Any)], |x| {
            ops::multiply(&x[0], &x[1])
        }),
        case(
            "multiply, broadcast",
            &[("a b c", Any), ("a 1 c", Any)],
            |x| ops::multiply(&x[0], &x[1]),
        ),
        case(
            "multiply by a rank-0 tensor",
            &[("a b", Any), ("", Any)],
            |x| ops::multiply(&x[0], &x[1]),
        ),
        case("multiply by itself", &[("a b", Any)], |x| {
            ops::multiply(&x[0], &x[0])
        }),
        case("divide", &[("a b", Any), ("a b", Positive)], |x| {
            ops::divide(&x[0], &x[1])
        }),
        case("divide, broadcast", &[("b", Any), ("a 1", Positive)], |x| {
            ops::divide(&x[0], &x[1])
        }),
        case("divide a number", &[("a b", Positive)], |x| {
            ops::divide(2.0, &x[0])
        }),
        case("divide by a number", &[("a b", Any)], |x| {
            ops::divide(&x[0], -4.0)
        }),
        case("maximum", &[("a b", Distinct)], |x| {
            ops::maximum(&x[0], 0.0)
        }),
        case("maximum of two", &[("a b", Distinct), ("b", Unit)], |x| {
            ops::maximum(&x[0], &ops::multiply(&x[1], 0.1)?)
        }),
        case("minimum", &[("a b", Distinct)], |x| {
            ops::minimum(0.0, &x[0])
        }),
        case("minimum of two", &[("a b", Distinct), ("a 1", Unit)], |x| {
            ops::minimum(&ops::multiply(&x[1], 0.1)?, &x[0])
        }),
        case("where", &[("a b", Any), ("b", Any)], |x| {
            let cond = ops::less(
                &ops::sin(&ops::arange(0.0, x[0].shape()[1] as f64, 1.0, DType::F64)?)?,
                0.5,
            )?;
            ops::where_(&cond, &ops::multiply(&x[0], &x[0])?, &x[1])
        }),
        case("abs", &[("a b", Distinct)], |x| ops::abs(&x[0])),
        case("exp", &[("a b", Any)], |x| ops::exp(&x[0])),
        case("expm1", &[("a b", Any)], |x| ops::expm1(&x[0])),
        case("log", &[("a b", Positive)], |x| ops::log(&x[0])),
        case("sqrt", &[("a b", Positive)], |x| ops::sqrt(&x[0])),
        case("sin", &[("a b", Any)], |x| ops::sin(&x[0])),
        case("cos", &[("a b", Any)], |x| ops::cos(&x[0])),
        case("acos", &[("a b", Unit)], |x| ops::acos(&x[0])),
        case("tanh", &[("a b", Any)], |x| ops::tanh(&x[0])),
        case("sigmoid", &[("a b", Any)], |x| ops::sigmoid(&x[0])),
        case("relu", &[("a b", Distinct)], |x| ops::relu(&x[0])),
        case("relu of a square", &[("a b", Distinct)], |x| {
            ops::relu(&ops::multiply(&x[0], &ops::abs(&x[0])?)?)
        }),
        case("gelu", &[("a b", Any)], |x| ops::gelu(&x[0])),
        case("softplus", &[("a b", Any)], |x| ops::softplus(&x[0])),
        case("sum of all", &[("a b c", Any)], |x| {
            ops::sum(&ops::multiply(&x[0], &x[0])?, &[], false)
        }),
        case("sum of rows", &[("a b c", Any)], |x| {
            ops::sum(&ops::exp(&x[0])?, &[-1], true)
        }),
        case("sum of columns", &[("a b c", Any)], |x| {
            ops::sum(&ops::exp(&x[0])?, &[0], false)
        }),
        case("sum of outer and inner axes", &[("a b c", Any)], |x| {
            ops::sum(&x[0], &[0, 2], false)
        }),
        case("max over the last axis", &[("a b", Distinct)], |x| {
            ops::max(&ops::exp(&x[0])?, -1, false)
        }),
        case("max over the first axis", &[("a b c", Distinct)], |x| {
            ops::max(&x[0], 0, true)
        }),
        case("cumulative_sum", &[("a b c", Any)], |x| {
            ops::cumulative_sum(&ops::exp(&x[0])?, 1)
        }),
        case("sort by argsort", &[("a b", Distinct)], |x| {
            let order = ops::argsort(&x[0], 0, true)?;
            ops::take_along_axis(&ops::exp(&x[0])?, &order, 0)
        }),
        case("top_k", &[("a b", Distinct)], |x| {
            Ok(ops::top_k(&ops::exp(&x[0])?, x[0].shape()[1].div_ceil(2), 1)?.0)
        }),
        case("rfft", &[("a b c", Any)], |x| {
            ops::rfft(&ops::exp(&x[0])?, 1)
        }),
        case("irfft, even", &[("a 4 2", Any)], |x| {
            ops::irfft(&ops::sin(&x[0])?, 6, -1)
        }),
        case("irfft, odd, first axis", &[("3 a 2", Any)], |x| {
            ops::irfft(&ops::sin(&x[0])?, 5, 0)
        }),
        case("take rows", &[("a b", Any)], |x| {
            ops::take(&ops::exp(&x[0])?, &indices(5, x[0].shape()[0]), 0)
        }),
        case("take with indices of rank 2", &[("a b c", Any)], |x| {
            let ix = ops::reshape(&indices(6, x[0].shape()[1]), &[2, 3])?;
            ops::take(&x[0], &ix, 1)
        }),
        case("take_along_axis", &[("a b", Any)], |x| {
            let (a, b) = (x[0].shape()[0], x[0].shape()[1]);
            let ix = ops::reshape(&indices(a * 3, b), &[a as i64, 3])?;
            ops::take_along_axis(&ops::exp(&x[0])?, &ix, 1)
        }),
        case("scatter_add rows", &[("a b", Any), ("4 b", Any)], |x| {
            ops::scatter_add(
                &ops::exp(&x[0])?,
                &indices(4, x[0].shape()[0]),
                &ops::exp(&x[1])?,
                0,
            )
        }),
        case(
            "scatter_add along an axis",
            &[("a b", Any), ("a 3", Any)],
            |x| {
                let (a, b) = (x[0].shape()[0], x[0].shape()[1]);
                let ix = ops::reshape(&indices(a * 3, b), &[a as i64, 3])?;
                ops::scatter_add(&x[0], &ix, &ops::exp(&x[1])?, 1)
            },
        ),
        case("matmul", &[("m k", Any), ("k n", Any)], |x| {
            ops::matmul(&x[0], &x[1])
        }),
        case(
            "matmul of a batch with a matrix",
            &[("b m k", Any), ("k n", Any)],
            |x| ops::matmul(&x[0], &x[1]),
        ),
        case(
            "matmul of broadcast batches",
            &[("b 1 m k", Any), ("c k n", Any)],
            |x| ops::matmul(&x[0], &x[1]),
        ),
        case("matmul with itself transposed", &[("m k", Any)], |x| {
            ops::matmul(&x[0], &ops::permute_dims(&x[0], &[1, 0])?)
        }),
        case("reshape", &[("a b 2", Any)], |x| {
            ops::exp(&ops::reshape(&x[0], &[2, -1])?)
        }),
        case("permute_dims", &[("a b c", Any)], |x| {
            ops::exp(&ops::permute_dims(&x[0], &[2, 0, 1])?)
        }),
        case("broadcast_to", &[("a 1", Any)], |x| {
            ops::broadcast_to(&ops::exp(&x[0])?, &[3, x[0].shape()[0], 2])
        }),
        case("slice", &[("a 4", Any)], |x| {
            ops::slice(&ops::exp(&x[0])?, 1, 1, -1)
        }),
        case("concat", &[("a b", Any), ("a c", Any)], |x| {
            ops::concat(&[&ops::exp(&x[0])?, &x[1], &x[0]], 1)
        }),
        case("contiguous", &[("a b", Any)], |x| {
            ops::exp(&ops::permute_dims(&x[0], &[1, 0])?.contiguous()?)
        }),
        case(
            "a polynomial of several uses",
            &[("a b", Any), ("b", Any)],
            |x| {
                let square = ops::multiply(&x[0], &x[0])?;
                let mixed = ops::multiply(&square, &x[1])?;
                ops::add(&ops::subtract(&mixed, &square)?, &ops::tanh(&mixed)?)
            },
        ),
    ]
}

/// Layer operations. `nn_gradients.rs` tries more geometries, and differentiates by the cotangent too.
fn layer_cases() -> Vec<Case> {
    const ONE: (usize, usize) = (1, 1);
    const EPS: f64 = 1e-2;
    vec![
        case("conv2d", &[("n c 4 5", Any), ("o c 2 3", Any)], |x| {
            ops::conv2d(&x[0], &x[1], ONE, (1, 0), ONE, 1)
        }),
        case(
            "conv2d of groups",
            &[("n 4 5 h", Any), ("6 2 3 1", Any)],
            |x| ops::conv2d(&x[0], &x[1], (2, 1), (1, 1), (2, 1), 2),
        ),
        case(
            "conv2d with bias",
            &[("n c 3 4", Any), ("o c 2 2", Any), ("o", Any)],
            |x| nn::conv2d(&x[0], &x[1], Some(&x[2]), ONE, (0, 0), ONE, 1),
        ),
        case("max_pool2d", &[("n 2 4 5", Distinct)], |x| {
            nn::max_pool2d(&ops::exp(&x[0])?, (2, 2), (2, 2), (0, 0))
        }),
        case("max_pool2d, overlapping", &[("n 1 5 4", Distinct)], |x| {
            nn::max_pool2d(&ops::exp(&x[0])?, (3, 2), (1, 2), (1, 1))
        }),
        case("avg_pool2d", &[("n c 4 5", Any)], |x| {
            nn::avg_pool2d(&ops::exp(&x[0])?, (2, 3), (2, 1), (1, 0))
        }),
        case(
            "batch_norm",
            &[("4 c h", Any), ("c", Any), ("c", Any)],
            |x| Ok(ops::batch_norm(&x[0], Some(&x[1]), Some(&x[2]), None, EPS)?.0),
        ),
        case("batch_norm of rows", &[("4 c", Any), ("c", Any)], |x| {
            Ok(ops::batch_norm(&x[0], Some(&x[1]), None, None, EPS)?.0)
        }),
        case(
            "batch_norm with statistics",
            &[("n c h", Any), ("c", Any), ("c", Positive), ("c", Any)],
            |x| Ok(ops::batch_norm(&x[0], None, Some(&x[3]), Some((&x[1], &x[2])), EPS)?.0),
        ),
        case("batch_norm's statistics", &[("4 c h", Any)], |x| {
            let (y, mean, variance) = ops::batch_norm(&x[0], None, None, None, EPS)?;
            let of_rows = ops::reshape(&ops::multiply(&mean, &variance)?, &[1, -1, 1])?;
            ops::multiply(&y, &of_rows)
        }),
        case(
            "layer_norm",
            &[("a b 4", Any), ("4", Any), ("4", Any)],
            |x| ops::layer_norm(&x[0], &[-1], Some(&x[1]), Some(&x[2]), EPS),
        ),
        case(
            "layer_norm over other axes",
            &[("3 b c", Any), ("3 c", Any)],
            |x| ops::layer_norm(&x[0], &[2, 0], Some(&x[1]), None, EPS),
        ),
        case("softmax", &[("a b", Any)], |x| ops::softmax(&x[0], -1)),
        case("softmax over a middle axis", &[("a b c", Any)], |x| {
            ops::softmax(&x[0], 1)
        }),
        case("log_softmax", &[("a b", Any)], |x| {
            ops::log_softmax(&x[0], 0)
        }),
        case("cross_entropy against classes", &[("a b", Any)], |x| {
            let classes = indices(x[0].shape()[0], x[0].shape()[1]);
            ops::cross_entropy(&x[0], &classes)
        }),
        case(
            "cross_entropy against a distribution",
            &[("a b c", Any), ("a b c", Positive)],
            |x| ops::cross_entropy(&x[0], &x[1]),
        ),
        case(
            "scaled_dot_product_attention",
            &[("b t d", Any), ("b s d", Any), ("b s e", Any), ("t s", Any)],
            |x| ops::scaled_dot_product_attention(&x[0], &x[1], &x[2], Some(&x[3]), false),
        ),
        case(
            "causal attention of a batch over shared keys",
            &[("b h t d", Any), ("s d", Any), ("h s e", Any)],
            |x| ops::scaled_dot_product_attention(&x[0], &x[1], &x[2], None, true),
        ),
        case("attention of a tensor to itself", &[("t d", Any)], |x| {
            ops::scaled_dot_product_attention(&x[0], &x[0], &x[0], None, true)
        }),
        case("linear", &[("a b i", Any), ("o i", Any), ("o", Any)], |x| {
            nn::linear(&x[0], &x[1], Some(&x[2]))
        }),
        case("dropout", &[("a b", Any)], |x| {
            nn::dropout(&ops::exp(&x[0])?, 0.3, &Key::new(&[5]))
        }),
        case("elu", &[("a b", Distinct)], |x| nn::elu(&x[0], 0.7)),
        case("silu", &[("a b", Any)], |x| nn::silu(&x[0])),
        case("hardtanh", &[("a b", Distinct)], |x| {
            nn::hardtanh(&ops::multiply(&x[0], &x[0])?, -0.4, 0.6)
        }),
        case("group_sort", &[("a 6", Distinct)], |x| {
            nn::group_sort(&ops::exp(&x[0])?, 3)
        }),
        case(
            "lstm",
            &[
                ("n t f", Any),
                ("8 f", Any),
                ("8 2", Any),
                ("8", Any),
                ("8", Any),
            ],
            |x| nn::lstm(&x[0], &x[1], &x[2], Some(&x[3]), Some(&x[4])),
        ),
        case(
            "rnn",
            &[("n t f", Any), ("h f", Any), ("h h", Any), ("h", Any)],
            |x| nn::rnn(&x[0], &x[1], &x[2], Some(&x[3]), None),
        ),
    ]
}

fn cases() -> Vec<Case> {
    let mut cases = core_cases();
    cases.extend(layer_cases());
    cases
}

/// The leaves of one trial, how each is shown, and random weights that make the result one number.
struct Trial {
    stored: Vec<Tensor>,
    shows: Vec<Show>,
    weights: Tensor,
}

impl Trial {
    fn new(case: &Case, shows: Vec<Show>, rng: &mut Rng) -> Trial {
        let mut sizes = BTreeMap::new();
        let stored: Vec<Tensor> = case
            .inputs
            .iter()
            .zip(&shows)
            .map(|((pattern, domain), show)| {
                let shape = shape(pattern, &mut sizes, 4, rng);
                let values = domain.values(shape.iter().product(), rng);
                store(*show, &values, &shape, DType::F64)
            })
            .collect();
        let mut trial = Trial {
            stored,
            shows,
            weights: Tensor::zeros(&[], DType::F64).unwrap(),
        };
        let out = trial.output(case, &trial.stored);
        let weights = Any.values(out.numel(), rng);
        trial.weights = Tensor::from_f64s(&weights, out.shape(), DType::F64).unwrap();
        trial
    }

    fn output(&self, case: &Case, stored: &[Tensor]) -> Tensor {
        let inputs: Vec<Tensor> = stored
            .iter()
            .zip(&self.shows)
            .map(|(t, show)| shown(*show, t))
            .collect();
        (case.f)(&inputs).unwrap_or_else(|e| panic!("{}: {e}", case.name))
    }

    fn loss(&self, case: &Case, stored: &[Tensor]) -> Tensor {
        let weighted = ops::multiply(&self.output(case, stored), &self.weights).unwrap();
        ops::sum(&weighted, &[], false).unwrap()
    }
}

fn leaves(stored: &[Tensor]) -> Vec<Tensor> {
    stored.iter().map(Tensor::with_requires_grad).collect()
}

fn gradients(loss: &Tensor, leaves: &[Tensor], create_graph: bool) -> Vec<Tensor> {
    let inputs: Vec<&Tensor> = leaves.iter().collect();
    grad(&[loss], &[None], &inputs, create_graph, false).unwrap()
}

/// Central differences of `f` with respect to every element of every stored tensor.
fn differences(stored: &[Tensor], f: impl Fn(&[Tensor]) -> f64) -> Vec<Vec<f64>> {
    const STEP: f64 = 1e-5;
    (0..stored.len())
        .map(|which| {
            let values = stored[which].to_list().unwrap();
            (0..values.len())
                .map(|i| {
                    let at = |delta: f64| {
                        let mut moved = values.clone();
                        moved[i] += delta;
                        let mut all = stored.to_vec();
                        all[which] =
                            Tensor::from_f64s(&moved, stored[which].shape(), DType::F64).unwrap();
                        f(&all)
                    };
                    (at(STEP) - at(-STEP)) / (2.0 * STEP)
                })
                .collect()
        })
        .collect()
}

fn assert_close(what: &str, found: &[Tensor], expected: &[Vec<f64>]) {
    for (input, (found, expected)) in found.iter().zip(expected).enumerate() {
        let found = found.to_list().unwrap();
        let scale = expected.iter().fold(1.0f64, |m, x| m.max(x.abs()));
        for (i, (f, e)) in found.iter().zip(expected).enumerate() {
            assert!(
                (f - e).abs() <= 2e-6 * scale,
                "{what}: input {input}, element {i}: gradient {f}, difference quotient {e}"
            );
        }
    }
}

/// Every combination of views over a few trials, each with new shapes.
fn each_trial(check: impl Fn(&Case, &Trial, &mut Rng, &str)) {
    for (number, case) in cases().iter().enumerate() {
        let mut rng = Rng(number as u64 * 1000 + 17);
        for trial in 0..6 {
            let shows: Vec<Show> = (0..case.inputs.len())
                .map(|i| SHOWS[(trial + i * (trial / 3 + 1)) % SHOWS.len()])
                .collect();
            let what = format!("{} {shows:?}", case.name);
            let trial = Trial::new(case, shows, &mut rng);
            check(case, &trial, &mut rng, &what);
        }
    }
}

#[test]
fn first_order_gradients_match_central_differences() {
    each_trial(|case, trial, _, what| {
        let leaves = leaves(&trial.stored);
        for create_graph in [false, true] {
            let found = gradients(&trial.loss(case, &leaves), &leaves, create_graph);
            for (g, leaf) in found.iter().zip(&leaves) {
                assert_eq!(g.shape(), leaf.shape(), "{what}");
            }
            let expected = differences(&trial.stored, |s| trial.loss(case, s).item().unwrap());
            assert_close(what, &found, &expected);
        }
    });
}

#[test]
fn second_order_gradients_match_central_differences_of_the_first() {
    each_trial(|case, trial, rng, what| {
        let directions: Vec<Tensor> = trial
            .stored
            .iter()
            .map(|t| Tensor::from_f64s(&Any.values(t.numel(), rng), t.shape(), DType::F64).unwrap())
            .collect();
        let slope = |leaves: &[Tensor], create_graph: bool| {
            let first = gradients(&trial.loss(case, leaves), leaves, create_graph);
            let mut total = Tensor::zeros(&[], DType::F64).unwrap();
            for (g, d) in first.iter().zip(&directions) {
                let part = ops::sum(&ops::multiply(g, d).unwrap(), &[], false).unwrap();
                total = ops::add(&total, &part).unwrap();
            }
            total
        };
        let here = leaves(&trial.stored);
        let found = gradients(&slope(&here, true), &here, false);
        let expected = differences(&trial.stored, |s| slope(&leaves(s), false).item().unwrap());
        assert_close(&format!("{what}, second order"), &found, &expected);
    });
}
