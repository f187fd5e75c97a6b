//! The exact checks of the Dragon Hatchling (arXiv 2509.26507): the component itself computes, and what comes out is
//! compared with the recurrence written out by hand, in f64.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::rc::Rc;

use espalier_runtime::component;
use espalier_runtime::host::bindings::trainer::espalier::plugin::run::RunInfo;
use espalier_runtime::host::session::Session;
use espalier_runtime::host::session::architecture::Asked;
use espalier_runtime::host::state::{RunState, SetId, Shared};
use espalier_runtime::model::{FieldShape, Forward, LayerInfo, Mode, Model};
use espalier_runtime::options;
use espalier_runtime::plan::{Limits, OptionValue};
use espalier_runtime::registry::Registry;
use espalier_tensor::account::Account;
use espalier_tensor::{DType, Tensor};
use espalier_tests::workspace;

const WORDS: usize = 256;

/// A hatchling, called one pass at a time.
struct Hatchling {
    shared: Rc<Shared>,
    session: Session,
    layers: Vec<LayerInfo>,
}

fn hatchling(sizes: [i64; 4], steps: usize) -> Hatchling {
    let registry = Registry::load(&workspace().join("registry.toml")).unwrap();
    let entry = registry.entry("bdh").unwrap();
    let resolved = registry.resolve(&[entry], &mut |_| ()).unwrap();
    let loaded = component::load("bdh", &resolved[0].bytes).unwrap();
    let about = component::describe("bdh", &loaded).unwrap();
    let names = ["features", "heads", "neurons", "layers"];
    let given: BTreeMap<String, OptionValue> = names
        .iter()
        .zip(sizes)
        .map(|(name, n)| (name.to_string(), OptionValue::Integer(n)))
        .collect();
    let settings = options::check("bdh", &about.options, &given, &BTreeMap::new()).unwrap();
    let settings: Vec<_> = settings
        .iter()
        .map(|(name, value)| (name.clone(), component::wit_value(value)))
        .collect();
    let shared = Rc::new(Shared::new(RunState::empty(5)));
    let limits = Limits::default();
    let account = Account::new(Some(limits.tensors));
    let mut session = Session::new(&loaded, "bdh", limits, account, shared.clone()).unwrap();
    let info = RunInfo {
        seed: 5,
        stage: 0,
        steps: 1,
        steps_per_epoch: 1,
        batch_size: 1,
        rank: 0,
        world: 1,
    };
    session.start(info, &settings).unwrap().unwrap();
    let fields = [FieldShape {
        name: "inputs".into(),
        shape: vec![steps],
        dtype: DType::I64,
    }];
    let layers = session
        .build(&SetId::Main, &fields, WORDS as u32)
        .unwrap()
        .unwrap();
    let run = &mut *shared.run.borrow_mut();
    let set = run.sets.get_mut(&SetId::Main).unwrap();
    let layers = Model::declared(layers, &fields, set).unwrap().infos();
    Hatchling {
        shared: shared.clone(),
        session,
        layers,
    }
}

impl Hatchling {
    fn pass(&mut self, tokens: &[i64], want: &[&str]) -> Forward {
        let inputs = Tensor::from_vec(tokens.to_vec(), &[1, tokens.len()]).unwrap();
        let asked = Asked {
            set: &SetId::Main,
            overrides: BTreeMap::new(),
            range: (0, self.layers.len() as u32),
            mode: Mode::Eval,
            key: vec![1],
            want: want.iter().map(|name| name.to_string()).collect(),
        };
        self.session
            .forward(&asked, vec![("inputs".into(), inputs)])
            .unwrap()
    }

    fn logits(&mut self, tokens: &[i64]) -> Vec<f64> {
        self.pass(tokens, &[]).output.to_list().unwrap()
    }

    fn values(&self, name: &str) -> Vec<f64> {
        let run = self.shared.run.borrow();
        run.sets[&SetId::Main]
            .stored(name)
            .unwrap()
            .to_list()
            .unwrap()
    }

    /// Larger weights than the initial ones, so that no layer is asleep.
    fn grow(&self, factor: f64) {
        self.scale(&["encoder", "value-encoder", "decoder", "head"], factor);
    }

