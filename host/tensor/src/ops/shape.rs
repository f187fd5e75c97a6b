//! Views and rearrangements: no arithmetic, and no copy but where said.

use crate::account::fits_limit;
use crate::autograd::{carry_backward, record};
use crate::capture;
use crate::dtype::{Element, with_element};
use crate::error::{Error, Result};
use crate::layout::{Dims, Layout, Walk, axis_index, broadcast_strides, count};
use crate::tensor::Tensor;

/// The same elements in row-major order under another shape; one size may be -1 and is worked out. A view
/// where the strides allow it, else a copy.
///
/// # Errors
/// [`Error::Shape`] where the sizes do not multiply to the number of elements; [`Error::Rank`].
pub fn reshape(t: &Tensor, shape: &[i64]) -> Result<Tensor> {
    const OP: &str = "reshape";
    let shape = infer(OP, t, shape)?;
    if *shape == *t.shape() {
        return Ok(t.clone());
    }
    let out = match reshaped_layout(t.layout(), &shape) {
        Some(layout) => t.view(layout),
        None => {
            let mut layout = Layout::dense(OP, &shape)?;
            let copy = t.dense(OP)?;
            layout.offset = copy.layout().offset;
            copy.view(layout)
        }
    };
    let back = t.layout().shape;
    let y = record(OP, out, &[t], move |flow| {
        Ok(vec![Some(reshape_to(&flow.grad, &back)?)])
    });
    carry_backward(y, t, |b| reshape_to(b, &shape))
}

/// As [`reshape`] with every size known.
pub(crate) fn reshape_to(t: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let mut sizes = [0i64; crate::layout::MAX_RANK];
    let Some(sizes) = sizes.get_mut(..shape.len()) else {
        return Err(Error::Rank {
            op: "reshape",
            rank: shape.len(),
        });
    };
    for (to, &from) in sizes.iter_mut().zip(shape) {
        *to = from as i64;
    }
    reshape(t, sizes)
}

fn infer(op: &'static str, t: &Tensor, shape: &[i64]) -> Result<Dims> {
    let refuse = |why: &str| {
        Err(Error::argument(
            op,
            format!(
                "cannot give shape {:?} the shape {shape:?}: {why}",
                t.shape()
            ),
        ))
    };
    if shape.len() > crate::layout::MAX_RANK {
        return Err(Error::Rank {
            op,
            rank: shape.len(),
        });
    }
    let mut dims = Dims::empty();
    let mut open = None;
    for (axis, &size) in shape.iter().enumerate() {
        match usize::try_from(size) {
            Ok(size) => dims.push(size),
            Err(_) if size == -1 && open.is_none() => {
                open = Some(axis);
                dims.push(1);
            }
            Err(_) if size == -1 => return refuse("only one size may be -1"),
            Err(_) => return refuse("sizes are not negative"),
        }
    }
    let known = count(op, &dims)?;
    let numel = t.numel();
    if let Some(axis) = open {
        if known == 0 || !numel.is_multiple_of(known) {
            return refuse("the size at -1 cannot be worked out");
        }
        dims.set(axis, numel / known);
    } else if known != numel {
        return refuse("the numbers of elements differ");
    }
    Ok(dims)
}

/// Strides that show `layout` under `shape` (same number of elements) without a copy, if there are any.
fn reshaped_layout(layout: &Layout, shape: &[usize]) -> Option<Layout> {
    if layout.is_dense() || layout.numel() == 0 {
        let mut dense = Layout::dense("reshape", shape).ok()?;
        dense.offset = layout.offset;
        return Some(dense);
    }
    // Group old axes into runs that are dense among themselves, and split each run into new axes.
    let mut old: Vec<(usize, usize)> = Vec::new();
    for (&size, &stride) in layout.shape.iter().zip(layout.strides.iter()) {
        if size == 1 {
            continue;
        }
        match old.last_mut() {
            Some((length, step)) if *step == stride * size => {
                *length *= size;
                *step = stride;
            }
            _ => old.push((size, stride)),
        }
    }
    let mut strides = Dims::new("reshape", shape).ok()?;
    let mut runs = old.into_iter().rev();
    let (mut left, mut step) = runs.next().unwrap_or((1, 1));
    for axis in (0..shape.len()).rev() {
        let size = shape[axis];
        if size == 1 {
            strides.set(axis, 0);
            continue;
        }
        if left == 1 {
            (left, step) = runs.next()?;
        }
        if left % size != 0 {
            return None;
        }
        strides.set(axis, step);
        step *= size;
        left /= size;
    }
    Some(Layout {
        shape: Dims::new("reshape", shape).ok()?,
        strides,
        offset: layout.offset,
    })
}

