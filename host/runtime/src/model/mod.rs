//! The model: a list of layers of built-in kinds, a directed acyclic graph over them, and its forward pass.
//!
//! A [`Model`] holds no numbers. Its parameters live in a [`ParameterSet`] under `LAYER.weight` and the
//! like, so that one model runs with any set that has these names (a clone's, a snapshot's).

mod declared;
mod expand;
pub mod generate;
mod kinds;
mod layer;

use std::collections::{BTreeMap, BTreeSet};

use espalier_tensor::random::Key;
use espalier_tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::diagnostic::nearest;
use crate::parameters::{self, ParameterSet};
use crate::plan::LayerPlan;
use layer::{AlongTime, Op, Pass};

pub use expand::expand;
pub use kinds::{KINDS, KindInfo, Preset, Range, SettingInfo};

/// Result of building or running a model.
pub type Result<T> = std::result::Result<T, Error>;

/// What can be wrong with a model.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The model has no layers.
    #[error("the model has no layers; give at least one")]
    Empty,
    /// A layer's name cannot be used.
    #[error("layer `{layer}`: {problem}")]
    Name {
        /// The layer.
        layer: String,
        /// What is wrong and the mend.
        problem: String,
    },
    /// No kind has that name.
    #[error("layer `{layer}`: no kind of layer is named `{kind}`; {}", kind_hint(.suggestion))]
    UnknownKind {
        /// The layer.
        layer: String,
        /// The kind asked for.
        kind: String,
        /// The nearest kind.
        suggestion: Option<String>,
    },
    /// A setting is unknown, missing or out of range.
    #[error("layer `{layer}` ({kind}), setting `{setting}`: {problem}")]
    Setting {
        /// The layer.
        layer: String,
        /// Its kind.
        kind: &'static str,
        /// The setting.
        setting: String,
        /// What was expected, what was found.
        problem: String,
    },
    /// A layer reads something that is not there.
    #[error("layer `{layer}` reads `{input}`, which is {problem}")]
    Input {
        /// The layer.
        layer: String,
        /// What it names.
        input: String,
        /// What is wrong and the mend.
        problem: String,
    },
    /// A layer's input has a shape or dtype it cannot take.
    #[error("layer `{layer}` ({kind}): its input has shape {shape:?} a sample; {problem}")]
    Shape {
        /// The layer.
        layer: String,
        /// Its kind.
        kind: &'static str,
        /// Shape of one sample of its first input.
        shape: Vec<usize>,
        /// What was expected and the mend.
        problem: String,
    },
    /// A layer that an architecture declares cannot be.
    #[error("layer `{layer}` of the architecture: {problem}")]
    Declared {
        /// The layer.
        layer: String,
        /// What was expected, what was found.
        problem: String,
    },
    /// A call of `forward` does not fit the model.
    #[error("model.forward: {problem}")]
    Forward {
        /// What was expected, what was found.
        problem: String,
    },
    /// The model is none of token series.
    #[error("the model cannot go through tokens one by one: {problem}")]
    Series {
        /// What is wrong and the mend.
        problem: String,
    },
    /// What to sample is out of range.
    #[error("generate: request {request}, `{field}`: {problem}")]
    Request {
        /// Index of the request, from 0.
        request: usize,
        /// Its field.
        field: &'static str,
        /// What was expected, what was found.
        problem: String,
    },
    /// Nothing can be drawn from what the model gives.
    #[error(
        "generate: request {request}: the model gives no probabilities but NaN; its parameters have diverged, or \
         logits are infinite"
    )]
    NotANumber {
        /// Index of the request, from 0.
        request: usize,
    },
    /// What to score is out of range.
    #[error("score: sequence {sequence} {problem}")]
    Score {
        /// Its index, from 0.
        sequence: usize,
        /// What was expected, what was found.
        problem: String,
    },
    /// The parameter set refused.
    #[error(transparent)]
    Parameters(#[from] parameters::Error),
    /// The tensor engine refused.
    #[error("layer `{layer}` ({kind}): {source}")]
    Tensor {
        /// The layer.
        layer: String,
        /// Its kind.
        kind: String,
        /// The engine's own words.
        source: espalier_tensor::Error,
    },
}

