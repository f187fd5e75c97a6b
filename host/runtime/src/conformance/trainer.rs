//! The laws of trainers, and what they share with pruners: whole runs, compared and interrupted.

use std::path::Path;

use espalier_tensor::{DType, Tensor, ops};

use super::bench::{self, Bench, Halt, Held, Left, Size, Trial as Run, held, main_set};
use super::exam::{Exam, Stop, Trial, While, broken, idle};
use super::{Problem, laws, toy};
use crate::data::Batch;
use crate::host::session::Session;
use crate::metrics;
use crate::plan::Loss;
use crate::run::Runner;

/// Steps after which an objective must be lower.
const LEARNING_STEPS: u64 = 60;

/// Judges every law.
pub(super) fn examine(exam: &mut Exam, bench: &Bench) {
    let offered: Vec<Problem> = match exam.setup.problem {
        Some(one) => vec![one],
        None => Problem::ALL.to_vec(),
    };
    let mut seen = None;
    exam.try_law(laws::ORDINARY, |exam| {
        let mut refusals = Vec::new();
        for problem in offered {
            let run = plain(exam, problem);
            match watched(exam, bench, &run) {
                Ok((left, held)) => {
                    seen = Some((problem, left, held));
                    return Ok(());
                }
                Err(Halt::Refused(words)) => refusals.push(format!("{}: {words}", problem.words())),
                Err(Halt::Stop(stop)) => return Err(stop),
            }
        }
        broken(
            "offered it each of the suite's problems",
            "that it takes one",
            format!("it refuses {}", refusals.join("; ")),
            "if it needs certain options, say so in conformance.toml: options = { .. }",
        )
    });
    let problem = seen
        .as_ref()
        .map_or(Problem::Classes, |(problem, ..)| *problem);
    exam.problem = problem.words().to_string();
    exam.try_law(laws::REFUSALS, |exam| refusals(exam, bench, problem));
    let stopped = exam.is_broken(laws::ENDS) || exam.is_broken(laws::BUDGETS);
    let Some((problem, left, held)) = seen.filter(|_| !stopped) else {
        return;
    };
    let run = plain(exam, problem);
    exam.try_law(laws::SAME_BITS, |exam| same_bits(exam, bench, &run, &left));
    exam.try_law(laws::RESUME, |exam| resume(exam, bench, &run, &left));
    exam.try_law(laws::LEAKS, |_| leaks(&held));
    for (law, size) in [(laws::TINY, Size::Tiny), (laws::EMPTY, Size::Empty)] {
        let run = Run {
            size,
            steps: 3,
            ..run.clone()
        };
        exam.try_law(law, |exam| bearable(exam, bench, &run));
    }
    exam.try_law(laws::LEARNS, |exam| learns(exam, bench, &run));
    exam.try_law(laws::PREDICTS, |exam| predicts(exam, bench, &run));
    exam.try_law(laws::PURE, |exam| pure(exam, bench, &run));
    exam.try_law(laws::FROZEN, |exam| frozen(exam, bench, &run));
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

/// A run to its end, and what the plugin held after each step.
pub(super) fn watched(exam: &Exam, bench: &Bench, run: &Run) -> Result<(Left, Vec<Held>), Halt> {
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
            Ok((bench::left(runner), seen))
        },
    )
}

/// The result of a run that the plugin must not refuse.
pub(super) fn accepted<T>(run: &Run, exam: &Exam, result: Result<T, Halt>) -> Result<T, Stop> {
    match result {
        Ok(value) => Ok(value),
        Err(Halt::Stop(stop)) => Err(stop),
        Err(Halt::Refused(words)) => broken(
            toy::words(exam.loaded.slot, run),
            "that it starts",
            format!("it refuses: {words}"),
            "mend its defaults, or give it `options` in conformance.toml",
        ),
    }
}

/// Wrong options, in the middle of a run that has begun with right ones.
pub(super) fn refusals(exam: &Exam, bench: &Bench, problem: Problem) -> Trial {
    let run = plain(exam, problem);
    let tried = bench.run(
        exam,
        &run,
        (Path::new(&bench.out()), false),
        |runner, shared| {
            let info = runner.info();
            let _ = shared;
            exam.refusals(|settings| exam.session(&runner.shared)?.start(info, settings))
        },
    );
    accepted(&run, exam, tried)
}

