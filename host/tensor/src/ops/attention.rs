//! Scaled dot-product attention.

use crate::autograd::{self, Flow, Gradients, record};
use crate::capture;
use crate::dtype::{Element, with_float};
use crate::error::{Error, Result};
use crate::gemm::{Mat, multiply, rows, transposed};
use crate::lanes::{LANES, Real, map_sum, max_of, simd_fn, sum_pairs};
use crate::layout::{Dims, broadcast_shapes, broadcast_strides};
use crate::ops;
use crate::ops::replay::replay;
use crate::ops::rows::one_float_type;
use crate::tensor::Tensor;
use crate::threads::{SERIAL_LIMIT, for_blocks, for_items};

/// softmax(q kT / sqrt(d) + bias) v for q[.., t, d], k[.., s, d], v[.., s, e]: [.., t, e].
///
/// Leading axes broadcast. `bias` broadcasts to [.., t, s] and is added to the scores, so that -inf hides a
/// key from a query. With `causal`, query i sees keys 0 to i only. A query that sees no key by its bias
/// gives NaN. Scores are never kept: the gradient computes them again.
///
/// # Errors
/// [`Error::Shape`] where the sizes do not fit, [`Error::DType`], [`Error::Rank`], [`Error::Budget`].
pub fn scaled_dot_product_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    bias: Option<&Tensor>,
    causal: bool,
) -> Result<Tensor> {
    const OP: &str = "scaled_dot_product_attention";
    let mut parents = vec![q, k, v];
    parents.extend(bias);
    one_float_type(OP, &parents)?;
    let shapes: Vec<&[usize]> = parents.iter().map(|p| p.shape()).collect();
    let refuse = |expected: &str| Err(Error::shape(OP, expected, &shapes));
    let ([lead_q @ .., t, d], [lead_k @ .., s, dk], [lead_v @ .., sv, e]) =
        (q.shape(), k.shape(), v.shape())
    else {
        return refuse("needs queries [.., t, d], keys [.., s, d] and values [.., s, e]");
    };
    if d != dk || s != sv {
        return refuse("needs queries [.., t, d], keys [.., s, d] and values [.., s, e]");
    }
    let lead = broadcast_shapes(lead_q, lead_k).and_then(|l| broadcast_shapes(&l, lead_v));
    let Some(lead) = lead else {
        return refuse("the leading axes of queries, keys and values must broadcast");
    };
    let mut score_shape = lead;
    score_shape.push(*t);
    score_shape.push(*s);
    if bias.is_some_and(|b| broadcast_strides(b.layout(), &score_shape).is_none()) {
        return refuse("the bias must broadcast to [.., t, s]");
    }
    let sizes = Sizes {
        batch: lead.iter().product(),
        t: *t,
        s: *s,
        d: *d,
        e: *e,
        causal,
    };
    let mut out_shape = lead;
    out_shape.push(*t);
    out_shape.push(*e);

    let dense = [
        spread(OP, q, &lead)?,
        spread(OP, k, &lead)?,
        spread(OP, v, &lead)?,
    ];
    let out = with_float!(OP, q.dtype(), T => {
        let [qd, kd, vd] = [dense[0].data::<T>()?, dense[1].data::<T>()?, dense[2].data::<T>()?];
        let bias = Bias::<T>::of(OP, bias, &score_shape)?;
        Tensor::build_unset::<T>(OP, &out_shape, |out| forward(&sizes, qd, kd, vd, &bias, out))?
    });
    let kept: Vec<Tensor> = parents.iter().map(|&p| p.clone()).collect();
    Ok(record(OP, out, &parents, move |flow| {
        if autograd::grad_enabled() {
            let parents: Vec<&Tensor> = kept.iter().collect();
            return replay(flow, &parents, |p| {
                composed(&p[0], &p[1], &p[2], p.get(3), &sizes)
            });
        }
        with_float!(OP, dense[0].dtype(), T => gradients::<T>(OP, flow, &dense, kept.get(3), &sizes, &lead))
    }))
}

#[derive(Clone, Copy)]
struct Sizes {
    batch: usize,
    t: usize,
    s: usize,
    d: usize,
    e: usize,
    causal: bool,
}

impl Sizes {
    /// Queries per block: its scores stay in cache.
    fn block(&self) -> usize {
        ((64 * 1024) / self.s.max(1)).clamp(8, 64)
    }
    /// Keys that queries up to `last` (exclusive) see.
    fn seen(&self, last: usize) -> usize {
        if self.causal {
            self.s.min(last)
        } else {
            self.s
        }
    }
    fn scale<T: Real>(&self) -> T {
        T::of(1.0 / (self.d as f64).sqrt())
    }
}

