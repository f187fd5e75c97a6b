//! Plugins written in Python: the same decisions as their twins in Rust, and mistakes with words.
//!
//! Needs componentize-py (`pip install componentize-py==0.25.1`), on the PATH or named in COMPONENTIZE_PY;
//! without it each test says that it skips.
#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::process::Command;

use espalier_runtime::conformance::{self, Setup};
use espalier_runtime::diagnostic::Diagnostic;
use espalier_runtime::events::{Ending, Event};
use espalier_runtime::plan::OptionValue;
use espalier_runtime::registry::Registry;
use espalier_tests::draw::Draw;
use espalier_tests::lab::Lab;
use espalier_tests::normalizer::{Bounds, Normalizer, RewardSpec, Rollout};
use espalier_tests::workspace;

/// Whether plugins in Python can be built here; says so where they cannot.
fn can_build() -> bool {
    let program = std::env::var_os("COMPONENTIZE_PY").unwrap_or_else(|| "componentize-py".into());
    let there = Command::new(program)
        .arg("--version")
        .output()
        .is_ok_and(|output| output.status.success());
    if !there {
        // Not `eprintln!`: what a passing test prints with it is not shown.
        let reason =
            "skipped: componentize-py is not on the PATH and COMPONENTIZE_PY does not name it\n";
        let _ = std::io::stderr().write_all(reason.as_bytes());
    }
    there
}

const DIGITS: &str = r#"
[data]
source = "digits"

[model]
layers = [{ kind = "flatten" }, { kind = "linear", features = 32 }, { kind = "relu" }, { kind = "linear", features = 10 }]

[schedule]
epochs = 12
batch-size = 64

[trainer]
plugin = "backprop"

[pruner]
plugin = "magnitude"
with = { sparsity = 0.93, every-steps = 9 }
"#;

#[test]
fn a_pruner_in_python_sets_the_masks_of_its_twin_in_rust() {
    if !can_build() {
        return;
    }
    let lab = Lab::new("python-pruner");
    let (rust, _) = lab.finish("rust", DIGITS, &[]);
    let (python, _) = lab.finish("python", DIGITS, &[("pruner.plugin", "magnitude-python")]);
    assert_eq!(lab.digest("python"), lab.digest("rust"));
    assert_eq!(python.metrics, rust.metrics);
    let (denser, _) = lab.finish("denser", DIGITS, &[("pruner.with", "{ sparsity = 0.5 }")]);
    assert_ne!(denser.metrics, rust.metrics);
}

#[test]
fn a_normaliser_in_python_gives_the_advantages_of_its_twin_in_rust() {
    if !can_build() {
        return;
    }
    let outcome = Bounds {
        name: String::new(),
        min: -1.0,
        max: 3.0,
    };
    let spec = RewardSpec {
        outcome,
        terms: Vec::new(),
    };
    let mut draw = Draw::new(5);
    for drop in [false, true] {
        let options = [
            ("eps", OptionValue::Float(1e-4)),
            ("drop-constant-groups", OptionValue::Bool(drop)),
        ];
        let mut rust = Normalizer::new("grpo", &options, &spec);
        let mut python = Normalizer::new("grpo-python", &options, &spec);
        for round in 0..40_u64 {
            let batch: Vec<Rollout> = (0..32_u64)
                .map(|sample| rollout(sample, round, &mut draw))
                .collect();
            let (a, b) = (
                rust.normalize(&batch).unwrap(),
                python.normalize(&batch).unwrap(),
            );
            assert_eq!(a.len(), b.len());
            for (a, b) in a.iter().zip(&b) {
                assert_eq!(a.keep, b.keep);
                assert!((a.values[0] - b.values[0]).abs() < 1e-6, "{a:?} and {b:?}");
            }
        }
        assert!(python.normalize(&[]).unwrap().is_empty());
    }
}

/// Groups of about eight; in every third round each has equal rewards.
fn rollout(sample: u64, round: u64, draw: &mut Draw) -> Rollout {
    let group = draw.bits() % 4;
    let reward = if round.is_multiple_of(3) {
        group as f64
    } else {
        draw.unit() * 4.0 - 1.0
    };
    Rollout {
        sample,
        prompt: group,
        group,
        parent: None,
        task: String::new(),
        reward,
        terms: Vec::new(),
        correct: reward > 0.5,
        well_formed: true,
        length: 3,
        tags: Vec::new(),
        segments: Vec::new(),
    }
}

fn stumble(name: &str, mistake: &str) -> (Result<Ending, Diagnostic>, Vec<Event>, Lab) {
    let lab = Lab::with_registry(name, &workspace().join("tests/python/registry.toml"));
    let sets = [("pruner.plugin", "stumbling"), ("pruner.with", mistake)];
    let (result, events) = lab.run("run", DIGITS, &sets, false);
    (result, events, lab)
}

