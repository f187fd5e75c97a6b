//! Results have the same bits on any number of threads.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Domain, Rng};
use espalier_tensor::random::{self, Key};
use espalier_tensor::threads::Pool;
use espalier_tensor::{DType, Result, Tensor, autograd, nn, ops, optim};

/// Everything a computation makes, as bits.
fn bits(tensors: &[Tensor]) -> Vec<u64> {
    tensors
        .iter()
        .flat_map(|t| t.to_list().unwrap())
        .map(f64::to_bits)
        .collect()
}

fn random(shape: &[usize], dtype: DType, seed: u64) -> Tensor {
    let values = Domain::Any.values(shape.iter().product(), &mut Rng(seed));
    Tensor::from_f64s(&values, shape, dtype).unwrap()
}

/// Runs `work` in pools of 1, 2 and 3 threads, several times each, and compares bits.
fn same_on_any_threads(what: &str, work: impl Fn() -> Vec<Tensor> + Sync) {
    let expected = bits(&Pool::new(1).unwrap().install(&work));
    assert!(!expected.is_empty());
    for threads in [2, 3] {
        let pool = Pool::new(threads).unwrap();
        for _ in 0..3 {
            assert!(
                bits(&pool.install(&work)) == expected,
                "{what} differs on {threads} threads"
            );
        }
    }
}

#[test]
fn sums_of_every_layout() {
    for dtype in [DType::F32, DType::F64] {
        let t = random(&[129, 33, 70], dtype, 1);
        let tall = random(&[50_000, 7], dtype, 2);
        let long = random(&[400_001], dtype, 3);
        same_on_any_threads("sum", || {
            let turned = ops::permute_dims(&t, &[2, 0, 1]).unwrap();
            let mut out = vec![
                ops::sum(&long, &[], false).unwrap(),
                ops::sum(&tall, &[0], false).unwrap(),
                ops::sum(&tall, &[1], false).unwrap(),
            ];
            for axes in [&[0][..], &[1], &[2], &[0, 1], &[0, 2], &[1, 2], &[]] {
                out.push(ops::sum(&t, axes, false).unwrap());
                out.push(ops::sum(&turned, axes, false).unwrap());
            }
            out
        });
    }
}

#[test]
fn products_of_many_shapes() {
    for dtype in [DType::F32, DType::F64] {
        let pairs: Vec<(Tensor, Tensor)> = [
            (vec![300, 200], vec![200, 150]),
            (vec![1, 900], vec![900, 300]),
            (vec![513, 70], vec![70, 1]),
            (vec![6, 65, 30], vec![6, 30, 65]),
            (vec![40, 25, 64], vec![64, 64]),
            (vec![2, 1, 65, 40], vec![3, 40, 30]),
        ]
        .into_iter()
        .enumerate()
        .map(|(i, (a, b))| {
            (
                random(&a, dtype, i as u64),
                random(&b, dtype, 100 + i as u64),
            )
        })
        .collect();
        same_on_any_threads("matmul", || {
            let turn = |t: &Tensor| {
                let mut axes: Vec<usize> = (0..t.rank()).collect();
                axes.swap(t.rank() - 2, t.rank() - 1);
                ops::permute_dims(t, &axes).unwrap()
            };
            let mut out = Vec::new();
            for (a, b) in &pairs {
                out.push(ops::matmul(a, b).unwrap());
                out.push(ops::matmul(&turn(b), &turn(a)).unwrap());
            }
            out
        });
    }
}

#[test]
fn maps_orders_and_indices() {
    let a = random(&[300, 400], DType::F32, 1);
    let b = random(&[400], DType::F32, 2);
    same_on_any_threads("elementwise and order", || {
        let turned = ops::permute_dims(&a, &[1, 0]).unwrap();
        let order = ops::argsort(&a, 1, true).unwrap();
        let (values, indices) = ops::top_k(&a, 30, 0).unwrap();
        let ids = ops::astype(
            &ops::multiply(&ops::abs(&b).unwrap(), 100.0).unwrap(),
            DType::I64,
        )
        .unwrap();
        let base = Tensor::zeros(&[300, 400], DType::F32).unwrap();
        vec![
            ops::gelu(&ops::add(&a, &b).unwrap()).unwrap(),
            ops::exp(&turned).unwrap(),
            turned.contiguous().unwrap(),
            ops::less(&a, &b).unwrap(),
            ops::take_along_axis(&a, &order, 1).unwrap(),
            values,
            indices,
            ops::cumulative_sum(&a, 1).unwrap(),
            ops::max(&a, 1, false).unwrap(),
            ops::argmax(&a, 0).unwrap(),
            ops::take(&a, &ids, 0).unwrap(),
            ops::scatter_add(&base, &ids, &ops::take(&a, &ids, 0).unwrap(), 0).unwrap(),
        ]
    });
}

