//! What the host keeps for one plugin: its handles, its budgets and what it said.
//!
//! A handle is an index into a slab. A guest can't forge one: wasmtime hands it an index into a table of its
//! own, typed and per store, so an index without an entry here is an error of the host.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use espalier_tensor::Tensor;
use espalier_tensor::account::Account;
use wasmtime::component::Resource;

use super::bindings::rep;
use super::capture::{Captured, Performing};
use super::state::{ModelId, SetId, Shared};
use crate::data::StreamId;
use crate::events::{Event, Level};
use crate::plan::{Limits, Slot};

/// Why the host ended a call, in words for the reader of the run.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Refusal {
    /// Too many handles.
    #[error("more than {limit} handles alive at once")]
    Handles {
        /// The budget.
        limit: u32,
    },
    /// The call took too long.
    #[error("the call took longer than {}", seconds(*limit))]
    Deadline {
        /// The budget.
        limit: Duration,
    },
    /// One operation would outlast the call's budget by itself.
    #[error("{operation} would take about {estimate:.0e} operations, more than a call of {} can do", seconds(*limit))]
    TooLong {
        /// The operation.
        operation: &'static str,
        /// Multiply-accumulates.
        estimate: f64,
        /// The budget.
        limit: Duration,
    },
    /// Guest memory.
    #[error("guest memory of {wanted} asked for, {limit} granted", wanted = bytes(*wanted), limit = bytes(*limit))]
    Memory {
        /// What it would have grown to.
        wanted: u64,
        /// The budget.
        limit: u64,
    },
    /// Too much text.
    #[error("more than {} of log text", bytes(*limit))]
    Log {
        /// The budget.
        limit: u64,
    },
    /// A system call that a plugin does not get.
    #[error("the plugin called `{0}`: a plugin has no files, network, clock to wait on or entropy")]
    Wasi(String),
    /// Anything else that a plugin should not have done.
    #[error("{0}")]
    Misuse(String),
}

/// Bytes for people: `1.5 MiB`.
pub fn bytes(n: u64) -> String {
    const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    for (unit, size) in UNITS {
        if n >= size {
            let value = n as f64 / size as f64;
            let digits = usize::from(!n.is_multiple_of(size));
            return format!("{value:.digits$} {unit}");
        }
    }
    format!("{n} bytes")
}

/// A duration for people: `0.5 s`.
pub fn seconds(d: Duration) -> String {
    format!("{} s", d.as_secs_f64())
}

/// Shorthand for misuse.
pub fn misuse<T>(text: impl Into<String>) -> wasmtime::Result<T> {
    Err(Refusal::Misuse(text.into()).into())
}

/// Most bytes of a name that the host keeps for a plugin: of a set, a parameter, a split, a tag, a layer.
const LONGEST_NAME: usize = 256;

/// Refuses a name that is no name: names are kept, checkpointed and shown to people.
pub fn named(what: &str, name: &str) -> wasmtime::Result<()> {
    if name.len() > LONGEST_NAME {
        return misuse(format!(
            "{what}: a name of {} bytes; at most {LONGEST_NAME}",
            name.len()
        ));
    }
    if name.chars().any(char::is_control) {
        return misuse(format!(
            "{what}: the name {name:?} holds control characters"
        ));
    }
    Ok(())
}

/// A plugin's text as it may be shown on a terminal: control characters, with which it could hide or forge
/// what the host says, become a mark; lines and tabs stay.
pub fn shown(text: &str) -> String {
    let mark = |c: char| match c {
        '\n' | '\t' => c,
        c if c.is_control() => char::REPLACEMENT_CHARACTER,
        c => c,
    };
    text.chars().map(mark).collect()
}

/// An error of a store as the guest's: a broken tensor budget stays what it is, so that it is told as one; the
/// rest is misuse.
pub fn told<T, E: std::error::Error + 'static>(
    result: std::result::Result<T, E>,
) -> wasmtime::Result<T> {
    result.or_else(|error| {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(inner) = cause {
            if let Some(engine @ espalier_tensor::Error::Budget { .. }) = inner.downcast_ref() {
                return Err(engine.clone().into());
            }
            cause = inner.source();
        }
        misuse(error.to_string())
    })
}

