//! The run's model, and models that a plugin builds or clones.

use std::ops::Range;

use crate::bindings::host::espalier::plugin::{model as host, model_adopt};
use crate::data::Batch;
use crate::parameters::ParameterSet;
use crate::tensor::Tensor;

pub use host::{LayerInfo, LayerInput, LayerSpec, Mode, PredictionKind};

/// Predictions for a batch, samples along axis 0.
///
/// ```no_run
/// # use espalier_sdk::{Batch, Mode, Model, Prediction};
/// # fn f(batch: &Batch) {
/// let prediction = Prediction::logits(Model::main().forward(batch.fields(), Mode::Eval));
/// # }
/// ```
pub struct Prediction {
    kind: PredictionKind,
    output: Tensor,
}

impl Prediction {
    /// A prediction of any kind.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Prediction, Tensor};
    /// # use espalier_sdk::model::PredictionKind;
    /// # fn f(samples: Tensor) {
    /// let prediction = Prediction::new(PredictionKind::Samples, samples);
    /// # }
    /// ```
    pub fn new(kind: PredictionKind, output: Tensor) -> Prediction {
        Prediction { kind, output }
    }

    /// Unnormalised log-probabilities `[n, classes]`.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Prediction, Tensor};
    /// # fn f(logits: Tensor) {
    /// let prediction = Prediction::logits(logits);
    /// # }
    /// ```
    pub fn logits(output: Tensor) -> Prediction {
        Prediction::new(PredictionKind::Logits, output)
    }

    /// Probabilities `[n, classes]`.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Prediction, Tensor};
    /// # fn f(logits: &Tensor) {
    /// let prediction = Prediction::probabilities(logits.softmax(-1));
    /// # }
    /// ```
    pub fn probabilities(output: Tensor) -> Prediction {
        Prediction::new(PredictionKind::Probabilities, output)
    }

    /// Values `[n, ...]`.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Prediction, Tensor};
    /// # fn f(y: Tensor) {
    /// let prediction = Prediction::values(y);
    /// # }
    /// ```
    pub fn values(output: Tensor) -> Prediction {
        Prediction::new(PredictionKind::Values, output)
    }

    /// How to read the output.
    ///
    /// ```no_run
    /// # use espalier_sdk::Prediction;
    /// # use espalier_sdk::model::PredictionKind;
    /// # fn f(prediction: &Prediction) {
    /// let classifies = matches!(prediction.kind(), PredictionKind::Logits);
    /// # }
    /// ```
    pub fn kind(&self) -> PredictionKind {
        self.kind
    }

    /// The numbers.
    ///
    /// ```no_run
    /// # use espalier_sdk::Prediction;
    /// # fn f(prediction: &Prediction) {
    /// let best = prediction.output().argmax(-1);
    /// # }
    /// ```
    pub fn output(&self) -> &Tensor {
        &self.output
    }

    pub(crate) fn into_raw(self) -> host::Prediction {
        host::Prediction {
            kind: self.kind,
            output: self.output.into_raw(),
        }
    }
}

/// A network with its parameters.
///
/// ```no_run
/// # use espalier_sdk::{Model, Mode, data::Batch};
/// # fn f(batch: &Batch) {
/// let model = Model::main();
/// let logits = model.forward(batch.fields(), Mode::Train);
/// let hidden = model.forward_range(0..2, batch.inputs(), Mode::Eval);
/// # }
/// ```
pub struct Model {
    raw: host::Model,
    count: u32,
}

impl Model {
    fn from_raw(raw: host::Model) -> Model {
        let count = host::layers(&raw).len() as u32;
        Model { raw, count }
    }

    pub(crate) fn raw(&self) -> &host::Model {
        &self.raw
    }

    /// The run's model.
    ///
    /// ```no_run
    /// # use espalier_sdk::Model;
    /// let layers = Model::main().layers();
    /// ```
    pub fn main() -> Model {
        Model::from_raw(host::main())
    }

    /// A fresh model of this plugin's, for inputs like the run's own. Built again under the same name (after a
    /// resume) it is the one that is there.
    ///
    /// ```no_run
    /// # use espalier_sdk::Model;
    /// # use espalier_sdk::model::LayerSpec;
    /// # fn f(layers: &[LayerSpec]) {
    /// let critic = Model::build("critic", layers, &[0]);
    /// # }
    /// ```
    pub fn build(name: &str, layers: &[LayerSpec], key: &[u64]) -> Model {
        Model::from_raw(host::build(name, None, layers, key))
    }

