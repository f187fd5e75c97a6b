//! What pruners share: which weights there are, their masks, and how many of them live.

use crate::log;
use crate::parameters::{Kind, ParameterInfo, ParameterSet};
use crate::run::Error;
use crate::tensor::{Dtype, Tensor};

/// The weights of the run that a pruner may prune, tensor by tensor.
///
/// ```no_run
/// # use espalier_sdk::prune::Weights;
/// fn halve() -> Result<(), espalier_sdk::Error> {
///     let weights = Weights::of_run("")?.without_last_layer()?;
///     weights.keep_largest(weights.total() / 2);
///     weights.report();
///     Ok(())
/// }
/// ```
pub struct Weights {
    set: ParameterSet,
    infos: Vec<ParameterInfo>,
    last: Option<u32>,
}

impl Weights {
    /// All trainable parameters of kind weight, without those excluded: names of parameters, of layers' groups
    /// or beginnings of parameter names up to a dot (`conv1` for `conv1.weight`), separated by commas.
    ///
    /// ```no_run
    /// # use espalier_sdk::prune::Weights;
    /// fn start() -> Result<Weights, espalier_sdk::Error> {
    ///     Weights::of_run("conv1, head")
    /// }
    /// ```
    pub fn of_run(exclude: &str) -> Result<Weights, Error> {
        let set = ParameterSet::main();
        let prunable = |info: &ParameterInfo| info.kind == Kind::Weight && info.trainable;
        let infos: Vec<ParameterInfo> = set.list().into_iter().filter(prunable).collect();
        let last = infos.iter().filter_map(|info| info.layer).max();
        let unwanted: Vec<&str> = exclude
            .split(',')
            .map(str::trim)
            .filter(|name| !name.is_empty())
            .collect();
        for name in &unwanted {
            if !infos.iter().any(|info| is_named(info, name)) {
                let names: Vec<&str> = infos.iter().map(|info| info.name.as_str()).collect();
                return Err(Error::invalid_option(format!(
                    "`exclude` names `{name}`, the model's weights are {}",
                    names.join(", ")
                )));
            }
        }
        let infos: Vec<ParameterInfo> = infos
            .into_iter()
            .filter(|info| !unwanted.iter().any(|name| is_named(info, name)))
            .collect();
        if infos.is_empty() {
            return Err(Error::incompatible("there is no weight left to prune"));
        }
        Ok(Weights { set, infos, last })
    }

    /// Without the weights of the last layer that has any.
    ///
    /// ```no_run
    /// # use espalier_sdk::prune::Weights;
    /// # fn f(weights: Weights) {
    /// let hidden = weights.without_last_layer();
    /// # }
    /// ```
    pub fn without_last_layer(mut self) -> Result<Weights, Error> {
        let last = self.last;
        self.infos
            .retain(|info| info.layer.is_none() || info.layer != last);
        if self.infos.is_empty() {
            return Err(Error::incompatible(
                "the last layer is the only one with weights to prune",
            ));
        }
        Ok(self)
    }

    /// What is known of each tensor.
    ///
    /// ```no_run
    /// # use espalier_sdk::prune::Weights;
    /// # fn f(weights: &Weights) {
    /// let names: Vec<&str> = weights.infos().iter().map(|info| info.name.as_str()).collect();
    /// # }
    /// ```
    pub fn infos(&self) -> &[ParameterInfo] {
        &self.infos
    }

    /// Whether a tensor belongs to the last layer that has weights.
    ///
    /// ```no_run
    /// # use espalier_sdk::prune::Weights;
    /// # fn f(weights: &Weights) {
    /// let rates = weights.infos().iter().map(|info| if weights.is_last(info) { 0.1 } else { 0.2 });
    /// # }
    /// ```
    pub fn is_last(&self, info: &ParameterInfo) -> bool {
        info.layer.is_some() && info.layer == self.last
    }

    /// How many weights each tensor has.
    ///
    /// ```no_run
    /// # use espalier_sdk::prune::{Weights, keep_count};
    /// # fn f(weights: &Weights) {
    /// let keep: Vec<u64> = weights.sizes().into_iter().map(|n| keep_count(n, 0.9)).collect();
    /// # }
    /// ```
    pub fn sizes(&self) -> Vec<u64> {
        self.infos
            .iter()
            .map(|info| info.shape.iter().map(|&n| u64::from(n)).product())
            .collect()
    }

