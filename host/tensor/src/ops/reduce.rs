//! Sums and extrema along axes, in an order fixed by the shape alone.

use crate::account::fits_limit;
use crate::autograd::{grad_enabled, no_grad, record, tracks};
use crate::capture;
use crate::dtype::{DType, Element, with_float};
use crate::error::{Error, Result};
use crate::layout::{Dims, Layout, MAX_RANK, Walk, axis_index};
use crate::math::Number;
use crate::ops::elementwise::divide;
use crate::ops::index::{Around, put_along};
use crate::ops::shape::{broadcast_to, permute_dims, reshape_to};
use crate::simd::{self, Kernel};
use crate::tensor::Tensor;
use crate::threads::{BLOCK, for_blocks, map_ranges};

/// The sum over `axes` (none means all); with `keepdims` the summed axes stay with size 1. An empty sum
/// is 0. f32 is summed in f64 and rounded once; i64 wraps.
///
/// # Errors
/// [`Error::Axis`]; [`Error::Argument`] for an axis named twice; [`Error::DType`] for bool.
pub fn sum(t: &Tensor, axes: &[isize], keepdims: bool) -> Result<Tensor> {
    const OP: &str = "sum";
    let mut summed = [axes.is_empty(); MAX_RANK];
    for &axis in axes {
        let at = axis_index(OP, axis, t.rank())?;
        if std::mem::replace(&mut summed[at], true) {
            return Err(Error::argument(
                OP,
                format!("axis {axis} is named twice in {axes:?}"),
            ));
        }
    }
    let (mut kept, mut with_ones) = (Dims::empty(), Dims::empty());
    for (axis, &size) in t.shape().iter().enumerate() {
        if summed[axis] {
            with_ones.push(1);
        } else {
            kept.push(size);
            with_ones.push(size);
        }
    }
    let shape = if keepdims { with_ones } else { kept };
    let out = match t.dtype() {
        DType::F32 => sum_marked::<f32>(OP, t, &summed, &shape)?,
        DType::F64 => sum_marked::<f64>(OP, t, &summed, &shape)?,
        DType::I64 => sum_marked::<i64>(OP, t, &summed, &shape)?,
        DType::Bool => {
            return Err(Error::DType {
                op: OP,
                found: vec![DType::Bool],
                expected: "numbers; cast with astype",
            });
        }
    };
    if capture::is_recording() {
        note_sum(t, &summed, keepdims, &out);
    }
    let full = t.layout().shape;
    Ok(record(OP, out, &[t], move |flow| {
        Ok(vec![Some(spread(&flow.grad, &with_ones, &full)?)])
    }))
}

/// A gradient of a sum as that of what was summed: with the summed axes back as ones, and repeated along them.
fn spread(grad: &Tensor, with_ones: &Dims, full: &Dims) -> Result<Tensor> {
    if grad_enabled() || !grad.is_contiguous() {
        return broadcast_to(&reshape_to(grad, with_ones)?, full);
    }
    // Both at once: one view instead of two.
    let mut layout = Layout::dense("sum", with_ones)?;
    for axis in 0..full.len() {
        if full[axis] != layout.shape[axis] {
            layout.shape.set(axis, full[axis]);
            layout.strides.set(axis, 0);
        }
    }
    layout.offset = grad.layout().offset;
    let shown = (layout.numel() as u64).saturating_mul(grad.dtype().size() as u64);
    fits_limit("sum", shown)?;
    Ok(grad.view(layout))
}

#[inline(never)]
fn note_sum(t: &Tensor, summed: &[bool; MAX_RANK], keepdims: bool, out: &Tensor) {
    let axes: Vec<isize> = (0..t.rank())
        .filter(|&a| summed[a])
        .map(|a| a as isize)
        .collect();
    let mut words: Vec<u64> = axes.iter().map(|&a| a as u64).collect();
    words.push(u64::from(keepdims));
    capture::note("sum", &words, &[t], out, || {
        // No axes would mean all.
        move |t: &[Tensor]| match t[0].rank() {
            0 => sum(&t[0], &[], keepdims),
            _ => sum(&t[0], &axes, keepdims),
        }
    });
}

