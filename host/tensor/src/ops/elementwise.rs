//! Arithmetic element by element, with broadcasting: functions of one tensor, of two, comparisons and
//! selection.
//!
//! A map is a zero-sized type with one inlined method, so that the loop around it is compiled for it
//! alone and vectorises. Gradient rules are tensor expressions; where recording is off the common ones
//! take one pass with a fused map instead of several.

use crate::autograd::{
    Flow, Gradients, Node, Parents, attach, grad_enabled, record, record_keeping_output,
};
use crate::capture::{self, Key, MapKernel, MapSide, as_elements, as_elements_mut};
use crate::counted::Counted;
use crate::dtype::{DType, Element, with_element, with_float};
use crate::error::{Error, Result};
use crate::layout::{Dims, Walk, broadcast_shapes, broadcast_strides};
use crate::math::{Number, Real};
use crate::ops::astype;
use crate::simd::{self, Kernel};
use crate::tensor::{Operand, Tensor};
use crate::threads::{BLOCK, for_blocks};

/// A function of one element.
pub(crate) trait Map1<A, O>: Copy + Send + Sync + 'static {
    /// Whether some elements are easier than others: loops then ask.
    const PICKS: bool = false;
    fn f(self, a: A) -> O;
    /// Whether [`f_easy`](Self::f_easy) may be asked for this element.
    #[inline(always)]
    fn is_easy(self, _: A) -> bool {
        true
    }
    /// What `f` gives for an easy element, without a branch.
    #[inline(always)]
    fn f_easy(self, a: A) -> O {
        self.f(a)
    }
}

/// Elements that are asked together whether they are all easy.
const GROUP: usize = 64;

/// A function of two elements.
pub(crate) trait Map2<A, O>: Copy + Send + Sync + 'static {
    fn f(self, a: A, b: A) -> O;
}

struct Run1<'a, A, O, M> {
    a: &'a [A],
    stride: usize,
    out: &'a mut [O],
    map: M,
}

impl<A: Element, O: Element, M: Map1<A, O>> Kernel for Run1<'_, A, O, M> {
    type Out = ();
    #[inline(always)]
    fn run(self) {
        let Run1 {
            a,
            stride,
            out,
            map,
        } = self;
        match stride {
            1 if M::PICKS => {
                let a = &a[..out.len()];
                for (out, a) in out.chunks_mut(GROUP).zip(a.chunks(GROUP)) {
                    if a.iter().fold(true, |easy, a| easy & map.is_easy(*a)) {
                        for (o, a) in out.iter_mut().zip(a) {
                            *o = map.f_easy(*a);
                        }
                    } else {
                        for (o, a) in out.iter_mut().zip(a) {
                            *o = map.f(*a);
                        }
                    }
                }
            }
            1 => {
                let a = &a[..out.len()];
                for (o, a) in out.iter_mut().zip(a) {
                    *o = map.f(*a);
                }
            }
            0 => out.fill(map.f(a[0])),
            _ => {
                for (o, a) in out.iter_mut().zip(a.iter().step_by(stride)) {
                    *o = map.f(*a);
                }
            }
        }
    }
}

struct Run2<'a, A, O, M> {
    a: &'a [A],
    b: &'a [A],
    strides: [usize; 2],
    out: &'a mut [O],
    map: M,
}

impl<A: Element, O: Element, M: Map2<A, O>> Kernel for Run2<'_, A, O, M> {
    type Out = ();
    #[inline(always)]
    fn run(self) {
        let Run2 {
            a,
            b,
            strides,
            out,
            map,
        } = self;
        let n = out.len();
        match strides {
            [1, 1] => {
                for ((o, a), b) in out.iter_mut().zip(&a[..n]).zip(&b[..n]) {
                    *o = map.f(*a, *b);
                }
            }
            [1, 0] => {
                let b = b[0];
                for (o, a) in out.iter_mut().zip(&a[..n]) {
                    *o = map.f(*a, b);
                }
            }
            [0, 1] => {
                let a = a[0];
                for (o, b) in out.iter_mut().zip(&b[..n]) {
                    *o = map.f(a, *b);
                }
            }
            [sa, sb] => {
                for (i, o) in out.iter_mut().enumerate() {
                    *o = map.f(a[i * sa], b[i * sb]);
                }
            }
        }
    }
}

/// Runs shorter than this are not worth a second function call.
const SHORT: usize = 8;

/// What loops should read instead of `t`, if anything: a large tensor whose innermost axis jumps through
/// memory is copied in tiles first, which costs less than reading it so.
fn settled(op: &'static str, t: &Tensor) -> Result<Option<Tensor>> {
    const LARGE: usize = 4096;
    let jumps = t.numel() >= LARGE && t.layout().strides.last().is_some_and(|s| *s > 1);
    if jumps {
        t.dense(op).map(Some)
    } else {
        Ok(None)
    }
}

