//! The private folder of compiled components.
//!
//! Its content is machine code and runs with the host's rights. So the folder must belong to this user and be
//! closed to everybody else; where that can't be had, nothing is cached. Files are written whole or not at all.
#![allow(unsafe_code)] // `deserialize_file`: see the one use.

use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use wasmtime::Engine;
use wasmtime::component::Component;

/// The folder `name` in `$XDG_CACHE_HOME/espalier` or `~/.cache/espalier`, made with rights for this user alone;
/// `None` if it can't be trusted.
pub fn private_folder(name: &str) -> Option<PathBuf> {
    let base = match std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|p| p.is_absolute())
    {
        Some(base) => base,
        None => PathBuf::from(std::env::var_os("HOME")?).join(".cache"),
    };
    let folder = base.join("espalier").join(name);
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .ok()?;
    let about = std::fs::symlink_metadata(&folder).ok()?;
    let mine = std::fs::metadata("/proc/self")
        .map(|m| m.uid())
        .or_else(|_| std::fs::metadata(&base).map(|m| m.uid()))
        .ok()?;
    (about.is_dir() && about.uid() == mine && about.permissions().mode() & 0o077 == 0)
        .then_some(folder)
}

/// A compiled component from the folder; `None` if it is not there, not ours, or of another wasmtime.
pub fn load(engine: &Engine, path: &Path) -> Option<Component> {
    let about = std::fs::symlink_metadata(path).ok()?;
    let folder = std::fs::symlink_metadata(path.parent()?).ok()?;
    if !about.is_file() || about.uid() != folder.uid() || about.permissions().mode() & 0o077 != 0 {
        return None;
    }
    // SAFETY: the file was written by this program from `Component::serialize`, in a folder that
    // `private_folder` has just seen to belong to this user and to be closed to everybody else; its name holds
    // the digest of the component and of everything that the code depends on, and wasmtime checks version and
    // settings in the file's header again.
    unsafe { Component::deserialize_file(engine, path) }.ok()
}

/// Keeps compiled code, written to a temporary file first. A failure costs the next run some time.
pub fn store(path: &Path, code: &[u8]) {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&temporary)
        .and_then(|mut file| file.write_all(code).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        // Nothing to be done about a temporary file that can't be removed.
        let _ = std::fs::remove_file(&temporary);
    }
}
