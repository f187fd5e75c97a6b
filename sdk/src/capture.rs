//! A step recorded once as a program and replayed with one call.
//!
//! ```no_run
//! # use espalier_sdk::{ParameterSet, Model, Mode, StepInfo, StepReport, Tensor};
//! # use espalier_sdk::{capture::{Captured, Step}, data::Stream, parameters::SgdOptions};
//! struct Small {
//!     captured: Captured<Vec<String>>,
//!     names: Vec<String>,
//! }
//!
//! impl Small {
//!     fn step(&mut self, at: &StepInfo) -> StepReport {
//!         let lr = 0.1 / (1.0 + at.step as f64);
//!         let done = self.captured.step(&self.names, &[lr], |names, step| {
//!             let batch = step.batch();
//!             let set = ParameterSet::main();
//!             let output = Model::main().forward(batch.fields(), Mode::Train);
//!             let loss = output.cross_entropy(batch.targets()).mean(&[]);
//!             step.sgd(&set, names, &set.grad(&loss, names), SgdOptions::default(), 0);
//!             vec![loss]
//!         });
//!         StepReport::new(done.values[0], done.count)
//!     }
//! }
//! # fn f(stream: &Stream) -> Captured<Vec<String>> {
//! Captured::over("step", stream)
//! # }
//! ```

use crate::bindings::host::espalier::plugin::capture as host;
use crate::data::{Batch, Stream};
use crate::parameters::{AdamOptions, ParameterSet, SgdOptions};
use crate::tensor::Tensor;

/// A step that the host records and replays.
///
/// `S` is what the plugin has decided once: settings, names. It is compared at each step, and where it has
/// changed the step is recorded anew. What changes from step to step is a number, an input or the batch.
///
/// The closure runs only when the step is recorded (twice for each shape of its inputs) or cannot be captured, so
/// it must not look at anything else, and it can't: it is refused by the compiler if it captures a variable.
///
/// ```no_run
/// # use espalier_sdk::{Tensor, ParameterSet, Stream, capture::{Captured, Step}, parameters::*};
/// # fn f(x: &Tensor) {
/// let mut captured: Captured<f64> = Captured::new("sharpen");
/// let y = captured.map(&2.0, &[x], &[], |power, step| vec![step.input(0).tanh() * *power]);
/// # }
/// ```
pub struct Captured<S> {
    raw: host::Captured,
    settings: Option<S>,
}

/// What a captured step gave.
///
/// ```no_run
/// # use espalier_sdk::{StepReport, capture::Done};
/// # fn f(done: Done) -> StepReport {
/// StepReport::new(done.values[0], done.count)
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Done {
    /// The values that the closure returned.
    pub values: Vec<f64>,
    /// Samples of the batch; 0 without a stream.
    pub count: u32,
}

/// A captured step as its closure sees it.
///
/// ```no_run
/// # use espalier_sdk::{Tensor, ParameterSet, Stream, capture::{Captured, Step}, parameters::*};
/// # fn f(step: &Step) -> Tensor {
/// step.input(0) * step.number(0)
/// # }
/// ```
pub struct Step<'a> {
    raw: &'a host::Captured,
    batch: Option<Batch>,
    inputs: &'a [&'a Tensor],
}

impl Step<'_> {
    /// The batch. Panics where the step was not made with [`Captured::over`].
    ///
    /// ```no_run
    /// # use espalier_sdk::{Tensor, ParameterSet, Stream, capture::{Captured, Step}, parameters::*};
    /// # fn f(step: &Step) -> Tensor {
    /// step.batch().inputs().mean(&[])
    /// # }
    /// ```
    pub fn batch(&self) -> &Batch {
        match &self.batch {
            Some(batch) => batch,
            None => panic!("this captured step has no stream; make it with Captured::over"),
        }
    }

    /// An input by its place.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Tensor, ParameterSet, Stream, capture::{Captured, Step}, parameters::*};
    /// # fn f(step: &Step) -> Tensor {
    /// step.input(0).exp()
    /// # }
    /// ```
    pub fn input(&self, place: usize) -> &Tensor {
        self.inputs[place]
    }

    /// A number by its place, as an f32 tensor without axes.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Tensor, ParameterSet, Stream, capture::{Captured, Step}, parameters::*};
    /// # fn f(step: &Step, noise: &Tensor) -> Tensor {
    /// noise * step.number(1)
    /// # }
    /// ```
    pub fn number(&self, place: u32) -> Tensor {
        Tensor::from_raw(host::number(self.raw, place))
    }

    /// One step of stochastic gradient descent with a number as its learning rate; that of `options` is ignored.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Tensor, ParameterSet, Stream, capture::{Captured, Step}, parameters::*};
    /// # fn f(step: &Step, set: &ParameterSet, names: &[String], grads: &[Tensor]) {
    /// step.sgd(set, names, grads, SgdOptions::default(), 0); // number 0 is the learning rate
    /// # }
    /// ```
    pub fn sgd(
        &self,
        set: &ParameterSet,
        names: &[String],
        grads: &[Tensor],
        options: SgdOptions,
        rate: u32,
    ) {
        host::sgd(self.raw, set.raw(), names, &raw(grads), options, rate);
    }

    /// One step of Adam with a number as its learning rate; that of `options` is ignored.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Tensor, ParameterSet, Stream, capture::{Captured, Step}, parameters::*};
    /// # fn f(step: &Step, set: &ParameterSet, names: &[String], grads: &[Tensor]) {
    /// step.adam(set, names, grads, AdamOptions::default(), 0); // number 0 is the learning rate
    /// # }
    /// ```
    pub fn adam(
        &self,
        set: &ParameterSet,
        names: &[String],
        grads: &[Tensor],
        options: AdamOptions,
        rate: u32,
    ) {
        host::adam(self.raw, set.raw(), names, &raw(grads), options, rate);
    }

    /// One step of AdamW with a number as its learning rate; that of `options` is ignored.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Tensor, ParameterSet, Stream, capture::{Captured, Step}, parameters::*};
    /// # fn f(step: &Step, set: &ParameterSet, names: &[String], grads: &[Tensor]) {
    /// step.adamw(set, names, grads, AdamOptions::default(), 0); // number 0 is the learning rate
    /// # }
    /// ```
    pub fn adamw(
        &self,
        set: &ParameterSet,
        names: &[String],
        grads: &[Tensor],
        options: AdamOptions,
        rate: u32,
    ) {
        host::adamw(self.raw, set.raw(), names, &raw(grads), options, rate);
    }
}

