//! Two-dimensional convolution and its two gradients.
//!
//! Each of the three is linear in both of its arguments, and the gradients of any one are the other two:
//! with y = conv(x, w), dx = input_gradient(dy, w), dw = weight_gradient(x, dy), a cotangent u of dx gives
//! conv(u, w) for dy and weight_gradient(u, dy) for w, and a cotangent v of dw gives
//! input_gradient(dy, v) for x and conv(x, v) for dy. So gradients of any order are native kernels.
//!
//! The kernels unfold patches into a block that stays in cache and multiply it ("im2col"), one sample and
//! group at a time. How work is split follows from shapes alone, never from the number of threads.

use crate::autograd::record;
use crate::capture;
use crate::dtype::with_float;
use crate::error::{Error, Result};
use crate::gemm::{multiply, rows, transposed};
use crate::lanes::{Real, simd_fn};
use crate::ops;
use crate::ops::rows::one_float_type;
use crate::tensor::Tensor;
use crate::threads::for_items;

/// The convolution (cross-correlation, as everywhere in deep learning) of `x[n, c, h, w]` with
/// `w[o, c / groups, kh, kw]`, the input padded with zeros: [n, o, oh, ow] with
/// oh = (h + 2 padding - dilation (kh - 1) - 1) / stride + 1, rounded down.
///
/// # Errors
/// [`Error::Shape`] for wrong ranks, channels that `groups` does not divide or that differ, or a kernel
/// larger than the padded input; [`Error::Argument`] for a stride, dilation or group count of zero;
/// [`Error::DType`], [`Error::Size`], [`Error::Budget`].
pub fn conv2d(
    x: &Tensor,
    w: &Tensor,
    stride: (usize, usize),
    padding: (usize, usize),
    dilation: (usize, usize),
    groups: usize,
) -> Result<Tensor> {
    conv2d_with_bias(x, w, None, stride, padding, dilation, groups)
}

/// [`conv2d`] plus `bias[o]` per output channel, without a pass of its own.
///
/// # Errors
/// As [`conv2d`]; [`Error::Shape`] for a bias that is not [o].
pub(crate) fn conv2d_with_bias(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    stride: (usize, usize),
    padding: (usize, usize),
    dilation: (usize, usize),
    groups: usize,
) -> Result<Tensor> {
    const OP: &str = "conv2d";
    let g = Geometry::new(OP, x, w, stride, padding, dilation, groups)?;
    if let Some(bias) = bias {
        if bias.shape() != [g.o] {
            return Err(Error::shape(
                OP,
                format!("the bias is [{}]", g.o),
                &[w.shape(), bias.shape()],
            ));
        }
        one_float_type(OP, &[x, w, bias])?;
    }
    let out = with_float!(OP, x.dtype(), T => {
        let (xd, wd) = (x.dense(OP)?, w.dense(OP)?);
        let bias = bias.map(|b| b.dense(OP)).transpose()?;
        let (xd, wd) = (xd.data::<T>()?, wd.data::<T>()?);
        let bias = bias.as_ref().map(|b| b.data::<T>()).transpose()?;
        Tensor::build_unset::<T>(OP, &[g.n, g.o, g.oh, g.ow], |y| forward(&g, xd, wd, bias, y))?
    });
    let (kept_x, kept_w) = (x.on_the_way_back(), w.on_the_way_back());
    let mut parents = vec![x, w];
    parents.extend(bias);
    let has_bias = bias.is_some();
    let words = [stride, padding, dilation, (groups, 0)].map(|(a, b)| (a << 32 | b) as u64);
    capture::note(OP, &words, &parents, &out, || {
        move |t: &[Tensor]| {
            conv2d_with_bias(&t[0], &t[1], t.get(2), stride, padding, dilation, groups)
        }
    });
    Ok(record(OP, out, &parents, move |flow| {
        let dy = &flow.grad;
        let mut gradients = vec![
            flow.needs(0)
                .then(|| conv2d_input_gradient(dy, &kept_w, g))
                .transpose()?,
            flow.needs(1)
                .then(|| conv2d_weight_gradient(&kept_x, dy, g))
                .transpose()?,
        ];
        if has_bias {
            let sum = || ops::sum(dy, &[0, 2, 3], false);
            gradients.push(flow.needs(2).then(sum).transpose()?);
        }
        Ok(gradients)
    }))
}

