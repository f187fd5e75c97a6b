//! The exact checks of the methods: known numbers go in, the component itself computes, and what comes out is
//! compared with a calculation by hand. Those of pure functions stand beside them in `plugins/`.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::f64::consts::{LN_2, SQRT_2};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use espalier_runtime::checkpoint;
use espalier_runtime::events::{Event, Observer};
use espalier_runtime::host::bindings::trainer::espalier::plugin::run::{Directive, EventKind};
use espalier_runtime::parameters::ParameterSet;
use espalier_runtime::run::{self, RunOptions};
use espalier_runtime::runfile::{self, Overrides};
use espalier_tests::bench::{Bench, Targets};
use espalier_tests::lab::Lab;
use espalier_tests::workspace;

fn close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: {found:?}");
    for (a, b) in found.iter().zip(expected) {
        assert!(
            (a - b).abs() < 2e-6,
            "{what}: {found:?}, expected {expected:?}"
        );
    }
}

fn all_zero(values: &[f64]) -> bool {
    values.iter().all(|x| *x == 0.0)
}

/// Two hidden blocks of 2 units, and a last layer of 2.
const TWO_HIDDEN: &str = r#"
[model]
layers = [
  { kind = "linear", features = 2 }, { kind = "relu" },
  { kind = "linear", features = 2 }, { kind = "relu" },
  { kind = "linear", features = 2 },
]
"#;

const IDENTITY: [f64; 4] = [1.0, 0.0, 0.0, 1.0];

// Mono-Forward

/// The input [1, 2], of class 0, reaches the first projection as it is; the last layer says nothing.
fn mono_forward(name: &str, options: &str) -> Bench {
    let file =
        format!("{TWO_HIDDEN}\n[trainer]\nplugin = \"mono-forward\"\nwith = {{ {options} }}");
    let bench = Bench::new(name, &[&[1.0, 2.0]], Targets::Classes(&[0], 2), 2, &file);
    bench.set("linear1.weight", &IDENTITY);
    bench.set("linear1.bias", &[0.0, 0.0]);
    bench.set("projections/projection0", &IDENTITY);
    bench.set("linear2.weight", &[1.0, 0.5, 0.25, 1.0]);
    bench.set("linear2.bias", &[0.0, 0.0]);
    bench.set("linear3.weight", &[0.0; 4]);
    bench.set("linear3.bias", &[0.0, 0.0]);
    bench
}

#[test]
fn mono_forward_has_the_known_goodness_loss_and_gradients() {
    let bench = mono_forward("mono-forward", "predict = \"sum\"");
    // G = a M' = [1, 2]; the last layer adds zeros.
    close(&bench.predict(), &[1.0, 2.0], "goodness");
    // ln(1 + e) for the first layer, ln 2 for the silent last one.
    let loss = bench.objective().to_list().unwrap();
    close(&loss, &[1.313262 + LN_2], "losses");
    close(&[bench.step(0)], &[LN_2], "loss of the last layer");
    // g = softmax(G) - Y = [-s, s] with s = e / (1 + e); dM = g' a, dW = (g M)' x, db = g M.
    let dm = [-0.731059, -1.462117, 0.731059, 1.462117];
    close(
        &bench.gradient("projections/projection0").unwrap(),
        &dm,
        "dM",
    );
    close(&bench.gradient("linear1.weight").unwrap(), &dm, "dW");
    close(
        &bench.gradient("linear1.bias").unwrap(),
        &[-0.731059, 0.731059],
        "db",
    );
}

#[test]
fn the_next_layer_of_mono_forward_learns_from_what_the_first_gives() {
    let bench = mono_forward("mono-forward-next", "");
    bench.set("linear3.weight", &IDENTITY);
    bench.step(0);
    // a = [1, 2], then [1 + 1, 0.25 + 2] = G; g = [-s, s] with s = 1 / (1 + e^-0.25).
    let s = 1.0 / (1.0 + (-0.25f64).exp());
    close(
        &bench.gradient("linear2.weight").unwrap(),
        &[-s, -2.0 * s, s, 2.0 * s],
        "dW",
    );
    close(
        &bench.gradient("linear3.weight").unwrap(),
        &[-2.0 * s, -2.25 * s, 2.0 * s, 2.25 * s],
        "dW of the last layer",
    );
}

