//! The operations, one family a file. Each stands with its shape rule, its kernel and its gradient rule.

mod create;
mod elementwise;
mod matmul;
mod reduce;
mod shape;

pub use create::{arange, astype};
pub use elementwise::{
    abs, acos, add, cos, divide, equal, exp, expm1, gelu, less, log, maximum, minimum, multiply,
    relu, sigmoid, sin, softplus, sqrt, subtract, tanh, where_,
};
pub use matmul::matmul;
pub use reduce::sum;
pub use shape::{broadcast_to, concat, permute_dims, reshape, slice};

pub(crate) use reduce::fit_shape;
