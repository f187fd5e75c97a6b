//! Environments and normalisers that lie, hang or die: the run ends with an error that names the plugin, the call and
//! what was wrong, and nothing of it reaches the trainer as an advantage.
#![allow(clippy::unwrap_used)]

use espalier_tests::lab::Lab;

const FILE: &str = r#"
[environment]
plugin = "bad-environment"

[model]
layers = [
  { kind = "embedding", features = 8 },
  { kind = "position" },
  { kind = "transformer-block", features = 8, heads = 2 },
  { kind = "tied-linear" },
]

[schedule]
steps = 3
batch-size = 3

[trainer]
plugin = "policy-gradient"
with = { warm-up-steps = 0, group-size = 2 }

[normalizer]
plugin = "bad-normalizer"
"#;

/// Runs with these settings; the error's text.
fn error(lab: &Lab, sets: &[(&str, &str)]) -> String {
    match lab.run(&format!("{sets:?}"), FILE, sets, false).0 {
        Err(error) => error.to_string(),
        Ok(ending) => panic!("{sets:?} ended in {ending:?}"),
    }
}

fn told(lab: &Lab, slot: &str, deed: &str, words: &[&str]) {
    let limit = (&*format!("{slot}.limits.call"), "1 s");
    let text = error(lab, &[(&format!("{slot}.with.deed"), deed), limit]);
    for word in words {
        assert!(text.contains(word), "{slot} {deed}: no `{word}` in\n{text}");
    }
}

#[test]
fn what_does_nothing_wrong_runs() {
    Lab::hostile("rollouts-fine").finish("fine", FILE, &[]);
}

#[test]
fn a_bad_environment_is_named_with_what_it_did() {
    let lab = Lab::hostile("bad-environment");
    let cases: [(&str, &[&str]); 12] = [
        (
            "nan-reward",
            &[
                "`bad-environment`",
                "`verify`",
                "the reward is NaN",
                "0 to 1",
            ],
        ),
        ("reward-out-of-range", &["the reward is 1.5", "0 to 1"]),
        (
            "undeclared-term",
            &["the reward terms are style, declared are none"],
        ),
        ("segment-outside", &["a segment is from token 0 to 99"]),
        (
            "loop",
            &[
                "`bad-environment` did not return in time",
                "1 s",
                "`verify`",
            ],
        ),
        (
            "panic",
            &[
                "`bad-environment` panicked",
                "no verdict today",
                "bad-environment/src/lib.rs",
            ],
        ),
        (
            "stop-outside",
            &[
                "`bad-environment`",
                "the stop token is 4, the vocabulary has 4",
            ],
        ),
        ("no-train", &["there is no split `train`"]),
        (
            "endless-test",
            &["the split `test` has 18446744073709551615 prompts"],
        ),
        ("other-prompt", &["returned other prompts"]),
        ("long-prompt", &["is not 1 to 1 tokens of the vocabulary"]),
        ("unknown-token", &["is not 1 to 1 tokens of the vocabulary"]),
    ];
    for (deed, words) in cases {
        told(&lab, "environment", deed, words);
    }
}

#[test]
fn a_bad_normaliser_is_named_with_what_it_did() {
    let lab = Lab::hostile("bad-normalizer");
    let cases: [(&str, &[&str]); 9] = [
        (
            "not-a-number",
            &[
                "`bad-normalizer`",
                "`normalize`",
                "the advantage NaN for rollout 0",
            ],
        ),
        ("short", &["returned 5 advantages for 6 rollouts"]),
        ("segments", &["returned 2 values for rollout 0"]),
        (
            "refuse",
            &[
                "`bad-normalizer` refuses a batch",
                "I do not like these rewards",
            ],
        ),
        ("loop", &["`bad-normalizer` did not return in time", "1 s"]),
        (
            "panic",
            &["`bad-normalizer` panicked", "no advantages today"],
        ),
        ("negative-weight", &["`prompt-weights`", "the weight -1"]),
        ("weight-of-nobody", &["returned 4 weights for 3 prompts"]),
        ("panic-in-observe", &["`observe`", "I do not want to know"]),
    ];
    for (deed, words) in cases {
        told(&lab, "normalizer", deed, words);
    }
}

#[test]
fn a_normaliser_that_imports_tensors_or_parameters_is_refused_before_anything_runs() {
    let lab = Lab::hostile("peeking-normalizer");
    let text = error(&lab, &[("normalizer.plugin", "peeking-normalizer")]);
    assert!(
        text.contains("imports something that a normalizer is not granted"),
        "{text}"
    );
    assert!(
        text.contains("espalier:plugin/parameters") || text.contains("espalier:plugin/tensors"),
        "{text}"
    );
    assert!(
        !lab.out(&format!(
            "{:?}",
            [("normalizer.plugin", "peeking-normalizer")]
        ))
        .exists()
    );
}
