//! The laws of auditors: runs of the trainer `backprop` that end with an audit, and the report that they leave.

use std::path::Path;

use super::bench::{self, Bench, Halt, Size, Trial as Run, main_set};
use super::exam::{Exam, Stop, Trial, broken, death_words, elsewhere, idle};
use super::{Problem, laws, toy, trainer};

/// What the ordinary run showed.
struct Seen {
    /// The report as it stands in the run's folder.
    report: String,
    /// Digests of the run's parameters before the audit and after.
    before: Option<String>,
    after: Option<String>,
}

/// Judges every law.
pub(super) fn examine(exam: &mut Exam, bench: &Bench) {
    let problem = exam.setup.problem.unwrap_or(Problem::Classes);
    exam.problem = format!("{}, after the trainer backprop", problem.words());
    let run = Run {
        problem,
        size: Size::Ordinary,
        steps: exam.setup.steps,
        threads: 1,
        options: Vec::new(),
    };
    let mut seen = None;
    exam.try_law(laws::ORDINARY, |exam| {
        seen = Some(trainer::accepted(
            &run,
            exam,
            audited(exam, bench, &run, None),
        )?);
        Ok(())
    });
    exam.try_law(laws::REFUSALS, |exam| {
        trainer::refusals(exam, bench, problem)
    });
    let Some(seen) = seen.filter(|_| !exam.is_broken(laws::ENDS) && !exam.is_broken(laws::BUDGETS))
    else {
        return;
    };
    exam.try_law(laws::SAME_BITS, |exam| {
        let two = Run {
            threads: 2,
            ..run.clone()
        };
        let did = format!("{} twice, with one thread and with two", words(exam, &run));
        let again = trainer::accepted(&two, exam, audited(exam, bench, &two, None))?;
        same(
            &did,
            &seen.report,
            &again.report,
            "draw randomness from the host's `random`, and keep nothing between runs",
        )
    });
    exam.try_law(laws::RESUME, |exam| {
        let stop_at = run.steps * 2 / 3;
        let did = format!(
            "{}, stopped after {stop_at} steps and gone on with from the checkpoint",
            words(exam, &run)
        );
        let again = audited(exam, bench, &run, Some(stop_at));
        let again = trainer::accepted(&run, exam, again)?;
        same(&did, &seen.report, &again.report, "make sets and models in `start` or `audit`, and keep nothing that `start` can't make again")
    });
    exam.try_law(laws::LEAKS, |_| {
        idle("an audit happens once, and what it made ends with it")
    });
    for (law, size) in [(laws::TINY, Size::Tiny), (laws::EMPTY, Size::Empty)] {
        let run = Run {
            size,
            steps: 3,
            ..run.clone()
        };
        exam.try_law(law, |exam| {
            trainer::bearable(exam, bench, &run).map_err(looked)
        });
    }
    exam.try_law(laws::LOOKS_ONLY, |exam| match seen.before == seen.after {
        true => Ok(()),
        false => broken(
            words(exam, &run),
            "the run's parameters as they were before the audit",
            "other ones",
            "work on a clone: model.clone",
        ),
    });
    exam.try_law(laws::REPORT, |exam| {
        report(&words(exam, &run), &seen.report)
    });
}

fn words(exam: &Exam, run: &Run) -> String {
    format!("{}, and audited it", toy::words(exam.loaded.slot, run))
}

/// A run to the end of its audit, stopped on the way if asked.
fn audited(exam: &Exam, bench: &Bench, run: &Run, stop_at: Option<u64>) -> Result<Seen, Halt> {
    let did = words(exam, run);
    let out = bench.out();
    if let Some(stop_at) = stop_at {
        bench.run(exam, run, (Path::new(&out), false), |runner, shared| {
            while runner.progress.steps_done < stop_at {
                match runner.advance() {
                    Ok(None) => {}
                    Ok(Some(_)) => break,
                    Err(error) => return Err(bench::stop(shared, &did, &error)),
                }
            }
            runner
                .checkpoint()
                .map_err(|error| bench::stop(shared, &did, &error))
        })?;
    }
    let resumed = stop_at.is_some();
    let seen = bench.run(exam, run, (Path::new(&out), resumed), |runner, shared| {
        let mut digests: Vec<Option<String>> = Vec::new();
        bench::drive(runner, shared, &did, |runner| {
            let digest = main_set(runner, |set| set.content_digest().ok());
            digests.push(digest.flatten().map(|d| format!("{d:?}")));
            Ok(())
        })?;
        let file = out.join(format!("audit-{}.json", bench::SUBJECT));
        let report = std::fs::read_to_string(&file).unwrap_or_default();
        let (before, after) = match digests.as_slice() {
            [.., before, after] => (before.clone(), after.clone()),
            _ => (None, None),
        };
        Ok(Seen {
            report,
            before,
            after,
        })
    });
    seen.map_err(|halt| match halt {
        Halt::Stop(stop) => Halt::Stop(looked(stop)),
        other => other,
    })
}

/// A change that the host refused is a matter of the law `looks-only`.
fn looked(stop: Stop) -> Stop {
    match stop {
        Stop::Died { did, death } if death_words(&death).contains("an auditor reads the run's") => {
            let fault = broken::<()>(
                did,
                "that it changes nothing of the run",
                death_words(&death),
                "work on a clone: model.clone",
            );
            match fault {
                Err(stop) => elsewhere(laws::LOOKS_ONLY, stop),
                Ok(()) => Stop::Idle(String::new()),
            }
        }
        other => other,
    }
}

fn same(did: &str, one: &str, two: &str, mend: &str) -> Trial {
    if one == two {
        return Ok(());
    }
    let differing = one.lines().zip(two.lines()).find(|(a, b)| a != b);
    let (a, b) = differing.unwrap_or_default();
    broken(
        did,
        "the same report",
        format!("`{}` and `{}`", a.trim(), b.trim()),
        mend,
    )
}

/// What a reader of the report can count on.
fn report(did: &str, text: &str) -> Trial {
    let read: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
    let numbers = read["numbers"].as_object().cloned().unwrap_or_default();
    let note = read["note"].as_str().unwrap_or_default();
    let expected = "finite numbers with names, tables with a number for each column, and a note or a number at least";
    let wrong = |found: String, mend: &str| broken(did, expected, found, mend);
    if numbers.is_empty() && note.trim().is_empty() {
        return wrong(
            "neither a number nor a note".into(),
            "say what was looked at",
        );
    }
    // What is not finite has no word in JSON.
    if let Some((name, _)) = numbers.iter().find(|(_, x)| !x.is_number()) {
        return wrong(
            format!("`{name}` is no finite number"),
            "leave out what can't be measured, and say so in the note",
        );
    }
    if numbers.keys().any(|name| name.trim().is_empty()) {
        return wrong("a number without a name".into(), "name it");
    }
    Ok(())
}