fn kind_hint(suggestion: &Option<String>) -> String {
    match suggestion {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!(
            "there are {}",
            KINDS
                .iter()
                .map(|kind| kind.name)
                .collect::<Vec<_>>()
                .join(", ")
        ),
    }
}

/// A field that a model may read: its shape and dtype for one sample.
#[derive(Clone, Debug, PartialEq)]
pub struct FieldShape {
    /// The field.
    pub name: String,
    /// Shape of one sample, without the batch axis.
    pub shape: Vec<usize>,
    /// Its dtype.
    pub dtype: DType,
}

/// What a layer reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Input {
    /// The output of an earlier layer, by index.
    Layer(u32),
    /// A field of the batch.
    Field(String),
}

/// A layer as plugins see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerInfo {
    /// Its place, from 0.
    pub index: u32,
    /// Unique in the model.
    pub name: String,
    /// One of [`KINDS`].
    pub kind: String,
    /// What it reads, at least one.
    pub inputs: Vec<Input>,
    /// Names of its parameters, buffers included.
    pub parameters: Vec<String>,
    /// Shape of one sample of its first input.
    pub in_shape: Vec<usize>,
    /// Shape of one sample of its output.
    pub out_shape: Vec<usize>,
    /// Multiply-accumulates a sample of matrix products and convolutions; the rest is not counted.
    pub macs: u64,
    /// Every setting with its value, defaults included; a pair is two numbers.
    pub settings: Vec<(String, Vec<f64>)>,
}

/// How layers behave that differ between training and measuring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Batch-norm uses the batch's statistics and moves the running ones; dropout drops. A batch with fewer
    /// than two values a channel has no variance: it is normalised with the running statistics.
    Train,
    /// Batch-norm uses the running statistics; dropout passes all.
    Eval,
    /// Batch-norm uses the running statistics and leaves them; dropout drops.
    TrainFrozenStats,
}

/// What a forward pass gives.
#[derive(Clone, Debug)]
pub struct Forward {
    /// Output of the last layer of the range, [samples, ...].
    pub output: Tensor,
    /// What `want` asked for, in its order.
    pub extra: Vec<(String, Tensor)>,
}

/// A checked list of layers.
#[derive(Clone, Debug)]
pub struct Model {
    layers: Vec<Layer>,
    fields: Vec<FieldShape>,
    dtype: DType,
}

#[derive(Clone, Debug)]
struct Layer {
    info: LayerInfo,
    op: Op,
    out_dtype: DType,
    /// Index of the last layer that reads its output; its own if none does.
    last_use: usize,
}

/// The largest number of elements of a parameter or of one sample: far above any use, far below overflow.
const MOST_ELEMENTS: usize = 1 << 40;

/// Gives each layer without a name its kind and a number that is free: `linear1`, `linear2`, ...
pub fn fill_names(layers: &mut [LayerPlan]) {
    let mut taken: BTreeSet<String> = layers.iter().map(|layer| layer.name.clone()).collect();
    for layer in layers.iter_mut().filter(|layer| layer.name.is_empty()) {
        let mut number = 1;
        while !taken.insert(format!("{}{number}", layer.kind)) {
            number += 1;
        }
        layer.name = format!("{}{number}", layer.kind);
    }
}

/// The settings of a kind of layer that may change between two steps.
pub fn live_settings(kind: &str) -> &'static [SettingInfo] {
    let found = KINDS.iter().find(|known| known.name == kind);
    match (kind, found) {
        ("dropout", Some(known)) => known.settings,
        _ => &[],
    }
}

/// The product of the sizes, if it is no larger than [`MOST_ELEMENTS`].
fn size_of_sample(shape: &[usize]) -> Option<usize> {
    let product = shape
        .iter()
        .try_fold(1usize, |product, size| product.checked_mul(*size));
    product.filter(|size| *size <= MOST_ELEMENTS)
}

