//! Graphs: one graph whose nodes are the samples, some with a known class. Read from two CSV files, or drawn from a
//! stochastic block model.
//!
//! The splits `train`, `validation` and `test` hold nodes: `inputs` (f32 [count, features]), `nodes` (i64 [count], the
//! node's number) and `targets` (i64 [count]). The split `nodes` holds all of them in order, without targets, and the
//! split `edges` holds `nodes` (i64 [count, 2]), each undirected edge once. So a trainer sees the whole graph but only
//! the labels of its splits.

use std::collections::BTreeSet;
use std::path::Path;

use espalier_tensor::random::{self, Key};
use espalier_tensor::{DType, Tensor};

use super::{
    Dataset, Error, Inputs, Result, Split, Table, Targets, Values, csv_file, inputs_of, make_split,
    open, permutation,
};
use crate::plan::{BlockModel, Labelled};

/// Most edges: an edge is 16 bytes in the host, and every trainer reads all of them.
const MOST_EDGES: usize = 1 << 24;

/// Nodes and edges of two CSV files: one line a node, one column its class, all others numbers; one line an edge with
/// the numbers of its two nodes, counted from 0 in the order of the first file.
pub(super) fn read(
    nodes: &Path,
    edges: &Path,
    target: &str,
    labelled: &Labelled,
    seed: u64,
) -> Result<Dataset> {
    let table = csv_file::read(nodes, target, true)?.train;
    let edges = read_edges(edges, nodes, table.count)?;
    dataset(table, &edges, labelled, seed)
}

fn read_edges(path: &Path, nodes: &Path, count: usize) -> Result<Vec<(usize, usize)>> {
    let wrong = |problem: String| Error::Format {
        path: path.into(),
        problem,
    };
    let mut reader = csv::ReaderBuilder::new()
        .flexible(true)
        .trim(csv::Trim::All)
        .from_reader(open(path)?);
    let mut edges = BTreeSet::new();
    for record in reader.records() {
        let record = record.map_err(|error| wrong(error.to_string()))?;
        let line = record.position().map_or(0, csv::Position::line);
        if record.len() != 2 {
            return Err(wrong(format!(
                "line {line}: {} fields, expected two: the numbers of the nodes that an edge joins",
                record.len()
            )));
        }
        let mut ends = [0; 2];
        for (end, text) in ends.iter_mut().zip(&record) {
            *end = match text.parse::<usize>() {
                Ok(node) if node < count => node,
                Ok(node) => {
                    return Err(wrong(format!(
                        "line {line}: there is no node {node}; `{}` has {count}, counted from 0",
                        nodes.display()
                    )));
                }
                Err(_) => {
                    return Err(wrong(format!(
                        "line {line}: `{text}` is not the number of a node"
                    )));
                }
            };
        }
        let (a, b) = (ends[0].min(ends[1]), ends[0].max(ends[1]));
        // An edge given in both directions is one edge; a loop adds nothing that a method does not add itself.
        if a != b {
            edges.insert((a, b));
        }
        if edges.len() > MOST_EDGES {
            return Err(wrong(format!("more than {MOST_EDGES} edges")));
        }
    }
    if edges.is_empty() {
        return Err(wrong("there is no edge below the header".into()));
    }
    Ok(edges.into_iter().collect())
}