    /// How many weights there are.
    ///
    /// ```no_run
    /// # use espalier_sdk::prune::{Weights, keep_count};
    /// # fn f(weights: &Weights) {
    /// weights.keep_largest(keep_count(weights.total(), 0.9));
    /// # }
    /// ```
    pub fn total(&self) -> u64 {
        self.sizes().iter().sum()
    }

    /// The tracked values.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # use espalier_sdk::prune::Weights;
    /// # fn f(weights: &Weights, loss: &Tensor) {
    /// let values = weights.values();
    /// let gradients = espalier_sdk::grad(loss, &values.iter().collect::<Vec<_>>());
    /// # }
    /// ```
    pub fn values(&self) -> Vec<Tensor> {
        self.infos
            .iter()
            .map(|info| self.set.value(&info.name))
            .collect()
    }

    /// Absolute values, outside the graph.
    ///
    /// ```no_run
    /// # use espalier_sdk::prune::Weights;
    /// # fn f(weights: &Weights) {
    /// let largest = weights.magnitudes().iter().map(|m| m.reshape(&[-1]).max(0).item()).fold(0.0, f64::max);
    /// # }
    /// ```
    pub fn magnitudes(&self) -> Vec<Tensor> {
        self.values()
            .iter()
            .map(|value| value.detach().abs())
            .collect()
    }

    /// The masks as bool, all true where dense.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # use espalier_sdk::prune::Weights;
    /// # fn f(weights: &Weights) {
    /// let scores = weights.magnitudes();
    /// weights.set_masks(&Tensor::keep_largest_of_all(&scores, &weights.masks(), 1000));
    /// # }
    /// ```
    pub fn masks(&self) -> Vec<Tensor> {
        self.infos
            .iter()
            .map(|info| self.set.mask_or_ones(info))
            .collect()
    }

    /// How many weights of each tensor live. Waits for the device.
    ///
    /// ```no_run
    /// # use espalier_sdk::prune::Weights;
    /// # fn f(weights: &Weights) {
    /// let sparsity = 1.0 - weights.alive().iter().sum::<u64>() as f64 / weights.total() as f64;
    /// # }
    /// ```
    pub fn alive(&self) -> Vec<u64> {
        self.infos
            .iter()
            .zip(self.sizes())
            .map(|(info, size)| {
                self.set
                    .mask(&info.name)
                    .map_or(size, |mask| mask.count_nonzero())
            })
            .collect()
    }

    /// Sets all masks. A weight masked before and not now starts from 0.
    ///
    /// ```no_run
    /// # use espalier_sdk::prune::Weights;
    /// # fn f(weights: &Weights) {
    /// weights.set_masks(&weights.random_masks(&weights.alive(), 0));
    /// # }
    /// ```
    pub fn set_masks(&self, masks: &[Tensor]) {
        for (info, mask) in self.infos.iter().zip(masks) {
            self.set.set_mask(&info.name, mask);
        }
    }

    /// Keeps the `keep` largest living weights of all tensors together, at least one of each; exactly as many
    /// as asked for unless fewer live.
    ///
    /// ```no_run
    /// # use espalier_sdk::prune::{Weights, keep_count};
    /// # fn f(weights: &Weights) {
    /// weights.keep_largest(keep_count(weights.total(), 0.5));
    /// # }
    /// ```
    pub fn keep_largest(&self, keep: u64) {
        let keep = keep.min(self.alive().iter().sum());
        let kept = Tensor::keep_largest_of_all(&self.magnitudes(), &self.masks(), keep);
        self.set_masks(&kept);
    }

    /// Keeps so many of the largest living weights of each tensor, at least one.
    ///
    /// ```no_run
    /// # use espalier_sdk::prune::Weights;
    /// # fn f(weights: &Weights) {
    /// let half: Vec<u64> = weights.alive().iter().map(|n| n / 2).collect();
    /// weights.keep_largest_of_each(&half);
    /// # }
    /// ```
    pub fn keep_largest_of_each(&self, keep: &[u64]) {
        let (magnitudes, masks, alive) = (self.magnitudes(), self.masks(), self.alive());
        for (i, info) in self.infos.iter().enumerate() {
            let keep = keep[i].max(1).min(alive[i]);
            self.set
                .set_mask(&info.name, &magnitudes[i].keep_largest(&masks[i], keep));
        }
    }