#[test]
fn a_silent_unit_of_mono_forward_learns_nothing() {
    let bench = mono_forward("mono-forward-silent", "");
    bench.set("linear1.weight", &[1.0, 0.0, 0.0, -1.0]);
    // a = [1, 0], G = [1, 0]: g = [s - 1, 1 - s] with s = e / (1 + e), and the second row is behind its ReLU.
    bench.step(0);
    let g = 0.268941;
    close(
        &bench.gradient("linear1.weight").unwrap(),
        &[-g, -2.0 * g, 0.0, 0.0],
        "dW",
    );
    close(
        &bench.gradient("projections/projection0").unwrap(),
        &[-g, 0.0, g, 0.0],
        "dM",
    );
}

#[test]
fn mono_forward_without_hidden_layers_is_multinomial_logistic_regression() {
    let (rows, labels) = ([[0.5, -1.0], [2.0, 0.25], [-0.75, 1.5]], [2usize, 0, 1]);
    let file = r#"
[model]
layers = [{ kind = "linear", features = 3, bias = false }]
[trainer]
plugin = "mono-forward"
with = { lr = 0.05 }
"#;
    let inputs: Vec<&[f64]> = rows.iter().map(|row| &row[..]).collect();
    let bench = Bench::new(
        "regression",
        &inputs,
        Targets::Classes(&[2, 0, 1], 3),
        20,
        file,
    );
    let mut weight = [0.3, -0.2, 0.1, 0.4, -0.5, 0.25];
    bench.set("linear1.weight", &weight);
    let (mut first, mut second) = ([0.0; 6], [0.0; 6]);
    for step in 0..20 {
        // dW = (softmax(x W') - Y)' x / 3, then Adam.
        let (mut gradient, mut loss) = ([0.0; 6], 0.0);
        for (x, &label) in rows.iter().zip(&labels) {
            let e: Vec<f64> = (0..3)
                .map(|c| (weight[2 * c] * x[0] + weight[2 * c + 1] * x[1]).exp())
                .collect();
            let sum: f64 = e.iter().sum();
            loss -= (e[label] / sum).ln() / 3.0;
            for c in 0..3 {
                let error = e[c] / sum - f64::from(u8::from(c == label));
                gradient[2 * c] += error * x[0] / 3.0;
                gradient[2 * c + 1] += error * x[1] / 3.0;
            }
        }
        close(&[bench.step(step)], &[loss], "loss");
        if step == 0 {
            close(&bench.gradient("linear1.weight").unwrap(), &gradient, "dW");
        }
        let t = step as i32 + 1;
        for i in 0..6 {
            first[i] = 0.9 * first[i] + 0.1 * gradient[i];
            second[i] = 0.999 * second[i] + 0.001 * gradient[i] * gradient[i];
            let (m, v) = (
                first[i] / (1.0 - 0.9f64.powi(t)),
                second[i] / (1.0 - 0.999f64.powi(t)),
            );
            weight[i] -= 0.05 * m / (v.sqrt() + 1e-8);
        }
        close(&bench.value("linear1.weight"), &weight, "weights");
    }
}

#[test]
fn no_loss_of_mono_forward_reaches_another_layer() {
    // The first layer's own loss gives its weights no gradient, the second's has one.
    let bench = mono_forward("mono-forward-second", "");
    bench.set("projections/projection0", &[0.0; 4]);
    bench.set("linear3.weight", &IDENTITY);
    assert!(all_zero(&bench.gradient_of_objective("linear1.weight")));
    assert!(!all_zero(&bench.gradient_of_objective("linear2.weight")));
    bench.step(0);
    assert!(all_zero(&bench.gradient("linear1.weight").unwrap()));
    assert!(!all_zero(&bench.gradient("linear2.weight").unwrap()));
    assert!(!all_zero(
        &bench.gradient("projections/projection0").unwrap()
    ));
    // The other way round.
    let bench = mono_forward("mono-forward-first", "");
    assert!(!all_zero(&bench.gradient_of_objective("linear1.weight")));
    assert!(all_zero(&bench.gradient_of_objective("linear2.weight")));
    bench.step(0);
    assert!(!all_zero(&bench.gradient("linear1.weight").unwrap()));
    assert!(all_zero(&bench.gradient("linear2.weight").unwrap()));
}

#[test]
fn greedy_mono_forward_leaves_the_other_layers_bits_alone() {
    let bench = mono_forward("mono-forward-greedy", "greedy = true");
    bench.set("linear3.weight", &IDENTITY);
    let names = [
        "linear1.weight",
        "linear1.bias",
        "projections/projection0",
        "linear2.weight",
        "linear2.bias",
        "linear3.weight",
        "linear3.bias",
    ];
    for (step, learning) in [0..3, 3..7].into_iter().enumerate() {
        let before: Vec<Vec<f64>> = names.iter().map(|name| bench.value(name)).collect();
        bench.step(step as u64);
        for (i, name) in names.iter().enumerate() {
            let same = bench.value(name) == before[i];
            assert_eq!(same, !learning.contains(&i), "{name} in step {step}");
        }
    }
}

