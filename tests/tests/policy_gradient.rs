//! The trainer `policy-gradient`: its losses and their gradients against calculations by hand, through the host's
//! autograd, and runs that go on after a stop as if there had been none.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use espalier_runtime::events::{Event, Observer};
use espalier_runtime::run::{self, RunOptions};
use espalier_runtime::runfile::{self, Overrides};
use espalier_tests::lab::Lab;
use espalier_tests::workspace;

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

/// A small policy for an environment with tasks.
fn tasks(environment: &str, normalizer: &str, options: &str) -> String {
    format!(
        r#"
[environment]
{environment}
[model]
layers = [
  {{ kind = "embedding", features = 16, deviation = 0.1 }},
  {{ kind = "position" }},
  {{ kind = "transformer-block", features = 16, heads = 2 }},
  {{ kind = "layer-norm" }},
  {{ kind = "tied-linear" }},
]
[schedule]
steps = 12
steps-per-epoch = 12
batch-size = 4
[trainer]
plugin = "policy-gradient"
with = {{ {options} }}
[normalizer]
plugin = "{normalizer}"
"#
    )
}

const SUMS: &str = "plugin = \"modular-arithmetic\"\nwith = { modulus = 10, operands = 10 }";

/// What the trainer said of itself under a name, step after step.
fn metrics(events: &[Event], wanted: &str) -> Vec<f64> {
    let metric = |event: &Event| match event {
        Event::PluginMetric { name, value, .. } if name == wanted => Some(*value),
        _ => None,
    };
    events.iter().filter_map(metric).collect()
}

#[test]
fn one_update_a_step_makes_the_two_clips_one_and_many_do_not() {
    let lab = Lab::new("clips");
    let digest = |name: &str, options: &str| {
        lab.finish(name, &tasks(SUMS, "grpo", options), &[]);
        lab.digest(name)
    };
    assert_eq!(
        digest("ppo-1", "loss = \"ppo\""),
        digest("gppo-1", "loss = \"gppo\"")
    );
    let many = "warm-up-steps = 4, epochs = 8, lr = 0.01, loss =";
    let (ppo, gppo) = (format!("{many} \"ppo\""), format!("{many} \"gppo\""));
    assert_ne!(digest("ppo-8", &ppo), digest("gppo-8", &gppo));
}

#[test]
fn the_divergence_begins_at_0_and_its_coefficient_holds_it_down() {
    let lab = Lab::new("divergence");
    let last = |coefficient: &str| {
        let options = format!("warm-up-steps = 4, lr = 0.01, kl = {coefficient}");
        let (_, events) = lab.finish(coefficient, &tasks(SUMS, "grpo", &options), &[]);
        let kl = metrics(&events, "kl");
        assert_eq!(kl.len(), 8);
        assert!(
            kl[0].abs() < 1e-6 && kl.iter().all(|kl| *kl >= 0.0),
            "{kl:?}"
        );
        kl[7]
    };
    let (loose, tight) = (last("1e-6"), last("10.0"));
    assert!(tight < 0.2 * loose, "{tight} against {loose}");
}

#[test]
fn a_warm_start_ends_after_its_steps_or_at_its_success() {
    let lab = Lab::new("warm-up");
    let rewarded = |name: &str, options: &str| {
        let (_, events) = lab.finish(name, &tasks(SUMS, "grpo", options), &[]);
        metrics(&events, "reward").len()
    };
    assert_eq!(rewarded("none", "warm-up-steps = 0"), 12);
    assert_eq!(rewarded("steps", "warm-up-steps = 5"), 7);
    assert_eq!(
        rewarded("success", "warm-up-steps = 5, warm-up-until = 0.0"),
        12
    );
    assert_eq!(rewarded("all", "warm-up-steps = 99"), 0);
}

