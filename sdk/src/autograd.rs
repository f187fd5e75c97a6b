//! Gradients of any order.

use crate::bindings::host::espalier::plugin::autograd as host;
use crate::tensor::Tensor;

/// Gradients of a scalar with respect to `inputs`, in their order. Frees the graph on the way.
///
/// An input that the graph does not reach gets zeros. See [`Grad`] for graphs that live on and for outputs
/// that are not scalars.
pub fn grad(loss: &Tensor, inputs: &[&Tensor]) -> Vec<Tensor> {
    Grad::of(loss).wrt(inputs)
}

/// Vector-Jacobian product: gradients of `sum(output * cotangent)` with respect to `inputs`.
pub fn vjp(output: &Tensor, cotangent: &Tensor, inputs: &[&Tensor]) -> Vec<Tensor> {
    Grad::of(output).cotangent(cotangent).wrt(inputs)
}

/// Hessian-vector product: the second derivative of a scalar along `direction`, one tensor an input.
pub fn hvp(loss: &Tensor, inputs: &[&Tensor], direction: &[&Tensor]) -> Vec<Tensor> {
    let first = Grad::of(loss).create_graph().wrt(inputs);
    let mut along = Grad::default();
    for (gradient, v) in first.iter().zip(direction) {
        along = along.and(gradient).cotangent(v);
    }
    along.wrt(inputs)
}

/// A gradient computation with all its choices.
///
/// ```no_run
/// # use espalier_sdk::{Tensor, autograd::Grad};
/// # fn f(loss: &Tensor, w: &Tensor) {
/// let g = Grad::of(loss).create_graph().wrt(&[w]);
/// let penalty = g[0].square().sum(&[]); // can be differentiated again
/// # }
/// ```
#[derive(Default)]
pub struct Grad<'a> {
    outputs: Vec<&'a Tensor>,
    cotangents: Vec<Option<&'a Tensor>>,
    create_graph: bool,
    retain_graph: bool,
}

impl<'a> Grad<'a> {
    /// Gradients of an output; a scalar unless a cotangent follows.
    pub fn of(output: &'a Tensor) -> Self {
        Grad::default().and(output)
    }

    /// Another output, added to the ones before.
    pub fn and(mut self, output: &'a Tensor) -> Self {
        self.outputs.push(output);
        self.cotangents.push(None);
        self
    }

    /// The cotangent of the output named last, of its shape.
    pub fn cotangent(mut self, cotangent: &'a Tensor) -> Self {
        if let Some(last) = self.cotangents.last_mut() {
            *last = Some(cotangent);
        }
        self
    }

    /// The gradients are tracked themselves.
    pub fn create_graph(mut self) -> Self {
        self.create_graph = true;
        self
    }

    /// The graph may be used again afterwards.
    pub fn retain_graph(mut self) -> Self {
        self.retain_graph = true;
        self
    }

    /// Computes the gradients with respect to `inputs`, in their order.
    pub fn wrt(self, inputs: &[&Tensor]) -> Vec<Tensor> {
        let outputs: Vec<_> = self.outputs.iter().map(|t| t.raw()).collect();
        let cotangents: Vec<_> = self.cotangents.iter().map(|t| t.map(Tensor::raw)).collect();
        let inputs: Vec<_> = inputs.iter().map(|t| t.raw()).collect();
        host::grad(
            &outputs,
            &cotangents,
            &inputs,
            self.create_graph,
            self.retain_graph,
        )
        .into_iter()
        .map(Tensor::from_raw)
        .collect()
    }
}

/// Runs `f` without recording a graph. Scopes nest.
pub fn no_grad<T>(f: impl FnOnce() -> T) -> T {
    let _scope = host::NoGrad::new();
    f()
}

impl Tensor {
    /// A new leaf of the graph with the same values: makes inputs differentiable. Floats only.
    pub fn requires_grad(&self) -> Tensor {
        Tensor::from_raw(host::requires_grad(self.raw()))
    }

    /// The same values outside the graph.
    pub fn detach(&self) -> Tensor {
        Tensor::from_raw(host::detach(self.raw()))
    }

    /// `value` forward, the gradient of `self` backward: the straight-through estimator.
    pub fn straight_through(&self, value: &Tensor) -> Tensor {
        self + (value - self).detach()
    }
}