/// `map` over every element.
pub(crate) fn map1<A: Element, O: Element, M: Map1<A, O>>(
    op: &'static str,
    t: &Tensor,
    map: M,
) -> Result<Tensor> {
    let given = t;
    let copy = settled(op, t)?;
    let t = copy.as_ref().unwrap_or(t);
    let source = t.storage_slice::<A>(op)?;
    let layout = t.layout();
    let walk = Walk::new(&layout.shape, [(&layout.strides, layout.offset)]);
    let [stride] = walk.inner_strides();
    let out = Tensor::build_unset::<O>(op, t.shape(), |out| {
        let total = out.len();
        for_blocks(out, BLOCK, total, |first, chunk| {
            walk.runs(first..first + chunk.len(), |at, len, [start]| {
                let run = Run1 {
                    a: &source[start..],
                    stride,
                    out: &mut chunk[at - first..at - first + len],
                    map,
                };
                if len < SHORT {
                    simd::narrow(run)
                } else {
                    simd::dispatch(run)
                }
            });
        });
    })?;
    if capture::is_recording() {
        note_map1::<A, O, M>(op, given, &out, map);
    }
    Ok(out)
}

#[inline(never)]
fn note_map1<A: Element, O: Element, M: Map1<A, O>>(
    op: &'static str,
    t: &Tensor,
    out: &Tensor,
    map: M,
) {
    let floats = A::DTYPE == DType::F32 && O::DTYPE == DType::F32;
    let kernel = floats.then(|| {
        MapKernel::One(Box::new(move |a: &[f32], out: &mut [f32]| {
            if let (Some(a), Some(out)) = (as_elements::<A>(a), as_elements_mut::<O>(out)) {
                let stride = 1;
                let run = Run1 {
                    a,
                    stride,
                    out,
                    map,
                };
                simd::dispatch(run);
            }
        }))
    });
    let call = Box::new(move |t: &[Tensor], results: &mut Vec<Tensor>| {
        results.push(map1::<A, O, M>(op, &t[0], map)?);
        Ok(())
    });
    let key = Key::map::<M>(op, Vec::new());
    capture::note_map(key, &[MapSide::Tensor(t)], out, kernel, call);
}

/// `map` over two operands broadcast to `shape`.
pub(crate) fn map2<A: Element, O: Element, M: Map2<A, O>>(
    op: &'static str,
    a: Side,
    b: Side,
    shape: &[usize],
    map: M,
) -> Result<Tensor> {
    let (mut slot_a, mut slot_b) = ([A::default()], [A::default()]);
    let given = [a, b];
    let (copy_a, copy_b) = (a.settled(op)?, b.settled(op)?);
    let a = copy_a.as_ref().map_or(a, Side::Tensor);
    let b = copy_b.as_ref().map_or(b, Side::Tensor);
    let (source_a, strides_a, offset_a) = a.read::<A>(op, shape, &mut slot_a)?;
    let (source_b, strides_b, offset_b) = b.read::<A>(op, shape, &mut slot_b)?;
    let walk = Walk::new(shape, [(&strides_a, offset_a), (&strides_b, offset_b)]);
    let strides = walk.inner_strides();
    let out = Tensor::build_unset::<O>(op, shape, |out| {
        let total = out.len();
        for_blocks(out, BLOCK, total, |first, chunk| {
            walk.runs(first..first + chunk.len(), |at, len, [from_a, from_b]| {
                let run = Run2 {
                    a: &source_a[from_a..],
                    b: &source_b[from_b..],
                    strides,
                    out: &mut chunk[at - first..at - first + len],
                    map,
                };
                if len < SHORT {
                    simd::narrow(run)
                } else {
                    simd::dispatch(run)
                }
            });
        });
    })?;
    if capture::is_recording() {
        note_map2::<A, O, M>(op, given, &out, map);
    }
    Ok(out)
}

#[inline(never)]
fn note_map2<A: Element, O: Element, M: Map2<A, O>>(
    op: &'static str,
    sides: [Side; 2],
    out: &Tensor,
    map: M,
) {
    let floats = A::DTYPE == DType::F32 && O::DTYPE == DType::F32;
    let kernel = floats.then(|| {
        MapKernel::Two(Box::new(
            move |a: &[f32], b: &[f32], strides: [usize; 2], out: &mut [f32]| {
                let (Some(a), Some(b)) = (as_elements::<A>(a), as_elements::<A>(b)) else {
                    return;
                };
                if let Some(out) = as_elements_mut::<O>(out) {
                    simd::dispatch(Run2 {
                        a,
                        b,
                        strides,
                        out,
                        map,
                    });
                }
            },
        ))
    });
    let shape = out.layout().shape;
    let numbers = sides.map(|side| match side {
        Side::Tensor(_) => None,
        Side::Scalar(x) => Some(x),
    });
    let call = Box::new(move |t: &[Tensor], results: &mut Vec<Tensor>| {
        let mut tensors = t.iter();
        let mut side = |number: Option<f64>| match number {
            Some(x) => Some(Side::Scalar(x)),
            None => tensors.next().map(Side::Tensor),
        };
        if let (Some(a), Some(b)) = (side(numbers[0]), side(numbers[1])) {
            results.push(map2::<A, O, M>(op, a, b, &shape, map)?);
        }
        Ok(())
    });
    let sides = sides.map(|side| match side {
        Side::Tensor(t) => MapSide::Tensor(t),
        Side::Scalar(x) => MapSide::Number(x),
    });
    let words = shape.iter().map(|&n| n as u64).collect();
    capture::note_map(Key::map::<M>(op, words), &sides, out, kernel, call);
}

/// An operand after promotion, as a kernel reads it.
#[derive(Clone, Copy)]
pub(crate) enum Side<'a> {
    Tensor(&'a Tensor),
    Scalar(f64),
}

