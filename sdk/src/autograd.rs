//! Gradients of any order.

use crate::bindings::host::espalier::plugin::autograd as host;
use crate::tensor::Tensor;

/// Gradients of a scalar with respect to `inputs`, in their order. Frees the graph on the way.
///
/// An input that the graph does not reach gets zeros. See [`Grad`] for graphs that live on and for outputs
/// that are not scalars.
///
/// ```no_run
/// # use espalier_sdk::{Tensor, autograd};
/// # fn f(loss: &Tensor, a: &Tensor, b: &Tensor) {
/// let gradients = autograd::grad(loss, &[a, b]);
/// # }
/// ```
pub fn grad(loss: &Tensor, inputs: &[&Tensor]) -> Vec<Tensor> {
    Grad::of(loss).wrt(inputs)
}

/// Vector-Jacobian product: gradients of `sum(output * cotangent)` with respect to `inputs`.
///
/// ```no_run
/// # use espalier_sdk::{Tensor, autograd};
/// # fn f(y: &Tensor, cotangent: &Tensor, x: &Tensor) {
/// let back = autograd::vjp(y, cotangent, &[x]);
/// # }
/// ```
pub fn vjp(output: &Tensor, cotangent: &Tensor, inputs: &[&Tensor]) -> Vec<Tensor> {
    Grad::of(output).cotangent(cotangent).wrt(inputs)
}

/// Hessian-vector product: the second derivative of a scalar along `direction`, one tensor an input.
///
/// ```no_run
/// # use espalier_sdk::{Tensor, autograd};
/// # fn f(loss: &Tensor, w: &Tensor, v: &Tensor) {
/// let curved = autograd::hvp(loss, &[w], &[v]);
/// # }
/// ```
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
    ///
    /// ```no_run
    /// # use espalier_sdk::{Tensor, autograd::Grad};
    /// # fn f(loss: &Tensor, w: &Tensor) {
    /// let gradients = Grad::of(loss).wrt(&[w]);
    /// # }
    /// ```
    pub fn of(output: &'a Tensor) -> Self {
        Grad::default().and(output)
    }

    /// Another output, added to the ones before.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Tensor, autograd::Grad};
    /// # fn f(policy: &Tensor, value: &Tensor, w: &Tensor) {
    /// let gradients = Grad::of(policy).and(value).wrt(&[w]);
    /// # }
    /// ```
    pub fn and(mut self, output: &'a Tensor) -> Self {
        self.outputs.push(output);
        self.cotangents.push(None);
        self
    }

    /// The cotangent of the output named last, of its shape.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Tensor, autograd::Grad};
    /// # fn f(y: &Tensor, v: &Tensor, x: &Tensor) {
    /// let back = Grad::of(y).cotangent(v).wrt(&[x]);
    /// # }
    /// ```
    pub fn cotangent(mut self, cotangent: &'a Tensor) -> Self {
        if let Some(last) = self.cotangents.last_mut() {
            *last = Some(cotangent);
        }
        self
    }

    /// The gradients are tracked themselves.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Tensor, autograd::Grad};
    /// # fn f(loss: &Tensor, w: &Tensor) {
    /// let first = Grad::of(loss).create_graph().wrt(&[w]);
    /// let second = Grad::of(&first[0].sum(&[])).wrt(&[w]);
    /// # }
    /// ```
    pub fn create_graph(mut self) -> Self {
        self.create_graph = true;
        self
    }

    /// The graph may be used again afterwards.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Tensor, autograd::Grad};
    /// # fn f(loss: &Tensor, a: &Tensor, b: &Tensor) {
    /// let of_a = Grad::of(loss).retain_graph().wrt(&[a]);
    /// let of_b = Grad::of(loss).wrt(&[b]);
    /// # }
    /// ```
    pub fn retain_graph(mut self) -> Self {
        self.retain_graph = true;
        self
    }

    /// Computes the gradients with respect to `inputs`, in their order.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Tensor, autograd::Grad};
    /// # fn f(loss: &Tensor, a: &Tensor, b: &Tensor) {
    /// if let [of_a, of_b] = &Grad::of(loss).wrt(&[a, b])[..] {
    ///     let alike = of_a.cosine_similarity(of_b, 0);
    /// }
    /// # }
    /// ```
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
///
/// ```no_run
/// # use espalier_sdk::{Tensor, autograd};
/// # fn f(w: &Tensor) {
/// let norm = autograd::no_grad(|| w.vector_norm(&[], 0.0));
/// # }
/// ```
pub fn no_grad<T>(f: impl FnOnce() -> T) -> T {
    let _scope = host::NoGrad::new();
    f()
}

impl Tensor {
    /// A new leaf of the graph with the same values: makes inputs differentiable. Floats only.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(images: &Tensor) {
    /// let inputs = images.requires_grad(); // a loss of these can be differentiated by them
    /// # }
    /// ```
    pub fn requires_grad(&self) -> Tensor {
        Tensor::from_raw(host::requires_grad(self.raw()))
    }

    /// The same values outside the graph.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(prediction: &Tensor) {
    /// let target = prediction.detach();
    /// # }
    /// ```
    pub fn detach(&self) -> Tensor {
        Tensor::from_raw(host::detach(self.raw()))
    }

    /// `value` forward, the gradient of `self` backward: the straight-through estimator.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor) {
    /// let hard = x.greater(0.0).astype(x.dtype());
    /// let y = x.sigmoid().straight_through(&hard);
    /// # }
    /// ```
    pub fn straight_through(&self, value: &Tensor) -> Tensor {
        self + (value - self).detach()
    }
}
