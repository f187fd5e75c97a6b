//! Capture: what a step computes, recorded once as a program and replayed without a graph.
//!
//! Between [`start`] and [`finish`] every kernel on this thread notes what it computed from what
//! ([`Recorder`]). Gradient rules are ordinary tensor code, so the backward pass is noted like the forward
//! pass, and the program holds the flat result of both. `finish` removes what nobody reads and what is
//! computed twice, fuses chains of element-by-element functions, and gives a [`Program`].
//!
//! What a program promises: the bits of the recorded step, for any values of its sources of the same shapes.
//! That rests on two rules, both kept here and not by those who note:
//!
//! 1. Each tensor made while recording is unknown until an instruction names it as its result. An
//!    instruction that reads an unknown tensor ends the recording with a reason. So a kernel that notes
//!    nothing can never put this step's numbers into every later step.
//! 2. A tensor made before the recording is read only if it was declared a source ([`source`]), which is bound
//!    anew at each replay. Constants are what `full`, `arange` and the like made while recording.
//!
//! Views need no instruction: an operand is a value and a layout.

mod chain;
mod compile;
mod record;
mod replay;

use std::cell::{Cell, RefCell};

use crate::error::Result;
use crate::tensor::Tensor;

pub(crate) use chain::{MapKernel, as_elements, as_elements_mut};
pub(crate) use record::{Key, MapSide, Recorder};
pub use replay::Program;

/// Computes an instruction's results from its operands, without a graph.
pub(crate) type Call = Box<dyn Fn(&[Tensor], &mut Vec<Tensor>) -> Result<()>>;

thread_local! {
    static ON: Cell<bool> = const { Cell::new(false) };
    static RECORDER: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// Whether this thread notes what kernels do.
#[inline]
pub fn is_recording() -> bool {
    ON.with(Cell::get)
}

/// Begins a recording on this thread of at most `most` instructions; one that was going on is dropped.
pub fn start(most: usize) {
    RECORDER.with(|r| *r.borrow_mut() = Some(Recorder::new(most)));
    ON.with(|on| on.set(true));
}

/// Ends the recording on this thread without a program.
pub fn abandon() {
    ON.with(|on| on.set(false));
    // Dropped outside of the borrow: tensors it held go back to their account.
    let gone = RECORDER.with(|r| r.borrow_mut().take());
    drop(gone);
}

/// Ends the recording and makes the program whose results are `outputs`.
///
/// # Errors
/// The reason why the step cannot be captured, as part of a sentence.
pub fn finish(outputs: &[&Tensor]) -> std::result::Result<Program, String> {
    ON.with(|on| on.set(false));
    match RECORDER.with(|r| r.borrow_mut().take()) {
        Some(recorder) => compile::compile(recorder, outputs),
        None => Err("nothing was being recorded".into()),
    }
}

/// Runs `f` on the recorder where one is at work.
fn with<T>(f: impl FnOnce(&mut Recorder) -> T) -> Option<T> {
    if !is_recording() {
        return None;
    }
    RECORDER.with(|r| r.borrow_mut().as_mut().map(f))
}

/// Declares a tensor made before the recording to be a source, read anew at each replay; returns its number,
/// the same one for the same elements. None where nothing is being recorded.
pub fn source(t: &Tensor) -> Option<u32> {
    with(|r| r.source(t))
}

/// As [`source`], for a value that the next [`effect`] may change in place: until then it is this source, and
/// afterwards it has to be declared again.
pub fn parameter(t: &Tensor) -> Option<u32> {
    with(|r| r.parameter(t))
}

/// Something outside of the engine happens now with these tensors, an optimiser's step say: the program stops
/// here at each replay and hands them out. Returns which stop it is.
pub fn effect(operands: &[&Tensor]) -> Option<u32> {
    with(|r| r.effect(operands))
}

/// The step cannot be captured; the first reason stands.
pub fn refuse(reason: &str) {
    with(|r| r.refuse(reason.to_string()));
}

/// Nothing is noted while this lives.
#[must_use = "recording is paused only while the guard lives"]
pub struct Paused(bool);

/// Pauses the recording on this thread: for work whose results are declared as sources, or that is an effect.
pub fn pause() -> Paused {
    Paused(ON.with(|on| on.replace(false)))
}

impl Drop for Paused {
    fn drop(&mut self) {
        if self.0 {
            ON.with(|on| on.set(true));
        }
    }
}

/// A tensor has been made; what it is will be noted, or never.
#[inline]
pub(crate) fn made(op: &'static str, t: &Tensor) {
    if is_recording() {
        with(|r| r.made(op, t));
    }
}

/// A tensor has been made from nothing but numbers that stand in the program.
#[inline]
pub(crate) fn constant(t: &Tensor) {
    if is_recording() {
        with(|r| r.constant(t));
    }
}

/// Notes an instruction with one result. `words` are its attributes: two instructions of one name with the same
/// words and operands have the same result.
#[inline]
pub(crate) fn note<F: Fn(&[Tensor]) -> Result<Tensor> + 'static>(
    op: &'static str,
    words: &[u64],
    inputs: &[&Tensor],
    out: &Tensor,
    call: impl FnOnce() -> F,
) {
    if is_recording() {
        let call = call();
        let call: Call = Box::new(move |inputs, results| {
            results.push(call(inputs)?);
            Ok(())
        });
        with(|r| r.note(Key::new(op, words), inputs, &[out], call));
    }
}

/// As [`note`], for an instruction with several results.
#[inline]
pub(crate) fn note_all<F: Fn(&[Tensor]) -> Result<Vec<Tensor>> + 'static>(
    op: &'static str,
    words: &[u64],
    inputs: &[&Tensor],
    outs: &[&Tensor],
    call: impl FnOnce() -> F,
) {
    if is_recording() {
        let call = call();
        let call: Call = Box::new(move |inputs, results| {
            results.extend(call(inputs)?);
            Ok(())
        });
        with(|r| r.note(Key::new(op, words), inputs, outs, call));
    }
}

/// Notes an element-by-element function, which may be fused with its neighbours.
pub(crate) fn note_map(
    key: Key,
    sides: &[MapSide],
    out: &Tensor,
    kernel: Option<MapKernel>,
    call: Call,
) {
    with(|r| r.note_map(key, sides, out, kernel, call));
}
