//! Bindings generated from `wit/`. Not part of the SDK's surface: plugins use the layer above.
//!
//! All imports live in one world that no component has in full: what a plugin does not call is not linked,
//! and what is not linked is not imported. Each slot adds a world with its own export, so that several slots
//! share one set of imported types.
#![allow(missing_docs, unsafe_code, unsafe_op_in_unsafe_fn, clippy::all)]

pub mod host {
    wit_bindgen::generate!({
        path: "../wit",
        generate_all,
        inline: "package espalier:sdk; world host {
            import espalier:plugin/log@0.1.0;
            import espalier:plugin/random@0.1.0;
            import espalier:plugin/tensors@0.1.0;
            import espalier:plugin/autograd@0.1.0;
            import espalier:plugin/random-tensors@0.1.0;
            import espalier:plugin/fft@0.1.0;
            import espalier:plugin/parameters@0.1.0;
            import espalier:plugin/optim@0.1.0;
            import espalier:plugin/capture@0.1.0;
            import espalier:plugin/data@0.1.0;
            import espalier:plugin/data-publish@0.1.0;
            import espalier:plugin/model@0.1.0;
            import espalier:plugin/model-adopt@0.1.0;
            import espalier:plugin/rewards@0.1.0;
            import espalier:plugin/control@0.1.0;
            import espalier:plugin/rollouts@0.1.0;
            import espalier:plugin/options@0.1.0;
            import espalier:plugin/run@0.1.0;
        }",
    });
}

/// The export that every slot has.
pub mod described {
    wit_bindgen::generate!({
        path: "../wit",
        pub_export_macro: true,
        export_macro_name: "export_described",
        inline: "package espalier:sdk-described; world described {
            export espalier:plugin/plugin@0.1.0;
        }",
        with: { "espalier:plugin/options@0.1.0": crate::bindings::host::espalier::plugin::options },
    });
}

/// The export of a trainer.
pub mod trainer {
    wit_bindgen::generate!({
        path: "../wit",
        pub_export_macro: true,
        export_macro_name: "export_trainer",
        inline: "package espalier:sdk-trainer; world trainer {
            export espalier:plugin/training@0.1.0;
        }",
        with: {
            "espalier:plugin/tensors@0.1.0": crate::bindings::host::espalier::plugin::tensors,
            "espalier:plugin/parameters@0.1.0": crate::bindings::host::espalier::plugin::parameters,
            "espalier:plugin/data@0.1.0": crate::bindings::host::espalier::plugin::data,
            "espalier:plugin/model@0.1.0": crate::bindings::host::espalier::plugin::model,
            "espalier:plugin/options@0.1.0": crate::bindings::host::espalier::plugin::options,
            "espalier:plugin/run@0.1.0": crate::bindings::host::espalier::plugin::run,
        },
    });
}

/// The export of a pruner.
pub mod pruner {
    wit_bindgen::generate!({
        path: "../wit",
        pub_export_macro: true,
        export_macro_name: "export_pruner",
        inline: "package espalier:sdk-pruner; world pruner {
            export espalier:plugin/pruning@0.1.0;
        }",
        with: {
            "espalier:plugin/options@0.1.0": crate::bindings::host::espalier::plugin::options,
            "espalier:plugin/run@0.1.0": crate::bindings::host::espalier::plugin::run,
        },
    });
}

/// The export of a normaliser.
pub mod normalizer {
    wit_bindgen::generate!({
        path: "../wit",
        pub_export_macro: true,
        export_macro_name: "export_normalizer",
        inline: "package espalier:sdk-normalizer; world normalizer {
            export espalier:plugin/normalizing@0.1.0;
        }",
        with: {
            "espalier:plugin/options@0.1.0": crate::bindings::host::espalier::plugin::options,
            "espalier:plugin/rewards@0.1.0": crate::bindings::host::espalier::plugin::rewards,
            "espalier:plugin/run@0.1.0": crate::bindings::host::espalier::plugin::run,
        },
    });
}

/// The second export of a normaliser that hears of the policy's drift.
pub mod tracking {
    wit_bindgen::generate!({
        path: "../wit",
        pub_export_macro: true,
        export_macro_name: "export_tracking",
        inline: "package espalier:sdk-tracking; world tracking {
            export espalier:plugin/tracking@0.1.0;
        }",
        with: {
            "espalier:plugin/rewards@0.1.0": crate::bindings::host::espalier::plugin::rewards,
        },
    });
}

