//! Whole runs inside the test's own process, in a folder of their own.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use espalier_runtime::diagnostic::Diagnostic;
use espalier_runtime::events::{Ending, Event, Finished};
use espalier_runtime::run::{self, RunOptions};
use espalier_runtime::runfile::{self, Overrides};

use crate::workspace;

/// A folder for run files and runs, removed with this value.
pub struct Lab {
    folder: PathBuf,
    registry: PathBuf,
}

impl Lab {
    /// A lab with the project's own registry; `name` keeps labs of one test program apart.
    ///
    /// # Panics
    /// If the folder cannot be made.
    pub fn new(name: &str) -> Lab {
        Self::with_registry(name, &workspace().join("registry.toml"))
    }

    /// A lab with the registry of the tests' own plugins.
    ///
    /// # Panics
    /// If the folder cannot be made.
    pub fn hostile(name: &str) -> Lab {
        Self::with_registry(name, &workspace().join("tests/guests/registry.toml"))
    }

    /// A lab with any registry.
    ///
    /// # Panics
    /// If the folder cannot be made.
    pub fn with_registry(name: &str, registry: &Path) -> Lab {
        let folder = std::env::temp_dir().join(format!("espalier-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        Lab {
            folder,
            registry: registry.to_path_buf(),
        }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The folder of a run.
    pub fn out(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Carries out a run file's text with `--set`-like overrides into the folder `name`; resumes if `resume`.
    ///
    /// # Panics
    /// If the run file cannot be written.
    pub fn run(
        &self,
        name: &str,
        file: &str,
        sets: &[(&str, &str)],
        resume: bool,
    ) -> (Result<Ending, Diagnostic>, Vec<Event>) {
        let path = self.folder.join("run.toml");
        std::fs::write(&path, file).expect("the run file");
        let overrides = Overrides {
            sets: sets
                .iter()
                .map(|(k, v)| (k.to_string(), v.to_string()))
                .collect(),
            ..Overrides::default()
        };
        let mut events: Vec<Event> = Vec::new();
        let (out, resume) = match resume {
            true => (None, Some(self.out(name))),
            false => (Some(self.out(name)), None),
        };
        let options = RunOptions {
            out,
            resume,
            registry: self.registry.clone(),
            cancel: Arc::new(AtomicBool::new(false)),
        };
        let result = runfile::load(&path, &overrides)
            .and_then(|plan| run::execute(&plan, &options, &mut events));
        (result, events)
    }

    /// A run that must finish.
    ///
    /// # Panics
    /// With the error, if it does not.
    pub fn finish(&self, name: &str, file: &str, sets: &[(&str, &str)]) -> (Finished, Vec<Event>) {
        match self.run(name, file, sets, false) {
            (Ok(Ending::Finished(finished)), events) => (finished, events),
            (Ok(other), _) => panic!("{other:?}"),
            (Err(error), _) => panic!("{error}"),
        }
    }

    /// The digest of a run's final parameters.
    ///
    /// # Panics
    /// If the run left no checkpoint.
    pub fn digest(&self, name: &str) -> [u8; 32] {
        let set = run::parameters_of(&self.out(name)).unwrap_or_else(|error| panic!("{error}"));
        set.content_digest().expect("a digest")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