impl Side<'_> {
    fn read<'a, E: Element>(
        &'a self,
        op: &'static str,
        shape: &[usize],
        slot: &'a mut [E; 1],
    ) -> Result<(&'a [E], Dims, usize)> {
        match self {
            Side::Scalar(value) => {
                slot[0] = E::from_f64(*value);
                let mut strides = Dims::empty();
                for _ in shape {
                    strides.push(0);
                }
                Ok((&slot[..], strides, 0))
            }
            Side::Tensor(t) => {
                let strides = broadcast_strides(t.layout(), shape)
                    .ok_or_else(|| Error::shape(op, NO_BROADCAST, &[t.shape(), shape]))?;
                Ok((t.storage_slice::<E>(op)?, strides, t.layout().offset))
            }
        }
    }

    fn settled(&self, op: &'static str) -> Result<Option<Tensor>> {
        match self {
            Side::Tensor(t) => settled(op, t),
            Side::Scalar(_) => Ok(None),
        }
    }
}

const NO_BROADCAST: &str = "shapes do not broadcast";

/// An operand that a gradient rule keeps.
#[derive(Clone)]
enum Kept {
    Tensor(Tensor),
    Scalar(f64),
}

impl<'a> From<&'a Kept> for Operand<'a> {
    fn from(kept: &'a Kept) -> Operand<'a> {
        match kept {
            Kept::Tensor(t) => Operand::Tensor(t),
            Kept::Scalar(v) => Operand::Scalar(*v),
        }
    }
}

/// Two operands of one element type, and the shape they broadcast to.
struct Pair<'a> {
    sides: [Operand<'a>; 2],
    /// A side that had to be converted, in place of the one given.
    converted: [Option<Tensor>; 2],
    dtype: DType,
    shape: Dims,
}

impl Pair<'_> {
    fn side(&self, i: usize) -> Side<'_> {
        match (&self.converted[i], self.sides[i]) {
            (Some(t), _) => Side::Tensor(t),
            (None, Operand::Tensor(t)) => Side::Tensor(t),
            (None, Operand::Scalar(v)) => Side::Scalar(v),
        }
    }

    fn a(&self) -> Side<'_> {
        self.side(0)
    }

    fn b(&self) -> Side<'_> {
        self.side(1)
    }

    fn keep(&self, i: usize) -> Kept {
        match self.side(i) {
            Side::Tensor(t) => Kept::Tensor(t.clone()),
            Side::Scalar(v) => Kept::Scalar(v),
        }
    }

    fn node(&self, i: usize) -> Option<&Counted<Node>> {
        match self.side(i) {
            Side::Tensor(t) => t.node(),
            Side::Scalar(_) => None,
        }
    }

    fn tracked(&self, i: usize) -> bool {
        self.node(i).is_some()
    }

    /// Records `out` with the rule that `rule` makes; it is only made where it is needed.
    fn record<R: Fn(&Flow) -> Result<Gradients> + Send + Sync + 'static>(
        &self,
        op: &'static str,
        out: Tensor,
        rule: impl FnOnce() -> R,
    ) -> Tensor {
        if !(grad_enabled() && (self.tracked(0) || self.tracked(1))) {
            return out;
        }
        let parents = Parents::of([self.node(0), self.node(1)]);
        attach(op, out, parents, false, Box::new(rule()))
    }
}

/// Promotes and broadcasts. Bool beside another type becomes that type, bool beside a number becomes f32.
/// Two bools are refused unless `bools` says otherwise (comparisons, selection).
fn pair<'a>(op: &'static str, a: Operand<'a>, b: Operand<'a>, bools: bool) -> Result<Pair<'a>> {
    let dtype = match (a, b) {
        (Operand::Tensor(x), Operand::Tensor(y)) => match (x.dtype(), y.dtype()) {
            (x, y) if x == y => x,
            (DType::Bool, y) => y,
            (x, DType::Bool) => x,
            (x, y) => {
                return Err(Error::DType {
                    op,
                    found: vec![x, y],
                    expected: "two tensors of one type; cast with astype",
                });
            }
        },
        (Operand::Tensor(t), Operand::Scalar(_)) | (Operand::Scalar(_), Operand::Tensor(t)) => {
            match t.dtype() {
                DType::Bool => DType::F32,
                other => other,
            }
        }
        (Operand::Scalar(_), Operand::Scalar(_)) => DType::F32,
    };
    if dtype == DType::Bool && !bools {
        return Err(Error::DType {
            op,
            found: vec![DType::Bool, DType::Bool],
            expected: "numbers; cast with astype",
        });
    }
    let convert = |operand: Operand| match operand {
        Operand::Tensor(t) if t.dtype() != dtype => astype(t, dtype).map(Some),
        Operand::Scalar(v) if dtype == DType::I64 && (v.fract() != 0.0 || !v.is_finite()) => {
            Err(Error::argument(
                op,
                format!(
                    "the number {v} beside an i64 tensor is not an integer; cast the tensor with astype"
                ),
            ))
        }
        _ => Ok(None),
    };
    let shape_of = |operand: Operand| match operand {
        Operand::Tensor(t) => t.layout().shape,
        Operand::Scalar(_) => Dims::empty(),
    };
    let (sa, sb) = (shape_of(a), shape_of(b));
    let shape = if sa == sb {
        sa
    } else {
        broadcast_shapes(&sa, &sb).ok_or_else(|| Error::shape(op, NO_BROADCAST, &[&sa, &sb]))?
    };
    Ok(Pair {
        sides: [a, b],
        converted: [convert(a)?, convert(b)?],
        dtype,
        shape,
    })
}

