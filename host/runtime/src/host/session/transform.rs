//! What the host asks of a transform.

use espalier_tensor::Tensor;

use super::{Called, Exports, Session};
use crate::data::Batch;
use crate::host::bindings::trainer::espalier::plugin::data::SplitInfo;
use crate::host::bindings::trainer::espalier::plugin::options::Value;
use crate::host::bindings::trainer::espalier::plugin::run::{Error, RunInfo, StepInfo};

/// A split as a transform leaves it.
#[derive(Clone, Debug)]
pub struct Derived {
    /// The split's own name, or a new one.
    pub name: String,
    /// Its fields.
    pub fields: Vec<(String, Tensor)>,
    /// How many classes `targets` has; 0 for regression.
    pub classes: u32,
}

impl Session {
    /// Starts a transform with the training data. The inner error is its own refusal.
    pub fn start_transform(
        &mut self,
        info: RunInfo,
        settings: &[(String, Value)],
        train: &[(String, Tensor)],
        splits: &[SplitInfo],
    ) -> Called<Result<(), Error>> {
        self.call("start", false, |store, exports| match exports {
            Exports::Transform(t) => {
                let train = store.data_mut().put_named(train.to_vec())?;
                t.espalier_plugin_transforming()
                    .call_start(store, info, settings, &train, splits)
            }
            _ => Self::wrong_slot(),
        })
    }

    /// A split as the transform wants it, and what it derives from it.
    pub fn prepare(
        &mut self,
        split: &SplitInfo,
        fields: &[(String, Tensor)],
    ) -> Called<Vec<Derived>> {
        self.call("prepare", false, |store, exports| match exports {
            Exports::Transform(t) => {
                let fields = store.data_mut().put_named(fields.to_vec())?;
                let derived =
                    t.espalier_plugin_transforming()
                        .call_prepare(&mut *store, split, &fields)?;
                derived
                    .into_iter()
                    .map(|split| {
                        Ok(Derived {
                            name: split.name,
                            fields: store.data_mut().take_named(split.fields)?,
                            classes: split.classes,
                        })
                    })
                    .collect()
            }
            _ => Self::wrong_slot(),
        })
    }

    /// A training batch, changed.
    pub fn apply(&mut self, batch: Batch, at: StepInfo) -> Called<Batch> {
        self.call("apply", false, |store, exports| match exports {
            Exports::Transform(t) => {
                let batch = store.data_mut().put_batch(batch)?;
                let batch = t
                    .espalier_plugin_transforming()
                    .call_apply(&mut *store, &batch, at)?;
                store.data_mut().take_batch(batch)
            }
            _ => Self::wrong_slot(),
        })
    }
}
