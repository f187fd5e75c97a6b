//! Every trainer runs with every pruner, and masks are kept exactly: after a run every pruned weight is 0.
#![allow(clippy::unwrap_used)]

use espalier_runtime::events::Event;
use espalier_runtime::parameters::Kind;
use espalier_runtime::plan::Slot;
use espalier_runtime::registry::Registry;
use espalier_runtime::run;
use espalier_tests::lab::Lab;
use espalier_tests::workspace;

/// Options under which a pruner acts within a few steps.
fn hurried(pruner: &str) -> &'static str {
    match pruner {
        "magnitude" => "sparsity = 0.8, every-steps = 5",
        "granet" => "sparsity = 0.8, every-steps = 5",
        "bdwp" => "n = 1, m = 2, dense-first = false, dense-last = false",
        "lottery-ticket" => "rounds = 3, rate = 0.4",
        other => panic!("no options for the new pruner `{other}`: add them here"),
    }
}

/// What a trainer learns from and a model for it, whose first linear layer has the settings `stem`; the schedule is
/// to be completed.
fn setting(trainer: &str, stem: &str) -> String {
    match trainer {
        "policy-gradient" => format!(
            r#"
[environment]
plugin = "modular-arithmetic"
with = {{ modulus = 10, operands = 10 }}
[normalizer]
plugin = "grpo"
[model]
layers = [
  {{ kind = "embedding", features = 16, deviation = 0.1 }},
  {{ kind = "linear", features = 16 {stem} }},
  {{ kind = "transformer-block", features = 16, heads = 2 }},
  {{ kind = "linear", features = 16 }},
  {{ kind = "tied-linear" }},
]
[schedule]
steps-per-epoch = 10
"#
        ),
        // It needs series.
        "freqback" => format!(
            r#"
[data]
source = "sines"
samples = 300
test-samples = 100
[model]
layers = [
  {{ kind = "flatten" }},
  {{ kind = "linear", features = 24 {stem} }}, {{ kind = "relu" }},
  {{ kind = "linear", features = 16 }}, {{ kind = "relu" }},
  {{ kind = "linear", features = 3 }},
]
[schedule]
"#
        ),
        "noprop" => format!(
            r#"
[data]
source = "digits"
train-limit = 300
test-limit = 100
[model]
layers = [
  {{ kind = "flatten", name = "x" }},
  {{ kind = "linear", name = "noise", features = 10, frozen = true }},
  {{ kind = "concat", inputs = ["x", "noise"] }},
  {{ kind = "linear", features = 24 {stem} }}, {{ kind = "relu" }},
  {{ kind = "linear", name = "block1", features = 10 }},
  {{ kind = "concat", inputs = ["x", "block1"] }},
  {{ kind = "linear", features = 16 }}, {{ kind = "relu" }},
  {{ kind = "linear", name = "block2", features = 10 }},
  {{ kind = "linear", features = 10 }},
]
[schedule]
"#
        ),
        _ => format!(
            r#"
[data]
source = "digits"
train-limit = 300
test-limit = 100
[model]
layers = [
  {{ kind = "flatten" }},
  {{ kind = "linear", features = 24 {stem} }}, {{ kind = "relu" }},
  {{ kind = "linear", features = 16 }}, {{ kind = "relu" }},
  {{ kind = "linear", features = 10 }},
]
[schedule]
"#
        ),
    }
}

