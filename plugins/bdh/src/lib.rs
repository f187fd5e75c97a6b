//! Architecture: the Dragon Hatchling (BDH-GPU), Kosowski et al. 2025, arXiv 2509.26507.
//!
//! Every layer has the same weights: a wide space of neurons, positive by a rectifier, between two narrow maps, and an
//! attention without softmax in which the neurons' activities are queries and keys and the narrow stream is the value.
//!
//! ```text
//! v = LN(embed(tokens))                                      [b, t, d], LN without gain or offset
//! for each layer
//!     x = relu(v E)                                          [b, h, t, n]
//!     r = x turned by its position, frequencies 2^(-16 (j - j mod 2) / n)
//!     a = LN(sum over s < t of <r_t, r_s> v_s)               [b, h, t, d]
//!     y = relu(a E_v)                                        [b, h, t, n]
//!     v = LN(v + LN(dropout(x y) D))                         heads side by side
//! logits = v head
//! ```
//!
//! Matrices are stored `[out, in]`, as those of built-in layers, so that a pruner with a rule about a row's inputs finds
//! them along the last axis. The angles are computed in f32 from the position and the frequency, without the detour over
//! whole turns: up to some thousand positions that changes nothing that f32 holds.

use espalier_sdk::architecture::{Architecture, Build, Layer, Pass, Weights};
use espalier_sdk::model::LayerInfo;
use espalier_sdk::{Dtype, Error, Mode, Options, RunInfo, Tensor, log};

/// Options under `[architecture.with]`.
#[derive(Options)]
struct Settings {
    /// Width of the narrow stream.
    #[option(default = 64, min = 1)]
    features: u64,
    /// Heads among which the neurons are divided.
    #[option(default = 4, min = 1)]
    heads: u64,
    /// Neurons for each feature of the stream, all heads together; the paper's 128.
    #[option(default = 16, min = 1)]
    neurons: u64,
    /// Layers, which share one set of weights.
    #[option(default = 4, min = 1, max = 512)]
    layers: u64,
    /// Share of x y that is dropped in training.
    #[option(default = 0.05, min = 0, max = 0.99)]
    dropout: f64,
    /// Whether each pass in the mode eval reports what share of x and of x y is not 0, layer by layer.
    #[option(default = false)]
    report: bool,
}

const EPSILON: f64 = 1e-5;
/// All weights begin normal with this deviation.
const DEVIATION: f64 = 0.02;
/// The slowest coordinate turns about so many times slower than the first.
const BASE: f64 = 65_536.0;

struct Bdh {
    features: u32,
    heads: u32,
    /// Neurons of one head.
    neurons: u32,
    layers: u32,
    dropout: f64,
    report: bool,
}

impl Architecture for Bdh {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let all = settings.neurons.saturating_mul(settings.features);
        if all > 1 << 24 || !all.is_multiple_of(settings.heads.saturating_mul(2)) {
            return Err(Error::invalid_option(format!(
                "`neurons` x `features` = {all} must be at most {} and divide into {} heads of an even number each",
                1 << 24,
                settings.heads
            )));
        }
        Ok(Bdh {
            features: settings.features as u32,
            heads: settings.heads as u32,
            neurons: (all / settings.heads) as u32,
            layers: settings.layers as u32,
            dropout: settings.dropout,
            report: settings.report,
        })
    }

    fn build(&mut self, build: &mut Build<'_>) -> Result<(), Error> {
        let inputs = build.inputs()?;
        let ([steps], Dtype::I64) = (&inputs.shape[..], inputs.dtype) else {
            return Err(Error::incompatible(format!(
                "this architecture reads tokens, whole numbers [t] a sample; the inputs are {:?} {:?}. Use the source \
                 `text`, or an environment with tasks",
                inputs.dtype, inputs.shape
            )));
        };
        let (t, d, h, n, words) = (
            *steps,
            self.features,
            self.heads,
            self.neurons,
            build.outputs(),
        );
        build.embedding("tokens", &[words, d], DEVIATION);
        build.weight("encoder", &[h * n, d], DEVIATION);
        build.weight("value-encoder", &[h * n, d], DEVIATION);
        build.weight("decoder", &[d, h * n], DEVIATION);
        build.weight("head", &[words, d], DEVIATION);
        let product = |a: u32, b: u32| u64::from(t) * u64::from(a) * u64::from(b);
        let macs = 3 * product(d, h * n) + product(t, h * n) + product(t, h * d);
        build.layer(
            Layer::new("embed", "embedding")
                .parameters(&["tokens"])
                .out(&[t, d]),
        )?;
        for number in 1..=self.layers {
            build.layer(
                Layer::new(&format!("layer{number}"), "bdh")
                    .parameters(&["encoder", "value-encoder", "decoder"])
                    .out(&[t, d])
                    .macs(macs)
                    .setting("heads", f64::from(h))
                    .setting("neurons", f64::from(n)),
            )?;
        }
        build.layer(
            Layer::new("logits", "head")
                .parameters(&["head"])
                .out(&[t, words])
                .macs(product(d, words)),
        )
    }

    fn forward(
        &self,
        layer: &LayerInfo,
        inputs: &[Tensor],
        weights: &Weights<'_>,
        pass: &mut Pass,
    ) -> Tensor {
        let v = &inputs[0];
        match layer.kind.as_str() {
            "embedding" => normed(&weights.value("tokens").take(v, 0)),
            "head" => v.linear(&weights.value("head"), None),
            _ => self.layer(&layer.name, v, weights, pass),
        }
    }
}

