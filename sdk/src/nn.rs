//! Operations that are a few lines of others, named as in the array API and PyTorch.
//!
//! They cost a crossing into the host for each of their lines; gradients flow through them as through what they
//! are made of.

use crate::bindings::host::espalier::plugin::tensors as host;
use crate::random;
use crate::tensor::{Conv2d, Dtype, Operand, Tensor, at};

/// Arithmetic.
impl Tensor {
    /// -t.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor) {
    /// let opposite = x.negative(); // or: -x
    /// # }
    /// ```
    pub fn negative(&self) -> Tensor {
        self * -1.0
    }

    /// t * t.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(error: &Tensor) {
    /// let squared = error.square();
    /// # }
    /// ```
    pub fn square(&self) -> Tensor {
        self * self
    }

    /// 1 / t.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor) {
    /// let inverse = x.reciprocal();
    /// # }
    /// ```
    pub fn reciprocal(&self) -> Tensor {
        1.0 / self
    }

    /// t^p: by multiplication for whole p from 0 to 8, else as e^(p log t), which needs t > 0.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor) {
    /// let cubed = x.pow(3.0);
    /// # }
    /// ```
    pub fn pow(&self, p: f64) -> Tensor {
        if p == 0.5 {
            return self.sqrt();
        }
        if !(0.0..=8.0).contains(&p) || p.fract() != 0.0 {
            return (self.log() * p).exp();
        }
        (1..p as u32).fold(
            if p == 0.0 {
                self.ones_like()
            } else {
                self.clone()
            },
            |power, _| power * self,
        )
    }

    /// -1, 0 or 1, of the dtype of `self`. No gradient.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(gradient: &Tensor) {
    /// let direction = gradient.sign();
    /// # }
    /// ```
    pub fn sign(&self) -> Tensor {
        let dtype = self.dtype();
        self.greater(0.0).astype(dtype) - self.less(0.0).astype(dtype)
    }

    /// At least `low` and at most `high`; the gradient passes at the bounds.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(ratio: &Tensor) {
    /// let near_one = ratio.clip(0.8, 1.2);
    /// # }
    /// ```
    pub fn clip(&self, low: f64, high: f64) -> Tensor {
        self.maximum(low).minimum(high)
    }

    /// self > other, as bool.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(scores: &Tensor) {
    /// let kept = scores.greater(0.5);
    /// # }
    /// ```
    pub fn greater<'a>(&'a self, other: impl Into<Operand<'a>>) -> Tensor {
        Tensor::from_raw(host::less(
            &other.into().raw(),
            &host::Operand::Tensor(self.raw()),
        ))
    }

    /// self <= other, as bool; false beside NaN.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(age: &Tensor) {
    /// let young = age.less_equal(3.0);
    /// # }
    /// ```
    pub fn less_equal<'a>(&'a self, other: impl Into<Operand<'a>>) -> Tensor {
        let other = other.into();
        self.less(other).logical_or(&self.equal(other))
    }

    /// self >= other, as bool; false beside NaN.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(age: &Tensor) {
    /// let old = age.greater_equal(3.0);
    /// # }
    /// ```
    pub fn greater_equal<'a>(&'a self, other: impl Into<Operand<'a>>) -> Tensor {
        let other = other.into();
        self.greater(other).logical_or(&self.equal(other))
    }

    /// self != other, as bool.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(tokens: &Tensor) {
    /// let real = tokens.not_equal(0.0);
    /// # }
    /// ```
    pub fn not_equal<'a>(&'a self, other: impl Into<Operand<'a>>) -> Tensor {
        self.equal(other).logical_not()
    }

    /// Both. Of bool tensors.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(a: &Tensor, b: &Tensor) {
    /// let both = a.logical_and(b);
    /// # }
    /// ```
    pub fn logical_and(&self, other: &Tensor) -> Tensor {
        // A number beside a bool tensor would become a float.
        self.where_(other, &Tensor::full(&[], 0.0, Dtype::Bool))
    }

    /// Either. Of bool tensors.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(a: &Tensor, b: &Tensor) {
    /// let either = a.logical_or(b);
    /// # }
    /// ```
    pub fn logical_or(&self, other: &Tensor) -> Tensor {
        self.where_(&Tensor::full(&[], 1.0, Dtype::Bool), other)
    }

    /// Not. Of a bool tensor.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(mask: &Tensor) {
    /// let pruned = mask.logical_not();
    /// # }
    /// ```
    pub fn logical_not(&self) -> Tensor {
        self.equal(0.0)
    }
}

