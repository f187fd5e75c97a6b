//! Options: what a run file may set under `[SLOT.with]`.
//!
//! ```
//! use espalier_sdk::{Choice, Options};
//!
//! /// Which optimiser.
//! #[derive(Choice, Clone, Copy, Debug, PartialEq)]
//! enum Rule {
//!     Plain,
//!     WithMomentum,
//! }
//!
//! #[derive(Options)]
//! struct Settings {
//!     /// Learning rate.
//!     #[option(default = 0.1, min = 0.0, live)]
//!     lr: f64,
//!     /// How the gradient is used.
//!     #[option(default = Rule::Plain)]
//!     rule: Rule,
//! }
//!
//! let infos = Settings::infos();
//! assert_eq!(infos[0].name, "lr");
//! assert_eq!(infos[1].doc, "How the gradient is used.");
//! let settings = Settings::defaults();
//! assert_eq!(settings.rule, Rule::Plain);
//! ```

use crate::bindings::host::espalier::plugin::options as host;
use crate::run::Error;
use crate::state::{Reader, Writer};

pub use host::{Kind, OptionInfo, Setting, Value};

/// A struct of options. Derived.
///
/// ```
/// # use espalier_sdk::Options;
/// #[derive(Options)]
/// struct Settings {
///     /// Learning rate.
///     #[option(default = 0.1, min = 0.0)]
///     lr: f64,
/// }
/// assert_eq!(Settings::defaults().lr, 0.1);
/// ```
pub trait Options: Sized {
    /// Every option, in the order of the fields.
    fn infos() -> Vec<OptionInfo>;

    /// Reads the settings of a run; what is not set has its default.
    fn from_settings(settings: &[Setting]) -> Result<Self, Error>;

    /// The present values of the options declared live.
    fn live(&self) -> Vec<Setting>;

    /// Changes an option declared live: all of `Trainer::set_knob` for a trainer that reads its options where it
    /// uses them. Refuses other names and values out of range.
    fn set_live(&mut self, name: &str, value: &Value) -> Result<(), Error>;

    /// The live options as bytes: all of `Trainer::save` for a trainer that keeps nothing else.
    fn save_live(&self) -> Vec<u8> {
        let live = self.live();
        let state = Writer::new(1).u64(live.len() as u64);
        live.iter()
            .fold(state, |state, (name, value)| write(state.text(name), value))
            .finish()
    }

    /// Takes back what `save_live` gave.
    fn restore_live(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut state = Reader::new(bytes, 1)?;
        for _ in 0..state.u64()? {
            let name = state.text()?;
            let value = read_value(&mut state)?;
            self.set_live(&name, &value)
                .map_err(|error| Error::invalid_state(error.message))?;
        }
        state.end()
    }

    /// All defaults. Panics if a default contradicts its own range, which a test of `defaults` shows.
    fn defaults() -> Self {
        match Self::from_settings(&[]) {
            Ok(options) => options,
            Err(error) => panic!("{}", error.message),
        }
    }
}

/// No options at all.
impl Options for () {
    fn infos() -> Vec<OptionInfo> {
        Vec::new()
    }

    fn from_settings(settings: &[Setting]) -> Result<Self, Error> {
        check_names::<Self>(settings)
    }

    fn live(&self) -> Vec<Setting> {
        Vec::new()
    }

    fn set_live(&mut self, name: &str, _value: &Value) -> Result<(), Error> {
        Err(not_live(name))
    }
}

/// The refusal of `set_live`. Called by derived code.
#[doc(hidden)]
pub fn not_live(name: &str) -> Error {
    Error::invalid_option(format!("`{name}` cannot be changed during a run"))
}

fn write(state: Writer, value: &Value) -> Writer {
    match value {
        Value::Flag(flag) => state.u64(0).u64(u64::from(*flag)),
        Value::Integer(i) => state.u64(1).u64(i.cast_unsigned()),
        Value::Number(x) => state.u64(2).f64(*x),
        Value::Text(text) => state.u64(3).text(text),
        Value::Numbers(xs) => state.u64(4).f64s(xs),
    }
}

fn read_value(state: &mut Reader) -> Result<Value, Error> {
    Ok(match state.u64()? {
        0 => Value::Flag(state.u64()? != 0),
        1 => Value::Integer(state.u64()?.cast_signed()),
        2 => Value::Number(state.f64()?),
        3 => Value::Text(state.text()?),
        4 => Value::Numbers(state.f64s()?),
        tag => {
            return Err(Error::invalid_state(format!(
                "the saved options hold a value of kind {tag}"
            )));
        }
    })
}

