//! Pooling over windows of the last two axes.

use super::conv::{inside, windows_along};
use crate::autograd::record;
use crate::capture;
use crate::dtype::with_float;
use crate::error::{Error, Result};
use crate::lanes::{Real, simd_fn};
use crate::ops::rows::one_float_type;
use crate::tensor::Tensor;
use crate::threads;

/// The largest element of each window of `x[n, c, h, w]`: [n, c, oh, ow] with
/// oh = (h + 2 padding - kernel) / stride + 1, rounded down. Padding never wins; the gradient goes to the
/// window's first largest element; a NaN wins.
///
/// # Errors
/// [`Error::Shape`] for another rank or a kernel larger than the padded input; [`Error::Argument`] for a
/// kernel or stride of zero or padding above half the kernel; [`Error::DType`], [`Error::Budget`].
pub(crate) fn max_pool2d(
    x: &Tensor,
    kernel: (usize, usize),
    stride: (usize, usize),
    padding: (usize, usize),
) -> Result<Tensor> {
    const OP: &str = "max_pool2d";
    let (g, shape) = Windows::new(OP, x, kernel, stride, padding)?;
    let dense = x.dense(OP)?;
    let out = with_float!(OP, x.dtype(), T => {
        let data = dense.data::<T>()?;
        Tensor::build_unset::<T>(OP, &shape, |y| max_forward(&g, data, y))?
    });
    capture::note(OP, &g.words(), &[x], &out, || {
        move |t: &[Tensor]| max_pool2d(&t[0], kernel, stride, padding)
    });
    Ok(record(OP, out, &[x], move |flow| {
        Ok(vec![Some(give_to_largest(&dense, &flow.grad, g, shape)?)])
    }))
}

/// The gradient of [`max_pool2d`]: each window's cotangent at its largest element. Which element that is
/// is a constant of the gradient, so this is linear in `dy` and its own gradient is [`take_largest`].
fn give_to_largest(x: &Tensor, dy: &Tensor, g: Windows, shape: [usize; 4]) -> Result<Tensor> {
    const OP: &str = "max_pool2d_gradient";
    let dense = dy.dense(OP)?;
    let out = with_float!(OP, x.dtype(), T => {
        let (data, dy) = (x.data::<T>()?, dense.data::<T>()?);
        Tensor::build_unset::<T>(OP, x.shape(), |dx| max_backward(&g, data, dy, dx))?
    });
    capture::note(OP, &g.words(), &[x, dy], &out, || {
        move |t: &[Tensor]| give_to_largest(&t[0].dense(OP)?, &t[1], g, shape)
    });
    let x = x.clone();
    Ok(record(OP, out, &[dy], move |flow| {
        Ok(vec![Some(take_largest(&x, &flow.grad, g, shape)?)])
    }))
}

/// Of each window, the element of `u` where `x` is largest: the transpose of [`give_to_largest`].
fn take_largest(x: &Tensor, u: &Tensor, g: Windows, shape: [usize; 4]) -> Result<Tensor> {
    const OP: &str = "max_pool2d_gradient";
    let dense = u.dense(OP)?;
    let out = with_float!(OP, x.dtype(), T => {
        let (data, u) = (x.data::<T>()?, dense.data::<T>()?);
        Tensor::build_unset::<T>(OP, &shape, |y| {
            planes(data, g.h * g.w, y, g.oh * g.ow, |index, x, y| {
                let u = &u[index * g.h * g.w..];
                for (i, y) in y.iter_mut().enumerate() {
                    *y = u[first_largest(&g, x, i / g.ow, i % g.ow)];
                }
            });
        })?
    });
    let x = x.clone();
    Ok(record(OP, out, &[u], move |flow| {
        Ok(vec![Some(give_to_largest(&x, &flow.grad, g, shape)?)])
    }))
}

