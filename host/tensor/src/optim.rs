//! Optimiser steps: one pass over value, gradient and state.
//!
//! The formulas are PyTorch's (`torch.optim.SGD`, `Adam`, `AdamW`, single-tensor form). A value or a state
//! tensor that nobody else holds is updated in place; one that somebody holds is copied first, so that a
//! handle given out earlier keeps the old numbers.

use crate::dtype::{DType, Element, with_float};
use crate::error::{Error, Result};
use crate::lanes::{Real, simd_fn};
use crate::tensor::Tensor;
use crate::threads::SERIAL_LIMIT;
use rayon::prelude::*;

/// Options of [`sgd_step`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sgd {
    /// Learning rate.
    pub lr: f64,
    /// Share of the momentum buffer that is kept; 0 means no buffer.
    pub momentum: f64,
    /// Times the value, added to the gradient.
    pub weight_decay: f64,
    /// Whether the step looks one momentum step ahead.
    pub nesterov: bool,
}

/// Options of [`adam_step`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the mean of gradients, in [0, 1).
    pub beta1: f64,
    /// Decay of the mean of squared gradients, in [0, 1).
    pub beta2: f64,
    /// Added to the root of the second moment, after its bias correction.
    pub eps: f64,
    /// Times the value: added to the gradient, or taken off the value where `decoupled`.
    pub weight_decay: f64,
    /// AdamW: the decay shrinks the value by `lr * weight_decay` and leaves the moments alone.
    pub decoupled: bool,
}

/// Elements of one block: value, gradient, state and mask of a block stay in the first-level cache.
const BLOCK: usize = 2048;

/// One step of stochastic gradient descent on `value`, in place.
///
/// g = grad + weight_decay value; with momentum, buf = g on the first step and momentum buf + g later, and
/// g = g + momentum buf for Nesterov's form, buf otherwise; value = value - lr g. `buf` is made on the first
/// step and untouched without momentum. Where `mask` is 0, value and buffer become exactly 0.
///
/// `value` comes back as a plain tensor (no gradient flows into it); shapes and element types of all
/// tensors are the value's, a mask may also be bool.
///
/// # Errors
/// [`Error::Shape`], [`Error::DType`], [`Error::Budget`]; nothing has changed then.
pub fn sgd_step(
    value: &mut Tensor,
    grad: &Tensor,
    buf: &mut Option<Tensor>,
    options: &Sgd,
    mask: Option<&Tensor>,
) -> Result<()> {
    const OP: &str = "sgd_step";
    check(OP, value, &[Some(grad), buf.as_ref()], mask)?;
    let (grad, mask) = (grad.dense(OP)?, Mask::of(OP, mask)?);
    with_float!(OP, value.dtype(), T => {
        own::<T>(OP, value)?;
        if options.momentum == 0.0 {
            let v = slice_mut::<T>(OP, value)?;
            update(v, grad.data::<T>()?, &mut [], &mut [], &mask, |v, g, _, _| sgd(v, g, options));
            return Ok(());
        }
        let first = buf.is_none();
        let b = state::<T>(OP, value, buf)?;
        let v = slice_mut::<T>(OP, value)?;
        let step = |v: &mut [T], g: &[T], b: &mut [T], _: &mut [T]| sgd_momentum(v, g, b, options, first);
        update(v, grad.data::<T>()?, b, &mut [], &mask, step);
        Ok(())
    })
}

