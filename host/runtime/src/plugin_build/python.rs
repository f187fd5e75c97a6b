//! Builds plugins written in Python with componentize-py: interpreter, plugin and helper package become one
//! component.
//!
//! The interface and the helper package are inside this program, so an author needs nothing but
//! `pip install componentize-py`. Unlike cargo's, two builds of one source differ in some bytes (the
//! interpreter's memory is part of the component), so a component is built anew only when its sources have changed.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use super::{Built, SHOWN_LINES, last_lines};
use crate::component::sha256;
use crate::diagnostic::Diagnostic;
use crate::events::BuildStage;

/// The version that plugins are built and tested with.
const COMPONENTIZE_PY: &str = "0.25.1";

const PROGRAM: &str = "componentize-py";

/// Names the program where it is not on the PATH, as in a virtual environment.
const PROGRAM_VARIABLE: &str = "COMPONENTIZE_PY";

const HELPER: &str = include_str!("../../../../sdk/python/espalier.py");

macro_rules! interface {
    ($($file:literal),* $(,)?) => {
        [$(($file, include_str!(concat!("../../../../wit/", $file)))),*]
    };
}

/// The files of `wit/`.
const INTERFACE: [(&str, &str); 17] = interface![
    "architecture.wit",
    "auditing.wit",
    "autograd.wit",
    "capture.wit",
    "data.wit",
    "fft.wit",
    "log.wit",
    "model.wit",
    "parameters.wit",
    "random.wit",
    "rewards.wit",
    "rollouts.wit",
    "searching.wit",
    "slots.wit",
    "tensors.wit",
    "transforming.wit",
    "tuning.wit",
];

const WORLDS: [&str; 6] = [
    "trainer",
    "pruner",
    "normalizer",
    "normalizer-tracking",
    "environment-tasks",
    "environment-mdp",
];

/// A plugin's `pyproject.toml`, as far as it matters here.
#[derive(Deserialize)]
struct Project {
    tool: Option<Tools>,
}

#[derive(Deserialize)]
struct Tools {
    espalier: Option<Tool>,
}

/// `[tool.espalier]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Tool {
    /// The module that holds the plugin: its file's name without `.py`.
    module: String,
    /// The world of `wit/` that it fills.
    world: String,
}

/// Whether a folder holds a plugin in Python: a `pyproject.toml` and no `Cargo.toml`.
pub(super) fn is_python(folder: &Path) -> bool {
    folder.join("pyproject.toml").is_file() && !folder.join("Cargo.toml").exists()
}

/// Builds the plugin in `folder`, if its sources are not those of the component that lies there already.
pub(super) fn build(
    name: &str,
    folder: &Path,
    say: &mut dyn FnMut(BuildStage, String),
) -> Result<Built, Diagnostic> {
    let tool = read(name, folder)?;
    let output = folder.join("build");
    let file = output.join(format!("{}.wasm", tool.module));
    let stamp = output.join(format!("{}.stamp", tool.module));
    let unwritable = |error: std::io::Error| {
        Diagnostic::new(format!("plugin `{name}` cannot be built"))
            .at(output.display().to_string())
            .because_io(&error)
    };
    // Two runs that begin at once must not build into each other; the second finds what the first has made.
    let lock = fs::create_dir_all(&output)
        .and_then(|()| fs::File::create(output.join("lock")))
        .map_err(unwritable)?;
    lock.lock().map_err(unwritable)?;
    let wanted = fingerprint(name, folder, &tool)?;
    if file.is_file() && fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(Built { file, fresh: true });
    }
    say(
        BuildStage::Compiling,
        format!("building plugin {name}: {PROGRAM} (about 10 seconds)"),
    );
    // Without the stamp, a build that ends in the middle is not taken for a whole one.
    let _ = fs::remove_file(&stamp);
    let sdk = output.join("sdk");
    lay_out(&sdk).map_err(unwritable)?;
    let partial = output.join(format!("{}.wasm.tmp", tool.module));
    run(name, folder, |command| {
        command
            .arg("-d")
            .arg(sdk.join("wit"))
            .args(["-w", &tool.world, "componentize", "--stub-wasi", "-p"])
            .arg(&sdk)
            .arg("-p")
            .arg(folder)
            .arg("-o")
            .arg(&partial)
            .arg(&tool.module)
    })?;
    // Typed stubs of the interface, for editors only.
    let typings = output.join("typings");
    let _ = fs::remove_dir_all(&typings);
    run(name, folder, |command| {
        command
            .arg("-d")
            .arg(sdk.join("wit"))
            .args(["-w", &tool.world, "bindings"])
            .arg(&typings)
    })?;
    fs::rename(&partial, &file).map_err(unwritable)?;
    fs::write(&stamp, wanted).map_err(unwritable)?;
    Ok(Built { file, fresh: false })
}

