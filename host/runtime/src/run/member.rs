//! What a population asks of one of its runs: to train for a while, to have its knobs set, to become a copy of
//! another run, to be made safe. `population` does the asking.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use espalier_tensor::account::Account;
use espalier_tensor::{DType, Tensor};

use super::{Part, Progress, Runner, Saved, edge, refused, run_info};
use crate::checkpoint::Checkpoint;
use crate::component;
use crate::diagnostic::Diagnostic;
use crate::events::PluginCounters;
use crate::host::bindings::trainer::espalier::plugin::run as wit;
use crate::host::bindings::tuner::exports::espalier::plugin::tuning::KnobInfo;
use crate::host::session::{Death, Session};
use crate::host::state::{ModelId, RunState, SetId, Shared};
use crate::model::Model;
use crate::options::OptionInfo;
use crate::parameters::ParameterSet;
use crate::plan::{OptionValue, Plan, Slot};

/// Everything that one run may take over from another.
pub(crate) struct Portrait {
    tensors: BTreeMap<String, Tensor>,
    saved: Saved,
}

impl Runner<'_> {
    /// Trains until so many steps are done or the run is over; `None` if it was cancelled on the way, else whether
    /// it is over.
    pub(crate) fn train_until(&mut self, steps_done: u64) -> Result<Option<bool>, Diagnostic> {
        while !self.progress.stage_over {
            let round_ends =
                self.progress.round_over || self.progress.round_step >= self.steps_per_round;
            if !round_ends && self.progress.steps_done >= steps_done {
                return Ok(Some(false));
            }
            if self.cancel.load(Ordering::Relaxed) {
                return Ok(None);
            }
            self.advance()?;
        }
        Ok(Some(true))
    }

    /// Measures a split as at the end of an epoch.
    pub(crate) fn measure_now(&mut self, split: &str) -> Result<(), Diagnostic> {
        let epoch = self.progress.round_step.div_ceil(self.steps_per_epoch);
        self.evaluate(split, epoch)
    }

    /// Steps of an epoch and of a round.
    pub(crate) fn lengths(&self) -> (u64, u64) {
        (self.steps_per_epoch, self.steps_per_round)
    }

    /// Ends the run here.
    pub(crate) fn stop(&mut self) {
        self.progress.stage_over = true;
    }

    /// What its plugins have cost.
    pub(crate) fn costs(&self) -> Vec<PluginCounters> {
        self.counters()
    }

    /// Sets knobs, and remembers them for a plugin that has to be started again.
    pub(crate) fn set_knobs(&mut self, knobs: &[(String, OptionValue)]) -> Result<(), Diagnostic> {
        for (name, value) in knobs {
            self.knobs.insert(name.clone(), value.clone());
            self.set_knob(name, value)?;
        }
        Ok(())
    }

    fn set_knob(&mut self, name: &str, value: &OptionValue) -> Result<(), Diagnostic> {
        let unknown = || Diagnostic::new(format!("there is no knob `{name}`"));
        if let Some(option) = name.strip_prefix("trainer.") {
            let value = component::wit_value(value);
            let plugin = self.trainer_name();
            let set = self.trainer(|session| session.set_knob(option, &value))?;
            return set.map_err(|refusal| {
                let what = format!("set its option `{option}`, which it declares live");
                refused(&plugin, refusal, &what).at(self.whereabouts())
            });
        }
        let layer = name
            .strip_prefix("model.")
            .and_then(|rest| rest.rsplit_once('.'));
        let (Some((layer, setting)), OptionValue::Float(value)) = (layer, value) else {
            return Err(unknown());
        };
        {
            let run = &mut *self.shared.run.borrow_mut();
            let model = run.models.get_mut(&ModelId::Main).ok_or_else(unknown)?;
            // A model that was adopted since may be without the layer.
            if model.infos().iter().all(|info| info.name != layer) {
                return Ok(());
            }
            let changed = model
                .set_live(layer, setting, *value)
                .map_err(|error| edge("a knob of the model could not be set", &error))?;
            if !changed {
                return Ok(());
            }
        }
        // A recorded step holds the settings that the layers had.
        let trainer = &mut *self.shared.trainer.borrow_mut();
        let pruners = self.pruners.iter_mut().filter_map(|p| p.session.as_mut());
        for session in trainer.iter_mut().chain(pruners) {
            session.guest_mut().forget_programs();
        }
        Ok(())
    }

    /// The trainer's knobs for a new instance of it, which is not in its place yet.
    pub(super) fn hand_knobs_to(&self, trainer: &mut Session) -> Result<(), Diagnostic> {
        for (name, value) in &self.knobs {
            let Some(option) = name.strip_prefix("trainer.") else {
                continue;
            };
            let set = trainer.set_knob(option, &component::wit_value(value));
            let set = set.map_err(|death| death.diagnostic(&self.whereabouts()))?;
            let plugin = &self.trainer_name();
            set.map_err(|refusal| refused(plugin, refusal, &format!("set its option `{option}`")))?;
        }
        Ok(())
    }

    /// The knobs again, after something has put other values in their place.
    pub(super) fn set_knobs_again(&mut self) -> Result<(), Diagnostic> {
        for (name, value) in self.knobs.clone() {
            self.set_knob(&name, &value)?;
        }
        Ok(())
    }

    /// The run as another one may take it over.
    pub(crate) fn portrait(&mut self) -> Result<Portrait, Diagnostic> {
        let (tensors, saved) = self.collect()?;
        Ok(Portrait {
            tensors: tensors.into_iter().collect(),
            saved,
        })
    }

    /// Takes over another run of the same plan: parameters, masks, buffers, optimiser state, tags, and the bytes of
    /// the trainer and the pruners. Knobs, random numbers, positions in the data, the environment and the
    /// normaliser stay its own.
    pub(crate) fn become_copy(&mut self, from: &Portrait) -> Result<(), Diagnostic> {
        let own = self.progress.clone();
        let tensors = from
            .tensors
            .iter()
            .map(|(name, t)| Ok((name.clone(), copy(t)?)))
            .collect::<espalier_tensor::Result<BTreeMap<_, _>>>()
            .map_err(|error| edge("a member could not be copied", &error))?;
        let there = &from.saved;
        // One that ended early has come less far in its round.
        let place = match there.progress.stage_over {
            true => &own,
            false => &there.progress,
        };
        let saved = {
            let run = self.shared.run.borrow();
            Saved {
                progress: Progress {
                    steps_done: own.steps_done,
                    seconds: own.seconds,
                    metrics_bytes: own.metrics_bytes,
                    round_step: place.round_step,
                    round: place.round,
                    round_over: place.round_over,
                    stage_over: place.stage_over,
                    ..there.progress.clone()
                },
                streams: run.streams.clone(),
                instances: run.rollouts.instances,
                tracked: run.rollouts.tracked.clone(),
                ..there.clone()
            }
        };
        {
            let run = &mut *self.shared.run.borrow_mut();
            if run.layers != there.layers {
                // One of the two has adopted a model that the other has not.
                let model = Model::build(
                    &there.layers,
                    &run.inputs,
                    &[self.plan.seed],
                    &mut ParameterSet::new(),
                )
                .map_err(|error| edge("a member's model could not be copied", &error))?;
                run.models.insert(ModelId::Main, model);
                run.layers = there.layers.clone();
            }
            let known = |id: &SetId| there.sets.iter().any(|(other, _)| other == id);
            run.sets.retain(|id, _| known(id));
        }
        let found = Checkpoint {
            path: PathBuf::new(),
            step: own.steps_done,
            tensors,
            meta: String::new(),
            skipped: Vec::new(),
        };
        self.restore_run(&found, &saved)?;
        self.progress = saved.progress;
        let bytes = |name: &str| there.plugins.get(name);
        let trainer = self.trainer_name();
        if let Some(bytes) = bytes(&trainer) {
            let restored = self.trainer(|session| session.restore(bytes))?;
            restored.map_err(|refusal| refused(&trainer, refusal, "go on as a copy"))?;
            self.last_saved.insert(trainer, bytes.clone());
        }
        for i in 0..self.pruners.len() {
            let part = self.pruners[i].part;
            let name = self.parts[part].plan.name.clone();
            if there.skipped.contains(&name) {
                self.pruners[i].session = None;
                continue;
            }
            if self.pruners[i].session.is_none() {
                // Here a failure has left it out, there it lives: its start changes nothing that counts.
                self.pruners[i].session = Some(self.restart(part)?);
            }
            let (Some(session), Some(bytes)) = (self.pruners[i].session.as_mut(), bytes(&name))
            else {
                continue;
            };
            let restored = session.restore(bytes);
            let restored = restored.map_err(|death| death.diagnostic(&self.whereabouts()))?;
            restored.map_err(|refusal| refused(&name, refusal, "go on as a copy"))?;
            self.last_saved.insert(name, bytes.clone());
        }
        self.density = self.count_density()?;
        // What the trainer has just read may hold the other one's knobs, and a new model has the run file's.
        self.set_knobs_again()?;
        self.drain()
    }
}

