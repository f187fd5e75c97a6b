//! Single precision takes other kernels than double; at the size of real layers both must tell the same story.
#![allow(clippy::unwrap_used)]

use espalier_tensor::random::{Key, normal};
use espalier_tensor::{DType, Result, Tensor, autograd, nn, ops};

/// Loss and gradients of a small CNN on a batch of 64 images of 28x28.
fn cnn(dtype: DType, weights: &[Tensor], x: &Tensor, y: &Tensor) -> Result<(f64, Vec<Vec<f64>>)> {
    let w: Vec<Tensor> = weights
        .iter()
        .map(|w| Ok(ops::astype(w, dtype)?.with_requires_grad()))
        .collect::<Result<_>>()?;
    let x = ops::astype(x, dtype)?;
    let bias = |h: &Tensor, b: &Tensor| ops::add(h, &ops::reshape(b, &[1, -1, 1, 1])?);
    let h = ops::relu(&bias(
        &ops::conv2d(&x, &w[0], (1, 1), (0, 0), (1, 1), 1)?,
        &w[1],
    )?)?;
    let h = nn::max_pool2d(&h, (2, 2), (2, 2), (0, 0))?;
    let h = ops::relu(&bias(
        &ops::conv2d(&h, &w[2], (1, 1), (0, 0), (1, 1), 1)?,
        &w[3],
    )?)?;
    let h = nn::max_pool2d(&h, (2, 2), (2, 2), (0, 0))?;
    let h = ops::reshape(&h, &[64, 1600])?;
    let h = ops::relu(&nn::linear(&h, &w[4], Some(&w[5]))?)?;
    let logits = nn::linear(&h, &w[6], Some(&w[7]))?;
    let loss = ops::divide(
        &ops::sum(&ops::cross_entropy(&logits, y)?, &[], false)?,
        64.0,
    )?;
    let inputs: Vec<&Tensor> = w.iter().collect();
    let grads = autograd::grad(&[&loss], &[None], &inputs, false, false)?;
    Ok((
        loss.item()?,
        grads.iter().map(Tensor::to_list).collect::<Result<_>>()?,
    ))
}

#[test]
fn gradients_of_a_cnn_agree_between_f32_and_f64() {
    let shapes: [&[usize]; 8] = [
        &[32, 1, 3, 3],
        &[32],
        &[64, 32, 3, 3],
        &[64],
        &[128, 1600],
        &[128],
        &[10, 128],
        &[10],
    ];
    let weights: Vec<Tensor> = shapes
        .iter()
        .enumerate()
        .map(|(i, shape)| {
            let fan = shape.iter().skip(1).product::<usize>().max(1) as f64;
            ops::multiply(
                &normal(&Key::new(&[i as u64]), shape, DType::F64).unwrap(),
                fan.sqrt().recip(),
            )
            .unwrap()
        })
        .collect();
    let x = normal(&Key::new(&[100]), &[64, 1, 28, 28], DType::F64).unwrap();
    let labels: Vec<i64> = (0..64).map(|i| i % 10).collect();
    let y = Tensor::from_vec(labels, &[64]).unwrap();
    let (loss64, grads64) = cnn(DType::F64, &weights, &x, &y).unwrap();
    let (loss32, grads32) = cnn(DType::F32, &weights, &x, &y).unwrap();
    assert!((loss64 - loss32).abs() < 1e-5 * loss64, "{loss64} {loss32}");
    for (i, (a, b)) in grads64.iter().zip(&grads32).enumerate() {
        let size = a.iter().map(|x| x * x).sum::<f64>().sqrt();
        let error = a
            .iter()
            .zip(b)
            .map(|(x, y)| (x - y) * (x - y))
            .sum::<f64>()
            .sqrt();
        // A few activations lie so close to 0, or to each other in a pool, that single precision decides
        // otherwise; hence not 1e-6.
        assert!(
            error < 1e-3 * size,
            "gradient {i} {:?}: relative error {}",
            shapes[i],
            error / size
        );
    }
}
