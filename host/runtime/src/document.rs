//! A TOML file as a tree of values that know where they stand, and a reader that collects every error
//! in it with file, line, column and the path of the field.
//!
//! Run files and registries are read through this, so both are refused in the same words.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use crate::diagnostic::{Diagnostic, nearest, one_of};

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Origin {
    /// Byte offset in the file.
    File(usize),
    /// A flag of the command line, as it was typed.
    Flag(String),
}

/// A value and where it comes from.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub value: Value,
    pub origin: Origin,
}

/// Most keys in the path of a `--set`; a run file has no table that deep.
const DEEPEST: usize = 16;

/// What TOML can say. Integers are kept wide so that a range check can name the number.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Bool(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    Date(String),
    Array(Vec<Item>),
    Table(Table),
}

/// Keys with the place of the key itself (an unknown key is reported there) and the value.
pub(crate) type Table = BTreeMap<String, (Origin, Item)>;

impl Value {
    /// What it is and its text, for `found`.
    fn describe(&self) -> String {
        match self {
            Value::Bool(value) => format!("`{value}`"),
            Value::Integer(value) => format!("{value}"),
            Value::Float(value) => format!("{value:?}"),
            Value::Text(text) => format!("the text {text:?}"),
            Value::Date(text) => format!("the date {text}"),
            Value::Array(items) => format!("a list of {}", items.len()),
            Value::Table(_) => "a table".into(),
        }
    }
}

/// A parsed file.
#[derive(Debug)]
pub(crate) struct Document {
    pub file: PathBuf,
    text: String,
    pub root: Table,
}

impl Document {
    /// Reads and parses a file; `what` says what kind of file it is ("run file", "registry").
    pub fn load(file: &Path, what: &str) -> Result<Self, Diagnostic> {
        let bytes = std::fs::read(file).map_err(|error| {
            let failed = Diagnostic::new(format!("cannot read the {what}"));
            failed.at(file.display().to_string()).because_io(&error)
        })?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let good = error.utf8_error().valid_up_to();
            let line = error.as_bytes()[..good]
                .iter()
                .filter(|byte| **byte == b'\n')
                .count()
                + 1;
            Diagnostic::new(format!("the {what} is not text"))
                .at(format!("{}:{line}", file.display()))
                .expected("UTF-8")
                .found(format!("a byte that is not UTF-8 at offset {good}"))
        })?;
        Self::parse(file, text)
    }

    /// Parses a text as if it stood in `file`.
    pub fn parse(file: &Path, text: String) -> Result<Self, Diagnostic> {
        let (table, errors) = DeTable::parse_recoverable(&text);
        if let Some(error) = errors.first() {
            // The parser points behind the last character at an unfinished line.
            let offset = error.span().map_or(0, |span| span.start).min(text.len());
            let (line, column) = line_and_column(&text, offset);
            let shown = text.lines().nth(line - 1).unwrap_or("").trim();
            let error = Diagnostic::new(format!("not valid TOML: {}", error.message()))
                .place(file, line, column)
                .found(if shown.is_empty() {
                    "an empty line".into()
                } else {
                    format!("`{shown}`")
                });
            return Err(error);
        }
        let root = convert_table(table.into_inner());
        Ok(Document {
            file: file.to_path_buf(),
            text,
            root,
        })
    }

    /// The file's text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Line and column, from 1, of a byte offset.
    pub fn line_and_column(&self, offset: usize) -> (usize, usize) {
        line_and_column(&self.text, offset)
    }

    /// `file:line`, or the flag that said it.
    pub fn short_place(&self, origin: &Origin) -> String {
        match origin {
            Origin::File(offset) => format!(
                "{}:{}",
                self.file.display(),
                self.line_and_column(*offset).0
            ),
            Origin::Flag(flag) => flag.clone(),
        }
    }

    /// Puts a value where `path` (dotted; lists by index from 0) points, making tables on the way.
    /// `flag` is what was typed, for messages.
    pub fn set(&mut self, path: &str, text: &str, flag: &str) -> Result<(), Diagnostic> {
        let keys: Vec<&str> = path.split('.').map(str::trim).collect();
        if keys.len() > DEEPEST || keys.iter().any(|key| key.is_empty()) {
            let error = Diagnostic::new(format!("`{path}` is not a path of keys")).at(flag);
            return Err(error.expected("--set table.key=value"));
        }
        let value = parse_value(text, &Origin::Flag(flag.to_string()));
        put_in_table(&mut self.root, &keys, "", value).map_err(|mut error| {
            error.details.insert(0, ("at".into(), flag.into()));
            error
        })
    }
}

