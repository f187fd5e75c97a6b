//! Recurrent layers over whole series: each sample's steps run in order, blocks of samples in parallel.

use crate::autograd::{self, record};
use crate::dtype::{DType, Element, with_float};
use crate::error::{Error, Result};
use crate::gemm::{Mat, multiply, transposed};
use crate::lanes::{Real, simd_fn};
use crate::ops;
use crate::ops::replay::replay;
use crate::ops::rows::one_float_type;
use crate::tensor::Tensor;
use crate::{nn, threads};

/// Sizes of one call, checked: samples, steps, features, hidden units.
#[derive(Clone, Copy)]
struct Sizes {
    n: usize,
    t: usize,
    h: usize,
}

impl Sizes {
    /// Samples per task: from shapes alone.
    fn block(&self) -> usize {
        self.n.div_ceil(8).clamp(4, 64)
    }
}

fn checked(op: &'static str, gates: usize, parents: &[&Tensor]) -> Result<Sizes> {
    one_float_type(op, parents)?;
    let shapes: Vec<&[usize]> = parents.iter().map(|p| p.shape()).collect();
    let (&[n, t, f], &[rows, columns], &[recurrent, h]) = (shapes[0], shapes[1], shapes[2]) else {
        let expected = "needs an input [n, t, f] and two weights of rank 2";
        return Err(Error::shape(op, expected, &shapes));
    };
    let size = h.saturating_mul(gates);
    if columns != f || rows != size || recurrent != size {
        let expected =
            format!("the weights must be [{gates} h, {f}] and [{gates} h, h], here h = {h}");
        return Err(Error::shape(op, expected, &shapes));
    }
    if shapes[3..].iter().any(|s| **s != [size]) {
        return Err(Error::shape(
            op,
            format!("a bias must be [{gates} h] = [{size}]"),
            &shapes,
        ));
    }
    Ok(Sizes { n, t, h })
}

/// The list of those parents that exist, the two biases last.
fn parents_of<'a>(
    x: &'a Tensor,
    w_ih: &'a Tensor,
    w_hh: &'a Tensor,
    b_ih: Option<&'a Tensor>,
    b_hh: Option<&'a Tensor>,
) -> Vec<&'a Tensor> {
    let mut parents = vec![x, w_ih, w_hh];
    parents.extend(b_ih);
    parents.extend(b_hh);
    parents
}

/// The sum of the biases that exist.
fn joint_bias(biases: &[&Tensor]) -> Result<Option<Tensor>> {
    match biases {
        [] => Ok(None),
        [one] => Ok(Some((*one).clone())),
        [one, two, ..] => Ok(Some(ops::add(*one, *two)?)),
    }
}

/// Gradients of x, the weights and the biases from those of the pre-activations, `dz[n, t, rows]`.
fn through_products(
    dz: &Tensor,
    parents: &[Tensor],
    y: &Tensor,
    g: &Sizes,
) -> Result<autograd::Gradients> {
    let rows = dz.shape()[2] as i64;
    let flat = ops::reshape(dz, &[-1, rows.max(1)])?;
    let flat_t = ops::permute_dims(&flat, &[1, 0])?;
    let dx = nn::linear(
        dz,
        &ops::permute_dims(&parents[1].on_the_way_back(), &[1, 0])?,
        None,
    )?;
    let f = parents[0].shape()[2];
    let x = ops::reshape(
        &parents[0].on_the_way_back().detach().contiguous()?,
        &[(g.n * g.t) as i64, f as i64],
    )?;
    let dw_ih = ops::matmul(&flat_t, &x)?;
    let dw_hh = if g.t > 1 {
        let last = g.t as isize;
        let later = ops::slice(dz, 1, 1, last)?.contiguous()?;
        let earlier = ops::slice(y, 1, 0, last - 1)?.contiguous()?;
        let later = ops::reshape(&later, &[-1, rows.max(1)])?;
        let earlier = ops::reshape(&earlier, &[-1, g.h.max(1) as i64])?;
        ops::matmul(&ops::permute_dims(&later, &[1, 0])?, &earlier)?
    } else {
        Tensor::zeros(parents[2].shape(), dz.dtype())?
    };
    let mut gradients = vec![Some(dx), Some(dw_ih), Some(dw_hh)];
    if parents.len() > 3 {
        let db = ops::sum(&flat, &[0], false)?;
        gradients.resize(parents.len(), Some(db));
    }
    Ok(gradients)
}

