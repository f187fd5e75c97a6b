//! From traits to the component's exports: the one line at the bottom of a plugin.

/// Makes a plugin of a type: `espalier_sdk::export!(trainer: T);`, or `pruner`, `normalizer`, `tracking normalizer`,
/// `tasks`, `mdp`, `architecture`, `tuner`, `auditor`, `transform`, `searcher` in its place.
///
/// Name, version and summary come from the crate's manifest, the name without `espalier-plugin-`. Natively only
/// the trait is checked, so that a plugin's pure parts run under `cargo test`.
#[macro_export]
macro_rules! export {
    (trainer: $plugin:ty) => {
        const _: fn() = $crate::guest::is_trainer::<$plugin>;

        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code, missing_docs, clippy::all)]
        const _: () = {
            use $crate::guest::{described, options, run, trainer, trainer_adapter as adapter};

            struct Component;

            ::std::thread_local! {
                static SESSION: adapter::Session<$plugin> = adapter::Session::default();
            }

            impl described::exports::espalier::plugin::plugin::Guest for Component {
                fn describe() -> $crate::guest::Description {
                    adapter::describe::<$plugin>($crate::__manifest!())
                }
            }

            impl trainer::exports::espalier::plugin::training::Guest for Component {
                fn start(
                    info: run::RunInfo,
                    settings: Vec<options::Setting>,
                ) -> Result<(), run::Error> {
                    SESSION.with(|session| adapter::start(session, &info, &settings))
                }
                fn step(at: run::StepInfo) -> run::StepReport {
                    SESSION.with(|session| adapter::step(session, &at))
                }
                fn objective(batch: $crate::guest::RawBatch) -> $crate::guest::RawTensor {
                    SESSION.with(|session| adapter::objective(session, batch))
                }
                fn predict(batch: $crate::guest::RawBatch) -> $crate::guest::RawPrediction {
                    SESSION.with(|session| adapter::predict(session, batch))
                }
                fn set_knob(name: String, value: options::Value) -> Result<(), run::Error> {
                    SESSION.with(|session| adapter::set_knob(session, &name, &value))
                }
                fn save() -> Vec<u8> {
                    SESSION.with(|session| adapter::save(session))
                }
                fn restore(state: Vec<u8>) -> Result<(), run::Error> {
                    SESSION.with(|session| adapter::restore(session, &state))
                }
            }

    described::export_described!(Component with_types_in $crate::guest::described);
    trainer::export_trainer!(Component with_types_in $crate::guest::trainer);
        };
    };
    (pruner: $plugin:ty) => {
        const _: fn() = $crate::guest::is_pruner::<$plugin>;

        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code, missing_docs, clippy::all)]
        const _: () = {
            use $crate::guest::{described, options, pruner, pruner_adapter as adapter, run};

            struct Component;

            ::std::thread_local! {
                static SESSION: adapter::Session<$plugin> = adapter::Session::default();
            }

            impl described::exports::espalier::plugin::plugin::Guest for Component {
                fn describe() -> $crate::guest::Description {
                    adapter::describe::<$plugin>($crate::__manifest!())
                }
            }

            impl pruner::exports::espalier::plugin::pruning::Guest for Component {
                fn start(
                    info: run::RunInfo,
                    settings: Vec<options::Setting>,
                ) -> Result<(), run::Error> {
                    SESSION.with(|session| adapter::start(session, &info, &settings))
                }
                fn on_event(event: run::Event) -> run::Directive {
                    SESSION.with(|session| adapter::on_event(session, &event))
                }
                fn save() -> Vec<u8> {
                    SESSION.with(|session| adapter::save(session))
                }
                fn restore(state: Vec<u8>) -> Result<(), run::Error> {
                    SESSION.with(|session| adapter::restore(session, &state))
                }
            }

    described::export_described!(Component with_types_in $crate::guest::described);
    pruner::export_pruner!(Component with_types_in $crate::guest::pruner);
        };
    };
    (normalizer: $plugin:ty) => {
        const _: fn() = $crate::guest::is_normalizer::<$plugin>;

        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code, missing_docs, clippy::all)]
        const _: () = {
            use $crate::guest::{
                described, normalizer, normalizer_adapter as adapter, options, rewards, run,
            };

            struct Component;

            ::std::thread_local! {
                static SESSION: adapter::Session<$plugin> = adapter::Session::default();
            }

            impl described::exports::espalier::plugin::plugin::Guest for Component {
                fn describe() -> $crate::guest::Description {
                    adapter::describe::<$plugin>($crate::__manifest!())
                }
            }

            impl normalizer::exports::espalier::plugin::normalizing::Guest for Component {
                fn start(
                    info: run::RunInfo,
                    settings: Vec<options::Setting>,
                    rewards: rewards::RewardSpec,
                ) -> Result<(), run::Error> {
                    SESSION.with(|session| adapter::start(session, &info, &settings, &rewards))
                }
                fn normalize(
                    batch: Vec<rewards::Rollout>,
                ) -> Result<Vec<rewards::Advantage>, run::Error> {
                    SESSION.with(|session| adapter::normalize(session, &batch))
                }
                fn save() -> Vec<u8> {
                    SESSION.with(|session| adapter::save(session))
                }
                fn restore(state: Vec<u8>) -> Result<(), run::Error> {
                    SESSION.with(|session| adapter::restore(session, &state))
                }
            }

    described::export_described!(Component with_types_in $crate::guest::described);
    normalizer::export_normalizer!(Component with_types_in $crate::guest::normalizer);
        };
    };
    (auditor: $plugin:ty) => {
        const _: fn() = $crate::guest::is_auditor::<$plugin>;

        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code, missing_docs, clippy::all)]
        const _: () = {
            use $crate::guest::{auditor, auditor_adapter as adapter, described, options, run};

            struct Component;

            ::std::thread_local! {
                static SESSION: adapter::Session<$plugin> = adapter::Session::default();
            }

            impl described::exports::espalier::plugin::plugin::Guest for Component {
                fn describe() -> $crate::guest::Description {
                    adapter::describe::<$plugin>($crate::__manifest!())
                }
            }

            impl auditor::exports::espalier::plugin::auditing::Guest for Component {
                fn start(
                    info: run::RunInfo,
                    settings: Vec<options::Setting>,
                ) -> Result<(), run::Error> {
                    SESSION.with(|session| adapter::start(session, &info, &settings))
                }
                fn audit() -> adapter::AuditReport {
                    SESSION.with(|session| adapter::audit(session))
                }
            }

    described::export_described!(Component with_types_in $crate::guest::described);
    auditor::export_auditor!(Component with_types_in $crate::guest::auditor);
        };
    };
    (transform: $plugin:ty) => {
        const _: fn() = $crate::guest::is_transform::<$plugin>;

        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code, missing_docs, clippy::all)]
        const _: () = {
            use $crate::guest::{described, options, run, transform, transform_adapter as adapter};

            struct Component;

            ::std::thread_local! {
                static SESSION: adapter::Session<$plugin> = adapter::Session::default();
            }

            impl described::exports::espalier::plugin::plugin::Guest for Component {
                fn describe() -> $crate::guest::Description {
                    adapter::describe::<$plugin>($crate::__manifest!())
                }
            }

            impl transform::exports::espalier::plugin::transforming::Guest for Component {
                fn start(
                    info: run::RunInfo,
                    settings: Vec<options::Setting>,
                    train: Vec<$crate::guest::RawNamed>,
                    splits: Vec<$crate::guest::RawSplitInfo>,
                ) -> Result<(), run::Error> {
                    SESSION
                        .with(|session| adapter::start(session, &info, &settings, train, &splits))
                }
                fn prepare(
                    split: $crate::guest::RawSplitInfo,
                    fields: Vec<$crate::guest::RawNamed>,
                ) -> Vec<adapter::Derived> {
                    SESSION.with(|session| adapter::prepare(session, &split, fields))
                }
                fn apply(batch: $crate::guest::RawBatch, at: run::StepInfo) -> $crate::guest::RawBatch {
                    SESSION.with(|session| adapter::apply(session, batch, &at))
                }
            }

    described::export_described!(Component with_types_in $crate::guest::described);
    transform::export_transform!(Component with_types_in $crate::guest::transform);
        };
    };
    (tracking normalizer: $plugin:ty) => {
        const _: fn() = $crate::guest::is_tracking_normalizer::<$plugin>;

        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code, missing_docs, clippy::all)]
        const _: () = {
            use $crate::guest::{
                described, normalizer, normalizer_adapter as adapter, options, rewards, run,
                tracking,
            };

            struct Component;

            ::std::thread_local! {
                static SESSION: adapter::Session<$plugin> = adapter::Session::default();
            }

            impl described::exports::espalier::plugin::plugin::Guest for Component {
                fn describe() -> $crate::guest::Description {
                    adapter::describe::<$plugin>($crate::__manifest!())
                }
            }

            impl normalizer::exports::espalier::plugin::normalizing::Guest for Component {
                fn start(
                    info: run::RunInfo,
                    settings: Vec<options::Setting>,
                    rewards: rewards::RewardSpec,
                ) -> Result<(), run::Error> {
                    SESSION.with(|session| adapter::start(session, &info, &settings, &rewards))
                }
                fn normalize(
                    batch: Vec<rewards::Rollout>,
                ) -> Result<Vec<rewards::Advantage>, run::Error> {
                    SESSION.with(|session| adapter::normalize(session, &batch))
                }
                fn save() -> Vec<u8> {
                    SESSION.with(|session| adapter::save(session))
                }
                fn restore(state: Vec<u8>) -> Result<(), run::Error> {
                    SESSION.with(|session| adapter::restore(session, &state))
                }
            }

            impl tracking::exports::espalier::plugin::tracking::Guest for Component {
                fn observe(drifts: Vec<rewards::Drift>) {
                    SESSION.with(|session| adapter::observe(session, &drifts))
                }
                fn prompt_weights(prompts: Vec<u64>) -> Vec<f64> {
                    SESSION.with(|session| adapter::prompt_weights(session, &prompts))
                }
            }

    described::export_described!(Component with_types_in $crate::guest::described);
    normalizer::export_normalizer!(Component with_types_in $crate::guest::normalizer);
    tracking::export_tracking!(Component with_types_in $crate::guest::tracking);
        };
    };
    (tasks: $plugin:ty) => {
        const _: fn() = $crate::guest::is_tasks::<$plugin>;

        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code, missing_docs, clippy::all)]
        const _: () = {
            use $crate::guest::{
                described, options, rewards, run, tasks, tasks_adapter as adapter,
            };

            struct Component;

            ::std::thread_local! {
                static SESSION: adapter::Session<$plugin> = adapter::Session::default();
            }

            impl described::exports::espalier::plugin::plugin::Guest for Component {
                fn describe() -> $crate::guest::Description {
                    adapter::describe::<$plugin>($crate::__manifest!())
                }
            }

            impl tasks::exports::espalier::plugin::tasks::Guest for Component {
                fn start(
                    info: run::RunInfo,
                    settings: Vec<options::Setting>,
                ) -> Result<(), run::Error> {
                    SESSION.with(|session| adapter::start(session, &info, &settings))
                }
                fn spec() -> rewards::TaskSpec {
                    SESSION.with(|session| adapter::spec(session))
                }
                fn splits() -> Vec<tasks::exports::espalier::plugin::tasks::Split> {
                    SESSION.with(|session| adapter::splits(session))
                }
                fn prompts(split: String, ids: Vec<u64>) -> Vec<rewards::Prompt> {
                    SESSION.with(|session| adapter::prompts(session, &split, &ids))
                }
                fn verify(
                    responses: Vec<tasks::exports::espalier::plugin::tasks::Response>,
                ) -> Vec<rewards::Verdict> {
                    SESSION.with(|session| adapter::verify(session, responses))
                }
                fn save() -> Vec<u8> {
                    SESSION.with(|session| adapter::save(session))
                }
                fn restore(state: Vec<u8>) -> Result<(), run::Error> {
                    SESSION.with(|session| adapter::restore(session, &state))
                }
            }

    described::export_described!(Component with_types_in $crate::guest::described);
    tasks::export_tasks!(Component with_types_in $crate::guest::tasks);
        };
    };
    (mdp: $plugin:ty) => {
        const _: fn() = $crate::guest::is_mdp::<$plugin>;

        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code, missing_docs, clippy::all)]
        const _: () = {
            use $crate::guest::{control, described, mdp, mdp_adapter as adapter, options, run};

            struct Component;

            ::std::thread_local! {
                static SESSION: adapter::Session<$plugin> = adapter::Session::default();
            }

            impl described::exports::espalier::plugin::plugin::Guest for Component {
                fn describe() -> $crate::guest::Description {
                    adapter::describe::<$plugin>($crate::__manifest!())
                }
            }

            impl mdp::exports::espalier::plugin::mdp::Guest for Component {
                fn start(
                    info: run::RunInfo,
                    settings: Vec<options::Setting>,
                ) -> Result<(), run::Error> {
                    SESSION.with(|session| adapter::start(session, &info, &settings))
                }
                fn spec() -> control::MdpSpec {
                    SESSION.with(|session| adapter::spec(session))
                }
                fn reset(n: u32, key: Vec<u64>) -> Vec<f64> {
                    SESSION.with(|session| adapter::reset(session, n, &key))
                }
                fn step(actions: Vec<f64>) -> control::Transition {
                    SESSION.with(|session| adapter::step(session, &actions))
                }
                fn save() -> Vec<u8> {
                    SESSION.with(|session| adapter::save(session))
                }
                fn restore(state: Vec<u8>) -> Result<(), run::Error> {
                    SESSION.with(|session| adapter::restore(session, &state))
                }
            }

    described::export_described!(Component with_types_in $crate::guest::described);
    mdp::export_mdp!(Component with_types_in $crate::guest::mdp);
        };
    };
    (architecture: $plugin:ty) => {
        const _: fn() = $crate::guest::is_architecture::<$plugin>;

        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code, missing_docs, clippy::all)]
        const _: () = {
            use $crate::guest::{
                architecture, architecture_adapter as adapter, described, options, run,
            };

            struct Component;

            ::std::thread_local! {
                static SESSION: adapter::Session<adapter::Built<$plugin>> = adapter::Session::default();
            }

            impl described::exports::espalier::plugin::plugin::Guest for Component {
                fn describe() -> $crate::guest::Description {
                    adapter::describe::<$plugin>($crate::__manifest!())
                }
            }

            impl architecture::exports::espalier::plugin::architecture::Guest for Component {
                fn start(
                    info: run::RunInfo,
                    settings: Vec<options::Setting>,
                ) -> Result<(), run::Error> {
                    SESSION.with(|session| adapter::start(session, &info, &settings))
                }
                fn build(
                    weights: &adapter::RawSet,
                    inputs: Vec<adapter::RawField>,
                    outputs: u32,
                ) -> Result<Vec<adapter::RawLayer>, run::Error> {
                    SESSION.with(|session| adapter::build(session, weights, inputs, outputs))
                }
                fn forward(
                    weights: &adapter::RawSet,
                    inputs: Vec<adapter::RawNamed>,
                    pass: adapter::RawPass,
                ) -> adapter::RawForward {
                    SESSION.with(|session| adapter::forward(session, weights, inputs, pass))
                }
                fn loss(
                    weights: &adapter::RawSet,
                    batch: $crate::guest::RawBatch,
                    pass: adapter::RawPass,
                ) -> Option<$crate::guest::RawTensor> {
                    SESSION.with(|session| adapter::loss(session, weights, batch, pass))
                }
            }

    described::export_described!(Component with_types_in $crate::guest::described);
    architecture::export_architecture!(Component with_types_in $crate::guest::architecture);
        };
    };
    (tuner: $plugin:ty) => {
        const _: fn() = $crate::guest::is_tuner::<$plugin>;

        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code, missing_docs, clippy::all)]
        const _: () = {
            use tuner::exports::espalier::plugin::tuning;
            use $crate::guest::{described, options, run, tuner, tuner_adapter as adapter};

            struct Component;

            ::std::thread_local! {
                static SESSION: adapter::Session<$plugin> = adapter::Session::default();
            }

            impl described::exports::espalier::plugin::plugin::Guest for Component {
                fn describe() -> $crate::guest::Description {
                    adapter::describe::<$plugin>($crate::__manifest!())
                }
            }

            impl tuning::Guest for Component {
                fn start(
                    info: run::RunInfo,
                    settings: Vec<options::Setting>,
                    space: Vec<tuning::KnobInfo>,
                    members: u32,
                ) -> Result<(), run::Error> {
                    SESSION
                        .with(|session| adapter::start(session, &info, &settings, &space, members))
                }
                fn propose() -> Vec<Vec<options::Setting>> {
                    SESSION.with(|session| adapter::propose(session))
                }
                fn decide(members: Vec<tuning::MemberReport>) -> Vec<tuning::Change> {
                    SESSION.with(|session| adapter::decide(session, &members))
                }
                fn save() -> Vec<u8> {
                    SESSION.with(|session| adapter::save(session))
                }
                fn restore(state: Vec<u8>) -> Result<(), run::Error> {
                    SESSION.with(|session| adapter::restore(session, &state))
                }
            }

    described::export_described!(Component with_types_in $crate::guest::described);
    tuner::export_tuner!(Component with_types_in $crate::guest::tuner);
        };
    };
    (searcher: $plugin:ty) => {
        const _: fn() = $crate::guest::is_searcher::<$plugin>;

        #[cfg(target_family = "wasm")]
        #[allow(unsafe_code, missing_docs, clippy::all)]
        const _: () = {
            use $crate::guest::{described, options, run, searcher, searcher_adapter as adapter};

            struct Component;

            ::std::thread_local! {
                static SESSION: adapter::Session<$plugin> = adapter::Session::default();
            }

            impl described::exports::espalier::plugin::plugin::Guest for Component {
                fn describe() -> $crate::guest::Description {
                    adapter::describe::<$plugin>($crate::__manifest!())
                }
            }

            impl searcher::exports::espalier::plugin::searching::Guest for Component {
                fn start(
                    info: run::RunInfo,
                    settings: Vec<options::Setting>,
                ) -> Result<(), run::Error> {
                    SESSION.with(|session| adapter::start(session, &info, &settings))
                }
                fn step(
                    at: run::StepInfo,
                ) -> searcher::exports::espalier::plugin::searching::SearchReport {
                    SESSION.with(|session| adapter::step(session, &at))
                }
                fn save() -> Vec<u8> {
                    SESSION.with(|session| adapter::save(session))
                }
                fn restore(state: Vec<u8>) -> Result<(), run::Error> {
                    SESSION.with(|session| adapter::restore(session, &state))
                }
            }

    described::export_described!(Component with_types_in $crate::guest::described);
    searcher::export_searcher!(Component with_types_in $crate::guest::searcher);
        };
    };
}

/// Name, version and description of the crate that expands it.
#[doc(hidden)]
#[macro_export]
macro_rules! __manifest {
    () => {
        $crate::guest::Manifest {
            name: ::core::env!("CARGO_PKG_NAME"),
            version: ::core::env!("CARGO_PKG_VERSION"),
            summary: ::core::env!("CARGO_PKG_DESCRIPTION"),
        }
    };
}