#[test]
fn every_group_states_every_budget_and_a_group_that_cannot_is_refused() {
    let lab = Lab::new("budgets");
    let environment = "plugin = \"thinking-budget\"";
    let file = tasks(environment, "hbpo", "budgets = true, group-size = 8");
    let (finished, events) = lab.finish("run", &file, &[]);
    assert!(finished.metrics["test/well-formed"] >= 0.0);
    assert_eq!(metrics(&events, "reward").len(), 12);
    let file = tasks(environment, "hbpo", "budgets = true, group-size = 6");
    let error = lab.run("odd", &file, &[], false).0.unwrap_err().to_string();
    assert!(
        error.contains("must be a multiple of 4, the number of budgets"),
        "{error}"
    );
    let file = tasks(SUMS, "grpo", "budgets = true");
    let error = lab
        .run("none", &file, &[], false)
        .0
        .unwrap_err()
        .to_string();
    assert!(error.contains("the environment states none"), "{error}");
}

#[test]
fn every_loss_and_aggregation_learns_from_steps_and_terms() {
    let lab = Lab::new("losses");
    for (place, loss) in ["reinforce", "ppo", "gppo", "cispo"].iter().enumerate() {
        let aggregation = ["token-mean", "sequence-mean", "sequence-sum"][place % 3];
        let options = format!(
            "loss = \"{loss}\", aggregation = \"{aggregation}\", epochs = 2, minibatches = 2, entropy = 0.01, \
             positive-sft = 0.1, dual-clip = 3.0, temperature = 0.9, top-p = 0.95, warm-up-steps = 2"
        );
        let file = tasks("plugin = \"chain-arithmetic\"", "bnpo", &options);
        let (_, events) = lab.finish(loss, &file, &[]);
        for name in [
            "reward",
            "success",
            "length",
            "entropy",
            "clipped",
            "gradient-norm",
        ] {
            let values = metrics(&events, name);
            assert_eq!(values.len(), 10, "{loss}: {name}");
            assert!(
                values.iter().all(|x| x.is_finite()),
                "{loss}: {name} {values:?}"
            );
        }
        assert!(
            metrics(&events, "gradient-norm")
                .iter()
                .any(|norm| *norm > 0.0)
        );
    }
}

#[test]
fn a_model_without_one_output_a_token_is_refused() {
    let file = tasks(SUMS, "grpo", "").replace("\"tied-linear\"", "\"linear\", features = 7");
    let error = Lab::new("outputs")
        .run("run", &file, &[], false)
        .0
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("7 outputs") || error.contains("15"),
        "{error}"
    );
}

/// Ends the run after a step.
struct StopAfter(Arc<AtomicBool>, u64);

impl Observer for StopAfter {
    fn event(&mut self, event: &Event) {
        if matches!(event, Event::Step { step, .. } if *step == self.1) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

#[test]
fn a_gaussian_policy_that_was_stopped_goes_on_to_the_bit() {
    let file = r#"
[environment]
plugin = "pendulum"
[model]
layers = [{ kind = "linear", features = 16 }, { kind = "tanh" }, { kind = "linear", features = 1 }]
[schedule]
steps = 20
steps-per-epoch = 10
batch-size = 3
evaluation-episodes = 2
[trainer]
plugin = "policy-gradient"
with = { horizon = 24, epochs = 2, minibatches = 3, reward-scale = 0.1 }
"#;
    let lab = Lab::new("pendulum");
    let (whole, _) = lab.finish("whole", file, &[]);
    let path = lab.folder().join("run.toml");
    let plan = runfile::load(&path, &Overrides::default()).unwrap();
    let cancel = Arc::new(AtomicBool::new(false));
    let options = RunOptions {
        out: Some(lab.out("parts")),
        resume: None,
        registry: workspace().join("registry.toml"),
        cancel: cancel.clone(),
    };
    run::execute(&plan, &options, &mut StopAfter(cancel, 13)).unwrap();
    assert_ne!(lab.digest("parts"), lab.digest("whole"));
    let (result, _) = lab.run("parts", file, &[], true);
    result.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(lab.digest("parts"), lab.digest("whole"));
    let metrics = |name| std::fs::read_to_string(lab.out(name).join("metrics.jsonl")).unwrap();
    assert!(metrics("parts") == metrics("whole"));
    assert!(whole.metrics["test/return"] < 0.0);
}
