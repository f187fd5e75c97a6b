//! A trainer that keeps every law but the one it is told to break.

use std::cell::Cell;

use espalier_sdk::data::{Batch, Stream};
use espalier_sdk::parameters::{ParameterSet, SgdOptions};
use espalier_sdk::{
    Choice, Dtype, Error, Mode, Model, Options, Prediction, RunInfo, StepInfo, StepReport, Tensor,
    Trainer,
};

/// What is wrong with it.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Fault {
    Nothing,
    Climbs,
    LeaksHandles,
    KeepsGraphs,
    PredictsTheBatch,
    PredictsTwice,
    CountsQuestions,
    TouchesFrozen,
    Unsaved,
    PanicsOnOne,
    PanicsOnNothing,
    HoardsTensors,
}

/// Options under `[trainer.with]`.
#[derive(Options)]
struct Settings {
    /// The fault.
    #[option(default = Fault::Nothing)]
    fault: Fault,
}

struct Faulty {
    fault: Fault,
    model: Model,
    stream: Stream,
    /// Steps so far: remembered, and not saved.
    steps: f64,
    kept: Vec<Tensor>,
    loss: Option<Tensor>,
    questions: Cell<u8>,
}

impl Trainer for Faulty {
    type Options = Settings;

    fn new(run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let fault = settings.fault;
        if ParameterSet::main().trainable().is_empty() {
            assert!(
                fault != Fault::PanicsOnNothing,
                "there is always something to train"
            );
            return Err(Error::incompatible("the model has nothing to train"));
        }
        if espalier_sdk::data::split("train").is_none_or(|split| split.classes == 0) {
            return Err(Error::incompatible("this trainer needs classes"));
        }
        Ok(Faulty {
            fault,
            model: Model::main(),
            stream: Stream::train(run.batch_size, &[0]),
            steps: 0.0,
            kept: Vec::new(),
            loss: None,
            questions: Cell::new(0),
        })
    }

    fn step(&mut self, _at: &StepInfo) -> StepReport {
        self.steps += 1.0;
        let batch = self.stream.next_endless();
        assert!(
            self.fault != Fault::PanicsOnOne || batch.count() > 1,
            "a batch has more than one sample"
        );
        let output = self.model.forward(batch.fields(), Mode::Train);
        let loss = output.cross_entropy(batch.targets()).mean(&[]);
        let set = ParameterSet::main();
        let names = set.trainable();
        let gradients = set.grad(&loss, &names);
        let lr = match self.fault {
            Fault::Unsaved => 0.1 / self.steps,
            _ => 0.1,
        };
        let gradients: Vec<Tensor> = match self.fault {
            Fault::Climbs => gradients.iter().map(|g| g * -1.0).collect(),
            _ => gradients,
        };
        set.sgd(
            &names,
            &gradients,
            SgdOptions {
                lr,
                ..Default::default()
            },
        );
        match self.fault {
            Fault::LeaksHandles => self.kept.push(loss.detach()),
            Fault::KeepsGraphs => {
                let sum = self
                    .loss
                    .take()
                    .map_or_else(|| output.sum(&[]), |sum| sum + output.sum(&[]));
                self.loss = Some(sum);
            }
            Fault::HoardsTensors => self.kept.push(Tensor::full(&[300 << 18], 1.0, Dtype::F32)),
            Fault::TouchesFrozen => {
                for info in set.list().iter().filter(|info| !info.trainable) {
                    set.assign(&info.name, &(set.value(&info.name).detach() * 0.9));
                }
            }
            _ => {}
        }
        StepReport::new(loss.item(), batch.count())
    }

    fn objective(&self, batch: &Batch) -> Tensor {
        if self.fault == Fault::CountsQuestions {
            self.questions.set(self.questions.get().wrapping_add(1));
        }
        let output = self.model.forward(batch.fields(), Mode::TrainFrozenStats);
        output.cross_entropy(batch.targets())
    }

    fn predict(&self, batch: &Batch) -> Prediction {
        let output = self.model.forward(batch.fields(), Mode::Eval);
        Prediction::logits(match self.fault {
            Fault::PredictsTheBatch => &output - output.mean(&[0]),
            Fault::PredictsTwice => Tensor::concat(&[&output, &output], 1),
            _ => output,
        })
    }

    fn save(&self) -> Vec<u8> {
        match self.fault {
            Fault::CountsQuestions => vec![self.questions.get()],
            _ => Vec::new(),
        }
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        self.questions.set(state.first().copied().unwrap_or(0));
        Ok(())
    }
}

espalier_sdk::export!(trainer: Faulty);
