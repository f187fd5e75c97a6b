//! Taking somebody's plugin into a project's registry: found, checked, kept by digest, written down.

use std::path::{Path, PathBuf};

use semver::VersionReq;
use serde::Serialize;

use crate::component;
use crate::diagnostic::{Diagnostic, nearest, one_of};
use crate::fetch;
use crate::oci::{self, Reference};
use crate::registry::edit::Editor;
use crate::registry::{self, Entry, FILE_NAME, Registry, Source};
use crate::store::{self, Store};
use crate::trust::Policy;

/// What to add, and from where.
pub struct Request<'a> {
    /// `NAME` or `NAME@VERSION`; the version as cargo reads one (`1.2` is `^1.2`).
    pub plugin: &'a str,
    /// A registry file, a folder with one, a component file, `https://...` of either, or `oci://HOST/FOLDER`.
    pub from: &'a str,
    /// The project's registry.
    pub registry: &'a Path,
    /// A policy file instead of the usual ones.
    pub trust: Option<&'a Path>,
    /// The digest that the component must have: the user vouches for it.
    pub sha256: Option<&'a str>,
    /// The licence, where a bare component does not say.
    pub licence: Option<&'a str>,
    /// True if a lower version than the project's may replace it.
    pub downgrade: bool,
}

/// What was added.
#[derive(Clone, Debug, Serialize)]
pub struct Added {
    /// The entry as it stands in the project's registry now.
    pub entry: Entry,
    /// The version that it replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replaced: Option<String>,
    /// Whose key vouches for it, as the policy names the owner; none for a component vouched for by digest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub signed_by: Option<String>,
    /// Where it is kept.
    pub stored: PathBuf,
}

/// Adds a plugin to a project's registry. Nothing is written unless every check holds.
pub fn add(request: &Request<'_>) -> Result<Added, Diagnostic> {
    let (name, wanted) = name_and_version(request.plugin)?;
    let project = request.registry.parent().unwrap_or(Path::new(""));
    let policy = Policy::load(project, request.trust)?;
    let mut entry = match Origin::of(request.from) {
        Origin::Registry(file) => {
            let all = registry::of_stranger(&file)?;
            choose(&all, name, &wanted, request.from)?.clone()
        }
        Origin::Oci(folder) => of_oci(&Reference::parse(&folder)?, name, &wanted, request)?,
        Origin::Component(file) => bare(&file, name, request)?,
    };
    let signed_entry = entry.key.is_some();
    if let Some(sha256) = request.sha256 {
        let sha256 = sha256.trim_start_matches("sha256:").to_ascii_lowercase();
        let found = entry.source.sha256().unwrap_or("").to_string();
        if found != sha256 {
            return Err(Diagnostic::new(format!(
                "plugin `{name}` has another digest than the one you gave"
            ))
            .at(entry.place())
            .expected(format!("sha256 {sha256}"))
            .found(format!("sha256 {found}")));
        }
        // The user's word takes the place of the author's.
        entry.pinned = true;
        if !trusted(&policy, &entry) {
            (entry.key, entry.signature) = (None, None);
        }
    }
    let resolved = registry::checked(&entry, &policy)?;
    let store = Store::open()?;
    store.put(&resolved.bytes)?;
    let loaded = component::load(name, &resolved.bytes)?;
    if loaded.slot != entry.slot {
        return Err(Diagnostic::new(format!(
            "plugin `{name}` does not fill the slot that its registry says"
        ))
        .at(entry.place())
        .expected(entry.slot.with_article())
        .found(loaded.slot.with_article()));
    }
    let mut editor = Editor::open(request.registry)?;
    let before = editor.entries()?;
    let before: Vec<Entry> = before.into_iter().filter(|e| e.name == name).collect();
    let replaced = registry::best(&before);
    if let Some(old) = replaced {
        if let Source::Path(folder) = &old.source {
            return Err(
                Diagnostic::new(format!("the project has a plugin `{name}` of its own"))
                    .at(request.registry.display().to_string())
                    .found(folder.display().to_string())
                    .help("remove its entry first, or rename it"),
            );
        }
        if old.slot != entry.slot {
            return Err(Diagnostic::new(format!("plugin `{name}` changes its slot"))
                .at(entry.place())
                .expected(format!("{}, as version {}", old.slot.with_article(), old.version))
                .found(entry.slot.with_article())
                .help("a plugin of another slot is another plugin: remove the old entry if it is meant"));
        }
        if entry.semver() < old.semver() && !request.downgrade {
            return Err(Diagnostic::new(format!(
                "plugin `{name}` would go back to a lower version"
            ))
            .at(entry.place())
            .expected(format!("{} or higher, as the project has", old.version))
            .found(entry.version.clone())
            .detail(
                "because",
                "an old registry, with signatures that hold, is how a mended fault comes back",
            )
            .help("if it is meant, say --downgrade"));
        }
        if entry.version == old.version && entry.source.sha256() != old.source.sha256() {
            return Err(Diagnostic::new(format!(
                "plugin `{name}` {} has two digests",
                entry.version
            ))
            .at(entry.place())
            .expected(format!(
                "sha256 {}, as the project has",
                old.source.sha256().unwrap_or("")
            ))
            .found(format!("sha256 {}", entry.source.sha256().unwrap_or("")))
            .help("a published version never changes: ask its author which is right"));
        }
    }
    let replaced = replaced.map(|entry| entry.version.clone());
    let from = match &entry.source {
        Source::Fetched { from, .. } if fetch::is_address(from) => from.clone(),
        Source::Fetched { from, .. } => registry::named_from(Path::new(from), project),
        Source::File { file, .. } => registry::named_from(file, project),
        Source::Path(_) => String::new(),
    };
    entry.source = Source::Fetched {
        from: from.clone(),
        sha256: resolved.sha256.clone(),
    };
    editor.remove(name);
    editor.add(&entry, &[("from", &from), ("sha256", &resolved.sha256)])?;
    editor.save()?;
    // What is written is what was meant: it is read back as a run would read it.
    let written = Registry::load_with(request.registry, request.trust)?;
    registry::checked(written.entry(name)?, &written.policy)?;
    let owner = entry
        .key
        .as_deref()
        .and_then(crate::trust::PublicKey::parse);
    let owner = owner.and_then(|key| policy.trusts(&key, name).map(|t| t.owner.clone()));
    Ok(Added {
        entry,
        replaced,
        signed_by: owner.filter(|_| signed_entry),
        stored: store.path(&resolved.sha256),
    })
}

