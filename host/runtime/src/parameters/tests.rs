#![allow(clippy::unwrap_used)]
use super::*;
use espalier_tensor::autograd;

fn tensor(values: &[f32]) -> Tensor {
    Tensor::from_vec(values.to_vec(), &[values.len()]).unwrap()
}

fn flags(values: &[bool]) -> Tensor {
    Tensor::from_vec(values.to_vec(), &[values.len()]).unwrap()
}

fn values(t: &Tensor) -> Vec<f32> {
    t.to_vec::<f32>().unwrap()
}

fn bits(t: &Tensor) -> Vec<u32> {
    values(t).into_iter().map(f32::to_bits).collect()
}

/// `w` (weight) = [1, -2, 3, -4] and `b` (bias) = [0.5].
fn sample() -> ParameterSet {
    let mut set = ParameterSet::new();
    set.create(
        "w",
        Kind::Weight,
        Some(0),
        tensor(&[1.0, -2.0, 3.0, -4.0]),
        true,
        String::new(),
    )
    .unwrap();
    set.create(
        "b",
        Kind::Bias,
        Some(0),
        tensor(&[0.5]),
        true,
        "heads".into(),
    )
    .unwrap();
    set
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|name| (*name).to_owned()).collect()
}

const SGD: Sgd = Sgd {
    lr: 0.1,
    momentum: 0.9,
    weight_decay: 0.01,
    nesterov: false,
};
const ADAM: Adam = Adam {
    lr: 0.1,
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.01,
    decoupled: false,
};
const ADAMW: Adam = Adam {
    decoupled: true,
    ..ADAM
};

#[test]
fn parameters_stand_in_the_order_of_creation() {
    let set = sample();
    assert_eq!(set.names(), ["w", "b"]);
    assert_eq!(
        set.infos()[1],
        ParameterInfo {
            name: "b".into(),
            kind: Kind::Bias,
            layer: Some(0),
            shape: vec![1],
            dtype: DType::F32,
            trainable: true,
            group: "heads".into(),
        }
    );
}

#[test]
fn the_value_is_a_tracked_leaf_until_it_changes() {
    let mut set = sample();
    let leaf = set.value("w").unwrap();
    assert!(leaf.requires_grad() && leaf.is_leaf());
    // The same leaf twice: a gradient with respect to the second reaches the first.
    let loss = ops::sum(&ops::multiply(&leaf, &leaf).unwrap(), &[], false).unwrap();
    let again = set.value("w").unwrap();
    let grads = autograd::grad(&[&loss], &[None], &[&again], false, false).unwrap();
    assert_eq!(values(&grads[0]), [2.0, -4.0, 6.0, -8.0]);
    set.assign("w", &tensor(&[5.0; 4])).unwrap();
    assert_eq!(values(&leaf), [1.0, -2.0, 3.0, -4.0]);
    assert_eq!(values(&set.value("w").unwrap()), [5.0; 4]);
}

#[test]
fn a_frozen_parameter_still_has_gradients_and_a_buffer_has_none() {
    let mut set = sample();
    set.set_trainable("w", false).unwrap();
    assert!(set.value("w").unwrap().requires_grad());
    set.create(
        "m",
        Kind::Buffer,
        None,
        tensor(&[0.0]),
        false,
        String::new(),
    )
    .unwrap();
    assert!(!set.value("m").unwrap().requires_grad());
    let counter = Tensor::from_vec(vec![3i64], &[1]).unwrap();
    set.create("n", Kind::Buffer, None, counter, false, String::new())
        .unwrap();
    assert_eq!(set.value("n").unwrap().to_vec::<i64>().unwrap(), [3]);
}

#[test]
fn assign_cuts_the_graph() {
    let mut set = sample();
    let tracked = ops::multiply(&set.value("w").unwrap(), 2.0).unwrap();
    set.assign("w", &tracked).unwrap();
    assert!(!set.stored("w").unwrap().requires_grad());
    assert!(set.value("w").unwrap().is_leaf());
}

