//! What it costs to cross the boundary: a call into a plugin, and calls of a plugin into the host.
//!
//! `cargo bench -p espalier-benches --bench boundary`. The plugin is benches/peers/operations; it makes each call a
//! thousand times in one step, so a row's time is that of a thousand calls (read microseconds as nanoseconds), and
//! `call` alone is the step around them. `add` and `native add` differ by what the boundary adds to an operation.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use criterion::Criterion;
use espalier_runtime::component;
use espalier_runtime::data::{Dataset, Split};
use espalier_runtime::host::bindings::trainer::espalier::plugin::run::{RunInfo, StepInfo};
use espalier_runtime::host::session::Session;
use espalier_runtime::host::state::{ModelId, RunState, SetId, Shared};
use espalier_runtime::model::{FieldShape, Model};
use espalier_runtime::options;
use espalier_runtime::parameters::ParameterSet;
use espalier_runtime::registry::Registry;
use espalier_runtime::runfile::{self, Overrides};
use espalier_tensor::account::Account;
use espalier_tensor::{DType, Tensor, ops};

/// Calls in one step.
const CALLS: usize = 1000;

/// Rows: the plugin's word, and what it measures.
const WORK: [(&str, &str); 6] = [
    ("nothing", "call: a step that asks for nothing"),
    ("borrow", "1000 x lend a handle, get a number"),
    ("handle", "1000 x lend a handle, get one and drop it"),
    ("add", "1000 x add of 4 numbers, the result dropped"),
    ("list", "1000 x get a list of two handles and drop them"),
    ("batch", "1000 x get a batch of one sample and drop it"),
];

/// The plugin with one of its works, started on two samples.
fn session(work: &str) -> Session {
    let folder = std::env::temp_dir().join(format!("espalier-boundary-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = folder.join("run.toml");
    // A run file needs a source; this one is never read.
    let text = format!(
        "[data]\nsource = \"digits\"\n[schedule]\nsteps = 1\nbatch-size = 1\n[model]\nlayers = [{{ kind = \"linear\", features = 2 }}]\n[trainer]\nplugin = \"operations\"\nwith = {{ work = \"{work}\", size = {CALLS} }}\n"
    );
    std::fs::write(&file, text).unwrap();
    let plan = runfile::load(&file, &Overrides::default()).unwrap_or_else(|e| panic!("{e}"));
    std::fs::remove_dir_all(&folder).unwrap();
    let fields = vec![FieldShape {
        name: "inputs".into(),
        shape: vec![2],
        dtype: DType::F32,
    }];
    let inputs = Tensor::ones(&[64, 2], DType::F32).unwrap();
    let targets = Tensor::zeros(&[64], DType::I64).unwrap();
    let train = Split {
        name: "train".into(),
        count: 64,
        fields: vec![("inputs".into(), inputs), ("targets".into(), targets)],
        classes: 2,
        task: 0,
        added: false,
    };
    let mut main = ParameterSet::new();
    let model = Model::build(&plan.model, &fields, &[plan.seed], &mut main).unwrap();
    let shared = Rc::new(Shared::new(RunState {
        data: Dataset {
            splits: vec![train],
            train_on: None,
        },
        sets: BTreeMap::from([(SetId::Main, main)]),
        models: BTreeMap::from([(ModelId::Main, model)]),
        inputs: fields,
        layers: plan.model.clone(),
        ..RunState::empty(plan.seed)
    }));
    let registry = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/registry.toml");
    let registry = Registry::load(&registry).unwrap_or_else(|e| panic!("{e}"));
    let resolved = registry
        .resolve_plan(&plan.plugins, &mut |_| {})
        .unwrap_or_else(|e| panic!("{e}"));
    let (plugin, (_, resolved)) = (&plan.plugins[0], &resolved[0]);
    let loaded = component::load(&plugin.name, &resolved.bytes).unwrap();
    let about = component::describe(&plugin.name, &loaded).unwrap();
    let settings: Vec<_> = options::check(
        &plugin.name,
        &about.options,
        &plugin.options,
        &plugin.option_places,
    )
    .unwrap_or_else(|e| panic!("{e}"))
    .iter()
    .map(|(name, value)| (name.clone(), component::wit_value(value)))
    .collect();
    let account = Account::new(Some(plugin.limits.tensors));
    let limits = plugin.limits.clone();
    let mut session = Session::new(&loaded, &plugin.name, limits, account, shared).unwrap();
    let info = RunInfo {
        seed: plan.seed,
        stage: 0,
        steps: 1,
        steps_per_epoch: 1,
        batch_size: 1,
        rank: 0,
        world: 1,
    };
    session.start(info, &settings).unwrap().unwrap();
    session
}

fn main() {
    let mut criterion = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(2))
        .sample_size(30)
        .configure_from_args();
    let at = StepInfo {
        step: 0,
        epoch: 0.0,
        round: 0,
    };
    for (work, title) in WORK {
        let mut session = session(work);
        criterion.bench_function(title, |b| b.iter(|| session.step(at).unwrap()));
    }
    let four = Tensor::ones(&[4], DType::F32).unwrap();
    criterion.bench_function("native: 1000 x add of 4 numbers", |b| {
        b.iter(|| {
            for _ in 0..CALLS {
                black_box(ops::add(&four, &four).unwrap());
            }
        });
    });
    criterion.final_summary();
}