    fn scale(&self, names: &[&str], factor: f64) {
        let run = &mut *self.shared.run.borrow_mut();
        let set = run.sets.get_mut(&SetId::Main).unwrap();
        for name in names {
            let old = set.stored(name).unwrap().clone();
            let grown: Vec<f64> = old.to_list().unwrap().iter().map(|x| x * factor).collect();
            let grown = Tensor::from_f64s(&grown, old.shape(), DType::F32).unwrap();
            set.assign(name, &grown).unwrap();
        }
    }
}

fn normed(v: &[f64]) -> Vec<f64> {
    let mean = v.iter().sum::<f64>() / v.len() as f64;
    let var = v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / v.len() as f64;
    v.iter().map(|x| (x - mean) / (var + 1e-5).sqrt()).collect()
}

/// Rows of a matrix [rows, width] times a vector.
fn times(matrix: &[f64], v: &[f64]) -> Vec<f64> {
    let row = |row: &[f64]| row.iter().zip(v).map(|(a, b)| a * b).sum();
    matrix.chunks(v.len()).map(row).collect()
}

fn relu(v: Vec<f64>) -> Vec<f64> {
    v.into_iter().map(|x| x.max(0.0)).collect()
}

/// The state S of each layer and head, [n, d], grows by one product a token: a_t = S' x_t before the update.
fn recurrent(
    hatchling: &Hatchling,
    [d, h, neurons, layers]: [usize; 4],
    tokens: &[i64],
) -> Vec<f64> {
    let n = neurons * d / h;
    let [table, encoder, value_encoder, decoder, head] =
        ["tokens", "encoder", "value-encoder", "decoder", "head"]
            .map(|name| hatchling.values(name));
    let mut states = vec![vec![0.0; n * d]; layers * h];
    let mut logits = Vec::new();
    for (t, &token) in tokens.iter().enumerate() {
        let mut v = normed(&table[token as usize * d..][..d]);
        for layer in 0..layers {
            let x = relu(times(&encoder, &v));
            let mut z = Vec::new();
            for head in 0..h {
                let x = &x[head * n..][..n];
                let mut turned = vec![0.0; n];
                for i in 0..n / 2 {
                    let angle = t as f64 * 65_536f64.powf(-2.0 * i as f64 / n as f64);
                    let (sin, cos) = angle.sin_cos();
                    turned[2 * i] = x[2 * i] * cos - x[2 * i + 1] * sin;
                    turned[2 * i + 1] = x[2 * i + 1] * cos + x[2 * i] * sin;
                }
                let state = &mut states[layer * h + head];
                let mut a = vec![0.0; d];
                for (row, x) in state.chunks_mut(d).zip(&turned) {
                    for ((a, s), v) in a.iter_mut().zip(row.iter_mut()).zip(&v) {
                        *a += *s * x;
                        *s += x * v;
                    }
                }
                let y = relu(times(&value_encoder[head * n * d..][..n * d], &normed(&a)));
                z.extend(x.iter().zip(&y).map(|(x, y)| x * y));
            }
            let u = normed(&times(&decoder, &z));
            v = normed(&v.iter().zip(&u).map(|(v, u)| v + u).collect::<Vec<_>>());
        }
        logits.extend(times(&head, &v));
    }
    logits
}

fn tokens(n: usize) -> Vec<i64> {
    (0..n as i64)
        .map(|i| (i * 37 + 11) % WORDS as i64)
        .collect()
}

#[test]
fn the_recurrence_gives_the_logits_of_the_parallel_form() {
    let sizes = [16, 2, 8, 3];
    let mut hatchling = hatchling(sizes.map(|n| n as i64), 16);
    hatchling.grow(8.0);
    let text = tokens(16);
    let (found, expected) = (hatchling.logits(&text), recurrent(&hatchling, sizes, &text));
    let most = found
        .iter()
        .zip(&expected)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f64::max);
    let size = expected.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    assert!(most < 1e-4 && size > 0.1, "{most}, logits up to {size}");
}

