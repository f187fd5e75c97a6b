//! The first tests to run: whether anything at all works.
#![allow(clippy::unwrap_used)]

use espalier_tensor::account::Account;
use espalier_tensor::autograd::grad;
use espalier_tensor::{DType, Error, Tensor, ops};

#[test]
fn gradient_of_a_small_network_matches_a_hand_calculation() {
    let x = Tensor::from_vec(vec![1.0f64, 2.0, 3.0, 4.0], &[2, 2]).unwrap();
    let w = Tensor::from_vec(vec![1.0f64, -1.0], &[2, 1])
        .unwrap()
        .with_requires_grad();
    let b = Tensor::from_vec(vec![2.0f64], &[1])
        .unwrap()
        .with_requires_grad();
    // x w + b = [1, 1]; loss = sum of squares = 2.
    let y = ops::add(&ops::matmul(&x, &w).unwrap(), &b).unwrap();
    let loss = ops::sum(&ops::multiply(&y, &y).unwrap(), &[], false).unwrap();
    assert_eq!(loss.item().unwrap(), 2.0);
    let gradients = grad(&[&loss], &[None], &[&w, &b], false, false).unwrap();
    assert_eq!(gradients[0].to_list().unwrap(), [8.0, 12.0]);
    assert_eq!(gradients[0].shape(), [2, 1]);
    assert_eq!(gradients[1].to_list().unwrap(), [4.0]);
    assert_eq!(
        grad(&[&loss], &[None], &[&w], false, false).unwrap_err(),
        Error::GraphFreed { op: "sum" }
    );
}

#[test]
fn second_derivative_of_a_cube_is_six_x() {
    let x = Tensor::full(&[], 2.0, DType::F64)
        .unwrap()
        .with_requires_grad();
    let y = ops::multiply(&ops::multiply(&x, &x).unwrap(), &x).unwrap();
    let first = grad(&[&y], &[None], &[&x], true, false).unwrap();
    assert_eq!(first[0].item().unwrap(), 12.0);
    let second = grad(&[&first[0]], &[None], &[&x], false, false).unwrap();
    assert_eq!(second[0].item().unwrap(), 12.0);
}

#[test]
fn storage_over_the_limit_is_refused_before_it_is_allocated() {
    let account = Account::new(Some(1000));
    let _scope = account.enter();
    let held = Tensor::zeros(&[100], DType::F64).unwrap();
    assert_eq!(account.used_bytes(), 800);
    let refused = Tensor::zeros(&[1 << 40], DType::F32).unwrap_err();
    assert!(matches!(
        refused,
        Error::Budget {
            used: 800,
            limit: 1000,
            ..
        }
    ));
    drop(held);
    assert_eq!(account.used_bytes(), 0);
    assert_eq!(account.peak_bytes(), 800);
}

#[test]
fn a_long_chain_is_built_differentiated_and_dropped_without_recursion() {
    let account = Account::new(None);
    let _scope = account.enter();
    let x = Tensor::full(&[], 1.0, DType::F32)
        .unwrap()
        .with_requires_grad();
    let mut y = x.clone();
    for _ in 0..200_000 {
        y = ops::multiply(&y, &x).unwrap();
    }
    assert_eq!(account.live_nodes(), 200_000);
    assert_eq!(account.peak_nodes(), 200_000);
    let kept = grad(&[&y], &[None], &[&x], false, true).unwrap();
    assert_eq!(kept[0].item().unwrap(), 200_001.0);
    assert_eq!(account.live_nodes(), 200_000);
    let freed = grad(&[&y], &[None], &[&x], false, false).unwrap();
    assert_eq!(freed[0].item().unwrap(), 200_001.0);
    assert_eq!(account.live_nodes(), 0);
    let mut z = x.clone();
    for _ in 0..200_000 {
        z = ops::multiply(&z, &x).unwrap();
    }
    drop(z);
    assert_eq!(account.live_nodes(), 0);
}

#[test]
fn a_bool_tensor_beside_a_number_becomes_f32_and_beside_a_tensor_that_ones_type() {
    let flags = Tensor::from_vec(vec![true, false], &[2]).unwrap();
    let doubles = Tensor::from_vec(vec![0.5f64, 0.5], &[2]).unwrap();
    let found = |t: Tensor| (t.dtype(), t.to_list().unwrap());
    let sum = ops::add(&flags, 2.0).unwrap();
    assert_eq!(found(sum), (DType::F32, vec![3.0, 2.0]));
    let sum = ops::add(&flags, &doubles).unwrap();
    assert_eq!(found(sum), (DType::F64, vec![1.5, 0.5]));
    assert!(ops::add(&flags, &flags).is_err());
    let chosen = ops::where_(&flags, &flags, 7.0).unwrap();
    assert_eq!(found(chosen), (DType::F32, vec![1.0, 7.0]));
    let chosen = ops::where_(&flags, &flags, &flags).unwrap();
    assert_eq!(found(chosen), (DType::Bool, vec![1.0, 0.0]));
    let chosen = ops::where_(&flags, 3.0, 4.0).unwrap();
    assert_eq!(found(chosen), (DType::F32, vec![3.0, 4.0]));
    assert_eq!(found(ops::add(1.0, 2.0).unwrap()), (DType::F32, vec![3.0]));
}
