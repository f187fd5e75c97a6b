//! One layer: its shape rule, its parameters and its forward pass, kind by kind.

use std::collections::BTreeMap;

use espalier_tensor::random::{self, Key};
use espalier_tensor::{DType, Tensor, nn, ops};

use super::kinds::Settings;
use super::{Error, LayerInfo, Mode, Result};
use crate::parameters::{Kind, ParameterSet};

/// What a layer computes, with its settings as it needs them. Shapes are those of one sample.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Linear {
        bias: bool,
    },
    Conv2d {
        stride: (usize, usize),
        padding: (usize, usize),
        dilation: (usize, usize),
        groups: usize,
        bias: bool,
    },
    BatchNorm {
        momentum: f64,
        epsilon: f64,
    },
    LayerNorm {
        epsilon: f64,
        affine: bool,
        axes: Vec<isize>,
    },
    Relu,
    Tanh,
    Sigmoid,
    Gelu,
    Elu {
        alpha: f64,
    },
    Silu,
    Hardtanh {
        low: f64,
        high: f64,
    },
    GroupSort {
        group: usize,
    },
    MaxPool {
        kernel: (usize, usize),
        stride: (usize, usize),
        padding: (usize, usize),
    },
    AveragePool {
        kernel: (usize, usize),
        stride: (usize, usize),
        padding: (usize, usize),
    },
    Flatten,
    Dropout {
        rate: f64,
    },
    Embedding,
    /// A learned position is a parameter, a fixed one stands here.
    Position {
        fixed: Option<Tensor>,
    },
    Attention {
        heads: usize,
        causal: bool,
    },
    Lstm,
    Rnn,
    Add,
    Concat {
        axis: usize,
    },
    Identity,
    CosineClassifier {
        scale: f64,
    },
    TiedLinear {
        /// Name of the embedding's weight.
        table: String,
    },
    /// An architecture computes it.
    Declared,
}

/// What a layer does along the first axis of a sample, where that axis is time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AlongTime {
    /// Each step by itself.
    Alone,
    /// Each step and those before it: by attention.
    Attends,
    /// Each step and those before it: by a recurrence.
    Recurs,
    /// Every step sees every other one; any number of steps will do.
    All,
    /// It needs as many steps as it was built for, or has no time.
    Fixed,
}

impl Op {
    /// What the layer does along time, given the shape of a sample of its input.
    pub(super) fn along_time(&self, in_shape: &[usize]) -> AlongTime {
        match self {
            Op::Declared => return AlongTime::Fixed,
            Op::Embedding => return AlongTime::Alone,
            // Whole numbers that have not met their embedding yet.
            Op::Identity if in_shape.len() == 1 => return AlongTime::Alone,
            _ if in_shape.len() != 2 => return AlongTime::Fixed,
            _ => {}
        }
        match self {
            Op::Linear { .. }
            | Op::LayerNorm { .. }
            | Op::Relu
            | Op::Tanh
            | Op::Sigmoid
            | Op::Gelu
            | Op::Elu { .. }
            | Op::Silu
            | Op::Hardtanh { .. }
            | Op::GroupSort { .. }
            | Op::Dropout { .. }
            | Op::Embedding
            | Op::TiedLinear { .. }
            | Op::Position { .. }
            | Op::Add
            | Op::Identity => AlongTime::Alone,
            Op::Concat { axis } if *axis > 0 => AlongTime::Alone,
            Op::Attention { causal: true, .. } => AlongTime::Attends,
            Op::Attention { causal: false, .. } => AlongTime::All,
            Op::Lstm | Op::Rnn => AlongTime::Recurs,
            Op::Conv2d { .. }
            | Op::Declared
            | Op::BatchNorm { .. }
            | Op::MaxPool { .. }
            | Op::AveragePool { .. }
            | Op::Flatten
            | Op::Concat { .. }
            | Op::CosineClassifier { .. } => AlongTime::Fixed,
        }
    }
}

/// How a parameter begins.
pub(super) enum Init {
    /// Uniform between minus and plus this.
    Uniform(f64),
    /// Normal with this standard deviation.
    Normal(f64),
    /// This value everywhere.
    Full(f64),
}