/// The gradient of [`conv2d`] with respect to its input: [n, c, h, w] from dy[n, o, oh, ow] and w.
fn conv2d_input_gradient(dy: &Tensor, w: &Tensor, g: Geometry) -> Result<Tensor> {
    const OP: &str = "conv2d_input_gradient";
    let out = with_float!(OP, dy.dtype(), T => {
        let (dyd, wd) = (dy.dense(OP)?, w.dense(OP)?);
        let (dyd, wd) = (dyd.data::<T>()?, wd.data::<T>()?);
        Tensor::build_unset::<T>(OP, &[g.n, g.c, g.h, g.w], |dx| input_gradient(&g, dyd, wd, dx))?
    });
    capture::note(OP, &g.words(), &[dy, w], &out, || {
        move |t: &[Tensor]| conv2d_input_gradient(&t[0], &t[1], g)
    });
    let (kept_dy, kept_w) = (dy.clone(), w.clone());
    Ok(record(OP, out, &[dy, w], move |flow| {
        let u = &flow.grad;
        let again = || conv2d(u, &kept_w, g.stride, g.padding, g.dilation, g.groups);
        Ok(vec![
            flow.needs(0).then(again).transpose()?,
            flow.needs(1)
                .then(|| conv2d_weight_gradient(u, &kept_dy, g))
                .transpose()?,
        ])
    }))
}

/// The gradient of [`conv2d`] with respect to its weight: [o, c / groups, kh, kw] from x and dy.
fn conv2d_weight_gradient(x: &Tensor, dy: &Tensor, g: Geometry) -> Result<Tensor> {
    const OP: &str = "conv2d_weight_gradient";
    let out = with_float!(OP, dy.dtype(), T => {
        let (xd, dyd) = (x.dense(OP)?, dy.dense(OP)?);
        let (xd, dyd) = (xd.data::<T>()?, dyd.data::<T>()?);
        let shape = [g.o, g.cg(), g.kernel.0, g.kernel.1];
        Tensor::build_unset::<T>(OP, &shape, |dw| weight_gradient(&g, xd, dyd, dw))?
    });
    capture::note(OP, &g.words(), &[x, dy], &out, || {
        move |t: &[Tensor]| conv2d_weight_gradient(&t[0], &t[1], g)
    });
    let (kept_x, kept_dy) = (x.clone(), dy.clone());
    Ok(record(OP, out, &[x, dy], move |flow| {
        let v = &flow.grad;
        let again = || conv2d(&kept_x, v, g.stride, g.padding, g.dilation, g.groups);
        Ok(vec![
            flow.needs(0)
                .then(|| conv2d_input_gradient(&kept_dy, v, g))
                .transpose()?,
            flow.needs(1).then(again).transpose()?,
        ])
    }))
}

/// Sizes of one convolution, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) n: usize,
    pub(crate) c: usize,
    pub(crate) h: usize,
    pub(crate) w: usize,
    pub(crate) o: usize,
    pub(crate) kernel: (usize, usize),
    pub(crate) stride: (usize, usize),
    pub(crate) padding: (usize, usize),
    pub(crate) dilation: (usize, usize),
    pub(crate) groups: usize,
    pub(crate) oh: usize,
    pub(crate) ow: usize,
}

/// Output rows `from..to`, columns `left..right`.
#[derive(Clone, Copy)]
struct Block {
    from: usize,
    to: usize,
    left: usize,
    right: usize,
}

impl Block {
    fn width(&self) -> usize {
        (self.to - self.from) * (self.right - self.left)
    }
    fn clip(&self, columns: std::ops::Range<usize>) -> std::ops::Range<usize> {
        let start = columns.start.clamp(self.left, self.right);
        start..columns.end.clamp(start, self.right)
    }
}

/// Elements of the unfolded block: half a megabyte of f32, which fits a core's second-level cache.
const BLOCK: usize = 128 * 1024;

/// Windows that fit along one axis, or `None` where not even one does.
pub(crate) fn windows_along(
    size: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    dilation: usize,
) -> Option<usize> {
    let padded = size.checked_add(padding.checked_mul(2)?)?;
    let reach = kernel
        .checked_sub(1)?
        .checked_mul(dilation)?
        .checked_add(1)?;
    padded
        .checked_sub(reach)?
        .checked_div(stride)?
        .checked_add(1)
}

