//! Interfaces `model` and `model-adopt`.

use std::collections::BTreeMap;

use wasmtime::Result;
use wasmtime::component::Resource;

use super::bindings::rep;
use super::bindings::trainer::espalier::plugin::data::{Batch, NamedRef};
use super::bindings::trainer::espalier::plugin::model::{
    ForwardResult, Host, HostModel, LayerInfo, LayerInput, LayerSpec, Mode, Prediction,
};
use super::bindings::trainer::espalier::plugin::model_adopt;
use super::guest::{Guest, misuse, named, told};
use super::session::architecture::Asked;
use super::state::{ModelId, RunState, SetId};
use super::tensors::{sizes, wit_shape};
use crate::model::{self as store, FieldShape, Input, Model};
use crate::parameters::ParameterSet;
use crate::plan::LayerPlan;

type Handle = Resource<rep::Tensor>;
type ModelHandle = Resource<rep::Model>;
type Tensors = Vec<(String, espalier_tensor::Tensor)>;

impl Guest {
    fn lent(&self, all: Vec<NamedRef>) -> Result<Tensors> {
        all.into_iter()
            .map(|(name, t)| Ok((name, self.tensor(&t)?.clone())))
            .collect()
    }

    fn own_model(&self, name: &str) -> ModelId {
        ModelId::Own {
            plugin: self.name.clone(),
            name: name.to_string(),
        }
    }

    /// Calls into the run's trainer on behalf of another plugin.
    fn ask_trainer<T>(
        &mut self,
        what: &'static str,
        b: Batch,
        ask: impl FnOnce(
            &mut super::session::Session,
            crate::data::Batch,
        ) -> std::result::Result<T, super::session::Death>,
    ) -> Result<T> {
        let batch = self.take_batch(b)?;
        let shared = self.shared.clone();
        let Ok(mut slot) = shared.trainer.try_borrow_mut() else {
            return misuse(format!(
                "model.{what} asks the trainer, which is at work: a trainer calls its own code instead"
            ));
        };
        let Some(trainer) = slot.as_mut() else {
            return misuse(format!(
                "model.{what}: the run has no trainer yet; ask in the first event, not in start"
            ));
        };
        let budget = self
            .deadline
            .saturating_duration_since(std::time::Instant::now());
        trainer.shorten(budget);
        match ask(trainer, batch) {
            Ok(value) => Ok(value),
            Err(death) => Err(wasmtime::Error::new(death)),
        }
    }
}

impl Guest {
    /// Calls into the run's architecture, which computes the model for every other plugin.
    fn ask_architecture<T>(
        &mut self,
        what: &'static str,
        ask: impl FnOnce(&mut super::session::Session) -> std::result::Result<T, super::session::Death>,
    ) -> Result<T> {
        let shared = self.shared.clone();
        let mut slot = match shared.architecture.try_borrow_mut() {
            Ok(slot) => slot,
            Err(_) => return misuse(format!("model.{what}: the architecture is at work already")),
        };
        let Some(architecture) = slot.as_mut() else {
            return misuse(format!(
                "model.{what}: the run has no architecture any more"
            ));
        };
        let budget = self
            .deadline
            .saturating_duration_since(std::time::Instant::now());
        architecture.shorten(budget);
        ask(architecture).map_err(wasmtime::Error::new)
    }
}

/// Most layers of one model that a plugin builds: names are compared with each other.
const MOST_LAYERS: usize = 1024;

impl RunState {
    /// Refuses a plugin's next model where it has too many. One that a resume brought back has its set already.
    fn room_for_model(
        &self,
        what: &str,
        plugin: &str,
        id: &ModelId,
        parameters: usize,
    ) -> Result<()> {
        if self.sets.contains_key(&id.set()) {
            return Ok(());
        }
        self.room_for_set(what, plugin)?;
        self.room_for_entries(what, plugin, parameters)
    }
}

/// A layer as the run file would say it.
fn plan(spec: LayerSpec, before: &[LayerPlan]) -> Result<LayerPlan> {
    let mut settings: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (name, value) in spec.settings {
        settings.entry(name).or_default().push(value);
    }
    let inputs = spec.inputs.into_iter().map(|input| match input {
        LayerInput::Field(name) => Ok(name),
        LayerInput::Layer(i) => match before.get(i as usize) {
            Some(layer) => Ok(layer.name.clone()),
            None => misuse(format!(
                "build: a layer reads layer {i}, which does not come before it"
            )),
        },
    });
    let inputs = inputs.collect::<Result<Vec<_>>>()?;
    let name = match spec.name.is_empty() {
        true => format!(
            "{}{}",
            spec.kind,
            before.iter().filter(|l| l.kind == spec.kind).count() + 1
        ),
        false => spec.name,
    };
    Ok(LayerPlan {
        name,
        kind: spec.kind,
        inputs,
        frozen: false,
        group: String::new(),
        settings,
    })
}

