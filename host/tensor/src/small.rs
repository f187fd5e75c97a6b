#![allow(unsafe_code)]
//! Products of a few hundred numbers, for which packing and choosing a kernel would cost more than the arithmetic.
//!
//! Each element is one chain of fused multiply-adds over k in ascending order. From k = 3 on that is also what `gemm`
//! computes where the right factor's rows are contiguous, so such a product has the same bits on either side of the
//! limit.

/// One factor: element (i, j) lies at `i * row + j * column`.
#[derive(Clone, Copy)]
pub(crate) struct Strided {
    pub(crate) row: usize,
    pub(crate) column: usize,
}

/// What is added to a product.
#[derive(Clone, Copy)]
pub(crate) enum Plus<'a> {
    Nothing,
    /// A row, to each row.
    Row(&'a [f32]),
}

/// Numbers of one vector.
const WIDTH: usize = 16;
/// Most columns of the left factor.
const DEEPEST: usize = 128;
/// Most multiply-accumulates, columns rounded up to whole vectors.
const MOST: usize = 8192;

/// Whether [`product`] is the way to multiply [m, k] by [k, n] on this processor.
#[inline]
pub(crate) fn is_small([m, k, n]: [usize; 3], plus: &Plus) -> bool {
    // With a row to add and k below 3, `gemm` adds in another order.
    let shallow = k <= 2 && matches!(plus, Plus::Row(_));
    m <= MOST
        && k <= DEEPEST
        && n <= MOST
        && m * k * n.next_multiple_of(WIDTH) <= MOST
        && m.min(k).min(n) > 0
        && !shallow
        && wide()
}

