//! The stages of a run: what begins and ends with each.
//!
//! A stage has a schedule, a trainer, pruners and auditors. From stage to stage go the model, its parameters and
//! masks, and the splits that plugins added. With a stage end its pruners and auditors, the tags and the owners of
//! masks; its trainer ends when the next one starts, with its sets, streams and optimiser state. So a stage without
//! a trainer is measured and audited with the predictions of the one before it.

use super::*;
use crate::events::{Audit, AuditTable};
use crate::plan::{SchedulePlan, StagePlan, TRAIN};

/// Steps of an epoch and of a round. `samples` is the number of training samples or prompts, where there is one.
pub(super) fn lengths(
    schedule: &SchedulePlan,
    environment: &Environment,
    samples: Option<u64>,
    name: &str,
) -> Result<(u64, u64), Diagnostic> {
    let natural = samples.map(|n| n.div_ceil(u64::from(schedule.batch_size.max(1))));
    let per_epoch = match environment {
        Environment::None => natural,
        _ => {
            let whole = match schedule.length {
                Length::Steps(n) => Some(n),
                Length::Epochs(_) => None,
            };
            schedule.steps_per_epoch.or(natural).or(whole)
        }
    };
    let per_epoch = per_epoch
        .ok_or_else(|| {
            Diagnostic::new(format!(
                "environment `{name}` does not say what an epoch is"
            ))
            .at("schedule.epochs")
            .help("give `steps` in the place of `epochs`, or add `steps-per-epoch`")
        })?
        .max(1);
    let per_round = match schedule.length {
        Length::Epochs(n) => n.saturating_mul(per_epoch),
        Length::Steps(n) => n,
    };
    Ok((per_epoch, per_round))
}

/// How many samples a split has for a trainer, or prompts.
fn samples(environment: &Environment, data: &data::Dataset, split: &str) -> Option<u64> {
    match environment {
        Environment::None => data.split(split).ok().map(|split| split.count as u64),
        Environment::Tasks { splits, .. } => splits
            .iter()
            .find(|(name, _)| name == TRAIN)
            .map(|(_, count)| *count),
        Environment::Mdp(_) => None,
    }
}

/// The seed of a stage's random numbers: the run's own in the first, so that a run of one stage is what it always
/// was.
fn seed_of(seed: u64, stage: usize) -> u64 {
    match stage {
        0 => seed,
        stage => espalier_tensor::random::bits(&Key::new(&[seed, STAGE, stage as u64]), 1)
            .first()
            .copied()
            .unwrap_or(seed),
    }
}

/// Sets the seeds of stages apart from every other use of the generator.
const STAGE: u64 = 0x7374_6167_6500_0001;