fn put_in_table(
    table: &mut Table,
    keys: &[&str],
    done: &str,
    value: Item,
) -> Result<(), Diagnostic> {
    let Some((key, rest)) = keys.split_first() else {
        return Ok(());
    };
    let origin = value.origin.clone();
    let empty = || Item {
        value: Value::Table(Table::new()),
        origin: origin.clone(),
    };
    let (key_origin, slot) = table
        .entry(key.to_string())
        .or_insert_with(|| (origin.clone(), empty()));
    if rest.is_empty() {
        *key_origin = origin;
    }
    put(slot, rest, &join(done, key), value)
}

/// Walks from `slot` along `keys` and puts the value there; `done` is the path to `slot`.
fn put(slot: &mut Item, keys: &[&str], done: &str, value: Item) -> Result<(), Diagnostic> {
    let Some((key, rest)) = keys.split_first() else {
        *slot = value;
        return Ok(());
    };
    match &mut slot.value {
        Value::Table(table) => put_in_table(table, keys, done, value),
        Value::Array(items) => {
            let count = items.len();
            match key
                .parse::<usize>()
                .ok()
                .and_then(|index| items.get_mut(index))
            {
                Some(item) => put(item, rest, &join(done, key), value),
                None => {
                    let what = format!("`{done}` is a list, and `{key}` is not one of its places");
                    Err(Diagnostic::new(what).expected(list_places(done, count)))
                }
            }
        }
        other => {
            Err(Diagnostic::new(format!("`{done}` has no keys inside")).found(other.describe()))
        }
    }
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() {
        key.to_string()
    } else {
        format!("{path}.{key}")
    }
}

fn list_places(path: &str, count: usize) -> String {
    match count {
        0 => "nothing: the list is empty".into(),
        1 => format!("{path}.0"),
        _ => format!("{path}.0 to {path}.{}", count - 1),
    }
}

/// A flag's value: TOML where it is TOML, else the text itself, so that `optimizer=sgd` needs no quotes.
fn parse_value(text: &str, origin: &Origin) -> Item {
    let parsed = DeValue::parse(text.trim()).ok();
    let mut item = match parsed {
        Some(value) => convert(value.into_inner(), 0),
        None => Item {
            value: Value::Text(text.to_string()),
            origin: origin.clone(),
        },
    };
    item.claim(origin);
    item
}

impl Item {
    /// Says of the whole tree that it comes from `origin`.
    fn claim(&mut self, origin: &Origin) {
        self.origin = origin.clone();
        match &mut self.value {
            Value::Array(items) => items.iter_mut().for_each(|item| item.claim(origin)),
            Value::Table(table) => {
                for (key, item) in table.values_mut() {
                    *key = origin.clone();
                    item.claim(origin);
                }
            }
            _ => {}
        }
    }
}

fn convert_table(table: DeTable<'_>) -> Table {
    let entry = |(key, value): (
        toml::Spanned<std::borrow::Cow<'_, str>>,
        toml::Spanned<DeValue<'_>>,
    )| {
        let origin = Origin::File(key.span().start);
        let start = value.span().start;
        (
            key.into_inner().into_owned(),
            (origin, convert(value.into_inner(), start)),
        )
    };
    table.into_iter().map(entry).collect()
}

