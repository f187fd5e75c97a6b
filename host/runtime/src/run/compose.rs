//! What a run is made of, told before it begins.

use super::*;

pub(super) fn compose(
    plan: &Plan,
    parts: &[Part],
    from: &Source,
    model: &Model,
    main: &ParameterSet,
    steps_per_round: u64,
) -> Composition {
    let steps_per_epoch = from.steps_per_epoch;
    let data = &from.dataset;
    let count = |name: &str| match &from.environment {
        Environment::Tasks { splits, .. } => {
            let split = splits.iter().find(|(split, _)| split == name);
            split.map_or(0, |(_, count)| *count as usize)
        }
        _ => data.split(name).map_or(0, |s| s.count),
    };
    let first = data.splits.first();
    let environment = plan.plugins.iter().find(|p| p.slot == Slot::Environment);
    let source = match plan.data.as_ref().map(|data| &data.source) {
        None => environment.map_or(String::new(), |plugin| plugin.name.clone()),
        Some(DataSource::Digits) => "digits".to_string(),
        Some(DataSource::Sines(_)) => "sines".to_string(),
        Some(
            DataSource::Idx { path } | DataSource::Csv { path, .. } | DataSource::Text { path, .. },
        ) => path.display().to_string(),
        Some(DataSource::Npy { inputs, .. }) => inputs.display().to_string(),
        Some(DataSource::Graph { path, .. }) => format!("graph {}", path.display()),
        Some(DataSource::BlockModel { model, .. }) => format!(
            "graph of {} blocks of {} nodes",
            model.classes, model.nodes_per_class
        ),
    };
    let size =
        |i: &crate::parameters::ParameterInfo| i.shape.iter().map(|&n| n as u64).product::<u64>();
    let infos = main.infos();
    let architecture = plan.plugins.iter().find(|p| p.slot == Slot::Architecture);
    let layers: Vec<String> = plan
        .model
        .iter()
        .map(
            |layer| match layer.settings.get("features").and_then(|v| v.first()) {
                Some(n) => format!("{} {n}", layer.kind),
                None => layer.kind.clone(),
            },
        )
        .collect();
    let unit = match &from.environment {
        Environment::None => "samples",
        Environment::Tasks { .. } => "prompts",
        Environment::Mdp(_) => "instances",
    };
    let searching = |search: &crate::plan::SearchPlan| {
        let verifier = match &from.environment {
            Environment::Tasks { spec, .. } if crate::search::judges_steps(&spec.rewards) => {
                "the term `process`"
            }
            _ => "the environment's own verdict, an oracle",
        };
        let mut words = vec![format!(
            "search of `{}`, {} {unit} a step",
            search.split, search.prompts_per_step
        )];
        words.extend(search.max_steps.map(|n| format!("at most {n} steps")));
        words.extend(search.max_tokens.map(|n| format!("{n} tokens")));
        words.push(format!("verifier: {verifier}"));
        words.join(", ")
    };
    let schedule = match (plan.stages.len(), plan.repeat) {
        (0, _) if plan.search.is_some() => plan.search.iter().map(searching).collect(),
        (0, _) => {
            let length = match plan.schedule.length {
                Length::Epochs(n) => format!("{n} epochs of {steps_per_epoch} steps"),
                Length::Steps(_) => format!("{steps_per_round} steps, {steps_per_epoch} an epoch"),
            };
            format!("{length}, {} {unit} a step", plan.schedule.batch_size)
        }
        (1, 1) => "1 stage".to_string(),
        (n, 1) => format!("{n} stages"),
        (n, repeat) => format!("{n} stages, {repeat} times over"),
    };
    // Splits of later stages may not exist yet: their steps are not known here.
    let stage = |stage: &StagePlan| {
        let name = |place: &usize| {
            let plugin = &plan.plugins[*place];
            format!("{} {}", plugin.slot, plugin.name)
        };
        let length = match (stage.trainer, stage.schedule.length) {
            (None, _) if stage.search.is_some() => stage.search.iter().map(searching).collect(),
            (None, _) => "no steps".to_string(),
            (_, Length::Epochs(n)) => format!("{n} epochs"),
            (_, Length::Steps(n)) => format!("{n} steps"),
        };
        let mut words = vec![length];
        if stage.trainer.is_some() {
            words.push(format!("{} {unit} a step", stage.schedule.batch_size));
        }
        if stage.train != crate::plan::TRAIN {
            words.push(format!("on `{}`", stage.train));
        }
        words.extend(stage.freeze.then(|| "parameters frozen".to_string()));
        words.extend(stage.trainer.iter().chain(&stage.plugins).map(name));
        format!("{}: {}", stage.name, words.join(", "))
    };
    let stages = plan.stages.iter().map(stage).collect();
    Composition {
        name: plan.name.clone(),
        seed: plan.seed,
        threads: plan.threads,
        data: ComposedData {
            source,
            shape: from
                .inputs
                .iter()
                .find(|field| field.name == "inputs")
                .map(|field| field.shape.clone())
                .unwrap_or_default(),
            classes: first.map(|s| s.classes as usize).filter(|&n| n > 0),
            train: count("train"),
            validation: count("validation"),
            test: count("test"),
        },
        model: ComposedModel {
            text: architecture.map_or_else(|| layers.join(" · "), |plugin| plugin.name.clone()),
            layers: model.infos().len(),
            parameters: infos
                .iter()
                .filter(|i| i.kind != Kind::Buffer)
                .map(size)
                .sum(),
            prunable: infos
                .iter()
                .filter(|i| i.kind == Kind::Weight)
                .map(size)
                .sum(),
        },
        plugins: parts.iter().map(Part::composed).collect(),
        schedule,
        stages,
    }
}

impl Part {
    /// The plugin as a composition shows it.
    pub(crate) fn composed(&self) -> ComposedPlugin {
        ComposedPlugin {
            slot: self.plan.slot,
            name: self.plan.name.clone(),
            version: self.version.clone(),
            sha256: self.loaded.sha256.clone(),
            size: self.loaded.size,
            options: self.settings.clone(),
        }
    }
}
