#![allow(unsafe_code, clippy::unwrap_used)]
//! Espalier's side of benches/peers: answers `WORK COUNT` lines on stdin with the seconds of each repetition, as
//! JSON.
//!
//! `espalier-peer component` calls the real trainers as components, one `step` a repetition; `espalier-peer captured`
//! the same with their steps captured. `espalier-peer native`
//! does what those trainers do, in the same order, without WebAssembly. `espalier-peer machine` measures what the
//! processor can do at all.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::hint::black_box;
use std::io::{BufRead, Write as _};
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use espalier_runtime::component;
use espalier_runtime::data::{Dataset, Order, Split, StreamId, Streams};
use espalier_runtime::host::bindings::trainer::espalier::plugin::run::{RunInfo, StepInfo};
use espalier_runtime::host::session::Session;
use espalier_runtime::host::state::{ModelId, RunState, SetId, Shared};
use espalier_runtime::model::{FieldShape, Mode, Model};
use espalier_runtime::options;
use espalier_runtime::parameters::ParameterSet;
use espalier_runtime::plan::Plan;
use espalier_runtime::registry::Registry;
use espalier_runtime::runfile::{self, Overrides};
use espalier_tensor::account::Account;
use espalier_tensor::optim::{Adam, Sgd};
use espalier_tensor::random::{Key, normal};
use espalier_tensor::{DType, Tensor, autograd, ops, threads};

const THREADS: usize = 2;

/// A network and its batch.
struct Network {
    name: &'static str,
    layers: &'static str,
    batch: usize,
    /// Sample shape; tokens where `vocabulary` is not 0.
    sample: &'static [usize],
    vocabulary: usize,
    classes: usize,
    trainer: &'static str,
}

const MLP: &str = r#"{ kind = "linear", features = 512 }, { kind = "relu" }, { kind = "linear", features = 512 }, { kind = "relu" }, { kind = "linear", features = 10 }"#;
const CNN: &str = r#"{ kind = "conv2d", features = 32, kernel = 3 }, { kind = "relu" }, { kind = "max-pool", kernel = 2 }, { kind = "conv2d", features = 64, kernel = 3 }, { kind = "relu" }, { kind = "max-pool", kernel = 2 }, { kind = "flatten" }, { kind = "linear", features = 128 }, { kind = "relu" }, { kind = "linear", features = 10 }"#;
const DECODER: &str = r#"{ kind = "embedding", entries = 128, features = 128 }, { kind = "position" }, { kind = "transformer-block", name = "one", features = 128, heads = 4 }, { kind = "transformer-block", name = "two", features = 128, heads = 4 }, { kind = "layer-norm" }, { kind = "linear", features = 128 }"#;
const TINY: &str =
    r#"{ kind = "linear", features = 16 }, { kind = "relu" }, { kind = "linear", features = 2 }"#;
const ADAM: &str = r#"{ optimizer = "adam", lr = 1e-3 }"#;
const SGD: &str = r#"{ optimizer = "sgd", lr = 0.01, momentum = 0 }"#;

const NETWORKS: [Network; 5] = [
    Network {
        name: "W1",
        layers: MLP,
        batch: 128,
        sample: &[784],
        vocabulary: 0,
        classes: 10,
        trainer: ADAM,
    },
    Network {
        name: "W2",
        layers: MLP,
        batch: 32,
        sample: &[784],
        vocabulary: 0,
        classes: 10,
        trainer: ADAM,
    },
    Network {
        name: "W3",
        layers: CNN,
        batch: 64,
        sample: &[1, 28, 28],
        vocabulary: 0,
        classes: 10,
        trainer: ADAM,
    },
    Network {
        name: "W4",
        layers: DECODER,
        batch: 16,
        sample: &[64],
        vocabulary: 128,
        classes: 128,
        trainer: ADAM,
    },
    Network {
        name: "tiny",
        layers: TINY,
        batch: 8,
        sample: &[8],
        vocabulary: 0,
        classes: 2,
        trainer: SGD,
    },
];

/// Samples of a data set, in batches: a step reads another batch each time, as in a run.
const BATCHES: usize = 16;