    /// Says how many weights live.
    ///
    /// ```no_run
    /// # use espalier_sdk::prune::Weights;
    /// # fn f(weights: &Weights) {
    /// weights.report();
    /// # }
    /// ```
    pub fn report(&self) {
        let alive: u64 = self.alive().iter().sum();
        log::metric("alive", alive as f64);
        log::info(format!("{alive} of {} weights live", self.total()));
    }

    /// Masks of `alive` random places of each tensor.
    ///
    /// ```no_run
    /// # use espalier_sdk::prune::Weights;
    /// # fn f(weights: &Weights) {
    /// let masks = weights.random_masks(&weights.alive(), 1);
    /// # }
    /// ```
    pub fn random_masks(&self, alive: &[u64], key: u64) -> Vec<Tensor> {
        let mut masks = Vec::new();
        for (i, (info, &alive)) in self.infos.iter().zip(alive).enumerate() {
            let all = Tensor::full(&info.shape, 1.0, Dtype::Bool);
            let scores = crate::random::uniform(&[key, i as u64], &info.shape);
            masks.push(scores.keep_largest(&all, alive));
        }
        masks
    }
}

fn is_named(info: &ParameterInfo, name: &str) -> bool {
    info.name == name
        || (!info.group.is_empty() && info.group == name)
        || info
            .name
            .strip_prefix(name)
            .is_some_and(|rest| rest.starts_with('.'))
}

/// How many of `n` weights live at a sparsity: n - round(sparsity n), at least one of a tensor that has any.
///
/// ```
/// # use espalier_sdk::prune::keep_count;
/// assert_eq!(keep_count(1000, 0.9), 100);
/// assert_eq!(keep_count(10, 1.0), 1);
/// ```
pub fn keep_count(n: u64, sparsity: f64) -> u64 {
    let pruned = (sparsity.clamp(0.0, 1.0) * n as f64).round() as u64;
    (n - pruned.min(n)).max(n.min(1))
}

/// The cubic schedule of Zhu and Gupta 2017, equation 1: from `initial` at `begin` to `last` at `end`, fast at
/// first; constant before and after.
///
/// ```
/// # use espalier_sdk::prune::cubic_sparsity;
/// assert_eq!(cubic_sparsity(0.0, 0.0, 100.0, 0.0, 0.9), 0.0);
/// assert!((cubic_sparsity(50.0, 0.0, 100.0, 0.0, 0.9) - 0.7875).abs() < 1e-12);
/// ```
pub fn cubic_sparsity(step: f64, begin: f64, end: f64, initial: f64, last: f64) -> f64 {
    if step >= end {
        return last;
    }
    if step <= begin {
        return initial;
    }
    last + (initial - last) * (1.0 - (step - begin) / (end - begin)).powi(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-12, "{a} is not {b}");
    }

    #[test]
    fn the_cubic_schedule_has_its_known_points() {
        close(cubic_sparsity(50.0, 0.0, 100.0, 0.5, 0.9), 0.85);
        close(cubic_sparsity(0.0, 0.0, 100.0, 0.5, 0.9), 0.5);
        close(cubic_sparsity(100.0, 0.0, 100.0, 0.5, 0.9), 0.9);
        close(cubic_sparsity(50.0, 0.0, 100.0, 0.0, 0.9), 0.7875);
        close(cubic_sparsity(1000.0, 20.0, 100.0, 0.0, 0.9), 0.9);
    }

    #[test]
    fn a_window_of_no_length_prunes_at_once() {
        close(cubic_sparsity(9.0, 10.0, 10.0, 0.0, 0.9), 0.0);
        close(cubic_sparsity(10.0, 10.0, 10.0, 0.0, 0.9), 0.9);
    }

    #[test]
    fn counts_are_exact_and_never_empty_a_tensor() {
        assert_eq!(keep_count(1000, 0.9), 100);
        assert_eq!(keep_count(7, 0.5), 3);
        assert_eq!(keep_count(10, 1.0), 1);
        assert_eq!(keep_count(0, 0.5), 0);
    }
}