/// The elements without a graph, contiguous, with the leading axes broadcast.
fn spread(op: &'static str, t: &Tensor, lead: &Dims) -> Result<Tensor> {
    let mut shape = *lead;
    for &size in &t.shape()[t.rank() - 2..] {
        shape.push(size);
    }
    if *t.shape() == *shape {
        t.dense(op)
    } else {
        ops::broadcast_to(&t.detach(), &shape)?.dense(op)
    }
}

/// A bias as the kernels read it: strides of 0 along axes that it is broadcast over.
struct Bias<'a, T> {
    data: &'a [T],
    offset: usize,
    strides: Dims,
    lead: Dims,
}

impl<'a, T: Element + Real> Bias<'a, T> {
    fn of(op: &'static str, bias: Option<&'a Tensor>, shape: &Dims) -> Result<Option<Bias<'a, T>>> {
        let Some(bias) = bias else { return Ok(None) };
        let strides = broadcast_strides(bias.layout(), shape).ok_or_else(|| Error::Internal {
            op,
            problem: "a checked bias stopped broadcasting".into(),
        })?;
        let lead = Dims::new(op, &shape[..shape.len() - 2])?;
        Ok(Some(Bias {
            data: bias.storage_slice::<T>(op)?,
            offset: bias.layout().offset,
            strides,
            lead,
        }))
    }

    /// Where the bias of a batch item's row begins, and the step from key to key.
    fn row(&self, batch: usize, row: usize) -> (&'a [T], usize) {
        let (mut at, mut rest) = (self.offset, batch);
        for axis in (0..self.lead.len()).rev() {
            at += rest % self.lead[axis] * self.strides[axis];
            rest /= self.lead[axis];
        }
        at += row * self.strides[self.lead.len()];
        (&self.data[at..], self.strides[self.lead.len() + 1])
    }
}

/// Probabilities of queries `from..to` of one batch item in `p`, row-major over the keys they see.
fn probabilities<T: Element + Real>(
    g: &Sizes,
    (batch, from, to): (usize, usize, usize),
    q: &[T],
    k: &[T],
    bias: &Option<Bias<T>>,
    p: &mut [T],
) {
    let columns = g.seen(to);
    let q = &q[(batch * g.t + from) * g.d..];
    let k = &k[batch * g.s * g.d..(batch + 1) * g.s * g.d];
    multiply(
        to - from,
        columns,
        g.d,
        rows(q, g.d),
        transposed(k, g.d),
        T::ZERO,
        p,
        columns,
    );
    if columns == 0 {
        return;
    }
    for (i, p) in p.chunks_exact_mut(columns).take(to - from).enumerate() {
        let (bias, step) = match bias {
            Some(bias) => bias.row(batch, from + i),
            None => (&[][..], 0),
        };
        let seen = g.seen(from + i + 1);
        attend(&mut p[..seen], g.scale(), bias, step);
        p[seen..].fill(T::ZERO);
    }
}

simd_fn! {
    /// Scores to probabilities, in place. An empty bias means none.
    fn attend<T>(p: &mut [T], scale: T, bias: &[T], step: usize) {
        if bias.is_empty() {
            for p in p.iter_mut() {
                *p *= scale;
            }
        } else if step == 1 {
            for (p, &b) in p.iter_mut().zip(bias) {
                *p = *p * scale + b;
            }
        } else {
            for (i, p) in p.iter_mut().enumerate() {
                *p = *p * scale + bias[i * step];
            }
        }
        let max = max_of(p);
        let normaliser = T::ONE / map_sum(p, |p| (p - max).fast_exp_low());
        for p in p.iter_mut() {
            *p *= normaliser;
        }
    }
}

