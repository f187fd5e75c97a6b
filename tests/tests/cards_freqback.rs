//! The exact checks of FreqBack on the component itself, and the pipeline of attack and defence at a small size.
#![allow(clippy::unwrap_used)]

use espalier_runtime::checkpoint;
use espalier_runtime::events::Event;
use espalier_tests::bench::{Bench, Targets};
use espalier_tests::lab::Lab;
use espalier_tests::workspace;

fn close(found: &[f64], expected: &[f64], slack: f64) {
    assert_eq!(found.len(), expected.len(), "{found:?}");
    for (a, b) in found.iter().zip(expected) {
        assert!((a - b).abs() < slack, "{found:?}, expected {expected:?}");
    }
}

/// The direction of the highest frequency of eight steps, of norm 1.
fn highest() -> Vec<f64> {
    let sign = |t: usize| if t.is_multiple_of(2) { 1.0 } else { -1.0 };
    (0..8).map(|t| sign(t) / 8f64.sqrt()).collect()
}

/// Two series of eight steps without that frequency, and a model whose first logit is their part along it.
fn linear(name: &str, options: &str) -> Bench {
    let file = format!(
        r#"
[model]
layers = [{{ kind = "linear", features = 2, bias = false }}]
[trainer]
plugin = "freqback"
with = {{ rounds = 1, bins = 1, lr = 0.0, rate = 0.0, {options} }}
"#
    );
    // Their deviation is 1: a perturbation of the root of 8 has the norm 1.
    let (up, down) = ([1.0; 8], [-1.0; 8]);
    let labels = Targets::Classes(&[0, 1], 2);
    let bench = Bench::new(name, &[&up, &down], labels, 2, &file);
    let weight = [highest(), vec![0.0; 8]].concat();
    bench.set("linear1.weight", &weight);
    bench
}

#[test]
fn a_linear_model_listens_to_its_own_frequency_alone() {
    let bench = linear("freqback-heat", "perturbation = 2.8284271247");
    bench.step(0);
    // Both logits are 0; 1 more or less on the first costs ln cosh(1/2) on average over the signs.
    let expected = [0.0, 0.0, 0.0, 0.0, 0.5f64.cosh().ln()];
    close(&bench.value("freqback/heat"), &expected, 1e-6);
}

#[test]
fn heat_falls_with_the_square_of_the_perturbation() {
    let heat = |size: f64| {
        let name = format!("freqback-small-{size}");
        let bench = linear(&name, &format!("perturbation = {}", size * 8f64.sqrt()));
        bench.step(0);
        bench.value("freqback/heat")[4]
    };
    let (two, one) = (heat(0.2), heat(0.1));
    close(
        &[two, one],
        &[0.1f64.cosh().ln(), 0.05f64.cosh().ln()],
        1e-6,
    );
    assert!((two / one - 4.0).abs() < 0.02, "{}", two / one);
}

#[test]
fn a_guided_trigger_lies_on_the_hottest_bin_and_has_the_norm() {
    let bench = linear("freqback-trigger", "norm = 1.2");
    bench.step(0);
    let expected: Vec<f64> = highest().iter().map(|x| 1.2 * x).collect();
    close(&bench.value("freqback/trigger"), &expected, 1e-5);
    let coldest = linear("freqback-coldest", "norm = 1.2, trigger = \"coldest\"");
    coldest.step(0);
    let trigger = coldest.value("freqback/trigger");
    let along: f64 = trigger.iter().zip(highest()).map(|(a, b)| a * b).sum();
    let norm = trigger.iter().map(|x| x * x).sum::<f64>().sqrt();
    assert!(
        along.abs() < 1e-6 && (norm - 1.2).abs() < 1e-5,
        "{trigger:?}"
    );
}

const SMALL: &str = r#"
[run]
threads = 1
[data]
source = "sines"
samples = 90
test-samples = 60
[model]
layers = [{ kind = "flatten" }, { kind = "linear", features = 16 }, { kind = "relu" }, { kind = "linear", features = 3 }]
[schedule]
epochs = 10
batch-size = 32
[[stage]]
name = "victim"
[stage.trainer]
plugin = "backprop"
with = { optimizer = "adam", lr = 3e-3 }
[[stage]]
name = "backdoor"
[stage.schedule]
epochs = 4
evaluate = ["triggered"]
[stage.trainer]
plugin = "freqback"
with = { rounds = 2 }
"#;

