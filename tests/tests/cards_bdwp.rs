//! The exact checks of BDWP: known weights go in, the component masks them, and what the products use is compared with
//! a calculation by hand.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use espalier_runtime::events::{Ending, Event, Observer};
use espalier_runtime::host::bindings::trainer::espalier::plugin::run::EventKind;
use espalier_runtime::run::{self, RunOptions};
use espalier_runtime::runfile::{self, Overrides};
use espalier_tests::bench::{Bench, Targets};
use espalier_tests::lab::Lab;
use espalier_tests::workspace;

/// A layer of `inputs` by `outputs` weights alone, with the pruner on it.
fn one_layer(name: &str, [inputs, outputs]: [usize; 2], with: &str) -> Bench {
    let file = format!(
        r#"
[model]
layers = [{{ kind = "linear", features = {outputs}, bias = false }}]
[trainer]
plugin = "backprop"
with = {{ lr = 0.1, momentum = 0.9, weight-decay = 0.01 }}
[pruner]
plugin = "bdwp"
with = {{ dense-first = false, dense-last = false, {with} }}
"#
    );
    let samples: Vec<Vec<f64>> = (0..2).map(|s| spread(inputs, s)).collect();
    let samples: Vec<&[f64]> = samples.iter().map(|s| &s[..]).collect();
    Bench::new(
        name,
        &samples,
        Targets::Classes(&[0, 1], outputs as u32),
        10,
        &file,
    )
}

/// Numbers without a pattern, none of them 0 and no two alike.
fn spread(n: usize, seed: usize) -> Vec<f64> {
    let of = |i: usize| ((i + 1) as f64 * 0.7391 + seed as f64 * 0.137).sin() + 1e-6 * i as f64;
    (0..n).map(of).collect()
}

fn live(values: &[f64]) -> Vec<bool> {
    values.iter().map(|x| *x != 0.0).collect()
}

fn transposed(w: &[f64], columns: usize) -> Vec<f64> {
    let rows = w.len() / columns;
    (0..w.len())
        .map(|i| w[i % rows * columns + i / rows])
        .collect()
}

fn close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (a, b) in found.iter().zip(expected) {
        assert!(
            (a - b).abs() < 1e-6,
            "{what}: {found:?}, expected {expected:?}"
        );
    }
}

const W: [f64; 16] = [
    0.9, -0.1, 0.2, -0.8, 0.3, 0.7, -0.6, 0.05, -0.4, 0.35, 0.5, 0.1, 0.15, -0.25, 0.45, 0.65,
];
const ALONG_ROWS: [f64; 16] = [
    0.9, 0.0, 0.0, -0.8, 0.0, 0.7, -0.6, 0.0, -0.4, 0.0, 0.5, 0.0, 0.0, 0.0, 0.45, 0.65,
];
const ALONG_COLUMNS: [f64; 16] = [
    0.9, 0.0, 0.0, -0.8, 0.0, 0.7, -0.6, 0.0, -0.4, 0.35, 0.5, 0.0, 0.0, 0.0, 0.0, 0.65,
];

#[test]
fn the_known_matrix_is_grouped_along_inputs_forward_and_along_outputs_backward() {
    // A linear layer's weight is [out, in]: a row is an output's, so groups of inputs run along the rows.
    let mut bench = one_layer("bdwp-matrix", [4, 4], "");
    bench.set("linear1.weight", &W);
    bench.event(EventKind::Step, 1);
    let (forward, backward) = bench.used("linear1.weight");
    close(&forward, &ALONG_ROWS, "forward");
    close(&backward, &ALONG_COLUMNS, "backward");
    let same = live(&forward)
        .iter()
        .zip(live(&backward))
        .filter(|(a, b)| **a && *b)
        .count();
    assert_eq!(same, 7);
    close(&bench.value("linear1.weight"), &W, "stored");
    // As a matrix [in, out] it is the other way round.
    let mut bench = one_layer("bdwp-transposed", [4, 4], "layout = \"input-first\"");
    bench.set("linear1.weight", &W);
    bench.event(EventKind::Step, 1);
    let (forward, backward) = bench.used("linear1.weight");
    close(&forward, &ALONG_COLUMNS, "forward");
    close(&backward, &ALONG_ROWS, "backward");
}

