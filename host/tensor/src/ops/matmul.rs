#![allow(unsafe_code)]
//! Matrix products through `gemm`, which reads strided operands: transposes are never copied.
//!
//! `gemm` is called on one thread each time; the work is split here, over batch items and tiles of the
//! output whose size depends on the shapes alone. So each element is summed in the same order on any number of
//! threads.

use crate::autograd::record;
use crate::capture;
use crate::dtype::{DType, Element, with_float};
use crate::error::{Error, Result};
use crate::layout::{Dims, broadcast_shapes, broadcast_strides};
use crate::ops::shape::{reshape_to, swap_axes};
use crate::small::{self, Plus, Strided};
use crate::tensor::Tensor;
use crate::threads::{Shared, for_blocks, is_parallel, parallel};

/// The matrix product of the last two axes: [.., m, k] x [.., k, n] -> [.., m, n]; leading axes broadcast.
///
/// # Errors
/// [`Error::Shape`] where a rank is below 2, the inner sizes differ, or the leading axes do not broadcast;
/// [`Error::DType`] unless both are f32 or both f64.
pub fn matmul(a: &Tensor, b: &Tensor) -> Result<Tensor> {
    const OP: &str = "matmul";
    if a.dtype() != b.dtype() || !a.dtype().is_float() {
        return Err(Error::DType {
            op: OP,
            found: vec![a.dtype(), b.dtype()],
            expected: "two f32 or two f64 tensors; cast with astype",
        });
    }
    let fits = a.rank() >= 2 && b.rank() >= 2 && a.shape()[a.rank() - 1] == b.shape()[b.rank() - 2];
    if !fits {
        return Err(Error::shape(
            OP,
            "needs [.., m, k] and [.., k, n] with the same k",
            &[a.shape(), b.shape()],
        ));
    }
    let (m, k) = (a.shape()[a.rank() - 2], a.shape()[a.rank() - 1]);
    let n = b.shape()[b.rank() - 1];
    // One product instead of a batch of them, where the right side has no batch.
    if b.rank() == 2 && a.rank() > 2 {
        let lead: usize = a.shape()[..a.rank() - 1].iter().product();
        let mut shape = a.layout().shape;
        shape.set(a.rank() - 1, n);
        return reshape_to(&matmul(&reshape_to(a, &[lead, k])?, b)?, &shape);
    }
    let (lead_a, lead_b) = (&a.shape()[..a.rank() - 2], &b.shape()[..b.rank() - 2]);
    let Some(lead) = broadcast_shapes(lead_a, lead_b) else {
        return Err(Error::shape(
            OP,
            "leading axes do not broadcast",
            &[a.shape(), b.shape()],
        ));
    };
    let mut shape = lead;
    shape.push(m);
    shape.push(n);
    let out = with_float!(OP, a.dtype(), E => product::<E>(OP, a, b, &lead, [m, k, n], &shape)?);
    capture::note(OP, &[], &[a, b], &out, || {
        |t: &[Tensor]| matmul(&t[0], &t[1])
    });
    let keep_a = b.requires_grad().then(|| a.on_the_way_back());
    let keep_b = a.requires_grad().then(|| b.on_the_way_back());
    Ok(record(OP, out, &[a, b], move |flow| {
        let transposed = |t: &Tensor| swap_axes(t, t.rank() - 2, t.rank() - 1);
        let to_a = match &keep_b {
            Some(b) if flow.needs(0) => Some(matmul(&flow.grad, &transposed(b)?)?),
            _ => None,
        };
        let to_b = match &keep_a {
            Some(a) if flow.needs(1) => Some(matmul(&transposed(a)?, &flow.grad)?),
            _ => None,
        };
        Ok(vec![to_a, to_b])
    }))
}

/// One matrix of a batch, as `gemm` reads it.
#[derive(Clone, Copy)]
struct Matrix {
    offset: usize,
    row: usize,
    column: usize,
}

