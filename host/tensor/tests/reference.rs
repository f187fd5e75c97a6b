//! Every operation against a naive reference, in f32 and f64, on random shapes with empty axes, values
//! that include NaN, infinities and signed zeros, and inputs shown through views.
//!
//! To add an operation, add a row to [`cases`]: a name, its inputs as shape patterns (a letter is a random
//! size from 0 to 4), the engine's function, and the same thing written out over [`Nd`].
#![allow(clippy::unwrap_used, clippy::type_complexity)]

mod common;

use std::collections::BTreeMap;

use common::{Domain, Rng, SHOWS, Show, shape, shown, store};
use espalier_tensor::{DType, Result, Tensor, ops};

/// A plain array: row-major f64.
#[derive(Clone, Debug, PartialEq)]
struct Nd {
    shape: Vec<usize>,
    data: Vec<f64>,
}

impl Nd {
    /// Computes each element from its coordinates.
    fn from(shape: &[usize], mut f: impl FnMut(&[usize]) -> f64) -> Nd {
        let numel = shape.iter().product();
        let mut at = vec![0; shape.len()];
        let mut data = Vec::new();
        for _ in 0..numel {
            data.push(f(&at));
            for axis in (0..shape.len()).rev() {
                at[axis] += 1;
                if at[axis] < shape[axis] {
                    break;
                }
                at[axis] = 0;
            }
        }
        Nd {
            shape: shape.to_vec(),
            data,
        }
    }

    /// The element at coordinates of a shape this one broadcasts to.
    fn at(&self, at: &[usize]) -> f64 {
        let lead = at.len() - self.shape.len();
        let mut place = 0;
        for (axis, &size) in self.shape.iter().enumerate() {
            place = place * size + if size == 1 { 0 } else { at[lead + axis] };
        }
        self.data[place]
    }

    fn map(&self, f: impl Fn(f64) -> f64) -> Nd {
        Nd::from(&self.shape, |at| f(self.at(at)))
    }

    fn zip(&self, other: &Nd, f: impl Fn(f64, f64) -> f64) -> Nd {
        let rank = self.shape.len().max(other.shape.len());
        let size = |nd: &Nd, axis: usize| {
            (axis + nd.shape.len())
                .checked_sub(rank)
                .map_or(1, |i| nd.shape[i])
        };
        let shape: Vec<usize> = (0..rank)
            .map(|axis| match (size(self, axis), size(other, axis)) {
                (1, b) => b,
                (a, _) => a,
            })
            .collect();
        Nd::from(&shape, |at| f(self.at(at), other.at(at)))
    }

    /// Replaces each line along `axis` by what `f` makes of it.
    fn lines(&self, axis: usize, f: impl Fn(&[f64]) -> Vec<f64>) -> Nd {
        let mut shape = self.shape.clone();
        let line = |at: &[usize]| -> Vec<f64> {
            (0..self.shape[axis])
                .map(|i| {
                    let mut at = at.to_vec();
                    at[axis] = i;
                    self.at(&at)
                })
                .collect()
        };
        shape[axis] = f(&vec![0.0; self.shape[axis]]).len();
        Nd::from(&shape, |at| f(&line(at))[at[axis]])
    }

    fn drop_axis(mut self, axis: usize) -> Nd {
        assert_eq!(self.shape.remove(axis), 1);
        self
    }

    fn with_shape(mut self, shape: &[usize]) -> Nd {
        self.shape = shape.to_vec();
        self
    }
}

struct Case {
    name: &'static str,
    inputs: &'static [&'static str],
    /// The smallest size of an axis.
    smallest: usize,
    engine: fn(&[Tensor]) -> Result<Tensor>,
    naive: fn(&[Nd]) -> Nd,
}

const fn case(
    name: &'static str,
    inputs: &'static [&'static str],
    engine: fn(&[Tensor]) -> Result<Tensor>,
    naive: fn(&[Nd]) -> Nd,
) -> Case {
    Case {
        name,
        inputs,
        smallest: 0,
        engine,
        naive,
    }
}

/// For operations that refuse an empty axis.
const fn filled(
    name: &'static str,
    inputs: &'static [&'static str],
    engine: fn(&[Tensor]) -> Result<Tensor>,
    naive: fn(&[Nd]) -> Nd,
) -> Case {
    Case {
        name,
        inputs,
        smallest: 1,
        engine,
        naive,
    }
}

