//! WASI with nothing in it.
//!
//! Every Rust component for wasm32-wasip2 imports a dozen WASI interfaces, used or not. Here they are answered:
//! no environment, no arguments, no files, no network; output goes to the run's log; the clock counts how often
//! it was asked; entropy is a stream seeded by the run and the plugin. What would wait (a clock's subscription)
//! traps, because no deadline could end it.

use espalier_tensor::random;
use wasmtime::component::types::ComponentItem;
use wasmtime::component::{Component, Linker, LinkerInstance, Resource, ResourceType, Val};
use wasmtime::{Engine, Result, StoreContextMut};

use super::guest::{Guest, Refusal, misuse};
use super::tensors::name_word;

/// The WASI interfaces that a component may import, without package version.
pub const ALLOWED: [&str; 16] = [
    "wasi:cli/environment",
    "wasi:cli/exit",
    "wasi:cli/stderr",
    "wasi:cli/stdin",
    "wasi:cli/stdout",
    "wasi:cli/terminal-input",
    "wasi:cli/terminal-output",
    "wasi:cli/terminal-stderr",
    "wasi:cli/terminal-stdin",
    "wasi:cli/terminal-stdout",
    "wasi:clocks/monotonic-clock",
    "wasi:clocks/wall-clock",
    "wasi:io/error",
    "wasi:io/poll",
    "wasi:io/streams",
    "wasi:random/",
];

/// The one type behind all WASI resources; their representation says which: an output stream's is its number.
struct Wasi;

const STDIN: u32 = 0;
const STDOUT: u32 = 1;
const STDERR: u32 = 2;
const OTHER: u32 = 3;

/// Answers every WASI import of `component`.
pub fn add_to_linker(
    engine: &Engine,
    component: &Component,
    linker: &mut Linker<Guest>,
) -> Result<()> {
    for (name, item) in component.component_type().imports(engine) {
        if !name.starts_with("wasi:") {
            continue;
        }
        let ComponentItem::ComponentInstance(interface) = item.ty else {
            continue;
        };
        let mut instance = linker.instance(name)?;
        for (function, item) in interface.exports(engine) {
            define(&mut instance, name, function, &item.ty)?;
        }
    }
    Ok(())
}

fn define(
    instance: &mut LinkerInstance<'_, Guest>,
    interface: &str,
    name: &str,
    item: &ComponentItem,
) -> Result<()> {
    match item {
        ComponentItem::Resource(_) => {
            instance.resource(name, ResourceType::host::<Wasi>(), |_, _| Ok(()))
        }
        ComponentItem::ComponentFunc(_) => {
            let interface = interface.split('@').next().unwrap_or(interface).to_string();
            let function = name.to_string();
            instance.func_new(name, move |mut store, _ty, arguments, results| {
                // A borrowed resource has to be given back: the first by reading it, the others as they are.
                let mut rest = arguments.iter();
                let stream = match arguments.first() {
                    Some(Val::Resource(r)) if !r.owned() => {
                        rest.next();
                        r.try_into_resource::<Wasi>(&mut store)?.rep()
                    }
                    _ => OTHER,
                };
                for argument in rest {
                    give_back(&mut store, argument)?;
                }
                if let Some(value) = answer(&mut store, &interface, &function, stream, arguments)?
                    && let Some(slot) = results.first_mut()
                {
                    *slot = value;
                }
                Ok(())
            })
        }
        _ => Ok(()),
    }
}

fn give_back(store: &mut StoreContextMut<'_, Guest>, value: &Val) -> Result<()> {
    match value {
        Val::Resource(r) if !r.owned() => r.resource_drop(&mut *store),
        Val::List(all) => all.iter().try_for_each(|v| give_back(store, v)),
        _ => Ok(()),
    }
}

fn own(store: &mut StoreContextMut<'_, Guest>, rep: u32) -> Result<Val> {
    Ok(Val::Resource(
        Resource::<Wasi>::new_own(rep).try_into_resource_any(&mut *store)?,
    ))
}

fn ok(value: Option<Val>) -> Val {
    Val::Result(Ok(value.map(Box::new)))
}

fn closed() -> Val {
    Val::Result(Err(Some(Box::new(Val::Variant("closed".into(), None)))))
}

