#![allow(clippy::unwrap_used)]
//! Optimiser steps against numbers worked out by hand from PyTorch's formulas.

use espalier_tensor::optim::{
    Adam, AdamPart, Sgd, SgdPart, adam_step, adam_steps, sgd_step, sgd_steps,
};
use espalier_tensor::random::{Key, normal};
use espalier_tensor::threads::Pool;
use espalier_tensor::{DType, Error, Tensor};

const GRADIENTS: [f64; 3] = [0.5, -1.0, 2.0];

fn scalar(v: f64) -> Tensor {
    Tensor::from_f64s(&[v], &[1], DType::F64).unwrap()
}

fn sgd(momentum: f64, weight_decay: f64, nesterov: bool) -> Sgd {
    Sgd {
        lr: 0.1,
        momentum,
        weight_decay,
        nesterov,
    }
}

const ADAM: Adam = Adam {
    lr: 0.1,
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.0,
    decoupled: false,
};

#[test]
fn sgd_meets_the_numbers_of_the_formula() {
    // From 1: plain 1 - 0.05, + 0.1, - 0.2; with momentum the buffer is 0.5, then 0.45 - 1 = -0.55, then
    // -0.495 + 2 = 1.505.
    let cases = [
        (sgd(0.0, 0.0, false), [0.95, 1.05, 0.85]),
        (sgd(0.9, 0.0, false), [0.95, 1.005, 0.8545]),
        (sgd(0.9, 0.01, false), [0.949, 1.002151, 0.848984749]),
        (sgd(0.9, 0.01, true), [0.9031, 1.05007411, 0.711168458191]),
    ];
    for (options, want) in cases {
        let (mut x, mut buf) = (scalar(1.0), None);
        for (g, want) in GRADIENTS.iter().zip(want) {
            sgd_step(&mut x, &scalar(*g), &mut buf, &options, None).unwrap();
            assert!(
                (x.item().unwrap() - want).abs() < 1e-12,
                "{options:?}: {x:?}, not {want}"
            );
        }
        assert_eq!(buf.is_some(), options.momentum != 0.0);
    }
}

#[test]
fn adam_meets_the_numbers_of_the_formula() {
    // First step: m / (1 - beta1) = g and v / (1 - beta2) = g^2, so the step is lr g / (|g| + eps).
    let cases = [
        (ADAM, [0.900000002, 0.936610354240565, 0.894644792718105]),
        (
            Adam {
                weight_decay: 0.1,
                ..ADAM
            },
            [0.900000001666667, 0.925263519445606, 0.877617260804933],
        ),
        (
            Adam {
                weight_decay: 0.1,
                decoupled: true,
                ..ADAM
            },
            [0.890000002, 0.917710354220565, 0.866567689155899],
        ),
        (
            Adam {
                lr: 0.01,
                beta1: 0.5,
                beta2: 0.9,
                eps: 1e-3,
                ..ADAM
            },
            [0.99001996007984, 0.99623921311476, 0.989476949952033],
        ),
    ];
    for (options, want) in cases {
        let (mut x, mut m, mut v) = (scalar(1.0), None, None);
        for (step, (g, want)) in GRADIENTS.iter().zip(want).enumerate() {
            adam_step(
                &mut x,
                &scalar(*g),
                &mut m,
                &mut v,
                step as u64 + 1,
                &options,
                None,
            )
            .unwrap();
            assert!(
                (x.item().unwrap() - want).abs() < 1e-12,
                "{options:?}: {x:?}, not {want}"
            );
        }
    }
}

#[test]
fn a_tiny_epsilon_works_in_single_precision() {
    let options = Adam { eps: 1e-30, ..ADAM };
    let mut x = Tensor::from_f64s(&[1.0, 1.0], &[2], DType::F32).unwrap();
    let g = Tensor::from_f64s(&[1e-12, 3.0], &[2], DType::F32).unwrap();
    adam_step(&mut x, &g, &mut None, &mut None, 1, &options, None).unwrap();
    for v in x.to_list().unwrap() {
        assert!((v - 0.9).abs() < 1e-5, "{x:?}");
    }
}

