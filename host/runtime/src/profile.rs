//! Where the time of a run went: by part of the run, by plugin and call, by host operation, in guest and in host.
//!
//! Scopes are opened and closed on the thread that drives the run and nest, so each nanosecond belongs to exactly
//! one of them and the parts add up to the whole. Scopes that lie the same way inside each other share a node of a
//! tree: memory does not grow with the length of the run. A sample of single scopes is kept for a trace.
//!
//! | scope | opened by | its own time is |
//! | --- | --- | --- |
//! | part | the runner, around a [`Part`] | the runner's |
//! | call | `Session::call`, around an export of a plugin | the plugin's code, what wasmtime does at its border included |
//! | operation | the generated bindings, around a function of `wit/` | the host's, on the plugin's behalf |
//!
//! Where nothing is recorded a scope costs one look at a flag of its thread. The bindings open theirs through
//! [`span`] and [`Level`], which have the shape that the generator's option `tracing` asks for.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::io::{self, BufWriter, Write};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Serialize;

/// Steps of an epoch whose scopes the trace shows one by one.
pub const DETAILED_STEPS: u64 = 3;

/// Most single scopes in a trace, and most summaries: some 12 MB and 3 MB of JSON.
const MOST_FINE: usize = 100_000;
const MOST_COARSE: usize = 20_000;

/// Scopes shorter than this many nanoseconds stand in a trace's detailed steps only.
const COARSE_FROM: u64 = 100_000;

/// A part of a run. What happens outside all of them is [`Part::Runner`]'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// Building path plugins from source, and reading components.
    Build,
    /// Checking components, loading compiled code, asking them for their options.
    Load,
    /// Compiling components that the cache does not hold.
    Compile,
    /// Reading data, or starting the environment that gives them.
    Data,
    /// The model, the run's folder, a checkpoint to go on from.
    Prepare,
    /// Instantiating plugins and their `start`.
    Start,
    /// The trainer's steps.
    Steps,
    /// Drift of the policy, for a normaliser that tracks it.
    Drift,
    /// Events for pruners.
    Events,
    /// The host's measurements.
    Measurement,
    /// Checkpoints.
    Checkpoints,
    /// The metrics file, and whoever watches the run.
    Reports,
    /// The loop around all of these.
    Runner,
}

impl Part {
    /// As people read it.
    pub fn name(self) -> &'static str {
        match self {
            Part::Build => "build plugins",
            Part::Load => "load plugins",
            Part::Compile => "compile plugins",
            Part::Data => "load data",
            Part::Prepare => "prepare the run",
            Part::Start => "start plugins",
            Part::Steps => "steps",
            Part::Drift => "drift",
            Part::Events => "pruner events",
            Part::Measurement => "measurement",
            Part::Checkpoints => "checkpoints",
            Part::Reports => "reports",
            Part::Runner => "runner",
        }
    }

    /// Whether it may come with every step.
    fn of_step(self) -> bool {
        matches!(
            self,
            Part::Steps | Part::Drift | Part::Events | Part::Reports
        )
    }
}

/// Time of one part of a run, in seconds. The three add up to the part's, all parts to [`Profile::seconds`].
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PartTime {
    /// Which: a [`Part`]'s name.
    pub part: String,
    /// In plugins' own code.
    pub guest_seconds: f64,
    /// In host operations that plugins called.
    pub host_seconds: f64,
    /// In the runner's own work.
    pub runner_seconds: f64,
}

impl PartTime {
    /// All of it.
    pub fn seconds(&self) -> f64 {
        self.guest_seconds + self.host_seconds + self.runner_seconds
    }
}

/// Time of the calls of one export of a plugin. A plugin that another one's call asked has a line of its own, and
/// its time is in no other.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct CallTime {
    /// The plugin's name.
    pub plugin: String,
    /// The export: `step`, `on-event`, ...
    pub call: String,
    /// How often it was called.
    pub calls: u64,
    /// In the plugin's own code.
    pub guest_seconds: f64,
    /// In host operations.
    pub host_seconds: f64,
}