fn truth(b: bool) -> f64 {
    f64::from(u8::from(b))
}

fn larger(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        f64::NAN
    } else {
        a.max(b)
    }
}

fn smaller(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() {
        f64::NAN
    } else {
        a.min(b)
    }
}

/// The order of sorting: NaN above all, the lower index first among equals.
fn order(line: &[f64], descending: bool) -> Vec<usize> {
    let mut places: Vec<usize> = (0..line.len()).collect();
    places.sort_by(|&i, &j| {
        let (a, b) = (line[i], line[j]);
        let ascending = match (a.is_nan(), b.is_nan()) {
            (true, true) => std::cmp::Ordering::Equal,
            (true, false) => std::cmp::Ordering::Greater,
            (false, true) => std::cmp::Ordering::Less,
            _ => a.partial_cmp(&b).unwrap(),
        };
        if descending {
            ascending.reverse()
        } else {
            ascending
        }
    });
    places
}

/// i64 indices that repeat some values, and the same for the reference.
fn index(i: usize, size: usize) -> usize {
    (i * 7 + i / 2) % size
}

fn indices(n: usize, size: usize) -> Tensor {
    let values: Vec<i64> = (0..n).map(|i| index(i, size) as i64).collect();
    Tensor::from_vec(values, &[n]).unwrap()
}

fn matmul(a: &Nd, b: &Nd) -> Nd {
    let (ra, rb) = (a.shape.len(), b.shape.len());
    let (m, k, n) = (a.shape[ra - 2], a.shape[ra - 1], b.shape[rb - 1]);
    let lead = |nd: &Nd| Nd::from(&nd.shape[..nd.shape.len() - 2], |_| 0.0);
    let mut shape = lead(a).zip(&lead(b), |_, _| 0.0).shape;
    shape.extend([m, n]);
    Nd::from(&shape, |at| {
        let rank = at.len();
        (0..k)
            .map(|j| {
                let (mut left, mut right) = (at.to_vec(), at.to_vec());
                left[rank - 1] = j;
                right[rank - 2] = j;
                // Leading axes broadcast; the last two are read as they are.
                let last_two = |nd: &Nd, at: &[usize]| {
                    let lead = at.len() - nd.shape.len();
                    let mut place = 0;
                    for (axis, &size) in nd.shape.iter().enumerate() {
                        let broadcast = size == 1 && axis + 2 < nd.shape.len();
                        place = place * size + if broadcast { 0 } else { at[lead + axis] };
                    }
                    nd.data[place]
                };
                last_two(a, &left) * last_two(b, &right)
            })
            .sum()
    })
}