/// A graph drawn from a stochastic block model: nodes of one class are joined with probability `p_in`, others with
/// `p_out`; the features of a node are its class's centre, of norm `radius` in a random direction, plus standard normal
/// noise. Depends on the seed of the split alone.
pub(super) fn block_model(model: &BlockModel, labelled: &Labelled, seed: u64) -> Result<Dataset> {
    let classes = model.classes as usize;
    let count = classes * model.nodes_per_class as usize;
    let features = model.features as usize;
    if !(2..=1 << 14).contains(&count) {
        return Err(Error::Plan {
            field: "nodes-per-class",
            problem: format!(
                "{classes} classes of {} nodes are {count} nodes, expected 2 to {}",
                model.nodes_per_class,
                1 << 14
            ),
        });
    }
    // The third number sets these draws apart from every other use of the generator.
    let key = |stream: u64| Key::new(&[seed, stream, 0x5342_4d00_0000_0001]);
    let normals = |stream: u64, n: usize| -> Result<Vec<f64>> {
        random::normal(&key(stream), &[n], DType::F64)
            .and_then(|t| t.to_vec())
            .map_err(|source| Error::Tensor {
                doing: "drawing a graph".into(),
                source,
            })
    };
    let mut centres = normals(0, classes * features)?;
    for centre in centres.chunks_exact_mut(features.max(1)) {
        let norm = centre.iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
        centre.iter_mut().for_each(|x| *x *= model.radius / norm);
    }
    let noise = normals(1, count * features)?;
    let class_of = |node: usize| node / model.nodes_per_class as usize;
    let mut inputs = Vec::with_capacity(count * features);
    for (node, noise) in noise.chunks_exact(features.max(1)).enumerate() {
        let centre = &centres[class_of(node) * features..][..features];
        inputs.extend(centre.iter().zip(noise).map(|(c, n)| (c + n) as f32));
    }
    let mut edges = Vec::new();
    for a in 0..count {
        let chances = random::bits(
            &Key::new(&[seed, 2 + a as u64, 0x5342_4d00_0000_0002]),
            count - a - 1,
        );
        for (b, bits) in (a + 1..count).zip(chances) {
            let p = match class_of(a) == class_of(b) {
                true => model.p_in,
                false => model.p_out,
            };
            if (bits >> 11) as f64 / ((1u64 << 53) as f64) < p {
                edges.push((a, b));
            }
        }
    }
    let table = Table {
        count,
        shape: vec![features],
        inputs: Values::Floats(inputs),
        targets: Targets::Classes {
            labels: (0..count).map(|node| class_of(node) as i64).collect(),
            classes: model.classes,
        },
    };
    dataset(table, &edges, labelled, seed)
}

