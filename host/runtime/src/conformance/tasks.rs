//! The laws of environments with tasks: sessions of the component, asked for prompts and verdicts.

use super::exam::{Exam, Stop, Trial, While, broken, death_words, idle};
use super::{info, laws, toy};
use crate::host::bindings::tasks::exports::espalier::plugin::tasks::Response;
use crate::host::bindings::trainer::espalier::plugin::options::Value;
use crate::host::bindings::trainer::espalier::plugin::rewards::{Prompt, TaskSpec};
use crate::host::bindings::trainer::espalier::plugin::run::{Error, RunInfo};
use crate::host::rollouts::unfit_tasks;
use crate::host::session::{Called, Cause, Session};

/// Most prompts of a split that the suite looks at.
const MOST: u64 = 64;

/// What an environment says of itself.
struct Known {
    spec: TaskSpec,
    splits: Vec<(String, u64)>,
}

/// Judges every law.
pub(super) fn examine(exam: &mut Exam) {
    exam.problem = "its own prompts, and responses good and bad".into();
    exam.try_law(laws::ORDINARY, ordinary);
    exam.try_law(laws::REFUSALS, |exam| {
        exam.refusals(|settings| raw_start(exam, settings).map(|(_, started)| started))
    });
    if [laws::ORDINARY, laws::ENDS, laws::BUDGETS]
        .iter()
        .any(|law| exam.is_broken(*law))
    {
        return;
    }
    exam.try_law(laws::SPEC, |exam| spec(exam).map(drop));
    if exam.is_broken(laws::SPEC) {
        return;
    }
    exam.try_law(laws::SAME_BITS, same_bits);
    exam.try_law(laws::RESUME, resume);
    exam.try_law(laws::LEAKS, leaks);
    exam.try_law(laws::TINY, tiny);
    exam.try_law(laws::EMPTY, empty);
    exam.try_law(laws::PROMPTS, prompts);
    exam.try_law(laws::VERDICTS, verdicts);
    exam.try_law(laws::BOUNDED, bounded);
    exam.try_law(laws::SOLUTIONS, solutions);
}

/// An environment is told neither the length of an epoch nor that of a run.
pub(super) fn environment_info(exam: &Exam) -> RunInfo {
    RunInfo {
        steps: 0,
        steps_per_epoch: 0,
        ..info(exam.setup, 0)
    }
}

/// A new instance, started with these options.
pub(super) fn raw_start(
    exam: &Exam,
    settings: &[(String, Value)],
) -> Called<(Session, Result<(), Error>)> {
    let mut session = exam.alone()?;
    let started = session.start(environment_info(exam), settings)?;
    Ok((session, started))
}

/// A new instance with the options of the setup.
pub(super) fn fresh(exam: &Exam) -> Result<Session, Stop> {
    let did = "started it";
    let (session, started) = raw_start(exam, &exam.settings).during(did)?;
    match started {
        Ok(()) => Ok(session),
        Err(refusal) => broken(
            did,
            "that it starts",
            format!("it refuses: {}", refusal.message),
            "mend its defaults, or give it `options` in conformance.toml",
        ),
    }
}

fn known(session: &mut Session) -> Result<Known, Stop> {
    Ok(Known {
        spec: session
            .task_spec()
            .during("asked what its tasks are like")?,
        splits: session.task_splits().during("asked for its splits")?,
    })
}

/// The first, the last and some other prompts of a split.
fn some(count: u64) -> Vec<u64> {
    match count <= MOST {
        true => (0..count).collect(),
        false => {
            let mut draw = toy::Draw::new(5);
            let mut ids = vec![0, count - 1];
            ids.extend((2..MOST).map(|_| draw.word() % count));
            ids
        }
    }
}

