//! What a run learns from: data, or an environment and what follows from it.

use super::*;

/// What the run learns from, before the model is built.
pub(super) struct Source {
    pub(super) dataset: data::Dataset,
    pub(super) environment: Environment,
    pub(super) session: Option<Session>,
    /// Fields that the model reads.
    pub(super) inputs: Vec<FieldShape>,
    pub(super) steps_per_epoch: u64,
}

impl Source {
    pub(super) fn of_data(
        plan: &Plan,
        from: &DataPlan,
        parts: &[Part],
        shared: &Rc<Shared>,
    ) -> Result<Source, Diagnostic> {
        // The members of a population share what one of them would load.
        let given = std::mem::take(&mut shared.run.borrow_mut().data);
        let dataset = match given.splits.is_empty() {
            true => {
                data::load(from).map_err(|error| edge("the data could not be loaded", &error))?
            }
            false => given,
        };
        let (dataset, at_work) = transforms::transformed(plan, parts, shared, dataset)?;
        *shared.transforms.borrow_mut() = at_work;
        let train = dataset
            .split("train")
            .map_err(|error| edge("the data has no training split", &error))?;
        let stages = plan.whole();
        let scored = |stage: &StagePlan| stage.schedule.loss == Loss::CrossEntropy;
        if train.classes == 0 && stages.iter().any(scored) {
            return Err(Diagnostic::new(
                "the loss `cross-entropy` needs classes, and the targets are values",
            )
            .at("schedule.loss")
            .help("set loss = \"mse\", or tell the data source that the target is a class"));
        }
        let samples = Some(train.count as u64);
        let (steps_per_epoch, _) =
            stages::lengths(&plan.schedule, &Environment::None, samples, "")?;
        let inputs = train
            .fields
            .iter()
            .filter(|(name, _)| name != "targets")
            .map(|(name, t)| FieldShape {
                name: name.clone(),
                shape: t.shape()[1..].to_vec(),
                dtype: t.dtype(),
            })
            .collect();
        Ok(Source {
            dataset,
            environment: Environment::None,
            session: None,
            inputs,
            steps_per_epoch,
        })
    }

    /// Starts the environment. It is told neither the length of an epoch nor of a round, which may follow from it.
    pub(super) fn of_environment(
        plan: &Plan,
        part: &Part,
        shared: &Rc<Shared>,
    ) -> Result<Source, Diagnostic> {
        let name = &part.plan.name;
        let at = |death: Death| death.diagnostic("before the first step");
        let wrong = |problem: String| {
            Diagnostic::new(format!(
                "environment `{name}` describes itself in a way that can't be"
            ))
            .detail("because", problem)
            .help("mend the plugin")
        };
        let info = wit::RunInfo {
            steps: 0,
            steps_per_epoch: 0,
            ..run_info(plan)
        };
        let mut session = new_session(part, shared, info, None, "the start")?;
        let field = |shape: Vec<usize>, dtype| FieldShape {
            name: "inputs".into(),
            shape,
            dtype,
        };
        let (environment, dataset, inputs, prompts) = match part.loaded.world {
            component::World::Tasks => {
                let spec = session.task_spec().map_err(at)?;
                let splits = session.task_splits().map_err(at)?;
                if let Some(problem) = unfit_tasks(&spec, &splits) {
                    return Err(wrong(problem));
                }
                let dataset = prompts_as_data(&mut session, &spec, &splits)
                    .map_err(at)?
                    .map_err(wrong)?;
                let inputs = field(vec![spec.context()], DType::I64);
                let train = splits.iter().find(|(name, _)| name == "train");
                let prompts = train.map(|(_, count)| *count);
                (
                    Environment::Tasks { spec, splits },
                    dataset,
                    inputs,
                    prompts,
                )
            }
            _ => {
                let spec = session.mdp_spec().map_err(at)?;
                if let Some(problem) = unfit_mdp(&spec) {
                    return Err(wrong(problem));
                }
                let inputs = field(vec![spec.observation.len()], DType::F32);
                (
                    Environment::Mdp(spec),
                    data::Dataset::default(),
                    inputs,
                    None,
                )
            }
        };
        let (steps_per_epoch, _) = stages::lengths(&plan.schedule, &environment, prompts, name)?;
        Ok(Source {
            dataset,
            environment,
            session: Some(session),
            inputs: vec![inputs],
            steps_per_epoch,
        })
    }
}

/// Most prompts of a split that plugins see as data.
const MOST_PROMPTS_AS_DATA: u64 = 1 << 14;

