//! One plugin before the laws: what is known of it, its verdicts so far, and sessions of its component.

use std::collections::BTreeMap;
use std::rc::Rc;

use espalier_tensor::account::Account;

use super::laws::{self, Law, laws_of};
use super::{Fault, Finding, Setup, Verdict};
use crate::component::{self, Loaded};
use crate::diagnostic::Diagnostic;
use crate::host::bindings::trainer::espalier::plugin::options::{
    Kind, OptionInfo as WitOption, Value,
};
use crate::host::bindings::trainer::espalier::plugin::run::Error;
use crate::host::bindings::trainer::exports::espalier::plugin::plugin::Description;
use crate::host::session::{Called, Cause, Death, Session};
use crate::host::state::{RunState, Shared};
use crate::options::{self, OptionInfo};

/// Why a law's trial ended before its end.
pub(super) enum Stop {
    /// The law is broken.
    Broken(Box<Fault>),
    /// Another law is broken.
    Elsewhere(Law, Box<Fault>),
    /// The law does not concern the plugin.
    Idle(String),
    /// The plugin died while the suite did this.
    Died { did: String, death: Box<Death> },
}

/// What a law's trial gives.
pub(super) type Trial = Result<(), Stop>;

/// A broken law.
pub(super) fn broken<T>(
    did: impl Into<String>,
    expected: impl Into<String>,
    found: impl Into<String>,
    mend: impl Into<String>,
) -> Result<T, Stop> {
    Err(Stop::Broken(Box::new(Fault {
        did: did.into(),
        expected: expected.into(),
        found: found.into(),
        mend: mend.into(),
    })))
}

/// The same, if what broke is a matter of another law.
pub(super) fn elsewhere(law: Law, stop: Stop) -> Stop {
    match stop {
        Stop::Broken(fault) => Stop::Elsewhere(law, fault),
        other => other,
    }
}

/// A law that does not concern the plugin.
pub(super) fn idle<T>(reason: impl Into<String>) -> Result<T, Stop> {
    Err(Stop::Idle(reason.into()))
}

/// Says what the suite did when a plugin died.
pub(super) trait While<T> {
    fn during(self, did: &str) -> Result<T, Stop>;
}

impl<T> While<T> for Called<T> {
    fn during(self, did: &str) -> Result<T, Stop> {
        self.map_err(|death| Stop::Died {
            did: did.to_string(),
            death: Box::new(death),
        })
    }
}

/// A death in a line or several.
pub(super) fn death_words(death: &Death) -> String {
    let mut text = format!("`{}` {}", death.call, death.what);
    for (label, detail) in &death.details {
        text.push_str(&format!("; {label}: {detail}"));
    }
    text
}

/// One plugin before the laws.
pub(super) struct Exam<'a> {
    pub(super) setup: &'a Setup,
    pub(super) source: String,
    pub(super) loaded: Loaded,
    /// Its own words, where it came to say any.
    pub(super) about: Option<Description>,
    /// Its options as the host knows them; none where it declares them wrongly.
    pub(super) declared: Vec<OptionInfo>,
    /// Every option's value for ordinary use.
    pub(super) settings: Vec<(String, Value)>,
    /// What it is tried on.
    pub(super) problem: String,
    verdicts: BTreeMap<&'static str, Verdict>,
}

impl<'a> Exam<'a> {
    /// Asks the plugin for its description, and judges that.
    pub(super) fn new(source: &str, loaded: Loaded, setup: &'a Setup) -> Result<Self, Diagnostic> {
        let mut exam = Exam {
            setup,
            source: source.to_string(),
            loaded,
            about: None,
            declared: Vec::new(),
            settings: Vec::new(),
            problem: String::new(),
            verdicts: BTreeMap::new(),
        };
        exam.try_law(laws::OPTIONS, |exam| exam.options());
        if let Ok(known) = component::describe(source, &exam.loaded) {
            exam.declared = known.options;
            let settings = options::check(source, &exam.declared, &setup.options, &BTreeMap::new())
                .map_err(|error| error.help("mend `options` in conformance.toml"))?;
            exam.settings = settings
                .iter()
                .map(|(name, value)| (name.clone(), component::wit_value(value)))
                .collect();
        } else if let Some(about) = &exam.about {
            // What it declares is wrong, and judged already; the other laws go by its defaults.
            exam.settings = about
                .options
                .iter()
                .map(|o| (o.name.clone(), o.default.clone()))
                .collect();
        }
        Ok(exam)
    }