// Forward-Forward

/// One hidden unit that sees the third or fourth of the inputs [_, _, 3, 4]; the label stands in the first two.
fn forward_forward(name: &str, options: &str) -> Bench {
    let file = format!(
        r#"
[model]
layers = [
  {{ kind = "linear", features = 1, bias = false }}, {{ kind = "relu" }}, {{ kind = "linear", features = 2 }},
]
[trainer]
plugin = "forward-forward"
with = {{ {options} }}
"#
    );
    let sample: &[f64] = &[7.0, 9.0, 3.0, 4.0];
    Bench::new(name, &[sample], Targets::Classes(&[0], 2), 2, &file)
}

#[test]
fn forward_forward_sees_directions_only() {
    let bench = forward_forward("forward-forward", "label-scale = 0");
    // |[0, 0, 3, 4]| = 5: the unit sees 0.6 or 0.8, whatever the label.
    bench.set("linear1.weight", &[5.0, 5.0, 1.0, 0.0]);
    close(&bench.predict(), &[0.36, 0.36], "goodness");
    bench.set("linear1.weight", &[5.0, 5.0, 0.0, 1.0]);
    close(&bench.predict(), &[0.64, 0.64], "goodness");
}

#[test]
fn forward_forward_at_the_threshold_loses_two_ln_two() {
    let bench = forward_forward("forward-forward-loss", "label-scale = 0");
    // Goodness (0.6 w)^2 = 2 = theta with either label.
    bench.set("linear1.weight", &[0.0, 0.0, SQRT_2 / 0.6, 0.0]);
    close(
        &bench.objective().to_list().unwrap(),
        &[2.0 * LN_2],
        "losses",
    );
    close(&[bench.step(0)], &[2.0 * LN_2], "loss of the step");
}

#[test]
fn forward_forward_raises_the_right_label_and_lowers_the_wrong_one() {
    let bench = forward_forward("forward-forward-label", "");
    // |[1, 0, 3, 4]| = |[0, 1, 3, 4]| = sqrt 26. With the activity h = sqrt 2 for both labels the losses have slope
    // -1/2 and 1/2 in the goodness, so dW = h (x(wrong) - x(right)).
    let length = 26f64.sqrt();
    bench.set("linear1.weight", &[0.0, 0.0, SQRT_2 * length / 3.0, 0.0]);
    close(&[bench.step(0)], &[2.0 * LN_2], "loss");
    let slope = SQRT_2 / length;
    close(
        &bench.gradient("linear1.weight").unwrap(),
        &[-slope, slope, 0.0, 0.0],
        "dW",
    );
}

