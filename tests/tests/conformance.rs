//! The conformance suite finds what is broken, by the law that is broken, and nothing in what is not.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use espalier_runtime::component;
use espalier_runtime::conformance::{self, COMPANY, LAWS, Report, Setup, Verdict};
use espalier_runtime::plan::OptionValue;
use espalier_runtime::registry::{Entry, Registry, Source};
use espalier_tests::{espalier, workspace};

fn load(registry: &str) -> Registry {
    Registry::load(&workspace().join(registry)).unwrap_or_else(|error| panic!("{error}"))
}

/// A plugin of a registry, built.
fn bytes(registry: &Registry, entry: &Entry) -> Vec<u8> {
    let resolved = registry.resolve(&[entry], &mut |_| {});
    let resolved = resolved.unwrap_or_else(|error| panic!("{error}"));
    resolved[0].bytes.clone()
}

fn folder(registry: &Registry, entry: &Entry) -> Option<PathBuf> {
    match &entry.source {
        Source::Path(path) => Some(registry.file.parent().unwrap().join(path)),
        _ => None,
    }
}

fn words(report: &Report) -> String {
    let broken: Vec<String> = report
        .broken()
        .map(|(law, fault)| {
            format!(
                "{law}: {} -- expected {}, found {}",
                fault.did, fault.expected, fault.found
            )
        })
        .collect();
    broken.join("\n")
}

/// Tries a faulty guest with the fault chosen by its option.
fn faulty(plugin: &str, fault: &str) -> Report {
    let registry = load("tests/guests/registry.toml");
    let entry = registry.entry(plugin).unwrap();
    let mut setup = Setup::default();
    if !fault.is_empty() {
        setup
            .options
            .insert("fault".into(), OptionValue::Text(fault.into()));
    }
    setup.limits.call = Duration::from_secs(3);
    conformance::check(plugin, &bytes(&registry, entry), &setup)
        .unwrap_or_else(|error| panic!("{error}"))
}

