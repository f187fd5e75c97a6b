//! Softmax, its logarithm, and cross-entropy.

use crate::autograd::{self, record, record_keeping_output};
use crate::capture;
use crate::dtype::{DType, with_float};
use crate::error::{Error, Result};
use crate::lanes::{LANES, Real, map_sum_to, max_of, simd_fn, sum_pairs, sum_with};
use crate::ops;
use crate::ops::replay::replay;
use crate::ops::rows::{axis_back, axis_last, axis_of, one_float_type, rows_per_block};
use crate::tensor::Tensor;
use crate::threads::for_blocks;

/// What an exponential costs beside a plain operation, for deciding whether to split work.
const EXP_COST: usize = 8;

/// e^t divided by its sum along `axis`; shape and element type of `t`. A row of -inf gives NaN.
///
/// # Errors
/// [`Error::Axis`], [`Error::DType`] for integers and truth values, [`Error::Budget`].
pub fn softmax(t: &Tensor, axis: isize) -> Result<Tensor> {
    normalised("softmax", t, axis, false)
}

/// ln softmax(t) along `axis`, with the row's largest element subtracted first.
///
/// # Errors
/// As [`softmax`].
pub fn log_softmax(t: &Tensor, axis: isize) -> Result<Tensor> {
    normalised("log_softmax", t, axis, true)
}

fn normalised(op: &'static str, t: &Tensor, axis: isize, log: bool) -> Result<Tensor> {
    one_float_type(op, &[t])?;
    let axis = axis_of(op, t, axis)?;
    let source = axis_last(op, t, axis)?;
    let length = t.shape()[axis];
    let out = with_float!(op, t.dtype(), T => {
        let x = source.data::<T>()?;
        Tensor::build_unset::<T>(op, source.shape(), |y| {
            let total = y.len().saturating_mul(EXP_COST);
            for_blocks(y, rows_per_block(length) * length, total, |first, y| {
                let x = &x[first..first + y.len()];
                if log { log_softmax_rows(x, length, y) } else { softmax_rows(x, length, y) }
            });
        })
    })?;
    capture::note(op, &[axis as u64], &[t], &out, || {
        // The kernel's own result, with the axis last.
        move |t: &[Tensor]| axis_last(op, &normalised(op, &t[0], axis as isize, log)?, axis)
    });
    let out = axis_back(out, axis)?;
    Ok(record_keeping_output(op, out, &[t], move |flow| {
        let (y, g) = (flow.output()?, &flow.grad);
        let at = axis as isize;
        if autograd::grad_enabled() {
            // softmax: y (g - sum(g y)); its logarithm: g - e^y sum(g).
            let gradient = if log {
                ops::subtract(
                    g,
                    &ops::multiply(&ops::exp(y)?, &ops::sum(g, &[at], true)?)?,
                )?
            } else {
                let gy = ops::multiply(g, y)?;
                ops::subtract(&gy, &ops::multiply(y, &ops::sum(&gy, &[at], true)?)?)?
            };
            return Ok(vec![Some(gradient)]);
        }
        let (y, g) = (axis_last(op, y, axis)?, axis_last(op, g, axis)?);
        let gradient = normalised_back(op, &y, &g, length, log)?;
        Ok(vec![Some(axis_back(gradient, axis)?)])
    }))
}

/// The gradient along the last axis, of `length`, from the result and its cotangent.
fn normalised_back(
    op: &'static str,
    y: &Tensor,
    g: &Tensor,
    length: usize,
    log: bool,
) -> Result<Tensor> {
    let (yd, gd) = (y.dense(op)?, g.dense(op)?);
    let out = with_float!(op, y.dtype(), T => {
        let (y, g) = (yd.data::<T>()?, gd.data::<T>()?);
        Tensor::build_unset::<T>(op, yd.shape(), |dx| {
            let total = dx.len().saturating_mul(if log { EXP_COST } else { 2 });
            for_blocks(dx, rows_per_block(length) * length, total, |first, dx| {
                let range = first..first + dx.len();
                let (y, g) = (&y[range.clone()], &g[range]);
                if log { log_softmax_rows_back(y, g, length, dx) } else { softmax_rows_back(y, g, length, dx) }
            });
        })
    })?;
    capture::note("softmax_back", &[u64::from(log)], &[y, g], &out, || {
        move |t: &[Tensor]| normalised_back(op, &t[0], &t[1], length, log)
    });
    Ok(out)
}

