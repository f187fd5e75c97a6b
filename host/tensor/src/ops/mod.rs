//! The operations, one family a file. Each stands with its shape rule, its kernel and its gradient rule.

pub(crate) mod attention;
pub(crate) mod cache;
pub(crate) mod conv;
mod create;
mod elementwise;
mod fft;
mod index;
pub(crate) mod matmul;
mod norm;
pub(crate) mod pool;
pub(crate) mod recurrent;
pub(crate) mod reduce;
mod replay;
pub(crate) mod rows;
mod shape;
pub(crate) mod softmax;
mod sort;

pub use attention::scaled_dot_product_attention;
pub use conv::conv2d;
pub use create::{arange, astype};
pub use elementwise::{
    abs, acos, add, cos, divide, equal, exp, expm1, gelu, less, log, maximum, minimum, multiply,
    relu, sigmoid, sin, softplus, sqrt, subtract, tanh, where_,
};
pub use fft::{irfft, rfft};
pub use index::{scatter_add, segment_max, take, take_along_axis, take_rows};
pub use matmul::matmul;
pub use norm::{batch_norm, layer_norm};
pub use reduce::{argmax, cumulative_sum, max, mean, sum};
pub use shape::{broadcast_to, concat, permute_dims, reshape, slice};
pub use softmax::{cross_entropy, log_softmax, softmax};
pub use sort::{argsort, top_k};

pub(crate) use reduce::fit_shape;

pub(crate) use elementwise::add_in_place;
