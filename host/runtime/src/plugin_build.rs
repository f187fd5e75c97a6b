//! Builds plugins from source: `cargo build --release --target wasm32-wasip2`, the target installed first if
//! it is missing.
//!
//! Promise: the component's bytes depend on the source, the lock file and the compiler, not on the folder it
//! is built in nor on what is built beside it. So paths are remapped, flags of the user's environment do not
//! reach the component, and each plugin has an invocation of its own (cargo unifies the features of packages
//! that are built together). Line tables stay in, because a trap names the plugin's own file and line.
//!
//! A folder with a `pyproject.toml` instead is a plugin in Python, and `python` builds it.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::diagnostic::Diagnostic;
use crate::events::{BuildStage, Building};

mod python;

/// The target of every plugin.
pub const TARGET: &str = "wasm32-wasip2";

/// Most lines of cargo's output that an error shows.
const SHOWN_LINES: usize = 40;

/// A component that cargo has built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Built {
    /// The component.
    pub file: PathBuf,
    /// True if nothing had changed, so nothing was compiled.
    pub fresh: bool,
}

/// Builds each folder's package, in order, and gives name and component of each.
/// `progress` hears of everything that takes time; nothing is said when all is up to date.
pub fn build<'a>(
    plugins: &[(&'a str, &Path)],
    progress: &mut dyn FnMut(&Building),
) -> Result<Vec<(&'a str, Built)>, Diagnostic> {
    let names: Vec<String> = plugins.iter().map(|(name, _)| name.to_string()).collect();
    let mut said = false;
    let mut say = |stage: BuildStage, text: String| {
        said = true;
        progress(&Building {
            plugins: names.clone(),
            stage,
            text,
        });
    };
    let mut ready: Vec<PathBuf> = Vec::new();
    let mut built = Vec::with_capacity(plugins.len());
    for (name, folder) in plugins {
        if python::is_python(folder) {
            let folder = folder
                .canonicalize()
                .map_err(|error| missing_source(name, folder, &error))?;
            built.push((*name, python::build(name, &folder, &mut say)?));
            continue;
        }
        let package = Package::find(name, folder)?;
        if !ready.contains(&package.workspace) {
            install_target(&package.workspace, &mut say)?;
            ready.push(package.workspace.clone());
        }
        built.push((*name, cargo_build(name, &package, &mut say)?));
    }
    if said {
        let new = built.iter().filter(|(_, built)| !built.fresh);
        let new: Vec<&str> = new.map(|(name, _)| *name).collect();
        let text = if new.is_empty() {
            "plugins are up to date".into()
        } else {
            format!("built {}", new.join(", "))
        };
        progress(&Building {
            plugins: names,
            stage: BuildStage::Done,
            text,
        });
    }
    Ok(built)
}

/// A plugin's cargo package.
struct Package {
    manifest: PathBuf,
    /// The folder that cargo runs in, and whose lock file holds: the workspace's, or the package's own.
    workspace: PathBuf,
}

impl Package {
    fn find(name: &str, folder: &Path) -> Result<Self, Diagnostic> {
        let unusable = |error: &std::io::Error| missing_source(name, folder, error);
        let folder = folder.canonicalize().map_err(|error| unusable(&error))?;
        let manifest = folder.join("Cargo.toml");
        std::fs::metadata(&manifest).map_err(|error| unusable(&error))?;
        let holds = |folder: &&Path| {
            let text = std::fs::read_to_string(folder.join("Cargo.toml")).unwrap_or_default();
            text.parse::<toml::Table>()
                .is_ok_and(|manifest| manifest.contains_key("workspace"))
        };
        let workspace = folder
            .ancestors()
            .find(holds)
            .unwrap_or(&folder)
            .to_path_buf();
        Ok(Package {
            manifest,
            workspace,
        })
    }
}

fn missing_source(name: &str, folder: &Path, error: &std::io::Error) -> Diagnostic {
    Diagnostic::new(format!("the source of plugin `{name}` is not there"))
        .at(folder.display().to_string())
        .expected("a folder with a Cargo.toml, or with a pyproject.toml for a plugin in Python")
        .because_io(error)
}

/// A command that fails to start for want of its program is an error that says which program and what it is for.
fn missing_program(program: &str, error: &std::io::Error) -> Diagnostic {
    if error.kind() == std::io::ErrorKind::NotFound {
        Diagnostic::new(format!("a plugin has to be built, and `{program}` is not on this machine's PATH"))
            .help("install Rust from https://rustup.rs, or use a registry whose plugins are component files")
    } else {
        Diagnostic::new(format!("cannot start `{program}`")).because(error)
    }
}

/// Makes sure that the compiler which holds in `folder` has the target's standard library.
fn install_target(
    folder: &Path,
    say: &mut dyn FnMut(BuildStage, String),
) -> Result<(), Diagnostic> {
    let rustc = Command::new("rustc")
        .args(["--print", "target-libdir", "--target", TARGET])
        .current_dir(folder)
        .stderr(Stdio::null())
        .output()
        .map_err(|error| missing_program("rustc", &error))?;
    let libdir = String::from_utf8_lossy(&rustc.stdout).trim().to_string();
    if rustc.status.success() && !libdir.is_empty() && Path::new(&libdir).is_dir() {
        return Ok(());
    }
    say(
        BuildStage::InstallingTarget,
        format!("installing the Rust target {TARGET} (rustup target add {TARGET})"),
    );
    let help = format!("install the target by hand: rustup target add {TARGET}");
    let rustup = Command::new("rustup")
        .args(["target", "add", TARGET])
        .current_dir(folder)
        .output();
    let rustup = rustup.map_err(|error| {
        Diagnostic::new(format!(
            "the Rust target {TARGET} is missing, and rustup is not there to install it"
        ))
        .because(&error)
        .help(format!(
            "install the standard library of {TARGET} as your Rust was installed"
        ))
    })?;
    if rustup.status.success() {
        return Ok(());
    }
    let output = String::from_utf8_lossy(&rustup.stderr);
    Err(
        Diagnostic::new(format!("the Rust target {TARGET} cannot be installed"))
            .detail("rustup", last_lines(output.trim(), SHOWN_LINES))
            .help(help),
    )
}

/// What cargo says on standard output with `--message-format=json`, as far as it matters here.
#[derive(Deserialize)]
struct Message {
    reason: String,
    #[serde(default)]
    manifest_path: PathBuf,
    #[serde(default)]
    filenames: Vec<PathBuf>,
    #[serde(default)]
    fresh: bool,
}

fn cargo_build(
    name: &str,
    package: &Package,
    say: &mut dyn FnMut(BuildStage, String),
) -> Result<Built, Diagnostic> {
    let mut command = Command::new("cargo");
    command
        // `cargo build` drops link-time optimisation without a word where a library is an rlib as well, and
        // the component is four times the size.
        .args([
            "rustc",
            "--release",
            "--lib",
            "--crate-type",
            "cdylib",
            "--target",
            TARGET,
            "--message-format=json-render-diagnostics",
        ])
        .arg("--manifest-path")
        .arg(&package.manifest)
        .current_dir(&package.workspace)
        .env("CARGO_TERM_COLOR", "never")
        .env("CARGO_TERM_PROGRESS_WHEN", "never")
        .env("CARGO_TERM_QUIET", "false")
        .env("CARGO_TERM_VERBOSE", "false")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "line-tables-only")
        .env("CARGO_PROFILE_RELEASE_STRIP", "none")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "2")
        .env("CARGO_PROFILE_RELEASE_LTO", "true")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            remapped_paths(&package.workspace).join("\x1f"),
        )
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_BUILD_TARGET")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command
        .spawn()
        .map_err(|error| missing_program("cargo", &error))?;
    let broken = || Diagnostic::new(format!("cargo went silent while it built plugin `{name}`"));
    let stdout = child.stdout.take().ok_or_else(broken)?;
    let stderr = child.stderr.take().ok_or_else(broken)?;

    // Messages are small, but both pipes must be drained at once: a full one would stop cargo.
    let messages = std::thread::spawn(move || read_all(stdout));
    let mut output = Vec::new();
    for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
        let line = String::from_utf8_lossy(&line).trim_end().to_string();
        match line.trim_start().split_once(' ') {
            Some(("Compiling", crate_name)) => {
                say(
                    BuildStage::Crate,
                    format!("building plugin {name}: {}", without_path(crate_name)),
                );
            }
            Some(("Blocking", what)) => {
                let what = what.trim_start_matches("waiting for ");
                say(
                    BuildStage::Compiling,
                    format!("waiting for another cargo: {what}"),
                );
            }
            Some(("Downloading" | "Updating" | "Locking", _)) => {
                say(
                    BuildStage::Compiling,
                    format!("building plugin {name}: {}", line.trim().to_lowercase()),
                );
            }
            Some(("Downloaded" | "Finished" | "Adding", _)) => {}
            _ => output.push(line),
        }
    }
    let status = child
        .wait()
        .map_err(|error| Diagnostic::new("cannot wait for cargo").because(&error))?;
    let messages = messages.join().unwrap_or_default();
    if !status.success() {
        return Err(Diagnostic::new(format!("plugin `{name}` does not build"))
            .at(package.manifest.display().to_string())
            .detail("cargo", first_error(&output))
            .help(format!(
                "to see all of it: cargo build --release --target {TARGET} --manifest-path {}",
                package.manifest.display()
            )));
    }
    let is_component = |file: &&PathBuf| {
        file.extension()
            .is_some_and(|extension| extension == "wasm")
    };
    for line in messages.lines() {
        let Ok(message) = serde_json::from_str::<Message>(line) else {
            continue;
        };
        if message.reason != "compiler-artifact" || message.manifest_path != package.manifest {
            continue;
        }
        if let Some(file) = message.filenames.iter().find(is_component) {
            return Ok(Built {
                file: file.clone(),
                fresh: message.fresh,
            });
        }
    }
    Err(
        Diagnostic::new(format!("the package of plugin `{name}` gives no component"))
            .at(package.manifest.display().to_string())
            .expected("[lib] with crate-type = [\"cdylib\"], or [\"cdylib\", \"rlib\"]"),
    )
}