fn forward<T: Element + Real>(
    g: &Sizes,
    q: &[T],
    k: &[T],
    v: &[T],
    bias: &Option<Bias<T>>,
    out: &mut [T],
) {
    if out.is_empty() {
        return;
    }
    let block = g.block();
    let per_item = g.t.div_ceil(block);
    let pieces: Vec<&mut [T]> = out
        .chunks_mut(g.t * g.e)
        .flat_map(|item| item.chunks_mut(block * g.e))
        .collect();
    let work = |scratch: &mut Vec<T>, index: usize, out: &mut [T]| {
        let (batch, from) = (index / per_item, index % per_item * block);
        let to = from + out.len() / g.e;
        let columns = g.seen(to);
        scratch.resize(block * g.s, T::ZERO);
        probabilities(g, (batch, from, to), q, k, bias, scratch);
        let v = &v[batch * g.s * g.e..];
        multiply(
            to - from,
            g.e,
            columns,
            rows(scratch, columns),
            rows(v, g.e),
            T::ZERO,
            out,
            g.e,
        );
    };
    let operations = g
        .batch
        .saturating_mul(g.t)
        .saturating_mul(g.s)
        .saturating_mul(g.d + g.e);
    for_items(pieces, operations > SERIAL_LIMIT, Vec::new, work);
}

/// What one batch item's gradient pass writes; the bias's share may be empty.
struct Item<'a, T> {
    dq: &'a mut [T],
    dk: &'a mut [T],
    dv: &'a mut [T],
    ds: &'a mut [T],
}

fn gradients<T: Element + Real>(
    op: &'static str,
    flow: &Flow,
    dense: &[Tensor; 3],
    bias: Option<&Tensor>,
    g: &Sizes,
    lead: &Dims,
) -> Result<Gradients> {
    let dy = flow.grad.dense(op)?;
    let dy = dy.data::<T>()?;
    let [q, k, v] = [
        dense[0].data::<T>()?,
        dense[1].data::<T>()?,
        dense[2].data::<T>()?,
    ];
    let mut score_shape = *lead;
    score_shape.push(g.t);
    score_shape.push(g.s);
    let read_bias = Bias::<T>::of(op, bias, &score_shape)?;
    let with_scores = bias.is_some() && flow.needs(3);
    let ds_shape: Vec<usize> = if with_scores {
        score_shape.to_vec()
    } else {
        vec![0]
    };
    let mut all: Vec<Tensor> = Vec::new();
    let dq = Tensor::try_build::<T>(op, dense[0].shape(), |dq| {
        let dk = Tensor::try_build::<T>(op, dense[1].shape(), |dk| {
            let dv = Tensor::try_build::<T>(op, dense[2].shape(), |dv| {
                let ds = Tensor::build::<T>(op, &ds_shape, |ds| {
                    backward(g, [q, k, v, dy], &read_bias, Item { dq, dk, dv, ds });
                })?;
                all.push(ds);
                Ok(())
            })?;
            all.push(dv);
            Ok(())
        })?;
        all.push(dk);
        Ok(())
    })?;
    all.push(dq);
    all.reverse();
    let mut gradients: Gradients = all.into_iter().map(Some).collect();
    if bias.is_none() {
        gradients.truncate(3);
    } else if !with_scores {
        gradients[3] = None;
    }
    Ok(gradients)
}

