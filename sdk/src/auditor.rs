//! Auditors: whether to trust the result.

use crate::bindings::auditor::exports::espalier::plugin::auditing as raw;
use crate::options::Options;
use crate::run::{Error, RunInfo};

/// Whether to trust the result. It reads the run's model and parameters, data, and what the trainer predicts; it
/// trains clones and sets of its own, never the run's.
///
/// ```no_run
/// use espalier_sdk::auditor::Report;
/// use espalier_sdk::{Auditor, Error, Model, Mode, RunInfo, data};
///
/// /// Flags a model that always answers the same.
/// struct OneAnswer;
///
/// impl Auditor for OneAnswer {
///     type Options = ();
///
///     fn new(_run: &RunInfo, _options: ()) -> Result<Self, Error> {
///         Ok(OneAnswer)
///     }
///
///     fn audit(&mut self) -> Report {
///         let inputs = data::field("test", "inputs");
///         let answers = Model::main().forward(&[("inputs".into(), inputs)], Mode::Eval).argmax(-1);
///         let first = answers.slice(0, 0, 1);
///         let same = answers.equal(&first).count_nonzero();
///         Report::new("How many answers are the first one.")
///             .number("same", same as f64)
///             .flag(same == u64::from(answers.size(0)))
///     }
/// }
///
/// espalier_sdk::export!(auditor: OneAnswer);
/// ```
pub trait Auditor: Sized + 'static {
    /// What a run file may set.
    type Options: Options;

    /// Once, before the stage begins. Refuses with an error for the reader of the run.
    fn new(run: &RunInfo, options: Self::Options) -> Result<Self, Error>;

    /// Looks at the model as it is now, once, at the end of the stage.
    fn audit(&mut self) -> Report;
}

/// What an audit found.
///
/// ```no_run
/// # use espalier_sdk::auditor::Report;
/// let report = Report::new("Two of ten samples were certified.")
///     .number("certified", 0.2)
///     .table("by class", &["class", "certified"], vec![vec![0.0, 1.0], vec![1.0, 0.0]])
///     .flag(false);
/// ```
pub struct Report(raw::AuditReport);

impl Report {
    /// A report that only measures; the note is one or two sentences for the reader.
    ///
    /// ```no_run
    /// # use espalier_sdk::auditor::Report;
    /// let report = Report::new("Nothing to judge: the test split is empty.");
    /// ```
    pub fn new(note: impl Into<String>) -> Report {
        Report(raw::AuditReport {
            flagged: None,
            numbers: Vec::new(),
            tables: Vec::new(),
            note: note.into(),
        })
    }

    /// Adds a number under a name of its own, as `verified-accuracy`.
    ///
    /// ```no_run
    /// # use espalier_sdk::auditor::Report;
    /// let report = Report::new("").number("auroc", 0.98);
    /// ```
    pub fn number(mut self, name: &str, value: f64) -> Report {
        self.0.numbers.push((name.into(), value));
        self
    }

    /// Adds a table, one number a column in each row.
    ///
    /// ```no_run
    /// # use espalier_sdk::auditor::Report;
    /// let report = Report::new("").table("radii", &["sample", "radius"], vec![vec![0.0, 0.1]]);
    /// ```
    pub fn table(mut self, name: &str, columns: &[&str], rows: Vec<Vec<f64>>) -> Report {
        self.0.tables.push(raw::Table {
            name: name.into(),
            columns: columns.iter().map(|column| column.to_string()).collect(),
            rows,
        });
        self
    }

    /// Replaces the note.
    ///
    /// ```no_run
    /// # use espalier_sdk::auditor::Report;
    /// let report = Report::new("").number("share", 0.25).note("A quarter is certified.");
    /// ```
    pub fn note(mut self, note: impl Into<String>) -> Report {
        self.0.note = note.into();
        self
    }

    /// Says whether the result should be distrusted.
    ///
    /// ```no_run
    /// # use espalier_sdk::auditor::Report;
    /// # let auroc = 0.98;
    /// let report = Report::new("").number("auroc", auroc).flag(auroc > 0.9);
    /// ```
    pub fn flag(mut self, distrust: bool) -> Report {
        self.0.flagged = Some(distrust);
        self
    }

    pub(crate) fn into_raw(self) -> raw::AuditReport {
        self.0
    }
}
