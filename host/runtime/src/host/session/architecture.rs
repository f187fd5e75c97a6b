//! What the host asks of an architecture: its layers, and to run them on a set of parameters.

use std::collections::BTreeMap;

use espalier_tensor::Tensor;
use wasmtime::Store;
use wasmtime::component::Resource;

use super::{Called, Exports, Session};
use crate::data::Batch;
use crate::host::bindings::architecture::exports::espalier::plugin::architecture::Pass;
use crate::host::bindings::rep;
use crate::host::bindings::trainer::espalier::plugin::data::FieldInfo;
use crate::host::bindings::trainer::espalier::plugin::model::{LayerInfo, LayerInput, Mode};
use crate::host::bindings::trainer::espalier::plugin::run::Error;
use crate::host::guest::{Guest, Lent, misuse};
use crate::host::state::SetId;
use crate::host::tensors::{sizes, wit_dtype, wit_shape};
use crate::model::{self as store, FieldShape, Forward, Input};

/// One pass through some layers of the model with the parameters of a set.
pub struct Asked<'a> {
    /// The set.
    pub set: &'a SetId,
    /// Tensors in the place of its parameters.
    pub overrides: BTreeMap<String, Tensor>,
    /// The layers.
    pub range: (u32, u32),
    /// How layers behave that differ between training and measuring.
    pub mode: store::Mode,
    /// Randomness of the pass.
    pub key: Vec<u64>,
    /// Further outputs.
    pub want: Vec<String>,
}

impl Asked<'_> {
    fn pass(&self) -> Pass {
        Pass {
            range: self.range,
            mode: match self.mode {
                store::Mode::Train => Mode::Train,
                store::Mode::Eval => Mode::Eval,
                store::Mode::TrainFrozenStats => Mode::TrainFrozenStats,
            },
            key: self.key.clone(),
            want: self.want.clone(),
        }
    }

    fn lent(&self) -> Lent {
        Lent {
            building: false,
            moves_buffers: self.mode == store::Mode::Train,
            overrides: self.overrides.clone(),
        }
    }
}

/// Lends a set for one call, with what the call allows. Only the handle is lent: the guest has no other set.
fn lending<T>(
    store: &mut Store<Guest>,
    set: &SetId,
    lent: Lent,
    call: impl FnOnce(&mut Store<Guest>, Resource<rep::ParameterSet>) -> wasmtime::Result<T>,
) -> wasmtime::Result<T> {
    let guest = store.data_mut();
    let own = guest.put_set(set.clone())?;
    guest.lent = Some(lent);
    let result = call(store, Resource::new_borrow(own.rep()));
    let guest = store.data_mut();
    guest.lent = None;
    guest.drop_set(own)?;
    result
}

impl Session {
    /// Lets an architecture create its parameters in a set and declare its layers. The inner error is its refusal.
    pub fn build(
        &mut self,
        set: &SetId,
        fields: &[FieldShape],
        outputs: u32,
    ) -> Called<Result<Vec<store::LayerInfo>, Error>> {
        let fields: Vec<FieldInfo> = fields
            .iter()
            .map(|field| FieldInfo {
                name: field.name.clone(),
                dtype: wit_dtype(field.dtype),
                shape: wit_shape(&field.shape),
            })
            .collect();
        let lent = Lent {
            building: true,
            ..Lent::default()
        };
        self.call("build", true, |store, exports| match exports {
            Exports::Architecture(a) => lending(store, set, lent, |store, weights| {
                let exports = a.espalier_plugin_architecture();
                let layers = exports.call_build(store, weights, &fields, outputs)?;
                Ok(layers.map(|layers| layers.into_iter().map(layer).collect()))
            }),
            _ => Self::wrong_slot(),
        })
    }

    /// Runs layers of an architecture on what they read, under the names of fields and layers.
    pub fn forward(&mut self, asked: &Asked<'_>, inputs: Vec<(String, Tensor)>) -> Called<Forward> {
        self.call("forward", true, |store, exports| match exports {
            Exports::Architecture(a) => {
                lending(store, asked.set, asked.lent(), |store, weights| {
                    let inputs = store.data_mut().put_named(inputs)?;
                    let exports = a.espalier_plugin_architecture();
                    let result =
                        exports.call_forward(&mut *store, weights, &inputs, &asked.pass())?;
                    let guest = store.data_mut();
                    Ok(Forward {
                        output: guest.take_tensor(result.output)?,
                        extra: guest.take_named(result.extra)?,
                    })
                })
            }
            _ => Self::wrong_slot(),
        })
    }

    /// The per-sample losses of an architecture that has a loss of its own, [count].
    pub fn architecture_loss(&mut self, asked: &Asked<'_>, batch: Batch) -> Called<Option<Tensor>> {
        let count = batch.count as usize;
        self.call("loss", true, |store, exports| match exports {
            Exports::Architecture(a) => {
                lending(store, asked.set, asked.lent(), |store, weights| {
                    let batch = store.data_mut().put_batch(batch)?;
                    let exports = a.espalier_plugin_architecture();
                    let losses = exports.call_loss(&mut *store, weights, &batch, &asked.pass())?;
                    let Some(losses) = losses else {
                        return Ok(None);
                    };
                    let losses = store.data_mut().take_tensor(losses)?;
                    if losses.shape() != [count] {
                        return misuse(format!(
                            "returned losses of shape {:?}, expected one loss a sample: [{count}]",
                            losses.shape()
                        ));
                    }
                    Ok(Some(losses))
                })
            }
            _ => Self::wrong_slot(),
        })
    }
}

fn layer(info: LayerInfo) -> store::LayerInfo {
    let mut settings: Vec<(String, Vec<f64>)> = Vec::new();
    for (name, value) in info.settings {
        match settings.iter_mut().find(|(known, _)| *known == name) {
            Some((_, values)) => values.push(value),
            None => settings.push((name, vec![value])),
        }
    }
    store::LayerInfo {
        index: info.index,
        name: info.name,
        kind: info.kind,
        inputs: info
            .inputs
            .into_iter()
            .map(|input| match input {
                LayerInput::Layer(n) => Input::Layer(n),
                LayerInput::Field(name) => Input::Field(name),
            })
            .collect(),
        parameters: info.parameters,
        in_shape: sizes(&info.in_shape),
        out_shape: sizes(&info.out_shape),
        macs: info.macs,
        settings,
    }
}