impl Init {
    pub(super) fn make(
        &self,
        key: &Key,
        shape: &[usize],
        dtype: DType,
    ) -> espalier_tensor::Result<Tensor> {
        match *self {
            Init::Uniform(bound) => {
                let unit = random::uniform(key, shape, dtype)?;
                ops::subtract(&ops::multiply(&unit, 2.0 * bound)?, bound)
            }
            Init::Normal(deviation) => {
                ops::multiply(&random::normal(key, shape, dtype)?, deviation)
            }
            Init::Full(value) => Tensor::full(shape, value, dtype),
        }
    }
}

/// A parameter that a layer asks for.
pub(super) struct Wanted {
    /// What follows the layer's name and a dot.
    pub suffix: &'static str,
    pub kind: Kind,
    pub shape: Vec<usize>,
    pub init: Init,
}

/// What the shape rule of a kind finds.
pub(super) struct Plan {
    pub op: Op,
    pub out_shape: Vec<usize>,
    pub out_dtype: DType,
    pub macs: u64,
    pub parameters: Vec<Wanted>,
}

/// The table of an embedding.
pub(super) struct Table {
    /// Name of the parameter.
    pub name: String,
    pub entries: usize,
    pub features: usize,
}

/// Applies the shape rule of a kind to the shapes and dtypes of its inputs. `embedding` is the nearest
/// one before the layer. `Err` is the problem in words;
/// the caller adds layer, kind and input shape.
pub(super) fn plan(
    kind: &'static str,
    settings: &Settings,
    inputs: &[(&[usize], DType)],
    embedding: Option<Table>,
    dtype: DType,
) -> std::result::Result<Plan, String> {
    let (shape, input_dtype) = inputs[0];
    if inputs.len() > 1 && !matches!(kind, "add" | "concat") {
        return Err(format!(
            "it is given {} inputs but takes one; join them with add or concat",
            inputs.len()
        ));
    }
    let whole = input_dtype != dtype;
    if whole && !matches!(kind, "embedding" | "flatten" | "identity" | "concat") {
        return Err(format!(
            "its input has dtype {input_dtype}, expected {dtype}; put a layer of kind \"embedding\" before it, \
             or store the field as {dtype}"
        ));
    }
    let same = |op| Ok(Plan::same(op, shape, dtype));
    match kind {
        "linear" => {
            let [before @ .., width] = shape else {
                return Err(need_vector(shape));
            };
            if before.len() > 1 {
                return Err(need_vector(shape));
            }
            let (features, bias) = (settings.count("features"), settings.flag("bias"));
            let positions: usize = before.iter().product();
            let mut parameters = vec![weight("weight", &[features, *width], fan_in(*width))];
            if bias {
                parameters.push(Wanted {
                    kind: Kind::Bias,
                    ..weight("bias", &[features], fan_in(*width))
                });
            }
            Ok(Plan {
                op: Op::Linear { bias },
                out_shape: [before, &[features]].concat(),
                out_dtype: dtype,
                macs: macs(&[positions, *width, features]),
                parameters,
            })
        }
        "conv2d" => conv2d(settings, shape, dtype),
        "batch-norm" => {
            let Some(&channels) = shape.first() else {
                return Err("expected at least one axis, the channels".into());
            };
            let norm = |suffix, kind, value| Wanted {
                suffix,
                kind,
                shape: vec![channels],
                init: Init::Full(value),
            };
            let op = Op::BatchNorm {
                momentum: settings.number("momentum"),
                epsilon: settings.number("epsilon"),
            };
            let parameters = vec![
                norm("weight", Kind::Norm, 1.0),
                norm("bias", Kind::Norm, 0.0),
                norm("running-mean", Kind::Buffer, 0.0),
                norm("running-var", Kind::Buffer, 1.0),
            ];
            Ok(Plan {
                parameters,
                ..Plan::same(op, shape, dtype)
            })
        }
        "layer-norm" => {
            if shape.is_empty() {
                return Err("expected at least one axis".into());
            }
            let count = if shape.len() == 2 { 1 } else { shape.len() };
            let axes = (0..count)
                .map(|back| back as isize - count as isize)
                .collect();
            let affine = settings.flag("affine");
            let op = Op::LayerNorm {
                epsilon: settings.number("epsilon"),
                affine,
                axes,
            };
            let over = shape[shape.len() - count..].to_vec();
            let norm = |suffix, value| Wanted {
                suffix,
                kind: Kind::Norm,
                shape: over.clone(),
                init: Init::Full(value),
            };
            let parameters = if affine {
                vec![norm("weight", 1.0), norm("bias", 0.0)]
            } else {
                Vec::new()
            };
            Ok(Plan {
                parameters,
                ..Plan::same(op, shape, dtype)
            })
        }
        "relu" => same(Op::Relu),
        "tanh" => same(Op::Tanh),
        "sigmoid" => same(Op::Sigmoid),
        "gelu" => same(Op::Gelu),
        "elu" => same(Op::Elu {
            alpha: settings.number("alpha"),
        }),
        "silu" => same(Op::Silu),
        "hardtanh" => {
            let (low, high) = (settings.number("low"), settings.number("high"));
            if low >= high {
                return Err(format!("low = {low} is not below high = {high}; swap them"));
            }
            same(Op::Hardtanh { low, high })
        }
        "group-sort" => {
            let group = settings.count("group");
            match shape {
                [features, ..] if shape.len() != 2 && features % group == 0 => {
                    same(Op::GroupSort { group })
                }
                [.., features] if shape.len() == 2 && features % group == 0 => {
                    same(Op::GroupSort { group })
                }
                _ => Err(format!(
                    "expected a number of features that {group} divides; change group or the features"
                )),
            }
        }
        "max-pool" | "average-pool" => pool(kind, settings, shape, dtype),
        "flatten" => Ok(Plan {
            out_shape: vec![shape.iter().product()],
            out_dtype: input_dtype,
            ..Plan::same(Op::Flatten, shape, dtype)
        }),
        "dropout" => same(Op::Dropout {
            rate: settings.number("rate"),
        }),
        "embedding" => {
            if input_dtype != DType::I64 {
                return Err(format!(
                    "its input has dtype {input_dtype}, expected i64 indices; store the field as whole numbers"
                ));
            }
            if settings.count("entries") == 0 {
                return Err(
                    "expected a vocabulary, which the run's environment would give, or `entries = N`"
                        .into(),
                );
            }
            let table = vec![settings.count("entries"), settings.count("features")];
            let out_shape = [shape, &table[1..]].concat();
            let wanted = Wanted {
                suffix: "weight",
                kind: Kind::Embedding,
                shape: table,
                init: Init::Normal(settings.number("deviation")),
            };
            Ok(Plan {
                op: Op::Embedding,
                out_shape,
                out_dtype: dtype,
                macs: 0,
                parameters: vec![wanted],
            })
        }
        "position" => {
            let [steps, features] = positions(shape)?;
            if settings.flag("learned") {
                let wanted = Wanted {
                    suffix: "weight",
                    kind: Kind::Embedding,
                    shape: shape.to_vec(),
                    init: Init::Normal(0.02),
                };
                return Ok(Plan {
                    parameters: vec![wanted],
                    ..Plan::same(Op::Position { fixed: None }, shape, dtype)
                });
            }
            let table = sines(steps, features, dtype).map_err(|error| error.to_string())?;
            same(Op::Position { fixed: Some(table) })
        }
        "attention" => {
            let [steps, features] = positions(shape)?;
            let heads = settings.count("heads");
            if features % heads != 0 {
                return Err(format!(
                    "{heads} heads do not divide {features} features; change one of the two"
                ));
            }
            // Xavier's bound for the three stacked projections, as torch.nn.MultiheadAttention has it.
            let bound = (6.0 / (4 * features) as f64).sqrt();
            let zero = |suffix, size| Wanted {
                suffix,
                kind: Kind::Bias,
                shape: vec![size],
                init: Init::Full(0.0),
            };
            let parameters = vec![
                weight("in-weight", &[3 * features, features], bound),
                zero("in-bias", 3 * features),
                weight("out-weight", &[features, features], fan_in(features)),
                zero("out-bias", features),
            ];
            let op = Op::Attention {
                heads,
                causal: settings.flag("causal"),
            };
            let cost = macs(&[4, steps, features, features])
                .saturating_add(macs(&[2, steps, steps, features]));
            Ok(Plan {
                macs: cost,
                parameters,
                ..Plan::same(op, shape, dtype)
            })
        }
        "lstm" | "rnn" => {
            let [steps, width] = positions(shape)?;
            let hidden = settings.count("features");
            let (op, gates) = if kind == "lstm" {
                (Op::Lstm, 4)
            } else {
                (Op::Rnn, 1)
            };
            let bound = fan_in(hidden);
            let bias = |suffix| Wanted {
                kind: Kind::Bias,
                ..weight(suffix, &[gates * hidden], bound)
            };
            Ok(Plan {
                op,
                out_shape: vec![steps, hidden],
                out_dtype: dtype,
                macs: macs(&[steps, gates * hidden, hidden + width]),
                parameters: vec![
                    weight("weight-ih", &[gates * hidden, width], bound),
                    weight("weight-hh", &[gates * hidden, hidden], bound),
                    bias("bias-ih"),
                    bias("bias-hh"),
                ],
            })
        }
        "add" => {
            if inputs.len() < 2 {
                return Err(
                    "expected two or more inputs; name them with inputs = [\"...\", \"...\"]"
                        .into(),
                );
            }
            if let Some((other, _)) = inputs.iter().find(|(other, _)| *other != shape) {
                return Err(format!(
                    "its inputs have shapes {shape:?} and {other:?}; expected one shape; bring them to one with a \
                     linear or conv2d layer (kernel 1) on the shorter path"
                ));
            }
            same(Op::Add)
        }
        "concat" => concat(settings, inputs),
        "identity" => Ok(Plan {
            out_dtype: input_dtype,
            ..Plan::same(Op::Identity, shape, dtype)
        }),
        "cosine-classifier" => {
            let [width] = shape else {
                return Err(need_vector(shape));
            };
            let features = settings.count("features");
            Ok(Plan {
                op: Op::CosineClassifier {
                    scale: settings.number("scale"),
                },
                out_shape: vec![features],
                out_dtype: dtype,
                macs: macs(&[*width, features]),
                parameters: vec![weight("weight", &[features, *width], fan_in(*width))],
            })
        }
        "tied-linear" => {
            let Some(table) = embedding else {
                return Err(
                    "there is no embedding before it whose table it could use; put one there, or use \"linear\""
                        .into(),
                );
            };
            let [before @ .., width] = shape else {
                return Err(need_vector(shape));
            };
            if before.len() > 1 {
                return Err(need_vector(shape));
            }
            if *width != table.features {
                return Err(format!(
                    "`{}` has {} features; bring the input to as many with a linear layer",
                    table.name, table.features
                ));
            }
            Ok(Plan {
                out_shape: [before, &[table.entries]].concat(),
                macs: macs(&[before.iter().product(), *width, table.entries]),
                ..Plan::same(Op::TiedLinear { table: table.name }, shape, dtype)
            })
        }
        other => Err(format!("kind `{other}` is listed but not built")),
    }
}

