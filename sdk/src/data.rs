//! The run's data.

use crate::bindings::host::espalier::plugin::{data as host, data_publish};
use crate::tensor::Tensor;

pub use host::{FieldInfo, Sampling, SplitInfo};

/// All splits of the run.
///
/// ```no_run
/// # use espalier_sdk::data;
/// let sizes: Vec<u64> = data::splits().iter().map(|split| split.count).collect();
/// ```
pub fn splits() -> Vec<SplitInfo> {
    host::splits()
}

/// The split of that name, if the run has it.
///
/// ```no_run
/// # use espalier_sdk::data;
/// let classes = data::split("train").map_or(0, |split| split.classes);
/// ```
pub fn split(name: &str) -> Option<SplitInfo> {
    splits().into_iter().find(|split| split.name == name)
}

/// A whole field of a split: `[count, ...]`.
///
/// ```no_run
/// # use espalier_sdk::data;
/// let targets = data::field("train", "targets");
/// ```
pub fn field(split: &str, name: &str) -> Tensor {
    Tensor::from_raw(host::field(split, name))
}

/// Publishes derived data for later stages. Trainers only.
///
/// ```no_run
/// # use espalier_sdk::Tensor;
/// # use espalier_sdk::data;
/// # fn f(hidden: &Tensor, targets: &Tensor) {
/// data::add_split("features", &[("inputs", hidden.clone()), ("targets", targets.clone())]);
/// # }
/// ```
pub fn add_split(name: &str, fields: &[(&str, Tensor)]) {
    data_publish::add_split(
        name,
        fields
            .iter()
            .map(|(name, t)| (name.to_string(), t.clone().into_raw()))
            .collect(),
    );
}

/// Some samples: one tensor a field, samples along axis 0.
///
/// ```no_run
/// # use espalier_sdk::data::Stream;
/// let batch = Stream::train(64, &[0]).next_endless();
/// let (x, y) = (batch.inputs(), batch.targets());
/// ```
pub struct Batch {
    fields: Vec<(String, Tensor)>,
    index: Tensor,
    count: u32,
}

impl Batch {
    /// A batch of one's own, for `model::objective` and the like. `index` is i64 `[count]`.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # use espalier_sdk::data::Batch;
    /// # fn f(x: Tensor) {
    /// let batch = Batch::new(vec![("inputs".into(), x)], Tensor::indices(0..64));
    /// # }
    /// ```
    pub fn new(fields: Vec<(String, Tensor)>, index: Tensor) -> Batch {
        let count = index.size(0);
        Batch {
            fields,
            index,
            count,
        }
    }

    pub(crate) fn from_raw(raw: host::Batch) -> Batch {
        Batch {
            fields: raw
                .fields
                .into_iter()
                .map(|(name, t)| (name, Tensor::from_raw(t)))
                .collect(),
            index: Tensor::from_raw(raw.index),
            count: raw.count,
        }
    }

    pub(crate) fn to_raw(&self) -> host::Batch {
        host::Batch {
            fields: self
                .fields
                .iter()
                .map(|(name, t)| (name.clone(), t.clone().into_raw()))
                .collect(),
            index: self.index.clone().into_raw(),
            count: self.count,
        }
    }

    /// A field. Panics, with the names there are, if the batch has none of that name.
    ///
    /// ```no_run
    /// # use espalier_sdk::data::Batch;
    /// # fn f(batch: &Batch) {
    /// let mask = batch.field("mask");
    /// # }
    /// ```
    pub fn field(&self, name: &str) -> &Tensor {
        match self.fields.iter().find(|(n, _)| n == name) {
            Some((_, tensor)) => tensor,
            None => {
                let names: Vec<&str> = self.fields.iter().map(|(n, _)| n.as_str()).collect();
                panic!(
                    "the batch has no field `{name}`; it has {}",
                    names.join(", ")
                )
            }
        }
    }

    /// The field `inputs`.
    ///
    /// ```no_run
    /// # use espalier_sdk::data::Batch;
    /// # fn f(batch: &Batch) {
    /// let x = batch.inputs();
    /// # }
    /// ```
    pub fn inputs(&self) -> &Tensor {
        self.field("inputs")
    }

