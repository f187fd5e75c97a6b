//! Interval bounds through a network: which values each unit can take while every input stays in a box.
//!
//! Gowal et al. 2018 (arXiv 1810.12715). With centre c and radius r a linear map gives `W c + b` and `|W| r`; a batch
//! normalisation is one, with the statistics of the pass that the samples themselves make; ReLU maps both ends. The
//! last layer is merged with the question: by how much does the score of a class exceed another's at least?
//!
//! What a certificate promises is about the network as the host computes it, in f32, so [`Arithmetic::Outward`] takes
//! rounding into account. Bounds are then computed in f64 and each layer's box is widened by what its f32 value can
//! differ from the exact one. A sum of n products, in any order, fused or not, is off by at most
//! `g(n + 2) sum |w_i x_i|`, with `g(k) = k u / (1 - k u)` and `u = 2^-24` (Higham 2002, section 3.1; the 2 are for the
//! offset). So if all computed inputs of a layer lie in its box, all computed outputs lie in the widened one, and so on
//! to the end. The f64 arithmetic's own rounding is 2^-29 of that and is covered by a tenth more; underflow by an
//! absolute 1e-30.

use espalier_sdk::data::Batch;
use espalier_sdk::model::{LayerInfo, LayerInput};
use espalier_sdk::tensor::{Conv2d, Dtype};
use espalier_sdk::{Error, Mode, Model, ParameterSet, Tensor};

/// How exact bounds are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arithmetic {
    /// f32, as it comes: for training.
    Plain,
    /// f64, widened by the rounding of the network's own f32 arithmetic: for certificates.
    Outward,
}

/// Both ends of an interval for each element.
#[derive(Clone)]
pub struct Bounds {
    /// The least value.
    pub lower: Tensor,
    /// The largest value.
    pub upper: Tensor,
}

impl Bounds {
    /// All points within `eps` (a number, or a tensor that broadcasts) of `x` in each coordinate, and within `range`;
    /// `x` itself in any case.
    pub fn around(x: &Tensor, eps: &Tensor, [low, high]: [f64; 2], how: Arithmetic) -> Bounds {
        let (x, eps) = match how {
            Arithmetic::Plain => (x.clone(), eps.clone()),
            // Covers the rounding of the subtraction below.
            Arithmetic::Outward => (
                x.astype(Dtype::F64),
                eps.astype(Dtype::F64) * (1.0 + 1e-12) + 1e-30,
            ),
        };
        Bounds {
            lower: (&x - &eps).maximum(low).minimum(&x),
            upper: (&x + &eps).minimum(high).maximum(&x),
        }
    }

    /// The middle.
    pub fn centre(&self) -> Tensor {
        (&self.lower + &self.upper) * 0.5
    }

    /// Half the width.
    pub fn radius(&self) -> Tensor {
        (&self.upper - &self.lower) * 0.5
    }

    /// Largest absolute value.
    fn magnitude(&self) -> Tensor {
        self.lower.abs().maximum(&self.upper.abs())
    }

    fn from_centre(c: &Tensor, r: &Tensor) -> Bounds {
        Bounds {
            lower: c - r,
            upper: c + r,
        }
    }
}

/// Statistics of the batch normalisations, by layer: mean and variance.
pub type Statistics = Vec<Option<(Tensor, Tensor)>>;

/// A network whose bounds can be computed.
pub struct Network {
    model: Model,
    set: ParameterSet,
    layers: Vec<LayerInfo>,
    /// Its parameters that optimisers may change.
    pub trainable: Vec<String>,
}

/// Largest relative error of a sum of `n` products in f32, a tenth more for the bounds' own rounding.
fn gamma(n: f64) -> f64 {
    let error = n * (0.5f64).powi(24);
    1.1 * error / (1.0 - error)
}

