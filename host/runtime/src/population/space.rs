//! What a tuner may change: the run file's wishes checked against what the trainer and the layers allow.

use crate::component::{option_value, wit_value};
use crate::diagnostic::{Diagnostic, nearest, one_of};
use crate::host::bindings::trainer::espalier::plugin::options::Value;
use crate::host::bindings::tuner::exports::espalier::plugin::tuning::{Domain, Interval, KnobInfo};
use crate::model::{self, Preset};
use crate::options::{self, OptionInfo, OptionKind};
use crate::plan::{KnobDomain, KnobPlan, OptionValue, Plan, PopulationPlan};
use crate::run::Part;

/// Something that may be changed, as the trainer or a layer declares it, and its value in the run file.
struct Live {
    name: String,
    option: OptionInfo,
    /// A number that the option's range does not hold although it is its end: a dropout rate of 1.
    below: Option<f64>,
    value: OptionValue,
}

/// The knobs of a population, in the order of the run file.
///
/// # Errors
/// A name that is not live, with those that are; a domain that does not go with the option.
pub(super) fn check(
    plan: &Plan,
    population: &PopulationPlan,
    trainer: &Part,
) -> Result<Vec<KnobInfo>, Diagnostic> {
    let live = live(plan, trainer);
    let mut knobs = Vec::new();
    let mut errors = Vec::new();
    for wish in &population.space {
        match knob(wish, &live) {
            Ok(knob) => knobs.push(knob),
            Err(error) => errors.push(error.at(format!("{}, tuner.space", wish.place))),
        }
    }
    match Diagnostic::from_many(errors) {
        Some(error) => Err(error),
        None => Ok(knobs),
    }
}

/// Every option that may be changed during a run.
fn live(plan: &Plan, trainer: &Part) -> Vec<Live> {
    let (options, settings) = trainer.live();
    let mut all: Vec<Live> = options
        .iter()
        .map(|option| Live {
            name: format!("trainer.{}", option.name),
            option: option.clone(),
            below: None,
            value: settings
                .iter()
                .find(|(name, _)| *name == option.name)
                .map_or(option.default.clone(), |(_, value)| value.clone()),
        })
        .collect();
    // A list of layers that cannot be expanded is refused when the model is built.
    for layer in model::expand(&plan.model).unwrap_or_default() {
        for setting in model::live_settings(&layer.kind) {
            let usual = match setting.default {
                Preset::Number(x) => x,
                _ => 0.0,
            };
            let given = layer.settings.get(setting.name);
            let value = given
                .and_then(|list| list.first())
                .copied()
                .unwrap_or(usual);
            all.push(Live {
                name: format!("model.{}.{}", layer.name, setting.name),
                option: OptionInfo {
                    name: setting.name.into(),
                    kind: OptionKind::Float,
                    default: OptionValue::Float(usual),
                    min: Some(0.0),
                    max: Some(1.0),
                    doc: String::new(),
                    live: true,
                },
                below: Some(1.0),
                value: OptionValue::Float(value),
            });
        }
    }
    all
}

fn knob(wish: &KnobPlan, live: &[Live]) -> Result<KnobInfo, Diagnostic> {
    let names = || live.iter().map(|live| live.name.as_str());
    let Some(found) = live.iter().find(|live| live.name == wish.name) else {
        let near = nearest(&wish.name, names()).map(|near| format!("did you mean `{near}`?"));
        let error = Diagnostic::new(format!("`{}` cannot be changed during a run", wish.name));
        return Err(match live {
            [] => error
                .expected(
                    "an option that the trainer declares live, or the rate of a dropout layer",
                )
                .found("none in this run")
                .help("choose another trainer, or add a layer { kind = \"dropout\" }"),
            _ => error.expected(one_of(names())).help_if(near),
        });
    };
    let option = &found.option;
    let unfit = |expected: &str| {
        Err(
            Diagnostic::new(format!("the domain of `{}` does not go with it", wish.name))
                .expected(expected)
                .detail("option", options::expectation(option)),
        )
    };
    let within = |low: f64, high: f64| {
        option.min.is_none_or(|min| low >= min)
            && option.max.is_none_or(|max| high <= max)
            && found.below.is_none_or(|most| high < most)
    };
    let domain = match (&option.kind, &wish.domain) {
        (OptionKind::Float, KnobDomain::Interval { low, high, log }) if within(*low, *high) => {
            Domain::Number(Interval {
                low: *low,
                high: *high,
                log: *log,
            })
        }
        (OptionKind::Integer, KnobDomain::Interval { low, high, log }) if within(*low, *high) => {
            if low.fract() != 0.0 || high.fract() != 0.0 {
                return unfit("whole numbers as `low` and `high`");
            }
            Domain::Integer(Interval {
                low: *low,
                high: *high,
                log: *log,
            })
        }
        (OptionKind::Float | OptionKind::Integer, KnobDomain::Interval { .. }) => {
            return unfit("`low` and `high` within its range");
        }
        (OptionKind::Choice(known), KnobDomain::Choices(words)) => {
            if words.iter().any(|word| !known.contains(word)) {
                return unfit("choices that it has");
            }
            Domain::Choice(words.clone())
        }
        (OptionKind::Text, KnobDomain::Choices(words)) => Domain::Choice(words.clone()),
        (OptionKind::Float | OptionKind::Integer, _) => {
            return unfit("low = NUMBER and high = NUMBER");
        }
        (OptionKind::Choice(_) | OptionKind::Text, _) => return unfit("choices = [..]"),
        (OptionKind::Bool | OptionKind::Floats, _) => {
            return unfit("a number, a whole number or a word: others are no knobs");
        }
    };
    Ok(KnobInfo {
        name: wish.name.clone(),
        domain,
        default: wit_value(&found.value),
    })
}

/// What is wrong with knobs as a tuner gives them; in words, or nothing.
pub(crate) fn unfit(space: &[KnobInfo], knobs: &[(String, Value)]) -> Option<String> {
    for (place, (name, value)) in knobs.iter().enumerate() {
        let Some(knob) = space.iter().find(|knob| knob.name == *name) else {
            return Some(format!("there is no knob `{name}`"));
        };
        if knobs[..place].iter().any(|(other, _)| other == name) {
            return Some(format!("the knob `{name}` is set twice"));
        }
        // The run file's own value may lie outside, and whoever copies a member's knobs gives it back.
        let default = option_value(knob.default.clone());
        if !holds(&knob.domain, value) && option_value(value.clone()) != default {
            let shown = options::show(&option_value(value.clone()));
            return Some(format!(
                "`{name}` cannot be {shown}: it is {}",
                words(&knob.domain)
            ));
        }
    }
    None
}

/// Whether a domain holds a value.
fn holds(domain: &Domain, value: &Value) -> bool {
    match (domain, value) {
        (Domain::Number(i), Value::Number(x)) => (i.low..=i.high).contains(x),
        (Domain::Integer(i), Value::Integer(n)) => (i.low..=i.high).contains(&(*n as f64)),
        (Domain::Choice(words), Value::Text(word)) => words.contains(word),
        _ => false,
    }
}

fn words(domain: &Domain) -> String {
    match domain {
        Domain::Number(i) => format!("a number from {} to {}", i.low, i.high),
        Domain::Integer(i) => format!("a whole number from {} to {}", i.low, i.high),
        Domain::Choice(words) => one_of(words.iter().map(String::as_str)),
    }
}
