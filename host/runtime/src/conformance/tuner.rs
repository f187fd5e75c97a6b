//! The laws of tuners: sessions of the component, asked about a population that the suite makes up.
//!
//! A member's score comes from its knobs and from how long it has been trained, and a copy takes over what it copies,
//! so that answers have consequences as in a run.

use super::exam::{Exam, Stop, Trial, While, broken, death_words, elsewhere};
use super::{info, laws};
use crate::host::bindings::trainer::espalier::plugin::options::Value;
use crate::host::bindings::trainer::espalier::plugin::run::{Error, Metric};
use crate::host::bindings::tuner::exports::espalier::plugin::tuning::{
    Change, Domain, Interval, KnobInfo, MemberReport,
};
use crate::host::session::{Called, Cause, Session};
use crate::population;

/// Steps of the run that a tuner is told of, and steps between two decisions.
const STEPS: u64 = 120;
const EVERY: u64 = 10;

/// Judges every law.
pub(super) fn examine(exam: &mut Exam) {
    exam.problem = "six members with four knobs, scores from 0 to 1".into();
    exam.try_law(laws::ORDINARY, ordinary);
    exam.try_law(laws::REFUSALS, |exam| {
        exam.refusals(|settings| raw_start(exam, settings, &space(), 6).map(|(_, started)| started))
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
    exam.try_law(laws::DOMAINS, domains);
    exam.try_law(laws::CHANGES, changes);
    exam.try_law(laws::SCORELESS, scoreless);
    exam.try_law(laws::TIES, ties);
}

/// One knob of each kind.
fn space() -> Vec<KnobInfo> {
    let knob = |name: &str, domain, default| KnobInfo {
        name: name.into(),
        domain,
        default,
    };
    let interval = |low, high, log| Interval { low, high, log };
    vec![
        knob(
            "trainer.lr",
            Domain::Number(interval(1e-4, 1.0, true)),
            Value::Number(0.1),
        ),
        knob(
            "model.dropout1.rate",
            Domain::Number(interval(0.0, 0.7, false)),
            Value::Number(0.5),
        ),
        knob(
            "trainer.depth",
            Domain::Integer(interval(1.0, 5.0, false)),
            Value::Integer(2),
        ),
        knob(
            "trainer.rule",
            Domain::Choice(vec!["plain".into(), "careful".into()]),
            Value::Text("plain".into()),
        ),
    ]
}

fn raw_start(
    exam: &Exam,
    settings: &[(String, Value)],
    space: &[KnobInfo],
    members: u32,
) -> Called<(Session, Result<(), Error>)> {
    let mut session = exam.alone()?;
    let started = session.start_tuner(info(exam.setup, STEPS), settings, space, members)?;
    Ok((session, started))
}

/// A new instance with the options of the setup.
fn fresh(exam: &Exam, space: &[KnobInfo], members: u32) -> Result<Session, Stop> {
    let did = format!(
        "started it with {members} members and {} knobs",
        space.len()
    );
    let (session, started) = raw_start(exam, &exam.settings, space, members).during(&did)?;
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

/// A population that the suite makes up.
struct Village {
    space: Vec<KnobInfo>,
    members: Vec<MemberReport>,
    /// What each member has learned, in [0, 1].
    learned: Vec<f64>,
}

impl Village {
    /// Members with the knobs that the tuner proposes.
    fn found(session: &mut Session, space: &[KnobInfo], members: u32) -> Result<Village, Stop> {
        let did = format!("asked for the first knobs of {members} members");
        let proposed = session.propose().during(&did)?;
        if proposed.len() != members as usize {
            return Err(elsewhere(
                laws::DOMAINS,
                fault(
                    &did,
                    format!("knobs for each of {members} members"),
                    format!("knobs for {}", proposed.len()),
                    "return as many lists as there are members; a list may be empty",
                ),
            ));
        }
        let mut village = Village {
            space: space.to_vec(),
            members: (0..members)
                .map(|member| MemberReport {
                    member,
                    step: 0,
                    score: None,
                    metrics: Vec::new(),
                    knobs: space
                        .iter()
                        .map(|knob| (knob.name.clone(), knob.default.clone()))
                        .collect(),
                    done: false,
                })
                .collect(),
            learned: vec![0.0; members as usize],
        };
        for (member, knobs) in proposed.iter().enumerate() {
            if let Some(problem) = population::space::unfit(space, knobs) {
                return Err(unfit_knobs(&did, format!("member {member}: {problem}")));
            }
            village.set(member, knobs);
        }
        Ok(village)
    }

    fn set(&mut self, member: usize, knobs: &[(String, Value)]) {
        for (name, value) in &mut self.members[member].knobs {
            if let Some((_, new)) = knobs.iter().find(|(known, _)| known == name) {
                value.clone_from(new);
            }
        }
    }

    /// Every member trains a while: the better the knobs, the more it learns.
    fn train(&mut self, generation: u64) {
        for (member, learned) in self.members.iter_mut().zip(&mut self.learned) {
            if member.done {
                continue;
            }
            let number = |name: &str| {
                let found = member.knobs.iter().find(|(known, _)| known == name);
                match found {
                    Some((_, Value::Number(x))) => *x,
                    _ => 0.5,
                }
            };
            let distance = (number("trainer.lr").max(1e-9).log10() + 1.5).abs();
            *learned += (1.0 - *learned) * 0.3 / (1.0 + distance + number("model.dropout1.rate"));
            // A little that no knob explains, the same in every trial.
            let noise = (generation * 31 + u64::from(member.member) * 17) % 13;
            let score = *learned + noise as f64 * 1e-3;
            member.step += EVERY;
            member.score = Some(score);
            member.metrics = vec![Metric {
                name: "validation/accuracy".into(),
                value: score,
                measured: true,
            }];
        }
    }

    /// Asks for decisions, and judges them.
    fn ask(&self, session: &mut Session, did: &str) -> Result<Vec<Change>, Stop> {
        let changes = session.decide(&self.members).during(did)?;
        // Knobs and the rest are matters of two laws.
        for change in &changes {
            if let Some(problem) = population::space::unfit(&self.space, &change.knobs) {
                return Err(unfit_knobs(
                    did,
                    format!("member {}: {problem}", change.member),
                ));
            }
        }
        if let Some(problem) = population::unfit(&self.space, &self.members, &changes) {
            return Err(elsewhere(
                laws::CHANGES,
                fault(
                    did,
                    "changes of members that there are, each once and none a copy of itself",
                    problem,
                    "go by the numbers in the reports; leave out members that are done",
                ),
            ));
        }
        Ok(changes)
    }

    /// Asks for decisions, and does them. Gives the answer in words.
    fn decide(&mut self, session: &mut Session, did: &str) -> Result<String, Stop> {
        let changes = self.ask(session, did)?;
        self.follow(&changes);
        Ok(format!("{changes:?}"))
    }

    fn follow(&mut self, changes: &[Change]) {
        let learned = self.learned.clone();
        for change in changes {
            let member = change.member as usize;
            if let Some(from) = change.copy_from {
                self.learned[member] = learned[from as usize];
            }
            self.set(member, &change.knobs);
            self.members[member].done |= change.stop;
        }
    }

    /// So many generations. Gives the answers.
    fn live(
        &mut self,
        session: &mut Session,
        generations: std::ops::Range<u64>,
        did: &str,
    ) -> Result<Vec<String>, Stop> {
        generations
            .map(|generation| {
                self.train(generation);
                self.decide(session, did)
            })
            .collect()
    }
}

fn fault(did: &str, expected: impl Into<String>, found: impl Into<String>, mend: &str) -> Stop {
    match broken::<()>(did, expected, found, mend) {
        Err(stop) => stop,
        Ok(()) => Stop::Idle(String::new()),
    }
}

fn unfit_knobs(did: &str, problem: String) -> Stop {
    elsewhere(
        laws::DOMAINS,
        fault(
            did,
            "knobs that there are, each within its domain",
            problem,
            "clip numbers to `low` and `high`, and set only what `start` was told of",
        ),
    )
}

fn ordinary(exam: &mut Exam) -> Trial {
    let mut session = fresh(exam, &space(), 6)?;
    let mut village = Village::found(&mut session, &space(), 6)?;
    let did = "let 6 members live 12 generations";
    village.live(&mut session, 0..12, did).map(drop)
}

fn same_bits(exam: &mut Exam) -> Trial {
    let did = "let the same 6 members live 8 generations with two instances";
    let mut answers = Vec::new();
    for _ in 0..2 {
        let mut session = fresh(exam, &space(), 6)?;
        let mut village = Village::found(&mut session, &space(), 6)?;
        let first = format!("{:?}", knobs_of(&village));
        let mut all = vec![first];
        all.extend(village.live(&mut session, 0..8, did)?);
        answers.push(all);
    }
    compare(
        did,
        &answers[0],
        &answers[1],
        "the same answers",
        "draw randomness from the host's `random`, with the generation and the member in the key",
    )
}

fn knobs_of(village: &Village) -> Vec<&Vec<(String, Value)>> {
    village.members.iter().map(|member| &member.knobs).collect()
}

/// Where two lists of answers first differ.
fn compare(did: &str, one: &[String], two: &[String], expected: &str, mend: &str) -> Trial {
    let different = one.iter().zip(two).position(|(a, b)| a != b);
    match different {
        None => Ok(()),
        Some(place) => {
            let shown = |text: &str| text.chars().take(160).collect::<String>();
            let at = match place {
                0 => "for the first knobs".to_string(),
                place => format!("in generation {place}"),
            };
            broken(
                did,
                expected,
                format!(
                    "{at}: `{}` and `{}`",
                    shown(&one[place]),
                    shown(&two[place])
                ),
                mend,
            )
        }
    }
}

fn resume(exam: &mut Exam) -> Trial {
    let did =
        "saved it after 0, 1, 3 and 4 of 8 generations and restored another instance each time";
    let mut whole = fresh(exam, &space(), 6)?;
    let mut one = Village::found(&mut whole, &space(), 6)?;
    let mut parted = fresh(exam, &space(), 6)?;
    let mut two = Village::found(&mut parted, &space(), 6)?;
    let (mut expected, mut found) = (vec![String::new()], vec![String::new()]);
    for generation in 0..8 {
        if [0, 1, 3, 4].contains(&generation) {
            let state = parted.save().during(did)?;
            parted = fresh(exam, &space(), 6)?;
            if let Err(refusal) = parted.restore(&state).during(did)? {
                return broken(
                    did,
                    "that it takes back what it saved",
                    format!("it refuses: {}", refusal.message),
                    "read in `restore` what `save` writes",
                );
            }
        }
        expected.extend(one.live(&mut whole, generation..generation + 1, did)?);
        found.extend(two.live(&mut parted, generation..generation + 1, did)?);
    }
    compare(
        did,
        &expected,
        &found,
        "the answers of an instance that was never stopped",
        "write in `save` everything that `decide` remembers from earlier generations",
    )
}

fn leaks(exam: &mut Exam) -> Trial {
    const ROUND: u64 = 40;
    let did = format!("let 6 members live {} generations", 3 * ROUND);
    let mut session = fresh(exam, &space(), 6)?;
    let mut village = Village::found(&mut session, &space(), 6)?;
    let mut held = Vec::new();
    for round in 0..3 {
        village.live(&mut session, round * ROUND..(round + 1) * ROUND, &did)?;
        let guest = session.guest();
        held.push((guest.memory.used(), guest.handles() as u64));
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
            "no more memory after 120 generations than after 40",
            format!("{}, each a third of the way later", shown.join(", ")),
            "keep what belongs to a member by its number, and as much of the past as the method reads",
        );
    }
    Ok(())
}

/// Something that it must do, or refuse in words at its start.
fn bearable(
    exam: &Exam,
    did: &str,
    space: &[KnobInfo],
    members: u32,
    trial: impl FnOnce(&mut Session) -> Trial,
) -> Trial {
    match raw_start(exam, &exam.settings, space, members) {
        Ok((_, Err(refusal))) if refusal.message.trim().is_empty() => broken(
            did,
            "an answer, or a refusal in words",
            "a refusal without words",
            "say what was expected and what was found",
        ),
        Ok((_, Err(_))) => Ok(()),
        Ok((mut session, Ok(()))) => trial(&mut session),
        Err(death) if death.cause == Cause::Other => broken(
            did,
            "an answer, or a refusal in words",
            death_words(&death),
            "return an error from `start` in the place of a trap",
        ),
        Err(death) => Err(death).during(did),
    }
}

fn tiny(exam: &mut Exam) -> Trial {
    let did = "let one member with one knob live 4 generations";
    let space = &space()[..1];
    bearable(exam, did, space, 1, |session| {
        let mut village = Village::found(session, space, 1)?;
        village.live(session, 0..4, did).map(drop)
    })
}

fn empty(exam: &mut Exam) -> Trial {
    let did = "let 3 members live 4 generations without a knob";
    bearable(exam, did, &[], 3, |session| {
        let mut village = Village::found(session, &[], 3)?;
        village.live(session, 0..4, did).map(drop)
    })?;
    let did = "asked for decisions about no members";
    bearable(exam, did, &space(), 3, |session| {
        session.propose().during(did)?;
        let changes = session.decide(&[]).during(did)?;
        match changes.is_empty() {
            true => Ok(()),
            false => broken(
                did,
                "no changes",
                format!("{changes:?}"),
                "go by the reports",
            ),
        }
    })
}

fn domains(exam: &mut Exam) -> Trial {
    for (end, at_low) in [("lowest", true), ("highest", false)] {
        let did = format!("let 6 members live 12 generations from the {end} knobs on");
        let mut session = fresh(exam, &space(), 6)?;
        let mut village = Village::found(&mut session, &space(), 6)?;
        for member in &mut village.members {
            for ((_, value), knob) in member.knobs.iter_mut().zip(&village.space) {
                *value = match &knob.domain {
                    Domain::Number(i) => Value::Number(if at_low { i.low } else { i.high }),
                    Domain::Integer(i) => {
                        Value::Integer(if at_low { i.low } else { i.high } as i64)
                    }
                    Domain::Choice(words) => {
                        let word = if at_low { words.first() } else { words.last() };
                        Value::Text(word.cloned().unwrap_or_default())
                    }
                };
            }
        }
        village.live(&mut session, 0..12, &did)?;
    }
    // A value outside of the domain: where the tuner says nothing, the run file's own value stands.
    let did = "let 6 members live 8 generations with a knob whose default lies outside its domain";
    let mut space = space();
    space[0].default = Value::Number(0.0);
    let mut session = fresh(exam, &space, 6)?;
    let mut village = Village::found(&mut session, &space, 6)?;
    for member in &mut village.members {
        member.knobs[0].1 = Value::Number(0.0);
    }
    village.live(&mut session, 0..8, did).map(drop)
}

fn changes(exam: &mut Exam) -> Trial {
    let did = "let 6 members live 8 generations, of which the worst and the best end early";
    for ended in [[0, 5], [2, 3]] {
        let mut session = fresh(exam, &space(), 6)?;
        let mut village = Village::found(&mut session, &space(), 6)?;
        for generation in 0..8 {
            village.train(generation);
            if generation == 2 {
                village.members[ended[0]].score = Some(-1.0);
                village.members[ended[1]].score = Some(2.0);
                for member in ended {
                    village.members[member].done = true;
                }
            }
            village.decide(&mut session, did)?;
        }
    }
    for members in [2, 3, 40] {
        let did = format!("let {members} members live 6 generations");
        let mut session = fresh(exam, &space(), members)?;
        let mut village = Village::found(&mut session, &space(), members)?;
        village.live(&mut session, 0..6, &did)?;
    }
    Ok(())
}

fn scoreless(exam: &mut Exam) -> Trial {
    let did = "let 6 members live 10 generations, of which two and sometimes all have no score";
    let mut session = fresh(exam, &space(), 6)?;
    let mut village = Village::found(&mut session, &space(), 6)?;
    for generation in 0..10 {
        village.train(generation);
        let silent: Vec<usize> = match generation {
            4 | 5 => (0..6).collect(),
            _ => vec![1, 4],
        };
        for &member in &silent {
            village.members[member].score = None;
            village.members[member].metrics[0].value = f64::NAN;
        }
        let changes = village.ask(&mut session, did)?;
        let of_silent = changes.iter().find(|change| {
            change
                .copy_from
                .is_some_and(|from| silent.contains(&(from as usize)))
        });
        if let (Some(change), true) = (of_silent, silent.len() < 6) {
            return broken(
                did,
                "copies of members that have a score",
                format!(
                    "member {} becomes a copy of member {}, which has none",
                    change.member,
                    change.copy_from.unwrap_or_default()
                ),
                "rank members without a score last: they have diverged",
            );
        }
        village.follow(&changes);
    }
    Ok(())
}

fn ties(exam: &mut Exam) -> Trial {
    let did = "let 6 members with equal scores live 8 generations, twice";
    let mut answers = Vec::new();
    for _ in 0..2 {
        let mut session = fresh(exam, &space(), 6)?;
        let mut village = Village::found(&mut session, &space(), 6)?;
        let mut all = vec![String::new()];
        for generation in 0..8 {
            village.train(generation);
            for member in &mut village.members {
                member.score = Some(0.5);
                member.metrics[0].value = 0.5;
            }
            all.push(village.decide(&mut session, did)?);
        }
        answers.push(all);
    }
    compare(
        did,
        &answers[0],
        &answers[1],
        "the same answers",
        "break ties by a rule, or by the host's `random`",
    )
}
