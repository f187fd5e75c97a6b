//! What `export!` expands to calls. Not for plugins.

use std::cell::RefCell;

use crate::bindings::host::espalier::plugin::{data, log, model, tensors};
use crate::options::Options;
use crate::run::EventKind;
use crate::{
    Architecture, Mdp, Normalizer, Pruner, Searcher, Tasks, TrackingNormalizer, Trainer, Tuner,
};

pub use crate::bindings::described;
pub use crate::bindings::host::espalier::plugin::{control, options, rewards, run};
pub use crate::bindings::{
    architecture, mdp, normalizer, pruner, searcher, tasks, tracking, trainer, tuner,
};
pub use crate::bindings::{auditor, transform};
pub use data::{Batch as RawBatch, Named as RawNamed, SplitInfo as RawSplitInfo};
pub use described::exports::espalier::plugin::plugin::Description;
pub use model::Prediction as RawPrediction;
pub use tensors::Tensor as RawTensor;

pub fn is_trainer<T: Trainer>() {}
pub fn is_pruner<T: Pruner>() {}
pub fn is_normalizer<T: Normalizer>() {}
pub fn is_tracking_normalizer<T: TrackingNormalizer>() {}
pub fn is_tasks<T: Tasks>() {}
pub fn is_mdp<T: Mdp>() {}
pub fn is_auditor<T: crate::Auditor>() {}
pub fn is_transform<T: crate::Transform>() {}
pub fn is_architecture<T: Architecture>() {}
pub fn is_tuner<T: Tuner>() {}
pub fn is_searcher<T: Searcher>() {}

/// What a crate's manifest says.
pub struct Manifest {
    pub name: &'static str,
    pub version: &'static str,
    pub summary: &'static str,
}

fn describe<O: Options>(manifest: Manifest, events: &[EventKind]) -> Description {
    let name = manifest
        .name
        .strip_prefix("espalier-plugin-")
        .unwrap_or(manifest.name);
    Description {
        name: name.into(),
        version: manifest.version.into(),
        summary: manifest.summary.into(),
        options: O::infos(),
        events: events
            .iter()
            .map(|event| event.word().to_string())
            .collect(),
    }
}

/// A panic is only `unreachable` to the host: say first what happened and where.
fn report_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("panic");
        let place = panic
            .location()
            .map(|at| format!(" at {}:{}", at.file(), at.line()));
        log::message(
            log::Level::Warn,
            &format!("panic{}: {message}", place.unwrap_or_default()),
        );
    }));
}

/// The one session of an instance.
pub struct Session<T>(RefCell<Option<T>>);

impl<T> Default for Session<T> {
    fn default() -> Self {
        Session(RefCell::new(None))
    }
}

impl<T> Session<T> {
    fn put(&self, plugin: T) {
        *self.0.borrow_mut() = Some(plugin);
    }

    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        match self.0.borrow_mut().as_mut() {
            Some(plugin) => f(plugin),
            None => panic!("called before `start`"),
        }
    }
}

pub mod trainer_adapter {
    pub use super::Session;
    use super::*;
    use crate::Tensor;
    use crate::data::Batch;

    pub fn describe<T: Trainer>(manifest: Manifest) -> Description {
        super::describe::<T::Options>(manifest, &[])
    }

    pub fn start<T: Trainer>(
        session: &Session<T>,
        info: &run::RunInfo,
        settings: &[options::Setting],
    ) -> Result<(), run::Error> {
        report_panics();
        session.put(T::new(info, T::Options::from_settings(settings)?)?);
        Ok(())
    }

    pub fn step<T: Trainer>(session: &Session<T>, at: &run::StepInfo) -> run::StepReport {
        session.with(|plugin| plugin.step(at))
    }

    pub fn objective<T: Trainer>(session: &Session<T>, batch: RawBatch) -> RawTensor {
        let batch = Batch::from_raw(batch);
        session.with(|plugin| Tensor::into_raw(plugin.objective(&batch)))
    }

    pub fn predict<T: Trainer>(session: &Session<T>, batch: RawBatch) -> RawPrediction {
        let batch = Batch::from_raw(batch);
        session.with(|plugin| crate::no_grad(|| plugin.predict(&batch)).into_raw())
    }

    pub fn set_knob<T: Trainer>(
        session: &Session<T>,
        name: &str,
        value: &options::Value,
    ) -> Result<(), run::Error> {
        session.with(|plugin| plugin.set_knob(name, value))
    }

    pub fn save<T: Trainer>(session: &Session<T>) -> Vec<u8> {
        session.with(|plugin| plugin.save())
    }

