//! Derive macro for plugin options.