#[test]
fn every_trainer_runs_with_every_pruner_and_pruned_weights_are_zero() {
    let registry = Registry::load(&workspace().join("registry.toml")).unwrap();
    let names = |slot| {
        registry
            .entries
            .iter()
            .filter(move |e| e.slot == slot)
            // tests/tests/python.rs has those, where componentize-py is.
            .filter(|e| !e.name.ends_with("-python"))
            .map(|e| e.name.clone())
    };
    let mut pairs = 0;
    for trainer in names(Slot::Trainer) {
        for pruner in names(Slot::Pruner) {
            println!("{trainer} with {pruner}");
            let options = hurried(&pruner);
            let setting = setting(&trainer, "");
            let file = format!(
                r#"
{setting}
epochs = 4
batch-size = 30
[trainer]
plugin = "{trainer}"
[pruner]
plugin = "{pruner}"
with = {{ {options} }}
"#
            );
            let lab = Lab::new(&format!("{trainer}-{pruner}"));
            let (finished, events) = lab.finish("run", &file, &[]);
            assert!(
                !events.iter().any(|e| matches!(e, Event::Warning { .. })),
                "{trainer} with {pruner}: {:?}",
                events
                    .iter()
                    .filter(|e| matches!(e, Event::Warning { .. }))
                    .collect::<Vec<_>>()
            );
            let mut set = run::parameters_of(&lab.out("run")).unwrap();
            let (mut masked, mut total) = (0u64, 0u64);
            for info in set.infos().iter().filter(|i| i.kind == Kind::Weight) {
                let values = set.stored(&info.name).unwrap().to_list().unwrap();
                total += values.len() as u64;
                if set.is_effective(&info.name) {
                    // Forward passes do without them; the stored ones go on learning.
                    let used = set.value(&info.name).unwrap().to_list().unwrap();
                    masked += used.iter().filter(|x| **x == 0.0).count() as u64;
                }
                let Some(mask) = set.mask(&info.name).unwrap() else {
                    continue;
                };
                for (value, alive) in values.iter().zip(mask.to_list().unwrap()) {
                    if alive == 0.0 {
                        masked += 1;
                        assert!(
                            *value == 0.0,
                            "{trainer} with {pruner}: a pruned weight of {} is {value}",
                            info.name
                        );
                    }
                }
            }
            assert!(
                masked > total / 3,
                "{trainer} with {pruner}: only {masked} of {total} are pruned"
            );
            let sparsity = finished.metrics["sparsity"];
            assert!(
                (sparsity - masked as f64 / total as f64).abs() < 1e-12,
                "{trainer} with {pruner}: {sparsity}"
            );
            pairs += 1;
        }
    }
    assert!(pairs >= 12, "{pairs} pairs");
}

#[test]
fn a_frozen_layer_keeps_its_initial_values_under_every_trainer_and_is_not_pruned() {
    let registry = Registry::load(&workspace().join("registry.toml")).unwrap();
    let trainers = registry
        .entries
        .iter()
        .filter(|entry| entry.slot == Slot::Trainer);
    for trainer in trainers.map(|entry| &entry.name) {
        let setting = setting(trainer, ", frozen = true, group = \"stem\"");
        let file = format!(
            r#"
{setting}
epochs = 2
batch-size = 30
[trainer]
plugin = "{trainer}"
[pruner]
plugin = "magnitude"
with = {{ sparsity = 0.5, every-steps = 2 }}
"#
        );
        let lab = Lab::new(&format!("frozen-{trainer}"));
        lab.finish("short", &file, &[("schedule.steps", "1")]);
        lab.finish("long", &file, &[]);
        let short = run::parameters_of(&lab.out("short")).unwrap();
        let long = run::parameters_of(&lab.out("long")).unwrap();
        let same = |name: &str| {
            let read = |set: &espalier_runtime::parameters::ParameterSet| {
                set.stored(name).unwrap().to_vec::<f32>().unwrap()
            };
            read(&short) == read(&long)
        };
        assert!(same("linear1.weight") && same("linear1.bias"), "{trainer}");
        assert!(!same("linear2.weight"), "{trainer} trained nothing");
        assert!(long.mask("linear1.weight").unwrap().is_none(), "{trainer}");
        let infos = long.infos();
        let stem = infos.iter().find(|i| i.name == "linear1.weight").unwrap();
        assert!(!stem.trainable && stem.group == "stem");
    }
}