/// Responses to a prompt: right where that is known, wrong, empty, cut off, nonsense.
fn responses(known: &Known, split: &str, prompt: &Prompt, draw: &mut toy::Draw) -> Vec<Response> {
    let spec = &known.spec;
    let most = spec.max_response as usize;
    let with = |tokens: Vec<u32>, finished| Response {
        split: split.to_string(),
        prompt: prompt.id,
        tokens,
        finished,
    };
    let mut all = vec![with(vec![spec.stop], true), with(Vec::new(), false)];
    if let Some(solution) = &prompt.solution {
        all.push(with([solution.as_slice(), &[spec.stop]].concat(), true));
        all.push(with(solution.clone(), false));
    }
    for _ in 0..3 {
        let length = draw.below(most);
        let mut tokens: Vec<u32> = (0..length)
            .map(|_| draw.below(spec.vocabulary.len()) as u32)
            .collect();
        tokens.push(spec.stop);
        all.push(with(tokens, true));
    }
    let endless = (0..most).map(|_| draw.below(spec.vocabulary.len()) as u32);
    all.push(with(endless.collect(), false));
    all
}

/// Prompts of a split and responses to them.
fn asked(
    session: &mut Session,
    known: &Known,
    split: &str,
    ids: &[u64],
) -> Called<(Vec<Prompt>, Vec<Response>)> {
    let prompts = session.prompts(split, ids)?;
    let mut draw = toy::Draw::new(6);
    let all = prompts
        .iter()
        .flat_map(|prompt| responses(known, split, prompt, &mut draw))
        .collect();
    Ok((prompts, all))
}

/// Everything that it says about a split, as text to compare.
fn told(session: &mut Session, known: &Known, split: &str, ids: &[u64]) -> Called<String> {
    let (prompts, responses) = asked(session, known, split, ids)?;
    let verdicts = session.verify(&responses, &known.spec.rewards)?;
    Ok(format!("{prompts:?} {verdicts:?}"))
}

fn ordinary(exam: &mut Exam) -> Trial {
    let mut session = fresh(exam)?;
    let known = known(&mut session)?;
    let did = "asked for a prompt of each split and judged responses to it";
    for (split, _) in known.splits.iter().filter(|(_, count)| *count > 0) {
        let prompts = session.prompts(split, &[0]).during(did)?;
        let right = Response {
            split: split.clone(),
            prompt: 0,
            tokens: prompts
                .first()
                .and_then(|p| p.solution.clone())
                .unwrap_or_default(),
            finished: true,
        };
        // A reward outside its range is the law `bounded`.
        let verdict = session.verify(&[right], &known.spec.rewards);
        if let Err(death) = verdict
            && !death_words(&death).contains("judged a response")
        {
            return Err(death).during(did);
        }
    }
    Ok(())
}

fn spec(exam: &mut Exam) -> Result<Known, Stop> {
    let mut session = fresh(exam)?;
    let known = known(&mut session)?;
    match unfit_tasks(&known.spec, &known.splits) {
        None => Ok(known),
        Some(problem) => broken(
            "asked what its tasks are like",
            "a vocabulary with a stop token, lengths from 1 on, ranges of rewards, a split `train`",
            problem,
            "mend `spec` or `splits`",
        ),
    }
}

fn same_bits(exam: &mut Exam) -> Trial {
    let did = "asked two instances for the same prompts and verdicts";
    let (mut one, mut two) = (fresh(exam)?, fresh(exam)?);
    let known = known(&mut one)?;
    for (split, count) in &known.splits {
        let ids = some(*count);
        let first = told(&mut one, &known, split, &ids).during(did)?;
        if first != told(&mut two, &known, split, &ids).during(did)? {
            return broken(
                did,
                "the same answers",
                format!("other ones in the split `{split}`"),
                "make prompts of their number and the options alone",
            );
        }
    }
    Ok(())
}