fn product<E: Element>(
    op: &'static str,
    a: &Tensor,
    b: &Tensor,
    lead: &Dims,
    [m, k, n]: [usize; 3],
    shape: &[usize],
) -> Result<Tensor> {
    let (source_a, source_b) = (a.storage_slice::<E>(op)?, b.storage_slice::<E>(op)?);
    // Strides at the full output rank; the last two axes are each operand's own.
    let full = |t: &Tensor, rows: usize, columns: usize| {
        let mut shape = *lead;
        shape.push(rows);
        shape.push(columns);
        broadcast_strides(t.layout(), &shape).ok_or_else(|| Error::Internal {
            op,
            problem: "leading axes stopped broadcasting".into(),
        })
    };
    let (strides_a, strides_b) = (full(a, m, k)?, full(b, k, n)?);
    let batch: usize = lead.iter().product();
    let item = |index: usize, t: &Tensor, strides: &Dims| {
        let mut rest = index;
        let mut offset = t.layout().offset;
        for axis in (0..lead.len()).rev() {
            offset += rest % lead[axis] * strides[axis];
            rest /= lead[axis];
        }
        Matrix {
            offset,
            row: strides[lead.len()],
            column: strides[lead.len() + 1],
        }
    };
    let left = Factor {
        source: source_a,
        at: &|index| item(index, a, &strides_a),
    };
    let right = Factor {
        source: source_b,
        at: &|index| item(index, b, &strides_b),
    };
    Tensor::build_unset::<E>(op, shape, |out| {
        tiles([m, k, n], batch, left, right, None, out)
    })
}

/// out = a b for one product of two matrices by their strides (row, column), each slice beginning at its first
/// element: what [`matmul`] computes, the same bits.
pub(crate) fn strided_product<E: Element>(
    sizes: [usize; 3],
    (a, row_a, column_a): (&[E], usize, usize),
    (b, row_b, column_b): (&[E], usize, usize),
    out: &mut [E],
) {
    let matrix = |row, column| Matrix {
        offset: 0,
        row,
        column,
    };
    let left = Factor {
        source: a,
        at: &|_| matrix(row_a, column_a),
    };
    let right = Factor {
        source: b,
        at: &|_| matrix(row_b, column_b),
    };
    tiles(sizes, 1, left, right, None, out);
}

/// y = x w^T + bias on dense rows: x [m, inputs], w [outputs, inputs], bias [outputs], y [m, outputs].
pub(crate) fn times_transposed<E: Element>(
    x: &[E],
    w: &[E],
    bias: Option<&[E]>,
    [inputs, outputs]: [usize; 2],
    y: &mut [E],
) {
    rows_times(x, w, [1, inputs], bias, [inputs, outputs], y);
}

/// y = x w + bias on dense rows: x [m, inputs], w [inputs, outputs] by its strides, bias [outputs],
/// y [m, outputs].
pub(crate) fn rows_times<E: Element>(
    x: &[E],
    w: &[E],
    [row, column]: [usize; 2],
    bias: Option<&[E]>,
    [inputs, outputs]: [usize; 2],
    y: &mut [E],
) {
    if y.is_empty() {
        return;
    }
    let matrix = |row, column| Matrix {
        offset: 0,
        row,
        column,
    };
    let left = Factor {
        source: x,
        at: &|_| matrix(inputs, 1),
    };
    let right = Factor {
        source: w,
        at: &|_| matrix(row, column),
    };
    tiles(
        [y.len() / outputs, inputs, outputs],
        1,
        left,
        right,
        bias,
        y,
    );
}

/// One side of a batch of products: where each item's matrix lies.
struct Factor<'a, E> {
    source: &'a [E],
    at: &'a (dyn Fn(usize) -> Matrix + Sync),
}

