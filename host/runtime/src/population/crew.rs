//! The members of a population at work: each is a whole run on a thread of its own, which waits for commands.
//!
//! A run's stores and tensors stay on one thread, so a member never moves. At most so many members work at once, one
//! thread each; who is ready first makes no difference, because answers are read in the order of the members.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use espalier_tensor::threads::Pool;

use crate::data::Dataset;
use crate::diagnostic::Diagnostic;
use crate::events::{Ending, Event, Finished, Observer, PluginCounters};
use crate::host::state::{RunState, Shared};
use crate::plan::{OptionValue, Plan, Slot};
use crate::run::{Part, Portrait, RunOptions, Runner};

/// What a member is made of.
pub(super) struct Setup {
    pub(super) plan: Plan,
    pub(super) parts: Vec<Part>,
    pub(super) options: RunOptions,
    /// The split that members are compared on.
    pub(super) split: String,
    /// The data, loaded once for all; nothing where there is an environment.
    pub(super) data: Dataset,
}

/// What a member is asked to do.
pub(super) enum Command {
    /// Start every plugin, from the folder's checkpoint if it goes on.
    Begin,
    /// Train until so many steps are done, then measure.
    Train(u64),
    /// Show everything that another member may take over.
    Sit,
    /// Take over another member.
    Copy(Arc<Portrait>),
    /// Set knobs.
    Set(Vec<(String, OptionValue)>),
    /// Train no more.
    Stop,
    /// Write a checkpoint.
    Save,
    /// End the run: measure on every split, write the last checkpoint.
    Finish,
    /// Say what the plugins have cost.
    Count,
}

/// What a member answers.
pub(super) enum Answer {
    /// It has begun; epochs and rounds have so many steps.
    Begun { lengths: (u64, u64), steps: u64 },
    /// It has trained.
    Trained(Standing),
    /// It was told to stop on the way.
    Cancelled,
    /// What others may take over.
    Portrait(Arc<Portrait>),
    /// It has ended.
    Finished(Finished),
    /// What its plugins have cost.
    Costs(Vec<PluginCounters>),
    /// It has done what it was asked.
    Done,
}

/// How a member stands after training.
pub(super) struct Standing {
    pub(super) steps: u64,
    pub(super) over: bool,
    pub(super) metrics: BTreeMap<String, f64>,
}

struct Reply {
    member: usize,
    answer: Result<Answer, Diagnostic>,
    said: Vec<Event>,
}

/// The answers of some members, and what happened in them meanwhile, in the order of the members.
pub(super) type Answers = BTreeMap<usize, (Answer, Vec<Event>)>;

/// The members.
pub(super) struct Crew {
    commands: Vec<Sender<Command>>,
    replies: Receiver<Reply>,
    threads: Vec<JoinHandle<()>>,
    at_once: usize,
}

impl Crew {
    /// A thread for each member; `at_once` of them work at a time.
    pub(super) fn new(members: Vec<Setup>, at_once: usize) -> Result<Crew, Diagnostic> {
        let (answer, replies) = mpsc::channel();
        let mut crew = Crew {
            commands: Vec::new(),
            replies,
            threads: Vec::new(),
            at_once: at_once.max(1),
        };
        for (member, setup) in members.into_iter().enumerate() {
            let (command, commands) = mpsc::channel();
            let answer = answer.clone();
            let thread = std::thread::Builder::new()
                .name(format!("member-{member}"))
                .spawn(move || stay(member, setup, commands, answer))
                .map_err(|error| {
                    Diagnostic::new("the threads of the members could not be started")
                        .because(&error)
                        .help("lower `members` in [tuner]")
                })?;
            crew.commands.push(command);
            crew.threads.push(thread);
        }
        Ok(crew)
    }

