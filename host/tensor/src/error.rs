//! Everything that can go wrong, each with the operation's name and what it was given.

use crate::dtype::DType;

/// Result of every fallible engine call.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an operation was refused. Nothing was changed when one of these is returned.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes that do not fit together, or do not fit the operation.
    #[error("{op}: {expected}; got {}", list(.shapes))]
    Shape {
        /// The operation.
        op: &'static str,
        /// The shapes it was given.
        shapes: Vec<Vec<usize>>,
        /// What it needs.
        expected: String,
    },
    /// An axis that the tensor does not have.
    #[error("{op}: axis {axis} does not exist in a tensor of rank {rank}")]
    Axis {
        /// The operation.
        op: &'static str,
        /// The axis as given; negative counts from the end.
        axis: i64,
        /// The tensor's rank.
        rank: usize,
    },
    /// A result with more axes than a tensor may have.
    #[error("{op}: a tensor has at most 6 axes, this would have {rank}")]
    Rank {
        /// The operation.
        op: &'static str,
        /// The number of axes asked for.
        rank: usize,
    },
    /// Element types that do not fit together, or do not fit the operation.
    #[error("{op}: needs {expected}; got {}", dtypes(.found))]
    DType {
        /// The operation.
        op: &'static str,
        /// The element types it was given.
        found: Vec<DType>,
        /// What it needs.
        expected: &'static str,
    },
    /// An index outside the axis it selects from.
    #[error("{op}: index {index} is outside an axis of size {size}")]
    Index {
        /// The operation.
        op: &'static str,
        /// The offending index.
        index: i64,
        /// The axis's size.
        size: usize,
    },
    /// An argument that is neither a shape nor an element type, such as a step of zero.
    #[error("{op}: {problem}")]
    Argument {
        /// The operation.
        op: &'static str,
        /// What is wrong and what is expected.
        problem: String,
    },
    /// A tensor whose size in bytes does not fit the address space.
    #[error("{op}: a tensor of shape {shape:?} is too large for this machine")]
    Size {
        /// The operation.
        op: &'static str,
        /// The shape asked for.
        shape: Vec<usize>,
    },
    /// The current account's limit would be passed.
    #[error("{op}: asked for {asked} bytes with {used} of {limit} in use")]
    Budget {
        /// The operation.
        op: &'static str,
        /// Bytes asked for.
        asked: u64,
        /// Bytes charged to the account before, graph nodes included.
        used: u64,
        /// The account's limit.
        limit: u64,
    },
    /// The machine has no such block of memory.
    #[error("{op}: the machine could not provide {asked} bytes")]
    Memory {
        /// The operation.
        op: &'static str,
        /// Bytes asked for.
        asked: u64,
    },
    /// A gradient was asked through a graph whose saved tensors are gone.
    #[error(
        "grad: the graph through `{op}` was freed by an earlier call; pass retain_graph = true to that call"
    )]
    GraphFreed {
        /// The first operation found freed.
        op: &'static str,
    },
    /// The engine broke one of its own rules: a defect to report, not a misuse.
    #[error("{op}: internal error: {problem}")]
    Internal {
        /// The operation.
        op: &'static str,
        /// What was found.
        problem: String,
    },
}

impl Error {
    /// A shape error from borrowed shapes.
    pub(crate) fn shape(
        op: &'static str,
        expected: impl Into<String>,
        shapes: &[&[usize]],
    ) -> Error {
        Error::Shape {
            op,
            expected: expected.into(),
            shapes: shapes.iter().map(|s| s.to_vec()).collect(),
        }
    }

    /// An argument error.
    pub(crate) fn argument(op: &'static str, problem: impl Into<String>) -> Error {
        Error::Argument {
            op,
            problem: problem.into(),
        }
    }
}

fn list(shapes: &[Vec<usize>]) -> String {
    let each: Vec<String> = shapes.iter().map(|s| format!("{s:?}")).collect();
    each.join(" and ")
}

fn dtypes(found: &[DType]) -> String {
    let each: Vec<&str> = found.iter().map(|d| d.name()).collect();
    each.join(" and ")
}
