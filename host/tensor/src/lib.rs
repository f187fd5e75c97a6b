//! Tensors, kernels and autograd of any order. Knows no WebAssembly.
//!
//! # Writing an operation
//!
//! An operation is one function in its family's file under `ops/`: it checks shapes and element types,
//! runs a kernel over slices, and hands the result to [`autograd`]'s `record` with its gradient rule.
//! Here is all of `scale_rows(t [n, m], s [n])`:
//!
//! ```ignore
//! pub fn scale_rows(t: &Tensor, s: &Tensor) -> Result<Tensor> {
//!     const OP: &str = "scale_rows";
//!     // 1. Shapes and element types; every refusal is an `Error` that names the operation.
//!     if t.rank() != 2 || s.rank() != 1 || s.shape()[0] != t.shape()[0] {
//!         return Err(Error::shape(OP, "needs [n, m] and [n]", &[t.shape(), s.shape()]));
//!     }
//!     let m = t.shape()[1];
//!     // 2. The kernel. `dense` copies only a view with gaps; `data` is its elements, row-major; `build`
//!     //    charges the account and gives zeroed elements to write (`try_build` for kernels that fail,
//!     //    `build_unset` for kernels that write every element).
//!     //    `with_float!` sets `E` to f32 or f64 and refuses other types.
//!     let out = with_float!(OP, t.dtype(), E => {
//!         let (td, sd) = (t.dense(OP)?, s.dense(OP)?);
//!         let (tv, sv) = (td.data::<E>()?, sd.data::<E>()?);
//!         Tensor::build::<E>(OP, t.shape(), |out| {
//!             let total = out.len();
//!             // Blocks of whole rows, in parallel above a size; `m.max(1)` because sizes may be 0.
//!             for_blocks(out, 64 * m.max(1), total, |first, block| {
//!                 for (i, row) in block.chunks_exact_mut(m).enumerate() {
//!                     let r = first / m + i;
//!                     for (o, x) in row.iter_mut().zip(&tv[r * m..]) {
//!                         *o = *x * sv[r];
//!                     }
//!                 }
//!             });
//!         })?
//!     });
//!     // 3. The gradient rule: from the gradient of the result to one `Option<Tensor>` per parent. Capture
//!     //    clones of the inputs (cheap; they keep their place in the graph, which gradients of gradients
//!     //    need). The rule's own result is not captured: use `record_keeping_output` and
//!     //    `flow.output()`. Write it with tensor operations; where `!grad_enabled()` it may call a fused
//!     //    kernel. A gradient that is larger than its parent along broadcast axes is summed down for you.
//!     let (t2, s2) = (t.clone(), s.clone());
//!     Ok(record(OP, out, &[t, s], move |flow| {
//!         let column = ops::reshape(&s2, &[-1, 1])?;
//!         Ok(vec![
//!             flow.needs(0).then(|| ops::multiply(&flow.grad, &column)).transpose()?,
//!             flow.needs(1).then(|| ops::sum(&ops::multiply(&flow.grad, &t2)?, &[1], false)).transpose()?,
//!         ])
//!     }))
//! }
//! ```
//!
//! An operation with several results records each result separately (a node has one tensor).

pub mod account;
pub mod autograd;
pub mod capture;
mod copy;
mod counted;
#[cfg(feature = "cuda")]
pub mod cuda;
mod device;
mod dtype;
mod error;
mod gemm;
mod lanes;
mod layout;
mod math;
mod memory;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod random;
mod simd;
mod small;
mod storage;
mod team;
mod tensor;
pub mod threads;

pub use device::{Device, DeviceError};
pub use dtype::{DType, Element};
pub use error::{Error, Result};
pub use layout::MAX_RANK;
pub use tensor::{Operand, Tensor};