/// The mean of each window of `x[n, c, h, w]`, sizes as in [`max_pool2d`]. Padding counts as zeros, so that
/// every window is divided by the kernel's size.
///
/// # Errors
/// As [`max_pool2d`].
pub(crate) fn avg_pool2d(
    x: &Tensor,
    kernel: (usize, usize),
    stride: (usize, usize),
    padding: (usize, usize),
) -> Result<Tensor> {
    const OP: &str = "avg_pool2d";
    let (g, shape) = Windows::new(OP, x, kernel, stride, padding)?;
    average(OP, x, g, [x.shape()[0], x.shape()[1]], shape)
}

fn average(
    op: &'static str,
    x: &Tensor,
    g: Windows,
    outer: [usize; 2],
    shape: [usize; 4],
) -> Result<Tensor> {
    let dense = x.dense(op)?;
    let out = with_float!(op, x.dtype(), T => {
        let data = dense.data::<T>()?;
        Tensor::build_unset::<T>(op, &shape, |y| average_forward(&g, data, y))?
    });
    capture::note(op, &g.words(), &[x], &out, || {
        move |t: &[Tensor]| average(op, &t[0], g, outer, shape)
    });
    Ok(record(op, out, &[x], move |flow| {
        Ok(vec![Some(average_gradient(&flow.grad, g, outer)?)])
    }))
}

/// The transpose of averaging, whose own gradient is averaging.
fn average_gradient(dy: &Tensor, g: Windows, outer: [usize; 2]) -> Result<Tensor> {
    const OP: &str = "avg_pool2d_gradient";
    let dense = dy.dense(OP)?;
    let out = with_float!(OP, dy.dtype(), T => {
        let data = dense.data::<T>()?;
        Tensor::build_unset::<T>(OP, &[outer[0], outer[1], g.h, g.w], |dx| average_backward(&g, data, dx))?
    });
    capture::note(OP, &g.words(), &[dy], &out, || {
        move |t: &[Tensor]| average_gradient(&t[0], g, outer)
    });
    let shape = [outer[0], outer[1], g.oh, g.ow];
    Ok(record(OP, out, &[dy], move |flow| {
        Ok(vec![Some(average(OP, &flow.grad, g, outer, shape)?)])
    }))
}

/// Sizes of one pooling, checked: every window holds at least one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Windows {
    pub(crate) h: usize,
    pub(crate) w: usize,
    pub(crate) kernel: (usize, usize),
    pub(crate) stride: (usize, usize),
    pub(crate) padding: (usize, usize),
    pub(crate) oh: usize,
    pub(crate) ow: usize,
}

impl Windows {
    /// The windows over `x`, and the pooled shape.
    fn new(
        op: &'static str,
        x: &Tensor,
        kernel: (usize, usize),
        stride: (usize, usize),
        padding: (usize, usize),
    ) -> Result<(Windows, [usize; 4])> {
        one_float_type(op, &[x])?;
        let &[n, c, h, w] = x.shape() else {
            return Err(Error::shape(op, "the input is [n, c, h, w]", &[x.shape()]));
        };
        for (name, value) in [("kernel", kernel), ("stride", stride)] {
            if value.0 == 0 || value.1 == 0 {
                return Err(Error::argument(
                    op,
                    format!("{name} must be at least 1, got {value:?}"),
                ));
            }
        }
        // More padding would make windows without an element.
        if padding.0 > kernel.0 / 2 || padding.1 > kernel.1 / 2 {
            let problem =
                format!("padding {padding:?} must be at most half of the kernel {kernel:?}");
            return Err(Error::argument(op, problem));
        }
        let along = |size, k, s, p| {
            if size == 0 {
                None
            } else {
                windows_along(size, k, s, p, 1)
            }
        };
        let (Some(oh), Some(ow)) = (
            along(h, kernel.0, stride.0, padding.0),
            along(w, kernel.1, stride.1, padding.1),
        ) else {
            let expected =
                format!("the kernel {kernel:?} must fit the input padded by {padding:?}");
            return Err(Error::shape(op, expected, &[x.shape()]));
        };
        Ok((
            Windows {
                h,
                w,
                kernel,
                stride,
                padding,
                oh,
                ow,
            },
            [n, c, oh, ow],
        ))
    }
    /// Everything that two poolings of the same operands may differ in.
    fn words(&self) -> [u64; 8] {
        [
            self.h,
            self.w,
            self.kernel.0,
            self.kernel.1,
            self.stride.0,
            self.stride.1,
            self.padding.0,
            self.padding.1,
        ]
        .map(|n| n as u64)
    }
    /// The common window of two by two, side by side.
    fn halves(&self) -> bool {
        self.kernel == (2, 2) && self.stride == (2, 2) && self.padding == (0, 0)
    }
    /// Columns of the kernel that meet an input column for some output column. A kernel may be far larger
    /// than its input where padding makes it fit.
    fn columns_of_kernel(&self) -> std::ops::Range<usize> {
        let first = self.padding.1.saturating_sub((self.ow - 1) * self.stride.1);
        first..self.kernel.1.min(self.w.saturating_add(self.padding.1))
    }
    /// One over the number of elements of a kernel.
    fn share<T: Real>(&self) -> T {
        T::of(1.0 / (self.kernel.0 as f64 * self.kernel.1 as f64))
    }
    /// Input rows and columns of the window of output position (r, q).
    fn window(&self, r: usize, q: usize) -> (std::ops::Range<usize>, std::ops::Range<usize>) {
        let span = |at: usize, stride: usize, padding: usize, kernel: usize, size: usize| {
            let from = at * stride;
            from.saturating_sub(padding)..(from + kernel).saturating_sub(padding).min(size)
        };
        (
            span(r, self.stride.0, self.padding.0, self.kernel.0, self.h),
            span(q, self.stride.1, self.padding.1, self.kernel.1, self.w),
        )
    }
}

