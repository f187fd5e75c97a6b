//! The run's graph, edges added to it, and what a graph convolution does along edges.

use espalier_sdk::{Error, Tensor, data, random};

/// An edge: from, to.
pub type Edge = (u64, u64);

/// First number of the keys of random orders of classes.
const WRONG: u64 = 1;

/// Nodes, edges, and the labels that may be learned from.
pub struct Graph {
    /// Features of all nodes, `[nodes, features]`.
    pub features: Tensor,
    /// How many nodes.
    pub nodes: u64,
    /// How many classes.
    pub classes: u64,
    /// From where to where.
    pub edges: Vec<Edge>,
    /// Nodes whose label is known.
    pub train: Vec<u64>,
    /// Their labels.
    pub labels: Vec<u64>,
    /// Nodes and labels that tell which of several states is best.
    pub validation: Option<(Tensor, Tensor)>,
    /// False if the run's samples are not nodes of a graph: then each is a node without edges.
    pub connected: bool,
}

impl Graph {
    /// From the splits of the run.
    pub fn of_run() -> Result<Graph, Error> {
        let train = data::split("train")
            .filter(|split| split.classes > 1)
            .ok_or_else(|| {
                Error::incompatible(
                    "this trainer classifies; the run's targets are no classes, or one",
                )
            })?;
        let list = |split: &str, field: &str| -> Vec<u64> {
            let values = data::field(split, field).to_list();
            values.into_iter().map(|x| x as u64).collect()
        };
        let labels = list("train", "targets");
        let connected = data::split("nodes").is_some() && data::split("edges").is_some();
        if !connected {
            return Ok(Graph {
                features: data::field("train", "inputs").flatten(),
                nodes: train.count,
                classes: train.classes.into(),
                edges: Vec::new(),
                train: (0..train.count).collect(),
                labels,
                validation: None,
                connected,
            });
        }
        let features = data::field("nodes", "inputs");
        // An edge has no direction: features flow both ways.
        let edges = list("edges", "nodes")
            .chunks_exact(2)
            .flat_map(|edge| [(edge[0], edge[1]), (edge[1], edge[0])])
            .collect();
        let validation = data::split("validation").map(|_| {
            (
                data::field("validation", "nodes"),
                data::field("validation", "targets"),
            )
        });
        Ok(Graph {
            nodes: features.size(0).into(),
            features,
            classes: train.classes.into(),
            edges,
            train: list("train", "nodes"),
            labels,
            validation,
            connected,
        })
    }

    /// The edges, and one in both directions between each of some nodes and the virtual node of its class; virtual nodes
    /// have the numbers behind the others.
    pub fn with_virtual(&self, wired: &[(u64, u64)]) -> Vec<Edge> {
        joined(&self.edges, self.nodes, wired)
    }

    /// Training nodes with their labels.
    pub fn labelled(&self) -> Vec<(u64, u64)> {
        self.train
            .iter()
            .copied()
            .zip(self.labels.iter().copied())
            .collect()
    }

    /// Every other node, with one class.
    pub fn others(&self, class: u64) -> Vec<(u64, u64)> {
        let known = |node: &u64| !self.train.contains(node);
        (0..self.nodes)
            .filter(known)
            .map(|node| (node, class))
            .collect()
    }

    /// For each training node its wrong classes in a random order: entry k of all nodes is the k-th wrong labelling.
    pub fn wrong(&self) -> Vec<Vec<(u64, u64)>> {
        let others = self.classes - 1;
        let orders: Vec<Vec<u64>> = self
            .labelled()
            .into_iter()
            .map(|(node, label)| {
                let words = random::bits(&[WRONG, node], others as u32);
                let mut order: Vec<u64> = (0..others).collect();
                order.sort_by_key(|&k| words[k as usize]);
                order
                    .into_iter()
                    .map(|k| (label + 1 + k) % self.classes)
                    .collect()
            })
            .collect();
        (0..others as usize)
            .map(|k| {
                let pairs = self.train.iter().zip(&orders);
                pairs.map(|(&node, order)| (node, order[k])).collect()
            })
            .collect()
    }

