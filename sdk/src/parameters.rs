//! Named parameters and the optimisers that change them.

use crate::bindings::host::espalier::plugin::{optim, parameters as host};
use crate::tensor::Tensor;

pub use host::{Kind, ParameterInfo};
pub use optim::{AdamOptions, SgdOptions};

/// A set of parameters: the run's own, a model's, or this plugin's.
///
/// ```no_run
/// # use espalier_sdk::{Tensor, parameters::{ParameterSet, SgdOptions}};
/// # fn f(loss: Tensor) {
/// let set = ParameterSet::main();
/// let names = set.trainable();
/// let grads = set.grad(&loss, &names);
/// set.sgd(&names, &grads, SgdOptions { lr: 0.1, ..Default::default() });
/// # }
/// ```
pub struct ParameterSet(host::ParameterSet);

impl ParameterSet {
    pub(crate) fn from_raw(raw: host::ParameterSet) -> ParameterSet {
        ParameterSet(raw)
    }

    pub(crate) fn raw(&self) -> &host::ParameterSet {
        &self.0
    }

    /// The run's set.
    ///
    /// ```no_run
    /// # use espalier_sdk::ParameterSet;
    /// let names = ParameterSet::main().trainable();
    /// ```
    pub fn main() -> ParameterSet {
        ParameterSet(host::main())
    }

    /// This plugin's set of that name; empty at first. Checkpointed, invisible to other plugins.
    ///
    /// ```no_run
    /// # use espalier_sdk::ParameterSet;
    /// let critic = ParameterSet::own("critic");
    /// ```
    pub fn own(name: &str) -> ParameterSet {
        ParameterSet(host::new_set(name))
    }

    /// Adds a parameter. If the set already holds it (after a resume), nothing happens: its value stays.
    ///
    /// ```no_run
    /// # use espalier_sdk::{ParameterSet, Tensor};
    /// # use espalier_sdk::parameters::Kind;
    /// let scales = ParameterSet::own("scales");
    /// scales.create("scale", Kind::Weight, &Tensor::ones(&[10]), true);
    /// ```
    pub fn create(&self, name: &str, kind: Kind, init: &Tensor, trainable: bool) {
        host::create(&self.0, name, kind, init.raw(), trainable);
    }

    /// All parameters, in the order of their creation.
    ///
    /// ```no_run
    /// # use espalier_sdk::ParameterSet;
    /// # use espalier_sdk::parameters::{Kind, ParameterInfo};
    /// # fn f(set: &ParameterSet) {
    /// let weights: Vec<ParameterInfo> = set.list().into_iter().filter(|p| p.kind == Kind::Weight).collect();
    /// # }
    /// ```
    pub fn list(&self) -> Vec<ParameterInfo> {
        host::list(&self.0)
    }

    /// Names of the parameters that optimisers may change.
    ///
    /// ```no_run
    /// # use espalier_sdk::{ParameterSet, Tensor};
    /// # fn f(set: &ParameterSet, loss: &Tensor) {
    /// let grads = set.grad(loss, &set.trainable());
    /// # }
    /// ```
    pub fn trainable(&self) -> Vec<String> {
        let free = |p: &ParameterInfo| p.trainable && p.kind != Kind::Buffer;
        self.list()
            .into_iter()
            .filter(free)
            .map(|p| p.name)
            .collect()
    }

    /// The tracked leaf that the next forward pass uses. Its gradient is dense, at masked positions too.
    ///
    /// ```no_run
    /// # use espalier_sdk::ParameterSet;
    /// # fn f(set: &ParameterSet) {
    /// let w = set.value("linear1.weight");
    /// # }
    /// ```
    pub fn value(&self, name: &str) -> Tensor {
        Tensor::from_raw(host::value(&self.0, name))
    }

    /// The values of several.
    ///
    /// ```no_run
    /// # use espalier_sdk::ParameterSet;
    /// # fn f(set: &ParameterSet) {
    /// let both = set.values(&["linear1.weight", "linear1.bias"]);
    /// # }
    /// ```
    pub fn values<S: AsRef<str>>(&self, names: &[S]) -> Vec<Tensor> {
        names.iter().map(|name| self.value(name.as_ref())).collect()
    }

    /// Gradients of a scalar with respect to the named parameters, in their order; frees the graph on the way.
    ///
    /// The handles to the values are gone when it returns, so an optimiser step that follows updates in place;
    /// while a plugin holds a value, the step has to copy it first.
    ///
    /// ```no_run
    /// # use espalier_sdk::{ParameterSet, Tensor};
    /// # use espalier_sdk::parameters::SgdOptions;
    /// # fn f(set: &ParameterSet, loss: &Tensor) {
    /// let names = set.trainable();
    /// let grads = set.grad(loss, &names);
    /// set.sgd(&names, &grads, SgdOptions::default());
    /// # }
    /// ```
    pub fn grad<S: AsRef<str>>(&self, loss: &Tensor, names: &[S]) -> Vec<Tensor> {
        self.select(names).gradients(loss)
    }

