//! One plugin in one run: a store, an instance, and calls that come back or end in a [`Death`].
//!
//! Promise: whatever a guest does in a call, the call ends within its time budget plus one host operation, and
//! the host, other plugins and the parameters stay usable. After a death the store is gone for good; the run's
//! policy decides what follows.

use std::rc::Rc;
use std::time::{Duration, Instant};

use espalier_tensor::{Tensor, account::Account, autograd};
use wasmtime::component::Linker;
use wasmtime::{Store, Trap, WasmBacktrace};

use super::bindings::pruner::Pruner;
use super::bindings::trainer::Trainer;
use super::bindings::trainer::espalier::plugin::model::PredictionKind;
use super::bindings::trainer::espalier::plugin::options::Value;
use super::bindings::trainer::espalier::plugin::run::{
    Directive, Error, Event, RunInfo, StepInfo, StepReport,
};
use super::bindings::trainer::exports::espalier::plugin::plugin::Description;
use super::guest::{Guest, Refusal, bytes};
use super::state::Shared;
use super::wasi;
use crate::component::{Loaded, TICK};
use crate::data::Batch;
use crate::diagnostic::Diagnostic;
use crate::plan::{Limits, Slot};

/// How a plugin's instance came to its end.
#[derive(Clone, Debug, thiserror::Error)]
#[error("plugin `{plugin}` failed in `{call}`: {what}")]
pub struct Death {
    /// The plugin.
    pub plugin: String,
    /// The export that was called.
    pub call: &'static str,
    /// What happened, in one line.
    pub what: String,
    /// Labelled facts: budget, use, the plugin's own line.
    pub details: Vec<(String, String)>,
    /// What to do.
    pub help: Option<String>,
}

impl Death {
    /// The error for people; `at` says where the run was.
    pub fn diagnostic(&self, at: &str) -> Diagnostic {
        let mut d = Diagnostic::new(format!("plugin `{}` {}", self.plugin, self.what))
            .at(format!("`{}`, {at}", self.call));
        for (label, text) in &self.details {
            d = d.detail(label, text);
        }
        d.help_if(self.help.clone())
    }
}

/// Most bytes that a plugin may ask the host to remember for it: they stand as numbers in a checkpoint's header.
pub const MOST_SAVED: usize = 8 << 20;

/// What a call gives.
pub type Called<T> = Result<T, Death>;

enum Exports {
    Trainer(Trainer),
    Pruner(Pruner),
}

/// One plugin in one run.
pub struct Session {
    store: Store<Guest>,
    exports: Exports,
    /// A budget smaller than the plugin's own, for the next call only.
    shorter: Option<Duration>,
}

impl Session {
    /// Instantiates a loaded component with its own store and budgets.
    pub fn new(
        component: &Loaded,
        name: &str,
        limits: Limits,
        account: Account,
        shared: Rc<Shared>,
    ) -> Called<Session> {
        let engine = component.engine().clone();
        let guest = Guest::new(name, component.slot, limits.clone(), account, shared);
        let mut store = Store::new(&engine, guest);
        store.limiter(|guest| &mut guest.memory);
        store.set_epoch_deadline(ticks(limits.call));
        // wasmtime counts own and lent handles; the budget proper is counted by `Guest`.
        store.set_max_component_handles(limits.handles as usize * 2 + 4096);
        store.set_hostcall_fuel(usize::try_from(limits.memory).unwrap_or(usize::MAX));
        let mut linker: Linker<Guest> = Linker::new(&engine);
        let mut instantiate = || -> wasmtime::Result<Exports> {
            wasi::add_to_linker(&engine, component.component(), &mut linker)?;
            Ok(match component.slot {
                Slot::Trainer => {
                    Trainer::add_to_linker::<_, wasmtime::component::HasSelf<Guest>>(
                        &mut linker,
                        |g| g,
                    )?;
                    Exports::Trainer(Trainer::instantiate(
                        &mut store,
                        component.component(),
                        &linker,
                    )?)
                }
                Slot::Pruner => {
                    Pruner::add_to_linker::<_, wasmtime::component::HasSelf<Guest>>(
                        &mut linker,
                        |g| g,
                    )?;
                    Exports::Pruner(Pruner::instantiate(
                        &mut store,
                        component.component(),
                        &linker,
                    )?)
                }
            })
        };
        match instantiate() {
            Ok(exports) => Ok(Session {
                store,
                exports,
                shorter: None,
            }),
            Err(error) => Err(death(store.data(), "instantiate", &error)),
        }
    }