fn convert(value: DeValue<'_>, start: usize) -> Item {
    let value = match value {
        DeValue::String(text) => Value::Text(text.into_owned()),
        DeValue::Boolean(value) => Value::Bool(value),
        DeValue::Integer(integer) => {
            match i128::from_str_radix(integer.as_str(), integer.radix()) {
                Ok(value) => Value::Integer(value),
                Err(_) => Value::Text(integer.to_string()),
            }
        }
        DeValue::Float(float) => Value::Float(float.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Datetime(date) => Value::Date(date.to_string()),
        DeValue::Array(items) => {
            let items = items.into_iter().map(|item| {
                let start = item.span().start;
                convert(item.into_inner(), start)
            });
            Value::Array(items.collect())
        }
        DeValue::Table(table) => Value::Table(convert_table(table)),
    };
    Item {
        value,
        origin: Origin::File(start),
    }
}

fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..offset).unwrap_or(text);
    let start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (
        before.matches('\n').count() + 1,
        before[start..].chars().count() + 1,
    )
}

/// Reads a document's fields and collects what is wrong with them.
pub(crate) struct Reader<'d> {
    pub document: &'d Document,
    errors: RefCell<Vec<(usize, Diagnostic)>>,
}

impl<'d> Reader<'d> {
    pub fn new(document: &'d Document) -> Self {
        Reader {
            document,
            errors: RefCell::default(),
        }
    }

    /// The whole document as a table; `known` are its keys.
    pub fn root<'r>(&'r self, known: &'r [&'r str]) -> Fields<'r, 'd> {
        let fields = Fields {
            reader: self,
            table: &self.document.root,
            path: String::new(),
            origin: None,
            known,
        };
        fields.refuse_unknown(&|_| None);
        fields
    }

    /// Notes an error at `origin`; `path` names the field.
    pub fn push(&self, origin: Option<&Origin>, path: &str, error: Diagnostic) {
        let path = if path.is_empty() { None } else { Some(path) };
        let (order, error) = match origin {
            Some(Origin::File(offset)) => {
                let (line, column) = self.document.line_and_column(*offset);
                let error = error.place(&self.document.file, line, column);
                (
                    *offset,
                    path.iter()
                        .fold(error, |error, path| prepend_at(error, path.to_string())),
                )
            }
            Some(Origin::Flag(flag)) => (usize::MAX, prepend_at(error, flag.clone())),
            None => (
                usize::MAX - 1,
                prepend_at(error, self.document.file.display().to_string()),
            ),
        };
        self.errors.borrow_mut().push((order, error));
    }

    /// The plan, if nothing was wrong; else every error in the order of the file.
    pub fn finish<T>(self, value: Option<T>) -> Result<T, Diagnostic> {
        let mut errors = self.errors.into_inner();
        errors.sort_by_key(|(order, _)| *order);
        // What every stage takes from the top level is read as often as there are stages.
        let mut once: Vec<Diagnostic> = Vec::new();
        for (_, error) in errors {
            if !once.contains(&error) {
                once.push(error);
            }
        }
        let errors = once;
        match (Diagnostic::from_many(errors), value) {
            (None, Some(value)) => Ok(value),
            (Some(error), _) => Err(error),
            (None, None) => Err(Diagnostic::new("the file is incomplete").at(self
                .document
                .file
                .display()
                .to_string())),
        }
    }
}

fn prepend_at(mut error: Diagnostic, text: String) -> Diagnostic {
    error.details.insert(0, ("at".into(), text));
    error
}

/// The fields of one table.
pub(crate) struct Fields<'r, 'd> {
    pub reader: &'r Reader<'d>,
    pub table: &'d Table,
    pub path: String,
    pub origin: Option<&'d Origin>,
    known: &'r [&'r str],
}