impl Model {
    /// Checks the layers, infers every shape and creates the parameters, initialised as PyTorch does by
    /// default. A parameter's numbers depend on `key` and its own name alone, so that a layer more or less
    /// does not change the others. A layer whose name is empty gets one from [`fill_names`], and
    /// [`expand`] replaces layers that stand for several.
    ///
    /// # Errors
    /// Names the first layer that is wrong, its kind and input shape, what was expected, and the mend.
    /// On an error the parameter set may hold the parameters of earlier layers.
    pub fn build(
        layers: &[LayerPlan],
        inputs: &[FieldShape],
        key: &[u64],
        parameters: &mut ParameterSet,
    ) -> Result<Model> {
        if layers.is_empty() {
            return Err(Error::Empty);
        }
        let plans = expand(layers)?;
        for field in inputs {
            if size_of_sample(&field.shape).is_none() {
                return Err(Error::Input {
                    layer: plans[0].name.clone(),
                    input: field.name.clone(),
                    problem: format!("too large: {:?} a sample", field.shape),
                });
            }
        }
        let doubles = inputs.iter().any(|field| field.dtype == DType::F64);
        let dtype = if doubles { DType::F64 } else { DType::F32 };
        let mut model = Model {
            layers: Vec::new(),
            fields: inputs.to_vec(),
            dtype,
        };
        for (index, plan) in plans.iter().enumerate() {
            model.check_name(plan, &plans[..index])?;
            let layer = model.build_layer(index, plan, &plans, key, parameters)?;
            for input in &layer.info.inputs {
                if let Input::Layer(read) = input {
                    model.layers[*read as usize].last_use = index;
                }
            }
            model.layers.push(layer);
        }
        Ok(model)
    }

    fn check_name(&self, plan: &LayerPlan, before: &[LayerPlan]) -> Result<()> {
        let bad = |problem: &str| {
            Err(Error::Name {
                layer: plan.name.clone(),
                problem: problem.into(),
            })
        };
        if before.iter().any(|other| other.name == plan.name) {
            return bad("the name stands twice; names must differ");
        }
        if self.fields.iter().any(|field| field.name == plan.name) || plan.name == "input" {
            return bad("the name means a field of the batch; choose another");
        }
        if plan.name.contains('/') {
            return bad(
                "a name must not contain `/`, which asks for a layer's inner values; choose another",
            );
        }
        Ok(())
    }

    fn build_layer(
        &self,
        index: usize,
        plan: &LayerPlan,
        plans: &[LayerPlan],
        key: &[u64],
        parameters: &mut ParameterSet,
    ) -> Result<Layer> {
        let kind = kinds::find(plan)?;
        let settings = kinds::Settings::check(plan, kind)?;
        let inputs = self.resolve_inputs(index, plan, plans)?;
        let shapes: Vec<(&[usize], DType)> =
            inputs.iter().map(|input| self.source(input)).collect();
        let wrong = |problem| Error::Shape {
            layer: plan.name.clone(),
            kind: kind.name,
            shape: shapes[0].0.to_vec(),
            problem,
        };
        let embedding = self
            .layers
            .iter()
            .rfind(|layer| matches!(layer.op, Op::Embedding))
            .and_then(|layer| {
                let name = layer.info.parameters.first()?.clone();
                let stored = parameters.stored(&name).ok()?.shape();
                Some(layer::Table {
                    name,
                    entries: stored[0],
                    features: stored[1],
                })
            });
        let built =
            layer::plan(kind.name, &settings, &shapes, embedding, self.dtype).map_err(wrong)?;
        let sizes = built
            .parameters
            .iter()
            .map(|p| &p.shape)
            .chain([&built.out_shape]);
        for shape in sizes {
            if size_of_sample(shape).is_none() {
                return Err(wrong(format!(
                    "a tensor of shape {shape:?} is too large; lower its settings"
                )));
            }
        }
        let mut names = Vec::with_capacity(built.parameters.len());
        for wanted in &built.parameters {
            let name = format!("{}.{}", plan.name, wanted.suffix);
            let mut words = key.to_vec();
            words.push(name_word(&name));
            let value = wanted
                .init
                .make(&Key::new(&words), &wanted.shape, self.dtype)
                .map_err(|source| Error::Tensor {
                    layer: plan.name.clone(),
                    kind: kind.name.into(),
                    source,
                })?;
            let trainable = wanted.kind != parameters::Kind::Buffer && !plan.frozen;
            parameters.create(
                &name,
                wanted.kind,
                Some(index as u32),
                value,
                trainable,
                plan.group.clone(),
            )?;
            names.push(name);
        }
        let info = LayerInfo {
            index: index as u32,
            name: plan.name.clone(),
            kind: kind.name.into(),
            parameters: names,
            in_shape: shapes[0].0.to_vec(),
            out_shape: built.out_shape,
            macs: built.macs,
            settings: settings.list(),
            inputs,
        };
        Ok(Layer {
            info,
            op: built.op,
            out_dtype: built.out_dtype,
            last_use: index,
        })
    }

