//! A population: whole runs side by side, compared by a metric and steered by a tuner.
//!
//! ```text
//! start every member, then the tuner; tuner.propose
//! for each generation
//!     every member trains for a while, on a thread of its own, and is measured
//!     tuner.decide                           copies are taken of the members as they are, then made
//!                                            knobs are set
//!     every member is made safe, then the population is
//! the best member ends as a run does: measured on the test split, its last checkpoint is the population's
//! ```
//!
//! Promises: one plan gives one result, to the last bit, whatever the number of threads, interrupted or not. Nothing
//! depends on which member is ready first: decisions wait for all, and answers are read in the order of the members.
//! The members are compared by a split that the result is not reported on.
//!
//! In the folder: `members/N` is a run folder of its own, `metrics.jsonl` has what was measured of each member with its
//! number, `schedule.jsonl` a line for each member and generation, `schedule.json` the winner's way, and
//! `population.json` is what a resume begins from. It is written last, so the checkpoints that it names are there;
//! those that are newer are taken away.

mod crew;
mod history;
pub(crate) mod space;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use espalier_tensor::random::{self, Key};
use espalier_tensor::threads::Pool;

use crate::checkpoint;
use crate::component::{option_value, wit_value};
use crate::data::{self, Dataset};
use crate::diagnostic::Diagnostic;
use crate::events::{
    Copied, Ending, Event, Finished, Generation, Leader, Observer, PluginCounters,
};
use crate::folder::RunFolder;
use crate::host::bindings::trainer::espalier::plugin::options::Value;
use crate::host::bindings::trainer::espalier::plugin::run::Metric;
use crate::host::bindings::tuner::exports::espalier::plugin::tuning::{
    Change, KnobInfo, MemberReport,
};
use crate::host::session::{Called, Session};
use crate::plan::{CheckpointPlan, Every, Plan, PopulationPlan, Slot};
use crate::profile;
use crate::run::{Part, RunOptions, cost_of, lock_of};

use crew::{Answer, Answers, Command, Crew, Setup};
use history::{Kept, Knobs, State, Stretch, score};

/// First word of the random key from which the members' seeds come.
const SEEDS: u64 = 0x504f_5055_4c41_5445;

/// Carries out a plan with a population. `parts` are the plan's plugins, the tuner among them.
///
/// # Errors
/// As a run's, with the member's number; knobs that cannot be turned; answers of the tuner that cannot be.
pub(crate) fn execute(
    plan: &Plan,
    population: &PopulationPlan,
    run: &RunOptions,
    parts: Vec<Part>,
    observer: &mut (dyn Observer + Send),
) -> Result<Ending, Diagnostic> {
    if profile::take().is_some() {
        return Err(Diagnostic::new(
            "a population cannot be profiled: its members work at the same time",
        )
        .help("remove [tuner] and profile one run"));
    }
    let split = compared_on(plan, population)?;
    let trainer = parts.iter().find(|part| part.slot() == Slot::Trainer);
    let trainer = trainer.ok_or_else(|| {
        Diagnostic::new("a population needs a trainer: its members train")
            .help("add a [trainer], or remove [tuner]")
    })?;
    let space = space::check(plan, population, trainer)?;
    let pool = Pool::new(1)
        .map_err(|error| Diagnostic::new("the threads could not be started").because(&error))?;
    pool.install(|| {
        Population::begin(plan, population, run, parts, space, &split, observer)?.drive()
    })
}

/// The split of the metric. The one that results are reported on is no one to choose by.
fn compared_on(plan: &Plan, population: &PopulationPlan) -> Result<String, Diagnostic> {
    let metric = &population.metric;
    let split = metric.split('/').next().unwrap_or_default();
    let wrong = |what: String, help: &str| Err(Diagnostic::new(what).at("tuner.metric").help(help));
    match &plan.data {
        Some(_) if split == "test" => wrong(
            format!("`{metric}` would choose by the samples that the result is reported on"),
            "compare by \"validation/..\", and set data.validation",
        ),
        Some(data) if split == "validation" && data.validation == 0.0 => wrong(
            format!("there is no split to measure `{metric}` on"),
            "set data.validation, as validation = 0.2",
        ),
        _ => Ok(split.to_string()),
    }
}

