//! Pruner: BDWP, N:M sparsity in both directions. Of every M neighbouring weights the N largest stay, grouped along
//! the input channels for the forward product and, apart from that, along the output channels for the product that
//! passes the gradient back; the gradient of the weight is dense and goes straight through to the dense weight.
//!
//! Fang et al. 2023 (arXiv 2309.13015). Both masks are chosen anew from the dense weights after every update. Also
//! here, for comparison: SR-STE (Zhou et al. 2021, arXiv 2102.04010: the forward mask in both products, dropped
//! weights decay), SDWP (the backward product alone), and masks that are random and stay.
//!
//! Differences: a pruner has no gradient to add SR-STE's term to, so dropped weights shrink by a factor instead, after
//! the update. A layer whose channels M does not divide stays dense.

use espalier_sdk::data::{self, Stream};
use espalier_sdk::parameters::ParameterInfo;
use espalier_sdk::prune::Weights;
use espalier_sdk::{
    Choice, Directive, Error, Event, EventKind, Mode, Model, Options, ParameterSet, Pruner,
    RunInfo, Tensor, grad, log, model, random,
};

/// Which products run on N:M weights.
#[derive(Choice, Clone, Copy, Debug, PartialEq)]
enum Method {
    /// Both, each with a mask of its own.
    Bdwp,
    /// Both, with the forward mask.
    SrSte,
    /// The backward one.
    Sdwp,
    /// Both, each with a random mask of its own that stays.
    Random,
}

/// Which axes of a weight are its channels.
#[derive(Choice, Clone, Copy, Debug, PartialEq)]
enum Layout {
    /// Output first for built-in layers, input first for the parameters of an architecture.
    Auto,
    /// Output channels along axis 0, input channels along axis 1, as linear layers and convolutions have them.
    OutputFirst,
    /// The last two axes are input and output channels, as in `x.matmul(w)`.
    InputFirst,
}

/// Options under `[pruner.with]`.
#[derive(Options)]
struct Settings {
    /// How many weights of a group stay.
    #[option(default = 2, min = 1, max = 32)]
    n: u64,
    /// How many weights a group has.
    #[option(default = 4, min = 1, max = 32)]
    m: u64,
    /// Which products are sparse: bdwp both, each by its own mask; sr-ste both by the forward mask; sdwp the backward
    /// one; random both, by masks drawn once.
    #[option(default = Method::Bdwp)]
    method: Method,
    /// After each step a weight that the forward mask drops shrinks by this fraction of itself. SR-STE's term is about
    /// its lambda times the learning rate, divided by 1 - momentum.
    #[option(default = 0, min = 0, max = 1)]
    decay: f64,
    /// Whether the first layer with weights stays dense.
    #[option(default = true)]
    dense_first: bool,
    /// Whether the last layer with weights stays dense.
    #[option(default = true)]
    dense_last: bool,
    /// Which axes are channels.
    #[option(default = Layout::Auto)]
    layout: Layout,
    /// Weights left dense: parameters, layers or groups, separated by commas.
    #[option(default = "")]
    exclude: String,
    /// Steps between two reports of the flip rate, the fraction of forward masks that changed in that step; 0 for none.
    #[option(default = 100)]
    report_every: u64,
    /// Report after each epoch how much the gradient of each sparse layer's input looks like the one without a backward
    /// mask: the mean cosine over a batch. For chains of layers that classify.
    #[option(default = false)]
    measure_cosine: bool,
}

/// Uses of randomness: first number of a key.
const MASKS: u64 = 1;
const BATCHES: u64 = 2;

/// The groups of a weight along one axis.
#[derive(Clone, Debug, PartialEq)]
struct Groups {
    /// The weight's shape.
    shape: Vec<i32>,
    /// Elements before the axis, groups along it, elements of a group, elements after it.
    split: [i32; 4],
}

impl Groups {
    fn along(axis: usize, shape: &[u32], m: u32) -> Groups {
        let shape: Vec<i32> = shape.iter().map(|&n| n as i32).collect();
        let groups = shape[axis] / m as i32;
        let (before, after) = (
            shape[..axis].iter().product(),
            shape[axis + 1..].iter().product(),
        );
        Groups {
            split: [before, groups, m as i32, after],
            shape,
        }
    }

    /// [m, groups]: the members of each group stand in a column, in their order.
    fn columns(&self, t: &Tensor) -> Tensor {
        let m = self.split[2];
        t.reshape(&self.split)
            .permute_dims(&[2, 0, 1, 3])
            .reshape(&[m, -1])
    }

