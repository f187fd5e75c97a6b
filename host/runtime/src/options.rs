//! Checks the options that a run file gives a plugin against those that the plugin declares.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::diagnostic::{Diagnostic, nearest, one_of};
use crate::plan::OptionValue;

/// An option as a plugin declares it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OptionInfo {
    /// Its name, in kebab-case.
    pub name: String,
    /// What it holds.
    pub kind: OptionKind,
    /// What holds where nothing is given.
    pub default: OptionValue,
    /// Least value of a number, itself allowed; for a list, of each number in it.
    pub min: Option<f64>,
    /// Greatest value of a number, itself allowed; for a list, of each number in it.
    pub max: Option<f64>,
    /// One line for people.
    pub doc: String,
    /// Whether it may be changed during a run.
    pub live: bool,
}

/// What an option holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum OptionKind {
    /// `true` or `false`.
    Bool,
    /// A whole number.
    Integer,
    /// A number; a whole one is taken too.
    Float,
    /// Any text.
    Text,
    /// One of these words.
    Choice(Vec<String>),
    /// A list of numbers; a single one is taken as a list of one.
    Floats,
}

/// Every declared option with its value, in the order of declaration: the given one where there is one,
/// else the default.
///
/// `plugin` is the name that the run file uses, `places` says where each option stands (`file:line`).
/// An option that the plugin does not have, a value of another kind, one out of range and an unknown choice
/// are errors; all of them are reported together.
pub fn check(
    plugin: &str,
    declared: &[OptionInfo],
    given: &BTreeMap<String, OptionValue>,
    places: &BTreeMap<String, String>,
) -> Result<Vec<(String, OptionValue)>, Diagnostic> {
    let mut errors = Vec::new();
    let at = |name: &str, error: Diagnostic| match places.get(name) {
        Some(place) => error.at(format!("{place}, option `{name}`")),
        None => error.at(format!("option `{name}`")),
    };
    for name in given
        .keys()
        .filter(|name| declared.iter().all(|option| option.name != **name))
    {
        let names = || declared.iter().map(|option| option.name.as_str());
        let near = nearest(name, names()).map(|near| format!("did you mean `{near}`?"));
        let error = at(
            name,
            Diagnostic::new(format!("plugin `{plugin}` has no option `{name}`")),
        );
        errors.push(error.expected(one_of(names())).help_if(near));
    }
    let mut values = Vec::with_capacity(declared.len());
    for option in declared {
        match given.get(&option.name).map(|value| fit(option, value)) {
            None => values.push((option.name.clone(), option.default.clone())),
            Some(Ok(value)) => values.push((option.name.clone(), value)),
            Some(Err(fault)) => {
                let what = format!("option `{}` of plugin `{plugin}` {fault}", option.name);
                let doc = Some(option.doc.clone()).filter(|doc| !doc.is_empty());
                let found = given.get(&option.name).map(show).unwrap_or_default();
                let error = at(&option.name, Diagnostic::new(what))
                    .expected(expectation(option))
                    .found(found);
                errors.push(
                    doc.into_iter()
                        .fold(error, |error, doc| error.detail("meaning", doc)),
                );
            }
        }
    }
    match Diagnostic::from_many(errors) {
        Some(error) => Err(error),
        None => Ok(values),
    }
}

/// The value in the option's own kind, or what is wrong with it.
fn fit(option: &OptionInfo, value: &OptionValue) -> Result<OptionValue, &'static str> {
    const MISTYPED: &str = "has the wrong type";
    let in_range = |number: f64| {
        let low = option.min.is_none_or(|min| number >= min);
        let high = option.max.is_none_or(|max| number <= max);
        low && high && !number.is_nan()
    };
    let ranged = |value: OptionValue, fits: bool| {
        if fits {
            Ok(value)
        } else {
            Err("is out of range")
        }
    };
    match (&option.kind, value) {
        (OptionKind::Bool, OptionValue::Bool(_)) | (OptionKind::Text, OptionValue::Text(_)) => {
            Ok(value.clone())
        }
        (OptionKind::Integer, OptionValue::Integer(number)) => {
            ranged(value.clone(), in_range(*number as f64))
        }
        (OptionKind::Float, OptionValue::Float(number)) => ranged(value.clone(), in_range(*number)),
        (OptionKind::Float, OptionValue::Integer(number)) => {
            let number = *number as f64;
            ranged(OptionValue::Float(number), in_range(number))
        }
        (OptionKind::Floats, OptionValue::Floats(numbers)) => ranged(
            value.clone(),
            numbers.iter().all(|number| in_range(*number)),
        ),
        (OptionKind::Floats, OptionValue::Float(number)) => {
            ranged(OptionValue::Floats(vec![*number]), in_range(*number))
        }
        (OptionKind::Floats, OptionValue::Integer(number)) => {
            let number = *number as f64;
            ranged(OptionValue::Floats(vec![number]), in_range(number))
        }
        (OptionKind::Choice(choices), OptionValue::Text(text)) => {
            if choices.contains(text) {
                Ok(value.clone())
            } else {
                Err("has no such choice")
            }
        }
        _ => Err(MISTYPED),
    }
}

