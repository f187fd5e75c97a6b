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
        frozen: false,
        group: String::new(),
        settings: settings
            .iter()
            .map(|(name, numbers)| ((*name).to_owned(), numbers.to_vec()))
            .collect(),
    }
}

fn field(shape: &[usize]) -> FieldShape {
    FieldShape {
        name: "inputs".into(),
        shape: shape.to_vec(),
        dtype: DType::F32,
    }
}

fn build(layers: &[LayerPlan], shape: &[usize]) -> (Model, ParameterSet) {
    let mut set = ParameterSet::new();
    let model = Model::build(layers, &[field(shape)], &[7], &mut set).unwrap();
    (model, set)
}

fn refusal(layers: &[LayerPlan], shape: &[usize]) -> String {
    Model::build(layers, &[field(shape)], &[7], &mut ParameterSet::new())
        .unwrap_err()
        .to_string()
}

fn tensor(values: &[f32], shape: &[usize]) -> Tensor {
    Tensor::from_vec(values.to_vec(), shape).unwrap()
}

/// Distinct, not symmetric, between about -1 and 1.
fn ramp(shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f32> = (0..count)
        .map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0)
        .collect();
    tensor(&values, shape)
}

fn floats(t: &Tensor) -> Vec<f32> {
    t.to_vec::<f32>().unwrap()
}

fn close(found: &Tensor, expected: &[f32], tolerance: f32) {
    let found = floats(found);
    assert_eq!(found.len(), expected.len());
    for (at, (a, b)) in found.iter().zip(expected).enumerate() {
        assert!(
            (a - b).abs() <= tolerance,
            "element {at}: {a}, expected {b}"
        );
    }
}

fn run(model: &Model, set: &mut ParameterSet, x: &Tensor, mode: Mode) -> Tensor {
    let inputs = [("inputs".to_owned(), x.clone())];
    model
        .forward(
            set,
            0,
            model.len(),
            &inputs,
            mode,
            &BTreeMap::new(),
            &[],
            &[1],
        )
        .unwrap()
        .output
}