/// The seed of a member; the first one has the run's, and is the run that there would be without the others.
fn seed_of(seed: u64, member: u32) -> u64 {
    if member == 0 {
        return seed;
    }
    let key = Key::new(&[SEEDS, seed, u64::from(member)]);
    let word = random::bits(&key, 1).first().copied().unwrap_or_default();
    // A lock is TOML, which has no word for the upper half.
    word >> 1
}

/// What a member's own run looks like.
fn plan_of(plan: &Plan, member: u32) -> Plan {
    Plan {
        name: format!("{}, member {member}", plan.name),
        seed: seed_of(plan.seed, member),
        threads: 1,
        plugins: plan
            .plugins
            .iter()
            .filter(|plugin| plugin.slot != Slot::Tuner)
            .cloned()
            .collect(),
        checkpoint: CheckpointPlan {
            every: CheckpointPlan::ASKED,
            // The one that the population's document names, and the one after it.
            keep: plan.checkpoint.keep.max(2),
        },
        population: None,
        ..plan.clone()
    }
}

fn folder_of(folder: &Path, member: u32) -> PathBuf {
    folder.join("members").join(member.to_string())
}

struct Population<'a> {
    plan: &'a Plan,
    population: &'a PopulationPlan,
    run: &'a RunOptions,
    space: Vec<KnobInfo>,
    folder: RunFolder,
    crew: Crew,
    tuner: Session,
    state: State,
    lengths: (u64, u64),
    started: Instant,
    seconds_before: f64,
    observer: &'a mut (dyn Observer + Send),
}

