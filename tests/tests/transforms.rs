//! Transforms in whole runs: splits replaced and derived, batches changed on their way to the trainer.
#![allow(clippy::unwrap_used)]

use espalier_runtime::events::Event;
use espalier_tests::lab::Lab;

const BASE: &str = r#"
[run]
threads = 1
[data]
source = "digits"
train-limit = 200
[model]
layers = [{ kind = "flatten" }, { kind = "linear", features = 16 }, { kind = "relu" }, { kind = "linear", features = 10 }]
[schedule]
epochs = 2
batch-size = 50
[trainer]
plugin = "backprop"
with = { optimizer = "adam", lr = 3e-3 }
"#;

const TRANSFORM: &str = "[[transform]]\nplugin = \"faulty-transform\"\n";

fn train_samples(events: &[Event]) -> usize {
    let composed = events.iter().find_map(|event| match event {
        Event::Composition(composition) => Some(composition.data.train),
        _ => None,
    });
    composed.unwrap()
}

#[test]
fn poisoned_copies_are_added_and_the_attack_is_measured() {
    let lab = Lab::new("poisoned");
    let file =
        format!("{BASE}\n[[transform]]\nplugin = \"patch-trigger\"\nwith = {{ fraction = 0.2 }}\n");
    let measured = ("schedule.evaluate", "[\"triggered\"]");
    let (finished, events) = lab.finish("poisoned", &file, &[measured, ("schedule.epochs", "20")]);
    assert_eq!(train_samples(&events), 240, "a fifth of 200 is added");
    let attack = finished.metrics["triggered/accuracy"];
    let replaced = ("transform.0.with.how", "replace");
    let (_, events) = lab.finish("replaced", &file, &[replaced]);
    assert_eq!(train_samples(&events), 200);
    let nothing = ("transform.0.with.fraction", "0");
    let sets = [measured, nothing, ("schedule.epochs", "20")];
    let (clean, events) = lab.finish("clean", &file, &sets);
    assert_eq!(train_samples(&events), 200);
    // No sample of the target's own class is in the split: only a poisoned model answers the target.
    let without = clean.metrics["triggered/accuracy"];
    assert!(attack > 0.8 && without < 0.1, "{attack} {without}");
}

#[test]
fn a_stage_trains_on_a_derived_split() {
    let lab = Lab::hostile("derived");
    let stage = "[[stage]]\nname = \"a\"\ntrain = \"noisy\"\n";
    lab.finish("noisy", &format!("{BASE}{TRANSFORM}{stage}"), &[]);
    lab.finish("plain", &format!("{BASE}{TRANSFORM}"), &[]);
    assert_ne!(lab.digest("noisy"), lab.digest("plain"));
}

#[test]
fn batches_are_changed_alike_with_captured_steps_and_without() {
    let lab = Lab::hostile("batches");
    let file = format!("{BASE}{TRANSFORM}with = {{ scale = 2.0 }}\n");
    let captured = [("trainer.with.capture", "true"), ("schedule.epochs", "5")];
    lab.finish("captured", &file, &captured);
    lab.finish("plain", &file, &captured[1..]);
    assert_eq!(lab.digest("captured"), lab.digest("plain"));
    let unscaled = [("transform.0.with.scale", "1.0"), captured[1]];
    lab.finish("unscaled", &file, &unscaled);
    assert_ne!(lab.digest("unscaled"), lab.digest("plain"));
}

#[test]
fn two_transforms_act_in_the_order_of_the_file() {
    let lab = Lab::hostile("in-order");
    // The second finds the split that the first has derived under the name it would take itself.
    let file = format!("{BASE}{TRANSFORM}{TRANSFORM}");
    let (result, _) = lab.run("twice", &file, &[], false);
    let error = result.expect_err("`noisy` is there already").to_string();
    assert!(error.contains("a split `noisy` exists already"), "{error}");
}

#[test]
fn what_a_transform_may_not_make_of_the_data_is_said_in_words() {
    let lab = Lab::hostile("wrong-splits");
    for (fault, words) in [
        ("other-shape", "`inputs` is F32"),
        ("other-count", "samples"),
        ("class-beyond", "there are 10 classes"),
        ("no-sample", "has no sample"),
        ("taken-name", "a split `test` exists already"),
        ("shuffles-batches", "made another batch of a training batch"),
    ] {
        let file = format!("{BASE}{TRANSFORM}with = {{ fault = \"{fault}\" }}\n");
        let (result, _) = lab.run(fault, &file, &[], false);
        let error = result.expect_err(fault).to_string();
        assert!(error.contains(words), "{fault}: {error}");
        assert!(error.contains("faulty-transform"), "{fault}: {error}");
    }
}