/// One step of Adam (Kingma and Ba 2015, algorithm 1), or of AdamW (Loshchilov and Hutter 2019) where
/// `decoupled`, on `value`, in place.
///
/// m = m + (1 - beta1)(g - m), v = beta2 v + (1 - beta2) g^2, and
/// value = value - lr / (1 - beta1^step) m / (sqrt(v) / sqrt(1 - beta2^step) + eps), where g is
/// grad + weight_decay value, or grad with the value shrunk by lr weight_decay first. `m` and `v` are made
/// where they are `None`; `step` counts from 1. Where `mask` is 0, value and moments become exactly 0.
///
/// # Errors
/// As [`sgd_step`]; [`Error::Argument`] for step 0.
#[allow(clippy::too_many_arguments)] // the order is the interface's
pub fn adam_step(
    value: &mut Tensor,
    grad: &Tensor,
    m: &mut Option<Tensor>,
    v: &mut Option<Tensor>,
    step: u64,
    options: &Adam,
    mask: Option<&Tensor>,
) -> Result<()> {
    const OP: &str = "adam_step";
    if step == 0 {
        return Err(Error::argument(OP, "steps are counted from 1, got 0"));
    }
    check(OP, value, &[Some(grad), m.as_ref(), v.as_ref()], mask)?;
    let (grad, mask) = (grad.dense(OP)?, Mask::of(OP, mask)?);
    // 1 - beta^step as -expm1(step ln beta), exact to rounding for any step; beta = 0 gives 1.
    let correction = |beta: f64| {
        if beta == 0.0 {
            1.0
        } else {
            -(step as f64 * beta.ln()).exp_m1()
        }
    };
    let size = options.lr / correction(options.beta1);
    let root = correction(options.beta2).sqrt();
    with_float!(OP, value.dtype(), T => {
        own::<T>(OP, value)?;
        let first = state::<T>(OP, value, m)?;
        let second = state::<T>(OP, value, v)?;
        let values = slice_mut::<T>(OP, value)?;
        let step = |x: &mut [T], g: &[T], m: &mut [T], v: &mut [T]| adam(x, g, m, v, options, size, root);
        update(values, grad.data::<T>()?, first, second, &mask, step);
        Ok(())
    })
}

/// Refuses tensors that do not have the value's shape and element type.
fn check(
    op: &'static str,
    value: &Tensor,
    same: &[Option<&Tensor>],
    mask: Option<&Tensor>,
) -> Result<()> {
    let bool_mask = mask.filter(|m| m.dtype() == DType::Bool);
    let mask_as_value = mask.filter(|m| m.dtype() != DType::Bool);
    for other in same.iter().copied().chain([mask_as_value]).flatten() {
        if other.dtype() != value.dtype() || !value.dtype().is_float() {
            return Err(Error::DType {
                op,
                found: vec![value.dtype(), other.dtype()],
                expected: "gradient and state of the value's type, f32 or f64, and a mask of it or bool",
            });
        }
    }
    for other in same
        .iter()
        .copied()
        .chain([mask_as_value, bool_mask])
        .flatten()
    {
        if other.shape() != value.shape() {
            let expected = "gradient, state and mask have the value's shape";
            return Err(Error::shape(op, expected, &[value.shape(), other.shape()]));
        }
    }
    Ok(())
}

/// Makes `t` the only holder of its elements, contiguous and outside any graph. The numbers stay.
fn own<T: Element>(op: &'static str, t: &mut Tensor) -> Result<()> {
    if t.requires_grad() {
        *t = t.detach();
    }
    if t.data_mut::<T>().is_none() {
        let source = t.dense(op)?;
        *t = Tensor::build_unset::<T>(op, source.shape(), |out| {
            if let Ok(from) = source.data::<T>() {
                out.copy_from_slice(from);
            }
        })?;
    }
    Ok(())
}

/// The state's elements for writing, zeros where there was no state.
fn state<'a, T: Element>(
    op: &'static str,
    value: &Tensor,
    state: &'a mut Option<Tensor>,
) -> Result<&'a mut [T]> {
    if state.is_none() {
        *state = Some(Tensor::zeros_for(op, value.shape(), value.dtype())?);
    }
    match state {
        Some(tensor) => {
            own::<T>(op, tensor)?;
            slice_mut(op, tensor)
        }
        None => Ok(&mut []),
    }
}

fn slice_mut<'a, T: Element>(op: &'static str, t: &'a mut Tensor) -> Result<&'a mut [T]> {
    t.data_mut::<T>().ok_or_else(|| Error::Internal {
        op,
        problem: "a tensor made for writing is shared".into(),
    })
}

/// Where values are kept.
enum Mask {
    None,
    Bool(Tensor),
    Number(Tensor),
}

impl Mask {
    fn of(op: &'static str, mask: Option<&Tensor>) -> Result<Mask> {
        Ok(match mask {
            None => Mask::None,
            Some(m) if m.dtype() == DType::Bool => Mask::Bool(m.dense(op)?),
            Some(m) => Mask::Number(m.dense(op)?),
        })
    }

