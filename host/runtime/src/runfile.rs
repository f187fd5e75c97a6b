//! Reads a run file: TOML in, a complete [`Plan`] out, or every error in it with file, line and column.
//!
//! What is checked here is what the file alone can tell: keys, types, ranges, references between layers.
//! Whether data exist is checked when they are read, whether options fit a plugin when the plugin has
//! been asked (`options`). docs/run-file.md is the reference for people.

mod population;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::diagnostic::{Diagnostic, nearest, one_of};
use crate::document::{Document, Field, Fields, Origin, Reader, Value};
use crate::model::{KINDS, KindInfo, Preset};
use crate::plan::{
    BlockModel, CheckpointPlan, DataPlan, DataSource, Labelled, LayerPlan, Length, Limits, Loss,
    Normalize, OnFailure, OptionValue, Plan, PluginPlan, SchedulePlan, SearchPlan, Sines, Slot,
    StagePlan, TRAIN,
};

/// What the command line says over the run file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overrides {
    /// `--set path=value`, in the order given. The value is TOML where it parses as TOML, else text.
    pub sets: Vec<(String, String)>,
    /// `--seed`, over `run.seed`.
    pub seed: Option<u64>,
    /// `--threads`, over `run.threads`.
    pub threads: Option<usize>,
}

const RUN: [&str; 3] = ["name", "seed", "threads"];
const DATA: [&str; 26] = [
    "source",
    "path",
    "target",
    "classes",
    "context",
    "inputs",
    "targets",
    "test",
    "validation",
    "split-seed",
    "train-limit",
    "test-limit",
    "normalize",
    "edges",
    "train-per-class",
    "validation-per-class",
    "nodes-per-class",
    "p-in",
    "p-out",
    "features",
    "radius",
    "samples",
    "test-samples",
    "length",
    "frequencies",
    "noise",
];
const SCHEDULE: [&str; 10] = [
    "epochs",
    "steps",
    "steps-per-epoch",
    "batch-size",
    "evaluate-every",
    "evaluation-batch",
    "evaluation-episodes",
    "evaluate",
    "loss",
    "calibration",
];
const STAGE: [&str; 8] = [
    "name", "train", "freeze", "schedule", "trainer", "pruner", "auditor", "searcher",
];
const MODEL: [&str; 2] = ["layers", "from"];
const PLUGIN: [&str; 4] = ["plugin", "with", "limits", "on-failure"];
const SEARCHER: [&str; 8] = [
    "plugin",
    "with",
    "limits",
    "on-failure",
    "split",
    "prompts-per-step",
    "max-steps",
    "max-tokens",
];
const LIMITS: [&str; 5] = ["memory", "tensors", "handles", "call", "log"];
const CHECKPOINT: [&str; 2] = ["every", "keep"];
const ROOT: &[&str] = &[
    "run",
    "data",
    "environment",
    "model",
    "architecture",
    "schedule",
    "trainer",
    "pruner",
    "normalizer",
    "auditor",
    "transform",
    "tuner",
    "searcher",
    "checkpoint",
    "stage",
    "repeat",
];

/// Most times that the list of stages is gone through, and most stages in it.
const MOST_PASSES: u64 = 10_000;
const MOST_STAGES: usize = 100;

/// Most threads that a run may ask for; more than any machine this is meant for.
const MOST_THREADS: u64 = 1024;

/// Where Fashion-MNIST is looked for when `path` is not given: beside the run file, in the current folder,
/// then where systems keep shared data sets.
const FASHION_MNIST: &str = "data/fashion-mnist";
const FASHION_MNIST_SHARED: &str = "/usr/share/datasets/fashion-mnist";

/// Reads, overrides and checks a run file.
///
/// Errors name file, line, column and field; a file with several errors gives them all
/// ([`Diagnostic::more`]). An error in an override names the flag.
pub fn load(path: &Path, overrides: &Overrides) -> Result<Plan, Diagnostic> {
    check(Document::load(path, "run file")?, overrides)
}

fn check(mut document: Document, overrides: &Overrides) -> Result<Plan, Diagnostic> {
    for (key, value) in &overrides.sets {
        let flag = format!("--set {key}={value}");
        // The two lengths exclude each other: a flag for one replaces the other of the file.
        let other = match key.as_str() {
            "schedule.steps" => "epochs",
            "schedule.epochs" => "steps",
            _ => "",
        };
        if let Some((_, schedule)) = document.root.get_mut("schedule")
            && let Value::Table(schedule) = &mut schedule.value
            && schedule
                .get(other)
                .is_some_and(|(origin, _)| matches!(origin, Origin::File(_)))
        {
            schedule.remove(other);
        }
        document.set(key, value, &flag)?;
    }
    if let Some(seed) = overrides.seed {
        document.set("run.seed", &seed.to_string(), &format!("--seed {seed}"))?;
    }
    if let Some(threads) = overrides.threads {
        document.set(
            "run.threads",
            &threads.to_string(),
            &format!("--threads {threads}"),
        )?;
    }
    let reader = Reader::new(&document);
    let plan = read(&reader);
    reader.finish(plan)
}

fn read(reader: &Reader<'_>) -> Option<Plan> {
    let base = reader
        .document
        .file
        .parent()
        .unwrap_or(Path::new(""))
        .to_path_buf();
    let root = reader.root(ROOT);

    let run = root
        .get("run")
        .and_then(|field| field.table(&RUN, &belongs_elsewhere));
    let get = |key: &str| run.as_ref().and_then(|fields| fields.get(key));
    let stem = reader
        .document
        .file
        .file_stem()
        .map_or("run".into(), |stem| stem.to_string_lossy().into_owned());
    let name = get("name")
        .and_then(|field| run_name(&field))
        .unwrap_or(stem);
    let seed = get("seed")
        .and_then(|field| field.integer(0, u64::MAX))
        .unwrap_or(0);
    let cores = || std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let threads = get("threads")
        .and_then(|field| field.integer(1, MOST_THREADS))
        .unwrap_or_else(cores) as usize;

    let environment = root.get("environment");
    let has_data = environment.is_none();
    let data = match (root.get("data"), &environment) {
        (Some(_), Some(second)) => {
            second.error(
                Diagnostic::new("the run file gives both [data] and [environment]")
                    .expected("one of the two: what the model learns from")
                    .help("remove one"),
            );
            None
        }
        (None, Some(_)) => Some(None),
        _ => root
            .require(
                "data",
                "add [data] with source = \"digits\", or [environment] with plugin = \"modular-arithmetic\"",
            )
            .and_then(|field| data(&field, &base))
            .map(Some),
    };
    let environment = match &environment {
        Some(field) => plugin(field, Slot::Environment).map(Some),
        None => Some(None),
    };
    let architecture = root.get("architecture");
    let model = match (root.get("model"), &architecture) {
        (Some(_), Some(second)) => {
            second.error(
                Diagnostic::new("the run file gives both [model] and [architecture]")
                    .expected("one of the two: a list of layers, or a plugin that computes the model")
                    .help("remove one"),
            );
            None
        }
        (None, Some(_)) => Some((None, Vec::new())),
        _ => root
            .require(
                "model",
                "add [model] with layers = [{ kind = \"linear\", features = 10 }], or [architecture] with a plugin",
            )
            .and_then(|field| model(&field, &base)),
    };
    let architecture = match &architecture {
        Some(field) => plugin(field, Slot::Architecture).map(Some),
        None => Some(None),
    };
    let source = data.as_ref().and_then(|data| data.as_ref());
    let default_loss = source.map_or(Loss::CrossEntropy, |data| default_loss(&data.source));
    let stages = stages(&root, default_loss, has_data);
    let normalizer = match (root.get("normalizer"), has_data) {
        (Some(field), true) => {
            let _ = plugin(&field, Slot::Normalizer);
            field.error(
                Diagnostic::new("a normaliser needs an environment, whose rewards it sees")
                    .help("remove [normalizer], or put [environment] in the place of [data]"),
            );
            None
        }
        (Some(field), false) => plugin(&field, Slot::Normalizer).map(Some),
        (None, _) => Some(None),
    };
    let tuner = match root.get("tuner") {
        Some(field) => population::read(&field, root.get("checkpoint").as_ref()).map(Some),
        None => Some(None),
    };
    let checkpoint = root
        .get("checkpoint")
        .and_then(|field| field.table(&CHECKPOINT, &belongs_elsewhere));
    let get = |key: &str| checkpoint.as_ref().and_then(|fields| fields.get(key));
    let checkpoint = CheckpointPlan {
        every: get("every")
            .and_then(|field| field.integer(0, u64::MAX))
            .unwrap_or(0),
        keep: get("keep")
            .and_then(|field| field.integer(1, 10_000))
            .unwrap_or(2) as usize,
    };
    let transforms = match (root.get("transform"), has_data) {
        (Some(field), false) => {
            field.error(
                Diagnostic::new("a transform changes data, and this run has an environment")
                    .help("remove [[transform]], or put [data] in the place of [environment]"),
            );
            None
        }
        (Some(field), true) => plugins(&field, Slot::Transform),
        (None, _) => Some(Vec::new()),
    };
    let Stages {
        mut plugins,
        stages,
        repeat,
        schedule,
        search,
    } = stages?;
    let (from, model) = model?;
    plugins.extend(architecture?);
    plugins.extend(environment?.into_iter().chain(normalizer?));
    plugins.extend(transforms?);
    let (tuner, population) = tuner?.unzip();
    if let (Some(_), Some(field)) = (&population, root.get("stage").or(root.get("repeat"))) {
        field.error(
            Diagnostic::new(
                "a population has no stages: its members would have to wait for each other",
            )
            .help("remove [tuner], or the stages"),
        );
        return None;
    }
    plugins.extend(tuner);
    Some(Plan {
        name,
        seed,
        threads,
        repeat,
        data: data?,
        from,
        model,
        schedule,
        search,
        plugins,
        stages,
        checkpoint,
        population,
    })
}

