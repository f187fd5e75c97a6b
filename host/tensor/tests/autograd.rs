//! What the gradient graph promises besides right numbers: what is reached, what is kept, what is freed.
#![allow(clippy::unwrap_used)]

use espalier_tensor::account::Account;
use espalier_tensor::autograd::{grad, grad_enabled, no_grad, set_grad_enabled, vjp};
use espalier_tensor::threads::Pool;
use espalier_tensor::{DType, Error, Tensor, nn, ops};

fn leaf(values: &[f64]) -> Tensor {
    Tensor::from_f64s(values, &[values.len()], DType::F64)
        .unwrap()
        .with_requires_grad()
}

fn total(t: &Tensor) -> Tensor {
    ops::sum(t, &[], false).unwrap()
}

/// Gradient of the sum of `y`, which is freed.
fn slope(y: &Tensor, x: &Tensor) -> Vec<f64> {
    grad(&[&total(y)], &[None], &[x], false, false).unwrap()[0]
        .to_list()
        .unwrap()
}

#[test]
fn derivatives_at_kinks_and_ties_are_as_documented() {
    let x = leaf(&[-1.0, 0.0, 2.0]);
    assert_eq!(slope(&ops::relu(&x).unwrap(), &x), [0.0, 0.0, 1.0]);
    assert_eq!(slope(&ops::abs(&x).unwrap(), &x), [-1.0, 0.0, 1.0]);
    assert_eq!(slope(&ops::maximum(&x, 0.0).unwrap(), &x), [0.0, 1.0, 1.0]);
    assert_eq!(slope(&ops::maximum(0.0, &x).unwrap(), &x), [0.0, 0.0, 1.0]);
    assert_eq!(slope(&ops::minimum(&x, 0.0).unwrap(), &x), [1.0, 1.0, 0.0]);
    let root = slope(&ops::sqrt(&leaf(&[0.0, 4.0])).unwrap(), &leaf(&[1.0]));
    assert_eq!(root, [0.0], "an input of another graph");
    let zero = leaf(&[0.0, 4.0]);
    assert_eq!(
        slope(&ops::sqrt(&zero).unwrap(), &zero),
        [f64::INFINITY, 0.25]
    );
    let tied = leaf(&[1.0, 3.0, 3.0]);
    assert_eq!(
        slope(&ops::max(&tied, 0, false).unwrap(), &tied),
        [0.0, 1.0, 0.0]
    );
    assert_eq!(
        slope(&ops::top_k(&tied, 1, 0).unwrap().0, &tied),
        [0.0, 1.0, 0.0]
    );
}

#[test]
fn the_branch_not_taken_has_gradient_zero_even_where_it_is_not_finite() {
    for create_graph in [false, true] {
        let x = leaf(&[-1.0, 4.0]);
        let positive = ops::less(0.0, &x).unwrap();
        let y = ops::where_(&positive, &ops::sqrt(&ops::relu(&x).unwrap()).unwrap(), 0.0).unwrap();
        // The root's own gradient at 0 is infinite, but nothing flows into it there: 0 times infinity
        // would be NaN, and the relu in front cuts it.
        let found = grad(&[&total(&y)], &[None], &[&x], create_graph, false).unwrap();
        assert_eq!(found[0].to_list().unwrap()[1], 0.25);
        let z = ops::where_(&positive, &x, f64::NAN).unwrap();
        let found = grad(&[&total(&z)], &[None], &[&x], create_graph, false).unwrap();
        assert_eq!(found[0].to_list().unwrap(), [0.0, 1.0]);
    }
}