/// Declares maps: `name(argument, ...) => expression` over every type of a bound.
macro_rules! maps {
    ($($name:ident<$bound:ident>($a:ident) => $body:expr;)*) => {$(
        #[derive(Clone, Copy)]
        struct $name;
        impl<E: $bound> Map1<E, E> for $name {
            #[inline(always)]
            fn f(self, $a: E) -> E {
                $body
            }
        }
    )*};
    ($($name:ident<$bound:ident>($a:ident, $b:ident) => $body:expr;)*) => {$(
        #[derive(Clone, Copy)]
        struct $name;
        impl<E: $bound> Map2<E, E> for $name {
            #[inline(always)]
            fn f(self, $a: E, $b: E) -> E {
                $body
            }
        }
    )*};
}

// ---- arithmetic of two operands ----

maps! {
    Add<Number>(a, b) => a.plus(b);
    Subtract<Number>(a, b) => a.minus(b);
    Multiply<Number>(a, b) => a.times(b);
    Divide<Real>(a, b) => a / b;
    Maximum<Number>(a, b) => a.larger(b);
    Minimum<Number>(a, b) => a.smaller(b);
}

/// Runs a map over the numeric types.
macro_rules! numeric {
    ($op:expr, $pair:expr, $map:expr) => {
        match $pair.dtype {
            DType::F32 => map2::<f32, f32, _>($op, $pair.a(), $pair.b(), &$pair.shape, $map)?,
            DType::F64 => map2::<f64, f64, _>($op, $pair.a(), $pair.b(), &$pair.shape, $map)?,
            DType::I64 => map2::<i64, i64, _>($op, $pair.a(), $pair.b(), &$pair.shape, $map)?,
            DType::Bool => {
                return Err(Error::DType {
                    op: $op,
                    found: vec![DType::Bool],
                    expected: "numbers; cast with astype",
                })
            }
        }
    };
}

/// Evaluates a gradient only where it is wanted.
fn when(wanted: bool, gradient: impl FnOnce() -> Result<Tensor>) -> Result<Option<Tensor>> {
    if wanted {
        gradient().map(Some)
    } else {
        Ok(None)
    }
}

/// a + b. Operands broadcast; a number takes the tensor's element type.
///
/// # Errors
/// [`Error::Shape`] where shapes do not broadcast; [`Error::DType`] for two different numeric types or two
/// bools; [`Error::Argument`] for a fraction beside i64.
pub fn add<'a>(a: impl Into<Operand<'a>>, b: impl Into<Operand<'a>>) -> Result<Tensor> {
    const OP: &str = "add";
    let p = pair(OP, a.into(), b.into(), false)?;
    let out = numeric!(OP, p, Add);
    Ok(p.record(OP, out, || {
        |flow: &Flow| Ok(vec![Some(flow.grad.clone()), Some(flow.grad.clone())])
    }))
}

struct Accumulate<'a, E> {
    sum: &'a mut [E],
    more: &'a [E],
}

impl<E: Real> Kernel for Accumulate<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run(self) {
        for (s, m) in self.sum.iter_mut().zip(self.more) {
            *s = *s + *m;
        }
    }
}

/// sum += more, if `sum` is the only handle to its elements and the shapes are equal; says whether it
/// was done.
pub(crate) fn add_in_place(sum: &mut Tensor, more: &Tensor) -> Result<bool> {
    const OP: &str = "add";
    // While a step is recorded nothing is written twice: a value has one instruction.
    let written_once = capture::is_recording();
    if written_once || sum.shape() != more.shape() || sum.dtype() != more.dtype() {
        return Ok(false);
    }
    with_float!(OP, sum.dtype(), E => {
        let more = more.dense(OP)?;
        let more = more.data::<E>()?;
        let Some(sum) = sum.data_mut::<E>() else {
            return Ok(false);
        };
        let total = sum.len();
        for_blocks(sum, BLOCK, total, |first, sum| {
            let more = &more[first..first + sum.len()];
            simd::dispatch(Accumulate { sum, more });
        });
    });
    Ok(true)
}

/// a - b.
///
/// # Errors
/// As [`add`].
pub fn subtract<'a>(a: impl Into<Operand<'a>>, b: impl Into<Operand<'a>>) -> Result<Tensor> {
    const OP: &str = "subtract";
    let p = pair(OP, a.into(), b.into(), false)?;
    let out = numeric!(OP, p, Subtract);
    Ok(p.record(OP, out, || {
        |flow: &Flow| {
            Ok(vec![
                Some(flow.grad.clone()),
                when(flow.needs(1), || negative(&flow.grad))?,
            ])
        }
    }))
}

/// a b, element by element.
///
/// # Errors
/// As [`add`].
pub fn multiply<'a>(a: impl Into<Operand<'a>>, b: impl Into<Operand<'a>>) -> Result<Tensor> {
    const OP: &str = "multiply";
    let p = pair(OP, a.into(), b.into(), false)?;
    let out = numeric!(OP, p, Multiply);
    Ok(p.record(OP, out, || {
        let keep_a = p.tracked(1).then(|| p.keep(0));
        let keep_b = p.tracked(0).then(|| p.keep(1));
        move |flow: &Flow| {
            let product = |i: usize, other: &Option<Kept>| match other {
                Some(other) if flow.needs(i) => multiply(&flow.grad, other).map(Some),
                _ => Ok(None),
            };
            Ok(vec![product(0, &keep_b)?, product(1, &keep_a)?])
        }
    }))
}

