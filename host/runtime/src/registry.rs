//! The catalogue of plugins that a project may load: `registry.toml`.
//!
//! A plugin is named by a run file and looked up here. Its component comes from a folder with its source, which is
//! built when needed (`plugin_build`), from a file, or from elsewhere through the store (`store`, `fetch`). Before its
//! bytes are used, who vouches for the entry is checked (`trust`), then the digest. docs/registry.md is the
//! reference for people; `read` has the format, `edit` writes it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::component;
use crate::diagnostic::{Diagnostic, nearest, one_of};
use crate::events::Building;
use crate::fetch;
use crate::plan::{PluginPlan, Slot};
use crate::plugin_build;
use crate::store::{self, Store};
use crate::trust::{Policy, Statement};

pub mod edit;
mod read;

/// The file's name, looked for from a run file's folder upwards.
pub const FILE_NAME: &str = "registry.toml";

/// A registry file with those that it includes, read and checked.
#[derive(Clone, Debug)]
pub struct Registry {
    /// The file.
    pub file: PathBuf,
    /// Its plugins in the order of the file, then those of the included ones.
    pub entries: Vec<Entry>,
    /// Who may vouch for them.
    pub policy: Policy,
    /// Versions that a lock asks for, by name.
    preferred: BTreeMap<String, String>,
}

/// A plugin of a registry.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// Run files use it. A registry may hold several versions of a name.
    pub name: String,
    /// Its version: `MAJOR.MINOR.PATCH`, with `-PRE` if need be.
    pub version: String,
    /// The slot it fills.
    pub slot: Slot,
    /// One line for people.
    pub summary: String,
    /// The interface version it was built against: `0.1`.
    pub interface: String,
    /// Its licence as an SPDX expression.
    pub licence: String,
    /// Where its method was published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paper: Option<String>,
    /// Bytes of the component, as its author states them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// The compiler that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub toolchain: Option<String>,
    /// Where its component comes from.
    pub source: Source,
    /// Its author's public key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Its author's signature over the entry's statement: minisign's four lines. There with a key only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
    /// The registry it stands in: a file or an address.
    #[serde(skip)]
    pub registry: String,
    /// Line of that registry, from 1.
    #[serde(skip)]
    pub line: usize,
    /// True if it stands in the project's own registry or in one below its folder.
    #[serde(skip)]
    pub own: bool,
    /// True if the project vouches for its digest: it is its own, or in a registry included by digest.
    #[serde(skip)]
    pub pinned: bool,
}

impl Entry {
    /// Where it stands, for messages.
    pub fn place(&self) -> String {
        if self.line == 0 {
            self.registry.clone()
        } else {
            format!("{}:{}", self.registry, self.line)
        }
    }

    /// What a signature of this entry is about; none for a plugin in source.
    pub fn statement(&self) -> Option<Statement> {
        Some(Statement {
            name: self.name.clone(),
            version: self.version.clone(),
            slot: self.slot,
            interface: self.interface.clone(),
            sha256: self.source.sha256()?.to_string(),
            licence: self.licence.clone(),
        })
    }

    /// Its version for comparison. Entries are only read with versions that parse.
    pub fn semver(&self) -> semver::Version {
        semver::Version::parse(&self.version).unwrap_or(semver::Version::new(0, 0, 0))
    }
}

/// Where a plugin's component comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A folder with a cargo package, built when needed.
    Path(PathBuf),
    /// A component file and the SHA-256 that it must have, in lower-case hexadecimal.
    File {
        /// The file.
        file: PathBuf,
        /// Its digest.
        sha256: String,
    },
    /// A component kept in the user's store by its SHA-256, fetched when it is not there.
    Fetched {
        /// Where it is fetched: a file, `https://...` or `oci://...`.
        from: String,
        /// Its digest.
        sha256: String,
    },
}

impl Source {
    /// The digest that the registry states; none for a folder.
    pub fn sha256(&self) -> Option<&str> {
        match self {
            Source::Path(_) => None,
            Source::File { sha256, .. } | Source::Fetched { sha256, .. } => Some(sha256),
        }
    }
}

/// A plugin's component, as bytes that have been checked against the registry.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The component.
    pub bytes: Vec<u8>,
    /// SHA-256 of the bytes, in lower-case hexadecimal.
    pub sha256: String,
    /// The file they were read from.
    pub path: PathBuf,
    /// True if it was compiled just now.
    pub built: bool,
}