impl Runner<'_> {
    pub(super) fn stage(&self) -> &StagePlan {
        // There is at least one, and `progress.stage` counts within them.
        &self.stages[self.progress.stage.min(self.stages.len() - 1)]
    }

    /// The part that fills the slot of the trainer now.
    pub(super) fn trainer_part(&self) -> Option<usize> {
        self.stages
            .get(self.trainer_stage)
            .and_then(|stage| stage.trainer)
    }

    pub(super) fn trainer_name(&self) -> String {
        let part = self.trainer_part().and_then(|part| self.parts.get(part));
        part.map(|part| part.plan.name.clone()).unwrap_or_default()
    }

    /// Makes the run what a stage is in: its split, whether it may change parameters, its length.
    fn enter(&mut self, number: usize) -> Result<(), Diagnostic> {
        let stage = self.stages[number].clone();
        let seed = seed_of(self.plan.seed, self.trainer_stage);
        let environment = self.plan.plugins.iter();
        let environment = environment.filter(|p| p.slot == Slot::Environment);
        let name = environment.map(|p| p.name.clone()).next();
        let run = &mut *self.shared.run.borrow_mut();
        run.data.train_on = None;
        if stage.train != TRAIN {
            check_training(&run.data, &stage)?;
        }
        let count = samples(&run.rollouts.environment, &run.data, &stage.train);
        run.data.train_on = (stage.train != TRAIN).then(|| stage.train.clone());
        run.locked = match &stage.search {
            Some(_) => Some("a search is on, which reads them".to_string()),
            None => stage
                .freeze
                .then(|| format!("stage `{}` freezes them", stage.name)),
        };
        run.rollouts.search = match &stage.search {
            Some(search) => Some(search::begin(search, &run.rollouts.environment)?),
            None => None,
        };
        run.seed = seed;
        (self.steps_per_epoch, self.steps_per_round) = lengths(
            &stage.schedule,
            &run.rollouts.environment,
            count,
            &name.unwrap_or_default(),
        )?;
        self.entered = number;
        Ok(())
    }

    /// Starts the plugins of the stage that `progress` names, and the trainer if it is not at work already.
    pub(super) fn start_stage(&mut self) -> Result<(), Diagnostic> {
        let now = self.progress.stage.min(self.stages.len() - 1);
        let working = self.shared.trainer.borrow().is_some();
        let stages = self.stages[..=now].iter();
        let newest = stages.map(|stage| stage.trainer).enumerate();
        let newest = newest.rev().find_map(|(n, part)| Some((n, part?)));
        if let Some((number, part)) = newest.filter(|(number, _)| !working || *number == now) {
            self.trainer_stage = number;
            self.enter(number)?;
            let session = self.instantiate(part)?;
            *self.shared.trainer.borrow_mut() = Some(session);
            self.complete_tags()?;
        }
        self.enter(now)?;
        for part in self.stages[now].plugins.clone() {
            let session = Some(self.instantiate(part)?);
            match self.parts[part].plan.slot {
                Slot::Auditor => self.auditors.push(Pruner { part, session }),
                Slot::Searcher => self.searcher = session,
                _ => self.pruners.push(Pruner { part, session }),
            }
            self.complete_tags()?;
        }
        Ok(())
    }

    /// Steps of the stages after this one, as far as is known now.
    pub(super) fn steps_to_come(&self) -> u64 {
        let run = self.shared.run.borrow();
        let later = self.stages.iter().skip(self.progress.stage + 1);
        let steps = later.filter(|stage| stage.trainer.is_some()).map(|stage| {
            let environment = &run.rollouts.environment;
            let split = run
                .data
                .splits
                .iter()
                .find(|split| split.name == stage.train);
            let count = match environment {
                Environment::None => split.map(|split| split.count as u64),
                _ => samples(environment, &run.data, TRAIN),
            };
            lengths(&stage.schedule, environment, count.or(Some(0)), "").map_or(0, |(_, n)| n)
        });
        steps.fold(0, u64::saturating_add)
    }

    /// Says which stage begins, in a run of several.
    pub(super) fn tell_stage(&mut self) -> Result<(), Diagnostic> {
        if self.plan.stages.is_empty() {
            return Ok(());
        }
        let stage = self.stage();
        self.tell(Event::Stage {
            number: self.progress.stage as u64,
            of: self.stages.len() as u64,
            name: stage.name.clone(),
            step: self.progress.steps_done,
            steps: self.steps_per_round,
        })
    }

    /// Measures, audits; then either the run is over (true), or the next stage has begun.
    pub(super) fn end_stage(&mut self) -> Result<bool, Diagnostic> {
        let epoch = self.progress.round_step.div_ceil(self.steps_per_epoch);
        let further = self.stage().schedule.evaluate.clone();
        match self.stage().search.clone() {
            Some(search) => self.evaluate(&search.split, epoch)?,
            None => {
                for split in ["validation", "test"] {
                    self.evaluate(split, epoch)?;
                }
            }
        }
        for split in further {
            if let Err(error) = self.measurable(&split) {
                self.tell(Event::Warning {
                    text: format!("the split `{split}` could not be measured: {error}"),
                    help: Some("correct `evaluate` in [schedule]".into()),
                })?;
                continue;
            }
            if split != "validation" && split != "test" {
                self.evaluate(&split, epoch)?;
            }
        }
        self.audit()?;
        if self.plan.stages.is_empty() || self.progress.stage + 1 >= self.stages.len() {
            self.name_metrics();
            return Ok(true);
        }
        self.next_stage()?;
        Ok(false)
    }

    fn measurable(&self, split: &str) -> Result<(), data::Error> {
        let run = self.shared.run.borrow();
        if matches!(run.rollouts.environment, Environment::None) {
            run.data.split(split)?.field("targets")?;
        }
        Ok(())
    }

    /// Keeps the stage's metrics under its name too.
    fn name_metrics(&mut self) {
        if self.plan.stages.is_empty() {
            return;
        }
        let name = self.stage().name.clone();
        let named = self.progress.metrics.iter();
        let named = named.map(|(metric, x)| (format!("{name}/{metric}"), *x));
        self.progress
            .stage_metrics
            .extend(named.collect::<Vec<_>>());
    }

    fn next_stage(&mut self) -> Result<(), Diagnostic> {
        let density = self.count_density()?;
        self.progress
            .metrics
            .insert("sparsity".into(), sparsity(density));
        self.name_metrics();
        let next = self.progress.stage + 1;
        let trains = self.stages[next].trainer.is_some();
        for pruner in std::mem::take(&mut self.pruners) {
            self.put_away(pruner.session);
        }
        let searcher = self.searcher.take();
        self.put_away(searcher);
        if trains {
            let session = self.shared.trainer.borrow_mut().take();
            self.put_away(session);
            self.progress.metrics.clear();
        }
        let stays = match trains {
            true => None,
            false => Some(self.trainer_name()),
        };
        {
            let run = &mut *self.shared.run.borrow_mut();
            run.forget_plugins(|plugin| stays.as_deref() == Some(plugin));
            run.tags.clear();
            run.new_tags.clear();
            run.mask_owners.clear();
            run.effective_owners.clear();
            if let Some(main) = run.sets.get_mut(&SetId::Main) {
                main.forget_tags();
                if trains {
                    let names = main.names();
                    main.reset_state(&names).map_err(|error| {
                        edge("the optimiser's state could not be reset", &error)
                    })?;
                }
            }
            if trains {
                run.rollouts.instances = 0;
            }
            self.progress.splits = run.data.splits.iter().filter(|split| split.added).count();
        }
        self.last_saved.clear();
        self.progress.stage = next;
        self.progress.round_step = 0;
        self.progress.round = 0;
        self.progress.round_over = false;
        self.progress.stage_over = false;
        self.start_stage()?;
        self.drain()?;
        self.tell_stage()?;
        self.checkpoint()
    }

    /// Before the plugins of a later stage start again after a resume: the run as the stage found it, as far as they
    /// can see it in `start`.
    pub(super) fn resume_stage(
        &mut self,
        found: &checkpoint::Checkpoint,
        saved: &Saved,
    ) -> Result<(), Diagnostic> {
        self.progress.stage = saved.progress.stage.min(self.stages.len() - 1);
        if self.progress.stage == 0 {
            return Ok(());
        }
        let run = &mut *self.shared.run.borrow_mut();
        import_sets(run, found, saved, |id| *id == SetId::Main)?;
        if let Some(main) = run.sets.get_mut(&SetId::Main) {
            main.forget_tags();
        }
        import_splits(
            run,
            found,
            &saved.splits[..saved.progress.splits.min(saved.splits.len())],
        )?;
        run.steps_done = saved.progress.steps_done;
        self.progress.splits = saved.progress.splits;
        Ok(())
    }

    /// Lets the stage's auditors look; what they made is gone afterwards.
    fn audit(&mut self) -> Result<(), Diagnostic> {
        let before = self.shared.run.borrow().locked.clone();
        for mut auditor in std::mem::take(&mut self.auditors) {
            let name = self.parts[auditor.part].plan.name.clone();
            let Some(mut session) = auditor.session.take() else {
                continue;
            };
            self.shared.run.borrow_mut().locked = Some(format!("`{name}` is auditing them"));
            let report = session.audit();
            self.shared.run.borrow_mut().locked.clone_from(&before);
            self.drain()?;
            match report {
                Ok(report) => {
                    self.put_away(Some(session));
                    let audit = Audit {
                        auditor: name.clone(),
                        stage: self.stage().name.clone(),
                        step: self.progress.steps_done,
                        flagged: report.flagged,
                        numbers: report.numbers,
                        tables: report
                            .tables
                            .into_iter()
                            .map(|table| AuditTable {
                                name: table.name,
                                columns: table.columns,
                                rows: table.rows,
                            })
                            .collect(),
                        note: shown(&report.note),
                    };
                    self.tell(Event::Audited(audit))?;
                }
                Err(death) => {
                    self.revive(auditor.part, &death)?;
                }
            }
            self.shared
                .run
                .borrow_mut()
                .forget_plugins(|plugin| plugin != name);
        }
        Ok(())
    }

    /// Remembers what an instance has cost, and ends it.
    pub(super) fn put_away(&mut self, session: Option<Session>) {
        if let Some(session) = session {
            let counters = self.cost(&session);
            let acted = session.guest().counters.acted;
            self.ended.push((counters, acted));
        }
    }
}

