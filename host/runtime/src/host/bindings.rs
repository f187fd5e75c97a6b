//! What wasmtime generates from `wit/`: one trait an interface for the host to fill, one type a world
//! for its exports. The worlds share the types of their imports. What the option `tracing` says is heard by
//! `crate::profile`.
#![allow(missing_docs, clippy::all)]

/// Names the host's own types behind the resources.
pub mod rep {
    pub enum Tensor {}
    pub enum NoGrad {}
    pub enum ParameterSet {}
    pub enum Selection {}
    pub enum Stream {}
    pub enum Model {}
    pub enum Captured {}
}

/// The world with every import; its exports are the trainer's.
pub mod trainer {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "trainer",
        imports: { default: trappable | tracing },
        with: {
            "espalier:plugin/tensors.tensor": super::rep::Tensor,
            "espalier:plugin/autograd.no-grad": super::rep::NoGrad,
            "espalier:plugin/parameters.parameter-set": super::rep::ParameterSet,
            "espalier:plugin/parameters.selection": super::rep::Selection,
            "espalier:plugin/data.stream": super::rep::Stream,
            "espalier:plugin/model.model": super::rep::Model,
            "espalier:plugin/capture.captured": super::rep::Captured,
        },
    });
}

/// The pruner's exports.
pub mod pruner {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "pruner",
        imports: { default: trappable | tracing },
        with: {
            "espalier:plugin/log": super::trainer::espalier::plugin::log,
            "espalier:plugin/random": super::trainer::espalier::plugin::random,
            "espalier:plugin/tensors": super::trainer::espalier::plugin::tensors,
            "espalier:plugin/autograd": super::trainer::espalier::plugin::autograd,
            "espalier:plugin/random-tensors": super::trainer::espalier::plugin::random_tensors,
            "espalier:plugin/parameters": super::trainer::espalier::plugin::parameters,
            "espalier:plugin/data": super::trainer::espalier::plugin::data,
            "espalier:plugin/model": super::trainer::espalier::plugin::model,
            "espalier:plugin/options": super::trainer::espalier::plugin::options,
            "espalier:plugin/run": super::trainer::espalier::plugin::run,
        },
    });
}

/// The normaliser's exports.
pub mod normalizer {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "normalizer",
        imports: { default: trappable | tracing },
        with: {
            "espalier:plugin/log": super::trainer::espalier::plugin::log,
            "espalier:plugin/random": super::trainer::espalier::plugin::random,
            "espalier:plugin/options": super::trainer::espalier::plugin::options,
            "espalier:plugin/run": super::trainer::espalier::plugin::run,
            "espalier:plugin/rewards": super::trainer::espalier::plugin::rewards,
        },
    });
}

/// The exports of a normaliser that hears of drift.
pub mod normalizer_tracking {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "normalizer-tracking",
        imports: { default: trappable | tracing },
        with: {
            "espalier:plugin/log": super::trainer::espalier::plugin::log,
            "espalier:plugin/random": super::trainer::espalier::plugin::random,
            "espalier:plugin/options": super::trainer::espalier::plugin::options,
            "espalier:plugin/run": super::trainer::espalier::plugin::run,
            "espalier:plugin/rewards": super::trainer::espalier::plugin::rewards,
        },
    });
}

/// The exports of an environment with tasks.
pub mod tasks {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "environment-tasks",
        imports: { default: trappable | tracing },
        with: {
            "espalier:plugin/log": super::trainer::espalier::plugin::log,
            "espalier:plugin/random": super::trainer::espalier::plugin::random,
            "espalier:plugin/options": super::trainer::espalier::plugin::options,
            "espalier:plugin/run": super::trainer::espalier::plugin::run,
            "espalier:plugin/rewards": super::trainer::espalier::plugin::rewards,
        },
    });
}

/// The exports of an environment to act in.
pub mod mdp {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "environment-mdp",
        imports: { default: trappable | tracing },
        with: {
            "espalier:plugin/log": super::trainer::espalier::plugin::log,
            "espalier:plugin/random": super::trainer::espalier::plugin::random,
            "espalier:plugin/options": super::trainer::espalier::plugin::options,
            "espalier:plugin/run": super::trainer::espalier::plugin::run,
            "espalier:plugin/control": super::trainer::espalier::plugin::control,
        },
    });
}