pub(super) fn same_bits(exam: &Exam, bench: &Bench, run: &Run, left: &Left) -> Trial {
    let run = Run {
        threads: 2,
        ..run.clone()
    };
    let did = toy::words(exam.loaded.slot, &run);
    let again = bench.run(
        exam,
        &run,
        (Path::new(&bench.out()), false),
        |runner, shared| {
            bench::drive(runner, shared, &did, |_| Ok(()))?;
            Ok(bench::left(runner))
        },
    );
    let again = accepted(&run, exam, again)?;
    match bench::unlike(left, &again) {
        None => Ok(()),
        Some(difference) => broken(
            format!("{did} twice, with one thread and with two"),
            "the same bits",
            difference,
            "draw randomness from the host's `random` with the step in the key",
        ),
    }
}

pub(super) fn resume(exam: &Exam, bench: &Bench, run: &Run, left: &Left) -> Trial {
    let places = [left.steps / 3, left.steps * 2 / 3];
    let did = format!(
        "{}, stopped after {} and {} of {} steps and gone on with from the checkpoint",
        toy::words(exam.loaded.slot, run),
        places[0],
        places[1],
        left.steps
    );
    let out = bench.out();
    let mut resumed = false;
    let mut last = None;
    for stop_at in places.into_iter().map(Some).chain([None]) {
        let part = bench.run(exam, run, (&out, resumed), |runner, shared| {
            while stop_at.is_none_or(|at| runner.progress.steps_done < at) {
                match runner.advance() {
                    Ok(None) => {}
                    Ok(Some(_)) => break,
                    Err(error) => return Err(bench::stop(shared, &did, &error)),
                }
                if runner.progress.round > bench::MOST_ROUNDS {
                    return broken(
                        did.clone(),
                        "that it ends as the run that was not stopped",
                        "it rewinds for ever",
                        "remember in `save` how often it has rewound",
                    );
                }
            }
            if stop_at.is_some() {
                runner
                    .checkpoint()
                    .map_err(|error| bench::stop(shared, &did, &error))?;
            }
            Ok(bench::left(runner))
        });
        last = Some(match part {
            Err(Halt::Refused(words)) => {
                return broken(
                    did,
                    "that it goes on",
                    format!("it refuses: {words}"),
                    "start on a resume as at first: `restore` comes afterwards",
                );
            }
            part => accepted(run, exam, part)?,
        });
        resumed = true;
    }
    match last.and_then(|last| bench::unlike(left, &last)) {
        None => Ok(()),
        Some(difference) => broken(
            did,
            "the bits of the run that was not stopped",
            difference,
            "write in `save` everything that is not in the host and not computed by `start`, or keep it in a parameter set",
        ),
    }
}

/// What a plugin holds must not grow from each third of the run to the next.
pub(super) fn leaks(held: &[Held]) -> Trial {
    let third = |k: usize| {
        held.get((held.len() * k / 3).saturating_sub(1))
            .copied()
            .unwrap_or_default()
    };
    let (a, b, c) = (third(1), third(2), third(3));
    let did = format!(
        "looked at what it holds after {}, {} and {} steps",
        held.len() / 3,
        held.len() * 2 / 3,
        held.len()
    );
    if a.0 < b.0 && b.0 < c.0 {
        return broken(
            did,
            "no more handles",
            format!("{}, {} and {}", a.0, b.0, c.0),
            "drop tensors that a step made; keep what must last in a parameter set",
        );
    }
    if a.1 < b.1 && b.1 < c.1 {
        return broken(
            did,
            "no more tensor memory",
            format!("{}, {} and {} bytes", a.1, b.1, c.1),
            "detach what is kept over steps: a tensor keeps the graph that it came from",
        );
    }
    Ok(())
}

/// A run that must go through, or be refused in words.
pub(super) fn bearable(exam: &Exam, bench: &Bench, run: &Run) -> Trial {
    match watched(exam, bench, run) {
        Ok(_) => Ok(()),
        Err(Halt::Refused(words)) if words.trim().is_empty() => broken(
            toy::words(exam.loaded.slot, run),
            "work, or a refusal in words",
            "a refusal without words",
            "say what was expected and what was found",
        ),
        Err(Halt::Refused(_)) => Ok(()),
        Err(Halt::Stop(stop)) => Err(stop),
    }
}

