#![allow(unsafe_code)]
//! Matrix multiplication of slices on one thread, for kernels that multiply inside their own blocks.

use crate::lanes::Real;

/// A matrix inside a slice: element (i, j) lies at `i * row + j * column`.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a, T> {
    pub(crate) data: &'a [T],
    pub(crate) row: usize,
    pub(crate) column: usize,
}

/// Row-major with `columns` columns.
pub(crate) fn rows<T>(data: &[T], columns: usize) -> Mat<'_, T> {
    Mat {
        data,
        row: columns,
        column: 1,
    }
}

/// The transpose of a row-major matrix with `columns` columns before transposing.
pub(crate) fn transposed<T>(data: &[T], columns: usize) -> Mat<'_, T> {
    Mat {
        data,
        row: 1,
        column: columns,
    }
}

fn fits(len: usize, m: usize, n: usize, row: usize, column: usize) -> bool {
    m == 0 || n == 0 || (m - 1) * row + (n - 1) * column < len
}

/// `out = a b + keep * out` for `a` m x k and `b` k x n; `out` is row-major with `out_row` elements
/// from one row to the next. With `keep` zero, `out` is not read.
///
/// Callers pass slices that hold the matrices; where one does not, nothing is computed (and a debug
/// build stops), so that a mistake here never reads foreign memory.
#[allow(clippy::too_many_arguments)]
pub(crate) fn multiply<T: Real>(
    m: usize,
    n: usize,
    k: usize,
    a: Mat<'_, T>,
    b: Mat<'_, T>,
    keep: T,
    out: &mut [T],
    out_row: usize,
) {
    let sound = fits(a.data.len(), m, k, a.row, a.column)
        && fits(b.data.len(), k, n, b.row, b.column)
        && fits(out.len(), m, n, out_row, 1)
        && (m < 2 || out_row >= n);
    debug_assert!(sound, "matrices lie inside their slices");
    if !sound || m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        for row in out.chunks_mut(out_row.max(1)).take(m) {
            for v in &mut row[..n] {
                *v = if keep == T::ZERO { T::ZERO } else { *v * keep };
            }
        }
        return;
    }
    // SAFETY: the three matrices lie inside their slices (checked above), `out` is borrowed mutably and
    // its rows do not overlap, and strides are below isize::MAX because the slices are.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_row as isize,
            keep != T::ZERO,
            a.data.as_ptr(),
            a.column as isize,
            a.row as isize,
            b.data.as_ptr(),
            b.column as isize,
            b.row as isize,
            keep,
            T::ONE,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn products_with_and_without_keeping() {
        // [1 2; 3 4; 5 6] [1 0 2; 0 1 3] = [1 2 8; 3 4 18; 5 6 28]
        let a = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let b = [1.0, 0.0, 2.0, 0.0, 1.0, 3.0];
        let mut out = [f64::NAN; 9];
        multiply(3, 3, 2, rows(&a, 2), rows(&b, 3), 0.0, &mut out, 3);
        assert_eq!(out, [1.0, 2.0, 8.0, 3.0, 4.0, 18.0, 5.0, 6.0, 28.0]);
        multiply(3, 3, 2, rows(&a, 2), rows(&b, 3), 1.0, &mut out, 3);
        assert_eq!(out[8], 56.0);
        // b^T a^T is the transpose.
        let mut t = [0.0; 9];
        multiply(
            3,
            3,
            2,
            transposed(&b, 3),
            transposed(&a, 2),
            0.0,
            &mut t,
            3,
        );
        assert_eq!(t, [1.0, 3.0, 5.0, 2.0, 4.0, 6.0, 8.0, 18.0, 28.0]);
    }

    #[test]
    fn an_empty_sum_is_zero_or_what_was_there() {
        let mut out = [7f32; 4];
        multiply(2, 2, 0, rows(&[], 0), rows(&[], 2), 1.0, &mut out, 2);
        assert_eq!(out, [7.0; 4]);
        multiply(2, 2, 0, rows(&[], 0), rows(&[], 2), 0.0, &mut out, 2);
        assert_eq!(out, [0.0; 4]);
    }
}