    fn resolve_inputs(
        &self,
        index: usize,
        plan: &LayerPlan,
        plans: &[LayerPlan],
    ) -> Result<Vec<Input>> {
        let field_names = || self.fields.iter().map(|field| field.name.as_str());
        let find_field = |name: &str| {
            field_names()
                .find(|field| *field == name)
                .map(|f| Input::Field(f.into()))
        };
        if plan.inputs.is_empty() {
            if index > 0 {
                return Ok(vec![Input::Layer(index as u32 - 1)]);
            }
            let first = find_field("inputs").ok_or_else(|| Error::Input {
                layer: plan.name.clone(),
                input: "inputs".into(),
                problem: format!(
                    "not a field of the data; say what the first layer reads with inputs = [\"...\"], one of {}",
                    field_names().collect::<Vec<_>>().join(", ")
                ),
            })?;
            return Ok(vec![first]);
        }
        let resolve = |name: &String| {
            let bad = |problem| Error::Input {
                layer: plan.name.clone(),
                input: name.clone(),
                problem,
            };
            match plans.iter().position(|other| other.name == *name) {
                Some(at) if at < index => Ok(Input::Layer(at as u32)),
                Some(at) if at == index => {
                    Err(bad("itself; a layer reads earlier layers only".into()))
                }
                Some(_) => Err(bad("a later layer; move that layer before this one".into())),
                None => find_field(name).ok_or_else(|| {
                    let known = plans[..index]
                        .iter()
                        .map(|other| other.name.as_str())
                        .chain(field_names());
                    bad(match nearest(name, known) {
                        Some(near) => {
                            format!("neither a layer nor a field; did you mean `{near}`?")
                        }
                        None => "neither an earlier layer nor a field of the data".into(),
                    })
                }),
            }
        };
        plan.inputs.iter().map(resolve).collect()
    }

    /// Shape and dtype of one sample of a source.
    fn source(&self, input: &Input) -> (&[usize], DType) {
        match input {
            Input::Layer(at) => {
                let layer = &self.layers[*at as usize];
                (&layer.info.out_shape, layer.out_dtype)
            }
            Input::Field(name) => {
                let field = self.fields.iter().find(|field| field.name == *name);
                field.map_or((&[], self.dtype), |field| (&field.shape, field.dtype))
            }
        }
    }

    fn source_name<'a>(&'a self, input: &'a Input) -> &'a str {
        match input {
            Input::Layer(at) => &self.layers[*at as usize].info.name,
            Input::Field(name) => name,
        }
    }

    /// Number of layers.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Never true: [`Model::build`] refuses an empty list.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// The layers, in order.
    pub fn infos(&self) -> Vec<LayerInfo> {
        self.layers.iter().map(|layer| layer.info.clone()).collect()
    }