/// out[i] = left[i] right[i] + bias for each item of the batch, `out` dense [batch, m, n] and overwritten.
fn tiles<E: Element>(
    [m, k, n]: [usize; 3],
    batch: usize,
    left: Factor<E>,
    right: Factor<E>,
    bias: Option<&[E]>,
    out: &mut [E],
) {
    if out.is_empty() || small_products([m, k, n], batch, &left, &right, bias, out) {
        return;
    }
    if let Some(bias) = bias {
        for row in out.chunks_exact_mut(n) {
            row.copy_from_slice(bias);
        }
    }
    if k == 0 {
        if bias.is_none() {
            out.fill(E::default());
        }
        return;
    }
    let tile = tile(m, k, n);
    let (down, across) = (m.div_ceil(tile.rows), n.div_ceil(tile.columns));
    let base = Shared(out.as_mut_ptr());
    let one = |task: usize| {
        let (index, part) = (task / (down * across), task % (down * across));
        let (row, column) = (part / across * tile.rows, part % across * tile.columns);
        let (rows, columns) = (tile.rows.min(m - row), tile.columns.min(n - column));
        let (mut a, mut b) = ((left.at)(index), (right.at)(index));
        a.offset += row * a.row;
        b.offset += column * b.column;
        let target = Target {
            at: base.at(index * m * n + row * n + column),
            row: n,
            keep: bias.is_some(),
        };
        multiply_into([rows, k, columns], left.source, a, right.source, b, target);
    };
    let tasks = batch * down * across;
    let work = m.saturating_mul(n).saturating_mul(k).saturating_mul(batch);
    // `is_parallel` counts elements; a multiply-accumulate is a fraction of an element's work.
    if tasks > 1 && is_parallel(work / 8) {
        // Small items go to threads several at a time.
        let together = (TASK_WORK / tile.work(k)).max(1);
        parallel(tasks.div_ceil(together), &|group| {
            for task in group * together..((group + 1) * together).min(tasks) {
                one(task);
            }
        });
    } else {
        for task in 0..tasks {
            one(task);
        }
    }
}

/// The same by the kernel for small products, where that is the one to use: then true.
fn small_products<E: Element>(
    [m, k, n]: [usize; 3],
    batch: usize,
    left: &Factor<E>,
    right: &Factor<E>,
    bias: Option<&[E]>,
    out: &mut [E],
) -> bool {
    let plus = match bias.map(floats) {
        None => Plus::Nothing,
        Some(Some(row)) => Plus::Row(row),
        Some(None) => return false,
    };
    if !small::is_small([m, k, n], &plus) {
        return false;
    }
    let (Some(a), Some(b), Some(out)) =
        (floats(left.source), floats(right.source), floats_mut(out))
    else {
        return false;
    };
    let item = |index: usize, out: &mut [f32]| {
        let (left, right) = ((left.at)(index), (right.at)(index));
        let strided = |m: Matrix| Strided {
            row: m.row,
            column: m.column,
        };
        small::product(
            [m, k, n],
            &a[left.offset..],
            strided(left),
            &b[right.offset..],
            strided(right),
            plus,
            out,
        );
    };
    let one = m * n;
    if batch == 1 {
        item(0, out);
    } else {
        // Several items a block, by their sizes alone.
        let together = (TASK_WORK / (one * k).max(1)).max(1);
        let work = one.saturating_mul(k).saturating_mul(batch) / 8;
        for_blocks(out, together * one, work, |first, block| {
            for (i, out) in block.chunks_exact_mut(one).enumerate() {
                item(first / one + i, out);
            }
        });
    }
    true
}

/// The elements as f32, if they are.
fn floats<E: Element>(x: &[E]) -> Option<&[f32]> {
    // SAFETY: an element type is named by its constant, so `E` is f32.
    (E::DTYPE == DType::F32)
        .then(|| unsafe { std::slice::from_raw_parts(x.as_ptr().cast::<f32>(), x.len()) })
}