fn random_values(seed: u64, shape: &[usize]) -> Tensor {
    normal(&Key::new(&[seed]), shape, DType::F32).unwrap()
}

fn random_classes(seed: u64, shape: &[usize], of: usize) -> Tensor {
    let bits = espalier_tensor::random::bits(&Key::new(&[seed]), shape.iter().product());
    let values = bits.iter().map(|b| (b % of as u64) as i64).collect();
    Tensor::from_vec(values, shape).unwrap()
}

/// Options of a trainer, with its step captured if wanted.
fn with_capture(with: &str, captured: bool) -> String {
    match captured {
        true => with.replace(" }", ", capture = true }"),
        false => with.into(),
    }
}

/// What a run of this network starts with.
struct Prepared {
    plan: Plan,
    state: RunState,
}

fn plan(layers: &str, batch: usize, plugin: &str, with: &str) -> Plan {
    let folder = std::env::temp_dir().join(format!("espalier-peer-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("run.toml");
    // A run file needs a source; this one is never read.
    let text = format!(
        "[data]\nsource = \"digits\"\n[schedule]\nsteps = 1000000\nbatch-size = {batch}\n[model]\nlayers = [{layers}]\n[trainer]\nplugin = \"{plugin}\"\nwith = {with}\nlimits = {{ tensors = \"8 GiB\" }}\n"
    );
    std::fs::write(&file, text).unwrap();
    let plan =
        runfile::load(&file, &Overrides::default()).unwrap_or_else(|error| panic!("{error}"));
    std::fs::remove_dir_all(&folder).unwrap();
    plan
}

fn prepare(network: &Network, captured: bool) -> Prepared {
    let with = with_capture(network.trainer, captured);
    let plan = plan(network.layers, network.batch, "backprop", &with);
    let count = BATCHES * network.batch;
    let mut shape = vec![count];
    shape.extend_from_slice(network.sample);
    let (inputs, targets) = if network.vocabulary > 0 {
        (
            random_classes(1, &shape, network.vocabulary),
            random_classes(2, &shape, network.classes),
        )
    } else {
        (
            random_values(1, &shape),
            random_classes(2, &[count], network.classes),
        )
    };
    state(plan, inputs, targets, network.classes, network.sample)
}

fn state(
    plan: Plan,
    inputs: Tensor,
    targets: Tensor,
    classes: usize,
    sample: &[usize],
) -> Prepared {
    let fields = vec![FieldShape {
        name: "inputs".into(),
        shape: sample.to_vec(),
        dtype: inputs.dtype(),
    }];
    let train = Split {
        name: "train".into(),
        count: inputs.shape()[0],
        fields: vec![("inputs".into(), inputs), ("targets".into(), targets)],
        classes: classes as u32,
        task: 0,
        added: false,
    };
    let mut main = ParameterSet::new();
    let model = Model::build(&plan.model, &fields, &[plan.seed], &mut main)
        .unwrap_or_else(|error| panic!("{error}"));
    let state = RunState {
        data: Dataset {
            splits: vec![train],
            train_on: None,
        },
        sets: BTreeMap::from([(SetId::Main, main)]),
        models: BTreeMap::from([(ModelId::Main, model)]),
        inputs: fields,
        layers: plan.model.clone(),
        ..RunState::empty(plan.seed)
    };
    Prepared { plan, state }
}

/// A trainer as a component; a call is one step.
fn component_step(prepared: Prepared) -> Box<dyn FnMut()> {
    let Prepared { plan, state } = prepared;
    let registry = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/registry.toml");
    let registry = Registry::load(&registry).unwrap_or_else(|error| panic!("{error}"));
    let resolved = registry
        .resolve_plan(&plan.plugins, &mut |_| {})
        .unwrap_or_else(|error| panic!("{error}"));
    let (plugin, (_, resolved)) = (&plan.plugins[0], &resolved[0]);
    let loaded = component::load(&plugin.name, &resolved.bytes).unwrap();
    let about = component::describe(&plugin.name, &loaded).unwrap();
    let settings: Vec<_> = options::check(
        &plugin.name,
        &about.options,
        &plugin.options,
        &plugin.option_places,
    )
    .unwrap_or_else(|error| panic!("{error}"))
    .iter()
    .map(|(name, value)| (name.clone(), component::wit_value(value)))
    .collect();
    let shared = Rc::new(Shared::new(state));
    let account = Account::new(Some(plugin.limits.tensors));
    let mut session = Session::new(
        &loaded,
        &plugin.name,
        plugin.limits.clone(),
        account,
        shared.clone(),
    )
    .unwrap_or_else(|death| panic!("{death:?}"));
    let info = RunInfo {
        seed: plan.seed,
        stage: 0,
        steps: 1_000_000,
        steps_per_epoch: BATCHES as u64,
        batch_size: plan.schedule.batch_size,
        rank: 0,
        world: 1,
    };
    session
        .start(info, &settings)
        .unwrap_or_else(|death| panic!("{death:?}"))
        .unwrap_or_else(|refusal| panic!("{}", refusal.message));
    let mut step = 0;
    Box::new(move || {
        shared.run.borrow_mut().passes = 0;
        session
            .step(StepInfo {
                step,
                epoch: step as f64 / BATCHES as f64,
                round: 0,
            })
            .unwrap_or_else(|death| panic!("{death:?}"));
        step += 1;
    })
}

/// What the `backprop` component does in a step, without the component.
fn native_step(network: &Network) -> Box<dyn FnMut()> {
    let Prepared { plan, mut state } = prepare(network, false);
    let adam = network.trainer == ADAM;
    let mut streams = Streams::new();
    let id = StreamId {
        plugin: "backprop".into(),
        split: "train".into(),
        fields: vec!["inputs".into(), "targets".into()],
        size: network.batch as u32,
        order: Order::Shuffled,
        key: vec![0],
    };
    streams.open(id.clone());
    let names = state.sets[&SetId::Main].names();
    Box::new(move || {
        let mut next = || streams.next(&id, &state.data, plan.seed).unwrap();
        let batch = next().or_else(next).unwrap();
        let (model, set) = (
            &state.models[&ModelId::Main],
            state.sets.get_mut(&SetId::Main).unwrap(),
        );
        let inputs = &batch.fields[..1];
        let none = BTreeMap::new();
        let output = model
            .forward(set, 0, model.len(), inputs, Mode::Train, &none, &[], &[1])
            .unwrap_or_else(|error| panic!("{error}"))
            .output;
        let losses = ops::cross_entropy(&output, &batch.fields[1].1).unwrap();
        let loss = ops::divide(
            &ops::sum(&losses, &[], false).unwrap(),
            losses.numel() as f64,
        )
        .unwrap();
        let values: Vec<Tensor> = names.iter().map(|name| set.value(name).unwrap()).collect();
        let leaves: Vec<&Tensor> = values.iter().collect();
        let grads = autograd::grad(&[&loss], &[None], &leaves, false, false).unwrap();
        // A value that somebody holds would be copied by the update.
        drop(values);
        if adam {
            set.adam(
                &names,
                &grads,
                &Adam {
                    lr: 1e-3,
                    beta1: 0.9,
                    beta2: 0.999,
                    eps: 1e-8,
                    weight_decay: 0.0,
                    decoupled: false,
                },
            )
            .unwrap();
        } else {
            set.sgd(
                &names,
                &grads,
                &Sgd {
                    lr: 0.01,
                    momentum: 0.0,
                    weight_decay: 0.0,
                    nesterov: false,
                },
            )
            .unwrap();
        }
        loss.item().unwrap();
    })
}

/// Layers with ten million parameters in one matrix, and the small model that the other operations do not use.
const TEN_MILLION: &str = r#"{ kind = "linear", features = 3125, bias = false }"#;
const UNUSED: &str = r#"{ kind = "linear", features = 2 }"#;

/// One operation, by a component that does nothing else.
fn component_operation(work: &str, captured: bool) -> Box<dyn FnMut()> {
    let (work, size) = match work.split_once('-') {
        Some(("matmul", size)) => ("matmul", size),
        _ => (work, "1"),
    };
    let with = with_capture(&format!("{{ work = \"{work}\", size = {size} }}"), captured);
    let (layers, width) = if work == "adam" {
        (TEN_MILLION, 3200)
    } else {
        (UNUSED, 2)
    };
    let plan = plan(layers, 1, "operations", &with);
    component_step(state(
        plan,
        random_values(1, &[BATCHES, width]),
        random_classes(2, &[BATCHES], 2),
        2,
        &[width],
    ))
}

/// The same operation called directly.
fn native_operation(work: &str) -> Box<dyn FnMut()> {
    let rows = || random_values(1, &[4096, 512]);
    match work {
        "tanh" => {
            let [a, b, c] = [1, 2, 3].map(|key| random_values(key, &[1 << 20]));
            Box::new(move || {
                let sum = ops::add(&ops::multiply(&a, &b).unwrap(), &c).unwrap();
                ops::tanh(&sum).unwrap();
            })
        }
        "softmax" => {
            let x = rows();
            Box::new(move || drop(ops::softmax(&x, -1).unwrap()))
        }
        "layer-norm" => {
            let (x, w, b) = (rows(), random_values(2, &[512]), random_values(3, &[512]));
            Box::new(move || drop(ops::layer_norm(&x, &[-1], Some(&w), Some(&b), 1e-5).unwrap()))
        }
        "sum-last" => {
            let x = rows();
            Box::new(move || drop(ops::sum(&x, &[-1], false).unwrap()))
        }
        "sum-first" => {
            let x = rows();
            Box::new(move || drop(ops::sum(&x, &[0], false).unwrap()))
        }
        "adam" => {
            let shape = [3200 * 3125];
            let (mut value, grad) = (random_values(1, &shape), random_values(2, &shape));
            let (mut m, mut v, mut step) = (None, None, 0);
            let adam = Adam {
                lr: 1e-3,
                beta1: 0.9,
                beta2: 0.999,
                eps: 1e-8,
                weight_decay: 0.0,
                decoupled: false,
            };
            Box::new(move || {
                step += 1;
                espalier_tensor::optim::adam_step(
                    &mut value, &grad, &mut m, &mut v, step, &adam, None,
                )
                .unwrap();
            })
        }
        _ => {
            let size: usize = work.trim_start_matches("matmul-").parse().unwrap();
            let (a, b) = (
                random_values(1, &[size, size]),
                random_values(2, &[size, size]),
            );
            Box::new(move || drop(ops::matmul(&a, &b).unwrap()))
        }
    }
}

fn step_of(work: &str, kind: &str) -> Box<dyn FnMut()> {
    let (native, captured) = (kind == "native", kind == "captured");
    match NETWORKS.iter().find(|network| network.name == work) {
        Some(network) if native => native_step(network),
        Some(network) => component_step(prepare(network, captured)),
        None if native => native_operation(work),
        None => component_operation(work, captured),
    }
}

fn answer(kind: &str) {
    let mut ready: BTreeMap<String, Box<dyn FnMut()>> = BTreeMap::new();
    println!(
        "{{\"version\": \"Espalier {}\"}}",
        env!("CARGO_PKG_VERSION")
    );
    for line in std::io::stdin().lock().lines().map(Result::unwrap) {
        let (work, count) = line.split_once(' ').unwrap();
        let step = ready.entry(work.into()).or_insert_with(|| {
            let mut step = step_of(work, kind);
            (0..5).for_each(|_| step());
            step
        });
        (0..2).for_each(|_| step());
        let mut times = String::new();
        for i in 0..count.parse::<usize>().unwrap() {
            let began = Instant::now();
            step();
            let seconds = began.elapsed().as_secs_f64();
            let comma = if i == 0 { "" } else { ", " };
            write!(times, "{comma}{seconds:e}").unwrap();
        }
        println!("{{\"times\": [{times}]}}");
        std::io::stdout().flush().unwrap();
    }
}

// ---- what the machine can do ----

/// Independent running products: enough to hide the latency of a fused multiply-add on two units.
const CHAINS: usize = 16;

/// Floating-point operations of `rounds` rounds of fused multiply-adds on one thread, and something that depends on
/// all of them. Written with intrinsics: the compiler unrolls the same loop in plain Rust into single numbers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn fma_wide(rounds: usize) -> (usize, f32) {
    use std::arch::x86_64::{_mm512_fmadd_ps, _mm512_reduce_add_ps, _mm512_set1_ps};
    let [start, scale, shift] = [0.5, 0.999, 1e-4].map(|v| _mm512_set1_ps(black_box(v)));
    let mut x = [start; CHAINS];
    for _ in 0..rounds {
        for chain in &mut x {
            *chain = _mm512_fmadd_ps(*chain, scale, shift);
        }
    }
    let sum = x.iter().map(|&chain| _mm512_reduce_add_ps(chain)).sum();
    (rounds * CHAINS * 16 * 2, sum)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn fma_middle(rounds: usize) -> (usize, f32) {
    use std::arch::x86_64::{_mm256_cvtss_f32, _mm256_fmadd_ps, _mm256_set1_ps};
    let [start, scale, shift] = [0.5, 0.999, 1e-4].map(|v| _mm256_set1_ps(black_box(v)));
    let mut x = [start; CHAINS];
    for _ in 0..rounds {
        for chain in &mut x {
            *chain = _mm256_fmadd_ps(*chain, scale, shift);
        }
    }
    let sum = x.iter().map(|&chain| _mm256_cvtss_f32(chain)).sum();
    (rounds * CHAINS * 8 * 2, sum)
}

fn fma(rounds: usize) -> (usize, f32) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor was just seen to have what the function is compiled for.
            return unsafe { fma_wide(rounds) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            return unsafe { fma_middle(rounds) };
        }
    }
    let mut x = [black_box(0.5f32); CHAINS];
    for _ in 0..rounds {
        for chain in &mut x {
            *chain = *chain * 0.999 + 1e-4;
        }
    }
    (rounds * CHAINS * 2, x.iter().sum())
}

