//! Tensors out of nothing, and changes of element type.

use crate::autograd::record;
use crate::capture;
use crate::dtype::{DType, Element, with_element};
use crate::error::{Error, Result};
use crate::layout::Walk;
use crate::tensor::Tensor;
use crate::threads::{BLOCK, for_blocks};

/// `start, start + step, ...` up to but without `stop`; empty where `step` leads away from `stop`.
///
/// # Errors
/// [`Error::Argument`] for a step of zero or a bound that is not finite; [`Error::Size`],
/// [`Error::Budget`]; [`Error::DType`] for bool.
pub fn arange(start: f64, stop: f64, step: f64, dtype: DType) -> Result<Tensor> {
    const OP: &str = "arange";
    if dtype == DType::Bool {
        return Err(Error::DType {
            op: OP,
            found: vec![dtype],
            expected: "f32, f64 or i64",
        });
    }
    if !(start.is_finite() && stop.is_finite() && step.is_finite()) || step == 0.0 {
        return Err(Error::argument(
            OP,
            format!(
                "bounds must be finite and the step not zero; got start {start}, stop {stop}, step {step}"
            ),
        ));
    }
    let n = ((stop - start) / step).ceil().max(0.0);
    // `as` saturates; the size check of `build` refuses what is too large.
    let n = n as usize;
    let out = with_element!(dtype, E => Tensor::build_unset::<E>(OP, &[n], |out| {
        for (i, o) in out.iter_mut().enumerate() {
            *o = E::from_f64(start + i as f64 * step);
        }
    }))?;
    capture::constant(&out);
    Ok(out)
}

/// The elements converted to `dtype`. To i64 truncates toward zero, saturates, and maps NaN to 0; to bool
/// is `!= 0`. Between floats the gradient flows through, converted back.
///
/// # Errors
/// [`Error::Budget`], [`Error::Memory`].
pub fn astype(t: &Tensor, dtype: DType) -> Result<Tensor> {
    const OP: &str = "astype";
    let from = t.dtype();
    if from == dtype {
        return Ok(t.clone());
    }
    let out = with_element!(from, A => with_element!(dtype, B => convert::<A, B>(OP, t)?));
    capture::note(OP, &[dtype as u64], &[t], &out, || {
        move |t: &[Tensor]| astype(&t[0], dtype)
    });
    if !(from.is_float() && dtype.is_float()) {
        return Ok(out);
    }
    Ok(record(OP, out, &[t], move |flow| {
        Ok(vec![Some(astype(&flow.grad, from)?)])
    }))
}

fn convert<A: Element, B: Element>(op: &'static str, t: &Tensor) -> Result<Tensor> {
    let source = t.storage_slice::<A>(op)?;
    let layout = t.layout();
    let walk = Walk::new(&layout.shape, [(&layout.strides, layout.offset)]);
    let [stride] = walk.inner_strides();
    Tensor::build_unset::<B>(op, t.shape(), |out| {
        let total = out.len();
        for_blocks(out, BLOCK, total, |first, chunk| {
            walk.runs(first..first + chunk.len(), |at, len, [start]| {
                let to = &mut chunk[at - first..at - first + len];
                for (i, o) in to.iter_mut().enumerate() {
                    let value = source[start + i * stride];
                    // i64 goes to i64-like targets without the detour through f64.
                    *o = if B::DTYPE == DType::I64 {
                        B::from_i64(value.to_i64())
                    } else {
                        B::from_f64(value.to_f64())
                    };
                }
            });
        });
    })
}
