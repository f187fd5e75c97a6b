//! The laws of pruners: runs with the trainer `backprop`, looked at between steps.

use std::path::Path;

use super::bench::{self, Bench, Halt, Held, Left, Size, Trial as Run, held, main_set};
use super::exam::{Exam, Stop, Trial, broken, idle};
use super::{Problem, laws};
use crate::host::bindings::trainer::espalier::plugin::run::EventKind;
use crate::options::OptionKind;
use crate::parameters::{Kind, ParameterSet};
use crate::plan::OptionValue;
use crate::run::Runner;
use espalier_tensor::Tensor;

/// What the ordinary run showed.
struct Seen {
    left: Left,
    held: Vec<Held>,
    /// What the masks are like after the run.
    masks: Masks,
    /// How the masks changed when an event came again; none where the pruner hears of no such event.
    again: Option<String>,
}

/// Masks after a run.
struct Masks {
    /// Weights that a pruner may prune, and how many are pruned.
    prunable: u64,
    pruned: u64,
    /// A parameter that is masked and should not be, and what it is.
    forbidden: Option<String>,
    /// A pruned weight that is not 0.
    alive: Option<String>,
}

/// Judges every law.
pub(super) fn examine(exam: &mut Exam, bench: &Bench) {
    exam.problem = format!("{}, beside the trainer backprop", Problem::Classes.words());
    let mut seen = None;
    exam.try_law(laws::ORDINARY, |exam| {
        seen = Some(ordinary(exam, bench)?);
        Ok(())
    });
    exam.try_law(laws::REFUSALS, |exam| {
        super::trainer::refusals(exam, bench, Problem::Classes)
    });
    let Some(seen) = seen.filter(|_| !exam.is_broken(laws::ENDS) && !exam.is_broken(laws::BUDGETS))
    else {
        return;
    };
    let run = plain(exam);
    exam.try_law(laws::SAME_BITS, |exam| {
        super::trainer::same_bits(exam, bench, &run, &seen.left)
    });
    exam.try_law(laws::RESUME, |exam| {
        super::trainer::resume(exam, bench, &run, &seen.left)
    });
    exam.try_law(laws::LEAKS, |_| super::trainer::leaks(&seen.held));
    for (law, size) in [(laws::TINY, Size::Tiny), (laws::EMPTY, Size::Empty)] {
        let run = Run {
            size,
            steps: 3,
            ..run.clone()
        };
        exam.try_law(law, |exam| super::trainer::bearable(exam, bench, &run));
    }
    exam.try_law(laws::MASKS, |exam| masks(exam, &seen, &run));
    exam.try_law(laws::SPARSITY, |exam| sparsity(exam, bench, &run));
    exam.try_law(laws::ONLY_WEIGHTS, |exam| only_weights(exam, bench, &run));
    exam.try_law(laws::NO_OP, |exam| no_op(exam, &seen));
}

fn plain<'a>(exam: &Exam) -> Run<'a> {
    Run {
        problem: Problem::Classes,
        size: Size::Ordinary,
        steps: exam.setup.steps,
        threads: 1,
        options: Vec::new(),
    }
}

fn ordinary(exam: &Exam, bench: &Bench) -> Result<Seen, Stop> {
    let run = plain(exam);
    super::trainer::accepted(&run, exam, watched(exam, bench, &run))
}

fn watched(exam: &Exam, bench: &Bench, run: &Run) -> Result<Seen, Halt> {
    let did = super::toy::words(exam.loaded.slot, run);
    let slot = exam.loaded.slot;
    bench.run(
        exam,
        run,
        (Path::new(&bench.out()), false),
        |runner, shared| {
            let mut seen = Vec::new();
            bench::drive(runner, shared, &did, |runner| {
                seen.push(held(runner, slot));
                Ok(())
            })?;
            let left = bench::left(runner);
            let masks = main_set(runner, look)
                .ok_or_else(|| Stop::Idle("there are no parameters".into()))?;
            let again = again(runner)?;
            Ok(Seen {
                left,
                held: seen,
                masks,
                again,
            })
        },
    )
}

fn look(set: &ParameterSet) -> Masks {
    let mut masks = Masks {
        prunable: 0,
        pruned: 0,
        forbidden: None,
        alive: None,
    };
    for info in set.infos() {
        let prunable = info.kind == Kind::Weight && info.trainable;
        if prunable {
            masks.prunable += info.shape.iter().map(|&n| n as u64).product::<u64>();
        }
        let (mask, effective) = (set.mask(&info.name), set.is_effective(&info.name));
        if !prunable && (effective || matches!(mask, Ok(Some(_)))) {
            let why = if info.trainable {
                ""
            } else {
                ", which is frozen"
            };
            masks.forbidden = Some(format!("`{}` of kind {}{why}", info.name, info.kind));
        }
        if effective && prunable {
            // Forward passes do without them, and the values stay: nothing of them has to be 0.
            masks.pruned += unused(&mut set.duplicate(), &info.name);
        }
        let Ok(Some(mask)) = mask else {
            continue;
        };
        let mask = mask.to_list().unwrap_or_default();
        let values = set.stored(&info.name).and_then(|value| {
            value
                .to_list()
                .map_err(|source| crate::parameters::Error::Tensor {
                    operation: "read",
                    name: info.name.clone(),
                    source,
                })
        });
        let hidden = set.hides(&info.name);
        for (value, live) in values.unwrap_or_default().iter().zip(&mask) {
            if *live == 0.0 {
                masks.pruned += u64::from(prunable);
                if *value != 0.0 && !hidden {
                    masks.alive = Some(format!("a pruned weight of `{}` is {value}", info.name));
                }
            }
        }
    }
    masks
}

