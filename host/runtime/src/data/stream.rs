//! Batches: endless series of epochs over the samples of a split.
//!
//! A stream is named by what it was asked for ([`StreamId`]), not by a handle. Its order depends on the
//! run's seed, that identity and the epoch alone, and its position is two numbers, so that a resumed or
//! rewound run reads on exactly where it was.

use std::collections::BTreeMap;
use std::sync::Arc;

use espalier_tensor::random::{self, Key};
use espalier_tensor::{Tensor, ops};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{Dataset, Error, Result, Split, shuffle};

/// In which order samples come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Order {
    /// As they stand in the split, every epoch the same.
    Sequential,
    /// A new permutation each epoch.
    Shuffled,
    /// Each step takes each sample by itself with probability size / count; an epoch has count / size
    /// steps, rounded, at least one. A batch may be empty, and a sample may come twice an epoch.
    Poisson,
}

/// What a stream was asked for; equal identities share one position.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StreamId {
    /// Who asks: the plugin's name in the run, or a name of the host's own.
    pub plugin: String,
    /// The split.
    pub split: String,
    /// The fields of each batch, in order.
    pub fields: Vec<String>,
    /// Samples a batch; the last batch of an epoch may have fewer. The expected number for Poisson.
    pub size: u32,
    /// In which order samples come.
    pub order: Order,
    /// Different keys are independent streams.
    pub key: Vec<u64>,
}

impl StreamId {
    /// Four words that stand for the identity in a random key.
    fn words(&self) -> [u64; 4] {
        let mut hash = Sha256::new();
        for text in [&self.plugin, &self.split].into_iter().chain(&self.fields) {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        }
        hash.update([self.order as u8]);
        hash.update(self.size.to_le_bytes());
        for word in &self.key {
            hash.update(word.to_le_bytes());
        }
        let digest: [u8; 32] = hash.finalize().into();
        std::array::from_fn(|at| {
            u64::from_le_bytes(std::array::from_fn(|byte| digest[at * 8 + byte]))
        })
    }
}

/// Rows of the epochs' orders that are kept at once, 8 bytes each; beyond this they are made again.
const MOST_ROWS: usize = 1 << 23;

/// How far a stream has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Epochs finished.
    pub epoch: u64,
    /// Samples given in this epoch; steps taken for Poisson.
    pub cursor: u64,
}

/// Some samples of a split.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The fields asked for, each [count, ...].
    pub fields: Vec<(String, Tensor)>,
    /// Which samples of the split they are, i64 [count].
    pub index: Tensor,
    /// How many samples.
    pub count: u32,
}

/// A batch for a reader that uses its tensors again for the next one.
#[derive(Debug, Default)]
pub struct Gathered {
    /// The fields asked for, in order, each [count, ...].
    pub fields: Vec<Tensor>,
    /// Which samples of the split they are.
    pub rows: Vec<i64>,
}

impl Gathered {
    /// The batch as others know it.
    ///
    /// # Errors
    /// Out of memory under a budget.
    pub fn into_batch(self, id: &StreamId) -> Result<Batch> {
        let count = self.rows.len();
        let index = Tensor::from_vec(self.rows, &[count]).map_err(|source| Error::Tensor {
            doing: format!("a batch of split `{}`", id.split),
            source,
        })?;
        Ok(Batch {
            fields: id.fields.iter().cloned().zip(self.fields).collect(),
            index,
            count: count as u32,
        })
    }
}

fn gathering(split: &Split, source: espalier_tensor::Error) -> Error {
    Error::Tensor {
        doing: format!("a batch of split `{}`", split.name),
        source,
    }
}

/// Every stream of a run, by identity. Part of the checkpoint.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(from = "Vec<(StreamId, Position)>", into = "Vec<(StreamId, Position)>")]
pub struct Streams(BTreeMap<StreamId, Progress>);

/// A stream's position, and what can be made again.
#[derive(Clone, Debug, Default)]
struct Progress {
    position: Position,
    /// The current epoch's permutation of a shuffled stream, with its seed and epoch; made again when absent.
    order: Option<(u64, u64, Arc<Vec<i64>>)>,
}

impl PartialEq for Streams {
    fn eq(&self, other: &Streams) -> bool {
        let positions = |streams: &Streams| {
            let each = streams.0.iter();
            each.map(|(id, p)| (id.clone(), p.position))
                .collect::<Vec<_>>()
        };
        positions(self) == positions(other)
    }
}

