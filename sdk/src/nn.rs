//! Operations that are a few lines of others, named as in the array API and PyTorch.

use crate::tensor::{Dtype, Tensor, at};

/// Arithmetic.
impl Tensor {
    /// t * t.
    pub fn square(&self) -> Tensor {
        self * self
    }

    /// Mean over the axes; no axes means all.
    pub fn mean(&self, axes: &[i32]) -> Tensor {
        self.sum(axes) / self.count(axes)
    }

    fn count(&self, axes: &[i32]) -> f64 {
        let shape = self.shape();
        if axes.is_empty() {
            return shape.iter().map(|&n| f64::from(n)).product();
        }
        axes.iter()
            .map(|&axis| f64::from(shape[at(axis, shape.len())]))
            .product()
    }

    /// How many elements are not 0. Waits for the device.
    pub fn count_nonzero(&self) -> u64 {
        self.astype(Dtype::Bool).astype(Dtype::I64).sum(&[]).item() as u64
    }

    /// A mask (bool, of the shape of `self`) of the `keep` largest elements among those where `among` (bool,
    /// same shape) holds; ties by lower index. At most as many as `among` has.
    pub fn keep_largest(&self, among: &Tensor, keep: u64) -> Tensor {
        let flat = among.where_(self, f64::NEG_INFINITY).reshape(&[-1]);
        let (_, places) = flat.top_k(keep as u32, 0);
        let zeros = Tensor::zeros(&flat.shape());
        let ones = Tensor::ones(&places.shape());
        let shape: Vec<i32> = self.shape().iter().map(|&n| n as i32).collect();
        zeros
            .scatter_add(&places, &ones, 0)
            .reshape(&shape)
            .astype(Dtype::Bool)
    }

    /// Squared error of each row, averaged over the rest: [n, ..] -> [n]. The target may lack trailing axes of
    /// size 1.
    pub fn mse_rows(&self, target: &Tensor) -> Tensor {
        let shape: Vec<i32> = self.shape().iter().map(|&n| n as i32).collect();
        let rows = [shape.first().copied().unwrap_or(1), -1];
        (self - target.reshape(&shape))
            .square()
            .reshape(&rows)
            .mean(&[1])
    }
}
