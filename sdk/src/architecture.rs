//! What a model computes: layers over parameters that the host keeps.
//!
//! A plugin creates its parameters and declares its layers in [`Architecture::build`], and computes one layer at a
//! time in [`Architecture::forward`]. Ranges of layers, outputs of layers in between, replaced parameters, gradients
//! and copies of the model follow from that, without a line of the plugin's.

use std::ops::Range;

use crate::bindings::host::espalier::plugin::parameters as host;
use crate::data::{Batch, FieldInfo};
use crate::model::{LayerInfo, LayerInput, Mode};
use crate::options::Options;
use crate::parameters::{Kind, ParameterInfo};
use crate::random;
use crate::run::{Error, RunInfo};
use crate::tensor::Tensor;

/// What a model computes.
///
/// ```no_run
/// use espalier_sdk::architecture::{Architecture, Build, Layer, Pass, Weights};
/// use espalier_sdk::model::LayerInfo;
/// use espalier_sdk::{Error, Options, RunInfo, Tensor};
///
/// #[derive(Options)]
/// struct Settings {
///     /// Units in the middle.
///     #[option(default = 32, min = 1)]
///     units: u64,
/// }
///
/// /// Two matrices with a rectifier between them.
/// struct Two {
///     settings: Settings,
/// }
///
/// impl Architecture for Two {
///     type Options = Settings;
///
///     fn new(_run: &RunInfo, settings: Settings) -> Result<Self, Error> {
///         Ok(Two { settings })
///     }
///
///     fn build(&mut self, build: &mut Build<'_>) -> Result<(), Error> {
///         let [features] = build.inputs()?.shape[..] else {
///             return Err(Error::incompatible("this architecture takes samples of one axis"));
///         };
///         let (units, outputs) = (self.settings.units as u32, build.outputs());
///         build.weight("in", &[features, units], (2.0 / f64::from(features)).sqrt());
///         build.weight("out", &[units, outputs], 1.0 / f64::from(units).sqrt());
///         build.layer(Layer::new("hidden", "dense").parameters(&["in"]).out(&[units]))?;
///         build.layer(Layer::new("answer", "dense").parameters(&["out"]).out(&[outputs]))
///     }
///
///     fn forward(&self, layer: &LayerInfo, x: &[Tensor], weights: &Weights<'_>, _pass: &mut Pass) -> Tensor {
///         match layer.name.as_str() {
///             "hidden" => x[0].matmul(&weights.value("in")).relu(),
///             _ => x[0].matmul(&weights.value("out")),
///         }
///     }
/// }
///
/// espalier_sdk::export!(architecture: Two);
/// ```
pub trait Architecture: Sized + 'static {
    /// What a run file may set.
    type Options: Options;

    /// Once, before anything else. Refuses with an error for the reader of the run.
    fn new(run: &RunInfo, options: Self::Options) -> Result<Self, Error>;

    /// Creates the parameters and declares the layers, in order. The last layer's output has [`Build::outputs`]
    /// numbers along its last axis. Initial values depend on the run's seed alone.
    fn build(&mut self, build: &mut Build<'_>) -> Result<(), Error>;

    /// The output of one layer, from what it reads, in the order of its `inputs`. Depends on nothing else: a call may
    /// come with any batch, any layer, and the parameters of any copy of the model.
    fn forward(
        &self,
        layer: &LayerInfo,
        inputs: &[Tensor],
        weights: &Weights<'_>,
        pass: &mut Pass,
    ) -> Tensor;

    /// The per-sample losses `[count]` of an architecture that has a loss of its own.
    fn loss(&self, batch: &Batch, weights: &Weights<'_>, pass: &mut Pass) -> Option<Tensor> {
        let _ = (batch, weights, pass);
        None
    }
}

/// The parameters of the run's model, or of a copy of it.
///
/// ```no_run
/// # use espalier_sdk::Tensor;
/// # use espalier_sdk::architecture::Weights;
/// # fn f(x: &Tensor, weights: &Weights<'_>) {
/// let y = x.matmul(&weights.value("in"));
/// # }
/// ```
pub struct Weights<'a>(&'a host::ParameterSet);

