//! The format of `registry.toml`, read into entries, with the registries that it includes.
//!
//! What an entry may do depends on where it stands. The project's own registry, and those included from below its folder,
//! are the user's own words. Everything else is a stranger's: its files lie below its own folder, nothing of it is built
//! from source, and its entries must be signed unless the include states its digest.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Entry, Source};
use crate::component;
use crate::diagnostic::Diagnostic;
use crate::document::{Document, Field, Origin, Reader, Value};
use crate::fetch;
use crate::host::guest::shown;
use crate::plan::Slot;
use crate::store::Store;
use crate::trust::PublicKey;

/// The only registry format that this host reads.
const SCHEMA: u64 = 1;

/// Most registries that include each other in a chain.
const DEEPEST: usize = 8;

const ENTRY: [&str; 12] = [
    "name",
    "version",
    "slot",
    "summary",
    "interface",
    "licence",
    "paper",
    "source",
    "size",
    "toolchain",
    "key",
    "signature",
];

/// A registry that another includes.
struct Include {
    /// A file or an address.
    from: String,
    sha256: Option<String>,
    line: usize,
}

/// What one file says.
struct Read {
    entries: Vec<Entry>,
    includes: Vec<Include>,
}

/// Where a registry is, and what may be believed of it.
struct Standing<'a> {
    /// Folders below which registries are the user's own; none for a stranger's.
    project: Option<&'a Path>,
    pinned: bool,
    /// The registries on the way here, this one last.
    chain: Vec<String>,
}

/// The entries of a project's registry and of those it includes.
pub(super) fn project(file: &Path) -> Result<Vec<Entry>, Diagnostic> {
    let document = Document::load(file, "registry")?;
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    // The file was just read, so the folder is there.
    let folder = folder.canonicalize().unwrap_or(folder.to_path_buf());
    let mut entries = Vec::new();
    let standing = Standing {
        project: Some(&folder),
        pinned: true,
        chain: vec![identity(&file.display().to_string())],
    };
    gather(document, &standing, &mut entries)?;
    Ok(entries)
}

/// The entries of somebody's registry, a file or an address, none of them the user's own.
pub(super) fn stranger(from: &str) -> Result<Vec<Entry>, Diagnostic> {
    let document = if fetch::is_address(from) {
        parse(from, fetch::get(from, fetch::LARGEST_REGISTRY)?)?
    } else {
        Document::load(Path::new(from), "registry")?
    };
    let standing = Standing {
        project: None,
        pinned: false,
        chain: vec![identity(from)],
    };
    let mut entries = Vec::new();
    gather(document, &standing, &mut entries)?;
    Ok(entries)
}

/// The entries of a file alone, without those that it includes.
pub(super) fn alone(file: &Path) -> Result<Vec<Entry>, Diagnostic> {
    Ok(one(&Document::load(file, "registry")?)?.entries)
}

/// The entries of a text as if it stood in a project's registry; includes are not followed.
#[cfg(test)]
pub(super) fn text(file: &Path, text: String) -> Result<Vec<Entry>, Diagnostic> {
    let mut entries = one(&Document::parse(file, text)?)?.entries;
    for entry in &mut entries {
        (entry.own, entry.pinned) = (true, true);
    }
    Ok(entries)
}

/// The same file or address has the same identity, however it was named.
fn identity(from: &str) -> String {
    if fetch::is_address(from) {
        return from.to_string();
    }
    let real = Path::new(from).canonicalize();
    real.map_or_else(|_| from.to_string(), |real| real.display().to_string())
}

fn parse(from: &str, bytes: Vec<u8>) -> Result<Document, Diagnostic> {
    let text = String::from_utf8(bytes)
        .map_err(|_| Diagnostic::new("the registry is not text").at(from))?;
    Document::parse(Path::new(from), text)
}

fn gather(
    document: Document,
    standing: &Standing<'_>,
    entries: &mut Vec<Entry>,
) -> Result<(), Diagnostic> {
    let read = one(&document)?;
    for mut entry in read.entries {
        entry.own = standing.project.is_some();
        entry.pinned = standing.pinned;
        entries.push(entry);
    }
    for include in read.includes {
        let place = format!("{}:{}", document.file.display(), include.line);
        let next = identity(&include.from);
        if standing.chain.contains(&next) {
            return Err(Diagnostic::new("registries include each other in a circle")
                .at(place)
                .found(format!("{}\n{next}", standing.chain.join("\n")))
                .help("remove one of these includes"));
        }
        if standing.chain.len() >= DEEPEST {
            return Err(Diagnostic::new("registries include each other too deep")
                .at(place)
                .expected(format!("at most {DEEPEST} in a chain"))
                .help("include the ones that are wanted directly"));
        }
        let document = included(&include, &place)?;
        let below = |project: &&Path| {
            !fetch::is_address(&include.from) && Path::new(&next).starts_with(project)
        };
        let mut chain = standing.chain.clone();
        chain.push(next.clone());
        let project = standing.project.filter(below);
        let standing = Standing {
            project,
            pinned: standing.pinned && (project.is_some() || include.sha256.is_some()),
            chain,
        };
        gather(document, &standing, entries)?;
    }
    Ok(())
}