/// Outputs [n, t, h] of a long short-term memory (Hochreiter and Schmidhuber 1997, with forget gates) over
/// `x[n, t, f]`, from a state of zeros.
///
/// Weights `w_ih[4 h, f]`, `w_hh[4 h, h]` and biases [4 h] hold the gates in the order input, forget, cell,
/// output, as PyTorch's do.
///
/// # Errors
/// [`Error::Shape`] where the sizes do not fit, [`Error::DType`], [`Error::Budget`].
pub fn lstm(
    x: &Tensor,
    w_ih: &Tensor,
    w_hh: &Tensor,
    b_ih: Option<&Tensor>,
    b_hh: Option<&Tensor>,
) -> Result<Tensor> {
    const OP: &str = "lstm";
    let parents = parents_of(x, w_ih, w_hh, b_ih, b_hh);
    let g = checked(OP, 4, &parents)?;
    if g.n * g.t * g.h == 0 {
        return empty(OP, &parents, &g, x.dtype());
    }
    let (gates, cells, y) = {
        let _off = autograd::no_grad();
        let bias = joint_bias(&parents[3..])?;
        let mut z = nn::linear(&x.detach(), &w_ih.detach(), bias.as_ref())?;
        let w = w_hh.dense(OP)?;
        let (cells, y) = with_float!(OP, x.dtype(), T => {
            let w = w.data::<T>()?;
            let z = z.data_mut::<T>().ok_or_else(|| shared(OP))?;
            both::<T>(OP, &[g.n, g.t, g.h], |cells, y| {
                let size = g.block() * g.t * g.h;
                let tasks: Vec<_> = z
                    .chunks_mut(4 * size)
                    .zip(cells.chunks_mut(size))
                    .zip(y.chunks_mut(size))
                    .collect();
                run(tasks, &g, 4, |((z, cells), y)| lstm_block(&g, w, z, cells, y));
            })?
        });
        (z, cells, y)
    };
    let kept: Vec<Tensor> = parents.iter().map(|&p| p.clone()).collect();
    let outputs = y.clone();
    Ok(record(OP, y, &parents, move |flow| {
        if autograd::grad_enabled() {
            let parents: Vec<&Tensor> = kept.iter().collect();
            return replay(flow, &parents, |p| composed_lstm(p, &g));
        }
        let w = kept[2].on_the_way_back().dense(OP)?;
        let dy = flow.grad.dense(OP)?;
        let dz = with_float!(OP, dy.dtype(), T => {
            let (w, dy) = (w.data::<T>()?, dy.data::<T>()?);
            let (gates, cells) = (gates.data::<T>()?, cells.data::<T>()?);
            Tensor::build::<T>(OP, &[g.n, g.t, 4 * g.h], |dz| {
                let size = g.block() * g.t * g.h;
                let tasks: Vec<_> = dz
                    .chunks_mut(4 * size)
                    .zip(gates.chunks(4 * size))
                    .zip(cells.chunks(size))
                    .zip(dy.chunks(size))
                    .collect();
                run(tasks, &g, 4, |(((dz, gates), cells), dy)| lstm_block_back(&g, w, gates, cells, dy, dz));
            })?
        });
        through_products(&dz, &kept, &outputs, &g)
    }))
}