    /// A copy of values, buffers and masks under a name, of this plugin's.
    ///
    /// ```no_run
    /// # use espalier_sdk::Model;
    /// let target = Model::main().copy("target");
    /// ```
    pub fn copy(&self, name: &str) -> Model {
        Model::from_raw(host::clone(&self.raw, name))
    }

    /// From the end of this step on the run's model is this one. Trainers only.
    ///
    /// ```no_run
    /// # use espalier_sdk::Model;
    /// # use espalier_sdk::model::LayerSpec;
    /// # fn f(layers: &[LayerSpec]) {
    /// Model::build("wider", layers, &[0]).adopt();
    /// # }
    /// ```
    pub fn adopt(&self) {
        model_adopt::adopt(&self.raw);
    }

    /// Its layers, in order.
    ///
    /// ```no_run
    /// # use espalier_sdk::Model;
    /// let linear = Model::main().layers().into_iter().filter(|layer| layer.kind == "linear");
    /// ```
    pub fn layers(&self) -> Vec<LayerInfo> {
        host::layers(&self.raw)
    }

    /// Its parameters.
    ///
    /// ```no_run
    /// # use espalier_sdk::Model;
    /// let names = Model::main().copy("target").parameters().trainable();
    /// ```
    pub fn parameters(&self) -> ParameterSet {
        ParameterSet::from_raw(host::parameters(&self.raw))
    }

    /// The whole model on the fields of a batch.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Batch, Mode, Model};
    /// # fn f(batch: &Batch) {
    /// let logits = Model::main().forward(batch.fields(), Mode::Train);
    /// # }
    /// ```
    pub fn forward(&self, fields: &[(String, Tensor)], mode: Mode) -> Tensor {
        let inputs: Vec<_> = fields
            .iter()
            .map(|(name, t)| (name.clone(), t.raw()))
            .collect();
        let result = host::forward(&self.raw, (0, self.count), &inputs, mode, &[], &[]);
        Tensor::from_raw(result.output)
    }

    /// Some layers on what the first of them reads.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Mode, Model, Tensor};
    /// # fn f(x: &Tensor) {
    /// let hidden = Model::main().forward_range(0..2, x, Mode::Eval);
    /// # }
    /// ```
    pub fn forward_range(&self, range: Range<u32>, x: &Tensor, mode: Mode) -> Tensor {
        self.pass(range, mode).input("input", x).run()
    }

    /// A forward pass with all its choices.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Mode, Model, Tensor};
    /// # use espalier_sdk::model;
    /// # fn f(x: &Tensor, noisy: &Tensor) {
    /// let model = Model::main();
    /// let y = model.pass(0..2, Mode::Train).input("inputs", x).replace("linear1.weight", noisy).run();
    /// # }
    /// ```
    pub fn pass(&self, range: Range<u32>, mode: Mode) -> Pass<'_> {
        let (inputs, overrides, want) = (Vec::new(), Vec::new(), Vec::new());
        Pass {
            model: self,
            range,
            mode,
            inputs,
            overrides,
            want,
        }
    }
}