/// The sum over `axes` (all where there are none) divided by the number of elements along them: the same bits as
/// [`sum`] and a division, as one operation.
///
/// # Errors
/// As [`sum`]; [`Error::DType`] for other than floats.
pub fn mean(t: &Tensor, axes: &[isize], keepdims: bool) -> Result<Tensor> {
    const OP: &str = "mean";
    if !t.dtype().is_float() {
        return Err(Error::DType {
            op: OP,
            found: vec![t.dtype()],
            expected: "floats; cast with astype",
        });
    }
    let mut out = {
        let (_off, _paused) = (no_grad(), capture::pause());
        sum(t, axes, keepdims)?
    };
    let count = t.numel() as f64 / (out.numel() as f64).max(1.0);
    // An empty result has no elements to divide.
    with_float!(OP, t.dtype(), E => {
        for x in out.data_mut::<E>().unwrap_or_default() {
            *x /= E::from_f64(count);
        }
    });
    if capture::is_recording() {
        let axes = axes.to_vec();
        let mut words: Vec<u64> = axes.iter().map(|&a| a as u64).collect();
        words.push(u64::from(keepdims));
        capture::note(OP, &words, &[t], &out, || {
            move |t: &[Tensor]| mean(&t[0], &axes, keepdims)
        });
    }
    let full = t.layout().shape;
    let mut with_ones = full;
    if axes.is_empty() {
        (0..full.len()).for_each(|axis| with_ones.set(axis, 1));
    }
    for &axis in axes {
        with_ones.set(axis_index(OP, axis, t.rank())?, 1);
    }
    Ok(record(OP, out, &[t], move |flow| {
        let grad = divide(&flow.grad, count)?;
        Ok(vec![Some(spread(&grad, &with_ones, &full)?)])
    }))
}

/// Brings a gradient to a shape: sums over axes where the shape has size 1 or no axis, then repeats.
pub(crate) fn fit_shape(t: &Tensor, shape: &[usize]) -> Result<Tensor> {
    let lead = t.rank().saturating_sub(shape.len());
    let short = shape.len().saturating_sub(t.rank());
    let mut axes = [0isize; MAX_RANK];
    let mut count = 0;
    for (axis, &size) in t.shape().iter().enumerate() {
        let fits_there = axis >= lead && (shape[axis + short - lead] != 1 || size == 1);
        if !fits_there {
            axes[count] = axis as isize;
            count += 1;
        }
    }
    let mut out = t.clone();
    if count > 0 {
        out = sum(&out, &axes[..count], true)?;
    }
    if lead > 0 {
        let tail = Dims::new("sum", &out.shape()[lead..])?;
        out = reshape_to(&out, &tail)?;
    }
    broadcast_to(&out, shape)
}

/// How an element type is summed: f32 in f64, the others in themselves.
trait Summed: Number {
    type Total: Copy + Default + Send + Sync;
    fn widen(self) -> Self::Total;
    fn join(a: Self::Total, b: Self::Total) -> Self::Total;
    fn narrow(total: Self::Total) -> Self;
    /// The sum of a contiguous run in the order of [`SumRun`].
    fn sum_run(run: &[Self]) -> Self::Total {
        simd::dispatch(SumRun(run))
    }
}
impl Summed for f32 {
    type Total = f64;
    #[inline(always)]
    fn widen(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn join(a: f64, b: f64) -> f64 {
        a + b
    }
    #[inline(always)]
    fn narrow(total: f64) -> f32 {
        total as f32
    }
    fn sum_run(run: &[f32]) -> f64 {
        simd::sum_wide(run).unwrap_or_else(|| simd::dispatch(SumRun(run)))
    }
}
impl Summed for f64 {
    type Total = f64;
    #[inline(always)]
    fn widen(self) -> f64 {
        self
    }
    #[inline(always)]
    fn join(a: f64, b: f64) -> f64 {
        a + b
    }
    #[inline(always)]
    fn narrow(total: f64) -> f64 {
        total
    }
}
impl Summed for i64 {
    type Total = i64;
    #[inline(always)]
    fn widen(self) -> i64 {
        self
    }
    #[inline(always)]
    fn join(a: i64, b: i64) -> i64 {
        a.wrapping_add(b)
    }
    #[inline(always)]
    fn narrow(total: i64) -> i64 {
        total
    }
}

/// Independent partial sums of one run: enough to keep the adders busy, and to keep errors small.
const LANES: usize = 16;

/// The sum of a contiguous run. Four groups of lanes while there are as many elements, joined to one group; then
/// lane j adds elements j, j + 16, ...; then the lanes pairwise.
struct SumRun<'a, E>(&'a [E]);