/// Runs `work(index, input plane, output plane)` over all planes.
fn planes<A: Sync, B: Send>(
    a: &[A],
    a_size: usize,
    b: &mut [B],
    b_size: usize,
    work: impl Fn(usize, &[A], &mut [B]) + Sync,
) {
    if a_size == 0 || b_size == 0 {
        return;
    }
    let per_task = (threads::BLOCK / a_size.max(b_size)).max(1);
    let total = a.len().max(b.len());
    threads::for_blocks(b, per_task * b_size, total, |first, b| {
        let plane = first / b_size;
        let a = a[plane * a_size..].chunks_exact(a_size);
        for (i, (a, b)) in a.zip(b.chunks_exact_mut(b_size)).enumerate() {
            work(plane + i, a, b);
        }
    });
}

/// The largest element of each window, NaN where the window holds one.
pub(crate) fn max_forward<T: Real>(g: &Windows, x: &[T], y: &mut [T]) {
    planes(x, g.h * g.w, y, g.oh * g.ow, |_, x, y| max_plane(g, x, y));
}

simd_fn! {
    fn max_plane<T>(g: &Windows, x: &[T], y: &mut [T]) {
        if g.halves() {
            for (r, out) in y.chunks_exact_mut(g.ow).enumerate() {
                let upper = &x[2 * r * g.w..][..2 * g.ow];
                let lower = &x[(2 * r + 1) * g.w..][..2 * g.ow];
                for ((v, a), b) in out.iter_mut().zip(upper.chunks_exact(2)).zip(lower.chunks_exact(2)) {
                    *v = a[0].larger(a[1]).larger(b[0].larger(b[1]));
                }
            }
            return;
        }
        for (r, out) in y.chunks_exact_mut(g.ow).enumerate() {
            out.fill(T::NEG_INFINITY);
            let (lines, _) = g.window(r, 0);
            for line in lines {
                let source = &x[line * g.w..(line + 1) * g.w];
                for j in g.columns_of_kernel() {
                    let columns = inside(j, g.padding.1, g.stride.1, g.w, g.ow);
                    if columns.is_empty() {
                        continue;
                    }
                    let first = columns.start * g.stride.1 + j - g.padding.1;
                    for (v, &x) in out[columns].iter_mut().zip(source[first..].iter().step_by(g.stride.1)) {
                        *v = (*v).larger(x);
                    }
                }
            }
        }
    }
}