/// A model and its parameters, both by name; they live side by side in the run.
pub(super) fn model_and_set<'a>(
    run: &'a mut RunState,
    id: &ModelId,
) -> Result<(&'a Model, &'a mut ParameterSet)> {
    match (run.models.get(id), run.sets.get_mut(&id.set())) {
        (Some(model), Some(set)) => Ok((model, set)),
        _ => misuse("a model that is gone"),
    }
}

impl HostModel for Guest {
    fn drop(&mut self, m: ModelHandle) -> Result<()> {
        self.drop_model(m)
    }
}

impl Host for Guest {
    fn main(&mut self) -> Result<ModelHandle> {
        self.put_model(ModelId::Main)
    }

    fn layers(&mut self, m: ModelHandle) -> Result<Vec<LayerInfo>> {
        let id = self.model(&m)?;
        let run = &mut *self.shared.run.borrow_mut();
        let (model, _) = model_and_set(run, &id)?;
        let info = |l: store::LayerInfo| LayerInfo {
            index: l.index,
            name: l.name,
            kind: l.kind,
            inputs: l
                .inputs
                .into_iter()
                .map(|i| match i {
                    Input::Layer(n) => LayerInput::Layer(n),
                    Input::Field(name) => LayerInput::Field(name),
                })
                .collect(),
            parameters: l.parameters,
            in_shape: wit_shape(&l.in_shape),
            out_shape: wit_shape(&l.out_shape),
            macs: l.macs,
            settings: l
                .settings
                .into_iter()
                .flat_map(|(k, vs)| vs.into_iter().map(move |v| (k.clone(), v)))
                .collect(),
        };
        Ok(model.infos().into_iter().map(info).collect())
    }

    fn parameters(&mut self, m: ModelHandle) -> Result<Resource<rep::ParameterSet>> {
        let id = self.model(&m)?;
        self.put_set(id.set())
    }

    fn forward(
        &mut self,
        m: ModelHandle,
        range: (u32, u32),
        inputs: Vec<NamedRef>,
        mode: Mode,
        overrides: Vec<NamedRef>,
        want: Vec<String>,
    ) -> Result<ForwardResult> {
        let id = self.model(&m)?;
        self.declare(&id.set());
        let inputs = self.lent(inputs)?;
        let overrides = self.lent(overrides)?.into_iter().collect();
        let mode = match mode {
            Mode::Train => store::Mode::Train,
            Mode::Eval => store::Mode::Eval,
            Mode::TrainFrozenStats => store::Mode::TrainFrozenStats,
        };
        if mode == store::Mode::Train {
            let moves = |set: &ParameterSet| {
                let infos = set.infos();
                infos
                    .iter()
                    .any(|i| i.kind == crate::parameters::Kind::Buffer)
            };
            let moving = self
                .shared
                .run
                .borrow()
                .sets
                .get(&id.set())
                .is_some_and(moves);
            if moving {
                self.may_change(
                    "forward in the mode `train` (`train-frozen-stats` leaves running statistics alone)",
                    &id.set(),
                )?;
            }
        }
        let declared = {
            let run = &mut *self.shared.run.borrow_mut();
            run.passes += 1;
            let key = [run.seed, run.steps_done, run.passes];
            let (model, set) = model_and_set(run, &id)?;
            let (from, to) = (range.0 as usize, range.1 as usize);
            let samples = inputs
                .first()
                .and_then(|(_, t)| t.shape().first().copied())
                .unwrap_or(1) as f64;
            self.affordable("forward", samples * model.macs(from, to) as f64)?;
            match model.is_declared() {
                true => {
                    told(model.check_overrides(set, &overrides))?;
                    Err((told(model.prepare(from..to, &inputs, &want))?, key))
                }
                false => Ok(told(
                    model.forward(set, from, to, &inputs, mode, &overrides, &want, &key),
                )?),
            }
        };
        let result = match declared {
            Ok(result) => result,
            Err((inputs, key)) => {
                let asked = Asked {
                    set: &id.set(),
                    overrides,
                    range,
                    mode,
                    key: key.to_vec(),
                    want,
                };
                let result =
                    self.ask_architecture("forward", |a| a.forward(&asked, inputs.clone()))?;
                let run = self.shared.run.borrow();
                if let Some(model) = run.models.get(&id) {
                    let range = range.0 as usize..range.1 as usize;
                    told(model.check_forward(range, &inputs, &asked.want, &result))?;
                }
                result
            }
        };
        Ok(ForwardResult {
            output: self.put(Ok(result.output))?,
            extra: self.put_named(result.extra)?,
        })
    }