/// Values by number, numbers used again.
pub struct Slab<T> {
    entries: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Slab {
            entries: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    pub(super) fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    fn push(&mut self, value: T) -> u32 {
        if let Some(index) = self.free.pop() {
            self.entries[index as usize] = Some(value);
            index
        } else {
            self.entries.push(Some(value));
            (self.entries.len() - 1) as u32
        }
    }

    fn get(&self, index: u32) -> wasmtime::Result<&T> {
        match self.entries.get(index as usize) {
            Some(Some(value)) => Ok(value),
            _ => misuse("a handle names nothing (an error of the host, please report it)"),
        }
    }

    pub(super) fn get_mut(&mut self, index: u32) -> wasmtime::Result<&mut T> {
        match self.entries.get_mut(index as usize) {
            Some(Some(value)) => Ok(value),
            _ => misuse("a handle names nothing (an error of the host, please report it)"),
        }
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.entries.iter_mut().flatten()
    }

    pub(super) fn remove(&mut self, index: u32) -> wasmtime::Result<T> {
        match self.entries.get_mut(index as usize).and_then(Option::take) {
            Some(value) => {
                self.free.push(index);
                Ok(value)
            }
            None => misuse("a handle names nothing (an error of the host, please report it)"),
        }
    }
}

/// One host function in so many is timed, drawn at random: two readings of the clock cost as much as a small
/// operation. Their time is counted as often.
const TIMED_ONE_IN: u32 = 16;

/// What a plugin has cost.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// Calls by export.
    pub calls: BTreeMap<&'static str, u64>,
    /// Time in calls, host work included.
    pub total: Duration,
    /// Of that, time in host functions that compute, estimated from some of them.
    pub host: Duration,
    /// Most handles alive at once.
    pub peak_handles: u64,
    /// True once it has changed a parameter, a mask, or answered other than `continue`.
    pub acted: bool,
}

/// Parameters of one set that a plugin named once.
pub(super) struct Selection {
    /// The set.
    pub(super) set: Rc<SetId>,
    /// Their names, in the plugin's order.
    pub(super) names: Vec<String>,
}

/// What a call of an architecture may do with the set that is lent to it, beside reading.
#[derive(Default)]
pub(super) struct Lent {
    /// It may create parameters.
    pub(super) building: bool,
    /// It may assign to buffers.
    pub(super) moves_buffers: bool,
    /// What it reads in the place of parameters.
    pub(super) overrides: BTreeMap<String, Tensor>,
}

/// One plugin's share of the host. The data of its wasmtime store.
pub struct Guest {
    /// Name in the registry.
    pub name: String,
    /// The slot it fills.
    pub slot: Slot,
    /// Its budgets.
    pub limits: Limits,
    /// Tensor bytes are charged here.
    pub account: Account,
    /// The run.
    pub shared: Rc<Shared>,
    /// When the current call must be over.
    pub deadline: Instant,
    /// What it has cost.
    pub counters: Counters,
    /// Open `no-grad` scopes.
    pub no_grad: u32,
    /// Whether the caller of the current call records graphs; a scope of the guest can only switch it off.
    pub grad_allowed: bool,
    /// Linear memory.
    pub memory: Meter,
    /// Log text written so far.
    pub logged: u64,
    /// The last warning, or lines on standard error: a panic's message arrives there.
    pub stderr_tail: String,
    pending: [String; 2],
    clock: u64,
    /// The tick at which the clock was last read and the deadline had not passed.
    in_time_at: Cell<Option<u64>>,
    /// When the host function at work began, where it is one of those that are timed.
    working_since: Cell<Option<Instant>>,
    /// Draws which host functions are timed.
    sample: Cell<u64>,
    pub(super) tensors: Slab<Tensor>,
    pub(super) sets: Slab<Rc<SetId>>,
    pub(super) selections: Slab<Rc<Selection>>,
    pub(super) models: Slab<Rc<ModelId>>,
    pub(super) streams: Slab<Rc<StreamId>>,
    pub(super) captures: Slab<Captured>,
    /// A captured step that the plugin is doing itself.
    pub(super) performing: Option<Performing>,
    /// What goes with the set of the current call, for an architecture.
    pub(super) lent: Option<Lent>,
}