impl CallTime {
    /// All of it.
    pub fn seconds(&self) -> f64 {
        self.guest_seconds + self.host_seconds
    }
}

/// Time of one host operation on behalf of one plugin, other plugins that it asked not included.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OperationTime {
    /// The plugin's name.
    pub plugin: String,
    /// Interface and function: `tensors.matmul`.
    pub operation: String,
    /// How often it was called.
    pub calls: u64,
    /// How long it took.
    pub seconds: f64,
}

/// What a plugin had alive at its peak.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PluginMemory {
    /// The plugin's name.
    pub plugin: String,
    /// Bytes of tensors and graph nodes on its account.
    pub peak_tensor_bytes: u64,
    /// Handles.
    pub peak_handles: u64,
}

/// Where the time of a run went.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Profile {
    /// Wall time from the first look at the registry to here; the parts add up to it.
    pub seconds: f64,
    /// Processor time of the process meanwhile, all threads together. Known on Linux only.
    pub processor_seconds: Option<f64>,
    /// Threads for arithmetic.
    pub threads: usize,
    /// Most memory that the process has had, in bytes. Known on Linux only.
    pub peak_process_bytes: Option<u64>,
    /// By part, in the order of the run; parts that took no time are left out.
    pub parts: Vec<PartTime>,
    /// By plugin and call, longest first.
    pub calls: Vec<CallTime>,
    /// By plugin and operation, longest first.
    pub operations: Vec<OperationTime>,
    /// By plugin, in the order of the composition.
    pub memory: Vec<PluginMemory>,
    /// The trace, for Perfetto or `chrome://tracing`.
    pub trace: PathBuf,
    /// The trace shows the first steps of every n-th epoch, n being this.
    pub trace_every: u64,
}

#[derive(Clone, Copy, PartialEq)]
enum What {
    Part(Part),
    Call(u32, &'static str),
    Operation(&'static str, &'static str),
}

/// Scopes that lie inside each other in the same way.
struct Node {
    what: What,
    parent: usize,
    children: Vec<usize>,
    count: u64,
    /// Nanoseconds outside inner scopes.
    own: u64,
}

struct Open {
    node: usize,
    began: u64,
    inner: u64,
}

/// One scope, or one stretch of steps, of a trace. Times in nanoseconds since the beginning.
struct Mark {
    node: usize,
    began: u64,
    ended: u64,
    epoch: u64,
    step: u64,
    /// Of a stretch: how many steps, and nanoseconds in guests and in host operations.
    stretch: Option<(u64, u64, u64)>,
}

/// Marks up to a number; where they become too many, only every second, fourth, ... epoch is kept.
struct Marks {
    all: Vec<Mark>,
    most: usize,
    every: u64,
}

impl Marks {
    fn new(most: usize) -> Marks {
        Marks {
            all: Vec::new(),
            most,
            every: 1,
        }
    }

    fn wants(&self, epoch: u64) -> bool {
        epoch.is_multiple_of(self.every)
    }