// Stages.

/// What the file says of stages, or of the one stage that it is.
struct Stages {
    plugins: Vec<PluginPlan>,
    stages: Vec<StagePlan>,
    repeat: u32,
    schedule: SchedulePlan,
    search: Option<SearchPlan>,
}

/// The plugins that a stage can have, at the top of the file or in a stage; none where it says nothing.
struct Acting {
    trainer: Option<PluginPlan>,
    pruners: Option<Vec<PluginPlan>>,
    auditors: Option<Vec<PluginPlan>>,
    searcher: Option<(PluginPlan, SearchPlan)>,
}

fn acting(fields: &Fields<'_, '_>) -> Option<Acting> {
    let trainer = match fields.get("trainer") {
        Some(field) => plugin(&field, Slot::Trainer).map(Some),
        None => Some(None),
    };
    let several = |key: &str, slot| match fields.get(key) {
        Some(field) => plugins(&field, slot).map(Some),
        None => Some(None),
    };
    // Every one is read before any failure counts, so that all errors are shown.
    let pruners = several("pruner", Slot::Pruner);
    let auditors = several("auditor", Slot::Auditor);
    let searcher = match fields.get("searcher") {
        Some(field) => searcher(&field).map(Some),
        None => Some(None),
    };
    Some(Acting {
        trainer: trainer?,
        pruners: pruners?,
        auditors: auditors?,
        searcher: searcher?,
    })
}

/// A searcher and its budget; the place of its plugin is not known here.
fn searcher(field: &Field<'_, '_>) -> Option<(PluginPlan, SearchPlan)> {
    let plugin = plugin(field, Slot::Searcher);
    let fields = field.open_table(&SEARCHER)?;
    let count = |key: &str| {
        fields
            .get(key)
            .map(|field| field.integer(1, u32::MAX.into()))
    };
    let tokens = fields
        .get("max-tokens")
        .map(|field| field.integer(1, u64::MAX));
    let split = match fields.get("split") {
        Some(field) => field.text().map(str::to_string),
        None => Some("test".to_string()),
    };
    // Every one is read before any failure counts, so that all errors are shown.
    let (prompts, steps) = (count("prompts-per-step"), count("max-steps"));
    let prompts_per_step = match prompts {
        Some(prompts) => prompts? as u32,
        None => 16,
    };
    let max_steps = match steps {
        Some(steps) => Some(steps?),
        None => None,
    };
    let max_tokens = match tokens {
        Some(tokens) => Some(tokens?),
        None => None,
    };
    let search = SearchPlan {
        part: 0,
        split: split?,
        prompts_per_step,
        max_steps,
        max_tokens,
    };
    Some((plugin?, search))
}

/// The schedule of a search: its budget of steps, and what a step is.
fn search_schedule(search: &SearchPlan) -> SchedulePlan {
    SchedulePlan {
        calibration: false,
        length: Length::Steps(search.max_steps.unwrap_or(u32::MAX.into())),
        batch_size: search.prompts_per_step,
        steps_per_epoch: None,
        evaluation_episodes: 20,
        evaluate_every: 1,
        evaluation_batch: 512,
        loss: Loss::CrossEntropy,
        evaluate: Vec::new(),
    }
}

/// Refuses what has no place beside a searcher; true if nothing was there.
fn searches_alone(fields: &Fields<'_, '_>, keys: &[&str]) -> bool {
    let mut alone = true;
    for key in keys {
        if let Some(field) = fields.get(key) {
            field.error(
                Diagnostic::new(format!("[{key}] has no place beside a searcher"))
                    .expected("a searcher with an environment and a model: nothing is trained")
                    .help("remove it; a [[stage]] that trains may come before one that searches"),
            );
            alone = false;
        }
    }
    alone
}

/// Refuses a searcher in a run with data.
fn searches_prompts(field: &Field<'_, '_>, has_data: bool) -> Option<()> {
    match has_data {
        false => Some(()),
        true => {
            field.error(
                Diagnostic::new("a searcher needs an environment, whose prompts it answers")
                    .help("put [environment] in the place of [data]"),
            );
            None
        }
    }
}

/// Places of the plugins that stages share, each taken up the first time a stage needs it.
#[derive(Default)]
struct Places {
    plugins: Vec<PluginPlan>,
    shared: BTreeMap<(Slot, usize), usize>,
}

impl Places {
    fn own(&mut self, plugin: PluginPlan) -> usize {
        self.plugins.push(plugin);
        self.plugins.len() - 1
    }

    fn of_top(&mut self, number: usize, plugin: &PluginPlan) -> usize {
        let next = self.plugins.len();
        let place = *self.shared.entry((plugin.slot, number)).or_insert(next);
        if place == next {
            self.plugins.push(plugin.clone());
        }
        place
    }

    /// A stage's own plugins of a slot, or the top level's.
    fn several(
        &mut self,
        own: Option<Vec<PluginPlan>>,
        top: &Option<Vec<PluginPlan>>,
    ) -> Vec<usize> {
        match own {
            Some(own) => own.into_iter().map(|plugin| self.own(plugin)).collect(),
            None => top
                .iter()
                .flatten()
                .enumerate()
                .map(|(number, plugin)| self.of_top(number, plugin))
                .collect(),
        }
    }
}

