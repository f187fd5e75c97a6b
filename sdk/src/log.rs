//! Words and numbers for the reader of a run. The host adds step and plugin, and bounds the amount.

use crate::bindings::host::espalier::plugin::log as host;

/// A line for the author.
///
/// ```no_run
/// # use espalier_sdk::log;
/// # fn f(threshold: f64) {
/// log::debug(format!("threshold {threshold:.3e}"));
/// # }
/// ```
pub fn debug(text: impl AsRef<str>) {
    host::message(host::Level::Debug, text.as_ref());
}

/// A line for the reader.
///
/// ```no_run
/// # use espalier_sdk::log;
/// log::info("warm-up is over");
/// ```
pub fn info(text: impl AsRef<str>) {
    host::message(host::Level::Info, text.as_ref());
}

/// Something to look at.
///
/// ```no_run
/// # use espalier_sdk::log;
/// # fn f(skipped: usize) {
/// log::warn(format!("{skipped} groups had equal rewards"));
/// # }
/// ```
pub fn warn(text: impl AsRef<str>) {
    host::message(host::Level::Warn, text.as_ref());
}

/// A number, shown as this plugin's own word, apart from what the host measures.
///
/// ```no_run
/// # use espalier_sdk::log;
/// # fn f(entropy: f64) {
/// log::metric("entropy", entropy);
/// # }
/// ```
pub fn metric(name: &str, value: f64) {
    host::metric(name, value);
}

/// How far a long call has come.
///
/// ```no_run
/// # use espalier_sdk::log;
/// for block in 0..8 {
///     log::progress(block, 8);
/// }
/// ```
pub fn progress(done: u64, of: u64) {
    host::progress(done, of);
}
