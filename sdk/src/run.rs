//! What a plugin and the host tell each other about a run.

use crate::bindings::host::espalier::plugin::run as host;

pub use host::{
    Directive, Error, ErrorCode, Event, EventKind, Metric, RunInfo, StepInfo, StepReport,
};

impl Error {
    /// An option has a value that does not go with the run.
    ///
    /// ```
    /// # use espalier_sdk::Error;
    /// let error = Error::invalid_option("`momentum` needs `lr` above 0");
    /// assert!(error.message.contains("lr"));
    /// ```
    pub fn invalid_option(message: impl Into<String>) -> Error {
        Error {
            code: ErrorCode::InvalidOption,
            message: message.into(),
        }
    }

    /// The model, the data or the schedule is not of the kind the plugin needs.
    ///
    /// ```
    /// # use espalier_sdk::Error;
    /// let error = Error::incompatible("the model has no weights to prune");
    /// assert!(error.message.contains("weights"));
    /// ```
    pub fn incompatible(message: impl Into<String>) -> Error {
        Error {
            code: ErrorCode::Incompatible,
            message: message.into(),
        }
    }

    /// Saved bytes could not be read.
    ///
    /// ```
    /// # use espalier_sdk::Error;
    /// let error = Error::invalid_state("a mask is missing");
    /// assert!(error.message.contains("mask"));
    /// ```
    pub fn invalid_state(message: impl Into<String>) -> Error {
        Error {
            code: ErrorCode::InvalidState,
            message: message.into(),
        }
    }

    /// Anything else.
    ///
    /// ```
    /// # use espalier_sdk::Error;
    /// let error = Error::other("the factorisation failed");
    /// assert!(error.message.contains("failed"));
    /// ```
    pub fn other(message: impl Into<String>) -> Error {
        Error {
            code: ErrorCode::Other,
            message: message.into(),
        }
    }
}

impl StepReport {
    /// A step like any other.
    ///
    /// ```
    /// # use espalier_sdk::StepReport;
    /// let report = StepReport::new(0.25, 64);
    /// assert_eq!((report.samples, report.done), (64, false));
    /// ```
    pub fn new(loss: f64, samples: u32) -> StepReport {
        StepReport {
            loss,
            samples,
            done: false,
        }
    }

    /// The trainer has nothing left to do in this round.
    ///
    /// ```
    /// # use espalier_sdk::StepReport;
    /// assert!(StepReport::new(0.25, 64).done().done);
    /// ```
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
