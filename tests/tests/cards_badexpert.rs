//! BaDExpert on its experiment: the card's thresholds, and the null check on a model without a backdoor.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use espalier_runtime::events::Event;
use espalier_tests::lab::Lab;
use espalier_tests::workspace;

/// The audit of the experiment with these changes, and whether the result was flagged.
fn audit(name: &str, sets: &[(&str, &str)]) -> (BTreeMap<String, f64>, Option<bool>) {
    let file = workspace().join("plugins/badexpert/run.toml");
    let text = std::fs::read_to_string(file).unwrap();
    let lab = Lab::new(name);
    let (_, events) = lab.finish("run", &text, sets);
    let audit = events.iter().find_map(|event| match event {
        Event::Audited(audit) => Some(audit.clone()),
        _ => None,
    });
    let audit = audit.unwrap();
    (audit.numbers.into_iter().collect(), audit.flagged)
}

#[test]
fn a_backdoor_is_extracted_and_its_inputs_are_found() {
    let (numbers, flagged) = audit("badexpert", &[]);
    let n = |name: &str| numbers[name];
    assert!(n("attack-success") > 0.9, "{numbers:?}");
    assert!(
        n("expert-attack-success") >= 0.9 && n("expert-accuracy") <= 0.4,
        "{numbers:?}"
    );
    assert!(
        n("auroc") >= 0.95 && n("rejected-suspect") >= 0.9,
        "{numbers:?}"
    );
    assert_eq!(flagged, Some(true));
}

#[test]
fn a_model_without_a_backdoor_is_not_flagged() {
    let (numbers, flagged) = audit("badexpert-null", &[("transform.0.with.fraction", "0")]);
    assert!((0.3..=0.8).contains(&numbers["auroc"]), "{numbers:?}");
    assert_eq!(flagged, Some(false));
}

#[test]
fn the_example_is_audited_before_its_repair_and_after() {
    let file = workspace().join("examples/poisoned-audit.toml");
    let text = std::fs::read_to_string(file).unwrap();
    let lab = Lab::new("poisoned-audit");
    let small = [("schedule.epochs", "12"), ("data.train-limit", "600")];
    let (finished, events) = lab.finish("run", &text, &small);
    let audits = events.iter().filter_map(|event| match event {
        Event::Audited(audit) => Some((audit.stage.as_str(), audit.flagged)),
        _ => None,
    });
    let audits: Vec<_> = audits.collect();
    assert_eq!(audits[0], ("poisoned", Some(true)));
    assert_eq!(audits[1].0, "repair");
    assert!(finished.metrics["poisoned/triggered/accuracy"] > 0.8);
    assert!(finished.metrics["repair/test/accuracy"] > 0.9);
}
