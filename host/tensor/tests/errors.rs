//! Misuse is a typed error that names the operation; nothing a caller passes makes the engine panic.
#![allow(clippy::unwrap_used)]

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::{Domain, Rng};
use espalier_tensor::account::Account;
use espalier_tensor::autograd::grad;
use espalier_tensor::{DType, Error, Result, Tensor, ops};

fn f32s(shape: &[usize]) -> Tensor {
    Tensor::full(shape, 1.0, DType::F32).unwrap()
}

fn i64s(shape: &[usize]) -> Tensor {
    Tensor::full(shape, 0.0, DType::I64).unwrap()
}

fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    assert_eq!(
        message(ops::add(&f32s(&[2, 3]), &f32s(&[4]))),
        "add: shapes do not broadcast; got [2, 3] and [4]"
    );
    assert_eq!(
        message(ops::matmul(&f32s(&[2, 3]), &f32s(&[4, 5]))),
        "matmul: needs [.., m, k] and [.., k, n] with the same k; got [2, 3] and [4, 5]"
    );
    assert_eq!(
        message(ops::reshape(&f32s(&[2, 3]), &[4, -1])),
        "reshape: cannot give shape [2, 3] the shape [4, -1]: the size at -1 cannot be worked out"
    );
    assert_eq!(
        message(ops::concat(&[&f32s(&[2, 3]), &f32s(&[3, 3])], 1)),
        "concat: all axes but axis 1 must be equal; got [2, 3] and [3, 3]"
    );
    assert_eq!(
        message(f32s(&[2]).item()),
        "item: needs exactly one element; got [2]"
    );
}

#[test]
fn types_are_not_mixed_silently() {
    assert_eq!(
        message(ops::add(&f32s(&[2]), &i64s(&[2]))),
        "add: needs two tensors of one type; cast with astype; got f32 and i64"
    );
    let mask = ops::less(&f32s(&[2]), 2.0).unwrap();
    assert_eq!(
        message(ops::add(&mask, &mask)),
        "add: needs numbers; cast with astype; got bool and bool"
    );
    assert_eq!(ops::add(&mask, &i64s(&[2])).unwrap().dtype(), DType::I64);
    assert_eq!(ops::multiply(&mask, 2.0).unwrap().dtype(), DType::F32);
    assert!(matches!(
        ops::divide(&i64s(&[2]), &i64s(&[2])),
        Err(Error::DType { op: "divide", .. })
    ));
    assert!(matches!(
        ops::add(&i64s(&[2]), 0.5),
        Err(Error::Argument { op: "add", .. })
    ));
    assert!(matches!(
        ops::exp(&i64s(&[2])),
        Err(Error::DType { op: "exp", .. })
    ));
    assert!(matches!(
        f32s(&[1]).to_vec::<f64>(),
        Err(Error::DType { .. })
    ));
}

#[test]
fn axes_ranks_and_indices_out_of_range_are_refused() {
    let t = f32s(&[2, 3]);
    assert_eq!(
        message(ops::sum(&t, &[2], false)),
        "sum: axis 2 does not exist in a tensor of rank 2"
    );
    assert!(matches!(
        ops::max(&t, -3, false),
        Err(Error::Axis {
            axis: -3,
            rank: 2,
            ..
        })
    ));
    assert!(ops::sum(&t, &[0, -2], false).is_err());
    assert_eq!(
        message(Tensor::zeros(&[1; 7], DType::F32)),
        "zeros: a tensor has at most 6 axes, this would have 7"
    );
    let deep = i64s(&[1; 6]);
    assert!(matches!(
        ops::take(&f32s(&[1, 1]), &deep, 0),
        Err(Error::Rank { rank: 7, .. })
    ));
    let outside = Tensor::from_vec(vec![0i64, 2], &[2]).unwrap();
    assert_eq!(
        message(ops::take(&t, &outside, 0)),
        "take: index 2 is outside an axis of size 2"
    );
    let negative = Tensor::from_vec(vec![-1i64], &[1]).unwrap();
    assert!(matches!(
        ops::take(&t, &negative, 0),
        Err(Error::Index { index: -1, .. })
    ));
    assert!(matches!(ops::top_k(&t, 4, 1), Err(Error::Argument { .. })));
    assert!(matches!(
        ops::argmax(&f32s(&[0]), 0),
        Err(Error::Argument { .. })
    ));
    assert!(matches!(
        ops::permute_dims(&t, &[0, 0]),
        Err(Error::Argument { .. })
    ));
    assert!(matches!(ops::concat(&[], 0), Err(Error::Argument { .. })));
    assert!(matches!(
        ops::arange(0.0, 1.0, 0.0, DType::F32),
        Err(Error::Argument { .. })
    ));
}