simd_fn! {
    fn softmax_rows<T>(x: &[T], length: usize, y: &mut [T]) {
        for (x, y) in x.chunks_exact(length).zip(y.chunks_exact_mut(length)) {
            softmax_row(x, y);
        }
    }
}

/// One row; shared with attention.
#[inline(always)]
pub(crate) fn softmax_row<T: Real>(x: &[T], y: &mut [T]) {
    let max = max_of(x);
    let scale = T::ONE / map_sum_to(x, y, |x| (x - max).fast_exp_low());
    for y in y.iter_mut() {
        *y *= scale;
    }
}

simd_fn! {
    fn softmax_rows_back<T>(y: &[T], g: &[T], length: usize, dx: &mut [T]) {
        for ((y, g), dx) in y.chunks_exact(length).zip(g.chunks_exact(length)).zip(dx.chunks_exact_mut(length)) {
            let dot = sum_pairs(y, g, |y, g| y * g);
            for ((dx, &y), &g) in dx.iter_mut().zip(y).zip(g) {
                *dx = y * (g - dot);
            }
        }
    }
}

/// The largest element and the logarithm of the sum of e^(x - largest).
#[inline(always)]
fn log_sum_exp<T: Real>(x: &[T]) -> (T, T) {
    let max = max_of(x);
    (max, sum_with(x, |x| (x - max).fast_exp_low()).log())
}

simd_fn! {
    fn log_softmax_rows<T>(x: &[T], length: usize, y: &mut [T]) {
        for (x, y) in x.chunks_exact(length).zip(y.chunks_exact_mut(length)) {
            let (max, log) = log_sum_exp(x);
            for (y, &x) in y.iter_mut().zip(x) {
                *y = (x - max) - log;
            }
        }
    }
}

simd_fn! {
    fn log_softmax_rows_back<T>(y: &[T], g: &[T], length: usize, dx: &mut [T]) {
        for ((y, g), dx) in y.chunks_exact(length).zip(g.chunks_exact(length)).zip(dx.chunks_exact_mut(length)) {
            let sum = sum_with(g, |g| g);
            for ((dx, &y), &g) in dx.iter_mut().zip(y).zip(g) {
                *dx = g - y.fast_exp() * sum;
            }
        }
    }
}

/// One loss per row of `logits[.., classes]`: -sum(p ln softmax(logits)), unreduced, shape `[..]`.
///
/// `target` is either class numbers, i64 of shape `[..]`, or a distribution p of the logits' shape and
/// element type (which may be tracked too).
///
/// # Errors
/// [`Error::Shape`] where the shapes do not fit or there are no classes, [`Error::Index`] for a class number
/// outside `0..classes`, [`Error::DType`], [`Error::Budget`].
pub fn cross_entropy(logits: &Tensor, target: &Tensor) -> Result<Tensor> {
    const OP: &str = "cross_entropy";
    one_float_type(OP, &[logits])?;
    let Some((&classes, rows)) = logits.shape().split_last() else {
        return Err(Error::shape(
            OP,
            "logits need a last axis of classes",
            &[logits.shape()],
        ));
    };
    if classes == 0 {
        return Err(Error::shape(
            OP,
            "there must be at least one class",
            &[logits.shape()],
        ));
    }
    if target.dtype() == DType::I64 {
        if target.shape() != rows {
            let expected = "class numbers have the logits' shape without its last axis";
            return Err(Error::shape(
                OP,
                expected,
                &[logits.shape(), target.shape()],
            ));
        }
        return against_classes(OP, logits, target, classes);
    }
    one_float_type(OP, &[logits, target])?;
    if target.shape() != logits.shape() {
        let expected = "a target distribution has the logits' shape (class numbers are i64)";
        return Err(Error::shape(
            OP,
            expected,
            &[logits.shape(), target.shape()],
        ));
    }
    against_distribution(OP, logits, target, classes)
}

fn against_classes(
    op: &'static str,
    logits: &Tensor,
    target: &Tensor,
    classes: usize,
) -> Result<Tensor> {
    check_classes(op, target, classes)?;
    let target = target.dense(op)?;
    let dense = logits.dense(op)?;
    let (loss, normaliser) = class_losses(op, &dense, &target, classes)?;
    let kept = logits.clone();
    Ok(record(op, loss, &[logits], move |flow| {
        if autograd::grad_enabled() {
            let chosen = with_float!(op, kept.dtype(), T => {
                let t = target.data::<i64>()?;
                Tensor::build::<T>("cross_entropy of second order", kept.shape(), |out| {
                    for (row, &t) in out.chunks_exact_mut(classes).zip(t) {
                        row[t as usize] = T::ONE;
                    }
                })?
            });
            let difference = ops::subtract(&softmax(&kept, -1)?, &chosen)?;
            let g = ops::reshape(&flow.grad, &column(target.shape()))?;
            return Ok(vec![Some(ops::multiply(&difference, &g)?)]);
        }
        let gradient = class_gradient(op, &dense, &normaliser, &target, &flow.grad, classes)?;
        Ok(vec![Some(gradient)])
    }))
}