fn backward<T: Element + Real>(
    g: &Sizes,
    [q, k, v, dy]: [&[T]; 4],
    bias: &Option<Bias<T>>,
    all: Item<T>,
) {
    if g.batch == 0 || g.t == 0 || g.s == 0 {
        return; // gradients were made as zeros
    }
    let mut items: Vec<Item<T>> = Vec::with_capacity(g.batch);
    let (mut dq, mut dk, mut dv, mut ds) = (all.dq, all.dk, all.dv, all.ds);
    let scores = if ds.is_empty() { 0 } else { g.t * g.s };
    for _ in 0..g.batch {
        let (a, rest) = dq.split_at_mut(g.t * g.d);
        dq = rest;
        let (b, rest) = dk.split_at_mut(g.s * g.d);
        dk = rest;
        let (c, rest) = dv.split_at_mut(g.s * g.e);
        dv = rest;
        let (d, rest) = ds.split_at_mut(scores);
        ds = rest;
        items.push(Item {
            dq: a,
            dk: b,
            dv: c,
            ds: d,
        });
    }
    let block = g.block();
    let work = |scratch: &mut (Vec<T>, Vec<T>), batch: usize, item: Item<T>| {
        scratch.0.resize(block * g.s, T::ZERO);
        scratch.1.resize(block * g.s, T::ZERO);
        let keys = &k[batch * g.s * g.d..(batch + 1) * g.s * g.d];
        let values = &v[batch * g.s * g.e..(batch + 1) * g.s * g.e];
        let mut from = 0;
        while from < g.t {
            let to = (from + block).min(g.t);
            let (n, columns) = (to - from, g.seen(to));
            let p = &mut scratch.0[..n * columns];
            probabilities(g, (batch, from, to), q, k, bias, p);
            let given = &dy[(batch * g.t + from) * g.e..(batch * g.t + to) * g.e];
            let queries = &q[(batch * g.t + from) * g.d..(batch * g.t + to) * g.d];
            // dv += pT dy
            multiply(
                columns,
                g.e,
                n,
                transposed(p, columns),
                rows(given, g.e),
                T::ONE,
                item.dv,
                g.e,
            );
            // dp = dy vT, then ds = p (dp - sum(dp p))
            let dp = &mut scratch.1[..n * columns];
            multiply(
                n,
                columns,
                g.e,
                rows(given, g.e),
                transposed(values, g.e),
                T::ZERO,
                dp,
                columns,
            );
            score_gradients(p, dp, columns);
            if !item.ds.is_empty() {
                for (ds, dp) in item.ds[from * g.s..]
                    .chunks_exact_mut(g.s)
                    .zip(dp.chunks_exact(columns))
                {
                    ds[..columns].copy_from_slice(dp);
                }
            }
            for dp in dp.iter_mut() {
                *dp *= g.scale();
            }
            // dq = ds k, dk += dsT q
            let dq = &mut item.dq[from * g.d..to * g.d];
            multiply(
                n,
                g.d,
                columns,
                rows(dp, columns),
                rows(keys, g.d),
                T::ZERO,
                dq,
                g.d,
            );
            multiply(
                columns,
                g.d,
                n,
                transposed(dp, columns),
                rows(queries, g.d),
                T::ONE,
                item.dk,
                g.d,
            );
            from = to;
        }
    };
    let operations = g
        .batch
        .saturating_mul(g.t)
        .saturating_mul(g.s)
        .saturating_mul(g.d + g.e);
    let fresh = || (Vec::new(), Vec::new());
    for_items(items, operations > SERIAL_LIMIT, fresh, work);
}

simd_fn! {
    fn score_gradients<T>(p: &[T], dp: &mut [T], columns: usize) {
        for (p, dp) in p.chunks_exact(columns).zip(dp.chunks_exact_mut(columns)) {
            let dot = sum_pairs(p, dp, |p, dp| p * dp);
            for (dp, &p) in dp.iter_mut().zip(p) {
                *dp = p * (*dp - dot);
            }
        }
    }
}

/// Self-attention of `qkv[n, t, 3 f]`, which holds queries, keys and values side by side, each `heads` times
/// f / heads wide: [n, t, f], heads side by side. The kernels read heads where they lie.
///
/// # Errors
/// [`Error::Shape`] where the last axis is not three times a multiple of `heads`; [`Error::DType`],
/// [`Error::Budget`].
pub(crate) fn self_attention(qkv: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    const OP: &str = "self_attention";
    one_float_type(OP, &[qkv])?;
    let &[n, t, stacked] = qkv.shape() else {
        return Err(Error::shape(OP, "needs [n, t, 3 f]", &[qkv.shape()]));
    };
    if heads == 0 || stacked % (3 * heads) != 0 {
        return Err(Error::shape(
            OP,
            format!("the last axis must be 3 times a multiple of the {heads} heads"),
            &[qkv.shape()],
        ));
    }
    let packed = Packed {
        n,
        heads,
        sizes: Sizes {
            batch: n * heads,
            t,
            s: t,
            d: stacked / (3 * heads),
            e: stacked / (3 * heads),
            causal,
        },
    };
    let source = qkv.dense(OP)?;
    let out = with_float!(OP, qkv.dtype(), T => {
        let data = source.data::<T>()?;
        Tensor::build_unset::<T>(OP, &[n, t, stacked / 3], |out| packed.forward(data, out))?
    });
    let words = [heads as u64, u64::from(causal)];
    capture::note(OP, &words, &[qkv], &out, || {
        move |t: &[Tensor]| self_attention(&t[0], heads, causal)
    });
    let kept = qkv.clone();
    Ok(record(OP, out, &[qkv], move |flow| {
        if autograd::grad_enabled() {
            return replay(flow, &[&kept], |p| packed.composed(&p[0]));
        }
        Ok(vec![Some(packed.gradient(&source, &flow.grad)?)])
    }))
}

/// Sizes of [`self_attention`]; one item of the batch is a head of a sample.
#[derive(Clone, Copy)]
struct Packed {
    n: usize,
    heads: usize,
    sizes: Sizes,
}

