//! The embedded data set: UCI's handwritten digits, see `data/DIGITS.md`.

use std::io::Read;
use std::path::PathBuf;

use super::{Error, Raw, Result, Table, Targets, Values};

const PACKED: &[u8] = include_bytes!("../../data/digits.csv.gz");

/// 1,797 images of 8x8, bytes 0 to 16 (scaled to 0..1), ten classes.
pub(super) fn read() -> Result<Raw> {
    let damaged = |problem: String| Error::Format {
        path: PathBuf::from("digits (embedded)"),
        problem,
    };
    let mut text = String::new();
    flate2::read::GzDecoder::new(PACKED)
        .read_to_string(&mut text)
        .map_err(|error| damaged(error.to_string()))?;
    let (mut pixels, mut labels) = (Vec::with_capacity(1797 * 64), Vec::with_capacity(1797));
    for line in text.lines() {
        let row = line
            .split(',')
            .map(str::parse::<u8>)
            .collect::<std::result::Result<Vec<_>, _>>();
        match row.as_deref() {
            Ok([image @ .., label]) if image.len() == 64 && *label < 10 => {
                pixels.extend_from_slice(image);
                labels.push(i64::from(*label));
            }
            _ => {
                return Err(damaged(format!(
                    "sample {} is not 64 pixels and a class",
                    labels.len() + 1
                )));
            }
        }
    }
    let table = Table {
        count: labels.len(),
        shape: vec![1, 8, 8],
        inputs: Values::Bytes(pixels, 16.0),
        targets: Targets::Classes {
            labels,
            classes: 10,
        },
    };
    Ok(Raw {
        train: table,
        test: None,
    })
}