#[test]
fn inputs_that_are_not_reached_get_zeros_of_their_shape() {
    let (x, other) = (leaf(&[1.0, 2.0]), leaf(&[1.0, 2.0, 3.0]));
    let plain = Tensor::ones(&[4], DType::F32).unwrap();
    let y = ops::exp(&x).unwrap();
    let found = grad(
        &[&total(&y)],
        &[None],
        &[&other, &plain, &x.detach()],
        false,
        true,
    )
    .unwrap();
    assert_eq!(found[0].to_list().unwrap(), [0.0; 3]);
    assert_eq!((found[1].shape(), found[1].dtype()), (&[4][..], DType::F32));
    assert_eq!(found[2].to_list().unwrap(), [0.0; 2]);
    // The graph of y was not on a path to them and is still whole.
    assert_eq!(slope(&y, &x), y.to_list().unwrap());
}

#[test]
fn inputs_inside_the_graph_are_differentiated_too() {
    let x = leaf(&[1.0, 2.0]);
    let inner = ops::multiply(&x, &x).unwrap();
    let y = total(&ops::multiply(&inner, 3.0).unwrap());
    let found = grad(&[&y], &[None], &[&inner, &x, &inner], false, false).unwrap();
    assert_eq!(found[0].to_list().unwrap(), [3.0, 3.0]);
    assert_eq!(found[1].to_list().unwrap(), [6.0, 12.0]);
    assert_eq!(found[2].to_list().unwrap(), [3.0, 3.0]);
}

#[test]
fn an_input_inside_the_graph_cuts_what_lies_below_it() {
    let account = Account::new(None);
    let _scope = account.enter();
    let x = leaf(&[1.0]);
    let inner = ops::exp(&x).unwrap();
    let y = total(&ops::multiply(&inner, 2.0).unwrap());
    grad(&[&y], &[None], &[&inner], false, false).unwrap();
    // The exp was not on a path, so it can still be used.
    assert_eq!(account.live_nodes(), 1);
    let value = inner.to_list().unwrap();
    assert_eq!(slope(&inner, &x), value);
}

#[test]
fn several_outputs_add_up_with_their_cotangents() {
    let x = leaf(&[1.0, 2.0]);
    let (a, b) = (
        ops::multiply(&x, 2.0).unwrap(),
        ops::multiply(&x, &x).unwrap(),
    );
    let (ca, cb) = (leaf(&[1.0, 10.0]), leaf(&[100.0, 1000.0]));
    let found = vjp(&[&a, &b], &[&ca, &cb], &[&x]).unwrap();
    assert_eq!(found[0].to_list().unwrap(), [202.0, 4020.0]);
    assert!(!found[0].requires_grad());
    // The same output twice counts twice, and an output may be an input.
    let found = grad(&[&x, &x], &[Some(&ca), Some(&ca)], &[&x], false, false).unwrap();
    assert_eq!(found[0].to_list().unwrap(), [2.0, 20.0]);
}

#[test]
fn a_freed_graph_is_refused_and_a_kept_one_is_not() {
    let x = leaf(&[3.0]);
    let y = total(&ops::multiply(&x, &x).unwrap());
    for _ in 0..3 {
        let found = grad(&[&y], &[None], &[&x], false, true).unwrap();
        assert_eq!(found[0].to_list().unwrap(), [6.0]);
    }
    grad(&[&y], &[None], &[&x], false, false).unwrap();
    let refused = grad(&[&y], &[None], &[&x], false, false).unwrap_err();
    assert_eq!(refused, Error::GraphFreed { op: "sum" });
    assert!(refused.to_string().contains("retain_graph"));
}

#[test]
fn a_freed_part_is_no_obstacle_where_it_is_not_needed() {
    let (w, x) = (leaf(&[5.0]), leaf(&[3.0]));
    let h = ops::exp(&ops::multiply(&x, &x).unwrap()).unwrap();
    let value = h.to_list().unwrap();
    slope(&h, &x);
    let y = ops::multiply(&h, &w).unwrap();
    assert_eq!(
        grad(&[&y], &[None], &[&w, &h], false, true).unwrap()[0]
            .to_list()
            .unwrap(),
        value
    );
    let refused = grad(&[&y], &[None], &[&w, &x], false, true).unwrap_err();
    assert_eq!(refused, Error::GraphFreed { op: "exp" });
}