impl Geometry {
    fn new(
        op: &'static str,
        x: &Tensor,
        w: &Tensor,
        stride: (usize, usize),
        padding: (usize, usize),
        dilation: (usize, usize),
        groups: usize,
    ) -> Result<Geometry> {
        one_float_type(op, &[x, w])?;
        let refuse = |expected: String| Err(Error::shape(op, expected, &[x.shape(), w.shape()]));
        let (&[n, c, h, width], &[o, cg, kh, kw]) = (x.shape(), w.shape()) else {
            return refuse(
                "needs an input [n, c, h, w] and a weight [o, c / groups, kh, kw]".into(),
            );
        };
        for (name, value) in [
            ("stride", stride),
            ("dilation", dilation),
            ("groups", (groups, groups)),
        ] {
            if value.0 == 0 || value.1 == 0 {
                return Err(Error::argument(
                    op,
                    format!("{name} must be at least 1, got 0"),
                ));
            }
        }
        if c % groups != 0 || o % groups != 0 {
            return refuse(format!(
                "{groups} groups must divide the channels, {c} read and {o} written"
            ));
        }
        if cg != c / groups {
            return refuse(format!(
                "the weight must read {} channels, the input's {c} over {groups} groups",
                c / groups
            ));
        }
        let (Some(oh), Some(ow)) = (
            windows_along(h, kh, stride.0, padding.0, dilation.0),
            windows_along(width, kw, stride.1, padding.1, dilation.1),
        ) else {
            return refuse(format!(
                "the kernel, dilated by {dilation:?}, must have at least one element and fit the input padded by {padding:?}"
            ));
        };
        Ok(Geometry {
            n,
            c,
            h,
            w: width,
            o,
            kernel: (kh, kw),
            stride,
            padding,
            dilation,
            groups,
            oh,
            ow,
        })
    }

    /// Everything that two gradients of the same operands may differ in.
    fn words(&self) -> [u64; 12] {
        let g = self;
        [
            g.n,
            g.c,
            g.h,
            g.w,
            g.o,
            g.groups,
            g.stride.0,
            g.stride.1,
            g.padding.0,
            g.padding.1,
            g.dilation.0,
            g.dilation.1,
        ]
        .map(|n| n as u64)
    }

    /// Channels read by one group.
    fn cg(&self) -> usize {
        self.c / self.groups
    }
    /// Channels written by one group.
    fn og(&self) -> usize {
        self.o / self.groups
    }
    /// Elements of one patch: the length of the contraction.
    fn patch(&self) -> usize {
        self.cg() * self.kernel.0 * self.kernel.1
    }
    /// Output positions of one plane.
    fn positions(&self) -> usize {
        self.oh * self.ow
    }
    /// Multiply-adds of one pass.
    fn operations(&self) -> usize {
        (self.n * self.o)
            .saturating_mul(self.positions())
            .saturating_mul(self.patch())
    }
    /// Whether a patch is a pixel, so that the input already is the unfolded matrix.
    fn pointwise(&self) -> bool {
        self.kernel == (1, 1) && self.stride == (1, 1) && self.padding == (0, 0)
    }
    /// Elements that the largest of [`blocks`](Self::blocks) needs.
    fn scratch(&self) -> usize {
        if self.pointwise() {
            0
        } else {
            self.blocks().map(|b| b.width()).max().unwrap_or(0) * self.patch()
        }
    }
    /// Pieces of the output plane whose unfolded patches fit the cache: whole rows, or parts of one row
    /// where a row alone is too long.
    fn blocks(&self) -> impl Iterator<Item = Block> {
        let (oh, ow) = (self.oh, self.ow);
        let rows = (BLOCK / (self.patch() * ow).max(1)).clamp(1, oh.max(1));
        let columns = if rows > 1 {
            ow
        } else {
            (BLOCK / self.patch().max(1)).clamp(16, ow.max(16))
        };
        (0..oh).step_by(rows).flat_map(move |from| {
            (0..ow).step_by(columns).map(move |left| Block {
                from,
                to: (from + rows).min(oh),
                left,
                right: (left + columns).min(ow),
            })
        })
    }
    /// Output channels per task: whole groups where samples and groups alone keep threads busy.
    fn channels_per_task(&self) -> usize {
        let (og, tasks) = (self.og(), self.n * self.groups);
        if tasks >= 8 {
            og
        } else {
            og.div_ceil(8usize.div_ceil(tasks.max(1))).max(16).min(og)
        }
    }
}