#[test]
fn a_linear_layer_by_hand() {
    let (model, mut set) = build(&[layer("linear", &[("features", &[2.0])], &[])], &[3]);
    assert_eq!(set.names(), ["linear1.weight", "linear1.bias"]);
    set.assign(
        "linear1.weight",
        &tensor(&[1.0, 2.0, 3.0, -1.0, 0.0, 1.0], &[2, 3]),
    )
    .unwrap();
    set.assign("linear1.bias", &tensor(&[10.0, 20.0], &[2]))
        .unwrap();
    let out = run(
        &model,
        &mut set,
        &tensor(&[1.0, 1.0, 1.0, 0.0, 2.0, 4.0], &[2, 3]),
        Mode::Eval,
    );
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
    assert_eq!(model.macs(0, model.len()), 64 * 32 + 32 * 10);
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
    let how = Sgd {
        lr: 0.1,
        momentum: 0.9,
        weight_decay: 0.0,
        nesterov: false,
    };
    for _ in 0..5 {
        while let Some(batch) = streams.next(&id, &data, 0).unwrap() {
            let logits = model
                .forward(
                    &mut set,
                    0,
                    4,
                    &batch.fields,
                    Mode::Train,
                    &BTreeMap::new(),
                    &[],
                    &[0],
                )
                .unwrap()
                .output;
            let losses = ops::cross_entropy(&logits, &batch.fields[1].1).unwrap();
            let loss = ops::divide(
                &ops::sum(&losses, &[], false).unwrap(),
                f64::from(batch.count),
            )
            .unwrap();
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
    assert!(
        right as f64 >= 0.93 * labels.len() as f64,
        "{right} of {}",
        labels.len()
    );
}

/// A network with a shortcut: conv, batch-norm, relu, conv, add.
fn residual() -> Vec<LayerPlan> {
    vec![
        layer(
            "conv2d c1",
            &[
                ("features", &[4.0]),
                ("kernel", &[3.0]),
                ("padding", &[1.0]),
            ],
            &[],
        ),
        layer("batch-norm b1", &[], &[]),
        layer("relu r1", &[], &[]),
        layer(
            "conv2d c2",
            &[
                ("features", &[4.0]),
                ("kernel", &[3.0]),
                ("padding", &[1.0]),
            ],
            &[],
        ),
        layer("add sum", &[], &["c2", "r1"]),
        layer("flatten", &[], &[]),
        layer("linear head", &[("features", &[3.0])], &[]),
    ]
}

#[test]
fn shapes_and_multiply_accumulates_of_a_convolutional_network_by_hand() {
    let layers = [
        layer(
            "conv2d",
            &[
                ("features", &[8.0]),
                ("kernel", &[3.0]),
                ("padding", &[1.0]),
            ],
            &[],
        ),
        layer("batch-norm", &[], &[]),
        layer("relu", &[], &[]),
        layer("max-pool", &[("kernel", &[2.0])], &[]),
        layer(
            "conv2d",
            &[
                ("features", &[16.0]),
                ("kernel", &[3.0, 1.0]),
                ("stride", &[2.0]),
                ("groups", &[2.0]),
            ],
            &[],
        ),
        layer(
            "average-pool",
            &[("kernel", &[3.0]), ("stride", &[2.0]), ("padding", &[1.0])],
            &[],
        ),
        layer("flatten", &[], &[]),
        layer("linear", &[("features", &[10.0])], &[]),
    ];
    let (model, mut set) = build(&layers, &[1, 28, 28]);
    let infos = model.infos();
    let shapes: Vec<&[usize]> = infos.iter().map(|info| &info.out_shape[..]).collect();
    // Second convolution: (14 - 3) / 2 + 1 = 6 by (14 - 1) / 2 + 1 = 7; pooling: (6 + 2 - 3) / 2 + 1 = 3 by 4.
    let expected: [&[usize]; 8] = [
        &[8, 28, 28],
        &[8, 28, 28],
        &[8, 28, 28],
        &[8, 14, 14],
        &[16, 6, 7],
        &[16, 3, 4],
        &[192],
        &[10],
    ];
    assert_eq!(shapes, expected);
    let macs: Vec<u64> = infos.iter().map(|info| info.macs).collect();
    assert_eq!(macs, [8 * 784 * 9, 0, 0, 0, 16 * 42 * 4 * 3, 0, 0, 1920]);
    assert_eq!(
        model.macs(0, model.len()),
        8 * 784 * 9 + 16 * 42 * 12 + 1920
    );
    assert_eq!(infos[4].in_shape, [8, 14, 14]);
    assert_eq!(infos[4].inputs, [Input::Layer(3)]);
    assert_eq!(infos[0].inputs, [Input::Field("inputs".into())]);
    assert_eq!(infos[4].name, "conv2d2");
    assert_eq!(infos[4].parameters, ["conv2d2.weight", "conv2d2.bias"]);
    assert_eq!(set.stored("conv2d2.weight").unwrap().shape(), [16, 4, 3, 1]);
    assert_eq!(infos[4].settings[1], ("kernel".to_owned(), vec![3.0, 1.0]));
    assert_eq!(infos[3].settings[1], ("stride".to_owned(), vec![2.0, 2.0]));
    let out = run(&model, &mut set, &ramp(&[2, 1, 28, 28]), Mode::Eval);
    assert_eq!(out.shape(), [2, 10]);
}

#[test]
fn every_layer_gives_the_shape_that_was_inferred() {
    let images: &[&[LayerPlan]] = &[
        &residual(),
        &[
            layer("layer-norm", &[], &[]),
            layer("group-sort", &[("group", &[3.0])], &[]),
        ],
        &[layer("dropout", &[], &[]), layer("identity", &[], &[])],
        &[
            layer("relu a", &[], &[]),
            layer("tanh b", &[], &["a"]),
            layer("concat", &[], &["a", "b", "a"]),
        ],
        &[
            layer("relu a", &[], &[]),
            layer("tanh b", &[], &["a"]),
            layer("concat", &[("axis", &[2.0])], &["a", "b"]),
        ],
    ];
    for layers in images {
        let (model, mut set) = build(layers, &[3, 5, 4]);
        let want: Vec<String> = model.infos().into_iter().map(|info| info.name).collect();
        let inputs = [("inputs".to_owned(), ramp(&[2, 3, 5, 4]))];
        let pass = model
            .forward(
                &mut set,
                0,
                model.len(),
                &inputs,
                Mode::Train,
                &BTreeMap::new(),
                &want,
                &[1],
            )
            .unwrap();
        for (info, (name, tensor)) in model.infos().iter().zip(&pass.extra) {
            assert_eq!(&info.name, name);
            assert_eq!(tensor.shape()[0], 2);
            assert_eq!(tensor.shape()[1..], info.out_shape, "{}", info.kind);
        }
    }
    let series = [
        layer("position", &[], &[]),
        layer("attention", &[("heads", &[2.0]), ("causal", &[1.0])], &[]),
        layer("layer-norm", &[("affine", &[0.0])], &[]),
        layer("lstm", &[("features", &[3.0])], &[]),
        layer("rnn", &[("features", &[4.0])], &[]),
        layer("linear", &[("features", &[5.0]), ("bias", &[0.0])], &[]),
        layer("flatten", &[], &[]),
        layer("cosine-classifier", &[("features", &[2.0])], &[]),
    ];
    let (model, mut set) = build(&series, &[7, 6]);
    let macs: Vec<u64> = model.infos().iter().map(|info| info.macs).collect();
    // Attention 4 t f^2 + 2 t^2 f; LSTM t 4 h (h + f); RNN t h (h + f).
    assert_eq!(
        macs,
        [
            0,
            4 * 7 * 36 + 2 * 49 * 6,
            0,
            7 * 12 * 9,
            7 * 4 * 7,
            7 * 4 * 5,
            0,
            70
        ]
    );
    assert_eq!(
        run(&model, &mut set, &ramp(&[2, 7, 6]), Mode::Train).shape(),
        [2, 2]
    );
}

#[test]
fn every_parameter_of_every_kind_gets_a_gradient() {
    let sets: [(&[LayerPlan], &[usize]); 2] = [
        (&residual(), &[3, 5, 4]),
        (
            &[
                layer("position", &[], &[]),
                layer("attention", &[("heads", &[2.0])], &[]),
                layer("layer-norm", &[], &[]),
                layer("lstm", &[("features", &[4.0])], &[]),
                layer("rnn", &[("features", &[4.0])], &[]),
                layer("flatten", &[], &[]),
                layer("cosine-classifier", &[("features", &[3.0])], &[]),
            ],
            &[5, 4],
        ),
    ];
    for (layers, shape) in sets {
        let (model, mut set) = build(layers, shape);
        let x = ramp(&[&[3], shape].concat());
        let out = run(&model, &mut set, &x, Mode::Train);
        // A square, because a sum of normalised values would not move.
        let weights = ramp(out.shape());
        let loss = ops::sum(
            &ops::multiply(&ops::multiply(&out, &out).unwrap(), &weights).unwrap(),
            &[],
            false,
        );
        for info in set
            .infos()
            .into_iter()
            .filter(|info| info.kind != Kind::Buffer)
        {
            let leaf = set.value(&info.name).unwrap();
            let grad =
                autograd::grad(&[loss.as_ref().unwrap()], &[None], &[&leaf], false, true).unwrap();
            let largest = floats(&grad[0])
                .into_iter()
                .fold(0f32, |most, x| most.max(x.abs()));
            // A bias before batch-norm, and the keys' bias in attention, cancel out by construction.
            if info.name != "c1.bias" {
                assert!(largest > 1e-6, "{}: {largest}", info.name);
            }
        }
    }
}

#[test]
fn convolution_and_pooling_by_hand() {
    let (model, mut set) = build(
        &[layer(
            "conv2d",
            &[("features", &[1.0]), ("kernel", &[2.0])],
            &[],
        )],
        &[1, 3, 3],
    );
    set.assign(
        "conv2d1.weight",
        &tensor(&[1.0, 1.0, 1.0, 1.0], &[1, 1, 2, 2]),
    )
    .unwrap();
    set.assign("conv2d1.bias", &tensor(&[1.0], &[1])).unwrap();
    let x = tensor(
        &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0],
        &[1, 1, 3, 3],
    );
    close(
        &run(&model, &mut set, &x, Mode::Eval),
        &[13.0, 17.0, 25.0, 29.0],
        1e-5,
    );
    let (model, mut set) = build(
        &[layer(
            "max-pool",
            &[("kernel", &[2.0]), ("stride", &[1.0])],
            &[],
        )],
        &[1, 3, 3],
    );
    close(
        &run(&model, &mut set, &x, Mode::Eval),
        &[5.0, 6.0, 8.0, 9.0],
        0.0,
    );
    let settings: &[(&str, &[f64])] = &[("kernel", &[2.0]), ("padding", &[1.0])];
    let (model, mut set) = build(&[layer("average-pool", settings, &[])], &[1, 2, 2]);
    let x = tensor(&[1.0, 2.0, 3.0, 4.0], &[1, 1, 2, 2]);
    close(
        &run(&model, &mut set, &x, Mode::Eval),
        &[0.25, 0.5, 0.75, 1.0],
        0.0,
    );
}

#[test]
fn activations_by_their_formulas() {
    let x = [-2.0f32, -1.0, 0.0, 1.0];
    for (kind, expected) in [
        ("relu", [0.0, 0.0, 0.0, 1.0]),
        ("tanh", [-0.964_027_6, -0.761_594_2, 0.0, 0.761_594_2]),
        ("sigmoid", [0.119_202_92, 0.268_941_43, 0.5, 0.731_058_6]),
        ("gelu", [-0.045_500_26, -0.158_655_25, 0.0, 0.841_344_7]),
        ("elu", [-0.864_664_7, -0.632_120_55, 0.0, 1.0]),
        ("silu", [-0.238_405_84, -0.268_941_43, 0.0, 0.731_058_6]),
        ("hardtanh", [-1.0, -1.0, 0.0, 1.0]),
        ("identity", [-2.0, -1.0, 0.0, 1.0]),
        ("group-sort", [-2.0, -1.0, 0.0, 1.0]),
    ] {
        let (model, mut set) = build(&[layer(kind, &[], &[])], &[4]);
        close(
            &run(&model, &mut set, &tensor(&x, &[1, 4]), Mode::Eval),
            &expected,
            2e-6,
        );
    }
}

#[test]
fn group_sort_sorts_features_of_vectors_and_channels_of_images() {
    let (model, mut set) = build(&[layer("group-sort", &[], &[])], &[4]);
    close(
        &run(
            &model,
            &mut set,
            &tensor(&[3.0, 1.0, 2.0, 5.0], &[1, 4]),
            Mode::Eval,
        ),
        &[1.0, 3.0, 2.0, 5.0],
        0.0,
    );
    let (model, mut set) = build(&[layer("group-sort", &[], &[])], &[2, 1, 2]);
    let image = tensor(&[3.0, 1.0, 2.0, 5.0], &[1, 2, 1, 2]);
    close(
        &run(&model, &mut set, &image, Mode::Eval),
        &[2.0, 1.0, 3.0, 5.0],
        0.0,
    );
}

#[test]
fn batch_norm_statistics_by_hand_in_every_mode() {
    let (model, mut set) = build(
        &[layer("batch-norm bn", &[("epsilon", &[1e-12])], &[])],
        &[1],
    );
    let kinds: Vec<(String, Kind, bool)> = set
        .infos()
        .into_iter()
        .map(|info| (info.name, info.kind, info.trainable))
        .collect();
    assert_eq!(kinds[2], ("bn.running-mean".into(), Kind::Buffer, false));
    let x = tensor(&[1.0, 3.0], &[2, 1]);
    let want = ["bn/mean".to_owned(), "bn/var".to_owned(), "bn".to_owned()];
    let pass = |set: &mut ParameterSet, mode| {
        let inputs = [("inputs".to_owned(), x.clone())];
        model
            .forward(set, 0, 1, &inputs, mode, &BTreeMap::new(), &want, &[])
            .unwrap()
    };
    let out = pass(&mut set, Mode::Train);
    // Mean 2, biased variance 1, unbiased variance 2.
    close(&out.output, &[-1.0, 1.0], 1e-6);
    let names: Vec<&str> = out.extra.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["bn/mean", "bn/var", "bn"]);
    close(&out.extra[0].1, &[2.0], 1e-6);
    close(&out.extra[1].1, &[1.0], 1e-6);
    close(set.stored("bn.running-mean").unwrap(), &[0.2], 1e-6);
    close(set.stored("bn.running-var").unwrap(), &[1.1], 1e-6);
    assert!(!set.stored("bn.running-mean").unwrap().requires_grad());
    let digest = set.content_digest().unwrap();
    for mode in [Mode::Eval, Mode::TrainFrozenStats] {
        let out = pass(&mut set, mode);
        let root = 1.1f32.sqrt();
        close(&out.output, &[0.8 / root, 2.8 / root], 1e-6);
        close(&out.extra[0].1, &[0.2], 1e-6);
        assert_eq!(set.content_digest().unwrap(), digest);
    }
    // A last batch of one sample, and an empty one.
    for (x, expected) in [(vec![1.0], vec![0.8 / 1.1f32.sqrt()]), (vec![], vec![])] {
        let inputs = [("inputs".to_owned(), tensor(&x, &[x.len(), 1]))];
        let out = model.forward(
            &mut set,
            0,
            1,
            &inputs,
            Mode::Train,
            &BTreeMap::new(),
            &[],
            &[],
        );
        close(&out.unwrap().output, &expected, 1e-6);
        assert_eq!(set.content_digest().unwrap(), digest);
    }
}

