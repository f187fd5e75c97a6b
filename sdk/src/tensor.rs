//! Handles to the host's arrays, with the operations of the contract and Rust's operators.

use std::fmt;
use std::ops::{Add, Div, Mul, Neg, Sub};
use std::rc::Rc;

use crate::bindings::host::espalier::plugin::tensors as host;

pub use host::Dtype;

/// An array in the host.
///
/// Cloning copies the handle, not the numbers. Every operation gives a new tensor; gradients flow through all
/// of them that have float results unless their documentation says otherwise. A wrong shape or dtype ends the
/// call into the plugin with an error that names the operation, the shapes and this plugin's line.
///
/// Axes may be negative: -1 is the last.
///
/// ```no_run
/// # use espalier_sdk::Tensor;
/// let x = Tensor::from_list(&[1.0, 2.0, 3.0, 4.0], &[2, 2]);
/// let y = (&x * 2.0 + 1.0).sum(&[1]); // [8, 16]
/// let centred = &x - x.mean(&[0]);
/// ```
#[derive(Clone)]
pub struct Tensor(Rc<host::Tensor>);

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({:?} {:?})", self.dtype(), self.shape())
    }
}

/// One side of a binary operation: a tensor or a number, which takes the other side's dtype.
///
/// ```no_run
/// # use espalier_sdk::Tensor;
/// # use espalier_sdk::tensor::Operand;
/// # fn f(x: &Tensor) {
/// fn floor<'a>(x: &'a Tensor, least: impl Into<Operand<'a>>) -> Tensor {
///     x.maximum(least)
/// }
/// let (by_number, by_tensor) = (floor(x, 0.0), floor(x, x));
/// # }
/// ```
#[derive(Clone, Copy)]
pub enum Operand<'a> {
    /// A tensor.
    Tensor(&'a Tensor),
    /// A number.
    Scalar(f64),
}

impl<'a> From<&'a Tensor> for Operand<'a> {
    fn from(t: &'a Tensor) -> Self {
        Operand::Tensor(t)
    }
}

impl From<f64> for Operand<'_> {
    fn from(x: f64) -> Self {
        Operand::Scalar(x)
    }
}

impl<'a> Operand<'a> {
    pub(crate) fn raw(self) -> host::Operand<'a> {
        match self {
            Operand::Tensor(t) => host::Operand::Tensor(t.raw()),
            Operand::Scalar(x) => host::Operand::Scalar(x),
        }
    }
}

macro_rules! unary {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        pub fn $name(&self) -> Tensor {
            Tensor::from_raw(host::$name(self.raw()))
        }
    )*};
}

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident)*) => {$(
        $(#[$doc])*
        pub fn $name<'a>(&'a self, other: impl Into<Operand<'a>>) -> Tensor {
            Tensor::from_raw(host::$name(&host::Operand::Tensor(self.raw()), &other.into().raw()))
        }
    )*};
}

/// Making and reading.
impl Tensor {
    pub(crate) fn from_raw(raw: host::Tensor) -> Tensor {
        Tensor(Rc::new(raw))
    }

    pub(crate) fn raw(&self) -> &host::Tensor {
        &self.0
    }

    /// An own handle for the host. Where other clones are alive it is a second one, made by a reshape to the
    /// same shape, which is a view and keeps the graph.
    pub(crate) fn into_raw(self) -> host::Tensor {
        Rc::try_unwrap(self.0).unwrap_or_else(|shared| {
            let shape: Vec<i32> = host::shape(&shared).iter().map(|&n| n as i32).collect();
            host::reshape(&shared, &shape)
        })
    }

    /// An f32 tensor from numbers in row-major order. Meant for small control data; metered.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// let rows = Tensor::from_list(&[1.0, 2.0, 3.0, 4.0], &[2, 2]);
    /// ```
    pub fn from_list(values: &[f64], shape: &[u32]) -> Tensor {
        Tensor::from_list_as(values, shape, Dtype::F32)
    }

    /// As [`Tensor::from_list`], of a given dtype; i64 is exact to 2^53.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # use espalier_sdk::Dtype;
    /// let flags = Tensor::from_list_as(&[1.0, 0.0], &[2], Dtype::Bool);
    /// ```
    pub fn from_list_as(values: &[f64], shape: &[u32], dtype: Dtype) -> Tensor {
        Tensor::from_raw(host::from_list(values, shape, dtype))
    }