fn core_cases() -> Vec<Case> {
    vec![
        case(
            "add",
            &["a b", "a b"],
            |x| ops::add(&x[0], &x[1]),
            |x| x[0].zip(&x[1], |a, b| a + b),
        ),
        case(
            "add, broadcast both ways",
            &["a 1 c", "b 1"],
            |x| ops::add(&x[0], &x[1]),
            |x| x[0].zip(&x[1], |a, b| a + b),
        ),
        case(
            "add rank 0",
            &["a b", ""],
            |x| ops::add(&x[0], &x[1]),
            |x| x[0].zip(&x[1], |a, b| a + b),
        ),
        case(
            "subtract",
            &["a b", "b"],
            |x| ops::subtract(&x[0], &x[1]),
            |x| x[0].zip(&x[1], |a, b| a - b),
        ),
        case(
            "subtract from 1",
            &["a"],
            |x| ops::subtract(1.0, &x[0]),
            |x| x[0].map(|a| 1.0 - a),
        ),
        case(
            "multiply in rank 6",
            &["a b 1 c 2 1", "b 3 1 1 2"],
            |x| ops::multiply(&x[0], &x[1]),
            |x| x[0].zip(&x[1], |a, b| a * b),
        ),
        case(
            "divide",
            &["a b", "a 1"],
            |x| ops::divide(&x[0], &x[1]),
            |x| x[0].zip(&x[1], |a, b| a / b),
        ),
        case(
            "maximum",
            &["a b", "b"],
            |x| ops::maximum(&x[0], &x[1]),
            |x| x[0].zip(&x[1], larger),
        ),
        case(
            "minimum",
            &["a b", "b"],
            |x| ops::minimum(&x[0], &x[1]),
            |x| x[0].zip(&x[1], smaller),
        ),
        case(
            "equal",
            &["a b", "a b"],
            |x| ops::equal(&x[0], &x[1]),
            |x| x[0].zip(&x[1], |a, b| truth(a == b)),
        ),
        case(
            "equal to 0",
            &["a b"],
            |x| ops::equal(&x[0], 0.0),
            |x| x[0].map(|a| truth(a == 0.0)),
        ),
        case(
            "less",
            &["a b", "b"],
            |x| ops::less(&x[0], &x[1]),
            |x| x[0].zip(&x[1], |a, b| truth(a < b)),
        ),
        case(
            "where",
            &["a 1", "a b", "b"],
            |x| ops::where_(&ops::less(0.0, &x[0])?, &x[1], &x[2]),
            |x| {
                let picked = x[0].zip(&x[1], |c, a| if c > 0.0 { a } else { 0.0 });
                let other = x[0].zip(&x[2], |c, b| if c > 0.0 { 0.0 } else { b });
                let cond = x[0].zip(&x[1], |c, _| truth(c > 0.0));
                Nd::from(&picked.shape.clone(), |at| {
                    if cond.at(at) > 0.0 {
                        picked.at(at)
                    } else {
                        other.at(at)
                    }
                })
            },
        ),
        case(
            "where against a number",
            &["a b"],
            |x| ops::where_(&ops::less(&x[0], 0.5)?, 7.0, &x[0]),
            |x| x[0].map(|a| if a < 0.5 { 7.0 } else { a }),
        ),
        case("abs", &["a b"], |x| ops::abs(&x[0]), |x| x[0].map(f64::abs)),
        case("exp", &["a b"], |x| ops::exp(&x[0]), |x| x[0].map(f64::exp)),
        case(
            "expm1",
            &["a b"],
            |x| ops::expm1(&x[0]),
            |x| x[0].map(f64::exp_m1),
        ),
        case("log", &["a b"], |x| ops::log(&x[0]), |x| x[0].map(f64::ln)),
        case(
            "sqrt",
            &["a b"],
            |x| ops::sqrt(&x[0]),
            |x| x[0].map(f64::sqrt),
        ),
        case("sin", &["a b"], |x| ops::sin(&x[0]), |x| x[0].map(f64::sin)),
        case("cos", &["a b"], |x| ops::cos(&x[0]), |x| x[0].map(f64::cos)),
        case(
            "acos",
            &["a b"],
            |x| ops::acos(&x[0]),
            |x| x[0].map(f64::acos),
        ),
        case(
            "tanh",
            &["a b"],
            |x| ops::tanh(&x[0]),
            |x| x[0].map(f64::tanh),
        ),
        case(
            "sigmoid",
            &["a b"],
            |x| ops::sigmoid(&x[0]),
            |x| x[0].map(|a| 1.0 / (1.0 + (-a).exp())),
        ),
        case(
            "relu",
            &["a b"],
            |x| ops::relu(&x[0]),
            |x| x[0].map(|a| larger(a, 0.0)),
        ),
        case(
            "gelu",
            &["a b"],
            |x| ops::gelu(&x[0]),
            |x| x[0].map(|a| 0.5 * a * (1.0 + libm::erf(a / 2.0f64.sqrt()))),
        ),
        case(
            "softplus",
            &["a b"],
            |x| ops::softplus(&x[0]),
            |x| {
                x[0].map(|a| {
                    if a.is_nan() {
                        a
                    } else {
                        a.max(0.0) + (-a.abs()).exp().ln_1p()
                    }
                })
            },
        ),
        case(
            "sum of all",
            &["a b c"],
            |x| ops::sum(&x[0], &[], false),
            |x| Nd::from(&[], |_| x[0].data.iter().sum()),
        ),
        case(
            "sum of the last axis",
            &["a b c"],
            |x| ops::sum(&x[0], &[-1], true),
            |x| x[0].lines(2, |line| vec![line.iter().sum()]),
        ),
        case(
            "sum of the first axis",
            &["a b c"],
            |x| ops::sum(&x[0], &[0], false),
            |x| x[0].lines(0, |line| vec![line.iter().sum()]).drop_axis(0),
        ),
        case(
            "sum of outer axes",
            &["a b c"],
            |x| ops::sum(&x[0], &[2, 0], false),
            |x| {
                let last = x[0].lines(2, |line| vec![line.iter().sum()]).drop_axis(2);
                last.lines(0, |line| vec![line.iter().sum()]).drop_axis(0)
            },
        ),
        case(
            "sum of a broadcast view",
            &["a 1"],
            |x| {
                ops::sum(
                    &ops::broadcast_to(&x[0], &[2, x[0].shape()[0], 3])?,
                    &[0, 2],
                    false,
                )
            },
            |x| x[0].map(|a| 6.0 * a).drop_axis(1),
        ),
        filled(
            "max of the last axis",
            &["a b"],
            |x| ops::max(&x[0], -1, false),
            |x| {
                x[0].lines(1, |line| {
                    vec![line.iter().copied().fold(f64::NEG_INFINITY, larger)]
                })
                .drop_axis(1)
            },
        ),
        filled(
            "max of a middle axis",
            &["a b c"],
            |x| ops::max(&x[0], 1, true),
            |x| {
                x[0].lines(1, |line| {
                    vec![line.iter().copied().fold(f64::NEG_INFINITY, larger)]
                })
            },
        ),
        filled(
            "argmax",
            &["a b"],
            |x| ops::argmax(&x[0], 1),
            |x| {
                x[0].lines(1, |line| vec![order(line, true)[0] as f64])
                    .drop_axis(1)
            },
        ),
        filled(
            "argmax of the first axis",
            &["a b"],
            |x| ops::argmax(&x[0], 0),
            |x| {
                x[0].lines(0, |line| vec![order(line, true)[0] as f64])
                    .drop_axis(0)
            },
        ),
        case(
            "cumulative_sum",
            &["a b c"],
            |x| ops::cumulative_sum(&x[0], 1),
            |x| {
                x[0].lines(1, |line| {
                    let mut total = 0.0;
                    line.iter()
                        .map(|x| {
                            total += x;
                            total
                        })
                        .collect()
                })
            },
        ),
        case(
            "argsort ascending",
            &["a b"],
            |x| ops::argsort(&x[0], 1, false),
            |x| {
                x[0].lines(1, |line| {
                    order(line, false).into_iter().map(|i| i as f64).collect()
                })
            },
        ),
        case(
            "argsort descending, first axis",
            &["a b"],
            |x| ops::argsort(&x[0], 0, true),
            |x| {
                x[0].lines(0, |line| {
                    order(line, true).into_iter().map(|i| i as f64).collect()
                })
            },
        ),
        case(
            "top_k values",
            &["a b"],
            |x| Ok(ops::top_k(&x[0], x[0].shape()[1] / 2, 1)?.0),
            |x| {
                x[0].lines(1, |line| {
                    order(line, true)[..line.len() / 2]
                        .iter()
                        .map(|&i| line[i])
                        .collect()
                })
            },
        ),
        case(
            "top_k indices",
            &["a b c"],
            |x| Ok(ops::top_k(&x[0], x[0].shape()[1].min(3), 1)?.1),
            |x| {
                x[0].lines(1, |line| {
                    order(line, true)[..line.len().min(3)]
                        .iter()
                        .map(|&i| i as f64)
                        .collect()
                })
            },
        ),
        filled(
            "take rows",
            &["a b"],
            |x| ops::take(&x[0], &indices(5, x[0].shape()[0]), 0),
            |x| {
                x[0].lines(0, |line| {
                    (0..5).map(|i| line[index(i, line.len())]).collect()
                })
            },
        ),
        case(
            "take nothing",
            &["a b"],
            |x| ops::take(&x[0], &indices(0, 1), 1),
            |x| x[0].lines(1, |_| vec![]),
        ),
        filled(
            "take_along_axis",
            &["a b"],
            |x| {
                let (a, b) = (x[0].shape()[0], x[0].shape()[1]);
                let ix = ops::reshape(&indices(a * 3, b), &[a as i64, 3])?;
                ops::take_along_axis(&x[0], &ix, 1)
            },
            |x| {
                let b = x[0].shape[1];
                Nd::from(&[x[0].shape[0], 3], |at| {
                    x[0].data[at[0] * b + index(at[0] * 3 + at[1], b)]
                })
            },
        ),
        filled(
            "scatter_add of rows",
            &["a b", "4 b"],
            |x| ops::scatter_add(&x[0], &indices(4, x[0].shape()[0]), &x[1], 0),
            |x| {
                let (a, b) = (x[0].shape[0], x[0].shape[1]);
                let mut out = x[0].clone();
                for i in 0..4 {
                    for j in 0..b {
                        out.data[index(i, a) * b + j] += x[1].data[i * b + j];
                    }
                }
                out
            },
        ),
        filled(
            "scatter_add along an axis",
            &["a b", "a 3"],
            |x| {
                let (a, b) = (x[0].shape()[0], x[0].shape()[1]);
                let ix = ops::reshape(&indices(a * 3, b), &[a as i64, 3])?;
                ops::scatter_add(&x[0], &ix, &x[1], 1)
            },
            |x| {
                let (a, b) = (x[0].shape[0], x[0].shape[1]);
                let mut out = x[0].clone();
                for i in 0..a * 3 {
                    out.data[i / 3 * b + index(i, b)] += x[1].data[i];
                }
                out
            },
        ),
        case(
            "segment_max",
            &["5 b"],
            |x| ops::segment_max(&x[0], &indices(5, 3), 4),
            |x| {
                let b = x[0].shape[1];
                Nd::from(&[4, b], |at| {
                    (0..5)
                        .filter(|&i| index(i, 3) == at[0])
                        .map(|i| x[0].data[i * b + at[1]])
                        .fold(f64::NEG_INFINITY, larger)
                })
            },
        ),
        case(
            "matmul",
            &["m k", "k n"],
            |x| ops::matmul(&x[0], &x[1]),
            |x| matmul(&x[0], &x[1]),
        ),
        case(
            "matmul of a batch",
            &["b m k", "k n"],
            |x| ops::matmul(&x[0], &x[1]),
            |x| matmul(&x[0], &x[1]),
        ),
        case(
            "matmul of broadcast batches",
            &["b 1 m k", "c k n"],
            |x| ops::matmul(&x[0], &x[1]),
            |x| matmul(&x[0], &x[1]),
        ),
        case(
            "reshape",
            &["a b 2"],
            |x| {
                let shape = [2, x[0].shape()[1] as i64, x[0].shape()[0] as i64];
                ops::reshape(&x[0], &shape)
            },
            |x| x[0].clone().with_shape(&[2, x[0].shape[1], x[0].shape[0]]),
        ),
        case(
            "reshape splits and joins axes",
            &["4 a 3"],
            |x| ops::reshape(&x[0], &[2, 2, -1, 3]),
            |x| x[0].clone().with_shape(&[2, 2, x[0].shape[1], 3]),
        ),
        case(
            "permute_dims",
            &["a b c"],
            |x| ops::permute_dims(&x[0], &[2, 0, 1]),
            |x| {
                let s = &x[0].shape;
                Nd::from(&[s[2], s[0], s[1]], |at| x[0].at(&[at[1], at[2], at[0]]))
            },
        ),
        case(
            "broadcast_to",
            &["a 1"],
            |x| ops::broadcast_to(&x[0], &[3, x[0].shape()[0], 2]),
            |x| Nd::from(&[3, x[0].shape[0], 2], |at| x[0].at(at)),
        ),
        case(
            "slice",
            &["a 4"],
            |x| ops::slice(&x[0], 1, 1, -1),
            |x| x[0].lines(1, |line| line[1..3].to_vec()),
        ),
        case(
            "slice past the ends",
            &["a b"],
            |x| ops::slice(&x[0], 0, -100, 2),
            |x| x[0].lines(0, |line| line[..line.len().min(2)].to_vec()),
        ),
        case(
            "concat",
            &["a b", "a c", "a 0"],
            |x| ops::concat(&[&x[0], &x[2], &x[1]], 1),
            |x| {
                let b = x[0].shape[1];
                Nd::from(&[x[0].shape[0], b + x[1].shape[1]], |at| {
                    if at[1] < b {
                        x[0].at(at)
                    } else {
                        x[1].at(&[at[0], at[1] - b])
                    }
                })
            },
        ),
        case(
            "astype to i64",
            &["a b"],
            |x| ops::astype(&x[0], DType::I64),
            |x| x[0].map(|a| (a as i64) as f64),
        ),
        case(
            "astype to bool",
            &["a b"],
            |x| ops::astype(&x[0], DType::Bool),
            |x| x[0].map(|a| truth(a != 0.0)),
        ),
        case(
            "contiguous",
            &["a b c"],
            |x| ops::permute_dims(&x[0], &[1, 0, 2])?.contiguous(),
            |x| {
                let s = &x[0].shape;
                Nd::from(&[s[1], s[0], s[2]], |at| x[0].at(&[at[1], at[0], at[2]]))
            },
        ),
    ]
}