#[test]
fn sizes_beyond_the_machine_are_refused() {
    let huge = usize::MAX / 2;
    assert!(matches!(
        Tensor::zeros(&[huge, huge], DType::F32),
        Err(Error::Size { .. })
    ));
    assert!(matches!(
        Tensor::zeros(&[huge, 0, huge], DType::F32),
        Err(Error::Size { .. })
    ));
    assert!(matches!(
        ops::broadcast_to(&f32s(&[1]), &[huge, 4]),
        Err(Error::Size { .. })
    ));
    assert!(matches!(
        Tensor::zeros(&[1 << 50], DType::F64),
        Err(Error::Memory { .. } | Error::Size { .. })
    ));
    let account = Account::new(Some(1 << 20));
    let _scope = account.enter();
    assert!(matches!(
        ops::arange(0.0, 1e15, 1.0, DType::F32),
        Err(Error::Budget { op: "arange", .. })
    ));
    // A view is free, but not one that could keep the host busy for hours.
    let wide = ops::broadcast_to(&f32s(&[1]), &[1 << 18]).unwrap();
    assert_eq!(account.used_bytes(), 4);
    assert!(matches!(
        ops::exp(&wide),
        Err(Error::Budget { op: "exp", .. })
    ));
    assert!(matches!(
        ops::broadcast_to(&wide, &[1 << 40, 1 << 18]),
        Err(Error::Budget {
            op: "broadcast_to",
            ..
        })
    ));
    assert_eq!(account.used_bytes(), 4);
    // Nothing is stored, but a gradient would loop over the outer axes.
    assert!(matches!(
        Tensor::zeros(&[1 << 30, 1 << 20, 0], DType::F32),
        Err(Error::Budget { op: "zeros", .. })
    ));
}

#[test]
fn gradients_refuse_what_has_none() {
    let x = f32s(&[3]).with_requires_grad();
    let y = ops::exp(&x).unwrap();
    assert!(matches!(
        grad(&[&y], &[None], &[&x], false, false),
        Err(Error::Shape { .. })
    ));
    assert!(matches!(
        grad(&[&y], &[], &[&x], false, false),
        Err(Error::Argument { .. })
    ));
    let wrong = f32s(&[2]);
    assert!(matches!(
        grad(&[&y], &[Some(&wrong)], &[&x], false, false),
        Err(Error::Shape { .. })
    ));
    let double = Tensor::ones(&[3], DType::F64).unwrap();
    assert!(matches!(
        grad(&[&y], &[Some(&double)], &[&x], false, false),
        Err(Error::DType { .. })
    ));
    let order = ops::argsort(&x, 0, false).unwrap();
    assert!(matches!(
        grad(&[&order], &[None], &[&x], false, false),
        Err(Error::DType { .. })
    ));
}

/// A tensor of any type, small random shape, sometimes a view, sometimes tracked.
fn any_tensor(rng: &mut Rng) -> Tensor {
    let rank = rng.below(5);
    let shape: Vec<usize> = (0..rank)
        .map(|_| [0, 1, 1, 2, 2, 3][rng.below(6)])
        .collect();
    let dtype = [
        DType::F32,
        DType::F32,
        DType::F64,
        DType::I64,
        DType::I64,
        DType::Bool,
    ][rng.below(6)];
    let mut values = Domain::Any.values(shape.iter().product(), rng);
    for v in &mut values {
        if rng.below(8) == 0 {
            *v = [f64::NAN, f64::INFINITY, -0.0, 1e300][rng.below(4)];
        }
    }
    let mut t = Tensor::from_f64s(&values, &shape, dtype).unwrap();
    if rng.below(3) == 0 {
        t = t.with_requires_grad();
    }
    if rng.below(3) == 0 {
        let axes: Vec<usize> = (0..rank).rev().collect();
        t = ops::permute_dims(&t, &axes).unwrap();
    }
    if rng.below(4) == 0 && rank > 0 {
        t = ops::slice(&t, -1, 1, 3).unwrap();
    }
    t
}