#[test]
fn methods_differ_in_the_product_that_they_thin() {
    for (method, forward, backward) in [
        ("sr-ste", ALONG_ROWS, ALONG_ROWS),
        ("sdwp", W, ALONG_COLUMNS),
    ] {
        let mut bench = one_layer(
            &format!("bdwp-{method}"),
            [4, 4],
            &format!("method = \"{method}\""),
        );
        bench.set("linear1.weight", &W);
        bench.event(EventKind::Step, 1);
        let used = bench.used("linear1.weight");
        close(&used.0, &forward, method);
        close(&used.1, &backward, method);
    }
}

#[test]
fn what_sr_ste_drops_decays_and_the_rest_does_not() {
    let mut bench = one_layer("bdwp-decay", [4, 4], "method = \"sr-ste\", decay = 0.25");
    bench.set("linear1.weight", &W);
    // The masks of the start are of the weights of the start: this puts the right ones there.
    bench.event(EventKind::Step, 1);
    bench.set("linear1.weight", &W);
    bench.event(EventKind::Step, 2);
    let expected: Vec<f64> = W
        .iter()
        .zip(ALONG_ROWS)
        .map(|(w, used)| if used == 0.0 { 0.75 * w } else { *w })
        .collect();
    close(&bench.value("linear1.weight"), &expected, "stored");
}

#[test]
fn every_group_keeps_exactly_n_and_a_positive_factor_keeps_the_masks() {
    for (n, m) in [(2, 4), (2, 8), (1, 4), (5, 8), (1, 16)] {
        let mut bench = one_layer(
            &format!("bdwp-{n}-{m}"),
            [32, 16],
            &format!("n = {n}, m = {m}"),
        );
        let weights = spread(512, n + m);
        bench.set("linear1.weight", &weights);
        bench.event(EventKind::Step, 1);
        let (forward, backward) = bench.used("linear1.weight");
        for (values, what) in [(forward.clone(), "in"), (transposed(&backward, 32), "out")] {
            for (group, weights) in values.chunks(m).zip(
                match what {
                    "in" => weights.clone(),
                    _ => transposed(&weights, 32),
                }
                .chunks(m),
            ) {
                assert_eq!(
                    live(group).iter().filter(|x| **x).count(),
                    n,
                    "{n}:{m} {what}"
                );
                let smallest = group
                    .iter()
                    .filter(|x| **x != 0.0)
                    .map(|x| x.abs())
                    .fold(9.0, f64::min);
                for (used, weight) in group.iter().zip(weights) {
                    assert!(*used != 0.0 || weight.abs() <= smallest, "{n}:{m} {what}");
                }
            }
        }
        let scaled: Vec<f64> = weights.iter().map(|w| 8.0 * w).collect();
        bench.set("linear1.weight", &scaled);
        bench.event(EventKind::Step, 2);
        let again = bench.used("linear1.weight");
        assert_eq!(live(&again.0), live(&forward));
        assert_eq!(live(&again.1), live(&backward));
    }
}

#[test]
fn of_equal_weights_the_first_stay() {
    let mut bench = one_layer("bdwp-ties", [4, 4], "");
    bench.set("linear1.weight", &[0.5; 16]);
    bench.event(EventKind::Step, 1);
    let (forward, backward) = bench.used("linear1.weight");
    assert_eq!(live(&forward), [true, true, false, false].repeat(4));
    assert_eq!(live(&backward), [[true; 8], [false; 8]].concat());
}

#[test]
fn all_of_a_group_is_dense_training_to_the_bit() {
    let mut sparse = one_layer("bdwp-full", [8, 4], "n = 4, m = 4");
    let file = r#"
[model]
layers = [{ kind = "linear", features = 4, bias = false }]
[trainer]
plugin = "backprop"
with = { lr = 0.1, momentum = 0.9, weight-decay = 0.01 }
"#;
    let samples: Vec<Vec<f64>> = (0..2).map(|s| spread(8, s)).collect();
    let samples: Vec<&[f64]> = samples.iter().map(|s| &s[..]).collect();
    let dense = Bench::new(
        "bdwp-dense",
        &samples,
        Targets::Classes(&[0, 1], 4),
        10,
        file,
    );
    for step in 0..10 {
        assert_eq!(sparse.step(step), dense.step(step));
        sparse.event(EventKind::Step, step + 1);
        assert_eq!(
            sparse.value("linear1.weight"),
            dense.value("linear1.weight")
        );
    }
}