/// Losses and normalisers of dense logits; class numbers dense and checked.
fn class_losses(
    op: &'static str,
    logits: &Tensor,
    target: &Tensor,
    classes: usize,
) -> Result<(Tensor, Tensor)> {
    let (loss, normaliser) = with_float!(op, logits.dtype(), T => {
        let (x, t) = (logits.data::<T>()?, target.data::<i64>()?);
        let normaliser = normalisers::<T>(op, x, classes, target.shape())?;
        let z = normaliser.data::<T>()?;
        let loss = Tensor::build_unset::<T>(op, target.shape(), |loss| {
            losses_of_classes(x, z, t, classes, loss);
        })?;
        (loss, normaliser)
    });
    capture::note_all(op, &[], &[logits, target], &[&loss, &normaliser], || {
        move |t: &[Tensor]| {
            check_classes(op, &t[1], classes)?;
            let (loss, normaliser) = class_losses(op, &t[0].dense(op)?, &t[1].dense(op)?, classes)?;
            Ok(vec![loss, normaliser])
        }
    });
    Ok((loss, normaliser))
}

/// The gradient of [`class_losses`] with respect to the logits for cotangents `g`.
fn class_gradient(
    op: &'static str,
    logits: &Tensor,
    normaliser: &Tensor,
    target: &Tensor,
    g: &Tensor,
    classes: usize,
) -> Result<Tensor> {
    let gd = g.dense(op)?;
    let out = with_float!(op, logits.dtype(), T => {
        let (x, z, g) = (logits.data::<T>()?, normaliser.data::<T>()?, gd.data::<T>()?);
        let t = target.data::<i64>()?;
        Tensor::build_unset::<T>(op, logits.shape(), |dx| {
            gradient_of_classes(x, z, t, g, classes, dx);
        })?
    });
    capture::note(
        "cross_entropy_back",
        &[],
        &[logits, normaliser, target, g],
        &out,
        || {
            move |t: &[Tensor]| {
                class_gradient(
                    op,
                    &t[0].dense(op)?,
                    &t[1],
                    &t[2].dense(op)?,
                    &t[3],
                    classes,
                )
            }
        },
    );
    Ok(out)
}

/// z minus the logit of each row's class.
fn losses_of_classes<T: Real>(x: &[T], z: &[T], t: &[i64], classes: usize, loss: &mut [T]) {
    for (row, ((loss, &z), &t)) in loss.iter_mut().zip(z).zip(t).enumerate() {
        *loss = z - x[row * classes + t as usize];
    }
}

/// g (softmax(x) - 1 at the row's class), row by row, from the rows' normalisers.
fn gradient_of_classes<T: Real>(
    x: &[T],
    z: &[T],
    t: &[i64],
    g: &[T],
    classes: usize,
    dx: &mut [T],
) {
    let total = dx.len().saturating_mul(EXP_COST);
    for_blocks(dx, rows_per_block(classes) * classes, total, |first, dx| {
        let rows = first / classes..(first + dx.len()) / classes;
        let x = &x[first..first + dx.len()];
        probabilities(x, &z[rows.clone()], &g[rows.clone()], classes, dx);
        for (row, dx) in rows.zip(dx.chunks_exact_mut(classes)) {
            dx[t[row] as usize] -= g[row];
        }
    });
}

/// Losses and normalisers of dense rows in a replayed step: what [`cross_entropy`] computes.
///
/// # Errors
/// [`Error::Index`] for a class number outside `0..classes`.
pub(crate) fn replayed_losses(
    op: &'static str,
    x: &[f32],
    t: &[i64],
    classes: usize,
    loss: &mut [f32],
    normaliser: &mut [f32],
) -> Result<()> {
    check_numbers(op, t, classes)?;
    normalise(x, classes, normaliser);
    losses_of_classes(x, normaliser, t, classes, loss);
    Ok(())
}