/// Copies one row. Rows are short, and a call into libc per row would cost more than the copy; so up to
/// sixteen elements go as two pieces of fixed size that may overlap.
#[inline(always)]
fn copy_row<T: Real>(from: &[T], to: &mut [T]) {
    let n = to.len();
    let from = &from[..n];
    if n > 16 {
        to.copy_from_slice(from);
    } else if let (Some(a), Some(b)) = (from.first_chunk::<8>(), from.last_chunk::<8>()) {
        to[..8].copy_from_slice(a);
        to[n - 8..].copy_from_slice(b);
    } else if let (Some(a), Some(b)) = (from.first_chunk::<4>(), from.last_chunk::<4>()) {
        to[..4].copy_from_slice(a);
        to[n - 4..].copy_from_slice(b);
    } else {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = from;
        }
    }
}

simd_fn! {
    /// Unfolds one block of one sample's group: `out[(c, i, j), (row, column)]`.
    fn unfold<T>(g: &Geometry, x: &[T], at: Block, out: &mut [T]) {
        if g.h * g.w == 0 {
            out.fill(T::ZERO);
            return;
        }
        let span = at.right - at.left;
        let mut lines = out.chunks_exact_mut(at.width());
        for plane in x.chunks_exact(g.h * g.w) {
            for i in 0..g.kernel.0 {
                // Rows of the block whose input row exists; the others are zeros.
                let rows = inside(i * g.dilation.0, g.padding.0, g.stride.0, g.h, g.oh);
                let rows = rows.start.clamp(at.from, at.to)..rows.end.clamp(at.from, at.to);
                for j in 0..g.kernel.1 {
                    let Some(line) = lines.next() else { return };
                    let columns = at.clip(inside(j * g.dilation.1, g.padding.1, g.stride.1, g.w, g.ow));
                    if rows.is_empty() || columns.is_empty() {
                        line.fill(T::ZERO);
                        continue;
                    }
                    line[..(rows.start - at.from) * span].fill(T::ZERO);
                    line[(rows.end - at.from) * span..].fill(T::ZERO);
                    let line = &mut line[(rows.start - at.from) * span..(rows.end - at.from) * span];
                    let (start, end) = (columns.start - at.left, columns.end - at.left);
                    let first_row = rows.start * g.stride.0 + i * g.dilation.0 - g.padding.0;
                    let first = columns.start * g.stride.1 + j * g.dilation.1 - g.padding.1;
                    let sources = plane[first_row * g.w + first..].chunks(g.w * g.stride.0);
                    for (cells, source) in line.chunks_exact_mut(span).zip(sources) {
                        if end - start < span {
                            cells[..start].fill(T::ZERO);
                            cells[end..].fill(T::ZERO);
                        }
                        let cells = &mut cells[start..end];
                        if g.stride.1 == 1 {
                            copy_row(source, cells);
                        } else {
                            for (cell, &v) in cells.iter_mut().zip(source.iter().step_by(g.stride.1)) {
                                *cell = v;
                            }
                        }
                    }
                }
            }
        }
    }
}