fn read_all(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    // What was read before an error still counts: cargo's exit status says whether it went well.
    let _ = pipe.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Flags that take the machine's folders out of the component. Later ones win where several match.
fn remapped_paths(workspace: &Path) -> Vec<String> {
    let home = std::env::var_os("HOME")
        .map(PathBuf::from)
        .unwrap_or_default();
    let folder = |variable: &str, usual: &str| {
        std::env::var_os(variable).map_or_else(|| home.join(usual), PathBuf::from)
    };
    let remap = |from: &Path, to: &str| format!("--remap-path-prefix={}={to}", from.display());
    vec![
        remap(&folder("RUSTUP_HOME", ".rustup"), "/rustup"),
        remap(&folder("CARGO_HOME", ".cargo"), "/cargo"),
        remap(workspace, "."),
    ]
}

/// `wit-bindgen v0.61.0 (/path)` without the path.
fn without_path(crate_name: &str) -> &str {
    crate_name.split(" (").next().unwrap_or(crate_name)
}

/// cargo's output from the first error on, shortened.
fn first_error(output: &[String]) -> String {
    let start = output
        .iter()
        .position(|line| line.starts_with("error"))
        .unwrap_or(0);
    let shown: Vec<&str> = output[start..]
        .iter()
        .map(String::as_str)
        .filter(|line| !line.is_empty())
        .collect();
    let mut text = shown
        .iter()
        .take(SHOWN_LINES)
        .copied()
        .collect::<Vec<_>>()
        .join("\n");
    if shown.len() > SHOWN_LINES {
        text.push_str(&format!(
            "\n... and {} lines more",
            shown.len() - SHOWN_LINES
        ));
    }
    text
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}
