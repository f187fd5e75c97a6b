//! `espalier verify`: a run is a function of its lock, and what changed since is found at the first step it changes.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use espalier_tests::lab::Lab;
use espalier_tests::{espalier, workspace};
use serde_json::Value;

fn command(what: &str) -> Command {
    let mut command = Command::new(espalier());
    command.arg(what);
    command
        .arg("--registry")
        .arg(workspace().join("registry.toml"));
    command
}

/// Twenty points in two classes; `shift` moves one of them.
fn points(shift: f64) -> String {
    let mut text = "x,y,side\n".to_string();
    for i in 0..20 {
        let side = i % 2;
        let x = f64::from(side) + 0.05 * f64::from(i) + if i == 7 { shift } else { 0.0 };
        text.push_str(&format!("{x},{},{side}\n", 0.1 * f64::from(i % 5)));
    }
    text
}

const RUN: &str = r#"
[data]
source = "csv"
path = "points.csv"
target = "side"
[model]
layers = [{ kind = "linear", features = 8 }, { kind = "relu" }, { kind = "linear", features = 2 }]
[schedule]
epochs = 6
batch-size = 5
[trainer]
plugin = "backprop"
with = { optimizer = "adam", lr = 0.01 }
[pruner]
plugin = "magnitude"
with = { sparsity = 0.5, every-steps = 2 }
"#;

/// A run that has come to its end, in a folder of its own.
fn run(lab: &Lab) -> PathBuf {
    let file = lab.folder().join("run.toml");
    std::fs::write(&file, RUN).unwrap();
    std::fs::write(lab.folder().join("points.csv"), points(0.0)).unwrap();
    let out = lab.out("run");
    let output = command("run")
        .arg(file)
        .arg("--out")
        .arg(&out)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    out
}

fn verify(run: &Path, more: &[&str]) -> Output {
    command("verify").arg(run).args(more).output().unwrap()
}

fn verdict(run: &Path) -> (Option<i32>, Value) {
    let output = verify(run, &["--json"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let value = serde_json::from_str(&text)
        .unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
    (output.status.code(), value)
}

/// Puts other words into the run's lock.
fn change(run: &Path, from: &str, to: &str) {
    let file = run.join("lock.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(file, text.replace(from, to)).unwrap();
}

#[test]
fn an_untouched_run_is_equal_to_the_last_bit() {
    let lab = Lab::new("verify-equal");
    let run = run(&lab);
    let output = verify(&run, &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(
        text.contains("and the parameters have the same bits"),
        "{text}"
    );
    let (_, verdict) = verdict(&run);
    assert_eq!(verdict["parameters"], true);
    assert!(verdict["equal"].as_u64().unwrap() > 18, "{verdict}");
}

#[test]
fn a_changed_option_is_found_at_the_first_step_that_it_changes() {
    let lab = Lab::new("verify-option");
    let run = run(&lab);
    // The first loss is that of the same initial weights; the second follows the first update.
    change(&run, "lr = 0.01", "lr = 0.02");
    let (code, verdict) = verdict(&run);
    assert_eq!(code, Some(1), "{verdict}");
    assert_eq!(verdict["difference"]["step"], 2, "{verdict}");
    assert_eq!(verdict["difference"]["metric"], "train/loss");
}

#[test]
fn a_changed_data_file_is_found_too() {
    let lab = Lab::new("verify-data");
    let run = run(&lab);
    std::fs::write(lab.folder().join("points.csv"), points(0.5)).unwrap();
    let (code, verdict) = verdict(&run);
    assert_eq!(code, Some(1), "{verdict}");
    let step = verdict["difference"]["step"].as_u64().unwrap();
    assert!(
        (1..=3).contains(&step),
        "the sample is seen in the first epoch: {verdict}"
    );
}

#[test]
fn another_component_than_the_locks_is_named() {
    let lab = Lab::new("verify-digest");
    let run = run(&lab);
    let text = std::fs::read_to_string(run.join("lock.toml")).unwrap();
    let sha256 = text.split("sha256 = \"").nth(1).unwrap()[..64].to_string();
    change(&run, &sha256, &"0".repeat(64));
    let output = verify(&run, &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("plugin backprop is another component"),
        "{text}"
    );
    assert!(text.contains(&sha256), "{text}");
}

#[test]
fn a_run_that_was_stopped_is_repeated_as_far_as_it_had_come() {
    let lab = Lab::new("verify-stopped");
    let run = run(&lab);
    std::fs::remove_file(run.join("result.json")).unwrap();
    let metrics = run.join("metrics.jsonl");
    let text = std::fs::read_to_string(&metrics).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    std::fs::write(&metrics, lines[..7].join("\n") + "\n{\"step\": 8, \"tra").unwrap();
    let (code, verdict) = verdict(&run);
    assert_eq!(code, Some(0), "{verdict}");
    assert_eq!(
        (&verdict["finished"], &verdict["equal"]),
        (&Value::Bool(false), &Value::from(7))
    );
}

#[test]
fn what_is_no_run_is_refused_in_words() {
    let lab = Lab::new("verify-nothing");
    let output = verify(lab.folder(), &[]);
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("is not the folder of a run"), "{text}");
}
