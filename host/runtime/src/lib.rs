//! Loads, limits and schedules plugins; owns parameters, data, runs and the registry. Knows no terminal.
mod cache;
pub mod checkpoint;
pub mod component;
pub mod data;
pub mod diagnostic;
mod document;
pub mod events;
pub mod folder;
pub mod host;
pub mod metrics;
pub mod model;
pub mod options;
pub mod parameters;
pub mod plan;
pub mod plugin_build;
pub mod registry;
pub mod run;
pub mod runfile;
