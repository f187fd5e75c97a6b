//! `espalier plugin list` and `espalier plugin search`: the plugins of the registry.

use std::path::PathBuf;

use espalier_runtime::diagnostic::Diagnostic;
use espalier_runtime::registry::Entry;

use super::{open, unwritable};
use crate::output::{self, Paint, Stream};

/// Characters of a summary in a line, where lines are for people.
const SUMMARY: usize = 72;

/// Prints the registry's plugins that hold all the words, as a table by slot and name, or as one JSON object a line
/// in the registry's order.
pub fn list(words: &[String], json: bool, registry: Option<PathBuf>) -> Result<(), Diagnostic> {
    let registry = open(registry)?;
    let mut found: Vec<&Entry> = registry
        .entries
        .iter()
        .filter(|entry| holds(entry, words))
        .collect();
    if json {
        for entry in found {
            let text = serde_json::to_string(entry).map_err(unwritable)?;
            output::line(Stream::Out, text);
        }
        return Ok(());
    }
    let from = registry.file.display();
    if found.is_empty() {
        let text = match words {
            [] => format!("no plugins in {from}"),
            _ => format!("nothing in {from} speaks of {}", words.join(" ")),
        };
        output::line(Stream::Error, text);
        return Ok(());
    }
    found.sort_by_key(|entry| (entry.slot, &entry.name));
    let paint = Paint::of(Stream::Out);
    output::line(Stream::Out, table(&found, paint));
    let plugins = match found.len() {
        1 => "1 plugin".to_string(),
        n => format!("{n} plugins"),
    };
    output::line(
        Stream::Out,
        paint.faint(&format!("\n  {plugins} from {from}")),
    );
    Ok(())
}

fn holds(entry: &Entry, words: &[String]) -> bool {
    let text = format!("{} {} {}", entry.name, entry.slot, entry.summary).to_lowercase();
    words.iter().all(|word| text.contains(&word.to_lowercase()))
}

fn table(found: &[&Entry], paint: Paint) -> String {
    let head = ["slot", "name", "version", "summary"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for entry in found {
        // Lines for other programs stay whole.
        let mut summary = match paint.on() {
            true => output::wrap(&entry.summary, SUMMARY),
            false => vec![entry.summary.clone()],
        }
        .into_iter();
        rows.push(vec![
            entry.slot.to_string(),
            entry.name.clone(),
            entry.version.clone(),
            summary.next().unwrap_or_default(),
        ]);
        rows.extend(summary.map(|line| vec![String::new(), String::new(), String::new(), line]));
    }
    output::painted_table(&rows, &[], |row, column, cell| match (row, column) {
        (0, _) | (_, 2) => paint.faint(cell),
        (_, 0) => paint.slot(cell),
        (_, 1) => paint.strong(cell),
        _ => cell.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use espalier_runtime::registry::Registry;

    use super::*;

    fn entries() -> Vec<Entry> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        match Registry::load(&root.join("registry.toml")) {
            Ok(registry) => registry.entries,
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn words_are_found_in_any_case_and_all_must_be_there() {
        let all = entries();
        let names = |words: &[&str]| -> Vec<String> {
            let words: Vec<String> = words.iter().map(|w| w.to_string()).collect();
            let found = all.iter().filter(|entry| holds(entry, &words));
            found.map(|entry| entry.name.clone()).collect()
        };
        assert_eq!(
            names(&["MAGNITUDE", "pruner"]).first().map(String::as_str),
            Some("magnitude")
        );
        assert!(names(&["magnitude", "normalizer"]).is_empty());
        assert_eq!(names(&[]).len(), all.len());
    }

    #[test]
    fn a_table_without_colours_has_a_line_a_plugin_and_none_of_their_codes() {
        let all = entries();
        let found: Vec<&Entry> = all.iter().collect();
        let plain = table(&found, Paint::new(false));
        assert_eq!(plain.lines().count(), all.len() + 1);
        assert!(!plain.contains('\u{1b}'));
        let painted = table(&found, Paint::new(true));
        assert!(painted.contains("\u{1b}[1m"));
    }
}
