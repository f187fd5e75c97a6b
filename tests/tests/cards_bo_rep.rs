//! The exact checks of BO-REP: two scalar problems with known answers, and the gradient of sample weights.
#![allow(clippy::unwrap_used)]

use espalier_tests::bench::{Bench, Targets};

/// A bench whose data do not matter: the problem is one of two numbers.
fn scalar(name: &str, steps: u64, options: &str) -> Bench {
    let file = format!(
        r#"
[model]
layers = [{{ kind = "linear", features = 2 }}]
[trainer]
plugin = "bo-rep"
with = {{ {options} }}
"#
    );
    let inputs: [&[f64]; 2] = [&[1.0], &[2.0]];
    let targets = Targets::Classes(&[0, 1], 2);
    Bench::new(&format!("bo-rep-{name}"), &inputs, targets, steps, &file)
}

fn near(found: f64, expected: f64, tolerance: f64, what: &str) {
    let good = (found - expected).abs() <= tolerance;
    assert!(good, "{what}: {found}, expected {expected}");
}

#[test]
fn the_linear_system_contracts_by_one_minus_nu_times_the_curvature() {
    // a = 2, nu = 0.1, y = x / a = 0.5: z* = (y - 1) / a = -0.25, and the factor is 0.8.
    let bench = scalar(
        "system",
        100,
        r#"problem = "quadratic", start = 1, upper-lr = 0, lower-lr = 0.25, system-lr = 0.1, momentum = 0"#,
    );
    bench.step(0);
    near(bench.value("lower/y")[0], 0.5, 1e-12, "y");
    near(bench.value("upper/z-y")[0], -0.05, 1e-12, "z after a step");
    // h = c x - (-1) z.
    near(bench.value("upper/m")[0], 0.45, 1e-12, "h after a step");
    for step in 1..10 {
        bench.step(step);
    }
    let tenth = -0.25 * (1.0 - 0.8f64.powi(10));
    near(tenth, -0.2231565, 1e-7, "by hand");
    near(bench.value("upper/z-y")[0], tenth, 1e-12, "z after ten");
    for step in 10..100 {
        bench.step(step);
    }
    near(bench.value("upper/z-y")[0], -0.25, 1e-9, "z*");
    near(bench.value("upper/m")[0], 0.25, 1e-9, "the hypergradient");
    assert_eq!(bench.value("upper/x"), [1.0]);
}

#[test]
fn the_quadratic_ends_at_its_minimum_and_every_step_has_the_length_asked() {
    let bench = scalar(
        "quadratic",
        600,
        r#"problem = "quadratic", start = 1, upper-lr = 0.01, lower-lr = 0.25, system-lr = 0.3, schedule = "linear""#,
    );
    let mut before = 1.0;
    for step in 0..600 {
        bench.step(step);
        let x = bench.value("upper/x")[0];
        // |m| is divided by |m| + 1e-10, which shows where m changes its sign.
        let m = bench.value("upper/m")[0].abs();
        let asked = 0.01 * (1.0 - step as f64 / 600.0) * m / (m + 1e-10);
        near((x - before).abs(), asked, 1e-9, "the length of a step");
        before = x;
    }
    // x = (1 / a) / (c + 1 / a^2); the ball about it has the radius of the last steps.
    near(before, 2.0 / 3.0, 2e-3, "x");
}

#[test]
fn steps_of_fixed_length_bear_an_unbounded_gradient_and_plain_ones_do_not() {
    let options = r#"problem = "cosh", start = 6, upper-lr = 0.05, lower-lr = 0.5, system-lr = 0.5, momentum = 0.5"#;
    let bench = scalar("cosh", 400, options);
    for step in 0..200 {
        bench.step(step);
    }
    near(bench.value("upper/x")[0], 0.0, 0.15, "x");
    let bench = scalar("cosh-plain", 400, &format!("{options}, normalized = false"));
    for step in 0..3 {
        bench.step(step);
    }
    let x = bench.value("upper/x")[0];
    assert!(x.is_nan() || x.abs() >= 1e3, "{x} has not diverged");
}

#[test]
fn the_gradient_of_a_sample_weight_is_its_losses_slope_along_z() {
    let inputs: [&[f64]; 6] = [
        &[0.5, -1.0],
        &[2.0, 0.25],
        &[-0.75, 1.5],
        &[1.0, 1.0],
        &[0.2, -0.4],
        &[-1.5, 0.3],
    ];
    let labels = [2i64, 0, 1, 1, 2, 0];
    let file = r#"
[model]
layers = [{ kind = "linear", features = 3, bias = false }]
[trainer]
plugin = "bo-rep"
with = { start = 0.4, momentum = 0, upper-lr = 0, refine = 0, lower-lr = 0.0, system-lr = 0.5, trusted = 0.34 }
"#;
    let bench = Bench::new(
        "bo-rep-weights",
        &inputs,
        Targets::Classes(&labels, 3),
        9,
        file,
    );
    let weight = [0.3, -0.2, 0.1, 0.4, -0.5, 0.25];
    bench.set("linear1.weight", &weight);
    bench.step(0);
    let z = bench.value("upper/z-linear1.weight");
    let h = bench.value("upper/m");
    assert!(z.iter().any(|z| z.abs() > 1e-3), "{z:?}");
    // Two samples are the upper level's; the others' CE_i, moved along z in f64.
    let lower = h.iter().filter(|h| **h != 0.0).count();
    assert_eq!(lower, 4, "{h:?}");
    let loss = |i: usize, by: f64| {
        let score = |c: usize| {
            (0..2)
                .map(|k| (weight[2 * c + k] + by * z[2 * c + k]) * inputs[i][k])
                .sum::<f64>()
        };
        let sum: f64 = (0..3).map(|c| score(c).exp()).sum();
        sum.ln() - score(labels[i] as usize)
    };
    let s = 1.0 / (1.0 + (-0.4f64).exp());
    for (i, h) in h.iter().enumerate().filter(|(_, h)| **h != 0.0) {
        let slope = (loss(i, 1e-4) - loss(i, -1e-4)) / 2e-4;
        near(*h, -s * (1.0 - s) * slope / 4.0, 1e-6, "h");
    }
}

#[test]
fn the_gradient_of_the_decay_is_its_pull_along_z() {
    // g = mean CE + e^x / 2 |y|^2: the mixed derivative times z is e^x <y, z>.
    let inputs: [&[f64]; 4] = [&[0.5, -1.0], &[2.0, 0.25], &[-0.75, 1.5], &[1.0, 1.0]];
    let file = r#"
[model]
layers = [{ kind = "linear", features = 2, bias = false }]
[trainer]
plugin = "bo-rep"
with = { problem = "weight-decay", start = -1, momentum = 0, upper-lr = 0.25, refine = 0, lower-lr = 0, trusted = 0.5 }
"#;
    let labels = Targets::Classes(&[1, 0, 1, 0], 2);
    let bench = Bench::new("bo-rep-decay", &inputs, labels, 9, file);
    let y = [0.3, -0.2, 0.1, 0.4];
    bench.set("linear1.weight", &y);
    bench.step(0);
    let z = bench.value("upper/z-linear1.weight");
    let along: f64 = y.iter().zip(&z).map(|(y, z)| y * z).sum();
    let h = -(-1.0f64).exp() * along;
    near(bench.value("upper/m")[0], h, 1e-7, "h");
    let moved = -1.0 - 0.25 * h.signum();
    near(bench.value("upper/x")[0], moved, 1e-6, "x");
}
