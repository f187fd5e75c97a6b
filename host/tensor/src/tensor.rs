//! The tensor handle: storage, layout, and its place in the gradient graph.

use std::fmt;

use crate::autograd::{self, Node};
use crate::capture;
use crate::copy::copy_out;
use crate::counted::{Counted, Pair};
use crate::dtype::{DType, Element, with_element};
use crate::error::{Error, Result};
use crate::layout::{Layout, Walk, count};
use crate::storage::{Storage, zeroed_vec};

/// A handle to a tensor. Cloning it copies no elements; the elements never change while it is shared.
#[derive(Clone)]
pub struct Tensor(Counted<Pair<Place, Layout>>);

/// What a handle names beside how the elements lie: them, and what made them. Behind one pointer, because handles are
/// moved far more often than made.
struct Place {
    storage: Counted<Storage>,
    node: Option<Counted<Node>>,
}

/// One side of an arithmetic operation: a tensor, or a number that takes the other side's type.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    /// A tensor.
    Tensor(&'a Tensor),
    /// A number, converted to the element type of the tensor beside it.
    Scalar(f64),
}

impl<'a> From<&'a Tensor> for Operand<'a> {
    fn from(tensor: &'a Tensor) -> Operand<'a> {
        Operand::Tensor(tensor)
    }
}

impl From<f64> for Operand<'_> {
    fn from(value: f64) -> Self {
        Operand::Scalar(value)
    }
}

impl Tensor {
    /// A tensor that takes over `values`, row-major, without a copy.
    ///
    /// # Errors
    /// [`Error::Shape`] where `values.len()` is not the product of `shape`; [`Error::Budget`].
    pub fn from_vec<E: Element>(values: Vec<E>, shape: &[usize]) -> Result<Tensor> {
        Tensor::from_vec_for("from_vec", values, shape)
    }

    /// As [`from_vec`](Tensor::from_vec), naming the operation in errors. The way a kernel returns its
    /// output when it did not write into [`Tensor::build`].
    pub(crate) fn from_vec_for<E: Element>(
        op: &'static str,
        values: Vec<E>,
        shape: &[usize],
    ) -> Result<Tensor> {
        let layout = Layout::dense(op, shape)?;
        if layout.numel() != values.len() {
            return Err(Error::shape(
                op,
                format!("{} values do not fill the shape", values.len()),
                &[shape],
            ));
        }
        Ok(Tensor::of(op, Storage::from_vec(op, values)?, layout))
    }

    /// A tensor of `dtype` from numbers in row-major order. i64 truncates toward 0, bool is `!= 0`.
    ///
    /// # Errors
    /// As [`from_vec`](Tensor::from_vec).
    pub fn from_f64s(values: &[f64], shape: &[usize], dtype: DType) -> Result<Tensor> {
        const OP: &str = "from_list";
        if count(OP, shape)? != values.len() {
            return Err(Error::shape(
                OP,
                format!("{} values do not fill the shape", values.len()),
                &[shape],
            ));
        }
        let out = with_element!(dtype, E => Tensor::build_unset::<E>(OP, shape, |out| {
            for (o, v) in out.iter_mut().zip(values) {
                *o = E::from_f64(*v);
            }
        }))?;
        capture::constant(&out);
        Ok(out)
    }

    /// A tensor of one value.
    ///
    /// # Errors
    /// [`Error::Rank`], [`Error::Size`], [`Error::Budget`], [`Error::Memory`].
    pub fn full(shape: &[usize], value: f64, dtype: DType) -> Result<Tensor> {
        Tensor::full_for("full", shape, value, dtype)
    }

    pub(crate) fn full_for(
        op: &'static str,
        shape: &[usize],
        value: f64,
        dtype: DType,
    ) -> Result<Tensor> {
        let out = with_element!(dtype, E => {
            let value = E::from_f64(value);
            Tensor::build_unset::<E>(op, shape, |out| out.fill(value))
        })?;
        capture::constant(&out);
        Ok(out)
    }

    /// Zeros (false for bool).
    ///
    /// # Errors
    /// As [`full`](Tensor::full).
    pub fn zeros(shape: &[usize], dtype: DType) -> Result<Tensor> {
        Tensor::zeros_for("zeros", shape, dtype)
    }