impl Network {
    /// The model, if it is a classifier of layers whose bounds are known.
    pub fn of(model: Model, classes: u32) -> Result<Network, Error> {
        const KNOWN: [&str; 7] = [
            "linear",
            "conv2d",
            "batch-norm",
            "relu",
            "flatten",
            "identity",
            "add",
        ];
        let layers = model.layers();
        if let Some(layer) = layers.iter().find(|l| !KNOWN.contains(&&l.kind[..])) {
            return Err(Error::incompatible(format!(
                "layer `{}` is a {}, whose interval bounds are not known; there are bounds for {}",
                layer.name,
                layer.kind,
                KNOWN.join(", ")
            )));
        }
        match layers.last() {
            Some(last) if last.kind == "linear" && last.out_shape == [classes] && classes > 1 => {}
            Some(last) => {
                return Err(Error::incompatible(format!(
                    "the last layer must be `linear` with one output a class ({classes}); it is `{}`, {} with outputs {:?}",
                    last.name, last.kind, last.out_shape
                )));
            }
            None => return Err(Error::incompatible("the model has no layers")),
        }
        let set = model.parameters();
        let trainable = set.trainable();
        Ok(Network {
            model,
            set,
            layers,
            trainable,
        })
    }

    /// The layers in order.
    pub fn layers(&self) -> &[LayerInfo] {
        &self.layers
    }

    /// The parameters.
    pub fn set(&self) -> &ParameterSet {
        &self.set
    }

    /// Logits of the samples themselves, and the statistics that their normalisations used.
    pub fn forward(&self, inputs: &Tensor, mode: Mode) -> (Tensor, Statistics) {
        let norms: Vec<&LayerInfo> = self
            .layers
            .iter()
            .filter(|l| l.kind == "batch-norm")
            .collect();
        let mut pass = self.model.pass(0..self.layers.len() as u32, mode);
        pass = pass.input("inputs", inputs);
        for layer in &norms {
            pass = pass.want(&format!("{}/mean", layer.name));
            pass = pass.want(&format!("{}/var", layer.name));
        }
        let (logits, extra) = pass.run_with_extra();
        let mut statistics: Statistics = vec![None; self.layers.len()];
        for (layer, pair) in norms.iter().zip(extra.chunks_exact(2)) {
            statistics[layer.index as usize] = Some((pair[0].1.clone(), pair[1].1.clone()));
        }
        (logits, statistics)
    }

    /// Bounds of what every layer but the last gives, for inputs in a box.
    pub fn propagate(
        &self,
        inputs: &Bounds,
        statistics: &Statistics,
        how: Arithmetic,
    ) -> Vec<Bounds> {
        let mut all: Vec<Bounds> = Vec::with_capacity(self.layers.len());
        for layer in &self.layers[..self.layers.len() - 1] {
            let read: Vec<&Bounds> = layer
                .inputs
                .iter()
                .map(|input| match input {
                    LayerInput::Layer(from) => &all[*from as usize],
                    LayerInput::Field(_) => inputs,
                })
                .collect();
            let bounds = self.layer(layer, &read, &statistics[layer.index as usize], how);
            all.push(bounds);
        }
        all
    }

    /// What the last layer reads.
    pub fn before_last<'a>(&self, inputs: &'a Bounds, all: &'a [Bounds]) -> &'a Bounds {
        match self.layers[self.layers.len() - 1].inputs.first() {
            Some(LayerInput::Layer(from)) => &all[*from as usize],
            _ => inputs,
        }
    }

    /// By how much the score of each sample's class exceeds every other's, at least: `[n, classes]`, 0 for the class
    /// itself. `x` bounds what the last layer reads.
    pub fn margins(&self, x: &Bounds, classes: &Tensor, how: Arithmetic) -> Tensor {
        let last = &self.layers[self.layers.len() - 1];
        let weight = self.parameter(last, "weight", how);
        let (c, r) = (x.centre(), x.radius());
        // [n, classes, features]: the rows of the question, merged with the weights.
        let rows = weight.take(classes, 0).expand_dims(1) - weight.expand_dims(0);
        let middle = (&rows * c.expand_dims(1)).sum(&[2]);
        let spread = (rows.abs() * r.expand_dims(1)).sum(&[2]);
        let mut margins = middle - spread;
        let bias = self
            .has(last, "bias")
            .then(|| self.parameter(last, "bias", how));
        if let Some(bias) = &bias {
            margins = margins + (bias.take(classes, 0).expand_dims(1) - bias.expand_dims(0));
        }
        if how == Arithmetic::Plain {
            return margins;
        }
        // Both scores are computed in f32.
        let mut size = x.magnitude().matmul(&weight.abs().t());
        if let Some(bias) = &bias {
            size = size + bias.abs();
        }
        let error = size * gamma(f64::from(weight.size(1)) + 2.0) + 1e-30;
        let own = error.take_along_axis(&classes.expand_dims(1), 1);
        margins - (error + own)
    }

