//! Runs of the plugin with the real runner, in a temporary folder: a plan for each toy problem, driven step by step
//! so that the laws can look between steps.

use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use espalier_tensor::account::NODE_BYTES;
use espalier_tensor::threads;

use super::company::company;
use super::exam::{Exam, Stop, broken, death_words, elsewhere};
use super::{Problem, laws, toy};
use crate::component;
use crate::diagnostic::Diagnostic;
use crate::host::state::{RunState, SetId, Shared};
use crate::parameters::ParameterSet;
use crate::plan::{Plan, Slot};
use crate::run::{Part, RunOptions, Runner};
use crate::runfile::{self, Overrides};

/// The name under which the plugin runs.
pub(super) const SUBJECT: &str = "the-plugin";

/// Most rounds of a run: a pruner that always rewinds never ends.
pub(super) const MOST_ROUNDS: u32 = 64;

/// A temporary folder, removed with this value.
pub(super) struct Bench {
    folder: PathBuf,
    runs: std::cell::Cell<u32>,
}

/// What a run is made of.
#[derive(Clone, Debug)]
pub(super) struct Trial<'a> {
    /// The problem.
    pub(super) problem: Problem,
    /// Its size.
    pub(super) size: Size,
    /// Steps of a round.
    pub(super) steps: u64,
    /// Threads.
    pub(super) threads: usize,
    /// Options over those of the setup.
    pub(super) options: Vec<(&'a str, crate::plan::OptionValue)>,
}

/// How large a problem is, and what is special about its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// As it should be.
    Ordinary,
    /// The same with a frozen first layer, and a normalisation.
    Frozen,
    /// One sample, one layer.
    Tiny,
    /// Nothing to train, or for a pruner nothing to prune.
    Empty,
}

/// What came of a run that did not end well.
pub(super) enum Halt {
    /// The plugin refused to start, in these words.
    Refused(String),
    /// A law says so itself.
    Stop(Stop),
}

impl From<Stop> for Halt {
    fn from(stop: Stop) -> Halt {
        Halt::Stop(stop)
    }
}