/// The splits: of each class so many nodes for training and validation, drawn by the seed; all others are the test.
fn dataset(
    table: Table,
    edges: &[(usize, usize)],
    labelled: &Labelled,
    seed: u64,
) -> Result<Dataset> {
    let Targets::Classes { labels, classes } = &table.targets else {
        return Err(Error::Plan {
            field: "target",
            problem: "a node's target is its class".into(),
        });
    };
    let (mut train, mut validation, mut test) = (Vec::new(), Vec::new(), Vec::new());
    let wanted = (labelled.train as usize, labelled.validation as usize);
    for class in 0..i64::from(*classes) {
        let members: Vec<usize> = permutation(table.count, seed, 2)
            .into_iter()
            .filter(|&node| labels[node] == class)
            .collect();
        if members.len() < wanted.0 + wanted.1 {
            return Err(Error::Plan {
                field: "train-per-class",
                problem: format!(
                    "class {class} has {} nodes, fewer than {} for training and {} for validation",
                    members.len(),
                    wanted.0,
                    wanted.1
                ),
            });
        }
        train.extend(&members[..wanted.0]);
        validation.extend(&members[wanted.0..wanted.0 + wanted.1]);
        test.extend(&members[wanted.0 + wanted.1..]);
    }
    let fail = |source| Error::Tensor {
        doing: "making the splits of a graph".into(),
        source,
    };
    let mut splits = Vec::new();
    for (name, mut rows) in [("train", train), ("validation", validation), ("test", test)] {
        if rows.is_empty() {
            continue;
        }
        rows.sort_unstable();
        let mut split = make_split(name, &table, &rows, inputs_of(&table, &rows), &None)?;
        let ids: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let ids = Tensor::from_vec(ids, &[rows.len()]).map_err(fail)?;
        split.fields.insert(1, ("nodes".into(), ids));
        splits.push(split);
    }
    let bare = |name: &str, count: usize, field: &str, t: Tensor| Split {
        name: name.into(),
        count,
        fields: vec![(field.to_string(), t)],
        classes: 0,
        task: 0,
        added: false,
    };
    let all: Vec<usize> = (0..table.count).collect();
    let inputs = match inputs_of(&table, &all) {
        Inputs::Floats(floats) => Tensor::from_vec(floats, &[table.count, table.width()]),
        Inputs::Integers(integers) => Tensor::from_vec(integers, &[table.count, table.width()]),
    };
    splits.push(bare("nodes", table.count, "inputs", inputs.map_err(fail)?));
    let ends: Vec<i64> = edges
        .iter()
        .flat_map(|&(a, b)| [a as i64, b as i64])
        .collect();
    let ends = Tensor::from_vec(ends, &[edges.len(), 2]).map_err(fail)?;
    splits.push(bare("edges", edges.len(), "nodes", ends));
    Ok(Dataset {
        splits,
        train_on: None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn integers(split: &Split, field: &str) -> Vec<i64> {
        split.field(field).unwrap().to_vec().unwrap()
    }

    fn blocks() -> (BlockModel, Labelled) {
        let model = BlockModel {
            classes: 3,
            nodes_per_class: 100,
            p_in: 0.1,
            p_out: 0.01,
            features: 16,
            radius: 1.2,
        };
        let labelled = Labelled {
            train: 10,
            validation: 20,
        };
        (model, labelled)
    }

    #[test]
    fn a_block_model_has_its_probabilities_and_splits_that_share_no_node() {
        let (model, labelled) = blocks();
        let data = block_model(&model, &labelled, 0).unwrap();
        let counts: Vec<(&str, usize)> = data.splits.iter().map(|s| (&*s.name, s.count)).collect();
        assert_eq!(
            counts[..4],
            [
                ("train", 30),
                ("validation", 60),
                ("test", 210),
                ("nodes", 300)
            ]
        );
        let mut nodes: Vec<i64> = Vec::new();
        for split in &data.splits[..3] {
            let ids = integers(split, "nodes");
            let targets = integers(split, "targets");
            assert!(
                ids.iter()
                    .zip(&targets)
                    .all(|(node, class)| node / 100 == *class)
            );
            nodes.extend(ids);
        }
        nodes.sort_unstable();
        assert_eq!(nodes, (0..300).collect::<Vec<i64>>());
        assert!(data.split("nodes").unwrap().field("targets").is_err());
        let ends = integers(data.split("edges").unwrap(), "nodes");
        let within = ends.chunks(2).filter(|e| e[0] / 100 == e[1] / 100).count() as f64;
        let between = ends.len() as f64 / 2.0 - within;
        // 3 * 4950 pairs within, 30,000 between: four standard deviations either way.
        assert!((within - 1485.0).abs() < 4.0 * 36.6, "{within}");
        assert!((between - 300.0).abs() < 4.0 * 17.3, "{between}");
        let other = block_model(&model, &labelled, 1).unwrap();
        assert_ne!(ends, integers(other.split("edges").unwrap(), "nodes"));
    }

    #[test]
    fn a_graph_file_gives_each_edge_once_and_wrong_ones_are_named() {
        let folder = std::env::temp_dir().join(format!("espalier-graph-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (nodes, edges) = (folder.join("nodes.csv"), folder.join("edges.csv"));
        std::fs::write(&nodes, "x,side\n0.5,a\n1,b\n2,a\n3,b\n").unwrap();
        std::fs::write(&edges, "from,to\n0,1\n1,0\n2,2\n2,3\n").unwrap();
        let labelled = Labelled {
            train: 1,
            validation: 0,
        };
        let data = read(&nodes, &edges, "side", &labelled, 0).unwrap();
        assert_eq!(
            integers(data.split("edges").unwrap(), "nodes"),
            [0, 1, 2, 3]
        );
        assert_eq!(data.split("test").unwrap().count, 2);
        let refusal = |text: &str| {
            std::fs::write(&edges, text).unwrap();
            read(&nodes, &edges, "side", &labelled, 0)
                .unwrap_err()
                .to_string()
        };
        assert!(refusal("from,to\n0,4\n").contains("line 2: there is no node 4"));
        assert!(refusal("from,to\n0,x\n").contains("`x` is not the number of a node"));
        assert!(refusal("from,to\n0,1,2\n").contains("3 fields, expected two"));
        let many = Labelled {
            train: 3,
            validation: 0,
        };
        std::fs::write(&edges, "from,to\n0,1\n").unwrap();
        let error = read(&nodes, &edges, "side", &many, 0)
            .unwrap_err()
            .to_string();
        assert!(error.contains("class 0 has 2 nodes"), "{error}");
        let _ = std::fs::remove_dir_all(&folder);
    }
}