#[test]
fn branches_off_the_path_go_with_the_path_unless_someone_holds_them() {
    let account = Account::new(None);
    let _scope = account.enter();
    let (x, z) = (leaf(&[1.0]), leaf(&[2.0]));
    let held = ops::exp(&z).unwrap();
    let y = ops::add(
        &ops::add(&ops::sin(&x).unwrap(), &ops::cos(&z).unwrap()).unwrap(),
        &held,
    )
    .unwrap();
    assert_eq!(account.live_nodes(), 5);
    grad(&[&y], &[None], &[&x], false, false).unwrap();
    // The cosine went with the sum above it; the exponential is still in use.
    assert_eq!(account.live_nodes(), 1);
    assert_eq!(slope(&held, &z), held.to_list().unwrap());
    // What lay below the sum is unknown now, so it is refused rather than called unreached.
    assert!(matches!(
        grad(&[&y], &[None], &[&z], false, false),
        Err(Error::GraphFreed { .. })
    ));
}

#[test]
fn gradients_of_gradients_reach_every_order() {
    // d^n/dx^n of x^5 at 2: 80, 160, 240, 240, 120, 0.
    let x = Tensor::full(&[], 2.0, DType::F64)
        .unwrap()
        .with_requires_grad();
    let mut y = x.clone();
    for _ in 0..4 {
        y = ops::multiply(&y, &x).unwrap();
    }
    for expected in [80.0, 160.0, 240.0, 240.0, 120.0, 0.0] {
        y = grad(&[&y], &[None], &[&x], true, false).unwrap().remove(0);
        assert_eq!(y.item().unwrap(), expected);
    }
}

#[test]
fn recording_stops_in_a_scope_and_resumes_after_it() {
    let x = leaf(&[1.0]);
    {
        let _outer = no_grad();
        assert!(!grad_enabled());
        {
            let _inner = no_grad();
            assert!(!ops::exp(&x).unwrap().requires_grad());
        }
        assert!(!grad_enabled());
    }
    assert!(grad_enabled());
    assert!(ops::exp(&x).unwrap().requires_grad());
    // A failing grad restores the mode as well.
    assert!(grad(&[&x], &[None, None], &[&x], false, false).is_err());
    assert!(grad_enabled());
    assert!(set_grad_enabled(false));
    let y = grad(&[&x], &[None], &[&x], true, false).unwrap();
    assert_eq!(y[0].item().unwrap(), 1.0);
    assert!(!set_grad_enabled(true));
}

#[test]
fn detached_tensors_and_new_leaves_share_elements_but_no_graph() {
    let account = Account::new(None);
    let _scope = account.enter();
    let x = leaf(&[1.0, 2.0]);
    let y = ops::exp(&x).unwrap();
    let before = account.used_bytes();
    let (cut, fresh) = (y.detach(), y.with_requires_grad());
    assert_eq!(account.used_bytes(), before);
    assert!(!cut.requires_grad() && cut.is_leaf());
    assert!(fresh.requires_grad() && fresh.is_leaf() && !y.is_leaf());
    assert_eq!(
        slope(&ops::multiply(&fresh, &y).unwrap(), &fresh),
        y.to_list().unwrap()
    );
    let through = ops::multiply(&cut, &x).unwrap();
    assert_eq!(slope(&through, &x), cut.to_list().unwrap());
    assert!(
        !Tensor::zeros(&[1], DType::I64)
            .unwrap()
            .with_requires_grad()
            .requires_grad()
    );
}