fn raw(tensors: &[Tensor]) -> Vec<&crate::bindings::host::espalier::plugin::tensors::Tensor> {
    tensors.iter().map(Tensor::raw).collect()
}

/// Refuses a closure that captures something, when the plugin is compiled.
struct Nothing<F>(std::marker::PhantomData<F>);

impl<F> Nothing<F> {
    const CAPTURED: () = assert!(
        size_of::<F>() == 0,
        "a captured step reads only its settings, numbers, inputs and batch; pass them instead of capturing variables"
    );
}

impl<S: Clone + PartialEq> Captured<S> {
    /// A step that takes its batches from a stream. `name` stands in what the log says of it.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Tensor, ParameterSet, Stream, capture::{Captured, Step}, parameters::*};
    /// # fn f(stream: &Stream) {
    /// let captured: Captured<Vec<String>> = Captured::over("step", stream);
    /// # }
    /// ```
    pub fn over(name: &str, stream: &Stream) -> Captured<S> {
        Captured {
            raw: host::open(name, Some(stream.raw())),
            settings: None,
        }
    }

    /// A step without a stream.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Tensor, ParameterSet, Stream, capture::{Captured, Step}, parameters::*};
    /// # fn f() {
    /// let captured: Captured<()> = Captured::new("leapfrog");
    /// # }
    /// ```
    pub fn new(name: &str) -> Captured<S> {
        Captured {
            raw: host::open(name, None),
            settings: None,
        }
    }

    /// Does the step; the closure returns tensors of one element whose values are wanted.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Tensor, ParameterSet, Stream, capture::{Captured, Step}, parameters::*};
    /// # fn f(captured: &mut Captured<Vec<String>>, names: &Vec<String>, lr: f64) {
    /// let done = captured.step(names, &[lr], |names, step| {
    ///     let set = ParameterSet::main();
    ///     let loss = set.value(&names[0]).square().mean(&[]);
    ///     step.sgd(&set, names, &set.grad(&loss, names), SgdOptions::default(), 0);
    ///     vec![loss]
    /// });
    /// # }
    /// ```
    pub fn step<F: Fn(&S, &Step) -> Vec<Tensor>>(
        &mut self,
        settings: &S,
        numbers: &[f64],
        f: F,
    ) -> Done {
        let () = Nothing::<F>::CAPTURED;
        match self.begin(settings, &[], numbers) {
            host::Turn::Done(done) => Done {
                values: done.values,
                count: done.count,
            },
            host::Turn::Perform(batch) => {
                let step = self.performed(batch, &[]);
                let values = f(settings, &step);
                let count = step.batch.as_ref().map_or(0, Batch::count);
                let values = host::finish(&self.raw, &raw(&values), &[]);
                Done { values, count }
            }
        }
    }

    /// From inputs to tensors; the results are untracked. Inputs are contiguous.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Tensor, ParameterSet, Stream, capture::{Captured, Step}, parameters::*};
    /// # fn f(captured: &mut Captured<()>, x: &Tensor, t: f64) {
    /// let moved = captured.map(&(), &[x], &[t], |_, step| vec![step.input(0) + step.number(0)]);
    /// # }
    /// ```
    pub fn map<F: Fn(&S, &Step) -> Vec<Tensor>>(
        &mut self,
        settings: &S,
        inputs: &[&Tensor],
        numbers: &[f64],
        f: F,
    ) -> Vec<Tensor> {
        let () = Nothing::<F>::CAPTURED;
        match self.begin(settings, inputs, numbers) {
            host::Turn::Done(done) => done.tensors.into_iter().map(Tensor::from_raw).collect(),
            host::Turn::Perform(batch) => {
                let step = self.performed(batch, inputs);
                let tensors = f(settings, &step);
                host::finish(&self.raw, &[], &raw(&tensors));
                tensors.iter().map(Tensor::detach).collect()
            }
        }
    }

    fn begin(&mut self, settings: &S, inputs: &[&Tensor], numbers: &[f64]) -> host::Turn {
        if self.settings.as_ref() != Some(settings) {
            if self.settings.is_some() {
                host::forget(&self.raw);
            }
            self.settings = Some(settings.clone());
        }
        let inputs: Vec<_> = inputs.iter().map(|t| t.raw()).collect();
        host::begin(&self.raw, &inputs, numbers)
    }

    fn performed<'a>(
        &'a self,
        batch: Option<crate::bindings::host::espalier::plugin::data::Batch>,
        inputs: &'a [&'a Tensor],
    ) -> Step<'a> {
        Step {
            raw: &self.raw,
            batch: batch.map(Batch::from_raw),
            inputs,
        }
    }
}
