//! NPY files, format versions 1 to 3: numpy's `save`.
//!
//! Magic `\x93NUMPY`, two version bytes, header length (2 bytes little-endian in version 1, 4 later), a
//! Python dictionary literal with `descr`, `fortran_order`, `shape`, then the elements.

use std::io::Read;
use std::path::Path;

use super::{Error, Raw, Result, Table, Targets, Values, open, read_exactly};

/// Elements of one file.
enum Elements {
    Bytes(Vec<u8>),
    Floats(Vec<f32>),
    Integers(Vec<i64>),
}

/// Floats and bytes become f32 inputs as they are; whole numbers stay i64, for embeddings.
/// Whole-number targets are classes, floats are values.
pub(super) fn read(inputs: &Path, targets: &Path) -> Result<Raw> {
    let wrong = |path: &Path, problem: String| {
        Err(Error::Format {
            path: path.into(),
            problem,
        })
    };
    let (shape, elements) = read_npy(inputs)?;
    let (target_shape, target_elements) = read_npy(targets)?;
    if shape.len() < 2 {
        return wrong(
            inputs,
            format!("shape {shape:?}, expected [samples, ...] with at least two axes"),
        );
    }
    let count = shape[0];
    if target_shape.first() != Some(&count) {
        return wrong(
            targets,
            format!(
                "shape {target_shape:?}, but `{}` has shape {shape:?}; the first axes must be equal",
                inputs.display()
            ),
        );
    }
    if shape.contains(&0) {
        return wrong(inputs, format!("shape {shape:?}: there is nothing in it"));
    }
    for (path, elements) in [(inputs, &elements), (targets, &target_elements)] {
        let Elements::Floats(floats) = elements else {
            continue;
        };
        if let Some((at, value)) = floats.iter().enumerate().find(|(_, x)| !x.is_finite()) {
            return wrong(
                path,
                format!(
                    "element {at} (row-major) is {value} as f32; replace it or leave its sample out"
                ),
            );
        }
    }
    let inputs = match elements {
        Elements::Bytes(bytes) => Values::Bytes(bytes, 1.0),
        Elements::Floats(floats) => Values::Floats(floats),
        Elements::Integers(integers) => Values::Integers(integers),
    };
    let width: usize = target_shape[1..].iter().product();
    let labels = match target_elements {
        Elements::Floats(values) if target_shape.len() <= 2 && width > 0 => {
            let targets = Targets::Values { values, width };
            return Ok(Raw {
                train: Table {
                    count,
                    shape: shape[1..].to_vec(),
                    inputs,
                    targets,
                },
                test: None,
            });
        }
        Elements::Floats(_) => {
            return wrong(
                targets,
                format!("shape {target_shape:?}, expected [samples] or [samples, values]"),
            );
        }
        Elements::Bytes(bytes) => bytes.into_iter().map(i64::from).collect(),
        Elements::Integers(integers) => integers,
    };
    if width != 1 {
        return wrong(
            targets,
            format!("shape {target_shape:?}, expected [samples] for classes"),
        );
    }
    if let Some((at, class)) = labels
        .iter()
        .enumerate()
        .find(|(_, c)| !(0..i64::from(i32::MAX)).contains(*c))
    {
        return wrong(
            targets,
            format!("element {at} is {class}; classes are numbered from 0"),
        );
    }
    let classes = labels.iter().max().map_or(0, |top| *top as u32 + 1);
    let targets = Targets::Classes { labels, classes };
    Ok(Raw {
        train: Table {
            count,
            shape: shape[1..].to_vec(),
            inputs,
            targets,
        },
        test: None,
    })
}

