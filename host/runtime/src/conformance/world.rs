//! The laws of worlds to act in: sessions of the component, acted in at random.

use super::exam::{Exam, Stop, Trial, While, broken};
use super::tasks::{fresh, raw_start};
use super::{laws, toy};
use crate::host::bindings::trainer::espalier::plugin::control::{ActionSpace, MdpSpec};
use crate::host::session::{Called, Cause, Session};
use crate::run::unfit_mdp;

/// Most steps that an episode is followed for.
const MOST_STEPS: u32 = 2048;

/// Judges every law.
pub(super) fn examine(exam: &mut Exam) {
    exam.problem = "random actions".into();
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
    exam.try_law(laws::SPEC, |exam| {
        let spec = spec_of(&mut fresh(exam)?)?;
        match unfit_mdp(&spec) {
            None => Ok(()),
            Some(problem) => broken(
                "asked what the world is like",
                "observations, actions and episodes",
                problem,
                "mend `spec`",
            ),
        }
    });
    if exam.is_broken(laws::SPEC) {
        return;
    }
    exam.try_law(laws::SAME_BITS, |exam| {
        let did = "acted alike in two instances of the component";
        let (one, two) = (
            path(&mut fresh(exam)?, 4, 64).during(did)?,
            path(&mut fresh(exam)?, 4, 64).during(did)?,
        );
        match one == two {
            true => Ok(()),
            false => broken(
                did,
                "the same observations and rewards",
                "other ones",
                "draw randomness from the host's `random` with the key of `reset`",
            ),
        }
    });
    exam.try_law(laws::RESUME, resume);
    exam.try_law(laws::LEAKS, leaks);
    exam.try_law(laws::TINY, |exam| {
        path(&mut fresh(exam)?, 1, 4)
            .during("acted in one instance for 4 steps")
            .map(drop)
    });
    exam.try_law(laws::EMPTY, |exam| {
        let mut session = fresh(exam)?;
        let size = spec_of(&mut session)?.observation.len();
        session
            .reset(1, &[], size)
            .during("began an episode from an empty key")
            .map(drop)
    });
    exam.try_law(laws::KEYED, keyed);
    exam.try_law(laws::BOUNDED, bounded);
    exam.try_law(laws::EPISODES, episodes);
}

fn spec_of(session: &mut Session) -> Result<MdpSpec, Stop> {
    session.mdp_spec().during("asked what the world is like")
}

/// Actions for `n` instances.
fn actions(spec: &MdpSpec, n: usize, draw: &mut toy::Draw) -> Vec<f64> {
    let mut all = Vec::new();
    for _ in 0..n {
        match &spec.action {
            ActionSpace::Discrete(count) => all.push(draw.below(*count as usize) as f64),
            ActionSpace::Continuous(ranges) => {
                // The ends of a range come as often as its middle.
                all.extend(ranges.iter().map(|(low, high)| {
                    let (low, high) = (low.max(-1e6), high.min(1e6));
                    let at = (1.5 * draw.unit() - 0.25).clamp(0.0, 1.0);
                    low + at * (high - low)
                }));
            }
        }
    }
    all
}

/// Everything that is seen of some steps, as text to compare.
fn path(session: &mut Session, n: usize, steps: usize) -> Called<Vec<String>> {
    let spec = session.mdp_spec()?;
    let size = spec.observation.len();
    let mut draw = toy::Draw::new(3);
    let mut seen = vec![format!("{:?}", session.reset(n as u32, &[0, 7], size)?)];
    for _ in 0..steps {
        let t = session.act(&actions(&spec, n, &mut draw), n, size)?;
        seen.push(format!("{t:?}"));
    }
    Ok(seen)
}

fn ordinary(exam: &mut Exam) -> Trial {
    let did = "acted at random in 4 instances for 32 steps";
    path(&mut fresh(exam)?, 4, 32).during(did).map(drop)
}

