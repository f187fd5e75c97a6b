//! What a model's layers need as one operation each: fused where that saves passes over memory,
//! composed from [`crate::ops`] where it does not. All are differentiable to any order.

use crate::autograd::record;
use crate::capture;
use crate::dtype::{DType, with_float};
use crate::error::{Error, Result};
use crate::layout::MAX_RANK;
use crate::ops;
use crate::ops::matmul::{rows_times, times_transposed};
use crate::ops::rows::{one_float_type, signed};
use crate::random::{self, Key};
use crate::tensor::Tensor;

pub use crate::ops::cache::{KeyValueCache, Query};
pub use crate::ops::recurrent::{lstm, rnn};

/// `x[.., in]` times the transpose of `w[out, in]`, plus `bias[out]`: [.., out].
///
/// # Errors
/// [`Error::Shape`] where the sizes do not fit, [`Error::DType`], [`Error::Budget`].
pub fn linear(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    const OP: &str = "linear";
    let all = [x, w, bias.unwrap_or(w)];
    let parents = &all[..if bias.is_some() { 3 } else { 2 }];
    let shapes = || -> Vec<&[usize]> { parents.iter().map(|p| p.shape()).collect() };
    let (Some(&inputs), &[outputs, w_inputs]) = (x.shape().last(), w.shape()) else {
        return Err(Error::shape(
            OP,
            "needs an input [.., in] and a weight [out, in]",
            &shapes(),
        ));
    };
    if w_inputs != inputs {
        return Err(Error::shape(
            OP,
            format!("the weight must be [out, {inputs}]"),
            &shapes(),
        ));
    }
    if bias.is_some_and(|b| b.shape() != [outputs]) {
        return Err(Error::shape(
            OP,
            format!("the bias must be [{outputs}]"),
            &shapes(),
        ));
    }
    one_float_type(OP, parents)?;
    let mut shape = x.layout().shape;
    shape.set(x.rank() - 1, outputs);
    let out = with_float!(OP, x.dtype(), T => {
        let (xd, wd) = (x.dense(OP)?, w.dense(OP)?);
        let bias = bias.map(|b| b.dense(OP)).transpose()?;
        let (xd, wd) = (xd.data::<T>()?, wd.data::<T>()?);
        let bias = bias.as_ref().map(|b| b.data::<T>()).transpose()?;
        Tensor::build_unset::<T>(OP, &shape, |y| {
            times_transposed(xd, wd, bias, [inputs, outputs], y);
        })?
    });
    capture::note(OP, &[], parents, &out, || {
        |t: &[Tensor]| linear(&t[0], &t[1], t.get(2))
    });
    let (kept_x, kept_w) = (x.on_the_way_back(), w.on_the_way_back());
    let has_bias = bias.is_some();
    Ok(record(OP, out, parents, move |flow| {
        let dy = &flow.grad;
        let flat = |t: &Tensor, last: usize| {
            if t.rank() == 2 {
                Ok(t.clone())
            } else {
                ops::reshape(t, &[(t.numel() / last.max(1)) as i64, last as i64])
            }
        };
        let dx = || {
            let dx = ops::matmul(&flat(dy, outputs)?, &kept_w)?;
            if kept_x.rank() == 2 {
                Ok(dx)
            } else {
                ops::reshape(&dx, &signed(kept_x.shape()))
            }
        };
        let dw = || {
            ops::matmul(
                &ops::permute_dims(&flat(dy, outputs)?, &[1, 0])?,
                &flat(&kept_x, inputs)?,
            )
        };
        let mut gradients = Vec::with_capacity(3);
        gradients.push(flow.needs(0).then(dx).transpose()?);
        gradients.push(flow.needs(1).then(dw).transpose()?);
        if has_bias {
            let sum = || {
                let axes: [isize; MAX_RANK] = std::array::from_fn(|axis| axis as isize);
                match dy.rank() {
                    0 | 1 => Ok(dy.clone()),
                    rank => ops::sum(dy, &axes[..rank - 1], false),
                }
            };
            gradients.push(flow.needs(2).then(sum).transpose()?);
        }
        Ok(gradients)
    }))
}