    fn push(&mut self, mark: Mark) {
        while self.all.len() >= self.most {
            if self.all.iter().all(|m| m.epoch == 0) {
                // One epoch fills it all: what comes later in it is not shown.
                return;
            }
            self.every *= 2;
            let every = self.every;
            self.all.retain(|m| m.epoch.is_multiple_of(every));
        }
        if self.wants(mark.epoch) {
            self.all.push(mark);
        }
    }
}

/// Steps that are not shown one by one.
struct Stretch {
    epoch: u64,
    first: u64,
    steps: u64,
    began: u64,
    ended: u64,
    /// [`Recorder::guest`] and [`Recorder::host`] at its beginning and its end.
    before: (u64, u64),
    after: (u64, u64),
}

/// Times a run. One at a time and thread.
pub(crate) struct Recorder {
    began: Instant,
    processor: Option<f64>,
    nodes: Vec<Node>,
    open: Vec<Open>,
    plugins: Vec<String>,
    /// Nanoseconds in guests and in host operations so far.
    guest: u64,
    host: u64,
    /// The same when the current part began.
    before: (u64, u64),
    fine: Marks,
    coarse: Marks,
    /// Whether scopes inside the current part are shown one by one.
    detailed: bool,
    /// Epochs and steps begun, and the step's place in its epoch.
    epoch: u64,
    step: u64,
    place: u64,
    stretch: Option<Stretch>,
    trace: Option<PathBuf>,
}

thread_local! {
    static RECORDER: RefCell<Option<Box<Recorder>>> = const { RefCell::new(None) };
    static ON: Cell<bool> = const { Cell::new(false) };
}

/// Begins to time what happens on this thread.
pub(crate) fn begin(trace: Option<PathBuf>) {
    put(Some(Box::new(Recorder::new(trace))));
}

/// Takes the recorder from this thread, to be put on another.
pub(crate) fn take() -> Option<Box<Recorder>> {
    ON.set(false);
    RECORDER.with_borrow_mut(Option::take)
}

/// Puts a recorder on this thread.
pub(crate) fn put(recorder: Option<Box<Recorder>>) {
    ON.set(recorder.is_some());
    RECORDER.set(recorder);
}

/// The next step of the run begins.
pub(crate) fn step(steps_done: u64, steps_per_epoch: u64) {
    if ON.get() {
        with(|r| r.begin_step(steps_done, steps_per_epoch.max(1)));
    }
}

fn with<T>(f: impl FnOnce(&mut Recorder) -> T) -> Option<T> {
    RECORDER.with_borrow_mut(|r| r.as_deref_mut().map(f))
}

/// A scope, until it is dropped.
#[must_use]
pub(crate) struct Scope {
    /// How many scopes were open before it; none where nothing is recorded.
    depth: Option<u32>,
    /// Scopes belong to their thread.
    thread: PhantomData<*const ()>,
}

impl Scope {
    #[inline]
    fn new(enter: impl FnOnce(&mut Recorder)) -> Scope {
        let depth = match ON.get() {
            false => None,
            true => Scope::enter(enter),
        };
        Scope {
            depth,
            thread: PhantomData,
        }
    }