impl Registry {
    /// Reads and checks a registry file and those it includes. All errors of a file are reported together.
    pub fn load(file: &Path) -> Result<Self, Diagnostic> {
        Self::load_with(file, None)
    }

    /// The same, with the policy of this file instead of the usual ones.
    pub fn load_with(file: &Path, trust: Option<&Path>) -> Result<Self, Diagnostic> {
        let project = file.parent().unwrap_or(Path::new(""));
        Ok(Registry {
            file: file.to_path_buf(),
            entries: read::project(file)?,
            policy: Policy::load(project, trust)?,
            preferred: BTreeMap::new(),
        })
    }

    /// Of the plugins with several versions, takes these versions where they are there.
    pub fn prefer(&mut self, versions: BTreeMap<String, String>) {
        self.preferred = versions;
    }

    /// The registry that a run file in `start` uses: `registry.toml` there or in a folder above it, else in
    /// the current folder or above it.
    pub fn find(start: &Path) -> Result<PathBuf, Diagnostic> {
        let here = std::env::current_dir().unwrap_or_default();
        let start = here.join(start);
        let mut folders = start.ancestors().chain(here.ancestors());
        match folders.find_map(|folder| Some(folder.join(FILE_NAME)).filter(|file| file.is_file()))
        {
            Some(file) => Ok(shorter(&file, &here)),
            None => Err(Diagnostic::new(format!("there is no {FILE_NAME}"))
                .detail(
                    "looked in",
                    format!(
                        "{}\nand the folders above it, then the current folder",
                        start.display()
                    ),
                )
                .help("run inside a project with a registry, or name one with --registry FILE")),
        }
    }

    /// The plugin of this name, for this slot.
    pub fn lookup(&self, name: &str, slot: Slot) -> Result<&Entry, Diagnostic> {
        let entry = self.entry(name).map_err(|error| {
            // Another slot's plugin is no help here, however near its name.
            let names: Vec<&str> = self.names(slot).collect();
            let near =
                nearest(name, names.iter().copied()).map(|near| format!("did you mean `{near}`?"));
            let error = Diagnostic {
                help: None,
                details: Vec::new(),
                ..error
            };
            error
                .expected(one_of(names.iter().copied()))
                .detail("registry", self.file.display().to_string())
                .help_if(near)
        })?;
        if entry.slot != slot {
            return Err(Diagnostic::new(format!("plugin `{name}` is no {slot}"))
                .expected(format!(
                    "{}: {}",
                    slot.with_article(),
                    one_of(self.names(slot))
                ))
                .found(format!("{}, {}", entry.slot.with_article(), entry.place()))
                .help(format!("name it under [{}]", entry.slot)));
        }
        if !component::compatible(&entry.interface) {
            return Err(Diagnostic::new(format!(
                "plugin `{name}` was made for another interface version"
            ))
            .expected(component::track(component::INTERFACE))
            .found(format!("{}, {}", entry.interface, entry.place()))
            .help("take a version of the plugin for this interface, or another espalier"));
        }
        Ok(entry)
    }

    /// The plugin of this name, whatever slot it fills: the version that the lock asks for, else the highest that
    /// is not a pre-release. The project's own registry comes before those that it includes.
    pub fn entry(&self, name: &str) -> Result<&Entry, Diagnostic> {
        let all: Vec<&Entry> = self.entries.iter().filter(|e| e.name == name).collect();
        let main = self.file.display().to_string();
        let of_main: Vec<&Entry> = all.iter().copied().filter(|e| e.registry == main).collect();
        let all = if of_main.is_empty() { all } else { of_main };
        // Two strangers who use one name: to choose for the user would let either take the other's place.
        let registries: BTreeSet<&str> = all.iter().map(|e| e.registry.as_str()).collect();
        if registries.len() > 1 {
            let places: Vec<String> = all.iter().map(|entry| entry.place()).collect();
            return Err(
                Diagnostic::new(format!("two included registries have a plugin `{name}`"))
                    .found(places.join("\n"))
                    .help(format!(
                        "say which: espalier plugin add {name} --from REGISTRY"
                    )),
            );
        }
        let preferred = self.preferred.get(name);
        if let Some(entry) = all.iter().find(|e| Some(&e.version) == preferred) {
            return Ok(entry);
        }
        best(all).ok_or_else(|| {
            let names = || -> BTreeSet<&str> {
                self.entries
                    .iter()
                    .map(|entry| entry.name.as_str())
                    .collect()
            };
            let near = nearest(name, names()).map(|near| format!("did you mean `{near}`?"));
            let mut shown: Vec<&str> = Vec::new();
            for entry in &self.entries {
                if !shown.contains(&entry.name.as_str()) {
                    shown.push(&entry.name);
                }
            }
            Diagnostic::new(format!("unknown plugin `{name}`"))
                .expected(one_of(shown))
                .detail("registry", self.file.display().to_string())
                .help_if(near)
        })
    }