    pub(crate) fn zeros_for(op: &'static str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let out = with_element!(dtype, E => Tensor::build::<E>(op, shape, |_| ()))?;
        capture::constant(&out);
        Ok(out)
    }

    /// Ones (true for bool).
    ///
    /// # Errors
    /// As [`full`](Tensor::full).
    pub fn ones(shape: &[usize], dtype: DType) -> Result<Tensor> {
        Tensor::full_for("ones", shape, 1.0, dtype)
    }

    /// A contiguous tensor whose zeroed elements `fill` writes. The usual way a kernel makes its output:
    /// the account is charged first, and the size is checked.
    pub(crate) fn build<E: Element>(
        op: &'static str,
        shape: &[usize],
        fill: impl FnOnce(&mut [E]),
    ) -> Result<Tensor> {
        let mut layout = Layout::scalar();
        let mut storage = blank::<E>(op, shape, &mut layout)?;
        if let Some(out) = storage.slice_mut::<E>() {
            fill(out);
        }
        Ok(Tensor::of(op, storage, layout))
    }

    /// As [`build`](Tensor::build), for a kernel that writes every element: they come with whatever the
    /// memory held, which saves a pass over it.
    pub(crate) fn build_unset<E: Element>(
        op: &'static str,
        shape: &[usize],
        write_all: impl FnOnce(&mut [E]),
    ) -> Result<Tensor> {
        let mut layout = Layout::scalar();
        let mut storage = unset::<E>(op, shape, &mut layout)?;
        if let Some(out) = storage.slice_mut::<E>() {
            write_all(out);
        }
        Ok(Tensor::of(op, storage, layout))
    }

    /// As [`build`](Tensor::build), for a kernel that can fail.
    pub(crate) fn try_build<E: Element>(
        op: &'static str,
        shape: &[usize],
        fill: impl FnOnce(&mut [E]) -> Result<()>,
    ) -> Result<Tensor> {
        let mut layout = Layout::scalar();
        let mut storage = blank::<E>(op, shape, &mut layout)?;
        if let Some(out) = storage.slice_mut::<E>() {
            fill(out)?;
        }
        Ok(Tensor::of(op, storage, layout))
    }

    /// A new untracked tensor. Kept out of the generic functions above, of which there are hundreds.
    fn of(op: &'static str, storage: Storage, layout: Layout) -> Tensor {
        let t = Tensor::at(Counted::new(storage), layout, None);
        capture::made(op, &t);
        t
    }

    fn at(storage: Counted<Storage>, layout: Layout, node: Option<Counted<Node>>) -> Tensor {
        Tensor(Counted::pair(Place { storage, node }, layout))
    }

    fn place(&self) -> &Place {
        &self.0.0
    }

    /// Sizes of the axes; empty for a scalar.
    pub fn shape(&self) -> &[usize] {
        &self.layout().shape
    }

    /// The number of axes.
    pub fn rank(&self) -> usize {
        self.layout().shape.len()
    }

    /// The number of elements.
    pub fn numel(&self) -> usize {
        self.layout().numel()
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.place().storage.dtype()
    }

    /// Bytes the elements take when contiguous. A view may hold more (its base) or less (a broadcast).
    pub fn byte_len(&self) -> usize {
        self.numel().saturating_mul(self.dtype().size())
    }

    /// Whether the elements lie row-major without gaps.
    pub fn is_contiguous(&self) -> bool {
        self.layout().is_dense()
    }

    /// Whether gradients flow into this tensor.
    pub fn requires_grad(&self) -> bool {
        self.place().node.is_some()
    }

    /// Whether no operation made this tensor, as far as gradients know.
    pub fn is_leaf(&self) -> bool {
        self.place().node.as_ref().is_none_or(|n| n.is_leaf())
    }

    /// The same elements without a place in the graph.
    pub fn detach(&self) -> Tensor {
        if self.place().node.is_none() {
            return self.clone();
        }
        Tensor::at(self.place().storage.clone(), *self.layout(), None)
    }

    /// The same elements as a new leaf that gradients flow into. A tensor of integers or truth values
    /// has no gradient and is returned untracked.
    pub fn with_requires_grad(&self) -> Tensor {
        if !self.dtype().is_float() {
            return self.detach();
        }
        let node = Some(Node::leaf(self));
        Tensor::at(self.place().storage.clone(), *self.layout(), node)
    }

