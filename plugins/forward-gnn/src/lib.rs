//! Trainer: graph networks learned layer by layer, without backpropagation through the stack.
//!
//! Park et al. 2024 (ICLR, arXiv 2403.11004). The graph gets a virtual node for each class, joined to
//! the training nodes of that class. A layer is a graph convolution of the row-normalised output of the layer before
//! (Kipf and Welling 2017), `f(P norm(H) W' + b)` with `P = D^-1/2 (A + I) D^-1/2`, and learns from its own output:
//!
//! - `sf`: the classes' virtual nodes are prototypes; cross-entropy of `Z Z_virtual' / temperature`, no negatives;
//! - `sf-top-to-input`: the same, and a layer also reads what the layer above gave last;
//! - `ff-vn`: training nodes joined to wrong classes are negatives; goodness `sum_j Z_ij^2 - theta`, softplus loss;
//! - `ff-la`: no virtual nodes, labels are features;
//! - `backprop` and `mlp`: the baselines, a graph network trained whole, and one that sees no edge.
//!
//! The layers are the `linear` layers of the run's model with the ReLU behind each. Weights for further inputs (labels, the
//! layer above) are a set of this plugin's. Every step sees the whole graph.
//!
//! Differences: no early stop, a layer has an equal share of the round's steps; at prediction the labels of validation
//! nodes are used by no method; links are not predicted.

mod graph;

use espalier_sdk::data::Batch;
use espalier_sdk::options::Value;
use espalier_sdk::parameters::{AdamOptions, Kind};
use espalier_sdk::state::{Reader, Writer};
use espalier_sdk::{
    Choice, Error, Model, Options, ParameterSet, Prediction, RunInfo, StepInfo, StepReport, Tensor,
    Trainer, grad, no_grad, random,
};

use graph::{Graph, Operator};

/// How layers learn.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Method {
    Sf,
    SfTopToInput,
    FfVn,
    FfLa,
    Backprop,
    Mlp,
}

/// Options under `[trainer.with]`.
#[derive(Options)]
struct Settings {
    /// How layers learn; backprop and mlp are the baselines.
    #[option(default = Method::Sf)]
    method: Method,
    /// Learning rate of Adam.
    #[option(default = 0.01, min = 0, live)]
    lr: f64,
    /// What similarities to the virtual nodes are divided by.
    #[option(default = 1, min = 1e-6)]
    temperature: f64,
    /// Goodness at which a node is as likely right as wrong.
    #[option(default = 2)]
    theta: f64,
    /// Steps between two looks at the validation nodes; the best weights seen are a layer's last. 0: the last are.
    #[option(default = 2)]
    keep_best: u64,
}

/// First numbers of the keys.
const VIRTUAL: u64 = 10;
const EXTRA: u64 = 11;

/// A linear layer and its ReLU.
struct Layer {
    weight: String,
    bias: Option<String>,
    relu: bool,
    inputs: u32,
    outputs: u32,
    /// Weights of what it reads beside the layer before, in the plugin's set.
    extra: Option<String>,
}

/// A graph as a layer sees it: where features flow, and label features beside the first layer's input.
struct View {
    operator: Operator,
    labels: Option<Tensor>,
}

struct ForwardGnn {
    settings: Settings,
    steps: u64,
    graph: Graph,
    layers: Vec<Layer>,
    main: ParameterSet,
    own: ParameterSet,
    kept: ParameterSet,
    /// The graph with true labels, those with wrong ones, and one for each class that the other nodes may have.
    right: View,
    wrong: Vec<View>,
    candidates: Vec<View>,
    /// Training nodes and their labels.
    train: (Tensor, Tensor),
    /// The last layer that has begun to learn.
    learning: usize,
    /// Best validation accuracy of the layers learning now.
    best: f64,
}

impl Trainer for ForwardGnn {
    type Options = Settings;