#[test]
fn one_step_of_momentum_and_of_adam_by_hand() {
    let mut set = sample();
    let how = Sgd {
        lr: 0.1,
        momentum: 0.5,
        weight_decay: 0.0,
        nesterov: false,
    };
    for _ in 0..2 {
        set.sgd(&names(&["b"]), &[tensor(&[1.0])], &how).unwrap();
    }
    // Buffer 1, then 0.5 * 1 + 1 = 1.5; 0.5 - 0.1 - 0.15.
    assert!((values(set.stored("b").unwrap())[0] - 0.25).abs() < 1e-6);
    let how = Adam {
        lr: 0.1,
        beta1: 0.9,
        beta2: 0.999,
        eps: 0.0,
        weight_decay: 0.0,
        decoupled: false,
    };
    set.adam(&names(&["b"]), &[tensor(&[7.0])], &how).unwrap();
    // The first step of Adam is lr times the sign of the gradient.
    assert!((values(set.stored("b").unwrap())[0] - 0.15).abs() < 1e-6);
    assert_eq!(values(set.stored("w").unwrap()), [1.0, -2.0, 3.0, -4.0]);
}

#[test]
fn masked_weights_stay_exactly_zero_through_momentum_adam_and_weight_decay() {
    let mut set = sample();
    let grad = [tensor(&[1.0, -1.0, 0.5, 2.0])];
    set.sgd(&names(&["w"]), &grad, &SGD).unwrap();
    set.adam(&names(&["w"]), &grad, &ADAM).unwrap();
    set.set_mask("w", Some(&flags(&[true, false, true, false])), false)
        .unwrap();
    let dead = |set: &ParameterSet| {
        let bits = bits(set.stored("w").unwrap());
        (bits[1], bits[3])
    };
    assert_eq!(dead(&set), (0, 0), "positive zero at once");
    for _ in 0..5 {
        set.sgd(&names(&["w"]), &grad, &SGD).unwrap();
        assert_eq!(dead(&set), (0, 0));
        set.adam(&names(&["w"]), &grad, &ADAM).unwrap();
        assert_eq!(dead(&set), (0, 0));
        set.adam(&names(&["w"]), &grad, &ADAMW).unwrap();
        assert_eq!(dead(&set), (0, 0));
    }
    assert_ne!(values(set.stored("w").unwrap())[0], 1.0);
    // State at dead positions is gone: without the mask and with no gradient they do not move.
    set.set_mask("w", None, false).unwrap();
    set.sgd(&names(&["w"]), &[tensor(&[0.0; 4])], &SGD).unwrap();
    set.adam(&names(&["w"]), &[tensor(&[0.0; 4])], &ADAM)
        .unwrap();
    let after = values(set.stored("w").unwrap());
    assert_eq!((after[1], after[3]), (0.0, 0.0));
}

#[test]
fn assigning_under_a_mask_keeps_the_dead_positions_at_zero() {
    let mut set = sample();
    set.set_mask("w", Some(&tensor(&[0.0, 1.0, 1.0, 0.0])), false)
        .unwrap();
    set.assign("w", &tensor(&[f32::NAN, 2.0, 3.0, -9.0]))
        .unwrap();
    assert_eq!(
        bits(set.stored("w").unwrap()),
        [0, 2f32.to_bits(), 3f32.to_bits(), 0]
    );
}

#[test]
fn gradients_are_dense_at_masked_positions() {
    for keep in [false, true] {
        let mut set = sample();
        set.set_mask("w", Some(&flags(&[false, true, true, false])), keep)
            .unwrap();
        let leaf = set.value("w").unwrap();
        assert_eq!(values(&leaf), [0.0, -2.0, 3.0, 0.0]);
        let scaled = ops::multiply(&leaf, &tensor(&[5.0, 6.0, 7.0, 8.0])).unwrap();
        let loss = ops::sum(&scaled, &[], false).unwrap();
        let grads = autograd::grad(&[&loss], &[None], &[&leaf], false, false).unwrap();
        assert_eq!(values(&grads[0]), [5.0, 6.0, 7.0, 8.0]);
    }
}