fn resume(exam: &mut Exam) -> Trial {
    let did = "saved it after some verdicts and restored another instance";
    let mut whole = fresh(exam)?;
    let known = known(&mut whole)?;
    let ids = some(
        known
            .splits
            .iter()
            .find(|(name, _)| name == "train")
            .map_or(1, |(_, n)| *n),
    );
    told(&mut whole, &known, "train", &ids).during(did)?;
    let state = whole.save().during(did)?;
    let mut other = fresh(exam)?;
    if let Err(refusal) = other.restore(&state).during(did)? {
        return broken(
            did,
            "that it takes back what it saved",
            format!("it refuses: {}", refusal.message),
            "read in `restore` what `save` writes",
        );
    }
    let (one, two) = (
        told(&mut whole, &known, "train", &ids).during(did)?,
        told(&mut other, &known, "train", &ids).during(did)?,
    );
    match one == two {
        true => Ok(()),
        false => broken(
            did,
            "the answers of the instance that was never stopped",
            "other ones",
            "remember nothing from one call to the next, or save it",
        ),
    }
}

fn leaks(exam: &mut Exam) -> Trial {
    let did = "asked for the same prompts and verdicts 60 times";
    let mut session = fresh(exam)?;
    let known = known(&mut session)?;
    let ids = some(
        known
            .splits
            .iter()
            .find(|(name, _)| name == "train")
            .map_or(1, |(_, n)| *n),
    );
    let mut held = Vec::new();
    for round in 1..=60 {
        told(&mut session, &known, "train", &ids).during(did)?;
        if round % 20 == 0 {
            held.push(session.guest().memory.used());
        }
    }
    match held[0] < held[1] && held[1] < held[2] {
        false => Ok(()),
        true => broken(
            did,
            "no more memory after 60 rounds than after 20",
            format!("{held:?} bytes"),
            "drop what belongs to a response",
        ),
    }
}

fn tiny(exam: &mut Exam) -> Trial {
    let mut session = fresh(exam)?;
    let known = known(&mut session)?;
    let did = "asked for one prompt, and a verdict on a response of one token";
    let response = Response {
        split: "train".into(),
        prompt: 0,
        tokens: vec![known.spec.stop],
        finished: true,
    };
    session.prompts("train", &[0]).during(did)?;
    session
        .verify(&[response], &known.spec.rewards)
        .during(did)
        .map(drop)
}

fn empty(exam: &mut Exam) -> Trial {
    let mut session = fresh(exam)?;
    let known = known(&mut session)?;
    session
        .prompts("train", &[])
        .during("asked for no prompt")?;
    session
        .verify(&[], &known.spec.rewards)
        .during("asked for no verdict")?;
    let silent = Response {
        split: "train".into(),
        prompt: 0,
        tokens: Vec::new(),
        finished: false,
    };
    session
        .verify(&[silent], &known.spec.rewards)
        .during("judged a response without a token")
        .map(drop)
}

fn prompts(exam: &mut Exam) -> Trial {
    let mut session = fresh(exam)?;
    let known = known(&mut session)?;
    let spec = &known.spec;
    for (split, count) in known.splits.iter().filter(|(_, count)| *count > 0) {
        let ids = some(*count);
        let did = format!("asked for {} prompts of `{split}`", ids.len());
        let all = session.prompts(split, &ids).during(&did)?;
        let fits = |tokens: &[u32]| tokens.iter().all(|&t| (t as usize) < spec.vocabulary.len());
        for prompt in &all {
            let right = !prompt.tokens.is_empty()
                && prompt.tokens.len() <= spec.max_prompt as usize
                && fits(&prompt.tokens);
            if !right {
                return broken(
                    did,
                    format!(
                        "1 to {} tokens below {}",
                        spec.max_prompt,
                        spec.vocabulary.len()
                    ),
                    format!("prompt {} is {:?}", prompt.id, prompt.tokens),
                    "mend `spec`, or cut the prompt",
                );
            }
            let solution = prompt.solution.as_deref().unwrap_or_default();
            if !fits(solution) || solution.len() + 1 > spec.max_response as usize {
                return broken(
                    did,
                    format!(
                        "solutions that fit with a stop token into {} tokens",
                        spec.max_response
                    ),
                    format!("that of prompt {} is {solution:?}", prompt.id),
                    "raise `max-response`",
                );
            }
        }
        let order = toy::Draw::new(7).order(ids.len());
        let mut other = fresh(exam)?;
        for place in order {
            let again = other.prompts(split, &[ids[place]]).during(&did)?;
            if format!("{:?}", again.first()) != format!("{:?}", all.get(place)) {
                return broken(
                    format!(
                        "asked for prompt {} of `{split}` by itself, after others",
                        ids[place]
                    ),
                    "the prompt that came among the others",
                    "another one",
                    "make a prompt of its split and number alone",
                );
            }
        }
    }
    Ok(())
}