#[test]
fn no_loss_of_forward_forward_reaches_another_layer() {
    let file = r#"
[model]
layers = [
  { kind = "linear", features = 2, bias = false }, { kind = "relu" },
  { kind = "linear", features = 1, bias = false }, { kind = "relu" },
  { kind = "linear", features = 2 },
]
[trainer]
plugin = "forward-forward"
with = { label-scale = 0 }
"#;
    let sample: &[f64] = &[7.0, 9.0, 1.0, 0.0];
    let bench = Bench::new(
        "forward-forward-local",
        &[sample],
        Targets::Classes(&[0], 2),
        2,
        file,
    );
    // Right and wrong label look alike. In the first layer both have the goodness 1 + 1 = theta, where the two
    // slopes cancel to the last bit; in the second both have 1/2, where they do not.
    bench.set("linear1.weight", &[0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
    bench.set("linear2.weight", &[1.0, 0.0]);
    assert!(all_zero(&bench.gradient_of_objective("linear1.weight")));
    assert!(!all_zero(&bench.gradient_of_objective("linear2.weight")));
    bench.step(0);
    assert!(all_zero(&bench.gradient("linear1.weight").unwrap()));
    assert!(!all_zero(&bench.gradient("linear2.weight").unwrap()));
}

// Cascaded-Forward

/// The last layer is certain of class 0 to the last bit, for the input [1, 2].
fn cascaded_forward(name: &str, class: i64, options: &str) -> Bench {
    let file =
        format!("{TWO_HIDDEN}\n[trainer]\nplugin = \"cascaded-forward\"\nwith = {{ {options} }}");
    let bench = Bench::new(
        name,
        &[&[1.0, 2.0]],
        Targets::Classes(&[class], 2),
        2,
        &file,
    );
    bench.set("linear1.weight", &[1.0, 0.5, -1.0, 0.0]);
    bench.set("linear1.bias", &[0.0, 0.0]);
    bench.set("linear2.weight", &IDENTITY);
    bench.set("linear2.bias", &[0.0, 0.0]);
    bench.set("linear3.weight", &[0.0; 4]);
    bench.set("linear3.bias", &[200.0, -200.0]);
    bench
}

#[test]
fn without_an_error_cascaded_forward_moves_no_block() {
    let bench = cascaded_forward("cascaded-forward-right", 0, "");
    let names = [
        "linear1.weight",
        "linear1.bias",
        "linear2.weight",
        "linear2.bias",
    ];
    let before: Vec<Vec<f64>> = names.iter().map(|name| bench.value(name)).collect();
    bench.step(0);
    for (name, before) in names.iter().zip(before) {
        assert!(all_zero(&bench.gradient(name).unwrap()), "{name}");
        assert_eq!(bench.value(name), before, "{name}");
    }
}

#[test]
fn cascaded_forward_sends_the_error_through_its_fixed_feedback() {
    let bench = cascaded_forward("cascaded-forward-wrong", 1, "");
    let feedback = bench.value("predictors/feedback0");
    bench.step(0);
    // e = softmax - one-hot = [1, -1], so the block's output gets e B = B_0 - B_1; its second unit is behind the
    // ReLU. dW = (e B)' x.
    let at_first = feedback[0] - feedback[2];
    assert!(at_first.abs() > 1e-3, "{feedback:?} shows nothing");
    close(
        &bench.gradient("linear1.weight").unwrap(),
        &[at_first, 2.0 * at_first, 0.0, 0.0],
        "dW",
    );
    assert_eq!(bench.value("predictors/feedback0"), feedback);
    // What reaches the first block comes through the feedback and in no other way.
    let bench = cascaded_forward("cascaded-forward-deaf", 1, "");
    bench.set("predictors/feedback0", &[0.0; 4]);
    bench.set("linear3.weight", &[0.5, 1.0, -1.0, 2.0]);
    bench.step(0);
    assert!(all_zero(&bench.gradient("linear1.weight").unwrap()));
    assert!(!all_zero(&bench.gradient("linear2.weight").unwrap()));
}

#[test]
fn every_row_of_the_feedback_has_length_one() {
    let file = r#"
[model]
layers = [
  { kind = "linear", features = 30 }, { kind = "relu" },
  { kind = "linear", features = 7 }, { kind = "relu" },
  { kind = "linear", features = 5 }, { kind = "relu" },
  { kind = "linear", features = 4 },
]
[trainer]
plugin = "cascaded-forward"
"#;
    let bench = Bench::new(
        "feedback",
        &[&[1.0, 2.0]],
        Targets::Classes(&[3], 4),
        2,
        file,
    );
    for (name, width) in [("predictors/feedback0", 30), ("predictors/feedback1", 7)] {
        let feedback = bench.value(name);
        assert_eq!(feedback.len(), 4 * width, "{name}");
        for row in feedback.chunks(width) {
            let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
            assert!((length - 1.0).abs() < 1e-6, "{name}: {length}");
        }
        assert!(feedback[..width] != feedback[width..2 * width], "{name}");
    }
}

#[test]
fn no_predictor_of_cascaded_forward_reaches_another_block() {
    let bench = cascaded_forward("cascaded-forward-local", 1, "method = \"rand-ce\"");
    // The first predictor says nothing, so its loss has no gradient in the first block; the last one's has one.
    bench.set("predictors/weight0", &[0.0; 4]);
    bench.set("linear3.weight", &[0.5, 1.0, -1.0, 2.0]);
    assert!(all_zero(&bench.gradient_of_objective("linear1.weight")));
    assert!(!all_zero(&bench.gradient_of_objective("linear2.weight")));
    bench.step(0);
    for name in ["linear1.weight", "linear2.weight"] {
        assert!(bench.gradient(name).is_none(), "{name}");
    }
    assert!(!all_zero(&bench.gradient("predictors/weight0").unwrap()));
    assert!(!all_zero(&bench.gradient("linear3.weight").unwrap()));
}

// GraNet

#[test]
fn granet_grows_where_the_gradient_of_dead_weights_is_largest() {
    // One output of weights [4, 3, 2, 1], the last dead: w x = 1.6, so with the target 1.1 the gradient is x.
    let file = r#"
[model]
layers = [{ kind = "linear", features = 1, bias = false }]
[trainer]
plugin = "backprop"
[pruner]
plugin = "granet"
with = { end = 0, every-steps = 1, regrow-rate = 0.3333333333333333, regrow-rate-end = 0.3333333333333333 }
"#;
    let sample: &[f64] = &[0.1, 0.2, 0.3, 0.9];
    let mut bench = Bench::new("granet", &[sample], Targets::Values(&[1.1]), 10, file);
    bench.set("linear1.weight", &[4.0, 3.0, 2.0, 1.0]);
    bench.set_mask("linear1.weight", &[1.0, 1.0, 1.0, 0.0]);
    close(
        &bench.gradient_of_objective("linear1.weight"),
        sample,
        "gradient",
    );
    bench.event(EventKind::Step, 2);
    assert_eq!(bench.mask("linear1.weight"), [1.0, 1.0, 0.0, 1.0]);
    assert_eq!(bench.value("linear1.weight"), [4.0, 3.0, 0.0, 0.0]);
}

#[test]
fn regrowth_keeps_the_count_of_every_layer() {
    let file = |rate: f64, seed: u64| {
        format!(
            r#"
[run]
seed = {seed}
[model]
layers = [
  {{ kind = "linear", features = 12 }}, {{ kind = "relu" }},
  {{ kind = "linear", features = 9 }}, {{ kind = "relu" }},
  {{ kind = "linear", features = 5 }}, {{ kind = "relu" }},
  {{ kind = "linear", features = 3 }},
]
[trainer]
plugin = "backprop"
[pruner]
plugin = "granet"
with = {{ end = 0, every-steps = 1, regrow-rate = {rate}, regrow-rate-end = {rate} }}
"#
        )
    };
    let rows: [&[f64]; 3] = [
        &[0.5, -1.0, 0.25, 2.0],
        &[2.0, 0.25, -1.5, 0.75],
        &[-0.75, 1.5, 1.0, -0.5],
    ];
    // One living weight, about a third, all but one, and all.
    let sizes = [48, 108, 45, 15];
    let alive: [fn(usize) -> bool; 4] = [|i| i == 7, |i| i % 3 == 1, |i| i != 20, |_| true];
    let names: Vec<String> = (1..=4).map(|i| format!("linear{i}.weight")).collect();
    let mut moved = [false; 4];
    for (seed, rate) in [(0, 0.5), (1, 0.1), (2, 1.0), (3, 0.01)] {
        let mut bench = Bench::new(
            "regrowth",
            &rows,
            Targets::Classes(&[2, 0, 1], 3),
            12,
            &file(rate, seed),
        );
        let masks: Vec<Vec<f64>> = sizes
            .iter()
            .zip(alive)
            .map(|(&n, alive)| (0..n).map(|i| f64::from(u8::from(alive(i)))).collect())
            .collect();
        for (name, mask) in names.iter().zip(&masks) {
            bench.set_mask(name, mask);
        }
        for step in 2..12 {
            bench.step(step - 1);
            bench.event(EventKind::Step, step);
            for (i, (name, first)) in names.iter().zip(&masks).enumerate() {
                let mask = bench.mask(name);
                let count = |mask: &[f64]| mask.iter().sum::<f64>();
                assert_eq!(count(&mask), count(first), "{name}, rate {rate}, {step}");
                moved[i] |= mask != *first;
                for (value, alive) in bench.value(name).iter().zip(&mask) {
                    assert!(*alive == 1.0 || *value == 0.0, "{name}: {value}");
                }
            }
        }
    }
    // A layer that is full stays full; all others must have moved, or nothing was shown.
    assert_eq!(moved, [true, true, true, false]);
}

// Lottery ticket and magnitude

#[test]
fn the_lottery_ticket_cuts_exactly_the_rounded_count_of_survivors() {
    let file = r#"
[model]
layers = [{ kind = "linear", features = 1, bias = false }]
[trainer]
plugin = "backprop"
[pruner]
plugin = "lottery-ticket"
with = { rate = 0.2, last-layer = 1.0, rounds = 2 }
"#;
    let sample: &[f64] = &[1.0; 5];
    let mut bench = Bench::new("ticket-count", &[sample], Targets::Values(&[1.0]), 1, file);
    bench.set("linear1.weight", &[5.0, -1.0, 4.0, -2.0, 3.0]);
    let ticket = |directive| matches!(directive, Directive::Rewind(tag) if tag == "ticket");
    // round(0.2 * 5) = 1 goes, and not the two that `<=` with the threshold 2 would take.
    assert!(ticket(bench.event(EventKind::Round, 1)));
    assert_eq!(bench.mask("linear1.weight"), [1.0, 0.0, 1.0, 1.0, 1.0]);
    // round(0.2 * 4) = 1 of those that are left.
    assert!(ticket(bench.event(EventKind::Round, 1)));
    assert_eq!(bench.mask("linear1.weight"), [1.0, 0.0, 1.0, 0.0, 1.0]);
    let last = bench.event(EventKind::Round, 1);
    assert!(matches!(last, Directive::Continue), "{last:?}");
}

/// Masks of two layers with these weights after the pruner's first pruning.
fn masks_of_two_layers(name: &str, pruner: &str, first: &[f64], second: &[f64]) -> [Vec<f64>; 2] {
    let classes = second.len();
    let file = format!(
        r#"
[model]
layers = [
  {{ kind = "linear", features = 1, bias = false }}, {{ kind = "linear", features = {classes}, bias = false }},
]
[trainer]
plugin = "backprop"
[pruner]
{pruner}
"#
    );
    let sample = vec![1.0; first.len()];
    let mut bench = Bench::new(
        name,
        &[&sample],
        Targets::Classes(&[0], classes as u32),
        2,
        &file,
    );
    bench.set("linear1.weight", first);
    bench.set("linear2.weight", second);
    bench.event(EventKind::Step, 1);
    bench.event(EventKind::Round, 2);
    [bench.mask("linear1.weight"), bench.mask("linear2.weight")]
}

#[test]
fn global_ranking_takes_the_smallest_of_all_and_layer_ranking_of_each() {
    let third = "0.3333333333333333";
    let pruners = |scope: &str, rate: &str| {
        [
            format!(
                "plugin = \"lottery-ticket\"\nwith = {{ rate = {rate}, last-layer = 1.0, rounds = 1, scope = \"{scope}\" }}"
            ),
            format!(
                "plugin = \"magnitude\"\nwith = {{ sparsity = {rate}, when = \"one-shot\", scope = \"{scope}\" }}"
            ),
        ]
    };
    let (first, second) = ([1.0, -2.0, 5.0], [3.0, -4.0, 6.0]);
    for pruner in pruners("global", third) {
        let masks = masks_of_two_layers("global", &pruner, &first, &second);
        assert_eq!(masks, [[0.0, 0.0, 1.0], [1.0, 1.0, 1.0]], "{pruner}");
    }
    for pruner in pruners("layer", third) {
        let masks = masks_of_two_layers("layer", &pruner, &first, &second);
        assert_eq!(masks, [[0.0, 1.0, 1.0], [0.0, 1.0, 1.0]], "{pruner}");
    }
    // {1, 2} and {3, 4} at 50 %: the global ranking would leave the first layer without a weight; its largest stays.
    for pruner in pruners("global", "0.5") {
        let masks = masks_of_two_layers("guard", &pruner, &first[..2], &second[..2]);
        assert_eq!(masks, [[0.0, 1.0], [0.0, 1.0]], "{pruner}");
    }
    for pruner in pruners("layer", "0.5") {
        let masks = masks_of_two_layers("halves", &pruner, &first[..2], &second[..2]);
        assert_eq!(masks, [[0.0, 1.0], [0.0, 1.0]], "{pruner}");
    }
}

// Lottery ticket, whole runs

/// 4 epochs of 4 steps, all checkpoints kept.
fn digits(trainer: &str, pruner: &str) -> String {
    format!(
        r#"
[data]
source = "digits"
train-limit = 200
test-limit = 50
[model]
layers = [
  {{ kind = "flatten" }}, {{ kind = "linear", features = 16 }}, {{ kind = "batch-norm" }}, {{ kind = "relu" }},
  {{ kind = "linear", features = 10 }},
]
[schedule]
epochs = 4
batch-size = 50
[checkpoint]
every = 1
keep = 1000
[trainer]
plugin = "backprop"
with = {{ {trainer} }}
{pruner}
"#
    )
}

const ROUND: u64 = 16;
const ADAM: &str = "optimizer = \"adam\", lr = 0.01";
const SGD: &str = "lr = 0.1, momentum = 0.9, weight-decay = 5e-4";

fn ticket(options: &str) -> String {
    format!("[pruner]\nplugin = \"lottery-ticket\"\nwith = {{ {options} }}")
}

/// Asks for the end of the run at an event.
struct Stop<'a> {
    cancel: Arc<AtomicBool>,
    at: &'a mut (dyn FnMut(&Event) -> bool + Send),
}

impl Observer for Stop<'_> {
    fn event(&mut self, event: &Event) {
        if (self.at)(event) {
            self.cancel.store(true, Ordering::Relaxed);
        }
    }
}