    fn names(&self, slot: Slot) -> impl Iterator<Item = &str> {
        let mut seen = BTreeSet::new();
        self.entries
            .iter()
            .filter(move |entry| entry.slot == slot && seen.insert(entry.name.as_str()))
            .map(|entry| entry.name.as_str())
    }

    /// Looks up and resolves the plugins of a run, in their order. All of them are looked up before the first
    /// is built. `building` hears what takes time.
    pub fn resolve_plan<'a>(
        &'a self,
        plugins: &[PluginPlan],
        building: &mut dyn FnMut(&Building),
    ) -> Result<Vec<(&'a Entry, Resolved)>, Diagnostic> {
        let mut entries = Vec::with_capacity(plugins.len());
        let mut errors = Vec::new();
        for plugin in plugins {
            match self.lookup(&plugin.name, plugin.slot) {
                Ok(entry) => entries.push(entry),
                Err(mut error) => {
                    error.details.insert(0, ("at".into(), plugin.place.clone()));
                    errors.push(error);
                }
            }
        }
        if let Some(error) = Diagnostic::from_many(errors) {
            return Err(error);
        }
        let resolved = self.resolve(&entries, building)?;
        Ok(entries.into_iter().zip(resolved).collect())
    }

    /// The components of these plugins: built where the source is a folder, else checked: who vouches for the
    /// entry first, then the digest. Reads every file before it builds anything.
    pub fn resolve(
        &self,
        entries: &[&Entry],
        building: &mut dyn FnMut(&Building),
    ) -> Result<Vec<Resolved>, Diagnostic> {
        let mut files = BTreeMap::new();
        let mut to_build = Vec::new();
        for entry in entries {
            match &entry.source {
                Source::Path(folder) => {
                    if !entry.own {
                        return Err(Diagnostic::new(format!(
                            "plugin `{}` would have to be built from another registry's source",
                            entry.name
                        ))
                        .at(entry.place())
                        .found(folder.display().to_string())
                        .detail("because", "a build runs its source's code with your rights, outside the sandbox")
                        .help("ask for a published component, or add the folder to your own registry.toml"));
                    }
                    to_build.push((entry.name.as_str(), folder.as_path()));
                }
                _ => drop(files.insert(entry.name.as_str(), checked(entry, &self.policy)?)),
            }
        }
        for (name, built) in plugin_build::build(&to_build, building)? {
            let bytes = std::fs::read(&built.file).map_err(|error| {
                Diagnostic::new(format!(
                    "cannot read the component that cargo built for `{name}`"
                ))
                .at(built.file.display().to_string())
                .because_io(&error)
            })?;
            let sha256 = component::sha256(&bytes);
            files.insert(
                name,
                Resolved {
                    bytes,
                    sha256,
                    path: built.file,
                    built: !built.fresh,
                },
            );
        }
        let take = |entry: &&Entry| {
            let missing = || {
                Diagnostic::new(format!(
                    "cargo built no component for plugin `{}`",
                    entry.name
                ))
            };
            files.get(entry.name.as_str()).cloned().ok_or_else(missing)
        };
        entries.iter().map(take).collect()
    }
}

/// The entries of somebody's registry, a file or an address, none of them the project's own.
pub(crate) fn of_stranger(from: &str) -> Result<Vec<Entry>, Diagnostic> {
    read::stranger(from)
}

/// The highest version that is not a pre-release; the highest pre-release if there is no other.
pub(crate) fn best<'e>(entries: impl IntoIterator<Item = &'e Entry>) -> Option<&'e Entry> {
    entries.into_iter().max_by_key(|entry| {
        let version = entry.semver();
        (version.pre.is_empty(), version)
    })
}