/// `x[n, in]` times `w[in, out]`, plus `bias[out]`: [n, out]. Records no graph.
///
/// From 3 to 512 inputs and from two rows on, a row of the result has the same bits whatever rows stand beside it,
/// which [`linear`] with its weight the other way round does not promise.
///
/// # Errors
/// As [`linear`].
pub fn project(x: &Tensor, w: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    const OP: &str = "project";
    let mut operands = vec![x, w];
    operands.extend(bias);
    one_float_type(OP, &operands)?;
    let fits = match (x.shape(), w.shape()) {
        (&[_, inputs], &[w_inputs, outputs]) => {
            inputs == w_inputs && bias.is_none_or(|b| b.shape() == [outputs])
        }
        _ => false,
    };
    if !fits {
        let shapes: Vec<&[usize]> = operands.iter().map(|t| t.shape()).collect();
        let expected = "needs an input [n, in], a weight [in, out] and a bias [out]";
        return Err(Error::shape(OP, expected, &shapes));
    }
    let (inputs, outputs) = (w.shape()[0], w.shape()[1]);
    with_float!(OP, x.dtype(), T => {
        let (xd, wd) = (x.dense(OP)?, w.dense(OP)?);
        let bias = bias.map(|b| b.dense(OP)).transpose()?;
        let (xd, wd) = (xd.data::<T>()?, wd.data::<T>()?);
        let bias = bias.as_ref().map(|b| b.data::<T>()).transpose()?;
        Tensor::build::<T>(OP, &[x.shape()[0], outputs], |y| {
            rows_times(xd, wd, [outputs, 1], bias, [inputs, outputs], y);
        })
    })
}

/// Self-attention of `qkv[n, t, 3 f]`, which holds queries, keys and values side by side, each `heads` times
/// f / heads wide: [n, t, f], heads side by side. As [`crate::ops::scaled_dot_product_attention`] on the parts,
/// which are not copied apart.
///
/// # Errors
/// [`Error::Shape`] where the last axis is not three times a multiple of `heads`; [`Error::DType`],
/// [`Error::Budget`].
pub fn self_attention(qkv: &Tensor, heads: usize, causal: bool) -> Result<Tensor> {
    ops::attention::self_attention(qkv, heads, causal)
}

/// [`crate::ops::conv2d`] plus `bias[o]` per output channel, without a pass of its own.
///
/// # Errors
/// As [`crate::ops::conv2d`]; [`Error::Shape`] for a bias that is not `[o]`.
pub fn conv2d(
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
    stride: (usize, usize),
    padding: (usize, usize),
    dilation: (usize, usize),
    groups: usize,
) -> Result<Tensor> {
    ops::conv::conv2d_with_bias(x, w, bias, stride, padding, dilation, groups)
}

/// The largest element of each window of `x[n, c, h, w]`: [n, c, oh, ow] with
/// oh = (h + 2 padding - kernel) / stride + 1, rounded down.
///
/// Padding never wins; a NaN does. The gradient goes to the window's first largest element.
///
/// # Errors
/// [`Error::Shape`] for another rank or a kernel larger than the padded input; [`Error::Argument`] for a
/// kernel or stride of zero or padding above half the kernel; [`Error::DType`], [`Error::Budget`].
pub fn max_pool2d(
    x: &Tensor,
    kernel: (usize, usize),
    stride: (usize, usize),
    padding: (usize, usize),
) -> Result<Tensor> {
    ops::pool::max_pool2d(x, kernel, stride, padding)
}

/// The mean of each window of `x[n, c, h, w]`, sizes as in [`max_pool2d`].
///
/// Padding counts as zeros: every window's sum is divided by the kernel's size.
///
/// # Errors
/// As [`max_pool2d`].
pub fn avg_pool2d(
    x: &Tensor,
    kernel: (usize, usize),
    stride: (usize, usize),
    padding: (usize, usize),
) -> Result<Tensor> {
    ops::pool::avg_pool2d(x, kernel, stride, padding)
}