/// Where the first largest element of the window lies in its plane; a NaN counts as largest.
#[inline(always)]
fn first_largest<T: Real>(g: &Windows, x: &[T], r: usize, q: usize) -> usize {
    let (lines, columns) = g.window(r, q);
    let mut best = lines.start * g.w + columns.start;
    let mut largest = x[best];
    for line in lines {
        let start = line * g.w + columns.start;
        for (i, &v) in x[start..line * g.w + columns.end].iter().enumerate() {
            if replaces(v, largest) {
                largest = v;
                best = start + i;
            }
        }
    }
    best
}

/// Whether a later element takes the place of the largest so far: it is larger, or the first NaN.
#[inline(always)]
#[allow(clippy::neg_cmp_op_on_partial_ord, clippy::eq_op)]
fn replaces<T: Real>(later: T, largest: T) -> bool {
    !(later <= largest) & (largest == largest)
}

/// Gives each window's cotangent to its first largest element.
pub(crate) fn max_backward<T: Real>(g: &Windows, x: &[T], dy: &[T], dx: &mut [T]) {
    let out = g.oh * g.ow;
    planes(x, g.h * g.w, dx, g.h * g.w, |index, x, dx| {
        max_plane_backward(g, x, &dy[index * out..(index + 1) * out], dx);
    });
}

simd_fn! {
    fn max_plane_backward<T>(g: &Windows, x: &[T], dy: &[T], dx: &mut [T]) {
        if g.halves() {
            for (r, given) in dy.chunks_exact(g.ow).enumerate() {
                let upper = &x[2 * r * g.w..][..2 * g.ow];
                let lower = &x[(2 * r + 1) * g.w..][..2 * g.ow];
                let (du, dl) = dx[2 * r * g.w..].split_at_mut(g.w);
                let inputs = upper.chunks_exact(2).zip(lower.chunks_exact(2));
                let outputs = du.chunks_exact_mut(2).zip(dl.chunks_exact_mut(2));
                for (((u, l), (du, dl)), &given) in inputs.zip(outputs).zip(given) {
                    // A later element wins where it is larger, or is the first NaN. Without branches, so
                    // that the loop vectorises.
                    let right_up = replaces(u[1], u[0]);
                    let right_down = replaces(l[1], l[0]);
                    let top = if right_up { u[1] } else { u[0] };
                    let bottom = if right_down { l[1] } else { l[0] };
                    let down = replaces(bottom, top);
                    let take = |here: bool| if here { given } else { T::ZERO };
                    du[0] = take(!down & !right_up);
                    du[1] = take(!down & right_up);
                    dl[0] = take(down & !right_down);
                    dl[1] = take(down & right_down);
                }
                du[2 * g.ow..].fill(T::ZERO);
                dl[2 * g.ow..g.w].fill(T::ZERO);
            }
            dx[2 * g.oh * g.w..].fill(T::ZERO);
            return;
        }
        dx.fill(T::ZERO);
        for (r, given) in dy.chunks_exact(g.ow).enumerate() {
            for (q, &v) in given.iter().enumerate() {
                dx[first_largest(g, x, r, q)] += v;
            }
        }
    }
}

/// The mean of each window; padding counts as zeros.
pub(crate) fn average_forward<T: Real>(g: &Windows, x: &[T], y: &mut [T]) {
    let scale = g.share();
    planes(x, g.h * g.w, y, g.oh * g.ow, |_, x, y| {
        for (r, out) in y.chunks_exact_mut(g.ow).enumerate() {
            for (q, v) in out.iter_mut().enumerate() {
                let (lines, columns) = g.window(r, q);
                let mut sum = T::ZERO;
                for line in lines {
                    for &x in &x[line * g.w + columns.start..line * g.w + columns.end] {
                        sum += x;
                    }
                }
                *v = sum * scale;
            }
        }
    });
}