impl From<Vec<(StreamId, Position)>> for Streams {
    fn from(positions: Vec<(StreamId, Position)>) -> Streams {
        let at = |(id, position)| {
            let order = None;
            (id, Progress { position, order })
        };
        Streams(positions.into_iter().map(at).collect())
    }
}

impl From<Streams> for Vec<(StreamId, Position)> {
    fn from(streams: Streams) -> Self {
        let each = streams.0.into_iter();
        each.map(|(id, progress)| (id, progress.position)).collect()
    }
}

impl Streams {
    /// No streams.
    pub fn new() -> Streams {
        Streams::default()
    }

    /// The positions without the epochs' orders: what is enough to go on from.
    pub fn positions_alone(&self) -> Streams {
        Vec::from(self.clone()).into()
    }

    /// Makes a stream known; one that is known already goes on where it stands.
    pub fn open(&mut self, id: StreamId) {
        self.0.entry(id).or_default();
    }

    /// How far a stream has come, if it is known.
    pub fn position(&self, id: &StreamId) -> Option<Position> {
        self.0.get(id).map(|progress| progress.position)
    }

    /// Checks that a stream can be read from a data set.
    ///
    /// # Errors
    /// Unknown split or field, a size of 0, an empty split.
    pub fn check(id: &StreamId, data: &Dataset) -> Result<()> {
        let split = data.split(&id.split)?;
        for field in &id.fields {
            split.field(field)?;
        }
        let refuse = |problem: &str| {
            Err(Error::Stream {
                split: id.split.clone(),
                problem: problem.into(),
            })
        };
        if id.size == 0 {
            return refuse("size is 0; expected at least 1");
        }
        if split.count == 0 {
            return refuse("it has no samples");
        }
        Ok(())
    }

    /// The next batch; `None` once at the end of each epoch, after which the next epoch begins. A stream
    /// that was not opened is opened.
    ///
    /// # Errors
    /// As [`Streams::check`]; out of memory under a budget.
    pub fn next(&mut self, id: &StreamId, data: &Dataset, seed: u64) -> Result<Option<Batch>> {
        Self::check(id, data)?;
        let split = data.split(&id.split)?;
        if id.order == Order::Shuffled
            && !self
                .0
                .get(id)
                .is_some_and(|p| p.has_order(seed, split.count))
            && self.rows_kept().saturating_add(split.count) > MOST_ROWS
        {
            self.0.values_mut().for_each(|other| other.order = None);
        }
        let progress = match self.0.get_mut(id) {
            Some(progress) => progress,
            None => self.0.entry(id.clone()).or_default(),
        };
        let Position { epoch, cursor } = progress.position;
        let (count, size) = (split.count as u64, u64::from(id.size));
        let end = if id.order == Order::Poisson {
            // Rounded, so that an epoch is as near to one pass as whole steps allow.
            ((count + size / 2) / size).max(1)
        } else {
            count
        };
        if cursor >= end {
            progress.position = Position {
                epoch: epoch + 1,
                cursor: 0,
            };
            return Ok(None);
        }
        let stop = (cursor + size).min(end);
        let (batch, cursor) = match id.order {
            Order::Sequential => (read_run(split, id, cursor as usize, stop as usize)?, stop),
            Order::Shuffled => {
                let order = progress.order(id, split.count, seed);
                let rows = order[cursor as usize..stop as usize].to_vec();
                (read_rows(split, id, rows)?, stop)
            }
            Order::Poisson => {
                let bits = random::bits(&key(id, seed, epoch, Some(cursor)), split.count);
                let bound = size.min(count) as u128 * (1u128 << 64) / u128::from(count);
                let chosen = (0..)
                    .zip(bits)
                    .filter(|(_, bits)| u128::from(*bits) < bound);
                (
                    read_rows(split, id, chosen.map(|(row, _)| row).collect())?,
                    cursor + 1,
                )
            }
        };
        progress.position = Position { epoch, cursor };
        Ok(Some(batch))
    }

