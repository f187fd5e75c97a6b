//! Lists the SDK's sources, so that the command can carry them: an author needs nothing else.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let root = manifest.join("../..").canonicalize()?;
    let mut files = vec![PathBuf::from("Cargo.toml")];
    for folder in ["sdk/src", "sdk/derive", "wit"] {
        println!("cargo::rerun-if-changed={}", root.join(folder).display());
        collect(&root, Path::new(folder), &mut files)?;
    }
    files.push("sdk/Cargo.toml".into());
    files.sort();
    let mut text = String::from("[\n");
    for file in &files {
        let name = file.to_string_lossy().replace('\\', "/");
        let path = root.join(file);
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "    ({name:?}, include_str!({:?})),",
            path.display().to_string()
        );
    }
    text.push_str("]\n");
    println!("cargo::rerun-if-changed=build.rs");
    println!(
        "cargo::rerun-if-changed={}",
        root.join("Cargo.toml").display()
    );
    println!(
        "cargo::rerun-if-changed={}",
        root.join("sdk/Cargo.toml").display()
    );
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    fs::write(out.join("sdk.rs"), text)
}

fn collect(root: &Path, folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(root.join(folder))? {
        let entry = entry?;
        let path = folder.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            collect(root, &path, files)?;
        } else if path
            .extension()
            .is_some_and(|e| e == "rs" || e == "toml" || e == "wit")
        {
            files.push(path);
        }
    }
    Ok(())
}
