//! The one error that people read: what failed, where, what was expected and found, and what to do next.
//!
//! Printed as
//!
//! ```text
//! error: `batch-size` is out of range
//!   at        run.toml:9:14, schedule.batch-size
//!   expected  a whole number from 1 to 4294967295
//!   found     -4
//! ```
//!
//! and written as JSON with the same facts. Modules below keep typed errors of their own; they become a
//! `Diagnostic` at the edge, where file, plugin and field are known.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

/// A place in a file, counted from 1 as editors do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Place {
    /// The file, as the person named it.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The column in characters, from 1.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

/// An error for people: what failed, where, the facts that explain it, and the next thing to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Diagnostic {
    /// One line, without a full stop: what failed, naming the thing by the name the user gave it.
    pub what: String,
    /// Where in a file, if it stands in one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<Box<Place>>,
    /// Labelled facts in the order in which they help: `expected`, `found`, `budget`, ...
    /// A first detail labelled `at` is joined to the place.
    pub details: Vec<(String, String)>,
    /// The next thing to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// Further errors of the same input, each with its own place.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub more: Vec<Diagnostic>,
}

impl Diagnostic {
    /// An error that says only what failed; add the rest with the methods below.
    pub fn new(what: impl Into<String>) -> Self {
        Diagnostic {
            what: what.into(),
            place: None,
            details: Vec::new(),
            help: None,
            more: Vec::new(),
        }
    }

    /// Says where in a file; line and column count from 1.
    pub fn place(mut self, file: &Path, line: usize, column: usize) -> Self {
        self.place = Some(Box::new(Place {
            file: file.to_path_buf(),
            line,
            column,
        }));
        self
    }

    /// Says where, in words: a call, a step, a field's path, or a file without a line.
    pub fn at(self, text: impl Into<String>) -> Self {
        self.detail("at", text)
    }

    /// Says what would have been right.
    pub fn expected(self, text: impl Into<String>) -> Self {
        self.detail("expected", text)
    }

    /// Says what was there instead.
    pub fn found(self, text: impl Into<String>) -> Self {
        self.detail("found", text)
    }

    /// Adds a labelled fact.
    pub fn detail(mut self, label: impl Into<String>, text: impl Into<String>) -> Self {
        self.details.push((label.into(), text.into()));
        self
    }

    /// Adds a fact for each error that `error` names as its source, `because` by label.
    pub fn because(mut self, error: &dyn std::error::Error) -> Self {
        self.details.push(("because".into(), error.to_string()));
        let mut source = error.source();
        while let Some(cause) = source {
            self.details.push(("because".into(), cause.to_string()));
            source = cause.source();
        }
        self
    }

    /// Says why a file could not be read or written, in plain words where there are some.
    pub fn because_io(self, error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::NotFound => self.found("no such file or folder"),
            ErrorKind::IsADirectory => self.found("a folder"),
            ErrorKind::NotADirectory => self.found("a file where a folder should be"),
            ErrorKind::PermissionDenied => self.found("no permission"),
            ErrorKind::StorageFull => self.found("no space left"),
            _ => self.because(error),
        }
    }

    /// Says the next thing to do.
    pub fn help(mut self, text: impl Into<String>) -> Self {
        self.help = Some(text.into());
        self
    }

    /// The same as [`Diagnostic::help`] where there may be nothing to say.
    pub fn help_if(mut self, text: Option<String>) -> Self {
        self.help = text.or(self.help);
        self
    }

    /// Makes one error of several, in the order given; `None` if there are none.
    pub fn from_many(mut all: Vec<Diagnostic>) -> Option<Self> {
        if all.is_empty() {
            return None;
        }
        let rest = all.split_off(1);
        let mut first = all.pop()?;
        first.more.extend(rest);
        Some(first)
    }
}

/// Longest label that others are aligned to; a longer one moves its own text only.
const LABEL_LIMIT: usize = 12;

/// Longest line of a sentence after its label, in characters.
const LINE_LIMIT: usize = 96;