#[test]
fn memory_and_nodes_return_to_where_they_were() {
    let account = Account::new(None);
    let _scope = account.enter();
    let x = Tensor::ones(&[64, 64], DType::F32)
        .unwrap()
        .with_requires_grad();
    let w = Tensor::ones(&[64, 64], DType::F32)
        .unwrap()
        .with_requires_grad();
    let start = account.used_bytes();
    for create_graph in [false, true] {
        {
            let mut h = x.clone();
            for _ in 0..5 {
                h = ops::tanh(&ops::matmul(&h, &w).unwrap()).unwrap();
            }
            let loss = total(&h);
            drop(h);
            assert_eq!(account.live_nodes(), 11);
            let found = grad(&[&loss], &[None], &[&w], create_graph, false).unwrap();
            if create_graph {
                let again = grad(&[&total(&found[0])], &[None], &[&w, &x], false, false).unwrap();
                drop(again);
            }
            drop(found);
            if !create_graph {
                // The loss is still held: its value, and no graph.
                assert_eq!((account.used_bytes(), account.live_nodes()), (start + 4, 0));
            }
        }
        assert_eq!((account.used_bytes(), account.live_nodes()), (start, 0));
    }
}

#[test]
fn saved_tensors_go_as_soon_as_their_rule_has_run() {
    const BYTES: u64 = 8 * 1000;
    let account = Account::new(None);
    let _scope = account.enter();
    let x = Tensor::full(&[1000], 0.1, DType::F64)
        .unwrap()
        .with_requires_grad();
    let mut h = x.clone();
    for _ in 0..20 {
        h = ops::tanh(&h).unwrap();
    }
    let loss = total(&h);
    drop(h);
    let forward = account.used_bytes();
    assert!(forward >= 21 * BYTES);
    account.reset_peak();
    let found = grad(&[&loss], &[None], &[&x], false, false).unwrap();
    // A gradient coming, one going, and what the first rules need while everything else is still there.
    assert!(
        account.peak_bytes() <= forward + 3 * BYTES,
        "{}",
        account.peak_bytes()
    );
    drop(found);
    assert_eq!(account.used_bytes(), BYTES + 8);
}

#[test]
fn a_budget_error_inside_grad_leaves_nothing_behind() {
    let account = Account::new(Some(110_000));
    let _scope = account.enter();
    let x = Tensor::full(&[1000], 0.1, DType::F64)
        .unwrap()
        .with_requires_grad();
    let start = account.used_bytes();
    {
        let mut h = x.clone();
        for _ in 0..9 {
            h = ops::tanh(&h).unwrap();
        }
        let scaled = ops::multiply(&h, &x).unwrap();
        let loss = total(&scaled);
        let refused = grad(&[&loss], &[None], &[&x], false, false).unwrap_err();
        assert!(
            matches!(refused, Error::Budget { limit: 110_000, .. }),
            "{refused}"
        );
        assert!(grad_enabled());
    }
    assert_eq!((account.used_bytes(), account.live_nodes()), (start, 0));
}

#[test]
fn an_endless_graph_of_single_numbers_meets_the_limit() {
    let account = Account::new(Some(10 << 20));
    let _scope = account.enter();
    let x = leaf(&[1.0]);
    let mut y = x.clone();
    let refused = loop {
        match ops::multiply(&y, &x) {
            Ok(next) => y = next,
            Err(refused) => break refused,
        }
        assert!(account.live_nodes() < 20_000);
    };
    assert!(matches!(refused, Error::Budget { op: "multiply", .. }));
    drop(y);
    assert_eq!(account.live_nodes(), 0);
    assert!(ops::multiply(&x, &x).is_ok());
}

#[test]
fn gradients_of_inputs_that_nobody_wants_are_not_computed() {
    let account = Account::new(None);
    let _scope = account.enter();
    let x = Tensor::ones(&[500, 500], DType::F64)
        .unwrap()
        .with_requires_grad();
    let w = Tensor::ones(&[500, 1], DType::F64)
        .unwrap()
        .with_requires_grad();
    let loss = total(&ops::matmul(&x, &w).unwrap());
    account.reset_peak();
    let before = account.used_bytes();
    grad(&[&loss], &[None], &[&w], false, false).unwrap();
    // The gradient of x would take 2 MB.
    assert!(account.peak_bytes() < before + 100_000);
}

