//! Architecture: residual layers, x + W2 gelu(W1 norm(x)), all of them with one pair of matrices.
//!
//! He et al. 2016, equation 1, with the weights shared as in Dehghani et al. 2018, section 2. Put your own paper and
//! equation here, and say where this differs and why.

use espalier_sdk::architecture::{Architecture, Build, Layer, Pass, Weights};
use espalier_sdk::model::LayerInfo;
use espalier_sdk::parameters::Kind;
use espalier_sdk::{Dtype, Error, Options, RunInfo, Tensor};

/// Options under `[architecture.with]`.
#[derive(Options)]
struct Settings {
    /// Width of the stream that the layers add to.
    #[option(default = 32, min = 1, max = 65536)]
    features: u64,
    /// Units inside a layer, for each feature of the stream.
    #[option(default = 2, min = 1, max = 64)]
    wider: u64,
    /// Residual layers.
    #[option(default = 3, min = 1, max = 512)]
    layers: u64,
    /// Share of a layer's units that is dropped in training.
    #[option(default = 0, min = 0, max = 0.99)]
    dropout: f64,
}

struct __TYPE__ {
    features: u32,
    units: u32,
    layers: u32,
    dropout: f64,
}

/// Deviation with which a sum of so many products begins near 1.
fn deviation(inputs: u32) -> f64 {
    1.0 / f64::from(inputs.max(1)).sqrt()
}

/// Names of the residual layers.
fn names(layers: u32) -> Vec<String> {
    (1..=layers)
        .map(|number| format!("residual{number}"))
        .collect()
}

impl Architecture for __TYPE__ {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        Ok(__TYPE__ {
            features: settings.features as u32,
            units: (settings.features * settings.wider) as u32,
            layers: settings.layers as u32,
            dropout: settings.dropout,
        })
    }

    fn build(&mut self, build: &mut Build<'_>) -> Result<(), Error> {
        let inputs = build.inputs()?;
        if inputs.dtype != Dtype::F32 {
            return Err(Error::incompatible(
                "this architecture reads numbers, not tokens",
            ));
        }
        let width: u32 = inputs.shape.iter().product();
        let (d, n, outputs) = (self.features, self.units, build.outputs());
        build.weight("in", &[width, d], deviation(width));
        build.create("scale", Kind::Norm, &Tensor::ones(&[d]), true);
        build.weight("up", &[d, n], deviation(d));
        // Small at first: every layer adds the same, and their gradients add up.
        build.weight("down", &[n, d], 0.1 * deviation(n));
        build.weight("out", &[d, outputs], deviation(d));
        build.bias("offset", &[outputs]);
        let product = |a: u32, b: u32| u64::from(a) * u64::from(b);
        let dense = |name, parameters: &[&str], from, to| {
            let layer = Layer::new(name, "dense").parameters(parameters);
            layer.out(&[to]).macs(product(from, to))
        };
        build.layer(dense("stream", &["in"], width, d))?;
        for name in names(self.layers) {
            // Several layers may use the same parameters.
            build.layer(
                Layer::new(&name, "residual")
                    .parameters(&["scale", "up", "down"])
                    .out(&[d])
                    .macs(2 * product(d, n)),
            )?;
        }
        build.layer(dense("answer", &["out", "offset"], d, outputs))
    }

    fn forward(
        &self,
        layer: &LayerInfo,
        inputs: &[Tensor],
        weights: &Weights<'_>,
        pass: &mut Pass,
    ) -> Tensor {
        let x = &inputs[0];
        match layer.name.as_str() {
            "stream" => {
                let width = layer.in_shape.iter().product::<u32>() as i32;
                let x = x.reshape(&[x.size(0) as i32, width]);
                x.matmul(&weights.value("in"))
            }
            "answer" => {
                let normed = x.layer_norm(&[-1], None, None, 1e-5);
                normed.matmul(&weights.value("out")) + weights.value("offset")
            }
            _ => {
                let normed = x.layer_norm(&[-1], Some(&weights.value("scale")), None, 1e-5);
                let units = normed.matmul(&weights.value("up")).gelu();
                // A trainer or auditor that wants them asks for `residual1/units`.
                pass.offer("units", || units.clone());
                let units = pass.dropout(&units, self.dropout);
                x + units.matmul(&weights.value("down"))
            }
        }
    }
}

espalier_sdk::export!(architecture: __TYPE__);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_of_four_products_begins_with_half_the_deviation() {
        assert_eq!(deviation(4), 0.5);
    }

    #[test]
    fn residual_layers_have_names_of_their_own() {
        assert_eq!(names(2), ["residual1", "residual2"]);
    }
}
