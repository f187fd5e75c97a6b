//! What follows an answer or a death: rewinding, stopping, leaving a plugin out, starting it again.
#![allow(clippy::unwrap_used)]

use espalier_runtime::events::{Ending, Event};
use espalier_runtime::run;
use espalier_tests::lab::Lab;

const RUN: &str = r#"
[data]
source = "digits"

[model]
layers = [{ kind = "flatten" }, { kind = "linear", features = 16 }, { kind = "relu" }, { kind = "linear", features = 10 }]

[schedule]
steps = 8
batch-size = 16

[trainer]
plugin = "hostile"
with = { deed = "nothing" }

[checkpoint]
every = 2
"#;

fn with_meddler(deed: &str, more: &str) -> String {
    format!("{RUN}\n[[pruner]]\nplugin = \"meddler\"\nwith = {{ deed = \"{deed}\" }}\n{more}")
}

/// What a plugin logged, but for its panics.
fn said(events: &[Event], by: &str) -> Vec<String> {
    let texts = events.iter().filter_map(|event| match event {
        Event::Log { plugin, text, .. } if plugin == by => Some(text.clone()),
        _ => None,
    });
    texts.filter(|text| !text.starts_with("panic")).collect()
}

fn warnings(events: &[Event]) -> Vec<String> {
    let texts = events.iter().filter_map(|event| match event {
        Event::Warning { text, .. } => Some(text.clone()),
        _ => None,
    });
    texts.collect()
}

#[test]
fn a_rewind_takes_back_the_trainers_memory_its_sets_and_its_place_in_the_data() {
    let lab = Lab::hostile("witness");
    let file = format!(
        "{RUN}\n[pruner]\nplugin = \"lottery-ticket\"\nwith = {{ rounds = 2, rewind-step = 3 }}\n"
    );
    let (finished, events) = lab.finish("run", &file, &[("trainer.with.deed", "witness")]);
    let said = said(&events, "hostile");
    let of_round = |round: u32| -> Vec<&str> {
        let start = format!("round {round}: ");
        said.iter()
            .filter_map(|text| text.strip_prefix(&start))
            .collect()
    };
    let first = of_round(0);
    assert_eq!(first.len(), 8, "{said:?}");
    assert!(
        first[3].starts_with("step 3, remembers 3, in its set 3, "),
        "{said:?}"
    );
    assert_eq!(of_round(1), first[3..]);
    assert_eq!(of_round(2), first[3..]);
    assert_eq!(finished.steps, 8 + 5 + 5);
}

#[test]
fn stop_ends_the_run_after_the_step() {
    let lab = Lab::hostile("stop");
    let (finished, _) = lab.finish("run", &with_meddler("stop", ""), &[]);
    assert_eq!(finished.steps, 5);
}

#[test]
fn a_pruner_that_may_be_skipped_is_left_out_and_the_run_goes_on() {
    let lab = Lab::hostile("skip");
    let file = with_meddler("panic", "on-failure = \"skip\"");
    let (finished, events) = lab.finish("run", &file, &[]);
    assert_eq!(finished.steps, 8);
    let told = warnings(&events);
    assert!(
        told[0].contains("`meddler` failed in `on-event` and is left out"),
        "{told:?}"
    );
    assert_eq!(said(&events, "meddler").len(), 5);
}

#[test]
fn a_plugin_left_out_stays_out_after_a_resume() {
    let lab = Lab::hostile("skip-resume");
    let file = with_meddler("panic", "on-failure = \"skip\"");
    // The trainer ends the run after the checkpoint of step 6, in its first measurement.
    let sets = [("trainer.with.deed", "nonsense-prediction")];
    let (result, events) = lab.run("run", &file, &sets, false);
    result.expect_err("ends after step 8");
    assert_eq!(said(&events, "meddler").len(), 5);
    let (result, events) = lab.run("run", &file, &sets, true);
    result.expect_err("ends after step 8 again");
    assert!(
        events
            .iter()
            .any(|e| matches!(e, Event::Started { step: 6, .. }))
    );
    assert!(said(&events, "meddler").is_empty());
}

#[test]
fn a_plugin_that_is_started_again_has_the_state_of_its_last_checkpoint() {
    let lab = Lab::hostile("again");
    let file = with_meddler("panic", "on-failure = \"restart\"");
    let (finished, events) = lab.finish("run", &file, &[]);
    assert_eq!(finished.steps, 8);
    assert!(warnings(&events)[0].contains("is started again"));
    // The checkpoint of step 4 remembers four events; the fifth is lost with the instance.
    let said = said(&events, "meddler");
    assert_eq!(
        said[4..6],
        ["step 5, seen 5".to_string(), "step 6, seen 5".to_string()]
    );
}

