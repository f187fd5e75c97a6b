//! The exact checks of NoProp that need tensors: the component itself computes, and what comes out is compared with a
//! calculation by hand. Those of the diffusion's numbers stand in the plugin.
#![allow(clippy::unwrap_used)]

use std::f64::consts::LN_2;

use espalier_tests::bench::{Bench, Targets};

fn close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: {found:?}");
    for (a, b) in found.iter().zip(expected) {
        assert!(
            (a - b).abs() < 2e-5 * b.abs().max(1.0),
            "{what}: {found:?}, expected {expected:?}"
        );
    }
}

/// One input, two classes, blocks of one linear layer each; one sample of class 0.
fn chain(name: &str, blocks: usize, options: &str) -> Bench {
    let mut layers =
        String::from("{ kind = \"linear\", name = \"noise\", features = 2, frozen = true },\n");
    let mut before = "noise".to_string();
    for block in 1..=blocks {
        layers += &format!(
            "{{ kind = \"concat\", inputs = [\"inputs\", \"{before}\"] }},\n\
             {{ kind = \"linear\", name = \"block{block}\", features = 2 }},\n"
        );
        before = format!("block{block}");
    }
    let file = format!(
        r#"
[model]
layers = [
{layers}
  {{ kind = "linear", name = "head", features = 2 }},
]
[trainer]
plugin = "noprop"
with = {{ {options} }}
"#
    );
    let bench = Bench::new(name, &[&[0.7]], Targets::Classes(&[0], 2), 2, &file);
    bench.set("head.weight", &[1.0, 0.0, 0.0, 1.0]);
    bench.set("head.bias", &[0.0, 0.0]);
    bench
}

/// A block that is certain of a class, whatever it sees.
fn certain(bench: &Bench, block: &str, class: usize) {
    bench.set(&format!("{block}.weight"), &[0.0; 6]);
    let sign = if class == 0 { 200.0 } else { -200.0 };
    bench.set(&format!("{block}.bias"), &[sign, -sign]);
}

// With one block the levels are 0.01 and 0.99.
const FROM: f64 = 0.01;
const TO: f64 = 0.99;

#[test]
fn a_prediction_moves_by_the_posterior_coefficient_of_the_guess() {
    let bench = chain("noprop-a", 1, "stochastic = false");
    certain(&bench, "block1", 0);
    let zero = bench.predict();
    certain(&bench, "block1", 1);
    let one = bench.predict();
    // z_1 = a u + b z_0 with the same z_0: the difference is a (u - u').
    let a = TO.sqrt() * (1.0 - FROM / TO) / (1.0 - FROM);
    close(&[zero[0] - one[0], zero[1] - one[1]], &[a, -a], "a");
    // The noise of a prediction belongs to the sample.
    assert_eq!(bench.predict(), one);
}

#[test]
fn the_loss_has_the_known_parts() {
    let bench = chain("noprop-loss", 1, "");
    bench.set("head.weight", &[0.0; 4]);
    // The divergence of the start for d = 2 and |u| = 1, and ln 2 of a head that says nothing.
    let rest = 0.5 * (FROM * (1.0 - 2.0) - 2.0 * (1.0 - FROM).ln()) + LN_2;
    certain(&bench, "block1", 0);
    close(&bench.objective().to_list().unwrap(), &[rest], "right");
    // |u - u'|^2 = 2, times T/2 eta (SNR(1) - SNR(0)).
    let weight = 0.5 * 0.1 * (TO / (1.0 - TO) - FROM / (1.0 - FROM));
    certain(&bench, "block1", 1);
    close(
        &bench.objective().to_list().unwrap(),
        &[rest + 2.0 * weight],
        "wrong",
    );
}

#[test]
fn no_loss_of_noprop_reaches_another_block() {
    let bench = chain("noprop-local", 3, "");
    let names = ["block1.weight", "block2.weight", "block3.weight"];
    let before: Vec<Vec<f64>> = names
        .iter()
        .map(|name| bench.gradient_of_objective(name))
        .collect();
    for (i, name) in names.iter().enumerate() {
        assert!(before[i].iter().any(|g| *g != 0.0), "{name}");
    }
    // The middle block and the head change: the others' gradients keep their bits.
    bench.set("block2.weight", &[0.3, -0.7, 0.2, 0.9, -0.1, 0.5]);
    bench.set("head.weight", &[0.3, -0.7, 0.2, 0.9]);
    assert_eq!(bench.gradient_of_objective(names[0]), before[0]);
    assert_eq!(bench.gradient_of_objective(names[2]), before[2]);
    assert_ne!(bench.gradient_of_objective(names[1]), before[1]);
}

#[test]
fn one_euler_step_along_the_right_velocity_lands_on_the_embedding() {
    let file = r#"
[model]
layers = [
  { kind = "linear", name = "noise", features = 2, frozen = true },
  { kind = "linear", name = "time", inputs = ["inputs"], features = 2, frozen = true },
  { kind = "concat", inputs = ["inputs", "noise", "time"] },
  { kind = "linear", name = "block1", features = 2 },
  { kind = "linear", name = "head", features = 2 },
]
[trainer]
plugin = "noprop"
with = { variant = "fm", inference-steps = 1 }
"#;
    let bench = Bench::new("noprop-fm", &[&[0.7]], Targets::Classes(&[1], 2), 2, file);
    bench.set("head.weight", &[1.0, 0.0, 0.0, 1.0]);
    bench.set("head.bias", &[0.0, 0.0]);
    // v = u - z for the embedding u = [0, 1].
    let minus_z = [0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0];
    bench.set("block1.weight", &minus_z);
    bench.set("block1.bias", &[0.0, 1.0]);
    close(&bench.predict(), &[0.0, 1.0], "z_1");
}

#[test]
fn a_learned_table_learns_and_a_one_hot_one_stays() {
    for (learned, options) in [(false, ""), (true, "embedding = \"learned\"")] {
        let bench = chain("noprop-table", 2, options);
        let before = bench.value("embedding/table");
        bench.step(0);
        assert_eq!(bench.value("embedding/table") != before, learned);
    }
}
