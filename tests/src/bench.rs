//! A trainer and a pruner on numbers that a test chooses: the real components, called one call at a time.
//!
//! The model is built from a run file as in a run; the data are the test's own tensors, one batch. Parameters are
//! named as in the run (`linear1.weight`); one of a set that the trainer made is `SET/NAME`.

use std::collections::BTreeMap;
use std::rc::Rc;

use espalier_runtime::component;
use espalier_runtime::data::{Batch, Dataset, Split};
use espalier_runtime::host::bindings::trainer::espalier::plugin::run::{
    Directive, Event, EventKind, RunInfo, StepInfo,
};
use espalier_runtime::host::session::Session;
use espalier_runtime::host::state::{ModelId, RunState, SetId, Shared};
use espalier_runtime::model::{FieldShape, Model};
use espalier_runtime::options;
use espalier_runtime::parameters::ParameterSet;
use espalier_runtime::plan::Slot;
use espalier_runtime::registry::Registry;
use espalier_runtime::runfile::{self, Overrides};
use espalier_tensor::account::Account;
use espalier_tensor::{DType, Tensor, autograd};

use crate::lab::Lab;
use crate::workspace;

/// What is to be predicted.
pub enum Targets<'a> {
    /// A class each sample, of so many.
    Classes(&'a [i64], u32),
    /// A number each sample.
    Values(&'a [f64]),
}

/// A trainer, a pruner if the run file names one, and what they share.
pub struct Bench {
    shared: Rc<Shared>,
    trainer: String,
    pruner: Option<Session>,
}

impl Bench {
    /// Starts the plugins of a run file without `[data]` and `[schedule]` on samples `inputs`; a round has `steps`
    /// steps, each of all samples.
    ///
    /// # Panics
    /// If anything is refused.
    pub fn new(name: &str, inputs: &[&[f64]], targets: Targets, steps: u64, file: &str) -> Bench {
        let count = inputs.len();
        let loss = match targets {
            Targets::Classes(..) => "",
            Targets::Values(_) => "loss = \"mse\"",
        };
        let width = inputs[0].len();
        let floats = |values: &[f64], shape: &[usize]| {
            Tensor::from_f64s(values, shape, DType::F32).expect("a tensor")
        };
        let (classes, targets) = match targets {
            Targets::Classes(of, classes) => (
                classes,
                Tensor::from_vec(of.to_vec(), &[count]).expect("a tensor"),
            ),
            Targets::Values(values) => (0, floats(values, &[count, 1])),
        };
        let train = Split {
            name: "train".into(),
            count,
            fields: vec![
                ("inputs".into(), floats(&inputs.concat(), &[count, width])),
                ("targets".into(), targets),
            ],
            classes,
            task: 0,
            added: false,
        };
        Bench::over(name, vec![train], steps, &format!("{loss}\n{file}"))
    }

    /// The same on a graph: the features of each node, the labels of the first nodes (the others are the split `test`),
    /// edges, and how many classes.
    ///
    /// # Panics
    /// If anything is refused.
    pub fn graph(
        name: &str,
        nodes: &[&[f64]],
        (labels, classes): (&[i64], u32),
        edges: &[[i64; 2]],
        steps: u64,
        file: &str,
    ) -> Bench {
        let width = nodes[0].len();
        let some = |from: usize, to: usize| {
            let rows = nodes[from..to].concat();
            let inputs = Tensor::from_f64s(&rows, &[to - from, width], DType::F32);
            ("inputs".to_string(), inputs.expect("a tensor"))
        };
        let whole =
            |values: Vec<i64>, shape: &[usize]| Tensor::from_vec(values, shape).expect("a tensor");
        let split = |name: &str, fields: Vec<(String, Tensor)>, classes| Split {
            name: name.into(),
            count: fields[0].1.shape()[0],
            fields,
            classes,
            task: 0,
            added: false,
        };
        let part = |name: &str, from: usize, to: usize, labels: Vec<i64>| {
            let numbers = whole((from as i64..to as i64).collect(), &[to - from]);
            let targets = whole(labels, &[to - from]);
            let fields = vec![
                some(from, to),
                ("nodes".into(), numbers),
                ("targets".into(), targets),
            ];
            split(name, fields, classes)
        };
        let (known, all) = (labels.len(), nodes.len());
        let ends = whole(edges.concat(), &[edges.len(), 2]);
        let splits = vec![
            part("train", 0, known, labels.to_vec()),
            part("test", known, all, vec![0; all - known]),
            split("nodes", vec![some(0, all)], 0),
            split("edges", vec![("nodes".into(), ends)], 0),
        ];
        Bench::over(name, splits, steps, file)
    }

    /// On splits whose first is the one trained on; a step has all of its samples.
    fn over(name: &str, splits: Vec<Split>, steps: u64, file: &str) -> Bench {
        let count = splits[0].count;
        let lab = Lab::new(&format!("bench-{name}"));
        let path = lab.folder().join("run.toml");
        // A run file needs a source; this one is never read.
        let text = format!(
            "[data]\nsource = \"digits\"\n[schedule]\nsteps = {steps}\nbatch-size = {count}\n{file}"
        );
        std::fs::write(&path, text).expect("the run file");
        let plan =
            runfile::load(&path, &Overrides::default()).unwrap_or_else(|error| panic!("{error}"));
        let fields: Vec<FieldShape> = splits[0]
            .fields
            .iter()
            .filter(|(name, _)| name != "targets")
            .map(|(name, t)| FieldShape {
                name: name.clone(),
                shape: t.shape()[1..].to_vec(),
                dtype: t.dtype(),
            })
            .collect();
        let mut main = ParameterSet::new();
        let model = Model::build(&plan.model, &fields, &[plan.seed], &mut main)
            .unwrap_or_else(|error| panic!("{error}"));
        let shared = Rc::new(Shared::new(RunState {
            data: Dataset {
                splits,
                train_on: None,
            },
            sets: BTreeMap::from([(SetId::Main, main)]),
            models: BTreeMap::from([(ModelId::Main, model)]),
            inputs: fields,
            layers: plan.model.clone(),
            ..RunState::empty(plan.seed)
        }));

        let registry = Registry::load(&workspace().join("registry.toml"))
            .unwrap_or_else(|error| panic!("{error}"));
        let resolved = registry
            .resolve_plan(&plan.plugins, &mut |_| {})
            .unwrap_or_else(|error| panic!("{error}"));
        let mut bench = Bench {
            shared,
            trainer: String::new(),
            pruner: None,
        };
        for (plugin, (_, resolved)) in plan.plugins.iter().zip(resolved) {
            let loaded = component::load(&plugin.name, &resolved.bytes)
                .unwrap_or_else(|error| panic!("{error}"));
            let about = component::describe(&plugin.name, &loaded)
                .unwrap_or_else(|error| panic!("{error}"));
            let settings: Vec<_> = options::check(
                &plugin.name,
                &about.options,
                &plugin.options,
                &plugin.option_places,
            )
            .unwrap_or_else(|error| panic!("{error}"))
            .iter()
            .map(|(name, value)| (name.clone(), component::wit_value(value)))
            .collect();
            let account = Account::new(Some(plugin.limits.tensors));
            let limits = plugin.limits.clone();
            let mut session =
                Session::new(&loaded, &plugin.name, limits, account, bench.shared.clone())
                    .unwrap_or_else(|death| panic!("{death:?}"));
            let info = RunInfo {
                seed: plan.seed,
                stage: 0,
                steps,
                steps_per_epoch: 1,
                batch_size: plan.schedule.batch_size,
                rank: 0,
                world: 1,
            };
            session
                .start(info, &settings)
                .unwrap_or_else(|death| panic!("{death:?}"))
                .unwrap_or_else(|refusal| panic!("{}", refusal.message));
            match plugin.slot {
                Slot::Trainer => {
                    bench.trainer = plugin.name.clone();
                    *bench.shared.trainer.borrow_mut() = Some(session);
                }
                Slot::Pruner => bench.pruner = Some(session),
                _ => panic!("a bench has no {}", plugin.slot),
            }
        }
        bench
    }

    /// Calls the trainer.
    fn trainer<T>(&self, call: impl FnOnce(&mut Session) -> T) -> T {
        // Out of its place while it is called, as in a run.
        let mut session = self.shared.trainer.borrow_mut().take().expect("a trainer");
        let result = call(&mut session);
        *self.shared.trainer.borrow_mut() = Some(session);
        result
    }

    /// Does something with the set that holds a parameter, and the parameter's name in it.
    fn with<T>(&self, name: &str, f: impl FnOnce(&mut ParameterSet, &str) -> T) -> T {
        let (id, inner) = match name.split_once('/') {
            None => (SetId::Main, name),
            Some((set, inner)) => (
                SetId::Own {
                    plugin: self.trainer.clone(),
                    name: set.into(),
                },
                inner,
            ),
        };
        let run = &mut *self.shared.run.borrow_mut();
        f(run.sets.get_mut(&id).expect("the parameter set"), inner)
    }

    /// Replaces a parameter's value.
    ///
    /// # Panics
    /// If there is no such parameter or its size is another.
    pub fn set(&self, name: &str, values: &[f64]) {
        self.with(name, |set, name| {
            let shape = set.stored(name).expect("a parameter").shape().to_vec();
            let value = Tensor::from_f64s(values, &shape, DType::F32).expect("as many numbers");
            set.assign(name, &value).expect("assign");
        });
    }

    /// A parameter's value.
    ///
    /// # Panics
    /// If there is no such parameter.
    pub fn value(&self, name: &str) -> Vec<f64> {
        self.with(name, |set, name| {
            let value = set.stored(name).expect("a parameter");
            value.to_list().expect("its numbers")
        })
    }

    /// What forward passes use for a parameter, and what products pass gradients back through.
    ///
    /// # Panics
    /// If there is no such parameter.
    pub fn used(&self, name: &str) -> (Vec<f64>, Vec<f64>) {
        self.with(name, |set, name| {
            let forward = set.value(name).expect("a parameter");
            let backward = forward.backward_value().unwrap_or(&forward);
            let numbers = |t: &Tensor| t.to_list().expect("its numbers");
            (numbers(&forward), numbers(backward))
        })
    }

    /// Replaces a parameter's mask.
    ///
    /// # Panics
    /// If there is no such parameter or its size is another.
    pub fn set_mask(&self, name: &str, mask: &[f64]) {
        self.with(name, |set, name| {
            let shape = set.stored(name).expect("a parameter").shape().to_vec();
            let mask = Tensor::from_f64s(mask, &shape, DType::Bool).expect("as many numbers");
            set.set_mask(name, Some(&mask), false).expect("set-mask");
        });
    }

    /// A parameter's mask, 1 where it lives.
    ///
    /// # Panics
    /// If there is no such parameter or it has no mask.
    pub fn mask(&self, name: &str) -> Vec<f64> {
        self.with(name, |set, name| {
            let mask = set.mask(name).expect("a parameter").expect("a mask");
            mask.to_list().expect("its numbers")
        })
    }

    /// The gradient that the trainer gave the optimiser in the only step of Adam so far; none if it gave none. The
    /// first moment starts at 0, so it is then a tenth of the gradient.
    ///
    /// # Panics
    /// If there is no such parameter.
    pub fn gradient(&self, name: &str) -> Option<Vec<f64>> {
        self.with(name, |set, name| {
            let (tensors, _) = set.export("set");
            let (_, moment) = tensors
                .iter()
                .find(|(key, _)| *key == format!("set/adam-m/{name}"))?;
            let moment = moment.to_list().expect("its numbers");
            Some(moment.iter().map(|m| m / 0.1).collect())
        })
    }

    /// One step of the trainer; gives the loss that it reports.
    ///
    /// # Panics
    /// If the trainer dies.
    pub fn step(&self, step: u64) -> f64 {
        let at = self.at(step);
        self.trainer(|session| session.step(at))
            .unwrap_or_else(|death| panic!("{death:?}"))
            .loss
    }

    /// What the trainer holds now: handles, bytes of tensors, nodes of graphs.
    pub fn held(&self) -> (usize, u64, u64) {
        self.trainer(|session| {
            let guest = session.guest();
            let account = &guest.account;
            (guest.handles(), account.used_bytes(), account.live_nodes())
        })
    }

    /// The trainer's objective for every sample, with its graph.
    ///
    /// # Panics
    /// If the trainer dies.
    pub fn objective(&self) -> Tensor {
        let batch = self.batch("train");
        self.trainer(|session| session.objective(batch))
            .unwrap_or_else(|death| panic!("{death:?}"))
    }

    /// Gradient of the mean of the trainer's objective with respect to a parameter.
    ///
    /// # Panics
    /// If the trainer dies.
    pub fn gradient_of_objective(&self, name: &str) -> Vec<f64> {
        let value = self.with(name, |set, name| set.value(name).expect("a parameter"));
        let losses = self.objective();
        let n = losses.numel();
        let share = Tensor::full(&[n], 1.0 / n as f64, DType::F32).expect("a tensor");
        let grads = autograd::grad(&[&losses], &[Some(&share)], &[&value], false, false)
            .expect("gradients");
        grads[0].to_list().expect("its numbers")
    }

    /// What the trainer predicts for all samples, row by row.
    ///
    /// # Panics
    /// If the trainer dies.
    pub fn predict(&self) -> Vec<f64> {
        self.predict_split("train")
    }

    /// The same for the samples of another split.
    ///
    /// # Panics
    /// If there is no such split or the trainer dies.
    pub fn predict_split(&self, split: &str) -> Vec<f64> {
        let mut batch = self.batch(split);
        batch.fields.retain(|(name, _)| name != "targets");
        let (_, output) = self
            .trainer(|session| session.predict(batch))
            .unwrap_or_else(|death| panic!("{death:?}"));
        output.to_list().expect("its numbers")
    }

    /// Tells the pruner of the end of a step (after so many of the round) or, after the last, of the round.
    ///
    /// # Panics
    /// If there is no pruner or it dies.
    pub fn event(&mut self, kind: EventKind, step: u64) -> Directive {
        let event = Event {
            kind,
            at: self.at(step),
            metrics: Vec::new(),
        };
        let pruner = self.pruner.as_mut().expect("a pruner");
        pruner
            .on_event(&event)
            .unwrap_or_else(|death| panic!("{death:?}"))
    }

    fn at(&self, step: u64) -> StepInfo {
        StepInfo {
            step,
            epoch: step as f64,
            round: 0,
        }
    }

    fn batch(&self, split: &str) -> Batch {
        let run = self.shared.run.borrow();
        let split = run.data.split(split).expect("the samples");
        let index: Vec<i64> = (0..split.count as i64).collect();
        Batch {
            fields: split.fields.clone(),
            index: Tensor::from_vec(index, &[split.count]).expect("a tensor"),
            count: split.count as u32,
        }
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // The trainer's store holds what is shared, which holds the trainer: break the circle.
        self.shared.trainer.borrow_mut().take();
    }
}