impl<E: Summed> Kernel for SumRun<'_, E> {
    type Out = E::Total;
    #[inline(always)]
    fn run(self) -> E::Total {
        const WIDE: usize = 4 * LANES;
        let (wide, rest) = self.0.as_chunks::<WIDE>();
        let mut sums = [E::Total::default(); WIDE];
        for group in wide {
            for (sum, x) in sums.iter_mut().zip(group) {
                *sum = E::join(*sum, x.widen());
            }
        }
        let mut lanes: [E::Total; LANES] = std::array::from_fn(|j| {
            let pair = |j: usize| E::join(sums[j], sums[j + LANES]);
            E::join(pair(j), pair(j + 2 * LANES))
        });
        let (groups, rest) = rest.as_chunks::<LANES>();
        for group in groups {
            for (lane, x) in lanes.iter_mut().zip(group) {
                *lane = E::join(*lane, x.widen());
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *lane = E::join(*lane, x.widen());
        }
        let mut width = LANES / 2;
        while width > 0 {
            for j in 0..width {
                lanes[j] = E::join(lanes[j], lanes[j + width]);
            }
            width /= 2;
        }
        lanes[0]
    }
}

/// Adds `count` rows, `stride` apart, to running totals, element by element.
struct AddRows<'a, E: Summed> {
    totals: &'a mut [E::Total],
    rows: &'a [E],
    stride: usize,
    count: usize,
}

impl<E: Summed> Kernel for AddRows<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run(self) {
        let width = self.totals.len();
        let row = |i: usize| &self.rows[i * self.stride..][..width];
        // Four rows a pass, in order: the totals are loaded and stored once for the four.
        let whole = self.count / 4 * 4;
        for i in (0..whole).step_by(4) {
            let rows = row(i)
                .iter()
                .zip(row(i + 1))
                .zip(row(i + 2))
                .zip(row(i + 3));
            for (total, (((a, b), c), d)) in self.totals.iter_mut().zip(rows) {
                let two = E::join(E::join(*total, a.widen()), b.widen());
                *total = E::join(E::join(two, c.widen()), d.widen());
            }
        }
        for i in whole..self.count {
            for (total, x) in self.totals.iter_mut().zip(row(i)) {
                *total = E::join(*total, x.widen());
            }
        }
    }
}

fn sum_run<E: Summed>(run: &[E]) -> E::Total {
    if run.len() < LANES {
        let mut total = E::Total::default();
        for x in run {
            total = E::join(total, x.widen());
        }
        total
    } else {
        E::sum_run(run)
    }
}

/// Elements that one partial sum covers where a single result is split over threads.
const PART: usize = 32 * 1024;

/// Columns that one task of a column sum covers.
const COLUMNS: usize = 512;

/// The sum over marked axes, dense, of `shape`.
fn sum_marked<E: Summed>(
    op: &'static str,
    t: &Tensor,
    summed: &[bool; MAX_RANK],
    shape: &[usize],
) -> Result<Tensor> {
    let layout = t.layout();
    if t.numel() == 0 {
        return Tensor::build::<E>(op, shape, |_| ());
    }
    let Some(plan) = SumPlan::new(layout, summed) else {
        // Bring the summed axes last, in a copy.
        let [mut order, sum_axes] = [false, true].map(|which| {
            let mut axes = Dims::empty();
            (0..t.rank())
                .filter(|&axis| summed[axis] == which)
                .for_each(|axis| axes.push(axis));
            axes
        });
        let kept = order.len();
        for &axis in sum_axes.iter() {
            order.push(axis);
        }
        let copy = permute_dims(&t.detach(), &order)?.dense(op)?;
        let mut last = [false; MAX_RANK];
        last[kept..order.len()].fill(true);
        return sum_marked::<E>(op, &copy, &last, shape);
    };
    let all = t.storage_slice::<E>(op)?;
    let source = all.get(layout.offset..).unwrap_or(&[]);
    Tensor::build_unset::<E>(op, shape, |out| plan.run(source, out))
}