impl Plan {
    fn same(op: Op, shape: &[usize], dtype: DType) -> Plan {
        Plan {
            op,
            out_shape: shape.to_vec(),
            out_dtype: dtype,
            macs: 0,
            parameters: Vec::new(),
        }
    }
}

fn weight(suffix: &'static str, shape: &[usize], bound: f64) -> Wanted {
    Wanted {
        suffix,
        kind: Kind::Weight,
        shape: shape.to_vec(),
        init: Init::Uniform(bound),
    }
}

/// PyTorch's default for linear and convolution, `kaiming_uniform_(a = sqrt(5))`: sqrt(6 / ((1 + 5) fan)).
fn fan_in(fan: usize) -> f64 {
    1.0 / (fan.max(1) as f64).sqrt()
}

/// A product that stays at its largest value instead of wrapping: a count for people, not an index.
fn macs(sizes: &[usize]) -> u64 {
    sizes
        .iter()
        .fold(1u64, |product, size| product.saturating_mul(*size as u64))
}

fn need_vector(shape: &[usize]) -> String {
    if shape.is_empty() {
        return "expected [features], found one number a sample".into();
    }
    "expected [features] or [positions, features]; put a layer of kind \"flatten\" before it".into()
}

fn positions(shape: &[usize]) -> std::result::Result<[usize; 2], String> {
    match shape {
        [steps, features] => Ok([*steps, *features]),
        _ => Err(
            "expected [positions, features]; give it a series, or the output of an embedding"
                .into(),
        ),
    }
}