#[test]
fn one_plugin_masks_a_parameter() {
    let lab = Lab::hostile("two-masks");
    let first = format!(
        "{RUN}\n[[pruner]]\nplugin = \"magnitude\"\nwith = {{ sparsity = 0.5, when = \"one-shot\", at-step = 2 }}\n"
    );
    let file = format!(
        "{first}\n[[pruner]]\nplugin = \"meddler\"\nwith = {{ deed = \"mask-everything\" }}\n"
    );
    for resume in [false, true] {
        let error = lab.run("run", &file, &[], resume).0.expect_err("two masks");
        assert!(
            error
                .to_string()
                .contains("is masked by plugin `magnitude` already"),
            "{error}"
        );
    }
}

#[test]
fn a_flood_of_metrics_is_bounded() {
    let lab = Lab::hostile("metrics");
    let file = with_meddler("metric-flood", "limits = { log = \"64 KiB\" }");
    let error = lab.run("run", &file, &[], false).0.expect_err("a flood");
    assert!(error.to_string().contains("writes more log"), "{error}");
}

#[test]
fn predict_sees_no_targets() {
    let lab = Lab::hostile("peek");
    lab.finish("run", RUN, &[("trainer.with.deed", "peek-at-targets")]);
}

#[test]
fn a_run_stopped_before_its_first_checkpoint_begins_again() {
    let lab = Lab::hostile("early");
    lab.finish("run", RUN, &[]);
    let file = lab.out("run").join("metrics.jsonl");
    let metrics = std::fs::read_to_string(&file).unwrap();
    // As a kill leaves it: lines of steps that no checkpoint holds.
    std::fs::remove_dir_all(lab.out("run").join("checkpoints")).unwrap();
    lab.run("run", RUN, &[], true).0.unwrap();
    assert_eq!(std::fs::read_to_string(&file).unwrap(), metrics);
}

#[test]
fn a_nonsense_objective_is_the_trainers_fault_and_not_the_askers() {
    let lab = Lab::hostile("ask");
    let file = with_meddler("ask-objective", "on-failure = \"skip\"");
    lab.finish("good", &file, &[]);
    let sets = [("trainer.with.deed", "nonsense-objective")];
    let error = lab.run("run", &file, &sets, false).0.expect_err("one loss");
    let text = error.to_string();
    assert!(
        text.contains("plugin `hostile`") && text.contains("`objective`"),
        "{text}"
    );
    assert!(
        text.contains("losses of shape [], expected one loss a sample: [16]"),
        "{text}"
    );
}

#[test]
fn an_entry_that_names_the_wrong_slot_or_version_is_refused_before_anything_runs() {
    for (name, words) in [
        (
            "trainer-called-pruner",
            "`trainer-called-pruner` is not a pruner",
        ),
        (
            "meddler-of-another-version",
            "plugin `meddler-of-another-version` is not the version that the registry names",
        ),
    ] {
        let lab = Lab::hostile(name);
        let file = format!("{RUN}\n[pruner]\nplugin = \"{name}\"\n");
        let error = lab.run("run", &file, &[], false).0.expect_err(name);
        assert_eq!(error.what, words);
        assert!(!lab.out("run").exists(), "nothing was written");
    }
}

#[test]
fn clock_and_entropy_follow_from_the_runs_seed() {
    let lab = Lab::hostile("clock");
    let told = |name: &str, seed: &str| {
        let sets = [("trainer.with.deed", "clock"), ("run.seed", seed)];
        said(&lab.finish(name, RUN, &sets).1, "hostile")
    };
    let first = told("one", "0");
    assert_eq!(first.len(), 1);
    assert_eq!(told("again", "0"), first);
    assert_ne!(told("other", "1"), first);
}

#[test]
fn a_run_of_another_component_is_not_gone_on_with() {
    let lab = Lab::hostile("digest");
    lab.finish("run", RUN, &[]);
    let file = lab.out("run").join("lock.toml");
    let lock = std::fs::read_to_string(&file).unwrap();
    let at = lock.find("sha256 = \"").unwrap() + "sha256 = \"".len();
    let other = format!("{}{}{}", &lock[..at], "0".repeat(64), &lock[at + 64..]);
    std::fs::write(&file, other).unwrap();
    let error = lab
        .run("run", RUN, &[], true)
        .0
        .expect_err("another component");
    let text = error.to_string();
    assert!(
        text.contains("is a run of something else") && text.contains(&"0".repeat(64)),
        "{text}"
    );
}

#[test]
fn an_adopted_model_is_the_runs_from_the_next_step_on_and_after_a_resume() {
    let lab = Lab::hostile("adopt");
    let sets = [("trainer.with.deed", "adopt")];
    let (finished, _) = lab.finish("run", RUN, &sets);
    let set = run::parameters_of(&lab.out("run")).unwrap();
    assert_eq!(set.stored("linear1.weight").unwrap().shape(), [8, 64]);
    let digest = lab.digest("run");
    let Ok(Ending::Finished(again)) = lab.run("run", RUN, &sets, true).0 else {
        panic!("does not go on");
    };
    assert_eq!(again.metrics, finished.metrics);
    assert_eq!(lab.digest("run"), digest);
}