/// What an option takes, in words: `a number from 0 to 1`.
pub fn expectation(option: &OptionInfo) -> String {
    let kind = match &option.kind {
        OptionKind::Bool => "`true` or `false`".to_string(),
        OptionKind::Integer => "a whole number".to_string(),
        OptionKind::Float => "a number".to_string(),
        OptionKind::Text => "text in quotes".to_string(),
        OptionKind::Choice(choices) => one_of(choices.iter().map(String::as_str)),
        OptionKind::Floats => "a list of numbers".to_string(),
    };
    let each = if option.kind == OptionKind::Floats {
        ", each"
    } else {
        ""
    };
    match (option.min, option.max) {
        (Some(min), Some(max)) => format!("{kind}{each} from {min} to {max}"),
        (Some(min), None) => format!("{kind}{each}, at least {min}").replace(", each,", ", each"),
        (None, Some(max)) => format!("{kind}{each}, at most {max}").replace(", each,", ", each"),
        (None, None) => kind,
    }
}

/// A value as a run file writes it.
pub fn show(value: &OptionValue) -> String {
    match value {
        OptionValue::Bool(value) => value.to_string(),
        OptionValue::Integer(value) => value.to_string(),
        OptionValue::Float(value) => format!("{value:?}"),
        OptionValue::Text(text) => format!("{text:?}"),
        OptionValue::Floats(values) => format!("{values:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared() -> Vec<OptionInfo> {
        let option = |name: &str, kind, default, min, max| OptionInfo {
            name: name.into(),
            kind,
            default,
            min,
            max,
            doc: format!("What {name} is."),
            live: false,
        };
        let choices = OptionKind::Choice(vec!["sgd".into(), "adam".into()]);
        vec![
            option(
                "optimizer",
                choices,
                OptionValue::Text("sgd".into()),
                None,
                None,
            ),
            option(
                "lr",
                OptionKind::Float,
                OptionValue::Float(0.1),
                Some(0.0),
                None,
            ),
            option(
                "rounds",
                OptionKind::Integer,
                OptionValue::Integer(3),
                Some(1.0),
                Some(9.0),
            ),
            option(
                "decay",
                OptionKind::Floats,
                OptionValue::Floats(vec![]),
                Some(0.0),
                Some(1.0),
            ),
        ]
    }

    fn given(name: &str, value: OptionValue) -> Result<Vec<(String, OptionValue)>, String> {
        let places = BTreeMap::from([(name.to_string(), "run.toml:7".to_string())]);
        let given = BTreeMap::from([(name.to_string(), value)]);
        check("p", &declared(), &given, &places).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_not_given_has_its_default_and_a_whole_number_is_a_number() {
        let values = given("lr", OptionValue::Integer(1)).unwrap_or_default();
        let want = [
            ("optimizer", OptionValue::Text("sgd".into())),
            ("lr", OptionValue::Float(1.0)),
            ("rounds", OptionValue::Integer(3)),
            ("decay", OptionValue::Floats(vec![])),
        ];
        assert_eq!(values, want.map(|(name, value)| (name.to_string(), value)));
        let values = given("decay", OptionValue::Float(0.5)).unwrap_or_default();
        assert_eq!(
            values.last().map(|(_, value)| value),
            Some(&OptionValue::Floats(vec![0.5]))
        );
    }

    #[test]
    fn an_unknown_option_is_refused_with_the_nearest_name() {
        let want = "error: plugin `p` has no option `optimiser`
  at        run.toml:7, option `optimiser`
  expected  `optimizer`, `lr`, `rounds` or `decay`
  help      did you mean `optimizer`?";
        assert_eq!(
            given("optimiser", OptionValue::Bool(true)),
            Err(want.into())
        );
    }

    #[test]
    fn kind_range_and_choice_are_checked() {
        let want = "error: option `lr` of plugin `p` is out of range
  at        run.toml:7, option `lr`
  expected  a number, at least 0
  found     -0.5
  meaning   What lr is.";
        assert_eq!(given("lr", OptionValue::Float(-0.5)), Err(want.into()));
        let want = "error: option `rounds` of plugin `p` has the wrong type
  at        run.toml:7, option `rounds`
  expected  a whole number from 1 to 9
  found     2.5
  meaning   What rounds is.";
        assert_eq!(given("rounds", OptionValue::Float(2.5)), Err(want.into()));
        let want = "error: option `optimizer` of plugin `p` has no such choice
  at        run.toml:7, option `optimizer`
  expected  `sgd` or `adam`
  found     \"lion\"
  meaning   What optimizer is.";
        assert_eq!(
            given("optimizer", OptionValue::Text("lion".into())),
            Err(want.into())
        );
        assert!(
            given("lr", OptionValue::Float(f64::NAN)).is_err(),
            "NaN is in no range"
        );
        assert!(
            given("decay", OptionValue::Floats(vec![0.5, 2.0])).is_err(),
            "each number is checked"
        );
    }
}
