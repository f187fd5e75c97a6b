//! `--profile`: what it says of a run adds up, names everybody, and changes nothing.
#![allow(clippy::unwrap_used)]

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use espalier_runtime::events::Event;
use espalier_runtime::profile::{DETAILED_STEPS, PartTime, Profile};
use espalier_runtime::run::{self, RunOptions};
use espalier_runtime::runfile::{self, Overrides};
use espalier_tests::lab::Lab;
use espalier_tests::{espalier, workspace};
use serde_json::Value;

const DIGITS: &str = r#"
[data]
source = "digits"
train-limit = 512
[model]
layers = [{ kind = "flatten" }, { kind = "linear", features = 32 }, { kind = "relu" }, { kind = "linear", features = 10 }]
[schedule]
epochs = 3
[trainer]
plugin = "backprop"
[[pruner]]
plugin = "magnitude"
with = { sparsity = 0.5 }
"#;

const TASKS: &str = r#"
[environment]
plugin = "modular-arithmetic"
[model]
layers = [
  { kind = "embedding", features = 16 }, { kind = "position" },
  { kind = "layer-norm" }, { kind = "tied-linear" },
]
[schedule]
steps = 4
steps-per-epoch = 2
batch-size = 2
[trainer]
plugin = "policy-gradient"
with = { warm-up-steps = 0 }
[normalizer]
plugin = "reinforce-baseline"
"#;

/// A run with a profile, how long it took by the test's own clock, and its trace.
fn profiled(lab: &Lab, out: &str, file: &str) -> (Profile, f64, Value) {
    let path = lab.folder().join("run.toml");
    std::fs::write(&path, file).unwrap();
    let plan = runfile::load(&path, &Overrides::default()).unwrap_or_else(|e| panic!("{e}"));
    let options = RunOptions {
        out: Some(lab.out(out)),
        resume: None,
        registry: workspace().join("registry.toml"),
        cancel: Arc::new(AtomicBool::new(false)),
    };
    let mut events: Vec<Event> = Vec::new();
    let began = Instant::now();
    run::profiled(None, || run::execute(&plan, &options, &mut events))
        .unwrap_or_else(|e| panic!("{e}"));
    let seconds = began.elapsed().as_secs_f64();
    assert!(matches!(events.last(), Some(Event::Finished(_))));
    let profile = events.into_iter().find_map(|event| match event {
        Event::Profile(profile) => Some(profile),
        _ => None,
    });
    let profile = profile.unwrap();
    assert_eq!(profile.trace, lab.out(out).join("profile.json"));
    let trace = std::fs::read_to_string(&profile.trace).unwrap();
    (profile, seconds, serde_json::from_str(&trace).unwrap())
}

fn calls(profile: &Profile, plugin: &str, call: &str) -> u64 {
    let found = profile
        .calls
        .iter()
        .find(|c| c.plugin == plugin && c.call == call);
    found
        .unwrap_or_else(|| panic!("`{call}` of `{plugin}` is missing in {:?}", profile.calls))
        .calls
}

fn near(a: f64, b: f64, of: f64) -> bool {
    (a - b).abs() <= 0.001 * of
}

/// Every sum of the tables against the whole.
fn adds_up(profile: &Profile, seconds: f64) {
    let parts: f64 = profile.parts.iter().map(PartTime::seconds).sum();
    assert!(near(parts, profile.seconds, profile.seconds));
    // What lies outside: the last event, and giving back the run's memory.
    assert!(parts <= seconds && seconds - parts <= 0.02 * seconds + 0.05);
    let sum = |f: fn(&PartTime) -> f64| profile.parts.iter().map(f).sum::<f64>();
    let guest: f64 = profile.calls.iter().map(|c| c.guest_seconds).sum();
    let host: f64 = profile.calls.iter().map(|c| c.host_seconds).sum();
    let operations: f64 = profile.operations.iter().map(|o| o.seconds).sum();
    assert!(near(guest, sum(|p| p.guest_seconds), seconds));
    assert!(near(host, sum(|p| p.host_seconds), seconds));
    assert!(near(host, operations, seconds));
    assert!(guest > 0.0 && host > 0.0);
}

/// Every two events of the one track are apart or one inside the other.
fn nests(trace: &Value) {
    let events = trace["traceEvents"].as_array().unwrap();
    let mut open: Vec<(f64, f64)> = Vec::new();
    let mut last = 0.0;
    for event in events.iter().filter(|event| event["ph"] == "X") {
        let began = event["ts"].as_f64().unwrap();
        let ended = began + event["dur"].as_f64().unwrap();
        assert!(began >= last, "out of order: {event}");
        last = began;
        // Times are written in thousandths of a microsecond.
        while open.last().is_some_and(|(_, end)| *end <= began + 0.0005) {
            open.pop();
        }
        if let Some((_, end)) = open.last() {
            assert!(ended <= end + 0.0005, "across its neighbour: {event}");
        }
        open.push((began, ended));
    }
}