fn image(shape: &[usize]) -> std::result::Result<[usize; 3], String> {
    match shape {
        [channels, height, width] => Ok([*channels, *height, *width]),
        _ => Err(
            "expected [channels, height, width]; convolution and pooling stand before \"flatten\""
                .into(),
        ),
    }
}

/// Number of windows along one axis: floor((size + 2 padding - dilation (kernel - 1) - 1) / stride) + 1.
fn windows(
    size: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
    dilation: usize,
) -> std::result::Result<usize, String> {
    let span = dilation * (kernel - 1) + 1;
    let padded = size + 2 * padding;
    if span > padded {
        return Err(format!(
            "a window of {span} does not fit into {size} with {padding} of padding on each side; use a smaller \
             kernel or more padding"
        ));
    }
    Ok((padded - span) / stride + 1)
}

fn conv2d(settings: &Settings, shape: &[usize], dtype: DType) -> std::result::Result<Plan, String> {
    let [channels, height, width] = image(shape)?;
    let (features, groups, bias) = (
        settings.count("features"),
        settings.count("groups"),
        settings.flag("bias"),
    );
    let (kernel, stride) = (settings.pair("kernel"), settings.pair("stride"));
    let (padding, dilation) = (settings.pair("padding"), settings.pair("dilation"));
    if channels % groups != 0 || features % groups != 0 {
        return Err(format!(
            "{groups} groups must divide {channels} input channels and {features} features"
        ));
    }
    let out_height = windows(height, kernel.0, stride.0, padding.0, dilation.0)?;
    let out_width = windows(width, kernel.1, stride.1, padding.1, dilation.1)?;
    let taps = [channels / groups, kernel.0, kernel.1];
    // Sizes that are too large are refused once all are known; until then they must not overflow.
    let fan = fan_in(
        taps.iter()
            .fold(1, |product: usize, n| product.saturating_mul(*n)),
    );
    let mut parameters = vec![weight(
        "weight",
        &[features, taps[0], taps[1], taps[2]],
        fan,
    )];
    if bias {
        parameters.push(Wanted {
            kind: Kind::Bias,
            ..weight("bias", &[features], fan)
        });
    }
    Ok(Plan {
        op: Op::Conv2d {
            stride,
            padding,
            dilation,
            groups,
            bias,
        },
        out_shape: vec![features, out_height, out_width],
        out_dtype: dtype,
        macs: macs(&[features, out_height, out_width, taps[0], taps[1], taps[2]]),
        parameters,
    })
}