/// a / b, floats only.
///
/// # Errors
/// As [`add`]; [`Error::DType`] for i64.
pub fn divide<'a>(a: impl Into<Operand<'a>>, b: impl Into<Operand<'a>>) -> Result<Tensor> {
    const OP: &str = "divide";
    let p = pair(OP, a.into(), b.into(), false)?;
    let out = with_float!(OP, p.dtype, E => map2::<E, E, _>(OP, p.a(), p.b(), &p.shape, Divide)?);
    Ok(p.record(OP, out, || {
        let keep_a = p.tracked(1).then(|| p.keep(0));
        let b = p.keep(1);
        move |flow: &Flow| {
            let by_b = divide(&flow.grad, &b)?;
            let to_b = match &keep_a {
                // d(a / b) = -(g / b) (a / b)
                Some(a) if flow.needs(1) => Some(negative(&multiply(&by_b, &divide(a, &b)?)?)?),
                _ => None,
            };
            Ok(vec![flow.needs(0).then_some(by_b), to_b])
        }
    }))
}

/// The larger of two elements; NaN where either is NaN. The gradient of a tie goes to `a`.
///
/// # Errors
/// As [`add`].
pub fn maximum<'a>(a: impl Into<Operand<'a>>, b: impl Into<Operand<'a>>) -> Result<Tensor> {
    const OP: &str = "maximum";
    let p = pair(OP, a.into(), b.into(), false)?;
    let out = numeric!(OP, p, Maximum);
    Ok(p.record(OP, out, || {
        let (a, b) = (p.keep(0), p.keep(1));
        move |flow: &Flow| choose(flow, &less(&a, &b)?)
    }))
}

/// The smaller of two elements; NaN where either is NaN. The gradient of a tie goes to `a`.
///
/// # Errors
/// As [`add`].
pub fn minimum<'a>(a: impl Into<Operand<'a>>, b: impl Into<Operand<'a>>) -> Result<Tensor> {
    const OP: &str = "minimum";
    let p = pair(OP, a.into(), b.into(), false)?;
    let out = numeric!(OP, p, Minimum);
    Ok(p.record(OP, out, || {
        let (a, b) = (p.keep(0), p.keep(1));
        move |flow: &Flow| choose(flow, &less(&b, &a)?)
    }))
}

/// Gradients of a choice between two operands, where `second` says that the second was taken.
fn choose(flow: &Flow, second: &Tensor) -> Result<Gradients> {
    Ok(vec![
        when(flow.needs(0), || where_(second, 0.0, &flow.grad))?,
        when(flow.needs(1), || where_(second, &flow.grad, 0.0))?,
    ])
}

// ---- comparison and selection ----

#[derive(Clone, Copy)]
struct Equal;
impl<E: Element> Map2<E, bool> for Equal {
    #[inline(always)]
    fn f(self, a: E, b: E) -> bool {
        a == b
    }
}

#[derive(Clone, Copy)]
struct Less;
impl<E: Element> Map2<E, bool> for Less {
    #[inline(always)]
    fn f(self, a: E, b: E) -> bool {
        a < b
    }
}

/// Whether elements are equal; NaN equals nothing. A bool tensor.
///
/// # Errors
/// [`Error::Shape`], [`Error::DType`] as [`add`], but two bools compare.
pub fn equal<'a>(a: impl Into<Operand<'a>>, b: impl Into<Operand<'a>>) -> Result<Tensor> {
    const OP: &str = "equal";
    let p = pair(OP, a.into(), b.into(), true)?;
    with_element!(p.dtype, E => map2::<E, bool, _>(OP, p.a(), p.b(), &p.shape, Equal))
}

/// Whether a < b; false beside NaN. A bool tensor.
///
/// # Errors
/// As [`equal`].
pub fn less<'a>(a: impl Into<Operand<'a>>, b: impl Into<Operand<'a>>) -> Result<Tensor> {
    const OP: &str = "less";
    let p = pair(OP, a.into(), b.into(), true)?;
    with_element!(p.dtype, E => map2::<E, bool, _>(OP, p.a(), p.b(), &p.shape, Less))
}

struct Select<'a, E> {
    cond: &'a [bool],
    a: &'a [E],
    b: &'a [E],
    strides: [usize; 3],
    out: &'a mut [E],
}

impl<E: Element> Kernel for Select<'_, E> {
    type Out = ();
    #[inline(always)]
    fn run(self) {
        let Select {
            cond,
            a,
            b,
            strides,
            out,
        } = self;
        let n = out.len();
        match strides {
            [1, 1, 1] => {
                let rest = cond[..n].iter().zip(&a[..n]).zip(&b[..n]);
                for (o, ((c, a), b)) in out.iter_mut().zip(rest) {
                    *o = if *c { *a } else { *b };
                }
            }
            [1, 1, 0] => {
                let b = b[0];
                for (o, (c, a)) in out.iter_mut().zip(cond[..n].iter().zip(&a[..n])) {
                    *o = if *c { *a } else { b };
                }
            }
            [1, 0, 1] => {
                let a = a[0];
                for (o, (c, b)) in out.iter_mut().zip(cond[..n].iter().zip(&b[..n])) {
                    *o = if *c { a } else { *b };
                }
            }
            [sc, sa, sb] => {
                for (i, o) in out.iter_mut().enumerate() {
                    *o = if cond[i * sc] { a[i * sa] } else { b[i * sb] };
                }
            }
        }
    }
}

