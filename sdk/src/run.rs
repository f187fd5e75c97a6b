//! What a plugin and the host tell each other about a run.

use crate::bindings::host::espalier::plugin::run as host;

pub use host::{
    Directive, Error, ErrorCode, Event, EventKind, Metric, RunInfo, StepInfo, StepReport,
};

impl Error {
    /// An option has a value that does not go with the run.
    pub fn invalid_option(message: impl Into<String>) -> Error {
        Error {
            code: ErrorCode::InvalidOption,
            message: message.into(),
        }
    }

    /// The model, the data or the schedule is not of the kind the plugin needs.
    pub fn incompatible(message: impl Into<String>) -> Error {
        Error {
            code: ErrorCode::Incompatible,
            message: message.into(),
        }
    }

    /// Saved bytes could not be read.
    pub fn invalid_state(message: impl Into<String>) -> Error {
        Error {
            code: ErrorCode::InvalidState,
            message: message.into(),
        }
    }

    /// Anything else.
    pub fn other(message: impl Into<String>) -> Error {
        Error {
            code: ErrorCode::Other,
            message: message.into(),
        }
    }
}

impl StepReport {
    /// A step like any other.
    pub fn new(loss: f64, samples: u32) -> StepReport {
        StepReport {
            loss,
            samples,
            done: false,
        }
    }

    /// The trainer has nothing left to do in this round.
    pub fn done(mut self) -> StepReport {
        self.done = true;
        self
    }
}

impl EventKind {
    /// As in `description.events`.
    #[doc(hidden)]
    pub fn word(self) -> &'static str {
        match self {
            EventKind::Step => "step",
            EventKind::Epoch => "epoch",
            EventKind::Round => "round",
            EventKind::Stage => "stage",
        }
    }
}