    /// Indices (i64) [values.len()].
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// let places = Tensor::indices([4, 0, 2]);
    /// ```
    pub fn indices(values: impl IntoIterator<Item = u64>) -> Tensor {
        let values: Vec<f64> = values.into_iter().map(|i| i as f64).collect();
        Tensor::from_list_as(&values, &[values.len() as u32], Dtype::I64)
    }

    /// An f32 tensor of one number, without axes.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// let half = Tensor::scalar(0.5);
    /// ```
    pub fn scalar(value: f64) -> Tensor {
        Tensor::full(&[], value, Dtype::F32)
    }

    /// A tensor whose elements all are `value`.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # use espalier_sdk::Dtype;
    /// let count = Tensor::full(&[3], 7.0, Dtype::I64);
    /// ```
    pub fn full(shape: &[u32], value: f64, dtype: Dtype) -> Tensor {
        Tensor::from_raw(host::full(shape, value, dtype))
    }

    /// f32 zeros.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// let start = Tensor::zeros(&[128, 10]);
    /// ```
    pub fn zeros(shape: &[u32]) -> Tensor {
        Tensor::full(shape, 0.0, Dtype::F32)
    }

    /// f32 ones.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// let dense = Tensor::ones(&[128, 10]);
    /// ```
    pub fn ones(shape: &[u32]) -> Tensor {
        Tensor::full(shape, 1.0, Dtype::F32)
    }

    /// Zeros of the shape and dtype of `self`.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(weight: &Tensor) {
    /// let momentum = weight.zeros_like();
    /// # }
    /// ```
    pub fn zeros_like(&self) -> Tensor {
        Tensor::full(&self.shape(), 0.0, self.dtype())
    }

    /// Ones of the shape and dtype of `self`.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(weight: &Tensor) {
    /// let mask = weight.ones_like();
    /// # }
    /// ```
    pub fn ones_like(&self) -> Tensor {
        Tensor::full(&self.shape(), 1.0, self.dtype())
    }

    /// start, start + step, ... up to but not including stop, f32.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// let halves = Tensor::arange(0.0, 2.0, 0.5); // 0, 0.5, 1, 1.5
    /// ```
    pub fn arange(start: f64, stop: f64, step: f64) -> Tensor {
        Tensor::arange_as(start, stop, step, Dtype::F32)
    }

    /// As [`Tensor::arange`], of a given dtype.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # use espalier_sdk::Dtype;
    /// let places = Tensor::arange_as(0.0, 4.0, 1.0, Dtype::I64);
    /// ```
    pub fn arange_as(start: f64, stop: f64, step: f64, dtype: Dtype) -> Tensor {
        Tensor::from_raw(host::arange(start, stop, step, dtype))
    }

    /// Sizes of the axes; empty for a scalar.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(images: &Tensor) {
    /// if let [count, channels, height, width] = images.shape()[..] {
    ///     assert!(count > 0 && channels > 0 && height == width);
    /// }
    /// # }
    /// ```
    pub fn shape(&self) -> Vec<u32> {
        host::shape(self.raw())
    }

    /// How many axes.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor) {
    /// let is_matrix = x.rank() == 2;
    /// # }
    /// ```
    pub fn rank(&self) -> usize {
        self.shape().len()
    }

    /// Size of one axis. Panics if there is no such axis.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(logits: &Tensor) {
    /// let classes = logits.size(-1);
    /// # }
    /// ```
    pub fn size(&self, axis: i32) -> u32 {
        let shape = self.shape();
        shape[at(axis, shape.len())]
    }

    /// How many elements.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(weight: &Tensor) {
    /// let bytes = 4 * weight.numel();
    /// # }
    /// ```
    pub fn numel(&self) -> u64 {
        self.shape().iter().map(|&n| u64::from(n)).product()
    }

    /// The element type.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # use espalier_sdk::Dtype;
    /// # fn f(x: &Tensor) {
    /// let is_float = matches!(x.dtype(), Dtype::F32 | Dtype::F64);
    /// # }
    /// ```
    pub fn dtype(&self) -> Dtype {
        host::dtype_of(self.raw())
    }

    /// The only element. Waits for the device.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(loss: &Tensor) {
    /// let value: f64 = loss.item();
    /// # }
    /// ```
    pub fn item(&self) -> f64 {
        host::item(self.raw())
    }

