//! The laws of normalisers: sessions of the component, asked about rollouts that the suite makes up.

use super::exam::{Exam, Stop, Trial, While, broken, death_words, idle};
use super::{info, laws, toy};
use crate::host::bindings::trainer::espalier::plugin::options::Value;
use crate::host::bindings::trainer::espalier::plugin::rewards::{Advantage, Drift, Rollout};
use crate::host::bindings::trainer::espalier::plugin::run::Error;
use crate::host::session::{Called, Cause, Session};

/// Steps of the run that a normaliser is told of.
const STEPS: u64 = 12;

/// Judges every law.
pub(super) fn examine(exam: &mut Exam) {
    exam.problem = "groups of rewards from 0 to 1".into();
    exam.try_law(laws::ORDINARY, ordinary);
    exam.try_law(laws::REFUSALS, |exam| {
        exam.refusals(|settings| raw_start(exam, settings).map(|(_, started)| started))
    });
    if exam.is_broken(laws::ORDINARY) || exam.is_broken(laws::ENDS) || exam.is_broken(laws::BUDGETS)
    {
        return;
    }
    exam.try_law(laws::SAME_BITS, same_bits);
    exam.try_law(laws::RESUME, resume);
    exam.try_law(laws::LEAKS, leaks);
    exam.try_law(laws::TINY, tiny);
    exam.try_law(laws::EMPTY, empty);
    exam.try_law(laws::FINITE, finite);
    exam.try_law(laws::ORDER, order);
    exam.try_law(laws::CONSTANT, constant);
}

fn raw_start(exam: &Exam, settings: &[(String, Value)]) -> Called<(Session, Result<(), Error>)> {
    let mut session = exam.alone()?;
    let started = session.start_normalizer(info(exam.setup, STEPS), settings, &toy::pays())?;
    Ok((session, started))
}

