//! Text as bytes, for models that guess the next one.
//!
//! The file, unpacked if it is gzip, is cut into windows of `context` bytes that follow each other without a gap. A
//! sample's inputs are the bytes of its window, its targets the bytes that come after each of them: the last target
//! of a window is the first input of the next. Bytes that do not fill a window at the end are left out.

use std::io::Read;
use std::path::Path;

use super::{Error, Raw, Result, Table, Targets, Values, open};

/// Most bytes of a text: each becomes two numbers of 8 bytes.
const MOST_BYTES: u64 = 1 << 28;

/// The windows in the order of the text, which a split keeps: its end is what is tested.
pub(super) fn read(path: &Path, context: usize) -> Result<Raw> {
    let wrong = |problem: String| Error::Format {
        path: path.into(),
        problem,
    };
    let mut bytes = Vec::new();
    open(path)?
        .take(MOST_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| Error::Read {
            path: path.into(),
            source,
        })?;
    if bytes.len() as u64 > MOST_BYTES {
        return Err(wrong(format!(
            "more than {MOST_BYTES} bytes of text; cut it into smaller files"
        )));
    }
    let count = match context {
        0 => 0,
        _ => bytes.len().saturating_sub(1) / context,
    };
    if count == 0 {
        return Err(wrong(format!(
            "{} bytes of text, expected at least context + 1 = {}; lower `context`, or bring a longer text",
            bytes.len(),
            context.saturating_add(1)
        )));
    }
    let numbers: Vec<i64> = bytes.iter().map(|&byte| i64::from(byte)).collect();
    let length = count * context;
    Ok(Raw {
        train: Table {
            count,
            shape: vec![context],
            inputs: Values::Integers(numbers[..length].to_vec()),
            targets: Targets::Series {
                labels: numbers[1..=length].to_vec(),
                classes: 256,
                steps: context,
            },
        },
        test: None,
    })
}
