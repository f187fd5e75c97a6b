//! From bytes to a component that may be instantiated: is it one, which slot does it fill, which interface
//! version does it speak, what does it import, and is all of that allowed?
//!
//! Compiled code is kept by digest in a private directory and never accepted from anywhere else.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;
use sha2::{Digest, Sha256};
use wasmtime::component::Component;
use wasmtime::component::types::ComponentItem;
use wasmtime::{Config, Engine, WasmBacktraceDetails};

use crate::diagnostic::{Diagnostic, nearest};
use crate::host::bindings::trainer::espalier::plugin::options::{
    Kind, OptionInfo as WitOption, Value,
};
use crate::host::guest::shown;
use crate::host::session::Session;
use crate::host::state::{RunState, Shared};
use crate::options::{OptionInfo, OptionKind};
use crate::plan::{Limits, OptionValue, Slot};

/// How often the epoch advances; deadlines are kept to about this.
pub const TICK: Duration = Duration::from_millis(5);

/// Ticks so far: a clock that costs a load to read.
static TICKS: AtomicU64 = AtomicU64::new(0);

/// How often the epoch has advanced.
pub(crate) fn tick() -> u64 {
    TICKS.load(Ordering::Relaxed)
}

/// The version of `wit/` that this host speaks.
pub const INTERFACE: &str = "0.1.0";

const PACKAGE: &str = "espalier:plugin/";

/// Interfaces that every slot may import: of the last four only types.
const COMMON: [&str; 6] = ["log", "random", "run", "options", "rewards", "control"];

/// What a slot may import beside [`COMMON`]: a capability is an import.
pub fn granted(slot: Slot) -> &'static [&'static str] {
    match slot {
        Slot::Trainer => &[
            "tensors",
            "autograd",
            "random-tensors",
            "fft",
            "parameters",
            "optim",
            "capture",
            "data",
            "data-publish",
            "model",
            "model-adopt",
            "rollouts",
        ],
        Slot::Pruner => &[
            "tensors",
            "autograd",
            "random-tensors",
            "parameters",
            "data",
            "model",
        ],
        Slot::Environment | Slot::Normalizer => &[],
        Slot::Architecture => &["tensors", "autograd", "random-tensors", "fft", "parameters"],
        Slot::Tuner => &["tensors", "autograd", "random-tensors"],
        Slot::Auditor => &[
            "tensors",
            "autograd",
            "random-tensors",
            "fft",
            "parameters",
            "optim",
            "data",
            "model",
        ],
        Slot::Transform => &["tensors", "random-tensors"],
        Slot::Searcher => &[
            "tensors",
            "autograd",
            "random-tensors",
            "parameters",
            "optim",
            "data",
            "model",
            "rollouts",
        ],
    }
}

/// Every interface that some slot is granted, or will be: those a listing can say "no" to.
pub const CAPABILITIES: [&str; 12] = [
    "tensors",
    "autograd",
    "random-tensors",
    "fft",
    "parameters",
    "optim",
    "capture",
    "data",
    "data-publish",
    "model",
    "model-adopt",
    "rollouts",
];

/// A world of `wit/`: what a component exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum World {
    /// `training`.
    Trainer,
    /// `pruning`.
    Pruner,
    /// `normalizing`.
    Normalizer,
    /// `normalizing` and `tracking`.
    NormalizerTracking,
    /// `tasks`.
    Tasks,
    /// `mdp`.
    Mdp,
    /// `architecture`.
    Architecture,
    /// `tuning`.
    Tuner,
    /// `auditing`.
    Auditor,
    /// `transforming`.
    Transform,
    /// `searching`.
    Searcher,
}

impl World {
    fn slot(self) -> Slot {
        match self {
            World::Trainer => Slot::Trainer,
            World::Pruner => Slot::Pruner,
            World::Normalizer | World::NormalizerTracking => Slot::Normalizer,
            World::Tasks | World::Mdp => Slot::Environment,
            World::Architecture => Slot::Architecture,
            World::Tuner => Slot::Tuner,
            World::Auditor => Slot::Auditor,
            World::Transform => Slot::Transform,
            World::Searcher => Slot::Searcher,
        }
    }
}