fn pool(
    kind: &str,
    settings: &Settings,
    shape: &[usize],
    dtype: DType,
) -> std::result::Result<Plan, String> {
    let [channels, height, width] = image(shape)?;
    let (kernel, stride) = (settings.pair("kernel"), settings.pair("stride"));
    let padding = settings.pair("padding");
    if padding.0 > kernel.0 / 2 || padding.1 > kernel.1 / 2 {
        // A window that lies in the padding alone has no largest value.
        return Err(format!(
            "padding {padding:?} is more than half the kernel {kernel:?}; lower it"
        ));
    }
    let out_height = windows(height, kernel.0, stride.0, padding.0, 1)?;
    let out_width = windows(width, kernel.1, stride.1, padding.1, 1)?;
    let op = match kind {
        "max-pool" => Op::MaxPool {
            kernel,
            stride,
            padding,
        },
        _ => Op::AveragePool {
            kernel,
            stride,
            padding,
        },
    };
    Ok(Plan {
        out_shape: vec![channels, out_height, out_width],
        ..Plan::same(op, shape, dtype)
    })
}

fn concat(settings: &Settings, inputs: &[(&[usize], DType)]) -> std::result::Result<Plan, String> {
    let ((shape, dtype), axis) = (inputs[0], settings.count("axis"));
    if inputs.len() < 2 {
        return Err(
            "expected two or more inputs; name them with inputs = [\"...\", \"...\"]".into(),
        );
    }
    if axis >= shape.len() {
        return Err(format!(
            "axis {axis} does not exist; a sample has {} axes, counted from 0",
            shape.len()
        ));
    }
    let mut out_shape = shape.to_vec();
    out_shape[axis] = 0;
    for (other, other_dtype) in inputs {
        let fits = other.len() == shape.len()
            && *other_dtype == dtype
            && (0..shape.len()).all(|at| at == axis || other[at] == shape[at]);
        if !fits {
            return Err(format!(
                "its inputs have {dtype} {shape:?} and {other_dtype} {other:?}; expected shapes that differ along \
                 axis {axis} alone"
            ));
        }
        out_shape[axis] += other[axis];
    }
    Ok(Plan {
        out_shape,
        ..Plan::same(Op::Concat { axis }, shape, dtype)
    })
}

