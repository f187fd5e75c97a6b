//! Components that came from elsewhere, kept by digest in a private folder of the user, and writing files whole.
//!
//! The folder must belong to this user and be closed to everybody else, as that of compiled components must. Even so
//! nothing is believed because it lies there: whatever is read is digested again, and must be a plain file.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cache;
use crate::component;
use crate::diagnostic::Diagnostic;

/// The largest component that is read, downloaded or published, in bytes: a Python plugin with its interpreter
/// has some 40 MB.
pub const LARGEST: u64 = 256 << 20;

/// The user's store.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
}

impl Store {
    /// `$XDG_CACHE_HOME/espalier/store` or `~/.cache/espalier/store`.
    pub fn open() -> Result<Store, Diagnostic> {
        let folder = cache::private_folder("store").ok_or_else(|| {
            Diagnostic::new("there is no safe folder to keep components in")
                .expected("espalier/store in $XDG_CACHE_HOME or ~/.cache, which belongs to you and is closed to others")
                .help("chmod 700 the folder, or set XDG_CACHE_HOME")
        })?;
        Ok(Store { folder })
    }

    /// Where the component of this digest is kept.
    pub fn path(&self, sha256: &str) -> PathBuf {
        self.folder.join(format!("{sha256}.wasm"))
    }

    /// The component of this digest, checked; none if the store hasn't got it. `name` is the plugin's, for messages.
    pub fn get(&self, name: &str, sha256: &str) -> Result<Option<Vec<u8>>, Diagnostic> {
        let file = self.path(sha256);
        if std::fs::symlink_metadata(&file).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound)
        {
            return Ok(None);
        }
        let bytes = read_plain(&file).map_err(|error| {
            Diagnostic {
                what: format!("the store's copy of plugin `{name}` cannot be used"),
                ..error
            }
            .help("remove it; it is fetched again when it is needed")
        })?;
        let found = component::sha256(&bytes);
        if found != sha256 {
            return Err(Diagnostic::new(format!(
                "the store's copy of plugin `{name}` was changed"
            ))
            .at(file.display().to_string())
            .expected(format!("sha256 {sha256}"))
            .found(format!("sha256 {found}"))
            .help(
                "find out who changed it, then remove it; it is fetched again when it is needed",
            ));
        }
        Ok(Some(bytes))
    }

    /// Keeps a component; gives its digest.
    pub fn put(&self, bytes: &[u8]) -> Result<String, Diagnostic> {
        let sha256 = component::sha256(bytes);
        replace(&self.path(&sha256), bytes)?;
        Ok(sha256)
    }
}

/// Reads a plain file of bounded size; a link, a folder or a device is an error.
pub(crate) fn read_plain(file: &Path) -> Result<Vec<u8>, Diagnostic> {
    let wrong = || Diagnostic::new("cannot read the component").at(file.display().to_string());
    let about = std::fs::symlink_metadata(file).map_err(|error| wrong().because_io(&error))?;
    if !about.is_file() {
        let kind = about.file_type();
        let found = match () {
            () if kind.is_symlink() => match std::fs::read_link(file) {
                Ok(to) => format!("a link to {}", to.display()),
                Err(_) => "a link".into(),
            },
            () if kind.is_dir() => "a folder".into(),
            () => "neither a file nor a folder".into(),
        };
        return Err(wrong().expected("a plain file").found(found));
    }
    if about.len() > LARGEST {
        return Err(wrong()
            .expected(format!("at most {LARGEST} bytes"))
            .found(format!("{} bytes", about.len())));
    }
    std::fs::read(file).map_err(|error| wrong().because_io(&error))
}

/// Writes a file whole or not at all, over one that is there.
pub(crate) fn replace(file: &Path, bytes: &[u8]) -> Result<(), Diagnostic> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let folder = match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}-{number}.tmp", std::process::id()));
    let write = || -> std::io::Result<()> {
        std::fs::create_dir_all(folder)?;
        let mut out = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&temporary)?;
        // A file that people share keeps its rights.
        if let Ok(about) = std::fs::metadata(file) {
            out.set_permissions(about.permissions())?;
        }
        out.write_all(bytes)?;
        out.sync_all()?;
        std::fs::rename(&temporary, file)?;
        // The name is safe only when the folder is; where a folder can't be synced, it is as good as it gets.
        std::fs::File::open(folder).and_then(|folder| folder.sync_all())
    };
    write().map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        Diagnostic::new(format!("`{}` could not be written", file.display())).because_io(&error)
    })
}
