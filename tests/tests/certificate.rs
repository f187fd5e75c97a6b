//! Certificates hold: what `ibp-certificate` certifies of networks that `ibp-fast` has trained, no attack changes; and the
//! attack is one that changes what can be changed.
#![allow(clippy::unwrap_used)]

use espalier_runtime::events::{Audit, Event};
use espalier_tests::lab::Lab;

const PERCEPTRON: &str = r#"
  { kind = "flatten" },
  { kind = "linear", features = 48 }, { kind = "batch-norm" }, { kind = "relu" },
  { kind = "linear", features = 48 }, { kind = "batch-norm" }, { kind = "relu" },
  { kind = "linear", features = 10 },
"#;

/// Every kind of layer that has bounds.
const CONVOLUTIONS: &str = r#"
  { kind = "conv2d", name = "in", features = 4, kernel = 3, padding = 1 }, { kind = "relu", name = "first" },
  { kind = "conv2d", features = 4, kernel = 3, padding = 1, bias = false }, { kind = "batch-norm" },
  { kind = "add", inputs = ["first", "batch-norm1"] }, { kind = "relu" }, { kind = "identity" },
  { kind = "conv2d", features = 6, kernel = 2, stride = 2 }, { kind = "relu" },
  { kind = "flatten" }, { kind = "linear", features = 10 },
"#;

/// A short run with an audit at its end.
fn audited(name: &str, layers: &str, trainer: &str, audit: &str) -> (Audit, String) {
    let file = format!(
        r#"
[data]
source = "digits"
train-limit = 600
[model]
layers = [{layers}]
[schedule]
epochs = 12
batch-size = 50
evaluate-every = 12
[trainer]
{trainer}
[[auditor]]
plugin = "ibp-certificate"
with = {{ {audit} }}
"#
    );
    let lab = Lab::new(&format!("certificate-{name}"));
    let (_, events) = lab.finish("run", &file, &[]);
    let audit = events.iter().find_map(|event| match event {
        Event::Audited(audit) => Some(audit.clone()),
        _ => None,
    });
    let metrics = std::fs::read_to_string(lab.out("run").join("metrics.jsonl")).unwrap();
    (audit.unwrap(), metrics)
}

fn number(audit: &Audit, name: &str) -> f64 {
    let found = audit.numbers.iter().find(|(n, _)| n == name);
    found.unwrap_or_else(|| panic!("no {name} in {audit:?}")).1
}

const IBP: &str = "plugin = \"ibp-fast\"\nwith = { eps = 0.05 }";

#[test]
fn no_certified_sample_flips_within_its_radius() {
    // Each of 1,000 random inputs, in the largest box that it is certified for.
    let (audit, _) = audited(
        "random",
        PERCEPTRON,
        IBP,
        r#"eps = 0.05, inputs = "random", count = 1000, radius-steps = 14, attack-steps = 40, attack-starts = 6"#,
    );
    assert_eq!(number(&audit, "certified-and-flipped"), 0.0);
    assert_eq!(audit.flagged, Some(false));
    // The claim is about something: nearly every input has a box, and boxes have a size.
    assert!(number(&audit, "with-a-radius") >= 950.0, "{audit:?}");
    assert!(number(&audit, "mean-radius") > 0.005, "{audit:?}");
}

#[test]
fn certificates_hold_through_convolutions_and_sums() {
    let (audit, _) = audited(
        "convolutions",
        CONVOLUTIONS,
        IBP,
        r#"eps = 0.05, inputs = "random", count = 256, radius-steps = 14, attack-steps = 20, attack-starts = 4"#,
    );
    assert_eq!(number(&audit, "certified-and-flipped"), 0.0);
    assert!(number(&audit, "with-a-radius") >= 240.0, "{audit:?}");
    assert!(number(&audit, "mean-radius") > 0.002, "{audit:?}");
}

#[test]
fn the_truth_lies_between_the_attack_and_the_certificate_and_errors_grow_with_eps() {
    let (audit, metrics) = audited(
        "test",
        PERCEPTRON,
        IBP,
        "eps = 0.05, curve = [0.0, 0.01, 0.02, 0.05, 0.1, 0.2]",
    );
    let (clean, attack, verified) = (
        number(&audit, "clean-error"),
        number(&audit, "attack-error"),
        number(&audit, "verified-error"),
    );
    assert!(clean <= attack && attack <= verified, "{audit:?}");
    assert!(attack < 0.5 && verified < 0.7, "{audit:?}");
    let curve: Vec<f64> = audit.tables[0].rows.iter().map(|row| row[1]).collect();
    assert!(curve.windows(2).all(|pair| pair[0] <= pair[1]), "{curve:?}");
    assert_eq!(curve[0], clean);
    assert_eq!(curve[3], verified);
    // The trainer says the same of the same split.
    let own = metrics.lines().find_map(|line| {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        event["ibp-fast/verified-error-test"].as_f64()
    });
    assert!(
        (own.unwrap() - verified).abs() < 1e-12,
        "{own:?}, {verified}"
    );
}

#[test]
fn the_attack_breaks_a_network_that_was_not_trained_against_it() {
    let (audit, _) = audited(
        "plain",
        PERCEPTRON,
        "plugin = \"backprop\"\nwith = { optimizer = \"adam\", lr = 2e-3 }",
        "eps = 0.2",
    );
    assert!(number(&audit, "clean-error") < 0.1, "{audit:?}");
    assert!(number(&audit, "attack-error") > 0.9, "{audit:?}");
    assert_eq!(number(&audit, "verified-error"), 1.0);
}

#[test]
fn bounds_keep_their_width_under_the_papers_initialisation_alone() {
    let layers = r#"
  { kind = "flatten" },
  { kind = "linear", features = 256 }, { kind = "relu" }, { kind = "linear", features = 256 }, { kind = "relu" },
  { kind = "linear", features = 256 }, { kind = "relu" }, { kind = "linear", features = 10 },
"#;
    let width = |init: &str| {
        let file = format!(
            r#"
[data]
source = "digits"
[model]
layers = [{layers}]
[schedule]
steps = 1
batch-size = 64
[trainer]
plugin = "ibp-fast"
with = {{ init = "{init}" }}
"#
        );
        let lab = Lab::new(&format!("certificate-width-{init}"));
        lab.finish("run", &file, &[]);
        let metrics = std::fs::read_to_string(lab.out("run").join("metrics.jsonl")).unwrap();
        let found = metrics.lines().find_map(|line| {
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            event["ibp-fast/width-relu3"].as_f64()
        });
        found.unwrap()
    };
    let (ibp, kaiming) = (width("ibp"), width("kaiming"));
    assert!((0.5..5.0).contains(&ibp), "{ibp}");
    assert!(kaiming > 100.0, "{kaiming}");
}