    pub fn restore<T: Trainer>(session: &Session<T>, state: &[u8]) -> Result<(), run::Error> {
        session.with(|plugin| plugin.restore(state))
    }
}

pub mod pruner_adapter {
    pub use super::Session;
    use super::*;

    pub fn describe<T: Pruner>(manifest: Manifest) -> Description {
        super::describe::<T::Options>(manifest, T::EVENTS)
    }

    pub fn start<T: Pruner>(
        session: &Session<T>,
        info: &run::RunInfo,
        settings: &[options::Setting],
    ) -> Result<(), run::Error> {
        report_panics();
        session.put(T::new(info, T::Options::from_settings(settings)?)?);
        Ok(())
    }

    pub fn on_event<T: Pruner>(session: &Session<T>, event: &run::Event) -> run::Directive {
        session.with(|plugin| plugin.on_event(event))
    }

    pub fn save<T: Pruner>(session: &Session<T>) -> Vec<u8> {
        session.with(|plugin| plugin.save())
    }

    pub fn restore<T: Pruner>(session: &Session<T>, state: &[u8]) -> Result<(), run::Error> {
        session.with(|plugin| plugin.restore(state))
    }
}

pub mod normalizer_adapter {
    pub use super::Session;
    use super::*;

    pub fn describe<T: Normalizer>(manifest: Manifest) -> Description {
        super::describe::<T::Options>(manifest, &[])
    }

    pub fn start<T: Normalizer>(
        session: &Session<T>,
        info: &run::RunInfo,
        settings: &[options::Setting],
        rewards: &rewards::RewardSpec,
    ) -> Result<(), run::Error> {
        report_panics();
        session.put(T::new(info, T::Options::from_settings(settings)?, rewards)?);
        Ok(())
    }

    pub fn normalize<T: Normalizer>(
        session: &Session<T>,
        batch: &[rewards::Rollout],
    ) -> Result<Vec<rewards::Advantage>, run::Error> {
        session.with(|plugin| plugin.normalize(batch))
    }

    pub fn observe<T: TrackingNormalizer>(session: &Session<T>, drifts: &[rewards::Drift]) {
        session.with(|plugin| plugin.observe(drifts));
    }

    pub fn prompt_weights<T: TrackingNormalizer>(
        session: &Session<T>,
        prompts: &[u64],
    ) -> Vec<f64> {
        session.with(|plugin| plugin.prompt_weights(prompts))
    }

    pub fn save<T: Normalizer>(session: &Session<T>) -> Vec<u8> {
        session.with(|plugin| plugin.save())
    }

    pub fn restore<T: Normalizer>(session: &Session<T>, state: &[u8]) -> Result<(), run::Error> {
        session.with(|plugin| plugin.restore(state))
    }
}

pub mod tasks_adapter {
    pub use super::Session;
    use super::*;
    use crate::bindings::tasks::exports::espalier::plugin::tasks as raw;
    use crate::slots::Response;

    pub fn describe<T: Tasks>(manifest: Manifest) -> Description {
        super::describe::<T::Options>(manifest, &[])
    }

    pub fn start<T: Tasks>(
        session: &Session<T>,
        info: &run::RunInfo,
        settings: &[options::Setting],
    ) -> Result<(), run::Error> {
        report_panics();
        session.put(T::new(info, T::Options::from_settings(settings)?)?);
        Ok(())
    }

    pub fn spec<T: Tasks>(session: &Session<T>) -> rewards::TaskSpec {
        session.with(|plugin| plugin.spec())
    }

    pub fn splits<T: Tasks>(session: &Session<T>) -> Vec<raw::Split> {
        session.with(|plugin| {
            let split = |(name, count): (&str, u64)| raw::Split {
                name: name.into(),
                count,
            };
            plugin.splits().into_iter().map(split).collect()
        })
    }

    pub fn prompts<T: Tasks>(
        session: &Session<T>,
        split: &str,
        ids: &[u64],
    ) -> Vec<rewards::Prompt> {
        session.with(|plugin| ids.iter().map(|&id| plugin.prompt(split, id)).collect())
    }

    pub fn verify<T: Tasks>(
        session: &Session<T>,
        responses: Vec<raw::Response>,
    ) -> Vec<rewards::Verdict> {
        session.with(|plugin| {
            let judge = |raw: raw::Response| {
                plugin.verify(&Response {
                    split: raw.split,
                    prompt: raw.prompt,
                    tokens: raw.tokens,
                    finished: raw.finished,
                })
            };
            responses.into_iter().map(judge).collect()
        })
    }

    pub fn save<T: Tasks>(session: &Session<T>) -> Vec<u8> {
        session.with(|plugin| plugin.save())
    }

