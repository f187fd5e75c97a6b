//! Sums and extrema along axes, in an order fixed by the shape alone.

use crate::autograd::record;
use crate::dtype::{DType, with_float};
use crate::error::{Error, Result};
use crate::layout::{Dims, Layout, Walk, axis_index};
use crate::ops::shape::{broadcast_to, permute_dims, reshape_to};
use crate::tensor::Tensor;

/// The sum over `axes` (none means all); with `keepdims` the summed axes stay with size 1. An empty sum
/// is 0. f32 is summed in f64 and rounded once.
///
/// # Errors
/// [`Error::Axis`]; [`Error::Argument`] for an axis named twice; [`Error::DType`] for bool.
pub fn sum(t: &Tensor, axes: &[isize], keepdims: bool) -> Result<Tensor> {
    const OP: &str = "sum";
    let mut summed = [false; crate::layout::MAX_RANK];
    for &axis in axes {
        let at = axis_index(OP, axis, t.rank())?;
        if std::mem::replace(&mut summed[at], true) {
            return Err(Error::argument(
                OP,
                format!("axis {axis} is named twice in {axes:?}"),
            ));
        }
    }
    if axes.is_empty() {
        summed = [true; crate::layout::MAX_RANK];
    }
    let out = sum_marked(OP, t, &summed)?;
    let (mut kept, mut with_ones) = (Dims::empty(), Dims::empty());
    for (axis, &size) in t.shape().iter().enumerate() {
        if summed[axis] {
            with_ones.push(1);
        } else {
            kept.push(size);
            with_ones.push(size);
        }
    }
    let shape = if keepdims { with_ones } else { kept };
    let out = out.view(Layout::dense(OP, &shape)?);
    let full = t.layout().shape;
    Ok(record(OP, out, &[t], move |flow| {
        let grad = reshape_to(&flow.grad, &with_ones)?;
        Ok(vec![Some(broadcast_to(&grad, &full)?)])
    }))
}

/// Brings a gradient to a shape: sums over axes where the shape has size 1 or no axis, then repeats.
pub(crate) fn fit_shape(t: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let lead = t.rank().saturating_sub(shape.len());
    let mut axes = Vec::new();
    for (axis, &size) in t.shape().iter().enumerate() {
        if axis < lead || (shape[axis - lead] == 1 && size != 1) {
            axes.push(axis as isize);
        }
    }
    let mut out = t.clone();
    if !axes.is_empty() {
        out = sum(&out, &axes, true)?;
    }
    if lead > 0 {
        let tail: Dims = Dims::new("sum", &out.shape()[lead..])?;
        out = reshape_to(&out, &tail)?;
    }
    broadcast_to(&out, shape)
}

/// The sum over marked axes as a dense tensor of the kept sizes.
fn sum_marked(op: &'static str, t: &Tensor, summed: &[bool]) -> Result<Tensor> {
    // Kept axes first, summed axes last.
    let mut order = Dims::empty();
    let mut kept = Dims::empty();
    for pass in [false, true] {
        for axis in 0..t.rank() {
            if summed[axis] == pass {
                order.push(axis);
                if !pass {
                    kept.push(t.shape()[axis]);
                }
            }
        }
    }
    let moved = permute_dims(&t.detach(), &order)?;
    let layout = moved.layout();
    let walk = Walk::new(&layout.shape, [(&layout.strides, layout.offset)]);
    let [stride] = walk.inner_strides();
    let rows: usize = kept.iter().product();
    let length = t.numel().checked_div(rows).unwrap_or(0);
    if t.dtype() == DType::I64 {
        let source = t.storage_slice::<i64>(op)?;
        return Tensor::build::<i64>(op, &kept, |out| {
            for (row, o) in out.iter_mut().enumerate() {
                walk.runs(row * length..(row + 1) * length, |_, len, [start]| {
                    for i in 0..len {
                        *o = o.wrapping_add(source[start + i * stride]);
                    }
                });
            }
        });
    }
    with_float!(op, t.dtype(), E => {
        let source = t.storage_slice::<E>(op)?;
        Tensor::build::<E>(op, &kept, |out| {
            for (row, o) in out.iter_mut().enumerate() {
                let mut total = 0.0f64;
                walk.runs(row * length..(row + 1) * length, |_, len, [start]| {
                    for i in 0..len {
                        total += crate::dtype::Element::to_f64(source[start + i * stride]);
                    }
                });
                *o = crate::dtype::Element::from_f64(total);
            }
        })
    })
}
