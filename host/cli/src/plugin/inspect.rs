//! `espalier plugin inspect`: what one plugin says of itself, what it may reach, and where it was found.

use std::path::PathBuf;

use espalier_runtime::component::{self, Inspection};
use espalier_runtime::diagnostic::Diagnostic;
use espalier_runtime::events::Building;
use espalier_runtime::options;
use espalier_runtime::registry::{Entry, Registry};
use serde::Serialize;

use super::{open, unwritable};
use crate::output::{self, Paint, Stream};

/// What `inspect` shows: the component's own words, and where it was found.
#[derive(Serialize)]
struct Found {
    #[serde(flatten)]
    inspection: Inspection,
    /// The component file.
    file: PathBuf,
    /// What the registry says of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    registry: Option<Entry>,
}

/// Prints what a plugin is, by its name in the registry or from a component file.
pub fn inspect(plugin: &str, json: bool, registry: Option<PathBuf>) -> Result<(), Diagnostic> {
    let is_file = plugin.ends_with(".wasm") || plugin.contains(std::path::MAIN_SEPARATOR);
    let found = if is_file {
        let file = PathBuf::from(plugin);
        let inspection = component::inspect(plugin, &component::read(&file)?)?;
        Found {
            inspection,
            file,
            registry: None,
        }
    } else {
        from_registry(plugin, &open(registry)?)?
    };
    if json {
        output::line(
            Stream::Out,
            serde_json::to_string(&found).map_err(unwritable)?,
        );
    } else {
        output::line(Stream::Out, describe(&found, Paint::of(Stream::Out)));
    }
    Ok(())
}

fn from_registry(name: &str, registry: &Registry) -> Result<Found, Diagnostic> {
    let entry = registry.entry(name)?;
    let building = &mut |building: &Building| output::line(Stream::Error, &building.text);
    let resolved = registry.resolve(&[entry], building)?.pop();
    let resolved =
        resolved.ok_or_else(|| Diagnostic::new(format!("plugin `{name}` has no component")))?;
    let inspection = component::inspect(name, &resolved.bytes)?;
    if inspection.slot != entry.slot {
        return Err(Diagnostic::new(format!(
            "plugin `{name}` does not fill the slot that the registry says"
        ))
        .at(format!("{}:{}", registry.file.display(), entry.line))
        .expected(format!("a {}", entry.slot))
        .found(format!("a {}", inspection.slot))
        .help("mend the registry's entry"));
    }
    let here = std::env::current_dir().unwrap_or_default();
    let file = resolved
        .path
        .strip_prefix(&here)
        .unwrap_or(&resolved.path)
        .to_path_buf();
    Ok(Found {
        inspection,
        file,
        registry: Some(entry.clone()),
    })
}

fn describe(found: &Found, paint: Paint) -> String {
    let plugin = &found.inspection;
    let mut rows = vec![
        ["slot".to_string(), plugin.slot.to_string()],
        ["interface".into(), plugin.interface.clone()],
        ["sha256".into(), plugin.sha256.clone()],
        ["size".into(), output::bytes(plugin.size)],
        ["file".into(), found.file.display().to_string()],
    ];
    if let Some(entry) = &found.registry {
        if entry.version != plugin.version {
            rows.push(["registry says".into(), format!("version {}", entry.version)]);
        }
        rows.push(["licence".into(), entry.licence.clone()]);
        rows.extend(entry.paper.clone().map(|paper| ["paper".into(), paper]));
    }
    rows.push(["imports".into(), listed(&plugin.imports)]);
    rows.push(["cannot reach".into(), listed(&plugin.denied)]);
    rows.push([
        String::new(),
        "files, network, environment, real time, entropy".into(),
    ]);
    let rows: Vec<Vec<String>> = rows.into_iter().map(Vec::from).collect();
    let mut text = format!(
        "{} {}\n{}\n\n{}\n",
        paint.strong(&plugin.name),
        plugin.version,
        plugin.summary,
        output::painted_table(&rows, &[], |row, column, cell| match (row, column) {
            (0, 1) => paint.slot(cell),
            (_, 0) => paint.faint(cell),
            _ => cell.to_string(),
        })
    );
    if plugin.options.is_empty() {
        text.push_str("\nno options");
        return text;
    }
    text.push_str(&format!("\noptions, under [{}.with]", plugin.slot));
    for option in &plugin.options {
        let default = options::show(&option.default);
        text.push_str(&format!("\n  {} = {default}\n", paint.strong(&option.name)));
        let expected = options::expectation(option);
        text.push_str(&format!("      {}", paint.faint(&expected)));
        for line in output::wrap(&option.doc, 90)
            .iter()
            .filter(|line| !line.is_empty())
        {
            text.push_str(&format!("\n      {line}"));
        }
    }
    text
}

fn listed(names: &[String]) -> String {
    if names.is_empty() {
        "nothing".into()
    } else {
        names.join(", ")
    }
}