/// An enum whose cases are written in kebab-case in a run file. Derived.
///
/// ```
/// # use espalier_sdk::Choice;
/// #[derive(Choice, Debug, PartialEq)]
/// enum Rule {
///     Plain,
///     WithMomentum,
/// }
/// assert_eq!(Rule::from_name("with-momentum"), Some(Rule::WithMomentum));
/// ```
pub trait Choice: Sized {
    /// The names of the cases.
    const NAMES: &'static [&'static str];

    /// The case of that name.
    fn from_name(name: &str) -> Option<Self>;

    /// The name of this case.
    fn name(&self) -> &'static str;
}

/// A type that an option can have.
///
/// ```
/// # use espalier_sdk::options::{Kind, OptionType};
/// assert!(matches!(<f64 as OptionType>::kind(), Kind::Number));
/// ```
pub trait OptionType: Sized {
    /// How the option is declared.
    fn kind() -> Kind;
    /// As it travels.
    fn to_value(&self) -> Value;
    /// Back again; `None` where the value is of another kind or does not fit.
    fn from_value(value: &Value) -> Option<Self>;
    /// The smallest number the type itself allows, where that matters.
    fn least() -> Option<f64> {
        None
    }
}

impl OptionType for bool {
    fn kind() -> Kind {
        Kind::Flag
    }
    fn to_value(&self) -> Value {
        Value::Flag(*self)
    }
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Flag(flag) => Some(*flag),
            _ => None,
        }
    }
}

impl OptionType for f64 {
    fn kind() -> Kind {
        Kind::Number
    }
    fn to_value(&self) -> Value {
        Value::Number(*self)
    }
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Number(x) => Some(*x),
            Value::Integer(i) => Some(*i as f64),
            _ => None,
        }
    }
}

impl OptionType for String {
    fn kind() -> Kind {
        Kind::Text
    }
    fn to_value(&self) -> Value {
        Value::Text(self.clone())
    }
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }
}

impl OptionType for Vec<f64> {
    fn kind() -> Kind {
        Kind::Numbers
    }
    fn to_value(&self) -> Value {
        Value::Numbers(self.clone())
    }
    fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Numbers(xs) => Some(xs.clone()),
            _ => None,
        }
    }
}

macro_rules! integers {
    ($($type:ty: $least:expr,)*) => {$(
        impl OptionType for $type {
            fn kind() -> Kind {
                Kind::Integer
            }
            fn to_value(&self) -> Value {
                Value::Integer(i64::try_from(*self).unwrap_or(i64::MAX))
            }
            fn from_value(value: &Value) -> Option<Self> {
                match value {
                    Value::Integer(i) => <$type>::try_from(*i).ok(),
                    _ => None,
                }
            }
            fn least() -> Option<f64> {
                $least
            }
        }
    )*};
}

integers!(i64: None, u32: Some(0.0), u64: Some(0.0), usize: Some(0.0),);

/// Refuses settings that no option has. Called by derived code.
#[doc(hidden)]
pub fn check_names<T: Options>(settings: &[Setting]) -> Result<(), Error> {
    let infos = T::infos();
    match settings
        .iter()
        .find(|(name, _)| infos.iter().all(|info| info.name != *name))
    {
        None => Ok(()),
        Some((name, _)) => Err(Error::invalid_option(format!(
            "there is no option `{name}`"
        ))),
    }
}

/// Reads one option. Called by derived code.
#[doc(hidden)]
pub fn read<T: OptionType>(
    settings: &[Setting],
    name: &str,
    default: T,
    range: (Option<f64>, Option<f64>),
) -> Result<T, Error> {
    let Some((_, value)) = settings.iter().find(|(n, _)| n == name) else {
        return Ok(default);
    };
    check_range(name, value, range)?;
    T::from_value(value).ok_or_else(|| {
        Error::invalid_option(format!(
            "`{name}` must be {}, it is {}",
            expected(&T::kind()),
            shown(value)
        ))
    })
}

fn check_range(
    name: &str,
    value: &Value,
    (min, max): (Option<f64>, Option<f64>),
) -> Result<(), Error> {
    let numbers = match value {
        Value::Integer(i) => vec![*i as f64],
        Value::Number(x) => vec![*x],
        Value::Numbers(xs) => xs.clone(),
        Value::Flag(_) | Value::Text(_) => return Ok(()),
    };
    for x in numbers {
        let must = match (min, max) {
            _ if x.is_nan() => "be a number".to_string(),
            (Some(min), _) if x < min => format!("be at least {min}"),
            (_, Some(max)) if x > max => format!("be at most {max}"),
            _ => continue,
        };
        return Err(Error::invalid_option(format!(
            "`{name}` must {must}, it is {x}"
        )));
    }
    Ok(())
}