/// A component that passed all checks, compiled.
#[derive(Clone)]
pub struct Loaded {
    component: Component,
    /// The slot it fills.
    pub slot: Slot,
    /// Which of the slot's worlds.
    pub world: World,
    /// SHA-256 of its bytes, hexadecimal.
    pub sha256: String,
    /// Its size in bytes.
    pub size: u64,
    /// Interfaces of `espalier:plugin` that it imports.
    pub imports: Vec<String>,
    /// The interface version it was built for.
    pub interface: String,
}

impl Loaded {
    pub(crate) fn component(&self) -> &Component {
        &self.component
    }

    pub(crate) fn engine(&self) -> &Engine {
        self.component.engine()
    }
}

/// What `espalier plugin inspect` shows.
#[derive(Clone, Debug, Serialize)]
pub struct Inspection {
    /// Its name for itself.
    pub name: String,
    /// Its version.
    pub version: String,
    /// One sentence.
    pub summary: String,
    /// The slot it fills.
    pub slot: Slot,
    /// The interface version it was built for.
    pub interface: String,
    /// Interfaces it imports: its capabilities.
    pub imports: Vec<String>,
    /// Interfaces that its slot does not grant.
    pub denied: Vec<String>,
    /// What a run file may set.
    pub options: Vec<OptionInfo>,
    /// SHA-256 of its bytes, hexadecimal.
    pub sha256: String,
    /// Its size in bytes.
    pub size: u64,
}

/// The one engine of the process, with a thread that advances its epoch.
pub fn engine() -> Result<Engine, Diagnostic> {
    static ENGINE: OnceLock<Result<Engine, String>> = OnceLock::new();
    ENGINE
        .get_or_init(|| {
            let mut config = Config::new();
            config
                .wasm_component_model(true)
                .concurrency_support(false)
                .epoch_interruption(true)
                // A guest computes the same numbers on every machine.
                .cranelift_nan_canonicalization(true)
                .wasm_relaxed_simd(false)
                .wasm_backtrace_details(WasmBacktraceDetails::Enable);
            let engine = Engine::new(&config).map_err(|error| error.to_string())?;
            let weak = engine.weak();
            std::thread::Builder::new()
                .name("epoch".into())
                .spawn(move || {
                    while let Some(engine) = weak.upgrade() {
                        engine.increment_epoch();
                        TICKS.fetch_add(1, Ordering::Relaxed);
                        drop(engine);
                        std::thread::sleep(TICK);
                    }
                })
                .map_err(|error| error.to_string())?;
            Ok(engine)
        })
        .clone()
        .map_err(|error| {
            Diagnostic::new("the WebAssembly engine could not be started").detail("because", error)
        })
}

/// SHA-256 in lower-case hexadecimal.
pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect()
}

/// Checks and compiles a component. `source` is how the person knows it: a plugin's name or a file.
pub fn load(source: &str, bytes: &[u8]) -> Result<Loaded, Diagnostic> {
    header(source, bytes)?;
    let engine = engine()?;
    let digest = sha256(bytes);
    let component = compiled(&engine, bytes, &digest).map_err(|error| {
        Diagnostic::new(format!("`{source}` is not a valid component"))
            .detail("because", format!("{:#}", error))
            .detail("size", format!("{} bytes, sha256 {digest}", bytes.len()))
            .help("it may have been cut short on the way: build or download it again")
    })?;
    let (world, interface) = world_of(source, &engine, &component)?;
    let slot = world.slot();
    let imports = check_imports(source, slot, &engine, &component)?;
    Ok(Loaded {
        component,
        slot,
        world,
        sha256: digest,
        size: bytes.len() as u64,
        imports,
        interface,
    })
}