/// The axes in another order: axis `i` of the result is axis `axes[i]` of `t`. A view.
///
/// # Errors
/// [`Error::Argument`] where `axes` is not a permutation of `0..rank`.
pub fn permute_dims(t: &Tensor, axes: &[usize]) -> Result<Tensor> {
    const OP: &str = "permute_dims";
    let old = t.layout();
    let mut layout = *old;
    let mut inverse = Dims::empty();
    for _ in 0..old.shape.len() {
        inverse.push(usize::MAX);
    }
    let fits = axes.len() == old.shape.len()
        && axes.iter().enumerate().all(|(to, &from)| {
            let fresh = from < inverse.len() && inverse[from] == usize::MAX;
            if fresh {
                inverse.set(from, to);
                layout.shape.set(to, old.shape[from]);
                layout.strides.set(to, old.strides[from]);
            }
            fresh
        });
    if !fits {
        return Err(Error::argument(
            OP,
            format!(
                "axes must be each of 0..{} once; got {axes:?}",
                old.shape.len()
            ),
        ));
    }
    let y = record(OP, t.view(layout), &[t], move |flow| {
        Ok(vec![Some(permute_dims(&flow.grad, &inverse)?)])
    });
    carry_backward(y, t, |b| permute_dims(b, axes))
}

/// Exchanges two axes: the transpose that gradient rules need.
pub(crate) fn swap_axes(t: &Tensor, a: usize, b: usize) -> Result<Tensor> {
    let mut axes = Dims::empty();
    for axis in 0..t.rank() {
        axes.push(axis);
    }
    axes.set(a, b);
    axes.set(b, a);
    permute_dims(t, &axes)
}

/// Repeats axes of size 1, and new leading axes, up to `shape`. A view, so it is not charged; but one that
/// shows more than the account's whole limit is refused.
///
/// # Errors
/// [`Error::Shape`] where `t`'s shape does not broadcast to `shape`; [`Error::Rank`], [`Error::Size`],
/// [`Error::Budget`].
pub fn broadcast_to(t: &Tensor, shape: &[usize]) -> Result<Tensor> {
    const OP: &str = "broadcast_to";
    if *shape == *t.shape() {
        return Ok(t.clone());
    }
    let dims = Dims::new(OP, shape)?;
    // A view costs no memory, but whatever reads it takes time for each element it shows.
    let shown = (count(OP, shape)? as u64).saturating_mul(t.dtype().size() as u64);
    fits_limit(OP, shown)?;
    let Some(strides) = broadcast_strides(t.layout(), shape) else {
        return Err(Error::shape(
            OP,
            "the first shape does not broadcast to the second",
            &[t.shape(), shape],
        ));
    };
    let layout = Layout {
        shape: dims,
        strides,
        offset: t.layout().offset,
    };
    let y = record(OP, t.view(layout), &[t], |flow| {
        Ok(vec![Some(flow.grad.clone())])
    });
    carry_backward(y, t, |b| broadcast_to(b, shape))
}

/// Elements `start..stop` along `axis`; negative bounds count from the end, and bounds past the ends are
/// drawn in, as in Python. A view.
///
/// # Errors
/// [`Error::Axis`].
pub fn slice(t: &Tensor, axis: isize, start: isize, stop: isize) -> Result<Tensor> {
    const OP: &str = "slice";
    let axis = axis_index(OP, axis, t.rank())?;
    let size = t.shape()[axis];
    let bound = |b: isize| {
        let b = if b < 0 {
            b.saturating_add(size as isize)
        } else {
            b
        };
        b.clamp(0, size as isize) as usize
    };
    let start = bound(start);
    let stop = bound(stop).max(start);
    if start == 0 && stop == size {
        return Ok(t.clone());
    }
    let mut layout = *t.layout();
    layout.shape.set(axis, stop - start);
    // An empty slice keeps its offset: its elements are never read, and the offset stays in bounds.
    if stop > start {
        layout.offset += start * layout.strides[axis];
    }
    let y = record(OP, t.view(layout), &[t], move |flow| {
        Ok(vec![Some(embed(&flow.grad, axis, start, size)?)])
    });
    carry_backward(y, t, |b| {
        slice(b, axis as isize, start as isize, stop as isize)
    })
}