/// Samples from `from` up to `to` of the training split, with their targets.
fn batch(runner: &Runner, from: usize, to: usize, targets: bool) -> Option<Batch> {
    let run = runner.shared.run.borrow();
    let split = run.data.split("train").ok()?;
    let rows = |t: &Tensor| ops::slice(t, 0, from as isize, to as isize).ok();
    let mut fields = Vec::new();
    for (name, t) in split
        .fields
        .iter()
        .filter(|(name, _)| targets || name != "targets")
    {
        fields.push((name.clone(), rows(t)?));
    }
    Some(Batch {
        fields,
        index: ops::arange(from as f64, to as f64, 1.0, DType::I64).ok()?,
        count: (to - from) as u32,
    })
}

/// Calls the trainer.
fn with<T>(runner: &Runner, f: impl FnOnce(&mut Session) -> Result<T, Stop>) -> Result<T, Stop> {
    match runner.shared.trainer.borrow_mut().as_mut() {
        Some(session) => f(session),
        None => idle("the run has lost its trainer"),
    }
}

fn count(runner: &Runner) -> usize {
    runner
        .shared
        .run
        .borrow()
        .data
        .split("train")
        .map_or(0, |split| split.count)
}

/// The mean objective over the training split.
fn objective(runner: &Runner, did: &str) -> Result<f64, Stop> {
    let whole = batch(runner, 0, count(runner), true);
    let Some(whole) = whole else {
        return idle("there are no samples");
    };
    let losses = with(runner, |trainer| trainer.objective(whole).during(did))?;
    let losses = losses.to_list().unwrap_or_default();
    Ok(losses.iter().sum::<f64>() / losses.len().max(1) as f64)
}

pub(super) fn learns(exam: &mut Exam, bench: &Bench, run: &Run) -> Trial {
    if matches!(run.problem, Problem::Tasks | Problem::World) {
        return idle("a policy has no objective of samples that must go down");
    }
    let run = Run {
        steps: LEARNING_STEPS.max(run.steps),
        ..run.clone()
    };
    let did = toy::words(exam.loaded.slot, &run);
    let tried = bench.run(
        exam,
        &run,
        (Path::new(&bench.out()), false),
        |runner, shared| {
            let before = objective(runner, "asked for the objective of every training sample")?;
            bench::drive(runner, shared, &did, |_| Ok(()))?;
            let after = objective(runner, "asked for the objective of every training sample")?;
            Ok((before, after))
        },
    );
    let (before, after) = accepted(&run, exam, tried)?;
    match after < before {
        true => Ok(()),
        false => broken(
            did,
            format!("a mean objective below the {before:.6} of the start"),
            format!("{after:.6}"),
            "step against the gradient of the same objective; or lower the learning rate by `options` in conformance.toml",
        ),
    }
}

fn predicts(exam: &mut Exam, bench: &Bench, run: &Run) -> Trial {
    match run.problem {
        Problem::Tasks => return idle("the host lets the model answer prompts itself"),
        // The runner has measured whole episodes with its predictions.
        Problem::World => return Ok(()),
        Problem::Classes | Problem::Values | Problem::Text => {}
    }
    let tried = bench.run(exam, run, (Path::new(&bench.out()), false), |runner, _| {
        let (loss, classes) = match run.problem {
            Problem::Values => (Loss::Mse, 0),
            Problem::Text => (Loss::CrossEntropy, 256),
            _ => (Loss::CrossEntropy, toy::CLASSES as u32),
        };
        let mut rows: Vec<Vec<f64>> = Vec::new();
        for n in [count(runner), 1, 5] {
            let did = format!("asked for predictions of {n} samples");
            let (Some(inputs), Some(whole)) = (batch(runner, 0, n, false), batch(runner, 0, n, true)) else {
                return idle("there are no samples");
            };
            let (kind, output) = with(runner, |trainer| trainer.predict(inputs).during(&did))?;
            let targets = whole.fields.iter().find(|(name, _)| name == "targets").map(|(_, t)| t.clone());
            let mut sums = metrics::Sums::new(loss, classes);
            if let Some(Err(problem)) = targets.map(|targets| sums.add(crate::run::readable(kind), &output, &targets)) {
                let expected = match classes {
                    0 => format!("values of shape [{n}] or [{n}, 1]"),
                    _ => format!("logits or probabilities of shape [{n}, {classes}]"),
                };
                return broken(did, expected, problem, "return one row a sample in the order of the batch, and say of what kind it is");
            }
            let width = (output.to_list().unwrap_or_default().len() / n.max(1)).max(1);
            let list = output.to_list().unwrap_or_default();
            let found: Vec<Vec<f64>> = list.chunks(width).map(<[f64]>::to_vec).collect();
            if rows.is_empty() {
                rows = found;
                continue;
            }
            for (sample, (one, other)) in found.iter().zip(&rows).enumerate() {
                let near = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-4 * (1.0 + b.abs());
                if !one.iter().zip(other).all(near) {
                    return broken(
                        did,
                        format!("the predictions of sample {sample} as in a batch of {}: {other:?}", rows.len()),
                        format!("{one:?}"),
                        "run the model in the mode `eval`; key randomness by the index of the sample",
                    );
                }
            }
        }
        Ok(())
    });
    accepted(run, exam, tried)
}