fn stages(root: &Fields<'_, '_>, default_loss: Loss, has_data: bool) -> Option<Stages> {
    let top = acting(root);
    let repeat = root.get("repeat");
    let listed = root.get("stage").map(|field| match field.item.value {
        Value::Array(_) => field.list("a table"),
        _ => Some(vec![field.clone()]),
    });
    let Some(listed) = listed.filter(|listed| listed.as_ref().is_none_or(|l| !l.is_empty())) else {
        if let Some(repeat) = repeat {
            repeat.error(
                Diagnostic::new("`repeat` repeats a list of stages, and there is none")
                    .help("remove it, or add [[stage]] tables"),
            );
        }
        if let Some(field) = root.get("searcher") {
            let alone = searches_alone(root, &["schedule", "trainer", "pruner", "normalizer"]);
            searches_prompts(&field, has_data)?;
            let top = top.filter(|_| alone)?;
            let (searcher, search) = top.searcher?;
            let auditors = top.auditors.into_iter().flatten();
            return Some(Stages {
                plugins: std::iter::once(searcher).chain(auditors).collect(),
                stages: Vec::new(),
                repeat: 1,
                schedule: search_schedule(&search),
                search: Some(search),
            });
        }
        let field = root.require("schedule", "add [schedule] with epochs = 10");
        let schedule =
            field.and_then(|field| schedule(None, Some(&field), None, default_loss, has_data));
        let trainer = root.require("trainer", "add [trainer] with plugin = \"backprop\"");
        let top = top?;
        trainer?;
        let plugins = top.trainer.into_iter();
        let plugins = plugins.chain(top.pruners.into_iter().flatten());
        return Some(Stages {
            plugins: plugins.chain(top.auditors.into_iter().flatten()).collect(),
            stages: Vec::new(),
            repeat: 1,
            schedule: schedule?,
            search: None,
        });
    };
    if let Some(field) = root.get("searcher") {
        field.error(
            Diagnostic::new("[searcher] stands at the top of a file with stages")
                .help("put it in a stage of its own: [stage.searcher]"),
        );
        return None;
    }
    let listed = listed?;
    if listed.len() > MOST_STAGES {
        return root
            .get("stage")?
            .refuse(&format!("at most {MOST_STAGES} stages"));
    }
    let repeat = repeat.map_or(Some(1), |field| field.integer(1, MOST_PASSES));
    let base = root.get("schedule");
    let mut places = Places::default();
    let mut all = Vec::new();
    let mut whole = true;
    for (number, field) in listed.iter().enumerate() {
        let trains = |(_, stage): &(_, StagePlan)| stage.trainer.is_some();
        let before = all.iter().any(trains);
        let top = top.as_ref();
        let context = Around {
            base: base.as_ref(),
            number,
            before: before || !whole,
            default_loss,
            has_data,
        };
        match top.and_then(|top| stage(field, top, &mut places, &context)) {
            Some(stage) => all.push((field, stage)),
            None => whole = false,
        }
    }
    let mut names = BTreeSet::new();
    for (field, stage) in &all {
        let passes = (1..=repeat.unwrap_or(1)).map(|pass| match pass {
            1 => stage.name.clone(),
            pass => format!("{}-{pass}", stage.name),
        });
        for name in passes {
            if !names.insert(name.clone()) {
                field.error(
                    Diagnostic::new(format!("two stages are called `{name}`"))
                        .help("give one of them another `name`"),
                );
                whole = false;
                break;
            }
        }
    }
    let stages: Vec<StagePlan> = all.into_iter().map(|(_, stage)| stage).collect();
    let schedule = stages.first().map(|stage| stage.schedule.clone());
    (whole && top.is_some()).then_some(Stages {
        plugins: places.plugins,
        stages,
        repeat: repeat? as u32,
        schedule: schedule?,
        search: None,
    })
}

/// What surrounds a stage in its file.
struct Around<'a, 'r, 'd> {
    /// The top level's [schedule].
    base: Option<&'a Field<'r, 'd>>,
    /// Stages before it.
    number: usize,
    /// Whether one of those has a trainer.
    before: bool,
    default_loss: Loss,
    has_data: bool,
}

fn stage(
    field: &Field<'_, '_>,
    top: &Acting,
    places: &mut Places,
    around: &Around<'_, '_, '_>,
) -> Option<StagePlan> {
    let advice = |key: &str| match key {
        "environment" | "normalizer" | "transform" | "data" | "model" | "run" | "checkpoint" => {
            Some(format!(
                "[{key}] stands at the top: it is for the whole run"
            ))
        }
        _ => belongs_elsewhere(key),
    };
    let fields = field.table(&STAGE, &advice)?;
    let name = match fields.get("name") {
        Some(field) => {
            let name = run_name(&field);
            match name {
                Some(name) if name.contains(' ') => field.malformed("a name without spaces"),
                name => name,
            }
        }
        None => Some(format!("stage{}", around.number + 1)),
    };
    let train = match fields.get("train") {
        Some(field) if !around.has_data && matches!(field.item.value, Value::Text(_)) => {
            field.error(
                Diagnostic::new("`train` names a split of data, and this run has an environment")
                    .help("remove it; `train = false` makes a stage without steps"),
            );
            None
        }
        None => Some(Some(TRAIN.to_string())),
        Some(field) => match &field.item.value {
            Value::Bool(false) => Some(None),
            Value::Text(_) => field.text().map(|split| Some(split.to_string())),
            _ => field
                .malformed("the name of a split in quotes, or `false` for a stage without steps"),
        },
    };
    let freeze = fields
        .get("freeze")
        .map_or(Some(false), |field| field.bool());
    let own = acting(&fields);
    let (name, train, freeze, own) = (name?, train?, freeze?, own?);
    if let Some((plugin, search)) = own.searcher {
        let alone = searches_alone(&fields, &["train", "schedule", "trainer", "pruner"]);
        searches_prompts(&fields.get("searcher")?, around.has_data)?;
        if !alone {
            return None;
        }
        let part = places.own(plugin);
        let mut plugins = vec![part];
        plugins.extend(places.several(own.auditors, &None));
        return Some(StagePlan {
            name,
            train: TRAIN.into(),
            freeze: true,
            trainer: None,
            plugins,
            schedule: search_schedule(&search),
            search: Some(SearchPlan { part, ..search }),
        });
    }
    let stands = own.trainer.is_some() || top.trainer.is_some();
    // A stage that trains nothing keeps the trainer before it, for predictions.
    let steps = train.is_some() && stands;
    if !steps {
        if let Some(field) = fields.get("trainer") {
            field.error(
                Diagnostic::new(format!(
                    "stage `{name}` has a trainer and says `train = false`"
                ))
                .help("remove one of the two"),
            );
            return None;
        }
        if !around.before {
            fields.error(
                Diagnostic::new(format!(
                    "stage `{name}` has no trainer, and no stage before it has one"
                ))
                .expected("a trainer in the first stage: it predicts for those that follow")
                .help("add [stage.trainer], or [trainer] at the top"),
            );
            return None;
        }
    }
    if freeze && let Some(field) = fields.get("pruner") {
        field.error(
            Diagnostic::new(format!(
                "stage `{name}` freezes what its pruner would change"
            ))
            .help("remove `freeze`, or the pruner"),
        );
        return None;
    }
    let own_schedule = fields.get("schedule");
    let schedule = schedule(
        own_schedule.as_ref(),
        around.base,
        Some((&fields, steps)),
        around.default_loss,
        around.has_data,
    )?;
    let trainer = match (steps, own.trainer) {
        (false, _) => None,
        (true, Some(own)) => Some(places.own(own)),
        (true, None) => top.trainer.as_ref().map(|top| places.of_top(0, top)),
    };
    let none = Some(Vec::new());
    let inherited = match steps && !freeze {
        true => &top.pruners,
        false => &none,
    };
    let mut plugins = places.several(own.pruners, inherited);
    plugins.extend(places.several(own.auditors, &top.auditors));
    Some(StagePlan {
        name,
        train: train.unwrap_or_else(|| TRAIN.into()),
        freeze,
        trainer,
        plugins,
        schedule,
        search: None,
    })
}

/// A key that stands in the wrong table: says which table it belongs to.
fn belongs_elsewhere(key: &str) -> Option<String> {
    let tables: [(&str, &[&str]); 6] = [
        ("run", &RUN),
        ("data", &DATA),
        ("schedule", &SCHEDULE),
        ("checkpoint", &CHECKPOINT),
        ("model", &MODEL),
        ("stage", &["train", "freeze"]),
    ];
    tables
        .iter()
        .find(|(_, keys)| keys.contains(&key))
        .map(|(table, _)| match *table {
            "stage" => format!("`{key}` belongs in a [[stage]]"),
            table => format!("`{key}` belongs in [{table}]"),
        })
}