#[test]
fn a_token_alone_meets_no_attention_and_goes_through_as_it_is() {
    let mut hatchling = hatchling([16, 2, 8, 4], 1);
    hatchling.grow(8.0);
    // The epsilon of the first normalisation is nothing beside this.
    hatchling.scale(&["tokens"], 100.0);
    for token in [0, 7, 255] {
        let (table, head) = (hatchling.values("tokens"), hatchling.values("head"));
        let expected = times(&head, &normed(&table[token * 16..][..16]));
        let found = hatchling.logits(&[token as i64]);
        for (a, b) in found.iter().zip(&expected) {
            // A vector that is normalised again shrinks by 1 / sqrt(1 + 1e-5) each time, here eight times.
            assert!((a - b).abs() < 2e-4 * (1.0 + b.abs()), "{a} and {b}");
        }
    }
}

#[test]
fn a_token_changes_nothing_before_it() {
    let mut hatchling = hatchling([16, 2, 8, 3], 16);
    hatchling.grow(8.0);
    let text = tokens(16);
    let before = hatchling.logits(&text);
    for changed in [5, 15] {
        let mut other = text.clone();
        other[changed] = (other[changed] + 1) % WORDS as i64;
        let after = hatchling.logits(&other);
        let (same, differing) = before.split_at(changed * WORDS);
        assert!(
            same.iter()
                .zip(&after)
                .all(|(a, b)| a.to_bits() == b.to_bits()),
            "{changed}"
        );
        assert_ne!(differing[..WORDS], after[changed * WORDS..][..WORDS]);
    }
}

#[test]
fn activities_are_never_negative_and_mostly_silent_together() {
    let mut hatchling = hatchling([16, 2, 8, 3], 16);
    hatchling.grow(8.0);
    let pass = hatchling.pass(&tokens(16), &["layer2/x", "layer2/z"]);
    let share = |at: usize| {
        let values = pass.extra[at].1.to_list().unwrap();
        assert!(values.iter().all(|x| *x >= 0.0));
        values.iter().filter(|x| **x > 0.0).count() as f64 / values.len() as f64
    };
    assert_eq!(pass.extra[0].1.shape(), [1, 2, 16, 64]);
    let (x, z) = (share(0), share(1));
    assert!(0.0 < z && z < x && x < 1.0, "{x} {z}");
}

#[test]
fn parameters_are_as_many_as_the_card_says_whatever_the_layers() {
    for layers in [2, 6] {
        let hatchling = hatchling([256, 4, 128, layers], 8);
        let run = hatchling.shared.run.borrow();
        let count: usize = run.sets[&SetId::Main]
            .infos()
            .iter()
            .map(|info| info.shape.iter().product::<usize>())
            .sum();
        assert_eq!(count, 25_296_896);
        assert_eq!(hatchling.layers.len() as i64, layers + 2);
    }
}

#[test]
fn scores_depend_on_the_distance_of_two_tokens_alone() {
    // Two equal tokens at distance 3, wherever: with one head and one layer the attention of the second one is
    // <x turned by t, x turned by s> v, normalised; its sign and size follow from t - s.
    let sizes = [16, 1, 8, 1];
    let mut hatchling = hatchling(sizes.map(|n| n as i64), 16);
    hatchling.grow(8.0);
    let n = 128;
    let x = relu(times(
        &hatchling.values("encoder"),
        &normed(&hatchling.values("tokens")[..16]),
    ));
    let score = |t: usize, s: usize| -> f64 {
        let at = |place: usize, i: usize| {
            let angle = place as f64 * 65_536f64.powf(-2.0 * i as f64 / n as f64);
            let (sin, cos) = angle.sin_cos();
            (
                x[2 * i] * cos - x[2 * i + 1] * sin,
                x[2 * i + 1] * cos + x[2 * i] * sin,
            )
        };
        let pairs = (0..n / 2).map(|i| (at(t, i), at(s, i)));
        pairs.map(|((a, b), (c, d))| a * c + b * d).sum()
    };
    assert!((score(3, 0) - score(9, 6)).abs() < 1e-9);
    // The component agrees with the recurrence that turns so, over a text of one token.
    let text = vec![0; 16];
    let (found, expected) = (hatchling.logits(&text), recurrent(&hatchling, sizes, &text));
    for (a, b) in found.iter().zip(&expected) {
        assert!((a - b).abs() < 1e-4, "{a} and {b}");
    }
}