    fn new(run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let method = settings.method;
        let graph = Graph::of_run()?;
        if !graph.connected && matches!(method, Method::FfVn | Method::FfLa | Method::SfTopToInput)
        {
            return Err(Error::incompatible(
                "this method needs a graph; set source = \"graph\" or \"block-model\" in [data], or method = \"sf\"",
            ));
        }
        let main = ParameterSet::main();
        let own = ParameterSet::own("graph");
        let mut layers = layers(&Model::main(), &main)?;
        let classes = graph.classes as u32;
        let last = layers[layers.len() - 1].outputs;
        if whole(method) && last != classes {
            return Err(Error::incompatible(format!(
                "backprop and mlp need a last layer with one output a class ({classes}); it has {last}"
            )));
        }
        if layers[0].inputs != graph.features.size(1) {
            return Err(Error::incompatible(format!(
                "the first layer reads {} numbers, a node has {}",
                layers[0].inputs,
                graph.features.size(1)
            )));
        }
        let widths: Vec<u32> = layers.iter().map(|layer| layer.outputs).collect();
        for (at, layer) in layers.iter_mut().enumerate() {
            let extra = match method {
                Method::FfLa if at == 0 => classes,
                Method::SfTopToInput => widths.get(at + 1).copied().unwrap_or(classes),
                _ => continue,
            };
            let name = format!("extra{at}");
            let bound = 1.0 / f64::from(layer.inputs + extra).sqrt();
            let unit = random::uniform(&[EXTRA, at as u64], &[layer.outputs, extra]);
            own.create(&name, Kind::Weight, &((unit * 2.0 - 1.0) * bound), true);
            layer.extra = Some(name);
        }
        let prototypes = random::normal(&[VIRTUAL], &[classes, graph.features.size(1)]);
        own.create("virtual", Kind::Buffer, &prototypes, false);

        let (right, wrong, candidates) = views(method, &graph);
        if method == Method::SfTopToInput {
            let nodes = graph.nodes as u32 + classes;
            for (at, width) in widths.iter().enumerate() {
                own.create(
                    &state_name(at),
                    Kind::Buffer,
                    &Tensor::zeros(&[nodes, *width]),
                    false,
                );
            }
        }
        let train = (
            Tensor::indices(graph.train.iter().copied()),
            Tensor::indices(graph.labels.iter().copied()),
        );
        Ok(ForwardGnn {
            settings,
            steps: run.steps,
            graph,
            layers,
            main,
            own,
            kept: ParameterSet::own("kept"),
            right,
            wrong,
            candidates,
            train,
            learning: 0,
            best: -1.0,
        })
    }

    fn step(&mut self, at: &StepInfo) -> StepReport {
        let greedy = matches!(
            self.settings.method,
            Method::Sf | Method::FfVn | Method::FfLa
        );
        let count = self.layers.len();
        let (from, until) = match greedy {
            true => share(at.step, self.steps, count),
            false => (count - 1, self.steps),
        };
        if at.step == 0 || from != self.learning {
            self.best = -1.0;
        }
        self.learning = from;
        let learning: Vec<usize> = match greedy {
            true => vec![from],
            false => (0..count).collect(),
        };
        let loss = match self.settings.method {
            Method::SfTopToInput => self.alternate(at.step == 0),
            _ => {
                let loss = self
                    .losses(from, &self.train.0, None, &self.train.1)
                    .mean(&[]);
                let value = loss.item();
                self.update(&loss, &learning);
                value
            }
        };
        self.keep_best(at.step, until, &learning);
        StepReport::new(loss, self.graph.train.len() as u32)
    }

    fn objective(&self, batch: &Batch) -> Tensor {
        let (nodes, strangers) = self.nodes(batch);
        let layers = match whole(self.settings.method) {
            true => self.layers.len() - 1..self.layers.len(),
            false => 0..self.layers.len(),
        };
        let mut sum = Tensor::zeros(&[batch.count()]);
        for layer in layers {
            sum = sum + self.losses(layer, &nodes, strangers.as_ref(), batch.targets());
        }
        sum
    }

    fn predict(&self, batch: &Batch) -> Prediction {
        let (nodes, strangers) = self.nodes(batch);
        let scores = self.scores(strangers.as_ref()).take(&nodes, 0);
        match self.settings.method {
            Method::Sf | Method::SfTopToInput => Prediction::probabilities(scores),
            _ => Prediction::logits(scores),
        }
    }

    fn set_knob(&mut self, name: &str, value: &Value) -> Result<(), Error> {
        self.settings.set_live(name, value)
    }