impl Guest {
    /// An empty share with the given budgets.
    pub fn new(
        name: &str,
        slot: Slot,
        limits: Limits,
        account: Account,
        shared: Rc<Shared>,
    ) -> Self {
        Guest {
            name: name.to_string(),
            slot,
            account,
            deadline: Instant::now() + limits.call,
            memory: Meter {
                used: 0,
                limit: limits.memory,
                refused: None,
            },
            limits,
            shared,
            counters: Counters::default(),
            no_grad: 0,
            grad_allowed: true,
            logged: 0,
            stderr_tail: String::new(),
            pending: [String::new(), String::new()],
            clock: 0,
            in_time_at: Cell::new(None),
            working_since: Cell::new(None),
            sample: Cell::new(1),
            tensors: Slab::default(),
            sets: Slab::default(),
            selections: Slab::default(),
            models: Slab::default(),
            streams: Slab::default(),
            captures: Slab::default(),
            performing: None,
            lent: None,
        }
    }

    /// Refuses a change of the run's parameters where they may only be read: to an auditor always, to everybody in a
    /// stage that freezes them.
    pub(super) fn may_change(&self, what: &str, set: &SetId) -> wasmtime::Result<()> {
        if *set != SetId::Main {
            return Ok(());
        }
        if self.slot == Slot::Auditor {
            return misuse(format!(
                "{what}: an auditor reads the run's parameters and does not change them; model.clone makes a copy to work on"
            ));
        }
        match &self.shared.run.borrow().locked {
            None => Ok(()),
            Some(why) => misuse(format!(
                "{what}: the run's parameters can't be changed now: {why}; a set or a model of the plugin's own can"
            )),
        }
    }

    /// Handles alive.
    pub fn handles(&self) -> usize {
        self.tensors.len()
            + self.sets.len()
            + self.selections.len()
            + self.models.len()
            + self.streams.len()
            + self.captures.len()
            + self.no_grad as usize
    }

    fn room(&mut self) -> wasmtime::Result<()> {
        let n = self.handles();
        if n >= self.limits.handles as usize {
            return Err(Refusal::Handles {
                limit: self.limits.handles,
            }
            .into());
        }
        self.counters.peak_handles = self.counters.peak_handles.max(n as u64 + 1);
        Ok(())
    }

    /// The tensor behind a handle.
    pub fn tensor(&self, t: &Resource<rep::Tensor>) -> wasmtime::Result<&Tensor> {
        self.tensors.get(t.rep())
    }

    /// A new handle for a result; an error of the operation ends the call.
    pub fn put(
        &mut self,
        t: espalier_tensor::Result<Tensor>,
    ) -> wasmtime::Result<Resource<rep::Tensor>> {
        if let Some(since) = self.working_since.take() {
            self.counters.host += since.elapsed() * TIMED_ONE_IN;
        }
        let t = t?;
        self.room()?;
        Ok(Resource::new_own(self.tensors.push(t)))
    }

    /// The tensor of a handle that the guest gave away.
    pub fn take_tensor(&mut self, t: Resource<rep::Tensor>) -> wasmtime::Result<Tensor> {
        self.tensors.remove(t.rep())
    }

    pub(super) fn put_set(&mut self, id: SetId) -> wasmtime::Result<Resource<rep::ParameterSet>> {
        self.room()?;
        Ok(Resource::new_own(self.sets.push(Rc::new(id))))
    }

    pub(super) fn set(&self, r: &Resource<rep::ParameterSet>) -> wasmtime::Result<Rc<SetId>> {
        self.sets.get(r.rep()).cloned()
    }

    pub(super) fn drop_set(&mut self, r: Resource<rep::ParameterSet>) -> wasmtime::Result<()> {
        self.sets.remove(r.rep()).map(drop)
    }

    pub(super) fn put_selection(
        &mut self,
        selection: Selection,
    ) -> wasmtime::Result<Resource<rep::Selection>> {
        self.room()?;
        Ok(Resource::new_own(self.selections.push(Rc::new(selection))))
    }