fn trusted(policy: &Policy, entry: &Entry) -> bool {
    let key = entry
        .key
        .as_deref()
        .and_then(crate::trust::PublicKey::parse);
    key.is_some_and(|key| policy.trusts(&key, &entry.name).is_some())
}

/// `NAME` or `NAME@VERSION`.
fn name_and_version(text: &str) -> Result<(&str, VersionReq), Diagnostic> {
    let (name, version) = match text.split_once('@') {
        Some((name, version)) => (name, Some(version)),
        None => (text, None),
    };
    let wanted = version.map_or(Ok(VersionReq::STAR), VersionReq::parse);
    let wanted = wanted.map_err(|error| {
        Diagnostic::new(format!("`{text}` asks for no version"))
            .because(&error)
            .expected("NAME@VERSION, such as snip@1.2 or snip@=1.2.3")
    })?;
    Ok((name, wanted))
}

enum Origin {
    Registry(String),
    Component(String),
    Oci(String),
}

impl Origin {
    fn of(from: &str) -> Origin {
        if from.starts_with(oci::SCHEME) {
            return Origin::Oci(from.to_string());
        }
        if from.ends_with(".wasm") {
            return Origin::Component(from.to_string());
        }
        if !fetch::is_address(from) && Path::new(from).is_dir() {
            return Origin::Registry(Path::new(from).join(FILE_NAME).display().to_string());
        }
        Origin::Registry(from.to_string())
    }
}

fn choose<'e>(
    all: &'e [Entry],
    name: &str,
    wanted: &VersionReq,
    from: &str,
) -> Result<&'e Entry, Diagnostic> {
    let of_name: Vec<&Entry> = all.iter().filter(|entry| entry.name == name).collect();
    if of_name.is_empty() {
        let names = || all.iter().map(|entry| entry.name.as_str());
        let near = nearest(name, names()).map(|near| format!("did you mean `{near}`?"));
        let mut shown: Vec<&str> = names().collect();
        shown.dedup();
        return Err(Diagnostic::new(format!("unknown plugin `{name}`"))
            .expected(one_of(shown))
            .detail("registry", from)
            .help_if(near));
    }
    let fits = |entry: &&&Entry| wanted.matches(&entry.semver());
    let fitting: Vec<&Entry> = of_name.iter().filter(fits).copied().collect();
    let usable = |entry: &&&Entry| component::compatible(&entry.interface);
    let best = registry::best(fitting.iter().filter(usable).copied());
    best.ok_or_else(|| {
        let versions: Vec<String> = of_name
            .iter()
            .map(|entry| format!("{} (interface {})", entry.version, entry.interface))
            .collect();
        Diagnostic::new(format!("plugin `{name}` has no such version"))
            .detail("registry", from)
            .expected(format!(
                "{wanted} for interface {}",
                component::track(component::INTERFACE)
            ))
            .found(versions.join("\n"))
    })
}