#[test]
fn masked_elements_and_their_state_become_exactly_zero() {
    let number = Tensor::from_f64s(&[1.0, 0.0, 2.0, 0.0], &[4], DType::F32).unwrap();
    let truth = Tensor::from_vec(vec![true, false, true, false], &[4]).unwrap();
    for mask in [number, truth] {
        let mut x = Tensor::from_f64s(&[1.0, f64::NAN, -1.0, 2.0], &[4], DType::F32).unwrap();
        let g = Tensor::from_f64s(&[0.5, 1.0, 0.5, f64::INFINITY], &[4], DType::F32).unwrap();
        let (mut m, mut v, mut buf) = (None, None, None);
        adam_step(&mut x, &g, &mut m, &mut v, 1, &ADAM, Some(&mask)).unwrap();
        sgd_step(&mut x, &g, &mut buf, &sgd(0.9, 0.0, false), Some(&mask)).unwrap();
        for t in [
            &x,
            m.as_ref().unwrap(),
            v.as_ref().unwrap(),
            buf.as_ref().unwrap(),
        ] {
            let t = t.to_list().unwrap();
            assert_eq!((t[1], t[3]), (0.0, 0.0));
            assert!(t[0] != 0.0 && t[2] != 0.0);
        }
    }
}

#[test]
fn a_handle_given_out_earlier_keeps_the_old_value() {
    let mut x = scalar(1.0);
    let mut buf = None;
    sgd_step(&mut x, &scalar(0.5), &mut buf, &sgd(0.9, 0.0, false), None).unwrap();
    let (old_x, old_buf) = (x.with_requires_grad(), buf.clone().unwrap());
    sgd_step(&mut x, &scalar(0.5), &mut buf, &sgd(0.9, 0.0, false), None).unwrap();
    assert_eq!(old_x.item().unwrap(), 0.95);
    assert_eq!(old_buf.item().unwrap(), 0.5);
    assert!((x.item().unwrap() - 0.855).abs() < 1e-12);
    assert!(!x.requires_grad());
}

#[test]
fn a_view_as_value_and_as_gradient_is_stepped_by_position() {
    let block = Tensor::from_f64s(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3], DType::F64).unwrap();
    let mut x = espalier_tensor::ops::permute_dims(&block, &[1, 0]).unwrap();
    let g = espalier_tensor::ops::permute_dims(&block, &[1, 0]).unwrap();
    sgd_step(&mut x, &g, &mut None, &sgd(0.0, 0.0, false), None).unwrap();
    let want: Vec<f64> = [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]
        .iter()
        .map(|v| v - 0.1 * v)
        .collect();
    assert_eq!(x.to_list().unwrap(), want);
    assert_eq!(
        block.to_list().unwrap()[1],
        2.0,
        "the block that the view came from is unchanged"
    );
}

#[test]
fn the_number_of_threads_does_not_show() {
    let run = |threads: usize| {
        Pool::new(threads).unwrap().install(|| {
            let shape = [300, 401];
            let make = |i| normal(&Key::new(&[i]), &shape, DType::F32).unwrap();
            let mask =
                Tensor::from_vec((0..300 * 401).map(|i| i % 3 != 0).collect(), &shape).unwrap();
            let (mut x, mut m, mut v, mut buf) = (make(0), None, None, None);
            for step in 1..=3 {
                adam_step(
                    &mut x,
                    &make(step),
                    &mut m,
                    &mut v,
                    step,
                    &ADAM,
                    Some(&mask),
                )
                .unwrap();
                sgd_step(
                    &mut x,
                    &make(step),
                    &mut buf,
                    &sgd(0.9, 0.1, true),
                    Some(&mask),
                )
                .unwrap();
            }
            x.to_vec::<f32>().unwrap()
        })
    };
    let one = run(1);
    assert!(one.iter().all(|v| v.is_finite()));
    assert_eq!(one, run(2));
    assert_eq!(one, run(3));
}

#[test]
fn tensors_that_do_not_fit_are_refused_and_nothing_changes() {
    let mut x = scalar(1.0);
    let wrong_shape = Tensor::from_f64s(&[1.0, 2.0], &[2], DType::F64).unwrap();
    let wrong_type = Tensor::from_f64s(&[1.0], &[1], DType::F32).unwrap();
    let integers = Tensor::from_f64s(&[1.0], &[1], DType::I64).unwrap();
    let plain = sgd(0.9, 0.0, false);
    let shape = |e: Error| assert!(matches!(e, Error::Shape { .. }), "{e}");
    let dtype = |e: Error| assert!(matches!(e, Error::DType { .. }), "{e}");
    shape(sgd_step(&mut x, &wrong_shape, &mut None, &plain, None).unwrap_err());
    shape(
        sgd_step(
            &mut x,
            &scalar(1.0),
            &mut Some(wrong_shape.clone()),
            &plain,
            None,
        )
        .unwrap_err(),
    );
    shape(sgd_step(&mut x, &scalar(1.0), &mut None, &plain, Some(&wrong_shape)).unwrap_err());
    dtype(sgd_step(&mut x, &wrong_type, &mut None, &plain, None).unwrap_err());
    dtype(sgd_step(&mut x, &scalar(1.0), &mut None, &plain, Some(&integers)).unwrap_err());
    dtype(sgd_step(&mut integers.clone(), &integers, &mut None, &plain, None).unwrap_err());
    let step_zero =
        adam_step(&mut x, &scalar(1.0), &mut None, &mut None, 0, &ADAM, None).unwrap_err();
    assert!(
        step_zero.to_string().contains("counted from 1"),
        "{step_zero}"
    );
    assert_eq!(x.item().unwrap(), 1.0);
}

