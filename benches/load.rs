//! How long it takes to have a plugin: compiled, loaded from the cache, instantiated.
//!
//! `cargo bench -p espalier-benches --bench load`. Each time is of the path that a run takes: `cold` compiles and
//! fills the cache, `cached` maps compiled code, both check digest, world and imports; `instantiate` makes a store
//! and an instance of a component that is loaded, and gives both back. The cache is a folder of the benchmark's own.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion};
use espalier_runtime::component;
use espalier_runtime::host::session::Session;
use espalier_runtime::host::state::{RunState, Shared};
use espalier_runtime::plan::Limits;
use espalier_runtime::registry::Registry;
use espalier_tensor::account::Account;

/// Set for the process that measures, which has a cache of its own.
const CACHE: &str = "ESPALIER_BENCH_CACHE";

/// A trainer, a pruner, an environment and a normaliser.
const PLUGINS: [&str; 4] = ["backprop", "magnitude", "cartpole", "grpo"];

fn main() {
    match std::env::var_os(CACHE) {
        Some(cache) => measure(Path::new(&cache)),
        None => {
            let cache = std::env::temp_dir().join(format!("espalier-bench-{}", std::process::id()));
            let status = Command::new(std::env::current_exe().unwrap())
                .args(std::env::args_os().skip(1))
                .env("XDG_CACHE_HOME", &cache)
                .env(CACHE, &cache)
                .status();
            let _ = std::fs::remove_dir_all(&cache);
            assert!(status.unwrap().success());
        }
    }
}

fn components() -> Vec<(&'static str, Vec<u8>)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let registry = Registry::load(&root.join("registry.toml")).unwrap();
    let entries: Vec<_> = PLUGINS.iter().map(|p| registry.entry(p).unwrap()).collect();
    let resolved = registry.resolve(&entries, &mut |_| {}).unwrap();
    let bytes = resolved.into_iter().map(|r| r.bytes);
    PLUGINS.into_iter().zip(bytes).collect()
}

fn measure(cache: &Path) {
    let mut criterion = Criterion::default().configure_from_args();
    let folder: PathBuf = cache.join("espalier").join("components");
    for (name, bytes) in components() {
        println!("{name}: {} bytes", bytes.len());
        let load = || component::load(name, &bytes).unwrap();
        let mut group = criterion.benchmark_group("load");
        group.warm_up_time(Duration::from_millis(500));
        group.measurement_time(Duration::from_secs(2));
        group.sample_size(10);
        group.bench_function(BenchmarkId::new("cold", name), |b| {
            let empty = || {
                let _ = std::fs::remove_dir_all(&folder);
            };
            b.iter_batched(empty, |()| load(), BatchSize::PerIteration);
        });
        group.sample_size(50);
        let loaded = load();
        group.bench_function(BenchmarkId::new("cached", name), |b| b.iter(load));
        let shared = Rc::new(Shared::new(RunState::empty(0)));
        let limits = Limits::default();
        let instantiate = || {
            let account = Account::new(Some(limits.tensors));
            Session::new(&loaded, name, limits.clone(), account, shared.clone()).unwrap()
        };
        group.bench_function(BenchmarkId::new("instantiate", name), |b| {
            b.iter(instantiate);
        });
        group.finish();
    }
    criterion.final_summary();
}
