//! The conformance suite: what every plugin of a slot must keep to, tried on the component as a black box.
//!
//! Promise: the plugin meets the same runner, sessions and budgets as in a run, on toy problems that the host
//! makes up, so that the suite needs no files and a few seconds. Each [`Law`] is judged by itself and says what was
//! done, what was expected, what came and the mend. A law that does not concern a plugin is reported so, with the
//! reason.
//!
//! Limit of the promise: a law that holds here holds on these problems. The suite finds what is broken, it does
//! not show that a method is good.

mod architecture;
mod auditor;
mod bench;
mod company;
mod exam;
mod laws;
mod normalizer;
mod pruner;
mod searcher;
mod setup;
mod tasks;
mod toy;
mod trainer;
mod transform;
mod tuner;
mod world;

use std::time::Instant;

use serde::Serialize;

use crate::component::{self, World};
use crate::diagnostic::Diagnostic;
use crate::host::bindings::trainer::espalier::plugin::run::RunInfo;
use crate::plan::Slot;

pub use company::{COMPANY, Company, company};
pub use laws::{LAWS, Law, laws_of};
pub use setup::{Problem, Setup};

use bench::Bench;
use exam::Exam;

/// What was found out about one law.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "verdict")]
pub enum Verdict {
    /// It holds.
    Pass,
    /// It is broken.
    Fail(Fault),
    /// It does not concern this plugin.
    NotApplicable {
        /// Why.
        reason: String,
    },
}

/// How a law was broken.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fault {
    /// What the suite did.
    pub did: String,
    /// What should have come of it.
    pub expected: String,
    /// What came.
    pub found: String,
    /// What to change.
    pub mend: String,
}

/// A law and what was found out about it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    /// The law's name.
    pub law: &'static str,
    /// What it demands, in a sentence.
    pub demands: &'static str,
    /// The verdict.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// What the suite found out about a plugin.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The plugin's name for itself.
    pub plugin: String,
    /// Its version.
    pub version: String,
    /// The slot it fills.
    pub slot: Slot,
    /// SHA-256 of the component, hexadecimal.
    pub sha256: String,
    /// Its size in bytes.
    pub size: u64,
    /// The problem it was tried on.
    pub problem: String,
    /// Every law of the slot, in their order.
    pub findings: Vec<Finding>,
    /// How long it took.
    pub seconds: f64,
}

impl Report {
    /// Whether no law is broken.
    pub fn passed(&self) -> bool {
        self.broken().next().is_none()
    }

    /// The laws that are broken, with their faults.
    pub fn broken(&self) -> impl Iterator<Item = (&'static str, &Fault)> {
        self.findings
            .iter()
            .filter_map(|finding| match &finding.verdict {
                Verdict::Fail(fault) => Some((finding.law, fault)),
                _ => None,
            })
    }
}

/// Tries a component on the laws of its slot. `source` is how the person knows it: a name or a file.
///
/// # Errors
/// Bytes that are no component of any slot, and options of the setup that the plugin does not have.
pub fn check(source: &str, bytes: &[u8], setup: &Setup) -> Result<Report, Diagnostic> {
    let began = Instant::now();
    let loaded = component::load(source, bytes)?;
    let (slot, world) = (loaded.slot, loaded.world);
    let (sha256, size) = (loaded.sha256.clone(), loaded.size);
    let mut exam = Exam::new(source, loaded, setup)?;
    let about = exam.identity();
    match world {
        World::Normalizer | World::NormalizerTracking => normalizer::examine(&mut exam),
        World::Trainer => trainer::examine(&mut exam, &Bench::new()?),
        World::Pruner => pruner::examine(&mut exam, &Bench::new()?),
        World::Auditor => auditor::examine(&mut exam, &Bench::new()?),
        World::Transform => transform::examine(&mut exam, &Bench::new()?),
        World::Tasks => tasks::examine(&mut exam),
        World::Mdp => world::examine(&mut exam),
        World::Tuner => tuner::examine(&mut exam),
        World::Architecture => architecture::examine(&mut exam, &Bench::new()?),
        World::Searcher => searcher::examine(&mut exam, &Bench::new()?),
    }
    Ok(Report {
        plugin: about.0,
        version: about.1,
        slot,
        sha256,
        size,
        problem: exam.problem.clone(),
        findings: exam.findings(),
        seconds: began.elapsed().as_secs_f64(),
    })
}

/// What a plugin is told of a run of so many steps.
fn info(setup: &Setup, steps: u64) -> RunInfo {
    RunInfo {
        seed: setup.seed,
        stage: 0,
        steps,
        steps_per_epoch: steps.div_ceil(3).max(1),
        batch_size: 8,
        rank: 0,
        world: 1,
    }
}