/// Fractions of the sum of squares of normal weights that the two masks keep.
fn kept_energy(name: &str, with: &str) -> [f64; 2] {
    let mut bench = one_layer(name, [256, 256], with);
    // Sums of twelve uniform numbers less six: normal enough for a hundredth.
    let mut state = 1u64;
    let mut uniform = || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 11) as f64 / (1u64 << 53) as f64
    };
    let weights: Vec<f64> = (0..65536)
        .map(|_| (0..12).map(|_| uniform()).sum::<f64>() - 6.0)
        .collect();
    bench.set("linear1.weight", &weights);
    bench.event(EventKind::Step, 1);
    let energy = |values: &[f64]| values.iter().map(|x| x * x).sum::<f64>();
    let (forward, backward) = bench.used("linear1.weight");
    [forward, backward].map(|kept| energy(&kept) / energy(&weights))
}

#[test]
fn masks_keep_the_energy_that_simulation_says() {
    for (n, m, expected) in [(2, 4, 0.868), (2, 8, 0.665)] {
        let largest = kept_energy(&format!("bdwp-energy{m}"), &format!("n = {n}, m = {m}"));
        let random = kept_energy(
            &format!("bdwp-random{m}"),
            &format!("n = {n}, m = {m}, method = \"random\""),
        );
        for (found, expected) in largest
            .iter()
            .zip([expected; 2])
            .chain(random.iter().zip([n as f64 / m as f64; 2]))
        {
            assert!(
                (found - expected).abs() < 0.01,
                "{n}:{m}: {found}, expected {expected}"
            );
        }
    }
}

#[test]
fn gradients_go_back_through_the_backward_weights_and_densely_to_the_weight() {
    // x -> h = A x -> y = W h, half the squared error summed over the outputs: dy = y - t.
    let file = r#"
[model]
layers = [{ kind = "linear", features = 4, bias = false }, { kind = "linear", features = 4, bias = false }]
[trainer]
plugin = "backprop"
with = { optimizer = "adam", lr = 0.001, loss = "cross-entropy" }
[pruner]
plugin = "bdwp"
with = { dense-last = false }
"#;
    let x = [0.5, -1.0, 2.0];
    let mut bench = Bench::new("bdwp-gradients", &[&x], Targets::Classes(&[2], 4), 10, file);
    let a = spread(12, 5);
    bench.set("linear1.weight", &a);
    bench.set("linear2.weight", &W);
    bench.event(EventKind::Step, 1);
    let times = |w: &[f64], x: &[f64]| -> Vec<f64> {
        w.chunks(x.len())
            .map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum())
            .collect()
    };
    let h = times(&a, &x);
    let y = times(&ALONG_ROWS, &h);
    close(&bench.predict(), &y, "predictions use the forward weights");
    let sum: f64 = y.iter().map(|y| y.exp()).sum();
    let dy: Vec<f64> = (0..4)
        .map(|i| y[i].exp() / sum - f64::from(u8::from(i == 2)))
        .collect();
    let outer = |a: &[f64], b: &[f64]| -> Vec<f64> {
        a.iter()
            .flat_map(|a| b.iter().map(move |b| a * b))
            .collect()
    };
    bench.step(1);
    let dw = bench.gradient("linear2.weight").unwrap();
    close(&dw, &outer(&dy, &h), "dense gradient of the weight");
    let dh = times(&transposed(&ALONG_COLUMNS, 4), &dy);
    let da = bench.gradient("linear1.weight").unwrap();
    close(
        &da,
        &outer(&dh, &x),
        "gradient through the backward weights",
    );
}

const DIGITS: &str = r#"
[run]
seed = 3
[data]
source = "digits"
train-limit = 200
test-limit = 50
[model]
layers = [
  { kind = "flatten" }, { kind = "linear", features = 16 }, { kind = "relu" },
  { kind = "linear", features = 24 }, { kind = "relu" }, { kind = "linear", features = 10 },
]
[schedule]
epochs = 4
batch-size = 50
[trainer]
plugin = "backprop"
with = { lr = 0.1, momentum = 0.9 }
[pruner]
plugin = "bdwp"
with = { n = 2, m = 8, measure-cosine = true, report-every = 3 }
"#;

/// Asks for the end of the run after a step.
struct Stop(Arc<AtomicBool>, u64);