    /// All elements in row-major order. Waits for the device; metered.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(norms: &Tensor) {
    /// let largest = norms.to_list().into_iter().fold(0.0, f64::max);
    /// # }
    /// ```
    pub fn to_list(&self) -> Vec<f64> {
        host::to_list(self.raw())
    }

    /// The same values as another dtype. To i64 truncates toward zero; to bool is "not 0".
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # use espalier_sdk::Dtype;
    /// # fn f(correct: &Tensor) {
    /// let hits = correct.astype(Dtype::F32).mean(&[]);
    /// # }
    /// ```
    pub fn astype(&self, dtype: Dtype) -> Tensor {
        Tensor::from_raw(host::astype(self.raw(), dtype))
    }
}

/// Shapes.
impl Tensor {
    /// The same elements under another shape; one size may be -1.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(images: &Tensor) {
    /// let rows = images.reshape(&[-1, 28 * 28]);
    /// # }
    /// ```
    pub fn reshape(&self, shape: &[i32]) -> Tensor {
        Tensor::from_raw(host::reshape(self.raw(), shape))
    }

    /// Axes in another order, each exactly once.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(images: &Tensor) {
    /// let channels_last = images.permute_dims(&[0, 2, 3, 1]);
    /// # }
    /// ```
    pub fn permute_dims(&self, axes: &[u32]) -> Tensor {
        Tensor::from_raw(host::permute_dims(self.raw(), axes))
    }

    /// Axes of size 1 (and missing leading ones) repeated to the shape.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(bias: &Tensor) {
    /// let rows = bias.broadcast_to(&[64, 10]);
    /// # }
    /// ```
    pub fn broadcast_to(&self, shape: &[u32]) -> Tensor {
        Tensor::from_raw(host::broadcast_to(self.raw(), shape))
    }

    /// Elements start (included) to stop (excluded) along an axis; negative positions count from the end.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor) {
    /// let all_but_last = x.slice(0, 0, -1);
    /// # }
    /// ```
    pub fn slice(&self, axis: i32, start: i32, stop: i32) -> Tensor {
        Tensor::from_raw(host::slice(self.raw(), axis, start, stop))
    }

    /// Tensors joined along an existing axis.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(a: &Tensor, b: &Tensor) {
    /// let side_by_side = Tensor::concat(&[a, b], 1);
    /// # }
    /// ```
    pub fn concat(ts: &[&Tensor], axis: i32) -> Tensor {
        let raw: Vec<&host::Tensor> = ts.iter().map(|t| t.raw()).collect();
        Tensor::from_raw(host::concat(&raw, axis))
    }
}

/// Arithmetic, element by element, with broadcasting.
impl Tensor {
    binary! {
        /// self + other.
        ///
        /// ```no_run
        /// # use espalier_sdk::Tensor;
        /// # fn f(a: &Tensor, b: &Tensor) {
        /// let sum = a.add(b); // or: a + b
        /// # }
        /// ```
        add
        /// self - other.
        ///
        /// ```no_run
        /// # use espalier_sdk::Tensor;
        /// # fn f(a: &Tensor, b: &Tensor) {
        /// let difference = a.subtract(b); // or: a - b
        /// # }
        /// ```
        subtract
        /// self * other.
        ///
        /// ```no_run
        /// # use espalier_sdk::Tensor;
        /// # fn f(a: &Tensor) {
        /// let doubled = a.multiply(2.0); // or: a * 2.0
        /// # }
        /// ```
        multiply
        /// self / other. Floats only.
        ///
        /// ```no_run
        /// # use espalier_sdk::Tensor;
        /// # fn f(a: &Tensor, b: &Tensor) {
        /// let ratio = a.divide(b); // or: a / b
        /// # }
        /// ```
        divide
        /// The larger of each pair; NaN if either is. The gradient of a tie goes to `self`.
        ///
        /// ```no_run
        /// # use espalier_sdk::Tensor;
        /// # fn f(x: &Tensor) {
        /// let not_negative = x.maximum(0.0);
        /// # }
        /// ```
        maximum
        /// The smaller of each pair; NaN if either is. The gradient of a tie goes to `self`.
        ///
        /// ```no_run
        /// # use espalier_sdk::Tensor;
        /// # fn f(ratio: &Tensor) {
        /// let at_most_one = ratio.minimum(1.0);
        /// # }
        /// ```
        minimum
        /// self == other, as bool. No gradient.
        ///
        /// ```no_run
        /// # use espalier_sdk::Tensor;
        /// # fn f(classes: &Tensor, targets: &Tensor) {
        /// let correct = classes.equal(targets);
        /// # }
        /// ```
        equal
        /// self < other, as bool. No gradient.
        ///
        /// ```no_run
        /// # use espalier_sdk::Tensor;
        /// # fn f(scores: &Tensor) {
        /// let small = scores.less(1e-3);
        /// # }
        /// ```
        less
    }

