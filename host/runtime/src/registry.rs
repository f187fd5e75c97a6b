//! The catalogue of plugins that a project may load: `registry.toml`.
//!
//! A plugin is named by a run file and looked up here. Its component comes from a folder with its source,
//! which is built when needed (`plugin_build`), or from a file whose SHA-256 the registry states. A file's
//! digest is checked before anything else sees its bytes. docs/registry.md is the reference for people.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::component;
use crate::diagnostic::{Diagnostic, nearest, one_of};
use crate::document::{Document, Field, Reader, Value};
use crate::events::Building;
use crate::plan::{PluginPlan, Slot};
use crate::plugin_build;

/// The only registry format that this host reads.
const SCHEMA: u64 = 1;

/// The file's name, looked for from a run file's folder upwards.
pub const FILE_NAME: &str = "registry.toml";

const ENTRY: [&str; 8] = [
    "name",
    "version",
    "slot",
    "summary",
    "interface",
    "licence",
    "paper",
    "source",
];
const SLOTS: [Slot; 4] = [
    Slot::Trainer,
    Slot::Pruner,
    Slot::Environment,
    Slot::Normalizer,
];

/// A registry file, read and checked.
#[derive(Clone, Debug)]
pub struct Registry {
    /// The file.
    pub file: PathBuf,
    /// Its plugins in the order of the file.
    pub entries: Vec<Entry>,
}