    pub fn restore<T: Tasks>(session: &Session<T>, state: &[u8]) -> Result<(), run::Error> {
        session.with(|plugin| plugin.restore(state))
    }
}

pub mod mdp_adapter {
    pub use super::Session;
    use super::*;

    pub fn describe<T: Mdp>(manifest: Manifest) -> Description {
        super::describe::<T::Options>(manifest, &[])
    }

    pub fn start<T: Mdp>(
        session: &Session<T>,
        info: &run::RunInfo,
        settings: &[options::Setting],
    ) -> Result<(), run::Error> {
        report_panics();
        session.put(T::new(info, T::Options::from_settings(settings)?)?);
        Ok(())
    }

    pub fn spec<T: Mdp>(session: &Session<T>) -> control::MdpSpec {
        session.with(|plugin| plugin.spec())
    }

    pub fn reset<T: Mdp>(session: &Session<T>, n: u32, key: &[u64]) -> Vec<f64> {
        session.with(|plugin| plugin.reset(n, key))
    }

    pub fn step<T: Mdp>(session: &Session<T>, actions: &[f64]) -> control::Transition {
        session.with(|plugin| plugin.step(actions))
    }

    pub fn save<T: Mdp>(session: &Session<T>) -> Vec<u8> {
        session.with(|plugin| plugin.save())
    }

    pub fn restore<T: Mdp>(session: &Session<T>, state: &[u8]) -> Result<(), run::Error> {
        session.with(|plugin| plugin.restore(state))
    }
}

pub mod architecture_adapter {
    pub use super::Session;
    use super::architecture::exports::espalier::plugin::architecture as raw;
    use super::*;
    use crate::Tensor;
    use crate::architecture::{Build, Pass, Weights};
    use crate::data::Batch;

    pub use crate::bindings::host::espalier::plugin::parameters::ParameterSet as RawSet;
    pub use data::{FieldInfo as RawField, Named as RawNamed};
    pub use model::{ForwardResult as RawForward, LayerInfo as RawLayer};
    pub use raw::Pass as RawPass;

    /// An architecture and the layers that it declared.
    pub struct Built<T> {
        plugin: T,
        layers: Vec<RawLayer>,
    }

    pub fn describe<T: Architecture>(manifest: Manifest) -> Description {
        super::describe::<T::Options>(manifest, &[])
    }

    pub fn start<T: Architecture>(
        session: &Session<Built<T>>,
        info: &run::RunInfo,
        settings: &[options::Setting],
    ) -> Result<(), run::Error> {
        report_panics();
        let plugin = T::new(info, T::Options::from_settings(settings)?)?;
        let layers = Vec::new();
        session.put(Built { plugin, layers });
        Ok(())
    }

    pub fn build<T: Architecture>(
        session: &Session<Built<T>>,
        weights: &RawSet,
        fields: Vec<RawField>,
        outputs: u32,
    ) -> Result<Vec<RawLayer>, run::Error> {
        session.with(|built| {
            let mut build = Build::new(weights, fields, outputs);
            built.plugin.build(&mut build)?;
            built.layers = build.into_layers();
            Ok(built.layers.clone())
        })
    }

    pub fn forward<T: Architecture>(
        session: &Session<Built<T>>,
        weights: &RawSet,
        inputs: Vec<RawNamed>,
        pass: RawPass,
    ) -> RawForward {
        session.with(|built| {
            let inputs: Vec<(String, Tensor)> = inputs
                .into_iter()
                .map(|(name, t)| (name, Tensor::from_raw(t)))
                .collect();
            let range = pass.range.0 as usize..pass.range.1 as usize;
            let mut pass = Pass::new(pass.mode, pass.key, pass.want);
            let weights = Weights::from_raw(weights);
            let output = pass.run(&built.plugin, &built.layers, range, &inputs, &weights);
            let extra = pass.into_given();
            RawForward {
                output: output.into_raw(),
                extra: extra
                    .into_iter()
                    .map(|(name, t)| (name, t.into_raw()))
                    .collect(),
            }
        })
    }

    pub fn loss<T: Architecture>(
        session: &Session<Built<T>>,
        weights: &RawSet,
        batch: RawBatch,
        pass: RawPass,
    ) -> Option<RawTensor> {
        session.with(|built| {
            let mut pass = Pass::new(pass.mode, pass.key, pass.want);
            let weights = Weights::from_raw(weights);
            let losses = built
                .plugin
                .loss(&Batch::from_raw(batch), &weights, &mut pass);
            losses.map(Tensor::into_raw)
        })
    }
}