    /// `a` where `self` (bool) holds, else `b`; all three broadcast. The branch not taken gets gradient 0.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(mask: &Tensor, x: &Tensor) {
    /// let masked = mask.where_(x, f64::NEG_INFINITY);
    /// # }
    /// ```
    pub fn where_<'a>(&self, a: impl Into<Operand<'a>>, b: impl Into<Operand<'a>>) -> Tensor {
        Tensor::from_raw(host::where_(self.raw(), &a.into().raw(), &b.into().raw()))
    }

    unary! {
        /// |t|; gradient sign(t), 0 at 0.
        ///
        /// ```no_run
        /// # use espalier_sdk::Tensor;
        /// # fn f(w: &Tensor) {
        /// let magnitudes = w.abs();
        /// # }
        /// ```
        abs
        /// e^t.
        ///
        /// ```no_run
        /// # use espalier_sdk::Tensor;
        /// # fn f(logratio: &Tensor) {
        /// let ratio = logratio.exp();
        /// # }
        /// ```
        exp
        /// e^t - 1, accurate near 0.
        ///
        /// ```no_run
        /// # use espalier_sdk::Tensor;
        /// # fn f(x: &Tensor) {
        /// let growth = x.expm1();
        /// # }
        /// ```
        expm1
        /// Natural logarithm.
        ///
        /// ```no_run
        /// # use espalier_sdk::Tensor;
        /// # fn f(p: &Tensor) {
        /// let bits = p.log() / std::f64::consts::LN_2;
        /// # }
        /// ```
        log
        /// Square root; the gradient at 0 is infinite.
        ///
        /// ```no_run
        /// # use espalier_sdk::Tensor;
        /// # fn f(variance: &Tensor) {
        /// let deviation = (variance + 1e-8).sqrt();
        /// # }
        /// ```
        sqrt
        /// Sine of radians.
        ///
        /// ```no_run
        /// # use espalier_sdk::Tensor;
        /// # fn f(phase: &Tensor) {
        /// let wave = phase.sin();
        /// # }
        /// ```
        sin
        /// Cosine of radians.
        ///
        /// ```no_run
        /// # use espalier_sdk::Tensor;
        /// # fn f(phase: &Tensor) {
        /// let wave = phase.cos();
        /// # }
        /// ```
        cos
        /// Arc cosine; the gradient is infinite at -1 and 1: clip first.
        ///
        /// ```no_run
        /// # use espalier_sdk::Tensor;
        /// # fn f(cosine: &Tensor) {
        /// let angle = cosine.clip(-1.0 + 1e-6, 1.0 - 1e-6).acos();
        /// # }
        /// ```
        acos
        /// Hyperbolic tangent.
        ///
        /// ```no_run
        /// # use espalier_sdk::Tensor;
        /// # fn f(x: &Tensor) {
        /// let bounded = x.tanh();
        /// # }
        /// ```
        tanh
        /// 1 / (1 + e^-t).
        ///
        /// ```no_run
        /// # use espalier_sdk::Tensor;
        /// # fn f(logits: &Tensor) {
        /// let gate = logits.sigmoid();
        /// # }
        /// ```
        sigmoid
        /// max(t, 0); derivative 0 at 0.
        ///
        /// ```no_run
        /// # use espalier_sdk::Tensor;
        /// # fn f(x: &Tensor) {
        /// let hidden = x.relu();
        /// # }
        /// ```
        relu
        /// t Phi(t), the exact (erf) form.
        ///
        /// ```no_run
        /// # use espalier_sdk::Tensor;
        /// # fn f(x: &Tensor) {
        /// let hidden = x.gelu();
        /// # }
        /// ```
        gelu
        /// log(1 + e^t), stable for both signs.
        ///
        /// ```no_run
        /// # use espalier_sdk::Tensor;
        /// # fn f(x: &Tensor) {
        /// let scale = x.softplus() + 1e-3;
        /// # }
        /// ```
        softplus
    }
}