/// How the elements of a layout are summed over some of its axes.
pub(crate) struct SumPlan {
    kept: Walk<1>,
    over: Walk<1>,
    /// Elements of a result, and how many results.
    count: usize,
    outputs: usize,
    /// Whether runs lie along the summed axes; else along the kept ones.
    runs_over: bool,
}

impl SumPlan {
    /// None where there are no elements, or where no run lies along either kind of axis.
    pub(crate) fn new(layout: &Layout, summed: &[bool; MAX_RANK]) -> Option<SumPlan> {
        // Axes of one kind side by side, each kind in its own order.
        let part = |which: bool| {
            let (mut sizes, mut strides) = (Dims::empty(), Dims::empty());
            for (axis, &size) in layout.shape.iter().enumerate() {
                if summed[axis] == which {
                    sizes.push(size);
                    strides.push(layout.strides[axis]);
                }
            }
            (sizes, strides)
        };
        let (kept_sizes, kept_strides) = part(false);
        let (sum_sizes, sum_strides) = part(true);
        let count: usize = sum_sizes.iter().product();
        let outputs: usize = kept_sizes.iter().product();
        // Offsets are relative, so that both walks add up to an element's place.
        let kept = Walk::new(&kept_sizes, [(&kept_strides, 0)]);
        let over = Walk::new(&sum_sizes, [(&sum_strides, 0)]);
        let runs_over = over.inner_strides() == [1] || count == 1;
        let possible = runs_over || kept.inner_strides() == [1];
        (possible && count > 0 && outputs > 0).then_some(SumPlan {
            kept,
            over,
            count,
            outputs,
            runs_over,
        })
    }

    /// Sums `source`, which begins at the layout's first element, into `out`, one element a result.
    pub(crate) fn sum_f32(&self, source: &[f32], out: &mut [f32]) {
        self.run(source, out);
    }

    fn run<E: Summed>(&self, source: &[E], out: &mut [E]) {
        if self.runs_over {
            self.along_summed(source, out);
        } else {
            self.along_kept(source, out);
        }
    }

    /// Runs lie along the summed axes.
    fn along_summed<E: Summed>(&self, source: &[E], out: &mut [E]) {
        let (count, total) = (self.count, self.count * self.outputs);
        let [kept_stride] = self.kept.inner_strides();
        let partial = |at: usize, range: std::ops::Range<usize>| {
            let mut total = E::Total::default();
            self.over.runs(range, |_, len, [start]| {
                total = E::join(total, sum_run(&source[at + start..][..len]));
            });
            total
        };
        if self.outputs * 4 <= total / PART {
            // Few long sums: split each.
            for (row, o) in out.iter_mut().enumerate() {
                let [at] = self.kept.place(row);
                let parts = map_ranges(count, PART, count, |range| partial(at, range));
                *o = E::narrow(parts.into_iter().fold(E::Total::default(), E::join));
            }
        } else {
            let rows = (PART / count).max(1);
            for_blocks(out, rows, total, |first, block| {
                self.kept
                    .runs(first..first + block.len(), |at, len, [start]| {
                        let sums = &mut block[at - first..at - first + len];
                        for (i, o) in sums.iter_mut().enumerate() {
                            *o = E::narrow(partial(start + i * kept_stride, 0..count));
                        }
                    });
            });
        }
    }