    /// What the host keeps for the plugin.
    pub fn guest(&self) -> &Guest {
        self.store.data()
    }

    /// The same, to be changed.
    pub fn guest_mut(&mut self) -> &mut Guest {
        self.store.data_mut()
    }

    /// The next call has at most this much time.
    pub(super) fn shorten(&mut self, budget: Duration) {
        self.shorter = Some(budget);
    }

    /// Every call goes through here: budget, account, gradient mode, counters, and the translation of errors.
    fn call<T>(
        &mut self,
        call: &'static str,
        grad: bool,
        f: impl FnOnce(&mut Store<Guest>, &Exports) -> wasmtime::Result<T>,
    ) -> Called<T> {
        let started = Instant::now();
        let limit = self.store.data().limits.call;
        let budget = self.shorter.take().map_or(limit, |d| d.min(limit));
        self.store.set_epoch_deadline(ticks(budget));
        let caller_mode = autograd::grad_enabled();
        let guest = self.store.data_mut();
        guest.deadline = started + budget;
        guest.grad_allowed = caller_mode && grad;
        guest.memory.refused = None;
        autograd::set_grad_enabled(guest.grad_allowed && guest.no_grad == 0);
        let scope = guest.account.enter();
        let result = f(&mut self.store, &self.exports);
        drop(scope);
        autograd::set_grad_enabled(caller_mode);
        let guest = self.store.data_mut();
        guest.counters.total += started.elapsed();
        *guest.counters.calls.entry(call).or_default() += 1;
        result.map_err(|error| death(self.store.data(), call, &error))
    }

    fn wrong_slot<T>() -> wasmtime::Result<T> {
        super::guest::misuse("the plugin fills another slot")
    }

    /// Name, version and options.
    pub fn describe(&mut self) -> Called<Description> {
        self.call("describe", true, |store, exports| match exports {
            Exports::Trainer(t) => t.espalier_plugin_plugin().call_describe(store),
            Exports::Pruner(p) => {
                let d = p.espalier_plugin_plugin().call_describe(store)?;
                Ok(Description {
                    name: d.name,
                    version: d.version,
                    summary: d.summary,
                    options: d.options,
                    events: d.events,
                })
            }
        })
    }

    /// Starts the plugin. The inner error is the plugin's own refusal.
    pub fn start(
        &mut self,
        info: RunInfo,
        settings: &[(String, Value)],
    ) -> Called<Result<(), Error>> {
        self.call("start", true, |store, exports| match exports {
            Exports::Trainer(t) => t
                .espalier_plugin_training()
                .call_start(store, info, settings),
            Exports::Pruner(p) => p
                .espalier_plugin_pruning()
                .call_start(store, info, settings),
        })
    }

    /// One step of a trainer.
    pub fn step(&mut self, at: StepInfo) -> Called<StepReport> {
        self.call("step", true, |store, exports| match exports {
            Exports::Trainer(t) => t.espalier_plugin_training().call_step(store, at),
            Exports::Pruner(_) => Self::wrong_slot(),
        })
    }

    /// Per-sample losses of a trainer, [count].
    pub fn objective(&mut self, batch: Batch) -> Called<Tensor> {
        let count = batch.count as usize;
        self.call("objective", true, |store, exports| match exports {
            Exports::Trainer(t) => {
                let batch = store.data_mut().put_batch(batch)?;
                let losses = t
                    .espalier_plugin_training()
                    .call_objective(&mut *store, &batch)?;
                let losses = store.data_mut().take_tensor(losses)?;
                if losses.shape() != [count] {
                    return super::guest::misuse(format!(
                        "returned losses of shape {:?}, expected one loss a sample: [{count}]",
                        losses.shape()
                    ));
                }
                Ok(losses)
            }
            Exports::Pruner(_) => Self::wrong_slot(),
        })
    }