/// The component of an entry that is not in source, after every check of its trust and its bytes.
pub(crate) fn checked(entry: &Entry, policy: &Policy) -> Result<Resolved, Diagnostic> {
    let place = entry.place();
    let Some(statement) = entry.statement() else {
        return Err(Diagnostic::new(format!("plugin `{}` has no component", entry.name)).at(place));
    };
    let signed = entry.key.as_deref().zip(entry.signature.as_deref());
    policy.admit(&statement, signed, entry.pinned, &place)?;
    match &entry.source {
        Source::File { file, sha256 } => {
            let bytes = read_file(entry, file)?;
            check_bytes(entry, &bytes, sha256, &file.display().to_string())?;
            Ok(resolved(bytes, sha256, file.clone()))
        }
        Source::Fetched { from, sha256 } => {
            let store = Store::open()?;
            let path = store.path(sha256);
            if let Some(bytes) = store.get(&entry.name, sha256)? {
                check_bytes(entry, &bytes, sha256, &path.display().to_string())?;
                return Ok(resolved(bytes, sha256, path));
            }
            let bytes = if fetch::is_address(from) {
                fetch::component(from, entry.size).map_err(|mut error| {
                    error.details.insert(0, ("at".into(), place.clone()));
                    error
                })?
            } else {
                read_file(entry, Path::new(from))?
            };
            check_bytes(entry, &bytes, sha256, from)?;
            store.put(&bytes)?;
            Ok(resolved(bytes, sha256, path))
        }
        Source::Path(_) => {
            Err(Diagnostic::new(format!("plugin `{}` has no component", entry.name)).at(place))
        }
    }
}

fn resolved(bytes: Vec<u8>, sha256: &str, path: PathBuf) -> Resolved {
    Resolved {
        bytes,
        sha256: sha256.to_string(),
        path,
        built: false,
    }
}

/// Reads a component's file. One of another registry must be a plain file below that registry's folder, through no
/// link: what else lies on this machine is none of its business.
fn read_file(entry: &Entry, file: &Path) -> Result<Vec<u8>, Diagnostic> {
    let failed = |error: &std::io::Error| {
        Diagnostic::new(format!(
            "cannot read the component of plugin `{}`",
            entry.name
        ))
        .at(entry.place())
        .detail("file", file.display().to_string())
        .because_io(error)
    };
    if !entry.own {
        let folder = Path::new(&entry.registry).parent().unwrap_or(Path::new(""));
        let folder = match folder.as_os_str().is_empty() {
            true => Path::new("."),
            false => folder,
        };
        let folder = folder.canonicalize().map_err(|error| failed(&error))?;
        let real = file.canonicalize().map_err(|error| failed(&error))?;
        if !real.starts_with(&folder) {
            return Err(Diagnostic::new(format!(
                "the component of plugin `{}` lies outside its registry",
                entry.name
            ))
            .at(entry.place())
            .expected(format!("a file below {}", folder.display()))
            .found(real.display().to_string()));
        }
        return store::read_plain(file).map_err(|error| Diagnostic {
            what: format!("cannot read the component of plugin `{}`", entry.name),
            details: std::iter::once(("at".into(), entry.place()))
                .chain(error.details.into_iter().map(|(label, text)| {
                    let label = if label == "at" { "file".into() } else { label };
                    (label, text)
                }))
                .collect(),
            ..error
        });
    }
    let about = std::fs::metadata(file).map_err(|error| failed(&error))?;
    if about.len() > store::LARGEST {
        return Err(Diagnostic::new(format!(
            "the component of plugin `{}` is too large",
            entry.name
        ))
        .at(entry.place())
        .expected(format!("at most {} bytes", store::LARGEST))
        .found(format!("{} bytes", about.len())));
    }
    std::fs::read(file).map_err(|error| failed(&error))
}

/// Compares bytes with the entry's digest; `file` is where they are from.
pub(crate) fn check_bytes(
    entry: &Entry,
    bytes: &[u8],
    sha256: &str,
    file: &str,
) -> Result<(), Diagnostic> {
    let found = component::sha256(bytes);
    if found == sha256 {
        return Ok(());
    }
    let error = Diagnostic::new(format!(
        "plugin `{}` is not the file that the registry vouches for",
        entry.name
    ))
    .at(entry.place())
    .detail("file", file)
    .expected(format!("sha256 {sha256}"))
    .found(format!("sha256 {found}"));
    let length = bytes.len() as u64;
    let error = match entry.size {
        Some(size) if size != length => {
            error.detail("size", format!("{length} bytes instead of {size}"))
        }
        _ => error,
    };
    Err(error.help(
        "get the file again from where it was published; change the digest only if you trust the new file",
    ))
}