/// The same numbers in storage of its own, which no other member's account is charged for.
fn copy(t: &Tensor) -> espalier_tensor::Result<Tensor> {
    let shape = t.shape();
    match t.dtype() {
        DType::F32 => Tensor::from_vec(t.to_vec::<f32>()?, shape),
        DType::F64 => Tensor::from_vec(t.to_vec::<f64>()?, shape),
        DType::I64 => Tensor::from_vec(t.to_vec::<i64>()?, shape),
        DType::Bool => Tensor::from_vec(t.to_vec::<bool>()?, shape),
    }
}

impl Part {
    /// The slot that the plugin fills.
    pub(crate) fn slot(&self) -> Slot {
        self.plan.slot
    }

    /// The options that may be changed during a run, and every option's value.
    pub(crate) fn live(&self) -> (&[OptionInfo], &[(String, OptionValue)]) {
        (&self.live, &self.settings)
    }

    /// A tuner, started, in a store of its own that holds no run.
    pub(crate) fn start_tuner(
        &self,
        plan: &Plan,
        (steps_per_epoch, steps): (u64, u64),
        space: &[KnobInfo],
        members: u32,
    ) -> Result<Session, Diagnostic> {
        let name = &self.plan.name;
        let limits = self.plan.limits.clone();
        let account = Account::new(Some(limits.tensors));
        let shared = Rc::new(Shared::new(RunState::empty(plan.seed)));
        let info = wit::RunInfo {
            steps,
            steps_per_epoch,
            ..run_info(plan)
        };
        let at = |death: Death| death.diagnostic("the start");
        let mut session = Session::new(&self.loaded, name, limits, account, shared).map_err(at)?;
        let started = session.start_tuner(info, &self.wit_settings(), space, members);
        started
            .map_err(at)?
            .map_err(|refusal| refused(name, refusal, "start"))?;
        Ok(session)
    }
}