impl Bdh {
    /// One layer, [b, t, d] to [b, t, d].
    fn layer(&self, name: &str, v: &Tensor, weights: &Weights<'_>, pass: &mut Pass) -> Tensor {
        let [b, t, _] = v.dims()[..] else {
            panic!("a stream has three axes, this one {:?}", v.shape());
        };
        let (h, n) = (self.heads as i32, self.neurons as i32);
        let x = v.linear(&weights.value("encoder"), None).relu();
        let x = x.reshape(&[b, t, h, n]).permute_dims(&[0, 2, 1, 3]);
        pass.offer("x", || x.clone());
        let turned = turn(&x, self.neurons);
        // Strictly before: a token does not see itself.
        let places = Tensor::arange(0.0, f64::from(t), 1.0);
        let before = places.expand_dims(0).less(&places.expand_dims(1));
        let scores = turned.matmul(&turned.swap_axes(-1, -2)) * before.astype(x.dtype());
        let a = normed(&scores.matmul(&v.expand_dims(1)));
        let value_encoder = weights.value("value-encoder").reshape(&[h, n, -1]);
        let y = a.matmul(&value_encoder.swap_axes(-1, -2)).relu();
        let z = &x * y;
        pass.offer("z", || z.clone());
        if self.report && pass.mode() == Mode::Eval {
            log::metric(&format!("{name}/x-density"), density(&x));
            log::metric(&format!("{name}/z-density"), density(&z));
        }
        let z = pass
            .dropout(&z, self.dropout)
            .permute_dims(&[0, 2, 1, 3])
            .reshape(&[b, t, h * n]);
        let u = normed(&z.linear(&weights.value("decoder"), None));
        normed(&(v + u))
    }
}

/// The share of elements that are not 0.
fn density(t: &Tensor) -> f64 {
    t.count_nonzero() as f64 / t.numel().max(1) as f64
}

/// Mean 0 and variance 1 along the last axis; zeros stay zeros.
fn normed(t: &Tensor) -> Tensor {
    t.layer_norm(&[-1], None, None, EPSILON)
}

/// Angle a position of each pair of coordinates, n / 2 of them.
fn frequencies(n: u32) -> Vec<f64> {
    let pairs = (0..n / 2).map(f64::from);
    pairs.map(|i| BASE.powf(-2.0 * i / f64::from(n))).collect()
}

/// Turns each pair of neighbouring coordinates of x [.., t, n] by its angle at the position. The first ones of all pairs
/// come out before the second ones: an order of the coordinates, the same for queries and keys, which no product sees.
fn turn(x: &Tensor, n: u32) -> Tensor {
    let mut shape = x.dims();
    let t = shape[shape.len() - 2];
    let half = n as i32 / 2;
    shape.pop();
    shape.extend([half, 2]);
    let pairs = x.reshape(&shape);
    let (first, second) = (
        pairs.slice(-1, 0, 1).squeeze(-1),
        pairs.slice(-1, 1, 2).squeeze(-1),
    );
    let places = Tensor::arange(0.0, f64::from(t), 1.0);
    let angles = places.outer(&Tensor::from_list(&frequencies(n), &[n / 2]));
    let (cos, sin) = (angles.cos(), angles.sin());
    let turned = (
        &first * &cos - &second * &sin,
        &second * &cos + &first * &sin,
    );
    Tensor::concat(&[&turned.0, &turned.1], -1)
}

espalier_sdk::export!(architecture: Bdh);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_of_coordinates_share_a_frequency() {
        // The card's eight: 1, 1, 1/16, 1/16, 1/256, 1/256, 1/4096, 1/4096.
        let expected = [1.0, 1.0 / 16.0, 1.0 / 256.0, 1.0 / 4096.0];
        for (found, expected) in frequencies(8).iter().zip(expected) {
            assert!((found - expected).abs() < 1e-15);
        }
    }

    #[test]
    fn every_default_lies_in_its_own_range() {
        let defaults = Settings::defaults();
        assert_eq!((defaults.features, defaults.heads), (64, 4));
    }
}