/// `a` where `cond` is true, `b` elsewhere. The gradient of the branch not taken is exactly 0, whatever
/// that branch holds. Two numbers make an f32 tensor.
///
/// # Errors
/// [`Error::DType`] where `cond` is not bool or `a` and `b` differ; [`Error::Shape`].
pub fn where_<'a>(
    cond: &Tensor,
    a: impl Into<Operand<'a>>,
    b: impl Into<Operand<'a>>,
) -> Result<Tensor> {
    const OP: &str = "where";
    if cond.dtype() != DType::Bool {
        return Err(Error::DType {
            op: OP,
            found: vec![cond.dtype()],
            expected: "a bool condition; cast with astype or compare",
        });
    }
    let p = pair(OP, a.into(), b.into(), true)?;
    let shape = broadcast_shapes(cond.shape(), &p.shape).ok_or_else(|| {
        Error::shape(
            OP,
            "condition and branches do not broadcast",
            &[cond.shape(), &p.shape],
        )
    })?;
    let out = with_element!(p.dtype, E => select::<E>(OP, cond, p.a(), p.b(), &shape)?);
    Ok(p.record(OP, out, || {
        let cond = cond.clone();
        move |flow: &Flow| {
            Ok(vec![
                when(flow.needs(0), || where_(&cond, &flow.grad, 0.0))?,
                when(flow.needs(1), || where_(&cond, 0.0, &flow.grad))?,
            ])
        }
    }))
}

fn select<E: Element>(
    op: &'static str,
    cond: &Tensor,
    a: Side,
    b: Side,
    shape: &[usize],
) -> Result<Tensor> {
    let given = (cond, a, b);
    let (mut slot_a, mut slot_b, mut slot_c) = ([E::default()], [E::default()], [false]);
    let cond = Side::Tensor(cond);
    let (source_c, strides_c, offset_c) = cond.read::<bool>(op, shape, &mut slot_c)?;
    let (source_a, strides_a, offset_a) = a.read::<E>(op, shape, &mut slot_a)?;
    let (source_b, strides_b, offset_b) = b.read::<E>(op, shape, &mut slot_b)?;
    let walk = Walk::new(
        shape,
        [
            (&strides_c, offset_c),
            (&strides_a, offset_a),
            (&strides_b, offset_b),
        ],
    );
    let strides = walk.inner_strides();
    let out = Tensor::build_unset::<E>(op, shape, |out| {
        let total = out.len();
        for_blocks(out, BLOCK, total, |first, chunk| {
            walk.runs(first..first + chunk.len(), |at, len, [fc, fa, fb]| {
                let run = Select {
                    cond: &source_c[fc..],
                    a: &source_a[fa..],
                    b: &source_b[fb..],
                    strides,
                    out: &mut chunk[at - first..at - first + len],
                };
                if len < SHORT {
                    simd::narrow(run)
                } else {
                    simd::dispatch(run)
                }
            });
        });
    })?;
    if capture::is_recording() {
        note_select::<E>(op, given, &out);
    }
    Ok(out)
}

#[inline(never)]
fn note_select<E: Element>(op: &'static str, (cond, a, b): (&Tensor, Side, Side), out: &Tensor) {
    let mut inputs = vec![cond];
    let mut words = Vec::new();
    let numbers = [a, b].map(|side| match side {
        Side::Tensor(t) => {
            inputs.push(t);
            words.push(0);
            None
        }
        Side::Scalar(x) => {
            words.extend([1, x.to_bits()]);
            Some(x)
        }
    });
    let shape = out.layout().shape;
    words.extend(shape.iter().map(|&n| n as u64));
    capture::note(op, &words, &inputs, out, || {
        move |t: &[Tensor]| {
            let mut tensors = t[1..].iter();
            let mut side = |number: Option<f64>| match number {
                Some(x) => Side::Scalar(x),
                None => tensors.next().map_or(Side::Scalar(0.0), Side::Tensor),
            };
            select::<E>(op, &t[0], side(numbers[0]), side(numbers[1]), &shape)
        }
    });
}

// ---- functions of one tensor ----

maps! {
    Negative<Real>(a) => -a;
    Abs<Number>(a) => a.absolute();
    Exp<Real>(a) => a.exp();
    Expm1<Real>(a) => a.exp_m1();
    Log<Real>(a) => a.ln();
    Sqrt<Real>(a) => a.sqrt();
    Acos<Real>(a) => a.acos();
    Tanh<Real>(a) => a.tanh();
    Sigmoid<Real>(a) => a.sigmoid();
    Relu<Real>(a) => a.larger(E::ZERO);
    Softplus<Real>(a) => a.larger(E::ZERO) + (-a.absolute()).exp().ln_1p();
    Erf<Real>(a) => a.erf();
    Gelu<Real>(a) => gelu_value(a);
}

/// Declares a function of angles: the easy ones take vector code.
macro_rules! of_angles {
    ($($name:ident => $any:ident, $easy:ident;)*) => {$(
        #[derive(Clone, Copy)]
        struct $name;
        impl<E: Real> Map1<E, E> for $name {
            const PICKS: bool = true;
            #[inline(always)]
            fn f(self, a: E) -> E {
                a.$any()
            }
            #[inline(always)]
            fn is_easy(self, a: E) -> bool {
                a.is_easy_angle()
            }
            #[inline(always)]
            fn f_easy(self, a: E) -> E {
                a.$easy()
            }
        }
    )*};
}
of_angles! {
    Sin => sin, sin_easy;
    Cos => cos, cos_easy;
}