/// The name becomes a folder, so it may not lead anywhere else.
fn run_name(field: &Field<'_, '_>) -> Option<String> {
    let name = field.text()?;
    let plain = |c: char| c.is_alphanumeric() || "-_.+ ".contains(c);
    if name.starts_with('.') || !name.chars().all(plain) {
        return field.malformed("letters, digits, spaces and - _ . +, not beginning with a dot");
    }
    Some(name.to_string())
}

// Data.

const SOURCES: [&str; 9] = [
    "digits",
    "fashion-mnist",
    "idx",
    "csv",
    "npy",
    "text",
    "graph",
    "block-model",
    "sines",
];

fn data(field: &Field<'_, '_>, base: &Path) -> Option<DataPlan> {
    let all = field.open_table(&DATA)?;
    let source = all
        .require(
            "source",
            "add source = \"digits\", or another of fashion-mnist, idx, csv, npy, text, graph, block-model, sines",
        )
        .and_then(|field| field.choice("data source", &SOURCES))?;
    let source = SOURCES[source];
    let own: &[&str] = match source {
        "idx" | "fashion-mnist" => &["path"],
        "csv" => &["path", "target", "classes", "test"],
        "npy" => &["inputs", "targets", "test"],
        "graph" => &[
            "path",
            "edges",
            "target",
            "train-per-class",
            "validation-per-class",
        ],
        "block-model" => &[
            "classes",
            "nodes-per-class",
            "p-in",
            "p-out",
            "features",
            "radius",
            "train-per-class",
            "validation-per-class",
        ],
        "text" => &["path", "context", "test"],
        "sines" => &["samples", "test-samples", "length", "frequencies", "noise"],
        _ => &["test"],
    };
    // The nodes of a graph are not split by fractions, and not scaled.
    const GRAPH: [&str; 2] = ["source", "split-seed"];
    const COMMON: [&str; 6] = [
        "source",
        "split-seed",
        "validation",
        "train-limit",
        "test-limit",
        "normalize",
    ];
    let common: &[&str] = match source {
        "graph" | "block-model" => &GRAPH,
        _ => &COMMON,
    };
    let known: Vec<&str> = common.iter().chain(own).copied().collect();
    let advice = |key: &str| match key {
        "test" => Some(format!(
            "`{source}` has a test split of its own; `test-limit` takes fewer of it"
        )),
        _ if DATA.contains(&key) => Some(format!("the source `{source}` has no use for `{key}`")),
        _ => belongs_elsewhere(key),
    };
    let fields = field.table(&known, &advice)?;
    let need = |key: &str, help: &str| fields.require(key, help).and_then(|field| field.path(base));
    let whole = |key: &str, low: u64, high: u64| {
        let field = fields.get(key)?;
        field.integer(low, high).map(|n| n as u32)
    };
    let number = |key: &str, high: f64| fields.get(key)?.number(0.0, high);
    let labelled = || Labelled {
        train: whole("train-per-class", 1, 1 << 20).unwrap_or(10),
        validation: whole("validation-per-class", 0, 1 << 20).unwrap_or(20),
    };
    let source = match source {
        "fashion-mnist" => match fields.get("path") {
            Some(field) => field.path(base).map(|path| DataSource::Idx { path }),
            None => fashion_mnist(&fields, base),
        },
        "idx" => need(
            "path",
            "add path = \"FOLDER\", the folder with the IDX files",
        )
        .map(|path| DataSource::Idx { path }),
        "csv" => {
            let path = need("path", "add path = \"FILE.csv\"");
            let target = fields.require("target", "add target = \"COLUMN\", the column to predict");
            let target = target.and_then(|field| field.text());
            let classes = fields
                .get("classes")
                .and_then(|field| field.bool())
                .unwrap_or(true);
            path.zip(target).map(|(path, target)| DataSource::Csv {
                path,
                target: target.to_string(),
                classes,
            })
        }
        "npy" => need("inputs", "add inputs = \"FILE.npy\"")
            .zip(need("targets", "add targets = \"FILE.npy\""))
            .map(|(inputs, targets)| DataSource::Npy { inputs, targets }),
        "graph" => {
            let nodes = need("path", "add path = \"NODES.csv\"");
            let edges = need("edges", "add edges = \"EDGES.csv\"");
            let target = fields.require("target", "add target = \"COLUMN\", the class of a node");
            let target = target.and_then(|field| field.text());
            match (nodes, edges, target) {
                (Some(path), Some(edges), Some(target)) => Some(DataSource::Graph {
                    path,
                    edges,
                    target: target.to_string(),
                    labelled: labelled(),
                }),
                _ => None,
            }
        }
        "block-model" => Some(DataSource::BlockModel {
            model: BlockModel {
                classes: whole("classes", 2, 1 << 10).unwrap_or(3),
                nodes_per_class: whole("nodes-per-class", 1, 1 << 14).unwrap_or(100),
                p_in: number("p-in", 1.0).unwrap_or(0.1),
                p_out: number("p-out", 1.0).unwrap_or(0.01),
                features: whole("features", 1, 1 << 10).unwrap_or(16),
                radius: number("radius", 1e6).unwrap_or(1.0),
            },
            labelled: labelled(),
        }),
        "sines" => {
            let frequencies = match fields.get("frequencies") {
                Some(field) => field.numbers(),
                None => Some(vec![3.0, 5.0, 8.0]),
            };
            frequencies.map(|frequencies| {
                DataSource::Sines(Sines {
                    count: whole("samples", 1, 1 << 20).unwrap_or(1500),
                    test_count: whole("test-samples", 1, 1 << 20).unwrap_or(1000),
                    length: whole("length", 4, 1 << 14).unwrap_or(64),
                    frequencies,
                    noise: number("noise", 1e6).unwrap_or(0.5),
                })
            })
        }
        "text" => {
            let context = match fields.get("context") {
                Some(field) => field.integer(1, 1 << 20),
                None => Some(64),
            };
            need("path", "add path = \"FILE.txt\", plain or gzip")
                .zip(context)
                .map(|(path, context)| DataSource::Text {
                    path,
                    context: context as u32,
                })
        }
        _ => Some(DataSource::Digits),
    };
    let limit = |key: &str| {
        fields
            .get(key)
            .and_then(|field| field.integer(1, u64::MAX))
            .map(|n| n as usize)
    };
    const NORMALIZE: [(&str, Normalize); 3] = [
        ("none", Normalize::None),
        ("standard", Normalize::Standard),
        ("per-feature", Normalize::PerFeature),
    ];
    let normalize = fields.get("normalize");
    let normalize =
        normalize.and_then(|field| field.choice("scaling", &NORMALIZE.map(|(name, _)| name)));
    Some(DataPlan {
        source: source?,
        test: fields
            .get("test")
            .and_then(|field| field.fraction())
            .unwrap_or(0.25),
        validation: fields
            .get("validation")
            .and_then(|field| field.fraction())
            .unwrap_or(0.0),
        split_seed: fields
            .get("split-seed")
            .and_then(|field| field.integer(0, u64::MAX))
            .unwrap_or(0),
        train_limit: limit("train-limit"),
        test_limit: limit("test-limit"),
        normalize: normalize.map_or(Normalize::None, |index| NORMALIZE[index].1),
    })
}

fn fashion_mnist(fields: &Fields<'_, '_>, base: &Path) -> Option<DataSource> {
    let mut places = vec![
        base.join(FASHION_MNIST),
        PathBuf::from(FASHION_MNIST),
        PathBuf::from(FASHION_MNIST_SHARED),
    ];
    places.dedup();
    let found = places.iter().find(|place| place.is_dir()).cloned();
    if found.is_none() {
        let looked: Vec<String> = places
            .iter()
            .map(|place| place.display().to_string())
            .collect();
        fields.error(
            Diagnostic::new("Fashion-MNIST is not on this machine")
                .detail("looked in", looked.join("\n"))
                .help("put its four IDX files (gzipped or not) in one of these folders, or give data.path"),
        );
    }
    found.map(|path| DataSource::Idx { path })
}