    /// Name and version.
    pub(super) fn identity(&self) -> (String, String) {
        match &self.about {
            Some(about) => (about.name.clone(), about.version.clone()),
            None => (self.source.clone(), String::new()),
        }
    }

    /// Whether a law was broken.
    pub(super) fn is_broken(&self, law: Law) -> bool {
        matches!(self.verdicts.get(law.name), Some(Verdict::Fail(_)))
    }

    /// Judges a law by a trial. A death for want of time or room breaks the law about that one, if not this one.
    pub(super) fn try_law(&mut self, law: Law, trial: impl FnOnce(&mut Self) -> Trial) {
        let verdict = match trial(self) {
            Ok(()) => Verdict::Pass,
            Err(Stop::Broken(fault)) => Verdict::Fail(*fault),
            Err(Stop::Elsewhere(guilty, fault)) => {
                self.verdicts.insert(guilty.name, Verdict::Fail(*fault));
                Verdict::NotApplicable {
                    reason: format!("it broke the law `{}` on the way", guilty.name),
                }
            }
            Err(Stop::Idle(reason)) => Verdict::NotApplicable { reason },
            Err(Stop::Died { did, death }) => {
                let guilty = match death.cause {
                    Cause::Time => laws::ENDS,
                    Cause::Budget => laws::BUDGETS,
                    Cause::Other => law,
                };
                let fault = Fault {
                    did,
                    expected: match death.cause {
                        Cause::Time => format!("an answer within {} s", self.setup.limits.call.as_secs_f64()),
                        Cause::Budget => "use within the budget".into(),
                        Cause::Other => "an answer, or a refusal in words".into(),
                    },
                    found: death_words(&death),
                    mend: death.help.clone().unwrap_or_else(|| match death.cause {
                        Cause::Time => "find the loop that has no end, or do less in one call".into(),
                        Cause::Budget => "drop what is no longer needed".into(),
                        Cause::Other => "mend the line that is named; what a plugin cannot deal with it refuses in `start`".into(),
                    }),
                };
                self.verdicts.insert(guilty.name, Verdict::Fail(fault));
                if guilty == law {
                    return;
                }
                Verdict::NotApplicable {
                    reason: format!("it broke the law `{}` on the way", guilty.name),
                }
            }
        };
        // A law that was broken on the way stays so.
        if !self.is_broken(law) {
            self.verdicts.insert(law.name, verdict);
        }
    }

    /// Every law of the plugin's world with its verdict. What no trial reached says so.
    pub(super) fn findings(&self) -> Vec<Finding> {
        let reached = self.verdicts.contains_key(laws::ORDINARY.name);
        let ordinary = matches!(self.verdicts.get(laws::ORDINARY.name), Some(Verdict::Pass));
        let unreached = |law: Law| {
            let kept = [laws::ENDS, laws::BUDGETS].contains(&law) && reached;
            match kept {
                true => Verdict::Pass,
                false => Verdict::NotApplicable {
                    reason: match ordinary {
                        true => "was not reached".into(),
                        false => "it does not do its ordinary work".into(),
                    },
                },
            }
        };
        laws_of(self.loaded.world)
            .into_iter()
            .map(|law| Finding {
                law: law.name,
                demands: law.demands,
                verdict: self
                    .verdicts
                    .get(law.name)
                    .cloned()
                    .unwrap_or_else(|| unreached(law)),
            })
            .collect()
    }

    /// A new instance in a run with nothing in it.
    pub(super) fn alone(&self) -> Called<Session> {
        self.session(&Rc::new(Shared::new(RunState::empty(self.setup.seed))))
    }

    /// A new instance in a run.
    pub(super) fn session(&self, shared: &Rc<Shared>) -> Called<Session> {
        let limits = self.setup.limits.clone();
        let account = Account::new(Some(limits.tensors));
        Session::new(&self.loaded, &self.source, limits, account, shared.clone())
    }

