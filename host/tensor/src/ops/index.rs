//! Selection and accumulation by integer indices. An index outside its axis is an error, negative ones
//! included.

use crate::autograd::record;
use crate::capture;
use crate::dtype::{DType, with_element};
use crate::error::{Error, Result};
use crate::layout::{Dims, axis_index};
use crate::math::Number;
use crate::ops::shape::reshape_to;
use crate::tensor::Tensor;
use crate::threads::for_blocks;

/// A dense tensor seen around one axis: `outer` blocks of `size` rows of `inner` elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Around {
    pub(crate) outer: usize,
    pub(crate) size: usize,
    pub(crate) inner: usize,
}

impl Around {
    pub(crate) fn new(shape: &[usize], axis: usize) -> Around {
        Around {
            outer: shape[..axis].iter().product(),
            size: shape[axis],
            inner: shape[axis + 1..].iter().product(),
        }
    }
}

/// The indices as a slice's owner, each checked against an axis of `size`.
fn checked(op: &'static str, indices: &Tensor, size: usize) -> Result<Tensor> {
    if indices.dtype() != DType::I64 {
        return Err(Error::DType {
            op,
            found: vec![indices.dtype()],
            expected: "i64 indices; cast with astype",
        });
    }
    let dense = indices.dense(op)?;
    let outside = dense
        .data::<i64>()?
        .iter()
        .find(|&&i| i < 0 || i as u64 >= size as u64);
    match outside {
        Some(&index) => Err(Error::Index { op, index, size }),
        None => Ok(dense),
    }
}

/// Rows of `t` along `axis` at `indices`: shape `t[..axis] + indices.shape + t[axis + 1..]`. The gradient
/// adds repeated rows up, in index order.
///
/// # Errors
/// [`Error::Index`] for an index outside the axis; [`Error::DType`] unless indices are i64;
/// [`Error::Axis`], [`Error::Rank`].
pub fn take(t: &Tensor, indices: &Tensor, axis: isize) -> Result<Tensor> {
    const OP: &str = "take";
    let axis = axis_index(OP, axis, t.rank())?;
    let around = Around::new(t.shape(), axis);
    let dense_indices = checked(OP, indices, around.size)?;
    let ix = dense_indices.data::<i64>()?;
    let mut shape = t.shape()[..axis].to_vec();
    shape.extend_from_slice(indices.shape());
    shape.extend_from_slice(&t.shape()[axis + 1..]);
    let source = t.dense(OP)?;
    let out = with_element!(t.dtype(), E => {
        let from = source.data::<E>()?;
        Tensor::build_unset::<E>(OP, &shape, |out| {
            let (total, inner) = (out.len(), around.inner.max(1));
            let rows_per_block = (16 * 1024 / inner).max(1);
            for_blocks(out, rows_per_block * inner, total, |first, block| {
                let at = first / inner;
                let (mut o, mut i) = (at / ix.len().max(1), at % ix.len().max(1));
                for to in block.chunks_exact_mut(inner) {
                    let row = (o * around.size + ix[i] as usize) * inner;
                    if inner == 1 {
                        to[0] = from[row];
                    } else {
                        to.copy_from_slice(&from[row..row + inner]);
                    }
                    i += 1;
                    if i == ix.len() {
                        (o, i) = (o + 1, 0);
                    }
                }
            });
        })?
    });
    capture::note(OP, &[axis as u64], &[t, indices], &out, || {
        move |t: &[Tensor]| take(&t[0], &t[1], axis as isize)
    });
    let full = t.layout().shape;
    let flat = dense_indices.clone();
    Ok(record(OP, out, &[t], move |flow| {
        let mut shape = full;
        shape.set(axis, flat.numel());
        let zeros = Tensor::zeros_for(OP, &full, flow.grad.dtype())?;
        let grad = reshape_to(&flow.grad, &shape)?;
        let flat = reshape_to(&flat, &[flat.numel()])?;
        Ok(vec![Some(scatter_add(
            &zeros,
            &flat,
            &grad,
            axis as isize,
        )?)])
    }))
}

