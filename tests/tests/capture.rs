#![allow(clippy::unwrap_used)]
//! A run with captured steps ends in the bits of the run without, and says why where it cannot capture.

use espalier_runtime::events::{Event, Level};
use espalier_tests::lab::Lab;

const PERCEPTRON: &str = r#"[{ kind = "flatten" }, { kind = "linear", features = 24 }, { kind = "relu" }, { kind = "linear", features = 10 }]"#;
const CONVOLUTION: &str = r#"[{ kind = "conv2d", features = 4, kernel = 3 }, { kind = "relu" }, { kind = "max-pool", kernel = 2 }, { kind = "flatten" }, { kind = "linear", features = 10 }]"#;
const TRANSFORMER: &str = r#"[{ kind = "embedding", entries = 11, features = 16 }, { kind = "position" }, { kind = "transformer-block", features = 16, heads = 2 }, { kind = "layer-norm" }, { kind = "flatten" }, { kind = "linear", features = 3 }]"#;
const DROPOUT: &str = r#"[{ kind = "flatten" }, { kind = "linear", features = 24 }, { kind = "dropout", rate = 0.2 }, { kind = "linear", features = 10 }]"#;
const BATCH_NORM: &str = r#"[{ kind = "flatten" }, { kind = "linear", features = 24 }, { kind = "batch-norm" }, { kind = "linear", features = 10 }]"#;

/// 210 steps over an epoch of 97 samples in batches of 8, so that the last batch of each has one.
fn file(data: &str, layers: &str, with: &str, more: &str) -> String {
    format!(
        "[run]\nseed = 5\n[data]\n{data}\n[schedule]\nsteps = 210\nbatch-size = 8\n\
         [model]\nlayers = {layers}\n[trainer]\nplugin = \"backprop\"\nwith = {{ {with} }}\n{more}"
    )
}

const DIGITS: &str = "source = \"digits\"\ntrain-limit = 97";