impl Packed {
    /// The gradient with respect to the dense `qkv` for the cotangent `dy`.
    fn gradient(self, qkv: &Tensor, dy: &Tensor) -> Result<Tensor> {
        const OP: &str = "self_attention";
        let (source, given) = (qkv.dense(OP)?, dy.dense(OP)?);
        let out = with_float!(OP, source.dtype(), T => {
            let (data, dy) = (source.data::<T>()?, given.data::<T>()?);
            Tensor::build_unset::<T>(OP, source.shape(), |out| self.backward(data, dy, out))?
        });
        let words = [self.heads as u64, u64::from(self.sizes.causal)];
        capture::note("self_attention_back", &words, &[qkv, dy], &out, || {
            move |t: &[Tensor]| self.gradient(&t[0], &t[1])
        });
        Ok(out)
    }

    fn features(&self) -> usize {
        self.heads * self.sizes.d
    }

    /// Queries (0), keys (1) or values (2) of a head, from row `from` on.
    fn part<'a, T>(&self, data: &'a [T], item: usize, which: usize, from: usize) -> Mat<'a, T> {
        let (sample, head, f) = (item / self.heads, item % self.heads, self.features());
        let at = (sample * self.sizes.t + from) * 3 * f + which * f + head * self.sizes.d;
        Mat {
            data: &data[at..],
            row: 3 * f,
            column: 1,
        }
    }

    /// From one row of scores to the next: whole vectors.
    fn row(&self, columns: usize) -> usize {
        columns.next_multiple_of(LANES)
    }

    /// Probabilities of queries `from..to` of an item in `p`, whose rows are [`row`](Self::row) apart; 0 where a
    /// query does not see a key and past the last key.
    fn probabilities<T: Real>(&self, data: &[T], item: usize, [from, to]: [usize; 2], p: &mut [T]) {
        let g = &self.sizes;
        let columns = g.seen(to);
        let row = self.row(columns);
        let keys = self.part(data, item, 1, 0);
        let turned = Mat {
            data: keys.data,
            row: keys.column,
            column: keys.row,
        };
        let queries = self.part(data, item, 0, from);
        multiply(to - from, columns, g.d, queries, turned, T::ZERO, p, row);
        for (i, p) in p.chunks_exact_mut(row).take(to - from).enumerate() {
            // Up to a whole vector, with keys of score -inf: they have no share.
            let seen = g.seen(from + i + 1);
            let whole = self.row(seen);
            p[seen..whole].fill(T::NEG_INFINITY);
            attend(&mut p[..whole], g.scale(), &[], 0);
            p[seen..].fill(T::ZERO);
        }
    }

    /// Multiply-adds of a pass, as a measure of whether threads pay.
    fn work(&self) -> usize {
        let g = &self.sizes;
        (g.batch * g.t).saturating_mul(g.s).saturating_mul(2 * g.d)
    }

    fn forward<T: Element + Real>(&self, data: &[T], out: &mut [T]) {
        let g = &self.sizes;
        if out.is_empty() {
            return;
        }
        // Head by head, then side by side: a head's rows are not one slice of the output.
        let mut mixed = vec![T::ZERO; out.len()];
        for_blocks(&mut mixed, g.t * g.d, self.work(), |first, mixed| {
            let item = first / (g.t * g.d);
            let mut scratch = vec![T::ZERO; g.block() * self.row(g.s)];
            for from in (0..g.t).step_by(g.block()) {
                let to = (from + g.block()).min(g.t);
                self.probabilities(data, item, [from, to], &mut scratch);
                let columns = g.seen(to);
                let values = self.part(data, item, 2, 0);
                let (p, out) = (rows(&scratch, self.row(columns)), &mut mixed[from * g.d..]);
                multiply(to - from, g.d, columns, p, values, T::ZERO, out, g.d);
            }
        });
        let f = self.features();
        for_blocks(out, g.t * f, out.len(), |first, out| {
            let sample = first / (g.t * f);
            for head in 0..self.heads {
                let item = &mixed[(sample * self.heads + head) * g.t * g.d..];
                for (out, from) in out.chunks_exact_mut(f).zip(item.chunks_exact(g.d)) {
                    out[head * g.d..(head + 1) * g.d].copy_from_slice(from);
                }
            }
        });
    }

    fn backward<T: Element + Real>(&self, data: &[T], dy: &[T], out: &mut [T]) {
        let g = &self.sizes;
        if out.is_empty() {
            return;
        }
        let (f, size) = (self.features(), g.t * g.d);
        let mut parts = vec![T::ZERO; out.len()];
        for_blocks(&mut parts, 3 * size, 2 * self.work(), |first, parts| {
            let item = first / (3 * size);
            let (dq, rest) = parts.split_at_mut(size);
            let (dk, dv) = rest.split_at_mut(size);
            let mut scratch = vec![T::ZERO; 2 * g.block() * self.row(g.s)];
            let (p, dp) = scratch.split_at_mut(g.block() * self.row(g.s));
            for from in (0..g.t).step_by(g.block()) {
                let to = (from + g.block()).min(g.t);
                let (n, columns) = (to - from, g.seen(to));
                let row = self.row(columns);
                self.probabilities(data, item, [from, to], p);
                let at = (item / self.heads * g.t + from) * f + item % self.heads * g.d;
                let given = Mat {
                    data: &dy[at..],
                    row: f,
                    column: 1,
                };
                // dv += pT dy; dp = dy vT; ds = p (dp - sum(dp p)); dq = ds k; dk += dsT q
                let turned = transposed(p, row);
                multiply(columns, g.d, n, turned, given, T::ONE, dv, g.d);
                let values = self.part(data, item, 2, 0);
                let values = Mat {
                    data: values.data,
                    row: values.column,
                    column: values.row,
                };
                multiply(n, columns, g.d, given, values, T::ZERO, dp, row);
                let dp = &mut dp[..n * row];
                for dp in dp.chunks_exact_mut(row) {
                    dp[columns..].fill(T::ZERO);
                }
                score_gradients(&p[..n * row], dp, row);
                for dp in dp.iter_mut() {
                    *dp *= g.scale();
                }
                let keys = self.part(data, item, 1, 0);
                let queries = self.part(data, item, 0, from);
                let dq = &mut dq[from * g.d..];
                multiply(n, g.d, columns, rows(dp, row), keys, T::ZERO, dq, g.d);
                multiply(
                    columns,
                    g.d,
                    n,
                    transposed(dp, row),
                    queries,
                    T::ONE,
                    dk,
                    g.d,
                );
            }
        });
        for_blocks(out, g.t * 3 * f, out.len(), |first, out| {
            let sample = first / (g.t * 3 * f);
            for head in 0..self.heads {
                let item = &parts[(sample * self.heads + head) * 3 * size..][..3 * size];
                for (which, part) in item.chunks_exact(size).enumerate() {
                    let at = which * f + head * g.d;
                    for (out, from) in out.chunks_exact_mut(3 * f).zip(part.chunks_exact(g.d)) {
                        out[at..at + g.d].copy_from_slice(from);
                    }
                }
            }
        });
    }

    /// The same from primitive operations.
    fn composed(&self, qkv: &Tensor) -> Result<Tensor> {
        let g = &self.sizes;
        let shape = [self.n, g.t, 3, self.heads, g.d].map(|size| size as i64);
        let apart = ops::permute_dims(&ops::reshape(qkv, &shape)?, &[2, 0, 3, 1, 4])?;
        let part = |at: isize| {
            let shape = [self.n, self.heads, g.t, g.d].map(|size| size as i64);
            ops::reshape(&ops::slice(&apart, 0, at, at + 1)?, &shape)
        };
        let mixed = composed(&part(0)?, &part(1)?, &part(2)?, None, g)?;
        let shape = [self.n, g.t, self.features()].map(|size| size as i64);
        ops::reshape(&ops::permute_dims(&mixed, &[0, 2, 1, 3])?, &shape)
    }
}

/// The same from primitive operations.
fn composed(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    bias: Option<&Tensor>,
    g: &Sizes,
) -> Result<Tensor> {
    let mut order: Vec<usize> = (0..k.rank()).collect();
    order.swap(k.rank() - 2, k.rank() - 1);
    let scores = ops::matmul(q, &ops::permute_dims(k, &order)?)?;
    let mut scores = ops::multiply(&scores, g.scale::<f64>())?;
    if let Some(bias) = bias {
        scores = ops::add(&scores, bias)?;
    }
    if g.causal {
        let seen: Vec<bool> = (0..g.t * g.s).map(|i| i % g.s <= i / g.s).collect();
        let seen = Tensor::from_vec(seen, &[g.t, g.s])?;
        scores = ops::where_(&seen, &scores, f64::NEG_INFINITY)?;
    }
    ops::matmul(&ops::softmax(&scores, -1)?, v)
}