    /// Names some parameters once, for a step that treats them together.
    ///
    /// ```no_run
    /// # use espalier_sdk::ParameterSet;
    /// # fn f(set: &ParameterSet) {
    /// let all = set.select(&set.trainable());
    /// # }
    /// ```
    pub fn select<S: AsRef<str>>(&self, names: &[S]) -> Selection {
        let names: Vec<String> = names.iter().map(|name| name.as_ref().to_string()).collect();
        Selection(host::select(&self.0, &names))
    }

    /// Replaces a value, without graph. Handles given out before keep the old one.
    ///
    /// ```no_run
    /// # use espalier_sdk::ParameterSet;
    /// # fn f(set: &ParameterSet) {
    /// let smaller = set.value("linear1.weight") * 0.99;
    /// set.assign("linear1.weight", &smaller);
    /// # }
    /// ```
    pub fn assign(&self, name: &str, value: &Tensor) {
        host::assign(&self.0, name, value.raw());
    }

    /// Prunes: the values where the mask is 0 and their optimiser state are 0 from now on.
    ///
    /// ```no_run
    /// # use espalier_sdk::ParameterSet;
    /// # fn f(set: &ParameterSet) {
    /// let w = set.value("linear1.weight");
    /// set.set_mask("linear1.weight", &w.abs().greater(1e-3));
    /// # }
    /// ```
    pub fn set_mask(&self, name: &str, mask: &Tensor) {
        host::set_mask(&self.0, name, Some(mask.raw()), false);
    }

    /// Hides values where the mask is 0 and keeps them stored.
    ///
    /// ```no_run
    /// # use espalier_sdk::ParameterSet;
    /// # fn f(set: &ParameterSet) {
    /// let w = set.value("linear1.weight");
    /// set.hide("linear1.weight", &w.abs().greater(1e-3));
    /// set.clear_mask("linear1.weight"); // the small ones are back
    /// # }
    /// ```
    pub fn hide(&self, name: &str, mask: &Tensor) {
        host::set_mask(&self.0, name, Some(mask.raw()), true);
    }

    /// Removes the mask.
    ///
    /// ```no_run
    /// # use espalier_sdk::ParameterSet;
    /// # fn f(set: &ParameterSet) {
    /// set.clear_mask("linear1.weight");
    /// # }
    /// ```
    pub fn clear_mask(&self, name: &str) {
        host::set_mask(&self.0, name, None, false);
    }

    /// The mask as bool, none if dense.
    ///
    /// ```no_run
    /// # use espalier_sdk::ParameterSet;
    /// # fn f(set: &ParameterSet) {
    /// let alive = set.mask("linear1.weight").map(|mask| mask.count_nonzero());
    /// # }
    /// ```
    pub fn mask(&self, name: &str) -> Option<Tensor> {
        host::mask(&self.0, name).map(Tensor::from_raw)
    }

    /// The mask as bool, all true if dense.
    ///
    /// ```no_run
    /// # use espalier_sdk::ParameterSet;
    /// # fn f(set: &ParameterSet) {
    /// for info in set.list() {
    ///     let alive = set.mask_or_ones(&info).count_nonzero();
    /// }
    /// # }
    /// ```
    pub fn mask_or_ones(&self, info: &ParameterInfo) -> Tensor {
        let ones = || Tensor::full(&info.shape, 1.0, crate::Dtype::Bool);
        self.mask(&info.name).unwrap_or_else(ones)
    }

    /// The value that is kept, outside the graph: what updates change, whatever masks and
    /// [`ParameterSet::set_effective`] show in its place.
    ///
    /// ```no_run
    /// # use espalier_sdk::ParameterSet;
    /// # fn f(set: &ParameterSet) {
    /// let norm = set.stored("linear1.weight").square().sum(&[]).sqrt().item();
    /// # }
    /// ```
    pub fn stored(&self, name: &str) -> Tensor {
        Tensor::from_raw(host::stored(&self.0, name))
    }

