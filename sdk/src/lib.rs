//! What a plugin author sees.
#[allow(missing_docs, unsafe_code, unsafe_op_in_unsafe_fn, clippy::all)]
pub mod bindings {
    pub mod host {
        wit_bindgen::generate!({
            path: "../wit", generate_all,
            inline: "package espalier:sdk; world host {
                import espalier:plugin/log@0.1.0;
                import espalier:plugin/random@0.1.0;
                import espalier:plugin/tensors@0.1.0;
                import espalier:plugin/autograd@0.1.0;
                import espalier:plugin/random-tensors@0.1.0;
                import espalier:plugin/parameters@0.1.0;
                import espalier:plugin/optim@0.1.0;
                import espalier:plugin/data@0.1.0;
                import espalier:plugin/data-publish@0.1.0;
                import espalier:plugin/model@0.1.0;
                import espalier:plugin/model-adopt@0.1.0;
                import espalier:plugin/options@0.1.0;
                import espalier:plugin/run@0.1.0;
            }",
        });
    }
    pub mod trainer {
        wit_bindgen::generate!({
            path: "../wit", world: "trainer", pub_export_macro: true,
            with: {
                "espalier:plugin/log@0.1.0": crate::bindings::host::espalier::plugin::log,
                "espalier:plugin/random@0.1.0": crate::bindings::host::espalier::plugin::random,
                "espalier:plugin/tensors@0.1.0": crate::bindings::host::espalier::plugin::tensors,
                "espalier:plugin/autograd@0.1.0": crate::bindings::host::espalier::plugin::autograd,
                "espalier:plugin/random-tensors@0.1.0": crate::bindings::host::espalier::plugin::random_tensors,
                "espalier:plugin/parameters@0.1.0": crate::bindings::host::espalier::plugin::parameters,
                "espalier:plugin/optim@0.1.0": crate::bindings::host::espalier::plugin::optim,
                "espalier:plugin/data@0.1.0": crate::bindings::host::espalier::plugin::data,
                "espalier:plugin/data-publish@0.1.0": crate::bindings::host::espalier::plugin::data_publish,
                "espalier:plugin/model@0.1.0": crate::bindings::host::espalier::plugin::model,
                "espalier:plugin/model-adopt@0.1.0": crate::bindings::host::espalier::plugin::model_adopt,
                "espalier:plugin/options@0.1.0": crate::bindings::host::espalier::plugin::options,
                "espalier:plugin/run@0.1.0": crate::bindings::host::espalier::plugin::run,
            },
        });
    }
}