#[test]
fn batch_norm_of_images_counts_every_position_of_a_channel() {
    let (model, mut set) = build(
        &[layer("batch-norm", &[("momentum", &[1.0])], &[])],
        &[2, 1, 2],
    );
    let x = tensor(&[1.0, 3.0, 10.0, 10.0, 5.0, 7.0, 10.0, 30.0], &[2, 2, 1, 2]);
    run(&model, &mut set, &x, Mode::Train);
    close(
        set.stored("batch-norm1.running-mean").unwrap(),
        &[4.0, 15.0],
        1e-5,
    );
    // Sums of squares 20 and 300 over 4 - 1.
    close(
        set.stored("batch-norm1.running-var").unwrap(),
        &[20.0 / 3.0, 100.0],
        1e-4,
    );
}

#[test]
fn layer_norm_by_hand_over_features_or_the_whole_sample() {
    let (model, mut set) = build(
        &[layer("layer-norm", &[("epsilon", &[1e-12])], &[])],
        &[2, 2],
    );
    assert_eq!(set.stored("layer-norm1.weight").unwrap().shape(), [2]);
    let x = [1.0, 3.0, 10.0, 30.0];
    close(
        &run(&model, &mut set, &tensor(&x, &[1, 2, 2]), Mode::Eval),
        &[-1.0, 1.0, -1.0, 1.0],
        1e-5,
    );
    let (model, mut set) = build(&[layer("layer-norm", &[], &[])], &[1, 2, 2]);
    assert_eq!(set.stored("layer-norm1.weight").unwrap().shape(), [1, 2, 2]);
    let out = floats(&run(
        &model,
        &mut set,
        &tensor(&x, &[1, 1, 2, 2]),
        Mode::Eval,
    ));
    assert!(out.iter().sum::<f32>().abs() < 1e-5);
    assert!((out.iter().map(|x| x * x).sum::<f32>() - 4.0).abs() < 1e-3);
}

#[test]
fn dropout_drops_by_key_and_layer_and_never_in_eval() {
    let layers = [
        layer("dropout", &[], &[]),
        layer("dropout", &[("rate", &[0.25])], &["inputs"]),
    ];
    let (model, mut set) = build(&layers, &[1000]);
    let x = Tensor::ones(&[4, 1000], DType::F32).unwrap();
    let inputs = [("inputs".to_owned(), x)];
    let want = ["dropout1".to_owned(), "dropout2".to_owned()];
    let mut pass = |mode, key: &[u64]| -> Vec<Vec<f32>> {
        let pass = model
            .forward(&mut set, 0, 2, &inputs, mode, &BTreeMap::new(), &want, key)
            .unwrap();
        pass.extra
            .iter()
            .map(|(_, tensor)| floats(tensor))
            .collect()
    };
    let first = pass(Mode::Train, &[1, 2]);
    let zeros = |values: &[f32]| values.iter().filter(|x| **x == 0.0).count();
    // 4,000 draws: standard deviations 32 and 27.
    assert!(zeros(&first[0]).abs_diff(2000) < 160 && zeros(&first[1]).abs_diff(1000) < 140);
    assert!(first[0].iter().all(|x| *x == 0.0 || *x == 2.0));
    assert_eq!(pass(Mode::Train, &[1, 2]), first);
    assert_eq!(pass(Mode::TrainFrozenStats, &[1, 2]), first);
    assert_ne!(pass(Mode::Train, &[1, 3])[0], first[0]);
    let both = first[0]
        .iter()
        .zip(&first[1])
        .filter(|(a, b)| **a == 0.0 && **b == 0.0)
        .count();
    assert!(
        both.abs_diff(500) < 110,
        "two layers drop independently: {both}"
    );
    assert!(pass(Mode::Eval, &[1, 2]).concat().iter().all(|x| *x == 1.0));
}