    /// Puts other values in a parameter's place until they are set again: `forward` in forward passes, `backward`
    /// where products pass gradients back to their other operand (none: the same as forward). The parameter's own
    /// gradient is that of the forward value and goes straight through to the stored one.
    ///
    /// ```no_run
    /// # use espalier_sdk::ParameterSet;
    /// # fn f(set: &ParameterSet) {
    /// // Binary weights: their mean length times their signs; the stored ones go on learning.
    /// let stored = set.stored("linear1.weight");
    /// let signs = stored.greater(0.0).where_(&stored.ones_like(), -1.0);
    /// let binary = signs * stored.abs().mean(&[]);
    /// set.set_effective("linear1.weight", Some(&binary), None);
    /// # }
    /// ```
    pub fn set_effective(&self, name: &str, forward: Option<&Tensor>, backward: Option<&Tensor>) {
        host::set_effective(
            &self.0,
            name,
            forward.map(Tensor::raw),
            backward.map(Tensor::raw),
        );
    }

    /// The parameter's own value is used again, as before [`ParameterSet::set_effective`].
    ///
    /// ```no_run
    /// # use espalier_sdk::ParameterSet;
    /// # fn f(set: &ParameterSet) {
    /// set.clear_effective("linear1.weight");
    /// # }
    /// ```
    pub fn clear_effective(&self, name: &str) {
        host::set_effective(&self.0, name, None, None);
    }

    /// Remembers values, masks, buffers and optimiser state under a tag.
    ///
    /// ```no_run
    /// # use espalier_sdk::ParameterSet;
    /// # fn f(set: &ParameterSet) {
    /// set.snapshot("before");
    /// # }
    /// ```
    pub fn snapshot(&self, tag: &str) {
        host::snapshot(&self.0, tag);
    }

    /// Goes back to a tag, this set only.
    ///
    /// ```no_run
    /// # use espalier_sdk::{ParameterSet, Tensor};
    /// # fn f(set: &ParameterSet) {
    /// set.snapshot("before");
    /// set.assign("linear1.bias", &Tensor::zeros(&[10]));
    /// set.rollback("before");
    /// # }
    /// ```
    pub fn rollback(&self, tag: &str) {
        host::rollback(&self.0, tag);
    }

    /// One step of stochastic gradient descent: one gradient a name. Not for pruners.
    ///
    /// ```no_run
    /// # use espalier_sdk::{ParameterSet, Tensor};
    /// # use espalier_sdk::parameters::SgdOptions;
    /// # fn f(set: &ParameterSet, names: &[String], grads: &[Tensor]) {
    /// let options = SgdOptions { lr: 0.1, momentum: 0.9, ..SgdOptions::default() };
    /// set.sgd(names, grads, options);
    /// # }
    /// ```
    pub fn sgd(&self, names: &[String], grads: &[Tensor], options: SgdOptions) {
        optim::sgd(&self.0, names, &raw(grads), options);
    }

    /// One step of Adam; weight decay is added to the gradient. Not for pruners.
    ///
    /// ```no_run
    /// # use espalier_sdk::{ParameterSet, Tensor};
    /// # use espalier_sdk::parameters::AdamOptions;
    /// # fn f(set: &ParameterSet, names: &[String], grads: &[Tensor]) {
    /// set.adam(names, grads, AdamOptions { lr: 3e-4, ..AdamOptions::default() });
    /// # }
    /// ```
    pub fn adam(&self, names: &[String], grads: &[Tensor], options: AdamOptions) {
        optim::adam(&self.0, names, &raw(grads), options);
    }

    /// One step of AdamW; weight decay shrinks the weight by lr times itself. Not for pruners.
    ///
    /// ```no_run
    /// # use espalier_sdk::{ParameterSet, Tensor};
    /// # use espalier_sdk::parameters::AdamOptions;
    /// # fn f(set: &ParameterSet, names: &[String], grads: &[Tensor]) {
    /// let options = AdamOptions { weight_decay: 0.1, ..AdamOptions::default() };
    /// set.adamw(names, grads, options);
    /// # }
    /// ```
    pub fn adamw(&self, names: &[String], grads: &[Tensor], options: AdamOptions) {
        optim::adamw(&self.0, names, &raw(grads), options);
    }

    /// Moments and step counts of the named parameters to zero. Not for pruners.
    ///
    /// ```no_run
    /// # use espalier_sdk::ParameterSet;
    /// # fn f(set: &ParameterSet) {
    /// set.reset_state(&set.trainable());
    /// # }
    /// ```
    pub fn reset_state(&self, names: &[String]) {
        optim::reset_state(&self.0, names);
    }
}

/// Some parameters of one set, in an order of the plugin's. Worth keeping between steps: naming them costs, using
/// them again does not.
///
/// ```no_run
/// # use espalier_sdk::{ParameterSet, Tensor};
/// # use espalier_sdk::parameters::SgdOptions;
/// # fn f(loss: &Tensor) {
/// let set = ParameterSet::main();
/// let all = set.select(&set.trainable());
/// all.minimize_sgd(loss, SgdOptions { lr: 0.1, ..SgdOptions::default() });
/// # }
/// ```
pub struct Selection(host::Selection);

