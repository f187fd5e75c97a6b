#![allow(clippy::unwrap_used)]
//! A model that a plugin computes, in whole runs: beside trainers and pruners, captured, and when it goes wrong.

use espalier_runtime::events::{Event, Level};
use espalier_tests::lab::Lab;

/// A text of 1,601 bytes that repeats itself nearly.
fn text(lab: &Lab) {
    let letter = |i: usize| b'a' + ((i % 7) + usize::from(i.is_multiple_of(31))) as u8;
    let bytes: Vec<u8> = (0..1601).map(letter).collect();
    std::fs::write(lab.folder().join("text.txt"), bytes).unwrap();
}

fn file(more: &str) -> String {
    format!(
        r#"[run]
seed = 3
[data]
source = "text"
path = "text.txt"
context = 8
[architecture]
plugin = "bdh"
with = {{ features = 16, heads = 2, neurons = 8, layers = 2, dropout = 0 }}
[schedule]
steps = 40
batch-size = 8
[trainer]
plugin = "backprop"
with = {{ optimizer = "adamw", lr = 3e-3 }}
{more}"#
    )
}

fn said(events: &[Event], at: Level) -> String {
    let text = |event: &Event| match event {
        Event::Log { level, text, .. } if *level == at => Some(text.clone()),
        _ => None,
    };
    events
        .iter()
        .filter_map(text)
        .collect::<Vec<_>>()
        .join("\n")
}

#[test]
fn a_captured_step_goes_through_an_architecture_with_the_same_bits() {
    let lab = Lab::new("architecture-captured");
    text(&lab);
    for more in [
        "",
        "[pruner]\nplugin = \"magnitude\"\nwith = { sparsity = 0.5 }\n",
    ] {
        lab.finish("plain", &file(more), &[]);
        let (_, events) = lab.finish("captured", &file(more), &[("trainer.with.capture", "true")]);
        assert_eq!(lab.digest("plain"), lab.digest("captured"), "{more}");
        let (info, warnings) = (said(&events, Level::Info), said(&events, Level::Warning));
        assert!(info.contains("the step `backprop` is captured"), "{info}");
        assert_eq!(warnings, "");
        for name in ["plain", "captured"] {
            std::fs::remove_dir_all(lab.out(name)).unwrap();
        }
    }
}

#[test]
fn an_architecture_that_draws_numbers_is_not_captured_and_says_why() {
    let lab = Lab::new("architecture-dropout");
    text(&lab);
    let dropped = ("architecture.with.dropout", "0.1");
    lab.finish("plain", &file(""), &[dropped]);
    let sets = [dropped, ("trainer.with.capture", "true")];
    let (_, events) = lab.finish("captured", &file(""), &sets);
    let warnings = said(&events, Level::Warning);
    assert!(warnings.contains("it draws random numbers"), "{warnings}");
    assert_eq!(lab.digest("plain"), lab.digest("captured"));
}

#[test]
fn it_learns_and_is_measured_in_bits_per_byte() {
    let lab = Lab::new("architecture-learns");
    text(&lab);
    let (finished, events) = lab.finish("run", &file(""), &[]);
    let bits = finished.metrics["test/bits-per-byte"];
    // A byte of 256 that is drawn alike has 8 bits; this text has fewer than one.
    assert!(bits < 4.0, "{bits}");
    let nats = finished.metrics["test/loss"];
    assert!((bits - nats / std::f64::consts::LN_2).abs() < 1e-12);
    let composed = events.iter().find_map(|event| match event {
        Event::Composition(it) => Some(it.clone()),
        _ => None,
    });
    let composed = composed.unwrap();
    assert_eq!(
        (composed.model.text.as_str(), composed.model.layers),
        ("bdh", 4)
    );
    assert_eq!(composed.model.parameters, 3 * 16 * 128 + 2 * 256 * 16);
}

fn refusal(name: &str, file: &str, sets: &[(&str, &str)]) -> String {
    let lab = Lab::new(name);
    text(&lab);
    let (result, _) = lab.run("run", file, sets, false);
    result.unwrap_err().to_string()
}

#[test]
fn a_run_has_a_list_of_layers_or_an_architecture() {
    let both = file("[model]\nlayers = [{ kind = \"linear\", features = 256 }]\n");
    let error = refusal("architecture-both", &both, &[]);
    assert!(
        error.contains("the run file gives both [model] and [architecture]"),
        "{error}"
    );
    let neither: String = file("")
        .lines()
        .filter(|l| !l.contains("architecture"))
        .fold(String::new(), |text, line| {
            match line.starts_with("plugin = \"bdh\"") || line.contains("neurons") {
                true => text,
                false => text + line + "\n",
            }
        });
    let error = refusal("architecture-neither", &neither, &[]);
    assert!(error.contains("or [architecture] with a plugin"), "{error}");
}

#[test]
fn an_architecture_that_dies_names_itself_and_ends_the_run() {
    let sets = [("architecture.limits.tensors", "\"64 KiB\"")];
    let error = refusal("architecture-room", &file(""), &sets);
    assert!(
        error.contains("plugin `bdh` asked for more tensor memory"),
        "{error}"
    );
    let sets = [("architecture.on-failure", "restart")];
    let error = refusal("architecture-restart", &file(""), &sets);
    assert!(
        error.contains("a run cannot go on after its architecture failed"),
        "{error}"
    );
}

#[test]
fn what_an_architecture_cannot_do_is_refused_in_words() {
    let digits = file("").replace(
        "source = \"text\"\npath = \"text.txt\"\ncontext = 8",
        "source = \"digits\"",
    );
    let error = refusal("architecture-digits", &digits, &[]);
    assert!(
        error.contains("plugin `bdh` refuses to build its layers") && error.contains("tokens"),
        "{error}"
    );
    let tasks = file("").replace(
        "[data]\nsource = \"text\"\npath = \"text.txt\"\ncontext = 8",
        "[environment]\nplugin = \"modular-arithmetic\"",
    );
    let error = refusal("architecture-tasks", &tasks, &[]);
    assert!(error.contains("does not generate"), "{error}");
}

#[test]
fn a_layer_that_gives_another_shape_than_it_declared_is_found_out() {
    let lab = Lab::hostile("architecture-shape");
    let run = r#"[data]
source = "digits"
train-limit = 64
[architecture]
plugin = "faulty-architecture"
with = { fault = "other-shape" }
[schedule]
steps = 2
[trainer]
plugin = "faulty-trainer"
"#;
    let (result, _) = lab.run("run", run, &[], false);
    let error = result.unwrap_err().to_string();
    assert!(error.contains("for layer `out`, expected f32 ["), "{error}");
}

#[test]
fn an_architecture_that_reaches_for_the_data_is_refused() {
    let lab = Lab::hostile("architecture-prying");
    let run = r#"[data]
source = "digits"
[architecture]
plugin = "prying-architecture"
[schedule]
steps = 2
[trainer]
plugin = "faulty-trainer"
"#;
    let (result, _) = lab.run("run", run, &[], false);
    let error = result.unwrap_err().to_string();
    assert!(
        error.contains("imports something that an architecture is not granted")
            && error.contains("espalier:plugin/data@0.1.0"),
        "{error}"
    );
}