/// The parameters where a run stands when it is asked to end at an event: before the next step.
fn parameters_when(
    lab: &Lab,
    name: &str,
    file: &str,
    at: &mut (dyn FnMut(&Event) -> bool + Send),
) -> ParameterSet {
    let path = lab.folder().join("run.toml");
    std::fs::write(&path, file).unwrap();
    let plan =
        runfile::load(&path, &Overrides::default()).unwrap_or_else(|error| panic!("{error}"));
    let cancel = Arc::new(AtomicBool::new(false));
    let options = RunOptions {
        out: Some(lab.out(name)),
        resume: None,
        registry: workspace().join("registry.toml"),
        cancel: cancel.clone(),
    };
    run::execute(&plan, &options, &mut Stop { cancel, at })
        .unwrap_or_else(|error| panic!("{error}"));
    run::parameters_of(&lab.out(name)).unwrap_or_else(|error| panic!("{error}"))
}

/// The parameters in the checkpoint of a run after so many steps, rewound ones included.
fn parameters_after(lab: &Lab, name: &str, steps: u64) -> ParameterSet {
    let all = checkpoint::list(&lab.out(name).join("checkpoints")).unwrap();
    let (_, file) = all.iter().find(|(step, _)| *step == steps).unwrap();
    let one = lab.out(&format!("{name}-{steps}"));
    std::fs::create_dir_all(one.join("checkpoints")).unwrap();
    let copy = one.join("checkpoints").join(file.file_name().unwrap());
    std::fs::copy(file, copy).unwrap();
    run::parameters_of(&one).unwrap_or_else(|error| panic!("{error}"))
}

