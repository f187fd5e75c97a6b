//! The laws of architectures: runs with the trainer `backprop`, and passes through the model between the host and
//! the plugin alone.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use espalier_tensor::account::Account;
use espalier_tensor::random::{self, Key};
use espalier_tensor::{Tensor, autograd, ops};

use super::bench::{Bench, Halt, SUBJECT, Size, Trial as Run, main_set};
use super::exam::{Exam, Stop, Trial, While, broken, idle};
use super::trainer::{accepted, bearable, leaks, learns, refusals, resume, same_bits, watched};
use super::{Problem, laws};
use crate::host::session::Session;
use crate::host::session::architecture::Asked;
use crate::host::state::{ModelId, SetId};
use crate::model::{Forward, Input, LayerInfo, Mode, Model};
use crate::parameters::Kind;
use crate::run::Runner;

/// What an architecture is offered, in turn until it takes one.
const OFFERED: [Problem; 3] = [Problem::Classes, Problem::Values, Problem::Text];
/// Samples of the passes between host and plugin.
const SAMPLES: usize = 6;

/// Judges every law.
pub(super) fn examine(exam: &mut Exam, bench: &Bench) {
    let offered: Vec<Problem> = match exam.setup.problem {
        Some(one) => vec![one],
        None => OFFERED.to_vec(),
    };
    let mut seen = None;
    exam.try_law(laws::ORDINARY, |exam| {
        let mut refused = Vec::new();
        for problem in offered {
            let run = plain(exam, problem);
            match watched(exam, bench, &run) {
                Ok((left, held)) => {
                    seen = Some((run, left, held));
                    return Ok(());
                }
                Err(Halt::Refused(words)) => refused.push(format!("{}: {words}", problem.words())),
                Err(Halt::Stop(stop)) => return Err(stop),
            }
        }
        broken(
            "offered it each of the suite's problems",
            "that it builds a model for one",
            format!("it refuses {}", refused.join("; ")),
            "if it needs certain options, say so in conformance.toml: options = { .. }",
        )
    });
    let problem = seen
        .as_ref()
        .map_or(Problem::Classes, |(run, ..)| run.problem);
    exam.problem = format!("{}, trained by backprop", problem.words());
    exam.try_law(laws::REFUSALS, |exam| refusals(exam, bench, problem));
    let stopped = exam.is_broken(laws::ENDS) || exam.is_broken(laws::BUDGETS);
    let Some((run, left, held)) = seen.filter(|_| !stopped) else {
        return;
    };
    exam.try_law(laws::SAME_BITS, |exam| same_bits(exam, bench, &run, &left));
    exam.try_law(laws::RESUME, |exam| resume(exam, bench, &run, &left));
    exam.try_law(laws::LEAKS, |_| leaks(&held));
    let tiny = Run {
        size: Size::Tiny,
        steps: 3,
        ..run.clone()
    };
    exam.try_law(laws::TINY, |exam| bearable(exam, bench, &tiny));
    exam.try_law(laws::EMPTY, |exam| on_run(exam, bench, &run, empty));
    exam.try_law(laws::LEARNS, |exam| learns(exam, bench, &run));
    exam.try_law(laws::BUILDS, |exam| builds(exam, bench, &run));
    exam.try_law(laws::RANGES, |exam| on_run(exam, bench, &run, ranges));
    exam.try_law(laws::ROWS, |exam| on_run(exam, bench, &run, rows));
    exam.try_law(laws::MODES, |exam| on_run(exam, bench, &run, modes));
    exam.try_law(laws::REACHES, |exam| on_run(exam, bench, &run, reaches));
    exam.try_law(laws::OVERRIDES, |exam| on_run(exam, bench, &run, overrides));
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

/// Tries a law in a run that has begun and not made a step.
fn on_run(
    exam: &Exam,
    bench: &Bench,
    run: &Run,
    law: impl FnOnce(&Subject) -> Trial + Send,
) -> Trial {
    let tried = bench.run(exam, run, (Path::new(&bench.out()), false), |runner, _| {
        law(&Subject { runner })
    });
    accepted(run, exam, tried)
}

type Fields = Vec<(String, Tensor)>;

/// The architecture of a run, asked by the host alone.
struct Subject<'a, 'b> {
    runner: &'a Runner<'b>,
}

/// A failure of the suite's own arithmetic: nothing of the plugin's.
fn sum<T>(result: espalier_tensor::Result<T>) -> Result<T, Stop> {
    result.map_err(|error| Stop::Idle(format!("the suite could not compute: {error}")))
}

impl Subject<'_, '_> {
    fn model(&self) -> Result<Model, Stop> {
        let run = self.runner.shared.run.borrow();
        match run.models.get(&ModelId::Main) {
            Some(model) => Ok(model.clone()),
            None => idle("the run has no model"),
        }
    }

    /// The first samples of the training split, without targets.
    fn inputs(&self, rows: Range<usize>) -> Result<Fields, Stop> {
        let run = self.runner.shared.run.borrow();
        let Ok(split) = run.data.split("train") else {
            return idle("there are no samples");
        };
        let fields = split.fields.iter().filter(|(name, _)| name != "targets");
        let rows = |t: &Tensor| sum(ops::slice(t, 0, rows.start as isize, rows.end as isize));
        fields
            .map(|(name, t)| Ok((name.clone(), rows(t)?)))
            .collect()
    }

    /// One pass, checked as the host checks every pass.
    fn forward(
        &self,
        range: Range<usize>,
        inputs: &Fields,
        (mode, key): (Mode, &[u64]),
        overrides: BTreeMap<String, Tensor>,
        want: &[String],
    ) -> Result<Forward, Stop> {
        let model = self.model()?;
        let did = format!(
            "ran its layers {} to {} as {mode:?}",
            range.start, range.end
        );
        let unfit = |error: crate::model::Error| {
            broken::<()>(
                did.clone(),
                "outputs as the declared layers promise",
                error.to_string(),
                "declare the shapes that `forward` gives, and give what is wanted",
            )
        };
        let given = match model.prepare(range.clone(), inputs, want) {
            Ok(given) => given,
            Err(error) => return unfit(error).and(idle("")),
        };
        let asked = Asked {
            set: &SetId::Main,
            overrides,
            range: (range.start as u32, range.end as u32),
            mode,
            key: key.to_vec(),
            want: want.to_vec(),
        };
        let result = match self.runner.shared.architecture.borrow_mut().as_mut() {
            Some(session) => session.forward(&asked, given.clone()).during(&did)?,
            None => return idle("the run has lost its architecture"),
        };
        match model.check_forward(range, &given, want, &result) {
            Ok(()) => Ok(result),
            Err(error) => unfit(error).and(idle("")),
        }
    }

    fn whole(&self, inputs: &Fields, mode: Mode, key: &[u64]) -> Result<Tensor, Stop> {
        let layers = self.model()?.len();
        let result = self.forward(0..layers, inputs, (mode, key), BTreeMap::new(), &[])?;
        Ok(result.output)
    }

    fn digest(&self) -> Option<[u8; 32]> {
        main_set(self.runner, |set| set.content_digest().ok()).flatten()
    }
}

/// The first place where two lists of numbers differ by more than a part.
fn differ(a: &Tensor, b: &Tensor, part: f64) -> Result<Option<String>, Stop> {
    if a.shape() != b.shape() {
        return Ok(Some(format!("shapes {:?} and {:?}", a.shape(), b.shape())));
    }
    let (a, b) = (sum(a.to_list())?, sum(b.to_list())?);
    let same = |a: f64, b: f64| match part {
        0.0 => a.to_bits() == b.to_bits(),
        part => (a - b).abs() <= part * (1.0 + b.abs()),
    };
    let places = a.iter().zip(&b).enumerate();
    let wrong = places
        .filter(|(_, (a, b))| !same(**a, **b))
        .map(|(at, (a, b))| format!("{a} and {b} at place {at}"));
    Ok(wrong.take(1).next())
}

fn empty(subject: &Subject) -> Trial {
    let _none = autograd::no_grad();
    subject
        .whole(&subject.inputs(0..0)?, Mode::Eval, &[1])
        .map(drop)
}

/// Builds again: in another instance, and a second time in the same one.
fn builds(exam: &Exam, bench: &Bench, run: &Run) -> Trial {
    let tried = bench.run(exam, run, (Path::new(&bench.out()), false), |runner, _| {
        let subject = Subject { runner };
        let first = (subject.digest(), subject.model()?.infos());
        let (inputs, outputs) = {
            let run = runner.shared.run.borrow();
            let last = first.1.last().and_then(|last| last.out_shape.last());
            (run.inputs.clone(), last.copied().unwrap_or(1) as u32)
        };
        // Under the same name, which keys what a plugin draws.
        let (limits, shared) = (exam.setup.limits.clone(), runner.shared.clone());
        let account = Account::new(Some(limits.tensors));
        let mut other = Session::new(&exam.loaded, SUBJECT, limits, account, shared)
            .during("made another instance")?;
        let started = other
            .start(runner.info(), &exam.settings)
            .during("started it")?;
        if let Err(refusal) = started {
            return broken(
                "started another instance with the same options",
                "that it starts",
                refusal.message,
                "depend on options and samples alone",
            );
        }
        for (number, did) in [
            "let another instance build",
            "let one instance build a second time",
        ]
        .into_iter()
        .enumerate()
        {
            let id = SetId::Own {
                plugin: exam.source.clone(),
                name: format!("built{number}"),
            };
            runner
                .shared
                .run
                .borrow_mut()
                .sets
                .insert(id.clone(), Default::default());
            let layers = other.build(&id, &inputs, outputs).during(did)?;
            let found: Option<(Option<[u8; 32]>, Vec<LayerInfo>)> =
                layers.ok().and_then(|layers| {
                    let run = &mut *runner.shared.run.borrow_mut();
                    let set = run.sets.get_mut(&id)?;
                    let infos = Model::declared(layers, &inputs, set).ok()?.infos();
                    Some((set.content_digest().ok(), infos))
                });
            if found.as_ref() != Some(&first) {
                return broken(
                    did,
                    "the layers and the initial values of the first time, to the bit",
                    match found {
                        None => "a refusal, or layers that cannot be",
                        Some((_, layers)) if layers != first.1 => "other layers",
                        Some(_) => "other parameters",
                    },
                    "draw initial values by the parameter's name, and keep no count between calls",
                );
            }
        }
        Ok(())
    });
    accepted(run, exam, tried)
}

fn ranges(subject: &Subject) -> Trial {
    let _none = autograd::no_grad();
    let (inputs, model) = (subject.inputs(0..SAMPLES)?, subject.model()?);
    let infos = model.infos();
    let names: Vec<String> = infos.iter().map(|layer| layer.name.clone()).collect();
    for mode in [Mode::Eval, Mode::TrainFrozenStats] {
        let key = (mode, &[3, 1, 4][..]);
        let plain = BTreeMap::new;
        let whole = subject.forward(0..infos.len(), &inputs, key, plain(), &names)?;
        // From the last layer to the first: nothing may hang on what ran before.
        for (at, layer) in infos.iter().enumerate().rev() {
            let mut given = Vec::new();
            for input in &layer.inputs {
                match input {
                    Input::Layer(read) => given.push(whole.extra[*read as usize].clone()),
                    Input::Field(_) => given.extend(inputs.iter().cloned()),
                }
            }
            let alone = subject.forward(at..at + 1, &given, key, plain(), &[])?;
            if let Some(places) = differ(&alone.output, &whole.extra[at].1, 0.0)? {
                return broken(
                    format!(
                        "ran layer `{}` by itself as {mode:?}, on what it reads",
                        layer.name
                    ),
                    "the bits that it gives in a pass through all layers",
                    places,
                    "compute a layer from what it reads and the weights alone",
                );
            }
        }
        if let (Some(last), Some((_, wanted))) = (Some(&whole.output), whole.extra.last())
            && let Some(places) = differ(last, wanted, 0.0)?
        {
            return broken(
                "asked for the last layer's output by its name as well",
                "the same bits",
                places,
                "give the layer's output under its name",
            );
        }
    }
    Ok(())
}

fn rows(subject: &Subject) -> Trial {
    let _none = autograd::no_grad();
    let whole = subject.whole(&subject.inputs(0..SAMPLES)?, Mode::Eval, &[1])?;
    for at in 0..SAMPLES {
        let alone = subject.whole(&subject.inputs(at..at + 1)?, Mode::Eval, &[2])?;
        let row = sum(ops::slice(&whole, 0, at as isize, at as isize + 1))?;
        if let Some(places) = differ(&alone, &row, 1e-4)? {
            return broken(
                format!("ran sample {at} by itself, as Eval"),
                format!("what it gives in a batch of {SAMPLES}"),
                places,
                "in the mode `eval` let no sample see another one: use running statistics",
            );
        }
    }
    Ok(())
}

fn modes(subject: &Subject) -> Trial {
    let _none = autograd::no_grad();
    let inputs = subject.inputs(0..SAMPLES)?;
    let before = subject.digest();
    for (mode, keys, expected, mend) in [
        (
            Mode::Eval,
            [[1u64, 2], [3, 4]],
            "the same bits whatever the key",
            "drop and draw nothing in the mode `eval`",
        ),
        (
            Mode::TrainFrozenStats,
            [[1, 2], [1, 2]],
            "the same bits with the same key",
            "draw randomness by `pass.key`, and keep no state between passes",
        ),
    ] {
        let first = subject.whole(&inputs, mode, &keys[0])?;
        let second = subject.whole(&inputs, mode, &keys[1])?;
        if let Some(places) = differ(&first, &second, 0.0)? {
            return broken(format!("ran it twice as {mode:?}"), expected, places, mend);
        }
    }
    match subject.digest() == before {
        true => Ok(()),
        false => broken(
            "ran it as Eval and as TrainFrozenStats",
            "that its parameters and buffers stay",
            "other ones",
            "move buffers in the mode `train` alone",
        ),
    }
}

/// A number for each output, so that no output's gradient is that of another.
fn weighed(output: &Tensor) -> Result<Tensor, Stop> {
    let weights = sum(random::normal(
        &Key::new(&[7]),
        output.shape(),
        output.dtype(),
    ))?;
    sum(ops::multiply(output, &weights).and_then(|t| ops::sum(&t, &[], false)))
}

fn trainable(subject: &Subject) -> Vec<String> {
    let infos = main_set(subject.runner, |set| set.infos()).unwrap_or_default();
    infos
        .into_iter()
        .filter(|info| info.trainable && info.kind != Kind::Buffer)
        .map(|info| info.name)
        .collect()
}

fn reaches(subject: &Subject) -> Trial {
    let names = trainable(subject);
    let mut dead = names.clone();
    // A unit may sleep on some samples; a parameter that no sample reaches is not in the graph.
    for key in 0..3 {
        let output = subject.whole(&subject.inputs(0..SAMPLES)?, Mode::TrainFrozenStats, &[key])?;
        let loss = weighed(&output)?;
        let values: Vec<Tensor> = {
            let run = &mut *subject.runner.shared.run.borrow_mut();
            let Some(set) = run.sets.get_mut(&SetId::Main) else {
                return idle("there are no parameters");
            };
            names
                .iter()
                .filter_map(|name| set.value(name).ok())
                .collect()
        };
        let values: Vec<&Tensor> = values.iter().collect();
        if !loss.requires_grad() {
            break;
        }
        let grads = sum(autograd::grad(&[&loss], &[None], &values, false, false))?;
        for (name, grad) in names.iter().zip(&grads) {
            if sum(grad.to_list())?.iter().any(|x| *x != 0.0) {
                dead.retain(|other| other != name);
            }
        }
    }
    match dead.first() {
        None => Ok(()),
        Some(name) => broken(
            "asked for the gradient of its output with respect to every trainable parameter",
            "that some of it is not 0",
            format!("`{name}` has none"),
            "use each parameter in `forward` without `detach`, or create it as not trainable",
        ),
    }
}

fn overrides(subject: &Subject) -> Trial {
    let inputs = subject.inputs(0..SAMPLES)?;
    let layers = subject.model()?.len();
    let eval = (Mode::Eval, &[1u64][..]);
    let plain = subject.whole(&inputs, Mode::Eval, &[1])?.detach();
    for name in trainable(subject) {
        let other = {
            let run = subject.runner.shared.run.borrow();
            let stored = run
                .sets
                .get(&SetId::Main)
                .and_then(|set| set.stored(&name).ok().cloned());
            let Some(stored) = stored else {
                return idle("there are no parameters");
            };
            let noise = sum(random::normal(
                &Key::new(&[8]),
                stored.shape(),
                stored.dtype(),
            ))?;
            sum(ops::add(&stored, &noise))?.with_requires_grad()
        };
        let instead = BTreeMap::from([(name.clone(), other.clone())]);
        let replaced = subject
            .forward(0..layers, &inputs, eval, instead, &[])?
            .output;
        let did = format!("put another tensor in the place of `{name}` for one pass");
        let mend = "ask for `weights.value` in each call of `forward`, and keep nothing";
        if differ(&replaced.detach(), &plain, 0.0)?.is_none() {
            return broken(did, "another output", "the same bits", mend);
        }
        let loss = weighed(&replaced)?;
        let reached = loss.requires_grad() && {
            let grads = sum(autograd::grad(&[&loss], &[None], &[&other], false, false))?;
            sum(grads[0].to_list())?.iter().any(|x| *x != 0.0)
        };
        if !reached {
            return broken(did, "a gradient with respect to that tensor", "none", mend);
        }
        // What was put there for one pass is gone, and what is assigned to a copy or the run's set is seen.
        let again = subject.whole(&inputs, Mode::Eval, &[1])?.detach();
        if differ(&again, &plain, 0.0)?.is_some() {
            return broken(
                format!("{did}, and ran it again without"),
                "the output of before",
                "another one",
                mend,
            );
        }
        let assigned = {
            let run = &mut *subject.runner.shared.run.borrow_mut();
            let set = run.sets.get_mut(&SetId::Main);
            set.map(|set| {
                let before = set.stored(&name).ok()?.clone();
                set.assign(&name, &other.detach()).ok()?;
                Some(before)
            })
        };
        let Some(Some(before)) = assigned else {
            return idle("a parameter could not be assigned to");
        };
        let seen = subject.whole(&inputs, Mode::Eval, &[1])?.detach();
        {
            let run = &mut *subject.runner.shared.run.borrow_mut();
            if let Some(set) = run.sets.get_mut(&SetId::Main) {
                let _ = set.assign(&name, &before);
            }
        }
        if let Some(places) = differ(&seen, &replaced.detach(), 0.0)? {
            return broken(
                format!("assigned another value to `{name}`"),
                "the output with that value in its place for one pass",
                places,
                mend,
            );
        }
    }
    Ok(())
}
