//! The exact checks of forward learning of graph networks: convolution, row norm, both losses, and that a layer's loss
//! reaches no other layer.
#![allow(clippy::unwrap_used)]

use std::f64::consts::{E, LN_2};

use espalier_tests::bench::{Bench, Targets};

fn close(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: {found:?}");
    for (a, b) in found.iter().zip(expected) {
        assert!(
            (a - b).abs() < 2e-6,
            "{what}: {found:?}, expected {expected:?}"
        );
    }
}

const IDENTITY: [f64; 4] = [1.0, 0.0, 0.0, 1.0];

/// Layers of two units each, with these options; the first nodes are labelled.
fn graph(
    name: &str,
    layers: usize,
    options: &str,
    nodes: &[&[f64]],
    labels: &[i64],
    edges: &[[i64; 2]],
) -> Bench {
    let layer = r#"{ kind = "linear", features = 2 }, { kind = "relu" },"#.repeat(layers);
    let file = format!(
        "[model]\nlayers = [{layer}]\n[trainer]\nplugin = \"forward-gnn\"\nwith = {{ {options} }}"
    );
    let name = format!("gnn-{name}");
    let bench = Bench::graph(&name, nodes, (labels, 2), edges, 10, &file);
    for layer in 1..=layers {
        bench.set(&format!("linear{layer}.weight"), &IDENTITY);
        bench.set(&format!("linear{layer}.bias"), &[0.0, 0.0]);
    }
    bench
}

/// `ln(1 + e^-1)`: the cross-entropy of the scores (1, 0).
fn one_ahead() -> f64 {
    (1.0 + 1.0 / E).ln()
}

#[test]
fn two_nodes_and_an_edge_give_each_the_mean_of_both() {
    let nodes: [&[f64]; 2] = [&[1.0, 0.0], &[0.0, 1.0]];
    let bench = graph(
        "operator",
        1,
        r#"method = "backprop""#,
        &nodes,
        &[0],
        &[[0, 1]],
    );
    close(&bench.predict(), &[0.5, 0.5], "the first node");
    close(&bench.predict_split("test"), &[0.5, 0.5], "the second");
    let bench = graph("blind", 1, r#"method = "mlp""#, &nodes, &[0], &[[0, 1]]);
    close(&bench.predict(), &[1.0, 0.0], "without edges");
}

#[test]
fn a_node_is_compared_with_the_virtual_nodes() {
    // The node and its class's virtual node are joined and equal: Z = (1, 0) and prototypes (1, 0), (0, 1).
    let nodes: [&[f64]; 2] = [&[1.0, 0.0], &[0.0, 1.0]];
    let bench = graph("similar", 1, "", &nodes, &[0], &[]);
    bench.set("graph/virtual", &IDENTITY);
    close(
        &bench.objective().to_list().unwrap(),
        &[one_ahead()],
        "loss",
    );
    close(&[bench.step(0)], &[one_ahead()], "loss of the step");
    // The other node is joined to nothing: scores (0, 1), of one layer.
    let bench = graph("similar-test", 1, "", &nodes, &[0], &[]);
    bench.set("graph/virtual", &IDENTITY);
    let e = 1.0 / (1.0 + E);
    close(&bench.predict_split("test"), &[e, 1.0 - e], "probabilities");
}

#[test]
fn rows_are_seen_by_their_direction_and_a_row_of_zeros_stays_one() {
    // (3, 4) is seen as (0.6, 0.8), of length 1; the other prototype is zero and no NaN.
    let nodes: [&[f64]; 2] = [&[3.0, 4.0], &[1.0, 1.0]];
    let bench = graph("norm", 1, "", &nodes, &[0], &[]);
    bench.set("graph/virtual", &[3.0, 4.0, 0.0, 0.0]);
    close(
        &bench.objective().to_list().unwrap(),
        &[one_ahead()],
        "loss",
    );
}

#[test]
fn goodness_at_theta_loses_ln_two_with_each_labelling() {
    // Z = (1, 1) whatever is read: goodness 2 = theta.
    let nodes: [&[f64]; 2] = [&[1.0, 0.0], &[0.0, 1.0]];
    for method in ["ff-la", "ff-vn"] {
        let options = format!("method = \"{method}\"");
        let bench = graph(method, 1, &options, &nodes, &[0], &[[0, 1]]);
        bench.set("linear1.weight", &[0.0; 4]);
        bench.set("linear1.bias", &[1.0, 1.0]);
        if method == "ff-la" {
            bench.set("graph/extra0", &[0.0; 4]);
        }
        close(&[bench.step(0)], &[2.0 * LN_2], method);
    }
}

#[test]
fn the_label_is_what_tells_a_positive_graph_from_a_negative_one() {
    // The unit reads the label's first feature alone: 1 with the right label, 0 with the wrong one; theta 2.
    let nodes: [&[f64]; 2] = [&[0.0, 0.0], &[0.0, 0.0]];
    let bench = graph("label", 1, r#"method = "ff-la""#, &nodes, &[0], &[]);
    bench.set("graph/extra0", &[1.0, 0.0, 0.0, 0.0]);
    let softplus = |x: f64| (1.0 + x.exp()).ln();
    close(&[bench.step(0)], &[softplus(1.0) + softplus(-2.0)], "loss");
}

#[test]
fn no_loss_reaches_another_layer() {
    let nodes: [&[f64]; 3] = [&[1.0, 0.2], &[0.1, 1.0], &[0.5, 0.5]];
    let edges = [[0, 2], [1, 2]];
    for method in ["sf", "ff-vn", "ff-la"] {
        let options = format!("method = \"{method}\"");
        let bench = graph(
            &format!("local-{method}"),
            2,
            &options,
            &nodes,
            &[0, 1],
            &edges,
        );
        let names = [
            "linear1.weight",
            "linear1.bias",
            "linear2.weight",
            "linear2.bias",
        ];
        for step in 0..10 {
            let before: Vec<Vec<f64>> = names.iter().map(|name| bench.value(name)).collect();
            bench.step(step);
            for (at, name) in names.iter().enumerate() {
                let learns = (at / 2 == 0) == (step < 5);
                let changed = bench.value(name) != before[at];
                assert!(learns || !changed, "{method}: {name} in step {step}");
                assert!(
                    !learns || changed || name.ends_with("bias"),
                    "{method}: {name} in step {step}"
                );
            }
        }
    }
}

#[test]
fn samples_that_are_no_nodes_are_nodes_without_edges() {
    let file = r#"
[model]
layers = [{ kind = "linear", features = 2 }, { kind = "relu" }]
[trainer]
plugin = "forward-gnn"
"#;
    let inputs: [&[f64]; 2] = [&[3.0, 4.0], &[0.0, 2.0]];
    let bench = Bench::new("gnn-plain", &inputs, Targets::Classes(&[0, 1], 2), 10, file);
    bench.set("linear1.weight", &IDENTITY);
    bench.set("linear1.bias", &[0.0, 0.0]);
    bench.set("graph/virtual", &[3.0, 4.0, 0.0, 1.0]);
    // As samples to be told apart they are joined to no virtual node; prototypes (0.6, 0.8) and (0, 1).
    let (a, b) = ((1.0f64).exp(), (0.8f64).exp());
    let first = a / (a + b);
    close(
        &bench.predict(),
        &[first, 1.0 - first, 1.0 - first, first],
        "probabilities",
    );
}
