//! What the operations on rows share: bringing an axis to the end, and checks of element types.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::ops;
use crate::tensor::Tensor;

/// An axis counted from the front.
pub(crate) fn axis_of(op: &'static str, t: &Tensor, axis: isize) -> Result<usize> {
    let rank = t.rank() as isize;
    let from_front = if axis < 0 { axis + rank } else { axis };
    if (0..rank).contains(&from_front) {
        Ok(from_front as usize)
    } else {
        Err(Error::Axis {
            op,
            axis: axis as i64,
            rank: t.rank(),
        })
    }
}

/// Refuses tensors that are not all of the first one's float type.
pub(crate) fn one_float_type(op: &'static str, tensors: &[&Tensor]) -> Result<DType> {
    match tensors.first().map(|t| t.dtype()) {
        Some(first) if first.is_float() && tensors.iter().all(|t| t.dtype() == first) => Ok(first),
        _ => Err(Error::DType {
            op,
            found: tensors.iter().map(|t| t.dtype()).collect(),
            expected: "one float type throughout, f32 or f64; cast with astype",
        }),
    }
}

/// The elements without a graph, contiguous, with `axis` moved to the end.
pub(crate) fn axis_last(op: &'static str, t: &Tensor, axis: usize) -> Result<Tensor> {
    let t = t.detach();
    if axis + 1 == t.rank() {
        return t.dense(op);
    }
    let mut order: Vec<usize> = (0..t.rank()).filter(|&a| a != axis).collect();
    order.push(axis);
    ops::permute_dims(&t, &order)?.dense(op)
}

/// Undoes [`axis_last`] (a view).
pub(crate) fn axis_back(t: Tensor, axis: usize) -> Result<Tensor> {
    if axis + 1 == t.rank() {
        return Ok(t);
    }
    let mut order: Vec<usize> = (0..t.rank() - 1).collect();
    order.insert(axis, t.rank() - 1);
    ops::permute_dims(&t, &order)
}

/// Rows per block of a split row kernel: about `threads::BLOCK` elements, from shapes alone.
pub(crate) fn rows_per_block(length: usize) -> usize {
    (crate::threads::BLOCK / length.max(1)).max(1)
}

/// Sizes as the signed list that `reshape` takes.
pub(crate) fn signed(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|&s| s as i64).collect()
}
