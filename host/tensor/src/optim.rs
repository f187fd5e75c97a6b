//! Optimiser steps: one pass over value, gradient and state.
//!
//! The formulas are PyTorch's (`torch.optim.SGD`, `Adam`, `AdamW`, single-tensor form). A value or a state
//! tensor that nobody else holds is updated in place; one that somebody holds is copied first, so that a
//! handle given out earlier keeps the old numbers.

use crate::dtype::{DType, Element, with_float};
use crate::error::{Error, Result};
use crate::lanes::{Real, simd_fn};
use crate::tensor::Tensor;
use crate::threads::{SERIAL_LIMIT, for_items, is_parallel};

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

/// Elements of one block: few enough for all threads to have some, enough to be worth a call.
const BLOCK: usize = 4096;

/// A parameter in a step of [`sgd_steps`].
pub struct SgdPart<'a> {
    /// What the step changes.
    pub value: &'a mut Tensor,
    /// Its gradient.
    pub grad: &'a Tensor,
    /// Its momentum buffer.
    pub buf: &'a mut Option<Tensor>,
    /// Where the value lives.
    pub mask: Option<&'a Tensor>,
}

/// A parameter in a step of [`adam_steps`].
pub struct AdamPart<'a> {
    /// What the step changes.
    pub value: &'a mut Tensor,
    /// Its gradient.
    pub grad: &'a Tensor,
    /// The running mean of its gradients.
    pub m: &'a mut Option<Tensor>,
    /// The running mean of their squares.
    pub v: &'a mut Option<Tensor>,
    /// The number of this parameter's step, counted from 1.
    pub step: u64,
    /// Where the value lives.
    pub mask: Option<&'a Tensor>,
}

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
/// [`Error::Shape`], [`Error::DType`], [`Error::Budget`]; the value has not changed then.
pub fn sgd_step(
    value: &mut Tensor,
    grad: &Tensor,
    buf: &mut Option<Tensor>,
    options: &Sgd,
    mask: Option<&Tensor>,
) -> Result<()> {
    let part = SgdPart {
        value,
        grad,
        buf,
        mask,
    };
    sgd_steps(&mut [part], options).map_err(|failure| failure.1)
}

/// [`sgd_step`] on many parameters at once, whose blocks the threads share.
///
/// # Errors
/// As [`sgd_step`], with the place of the parameter in `parts`; no value has changed then.
pub fn sgd_steps(parts: &mut [SgdPart], options: &Sgd) -> std::result::Result<(), (usize, Error)> {
    const OP: &str = "sgd_step";
    let (mut sources, mut step) = (
        Vec::with_capacity(parts.len()),
        SgdStep {
            options,
            first: Vec::new(),
        },
    );
    for (i, part) in parts.iter_mut().enumerate() {
        if options.momentum != 0.0 {
            step.first.push(part.buf.is_none());
        }
        let ready = prepare(OP, part.value, part.grad, part.mask, step.states(part.buf));
        sources.push(ready.map_err(|error| (i, error))?);
    }
    if parts.iter().map(|part| part.value.numel()).sum::<usize>() <= SERIAL_LIMIT {
        for (i, (part, source)) in parts.iter_mut().zip(&sources).enumerate() {
            let states = step.states(part.buf);
            whole(OP, i, part.value, source, states, &step).map_err(|error| (i, error))?;
        }
        return Ok(());
    }
    let mut blocks = Blocks::default();
    for (i, (part, source)) in parts.iter_mut().zip(&sources).enumerate() {
        let states = step.states(part.buf);
        blocks
            .cut(OP, i, part.value, source, states)
            .map_err(|error| (i, error))?;
    }
    blocks.run(&sources, &step);
    Ok(())
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
    let part = AdamPart {
        value,
        grad,
        m,
        v,
        step,
        mask,
    };
    adam_steps(&mut [part], options).map_err(|failure| failure.1)
}