impl<'a> Weights<'a> {
    pub(crate) fn from_raw(raw: &'a host::ParameterSet) -> Weights<'a> {
        Weights(raw)
    }

    /// The parameter of that name: a tracked leaf, or what the caller of the model put in its place.
    ///
    /// ```no_run
    /// # use espalier_sdk::architecture::Weights;
    /// # fn f(weights: &Weights<'_>) {
    /// let w = weights.value("in");
    /// # }
    /// ```
    pub fn value(&self, name: &str) -> Tensor {
        Tensor::from_raw(host::value(self.0, name))
    }

    /// All parameters, in the order of their creation.
    ///
    /// ```no_run
    /// # use espalier_sdk::architecture::Weights;
    /// # fn f(weights: &Weights<'_>) {
    /// let names: Vec<String> = weights.list().into_iter().map(|p| p.name).collect();
    /// # }
    /// ```
    pub fn list(&self) -> Vec<ParameterInfo> {
        host::list(self.0)
    }

    /// Replaces the value of a buffer, in the mode `train` alone: running statistics.
    ///
    /// ```no_run
    /// # use espalier_sdk::{Mode, Tensor};
    /// # use espalier_sdk::architecture::{Pass, Weights};
    /// # fn f(weights: &Weights<'_>, pass: &Pass, mean: &Tensor) {
    /// if pass.mode() == Mode::Train {
    ///     weights.assign("mean", &(weights.value("mean") * 0.9 + mean * 0.1));
    /// }
    /// # }
    /// ```
    pub fn assign(&self, buffer: &str, value: &Tensor) {
        host::assign(self.0, buffer, value.raw());
    }
}

/// A model being built.
///
/// ```no_run
/// # use espalier_sdk::Error;
/// # use espalier_sdk::architecture::{Build, Layer};
/// # fn f(build: &mut Build<'_>) -> Result<(), Error> {
/// let outputs = build.outputs();
/// build.weight("w", &[64, outputs], 0.02);
/// build.layer(Layer::new("head", "dense").parameters(&["w"]).out(&[outputs]))
/// # }
/// ```
pub struct Build<'a> {
    weights: &'a host::ParameterSet,
    fields: Vec<FieldInfo>,
    outputs: u32,
    layers: Vec<LayerInfo>,
}

