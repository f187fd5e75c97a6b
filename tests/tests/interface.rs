//! What a released interface promised, `wit/` still holds: docs/interface.md says what may change when.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use espalier_runtime::component::INTERFACE;
use espalier_tests::lab::Lab;
use espalier_tests::workspace;
use wit_component::semver_check;
use wit_parser::{PackageId, Resolve};

/// The `.wit` files of a folder as one text each, with the package's version exchanged.
fn package(resolve: &mut Resolve, folder: &Path, version: &str) -> PackageId {
    static COPIES: AtomicUsize = AtomicUsize::new(0);
    let copy = std::env::temp_dir().join(format!(
        "espalier-interface-{}-{}",
        std::process::id(),
        COPIES.fetch_add(1, Ordering::Relaxed)
    ));
    let _ = std::fs::remove_dir_all(&copy);
    std::fs::create_dir_all(&copy).unwrap();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "wit") {
            let text = std::fs::read_to_string(&path).unwrap();
            let (head, tail) = text.split_once("package espalier:plugin@").unwrap();
            let (_, tail) = tail.split_once(';').unwrap();
            let text = format!("{head}package espalier:plugin@{version};{tail}");
            std::fs::write(copy.join(path.file_name().unwrap()), text).unwrap();
        }
    }
    let (id, _) = resolve.push_dir(&copy).unwrap();
    std::fs::remove_dir_all(&copy).unwrap();
    id
}

/// Worlds of `old` that a component built for it could not be loaded with any more, and why.
fn broken(old: &Path, new: &Path) -> Vec<String> {
    let mut resolve = Resolve::default();
    // Two packages of one name need two versions; the check itself ignores them.
    let old = package(&mut resolve, old, "0.0.1");
    let new = package(&mut resolve, new, "0.0.2");
    let worlds: Vec<_> = resolve.packages[old].worlds.clone().into_iter().collect();
    worlds
        .into_iter()
        .filter_map(|(name, before)| {
            let Some(&now) = resolve.packages[new].worlds.get(&name) else {
                return Some(format!("world {name} is gone"));
            };
            semver_check(resolve.clone(), before, now)
                .err()
                .map(|error| format!("world {name}: {error:#}"))
        })
        .collect()
}

fn releases() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir(workspace().join("wit/releases"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    found.sort();
    found
}

/// The part of a version below which nothing may break: `0.1` of 0.1.7, `2` of 2.3.0.
fn line_of(version: &str) -> String {
    let parts: Vec<&str> = version.split('.').collect();
    match parts[0] {
        "0" => format!("0.{}", parts[1]),
        major => major.to_string(),
    }
}

#[test]
fn the_interface_of_this_version_is_frozen_and_holds_what_its_releases_promised() {
    let wit = workspace().join("wit");
    let mut same_line = 0;
    for release in releases() {
        let version = release.file_name().unwrap().to_str().unwrap().to_string();
        if line_of(&version) != line_of(INTERFACE) {
            continue;
        }
        same_line += 1;
        let broken = broken(&release, &wit);
        assert!(
            broken.is_empty(),
            "wit/ no longer loads components built for {version}; docs/interface.md says what to do:\n{}",
            broken.join("\n")
        );
    }
    assert!(
        same_line > 0,
        "wit/releases holds nothing of the line of {INTERFACE}; docs/interface.md says how a release is frozen"
    );
}

#[test]
fn the_check_sees_what_would_break_a_plugin_and_lets_additions_pass() {
    let wit = workspace().join("wit");
    let folder = std::env::temp_dir().join(format!("espalier-interface-{}", std::process::id()));
    let changed = |file: &str, from: &str, to: &str| {
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        for entry in std::fs::read_dir(&wit).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
            }
        }
        let path = folder.join(file);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "`{from}` is not in {file}");
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        let broken = broken(&wit, &folder);
        std::fs::remove_dir_all(&folder).unwrap();
        broken
    };
    let tanh = "tanh: func(t: borrow<tensor>) -> tensor;";
    let added = format!("{tanh}\n    sinh: func(t: borrow<tensor>) -> tensor;");
    assert_eq!(changed("tensors.wit", tanh, &added), Vec::<String>::new());

    // Only the slots that have tensors notice: all but normalisers and environments.
    let gone = changed("tensors.wit", tanh, "");
    assert_eq!(gone.len(), 7, "{gone:?}");
    assert_eq!(
        changed(
            "tensors.wit",
            tanh,
            "tanh: func(t: borrow<tensor>, x: f64) -> tensor;"
        )
        .len(),
        7
    );
    // A field more in a record that crosses, a case more in an answer.
    assert!(!changed("slots.wit", "loss: f64,", "loss: f64,\n        worst: f64,").is_empty());
    assert!(!changed("slots.wit", "%continue,", "%continue,\n        pause,").is_empty());
    // A slot's new duty.
    let save = "save: func() -> state;";
    assert!(
        !changed(
            "slots.wit",
            save,
            "save: func() -> state;\n    pause: func();"
        )
        .is_empty()
    );
}

#[test]
fn components_built_for_the_interface_long_ago_load_and_run() {
    let lab = Lab::with_registry(
        "interface",
        &workspace().join("tests/interface/registry.toml"),
    );
    let file = r#"
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
        with = { sparsity = 0.8 }
    "#;
    let (finished, _) = lab.finish("digits", file, &[]);
    assert!(
        finished.metrics["test/accuracy"] > 0.9,
        "{:?}",
        finished.metrics
    );
    assert!(
        (finished.metrics["sparsity"] - 0.8).abs() < 1e-3,
        "{:?}",
        finished.metrics
    );

    let example = std::fs::read_to_string(workspace().join("examples/arithmetic-rl.toml")).unwrap();
    let sets = [
        ("schedule.epochs", "1"),
        ("schedule.steps-per-epoch", "8"),
        ("normalizer.plugin", "grpo"),
    ];
    let (finished, _) = lab.finish("arithmetic", &example, &sets);
    assert_eq!(finished.steps, 8);
}