simd_fn! {
    /// Adds an unfolded block back to where its elements came from: the transpose of [`unfold`].
    fn fold_back<T>(g: &Geometry, block: &[T], at: Block, x: &mut [T]) {
        let span = at.right - at.left;
        let mut lines = block.chunks_exact(at.width());
        for plane in x.chunks_exact_mut(g.h * g.w) {
            for i in 0..g.kernel.0 {
                for j in 0..g.kernel.1 {
                    let Some(line) = lines.next() else { return };
                    let columns = at.clip(inside(j * g.dilation.1, g.padding.1, g.stride.1, g.w, g.ow));
                    if columns.is_empty() {
                        continue;
                    }
                    for (row, cells) in (at.from..at.to).zip(line.chunks_exact(span)) {
                        let y = (row * g.stride.0 + i * g.dilation.0).wrapping_sub(g.padding.0);
                        if y >= g.h {
                            continue;
                        }
                        let target = &mut plane[y * g.w..(y + 1) * g.w];
                        let first = columns.start * g.stride.1 + j * g.dilation.1 - g.padding.1;
                        let cells = &cells[columns.start - at.left..columns.end - at.left];
                        if g.stride.1 == 1 {
                            for (t, &v) in target[first..first + cells.len()].iter_mut().zip(cells) {
                                *t += v;
                            }
                        } else {
                            for (t, &v) in target[first..].iter_mut().step_by(g.stride.1).zip(cells) {
                                *t += v;
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Output positions whose input position `p * stride + shift - padding` lies in `0..size`.
pub(crate) fn inside(
    shift: usize,
    padding: usize,
    stride: usize,
    size: usize,
    out: usize,
) -> std::ops::Range<usize> {
    let start = padding.saturating_sub(shift).div_ceil(stride);
    // p * stride < size + padding - shift
    let end = (size + padding)
        .saturating_sub(shift)
        .div_ceil(stride)
        .min(out);
    start.min(end)..end
}

/// y[n, o, oh, ow] from x[n, c, h, w] and w[o, c / groups, kh, kw], plus `bias[o]` where given.
pub(crate) fn forward<T: Real>(g: &Geometry, x: &[T], w: &[T], bias: Option<&[T]>, y: &mut [T]) {
    let (p, k, og) = (g.positions(), g.patch(), g.og());
    if y.is_empty() {
        return;
    }
    let per_task = g.channels_per_task();
    let splits = og.div_ceil(per_task);
    let room = g.scratch();
    // Tasks are (sample, group, block of channels), cut as slices of y: blocks do not straddle groups.
    let work = |scratch: &mut Vec<T>, index: usize, out: &mut [T]| {
        let (sample, rest) = (index / (g.groups * splits), index % (g.groups * splits));
        let (group, split) = (rest / splits, rest % splits);
        let first = group * og + split * per_task;
        let channels = out.len() / p;
        let weights = &w[first * k..(first + channels) * k];
        let size = g.cg() * g.h * g.w;
        let input = &x[(sample * g.groups + group) * size..][..size];
        let keep = match bias {
            Some(bias) => {
                for (line, &b) in out.chunks_exact_mut(p).zip(&bias[first..]) {
                    line.fill(b);
                }
                T::ONE
            }
            None => T::ZERO,
        };
        if g.pointwise() {
            multiply(
                channels,
                p,
                k,
                rows(weights, k),
                rows(input, p),
                keep,
                out,
                p,
            );
            return;
        }
        scratch.resize(room, T::ZERO);
        for at in g.blocks() {
            let width = at.width();
            let block = &mut scratch[..k * width];
            unfold(g, input, at, block);
            let (a, b) = (rows(weights, k), rows(block, width));
            multiply(
                channels,
                width,
                k,
                a,
                b,
                keep,
                &mut out[at.from * g.ow + at.left..],
                p,
            );
        }
    };
    let pieces = split_channels(y, og * p, per_task * p);
    run(pieces, g.operations(), work);
}

/// Cuts a tensor of `[.., group]` into pieces of at most `piece` elements that do not straddle groups.
fn split_channels<T>(y: &mut [T], group: usize, piece: usize) -> Vec<&mut [T]> {
    y.chunks_mut(group)
        .flat_map(|g| g.chunks_mut(piece))
        .collect()
}

/// Runs `work(scratch, index, piece)` over all pieces, in the pool where the work is worth it.
fn run<T: Real>(
    pieces: Vec<&mut [T]>,
    operations: usize,
    work: impl Fn(&mut Vec<T>, usize, &mut [T]) + Sync,
) {
    for_items(pieces, operations >= 1 << 15, Vec::new, work);
}

/// dx[n, c, h, w] from dy[n, o, oh, ow] and w.
pub(crate) fn input_gradient<T: Real>(g: &Geometry, dy: &[T], w: &[T], dx: &mut [T]) {
    let (p, k, og) = (g.positions(), g.patch(), g.og());
    if dx.is_empty() {
        return;
    }
    // Without output channels a patch may be of any size: nothing bounds it.
    if w.is_empty() || dy.is_empty() {
        dx.fill(T::ZERO);
        return;
    }
    let room = g.scratch();
    let work = |scratch: &mut Vec<T>, index: usize, out: &mut [T]| {
        let group = index % g.groups;
        let weights = &w[group * og * k..(group + 1) * og * k];
        let given = &dy[index * og * p..(index + 1) * og * p];
        if g.pointwise() {
            multiply(
                k,
                p,
                og,
                transposed(weights, k),
                rows(given, p),
                T::ZERO,
                out,
                p,
            );
            return;
        }
        out.fill(T::ZERO);
        if p == 0 {
            return;
        }
        scratch.resize(room, T::ZERO);
        for at in g.blocks() {
            let width = at.width();
            let block = &mut scratch[..k * width];
            let b = rows(&given[at.from * g.ow + at.left..], p);
            multiply(
                k,
                width,
                og,
                transposed(weights, k),
                b,
                T::ZERO,
                block,
                width,
            );
            fold_back(g, block, at, out);
        }
    };
    let size = g.cg() * g.h * g.w;
    run(dx.chunks_mut(size).collect(), g.operations(), work);
}

/// dw[o, c / groups, kh, kw] from x and dy: partial sums over fixed runs of samples, added in order.
pub(crate) fn weight_gradient<T: Real>(g: &Geometry, x: &[T], dy: &[T], dw: &mut [T]) {
    let (p, k, og) = (g.positions(), g.patch(), g.og());
    if dw.is_empty() {
        return;
    }
    if g.n == 0 || p == 0 {
        dw.fill(T::ZERO);
        return;
    }
    // Partial sums cost memory, so large weights get few of them and are split by channel instead.
    let parts = ((4 << 20) / dw.len()).clamp(1, 16).min(g.n);
    let samples = g.n.div_ceil(parts);
    let parts = g.n.div_ceil(samples);
    let per_task = if parts * g.groups >= 8 {
        og
    } else {
        og.div_ceil(8usize.div_ceil(parts * g.groups))
            .max(16)
            .min(og)
    };
    let splits = og.div_ceil(per_task);
    let room = g.scratch();
    let work = |scratch: &mut Vec<T>, index: usize, out: &mut [T]| {
        let (part, rest) = (index / (g.groups * splits), index % (g.groups * splits));
        let (group, split) = (rest / splits, rest % splits);
        let channels = out.len() / k;
        let size = g.cg() * g.h * g.w;
        let mut keep = T::ZERO;
        scratch.resize(room, T::ZERO);
        for sample in part * samples..((part + 1) * samples).min(g.n) {
            let input = &x[(sample * g.groups + group) * size..][..size];
            let first = sample * g.o + group * og + split * per_task;
            let given = &dy[first * p..(first + channels) * p];
            if g.pointwise() {
                multiply(
                    channels,
                    k,
                    p,
                    rows(given, p),
                    transposed(input, p),
                    keep,
                    out,
                    k,
                );
                keep = T::ONE;
                continue;
            }
            for at in g.blocks() {
                let width = at.width();
                let block = &mut scratch[..k * width];
                unfold(g, input, at, block);
                let a = rows(&given[at.from * g.ow + at.left..], p);
                multiply(
                    channels,
                    k,
                    width,
                    a,
                    transposed(block, width),
                    keep,
                    out,
                    k,
                );
                keep = T::ONE;
            }
        }
    };
    let operations = g.operations();
    if parts == 1 {
        run(split_channels(dw, og * k, per_task * k), operations, work);
        return;
    }
    let mut partial = vec![T::ZERO; parts * dw.len()];
    run(
        split_channels(&mut partial, og * k, per_task * k),
        operations,
        work,
    );
    let mut each = partial.chunks_exact(dw.len());
    if let Some(first) = each.next() {
        dw.copy_from_slice(first);
    }
    for part in each {
        for (sum, &v) in dw.iter_mut().zip(part) {
            *sum += v;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::{Key, fill_normal_f64};

    pub(crate) fn geometry(
        (n, c, h, w): (usize, usize, usize, usize),
        o: usize,
        kernel: (usize, usize),
        stride: (usize, usize),
        padding: (usize, usize),
        dilation: (usize, usize),
        groups: usize,
    ) -> Geometry {
        let out = |size: usize, k: usize, s: usize, p: usize, d: usize| {
            (size + 2 * p - d * (k - 1) - 1) / s + 1
        };
        Geometry {
            n,
            c,
            h,
            w,
            o,
            kernel,
            stride,
            padding,
            dilation,
            groups,
            oh: out(h, kernel.0, stride.0, padding.0, dilation.0),
            ow: out(w, kernel.1, stride.1, padding.1, dilation.1),
        }
    }

    /// Calls `visit(x index, w index, y index)` for every product that a convolution sums.
    fn products(g: &Geometry, mut visit: impl FnMut(usize, usize, usize)) {
        let (cg, og) = (g.cg(), g.og());
        for n in 0..g.n {
            for o in 0..g.o {
                for (r, q) in (0..g.oh).flat_map(|r| (0..g.ow).map(move |q| (r, q))) {
                    for c in 0..cg {
                        for (i, j) in
                            (0..g.kernel.0).flat_map(|i| (0..g.kernel.1).map(move |j| (i, j)))
                        {
                            let y = (r * g.stride.0 + i * g.dilation.0).wrapping_sub(g.padding.0);
                            let x = (q * g.stride.1 + j * g.dilation.1).wrapping_sub(g.padding.1);
                            if y < g.h && x < g.w {
                                let channel = o / og * cg + c;
                                visit(
                                    ((n * g.c + channel) * g.h + y) * g.w + x,
                                    ((o * cg + c) * g.kernel.0 + i) * g.kernel.1 + j,
                                    ((n * g.o + o) * g.oh + r) * g.ow + q,
                                );
                            }
                        }
                    }
                }
            }
        }
    }

    fn cases() -> Vec<Geometry> {
        vec![
            geometry((2, 3, 7, 6), 4, (3, 3), (1, 1), (0, 0), (1, 1), 1),
            geometry((2, 3, 7, 6), 4, (3, 2), (2, 1), (1, 1), (1, 2), 1),
            geometry((1, 4, 5, 9), 6, (2, 3), (1, 3), (2, 0), (2, 1), 2),
            geometry((3, 4, 5, 5), 4, (3, 3), (2, 2), (1, 1), (1, 1), 4),
            geometry((2, 5, 4, 4), 40, (1, 1), (1, 1), (0, 0), (1, 1), 1),
            geometry((0, 2, 4, 4), 3, (3, 3), (1, 1), (1, 1), (1, 1), 1),
            geometry((2, 2, 3, 3), 3, (2, 2), (1, 1), (3, 3), (3, 3), 1),
            geometry((17, 2, 40, 50), 33, (3, 3), (1, 1), (1, 1), (1, 1), 1),
            geometry((1, 600, 1, 400), 2, (3, 3), (1, 1), (1, 1), (1, 1), 1),
            geometry((1, 8, 70, 80), 40, (5, 5), (1, 1), (2, 2), (1, 1), 1),
        ]
    }

    #[test]
    fn the_three_kernels_agree_with_sums_of_products() {
        for g in cases() {
            let (nx, nw) = (g.n * g.c * g.h * g.w, g.o * g.patch());
            let ny = g.n * g.o * g.positions();
            let make = |word, n| {
                let mut v = vec![0f64; n];
                fill_normal_f64(&Key::new(&[word]), &mut v);
                v
            };
            let (x, w, dy) = (make(1, nx), make(2, nw), make(3, ny));
            let bias = make(4, g.o);
            let (mut y, mut dx, mut dw) = (vec![0.0; ny], vec![0.0; nx], vec![0.0; nw]);
            products(&g, |ix, iw, iy| {
                y[iy] += x[ix] * w[iw];
                dx[ix] += dy[iy] * w[iw];
                dw[iw] += dy[iy] * x[ix];
            });
            let mut got = vec![f64::NAN; ny];
            forward(&g, &x, &w, None, &mut got);
            close(&got, &y);
            for (i, v) in y.iter_mut().enumerate() {
                *v += bias[i / g.positions() % g.o];
            }
            forward(&g, &x, &w, Some(&bias), &mut got);
            close(&got, &y);
            let mut got = vec![f64::NAN; nx];
            input_gradient(&g, &dy, &w, &mut got);
            close(&got, &dx);
            let mut got = vec![f64::NAN; nw];
            weight_gradient(&g, &x, &dy, &mut got);
            close(&got, &dw);
        }
    }

    fn close(got: &[f64], want: &[f64]) {
        assert_eq!(got.len(), want.len());
        for (i, (a, b)) in got.iter().zip(want).enumerate() {
            assert!(
                (a - b).abs() <= 1e-11 * (1.0 + b.abs()) * 10.0,
                "element {i}: {a} and {b}"
            );
        }
    }
}
