//! Data sets: reads a source, splits it, scales it, and keeps each split as whole tensors.
//!
//! Every split has the field `inputs` (f32 [count, ...], or i64 where an NPY source holds whole numbers)
//! and the field `targets` (i64 [count] for classes, i64 [count, t] for a class at each step of a series, f32
//! [count, k] for values). A split depends on the plan's `split_seed` alone, not on the run's seed; inside a split
//! the samples stand in the order of the source, so that a series stays a series. A text is not shuffled into its
//! splits: its end is the test split, what comes before that validation. Batches are made in [`stream`].

mod csv_file;
mod digits;
mod graph;
mod idx;
mod npy;
mod sines;
pub mod stream;
mod text;

use std::path::{Path, PathBuf};

use espalier_tensor::random::{self, Key};
use espalier_tensor::{DType, Tensor};

use crate::plan::{DataPlan, DataSource, Normalize, TRAIN};

pub use stream::{Batch, Gathered, Order, Position, StreamId, Streams};

/// Result of reading or batching data.
pub type Result<T> = std::result::Result<T, Error>;

/// What can be wrong with data.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file cannot be opened or read.
    #[error("cannot read `{}`: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// IDX files are not there.
    #[error(
        "folder `{}` has no {}; expected `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, \
         `t10k-images-idx3-ubyte` and `t10k-labels-idx1-ubyte`, each plain or with `.gz`. Fashion-MNIST in \
         this form: `apt-get install dataset-fashion-mnist` puts it at /usr/share/datasets/fashion-mnist",
        .folder.display(), list(.missing)
    )]
    IdxMissing {
        /// The folder.
        folder: PathBuf,
        /// The names that were not found.
        missing: Vec<String>,
    },
    /// A file is not what its name or place says.
    #[error("`{}`: {problem}", .path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What was expected, what was found, what to do.
        problem: String,
    },
    /// One field of a text file is wrong.
    #[error("`{}` line {line}, column `{column}`: {problem}", .path.display())]
    Field {
        /// The file.
        path: PathBuf,
        /// Line, counted from 1.
        line: u64,
        /// Name of the column in the header.
        column: String,
        /// What was expected, what was found, what to do.
        problem: String,
    },
    /// The plan asks for something the source cannot give.
    #[error("[data] {field}: {problem}")]
    Plan {
        /// Field of the run file's data section.
        field: &'static str,
        /// What was expected, what was found, what to do.
        problem: String,
    },
    /// No split has that name.
    #[error("no split is named `{name}`; the data set has {}", list(.known))]
    UnknownSplit {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// No field of the split has that name.
    #[error("split `{split}` has no field `{name}`; it has {}", list(.known))]
    UnknownField {
        /// The split.
        split: String,
        /// The name asked for.
        name: String,
        /// The names there are.
        known: Vec<String>,
    },
    /// A split cannot be added.
    #[error("add-split `{name}`: {problem}")]
    AddSplit {
        /// The split's name.
        name: String,
        /// What was expected, what was found, what to do.
        problem: String,
    },
    /// A stream's arguments are wrong.
    #[error("batches of split `{split}`: {problem}")]
    Stream {
        /// The split.
        split: String,
        /// What was expected, what was found, what to do.
        problem: String,
    },
    /// The tensor engine refused.
    #[error("{doing}: {source}")]
    Tensor {
        /// What was being done.
        doing: String,
        /// The engine's own words.
        source: espalier_tensor::Error,
    },
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "none".into()
    } else {
        format!("`{}`", names.join("`, `"))
    }
}

/// A part of the samples.
#[derive(Clone, Debug)]
pub struct Split {
    /// `train`, `validation`, `test`, or the name under which a plugin added it.
    pub name: String,
    /// How many samples it has.
    pub count: usize,
    /// Named tensors whose first axis is the sample.
    pub fields: Vec<(String, Tensor)>,
    /// Number of classes of `targets`; 0 if they are values.
    pub classes: u32,
    /// Which of a series of tasks it belongs to; 0 where there is one task.
    pub task: u32,
    /// True if a plugin added it, so that it belongs in the run's checkpoint.
    pub added: bool,
}