    #[cold]
    fn enter(enter: impl FnOnce(&mut Recorder)) -> Option<u32> {
        with(|r| {
            enter(r);
            (r.open.len() - 1) as u32
        })
    }
}

impl Drop for Scope {
    #[inline]
    fn drop(&mut self) {
        if let Some(depth) = self.depth {
            with(|r| r.close(depth));
        }
    }
}

/// Time until the drop belongs to a part of the run.
#[inline]
pub(crate) fn part(part: Part) -> Scope {
    Scope::new(|r| r.open_part(part))
}

/// Time until the drop belongs to a call of a plugin.
#[inline]
pub(crate) fn call(plugin: &str, export: &'static str) -> Scope {
    Scope::new(|r| {
        let known = r.plugins.iter().position(|name| name == plugin);
        let plugin = known.unwrap_or_else(|| {
            r.plugins.push(plugin.to_string());
            r.plugins.len() - 1
        });
        r.open(What::Call(plugin as u32, export));
    })
}

/// Time until the drop belongs to a function of the interface.
#[inline]
pub(crate) fn operation(interface: &'static str, function: &'static str) -> Scope {
    Scope::new(|r| r.open(What::Operation(interface, function)))
}

/// A function of the interface that is about to be called, as the generated bindings say it.
pub(crate) struct Span {
    pub interface: &'static str,
    pub function: &'static str,
}

impl Span {
    #[inline]
    pub(crate) fn enter(&self) -> Scope {
        operation(self.interface, self.function)
    }
}

/// The generated bindings name a level.
#[allow(clippy::upper_case_acronyms)]
pub(crate) enum Level {
    TRACE,
}

/// What the generated bindings say before a call of the host.
macro_rules! span {
    ($level:expr, $what:literal, module = $module:literal, function = $function:literal $(,)?) => {{
        let crate::profile::Level::TRACE = $level;
        crate::profile::Span {
            interface: $module,
            function: $function,
        }
    }};
}

/// What the generated bindings say of arguments and results: nobody listens.
macro_rules! event {
    ($($anything:tt)*) => {};
}

pub(crate) use {event, span};

impl Recorder {
    fn new(trace: Option<PathBuf>) -> Recorder {
        let root = Node {
            what: What::Part(Part::Runner),
            parent: 0,
            children: Vec::new(),
            count: 1,
            own: 0,
        };
        Recorder {
            began: Instant::now(),
            processor: processor_seconds(),
            nodes: vec![root],
            open: vec![Open {
                node: 0,
                began: 0,
                inner: 0,
            }],
            plugins: Vec::new(),
            guest: 0,
            host: 0,
            before: (0, 0),
            fine: Marks::new(MOST_FINE),
            coarse: Marks::new(MOST_COARSE),
            detailed: true,
            epoch: 0,
            step: 0,
            place: 0,
            stretch: None,
            trace,
        }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    fn open(&mut self, what: What) {
        let parent = self.open.last().map_or(0, |open| open.node);
        let known = self.nodes[parent]
            .children
            .iter()
            .copied()
            .find(|&child| self.nodes[child].what == what);
        let node = known.unwrap_or_else(|| {
            let node = self.nodes.len();
            self.nodes.push(Node {
                what,
                parent,
                children: Vec::new(),
                count: 0,
                own: 0,
            });
            self.nodes[parent].children.push(node);
            node
        });
        let began = self.now();
        self.open.push(Open {
            node,
            began,
            inner: 0,
        });
    }

    fn open_part(&mut self, part: Part) {
        if self.open.len() == 1 {
            let sampled = self.place < DETAILED_STEPS || !part.of_step();
            self.detailed = sampled && self.fine.wants(self.epoch);
            self.before = (self.guest, self.host);
        }
        self.open(What::Part(part));
    }

    /// Closes a scope, and whatever was left open in it.
    fn close(&mut self, depth: u32) {
        let now = self.now();
        while self.open.len() > (depth as usize).max(1) {
            let Some(open) = self.open.pop() else { return };
            let whole = now - open.began;
            let own = whole.saturating_sub(open.inner);
            let node = &mut self.nodes[open.node];
            node.count += 1;
            node.own += own;
            match node.what {
                What::Call(..) => self.guest += own,
                What::Operation(..) => self.host += own,
                What::Part(_) => {}
            }
            let what = node.what;
            if let Some(outer) = self.open.last_mut() {
                outer.inner += whole;
            }
            self.mark(&open, what, now);
        }
    }

    fn mark(&mut self, open: &Open, what: What, now: u64) {
        let mark = Mark {
            node: open.node,
            began: open.began,
            ended: now,
            epoch: self.epoch,
            step: self.step,
            stretch: None,
        };
        if self.detailed {
            self.fine.push(mark);
            return;
        }
        let What::Part(part) = what else { return };
        if part == Part::Steps {
            let (before, after) = (self.before, (self.guest, self.host));
            let stretch = self.stretch.get_or_insert(Stretch {
                epoch: self.epoch,
                first: self.step,
                steps: 0,
                began: open.began,
                ended: now,
                before,
                after,
            });
            stretch.steps += 1;
            (stretch.ended, stretch.after) = (now, after);
        } else if part != Part::Reports
            && now - open.began >= COARSE_FROM
            && self.coarse.wants(self.epoch)
        {
            self.coarse.push(mark);
        }
    }

    fn begin_step(&mut self, steps_done: u64, steps_per_epoch: u64) {
        let epoch = steps_done / steps_per_epoch;
        if self.stretch.as_ref().is_some_and(|s| s.epoch != epoch) {
            self.end_stretch();
        }
        self.epoch = epoch;
        self.step = steps_done + 1;
        self.place = steps_done % steps_per_epoch;
    }

    fn end_stretch(&mut self) {
        if let Some(s) = self.stretch.take() {
            self.coarse.push(Mark {
                node: 0,
                began: s.began,
                ended: s.ended,
                epoch: s.epoch,
                step: s.first,
                stretch: Some((s.steps, s.after.0 - s.before.0, s.after.1 - s.before.1)),
            });
        }
    }

    /// The innermost call around a node.
    fn caller(&self, mut node: usize) -> Option<(u32, &'static str)> {
        loop {
            if let What::Call(plugin, call) = self.nodes[node].what {
                return Some((plugin, call));
            }
            if node == 0 {
                return None;
            }
            node = self.nodes[node].parent;
        }
    }

    /// The innermost part around a node.
    fn part_of(&self, mut node: usize) -> Part {
        loop {
            if let What::Part(part) = self.nodes[node].what {
                return part;
            }
            node = self.nodes[node].parent;
        }
    }

    fn plugin(&self, plugin: u32) -> &str {
        self.plugins.get(plugin as usize).map_or("", String::as_str)
    }

    /// The sums, with everything closed.
    fn profile(
        &self,
        wall: u64,
        trace: &Path,
        threads: usize,
        memory: Vec<PluginMemory>,
    ) -> Profile {
        let seconds = |ns: u64| ns as f64 * 1e-9;
        let mut parts: BTreeMap<Part, [u64; 3]> = BTreeMap::new();
        let mut calls: BTreeMap<(u32, &str), [u64; 3]> = BTreeMap::new();
        let mut operations: BTreeMap<(u32, &str, &str), [u64; 2]> = BTreeMap::new();
        for (number, node) in self.nodes.iter().enumerate() {
            let kind = match node.what {
                What::Call(plugin, call) => {
                    let sums = calls.entry((plugin, call)).or_default();
                    sums[0] += node.count;
                    sums[1] += node.own;
                    0
                }
                What::Operation(interface, function) => {
                    if let Some(caller) = self.caller(number) {
                        calls.entry(caller).or_default()[2] += node.own;
                        let key = (caller.0, interface, function);
                        let sums = operations.entry(key).or_default();
                        sums[0] += node.count;
                        sums[1] += node.own;
                    }
                    1
                }
                What::Part(_) => 2,
            };
            parts.entry(self.part_of(number)).or_default()[kind] += node.own;
        }
        let mut calls: Vec<CallTime> = calls
            .into_iter()
            .map(|((plugin, call), [n, guest, host])| CallTime {
                plugin: self.plugin(plugin).to_string(),
                call: call.to_string(),
                calls: n,
                guest_seconds: seconds(guest),
                host_seconds: seconds(host),
            })
            .collect();
        calls.sort_by(|a, b| b.seconds().total_cmp(&a.seconds()));
        let mut operations: Vec<OperationTime> = operations
            .into_iter()
            .map(|((plugin, interface, function), [n, own])| OperationTime {
                plugin: self.plugin(plugin).to_string(),
                operation: operation_name(interface, function),
                calls: n,
                seconds: seconds(own),
            })
            .collect();
        operations.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
        let parts = parts
            .into_iter()
            .filter(|(_, sums)| sums.iter().any(|&ns| ns > 0))
            .map(|(part, [guest, host, runner])| PartTime {
                part: part.name().to_string(),
                guest_seconds: seconds(guest),
                host_seconds: seconds(host),
                runner_seconds: seconds(runner),
            });
        let processor = self.processor.zip(processor_seconds());
        Profile {
            seconds: seconds(wall),
            processor_seconds: processor.map(|(before, now)| now - before),
            threads,
            peak_process_bytes: peak_process_bytes(),
            parts: parts.collect(),
            calls,
            operations,
            memory,
            trace: trace.to_path_buf(),
            trace_every: self.fine.every,
        }
    }

    fn write_trace(&self, path: &Path) -> io::Result<()> {
        let mut marks: Vec<&Mark> = self.fine.all.iter().chain(&self.coarse.all).collect();
        // Outer scopes first: they begin no later and end no earlier.
        marks.sort_by_key(|mark| (mark.began, Reverse(mark.ended), mark.node));
        let mut to = BufWriter::new(std::fs::File::create(path)?);
        to.write_all(b"{\"displayTimeUnit\":\"ms\",\"traceEvents\":[\n")?;
        let name = TraceEvent {
            name: "thread_name",
            ph: "M",
            args: BTreeMap::from([("name", "run".into())]),
            ..TraceEvent::default()
        };
        serde_json::to_writer(&mut to, &name)?;
        for mark in marks {
            to.write_all(b",\n")?;
            serde_json::to_writer(&mut to, &self.trace_event(mark))?;
        }
        to.write_all(b"\n]}\n")?;
        to.flush()
    }

    fn trace_event(&self, mark: &Mark) -> TraceEvent<'_> {
        let mut event = TraceEvent {
            ph: "X",
            ts: mark.began as f64 / 1e3,
            dur: Some((mark.ended - mark.began) as f64 / 1e3),
            ..TraceEvent::default()
        };
        if let Some((steps, guest, host)) = mark.stretch {
            event.name = "more steps";
            event.cat = "summary";
            event.args = BTreeMap::from([
                ("first step", mark.step.into()),
                ("steps", steps.into()),
                ("guest ms", (guest as f64 / 1e6).into()),
                ("host operations ms", (host as f64 / 1e6).into()),
            ]);
            return event;
        }
        match self.nodes[mark.node].what {
            What::Part(part) => {
                (event.name, event.cat) = (part.name(), "part");
                if mark.step > 0 {
                    event.args = BTreeMap::from([("step", mark.step.into())]);
                }
            }
            What::Call(plugin, call) => {
                (event.name, event.cat) = (call, "call");
                event.args = BTreeMap::from([("plugin", self.plugin(plugin).into())]);
            }
            What::Operation(interface, function) => {
                (event.name, event.cat) = (plain(function), "operation");
                event.args = BTreeMap::from([("interface", interface.into())]);
            }
        }
        event
    }
}

/// An event in the trace event format. Times in microseconds.
#[derive(Default, Serialize)]
struct TraceEvent<'a> {
    name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    cat: &'a str,
    ph: &'a str,
    ts: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    pid: u32,
    tid: u32,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    args: BTreeMap<&'a str, serde_json::Value>,
}

