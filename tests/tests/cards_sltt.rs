//! The exact checks of Spatial Learning Through Time: the component itself computes, and what comes out is compared with
//! a calculation by hand; and its claim about memory, in the host's counts.
#![allow(clippy::unwrap_used)]

use espalier_runtime::events::Event;
use espalier_tests::bench::{Bench, Targets};
use espalier_tests::lab::Lab;

fn close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: {found:?}");
    for (a, b) in found.iter().zip(expected) {
        assert!(
            (a - b).abs() < 2e-5,
            "{what}: {found:?}, expected {expected:?}"
        );
    }
}

/// One neuron of weight `w` that sees 1 at every step; the outputs are [3 s, 0], and the loss of a step is the mean of
/// (out - 1)^2 over the two, a T-th of it: its slope in s is 3 (3 s - 1) / T.
fn neuron(name: &str, w: f64, options: &str) -> Bench {
    let file = format!(
        r#"
[model]
layers = [
  {{ kind = "linear", features = 1, bias = false }}, {{ kind = "relu" }},
  {{ kind = "linear", features = 2, bias = false }},
]
[trainer]
plugin = "sltt"
with = {{ lambda = 1.0, {options} }}
"#
    );
    let bench = Bench::new(name, &[&[1.0]], Targets::Classes(&[0], 2), 2, &file);
    bench.set("linear1.weight", &[w]);
    bench.set("linear2.weight", &[3.0, 0.0]);
    bench
}

/// dL/dw of the first step of training.
fn slope(bench: &Bench) -> f64 {
    bench.step(0);
    bench.gradient("linear1.weight").unwrap()[0]
}

#[test]
fn one_neuron_over_two_steps_has_the_known_gradients() {
    // w = 0.8, k = 0.5: u = 0.8 and 1.2, s = 0 and 1, surrogate 0.8 at both. The loss has the slopes -1.5 in s_1 and
    // 3 in s_2. By sltt ds/dw = 0.8 at both; by bptt ds_2/dw = 0.8 (1 + 0.5 (1 - 0.8)) = 0.88, the reset included.
    let options = "tau = 2.0, time-steps = 2";
    let sltt = slope(&neuron("sltt-two", 0.8, options));
    close(&[sltt], &[0.8 * (-1.5 + 3.0)], "sltt");
    let bptt = neuron("bptt-two", 0.8, &format!("{options}, method = \"bptt\""));
    close(&[slope(&bptt)], &[0.8 * -1.5 + 0.88 * 3.0], "bptt");
    // The objective, which pruners ask for, follows the same rule.
    let bench = neuron("sltt-objective", 0.8, options);
    close(
        &bench.gradient_of_objective("linear1.weight"),
        &[sltt],
        "objective",
    );
    // (0 - 1)^2 in both outputs of the first step, (3 - 1)^2 and 1 in those of the second.
    close(
        &bench.objective().to_list().unwrap(),
        &[0.5 * (1.0 + 2.5)],
        "loss",
    );
}

#[test]
fn the_surrogate_has_its_known_points_and_a_neuron_at_the_threshold_fires() {
    // One step: dL/dw = 3 (3 s - 1) h(w - 1).
    let points = [
        (-1.0, 0.0, 0.0),
        (-0.5, 0.0, 0.5),
        (0.0, 1.0, 1.0),
        (0.5, 1.0, 0.5),
        (1.0, 1.0, 0.0),
    ];
    for (z, s, h) in points {
        let bench = neuron("sltt-triangle", 1.0 + z, "time-steps = 1");
        close(&[slope(&bench)], &[3.0 * (3.0 * s - 1.0) * h], "triangle");
        let bench = neuron(
            "sltt-rectangle",
            1.0 + z,
            "time-steps = 1, surrogate = \"rectangle\"",
        );
        let h = if z.abs() <= 0.5 { 1.0 } else { 0.0 };
        close(&[slope(&bench)], &[3.0 * (3.0 * s - 1.0) * h], "rectangle");
        let bench = neuron(
            "sltt-sigmoid",
            1.0 + z,
            "time-steps = 1, surrogate = \"sigmoid\"",
        );
        let p = 1.0 / (1.0 + (-4.0 * z).exp());
        let h = 4.0 * p * (1.0 - p);
        close(&[slope(&bench)], &[3.0 * (3.0 * s - 1.0) * h], "sigmoid");
    }
}

