//! Where a new crate finds the SDK: where the author says, in a checkout nearby, or in the copy that this command
//! carries.

use std::fs;
use std::path::{Path, PathBuf};

use espalier_runtime::component::sha256;
use espalier_runtime::diagnostic::Diagnostic;

/// The SDK's sources and the root manifest they belong to, by path in the repository.
const CARRIED: &[(&str, &str)] = &include!(concat!(env!("OUT_DIR"), "/sdk.rs"));

/// The SDK, and what the author should know of it.
pub(super) struct Sdk {
    /// The crate's folder, absolute.
    pub(super) path: PathBuf,
    /// A line to show.
    pub(super) note: Option<String>,
}

/// Finds the SDK for a plugin that is made in `dir`.
pub(super) fn find(given: Option<&Path>, dir: &Path) -> Result<Sdk, Diagnostic> {
    if let Some(given) = given {
        return match at(given) {
            Some(path) => Ok(Sdk { path, note: None }),
            None => Err(
                Diagnostic::new(format!("`{}` is not the SDK", given.display()))
                    .at("--sdk")
                    .expected("a checkout of Espalier, or its folder `sdk`")
                    .help("leave --sdk out for the SDK that this command carries"),
            ),
        };
    }
    let whole = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    if let Some(path) = whole.ancestors().find_map(at) {
        let note = format!("the SDK is the checkout's, {}", path.display());
        return Ok(Sdk {
            path,
            note: Some(note),
        });
    }
    let path = unpacked()?;
    let note = format!(
        "the SDK is this command's own, unpacked in {}",
        path.display()
    );
    Ok(Sdk {
        path,
        note: Some(note),
    })
}

/// The crate in a checkout or in its folder `sdk`.
fn at(folder: &Path) -> Option<PathBuf> {
    let is_it = |folder: &PathBuf| {
        fs::read_to_string(folder.join("Cargo.toml"))
            .is_ok_and(|text| text.contains("name = \"espalier-sdk\""))
    };
    [folder.join("sdk"), folder.to_path_buf()]
        .into_iter()
        .find(is_it)
        .and_then(|folder| folder.canonicalize().ok())
}

/// The carried SDK in the user's data folder, under its version and digest: unpacked once, never changed.
fn unpacked() -> Result<PathBuf, Diagnostic> {
    let home = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share")));
    let home = home.ok_or_else(|| {
        Diagnostic::new("there is no place for the SDK")
            .detail("because", "neither XDG_DATA_HOME nor HOME is set")
            .help("name a checkout of Espalier with --sdk")
    })?;
    let all: String = CARRIED
        .iter()
        .map(|(path, text)| format!("{path}\n{text}\n"))
        .collect();
    let digest = sha256(all.as_bytes());
    let version = env!("CARGO_PKG_VERSION");
    let place = home
        .join("espalier")
        .join(format!("sdk-{version}-{}", &digest[..8]));
    if place.join("sdk/Cargo.toml").is_file() {
        return Ok(place.join("sdk"));
    }
    let failed = |path: &Path, error: std::io::Error| {
        Diagnostic::new(format!("`{}` could not be written", path.display()))
            .because_io(&error)
            .help("name a checkout of Espalier with --sdk")
    };
    let partial = place.with_extension(std::process::id().to_string());
    for (path, text) in CARRIED {
        let file = partial.join(path);
        let folder = file.parent().unwrap_or(&partial);
        fs::create_dir_all(folder).map_err(|error| failed(folder, error))?;
        let text = match *path {
            "Cargo.toml" => manifest(text),
            _ => text.to_string(),
        };
        fs::write(&file, text).map_err(|error| failed(&file, error))?;
    }
    match fs::rename(&partial, &place) {
        Ok(()) => {}
        // Another command was faster.
        Err(_) if place.join("sdk/Cargo.toml").is_file() => {
            let _ = fs::remove_dir_all(&partial);
        }
        Err(error) => return Err(failed(&place, error)),
    }
    Ok(place.join("sdk"))
}

/// The root manifest with the SDK's crates as its only members.
fn manifest(text: &str) -> String {
    let mut manifest: toml::Table = text.parse().unwrap_or_default();
    manifest.remove("profile");
    if let Some(toml::Value::Table(workspace)) = manifest.get_mut("workspace") {
        let members = ["sdk", "sdk/derive"].map(|member| toml::Value::String(member.into()));
        workspace.insert("members".into(), toml::Value::Array(members.to_vec()));
        workspace.remove("default-members");
        workspace.remove("exclude");
        if let Some(toml::Value::Table(dependencies)) = workspace.get_mut("dependencies") {
            let needed = ["espalier-sdk", "espalier-sdk-derive", "wit-bindgen"];
            dependencies.retain(|name, _| needed.contains(&name));
        }
    }
    manifest.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_carries_the_whole_sdk() {
        let has = |path: &str| CARRIED.iter().any(|(name, _)| *name == path);
        assert!(has("Cargo.toml") && has("sdk/Cargo.toml") && has("sdk/src/lib.rs"));
        assert!(has("sdk/derive/src/lib.rs") && has("wit/slots.wit"));
        let root = CARRIED.iter().find(|(name, _)| *name == "Cargo.toml");
        let manifest: toml::Table = manifest(root.map_or("", |(_, text)| text))
            .parse()
            .unwrap_or_default();
        let workspace = &manifest["workspace"];
        assert_eq!(workspace["members"].as_array().map(Vec::len), Some(2));
        assert!(workspace["dependencies"].get("wit-bindgen").is_some());
        assert!(workspace["dependencies"].get("wasmtime").is_none());
    }
}
