#![allow(unsafe_code)]
//! Chains of element-by-element functions, computed block by block so that what lies between two functions
//! stays in the first-level cache.
//!
//! Each function is the very loop that the operation runs by itself, so a chain has its bits.

use std::cell::RefCell;

use crate::dtype::{DType, Element};
use crate::layout::{Layout, Walk};
use crate::threads::{BLOCK, for_blocks};

/// A function of one argument over a run of elements.
pub(crate) type Kernel1 = Box<dyn Fn(&[f32], &mut [f32]) + Send + Sync>;

/// A function of two arguments over a run of elements, each with a stride of 1, or of 0 to repeat its first.
pub(crate) type Kernel2 = Box<dyn Fn(&[f32], &[f32], [usize; 2], &mut [f32]) + Send + Sync>;

/// A map over f32.
pub(crate) enum MapKernel {
    One(Kernel1),
    Two(Kernel2),
}

/// The elements as `E`, where that is f32.
pub(crate) fn as_elements<E: Element>(x: &[f32]) -> Option<&[E]> {
    // SAFETY: an element type is named by its constant, so `E` is f32.
    (E::DTYPE == DType::F32)
        .then(|| unsafe { std::slice::from_raw_parts(x.as_ptr().cast::<E>(), x.len()) })
}

/// As [`as_elements`], for writing.
pub(crate) fn as_elements_mut<E: Element>(x: &mut [f32]) -> Option<&mut [E]> {
    // SAFETY: as above.
    (E::DTYPE == DType::F32)
        .then(|| unsafe { std::slice::from_raw_parts_mut(x.as_mut_ptr().cast::<E>(), x.len()) })
}

/// An argument of a function in a chain.
#[derive(Clone, Debug)]
pub(super) enum Argument {
    /// The chain's input at the same place.
    Along(usize),
    /// The chain's input, one element repeated.
    One(usize),
    /// The chain's input in another order: gathered first.
    Gather(usize, Walk<1>),
    /// A number.
    Number(f32),
    /// What an earlier function of the chain gave.
    Register(usize),
}

/// One function of a chain.
pub(super) struct Link {
    pub(super) kernel: MapKernel,
    pub(super) arguments: Vec<Argument>,
    /// Where its results go; the last function writes the chain's result.
    pub(super) register: usize,
}

/// Functions applied to each element, in order.
pub(super) struct Chain {
    pub(super) links: Vec<Link>,
    pub(super) registers: usize,
}

/// Elements computed at a time: with a handful of registers they fit the first-level cache.
const SPAN: usize = 1024;

thread_local! {
    static SCRATCH: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

impl Argument {
    /// How a function of a chain over `shape` reads an input that has `layout` (broadcast to `shape`).
    pub(super) fn of(input: usize, layout: &Layout, shape: &[usize]) -> Option<Argument> {
        let strides = crate::layout::broadcast_strides(layout, shape)?;
        if strides.iter().zip(shape).all(|(&s, &n)| s == 0 || n == 1) {
            return Some(Argument::One(input));
        }
        let dense = Layout::dense("capture", shape).ok()?;
        let along = shape
            .iter()
            .zip(strides.iter().zip(dense.strides.iter()))
            .all(|(&n, (a, b))| n == 1 || a == b);
        if along {
            return Some(Argument::Along(input));
        }
        Some(Argument::Gather(input, Walk::new(shape, [(&strides, 0)])))
    }
}

impl Chain {
    /// Computes the chain. `inputs[i]` begins at the first element that the operand reads.
    pub(super) fn run(&self, inputs: &[&[f32]], out: &mut [f32]) {
        let total = out.len();
        if let [link] = &self.links[..]
            && total <= SPAN
            && !link
                .arguments
                .iter()
                .any(|a| matches!(a, Argument::Gather(..)))
        {
            link.run(inputs, &[], 0, out);
            return;
        }
        for_blocks(out, BLOCK, total, |first, block| {
            SCRATCH.with(|scratch| {
                // A kernel may be called from within another's wait: then the scratch is in use.
                let mut own = Vec::new();
                let mut kept = scratch.try_borrow_mut().ok();
                let registers = kept.as_deref_mut().unwrap_or(&mut own);
                // Two more for gathered arguments.
                if registers.len() < self.registers + 2 {
                    registers.resize_with(self.registers + 2, || vec![0.0; SPAN]);
                }
                let last = self.links.len() - 1;
                for (i, span) in block.chunks_mut(SPAN).enumerate() {
                    let at = first + i * SPAN;
                    for (place, link) in self.links.iter().enumerate() {
                        link.gather(inputs, registers, self.registers, at, span.len());
                        if place == last {
                            link.run_from(inputs, registers, self.registers, at, span);
                        } else {
                            let mut target = std::mem::take(&mut registers[link.register]);
                            link.run_from(
                                inputs,
                                registers,
                                self.registers,
                                at,
                                &mut target[..span.len()],
                            );
                            registers[link.register] = target;
                        }
                    }
                }
            });
        });
    }
}

impl Link {
    /// Copies arguments in another order into the registers from `spare` on.
    fn gather(
        &self,
        inputs: &[&[f32]],
        registers: &mut [Vec<f32>],
        spare: usize,
        at: usize,
        n: usize,
    ) {
        for (which, argument) in self.arguments.iter().enumerate() {
            if let Argument::Gather(input, walk) = argument {
                let source = inputs[*input];
                let [stride] = walk.inner_strides();
                let target = &mut registers[spare + which];
                walk.runs(at..at + n, |place, len, [start]| {
                    let to = &mut target[place - at..place - at + len];
                    match stride {
                        0 => to.fill(source[start]),
                        1 => to.copy_from_slice(&source[start..start + len]),
                        _ => {
                            for (i, o) in to.iter_mut().enumerate() {
                                *o = source[start + i * stride];
                            }
                        }
                    }
                });
            }
        }
    }

    fn run_from(
        &self,
        inputs: &[&[f32]],
        registers: &[Vec<f32>],
        spare: usize,
        at: usize,
        out: &mut [f32],
    ) {
        self.apply(out, |which, argument| match argument {
            Argument::Along(input) => (&inputs[*input][at..], 1),
            Argument::One(input) => (inputs[*input], 0),
            Argument::Gather(..) => (&registers[spare + which], 1),
            Argument::Number(x) => (std::slice::from_ref(x), 0),
            Argument::Register(r) => (&registers[*r], 1),
        });
    }

    fn run(&self, inputs: &[&[f32]], registers: &[Vec<f32>], spare: usize, out: &mut [f32]) {
        self.run_from(inputs, registers, spare, 0, out);
    }

    #[inline]
    fn apply<'a>(
        &'a self,
        out: &mut [f32],
        find: impl Fn(usize, &'a Argument) -> (&'a [f32], usize),
    ) {
        match (&self.kernel, &self.arguments[..]) {
            (MapKernel::One(f), [a]) => {
                let (a, stride) = find(0, a);
                if stride == 1 || out.len() == 1 {
                    f(a, out);
                } else if let Some((head, rest)) = out.split_first_mut() {
                    f(a, std::slice::from_mut(head));
                    rest.fill(*head);
                }
            }
            (MapKernel::Two(f), [a, b]) => {
                let ((a, sa), (b, sb)) = (find(0, a), find(1, b));
                f(a, b, [sa, sb], out);
            }
            _ => debug_assert!(false, "a map has as many arguments as its function"),
        }
    }
}