    /// Predictions of a trainer for a batch.
    pub fn predict(&mut self, batch: Batch) -> Called<(PredictionKind, Tensor)> {
        let count = batch.count as usize;
        self.call("predict", false, |store, exports| match exports {
            Exports::Trainer(t) => {
                let batch = store.data_mut().put_batch(batch)?;
                let prediction = t.espalier_plugin_training().call_predict(&mut *store, &batch)?;
                let output = store.data_mut().take_tensor(prediction.output)?;
                if output.shape().first() != Some(&count) {
                    return super::guest::misuse(format!(
                        "returned predictions of shape {:?}, expected {count} samples along the first axis",
                        output.shape()
                    ));
                }
                Ok((prediction.kind, output))
            }
            Exports::Pruner(_) => Self::wrong_slot(),
        })
    }

    /// Tells a pruner of an event.
    pub fn on_event(&mut self, event: &Event) -> Called<Directive> {
        self.call("on-event", true, |store, exports| match exports {
            Exports::Trainer(_) => Self::wrong_slot(),
            Exports::Pruner(p) => p.espalier_plugin_pruning().call_on_event(store, event),
        })
    }

    /// Changes a live option of a trainer.
    pub fn set_knob(&mut self, name: &str, value: &Value) -> Called<Result<(), Error>> {
        self.call("set-knob", true, |store, exports| match exports {
            Exports::Trainer(t) => t
                .espalier_plugin_training()
                .call_set_knob(store, name, value),
            Exports::Pruner(_) => Self::wrong_slot(),
        })
    }

    /// What the plugin must remember, at most [`MOST_SAVED`] bytes.
    pub fn save(&mut self) -> Called<Vec<u8>> {
        self.call("save", true, |store, exports| {
            let bytes = match exports {
                Exports::Trainer(t) => t.espalier_plugin_training().call_save(store),
                Exports::Pruner(p) => p.espalier_plugin_pruning().call_save(store),
            }?;
            if bytes.len() > MOST_SAVED {
                return super::guest::misuse(format!(
                    "returned {}, at most {} are kept; tensors belong in a parameter set",
                    super::guest::bytes(bytes.len() as u64),
                    super::guest::bytes(MOST_SAVED as u64)
                ));
            }
            Ok(bytes)
        })
    }

    /// Gives saved bytes back.
    pub fn restore(&mut self, state: &[u8]) -> Called<Result<(), Error>> {
        self.call("restore", true, |store, exports| match exports {
            Exports::Trainer(t) => t
                .espalier_plugin_training()
                .call_restore(store, &state.to_vec()),
            Exports::Pruner(p) => p
                .espalier_plugin_pruning()
                .call_restore(store, &state.to_vec()),
        })
    }
}

fn ticks(budget: Duration) -> u64 {
    (budget.as_nanos() / TICK.as_nanos()) as u64 + 1
}

