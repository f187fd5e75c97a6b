//! Writing to standard output and standard error. A reader that goes away (`espalier ... | head`) ends the
//! writing, never the run: what follows is dropped in silence.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use espalier_runtime::diagnostic::Diagnostic;

/// Where words for people go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    Out,
    Error,
}

/// Writes a line.
pub fn line(stream: Stream, text: impl Display) {
    // An error here is a reader that went away or a full disk; there is nobody left to tell.
    let _ = match stream {
        Stream::Out => writeln!(io::stdout().lock(), "{text}"),
        Stream::Error => writeln!(io::stderr().lock(), "{text}"),
    };
}

/// Writes an error as the person should read it.
pub fn error(error: &Diagnostic) {
    line(Stream::Error, error);
}

/// Colours and weights of text, on a terminal that wants them.
#[derive(Clone, Copy, Debug)]
pub struct Paint(bool);

impl Paint {
    /// On a terminal, unless `NO_COLOR` is set to anything (no-color.org) or the terminal is a dumb one.
    pub fn of(stream: Stream) -> Paint {
        let terminal = match stream {
            Stream::Out => io::stdout().is_terminal(),
            Stream::Error => io::stderr().is_terminal(),
        };
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|name| name == "dumb");
        Paint(terminal && !unwanted && !dumb)
    }

    /// On or off whatever the terminal.
    #[cfg(test)]
    pub fn new(on: bool) -> Paint {
        Paint(on)
    }

    /// Whether anything is painted.
    pub fn on(self) -> bool {
        self.0
    }

    fn with(self, code: &str, text: &str) -> String {
        match self.0 && !text.trim().is_empty() {
            true => format!("\u{1b}[{code}m{text}\u{1b}[0m"),
            false => text.to_string(),
        }
    }

    /// What to look at first.
    pub fn strong(self, text: &str) -> String {
        self.with("1", text)
    }

    /// What to look at last.
    pub fn faint(self, text: &str) -> String {
        self.with("2", text)
    }

    /// The name of a slot, each in a colour of its own.
    pub fn slot(self, text: &str) -> String {
        let code = match text.trim() {
            "trainer" => "34",
            "pruner" => "32",
            "environment" => "33",
            "normalizer" => "35",
            _ => "36",
        };
        self.with(code, text)
    }
}

/// Columns of text, each as wide as its widest cell; the last is not padded. Columns in `right` are aligned to
/// the right. Each row is indented by two spaces.
pub fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    painted_table(rows, right, |_, _, cell| cell.to_string())
}

/// As [`table`]; `paint` gets row, column and padded cell, and may put codes without width around it.
pub fn painted_table(
    rows: &[Vec<String>],
    right: &[usize],
    paint: impl Fn(usize, usize, &str) -> String,
) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..columns)
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let render = |(number, row): (usize, &Vec<String>)| {
        let mut text = String::new();
        for (column, cell) in row.iter().enumerate() {
            let space = " ".repeat(widths[column] - cell.chars().count());
            let (before, after) = if right.contains(&column) {
                (space.as_str(), "")
            } else {
                ("", space.as_str())
            };
            // The last cell's padding would be space at the end of the line.
            let after = if column + 1 == row.len() { "" } else { after };
            let cell = paint(number, column, &format!("{before}{cell}{after}"));
            text.push_str(&format!("  {cell}"));
        }
        text.trim_end().to_string()
    };
    rows.iter()
        .enumerate()
        .map(render)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Breaks text into lines of at most `width` characters; a longer word has a line of its own.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    wrap_words(text.split(' '), width)
}

/// The same for words that may hold spaces, and stay whole.
pub fn wrap_words<'a>(words: impl IntoIterator<Item = &'a str>, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in words {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_string()),
        }
    }
    lines
}

/// `12,345`.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `3.4 MiB`.
pub fn bytes(number: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = number as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{number} B")
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

/// `850 ms`, `12.3 s`, `4 min 05 s`, `2 h 03 min`.
pub fn seconds(value: f64) -> String {
    match value {
        value if value < 0.9995 => format!("{:.0} ms", value * 1e3),
        value if value < 59.95 => format!("{value:.1} s"),
        value if value < 3599.5 => {
            let whole = value.round() as u64;
            format!("{} min {:02} s", whole / 60, whole % 60)
        }
        value => {
            let minutes = (value / 60.0).round() as u64;
            format!("{} h {:02} min", minutes / 60, minutes % 60)
        }
    }
}

/// A metric's value: fractions as percent, the rest with four digits.
pub fn metric(name: &str, value: f64) -> String {
    let fraction = ["accuracy", "sparsity", "density"]
        .iter()
        .any(|word| name.ends_with(word));
    match value {
        value if !value.is_finite() => value.to_string(),
        value if fraction => format!("{:.2} %", value * 100.0),
        value if value != 0.0 && (value.abs() < 1e-3 || value.abs() >= 1e6) => {
            format!("{value:.3e}")
        }
        value => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_no_line_ends_in_spaces() {
        let rows = [
            vec!["a".into(), "10".into(), "x".into()],
            vec!["long".into(), "5".into(), String::new()],
        ];
        assert_eq!(table(&rows, &[1]), "  a     10  x\n  long   5");
    }

    #[test]
    fn numbers_read_well() {
        assert_eq!(
            (grouped(999), grouped(1_234_567)),
            ("999".to_string(), "1,234,567".to_string())
        );
        assert_eq!(
            (bytes(512), bytes(3 << 20)),
            ("512 B".to_string(), "3.0 MiB".to_string())
        );
        assert_eq!(
            [0.0123, 59.9, 59.96, 7384.0].map(seconds),
            ["12 ms", "59.9 s", "1 min 00 s", "2 h 03 min"]
        );
        assert_eq!(metric("test/accuracy", 0.9711), "97.11 %");
        assert_eq!(metric("test/loss", 0.0871), "0.0871");
        assert_eq!(metric("test/loss", 1.5e-7), "1.500e-7");
        assert_eq!(metric("test/loss", f64::NAN), "NaN");
    }

    #[test]
    fn long_text_is_broken_between_words() {
        assert_eq!(wrap("aa bb cc", 5), ["aa bb", "cc"]);
        assert_eq!(wrap("long-word b", 4), ["long-word", "b"]);
        assert_eq!(wrap_words(["a = 1,", "b = 2"], 8), ["a = 1,", "b = 2"]);
    }
}