fn resume(exam: &mut Exam) -> Trial {
    let did = "acted in 3 instances for 60 steps, saved it after 20 and 41 and restored another instance each time";
    let (mut whole, mut parted) = (fresh(exam)?, fresh(exam)?);
    let spec = spec_of(&mut whole)?;
    let size = spec.observation.len();
    for session in [&mut whole, &mut parted] {
        session.reset(3, &[0, 7], size).during(did)?;
    }
    let mut draw = toy::Draw::new(3);
    for step in 0..60 {
        let actions = actions(&spec, 3, &mut draw);
        if step == 20 || step == 41 {
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
        let one = whole.act(&actions, 3, size).during(did)?;
        let two = parted.act(&actions, 3, size).during(did)?;
        if format!("{one:?}") != format!("{two:?}") {
            return broken(
                did,
                "the steps of the instance that was never stopped",
                format!("other ones at step {step}"),
                "write in `save` every episode in progress: its state, its steps and the key",
            );
        }
    }
    Ok(())
}

fn leaks(exam: &mut Exam) -> Trial {
    let did = "acted in 4 instances for 3 times 200 steps";
    let mut session = fresh(exam)?;
    let mut held = Vec::new();
    for _ in 0..3 {
        path(&mut session, 4, 200).during(did)?;
        held.push(session.guest().memory.used());
    }
    match held[0] < held[1] && held[1] < held[2] {
        false => Ok(()),
        true => broken(
            did,
            "no more memory after 600 steps than after 200",
            format!("{held:?} bytes"),
            "forget in `reset` the episodes before",
        ),
    }
}

fn keyed(exam: &mut Exam) -> Trial {
    let did = "acted alike after two resets with the same key, other episodes in between";
    let mut session = fresh(exam)?;
    let first = path(&mut session, 4, 64).during(did)?;
    let size = spec_of(&mut session)?.observation.len();
    session.reset(2, &[0, 8], size).during(did)?;
    let second = path(&mut session, 4, 64).during(did)?;
    match first.iter().zip(&second).position(|(a, b)| a != b) {
        None => Ok(()),
        Some(step) => broken(
            did,
            "the same observations, rewards and ends",
            format!("other ones at step {step}"),
            "begin each episode from the key and the place of the instance alone; forget in `reset` what was",
        ),
    }
}

fn bounded(exam: &mut Exam) -> Trial {
    let mut session = fresh(exam)?;
    let spec = spec_of(&mut session)?;
    let size = spec.observation.len();
    let n = 8;
    let did = "acted at random in 8 instances for 400 steps";
    let mut draw = toy::Draw::new(4);
    let inside = |observations: &[f64]| {
        observations.iter().enumerate().find_map(|(place, x)| {
            let (low, high) = spec.observation[place % size];
            let slack = 1e-9 * (1.0 + x.abs());
            (*x < low - slack || *x > high + slack).then(|| {
                format!(
                    "number {} of an observation is {x}, declared from {low} to {high}",
                    place % size
                )
            })
        })
    };
    let mend = "declare the wider range, or clip what is shown";
    let expected = "finite observations within the ranges that `spec` declares, finite rewards, one last observation for each end";
    let wrong = |stop: crate::host::session::Death| match stop.cause {
        Cause::Other => broken(did, expected, super::exam::death_words(&stop), mend),
        _ => Err(stop).during(did),
    };
    let mut seen = match session.reset(n as u32, &[0, 9], size) {
        Ok(seen) => seen,
        Err(death) => return wrong(death),
    };
    for _ in 0..400 {
        if let Some(found) = inside(&seen) {
            return broken(did, expected, found, mend);
        }
        let t = match session.act(&actions(&spec, n, &mut draw), n, size) {
            Ok(t) => t,
            Err(death) => return wrong(death),
        };
        if let Some(found) = inside(&t.last_observations) {
            return broken(did, expected, found, mend);
        }
        seen = t.observations;
    }
    Ok(())
}

fn episodes(exam: &mut Exam) -> Trial {
    let mut session = fresh(exam)?;
    let spec = spec_of(&mut session)?;
    if spec.max_steps > MOST_STEPS {
        return super::exam::idle(format!(
            "an episode may have {} steps, the suite follows {MOST_STEPS}: set the option for fewer in conformance.toml",
            spec.max_steps
        ));
    }
    let (n, size) = (4, spec.observation.len());
    let did = format!(
        "acted at random in 4 instances for {} steps",
        spec.max_steps
    );
    session.reset(n as u32, &[0, 7], size).during(&did)?;
    let mut draw = toy::Draw::new(3);
    let mut ended = vec![false; n];
    for _ in 0..spec.max_steps {
        let t = session
            .act(&actions(&spec, n, &mut draw), n, size)
            .during(&did)?;
        for (i, ended) in ended.iter_mut().enumerate() {
            if t.terminated[i] && t.truncated[i] {
                return broken(
                    did,
                    "an end or a cut, not both",
                    format!("both of instance {i}"),
                    "a cut is for an episode that did not end by itself",
                );
            }
            *ended |= t.terminated[i] || t.truncated[i];
        }
    }
    match ended.iter().position(|ended| !ended) {
        None => Ok(()),
        Some(i) => broken(
            did,
            "that each first episode is over",
            format!("that of instance {i} goes on"),
            "set `truncated` at the last of `max-steps` steps, and begin another episode",
        ),
    }
}