    /// Runs lie along the kept axes: adds rows to running totals.
    fn along_kept<E: Summed>(&self, source: &[E], out: &mut [E]) {
        let (count, total) = (self.count, self.count * self.outputs);
        let width = self.kept.sizes[self.kept.sizes.len() - 1];
        let [over_stride] = self.over.inner_strides();
        let add_rows = |totals: &mut [E::Total], at: usize, range: std::ops::Range<usize>| {
            self.over.runs(range, |_, count, [start]| {
                simd::dispatch(AddRows::<E> {
                    totals: &mut *totals,
                    rows: &source[at + start..],
                    stride: over_stride,
                    count,
                });
            });
        };
        let place = |row: usize| self.kept.place(row * width)[0];
        if self.outputs <= COLUMNS && total >= 4 * PART {
            // Few long columns: split the rows, and join the parts in order.
            let rows = (PART / width).max(1);
            for (row, out) in out.chunks_exact_mut(width).enumerate() {
                let at = place(row);
                let parts = map_ranges(count, rows, total, |range| {
                    let mut totals = vec![E::Total::default(); width];
                    add_rows(&mut totals, at, range);
                    totals
                });
                let mut totals = vec![E::Total::default(); width];
                for part in parts {
                    for (total, x) in totals.iter_mut().zip(part) {
                        *total = E::join(*total, x);
                    }
                }
                for (o, total) in out.iter_mut().zip(totals) {
                    *o = E::narrow(total);
                }
            }
            return;
        }
        let one_row = |row: usize, out: &mut [E], total: usize| {
            let at = place(row);
            for_blocks(out, COLUMNS, total, |first, block| {
                if block.len() <= FEW {
                    let mut totals = [E::Total::default(); FEW];
                    let totals = &mut totals[..block.len()];
                    add_rows(totals, at + first, 0..count);
                    for (o, total) in block.iter_mut().zip(totals) {
                        *o = E::narrow(*total);
                    }
                    return;
                }
                let mut totals = [E::Total::default(); COLUMNS];
                let totals = &mut totals[..block.len()];
                add_rows(totals, at + first, 0..count);
                for (o, total) in block.iter_mut().zip(totals) {
                    *o = E::narrow(*total);
                }
            });
        };
        if self.outputs == width {
            one_row(0, out, total);
        } else {
            for_blocks(out, width, total, |first, block| {
                one_row(first / width, block, 0);
            });
        }
    }
}

/// Columns for which totals of 512 would cost more to clear than to add up.
const FEW: usize = 32;

/// The largest element along `axis`, NaN where there is one; with `keepdims` the axis stays with size 1.
/// The gradient goes to the lowest index that holds it.
///
/// # Errors
/// [`Error::Argument`] for an axis of size 0; [`Error::Axis`]; [`Error::DType`] for bool.
pub fn max(t: &Tensor, axis: isize, keepdims: bool) -> Result<Tensor> {
    const OP: &str = "max";
    let axis = axis_index(OP, axis, t.rank())?;
    let (values, indices) = largest(OP, t, axis, true, tracks(&[t]))?;
    let Some(values) = values else {
        return Err(internal(OP));
    };
    let mut shape = t.layout().shape;
    shape.set(axis, 1);
    let with_ones = shape;
    if !keepdims {
        shape = without(t.shape(), axis);
    }
    if capture::is_recording() {
        let (words, with_indices) = ([axis as u64], indices.is_some());
        let mut made = vec![&values];
        made.extend(&indices);
        capture::note_all(OP, &words, &[t], &made, || {
            move |t: &[Tensor]| {
                let (values, indices) = largest(OP, &t[0], axis, true, with_indices)?;
                Ok(values.into_iter().chain(indices).collect())
            }
        });
    }
    let out = values.view(Layout::dense(OP, &shape)?);
    let Some(indices) = indices else {
        return Ok(out);
    };
    let full = t.layout().shape;
    Ok(record(OP, out, &[t], move |flow| {
        let grad = reshape_to(&flow.grad, &with_ones)?;
        Ok(vec![Some(put_along(OP, &full, &indices, &grad, axis)?)])
    }))
}