impl<'a> Population<'a> {
    fn begin(
        plan: &'a Plan,
        population: &'a PopulationPlan,
        run: &'a RunOptions,
        parts: Vec<Part>,
        space: Vec<KnobInfo>,
        split: &str,
        observer: &'a mut (dyn Observer + Send),
    ) -> Result<Population<'a>, Diagnostic> {
        let lock = lock_of(plan, &parts);
        let (tuners, parts): (Vec<Part>, Vec<Part>) = parts
            .into_iter()
            .partition(|part| part.slot() == Slot::Tuner);
        let tuner = tuners.first().ok_or_else(|| {
            Diagnostic::new("the population has no tuner").help("add plugin = \"pbt\" to [tuner]")
        })?;
        let (mut folder, state) = match &run.resume {
            Some(dir) => {
                let folder = RunFolder::open(dir, &lock)?;
                let state = State::read(folder.path())?;
                (folder, state)
            }
            None => (
                RunFolder::create(run.out.as_deref(), &plan.name, &lock)?,
                None,
            ),
        };
        let began = Self::start(plan, population, run, parts, &folder, state.as_ref(), split);
        let started = began.and_then(|(crew, lengths, said)| {
            let session = tuner.start_tuner(plan, lengths, &space, population.members)?;
            Ok((crew, lengths, said, session))
        });
        let (crew, lengths, said, session) = match started {
            Ok(started) => started,
            Err(error) => {
                if run.resume.is_none() {
                    let _ = std::fs::remove_dir_all(folder.path().join("members"));
                    folder.discard();
                }
                return Err(error);
            }
        };
        folder.truncate_metrics(state.as_ref().map_or(0, |state| state.metrics_bytes))?;
        for event in said {
            match event {
                Event::Composition(mut composition) => {
                    composition.name = plan.name.clone();
                    composition.threads = plan.threads;
                    composition.plugins.push(tuner.composed());
                    let every = match population.every {
                        Every::Epochs(n) => format!("{n} epochs"),
                        Every::Steps(n) => format!("{n} steps"),
                    };
                    composition.schedule.push_str(&format!(
                        "; {} members, compared by {} every {every}",
                        population.members, population.metric
                    ));
                    observer.event(&Event::Composition(composition));
                }
                Event::Warning { .. } => observer.event(&event),
                _ => {}
            }
        }
        let resumed = state.is_some();
        let mut all = Population {
            plan,
            population,
            run,
            space,
            folder,
            crew,
            tuner: session,
            seconds_before: state.as_ref().map_or(0.0, |state| state.seconds),
            state: state.unwrap_or_else(|| State::new(lengths.0, Vec::new())),
            lengths,
            started: Instant::now(),
            observer,
        };
        let step = all.steps();
        all.tell(Event::Started {
            run: all.folder.path().to_path_buf(),
            step,
            of: Some(lengths.1.max(step)),
        })?;
        match resumed {
            true => all.go_on()?,
            false => all.propose()?,
        }
        Ok(all)
    }

    /// Every member, started or where it was when the population was last made safe.
    #[allow(clippy::type_complexity)]
    fn start(
        plan: &Plan,
        population: &PopulationPlan,
        run: &RunOptions,
        parts: Vec<Part>,
        folder: &RunFolder,
        state: Option<&State>,
        split: &str,
    ) -> Result<(Crew, (u64, u64), Vec<Event>), Diagnostic> {
        if state.is_none() {
            // Stopped before the first generation was over: every step is done again.
            clear(&folder.path().join("members"))?;
        }
        let data = match &plan.data {
            Some(from) => data::load(from)
                .map_err(|error| Diagnostic::new("the data could not be loaded").because(&error))?,
            None => Dataset::default(),
        };
        let mut setups = Vec::new();
        for member in 0..population.members {
            let own = folder_of(folder.path(), member);
            if let Some(state) = state {
                cut(&own, state.members.get(member as usize).map(|m| m.steps))?;
            }
            let (out, resume) = match state {
                Some(_) => (None, Some(own)),
                None => (Some(own), None),
            };
            setups.push(Setup {
                plan: plan_of(plan, member),
                parts: parts.clone(),
                options: RunOptions {
                    out,
                    resume,
                    registry: run.registry.clone(),
                    cancel: run.cancel.clone(),
                },
                split: split.to_string(),
                data: data.clone(),
            });
        }
        let members = setups.len();
        let mut crew = Crew::new(setups, plan.threads)?;
        let answers = crew.ask((0..members).map(|member| (member, Command::Begin)))?;
        let mut lengths = (1, 1);
        let mut said = Vec::new();
        for (member, (answer, events)) in answers {
            let Answer::Begun {
                lengths: own,
                steps,
            } = answer
            else {
                continue;
            };
            let expected = state.and_then(|s| s.members.get(member)).map(|m| m.steps);
            if expected.is_some_and(|expected| expected != steps) {
                return Err(Diagnostic::new(format!(
                    "member {member} has no checkpoint of the moment at which the population was made safe"
                ))
                .expected(format!("one of step {}", expected.unwrap_or_default()))
                .found(format!("one of step {steps}"))
                .help("bring its folder back from a copy, or begin a new run"));
            }
            lengths = own;
            if member == 0 {
                said = events;
            }
        }
        Ok((crew, lengths, said))
    }

    fn whereabouts(&self) -> String {
        format!(
            "generation {} of run `{}`",
            self.state.generations.len(),
            self.plan.name
        )
    }

    /// Steps that the members have done, the one that has done most.
    fn steps(&self) -> u64 {
        let steps = self.state.members.iter().map(|member| member.steps);
        steps.max().unwrap_or_default()
    }

    fn tell(&mut self, event: Event) -> Result<(), Diagnostic> {
        self.folder.record(&event)?;
        self.observer.event(&event);
        Ok(())
    }

    /// Passes on what happened in the members, with their numbers.
    fn tell_of(&mut self, member: usize, events: Vec<Event>) -> Result<(), Diagnostic> {
        for told in events {
            // Only the best member is audited, at its end: that is the population's audit.
            if let Event::Audited(_) = told {
                self.tell(told)?;
                continue;
            }
            if matches!(
                told,
                Event::Evaluated { .. }
                    | Event::PluginMetric { .. }
                    | Event::Pruned { .. }
                    | Event::Rewound { .. }
                    | Event::Log { .. }
                    | Event::Warning { .. }
            ) {
                self.tell(Event::Member {
                    member: member as u32,
                    told: Box::new(told),
                })?;
            }
        }
        Ok(())
    }

    fn tell_all(&mut self, answers: Answers) -> Result<BTreeMap<usize, Answer>, Diagnostic> {
        let mut plain = BTreeMap::new();
        for (member, (answer, said)) in answers {
            self.tell_of(member, said)?;
            plain.insert(member, answer);
        }
        Ok(plain)
    }

    /// Calls the tuner, and passes on what it said.
    fn ask_tuner<T>(&mut self, call: impl Fn(&mut Session) -> Called<T>) -> Result<T, Diagnostic> {
        let result = call(&mut self.tuner);
        let said = std::mem::take(&mut *self.tuner.guest().shared.events.borrow_mut());
        for event in said {
            self.tell(event)?;
        }
        result.map_err(|death| death.diagnostic(&self.whereabouts()))
    }

    fn wrong(&self, call: &str, problem: String) -> Diagnostic {
        let name = &self.tuner.guest().name;
        Diagnostic::new(format!("tuner `{name}` answered something that cannot be"))
            .at(format!("`{call}`, {}", self.whereabouts()))
            .detail("because", problem)
            .help("mend the plugin: `espalier plugin test` finds such answers")
    }

    /// The knobs with which the members begin.
    fn propose(&mut self) -> Result<(), Diagnostic> {
        let proposed = self.ask_tuner(Session::propose)?;
        let members = self.population.members as usize;
        if proposed.len() != members {
            let problem = format!("knobs for {} members of {members}", proposed.len());
            return Err(self.wrong("propose", problem));
        }
        let mut knobs: Vec<Knobs> = Vec::new();
        for (member, given) in proposed.iter().enumerate() {
            if let Some(problem) = space::unfit(&self.space, given) {
                return Err(self.wrong("propose", format!("member {member}: {problem}")));
            }
            let defaults: Vec<_> = self
                .space
                .iter()
                .map(|knob| (knob.name.clone(), knob.default.clone()))
                .collect();
            knobs.push(changed(&kept(&defaults), given));
        }
        self.state = State::new(self.lengths.0, knobs);
        self.set_all()
    }

    /// The knobs of every member as the state has them.
    fn set_all(&mut self) -> Result<(), Diagnostic> {
        let each = self.state.members.iter().enumerate();
        let commands: Vec<_> = each
            .filter(|(_, member)| !member.over)
            .map(|(place, member)| (place, set(&member.knobs)))
            .collect();
        let answers = self.crew.ask(commands)?;
        self.tell_all(answers).map(drop)
    }

    /// After a resume: the tuner gets its bytes back, the members their knobs.
    fn go_on(&mut self) -> Result<(), Diagnostic> {
        let bytes = self.state.tuner.clone();
        let restored = self.ask_tuner(|tuner| tuner.restore(&bytes))?;
        restored.map_err(|refusal| {
            Diagnostic::new(format!(
                "tuner `{}` refuses to go on from its saved state",
                self.tuner.guest().name
            ))
            .detail("because", refusal.message)
        })?;
        let ended = self.state.members.iter().enumerate();
        let commands: Vec<_> = ended
            .filter(|(_, member)| member.over)
            .map(|(place, _)| (place, Command::Stop))
            .collect();
        let answers = self.crew.ask(commands)?;
        self.tell_all(answers)?;
        self.set_all()
    }

    fn drive(mut self) -> Result<Ending, Diagnostic> {
        while self.state.members.iter().any(|member| !member.over) {
            if self.run.cancel.load(Ordering::Relaxed) || !self.generation()? {
                let (run, step) = (self.folder.path().to_path_buf(), self.steps());
                self.tell(Event::Interrupted {
                    run: run.clone(),
                    step,
                })?;
                return Ok(Ending::Interrupted { run, step });
            }
        }
        self.finish()
    }

    /// One generation; false if it was told to stop on the way, and the generation is lost.
    fn generation(&mut self) -> Result<bool, Diagnostic> {
        let began = Instant::now();
        let length = match self.population.every {
            Every::Epochs(n) => n.saturating_mul(self.lengths.0),
            Every::Steps(n) => n,
        };
        let until = (self.state.generations.len() as u64 + 1).saturating_mul(length);
        let working: Vec<usize> = (0..self.state.members.len())
            .filter(|&member| !self.state.members[member].over)
            .collect();
        let trained = self.crew.ask(
            working
                .iter()
                .map(|&member| (member, Command::Train(until))),
        )?;
        let cancelled = |(answer, _): &(Answer, _)| matches!(answer, Answer::Cancelled);
        if trained.values().any(cancelled) {
            return Ok(false);
        }
        for (place, answer) in self.tell_all(trained)? {
            let Answer::Trained(standing) = answer else {
                continue;
            };
            let metric = &self.population.metric;
            let Some(&value) = standing.metrics.get(metric) else {
                let known: Vec<&str> = standing.metrics.keys().map(String::as_str).collect();
                return Err(Diagnostic::new(format!("nothing measures `{metric}`"))
                    .at("tuner.metric")
                    .expected(match known.is_empty() {
                        true => "a metric that the run has".to_string(),
                        false => crate::diagnostic::one_of(known),
                    }));
            };
            let member = &mut self.state.members[place];
            member.steps = standing.steps;
            member.over = standing.over;
            member.value = value.is_finite().then(|| value.into());
            let metrics = standing.metrics.into_iter();
            member.metrics = metrics.map(|(name, x)| (name, x.into())).collect();
        }
        let stretch = |(place, member): (usize, &mut history::Member)| Stretch {
            copied_from: member.copied_from.take(),
            knobs: member.knobs.clone(),
            steps: member.steps,
            value: member.value,
            idle: !working.contains(&place),
        };
        let stretches = self.state.members.iter_mut().enumerate().map(stretch);
        let stretches = stretches.collect();
        self.state.generations.push(stretches);
        // After the last generation there is nothing to decide.
        let copies = match self.state.members.iter().all(|member| member.over) {
            true => Vec::new(),
            false => self.decide()?,
        };
        let summary = self.summary(copies, began.elapsed().as_secs_f64());
        self.tell(Event::Generation(summary))?;
        self.make_safe()?;
        Ok(true)
    }

    fn summary(&self, copies: Vec<Copied>, seconds: f64) -> Generation {
        let members = &self.state.members;
        let values: Vec<f64> = members
            .iter()
            .filter_map(|member| member.value.map(history::Bits::number))
            .collect();
        let step = self.steps();
        Generation {
            generation: self.state.generations.len() as u64,
            step,
            epoch: step as f64 / self.lengths.0.max(1) as f64,
            metric: self.population.metric.clone(),
            best: self.state.best(self.population.goal).and_then(|place| {
                Some(Leader {
                    member: place as u32,
                    value: members[place].value?.number(),
                })
            }),
            mean: (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64),
            unmeasured: (members.len() - values.len()) as u32,
            copies,
            seconds,
        }
    }

    /// Asks the tuner, and does what it says.
    fn decide(&mut self) -> Result<Vec<Copied>, Diagnostic> {
        let goal = self.population.goal;
        let report = |(place, member): (usize, &history::Member)| MemberReport {
            member: place as u32,
            step: member.steps,
            score: score(goal, member.value),
            metrics: member
                .metrics
                .iter()
                .map(|(name, value)| Metric {
                    name: name.clone(),
                    value: value.number(),
                    measured: true,
                })
                .collect(),
            knobs: member
                .knobs
                .iter()
                .map(|(name, value)| (name.clone(), wit_value(&value.value())))
                .collect(),
            done: member.over,
        };
        let reports: Vec<MemberReport> =
            self.state.members.iter().enumerate().map(report).collect();
        let changes = self.ask_tuner(|tuner| tuner.decide(&reports))?;
        if let Some(problem) = unfit(&self.space, &reports, &changes) {
            return Err(self.wrong("decide", problem));
        }
        // Copies are of the members as they are now, so all of them are taken before the first is made.
        let mut sources: Vec<usize> = changes
            .iter()
            .filter_map(|change| change.copy_from.map(|from| from as usize))
            .collect();
        sources.sort_unstable();
        sources.dedup();
        let sat = self
            .crew
            .ask(sources.into_iter().map(|source| (source, Command::Sit)))?;
        let mut portraits = BTreeMap::new();
        for (source, answer) in self.tell_all(sat)? {
            if let Answer::Portrait(portrait) = answer {
                portraits.insert(source as u32, portrait);
            }
        }
        let mut copies = Vec::new();
        let mut commands = Vec::new();
        for change in &changes {
            if let Some(from) = change.copy_from
                && let Some(portrait) = portraits.get(&from)
            {
                let portrait = Command::Copy(Arc::clone(portrait));
                commands.push((change.member as usize, portrait));
                copies.push(Copied {
                    member: change.member,
                    from,
                });
            }
        }
        drop(portraits);
        let copied = self.crew.ask(commands)?;
        self.tell_all(copied)?;
        copies.sort_by_key(|copy| copy.member);
        let mut commands = Vec::new();
        let mut ends = Vec::new();
        for change in &changes {
            let place = change.member as usize;
            let source = change.copy_from.map(|from| from as usize);
            // A member that is over has the value of what it was copied from.
            let value = source.map(|from| self.state.members[from].value);
            let member = &mut self.state.members[place];
            member.copied_from = change.copy_from;
            if let Some(value) = value {
                member.value = value;
            }
            if !change.knobs.is_empty() {
                member.knobs = changed(&member.knobs, &change.knobs);
                commands.push((place, set(&member.knobs)));
            }
            if change.stop {
                member.over = true;
                ends.push((place, Command::Stop));
            }
        }
        for commands in [commands, ends] {
            let answers = self.crew.ask(commands)?;
            self.tell_all(answers)?;
        }
        Ok(copies)
    }

    /// Every member's checkpoint, then the document that names them.
    fn make_safe(&mut self) -> Result<(), Diagnostic> {
        // One that was over before this generation is safe already.
        let last = self.state.generations.last();
        let idle = |place: usize| last.is_some_and(|all| all.get(place).is_some_and(|s| s.idle));
        let commands: Vec<_> = (0..self.state.members.len())
            .filter(|&place| !idle(place))
            .map(|place| (place, Command::Save))
            .collect();
        let answers = self.crew.ask(commands)?;
        self.tell_all(answers)?;
        self.state.tuner = self.ask_tuner(Session::save)?;
        self.state.metrics_bytes = self.folder.sync_metrics()?;
        self.state.seconds = self.seconds_before + self.started.elapsed().as_secs_f64();
        self.state.write(self.folder.path())
    }

    /// The best member is the result.
    fn finish(mut self) -> Result<Ending, Diagnostic> {
        let best = match self.state.best(self.population.goal) {
            Some(best) => best,
            None => {
                let metric = &self.population.metric;
                let text =
                    format!("`{metric}` is not finite for any member: the first one is taken");
                let help = Some("narrow the space of the knobs".to_string());
                self.tell(Event::Warning { text, help })?;
                0
            }
        };
        let answers = self.crew.ask([(best, Command::Finish)])?;
        let mut own = None;
        for answer in self.tell_all(answers)?.into_values() {
            if let Answer::Finished(finished) = answer {
                own = Some(finished);
            }
        }
        let Some(own) = own else {
            return Err(Diagnostic::new("the best member did not come to its end")
                .help("this is an error of the host, please report it"));
        };
        self.take_checkpoint(&own.run)?;
        let members = self.state.members.len();
        let answers = self.crew.ask((0..members).map(|m| (m, Command::Count)))?;
        let mut plugins = Vec::new();
        for answer in self.tell_all(answers)?.into_values() {
            if let Answer::Costs(more) = answer {
                add(&mut plugins, more);
            }
        }
        plugins.push(cost_of(&self.tuner));
        let way = self.state.way(best, &self.population.metric);
        State::write_way(self.folder.path(), &way)?;
        self.tell(Event::Schedule(way))?;
        self.tell(Event::Counters { plugins })?;
        let finished = Finished {
            run: self.folder.path().to_path_buf(),
            seconds: self.seconds_before + self.started.elapsed().as_secs_f64(),
            steps: own.steps,
            metrics: own.metrics,
        };
        self.tell(Event::Finished(finished.clone()))?;
        Ok(Ending::Finished(finished))
    }

    /// The winner's last checkpoint becomes the population's.
    fn take_checkpoint(&mut self, own: &Path) -> Result<(), Diagnostic> {
        let to = self.folder.checkpoints();
        let copy = || -> Result<(), Box<dyn std::error::Error>> {
            let newest = checkpoint::list(&own.join("checkpoints"))?;
            let Some((_, from)) = newest.first() else {
                return Ok(());
            };
            let name = from.file_name().unwrap_or_default();
            let half = to.join(name).with_extension("tmp");
            std::fs::create_dir_all(&to)?;
            std::fs::copy(from, &half)?;
            std::fs::rename(&half, to.join(name))?;
            checkpoint::keep_newest(&to, self.plan.checkpoint.keep)?;
            Ok(())
        };
        copy().map_err(|error| {
            Diagnostic::new("the best member's checkpoint could not be copied")
                .because(error.as_ref())
        })
    }
}