#[test]
fn a_mask_that_keeps_hides_values_and_gives_them_back() {
    let mut set = sample();
    set.set_mask("w", Some(&flags(&[false, true, true, false])), true)
        .unwrap();
    assert_eq!(values(set.stored("w").unwrap()), [1.0, -2.0, 3.0, -4.0]);
    // Hidden weights go on learning.
    let how = Sgd {
        lr: 1.0,
        momentum: 0.0,
        weight_decay: 0.0,
        nesterov: false,
    };
    set.sgd(&names(&["w"]), &[tensor(&[1.0; 4])], &how).unwrap();
    assert_eq!(values(&set.value("w").unwrap()), [0.0, -3.0, 2.0, 0.0]);
    set.set_mask("w", None, true).unwrap();
    assert_eq!(values(&set.value("w").unwrap()), [0.0, -3.0, 2.0, -5.0]);
}

#[test]
fn rollback_restores_every_bit_and_the_steps_after_it() {
    let mut set = sample();
    let grad = [tensor(&[0.3, -0.1, 0.7, 1.1]), tensor(&[-0.2])];
    let both = names(&["w", "b"]);
    let train = |set: &mut ParameterSet| {
        for _ in 0..3 {
            set.sgd(&both, &grad, &SGD).unwrap();
            set.adam(&both, &grad, &ADAM).unwrap();
        }
    };
    train(&mut set);
    set.set_mask("w", Some(&flags(&[true, true, false, true])), false)
        .unwrap();
    set.snapshot("here");
    let digest = set.content_digest().unwrap();
    train(&mut set);
    let later = set.content_digest().unwrap();
    assert_ne!(later, digest);
    set.set_mask("w", Some(&flags(&[false; 4])), false).unwrap();
    set.create("new", Kind::Bias, None, tensor(&[1.0]), true, String::new())
        .unwrap();
    set.reset_state(&both).unwrap();
    set.rollback("here").unwrap();
    assert_eq!(set.names(), ["w", "b"]);
    assert_eq!(set.content_digest().unwrap(), digest);
    assert_eq!(
        set.mask("w").unwrap().unwrap().to_vec::<bool>().unwrap(),
        [true, true, false, true]
    );
    // Optimiser state and step counts came back too, or the same steps would lead elsewhere.
    train(&mut set);
    assert_eq!(set.content_digest().unwrap(), later);
    assert!(set.has_tag("here"));
}

#[test]
fn a_snapshot_is_not_changed_by_steps_in_place() {
    let mut set = sample();
    set.snapshot("start");
    let handle = set.value("w").unwrap();
    for _ in 0..3 {
        set.sgd(&names(&["w"]), &[tensor(&[1.0; 4])], &SGD).unwrap();
    }
    assert_eq!(values(&handle), [1.0, -2.0, 3.0, -4.0]);
    set.rollback("start").unwrap();
    assert_eq!(values(set.stored("w").unwrap()), [1.0, -2.0, 3.0, -4.0]);
}

#[test]
fn a_rewind_brings_values_back_under_the_masks_of_now() {
    let mut set = sample();
    set.snapshot("start");
    set.sgd(
        &names(&["w", "b"]),
        &[tensor(&[1.0; 4]), tensor(&[1.0])],
        &SGD,
    )
    .unwrap();
    set.set_mask("w", Some(&flags(&[true, false, true, true])), false)
        .unwrap();
    set.restore_keeping_masks("start").unwrap();
    assert_eq!(values(set.stored("w").unwrap()), [1.0, 0.0, 3.0, -4.0]);
    assert_eq!(values(set.stored("b").unwrap()), [0.5]);
    assert_eq!(
        set.mask("w").unwrap().unwrap().to_vec::<bool>().unwrap(),
        [true, false, true, true]
    );
    // No momentum was there at the start: the next step equals the first step of a fresh set.
    let mut fresh = sample();
    fresh
        .set_mask("w", Some(&flags(&[true, false, true, true])), false)
        .unwrap();
    for set in [&mut set, &mut fresh] {
        set.sgd(&names(&["w"]), &[tensor(&[1.0; 4])], &SGD).unwrap();
    }
    assert_eq!(
        set.content_digest().unwrap(),
        fresh.content_digest().unwrap()
    );
}