/// The first eight bytes say whether it is WebAssembly at all, and whether a module or a component.
fn header(source: &str, bytes: &[u8]) -> Result<(), Diagnostic> {
    const BUILD: &str = "build it with `cargo build --release --target wasm32-wasip2`";
    match bytes.get(..8) {
        Some([0, b'a', b's', b'm', 0x0d, 0, 1, 0]) => Ok(()),
        Some([0, b'a', b's', b'm', 1, 0, 0, 0]) => Err(Diagnostic::new(format!(
            "`{source}` is a core WebAssembly module"
        ))
        .expected("a WebAssembly component")
        .found("a core module, as wasm32-unknown-unknown or wasm32-wasip1 make them")
        .help(BUILD)),
        Some(_) => Err(Diagnostic::new(format!("`{source}` is not WebAssembly"))
            .expected("a WebAssembly component")
            .found(format!(
                "{} bytes that begin with {:02x?}",
                bytes.len(),
                &bytes[..4]
            ))
            .help(BUILD)),
        None => Err(Diagnostic::new(format!("`{source}` is cut short"))
            .expected("a WebAssembly component")
            .found(format!("{} bytes", bytes.len()))
            .help("build or download it again")),
    }
}

/// Interface names without package and version, and the version: `espalier:plugin/optim@0.1.0`.
fn split_name(name: &str) -> Option<(&str, &str)> {
    name.strip_prefix(PACKAGE)?.split_once('@')
}

/// Major and minor number: before 1.0 the minor version is the one that breaks.
pub(crate) fn track(version: &str) -> &str {
    let second = version.match_indices('.').nth(1);
    second.map_or(version, |(at, _)| &version[..at])
}

/// Whether a plugin made for this version of the interface runs here.
pub(crate) fn compatible(version: &str) -> bool {
    track(version) == track(INTERFACE)
}

fn world_of(
    source: &str,
    engine: &Engine,
    component: &Component,
) -> Result<(World, String), Diagnostic> {
    let ty = component.component_type();
    let mut exports = Vec::new();
    let names = ty
        .imports(engine)
        .map(|(n, _)| n)
        .chain(ty.exports(engine).map(|(n, _)| n));
    for name in names {
        if let Some((_, version)) = split_name(name)
            && !compatible(version)
        {
            return Err(Diagnostic::new(format!(
                "`{source}` speaks another version of the plugin interface"
            ))
            .expected(format!(
                "espalier:plugin {}.x (this host has {INTERFACE})",
                track(INTERFACE)
            ))
            .found(format!("espalier:plugin {version}, at `{name}`"))
            .help("build the plugin with the SDK of this host's version"));
        }
    }
    let mut found: Vec<(World, String)> = Vec::new();
    let mut tracking = false;
    for (name, _) in ty.exports(engine) {
        exports.push(name.to_string());
        let Some((interface, version)) = split_name(name) else {
            continue;
        };
        tracking |= interface == "tracking";
        let world = match interface {
            "training" => World::Trainer,
            "pruning" => World::Pruner,
            "normalizing" => World::Normalizer,
            "tasks" => World::Tasks,
            "mdp" => World::Mdp,
            "architecture" => World::Architecture,
            "tuning" => World::Tuner,
            "auditing" => World::Auditor,
            "transforming" => World::Transform,
            "searching" => World::Searcher,
            _ => continue,
        };
        found.push((world, version.to_string()));
    }
    if let [(World::Normalizer, version)] = found.as_slice()
        && tracking
    {
        return Ok((World::NormalizerTracking, version.clone()));
    }
    let one = match found.len() {
        1 => found.pop(),
        _ => None,
    };
    one.ok_or_else(|| {
        Diagnostic::new(match exports.iter().any(|name| name.starts_with(PACKAGE)) && !found.is_empty() {
            true => format!("`{source}` fills several slots"),
            false => format!("`{source}` fills no slot"),
        })
            .expected("one export of `espalier:plugin`: `training` (trainer), `pruning` (pruner), `normalizing` (normalizer), `tasks` or `mdp` (environment), `architecture`, `tuning` (tuner), `auditing` (auditor), `transforming` (transform), `searching` (searcher)")
            .found(match exports.is_empty() {
                true => "no exports".to_string(),
                false => exports.join(", "),
            })
            .help("a plugin written with the SDK ends in `espalier_sdk::export!(trainer: ...)`")
    })
}