/// The i64 index of the largest element along `axis`; the lowest index wins ties, NaN counts as largest.
///
/// # Errors
/// As [`max`].
pub fn argmax(t: &Tensor, axis: isize) -> Result<Tensor> {
    const OP: &str = "argmax";
    let axis = axis_index(OP, axis, t.rank())?;
    let (_, indices) = largest(OP, t, axis, false, true)?;
    let Some(indices) = indices else {
        return Err(internal(OP));
    };
    capture::note(OP, &[axis as u64], &[t], &indices, || {
        move |t: &[Tensor]| {
            largest(OP, &t[0], axis, false, true)?
                .1
                .ok_or_else(|| internal(OP))
        }
    });
    Ok(indices.view(Layout::dense(OP, &without(t.shape(), axis))?))
}

fn internal(op: &'static str) -> Error {
    Error::Internal {
        op,
        problem: "a result that was asked for is missing".into(),
    }
}

/// A shape without one axis.
fn without(shape: &[usize], axis: usize) -> Dims {
    let mut dims = Dims::empty();
    for (i, &size) in shape.iter().enumerate() {
        if i != axis {
            dims.push(size);
        }
    }
    dims
}

/// Values and indices of the largest elements, each with the axis kept at size 1, where wanted.
fn largest(
    op: &'static str,
    t: &Tensor,
    axis: usize,
    values: bool,
    indices: bool,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    if t.shape()[axis] == 0 {
        return Err(Error::argument(
            op,
            format!(
                "axis {axis} of shape {:?} is empty and has no largest element",
                t.shape()
            ),
        ));
    }
    let source = t.dense(op)?;
    match t.dtype() {
        DType::F32 => largest_of::<f32>(op, &source, axis, values, indices),
        DType::F64 => largest_of::<f64>(op, &source, axis, values, indices),
        DType::I64 => largest_of::<i64>(op, &source, axis, values, indices),
        DType::Bool => Err(Error::DType {
            op,
            found: vec![DType::Bool],
            expected: "numbers; cast with astype",
        }),
    }
}

/// Equal, or both NaN.
#[inline(always)]
fn same<E: Number>(a: E, b: E) -> bool {
    let nan = |x: E| x.partial_cmp(&x).is_none();
    a == b || (nan(a) && nan(b))
}

fn largest_of<E: Number>(
    op: &'static str,
    source: &Tensor,
    axis: usize,
    values: bool,
    indices: bool,
) -> Result<(Option<Tensor>, Option<Tensor>)> {
    let Around { size, inner, .. } = Around::new(source.shape(), axis);
    let from = source.data::<E>()?;
    let mut shape = source.layout().shape;
    shape.set(axis, 1);
    let total = from.len();
    // Values first: the index is then the first place that holds the value, found without bookkeeping.
    let best = Tensor::build::<E>(op, &shape, |out| {
        if inner == 1 {
            for_blocks(out, (BLOCK / size).max(1), total, |first, out| {
                let rows = from[first * size..].chunks_exact(size);
                for (o, row) in out.iter_mut().zip(rows) {
                    *o = if size < 2 * LANES {
                        row[1..].iter().fold(row[0], |best, x| best.larger(*x))
                    } else {
                        simd::dispatch(MaxRun(row))
                    };
                }
            });
        } else {
            for_blocks(out, inner, total, |first, out| {
                let rows = &from[first * size..];
                out.copy_from_slice(&rows[..out.len()]);
                simd::dispatch(MaxRows {
                    best: out,
                    rows,
                    size,
                });
            });
        }
    })?;
    let indices = if indices {
        let best = best.data::<E>()?;
        Some(Tensor::build::<i64>(op, &shape, |out| {
            // Whole items of `inner` columns, or several rows where `inner` is 1.
            let block = if inner == 1 { BLOCK / size } else { inner };
            for_blocks(out, block, total, |first, out| {
                let items = out.chunks_mut(inner).zip(best[first..].chunks(inner));
                for (item, (out, best)) in items.enumerate() {
                    let at = (first / inner + item) * size * inner;
                    if inner == 1 {
                        let row = &from[at..at + size];
                        let place = row.iter().position(|x| same(*x, best[0]));
                        out[0] = place.unwrap_or(0) as i64;
                    } else {
                        // From the end, so that the lowest index is written last.
                        for j in (0..size).rev() {
                            let row = &from[at + j * inner..][..inner];
                            for ((o, x), best) in out.iter_mut().zip(row).zip(best) {
                                *o = if same(*x, *best) { j as i64 } else { *o };
                            }
                        }
                    }
                }
            });
        })?)
    } else {
        None
    };
    Ok((values.then_some(best), indices))
}

