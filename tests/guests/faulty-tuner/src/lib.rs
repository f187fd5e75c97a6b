//! A tuner that keeps every law but the one it is told to break: what the conformance suite is for.

use espalier_sdk::options::{Setting, Value};
use espalier_sdk::state::{Reader, Writer};
use espalier_sdk::tuner::{Change, Domain, KnobInfo, MemberReport, Tuner};
use espalier_sdk::{Choice, Error, Options, RunInfo, random};

/// What is wrong with it.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Fault {
    Nothing,
    ForgetsAMember,
    LeavesTheDomain,
    MakesKnobsUp,
    CopiesItself,
    ChangesTheEnded,
    CopiesTheScoreless,
    PanicsWithoutScores,
    PanicsOnTies,
    Unsaved,
    LeaksMemory,
    PanicsAlone,
    PanicsOnNothing,
    NeverEnds,
    PanicsAlways,
}

/// Options under `[tuner.with]`.
#[derive(Options)]
struct Settings {
    /// The fault.
    #[option(default = Fault::Nothing)]
    fault: Fault,
}

struct Faulty {
    fault: Fault,
    space: Vec<KnobInfo>,
    members: u32,
    generation: u64,
    kept: Vec<Vec<u8>>,
}

impl Tuner for Faulty {
    type Options = Settings;

    fn new(
        _run: &RunInfo,
        settings: Settings,
        space: &[KnobInfo],
        members: u32,
    ) -> Result<Self, Error> {
        Ok(Faulty {
            fault: settings.fault,
            space: space.to_vec(),
            members,
            generation: 0,
            kept: Vec::new(),
        })
    }

    fn propose(&mut self) -> Vec<Vec<Setting>> {
        let mut all: Vec<Vec<Setting>> = (0..self.members)
            .map(|member| self.draw(0, u64::from(member)))
            .collect();
        match self.fault {
            Fault::ForgetsAMember => drop(all.pop()),
            Fault::MakesKnobsUp => all[0].push(("trainer.luck".into(), Value::Number(1.0))),
            _ => {}
        }
        all
    }

    fn decide(&mut self, members: &[MemberReport]) -> Vec<Change> {
        self.generation += 1;
        let scores: Vec<Option<f64>> = members.iter().map(|member| member.score).collect();
        match self.fault {
            Fault::LeaksMemory => self.kept.push(vec![1; 32 << 10]),
            Fault::PanicsAlone => assert!(members.len() != 1, "nobody to compare with"),
            Fault::PanicsOnNothing => assert!(!members.is_empty(), "nobody to change"),
            Fault::PanicsAlways => panic!("not written yet"),
            Fault::PanicsWithoutScores => {
                assert!(
                    scores.iter().all(Option::is_some),
                    "every member has a score"
                );
            }
            Fault::PanicsOnTies => {
                let equal =
                    scores.len() > 2 && scores.iter().all(|s| s.is_some() && *s == scores[0]);
                assert!(!equal, "one of them is the best");
            }
            Fault::NeverEnds => loop {
                std::hint::spin_loop();
            },
            _ => {}
        }
        let order = |a: &&MemberReport, b: &&MemberReport| {
            b.score
                .partial_cmp(&a.score)
                .unwrap_or(std::cmp::Ordering::Equal)
        };
        let mut ranked: Vec<&MemberReport> = members.iter().collect();
        ranked.sort_by(order);
        if self.fault == Fault::CopiesTheScoreless {
            ranked.sort_by_key(|member| member.score.is_some());
        }
        let changeable =
            |member: &&&MemberReport| self.fault == Fault::ChangesTheEnded || !member.done;
        let (Some(best), Some(worst)) = (ranked.first(), ranked.iter().rev().find(changeable))
        else {
            return Vec::new();
        };
        if best.score.is_none() && self.fault != Fault::CopiesTheScoreless
            || best.member == worst.member
        {
            return Vec::new();
        }
        let mut change = Change::of(worst.member);
        change.copy_from = Some(match self.fault {
            Fault::CopiesItself => worst.member,
            _ => best.member,
        });
        change.knobs = self.draw(self.generation, u64::from(worst.member));
        if self.fault == Fault::LeavesTheDomain {
            for (knob, (_, value)) in self.space.iter().zip(&mut change.knobs) {
                if let (Domain::Number(interval), Value::Number(x)) = (&knob.domain, value) {
                    *x = interval.high * 1.2;
                }
            }
        }
        vec![change]
    }

    fn save(&self) -> Vec<u8> {
        let generation = match self.fault {
            Fault::Unsaved => 0,
            _ => self.generation,
        };
        Writer::new(1).u64(generation).finish()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        let mut state = Reader::new(state, 1)?;
        self.generation = state.u64()?;
        state.end()
    }
}

impl Faulty {
    fn draw(&self, generation: u64, member: u64) -> Vec<Setting> {
        let n = self.space.len() as u32;
        let draws = random::uniform_list(&[generation, member], n);
        let each = self.space.iter().zip(draws);
        each.map(|(knob, u)| (knob.name.clone(), knob.domain.at(u)))
            .collect()
    }
}

espalier_sdk::export!(tuner: Faulty);