/// An included registry, checked against the digest where one is given. One from the network always has a digest, so it
/// is fetched once and kept.
fn included(include: &Include, place: &str) -> Result<Document, Diagnostic> {
    let at_place = |mut error: Diagnostic| {
        error
            .details
            .insert(0, ("included".into(), place.to_string()));
        error
    };
    let check = |bytes: &[u8], sha256: &str| {
        let found = component::sha256(bytes);
        if found == sha256 {
            return Ok(());
        }
        Err(Diagnostic::new("an included registry was changed")
            .at(place)
            .detail("registry", &include.from)
            .expected(format!("sha256 {sha256}"))
            .found(format!("sha256 {found}"))
            .help("see what changed in it; then write the new digest into the include"))
    };
    if fetch::is_address(&include.from) {
        let Some(sha256) = &include.sha256 else {
            return Err(
                Diagnostic::new("an included registry of the network has no digest").at(place),
            );
        };
        let store = Store::open().map_err(at_place)?;
        let bytes = match store
            .get("an included registry", sha256)
            .map_err(at_place)?
        {
            Some(bytes) => bytes,
            None => {
                let bytes = fetch::get(&include.from, fetch::LARGEST_REGISTRY).map_err(at_place)?;
                check(&bytes, sha256)?;
                store.put(&bytes).map_err(at_place)?;
                bytes
            }
        };
        return parse(&include.from, bytes);
    }
    let file = Path::new(&include.from);
    let document = Document::load(file, "registry").map_err(at_place)?;
    if let Some(sha256) = &include.sha256 {
        check(document.text().as_bytes(), sha256)?;
    }
    Ok(document)
}

/// One file, without those it includes.
fn one(document: &Document) -> Result<Read, Diagnostic> {
    let reader = Reader::new(document);
    let read = read(&reader);
    reader.finish(read)
}

fn read(reader: &Reader<'_>) -> Option<Read> {
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
    let root = reader.root(&["schema", "include", "plugin"]);
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
    let mut read = Read {
        entries: Vec::new(),
        includes: Vec::new(),
    };
    if let Some(list) = root.get("include") {
        for item in list.list("[[include]] tables")? {
            read.includes.extend(include(&item, &base));
        }
    }
    let Some(list) = root.get("plugin") else {
        return Some(read);
    };
    let mut lines: BTreeMap<(String, String), usize> = BTreeMap::new();
    let mut slots: BTreeMap<String, (Slot, usize)> = BTreeMap::new();
    for item in list.list("[[plugin]] tables")? {
        let Some(entry) = entry(&item, &base) else {
            continue;
        };
        let place = |line: usize| format!("{}:{line}", reader.document.file.display());
        let both = (entry.name.clone(), entry.version.clone());
        if let Some(first) = lines.insert(both, entry.line) {
            let error = Diagnostic::new(format!("two plugins are called `{}`", entry.name));
            let error = error.detail("first", place(first));
            item.error(error.help("rename one of them or remove it"));
        }
        let (slot, first) = *slots
            .entry(entry.name.clone())
            .or_insert((entry.slot, entry.line));
        if slot != entry.slot {
            let error = Diagnostic::new(format!("plugin `{}` changes its slot", entry.name));
            let error = error
                .expected(format!("{}, as in {}", slot.with_article(), place(first)))
                .found(entry.slot.with_article());
            item.error(
                error.help("a plugin of another slot is another plugin: give it another name"),
            );
        }
        read.entries.push(entry);
    }
    Some(read)
}

/// A folder's file, or an address below an address.
fn beside(base: &Path, text: &str) -> String {
    let base = base.display().to_string();
    if fetch::is_address(&base) {
        fetch::join(&format!("{base}/"), text)
    } else if fetch::is_address(text) {
        text.to_string()
    } else {
        Path::new(&base).join(text).display().to_string()
    }
}

fn include(item: &Field<'_, '_>, base: &Path) -> Option<Include> {
    let fields = item.table(&["path", "url", "sha256"], &|_| None)?;
    let sha256 = fields.get("sha256").map(|field| digest(&field));
    let line = line_of(item.reader, fields.origin);
    let sha256 = match sha256 {
        Some(digest) => Some(digest?),
        None => None,
    };
    match (fields.get("path"), fields.get("url")) {
        (Some(path), None) => Some(Include {
            from: beside(base, path.text()?),
            sha256,
            line,
        }),
        (None, Some(url)) if sha256.is_none() => {
            let error = Diagnostic::new("an included registry of the network needs its digest");
            let error = error.found(url.text()?);
            fields.error(error.help("add sha256 = \"...\": curl -s URL | sha256sum"));
            None
        }
        (None, Some(url)) => {
            let from = url.text()?;
            if !fetch::is_address(from) || from.starts_with("oci://") {
                return url.malformed("an address that begins with https://");
            }
            Some(Include {
                from: from.to_string(),
                sha256,
                line,
            })
        }
        _ => {
            let error = Diagnostic::new("an include names one registry");
            fields.error(
                error.expected("path = \"FILE\", or url = \"https://...\" with sha256 = \"...\""),
            );
            None
        }
    }
}