    /// The reverse of [`Groups::columns`].
    fn whole(&self, columns: &Tensor) -> Tensor {
        let [before, groups, m, after] = self.split;
        let split = columns.reshape(&[m, before, groups, after]);
        split.permute_dims(&[1, 2, 0, 3]).reshape(&self.shape)
    }
}

/// A weight with sparse products: its groups in the forward product and in the one back to its input.
struct Sparse {
    info: ParameterInfo,
    forward: Option<Groups>,
    backward: Option<Groups>,
}

struct Bdwp {
    settings: Settings,
    set: ParameterSet,
    weights: Vec<Sparse>,
    stream: Option<Stream>,
}

impl Pruner for Bdwp {
    type Options = Settings;
    const EVENTS: &'static [EventKind] = &[EventKind::Step, EventKind::Epoch];

    fn new(run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        if settings.n > settings.m {
            return Err(Error::invalid_option(format!(
                "`n` ({}) must not be above `m` ({})",
                settings.n, settings.m
            )));
        }
        let set = ParameterSet::main();
        let weights = sparse_weights(&set, &settings)?;
        let stream = settings
            .measure_cosine
            .then(|| Stream::train(run.batch_size, &[BATCHES]));
        if settings.measure_cosine {
            measurable(&weights)?;
        }
        let names: Vec<&str> = weights.iter().map(|w| w.info.name.as_str()).collect();
        log::info(format!(
            "{}:{} weights in {}; their products take {:.4} of the dense multiplications",
            settings.n,
            settings.m,
            names.join(", "),
            cost(settings.method, settings.n, settings.m)
        ));
        let bdwp = Bdwp {
            settings,
            set,
            weights,
            stream,
        };
        bdwp.mask(false);
        Ok(bdwp)
    }

    fn on_event(&mut self, event: &Event) -> Directive {
        match event.kind {
            EventKind::Step => {
                self.decay();
                let every = self.settings.report_every;
                self.mask(every > 0 && event.at.step.is_multiple_of(every));
            }
            EventKind::Epoch => {
                if let Some(stream) = &self.stream {
                    self.measure(stream);
                }
            }
            _ => {}
        }
        Directive::Continue
    }
}

impl Bdwp {
    /// Masks the dense weights anew for both products.
    fn mask(&self, report: bool) {
        let stored: Vec<Tensor> = self
            .weights
            .iter()
            .map(|w| self.set.stored(&w.info.name))
            .collect();
        // All groups of all weights side by side: the number of operations does not grow with the model.
        let mut columns = Vec::new();
        for (at, (weight, value)) in self.weights.iter().zip(&stored).enumerate() {
            let score = |way: u64| match self.settings.method {
                Method::Random => random::uniform(&[MASKS, at as u64, way], &weight.info.shape),
                _ => value.abs(),
            };
            columns.extend(
                weight
                    .forward
                    .as_ref()
                    .map(|groups| groups.columns(&score(0))),
            );
            columns.extend(
                weight
                    .backward
                    .as_ref()
                    .map(|groups| groups.columns(&score(1))),
            );
        }
        let kept = keep(
            &Tensor::concat(&columns.iter().collect::<Vec<_>>(), 1),
            self.settings.n,
        );
        let (mut at, mut flips, mut size) = (0, 0, 0);
        for (weight, value) in self.weights.iter().zip(&stored) {
            let mut masked = |groups: &Groups| {
                let width = value.numel() as i32 / groups.split[2];
                at += width;
                let mask = groups.whole(&kept.slice(1, at - width, at));
                (mask.where_(value, 0.0), mask)
            };
            let name = &weight.info.name;
            let forward = weight.forward.as_ref().map(&mut masked);
            let backward = weight.backward.as_ref().map(masked);
            if let Some((_, mask)) = forward.as_ref().filter(|_| report) {
                let dropped = self.set.value(name).detach().equal(0.0);
                flips += dropped.equal(mask).count_nonzero();
                size += value.numel();
            }
            let forward = forward.as_ref().map(|(value, _)| value);
            self.set
                .set_effective(name, forward, backward.as_ref().map(|(value, _)| value));
        }
        if size > 0 {
            log::metric("flip-rate", flips as f64 / size as f64);
        }
    }