/// A file as seen from a folder, so that a project can be moved with its neighbours.
pub(crate) fn named_from(file: &Path, project: &Path) -> String {
    let here = match project.as_os_str().is_empty() {
        true => Path::new("."),
        false => project,
    };
    let (Ok(file), Ok(here)) = (file.canonicalize(), here.canonicalize()) else {
        return file.display().to_string();
    };
    let common = file
        .components()
        .zip(here.components())
        .take_while(|(a, b)| a == b)
        .count();
    // Nothing but the root in common: the whole path says more.
    if common < 2 {
        return file.display().to_string();
    }
    let up = here.components().count() - common;
    let mut path: PathBuf = std::iter::repeat_n("..", up).collect();
    path.extend(file.components().skip(common));
    path.display().to_string()
}

/// The path from the current folder where the file is below it: what people want to read.
fn shorter(file: &Path, here: &Path) -> PathBuf {
    file.strip_prefix(here)
        .map_or_else(|_| file.to_path_buf(), Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn registry(plugins: &str) -> Result<Registry, Diagnostic> {
        let text = format!("schema = 1\n{plugins}");
        let file = Path::new("p/registry.toml");
        Ok(Registry {
            file: file.to_path_buf(),
            entries: read::text(file, text)?,
            policy: Policy::default(),
            preferred: BTreeMap::new(),
        })
    }

    fn plugin(name: &str, slot: &str, source: &str) -> String {
        format!(
            "[[plugin]]\nname = \"{name}\"\nversion = \"0.1.0\"\nslot = \"{slot}\"\nsummary = \"s\"\n\
             interface = \"0.1\"\nlicence = \"MIT\"\nsource = {source}\n"
        )
    }

    #[test]
    fn sources_start_at_the_registrys_folder() {
        let digest = "AB".repeat(32);
        let file = format!("{{ file = \"x.wasm\", sha256 = \"{digest}\" }}");
        let text =
            plugin("a", "trainer", "{ path = \"plugins/a\" }") + &plugin("b", "pruner", &file);
        let registry = registry(&text).unwrap();
        assert_eq!(
            registry.entries[0].source,
            Source::Path("p/plugins/a".into())
        );
        let want = Source::File {
            file: "p/x.wasm".into(),
            sha256: "ab".repeat(32),
        };
        assert_eq!(registry.entries[1].source, want);
        assert_eq!(
            (registry.entries[0].line, registry.entries[1].line),
            (2, 10)
        );
    }

    #[test]
    fn only_the_slot_asked_for_is_suggested() {
        let path = "{ path = \"x\" }";
        let text = plugin("magnitude", "pruner", path) + &plugin("mono-forward", "trainer", path);
        let registry = registry(&text).unwrap();
        assert_eq!(
            registry.lookup("mono-forward", Slot::Trainer).unwrap().name,
            "mono-forward"
        );
        let want = "error: unknown plugin `magnitud`
  expected  `mono-forward`
  registry  p/registry.toml";
        assert_eq!(
            registry
                .lookup("magnitud", Slot::Trainer)
                .unwrap_err()
                .to_string(),
            want
        );
        let error = registry.lookup("magnitud", Slot::Pruner).unwrap_err();
        assert_eq!(error.help.as_deref(), Some("did you mean `magnitude`?"));
    }

    #[test]
    fn a_file_is_read_only_if_its_digest_is_the_registrys() {
        let folder = std::env::temp_dir().join(format!("espalier-registry-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("x.wasm");
        std::fs::write(&file, b"abc").unwrap();
        // The digest of "abc" in FIPS 180-4.
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let source = format!("{{ file = \"{}\", sha256 = \"{digest}\" }}", file.display());
        let registry = registry(&plugin("a", "pruner", &source)).unwrap();
        let entry = registry.lookup("a", Slot::Pruner).unwrap();
        let resolved = registry.resolve(&[entry], &mut |_| ()).unwrap();
        assert_eq!(
            (resolved[0].bytes.as_slice(), resolved[0].sha256.as_str()),
            (&b"abc"[..], digest)
        );
        std::fs::write(&file, b"abd").unwrap();
        let error = registry
            .resolve(&[entry], &mut |_| ())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains(&format!("expected  sha256 {digest}")),
            "{error}"
        );
        assert!(
            error.contains(&format!("found     sha256 {}", component::sha256(b"abd"))),
            "{error}"
        );
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