#[test]
fn gradients_of_a_network() {
    let x = random(&[256, 300], DType::F32, 1);
    let (w1, w2) = (
        random(&[300, 500], DType::F32, 2),
        random(&[500, 10], DType::F32, 3),
    );
    let bias = random(&[500], DType::F32, 4);
    same_on_any_threads("gradients", || {
        let leaves: Vec<Tensor> = [&w1, &w2, &bias]
            .iter()
            .map(|t| t.with_requires_grad())
            .collect();
        let h = ops::add(&ops::matmul(&x, &leaves[0]).unwrap(), &leaves[2]).unwrap();
        let y = ops::matmul(&ops::tanh(&h).unwrap(), &leaves[1]).unwrap();
        let loss = ops::sum(&ops::multiply(&y, &y).unwrap(), &[], false).unwrap();
        let inputs: Vec<&Tensor> = leaves.iter().collect();
        autograd::grad(&[&loss], &[None], &inputs, false, false).unwrap()
    });
}

/// The results of `layer` on tracked inputs, and the gradients of a weighted sum of the first result.
fn with_gradients(
    inputs: &[&Tensor],
    layer: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
) -> Vec<Tensor> {
    let leaves: Vec<Tensor> = inputs.iter().map(|t| t.with_requires_grad()).collect();
    let mut out = layer(&leaves).unwrap();
    let weights = random(out[0].shape(), out[0].dtype(), 99);
    let inputs: Vec<&Tensor> = leaves.iter().collect();
    out.extend(autograd::grad(&[&out[0]], &[Some(&weights)], &inputs, false, false).unwrap());
    out
}

#[test]
fn layers_and_their_gradients() {
    let images = random(&[20, 12, 17, 19], DType::F32, 1);
    let filters = random(&[24, 12, 3, 3], DType::F32, 2);
    let (scale, shift) = (random(&[12], DType::F32, 3), random(&[12], DType::F32, 4));
    same_on_any_threads("conv2d", || {
        with_gradients(&[&images, &filters], |x| {
            Ok(vec![ops::conv2d(&x[0], &x[1], (2, 1), (1, 1), (1, 1), 1)?])
        })
    });
    same_on_any_threads("batch_norm", || {
        with_gradients(&[&images, &scale, &shift], |x| {
            let (y, mean, var) = ops::batch_norm(&x[0], Some(&x[1]), Some(&x[2]), None, 1e-5)?;
            Ok(vec![y, mean, var])
        })
    });
    same_on_any_threads("pooling", || {
        with_gradients(&[&images], |x| {
            let max = nn::max_pool2d(&x[0], (3, 3), (2, 2), (1, 1))?;
            let mean = nn::avg_pool2d(&x[0], (3, 3), (2, 2), (1, 1))?;
            Ok(vec![ops::add(&max, &mean)?])
        })
    });
    let rows = random(&[700, 130], DType::F32, 5);
    let weight = random(&[300, 130], DType::F32, 6);
    let bias = random(&[300], DType::F32, 7);
    let labels = Tensor::from_vec((0..700i64).map(|i| i % 300).collect(), &[700]).unwrap();
    same_on_any_threads("a classifier", || {
        with_gradients(&[&rows, &weight, &bias], |x| {
            let normal = ops::layer_norm(&x[0], &[-1], None, None, 1e-5)?;
            let logits = nn::linear(&normal, &x[1], Some(&x[2]))?;
            let loss = ops::cross_entropy(&logits, &labels)?;
            Ok(vec![
                loss,
                ops::softmax(&logits, 0)?,
                ops::log_softmax(&logits, 1)?,
            ])
        })
    });
    let sequence = random(&[24, 33, 32], DType::F32, 8);
    same_on_any_threads("attention", || {
        with_gradients(&[&sequence, &ops::multiply(&sequence, 0.5).unwrap()], |x| {
            Ok(vec![ops::scaled_dot_product_attention(
                &x[0], &x[1], &x[0], None, true,
            )?])
        })
    });
    let (w_ih, w_hh) = (
        random(&[160, 32], DType::F32, 9),
        random(&[160, 40], DType::F32, 10),
    );
    same_on_any_threads("lstm", || {
        with_gradients(&[&sequence, &w_ih, &w_hh], |x| {
            Ok(vec![nn::lstm(&x[0], &x[1], &x[2], None, None)?])
        })
    });
}

#[test]
fn random_numbers_and_updates() {
    let gradient = random(&[300, 500], DType::F32, 1);
    same_on_any_threads("random and optimisers", || {
        let key = Key::new(&[1, 2, 3]);
        let normal = random::normal(&key, &[300, 500], DType::F32).unwrap();
        let uniform = random::uniform(&key, &[300, 500], DType::F64).unwrap();
        let dropped = nn::dropout(&normal, 0.3, &key).unwrap();
        let (mut value, mut m, mut v) = (normal.clone(), None, None);
        let adam = optim::Adam {
            lr: 0.1,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            decoupled: true,
        };
        for step in 1..4 {
            optim::adam_step(&mut value, &gradient, &mut m, &mut v, step, &adam, None).unwrap();
        }
        vec![normal, uniform, dropped, value, m.unwrap(), v.unwrap()]
    });
}
