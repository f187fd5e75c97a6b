//! `espalier plugin publish`.

use std::path::Path;

use espalier_runtime::diagnostic::Diagnostic;
use espalier_runtime::events::Building;
use espalier_runtime::publish::{self, Request};
use espalier_runtime::trust::SecretKey;

use super::unwritable;
use crate::output::{self, Stream};
use crate::{args, key};

/// Publishes a plugin and says what stands in the registry now.
pub fn publish(args: &args::Publish) -> Result<(), Diagnostic> {
    let key = signing_key(args)?;
    let building = &mut |building: &Building| output::line(Stream::Error, &building.text);
    let request = Request {
        path: &args.path,
        registry: Path::new(&args.registry),
        key: key.as_ref(),
        name: args.name.as_deref(),
        licence: args.licence.as_deref(),
        paper: args.paper.as_deref(),
        setup: args.setup.as_deref(),
    };
    let published = publish::publish(&request, building)?;
    if args.json {
        let text = serde_json::to_string(&published).map_err(unwritable)?;
        output::line(Stream::Out, text);
        return Ok(());
    }
    let entry = &published.entry;
    let mut rows = vec![
        ["slot".to_string(), entry.slot.to_string()],
        ["interface".into(), entry.interface.clone()],
        ["licence".into(), entry.licence.clone()],
        ["sha256".into(), entry.source.sha256().unwrap_or("").into()],
        ["size".into(), output::bytes(entry.size.unwrap_or(0))],
        ["component".into(), published.component.clone()],
    ];
    rows.push(match &entry.key {
        Some(key) => ["signed by".into(), key.clone()],
        None => ["signed by".into(), "nobody".into()],
    });
    let rows: Vec<Vec<String>> = rows.into_iter().map(Vec::from).collect();
    output::line(
        Stream::Out,
        format!(
            "published {} {} in {}\n{}",
            entry.name,
            entry.version,
            args.registry,
            output::table(&rows, &[])
        ),
    );
    Ok(())
}

/// The key that was named, else the author's usual one, else none.
fn signing_key(args: &args::Publish) -> Result<Option<SecretKey>, Diagnostic> {
    if let Some(file) = &args.sign {
        return SecretKey::load(file).map(Some);
    }
    let usual = key::default_file().ok().filter(|file| file.is_file());
    match usual {
        Some(file) if !args.unsigned => SecretKey::load(&file).map(Some),
        _ => Ok(None),
    }
}