#[test]
fn embedding_and_positions_by_hand() {
    let fields = [FieldShape {
        name: "inputs".into(),
        shape: vec![2],
        dtype: DType::I64,
    }];
    let layers = [
        layer(
            "embedding",
            &[("entries", &[3.0]), ("features", &[4.0])],
            &[],
        ),
        layer("position", &[("learned", &[0.0])], &[]),
    ];
    let mut set = ParameterSet::new();
    let model = Model::build(&layers, &fields, &[1], &mut set).unwrap();
    assert_eq!(set.infos()[0].kind, Kind::Embedding);
    let table: Vec<f32> = (0..12).map(|i| i as f32).collect();
    set.assign("embedding1.weight", &tensor(&table, &[3, 4]))
        .unwrap();
    let tokens = Tensor::from_vec(vec![2i64, 1], &[1, 2]).unwrap();
    let out = run(&model, &mut set, &tokens, Mode::Eval);
    let (one, small) = (1f32, 0.01f32);
    let expected = [
        8.0,
        10.0,
        10.0,
        12.0,
        4.0 + one.sin(),
        5.0 + one.cos(),
        6.0 + small.sin(),
        7.0 + small.cos(),
    ];
    close(&out, &expected, 1e-6);
}

/// Attention as its formula says, in f64 loops over one sample: softmax(q k' / sqrt(width)) v, head by head.
fn naive_attention(
    x: &[f32],
    set: &ParameterSet,
    steps: usize,
    features: usize,
    heads: usize,
    causal: bool,
) -> Vec<f32> {
    let get = |name: &str| floats(set.stored(&format!("attention1.{name}")).unwrap());
    let apply = |x: &[f64], w: &[f32], b: &[f32]| -> Vec<f64> {
        let rows = w.chunks(features).zip(b);
        rows.map(|(row, b)| {
            f64::from(*b)
                + row
                    .iter()
                    .zip(x)
                    .map(|(w, x)| f64::from(*w) * x)
                    .sum::<f64>()
        })
        .collect()
    };
    let (in_w, in_b, out_w, out_b) = (
        get("in-weight"),
        get("in-bias"),
        get("out-weight"),
        get("out-bias"),
    );
    let rows: Vec<Vec<f64>> = x
        .chunks(features)
        .map(|row| {
            apply(
                &row.iter().map(|x| f64::from(*x)).collect::<Vec<_>>(),
                &in_w,
                &in_b,
            )
        })
        .collect();
    let width = features / heads;
    let mut mixed = vec![vec![0f64; features]; steps];
    for head in 0..heads {
        let at = |part: usize, i: usize| part * features + head * width + i;
        for query in 0..steps {
            let seen = if causal { query + 1 } else { steps };
            let scores: Vec<f64> = (0..seen)
                .map(|key| {
                    let dot: f64 = (0..width)
                        .map(|i| rows[query][at(0, i)] * rows[key][at(1, i)])
                        .sum();
                    (dot / (width as f64).sqrt()).exp()
                })
                .collect();
            let total: f64 = scores.iter().sum();
            for (key, score) in scores.iter().enumerate() {
                for i in 0..width {
                    mixed[query][head * width + i] += score / total * rows[key][at(2, i)];
                }
            }
        }
    }
    mixed
        .iter()
        .flat_map(|row| apply(row, &out_w, &out_b))
        .map(|x| x as f32)
        .collect()
}

#[test]
fn attention_equals_its_formula_and_its_probabilities_are_what_it_used() {
    for causal in [0.0, 1.0] {
        let layers = [layer(
            "attention",
            &[("heads", &[2.0]), ("causal", &[causal])],
            &[],
        )];
        let (model, mut set) = build(&layers, &[3, 4]);
        set.assign("attention1.in-bias", &ramp(&[12])).unwrap();
        set.assign("attention1.out-bias", &ramp(&[4])).unwrap();
        let x = ramp(&[2, 3, 4]);
        let expected: Vec<f32> = floats(&x)
            .chunks(12)
            .flat_map(|sample| naive_attention(sample, &set, 3, 4, 2, causal == 1.0))
            .collect();
        close(&run(&model, &mut set, &x, Mode::Train), &expected, 2e-6);
        let want = ["attention1/probabilities".to_owned()];
        let inputs = [("input".to_owned(), x)];
        let pass = model
            .forward(
                &mut set,
                0,
                1,
                &inputs,
                Mode::Eval,
                &BTreeMap::new(),
                &want,
                &[],
            )
            .unwrap();
        close(&pass.output, &expected, 2e-6);
        let probabilities = &pass.extra[0].1;
        assert_eq!(probabilities.shape(), [2, 2, 3, 3]);
        for (at, row) in floats(probabilities).chunks(3).enumerate() {
            assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
            let hidden = row[at % 3 + 1..].iter().all(|p| *p == 0.0);
            assert_eq!(hidden, causal == 1.0 || at % 3 == 2);
        }
    }
}

#[test]
fn recurrent_layers_equal_their_formulas() {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    for kind in ["lstm", "rnn"] {
        let (model, mut set) = build(&[layer(kind, &[("features", &[2.0])], &[])], &[4, 3]);
        let get = |name: &str| -> Vec<f64> {
            let values = floats(set.stored(&format!("{kind}1.{name}")).unwrap());
            values.into_iter().map(f64::from).collect()
        };
        let (w_ih, w_hh, b_ih, b_hh) = (
            get("weight-ih"),
            get("weight-hh"),
            get("bias-ih"),
            get("bias-hh"),
        );
        let x = ramp(&[2, 4, 3]);
        let mut expected = Vec::new();
        for sample in floats(&x).chunks(12) {
            let (mut h, mut c) = ([0f64; 2], [0f64; 2]);
            for input in sample.chunks(3) {
                let z: Vec<f64> = (0..b_ih.len())
                    .map(|row| {
                        let from_x: f64 = (0..3)
                            .map(|i| w_ih[row * 3 + i] * f64::from(input[i]))
                            .sum();
                        let from_h: f64 = (0..2).map(|i| w_hh[row * 2 + i] * h[i]).sum();
                        from_x + from_h + b_ih[row] + b_hh[row]
                    })
                    .collect();
                for i in 0..2 {
                    if kind == "rnn" {
                        h[i] = z[i].tanh();
                        continue;
                    }
                    // Gates in PyTorch's order: input, forget, cell, output.
                    c[i] = sigmoid(z[2 + i]) * c[i] + sigmoid(z[i]) * z[4 + i].tanh();
                    h[i] = sigmoid(z[6 + i]) * c[i].tanh();
                }
                expected.extend(h.map(|x| x as f32));
            }
        }
        close(&run(&model, &mut set, &x, Mode::Eval), &expected, 2e-6);
    }
}