/// The exports of an architecture.
pub mod architecture {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "architecture-plugin",
        imports: { default: trappable | tracing },
        with: {
            "espalier:plugin/log": super::trainer::espalier::plugin::log,
            "espalier:plugin/random": super::trainer::espalier::plugin::random,
            "espalier:plugin/tensors": super::trainer::espalier::plugin::tensors,
            "espalier:plugin/autograd": super::trainer::espalier::plugin::autograd,
            "espalier:plugin/random-tensors": super::trainer::espalier::plugin::random_tensors,
            "espalier:plugin/fft": super::trainer::espalier::plugin::fft,
            "espalier:plugin/parameters": super::trainer::espalier::plugin::parameters,
            "espalier:plugin/data": super::trainer::espalier::plugin::data,
            "espalier:plugin/model": super::trainer::espalier::plugin::model,
            "espalier:plugin/options": super::trainer::espalier::plugin::options,
            "espalier:plugin/run": super::trainer::espalier::plugin::run,
        },
    });
}

/// The exports of a tuner.
pub mod tuner {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "tuner",
        imports: { default: trappable | tracing },
        with: {
            "espalier:plugin/log": super::trainer::espalier::plugin::log,
            "espalier:plugin/random": super::trainer::espalier::plugin::random,
            "espalier:plugin/tensors": super::trainer::espalier::plugin::tensors,
            "espalier:plugin/autograd": super::trainer::espalier::plugin::autograd,
            "espalier:plugin/random-tensors": super::trainer::espalier::plugin::random_tensors,
            "espalier:plugin/options": super::trainer::espalier::plugin::options,
            "espalier:plugin/run": super::trainer::espalier::plugin::run,
        },
    });
}

/// The exports of an auditor.
pub mod auditor {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "auditor",
        imports: { default: trappable | tracing },
        with: {
            "espalier:plugin/log": super::trainer::espalier::plugin::log,
            "espalier:plugin/random": super::trainer::espalier::plugin::random,
            "espalier:plugin/tensors": super::trainer::espalier::plugin::tensors,
            "espalier:plugin/autograd": super::trainer::espalier::plugin::autograd,
            "espalier:plugin/random-tensors": super::trainer::espalier::plugin::random_tensors,
            "espalier:plugin/fft": super::trainer::espalier::plugin::fft,
            "espalier:plugin/parameters": super::trainer::espalier::plugin::parameters,
            "espalier:plugin/optim": super::trainer::espalier::plugin::optim,
            "espalier:plugin/data": super::trainer::espalier::plugin::data,
            "espalier:plugin/model": super::trainer::espalier::plugin::model,
            "espalier:plugin/options": super::trainer::espalier::plugin::options,
            "espalier:plugin/run": super::trainer::espalier::plugin::run,
        },
    });
}

/// The exports of a transform.
pub mod transform {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "transform",
        imports: { default: trappable | tracing },
        with: {
            "espalier:plugin/log": super::trainer::espalier::plugin::log,
            "espalier:plugin/random": super::trainer::espalier::plugin::random,
            "espalier:plugin/tensors": super::trainer::espalier::plugin::tensors,
            "espalier:plugin/random-tensors": super::trainer::espalier::plugin::random_tensors,
            "espalier:plugin/data": super::trainer::espalier::plugin::data,
            "espalier:plugin/options": super::trainer::espalier::plugin::options,
            "espalier:plugin/run": super::trainer::espalier::plugin::run,
        },
    });
}

/// The exports of a searcher.
pub mod searcher {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "searcher",
        imports: { default: trappable | tracing },
        with: {
            "espalier:plugin/log": super::trainer::espalier::plugin::log,
            "espalier:plugin/random": super::trainer::espalier::plugin::random,
            "espalier:plugin/tensors": super::trainer::espalier::plugin::tensors,
            "espalier:plugin/autograd": super::trainer::espalier::plugin::autograd,
            "espalier:plugin/random-tensors": super::trainer::espalier::plugin::random_tensors,
            "espalier:plugin/parameters": super::trainer::espalier::plugin::parameters,
            "espalier:plugin/optim": super::trainer::espalier::plugin::optim,
            "espalier:plugin/data": super::trainer::espalier::plugin::data,
            "espalier:plugin/model": super::trainer::espalier::plugin::model,
            "espalier:plugin/rewards": super::trainer::espalier::plugin::rewards,
            "espalier:plugin/control": super::trainer::espalier::plugin::control,
            "espalier:plugin/rollouts": super::trainer::espalier::plugin::rollouts,
            "espalier:plugin/options": super::trainer::espalier::plugin::options,
            "espalier:plugin/run": super::trainer::espalier::plugin::run,
        },
    });
}