fn pure(exam: &mut Exam, bench: &Bench, run: &Run) -> Trial {
    if !matches!(run.problem, Problem::Classes | Problem::Values) {
        return idle("there are no samples to ask about");
    }
    let tried = bench.run(exam, run, (Path::new(&bench.out()), false), |runner, shared| {
        let did = "took 3 steps, then asked for the objective and predictions of 7 samples";
        for _ in 0..3 {
            runner.advance().map_err(|error| bench::stop(shared, did, &error))?;
        }
        let digests = |runner: &Runner| {
            let run = runner.shared.run.borrow();
            let all = run.sets.iter().map(|(id, set)| (id.clone(), set.content_digest().ok()));
            all.collect::<Vec<_>>()
        };
        let bytes = |runner: &Runner| with(runner, |trainer| trainer.save().during("asked it to save"));
        let (before, saved) = (digests(runner), bytes(runner)?);
        let (Some(whole), Some(inputs)) = (batch(runner, 0, 7, true), batch(runner, 0, 7, false)) else {
            return idle("there are no samples");
        };
        for (what, asked) in [("objective", Some(whole)), ("predictions", None)] {
            match asked {
                Some(whole) => drop(with(runner, |trainer| trainer.objective(whole).during(did))?),
                None => drop(with(runner, |trainer| trainer.predict(inputs.clone()).during(did))?),
            }
            let after = digests(runner);
            if let Some(((id, _), _)) = before.iter().zip(&after).find(|(a, b)| a != b) {
                return broken(did, format!("that asking for its {what} changes nothing"), format!("other parameters or statistics in {id}"), "run the model in the mode `train-frozen-stats` or `eval`, and update in `step` alone");
            }
            if bytes(runner)? != saved {
                return broken(did, format!("that asking for its {what} changes nothing"), "it saves other bytes than before", "count in `step` alone");
            }
        }
        Ok(())
    });
    accepted(run, exam, tried)
}

fn frozen(exam: &mut Exam, bench: &Bench, run: &Run) -> Trial {
    let run = Run {
        size: Size::Frozen,
        ..run.clone()
    };
    let did = toy::words(exam.loaded.slot, &run);
    let values = |runner: &Runner| {
        main_set(runner, |set| {
            let frozen = set.infos().into_iter().filter(|info| !info.trainable);
            let read = |name: &str| set.stored(name).ok().and_then(|t| t.to_list().ok());
            frozen
                .map(|info| (info.name.clone(), read(&info.name)))
                .collect::<Vec<_>>()
        })
        .unwrap_or_default()
    };
    let tried = bench.run(
        exam,
        &run,
        (Path::new(&bench.out()), false),
        |runner, shared| {
            let before = values(runner);
            bench::drive(runner, shared, &did, |_| Ok(()))?;
            let after = values(runner);
            let changed = before.iter().zip(&after).find(|(a, b)| a != b);
            Ok((before.len(), changed.map(|((name, _), _)| name.clone())))
        },
    );
    match tried {
        Err(Halt::Refused(words)) => {
            idle(format!("it refuses models with a frozen layer: {words}"))
        }
        Err(Halt::Stop(stop)) => Err(stop),
        Ok((0, _)) => idle("the model has nothing frozen"),
        Ok((_, None)) => Ok(()),
        Ok((_, Some(name))) => broken(
            did,
            "frozen parameters as they were",
            format!("`{name}` has changed"),
            "update `trainable` parameters alone, and assign to no other",
        ),
    }
}
