//! Where elements lie: shape, strides and offset into a storage, and walks over several such layouts.

use std::fmt;
use std::ops::{Deref, Range};

use crate::account::fits_limit;
use crate::error::{Error, Result};

/// The most axes a tensor may have.
pub const MAX_RANK: usize = 6;

/// A short list of sizes or strides, kept in place so that making a view allocates nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dims {
    // A whole word: a copy that ends in padding is made of stores that overlap, which the loads after it wait for.
    len: usize,
    sizes: [usize; MAX_RANK],
}

impl Dims {
    /// From a slice of at most six entries.
    pub(crate) fn new(op: &'static str, sizes: &[usize]) -> Result<Dims> {
        if sizes.len() > MAX_RANK {
            return Err(Error::Rank {
                op,
                rank: sizes.len(),
            });
        }
        let mut dims = Dims::empty();
        for &size in sizes {
            dims.push(size);
        }
        Ok(dims)
    }

    /// No entries: a scalar's shape.
    pub(crate) const fn empty() -> Dims {
        Dims {
            len: 0,
            sizes: [0; MAX_RANK],
        }
    }

    /// Appends an entry. The caller keeps within six; a seventh is ignored.
    pub(crate) fn push(&mut self, size: usize) {
        debug_assert!((self.len) < MAX_RANK);
        if let Some(slot) = self.sizes.get_mut(self.len) {
            *slot = size;
            self.len += 1;
        }
    }

    /// Sets an existing entry.
    pub(crate) fn set(&mut self, axis: usize, size: usize) {
        self.sizes[..self.len][axis] = size;
    }
}

impl Deref for Dims {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.sizes[..self.len]
    }
}

impl fmt::Debug for Dims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Shape, strides (in elements) and offset. A stride of 0 repeats one element along its axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) shape: Dims,
    pub(crate) strides: Dims,
    pub(crate) offset: usize,
}

/// The most elements that can be addressed at 8 bytes an element.
const MOST_ELEMENTS: usize = isize::MAX as usize / 8;

/// The number of elements of a shape, if it can be addressed at 8 bytes an element.
pub(crate) fn count(op: &'static str, shape: &[usize]) -> Result<usize> {
    let too_large = || Error::Size {
        op,
        shape: shape.to_vec(),
    };
    // The product without zeros is what strides are made of, so it must fit too.
    let mut product: usize = 1;
    for &size in shape {
        product = product.checked_mul(size.max(1)).ok_or_else(too_large)?;
    }
    if product > MOST_ELEMENTS {
        return Err(too_large());
    }
    if shape.contains(&0) {
        // No memory, but loops over the other axes still run: bounded as a view is.
        fits_limit(op, product as u64)?;
        return Ok(0);
    }
    Ok(product)
}

impl Layout {
    /// Of one element, at offset 0.
    pub(crate) const fn scalar() -> Layout {
        Layout {
            shape: Dims::empty(),
            strides: Dims::empty(),
            offset: 0,
        }
    }

    /// Row-major from offset 0.
    #[inline]
    pub(crate) fn dense(op: &'static str, shape: &[usize]) -> Result<Layout> {
        let mut layout = Layout::scalar();
        layout.become_dense(op, shape)?;
        Ok(layout)
    }

    /// As [`dense`](Layout::dense), in place; `self` is a [`scalar`](Layout::scalar)'s.
    #[inline]
    pub(crate) fn become_dense(&mut self, op: &'static str, shape: &[usize]) -> Result<()> {
        let layout = self;
        if shape.len() > MAX_RANK {
            return Err(Error::Rank {
                op,
                rank: shape.len(),
            });
        }
        layout.shape.len = shape.len();
        layout.strides.len = shape.len();
        let mut step = 1usize;
        let (mut fits, mut empty) = (true, false);
        for axis in (0..shape.len()).rev() {
            let size = shape[axis];
            layout.shape.sizes[axis] = size;
            layout.strides.sizes[axis] = step;
            empty |= size == 0;
            let (next, overflow) = step.overflowing_mul(size.max(1));
            fits &= !overflow;
            step = next;
        }
        if !fits || empty || step > MOST_ELEMENTS {
            // Says what is wrong, or bounds the empty.
            count(op, shape)?;
        }
        Ok(())
    }

    /// The number of elements.
    pub(crate) fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the elements lie row-major without gaps (from any offset).
    pub(crate) fn is_dense(&self) -> bool {
        let mut step = 1;
        for (&size, &stride) in self.shape.iter().zip(self.strides.iter()).rev() {
            if size == 0 {
                return true;
            }
            if size != 1 {
                if stride != step {
                    return false;
                }
                step *= size;
            }
        }
        true
    }
}

/// The shape two shapes broadcast to, or `None`.
pub(crate) fn broadcast_shapes(a: &[usize], b: &[usize]) -> Option<Dims> {
    let rank = a.len().max(b.len());
    let mut out = Dims::empty();
    for axis in 0..rank {
        let size = |s: &[usize]| (axis + s.len()).checked_sub(rank).map_or(1, |i| s[i]);
        out.push(match (size(a), size(b)) {
            (x, y) if x == y => x,
            (1, y) => y,
            (x, 1) => x,
            _ => return None,
        });
    }
    Some(out)
}

