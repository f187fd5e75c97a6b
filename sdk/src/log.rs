//! Words and numbers for the reader of a run. The host adds step and plugin, and bounds the amount.

use crate::bindings::host::espalier::plugin::log as host;

/// A line for the author.
pub fn debug(text: impl AsRef<str>) {
    host::message(host::Level::Debug, text.as_ref());
}

/// A line for the reader.
pub fn info(text: impl AsRef<str>) {
    host::message(host::Level::Info, text.as_ref());
}

/// Something to look at.
pub fn warn(text: impl AsRef<str>) {
    host::message(host::Level::Warn, text.as_ref());
}

/// A number, shown as this plugin's own word, apart from what the host measures.
pub fn metric(name: &str, value: f64) {
    host::metric(name, value);
}

/// How far a long call has come.
pub fn progress(done: u64, of: u64) {
    host::progress(done, of);
}
