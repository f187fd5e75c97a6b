//! `espalier.lock`: which versions and digests the runs of a folder resolved to.
//!
//! As cargo does it: a run takes the versions of the lock where the registry still has them, writes down what it resolved,
//! and with `--locked` refuses to differ. A published version whose digest changed is refused in any case. The lock in a
//! run's own folder (`folder`) is another thing: it records one run, this one serves the next.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::diagnostic::Diagnostic;
use crate::plan::Slot;
use crate::registry::{self, Entry, Resolved, Source};
use crate::store;

/// The only format of a lock that this host reads.
const SCHEMA: u64 = 1;

/// The file's name, beside a run file.
pub const FILE_NAME: &str = "espalier.lock";

/// What the runs of a folder resolved to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockFile {
    schema: u64,
    /// The plugins, by name.
    #[serde(default, rename = "plugin")]
    pub plugins: Vec<Pin>,
}

/// A plugin, exactly.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// Name in the registry.
    pub name: String,
    /// Version in the registry.
    pub version: String,
    /// Slot.
    pub slot: Slot,
    /// SHA-256 of the component.
    pub sha256: String,
    /// Where it came from, as seen from the lock's folder: `path ...`, `file ...` or `from ...`.
    pub source: String,
}

impl Pin {
    fn of(entry: &Entry, resolved: &Resolved, folder: &Path) -> Pin {
        let named = |file: &Path| registry::named_from(file, folder);
        let source = match &entry.source {
            Source::Path(path) => format!("path {}", named(path)),
            Source::File { file, .. } => format!("file {}", named(file)),
            Source::Fetched { from, .. } if crate::fetch::is_address(from) => {
                format!("from {from}")
            }
            Source::Fetched { from, .. } => format!("from {}", named(Path::new(from))),
        };
        Pin {
            name: entry.name.clone(),
            version: entry.version.clone(),
            slot: entry.slot,
            sha256: resolved.sha256.clone(),
            source,
        }
    }

    /// True if its bytes follow from a source that may change under the same version.
    fn is_source(&self) -> bool {
        self.source.starts_with("path ")
    }

    fn facts(&self) -> String {
        format!(
            "{} {}, {}\nsha256 {}\n{}",
            self.name, self.version, self.slot, self.sha256, self.source
        )
    }
}

/// The lock of a run file.
pub fn beside(run_file: &Path) -> PathBuf {
    run_file.with_file_name(FILE_NAME)
}

impl Default for LockFile {
    fn default() -> Self {
        LockFile {
            schema: SCHEMA,
            plugins: Vec::new(),
        }
    }
}

impl LockFile {
    /// Reads a lock; none if there is no such file.
    pub fn load(file: &Path) -> Result<Option<LockFile>, Diagnostic> {
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(Diagnostic::new("cannot read the lock")
                    .at(file.display().to_string())
                    .because_io(&error));
            }
        };
        let wrong = || {
            Diagnostic::new("this lock cannot be read")
                .at(file.display().to_string())
                .help("remove it, and the next run writes it anew")
        };
        let lock: LockFile = toml::from_str(&text)
            .map_err(|error| wrong().detail("because", error.message().to_string()))?;
        if lock.schema != SCHEMA {
            return Err(wrong()
                .expected(format!("schema {SCHEMA}"))
                .found(format!("schema {}", lock.schema)));
        }
        Ok(Some(lock))
    }

    /// The versions that it asks for, by name.
    pub fn versions(&self) -> BTreeMap<String, String> {
        let both = |pin: &Pin| (pin.name.clone(), pin.version.clone());
        self.plugins.iter().map(both).collect()
    }

    fn pin(&self, name: &str) -> Option<&Pin> {
        self.plugins.iter().find(|pin| pin.name == name)
    }
}