/// An NPY file of whole numbers from 0 to below `of`.
fn numbers(path: &std::path::Path, shape: &[usize], of: u64) {
    let axes: Vec<String> = shape.iter().map(|n| format!("{n},")).collect();
    let about = format!(
        "{{'descr': '<i8', 'fortran_order': False, 'shape': ({}), }}",
        axes.concat()
    );
    let about = format!("{about:117}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((about.len() as u16).to_le_bytes());
    bytes.extend(about.as_bytes());
    let mut state = of;
    for _ in 0..shape.iter().product() {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        bytes.extend(((state >> 33) % of).to_le_bytes());
    }
    std::fs::write(path, bytes).unwrap();
}

/// What the log says at a level.
fn said(events: &[Event], at: Level) -> Vec<String> {
    let text = |event: &Event| match event {
        Event::Log { level, text, .. } if *level == at => Some(text.clone()),
        _ => None,
    };
    events.iter().filter_map(text).collect()
}

/// Runs with and without capture; the warnings of the captured run.
fn both(lab: &Lab, layers: &str, with: &str, more: &str) -> Vec<String> {
    both_on(lab, DIGITS, layers, with, more)
}

fn both_on(lab: &Lab, data: &str, layers: &str, with: &str, more: &str) -> Vec<String> {
    let text = file(data, layers, with, more);
    lab.finish("plain", &text, &[]);
    let captured = [("trainer.with.capture", "true")];
    let (_, events) = lab.finish("captured", &text, &captured);
    assert_eq!(
        lab.digest("plain"),
        lab.digest("captured"),
        "{layers} {with}"
    );
    let read = |name: &str| std::fs::read_to_string(lab.out(name).join("metrics.jsonl")).unwrap();
    assert_eq!(read("plain"), read("captured"), "{layers} {with}");
    for name in ["plain", "captured"] {
        std::fs::remove_dir_all(lab.out(name)).unwrap();
    }
    let warnings = said(&events, Level::Warning);
    // Either the step was replayed, or somebody was told why not.
    let replayed = said(&events, Level::Info)
        .iter()
        .any(|text| text.contains("the step `backprop` is captured"));
    assert_eq!(replayed, warnings.is_empty(), "{warnings:?}");
    warnings
}

const OPTIMISERS: [&str; 4] = [
    r#"optimizer = "sgd", lr = 0.05, momentum = 0"#,
    r#"optimizer = "sgd", lr = 0.05, nesterov = true, weight-decay = 0.01, schedule = "cosine""#,
    r#"optimizer = "adam", lr = 0.003, schedule = "cosine", warmup-steps = 30"#,
    r#"optimizer = "adamw", lr = 0.003, weight-decay = 0.1, clip-grad-norm = 0.5"#,
];

#[test]
fn every_optimiser_ends_in_the_bits_of_the_plain_run() {
    let lab = Lab::new("capture-optimisers");
    for with in OPTIMISERS {
        assert_eq!(both(&lab, PERCEPTRON, with, ""), [""; 0], "{with}");
    }
}

#[test]
fn convolutions_and_transformers_end_in_the_bits_of_the_plain_run() {
    let lab = Lab::new("capture-models");
    assert_eq!(both(&lab, CONVOLUTION, OPTIMISERS[2], ""), [""; 0]);
    let folder = lab.folder();
    numbers(&folder.join("inputs.npy"), &[97, 6], 11);
    numbers(&folder.join("targets.npy"), &[97], 3);
    let data = format!(
        "source = \"npy\"\ninputs = \"{0}/inputs.npy\"\ntargets = \"{0}/targets.npy\"\ntest = 0.1",
        folder.display()
    );
    assert_eq!(
        both_on(&lab, &data, TRANSFORMER, OPTIMISERS[2], ""),
        [""; 0]
    );
}

#[test]
fn a_pruner_beside_it_changes_masks_between_replays() {
    let lab = Lab::new("capture-pruned");
    for pruner in ["magnitude", "granet", "lottery-ticket"] {
        let more = format!("[pruner]\nplugin = \"{pruner}\"\n");
        for with in [OPTIMISERS[1], OPTIMISERS[2]] {
            assert_eq!(
                both(&lab, PERCEPTRON, with, &more),
                [""; 0],
                "{pruner} {with}"
            );
        }
    }
}

#[test]
fn the_number_of_threads_does_not_show() {
    let lab = Lab::new("capture-threads");
    let text = file(DIGITS, CONVOLUTION, OPTIMISERS[2], "");
    let digest = |name: &str, threads: &str| {
        let sets = [("trainer.with.capture", "true"), ("run.threads", threads)];
        lab.finish(name, &text, &sets);
        lab.digest(name)
    };
    assert_eq!(digest("one", "1"), digest("two", "2"));
}

#[test]
fn a_step_with_randomness_or_running_statistics_says_why_it_is_not_captured() {
    let lab = Lab::new("capture-refused");
    for (layers, why) in [(DROPOUT, "dropout"), (BATCH_NORM, "batch_norm")] {
        let said = both(&lab, layers, OPTIMISERS[0], "");
        let expected = format!("the step `backprop` is not captured: `{why}` cannot be captured");
        assert_eq!(said, [expected]);
    }
}

#[test]
fn other_values_forward_and_backward_change_between_replays() {
    let lab = Lab::new("capture-effective");
    let layers = r#"[{ kind = "flatten" }, { kind = "linear", features = 24 }, { kind = "relu" }, { kind = "linear", features = 16 }, { kind = "relu" }, { kind = "linear", features = 10 }]"#;
    for method in ["bdwp", "sr-ste", "sdwp"] {
        let more = format!("[pruner]\nplugin = \"bdwp\"\nwith = {{ method = \"{method}\" }}\n");
        assert_eq!(
            both(&lab, layers, OPTIMISERS[1], &more),
            [""; 0],
            "{method}"
        );
    }
}
