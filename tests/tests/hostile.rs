//! A plugin that misbehaves ends its own run with an error that names plugin, call and budget, and leaves the last
//! checkpoint loadable. One test for each way to misbehave.
#![allow(clippy::unwrap_used)]

use espalier_runtime::diagnostic::Diagnostic;
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
limits = { memory = "32 MiB", tensors = "64 MiB", handles = 5000, call = "500 ms", log = "64 KiB" }

[checkpoint]
every = 2
"#;

/// Runs the deed; the run must fail, and its last checkpoint must be whole.
fn fails(deed: &str, call: &str) -> Diagnostic {
    let lab = Lab::hostile(deed);
    let began = std::time::Instant::now();
    let (result, events) = lab.run("run", RUN, &[("trainer.with.deed", deed)], false);
    let error = result.expect_err("the run should have failed");
    println!("{error}");
    assert!(began.elapsed().as_secs() < 60, "took {:?}", began.elapsed());
    assert!(
        error.what.contains("plugin `hostile`"),
        "names no plugin: {error}"
    );
    let at = &error
        .details
        .iter()
        .find(|(label, _)| label == "at")
        .expect("says where")
        .1;
    assert!(
        at.contains(&format!("`{call}`")),
        "names another call than {call}: {error}"
    );
    assert!(events.iter().any(|e| matches!(e, Event::Checkpoint { .. })));
    let set = run::parameters_of(&lab.out("run")).expect("the last checkpoint");
    assert_eq!(set.names().len(), 4);
    // And the run can be gone on with by a plugin that behaves: the same one, mended by an option, is another
    // run, so only reading is checked here.
    error
}

fn detail<'a>(error: &'a Diagnostic, label: &str) -> &'a str {
    let found = error.details.iter().find(|(l, _)| l == label);
    &found.unwrap_or_else(|| panic!("no `{label}`: {error}")).1
}

#[test]
fn an_honest_trainer_finishes_within_the_same_budgets() {
    let lab = Lab::hostile("nothing");
    let (finished, _) = lab.finish("run", RUN, &[]);
    assert_eq!(finished.steps, 8);
}

#[test]
fn an_endless_loop_meets_its_deadline() {
    let error = fails("loop-forever", "step");
    assert_eq!(detail(&error, "budget"), "0.5 s");
}

#[test]
fn an_endless_loop_of_host_calls_meets_its_deadline() {
    let error = fails("loop-in-the-host", "step");
    assert_eq!(detail(&error, "budget"), "0.5 s");
}

#[test]
fn a_sleeping_guest_does_not_outlive_its_deadline() {
    let error = fails("sleep", "step");
    assert!(
        detail(&error, "called").contains("wasi:clocks/monotonic-clock#subscribe"),
        "{error}"
    );
}

#[test]
fn guest_memory_is_bounded() {
    let error = fails("guest-memory", "step");
    assert_eq!(detail(&error, "budget"), "32 MiB");
}

#[test]
fn tensor_bytes_are_bounded() {
    let error = fails("tensor-bytes", "step");
    assert!(
        detail(&error, "budget").starts_with("64 MiB, in use"),
        "{error}"
    );
}

#[test]
fn a_tensor_of_impossible_size_is_an_error() {
    fails("one-huge-tensor", "step");
}

#[test]
fn an_operation_that_no_deadline_could_hold_is_refused() {
    let error = fails("huge-matmul", "step");
    assert!(detail(&error, "operation").starts_with("matmul"), "{error}");
}

#[test]
fn handles_are_bounded() {
    let error = fails("handles", "step");
    assert_eq!(detail(&error, "budget"), "5000 handles");
}

#[test]
fn a_panic_tells_its_message_and_line() {
    let error = fails("panic", "step");
    assert!(error.to_string().contains("nobody expects this"), "{error}");
    assert!(
        detail(&error, "source").contains("hostile/src/lib.rs:"),
        "{error}"
    );
}

#[test]
fn endless_recursion_is_a_trap() {
    fails("recurse", "step");
}

#[test]
fn mismatched_shapes_name_operation_shapes_and_line() {
    let error = fails("nonsense-shape", "step");
    let because = detail(&error, "because");
    assert!(
        because.contains("matmul") && because.contains("[2, 3]") && because.contains("[4, 5]"),
        "{error}"
    );
    assert!(
        detail(&error, "source").contains("hostile/src/lib.rs:"),
        "{error}"
    );
}

#[test]
fn predictions_of_another_shape_are_refused() {
    let error = fails("nonsense-prediction", "predict");
    assert!(error.to_string().contains("[449, 10]"), "{error}");
}

#[test]
fn a_flood_of_log_lines_is_bounded() {
    let error = fails("log-flood", "step");
    assert!(detail(&error, "budget").starts_with("64 KiB"), "{error}");
}

#[test]
fn a_flood_of_printed_lines_is_bounded() {
    let error = fails("print-flood", "step");
    assert!(detail(&error, "budget").starts_with("64 KiB"), "{error}");
}

#[test]
fn a_line_without_end_is_bounded() {
    let error = fails("endless-line", "step");
    assert!(detail(&error, "budget").starts_with("64 KiB"), "{error}");
}