    fn save(&self) -> Vec<u8> {
        Writer::new(1)
            .u64(self.learning as u64)
            .f64(self.best)
            .bytes(&self.settings.save_live())
            .finish()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        let mut state = Reader::new(state, 1)?;
        self.learning = (state.u64()? as usize).min(self.layers.len() - 1);
        self.best = state.f64()?;
        self.settings.restore_live(state.bytes()?)?;
        state.end()
    }
}

impl ForwardGnn {
    /// Rows of a batch among all rows, and the features of samples that are no nodes of the graph: they come behind.
    fn nodes(&self, batch: &Batch) -> (Tensor, Option<Tensor>) {
        if self.graph.connected && batch.fields().iter().any(|(name, _)| name == "nodes") {
            return (batch.field("nodes").clone(), None);
        }
        let first = self.first().size(0);
        let rows = Tensor::indices((first..first + batch.count()).map(u64::from));
        (rows, Some(batch.inputs().flatten()))
    }

    /// Input of the first layer: nodes, and virtual nodes where the method has them.
    fn first(&self) -> Tensor {
        match self.settings.method {
            Method::Sf | Method::SfTopToInput | Method::FfVn => Tensor::concat(
                &[&self.graph.features, &self.own.value("virtual").detach()],
                0,
            ),
            _ => self.graph.features.clone(),
        }
    }

    /// What a layer gives for rows that have come along the edges already.
    fn apply(&self, layer: &Layer, x: &Tensor, extra: Option<&Tensor>) -> Tensor {
        let bias = layer.bias.as_ref().map(|name| self.main.value(name));
        let mut y = x.linear(&self.main.value(&layer.weight), bias.as_ref());
        if let (Some(name), Some(extra)) = (&layer.extra, extra) {
            y = y + extra.matmul(&self.own.value(name).t());
        }
        match layer.relu {
            true => y.relu(),
            false => y,
        }
    }

    /// A layer's output for all rows; strangers, which no edge reaches, stand behind the graph's own.
    fn layer(&self, at: usize, x: &Tensor, view: &View, strangers: bool) -> Tensor {
        let layer = &self.layers[at];
        let labels = view.labels.as_ref().filter(|_| at == 0);
        let labels = labels.map(|labels| view.operator.apply(labels));
        if !strangers {
            return self.apply(layer, &view.operator.apply(x), labels.as_ref());
        }
        let known = self.first().size(0) as i32;
        let own = view.operator.apply(&x.slice(0, 0, known));
        let x = Tensor::concat(&[&own, &x.slice(0, known, i32::MAX)], 0);
        self.apply(layer, &x, labels.as_ref())
    }

    /// The constant input of a layer that learns by itself.
    fn input(&self, at: usize, view: &View, strangers: Option<&Tensor>) -> Tensor {
        let first = self.first();
        let mut x = match strangers {
            Some(strangers) => Tensor::concat(&[&first, strangers], 0),
            None => first,
        };
        no_grad(|| {
            for before in 0..at {
                x = self.layer(before, &norm(&x), view, strangers.is_some());
            }
            norm(&x)
        })
    }

    /// Losses of some rows at a layer, `[rows]`; at the last layer those of the whole network for `backprop` and `mlp`.
    fn losses(
        &self,
        at: usize,
        rows: &Tensor,
        strangers: Option<&Tensor>,
        labels: &Tensor,
    ) -> Tensor {
        let any = strangers.is_some();
        match self.settings.method {
            Method::Sf => {
                let z = self.layer(
                    at,
                    &self.input(at, &self.right, strangers),
                    &self.right,
                    any,
                );
                self.similarities(&z, rows).cross_entropy(labels)
            }
            Method::SfTopToInput => self
                .similarities(&self.timed(at), rows)
                .cross_entropy(labels),
            Method::Backprop | Method::Mlp => {
                self.through(strangers).take(rows, 0).cross_entropy(labels)
            }
            Method::FfVn | Method::FfLa => {
                let goodness = |view: &View, x: &Tensor| {
                    let z = self.layer(at, x, view, any).take(rows, 0);
                    z.square().sum(&[1]) - self.settings.theta
                };
                let right = self.input(at, &self.right, strangers);
                let mut wrong = Tensor::zeros(&[rows.size(0)]);
                for view in &self.wrong {
                    // With virtual nodes the negatives differ by their edges; they see the features of the positive graph.
                    let x = match self.settings.method {
                        Method::FfVn => right.clone(),
                        _ => self.input(at, view, strangers),
                    };
                    wrong = wrong + goodness(view, &x).softplus();
                }
                (-goodness(&self.right, &right)).softplus() + wrong / self.wrong.len() as f64
            }
        }
    }