    /// What the forward mask drops shrinks.
    fn decay(&self) {
        if self.settings.decay == 0.0 {
            return;
        }
        for weight in self.weights.iter().filter(|w| w.forward.is_some()) {
            let name = &weight.info.name;
            let (stored, used) = (self.set.stored(name), self.set.value(name).detach());
            // What is used is the stored value of one update ago, or 0.
            let smaller = &stored * (1.0 - self.settings.decay);
            self.set
                .assign(name, &used.equal(0.0).where_(&smaller, &stored));
        }
    }

    /// Reports the cosine between the gradient of each layer's input and the one through the forward weights alone.
    fn measure(&self, stream: &Stream) {
        let batch = stream.next_endless();
        let model = Model::main();
        let layers = model.layers().len() as u32;
        let mut cosines = 0.0;
        for weight in &self.weights {
            let (name, layer) = (&weight.info.name, weight.info.layer.unwrap_or(0));
            let input = model
                .forward_range(0..layer, batch.inputs(), Mode::Eval)
                .detach();
            let gradient = || {
                let input = input.requires_grad();
                let output = model.forward_range(layer..layers, &input, Mode::Eval);
                let loss = output.cross_entropy(batch.targets()).mean(&[]);
                grad(&loss, &[&input])
                    .remove(0)
                    .reshape(&[batch.count() as i32, -1])
            };
            let sparse = gradient();
            let forward = weight
                .forward
                .as_ref()
                .map(|_| self.set.value(name).detach());
            self.set.set_effective(name, forward.as_ref(), None);
            let full = gradient();
            let product = |a: &Tensor, b: &Tensor| (a * b).sum(&[1]);
            let lengths = (product(&sparse, &sparse) * product(&full, &full)).sqrt();
            let cosine = (product(&sparse, &full) / (lengths + 1e-30)).mean(&[]);
            cosines += cosine.item();
            // The masks follow from the weights, so this puts back what was there.
            self.mask(false);
        }
        log::metric("cosine", cosines / self.weights.len() as f64);
    }
}

/// The weights to be masked and their groups.
fn sparse_weights(set: &ParameterSet, settings: &Settings) -> Result<Vec<Sparse>, Error> {
    let m = settings.m as u32;
    let layers: Vec<u32> = set
        .list()
        .iter()
        .filter(|info| info.kind == espalier_sdk::parameters::Kind::Weight)
        .filter_map(|info| info.layer)
        .collect();
    let (first, last) = (layers.iter().min().copied(), layers.iter().max().copied());
    let mut sparse = Vec::new();
    let mut indivisible = Vec::new();
    for info in Weights::of_run(&settings.exclude)?.infos() {
        let end = info.layer.is_some()
            && (settings.dense_first && info.layer == first
                || settings.dense_last && info.layer == last);
        let Some((input, output)) = channels(info, settings.layout).filter(|_| !end) else {
            continue;
        };
        let (forward, backward) = match settings.method {
            Method::Bdwp | Method::Random => (true, true),
            Method::SrSte => (true, false),
            Method::Sdwp => (false, true),
        };
        let divides = |axis: usize| info.shape[axis].is_multiple_of(m);
        if (forward && !divides(input)) || (backward && !divides(output)) {
            indivisible.push(format!("{} {:?}", info.name, info.shape));
            continue;
        }
        let groups = |axis| Groups::along(axis, &info.shape, m);
        sparse.push(Sparse {
            info: info.clone(),
            forward: forward.then(|| groups(input)),
            backward: backward.then(|| groups(output)),
        });
    }
    if !indivisible.is_empty() {
        log::warn(format!(
            "groups of {m} do not divide the channels of {}: dense",
            indivisible.join(", ")
        ));
    }
    if sparse.is_empty() {
        return Err(Error::incompatible(
            "no weight is left to be made sparse: it needs channels that `m` divides, in a layer that is neither the \
             first (`dense-first = false`) nor the last (`dense-last = false`)",
        ));
    }
    Ok(sparse)
}

/// The axes of a weight's input and output channels; none where it has no two axes.
fn channels(info: &ParameterInfo, layout: Layout) -> Option<(usize, usize)> {
    let rank = info.shape.len();
    let output_first = match layout {
        Layout::Auto => info.layer.is_some(),
        Layout::OutputFirst => true,
        Layout::InputFirst => false,
    };
    match output_first {
        _ if rank < 2 => None,
        true => Some((1, 0)),
        false => Some((rank - 2, rank - 1)),
    }
}