fn read(name: &str, folder: &Path) -> Result<Tool, Diagnostic> {
    let file = folder.join("pyproject.toml");
    let wrong = |what: String| {
        Diagnostic::new(format!("plugin `{name}` cannot be built: {what}"))
            .at(file.display().to_string())
            .expected(format!(
                "[tool.espalier] with module = \"...\" and world = \"{}\"",
                WORLDS.join("\" or \"")
            ))
    };
    let text = fs::read_to_string(&file)
        .map_err(|error| wrong("its pyproject.toml cannot be read".into()).because_io(&error))?;
    let project: Project = toml::from_str(&text)
        .map_err(|error| wrong("its pyproject.toml is wrong".into()).because(&error))?;
    let tool = project
        .tool
        .and_then(|tools| tools.espalier)
        .ok_or_else(|| wrong("its pyproject.toml has no [tool.espalier]".into()))?;
    if !WORLDS.contains(&tool.world.as_str()) {
        return Err(
            wrong("there is no such world".into()).found(format!("world = \"{}\"", tool.world))
        );
    }
    if !folder.join(format!("{}.py", tool.module)).is_file() {
        return Err(wrong("its module is not there".into()).found(format!(
            "module = \"{0}\", and no {0}.py beside it",
            tool.module
        )));
    }
    Ok(tool)
}

/// Names and digests of everything the component is made from.
fn fingerprint(name: &str, folder: &Path, tool: &Tool) -> Result<String, Diagnostic> {
    let mut text = format!("{PROGRAM} {COMPONENTIZE_PY}\nworld {}\n", tool.world);
    let mut line = |name: &str, bytes: &[u8]| {
        let _ = writeln!(text, "{} {name}", sha256(bytes));
    };
    line("espalier.py", HELPER.as_bytes());
    for (file, content) in INTERFACE {
        line(file, content.as_bytes());
    }
    for file in sources(folder).map_err(|error| {
        Diagnostic::new(format!("the source of plugin `{name}` cannot be read"))
            .at(folder.display().to_string())
            .because_io(&error)
    })? {
        let bytes = fs::read(folder.join(&file)).map_err(|error| {
            Diagnostic::new(format!("the source of plugin `{name}` cannot be read"))
                .at(file.display().to_string())
                .because_io(&error)
        })?;
        line(&file.display().to_string(), &bytes);
    }
    Ok(text)
}

/// The folder's Python files, sorted; not those below `build`, of tests, or hidden ones.
fn sources(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(inner) = folders.pop() {
        for entry in fs::read_dir(folder.join(&inner))? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(text) = name.to_str() else { continue };
            let path = inner.join(text);
            let kind = entry.file_type()?;
            if kind.is_dir() {
                let skipped = text.starts_with('.')
                    || ["build", "tests", "__pycache__", "venv"].contains(&text);
                if !skipped {
                    folders.push(path);
                }
            } else if kind.is_file() && text.ends_with(".py") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Writes the interface and the helper package where componentize-py can read them.
fn lay_out(sdk: &Path) -> std::io::Result<()> {
    let wit = sdk.join("wit");
    // Files of an earlier version must not be read too.
    let _ = fs::remove_dir_all(sdk);
    fs::create_dir_all(&wit)?;
    fs::write(sdk.join("espalier.py"), HELPER)?;
    for (file, content) in INTERFACE {
        fs::write(wit.join(file), content)?;
    }
    Ok(())
}

fn run(
    name: &str,
    folder: &Path,
    arguments: impl FnOnce(&mut Command) -> &mut Command,
) -> Result<(), Diagnostic> {
    let program = std::env::var_os(PROGRAM_VARIABLE).unwrap_or_else(|| PROGRAM.into());
    let mut command = Command::new(&program);
    arguments(&mut command)
        .current_dir(folder)
        .env_remove("PYTHONPATH")
        .env("PYTHONHASHSEED", "0")
        .stdin(Stdio::null());
    let output = command.output().map_err(|error| {
        Diagnostic::new(format!(
            "plugin `{name}` is written in Python, and `{}` cannot be started",
            Path::new(&program).display()
        ))
        .because_io(&error)
        .help(format!(
            "pip install {PROGRAM}=={COMPONENTIZE_PY}; where it is not on the PATH, name it in {PROGRAM_VARIABLE}"
        ))
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = format!(
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout).trim(),
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Err(Diagnostic::new(format!("plugin `{name}` does not build"))
        .at(folder.display().to_string())
        .detail(PROGRAM, last_lines(said.trim(), SHOWN_LINES)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_file_of_the_interface_is_inside_this_program() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../wit");
        let mut files: Vec<String> = fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.ends_with(".wit"))
            .collect();
        files.sort();
        assert_eq!(files, INTERFACE.map(|(file, _)| file.to_string()));
    }
}