fn read_npy(path: &Path) -> Result<(Vec<usize>, Elements)> {
    let wrong = |problem: String| Error::Format {
        path: path.into(),
        problem,
    };
    let unreadable = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::UnexpectedEof => wrong("the file ends inside its header".into()),
        _ => Error::Read {
            path: path.into(),
            source,
        },
    };
    let mut file = open(path)?;
    let mut magic = [0u8; 8];
    file.read_exact(&mut magic).map_err(unreadable)?;
    if &magic[..6] != b"\x93NUMPY" {
        return Err(wrong("not an NPY file; write it with numpy.save".into()));
    }
    let length = match magic[6] {
        1 => {
            let mut bytes = [0u8; 2];
            file.read_exact(&mut bytes).map_err(unreadable)?;
            u32::from(u16::from_le_bytes(bytes))
        }
        2 | 3 => {
            let mut bytes = [0u8; 4];
            file.read_exact(&mut bytes).map_err(unreadable)?;
            u32::from_le_bytes(bytes)
        }
        version => return Err(wrong(format!("NPY version {version}, expected 1, 2 or 3"))),
    };
    if length > 1 << 20 {
        return Err(wrong(format!(
            "its header claims {length} bytes; the file is damaged"
        )));
    }
    let mut header = vec![0u8; length as usize];
    file.read_exact(&mut header).map_err(unreadable)?;
    let header = String::from_utf8_lossy(&header);
    let value = |key: &str| {
        header_value(&header, key).ok_or_else(|| wrong(format!("its header has no `{key}`")))
    };
    if value("fortran_order")? != "False" {
        return Err(wrong(
            "stored in Fortran order; write it with numpy.save(path, numpy.ascontiguousarray(array))".into(),
        ));
    }
    let shape = value("shape")?
        .trim_matches(['(', ')'])
        .split(',')
        .map(str::trim)
        .filter(|size| !size.is_empty())
        .map(|size| {
            size.parse::<usize>()
                .map_err(|_| wrong(format!("its header has the size `{size}`")))
        })
        .collect::<Result<Vec<usize>>>()?;
    let count = shape
        .iter()
        .try_fold(1usize, |product, size| product.checked_mul(*size));
    let descr = value("descr")?.trim_matches(['\'', '"']);
    let size = match descr {
        "|u1" | "|b1" => 1,
        "<f4" | "<i4" => 4,
        "<f8" | "<i8" => 8,
        _ => {
            return Err(wrong(format!(
                "dtype `{descr}`, expected little-endian f4, f8, i4, i8, or u1; \
                 write it with numpy.save(path, array.astype(\"<f4\"))"
            )));
        }
    };
    let expected = count
        .and_then(|count| count.checked_mul(size))
        .ok_or_else(|| wrong(format!("shape {shape:?} is more than a computer can hold")))?;
    let cut = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::UnexpectedEof => wrong("its compressed content ends too early".into()),
        _ => Error::Read {
            path: path.into(),
            source,
        },
    };
    let bytes = read_exactly(file, expected)
        .map_err(cut)?
        .map_err(|found| {
            wrong(format!(
                "the header says shape {shape:?} of `{descr}`, that is {expected} bytes; the file holds {found}"
            ))
        })?;
    let elements = match descr {
        "<f4" => Elements::Floats(words(&bytes, f32::from_le_bytes)),
        "<f8" => Elements::Floats(words(&bytes, |word| f64::from_le_bytes(word) as f32)),
        "<i4" => Elements::Integers(words(&bytes, |word| i64::from(i32::from_le_bytes(word)))),
        "<i8" => Elements::Integers(words(&bytes, i64::from_le_bytes)),
        _ => Elements::Bytes(bytes),
    };
    Ok((shape, elements))
}

fn words<const N: usize, T>(bytes: &[u8], convert: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (words, _) = bytes.as_chunks::<N>();
    words.iter().map(|word| convert(*word)).collect()
}

/// The text of one value of the header's dictionary: `(3, 2)`, `False`, `'<f4'`.
fn header_value<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let after = [format!("'{key}'"), format!("\"{key}\"")]
        .iter()
        .find_map(|quoted| {
            header
                .find(quoted.as_str())
                .map(|at| &header[at + quoted.len()..])
        })?;
    let value = after.trim_start().strip_prefix(':')?.trim_start();
    let end = if value.starts_with('(') {
        value.find(')')? + 1
    } else {
        value.find([',', '}'])?
    };
    Some(value[..end].trim())
}