/// Outputs [n, t, h] of a simple recurrent network, h_t = tanh(w_ih x_t + b_ih + w_hh h_(t-1) + b_hh), over
/// `x[n, t, f]` from a state of zeros (Elman 1990). Weights `w_ih[h, f]`, `w_hh[h, h]`, biases `[h]`.
///
/// # Errors
/// As [`lstm`].
pub fn rnn(
    x: &Tensor,
    w_ih: &Tensor,
    w_hh: &Tensor,
    b_ih: Option<&Tensor>,
    b_hh: Option<&Tensor>,
) -> Result<Tensor> {
    const OP: &str = "rnn";
    let parents = parents_of(x, w_ih, w_hh, b_ih, b_hh);
    let g = checked(OP, 1, &parents)?;
    if g.n * g.t * g.h == 0 {
        return empty(OP, &parents, &g, x.dtype());
    }
    let y = {
        let _off = autograd::no_grad();
        let bias = joint_bias(&parents[3..])?;
        let mut z = nn::linear(&x.detach(), &w_ih.detach(), bias.as_ref())?;
        let w = w_hh.dense(OP)?;
        with_float!(OP, x.dtype(), T => {
            let w = w.data::<T>()?;
            let z = z.data_mut::<T>().ok_or_else(|| shared(OP))?;
            Tensor::build::<T>(OP, &[g.n, g.t, g.h], |y| {
                let size = g.block() * g.t * g.h;
                let tasks: Vec<_> = z.chunks_mut(size).zip(y.chunks_mut(size)).collect();
                run(tasks, &g, 1, |(z, y)| rnn_block(&g, w, z, y));
            })?
        })
    };
    let kept: Vec<Tensor> = parents.iter().map(|&p| p.clone()).collect();
    let outputs = y.clone();
    Ok(record(OP, y, &parents, move |flow| {
        if autograd::grad_enabled() {
            let parents: Vec<&Tensor> = kept.iter().collect();
            return replay(flow, &parents, |p| composed_rnn(p, &g));
        }
        let w = kept[2].on_the_way_back().dense(OP)?;
        let dy = flow.grad.dense(OP)?;
        let dz = with_float!(OP, dy.dtype(), T => {
            let (w, dy, y) = (w.data::<T>()?, dy.data::<T>()?, outputs.data::<T>()?);
            Tensor::build::<T>(OP, &[g.n, g.t, g.h], |dz| {
                let size = g.block() * g.t * g.h;
                let tasks: Vec<_> =
                    dz.chunks_mut(size).zip(y.chunks(size)).zip(dy.chunks(size)).collect();
                run(tasks, &g, 1, |((dz, y), dy)| rnn_block_back(&g, w, y, dy, dz));
            })?
        });
        through_products(&dz, &kept, &outputs, &g)
    }))
}

fn shared(op: &'static str) -> Error {
    Error::Internal {
        op,
        problem: "a tensor just made is shared".into(),
    }
}

/// No samples, steps or units: nothing to compute, and every gradient is zero.
fn empty(op: &'static str, parents: &[&Tensor], g: &Sizes, dtype: DType) -> Result<Tensor> {
    let y = Tensor::zeros_for(op, &[g.n, g.t, g.h], dtype)?;
    let count = parents.len();
    Ok(record(op, y, parents, move |_| Ok(vec![None; count])))
}

/// Two tensors of one shape, filled together.
fn both<T: Element>(
    op: &'static str,
    shape: &[usize],
    fill: impl FnOnce(&mut [T], &mut [T]),
) -> Result<(Tensor, Tensor)> {
    let mut second = None;
    let first = Tensor::try_build::<T>(op, shape, |a| {
        second = Some(Tensor::build::<T>(op, shape, |b| fill(a, b))?);
        Ok(())
    })?;
    second
        .map(|second| (first, second))
        .ok_or_else(|| Error::Internal {
            op,
            problem: "the second result was not made".into(),
        })
}

/// Runs tasks over blocks of samples, in the pool where the work is worth it.
fn run<A: Send>(tasks: Vec<A>, g: &Sizes, gates: usize, work: impl Fn(A) + Sync + Send) {
    let operations = (g.n * g.t * g.h).saturating_mul(gates * g.h);
    let threaded = operations > threads::SERIAL_LIMIT;
    threads::for_items(tasks, threaded, || (), |(), _, task| work(task));
}

/// Steps of one block of samples: `z` holds the input's share of the gates and leaves as their values.
fn lstm_block<T: Real>(g: &Sizes, w: &[T], z: &mut [T], cells: &mut [T], y: &mut [T]) {
    let (n, h) = (y.len() / (g.t * g.h), g.h);
    for t in 0..g.t {
        if t > 0 {
            let before = Mat {
                data: &y[(t - 1) * h..],
                row: g.t * h,
                column: 1,
            };
            multiply(
                n,
                4 * h,
                h,
                before,
                transposed(w, h),
                T::ONE,
                &mut z[t * 4 * h..],
                g.t * 4 * h,
            );
        }
        for i in 0..n {
            let at = (i * g.t + t) * h;
            let (past, now) = cells.split_at_mut(at);
            let past = if t > 0 { &past[at - h..] } else { &[] };
            lstm_cell(
                &mut z[4 * at..4 * (at + h)],
                past,
                &mut now[..h],
                &mut y[at..at + h],
            );
        }
    }
}