#[test]
fn a_plugin_cannot_end_the_process() {
    let error = fails("exit", "step");
    assert!(
        detail(&error, "called").contains("wasi:cli/exit#exit"),
        "{error}"
    );
}

#[test]
fn an_unknown_parameter_is_named_with_the_nearest() {
    let error = fails("unknown-parameter", "step");
    assert!(error.to_string().contains("linear9.weight"), "{error}");
}

#[test]
fn saved_bytes_are_bounded() {
    fails("huge-save", "save");
}

#[test]
fn a_view_is_no_larger_than_the_tensors_granted() {
    let error = fails("view", "step");
    assert!(
        detail(&error, "operation").starts_with("broadcast_to"),
        "{error}"
    );
}

#[test]
fn what_outlives_its_handle_is_bounded() {
    for (deed, words) in [
        ("sets", "more than 1024 parameter sets and models"),
        ("parameters", "more than 65536 parameters"),
        ("models", "more than 1024 parameter sets and models"),
        ("tags", "more than 64 tags"),
        ("layers", "at most 1024"),
        ("long-name", "a name of 500000 bytes; at most 256"),
        ("long-key", "a key of 100000 numbers"),
    ] {
        let error = fails(deed, "step");
        assert!(detail(&error, "because").contains(words), "{deed}: {error}");
    }
}

#[test]
fn a_plugin_cannot_write_over_the_terminal() {
    let lab = Lab::hostile("escape");
    let (_, events) = lab.finish("run", RUN, &[("trainer.with.deed", "escape")]);
    let said: Vec<&str> = events
        .iter()
        .filter_map(|e| match e {
            Event::Log { text, .. } => Some(text.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(
        said,
        ["\u{fffd}[2Jfinished\u{fffd}", "\u{fffd}]0;finished\u{fffd}"]
    );
}

#[test]
fn a_run_that_measured_infinity_can_be_gone_on_with() {
    let lab = Lab::hostile("infinite-loss");
    let sets = [("trainer.with.deed", "infinite-loss")];
    let (finished, _) = lab.finish("run", RUN, &sets);
    assert_eq!(finished.metrics["test/loss"], f64::INFINITY);
    let (result, _) = lab.run("run", RUN, &sets, true);
    let Ok(Ending::Finished(again)) = result else {
        panic!("{result:?}");
    };
    assert_eq!(again.metrics, finished.metrics);
}

#[test]
fn a_split_added_at_the_start_is_there_once_after_a_resume() {
    let lab = Lab::hostile("split-at-start");
    let sets = [("trainer.with.deed", "split-at-start")];
    lab.finish("run", RUN, &sets);
    let (result, _) = lab.run("run", RUN, &sets, true);
    result.unwrap();
}

#[test]
fn a_graph_of_any_depth_is_taken_apart_without_a_stack() {
    // Deep graphs are no misdeed: the run goes on.
    let lab = Lab::hostile("deep-graph");
    let sets = [
        ("trainer.with.deed", "deep-graph"),
        ("trainer.limits.call", "30 s"),
        ("trainer.limits.tensors", "512 MiB"),
    ];
    assert_eq!(lab.finish("run", RUN, &sets).0.steps, 8);
}

#[test]
fn a_nonsense_objective_is_the_trainers_fault_not_the_askers() {
    // `granet` asks the trainer for its objective; here any pruner that does not ask must be unharmed by it.
    let lab = Lab::hostile("nonsense-objective");
    let file = format!("{RUN}\n[pruner]\nplugin = \"magnitude\"\nwith = {{ sparsity = 0.5 }}\n");
    let (finished, _) = lab.finish("run", &file, &[("trainer.with.deed", "nonsense-objective")]);
    assert!((finished.metrics["sparsity"] - 0.5).abs() < 1e-3);
}

#[test]
fn a_plugin_that_dies_is_started_again_where_the_run_file_says_so() {
    let lab = Lab::hostile("restart");
    let sets = [
        ("trainer.with.deed", "panic"),
        ("trainer.on-failure", "restart"),
    ];
    let (result, events) = lab.run("run", RUN, &sets, false);
    // It panics at step 5 again each time, so in the end the run fails; but it was tried.
    let error = result.expect_err("panics for ever");
    assert!(error.to_string().contains("restarts"), "{error}");
    assert_eq!(
        events
            .iter()
            .filter(|e| matches!(e, Event::Warning { .. }))
            .count(),
        3
    );
}

#[test]
fn a_pruner_that_imports_the_optimiser_is_refused_before_anything_runs() {
    let lab = Lab::hostile("overreach");
    let file = format!("{RUN}\n[pruner]\nplugin = \"overreach\"\n");
    let (result, events) = lab.run("run", &file, &[], false);
    let error = result.expect_err("refused");
    assert!(
        error.to_string().contains("espalier:plugin/optim@0.1.0"),
        "{error}"
    );
    assert!(!events.iter().any(|e| matches!(e, Event::Started { .. })));
    assert!(!lab.out("run").exists(), "nothing was written");
}