/// Two populations of neurons on random numbers.
fn network(name: &str, options: &str) -> Bench {
    let file = format!(
        r#"
[model]
layers = [
  {{ kind = "linear", features = 12 }}, {{ kind = "relu" }},
  {{ kind = "linear", features = 8 }}, {{ kind = "relu" }},
  {{ kind = "linear", features = 3 }},
]
[trainer]
plugin = "sltt"
with = {{ {options} }}
"#
    );
    let rows: [&[f64]; 3] = [
        &[1.5, -2.0, 0.5, 4.0],
        &[3.0, 0.5, -2.5, 1.5],
        &[-1.5, 3.0, 2.0, -1.0],
    ];
    Bench::new(name, &rows, Targets::Classes(&[2, 0, 1], 3), 2, &file)
}

fn gradients(name: &str, options: &str) -> Vec<f64> {
    let bench = network(name, options);
    bench.step(0);
    ["linear1.weight", "linear2.weight", "linear3.bias"]
        .iter()
        .flat_map(|name| bench.gradient(name).unwrap())
        .collect()
}

#[test]
fn without_memory_or_with_one_step_both_methods_are_one() {
    for options in ["tau = 1.0, time-steps = 5", "tau = 2.0, time-steps = 1"] {
        let sltt = gradients("sltt-same", options);
        let bptt = gradients("bptt-same", &format!("{options}, method = \"bptt\""));
        assert!(sltt.iter().any(|g| *g != 0.0));
        close(&sltt, &bptt, options);
    }
    let options = "tau = 2.0, time-steps = 5";
    let (sltt, bptt) = (
        gradients("sltt-other", options),
        gradients("bptt-other", &format!("{options}, method = \"bptt\"")),
    );
    assert!(sltt.iter().zip(&bptt).any(|(a, b)| (a - b).abs() > 1e-4));
}

#[test]
fn all_steps_chosen_are_all_steps() {
    let all = gradients("sltt-all", "time-steps = 4");
    assert_eq!(
        gradients("sltt-four", "time-steps = 4, gradient-steps = 4"),
        all
    );
    assert_ne!(
        gradients("sltt-two-of-four", "time-steps = 4, gradient-steps = 2"),
        all
    );
}

/// Most graph nodes and bytes of tensors that the trainer had alive.
fn peak(lab: &Lab, method: &str, steps: u32) -> (u64, u64) {
    let file = format!(
        r#"
[data]
source = "digits"
train-limit = 256
test-limit = 64
[model]
layers = [
  {{ kind = "flatten" }}, {{ kind = "linear", features = 64 }}, {{ kind = "relu" }},
  {{ kind = "linear", features = 10 }},
]
[schedule]
steps = 4
batch-size = 64
evaluation-batch = 64
[trainer]
plugin = "sltt"
with = {{ method = "{method}", time-steps = {steps} }}
"#
    );
    let (_, events) = lab.finish(&format!("{method}-{steps}"), &file, &[]);
    let counters = events.iter().find_map(|event| match event {
        Event::Counters { plugins } => Some(&plugins[0]),
        _ => None,
    });
    let counters = counters.unwrap();
    (counters.peak_graph_nodes, counters.peak_tensor_bytes)
}

#[test]
fn memory_does_not_grow_with_the_time_steps() {
    let lab = Lab::new("sltt-memory");
    let (six, twelve) = (peak(&lab, "sltt", 6), peak(&lab, "sltt", 12));
    assert!(six.0 > 0);
    assert_eq!(six, twelve);
    let (six, twelve) = (peak(&lab, "bptt", 6), peak(&lab, "bptt", 12));
    let ratio = twelve.0 as f64 / six.0 as f64;
    assert!((1.9..2.1).contains(&ratio), "{six:?} {twelve:?}");
    assert!(twelve.1 as f64 > 1.5 * six.1 as f64, "{six:?} {twelve:?}");
}