#[test]
fn density_counts_masks_and_else_values_of_weights() {
    let mut set = sample();
    assert_eq!(set.density().unwrap(), (4, 4));
    set.assign("w", &tensor(&[0.0, 1.0, -0.0, 2.0])).unwrap();
    assert_eq!(set.density().unwrap(), (2, 4));
    set.set_mask("w", Some(&flags(&[true, true, true, false])), true)
        .unwrap();
    assert_eq!(set.density().unwrap(), (3, 4));
}

#[test]
fn export_and_import_give_the_same_set_tags_and_future() {
    let mut set = sample();
    let grad = [tensor(&[0.3, -0.1, 0.7, 1.1]), tensor(&[-0.2])];
    let both = names(&["w", "b"]);
    set.adam(&both, &grad, &ADAM).unwrap();
    set.snapshot("early");
    set.set_mask("w", Some(&flags(&[true, true, false, true])), false)
        .unwrap();
    set.set_mask("b", Some(&flags(&[false])), true).unwrap();
    set.set_trainable("b", false).unwrap();
    set.sgd(&both[..1], &grad[..1], &SGD).unwrap();
    let (tensors, meta) = set.export("main");
    let text = meta.to_string();
    let tensors: BTreeMap<String, Tensor> = tensors.into_iter().collect();
    let mut copy =
        ParameterSet::import("main", &tensors, &serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(copy.infos(), set.infos());
    assert_eq!(
        copy.content_digest().unwrap(),
        set.content_digest().unwrap()
    );
    assert_eq!(values(&copy.value("b").unwrap()), [0.0]);
    for set in [&mut set, &mut copy] {
        set.adam(&both[..1], &grad[..1], &ADAM).unwrap();
        set.sgd(&both[..1], &grad[..1], &SGD).unwrap();
    }
    assert_eq!(
        copy.content_digest().unwrap(),
        set.content_digest().unwrap()
    );
    for set in [&mut set, &mut copy] {
        set.rollback("early").unwrap();
        assert!(set.mask("w").unwrap().is_none());
        set.adam(&both, &grad, &ADAM).unwrap();
    }
    assert_eq!(
        copy.content_digest().unwrap(),
        set.content_digest().unwrap()
    );
}

#[test]
fn an_import_that_lacks_a_tensor_says_which() {
    let (tensors, meta) = sample().export("main");
    let kept: BTreeMap<String, Tensor> = tensors
        .into_iter()
        .filter(|(name, _)| name != "main/value/b")
        .collect();
    assert_eq!(
        ParameterSet::import("main", &kept, &meta)
            .unwrap_err()
            .to_string(),
        "saved parameters `main`: tensor `main/value/b` is missing; the checkpoint is from another version or \
         damaged"
    );
}

#[test]
fn a_refused_update_changes_nothing() {
    let mut set = sample();
    set.create(
        "m",
        Kind::Buffer,
        None,
        tensor(&[0.0]),
        false,
        String::new(),
    )
    .unwrap();
    let digest = set.content_digest().unwrap();
    let w = || tensor(&[1.0; 4]);
    let one = || tensor(&[1.0]);
    for (list, grads, expected) in [
        (
            vec!["w", "c"],
            vec![w(), one()],
            "no parameter is named `c`; did you mean `b`?",
        ),
        (
            vec!["w", "b"],
            vec![w(), w()],
            "sgd: parameter `b` has shape [1] and dtype f32, the gradient has shape [4] and dtype f32",
        ),
        (
            vec!["w"],
            vec![w(), w()],
            "sgd: 1 names but 2 gradients; give one gradient for each name, in order",
        ),
        (
            vec!["w", "w"],
            vec![w(), w()],
            "sgd: parameter `w` is named twice; add its gradients first",
        ),
        (
            vec!["w", "m"],
            vec![w(), one()],
            "sgd: parameter `m` is a buffer; set it with assign",
        ),
    ] {
        assert_eq!(
            set.sgd(&names(&list), &grads, &SGD)
                .unwrap_err()
                .to_string(),
            expected
        );
        assert_eq!(set.content_digest().unwrap(), digest);
    }
    set.set_trainable("b", false).unwrap();
    assert_eq!(
        set.adam(&names(&["b"]), &[one()], &ADAM)
            .unwrap_err()
            .to_string(),
        "adam: parameter `b` is not trainable; leave it out of the list of names, or let the run file train it"
    );
}

#[test]
fn other_misuse_is_refused_by_name() {
    let mut set = sample();
    assert_eq!(
        set.create("w", Kind::Weight, None, tensor(&[1.0]), true, String::new())
            .unwrap_err()
            .to_string(),
        "a parameter named `w` exists already; choose another name, or change it with assign"
    );
    let whole = Tensor::from_vec(vec![1i64], &[1]).unwrap();
    assert_eq!(
        set.create("i", Kind::Weight, None, whole, true, String::new())
            .unwrap_err()
            .to_string(),
        "parameter `i` of kind weight has dtype i64; only a buffer may be other than f32 or f64"
    );
    assert_eq!(
        set.set_mask("w", Some(&flags(&[true])), false)
            .unwrap_err()
            .to_string(),
        "set-mask: parameter `w` has shape [4] and dtype f32, the mask has shape [1] and dtype bool"
    );
    assert_eq!(
        set.rollback("best").unwrap_err().to_string(),
        "no snapshot is tagged `best`; none has been taken yet"
    );
    set.snapshot("start");
    assert_eq!(
        set.rollback("best").unwrap_err().to_string(),
        "no snapshot is tagged `best`; there are `start`"
    );
}

#[test]
fn an_assignment_over_the_budget_changes_nothing() {
    use espalier_tensor::account::Account;
    let mut set = sample();
    set.set_mask("w", Some(&flags(&[true, true, false, true])), false)
        .unwrap();
    let digest = set.content_digest().unwrap();
    let value = tensor(&[7.0; 4]);
    let account = Account::new(Some(0));
    let scope = account.enter();
    assert!(
        set.assign("w", &value)
            .unwrap_err()
            .to_string()
            .starts_with("assign: parameter `w`: ")
    );
    drop(scope);
    assert_eq!(set.content_digest().unwrap(), digest);
}

/// Gradients of sum(x w) with respect to x and `w`, with w seen as a column.
fn through_a_product(set: &mut ParameterSet, x: &[f32]) -> (f32, Vec<f32>, Vec<f32>) {
    let x = Tensor::from_vec(x.to_vec(), &[1, x.len()])
        .unwrap()
        .with_requires_grad();
    let w = set.value("w").unwrap();
    let y = ops::matmul(&x, &ops::reshape(&w, &[-1, 1]).unwrap()).unwrap();
    let loss = ops::sum(&y, &[], false).unwrap();
    let found = autograd::grad(&[&loss], &[None], &[&x, &w], false, false).unwrap();
    (
        loss.item().unwrap() as f32,
        values(&found[0]),
        values(&found[1]),
    )
}

#[test]
fn other_values_stand_for_a_parameter_forward_and_backward_until_they_are_removed() {
    let mut set = sample();
    let (forward, backward) = (tensor(&[1.0, 0.0, 3.0, 0.0]), tensor(&[0.0, 5.0, 6.0, 7.0]));
    let x = [1.0, 1.0, 1.0, 1.0];
    set.set_effective("w", Some(&forward), Some(&backward))
        .unwrap();
    let (dx, dw) = (vec![0.0, 5.0, 6.0, 7.0], vec![1.0; 4]);
    assert_eq!(
        through_a_product(&mut set, &x),
        (4.0, dx.clone(), dw.clone())
    );
    set.set_effective("w", Some(&forward), None).unwrap();
    assert_eq!(
        through_a_product(&mut set, &x),
        (4.0, values(&forward), dw.clone())
    );
    set.set_effective("w", None, Some(&backward)).unwrap();
    assert_eq!(through_a_product(&mut set, &x), (-2.0, dx, dw.clone()));
    set.set_effective("w", None, None).unwrap();
    assert_eq!(
        through_a_product(&mut set, &x),
        (-2.0, vec![1.0, -2.0, 3.0, -4.0], dw)
    );
    assert!(matches!(
        set.set_effective("w", Some(&tensor(&[1.0])), None),
        Err(Error::Mismatch {
            what: "forward value",
            ..
        })
    ));
    assert!(matches!(
        set.set_effective("w", None, Some(&flags(&[true; 4]))),
        Err(Error::Mismatch {
            what: "backward value",
            ..
        })
    ));
}

#[test]
fn updates_change_the_stored_value_and_not_what_stands_for_it() {
    let mut set = sample();
    let forward = tensor(&[1.0, 0.0, 3.0, 0.0]);
    set.set_effective("w", Some(&forward), None).unwrap();
    let how = Sgd {
        lr: 1.0,
        momentum: 0.0,
        weight_decay: 0.0,
        nesterov: false,
    };
    set.sgd(&names(&["w"]), &[tensor(&[0.5, 0.5, 0.0, 0.0])], &how)
        .unwrap();
    assert_eq!(values(set.stored("w").unwrap()), [0.5, -2.5, 3.0, -4.0]);
    assert_eq!(values(&set.value("w").unwrap()), values(&forward));
    assert_eq!(set.density().unwrap(), (2, 4));
}

#[test]
fn a_mask_of_either_kind_hides_places_of_both() {
    for keep in [false, true] {
        let mut set = sample();
        set.set_effective(
            "w",
            Some(&tensor(&[1.0, 2.0, 3.0, 4.0])),
            Some(&tensor(&[5.0, 6.0, 7.0, 8.0])),
        )
        .unwrap();
        set.set_mask("w", Some(&flags(&[true, false, true, false])), keep)
            .unwrap();
        let (y, dx, _) = through_a_product(&mut set, &[1.0; 4]);
        assert_eq!((y, dx), (4.0, vec![5.0, 0.0, 7.0, 0.0]));
        set.set_mask("w", None, keep).unwrap();
        assert_eq!(through_a_product(&mut set, &[1.0; 4]).0, 10.0);
        let stored = values(set.stored("w").unwrap());
        assert_eq!(stored == [1.0, -2.0, 3.0, -4.0], keep);
    }
}

#[test]
fn snapshots_clones_and_checkpoints_hold_what_stands_for_a_parameter() {
    let mut set = sample();
    set.set_effective(
        "w",
        Some(&tensor(&[1.0, 0.0, 3.0, 0.0])),
        Some(&tensor(&[0.0, 5.0, 6.0, 7.0])),
    )
    .unwrap();
    let expected = through_a_product(&mut set, &[1.0; 4]);
    let with = set.content_digest().unwrap();
    set.snapshot("before");
    assert_eq!(through_a_product(&mut set.duplicate(), &[1.0; 4]), expected);
    set.set_effective("w", None, None).unwrap();
    assert_ne!(set.content_digest().unwrap(), with);
    set.rollback("before").unwrap();
    assert_eq!(through_a_product(&mut set, &[1.0; 4]), expected);
    let (tensors, meta) = set.export("main");
    let mut back = ParameterSet::import("main", &tensors.into_iter().collect(), &meta).unwrap();
    assert_eq!(back.content_digest().unwrap(), with);
    assert_eq!(through_a_product(&mut back, &[1.0; 4]), expected);
    back.set_effective("w", None, None).unwrap();
    back.rollback("before").unwrap();
    assert_eq!(through_a_product(&mut back, &[1.0; 4]), expected);
}