fn answer(
    store: &mut StoreContextMut<'_, Guest>,
    interface: &str,
    function: &str,
    stream: u32,
    arguments: &[Val],
) -> Result<Option<Val>> {
    let call = function.rsplit('.').next().unwrap_or(function);
    let value = match (interface, call) {
        ("wasi:cli/environment", "get-environment" | "get-arguments") => Val::List(Vec::new()),
        ("wasi:cli/environment", "initial-cwd") => Val::Option(None),
        ("wasi:cli/stdin", "get-stdin") => own(store, STDIN)?,
        ("wasi:cli/stdout", "get-stdout") => own(store, STDOUT)?,
        ("wasi:cli/stderr", "get-stderr") => own(store, STDERR)?,
        (
            "wasi:cli/terminal-stdin" | "wasi:cli/terminal-stdout" | "wasi:cli/terminal-stderr",
            "get-terminal-stdin" | "get-terminal-stdout" | "get-terminal-stderr",
        ) => Val::Option(None),
        ("wasi:io/streams", "check-write") => ok(Some(Val::U64(64 << 10))),
        ("wasi:io/streams", "write" | "blocking-write-and-flush") => {
            if let Some(Val::List(bytes)) = arguments.get(1) {
                let bytes: Vec<u8> = bytes
                    .iter()
                    .filter_map(|b| if let Val::U8(b) = b { Some(*b) } else { None })
                    .collect();
                store
                    .data_mut()
                    .print(stream == STDERR, &String::from_utf8_lossy(&bytes))?;
            }
            ok(None)
        }
        ("wasi:io/streams", "flush" | "blocking-flush") => ok(None),
        ("wasi:io/streams", "subscribe") => own(store, OTHER)?,
        ("wasi:io/streams", "read" | "blocking-read" | "skip" | "blocking-skip") => closed(),
        ("wasi:io/poll", "block") => return Ok(None),
        ("wasi:io/poll", "ready") => Val::Bool(true),
        ("wasi:io/error", "to-debug-string") => Val::String("closed".into()),
        ("wasi:clocks/monotonic-clock", "now") => Val::U64(store.data_mut().tick()),
        ("wasi:clocks/monotonic-clock", "resolution") => Val::U64(1_000),
        ("wasi:clocks/wall-clock", "now" | "resolution") => {
            let nanoseconds = store.data_mut().tick();
            let seconds = Val::U64(nanoseconds / 1_000_000_000);
            let rest = Val::U32((nanoseconds % 1_000_000_000) as u32);
            Val::Record(vec![
                ("seconds".into(), seconds),
                ("nanoseconds".into(), rest),
            ])
        }
        ("wasi:random/insecure-seed", _) => {
            let words = entropy(store, 2, 0);
            Val::Tuple(words.into_iter().map(Val::U64).collect())
        }
        (
            "wasi:random/random" | "wasi:random/insecure",
            "get-random-u64" | "get-insecure-random-u64",
        ) => {
            let at = store.data_mut().tick();
            Val::U64(entropy(store, 1, at).first().copied().unwrap_or_default())
        }
        (
            "wasi:random/random" | "wasi:random/insecure",
            "get-random-bytes" | "get-insecure-random-bytes",
        ) => {
            let n = match arguments.first() {
                Some(Val::U64(n)) if *n <= 1 << 20 => *n as usize,
                _ => return misuse("more than 1 MiB of random bytes in one call"),
            };
            let at = store.data_mut().tick();
            let words = entropy(store, n.div_ceil(8), at);
            Val::List(
                words
                    .iter()
                    .flat_map(|w| w.to_le_bytes())
                    .take(n)
                    .map(Val::U8)
                    .collect(),
            )
        }
        _ => return Err(Refusal::Wasi(format!("{interface}#{function}")).into()),
    };
    Ok(Some(value))
}

/// Words that depend on the run's seed, the plugin and `at`.
fn entropy(store: &StoreContextMut<'_, Guest>, n: usize, at: u64) -> Vec<u64> {
    let guest = store.data();
    let seed = guest.shared.run.borrow().seed;
    random::bits(
        &random::Key::new(&[seed, name_word(&guest.name), name_word("wasi"), at]),
        n,
    )
}