#[test]
fn print_reaches_the_log_and_a_directive_the_run() {
    if !can_build() {
        return;
    }
    let (result, events, _lab) = stumble("python-prints", "{ steps = 5 }");
    let Ok(Ending::Finished(finished)) = result else {
        panic!("{result:?}")
    };
    assert_eq!(finished.steps, 5);
    let said =
        |event: &&Event| matches!(event, Event::Log { text, .. } if text.starts_with("seen "));
    assert_eq!(events.iter().filter(said).count(), 5);
}

#[test]
fn what_a_python_plugin_names_in_saved_outlives_the_process() {
    if !can_build() {
        return;
    }
    // The checkpoint is that of the epoch's end, step 22. A count that began anew there would reach 30 at step 52.
    let (result, _, lab) = stumble("python-saves", "{ mistake = \"exception\", steps = 30 }");
    assert!(result.unwrap_err().to_string().contains("step 30"));
    let sets = [
        ("pruner.plugin", "stumbling"),
        ("pruner.with", "{ mistake = \"exception\", steps = 30 }"),
    ];
    let (resumed, _) = lab.run("run", DIGITS, &sets, true);
    let error = resumed.unwrap_err().to_string();
    assert!(error.contains("step 30"), "{error}");
}

#[test]
fn a_refusal_in_python_is_the_runs_error() {
    if !can_build() {
        return;
    }
    let (result, _, _lab) = stumble("python-refuses", "{ mistake = \"refusal\" }");
    let error = result.unwrap_err().to_string();
    assert!(
        error.contains("this plugin wants no run of 264 steps"),
        "{error}"
    );
}

#[test]
fn an_exception_in_python_ends_the_run_with_its_line() {
    if !can_build() {
        return;
    }
    let (result, _, _lab) = stumble("python-exception", "{ mistake = \"exception\", steps = 1 }");
    let error = result.unwrap_err().to_string();
    for part in [
        "stumbling",
        "on-event",
        "KeyError: 'nowhere'",
        "return {}[\"nowhere\"]",
    ] {
        assert!(error.contains(part), "`{part}` is not in\n{error}");
    }
}

#[test]
fn a_wrong_shape_in_python_names_operation_and_shapes() {
    if !can_build() {
        return;
    }
    let (result, _, _lab) = stumble("python-shape", "{ mistake = \"shape\" }");
    let error = result.unwrap_err().to_string();
    for part in ["stumbling", "add", "[2]", "[3]"] {
        assert!(error.contains(part), "`{part}` is not in\n{error}");
    }
}

#[test]
fn the_module_in_the_guide_is_a_plugin() {
    if !can_build() {
        return;
    }
    let guide = std::fs::read_to_string(workspace().join("docs/writing-a-plugin.md")).unwrap();
    let (_, section) = guide.split_once("## In Python").unwrap();
    let block = |language: &str| {
        let (_, rest) = section.split_once(&format!("```{language}\n")).unwrap();
        rest.split_once("```").unwrap().0
    };
    let lab = Lab::new("python-guide");
    std::fs::write(lab.folder().join("pyproject.toml"), block("toml")).unwrap();
    std::fs::write(lab.folder().join("relative.py"), block("python")).unwrap();
    let entry = r#"schema = 1

[[plugin]]
name = "relative"
version = "0.1.0"
slot = "normalizer"
summary = "Rewards relative to the mean of their group"
interface = "0.1"
licence = "MIT OR Apache-2.0"
source = { path = "." }
"#;
    let registry = lab.folder().join("registry.toml");
    std::fs::write(&registry, entry).unwrap();
    let outcome = Bounds {
        name: String::new(),
        min: 0.0,
        max: 1.0,
    };
    let spec = RewardSpec {
        outcome,
        terms: Vec::new(),
    };
    let scale = [("scale", OptionValue::Float(2.0))];
    let mut relative = Normalizer::of(&registry, "relative", &scale, &spec).unwrap();
    let mut draw = Draw::new(1);
    let batch: Vec<Rollout> = [0.0, 1.0, 1.0]
        .into_iter()
        .map(|reward| Rollout {
            group: 7,
            reward,
            ..rollout(0, 1, &mut draw)
        })
        .collect();
    let expected = [-4.0 / 3.0, 2.0 / 3.0, 2.0 / 3.0];
    for (found, expected) in relative.values(&batch).into_iter().zip(expected) {
        assert!(
            (found - expected).abs() < 1e-12,
            "{found}, expected {expected}"
        );
    }
}

#[test]
fn the_plugins_in_python_keep_the_laws_of_their_slots() {
    if !can_build() {
        return;
    }
    let registry = Registry::load(&workspace().join("registry.toml")).unwrap();
    for name in ["grpo-python", "magnitude-python"] {
        let entry = registry.entry(name).unwrap();
        let resolved = registry.resolve(&[entry], &mut |_| {}).unwrap();
        let report = conformance::check(name, &resolved[0].bytes, &Setup::default()).unwrap();
        let broken: Vec<String> = report
            .broken()
            .map(|(law, fault)| format!("{law}: {}", fault.found))
            .collect();
        assert!(broken.is_empty(), "{name}: {broken:?}");
    }
}