/// The highest version in an OCI registry that is wanted and fits this interface.
fn of_oci(
    folder: &Reference,
    name: &str,
    wanted: &VersionReq,
    request: &Request<'_>,
) -> Result<Entry, Diagnostic> {
    let plugin = folder.plugin(name);
    let all = oci::versions(&plugin)?;
    let (usual, early): (Vec<_>, Vec<_>) = all.iter().partition(|version| version.pre.is_empty());
    for version in usual.into_iter().chain(early) {
        if !wanted.matches(version) {
            continue;
        }
        let place = plugin.version(&version.to_string());
        match oci::entry(&place)? {
            Some(entry) if component::compatible(&entry.interface) => return Ok(entry),
            Some(_) => {}
            None => return bare(&place.to_string(), name, request),
        }
    }
    let versions: Vec<String> = all.iter().map(semver::Version::to_string).collect();
    Err(Diagnostic::new(match all.is_empty() {
        true => format!("unknown plugin `{name}`"),
        false => format!("plugin `{name}` has no such version"),
    })
    .detail("registry", folder.to_string())
    .expected(format!(
        "{wanted} for interface {}",
        component::track(component::INTERFACE)
    ))
    .found(match versions.is_empty() {
        true => format!("no version at {plugin}"),
        false => versions.join(", "),
    }))
}

/// An entry for a component that stands in no registry: what it says of itself.
fn bare(file: &str, name: &str, request: &Request<'_>) -> Result<Entry, Diagnostic> {
    let bytes = if fetch::is_address(file) {
        fetch::component(file, None)?
    } else {
        store::read_plain(Path::new(file))?
    };
    // Before anything looks inside: is it the one that the user means?
    let found = component::sha256(&bytes);
    let policy_allows = {
        let project = request.registry.parent().unwrap_or(Path::new(""));
        Policy::load(project, request.trust)?.unsigned == crate::trust::Unsigned::Allow
    };
    if request.sha256.is_none() && !policy_allows {
        return Err(Diagnostic::new(format!("nobody has signed plugin `{name}`"))
            .at(file)
            .expected("a registry whose entry is signed, or its digest, as its author publishes it")
            .found(format!("sha256 {found}"))
            .help("if you know by other means that this is the right component, give --sha256 DIGEST"));
    }
    if let Some(sha256) = request.sha256
        && sha256.trim_start_matches("sha256:").to_ascii_lowercase() != found
    {
        return Err(Diagnostic::new(format!(
            "plugin `{name}` has another digest than the one you gave"
        ))
        .at(file)
        .expected(format!("sha256 {sha256}"))
        .found(format!("sha256 {found}")));
    }
    let told = component::inspect(name, &bytes)?;
    let Some(licence) = request.licence else {
        return Err(Diagnostic::new(format!("plugin `{name}` has no licence"))
            .at(file)
            .detail("because", "a bare component does not say its licence")
            .help("give its author's with --licence SPDX"));
    };
    // It is fetched twice at most: the second time only if the store has lost it.
    Store::open()?.put(&bytes)?;
    Ok(Entry {
        name: name.to_string(),
        version: told.version,
        slot: told.slot,
        summary: told.summary,
        interface: told.interface,
        licence: licence.to_string(),
        paper: None,
        size: Some(told.size),
        toolchain: None,
        source: Source::Fetched {
            from: file.to_string(),
            sha256: found,
        },
        key: None,
        signature: None,
        registry: file.to_string(),
        line: 0,
        own: true,
        pinned: false,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_version_is_read_as_cargo_reads_one() {
        let version = |text: &str| semver::Version::parse(text).unwrap();
        let (name, wanted) = name_and_version("snip@1.2").unwrap();
        assert_eq!(name, "snip");
        assert!(wanted.matches(&version("1.9.0")) && !wanted.matches(&version("2.0.0")));
        assert!(
            name_and_version("snip")
                .unwrap()
                .1
                .matches(&version("7.0.0"))
        );
        let (_, exact) = name_and_version("snip@=1.2.3").unwrap();
        assert!(exact.matches(&version("1.2.3")) && !exact.matches(&version("1.2.4")));
        assert!(name_and_version("snip@x.y").is_err());
    }
}