/// Whether the gradients of the layers' inputs can be had one by one.
fn measurable(weights: &[Sparse]) -> Result<(), Error> {
    let refuse = |why: &str| {
        Err(Error::invalid_option(format!(
            "`measure-cosine` needs {why}"
        )))
    };
    if data::split("train").is_none_or(|split| split.classes == 0) {
        return refuse("targets that are classes");
    }
    let chain = Model::main().layers().iter().skip(1).all(
        |layer| matches!(layer.inputs[..], [model::LayerInput::Layer(at)] if at + 1 == layer.index),
    );
    match chain && weights.iter().all(|weight| weight.info.layer.is_some()) {
        true => Ok(()),
        false => refuse("a model whose layers each read the one before"),
    }
}

/// Which `n` of each column are the largest, as bool; of equal ones the upper. Every pair is compared once.
fn keep(columns: &Tensor, n: u64) -> Tensor {
    let m = columns.size(0) as i32;
    let rows: Vec<Tensor> = (0..m).map(|i| columns.slice(0, i, i + 1)).collect();
    // How many of its group stand before each: above a row those that it does not beat, below those that beat it.
    let mut before: Vec<Tensor> = (0..m)
        .map(|i| Tensor::full(&[], f64::from(i), columns.dtype()))
        .collect();
    for i in 0..rows.len() {
        for j in i + 1..rows.len() {
            let beaten = rows[i].less(&rows[j]).astype(columns.dtype());
            before[i] = &before[i] + &beaten;
            before[j] = &before[j] - &beaten;
        }
    }
    let kept: Vec<Tensor> = before
        .iter()
        .zip(&rows)
        .map(|(before, row)| before.less(n as f64).broadcast_to(&row.shape()))
        .collect();
    Tensor::concat(&kept.iter().collect::<Vec<_>>(), 0)
}

/// Multiplications of the three products of a layer (forward, back to the input, back to the weight) beside dense ones.
fn cost(method: Method, n: u64, m: u64) -> f64 {
    let part = n as f64 / m as f64;
    match method {
        Method::Bdwp | Method::SrSte | Method::Random => (2.0 * part + 1.0) / 3.0,
        Method::Sdwp => (part + 2.0) / 3.0,
    }
}

espalier_sdk::export!(pruner: Bdwp);

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-4, "{a} is not {b}");
    }

    #[test]
    fn the_cost_is_that_of_the_paper() {
        close(cost(Method::Bdwp, 2, 4), 0.6667);
        close(cost(Method::Bdwp, 2, 8), 0.5);
        close(cost(Method::Bdwp, 1, 4), 0.5);
        close(cost(Method::Bdwp, 4, 8), 0.6667);
        close(cost(Method::Sdwp, 2, 8), 0.75);
        close(cost(Method::Bdwp, 4, 4), 1.0);
    }

    fn info(shape: &[u32], layer: Option<u32>) -> ParameterInfo {
        ParameterInfo {
            name: "w".into(),
            kind: espalier_sdk::parameters::Kind::Weight,
            layer,
            shape: shape.to_vec(),
            dtype: espalier_sdk::Dtype::F32,
            trainable: true,
            group: String::new(),
        }
    }

    #[test]
    fn channels_are_found_by_their_meaning() {
        // A linear layer's weight is [out, in], a convolution's [out, in, height, width].
        assert_eq!(
            channels(&info(&[10, 64], Some(0)), Layout::Auto),
            Some((1, 0))
        );
        assert_eq!(
            channels(&info(&[8, 4, 3, 3], Some(0)), Layout::Auto),
            Some((1, 0))
        );
        // x.matmul(w) with a batch of heads: [heads, in, out].
        assert_eq!(
            channels(&info(&[4, 64, 10], None), Layout::Auto),
            Some((1, 2))
        );
        assert_eq!(
            channels(&info(&[64, 10], Some(0)), Layout::InputFirst),
            Some((0, 1))
        );
        assert_eq!(channels(&info(&[10], None), Layout::Auto), None);
    }

    #[test]
    fn groups_of_a_convolution_run_over_channels() {
        let groups = Groups::along(1, &[6, 8, 3, 3], 4);
        assert_eq!(groups.split, [6, 2, 4, 9]);
        assert_eq!(Groups::along(0, &[8, 6, 3, 3], 4).split, [1, 2, 4, 54]);
    }
}
