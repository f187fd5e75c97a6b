#![allow(clippy::unwrap_used)]

use std::io::Write;
use std::path::PathBuf;

use super::*;

/// An empty folder of the test's own.
fn folder(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("espalier-data-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

fn plan(source: DataSource) -> DataPlan {
    DataPlan {
        source,
        test: 0.0,
        validation: 0.0,
        split_seed: 1,
        train_limit: None,
        test_limit: None,
        normalize: Normalize::None,
    }
}

fn floats(t: &Tensor) -> Vec<f32> {
    t.to_vec::<f32>().unwrap()
}

fn integers(t: &Tensor) -> Vec<i64> {
    t.to_vec::<i64>().unwrap()
}

/// The error's text with the folder taken out.
fn refusal(plan: &DataPlan, folder: &Path) -> String {
    load(plan)
        .unwrap_err()
        .to_string()
        .replace(&folder.display().to_string(), "DIR")
}

#[test]
fn digits_are_1797_scaled_images_of_ten_classes() {
    let data = load(&plan(DataSource::Digits)).unwrap();
    assert_eq!(data.splits.len(), 1);
    let train = data.split("train").unwrap();
    assert_eq!((train.count, train.classes, train.task), (1797, 10, 0));
    let inputs = train.field("inputs").unwrap();
    assert_eq!(
        (inputs.shape(), inputs.dtype()),
        (&[1797, 1, 8, 8][..], DType::F32)
    );
    let values = floats(inputs);
    // First line of the file: 0,0,5,13,9,1,0,0, ...
    assert_eq!(
        values[..8],
        [
            0.0,
            0.0,
            5.0 / 16.0,
            13.0 / 16.0,
            9.0 / 16.0,
            1.0 / 16.0,
            0.0,
            0.0
        ]
    );
    assert!(values.iter().all(|x| (0.0..=1.0).contains(x)));
    let labels = integers(train.field("targets").unwrap());
    assert_eq!(labels[..3], [0, 1, 2]);
    let counts: Vec<usize> = (0..10)
        .map(|c| labels.iter().filter(|l| **l == c).count())
        .collect();
    // As counted from the file by scikit-learn's documentation: 174 to 183 a class.
    assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
}

#[test]
fn splits_have_rounded_sizes_share_no_sample_and_depend_on_the_split_seed_alone() {
    let mut how = plan(DataSource::Digits);
    (how.test, how.validation) = (0.25, 0.1);
    let data = load(&how).unwrap();
    // 1797 / 4 = 449.25; (1797 - 449) / 10 = 134.8.
    let counts: Vec<(&str, usize)> = data
        .splits
        .iter()
        .map(|s| (s.name.as_str(), s.count))
        .collect();
    assert_eq!(
        counts,
        [("train", 1213), ("validation", 135), ("test", 449)]
    );
    let rows = |data: &Dataset, name: &str| -> Vec<Vec<u32>> {
        let values = floats(data.split(name).unwrap().field("inputs").unwrap());
        values
            .chunks(64)
            .map(|row| row.iter().map(|x| x.to_bits()).collect())
            .collect()
    };
    let mut all: Vec<_> = ["train", "validation", "test"]
        .iter()
        .flat_map(|name| rows(&data, name))
        .collect();
    all.sort();
    let mut whole = rows(&load(&plan(DataSource::Digits)).unwrap(), "train");
    whole.sort();
    assert_eq!(all, whole);
    assert_eq!(rows(&load(&how).unwrap(), "test"), rows(&data, "test"));
    how.split_seed = 2;
    assert_ne!(rows(&load(&how).unwrap(), "test"), rows(&data, "test"));
}

#[test]
fn limits_cut_and_keep_what_a_smaller_limit_keeps() {
    let mut how = plan(DataSource::Digits);
    (how.test, how.train_limit, how.test_limit) = (0.5, Some(100), Some(7));
    let data = load(&how).unwrap();
    assert_eq!((data.splits[0].count, data.splits[1].count), (100, 7));
    let hundred = floats(data.splits[0].field("inputs").unwrap());
    how.train_limit = Some(40);
    let forty = floats(load(&how).unwrap().splits[0].field("inputs").unwrap());
    for row in forty.chunks(64) {
        assert!(hundred.chunks(64).any(|other| other == row));
    }
    how.train_limit = Some(0);
    assert_eq!(
        load(&how).unwrap_err().to_string(),
        "[data] train-limit: no training sample is left of 1797 (7 test, 0 validation, train-limit Some(0)); \
         lower the fractions or raise the limit"
    );
}

#[test]
fn a_fraction_of_one_is_refused() {
    let mut how = plan(DataSource::Digits);
    how.validation = 1.0;
    assert_eq!(
        load(&how).unwrap_err().to_string(),
        "[data] validation: expected a fraction from 0 up to but not including 1, found 1"
    );
}

#[test]
fn normalising_uses_the_training_split_alone() {
    let mut how = plan(DataSource::Digits);
    (how.test, how.normalize) = (0.5, Normalize::Standard);
    let data = load(&how).unwrap();
    let values = floats(data.split("train").unwrap().field("inputs").unwrap());
    let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / values.len() as f64;
    let var = values
        .iter()
        .map(|x| (f64::from(*x) - mean).powi(2))
        .sum::<f64>()
        / values.len() as f64;
    assert!(
        mean.abs() < 1e-6 && (var - 1.0).abs() < 1e-6,
        "{mean} {var}"
    );
    let test = floats(data.split("test").unwrap().field("inputs").unwrap());
    let test_mean = test.iter().map(|x| f64::from(*x)).sum::<f64>() / test.len() as f64;
    assert!(
        test_mean.abs() > 1e-6,
        "the test split must not be centred by itself"
    );
}

#[test]
fn per_feature_scaling_of_a_hand_computed_table() {
    let dir = folder("per-feature");
    let path = dir.join("t.csv");
    std::fs::write(&path, "a,b,y\n1,5,0\n3,5,1\n5,5,0\n").unwrap();
    let mut how = plan(DataSource::Csv {
        path,
        target: "y".into(),
        classes: true,
    });
    how.normalize = Normalize::PerFeature;
    let data = load(&how).unwrap();
    // Mean 3, standard deviation sqrt(8 / 3); the constant column becomes zeros, not NaN.
    let unit = (2.0 / (8f64 / 3.0).sqrt()) as f32;
    assert_eq!(
        floats(data.splits[0].field("inputs").unwrap()),
        [-unit, 0.0, 0.0, 0.0, unit, 0.0]
    );
}

#[test]
fn csv_classes_are_numbered_by_number_or_by_text() {
    let dir = folder("csv");
    let path = dir.join("flowers.csv");
    std::fs::write(
        &path,
        "kind,a,b\nrose, 1.5 ,2\n\"iris\",3,-4e-1\nrose,5,6\n",
    )
    .unwrap();
    let data = load(&plan(DataSource::Csv {
        path,
        target: "kind".into(),
        classes: true,
    }))
    .unwrap();
    let train = &data.splits[0];
    assert_eq!((train.count, train.classes), (3, 2));
    assert_eq!(
        floats(train.field("inputs").unwrap()),
        [1.5, 2.0, 3.0, -0.4, 5.0, 6.0]
    );
    assert_eq!(train.field("inputs").unwrap().shape(), [3, 2]);
    assert_eq!(integers(train.field("targets").unwrap()), [1, 0, 1]);

    let path = dir.join("numbers.csv");
    std::fs::write(&path, "a,y\n0,10\n0,9\n0,-1\n").unwrap();
    let data = load(&plan(DataSource::Csv {
        path: path.clone(),
        target: "y".into(),
        classes: true,
    }))
    .unwrap();
    assert_eq!(
        integers(data.splits[0].field("targets").unwrap()),
        [2, 1, 0]
    );
    let data = load(&plan(DataSource::Csv {
        path,
        target: "y".into(),
        classes: false,
    }))
    .unwrap();
    let targets = data.splits[0].field("targets").unwrap();
    assert_eq!(
        (targets.shape(), floats(targets)),
        (&[3, 1][..], vec![10.0, 9.0, -1.0])
    );
    assert_eq!(data.splits[0].classes, 0);
}

#[test]
fn a_gzipped_csv_is_read_as_a_plain_one() {
    let dir = folder("csv-gz");
    let path = dir.join("t.csv.gz");
    let mut packer =
        flate2::write::GzEncoder::new(std::fs::File::create(&path).unwrap(), Default::default());
    packer.write_all(b"a,y\n1,2\n").unwrap();
    packer.finish().unwrap();
    let data = load(&plan(DataSource::Csv {
        path,
        target: "y".into(),
        classes: false,
    }))
    .unwrap();
    assert_eq!(floats(data.splits[0].field("targets").unwrap()), [2.0]);
}

#[test]
fn malformed_csv_is_refused_with_line_column_and_mend() {
    let dir = folder("csv-bad");
    let path = dir.join("bad.csv");
    for (text, target, classes, expected) in [
        (
            "",
            "y",
            true,
            "`DIR/bad.csv`: the file is empty; expected a header line and one line a sample",
        ),
        (
            "a,y\n",
            "y",
            true,
            "`DIR/bad.csv`: there is a header but no sample below it",
        ),
        (
            "a,price\n1,2\n",
            "prize",
            false,
            "`DIR/bad.csv`: no column `prize` to predict; the header has `a`, `price`; did you mean `price`?",
        ),
        (
            "y\n1\n",
            "y",
            true,
            "`DIR/bad.csv`: `y` is the only column; expected at least one column of inputs",
        ),
        (
            "a,b,a,y\n1,1,1,1\n",
            "y",
            true,
            "`DIR/bad.csv`: line 1: column `a` stands twice in the header; rename one",
        ),
        (
            "a,y\n1,x\n2,y,3\n",
            "y",
            true,
            "`DIR/bad.csv`: line 3: 3 fields, the header has 2; a comma inside a field needs quotes around the field",
        ),
        (
            "a,y\n1,x\nred,x\n",
            "y",
            true,
            "`DIR/bad.csv` line 3, column `a`: `red` is not a number; leave the column out or write its values as \
             numbers",
        ),
        (
            "a,y\n1,x\n,x\n",
            "y",
            true,
            "`DIR/bad.csv` line 3, column `a`: the field is empty; fill in a number or leave the line out",
        ),
        (
            "a,y\nNaN,x\n",
            "y",
            true,
            "`DIR/bad.csv` line 2, column `a`: `NaN` is not finite; fill in a number or leave the line out",
        ),
        (
            "a,y\n1,high\n",
            "y",
            false,
            "`DIR/bad.csv` line 2, column `y`: `high` is not a number; for text labels set classes = true",
        ),
        (
            "a,y\n1,\n",
            "y",
            true,
            "`DIR/bad.csv` line 2, column `y`: the class is empty; fill it in or leave the line out",
        ),
    ] {
        std::fs::write(&path, text).unwrap();
        let how = plan(DataSource::Csv {
            path: path.clone(),
            target: target.into(),
            classes,
        });
        assert_eq!(refusal(&how, &dir), expected);
    }
    let how = plan(DataSource::Csv {
        path: dir.join("none.csv"),
        target: "y".into(),
        classes: true,
    });
    assert!(refusal(&how, &dir).starts_with("cannot read `DIR/none.csv`: No such file"));
}

fn idx_images(count: u32, bytes: &[u8]) -> Vec<u8> {
    let header = [0x803u32, count, 2, 3].map(u32::to_be_bytes).concat();
    [&header, bytes].concat()
}

fn idx_labels(labels: &[u8]) -> Vec<u8> {
    let header = [0x801u32, labels.len() as u32]
        .map(u32::to_be_bytes)
        .concat();
    [&header, labels].concat()
}

/// Two training images of 2x3 and one test image; the training images gzipped.
fn write_idx(dir: &Path) {
    let path = dir.join("train-images-idx3-ubyte.gz");
    let mut packer =
        flate2::write::GzEncoder::new(std::fs::File::create(path).unwrap(), Default::default());
    packer
        .write_all(&idx_images(
            2,
            &[0, 51, 102, 153, 204, 255, 1, 2, 3, 4, 5, 6],
        ))
        .unwrap();
    packer.finish().unwrap();
    std::fs::write(dir.join("train-labels-idx1-ubyte"), idx_labels(&[2, 0])).unwrap();
    std::fs::write(dir.join("t10k-images-idx3-ubyte"), idx_images(1, &[255; 6])).unwrap();
    std::fs::write(dir.join("t10k-labels-idx1-ubyte"), idx_labels(&[1])).unwrap();
}

#[test]
fn idx_folders_keep_their_own_test_split() {
    let dir = folder("idx");
    write_idx(&dir);
    let mut how = plan(DataSource::Idx { path: dir });
    how.test = 0.5;
    let data = load(&how).unwrap();
    let train = data.split("train").unwrap();
    assert_eq!(train.field("inputs").unwrap().shape(), [2, 1, 2, 3]);
    assert_eq!(
        floats(train.field("inputs").unwrap())[..6],
        [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    );
    assert_eq!(integers(train.field("targets").unwrap()), [2, 0]);
    assert_eq!(train.classes, 3);
    let test = data.split("test").unwrap();
    assert_eq!(
        (test.count, floats(test.field("inputs").unwrap())),
        (1, vec![1.0; 6])
    );
}

#[test]
fn missing_idx_files_are_named_with_the_package_that_has_them() {
    let dir = folder("idx-missing");
    std::fs::write(dir.join("train-labels-idx1-ubyte"), idx_labels(&[0])).unwrap();
    assert_eq!(
        refusal(&plan(DataSource::Idx { path: dir.clone() }), &dir),
        "folder `DIR` has no `train-images-idx3-ubyte`, `t10k-images-idx3-ubyte`, `t10k-labels-idx1-ubyte`; \
         expected `train-images-idx3-ubyte`, `train-labels-idx1-ubyte`, `t10k-images-idx3-ubyte` and \
         `t10k-labels-idx1-ubyte`, each plain or with `.gz`. Fashion-MNIST in this form: `apt-get install \
         dataset-fashion-mnist` puts it at /usr/share/datasets/fashion-mnist"
    );
}

#[test]
fn malformed_idx_is_refused_with_file_and_mend() {
    let name = "t10k-images-idx3-ubyte";
    for (file, content, expected) in [
        (
            name,
            vec![0, 0],
            "`DIR/t10k-images-idx3-ubyte`: the file ends too early; download it again",
        ),
        (
            name,
            idx_labels(&[1]),
            "`DIR/t10k-images-idx3-ubyte`: magic number 0x00000801, expected 0x00000803 (IDX images, unsigned \
             bytes, 3 axes); is it another kind of file under this name?",
        ),
        (
            name,
            idx_images(1, &[0; 5]),
            "`DIR/t10k-images-idx3-ubyte`: the header says [1, 2, 3], that is 6 bytes; the file holds 5; download \
             it again",
        ),
        (
            name,
            idx_images(1, &[0; 9]),
            "`DIR/t10k-images-idx3-ubyte`: the header says [1, 2, 3], that is 6 bytes; the file holds more; \
             download it again",
        ),
        (
            name,
            idx_images(u32::MAX, &[0; 5]),
            "`DIR/t10k-images-idx3-ubyte`: the header says [4294967295, 2, 3], that is 25769803770 bytes; the file \
             holds 5; download it again",
        ),
        (
            name,
            idx_images(0, &[]),
            "`DIR/t10k-images-idx3-ubyte`: sizes [0, 2, 3]: there is nothing in it",
        ),
        (
            "t10k-labels-idx1-ubyte",
            idx_labels(&[1, 1]),
            "`DIR/t10k-labels-idx1-ubyte`: 2 labels for 1 images in `DIR/t10k-images-idx3-ubyte`; take both files \
             from one download",
        ),
        (
            "t10k-labels-idx1-ubyte",
            idx_labels(&[7]),
            "`DIR/t10k-labels-idx1-ubyte`: label 1 is class 7; training has classes 0 to 2",
        ),
    ] {
        let dir = folder("idx-bad");
        write_idx(&dir);
        std::fs::write(dir.join(file), content).unwrap();
        assert_eq!(
            refusal(&plan(DataSource::Idx { path: dir.clone() }), &dir),
            expected
        );
    }
    let dir = folder("idx-cut");
    write_idx(&dir);
    let packed = std::fs::read(dir.join("train-images-idx3-ubyte.gz")).unwrap();
    std::fs::write(
        dir.join("train-images-idx3-ubyte.gz"),
        &packed[..packed.len() - 9],
    )
    .unwrap();
    assert_eq!(
        refusal(&plan(DataSource::Idx { path: dir.clone() }), &dir),
        "`DIR/train-images-idx3-ubyte.gz`: the file ends too early; download it again"
    );
}

/// An NPY file as numpy.save writes it, header padded to 64 bytes.
fn npy(version: u8, descr: &str, fortran: &str, shape: &str, data: &[u8]) -> Vec<u8> {
    let header =
        format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n");
    let mut file = vec![0x93, b'N', b'U', b'M', b'P', b'Y', version, 0];
    if version == 1 {
        file.extend((header.len() as u16).to_le_bytes());
    } else {
        file.extend((header.len() as u32).to_le_bytes());
    }
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

fn bytes_of<T: Copy, const N: usize>(values: &[T], to: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|value| to(*value)).collect()
}

#[test]
fn npy_of_every_version_and_element_type() {
    let dir = folder("npy");
    let (x, y) = (dir.join("x.npy"), dir.join("y.npy"));
    let how = plan(DataSource::Npy {
        inputs: x.clone(),
        targets: y.clone(),
    });

    std::fs::write(
        &x,
        npy(
            1,
            "<f4",
            "False",
            "(2, 2)",
            &bytes_of(&[1f32, 2.0, 3.0, 4.5], f32::to_le_bytes),
        ),
    )
    .unwrap();
    std::fs::write(
        &y,
        npy(
            2,
            "<i8",
            "False",
            "(2,)",
            &bytes_of(&[3i64, 0], i64::to_le_bytes),
        ),
    )
    .unwrap();
    let data = load(&how).unwrap();
    assert_eq!(
        floats(data.splits[0].field("inputs").unwrap()),
        [1.0, 2.0, 3.0, 4.5]
    );
    assert_eq!(integers(data.splits[0].field("targets").unwrap()), [3, 0]);
    assert_eq!(data.splits[0].classes, 4);

    std::fs::write(&x, npy(3, "|u1", "False", "(2, 1, 2)", &[0, 255, 7, 8])).unwrap();
    std::fs::write(
        &y,
        npy(
            1,
            "<f8",
            "False",
            "(2, 2)",
            &bytes_of(&[0.5f64, 1.5, 2.5, -1.0], f64::to_le_bytes),
        ),
    )
    .unwrap();
    let data = load(&how).unwrap();
    assert_eq!(data.splits[0].field("inputs").unwrap().shape(), [2, 1, 2]);
    assert_eq!(
        floats(data.splits[0].field("inputs").unwrap()),
        [0.0, 255.0, 7.0, 8.0]
    );
    assert_eq!(data.splits[0].field("targets").unwrap().shape(), [2, 2]);
    assert_eq!(
        floats(data.splits[0].field("targets").unwrap()),
        [0.5, 1.5, 2.5, -1.0]
    );

    std::fs::write(
        &x,
        npy(
            1,
            "<i4",
            "False",
            "(2, 3)",
            &bytes_of(&[1i32, 2, 3, 4, 5, 6], i32::to_le_bytes),
        ),
    )
    .unwrap();
    let mut how = how;
    assert_eq!(
        integers(load(&how).unwrap().splits[0].field("inputs").unwrap()),
        [1, 2, 3, 4, 5, 6]
    );
    how.normalize = Normalize::Standard;
    assert_eq!(
        load(&how).unwrap_err().to_string(),
        "[data] normalize: whole-number inputs are indices and are not scaled; set normalize = \"none\", or save \
         the inputs as f32"
    );
}

#[test]
fn malformed_npy_is_refused_with_file_and_mend() {
    let dir = folder("npy-bad");
    let (x, y) = (dir.join("x.npy"), dir.join("y.npy"));
    let how = plan(DataSource::Npy {
        inputs: x.clone(),
        targets: y.clone(),
    });
    let labels = npy(1, "|u1", "False", "(2,)", &[0, 1]);
    let infinite = bytes_of(&[0f64, 1e300], f64::to_le_bytes);
    let mut version = npy(1, "<f4", "False", "(2, 1)", &[0; 8]);
    version[6] = 9;
    for (content, expected) in [
        (
            b"PK\x03\x04 not numpy".to_vec(),
            "`DIR/x.npy`: not an NPY file; write it with numpy.save",
        ),
        (
            b"\x93NUM".to_vec(),
            "`DIR/x.npy`: the file ends inside its header",
        ),
        (version, "`DIR/x.npy`: NPY version 9, expected 1, 2 or 3"),
        (
            npy(1, "<f4", "True", "(2, 1)", &[0; 8]),
            "`DIR/x.npy`: stored in Fortran order; write it with numpy.save(path, numpy.ascontiguousarray(array))",
        ),
        (
            npy(1, ">f4", "False", "(2, 1)", &[0; 8]),
            "`DIR/x.npy`: dtype `>f4`, expected little-endian f4, f8, i4, i8, or u1; write it with \
             numpy.save(path, array.astype(\"<f4\"))",
        ),
        (
            npy(1, "<f4", "False", "(2, 1)", &[0; 7]),
            "`DIR/x.npy`: the header says shape [2, 1] of `<f4`, that is 8 bytes; the file holds 7",
        ),
        (
            npy(1, "<f4", "False", "(2, 18446744073709551615)", &[0; 8]),
            "`DIR/x.npy`: shape [2, 18446744073709551615] is more than a computer can hold",
        ),
        (
            npy(1, "<f4", "False", "(2,)", &[0; 8]),
            "`DIR/x.npy`: shape [2], expected [samples, ...] with at least two axes",
        ),
        (
            npy(1, "<f8", "False", "(2, 1)", &infinite),
            "`DIR/x.npy`: element 1 (row-major) is inf as f32; replace it or leave its sample out",
        ),
        (
            npy(1, "<f4", "False", "(2, 0)", &[]),
            "`DIR/x.npy`: shape [2, 0]: there is nothing in it",
        ),
        (
            npy(1, "<f4", "False", "(3, 1)", &[0; 12]),
            "`DIR/y.npy`: shape [2], but `DIR/x.npy` has shape [3, 1]; the first axes must be equal",
        ),
    ] {
        std::fs::write(&x, content).unwrap();
        std::fs::write(&y, &labels).unwrap();
        assert_eq!(refusal(&how, &dir), expected);
    }
    std::fs::write(&x, npy(1, "<f4", "False", "(2, 1)", &[0; 8])).unwrap();
    std::fs::write(
        &y,
        npy(
            1,
            "<i8",
            "False",
            "(2,)",
            &bytes_of(&[0i64, -1], i64::to_le_bytes),
        ),
    )
    .unwrap();
    assert_eq!(
        refusal(&how, &dir),
        "`DIR/y.npy`: element 1 is -1; classes are numbered from 0"
    );
}

/// `count` samples with inputs [count, 2] = (i, 10 i) and targets i.
fn counted(count: usize) -> Dataset {
    let inputs = (0..count)
        .flat_map(|i| [i as f32, 10.0 * i as f32])
        .collect::<Vec<_>>();
    let fields = vec![
        (
            "inputs".into(),
            Tensor::from_vec(inputs, &[count, 2]).unwrap(),
        ),
        (
            "targets".into(),
            Tensor::from_vec((0..count as i64).collect::<Vec<_>>(), &[count]).unwrap(),
        ),
    ];
    let split = Split {
        name: "train".into(),
        count,
        fields,
        classes: count as u32,
        task: 0,
        added: false,
    };
    Dataset {
        splits: vec![split],
        train_on: None,
    }
}

fn stream(order: Order, size: u32, key: u64) -> StreamId {
    StreamId {
        plugin: "trainer".into(),
        split: "train".into(),
        fields: vec!["inputs".into(), "targets".into()],
        size,
        order,
        key: vec![key],
    }
}

/// The sample numbers of the next `calls` answers; an end of epoch is an empty list and a -1.
fn drain(streams: &mut Streams, id: &StreamId, data: &Dataset, calls: usize) -> Vec<Vec<i64>> {
    (0..calls)
        .map(|_| match streams.next(id, data, 42).unwrap() {
            Some(batch) => integers(&batch.index),
            None => vec![-1],
        })
        .collect()
}

#[test]
fn a_sequential_stream_gives_all_samples_then_one_end_then_again() {
    let data = counted(5);
    let mut streams = Streams::new();
    let id = stream(Order::Sequential, 2, 0);
    streams.open(id.clone());
    let seen = drain(&mut streams, &id, &data, 8);
    let epoch = [vec![0, 1], vec![2, 3], vec![4], vec![-1]];
    assert_eq!(seen[..4], epoch);
    assert_eq!(seen[4..], epoch);
    let batch = streams.next(&id, &data, 42).unwrap().unwrap();
    assert_eq!(batch.count, 2);
    assert_eq!(batch.fields[0].0, "inputs");
    assert_eq!(floats(&batch.fields[0].1), [0.0, 0.0, 1.0, 10.0]);
    assert_eq!(integers(&batch.fields[1].1), [0, 1]);
}

#[test]
fn a_shuffled_stream_gives_each_sample_once_an_epoch_in_a_new_order() {
    let data = counted(50);
    let mut streams = Streams::new();
    let id = stream(Order::Shuffled, 8, 0);
    let epochs: Vec<Vec<i64>> = (0..3)
        .map(|_| {
            let batches = drain(&mut streams, &id, &data, 8);
            assert_eq!(batches[7], [-1]);
            batches[..7].concat()
        })
        .collect();
    for epoch in &epochs {
        let mut sorted = epoch.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
    }
    assert_ne!(epochs[0], epochs[1]);
    assert_ne!(epochs[1], epochs[2]);
    let batch = streams.next(&id, &data, 42).unwrap().unwrap();
    for (row, index) in integers(&batch.index).into_iter().enumerate() {
        assert_eq!(
            floats(&batch.fields[0].1)[2 * row..][..2],
            [index as f32, 10.0 * index as f32]
        );
        assert_eq!(integers(&batch.fields[1].1)[row], index);
    }
}

#[test]
fn other_keys_seeds_plugins_and_sizes_are_other_orders() {
    let data = counted(64);
    let base = stream(Order::Shuffled, 64, 0);
    let first = |id: &StreamId, seed| {
        integers(&Streams::new().next(id, &data, seed).unwrap().unwrap().index)
    };
    let other_plugin = StreamId {
        plugin: "pruner".into(),
        ..base.clone()
    };
    let other_key = StreamId {
        key: vec![0, 0],
        ..base.clone()
    };
    let reference = first(&base, 1);
    assert_eq!(first(&base, 1), reference);
    for order in [
        first(&base, 2),
        first(&other_plugin, 1),
        first(&other_key, 1),
    ] {
        assert_ne!(order, reference);
    }
}

#[test]
fn a_resumed_stream_equals_an_uninterrupted_one_at_every_point() {
    let data = counted(37);
    for order in [Order::Sequential, Order::Shuffled, Order::Poisson] {
        let id = stream(order, 5, 3);
        let whole = drain(&mut Streams::new(), &id, &data, 40);
        for stop in 0..40 {
            let mut before = Streams::new();
            drain(&mut before, &id, &data, stop);
            let saved = serde_json::to_string(&before).unwrap();
            let mut after: Streams = serde_json::from_str(&saved).unwrap();
            assert_eq!(after, before);
            after.open(id.clone());
            assert_eq!(
                drain(&mut after, &id, &data, 40 - stop),
                whole[stop..],
                "{order:?} stopped at {stop}"
            );
        }
    }
}

#[test]
fn rewinding_positions_repeats_the_batches() {
    let data = counted(20);
    let id = stream(Order::Shuffled, 3, 0);
    let mut streams = Streams::new();
    drain(&mut streams, &id, &data, 4);
    let kept = streams.clone();
    let first = drain(&mut streams, &id, &data, 20);
    streams = kept;
    assert_eq!(drain(&mut streams, &id, &data, 20), first);
}

#[test]
fn poisson_batches_have_the_expected_size_on_average_and_differ() {
    let data = counted(200);
    let mut streams = Streams::new();
    let id = stream(Order::Poisson, 20, 0);
    let answers = drain(&mut streams, &id, &data, 1100);
    // 10 steps an epoch, then its end.
    assert_eq!(answers.iter().filter(|batch| **batch == [-1]).count(), 100);
    assert!(
        answers
            .iter()
            .skip(10)
            .step_by(11)
            .all(|batch| *batch == [-1])
    );
    let sizes: Vec<usize> = answers
        .iter()
        .filter(|batch| **batch != [-1])
        .map(Vec::len)
        .collect();
    let mean = sizes.iter().sum::<usize>() as f64 / sizes.len() as f64;
    // The standard error of the mean of 1,000 batches is sqrt(200 * 0.1 * 0.9 / 1000) = 0.13.
    assert!((mean - 20.0).abs() < 0.7, "{mean}");
    assert!(sizes.iter().any(|size| *size < 15) && sizes.iter().any(|size| *size > 25));
    assert!(
        answers
            .iter()
            .all(|batch| batch.windows(2).all(|pair| pair[0] < pair[1]))
    );
}

#[test]
fn a_poisson_batch_may_be_empty_and_keeps_its_shape() {
    let data = counted(4);
    let mut streams = Streams::new();
    let id = stream(Order::Poisson, 1, 0);
    let empty = (0..200)
        .filter_map(|_| streams.next(&id, &data, 1).unwrap())
        .find(|batch| batch.count == 0)
        .expect("a batch with probability 0.32 of being empty");
    assert_eq!(empty.fields[0].1.shape(), [0, 2]);
    assert_eq!(empty.index.shape(), [0]);
}

#[test]
fn wrong_streams_and_splits_are_refused_by_name() {
    let data = counted(3);
    let mut streams = Streams::new();
    let mut say = |id: StreamId| streams.next(&id, &data, 0).unwrap_err().to_string();
    let base = stream(Order::Shuffled, 2, 0);
    assert_eq!(
        say(StreamId {
            split: "tset".into(),
            ..base.clone()
        }),
        "no split is named `tset`; the data set has `train`"
    );
    assert_eq!(
        say(StreamId {
            fields: vec!["labels".into()],
            ..base.clone()
        }),
        "split `train` has no field `labels`; it has `inputs`, `targets`"
    );
    assert_eq!(
        say(StreamId { size: 0, ..base }),
        "batches of split `train`: size is 0; expected at least 1"
    );
}

#[test]
fn an_added_split_is_checked_and_batched_like_any_other() {
    let mut data = counted(4);
    let inputs = Tensor::zeros(&[3, 2], DType::F32).unwrap();
    let targets = Tensor::from_vec(vec![1i64, 0, 2], &[3]).unwrap();
    data.add_split(
        "poisoned",
        vec![
            ("inputs".into(), inputs.clone()),
            ("targets".into(), targets),
        ],
    )
    .unwrap();
    let added = data.split("poisoned").unwrap();
    assert_eq!((added.count, added.classes, added.added), (3, 4, true));
    let again = data
        .add_split("poisoned", vec![("inputs".into(), inputs.clone())])
        .unwrap_err();
    assert_eq!(
        again.to_string(),
        "add-split `poisoned`: a split of that name exists already; choose another name"
    );
    let uneven = Tensor::zeros(&[2], DType::F32).unwrap();
    let error = data
        .add_split("uneven", vec![("a".into(), inputs), ("b".into(), uneven)])
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "add-split `uneven`: field `b` has shape [2]; field `a` has 3 samples, so its first axis must be 3"
    );
    assert_eq!(
        data.add_split("none", Vec::new()).unwrap_err().to_string(),
        "add-split `none`: a split needs at least one field, with the sample as its first axis"
    );
}

/// Every file with one byte changed or its end cut off is either read or refused; none panics.
#[test]
fn damaged_files_never_panic() {
    let dir = folder("damage");
    write_idx(&dir);
    let images = std::fs::read(dir.join("t10k-images-idx3-ubyte")).unwrap();
    let packed = std::fs::read(dir.join("train-images-idx3-ubyte.gz")).unwrap();
    let (x, y, c) = (dir.join("x.npy"), dir.join("y.npy"), dir.join("c.csv"));
    let array = npy(
        1,
        "<f4",
        "False",
        "(2, 2)",
        &bytes_of(&[1f32, 2.0, 3.0, 4.0], f32::to_le_bytes),
    );
    std::fs::write(&x, &array).unwrap();
    std::fs::write(&y, npy(1, "|u1", "False", "(2,)", &[0, 1])).unwrap();
    let table = b"a,b,y\n1,2,\"red\"\n3,4,blue\n".to_vec();
    let idx = plan(DataSource::Idx { path: dir.clone() });
    let npy_plan = plan(DataSource::Npy {
        inputs: x.clone(),
        targets: y,
    });
    let csv_plan = plan(DataSource::Csv {
        path: c.clone(),
        target: "y".into(),
        classes: true,
    });
    for (path, content, plan) in [
        (dir.join("t10k-images-idx3-ubyte"), images, &idx),
        (dir.join("train-images-idx3-ubyte.gz"), packed, &idx),
        (x, array, &npy_plan),
        (c, table, &csv_plan),
    ] {
        for at in 0..content.len() {
            for change in [0x01u8, 0x80, 0xff] {
                let mut damaged = content.clone();
                damaged[at] ^= change;
                std::fs::write(&path, damaged).unwrap();
                let _ = load(plan).map_err(|error| assert!(!error.to_string().is_empty()));
            }
            std::fs::write(&path, &content[..at]).unwrap();
            assert!(
                load(plan).is_err() || plan == &csv_plan,
                "{} cut at {at}",
                path.display()
            );
        }
        std::fs::write(&path, &content).unwrap();
        load(plan).unwrap();
    }
}

/// Fashion-MNIST itself, where `ESPALIER_FASHION_MNIST` names its folder.
#[test]
fn fashion_mnist_has_its_published_counts() {
    let Some(path) = std::env::var_os("ESPALIER_FASHION_MNIST").map(PathBuf::from) else {
        eprintln!("skipped: ESPALIER_FASHION_MNIST does not name a folder");
        return;
    };
    let mut how = plan(DataSource::Idx { path });
    (how.validation, how.normalize) = (0.1, Normalize::Standard);
    let data = load(&how).unwrap();
    let counts: Vec<usize> = data.splits.iter().map(|split| split.count).collect();
    assert_eq!(counts, [54_000, 6_000, 10_000]);
    let test = data.split("test").unwrap();
    assert_eq!(
        (test.classes, test.field("inputs").unwrap().shape()),
        (10, &[10_000, 1, 28, 28][..])
    );
    let labels = integers(test.field("targets").unwrap());
    assert!((0..10).all(|class| labels.iter().filter(|label| **label == class).count() == 1000));
}

#[test]
fn a_split_pays_for_the_samples_of_a_view() {
    let one = Tensor::full(&[1, 4], 1.0, DType::F32).unwrap();
    let view = espalier_tensor::ops::broadcast_to(&one, &[1000, 4]).unwrap();
    let account = espalier_tensor::account::Account::new(Some(1000));
    let scope = account.enter();
    let error = Dataset::default()
        .add_split("view", vec![("inputs".into(), view)])
        .unwrap_err();
    drop(scope);
    let Error::Tensor {
        source: espalier_tensor::Error::Budget { asked, .. },
        ..
    } = error
    else {
        panic!("{error}");
    };
    assert_eq!(asked, 16_000);
}

#[test]
fn a_split_of_nothing_is_bounded_too() {
    let nothing = Tensor::full(&[1 << 25, 0], 1.0, DType::F32).unwrap();
    let error = Dataset::default().add_split("nothing", vec![("inputs".into(), nothing)]);
    assert_eq!(
        error.unwrap_err().to_string(),
        "add-split `nothing`: 33554432 samples; at most 16777216"
    );
}

#[test]
fn a_text_becomes_windows_whose_targets_are_the_next_bytes() {
    let dir = folder("text");
    let file = dir.join("a.txt");
    std::fs::write(&file, b"abcdefghijkl").unwrap();
    let mut how = plan(DataSource::Text {
        path: file.clone(),
        context: 2,
    });
    // 11 bytes have a next one: 5 windows. The last is tested, the one before it validates.
    (how.test, how.validation) = (0.2, 0.25);
    let data = load(&how).unwrap();
    let bytes = |text: &str| text.bytes().map(i64::from).collect::<Vec<_>>();
    let split = |name: &str| {
        let split = data.split(name).unwrap();
        let field = |name: &str| integers(split.field(name).unwrap());
        (split.classes, field("inputs"), field("targets"))
    };
    assert_eq!(split("train"), (256, bytes("abcdef"), bytes("bcdefg")));
    assert_eq!(split("validation"), (256, bytes("gh"), bytes("hi")));
    assert_eq!(split("test"), (256, bytes("ij"), bytes("jk")));
    let targets = data.splits[0].field("targets").unwrap();
    assert_eq!(targets.shape(), [3, 2]);

    how.train_limit = Some(1);
    let data = load(&how).unwrap();
    let inputs = integers(data.split("train").unwrap().field("inputs").unwrap());
    assert_eq!(inputs, bytes("ab"));

    how.source = DataSource::Text {
        path: file,
        context: 12,
    };
    let error = load(&how).unwrap_err().to_string();
    assert!(
        error.contains("12 bytes of text, expected at least context + 1 = 13"),
        "{error}"
    );
}
