//! Order along an axis. NaN counts as larger than every number, as in numpy's `argmax`; -0 equals 0; equal
//! elements keep their order, ascending and descending.

use crate::autograd::record;
use crate::capture;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};
use crate::layout::axis_index;
use crate::ops::index::put_along;
use crate::ops::shape::swap_axes;
use crate::ops::take_along_axis;
use crate::tensor::Tensor;
use crate::threads::for_blocks;

/// An element as an integer of the same order.
trait Key: Element {
    /// The integer; equal elements have equal keys.
    fn key(self) -> u64;
    /// Bits of a key; keys of up to 32 bits share a word with the index.
    const BITS: u32;
}

impl Key for f32 {
    const BITS: u32 = 32;
    #[inline(always)]
    fn key(self) -> u64 {
        // Adding zero makes -0 into 0.
        let bits = (self + 0.0).to_bits();
        let ordered = if bits >> 31 == 1 {
            !bits
        } else {
            bits | 1 << 31
        };
        u64::from(if self.is_nan() { u32::MAX } else { ordered })
    }
}

impl Key for f64 {
    const BITS: u32 = 64;
    #[inline(always)]
    fn key(self) -> u64 {
        let bits = (self + 0.0).to_bits();
        let ordered = if bits >> 63 == 1 {
            !bits
        } else {
            bits | 1 << 63
        };
        if self.is_nan() { u64::MAX } else { ordered }
    }
}

impl Key for i64 {
    const BITS: u32 = 64;
    #[inline(always)]
    fn key(self) -> u64 {
        self as u64 ^ (1 << 63)
    }
}

impl Key for bool {
    const BITS: u32 = 32;
    #[inline(always)]
    fn key(self) -> u64 {
        u64::from(self)
    }
}

/// Writes into `out` the indices of `row` in order: the first `out.len()` of them.
fn order_row<E: Key>(row: &[E], descending: bool, out: &mut [i64]) {
    let k = out.len();
    if k == 0 {
        return;
    }
    if E::BITS == 32 && row.len() <= u32::MAX as usize {
        let flip = if descending { u64::from(u32::MAX) } else { 0 };
        let mut words: Vec<u64> = row
            .iter()
            .enumerate()
            .map(|(i, x)| (x.key() ^ flip) << 32 | i as u64)
            .collect();
        let first = smallest(&mut words, k);
        for (o, word) in out.iter_mut().zip(first) {
            *o = (*word & u64::from(u32::MAX)) as i64;
        }
    } else {
        let flip = if descending { u64::MAX } else { 0 };
        let mut words: Vec<(u64, usize)> = row
            .iter()
            .enumerate()
            .map(|(i, x)| (x.key() ^ flip, i))
            .collect();
        let first = smallest(&mut words, k);
        for (o, word) in out.iter_mut().zip(first) {
            *o = word.1 as i64;
        }
    }
}

/// The `k` smallest words in order: selection, then a sort of those selected. Words are distinct.
fn smallest<W: Ord>(words: &mut [W], k: usize) -> &[W] {
    if k < words.len() {
        words.select_nth_unstable(k - 1);
    }
    let first = &mut words[..k];
    first.sort_unstable();
    first
}

/// Indices of the first `k` elements in order along the last axis of `t`.
fn order_last(op: &'static str, t: &Tensor, k: usize, descending: bool) -> Result<Tensor> {
    let source = t.dense(op)?;
    let n = t.shape()[t.rank() - 1];
    let mut shape = t.layout().shape;
    shape.set(t.rank() - 1, k);
    fn fill<E: Key>(
        op: &'static str,
        source: &Tensor,
        shape: &[usize],
        [n, k]: [usize; 2],
        descending: bool,
    ) -> Result<Tensor> {
        let from = source.data::<E>()?;
        Tensor::build::<i64>(op, shape, |out| {
            if k == 0 || out.is_empty() {
                return;
            }
            let rows = (4096 / n.max(1)).max(1);
            for_blocks(out, rows * k, from.len(), |first, block| {
                let row = first / k;
                for (from, to) in from[row * n..]
                    .chunks_exact(n)
                    .zip(block.chunks_exact_mut(k))
                {
                    order_row(from, descending, to);
                }
            });
        })
    }
    let out = match t.dtype() {
        DType::F32 => fill::<f32>(op, &source, &shape, [n, k], descending),
        DType::F64 => fill::<f64>(op, &source, &shape, [n, k], descending),
        DType::I64 => fill::<i64>(op, &source, &shape, [n, k], descending),
        DType::Bool => fill::<bool>(op, &source, &shape, [n, k], descending),
    }?;
    capture::note(op, &[k as u64, u64::from(descending)], &[t], &out, || {
        move |t: &[Tensor]| order_last(op, &t[0], k, descending)
    });
    Ok(out)
}

/// The i64 indices that sort `t` along `axis`. Stable both ways; NaN last ascending, first descending. The
/// order is a constant of the gradient: sorted values are `take_along_axis` of it.
///
/// # Errors
/// [`Error::Axis`].
pub fn argsort(t: &Tensor, axis: isize, descending: bool) -> Result<Tensor> {
    const OP: &str = "argsort";
    let axis = axis_index(OP, axis, t.rank())?;
    let last = t.rank() - 1;
    let rows = swap_axes(&t.detach(), axis, last)?;
    let order = order_last(OP, &rows, t.shape()[axis], descending)?;
    swap_axes(&order, axis, last)?.contiguous()
}

/// The `k` largest elements along `axis`, in descending order, and their i64 indices; of equal elements
/// the lower index comes first. NaN counts as largest. By selection, not by sorting the axis.
///
/// # Errors
/// [`Error::Argument`] where `k` is above the axis's size; [`Error::Axis`].
pub fn top_k(t: &Tensor, k: usize, axis: isize) -> Result<(Tensor, Tensor)> {
    const OP: &str = "top_k";
    let axis = axis_index(OP, axis, t.rank())?;
    let size = t.shape()[axis];
    if k > size {
        return Err(Error::argument(
            OP,
            format!("k = {k} is above the size {size} of axis {axis}"),
        ));
    }
    let last = t.rank() - 1;
    let rows = swap_axes(&t.detach(), axis, last)?;
    let order = order_last(OP, &rows, k, true)?;
    let indices = swap_axes(&order, axis, last)?.contiguous()?;
    let values = take_along_axis(&t.detach(), &indices, axis as isize)?;
    let (full, kept) = (t.layout().shape, indices.clone());
    let values = record(OP, values, &[t], move |flow| {
        Ok(vec![Some(put_along(OP, &full, &kept, &flow.grad, axis)?)])
    });
    Ok((values, indices))
}