fn check_imports(
    source: &str,
    slot: Slot,
    engine: &Engine,
    component: &Component,
) -> Result<Vec<String>, Diagnostic> {
    let mut ours = Vec::new();
    for (name, item) in component.component_type().imports(engine) {
        let allowed = match split_name(name) {
            Some((interface, _)) => {
                let granted = COMMON.contains(&interface) || granted(slot).contains(&interface);
                // What a slot's own export speaks of, a batch say, comes as an interface of types: no capability.
                let types_only = || match &item.ty {
                    ComponentItem::ComponentInstance(instance) => instance
                        .exports(engine)
                        .all(|(_, item)| !matches!(item.ty, ComponentItem::ComponentFunc(_))),
                    _ => false,
                };
                if granted {
                    ours.push(interface.to_string());
                }
                granted || types_only()
            }
            None => {
                let base = name.split('@').next().unwrap_or(name);
                crate::host::wasi_allowed(base)
                    && matches!(item.ty, ComponentItem::ComponentInstance(_))
            }
        };
        if !allowed {
            return Err(Diagnostic::new(format!(
                "`{source}` imports something that {} is not granted",
                slot.with_article()
            ))
            .at(format!("import `{name}`"))
            .expected(match granted(slot) {
                [] => "of espalier:plugin only log and random".to_string(),
                interfaces => format!("of espalier:plugin only {}", interfaces.join(", ")),
            })
            .help("a capability is an import: a plugin that needs it belongs in another slot"));
        }
    }
    ours.sort();
    Ok(ours)
}

/// The compiled component from the cache, or compiled now and put there. A cache that can't be used costs time,
/// never the run.
fn compiled(engine: &Engine, bytes: &[u8], digest: &str) -> wasmtime::Result<Component> {
    let Some(folder) = crate::cache::private_folder("components") else {
        return Component::from_binary(engine, bytes);
    };
    let path = folder.join(format!("{digest}-{}.cwasm", compatibility(engine)));
    if let Some(component) = crate::cache::load(engine, &path) {
        return Ok(component);
    }
    let _profile = crate::profile::part(crate::profile::Part::Compile);
    let component = Component::from_binary(engine, bytes)?;
    if let Ok(code) = component.serialize() {
        crate::cache::store(&path, &code);
    }
    Ok(component)
}