    fn layer(
        &self,
        layer: &LayerInfo,
        read: &[&Bounds],
        statistics: &Option<(Tensor, Tensor)>,
        how: Arithmetic,
    ) -> Bounds {
        let x = read[0];
        match &layer.kind[..] {
            "relu" => Bounds {
                lower: x.lower.relu(),
                upper: x.upper.relu(),
            },
            "flatten" => Bounds {
                lower: x.lower.flatten(),
                upper: x.upper.flatten(),
            },
            "linear" => {
                let weight = self.parameter(layer, "weight", how);
                let n = weight.size(1);
                self.affine(
                    layer,
                    x,
                    how,
                    n,
                    &|x, absolute| {
                        x.matmul(
                            &(if absolute {
                                weight.abs()
                            } else {
                                weight.clone()
                            })
                            .t(),
                        )
                    },
                    &|bias| bias.clone(),
                )
            }
            "conv2d" => {
                let weight = self.parameter(layer, "weight", how);
                let n = weight.size(1) * weight.size(2) * weight.size(3);
                let options = Conv2d {
                    stride: pair(layer, "stride", 1),
                    padding: pair(layer, "padding", 0),
                    dilation: pair(layer, "dilation", 1),
                    groups: setting(layer, "groups").first().map_or(1, |&n| n as u32),
                };
                self.affine(
                    layer,
                    x,
                    how,
                    n,
                    &|x, absolute| {
                        let weight = if absolute {
                            weight.abs()
                        } else {
                            weight.clone()
                        };
                        x.conv2d(&weight, options)
                    },
                    &|bias| bias.reshape(&[-1, 1, 1]),
                )
            }
            "batch-norm" => {
                let Some((mean, variance)) = statistics else {
                    return x.clone();
                };
                self.normalised(layer, x, (mean, variance), how)
            }
            "add" => {
                let sum = |of: &dyn Fn(&Bounds) -> Tensor| {
                    read[1..].iter().fold(of(read[0]), |sum, x| sum + of(x))
                };
                let (lower, upper) = (sum(&|x| x.lower.clone()), sum(&|x| x.upper.clone()));
                if how == Arithmetic::Plain {
                    return Bounds { lower, upper };
                }
                let error = sum(&|x| x.magnitude()) * gamma(read.len() as f64) + 1e-30;
                Bounds {
                    lower: lower - &error,
                    upper: upper + &error,
                }
            }
            // identity
            _ => x.clone(),
        }
    }

    /// A linear map and an offset; `map` applies the weights or their absolute values, each output a sum of `n` products.
    fn affine(
        &self,
        layer: &LayerInfo,
        x: &Bounds,
        how: Arithmetic,
        n: u32,
        map: &dyn Fn(&Tensor, bool) -> Tensor,
        shaped: &dyn Fn(&Tensor) -> Tensor,
    ) -> Bounds {
        let bias = self
            .has(layer, "bias")
            .then(|| shaped(&self.parameter(layer, "bias", how)));
        let mut c = map(&x.centre(), false);
        if let Some(bias) = &bias {
            c = c + bias;
        }
        let mut r = map(&x.radius(), true);
        if how == Arithmetic::Outward {
            let mut size = map(&x.magnitude(), true);
            if let Some(bias) = &bias {
                size = size + bias.abs();
            }
            r = r + (size * gamma(f64::from(n) + 2.0) + 1e-30);
        }
        Bounds::from_centre(&c, &r)
    }