/// Classes are scored by cross-entropy, values by the squared difference. For NPY the header of the
/// targets tells; what cannot be read is left to the reader of the data to refuse.
fn default_loss(source: &DataSource) -> Loss {
    let classes = match source {
        DataSource::Digits
        | DataSource::Sines(_)
        | DataSource::Idx { .. }
        | DataSource::Text { .. }
        | DataSource::Graph { .. }
        | DataSource::BlockModel { .. } => true,
        DataSource::Csv { classes, .. } => *classes,
        DataSource::Npy { targets, .. } => !npy_is_float(targets).unwrap_or(false),
    };
    if classes {
        Loss::CrossEntropy
    } else {
        Loss::Mse
    }
}

fn npy_is_float(path: &Path) -> Option<bool> {
    use std::io::Read;
    let mut head = Vec::new();
    std::fs::File::open(path)
        .ok()?
        .take(256)
        .read_to_end(&mut head)
        .ok()?;
    let head = String::from_utf8_lossy(&head);
    let (_, rest) = head.split_once("'descr':")?;
    let kind = rest.split('\'').nth(1)?;
    Some(kind.contains('f'))
}

// Model.

/// The run or checkpoint that the model is taken from, and its layers, which such a one knows itself.
fn model(field: &Field<'_, '_>, base: &Path) -> Option<(Option<PathBuf>, Vec<LayerPlan>)> {
    let fields = field.table(&MODEL, &belongs_elsewhere)?;
    let from = match fields.get("from") {
        Some(field) => Some(field.path(base)?),
        None => None,
    };
    if from.is_some() && fields.get("layers").is_none() {
        return Some((from, Vec::new()));
    }
    Some((from, layers(&fields)?))
}

fn layers(fields: &Fields<'_, '_>) -> Option<Vec<LayerPlan>> {
    const EXPECTED: &str = "a list of layers, each { kind = \"...\", ... }";
    let list = fields.require(
        "layers",
        "add layers = [{ kind = \"linear\", features = 10 }]",
    )?;
    let items = list.list(EXPECTED)?;
    if items.is_empty() {
        return list.refuse("at least one layer");
    }
    // Names that the file gives come first: a layer without one takes a number that is free.
    let given_name = |item: &Field<'_, '_>| match &item.item.value {
        Value::Table(table) => match &table.get("name")?.1.value {
            Value::Text(name) => Some(name.clone()),
            _ => None,
        },
        _ => None,
    };
    let mut taken: BTreeSet<String> = items.iter().filter_map(given_name).collect();
    let mut before: Vec<String> = Vec::new();
    let mut layers = Vec::new();
    let mut whole = true;
    for item in items {
        // After a wrong layer, what later ones read cannot be judged.
        match layer(&item, &mut taken, &before, whole) {
            Some(layer) => {
                before.push(layer.name.clone());
                layers.push(layer);
            }
            None => whole = false,
        }
    }
    whole.then_some(layers)
}

/// What every layer may say.
const LAYER: [&str; 5] = ["kind", "name", "inputs", "frozen", "group"];

/// What a layer's name may not be, because a plugin asks for the batch's fields by these names.
const FIELDS: [&str; 3] = ["inputs", "targets", "input"];

fn layer(
    item: &Field<'_, '_>,
    taken: &mut BTreeSet<String>,
    before: &[String],
    before_is_whole: bool,
) -> Option<LayerPlan> {
    let fields = item.open_table(&[])?;
    let kinds: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
    let kind = fields.require("kind", "add kind = \"linear\", or another kind of layer")?;
    let info = &KINDS[kind.choice("kind of layer", &kinds)?];
    let kind = info.name;
    let name = match fields.get("name") {
        Some(field) => {
            let name = field.text()?.to_string();
            if FIELDS.contains(&name.as_str()) || name.contains(['/', '.']) {
                let error = Diagnostic::new(format!("a layer cannot be called `{name}`"));
                field.error(
                    error.expected("a name without / and . that is not a field of the data"),
                );
                return None;
            }
            if before.contains(&name) {
                let error = Diagnostic::new(format!("two layers are called `{name}`"));
                field.error(error.help("give one of them another `name`"));
                return None;
            }
            name
        }
        None => {
            let mut number = 1;
            while !taken.insert(format!("{kind}{number}")) {
                number += 1;
            }
            format!("{kind}{number}")
        }
    };
    let mut inputs = Vec::new();
    if let Some(field) = fields.get("inputs") {
        for input in field.list("a list of names of earlier layers")? {
            let wanted = input.text()?;
            let known = wanted == "inputs" || before.iter().any(|name| name == wanted);
            if before_is_whole && !known {
                let valid = || before.iter().map(String::as_str).chain(["inputs"]);
                let near = nearest(wanted, valid()).map(|near| format!("did you mean `{near}`?"));
                let error = Diagnostic::new(format!(
                    "layer `{name}` reads `{wanted}`, which is no earlier layer"
                ));
                input.error(error.expected(one_of(valid())).help_if(near));
                return None;
            }
            inputs.push(wanted.to_string());
        }
    }
    let frozen = match fields.get("frozen") {
        Some(field) => field.bool()?,
        None => false,
    };
    let group = match fields.get("group") {
        Some(field) => field.text()?.to_string(),
        None => String::new(),
    };
    let settings = settings(&fields, &name, info)?;
    Some(LayerPlan {
        name,
        kind: info.name.to_string(),
        inputs,
        frozen,
        group,
        settings,
    })
}

/// What the file says of a layer's kind; settings that it leaves out are the model's to fill in. Whether they
/// fit the shapes that reach the layer is the model's to judge as well.
fn settings(
    fields: &Fields<'_, '_>,
    name: &str,
    kind: &'static KindInfo,
) -> Option<BTreeMap<String, Vec<f64>>> {
    let mut whole = true;
    let mut settings = BTreeMap::new();
    for key in fields.table.keys() {
        let field = fields.get(key)?;
        let Some(info) = kind.settings.iter().find(|setting| setting.name == key) else {
            if !LAYER.contains(&key.as_str()) {
                let names = || {
                    kind.settings
                        .iter()
                        .map(|setting| setting.name)
                        .chain(LAYER.into_iter().skip(1))
                };
                let near = nearest(key, names()).map(|near| format!("did you mean `{near}`?"));
                let what = format!("layer `{name}` ({}) has no setting `{key}`", kind.name);
                field.error(
                    Diagnostic::new(what)
                        .expected(one_of(names()))
                        .help_if(near),
                );
                whole = false;
            }
            continue;
        };
        let Some(numbers) = field.numbers() else {
            whole = false;
            continue;
        };
        let most = if info.pair { 2 } else { 1 };
        if numbers.len() > most || !numbers.iter().all(|number| info.range.allows(*number)) {
            let expected = info.range.expected();
            let expected = if info.pair {
                format!("{expected}, or two of them in a list")
            } else {
                expected
            };
            field.refuse::<()>(&expected);
            whole = false;
        }
        settings.insert(key.clone(), numbers);
    }
    let names = || kind.settings.iter().map(|setting| setting.name);
    for setting in kind.settings {
        let given = settings.contains_key(setting.name) || fields.table.contains_key(setting.name);
        let misspelt = || {
            let unknown = |key: &&String| names().all(|name| name != key.as_str());
            fields
                .table
                .keys()
                .filter(unknown)
                .any(|key| nearest(key, names()) == Some(setting.name))
        };
        if setting.default == Preset::Required && !given && !misspelt() {
            let what = format!("layer `{name}` ({}) has no `{}`", kind.name, setting.name);
            fields.error(Diagnostic::new(what).expected(setting.range.expected()));
            whole = false;
        }
    }
    whole.then_some(settings)
}

// Schedule.

fn schedule_table<'r, 'd>(field: &Field<'r, 'd>) -> Option<Fields<'r, 'd>> {
    field.table(&SCHEDULE, &belongs_elsewhere)
}

