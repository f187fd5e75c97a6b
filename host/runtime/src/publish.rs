//! From a plugin's folder to an entry in somebody's registry: built, checked, signed, written whole or not at all.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use crate::component::{self, Inspection};
use crate::conformance::{self, Setup};
use crate::diagnostic::Diagnostic;
use crate::events::Building;
use crate::oci::{self, Reference};
use crate::plugin_build;
use crate::registry::edit::Editor;
use crate::registry::{Entry, Source};
use crate::store;
use crate::trust::SecretKey;

/// The folder of components beside a registry file.
pub const COMPONENTS: &str = "components";

/// What begins the names of many plugins' packages, and no plugin's name.
const PACKAGE_PREFIX: &str = "espalier-plugin-";

/// What to publish, and where.
pub struct Request<'a> {
    /// A folder with a cargo package, or a component file.
    pub path: &'a Path,
    /// The registry file, which is made if it is missing, or `oci://HOST/FOLDER`.
    pub registry: &'a Path,
    /// Signs the entry.
    pub key: Option<&'a SecretKey>,
    /// The plugin's name, instead of the component's own.
    pub name: Option<&'a str>,
    /// The licence, instead of the package's.
    pub licence: Option<&'a str>,
    /// Where the method was published, instead of the package's.
    pub paper: Option<&'a str>,
    /// What the conformance suite is told, instead of the folder's `conformance.toml`.
    pub setup: Option<&'a Path>,
}

/// What was published.
#[derive(Clone, Debug, Serialize)]
pub struct Published {
    /// The entry as it stands in the registry now.
    pub entry: Entry,
    /// Where the component was put: a file or an address.
    pub component: String,
}

/// A component that is ready to be published: what it says of itself and what its package adds.
pub struct Prepared {
    /// The component.
    pub bytes: Vec<u8>,
    /// The entry, without a source; unsigned.
    pub entry: Entry,
    /// What the component says of itself.
    pub inspection: Inspection,
}

/// Builds and checks what is to be published, and signs it.
pub fn prepare(
    request: &Request<'_>,
    building: &mut dyn FnMut(&Building),
) -> Result<Prepared, Diagnostic> {
    let shown = request.path.display().to_string();
    let (bytes, package) = if request.path.is_dir() {
        let package = Package::read(request.path)?;
        let name = request.name.unwrap_or(&package.name);
        let built = plugin_build::build(&[(name, request.path)], building)?;
        let (_, built) = built
            .into_iter()
            .next()
            .ok_or_else(|| Diagnostic::new("cargo built no component").at(shown.clone()))?;
        (component::read(&built.file)?, package)
    } else {
        (store::read_plain(request.path)?, Package::default())
    };
    let inspection = component::inspect(&shown, &bytes)?;
    let own = inspection.name.strip_prefix(PACKAGE_PREFIX);
    let name = request.name.unwrap_or(own.unwrap_or(&inspection.name));
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || !name.chars().all(plain) {
        return Err(Diagnostic::new("this name is none for a plugin")
            .at(shown)
            .expected("lower-case letters, digits and -")
            .found(format!("{name:?}"))
            .help("give it one with --name NAME"));
    }
    if semver::Version::parse(&inspection.version).is_err() {
        return Err(Diagnostic::new("this version is none")
            .at(shown)
            .expected("MAJOR.MINOR.PATCH")
            .found(format!("{:?}", inspection.version)));
    }
    let licence = request.licence.map(str::to_string).or(package.license);
    let Some(licence) = licence.filter(|licence| !licence.trim().is_empty()) else {
        return Err(Diagnostic::new(format!("plugin `{name}` has no licence"))
            .at(shown)
            .detail("because", "without one nobody may use it")
            .help("add license = \"MIT OR Apache-2.0\" or another SPDX expression to its Cargo.toml, or give --licence"));
    };
    let entry = Entry {
        name: name.to_string(),
        version: inspection.version.clone(),
        slot: inspection.slot,
        summary: inspection.summary.clone(),
        interface: inspection.interface.clone(),
        licence,
        paper: request
            .paper
            .map(str::to_string)
            .or(package.metadata.espalier.paper),
        size: Some(inspection.size),
        toolchain: package.toolchain,
        source: Source::Fetched {
            from: String::new(),
            sha256: inspection.sha256.clone(),
        },
        key: None,
        signature: None,
        registry: String::new(),
        line: 0,
        own: true,
        pinned: true,
    };
    lawful(request, &entry.name, &bytes)?;
    let mut prepared = Prepared {
        bytes,
        entry,
        inspection,
    };
    if let Some(key) = request.key {
        prepared.sign(key)?;
    }
    Ok(prepared)
}

