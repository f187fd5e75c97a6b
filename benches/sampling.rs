//! Sampling from a small decoder transformer and scoring what was sampled, beside the matrix products that the
//! tokens cannot do without.
//!
//! `cargo bench -p espalier-benches --bench sampling`: the median of 30 calls, and that as a multiple of the time that
//! the same products take one after the other on the same threads. Times are of this machine.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::time::Instant;

use espalier_runtime::model::generate::Request;
use espalier_runtime::model::{FieldShape, Mode, Model};
use espalier_runtime::parameters::ParameterSet;
use espalier_runtime::plan::LayerPlan;
use espalier_tensor::autograd::no_grad;
use espalier_tensor::{DType, nn, random, threads};

const FEATURES: usize = 64;
const VOCABULARY: usize = 20;
const BLOCKS: usize = 2;
const CONTEXT: usize = 6;
const NEW: usize = 8;

fn layer(kind: &str, settings: &[(&str, f64)]) -> LayerPlan {
    LayerPlan {
        name: String::new(),
        kind: kind.into(),
        inputs: Vec::new(),
        frozen: false,
        group: String::new(),
        settings: settings
            .iter()
            .map(|(name, number)| ((*name).to_owned(), vec![*number]))
            .collect::<BTreeMap<_, _>>(),
    }
}

/// The median of 30 calls after 3 more, in milliseconds.
fn median(pool: &threads::Pool, work: &mut (dyn FnMut() + Send)) -> f64 {
    let mut times: Vec<f64> = (0..33)
        .map(|_| {
            let start = Instant::now();
            pool.install(&mut *work);
            start.elapsed().as_secs_f64() * 1e3
        })
        .skip(3)
        .collect();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The products of one pass over so many positions.
fn products(pool: &threads::Pool, positions: usize, passes: usize) -> f64 {
    let sizes = [
        (FEATURES, 3 * FEATURES),
        (FEATURES, FEATURES),
        (FEATURES, 4 * FEATURES),
        (4 * FEATURES, FEATURES),
    ];
    let normal =
        |shape: &[usize]| random::normal(&random::Key::new(&[1]), shape, DType::F32).unwrap();
    let mut all: Vec<_> = (0..BLOCKS).flat_map(|_| sizes).collect();
    all.push((FEATURES, VOCABULARY));
    let operands: Vec<_> = all
        .iter()
        .map(|(inputs, outputs)| (normal(&[positions, *inputs]), normal(&[*outputs, *inputs])))
        .collect();
    median(pool, &mut || {
        let _no_graph = no_grad();
        for _ in 0..passes {
            for (x, w) in &operands {
                nn::linear(x, w, None).unwrap();
            }
        }
    })
}

fn main() {
    let block = layer(
        "transformer-block",
        &[("features", FEATURES as f64), ("heads", 4.0)],
    );
    let embedding = [
        ("entries", VOCABULARY as f64),
        ("features", FEATURES as f64),
        ("deviation", 0.1),
    ];
    let mut layers = vec![layer("embedding", &embedding), layer("position", &[])];
    layers.extend(vec![block; BLOCKS]);
    layers.extend([layer("layer-norm", &[]), layer("tied-linear", &[])]);
    let field = FieldShape {
        name: "inputs".into(),
        shape: vec![CONTEXT + NEW],
        dtype: DType::I64,
    };
    let mut set = ParameterSet::new();
    let model = Model::build(&layers, &[field], &[1], &mut set).unwrap();
    for workers in [1, 2] {
        let pool = threads::Pool::new(workers).unwrap();
        println!("{workers} threads, {FEATURES} features, {BLOCKS} blocks");
        for (prompts, copies) in [(1, 1), (32, 8), (256, 1), (256, 16)] {
            let requests: Vec<Request> = (0..prompts as u32)
                .map(|i| Request {
                    context: vec![1, i % 10, 12, i / 10 % 10, 13, 14],
                    forced: Vec::new(),
                    count: copies,
                    stop: Vec::new(),
                    max_tokens: NEW,
                    temperature: 1.0,
                    top_p: 1.0,
                    top_k: 0,
                    key: vec![u64::from(i)],
                })
                .collect();
            let mut responses = Vec::new();
            let sampling = median(&pool, &mut || {
                responses = model.generate(&mut set, &requests, CONTEXT + NEW).unwrap();
            });
            let rows = prompts * copies;
            let least = products(&pool, prompts * CONTEXT, 1) + products(&pool, rows, NEW - 1);
            let tokens = rows * NEW;
            println!(
                "  sampling {prompts:>3} prompts x {copies:>2}: {sampling:>7.2} ms, {:>7.0} tokens/s, {:.1} times \
                 its products",
                tokens as f64 / sampling * 1e3,
                sampling / least
            );
            let sequences: Vec<_> = responses
                .iter()
                .map(|r| (requests[r.request].context.clone(), r.tokens.clone()))
                .collect();
            let scoring = median(&pool, &mut || {
                model
                    .logprobs(&mut set, &sequences, false, Mode::Eval)
                    .unwrap();
            });
            let least = products(&pool, rows * (CONTEXT + NEW - 1), 1);
            println!(
                "  scoring  {prompts:>3} prompts x {copies:>2}: {scoring:>7.2} ms, {:>7.0} tokens/s, {:.1} times \
                 its products",
                tokens as f64 / scoring * 1e3,
                scoring / least
            );
        }
    }
}