/// Runs `work(thread)` on all threads at once, several times; the least seconds.
fn fastest(repeat: usize, work: impl Fn(usize) + Sync) -> f64 {
    (0..repeat)
        .map(|_| {
            let began = Instant::now();
            std::thread::scope(|scope| {
                for thread in 0..THREADS {
                    let work = &work;
                    scope.spawn(move || work(thread));
                }
            });
            began.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

/// Bytes read and written a second by a copy of `size` bytes, split over the threads.
fn copy_rate(size: usize) -> f64 {
    let source: Vec<Vec<u8>> = (0..THREADS).map(|_| vec![1; size / THREADS]).collect();
    let target: Vec<std::sync::Mutex<Vec<u8>>> = (0..THREADS)
        .map(|_| std::sync::Mutex::new(vec![0; size / THREADS]))
        .collect();
    let copies = ((512 << 20) / size).max(3);
    let seconds = fastest(5, |thread| {
        let mut target = target[thread].lock().unwrap();
        for _ in 0..copies {
            target.copy_from_slice(&source[thread]);
            black_box(&mut target[..]);
        }
    });
    2.0 * (copies * size) as f64 / seconds
}

fn machine() {
    const ROUNDS: usize = 1 << 22;
    let seconds = fastest(5, |_| {
        black_box(fma(black_box(ROUNDS)));
    });
    let flops = (THREADS * fma(1).0 * ROUNDS) as f64 / seconds;
    println!(
        "{{\"gflops\": {:.1}, \"copy_4_mib_gb_s\": {:.1}, \"copy_256_mib_gb_s\": {:.1}}}",
        flops / 1e9,
        copy_rate(4 << 20) / 1e9,
        copy_rate(256 << 20) / 1e9
    );
}

fn main() {
    let kind = std::env::args().nth(1).unwrap_or_default();
    match kind.as_str() {
        "machine" => machine(),
        "component" | "captured" | "native" => threads::Pool::new(THREADS)
            .unwrap()
            .install(|| answer(&kind)),
        _ => eprintln!("usage: espalier-peer component|captured|native|machine"),
    }
}