/// The strides of `layout` seen at a shape it broadcasts to (0 along repeated axes), or `None`.
pub(crate) fn broadcast_strides(layout: &Layout, shape: &[usize]) -> Option<Dims> {
    let lead = shape.len().checked_sub(layout.shape.len())?;
    let mut strides = Dims::empty();
    for (axis, &size) in shape.iter().enumerate() {
        strides.push(match axis.checked_sub(lead) {
            None => 0,
            Some(own) if layout.shape[own] == size => layout.strides[own],
            Some(own) if layout.shape[own] == 1 => 0,
            Some(_) => return None,
        });
    }
    Some(strides)
}

/// Resolves an axis that may count from the end.
pub(crate) fn axis_index(op: &'static str, axis: isize, rank: usize) -> Result<usize> {
    let resolved = if axis < 0 { axis + rank as isize } else { axis };
    if resolved < 0 || resolved >= rank as isize {
        return Err(Error::Axis {
            op,
            axis: axis as i64,
            rank,
        });
    }
    Ok(resolved as usize)
}

/// A walk over one shape with the strides of `N` operands: axes of size 1 dropped, and neighbouring axes
/// merged where every operand allows it, so that the innermost runs are as long as they can be.
#[derive(Clone, Debug)]
pub(crate) struct Walk<const N: usize> {
    /// Sizes, outermost first; never empty.
    pub(crate) sizes: Vec1,
    /// Per axis, each operand's stride.
    strides: [[usize; N]; MAX_RANK],
    offsets: [usize; N],
}

/// A small inline list, never empty.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vec1 {
    len: usize,
    at: [usize; MAX_RANK],
}

impl Deref for Vec1 {
    type Target = [usize];
    fn deref(&self) -> &[usize] {
        &self.at[..self.len]
    }
}

impl<const N: usize> Walk<N> {
    /// A walk in row-major order of `shape`; each operand gives its strides at that shape and its offset.
    pub(crate) fn new(shape: &[usize], operands: [(&[usize], usize); N]) -> Walk<N> {
        let mut at = [0; MAX_RANK];
        let mut strides = [[0; N]; MAX_RANK];
        let mut len = 0;
        for (axis, &size) in shape.iter().enumerate() {
            if size == 1 {
                continue;
            }
            let here: [usize; N] = std::array::from_fn(|i| operands[i].0[axis]);
            let merges = len > 0 && (0..N).all(|i| strides[len - 1][i] == here[i] * size);
            if merges {
                at[len - 1] *= size;
                strides[len - 1] = here;
            } else {
                at[len] = size;
                strides[len] = here;
                len += 1;
            }
        }
        if len == 0 {
            at[0] = 1;
            len = 1;
        }
        Walk {
            sizes: Vec1 { len, at },
            strides,
            offsets: std::array::from_fn(|i| operands[i].1),
        }
    }

    /// Each operand's stride along the innermost axis.
    pub(crate) fn inner_strides(&self) -> [usize; N] {
        self.strides[self.sizes.len() - 1]
    }

    /// Each operand's stride along an axis of this walk.
    pub(crate) fn strides_at(&self, axis: usize) -> [usize; N] {
        self.strides[axis]
    }

    /// Each operand's offset at a flat position.
    pub(crate) fn place(&self, position: usize) -> [usize; N] {
        let mut rest = position;
        let mut at = self.offsets;
        for axis in (0..self.sizes.len()).rev() {
            let coordinate = rest % self.sizes[axis];
            rest /= self.sizes[axis];
            for (at, stride) in at.iter_mut().zip(&self.strides[axis]) {
                *at += coordinate * stride;
            }
        }
        at
    }

    /// Calls `run(position, length, offsets)` for the runs that cover the flat positions of `range`, in
    /// order. Each run lies within one innermost axis.
    #[inline(always)]
    pub(crate) fn runs(&self, range: Range<usize>, mut run: impl FnMut(usize, usize, [usize; N])) {
        if range.is_empty() {
            return;
        }
        let last = self.sizes.len() - 1;
        let inner = self.sizes[last];
        let inner_strides = self.strides[last];
        // Decompose the start into coordinates.
        let mut coords = [0usize; MAX_RANK];
        let mut rest = range.start / inner;
        let mut column = range.start % inner;
        let mut base = self.offsets;
        for axis in (0..last).rev() {
            coords[axis] = rest % self.sizes[axis];
            rest /= self.sizes[axis];
            for (b, stride) in base.iter_mut().zip(&self.strides[axis]) {
                *b += coords[axis] * stride;
            }
        }
        let mut position = range.start;
        while position < range.end {
            let length = (inner - column).min(range.end - position);
            run(
                position,
                length,
                std::array::from_fn(|i| base[i] + column * inner_strides[i]),
            );
            position += length;
            column = 0;
            // Next row: advance the outer coordinates like an odometer.
            for axis in (0..last).rev() {
                coords[axis] += 1;
                if coords[axis] < self.sizes[axis] {
                    for (b, stride) in base.iter_mut().zip(&self.strides[axis]) {
                        *b += stride;
                    }
                    break;
                }
                coords[axis] = 0;
                for (b, stride) in base.iter_mut().zip(&self.strides[axis]) {
                    *b -= (self.sizes[axis] - 1) * stride;
                }
            }
        }
    }
}