/// A function's name without the marks for constructors and methods.
fn plain(function: &str) -> &str {
    function.rsplit(']').next().unwrap_or(function)
}

fn operation_name(interface: &str, function: &str) -> String {
    format!("{interface}.{}", plain(function))
}

/// Ends the recording on this thread: the sums, and the trace in the run's folder or where it was asked for.
///
/// # Errors
/// The trace could not be written.
pub(crate) fn finish(
    folder: &Path,
    threads: usize,
    memory: Vec<PluginMemory>,
) -> Option<io::Result<Profile>> {
    let mut recorder = take()?;
    recorder.close(1);
    recorder.end_stretch();
    let wall = recorder.now();
    let root = recorder.open.first().map_or(0, |root| root.inner);
    recorder.nodes[0].own = wall.saturating_sub(root);
    let path = recorder
        .trace
        .clone()
        .unwrap_or_else(|| folder.join("profile.json"));
    let profile = recorder.profile(wall, &path, threads, memory);
    Some(recorder.write_trace(&path).map(|()| profile))
}

/// User and system time of the process, all threads.
fn processor_seconds() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in brackets, which may hold anything.
    let fields: Vec<&str> = text.rsplit(')').next()?.split_ascii_whitespace().collect();
    let ticks = |field: usize| fields.get(field)?.parse::<f64>().ok();
    // Linux tells user space in hundredths of a second, whatever the kernel's own tick.
    Some((ticks(11)? + ticks(12)?) / 100.0)
}