/// Why a call ended, in words.
fn death(guest: &Guest, call: &'static str, error: &wasmtime::Error) -> Death {
    // A death in a plugin that this one asked for something is that plugin's.
    if let Some(inner) = error.downcast_ref::<Death>() {
        return inner.clone();
    }
    let mut details = Vec::new();
    // What a plugin says or names stands in these texts.
    let mut detail =
        |label: &str, text: String| details.push((label.to_string(), super::guest::shown(&text)));
    let mut help = None;
    let refusal = guest
        .memory
        .refused
        .as_ref()
        .or_else(|| error.downcast_ref::<Refusal>());
    let limit = |field: &str| {
        Some(format!(
            "raise `limits.{field}` of this plugin in the run file, or mend the plugin"
        ))
    };
    let what = if let Some(refusal) = refusal {
        match refusal {
            Refusal::Handles { limit: n } => {
                detail("budget", format!("{n} handles"));
                help = Some(
                    "drop tensors that are no longer needed, or raise `limits.handles`".into(),
                );
                "keeps more handles than this run grants it".to_string()
            }
            Refusal::Deadline { limit: d } => {
                detail("budget", super::guest::seconds(*d));
                help = limit("call");
                "did not return in time".to_string()
            }
            Refusal::TooLong {
                operation,
                estimate,
                limit: d,
            } => {
                detail(
                    "operation",
                    format!("{operation}, about {estimate:.1e} multiply-accumulates"),
                );
                detail("budget", super::guest::seconds(*d));
                help = limit("call");
                "asked for an operation that can't end in time".to_string()
            }
            Refusal::Memory { wanted, limit: n } => {
                detail("budget", bytes(*n));
                detail("asked for", bytes(*wanted));
                help = limit("memory");
                "asked for more guest memory than this run grants it".to_string()
            }
            Refusal::Log { limit: n } => {
                detail("budget", format!("{} of text in the whole run", bytes(*n)));
                help = limit("log");
                "writes more log than this run grants it".to_string()
            }
            Refusal::Wasi(name) => {
                detail("called", name.clone());
                help = Some(
                    "a plugin has no files, network, clock to wait on or process to leave".into(),
                );
                "called something that no plugin gets".to_string()
            }
            Refusal::Misuse(text) => {
                detail("because", text.clone());
                "was stopped".to_string()
            }
        }
    } else if let Some(error) = error.downcast_ref::<espalier_tensor::Error>() {
        match error {
            espalier_tensor::Error::Budget {
                op,
                asked,
                used,
                limit: n,
            } => {
                detail("operation", op.to_string());
                detail(
                    "budget",
                    format!(
                        "{}, in use {}, asked for +{}",
                        bytes(*n),
                        bytes(*used),
                        bytes(*asked)
                    ),
                );
                help = Some(
                    "drop tensors kept between steps, or raise `limits.tensors` of this plugin"
                        .into(),
                );
                "asked for more tensor memory than this run grants it".to_string()
            }
            other => {
                detail("because", other.to_string());
                "made a mistake in a tensor operation".to_string()
            }
        }
    } else if let Some(trap) = error.downcast_ref::<Trap>() {
        match trap {
            Trap::Interrupt => {
                detail("budget", super::guest::seconds(guest.limits.call));
                help = limit("call");
                "did not return in time".to_string()
            }
            Trap::UnreachableCodeReached => {
                let said = guest.stderr_tail.trim();
                if !said.is_empty() {
                    detail("said", last_lines(said, 3));
                }
                "panicked".to_string()
            }
            Trap::MemoryOutOfBounds | Trap::StackOverflow => {
                help = Some(
                    "in a Rust plugin this usually is a stack overflow: look for endless recursion"
                        .into(),
                );
                format!("trapped: {trap}")
            }
            other => format!("trapped: {other}"),
        }
    } else {
        let text = error.root_cause().to_string();
        if text.contains("too much data is being copied") {
            detail("budget", bytes(guest.limits.memory));
            help = limit("memory");
            "passed more data in one call than this run grants it".to_string()
        } else if text.contains("handle") && text.contains("limit") {
            detail("budget", format!("{} handles", guest.limits.handles));
            "keeps more handles than this run grants it".to_string()
        } else {
            detail("because", text);
            "failed".to_string()
        }
    };
    if let Some(line) = error.downcast_ref::<WasmBacktrace>().and_then(author_line) {
        detail("source", line);
    }
    Death {
        plugin: guest.name.clone(),
        call,
        what,
        details,
        help,
    }
}

fn last_lines(text: &str, n: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(n)..].join("\n")
}

/// The innermost line that the plugin's author wrote: not the standard library's, not the SDK's, not generated
/// bindings' (which stand at line 1, column 1 of the file that asked for them).
fn author_line(trace: &WasmBacktrace) -> Option<String> {
    for frame in trace.frames() {
        for symbol in frame.symbols() {
            let (Some(file), Some(line)) = (symbol.file(), symbol.line()) else {
                continue;
            };
            let foreign = [
                "/rustc/",
                "/library/",
                "/sdk/src/",
                "espalier-sdk-",
                "/cargo/registry/",
                "/rust/deps/",
                "wasisdk://",
            ];
            if foreign.iter().any(|part| file.contains(part))
                || (line, symbol.column()) == (1, Some(1))
            {
                continue;
            }
            return Some(match symbol.column() {
                Some(column) => format!("{file}:{line}:{column}"),
                None => format!("{file}:{line}"),
            });
        }
    }
    None
}