/// Tries the component on the laws of its slot.
fn lawful(request: &Request<'_>, name: &str, bytes: &[u8]) -> Result<(), Diagnostic> {
    let beside = request.path.with_extension("conformance.toml");
    let setup = match request.setup {
        Some(file) => Setup::load(file)?,
        None if request.path.is_dir() => Setup::of_folder(request.path)?,
        None if beside.is_file() => Setup::load(&beside)?,
        None => Setup::default(),
    };
    let report = conformance::check(name, bytes, &setup)?;
    let broken: Vec<String> = report
        .broken()
        .map(|(law, fault)| format!("{law}: {}", fault.found))
        .collect();
    if broken.is_empty() {
        return Ok(());
    }
    Err(
        Diagnostic::new(format!("plugin `{name}` breaks laws of its slot"))
            .at(request.path.display().to_string())
            .detail("broken", broken.join("\n"))
            .help(format!(
                "to see all of it: espalier plugin test {}",
                request.path.display()
            )),
    )
}

impl Prepared {
    fn sign(&mut self, key: &SecretKey) -> Result<(), Diagnostic> {
        let statement = self.entry.statement();
        let statement =
            statement.ok_or_else(|| Diagnostic::new("there is no component to sign"))?;
        self.entry.signature = Some(key.sign(&statement)?);
        self.entry.key = Some(key.public().as_str().to_string());
        Ok(())
    }
}

/// Refuses what may not follow the versions that are there: another slot, or a version that is not higher.
pub fn may_follow(new: &Entry, all: &[Entry], registry: &str) -> Result<(), Diagnostic> {
    let same = all.iter().filter(|entry| entry.name == new.name);
    let Some(last) = same.max_by_key(|entry| entry.semver()) else {
        return Ok(());
    };
    if last.slot != new.slot {
        return Err(
            Diagnostic::new(format!("plugin `{}` changes its slot", new.name))
                .detail("registry", registry)
                .expected(format!(
                    "{}, as version {}",
                    last.slot.with_article(),
                    last.version
                ))
                .found(new.slot.with_article())
                .help("a plugin of another slot is another plugin: give it another name"),
        );
    }
    if new.semver() <= last.semver() {
        return Err(Diagnostic::new(format!(
            "plugin `{}` is in the registry with this version or a higher one",
            new.name
        ))
        .detail("registry", registry)
        .expected(format!("a version above {}", last.version))
        .found(new.version.clone())
        .help("what is published stays as it is: raise the version of the package"));
    }
    Ok(())
}

/// Publishes into a registry file: the component beside it, then its entry.
pub fn publish(
    request: &Request<'_>,
    building: &mut dyn FnMut(&Building),
) -> Result<Published, Diagnostic> {
    let registry = request.registry;
    if oci::is_address(registry) {
        return publish_oci(request, building);
    }
    let Prepared {
        bytes, mut entry, ..
    } = prepare(request, building)?;
    // From here on nobody else publishes into this registry.
    let mut editor = Editor::open(registry)?;
    may_follow(&entry, &editor.entries()?, &registry.display().to_string())?;
    let name = format!("{}/{}-{}.wasm", COMPONENTS, entry.name, entry.version);
    let file = registry.parent().unwrap_or(Path::new("")).join(&name);
    let sha256 = component::sha256(&bytes);
    entry.registry = registry.display().to_string();
    entry.source = Source::File {
        file: file.clone(),
        sha256: sha256.clone(),
    };
    editor.add(&entry, &[("file", &name), ("sha256", &sha256)])?;
    // The component first: an entry never names a file that is not there. One that is there without an entry is left from
    // a publish that was cut off, and may be written over.
    store::replace(&file, &bytes)?;
    if let Err(error) = editor.save() {
        let _ = std::fs::remove_file(&file);
        return Err(error);
    }
    Ok(Published {
        entry,
        component: file.display().to_string(),
    })
}