/// What is wrong with a tuner's decisions; in words, or nothing.
pub(crate) fn unfit(
    space: &[KnobInfo],
    members: &[MemberReport],
    changes: &[Change],
) -> Option<String> {
    for (place, change) in changes.iter().enumerate() {
        let number = change.member;
        let known = |number: u32| members.iter().find(|member| member.member == number);
        let Some(member) = known(number) else {
            return Some(format!("there is no member {number} to change"));
        };
        if changes[..place].iter().any(|other| other.member == number) {
            return Some(format!("member {number} is changed twice"));
        }
        if member.done {
            return Some(format!("member {number} has ended and cannot be changed"));
        }
        match change.copy_from {
            Some(from) if from == number => {
                return Some(format!("member {number} is to be a copy of itself"));
            }
            Some(from) if known(from).is_none() => {
                return Some(format!(
                    "member {number} is to be a copy of member {from}, which is not there"
                ));
            }
            _ => {}
        }
        if let Some(problem) = space::unfit(space, &change.knobs) {
            return Some(format!("member {number}: {problem}"));
        }
    }
    None
}

/// The command that sets knobs.
fn set(knobs: &Knobs) -> Command {
    let knobs = knobs.iter();
    Command::Set(
        knobs
            .map(|(name, value)| (name.clone(), value.value()))
            .collect(),
    )
}