impl<'r, 'd> Fields<'r, 'd> {
    /// Reports keys that are not known; `advice` may say more about one than a similar name does.
    fn refuse_unknown(&self, advice: &dyn Fn(&str) -> Option<String>) {
        for (key, (origin, item)) in self.table {
            if self.known.contains(&key.as_str()) {
                continue;
            }
            let inside = if self.path.is_empty() {
                String::new()
            } else {
                format!(" in [{}]", self.path)
            };
            let what = match item.value {
                Value::Table(_) if self.path.is_empty() => format!("unknown table [{key}]"),
                _ => format!("unknown key `{key}`{inside}"),
            };
            let near = nearest(key, self.known.iter().copied())
                .map(|near| format!("did you mean `{near}`?"));
            let error = Diagnostic::new(what)
                .expected(one_of(self.known.iter().copied()))
                .help_if(near.or_else(|| advice(key)));
            self.reader.push(Some(origin), &self.path_of(key), error);
        }
    }

    fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_string()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    /// The field, if it is there.
    pub fn get(&self, key: &str) -> Option<Field<'r, 'd>> {
        let (key_origin, item) = self.table.get(key)?;
        Some(Field {
            reader: self.reader,
            item,
            path: self.path_of(key),
            key_origin,
        })
    }

    /// The field; its absence is an error with this help.
    pub fn require(&self, key: &str, help: &str) -> Option<Field<'r, 'd>> {
        let field = self.get(key);
        if field.is_none() && !self.misspelt(key) {
            self.error(Diagnostic::new(self.missing(key)).help(help));
        }
        field
    }

    /// True if an unknown key is most likely meant to be this one: then that is the error, and not that this
    /// one is missing.
    pub fn misspelt(&self, key: &str) -> bool {
        let unknown = |typed: &&String| !self.known.contains(&typed.as_str());
        let known = || self.known.iter().copied();
        self.table
            .keys()
            .filter(unknown)
            .any(|typed| nearest(typed, known()) == Some(key))
    }

    fn missing(&self, key: &str) -> String {
        if self.path.is_empty() {
            format!("no [{key}] table")
        } else {
            format!("no `{key}` in [{}]", self.path)
        }
    }

    /// Notes an error about the table as a whole.
    pub fn error(&self, error: Diagnostic) {
        self.reader.push(self.origin, &self.path, error);
    }
}

/// One value and its path.
#[derive(Clone)]
pub(crate) struct Field<'r, 'd> {
    pub reader: &'r Reader<'d>,
    pub item: &'d Item,
    pub path: String,
    key_origin: &'d Origin,
}

impl<'r, 'd> Field<'r, 'd> {
    fn key(&self) -> &str {
        let key = self.path.rsplit('.').next().unwrap_or(&self.path);
        if key.starts_with(|first: char| first.is_ascii_digit()) {
            &self.path
        } else {
            key
        }
    }

    /// Notes an error at this value.
    pub fn error(&self, error: Diagnostic) {
        self.reader.push(Some(&self.item.origin), &self.path, error);
    }

    fn mistyped<T>(&self, expected: &str) -> Option<T> {
        let error = Diagnostic::new(format!("`{}` has the wrong type", self.key()));
        self.error(error.expected(expected).found(self.item.value.describe()));
        None
    }

    /// Notes that the text does not have the form it should have.
    pub fn malformed<T>(&self, expected: &str) -> Option<T> {
        let error = Diagnostic::new(format!("`{}` is malformed", self.key()));
        self.error(error.expected(expected).found(self.item.value.describe()));
        None
    }

    /// Notes that the value is of the right type and cannot be used.
    pub fn refuse<T>(&self, expected: &str) -> Option<T> {
        let error = Diagnostic::new(format!("`{}` is out of range", self.key()));
        self.error(error.expected(expected).found(self.item.value.describe()));
        None
    }