/// How many weights are not 0 themselves and 0 in the forward pass, without those that a mask hides.
fn unused(set: &mut ParameterSet, name: &str) -> u64 {
    let numbers = |t: &Tensor| t.to_list().unwrap_or_default();
    let mask = set.mask(name).ok().flatten();
    let hidden = mask.map(|mask| numbers(&mask)).unwrap_or_default();
    let stored = set.stored(name).map(numbers).unwrap_or_default();
    let used = set.value(name).map(|t| numbers(&t)).unwrap_or_default();
    let pairs = stored.iter().zip(&used).enumerate();
    let unused = pairs.filter(|(i, (stored, used))| {
        **stored != 0.0 && **used == 0.0 && hidden.get(*i).is_none_or(|live| *live != 0.0)
    });
    unused.count() as u64
}

/// Sends the last step's event and the stage's once more.
fn again(runner: &mut Runner) -> Result<Option<String>, Stop> {
    let heard = |runner: &Runner| {
        let session = runner
            .pruners
            .first()
            .and_then(|pruner| pruner.session.as_ref());
        session.map_or(0, |s| {
            s.guest()
                .counters
                .calls
                .get("on-event")
                .copied()
                .unwrap_or(0)
        })
    };
    let digest = |runner: &Runner| {
        main_set(runner, |set| {
            let mut set = set.duplicate();
            let masks: Vec<_> = set
                .infos()
                .iter()
                .map(|info| {
                    let numbers = |t: Tensor| t.to_list().ok();
                    let mask = set.mask(&info.name).ok().flatten();
                    let used = set.value(&info.name).ok();
                    let used = used.filter(|_| set.is_effective(&info.name));
                    (mask.and_then(numbers), used.and_then(numbers))
                })
                .collect();
            masks
        })
    };
    let (calls, before) = (heard(runner), digest(runner));
    for (kind, name) in [
        (EventKind::Step, "of its last step"),
        (EventKind::Stage, "of the end of the stage"),
    ] {
        for _ in 0..2 {
            if let Err(error) = runner.event(kind) {
                let shared = runner.shared.clone();
                return Err(bench::stop(
                    &shared,
                    &format!("sent the event {name} once more after the run"),
                    &error,
                ));
            }
            if digest(runner) != before {
                return Ok(Some(format!("the event {name}")));
            }
        }
    }
    Ok(match heard(runner) == calls {
        true => None,
        false => Some(String::new()),
    })
}

fn masks(exam: &Exam, seen: &Seen, run: &Run) -> Trial {
    let did = super::toy::words(exam.loaded.slot, run);
    if let Some(alive) = &seen.masks.alive {
        return broken(
            did,
            "pruned weights of exactly 0",
            alive.clone(),
            "set the mask and leave the value to the host: `assign` after `set-mask` brings values back",
        );
    }
    if seen.masks.pruned == 0 {
        return broken(
            did,
            "that some weights are pruned at the end",
            format!("none of {}", seen.masks.prunable),
            "if its schedule needs more, say so in conformance.toml: steps = N, options = { .. }",
        );
    }
    Ok(())
}

fn sparsity(exam: &mut Exam, bench: &Bench, run: &Run) -> Trial {
    let Some(option) = exam
        .declared
        .iter()
        .find(|o| o.name == "sparsity" && o.kind == OptionKind::Float)
    else {
        return idle("it declares no option `sparsity` that is a number");
    };
    let fits =
        |x: f64| option.min.is_none_or(|min| x >= min) && option.max.is_none_or(|max| x <= max);
    let asked: Vec<f64> = [0.5, 0.75].into_iter().filter(|x| fits(*x)).collect();
    if asked.is_empty() {
        return idle("its option `sparsity` allows neither 0.5 nor 0.75");
    }
    for asked in asked {
        let run = Run {
            options: vec![("sparsity", OptionValue::Float(asked))],
            ..run.clone()
        };
        let did = super::toy::words(exam.loaded.slot, &run);
        let masks = super::trainer::accepted(&run, exam, watched(exam, bench, &run))?.masks;
        let wanted = asked * masks.prunable as f64;
        if (masks.pruned as f64 - wanted).abs() > 1.0 {
            return broken(
                did,
                format!(
                    "{wanted:.0} of {} weights pruned, within one",
                    masks.prunable
                ),
                format!(
                    "{}, a sparsity of {:.4}",
                    masks.pruned,
                    masks.pruned as f64 / masks.prunable as f64
                ),
                "choose a number of weights to keep, not a threshold; and end the schedule before the run does",
            );
        }
    }
    Ok(())
}

fn only_weights(exam: &mut Exam, bench: &Bench, run: &Run) -> Trial {
    let run = Run {
        size: Size::Frozen,
        ..run.clone()
    };
    let did = super::toy::words(exam.loaded.slot, &run);
    let masks = super::trainer::accepted(&run, exam, watched(exam, bench, &run))?.masks;
    match masks.forbidden {
        None => Ok(()),
        Some(what) => broken(
            did,
            "masks on trainable parameters of kind weight alone",
            format!("a mask on {what}"),
            "choose by `kind` and `trainable` of `parameters.list`, not by name or shape",
        ),
    }
}

fn no_op(_exam: &Exam, seen: &Seen) -> Trial {
    match seen.again.as_deref() {
        None => idle("it hears neither of steps nor of the end of the stage"),
        Some("") => Ok(()),
        Some(event) => broken(
            format!("sent {event} once more after the run, with nothing trained in between"),
            "the masks as they were",
            "other masks",
            "decide by the step of the event and by what is stored, so that the same event brings the same masks",
        ),
    }
}