/// Running maxima over `size` rows as long as `best`, which holds the first row.
struct MaxRows<'a, E> {
    best: &'a mut [E],
    rows: &'a [E],
    size: usize,
}

impl<E: Number> Kernel for MaxRows<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run(self) {
        let width = self.best.len();
        for j in 1..self.size {
            let row = &self.rows[j * width..][..width];
            for (best, x) in self.best.iter_mut().zip(row) {
                *best = best.larger(*x);
            }
        }
    }
}

/// The largest of a contiguous run that is not empty. Which order is used cannot be seen in the result.
struct MaxRun<'a, E>(&'a [E]);

impl<E: Number> Kernel for MaxRun<'_, E> {
    type Out = E;
    #[inline(always)]
    fn run(self) -> E {
        let mut lanes = [self.0[0]; LANES];
        let (groups, rest) = self.0.as_chunks::<LANES>();
        for group in groups {
            for j in 0..LANES {
                lanes[j] = lanes[j].larger(group[j]);
            }
        }
        for (lane, x) in lanes.iter_mut().zip(rest) {
            *lane = lane.larger(*x);
        }
        let mut best = lanes[0];
        for lane in lanes {
            best = best.larger(lane);
        }
        best
    }
}

/// Running sums along `axis`: element i holds the sum of elements 0 to i. f32 runs in f64.
///
/// # Errors
/// [`Error::Axis`]; [`Error::DType`] for bool.
pub fn cumulative_sum(t: &Tensor, axis: isize) -> Result<Tensor> {
    const OP: &str = "cumulative_sum";
    let axis = axis_index(OP, axis, t.rank())?;
    running_sum(OP, t, axis, false)
}

/// [`cumulative_sum`] from either end; each is the other's gradient.
fn running_sum(op: &'static str, t: &Tensor, axis: usize, from_end: bool) -> Result<Tensor> {
    let source = t.dense(op)?;
    let around = Around::new(t.shape(), axis);
    let out = match t.dtype() {
        DType::F32 => running_sum_of::<f32>(op, &source, around, from_end)?,
        DType::F64 => running_sum_of::<f64>(op, &source, around, from_end)?,
        DType::I64 => running_sum_of::<i64>(op, &source, around, from_end)?,
        DType::Bool => {
            return Err(Error::DType {
                op,
                found: vec![DType::Bool],
                expected: "numbers; cast with astype",
            });
        }
    };
    capture::note(op, &[axis as u64, u64::from(from_end)], &[t], &out, || {
        move |t: &[Tensor]| running_sum(op, &t[0], axis, from_end)
    });
    Ok(record(op, out, &[t], move |flow| {
        Ok(vec![Some(running_sum(op, &flow.grad, axis, !from_end)?)])
    }))
}

fn running_sum_of<E: Summed>(
    op: &'static str,
    source: &Tensor,
    around: Around,
    from_end: bool,
) -> Result<Tensor> {
    let from = source.data::<E>()?;
    let Around { size, inner, .. } = around;
    Tensor::build::<E>(op, source.shape(), |out| {
        let total = out.len();
        let item = size * inner;
        for_blocks(out, item, total, |first, out| {
            let from = &from[first..first + out.len()];
            let mut totals = vec![E::Total::default(); inner];
            for j in 0..size {
                let j = if from_end { size - 1 - j } else { j };
                let places = j * inner..(j + 1) * inner;
                for ((o, x), total) in out[places.clone()]
                    .iter_mut()
                    .zip(&from[places])
                    .zip(&mut totals)
                {
                    *total = E::join(*total, x.widen());
                    *o = E::narrow(*total);
                }
            }
        });
    })
}