/// A forward pass being put together.
///
/// ```no_run
/// # use espalier_sdk::{Mode, Model, Tensor};
/// # use espalier_sdk::model;
/// # fn f(x: &Tensor) {
/// let model = Model::main();
/// let y = model.pass(0..2, Mode::Train).input("inputs", x).run();
/// # }
/// ```
pub struct Pass<'a> {
    model: &'a Model,
    range: Range<u32>,
    mode: Mode,
    inputs: Vec<(String, &'a Tensor)>,
    overrides: Vec<(String, &'a Tensor)>,
    want: Vec<String>,
}

impl<'a> Pass<'a> {
    /// A field of the batch, the output of an earlier layer under its name, or `input` for what the first
    /// layer of the range reads.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Mode, Model, Tensor};
    /// # use espalier_sdk::model;
    /// # fn f(model: &Model, hidden: &Tensor) {
    /// let y = model.pass(2..4, Mode::Eval).input("input", hidden).run();
    /// # }
    /// ```
    pub fn input(mut self, name: &str, tensor: &'a Tensor) -> Self {
        self.inputs.push((name.to_string(), tensor));
        self
    }

    /// A parameter replaced by a computed tensor of the same shape, tracked.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Mode, Model, Tensor};
    /// # use espalier_sdk::model;
    /// # fn f(model: &Model, x: &Tensor, w: &Tensor) {
    /// let rounded = w.straight_through(&(w * 16.0).astype(espalier_sdk::Dtype::I64).astype(w.dtype()));
    /// let y = model.pass(0..1, Mode::Train).input("input", x).replace("linear1.weight", &rounded).run();
    /// # }
    /// ```
    pub fn replace(mut self, parameter: &str, tensor: &'a Tensor) -> Self {
        self.overrides.push((parameter.to_string(), tensor));
        self
    }

    /// Another output: a layer's name, or `NAME/mean`, `NAME/var`, `NAME/probabilities`.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Mode, Model, Tensor};
    /// # use espalier_sdk::model;
    /// # fn f(model: &Model, x: &Tensor) {
    /// let (y, extra) = model.pass(0..4, Mode::Train).input("input", x).want("relu1").run_with_extra();
    /// # }
    /// ```
    pub fn want(mut self, what: &str) -> Self {
        self.want.push(what.to_string());
        self
    }

    /// Runs; the output of the last layer of the range.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Mode, Model, Tensor};
    /// # use espalier_sdk::model;
    /// # fn f(model: &Model, x: &Tensor) {
    /// let y = model.pass(0..4, Mode::Eval).input("input", x).run();
    /// # }
    /// ```
    pub fn run(self) -> Tensor {
        self.run_with_extra().0
    }

    /// Runs; the output, and what was wanted in that order.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Mode, Model, Tensor};
    /// # use espalier_sdk::model;
    /// # fn f(model: &Model, x: &Tensor) {
    /// let (y, extra) = model.pass(0..4, Mode::Train).input("input", x).want("relu1").run_with_extra();
    /// let alive = extra[0].1.greater(0.0).count_nonzero();
    /// # }
    /// ```
    pub fn run_with_extra(self) -> (Tensor, Vec<(String, Tensor)>) {
        fn raw<'a>(
            named: &[(String, &'a Tensor)],
        ) -> Vec<(
            String,
            &'a crate::bindings::host::espalier::plugin::tensors::Tensor,
        )> {
            named
                .iter()
                .map(|(name, t)| (name.clone(), t.raw()))
                .collect()
        }
        let range = (self.range.start, self.range.end);
        let (inputs, overrides) = (raw(&self.inputs), raw(&self.overrides));
        let result = host::forward(
            &self.model.raw,
            range,
            &inputs,
            self.mode,
            &overrides,
            &self.want,
        );
        let extra = result
            .extra
            .into_iter()
            .map(|(name, t)| (name, Tensor::from_raw(t)))
            .collect();
        (Tensor::from_raw(result.output), extra)
    }
}

/// Per-sample losses of the run's trainer, `[count]`, tracked: how a pruner gets gradients.
///
/// ```no_run
/// # use espalier_sdk::{Batch, Tensor};
/// # use espalier_sdk::model;
/// # fn f(batch: &Batch, w: &Tensor) {
/// let loss = model::objective(batch).mean(&[]);
/// let gradients = espalier_sdk::grad(&loss, &[w]);
/// # }
/// ```
pub fn objective(batch: &Batch) -> Tensor {
    Tensor::from_raw(host::objective(batch.to_raw()))
}

/// Predictions of the run's trainer.
///
/// ```no_run
/// # use espalier_sdk::Batch;
/// # use espalier_sdk::model;
/// # fn f(batch: &Batch) {
/// let classes = model::predict(batch).output().argmax(-1);
/// # }
/// ```
pub fn predict(batch: &Batch) -> Prediction {
    let raw = host::predict(batch.to_raw());
    Prediction::new(raw.kind, Tensor::from_raw(raw.output))
}

/// The loss of an architecture that has its own; none means the run's loss applies.
///
/// ```no_run
/// # use espalier_sdk::{Batch, Tensor};
/// # use espalier_sdk::model;
/// # fn f(batch: &Batch, logits: &Tensor) {
/// let loss = model::loss(batch).unwrap_or_else(|| logits.cross_entropy(batch.targets()));
/// # }
/// ```
pub fn loss(batch: &Batch) -> Option<Tensor> {
    host::loss(batch.to_raw()).map(Tensor::from_raw)
}