#[test]
fn cosine_classifier_by_hand_and_finite_at_zero() {
    let (model, mut set) = build(
        &[layer("cosine-classifier", &[("features", &[2.0])], &[])],
        &[2],
    );
    set.assign(
        "cosine-classifier1.weight",
        &tensor(&[1.0, 0.0, 0.0, 2.0], &[2, 2]),
    )
    .unwrap();
    close(
        &run(&model, &mut set, &tensor(&[3.0, 4.0], &[1, 2]), Mode::Eval),
        &[6.0, 8.0],
        1e-5,
    );
    close(
        &run(&model, &mut set, &tensor(&[0.0, 0.0], &[1, 2]), Mode::Eval),
        &[0.0, 0.0],
        0.0,
    );
}

#[test]
fn a_forward_pass_in_pieces_equals_the_whole() {
    let (model, mut set) = build(&residual(), &[2, 4, 4]);
    let x = ramp(&[3, 2, 4, 4]);
    let whole = floats(&run(&model, &mut set, &x, Mode::Eval));
    let mut part = |from, to, inputs: &[(&str, &Tensor)]| {
        let inputs: Vec<(String, Tensor)> = inputs
            .iter()
            .map(|(name, t)| ((*name).into(), (*t).clone()))
            .collect();
        model
            .forward(
                &mut set,
                from,
                to,
                &inputs,
                Mode::Eval,
                &BTreeMap::new(),
                &[],
                &[],
            )
            .map(|pass| pass.output)
    };
    let a = part(0, 3, &[("input", &x)]).unwrap();
    let b = part(3, 4, &[("input", &a)]).unwrap();
    let c = part(4, 5, &[("r1", &a), ("c2", &b)]).unwrap();
    let d = part(5, 7, &[("sum", &c)]).unwrap();
    assert_eq!(floats(&d), whole);
    // From inside the block on: the shortcut must be given by name.
    let e = part(3, 7, &[("r1", &a)]).unwrap();
    assert_eq!(floats(&e), whole);
    assert_eq!(
        part(4, 7, &[("input", &b)]).unwrap_err().to_string(),
        "model.forward: layer `sum` reads `c2`, which is not given; given are [\"input\"]"
    );
    assert_eq!(
        part(5, 7, &[("input", &x)]).unwrap_err().to_string(),
        "model.forward: layer `flatten1` reads `sum`: found f32 [3, 2, 4, 4], expected f32 [samples, 4, 4, 4]"
    );
    assert_eq!(
        part(3, 3, &[("input", &a)]).unwrap_err().to_string(),
        "model.forward: layers 3 to 3 do not exist; the model has 7 layers, and a range is half-open and not empty"
    );
    assert!(
        part(0, 8, &[("input", &x)])
            .unwrap_err()
            .to_string()
            .contains("layers 0 to 8 do not exist")
    );
}

#[test]
fn overrides_replace_parameters_and_carry_gradients() {
    let (model, mut set) = build(&[layer("linear", &[("features", &[1.0])], &[])], &[2]);
    let gate = tensor(&[2.0], &[1]).with_requires_grad();
    let computed = ops::multiply(&tensor(&[1.0, 3.0], &[1, 2]), &gate).unwrap();
    let inputs = [("inputs".to_owned(), tensor(&[10.0, 1.0], &[1, 2]))];
    let overrides = BTreeMap::from([
        ("linear1.weight".to_owned(), computed),
        ("linear1.bias".to_owned(), tensor(&[0.5], &[1])),
    ]);
    let out = model
        .forward(&mut set, 0, 1, &inputs, Mode::Train, &overrides, &[], &[])
        .unwrap()
        .output;
    close(&out, &[26.5], 0.0);
    let grads = autograd::grad(&[&out], &[None], &[&gate], false, false).unwrap();
    close(&grads[0], &[13.0], 0.0);
    let mut say = |name: &str, shape: &[usize]| {
        let overrides =
            BTreeMap::from([(name.to_owned(), Tensor::zeros(shape, DType::F32).unwrap())]);
        model
            .forward(&mut set, 0, 1, &inputs, Mode::Train, &overrides, &[], &[])
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        say("linear1.wieght", &[1, 2]),
        "model.forward: override `linear1.wieght` is no parameter of the model; did you mean `linear1.weight`?"
    );
    assert_eq!(
        say("linear1.weight", &[2, 1]),
        "model.forward: override `linear1.weight` has shape [2, 1], the parameter has [1, 2]"
    );
}

#[test]
fn wanting_what_a_layer_does_not_have_is_refused() {
    let (model, mut set) = build(&residual(), &[2, 4, 4]);
    let inputs = [("inputs".to_owned(), ramp(&[2, 2, 4, 4]))];
    let mut say = |want: &str| {
        let want = [want.to_owned()];
        model
            .forward(
                &mut set,
                0,
                4,
                &inputs,
                Mode::Eval,
                &BTreeMap::new(),
                &want,
                &[],
            )
            .unwrap_err()
            .to_string()
    };
    assert_eq!(
        say("c3"),
        "model.forward: want `c3`: no such layer; did you mean `c1`?"
    );
    assert_eq!(
        say("head"),
        "model.forward: want `head`: layer 6 is outside the range 0 to 4"
    );
    assert_eq!(
        say("b1/median"),
        "model.forward: want `b1/median`: a batch-norm layer gives `b1`, `b1/mean`, `b1/var`"
    );
    assert_eq!(
        say("r1/mean"),
        "model.forward: want `r1/mean`: a relu layer gives `r1`"
    );
}

#[test]
fn initial_values_are_pytorchs_and_depend_on_key_and_name_alone() {
    let linear = |name: &str| layer(&format!("linear {name}"), &[("features", &[50.0])], &[]);
    let (_, set) = build(&[linear("a"), linear("b")], &[400]);
    let weights = floats(set.stored("a.weight").unwrap());
    // Uniform in +-1/sqrt(400): standard deviation 0.05 / sqrt(3).
    assert!(weights.iter().all(|w| w.abs() <= 0.05));
    let deviation = (weights.iter().map(|w| w * w).sum::<f32>() / weights.len() as f32).sqrt();
    assert!((deviation - 0.05 / 3f32.sqrt()).abs() < 3e-4, "{deviation}");
    assert!(
        floats(set.stored("a.bias").unwrap())
            .iter()
            .all(|b| b.abs() <= 0.05 && *b != 0.0)
    );
    // `b` is as wide in another model, and gets the same numbers there.
    let (_, other) = build(&[linear("b"), linear("c")], &[50]);
    let b = floats(set.stored("b.weight").unwrap());
    assert_eq!(floats(other.stored("b.weight").unwrap()), b);
    let mut again = ParameterSet::new();
    Model::build(&[linear("b")], &[field(&[50])], &[8], &mut again).unwrap();
    assert_ne!(floats(again.stored("b.weight").unwrap()), b);
}

#[test]
fn a_model_runs_with_any_set_that_has_its_names() {
    let (model, mut set) = build(&residual(), &[2, 4, 4]);
    let x = ramp(&[3, 2, 4, 4]);
    let before = floats(&run(&model, &mut set, &x, Mode::Eval));
    let (clone, mut copy) = (model.clone(), set.duplicate());
    set.assign("head.weight", &Tensor::zeros(&[3, 64], DType::F32).unwrap())
        .unwrap();
    assert_eq!(floats(&run(&clone, &mut copy, &x, Mode::Eval)), before);
    assert_ne!(floats(&run(&model, &mut set, &x, Mode::Eval)), before);
}