    pub(super) fn selection(
        &self,
        r: &Resource<rep::Selection>,
    ) -> wasmtime::Result<Rc<Selection>> {
        self.selections.get(r.rep()).cloned()
    }

    pub(super) fn drop_selection(&mut self, r: Resource<rep::Selection>) -> wasmtime::Result<()> {
        self.selections.remove(r.rep()).map(drop)
    }

    pub(super) fn put_model(&mut self, id: ModelId) -> wasmtime::Result<Resource<rep::Model>> {
        self.room()?;
        Ok(Resource::new_own(self.models.push(Rc::new(id))))
    }

    pub(super) fn model(&self, r: &Resource<rep::Model>) -> wasmtime::Result<Rc<ModelId>> {
        self.models.get(r.rep()).cloned()
    }

    pub(super) fn drop_model(&mut self, r: Resource<rep::Model>) -> wasmtime::Result<()> {
        self.models.remove(r.rep()).map(drop)
    }

    pub(super) fn put_captured(
        &mut self,
        captured: Captured,
    ) -> wasmtime::Result<Resource<rep::Captured>> {
        self.room()?;
        Ok(Resource::new_own(self.captures.push(captured)))
    }

    pub(super) fn put_stream(&mut self, id: StreamId) -> wasmtime::Result<Resource<rep::Stream>> {
        self.room()?;
        Ok(Resource::new_own(self.streams.push(Rc::new(id))))
    }

    pub(super) fn stream(&self, r: &Resource<rep::Stream>) -> wasmtime::Result<Rc<StreamId>> {
        self.streams.get(r.rep()).cloned()
    }

    pub(super) fn drop_stream(&mut self, r: Resource<rep::Stream>) -> wasmtime::Result<()> {
        self.streams.remove(r.rep()).map(drop)
    }

    /// Epochs stop guest code only, so a host function that computes asks for the time before it begins: the
    /// clock itself once a tick, which is how exact deadlines are.
    pub fn in_time(&self) -> wasmtime::Result<()> {
        let tick = crate::component::tick();
        if self.in_time_at.get() != Some(tick) {
            if Instant::now() > self.deadline {
                return Err(Refusal::Deadline {
                    limit: self.limits.call,
                }
                .into());
            }
            self.in_time_at.set(Some(tick));
        }
        // Knuth's generator, of which the upper bits are good.
        let sample = self
            .sample
            .get()
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1);
        self.sample.set(sample);
        let timed = sample >> 32 < (1 << 32) / u64::from(TIMED_ONE_IN);
        self.working_since.set(timed.then(Instant::now));
        Ok(())
    }

    /// The next call is to be over by then.
    pub(super) fn due(&mut self, deadline: Instant) {
        self.deadline = deadline;
        self.in_time_at.set(None);
    }

    /// Refuses one operation that no budget of time could hold. 10^11 multiply-accumulates a second is more
    /// than the machine can do, so nothing honest is refused.
    pub fn affordable(&self, operation: &'static str, estimate: f64) -> wasmtime::Result<()> {
        if estimate > 1e11 * self.limits.call.as_secs_f64() {
            return Err(Refusal::TooLong {
                operation,
                estimate,
                limit: self.limits.call,
            }
            .into());
        }
        self.in_time()
    }

    /// Counts text against the budget.
    pub fn charge_log(&mut self, n: usize) -> wasmtime::Result<()> {
        // A line costs at least a little, or empty lines would be free.
        self.logged += n as u64 + 16;
        if self.logged > self.limits.log {
            return Err(Refusal::Log {
                limit: self.limits.log,
            }
            .into());
        }
        Ok(())
    }

    /// Passes something said on to the run.
    pub fn say(&mut self, level: Level, text: String) -> wasmtime::Result<()> {
        self.charge_log(text.len())?;
        let text = shown(&text);
        let step = self.shared.run.borrow().steps_done;
        let plugin = self.name.clone();
        self.shared.events.borrow_mut().push(Event::Log {
            plugin,
            level,
            text,
            step,
        });
        Ok(())
    }

    /// Text on standard output or error becomes log lines.
    pub fn print(&mut self, to_stderr: bool, text: &str) -> wasmtime::Result<()> {
        if to_stderr {
            self.stderr_tail.push_str(text);
            let excess = self.stderr_tail.len().saturating_sub(2000);
            let cut = (excess..)
                .find(|&i| self.stderr_tail.is_char_boundary(i))
                .unwrap_or(0);
            self.stderr_tail.drain(..cut);
        }
        self.pending[to_stderr as usize].push_str(text);
        // A line without an end does not grow for ever.
        if self.pending[to_stderr as usize].len() > 64 << 10 {
            self.pending[to_stderr as usize].push('\n');
        }
        while let Some(end) = self.pending[to_stderr as usize].find('\n') {
            let line: String = self.pending[to_stderr as usize].drain(..=end).collect();
            let level = if to_stderr {
                Level::Warning
            } else {
                Level::Info
            };
            self.say(level, line.trim_end().to_string())?;
        }
        Ok(())
    }

    /// A clock that counts how often it was asked, in steps of a microsecond.
    pub fn tick(&mut self) -> u64 {
        self.clock += 1_000;
        self.clock
    }
}

