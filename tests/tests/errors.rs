//! Wrong inputs and the exact words that answer them: one folder of `tests/errors` each.
//!
//! `args.txt` holds the arguments, one a line (`run` and `run.toml` where there is none), `error.txt` what
//! standard error must say, with the workspace's folder written as `[workspace]`. The command runs in the case's
//! folder, must answer 2 (wrong input), leave standard output empty and make no run's folder. To write
//! `error.txt` anew after a change of words, set `ESPALIER_WRITE_EXPECTED=1` and read the difference.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use espalier_tests::{espalier, workspace};

fn cases() -> Vec<PathBuf> {
    let folder = workspace().join("tests/errors");
    let mut cases: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    cases.sort();
    cases
}

/// Runs a case; gives what differs from what was expected.
fn fault(case: &Path, write: bool) -> Option<String> {
    let args = fs::read_to_string(case.join("args.txt")).unwrap_or("run\nrun.toml\n".into());
    let output = Command::new(espalier())
        .args(args.lines())
        .current_dir(case)
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr)
        .unwrap()
        .replace(workspace().to_str().unwrap(), "[workspace]");
    // Whether a plugin had to be built first says nothing about the error.
    let building = |line: &&str| {
        let words = [
            "building plugin ",
            "built ",
            "plugins are ",
            "waiting for another cargo",
        ];
        words.iter().any(|word| line.starts_with(word))
    };
    let said: String = said
        .split_inclusive('\n')
        .filter(|line| !building(line))
        .collect();
    let expected = case.join("error.txt");
    if write {
        fs::write(&expected, &said).unwrap();
    }
    let expected = fs::read_to_string(expected).unwrap_or("(no error.txt)".into());
    if said != expected {
        return Some(format!("expected:\n{expected}\nfound:\n{said}"));
    }
    if output.status.code() != Some(2) {
        return Some(format!("expected exit code 2, found {}", output.status));
    }
    if case.join("runs").exists() {
        return Some("a wrong input has left a run's folder behind".into());
    }
    (!output.stdout.is_empty()).then(|| {
        format!(
            "standard output: {}",
            String::from_utf8_lossy(&output.stdout)
        )
    })
}

#[test]
fn every_wrong_input_is_answered_in_the_expected_words() {
    let write = env::var_os("ESPALIER_WRITE_EXPECTED").is_some();
    let mut faults = Vec::new();
    for case in cases() {
        if let Some(fault) = fault(&case, write) {
            faults.push(format!(
                "--- {}\n{fault}",
                case.file_name().unwrap().to_string_lossy()
            ));
        }
    }
    assert!(
        faults.is_empty(),
        "{} cases differ\n{}",
        faults.len(),
        faults.join("\n")
    );
}

#[test]
fn there_are_at_least_twenty_wrong_inputs() {
    assert!(cases().len() >= 20, "{}", cases().len());
}