/// Publishes into a folder of an OCI registry: `oci://HOST/FOLDER/NAME:VERSION`. Two at once are kept apart by nobody
/// but the registry, which has no lock to offer.
fn publish_oci(
    request: &Request<'_>,
    building: &mut dyn FnMut(&Building),
) -> Result<Published, Diagnostic> {
    let folder = Reference::parse(&request.registry.display().to_string())?;
    let Prepared {
        bytes, mut entry, ..
    } = prepare(request, building)?;
    let plugin = folder.plugin(&entry.name);
    if let Some(last) = oci::versions(&plugin)?.first() {
        let last = last.to_string();
        let before = oci::entry(&plugin.version(&last))?;
        // One that another program pushed says nothing of its slot, but its version counts.
        let before = before.unwrap_or(Entry {
            version: last,
            ..entry.clone()
        });
        may_follow(&entry, &[before], &plugin.to_string())?;
    }
    let version = plugin.version(&entry.version);
    let loaded = component::load(&entry.name, &bytes)?;
    oci::push(&version, &entry, &bytes, &loaded)?;
    entry.registry = version.to_string();
    entry.source = Source::Fetched {
        from: version.to_string(),
        sha256: loaded.sha256,
    };
    Ok(Published {
        entry,
        component: version.to_string(),
    })
}

/// What a cargo package says beside what is in its component.
#[derive(Default, Deserialize)]
struct Package {
    name: String,
    manifest_path: PathBuf,
    license: Option<String>,
    #[serde(default, deserialize_with = "absent")]
    metadata: Metadata,
    #[serde(skip)]
    toolchain: Option<String>,
}

#[derive(Default, Deserialize)]
struct Metadata {
    #[serde(default)]
    espalier: Ours,
}

/// `[package.metadata.espalier]` of a plugin's Cargo.toml, `[tool.espalier]` of its pyproject.toml.
#[derive(Default, Deserialize)]
struct Ours {
    paper: Option<String>,
}

/// cargo writes `null` for a package without metadata.
fn absent<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Metadata, D::Error> {
    Ok(Option::<Metadata>::deserialize(from)?.unwrap_or_default())
}

impl Package {
    fn read(folder: &Path) -> Result<Package, Diagnostic> {
        #[derive(Deserialize)]
        struct Answer {
            packages: Vec<Package>,
        }
        let failed = || {
            Diagnostic::new("cargo cannot read this plugin's package")
                .at(folder.display().to_string())
        };
        let missing = |error: std::io::Error| {
            Diagnostic::new("the source of this plugin is not there")
                .at(folder.display().to_string())
                .expected("a folder with a Cargo.toml or a pyproject.toml, or a component file")
                .because_io(&error)
        };
        let python = folder.join("pyproject.toml");
        if python.is_file() && !folder.join("Cargo.toml").exists() {
            return Package::of_python(&python);
        }
        let manifest = folder.join("Cargo.toml").canonicalize().map_err(missing)?;
        let output = Command::new("cargo")
            .args(["metadata", "--no-deps", "--format-version", "1"])
            .arg("--manifest-path")
            .arg(&manifest)
            .output()
            .map_err(|error| failed().because(&error))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(failed().detail("cargo", said.trim()));
        }
        let answer: Answer =
            serde_json::from_slice(&output.stdout).map_err(|error| failed().because(&error))?;
        let package = answer
            .packages
            .into_iter()
            .find(|package| package.manifest_path == manifest);
        let mut package = package.ok_or_else(|| failed().found("a workspace without a package"))?;
        // The compiler that this folder's toolchain file chooses.
        let rustc = Command::new("rustc")
            .arg("--version")
            .current_dir(folder)
            .output();
        package.toolchain = rustc
            .ok()
            .filter(|output| output.status.success())
            .map(|output| String::from_utf8_lossy(&output.stdout).trim().to_string());
        Ok(package)
    }

    /// What a plugin in Python says in its pyproject.toml.
    fn of_python(file: &Path) -> Result<Package, Diagnostic> {
        #[derive(Deserialize)]
        struct File {
            project: Project,
            #[serde(default)]
            tool: Metadata,
        }
        #[derive(Deserialize)]
        struct Project {
            name: String,
            license: Option<toml::Value>,
        }
        let wrong = || {
            Diagnostic::new("the pyproject.toml of this plugin cannot be read")
                .at(file.display().to_string())
        };
        let text = std::fs::read_to_string(file).map_err(|error| wrong().because_io(&error))?;
        let read: File = toml::from_str(&text).map_err(|error| wrong().because(&error))?;
        // An SPDX expression; older files have a table with the text or its file, which is none.
        let license = read.project.license.as_ref().and_then(toml::Value::as_str);
        Ok(Package {
            name: read.project.name,
            license: license.map(str::to_string),
            metadata: read.tool,
            ..Package::default()
        })
    }
}