/// Values and optimiser state as bits, without masks and tags.
fn bits(set: &ParameterSet) -> BTreeMap<String, Vec<u64>> {
    let (tensors, _) = set.export("set");
    let kept = tensors
        .into_iter()
        .filter(|(key, _)| !key.starts_with("set/tags/") && !key.starts_with("set/mask/"));
    kept.map(|(key, tensor)| {
        let values = tensor.to_list().unwrap();
        (key, values.iter().map(|x| x.to_bits()).collect())
    })
    .collect()
}

/// The same with +0 wherever the masks of `masks` are 0.
fn masked_bits(set: &ParameterSet, masks: &ParameterSet) -> BTreeMap<String, Vec<u64>> {
    let mut all = bits(set);
    for (key, values) in &mut all {
        let name = key.rsplit('/').next().unwrap();
        if let Some(mask) = masks.mask(name).unwrap() {
            for (value, alive) in values.iter_mut().zip(mask.to_list().unwrap()) {
                *value = if alive == 0.0 { 0 } else { *value };
            }
        }
    }
    all
}

/// How many weights are masked.
fn dead(set: &ParameterSet) -> usize {
    let masks = set
        .names()
        .into_iter()
        .filter_map(|n| set.mask(&n).unwrap());
    masks
        .map(|mask| {
            mask.to_list()
                .unwrap()
                .iter()
                .filter(|m| **m == 0.0)
                .count()
        })
        .sum()
}