/// As [`floats`], for writing.
fn floats_mut<E: Element>(x: &mut [E]) -> Option<&mut [f32]> {
    // SAFETY: as above.
    (E::DTYPE == DType::F32)
        .then(|| unsafe { std::slice::from_raw_parts_mut(x.as_mut_ptr().cast::<f32>(), x.len()) })
}

/// Multiply-accumulates worth handing to a thread.
const TASK_WORK: usize = 1 << 18;

/// Part of one product that one call of `gemm` makes.
struct Tile {
    rows: usize,
    columns: usize,
}

impl Tile {
    fn work(&self, k: usize) -> usize {
        let area = self.rows.saturating_mul(self.columns);
        area.saturating_mul(k).max(1)
    }
}

/// How a product is cut, by its sizes alone: into tiles of at most 256 by 256, since `gemm` packs its
/// operands anew for each tile and the packing must stay small beside the arithmetic; and into at least
/// four where the arithmetic is worth it.
fn tile(m: usize, k: usize, n: usize) -> Tile {
    let halve = |x: usize| x.div_ceil(2).next_multiple_of(16);
    let (mut rows, mut columns) = (m.clamp(1, 256), n.clamp(1, 256));
    while m.div_ceil(rows) * n.div_ceil(columns) < 4
        && rows.saturating_mul(columns).saturating_mul(k) > 4 * TASK_WORK
        && rows.max(columns) > 32
    {
        if rows > columns {
            rows = halve(rows);
        } else {
            columns = halve(columns);
        }
    }
    Tile { rows, columns }
}

/// Where one tile of the output goes: rows of dense elements, `row` apart.
#[derive(Clone, Copy)]
struct Target<E> {
    at: *mut E,
    row: usize,
    /// Whether the product is added to what is there.
    keep: bool,
}

/// out = a b (+ out) for one tile. The tile must lie in an output that no other thread touches there.
fn multiply_into<E: Element>(
    [m, k, n]: [usize; 3],
    a: &[E],
    left: Matrix,
    b: &[E],
    right: Matrix,
    out: Target<E>,
) {
    // The last element each operand is read at lies in its storage: a checked index instead of trust.
    let _ = &a[left.offset + (m - 1) * left.row + (k - 1) * left.column];
    let _ = &b[right.offset + (k - 1) * right.row + (n - 1) * right.column];
    match E::DTYPE {
        // SAFETY: `E` is the named type, so one is its one; reads stay within `a` and
        // `b` (strides are not negative, and the farthest elements were just indexed); writes stay within
        // the tile, and tiles of one output do not overlap.
        DType::F32 => unsafe {
            run(
                [m, k, n],
                a.as_ptr().cast::<f32>(),
                left,
                b.as_ptr().cast::<f32>(),
                right,
                Target {
                    at: out.at.cast::<f32>(),
                    row: out.row,
                    keep: out.keep,
                },
                1.0,
            );
        },
        // SAFETY: as above.
        DType::F64 => unsafe {
            run(
                [m, k, n],
                a.as_ptr().cast::<f64>(),
                left,
                b.as_ptr().cast::<f64>(),
                right,
                Target {
                    at: out.at.cast::<f64>(),
                    row: out.row,
                    keep: out.keep,
                },
                1.0,
            );
        },
        DType::I64 | DType::Bool => debug_assert!(false, "matmul checked its types"),
    }
}

/// # Safety
/// `a`, `b` and `out` must be valid for the elements that the sizes and strides address.
unsafe fn run<T: Copy + 'static>(
    [m, k, n]: [usize; 3],
    a: *const T,
    left: Matrix,
    b: *const T,
    right: Matrix,
    out: Target<T>,
    one: T,
) {
    // SAFETY: passed on from the caller; offsets stay within the same storages.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.at,
            1,
            out.row as isize,
            out.keep,
            a.add(left.offset),
            left.column as isize,
            left.row as isize,
            b.add(right.offset),
            right.column as isize,
            right.row as isize,
            one,
            one,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