/// Knobs from the interface, to be kept.
fn kept(knobs: &[(String, Value)]) -> Knobs {
    let keep = |(name, value): &(String, Value)| {
        Some((name.clone(), Kept::new(&option_value(value.clone()))?))
    };
    knobs.iter().filter_map(keep).collect()
}

/// Knobs with some of them changed.
fn changed(knobs: &Knobs, changes: &[(String, Value)]) -> Knobs {
    let changes = kept(changes);
    let mut knobs = knobs.clone();
    for (name, value) in &mut knobs {
        if let Some((_, new)) = changes.iter().find(|(changed, _)| changed == name) {
            *value = new.clone();
        }
    }
    knobs
}

/// Adds up what the plugins of several members have cost.
fn add(all: &mut Vec<PluginCounters>, more: Vec<PluginCounters>) {
    for one in more {
        match all.iter_mut().find(|sum| sum.name == one.name) {
            Some(sum) => sum.add(&one),
            None => all.push(one),
        }
    }
}

/// Takes a folder away with all that is in it, if it is there.
fn clear(folder: &Path) -> Result<(), Diagnostic> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Diagnostic::new(
            format!("`{}` could not be removed", folder.display()),
        )
        .because(&error)),
        _ => Ok(()),
    }
}

/// Takes a member's checkpoints away that are newer than the population's document.
fn cut(member: &Path, steps: Option<u64>) -> Result<(), Diagnostic> {
    let wrong = |error: &dyn std::error::Error| {
        Diagnostic::new("a member's checkpoints could not be read").because(error)
    };
    let all = checkpoint::list(&member.join("checkpoints")).map_err(|error| wrong(&error))?;
    for (step, path) in all {
        if steps.is_some_and(|steps| step > steps) {
            std::fs::remove_file(&path).map_err(|error| wrong(&error))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::bindings::tuner::exports::espalier::plugin::tuning::{Domain, Interval};

    fn space() -> Vec<KnobInfo> {
        vec![KnobInfo {
            name: "trainer.lr".into(),
            domain: Domain::Number(Interval {
                low: 0.1,
                high: 1.0,
                log: false,
            }),
            default: Value::Number(0.5),
        }]
    }

    fn members() -> Vec<MemberReport> {
        (0..3)
            .map(|member| MemberReport {
                member,
                step: 10,
                score: Some(0.5),
                metrics: Vec::new(),
                knobs: Vec::new(),
                done: member == 2,
            })
            .collect()
    }

    fn change(member: u32, copy_from: Option<u32>, lr: Option<f64>) -> Change {
        Change {
            member,
            copy_from,
            knobs: lr
                .map(|lr| ("trainer.lr".to_string(), Value::Number(lr)))
                .into_iter()
                .collect(),
            stop: false,
        }
    }

    #[test]
    fn decisions_that_cannot_be_are_refused_in_words() {
        let judge = |changes: &[Change]| unfit(&space(), &members(), changes);
        assert_eq!(judge(&[change(0, Some(2), Some(0.2))]), None);
        let refused = |changes: &[Change]| judge(changes).unwrap_or_default();
        assert!(refused(&[change(5, None, None)]).contains("no member 5"));
        assert!(refused(&[change(2, None, None)]).contains("has ended"));
        assert!(refused(&[change(0, Some(0), None)]).contains("a copy of itself"));
        assert!(refused(&[change(0, Some(9), None)]).contains("which is not there"));
        assert!(refused(&[change(0, None, Some(2.0))]).contains("a number from 0.1 to 1"));
        assert!(refused(&[change(0, None, None), change(0, None, None)]).contains("twice"));
    }

    #[test]
    fn checkpoints_that_the_document_does_not_know_are_taken_away() -> std::io::Result<()> {
        let member = std::env::temp_dir().join(format!("espalier-cut-{}", std::process::id()));
        let folder = member.join("checkpoints");
        let _ = std::fs::remove_dir_all(&member);
        std::fs::create_dir_all(&folder)?;
        for step in [10, 20, 30] {
            std::fs::write(folder.join(format!("step-{step:012}.safetensors")), b"")?;
        }
        assert!(cut(&member, Some(20)).is_ok());
        let left = checkpoint::list(&folder).unwrap_or_default();
        let steps: Vec<u64> = left.into_iter().map(|(step, _)| step).collect();
        assert_eq!(steps, [20, 10]);
        std::fs::remove_dir_all(&member)
    }

    #[test]
    fn every_member_has_a_seed_of_its_own_and_the_first_the_runs() {
        let mut seeds: Vec<u64> = (0..1000).map(|member| seed_of(7, member)).collect();
        assert_eq!(seeds[0], 7);
        assert!(seeds.iter().all(|&seed| seed <= i64::MAX as u64));
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), 1000);
    }
}