/// Refuses a split that a trainer can't learn from in the place of `train`.
fn check_training(data: &data::Dataset, stage: &StagePlan) -> Result<(), Diagnostic> {
    let what = format!("stage `{}` trains on a split that it can't use", stage.name);
    let wrong = |error: &dyn std::error::Error| {
        Diagnostic::new(&what)
            .at(format!("`train` of stage `{}`", stage.name))
            .because(error)
            .help("name a split that an earlier stage adds, or that a transform derives")
    };
    let split = data.split(&stage.train).map_err(|error| wrong(&error))?;
    let usual = data.split(TRAIN).map_err(|error| wrong(&error))?;
    for (name, theirs) in &usual.fields {
        let own = split.field(name).map_err(|error| wrong(&error))?;
        if own.shape().get(1..) != theirs.shape().get(1..) || own.dtype() != theirs.dtype() {
            return Err(Diagnostic::new(&what)
                .at(format!("`train` of stage `{}`", stage.name))
                .expected(format!(
                    "`{name}` as in `train`: {:?} of {:?} a sample",
                    theirs.dtype(),
                    theirs.shape().get(1..).unwrap_or_default()
                ))
                .found(format!(
                    "{:?} of {:?}",
                    own.dtype(),
                    own.shape().get(1..).unwrap_or_default()
                ))
                .help("mend the plugin that adds the split"));
        }
    }
    Ok(())
}