#[test]
fn accounts_nest_and_follow_work_into_a_pool() {
    let (outer, inner) = (Account::new(None), Account::new(Some(1 << 20)));
    let _scope = outer.enter();
    let a = Tensor::zeros(&[10], DType::F64).unwrap();
    let b = {
        let _scope = inner.enter();
        let pool = Pool::new(2).unwrap();
        pool.install(|| Tensor::zeros(&[100], DType::F64).unwrap())
    };
    assert_eq!((outer.used_bytes(), inner.used_bytes()), (80, 800));
    // Freed anywhere, given back where it was charged.
    std::thread::spawn(move || drop(b)).join().unwrap();
    assert_eq!(inner.used_bytes(), 0);
    let _off = no_grad();
    assert!(!Pool::new(1).unwrap().install(grad_enabled));
    drop(a);
    assert_eq!(outer.used_bytes(), 0);
}

#[test]
fn graphs_can_be_built_on_one_thread_and_used_on_another() {
    let x = leaf(&[2.0]);
    let y = total(&ops::multiply(&x, &x).unwrap());
    let found = std::thread::spawn({
        let (x, y) = (x.clone(), y.clone());
        move || {
            grad(&[&y], &[None], &[&x], false, true).unwrap()[0]
                .item()
                .unwrap()
        }
    })
    .join()
    .unwrap();
    assert_eq!(found, 4.0);
    let mut chain = x.clone();
    for _ in 0..50_000 {
        chain = ops::multiply(&chain, 1.0).unwrap();
    }
    // A small stack: dropping the chain must not recurse.
    std::thread::Builder::new()
        .stack_size(64 * 1024)
        .spawn(move || drop(chain))
        .unwrap()
        .join()
        .unwrap();
}

/// Some numbers without a pattern, of f64.
fn spread(shape: &[usize], seed: u64) -> Tensor {
    let n = shape.iter().product::<usize>() as u64;
    let values: Vec<f64> = (0..n)
        .map(|i| ((i * 7 + seed * 13) as f64 * 0.7391).sin())
        .collect();
    Tensor::from_f64s(&values, shape, DType::F64).unwrap()
}

/// A product of an input with a weight.
type Product = fn(&Tensor, &Tensor) -> espalier_tensor::Result<Tensor>;

#[test]
fn a_backward_value_stands_for_the_weight_in_the_gradient_of_the_other_operand_only() {
    let products: [(&str, &[usize], &[usize], Product); 9] = [
        ("linear", &[5, 3], &[4, 3], |x, w| nn::linear(x, w, None)),
        ("linear of series", &[2, 5, 3], &[4, 3], |x, w| {
            nn::linear(x, w, None)
        }),
        ("matmul", &[5, 3], &[3, 4], ops::matmul),
        ("matmul of a batch", &[2, 5, 3], &[3, 4], ops::matmul),
        ("matmul, the weight first", &[3, 4], &[5, 3], |x, w| {
            ops::matmul(w, x)
        }),
        ("a transposed weight", &[5, 3], &[4, 3], |x, w| {
            ops::matmul(x, &ops::permute_dims(w, &[1, 0])?)
        }),
        ("a weight cut and reshaped", &[5, 3], &[26], |x, w| {
            ops::matmul(x, &ops::reshape(&ops::slice(w, 0, 2, 14)?, &[3, 4])?)
        }),
        (
            "a weight repeated and copied",
            &[2, 5, 3],
            &[3, 4],
            |x, w| {
                let w = ops::permute_dims(&ops::broadcast_to(w, &[2, 3, 4])?, &[0, 2, 1])?;
                ops::matmul(x, &ops::permute_dims(&w.contiguous()?, &[0, 2, 1])?)
            },
        ),
        ("conv2d", &[2, 3, 5, 5], &[4, 3, 3, 3], |x, w| {
            nn::conv2d(x, w, None, (1, 1), (1, 1), (1, 1), 1)
        }),
    ];
    for (name, x, w, product) in products {
        let (x, forward, backward) = (
            spread(x, 1).with_requires_grad(),
            spread(w, 2),
            spread(w, 3),
        );
        for create_graph in [false, true] {
            let gradients = |w: &Tensor| {
                let y = product(&x, w).unwrap();
                let cotangent = spread(y.shape(), 4);
                let found = grad(&[&y], &[Some(&cotangent)], &[&x, w], create_graph, false);
                let found: Vec<_> = found
                    .unwrap()
                    .iter()
                    .map(|t| t.to_list().unwrap())
                    .collect();
                (y.to_list().unwrap(), found[0].clone(), found[1].clone())
            };
            let (y, dx, dw) = gradients(&forward.with_backward(&backward).unwrap());
            let (plain_y, plain_dx, plain_dw) = gradients(&forward.with_requires_grad());
            assert_eq!((y, dw), (plain_y, plain_dw), "{name}");
            assert_eq!(dx, gradients(&backward.with_requires_grad()).1, "{name}");
            assert_ne!(dx, plain_dx, "{name}");
        }
    }
}

