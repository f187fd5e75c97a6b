//! `espalier plugin add`.

use std::path::Path;

use espalier_runtime::add::{self, Request};
use espalier_runtime::diagnostic::Diagnostic;
use espalier_runtime::registry::Registry;

use super::unwritable;
use crate::args;
use crate::output::{self, Stream};

/// Adds somebody's plugin to the project's registry and says who vouches for it.
pub fn add(args: &args::Add) -> Result<(), Diagnostic> {
    let registry = match &args.registry {
        Some(file) => file.clone(),
        None => Registry::find(Path::new(""))?,
    };
    let added = add::add(&Request {
        plugin: &args.plugin,
        from: &args.from,
        registry: &registry,
        trust: args.trust.as_deref(),
        sha256: args.sha256.as_deref(),
        licence: args.licence.as_deref(),
        downgrade: args.downgrade,
    })?;
    if args.json {
        let text = serde_json::to_string(&added).map_err(unwritable)?;
        output::line(Stream::Out, text);
        return Ok(());
    }
    let entry = &added.entry;
    let vouched = match (&entry.key, added.signed_by.as_deref()) {
        (Some(key), None | Some("")) => format!("{key}, a key that you trust"),
        (Some(key), Some(owner)) => format!("{key}, {owner}"),
        (None, _) if args.sha256.is_some() => "your own word for its digest".into(),
        (None, _) => "nobody; your policy allows it".into(),
    };
    let rows = [
        ["slot".to_string(), entry.slot.to_string()],
        ["licence".into(), entry.licence.clone()],
        ["sha256".into(), entry.source.sha256().unwrap_or("").into()],
        ["size".into(), output::bytes(entry.size.unwrap_or(0))],
        ["vouched by".into(), vouched],
        ["kept in".into(), added.stored.display().to_string()],
    ];
    let rows: Vec<Vec<String>> = rows.into_iter().map(Vec::from).collect();
    let instead = match &added.replaced {
        Some(version) => format!(" instead of {version}"),
        None => String::new(),
    };
    output::line(
        Stream::Out,
        format!(
            "added {} {}{instead} to {}\n{}",
            entry.name,
            entry.version,
            registry.display(),
            output::table(&rows, &[])
        ),
    );
    output::line(
        Stream::Error,
        format!(
            "\n  next: name it under [{}] in a run file, or espalier plugin inspect {}",
            entry.slot, entry.name
        ),
    );
    Ok(())
}
