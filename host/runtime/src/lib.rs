//! Loads, limits and schedules plugins; owns parameters, data, runs and the registry. Knows no terminal.
pub mod add;
mod cache;
pub mod checkpoint;
pub mod component;
pub mod conformance;
pub mod data;
pub mod diagnostic;
mod document;
pub mod events;
pub mod fetch;
pub mod folder;
pub mod host;
pub mod lock;
pub mod metrics;
pub mod model;
pub mod oci;
pub mod options;
pub mod parameters;
pub mod plan;
pub mod plugin_build;
mod population;
pub mod profile;
pub mod publish;
pub mod registry;
pub mod run;
pub mod runfile;
pub mod search;
pub mod store;
pub mod trust;
pub mod verify;

// The generated bindings name a crate `tracing` where they say which function of the interface is called. The
// profile listens there; the crate itself would bring a subscriber for every program that embeds this one.
extern crate self as tracing;
pub(crate) use profile::{Level, event, span};