/// What a stage says of its schedule over what the top level says. `stage` is the stage and whether it makes steps;
/// none for a file without stages.
fn schedule(
    own: Option<&Field<'_, '_>>,
    base: Option<&Field<'_, '_>>,
    stage: Option<(&Fields<'_, '_>, bool)>,
    default_loss: Loss,
    has_data: bool,
) -> Option<SchedulePlan> {
    let (own, base) = (own.map(schedule_table), base.map(schedule_table));
    let tables: Vec<&Fields<'_, '_>> = own.iter().chain(&base).flatten().collect();
    let get = |key: &str| tables.iter().find_map(|fields| fields.get(key));
    let misplaced: &[&str] = match has_data {
        true => &["steps-per-epoch", "evaluation-episodes"],
        false => &["loss", "evaluate"],
    };
    for key in misplaced {
        if let Some(field) = get(key) {
            field.error(match has_data {
                true => Diagnostic::new(format!("`{key}` is for runs with an [environment]"))
                    .help("remove it: with [data] an epoch is a pass over the training split"),
                false => Diagnostic::new(format!("`{key}` is for runs with [data]"))
                    .help("remove it: an [environment] has losses and measurements of its own"),
            });
        }
    }
    let count = |key: &str| get(key).and_then(|field| field.integer(1, u64::MAX));
    let says = |fields: &&&Fields<'_, '_>| {
        ["epochs", "steps"]
            .iter()
            .any(|key| fields.get(key).is_some() || fields.misspelt(key))
    };
    let length = match (tables.iter().find(says), stage) {
        (_, Some((_, false))) => Some(Length::Steps(0)),
        (Some(fields), _) => {
            let read = |key: &str| fields.get(key).and_then(|field| field.integer(1, u64::MAX));
            let (epochs, steps) = (read("epochs"), read("steps"));
            match (fields.get("epochs"), fields.get("steps")) {
                (Some(_), Some(second)) => {
                    second.error(
                        Diagnostic::new("[schedule] gives both `epochs` and `steps`")
                            .expected("one of the two: how long a round is")
                            .help("remove one"),
                    );
                    None
                }
                _ => epochs.map(Length::Epochs).or(steps.map(Length::Steps)),
            }
        }
        (None, Some((stage, true))) => {
            stage.error(
                Diagnostic::new("the stage does not say how long to train")
                    .help("add [stage.schedule] with `epochs = 10` or `steps = 1000`, or [schedule] at the top for all stages"),
            );
            None
        }
        (None, None) => {
            for fields in &tables {
                fields.error(
                    Diagnostic::new("[schedule] does not say how long to train")
                        .help("add `epochs = 10` or `steps = 1000`"),
                );
            }
            None
        }
    };
    let small = |key: &str, default: u32| {
        let value = get(key).and_then(|field| field.integer(1, u32::MAX.into()));
        value.map_or(default, |value| value as u32)
    };
    let loss = get("loss").and_then(|field| field.choice("loss", &["cross-entropy", "mse"]));
    let evaluate = match get("evaluate") {
        Some(field) => field
            .list("a list of names of splits")?
            .iter()
            .map(|name| name.text().map(str::to_string))
            .collect::<Option<Vec<String>>>()?,
        None => Vec::new(),
    };
    Some(SchedulePlan {
        length: length?,
        batch_size: small("batch-size", 64),
        steps_per_epoch: count("steps-per-epoch"),
        evaluation_episodes: small("evaluation-episodes", 20),
        evaluate_every: small("evaluate-every", 1),
        evaluation_batch: small("evaluation-batch", 512),
        loss: loss.map_or(default_loss, |index| [Loss::CrossEntropy, Loss::Mse][index]),
        evaluate,
        calibration: get("calibration")
            .and_then(|field| field.bool())
            .unwrap_or_default(),
    })
}

// Plugins.

/// The plugins of a slot that a run can have several of.
fn plugins(field: &Field<'_, '_>, slot: Slot) -> Option<Vec<PluginPlan>> {
    let items = match field.item.value {
        Value::Array(_) => field.list("a table")?,
        _ => vec![field.clone()],
    };
    // Every one is read before any failure counts, so that all errors are shown.
    let read: Vec<Option<PluginPlan>> = items.iter().map(|item| plugin(item, slot)).collect();
    read.into_iter().collect()
}

fn plugin(field: &Field<'_, '_>, slot: Slot) -> Option<PluginPlan> {
    let path = &field.path;
    let advice = |key: &str| {
        let general = format!("options of the plugin itself go in [{path}.with]");
        if LIMITS.contains(&key) {
            Some(format!("limits go in [{path}.limits]"))
        } else {
            Some(general)
        }
    };
    let known: &[&str] = match slot {
        Slot::Tuner => &population::TUNER,
        Slot::Searcher => &SEARCHER,
        _ => &PLUGIN,
    };
    let fields = field.table(known, &advice)?;
    let example = match slot {
        Slot::Trainer => "backprop",
        Slot::Pruner => "magnitude",
        Slot::Environment => "modular-arithmetic",
        Slot::Normalizer => "grpo",
        Slot::Architecture => "bdh",
        Slot::Tuner => "pbt",
        Slot::Auditor => "badexpert",
        Slot::Transform => "patch-trigger",
        Slot::Searcher => "entropic-pf",
    };
    let name = fields.require("plugin", &format!("add plugin = \"{example}\""));
    let place = name
        .as_ref()
        .map(|name| field.reader.document.short_place(&name.item.origin));
    let name = name.and_then(|field| field.text()).map(str::to_string);

    let mut options = BTreeMap::new();
    let mut option_places = BTreeMap::new();
    let with = fields.get("with").and_then(|field| field.open_table(&[]));
    for (key, (origin, _)) in with.iter().flat_map(|with| with.table) {
        let value = with
            .as_ref()
            .and_then(|with| with.get(key))
            .and_then(|field| option_value(&field));
        if let Some(value) = value {
            options.insert(key.clone(), value);
            option_places.insert(key.clone(), field.reader.document.short_place(origin));
        }
    }

    let limits = fields
        .get("limits")
        .and_then(|field| field.table(&LIMITS, &|_| None));
    let get = |key: &str| limits.as_ref().and_then(|fields| fields.get(key));
    let default = Limits::default();
    let limits = Limits {
        memory: get("memory")
            .and_then(|field| field.bytes())
            .unwrap_or(default.memory),
        tensors: get("tensors")
            .and_then(|field| field.bytes())
            .unwrap_or(default.tensors),
        handles: get("handles")
            .and_then(|field| field.integer(1, u32::MAX.into()))
            .map_or(default.handles, |n| n as u32),
        call: get("call")
            .and_then(|field| field.duration())
            .unwrap_or(default.call),
        log: get("log")
            .and_then(|field| field.bytes())
            .unwrap_or(default.log),
    };

    let on_failure = fields.get("on-failure");
    let chosen = on_failure
        .as_ref()
        .and_then(|field| field.choice("failure policy", &["fail", "restart", "skip"]));
    let chosen = chosen.map_or(OnFailure::Fail, |index| {
        [OnFailure::Fail, OnFailure::Restart, OnFailure::Skip][index]
    });
    if let Some(field) = &on_failure {
        let (refused, expected): (bool, &[&str]) = match slot {
            Slot::Trainer => (chosen == OnFailure::Skip, &["fail", "restart"]),
            Slot::Pruner => (false, &[]),
            Slot::Auditor => (chosen == OnFailure::Restart, &["fail", "skip"]),
            _ => (chosen != OnFailure::Fail, &["fail"]),
        };
        if refused {
            let found = match chosen {
                OnFailure::Skip => "`skip`",
                _ => "`restart`",
            };
            field.error(
                Diagnostic::new(match chosen {
                    OnFailure::Skip => format!("a run cannot go on without its {slot}"),
                    _ => format!(
                        "a run cannot go on after its {slot} failed in the middle of a step"
                    ),
                })
                .expected(one_of(expected.iter().copied()))
                .found(found),
            );
        }
    }
    Some(PluginPlan {
        slot,
        name: name?,
        place: place?,
        options,
        option_places,
        limits,
        on_failure: chosen,
    })
}