/// [`adam_step`] on many parameters at once, whose blocks the threads share.
///
/// # Errors
/// As [`adam_step`], with the place of the parameter in `parts`; no value has changed then.
pub fn adam_steps(
    parts: &mut [AdamPart],
    options: &Adam,
) -> std::result::Result<(), (usize, Error)> {
    const OP: &str = "adam_step";
    // 1 - beta^step as -expm1(step ln beta), exact to rounding for any step; beta = 0 gives 1.
    let correction = |beta: f64, step: u64| {
        if beta == 0.0 {
            1.0
        } else {
            -(step as f64 * beta.ln()).exp_m1()
        }
    };
    let (mut sources, mut step) = (
        Vec::with_capacity(parts.len()),
        AdamStep {
            options,
            corrections: Vec::with_capacity(parts.len()),
        },
    );
    for (i, part) in parts.iter_mut().enumerate() {
        if part.step == 0 {
            let error = Error::argument(OP, "steps are counted from 1, got 0");
            return Err((i, error));
        }
        step.corrections.push(Corrections {
            size: options.lr / correction(options.beta1, part.step),
            root: correction(options.beta2, part.step).sqrt(),
        });
        let states = [Some(&mut *part.m), Some(&mut *part.v)];
        let ready = prepare(OP, part.value, part.grad, part.mask, states);
        sources.push(ready.map_err(|error| (i, error))?);
    }
    if parts.iter().map(|part| part.value.numel()).sum::<usize>() <= SERIAL_LIMIT {
        for (i, (part, source)) in parts.iter_mut().zip(&sources).enumerate() {
            let states = [Some(&mut *part.m), Some(&mut *part.v)];
            whole(OP, i, part.value, source, states, &step).map_err(|error| (i, error))?;
        }
        return Ok(());
    }
    let mut blocks = Blocks::default();
    for (i, (part, source)) in parts.iter_mut().zip(&sources).enumerate() {
        let states = [Some(&mut *part.m), Some(&mut *part.v)];
        blocks
            .cut(OP, i, part.value, source, states)
            .map_err(|error| (i, error))?;
    }
    blocks.run(&sources, &step);
    Ok(())
}

/// What a step reads beside values and states.
struct Sources {
    grad: Tensor,
    mask: Mask,
}

/// Checks a parameter, and makes its value and states ready to be written; their numbers stay.
fn prepare(
    op: &'static str,
    value: &mut Tensor,
    grad: &Tensor,
    mask: Option<&Tensor>,
    states: [Option<&mut Option<Tensor>>; 2],
) -> Result<Sources> {
    for state in states.iter().flatten() {
        check(op, value, &[state.as_ref()], None)?;
    }
    check(op, value, &[Some(grad)], mask)?;
    let sources = Sources {
        grad: grad.dense(op)?,
        mask: Mask::of(op, mask)?,
    };
    with_float!(op, value.dtype(), T => {
        own::<T>(op, value)?;
        for state in states.into_iter().flatten() {
            match state {
                Some(state) => own::<T>(op, state)?,
                None => *state = Some(Tensor::zeros_for(op, value.shape(), value.dtype())?),
            }
        }
    });
    Ok(sources)
}

/// A piece of one parameter: elements `at..` of value, gradient and states; a state that the step does not have is
/// empty.
struct Block<'a, T> {
    part: usize,
    at: usize,
    value: &'a mut [T],
    grad: &'a [T],
    states: [&'a mut [T]; 2],
}

/// The pieces of all parameters.
#[derive(Default)]
struct Blocks<'a> {
    single: Vec<Block<'a, f32>>,
    double: Vec<Block<'a, f64>>,
    total: usize,
}