/// Reductions, order and indexing.
impl Tensor {
    /// Sum over the axes; no axes means all.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor) {
    /// let rows = x.sum(&[-1]);
    /// let everything = x.sum(&[]);
    /// # }
    /// ```
    pub fn sum(&self, axes: &[i32]) -> Tensor {
        Tensor::from_raw(host::sum(self.raw(), axes, false))
    }

    /// As [`Tensor::sum`], the axes kept with size 1.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(p: &Tensor) {
    /// let normalised = p / p.sum_keepdims(&[-1]);
    /// # }
    /// ```
    pub fn sum_keepdims(&self, axes: &[i32]) -> Tensor {
        Tensor::from_raw(host::sum(self.raw(), axes, true))
    }

    /// Largest along an axis; the gradient goes to the lowest index that holds it.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(logits: &Tensor) {
    /// let best = logits.max(-1);
    /// # }
    /// ```
    pub fn max(&self, axis: i32) -> Tensor {
        Tensor::from_raw(host::max(self.raw(), axis, false))
    }

    /// As [`Tensor::max`], the axis kept with size 1.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor) {
    /// let shifted = x - x.max_keepdims(-1);
    /// # }
    /// ```
    pub fn max_keepdims(&self, axis: i32) -> Tensor {
        Tensor::from_raw(host::max(self.raw(), axis, true))
    }

    /// Index (i64) of the largest along an axis; the lowest wins ties. No gradient.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(logits: &Tensor) {
    /// let classes = logits.argmax(-1);
    /// # }
    /// ```
    pub fn argmax(&self, axis: i32) -> Tensor {
        Tensor::from_raw(host::argmax(self.raw(), axis))
    }

    /// Running sum along an axis.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(p: &Tensor) {
    /// let distribution = p.cumulative_sum(-1);
    /// # }
    /// ```
    pub fn cumulative_sum(&self, axis: i32) -> Tensor {
        Tensor::from_raw(host::cumulative_sum(self.raw(), axis))
    }

    /// Indices (i64) that sort along an axis, stable both ways, NaN last. No gradient.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(scores: &Tensor) {
    /// let best_first = scores.argsort(0, true);
    /// # }
    /// ```
    pub fn argsort(&self, axis: i32, descending: bool) -> Tensor {
        Tensor::from_raw(host::argsort(self.raw(), axis, descending))
    }

    /// The k largest along an axis, descending, and their indices (i64); ties by lower index, so counts are
    /// exact.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(scores: &Tensor) {
    /// let (values, places) = scores.top_k(10, -1);
    /// # }
    /// ```
    pub fn top_k(&self, k: u32, axis: i32) -> (Tensor, Tensor) {
        let (values, indices) = host::top_k(self.raw(), k, axis);
        (Tensor::from_raw(values), Tensor::from_raw(indices))
    }

    /// Slices at i64 indices of any shape along an axis: the axis is replaced by the indices' axes.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(table: &Tensor, tokens: &Tensor) {
    /// let embedded = table.take(tokens, 0);
    /// # }
    /// ```
    pub fn take(&self, indices: &Tensor, axis: i32) -> Tensor {
        Tensor::from_raw(host::take(self.raw(), indices.raw(), axis))
    }

    /// One element per index: `indices` has the rank of `self` and its sizes but for `axis`.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(logprobs: &Tensor, actions: &Tensor) {
    /// let chosen = logprobs.take_along_axis(&actions.expand_dims(-1), -1).squeeze(-1);
    /// # }
    /// ```
    pub fn take_along_axis(&self, indices: &Tensor, axis: i32) -> Tensor {
        Tensor::from_raw(host::take_along_axis(self.raw(), indices.raw(), axis))
    }

    /// `self` with `src` added at the indices along an axis; indices are 1-d (whole slices) or of the shape of
    /// `src`. Repeated indices add. Not in place.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(ids: &Tensor) {
    /// let counts = Tensor::zeros(&[10]).scatter_add(ids, &Tensor::ones(&ids.shape()), 0);
    /// # }
    /// ```
    pub fn scatter_add(&self, indices: &Tensor, src: &Tensor, axis: i32) -> Tensor {
        Tensor::from_raw(host::scatter_add(
            self.raw(),
            indices.raw(),
            src.raw(),
            axis,
        ))
    }

