//! Batch and layer normalisation.

use crate::autograd::{self, record};
use crate::capture;
use crate::dtype::{Element, with_float};
use crate::error::{Error, Result};
use crate::lanes::{Real, simd_fn, sum_pairs, sum_with};
use crate::ops;
use crate::ops::replay::replay;
use crate::ops::rows::{axis_of, one_float_type, rows_per_block, signed};
use crate::tensor::Tensor;
use crate::threads::{BLOCK, for_blocks, map_ranges};

/// A tensor [samples, channels, rest] as batch normalisation sees it.
#[derive(Clone, Copy)]
struct Channels {
    samples: usize,
    channels: usize,
    rest: usize,
}

impl Channels {
    /// Elements of one channel.
    fn each(&self) -> usize {
        self.samples * self.rest
    }
    fn total(&self) -> usize {
        self.each() * self.channels
    }
}

/// Normalises every channel (axis 1) of `x[n, c, ..]` to mean 0 and variance 1, then scales by `weight[c]`
/// and shifts by `bias[c]` where given. Returns (y, mean, variance).
///
/// Without `stats` the batch's own mean and biased variance are used and returned, tracked. With
/// `stats = (mean[c], variance[c])` those are used, gradients flow into them, and they are returned as given.
/// `eps` is added to the variance.
///
/// # Errors
/// [`Error::Shape`] for a rank below 2 or a parameter that is not `[c]`, [`Error::DType`], [`Error::Budget`].
pub fn batch_norm(
    x: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    stats: Option<(&Tensor, &Tensor)>,
    eps: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    const OP: &str = "batch_norm";
    let &[samples, channels, ref rest @ ..] = x.shape() else {
        return Err(Error::shape(OP, "the input is [n, c, ..]", &[x.shape()]));
    };
    let parameters = [weight, bias, stats.map(|s| s.0), stats.map(|s| s.1)];
    let mut all = vec![x];
    for parameter in parameters.into_iter().flatten() {
        if parameter.shape() != [channels] {
            let expected =
                format!("weight, bias, mean and variance are [{channels}], the input's axis 1");
            return Err(Error::shape(OP, expected, &[x.shape(), parameter.shape()]));
        }
        all.push(parameter);
    }
    one_float_type(OP, &all)?;
    let shape = Channels {
        samples,
        channels,
        rest: rest.iter().product(),
    };
    match stats {
        Some((mean, variance)) => {
            let y = with_stats(OP, x, shape, weight, bias, mean, variance, eps)?;
            Ok((y, mean.clone(), variance.clone()))
        }
        None => with_batch(OP, x, shape, weight, bias, eps),
    }
}

/// [1, c, 1, ..]: a channel's parameter against `rank` axes.
fn beside(parameter: &Tensor, rank: usize) -> Result<Tensor> {
    let mut shape = vec![1i64; rank];
    shape[1] = -1;
    if parameter.numel() == 0 {
        shape[1] = 0;
    }
    ops::reshape(parameter, &shape)
}

/// (x - mean) / sqrt(variance + eps) * weight + bias from primitive operations; parameters are [c].
fn composed(
    x: &Tensor,
    mean: &Tensor,
    variance: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let rank = x.rank();
    let deviation = ops::sqrt(&ops::add(&beside(variance, rank)?, eps)?)?;
    let mut y = ops::divide(&ops::subtract(x, &beside(mean, rank)?)?, &deviation)?;
    if let Some(weight) = weight {
        y = ops::multiply(&y, &beside(weight, rank)?)?;
    }
    if let Some(bias) = bias {
        y = ops::add(&y, &beside(bias, rank)?)?;
    }
    Ok(y)
}

/// Mean and biased variance [c] of every channel from primitive operations.
fn composed_stats(x: &Tensor) -> Result<(Tensor, Tensor)> {
    let axes: Vec<isize> = (0..x.rank() as isize).filter(|&a| a != 1).collect();
    let channels = x.shape().get(1).copied().unwrap_or(1);
    let count = (x.numel() / channels.max(1)) as f64;
    let mean = ops::divide(&ops::sum(x, &axes, true)?, count)?;
    let centred = ops::subtract(x, &mean)?;
    let variance = ops::divide(
        &ops::sum(&ops::multiply(&centred, &centred)?, &axes, false)?,
        count,
    )?;
    Ok((ops::reshape(&mean, &[channels as i64])?, variance))
}