fn shown(trace: &Value, name: &str) -> u64 {
    let events = trace["traceEvents"].as_array().unwrap();
    events.iter().filter(|e| e["name"] == name).count() as u64
}

#[test]
fn a_profile_of_training_adds_up_and_names_every_plugin_and_call() {
    let lab = Lab::new("profile-digits");
    let (profile, seconds, trace) = profiled(&lab, "out", DIGITS);
    adds_up(&profile, seconds);
    nests(&trace);
    let steps = calls(&profile, "backprop", "step");
    assert_eq!(steps, 3 * 512_u64.div_ceil(64));
    for call in ["describe", "start", "predict", "save"] {
        assert!(calls(&profile, "backprop", call) > 0);
    }
    for call in ["describe", "start", "on-event", "save"] {
        assert!(calls(&profile, "magnitude", call) > 0);
    }
    let operation = |plugin: &str, name: &str| {
        let mut all = profile.operations.iter();
        let found = all.find(|o| o.plugin == plugin && o.operation == name);
        found.map_or(0, |o| o.calls)
    };
    assert!(operation("backprop", "data.next") >= steps);
    assert!(operation("backprop", "model.forward") >= steps);
    assert!(operation("backprop", "tensors.drop") >= steps);
    assert!(operation("magnitude", "parameters.set-mask") > 0);
    let parts: Vec<&str> = profile.parts.iter().map(|p| p.part.as_str()).collect();
    for part in ["load plugins", "load data", "start plugins", "steps"] {
        assert!(parts.contains(&part), "{parts:?}");
    }
    for part in ["pruner events", "measurement", "checkpoints", "reports"] {
        assert!(parts.contains(&part), "{parts:?}");
    }
    assert_eq!(profile.memory.len(), 2);
    assert!(profile.memory[0].peak_tensor_bytes > 0);
    assert_eq!(shown(&trace, "step"), 3 * DETAILED_STEPS);
    assert_eq!(shown(&trace, "more steps"), 3);
}

#[test]
fn plugins_that_are_asked_inside_a_call_have_lines_of_their_own() {
    let lab = Lab::new("profile-tasks");
    let (profile, seconds, trace) = profiled(&lab, "out", TASKS);
    adds_up(&profile, seconds);
    nests(&trace);
    assert_eq!(calls(&profile, "policy-gradient", "step"), 4);
    assert!(calls(&profile, "modular-arithmetic", "verify") >= 4);
    assert!(calls(&profile, "reinforce-baseline", "normalize") >= 4);
}

#[test]
fn a_run_with_a_profile_gives_the_same_bits_as_one_without() {
    let lab = Lab::new("profile-bits");
    profiled(&lab, "with", DIGITS);
    lab.finish("without", DIGITS, &[]);
    assert_eq!(lab.digest("with"), lab.digest("without"));
    let metrics = |name| std::fs::read_to_string(lab.out(name).join("metrics.jsonl")).unwrap();
    assert!(metrics("with") == metrics("without"));
    assert!(!lab.out("without").join("profile.json").exists());
}

#[test]
fn the_command_prints_the_tables_and_tells_machines_the_same() {
    let lab = Lab::new("profile-command");
    let file = lab.folder().join("run.toml");
    std::fs::write(&file, DIGITS).unwrap();
    let trace = lab.folder().join("trace.json");
    let command = |out: &str, more: &[&str]| {
        let output = Command::new(espalier())
            .arg("run")
            .arg(&file)
            .arg("--registry")
            .arg(workspace().join("registry.toml"))
            .arg("--out")
            .arg(lab.out(out))
            .arg("--profile")
            .arg(&trace)
            .args(more)
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (
            output.status.code(),
            text(output.stdout),
            text(output.stderr),
        )
    };
    let (code, words, _) = command("words", &[]);
    assert_eq!(code, Some(0));
    let tables = words.split_once("\nprofile  ").unwrap().1;
    for heading in [
        "part ",
        "plugin ",
        "host operation ",
        "data.next",
        "trace.json",
    ] {
        assert!(tables.contains(heading), "{heading} is missing in {tables}");
    }
    assert!(
        tables
            .lines()
            .any(|l| l.trim_start().starts_with("all ") && l.contains("100.0 %"))
    );
    assert!(serde_json::from_str::<Value>(&std::fs::read_to_string(&trace).unwrap()).is_ok());

    let (_, lines, _) = command("json", &["--json"]);
    let mut events = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    let profile = events.rfind(|event| event["event"] == "profile").unwrap();
    assert!(profile["seconds"].as_f64().unwrap() > 0.0);
    assert_eq!(profile["calls"][0]["plugin"], "backprop");

    // The run file in the place of the trace's name is refused, not written over.
    let output = Command::new(espalier())
        .args(["run", "--profile"])
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(std::fs::read_to_string(&file).unwrap(), DIGITS);
}