/// A new instance with the options of the setup.
fn fresh(exam: &Exam) -> Result<Session, Stop> {
    let did = "started it for rewards from 0 to 1";
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

/// What it answers to one batch, with what follows in a run: drifts to one that tracks the policy, and weights.
fn answers(session: &mut Session, batch: &[Rollout], step: u64) -> Called<String> {
    let advantages = session.normalize(batch)?;
    let mut text = match advantages {
        Ok(advantages) => format!("{:?}", numbers(&advantages)),
        Err(refusal) => format!("refused: {}", refusal.message),
    };
    if session.tracks() {
        let mut prompts: Vec<u64> = batch.iter().map(|rollout| rollout.prompt).collect();
        prompts.dedup();
        let drifts: Vec<Drift> = prompts
            .iter()
            .filter(|_| step > 0)
            .map(|&prompt| Drift {
                prompt,
                mean_abs_logratio: 0.01 * ((prompt + step) % 5) as f64,
            })
            .collect();
        session.observe(&drifts)?;
        text.push_str(&format!(" weights {:?}", session.prompt_weights(&prompts)?));
    }
    Ok(text)
}

fn numbers(advantages: &[Advantage]) -> Vec<(Vec<f64>, bool)> {
    advantages
        .iter()
        .map(|a| (a.values.clone(), a.keep))
        .collect()
}

/// The batches of a run: the same prompts come again, with other rewards.
fn batches() -> Vec<Vec<Rollout>> {
    (0..8).map(|step| toy::rollouts(step, 6, 8)).collect()
}

fn ordinary(exam: &mut Exam) -> Trial {
    let mut session = fresh(exam)?;
    for (step, batch) in batches().iter().enumerate() {
        let did = format!("gave it batch {} of 6 groups of 8 rollouts", step + 1);
        if let Err(refusal) = session.normalize(batch).during(&did)? {
            return broken(
                did,
                "advantages",
                format!("it refuses: {}", refusal.message),
                "a refusal is for batches that the method has no answer to, not for ordinary ones",
            );
        }
    }
    Ok(())
}

fn same_bits(exam: &mut Exam) -> Trial {
    let did = "gave the same batches to two instances";
    let (mut first, mut second) = (fresh(exam)?, fresh(exam)?);
    for (step, batch) in batches().iter().enumerate() {
        let one = answers(&mut first, batch, step as u64).during(did)?;
        let two = answers(&mut second, batch, step as u64).during(did)?;
        if one != two {
            return broken(
                did,
                "the same answers",
                difference(&one, &two, &format!("batch {}", step + 1)),
                "draw randomness from the host's `random` with the step in the key",
            );
        }
    }
    Ok(())
}

/// Where two answers first differ, a few words around it.
fn difference(one: &str, two: &str, at: &str) -> String {
    let same = one
        .bytes()
        .zip(two.bytes())
        .take_while(|(a, b)| a == b)
        .count();
    let shown = |text: &str| {
        let from = text[..same.min(text.len())].rfind(['(', '[']).unwrap_or(0);
        text[from..].chars().take(48).collect::<String>()
    };
    format!("at {at}: `{}` and `{}`", shown(one), shown(two))
}

fn resume(exam: &mut Exam) -> Trial {
    let did = "saved it after 1, 3 and 4 of 8 batches and restored another instance each time";
    let batches = batches();
    let mut whole = fresh(exam)?;
    let mut parted = fresh(exam)?;
    for (step, batch) in batches.iter().enumerate() {
        let one = answers(&mut whole, batch, step as u64).during(did)?;
        if [1, 3, 4].contains(&step) {
            let state = parted.save().during(did)?;
            parted = fresh(exam)?;
            if let Err(refusal) = parted.restore(&state).during(did)? {
                return broken(
                    did,
                    "that it takes back what it saved",
                    format!("it refuses: {}", refusal.message),
                    "read in `restore` what `save` writes",
                );
            }
        }
        let two = answers(&mut parted, batch, step as u64).during(did)?;
        if one != two {
            return broken(
                did,
                "the answers of an instance that was never stopped",
                difference(&one, &two, &format!("batch {}", step + 1)),
                "write in `save` everything that `normalize` remembers from earlier batches",
            );
        }
    }
    Ok(())
}

fn leaks(exam: &mut Exam) -> Trial {
    const ROUNDS: u64 = 96;
    let did = format!("gave it the same 8 batches {} times", 3 * ROUNDS / 8);
    let mut session = fresh(exam)?;
    let batches = batches();
    let mut held = Vec::new();
    for step in 0..3 * ROUNDS {
        answers(&mut session, &batches[(step % 8) as usize], step).during(&did)?;
        if (step + 1) % ROUNDS == 0 {
            held.push((
                session.guest().memory.used(),
                session.guest().handles() as u64,
            ));
        }
    }
    let grows =
        |f: &dyn Fn(&(u64, u64)) -> u64| f(&held[0]) < f(&held[1]) && f(&held[1]) < f(&held[2]);
    if grows(&|h| h.0) || grows(&|h| h.1) {
        let shown: Vec<String> = held
            .iter()
            .map(|(memory, handles)| format!("{} KiB and {handles} handles", memory >> 10))
            .collect();
        return broken(
            did,
            "no more memory after 36 rounds than after 12",
            format!("{}, each a third of the way later", shown.join(", ")),
            "keep what belongs to a prompt by its number, and drop what belongs to a batch",
        );
    }
    Ok(())
}

/// A batch that must have finite advantages, or be refused in words.
fn bearable(exam: &Exam, what: &str, batch: &[Rollout]) -> Trial {
    let did = format!("gave it {what}");
    let mut session = fresh(exam)?;
    match session.normalize(batch) {
        Ok(Err(refusal)) if refusal.message.trim().is_empty() => broken(
            did,
            "advantages, or a refusal in words",
            "a refusal without words",
            "say what was expected and what was found",
        ),
        Ok(_) => Ok(()),
        Err(death) if death.cause == Cause::Other => broken(
            did,
            "a finite advantage for each rollout, or a refusal in words",
            death_words(&death),
            "say in `normalize` what holds where the spread is 0, a group has one rollout or the batch has none",
        ),
        Err(death) => Err(death).during(&did),
    }
}

fn tiny(exam: &mut Exam) -> Trial {
    bearable(exam, "a batch of one rollout", &toy::rollouts(4, 1, 1))?;
    bearable(exam, "one group of two", &toy::rollouts(4, 1, 2))
}

fn empty(exam: &mut Exam) -> Trial {
    bearable(exam, "a batch without rollouts", &[])?;
    let mut silent = toy::rollouts(2, 3, 8);
    for one in &mut silent {
        one.length = 0;
        one.tags.clear();
    }
    bearable(exam, "rollouts without a token", &silent)
}

fn alike(reward: f64) -> Vec<Rollout> {
    (0..24)
        .map(|i| toy::rollout(i, i as u64 / 8, reward))
        .collect()
}

fn finite(exam: &mut Exam) -> Trial {
    for reward in [0.0, 0.1, 1.0] {
        bearable(
            exam,
            &format!("three groups whose rewards are all {reward}"),
            &alike(reward),
        )?;
    }
    let mut lone = toy::rollouts(3, 3, 8);
    lone.push(toy::rollout(lone.len(), 77, 1.0));
    bearable(exam, "three groups of eight and one of one", &lone)?;
    let mut nearly = alike(0.5);
    nearly[5].reward = 0.5 + 1e-16f64.max(f64::EPSILON);
    bearable(
        exam,
        "a group whose rewards differ in the last bit",
        &nearly,
    )?;
    let mut unread = toy::rollouts(5, 3, 8);
    for one in &mut unread {
        (one.correct, one.well_formed, one.reward) = (false, false, 0.0);
    }
    bearable(exam, "responses of which none can be read", &unread)?;
    let mut large = toy::rollouts(6, 3, 8);
    for one in &mut large {
        one.group = u64::MAX - one.group;
        one.prompt = u64::MAX - one.prompt;
        one.length = u32::MAX;
    }
    bearable(
        exam,
        "groups with the largest numbers and responses of the greatest length",
        &large,
    )?;
    bearable(exam, "1,000 groups of eight", &toy::rollouts(7, 1000, 8))
}

fn order(exam: &mut Exam) -> Trial {
    let (groups, size) = (6, 8);
    let batch = toy::rollouts(8, groups as u64, size);
    let expected = advantages(exam, &batch)?;
    let mut draw = toy::Draw::new(9);
    let of_groups = draw.order(groups);
    let by_group: Vec<usize> = of_groups
        .iter()
        .flat_map(|g| (0..size).map(move |i| g * size + i))
        .collect();
    let mut within = Vec::new();
    for group in 0..groups {
        within.extend(draw.order(size).iter().map(|i| group * size + i));
    }
    let mixed = draw.order(batch.len());
    let orders = [
        ("the groups in another order", by_group),
        ("the rollouts of each group in another order", within),
        ("all rollouts in another order, groups mixed", mixed),
    ];
    for (what, order) in orders {
        let shuffled: Vec<Rollout> = order.iter().map(|&i| batch[i].clone()).collect();
        let found = advantages(exam, &shuffled)?;
        for (place, &i) in order.iter().enumerate() {
            if !close(&found[place].0, &expected[i].0) || found[place].1 != expected[i].1 {
                return broken(
                    format!("gave it the same batch with {what}"),
                    format!(
                        "the same advantage for each rollout, to 1e-9; rollout {i}: {:?}",
                        expected[i].0
                    ),
                    format!("{:?}", found[place].0),
                    "go by the number of the group, not by places; add up numbers so that their order does not matter",
                );
            }
        }
    }
    Ok(())
}

fn close(one: &[f64], two: &[f64]) -> bool {
    one.len() == two.len()
        && one
            .iter()
            .zip(two)
            .all(|(a, b)| (a - b).abs() <= 1e-9 * (1.0 + b.abs()))
}

fn advantages(exam: &Exam, batch: &[Rollout]) -> Result<Vec<(Vec<f64>, bool)>, Stop> {
    let did = "gave it an ordinary batch";
    match fresh(exam)?.normalize(batch).during(did)? {
        Ok(advantages) => Ok(numbers(&advantages)),
        Err(refusal) => broken(
            did,
            "advantages",
            format!("it refuses: {}", refusal.message),
            "take ordinary batches",
        ),
    }
}

fn constant(exam: &mut Exam) -> Trial {
    for reward in [0.0, 0.1, 1.0] {
        let found = advantages(exam, &alike(reward))?;
        if let Some((values, _)) = found
            .iter()
            .find(|(values, _)| values.iter().any(|x| *x != 0.0))
        {
            return match &exam.setup.constant_rewards {
                Some(why) => idle(format!("its folder declares otherwise: {why}")),
                None => broken(
                    format!("gave it three groups whose rewards are all {reward}"),
                    "advantages of exactly 0",
                    format!("{values:?}"),
                    "give 0 where all rewards of a group are equal; or, where the method means something else, write constant-rewards = \"why\" in conformance.toml",
                ),
            };
        }
    }
    Ok(())
}
