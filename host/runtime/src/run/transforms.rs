//! Transforms: what they make of the data before the model is built, and of each training batch.

use super::*;
use crate::data::{Dataset, Split};
use crate::host::data::split_info;
use crate::host::guest::named;
use crate::host::session::Derived;
use crate::plan::TRAIN;

/// Most splits that one transform derives.
const MOST_DERIVED: usize = 64;

/// The data as the run's transforms leave them, and the transforms, each with whether it wants training batches.
pub(super) fn transformed(
    plan: &Plan,
    parts: &[Part],
    shared: &Rc<Shared>,
    mut dataset: Dataset,
) -> Result<(Dataset, Vec<(Session, bool)>), Diagnostic> {
    let mut at_work = Vec::new();
    for part in parts
        .iter()
        .filter(|part| part.plan.slot == Slot::Transform)
    {
        let name = &part.plan.name;
        let at = |death: Death| death.diagnostic("before the model is built");
        let account = Account::new(Some(part.plan.limits.tensors));
        let mut session = Session::new(
            &part.loaded,
            name,
            part.plan.limits.clone(),
            account,
            shared.clone(),
        )
        .map_err(at)?;
        let train = dataset
            .split(TRAIN)
            .map_err(|error| edge("the data has no training split", &error))?;
        let infos: Vec<_> = dataset.splits.iter().map(split_info).collect();
        session
            .start_transform(run_info(plan), &part.wit_settings(), &train.fields, &infos)
            .map_err(at)?
            .map_err(|refusal| refused(name, refusal, "start"))?;
        let mut derived = Vec::new();
        let mut replaced = Vec::new();
        for split in &dataset.splits {
            let found = session
                .prepare(&split_info(split), &split.fields)
                .map_err(at)?;
            let wrong = |problem: String| {
                Diagnostic::new(format!(
                    "transform `{name}` makes a split that can't be of `{}`",
                    split.name
                ))
                .at("`prepare`, before the model is built")
                .detail("because", problem)
                .help("mend the plugin")
            };
            for one in found {
                let own = one.name == split.name;
                let new = made(one, own.then_some(split)).map_err(wrong)?;
                let taken = |s: &Split| s.name == new.name;
                match own {
                    true if replaced.iter().any(taken) => {
                        return Err(wrong(format!("`{}` is given twice", new.name)));
                    }
                    true => replaced.push(new),
                    false if dataset.splits.iter().chain(&derived).any(taken) => {
                        return Err(wrong(format!(
                            "a split `{}` exists already; a derived one has a name of its own",
                            new.name
                        )));
                    }
                    false if derived.len() >= MOST_DERIVED => {
                        return Err(wrong(format!("more than {MOST_DERIVED} derived splits")));
                    }
                    false => derived.push(new),
                }
            }
        }
        for new in replaced {
            if let Some(old) = dataset.splits.iter_mut().find(|s| s.name == new.name) {
                *old = new;
            }
        }
        alike(&dataset).map_err(|problem| {
            Diagnostic::new(format!(
                "transform `{name}` leaves splits that do not go together"
            ))
            .at("`prepare`, before the model is built")
            .detail("because", problem)
            .help("give every split's inputs the same shape and kind")
        })?;
        dataset.splits.extend(derived);
        let batches = part.events.iter().any(|event| event == "batch");
        at_work.push((session, batches));
    }
    Ok((dataset, at_work))
}

/// A split of what a transform gave; `old` is the one that it stands in the place of.
fn made(from: Derived, old: Option<&Split>) -> Result<Split, String> {
    named("prepare", &from.name).map_err(|error| error.to_string())?;
    if from.name.is_empty() {
        return Err("it has no name".into());
    }
    let count = from.fields.first().and_then(|(_, t)| t.shape().first());
    let count = match count.copied() {
        None => {
            return Err(format!(
                "`{}` has no field with an axis for samples",
                from.name
            ));
        }
        Some(0) => return Err(format!("`{}` has no sample", from.name)),
        Some(count) => count,
    };
    let mut fields: Vec<(String, Tensor)> = Vec::new();
    for (name, tensor) in from.fields {
        named("prepare", &name).map_err(|error| error.to_string())?;
        if tensor.shape().first() != Some(&count) {
            return Err(format!(
                "field `{name}` has shape {:?}; field `{}` has {count} samples",
                tensor.shape(),
                fields.first().map_or("", |(first, _)| first)
            ));
        }
        if fields.iter().any(|(other, _)| *other == name) {
            return Err(format!("field `{name}` is given twice"));
        }
        // A split outlives the call that made it.
        let whole = tensor.detach().contiguous();
        fields.push((name, whole.map_err(|error| error.to_string())?));
    }
    for (name, _) in old.iter().flat_map(|old| &old.fields) {
        if !fields.iter().any(|(new, _)| new == name) {
            return Err(format!("`{}` has no field `{name}` any longer", from.name));
        }
    }
    let targets = fields.iter().find(|(name, _)| name == "targets");
    match targets {
        Some((_, targets)) if from.classes > 0 => {
            if targets.dtype() != DType::I64 || targets.shape().len() != 1 {
                return Err(format!(
                    "`targets` of `{}` are {:?} {:?}, and {} classes need whole numbers [{count}]",
                    from.name,
                    targets.dtype(),
                    targets.shape(),
                    from.classes
                ));
            }
            let list = targets.to_list().map_err(|error| error.to_string())?;
            let known = 0.0..f64::from(from.classes);
            if let Some(wrong) = list.iter().find(|class| !known.contains(*class)) {
                return Err(format!(
                    "`targets` of `{}` hold {wrong}, and there are {} classes",
                    from.name, from.classes
                ));
            }
        }
        _ => {}
    }
    Ok(Split {
        name: from.name,
        count,
        fields,
        classes: from.classes,
        task: old.map_or(0, |old| old.task),
        added: false,
    })
}

/// What a model reads must have one shape in all splits that it is measured on.
fn alike(dataset: &Dataset) -> Result<(), String> {
    let Ok(train) = dataset.split(TRAIN) else {
        return Ok(());
    };
    let measured = dataset.splits.iter();
    for split in measured.filter(|s| s.name == "validation" || s.name == "test") {
        for (name, theirs) in train.fields.iter().filter(|(name, _)| name != "targets") {
            let own = split.field(name).map_err(|error| error.to_string())?;
            if own.shape().get(1..) != theirs.shape().get(1..) || own.dtype() != theirs.dtype() {
                return Err(format!(
                    "`{name}` is {:?} {:?} a sample in `train` and {:?} {:?} in `{}`",
                    theirs.dtype(),
                    theirs.shape().get(1..).unwrap_or_default(),
                    own.dtype(),
                    own.shape().get(1..).unwrap_or_default(),
                    split.name
                ));
            }
        }
        if split.classes != train.classes {
            return Err(format!(
                "`train` has {} classes and `{}` has {}",
                train.classes, split.name, split.classes
            ));
        }
    }
    Ok(())
}