/// The rows of `t` (its first axis) that `rows` names, in that order, outside of any graph: what [`take`] gives along
/// axis 0. `kept` is written again where it has the shape and nobody else holds it.
///
/// # Errors
/// [`Error::Shape`] for a scalar; [`Error::Index`]; [`Error::Budget`].
pub fn take_rows(t: &Tensor, rows: &[i64], kept: Option<Tensor>) -> Result<Tensor> {
    const OP: &str = "take";
    let Some((&count, row)) = t.shape().split_first() else {
        return Err(Error::shape(OP, "a scalar has no rows", &[t.shape()]));
    };
    let outside = |&&row: &&i64| row < 0 || row as u64 >= count as u64;
    if let Some(&index) = rows.iter().find(outside) {
        return Err(Error::Index {
            op: OP,
            index,
            size: count,
        });
    }
    let inner: usize = row.iter().product();
    let mut shape = t.layout().shape;
    shape.set(0, rows.len());
    let copy = if t.is_contiguous() {
        None
    } else {
        Some(t.dense(OP)?)
    };
    let source = copy.as_ref().unwrap_or(t);
    with_element!(t.dtype(), E => {
        let from = source.data::<E>()?;
        let gather = |out: &mut [E]| {
            if inner == 0 {
                return;
            }
            let (total, together) = (out.len(), (16 * 1024 / inner).max(1));
            for_blocks(out, together * inner, total, |first, block| {
                let rows = &rows[first / inner..];
                if inner == 1 {
                    for (to, &row) in block.iter_mut().zip(rows) {
                        *to = from[row as usize];
                    }
                    return;
                }
                for (to, &row) in block.chunks_exact_mut(inner).zip(rows) {
                    to.copy_from_slice(&from[row as usize * inner..][..inner]);
                }
            });
        };
        if let Some(mut kept) = kept
            && *kept.shape() == *shape
            && kept.is_contiguous()
            && kept.layout().offset == 0
            && let Some(out) = kept.own_mut::<E>()
            && out.len() == rows.len() * inner
        {
            gather(out);
            return Ok(kept);
        }
        Tensor::build_unset::<E>(OP, &shape, gather)
    })
}

/// The offset of each element of an array shaped as `around` with `size` rows, in an array whose axis has
/// `size_there` rows: what both `take_along_axis` and its inverse walk.
#[inline(always)]
fn along(around: Around, size_there: usize, position: usize, index: i64) -> usize {
    let column = position % around.inner;
    let outer = position / (around.inner * around.size);
    (outer * size_there + index as usize) * around.inner + column
}

fn check_along(op: &'static str, t: &[usize], indices: &[usize], axis: usize) -> Result<()> {
    let fits = t.len() == indices.len() && (0..t.len()).all(|i| i == axis || t[i] == indices[i]);
    if fits {
        return Ok(());
    }
    Err(Error::shape(
        op,
        format!("indices need the tensor's rank and its sizes on all axes but axis {axis}"),
        &[t, indices],
    ))
}

/// For each position the element of `t` whose index along `axis` is given there: `indices` has `t`'s
/// rank and, but for `axis`, its sizes.
///
/// # Errors
/// [`Error::Index`], [`Error::Shape`], [`Error::DType`], [`Error::Axis`].
pub fn take_along_axis(t: &Tensor, indices: &Tensor, axis: isize) -> Result<Tensor> {
    const OP: &str = "take_along_axis";
    let axis = axis_index(OP, axis, t.rank())?;
    check_along(OP, t.shape(), indices.shape(), axis)?;
    let there = Around::new(t.shape(), axis);
    let here = Around::new(indices.shape(), axis);
    let dense_indices = checked(OP, indices, there.size)?;
    let ix = dense_indices.data::<i64>()?;
    let source = t.dense(OP)?;
    let out = with_element!(t.dtype(), E => {
        let from = source.data::<E>()?;
        Tensor::build_unset::<E>(OP, indices.shape(), |out| {
            let total = out.len();
            for_blocks(out, 16 * 1024, total, |first, block| {
                for (i, o) in block.iter_mut().enumerate() {
                    *o = from[along(here, there.size, first + i, ix[first + i])];
                }
            });
        })?
    });
    capture::note(OP, &[axis as u64], &[t, indices], &out, || {
        move |t: &[Tensor]| take_along_axis(&t[0], &t[1], axis as isize)
    });
    let full = t.layout().shape;
    let kept = dense_indices.clone();
    Ok(record(OP, out, &[t], move |flow| {
        let zeros = Tensor::zeros_for(OP, &full, flow.grad.dtype())?;
        Ok(vec![Some(scatter_along(
            OP, &zeros, &kept, &flow.grad, axis,
        )?)])
    }))
}