    /// Changes a setting that may change between two steps, as [`live_settings`] lists them; gives whether it had
    /// another value before.
    ///
    /// # Errors
    /// No such layer, a setting of it that is fixed, or a value out of its range.
    pub fn set_live(&mut self, layer: &str, setting: &str, value: f64) -> Result<bool> {
        let names = self.layers.iter().map(|layer| layer.info.name.clone());
        let wrong = |kind, problem: String| Error::Setting {
            layer: layer.into(),
            kind,
            setting: setting.into(),
            problem,
        };
        let near = nearest(layer, names.collect::<Vec<_>>().iter().map(String::as_str))
            .map(|near| format!("; did you mean `{near}`?"));
        let Some(found) = self.layers.iter_mut().find(|l| l.info.name == layer) else {
            let problem = format!("no such layer{}", near.unwrap_or_default());
            return Err(wrong("any", problem));
        };
        let kind = KINDS
            .iter()
            .find(|kind| kind.name == found.info.kind)
            .map_or("any", |kind| kind.name);
        let before = match (&mut found.op, setting) {
            (Op::Dropout { rate }, "rate") if Range::Fraction.allows(value) => {
                std::mem::replace(rate, value)
            }
            (Op::Dropout { .. }, "rate") => {
                let expected = Range::Fraction.expected();
                return Err(wrong(kind, format!("expected {expected}, found {value}")));
            }
            _ => return Err(wrong(kind, "it cannot be changed during a run".into())),
        };
        for (name, numbers) in &mut found.info.settings {
            if name == setting {
                *numbers = vec![value];
            }
        }
        Ok(before != value)
    }

    /// The fields the model was built for.
    pub fn fields(&self) -> &[FieldShape] {
        &self.fields
    }

    /// Multiply-accumulates a sample of the layers `from..to`, as far as they exist.
    pub fn macs(&self, from: usize, to: usize) -> u64 {
        let layers = self.layers.iter().take(to).skip(from);
        layers.fold(0, |sum, layer| sum.saturating_add(layer.info.macs))
    }

    /// Runs the layers `from..to`.
    ///
    /// `inputs` holds fields of the batch and, for a range that begins later, outputs of earlier layers under
    /// their names; the name `input` stands for whatever the first layer of the range reads, if that is one
    /// thing. Names that no layer of the range reads are ignored. Every tensor is [samples, ...]. A series may
    /// be shorter than the model was built for where no layer of the range minds (`flatten` and convolutions
    /// do); then all are, by as much.
    /// `overrides` replaces parameters by tensors of the same shape, tracked or not.
    /// `want` asks for more: `LAYER` is that layer's output, `LAYER/mean` and `LAYER/var` the statistics
    /// that a batch-norm used (biased variance of the batch in training, the running ones else), and
    /// `LAYER/probabilities` the attention [samples, heads, t, t].
    /// `dropout_key` must be another one at every pass that shall drop other units.
    ///
    /// # Errors
    /// A range, name or shape that does not fit; the engine's own errors with the layer's name.
    #[allow(clippy::too_many_arguments)]
    pub fn forward(
        &self,
        parameters: &mut ParameterSet,
        from: usize,
        to: usize,
        inputs: &[(String, Tensor)],
        mode: Mode,
        overrides: &BTreeMap<String, Tensor>,
        want: &[String],
        dropout_key: &[u64],
    ) -> Result<Forward> {
        self.check_range(from, to)?;
        self.check_overrides(parameters, overrides)?;
        let mut wanted: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
        for name in want {
            let (at, what) = self.find_wanted(name, from, to)?;
            wanted.entry(at).or_default().push(what);
        }
        let entry = self.entry(from);
        let mut lengths = Vec::new();
        let mut outputs: Vec<Option<Tensor>> = vec![None; to - from];
        let mut extra: BTreeMap<String, Tensor> = BTreeMap::new();
        for (at, layer) in self.layers[from..to]
            .iter()
            .enumerate()
            .map(|(at, layer)| (at + from, layer))
        {
            let mut read = Vec::with_capacity(layer.info.inputs.len());
            for input in &layer.info.inputs {
                let computed = match input {
                    Input::Layer(j) if *j as usize >= from => outputs[*j as usize - from].clone(),
                    _ => None,
                };
                read.push(match computed {
                    Some(tensor) => tensor,
                    None => {
                        let found = self.given(inputs, input, entry, layer)?;
                        self.check_steps(&found, input, layer, from..to, &mut lengths)?;
                        found
                    }
                });
            }
            let asked = wanted.remove(&at).unwrap_or_default();
            let mut pass = Pass {
                parameters,
                overrides,
                mode,
                dropout_key,
                wanted: asked,
                extra: BTreeMap::new(),
            };
            let output = layer::forward(&layer.op, &layer.info, &read, &mut pass)?;
            if pass.wanted.contains(&"") {
                extra.insert(layer.info.name.clone(), output.clone());
            }
            let name = &layer.info.name;
            extra.extend(
                pass.extra
                    .into_iter()
                    .map(|(what, tensor)| (format!("{name}/{what}"), tensor)),
            );
            outputs[at - from] = Some(output);
            // Without a graph, what nobody will read any more is freed here.
            for input in &layer.info.inputs {
                if let Input::Layer(j) = input
                    && *j as usize >= from
                    && self.layers[*j as usize].last_use <= at
                {
                    outputs[*j as usize - from] = None;
                }
            }
        }
        let Some(output) = outputs.pop().flatten() else {
            return refuse("the last layer of the range gave nothing".into());
        };
        let extra = want
            .iter()
            .filter_map(|name| Some((name.clone(), extra.get(name)?.clone())))
            .collect();
        Ok(Forward { output, extra })
    }