fn with_batch(
    op: &'static str,
    x: &Tensor,
    shape: Channels,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<(Tensor, Tensor, Tensor)> {
    let dense = x.dense(op)?;
    let (y, mean, variance) = with_float!(op, x.dtype(), T => {
        let data = dense.data::<T>()?;
        let count = shape.each() as f64;
        let sums = channel_sums(data, shape);
        let mean = Tensor::build_unset::<T>(op, &[shape.channels], |out| {
            for (o, sum) in out.iter_mut().zip(&sums) {
                *o = T::of(sum / count);
            }
        })?;
        let squares = channel_squares(data, shape, mean.data::<T>()?);
        let variance = Tensor::build_unset::<T>(op, &[shape.channels], |out| {
            for (o, sum) in out.iter_mut().zip(&squares) {
                *o = T::of(sum / count);
            }
        })?;
        let y = normalise::<T>(op, &dense, shape, &mean, &variance, weight, bias, eps)?;
        (y, mean, variance)
    });

    let mut parents = vec![x];
    parents.extend(weight);
    parents.extend(bias);
    let (has_weight, has_bias) = (weight.is_some(), bias.is_some());
    let kept: Vec<Tensor> = parents.iter().map(|&p| p.clone()).collect();
    let stats = (mean.clone(), variance.clone());
    let source = dense.clone();
    let y = record(op, y, &parents, move |flow| {
        let (weight, bias) = affine(&kept[1..], has_weight, has_bias);
        if autograd::grad_enabled() {
            let parents: Vec<&Tensor> = kept.iter().collect();
            return replay(flow, &parents, |p| {
                let (weight, bias) = affine(&p[1..], has_weight, has_bias);
                let (mean, variance) = composed_stats(&p[0])?;
                composed(&p[0], &mean, &variance, weight, bias, eps)
            });
        }
        with_float!(op, source.dtype(), T => {
            let g = flow.grad.dense(op)?;
            let (data, g) = (source.data::<T>()?, g.data::<T>()?);
            let (m, v) = (stats.0.data::<T>()?, stats.1.data::<T>()?);
            let pairs = channel_pairs(data, g, shape, m);
            let count = shape.each() as f64;
            let inverse = inverse_deviations(v, eps);
            let scales = scales::<T>(weight, &inverse)?;
            // dx = w / s (g - mean(g) - xc / s^2 mean(g xc)), with s the deviation and xc = x - mean.
            let dx = if flow.needs(0) {
                let factor: Vec<T> = (0..shape.channels)
                    .map(|c| T::of(-scales[c] * inverse[c] * inverse[c] * pairs[c].1 / count))
                    .collect();
                let shift: Vec<T> =
                    (0..shape.channels).map(|c| T::of(-scales[c] * pairs[c].0 / count)).collect();
                let scale: Vec<T> = scales.iter().map(|&s| T::of(s)).collect();
                let parts = [m, &factor, &shift, &scale];
                Some(Tensor::build_unset::<T>(op, source.shape(), |dx| {
                    channelwise(dx, shape, |first, dx| {
                        let range = first..first + dx.len();
                        combine(&data[range.clone()], &g[range], first, shape, &parts, dx);
                    });
                })?)
            } else {
                None
            };
            let mut gradients = vec![dx];
            if weight.is_some() {
                let values = pairs.iter().zip(&inverse).map(|(p, i)| T::of(p.1 * i)).collect();
                gradients.push(Some(Tensor::from_vec_for::<T>(op, values, &[shape.channels])?));
            }
            if bias.is_some() {
                let values = pairs.iter().map(|p| T::of(p.0)).collect();
                gradients.push(Some(Tensor::from_vec_for::<T>(op, values, &[shape.channels])?));
            }
            Ok(gradients)
        })
    });
    // The statistics are results of their own: d mean / dx = 1 / count, d variance / dx = 2 (x - mean) / count.
    let (rank, count) = (x.rank(), shape.each() as f64);
    let tracked_mean = record(op, mean.clone(), &[x], move |flow| {
        Ok(vec![Some(ops::divide(&beside(&flow.grad, rank)?, count)?)])
    });
    let kept = x.clone();
    let tracked_variance = record(op, variance, &[x], move |flow| {
        let mean = if autograd::grad_enabled() {
            composed_stats(&kept)?.0
        } else {
            mean.clone()
        };
        let centred = ops::subtract(&kept, &beside(&mean, rank)?)?;
        let scaled = ops::multiply(&beside(&flow.grad, rank)?, 2.0 / count)?;
        Ok(vec![Some(ops::multiply(&centred, &scaled)?)])
    });
    Ok((y, tracked_mean, tracked_variance))
}

/// Weight and bias out of a list that holds those that exist, in this order.
fn affine(list: &[Tensor], has_weight: bool, has_bias: bool) -> (Option<&Tensor>, Option<&Tensor>) {
    let weight = if has_weight { list.first() } else { None };
    let bias = if has_bias {
        list.get(usize::from(has_weight))
    } else {
        None
    };
    (weight, bias)
}

#[allow(clippy::too_many_arguments)]
fn with_stats(
    op: &'static str,
    x: &Tensor,
    shape: Channels,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    mean: &Tensor,
    variance: &Tensor,
    eps: f64,
) -> Result<Tensor> {
    let dense = x.dense(op)?;
    let y = with_float!(op, x.dtype(), T => {
        normalise::<T>(op, &dense, shape, &mean.dense(op)?, &variance.dense(op)?, weight, bias, eps)?
    });
    let mut parents = vec![x, mean, variance];
    parents.extend(weight);
    parents.extend(bias);
    let (has_weight, has_bias) = (weight.is_some(), bias.is_some());
    let kept: Vec<Tensor> = parents.iter().map(|&p| p.clone()).collect();
    Ok(record(op, y, &parents, move |flow| {
        if autograd::grad_enabled() {
            let parents: Vec<&Tensor> = kept.iter().collect();
            return replay(flow, &parents, |p| {
                let (weight, bias) = affine(&p[3..], has_weight, has_bias);
                composed(&p[0], &p[1], &p[2], weight, bias, eps)
            });
        }
        let (weight, _) = affine(&kept[3..], has_weight, has_bias);
        with_float!(op, dense.dtype(), T => {
            let g = flow.grad.dense(op)?;
            let (mean, variance) = (kept[1].dense(op)?, kept[2].dense(op)?);
            let (data, g) = (dense.data::<T>()?, g.data::<T>()?);
            let (m, v) = (mean.data::<T>()?, variance.data::<T>()?);
            let inverse = inverse_deviations(v, eps);
            let scales = scales::<T>(weight, &inverse)?;
            let mut gradients: Vec<Option<Tensor>> = vec![None; kept.len()];
            if flow.needs(0) {
                let zero = vec![T::ZERO; shape.channels];
                let scale: Vec<T> = scales.iter().map(|&s| T::of(s)).collect();
                let parts = [m, &zero, &zero, &scale];
                gradients[0] = Some(Tensor::build_unset::<T>(op, dense.shape(), |dx| {
                    channelwise(dx, shape, |first, dx| {
                        let range = first..first + dx.len();
                        combine(&data[range.clone()], &g[range], first, shape, &parts, dx);
                    });
                })?);
            }
            if (1..kept.len()).any(|i| flow.needs(i)) {
                let pairs = channel_pairs(data, g, shape, m);
                let each = |f: &dyn Fn(usize) -> f64| {
                    let values = (0..shape.channels).map(|c| T::of(f(c))).collect();
                    Tensor::from_vec_for::<T>(op, values, &[shape.channels]).map(Some)
                };
                gradients[1] = each(&|c| -scales[c] * pairs[c].0)?;
                gradients[2] = each(&|c| -0.5 * scales[c] * inverse[c] * inverse[c] * pairs[c].1)?;
                let mut next = 3;
                if has_weight {
                    gradients[next] = each(&|c| pairs[c].1 * inverse[c])?;
                    next += 1;
                }
                if has_bias {
                    gradients[next] = each(&|c| pairs[c].0)?;
                }
            }
            Ok(gradients)
        })
    }))
}

/// 1 / sqrt(variance + eps).
fn inverse_deviations<T: Real>(variance: &[T], eps: f64) -> Vec<f64> {
    variance
        .iter()
        .map(|v| 1.0 / (v.to_f64() + eps).sqrt())
        .collect()
}

/// weight / sqrt(variance + eps).
fn scales<T: Element + Real>(weight: Option<&Tensor>, inverse: &[f64]) -> Result<Vec<f64>> {
    Ok(match weight {
        None => inverse.to_vec(),
        Some(weight) => {
            let weight = weight.dense("batch_norm")?;
            weight
                .data::<T>()?
                .iter()
                .zip(inverse)
                .map(|(&w, i)| Real::to_f64(w) * i)
                .collect()
        }
    })
}

#[allow(clippy::too_many_arguments)]
fn normalise<T: Element + Real>(
    op: &'static str,
    x: &Tensor,
    shape: Channels,
    mean: &Tensor,
    variance: &Tensor,
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let data = x.data::<T>()?;
    let scales = scales::<T>(weight, &inverse_deviations(variance.data::<T>()?, eps))?;
    let scale: Vec<T> = scales.iter().map(|&s| T::of(s)).collect();
    let zero = vec![T::ZERO; shape.channels];
    let bias = bias.map(|b| b.dense(op)).transpose()?;
    let shift = match &bias {
        Some(bias) => bias.data::<T>()?,
        None => &zero,
    };
    let parts = [mean.data::<T>()?, &scale, shift, &zero];
    Tensor::build_unset::<T>(op, x.shape(), |y| {
        channelwise(y, shape, |first, y| {
            let x = &data[first..first + y.len()];
            affine_block(x, first, shape, &parts, y);
        });
    })
}

/// Runs `work(first, block)` over blocks of whole planes (whole rows where a plane is one element).
fn channelwise<T: Send>(out: &mut [T], shape: Channels, work: impl Fn(usize, &mut [T]) + Sync) {
    let unit = if shape.rest == 1 {
        shape.channels
    } else {
        shape.rest
    };
    let total = out.len();
    for_blocks(out, (BLOCK / unit.max(1)).max(1) * unit, total, work);
}

simd_fn! {
    /// (x - parts[0]) parts[1] + parts[2], channel by channel.
    fn affine_block<T>(x: &[T], first: usize, shape: Channels, parts: &[&[T]; 4], y: &mut [T]) {
        if shape.rest == 1 {
            let (m, s, b) = (parts[0], parts[1], parts[2]);
            for (x, y) in x.chunks_exact(shape.channels).zip(y.chunks_exact_mut(shape.channels)) {
                for ((((y, &x), &m), &s), &b) in y.iter_mut().zip(x).zip(m).zip(s).zip(b) {
                    *y = (x - m) * s + b;
                }
            }
            return;
        }
        let plane = first / shape.rest;
        for (i, (x, y)) in x.chunks_exact(shape.rest).zip(y.chunks_exact_mut(shape.rest)).enumerate() {
            let c = (plane + i) % shape.channels;
            let (m, s, b) = (parts[0][c], parts[1][c], parts[2][c]);
            for (y, &x) in y.iter_mut().zip(x) {
                *y = (x - m) * s + b;
            }
        }
    }
}

simd_fn! {
    /// (x - parts[0]) parts[1] + parts[2] + parts[3] g, channel by channel.
    fn combine<T>(x: &[T], g: &[T], first: usize, shape: Channels, parts: &[&[T]; 4], out: &mut [T]) {
        if shape.rest == 1 {
            for ((x, g), out) in x
                .chunks_exact(shape.channels)
                .zip(g.chunks_exact(shape.channels))
                .zip(out.chunks_exact_mut(shape.channels))
            {
                let [m, f, b, s] = parts.map(|p| &p[..x.len()]);
                for c in 0..x.len() {
                    out[c] = (x[c] - m[c]) * f[c] + b[c] + s[c] * g[c];
                }
            }
            return;
        }
        let plane = first / shape.rest;
        for (i, ((x, g), out)) in x
            .chunks_exact(shape.rest)
            .zip(g.chunks_exact(shape.rest))
            .zip(out.chunks_exact_mut(shape.rest))
            .enumerate()
        {
            let c = (plane + i) % shape.channels;
            let [m, f, b, s] = parts.map(|p| p[c]);
            for ((out, &x), &g) in out.iter_mut().zip(x).zip(g) {
                *out = (x - m) * f + b + s * g;
            }
        }
    }
}

/// Columns summed side by side where a plane is a single element.
const COLUMNS: usize = 64;

/// One number (or pair) per channel: in parallel over channels, each in a fixed order.
fn per_channel<R: Send + Clone>(
    shape: Channels,
    planes: impl Fn(usize) -> R + Sync,
    columns: impl Fn(usize, usize) -> Vec<R> + Sync,
) -> Vec<R> {
    if shape.rest == 1 {
        map_ranges(shape.channels, COLUMNS, shape.total(), |r| {
            columns(r.start, r.end)
        })
        .concat()
    } else {
        map_ranges(shape.channels, 1, shape.total(), |r| planes(r.start))
    }
}

/// The sum of every channel.
fn channel_sums<T: Real>(x: &[T], shape: Channels) -> Vec<f64> {
    per_channel(
        shape,
        |c| channel_sum(x, shape, c),
        |from, to| {
            column_pairs(x, x, shape, from, to, &[])
                .iter()
                .map(|p| p.0)
                .collect()
        },
    )
}

/// The sum of (x - mean)^2 of every channel.
fn channel_squares<T: Real>(x: &[T], shape: Channels, mean: &[T]) -> Vec<f64> {
    per_channel(
        shape,
        |c| channel_square(x, shape, c, mean[c]),
        |from, to| column_squares(x, shape, from, to, mean),
    )
}

/// The sums of g and of g (x - mean) of every channel.
fn channel_pairs<T: Real>(x: &[T], g: &[T], shape: Channels, mean: &[T]) -> Vec<(f64, f64)> {
    per_channel(
        shape,
        |c| channel_pair(x, g, shape, c, mean[c]),
        |from, to| column_pairs(x, g, shape, from, to, mean),
    )
}

/// Elements added in the element type before the sum goes on in f64.
const RUN: usize = 1024;

simd_fn! {
    fn channel_pair<T>(x: &[T], g: &[T], shape: Channels, c: usize, mean: T) -> (f64, f64) {
        let mut sums = (0.0, 0.0);
        for n in 0..shape.samples {
            let at = (n * shape.channels + c) * shape.rest;
            let (x, g) = (&x[at..at + shape.rest], &g[at..at + shape.rest]);
            for (x, g) in x.chunks(RUN).zip(g.chunks(RUN)) {
                sums.0 += sum_with(g, |g| g).to_f64();
                sums.1 += sum_pairs(g, x, |g, x| g * (x - mean)).to_f64();
            }
        }
        sums
    }
}

simd_fn! {
    fn channel_sum<T>(x: &[T], shape: Channels, c: usize) -> f64 {
        let mut sum = 0.0;
        for n in 0..shape.samples {
            let at = (n * shape.channels + c) * shape.rest;
            for x in x[at..at + shape.rest].chunks(RUN) {
                sum += sum_with(x, |x| x).to_f64();
            }
        }
        sum
    }
}

simd_fn! {
    fn channel_square<T>(x: &[T], shape: Channels, c: usize, mean: T) -> f64 {
        let mut sum = 0.0;
        for n in 0..shape.samples {
            let at = (n * shape.channels + c) * shape.rest;
            for x in x[at..at + shape.rest].chunks(RUN) {
                sum += sum_with(x, |x| (x - mean) * (x - mean)).to_f64();
            }
        }
        sum
    }
}

simd_fn! {
    fn column_pairs<T>(x: &[T], g: &[T], shape: Channels, from: usize, to: usize, mean: &[T]) -> Vec<(f64, f64)> {
        let (mut sums, mut products) = ([0f64; COLUMNS], [0f64; COLUMNS]);
        let n = to - from;
        for (x, g) in x.chunks_exact(shape.channels).zip(g.chunks_exact(shape.channels)) {
            let (x, g) = (&x[from..to], &g[from..to]);
            for (sum, g) in sums[..n].iter_mut().zip(g) {
                *sum += g.to_f64();
            }
            if !mean.is_empty() {
                for (((sum, &g), &x), &m) in products[..n].iter_mut().zip(g).zip(x).zip(&mean[from..to]) {
                    *sum += (g * (x - m)).to_f64();
                }
            }
        }
        sums[..n].iter().copied().zip(products[..n].iter().copied()).collect()
    }
}

simd_fn! {
    fn column_squares<T>(x: &[T], shape: Channels, from: usize, to: usize, mean: &[T]) -> Vec<f64> {
        let mut sums = [0f64; COLUMNS];
        let n = to - from;
        for x in x.chunks_exact(shape.channels) {
            for ((sum, &x), &m) in sums[..n].iter_mut().zip(&x[from..to]).zip(&mean[from..to]) {
                *sum += ((x - m) * (x - m)).to_f64();
            }
        }
        sums[..n].to_vec()
    }
}

/// Normalises over `axes` to mean 0 and variance 1, then scales by `weight` and shifts by `bias` where given.
///
/// `weight` and `bias` have the sizes of `axes`, in the input's order of axes. `eps` is added to the biased
/// variance inside the root, so that a constant row gives 0 (plus bias). Shape and element type of `x`.
///
/// # Errors
/// [`Error::Axis`], [`Error::Argument`] for no axes or one twice, [`Error::Shape`], [`Error::DType`],
/// [`Error::Budget`].
pub fn layer_norm(
    x: &Tensor,
    axes: &[isize],
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    const OP: &str = "layer_norm";
    let mut over = axes
        .iter()
        .map(|&a| axis_of(OP, x, a))
        .collect::<Result<Vec<usize>>>()?;
    over.sort_unstable();
    if over.is_empty() || over.windows(2).any(|w| w[0] == w[1]) {
        return Err(Error::argument(
            OP,
            format!("needs one or more different axes, got {axes:?}"),
        ));
    }
    let sizes: Vec<usize> = over.iter().map(|&a| x.shape()[a]).collect();
    let mut parents = vec![x];
    for parameter in [weight, bias].into_iter().flatten() {
        if parameter.shape() != sizes {
            let expected = format!("weight and bias have the sizes {sizes:?} of the axes");
            return Err(Error::shape(OP, expected, &[x.shape(), parameter.shape()]));
        }
        parents.push(parameter);
    }
    one_float_type(OP, &parents)?;

    // Axes to the end, where a row is contiguous. `back` undoes `order`.
    let mut order: Vec<usize> = (0..x.rank()).filter(|a| !over.contains(a)).collect();
    order.extend(&over);
    let moved = order.iter().enumerate().any(|(i, &a)| i != a);
    let mut back = vec![0; order.len()];
    for (i, &a) in order.iter().enumerate() {
        back[a] = i;
    }
    let rows_of = move |t: &Tensor| -> Result<Tensor> {
        let t = t.detach();
        if moved {
            ops::permute_dims(&t, &order)?.dense(OP)
        } else {
            t.dense(OP)
        }
    };
    let place = move |t: Tensor| {
        if moved {
            ops::permute_dims(&t, &back)
        } else {
            Ok(t)
        }
    };
    let length: usize = sizes.iter().product();

    let source = rows_of(x)?;
    let dense = |t: Option<&Tensor>| t.map(|t| t.dense(OP)).transpose();
    let (w, b) = (dense(weight)?, dense(bias)?);
    let y = with_float!(OP, x.dtype(), T => {
        let data = source.data::<T>()?;
        let (w, b) = (slice::<T>(&w)?, slice::<T>(&b)?);
        Tensor::build_unset::<T>(OP, source.shape(), |y| {
            let total = y.len();
            for_blocks(y, rows_per_block(length) * length, total, |first, y| {
                layer_rows(&data[first..first + y.len()], length, w, b, eps, y);
            });
        })?
    });
    let (has_weight, has_bias) = (weight.is_some(), bias.is_some());
    if !moved {
        let mut words: Vec<u64> = over.iter().map(|&a| a as u64).collect();
        words.extend([eps.to_bits(), u64::from(has_weight)]);
        capture::note(OP, &words, &parents, &y, || {
            let axes: Vec<isize> = over.iter().map(|&a| a as isize).collect();
            move |t: &[Tensor]| {
                let (weight, bias) = affine(&t[1..], has_weight, has_bias);
                layer_norm(&t[0], &axes, weight, bias, eps)
            }
        });
    }
    let y = place(y)?;
    let kept: Vec<Tensor> = parents.iter().map(|&p| p.clone()).collect();
    Ok(record(OP, y, &parents, move |flow| {
        if autograd::grad_enabled() {
            let parents: Vec<&Tensor> = kept.iter().collect();
            return replay(flow, &parents, |p| {
                let (weight, bias) = affine(&p[1..], has_weight, has_bias);
                composed_layer(&p[0], &over, weight, bias, eps)
            });
        }
        let g = rows_of(&flow.grad)?;
        let all = layer_gradients(&source, &g, w.as_ref(), has_bias, &sizes, eps)?;
        let mut gradients: Vec<Option<Tensor>> = all.into_iter().map(Some).collect();
        if let Some(Some(dx)) = gradients.first_mut().map(Option::take) {
            gradients[0] = Some(place(dx)?);
        }
        Ok(gradients)
    }))
}

/// Gradients of dense rows, of the weight where there is one and of the bias where there is one.
fn layer_gradients(
    source: &Tensor,
    g: &Tensor,
    weight: Option<&Tensor>,
    has_bias: bool,
    sizes: &[usize],
    eps: f64,
) -> Result<Vec<Tensor>> {
    const OP: &str = "layer_norm";
    let length: usize = sizes.iter().product();
    let (sd, gd) = (source.dense(OP)?, g.dense(OP)?);
    let w = weight.map(|w| w.dense(OP)).transpose()?;
    let all = with_float!(OP, source.dtype(), T => {
        let (data, g) = (sd.data::<T>()?, gd.data::<T>()?);
        let w = slice::<T>(&w)?;
        let block = layer_block(data.len(), length);
        let mut parts = Vec::new();
        let dx = Tensor::build_unset::<T>(OP, sd.shape(), |dx| {
            parts = layer_back(data, g, length, block, w, eps, dx);
        })?;
        let fill = |which: fn(&Partial<T>) -> &Vec<T>| {
            Tensor::build::<T>(OP, sizes, |out| {
                for part in &parts {
                    for (o, &v) in out.iter_mut().zip(which(part)) {
                        *o += v;
                    }
                }
            })
        };
        let mut all = vec![dx];
        if weight.is_some() {
            all.push(fill(|p| &p.0)?);
        }
        if has_bias {
            all.push(fill(|p| &p.1)?);
        }
        all
    });
    if capture::is_recording() {
        let mut inputs = vec![source, g];
        inputs.extend(weight);
        let words = [eps.to_bits(), u64::from(has_bias), length as u64];
        let sizes = sizes.to_vec();
        let made: Vec<&Tensor> = all.iter().collect();
        capture::note_all("layer_norm_back", &words, &inputs, &made, || {
            move |t: &[Tensor]| layer_gradients(&t[0], &t[1], t.get(2), has_bias, &sizes, eps)
        });
    }
    Ok(all)
}

fn slice<T: Element>(t: &Option<Tensor>) -> Result<Option<&[T]>> {
    t.as_ref().map(Tensor::data::<T>).transpose()
}

fn composed_layer(
    x: &Tensor,
    over: &[usize],
    weight: Option<&Tensor>,
    bias: Option<&Tensor>,
    eps: f64,
) -> Result<Tensor> {
    let axes: Vec<isize> = over.iter().map(|&a| a as isize).collect();
    let count = over.iter().map(|&a| x.shape()[a]).product::<usize>() as f64;
    let shape: Vec<usize> = x
        .shape()
        .iter()
        .enumerate()
        .map(|(a, &s)| if over.contains(&a) { s } else { 1 })
        .collect();
    let mean = ops::divide(&ops::sum(x, &axes, true)?, count)?;
    let centred = ops::subtract(x, &mean)?;
    let variance = ops::divide(
        &ops::sum(&ops::multiply(&centred, &centred)?, &axes, true)?,
        count,
    )?;
    let mut y = ops::divide(&centred, &ops::sqrt(&ops::add(&variance, eps)?)?)?;
    if let Some(weight) = weight {
        y = ops::multiply(&y, &ops::reshape(weight, &signed(&shape))?)?;
    }
    if let Some(bias) = bias {
        y = ops::add(&y, &ops::reshape(bias, &signed(&shape))?)?;
    }
    Ok(y)
}

/// Mean and 1 / deviation of a row.
#[inline(always)]
fn moments<T: Real>(x: &[T], eps: f64) -> (T, T) {
    let count = x.len() as f64;
    let mut sum = 0.0;
    for run in x.chunks(RUN) {
        sum += sum_with(run, |x| x).to_f64();
    }
    let mean = T::of(sum / count);
    let mut squares = 0.0;
    for run in x.chunks(RUN) {
        squares += sum_with(run, |x| (x - mean) * (x - mean)).to_f64();
    }
    (mean, T::of(1.0 / (squares / count + eps).sqrt()))
}

simd_fn! {
    fn layer_rows<T>(x: &[T], length: usize, w: Option<&[T]>, b: Option<&[T]>, eps: f64, y: &mut [T]) {
        for (x, y) in x.chunks_exact(length).zip(y.chunks_exact_mut(length)) {
            let (mean, inverse) = moments(x, eps);
            match (w, b) {
                (Some(w), Some(b)) => {
                    for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(w).zip(b) {
                        *y = (x - mean) * inverse * w + b;
                    }
                }
                (Some(w), None) => {
                    for ((y, &x), &w) in y.iter_mut().zip(x).zip(w) {
                        *y = (x - mean) * inverse * w;
                    }
                }
                (None, Some(b)) => {
                    for ((y, &x), &b) in y.iter_mut().zip(x).zip(b) {
                        *y = (x - mean) * inverse + b;
                    }
                }
                (None, None) => {
                    for (y, &x) in y.iter_mut().zip(x) {
                        *y = (x - mean) * inverse;
                    }
                }
            }
        }
    }
}

/// Elements per block of [`layer_back`]: whole rows, at most 64 blocks, so that partial sums stay few.
fn layer_block(total: usize, length: usize) -> usize {
    let rows = total / length.max(1);
    rows_per_block(length).max(rows.div_ceil(64)) * length
}

/// Sums over the rows of one block: (g x_hat, g).
type Partial<T> = (Vec<T>, Vec<T>);

/// Fills dx; returns per block the sums over rows of (g x_hat, g): the gradients of weight and bias.
fn layer_back<T: Real>(
    x: &[T],
    g: &[T],
    length: usize,
    block: usize,
    w: Option<&[T]>,
    eps: f64,
    dx: &mut [T],
) -> Vec<Partial<T>> {
    if dx.is_empty() {
        return Vec::new();
    }
    let mut partials = vec![(Vec::new(), Vec::new()); dx.len().div_ceil(block)];
    let blocks: Vec<_> = dx.chunks_mut(block).zip(&mut partials).collect();
    let work = |(): &mut (), i: usize, (dx, partial): (&mut [T], &mut Partial<T>)| {
        let range = i * block..i * block + dx.len();
        let (mut dw, mut db) = (vec![T::ZERO; length], vec![T::ZERO; length]);
        layer_rows_back(
            &x[range.clone()],
            &g[range],
            length,
            w,
            eps,
            dx,
            &mut dw,
            &mut db,
        );
        *partial = (dw, db);
    };
    let threaded = x.len() > crate::threads::SERIAL_LIMIT;
    crate::threads::for_items(blocks, threaded, || (), work);
    partials
}

simd_fn! {
    fn layer_rows_back<T>(
        x: &[T],
        g: &[T],
        length: usize,
        w: Option<&[T]>,
        eps: f64,
        dx: &mut [T],
        dw: &mut [T],
        db: &mut [T],
    ) {
        let inverse_count = T::of(1.0 / length as f64);
        for ((x, g), dx) in x.chunks_exact(length).zip(g.chunks_exact(length)).zip(dx.chunks_exact_mut(length)) {
            let (mean, inverse) = moments(x, eps);
            for (((dw, db), &x), &g) in dw.iter_mut().zip(db.iter_mut()).zip(x).zip(g) {
                *dw += g * ((x - mean) * inverse);
                *db += g;
            }
            // dx = (gw - mean(gw) - x_hat mean(gw x_hat)) / deviation, with gw = g w.
            match w {
                Some(w) => {
                    for ((dx, &g), &w) in dx.iter_mut().zip(g).zip(w) {
                        *dx = g * w;
                    }
                }
                None => dx.copy_from_slice(g),
            }
            let first = sum_with(dx, |dx| dx) * inverse_count;
            let second = sum_pairs(dx, x, |dx, x| dx * ((x - mean) * inverse)) * inverse_count;
            for (dx, &x) in dx.iter_mut().zip(x) {
                *dx = (*dx - first - (x - mean) * inverse * second) * inverse;
            }
        }
    }
}
