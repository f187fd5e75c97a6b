//! The trainer `policy-gradient`: its losses and their gradients against calculations by hand, through the host's
//! autograd, and runs that go on after a stop as if there had been none.
#![allow(clippy::unwrap_used)]

use espalier_runtime::events::Event;
use espalier_tests::lab::Lab;

/// Losses and gradients (with respect to the log-probability now) of tokens, each given as (ratio, advantage).
fn losses(name: &str, options: &str, tokens: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let now: Vec<f64> = tokens.iter().map(|(ratio, _)| ratio.ln() - 3.0).collect();
    let old = vec![-3.0; tokens.len()];
    let advantages: Vec<f64> = tokens.iter().map(|(_, advantage)| *advantage).collect();
    told(
        name,
        &format!("{options} logprobs = {now:?}\nold = {old:?}\nadvantages = {advantages:?}"),
        tokens.len(),
    )
}

/// What the component tells under these options.
fn told(name: &str, options: &str, count: usize) -> Vec<(f64, f64)> {
    let file = format!(
        "[data]\nsource = \"digits\"\n[model]\nlayers = [{{ kind = \"flatten\" }}, {{ kind = \"linear\", features = 10 }}]\n\
         [schedule]\nsteps = 1\n[trainer]\nplugin = \"token-losses\"\n[trainer.with]\n{options}\n"
    );
    let (_, events) = Lab::hostile(&format!("losses-{name}")).finish("out", &file, &[]);
    let metric = |wanted: String| {
        events.iter().find_map(|event| match event {
            Event::PluginMetric { name, value, .. } if *name == wanted => Some(*value),
            _ => None,
        })
    };
    (0..count)
        .map(|i| {
            (
                metric(format!("loss-{i}")).unwrap(),
                metric(format!("gradient-{i}")).unwrap(),
            )
        })
        .collect()
}

fn close(found: &[(f64, f64)], expected: &[(f64, f64)]) {
    assert_eq!(found.len(), expected.len());
    for (place, (a, b)) in found.iter().zip(expected).enumerate() {
        // Losses beyond 1 in proportion: f32 has seven digits.
        let near = |a: f64, b: f64| (a - b).abs() < 1e-6 * b.abs().max(1.0);
        assert!(
            near(a.0, b.0) && near(a.1, b.1),
            "token {place}: {found:?}, expected {expected:?}"
        );
    }
}

/// The case table of Klear-Reasoner (arXiv 2508.07629): ratio and advantage.
const CASES: [(f64, f64); 8] = [
    (1.5, 1.0),
    (0.5, -1.0),
    (0.5, 1.0),
    (1.5, -1.0),
    (12.0, -1.0),
    (1.0, 1.0),
    (1.0, -0.5),
    (1.5, 0.0),
];

#[test]
fn the_gradient_preserving_clip_has_the_value_of_ppo_and_a_bounded_gradient() {
    let found = losses("gppo", "rule = \"gppo\"\ndual-clip = 10.0\n", &CASES);
    close(
        &found,
        &[
            (-1.28, -1.28),
            (0.8, 0.8),
            (-0.5, -0.5),
            (1.5, 1.5),
            (10.0, 0.0),
            (-1.0, -1.0),
            (0.5, 0.5),
            (0.0, 0.0),
        ],
    );
}

#[test]
fn ppo_has_no_gradient_beyond_the_bound_in_the_rewarded_direction() {
    let found = losses("ppo", "rule = \"ppo\"\ndual-clip = 10.0\n", &CASES);
    close(
        &found,
        &[
            (-1.28, 0.0),
            (0.8, 0.0),
            (-0.5, -0.5),
            (1.5, 1.5),
            (10.0, 0.0),
            (-1.0, -1.0),
            (0.5, 0.5),
            (0.0, 0.0),
        ],
    );
}

#[test]
fn the_betas_scale_the_two_clipped_cases_and_nothing_else() {
    let options = "rule = \"gppo\"\ndual-clip = 10.0\ngppo-betas = [0.25, 0.5]\n";
    let found = losses("betas", options, &CASES[..4]);
    close(
        &found,
        &[(-0.64, -0.64), (0.2, 0.2), (-0.5, -0.5), (1.5, 1.5)],
    );
}

#[test]
fn a_smaller_second_bound_binds_earlier_and_none_not_at_all() {
    let tokens = [(4.0, -1.0), (2.0, -1.0), (4.0, 1.0)];
    let found = losses("dual", "rule = \"gppo\"\ndual-clip = 3.0\n", &tokens);
    close(&found, &[(3.0, 0.0), (2.0, 2.0), (-1.28, -1.28)]);
    let found = losses("no-dual", "rule = \"ppo\"\n", &[(12.0, -1.0)]);
    close(&found, &[(12.0, 12.0)]);
}

#[test]
fn at_ratio_1_every_rule_has_the_gradient_of_reinforce() {
    let tokens = [(1.0, 2.0), (1.0, -3.0), (1.0, 0.0)];
    for rule in ["reinforce", "ppo", "gppo", "cispo"] {
        let found = losses(
            &format!("one-{rule}"),
            &format!("rule = \"{rule}\"\n"),
            &tokens,
        );
        for ((_, gradient), (_, advantage)) in found.iter().zip(tokens) {
            assert!((gradient + advantage).abs() < 1e-6, "{rule}: {found:?}");
        }
    }
}

#[test]
fn cispo_keeps_every_gradient_at_the_clipped_weight() {
    let found = losses("cispo", "rule = \"cispo\"\n", &CASES);
    let gradients: Vec<f64> = found.iter().map(|(_, gradient)| *gradient).collect();
    let weights = [1.28, 0.8, 0.8, 1.28, 1.28, 1.0, 1.0, 1.28];
    for ((gradient, weight), (_, advantage)) in gradients.iter().zip(weights).zip(CASES) {
        assert!(
            (gradient + weight * advantage).abs() < 1e-6,
            "{gradients:?}"
        );
    }
}

#[test]
fn ratios_that_overflow_or_vanish_leave_the_clipped_gradient_exact() {
    let options = "rule = \"gppo\"\nlogprobs = [0.0, -300.0, -300.0]\nold = [-300.0, 0.0, 0.0]\n\
                   advantages = [1.0, -1.0, 1.0]";
    let found = told("extreme", options, 3);
    close(&found[..2], &[(-1.28, -1.28), (0.8, 0.8)]);
    assert!(
        found[2].0.abs() < 1e-6 && found[2].1.abs() < 1e-6,
        "{found:?}"
    );
}

#[test]
fn the_divergence_is_0_where_policies_agree_and_has_the_gradient_1_less_the_ratio() {
    let options = "divergence = true\nlogprobs = [-1.0, -1.0, -2.0]\nold = [-1.0, -2.0, -1.0]";
    let found = told("divergence", options, 3);
    let (less, more) = ((-1.0_f64).exp(), 1.0_f64.exp());
    close(
        &found,
        &[(0.0, 0.0), (less, 1.0 - less), (more - 2.0, 1.0 - more)],
    );
}
