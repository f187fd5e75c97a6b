//! The author's road, outside the repository, with nothing but the built command: new, build, test, publish, add and
//! run for every slot, on the SDK that the command carries.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use espalier_tests::{espalier, workspace};

/// The worlds, and what makes the run of each short.
const ROADS: &[(&str, &[&str])] = &[
    ("trainer", &["schedule.epochs=1", "data.train-limit=128"]),
    ("pruner", &["schedule.epochs=1", "data.train-limit=128"]),
    (
        "normalizer",
        &["schedule.steps=2", "trainer.with.warm-up-steps=2"],
    ),
    (
        "normalizer-tracking",
        &["schedule.steps=2", "trainer.with.warm-up-steps=2"],
    ),
    (
        "environment-tasks",
        &["schedule.steps=2", "trainer.with.warm-up-steps=2"],
    ),
    ("environment-mdp", &["schedule.steps=2"]),
    ("tuner", &["schedule.epochs=2"]),
    ("searcher", &["searcher.prompts-per-step=25"]),
    ("auditor", &["schedule.epochs=1", "data.train-limit=128"]),
    ("transform", &["schedule.epochs=1", "data.train-limit=128"]),
    (
        "architecture",
        &["schedule.epochs=1", "data.train-limit=128"],
    ),
];

/// A folder outside the repository, removed with this value.
struct Away(PathBuf);

impl Away {
    fn new(name: &str) -> Away {
        let folder = std::env::temp_dir().join(format!("espalier-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        Away(folder)
    }

    fn command(&self, folder: &Path, args: &[&str]) -> Output {
        let mut command = Command::new(espalier());
        command
            .args(args)
            .current_dir(folder)
            .env("XDG_DATA_HOME", self.0.join("data"))
            .env("XDG_CONFIG_HOME", self.0.join("config"))
            // One folder for all generated crates: their dependencies are compiled once.
            .env("CARGO_TARGET_DIR", workspace().join("target/road"));
        command.output().unwrap()
    }

    /// What a command that must go well says.
    fn says(&self, folder: &Path, args: &[&str]) -> String {
        let output = self.command(folder, args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "espalier {}\n{text}\n{error}",
            args.join(" ")
        );
        text
    }
}

impl Drop for Away {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn from_new_to_run_for_every_slot_and_template() {
    let away = Away::new("road");
    let home = away.0.clone();
    for (slot, sets) in ROADS.iter().copied() {
        for template in ["blank", "example"] {
            let name = format!("my-{slot}-{template}");
            let began = Instant::now();
            away.says(
                &home,
                &[
                    "plugin",
                    "new",
                    &name,
                    "--slot",
                    slot,
                    "--template",
                    template,
                ],
            );
            let folder = home.join(&name);
            let built: serde_json::Value =
                serde_json::from_str(&away.says(&folder, &["plugin", "build", "--json"])).unwrap();
            let told = away.says(&folder, &["plugin", "test"]);
            println!(
                "{name}: {:.1} s to a passing test",
                began.elapsed().as_secs_f64()
            );
            assert!(told.contains("laws hold"), "{told}");

            let registry = home.join("published/registry.toml");
            let registry = registry.display().to_string();
            away.says(
                &home,
                &[
                    "plugin",
                    "publish",
                    &name,
                    "--registry",
                    &registry,
                    "--unsigned",
                ],
            );
            // Somebody else's project: the plugins that the run needs beside this one, and this one added.
            let other = home.join(format!("other-{name}"));
            std::fs::create_dir_all(&other).unwrap();
            away.says(&other, &["plugin", "new", "unused", "--slot", slot]);
            let project = other.join("unused/registry.toml").display().to_string();
            let digest = built["sha256"].as_str().unwrap();
            away.says(
                &other,
                &[
                    "plugin",
                    "add",
                    &name,
                    "--from",
                    &registry,
                    "--registry",
                    &project,
                    "--sha256",
                    digest,
                ],
            );
            let file = folder.join("run.toml").display().to_string();
            let mut args = vec!["run", &file, "--registry", &project, "--out", "out"];
            for set in sets {
                args.extend(["--set", set]);
            }
            away.says(&other, &args);
            assert!(other.join("out/checkpoints").is_dir(), "{name}");
        }
    }
}

#[test]
fn the_generated_crates_own_tests_pass() {
    let away = Away::new("own-tests");
    for (slot, _) in ROADS {
        let name = format!("own-{slot}");
        away.says(
            &away.0,
            &[
                "plugin",
                "new",
                &name,
                "--slot",
                slot,
                "--template",
                "example",
            ],
        );
        let output = Command::new(env!("CARGO"))
            .args(["test", "--quiet"])
            .current_dir(away.0.join(&name))
            .env("CARGO_TARGET_DIR", workspace().join("target/road"))
            .env("RUSTFLAGS", "-D warnings")
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{slot}: {error}");
    }
}

#[test]
fn nothing_that_exists_is_written_over_and_names_that_are_none_are_refused() {
    let away = Away::new("refusals");
    std::fs::create_dir_all(away.0.join("taken")).unwrap();
    std::fs::write(away.0.join("taken/mine"), "mine").unwrap();
    let refused = |args: &[&str]| {
        let output = away.command(&away.0, args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let error = refused(&["plugin", "new", "taken", "--slot", "pruner"]);
    assert!(error.contains("`./taken` is there already"), "{error}");
    assert_eq!(std::fs::read_dir(away.0.join("taken")).unwrap().count(), 1);
    let error = refused(&["plugin", "new", "My_Pruner", "--slot", "pruner"]);
    assert!(error.contains("espalier plugin new my-pruner"), "{error}");
    let error = refused(&["plugin", "new", "thin", "--slot", "prunner"]);
    assert!(error.contains("pruner"), "{error}");
    let error = refused(&[
        "plugin", "new", "thin", "--slot", "pruner", "--sdk", "nowhere",
    ]);
    assert!(error.contains("`nowhere` is not the SDK"), "{error}");
    assert!(!away.0.join("thin").exists());
}

#[test]
fn a_second_plugin_joins_the_registry_of_its_folder() {
    let away = Away::new("second");
    std::fs::write(away.0.join("registry.toml"), "schema = 1\n").unwrap();
    for name in ["first", "second"] {
        away.says(&away.0, &["plugin", "new", name, "--slot", "pruner"]);
    }
    let listed = away.says(&away.0, &["plugin", "list"]);
    for name in ["first", "second", "backprop"] {
        let rows = listed
            .lines()
            .filter(|line| line.split_whitespace().nth(1) == Some(name));
        assert_eq!(rows.count(), 1, "{name} in\n{listed}");
    }
}
