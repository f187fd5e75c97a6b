//! A capability is an import: what a component can reach is what it imports, and that is shown and enforced.
#![allow(clippy::unwrap_used)]

use std::process::Command;

use espalier_tests::{espalier, workspace};

fn inspect(name: &str) -> serde_json::Value {
    let output = Command::new(espalier())
        .args(["plugin", "inspect", name, "--json"])
        .current_dir(workspace())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    serde_json::from_slice(&output.stdout).unwrap()
}

fn words(value: &serde_json::Value) -> Vec<&str> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_str().unwrap())
        .collect()
}

#[test]
fn inspect_shows_that_a_pruner_cannot_reach_the_optimiser_or_rollouts() {
    let it = inspect("magnitude");
    assert_eq!(it["slot"], "pruner");
    assert!(!words(&it["imports"]).contains(&"optim"), "{it}");
    let denied = words(&it["denied"]);
    assert!(
        denied.contains(&"optim") && denied.contains(&"rollouts"),
        "{it}"
    );
    assert!(words(&it["imports"]).contains(&"parameters"));
}

#[test]
fn inspect_shows_options_with_defaults_and_documentation() {
    let it = inspect("backprop");
    let options = it["options"].as_array().unwrap();
    let lr = options.iter().find(|o| o["name"] == "lr").unwrap();
    assert_eq!(lr["default"], 0.1);
    assert!(lr["doc"].as_str().unwrap().contains("Learning rate"));
    assert_eq!(it["sha256"].as_str().unwrap().len(), 64);
    assert!(words(&it["imports"]).contains(&"optim"));
}
