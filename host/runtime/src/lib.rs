//! Loads, limits and schedules plugins; owns parameters, data, runs and the registry. Knows no terminal.
pub mod diagnostic;
mod document;
pub mod events;
pub mod options;
pub mod plan;
pub mod plugin_build;
pub mod registry;
pub mod runfile;