/// Vaswani et al. 2017, section 3.5: sines at even features, cosines at odd ones.
fn sines(steps: usize, features: usize, dtype: DType) -> espalier_tensor::Result<Tensor> {
    // Refuses what the budget cannot hold before the table is worked out, which no budget counts.
    Tensor::full(&[steps, features], 0.0, DType::F64)?;
    let mut values = Vec::with_capacity(steps.saturating_mul(features));
    for step in 0..steps {
        for feature in 0..features {
            let rate = 10000f64.powf(-((feature / 2 * 2) as f64) / features as f64);
            let angle = step as f64 * rate;
            values.push(if feature % 2 == 0 {
                angle.sin()
            } else {
                angle.cos()
            });
        }
    }
    Tensor::from_f64s(&values, &[steps, features], dtype)
}

/// What a layer's forward pass may see.
pub(super) struct Pass<'a> {
    pub parameters: &'a mut ParameterSet,
    pub overrides: &'a BTreeMap<String, Tensor>,
    pub mode: Mode,
    pub dropout_key: &'a [u64],
    /// What `want` asks of this layer beside its output: `mean`, `var`, `probabilities`.
    pub wanted: Vec<&'a str>,
    /// What was asked for, by that name.
    pub extra: BTreeMap<String, Tensor>,
}

impl Pass<'_> {
    pub fn parameter(&mut self, layer: &LayerInfo, suffix: &str) -> Result<Tensor> {
        // The full name, which the layer knows: `LAYER.suffix`.
        let full = layer.parameters.iter().find(|name| {
            name.ends_with(suffix) && name.len() == layer.name.len() + 1 + suffix.len()
        });
        match full {
            Some(name) => self.named(name),
            None => self.named(&format!("{}.{suffix}", layer.name)),
        }
    }

    /// A parameter by its full name, which another layer may own.
    pub fn named(&mut self, name: &str) -> Result<Tensor> {
        match self.overrides.get(name) {
            Some(tensor) => Ok(tensor.clone()),
            None => Ok(self.parameters.value(name)?),
        }
    }
}

