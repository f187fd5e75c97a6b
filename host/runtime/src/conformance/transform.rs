//! The laws of transforms: runs of the trainer `backprop` on the data that they leave.

use std::path::Path;

use super::bench::{self, Bench, Halt, Held, Left, Size, Trial as Run, held};
use super::exam::{Exam, Stop, Trial, While, broken, idle};
use super::{Problem, laws, toy, trainer};
use crate::data::{Batch, Split};
use crate::host::bindings::trainer::espalier::plugin::run::StepInfo;
use crate::host::data::split_info;
use crate::plan::TRAIN;
use crate::run::Runner;

/// What the ordinary run showed.
struct Seen {
    left: Left,
    held: Vec<Held>,
    /// Whether it changes batches, and how two answers to one batch differ.
    batches: bool,
    unlike: Option<String>,
}

/// Judges every law.
pub(super) fn examine(exam: &mut Exam, bench: &Bench) {
    let problems: &[Problem] = match &exam.setup.problem {
        Some(problem) => std::slice::from_ref(problem),
        None => &[Problem::Classes, Problem::Values],
    };
    let mut seen = None;
    let mut run = plain(exam, problems.first().copied().unwrap_or(Problem::Classes));
    exam.try_law(laws::ORDINARY, |exam| {
        for problem in problems {
            run = plain(exam, *problem);
            match watched(exam, bench, &run) {
                Err(Halt::Refused(_)) => continue,
                other => {
                    seen = Some(trainer::accepted(&run, exam, other)?);
                    return Ok(());
                }
            }
        }
        trainer::accepted(&run, exam, watched(exam, bench, &run)).map(drop)
    });
    exam.problem = format!("{}, before the trainer backprop", run.problem.words());
    exam.try_law(laws::REFUSALS, |exam| refusals(exam, bench, &run));
    let Some(seen) = seen.filter(|_| !exam.is_broken(laws::ENDS) && !exam.is_broken(laws::BUDGETS))
    else {
        return;
    };
    exam.try_law(laws::SAME_BITS, |exam| {
        trainer::same_bits(exam, bench, &run, &seen.left)
    });
    exam.try_law(laws::RESUME, |exam| {
        trainer::resume(exam, bench, &run, &seen.left)
    });
    exam.try_law(laws::LEAKS, |_| match seen.batches {
        true => trainer::leaks(&seen.held),
        false => idle("it is not called in a step"),
    });
    for (law, size) in [(laws::TINY, Size::Tiny), (laws::EMPTY, Size::Empty)] {
        let run = Run {
            size,
            steps: 3,
            ..run.clone()
        };
        exam.try_law(law, |exam| trainer::bearable(exam, bench, &run));
    }
    // A split that can't be has ended the ordinary run.
    exam.try_law(laws::SPLITS, |_| Ok(()));
    exam.try_law(laws::BATCHES, |exam| match (&seen.unlike, seen.batches) {
        (_, false) => idle("it does not describe the event `batch`"),
        (None, true) => Ok(()),
        (Some(difference), true) => broken(
            format!(
                "{}, then gave it one batch twice",
                toy::words(exam.loaded.slot, &run)
            ),
            "the same batch both times",
            difference.clone(),
            "key randomness by the step and the samples' index, and remember nothing",
        ),
    });
}

fn plain<'a>(exam: &Exam, problem: Problem) -> Run<'a> {
    Run {
        problem,
        size: Size::Ordinary,
        steps: exam.setup.steps,
        threads: 1,
        options: Vec::new(),
    }
}

fn watched(exam: &Exam, bench: &Bench, run: &Run) -> Result<Seen, Halt> {
    let did = toy::words(exam.loaded.slot, run);
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
            let (batches, unlike) = twice(runner)?;
            Ok(Seen {
                left: bench::left(runner),
                held: seen,
                batches,
                unlike,
            })
        },
    )
}

/// Asks for one batch twice, with another in between.
fn twice(runner: &Runner) -> Result<(bool, Option<String>), Stop> {
    let did = "gave it a training batch";
    let batch = |from: usize| {
        let run = runner.shared.run.borrow();
        let split = run.data.split(TRAIN).ok()?;
        let to = (from + 4).min(split.count);
        rows(split, from.min(to), to)
    };
    let mut transforms = runner.shared.transforms.borrow_mut();
    let Some((session, true)) = transforms.first_mut() else {
        return Ok((false, None));
    };
    let at = StepInfo {
        step: 3,
        epoch: 0.5,
        round: 0,
    };
    let mut answers = Vec::new();
    for from in [0, 4, 0] {
        if let Some(batch) = batch(from) {
            let answer = session.apply(batch, at).during(did)?;
            let list = |(name, t): &(String, espalier_tensor::Tensor)| {
                (name.clone(), t.to_list().unwrap_or_default())
            };
            answers.push(answer.fields.iter().map(list).collect::<Vec<_>>());
        }
    }
    let unlike = match answers.as_slice() {
        [one, _, two] => one.iter().zip(two).find(|(a, b)| a != b),
        _ => None,
    };
    let unlike = unlike.map(|((name, _), _)| format!("another `{name}` the second time"));
    Ok((true, unlike))
}

fn rows(split: &Split, from: usize, to: usize) -> Option<Batch> {
    use espalier_tensor::{DType, ops};
    let cut = |(name, t): &(String, espalier_tensor::Tensor)| {
        let rows = ops::slice(t, 0, from as isize, to as isize).ok()?;
        Some((name.clone(), rows))
    };
    Some(Batch {
        fields: split.fields.iter().map(cut).collect::<Option<_>>()?,
        index: ops::arange(from as f64, to as f64, 1.0, DType::I64).ok()?,
        count: (to - from) as u32,
    })
}

/// Wrong options, on the data of a run that has begun with right ones.
fn refusals(exam: &Exam, bench: &Bench, run: &Run) -> Trial {
    let tried = bench.run(exam, run, (Path::new(&bench.out()), false), |runner, _| {
        let (train, infos) = {
            let run = runner.shared.run.borrow();
            let train = run.data.split(TRAIN).map(|split| split.fields.clone());
            let infos: Vec<_> = run.data.splits.iter().map(split_info).collect();
            (train.unwrap_or_default(), infos)
        };
        let info = runner.info();
        exam.refusals(|settings| {
            let mut session = exam.session(&runner.shared)?;
            session.start_transform(info, settings, &train, &infos)
        })
    });
    trainer::accepted(run, exam, tried)
}