    /// Scores of all classes for the rows given, by the virtual nodes' outputs in `z`.
    fn similarities(&self, z: &Tensor, rows: &Tensor) -> Tensor {
        let nodes = self.graph.nodes as i32;
        let prototypes = z.slice(0, nodes, nodes + self.graph.classes as i32);
        z.take(rows, 0).matmul(&prototypes.t()) / self.settings.temperature
    }

    /// The output of all layers in a row.
    fn through(&self, strangers: Option<&Tensor>) -> Tensor {
        let mut x = match strangers {
            Some(strangers) => Tensor::concat(&[&self.first(), strangers], 0),
            None => self.first(),
        };
        for at in 0..self.layers.len() {
            x = self.layer(at, &x, &self.right, strangers.is_some());
        }
        x
    }

    /// Scores of all rows `[rows, classes]` by the layers that have begun to learn.
    fn scores(&self, strangers: Option<&Tensor>) -> Tensor {
        let any = strangers.is_some();
        let start = || self.input(0, &self.right, strangers);
        let rows = |z: &Tensor| Tensor::indices(0..u64::from(z.size(0)));
        match self.settings.method {
            Method::Backprop | Method::Mlp => self.through(strangers),
            Method::Sf => {
                let mut x = start();
                let mut sum: Option<Tensor> = None;
                for at in 0..=self.learning {
                    let z = self.layer(at, &x, &self.right, any);
                    let p = self.similarities(&z, &rows(&z)).softmax(1);
                    sum = Some(sum.map_or(p.clone(), |sum| sum + p));
                    x = norm(&z);
                }
                sum.unwrap_or(x) / (self.learning + 1) as f64
            }
            Method::SfTopToInput => {
                let states =
                    (0..self.layers.len()).map(|at| self.own.value(&state_name(at)).detach());
                let p = states.map(|z| self.similarities(&z, &rows(&z)).softmax(1));
                let sum = p.reduce(|sum, p| sum + p);
                sum.unwrap_or_else(start) / self.layers.len() as f64
            }
            Method::FfVn | Method::FfLa => {
                let columns: Vec<Tensor> = self
                    .candidates
                    .iter()
                    .map(|view| {
                        let mut x = start();
                        let mut sum = Tensor::zeros(&[x.size(0)]);
                        for at in 0..=self.learning {
                            let z = self.layer(at, &x, view, any);
                            sum = sum + (z.square().mean(&[1]) - self.settings.theta);
                            x = norm(&z);
                        }
                        sum
                    })
                    .collect();
                Tensor::stack(&columns.iter().collect::<Vec<_>>(), 1)
            }
        }
    }

    /// What a layer of `sf-top-to-input` gives for what the layers below and above it gave last.
    fn timed(&self, at: usize) -> Tensor {
        let flow = |x: &Tensor| self.right.operator.apply(&norm(x));
        let below = match at {
            0 => self.first(),
            at => self.own.value(&state_name(at - 1)).detach(),
        };
        let above = match &self.right.labels {
            Some(labels) if at + 1 == self.layers.len() => labels.clone(),
            _ => self.own.value(&state_name(at + 1)).detach(),
        };
        self.apply(&self.layers[at], &flow(&below), Some(&flow(&above)))
    }

