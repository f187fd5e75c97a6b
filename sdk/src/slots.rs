//! The traits that a plugin implements, one a slot.

use crate::data::Batch;
use crate::model::Prediction;
use crate::options::{Options, Value};
use crate::run::{Directive, Error, Event, EventKind, RunInfo, StepInfo, StepReport};
use crate::tensor::Tensor;

/// How parameters change.
///
/// ```no_run
/// use espalier_sdk::data::{Batch, Stream};
/// use espalier_sdk::model::{Mode, Model, Prediction};
/// use espalier_sdk::parameters::{ParameterSet, SgdOptions};
/// use espalier_sdk::{Error, Options, RunInfo, StepInfo, StepReport, Tensor, Trainer};
///
/// #[derive(Options)]
/// struct Settings {
///     /// Learning rate.
///     #[option(default = 0.1, min = 0.0)]
///     lr: f64,
/// }
///
/// struct Plain {
///     lr: f64,
///     model: Model,
///     stream: Stream,
/// }
///
/// impl Trainer for Plain {
///     type Options = Settings;
///
///     fn new(run: &RunInfo, options: Settings) -> Result<Self, Error> {
///         let stream = Stream::train(run.batch_size, &[0]);
///         Ok(Plain { lr: options.lr, model: Model::main(), stream })
///     }
///
///     fn step(&mut self, _at: &StepInfo) -> StepReport {
///         let batch = self.stream.next_endless();
///         let loss = self.objective(&batch).mean(&[]);
///         let set = ParameterSet::main();
///         let names = set.trainable();
///         let grads = set.grad(&loss, &names);
///         set.sgd(&names, &grads, SgdOptions { lr: self.lr, ..Default::default() });
///         StepReport::new(loss.item(), batch.count())
///     }
///
///     fn objective(&self, batch: &Batch) -> Tensor {
///         self.model.forward(batch.fields(), Mode::Train).cross_entropy(batch.targets())
///     }
///
///     fn predict(&self, batch: &Batch) -> Prediction {
///         Prediction::logits(self.model.forward(batch.fields(), Mode::Eval))
///     }
/// }
///
/// espalier_sdk::export!(trainer: Plain);
/// ```
pub trait Trainer: Sized + 'static {
    /// What a run file may set.
    type Options: Options;

    /// Once, before the first step. Refuses with an error for the reader of the run.
    fn new(run: &RunInfo, options: Self::Options) -> Result<Self, Error>;

    /// One step: pull a batch, change parameters.
    fn step(&mut self, at: &StepInfo) -> StepReport;

    /// Per-sample losses `[count]`, tracked to the run's parameters. Pure: no update, no state.
    fn objective(&self, batch: &Batch) -> Tensor;

    /// Predictions for a batch of any size. Pure; randomness keyed by sample index. Runs without a graph.
    fn predict(&self, batch: &Batch) -> Prediction;

    /// Changes an option declared live, between steps.
    fn set_knob(&mut self, name: &str, value: &Value) -> Result<(), Error> {
        let _ = value;
        Err(Error::invalid_option(format!(
            "`{name}` cannot be changed during a run"
        )))
    }

    /// Everything to be remembered that is not in the host.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Called after `new` with what `save` gave.
    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        nothing_saved(state)
    }
}

/// Which weights live.
///
/// ```no_run
/// use espalier_sdk::parameters::{Kind, ParameterSet};
/// use espalier_sdk::{Directive, Error, Event, EventKind, Pruner, RunInfo};
///
/// /// Halves every weight matrix at the end of each epoch: the smaller half of what is left goes.
/// struct Halve;
///
/// impl Pruner for Halve {
///     type Options = ();
///     const EVENTS: &'static [EventKind] = &[EventKind::Epoch];
///
///     fn new(_run: &RunInfo, _options: ()) -> Result<Self, Error> {
///         Ok(Halve)
///     }
///
///     fn on_event(&mut self, _event: &Event) -> Directive {
///         let set = ParameterSet::main();
///         for info in set.list().iter().filter(|info| info.kind == Kind::Weight) {
///             let alive = set.mask_or_ones(info);
///             let keep = alive.count_nonzero() / 2;
///             set.set_mask(&info.name, &set.value(&info.name).abs().keep_largest(&alive, keep));
///         }
///         Directive::Continue
///     }
/// }
///
/// espalier_sdk::export!(pruner: Halve);
/// ```
pub trait Pruner: Sized + 'static {
    /// What a run file may set.
    type Options: Options;

    /// The kinds of events it wants; others are not sent.
    const EVENTS: &'static [EventKind];

    /// Once, before the first step. Refuses with an error for the reader of the run.
    fn new(run: &RunInfo, options: Self::Options) -> Result<Self, Error>;

    /// After the trainer's update, for each wanted event.
    fn on_event(&mut self, event: &Event) -> Directive;

    /// Everything to be remembered that is not in the host.
    fn save(&self) -> Vec<u8> {
        Vec::new()
    }

    /// Called after `new` with what `save` gave.
    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        nothing_saved(state)
    }
}

fn nothing_saved(state: &[u8]) -> Result<(), Error> {
    if state.is_empty() {
        return Ok(());
    }
    Err(Error::invalid_state(format!(
        "this plugin saves nothing, the checkpoint holds {} bytes of another version",
        state.len()
    )))
}