    /// Largest of each segment of axis 0: `ids` (i64 `[rows]`) in [0, n); an empty segment is -inf. No gradient.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor, ids: &Tensor) {
    /// let peaks = x.segment_max(ids, 8);
    /// # }
    /// ```
    pub fn segment_max(&self, ids: &Tensor, n: u32) -> Tensor {
        Tensor::from_raw(host::segment_max(self.raw(), ids.raw(), n))
    }
}

/// Geometry of a 2-d convolution: (along height, along width) each.
///
/// ```no_run
/// # use espalier_sdk::Tensor;
/// # use espalier_sdk::tensor::Conv2d;
/// # fn f(images: &Tensor, kernel: &Tensor) {
/// let halved = images.conv2d(kernel, Conv2d { stride: (2, 2), ..Conv2d::default() });
/// # }
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Conv2d {
    /// Step of the kernel.
    pub stride: (u32, u32),
    /// Zeros added on both sides.
    pub padding: (u32, u32),
    /// Distance of the kernel's taps.
    pub dilation: (u32, u32),
    /// Independent groups of channels.
    pub groups: u32,
}

impl Default for Conv2d {
    fn default() -> Self {
        Conv2d {
            stride: (1, 1),
            padding: (0, 0),
            dilation: (1, 1),
            groups: 1,
        }
    }
}

/// Blocks of networks.
impl Tensor {
    /// Matrix product of the last two axes, leading axes broadcast: `[.., m, k]` x `[.., k, n]` -> `[.., m, n]`.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(q: &Tensor, k: &Tensor) {
    /// let scores = q.matmul(&k.t());
    /// # }
    /// ```
    pub fn matmul(&self, other: &Tensor) -> Tensor {
        Tensor::from_raw(host::matmul(self.raw(), other.raw()))
    }

    /// Cross-correlation: `[n, c, h, w]` with a kernel `[o, c / groups, kh, kw]` -> [n, o, h', w'].
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # use espalier_sdk::tensor::Conv2d;
    /// # fn f(images: &Tensor, kernel: &Tensor) {
    /// let options = Conv2d { padding: (1, 1), ..Conv2d::default() };
    /// let y = images.conv2d(kernel, options);
    /// # }
    /// ```
    pub fn conv2d(&self, kernel: &Tensor, options: Conv2d) -> Tensor {
        let Conv2d {
            stride,
            padding,
            dilation,
            groups,
        } = options;
        Tensor::from_raw(host::conv2d(
            self.raw(),
            kernel.raw(),
            stride,
            padding,
            dilation,
            groups,
        ))
    }

    /// Batch normalisation over all axes but axis 1: (y, mean, biased variance). Without `stats` (mean,
    /// variance) the batch's own are used and returned, tracked.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor, weight: &Tensor, bias: &Tensor) {
    /// let (y, mean, variance) = x.batch_norm(Some(weight), Some(bias), None, 1e-5);
    /// # }
    /// ```
    pub fn batch_norm(
        &self,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        stats: Option<(&Tensor, &Tensor)>,
        eps: f64,
    ) -> (Tensor, Tensor, Tensor) {
        let stats = stats.map(|(mean, variance)| (mean.raw(), variance.raw()));
        let (y, mean, variance) = host::batch_norm(
            self.raw(),
            weight.map(Tensor::raw),
            bias.map(Tensor::raw),
            stats,
            eps,
        );
        (
            Tensor::from_raw(y),
            Tensor::from_raw(mean),
            Tensor::from_raw(variance),
        )
    }

    /// (x - mean) / sqrt(variance + eps) over the axes, times weight plus bias where given.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(x: &Tensor) {
    /// let y = x.layer_norm(&[-1], None, None, 1e-5);
    /// # }
    /// ```
    pub fn layer_norm(
        &self,
        axes: &[i32],
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        eps: f64,
    ) -> Tensor {
        let (weight, bias) = (weight.map(Tensor::raw), bias.map(Tensor::raw));
        Tensor::from_raw(host::layer_norm(self.raw(), axes, weight, bias, eps))
    }