/// Computes one layer on a batch; the first axis of every input is the sample.
pub(super) fn forward(
    op: &Op,
    layer: &LayerInfo,
    inputs: &[Tensor],
    pass: &mut Pass,
) -> Result<Tensor> {
    let fail = fail_of(layer);
    let x = &inputs[0];
    let out = match op {
        Op::Linear { bias } => {
            let w = pass.parameter(layer, "weight")?;
            let b = if *bias {
                Some(pass.parameter(layer, "bias")?)
            } else {
                None
            };
            nn::linear(x, &w, b.as_ref())
        }
        Op::Conv2d {
            stride,
            padding,
            dilation,
            groups,
            bias,
        } => {
            let w = pass.parameter(layer, "weight")?;
            let b = if *bias {
                Some(pass.parameter(layer, "bias")?)
            } else {
                None
            };
            nn::conv2d(x, &w, b.as_ref(), *stride, *padding, *dilation, *groups)
        }
        Op::BatchNorm { momentum, epsilon } => {
            return batch_norm(layer, x, *momentum, *epsilon, pass);
        }
        Op::LayerNorm {
            epsilon,
            affine,
            axes,
        } => {
            let (mut w, mut b) = (None, None);
            if *affine {
                w = Some(pass.parameter(layer, "weight")?);
                b = Some(pass.parameter(layer, "bias")?);
            }
            ops::layer_norm(x, axes, w.as_ref(), b.as_ref(), *epsilon)
        }
        Op::Relu => ops::relu(x),
        Op::Tanh => ops::tanh(x),
        Op::Sigmoid => ops::sigmoid(x),
        Op::Gelu => ops::gelu(x),
        Op::Elu { alpha } => nn::elu(x, *alpha),
        Op::Silu => nn::silu(x),
        Op::Hardtanh { low, high } => nn::hardtanh(x, *low, *high),
        Op::GroupSort { group } => group_sort(x, *group),
        Op::MaxPool {
            kernel,
            stride,
            padding,
        } => nn::max_pool2d(x, *kernel, *stride, *padding),
        Op::AveragePool {
            kernel,
            stride,
            padding,
        } => nn::avg_pool2d(x, *kernel, *stride, *padding),
        Op::Flatten => {
            // The product, not -1: an empty batch does not say how long a sample is.
            let width: usize = x.shape()[1..].iter().product();
            ops::reshape(x, &[x.shape()[0] as i64, width as i64])
        }
        Op::Dropout { rate } => {
            if pass.mode == Mode::Eval || *rate == 0.0 {
                Ok(x.clone())
            } else {
                let mut words = pass.dropout_key.to_vec();
                words.push(u64::from(layer.index));
                nn::dropout(x, *rate, &Key::new(&words))
            }
        }
        Op::Embedding => ops::take(&pass.parameter(layer, "weight")?, x, 0),
        Op::Position { fixed } => {
            let table = match fixed {
                Some(table) => table.clone(),
                None => pass.parameter(layer, "weight")?,
            };
            // A series may be shorter than the table.
            if x.shape()[1] == table.shape()[0] {
                ops::add(x, &table)
            } else {
                ops::slice(&table, 0, 0, x.shape()[1] as isize)
                    .and_then(|table| ops::add(x, &table))
            }
        }
        Op::Attention { heads, causal } => return attention(layer, x, *heads, *causal, pass),
        Op::Lstm | Op::Rnn => {
            let w_ih = pass.parameter(layer, "weight-ih")?;
            let w_hh = pass.parameter(layer, "weight-hh")?;
            let b_ih = pass.parameter(layer, "bias-ih")?;
            let b_hh = pass.parameter(layer, "bias-hh")?;
            match op {
                Op::Lstm => nn::lstm(x, &w_ih, &w_hh, Some(&b_ih), Some(&b_hh)),
                _ => nn::rnn(x, &w_ih, &w_hh, Some(&b_ih), Some(&b_hh)),
            }
        }
        Op::Add => inputs[1..]
            .iter()
            .try_fold(x.clone(), |sum, other| ops::add(&sum, other)),
        Op::Concat { axis } => ops::concat(&inputs.iter().collect::<Vec<_>>(), *axis as isize + 1),
        Op::Identity => Ok(x.clone()),
        Op::CosineClassifier { scale } => {
            let w = pass.parameter(layer, "weight")?;
            let cosine = unit_rows(x).and_then(|x| nn::linear(&x, &unit_rows(&w)?, None));
            cosine.and_then(|cosine| ops::multiply(&cosine, *scale))
        }
        Op::TiedLinear { table } => nn::linear(x, &pass.named(table)?, None),
        Op::Declared => {
            return Err(Error::Forward {
                problem: format!("layer `{}` is computed by the architecture", layer.name),
            });
        }
    };
    out.map_err(fail)
}

/// Groups of neighbouring features: the last axis of vectors and series, the channels of images.
fn group_sort(x: &Tensor, group: usize) -> espalier_tensor::Result<Tensor> {
    if x.rank() != 4 {
        return nn::group_sort(x, group);
    }
    let last = ops::permute_dims(x, &[0, 2, 3, 1])?.contiguous()?;
    ops::permute_dims(&nn::group_sort(&last, group)?, &[0, 3, 1, 2])
}

/// Rows divided by their length; a row of zeros stays one and keeps a finite gradient.
fn unit_rows(t: &Tensor) -> espalier_tensor::Result<Tensor> {
    let squares = ops::sum(&ops::multiply(t, t)?, &[-1], true)?;
    ops::divide(t, &ops::sqrt(&ops::add(&squares, 1e-12)?)?)
}

/// An error of the engine as the layer's.
fn fail_of(layer: &LayerInfo) -> impl Fn(espalier_tensor::Error) -> Error + Copy + '_ {
    |source| Error::Tensor {
        layer: layer.name.clone(),
        kind: layer.kind.clone(),
        source,
    }
}

