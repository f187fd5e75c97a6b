//! What the host measures: the trainer's predictions, a policy's answers, its episodes, and how far it moves.

use super::*;

impl Runner<'_> {
    pub(super) fn evaluate_progress(&mut self, epoch: u64) -> Result<(), Diagnostic> {
        let split = match self.shared.run.borrow().data.split("validation") {
            Ok(_) => "validation",
            Err(_) => "test",
        };
        self.evaluate(split, epoch)
    }

    /// Measures the policy on a split of the environment, or the trainer's predictions on one of the data.
    pub(super) fn evaluate(&mut self, split: &str, epoch: u64) -> Result<(), Diagnostic> {
        let _measuring = profile::part(profile::Part::Measurement);
        let environment = self.shared.run.borrow().rollouts.environment.clone();
        let began = Instant::now();
        let searched = self.stage().search.as_ref();
        let searched = searched.map(|search| search.split == split);
        let measured = match environment {
            _ if searched == Some(true) => Some(self.measure_search()?),
            // Nothing but what was searched has been answered.
            _ if searched == Some(false) => None,
            Environment::None => self.measure(split)?,
            Environment::Tasks { spec, splits } => {
                match splits.iter().find(|(name, _)| name == split) {
                    Some((_, count)) => Some(self.measure_tasks(split, *count, &spec)?),
                    None => None,
                }
            }
            // There is one world: no splits.
            Environment::Mdp(spec) if split == "test" => Some(self.measure_world(&spec)?),
            Environment::Mdp(_) => None,
        };
        let Some(measured) = measured else {
            return Ok(());
        };
        for (name, value) in &measured {
            self.progress
                .metrics
                .insert(format!("{split}/{name}"), *value);
        }
        self.tell(Event::Evaluated {
            split: split.to_string(),
            step: self.progress.steps_done,
            epoch,
            round: self.progress.round.into(),
            metrics: measured,
            seconds: began.elapsed().as_secs_f64(),
        })
    }

    /// The likeliest responses of the run's model to every prompt of a split, judged by the environment.
    fn measure_tasks(
        &mut self,
        split: &str,
        count: u64,
        spec: &TaskSpec,
    ) -> Result<BTreeMap<String, f64>, Diagnostic> {
        let mut sums: BTreeMap<String, f64> = BTreeMap::new();
        let mut add = |name: &str, x: f64| *sums.entry(name.to_string()).or_default() += x;
        let whereabouts = self.whereabouts();
        let ids: Vec<u64> = (0..count).collect();
        for ids in ids.chunks(self.stage().schedule.evaluation_batch.max(1) as usize) {
            let shared = self.shared.clone();
            let mut slot = shared.environment.borrow_mut();
            let Some(environment) = slot.as_mut() else {
                continue;
            };
            let at = |death: Death| death.diagnostic(&whereabouts);
            let prompts = environment.prompts(split, ids).map_err(at)?;
            let requests: Vec<Request> = prompts
                .into_iter()
                .map(|prompt| Request {
                    context: prompt.tokens,
                    forced: Vec::new(),
                    count: 1,
                    stop: vec![vec![spec.stop]],
                    max_tokens: spec.max_response as usize,
                    temperature: 0.0,
                    top_p: 1.0,
                    top_k: 0,
                    key: Vec::new(),
                })
                .collect();
            let responses = {
                let run = &mut *shared.run.borrow_mut();
                let RunState { models, sets, .. } = run;
                match (models.get(&ModelId::Main), sets.get_mut(&SetId::Main)) {
                    (Some(model), Some(set)) => model.generate(set, &requests, spec.context()),
                    _ => Ok(Vec::new()),
                }
            };
            let responses = responses
                .map_err(|error| edge("the model could not answer the prompts", &error))?;
            let responses: Vec<Response> = responses
                .into_iter()
                .zip(ids)
                .map(|(response, &prompt)| Response {
                    split: split.to_string(),
                    prompt,
                    tokens: response.tokens,
                    finished: response.stopped,
                })
                .collect();
            let verdicts = environment.verify(&responses, &spec.rewards).map_err(at)?;
            drop(slot);
            for (response, verdict) in responses.iter().zip(&verdicts) {
                add("accuracy", f64::from(u8::from(verdict.correct)));
                add("reward", verdict.reward);
                add("length", response.tokens.len() as f64);
                add("well-formed", f64::from(u8::from(verdict.well_formed)));
                for (term, value) in &verdict.terms {
                    add(&format!("reward-{term}"), *value);
                }
            }
            self.drain()?;
        }
        sums.values_mut()
            .for_each(|sum| *sum /= count.max(1) as f64);
        Ok(sums)
    }

    /// Whole episodes from starts that are the same in every measurement, with the trainer's predictions as
    /// actions: the likeliest, or the predicted values.
    fn measure_world(&mut self, spec: &MdpSpec) -> Result<BTreeMap<String, f64>, Diagnostic> {
        let n = self.stage().schedule.evaluation_episodes.max(1) as usize;
        let size = spec.observation.len();
        let Some(mut world) = self.evaluation.take() else {
            return Ok(BTreeMap::new());
        };
        let whereabouts = self.whereabouts();
        let at = |death: Death| death.diagnostic(&whereabouts);
        let mut observations = world.reset(n as u32, &[EVALUATION], size).map_err(at)?;
        let (mut returns, mut lengths) = (vec![0.0; n], vec![0.0; n]);
        let mut over = vec![false; n];
        let trainer = self.trainer_name();
        for _ in 0..spec.max_steps {
            let batch = || -> espalier_tensor::Result<data::Batch> {
                Ok(data::Batch {
                    fields: vec![(
                        "inputs".into(),
                        Tensor::from_f64s(&observations, &[n, size], DType::F32)?,
                    )],
                    index: ops::arange(0.0, n as f64, 1.0, DType::I64)?,
                    count: n as u32,
                })
            };
            let batch =
                batch().map_err(|error| edge("the observations could not be passed on", &error))?;
            let (kind, output) = self.trainer(|session| session.predict(batch.clone()))?;
            let actions = actions_of(spec, n, kind, &output)
                .and_then(|actions| spec.clip(actions, n))
                .map_err(|problem| {
                    Diagnostic::new(format!(
                        "plugin `{trainer}` predicted something that is no action"
                    ))
                    .at(format!("`predict`, {whereabouts}"))
                    .detail("because", problem)
                })?;
            let t = world.act(&actions, n, size).map_err(at)?;
            for i in (0..n).filter(|&i| !over[i]).collect::<Vec<_>>() {
                returns[i] += t.rewards[i];
                lengths[i] += 1.0;
                over[i] = t.terminated[i] || t.truncated[i];
            }
            if over.iter().all(|&over| over) {
                break;
            }
            observations = t.observations;
        }
        self.evaluation = Some(world);
        self.drain()?;
        let mean = |list: &[f64]| list.iter().sum::<f64>() / n as f64;
        let center = mean(&returns);
        let squares: Vec<f64> = returns.iter().map(|x| (x - center).powi(2)).collect();
        Ok(BTreeMap::from([
            ("return".to_string(), center),
            ("return-deviation".to_string(), mean(&squares).sqrt()),
            ("length".to_string(), mean(&lengths)),
        ]))
    }

    /// Tells a normaliser that tracks the policy how far it has moved since it last answered the prompts of this
    /// step, and remembers their new answers.
    pub(super) fn observe(&mut self) -> Result<(), Diagnostic> {
        let tracks = matches!(&*self.shared.normalizer.borrow(), Some(session) if session.tracks());
        let asked = self.shared.run.borrow_mut().rollouts.take_asked();
        let (true, Some(asked)) = (tracks, asked) else {
            return Ok(());
        };
        let _drift = profile::part(profile::Part::Drift);
        let drifts = {
            let run = &mut *self.shared.run.borrow_mut();
            drifts(run, asked)
                .map_err(|error| edge("the policy's drift could not be measured", error.as_ref()))?
        };
        let observed = match self.shared.normalizer.borrow_mut().as_mut() {
            Some(session) => session.observe(&drifts),
            None => Ok(()),
        };
        self.drain()?;
        observed.map_err(|death| death.diagnostic(&self.whereabouts()))
    }

    /// Measures the trainer's predictions on a split of the data. It sees inputs only.
    pub(super) fn measure(
        &mut self,
        split: &str,
    ) -> Result<Option<BTreeMap<String, f64>>, Diagnostic> {
        let (count, classes) = match self.shared.run.borrow().data.split(split) {
            Ok(found) if found.count > 0 => (found.count, found.classes),
            _ => return Ok(None),
        };
        let size = self.stage().schedule.evaluation_batch.max(1) as usize;
        let source = self.plan.data.as_ref().map(|data| &data.source);
        let mut sums = metrics::Sums::new(self.stage().schedule.loss, classes);
        if matches!(source, Some(DataSource::Text { .. })) {
            sums = sums.of_bytes();
        }
        if self.stage().schedule.calibration {
            sums = sums.with_calibration();
        }
        let mut at = 0;
        while at < count {
            let to = (at + size).min(count);
            let (batch, targets) = self
                .slice(split, at, to)
                .map_err(|error| edge("the data could not be read", error.as_ref()))?;
            let (kind, output) = self.trainer(|session| session.predict(batch.clone()))?;
            let name = self.trainer_name();
            let added = sums.add(readable(kind), &output, &targets);
            added.map_err(|problem| {
                Diagnostic::new(format!(
                    "plugin `{name}` predicted something that can't be measured"
                ))
                .at(format!("`predict`, {}", self.whereabouts()))
                .detail("because", problem)
            })?;
            at = to;
        }
        Ok(Some(sums.finish()))
    }

    pub(super) fn slice(
        &self,
        split: &str,
        from: usize,
        to: usize,
    ) -> Result<(data::Batch, Tensor), Box<dyn std::error::Error>> {
        let run = self.shared.run.borrow();
        let split = run.data.split(split)?;
        let rows = |t: &Tensor| ops::slice(t, 0, from as isize, to as isize);
        let mut fields = Vec::new();
        for (name, t) in split.fields.iter().filter(|(name, _)| name != "targets") {
            fields.push((name.clone(), rows(t)?));
        }
        let index = ops::arange(from as f64, to as f64, 1.0, espalier_tensor::DType::I64)?;
        Ok((
            data::Batch {
                fields,
                index,
                count: (to - from) as u32,
            },
            rows(split.field("targets")?)?,
        ))
    }
}