fn cases() -> Vec<Case> {
    core_cases()
}

/// Ordinary values with some special ones among them.
fn values(n: usize, rng: &mut Rng) -> Vec<f64> {
    let special = [
        f64::NAN,
        f64::INFINITY,
        f64::NEG_INFINITY,
        0.0,
        -0.0,
        1.0,
        1.0,
        -100.0,
        100.0,
    ];
    let mut values = Domain::Any.values(n, rng);
    for v in &mut values {
        if rng.below(3) == 0 {
            *v = special[rng.below(special.len())];
        }
    }
    values
}

fn close(a: f64, b: f64, tolerance: f64) -> bool {
    if a.is_nan() || b.is_nan() {
        a.is_nan() && b.is_nan()
    } else {
        a == b || (a - b).abs() <= tolerance * (1.0 + b.abs())
    }
}

fn check(case: &Case, dtype: DType, special: bool, largest: usize, rng: &mut Rng) {
    let mut sizes = BTreeMap::new();
    let mut naive = Vec::new();
    let mut engine = Vec::new();
    let mut shows = Vec::new();
    for pattern in case.inputs {
        // `shape` draws sizes from 1; shift them down to start at the smallest allowed.
        for word in pattern.split_whitespace() {
            if word.parse::<usize>().is_err() && !sizes.contains_key(word) {
                let size = case.smallest + rng.below(largest + 1 - case.smallest);
                sizes.insert(word.to_string(), size);
            }
        }
        let shape = shape(pattern, &mut sizes, largest, rng);
        let n = shape.iter().product();
        let mut data = if special {
            values(n, rng)
        } else {
            Domain::Any.values(n, rng)
        };
        if dtype == DType::F32 {
            for v in &mut data {
                *v = f64::from(*v as f32);
            }
        }
        let show = SHOWS[rng.below(SHOWS.len())];
        engine.push(shown(show, &store(show, &data, &shape, dtype)));
        naive.push(Nd { shape, data });
        shows.push(show);
    }
    let what = format!("{} of {dtype} {naive:?} shown {shows:?}", case.name);
    let found = (case.engine)(&engine).unwrap_or_else(|e| panic!("{what}: {e}"));
    let expected = (case.naive)(&naive);
    assert_eq!(found.shape(), expected.shape, "{what}");
    // A longer sum carries more rounding.
    let tolerance = if dtype == DType::F32 { 3e-6 } else { 1e-13 } * (largest as f64).sqrt();
    for (i, (f, e)) in found
        .to_list()
        .unwrap()
        .iter()
        .zip(&expected.data)
        .enumerate()
    {
        // What overflows f32 is infinite there and only large in the reference.
        let e = if dtype == DType::F32 {
            f64::from(*e as f32)
        } else {
            *e
        };
        assert!(
            close(*f, e, tolerance),
            "{what}: element {i}: {f}, expected {e}"
        );
    }
}