impl<'a> Blocks<'a> {
    /// Adds the pieces of a parameter that is ready.
    fn cut(
        &mut self,
        op: &'static str,
        part: usize,
        value: &'a mut Tensor,
        sources: &'a Sources,
        [a, b]: [Option<&'a mut Option<Tensor>>; 2],
    ) -> Result<()> {
        self.total += value.numel();
        match value.dtype() {
            DType::F64 => cut(&mut self.double, op, part, value, sources, [a, b]),
            _ => cut(&mut self.single, op, part, value, sources, [a, b]),
        }
    }

    /// Runs the step, and then the mask, over every piece.
    fn run(self, sources: &[Sources], step: &impl Step) {
        let threaded = is_parallel(self.total);
        run(self.single, threaded, sources, step);
        run(self.double, threaded, sources, step);
    }
}

/// Runs the step, and then the mask, over one parameter, without lists of pieces.
fn whole(
    op: &'static str,
    part: usize,
    value: &mut Tensor,
    sources: &Sources,
    [a, b]: [Option<&mut Option<Tensor>>; 2],
    step: &impl Step,
) -> Result<()> {
    with_float!(op, value.dtype(), T => {
        let mut block = Block::<T> {
            part,
            at: 0,
            value: slice_mut(op, value)?,
            grad: sources.grad.data()?,
            states: [&mut [], &mut []],
        };
        for (state, place) in [a, b].into_iter().zip(&mut block.states) {
            if let Some(state) = state.and_then(Option::as_mut) {
                *place = slice_mut(op, state)?;
            }
        }
        step.run(&mut block);
        sources.mask.over(block);
    });
    Ok(())
}

fn cut<'a, T: Element>(
    blocks: &mut Vec<Block<'a, T>>,
    op: &'static str,
    part: usize,
    value: &'a mut Tensor,
    sources: &'a Sources,
    states: [Option<&'a mut Option<Tensor>>; 2],
) -> Result<()> {
    let count = value.numel().div_ceil(BLOCK);
    let pieces = |state: Option<&'a mut Option<Tensor>>| match state.and_then(Option::as_mut) {
        Some(state) => Ok(slice_mut::<T>(op, state)?.chunks_mut(BLOCK).collect()),
        None => {
            let mut none: Vec<&'a mut [T]> = Vec::new();
            none.resize_with(count, Default::default);
            Ok::<_, Error>(none)
        }
    };
    let [a, b] = states;
    let states = pieces(a)?.into_iter().zip(pieces(b)?);
    let values = slice_mut::<T>(op, value)?.chunks_mut(BLOCK);
    let grads = sources.grad.data::<T>()?.chunks(BLOCK);
    for (i, ((value, grad), (a, b))) in values.zip(grads).zip(states).enumerate() {
        blocks.push(Block {
            part,
            at: i * BLOCK,
            value,
            grad,
            states: [a, b],
        });
    }
    Ok(())
}

fn run<T: Real + Element>(
    blocks: Vec<Block<T>>,
    threaded: bool,
    sources: &[Sources],
    step: &impl Step,
) {
    for_items(
        blocks,
        threaded,
        || (),
        |(), _, mut block| {
            step.run(&mut block);
            sources[block.part].mask.over(block);
        },
    );
}

/// The arithmetic of one piece.
trait Step: Sync {
    fn run<T: Real>(&self, block: &mut Block<T>);
}

struct SgdStep<'a> {
    options: &'a Sgd,
    /// Of each parameter, whether its buffer is new; empty without momentum.
    first: Vec<bool>,
}

impl SgdStep<'_> {
    /// The states that this step has: none without momentum.
    fn states<'a>(&self, buf: &'a mut Option<Tensor>) -> [Option<&'a mut Option<Tensor>>; 2] {
        [(self.options.momentum != 0.0).then_some(buf), None]
    }
}

impl Step for SgdStep<'_> {
    fn run<T: Real>(&self, b: &mut Block<T>) {
        if self.options.momentum == 0.0 {
            sgd(b.value, b.grad, self.options);
        } else {
            let first = self.first[b.part];
            sgd_momentum(b.value, b.grad, b.states[0], self.options, first);
        }
    }
}

struct AdamStep<'a> {
    options: &'a Adam,
    corrections: Vec<Corrections>,
}

/// What Adam divides by early in a run.
#[derive(Clone, Copy)]
struct Corrections {
    /// The learning rate over 1 - beta1^step.
    size: f64,
    /// The root of 1 - beta2^step.
    root: f64,
}

impl Step for AdamStep<'_> {
    fn run<T: Real>(&self, b: &mut Block<T>) {
        let [m, v] = &mut b.states;
        adam(
            b.value,
            b.grad,
            m,
            v,
            self.options,
            self.corrections[b.part],
        );
    }
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

    /// Zeros value and states of a piece where the mask is 0.
    fn over<T: Real + Element>(&self, block: Block<T>) {
        if matches!(self, Mask::None) {
            return;
        }
        let [a, b] = block.states;
        for out in [block.value, a, b] {
            self.apply(block.at, out);
        }
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
    fn adam<T>(value: &mut [T], grad: &[T], m: &mut [T], v: &mut [T], options: &Adam, by: Corrections) {
        // A product instead of a quotient: roots and quotients are what this loop waits for.
        let (size, over_root, eps) = (T::of(by.size), T::of(1.0 / by.root), T::of(options.eps));
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