    /// The field `targets`.
    ///
    /// ```no_run
    /// # use espalier_sdk::data::Batch;
    /// # fn f(batch: &Batch) {
    /// let y = batch.targets();
    /// # }
    /// ```
    pub fn targets(&self) -> &Tensor {
        self.field("targets")
    }

    /// All fields with their names.
    ///
    /// ```no_run
    /// # use espalier_sdk::data::Batch;
    /// # fn f(batch: &Batch) {
    /// let names: Vec<&str> = batch.fields().iter().map(|(name, _)| name.as_str()).collect();
    /// # }
    /// ```
    pub fn fields(&self) -> &[(String, Tensor)] {
        &self.fields
    }

    /// Position of each sample in its split, i64 `[count]`.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # use espalier_sdk::data::Batch;
    /// # fn f(batch: &Batch, weights: &Tensor) {
    /// let of_these = weights.take(batch.index(), 0);
    /// # }
    /// ```
    pub fn index(&self) -> &Tensor {
        &self.index
    }

    /// How many samples.
    ///
    /// ```no_run
    /// # use espalier_sdk::data::Batch;
    /// # fn f(batch: &Batch) {
    /// let samples: u32 = batch.count();
    /// # }
    /// ```
    pub fn count(&self) -> u32 {
        self.count
    }
}

/// An endless series of epochs over a split.
///
/// Order and position belong to the arguments, not to the handle: opened again after a resume or a rewind, it
/// goes on where it was. Another key is an independent stream.
///
/// ```no_run
/// # use espalier_sdk::data::{Sampling, Stream};
/// let stream = Stream::open("train", &["inputs", "targets"], 64, Sampling::Shuffled, &[0]);
/// let batch = stream.next_endless();
/// let x = batch.inputs();
/// ```
pub struct Stream(host::Stream);

impl Stream {
    pub(crate) fn raw(&self) -> &host::Stream {
        &self.0
    }

    /// Opens the stream over some fields of a split, `size` samples at a time.
    ///
    /// ```no_run
    /// # use espalier_sdk::data::{Sampling, Stream};
    /// let stream = Stream::open("train", &["inputs"], 32, Sampling::Shuffled, &[1]);
    /// ```
    pub fn open(split: &str, fields: &[&str], size: u32, order: Sampling, key: &[u64]) -> Stream {
        let fields: Vec<String> = fields.iter().map(|f| f.to_string()).collect();
        Stream(host::batches(split, &fields, size, order, key))
    }

    /// Shuffled batches of `inputs` and, where it has any, `targets` of the split `train`: the prompts of a run with
    /// an environment have none.
    ///
    /// ```no_run
    /// # use espalier_sdk::data::Stream;
    /// const BATCHES: u64 = 0;
    /// let stream = Stream::train(64, &[BATCHES]);
    /// ```
    pub fn train(size: u32, key: &[u64]) -> Stream {
        let fields = split("train").map_or_else(Vec::new, |split| split.fields);
        let known = |name: &&str| *name == "inputs" || fields.iter().any(|f| f.name == *name);
        let names: Vec<&str> = ["inputs", "targets"].into_iter().filter(known).collect();
        Stream::open("train", &names, size, Sampling::Shuffled, key)
    }

    /// The next batch; none where an epoch ends, once, and then the next epoch begins.
    ///
    /// ```no_run
    /// # use espalier_sdk::data::Stream;
    /// # fn f(stream: &Stream) {
    /// while let Some(batch) = stream.next_in_epoch() {
    ///     espalier_sdk::log::metric("samples", batch.count().into());
    /// }
    /// # }
    /// ```
    pub fn next_in_epoch(&self) -> Option<Batch> {
        host::next(&self.0).map(Batch::from_raw)
    }

    /// The next batch, across the end of an epoch.
    ///
    /// ```no_run
    /// # use espalier_sdk::data::Stream;
    /// # fn f(stream: &Stream) {
    /// let batch = stream.next_endless();
    /// # }
    /// ```
    pub fn next_endless(&self) -> Batch {
        loop {
            if let Some(batch) = self.next_in_epoch() {
                return batch;
            }
        }
    }
}