    /// Zeros `out` where the mask of elements `first..` is 0.
    fn apply<T: Real + Element>(&self, first: usize, out: &mut [T]) {
        match self {
            Mask::None => {}
            Mask::Bool(mask) => {
                if let Ok(keep) = mask.data::<bool>() {
                    for (o, &keep) in out.iter_mut().zip(&keep[first..]) {
                        *o = if keep { *o } else { T::ZERO };
                    }
                }
            }
            Mask::Number(mask) => {
                if let Ok(keep) = mask.data::<T>() {
                    for (o, &keep) in out.iter_mut().zip(&keep[first..]) {
                        *o = if keep != T::ZERO { *o } else { T::ZERO };
                    }
                }
            }
        }
    }
}

/// The state's blocks; an empty state has `count` empty ones.
fn pieces<T>(state: &mut [T], count: usize) -> Vec<&mut [T]> {
    let mut pieces: Vec<&mut [T]> = state.chunks_mut(BLOCK).collect();
    if pieces.is_empty() {
        pieces.resize_with(count, Default::default);
    }
    pieces
}

/// Runs `step` and then the mask over blocks of the four slices; state slices may be empty.
fn update<T: Real + Element>(
    value: &mut [T],
    grad: &[T],
    a: &mut [T],
    b: &mut [T],
    mask: &Mask,
    step: impl Fn(&mut [T], &[T], &mut [T], &mut [T]) + Sync,
) {
    let block = |index: usize, v: &mut [T], g: &[T], a: &mut [T], b: &mut [T]| {
        step(v, g, a, b);
        for out in [v, a, b] {
            mask.apply(index * BLOCK, out);
        }
    };
    let count = value.len().div_ceil(BLOCK);
    if value.len() <= SERIAL_LIMIT || rayon::current_num_threads() == 1 {
        let states = pieces(a, count).into_iter().zip(pieces(b, count));
        for (i, ((v, g), (a, b))) in value
            .chunks_mut(BLOCK)
            .zip(grad.chunks(BLOCK))
            .zip(states)
            .enumerate()
        {
            block(i, v, g, a, b);
        }
    } else {
        let states = pieces(a, count).into_par_iter().zip(pieces(b, count));
        value
            .par_chunks_mut(BLOCK)
            .zip(grad.par_chunks(BLOCK))
            .zip(states)
            .enumerate()
            .with_min_len(8)
            .for_each(|(i, ((v, g), (a, b)))| block(i, v, g, a, b));
    }
}

simd_fn! {
    fn sgd<T>(value: &mut [T], grad: &[T], options: &Sgd) {
        let (lr, decay) = (T::of(options.lr), T::of(options.weight_decay));
        for (v, &g) in value.iter_mut().zip(grad) {
            let g = if decay != T::ZERO { g + decay * *v } else { g };
            *v -= lr * g;
        }
    }
}

simd_fn! {
    fn sgd_momentum<T>(value: &mut [T], grad: &[T], buf: &mut [T], options: &Sgd, first: bool) {
        let (lr, decay, momentum) = (T::of(options.lr), T::of(options.weight_decay), T::of(options.momentum));
        for ((v, &g), b) in value.iter_mut().zip(grad).zip(buf) {
            let g = if decay != T::ZERO { g + decay * *v } else { g };
            *b = if first { g } else { momentum * *b + g };
            let g = if options.nesterov { g + momentum * *b } else { *b };
            *v -= lr * g;
        }
    }
}

simd_fn! {
    fn adam<T>(value: &mut [T], grad: &[T], m: &mut [T], v: &mut [T], options: &Adam, size: f64, root: f64) {
        // A product instead of a quotient: roots and quotients are what this loop waits for.
        let (size, over_root, eps) = (T::of(size), T::of(1.0 / root), T::of(options.eps));
        let (beta2, rest1, rest2) =
            (T::of(options.beta2), T::of(1.0 - options.beta1), T::of(1.0 - options.beta2));
        let decay = T::of(if options.decoupled { 0.0 } else { options.weight_decay });
        let shrink = T::of(if options.decoupled { 1.0 - options.lr * options.weight_decay } else { 1.0 });
        for (((x, &g), m), v) in value.iter_mut().zip(grad).zip(m).zip(v) {
            let g = if decay != T::ZERO { g + decay * *x } else { g };
            *m += rest1 * (g - *m);
            *v = beta2 * *v + rest2 * g * g;
            let denominator = (*v).root() * over_root + eps;
            *x = *x * shrink - size * (*m / denominator);
        }
    }
}