/// `base` with `src` added at `indices` along `axis`; repeated indices add in index order. Indices are
/// either one-dimensional (`src` is `base` with that many rows along `axis`) or of `src`'s shape (which
/// is `base`'s but for `axis`).
///
/// # Errors
/// [`Error::Index`]; [`Error::Shape`]; [`Error::DType`] unless indices are i64 and both others one
/// numeric type; [`Error::Axis`].
pub fn scatter_add(base: &Tensor, indices: &Tensor, src: &Tensor, axis: isize) -> Result<Tensor> {
    const OP: &str = "scatter_add";
    let axis = axis_index(OP, axis, base.rank())?;
    if base.dtype() != src.dtype() || base.dtype() == DType::Bool {
        return Err(Error::DType {
            op: OP,
            found: vec![base.dtype(), src.dtype()],
            expected: "base and source of one numeric type; cast with astype",
        });
    }
    let mut rows = base.layout().shape;
    rows.set(axis, indices.numel());
    let one_dimensional = indices.rank() == 1 && *src.shape() == *rows;
    if !one_dimensional {
        let fits = indices.shape() == src.shape()
            && check_along(OP, base.shape(), indices.shape(), axis).is_ok();
        if !fits {
            return Err(Error::shape(
                OP,
                format!(
                    "base, indices, source: indices have the source's shape (the base's but for axis \
                     {axis}) or are one-dimensional"
                ),
                &[base.shape(), indices.shape(), src.shape()],
            ));
        }
        return scatter_along(OP, base, indices, src, axis);
    }
    let around = Around::new(base.shape(), axis);
    let dense_indices = checked(OP, indices, around.size)?;
    let ix = dense_indices.data::<i64>()?;
    let (from, start) = (src.dense(OP)?, base.dense(OP)?);
    let out = match base.dtype() {
        DType::F32 => scatter_rows::<f32>(OP, &start, ix, &from, around)?,
        DType::F64 => scatter_rows::<f64>(OP, &start, ix, &from, around)?,
        _ => scatter_rows::<i64>(OP, &start, ix, &from, around)?,
    };
    capture::note(OP, &[axis as u64], &[base, indices, src], &out, || {
        move |t: &[Tensor]| scatter_add(&t[0], &t[1], &t[2], axis as isize)
    });
    let kept = dense_indices.clone();
    Ok(record(OP, out, &[base, src], move |flow| {
        let to_src = if flow.needs(1) {
            Some(take(&flow.grad, &kept, axis as isize)?)
        } else {
            None
        };
        Ok(vec![Some(flow.grad.clone()), to_src])
    }))
}

fn scatter_rows<E: Number>(
    op: &'static str,
    base: &Tensor,
    ix: &[i64],
    src: &Tensor,
    around: Around,
) -> Result<Tensor> {
    let (start, from) = (base.data::<E>()?, src.data::<E>()?);
    let Around { size, inner, .. } = around;
    Tensor::build::<E>(op, base.shape(), |out| {
        out.copy_from_slice(start);
        if from.is_empty() {
            return;
        }
        // Each block owns a range of target rows and looks through all indices, so no two blocks write
        // one row, and each row adds up in index order. Sixteen blocks an outer item keep the repeated
        // reading of indices small beside the adding where rows are long.
        let blocks = (inner / 4).clamp(1, 16);
        let rows = size.div_ceil(blocks);
        let work = from.len();
        let per_item = |item: usize, out: &mut [E], total: usize| {
            let from = &from[item * ix.len() * inner..];
            for_blocks(out, rows * inner, total, |first, block| {
                let low = first / inner;
                let high = low + block.len() / inner;
                for (from, &i) in from.chunks_exact(inner).zip(ix) {
                    let i = i as usize;
                    if i >= low && i < high {
                        let to = &mut block[(i - low) * inner..][..inner];
                        for (t, f) in to.iter_mut().zip(from) {
                            *t = t.plus(*f);
                        }
                    }
                }
            });
        };
        if around.outer == 1 {
            per_item(0, out, work);
        } else {
            for_blocks(out, size * inner, work, |first, block| {
                per_item(first / (size * inner), block, 0);
            });
        }
    })
}

