//! IDX files as MNIST and Fashion-MNIST use them: big-endian header, then bytes.
//!
//! Images: 0x00000803, count, height, width, pixels. Labels: 0x00000801, count, classes.

use std::io::Read;
use std::path::{Path, PathBuf};

use super::{Error, Raw, Result, Table, Targets, Values, open, read_exactly};

/// Images of [1, h, w] scaled to 0..1, with the folder's own test split.
pub(super) fn read(folder: &Path) -> Result<Raw> {
    let parts = [
        ("train", "images", 3),
        ("train", "labels", 1),
        ("t10k", "images", 3),
        ("t10k", "labels", 1),
    ];
    let mut found: Vec<PathBuf> = Vec::new();
    let mut missing = Vec::new();
    for (part, what, rank) in parts {
        let name = format!("{part}-{what}-idx{rank}-ubyte");
        // Some mirrors write a dot where the original has a dash.
        let dotted = format!("{part}-{what}.idx{rank}-ubyte");
        let names = [
            name.clone(),
            format!("{name}.gz"),
            dotted.clone(),
            format!("{dotted}.gz"),
        ];
        match names
            .iter()
            .map(|name| folder.join(name))
            .find(|path| path.is_file())
        {
            Some(path) => found.push(path),
            None => missing.push(name),
        }
    }
    let [train_images, train_labels, test_images, test_labels] = &found[..] else {
        return Err(Error::IdxMissing {
            folder: folder.into(),
            missing,
        });
    };
    let train = table(train_images, train_labels, None)?;
    let test = table(test_images, test_labels, Some(&train))?;
    Ok(Raw {
        train,
        test: Some(test),
    })
}

/// One part; the test part must agree with the training part.
fn table(images: &Path, labels: &Path, train: Option<&Table>) -> Result<Table> {
    let wrong = |path: &Path, problem: String| {
        Err(Error::Format {
            path: path.into(),
            problem,
        })
    };
    let (sizes, pixels) = read_idx(images, 3)?;
    let (label_sizes, classes_of) = read_idx(labels, 1)?;
    let (count, shape) = (sizes[0], vec![1, sizes[1], sizes[2]]);
    if label_sizes[0] != count {
        return wrong(
            labels,
            format!(
                "{} labels for {count} images in `{}`; take both files from one download",
                label_sizes[0],
                images.display()
            ),
        );
    }
    let classes = match train {
        None => classes_of.iter().max().map_or(0, |top| u32::from(*top) + 1),
        Some(Table {
            shape: expected,
            targets: Targets::Classes { classes, .. },
            ..
        }) => {
            if shape != *expected {
                return wrong(
                    images,
                    format!(
                        "images of {:?}, the training images are {:?}",
                        &shape[1..],
                        &expected[1..]
                    ),
                );
            }
            if let Some((at, class)) = classes_of
                .iter()
                .enumerate()
                .find(|(_, c)| u32::from(**c) >= *classes)
            {
                return wrong(
                    labels,
                    format!(
                        "label {} is class {class}; training has classes 0 to {}",
                        at + 1,
                        classes - 1
                    ),
                );
            }
            *classes
        }
        Some(_) => 0,
    };
    let labels = classes_of.into_iter().map(i64::from).collect();
    Ok(Table {
        count,
        shape,
        inputs: Values::Bytes(pixels, 255.0),
        targets: Targets::Classes { labels, classes },
    })
}

/// Sizes and bytes of a file of unsigned bytes with `rank` axes.
fn read_idx(path: &Path, rank: usize) -> Result<(Vec<usize>, Vec<u8>)> {
    let wrong = |problem: String| Error::Format {
        path: path.into(),
        problem,
    };
    let unreadable = |source: std::io::Error| match source.kind() {
        // A cut gzip stream and a cut plain file are the same misfortune to the person reading.
        std::io::ErrorKind::UnexpectedEof => {
            wrong("the file ends too early; download it again".to_owned())
        }
        _ => Error::Read {
            path: path.into(),
            source,
        },
    };
    let mut file = open(path)?;
    let mut word = [0u8; 4];
    file.read_exact(&mut word).map_err(unreadable)?;
    let (magic, expected) = (u32::from_be_bytes(word), 0x800 + rank as u32);
    if magic != expected {
        let what = if rank == 3 { "images" } else { "labels" };
        return Err(wrong(format!(
            "magic number 0x{magic:08x}, expected 0x{expected:08x} (IDX {what}, unsigned bytes, {rank} axes); \
             is it another kind of file under this name?"
        )));
    }
    let mut sizes = Vec::with_capacity(rank);
    for _ in 0..rank {
        file.read_exact(&mut word).map_err(unreadable)?;
        sizes.push(u32::from_be_bytes(word) as usize);
    }
    if sizes.contains(&0) {
        return Err(wrong(format!("sizes {sizes:?}: there is nothing in it")));
    }
    let expected = sizes
        .iter()
        .try_fold(1usize, |product, size| product.checked_mul(*size))
        .ok_or_else(|| wrong(format!("sizes {sizes:?} are more than a computer can hold")))?;
    match read_exactly(file, expected).map_err(unreadable)? {
        Ok(bytes) => Ok((sizes, bytes)),
        Err(found) => Err(wrong(format!(
            "the header says {sizes:?}, that is {expected} bytes; the file holds {found}; download it again"
        ))),
    }
}
