//! The laws of searchers: whole searches of the environment `modular-arithmetic` by a small model as it was
//! initialised, compared and interrupted. That environment is its own verifier.

use std::path::Path;

use super::bench::{self, Bench, Left, Size, Trial as Run};
use super::exam::{Exam, Stop, Trial, While, broken, death_words, elsewhere};
use super::{Problem, laws, toy, trainer};

/// Judges every law.
pub(super) fn examine(exam: &mut Exam, bench: &Bench) {
    let run = Run {
        problem: Problem::Tasks,
        size: Size::Ordinary,
        steps: exam.setup.steps,
        threads: 1,
        options: Vec::new(),
    };
    exam.problem = "prompts to be answered, with the environment as its own verifier".into();
    let mut seen = None;
    exam.try_law(laws::ORDINARY, |exam| {
        let watched = trainer::watched(exam, bench, &run);
        seen = Some(trainer::accepted(&run, exam, watched).map_err(looked)?);
        Ok(())
    });
    exam.try_law(laws::REFUSALS, |exam| {
        trainer::refusals(exam, bench, Problem::Tasks)
    });
    let stopped = exam.is_broken(laws::ENDS) || exam.is_broken(laws::BUDGETS);
    let Some((left, held)) = seen.filter(|_| !stopped) else {
        return;
    };
    exam.try_law(laws::SAME_BITS, |exam| {
        trainer::same_bits(exam, bench, &run, &left)
    });
    exam.try_law(laws::RESUME, |exam| {
        trainer::resume(exam, bench, &run, &left)
    });
    exam.try_law(laws::LEAKS, |_| trainer::leaks(&held));
    let tiny = Run {
        size: Size::Tiny,
        ..run.clone()
    };
    exam.try_law(laws::TINY, |exam| trainer::bearable(exam, bench, &tiny));
    exam.try_law(laws::EMPTY, |exam| spent(exam, bench, &run));
    exam.try_law(laws::LOOKS_ONLY, |_| Ok(()));
    exam.try_law(laws::ANSWERS, |exam| answers(exam, &run, &left));
}

/// A change of the run's parameters, which the host refuses, is a matter of the law `looks-only`.
fn looked(stop: Stop) -> Stop {
    match stop {
        Stop::Died { did, death } if death_words(&death).contains("a search is on") => {
            let fault = broken::<()>(
                did,
                "that it changes nothing of the run",
                death_words(&death),
                "work on a model of its own: model.clone, model.build",
            );
            match fault {
                Err(stop) => elsewhere(laws::LOOKS_ONLY, stop),
                Ok(()) => Stop::Idle(String::new()),
            }
        }
        other => other,
    }
}

/// One step more than there are prompts for.
fn spent(exam: &Exam, bench: &Bench, run: &Run) -> Trial {
    let did = format!(
        "{}, and asked for one step more",
        toy::words(exam.loaded.slot, run)
    );
    let asked = bench.run(
        exam,
        run,
        (Path::new(&bench.out()), false),
        |runner, shared| {
            bench::drive(runner, shared, &did, |_| Ok(()))?;
            let at = runner.at();
            let Some(session) = runner.searcher.as_mut() else {
                return Ok(());
            };
            let report = session.search(at).during(&did)?;
            match (report.done, report.candidates.len()) {
                (true, 0) => Ok(()),
                (done, answers) => broken(
                    did.clone(),
                    "that it is done, with no answer",
                    format!("{answers} answers, done = {done}"),
                    "where `rollouts.prompts` gives none and nothing is left to search, say that it is done",
                ),
            }
        },
    );
    trainer::accepted(run, exam, asked)
}

/// Every prompt has an answer at the end of the ordinary search.
fn answers(exam: &Exam, run: &Run, left: &Left) -> Trial {
    let answered = left
        .metrics
        .iter()
        .find(|(name, _)| name.ends_with("/answered"));
    let share = answered.map_or(0.0, |(_, bits)| f64::from_bits(*bits));
    match share == 1.0 {
        true => Ok(()),
        false => broken(
            toy::words(exam.loaded.slot, run),
            "an answer to every prompt, in the steps that it took",
            format!("answers to {:.1} % of them", 100.0 * share),
            "answer each prompt that `rollouts.prompts` gives, the best found so far at least",
        ),
    }
}