fn is_step(event: &Event, wanted: u64) -> bool {
    matches!(event, Event::Step { step, .. } if *step == wanted)
}

#[test]
fn each_rewind_gives_the_masked_start_to_the_last_bit() {
    let file = digits(ADAM, &ticket("rate = 0.3, rounds = 3"));
    let lab = Lab::new("rewind-start");
    let start = parameters_when(&lab, "start", &file, &mut |event| {
        matches!(event, Event::Started { .. })
    });
    let mut before = 0;
    for round in 1..=3 {
        let mut prunings = 0;
        let rewound = parameters_when(&lab, &format!("round{round}"), &file, &mut |event| {
            prunings += usize::from(matches!(event, Event::Pruned { .. }));
            prunings == round
        });
        assert!(dead(&rewound) > before, "round {round} pruned nothing");
        before = dead(&rewound);
        // No optimiser state either: the start has none.
        assert_eq!(bits(&rewound), masked_bits(&start, &rewound), "{round}");
    }
}

#[test]
fn a_rewind_to_a_later_step_gives_that_step_masked_to_the_last_bit() {
    let file = digits(ADAM, &ticket("rate = 0.3, rounds = 2, rewind-step = 5"));
    let lab = Lab::new("rewind-step");
    let then = parameters_when(&lab, "then", &file, &mut |event| is_step(event, 5));
    assert!(bits(&then).keys().any(|key| key.starts_with("set/adam-m/")));
    for round in 1..=2 {
        let mut prunings = 0;
        let rewound = parameters_when(&lab, &format!("round{round}"), &file, &mut |event| {
            prunings += usize::from(matches!(event, Event::Pruned { .. }));
            prunings == round
        });
        assert!(dead(&rewound) > 0, "round {round} pruned nothing");
        assert_eq!(bits(&rewound), masked_bits(&then, &rewound), "{round}");
    }
}