/// Whether this processor has the vectors that the kernel is written for.
#[inline]
fn wide() -> bool {
    #[cfg(target_arch = "x86_64")]
    return crate::lanes::level() == crate::lanes::Level::Avx512;
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// out = a b (+ a row) for sizes that [`is_small`] allows; both slices begin at their factor's first element, and
/// `out` is dense [m, n].
///
/// Where a slice is shorter than its factor nothing is computed (and a debug build stops).
pub(crate) fn product(
    [m, k, n]: [usize; 3],
    a: &[f32],
    left: Strided,
    b: &[f32],
    right: Strided,
    plus: Plus,
    out: &mut [f32],
) {
    let last = |rows: usize, columns: usize, s: Strided| {
        (rows.max(1) - 1) * s.row + (columns.max(1) - 1) * s.column
    };
    let sound = is_small([m, k, n], &plus)
        && last(m, k, left) < a.len()
        && last(k, n, right) < b.len()
        && out.len() == m * n
        && match plus {
            Plus::Row(row) => row.len() == n,
            Plus::Nothing => true,
        };
    debug_assert!(sound, "a small product's factors lie inside their slices");
    if !sound {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    // SAFETY: `is_small` has seen that this processor has the features; the farthest element of each factor lies
    // in its slice (strides are not negative), `out` and the row have the sizes that are written and read.
    unsafe {
        avx512::product([m, k, n], a, left, b, right, plus, out);
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{DEEPEST, Plus, Strided, WIDTH};
    use std::arch::x86_64::{
        __m512, __mmask16, _mm512_add_ps, _mm512_castpd_ps, _mm512_castps_pd, _mm512_fmadd_ps,
        _mm512_mask_storeu_ps, _mm512_maskz_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
        _mm512_shuffle_f32x4, _mm512_storeu_ps, _mm512_unpackhi_pd, _mm512_unpackhi_ps,
        _mm512_unpacklo_pd, _mm512_unpacklo_ps,
    };
    use std::mem::MaybeUninit;

    /// Rows of the left factor that are multiplied at a time.
    const ROWS: usize = 8;

    fn mask(n: usize) -> __mmask16 {
        ((1u32 << n.min(WIDTH)) - 1) as __mmask16
    }

    /// # Safety
    /// The farthest elements that sizes and strides address lie in `a` and `b`, `out` has m n elements and the row
    /// n; k is at most [`DEEPEST`].
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn product(
        [m, k, n]: [usize; 3],
        a: &[f32],
        left: Strided,
        b: &[f32],
        right: Strided,
        plus: Plus,
        out: &mut [f32],
    ) {
        let mut packed = [const { MaybeUninit::<f32>::uninit() }; DEEPEST * WIDTH];
        let packed = packed.as_mut_ptr().cast::<f32>();
        let (a, out) = (a.as_ptr(), out.as_mut_ptr());
        for first in (0..n).step_by(WIDTH) {
            let width = (n - first).min(WIDTH);
            let lanes = mask(width);
            // SAFETY: column `first` is one of b's.
            let block = unsafe { b.as_ptr().add(first * right.column) };
            let (rows, step) = if right.column == 1 {
                (block, right.row)
            } else {
                // SAFETY: `width` columns from there are b's, and k rows of WIDTH fit into the room.
                unsafe {
                    if right.row == 1 {
                        turn([k, width], block, right.column, packed);
                    } else {
                        for p in 0..k {
                            for j in 0..WIDTH {
                                let j_in = j.min(width - 1);
                                let x = *block.add(p * right.row + j_in * right.column);
                                packed.add(p * WIDTH + j).write(x);
                            }
                        }
                    }
                }
                (packed.cast_const(), WIDTH)
            };
            let start = match plus {
                Plus::Nothing => None,
                // SAFETY: the row has n elements; lanes beyond are not read.
                Plus::Row(row) => {
                    Some(unsafe { _mm512_maskz_loadu_ps(lanes, row.as_ptr().add(first)) })
                }
            };
            let mut i = 0;
            while i < m {
                // SAFETY: rows i.. of a and of the result exist as far as each call takes them; each of the k rows
                // of the block has `width` elements.
                unsafe {
                    let (from, to) = (a.add(i * left.row), out.add(i * n + first));
                    if i + ROWS <= m {
                        rows_times::<ROWS>(k, from, left, rows, step, lanes, start, to, n);
                        i += ROWS;
                    } else if i + 2 <= m {
                        rows_times::<2>(k, from, left, rows, step, lanes, start, to, n);
                        i += 2;
                    } else {
                        rows_times::<1>(k, from, left, rows, step, lanes, start, to, n);
                        i += 1;
                    }
                }
            }
        }
    }

    /// R rows of the result, one vector wide.
    ///
    /// # Safety
    /// R rows of k elements at `a`, k rows at `b` as wide as `lanes`, R rows at `out`.
    #[inline]
    #[allow(clippy::too_many_arguments)]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn rows_times<const R: usize>(
        k: usize,
        a: *const f32,
        left: Strided,
        b: *const f32,
        step: usize,
        lanes: __mmask16,
        start: Option<__m512>,
        out: *mut f32,
        out_row: usize,
    ) {
        let mut sums = [_mm512_setzero_ps(); R];
        for p in 0..k {
            // SAFETY: as the caller promises.
            unsafe {
                let row = _mm512_maskz_loadu_ps(lanes, b.add(p * step));
                for (r, sum) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*a.add(r * left.row + p * left.column));
                    *sum = _mm512_fmadd_ps(x, row, *sum);
                }
            }
        }
        for (r, sum) in sums.into_iter().enumerate() {
            let sum = match start {
                Some(start) => _mm512_add_ps(sum, start),
                None => sum,
            };
            // SAFETY: as the caller promises.
            unsafe { _mm512_mask_storeu_ps(out.add(r * out_row), lanes, sum) };
        }
    }

    /// Writes the transpose of `width` rows of k elements, `row` apart, as k rows of [`WIDTH`]; columns from `width`
    /// on become 0.
    ///
    /// # Safety
    /// The rows are there, and room for k rounded up to a multiple of [`WIDTH`] rows.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    unsafe fn turn([k, width]: [usize; 2], from: *const f32, row: usize, to: *mut f32) {
        for first in (0..k).step_by(WIDTH) {
            let lanes = mask(k - first);
            let mut r = [_mm512_setzero_ps(); WIDTH];
            for (i, r) in r.iter_mut().enumerate().take(width) {
                // SAFETY: row i exists, and lanes beyond its k elements are not read.
                *r = unsafe { _mm512_maskz_loadu_ps(lanes, from.add(i * row + first)) };
            }
            // Pairs, fours, eights, sixteens: the usual four passes.
            let mut t = r;
            for i in 0..8 {
                t[2 * i] = _mm512_unpacklo_ps(r[2 * i], r[2 * i + 1]);
                t[2 * i + 1] = _mm512_unpackhi_ps(r[2 * i], r[2 * i + 1]);
            }
            let lo = |a, b| {
                _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)))
            };
            let hi = |a, b| {
                _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)))
            };
            let mut u = t;
            for i in 0..4 {
                u[4 * i] = lo(t[4 * i], t[4 * i + 2]);
                u[4 * i + 1] = hi(t[4 * i], t[4 * i + 2]);
                u[4 * i + 2] = lo(t[4 * i + 1], t[4 * i + 3]);
                u[4 * i + 3] = hi(t[4 * i + 1], t[4 * i + 3]);
            }
            let mut v = u;
            for c in 0..4 {
                let even = _mm512_shuffle_f32x4::<0x88>(u[c], u[4 + c]);
                let odd = _mm512_shuffle_f32x4::<0xdd>(u[c], u[4 + c]);
                let even_high = _mm512_shuffle_f32x4::<0x88>(u[8 + c], u[12 + c]);
                let odd_high = _mm512_shuffle_f32x4::<0xdd>(u[8 + c], u[12 + c]);
                v[c] = _mm512_shuffle_f32x4::<0x88>(even, even_high);
                v[8 + c] = _mm512_shuffle_f32x4::<0xdd>(even, even_high);
                v[4 + c] = _mm512_shuffle_f32x4::<0x88>(odd, odd_high);
                v[12 + c] = _mm512_shuffle_f32x4::<0xdd>(odd, odd_high);
            }
            for (i, v) in v.into_iter().enumerate().take(k - first) {
                // SAFETY: row `first + i` is one of the k.
                unsafe { _mm512_storeu_ps(to.add((first + i) * WIDTH), v) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chain of fused multiply-adds, one element at a time.
    fn reference(
        [m, k, n]: [usize; 3],
        a: &[f32],
        left: Strided,
        b: &[f32],
        right: Strided,
        plus: Plus,
    ) -> Vec<f32> {
        let mut out = Vec::new();
        for i in 0..m {
            for j in 0..n {
                let mut sum = 0f32;
                for p in 0..k {
                    let x = a[i * left.row + p * left.column];
                    sum = x.mul_add(b[p * right.row + j * right.column], sum);
                }
                out.push(match plus {
                    Plus::Nothing => sum,
                    Plus::Row(row) => sum + row[j],
                });
            }
        }
        out
    }

    fn numbers(n: usize, key: u64) -> Vec<f32> {
        let mut state = key.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    #[test]
    fn every_small_shape_and_stride_gives_the_chain_of_fused_additions() {
        let mut tried = 0;
        for m in [1, 2, 3, 7, 8, 9, 16, 17, 33] {
            for k in [1, 2, 3, 8, 15, 16, 17, 31, 64, 100, 128] {
                for n in [1, 2, 5, 15, 16, 17, 31, 40] {
                    let row = numbers(n, 3);
                    for plus in [Plus::Nothing, Plus::Row(&row)] {
                        if !is_small([m, k, n], &plus) {
                            continue;
                        }
                        // Row-major, transposed, and neither.
                        for lay in 0..9 {
                            let strided = |rows, columns, which| match which {
                                0 => Strided {
                                    row: columns,
                                    column: 1,
                                },
                                1 => Strided {
                                    row: 1,
                                    column: rows,
                                },
                                _ => Strided {
                                    row: 2 * columns + 1,
                                    column: 2,
                                },
                            };
                            let (left, right) = (strided(m, k, lay / 3), strided(k, n, lay % 3));
                            let far = |r: usize, c: usize, s: Strided| {
                                (r - 1) * s.row + (c - 1) * s.column + 1
                            };
                            let a = numbers(far(m, k, left), 1);
                            let b = numbers(far(k, n, right), 2);
                            let mut out = vec![f32::NAN; m * n];
                            product([m, k, n], &a, left, &b, right, plus, &mut out);
                            let want = reference([m, k, n], &a, left, &b, right, plus);
                            let bits =
                                |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                            assert_eq!(bits(&out), bits(&want), "[{m}, {k}, {n}], layout {lay}");
                            tried += 1;
                        }
                    }
                }
            }
        }
        assert!(tried > 1000 || !wide(), "{tried} products were tried");
    }

    #[test]
    fn from_k_3_on_a_product_has_the_bits_of_gemm_where_rows_of_the_right_factor_are_contiguous() {
        for [m, k, n] in [[2, 3, 5], [8, 8, 16], [16, 8, 8], [3, 100, 20], [5, 31, 17]] {
            if !is_small([m, k, n], &Plus::Nothing) {
                continue;
            }
            let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
            let (left, right) = (Strided { row: k, column: 1 }, Strided { row: n, column: 1 });
            let (mut out, mut other) = (vec![0.0; m * n], vec![0.0; m * n]);
            product([m, k, n], &a, left, &b, right, Plus::Nothing, &mut out);
            let (a, b) = (crate::gemm::rows(&a, k), crate::gemm::rows(&b, n));
            crate::gemm::multiply(m, n, k, a, b, 0.0, &mut other, n);
            assert_eq!(out, other, "[{m}, {k}, {n}]");
        }
    }

    #[test]
    fn what_is_not_a_number_stays_in_its_row_and_column() {
        let sizes = [4, 4, 4];
        if !is_small(sizes, &Plus::Nothing) {
            return;
        }
        let (mut a, b) = (numbers(16, 1), numbers(16, 2));
        a[5] = f32::NAN;
        let dense = Strided { row: 4, column: 1 };
        let mut out = vec![0.0; 16];
        product(sizes, &a, dense, &b, dense, Plus::Nothing, &mut out);
        for (i, x) in out.iter().enumerate() {
            assert_eq!(x.is_nan(), i / 4 == 1, "element {i}");
        }
    }
}