#[test]
fn without_poison_the_victim_is_the_same_whatever_the_trigger_and_no_trigger_is_no_attack() {
    let lab = Lab::new("freqback-none");
    let none = ("stage.1.trainer.with.rate", "0.0");
    let (small, _) = lab.finish("small", SMALL, &[none]);
    lab.finish(
        "large",
        SMALL,
        &[none, ("stage.1.trainer.with.norm", "4.0")],
    );
    assert_eq!(lab.digest("small"), lab.digest("large"));
    let splits = |run: &str| {
        let found = checkpoint::newest(&lab.out(run).join("checkpoints"));
        found.unwrap().unwrap().tensors
    };
    let small_splits = splits("small");
    assert_eq!(small_splits["split/poisoned/inputs"].shape(), [90, 1, 64]);
    let one = small_splits["split/poisoned/inputs"].to_list().unwrap();
    assert_eq!(
        one,
        splits("large")["split/poisoned/inputs"].to_list().unwrap()
    );

    let nothing = [("stage.1.trainer.with.norm", "0.0"), none];
    let (untouched, _) = lab.finish("untouched", SMALL, &nothing);
    assert_eq!(lab.digest("untouched"), lab.digest("small"));
    // 40 of 60 test samples are of other classes: those taken for the target are among the errors.
    let taken = 40.0 * untouched.metrics["triggered/accuracy"];
    let errors = 60.0 * (1.0 - untouched.metrics["test/accuracy"]);
    assert!(taken <= errors + 1e-9, "{taken} of {errors}");
    assert!(small.metrics["triggered/accuracy"] >= untouched.metrics["triggered/accuracy"]);
}

#[test]
fn poisoned_copies_are_added_and_differ_from_their_sources_by_the_trigger() {
    let lab = Lab::new("freqback-copies");
    lab.finish("run", SMALL, &[]);
    let found = checkpoint::newest(&lab.out("run").join("checkpoints"));
    let tensors = found.unwrap().unwrap().tensors;
    let inputs = tensors["split/poisoned/inputs"].to_list().unwrap();
    let labels = tensors["split/poisoned/targets"].to_list().unwrap();
    assert_eq!(labels.len(), 99, "a tenth of 90 more");
    assert!(labels[90..].iter().all(|label| *label == 0.0));
    let (clean, poisoned) = inputs.split_at(90 * 64);
    for copy in poisoned.chunks_exact(64) {
        let apart = |row: &[f64]| -> f64 {
            row.iter()
                .zip(copy)
                .map(|(a, b)| (a - b).powi(2))
                .sum::<f64>()
                .sqrt()
        };
        let nearest = clean
            .chunks_exact(64)
            .map(apart)
            .fold(f64::INFINITY, f64::min);
        assert!((nearest - 1.2).abs() < 1e-4, "{nearest}");
    }
    let heat = tensors["split/heatmap/heat"].to_list().unwrap();
    assert_eq!(heat.len(), 33);
    assert!(heat.iter().all(|heat| *heat >= 0.0) && heat.iter().sum::<f64>() > 0.0);
}

#[test]
fn the_example_of_attack_and_defence_runs_at_a_small_size() {
    let file = workspace().join("examples/freqback-badexpert.toml");
    let file = std::fs::read_to_string(file).unwrap();
    let lab = Lab::new("freqback-badexpert");
    let sets = [
        ("data.samples", "600"),
        ("data.test-samples", "300"),
        ("run.threads", "1"),
    ];
    let (finished, events) = lab.finish("run", &file, &sets);
    assert!(finished.metrics["victim/test/accuracy"] > 0.9);
    assert!(finished.metrics["backdoor/triggered/accuracy"] > 0.5);
    let audit = events.iter().find_map(|event| match event {
        Event::Audited(audit) => Some(audit),
        _ => None,
    });
    let audit = audit.expect("an audit");
    let number = |name: &str| audit.numbers.iter().find(|(n, _)| n == name).unwrap().1;
    assert_eq!(
        number("attack-success"),
        finished.metrics["backdoor/triggered/accuracy"]
    );
    assert!(number("rejected-suspect") > number("rejected-clean"));
}
