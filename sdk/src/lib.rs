//! What a plugin author sees: tensors with operators, one trait a slot, options from a struct with doc
//! comments, and one `export!` line that makes a component of it all.
//!
//! A plugin decides, the host computes: everything here is a handle to something that the host owns. See
//! [`Trainer`], [`Pruner`], [`Normalizer`] and [`Tasks`] for a whole plugin each, and `docs/writing-a-plugin.md` for the way from nothing
//! to a run.
//!
//! Only what a plugin calls becomes an import of its component. So a pruner has no optimiser although this
//! crate offers one: the host refuses a pruner that calls it.

// So that derived code names this crate alike inside and outside of it.
extern crate self as espalier_sdk;

#[doc(hidden)]
pub mod bindings;

pub mod architecture;
pub mod auditor;
pub mod autograd;
pub mod blocks;
pub mod capture;
pub mod control;
pub mod data;
mod export;
pub mod fft;
#[doc(hidden)]
#[allow(missing_docs)]
pub mod guest;
pub mod log;
pub mod model;
pub mod nn;
pub mod options;
pub mod parameters;
pub mod prune;
pub mod random;
pub mod rewards;
pub mod rollouts;
pub mod run;
pub mod schedule;
pub mod searcher;
mod slots;
pub mod state;
pub mod tensor;
pub mod transform;
pub mod tuner;

/// Derives `options::Choice` for an enum without fields: the cases in kebab-case.
pub use espalier_sdk_derive::Choice;
/// Derives `options::Options` for a struct: fields in kebab-case, doc comments as documentation,
/// `#[option(default = VALUE, min = NUMBER, max = NUMBER, live)]`.
pub use espalier_sdk_derive::Options;

pub use architecture::Architecture;
pub use auditor::Auditor;
pub use autograd::{grad, no_grad};
pub use data::{Batch, Stream};
pub use model::{Mode, Model, Prediction};
pub use options::{Choice, Options};
pub use parameters::ParameterSet;
pub use run::{Directive, Error, Event, EventKind, RunInfo, StepInfo, StepReport};
pub use searcher::Searcher;
pub use slots::{Mdp, Normalizer, Pruner, Response, Tasks, TrackingNormalizer, Trainer};
pub use tensor::{Dtype, Tensor};
pub use transform::Transform;
pub use tuner::Tuner;

/// The examples of the guide compile.
#[cfg(doctest)]
#[doc = include_str!("../../docs/writing-a-plugin.md")]
struct WritingAPlugin;