/// What a lock has to say of what a run resolved to: the lock as it should be now.
///
/// # Errors
/// A published version whose digest changed; with `locked`, any difference and a lock that is missing.
pub fn compare(
    file: &Path,
    before: Option<&LockFile>,
    resolved: &[(&Entry, Resolved)],
    locked: bool,
) -> Result<LockFile, Diagnostic> {
    let folder = file.parent().unwrap_or(Path::new(""));
    if locked && before.is_none() {
        return Err(Diagnostic::new("there is no lock to hold to")
            .at("--locked")
            .expected(file.display().to_string())
            .help("run once without --locked, look at the lock it writes, and keep it"));
    }
    let mut now = before.cloned().unwrap_or_default();
    for (entry, resolved) in resolved {
        let pin = Pin::of(entry, resolved, folder);
        let old = before.and_then(|lock| lock.pin(&pin.name));
        if let Some(old) = old
            && old.version == pin.version
            && old.sha256 != pin.sha256
            && !pin.is_source()
            && !old.is_source()
        {
            return Err(Diagnostic::new(format!(
                "plugin `{}` {} was changed since it was locked",
                pin.name, pin.version
            ))
            .at(file.display().to_string())
            .expected(format!("sha256 {}", old.sha256))
            .found(format!("sha256 {}", pin.sha256))
            .detail("registry", entry.place())
            .help("a published version never changes: find out who changed it; to take it as it is now, remove its table from the lock"));
        }
        if locked && old != Some(&pin) {
            let error = Diagnostic::new(format!("plugin `{}` is not as it was locked", pin.name))
                .at(file.display().to_string());
            let error = match old {
                Some(old) => error.expected(old.facts()),
                None => error.expected("no such plugin"),
            };
            return Err(error
                .found(pin.facts())
                .help("run without --locked to lock what there is now, or bring the old back"));
        }
        now.plugins.retain(|old| old.name != pin.name);
        now.plugins.push(pin);
    }
    now.plugins.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(now)
}

/// Writes a lock, whole or not at all.
pub fn write(file: &Path, lock: &LockFile) -> Result<(), Diagnostic> {
    let text = toml::to_string(lock)
        .map_err(|error| Diagnostic::new("the lock could not be written").because(&error))?;
    let head = "# What the runs of this folder resolved to. Written by espalier; keep it with the run files.\n";
    store::replace(file, format!("{head}{text}").as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn pin(version: &str, sha256: &str, source: &str) -> Pin {
        Pin {
            name: "snip".into(),
            version: version.into(),
            slot: Slot::Pruner,
            sha256: sha256.into(),
            source: source.into(),
        }
    }

    fn entry(version: &str, source: Source) -> Entry {
        Entry {
            name: "snip".into(),
            version: version.into(),
            slot: Slot::Pruner,
            summary: String::new(),
            interface: "0.1".into(),
            licence: "MIT".into(),
            paper: None,
            size: None,
            toolchain: None,
            source,
            key: None,
            signature: None,
            registry: "registry.toml".into(),
            line: 3,
            own: true,
            pinned: true,
        }
    }

    fn resolved(sha256: &str) -> Resolved {
        Resolved {
            bytes: Vec::new(),
            sha256: sha256.into(),
            path: PathBuf::new(),
            built: false,
        }
    }

    fn fetched() -> Source {
        Source::Fetched {
            from: "https://lab.example/x.wasm".into(),
            sha256: String::new(),
        }
    }

    fn held(
        before: Pin,
        version: &str,
        source: Source,
        locked: bool,
    ) -> Result<LockFile, Diagnostic> {
        let lock = LockFile {
            plugins: vec![before],
            ..LockFile::default()
        };
        let entry = entry(version, source);
        compare(
            Path::new("espalier.lock"),
            Some(&lock),
            &[(&entry, resolved("bb"))],
            locked,
        )
    }

    const FROM: &str = "from https://lab.example/x.wasm";

    #[test]
    fn a_published_version_that_changed_is_refused_with_both_digests() {
        let error = held(pin("1.0.0", "aa", FROM), "1.0.0", fetched(), false).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("sha256 aa") && text.contains("sha256 bb"),
            "{text}"
        );
    }

    #[test]
    fn another_version_or_changed_source_is_written_down_unless_locked() {
        let now = held(pin("1.0.0", "aa", FROM), "1.1.0", fetched(), false).unwrap();
        assert_eq!(now.plugins, [pin("1.1.0", "bb", FROM)]);
        let error = held(pin("1.0.0", "aa", FROM), "1.1.0", fetched(), true).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("snip 1.0.0") && text.contains("snip 1.1.0"),
            "{text}"
        );
        let source = || Source::Path("nowhere/snip".into());
        let path = "path nowhere/snip";
        held(pin("1.0.0", "aa", path), "1.0.0", source(), false).unwrap();
        held(pin("1.0.0", "aa", path), "1.0.0", source(), true).unwrap_err();
        held(pin("1.0.0", "bb", path), "1.0.0", source(), true).unwrap();
    }

    #[test]
    fn a_lock_is_read_as_it_was_written() {
        let lock = LockFile {
            plugins: vec![pin("1.0.0", "aa", FROM)],
            ..LockFile::default()
        };
        let file = std::env::temp_dir().join(format!("espalier-lock-{}", std::process::id()));
        write(&file, &lock).unwrap();
        assert_eq!(LockFile::load(&file).unwrap(), Some(lock));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(LockFile::load(&file).unwrap(), None);
    }
}