/// Batch statistics in training, running ones else. As in PyTorch the batch is normalised with its biased
/// variance and the running variance moves towards the unbiased one.
fn batch_norm(
    layer: &LayerInfo,
    x: &Tensor,
    momentum: f64,
    epsilon: f64,
    pass: &mut Pass,
) -> Result<Tensor> {
    let fail = fail_of(layer);
    let w = pass.parameter(layer, "weight")?;
    let b = pass.parameter(layer, "bias")?;
    let running_mean = pass.parameter(layer, "running-mean")?;
    let running_var = pass.parameter(layer, "running-var")?;
    let count = x.numel() / x.shape()[1].max(1);
    // One value a channel has no variance (and none at all, no mean): a last short batch, or an empty one
    // of Poisson sampling, is normalised with the running statistics and moves none.
    let (out, mean, var) = if pass.mode == Mode::Train && count > 1 {
        let (out, mean, var) =
            ops::batch_norm(x, Some(&w), Some(&b), None, epsilon).map_err(fail)?;
        let moved = |running: &Tensor, batch: &Tensor, factor: f64| {
            let old = ops::multiply(&running.detach(), 1.0 - momentum)?;
            ops::add(&old, &ops::multiply(&batch.detach(), momentum * factor)?)
        };
        let unbiased = count as f64 / (count - 1) as f64;
        let new_mean = moved(&running_mean, &mean, 1.0).map_err(fail)?;
        let new_var = moved(&running_var, &var, unbiased).map_err(fail)?;
        pass.parameters
            .assign(&format!("{}.running-mean", layer.name), &new_mean)?;
        pass.parameters
            .assign(&format!("{}.running-var", layer.name), &new_var)?;
        (out, mean, var)
    } else {
        ops::batch_norm(
            x,
            Some(&w),
            Some(&b),
            Some((&running_mean, &running_var)),
            epsilon,
        )
        .map_err(fail)?
    };
    for (name, tensor) in [("mean", mean), ("var", var)] {
        if pass.wanted.contains(&name) {
            pass.extra.insert(name.into(), tensor);
        }
    }
    Ok(out)
}

/// Self-attention: queries, keys and values from one stacked projection, heads side by side in the features.
fn attention(
    layer: &LayerInfo,
    x: &Tensor,
    heads: usize,
    causal: bool,
    pass: &mut Pass,
) -> Result<Tensor> {
    let fail = fail_of(layer);
    let in_w = pass.parameter(layer, "in-weight")?;
    let in_b = pass.parameter(layer, "in-bias")?;
    let out_w = pass.parameter(layer, "out-weight")?;
    let out_b = pass.parameter(layer, "out-bias")?;
    let (n, steps, features) = (x.shape()[0], x.shape()[1], x.shape()[2]);
    let width = features / heads;
    let wanted = pass.wanted.contains(&"probabilities");
    let compute = || -> espalier_tensor::Result<(Tensor, Option<Tensor>)> {
        let qkv = nn::linear(x, &in_w, Some(&in_b))?;
        if !wanted {
            let mixed = nn::self_attention(&qkv, heads, causal)?;
            return Ok((nn::linear(&mixed, &out_w, Some(&out_b))?, None));
        }
        let qkv = ops::reshape(&qkv, &[n, steps, 3, heads, width].map(|size| size as i64))?;
        let qkv = ops::permute_dims(&qkv, &[2, 0, 3, 1, 4])?;
        let part = |at: isize| {
            ops::reshape(
                &ops::slice(&qkv, 0, at, at + 1)?.contiguous()?,
                &[n, heads, steps, width].map(|size| size as i64),
            )
        };
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        // Composed, because the fused operation never holds the probabilities; last bits may differ.
        let scores = ops::matmul(&q, &ops::permute_dims(&k, &[0, 1, 3, 2])?)?;
        let mut scores = ops::divide(&scores, (width as f64).sqrt())?;
        if causal {
            let row = ops::reshape(&ops::arange(0.0, steps as f64, 1.0, DType::I64)?, &[-1, 1])?;
            let column = ops::reshape(&row, &[1, -1])?;
            scores = ops::where_(&ops::less(&row, &column)?, f64::NEG_INFINITY, &scores)?;
        }
        let probabilities = ops::softmax(&scores, -1)?;
        let mixed = ops::matmul(&probabilities, &v)?;
        let joined = ops::permute_dims(&mixed, &[0, 2, 1, 3])?.contiguous()?;
        let joined = ops::reshape(&joined, &[n, steps, features].map(|size| size as i64))?;
        let out = nn::linear(&joined, &out_w, Some(&out_b))?;
        Ok((out, Some(probabilities)))
    };
    let (out, probabilities) = compute().map_err(fail)?;
    if let Some(probabilities) = probabilities {
        pass.extra.insert("probabilities".into(), probabilities);
    }
    Ok(out)
}