// Fused gradients: `g` is the incoming gradient, `y` the output, `x` the input.
maps! {
    TanhGrad<Real>(g, y) => g * (E::ONE - y * y);
    SigmoidGrad<Real>(g, y) => g * (y * (E::ONE - y));
    ReluGrad<Real>(g, x) => if x > E::ZERO { g } else { E::ZERO };
    AbsGrad<Real>(g, x) => if x > E::ZERO { g } else if x < E::ZERO { -g } else { E::ZERO };
    SqrtGrad<Real>(g, y) => g * (E::HALF / y);
    SoftplusGrad<Real>(g, x) => g * x.sigmoid();
    GeluGrad<Real>(g, x) => g * gelu_slope(x);
}

/// x Phi(x), Phi the standard normal distribution function.
#[inline(always)]
fn gelu_value<E: Real>(x: E) -> E {
    let root_half = E::from_f64(std::f64::consts::FRAC_1_SQRT_2);
    E::HALF * x * (E::ONE + (x * root_half).erf())
}

/// Phi(x) + x phi(x), phi the standard normal density.
#[inline(always)]
fn gelu_slope<E: Real>(x: E) -> E {
    let root_half = E::from_f64(std::f64::consts::FRAC_1_SQRT_2);
    let norm = E::from_f64(INV_SQRT_2PI);
    let below = E::HALF * (E::ONE + (x * root_half).erf());
    below + x * norm * (-(E::HALF * x * x)).exp()
}

const INV_SQRT_2PI: f64 = 0.398_942_280_401_432_7;

fn float1<M: Map1<f32, f32> + Map1<f64, f64>>(
    op: &'static str,
    t: &Tensor,
    map: M,
) -> Result<Tensor> {
    with_float!(op, t.dtype(), E => map1::<E, E, _>(op, t, map))
}

/// The gradient of a function of one tensor: one pass with `fused` where recording is off, else the
/// differentiable expression.
pub(crate) fn slope<M: Map2<f32, f32> + Map2<f64, f64>>(
    op: &'static str,
    grad: &Tensor,
    saved: &Tensor,
    fused: M,
    expression: impl FnOnce() -> Result<Tensor>,
) -> Result<Gradients> {
    let gradient = if grad_enabled() {
        expression()?
    } else {
        let (a, b) = (Side::Tensor(grad), Side::Tensor(saved));
        with_float!(op, grad.dtype(), E => map2::<E, E, _>(op, a, b, grad.shape(), fused)?)
    };
    Ok(vec![Some(gradient)])
}

/// -t, floats only.
pub(crate) fn negative(t: &Tensor) -> Result<Tensor> {
    let out = float1("negative", t, Negative)?;
    Ok(record("negative", out, &[t], |flow| {
        Ok(vec![Some(negative(&flow.grad)?)])
    }))
}

/// |t|, floats and i64. The gradient is the sign, 0 at 0.
///
/// # Errors
/// [`Error::DType`] for bool.
pub fn abs(t: &Tensor) -> Result<Tensor> {
    const OP: &str = "abs";
    if t.dtype() == DType::I64 {
        return map1::<i64, i64, _>(OP, t, Abs);
    }
    let out = float1(OP, t, Abs)?;
    let x = t.clone();
    Ok(record(OP, out, &[t], move |flow| {
        slope(OP, &flow.grad, &x, AbsGrad, || {
            let down = where_(&less(&x, 0.0)?, &negative(&flow.grad)?, 0.0)?;
            where_(&less(0.0, &x)?, &flow.grad, &down)
        })
    }))
}

/// e to the power t.
///
/// # Errors
/// [`Error::DType`] for i64 and bool.
pub fn exp(t: &Tensor) -> Result<Tensor> {
    const OP: &str = "exp";
    let out = float1(OP, t, Exp)?;
    Ok(record_keeping_output(OP, out, &[t], |flow| {
        Ok(vec![Some(multiply(&flow.grad, flow.output()?)?)])
    }))
}

/// exp(t) - 1, accurate near 0.
///
/// # Errors
/// [`Error::DType`] for i64 and bool.
pub fn expm1(t: &Tensor) -> Result<Tensor> {
    const OP: &str = "expm1";
    let out = float1(OP, t, Expm1)?;
    Ok(record_keeping_output(OP, out, &[t], |flow| {
        Ok(vec![Some(multiply(
            &flow.grad,
            &add(flow.output()?, 1.0)?,
        )?)])
    }))
}

/// The natural logarithm; -inf at 0, NaN below.
///
/// # Errors
/// [`Error::DType`] for i64 and bool.
pub fn log(t: &Tensor) -> Result<Tensor> {
    const OP: &str = "log";
    let out = float1(OP, t, Log)?;
    let x = t.clone();
    Ok(record(OP, out, &[t], move |flow| {
        Ok(vec![Some(divide(&flow.grad, &x)?)])
    }))
}

/// The square root; the gradient at 0 is infinite.
///
/// # Errors
/// [`Error::DType`] for i64 and bool.
pub fn sqrt(t: &Tensor) -> Result<Tensor> {
    const OP: &str = "sqrt";
    let out = float1(OP, t, Sqrt)?;
    Ok(record_keeping_output(OP, out, &[t], |flow| {
        let y = flow.output()?;
        slope(OP, &flow.grad, y, SqrtGrad, || {
            multiply(&flow.grad, &divide(0.5, y)?)
        })
    }))
}

