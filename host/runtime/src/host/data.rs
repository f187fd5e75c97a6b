//! Interfaces `data`, `data-publish` and `log`.

use espalier_tensor::Tensor;
use wasmtime::Result;
use wasmtime::component::Resource;

use super::bindings::rep;
use super::bindings::trainer::espalier::plugin::data::{
    Batch, FieldInfo, Host, HostStream, Named, Sampling, SplitInfo,
};
use super::bindings::trainer::espalier::plugin::run::StepInfo;
use super::bindings::trainer::espalier::plugin::{data_publish, log};
use super::guest::{Guest, misuse, named, told};
use super::session::{Cause, Death};
use super::tensors::{wit_dtype, wit_shape};
use crate::data::{self as store, Order, Split, StreamId};
use crate::events::{Event, Level};
use crate::plan::{Slot, TRAIN};

type Handle = Resource<rep::Tensor>;
type Stream = Resource<rep::Stream>;

impl Guest {
    /// Hands a batch to the guest: new handles, which it owns.
    pub fn put_batch(&mut self, b: store::Batch) -> Result<Batch> {
        let fields = self.put_named(b.fields)?;
        Ok(Batch {
            fields,
            index: self.put(Ok(b.index))?,
            count: b.count,
        })
    }

    /// Takes a batch that the guest gave away.
    pub fn take_batch(&mut self, b: Batch) -> Result<store::Batch> {
        let fields = self.take_named(b.fields)?;
        Ok(store::Batch {
            fields,
            index: self.take_tensor(b.index)?,
            count: b.count,
        })
    }

    /// A batch as the run's transforms leave it. Only the trainer's training batches pass through them.
    pub(super) fn transformed(
        &mut self,
        id: &StreamId,
        batch: store::Batch,
    ) -> Result<store::Batch> {
        let shared = self.shared.clone();
        let mut transforms = shared.transforms.borrow_mut();
        if self.slot != Slot::Trainer || id.split != TRAIN || transforms.is_empty() {
            return Ok(batch);
        }
        let (step, epoch, round) = shared.run.borrow().at;
        let mut batch = batch;
        for (transform, _) in transforms.iter_mut().filter(|(_, batches)| *batches) {
            let budget = self
                .deadline
                .saturating_duration_since(std::time::Instant::now());
            transform.shorten(budget);
            let at = StepInfo { step, epoch, round };
            let before = batch.clone();
            batch = transform.apply(batch, at).map_err(wasmtime::Error::new)?;
            if let Some(problem) = unlike(&before, &batch) {
                // The transform's own fault, not that of the trainer which asked for the batch.
                let name = transform.guest().name.clone();
                return Err(wasmtime::Error::new(Death {
                    call: "apply",
                    cause: Cause::Other,
                    what: "was stopped".into(),
                    details: vec![(
                        "because".into(),
                        format!("`{name}` made another batch of a training batch: {problem}"),
                    )],
                    help: Some(
                        "give the same samples back, in their order and of their shapes".into(),
                    ),
                    plugin: name,
                }));
            }
        }
        Ok(batch)
    }

    pub(super) fn put_named(&mut self, all: Vec<(String, Tensor)>) -> Result<Vec<Named>> {
        all.into_iter()
            .map(|(name, t)| Ok((name, self.put(Ok(t))?)))
            .collect()
    }

    pub(super) fn take_named(&mut self, all: Vec<Named>) -> Result<Vec<(String, Tensor)>> {
        all.into_iter()
            .map(|(name, t)| Ok((name, self.take_tensor(t)?)))
            .collect()
    }
}

/// How a batch differs from the one that a transform was given, in what it must not change.
fn unlike(before: &store::Batch, after: &store::Batch) -> Option<String> {
    let names = |b: &store::Batch| -> Vec<String> {
        b.fields.iter().map(|(name, _)| name.clone()).collect()
    };
    if names(before) != names(after) {
        return Some(format!(
            "its fields are {:?}, and were {:?}",
            names(after),
            names(before)
        ));
    }
    for ((name, old), (_, new)) in before.fields.iter().zip(&after.fields) {
        if old.shape() != new.shape() || old.dtype() != new.dtype() {
            return Some(format!(
                "`{name}` is {:?} {:?}, and was {:?} {:?}",
                new.dtype(),
                new.shape(),
                old.dtype(),
                old.shape()
            ));
        }
    }
    let same = after.count == before.count
        && after.index.shape() == before.index.shape()
        && matches!((after.index.to_list(), before.index.to_list()), (Ok(a), Ok(b)) if a == b);
    (!same).then(|| "its samples are others, or in another order".to_string())
}

/// Positions are kept for ever, so their number is bounded, and the length of what names them.
const MAX_STREAMS: u64 = 10_000;
const MAX_KEY: usize = 64;
const MAX_FIELDS: usize = 64;

/// Splits that plugins added are kept for ever too.
const MAX_SPLITS: usize = 256;