    /// `weight (x - mean) / sqrt(variance + epsilon) + bias` for each channel (axis 1).
    fn normalised(
        &self,
        layer: &LayerInfo,
        x: &Bounds,
        (mean, variance): (&Tensor, &Tensor),
        how: Arithmetic,
    ) -> Bounds {
        let mut along = vec![1i32; x.lower.rank()];
        along[1] = -1;
        let typed = |t: &Tensor| match how {
            Arithmetic::Plain => t.reshape(&along),
            Arithmetic::Outward => t.astype(Dtype::F64).reshape(&along),
        };
        let epsilon = setting(layer, "epsilon").first().copied().unwrap_or(1e-5);
        let (mean, deviation) = (typed(mean), (typed(variance) + epsilon).sqrt());
        let scale = typed(&self.set.value(&format!("{}.weight", layer.name))) / deviation;
        let bias = typed(&self.set.value(&format!("{}.bias", layer.name)));
        let c = (x.centre() - &mean) * &scale + &bias;
        let mut r = x.radius() * scale.abs();
        if how == Arithmetic::Outward {
            // At most eight roundings on the way, in whatever order; twice that.
            let size = (x.magnitude() + mean.abs()) * scale.abs() + bias.abs();
            r = r + (size * gamma(16.0) + 1e-30);
        }
        Bounds::from_centre(&c, &r)
    }

    fn has(&self, layer: &LayerInfo, what: &str) -> bool {
        let name = format!("{}.{what}", layer.name);
        layer.parameters.contains(&name)
    }

    /// A parameter of a layer, in the type of the arithmetic.
    pub fn parameter(&self, layer: &LayerInfo, what: &str, how: Arithmetic) -> Tensor {
        let value = self.set.value(&format!("{}.{what}", layer.name));
        match how {
            Arithmetic::Plain => value,
            Arithmetic::Outward => value.astype(Dtype::F64),
        }
    }

    /// The least margin over the other classes for each sample, `[n]` in f64: above 0 no input within `eps` (a number,
    /// or one a sample) of it and within `range` is given another class than `classes`, whatever the rounding.
    pub fn certificate(
        &self,
        inputs: &Tensor,
        eps: &Tensor,
        range: [f64; 2],
        classes: &Tensor,
    ) -> Tensor {
        let how = Arithmetic::Outward;
        let (_, statistics) = self.forward(inputs, Mode::Eval);
        let x = Bounds::around(inputs, eps, range, how);
        let all = self.propagate(&x, &statistics, how);
        let margins = self.margins(self.before_last(&x, &all), classes, how);
        let own = classes.one_hot(margins.size(1)).greater(0.5);
        own.where_(f64::INFINITY, &margins).min(1)
    }

    /// How many samples of a batch are certified to be given their target.
    pub fn certified(&self, batch: &Batch, eps: f64, range: [f64; 2]) -> u64 {
        let least = self.certificate(batch.inputs(), &Tensor::scalar(eps), range, batch.targets());
        least.greater(0.0).count_nonzero()
    }
}

/// The numbers of a setting.
fn setting(layer: &LayerInfo, name: &str) -> Vec<f64> {
    let found = layer.settings.iter().filter(|(key, _)| key == name);
    found.map(|(_, value)| *value).collect()
}

fn pair(layer: &LayerInfo, name: &str, default: u32) -> (u32, u32) {
    let numbers = setting(layer, name);
    let at = |i: usize| numbers.get(i).map(|&n| n as u32);
    let first = at(0).unwrap_or(default);
    (first, at(1).unwrap_or(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rounding_of_a_sum_grows_with_its_terms_and_exceeds_the_textbooks() {
        let unit = (0.5f64).powi(24);
        assert!(gamma(1.0) > unit && gamma(1.0) < 1.2 * unit);
        assert!(gamma(1000.0) > 1000.0 * unit / (1.0 - 1000.0 * unit));
    }
}