fn option_value(field: &Field<'_, '_>) -> Option<OptionValue> {
    Some(match &field.item.value {
        Value::Bool(value) => OptionValue::Bool(*value),
        Value::Integer(value) => match i64::try_from(*value) {
            Ok(value) => OptionValue::Integer(value),
            Err(_) => return field.refuse("a whole number of at most 64 bits"),
        },
        Value::Float(value) => OptionValue::Float(*value),
        Value::Text(text) => OptionValue::Text(text.clone()),
        Value::Array(items) if items.is_empty() => OptionValue::Floats(Vec::new()),
        Value::Array(_) => OptionValue::Floats(field.numbers()?),
        Value::Date(_) | Value::Table(_) => {
            let error = Diagnostic::new("an option cannot hold this");
            field.error(error.expected("`true` or `false`, a number, text, or a list of numbers"));
            return None;
        }
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const GOOD: &str = r#"
[run]
name = "digits"
seed = 7
threads = 2
[data]
source = "digits"
validation = 0.1
normalize = "standard"
[model]
layers = [
  { kind = "linear", features = 128 },
  { kind = "relu" },
  { kind = "conv2d", name = "c", features = 4, kernel = [3, 3], bias = false },
  { kind = "add", inputs = ["c", "relu1"] },
  { kind = "linear", features = 10 },
]
[schedule]
epochs = 40
[trainer]
plugin = "backprop"
with = { optimizer = "adam", lr = 1e-3, steps = 3, decay = [1, 0.5], none = [], nesterov = true }
limits = { memory = "1.5 MiB", handles = 10, call = "250 ms" }
on-failure = "restart"
[[pruner]]
plugin = "magnitude"
[[pruner]]
plugin = "granet"
on-failure = "skip"
"#;

    fn read_with(text: &str, overrides: &Overrides) -> Result<Plan, Diagnostic> {
        check(
            Document::parse(Path::new("x/run.toml"), text.to_string())?,
            overrides,
        )
    }

    fn set(path: &str, value: &str) -> Overrides {
        Overrides {
            sets: vec![(path.into(), value.into())],
            ..Overrides::default()
        }
    }

    fn error(text: &str, overrides: &Overrides) -> String {
        read_with(text, overrides).unwrap_err().to_string()
    }

    #[test]
    fn a_run_file_becomes_a_complete_plan() {
        let plan = read_with(GOOD, &Overrides::default()).unwrap();
        assert_eq!(
            (plan.name.as_str(), plan.seed, plan.threads),
            ("digits", 7, 2)
        );
        let data = plan.data.unwrap();
        assert_eq!(data.normalize, Normalize::Standard);
        assert_eq!((data.test, data.validation), (0.25, 0.1));
        let names: Vec<&str> = plan.model.iter().map(|layer| layer.name.as_str()).collect();
        assert_eq!(names, ["linear1", "relu1", "c", "add1", "linear2"]);
        assert_eq!(plan.model[2].settings["kernel"], [3.0, 3.0]);
        assert_eq!(plan.model[2].settings["bias"], [0.0]);
        assert_eq!(plan.model[3].inputs, ["c", "relu1"]);
        assert_eq!(plan.schedule.length, Length::Epochs(40));
        assert_eq!(plan.schedule.loss, Loss::CrossEntropy);
        let trainer = &plan.plugins[0];
        assert_eq!(
            (trainer.limits.memory, trainer.limits.handles),
            (1_572_864, 10)
        );
        assert_eq!(trainer.limits.call, std::time::Duration::from_millis(250));
        assert_eq!(trainer.limits.tensors, Limits::default().tensors);
        assert_eq!(
            trainer.options["optimizer"],
            OptionValue::Text("adam".into())
        );
        assert_eq!(trainer.options["lr"], OptionValue::Float(1e-3));
        assert_eq!(trainer.options["steps"], OptionValue::Integer(3));
        assert_eq!(
            trainer.options["decay"],
            OptionValue::Floats(vec![1.0, 0.5])
        );
        assert_eq!(trainer.options["none"], OptionValue::Floats(vec![]));
        assert_eq!(trainer.option_places["lr"], "x/run.toml:22");
        let slots: Vec<(Slot, OnFailure)> = plan
            .plugins
            .iter()
            .map(|p| (p.slot, p.on_failure))
            .collect();
        let want = [
            (Slot::Trainer, OnFailure::Restart),
            (Slot::Pruner, OnFailure::Fail),
            (Slot::Pruner, OnFailure::Skip),
        ];
        assert_eq!(slots, want);
        assert_eq!(plan.checkpoint, CheckpointPlan { every: 0, keep: 2 });
    }

    #[test]
    fn overrides_reach_tables_layers_and_pruners() {
        let sets = [
            ("model.layers.0.features", "64"),
            ("pruner.1.with.rate", "0.5"),
            ("trainer.with", "{ optimizer = \"sgd\" }"),
            ("trainer.plugin", "mono-forward"),
            ("schedule.steps", "10"),
            ("checkpoint.keep", "5"),
        ];
        let sets = sets
            .map(|(path, value)| (path.to_string(), value.to_string()))
            .to_vec();
        let plan = read_with(
            GOOD,
            &Overrides {
                sets,
                seed: Some(u64::MAX),
                threads: Some(1),
            },
        )
        .unwrap();
        assert_eq!(plan.model[0].settings["features"], [64.0]);
        assert_eq!(plan.plugins[2].options["rate"], OptionValue::Float(0.5));
        assert_eq!(
            plan.plugins[2].option_places["rate"],
            "--set pruner.1.with.rate=0.5"
        );
        assert_eq!(plan.plugins[0].name, "mono-forward");
        assert_eq!(plan.plugins[0].options.len(), 1);
        assert_eq!(plan.schedule.length, Length::Steps(10));
        assert_eq!(
            (plan.seed, plan.threads, plan.checkpoint.keep),
            (u64::MAX, 1, 5)
        );
    }

    #[test]
    fn an_empty_list_of_pruners_takes_them_all_away() {
        let plan = read_with(GOOD, &set("pruner", "[]")).unwrap();
        assert_eq!(plan.plugins.len(), 1);
    }

    #[test]
    fn every_error_of_a_file_is_shown_in_its_order() {
        let text = GOOD
            .replace("epochs = 40", "epochs = 0")
            .replace("seed = 7", "sede = 7");
        let want = "error: unknown key `sede` in [run]
  at        x/run.toml:4:1, run.sede
  expected  `name`, `seed` or `threads`
  help      did you mean `seed`?
error: `epochs` is out of range
  at        x/run.toml:19:10, schedule.epochs
  expected  a whole number, at least 1
  found     0";
        assert_eq!(error(&text, &Overrides::default()), want);
    }

    #[test]
    fn an_error_in_an_override_names_the_flag() {
        let want = "error: `features` has the wrong type
  at        --set model.layers.0.features=wide
  expected  a number, a list of numbers, or `true` or `false`
  found     the text \"wide\"";
        assert_eq!(error(GOOD, &set("model.layers.0.features", "wide")), want);
        let want = "error: `model.layers` is a list, and `9` is not one of its places
  at        --set model.layers.9.features=1
  expected  model.layers.0 to model.layers.4";
        assert_eq!(error(GOOD, &set("model.layers.9.features", "1")), want);
        let want = "error: `run.seed` has no keys inside\n  at     --set run.seed.x=1\n  found  7";
        assert_eq!(error(GOOD, &set("run.seed.x", "1")), want);
    }

    #[test]
    fn a_time_beyond_every_clock_is_refused() {
        let error = error(GOOD, &set("trainer.limits.call", "1000000000000000 h"));
        assert!(error.contains("`call` is out of range"), "{error}");
    }

    #[test]
    fn a_layer_that_reads_a_later_layer_is_refused() {
        let text = GOOD.replace("[\"c\", \"relu1\"]", "[\"c\", \"relu2\"]");
        let want = "error: layer `add1` reads `relu2`, which is no earlier layer
  at        x/run.toml:15:34, model.layers.3.inputs.1
  expected  `linear1`, `relu1`, `c` or `inputs`
  help      did you mean `relu1`?";
        assert_eq!(error(&text, &Overrides::default()), want);
    }

    #[test]
    fn a_layer_without_a_name_takes_a_free_number() {
        let text = GOOD
            .replace("name = \"c\"", "name = \"linear1\"")
            .replace("\"c\"", "\"linear1\"");
        let plan = read_with(&text, &Overrides::default()).unwrap();
        let names: Vec<&str> = plan.model.iter().map(|layer| layer.name.as_str()).collect();
        assert_eq!(names, ["linear2", "relu1", "linear1", "add1", "linear3"]);
    }

    /// Bytes of a simple generator (Knuth's MMIX constants); the same in every run.
    fn noise() -> impl FnMut(usize) -> usize {
        let mut state = 1u64;
        move |below| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        }
    }

    #[test]
    fn a_damaged_file_is_read_or_refused_and_never_panics() {
        let mut noise = noise();
        let words = [
            "[", "]", "=", "\"", "{", "}", ",", "-1", "1e999", "inf", "é", "\n", ".", "[[a]]",
            "0x", "\0",
        ];
        let mut refused = 0;
        for _ in 0..3000 {
            let mut text: Vec<char> = GOOD.chars().collect();
            for _ in 0..1 + noise(3) {
                let at = noise(text.len());
                match noise(3) {
                    0 => drop(text.drain(at..(at + 1 + noise(8)).min(text.len()))),
                    1 => drop(text.splice(at..at, words[noise(words.len())].chars())),
                    _ => text.truncate(at.max(1)),
                }
            }
            let text: String = text.into_iter().collect();
            if let Err(error) = read_with(&text, &Overrides::default()) {
                refused += 1;
                assert!(error.to_string().contains("x/run.toml"), "{error}");
            }
        }
        assert!(refused > 1000, "{refused}");
    }

    #[test]
    fn no_override_panics() {
        let mut noise = noise();
        let keys = [
            "model", "layers", "0", "99", "trainer", "with", "pruner", "a", "", "schedule", "-1",
            "é",
        ];
        let values = [
            "",
            "1",
            "[]",
            "{}",
            "[[1]]",
            "{ a = 1",
            "\"",
            "1979-05-27",
            "nan",
            "\n",
            "[{ kind = 1 }]",
        ];
        for _ in 0..3000 {
            let path: Vec<&str> = (0..1 + noise(5)).map(|_| keys[noise(keys.len())]).collect();
            let (path, value) = (path.join("."), values[noise(values.len())]);
            if let Err(error) = read_with(GOOD, &set(&path, value)) {
                assert!(!error.what.is_empty(), "{path}={value}");
            }
        }
    }

    #[test]
    fn the_reference_names_every_key() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/run-file.md");
        let text = std::fs::read_to_string(file).unwrap();
        let tables: [&[&str]; 11] = [
            ROOT,
            &MODEL,
            &SEARCHER,
            &STAGE,
            &RUN,
            &DATA,
            &SOURCES,
            &SCHEDULE,
            &PLUGIN,
            &LIMITS,
            &CHECKPOINT,
        ];
        for key in tables.into_iter().flatten() {
            let forms = [
                format!("`{key}`"),
                format!("`[{key}]`"),
                format!("`[[{key}]]`"),
            ];
            assert!(
                forms.iter().any(|form| text.contains(form)),
                "docs/run-file.md: {key}"
            );
        }
    }

    const STAGES: &str = r#"
repeat = 2
[data]
source = "digits"
[model]
layers = [{ kind = "linear", features = 10 }]
[schedule]
epochs = 4
batch-size = 32
[trainer]
plugin = "backprop"
[[pruner]]
plugin = "magnitude"
[[auditor]]
plugin = "badexpert"
[[stage]]
name = "one"
[[stage]]
train = "repaired"
freeze = true
auditor = []
[stage.schedule]
steps = 9
[stage.trainer]
plugin = "calibrate"
[[stage]]
name = "look"
train = false
"#;

    #[test]
    fn what_a_stage_leaves_open_the_top_level_says() {
        let plan = read_with(STAGES, &Overrides::default()).unwrap();
        let names: Vec<&str> = plan.plugins.iter().map(|p| p.name.as_str()).collect();
        assert_eq!(names, ["backprop", "magnitude", "badexpert", "calibrate"]);
        let of = |n: usize| {
            let stage = &plan.stages[n];
            (stage.trainer, stage.plugins.clone(), stage.schedule.length)
        };
        assert_eq!(of(0), (Some(0), vec![1, 2], Length::Epochs(4)));
        assert_eq!(of(1), (Some(3), vec![], Length::Steps(9)));
        assert_eq!(of(2), (None, vec![2], Length::Steps(0)));
        let second = &plan.stages[1];
        assert_eq!(
            (second.name.as_str(), second.train.as_str()),
            ("stage2", "repaired")
        );
        assert!(second.freeze && !plan.stages[0].freeze);
        assert_eq!(second.schedule.batch_size, 32);
        let whole: Vec<String> = plan.whole().into_iter().map(|stage| stage.name).collect();
        assert_eq!(
            whole,
            ["one", "stage2", "look", "one-2", "stage2-2", "look-2"]
        );
        assert_eq!(plan.schedule, plan.stages[0].schedule);
    }

    #[test]
    fn a_plan_of_stages_is_the_same_after_the_lock() {
        let plan = read_with(STAGES, &Overrides::default()).unwrap();
        let text = toml::to_string(&plan).unwrap();
        assert_eq!(toml::from_str::<Plan>(&text).unwrap(), plan);
        let plain = read_with(GOOD, &Overrides::default()).unwrap();
        let text = toml::to_string(&plain).unwrap();
        assert!(
            !text.contains("stage") && !text.contains("repeat"),
            "{text}"
        );
    }

    #[test]
    fn stages_that_contradict_themselves_are_refused() {
        let said = |from: &str, to: &str| {
            let text = STAGES.replace(from, to);
            assert_ne!(text, STAGES);
            error(&text, &Overrides::default())
        };
        let twice = said("name = \"look\"", "name = \"one\"");
        assert!(twice.contains("two stages are called `one`"), "{twice}");
        let none = said("name = \"one\"", "name = \"one\"\ntrain = false");
        assert!(
            none.contains("stage `one` has no trainer, and no stage before it has one"),
            "{none}"
        );
        let both = said("train = \"repaired\"", "train = false");
        assert!(
            both.contains("has a trainer and says `train = false`"),
            "{both}"
        );
        let unknown = said("freeze = true", "frozen = true");
        assert!(
            unknown.contains("unknown key `frozen` in [stage.1]"),
            "{unknown}"
        );
        // What every stage takes from the top is one error, not three.
        let once = said("batch-size = 32", "batch-size = 0");
        assert_eq!(once.matches("error:").count(), 1, "{once}");
        let frozen = said("auditor = []", "pruner = { plugin = \"magnitude\" }");
        assert!(
            frozen.contains("stage `stage2` freezes what its pruner would change"),
            "{frozen}"
        );
        let alone = GOOD.replace("[run]", "repeat = 2\n[run]");
        let alone = error(&alone, &Overrides::default());
        assert!(
            alone.contains("`repeat` repeats a list of stages, and there is none"),
            "{alone}"
        );
    }

    #[test]
    fn targets_of_floats_are_scored_by_squared_difference() {
        let npy = "source = \"npy\"\ninputs = \"a.npy\"\ntargets = \"missing.npy\"";
        let plan = read_with(
            &GOOD.replace("source = \"digits\"", npy),
            &Overrides::default(),
        )
        .unwrap();
        assert_eq!(plan.schedule.loss, Loss::CrossEntropy);
        let csv = "source = \"csv\"\npath = \"a.csv\"\ntarget = \"y\"\nclasses = false";
        let plan = read_with(
            &GOOD.replace("source = \"digits\"", csv),
            &Overrides::default(),
        )
        .unwrap();
        assert_eq!(plan.schedule.loss, Loss::Mse);
        let path = PathBuf::from("x/a.csv");
        assert_eq!(
            plan.data.unwrap().source,
            DataSource::Csv {
                path,
                target: "y".into(),
                classes: false
            }
        );
    }
}