    /// Text.
    pub fn text(&self) -> Option<&'d str> {
        match &self.item.value {
            Value::Text(text) if text.is_empty() => self.malformed("a text that is not empty"),
            Value::Text(text) => Some(text),
            _ => self.mistyped("text in quotes"),
        }
    }

    /// `true` or `false`.
    pub fn bool(&self) -> Option<bool> {
        match self.item.value {
            Value::Bool(value) => Some(value),
            _ => self.mistyped("`true` or `false`"),
        }
    }

    /// A whole number in a range, ends included.
    pub fn integer(&self, low: u64, high: u64) -> Option<u64> {
        let expected = match (low, high) {
            (0, u64::MAX) => "a whole number, 0 or more".to_string(),
            (_, u64::MAX) => format!("a whole number, at least {low}"),
            _ => format!("a whole number from {low} to {high}"),
        };
        match self.item.value {
            Value::Integer(value) => match u64::try_from(value) {
                Ok(value) if (low..=high).contains(&value) => Some(value),
                _ => self.refuse(&expected),
            },
            _ => self.mistyped(&expected),
        }
    }

    /// A finite number within bounds, both included.
    pub fn number(&self, low: f64, high: f64) -> Option<f64> {
        let expected = format!("a number from {low} to {high}");
        let value = match self.item.value {
            Value::Float(value) => value,
            Value::Integer(value) => value as f64,
            _ => return self.mistyped(&expected),
        };
        match (low..=high).contains(&value) {
            true => Some(value),
            false => self.refuse(&expected),
        }
    }

    /// A number in [0, 1).
    pub fn fraction(&self) -> Option<f64> {
        const EXPECTED: &str = "a number from 0 to below 1";
        let value = match self.item.value {
            Value::Float(value) => value,
            Value::Integer(value) => value as f64,
            _ => return self.mistyped(EXPECTED),
        };
        if (0.0..1.0).contains(&value) {
            Some(value)
        } else {
            self.refuse(EXPECTED)
        }
    }

    /// One of a few words; returns its place among them. `what` names the kind of thing.
    pub fn choice(&self, what: &str, choices: &[&str]) -> Option<usize> {
        let Value::Text(text) = &self.item.value else {
            return self.mistyped(&one_of(choices.iter().copied()));
        };
        let found = choices.iter().position(|choice| choice == text);
        if found.is_none() {
            let near = nearest(text, choices.iter().copied())
                .map(|near| format!("did you mean `{near}`?"));
            let error = Diagnostic::new(format!("unknown {what} `{text}`"));
            self.error(
                error
                    .expected(one_of(choices.iter().copied()))
                    .help_if(near),
            );
        }
        found
    }

    /// A size in bytes: a whole number, or text with a unit.
    pub fn bytes(&self) -> Option<u64> {
        const EXPECTED: &str =
            "a size such as \"256 MiB\" (B, kB, MB, GB, KiB, MiB, GiB), or a number of bytes";
        const UNITS: [(&str, u64); 7] = [
            ("B", 1),
            ("kB", 1_000),
            ("MB", 1_000_000),
            ("GB", 1_000_000_000),
            ("KiB", 1 << 10),
            ("MiB", 1 << 20),
            ("GiB", 1 << 30),
        ];
        match &self.item.value {
            Value::Integer(value) => match u64::try_from(*value) {
                Ok(value) if value > 0 => Some(value),
                _ => self.refuse(EXPECTED),
            },
            Value::Text(text) => {
                let bytes = with_unit(text, &UNITS.map(|(unit, bytes)| (unit, bytes as f64)));
                match bytes.filter(|bytes| (1.0..=u64::MAX as f64).contains(bytes)) {
                    Some(bytes) => Some(bytes as u64),
                    None => self.unreadable("a size", EXPECTED),
                }
            }
            _ => self.mistyped(EXPECTED),
        }
    }

    /// A length of time: seconds, or text with a unit.
    pub fn duration(&self) -> Option<Duration> {
        const EXPECTED: &str = "a time such as \"60 s\" (ms, s, min, h), or a number of seconds";
        const UNITS: [(&str, f64); 4] = [("ms", 1e-3), ("s", 1.0), ("min", 60.0), ("h", 3600.0)];
        let seconds = match &self.item.value {
            Value::Integer(value) => Some(*value as f64),
            Value::Float(value) => Some(*value),
            Value::Text(text) => match with_unit(text, &UNITS) {
                Some(seconds) => Some(seconds),
                None => return self.unreadable("a time", EXPECTED),
            },
            _ => return self.mistyped(EXPECTED),
        };
        match seconds
            // Thirty years: an instant that far ahead can still be represented.
            .filter(|seconds| *seconds > 0.0 && *seconds <= 1e9)
            .map(Duration::try_from_secs_f64)
        {
            Some(Ok(duration)) => Some(duration),
            _ => self.refuse(EXPECTED),
        }
    }

    fn unreadable<T>(&self, what: &str, expected: &str) -> Option<T> {
        let error = Diagnostic::new(format!("`{}` is not {what}", self.key()));
        self.error(error.expected(expected).found(self.item.value.describe()));
        None
    }

    /// A table with these keys. `advice` may say where a key belongs that is not one of them.
    pub fn table(
        &self,
        known: &'r [&'r str],
        advice: &dyn Fn(&str) -> Option<String>,
    ) -> Option<Fields<'r, 'd>> {
        let fields = self.open_table(known)?;
        fields.refuse_unknown(advice);
        Some(fields)
    }

    /// A table whose keys are nobody's business here, or are checked later.
    pub fn open_table(&self, known: &'r [&'r str]) -> Option<Fields<'r, 'd>> {
        match &self.item.value {
            Value::Table(table) => {
                // A table's own place is its header; a flag that made it says so itself.
                let origin = if matches!(self.item.origin, Origin::Flag(_)) {
                    &self.item.origin
                } else {
                    self.key_origin
                };
                let path = self.path.clone();
                Some(Fields {
                    reader: self.reader,
                    table,
                    path,
                    origin: Some(origin),
                    known,
                })
            }
            Value::Array(items)
                if matches!(items.first().map(|item| &item.value), Some(Value::Table(_))) =>
            {
                let error = Diagnostic::new(format!(
                    "`{}` stands more than once, or in double brackets",
                    self.key()
                ));
                self.error(
                    error
                        .expected(format!("one table, [{}]", self.path))
                        .found(format!("[[{}]]", self.path)),
                );
                None
            }
            _ => self.mistyped("a table"),
        }
    }

    /// A list.
    pub fn list(&self, expected: &str) -> Option<Vec<Field<'r, 'd>>> {
        let Value::Array(items) = &self.item.value else {
            return self.mistyped(expected);
        };
        let field = |(index, item): (usize, &'d Item)| Field {
            reader: self.reader,
            item,
            path: format!("{}.{index}", self.path),
            key_origin: &item.origin,
        };
        Some(items.iter().enumerate().map(field).collect())
    }

    /// Numbers for a setting: one, several in a list, or a switch as 0 and 1.
    pub fn numbers(&self) -> Option<Vec<f64>> {
        const EXPECTED: &str = "a number, a list of numbers, or `true` or `false`";
        let number = |value: &Value| match value {
            Value::Integer(value) => Some(*value as f64),
            Value::Float(value) if value.is_finite() => Some(*value),
            _ => None,
        };
        let numbers = match &self.item.value {
            Value::Bool(value) => Some(vec![f64::from(*value)]),
            Value::Array(items) if !items.is_empty() => {
                items.iter().map(|item| number(&item.value)).collect()
            }
            value => number(value).map(|value| vec![value]),
        };
        if numbers.is_none() {
            return self.mistyped(EXPECTED);
        }
        numbers
    }

    /// A path; relative ones start at `base`, those of a flag at the current folder.
    pub fn path(&self, base: &Path) -> Option<PathBuf> {
        let text = self.text()?;
        match self.item.origin {
            Origin::File(_) => Some(base.join(text)),
            Origin::Flag(_) => Some(PathBuf::from(text)),
        }
    }
}

fn with_unit(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let number: f64 = text[..split]
        .trim()
        .parse()
        .ok()
        .filter(|number: &f64| number.is_finite())?;
    let unit = text[split..].trim();
    let (_, factor) = units
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))?;
    Some(number * factor)
}