fn peak_process_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::time::Duration;

    fn wait(milliseconds: u64) {
        std::thread::sleep(Duration::from_millis(milliseconds));
    }

    fn finished(name: &str) -> (Profile, serde_json::Value) {
        let folder = std::env::temp_dir().join(format!("espalier-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let profile = finish(&folder, 1, Vec::new()).unwrap().unwrap();
        let trace = std::fs::read_to_string(&profile.trace).unwrap();
        std::fs::remove_dir_all(&folder).unwrap();
        (profile, serde_json::from_str(&trace).unwrap())
    }

    fn shown(trace: &serde_json::Value, name: &str) -> usize {
        let events = trace["traceEvents"].as_array().unwrap();
        events.iter().filter(|e| e["name"] == name).count()
    }

    #[test]
    fn each_moment_belongs_to_one_scope() {
        begin(None);
        {
            let _steps = part(Part::Steps);
            let _step = call("a", "step");
            wait(2);
            {
                let _op = operation("rollouts", "verify");
                wait(4);
                let _nested = call("b", "verify");
                wait(8);
            }
        }
        wait(1);
        let (profile, _) = finished("moment");
        let sum: f64 = profile.parts.iter().map(PartTime::seconds).sum();
        assert!((sum - profile.seconds).abs() < 1e-6 * profile.seconds);
        let steps = profile.parts.iter().find(|p| p.part == "steps").unwrap();
        assert!(steps.guest_seconds >= 0.010 && steps.host_seconds >= 0.004);
        let of = |plugin: &str| profile.calls.iter().find(|c| c.plugin == plugin).unwrap();
        assert!(of("b").guest_seconds >= 0.008 && of("b").host_seconds == 0.0);
        assert!(of("a").guest_seconds >= 0.002 && of("a").guest_seconds < of("b").guest_seconds);
        assert_eq!(profile.operations[0].operation, "rollouts.verify");
        assert!(profile.operations[0].seconds < of("b").guest_seconds);
    }

    #[test]
    fn nothing_is_recorded_where_nobody_asked() {
        let _part = part(Part::Steps);
        let _call = call("a", "step");
        assert!(finish(Path::new("nowhere"), 1, Vec::new()).is_none());
    }

    #[test]
    fn a_trace_shows_the_first_steps_of_an_epoch_and_sums_up_the_rest() {
        begin(None);
        for n in 0..20 {
            step(n, 10);
            let _steps = part(Part::Steps);
            let _call = call("a", "step");
            let _op = operation("tensors", "matmul");
        }
        let (profile, trace) = finished("sample");
        assert_eq!(profile.calls[0].calls, 20);
        assert_eq!(shown(&trace, "matmul"), 6);
        assert_eq!(shown(&trace, "more steps"), 2);
        let events = trace["traceEvents"].as_array().unwrap();
        let rest = events.iter().find(|e| e["name"] == "more steps").unwrap();
        assert_eq!(rest["args"]["steps"], 7);
        assert_eq!(rest["args"]["first step"], 4);
    }

    #[test]
    fn a_long_run_thins_its_trace_and_keeps_its_sums() {
        begin(None);
        with(|r| r.fine.most = 100);
        for n in 0..1000 {
            step(n, 2);
            let _steps = part(Part::Steps);
            let _call = call("a", "step");
        }
        let (profile, trace) = finished("long");
        assert_eq!(profile.calls[0].calls, 1000);
        assert!(profile.trace_every > 1);
        let shown = shown(&trace, "step");
        assert!((20..=50).contains(&shown), "{shown} steps shown");
    }
}