#[test]
fn an_empty_parameter_is_stepped_without_complaint() {
    let mut x = Tensor::zeros(&[0, 3], DType::F32).unwrap();
    let g = x.clone();
    let mut buf = None;
    sgd_step(&mut x, &g, &mut buf, &sgd(0.9, 0.0, false), None).unwrap();
    adam_step(&mut x, &g, &mut None, &mut None, 1, &ADAM, None).unwrap();
    assert_eq!(x.shape(), [0, 3]);
}

/// Values of odd sizes, one of them f64 and one masked.
fn several() -> Vec<(Tensor, Tensor, Option<Tensor>)> {
    let make = |seed: u64, n: usize, dtype| {
        let draw = |k| normal(&Key::new(&[seed, k]), &[n], dtype).unwrap();
        (draw(0), draw(1))
    };
    let mask = (0..70_000).map(|i| i % 3 != 0).collect();
    let mask = Tensor::from_vec::<bool>(mask, &[70_000]).unwrap();
    let sizes = [
        (1, DType::F32, None),
        (4097, DType::F64, None),
        (70_000, DType::F32, Some(mask)),
        (0, DType::F32, None),
    ];
    let parts = sizes.into_iter().zip(1..);
    parts
        .map(|((n, dtype, mask), seed)| {
            let (value, grad) = make(seed, n, dtype);
            (value, grad, mask)
        })
        .collect()
}

fn values(parts: &[(Tensor, Tensor, Option<Tensor>)]) -> Vec<Vec<f64>> {
    parts.iter().map(|p| p.0.to_list().unwrap()).collect()
}

#[test]
fn a_step_of_many_parameters_is_a_step_of_each() {
    let run = |threads: usize, together: bool| {
        Pool::new(threads).unwrap().install(|| {
            let mut parts = several();
            let mut states = vec![(None, None, None); parts.len()];
            for step in 1..4 {
                let momentum = sgd(0.9, 0.01, true);
                if together {
                    let mut sgd: Vec<SgdPart> = Vec::new();
                    for ((value, grad, mask), (buf, _, _)) in parts.iter_mut().zip(&mut states) {
                        let mask = mask.as_ref();
                        sgd.push(SgdPart {
                            value,
                            grad,
                            buf,
                            mask,
                        });
                    }
                    sgd_steps(&mut sgd, &momentum).unwrap();
                    let mut adam: Vec<AdamPart> = Vec::new();
                    for ((value, grad, mask), (_, m, v)) in parts.iter_mut().zip(&mut states) {
                        let mask = mask.as_ref();
                        adam.push(AdamPart {
                            value,
                            grad,
                            m,
                            v,
                            step,
                            mask,
                        });
                    }
                    adam_steps(&mut adam, &ADAM).unwrap();
                } else {
                    for ((value, grad, mask), (buf, m, v)) in parts.iter_mut().zip(&mut states) {
                        let mask = mask.as_ref();
                        sgd_step(value, grad, buf, &momentum, mask).unwrap();
                        adam_step(value, grad, m, v, step, &ADAM, mask).unwrap();
                    }
                }
            }
            values(&parts)
        })
    };
    let each = run(1, false);
    assert_eq!(each, run(1, true));
    assert_eq!(each, run(3, true));
    assert_ne!(each, values(&several()), "something moved");
}

#[test]
fn a_refused_parameter_is_named_and_no_value_has_changed() {
    let mut parts = several();
    parts[2].1 = scalar(1.0);
    let mut states = vec![(None, None); parts.len()];
    let before = values(&parts);
    let mut adam: Vec<AdamPart> = Vec::new();
    for ((value, grad, _), (m, v)) in parts.iter_mut().zip(&mut states) {
        adam.push(AdamPart {
            value,
            grad,
            m,
            v,
            step: 1,
            mask: None,
        });
    }
    let (at, error) = adam_steps(&mut adam, &ADAM).unwrap_err();
    assert_eq!(at, 2, "{error}");
    assert_eq!(values(&parts), before);
}