    fn check_range(&self, from: usize, to: usize) -> Result<()> {
        if from < to && to <= self.layers.len() {
            return Ok(());
        }
        refuse(format!(
            "layers {from} to {to} do not exist; the model has {} layers, and a range is half-open and not empty",
            self.layers.len()
        ))
    }

    /// What the name `input` stands for in a range, if the first layer reads one thing.
    fn entry(&self, from: usize) -> Option<&Input> {
        let inputs = &self.layers[from].info.inputs;
        let first = inputs.first()?;
        inputs.iter().all(|input| input == first).then_some(first)
    }

    /// Refuses an override of what is no parameter of the model, or of another shape.
    ///
    /// # Errors
    /// As it says.
    pub fn check_overrides(
        &self,
        parameters: &ParameterSet,
        overrides: &BTreeMap<String, Tensor>,
    ) -> Result<()> {
        let names = || {
            self.layers
                .iter()
                .flat_map(|layer| layer.info.parameters.iter().map(String::as_str))
        };
        for (name, tensor) in overrides {
            if !names().any(|known| known == name) {
                let hint = nearest(name, names()).map(|near| format!("; did you mean `{near}`?"));
                return refuse(format!(
                    "override `{name}` is no parameter of the model{}",
                    hint.unwrap_or_default()
                ));
            }
            let expected = parameters.stored(name)?.shape();
            if expected != tensor.shape() {
                return refuse(format!(
                    "override `{name}` has shape {:?}, the parameter has {expected:?}",
                    tensor.shape()
                ));
            }
        }
        Ok(())
    }