/// Counts a store's linear memory.
pub struct Meter {
    used: u64,
    limit: u64,
    /// The refusal that a growth met in this call, for the error that follows.
    pub refused: Option<Refusal>,
}

impl Meter {
    /// Bytes of linear memory, all memories together.
    pub fn used(&self) -> u64 {
        self.used
    }
}

impl wasmtime::ResourceLimiter for Meter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // All memories together: wasmtime asks for each by itself.
        let wanted = self
            .used
            .saturating_add(desired.saturating_sub(current) as u64);
        if wanted > self.limit {
            let refusal = Refusal::Memory {
                wanted,
                limit: self.limit,
            };
            self.refused = Some(refusal.clone());
            return Err(refusal.into());
        }
        self.used = wanted;
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired > 100_000 {
            return misuse(format!(
                "a table of {desired} entries asked for, 100000 granted"
            ));
        }
        Ok(true)
    }

    fn instances(&self) -> usize {
        64
    }

    fn tables(&self) -> usize {
        64
    }

    fn memories(&self) -> usize {
        16
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::host::state::RunState;

    fn guest() -> Guest {
        let shared = Rc::new(Shared::new(RunState::empty(0)));
        Guest::new(
            "test",
            Slot::Pruner,
            Limits::default(),
            Account::new(None),
            shared,
        )
    }

    #[test]
    fn no_host_function_begins_after_the_deadline() {
        let mut guest = guest();
        assert!(guest.in_time().is_ok());
        guest.due(Instant::now() - Duration::from_millis(1));
        assert!(guest.in_time().is_err());
        assert!(guest.affordable("matmul", 1.0).is_err());
    }

    #[test]
    fn one_handle_more_than_granted_is_refused() {
        let mut guest = guest();
        guest.limits.handles = 2;
        let one = || espalier_tensor::Tensor::ones(&[1], espalier_tensor::DType::F32);
        let first = guest.put(one()).unwrap();
        guest.put(one()).unwrap();
        assert!(guest.put(one()).is_err());
        guest.take_tensor(first).unwrap();
        assert!(guest.put(one()).is_ok());
    }

    #[test]
    fn text_for_people_keeps_lines_and_loses_control_characters() {
        assert_eq!(shown("a\tb\n\u{1b}[2J\r"), "a\tb\n\u{fffd}[2J\u{fffd}");
        assert!(named("new-set", "a b/c").is_ok());
        assert!(named("new-set", "a\nb").is_err());
    }

    #[test]
    fn memory_is_counted_over_all_linear_memories() {
        use wasmtime::ResourceLimiter;
        let mut meter = guest().memory;
        meter.limit = 100;
        assert!(meter.memory_growing(0, 60, None).is_ok());
        assert!(meter.memory_growing(0, 40, None).is_ok());
        assert!(meter.memory_growing(60, 61, None).is_err());
        assert!(meter.memory_growing(0, usize::MAX, None).is_err());
    }
}
