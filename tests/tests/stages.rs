//! A run of several stages: what is handed on from one to the next, what ends, and what may be changed.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use espalier_runtime::events::{Event, Finished};
use espalier_tests::lab::Lab;

const BASE: &str = r#"
[run]
threads = 1
[data]
source = "digits"
validation = 0.1
train-limit = 300
[model]
layers = [{ kind = "flatten" }, { kind = "linear", features = 32 }, { kind = "relu" }, { kind = "linear", features = 10 }]
[schedule]
epochs = 3
batch-size = 50
"#;

const BACKPROP: &str = r#"
[trainer]
plugin = "backprop"
with = { optimizer = "adam", lr = 3e-3 }
"#;

fn lines(lab: &Lab, run: &str) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(lab.out(run).join("metrics.jsonl")).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn stages(events: &[Event]) -> Vec<(u64, String, u64)> {
    let stage = |event: &Event| match event {
        Event::Stage {
            number,
            name,
            steps,
            ..
        } => Some((*number, name.clone(), *steps)),
        _ => None,
    };
    events.iter().filter_map(stage).collect()
}

fn metric(finished: &Finished, name: &str) -> f64 {
    let metrics: &BTreeMap<String, f64> = &finished.metrics;
    *metrics
        .get(name)
        .unwrap_or_else(|| panic!("no {name} in {metrics:?}"))
}

#[test]
fn one_stage_written_out_is_the_run_without_stages() {
    let lab = Lab::new("one-stage");
    let (plain, _) = lab.finish("plain", &format!("{BASE}{BACKPROP}"), &[]);
    let file = format!("{BASE}{BACKPROP}\n[[stage]]\nname = \"only\"\n");
    let (staged, events) = lab.finish("staged", &file, &[]);
    assert_eq!(lab.digest("plain"), lab.digest("staged"));
    assert_eq!(
        metric(&plain, "test/accuracy").to_bits(),
        metric(&staged, "test/accuracy").to_bits()
    );
    assert_eq!(
        metric(&staged, "only/test/accuracy"),
        metric(&staged, "test/accuracy")
    );
    assert_eq!(stages(&events), [(0, "only".to_string(), 18)]);
}

#[test]
fn masks_go_on_to_a_stage_without_a_pruner() {
    let lab = Lab::new("masks-go-on");
    let file = format!(
        r#"{BASE}{BACKPROP}
[[stage]]
name = "prune"
[[stage.pruner]]
plugin = "magnitude"
with = {{ sparsity = 0.8 }}
[[stage]]
name = "tune"
[stage.schedule]
steps = 7
"#
    );
    let (finished, events) = lab.finish("run", &file, &[]);
    assert_eq!(
        stages(&events),
        [(0, "prune".to_string(), 18), (1, "tune".to_string(), 7)]
    );
    assert_eq!(finished.steps, 25);
    assert!((metric(&finished, "prune/sparsity") - 0.8).abs() < 0.01);
    assert_eq!(
        metric(&finished, "sparsity"),
        metric(&finished, "prune/sparsity")
    );
    let of = |stage: &str| {
        let lines = lines(&lab, "run");
        let losses = lines.iter().filter(|line| line["stage"] == stage);
        losses
            .filter(|line| line.get("train/loss").is_some())
            .count()
    };
    assert_eq!((of("prune"), of("tune")), (18, 7));
    // The second stage has learnt: its optimiser was at work on the weights that live.
    assert_ne!(
        metric(&finished, "prune/test/loss"),
        metric(&finished, "test/loss")
    );
}

#[test]
fn repeated_stages_draw_other_batches_each_time() {
    let lab = Lab::new("repeated");
    let file = format!(
        "repeat = 3\n{BASE}{BACKPROP}\n[[stage]]\nname = \"a\"\n[stage.schedule]\nepochs = 1\n"
    );
    let (finished, events) = lab.finish("run", &file, &[]);
    let names: Vec<String> = stages(&events)
        .into_iter()
        .map(|(_, name, _)| name)
        .collect();
    assert_eq!(names, ["a", "a-2", "a-3"]);
    assert_eq!(finished.steps, 18);
    // As many steps in one stage are another run: each stage begins with a new optimiser and its own order of samples.
    let (_, _) = lab.finish("long", &format!("{BASE}{BACKPROP}"), &[]);
    assert_ne!(lab.digest("run"), lab.digest("long"));
    metric(&finished, "a-2/test/accuracy");
}

#[test]
fn a_stage_without_a_trainer_is_measured_with_the_one_before() {
    let lab = Lab::new("no-trainer");
    let file = format!(
        "{BASE}{BACKPROP}\n[[stage]]\nname = \"train\"\n[[stage]]\nname = \"look\"\ntrain = false\n[stage.schedule]\nevaluate = [\"train\"]\n"
    );
    let (finished, events) = lab.finish("run", &file, &[]);
    assert_eq!(stages(&events)[1], (1, "look".to_string(), 0));
    assert_eq!(finished.steps, 18);
    assert_eq!(
        metric(&finished, "train/test/accuracy"),
        metric(&finished, "test/accuracy")
    );
    // A further split, measured only where a schedule asks for it.
    assert!(metric(&finished, "look/train/accuracy") > 0.3);
    assert!(!finished.metrics.contains_key("train/train/accuracy"));
}

#[test]
fn nothing_changes_the_model_in_a_frozen_stage() {
    let lab = Lab::new("frozen");
    let file = format!(
        "{BASE}{BACKPROP}\n[[stage]]\nname = \"train\"\n[[stage]]\nname = \"after\"\nfreeze = true\n"
    );
    let (result, _) = lab.run("run", &file, &[], false);
    let error = result.expect_err("backprop changes parameters").to_string();
    assert!(error.contains("can't be changed now"), "{error}");
    assert!(error.contains("stage `after` freezes them"), "{error}");
}

#[test]
fn a_stage_on_a_split_that_does_not_exist_ends_with_the_names_there_are() {
    let lab = Lab::new("no-split");
    let file = format!("{BASE}{BACKPROP}\n[[stage]]\nname = \"a\"\ntrain = \"repaired\"\n");
    let (result, _) = lab.run("run", &file, &[], false);
    let error = result.expect_err("no such split").to_string();
    assert!(error.contains("no split is named `repaired`"), "{error}");
    let file = format!("{BASE}{BACKPROP}\n[[stage]]\nname = \"a\"\ntrain = \"validation\"\n");
    let (finished, _) = lab.finish("on-validation", &file, &[]);
    // 150 samples are left for validation: 3 epochs of 3 steps.
    assert_eq!(finished.steps, 9, "an epoch is a pass over the named split");
}
