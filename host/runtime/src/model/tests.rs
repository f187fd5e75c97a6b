#![allow(clippy::unwrap_used)]

use super::*;
use crate::data;
use crate::parameters::Kind;
use crate::plan::{DataPlan, DataSource, Normalize};
use espalier_tensor::optim::Sgd;
use espalier_tensor::{autograd, ops};

/// A layer from `kind` or `kind name`, its settings and its inputs.
fn layer(kind: &str, settings: &[(&str, &[f64])], inputs: &[&str]) -> LayerPlan {
    let (kind, name) = kind.split_once(' ').unwrap_or((kind, ""));
    LayerPlan {
        name: name.into(),
        kind: kind.into(),
        inputs: inputs.iter().map(|input| (*input).to_owned()).collect(),
        settings: settings.iter().map(|(name, numbers)| ((*name).to_owned(), numbers.to_vec())).collect(),
    }
}

fn field(shape: &[usize]) -> FieldShape {
    FieldShape { name: "inputs".into(), shape: shape.to_vec(), dtype: DType::F32 }
}

fn build(layers: &[LayerPlan], shape: &[usize]) -> (Model, ParameterSet) {
    let mut set = ParameterSet::new();
    let model = Model::build(layers, &[field(shape)], &[7], &mut set).unwrap();
    (model, set)
}

fn refusal(layers: &[LayerPlan], shape: &[usize]) -> String {
    Model::build(layers, &[field(shape)], &[7], &mut ParameterSet::new()).unwrap_err().to_string()
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_vec(values.to_vec(), shape).unwrap()
}

/// Distinct, not symmetric, between about -1 and 1.
fn ramp(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
    tensor(&values, shape)
}

fn floats(t: &Tensor) -> Vec<f32> {
    t.to_vec::<f32>().unwrap()
}

fn close(found: &Tensor, expected: &[f32], tolerance: f32) {
    let found = floats(found);
    assert_eq!(found.len(), expected.len());
    for (at, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!((a - b).abs() <= tolerance, "element {at}: {a}, expected {b}");
    }
}

fn run(model: &Model, set: &mut ParameterSet, x: &Tensor, mode: Mode) -> Tensor {
    let inputs = [("inputs".to_owned(), x.clone())];
    model.forward(set, 0, model.len(), &inputs, mode, &BTreeMap::new(), &[], &[1]).unwrap().output
}

#[test]
fn a_linear_layer_by_hand() {
    let (model, mut set) = build(&[layer("linear", &[("features", &[2.0])], &[])], &[3]);
    assert_eq!(set.names(), ["linear1.weight", "linear1.bias"]);
    set.assign("linear1.weight", &tensor(&[1.0, 2.0, 3.0, -1.0, 0.0, 1.0], &[2, 3])).unwrap();
    set.assign("linear1.bias", &tensor(&[10.0, 20.0], &[2])).unwrap();
    let out = run(&model, &mut set, &tensor(&[1.0, 1.0, 1.0, 0.0, 2.0, 4.0], &[2, 3]), Mode::Eval);
    close(&out, &[16.0, 20.0, 26.0, 24.0], 0.0);
}

#[test]
fn a_perceptron_learns_the_digits() {
    let plan = DataPlan {
        source: DataSource::Digits,
        test: 0.2,
        validation: 0.0,
        split_seed: 0,
        train_limit: None,
        test_limit: None,
        normalize: Normalize::Standard,
    };
    let data = data::load(&plan).unwrap();
    let layers = [
        layer("flatten", &[], &[]),
        layer("linear", &[("features", &[32.0])], &[]),
        layer("relu", &[], &[]),
        layer("linear", &[("features", &[10.0])], &[]),
    ];
    let (model, mut set) = build(&layers, &[1, 8, 8]);
    assert_eq!(model.macs(), 64 * 32 + 32 * 10);
    let id = data::StreamId {
        plugin: "test".into(),
        split: "train".into(),
        fields: vec!["inputs".into(), "targets".into()],
        size: 32,
        order: data::Order::Shuffled,
        key: vec![],
    };
    let mut streams = data::Streams::new();
    let names = set.names();
    let how = Sgd { lr: 0.1, momentum: 0.9, weight_decay: 0.0, nesterov: false };
    for _ in 0..5 {
        while let Some(batch) = streams.next(&id, &data, 0).unwrap() {
            let logits = model
                .forward(&mut set, 0, 4, &batch.fields, Mode::Train, &BTreeMap::new(), &[], &[0])
                .unwrap()
                .output;
            let losses = ops::cross_entropy(&logits, &batch.fields[1].1).unwrap();
            let loss = ops::divide(&ops::sum(&losses, &[], false).unwrap(), f64::from(batch.count)).unwrap();
            let leaves: Vec<Tensor> = names.iter().map(|name| set.value(name).unwrap()).collect();
            let leaves: Vec<&Tensor> = leaves.iter().collect();
            let grads = autograd::grad(&[&loss], &[None], &leaves, false, false).unwrap();
            set.sgd(&names, &grads, &how).unwrap();
        }
    }
    let test = data.split("test").unwrap();
    let logits = run(&model, &mut set, test.field("inputs").unwrap(), Mode::Eval);
    let found = ops::argmax(&logits, 1).unwrap().to_vec::<i64>().unwrap();
    let labels = test.field("targets").unwrap().to_vec::<i64>().unwrap();
    let right = found.iter().zip(&labels).filter(|(a, b)| a == b).count();
    assert!(right as f64 >= 0.93 * labels.len() as f64, "{right} of {}", labels.len());
}