impl<'a> Build<'a> {
    pub(crate) fn new(
        weights: &'a host::ParameterSet,
        fields: Vec<FieldInfo>,
        outputs: u32,
    ) -> Build<'a> {
        let layers = Vec::new();
        Build {
            weights,
            fields,
            outputs,
            layers,
        }
    }

    pub(crate) fn into_layers(self) -> Vec<LayerInfo> {
        self.layers
    }

    /// How many numbers the last layer gives along its last axis: classes, or values of a target.
    ///
    /// ```no_run
    /// # use espalier_sdk::architecture::Build;
    /// # fn f(build: &Build<'_>) {
    /// let classes = build.outputs();
    /// # }
    /// ```
    pub fn outputs(&self) -> u32 {
        self.outputs
    }

    /// The fields of a sample that the model may read.
    ///
    /// ```no_run
    /// # use espalier_sdk::architecture::Build;
    /// # fn f(build: &Build<'_>) {
    /// let edges = build.fields().iter().find(|field| field.name == "edges");
    /// # }
    /// ```
    pub fn fields(&self) -> &[FieldInfo] {
        &self.fields
    }

    /// The field `inputs`; a refusal where the data has none.
    ///
    /// ```no_run
    /// # use espalier_sdk::Error;
    /// # use espalier_sdk::architecture::Build;
    /// # fn f(build: &Build<'_>) -> Result<(), Error> {
    /// let shape = &build.inputs()?.shape;
    /// # Ok(())
    /// # }
    /// ```
    pub fn inputs(&self) -> Result<&FieldInfo, Error> {
        let names = || {
            let all = self.fields.iter().map(|field| field.name.as_str());
            all.collect::<Vec<_>>().join(", ")
        };
        self.fields
            .iter()
            .find(|field| field.name == "inputs")
            .ok_or_else(|| {
                Error::incompatible(format!(
                    "the architecture reads the field `inputs`; a sample has {}",
                    names()
                ))
            })
    }

    /// Adds a trainable matrix or kernel, normal with this standard deviation. Its numbers depend on the run's seed
    /// and the name.
    ///
    /// ```no_run
    /// # use espalier_sdk::architecture::Build;
    /// # fn f(build: &Build<'_>) {
    /// build.weight("encoder", &[64, 256], 0.02);
    /// # }
    /// ```
    pub fn weight(&self, name: &str, shape: &[u32], deviation: f64) {
        self.create(name, Kind::Weight, &normal(name, shape, deviation), true);
    }

    /// Adds a trainable table that is looked up by index, `[entries, features]`, normal with this standard deviation.
    ///
    /// ```no_run
    /// # use espalier_sdk::architecture::Build;
    /// # fn f(build: &Build<'_>) {
    /// build.embedding("tokens", &[256, 64], 0.02);
    /// # }
    /// ```
    pub fn embedding(&self, name: &str, shape: &[u32], deviation: f64) {
        self.create(name, Kind::Embedding, &normal(name, shape, deviation), true);
    }

    /// Adds a trainable offset of zeros.
    ///
    /// ```no_run
    /// # use espalier_sdk::architecture::Build;
    /// # fn f(build: &Build<'_>) {
    /// build.bias("offset", &[64]);
    /// # }
    /// ```
    pub fn bias(&self, name: &str, shape: &[u32]) {
        self.create(name, Kind::Bias, &Tensor::zeros(shape), true);
    }

    /// Adds a parameter of any kind and value.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # use espalier_sdk::architecture::Build;
    /// # use espalier_sdk::parameters::Kind;
    /// # fn f(build: &Build<'_>) {
    /// build.create("scale", Kind::Norm, &Tensor::ones(&[64]), true);
    /// # }
    /// ```
    pub fn create(&self, name: &str, kind: Kind, init: &Tensor, trainable: bool) {
        host::create(self.weights, name, kind, init.raw(), trainable);
    }

    /// Declares the next layer. Refuses one that reads what is not there.
    ///
    /// ```no_run
    /// # use espalier_sdk::Error;
    /// # use espalier_sdk::architecture::{Build, Layer};
    /// # fn f(build: &mut Build<'_>) -> Result<(), Error> {
    /// build.layer(Layer::new("embed", "embedding").parameters(&["tokens"]).out(&[64, 32]))
    /// # }
    /// ```
    pub fn layer(&mut self, layer: Layer) -> Result<(), Error> {
        let mut info = layer.0;
        info.index = self.layers.len() as u32;
        if info.inputs.is_empty() {
            info.inputs.push(match info.index {
                0 => LayerInput::Field("inputs".into()),
                n => LayerInput::Layer(n - 1),
            });
        }
        for input in &mut info.inputs {
            let LayerInput::Field(name) = input else {
                continue;
            };
            if let Some(at) = self.layers.iter().position(|other| other.name == *name) {
                *input = LayerInput::Layer(at as u32);
            } else if !self.fields.iter().any(|field| field.name == *name) {
                return Err(Error::incompatible(format!(
                    "layer `{}` reads `{name}`, which is neither an earlier layer nor a field of a sample",
                    info.name
                )));
            }
        }
        info.in_shape = match &info.inputs[0] {
            LayerInput::Layer(at) => self.layers[*at as usize].out_shape.clone(),
            LayerInput::Field(name) => {
                let field = self.fields.iter().find(|field| field.name == *name);
                field.map_or(Vec::new(), |field| field.shape.clone())
            }
        };
        self.layers.push(info);
        Ok(())
    }
}

/// Normal numbers that depend on the run's seed and a name.
fn normal(name: &str, shape: &[u32], deviation: f64) -> Tensor {
    // FNV-1a.
    let word = name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    random::normal(&[word], shape) * deviation
}