    /// e^t / sum e^t along an axis.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(logits: &Tensor) {
    /// let probabilities = logits.softmax(-1);
    /// # }
    /// ```
    pub fn softmax(&self, axis: i32) -> Tensor {
        Tensor::from_raw(host::softmax(self.raw(), axis))
    }

    /// log(softmax(t)) along an axis.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(logits: &Tensor) {
    /// let logprobs = logits.log_softmax(-1);
    /// # }
    /// ```
    pub fn log_softmax(&self, axis: i32) -> Tensor {
        Tensor::from_raw(host::log_softmax(self.raw(), axis))
    }

    /// -sum target log softmax(self) over the last axis, one loss a row: logits `[.., c]`; target i64 classes
    /// `[..]` or a distribution `[.., c]`.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(logits: &Tensor, targets: &Tensor) {
    /// let loss = logits.cross_entropy(targets).mean(&[]);
    /// # }
    /// ```
    pub fn cross_entropy(&self, target: &Tensor) -> Tensor {
        Tensor::from_raw(host::cross_entropy(self.raw(), target.raw()))
    }

    /// softmax(q k^T / sqrt(d) + bias) v over `[.., t, d]`, with `self` as q; the bias doubles as a mask.
    ///
    /// ```no_run
    /// # use espalier_sdk::Tensor;
    /// # fn f(q: &Tensor, k: &Tensor, v: &Tensor) {
    /// let y = q.scaled_dot_product_attention(k, v, None, true);
    /// # }
    /// ```
    pub fn scaled_dot_product_attention(
        &self,
        k: &Tensor,
        v: &Tensor,
        bias: Option<&Tensor>,
        causal: bool,
    ) -> Tensor {
        let bias = bias.map(Tensor::raw);
        Tensor::from_raw(host::scaled_dot_product_attention(
            self.raw(),
            k.raw(),
            v.raw(),
            bias,
            causal,
        ))
    }
}

/// The place of an axis that may be counted from the end.
pub(crate) fn at(axis: i32, rank: usize) -> usize {
    let place = if axis < 0 { axis + rank as i32 } else { axis };
    assert!(
        0 <= place && (place as usize) < rank,
        "axis {axis} of a tensor with {rank} axes"
    );
    place as usize
}

macro_rules! operator {
    ($trait:ident $method:ident $call:ident) => {
        impl $trait<&Tensor> for &Tensor {
            type Output = Tensor;
            fn $method(self, other: &Tensor) -> Tensor {
                Tensor::$call(self, other)
            }
        }
        impl $trait<f64> for &Tensor {
            type Output = Tensor;
            fn $method(self, other: f64) -> Tensor {
                Tensor::$call(self, other)
            }
        }
        impl $trait<Tensor> for &Tensor {
            type Output = Tensor;
            fn $method(self, other: Tensor) -> Tensor {
                Tensor::$call(self, &other)
            }
        }
        impl $trait<Tensor> for Tensor {
            type Output = Tensor;
            fn $method(self, other: Tensor) -> Tensor {
                Tensor::$call(&self, &other)
            }
        }
        impl $trait<&Tensor> for Tensor {
            type Output = Tensor;
            fn $method(self, other: &Tensor) -> Tensor {
                Tensor::$call(&self, other)
            }
        }
        impl $trait<f64> for Tensor {
            type Output = Tensor;
            fn $method(self, other: f64) -> Tensor {
                Tensor::$call(&self, other)
            }
        }
        impl $trait<&Tensor> for f64 {
            type Output = Tensor;
            fn $method(self, other: &Tensor) -> Tensor {
                Tensor::from_raw(host::$call(
                    &host::Operand::Scalar(self),
                    &host::Operand::Tensor(other.raw()),
                ))
            }
        }
        impl $trait<Tensor> for f64 {
            type Output = Tensor;
            fn $method(self, other: Tensor) -> Tensor {
                $trait::$method(self, &other)
            }
        }
    };
}

operator!(Add add add);
operator!(Sub sub subtract);
operator!(Mul mul multiply);
operator!(Div div divide);

impl Neg for &Tensor {
    type Output = Tensor;
    fn neg(self) -> Tensor {
        self * -1.0
    }
}

impl Neg for Tensor {
    type Output = Tensor;
    fn neg(self) -> Tensor {
        &self * -1.0
    }
}