simd_fn! {
    /// One step of one sample; an empty past means a cell of zeros.
    fn lstm_cell<T>(z: &mut [T], past: &[T], cell: &mut [T], y: &mut [T]) {
        let h = cell.len();
        let (input, rest) = z.split_at_mut(h);
        let (forget, rest) = rest.split_at_mut(h);
        let (candidate, output) = rest.split_at_mut(h);
        for v in input.iter_mut().chain(forget.iter_mut()).chain(output.iter_mut()) {
            *v = (*v).fast_sigmoid();
        }
        for v in candidate.iter_mut() {
            *v = (*v).fast_tanh();
        }
        for j in 0..h {
            let kept = if past.is_empty() { T::ZERO } else { forget[j] * past[j] };
            cell[j] = kept + input[j] * candidate[j];
            y[j] = output[j] * cell[j].fast_tanh();
        }
    }
}

fn lstm_block_back<T: Real>(g: &Sizes, w: &[T], gates: &[T], cells: &[T], dy: &[T], dz: &mut [T]) {
    let (n, h) = (dy.len() / (g.t * g.h), g.h);
    let mut dh = vec![T::ZERO; n * h];
    let mut dc = vec![T::ZERO; n * h];
    for t in (0..g.t).rev() {
        // dh = dy_t + dz_(t+1) w_hh
        for (i, dh) in dh.chunks_exact_mut(h).enumerate() {
            dh.copy_from_slice(&dy[(i * g.t + t) * h..][..h]);
        }
        if t + 1 < g.t {
            let after = Mat {
                data: &dz[(t + 1) * 4 * h..],
                row: g.t * 4 * h,
                column: 1,
            };
            multiply(
                n,
                h,
                4 * h,
                after,
                Mat {
                    data: w,
                    row: h,
                    column: 1,
                },
                T::ONE,
                &mut dh,
                h,
            );
        }
        for i in 0..n {
            let at = (i * g.t + t) * h;
            let past = if t > 0 { &cells[at - h..at] } else { &[] };
            lstm_cell_back(
                &gates[4 * at..4 * (at + h)],
                past,
                &cells[at..at + h],
                &dh[i * h..(i + 1) * h],
                &mut dc[i * h..(i + 1) * h],
                &mut dz[4 * at..4 * (at + h)],
            );
        }
    }
}

simd_fn! {
    /// One step back: `dc` comes as the cell's gradient from the later step and leaves for the earlier one.
    fn lstm_cell_back<T>(gates: &[T], past: &[T], cell: &[T], dh: &[T], dc: &mut [T], dz: &mut [T]) {
        let h = cell.len();
        let (input, rest) = gates.split_at(h);
        let (forget, rest) = rest.split_at(h);
        let (candidate, output) = rest.split_at(h);
        let (d_input, rest) = dz.split_at_mut(h);
        let (d_forget, rest) = rest.split_at_mut(h);
        let (d_candidate, d_output) = rest.split_at_mut(h);
        for j in 0..h {
            let (i, f, c, o) = (input[j], forget[j], candidate[j], output[j]);
            let tanh = cell[j].fast_tanh();
            let d = dc[j] + dh[j] * o * (T::ONE - tanh * tanh);
            let past = if past.is_empty() { T::ZERO } else { past[j] };
            d_input[j] = d * c * i * (T::ONE - i);
            d_forget[j] = d * past * f * (T::ONE - f);
            d_candidate[j] = d * i * (T::ONE - c * c);
            d_output[j] = dh[j] * tanh * o * (T::ONE - o);
            dc[j] = d * f;
        }
    }
}

fn rnn_block<T: Real>(g: &Sizes, w: &[T], z: &mut [T], y: &mut [T]) {
    let (n, h) = (y.len() / (g.t * g.h), g.h);
    for t in 0..g.t {
        if t > 0 {
            let before = Mat {
                data: &y[(t - 1) * h..],
                row: g.t * h,
                column: 1,
            };
            multiply(
                n,
                h,
                h,
                before,
                transposed(w, h),
                T::ONE,
                &mut z[t * h..],
                g.t * h,
            );
        }
        for i in 0..n {
            let at = (i * g.t + t) * h;
            tanh_into(&z[at..at + h], &mut y[at..at + h]);
        }
    }
}

