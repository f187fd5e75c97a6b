#![allow(unsafe_code)]
//! Matrix products through `gemm`, which reads strided operands: transposes are never copied.
//!
//! `gemm` is called on one thread each time; the work is split here, over batch items and blocks of rows
//! whose size depends on the shapes alone. So each element is summed in the same order on any number of
//! threads.

use crate::autograd::record;
use crate::dtype::{DType, Element, with_float};
use crate::error::{Error, Result};
use crate::layout::{Dims, broadcast_shapes, broadcast_strides};
use crate::ops::shape::{reshape_to, swap_axes};
use crate::tensor::Tensor;
use crate::threads::{SERIAL_LIMIT, for_blocks};

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
    let keep_a = b.requires_grad().then(|| a.clone());
    let keep_b = a.requires_grad().then(|| b.clone());
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

/// Multiply-accumulates up to which a product runs on the calling thread alone.
const SERIAL_WORK: usize = 64 * 64 * 64;

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
    Tensor::build::<E>(op, shape, |out| {
        if out.is_empty() || k == 0 {
            return;
        }
        let work = m * n * k;
        let rows = row_block(m, n, k);
        let one = |index: usize, first: usize, out: &mut [E]| {
            let mut left = item(index, a, &strides_a);
            left.offset += first * left.row;
            let right = item(index, b, &strides_b);
            multiply_into([out.len() / n, k, n], source_a, left, source_b, right, out);
        };
        // In elements of work, as `for_blocks` measures it: a multiply-accumulate is a fraction of one.
        let total = work.saturating_mul(batch) / (SERIAL_WORK / SERIAL_LIMIT);
        for_blocks(out, m * n, total, |at, out| {
            for_blocks(out, rows * n, total, |first, out| {
                one(at / (m * n), first / n, out);
            });
        });
    })
}

/// Rows of the left operand that one call of `gemm` takes, by the size of the problem alone.
fn row_block(m: usize, n: usize, k: usize) -> usize {
    if m.saturating_mul(n).saturating_mul(k) <= SERIAL_WORK {
        return m;
    }
    128
}

/// out = a b, where `out` is dense row-major [m, n].
fn multiply_into<E: Element>(
    [m, k, n]: [usize; 3],
    a: &[E],
    left: Matrix,
    b: &[E],
    right: Matrix,
    out: &mut [E],
) {
    debug_assert_eq!(out.len(), m * n);
    // The last element each operand is read at lies in its storage: a checked index instead of trust.
    let _ = &a[left.offset + (m - 1) * left.row + (k - 1) * left.column];
    let _ = &b[right.offset + (k - 1) * right.row + (n - 1) * right.column];
    match E::DTYPE {
        // SAFETY: `E` is the named type, so zero and one are its zero and one; reads stay within `a` and
        // `b` (strides are not negative, and the farthest elements were just indexed), writes within
        // `out`, which nothing else borrows.
        DType::F32 => unsafe {
            run(
                [m, k, n],
                a.as_ptr().cast::<f32>(),
                left,
                b.as_ptr().cast::<f32>(),
                right,
                out.as_mut_ptr().cast::<f32>(),
                [0.0, 1.0],
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
                out.as_mut_ptr().cast::<f64>(),
                [0.0, 1.0],
            );
        },
        DType::I64 | DType::Bool => debug_assert!(false, "matmul checked its types"),
    }
}

/// # Safety
/// `a`, `b` and `out` must be valid for the elements that the sizes and strides address.
unsafe fn run<T: 'static>(
    [m, k, n]: [usize; 3],
    a: *const T,
    left: Matrix,
    b: *const T,
    right: Matrix,
    out: *mut T,
    [zero, one]: [T; 2],
) {
    // SAFETY: passed on from the caller; offsets stay within the same storages.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out,
            1,
            n as isize,
            false,
            a.add(left.offset),
            left.column as isize,
            left.row as isize,
            b.add(right.offset),
            right.column as isize,
            right.row as isize,
            zero,
            one,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
