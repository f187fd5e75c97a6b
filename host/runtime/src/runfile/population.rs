//! `[tuner]`: a population of runs, and what may be changed in them.

use super::plugin;
use crate::diagnostic::Diagnostic;
use crate::document::{Field, Fields, Value};
use crate::plan::{Every, Goal, KnobDomain, KnobPlan, PluginPlan, PopulationPlan, Slot};

/// What `[tuner]` may say.
pub(super) const TUNER: [&str; 10] = [
    "plugin",
    "with",
    "limits",
    "on-failure",
    "members",
    "every",
    "every-steps",
    "metric",
    "goal",
    "space",
];

/// What a knob may say.
const KNOB: [&str; 4] = ["low", "high", "log", "choices"];

/// Most members: each is a whole run with a thread of its own.
const MOST_MEMBERS: u64 = 1024;

/// What is compared where the file does not say.
const METRIC: &str = "validation/accuracy";

const EXAMPLE: &str =
    "add [tuner.space] with \"trainer.lr\" = { low = 1e-4, high = 1.0, log = true }";

/// The tuner and its population. `checkpoint` is the file's table of that name.
pub(super) fn read(
    field: &Field<'_, '_>,
    checkpoint: Option<&Field<'_, '_>>,
) -> Option<(PluginPlan, PopulationPlan)> {
    let plugin = plugin(field, Slot::Tuner);
    let fields = field.open_table(&TUNER)?;
    let members = fields
        .get("members")
        .map_or(Some(1), |field| field.integer(1, MOST_MEMBERS));
    let count = |key: &str| fields.get(key).and_then(|field| field.integer(1, u64::MAX));
    let every = match (fields.get("every"), fields.get("every-steps")) {
        (Some(_), Some(second)) => {
            second.error(
                Diagnostic::new("[tuner] gives both `every` and `every-steps`")
                    .expected("one of the two: epochs or steps between two decisions")
                    .help("remove one"),
            );
            None
        }
        (_, Some(_)) => count("every-steps").map(Every::Steps),
        (Some(_), None) => count("every").map(Every::Epochs),
        (None, None) => Some(Every::Epochs(1)),
    };
    let metric = match fields.get("metric") {
        Some(field) => metric(&field),
        None => Some(METRIC.to_string()),
    };
    let goal = match fields.get("goal") {
        Some(field) => field
            .choice("goal", &["max", "min"])
            .map(|at| [Goal::Max, Goal::Min][at]),
        None => metric.as_deref().and_then(|metric| {
            let known = usual_goal(metric);
            if known.is_none() {
                fields.error(
                    Diagnostic::new(format!("it is not known which `{metric}` is better"))
                        .help("add goal = \"max\" or goal = \"min\""),
                );
            }
            known
        }),
    };
    let space = fields
        .require("space", EXAMPLE)
        .and_then(|field| space(&field));
    if let Some(table) = checkpoint.and_then(|field| field.open_table(&[]))
        && let Some(every) = table.get("every")
    {
        every.error(
            Diagnostic::new("a population is made safe each time that its tuner has decided")
                .help("remove `every`: [tuner] says when that is"),
        );
    }
    Some((
        plugin?,
        PopulationPlan {
            members: members? as u32,
            every: every?,
            metric: metric?,
            goal: goal?,
            space: space?,
        },
    ))
}

/// `SPLIT/NAME`, where the split is not the one that the result is reported on.
fn metric(field: &Field<'_, '_>) -> Option<String> {
    let text = field.text()?;
    let whole = matches!(text.split_once('/'), Some((split, name)) if !split.is_empty() && !name.is_empty());
    if !whole {
        return field.malformed("a split and a measure of it, as \"validation/accuracy\"");
    }
    Some(text.to_string())
}

/// Which values of a measure are better, for those that the host makes.
fn usual_goal(metric: &str) -> Option<Goal> {
    match metric.split_once('/')?.1 {
        "accuracy" | "return" | "reward" | "well-formed" => Some(Goal::Max),
        "loss" => Some(Goal::Min),
        _ => None,
    }
}

fn space(field: &Field<'_, '_>) -> Option<Vec<KnobPlan>> {
    let mut knobs = Vec::new();
    let whole = gather(field, "", &mut knobs)?;
    if knobs.is_empty() && whole {
        field.error(Diagnostic::new("[tuner.space] names nothing").help(EXAMPLE));
        return None;
    }
    whole.then_some(knobs)
}

/// Names may be quoted, `"trainer.lr" = { .. }`, or not, `trainer.lr = { .. }`, which TOML reads as tables in
/// tables. Gives whether all was well.
fn gather(field: &Field<'_, '_>, before: &str, knobs: &mut Vec<KnobPlan>) -> Option<bool> {
    let fields = field.open_table(&[])?;
    let mut whole = true;
    for key in fields.table.keys() {
        let inner = fields.get(key)?;
        let name = match before {
            "" => key.clone(),
            before => format!("{before}.{key}"),
        };
        if !is_knob(&inner) {
            whole &= gather(&inner, &name, knobs).unwrap_or(false);
            continue;
        }
        match knob(&inner) {
            Some(domain) => knobs.push(KnobPlan {
                name,
                place: field.reader.document.short_place(&inner.item.origin),
                domain,
            }),
            None => whole = false,
        }
    }
    Some(whole)
}

/// Whether a table is meant as a knob: anything but tables in it, or nothing.
fn is_knob(field: &Field<'_, '_>) -> bool {
    match &field.item.value {
        Value::Table(table) => {
            let inner = |item: &Value| matches!(item, Value::Table(_));
            table.is_empty() || !table.values().all(|(_, item)| inner(&item.value))
        }
        _ => true,
    }
}

fn knob(field: &Field<'_, '_>) -> Option<KnobDomain> {
    let fields = field.table(&KNOB, &|_| None)?;
    if let Some(list) = fields.get("choices") {
        if let Some(other) = ["low", "high", "log"]
            .iter()
            .find_map(|key| fields.get(key))
        {
            other.error(
                Diagnostic::new("a knob has either bounds or choices")
                    .help("remove `choices`, or `low`, `high` and `log`"),
            );
            return None;
        }
        let items = list.list("a list of words")?;
        if items.is_empty() {
            return list.refuse("at least one word");
        }
        let words: Option<Vec<String>> = items
            .iter()
            .map(|item| item.text().map(str::to_string))
            .collect();
        return words.map(KnobDomain::Choices);
    }
    let low = bound(&fields, "low");
    let high = bound(&fields, "high");
    let log = match fields.get("log") {
        Some(field) => field.bool(),
        None => Some(false),
    };
    let (low, high, log) = (low?, high?, log?);
    if low >= high {
        fields.error(
            Diagnostic::new("the knob's bounds hold nothing")
                .expected("`low` below `high`")
                .found(format!("from {low} to {high}")),
        );
        return None;
    }
    if log && low <= 0.0 {
        fields.error(
            Diagnostic::new("ratios have no meaning from 0 or below")
                .expected("`low` above 0 where log = true")
                .found(format!("{low}"))
                .help("give a small number, as 1e-6, or remove `log`"),
        );
        return None;
    }
    Some(KnobDomain::Interval { low, high, log })
}

fn bound(fields: &Fields<'_, '_>, key: &str) -> Option<f64> {
    let field = fields.require(key, "add low = NUMBER and high = NUMBER, or choices = [..]")?;
    match field.numbers()?[..] {
        [x] if !matches!(field.item.value, Value::Bool(_)) => Some(x),
        _ => field.malformed("a number"),
    }
}