/// [`scatter_add`] with indices of the source's shape.
fn scatter_along(
    op: &'static str,
    base: &Tensor,
    indices: &Tensor,
    src: &Tensor,
    axis: usize,
) -> Result<Tensor> {
    let there = Around::new(base.shape(), axis);
    let here = Around::new(indices.shape(), axis);
    let dense_indices = checked(op, indices, there.size)?;
    let ix = dense_indices.data::<i64>()?;
    let (from, start) = (src.dense(op)?, base.dense(op)?);
    fn fill<E: Number>(
        op: &'static str,
        start: &Tensor,
        from: &Tensor,
        ix: &[i64],
        here: Around,
        there: Around,
    ) -> Result<Tensor> {
        let (start_values, from) = (start.data::<E>()?, from.data::<E>()?);
        Tensor::build::<E>(op, start.shape(), |out| {
            out.copy_from_slice(start_values);
            let (item_there, item_here) = (there.size * there.inner, here.size * here.inner);
            let work = from.len();
            // Whole outer items a block: positions of one item never leave it.
            let items = (16 * 1024 / item_here.max(1)).max(1);
            for_blocks(out, items * item_there, work, |first, block| {
                let item = first / item_there.max(1);
                let count = block.len() / item_there.max(1);
                let base = item * item_there;
                for position in item * item_here..(item + count) * item_here {
                    let to = along(here, there.size, position, ix[position]) - base;
                    block[to] = block[to].plus(from[position]);
                }
            });
        })
    }
    let out = match base.dtype() {
        DType::F32 => fill::<f32>(op, &start, &from, ix, here, there)?,
        DType::F64 => fill::<f64>(op, &start, &from, ix, here, there)?,
        _ => fill::<i64>(op, &start, &from, ix, here, there)?,
    };
    capture::note(op, &[axis as u64, 1], &[base, indices, src], &out, || {
        move |t: &[Tensor]| scatter_along(op, &t[0], &t[1], &t[2], axis)
    });
    let kept = dense_indices.clone();
    Ok(record(op, out, &[base, src], move |flow| {
        let to_src = if flow.needs(1) {
            Some(take_along_axis(&flow.grad, &kept, axis as isize)?)
        } else {
            None
        };
        Ok(vec![Some(flow.grad.clone()), to_src])
    }))
}

/// The largest element per segment: `t[m, ..]` and `ids[m]` give `[n, ..]`; an empty segment is -inf (the
/// smallest i64). NaN counts as largest. Serves as the shift of a segment softmax, which the shift
/// cancels out of, so no gradient flows through it.
///
/// # Errors
/// [`Error::Index`] for an id outside `0..n`; [`Error::Shape`]; [`Error::DType`].
pub fn segment_max(t: &Tensor, ids: &Tensor, n: usize) -> Result<Tensor> {
    const OP: &str = "segment_max";
    if t.rank() == 0 || ids.rank() != 1 || ids.shape()[0] != t.shape()[0] {
        return Err(Error::shape(
            OP,
            "needs [m, ..] and one id for each of the m rows",
            &[t.shape(), ids.shape()],
        ));
    }
    let around = Around::new(t.shape(), 0);
    let dense_ids = checked(OP, ids, n)?;
    let ix = dense_ids.data::<i64>()?;
    let mut shape: Dims = t.layout().shape;
    shape.set(0, n);
    let source = t.dense(OP)?;
    fn fill<E: Number>(
        op: &'static str,
        source: &Tensor,
        ix: &[i64],
        inner: usize,
        shape: &[usize],
        lowest: E,
    ) -> Result<Tensor> {
        let from = source.data::<E>()?;
        Tensor::build::<E>(op, shape, |out| {
            out.fill(lowest);
            if inner == 0 {
                return;
            }
            for (from, &i) in from.chunks_exact(inner).zip(ix) {
                let to = &mut out[i as usize * inner..][..inner];
                for (t, f) in to.iter_mut().zip(from) {
                    *t = t.larger(*f);
                }
            }
        })
    }
    let out = match t.dtype() {
        DType::F32 => fill(OP, &source, ix, around.inner, &shape, f32::NEG_INFINITY),
        DType::F64 => fill(OP, &source, ix, around.inner, &shape, f64::NEG_INFINITY),
        DType::I64 => fill(OP, &source, ix, around.inner, &shape, i64::MIN),
        DType::Bool => Err(Error::DType {
            op: OP,
            found: vec![DType::Bool],
            expected: "numbers; cast with astype",
        }),
    }?;
    capture::note(OP, &[n as u64], &[t, ids], &out, || {
        move |t: &[Tensor]| segment_max(&t[0], &t[1], n)
    });
    Ok(out)
}

/// Adds `src` along one-element slots: the gradient of a selection of one element per row.
pub(crate) fn put_along(
    op: &'static str,
    shape: &[usize],
    indices: &Tensor,
    src: &Tensor,
    axis: usize,
) -> Result<Tensor> {
    let zeros = Tensor::zeros_for(op, shape, src.dtype())?;
    scatter_along(op, &zeros, indices, src, axis)
}