    /// As [`with_requires_grad`](Tensor::with_requires_grad), with another value for the way back: where this
    /// leaf is an operand of a product (matrix product, convolution, linear and recurrent layers), the gradient of
    /// the other operand is computed with `backward` in its place. The gradient of the leaf is what it is without.
    /// Views of the leaf keep it, all other operations drop it; a gradient of a gradient takes it for a constant.
    ///
    /// # Errors
    /// [`Error::Shape`] or [`Error::DType`] unless `backward` is like this tensor.
    pub fn with_backward(&self, backward: &Tensor) -> Result<Tensor> {
        const OP: &str = "with_backward";
        if backward.shape() != self.shape() {
            let shapes = [self.shape(), backward.shape()];
            return Err(Error::shape(OP, "needs two tensors of one shape", &shapes));
        }
        if backward.dtype() != self.dtype() {
            return Err(Error::DType {
                op: OP,
                found: vec![self.dtype(), backward.dtype()],
                expected: "two tensors of one element type",
            });
        }
        let leaf = self.with_requires_grad();
        if let Some(node) = leaf.node() {
            node.set_backward(backward.detach());
        }
        Ok(leaf)
    }

    /// What [`with_backward`](Tensor::with_backward) gave this leaf, or the leaf that this tensor is a view of.
    pub fn backward_value(&self) -> Option<&Tensor> {
        self.place().node.as_ref()?.backward()
    }

    /// This tensor as a product's gradient rule multiplies by it.
    pub(crate) fn on_the_way_back(&self) -> Tensor {
        self.backward_value().unwrap_or(self).clone()
    }

    /// This tensor with its elements row-major without gaps: itself where they are already, else a copy
    /// through which gradients flow.
    ///
    /// # Errors
    /// [`Error::Budget`], [`Error::Memory`].
    pub fn contiguous(&self) -> Result<Tensor> {
        if self.is_contiguous() {
            return Ok(self.clone());
        }
        let copy = self.copied("contiguous")?;
        let y = autograd::record("contiguous", copy, &[self], |flow| {
            Ok(vec![Some(flow.grad.clone())])
        });
        autograd::carry_backward(y, self, Tensor::contiguous)
    }

    /// The elements without a graph, row-major without gaps: what a kernel reads through
    /// [`data`](Tensor::data).
    pub(crate) fn dense(&self, op: &'static str) -> Result<Tensor> {
        if self.is_contiguous() {
            Ok(self.detach())
        } else {
            self.copied(op)
        }
    }

    fn copied(&self, op: &'static str) -> Result<Tensor> {
        let out = with_element!(self.dtype(), E => {
            let source = self.storage_slice::<E>(op)?;
            Tensor::build_unset::<E>(op, self.shape(), |out| copy_out(source, self.layout(), out))
        })?;
        capture::note("copy", &[], &[self], &out, || |t| t[0].copied("copy"));
        Ok(out)
    }

    /// A walk over this tensor alone.
    fn walk(&self) -> Walk<1> {
        Walk::new(
            self.shape(),
            [(&self.layout().strides, self.layout().offset)],
        )
    }

    /// The elements of a contiguous tensor as a slice.
    ///
    /// # Errors
    /// [`Error::Internal`] for another element type or a tensor with gaps: a defect of the caller.
    pub(crate) fn data<E: Element>(&self) -> Result<&[E]> {
        let all = self.storage_slice::<E>("data")?;
        if !self.is_contiguous() {
            return Err(Error::Internal {
                op: "data",
                problem: "the tensor is not contiguous; call dense() first".into(),
            });
        }
        let n = self.numel();
        if n == 0 {
            return Ok(&[]);
        }
        Ok(&all[self.layout().offset..self.layout().offset + n])
    }

    /// The whole storage, which a layout's offset and strides index.
    pub(crate) fn storage_slice<E: Element>(&self, op: &'static str) -> Result<&[E]> {
        self.place()
            .storage
            .slice::<E>()
            .ok_or_else(|| Error::Internal {
                op,
                problem: format!("elements are {}, not {}", self.dtype(), E::DTYPE),
            })
    }