pub(crate) fn split_info(s: &Split) -> SplitInfo {
    let fields = s.fields.iter().map(|(name, t)| FieldInfo {
        name: name.clone(),
        dtype: wit_dtype(t.dtype()),
        shape: wit_shape(t.shape().get(1..).unwrap_or_default()),
    });
    SplitInfo {
        name: s.name.clone(),
        count: s.count as u64,
        fields: fields.collect(),
        classes: s.classes,
        task: s.task,
    }
}

impl HostStream for Guest {
    fn drop(&mut self, s: Stream) -> Result<()> {
        self.drop_stream(s)
    }
}

impl Host for Guest {
    fn splits(&mut self) -> Result<Vec<SplitInfo>> {
        let data = &self.shared.run.borrow().data;
        let one = |split: &Split| match data.split(&split.name) {
            // `train` may stand for another split in this stage.
            Ok(actual) => SplitInfo {
                name: split.name.clone(),
                ..split_info(actual)
            },
            Err(_) => split_info(split),
        };
        Ok(data.splits.iter().map(one).collect())
    }

    fn batches(
        &mut self,
        split: String,
        fields: Vec<String>,
        size: u32,
        order: Sampling,
        key: Vec<u64>,
    ) -> Result<Stream> {
        if key.len() > MAX_KEY || fields.len() > MAX_FIELDS {
            return misuse(format!(
                "batches: {} fields and a key of {} numbers; at most {MAX_FIELDS} and {MAX_KEY}",
                fields.len(),
                key.len()
            ));
        }
        let order = match order {
            Sampling::Sequential => Order::Sequential,
            Sampling::Shuffled => Order::Shuffled,
            Sampling::Poisson => Order::Poisson,
        };
        let id = StreamId {
            plugin: self.name.clone(),
            split,
            fields,
            size,
            order,
            key,
        };
        {
            let run = &mut *self.shared.run.borrow_mut();
            told(store::Streams::check(&id, &run.data))?;
            if run.streams.position(&id).is_none() {
                run.streams_opened += 1;
                if run.streams_opened > MAX_STREAMS {
                    return misuse(format!(
                        "more than {MAX_STREAMS} different streams in a run; use keys again"
                    ));
                }
            }
            run.streams.open(id.clone());
        }
        self.put_stream(id)
    }

    fn next(&mut self, s: Stream) -> Result<Option<Batch>> {
        self.uncapturable("it asks for a batch; open it over the stream");
        self.in_time()?;
        let id = self.stream(&s)?;
        let batch = {
            let run = &mut *self.shared.run.borrow_mut();
            told(run.streams.next(&id, &run.data, run.seed))?
        };
        let batch = batch.map(|b| self.transformed(&id, b)).transpose()?;
        batch.map(|b| self.put_batch(b)).transpose()
    }

    fn field(&mut self, split: String, name: String) -> Result<Handle> {
        let t = {
            let run = self.shared.run.borrow();
            told(run.data.split(&split).and_then(|s| s.field(&name).cloned()))?
        };
        self.put(Ok(t))
    }
}

impl data_publish::Host for Guest {
    fn add_split(&mut self, name: String, fields: Vec<Named>) -> Result<()> {
        self.uncapturable("it adds a split");
        named("add-split", &name)?;
        if fields.len() > MAX_FIELDS {
            return misuse(format!(
                "add-split: {} fields; at most {MAX_FIELDS}",
                fields.len()
            ));
        }
        for (field, _) in &fields {
            named("add-split", field)?;
        }
        let fields = self.take_named(fields)?;
        let data = &mut self.shared.run.borrow_mut().data;
        if data.splits.iter().filter(|split| split.added).count() >= MAX_SPLITS {
            return misuse(format!("add-split: more than {MAX_SPLITS} splits in a run"));
        }
        told(data.add_split(&name, fields))
    }
}

impl log::Host for Guest {
    fn message(&mut self, level: log::Level, text: String) -> Result<()> {
        self.uncapturable("it writes to the log");
        let level = match level {
            log::Level::Debug => Level::Debug,
            log::Level::Info => Level::Info,
            log::Level::Warn => Level::Warning,
        };
        if level == Level::Warning {
            // The SDK hands a panic's message over like this.
            self.stderr_tail.clone_from(&text);
        }
        self.say(level, text)
    }

    fn metric(&mut self, name: String, value: f64) -> Result<()> {
        self.uncapturable("it reports a metric");
        self.charge_log(name.len())?;
        named("metric", &name)?;
        let step = self.shared.run.borrow().steps_done;
        let plugin = self.name.clone();
        self.shared.events.borrow_mut().push(Event::PluginMetric {
            plugin,
            name,
            value,
            step,
        });
        Ok(())
    }

    fn progress(&mut self, _done: u64, _of: u64) -> Result<()> {
        // The host shows steps; progress inside a step has no place on the screen yet.
        self.charge_log(0)
    }
}