    /// Label features `[nodes, classes]`: 1 at the class of those wired, equal shares for the others.
    pub fn label_features(&self, wired: &[(u64, u64)]) -> Tensor {
        let share = 1.0 / self.classes as f64;
        let mut values = vec![share; (self.nodes * self.classes) as usize];
        for &(node, class) in wired {
            let row = (node * self.classes) as usize;
            let row = &mut values[row..row + self.classes as usize];
            row.fill(0.0);
            row[class as usize] = 1.0;
        }
        Tensor::from_list(&values, &[self.nodes as u32, self.classes as u32])
    }
}

/// `D^-1/2 (A + I) D^-1/2`, where `D` counts what arrives at a node, itself included.
pub struct Operator {
    /// From, to and weight `[edges, 1]` of each edge; none without edges.
    edges: Option<(Tensor, Tensor, Tensor)>,
    /// Weight of each node itself, `[nodes, 1]`.
    own: Tensor,
}

impl Operator {
    /// For so many nodes.
    pub fn new(nodes: u64, edges: &[Edge]) -> Operator {
        let (weights, own) = weights(nodes as usize, edges);
        let column = |values: &[f64]| Tensor::from_list(values, &[values.len() as u32, 1]);
        let edges = (!edges.is_empty()).then(|| {
            let from = Tensor::indices(edges.iter().map(|edge| edge.0));
            let to = Tensor::indices(edges.iter().map(|edge| edge.1));
            (from, to, column(&weights))
        });
        Operator {
            edges,
            own: column(&own),
        }
    }

    /// What arrives at each node: `[nodes, width]`.
    pub fn apply(&self, x: &Tensor) -> Tensor {
        let own = x * &self.own;
        match &self.edges {
            None => own,
            Some((from, to, weights)) => own.scatter_add(to, &(x.take(from, 0) * weights), 0),
        }
    }
}

/// Edges, and both directions between each node of `wired` and number `nodes` + its class.
fn joined(edges: &[Edge], nodes: u64, wired: &[(u64, u64)]) -> Vec<Edge> {
    let both = |&(node, class): &(u64, u64)| [(node, nodes + class), (nodes + class, node)];
    edges
        .iter()
        .copied()
        .chain(wired.iter().flat_map(both))
        .collect()
}

/// Weights of edges and of the nodes themselves.
fn weights(nodes: usize, edges: &[Edge]) -> (Vec<f64>, Vec<f64>) {
    let mut degree = vec![1.0f64; nodes];
    for edge in edges {
        degree[edge.1 as usize] += 1.0;
    }
    let weight = |edge: &Edge| 1.0 / (degree[edge.0 as usize] * degree[edge.1 as usize]).sqrt();
    let own = degree.iter().map(|d| 1.0 / d).collect();
    (edges.iter().map(weight).collect(), own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_training_node_is_joined_to_its_class_in_both_directions() {
        let edges = [(0, 1), (1, 0), (1, 2), (2, 1)];
        let all = joined(&edges, 3, &[(0, 1), (2, 0)]);
        assert_eq!(all.len(), edges.len() + 2 * 2);
        assert_eq!(all[4..], [(0, 4), (4, 0), (2, 3), (3, 2)]);
    }

    #[test]
    fn two_nodes_and_an_edge_share_all() {
        assert_eq!(
            weights(2, &[(0, 1), (1, 0)]),
            (vec![0.5, 0.5], vec![0.5, 0.5])
        );
    }

    #[test]
    fn a_star_weighs_by_the_roots_of_both_degrees() {
        let edges = [(0, 1), (1, 0), (0, 2), (2, 0), (0, 3), (3, 0)];
        let (weights, own) = weights(5, &edges);
        assert!(
            weights
                .iter()
                .all(|w| (w - 1.0 / 8f64.sqrt()).abs() < 1e-15)
        );
        assert_eq!(own, [0.25, 0.5, 0.5, 0.5, 1.0]);
    }
}