/// The prompts as splits with a field `inputs` (i64 [count, max-prompt], filled up with the stop token), so that a
/// plugin which asks for the objective of a batch finds batches here too.
fn prompts_as_data(
    session: &mut Session,
    spec: &TaskSpec,
    splits: &[(String, u64)],
) -> Called<Result<data::Dataset, String>> {
    let mut dataset = data::Dataset::default();
    for (name, count) in splits {
        let ids: Vec<u64> = (0..(*count).min(MOST_PROMPTS_AS_DATA)).collect();
        let prompts = session.prompts(name, &ids)?;
        let width = spec.max_prompt as usize;
        let mut tokens = Vec::with_capacity(prompts.len() * width);
        for prompt in &prompts {
            let known = |token: &u32| (*token as usize) < spec.vocabulary.len();
            let fits = !prompt.tokens.is_empty() && prompt.tokens.len() <= width;
            if !fits || !prompt.tokens.iter().all(known) {
                return Ok(Err(format!(
                    "prompt {} of `{name}` is not 1 to {width} tokens of the vocabulary",
                    prompt.id
                )));
            }
            tokens.extend(prompt.tokens.iter().map(|&token| i64::from(token)));
            tokens.resize(tokens.len() + width - prompt.tokens.len(), spec.stop.into());
        }
        let inputs = match Tensor::from_vec(tokens, &[prompts.len(), width]) {
            Ok(inputs) => inputs,
            Err(error) => return Ok(Err(error.to_string())),
        };
        dataset.splits.push(data::Split {
            name: name.clone(),
            count: prompts.len(),
            fields: vec![("inputs".into(), inputs)],
            classes: 0,
            task: 0,
            added: false,
        });
    }
    Ok(Ok(dataset))
}

/// The layers, with the size of the environment's vocabulary where an embedding leaves its own open.
pub(super) fn with_vocabulary(layers: &[LayerPlan], environment: &Environment) -> Vec<LayerPlan> {
    let mut layers = layers.to_vec();
    if let Environment::Tasks { spec, .. } = environment {
        for layer in layers.iter_mut().filter(|layer| layer.kind == "embedding") {
            let entries = layer.settings.entry("entries".into());
            entries.or_insert_with(|| vec![spec.vocabulary.len() as f64]);
        }
    }
    layers
}

/// Refuses a model whose answers are not tokens of the vocabulary.
pub(super) fn answers_in(model: &Model, spec: &TaskSpec) -> Result<(), Diagnostic> {
    let words = spec.vocabulary.len();
    let infos = model.infos();
    let Some(last) = infos
        .last()
        .filter(|last| last.out_shape != [spec.context(), words])
    else {
        return Ok(());
    };
    Err(Diagnostic::new(
        "the model does not give a number for each token of the environment's vocabulary",
    )
    .at(format!("model.layers, `{}`", last.name))
    .expected(format!(
        "[{}, {words}] a sample: tokens by vocabulary",
        spec.context()
    ))
    .found(format!("{:?}", last.out_shape))
    .help("begin with an embedding without `entries` and end with { kind = \"tied-linear\" }"))
}

/// A model that another run has made.
pub(super) struct Origin {
    from: PathBuf,
    pub(super) layers: Vec<LayerPlan>,
    set: ParameterSet,
}

impl Origin {
    /// The newest checkpoint of a run's folder, or a checkpoint.
    pub(super) fn load(from: &Path) -> Result<Origin, Diagnostic> {
        let wrong = |d: Diagnostic| {
            d.at("model.from").help(
                "give the folder of a run, which holds `checkpoints`, or one of its checkpoints",
            )
        };
        let (tensors, meta) = match from.is_dir() {
            true => {
                let found = checkpoint::newest(&from.join("checkpoints"))
                    .map_err(|error| wrong(edge("no checkpoint could be read", &error)))?;
                let found = found.ok_or_else(|| {
                    let what = format!("`{}` holds no checkpoint", from.display());
                    wrong(Diagnostic::new(what))
                })?;
                (found.tensors, found.meta)
            }
            false => checkpoint::read(from)
                .map_err(|error| wrong(edge("the checkpoint could not be read", &error)))?,
        };
        let saved = saved(&meta)?;
        let of = |(number, (id, meta)): (usize, &(SetId, serde_json::Value))| {
            (*id == SetId::Main)
                .then(|| ParameterSet::import(&format!("set{number}"), &tensors, meta))
        };
        let set = saved.sets.iter().enumerate().find_map(of);
        let set = set
            .ok_or_else(|| wrong(Diagnostic::new("the checkpoint holds no model")))?
            .map_err(|error| edge("the checkpoint does not hold what it should", &error))?;
        Ok(Origin {
            from: from.to_path_buf(),
            layers: saved.layers,
            set,
        })
    }

    /// Its parameters in the place of those of a model that was built, without tags and optimiser state.
    pub(super) fn parameters(self, built: &ParameterSet) -> Result<ParameterSet, Diagnostic> {
        let shapes = |set: &ParameterSet| {
            let infos = set.infos().into_iter();
            infos
                .map(|info| (info.name, info.shape))
                .collect::<BTreeMap<String, Vec<usize>>>()
        };
        let (own, theirs) = (shapes(built), shapes(&self.set));
        let differs = own
            .iter()
            .find(|(name, shape)| theirs.get(*name) != Some(shape));
        if let Some((name, shape)) = differs {
            return Err(Diagnostic::new(format!(
                "the model of `{}` does not fit this run",
                self.from.display()
            ))
            .at("model.from")
            .expected(format!("`{name}` of shape {shape:?}"))
            .found(match theirs.get(name) {
                Some(shape) => format!("{shape:?}"),
                None => "no such parameter".to_string(),
            })
            .help(
                "leave out `layers`, and use the environment or data that the model was made for",
            ));
        }
        let mut set = self.set;
        set.forget_tags();
        let names = set.names();
        set.reset_state(&names)
            .map_err(|error| edge("the optimiser's state could not be reset", &error))?;
        Ok(set)
    }
}