impl Bench {
    pub(super) fn new() -> Result<Bench, Diagnostic> {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("espalier-conformance-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&folder).map_err(|error| {
            Diagnostic::new(format!("`{}` could not be made", folder.display())).because_io(&error)
        })?;
        Ok(Bench {
            folder,
            runs: std::cell::Cell::new(0),
        })
    }

    /// A folder for one more run.
    pub(super) fn out(&self) -> PathBuf {
        self.runs.set(self.runs.get() + 1);
        self.folder.join(format!("run{}", self.runs.get()))
    }

    /// The plan of a run with the plugin in its slot.
    fn plan(&self, exam: &Exam, trial: &Trial) -> Result<Plan, Diagnostic> {
        let slot = exam.loaded.slot;
        let file = self.folder.join("trial.toml");
        let text = toy::run_file(slot, trial, SUBJECT);
        let problem = |error: std::io::Error| {
            Diagnostic::new(format!("`{}` could not be written", self.folder.display()))
                .because_io(&error)
        };
        if matches!(trial.problem, Problem::Classes | Problem::Values) {
            let (inputs, targets) = toy::samples(trial.problem, trial.size);
            std::fs::write(self.folder.join("inputs.npy"), inputs).map_err(problem)?;
            std::fs::write(self.folder.join("targets.npy"), targets).map_err(problem)?;
        }
        if trial.problem == Problem::Text {
            std::fs::write(self.folder.join("text.txt"), toy::text(trial.size)).map_err(problem)?;
        }
        std::fs::write(&file, text).map_err(problem)?;
        let sets = toy::layers(&exam.setup.layers, trial)
            .map(|layers| ("model.layers".to_string(), layers));
        let overrides = Overrides {
            sets: sets.into_iter().collect(),
            ..Overrides::default()
        };
        let mut plan = runfile::load(&file, &overrides)?;
        plan.seed = exam.setup.seed;
        plan.threads = trial.threads;
        for plugin in &mut plan.plugins {
            plugin.limits = exam.setup.limits.clone();
            if plugin.name == SUBJECT {
                plugin.options = exam.setup.options.clone();
                for (name, value) in &trial.options {
                    plugin.options.insert(name.to_string(), value.clone());
                }
            }
        }
        Ok(plan)
    }

    fn parts(&self, exam: &Exam, plan: &Plan) -> Result<Vec<Part>, Diagnostic> {
        let mut parts = Vec::new();
        for plugin in &plan.plugins {
            let loaded = match company(&plugin.name) {
                Some(one) => component::load(one.name, one.bytes)?,
                None => exam.loaded.clone(),
            };
            let version = component::describe(&plugin.name, &loaded)?.version;
            parts.push(Part::new(plugin, &version, loaded)?);
        }
        Ok(parts)
    }

    /// Begins a run, or goes on with one, and hands it to `work`.
    pub(super) fn run<T: Send>(
        &self,
        exam: &Exam,
        trial: &Trial,
        (out, resume): (&Path, bool),
        work: impl FnOnce(&mut Runner, &Shared) -> Result<T, Stop> + Send,
    ) -> Result<T, Halt> {
        let did = toy::words(exam.loaded.slot, trial);
        let prepared = self
            .plan(exam, trial)
            .and_then(|plan| Ok((self.parts(exam, &plan)?, plan)));
        let (parts, plan) = match prepared {
            Ok(prepared) => prepared,
            Err(error) => {
                return Err(Halt::Stop(failed(&did, &error)));
            }
        };
        let options = RunOptions {
            out: Some(out.to_path_buf()).filter(|_| !resume),
            resume: Some(out.to_path_buf()).filter(|_| resume),
            registry: PathBuf::new(),
            cancel: Arc::new(AtomicBool::new(false)),
        };
        let pool = threads::Pool::new(trial.threads).map_err(|error| {
            let error = Diagnostic::new("the threads could not be started").because(&error);
            Halt::Stop(failed(&did, &error))
        })?;
        pool.install(|| {
            let shared = Rc::new(Shared::new(RunState::empty(plan.seed)));
            let mut observer = ();
            let begun = Runner::new(&plan, &options, parts, &mut observer, shared.clone());
            let mut runner = match begun {
                Ok(runner) => runner,
                Err(error)
                    if error.what == format!("plugin `{SUBJECT}` refuses to start")
                        || error.what
                            == format!("plugin `{SUBJECT}` refuses to build its layers") =>
                {
                    let words = error.details.first().map(|(_, text)| text.clone());
                    return Err(Halt::Refused(words.unwrap_or_default()));
                }
                Err(error) => return Err(Halt::Stop(stop(&shared, &did, &error))),
            };
            let result = work(&mut runner, &shared);
            runner.release();
            result.map_err(Halt::Stop)
        })
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // What is left behind is a temporary file more; nothing can be done about it here.
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn failed(did: &str, error: &Diagnostic) -> Stop {
    match broken::<()>(
        did,
        "that the run goes through",
        error.to_string(),
        "mend what the error names",
    ) {
        Err(stop) => stop,
        Ok(()) => Stop::Idle(String::new()),
    }
}

/// An error of the runner: the plugin's death, or what it led to.
pub(super) fn stop(shared: &Shared, did: &str, error: &Diagnostic) -> Stop {
    let predicted = format!("plugin `{SUBJECT}` predicted something that");
    match shared.death.borrow_mut().take() {
        // The host refuses a mask that is none where it is set.
        Some(death)
            if death.plugin == SUBJECT && death_words(&death).contains("a mask holds 0 and 1") =>
        {
            elsewhere(laws::MASKS, failed(did, error))
        }
        _ if error.what.starts_with(&format!("transform `{SUBJECT}` ")) => {
            elsewhere(laws::SPLITS, failed(did, error))
        }
        _ if error
            .to_string()
            .contains("made another batch of a training batch") =>
        {
            elsewhere(laws::BATCHES, failed(did, error))
        }
        _ if error.what == format!("searcher `{SUBJECT}` gave an answer that can't be") => {
            elsewhere(laws::ANSWERS, failed(did, error))
        }
        _ if error.what.starts_with(&predicted) => elsewhere(laws::PREDICTS, failed(did, error)),
        Some(death) if death.plugin == SUBJECT => Stop::Died {
            did: did.to_string(),
            death: Box::new(death),
        },
        _ => failed(did, error),
    }
}

/// What a run left.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Left {
    /// Steps done.
    pub(super) steps: u64,
    /// Parameters and masks of the run, in a digest.
    pub(super) digest: String,
    /// What the host measured.
    pub(super) metrics: Vec<(String, u64)>,
}