fn line_of(reader: &Reader<'_>, origin: Option<&Origin>) -> usize {
    match origin {
        Some(Origin::File(offset)) => reader.document.line_and_column(*offset).0,
        _ => 0,
    }
}

fn entry(item: &Field<'_, '_>, base: &Path) -> Option<Entry> {
    let fields = item.table(&ENTRY, &|_| None)?;
    let text = |key: &str, help: &str| {
        fields
            .require(key, help)
            .and_then(|field| field.text())
            .map(shown)
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
        .and_then(|field| field.choice("slot", &Slot::ALL.map(Slot::as_str)))
        .map(|index| Slot::ALL[index]);
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
        .map(shown);
    let source = fields.require("source", "add source = { path = \"plugins/NAME\" }");
    let source = source.and_then(|field| source_of(&field, base));
    let line = line_of(item.reader, fields.origin);
    let size = fields
        .get("size")
        .and_then(|field| field.integer(1, u64::MAX));
    let toolchain = fields
        .get("toolchain")
        .and_then(|field| field.text())
        .map(shown);
    let (key, signature) = (fields.get("key"), fields.get("signature"));
    if key.is_some() != signature.is_some() {
        let error = Diagnostic::new("a signed plugin has a key and a signature");
        let found = if key.is_some() {
            "a key alone"
        } else {
            "a signature alone"
        };
        fields.error(error.found(found).help(
            "copy both from where the author published them, or remove this one: the plugin is unsigned then",
        ));
    }
    let key = key.and_then(|field| {
        let text = field.text()?;
        match PublicKey::parse(text) {
            Some(key) => Some(key.as_str().to_string()),
            None => field.malformed("a minisign public key: 56 characters that begin with RW"),
        }
    });
    let signature = signature.and_then(|field| field.text()).map(str::to_string);
    Some(Entry {
        name: name?,
        version: version?,
        slot: slot?,
        summary: summary?,
        interface: interface?,
        licence: licence?,
        paper,
        size,
        toolchain,
        source: source?,
        key,
        signature,
        registry: item.reader.document.file.display().to_string(),
        line,
        own: false,
        pinned: false,
    })
}

/// A SHA-256 in hexadecimal. Digests of other algorithms are told by their length or their prefix.
fn digest(field: &Field<'_, '_>) -> Option<String> {
    let text = field.text()?.to_ascii_lowercase();
    let (algorithm, digits) = match text.split_once(':') {
        Some((algorithm, digits)) => (Some(algorithm), digits),
        None => (None, text.as_str()),
    };
    let hex = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    if hex && digits.len() == 64 && algorithm.is_none_or(|name| name == "sha256") {
        return Some(digits.to_string());
    }
    let other = match (algorithm, digits.len()) {
        (Some(name), _) if name != "sha256" => Some(name),
        (None, 32) if hex => Some("md5"),
        (None, 40) if hex => Some("sha1"),
        (None, 96) if hex => Some("sha384"),
        (None, 128) if hex => Some("sha512"),
        _ => None,
    };
    if let Some(other) = other {
        let error = Diagnostic::new("this is the digest of another algorithm");
        field.error(
            error
                .expected("SHA-256: 64 hexadecimal digits, as `sha256sum FILE` prints them")
                .found(format!(
                    "{} hexadecimal digits, {other} it seems",
                    digits.len()
                )),
        );
        return None;
    }
    field.malformed("64 hexadecimal digits")
}

fn source_of(field: &Field<'_, '_>, base: &Path) -> Option<Source> {
    let fields = field.table(&["path", "file", "from", "sha256"], &|_| None)?;
    let digest = fields.get("sha256").map(|field| digest(&field));
    let remote = fetch::is_address(&base.display().to_string());
    match (
        fields.get("path"),
        fields.get("file"),
        fields.get("from"),
        digest,
    ) {
        (Some(path), None, None, None) => Some(Source::Path(path.path(base)?)),
        (None, Some(file), None, Some(sha256)) if remote => Some(Source::Fetched {
            from: beside(base, file.text()?),
            sha256: sha256?,
        }),
        (None, Some(file), None, Some(sha256)) => Some(Source::File {
            file: file.path(base)?,
            sha256: sha256?,
        }),
        (None, None, Some(from), Some(sha256)) => Some(Source::Fetched {
            from: beside(base, from.text()?),
            sha256: sha256?,
        }),
        (None, file, from, None) if file.is_some() != from.is_some() => {
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
                    "{ path = \"FOLDER\" }, { file = \"FILE.wasm\", sha256 = \"...\" }, or { from = \"https://...\", sha256 = \"...\" }",
                ),
            );
            None
        }
    }
}

/// `MAJOR.MINOR.PATCH`, with `-PRE` or `+BUILD` behind it, as semantic versioning writes it.
fn is_version(text: &str) -> bool {
    semver::Version::parse(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

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
