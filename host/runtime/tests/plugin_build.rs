//! Building plugins from source, on packages of a few lines. Needs cargo and the wasm target, as every run does
//! whose plugins are folders.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use espalier_runtime::component::sha256;
use espalier_runtime::events::{BuildStage, Building};
use espalier_runtime::plugin_build::build;

/// A folder that goes when the test is over.
struct Folder(PathBuf);

impl Folder {
    /// A package `package` in a folder `name`. Tests run side by side and may share one target folder, where
    /// packages of one name would write over each other's component.
    fn new(name: &str, package: &str) -> Self {
        let folder =
            std::env::temp_dir().join(format!("espalier-build-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(folder.join("src")).unwrap();
        // Other tests' folders and the surrounding workspace are none of this package's business.
        let manifest = format!(
            "[package]\nname = \"{package}\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\
             [lib]\ncrate-type = [\"cdylib\"]\n[workspace]\n"
        );
        std::fs::write(folder.join("Cargo.toml"), manifest).unwrap();
        std::fs::write(folder.join("src/lib.rs"), SOURCE).unwrap();
        Folder(folder.canonicalize().unwrap())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The panic's message holds the file's name, which must not be that of the folder.
const SOURCE: &str = "#[unsafe(no_mangle)]\npub extern \"C\" fn half(x: u32) -> u32 {\n    \
                      assert!(x % 2 == 0, \"odd\");\n    x / 2\n}\n";

fn build_one(folder: &Path) -> (Vec<u8>, bool, Vec<Building>) {
    let mut said = Vec::new();
    let built = build(&[("tiny", folder)], &mut |building| {
        said.push(building.clone())
    })
    .unwrap();
    let (_, built) = &built[0];
    (std::fs::read(&built.file).unwrap(), built.fresh, said)
}

#[test]
fn the_digest_does_not_depend_on_the_folder_and_a_second_build_does_nothing() {
    let (one, other) = (
        Folder::new("one", "tiny"),
        Folder::new("a-longer-name", "tiny"),
    );
    let (bytes, fresh, said) = build_one(&one.0);
    assert!(!fresh);
    assert_eq!(
        said.last().map(|building| building.stage),
        Some(BuildStage::Done)
    );
    let (again, fresh, said) = build_one(&one.0);
    assert!(fresh && said.is_empty(), "{said:?}");
    assert_eq!(again, bytes);

    let (same, _, _) = build_one(&other.0);
    assert_eq!(sha256(&bytes), sha256(&same));
    let name = one.0.to_str().unwrap().as_bytes();
    assert!(
        !bytes.windows(name.len()).any(|window| window == name),
        "the folder is in the component"
    );
}

#[test]
fn a_build_that_fails_shows_what_the_compiler_said() {
    let folder = Folder::new("broken", "tiny-broken");
    std::fs::write(
        folder.0.join("src/lib.rs"),
        "pub fn f() -> u32 { \"text\" }\n",
    )
    .unwrap();
    let error = build(&[("tiny", &folder.0)], &mut |_| ())
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("error: plugin `tiny` does not build\n"),
        "{error}"
    );
    assert!(
        error.contains("error[E0308]: mismatched types") && error.contains("src/lib.rs:1:21"),
        "{error}"
    );
}

#[test]
fn a_library_of_any_crate_type_becomes_a_component() {
    let folder = Folder::new("rlib", "tiny-rlib");
    let manifest = std::fs::read_to_string(folder.0.join("Cargo.toml")).unwrap();
    std::fs::write(
        folder.0.join("Cargo.toml"),
        manifest.replace("cdylib", "rlib"),
    )
    .unwrap();
    let (bytes, ..) = build_one(&folder.0);
    assert!(bytes.starts_with(b"\0asm"));
}