/// Every fault is found by its law, and by no law that has nothing to do with it.
fn finds(plugin: &str, faults: &[(&str, &[&str])]) {
    let sound = faulty(plugin, "nothing");
    assert!(
        sound.passed(),
        "{plugin} without a fault:\n{}",
        words(&sound)
    );
    let mut wrong = Vec::new();
    for (fault, laws) in faults {
        let report = faulty(plugin, fault);
        let broken: Vec<&str> = report.broken().map(|(law, _)| law).collect();
        if &broken != laws {
            wrong.push(format!(
                "{plugin}, {fault}: expected {laws:?}, found {broken:?}\n{}",
                words(&report)
            ));
        }
        for (law, it) in report.broken() {
            for part in [&it.did, &it.expected, &it.found, &it.mend] {
                assert!(!part.trim().is_empty(), "{plugin}, {fault}, {law}: {it:?}");
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn every_plugin_of_the_repository_passes() {
    let registry = load("registry.toml");
    for entry in &registry.entries {
        let folder = folder(&registry, entry);
        let python = folder
            .as_ref()
            .is_some_and(|folder| folder.join("pyproject.toml").is_file());
        if python {
            // tests/tests/python.rs, where componentize-py is.
            continue;
        }
        let setup = folder.map_or(Ok(Setup::default()), |folder| Setup::of_folder(&folder));
        let setup = setup.unwrap_or_else(|error| panic!("{error}"));
        let report = conformance::check(&entry.name, &bytes(&registry, entry), &setup);
        let report = report.unwrap_or_else(|error| panic!("{error}"));
        println!("{} {:.1} s", entry.name, report.seconds);
        assert!(report.passed(), "{}:\n{}", entry.name, words(&report));
        let held = report
            .findings
            .iter()
            .filter(|f| f.verdict == Verdict::Pass)
            .count();
        assert!(held >= 10, "{}: only {held} laws were judged", entry.name);
    }
}

#[test]
fn faults_of_normalizers_are_found() {
    finds(
        "faulty-normalizer",
        &[
            ("unsaved", &["resume"]),
            ("leaks-memory", &["leaks"]),
            ("zero-over-zero", &["tiny", "finite", "constant"]),
            ("by-place", &["order"]),
            ("passes-rewards-on", &["constant"]),
            ("never-ends", &["ends"]),
            ("hoards-memory", &["budgets"]),
            ("panics-on-nothing", &["empty"]),
            ("panics-on-one", &["tiny"]),
            ("panics-always", &["ordinary"]),
        ],
    );
}

#[test]
fn faults_of_architectures_are_found() {
    finds(
        "faulty-architecture",
        &[
            ("counts-builds", &["builds"]),
            ("skips-ahead", &["ranges"]),
            ("mixes-samples", &["rows"]),
            // It counts its passes, so it also goes on in another way after a resume.
            (
                "drops-in-eval",
                &["resume", "ranges", "rows", "modes", "overrides"],
            ),
            ("detaches-weights", &["reaches", "overrides"]),
            ("remembers-weights", &["resume", "overrides"]),
            ("moves-in-eval", &["ordinary"]),
            ("other-shape", &["ordinary"]),
            ("keeps-tensors", &["leaks"]),
        ],
    );
}

#[test]
fn faults_of_auditors_are_found() {
    finds(
        "faulty-auditor",
        &[
            ("assigns", &["looks-only"]),
            ("masks", &["looks-only"]),
            ("updates", &["looks-only"]),
            ("snapshots", &["looks-only"]),
            ("not-a-number", &["report"]),
            ("uneven-table", &["ordinary"]),
            ("says-nothing", &["report"]),
            ("never-ends", &["ends"]),
            ("panics-on-nothing", &["empty"]),
        ],
    );
}

#[test]
fn faults_of_transforms_are_found() {
    finds(
        "faulty-transform",
        &[
            ("other-shape", &["splits"]),
            ("other-count", &["splits"]),
            ("class-beyond", &["splits"]),
            ("no-sample", &["splits"]),
            ("taken-name", &["splits"]),
            ("shuffles-batches", &["batches"]),
            ("counts-batches", &["resume", "batches"]),
            ("hoards", &["leaks"]),
            ("never-ends", &["ends"]),
            ("panics-on-few", &["tiny"]),
        ],
    );
}

#[test]
fn faults_of_options_are_found() {
    let report = faulty("faulty-options", "");
    let broken: Vec<&str> = report.broken().map(|(law, _)| law).collect();
    assert_eq!(broken, ["options", "refusals"], "{}", words(&report));
}

#[test]
fn faults_of_pruners_are_found() {
    finds(
        "faulty-pruner",
        &[
            ("misses-sparsity", &["sparsity"]),
            ("prunes-biases", &["only-weights"]),
            ("prunes-frozen", &["only-weights"]),
            ("scores-as-masks", &["masks"]),
            ("draws-anew", &["resume", "sparsity", "no-op"]),
            ("leaks-handles", &["leaks"]),
            ("unsaved", &["resume"]),
            ("rewinds-for-ever", &["ends"]),
            ("prunes-nothing", &["masks", "sparsity"]),
            ("panics-on-nothing", &["empty"]),
        ],
    );
}

#[test]
fn faults_of_trainers_are_found() {
    finds(
        "faulty-trainer",
        &[
            ("climbs", &["learns"]),
            ("leaks-handles", &["leaks"]),
            ("keeps-graphs", &["leaks"]),
            ("predicts-the-batch", &["predicts"]),
            ("predicts-twice", &["predicts"]),
            ("counts-questions", &["pure"]),
            ("touches-frozen", &["frozen"]),
            ("unsaved", &["resume"]),
            ("panics-on-one", &["tiny"]),
            ("panics-on-nothing", &["empty"]),
            ("hoards-tensors", &["budgets"]),
        ],
    );
}

#[test]
fn faults_of_environments_are_found() {
    finds(
        "faulty-tasks",
        &[
            ("counts-verdicts", &["resume", "verdicts"]),
            // The host itself stops what pays too much, wherever it is asked.
            (
                "pays-too-much",
                &[
                    "same-bits",
                    "resume",
                    "leaks",
                    "verdicts",
                    "bounded",
                    "solutions",
                ],
            ),
            ("prompts-in-turn", &["prompts"]),
            ("wrong-solutions", &["solutions"]),
            ("stop-outside", &["spec"]),
            // Most laws have a response without tokens among others.
            (
                "panics-on-silence",
                &[
                    "same-bits",
                    "resume",
                    "leaks",
                    "empty",
                    "verdicts",
                    "bounded",
                ],
            ),
        ],
    );
    finds(
        "faulty-mdp",
        &[
            ("remembers", &["keyed"]),
            ("unsaved", &["resume"]),
            ("leaves-its-range", &["bounded"]),
            ("never-ends", &["episodes"]),
            ("no-actions", &["spec"]),
        ],
    );
}

#[test]
fn faults_of_tuners_are_found() {
    finds(
        "faulty-tuner",
        &[
            ("forgets-a-member", &["domains"]),
            ("leaves-the-domain", &["domains"]),
            ("makes-knobs-up", &["domains"]),
            ("copies-itself", &["changes"]),
            ("changes-the-ended", &["changes"]),
            ("copies-the-scoreless", &["scoreless"]),
            ("panics-without-scores", &["scoreless"]),
            ("panics-on-ties", &["ties"]),
            ("unsaved", &["resume"]),
            ("leaks-memory", &["leaks"]),
            ("panics-alone", &["tiny"]),
            ("panics-on-nothing", &["empty"]),
            ("never-ends", &["ends"]),
            ("panics-always", &["ordinary"]),
        ],
    );
}

#[test]
fn faults_of_searchers_are_found() {
    finds(
        "faulty-searcher",
        &[
            ("answers-others", &["answers"]),
            ("answers-too-long", &["answers"]),
            ("skips-some", &["answers"]),
            ("never-done", &["empty"]),
            ("trains", &["looks-only"]),
            ("unsaved", &["resume"]),
            ("leaks-handles", &["leaks"]),
            ("panics-on-one", &["tiny"]),
        ],
    );
}

#[test]
fn the_report_says_what_was_done_expected_and_found_and_the_exit_code_is_1() {
    let folder = std::env::temp_dir().join(format!("espalier-{}-conformance", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let setup = folder.join("setup.toml");
    std::fs::write(&setup, "options = { fault = \"by-place\" }\n").unwrap();
    let test = |json: bool| {
        let mut command = Command::new(espalier());
        command.args(["plugin", "test", "faulty-normalizer", "--registry"]);
        command.arg(workspace().join("tests/guests/registry.toml"));
        command.arg("--setup").arg(&setup);
        if json {
            command.arg("--json");
        }
        command.output().unwrap()
    };
    let output = test(false);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    for part in [
        "FAIL  order",
        "did ",
        "expected ",
        "found ",
        "mend ",
        "1 law is broken, 12 hold",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let output = test(true);
    assert_eq!(output.status.code(), Some(1));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["passed"], false);
    let order = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|f| f["law"] == "order")
        .unwrap();
    assert_eq!(order["verdict"], "fail");
    assert!(order["mend"].as_str().is_some());

    std::fs::write(&setup, "option = {}\n").unwrap();
    let output = test(false);
    assert_eq!(output.status.code(), Some(2));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.contains("setup.toml") && error.contains("constant-rewards"),
        "{error}"
    );
    std::fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn the_company_is_what_its_readme_says_and_holds_no_path_of_a_machine() {
    for one in &COMPANY {
        let about =
            component::inspect(one.name, one.bytes).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(about.slot, one.slot);
        assert_eq!(
            (about.name.as_str(), about.version.as_str()),
            (one.name, "0.1.0")
        );
        let text = String::from_utf8_lossy(one.bytes);
        for part in ["/root/", "/home/", "/Users/"] {
            assert!(!text.contains(part), "{} holds {part}", one.name);
        }
    }
}

#[test]
fn every_law_is_told_in_the_documentation() {
    let text = std::fs::read_to_string(workspace().join("docs/conformance.md")).unwrap();
    for law in LAWS {
        assert!(
            text.contains(&format!("| `{}` |", law.name)),
            "`{}`",
            law.name
        );
    }
}