    /// The layer and the inner value (empty for its output) that one name of `want` asks for.
    fn find_wanted<'a>(&self, name: &'a str, from: usize, to: usize) -> Result<(usize, &'a str)> {
        let (layer_name, what) = name.split_once('/').unwrap_or((name, ""));
        let Some(at) = self
            .layers
            .iter()
            .position(|layer| layer.info.name == layer_name)
        else {
            let names = self.layers.iter().map(|layer| layer.info.name.as_str());
            let hint = nearest(layer_name, names).map(|near| format!("; did you mean `{near}`?"));
            return refuse(format!(
                "want `{name}`: no such layer{}",
                hint.unwrap_or_default()
            ));
        };
        if !(from..to).contains(&at) {
            return refuse(format!(
                "want `{name}`: layer {at} is outside the range {from} to {to}"
            ));
        }
        let known: &[&str] = match self.layers[at].op {
            Op::BatchNorm { .. } => &["", "mean", "var"],
            Op::Attention { .. } => &["", "probabilities"],
            // What else there is, the architecture knows.
            Op::Declared => return Ok((at, what)),
            _ => &[""],
        };
        if !known.contains(&what) {
            let kind = &self.layers[at].info.kind;
            let offers = known
                .iter()
                .filter(|what| !what.is_empty())
                .map(|what| format!(", `{layer_name}/{what}`"));
            return refuse(format!(
                "want `{name}`: a {kind} layer gives `{layer_name}`{}",
                offers.collect::<String>()
            ));
        }
        Ok((at, what))
    }

    /// The tensor that the caller gave for something that no layer of the range computes.
    fn given(
        &self,
        inputs: &[(String, Tensor)],
        input: &Input,
        entry: Option<&Input>,
        layer: &Layer,
    ) -> Result<Tensor> {
        let name = self.source_name(input);
        let find = |name: &str| {
            inputs
                .iter()
                .find(|(given, _)| given == name)
                .map(|(_, tensor)| tensor)
        };
        let found = find(name).or_else(|| {
            if entry == Some(input) {
                find("input")
            } else {
                None
            }
        });
        let reader = &layer.info.name;
        let Some(tensor) = found else {
            let given: Vec<&str> = inputs.iter().map(|(name, _)| name.as_str()).collect();
            return refuse(format!(
                "layer `{reader}` reads `{name}`, which is not given; given are {given:?}"
            ));
        };
        let (expected, dtype) = self.source(input);
        // How many steps a series has is checked once all layers of the range are known.
        let fits = match (tensor.shape(), expected) {
            ([_, steps, rest @ ..], [most, sizes @ ..]) => {
                rest == sizes && (steps == most || (1..*most).contains(steps))
            }
            (shape, expected) => shape.get(1..) == Some(expected),
        };
        if !fits || tensor.dtype() != dtype {
            let sizes: String = expected.iter().map(|size| format!(", {size}")).collect();
            return refuse(format!(
                "layer `{reader}` reads `{name}`: found {} {:?}, expected {dtype} [samples{sizes}]",
                tensor.dtype(),
                tensor.shape()
            ));
        }
        Ok(tensor.clone())
    }

    /// Refuses a series that is shorter than the model was built for, unless every layer of the range
    /// takes it and every other series is as long. `lengths` remembers what was given before.
    fn check_steps(
        &self,
        tensor: &Tensor,
        input: &Input,
        reader: &Layer,
        range: std::ops::Range<usize>,
        lengths: &mut Vec<(usize, String)>,
    ) -> Result<()> {
        let (expected, dtype) = self.source(input);
        let (Some(&most), Some(&found)) = (expected.first(), tensor.shape().get(1)) else {
            return Ok(());
        };
        let name = self.source_name(input);
        let series = expected.len() == 2 || dtype == DType::I64;
        let minds = self.layers[range].iter().find(|layer| {
            layer.op.along_time(&layer.info.in_shape) == AlongTime::Fixed
                || layer.info.in_shape.first() != Some(&most)
        });
        match minds {
            Some(minds) if found != most => {
                let sizes: String = expected.iter().map(|size| format!(", {size}")).collect();
                let why = if series {
                    format!(
                        "; layer `{}` ({}) takes no other length",
                        minds.info.name, minds.info.kind
                    )
                } else {
                    String::new()
                };
                return refuse(format!(
                    "layer `{}` reads `{name}`: found {dtype} {:?}, expected {dtype} [samples{sizes}]{why}",
                    reader.info.name,
                    tensor.shape(),
                ));
            }
            Some(_) => return Ok(()),
            None => {}
        }
        if let Some((before, other)) = lengths.iter().find(|(before, _)| *before != found) {
            return refuse(format!(
                "`{other}` has {before} steps and `{name}` has {found}; expected as many in both"
            ));
        }
        lengths.push((found, name.to_owned()));
        Ok(())
    }
}

fn refuse<T>(problem: String) -> Result<T> {
    Err(Error::Forward { problem })
}

/// A word that stands for a name in a random key.
fn name_word(name: &str) -> u64 {
    let digest: [u8; 32] = Sha256::digest(name).into();
    u64::from_le_bytes(std::array::from_fn(|at| digest[at]))
}

#[cfg(test)]
mod tests;