/// The export of an environment with tasks.
pub mod tasks {
    wit_bindgen::generate!({
        path: "../wit",
        pub_export_macro: true,
        export_macro_name: "export_tasks",
        inline: "package espalier:sdk-tasks; world tasks {
            export espalier:plugin/tasks@0.1.0;
        }",
        with: {
            "espalier:plugin/options@0.1.0": crate::bindings::host::espalier::plugin::options,
            "espalier:plugin/rewards@0.1.0": crate::bindings::host::espalier::plugin::rewards,
            "espalier:plugin/run@0.1.0": crate::bindings::host::espalier::plugin::run,
        },
    });
}

/// The export of an environment to act in.
pub mod mdp {
    wit_bindgen::generate!({
        path: "../wit",
        pub_export_macro: true,
        export_macro_name: "export_mdp",
        inline: "package espalier:sdk-mdp; world mdp {
            export espalier:plugin/mdp@0.1.0;
        }",
        with: {
            "espalier:plugin/options@0.1.0": crate::bindings::host::espalier::plugin::options,
            "espalier:plugin/control@0.1.0": crate::bindings::host::espalier::plugin::control,
            "espalier:plugin/run@0.1.0": crate::bindings::host::espalier::plugin::run,
        },
    });
}

/// The export of an architecture.
pub mod architecture {
    wit_bindgen::generate!({
        path: "../wit",
        pub_export_macro: true,
        export_macro_name: "export_architecture",
        inline: "package espalier:sdk-architecture; world architecture-only {
            export espalier:plugin/architecture@0.1.0;
        }",
        with: {
            "espalier:plugin/tensors@0.1.0": crate::bindings::host::espalier::plugin::tensors,
            "espalier:plugin/parameters@0.1.0": crate::bindings::host::espalier::plugin::parameters,
            "espalier:plugin/data@0.1.0": crate::bindings::host::espalier::plugin::data,
            "espalier:plugin/model@0.1.0": crate::bindings::host::espalier::plugin::model,
            "espalier:plugin/options@0.1.0": crate::bindings::host::espalier::plugin::options,
            "espalier:plugin/run@0.1.0": crate::bindings::host::espalier::plugin::run,
        },
    });
}

/// The export of a tuner.
pub mod tuner {
    wit_bindgen::generate!({
        path: "../wit",
        pub_export_macro: true,
        export_macro_name: "export_tuner",
        inline: "package espalier:sdk-tuner; world tuner {
            export espalier:plugin/tuning@0.1.0;
        }",
        with: {
            "espalier:plugin/options@0.1.0": crate::bindings::host::espalier::plugin::options,
            "espalier:plugin/run@0.1.0": crate::bindings::host::espalier::plugin::run,
        },
    });
}

/// The export of a searcher.
pub mod searcher {
    wit_bindgen::generate!({
        path: "../wit",
        pub_export_macro: true,
        export_macro_name: "export_searcher",
        inline: "package espalier:sdk-searcher; world searcher {
            export espalier:plugin/searching@0.1.0;
        }",
        with: {
            "espalier:plugin/options@0.1.0": crate::bindings::host::espalier::plugin::options,
            "espalier:plugin/rewards@0.1.0": crate::bindings::host::espalier::plugin::rewards,
            "espalier:plugin/run@0.1.0": crate::bindings::host::espalier::plugin::run,
        },
    });
}

/// The export of an auditor.
pub mod auditor {
    wit_bindgen::generate!({
        path: "../wit",
        pub_export_macro: true,
        export_macro_name: "export_auditor",
        inline: "package espalier:sdk-auditor; world auditor {
            export espalier:plugin/auditing@0.1.0;
        }",
        with: {
            "espalier:plugin/options@0.1.0": crate::bindings::host::espalier::plugin::options,
            "espalier:plugin/run@0.1.0": crate::bindings::host::espalier::plugin::run,
        },
    });
}

/// The export of a transform.
pub mod transform {
    wit_bindgen::generate!({
        path: "../wit",
        pub_export_macro: true,
        export_macro_name: "export_transform",
        inline: "package espalier:sdk-transform; world transform {
            export espalier:plugin/transforming@0.1.0;
        }",
        with: {
            "espalier:plugin/tensors@0.1.0": crate::bindings::host::espalier::plugin::tensors,
            "espalier:plugin/data@0.1.0": crate::bindings::host::espalier::plugin::data,
            "espalier:plugin/options@0.1.0": crate::bindings::host::espalier::plugin::options,
            "espalier:plugin/run@0.1.0": crate::bindings::host::espalier::plugin::run,
        },
    });
}