    fn build(
        &mut self,
        name: String,
        input: Option<Vec<u32>>,
        layers: Vec<LayerSpec>,
        key: Vec<u64>,
    ) -> Result<ModelHandle> {
        let id = self.own_model(&name);
        if !self.shared.run.borrow().models.contains_key(&id) {
            named("build", &name)?;
            if layers.len() > MOST_LAYERS {
                return misuse(format!(
                    "build: {} layers; at most {MOST_LAYERS}",
                    layers.len()
                ));
            }
            let mut plans: Vec<LayerPlan> = Vec::new();
            for spec in layers {
                named("build", &spec.name)?;
                let next = plan(spec, &plans)?;
                plans.push(next);
            }
            let run = &mut *self.shared.run.borrow_mut();
            let mut words = vec![run.seed, super::tensors::name_word(&self.name)];
            words.extend(key);
            let mut inputs = run.inputs.clone();
            if let (Some(shape), Some(first)) = (input, inputs.first_mut()) {
                *first = FieldShape {
                    shape: sizes(&shape),
                    ..first.clone()
                };
            }
            let mut set = ParameterSet::new();
            let model = told(Model::build(&plans, &inputs, &words, &mut set))?;
            run.room_for_model("build", &self.name, &id, set.len())?;
            // After a resume the parameters are there already.
            run.sets.entry(id.set()).or_insert(set);
            run.models.insert(id.clone(), model);
            run.own_layers.insert(id.clone(), plans);
        }
        self.put_model(id)
    }

    fn clone(&mut self, m: ModelHandle, name: String) -> Result<ModelHandle> {
        let from = self.model(&m)?;
        let id = self.own_model(&name);
        {
            let run = &mut *self.shared.run.borrow_mut();
            if !run.models.contains_key(&id) {
                let (model, set) = model_and_set(run, &from)?;
                let (model, copy) = (model.clone(), set.duplicate());
                named("clone", &name)?;
                run.room_for_model("clone", &self.name, &id, copy.len())?;
                let layers = if *from == ModelId::Main {
                    Some(run.layers.clone())
                } else {
                    run.own_layers.get(&from).cloned()
                };
                run.sets.entry(id.set()).or_insert(copy);
                run.models.insert(id.clone(), model);
                run.own_layers
                    .insert(id.clone(), layers.unwrap_or_default());
            }
        }
        self.put_model(id)
    }

    fn objective(&mut self, b: Batch) -> Result<Handle> {
        let losses = self.ask_trainer("objective", b, |trainer, batch| trainer.objective(batch))?;
        self.put(Ok(losses))
    }

    fn predict(&mut self, b: Batch) -> Result<Prediction> {
        let (kind, output) =
            self.ask_trainer("predict", b, |trainer, batch| trainer.predict(batch))?;
        Ok(Prediction {
            kind,
            output: self.put(Ok(output))?,
        })
    }

    fn loss(&mut self, b: Batch) -> Result<Option<Handle>> {
        let batch = self.take_batch(b)?;
        let (layers, key) = {
            let run = &mut *self.shared.run.borrow_mut();
            let Some(model) = run
                .models
                .get(&ModelId::Main)
                .filter(|model| model.is_declared())
            else {
                // Built-in layers have no loss: the run's applies.
                return Ok(None);
            };
            let layers = model.len() as u32;
            run.passes += 1;
            (layers, vec![run.seed, run.steps_done, run.passes])
        };
        self.declare(&SetId::Main);
        let asked = Asked {
            set: &SetId::Main,
            overrides: BTreeMap::new(),
            range: (0, layers),
            mode: store::Mode::Train,
            key,
            want: Vec::new(),
        };
        match self.ask_architecture("loss", |a| a.architecture_loss(&asked, batch))? {
            Some(losses) => self.put(Ok(losses)).map(Some),
            None => Ok(None),
        }
    }
}

impl model_adopt::Host for Guest {
    fn adopt(&mut self, m: ModelHandle) -> Result<()> {
        self.uncapturable("it replaces the run's model");
        self.may_change("adopt", &super::state::SetId::Main)?;
        let id = self.model(&m)?;
        self.counters.acted = true;
        let run = &mut *self.shared.run.borrow_mut();
        let (new, old) = (run.models.get(&id), run.models.get(&ModelId::Main));
        if let (Some(new), Some(old)) = (new, old) {
            let shape = |m: &Model| m.infos().last().map(|l| l.out_shape.clone());
            if shape(new) != shape(old) {
                return misuse(format!(
                    "adopt: the model gives {:?} a sample, the run's gives {:?}",
                    shape(new).unwrap_or_default(),
                    shape(old).unwrap_or_default()
                ));
            }
        }
        run.adopt = Some((*id).clone());
        Ok(())
    }
}