#[test]
fn the_first_round_of_a_ticket_is_the_dense_run_to_the_last_bit() {
    let lab = Lab::new("first-round");
    let (_, dense) = lab.finish("dense", &digits(ADAM, ""), &[]);
    let ticket = digits(ADAM, &ticket("rate = 0.3, rounds = 2"));
    let (_, found) = lab.finish("ticket", &ticket, &[]);
    for step in 1..=ROUND {
        assert_eq!(
            bits(&parameters_after(&lab, "dense", step)),
            bits(&parameters_after(&lab, "ticket", step)),
            "step {step}"
        );
    }
    let losses = |events: &[Event]| -> Vec<u64> {
        let loss = |event: &Event| match event {
            Event::Step { loss, .. } => loss.map(f64::to_bits),
            _ => None,
        };
        events
            .iter()
            .filter_map(loss)
            .take(ROUND as usize)
            .collect()
    };
    assert_eq!(losses(&dense).len(), ROUND as usize);
    assert_eq!(losses(&dense), losses(&found));
}

#[test]
fn masks_are_nested_and_kept_after_every_step_with_momentum_and_weight_decay() {
    let lab = Lab::new("nested");
    let (rounds, rate) = (3, 0.3);
    let options = format!("rate = {rate}, rounds = {rounds}");
    lab.finish("run", &digits(SGD, &ticket(&options)), &[]);
    let (mut before, mut growths): (BTreeMap<String, Vec<f64>>, usize) = Default::default();
    for step in 1..=ROUND * (rounds + 1) {
        let set = parameters_after(&lab, "run", step);
        assert_eq!(bits(&set), masked_bits(&set, &set), "step {step}");
        assert!(
            bits(&set)
                .keys()
                .any(|key| key.starts_with("set/momentum/")),
            "step {step} without momentum"
        );
        for name in ["linear1.weight", "linear2.weight"] {
            let Some(mask) = set.mask(name).unwrap() else {
                assert!(step <= ROUND, "step {step}: {name} has no mask");
                continue;
            };
            let mask = mask.to_list().unwrap();
            if let Some(before) = before.get(name) {
                let nested = mask.iter().zip(before).all(|(now, then)| now <= then);
                assert!(nested, "step {step}: a weight of {name} came back");
            }
            growths += usize::from(before.get(name) != Some(&mask));
            before.insert(name.into(), mask);
        }
    }
    assert_eq!(growths as u64, 2 * rounds, "prunings of the two layers");
}

#[test]
fn a_rewind_that_prunes_nothing_repeats_the_dense_run_to_the_last_bit() {
    let lab = Lab::new("repeat");
    for trainer in [ADAM, SGD] {
        lab.finish("dense", &digits(trainer, ""), &[]);
        let dense = run::parameters_of(&lab.out("dense")).unwrap();
        for k in [0, 5] {
            let options = format!("rate = 0.0, rounds = 1, rewind-step = {k}");
            let (finished, _) = lab.finish("again", &digits(trainer, &ticket(&options)), &[]);
            assert_eq!(finished.steps, 2 * ROUND - k, "steps with rewind-step {k}");
            let again = run::parameters_of(&lab.out("again")).unwrap();
            assert_eq!(dead(&again), 0);
            assert_eq!(bits(&again), bits(&dense), "{trainer}, rewind-step {k}");
            std::fs::remove_dir_all(lab.out("again")).unwrap();
        }
        std::fs::remove_dir_all(lab.out("dense")).unwrap();
    }
}

#[test]
fn a_rewind_to_the_last_step_gives_the_dense_run_masked() {
    let lab = Lab::new("last-step");
    lab.finish("dense", &digits(SGD, ""), &[]);
    let options = format!("rate = 0.5, rounds = 1, rewind-step = {ROUND}");
    let (finished, _) = lab.finish("ticket", &digits(SGD, &ticket(&options)), &[]);
    assert_eq!(finished.steps, ROUND);
    let dense = run::parameters_of(&lab.out("dense")).unwrap();
    let ticket = run::parameters_of(&lab.out("ticket")).unwrap();
    assert!(dead(&ticket) > 0);
    assert_eq!(bits(&ticket), masked_bits(&dense, &ticket));
}
