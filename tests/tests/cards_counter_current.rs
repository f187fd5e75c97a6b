//! The exact checks of Counter-Current Learning: known numbers go in, the component computes, and what comes out is
//! compared with a calculation by hand.
#![allow(clippy::unwrap_used)]

use std::f64::consts::LN_2;

use espalier_tests::bench::{Bench, Targets};

const IDENTITY: [f64; 4] = [1.0, 0.0, 0.0, 1.0];
const SWAPPED: [f64; 4] = [0.0, 1.0, 1.0, 0.0];

fn close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: {found:?}");
    for (a, b) in found.iter().zip(expected) {
        assert!(
            (a - b).abs() < 2e-5,
            "{what}: {found:?}, expected {expected:?}"
        );
    }
}

/// Two inputs, two hidden levels of 2 units, two classes; one sample of the class `label`.
fn bench(name: &str, input: &[f64], label: i64, options: &str) -> Bench {
    let file = format!(
        r#"
[model]
layers = [
  {{ kind = "linear", features = 2, bias = false }}, {{ kind = "elu" }},
  {{ kind = "linear", features = 2, bias = false }}, {{ kind = "elu" }},
  {{ kind = "linear", features = 2, bias = false }},
]
[trainer]
plugin = "counter-current"
with = {{ {options} }}
"#
    );
    Bench::new(name, &[input], Targets::Classes(&[label], 2), 2, &file)
}

/// All matrices the identity but the last of the model, which says nothing.
fn identities(name: &str, label: i64, options: &str) -> Bench {
    let bench = bench(name, &[1.0, 0.0], label, options);
    for name in [
        "linear1.weight",
        "linear2.weight",
        "feedback/v1",
        "feedback/v2",
        "feedback/v3",
    ] {
        bench.set(name, &IDENTITY);
    }
    bench.set("linear3.weight", &[0.0; 4]);
    bench
}

#[test]
fn a_level_that_meets_the_feedback_of_its_class_costs_nothing_and_of_another_64() {
    // M = [1, 0] at all three levels. For class 0 it is the target; for class 1 the error is mean(1, 1) = 1, times
    // 0.5 * 256 / 2.
    let right = identities("counter-right", 0, "");
    close(&right.objective().to_list().unwrap(), &[LN_2], "right");
    let wrong = identities("counter-wrong", 1, "");
    close(
        &wrong.objective().to_list().unwrap(),
        &[3.0 * 64.0 + LN_2],
        "wrong at all levels",
    );
    // The input level alone put right: V_1 swaps.
    wrong.set("feedback/v1", &SWAPPED);
    close(
        &wrong.objective().to_list().unwrap(),
        &[2.0 * 64.0 + LN_2],
        "wrong at two levels",
    );
}

#[test]
fn a_layer_learns_from_its_own_level_alone() {
    let bench = bench("counter-local", &[0.5, -1.5], 1, "");
    let of = |name: &str| bench.gradient_of_objective(name);
    let (first, last, v1) = (
        of("linear1.weight"),
        of("linear3.weight"),
        of("feedback/v1"),
    );
    assert!(first.iter().chain(&last).chain(&v1).all(|g| *g != 0.0));
    // W_1 sees neither what follows it nor V_1.
    for name in ["linear2.weight", "linear3.weight", "feedback/v1"] {
        bench.set(name, &[0.3, -0.7, 0.2, 0.9]);
    }
    assert_eq!(of("linear1.weight"), first);
    // It does see V_2, which makes the feedback at its level.
    bench.set("feedback/v2", &[0.3, -0.7, 0.2, 0.9]);
    assert_ne!(of("linear1.weight"), first);
}

#[test]
fn the_first_feedback_matrix_learns_from_the_inputs_alone() {
    let bench = bench("counter-first", &[0.5, -1.5], 1, "");
    bench.set("feedback/v3", &IDENTITY);
    bench.set("feedback/v2", &IDENTITY);
    bench.set("feedback/v1", &IDENTITY);
    // s_0 = I, M = x = [0.5, -1.5], T = [0, 1]: error [0.5, -2.5]. The loss is 64 (0.25 + 6.25) / 2 + .., so
    // d/dM = 64 [0.5, -2.5], and dV_1 = s_1' (d/dM)' x with s_1 = I.
    let expected = [16.0, -48.0, -80.0, 240.0];
    close(
        &bench.gradient_of_objective("feedback/v1"),
        &expected,
        "dV_1",
    );
    for name in ["linear1.weight", "linear2.weight", "linear3.weight"] {
        bench.set(name, &[0.3, -0.7, 0.2, 0.9]);
    }
    close(
        &bench.gradient_of_objective("feedback/v1"),
        &expected,
        "dV_1 with another model",
    );
}

#[test]
fn without_local_losses_the_hidden_layers_keep_their_bits() {
    let bench = bench("counter-kappa", &[0.5, -1.5], 1, "kappa = 0");
    let names = [
        "linear1.weight",
        "linear2.weight",
        "feedback/v1",
        "feedback/v2",
        "feedback/v3",
    ];
    let before: Vec<Vec<f64>> = names.iter().map(|name| bench.value(name)).collect();
    let last = bench.value("linear3.weight");
    for step in 0..2 {
        bench.step(step);
    }
    for (name, before) in names.iter().zip(before) {
        assert_eq!(bench.value(name), before, "{name}");
    }
    assert_ne!(bench.value("linear3.weight"), last);
}

#[test]
fn each_network_has_a_clip_of_its_own() {
    let bench = bench("counter-clip", &[0.5, -1.5], 1, "clip-grad-norm = 0.25");
    let networks = [
        ["linear1.weight", "linear2.weight", "linear3.weight"],
        ["feedback/v1", "feedback/v2", "feedback/v3"],
    ];
    let read = |names: &[&str; 3]| -> Vec<f64> {
        names.iter().flat_map(|name| bench.value(name)).collect()
    };
    let before: Vec<Vec<f64>> = networks.iter().map(read).collect();
    bench.step(0);
    for (names, before) in networks.iter().zip(before) {
        // With lr = 1 the change is the clipped gradient.
        let moved = read(names)
            .iter()
            .zip(&before)
            .map(|(a, b)| (a - b).powi(2))
            .sum::<f64>()
            .sqrt();
        close(&[moved], &[0.25], "length of the step");
    }
}