/// Zeros each element with probability `p` and divides the others by 1 - p, so that means stay.
///
/// Which elements fall is a function of `key` alone.
///
/// # Errors
/// [`Error::Argument`] for p outside [0, 1), [`Error::DType`], [`Error::Budget`].
pub fn dropout(x: &Tensor, p: f64, key: &Key) -> Result<Tensor> {
    const OP: &str = "dropout";
    one_float_type(OP, &[x])?;
    if !(0.0..1.0).contains(&p) {
        return Err(Error::argument(
            OP,
            format!("p is a probability in [0, 1), got {p}"),
        ));
    }
    if p == 0.0 {
        return Ok(x.clone());
    }
    let scale = 1.0 / (1.0 - p);
    let mask = match x.dtype() {
        DType::F64 => {
            Tensor::build_unset::<f64>(OP, x.shape(), |m| random::fill_keep_f64(key, p, scale, m))?
        }
        _ => {
            Tensor::build_unset::<f32>(OP, x.shape(), |m| random::fill_keep_f32(key, p, scale, m))?
        }
    };
    ops::multiply(x, &mask)
}

/// x above 0, alpha (e^x - 1) below (Clevert et al. 2016). The derivative at 0 is alpha.
///
/// # Errors
/// [`Error::DType`], [`Error::Budget`].
pub fn elu(x: &Tensor, alpha: f64) -> Result<Tensor> {
    one_float_type("elu", &[x])?;
    // e^x is taken of min(x, 0) only: above 88 it would overflow and spoil the gradient.
    let below = ops::multiply(&ops::expm1(&ops::minimum(x, 0.0)?)?, alpha)?;
    ops::add(&ops::relu(x)?, &below)
}

/// x sigmoid(x).
///
/// # Errors
/// [`Error::DType`], [`Error::Budget`].
pub fn silu(x: &Tensor) -> Result<Tensor> {
    one_float_type("silu", &[x])?;
    ops::multiply(x, &ops::sigmoid(x)?)
}

/// x clipped to [lo, hi]; the gradient passes at the bounds.
///
/// # Errors
/// [`Error::Argument`] unless lo <= hi, [`Error::DType`], [`Error::Budget`].
pub fn hardtanh(x: &Tensor, lo: f64, hi: f64) -> Result<Tensor> {
    const OP: &str = "hardtanh";
    one_float_type(OP, &[x])?;
    // Negated, so that NaN bounds are refused too.
    #[allow(clippy::neg_cmp_op_on_partial_ord)]
    if !(lo <= hi) {
        return Err(Error::argument(
            OP,
            format!("the bounds must satisfy lo <= hi, got {lo} and {hi}"),
        ));
    }
    ops::minimum(&ops::maximum(x, lo)?, hi)
}

/// Sorts every `group` neighbours of the last axis ascending (GroupSort, Anil et al. 2019; `group` = 2 is
/// MaxMin). The gradient is permuted back.
///
/// # Errors
/// [`Error::Argument`] for a group of zero, [`Error::Shape`] where it does not divide the last axis,
/// [`Error::DType`], [`Error::Budget`].
pub fn group_sort(x: &Tensor, group: usize) -> Result<Tensor> {
    const OP: &str = "group_sort";
    one_float_type(OP, &[x])?;
    if group == 0 {
        return Err(Error::argument(OP, "a group has at least 1 element, got 0"));
    }
    let size = x.shape().last().copied().unwrap_or(0);
    if x.rank() == 0 || size % group != 0 {
        let expected = format!("groups of {group} must divide the last axis");
        return Err(Error::shape(OP, expected, &[x.shape()]));
    }
    let rows = ops::reshape(x, &[(x.numel() / group) as i64, group as i64])?;
    let order = ops::argsort(&rows, 1, false)?;
    ops::reshape(&ops::take_along_axis(&rows, &order, 1)?, &signed(x.shape()))
}
