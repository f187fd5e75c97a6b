//! Checkpoints: one safetensors file each, written whole or not at all.
//!
//! A file is written under a temporary name in its folder, flushed to the disk, renamed, and the folder is
//! flushed too: after a kill or a power cut the folder holds whole files only, plus perhaps a temporary one
//! that the next [`keep_newest`] removes. A SHA-256 of the content in the file's metadata tells a file that was
//! damaged later; [`newest`] then falls back to the one before and says so. It does not protect against a
//! disk that lies about flushing, nor against two writers in one folder.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use espalier_tensor::{DType, Tensor};
use safetensors::tensor::{Dtype, SafeTensors, View, serialize_to_file};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::parameters::tensor_bytes;

/// Result of writing or reading checkpoints.
pub type Result<T> = std::result::Result<T, Error>;

/// What can go wrong with a checkpoint.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused.
    #[error("cannot {doing} `{}`: {source}", .path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not a whole checkpoint.
    #[error("checkpoint `{}` is damaged: {problem}", .path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// No checkpoint of the folder can be read.
    #[error(
        "no checkpoint in `{}` can be read; start the run anew, or bring back a copy. {}",
        .folder.display(), .problems.join("; ")
    )]
    NoneWhole {
        /// The folder.
        folder: PathBuf,
        /// One message a file, the newest first.
        problems: Vec<String>,
    },
    /// A tensor cannot be written.
    #[error("checkpoint of step {step}, tensor `{name}`: {problem}")]
    Content {
        /// The step.
        step: u64,
        /// The tensor.
        name: String,
        /// What is wrong.
        problem: String,
    },
}

/// A checkpoint that was read whole.
#[derive(Debug)]
pub struct Checkpoint {
    /// The file.
    pub path: PathBuf,
    /// The step under which it was written.
    pub step: u64,
    /// All tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// The document that was written with them.
    pub meta: String,
    /// What was wrong with newer files, the newest first; for the person running it.
    pub skipped: Vec<String>,
}

/// The document in the file's metadata. One key, so that equal content makes equal files.
#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    step: u64,
    sha256: String,
    meta: String,
}

const KEY: &str = "espalier";
const VERSION: u32 = 1;

/// A tensor as the file holds it.
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl View for &Stored {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }
    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes one checkpoint and returns its path. When this returns, the file is on the disk. `step` orders the