/// A layer being declared. Where it says nothing, it reads the layer before it, the first one the field `inputs`.
///
/// ```no_run
/// # use espalier_sdk::architecture::Layer;
/// let layer = Layer::new("mix", "attention").reads(&["embed"]).parameters(&["q", "k"]).out(&[64, 32]).macs(131_072);
/// ```
pub struct Layer(LayerInfo);

impl Layer {
    /// A layer of a kind: a word for readers, or one of the built-in kinds where it is exactly that.
    ///
    /// ```no_run
    /// # use espalier_sdk::architecture::Layer;
    /// let layer = Layer::new("embed", "embedding");
    /// ```
    pub fn new(name: &str, kind: &str) -> Layer {
        Layer(LayerInfo {
            index: 0,
            name: name.into(),
            kind: kind.into(),
            inputs: Vec::new(),
            parameters: Vec::new(),
            in_shape: Vec::new(),
            out_shape: Vec::new(),
            macs: 0,
            settings: Vec::new(),
        })
    }

    /// What it reads: earlier layers or fields of a sample, by name.
    ///
    /// ```no_run
    /// # use espalier_sdk::architecture::Layer;
    /// let sum = Layer::new("sum", "add").reads(&["left", "right"]);
    /// ```
    pub fn reads(mut self, names: &[&str]) -> Layer {
        let all = names.iter().map(|name| LayerInput::Field((*name).into()));
        self.0.inputs = all.collect();
        self
    }

    /// The parameters it uses. Several layers may use one.
    ///
    /// ```no_run
    /// # use espalier_sdk::architecture::Layer;
    /// let layer = Layer::new("head", "dense").parameters(&["head"]);
    /// ```
    pub fn parameters(mut self, names: &[&str]) -> Layer {
        self.0.parameters = names.iter().map(|name| name.to_string()).collect();
        self
    }

    /// Shape of one sample of its output.
    ///
    /// ```no_run
    /// # use espalier_sdk::architecture::Layer;
    /// let layer = Layer::new("head", "dense").out(&[10]);
    /// ```
    pub fn out(mut self, shape: &[u32]) -> Layer {
        self.0.out_shape = shape.to_vec();
        self
    }

    /// Multiply-accumulates a sample.
    ///
    /// ```no_run
    /// # use espalier_sdk::architecture::Layer;
    /// let layer = Layer::new("head", "dense").macs(64 * 10);
    /// ```
    pub fn macs(mut self, macs: u64) -> Layer {
        self.0.macs = macs;
        self
    }

    /// A setting, for readers.
    ///
    /// ```no_run
    /// # use espalier_sdk::architecture::Layer;
    /// let layer = Layer::new("mix", "attention").setting("heads", 4.0);
    /// ```
    pub fn setting(mut self, name: &str, value: f64) -> Layer {
        self.0.settings.push((name.into(), value));
        self
    }
}

/// One forward pass, as a layer sees it.
///
/// ```no_run
/// # use espalier_sdk::Tensor;
/// # use espalier_sdk::architecture::Pass;
/// # fn f(x: &Tensor, pass: &mut Pass) {
/// let y = pass.dropout(&x.relu(), 0.1);
/// # }
/// ```
pub struct Pass {
    mode: Mode,
    key: Vec<u64>,
    want: Vec<String>,
    /// The layer at work.
    layer: String,
    /// Its place, and draws in it so far: what keys the next draw.
    place: (u64, u64),
    given: Vec<(String, Tensor)>,
}

impl Pass {
    pub(crate) fn new(mode: Mode, key: Vec<u64>, want: Vec<String>) -> Pass {
        Pass {
            mode,
            key,
            want,
            layer: String::new(),
            place: (0, 0),
            given: Vec::new(),
        }
    }