/// One call of a random operation with random arguments.
fn any_call(rng: &mut Rng) -> Result<Vec<Tensor>> {
    let (a, b, c) = (any_tensor(rng), any_tensor(rng), any_tensor(rng));
    let axis = rng.below(8) as isize - 4;
    let size = rng.below(6) as i64 - 1;
    let one = |t: Result<Tensor>| t.map(|t| vec![t]);
    one(match rng.below(36) {
        0 => ops::add(&a, &b),
        1 => ops::subtract(&a, 1.5),
        2 => ops::multiply(&a, &b),
        3 => ops::divide(f64::NAN, &a),
        4 => ops::maximum(&a, &b),
        5 => ops::minimum(&a, 1.0),
        6 => ops::equal(&a, &b),
        7 => ops::less(0.0, &a),
        8 => ops::where_(&a, &b, &c),
        9 => ops::abs(&a),
        10 => ops::exp(&a),
        11 => ops::expm1(&a),
        12 => ops::log(&a),
        13 => ops::sqrt(&a),
        14 => ops::acos(&a),
        15 => ops::gelu(&a),
        16 => ops::softplus(&a),
        17 => ops::sum(&a, &[axis], rng.below(2) == 0),
        18 => ops::sum(&a, &[0, axis], false),
        19 => ops::max(&a, axis, rng.below(2) == 0),
        20 => ops::argmax(&a, axis),
        21 => ops::cumulative_sum(&a, axis),
        22 => ops::argsort(&a, axis, rng.below(2) == 0),
        23 => return ops::top_k(&a, rng.below(4), axis).map(|(v, i)| vec![v, i]),
        24 => ops::take(&a, &b, axis),
        25 => ops::take_along_axis(&a, &b, axis),
        26 => ops::scatter_add(&a, &b, &c, axis),
        27 => ops::segment_max(&a, &b, rng.below(4)),
        28 => ops::matmul(&a, &b),
        29 => ops::reshape(&a, &[size, rng.below(5) as i64 - 1, rng.below(3) as i64]),
        30 => ops::permute_dims(&a, &[rng.below(3), rng.below(3), rng.below(3)]),
        31 => ops::broadcast_to(&a, &[rng.below(4), rng.below(4), rng.below(4)]),
        32 => ops::slice(
            &a,
            axis,
            isize::MIN + rng.below(3) as isize,
            rng.below(5) as isize - 2,
        ),
        33 => ops::concat(&[&a, &b, &c], axis),
        34 => ops::astype(
            &a,
            [DType::F32, DType::F64, DType::I64, DType::Bool][rng.below(4)],
        ),
        _ => ops::arange(
            rng.between(-9.0, 9.0),
            rng.between(-9.0, 9.0),
            rng.between(-1.0, 1.0),
            DType::I64,
        ),
    })
    .and_then(|outputs| {
        // Where a gradient exists, it must be computable too.
        let inputs = [&a, &b, &c];
        for out in &outputs {
            if out.requires_grad() {
                let ones = Tensor::ones(out.shape(), out.dtype()).unwrap();
                let gradients = grad(&[out], &[Some(&ones)], &inputs, rng.below(2) == 0, false)?;
                for (g, input) in gradients.iter().zip(inputs) {
                    assert_eq!(g.shape(), input.shape());
                    assert_eq!(g.dtype(), input.dtype());
                }
            }
        }
        Ok(outputs)
    })
}

#[test]
fn random_calls_return_but_never_panic() {
    let (mut good, mut refused) = (0, 0);
    for seed in 0..40_000u64 {
        let result = catch_unwind(AssertUnwindSafe(|| any_call(&mut Rng(seed))));
        match result {
            Ok(Ok(outputs)) => {
                for t in outputs {
                    assert_eq!(t.to_list().unwrap().len(), t.numel());
                }
                good += 1;
            }
            Ok(Err(Error::Internal { op, problem })) => panic!("seed {seed}: {op}: {problem}"),
            Ok(Err(error)) => {
                assert!(!error.to_string().is_empty());
                refused += 1;
            }
            Err(_) => panic!("seed {seed} panicked"),
        }
    }
    // The generator must reach both sides often for this to mean anything.
    assert!(
        good > 5_000 && refused > 5_000,
        "{good} good, {refused} refused"
    );
}
