//! The exact checks of certified training by interval bounds: bounds, loss and regularisers worked out by hand.
#![allow(clippy::unwrap_used)]

use espalier_tests::bench::{Bench, Targets};

fn near(found: f64, expected: f64, what: &str) {
    let good = (found - expected).abs() < 2e-6;
    assert!(good, "{what}: {found}, expected {expected}");
}

/// The card's layer, `W = [[1, -2], [0.5, 1]]` and `b = (0, -1)`, at x = (1, 0), and a last layer that compares one of
/// its outputs with a class whose score is 0.
fn bounded(name: &str, last: &[f64], label: i64) -> Bench {
    let file = r#"
[model]
layers = [{ kind = "linear", features = 2 }, { kind = "linear", features = 2, bias = false }]
[trainer]
plugin = "ibp-fast"
with = { eps = 0.5, low = -9, high = 9, report = false }
"#;
    let sample: &[f64] = &[1.0, 0.0];
    let bench = Bench::new(
        &format!("ibp-{name}"),
        &[sample],
        Targets::Classes(&[label], 2),
        10,
        file,
    );
    bench.set("linear1.weight", &[1.0, -2.0, 0.5, 1.0]);
    bench.set("linear1.bias", &[0.0, -1.0]);
    bench.set("linear2.weight", last);
    bench
}

#[test]
fn bounds_of_a_layer_are_those_of_the_hand() {
    // [-0.5, 2.5] and [-1.25, 0.25]. With a score of 0 for the other class the margin is the lower end for class 0, and
    // less the upper end for class 1.
    let (first, second) = ([1.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]);
    for (name, last, label, margin) in [
        ("first-lower", first, 0, -0.5),
        ("first-upper", first, 1, -2.5),
        ("second-lower", second, 0, -1.25),
        ("second-upper", second, 1, -0.25),
    ] {
        let loss = bounded(name, &last, label).objective().to_list().unwrap()[0];
        near(loss, (1.0 + f64::exp(-margin)).ln(), name);
    }
}

#[test]
fn the_question_is_merged_with_the_last_layer() {
    // Both scores grow with the first unit, so its width cancels: 2 h - h = h, the lower end of h is -0.5. Bounds of
    // the scores by themselves would give 2 (-0.5) - 2.5.
    let bench = bounded("merged", &[2.0, 0.0, 1.0, 0.0], 0);
    let loss = bench.objective().to_list().unwrap()[0];
    near(loss, (1.0 + 0.5f64.exp()).ln(), "loss");
}

/// A network with normalisation and two samples, at some eps.
fn network(name: &str, eps: f64, more: &str) -> Bench {
    let file = format!(
        r#"
[model]
layers = [
  {{ kind = "linear", features = 3 }}, {{ kind = "batch-norm" }}, {{ kind = "relu" }},
  {{ kind = "linear", features = 4 }}, {{ kind = "relu" }},
  {{ kind = "linear", features = 3 }},
]
[trainer]
plugin = "ibp-fast"
with = {{ eps = {eps}, init = "model", report = false {more} }}
"#
    );
    let inputs: [&[f64]; 2] = [&[0.2, 0.9], &[0.7, 0.1]];
    let bench = Bench::new(
        &format!("ibp-{name}"),
        &inputs,
        Targets::Classes(&[0, 2], 3),
        100,
        &file,
    );
    bench.set("linear1.weight", &[1.0, -0.5, 0.25, 0.75, -1.0, 0.5]);
    bench
}

#[test]
fn without_room_the_loss_is_the_cross_entropy_of_the_scores() {
    let bench = network("no-room", 0.0, "");
    let losses = bench.objective().to_list().unwrap();
    let scores = bench.predict();
    for (sample, label) in [(0, 0), (1, 2)] {
        let row = &scores[3 * sample..3 * sample + 3];
        let sum: f64 = row.iter().map(|x| x.exp()).sum();
        near(losses[sample], sum.ln() - row[label], "loss");
    }
}

#[test]
fn the_loss_grows_with_the_room() {
    let mut before = vec![0.0; 2];
    for (at, eps) in [0.0, 0.01, 0.05, 0.2, 0.5].into_iter().enumerate() {
        let bench = network(&format!("room-{at}"), eps, "");
        let losses = bench.objective().to_list().unwrap();
        for (loss, before) in losses.iter().zip(&before) {
            assert!(loss >= before, "at {eps}: {loss} after {before}");
        }
        before = losses;
    }
}

/// The loss of the first step, where eps is still 0, of a layer `weight` and a ReLU before a silent last layer.
fn first_step(name: &str, weight: &[f64], regularizer: f64) -> f64 {
    let file = format!(
        r#"
[model]
layers = [
  {{ kind = "linear", features = 2, bias = false }}, {{ kind = "relu" }}, {{ kind = "linear", features = 2 }},
]
[trainer]
plugin = "ibp-fast"
with = {{ eps = 0.1, init = "model", report = false, regularizer = {regularizer} }}
"#
    );
    let inputs: [&[f64]; 2] = [&[0.5, 0.5], &[0.25, 0.5]];
    let bench = Bench::new(
        &format!("ibp-first-{name}"),
        &inputs,
        Targets::Classes(&[0, 1], 2),
        100,
        &file,
    );
    bench.set("linear1.weight", weight);
    bench.set("linear2.weight", &[0.0; 4]);
    bench.set("linear2.bias", &[0.0; 2]);
    bench.step(0)
}

#[test]
fn narrow_bounds_cost_nothing_and_wide_ones_what_they_lack() {
    let silent = std::f64::consts::LN_2;
    // All units active, none inactive: the balance has no say. Rows of |W| sum to 2 and 1.
    near(
        first_step("narrow", &[1.0, 1.0, 0.5, 0.5], 0.5),
        silent,
        "narrow",
    );
    // Rows sum to 8: the ratio is 1 / 8, and (0.5 - 0.125) / 0.5 = 0.75 is missing. The box is 1e-6 wide, in f32.
    let wide = first_step("wide", &[4.0, 4.0, 4.0, 4.0], 0.5);
    assert!((wide - silent - 0.5 * 0.75).abs() < 0.02, "{wide}");
    near(first_step("off", &[4.0, 4.0, 4.0, 4.0], 0.0), silent, "off");
}

#[test]
fn relus_out_of_balance_cost_what_they_lack() {
    // Centres are (1, -0.1) and (0.75, -0.05): active mean 1.75 / 4, inactive -0.15 / 4, ratio 0.15 / 1.75; about the
    // common mean 0.4 the squares are 0.36 + 0.1225 and 0.25 + 0.2025.
    let loss = first_step("balance", &[1.0, 1.0, -0.2, 0.0], 0.5);
    let means = (0.5 - 0.15 / 1.75) / 0.5;
    let expected = std::f64::consts::LN_2 + 0.5 * means;
    near(loss, expected, "loss");
}