/// Lines of at most `limit` characters, broken at spaces; a longer word has a line of its own.
fn wrapped(text: &str, limit: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line)
                if line
                    .chars()
                    .count()
                    .saturating_add(1 + word.chars().count())
                    <= limit =>
            {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rows: Vec<(&str, String)> = Vec::new();
        let mut details = self.details.iter().peekable();
        if let Some(place) = &self.place {
            let mut at = place.to_string();
            if let Some((_, text)) = details.next_if(|(label, _)| label == "at") {
                at.push_str(", ");
                at.push_str(text);
            }
            rows.push(("at", at));
        }
        rows.extend(details.map(|(label, text)| (label.as_str(), text.clone())));
        if let Some(help) = &self.help {
            rows.push(("help", help.clone()));
        }
        let width = rows
            .iter()
            .map(|(label, _)| label.chars().count())
            .filter(|n| *n <= LABEL_LIMIT);
        let width = width.max().unwrap_or(0);
        write!(f, "error: {}", self.what)?;
        for (label, text) in &rows {
            write!(f, "\n  {label:width$}  ")?;
            // Our own sentences are broken into lines; commands and what compilers printed stay whole.
            let limit = if ["expected", "because", "meaning"].contains(label) {
                LINE_LIMIT
            } else {
                usize::MAX
            };
            for (number, line) in text
                .lines()
                .flat_map(|line| wrapped(line, limit))
                .enumerate()
            {
                if number > 0 {
                    write!(f, "\n  {:width$}  ", "")?;
                }
                f.write_str(&line)?;
            }
        }
        for other in &self.more {
            write!(f, "\n{other}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}

/// The candidate nearest to what was typed, if it is near enough to be what was meant.
pub fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let wanted = typed.to_lowercase().replace('_', "-");
    candidates
        .into_iter()
        .map(|candidate| {
            (
                strsim::damerau_levenshtein(&wanted, &candidate.to_lowercase()),
                candidate,
            )
        })
        .filter(|(distance, candidate)| {
            *distance <= 1 + wanted.len().min(candidate.len()) / 4
                || (wanted.len() >= 3
                    && (candidate.starts_with(&wanted) || wanted.starts_with(candidate)))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `a, b or c`, each in backticks; for messages that list what is valid.
pub fn one_of<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = names.into_iter().map(|name| format!("`{name}`")).collect();
    match quoted.split_last() {
        None => "nothing".into(),
        Some((last, [])) => last.clone(),
        Some((last, first)) => format!("{} or {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_aligned_and_the_place_comes_first() {
        let error = Diagnostic::new("`batch-size` is out of range")
            .place(Path::new("run.toml"), 9, 14)
            .at("schedule.batch-size")
            .expected("a whole number from 1")
            .found("-4")
            .help("two lines\nof help");
        let text = "error: `batch-size` is out of range\n  at        run.toml:9:14, schedule.batch-size\n  \
                    expected  a whole number from 1\n  found     -4\n  help      two lines\n            of help";
        assert_eq!(error.to_string(), text);
    }

    #[test]
    fn json_carries_the_same_facts() {
        let error = Diagnostic::new("no")
            .place(Path::new("a.toml"), 1, 2)
            .found("x");
        let json = serde_json::to_string(&error).unwrap_or_default();
        let want = r#"{"what":"no","place":{"file":"a.toml","line":1,"column":2},"details":[["found","x"]]}"#;
        assert_eq!(json, want);
    }

    #[test]
    fn a_typo_is_near_and_another_word_is_not() {
        let names = ["epochs", "steps", "batch-size"];
        assert_eq!(nearest("epoch", names), Some("epochs"));
        assert_eq!(nearest("batch_size", names), Some("batch-size"));
        assert_eq!(nearest("stesp", names), Some("steps"));
        assert_eq!(nearest("momentum", names), None);
    }

    #[test]
    fn lists_read_as_a_sentence() {
        assert_eq!(one_of(["a", "b", "c"]), "`a`, `b` or `c`");
        assert_eq!(one_of(["a"]), "`a`");
    }
}