    /// The elements for writing, if this handle is the only one to its storage, contiguous, and of type
    /// `E`. Lets an optimiser update in place; everything else makes new tensors.
    pub(crate) fn data_mut<E: Element>(&mut self) -> Option<&mut [E]> {
        if !self.is_contiguous() {
            return None;
        }
        let (n, offset) = (self.numel(), self.layout().offset);
        let all = self.0.get_mut()?.0.storage.get_mut()?.slice_mut::<E>()?;
        if n == 0 {
            return Some(&mut []);
        }
        Some(&mut all[offset..offset + n])
    }

    /// All elements of the storage for writing, where this handle is the only one to it.
    pub(crate) fn own_mut<E: Element>(&mut self) -> Option<&mut [E]> {
        self.0.get_mut()?.0.storage.get_mut()?.slice_mut::<E>()
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.0.1
    }

    /// What tells this tensor's elements from others' while a step is recorded; 0 until then.
    pub(crate) fn storage_mark(&self) -> u64 {
        self.place().storage.mark()
    }

    /// Sets what [`storage_mark`](Tensor::storage_mark) returns.
    pub(crate) fn mark_storage(&self, mark: u64) {
        self.place().storage.set_mark(mark);
    }

    pub(crate) fn node(&self) -> Option<&Counted<Node>> {
        self.place().node.as_ref()
    }

    pub(crate) fn with_node(mut self, node: Option<Counted<Node>>) -> Tensor {
        if let Some(place) = self.0.get_mut() {
            place.0.node = node;
            return self;
        }
        Tensor::at(self.place().storage.clone(), *self.layout(), node)
    }

    /// Another untracked layout of the same storage.
    pub(crate) fn view(&self, layout: Layout) -> Tensor {
        Tensor::at(self.place().storage.clone(), layout, None)
    }

    /// The only element.
    ///
    /// # Errors
    /// [`Error::Shape`] unless there is exactly one element.
    pub fn item(&self) -> Result<f64> {
        if self.numel() != 1 {
            return Err(Error::shape(
                "item",
                "needs exactly one element",
                &[self.shape()],
            ));
        }
        with_element!(self.dtype(), E => {
            let all = self.storage_slice::<E>("item")?;
            Ok(all[self.layout().offset].to_f64())
        })
    }

    /// All elements as numbers in row-major order.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn to_list(&self) -> Result<Vec<f64>> {
        with_element!(self.dtype(), E => {
            let mut out: Vec<f64> = zeroed_vec("to_list", self.numel())?;
            let source = self.storage_slice::<E>("to_list")?;
            let walk = self.walk();
            let [stride] = walk.inner_strides();
            walk.runs(0..out.len(), |at, len, [start]| {
                for (i, o) in out[at..at + len].iter_mut().enumerate() {
                    *o = source[start + i * stride].to_f64();
                }
            });
            Ok(out)
        })
    }

    /// All elements in row-major order.
    ///
    /// # Errors
    /// [`Error::DType`] where `E` is not the element type; [`Error::Memory`].
    pub fn to_vec<E: Element>(&self) -> Result<Vec<E>> {
        const OP: &str = "to_vec";
        let Some(source) = self.place().storage.slice::<E>() else {
            return Err(Error::DType {
                op: OP,
                found: vec![self.dtype(), E::DTYPE],
                expected: "the tensor's own element type; cast with astype",
            });
        };
        let mut out: Vec<E> = zeroed_vec(OP, self.numel())?;
        copy_out(source, self.layout(), &mut out);
        Ok(out)
    }
}

/// Makes a layout dense; its zeroed storage.
#[inline(never)]
fn blank<E: Element>(op: &'static str, shape: &[usize], layout: &mut Layout) -> Result<Storage> {
    layout.become_dense(op, shape)?;
    Storage::zeroed::<E>(op, layout.numel())
}

/// Makes a layout dense; its storage, not yet written.
#[inline(never)]
fn unset<E: Element>(op: &'static str, shape: &[usize], layout: &mut Layout) -> Result<Storage> {
    layout.become_dense(op, shape)?;
    Storage::unset::<E>(op, layout.numel())
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor({} {:?}", self.dtype(), self.shape())?;
        if self.numel() <= 16
            && let Ok(values) = self.to_list()
        {
            write!(f, " {values:?}")?;
        }
        f.write_str(if self.requires_grad() {
            ", tracked)"
        } else {
            ")"
        })
    }
}