impl Split {
    /// The whole field of that name.
    ///
    /// # Errors
    /// [`Error::UnknownField`].
    pub fn field(&self, name: &str) -> Result<&Tensor> {
        let found = self.fields.iter().find(|(field, _)| field == name);
        found
            .map(|(_, tensor)| tensor)
            .ok_or_else(|| Error::UnknownField {
                split: self.name.clone(),
                name: name.into(),
                known: self.fields.iter().map(|(field, _)| field.clone()).collect(),
            })
    }
}

/// Most samples of a split that a plugin adds. An epoch's order costs 8 bytes a sample, which no account counts,
/// and a sample of nothing costs nothing else.
const MOST_SAMPLES: usize = 1 << 24;

/// The splits of a run: train, validation (if any), test (if any), then those that plugins added.
#[derive(Clone, Debug, Default)]
pub struct Dataset {
    /// In order.
    pub splits: Vec<Split>,
    /// The split that stands in the place of `train` in this stage; none for the one of that name.
    pub train_on: Option<String>,
}

impl Dataset {
    /// The split of that name.
    ///
    /// # Errors
    /// [`Error::UnknownSplit`].
    pub fn split(&self, name: &str) -> Result<&Split> {
        let actual = match &self.train_on {
            Some(other) if name == TRAIN => other,
            _ => name,
        };
        self.splits
            .iter()
            .find(|split| split.name == actual)
            .ok_or_else(|| Error::UnknownSplit {
                name: name.into(),
                known: self.splits.iter().map(|split| split.name.clone()).collect(),
            })
    }

    /// Adds a split of a plugin's making. Classes and task are those of the training split if the new one
    /// has i64 `targets`.
    ///
    /// # Errors
    /// The name is taken; no fields; a field named twice; fields of different counts.
    pub fn add_split(&mut self, name: &str, fields: Vec<(String, Tensor)>) -> Result<()> {
        let refuse = |problem: String| {
            Err(Error::AddSplit {
                name: name.into(),
                problem,
            })
        };
        if name.is_empty() {
            return refuse("a split needs a name".into());
        }
        if self.splits.iter().any(|split| split.name == name) {
            return refuse("a split of that name exists already; choose another name".into());
        }
        let Some(count) = fields.first().and_then(|(_, t)| t.shape().first().copied()) else {
            return refuse(
                "a split needs at least one field, with the sample as its first axis".into(),
            );
        };
        for (at, (field, tensor)) in fields.iter().enumerate() {
            if tensor.shape().first() != Some(&count) {
                return refuse(format!(
                    "field `{field}` has shape {:?}; field `{}` has {count} samples, so its first axis must \
                     be {count}",
                    tensor.shape(),
                    fields[0].0
                ));
            }
            if fields[..at].iter().any(|(other, _)| other == field) {
                return refuse(format!("field `{field}` is given twice"));
            }
        }
        if count > MOST_SAMPLES {
            return refuse(format!("{count} samples; at most {MOST_SAMPLES}"));
        }
        let mut kept = Vec::with_capacity(fields.len());
        for (field, t) in fields {
            // A split outlives the call and the graph that made it, and is written into checkpoints whole.
            let whole = t.detach().contiguous().map_err(|source| Error::Tensor {
                doing: format!("add-split `{name}`, field `{field}`"),
                source,
            })?;
            kept.push((field, whole));
        }
        let fields = kept;
        let labelled = fields
            .iter()
            .any(|(field, t)| field == "targets" && t.dtype() == DType::I64);
        let (classes, task) = self
            .splits
            .first()
            .map_or((0, 0), |split| (split.classes, split.task));
        let classes = if labelled { classes } else { 0 };
        self.splits.push(Split {
            name: name.into(),
            count,
            fields,
            classes,
            task,
            added: true,
        });
        Ok(())
    }
}