/// Its gradient, from dense rows; `t` as [`replayed_losses`] has checked it.
///
/// # Errors
/// As [`replayed_losses`].
pub(crate) fn replayed_gradient(
    op: &'static str,
    [x, z, g]: [&[f32]; 3],
    t: &[i64],
    classes: usize,
    dx: &mut [f32],
) -> Result<()> {
    check_numbers(op, t, classes)?;
    gradient_of_classes(x, z, t, g, classes, dx);
    Ok(())
}

/// Refuses a class number outside `0..classes`.
fn check_classes(op: &'static str, target: &Tensor, classes: usize) -> Result<()> {
    check_numbers(op, target.dense(op)?.data::<i64>()?, classes)
}

fn check_numbers(op: &'static str, numbers: &[i64], classes: usize) -> Result<()> {
    let outside = |&&t: &&i64| t < 0 || t as u64 >= classes as u64;
    match numbers.iter().find(outside) {
        Some(&index) => Err(Error::Index {
            op,
            index,
            size: classes,
        }),
        None => Ok(()),
    }
}

/// The shape with a last axis of one.
fn column(shape: &[usize]) -> Vec<i64> {
    let mut shape = ops::rows::signed(shape);
    shape.push(1);
    shape
}

fn against_distribution(
    op: &'static str,
    logits: &Tensor,
    target: &Tensor,
    classes: usize,
) -> Result<Tensor> {
    let (dense, p) = (logits.dense(op)?, target.dense(op)?);
    let rows = &logits.shape()[..logits.rank() - 1];
    let (loss, normaliser) = with_float!(op, logits.dtype(), T => {
        let (x, p) = (dense.data::<T>()?, p.data::<T>()?);
        let normaliser = normalisers::<T>(op, x, classes, rows)?;
        let z = normaliser.data::<T>()?;
        let loss = Tensor::build_unset::<T>(op, rows, |loss| {
            for_blocks(loss, rows_per_block(classes), x.len(), |first, loss| {
                let range = first * classes..(first + loss.len()) * classes;
                expected_loss(&x[range.clone()], &p[range], &z[first..], classes, loss);
            });
        })?;
        (loss, normaliser)
    });
    let (kept, kept_target) = (logits.clone(), target.clone());
    Ok(record(op, loss, &[logits, target], move |flow| {
        if autograd::grad_enabled() {
            return replay(flow, &[&kept, &kept_target], |t| {
                let product = ops::multiply(&t[1], &ops::log_softmax(&t[0], -1)?)?;
                ops::subtract(0.0, &ops::sum(&product, &[-1], false)?)
            });
        }
        let g = flow.grad.dense(op)?;
        with_float!(op, kept.dtype(), T => {
            let (x, p, z) = (dense.data::<T>()?, p.data::<T>()?, normaliser.data::<T>()?);
            let g = g.data::<T>()?;
            let each = |work: RowKernel<T>| {
                Tensor::build_unset::<T>(op, kept.shape(), |out| {
                    let total = out.len().saturating_mul(EXP_COST);
                    for_blocks(out, rows_per_block(classes) * classes, total, |first, out| {
                        let range = first..first + out.len();
                        let rows = first / classes..(first + out.len()) / classes;
                        work(&x[range.clone()], &p[range], &z[rows.clone()], &g[rows], classes, out);
                    });
                })
            };
            let dx = if flow.needs(0) { Some(each(logits_gradient::<T>)?) } else { None };
            let dp = if flow.needs(1) { Some(each(target_gradient::<T>)?) } else { None };
            Ok(vec![dx, dp])
        })
    }))
}

/// From logits, target, normalisers and cotangents of some rows, and the number of classes, to a gradient.
type RowKernel<T> = fn(&[T], &[T], &[T], &[T], usize, &mut [T]);

/// ln(sum(e^x)) of each row.
fn normalisers<T: Real + crate::dtype::Element>(
    op: &'static str,
    x: &[T],
    classes: usize,
    shape: &[usize],
) -> Result<Tensor> {
    Tensor::build_unset::<T>(op, shape, |out| normalise(x, classes, out))
}

/// ln(sum(e^x)) of each row of `classes`.
fn normalise<T: Real>(x: &[T], classes: usize, out: &mut [T]) {
    let total = x.len().saturating_mul(EXP_COST);
    for_blocks(out, rows_per_block(classes), total, |first, out| {
        let rows = first * classes..(first + out.len()) * classes;
        log_sums(&x[rows], classes, out);
    });
}