    /// One step of time of `sf-top-to-input`: the even layers learn, then the odd ones from what those give now.
    fn alternate(&self, first: bool) -> f64 {
        let count = self.layers.len();
        if first {
            no_grad(|| {
                let mut x = self.first();
                for (at, layer) in self.layers.iter().enumerate() {
                    x = self.apply(layer, &self.right.operator.apply(&norm(&x)), None);
                    self.own.assign(&state_name(at), &x);
                }
            });
        }
        let mut last = 0.0;
        for at in (0..count).step_by(2).chain((1..count).step_by(2)) {
            let z = self.timed(at);
            let loss = self
                .similarities(&z, &self.train.0)
                .cross_entropy(&self.train.1)
                .mean(&[]);
            let state = z.detach();
            drop(z);
            last = loss.item();
            self.update(&loss, &[at]);
            self.own.assign(&state_name(at), &state);
        }
        last
    }

    /// Parameters of layers: of the run's set and of this plugin's.
    fn names(&self, layers: &[usize]) -> (Vec<String>, Vec<String>) {
        let layers = layers.iter().map(|&at| &self.layers[at]);
        let (mut main, mut own) = (Vec::new(), Vec::new());
        for layer in layers {
            main.push(layer.weight.clone());
            main.extend(layer.bias.clone());
            own.extend(layer.extra.clone());
        }
        let free = self.main.trainable();
        main.retain(|name| free.contains(name));
        (main, own)
    }

    /// A step of Adam on some layers.
    fn update(&self, loss: &Tensor, layers: &[usize]) {
        let (main, own) = self.names(layers);
        let mut values = self.main.values(&main);
        values.extend(self.own.values(&own));
        if values.is_empty() {
            return;
        }
        let grads = grad(loss, &values.iter().collect::<Vec<_>>());
        // While a value is held, the optimiser has to copy it.
        drop(values);
        let options = AdamOptions {
            lr: self.settings.lr,
            ..AdamOptions::default()
        };
        let (of_main, of_own) = grads.split_at(main.len());
        if !main.is_empty() {
            self.main.adam(&main, of_main, options);
        }
        if !own.is_empty() {
            self.own.adam(&own, of_own, options);
        }
    }

    /// Remembers the parameters that do best on the validation nodes, and goes back to them at the end of their share.
    fn keep_best(&mut self, step: u64, until: u64, layers: &[usize]) {
        let every = self.settings.keep_best;
        let Some((nodes, targets)) = &self.graph.validation else {
            return;
        };
        if every == 0 {
            return;
        }
        let (main, mut own) = self.names(layers);
        if self.settings.method == Method::SfTopToInput {
            own.extend((0..self.layers.len()).map(state_name));
        }
        let sets = [(&self.main, &main, "main"), (&self.own, &own, "own")];
        if (step + 1).is_multiple_of(every) {
            let found = no_grad(|| self.scores(None).take(nodes, 0).argmax(1));
            let right = found.equal(targets).count_nonzero();
            let accuracy = right as f64 / f64::from(targets.size(0));
            if accuracy >= self.best {
                self.best = accuracy;
                for (set, names, prefix) in &sets {
                    for name in *names {
                        let value = set.value(name).detach();
                        let kept = format!("{prefix}-{}", name.replace('.', "-"));
                        self.kept.create(&kept, Kind::Buffer, &value, false);
                        self.kept.assign(&kept, &value);
                    }
                }
            }
        }
        if step + 1 == until && self.best >= 0.0 {
            for (set, names, prefix) in &sets {
                for name in *names {
                    let kept = format!("{prefix}-{}", name.replace('.', "-"));
                    set.assign(name, &self.kept.value(&kept).detach());
                }
            }
        }
    }
}

/// Whether all layers learn from the last one's loss.
fn whole(method: Method) -> bool {
    matches!(method, Method::Backprop | Method::Mlp)
}

fn state_name(at: usize) -> String {
    format!("state{at}")
}

/// Each row divided by its length; a row of zeros stays one.
fn norm(x: &Tensor) -> Tensor {
    x / (x.square().sum_keepdims(&[1]).sqrt() + 1e-8)
}