/// Reductions and order.
impl Tensor {
    /// Mean over the axes; no axes means all.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor) {
    /// let centred = x - x.mean(&[0]);
    /// # }
    /// ```
    pub fn mean(&self, axes: &[i32]) -> Tensor {
        Tensor::from_raw(host::mean(self.raw(), axes, false))
    }

    /// As [`Tensor::mean`], the axes kept with size 1.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor) {
    /// let centred = x - x.mean_keepdims(&[-1]);
    /// # }
    /// ```
    pub fn mean_keepdims(&self, axes: &[i32]) -> Tensor {
        Tensor::from_raw(host::mean(self.raw(), axes, true))
    }

    /// Mean over every axis but the first: `[n, ..]` -> `[n]`.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(y: &Tensor, target: &Tensor) {
    /// let losses = y.mse(target).per_sample();
    /// # }
    /// ```
    pub fn per_sample(&self) -> Tensor {
        let rows = self.size(0) as i32;
        self.reshape(&[rows, -1]).mean(&[1])
    }

    /// Variance over the axes, divided by their size less `correction` (0 or 1).
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor) {
    /// let unbiased = x.var(&[0], 1.0);
    /// # }
    /// ```
    pub fn var(&self, axes: &[i32], correction: f64) -> Tensor {
        (self - self.mean_keepdims(axes)).square().sum(axes) / (self.along(axes) - correction)
    }

    /// Root of the variance; see [`Tensor::var`].
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(returns: &Tensor) {
    /// let spread = returns.std(&[], 0.0);
    /// # }
    /// ```
    pub fn std(&self, axes: &[i32], correction: f64) -> Tensor {
        self.var(axes, correction).sqrt()
    }

    /// Smallest along an axis.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor) {
    /// let smallest = x.min(-1);
    /// # }
    /// ```
    pub fn min(&self, axis: i32) -> Tensor {
        -(-self).max(axis)
    }

    /// Index (i64) of the smallest along an axis; the lowest wins ties.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(distances: &Tensor) {
    /// let nearest = distances.argmin(1);
    /// # }
    /// ```
    pub fn argmin(&self, axis: i32) -> Tensor {
        (-self).argmax(axis)
    }

    /// Whether any element along the axes is not 0; no axes means all.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(mask: &Tensor) {
    /// let rows = mask.any(&[-1]);
    /// # }
    /// ```
    pub fn any(&self, axes: &[i32]) -> Tensor {
        self.astype(Dtype::Bool)
            .astype(Dtype::I64)
            .sum(axes)
            .greater(0.0)
    }

    /// Whether no element along the axes is 0; no axes means all.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(mask: &Tensor) {
    /// let whole_rows = mask.all(&[-1]);
    /// # }
    /// ```
    pub fn all(&self, axes: &[i32]) -> Tensor {
        self.equal(0.0).any(axes).logical_not()
    }

    /// How many elements are not 0. Waits for the device.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(mask: &Tensor) {
    /// let alive: u64 = mask.count_nonzero();
    /// # }
    /// ```
    pub fn count_nonzero(&self) -> u64 {
        self.astype(Dtype::Bool).astype(Dtype::I64).sum(&[]).item() as u64
    }

    /// sqrt(sum t^2 + eps) over the axes: with eps > 0 the gradient at 0 is finite.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(gradient: &Tensor) {
    /// let norm = gradient.vector_norm(&[], 1e-12);
    /// # }
    /// ```
    pub fn vector_norm(&self, axes: &[i32], eps: f64) -> Tensor {
        (self.square().sum(axes) + eps).sqrt()
    }

    /// As [`Tensor::vector_norm`], the axes kept with size 1.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor) {
    /// let directions = x / x.vector_norm_keepdims(&[-1], 1e-12);
    /// # }
    /// ```
    pub fn vector_norm_keepdims(&self, axes: &[i32], eps: f64) -> Tensor {
        (self.square().sum_keepdims(axes) + eps).sqrt()
    }

    /// log(sum e^t) along an axis, shifted by the largest.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(energies: &Tensor) {
    /// let free_energy = -(-energies).logsumexp(-1);
    /// # }
    /// ```
    pub fn logsumexp(&self, axis: i32) -> Tensor {
        // A row of -inf would make the shifted values NaN.
        let shift = self.max_keepdims(axis).detach().maximum(-3e38);
        ((self - &shift).exp().sum_keepdims(&[axis]).log() + shift).squeeze(axis)
    }

    /// In order along an axis.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor) {
    /// let ascending = x.sort(-1, false);
    /// # }
    /// ```
    pub fn sort(&self, axis: i32, descending: bool) -> Tensor {
        self.take_along_axis(&self.argsort(axis, descending), axis)
    }

    /// Place of each element in ascending order along an axis, i64, from 0; equal ones in their given order.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(scores: &Tensor) {
    /// let ranks = scores.rank_along(0);
    /// # }
    /// ```
    pub fn rank_along(&self, axis: i32) -> Tensor {
        self.argsort(axis, false).argsort(axis, false)
    }

    /// The k-th smallest along an axis, k from 1.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(scores: &Tensor) {
    /// let threshold = scores.kth_value(100, 0);
    /// # }
    /// ```
    pub fn kth_value(&self, k: u32, axis: i32) -> Tensor {
        -(-self)
            .top_k(k, axis)
            .0
            .slice(axis, k as i32 - 1, k as i32)
            .squeeze(axis)
    }

    fn along(&self, axes: &[i32]) -> f64 {
        let shape = self.shape();
        if axes.is_empty() {
            return shape.iter().map(|&n| f64::from(n)).product();
        }
        axes.iter()
            .map(|&axis| f64::from(shape[at(axis, shape.len())]))
            .product()
    }
}

/// Shapes.
impl Tensor {
    /// The shape as signed numbers, as `reshape` takes it.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor) {
    /// let mut dims = x.dims();
    /// dims[0] = -1;
    /// let same = x.reshape(&dims);
    /// # }
    /// ```
    pub fn dims(&self) -> Vec<i32> {
        self.shape().iter().map(|&n| n as i32).collect()
    }

    /// Reshaped to the shape of another tensor of as many elements.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(flat: &Tensor, weight: &Tensor) {
    /// let step = flat.reshape_as(weight);
    /// # }
    /// ```
    pub fn reshape_as(&self, other: &Tensor) -> Tensor {
        self.reshape(&other.dims())
    }

    /// `[n, ..]` -> `[n, product of the rest]`.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(images: &Tensor) {
    /// let rows = images.flatten();
    /// # }
    /// ```
    pub fn flatten(&self) -> Tensor {
        self.reshape(&[self.size(0) as i32, -1])
    }

    /// A new axis of size 1 at a place of the result; -1 is last.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor) {
    /// let column = x.expand_dims(-1);
    /// # }
    /// ```
    pub fn expand_dims(&self, axis: i32) -> Tensor {
        let mut dims = self.dims();
        dims.insert(at(axis, dims.len() + 1), 1);
        self.reshape(&dims)
    }

    /// Without an axis of size 1. Traps if it has another size.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(column: &Tensor) {
    /// let x = column.squeeze(-1);
    /// # }
    /// ```
    pub fn squeeze(&self, axis: i32) -> Tensor {
        let mut dims = self.dims();
        dims.remove(at(axis, dims.len()));
        self.reshape(&dims)
    }

    /// Two axes exchanged.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor) {
    /// let heads_first = x.swap_axes(1, 2);
    /// # }
    /// ```
    pub fn swap_axes(&self, a: i32, b: i32) -> Tensor {
        let rank = self.rank();
        let mut axes: Vec<u32> = (0..rank as u32).collect();
        axes.swap(at(a, rank), at(b, rank));
        self.permute_dims(&axes)
    }

    /// The last two axes exchanged: a matrix transposed.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(w: &Tensor) {
    /// let gram = w.matmul(&w.t());
    /// # }
    /// ```
    pub fn t(&self) -> Tensor {
        self.swap_axes(-2, -1)
    }

    /// Tensors of one shape along a new axis.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(a: &Tensor, b: &Tensor) {
    /// let pairs = Tensor::stack(&[a, b], 0);
    /// # }
    /// ```
    pub fn stack(ts: &[&Tensor], axis: i32) -> Tensor {
        let expanded: Vec<Tensor> = ts.iter().map(|t| t.expand_dims(axis)).collect();
        Tensor::concat(&expanded.iter().collect::<Vec<_>>(), axis)
    }

    /// Pieces of the given sizes along an axis.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(qkv: &Tensor) {
    /// let parts = qkv.split(&[64, 64, 64], -1);
    /// # }
    /// ```
    pub fn split(&self, sizes: &[u32], axis: i32) -> Vec<Tensor> {
        let mut start = 0;
        let mut piece = |&size: &u32| {
            let from = start;
            start += size as i32;
            self.slice(axis, from, start)
        };
        sizes.iter().map(&mut piece).collect()
    }

    /// In reverse order along an axis.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(rewards: &Tensor) {
    /// let to_go = rewards.flip(0).cumulative_sum(0).flip(0);
    /// # }
    /// ```
    pub fn flip(&self, axis: i32) -> Tensor {
        let last = f64::from(self.size(axis)) - 1.0;
        self.take(&Tensor::arange_as(last, -1.0, -1.0, Dtype::I64), axis)
    }

    /// `before` and `after` elements of `value` added along an axis.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor) {
    /// let shifted = x.pad(0, 1, 0, 0.0).slice(0, 0, -1);
    /// # }
    /// ```
    pub fn pad(&self, axis: i32, before: u32, after: u32, value: f64) -> Tensor {
        let (mut shape, dtype) = (self.shape(), self.dtype());
        let place = at(axis, shape.len());
        shape[place] = before;
        let head = Tensor::full(&shape, value, dtype);
        shape[place] = after;
        Tensor::concat(&[&head, self, &Tensor::full(&shape, value, dtype)], axis)
    }

    /// Each element `n` times in a row along an axis.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(prompts: &Tensor) {
    /// let copies = prompts.repeat(8, 0);
    /// # }
    /// ```
    pub fn repeat(&self, n: u32, axis: i32) -> Tensor {
        let (mut shape, place) = (self.shape(), at(axis, self.rank()));
        let mut dims = self.dims();
        dims[place] *= n as i32;
        shape.insert(place + 1, n);
        self.expand_dims(place as i32 + 1)
            .broadcast_to(&shape)
            .reshape(&dims)
    }

    /// All tensors flattened, one after the other: [sum of elements].
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(a: &Tensor, b: &Tensor) {
    /// let vector = Tensor::flat(&[a, b]);
    /// # }
    /// ```
    pub fn flat(ts: &[&Tensor]) -> Tensor {
        let flat: Vec<Tensor> = ts.iter().map(|t| t.reshape(&[-1])).collect();
        Tensor::concat(&flat.iter().collect::<Vec<_>>(), 0)
    }

    /// The reverse of [`Tensor::flat`]: pieces in the shapes of `like`.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(a: &Tensor, b: &Tensor) {
    /// let vector = Tensor::flat(&[a, b]);
    /// let halves = (vector * 0.5).unflat(&[a, b]);
    /// # }
    /// ```
    pub fn unflat(&self, like: &[&Tensor]) -> Vec<Tensor> {
        let sizes: Vec<u32> = like.iter().map(|t| t.numel() as u32).collect();
        self.split(&sizes, 0)
            .iter()
            .zip(like)
            .map(|(piece, t)| piece.reshape_as(t))
            .collect()
    }
}

/// Matrices and tables.
impl Tensor {
    /// The unit matrix, f32 `[n, n]`.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// let unit = Tensor::eye(4);
    /// ```
    pub fn eye(n: u32) -> Tensor {
        Tensor::arange_as(0.0, f64::from(n), 1.0, Dtype::I64).one_hot(n)
    }

    /// Classes (i64 `[..]`) as f32 [.., n]: 1 at the class, else 0.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(targets: &Tensor) {
    /// let smooth = targets.one_hot(10) * 0.9 + 0.01;
    /// # }
    /// ```
    pub fn one_hot(&self, n: u32) -> Tensor {
        let classes = Tensor::arange_as(0.0, f64::from(n), 1.0, Dtype::I64);
        self.expand_dims(-1).equal(&classes).astype(Dtype::F32)
    }

    /// bool `[n, n]`, true on and below the diagonal.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// let causal = Tensor::tril_mask(64);
    /// ```
    pub fn tril_mask(n: u32) -> Tensor {
        let places = Tensor::arange(0.0, f64::from(n), 1.0);
        places.expand_dims(0).less_equal(&places.expand_dims(1))
    }

    /// `[n]` and `[m]` -> `[n, m]`, all products.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(a: &Tensor, b: &Tensor) {
    /// let products = a.outer(b);
    /// # }
    /// ```
    pub fn outer(&self, other: &Tensor) -> Tensor {
        self.expand_dims(1) * other.expand_dims(0)
    }

    /// x w^T + b: `[.., in]`, weight `[out, in]`, bias `[out]`.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor, weight: &Tensor, bias: &Tensor) {
    /// let y = x.linear(weight, Some(bias));
    /// # }
    /// ```
    pub fn linear(&self, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
        let y = self.matmul(&weight.t());
        match bias {
            Some(bias) => y + bias,
            None => y,
        }
    }

    /// Squared distances of all rows: `[n, d]` and `[m, d]` -> `[n, m]`.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor, centres: &Tensor) {
    /// let nearest = x.squared_distances(centres).argmin(1);
    /// # }
    /// ```
    pub fn squared_distances(&self, other: &Tensor) -> Tensor {
        let (a, b) = (self.square().sum_keepdims(&[1]), other.square().sum(&[1]));
        (a + b - self.matmul(&other.t()) * 2.0).maximum(0.0)
    }

    /// a.b / (|a| |b|) along an axis.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(a: &Tensor, b: &Tensor) {
    /// let alike = a.cosine_similarity(b, -1);
    /// # }
    /// ```
    pub fn cosine_similarity(&self, other: &Tensor, axis: i32) -> Tensor {
        let norms = self.vector_norm(&[axis], 1e-16) * other.vector_norm(&[axis], 1e-16);
        (self * other).sum(&[axis]) / norms
    }
}

/// Activations.
impl Tensor {
    /// t sigmoid(t).
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor) {
    /// let hidden = x.silu();
    /// # }
    /// ```
    pub fn silu(&self) -> Tensor {
        self * self.sigmoid()
    }

    /// t above 0, alpha (e^t - 1) below.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor) {
    /// let hidden = x.elu(1.0);
    /// # }
    /// ```
    pub fn elu(&self, alpha: f64) -> Tensor {
        self.relu() + self.minimum(0.0).expm1() * alpha
    }

    /// t above 0, slope t below.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor) {
    /// let hidden = x.leaky_relu(0.01);
    /// # }
    /// ```
    pub fn leaky_relu(&self, slope: f64) -> Tensor {
        self.relu() + self.minimum(0.0) * slope
    }

    /// t clipped to [-1, 1].
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor) {
    /// let bounded = x.hardtanh();
    /// # }
    /// ```
    pub fn hardtanh(&self) -> Tensor {
        self.clip(-1.0, 1.0)
    }

    /// log sigmoid(t), stable for both signs.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(margin: &Tensor) {
    /// let loss = -margin.log_sigmoid().mean(&[]);
    /// # }
    /// ```
    pub fn log_sigmoid(&self) -> Tensor {
        -(-self).softplus()
    }

    /// t / sqrt(mean t^2 + eps) along an axis.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor) {
    /// let y = x.rms_norm(-1, 1e-6);
    /// # }
    /// ```
    pub fn rms_norm(&self, axis: i32, eps: f64) -> Tensor {
        self / (self.square().mean_keepdims(&[axis]) + eps).sqrt()
    }

    /// Each element 0 with probability `p`, else divided by 1 - p.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor, step: u64) {
    /// const DROPOUT: u64 = 1;
    /// let y = x.dropout(0.1, &[DROPOUT, step]);
    /// # }
    /// ```
    pub fn dropout(&self, p: f64, key: &[u64]) -> Tensor {
        let kept = random::uniform(key, &self.shape())
            .greater_equal(p)
            .astype(self.dtype());
        self * kept / (1.0 - p)
    }
}

/// Losses, element by element; `per_sample` or `mean` follows.
impl Tensor {
    /// (t - target)^2.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(y: &Tensor, target: &Tensor) {
    /// let loss = y.mse(target).mean(&[]);
    /// # }
    /// ```
    pub fn mse(&self, target: &Tensor) -> Tensor {
        (self - target).square()
    }

    /// |t - target|.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(y: &Tensor, target: &Tensor) {
    /// let loss = y.l1(target).mean(&[]);
    /// # }
    /// ```
    pub fn l1(&self, target: &Tensor) -> Tensor {
        (self - target).abs()
    }

    /// Half the square up to `delta`, linear beyond (PyTorch's huber_loss).
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(value: &Tensor, returns: &Tensor) {
    /// let loss = value.huber(returns, 1.0).mean(&[]);
    /// # }
    /// ```
    pub fn huber(&self, target: &Tensor, delta: f64) -> Tensor {
        let error = (self - target).abs();
        let inner = error.minimum(delta);
        inner.square() * 0.5 + (error - inner) * delta
    }

    /// -(y log sigmoid(t) + (1 - y) log(1 - sigmoid(t))) for targets y in `[0, 1]`.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(logits: &Tensor, labels: &Tensor) {
    /// let loss = logits.bce_with_logits(labels).mean(&[]);
    /// # }
    /// ```
    pub fn bce_with_logits(&self, target: &Tensor) -> Tensor {
        self.softplus() - self * target
    }

    /// target (log target - t) for log-probabilities t and target probabilities; 0 where the target is 0.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(student: &Tensor, teacher: &Tensor) {
    /// let loss = student.log_softmax(-1).kl_div(&teacher.softmax(-1)).sum(&[-1]).mean(&[]);
    /// # }
    /// ```
    pub fn kl_div(&self, target: &Tensor) -> Tensor {
        let log_target = target.maximum(1e-37).log();
        target * (log_target - self)
    }
}

/// Segments, convolution and pooling.
impl Tensor {
    /// Sum of each segment of axis 0: `ids` (i64 `[rows]`) in [0, n) -> `[n, ..]`.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor, ids: &Tensor) {
    /// let totals = x.segment_sum(ids, 8);
    /// # }
    /// ```
    pub fn segment_sum(&self, ids: &Tensor, n: u32) -> Tensor {
        let mut shape = self.shape();
        shape[0] = n;
        Tensor::full(&shape, 0.0, self.dtype()).scatter_add(ids, self, 0)
    }

    /// Softmax within each segment of axis 0.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(scores: &Tensor, ids: &Tensor) {
    /// let attention = scores.segment_softmax(ids, 8);
    /// # }
    /// ```
    pub fn segment_softmax(&self, ids: &Tensor, n: u32) -> Tensor {
        let shift = self.detach().segment_max(ids, n).take(ids, 0);
        let e = (self - shift).exp();
        let total = e.segment_sum(ids, n).take(ids, 0);
        e / total
    }

    /// Cross-correlation along the last axis: `[n, c, l]` with a kernel `[o, c / groups, k]`.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(series: &Tensor, kernel: &Tensor) {
    /// let y = series.conv1d(kernel, 1, 2, 1, 1);
    /// # }
    /// ```
    pub fn conv1d(
        &self,
        kernel: &Tensor,
        stride: u32,
        padding: u32,
        dilation: u32,
        groups: u32,
    ) -> Tensor {
        let (stride, padding, dilation) = ((1, stride), (0, padding), (1, dilation));
        let options = Conv2d {
            stride,
            padding,
            dilation,
            groups,
        };
        self.expand_dims(2)
            .conv2d(&kernel.expand_dims(2), options)
            .squeeze(2)
    }

    /// Means of blocks of k x k that do not overlap: `[n, c, h, w]` -> `[n, c, h / k, w / k]`. k divides h and w.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(images: &Tensor) {
    /// let halved = images.average_pool2d(2);
    /// # }
    /// ```
    pub fn average_pool2d(&self, k: u32) -> Tensor {
        let dims = self.dims();
        let k = k as i32;
        self.reshape(&[dims[0], dims[1], dims[2] / k, k, dims[3] / k, k])
            .mean(&[3, 5])
    }

    /// A class (i64) drawn from each row of logits `[.., c]`.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(logits: &Tensor, step: u64) {
    /// const ACTIONS: u64 = 0;
    /// let actions = logits.categorical(&[ACTIONS, step]);
    /// # }
    /// ```
    pub fn categorical(&self, key: &[u64]) -> Tensor {
        let u = random::uniform(key, &self.shape()).clip(1e-7, 1.0 - 1e-7);
        (self - (-u.log()).log()).argmax(-1)
    }
}

/// Masks by rank, with exact counts.
impl Tensor {
    /// A bool mask of the `keep` largest elements among those where `among` (bool, same shape) holds; ties by
    /// lower index. Never more than `among` has.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(weight: &Tensor, alive: &Tensor) {
    /// let mask = weight.abs().keep_largest(alive, 1000);
    /// # }
    /// ```
    pub fn keep_largest(&self, among: &Tensor, keep: u64) -> Tensor {
        if keep == 0 {
            return Tensor::full(&self.shape(), 0.0, Dtype::Bool);
        }
        let flat = among.where_(self, f64::NEG_INFINITY).reshape(&[-1]);
        let (_, places) = flat.top_k(keep as u32, 0);
        let ones = Tensor::ones(&places.shape());
        let kept = Tensor::zeros(&flat.shape()).scatter_add(&places, &ones, 0);
        kept.reshape_as(self).astype(Dtype::Bool).logical_and(among)
    }

    /// As [`Tensor::keep_largest`], over several tensors together: the `keep` largest of all. The largest of
    /// each tensor goes first, so that none is emptied while `keep` allows it.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(scores: &[Tensor], masks: &[Tensor]) {
    /// let kept = Tensor::keep_largest_of_all(scores, masks, 10_000);
    /// # }
    /// ```
    pub fn keep_largest_of_all(scores: &[Tensor], among: &[Tensor], keep: u64) -> Vec<Tensor> {
        let first = |(score, among): (&Tensor, &Tensor)| {
            score.keep_largest(among, 1).where_(f64::INFINITY, score)
        };
        let scores: Vec<Tensor> = scores.iter().zip(among).map(first).collect();
        let (scores, among): (Vec<_>, Vec<_>) = (scores.iter().collect(), among.iter().collect());
        let kept = Tensor::flat(&scores).keep_largest(&Tensor::flat(&among), keep);
        kept.unflat(&scores)
    }
}