/// A name for everything that compiled code depends on: wasmtime's version, its settings, the processor.
fn compatibility(engine: &Engine) -> String {
    use std::hash::{Hash, Hasher};
    let mut hasher = std::hash::DefaultHasher::new();
    engine.precompile_compatibility_hash().hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

/// What a component says of itself, checked.
pub struct Description {
    /// Its name for itself.
    pub name: String,
    /// Its version.
    pub version: String,
    /// One sentence.
    pub summary: String,
    /// What a run file may set.
    pub options: Vec<OptionInfo>,
    /// The events a pruner wants; empty for all.
    pub events: Vec<String>,
}

/// Asks a fresh instance, which has nothing else, for its description.
pub fn describe(source: &str, component: &Loaded) -> Result<Description, Diagnostic> {
    let shared = Rc::new(Shared::new(RunState::empty(0)));
    let limits = Limits {
        call: Duration::from_secs(10),
        ..Limits::default()
    };
    let account = espalier_tensor::account::Account::new(Some(limits.tensors));
    let told =
        Session::new(component, source, limits, account, shared).and_then(|mut s| s.describe());
    let d = told.map_err(|death| death.diagnostic("before the run"))?;
    let options = d
        .options
        .into_iter()
        .map(|o| option_info(source, o))
        .collect::<Result<Vec<_>, _>>()?;
    let mut seen = BTreeMap::new();
    for option in &options {
        if seen.insert(option.name.clone(), ()).is_some() {
            return Err(Diagnostic::new(format!(
                "plugin `{source}` declares the option `{}` twice",
                option.name
            )));
        }
    }
    let known: &[&str] = match component.slot {
        Slot::Transform => &["batch"],
        _ => &["step", "epoch", "round", "stage"],
    };
    if let Some(wrong) = d.events.iter().find(|e| !known.contains(&e.as_str())) {
        return Err(Diagnostic::new(format!(
            "plugin `{source}` asks for the event `{wrong}`, which does not exist"
        ))
        .expected(known.join(", "))
        .help_if(nearest(wrong, known.iter().copied()).map(|n| format!("did it mean `{n}`?"))));
    }
    Ok(Description {
        name: shown(&d.name),
        version: shown(&d.version),
        summary: shown(&d.summary),
        options,
        events: d.events,
    })
}

fn option_info(source: &str, o: WitOption) -> Result<OptionInfo, Diagnostic> {
    let kind = match o.kind {
        Kind::Flag => OptionKind::Bool,
        Kind::Integer => OptionKind::Integer,
        Kind::Number => OptionKind::Float,
        Kind::Text => OptionKind::Text,
        Kind::Choice(all) => OptionKind::Choice(all),
        Kind::Numbers => OptionKind::Floats,
    };
    let info = OptionInfo {
        name: o.name,
        kind,
        default: option_value(o.default),
        min: o.min,
        max: o.max,
        doc: shown(&o.doc),
        live: o.live,
    };
    let given = BTreeMap::from([(info.name.clone(), info.default.clone())]);
    match crate::options::check(
        source,
        std::slice::from_ref(&info),
        &given,
        &BTreeMap::new(),
    ) {
        Ok(_) => Ok(info),
        Err(_) => Err(Diagnostic::new(format!(
            "plugin `{source}` declares the option `{}` with a default that it would refuse",
            info.name
        ))
        .found(format!("{:?}", info.default))),
    }
}

/// An option's value from the interface.
pub fn option_value(v: Value) -> OptionValue {
    match v {
        Value::Flag(b) => OptionValue::Bool(b),
        Value::Integer(n) => OptionValue::Integer(n),
        Value::Number(x) => OptionValue::Float(x),
        Value::Text(s) => OptionValue::Text(s),
        Value::Numbers(xs) => OptionValue::Floats(xs),
    }
}

/// An option's value for the interface.
pub fn wit_value(v: &OptionValue) -> Value {
    match v {
        OptionValue::Bool(b) => Value::Flag(*b),
        OptionValue::Integer(n) => Value::Integer(*n),
        OptionValue::Float(x) => Value::Number(*x),
        OptionValue::Text(s) => Value::Text(s.clone()),
        OptionValue::Floats(xs) => Value::Numbers(xs.clone()),
    }
}

/// Everything about a component that can be known without running it (but for its own description).
pub fn inspect(source: &str, bytes: &[u8]) -> Result<Inspection, Diagnostic> {
    let loaded = load(source, bytes)?;
    let Description {
        name,
        version,
        summary,
        options,
        ..
    } = describe(source, &loaded)?;
    let denied = CAPABILITIES
        .iter()
        .filter(|c| !granted(loaded.slot).contains(c))
        .map(|c| c.to_string())
        .collect();
    Ok(Inspection {
        name,
        version,
        summary,
        slot: loaded.slot,
        interface: loaded.interface,
        imports: loaded.imports,
        denied,
        options,
        sha256: loaded.sha256,
        size: loaded.size,
    })
}

/// Reads a component file.
pub fn read(path: &Path) -> Result<Vec<u8>, Diagnostic> {
    std::fs::read(path).map_err(|error| {
        Diagnostic::new(format!("`{}` could not be read", path.display())).because(&error)
    })
}