/// The graph with right labels, with wrong ones, and with each class for the nodes whose label is not known.
fn views(method: Method, graph: &Graph) -> (View, Vec<View>, Vec<View>) {
    let nodes = graph.nodes;
    let labelled = graph.labelled();
    let with = |more: Vec<(u64, u64)>| [labelled.clone(), more].concat();
    let candidates = || (0..graph.classes).map(|class| with(graph.others(class)));
    match method {
        Method::Mlp => (
            View {
                operator: Operator::new(nodes, &[]),
                labels: None,
            },
            Vec::new(),
            Vec::new(),
        ),
        Method::Backprop => (
            View {
                operator: Operator::new(nodes, &graph.edges),
                labels: None,
            },
            Vec::new(),
            Vec::new(),
        ),
        Method::FfLa => {
            let view = |wired: &[(u64, u64)]| View {
                operator: Operator::new(nodes, &graph.edges),
                labels: Some(graph.label_features(wired)),
            };
            let wrong = graph.wrong().iter().map(|wired| view(wired)).collect();
            (
                view(&labelled),
                wrong,
                candidates().map(|wired| view(&wired)).collect(),
            )
        }
        Method::Sf | Method::SfTopToInput | Method::FfVn => {
            let view = |wired: &[(u64, u64)]| View {
                operator: Operator::new(nodes + graph.classes, &graph.with_virtual(wired)),
                labels: None,
            };
            let mut right = view(&labelled);
            if method == Method::SfTopToInput {
                let own = Tensor::eye(graph.classes as u32);
                right.labels = Some(Tensor::concat(&[&graph.label_features(&labelled), &own], 0));
            }
            if method != Method::FfVn {
                return (right, Vec::new(), Vec::new());
            }
            let wrong = graph.wrong().iter().map(|wired| view(wired)).collect();
            (
                right,
                wrong,
                candidates().map(|wired| view(&wired)).collect(),
            )
        }
    }
}

/// The linear layers of a chain, each with the ReLU behind it.
fn layers(model: &Model, set: &ParameterSet) -> Result<Vec<Layer>, Error> {
    let infos = set.list();
    let mut layers: Vec<Layer> = Vec::new();
    for layer in model.layers() {
        match (&layer.kind[..], layers.last_mut()) {
            ("linear", _) => {
                let (weight, bias) = (
                    format!("{}.weight", layer.name),
                    format!("{}.bias", layer.name),
                );
                let sizes: Vec<u32> = infos
                    .iter()
                    .filter(|info| info.name == weight)
                    .flat_map(|info| info.shape.clone())
                    .collect();
                let &[outputs, inputs] = &sizes[..] else {
                    continue;
                };
                layers.push(Layer {
                    bias: layer.parameters.contains(&bias).then_some(bias),
                    weight,
                    relu: false,
                    inputs,
                    outputs,
                    extra: None,
                });
            }
            ("flatten", None) | ("identity", _) => {}
            ("relu", Some(last)) if !last.relu => last.relu = true,
            (kind, _) => {
                return Err(Error::incompatible(format!(
                    "layer `{}` is a {kind}; this trainer takes `linear` layers, with or without a `relu` behind each, and \
                     makes graph convolutions of them",
                    layer.name
                )));
            }
        }
    }
    if layers.is_empty() {
        return Err(Error::incompatible("the model has no `linear` layer"));
    }
    if !layers.iter().any(|l| set.trainable().contains(&l.weight)) {
        return Err(Error::incompatible("the model has no trainable parameters"));
    }
    Ok(layers)
}

/// Which of `layers` learns at a step of a round, and the step at which its share ends.
fn share(step: u64, steps: u64, layers: usize) -> (usize, u64) {
    let (steps, count) = (u128::from(steps.max(1)), layers as u128);
    let at = (u128::from(step) * count / steps).min(count - 1);
    let until = ((at + 1) * steps).div_ceil(count);
    (at as usize, until as u64)
}

espalier_sdk::export!(trainer: ForwardGnn);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_have_equal_shares_that_end_where_the_next_begins() {
        for (steps, layers) in [(10, 3), (400, 2), (7, 7), (5, 1)] {
            for step in 0..steps {
                let (at, until) = share(step, steps, layers);
                assert_eq!(share(until - 1, steps, layers).0, at, "{step} of {steps}");
                if until < steps {
                    assert_eq!(share(until, steps, layers).0, at + 1, "{step} of {steps}");
                }
            }
        }
        assert_eq!(share(399, 400, 2), (1, 400));
    }

    #[test]
    fn every_default_lies_in_its_own_range() {
        assert_eq!(Settings::defaults().theta, 2.0);
    }
}
