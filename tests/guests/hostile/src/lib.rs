//! A trainer that trains honestly until step 5 and then does one thing that no plugin may do: what the sandbox
//! is for. `tests/tests/hostile.rs` runs it once for each.

use espalier_sdk::data::Stream;
use espalier_sdk::model::LayerSpec;
use espalier_sdk::parameters::{Kind, SgdOptions};
use espalier_sdk::tensor::Dtype;
use espalier_sdk::{
    Batch, Choice, Error, Mode, Model, Options, ParameterSet, Prediction, RunInfo, StepInfo,
    StepReport, Tensor, Trainer, grad,
};

/// What it does.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Deed {
    Nothing,
    LoopForever,
    LoopInTheHost,
    Sleep,
    GuestMemory,
    TensorBytes,
    OneHugeTensor,
    HugeMatmul,
    Handles,
    Panic,
    Recurse,
    NonsenseShape,
    NonsensePrediction,
    NonsenseObjective,
    LogFlood,
    PrintFlood,
    EndlessLine,
    Exit,
    UnknownParameter,
    HugeSave,
    DeepGraph,
    View,
    SplitAtStart,
    Sets,
    Parameters,
    Models,
    Tags,
    Layers,
    LongName,
    LongKey,
    Escape,
    InfiniteLoss,
    Witness,
    PeekAtTargets,
    Clock,
    Adopt,
}

/// Options under `[trainer.with]`.
#[derive(Options)]
struct Settings {
    /// What it does at step 5.
    #[option(default = Deed::Nothing)]
    deed: Deed,
}

struct Hostile {
    deed: Deed,
    model: Model,
    stream: Stream,
    step: u64,
    /// Steps that this instance remembers.
    steps: u64,
}

fn recurse(depth: u64) -> u64 {
    let mut room = [depth; 128];
    std::hint::black_box(&mut room);
    if depth == u64::MAX {
        0
    } else {
        recurse(depth + 1) + room[(depth % 128) as usize]
    }
}

impl Hostile {
    fn act(&self) {
        let small = || Tensor::full(&[1], 1.0, Dtype::F32);
        match self.deed {
            Deed::LoopForever => loop {
                std::hint::black_box(0);
            },
            Deed::LoopInTheHost => loop {
                std::hint::black_box(small().exp().item());
            },
            Deed::Sleep => std::thread::sleep(std::time::Duration::from_secs(3600)),
            Deed::GuestMemory => {
                let mut all: Vec<Vec<u8>> = Vec::new();
                loop {
                    all.push(std::hint::black_box(vec![1; 1 << 20]));
                }
            }
            Deed::TensorBytes => {
                let mut all = Vec::new();
                loop {
                    all.push(Tensor::full(&[1024, 1024], 1.0, Dtype::F32));
                }
            }
            Deed::OneHugeTensor => {
                Tensor::full(
                    &[4_000_000_000, 4_000_000_000, 4_000_000_000],
                    1.0,
                    Dtype::F64,
                );
            }
            Deed::HugeMatmul => {
                let line = Tensor::full(&[1, 1], 1.0, Dtype::F32);
                let wide = line.broadcast_to(&[4_000, 4_000]);
                wide.matmul(&wide);
            }
            Deed::Handles => {
                let mut all = Vec::new();
                loop {
                    all.push(small());
                }
            }
            Deed::Panic => panic!("nobody expects this"),
            Deed::Recurse => {
                std::hint::black_box(recurse(0));
            }
            Deed::NonsenseShape => {
                let a = Tensor::full(&[2, 3], 1.0, Dtype::F32);
                a.matmul(&Tensor::full(&[4, 5], 1.0, Dtype::F32));
            }
            Deed::LogFlood => loop {
                espalier_sdk::log::info("the same line again, and again, and again");
            },
            Deed::PrintFlood => loop {
                println!("the same line again, and again, and again");
            },
            Deed::EndlessLine => loop {
                print!("and again ");
            },
            Deed::Exit => std::process::exit(0),
            Deed::UnknownParameter => {
                ParameterSet::main().value("linear9.weight");
            }
            Deed::DeepGraph => {
                let mut x = Tensor::full(&[1], 1.0, Dtype::F64).requires_grad();
                for _ in 0..300_000 {
                    x = x + 1.0;
                }
                let leaf = Tensor::full(&[1], 1.0, Dtype::F64).requires_grad();
                grad(&(x * &leaf).sum(&[]), &[&leaf]);
            }
            Deed::View => {
                // One number seen so often that reading it would take minutes.
                let one = Tensor::full(&[1, 1], 1.0, Dtype::F32);
                one.broadcast_to(&[1_000_000, 100_000]).sum(&[]);
            }
            Deed::Sets => {
                for i in 0.. {
                    ParameterSet::own(&format!("set {i}"));
                }
            }
            Deed::Parameters => {
                let (set, value) = (ParameterSet::own("many"), small());
                for i in 0.. {
                    set.create(&format!("parameter {i}"), Kind::Buffer, &value, false);
                }
            }
            Deed::Models => {
                for i in 0.. {
                    Model::main().copy(&format!("model {i}"));
                }
            }
            Deed::Tags => {
                for i in 0.. {
                    ParameterSet::main().snapshot(&format!("tag {i}"));
                }
            }
            Deed::Layers => {
                let layer = LayerSpec {
                    name: String::new(),
                    kind: "relu".into(),
                    inputs: Vec::new(),
                    settings: Vec::new(),
                };
                Model::build("deep", &vec![layer; 100_000], &[]);
            }
            Deed::LongName => {
                ParameterSet::own(&"name ".repeat(100_000));
            }
            Deed::LongKey => {
                Stream::train(1, &vec![0; 100_000]);
            }
            Deed::Adopt => {
                let layer = |kind: &str, features: Option<f64>| LayerSpec {
                    name: String::new(),
                    kind: kind.into(),
                    inputs: Vec::new(),
                    settings: features
                        .map(|n| ("features".to_string(), n))
                        .into_iter()
                        .collect(),
                };
                let layers = [
                    layer("flatten", None),
                    layer("linear", Some(8.0)),
                    layer("relu", None),
                    layer("linear", Some(10.0)),
                ];
                Model::build("narrow", &layers, &[]).adopt();
            }
            Deed::Clock => {
                use std::hash::{BuildHasher, RandomState};
                use std::time::{Instant, SystemTime, UNIX_EPOCH};
                let began = Instant::now();
                let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
                let chance = RandomState::new().hash_one(1);
                println!("{:?} {since_1970:?} {chance}", began.elapsed());
            }
            Deed::Escape => {
                espalier_sdk::log::info("\u{1b}[2Jfinished\u{7}");
                println!("\u{1b}]0;finished\u{7}");
            }
            _ => {}
        }
    }
}