#[test]
fn a_field_in_f64_makes_a_model_in_f64() {
    let mut set = ParameterSet::new();
    let fields = [FieldShape {
        dtype: DType::F64,
        ..field(&[3])
    }];
    let layers = [
        layer("linear", &[("features", &[2.0])], &[]),
        layer("batch-norm", &[], &[]),
    ];
    Model::build(&layers, &fields, &[1], &mut set).unwrap();
    assert!(set.infos().iter().all(|info| info.dtype == DType::F64));
}

#[test]
fn layers_without_a_name_get_their_kind_and_a_free_number() {
    let layers = [
        layer("linear", &[("features", &[2.0])], &[]),
        layer("relu linear2", &[], &[]),
        layer("linear", &[("features", &[2.0])], &[]),
    ];
    let (model, _) = build(&layers, &[2]);
    let names: Vec<String> = model.infos().into_iter().map(|info| info.name).collect();
    assert_eq!(names, ["linear1", "linear2", "linear3"]);
}

#[test]
fn wrong_models_are_refused_with_layer_kind_shape_and_mend() {
    let linear: &[(&str, &[f64])] = &[("features", &[10.0])];
    let conv: &[(&str, &[f64])] = &[("features", &[8.0]), ("kernel", &[3.0])];
    for (layers, shape, expected) in [
        (
            vec![],
            &[4][..],
            "the model has no layers; give at least one",
        ),
        (
            vec![layer("conv2d", conv, &[]), layer("linear", linear, &[])],
            &[1, 28, 28],
            "layer `linear1` (linear): its input has shape [8, 26, 26] a sample; expected [features] or [positions, \
             features]; put a layer of kind \"flatten\" before it",
        ),
        (
            vec![layer("flatten", &[], &[]), layer("conv2d", conv, &[])],
            &[1, 28, 28],
            "layer `conv2d1` (conv2d): its input has shape [784] a sample; expected [channels, height, width]; \
             convolution and pooling stand before \"flatten\"",
        ),
        (
            vec![layer("conv2d", conv, &[])],
            &[1, 2, 28],
            "layer `conv2d1` (conv2d): its input has shape [1, 2, 28] a sample; a window of 3 does not fit into 2 \
             with 0 of padding on each side; use a smaller kernel or more padding",
        ),
        (
            vec![layer("linaer", linear, &[])],
            &[4],
            "layer `linaer1`: no kind of layer is named `linaer`; did you mean `linear`?",
        ),
        (
            vec![layer("linear", &[("feature", &[3.0])], &[])],
            &[4],
            "layer `linear1` (linear), setting `feature`: no such setting; did you mean `features`?",
        ),
        (
            vec![layer("linear", &[], &[])],
            &[4],
            "layer `linear1` (linear), setting `features`: is missing; expected a whole number from 1 on",
        ),
        (
            vec![layer("linear", &[("features", &[2.5])], &[])],
            &[4],
            "layer `linear1` (linear), setting `features`: expected a whole number from 1 on, found 2.5",
        ),
        (
            vec![layer("linear", &[("features", &[2.0, 2.0])], &[])],
            &[4],
            "layer `linear1` (linear), setting `features`: expected one number, found [2.0, 2.0]",
        ),
        (
            vec![layer("dropout", &[("rate", &[1.0])], &[])],
            &[4],
            "layer `dropout1` (dropout), setting `rate`: expected a number from 0 up to but not including 1, found 1",
        ),
        (
            vec![layer("relu", &[("slope", &[1.0])], &[])],
            &[4],
            "layer `relu1` (relu), setting `slope`: this kind has no settings; remove it",
        ),
        (
            vec![layer("relu a", &[], &[]), layer("relu a", &[], &[])],
            &[4],
            "layer `a`: the name stands twice; names must differ",
        ),
        (
            vec![layer("relu inputs", &[], &[])],
            &[4],
            "layer `inputs`: the name means a field of the batch; choose another",
        ),
        (
            vec![layer("relu a/b", &[], &[])],
            &[4],
            "layer `a/b`: a name must not contain `/`, which asks for a layer's inner values; choose another",
        ),
        (
            vec![layer("relu first", &[], &["frist"])],
            &[4],
            "layer `first` reads `frist`, which is neither an earlier layer nor a field of the data",
        ),
        (
            vec![layer("relu stem", &[], &[]), layer("relu", &[], &["stme"])],
            &[4],
            "layer `relu1` reads `stme`, which is neither a layer nor a field; did you mean `stem`?",
        ),
        (
            vec![layer("relu a", &[], &["b"]), layer("relu b", &[], &[])],
            &[4],
            "layer `a` reads `b`, which is a later layer; move that layer before this one",
        ),
        (
            vec![layer("relu a", &[], &["a"])],
            &[4],
            "layer `a` reads `a`, which is itself; a layer reads earlier layers only",
        ),
        (
            vec![
                layer("linear a", linear, &[]),
                layer("add", &[], &["a", "inputs"]),
            ],
            &[4],
            "layer `add1` (add): its input has shape [10] a sample; its inputs have shapes [10] and [4]; expected one \
             shape; bring them to one with a linear or conv2d layer (kernel 1) on the shorter path",
        ),
        (
            vec![layer("add", &[], &[])],
            &[4],
            "layer `add1` (add): its input has shape [4] a sample; expected two or more inputs; name them with \
             inputs = [\"...\", \"...\"]",
        ),
        (
            vec![
                layer("relu a", &[], &[]),
                layer("relu", &[], &["a", "inputs"]),
            ],
            &[4],
            "layer `relu1` (relu): its input has shape [4] a sample; it is given 2 inputs but takes one; join them \
             with add or concat",
        ),
        (
            vec![layer(
                "embedding",
                &[("entries", &[5.0]), ("features", &[2.0])],
                &[],
            )],
            &[4],
            "layer `embedding1` (embedding): its input has shape [4] a sample; its input has dtype f32, expected i64 \
             indices; store the field as whole numbers",
        ),
        (
            vec![layer("attention", &[("heads", &[3.0])], &[])],
            &[5, 4],
            "layer `attention1` (attention): its input has shape [5, 4] a sample; 3 heads do not divide 4 features; \
             change one of the two",
        ),
        (
            vec![layer("lstm", linear, &[])],
            &[4],
            "layer `lstm1` (lstm): its input has shape [4] a sample; expected [positions, features]; give it a \
             series, or the output of an embedding",
        ),
        (
            vec![layer(
                "conv2d",
                &[("features", &[8.0]), ("kernel", &[1.0]), ("groups", &[3.0])],
                &[],
            )],
            &[4, 2, 2],
            "layer `conv2d1` (conv2d): its input has shape [4, 2, 2] a sample; 3 groups must divide 4 input channels \
             and 8 features",
        ),
        (
            vec![layer(
                "max-pool",
                &[("kernel", &[2.0]), ("padding", &[2.0])],
                &[],
            )],
            &[1, 4, 4],
            "layer `max-pool1` (max-pool): its input has shape [1, 4, 4] a sample; padding (2, 2) is more than half \
             the kernel (2, 2); lower it",
        ),
        (
            vec![layer("linear", &[("features", &[2147483647.0])], &[])],
            &[100_000],
            "layer `linear1` (linear): its input has shape [100000] a sample; a tensor of shape [2147483647, 100000] \
             is too large; lower its settings",
        ),
        // Sizes whose product does not fit into a machine word.
        (
            vec![layer(
                "conv2d",
                &[
                    ("features", &[2147483647.0]),
                    ("kernel", &[2147483647.0]),
                    ("padding", &[2147483647.0]),
                ],
                &[],
            )],
            &[1 << 20, 8, 8],
            "layer `conv2d1` (conv2d): its input has shape [1048576, 8, 8] a sample; a tensor of shape \
             [2147483647, 1048576, 2147483647, 2147483647] is too large; lower its settings",
        ),
        (
            vec![layer("flatten", &[], &[])],
            &[4294967295, 4294967295, 4294967295],
            "layer `flatten1` reads `inputs`, which is too large: [4294967295, 4294967295, 4294967295] a sample",
        ),
    ] {
        assert_eq!(refusal(&layers, shape), expected);
    }
    let tokens = [FieldShape {
        dtype: DType::I64,
        ..field(&[4])
    }];
    let error = Model::build(
        &[layer("linear", linear, &[])],
        &tokens,
        &[],
        &mut ParameterSet::new(),
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "layer `linear1` (linear): its input has shape [4] a sample; its input has dtype i64, expected f32; put a \
         layer of kind \"embedding\" before it, or store the field as f32"
    );
    let named = [FieldShape {
        name: "pixels".into(),
        ..field(&[4])
    }];
    let error = Model::build(
        &[layer("linear", linear, &[])],
        &named,
        &[],
        &mut ParameterSet::new(),
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "layer `linear1` reads `inputs`, which is not a field of the data; say what the first layer reads with \
         inputs = [\"...\"], one of pixels"
    );
}