/// A plugin of a registry.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Entry {
    /// Unique in the registry; run files use it.
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
    /// Where its component comes from.
    pub source: Source,
    /// Line of the registry file, from 1.
    #[serde(skip)]
    pub line: usize,
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
    /// Reads and checks a registry file. All its errors are reported together.
    pub fn load(file: &Path) -> Result<Self, Diagnostic> {
        Self::check(Document::load(file, "registry")?)
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

    fn check(document: Document) -> Result<Self, Diagnostic> {
        let reader = Reader::new(&document);
        let entries = read(&reader);
        let entries = reader.finish(entries)?;
        Ok(Registry {
            file: document.file,
            entries,
        })
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
                .found(format!(
                    "{}, {}:{}",
                    entry.slot.with_article(),
                    self.file.display(),
                    entry.line
                ))
                .help(format!("name it under [{}]", entry.slot)));
        }
        if !component::compatible(&entry.interface) {
            return Err(Diagnostic::new(format!(
                "plugin `{name}` was made for another interface version"
            ))
            .expected(component::track(component::INTERFACE))
            .found(format!(
                "{}, {}:{}",
                entry.interface,
                self.file.display(),
                entry.line
            ))
            .help("take a version of the plugin for this interface, or another espalier"));
        }
        Ok(entry)
    }

    /// The plugin of this name, whatever slot it fills.
    pub fn entry(&self, name: &str) -> Result<&Entry, Diagnostic> {
        self.entries
            .iter()
            .find(|entry| entry.name == name)
            .ok_or_else(|| {
                let names = || self.entries.iter().map(|entry| entry.name.as_str());
                let near = nearest(name, names()).map(|near| format!("did you mean `{near}`?"));
                Diagnostic::new(format!("unknown plugin `{name}`"))
                    .expected(one_of(names()))
                    .detail("registry", self.file.display().to_string())
                    .help_if(near)
            })
    }

    fn names(&self, slot: Slot) -> impl Iterator<Item = &str> {
        self.entries
            .iter()
            .filter(move |entry| entry.slot == slot)
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

    /// The components of these plugins: built where the source is a folder, checked against the digest where it
    /// is a file. Reads every file before it builds anything.
    pub fn resolve(
        &self,
        entries: &[&Entry],
        building: &mut dyn FnMut(&Building),
    ) -> Result<Vec<Resolved>, Diagnostic> {
        let mut files = BTreeMap::new();
        let mut to_build = Vec::new();
        for entry in entries {
            match &entry.source {
                Source::File { file, sha256 } => {
                    files.insert(entry.name.as_str(), self.read_checked(entry, file, sha256)?);
                }
                Source::Path(folder) => to_build.push((entry.name.as_str(), folder.as_path())),
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

    fn read_checked(
        &self,
        entry: &Entry,
        file: &Path,
        sha256: &str,
    ) -> Result<Resolved, Diagnostic> {
        let place = format!("{}:{}", self.file.display(), entry.line);
        let bytes = std::fs::read(file).map_err(|error| {
            Diagnostic::new(format!(
                "cannot read the component of plugin `{}`",
                entry.name
            ))
            .at(place.clone())
            .detail("file", file.display().to_string())
            .because_io(&error)
        })?;
        let found = component::sha256(&bytes);
        if found != sha256 {
            return Err(Diagnostic::new(format!("plugin `{}` is not the file that the registry vouches for", entry.name))
                .at(place)
                .detail("file", file.display().to_string())
                .expected(format!("sha256 {sha256}"))
                .found(format!("sha256 {found}"))
                .help("get the file again from where it was published; change the digest only if you trust the new file"));
        }
        Ok(Resolved {
            bytes,
            sha256: found,
            path: file.to_path_buf(),
            built: false,
        })
    }
}

/// The path from the current folder where the file is below it: what people want to read.
fn shorter(file: &Path, here: &Path) -> PathBuf {
    file.strip_prefix(here)
        .map_or_else(|_| file.to_path_buf(), Path::to_path_buf)
}

fn read(reader: &Reader<'_>) -> Option<Vec<Entry>> {
    // A newer format may differ in anything, so its version is looked at before the rest.
    let schema = reader
        .document
        .root
        .get("schema")
        .map(|(_, item)| &item.value);
    if let Some(Value::Integer(found)) = schema
        && *found != i128::from(SCHEMA)
    {
        let origin = reader
            .document
            .root
            .get("schema")
            .map(|(_, item)| &item.origin);
        let error = Diagnostic::new("this registry has a format that this espalier does not know");
        let error = error
            .expected(format!("schema {SCHEMA}"))
            .found(format!("schema {found}"));
        reader.push(
            origin,
            "schema",
            error.help("use the espalier that the registry was written for, or newer"),
        );
        return None;
    }
    let root = reader.root(&["schema", "plugin"]);
    match root.get("schema") {
        Some(field) => drop(field.integer(SCHEMA, SCHEMA)),
        None => root.error(
            Diagnostic::new("the registry does not say its format")
                .help("add `schema = 1` at the top"),
        ),
    }
    let base = reader
        .document
        .file
        .parent()
        .unwrap_or(Path::new(""))
        .to_path_buf();
    let Some(list) = root.get("plugin") else {
        return Some(Vec::new());
    };
    let mut lines: BTreeMap<String, usize> = BTreeMap::new();
    let mut entries = Vec::new();
    for item in list.list("[[plugin]] tables")? {
        let Some(entry) = entry(&item, &base) else {
            continue;
        };
        if let Some(first) = lines.insert(entry.name.clone(), entry.line) {
            let error = Diagnostic::new(format!("two plugins are called `{}`", entry.name));
            let error = error.detail(
                "first",
                format!("{}:{first}", reader.document.file.display()),
            );
            item.error(error.help("rename one of them or remove it"));
        }
        entries.push(entry);
    }
    Some(entries)
}

fn entry(item: &Field<'_, '_>, base: &Path) -> Option<Entry> {
    let fields = item.table(&ENTRY, &|_| None)?;
    let text = |key: &str, help: &str| {
        fields
            .require(key, help)
            .and_then(|field| field.text())
            .map(str::to_string)
    };
    let name = fields
        .require("name", "add name = \"...\"")
        .and_then(|field| {
            let name = field.text()?;
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            if name.chars().all(plain) {
                Some(name.to_string())
            } else {
                field.malformed("lower-case letters, digits and -")
            }
        });
    let version = fields
        .require("version", "add version = \"0.1.0\"")
        .and_then(|field| {
            let version = field.text()?;
            if is_version(version) {
                Some(version.to_string())
            } else {
                field.malformed("MAJOR.MINOR.PATCH, such as \"0.1.0\"")
            }
        });
    let slot = fields.require("slot", "add slot = \"trainer\" or another slot");
    let slot = slot
        .and_then(|field| field.choice("slot", &SLOTS.map(Slot::as_str)))
        .map(|index| SLOTS[index]);
    let interface = fields
        .require("interface", "add interface = \"0.1\"")
        .and_then(|field| {
            let interface = field.text()?;
            let parts: Vec<&str> = interface.split('.').collect();
            let numbers = parts.iter().all(|part| part.parse::<u32>().is_ok());
            if numbers && (2..=3).contains(&parts.len()) {
                Some(interface.to_string())
            } else {
                field.malformed("MAJOR.MINOR, such as \"0.1\"")
            }
        });
    let summary = text("summary", "add summary = \"what it does in one line\"");
    let licence = text(
        "licence",
        "add licence = \"MIT OR Apache-2.0\" or another SPDX expression",
    );
    let paper = fields
        .get("paper")
        .and_then(|field| field.text())
        .map(str::to_string);
    let source = fields.require("source", "add source = { path = \"plugins/NAME\" }");
    let source = source.and_then(|field| source_of(&field, base));
    let line = fields.origin.map_or(0, |origin| match origin {
        crate::document::Origin::File(offset) => item.reader.document.line_and_column(*offset).0,
        crate::document::Origin::Flag(_) => 0,
    });
    Some(Entry {
        name: name?,
        version: version?,
        slot: slot?,
        summary: summary?,
        interface: interface?,
        licence: licence?,
        paper,
        source: source?,
        line,
    })
}

fn source_of(field: &Field<'_, '_>, base: &Path) -> Option<Source> {
    let fields = field.table(&["path", "file", "sha256"], &|_| None)?;
    let digest = fields.get("sha256").map(|field| {
        let text = field.text()?.to_ascii_lowercase();
        let hex = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if hex {
            Some(text)
        } else {
            field.malformed("64 hexadecimal digits")
        }
    });
    match (fields.get("path"), fields.get("file"), digest) {
        (Some(path), None, None) => Some(Source::Path(path.path(base)?)),
        (None, Some(file), Some(sha256)) => Some(Source::File {
            file: file.path(base)?,
            sha256: sha256?,
        }),
        (None, Some(_), None) => {
            let error = Diagnostic::new("a component file needs the digest that it must have");
            fields.error(error.help(
                "add sha256 = \"...\", as its author publishes it; `sha256sum FILE` prints one",
            ));
            None
        }
        _ => {
            let error = Diagnostic::new("a plugin has one source");
            fields.error(
                error.expected(
                    "{ path = \"FOLDER\" }, or { file = \"FILE.wasm\", sha256 = \"...\" }",
                ),
            );
            None
        }
    }
}

/// `MAJOR.MINOR.PATCH`, with `-PRE` or `+BUILD` behind it, as semantic versioning writes it.
fn is_version(text: &str) -> bool {
    let core = text.split(['-', '+']).next().unwrap_or("");
    let rest_ok = text[core.len()..]
        .chars()
        .all(|c| c.is_ascii_alphanumeric() || ".-+".contains(c));
    let number =
        |part: &str| part.parse::<u32>().is_ok() && (part == "0" || !part.starts_with(['0', '+']));
    let parts: Vec<&str> = core.split('.').collect();
    parts.len() == 3 && parts.into_iter().all(number) && rest_ok && text.len() != core.len() + 1
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn registry(plugins: &str) -> Result<Registry, Diagnostic> {
        let text = format!("schema = 1\n{plugins}");
        Registry::check(Document::parse(Path::new("p/registry.toml"), text)?)
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

    #[test]
    fn versions_are_three_numbers() {
        assert!(
            ["0.1.0", "1.20.3", "1.0.0-rc.1", "1.0.0+build"]
                .into_iter()
                .all(is_version)
        );
        assert!(
            ![
                "1", "1.0", "1.0.0.0", "01.0.0", "1.0.x", "v1.0.0", "1.0.0-", ""
            ]
            .into_iter()
            .any(is_version)
        );
    }
}