/// The transpose of [`average_forward`]: spreads each window's cotangent evenly over it.
pub(crate) fn average_backward<T: Real>(g: &Windows, dy: &[T], dx: &mut [T]) {
    let scale = g.share();
    dx.fill(T::ZERO);
    planes(dy, g.oh * g.ow, dx, g.h * g.w, |_, dy, dx| {
        for (r, given) in dy.chunks_exact(g.ow).enumerate() {
            for (q, &v) in given.iter().enumerate() {
                let (lines, columns) = g.window(r, q);
                for line in lines {
                    for x in &mut dx[line * g.w + columns.start..line * g.w + columns.end] {
                        *x += v * scale;
                    }
                }
            }
        }
    });
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::random::{Key, fill_normal_f32};

    fn windows(
        h: usize,
        w: usize,
        kernel: (usize, usize),
        stride: (usize, usize),
        padding: (usize, usize),
    ) -> Windows {
        Windows {
            h,
            w,
            kernel,
            stride,
            padding,
            oh: (h + 2 * padding.0 - kernel.0) / stride.0 + 1,
            ow: (w + 2 * padding.1 - kernel.1) / stride.1 + 1,
        }
    }

    #[test]
    fn maxima_and_their_gradients_agree_with_a_walk_over_the_window() {
        for g in [
            windows(6, 8, (2, 2), (2, 2), (0, 0)),
            windows(7, 9, (2, 2), (2, 2), (0, 0)),
            windows(7, 9, (3, 2), (2, 1), (1, 1)),
            windows(5, 5, (3, 3), (1, 1), (1, 1)),
        ] {
            let (planes, size, out) = (5, g.h * g.w, g.oh * g.ow);
            let mut x = vec![0f32; planes * size];
            fill_normal_f32(&Key::new(&[1]), &mut x);
            // Coarse values, so that ties happen; some NaN.
            for (i, v) in x.iter_mut().enumerate() {
                *v = v.round();
                if i % 53 == 7 {
                    *v = f32::NAN;
                }
            }
            let mut dy = vec![0f32; planes * out];
            fill_normal_f32(&Key::new(&[2]), &mut dy);
            let mut y = vec![0f32; planes * out];
            max_forward(&g, &x, &mut y);
            let mut want = vec![0f32; planes * size];
            for i in 0..planes * out {
                let (plane, r, q) = (i / out, i % out / g.ow, i % g.ow);
                let (lines, columns) = g.window(r, q);
                let mut best: Option<usize> = None;
                for p in lines.flat_map(|l| columns.clone().map(move |c| (l, c))) {
                    let p = plane * size + p.0 * g.w + p.1;
                    let better = match best {
                        None => true,
                        Some(b) => !x[b].is_nan() && (x[p].is_nan() || x[p] > x[b]),
                    };
                    if better {
                        best = Some(p);
                    }
                }
                let best = best.unwrap();
                assert_eq!(
                    y[i].to_bits() << 1,
                    x[best].to_bits() << 1,
                    "window {i} of {g:?}"
                );
                let at = first_largest(&g, &x[plane * size..(plane + 1) * size], r, q);
                assert_eq!(at, best - plane * size, "position {i} of {g:?}");
                want[best] += dy[i];
            }
            let mut dx = vec![f32::NAN; planes * size];
            max_backward(&g, &x, &dy, &mut dx);
            assert_eq!(dx, want, "{g:?}");
        }
    }

    #[test]
    fn averages_count_padding_as_zeros_and_transpose_exactly() {
        let g = windows(3, 3, (2, 2), (1, 2), (1, 1));
        let x: Vec<f64> = (1..=9).map(f64::from).collect();
        let mut y = vec![0.0; g.oh * g.ow];
        average_forward(&g, &x, &mut y);
        assert_eq!(y, [0.25, 1.25, 1.25, 4.0, 2.75, 7.0, 1.75, 4.25]);
        // <A x, u> = <x, At u>
        let u: Vec<f64> = (0..y.len()).map(|i| (i * i) as f64 - 3.0).collect();
        let mut dx = vec![0.0; 9];
        average_backward(&g, &u, &mut dx);
        let left: f64 = y.iter().zip(&u).map(|(a, b)| a * b).sum();
        let right: f64 = x.iter().zip(&dx).map(|(a, b)| a * b).sum();
        assert!((left - right).abs() < 1e-12);
    }
}
