//! Architecture: two matrices with a rectifier between them.
//!
//! Put the paper and its equation here, and say where this differs and why.

use espalier_sdk::architecture::{Architecture, Build, Layer, Pass, Weights};
use espalier_sdk::model::LayerInfo;
use espalier_sdk::{Dtype, Error, Options, RunInfo, Tensor};

/// Options under `[architecture.with]`.
#[derive(Options)]
struct Settings {
    /// Units between the two.
    #[option(default = 64, min = 1, max = 65536)]
    units: u64,
}

struct __TYPE__ {
    units: u32,
}

/// Deviation with which a sum of so many products begins near 1.
fn deviation(inputs: u32) -> f64 {
    (2.0 / f64::from(inputs.max(1))).sqrt()
}

impl Architecture for __TYPE__ {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let units = settings.units as u32;
        Ok(__TYPE__ { units })
    }

    fn build(&mut self, build: &mut Build<'_>) -> Result<(), Error> {
        let inputs = build.inputs()?;
        if inputs.dtype != Dtype::F32 {
            return Err(Error::incompatible(
                "this architecture reads numbers, not tokens",
            ));
        }
        let features: u32 = inputs.shape.iter().product();
        let (units, outputs) = (self.units, build.outputs());
        // Parameters, then the layers that use them.
        build.weight("in", &[features, units], deviation(features));
        build.weight("out", &[units, outputs], deviation(units));
        build.layer(
            Layer::new("hidden", "dense")
                .parameters(&["in"])
                .out(&[units]),
        )?;
        build.layer(
            Layer::new("answer", "dense")
                .parameters(&["out"])
                .out(&[outputs]),
        )
    }

    fn forward(
        &self,
        layer: &LayerInfo,
        inputs: &[Tensor],
        weights: &Weights<'_>,
        _pass: &mut Pass,
    ) -> Tensor {
        // The decision: what a layer makes of what it reads.
        match layer.name.as_str() {
            "hidden" => {
                let samples = inputs[0].size(0) as i32;
                let features = layer.in_shape.iter().product::<u32>() as i32;
                let x = inputs[0].reshape(&[samples, features]);
                x.matmul(&weights.value("in")).relu()
            }
            _ => inputs[0].matmul(&weights.value("out")),
        }
    }
}

espalier_sdk::export!(architecture: __TYPE__);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_of_two_products_begins_with_deviation_one() {
        assert_eq!(deviation(2), 1.0);
        assert_eq!(Settings::defaults().units, 64);
    }
}