    /// As [`Streams::next`], into tensors that are used again where nobody else holds them: true, or false once at the
    /// end of each epoch.
    ///
    /// # Errors
    /// As [`Streams::next`].
    pub fn next_into(
        &mut self,
        id: &StreamId,
        data: &Dataset,
        seed: u64,
        gathered: &mut Gathered,
    ) -> Result<bool> {
        let split = data.split(&id.split)?;
        let progress = self.0.get_mut(id);
        let Some(progress) = progress.filter(|p| {
            id.order == Order::Shuffled
                && id.size > 0
                && p.has_order(seed, split.count)
                && p.position.cursor < split.count as u64
        }) else {
            let Some(batch) = self.next(id, data, seed)? else {
                return Ok(false);
            };
            gathered.rows = batch
                .index
                .to_vec()
                .map_err(|source| gathering(split, source))?;
            gathered.fields = batch.fields.into_iter().map(|(_, t)| t).collect();
            return Ok(true);
        };
        let cursor = progress.position.cursor as usize;
        let stop = cursor.saturating_add(id.size as usize).min(split.count);
        let order = progress.order.as_ref();
        let rows = order.map_or(&[][..], |(_, _, order)| &order[cursor..stop]);
        gathered.fields.truncate(id.fields.len());
        for (at, name) in id.fields.iter().enumerate() {
            let kept = gathered.fields.get_mut(at);
            let field = split.field(name)?;
            // A handle to nothing of its own stands in until the rows have been gathered.
            let kept = kept.map(|t| std::mem::replace(t, field.clone()));
            let taken = ops::take_rows(field, rows, kept).map_err(|s| gathering(split, s))?;
            match gathered.fields.get_mut(at) {
                Some(place) => *place = taken,
                None => gathered.fields.push(taken),
            }
        }
        gathered.rows.clear();
        gathered.rows.extend_from_slice(rows);
        progress.position.cursor = stop as u64;
        Ok(true)
    }

    fn rows_kept(&self) -> usize {
        let orders = self.0.values().filter_map(|p| p.order.as_ref());
        orders.map(|(_, _, order)| order.len()).sum()
    }
}

impl Progress {
    fn has_order(&self, seed: u64, count: usize) -> bool {
        let current = (seed, self.position.epoch, count);
        self.order
            .as_ref()
            .is_some_and(|(seed, epoch, order)| (*seed, *epoch, order.len()) == current)
    }

    fn order(&mut self, id: &StreamId, count: usize, seed: u64) -> &[i64] {
        if !self.has_order(seed, count) {
            let epoch = self.position.epoch;
            let mut order: Vec<i64> = (0..count as i64).collect();
            shuffle(&mut order, &key(id, seed, epoch, None));
            self.order = Some((seed, epoch, Arc::new(order)));
        }
        self.order.as_ref().map_or(&[], |(_, _, order)| order)
    }
}

fn key(id: &StreamId, seed: u64, epoch: u64, step: Option<u64>) -> Key {
    let [a, b, c, d] = id.words();
    // The first word sets data order apart from every other use of the run's seed.
    let mut words = vec![0x4441_5441_0000_0001, seed, a, b, c, d, epoch];
    words.extend(step);
    Key::new(&words)
}

/// Consecutive samples: views, no copy.
fn read_run(split: &Split, id: &StreamId, start: usize, stop: usize) -> Result<Batch> {
    let fail = |source| gathering(split, source);
    let mut fields = Vec::with_capacity(id.fields.len());
    for name in &id.fields {
        let rows =
            ops::slice(split.field(name)?, 0, start as isize, stop as isize).map_err(fail)?;
        fields.push((name.clone(), rows));
    }
    let rows: Vec<i64> = (start as i64..stop as i64).collect();
    let index = Tensor::from_vec(rows, &[stop - start]).map_err(fail)?;
    Ok(Batch {
        fields,
        index,
        count: (stop - start) as u32,
    })
}

fn read_rows(split: &Split, id: &StreamId, rows: Vec<i64>) -> Result<Batch> {
    let fail = |source| gathering(split, source);
    let count = rows.len();
    let mut fields = Vec::with_capacity(id.fields.len());
    for name in &id.fields {
        let taken = ops::take_rows(split.field(name)?, &rows, None).map_err(fail)?;
        fields.push((name.clone(), taken));
    }
    let index = Tensor::from_vec(rows, &[count]).map_err(fail)?;
    Ok(Batch {
        fields,
        index,
        count: count as u32,
    })
}