simd_fn! {
    fn tanh_into<T>(z: &[T], y: &mut [T]) {
        for (y, &z) in y.iter_mut().zip(z) {
            *y = z.fast_tanh();
        }
    }
}

fn rnn_block_back<T: Real>(g: &Sizes, w: &[T], y: &[T], dy: &[T], dz: &mut [T]) {
    let (n, h) = (dy.len() / (g.t * g.h), g.h);
    let mut dh = vec![T::ZERO; n * h];
    for t in (0..g.t).rev() {
        for (i, dh) in dh.chunks_exact_mut(h).enumerate() {
            dh.copy_from_slice(&dy[(i * g.t + t) * h..][..h]);
        }
        if t + 1 < g.t {
            let after = Mat {
                data: &dz[(t + 1) * h..],
                row: g.t * h,
                column: 1,
            };
            multiply(
                n,
                h,
                h,
                after,
                Mat {
                    data: w,
                    row: h,
                    column: 1,
                },
                T::ONE,
                &mut dh,
                h,
            );
        }
        for i in 0..n {
            let at = (i * g.t + t) * h;
            for j in 0..h {
                let y = y[at + j];
                dz[at + j] = dh[i * h + j] * (T::ONE - y * y);
            }
        }
    }
}

/// The input's share of the pre-activations, [n, t, rows], and the recurrent weight, tracked.
fn input_share(p: &[Tensor]) -> Result<(Tensor, &Tensor)> {
    let biases: Vec<&Tensor> = p[3..].iter().collect();
    let bias = joint_bias(&biases)?;
    Ok((nn::linear(&p[0], &p[1], bias.as_ref())?, &p[2]))
}

/// Step `t` of a [n, t, rows] tensor as [n, rows].
fn step_of(z: &Tensor, t: usize) -> Result<Tensor> {
    let (n, rows) = (z.shape()[0] as i64, z.shape()[2] as i64);
    ops::reshape(&ops::slice(z, 1, t as isize, t as isize + 1)?, &[n, rows])
}

/// [n, h] tensors, one a step, as [n, t, h].
fn over_time(steps: Vec<Tensor>, g: &Sizes) -> Result<Tensor> {
    let shape = [g.n as i64, 1, g.h as i64];
    let steps = steps
        .iter()
        .map(|s| ops::reshape(s, &shape))
        .collect::<Result<Vec<_>>>()?;
    let steps: Vec<&Tensor> = steps.iter().collect();
    ops::concat(&steps, 1)
}

fn composed_lstm(p: &[Tensor], g: &Sizes) -> Result<Tensor> {
    let (z, w) = input_share(p)?;
    let mut state: Option<(Tensor, Tensor)> = None;
    let mut outputs = Vec::with_capacity(g.t);
    for t in 0..g.t {
        let mut z = step_of(&z, t)?;
        if let Some((h, _)) = &state {
            z = ops::add(&z, &nn::linear(h, w, None)?)?;
        }
        let size = g.h as isize;
        let gate = |i: isize| ops::slice(&z, 1, i * size, (i + 1) * size);
        let mut cell = ops::multiply(&ops::sigmoid(&gate(0)?)?, &ops::tanh(&gate(2)?)?)?;
        if let Some((_, c)) = &state {
            cell = ops::add(&cell, &ops::multiply(&ops::sigmoid(&gate(1)?)?, c)?)?;
        }
        let h = ops::multiply(&ops::sigmoid(&gate(3)?)?, &ops::tanh(&cell)?)?;
        outputs.push(h.clone());
        state = Some((h, cell));
    }
    over_time(outputs, g)
}

fn composed_rnn(p: &[Tensor], g: &Sizes) -> Result<Tensor> {
    let (z, w) = input_share(p)?;
    let mut outputs: Vec<Tensor> = Vec::with_capacity(g.t);
    for t in 0..g.t {
        let mut z = step_of(&z, t)?;
        if let Some(h) = outputs.last() {
            z = ops::add(&z, &nn::linear(h, w, None)?)?;
        }
        outputs.push(ops::tanh(&z)?);
    }
    over_time(outputs, g)
}
