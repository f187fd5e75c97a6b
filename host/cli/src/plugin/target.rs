//! What a command is about: a folder with a plugin's source, a component file, or a name in the registry.

use std::path::{Path, PathBuf};

use espalier_runtime::component;
use espalier_runtime::conformance::Setup;
use espalier_runtime::diagnostic::Diagnostic;
use espalier_runtime::events::Building;
use espalier_runtime::plugin_build;
use espalier_runtime::registry::{Registry, Source};

use super::open;
use crate::output::{self, Stream};

/// A component and where it came from.
pub struct Target {
    /// What the person called it, or the name of its folder.
    pub name: String,
    /// The component.
    pub bytes: Vec<u8>,
    /// Its file.
    pub file: PathBuf,
    /// The folder with its source, where there is one.
    pub folder: Option<PathBuf>,
    /// Whether it was compiled just now.
    pub built: bool,
}

fn said(building: &Building) {
    output::line(Stream::Error, &building.text);
}

impl Target {
    /// Finds it, and builds it where it is source.
    ///
    /// # Errors
    /// Nothing by that name, a folder that does not build, a file that can't be read.
    pub fn find(what: &str, registry: Option<PathBuf>) -> Result<Target, Diagnostic> {
        let path = Path::new(what);
        if path.is_dir() {
            return Self::of_folder(path);
        }
        if what.ends_with(".wasm") || path.is_file() {
            return Ok(Target {
                name: path
                    .file_stem()
                    .map_or(what.into(), |stem| stem.to_string_lossy().into()),
                bytes: component::read(path)?,
                file: path.to_path_buf(),
                folder: None,
                built: false,
            });
        }
        if what.contains(std::path::MAIN_SEPARATOR) {
            return Err(Diagnostic::new(format!("`{what}` is not there")).expected(
                "a folder with a plugin's source, a component file, or a name in the registry",
            ));
        }
        Self::of_registry(what, &open(registry)?)
    }

    /// Builds a folder's plugin.
    ///
    /// # Errors
    /// A folder that holds no plugin, or one that does not build.
    pub fn of_folder(folder: &Path) -> Result<Target, Diagnostic> {
        let shown = folder.display();
        let is_source = |name: &str| folder.join(name).is_file();
        if !is_source("Cargo.toml") && !is_source("pyproject.toml") {
            return Err(Diagnostic::new(format!("`{shown}` holds no plugin"))
                .expected(
                    "a folder with a Cargo.toml, or with a pyproject.toml for a plugin in Python",
                )
                .help("`espalier plugin new NAME --slot SLOT` makes one, or name its folder"));
        }
        let whole = folder
            .canonicalize()
            .unwrap_or_else(|_| folder.to_path_buf());
        let name = whole
            .file_name()
            .map_or("plugin".into(), |name| name.to_string_lossy().into_owned());
        let mut built = plugin_build::build(&[(name.as_str(), folder)], &mut said)?;
        let (_, built) = built
            .pop()
            .ok_or_else(|| Diagnostic::new(format!("`{shown}` gave no component")))?;
        Ok(Target {
            bytes: component::read(&built.file)?,
            name,
            file: built.file,
            folder: Some(folder.to_path_buf()),
            built: !built.fresh,
        })
    }

    fn of_registry(name: &str, registry: &Registry) -> Result<Target, Diagnostic> {
        let entry = registry.entry(name)?;
        let resolved = registry.resolve(&[entry], &mut said)?.pop();
        let resolved =
            resolved.ok_or_else(|| Diagnostic::new(format!("plugin `{name}` has no component")))?;
        let home = registry.file.parent().unwrap_or(Path::new(""));
        Ok(Target {
            name: name.to_string(),
            bytes: resolved.bytes,
            file: resolved.path,
            folder: match &entry.source {
                Source::Path(path) => Some(home.join(path)),
                _ => None,
            },
            built: resolved.built,
        })
    }

    /// What the conformance suite is told: by the file given, else by the folder's `conformance.toml`, else by the
    /// file that stands beside a component as `NAME.conformance.toml`.
    ///
    /// # Errors
    /// A file that can't be read or says what can't be.
    pub fn setup(&self, given: Option<&Path>) -> Result<Setup, Diagnostic> {
        match (given, &self.folder) {
            (Some(file), _) => Setup::load(file),
            (None, Some(folder)) => Setup::of_folder(folder),
            (None, None) => {
                let beside = self.file.with_extension("conformance.toml");
                match beside.is_file() {
                    true => Setup::load(&beside),
                    false => Ok(Setup::default()),
                }
            }
        }
    }
}
