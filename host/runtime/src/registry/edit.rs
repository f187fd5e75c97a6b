//! Writing entries into a registry file: comments and order stay, and the file is replaced whole or not at all.

use std::fs::File;
use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, InlineTable, Item, Table};

use super::{Entry, Registry};
use crate::diagnostic::Diagnostic;
use crate::store;

/// A registry file that nobody else writes while this value lives.
pub struct Editor {
    file: PathBuf,
    document: DocumentMut,
    existed: bool,
    _lock: File,
}

impl Editor {
    /// Waits until nobody else writes the registry, then reads it; a file that is missing begins empty.
    pub fn open(file: &Path) -> Result<Editor, Diagnostic> {
        let failed = |error: &std::io::Error| {
            Diagnostic::new("cannot write the registry")
                .at(file.display().to_string())
                .because_io(error)
        };
        let folder = match file.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        };
        std::fs::create_dir_all(folder).map_err(|error| failed(&error))?;
        // A file of its own, because the registry itself is replaced. It stays: who removes a lock that others wait for
        // lets two in.
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let lock = folder.join(format!(".{name}.lock"));
        let lock = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(lock)
            .and_then(|lock| lock.lock().map(|()| lock))
            .map_err(|error| failed(&error))?;
        let existed = file.exists();
        let text = if existed {
            // All errors of the file, in its own words.
            Registry::load(file)?;
            std::fs::read_to_string(file).map_err(|error| failed(&error))?
        } else {
            "schema = 1\n".into()
        };
        let document = text.parse().map_err(|error| {
            Diagnostic::new("the registry is not TOML")
                .at(file.display().to_string())
                .because(&error)
        })?;
        Ok(Editor {
            file: file.to_path_buf(),
            document,
            existed,
            _lock: lock,
        })
    }

    /// The entries as they are, before any change.
    pub fn entries(&self) -> Result<Vec<Entry>, Diagnostic> {
        match self.existed {
            true => super::read::alone(&self.file),
            false => Ok(Vec::new()),
        }
    }

    /// Adds an entry at the end; `source` is its table, such as `file` and `sha256`.
    pub fn add(&mut self, entry: &Entry, source: &[(&str, &str)]) -> Result<(), Diagnostic> {
        let mut table = Table::new();
        table.insert("name", toml_edit::value(&entry.name));
        table.insert("version", toml_edit::value(&entry.version));
        table.insert("slot", toml_edit::value(entry.slot.as_str()));
        table.insert("summary", toml_edit::value(&entry.summary));
        table.insert("interface", toml_edit::value(&entry.interface));
        table.insert("licence", toml_edit::value(&entry.licence));
        if let Some(paper) = &entry.paper {
            table.insert("paper", toml_edit::value(paper));
        }
        if let Some(size) = entry.size {
            table.insert(
                "size",
                toml_edit::value(i64::try_from(size).unwrap_or(i64::MAX)),
            );
        }
        if let Some(toolchain) = &entry.toolchain {
            table.insert("toolchain", toml_edit::value(toolchain));
        }
        let mut inline = InlineTable::new();
        for (key, value) in source {
            inline.insert(*key, (*value).into());
        }
        table.insert("source", toml_edit::value(inline));
        if let (Some(key), Some(signature)) = (&entry.key, &entry.signature) {
            table.insert("key", toml_edit::value(key));
            table.insert("signature", toml_edit::value(signature));
        }
        if !self.document.as_table().is_empty() {
            table.decor_mut().set_prefix("\n");
        }
        let plugins = self
            .document
            .entry("plugin")
            .or_insert(Item::ArrayOfTables(Default::default()));
        let Some(plugins) = plugins.as_array_of_tables_mut() else {
            return Err(
                Diagnostic::new("`plugin` of the registry is no list of tables")
                    .at(self.file.display().to_string())
                    .expected("[[plugin]] tables"),
            );
        };
        plugins.push(table);
        Ok(())
    }

    /// Takes out every version of a name.
    pub fn remove(&mut self, name: &str) {
        let plugins = self.document.get_mut("plugin");
        if let Some(plugins) = plugins.and_then(Item::as_array_of_tables_mut) {
            plugins.retain(|table| table.get("name").and_then(Item::as_str) != Some(name));
        }
    }

    /// Writes the file.
    pub fn save(self) -> Result<(), Diagnostic> {
        store::replace(&self.file, self.document.to_string().as_bytes())
    }
}