/// Actions from a trainer's predictions [n, ..], instance after instance.
fn actions_of(
    spec: &MdpSpec,
    n: usize,
    kind: PredictionKind,
    output: &Tensor,
) -> Result<Vec<f64>, String> {
    let width = match &spec.action {
        ActionSpace::Discrete(n) => *n as usize,
        ActionSpace::Continuous(ranges) => ranges.len(),
    };
    if output.shape() != [n, width] {
        return Err(format!(
            "predictions have shape {:?}, expected [{n}, {width}]",
            output.shape()
        ));
    }
    let list = |t: &Tensor| t.to_list().map_err(|error| error.to_string());
    match (&spec.action, kind) {
        (ActionSpace::Discrete(_), PredictionKind::Logits | PredictionKind::Probabilities) => {
            list(&ops::argmax(output, -1).map_err(|error| error.to_string())?)
        }
        (ActionSpace::Continuous(_), PredictionKind::Values) => list(output),
        (ActionSpace::Discrete(_), _) => {
            Err("one of a few actions is chosen by logits or probabilities".into())
        }
        (ActionSpace::Continuous(_), _) => {
            Err("actions that are numbers are predicted as values".into())
        }
    }
}

/// How far the policy has moved on the last responses to these prompts; what they are answered now is remembered.
fn drifts(
    run: &mut RunState,
    asked: Vec<(u64, Sequence)>,
) -> Result<Vec<Drift>, Box<dyn std::error::Error>> {
    let RunState {
        models,
        sets,
        rollouts,
        ..
    } = run;
    let (Some(model), Some(set)) = (models.get(&ModelId::Main), sets.get_mut(&SetId::Main)) else {
        return Ok(Vec::new());
    };
    let mut score = |sequences: &[Sequence]| -> Result<Vec<Vec<f64>>, Box<dyn std::error::Error>> {
        if sequences.is_empty() {
            return Ok(Vec::new());
        }
        let _none = espalier_tensor::autograd::no_grad();
        let (logprobs, ..) = model.logprobs(set, sequences, false, crate::model::Mode::Eval)?;
        let width = logprobs.shape()[1].max(1);
        let all = logprobs.to_list()?;
        let rows = all.chunks(width).zip(sequences);
        Ok(rows
            .map(|(row, (_, tokens))| row[..tokens.len()].to_vec())
            .collect())
    };
    let before: Vec<(u64, &Tracked)> = asked
        .iter()
        .filter_map(|(prompt, ..)| Some((*prompt, rollouts.tracked.get(prompt)?)))
        .collect();
    let sequences: Vec<_> = before
        .iter()
        .map(|(_, tracked)| (tracked.context.clone(), tracked.tokens.clone()))
        .collect();
    let drifts = before
        .iter()
        .zip(score(&sequences)?)
        .map(|((prompt, tracked), now)| {
            let then = tracked
                .logprobs
                .iter()
                .map(|&bits| f64::from(f32::from_bits(bits)));
            let moved: f64 = then.zip(&now).map(|(then, now)| (then - now).abs()).sum();
            Drift {
                prompt: *prompt,
                mean_abs_logratio: moved / now.len().max(1) as f64,
            }
        })
        .collect();
    let sequences: Vec<Sequence> = asked.iter().map(|(_, sequence)| sequence.clone()).collect();
    let now = score(&sequences)?;
    for ((prompt, (context, tokens)), logprobs) in asked.into_iter().zip(now) {
        let logprobs = logprobs.iter().map(|&x| (x as f32).to_bits()).collect();
        let answer = Tracked {
            context,
            tokens,
            logprobs,
        };
        rollouts.tracked.insert(prompt, answer);
    }
    Ok(drifts)
}