simd_fn! {
    fn log_sums<T>(x: &[T], classes: usize, out: &mut [T]) {
        if classes <= LANES {
            short_log_sums(x, classes, out);
            return;
        }
        for (x, out) in x.chunks_exact(classes).zip(out) {
            let (max, log) = log_sum_exp(x);
            *out = max + log;
        }
    }
}

/// [`log_sum_exp`] of rows of at most [`LANES`] classes, sixteen rows side by side, with the same bits: each row's
/// terms are added in the same order.
#[inline(always)]
fn short_log_sums<T: Real>(x: &[T], classes: usize, out: &mut [T]) {
    const ROWS: usize = 16;
    let mut columns = [[T::ZERO; ROWS]; LANES];
    for (x, out) in x.chunks(ROWS * classes).zip(out.chunks_mut(ROWS)) {
        for (r, x) in x.chunks_exact(classes).enumerate() {
            for (column, &x) in columns.iter_mut().zip(x) {
                column[r] = x;
            }
        }
        let columns = &mut columns[..classes];
        let mut max = [T::NEG_INFINITY; ROWS];
        for column in columns.iter() {
            for (max, &x) in max.iter_mut().zip(column) {
                *max = max.larger(x);
            }
        }
        for column in columns.iter_mut() {
            for (x, max) in column.iter_mut().zip(max) {
                *x = (*x - max).fast_exp_low();
            }
        }
        // As `lanes::fold`, whose other lanes are zeros.
        let (mut width, mut live) = (LANES / 2, classes);
        while width > 0 {
            for c in width..live {
                let high = columns[c];
                for (low, high) in columns[c - width].iter_mut().zip(high) {
                    *low += high;
                }
            }
            live = live.min(width);
            width /= 2;
        }
        let mut sums = columns[0];
        for (sum, max) in sums.iter_mut().zip(max) {
            *sum = max + sum.log();
        }
        out.copy_from_slice(&sums[..out.len()]);
    }
}

simd_fn! {
    /// g softmax(x), row by row, from the rows' normalisers.
    fn probabilities<T>(x: &[T], z: &[T], g: &[T], classes: usize, out: &mut [T]) {
        if classes < LANES {
            // Row by row, the vectors would be nearly empty.
            for (row, (x, out)) in x.chunks_exact(classes).zip(out.chunks_exact_mut(classes)).enumerate() {
                for (out, &x) in out.iter_mut().zip(x) {
                    *out = x - z[row];
                }
            }
            for out in out.iter_mut() {
                *out = out.fast_exp_low();
            }
            for (out, &g) in out.chunks_exact_mut(classes).zip(g) {
                for out in out {
                    *out = g * *out;
                }
            }
            return;
        }
        for (row, (x, out)) in x.chunks_exact(classes).zip(out.chunks_exact_mut(classes)).enumerate() {
            let (z, g) = (z[row], g[row]);
            for (out, &x) in out.iter_mut().zip(x) {
                *out = g * (x - z).fast_exp_low();
            }
        }
    }
}

simd_fn! {
    fn expected_loss<T>(x: &[T], p: &[T], z: &[T], classes: usize, out: &mut [T]) {
        for (((x, p), &z), out) in x.chunks_exact(classes).zip(p.chunks_exact(classes)).zip(z).zip(out) {
            *out = sum_pairs(p, x, |p, x| p * (z - x));
        }
    }
}

simd_fn! {
    fn logits_gradient<T>(x: &[T], p: &[T], z: &[T], g: &[T], classes: usize, out: &mut [T]) {
        for (row, ((x, p), out)) in
            x.chunks_exact(classes).zip(p.chunks_exact(classes)).zip(out.chunks_exact_mut(classes)).enumerate()
        {
            let (z, g) = (z[row], g[row]);
            let mass = sum_with(p, |p| p);
            for ((out, &x), &p) in out.iter_mut().zip(x).zip(p) {
                *out = g * ((x - z).fast_exp_low() * mass - p);
            }
        }
    }
}

simd_fn! {
    fn target_gradient<T>(x: &[T], _p: &[T], z: &[T], g: &[T], classes: usize, out: &mut [T]) {
        for (row, (x, out)) in x.chunks_exact(classes).zip(out.chunks_exact_mut(classes)).enumerate() {
            let (z, g) = (z[row], g[row]);
            for (out, &x) in out.iter_mut().zip(x) {
                *out = g * (z - x);
            }
        }
    }
}