impl Selection {
    /// The tracked leaves, as [`ParameterSet::value`] gives each.
    ///
    /// ```no_run
    /// # use espalier_sdk::parameters::Selection;
    /// # fn f(all: &Selection) {
    /// let norms = all.values().iter().map(|w| w.vector_norm(&[], 0.0).item());
    /// # }
    /// ```
    pub fn values(&self) -> Vec<Tensor> {
        let values = host::values(&self.0);
        values.into_iter().map(Tensor::from_raw).collect()
    }

    /// Gradients of a scalar with respect to the parameters, in their order; frees the graph on the way.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # use espalier_sdk::parameters::Selection;
    /// # fn f(all: &Selection, loss: &Tensor) {
    /// let gradients = all.gradients(loss);
    /// # }
    /// ```
    pub fn gradients(&self, loss: &Tensor) -> Vec<Tensor> {
        let grads = host::gradients(&self.0, loss.raw());
        grads.into_iter().map(Tensor::from_raw).collect()
    }

    /// Gradients of a scalar, and one SGD step with them: for a step that does nothing else with its gradients.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # use espalier_sdk::parameters::{Selection, SgdOptions};
    /// # fn f(all: &Selection, loss: &Tensor) {
    /// all.minimize_sgd(loss, SgdOptions { lr: 0.1, ..SgdOptions::default() });
    /// # }
    /// ```
    pub fn minimize_sgd(&self, loss: &Tensor, options: SgdOptions) {
        optim::minimize_sgd(&self.0, loss.raw(), options);
    }

    /// As [`Selection::minimize_sgd`], with Adam.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # use espalier_sdk::parameters::{AdamOptions, Selection};
    /// # fn f(all: &Selection, loss: &Tensor) {
    /// all.minimize_adam(loss, AdamOptions::default());
    /// # }
    /// ```
    pub fn minimize_adam(&self, loss: &Tensor, options: AdamOptions) {
        optim::minimize_adam(&self.0, loss.raw(), options);
    }

    /// As [`Selection::minimize_sgd`], with AdamW.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # use espalier_sdk::parameters::{AdamOptions, Selection};
    /// # fn f(all: &Selection, loss: &Tensor) {
    /// all.minimize_adamw(loss, AdamOptions { weight_decay: 0.1, ..AdamOptions::default() });
    /// # }
    /// ```
    pub fn minimize_adamw(&self, loss: &Tensor, options: AdamOptions) {
        optim::minimize_adamw(&self.0, loss.raw(), options);
    }
}

fn raw(tensors: &[Tensor]) -> Vec<&crate::bindings::host::espalier::plugin::tensors::Tensor> {
    tensors.iter().map(Tensor::raw).collect()
}

impl PartialEq for SgdOptions {
    fn eq(&self, other: &SgdOptions) -> bool {
        let all = |o: &SgdOptions| (o.lr, o.momentum, o.weight_decay, o.nesterov);
        all(self) == all(other)
    }
}

impl PartialEq for AdamOptions {
    fn eq(&self, other: &AdamOptions) -> bool {
        let all = |o: &AdamOptions| (o.lr, o.beta1, o.beta2, o.eps, o.weight_decay);
        all(self) == all(other)
    }
}

impl Default for SgdOptions {
    /// lr 0.1, no momentum, no decay.
    fn default() -> Self {
        SgdOptions {
            lr: 0.1,
            momentum: 0.0,
            weight_decay: 0.0,
            nesterov: false,
        }
    }
}

impl Default for AdamOptions {
    /// As in PyTorch: lr 1e-3, betas 0.9 and 0.999, eps 1e-8, no decay.
    fn default() -> Self {
        AdamOptions {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
        }
    }
}

/// Gradients scaled so that their common 2-norm is at most `limit`; the norm before comes back with them.
/// Waits for nothing: the factor stays in the host.
///
/// ```no_run
/// # use espalier_sdk::Tensor;
/// # use espalier_sdk::parameters::clip_grad_norm;
/// # fn f(grads: &[Tensor]) {
/// let (grads, norm) = clip_grad_norm(grads, 1.0);
/// espalier_sdk::log::metric("gradient-norm", norm.item());
/// # }
/// ```
pub fn clip_grad_norm(grads: &[Tensor], limit: f64) -> (Vec<Tensor>, Tensor) {
    let mut total = Tensor::scalar(0.0);
    for grad in grads {
        total = total + grad.square().sum(&[]);
    }
    let norm = total.sqrt();
    let factor = (limit / (&norm + 1e-6)).minimum(1.0);
    (grads.iter().map(|grad| grad * &factor).collect(), norm)
}