    /// Gives each named member a command and waits for all answers. After an error no further member begins.
    pub(super) fn ask(
        &mut self,
        commands: impl IntoIterator<Item = (usize, Command)>,
    ) -> Result<Answers, Diagnostic> {
        let mut waiting = commands.into_iter();
        let mut answers = Answers::new();
        let mut errors: BTreeMap<usize, Diagnostic> = BTreeMap::new();
        let mut working = 0;
        loop {
            while working < self.at_once
                && errors.is_empty()
                && let Some((member, command)) = waiting.next()
            {
                if self.commands[member].send(command).is_err() {
                    errors.insert(member, gone());
                    break;
                }
                working += 1;
            }
            if working == 0 {
                break;
            }
            // A thread that dies says so as it goes, so this cannot wait for nobody.
            let Ok(reply) = self.replies.recv() else {
                return Err(gone());
            };
            working -= 1;
            match reply.answer {
                Ok(answer) => {
                    answers.insert(reply.member, (answer, reply.said));
                }
                Err(error) => {
                    errors.insert(reply.member, error);
                }
            }
        }
        match errors.pop_first() {
            Some((member, error)) => Err(error.detail("member", member.to_string())),
            None => Ok(answers),
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        // Without a sender each thread comes to its end.
        self.commands.clear();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn gone() -> Diagnostic {
    Diagnostic::new("a member of the population is gone")
        .detail("because", "its thread has ended")
        .help("this is an error of the host, please report it")
}

/// Sends an answer for a thread that panics.
struct Farewell {
    member: usize,
    replies: Sender<Reply>,
}

impl Drop for Farewell {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.replies.send(Reply {
                member: self.member,
                answer: Err(gone()),
                said: Vec::new(),
            });
        }
    }
}

/// What happens in a run, kept until the population asks.
#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Vec<Event>>>);

impl Observer for Diary {
    fn event(&mut self, event: &Event) {
        // Steps stand in the member's own folder; there would be too many of them here.
        if !matches!(event, Event::Step { .. } | Event::Checkpoint { .. }) {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.push(event.clone());
        }
    }
}

impl Diary {
    fn take(&self) -> Vec<Event> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether a split was measured after so many steps.
    fn has_measured(&self, wanted: &str, at: u64) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().any(|event| {
            matches!(event, Event::Evaluated { split, step, .. } if split == wanted && *step == at)
        })
    }
}

/// A member's thread.
fn stay(member: usize, setup: Setup, commands: Receiver<Command>, replies: Sender<Reply>) {
    let farewell = Farewell {
        member,
        replies: replies.clone(),
    };
    // Kernels of a member run on one thread: the members are what is parallel.
    match Pool::new(1) {
        Ok(pool) => pool.install(move || serve(member, setup, &commands, &replies)),
        Err(error) => {
            let error = Diagnostic::new("the threads could not be started").because(&error);
            let _ = replies.send(Reply {
                member,
                answer: Err(error),
                said: Vec::new(),
            });
        }
    }
    drop(farewell);
}

fn serve(member: usize, setup: Setup, commands: &Receiver<Command>, replies: &Sender<Reply>) {
    let diary = Diary::default();
    let tell = |answer| {
        let said = diary.take();
        // Nobody listens only when the population has come to its end.
        let _ = replies.send(Reply {
            member,
            answer,
            said,
        });
    };
    let Ok(Command::Begin) = commands.recv() else {
        return;
    };
    let Setup {
        plan,
        parts,
        options,
        split,
        data,
    } = setup;
    let mut observer = diary.clone();
    let shared = Rc::new(Shared::new(RunState {
        data,
        ..RunState::empty(plan.seed)
    }));
    let mut runner = match Runner::new(&plan, &options, parts, &mut observer, shared) {
        Ok(runner) => runner,
        Err(error) => return tell(Err(error)),
    };
    tell(Ok(Answer::Begun {
        lengths: runner.lengths(),
        steps: runner.progress.steps_done,
    }));
    // Pruners may change the model after the measurement at the end of an epoch.
    let prunes = plan.plugins.iter().any(|p| p.slot == Slot::Pruner);
    while let Ok(command) = commands.recv() {
        tell(obey(&mut runner, command, |runner| {
            let measured = diary.has_measured(&split, runner.progress.steps_done);
            match measured && !prunes {
                true => Ok(()),
                false => runner.measure_now(&split),
            }
        }));
    }
    runner.release();
}

fn obey(
    runner: &mut Runner<'_>,
    command: Command,
    measure: impl FnOnce(&mut Runner<'_>) -> Result<(), Diagnostic>,
) -> Result<Answer, Diagnostic> {
    match command {
        Command::Begin => {}
        Command::Train(until) => {
            let Some(over) = runner.train_until(until)? else {
                return Ok(Answer::Cancelled);
            };
            measure(runner)?;
            return Ok(Answer::Trained(Standing {
                steps: runner.progress.steps_done,
                over,
                metrics: runner.progress.metrics.clone(),
            }));
        }
        Command::Sit => return Ok(Answer::Portrait(Arc::new(runner.portrait()?))),
        Command::Copy(portrait) => runner.become_copy(&portrait)?,
        Command::Set(knobs) => runner.set_knobs(&knobs)?,
        Command::Stop => runner.stop(),
        Command::Save => runner.checkpoint()?,
        Command::Finish => {
            runner.stop();
            if let Some(Ending::Finished(finished)) = runner.advance()? {
                return Ok(Answer::Finished(finished));
            }
        }
        Command::Count => return Ok(Answer::Costs(runner.costs())),
    }
    Ok(Answer::Done)
}