/// The sine of radians.
///
/// # Errors
/// [`Error::DType`] for i64 and bool.
pub fn sin(t: &Tensor) -> Result<Tensor> {
    const OP: &str = "sin";
    let out = float1(OP, t, Sin)?;
    let x = t.clone();
    Ok(record(OP, out, &[t], move |flow| {
        Ok(vec![Some(multiply(&flow.grad, &cos(&x)?)?)])
    }))
}

/// The cosine of radians.
///
/// # Errors
/// [`Error::DType`] for i64 and bool.
pub fn cos(t: &Tensor) -> Result<Tensor> {
    const OP: &str = "cos";
    let out = float1(OP, t, Cos)?;
    let x = t.clone();
    Ok(record(OP, out, &[t], move |flow| {
        Ok(vec![Some(negative(&multiply(&flow.grad, &sin(&x)?)?)?)])
    }))
}

/// The inverse cosine in radians; NaN outside [-1, 1], infinite gradient at both ends.
///
/// # Errors
/// [`Error::DType`] for i64 and bool.
pub fn acos(t: &Tensor) -> Result<Tensor> {
    const OP: &str = "acos";
    let out = float1(OP, t, Acos)?;
    let x = t.clone();
    Ok(record(OP, out, &[t], move |flow| {
        let root = sqrt(&subtract(1.0, &multiply(&x, &x)?)?)?;
        Ok(vec![Some(negative(&divide(&flow.grad, &root)?)?)])
    }))
}

/// The hyperbolic tangent.
///
/// # Errors
/// [`Error::DType`] for i64 and bool.
pub fn tanh(t: &Tensor) -> Result<Tensor> {
    const OP: &str = "tanh";
    let out = float1(OP, t, Tanh)?;
    Ok(record_keeping_output(OP, out, &[t], |flow| {
        let y = flow.output()?;
        slope(OP, &flow.grad, y, TanhGrad, || {
            multiply(&flow.grad, &subtract(1.0, &multiply(y, y)?)?)
        })
    }))
}

/// 1 / (1 + exp(-t)), without overflow.
///
/// # Errors
/// [`Error::DType`] for i64 and bool.
pub fn sigmoid(t: &Tensor) -> Result<Tensor> {
    const OP: &str = "sigmoid";
    let out = float1(OP, t, Sigmoid)?;
    Ok(record_keeping_output(OP, out, &[t], |flow| {
        let y = flow.output()?;
        slope(OP, &flow.grad, y, SigmoidGrad, || {
            multiply(&flow.grad, &multiply(y, &subtract(1.0, y)?)?)
        })
    }))
}

/// max(t, 0); the derivative at 0 is 0. NaN stays NaN.
///
/// # Errors
/// [`Error::DType`] for i64 and bool.
pub fn relu(t: &Tensor) -> Result<Tensor> {
    const OP: &str = "relu";
    let out = float1(OP, t, Relu)?;
    // The output is positive exactly where the input is, and the next operation keeps it anyway.
    Ok(record_keeping_output(OP, out, &[t], |flow| {
        let y = flow.output()?;
        slope(OP, &flow.grad, y, ReluGrad, || {
            where_(&less(0.0, &y.detach())?, &flow.grad, 0.0)
        })
    }))
}

/// t Phi(t) with Phi the standard normal distribution function: the exact form.
///
/// # Errors
/// [`Error::DType`] for i64 and bool.
pub fn gelu(t: &Tensor) -> Result<Tensor> {
    const OP: &str = "gelu";
    let out = float1(OP, t, Gelu)?;
    let x = t.clone();
    Ok(record(OP, out, &[t], move |flow| {
        slope(OP, &flow.grad, &x, GeluGrad, || {
            let scaled = multiply(&x, std::f64::consts::FRAC_1_SQRT_2)?;
            let below = multiply(&add(&erf(&scaled)?, 1.0)?, 0.5)?;
            let density = multiply(&exp(&multiply(&multiply(&x, &x)?, -0.5)?)?, INV_SQRT_2PI)?;
            multiply(&flow.grad, &add(&below, &multiply(&x, &density)?)?)
        })
    }))
}

/// The error function. Internal: the gradient of [`gelu`] needs it.
pub(crate) fn erf(t: &Tensor) -> Result<Tensor> {
    const OP: &str = "erf";
    let out = float1(OP, t, Erf)?;
    let x = t.clone();
    Ok(record(OP, out, &[t], move |flow| {
        let bell = exp(&negative(&multiply(&x, &x)?)?)?;
        let slope = multiply(&bell, std::f64::consts::FRAC_2_SQRT_PI)?;
        Ok(vec![Some(multiply(&flow.grad, &slope)?)])
    }))
}

/// log(1 + exp(t)), stable for both signs.
///
/// # Errors
/// [`Error::DType`] for i64 and bool.
pub fn softplus(t: &Tensor) -> Result<Tensor> {
    const OP: &str = "softplus";
    let out = float1(OP, t, Softplus)?;
    let x = t.clone();
    Ok(record(OP, out, &[t], move |flow| {
        slope(OP, &flow.grad, &x, SoftplusGrad, || {
            multiply(&flow.grad, &sigmoid(&x)?)
        })
    }))
}