fn expected(kind: &Kind) -> String {
    match kind {
        Kind::Flag => "true or false".into(),
        Kind::Integer => "a whole number".into(),
        Kind::Number => "a number".into(),
        Kind::Text => "a text".into(),
        Kind::Choice(names) => format!("one of {}", names.join(", ")),
        Kind::Numbers => "a list of numbers".into(),
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Flag(flag) => flag.to_string(),
        Value::Integer(i) => i.to_string(),
        Value::Number(x) => x.to_string(),
        Value::Text(text) => format!("\"{text}\""),
        Value::Numbers(xs) => format!("{xs:?}"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[derive(crate::Choice, Clone, Copy, Debug, PartialEq)]
    enum Shape {
        OneShot,
        Gradual,
    }

    #[derive(crate::Options, Debug)]
    struct Everything {
        /// First line
        /// and second.
        #[option(default = 1e-3, min = 0.0, max = 1.0, live)]
        lr: f64,
        /// Steps.
        #[option(default = 100, min = 1)]
        every_steps: u64,
        /// Offset.
        #[option(default = -3)]
        offset: i64,
        /// On.
        #[option(default = true)]
        on: bool,
        /// Name.
        #[option(default = "main")]
        name: String,
        /// Rates.
        #[option(default = [0.5, 0.25], min = 0, max = 1)]
        rates: Vec<f64>,
        /// Shape.
        #[option(default = Shape::OneShot)]
        shape: Shape,
    }

    fn set(name: &str, value: Value) -> Vec<Setting> {
        vec![(name.to_string(), value)]
    }

    #[test]
    fn silence_gives_every_default() {
        let options = Everything::defaults();
        assert_eq!(
            (options.lr, options.every_steps, options.offset),
            (1e-3, 100, -3)
        );
        assert!(options.on);
        assert_eq!(options.name, "main");
        assert_eq!(options.rates, [0.5, 0.25]);
        assert_eq!(options.shape, Shape::OneShot);
    }

    #[test]
    fn fields_describe_themselves() {
        let infos = Everything::infos();
        assert_eq!(infos[0].doc, "First line and second.");
        assert!(infos[0].live && !infos[1].live);
        assert_eq!((infos[0].min, infos[0].max), (Some(0.0), Some(1.0)));
        assert_eq!(infos[1].name, "every-steps");
        assert!(matches!(&infos[2].default, Value::Integer(-3)));
        assert!(matches!(&infos[6].kind, Kind::Choice(names) if names == &["one-shot", "gradual"]));
        assert!(matches!(&infos[6].default, Value::Text(name) if name == "one-shot"));
    }

    #[test]
    fn settings_override_defaults_and_whole_numbers_serve_as_numbers() {
        let settings = [
            ("lr".to_string(), Value::Integer(1)),
            ("shape".to_string(), Value::Text("gradual".into())),
            ("rates".to_string(), Value::Numbers(vec![0.1])),
        ];
        let options = Everything::from_settings(&settings).unwrap();
        assert_eq!((options.lr, options.shape), (1.0, Shape::Gradual));
        assert_eq!(options.rates, [0.1]);
    }

    #[test]
    fn only_live_options_change_and_they_survive_a_save() {
        let mut options = Everything::defaults();
        options.set_live("lr", &Value::Number(0.5)).unwrap();
        assert_eq!(options.lr, 0.5);
        assert!(options.set_live("lr", &Value::Number(2.0)).is_err());
        assert!(options.set_live("on", &Value::Flag(false)).is_err());
        let mut resumed = Everything::defaults();
        resumed.restore_live(&options.save_live()).unwrap();
        assert_eq!(resumed.lr, 0.5);
        assert!(resumed.restore_live(&[1, 2, 3]).is_err());
    }

    #[test]
    fn every_kind_of_value_survives_a_save() {
        let values = [
            Value::Flag(true),
            Value::Integer(-5),
            Value::Number(0.1),
            Value::Text("a".into()),
            Value::Numbers(vec![1.0, -2.0]),
        ];
        for value in values {
            let bytes = write(Writer::new(1), &value).finish();
            let read = read_value(&mut Reader::new(&bytes, 1).unwrap()).unwrap();
            assert_eq!(shown(&read), shown(&value));
        }
    }

    #[test]
    fn a_wrong_value_is_refused_with_name_expectation_and_value() {
        let error =
            |settings: Vec<Setting>| Everything::from_settings(&settings).unwrap_err().message;
        assert_eq!(
            error(set("lr", Value::Number(1.5))),
            "`lr` must be at most 1, it is 1.5"
        );
        assert_eq!(
            error(set("lr", Value::Number(f64::NAN))),
            "`lr` must be a number, it is NaN"
        );
        assert_eq!(
            error(set("every-steps", Value::Integer(0))),
            "`every-steps` must be at least 1, it is 0"
        );
        assert_eq!(
            error(set("shape", Value::Text("oneshot".into()))),
            "`shape` must be one of one-shot, gradual, it is \"oneshot\""
        );
        assert_eq!(
            error(set("on", Value::Number(1.0))),
            "`on` must be true or false, it is 1"
        );
        assert_eq!(
            error(set("steps", Value::Integer(1))),
            "there is no option `steps`"
        );
    }
}
