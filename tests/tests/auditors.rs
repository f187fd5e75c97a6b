//! Audits in whole runs: they look and change nothing, they are told of in every place, and a flagged result is
//! still a finished run.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use espalier_runtime::events::{Audit, Event};
use espalier_tests::lab::Lab;
use espalier_tests::{espalier, workspace};

const BASE: &str = r#"
[run]
threads = 1
[data]
source = "digits"
train-limit = 200
[model]
layers = [{ kind = "flatten" }, { kind = "linear", features = 16 }, { kind = "batch-norm" }, { kind = "relu" }, { kind = "linear", features = 10 }]
[schedule]
epochs = 2
batch-size = 50
[trainer]
plugin = "backprop"
with = { optimizer = "adam", lr = 3e-3 }
"#;

const AUDITOR: &str = "[[auditor]]\nplugin = \"faulty-auditor\"\n";

/// A lab with the tests' own plugins.
fn lab(name: &str) -> Lab {
    Lab::hostile(name)
}

fn audits(events: &[Event]) -> Vec<Audit> {
    let audit = |event: &Event| match event {
        Event::Audited(audit) => Some(audit.clone()),
        _ => None,
    };
    events.iter().filter_map(audit).collect()
}

#[test]
fn an_audit_leaves_the_run_as_it_is() {
    let lab = lab("audit-looks");
    lab.finish("plain", BASE, &[]);
    let (_, events) = lab.finish("audited", &format!("{BASE}{AUDITOR}"), &[]);
    assert_eq!(lab.digest("plain"), lab.digest("audited"));
    let audits = audits(&events);
    assert_eq!(audits.len(), 1);
    let number = |name: &str| audits[0].numbers.iter().find(|(n, _)| n == name).unwrap().1;
    // Its copy learnt something, and the trainer answered for the whole test split.
    assert!(number("moved") > 0.0 && number("predicted") == 449.0);
    let file = std::fs::read_to_string(lab.out("audited").join("audit-faulty-auditor.json"));
    let file: serde_json::Value = serde_json::from_str(&file.unwrap()).unwrap();
    assert_eq!(file["flagged"], false);
    let written = file["numbers"]["weight"].as_f64().unwrap();
    assert!((written - number("weight")).abs() < 1e-9 * written);
    let metrics = std::fs::read_to_string(lab.out("audited").join("metrics.jsonl")).unwrap();
    let last = metrics.lines().last().unwrap();
    assert!(last.contains("\"faulty-auditor/weight\""), "{last}");
}

#[test]
fn an_audit_between_two_stages_changes_nothing_of_the_second() {
    let lab = lab("audit-between");
    let stages = |auditor: &str| {
        format!("{BASE}[[stage]]\nname = \"one\"\n{auditor}[[stage]]\nname = \"two\"\n")
    };
    lab.finish("plain", &stages(""), &[]);
    let auditor = "[[stage.auditor]]\nplugin = \"faulty-auditor\"\n";
    let (_, events) = lab.finish("audited", &stages(auditor), &[]);
    assert_eq!(lab.digest("plain"), lab.digest("audited"));
    assert_eq!(audits(&events)[0].stage, "one");
    assert!(
        lab.out("audited")
            .join("audit-one-faulty-auditor.json")
            .is_file()
    );
}

#[test]
fn an_auditor_that_changes_the_run_is_stopped() {
    let lab = lab("audit-changes");
    for (fault, operation) in [
        ("assigns", "assign"),
        ("masks", "set-mask"),
        ("updates", "sgd"),
        ("snapshots", "snapshot"),
    ] {
        let file = format!("{BASE}{AUDITOR}with = {{ fault = \"{fault}\" }}\n");
        let (result, _) = lab.run(fault, &file, &[], false);
        let error = result.expect_err("a change in an audit").to_string();
        let words = format!("{operation}: an auditor reads the run's parameters");
        assert!(error.contains(&words), "{error}");
        assert!(error.contains("model.clone"), "{error}");
    }
    // Its policy may be to go on without it.
    let file = format!("{BASE}{AUDITOR}with = {{ fault = \"assigns\" }}\non-failure = \"skip\"\n");
    let (_, events) = lab.finish("skipped", &file, &[]);
    assert!(audits(&events).is_empty());
    let left_out = |event: &Event| matches!(event, Event::Warning { text, .. } if text.contains("is left out"));
    assert!(events.iter().any(left_out));
}

#[test]
fn a_flagged_result_is_shown_and_the_exit_code_is_0() {
    let lab = lab("audit-flags");
    let path = lab.folder().join("run.toml");
    let file = format!("{BASE}{AUDITOR}with = {{ flag = true }}\n");
    std::fs::write(&path, file).unwrap();
    let run = |more: &[&str]| {
        let mut command = Command::new(espalier());
        command.arg("run").arg(&path).args(more);
        let registry = workspace().join("tests/guests/registry.toml");
        command.arg("--registry").arg(registry);
        let output = command.current_dir(lab.folder()).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).to_string();
        assert_eq!(output.status.code(), Some(0), "{error}");
        String::from_utf8(output.stdout).unwrap()
    };
    let seen = run(&["--out", "a"]);
    let said = "audit by faulty-auditor: FLAGGED: do not trust this result";
    // When it happens, and again at the end, where it is read.
    assert_eq!(seen.matches(said).count(), 2, "{seen}");
    let json = run(&["--out", "b", "--json"]);
    let lines: Vec<serde_json::Value> = json
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let audit = lines
        .iter()
        .find(|line| line["event"] == "audited")
        .unwrap();
    assert_eq!(audit["flagged"], true);
    assert_eq!(lines.last().unwrap()["event"], "finished");
}