#[test]
fn operations_match_the_reference_on_special_values_and_empty_axes() {
    for (number, case) in cases().iter().enumerate() {
        let mut rng = Rng(number as u64 * 77 + 5);
        for trial in 0..40 {
            let dtype = [DType::F32, DType::F64][trial % 2];
            check(case, dtype, true, 4, &mut rng);
        }
    }
}

#[test]
fn operations_match_the_reference_on_larger_shapes() {
    // Large enough for vector loops, tiles and parallel blocks.
    for (number, case) in cases().iter().enumerate() {
        let mut rng = Rng(number as u64 * 31 + 8);
        for trial in 0..4 {
            let dtype = [DType::F32, DType::F64][trial % 2];
            check(case, dtype, trial > 1, 37, &mut rng);
        }
    }
}

#[test]
fn views_show_what_they_should() {
    let t = Tensor::from_f64s(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3], DType::I64).unwrap();
    let stored = store(Show::Transposed, &t.to_list().unwrap(), &[2, 3], DType::I64);
    assert_eq!(stored.to_list().unwrap(), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
    assert!(!shown(Show::Transposed, &stored).is_contiguous());
    assert_eq!(
        shown(Show::Transposed, &stored).to_vec::<i64>().unwrap(),
        [1, 2, 3, 4, 5, 6]
    );
}