fn tokens(values: &[i64], shape: &[usize]) -> Tensor {
    Tensor::from_vec(values.to_vec(), shape).unwrap()
}

fn build_for_tokens(layers: &[LayerPlan], steps: usize) -> (Model, ParameterSet) {
    let mut set = ParameterSet::new();
    let field = FieldShape {
        dtype: DType::I64,
        ..field(&[steps])
    };
    let model = Model::build(layers, &[field], &[7], &mut set).unwrap();
    (model, set)
}

fn run_with(
    model: &Model,
    set: &mut ParameterSet,
    x: &Tensor,
    overrides: &BTreeMap<String, Tensor>,
) -> Result<Tensor> {
    let inputs = [("inputs".to_owned(), x.clone())];
    let all = model.len();
    let out = model.forward(set, 0, all, &inputs, Mode::Eval, overrides, &[], &[1]);
    out.map(|forward| forward.output)
}

#[test]
fn a_tied_head_multiplies_by_the_embedding() {
    let embedding = layer(
        "embedding",
        &[("entries", &[3.0]), ("features", &[2.0])],
        &[],
    );
    let layers = [embedding, layer("tied-linear", &[], &[])];
    let (model, mut set) = build_for_tokens(&layers, 2);
    assert_eq!(set.names(), ["embedding1.weight"]);
    assert_eq!(model.infos()[1].out_shape, [2, 3]);
    assert_eq!(model.macs(0, 2), 2 * 2 * 3);
    let table = [1.0, 2.0, -1.0, 0.5, 3.0, -2.0];
    set.assign("embedding1.weight", &tensor(&table, &[3, 2]))
        .unwrap();
    let x = tokens(&[0, 2], &[1, 2]);
    let none = BTreeMap::new();
    let out = run_with(&model, &mut set, &x, &none).unwrap();
    // Row 0 with each row, then row 2 with each row.
    close(&out, &[5.0, 0.0, -1.0, -1.0, -4.0, 13.0], 1e-6);
    // What replaces the table replaces both of its uses.
    let other: Vec<f32> = table.iter().map(|x| 2.0 * x).collect();
    let other = BTreeMap::from([("embedding1.weight".to_owned(), tensor(&other, &[3, 2]))]);
    let out = run_with(&model, &mut set, &x, &other).unwrap();
    close(&out, &[20.0, 0.0, -4.0, -4.0, -16.0, 52.0], 1e-5);
}

#[test]
fn the_embedding_learns_from_both_of_its_uses() {
    let sizes: [(&str, &[f64]); 2] = [("entries", &[5.0]), ("features", &[4.0])];
    let head = layer(
        "linear head",
        &[("features", &[5.0]), ("bias", &[0.0])],
        &[],
    );
    let body = |last: LayerPlan| {
        let inner = layer("linear body", &[("features", &[4.0])], &[]);
        [
            layer("embedding e", &sizes, &[]),
            inner,
            layer("tanh", &[], &[]),
            last,
        ]
    };
    let (tied, mut set) = build_for_tokens(&body(layer("tied-linear", &[], &[])), 3);
    let (apart, mut other) = build_for_tokens(&body(head), 3);
    for name in ["e.weight", "body.weight", "body.bias"] {
        let value = set.stored(name).unwrap().clone();
        other.assign(name, &value).unwrap();
    }
    let table = set.stored("e.weight").unwrap().clone();
    other.assign("head.weight", &table).unwrap();
    let x = tokens(&[0, 1, 4, 4, 2, 1], &[2, 3]);
    let none = BTreeMap::new();
    let gradients = |model: &Model, set: &mut ParameterSet, names: &[&str]| -> Vec<Tensor> {
        let out = run_with(model, set, &x, &none).unwrap();
        let loss = ops::sum(&ops::multiply(&out, &ramp(&[2, 3, 5])).unwrap(), &[], false).unwrap();
        let leaves: Vec<Tensor> = names.iter().map(|name| set.value(name).unwrap()).collect();
        let leaves: Vec<&Tensor> = leaves.iter().collect();
        autograd::grad(&[&loss], &[None], &leaves, false, false).unwrap()
    };
    let both = gradients(&tied, &mut set, &["e.weight"]);
    let parts = gradients(&apart, &mut other, &["e.weight", "head.weight"]);
    assert!(floats(&parts[0]).iter().any(|x| x.abs() > 1e-2));
    assert!(floats(&parts[1]).iter().any(|x| x.abs() > 1e-2));
    let sum = ops::add(&parts[0], &parts[1]).unwrap();
    close(&both[0], &floats(&sum), 1e-5);
}

#[test]
fn an_embedding_without_a_size_is_refused_unless_there_is_a_vocabulary() {
    let field = FieldShape {
        dtype: DType::I64,
        ..field(&[4])
    };
    let refused = |layers: &[LayerPlan]| {
        Model::build(
            layers,
            std::slice::from_ref(&field),
            &[7],
            &mut ParameterSet::new(),
        )
        .unwrap_err()
        .to_string()
    };
    assert_eq!(
        refused(&[layer("embedding", &[("features", &[4.0])], &[])]),
        "layer `embedding1` (embedding): its input has shape [4] a sample; expected a vocabulary, which the \
         run's environment would give, or `entries = N`"
    );
    assert_eq!(
        refusal(&[layer("tied-linear", &[], &[])], &[4]),
        "layer `tied-linear1` (tied-linear): its input has shape [4] a sample; there is no embedding before it \
         whose table it could use; put one there, or use \"linear\""
    );
    let sizes: [(&str, &[f64]); 2] = [("entries", &[5.0]), ("features", &[4.0])];
    assert_eq!(
        refused(&[
            layer("embedding", &sizes, &[]),
            layer("linear", &[("features", &[3.0])], &[]),
            layer("tied-linear", &[], &[]),
        ]),
        "layer `tied-linear1` (tied-linear): its input has shape [4, 3] a sample; `embedding1.weight` has 4 \
         features; bring the input to as many with a linear layer"
    );
}

