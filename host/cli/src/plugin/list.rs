//! `espalier plugin list` and `espalier plugin search`: the plugins of the registry.

use std::path::PathBuf;

use espalier_runtime::diagnostic::Diagnostic;
use espalier_runtime::plan::Slot;
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
    sort(&mut found);
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

/// By slot, in the order of listings, and by name.
fn sort(found: &mut [&Entry]) {
    let order = |slot| Slot::ALL.iter().position(|known| *known == slot);
    found.sort_by_key(|entry| (order(entry.slot), entry.name.clone()));
}

fn holds(entry: &Entry, words: &[String]) -> bool {
    let paper = entry.paper.as_deref().unwrap_or_default();
    let text = format!("{} {} {} {paper}", entry.name, entry.slot, entry.summary).to_lowercase();
    words.iter().all(|word| text.contains(&word.to_lowercase()))
}

/// For people the plugins stand under their slots, with what each slot decides; for other programs each line says all.
fn table(found: &[&Entry], paint: Paint) -> String {
    let people = paint.on();
    let mut rows: Vec<Vec<String>> = Vec::new();
    // The slot whose first plugin a row is.
    let mut begins: Vec<Option<Slot>> = Vec::new();
    for (place, entry) in found.iter().enumerate() {
        let mut summary = match people {
            true => output::wrap(&entry.summary, SUMMARY),
            false => vec![entry.summary.clone()],
        }
        .into_iter();
        let mut row = vec![
            entry.name.clone(),
            entry.version.clone(),
            entry.paper.clone().unwrap_or_default(),
            summary.next().unwrap_or_default(),
        ];
        if !people {
            row.insert(0, entry.slot.to_string());
        }
        let first = place == 0 || found[place - 1].slot != entry.slot;
        rows.push(row);
        begins.push(first.then_some(entry.slot));
        for line in summary {
            rows.push(vec![String::new(), String::new(), String::new(), line]);
            begins.push(None);
        }
    }
    if !people {
        rows.insert(
            0,
            ["slot", "name", "version", "paper", "summary"]
                .map(String::from)
                .to_vec(),
        );
        return output::table(&rows, &[]);
    }
    let lines = output::painted_table(&rows, &[], |_, column, cell| match column {
        0 => paint.strong(cell),
        1 | 2 => paint.faint(cell),
        _ => cell.to_string(),
    });
    let mut text = Vec::new();
    for (line, slot) in lines.lines().zip(begins) {
        if let Some(slot) = slot {
            if !text.is_empty() {
                text.push(String::new());
            }
            text.push(format!(
                "  {} {}",
                paint.slot(slot.as_str()),
                paint.faint(slot.decides())
            ));
        }
        text.push(format!("  {line}"));
    }
    text.join("\n")
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
        let mut found: Vec<&Entry> = all.iter().collect();
        sort(&mut found);
        let plain = table(&found, Paint::new(false));
        assert_eq!(plain.lines().count(), all.len() + 1);
        assert!(!plain.contains('\u{1b}'));
        let painted = table(&found, Paint::new(true));
        assert!(painted.contains("\u{1b}[1m"));
        // People find a slot's purpose once, however many plugins fill it.
        assert_eq!(painted.matches(Slot::Pruner.decides()).count(), 1);
    }
}
