//! The `espalier` command as shells and scripts meet it: streams, exit codes, signals.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::process::{Command, Output, Stdio};

use espalier_tests::lab::Lab;
use espalier_tests::{espalier, workspace};
use serde_json::Value;

const RUN: &str = r#"
[data]
source = "digits"
train-limit = 256
[model]
layers = [{ kind = "flatten" }, { kind = "linear", features = 10 }]
[schedule]
epochs = 2
[trainer]
plugin = "backprop"
"#;

fn run(lab: &Lab, out: &str, more: &[&str]) -> Command {
    let file = lab.folder().join("run.toml");
    std::fs::write(&file, RUN).unwrap();
    let mut command = Command::new(espalier());
    command
        .arg("run")
        .arg(file)
        .arg("--registry")
        .arg(workspace().join("registry.toml"));
    command.arg("--out").arg(lab.out(out)).args(more);
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn code(output: &Output) -> Option<i32> {
    output.status.code()
}

#[test]
fn json_lines_fill_standard_output_and_the_last_says_how_it_ended() {
    let lab = Lab::new("json");
    let output = run(&lab, "out", &["--json"]).output().unwrap();
    assert_eq!(code(&output), Some(0), "{}", text(&output.stderr));
    let lines: Vec<&str> = text(&output.stdout).lines().collect();
    let events: Vec<Value> = lines
        .iter()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert!(events.iter().all(|event| event["event"].is_string()));
    let steps = events
        .iter()
        .filter(|event| event["event"] == "step")
        .count();
    let last = events.last().unwrap();
    let folder = lab.out("out");
    let start = format!(
        "{{\"event\":\"finished\",\"run\":{},\"seconds\":",
        Value::from(folder.to_str().unwrap())
    );
    assert!(lines.last().unwrap().starts_with(&start), "{last}");
    let keys: Vec<&String> = last.as_object().unwrap().keys().collect();
    assert_eq!(keys.len(), 5, "{last}");
    assert_eq!(last["steps"].as_u64(), Some(steps as u64));
    for metric in ["test/accuracy", "test/loss", "sparsity"] {
        assert!(last["metrics"][metric].is_f64(), "{metric}: {last}");
    }
    assert!(
        text(&output.stderr).contains("test/accuracy"),
        "people read standard error"
    );
}

#[test]
fn without_a_terminal_there_is_a_line_for_each_evaluation_and_none_for_steps() {
    let lab = Lab::new("plain");
    let output = run(&lab, "out", &[]).output().unwrap();
    assert_eq!(code(&output), Some(0), "{}", text(&output.stderr));
    let lines: Vec<&str> = text(&output.stdout).lines().collect();
    assert_eq!(
        lines
            .iter()
            .filter(|line| line.starts_with("epoch "))
            .count(),
        2,
        "{lines:?}"
    );
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("  trainer   backprop 0.1.0, sha256 ")),
        "{lines:?}"
    );
    assert!(
        !text(&output.stdout).contains('\x1b') && !text(&output.stderr).contains('\x1b'),
        "no escapes"
    );
}

#[test]
fn a_reader_that_goes_away_does_not_end_the_run() {
    let lab = Lab::new("pipe");
    let mut command = run(&lab, "out", &["--json"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), Some(0), "{}", text(&output.stderr));
    assert!(
        text(&output.stderr).contains("test/accuracy"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_failure_is_the_last_json_line_too() {
    let lab = Lab::new("failure");
    let output = run(&lab, "out", &["--json", "--set", "trainer.plugin=backprob"])
        .output()
        .unwrap();
    assert_eq!(code(&output), Some(2));
    let last: Value = serde_json::from_str(text(&output.stdout).lines().last().unwrap()).unwrap();
    assert_eq!(last["event"], "failed");
    assert_eq!(last["error"]["what"], "unknown plugin `backprob`");
    assert_eq!(last["error"]["help"], "did you mean `backprop`?");
    assert!(text(&output.stderr).starts_with("error: unknown plugin `backprob`\n"));
}

#[cfg(unix)]
#[test]
fn an_interrupt_checkpoints_and_the_run_goes_on_from_there() {
    let lab = Lab::new("interrupt");
    let mut command = run(&lab, "out", &["--json", "--set", "schedule.epochs=1000000"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    assert!(
        lines.any(|line| line.contains("\"event\":\"step\"")),
        "no step"
    );
    let killed = Command::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    let last: Value = serde_json::from_str(&lines.last().unwrap()).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert_eq!(last["event"], "interrupted");
    let step = last["step"].as_u64().unwrap();

    let file = lab.folder().join("run.toml");
    let mut resumed = Command::new(espalier());
    resumed
        .arg("run")
        .arg(file)
        .arg("--registry")
        .arg(workspace().join("registry.toml"));
    resumed.arg("--resume").arg(lab.out("out")).args([
        "--json",
        "--set",
        "schedule.epochs=1000000",
    ]);
    let mut child = resumed
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap())
        .lines()
        .map(Result::unwrap);
    let first = lines
        .find(|line| line.contains("\"event\":\"step\""))
        .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let first: Value = serde_json::from_str(&first).unwrap();
    assert_eq!(first["step"].as_u64(), Some(step + 1));
}

#[test]
fn wrong_arguments_answer_2_and_help_lists_the_exit_codes() {
    let wrong = Command::new(espalier())
        .args(["run", "run.toml", "--set", "epochs"])
        .output()
        .unwrap();
    assert_eq!(code(&wrong), Some(2));
    assert!(
        text(&wrong.stderr).contains("expected KEY=VALUE"),
        "{}",
        text(&wrong.stderr)
    );
    let help = Command::new(espalier())
        .args(["run", "--help"])
        .output()
        .unwrap();
    assert_eq!(code(&help), Some(0));
    assert!(
        text(&help.stdout).contains("Exit codes:\n  0    it went well\n"),
        "{}",
        text(&help.stdout)
    );
}