pub mod tuner_adapter {
    pub use super::Session;
    use super::*;
    use crate::tuner::{Change, KnobInfo, MemberReport};

    pub fn describe<T: Tuner>(manifest: Manifest) -> Description {
        super::describe::<T::Options>(manifest, &[])
    }

    pub fn start<T: Tuner>(
        session: &Session<T>,
        info: &run::RunInfo,
        settings: &[options::Setting],
        space: &[KnobInfo],
        members: u32,
    ) -> Result<(), run::Error> {
        report_panics();
        let options = T::Options::from_settings(settings)?;
        session.put(T::new(info, options, space, members)?);
        Ok(())
    }

    pub fn propose<T: Tuner>(session: &Session<T>) -> Vec<Vec<options::Setting>> {
        session.with(|plugin| plugin.propose())
    }

    pub fn decide<T: Tuner>(session: &Session<T>, members: &[MemberReport]) -> Vec<Change> {
        session.with(|plugin| plugin.decide(members))
    }

    pub fn save<T: Tuner>(session: &Session<T>) -> Vec<u8> {
        session.with(|plugin| plugin.save())
    }

    pub fn restore<T: Tuner>(session: &Session<T>, state: &[u8]) -> Result<(), run::Error> {
        session.with(|plugin| plugin.restore(state))
    }
}

pub mod searcher_adapter {
    pub use super::Session;
    use super::*;
    use crate::searcher::SearchReport;

    pub fn describe<T: Searcher>(manifest: Manifest) -> Description {
        super::describe::<T::Options>(manifest, &[])
    }

    pub fn start<T: Searcher>(
        session: &Session<T>,
        info: &run::RunInfo,
        settings: &[options::Setting],
    ) -> Result<(), run::Error> {
        report_panics();
        session.put(T::new(info, T::Options::from_settings(settings)?)?);
        Ok(())
    }

    pub fn step<T: Searcher>(session: &Session<T>, at: &run::StepInfo) -> SearchReport {
        session.with(|plugin| plugin.step(at))
    }

    pub fn save<T: Searcher>(session: &Session<T>) -> Vec<u8> {
        session.with(|plugin| plugin.save())
    }

    pub fn restore<T: Searcher>(session: &Session<T>, state: &[u8]) -> Result<(), run::Error> {
        session.with(|plugin| plugin.restore(state))
    }
}

pub mod auditor_adapter {
    pub use super::Session;
    use super::*;
    use crate::Auditor;
    pub use crate::bindings::auditor::exports::espalier::plugin::auditing::AuditReport;

    pub fn describe<T: Auditor>(manifest: Manifest) -> Description {
        super::describe::<T::Options>(manifest, &[])
    }

    pub fn start<T: Auditor>(
        session: &Session<T>,
        info: &run::RunInfo,
        settings: &[options::Setting],
    ) -> Result<(), run::Error> {
        report_panics();
        session.put(T::new(info, T::Options::from_settings(settings)?)?);
        Ok(())
    }

    pub fn audit<T: Auditor>(session: &Session<T>) -> AuditReport {
        session.with(|plugin| plugin.audit().into_raw())
    }
}

pub mod transform_adapter {
    pub use super::Session;
    use super::*;
    use crate::Transform;
    pub use crate::bindings::transform::exports::espalier::plugin::transforming::Derived;
    use crate::data::Batch;
    use crate::transform::Samples;

    pub fn describe<T: Transform>(manifest: Manifest) -> Description {
        let mut description = super::describe::<T::Options>(manifest, &[]);
        if T::BATCHES {
            description.events.push("batch".into());
        }
        description
    }

    pub fn start<T: Transform>(
        session: &Session<T>,
        info: &run::RunInfo,
        settings: &[options::Setting],
        train: Vec<RawNamed>,
        splits: &[RawSplitInfo],
    ) -> Result<(), run::Error> {
        report_panics();
        let options = T::Options::from_settings(settings)?;
        session.put(T::new(info, options, &Samples::from_raw(train), splits)?);
        Ok(())
    }

    pub fn prepare<T: Transform>(
        session: &Session<T>,
        split: &RawSplitInfo,
        fields: Vec<RawNamed>,
    ) -> Vec<Derived> {
        let samples = Samples::from_raw(fields);
        session.with(|plugin| {
            let derived = plugin.prepare(split, &samples).into_iter();
            derived.map(|split| split.into_raw()).collect()
        })
    }

    pub fn apply<T: Transform>(
        session: &Session<T>,
        batch: RawBatch,
        at: &run::StepInfo,
    ) -> RawBatch {
        let batch = Batch::from_raw(batch);
        session.with(|plugin| plugin.apply(batch, at).to_raw())
    }
}