/// The sets of a checkpoint that are wanted.
pub(super) fn import_sets(
    run: &mut RunState,
    found: &checkpoint::Checkpoint,
    saved: &Saved,
    wanted: impl Fn(&SetId) -> bool,
) -> Result<(), Diagnostic> {
    for (number, (id, meta)) in saved
        .sets
        .iter()
        .enumerate()
        .filter(|(_, (id, _))| wanted(id))
    {
        let set = ParameterSet::import(&format!("set{number}"), &found.tensors, meta)
            .map_err(|error| edge("the checkpoint does not hold what it should", &error))?;
        run.sets.insert(id.clone(), set);
    }
    Ok(())
}

/// The added splits of a checkpoint, in the place of those there are.
pub(super) fn import_splits(
    run: &mut RunState,
    found: &checkpoint::Checkpoint,
    splits: &[(String, Vec<String>)],
) -> Result<(), Diagnostic> {
    run.data.splits.retain(|split| !split.added);
    for (name, fields) in splits {
        let fields = fields.iter().filter_map(|field| {
            let tensor = found.tensors.get(&format!("split/{name}/{field}"))?;
            Some((field.clone(), tensor.clone()))
        });
        run.data
            .add_split(name, fields.collect())
            .map_err(|error| edge("the checkpoint does not hold what it should", &error))?;
    }
    Ok(())
}