/// Inputs as a source gives them.
enum Values {
    /// Bytes, each to be divided by a number.
    Bytes(Vec<u8>, f32),
    Floats(Vec<f32>),
    /// Whole numbers stay whole: they are indices.
    Integers(Vec<i64>),
}

/// Targets as a source gives them.
enum Targets {
    Classes {
        labels: Vec<i64>,
        classes: u32,
    },
    /// A class at each of `steps` steps of a sample. The samples follow each other, so they are split in their order.
    Series {
        labels: Vec<i64>,
        classes: u32,
        steps: usize,
    },
    Values {
        values: Vec<f32>,
        width: usize,
    },
}

/// Samples as a source gives them, row-major, nothing shuffled, nothing scaled.
struct Table {
    count: usize,
    shape: Vec<usize>,
    inputs: Values,
    targets: Targets,
}

impl Table {
    fn width(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A source's samples: all in one table, or with a test table of its own.
struct Raw {
    train: Table,
    test: Option<Table>,
}

/// Reads, splits and scales the samples of a plan.
///
/// # Errors
/// A missing or malformed file, or a plan that leaves no training sample; each message names the file or
/// field, what was expected, what was found, and the mend.
pub fn load(plan: &DataPlan) -> Result<Dataset> {
    for (field, fraction) in [("test", plan.test), ("validation", plan.validation)] {
        if !(0.0..1.0).contains(&fraction) {
            let problem =
                format!("expected a fraction from 0 up to but not including 1, found {fraction}");
            return Err(Error::Plan { field, problem });
        }
    }
    let raw = match &plan.source {
        DataSource::Graph {
            path,
            edges,
            target,
            labelled,
        } => return graph::read(path, edges, target, labelled, plan.split_seed),
        DataSource::BlockModel { model, labelled } => {
            return graph::block_model(model, labelled, plan.split_seed);
        }
        DataSource::Digits => digits::read()?,
        DataSource::Sines(sines) => sines::read(sines, plan.split_seed)?,
        DataSource::Idx { path } => idx::read(path)?,
        DataSource::Csv {
            path,
            target,
            classes,
        } => csv_file::read(path, target, *classes)?,
        DataSource::Npy { inputs, targets } => npy::read(inputs, targets)?,
        DataSource::Text { path, context } => text::read(path, *context as usize)?,
    };
    let in_order = matches!(raw.train.targets, Targets::Series { .. });
    let mut train = match in_order {
        // Fractions are cut off the front: the end of the text comes first.
        true => (0..raw.train.count).rev().collect(),
        false => permutation(raw.train.count, plan.split_seed, 0),
    };
    let (mut test, test_table) = match &raw.test {
        Some(table) => (permutation(table.count, plan.split_seed, 1), table),
        None => (take_front(&mut train, plan.test), &raw.train),
    };
    let mut validation = take_front(&mut train, plan.validation);
    if in_order {
        train.reverse();
        test.reverse();
    }
    train.truncate(plan.train_limit.unwrap_or(usize::MAX));
    test.truncate(plan.test_limit.unwrap_or(usize::MAX));
    if train.is_empty() {
        let problem = format!(
            "no training sample is left of {} ({} test, {} validation, train-limit {:?}); lower the fractions \
             or raise the limit",
            raw.train.count,
            test.len(),
            validation.len(),
            plan.train_limit
        );
        return Err(Error::Plan {
            field: "train-limit",
            problem,
        });
    }
    for part in [&mut train, &mut validation, &mut test] {
        part.sort_unstable();
    }
    let train_inputs = inputs_of(&raw.train, &train);
    let scale = match &train_inputs {
        Inputs::Floats(floats) => Scale::measure(floats, raw.train.width(), plan.normalize),
        Inputs::Integers(_) if plan.normalize == Normalize::None => None,
        Inputs::Integers(_) => {
            let problem = "whole-number inputs are indices and are not scaled; set normalize = \"none\", or save \
                           the inputs as f32"
                .into();
            return Err(Error::Plan {
                field: "normalize",
                problem,
            });
        }
    };
    let mut splits = vec![make_split(
        "train",
        &raw.train,
        &train,
        train_inputs,
        &scale,
    )?];
    let others = [
        ("validation", &raw.train, &validation),
        ("test", test_table, &test),
    ];
    for (name, table, rows) in others.into_iter().filter(|(_, _, rows)| !rows.is_empty()) {
        splits.push(make_split(
            name,
            table,
            rows,
            inputs_of(table, rows),
            &scale,
        )?);
    }
    Ok(Dataset {
        splits,
        train_on: None,
    })
}

/// A permutation of 0..n that depends on the two numbers alone.
fn permutation(n: usize, seed: u64, stream: u64) -> Vec<usize> {
    // The third number sets split permutations apart from every other use of the generator.
    let mut order: Vec<usize> = (0..n).collect();
    shuffle(
        &mut order,
        &Key::new(&[seed, stream, 0x5350_4c49_5400_0001]),
    );
    order
}

/// Fisher and Yates's shuffle with counter-based bits: all of them depend on the key alone.
fn shuffle<T>(items: &mut [T], key: &Key) {
    let bits = random::bits(key, items.len());
    for (at, bits) in bits.into_iter().enumerate().skip(1).rev() {
        // A product's high half is uniform below at + 1 up to 2^-64.
        let other = ((u128::from(bits) * (at as u128 + 1)) >> 64) as usize;
        items.swap(at, other);
    }
}

/// Cuts the given fraction off the front, rounded to the nearest count.
fn take_front(order: &mut Vec<usize>, fraction: f64) -> Vec<usize> {
    let count = (order.len() as f64 * fraction).round() as usize;
    order.drain(..count.min(order.len())).collect()
}

/// What to subtract from and multiply each input with; one entry for all features or one each.
struct Scale {
    shift: Vec<f64>,
    factor: Vec<f64>,
}

impl Scale {
    /// Mean and standard deviation (population) of the given samples, summed in f64 in their order. A
    /// feature that never changes is only shifted.
    fn measure(values: &[f32], width: usize, how: Normalize) -> Option<Scale> {
        // One long row stands for all features together.
        let (groups, row) = match how {
            Normalize::None => return None,
            Normalize::Standard => (1, 1),
            Normalize::PerFeature => (width, width),
        };
        let samples = (values.len() / row.max(1)) as f64;
        let mut shift = vec![0.0; groups];
        for row in values.chunks_exact(row.max(1)) {
            for (sum, value) in shift.iter_mut().zip(row) {
                *sum += f64::from(*value);
            }
        }
        shift.iter_mut().for_each(|sum| *sum /= samples);
        let mut factor = vec![0.0; groups];
        for row in values.chunks_exact(row.max(1)) {
            for ((sum, mean), value) in factor.iter_mut().zip(&shift).zip(row) {
                *sum += (f64::from(*value) - mean).powi(2);
            }
        }
        for sum in &mut factor {
            let deviation = (*sum / samples).sqrt();
            // Below this, the spread is the rounding of the mean and not of the data.
            *sum = if deviation > 1e-12 {
                1.0 / deviation
            } else {
                1.0
            };
        }
        Some(Scale { shift, factor })
    }

    fn apply(&self, values: &mut [f32]) {
        for row in values.chunks_exact_mut(self.shift.len().max(1)) {
            for ((value, shift), factor) in row.iter_mut().zip(&self.shift).zip(&self.factor) {
                *value = ((f64::from(*value) - shift) * factor) as f32;
            }
        }
    }
}

/// The inputs of some samples: f32 yet to be scaled, or whole numbers.
enum Inputs {
    Floats(Vec<f32>),
    Integers(Vec<i64>),
}

fn inputs_of(table: &Table, rows: &[usize]) -> Inputs {
    let width = table.width();
    match &table.inputs {
        Values::Bytes(bytes, divisor) => {
            let scaled: [f32; 256] = std::array::from_fn(|byte| byte as f32 / divisor);
            let mut floats = Vec::with_capacity(rows.len() * width);
            for &row in rows {
                let bytes = &bytes[row * width..(row + 1) * width];
                floats.extend(bytes.iter().map(|byte| scaled[usize::from(*byte)]));
            }
            Inputs::Floats(floats)
        }
        Values::Floats(floats) => Inputs::Floats(gather(floats, rows, width)),
        Values::Integers(integers) => Inputs::Integers(gather(integers, rows, width)),
    }
}

fn make_split(
    name: &str,
    table: &Table,
    rows: &[usize],
    inputs: Inputs,
    scale: &Option<Scale>,
) -> Result<Split> {
    let fail = |source| Error::Tensor {
        doing: format!("making split `{name}`"),
        source,
    };
    let mut shape = vec![rows.len()];
    shape.extend_from_slice(&table.shape);
    let inputs = match inputs {
        Inputs::Floats(mut floats) => {
            if let Some(scale) = scale {
                scale.apply(&mut floats);
            }
            Tensor::from_vec(floats, &shape)
        }
        Inputs::Integers(integers) => Tensor::from_vec(integers, &shape),
    };
    let (targets, classes) = match &table.targets {
        Targets::Classes { labels, classes } => (
            Tensor::from_vec(gather(labels, rows, 1), &[rows.len()]),
            *classes,
        ),
        Targets::Series {
            labels,
            classes,
            steps,
        } => (
            Tensor::from_vec(gather(labels, rows, *steps), &[rows.len(), *steps]),
            *classes,
        ),
        Targets::Values { values, width } => (
            Tensor::from_vec(gather(values, rows, *width), &[rows.len(), *width]),
            0,
        ),
    };
    let fields = vec![
        ("inputs".to_owned(), inputs.map_err(fail)?),
        ("targets".to_owned(), targets.map_err(fail)?),
    ];
    Ok(Split {
        name: name.into(),
        count: rows.len(),
        fields,
        classes,
        task: 0,
        added: false,
    })
}

fn gather<T: Copy>(values: &[T], rows: &[usize], width: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(rows.len() * width);
    for &row in rows {
        out.extend_from_slice(&values[row * width..(row + 1) * width]);
    }
    out
}

/// A file for reading, unpacked on the way if it begins with the two bytes of gzip.
fn open(path: &Path) -> Result<Box<dyn std::io::Read>> {
    use std::io::{BufRead, BufReader};
    let read = |source| Error::Read {
        path: path.into(),
        source,
    };
    let mut file = BufReader::new(std::fs::File::open(path).map_err(read)?);
    let packed = file.fill_buf().map_err(read)?.starts_with(&[0x1f, 0x8b]);
    Ok(if packed {
        Box::new(flate2::bufread::MultiGzDecoder::new(file))
    } else {
        Box::new(file)
    })
}

/// The rest of a file that should be `expected` bytes long; where it is not, what it holds instead, in words.
fn read_exactly(
    file: impl std::io::Read,
    expected: usize,
) -> std::io::Result<std::result::Result<Vec<u8>, String>> {
    use std::cmp::Ordering;
    use std::io::Read;
    // One byte more than promised tells a long file from an exact one without reading it all.
    let mut bytes = Vec::new();
    file.take((expected as u64).saturating_add(1))
        .read_to_end(&mut bytes)?;
    Ok(match bytes.len().cmp(&expected) {
        Ordering::Equal => Ok(bytes),
        Ordering::Greater => Err("more".into()),
        Ordering::Less => Err(bytes.len().to_string()),
    })
}

#[cfg(test)]
mod tests;
