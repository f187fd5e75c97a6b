//! A trainer that does one operation a step, on tensors made before the first: benches/peers times the step. For
//! benches/boundary the operations are calls into the host that compute nothing, `size` of them a step.

use espalier_sdk::capture::Captured;
use espalier_sdk::parameters::{AdamOptions, Selection};
use espalier_sdk::{
    Batch, Choice, Error, Mode, Model, Options, ParameterSet, Prediction, RunInfo, StepInfo,
    StepReport, Stream, Tensor, Trainer, random,
};

/// Which operation.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Work {
    Matmul,
    Tanh,
    Softmax,
    LayerNorm,
    SumLast,
    SumFirst,
    Adam,
    Nothing,
    Borrow,
    Handle,
    Add,
    Batch,
    List,
}

/// Options under `[trainer.with]`.
#[derive(Options)]
struct Settings {
    /// Which operation a step does.
    #[option(default = Work::Matmul)]
    work: Work,
    /// Rows and columns of the factors of a matrix product, or how often a call into the host is made.
    #[option(default = 512, min = 1)]
    size: u64,
    /// Whether the operation is captured (tanh only).
    #[option(default = false)]
    capture: bool,
}

struct Operations {
    work: Work,
    size: u64,
    operands: Vec<Tensor>,
    names: Vec<String>,
    captured: Option<Captured<()>>,
    all: Selection,
    stream: Stream,
}

impl Trainer for Operations {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let normal = |key: u64, shape: &[u32]| random::normal(&[key], shape);
        let n = u32::try_from(settings.size)
            .map_err(|_| Error::invalid_option("`size` is at most 2^32 - 1"))?;
        let set = ParameterSet::main();
        let names = set.trainable();
        let operands = match settings.work {
            Work::Matmul => vec![normal(1, &[n, n]), normal(2, &[n, n])],
            Work::Tanh => (1..=3).map(|key| normal(key, &[1 << 20])).collect(),
            Work::LayerNorm => vec![
                normal(1, &[4096, 512]),
                normal(2, &[512]),
                normal(3, &[512]),
            ],
            Work::Softmax | Work::SumLast | Work::SumFirst => vec![normal(1, &[4096, 512])],
            Work::Adam => ParameterSet::main()
                .values(&names)
                .iter()
                .map(|value| normal(1, &value.shape()))
                .collect(),
            _ => vec![normal(1, &[4])],
        };
        Ok(Operations {
            work: settings.work,
            size: settings.size,
            operands,
            all: set.select(&names),
            names,
            captured: settings.capture.then(|| Captured::new("operation")),
            stream: Stream::train(1, &[0]),
        })
    }

    fn step(&mut self, _at: &StepInfo) -> StepReport {
        let t = &self.operands;
        if let (Work::Tanh, Some(captured)) = (self.work, &mut self.captured) {
            captured.map(&(), &[&t[0], &t[1], &t[2]], &[], |(), step| {
                let [a, b, c] = [0, 1, 2].map(|place| step.input(place));
                vec![(&(a * b) + c).tanh()]
            });
            return StepReport::new(0.0, 1);
        }
        match self.work {
            Work::Matmul => drop(t[0].matmul(&t[1])),
            Work::Tanh => drop((&(&t[0] * &t[1]) + &t[2]).tanh()),
            Work::Softmax => drop(t[0].softmax(-1)),
            Work::LayerNorm => drop(t[0].layer_norm(&[-1], Some(&t[1]), Some(&t[2]), 1e-5)),
            Work::SumLast => drop(t[0].sum(&[-1])),
            Work::SumFirst => drop(t[0].sum(&[0])),
            Work::Adam => ParameterSet::main().adam(&self.names, t, AdamOptions::default()),
            Work::Nothing => {}
            Work::Borrow => (0..self.size).for_each(|_| {
                let _ = t[0].dtype();
            }),
            Work::Handle => (0..self.size).for_each(|_| drop(t[0].detach())),
            Work::Add => (0..self.size).for_each(|_| drop(&t[0] + &t[0])),
            Work::Batch => (0..self.size).for_each(|_| drop(self.stream.next_endless())),
            Work::List => (0..self.size).for_each(|_| drop(self.all.values())),
        }
        StepReport::new(0.0, 1)
    }

    fn objective(&self, batch: &Batch) -> Tensor {
        let output = Model::main().forward(batch.fields(), Mode::Train);
        output.cross_entropy(batch.targets())
    }

    fn predict(&self, batch: &Batch) -> Prediction {
        Prediction::logits(Model::main().forward(batch.fields(), Mode::Eval))
    }
}

espalier_sdk::export!(trainer: Operations);