#[test]
fn a_recurrent_layer_goes_back_through_the_backward_values_of_its_weights() {
    let x = spread(&[2, 3, 4], 1).with_requires_grad();
    let gradients = |gates: usize, twins: [bool; 2], create_graph: bool| {
        let weight = |shape: &[usize], seed, twin: bool| match twin {
            true => spread(shape, seed)
                .with_backward(&spread(shape, seed + 10))
                .unwrap(),
            false => spread(shape, seed).with_requires_grad(),
        };
        let w_ih = weight(&[gates * 2, 4], 2, twins[0]);
        let w_hh = weight(&[gates * 2, 2], 3, twins[1]);
        let run = if gates == 4 { nn::lstm } else { nn::rnn };
        let y = run(&x, &w_ih, &w_hh, None, None).unwrap();
        let cotangent = spread(y.shape(), 4);
        let all = [&x, &w_ih, &w_hh];
        let found = grad(&[&y], &[Some(&cotangent)], &all, create_graph, false).unwrap();
        found
            .iter()
            .map(|t| t.to_list().unwrap())
            .collect::<Vec<_>>()
    };
    for gates in [1, 4] {
        let plain = gradients(gates, [false, false], false);
        for twins in [[true, false], [false, true], [true, true]] {
            let fused = gradients(gates, twins, false);
            // The composed form multiplies with `linear`, step by step.
            let composed = gradients(gates, twins, true);
            for (a, b) in fused.iter().flatten().zip(composed.iter().flatten()) {
                assert!((a - b).abs() < 1e-12, "{gates} {twins:?}: {a} and {b}");
            }
            assert_ne!(fused[0], plain[0], "{gates} {twins:?}");
            // The input's weight is multiplied by nothing that leads to a weight.
            assert_eq!(fused[1] == plain[1], !twins[1], "{gates} {twins:?}");
        }
    }
}

#[test]
fn what_is_computed_from_a_weight_has_no_backward_value() {
    let w = spread(&[4, 3], 1)
        .with_backward(&spread(&[4, 3], 2))
        .unwrap();
    assert!(
        ops::reshape(&w, &[3, 4])
            .unwrap()
            .backward_value()
            .is_some()
    );
    for y in [
        w.detach(),
        ops::multiply(&w, 2.0).unwrap(),
        ops::astype(&w, DType::F32).unwrap(),
    ] {
        assert!(y.backward_value().is_none());
    }
    let _off = no_grad();
    assert!(
        ops::reshape(&w, &[3, 4])
            .unwrap()
            .backward_value()
            .is_none()
    );
}

#[test]
fn a_backward_value_is_like_its_leaf() {
    let w = spread(&[4, 3], 1);
    assert!(matches!(
        w.with_backward(&spread(&[3, 4], 2)),
        Err(Error::Shape { .. })
    ));
    let other = ops::astype(&w, DType::F32).unwrap();
    assert!(matches!(w.with_backward(&other), Err(Error::DType { .. })));
}