impl Hostile {
    /// Says what a rewind must take back: its own memory, its own set, its place in the data.
    fn bear_witness(&mut self, at: &StepInfo, batch: &Batch) {
        let set = ParameterSet::own("witness");
        set.create("steps", Kind::Buffer, &Tensor::zeros(&[1]), false);
        espalier_sdk::log::info(format!(
            "round {}: step {}, remembers {}, in its set {}, first sample {}",
            at.round,
            at.step,
            self.steps,
            set.value("steps").item(),
            batch.index().slice(0, 0, 1).item()
        ));
        self.steps += 1;
        set.assign("steps", &(set.value("steps") + 1.0));
    }
}

impl Trainer for Hostile {
    type Options = Settings;

    fn new(run: &RunInfo, options: Settings) -> Result<Self, Error> {
        let stream = Stream::train(run.batch_size, &[0]);
        if options.deed == Deed::SplitAtStart {
            espalier_sdk::data::add_split("mine", &[("inputs", Tensor::ones(&[4, 2]))]);
        }
        Ok(Hostile {
            deed: options.deed,
            model: Model::main(),
            stream,
            step: 0,
            steps: 0,
        })
    }

    fn step(&mut self, at: &StepInfo) -> StepReport {
        self.step = at.step;
        if at.step == 5 {
            self.act();
        }
        let batch = self.stream.next_endless();
        if self.deed == Deed::Witness {
            self.bear_witness(at, &batch);
        }
        let loss = self
            .model
            .forward(batch.fields(), Mode::Train)
            .cross_entropy(batch.targets())
            .mean(&[]);
        let set = ParameterSet::main();
        let names = set.trainable();
        let values = set.values(&names);
        let grads = grad(&loss, &values.iter().collect::<Vec<_>>());
        set.sgd(
            &names,
            &grads,
            SgdOptions {
                lr: 0.1,
                ..Default::default()
            },
        );
        StepReport::new(loss.item(), batch.count())
    }

    fn objective(&self, batch: &Batch) -> Tensor {
        let losses = self
            .model
            .forward(batch.fields(), Mode::Train)
            .cross_entropy(batch.targets());
        if self.deed == Deed::NonsenseObjective {
            losses.sum(&[])
        } else {
            losses
        }
    }

    fn predict(&self, batch: &Batch) -> Prediction {
        let logits = self.model.forward(batch.fields(), Mode::Eval);
        match self.deed {
            Deed::PeekAtTargets => {
                let named = batch.fields().iter().any(|(name, _)| name == "targets");
                assert!(!named, "there are targets");
                Prediction::logits(logits)
            }
            Deed::InfiniteLoss => Prediction::probabilities(logits.zeros_like()),
            Deed::NonsensePrediction if self.step > 5 => Prediction::logits(logits.slice(1, 0, 3)),
            _ => Prediction::logits(logits),
        }
    }

    fn save(&self) -> Vec<u8> {
        match self.deed {
            Deed::HugeSave if self.step > 5 => vec![0; 1 << 30],
            Deed::Witness => self.steps.to_le_bytes().to_vec(),
            _ => Vec::new(),
        }
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        if let Ok(bytes) = state.try_into() {
            self.steps = u64::from_le_bytes(bytes);
        }
        Ok(())
    }
}

espalier_sdk::export!(trainer: Hostile);