    /// Runs some layers and collects what is wanted of them.
    pub(crate) fn run<A: Architecture>(
        &mut self,
        plugin: &A,
        layers: &[LayerInfo],
        range: Range<usize>,
        given: &[(String, Tensor)],
        weights: &Weights<'_>,
    ) -> Tensor {
        let find = |name: &str| given.iter().find(|(known, _)| known == name);
        let mut outputs: Vec<Option<Tensor>> = Vec::new();
        for layer in &layers[range.clone()] {
            let read = |input: &LayerInput| {
                let name = match input {
                    LayerInput::Layer(at) if *at as usize >= range.start => {
                        return outputs[*at as usize - range.start].clone();
                    }
                    LayerInput::Layer(at) => layers[*at as usize].name.as_str(),
                    LayerInput::Field(name) => name.as_str(),
                };
                let found = find(name).or_else(|| find("input"));
                found.map(|(_, t)| t.clone())
            };
            let inputs: Option<Vec<Tensor>> = layer.inputs.iter().map(read).collect();
            let Some(inputs) = inputs else {
                panic!("layer `{}` is not given all that it reads", layer.name);
            };
            (self.layer, self.place) = (layer.name.clone(), (u64::from(layer.index), 0));
            let output = plugin.forward(layer, &inputs, weights, self);
            if self.want.contains(&layer.name) {
                self.given.push((layer.name.clone(), output.clone()));
            }
            outputs.push(Some(output));
            // What no later layer reads is freed here.
            for (at, kept) in outputs.iter_mut().enumerate() {
                let index = LayerInput::Layer((range.start + at) as u32);
                let later = &layers[layer.index as usize + 1..range.end];
                let read = |other: &LayerInfo| other.inputs.iter().any(|i| same(i, &index));
                if layer.index as usize != range.start + at && !later.iter().any(read) {
                    *kept = None;
                }
            }
        }
        match outputs.pop().flatten() {
            Some(output) => output,
            None => panic!("a range without layers"),
        }
    }

    /// What was wanted and is there, in the order of `want`.
    pub(crate) fn into_given(self) -> Vec<(String, Tensor)> {
        let Pass { want, given, .. } = self;
        let find = |name: String| {
            let found = given.iter().find(|(known, _)| *known == name);
            found.map(|(_, t)| (name, t.clone()))
        };
        want.into_iter().filter_map(find).collect()
    }

    /// How layers behave that differ between training and measuring.
    ///
    /// ```no_run
    /// # use espalier_sdk::Mode;
    /// # use espalier_sdk::architecture::Pass;
    /// # fn f(pass: &Pass) {
    /// let measured = pass.mode() == Mode::Eval;
    /// # }
    /// ```
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Each element 0 with probability `rate`, else divided by 1 - `rate`; in the mode `eval` nothing happens.
    /// Other layers, passes and steps drop others.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # use espalier_sdk::architecture::Pass;
    /// # fn f(x: &Tensor, pass: &mut Pass) {
    /// let y = pass.dropout(x, 0.1);
    /// # }
    /// ```
    pub fn dropout(&mut self, x: &Tensor, rate: f64) -> Tensor {
        if self.mode == Mode::Eval || rate == 0.0 {
            return x.clone();
        }
        x.dropout(rate, &self.key())
    }

    /// A key for random numbers that no other draw of this run has.
    ///
    /// ```no_run
    /// # use espalier_sdk::random;
    /// # use espalier_sdk::architecture::Pass;
    /// # fn f(pass: &mut Pass) {
    /// let noise = random::normal(&pass.key(), &[32, 64]);
    /// # }
    /// ```
    pub fn key(&mut self) -> Vec<u64> {
        let mut key = self.key.clone();
        key.extend([self.place.0, self.place.1]);
        self.place.1 += 1;
        key
    }

    /// Offers an inner value of the layer at work, which a caller asks for as `LAYER/what`. Computed only then.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # use espalier_sdk::architecture::Pass;
    /// # fn f(scores: &Tensor, pass: &mut Pass) {
    /// pass.offer("probabilities", || scores.softmax(-1));
    /// # }
    /// ```
    pub fn offer(&mut self, what: &str, value: impl FnOnce() -> Tensor) {
        let name = format!("{}/{what}", self.layer);
        if self.want.contains(&name) {
            self.given.push((name, value()));
        }
    }
}

fn same(a: &LayerInput, b: &LayerInput) -> bool {
    matches!((a, b), (LayerInput::Layer(a), LayerInput::Layer(b)) if a == b)
}