/// files, so it must be a count that no rewind takes back.
///
/// # Errors
/// A name stands twice, a tensor cannot be read, or the system refused; the folder then holds no new file.
pub fn write(
    folder: &Path,
    step: u64,
    tensors: &[(String, &Tensor)],
    meta: &str,
) -> Result<PathBuf> {
    let mut stored = BTreeMap::new();
    for (name, tensor) in tensors {
        let bad = |problem: String| Error::Content {
            step,
            name: name.clone(),
            problem,
        };
        let dtype = match tensor.dtype() {
            DType::F32 => Dtype::F32,
            DType::F64 => Dtype::F64,
            DType::I64 => Dtype::I64,
            DType::Bool => Dtype::BOOL,
        };
        let bytes = tensor_bytes(tensor).map_err(|error| bad(error.to_string()))?;
        let entry = Stored {
            dtype,
            shape: tensor.shape().to_vec(),
            bytes,
        };
        if stored.insert(name.clone(), entry).is_some() {
            return Err(bad("the name stands twice".into()));
        }
    }
    let content = stored
        .iter()
        .map(|(name, t)| (name.as_str(), t.dtype, &t.shape[..], &t.bytes[..]));
    let sha256 = digest(step, meta, content);
    let header = Header {
        version: VERSION,
        step,
        sha256,
        meta: meta.to_owned(),
    };
    let unwritable = |error: String| Error::Content {
        step,
        name: KEY.into(),
        problem: error,
    };
    let header = serde_json::to_string(&header).map_err(|error| unwritable(error.to_string()))?;

    let io = |doing, path: &Path| {
        let path = path.to_path_buf();
        move |source| Error::Io {
            doing,
            path,
            source,
        }
    };
    fs::create_dir_all(folder).map_err(io("create folder", folder))?;
    let path = folder.join(format!("step-{step:012}.safetensors"));
    let temporary = path.with_extension("safetensors.tmp");
    let written = serialize_to_file(
        &stored,
        Some(HashMap::from([(KEY.into(), header)])),
        &temporary,
    )
    .map_err(|error| match error {
        safetensors::SafeTensorError::IoError(source) => io("write", &temporary)(source),
        other => unwritable(other.to_string()),
    })
    .and_then(|()| flush(&temporary).map_err(io("flush", &temporary)))
    .and_then(|()| fs::rename(&temporary, &path).map_err(io("rename", &temporary)));
    if let Err(error) = written {
        // Whatever stands there is not a checkpoint; the first error is the one to tell.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    flush_folder(folder).map_err(io("flush", folder))?;
    Ok(path)
}

fn flush(path: &Path) -> std::io::Result<()> {
    fs::OpenOptions::new().write(true).open(path)?.sync_all()
}

#[cfg(unix)]
fn flush_folder(folder: &Path) -> std::io::Result<()> {
    fs::File::open(folder)?.sync_all()
}

/// Other systems cannot open a folder for flushing; they order renames by themselves.
#[cfg(not(unix))]
fn flush_folder(_: &Path) -> std::io::Result<()> {
    Ok(())
}

/// The checkpoints of a folder by their names, the newest first; nothing is read. A folder that is not
/// there has none.
///
/// # Errors
/// The folder cannot be listed.
pub fn list(folder: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let io = |source| Error::Io {
        doing: "list",
        path: folder.into(),
        source,
    };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(io)?.path();
        let step = path.file_name().and_then(|name| {
            name.to_str()?
                .strip_prefix("step-")?
                .strip_suffix(".safetensors")?
                .parse()
                .ok()
        });
        found.extend(step.map(|step| (step, path)));
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

/// The newest checkpoint that is whole, with a message for each newer one that is not; none if the folder
/// has no checkpoint at all.
///
/// # Errors
/// [`Error::NoneWhole`] if there are checkpoints but none can be read.
pub fn newest(folder: &Path) -> Result<Option<Checkpoint>> {
    let mut skipped = Vec::new();
    for (_, path) in list(folder)? {
        match read_whole(&path) {
            Ok(checkpoint) => {
                return Ok(Some(Checkpoint {
                    skipped,
                    ..checkpoint
                }));
            }
            Err(error) => skipped.push(error.to_string()),
        }
    }
    if skipped.is_empty() {
        return Ok(None);
    }
    Err(Error::NoneWhole {
        folder: folder.into(),
        problems: skipped,
    })
}

/// The tensors and the document of one file.
///
/// # Errors
/// [`Error::Damaged`] says how the file is not what was written.
pub fn read(path: &Path) -> Result<(BTreeMap<String, Tensor>, String)> {
    read_whole(path).map(|checkpoint| (checkpoint.tensors, checkpoint.meta))
}

fn read_whole(path: &Path) -> Result<Checkpoint> {
    let damaged = |problem: String| Error::Damaged {
        path: path.into(),
        problem,
    };
    let bytes = fs::read(path).map_err(|source| Error::Io {
        doing: "read",
        path: path.into(),
        source,
    })?;
    let format = |error: safetensors::SafeTensorError| {
        damaged(format!("{error}; the file has {} bytes", bytes.len()))
    };
    let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(format)?;
    let file = SafeTensors::deserialize(&bytes).map_err(format)?;
    let header = metadata
        .metadata()
        .as_ref()
        .and_then(|entries| entries.get(KEY));
    let header =
        header.ok_or_else(|| damaged("it is a safetensors file of another program".into()))?;
    let header: Header =
        serde_json::from_str(header).map_err(|error| damaged(format!("its header: {error}")))?;
    if header.version != VERSION {
        return Err(damaged(format!(
            "format version {}, this program reads version {VERSION}; resume with the program that wrote it",
            header.version
        )));
    }
    let views: BTreeMap<&str, _> = file.iter().collect();
    let content = views
        .iter()
        .map(|(name, view)| (*name, view.dtype(), view.shape(), view.data()));
    let found = digest(header.step, &header.meta, content);
    if found != header.sha256 {
        return Err(damaged(format!(
            "its content has SHA-256 {found}, expected {}",
            header.sha256
        )));
    }
    let mut tensors = BTreeMap::new();
    for (name, view) in &views {
        let (shape, data) = (view.shape(), view.data());
        let tensor = match view.dtype() {
            Dtype::F32 => Tensor::from_vec(words(data, f32::from_le_bytes), shape),
            Dtype::F64 => Tensor::from_vec(words(data, f64::from_le_bytes), shape),
            Dtype::I64 => Tensor::from_vec(words(data, i64::from_le_bytes), shape),
            Dtype::BOOL => Tensor::from_vec(
                data.iter().map(|byte| *byte != 0).collect::<Vec<bool>>(),
                shape,
            ),
            other => return Err(damaged(format!("tensor `{name}` has dtype {other:?}"))),
        };
        let tensor = tensor.map_err(|error| damaged(format!("tensor `{name}`: {error}")))?;
        tensors.insert((*name).to_owned(), tensor);
    }
    Ok(Checkpoint {
        path: path.into(),
        step: header.step,
        tensors,
        meta: header.meta,
        skipped: Vec::new(),
    })
}

/// Removes all but the newest `count` checkpoints (at least one stays) and what interrupted writes left.
///
/// # Errors
/// The system refused.
pub fn keep_newest(folder: &Path, count: usize) -> Result<()> {
    let mut useless: Vec<PathBuf> = list(folder)?
        .into_iter()
        .skip(count.max(1))
        .map(|(_, path)| path)
        .collect();
    if let Ok(entries) = fs::read_dir(folder) {
        let left_over =
            |path: &PathBuf| path.extension().is_some_and(|extension| extension == "tmp");
        useless.extend(
            entries
                .flatten()
                .map(|entry| entry.path())
                .filter(left_over),
        );
    }
    for path in useless {
        fs::remove_file(&path).map_err(|source| Error::Io {
            doing: "remove",
            path,
            source,
        })?;
    }
    Ok(())
}

/// SHA-256 over everything that matters, in order of name, each part with its length.
fn digest<'a>(
    step: u64,
    meta: &str,
    content: impl Iterator<Item = (&'a str, Dtype, &'a [usize], &'a [u8])>,
) -> String {
    let mut hash = Sha256::new();
    hash.update(step.to_le_bytes());
    hash.update((meta.len() as u64).to_le_bytes());
    hash.update(meta);
    for (name, dtype, shape, bytes) in content {
        hash.update((name.len() as u64).to_le_bytes());
        hash.update(name);
        hash.update(format!("{dtype:?} {shape:?} {} ", bytes.len()));
        hash.update(bytes);
    }
    let digest: [u8; 32] = hash.finalize().into();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn words<const N: usize, T>(bytes: &[u8], convert: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes
        .as_chunks::<N>()
        .0
        .iter()
        .map(|word| convert(*word))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// An empty folder of the test's own.
    fn folder(name: &str) -> PathBuf {
        let path =
            std::env::temp_dir().join(format!("espalier-checkpoint-{}-{name}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    fn sample() -> Vec<(String, Tensor)> {
        vec![
            (
                "a/weight".into(),
                Tensor::from_vec(vec![1.5f32, -0.0, f32::MIN_POSITIVE], &[3]).unwrap(),
            ),
            (
                "b".into(),
                Tensor::from_vec(vec![0.1f64, f64::INFINITY], &[2, 1]).unwrap(),
            ),
            (
                "c".into(),
                Tensor::from_vec(vec![i64::MAX, -1], &[2]).unwrap(),
            ),
            (
                "d".into(),
                Tensor::from_vec(vec![true, false, true], &[3]).unwrap(),
            ),
            (
                "empty".into(),
                Tensor::from_vec(Vec::<f32>::new(), &[0, 4]).unwrap(),
            ),
            (
                "scalar".into(),
                Tensor::from_vec(vec![7.0f32], &[]).unwrap(),
            ),
        ]
    }

    fn put(folder: &Path, step: u64) -> PathBuf {
        let tensors = sample();
        let borrowed: Vec<(String, &Tensor)> =
            tensors.iter().map(|(name, t)| (name.clone(), t)).collect();
        write(folder, step, &borrowed, &format!("{{\"step\":{step}}}")).unwrap()
    }

    #[test]
    fn what_is_written_is_read_bit_for_bit() {
        let folder = folder("exact");
        let path = put(&folder, 12);
        assert_eq!(path.file_name().unwrap(), "step-000000000012.safetensors");
        let (tensors, meta) = read(&path).unwrap();
        assert_eq!(meta, "{\"step\":12}");
        assert_eq!(tensors.len(), 6);
        for (name, expected) in sample() {
            let found = &tensors[&name];
            assert_eq!(
                (found.shape(), found.dtype()),
                (expected.shape(), expected.dtype())
            );
            assert_eq!(
                tensor_bytes(found).unwrap(),
                tensor_bytes(&expected).unwrap(),
                "{name}"
            );
        }
    }

    #[test]
    fn equal_content_makes_equal_files() {
        let (one, two) = (folder("equal-1"), folder("equal-2"));
        assert_eq!(
            fs::read(put(&one, 3)).unwrap(),
            fs::read(put(&two, 3)).unwrap()
        );
    }

    #[test]
    fn a_damaged_newest_file_falls_back_to_the_one_before_and_says_so() {
        for (name, damage) in [
            (
                "cut",
                (|bytes: &mut Vec<u8>| bytes.truncate(bytes.len() - 5)) as fn(&mut Vec<u8>),
            ),
            ("header", |bytes| bytes.truncate(4)),
            ("empty", |bytes| bytes.clear()),
            ("flipped", |bytes| *bytes.last_mut().unwrap() ^= 1),
            ("longer", |bytes| bytes.push(0)),
        ] {
            let folder = folder(name);
            put(&folder, 9);
            let path = put(&folder, 10);
            let mut bytes = fs::read(&path).unwrap();
            damage(&mut bytes);
            fs::write(&path, bytes).unwrap();
            let found = newest(&folder).unwrap().unwrap();
            assert_eq!(found.step, 9, "{name}");
            assert_eq!(found.skipped.len(), 1);
            let message = &found.skipped[0];
            assert!(
                message.contains("step-000000000010.safetensors` is damaged: "),
                "{message}"
            );
        }
    }

    #[test]
    fn every_byte_of_the_content_is_protected() {
        let folder = folder("bytes");
        let path = put(&folder, 1);
        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(7) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs::write(&path, &bytes).unwrap();
            assert!(read(&path).is_err(), "byte {at} of {}", whole.len());
        }
    }

    #[test]
    fn a_folder_of_damaged_files_is_an_error_and_an_empty_one_is_not() {
        let folder = folder("all");
        assert!(newest(&folder).unwrap().is_none());
        let path = put(&folder, 1);
        fs::write(&path, b"nonsense").unwrap();
        let error = newest(&folder).unwrap_err().to_string();
        assert!(error.starts_with("no checkpoint in `"), "{error}");
        assert!(
            error.contains("start the run anew, or bring back a copy"),
            "{error}"
        );
    }

    #[test]
    fn the_newest_stay_and_leftovers_of_interrupted_writes_go() {
        let folder = folder("keep");
        for step in [2, 10, 9, 1] {
            put(&folder, step);
        }
        let leftover = folder.join("step-000000000011.safetensors.tmp");
        fs::write(&leftover, b"half").unwrap();
        fs::write(folder.join("notes.txt"), b"mine").unwrap();
        assert_eq!(newest(&folder).unwrap().unwrap().step, 10);
        keep_newest(&folder, 2).unwrap();
        let steps: Vec<u64> = list(&folder)
            .unwrap()
            .into_iter()
            .map(|(step, _)| step)
            .collect();
        assert_eq!(steps, [10, 9]);
        assert!(!leftover.exists());
        assert!(folder.join("notes.txt").exists());
        keep_newest(&folder, 0).unwrap();
        assert_eq!(list(&folder).unwrap().len(), 1);
    }

    #[test]
    fn a_name_given_twice_is_refused() {
        let t = Tensor::from_vec(vec![1.0f32], &[1]).unwrap();
        let error = write(
            &folder("twice"),
            4,
            &[("x".into(), &t), ("x".into(), &t)],
            "",
        )
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "checkpoint of step 4, tensor `x`: the name stands twice"
        );
    }
}
