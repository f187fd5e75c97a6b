//! A training step through the sandbox, beside the matrix products it cannot do without.
//!
//! `cargo bench -p espalier-benches` trains each network with the `backprop` component on random data, takes the
//! median step, and prints it as a multiple of the time that its forward and backward matrix products take when
//! called one after the other on the same threads. Convolutions are counted as the matrix products they are
//! equal to. Times are of this machine; the multiples carry over.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use espalier_runtime::events::Event;
use espalier_runtime::run::{self, RunOptions};
use espalier_runtime::runfile::{self, Overrides};
use espalier_tensor::{DType, ops, random, threads};

struct Work {
    name: &'static str,
    layers: &'static str,
    batch: usize,
    /// Sample shape.
    shape: &'static [usize],
    /// Matrix products of one forward pass: m (per batch), k, n, and whether the input needs a gradient.
    products: &'static [(usize, usize, usize, bool)],
}

const WORK: [Work; 3] = [
    Work {
        name: "W1 MLP 784-512-512-10, batch 128, Adam",
        layers: r#"{ kind = "linear", features = 512 }, { kind = "relu" }, { kind = "linear", features = 512 }, { kind = "relu" }, { kind = "linear", features = 10 }"#,
        batch: 128,
        shape: &[784],
        products: &[
            (128, 784, 512, false),
            (128, 512, 512, true),
            (128, 512, 10, true),
        ],
    },
    Work {
        name: "W2 the same, batch 32",
        layers: r#"{ kind = "linear", features = 512 }, { kind = "relu" }, { kind = "linear", features = 512 }, { kind = "relu" }, { kind = "linear", features = 10 }"#,
        batch: 32,
        shape: &[784],
        products: &[
            (32, 784, 512, false),
            (32, 512, 512, true),
            (32, 512, 10, true),
        ],
    },
    Work {
        name: "W3 CNN 1x28x28, batch 64, Adam",
        layers: r#"{ kind = "conv2d", features = 32, kernel = 3 }, { kind = "relu" }, { kind = "max-pool", kernel = 2 }, { kind = "conv2d", features = 64, kernel = 3 }, { kind = "relu" }, { kind = "max-pool", kernel = 2 }, { kind = "flatten" }, { kind = "linear", features = 128 }, { kind = "relu" }, { kind = "linear", features = 10 }"#,
        batch: 64,
        shape: &[1, 28, 28],
        products: &[
            (64 * 676, 9, 32, false),
            (64 * 121, 288, 64, true),
            (64, 1600, 128, true),
            (64, 128, 10, true),
        ],
    },
];

const SAMPLES: usize = 2048;
const THREADS: usize = 2;

fn npy(path: &Path, descr: &str, shape: &[usize], bytes: &[u8]) {
    let shape: String = shape.iter().map(|n| format!("{n}, ")).collect();
    let mut header =
        format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
    while !(header.len() + 11).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend_from_slice(&(header.len() as u16).to_le_bytes());
    file.extend_from_slice(header.as_bytes());
    file.extend_from_slice(bytes);
    std::fs::write(path, file).unwrap();
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Median seconds of the matrix products of a step: forward, weight gradient, and input gradient where needed.
fn products(work: &Work) -> f64 {
    let make = |m: usize, n: usize| {
        random::normal(
            &random::Key::new(&[m as u64, n as u64]),
            &[m, n],
            DType::F32,
        )
        .unwrap()
    };
    let all: Vec<_> = work
        .products
        .iter()
        .map(|&(m, k, n, input)| (make(m, k), make(k, n), make(m, n), input))
        .collect();
    let once = || {
        for (x, w, g, input) in &all {
            ops::matmul(x, w).unwrap();
            ops::matmul(&ops::permute_dims(x, &[1, 0]).unwrap(), g).unwrap();
            if *input {
                ops::matmul(g, &ops::permute_dims(w, &[1, 0]).unwrap()).unwrap();
            }
        }
    };
    threads::Pool::new(THREADS).unwrap().install(|| {
        let times = (0..60).map(|_| {
            let began = Instant::now();
            once();
            began.elapsed().as_secs_f64()
        });
        median(times.collect())
    })
}

fn step(work: &Work, folder: &Path) -> f64 {
    let mut shape = vec![SAMPLES];
    shape.extend_from_slice(work.shape);
    let inputs = random::normal(&random::Key::new(&[1]), &shape, DType::F32)
        .unwrap()
        .to_vec::<f32>()
        .unwrap();
    npy(
        &folder.join("x.npy"),
        "<f4",
        &shape,
        &inputs
            .iter()
            .flat_map(|x| x.to_le_bytes())
            .collect::<Vec<_>>(),
    );
    let targets: Vec<u8> = (0..SAMPLES as i64)
        .flat_map(|i| (i % 10).to_le_bytes())
        .collect();
    npy(&folder.join("y.npy"), "<i8", &[SAMPLES], &targets);
    let file = folder.join("run.toml");
    let text = format!(
        "[data]\nsource = \"npy\"\ninputs = \"x.npy\"\ntargets = \"y.npy\"\ntest = 0.01\n[model]\nlayers = [{}]\n[schedule]\nsteps = 120\nbatch-size = {}\nevaluate-every = 1000\n[trainer]\nplugin = \"backprop\"\nwith = {{ optimizer = \"adam\", lr = 1e-3 }}\n",
        work.layers, work.batch
    );
    std::fs::write(&file, text).unwrap();
    let overrides = Overrides {
        threads: Some(THREADS),
        ..Overrides::default()
    };
    let plan = runfile::load(&file, &overrides).unwrap_or_else(|error| panic!("{error}"));
    let options = RunOptions {
        out: Some(folder.join(format!("run-{}", work.batch * work.shape.len()))),
        resume: None,
        registry: Path::new(env!("CARGO_MANIFEST_DIR")).join("../registry.toml"),
        cancel: Arc::new(AtomicBool::new(false)),
    };
    let mut events: Vec<Event> = Vec::new();
    run::execute(&plan, &options, &mut events).unwrap_or_else(|error| panic!("{error}"));
    let times = events.iter().filter_map(|e| match e {
        Event::Step { seconds, step, .. } if *step > 20 => Some(*seconds),
        _ => None,
    });
    median(times.collect())
}

fn main() {
    println!("{THREADS} threads; median of 100 steps\n");
    println!(
        "{:45} {:>10} {:>14} {:>8}",
        "work", "step", "products alone", "ratio"
    );
    for work in &WORK {
        let folder = std::env::temp_dir().join(format!("espalier-bench-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let (step, alone) = (step(work, &folder), products(work));
        println!(
            "{:45} {:>7.0} us {:>11.0} us {:>8.2}",
            work.name,
            step * 1e6,
            alone * 1e6,
            step / alone
        );
        let _ = std::fs::remove_dir_all(&folder);
    }
}