/// Zeros of size `size` along `axis` with `t` in them from `start` on: the gradient of [`slice`].
pub(crate) fn embed(t: &Tensor, axis: usize, start: usize, size: usize) -> Result<Tensor> {
    const OP: &str = "slice";
    let mut shape = t.layout().shape;
    let length = shape[axis];
    shape.set(axis, size);
    let outer: usize = shape[..axis].iter().product();
    let inner: usize = shape[axis + 1..].iter().product();
    let source = t.dense(OP)?;
    let out = with_element!(t.dtype(), E => {
        let from = source.data::<E>()?;
        Tensor::build::<E>(OP, &shape, |out| {
            for o in 0..outer {
                let to = (o * size + start) * inner;
                let at = o * length * inner;
                out[to..to + length * inner].copy_from_slice(&from[at..at + length * inner]);
            }
        })?
    });
    capture::note(
        "embed",
        &[axis as u64, start as u64, size as u64],
        &[t],
        &out,
        || move |t: &[Tensor]| embed(&t[0], axis, start, size),
    );
    let stop = start + length;
    Ok(record(OP, out, &[t], move |flow| {
        Ok(vec![Some(slice(
            &flow.grad,
            axis as isize,
            start as isize,
            stop as isize,
        )?)])
    }))
}

/// Joins tensors along an axis they already have. Members of length zero along it are legal.
///
/// # Errors
/// [`Error::Argument`] for an empty list; [`Error::Shape`] where other axes differ; [`Error::DType`] where
/// element types differ; [`Error::Axis`].
pub fn concat(ts: &[&Tensor], axis: isize) -> Result<Tensor> {
    const OP: &str = "concat";
    let Some(first) = ts.first() else {
        return Err(Error::argument(OP, "needs at least one tensor"));
    };
    let axis = axis_index(OP, axis, first.rank())?;
    let mut shape = first.layout().shape;
    let mut total = 0usize;
    for t in ts {
        let fits = t.rank() == first.rank()
            && (0..t.rank()).all(|i| i == axis || t.shape()[i] == first.shape()[i]);
        if !fits {
            return Err(Error::shape(
                OP,
                format!("all axes but axis {axis} must be equal"),
                &[first.shape(), t.shape()],
            ));
        }
        if t.dtype() != first.dtype() {
            return Err(Error::DType {
                op: OP,
                found: vec![first.dtype(), t.dtype()],
                expected: "one element type; cast with astype",
            });
        }
        total = total.saturating_add(t.shape()[axis]);
    }
    shape.set(axis, total);
    let outer: usize = shape[..axis].iter().product();
    let inner: usize = shape[axis + 1..].iter().product();
    let out = with_element!(first.dtype(), E => Tensor::try_build::<E>(OP, &shape, |out| {
        let row = total * inner;
        let mut column = 0;
        for t in ts {
            let length = t.shape()[axis] * inner;
            if length > 0 && outer > 0 {
                copy_rows(t, t.storage_slice::<E>(OP)?, length, out, row, column);
            }
            column += length;
        }
        Ok(())
    })?);
    capture::note(OP, &[axis as u64], ts, &out, || {
        move |t: &[Tensor]| concat(&t.iter().collect::<Vec<_>>(), axis as isize)
    });
    let lengths: Vec<usize> = ts.iter().map(|t| t.shape()[axis]).collect();
    Ok(record(OP, out, ts, move |flow| {
        let mut at = 0;
        lengths
            .iter()
            .enumerate()
            .map(|(i, &length)| {
                let from = at;
                at += length;
                if !flow.needs(i) {
                    return Ok(None);
                }
                slice(&flow.grad, axis as isize, from as isize, at as isize).map(Some)
            })
            .collect()
    }))
}

/// Writes `t`, seen as rows of `length` elements, into `out`, whose rows are `row` long, from `column` on.
fn copy_rows<E: Element>(
    t: &Tensor,
    source: &[E],
    length: usize,
    out: &mut [E],
    row: usize,
    column: usize,
) {
    let layout = t.layout();
    let walk = Walk::new(&layout.shape, [(&layout.strides, layout.offset)]);
    let [stride] = walk.inner_strides();
    for (index, to) in out.chunks_exact_mut(row).enumerate() {
        let to = &mut to[column..column + length];
        let first = index * length;
        walk.runs(first..first + length, |at, run, [start]| {
            let to = &mut to[at - first..at - first + run];
            if stride == 1 {
                to.copy_from_slice(&source[start..start + run]);
            } else {
                for (i, o) in to.iter_mut().enumerate() {
                    *o = source[start + i * stride];
                }
            }
        });
    }
}