#[test]
fn a_transformer_block_stands_for_its_layers() {
    let block = layer(
        "transformer-block b",
        &[("features", &[4.0]), ("heads", &[2.0]), ("dropout", &[0.1])],
        &[],
    );
    let before = layer("linear stem", &[("features", &[4.0])], &[]);
    let after = layer("add", &[], &["stem", "b"]);
    let expanded = expand(&[before.clone(), block.clone(), after.clone()]).unwrap();
    let names: Vec<(&str, &str)> = expanded
        .iter()
        .map(|plan| (plan.name.as_str(), plan.kind.as_str()))
        .collect();
    let expected = [
        ("stem", "linear"),
        ("b-norm1", "layer-norm"),
        ("b-attention", "attention"),
        ("b-dropout1", "dropout"),
        ("b-add", "add"),
        ("b-norm2", "layer-norm"),
        ("b-linear1", "linear"),
        ("b-gelu", "gelu"),
        ("b-linear2", "linear"),
        ("b-dropout2", "dropout"),
        ("b", "add"),
        ("add1", "add"),
    ];
    assert_eq!(names, expected);
    assert_eq!(expand(&expanded).unwrap(), expanded);
    let (model, mut set) = build(&[before.clone(), block.clone(), after.clone()], &[3, 2]);
    assert_eq!(set.stored("b-linear1.weight").unwrap().shape(), [16, 4]);
    let infos = model.infos();
    assert_eq!(infos[4].inputs, [Input::Layer(0), Input::Layer(3)]);
    assert_eq!(infos[10].inputs, [Input::Layer(4), Input::Layer(9)]);
    assert_eq!(infos[11].inputs, [Input::Layer(0), Input::Layer(10)]);
    // It is causal: what comes later changes nothing before.
    let x = ramp(&[1, 3, 2]);
    let mut other = floats(&x);
    other[4] += 1.0;
    let out = run(&model, &mut set, &x, Mode::Eval);
    let moved = run(&model, &mut set, &tensor(&other, &[1, 3, 2]), Mode::Eval);
    assert_eq!(floats(&out)[..8], floats(&moved)[..8]);
    assert_ne!(floats(&out)[8..], floats(&moved)[8..]);
    // A block may be the first layer, and settings reach its layers.
    let first = layer(
        "transformer-block",
        &[
            ("features", &[2.0]),
            ("heads", &[1.0]),
            ("feed-forward", &[5.0]),
            ("causal", &[0.0]),
        ],
        &[],
    );
    let (_, set) = build(&[first], &[3, 2]);
    let shape = set
        .stored("transformer-block1-linear1.weight")
        .unwrap()
        .shape();
    assert_eq!(shape, [5, 2]);

    let clash = layer("relu b-gelu", &[], &[]);
    assert_eq!(
        refusal(&[before.clone(), block.clone(), clash], &[3, 2]),
        "layer `b-gelu`: `b` stands for several layers and calls one of them so; choose another name"
    );
    let mut two = block.clone();
    two.inputs = vec!["stem".into(), "inputs".into()];
    assert_eq!(
        refusal(&[before, two], &[3, 2]),
        "layer `b`: a transformer-block reads one thing, found stem, inputs; join them with add or concat"
    );
    assert_eq!(
        refusal(&[block], &[3, 6]),
        "layer `b` (add): its input has shape [3, 6] a sample; its inputs have shapes [3, 6] and [3, 4]; expected \
         one shape; bring them to one with a linear or conv2d layer (kernel 1) on the shorter path"
    );
}

#[test]
fn a_shorter_series_is_the_beginning_of_a_longer_one() {
    let sizes: [(&str, &[f64]); 2] = [("entries", &[5.0]), ("features", &[4.0])];
    let sines: [(&str, &[f64]); 1] = [("learned", &[0.0])];
    let block: [(&str, &[f64]); 2] = [("features", &[4.0]), ("heads", &[2.0])];
    let layers = [
        layer("embedding", &sizes, &[]),
        layer("position", &[], &[]),
        layer("position", &sines, &[]),
        layer("transformer-block", &block, &[]),
        layer("lstm", &[("features", &[4.0])], &[]),
        layer(
            "concat",
            &[("axis", &[1.0])],
            &["lstm1", "transformer-block1"],
        ),
        layer("dropout", &[], &[]),
        layer("linear", &[("features", &[4.0])], &[]),
        layer("tied-linear", &[], &[]),
    ];
    let (model, mut set) = build_for_tokens(&layers, 6);
    let none = BTreeMap::new();
    let long = tokens(&[0, 1, 2, 3, 4, 0, 4, 3, 2, 1, 0, 2], &[2, 6]);
    let whole = run_with(&model, &mut set, &long, &none).unwrap();
    for steps in 1..6 {
        let short = ops::slice(&long, 1, 0, steps).unwrap();
        let out = run_with(&model, &mut set, &short, &none).unwrap();
        let expected = ops::slice(&whole, 1, 0, steps).unwrap();
        close(&out, &floats(&expected.contiguous().unwrap()), 1e-6);
    }
    let error = run_with(&model, &mut set, &tokens(&[0; 7], &[1, 7]), &none).unwrap_err();
    assert_eq!(
        error.to_string(),
        "model.forward: layer `embedding1` reads `inputs`: found i64 [1, 7], expected i64 [samples, 6]"
    );
    let error = run_with(&model, &mut set, &tokens(&[], &[1, 0]), &none).unwrap_err();
    assert!(error.to_string().contains("found i64 [1, 0]"), "{error}");
    // Two series of a range are as long as each other.
    let at = model
        .infos()
        .iter()
        .position(|info| info.kind == "concat")
        .unwrap();
    let inputs = [("lstm1", [1, 3, 4]), ("transformer-block1", [1, 2, 4])]
        .map(|(name, shape)| (name.to_owned(), ramp(&shape)));
    let error = model
        .forward(&mut set, at, at + 1, &inputs, Mode::Eval, &none, &[], &[])
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "model.forward: `lstm1` has 3 steps and `transformer-block1` has 2; expected as many in both"
    );

    let layers = [layer("embedding", &sizes, &[]), layer("flatten", &[], &[])];
    let (model, mut set) = build_for_tokens(&layers, 6);
    let error = run_with(&model, &mut set, &tokens(&[0; 5], &[1, 5]), &none).unwrap_err();
    assert_eq!(
        error.to_string(),
        "model.forward: layer `embedding1` reads `inputs`: found i64 [1, 5], expected i64 [samples, 6]; layer \
         `flatten1` (flatten) takes no other length"
    );
}