    fn options(&mut self) -> Trial {
        let mut session = self.alone().during("made an instance of the component")?;
        let about = session.describe().during("asked it to describe itself")?;
        self.about = Some(about.clone());
        let did = "read the description";
        for option in &about.options {
            let name = &option.name;
            let kebab = !name.is_empty()
                && name.starts_with(|c: char| c.is_ascii_lowercase())
                && name
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
            if !kebab {
                return broken(
                    did,
                    "names of options in kebab-case, as `every-steps`",
                    format!("`{name}`"),
                    "rename it",
                );
            }
            if about.options.iter().filter(|o| o.name == *name).count() > 1 {
                return broken(
                    did,
                    "every option once",
                    format!("`{name}` twice"),
                    "remove one of them",
                );
            }
            if option.doc.trim().is_empty() {
                return broken(
                    did,
                    format!("a line of documentation for `{name}`"),
                    "none",
                    "write a doc comment over the option",
                );
            }
            if let (Some(min), Some(max)) = (option.min, option.max)
                && min > max
            {
                return broken(
                    did,
                    format!("a range of `{name}` that holds something"),
                    format!("from {min} to {max}"),
                    "exchange `min` and `max`",
                );
            }
        }
        match component::describe(&self.source, &self.loaded) {
            Ok(_) => Ok(()),
            Err(error) => broken(
                did,
                "options, events and defaults that hold by their own rules",
                error.to_string(),
                "mend the declaration: a default lies in its own range and is of its own type",
            ),
        }
    }

    /// Gives a plugin options that it should refuse, one at a time. `start` starts a new instance.
    pub(super) fn refusals(
        &self,
        mut start: impl FnMut(&[(String, Value)]) -> Called<Result<(), Error>>,
    ) -> Trial {
        let refused = "a refusal in words, as the error `invalid-option`";
        let declared = self
            .about
            .as_ref()
            .map(|about| about.options.clone())
            .unwrap_or_default();
        let mut wrong: Vec<(String, String, Value)> = vec![(
            "an option that it does not declare".into(),
            "no-such-option".into(),
            Value::Flag(true),
        )];
        for option in &declared {
            wrong.extend(
                unfit(option)
                    .into_iter()
                    .map(|(what, value)| (what, option.name.clone(), value)),
            );
        }
        for (what, name, value) in wrong {
            let mut settings: Vec<_> = self
                .settings
                .iter()
                .filter(|(n, _)| *n != name)
                .cloned()
                .collect();
            let shown = options::show(&component::option_value(value.clone()));
            settings.push((name.clone(), value));
            let did = format!("started it with {what}: {name} = {shown}");
            match start(&settings) {
                Ok(Err(error)) if error.message.trim().is_empty() => {
                    return broken(
                        did,
                        refused,
                        "a refusal without words",
                        "say what was expected and what was found",
                    );
                }
                Ok(Err(_)) => {}
                Ok(Ok(())) => {
                    return broken(
                        did,
                        refused,
                        "it started",
                        "check names, types and ranges in `start`: the host checks them before a run, but not every host needs to",
                    );
                }
                Err(death) if death.cause != Cause::Other => return Err(death).during(&did),
                Err(death) => {
                    return broken(
                        did,
                        refused,
                        death_words(&death),
                        "return an error from `start` in the place of a trap",
                    );
                }
            }
        }
        Ok(())
    }
}

/// Values that an option must not take, and what they are.
fn unfit(option: &WitOption) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    all.push((
        "a value of another type".to_string(),
        match option.kind {
            Kind::Text | Kind::Choice(_) => Value::Flag(true),
            _ => Value::Text("not this".into()),
        },
    ));
    let value = |x: f64| match option.kind {
        Kind::Integer if x.abs() < 9e15 => Some(Value::Integer(x as i64)),
        Kind::Number => Some(Value::Number(x)),
        Kind::Numbers => Some(Value::Numbers(vec![x])),
        _ => None,
    };
    let beyond = |x: f64, by: f64| x + by * x.abs().max(1.0);
    if let Some(value) = option.min.and_then(|min| value(beyond(min, -1.0).floor())) {
        all.push(("a value below its range".into(), value));
    }
    if let Some(value) = option.max.and_then(|max| value(beyond(max, 1.0).ceil())) {
        all.push(("a value above its range".into(), value));
    }
    if matches!(option.kind, Kind::Choice(_)) {
        all.push((
            "a choice that it does not have".into(),
            Value::Text("no-such-choice".into()),
        ));
    }
    if matches!(option.kind, Kind::Number) && (option.min.is_some() || option.max.is_some()) {
        all.push(("a number that is none".into(), Value::Number(f64::NAN)));
    }
    all
}