fn verdicts(exam: &mut Exam) -> Trial {
    let mut session = fresh(exam)?;
    let known = known(&mut session)?;
    let ids = some(
        known
            .splits
            .iter()
            .find(|(name, _)| name == "train")
            .map_or(1, |(_, n)| *n),
    );
    let did = "judged the same responses together, then one by one in another order";
    let (_, responses) = asked(&mut session, &known, "train", &ids).during(did)?;
    let together = session
        .verify(&responses, &known.spec.rewards)
        .during(did)?;
    for place in toy::Draw::new(8).order(responses.len()) {
        let alone = session
            .verify(&responses[place..=place], &known.spec.rewards)
            .during(did)?;
        if format!("{:?}", alone.first()) != format!("{:?}", together.get(place)) {
            return broken(
                did,
                format!(
                    "the same verdict on {:?} for prompt {}",
                    responses[place].tokens, responses[place].prompt
                ),
                format!(
                    "reward {} and {}",
                    together[place].reward,
                    alone.first().map_or(f64::NAN, |v| v.reward)
                ),
                "judge by the response, its prompt and the options alone: no counting, no chance",
            );
        }
    }
    Ok(())
}

fn bounded(exam: &mut Exam) -> Trial {
    let mut session = fresh(exam)?;
    let known = known(&mut session)?;
    for (split, count) in known.splits.iter().filter(|(_, count)| *count > 0) {
        let ids = some(*count);
        let did = format!(
            "judged right, wrong, empty, cut off and meaningless responses to {} prompts of `{split}`",
            ids.len()
        );
        let (_, responses) = asked(&mut session, &known, split, &ids).during(&did)?;
        if let Err(death) = session.verify(&responses, &known.spec.rewards) {
            return match death.cause {
                Cause::Other => broken(
                    did,
                    "finite rewards and terms within the ranges that `spec` declares, and parts within the response",
                    death_words(&death),
                    "clamp what is paid, or declare the wider range",
                ),
                _ => Err(death).during(&did),
            };
        }
    }
    Ok(())
}

fn solutions(exam: &mut Exam) -> Trial {
    let mut session = fresh(exam)?;
    let known = known(&mut session)?;
    let mut any = false;
    for (split, count) in known.splits.iter().filter(|(_, count)| *count > 0) {
        let ids = some(*count);
        let did = format!("judged the solutions of {} prompts of `{split}`", ids.len());
        for prompt in session.prompts(split, &ids).during(&did)? {
            let Some(solution) = &prompt.solution else {
                continue;
            };
            any = true;
            let response = Response {
                split: split.clone(),
                prompt: prompt.id,
                tokens: [solution.as_slice(), &[known.spec.stop]].concat(),
                finished: true,
            };
            let verdict = session
                .verify(&[response], &known.spec.rewards)
                .during(&did)?;
            let right = verdict.first().is_some_and(|v| v.correct && v.well_formed);
            if !right {
                return broken(
                    did,
                    "each right and readable",
                    format!("that of prompt {}, {solution:?}, is not", prompt.id),
                    "give solutions without the stop token, as the policy would write them",
                );
            }
        }
    }
    match any {
        true => Ok(()),
        false => idle("its prompts come without solutions"),
    }
}
