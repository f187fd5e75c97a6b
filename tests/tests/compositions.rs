//! The compositions of `examples/`, each at a small size: it runs, and what its plugins promise together holds.
#![allow(clippy::unwrap_used)]

use espalier_runtime::events::{Event, Finished};
use espalier_runtime::run;
use espalier_tests::lab::Lab;
use espalier_tests::workspace;

/// Runs an example for so many epochs.
fn example(lab: &Lab, name: &str, epochs: &str) -> Finished {
    let path = workspace().join("examples").join(format!("{name}.toml"));
    let file = std::fs::read_to_string(&path).unwrap();
    let sets = [("schedule.epochs", epochs), ("run.name", name)];
    let (finished, events) = lab.finish(name, &file, &sets);
    let warnings: Vec<&Event> = events
        .iter()
        .filter(|event| matches!(event, Event::Warning { .. }))
        .collect();
    assert!(warnings.is_empty(), "{name}: {warnings:?}");
    finished
}

/// Whether every weight that a mask removes is 0, and how many of the weights with a mask are.
fn removed(lab: &Lab, name: &str) -> (u64, u64) {
    let set = run::parameters_of(&lab.out(name)).unwrap();
    let (mut dead, mut all) = (0, 0);
    for info in set.infos() {
        let Some(mask) = set.mask(&info.name).unwrap() else {
            continue;
        };
        let values = set.stored(&info.name).unwrap().to_list().unwrap();
        for (value, alive) in values.iter().zip(mask.to_list().unwrap()) {
            all += 1;
            if alive == 0.0 {
                dead += 1;
                assert_eq!(*value, 0.0, "{name}: {}", info.name);
            }
        }
    }
    (dead, all)
}

#[test]
fn blocks_without_propagation_are_pruned_by_magnitude() {
    let lab = Lab::new("noprop-magnitude");
    let finished = example(&lab, "noprop-magnitude", "30");
    let (dead, all) = removed(&lab, "noprop-magnitude");
    // 3 blocks of 74 x 128 and 128 x 10, and the head: all of them, and not the stand-in for the noise.
    assert_eq!(all, 3 * (74 * 128 + 1280) + 100);
    assert!(
        (dead as f64 / all as f64 - 0.8).abs() < 1e-3,
        "{dead} of {all}"
    );
    assert!(finished.metrics["test/accuracy"] > 0.9, "{finished:?}");
}

#[test]
fn a_spiking_network_is_pruned_and_regrown_by_gradient() {
    let lab = Lab::new("sltt-granet");
    let finished = example(&lab, "sltt-granet", "10");
    let (dead, all) = removed(&lab, "sltt-granet");
    assert_eq!(all, 64 * 256 + 256 * 128 + 1280);
    assert!(
        (dead as f64 / all as f64 - 0.9).abs() < 1e-3,
        "{dead} of {all}"
    );
    assert!(finished.metrics["test/accuracy"] > 0.7, "{finished:?}");
}
