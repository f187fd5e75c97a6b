//! Transforms: what the data looks like.

use crate::bindings::transform::exports::espalier::plugin::transforming as raw;
use crate::data::{Batch, SplitInfo};
use crate::options::Options;
use crate::run::{Error, RunInfo, StepInfo};
use crate::tensor::Tensor;

/// What the data looks like. It sees tensors and random numbers, never a model.
///
/// ```no_run
/// use espalier_sdk::transform::{Derived, Samples};
/// use espalier_sdk::data::SplitInfo;
/// use espalier_sdk::{Error, RunInfo, Transform};
///
/// /// Subtracts the mean of the training inputs, everywhere.
/// struct Center {
///     mean: espalier_sdk::Tensor,
/// }
///
/// impl Transform for Center {
///     type Options = ();
///
///     fn new(_run: &RunInfo, _options: (), train: &Samples, _splits: &[SplitInfo]) -> Result<Self, Error> {
///         Ok(Center { mean: train.inputs().mean(&[0]) })
///     }
///
///     fn prepare(&mut self, split: &SplitInfo, samples: &Samples) -> Vec<Derived> {
///         let inputs = samples.inputs() - &self.mean;
///         vec![Derived::of(split, samples.with("inputs", inputs))]
///     }
/// }
///
/// espalier_sdk::export!(transform: Center);
/// ```
pub trait Transform: Sized + 'static {
    /// What a run file may set.
    type Options: Options;

    /// True if it changes each training batch too: then `apply` is called.
    const BATCHES: bool = false;

    /// Once, before the model is built, with the training samples alone: what a scaler learns from, it learns from
    /// these. Refuses with an error for the reader of the run.
    fn new(
        run: &RunInfo,
        options: Self::Options,
        train: &Samples,
        splits: &[SplitInfo],
    ) -> Result<Self, Error>;

    /// Once a split, with all of it: the split as it should be, under its own name, or not at all where it stays as it
    /// is; and further splits under new names. Depends on its arguments and on what `new` saw.
    fn prepare(&mut self, split: &SplitInfo, samples: &Samples) -> Vec<Derived>;

    /// A training batch on its way to the trainer: the same samples, changed. Depends on its arguments alone.
    fn apply(&mut self, batch: Batch, at: &StepInfo) -> Batch {
        let _ = at;
        batch
    }
}

/// The fields of a split, samples along axis 0.
///
/// ```no_run
/// # use espalier_sdk::transform::Samples;
/// # fn f(samples: &Samples) {
/// let count = samples.inputs().size(0);
/// # }
/// ```
pub struct Samples(Vec<(String, Tensor)>);

impl Samples {
    pub(crate) fn from_raw(
        fields: Vec<(
            String,
            crate::bindings::host::espalier::plugin::tensors::Tensor,
        )>,
    ) -> Samples {
        let fields = fields.into_iter();
        Samples(
            fields
                .map(|(name, t)| (name, Tensor::from_raw(t)))
                .collect(),
        )
    }

    /// A field. Panics, with the names there are, if there is none of that name.
    ///
    /// ```no_run
    /// # use espalier_sdk::transform::Samples;
    /// # fn f(samples: &Samples) {
    /// let mask = samples.field("mask");
    /// # }
    /// ```
    pub fn field(&self, name: &str) -> &Tensor {
        match self.0.iter().find(|(n, _)| n == name) {
            Some((_, tensor)) => tensor,
            None => {
                let names: Vec<&str> = self.0.iter().map(|(n, _)| n.as_str()).collect();
                panic!(
                    "the split has no field `{name}`; it has {}",
                    names.join(", ")
                )
            }
        }
    }

    /// The field `inputs`.
    ///
    /// ```no_run
    /// # use espalier_sdk::transform::Samples;
    /// # fn f(samples: &Samples) {
    /// let x = samples.inputs();
    /// # }
    /// ```
    pub fn inputs(&self) -> &Tensor {
        self.field("inputs")
    }

    /// The field `targets`.
    ///
    /// ```no_run
    /// # use espalier_sdk::transform::Samples;
    /// # fn f(samples: &Samples) {
    /// let y = samples.targets();
    /// # }
    /// ```
    pub fn targets(&self) -> &Tensor {
        self.field("targets")
    }

    /// All fields with their names.
    ///
    /// ```no_run
    /// # use espalier_sdk::transform::Samples;
    /// # fn f(samples: &Samples) {
    /// let names: Vec<&str> = samples.fields().iter().map(|(name, _)| name.as_str()).collect();
    /// # }
    /// ```
    pub fn fields(&self) -> &[(String, Tensor)] {
        &self.0
    }

    /// The same fields with another tensor in the place of one, or with one more.
    ///
    /// ```no_run
    /// # use espalier_sdk::transform::Samples;
    /// # fn f(samples: &Samples) {
    /// let doubled = samples.with("inputs", samples.inputs() * 2.0);
    /// # }
    /// ```
    pub fn with(&self, name: &str, tensor: Tensor) -> Samples {
        let mut fields = self.0.clone();
        match fields.iter_mut().find(|(n, _)| n == name) {
            Some(field) => field.1 = tensor,
            None => fields.push((name.into(), tensor)),
        }
        Samples(fields)
    }

    /// Some of the samples, every field of them, by their places: i64 `[n]`.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # use espalier_sdk::transform::Samples;
    /// # fn f(samples: &Samples) {
    /// let first = samples.rows(&Tensor::indices(0..10));
    /// # }
    /// ```
    pub fn rows(&self, places: &Tensor) -> Samples {
        let fields = self.0.iter();
        Samples(
            fields
                .map(|(name, t)| (name.clone(), t.take(places, 0)))
                .collect(),
        )
    }
}

/// A split as a transform leaves it, or one that it derives.
///
/// ```no_run
/// # use espalier_sdk::data::SplitInfo;
/// # use espalier_sdk::transform::{Derived, Samples};
/// # fn f(split: &SplitInfo, samples: Samples) {
/// let noisy = Derived::new("noisy", split.classes, samples);
/// # }
/// ```
pub struct Derived {
    name: String,
    classes: u32,
    samples: Samples,
}

impl Derived {
    /// A split under this name; `classes` is how many `targets` has, 0 where they are values.
    ///
    /// ```no_run
    /// # use espalier_sdk::transform::{Derived, Samples};
    /// # fn f(samples: Samples) {
    /// let ten_classes = Derived::new("triggered", 10, samples);
    /// # }
    /// ```
    pub fn new(name: &str, classes: u32, samples: Samples) -> Derived {
        Derived {
            name: name.into(),
            classes,
            samples,
        }
    }

    /// These samples in the place of those of the split.
    ///
    /// ```no_run
    /// # use espalier_sdk::data::SplitInfo;
    /// # use espalier_sdk::transform::{Derived, Samples};
    /// # fn f(split: &SplitInfo, samples: Samples) {
    /// let instead = Derived::of(split, samples);
    /// # }
    /// ```
    pub fn of(split: &SplitInfo, samples: Samples) -> Derived {
        Derived::new(&split.name, split.classes, samples)
    }

    pub(crate) fn into_raw(self) -> raw::Derived {
        let fields = self.samples.0.into_iter();
        raw::Derived {
            name: self.name,
            classes: self.classes,
            fields: fields.map(|(name, t)| (name, t.into_raw())).collect(),
        }
    }
}