/// Handles and tensor bytes that a plugin held after a step.
pub(super) type Held = (u64, u64);

/// Drives a run to its end. `watch` looks after each step.
pub(super) fn drive(
    runner: &mut Runner,
    shared: &Shared,
    did: &str,
    mut watch: impl FnMut(&mut Runner) -> Result<(), Stop>,
) -> Result<(), Stop> {
    loop {
        let ended = runner
            .advance()
            .map_err(|error| stop(shared, did, &error))?;
        watch(runner)?;
        if ended.is_some() {
            return Ok(());
        }
        if runner.progress.round > MOST_ROUNDS {
            return broken(
                did,
                format!("that the run ends within {MOST_ROUNDS} rounds"),
                "it rewinds once more",
                "count the rounds, remember the count in `save`, and answer `continue` after the last; `options` in conformance.toml may ask for fewer",
            )
            .map_err(|stop| elsewhere(laws::ENDS, stop));
        }
    }
}

/// What a run has come to.
pub(super) fn left(runner: &Runner) -> Left {
    let run = runner.shared.run.borrow();
    let digest = run
        .sets
        .get(&SetId::Main)
        .and_then(|set| set.content_digest().ok())
        .unwrap_or_default();
    let measured = runner.progress.metrics.iter();
    let mut metrics: Vec<(String, u64)> = measured
        .map(|(name, x)| (name.clone(), x.to_bits()))
        .collect();
    if let Some(search) = &run.rollouts.search {
        let answers = search.answers.iter().flat_map(|(prompt, tokens)| {
            let tokens = tokens.iter().map(|token| u64::from(*token));
            [*prompt, tokens.len() as u64].into_iter().chain(tokens)
        });
        let hash = answers.fold(0xcbf2_9ce4_8422_2325u64, |hash, word| {
            (hash ^ word).wrapping_mul(0x0100_0000_01b3)
        });
        metrics.push(("hash of the answers".into(), hash));
    }
    Left {
        steps: runner.progress.steps_done,
        digest: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
        metrics,
    }
}

/// What the plugin holds now.
pub(super) fn held(runner: &Runner, slot: Slot) -> Held {
    let of = |session: &crate::host::session::Session| {
        let guest = session.guest();
        let nodes = guest.account.live_nodes() * NODE_BYTES;
        (guest.handles() as u64, guest.account.used_bytes() + nodes)
    };
    match slot {
        Slot::Trainer => runner.shared.trainer.borrow().as_ref().map(of),
        Slot::Architecture => runner.shared.architecture.borrow().as_ref().map(of),
        Slot::Searcher => runner.searcher.as_ref().map(of),
        Slot::Transform => {
            let transforms = runner.shared.transforms.borrow();
            transforms.first().map(|(session, _)| of(session))
        }
        _ => runner
            .pruners
            .first()
            .and_then(|pruner| pruner.session.as_ref())
            .map(of),
    }
    .unwrap_or_default()
}

/// Looks at the run's parameters.
pub(super) fn main_set<T>(runner: &Runner, f: impl FnOnce(&ParameterSet) -> T) -> Option<T> {
    runner.shared.run.borrow().sets.get(&SetId::Main).map(f)
}

/// How two runs that should be alike differ.
pub(super) fn unlike(one: &Left, two: &Left) -> Option<String> {
    if one == two {
        return None;
    }
    if one.steps != two.steps {
        return Some(format!("{} and {} steps", one.steps, two.steps));
    }
    if one.digest != two.digest {
        return Some(format!(
            "other parameters or masks: sha256 {} and {}",
            &one.digest[..12],
            &two.digest[..12]
        ));
    }
    let differing = one.metrics.iter().zip(&two.metrics).find(|(a, b)| a != b);
    Some(match differing {
        Some(((name, a), (_, b))) => {
            format!("{name}: {} and {}", f64::from_bits(*a), f64::from_bits(*b))
        }
        None => "other measurements".into(),
    })
}