impl Observer for Stop {
    fn event(&mut self, event: &Event) {
        if matches!(event, Event::Step { step, .. } if *step == self.1) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_resumed_run_ends_as_one_that_was_not_interrupted() {
    let lab = Lab::new("bdwp-resume");
    lab.finish("whole", DIGITS, &[]);
    let path = lab.folder().join("run.toml");
    let plan =
        runfile::load(&path, &Overrides::default()).unwrap_or_else(|error| panic!("{error}"));
    let cancel = Arc::new(AtomicBool::new(false));
    let options = |resume: bool| RunOptions {
        out: (!resume).then(|| lab.out("parts")),
        resume: resume.then(|| lab.out("parts")),
        registry: workspace().join("registry.toml"),
        cancel: cancel.clone(),
    };
    let ending = run::execute(&plan, &options(false), &mut Stop(cancel.clone(), 7));
    assert!(
        !matches!(ending, Ok(Ending::Finished(_)) | Err(_)),
        "{ending:?}"
    );
    cancel.store(false, Ordering::Relaxed);
    let ending = run::execute(&plan, &options(true), &mut Stop(cancel.clone(), 0));
    assert!(matches!(ending, Ok(Ending::Finished(_))), "{ending:?}");
    assert_eq!(lab.digest("whole"), lab.digest("parts"));
    let read = |name: &str| std::fs::read_to_string(lab.out(name).join("metrics.jsonl")).unwrap();
    assert_eq!(read("whole"), read("parts"));
    assert!(read("whole").contains("cosine"), "{}", read("whole"));
}

#[test]
fn a_second_plugin_may_mask_beside_it() {
    let lab = Lab::new("bdwp-two");
    let pruners =
        |second: &str| DIGITS.replace("[pruner]", &format!("[[pruner]]\n{second}\n[[pruner]]"));
    lab.finish(
        "both",
        &pruners("plugin = \"magnitude\"\nwith = { sparsity = 0.5, when = \"one-shot\" }"),
        &[],
    );
    // The mask takes half of all weights, and in the middle layer no more than two of eight are used.
    let mut set = run::parameters_of(&lab.out("both")).unwrap();
    let (alive, total) = set.density().unwrap();
    assert!(2 * alive <= total, "{alive} of {total}");
    let used = set.value("linear2.weight").unwrap().to_list().unwrap();
    assert!(live(&used).iter().filter(|x| **x).count() <= 384 / 4);
    assert!(set.mask("linear2.weight").unwrap().is_some());
}

#[test]
fn the_example_thins_an_architecture_that_learns_a_language() {
    let path = workspace().join("examples/bdh-bdwp.toml");
    let lab = Lab::new("bdwp-bdh");
    let sets = [
        (
            "architecture.with",
            "{ features = 16, heads = 2, neurons = 4, layers = 2 }",
        ),
        ("schedule.steps", "30"),
        ("schedule.batch-size", "4"),
        ("data.context", "16"),
        ("data.test-limit", "8"),
        ("trainer.with.lr", "0.01"),
    ];
    let overrides = Overrides {
        sets: sets.map(|(k, v)| (k.into(), v.into())).to_vec(),
        ..Overrides::default()
    };
    let plan = runfile::load(&path, &overrides).unwrap_or_else(|error| panic!("{error}"));
    let options = RunOptions {
        out: Some(lab.out("run")),
        resume: None,
        registry: workspace().join("registry.toml"),
        cancel: Arc::new(AtomicBool::new(false)),
    };
    let mut events: Vec<Event> = Vec::new();
    let ending =
        run::execute(&plan, &options, &mut events).unwrap_or_else(|error| panic!("{error}"));
    let Ending::Finished(finished) = ending else {
        panic!("{ending:?}")
    };
    // 256 bytes alike would be 8 bits each.
    assert!(
        finished.metrics["test/bits-per-byte"] < 7.5,
        "{:?}",
        finished.metrics
    );
    let mut set = run::parameters_of(&lab.out("run")).unwrap();
    for name in ["encoder", "value-encoder", "decoder"] {
        let leaf = set.value(name).unwrap();
        let used = [
            leaf.to_list().unwrap(),
            leaf.backward_value().unwrap().to_list().unwrap(),
        ];
        for used in used {
            assert_eq!(
                2 * live(&used).iter().filter(|x| **x).count(),
                used.len(),
                "{name}"
            );
        }
    }
    assert!(!set.is_effective("head"));
}
