//! What the end-to-end tests share: the built `espalier` command and the workspace's folders.

pub mod bench;
pub mod draw;
pub mod lab;
pub mod market;
pub mod normalizer;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The workspace's root.
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// The `espalier` command, built once for each test program in the profile of the tests themselves.
///
/// Cargo gives a test the path of its own package's programs only, and does not build those of others, so this
/// asks cargo; it answers at once when nothing has changed.
///
/// # Panics
/// If cargo cannot build it.
pub fn espalier() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let release = !cfg!(debug_assertions);
        let mut cargo = Command::new(env!("CARGO"));
        cargo
            .args([
                "build",
                "--quiet",
                // Not `--package`: by itself the package would get other features of shared dependencies than
                // `cargo test` has just built, and all of them would be compiled once more.
                "--bin",
                "espalier",
                "--message-format=json",
            ])
            .current_dir(workspace());
        if release {
            cargo.arg("--release");
        }
        let output = cargo
            .output()
            .unwrap_or_else(|error| panic!("cannot start cargo: {error}"));
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "cargo cannot build espalier:\n{errors}"
        );
        let messages = String::from_utf8_lossy(&output.stdout);
        let program = messages.lines().rev().find_map(|line| {
            let (_, rest) = line.split_once("\"executable\":\"")?;
            Some(PathBuf::from(rest.split('"').next()?))
        });
        program.unwrap_or_else(|| panic!("cargo does not say where espalier is:\n{messages}"))
    })
}
