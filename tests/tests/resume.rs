//! A run is a function of its lock: killed and resumed, or on more threads, it ends in the same bits.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use espalier_runtime::run;
use espalier_tests::lab::Lab;
use espalier_tests::{espalier, workspace};

/// The end of a run: parameters and everything that was measured on the way.
#[derive(Debug, PartialEq)]
struct End {
    parameters: [u8; 32],
    metrics: String,
    last: serde_json::Value,
}

fn end(folder: &Path, last: &str) -> End {
    let mut last: serde_json::Value = serde_json::from_str(last).unwrap();
    assert_eq!(last["event"], "finished", "{last}");
    last["run"].take();
    last["seconds"].take();
    End {
        parameters: run::parameters_of(folder)
            .unwrap()
            .content_digest()
            .unwrap(),
        metrics: std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap(),
        last,
    }
}

fn command(file: &Path, place: [&str; 2], threads: &str) -> Command {
    let mut command = Command::new(espalier());
    command
        .arg("run")
        .arg(file)
        .args(place)
        .args(["--threads", threads, "--json"]);
    command
        .arg("--registry")
        .arg(workspace().join("registry.toml"));
    command
        .current_dir(workspace())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

fn whole(file: &Path, out: &Path, threads: &str) -> End {
    let output = command(file, ["--out", out.to_str().unwrap()], threads)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    end(out, said.lines().last().unwrap())
}

/// Kills the run after so many lines of events; true if it was killed before its end.
fn kill_after(mut command: Command, lines: usize) -> bool {
    let mut child = command.spawn().unwrap();
    let reader = BufReader::new(child.stdout.take().unwrap());
    let mut seen = 0;
    for line in reader.lines() {
        let line = line.unwrap_or_default();
        seen += 1;
        if line.contains("\"event\":\"finished\"") {
            child.wait().unwrap();
            return false;
        }
        if seen == lines {
            // SIGKILL: nothing is flushed, nothing is closed.
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    seen >= lines
}

fn killed_ten_times_ends_in_the_same_bits(name: &str, file: &str, seed: u64) {
    let lab = Lab::new(name);
    let path = lab.folder().join("run.toml");
    std::fs::write(&path, file).unwrap();
    let expected = whole(&path, &lab.out("whole"), "2");
    assert_eq!(
        whole(&path, &lab.out("single"), "1"),
        expected,
        "one thread and two threads differ"
    );

    let out = lab.out("killed");
    let (place, again) = (
        ["--out", out.to_str().unwrap()],
        ["--resume", out.to_str().unwrap()],
    );
    // Random moments, the same in every run of the test.
    let mut state = seed;
    let mut kills = 0;
    let steps = expected.metrics.lines().count();
    while kills < 10 {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        let lines = 1 + (state >> 33) as usize % (steps / 6);
        // Before the first checkpoint there is nothing to resume: the folder holds the lock only, and a resume
        // begins at step 0.
        let started = out.join("lock.toml").exists();
        let command = command(&path, if started { again } else { place }, "2");
        assert!(
            kill_after(command, lines),
            "the run ended before it was killed {} times",
            kills + 1
        );
        kills += 1;
    }
    let output = command(&path, again, "2").output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let said = String::from_utf8(output.stdout).unwrap();
    let found = end(&out, said.lines().last().unwrap());
    assert_eq!(found.last, expected.last);
    assert!(found.metrics == expected.metrics, "metrics.jsonl differs");
    assert_eq!(found.parameters, expected.parameters);
}

const MODEL: &str = r#"
[model]
layers = [{ kind = "flatten" }, { kind = "linear", features = 32 }, { kind = "batch-norm" }, { kind = "relu" }, { kind = "dropout", rate = 0.1 }, { kind = "linear", features = 10 }]
"#;

#[test]
fn backprop_with_magnitude_killed_ten_times() {
    let file = format!(
        r#"
[data]
source = "digits"
{MODEL}
[schedule]
epochs = 60
batch-size = 64
[trainer]
plugin = "backprop"
with = {{ optimizer = "adam", lr = 1e-3, schedule = "cosine" }}
[pruner]
plugin = "magnitude"
[checkpoint]
every = 13
"#
    );
    killed_ten_times_ends_in_the_same_bits("backprop-magnitude", &file, 1);
}

#[test]
fn mono_forward_with_granet_killed_ten_times() {
    let file = format!(
        r#"
[data]
source = "digits"
{MODEL}
[schedule]
epochs = 40
batch-size = 64
[trainer]
plugin = "mono-forward"
[pruner]
plugin = "granet"
with = {{ every-steps = 10 }}
[checkpoint]
every = 17
"#
    );
    killed_ten_times_ends_in_the_same_bits("mono-forward-granet", &file, 2);
}

#[test]
fn lottery_ticket_killed_ten_times() {
    let file = format!(
        r#"
[data]
source = "digits"
{MODEL}
[schedule]
steps = 150
batch-size = 60
[trainer]
plugin = "backprop"
with = {{ momentum = 0.9, lr = 0.1 }}
[pruner]
plugin = "lottery-ticket"
with = {{ rounds = 5, rewind-step = 20 }}
[checkpoint]
every = 29
"#
    );
    killed_ten_times_ends_in_the_same_bits("lottery-ticket", &file, 3);
}

#[test]
fn resuming_another_run_is_refused() {
    let lab = Lab::new("another");
    let file = r#"
[data]
source = "digits"
[model]
layers = [{ kind = "flatten" }, { kind = "linear", features = 10 }]
[schedule]
steps = 3
batch-size = 64
[trainer]
plugin = "backprop"
"#;
    lab.finish("run", file, &[]);
    let (result, _) = lab.run("run", file, &[("trainer.with.lr", "0.5")], true);
    let error = result
        .expect_err("another learning rate is another run")
        .to_string();
    assert!(
        error.contains("the list of plugins and their options differs"),
        "{error}"
    );
    let (result, _) = lab.run("nowhere", file, &[], true);
    let error = result.expect_err("no such folder").to_string();
    assert!(error.contains("is not the folder of a run"), "{error}");
}

const POLICY: &str = r#"
[model]
layers = [
  { kind = "embedding", features = 16 },
  { kind = "position" },
  { kind = "transformer-block", features = 16, heads = 2 },
  { kind = "layer-norm" },
  { kind = "tied-linear" },
]
"#;

#[test]
fn policy_gradient_with_a_tracking_normaliser_and_granet_killed_ten_times() {
    let file = format!(
        r#"
[environment]
plugin = "chain-arithmetic"
{POLICY}
[schedule]
steps = 120
steps-per-epoch = 60
batch-size = 8
[trainer]
plugin = "policy-gradient"
with = {{ warm-up-steps = 40 }}
[normalizer]
plugin = "spo"
[pruner]
plugin = "granet"
with = {{ every-steps = 10 }}
[checkpoint]
every = 11
"#
    );
    killed_ten_times_ends_in_the_same_bits("policy-gradient-spo", &file, 4);
}

#[test]
fn episodes_in_progress_survive_ten_kills() {
    let file = r#"
[environment]
plugin = "cartpole"
[model]
layers = [{ kind = "linear", features = 16 }, { kind = "tanh" }, { kind = "linear", features = 2 }]
[schedule]
steps = 60
steps-per-epoch = 30
batch-size = 4
evaluation-episodes = 3
[trainer]
plugin = "policy-gradient"
with = { horizon = 16 }
[checkpoint]
every = 7
"#;
    killed_ten_times_ends_in_the_same_bits("cartpole", file, 5);
}

#[test]
fn stages_killed_ten_times() {
    let file = format!(
        r#"
repeat = 2
[data]
source = "digits"
{MODEL}
[schedule]
steps = 70
batch-size = 64
[trainer]
plugin = "backprop"
with = {{ optimizer = "adam", lr = 1e-3 }}
[[stage]]
name = "search"
[[stage.pruner]]
plugin = "magnitude"
[[stage]]
name = "look"
train = false
[[stage]]
name = "go-on"
[stage.trainer]
plugin = "mono-forward"
[checkpoint]
every = 13
"#
    );
    killed_ten_times_ends_in_the_same_bits("stages", &file, 6);
}

#[test]
fn forward_gnn_killed_ten_times() {
    // Layers that read what others gave a step before, and the best weights seen, must come back too.
    let file = r#"
[data]
source = "block-model"
radius = 1.2
[model]
layers = [{ kind = "linear", features = 8 }, { kind = "relu" }, { kind = "linear", features = 8 }, { kind = "relu" }]
[schedule]
steps = 240
batch-size = 30
evaluate-every = 50
[trainer]
plugin = "forward-gnn"
with = { method = "sf-top-to-input" }
[checkpoint]
every = 7
"#;
    killed_ten_times_ends_in_the_same_bits("forward-gnn", file, 12);
}

const SEARCH: &str = r#"
[environment]
plugin = "coin-steps"
with = { problems = 120, words = 64 }
[model]
layers = [{ kind = "embedding", features = 1, deviation = 1e-6 }, { kind = "tied-linear" }]
[searcher]
plugin = "entropic-pf"
prompts-per-step = 2
with = { particles = 4, ends = "length" }
"#;

#[test]
fn a_killed_search_ends_in_the_same_bits() {
    killed_ten_times_ends_in_the_same_bits("search", SEARCH, 11);
}
