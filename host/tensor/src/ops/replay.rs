//! Gradients of gradients for operations with fused kernels.
//!
//! Under `create_graph` a fused gradient rule has to hand back results that are differentiable
//! themselves. Instead of a second, composed rule it replays the operation from primitive ones on
//! stand-ins for its parents and asks [`autograd::grad`] for the gradient of that.

use crate::autograd::{self, Flow, Gradients, carry_backward, record};
use crate::error::Result;
use crate::tensor::Tensor;

/// The gradients of `forward(parents)` for the cotangent in `flow`, differentiable in both.
///
/// A stand-in is a node of its own that passes gradients to its parent. So the derivative stops at the
/// stand-ins, even where one parent was computed from another.
pub(crate) fn replay(
    flow: &Flow,
    parents: &[&Tensor],
    forward: impl FnOnce(&[Tensor]) -> Result<Tensor>,
) -> Result<Gradients> {
    let stand_ins: Vec<Tensor> = parents
        .iter()
        .map(|&parent| {
            let stand_in = record("replay", parent.detach(), &[parent], |flow| {
                Ok(vec![Some(flow.grad.clone())])
            });
            carry_backward(stand_in, parent, |b| Ok(b.clone()))
        })
        .collect::<Result<_>>()?;
    let wanted: Vec<usize> = (0..parents.len()).filter(|&i| flow.needs(i)).collect();
    let inputs: Vec<&Tensor> = wanted.iter().map(|&i| &stand_ins[i]).collect();
    let result = forward(&stand_ins)?;
    let gradients = autograd::grad(&[&result], &[Some(&flow.grad)], &inputs, true, true)?;
    let mut all: Gradients = vec![None; parents.len()];
    for (i, gradient) in wanted.into_iter().zip(gradients) {
        all[i] = Some(gradient);
    }
    Ok(all)
}
