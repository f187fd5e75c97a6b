//! The folder of a run: `lock.toml`, `metrics.jsonl`, `log.txt`, `checkpoints/`, and `result.json` at its end.
//!
//! The lock is written before the first step and never again. Metrics and log grow line by line; a resumed run cuts
//! the metrics back to where its checkpoint stood, so that every step stands there once.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::diagnostic::Diagnostic;
use crate::events::{Audit, Event};
use crate::plan::{OptionValue, Plan, Slot};

/// What a run resolved to: enough to repeat it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lock {
    /// Version of the plugin interface.
    pub interface: String,
    /// The plugins, in the order in which they act.
    pub plugins: Vec<LockedPlugin>,
    /// The checked run file.
    pub plan: Plan,
}

/// A plugin of a run, exactly.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LockedPlugin {
    /// Name in the registry.
    pub name: String,
    /// Slot.
    pub slot: Slot,
    /// Version in the registry.
    pub version: String,
    /// SHA-256 of the component.
    pub sha256: String,
    /// All options, defaults included.
    pub options: BTreeMap<String, OptionValue>,
}

/// The file that a run writes when it has come to its end: steps, seconds and final metrics.
pub const FINISHED: &str = "result.json";

impl Lock {
    /// The lock in a run's folder.
    ///
    /// # Errors
    /// No such file, or one that can't be read.
    pub fn of_run(folder: &Path) -> Result<Lock, Diagnostic> {
        let file = folder.join("lock.toml");
        let text = std::fs::read_to_string(&file).map_err(|error| {
            Diagnostic::new(format!("`{}` is not the folder of a run", folder.display()))
                .because(&error)
                .expected("a folder with lock.toml, as `espalier run` makes it")
        })?;
        toml::from_str(&text).map_err(|error| {
            Diagnostic::new(format!("`{}` could not be read", file.display()))
                .detail("because", error.message().to_string())
                .help("it was written by another version of Espalier, or changed by hand")
        })
    }
}

/// An open run folder.
pub struct RunFolder {
    path: PathBuf,
    metrics: BufWriter<File>,
    log: BufWriter<File>,
    /// The stage that lines of metrics belong to; empty in a run without stages.
    stage: String,
}

fn failed<'a>(what: &'a str, path: &'a Path) -> impl FnOnce(std::io::Error) -> Diagnostic + 'a {
    move |error| {
        Diagnostic::new(format!("`{}` could not be {what}", path.display()))
            .because(&error)
            .help("choose another folder with --out, or mend its rights")
    }
}

impl RunFolder {
    /// Makes the folder of a new run: `out`, which must be empty or missing, or the first free of `runs/NAME`,
    /// `runs/NAME-2`, ...
    pub fn create(out: Option<&Path>, name: &str, lock: &Lock) -> Result<RunFolder, Diagnostic> {
        let path = match out {
            Some(out) => {
                let taken = out
                    .read_dir()
                    .is_ok_and(|mut entries| entries.next().is_some());
                if taken || out.is_file() {
                    return Err(Diagnostic::new(format!("`{}` is not empty", out.display()))
                        .at("--out")
                        .expected("a folder that is empty or does not exist")
                        .help(format!(
                            "choose another folder, or go on with that run: --resume {}",
                            out.display()
                        )));
                }
                std::fs::create_dir_all(out).map_err(failed("made", out))?;
                out.to_path_buf()
            }
            None => {
                let base = Path::new("runs");
                std::fs::create_dir_all(base).map_err(failed("made", base))?;
                let name: String = name
                    .chars()
                    .map(|c| {
                        if c.is_alphanumeric() || "-_.".contains(c) {
                            c
                        } else {
                            '-'
                        }
                    })
                    .collect();
                let mut number = 1;
                loop {
                    let path = match number {
                        1 => base.join(&name),
                        n => base.join(format!("{name}-{n}")),
                    };
                    // Making the folder claims the name, also when several runs start at once.
                    match std::fs::create_dir(&path) {
                        Ok(()) => break path,
                        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                            number += 1
                        }
                        Err(error) => return Err(failed("made", &path)(error)),
                    }
                }
            }
        };
        let checkpoints = path.join("checkpoints");
        std::fs::create_dir_all(&checkpoints).map_err(failed("made", &checkpoints))?;
        let text = toml::to_string(lock).map_err(|error| {
            Diagnostic::new("the lock could not be written as TOML").because(&error)
        })?;
        let file = path.join("lock.toml");
        let temporary = path.join("lock.toml.tmp");
        let write = || -> std::io::Result<()> {
            let mut out = File::create(&temporary)?;
            out.write_all(b"# What this run resolved to. Written by espalier; --resume compares against it.\n")?;
            out.write_all(text.as_bytes())?;
            out.sync_all()?;
            std::fs::rename(&temporary, &file)
        };
        write().map_err(failed("written", &file))?;
        Self::files(path)
    }

    /// Opens the folder of a run to go on with, and checks that it is this run.
    pub fn open(path: &Path, lock: &Lock) -> Result<RunFolder, Diagnostic> {
        let before = Lock::of_run(path).map_err(|error| error.at("--resume"))?;
        same(path, &before, lock)?;
        Self::files(path.to_path_buf())
    }

    fn files(path: PathBuf) -> Result<RunFolder, Diagnostic> {
        let open = |name: &str| {
            let file = path.join(name);
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(&file)
                .map(BufWriter::new)
                .map_err(failed("opened", &file))
        };
        let (metrics, log) = (open("metrics.jsonl")?, open("log.txt")?);
        let stage = String::new();
        Ok(RunFolder {
            path,
            metrics,
            log,
            stage,
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes a new run's folder away again: nothing has happened in it. What can't be removed stays.
    pub fn discard(&mut self) {
        for file in ["lock.toml", "metrics.jsonl", "log.txt"] {
            let _ = std::fs::remove_file(self.path.join(file));
        }
        // Both only if they are empty; so is a `runs` that was made for this run.
        let _ = std::fs::remove_dir(self.checkpoints());
        let _ = std::fs::remove_dir(&self.path);
        if let Some(runs) = self.path.parent().filter(|p| p.ends_with("runs")) {
            let _ = std::fs::remove_dir(runs);
        }
    }

    /// Where its checkpoints are.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// Writes down what a reader of the folder wants to know of an event.
    pub fn record(&mut self, event: &Event) -> Result<(), Diagnostic> {
        match event {
            Event::Member { member, told } => self.record_of(Some(*member), told),
            _ => self.record_of(None, event),
        }
    }

    /// The same with the member of a population that it is about.
    fn record_of(&mut self, member: Option<u32>, event: &Event) -> Result<(), Diagnostic> {
        let RunFolder {
            metrics: metrics_file,
            log,
            stage,
            path,
        } = self;
        let mut line = |mut line: serde_json::Value| {
            if !stage.is_empty() {
                line["stage"] = serde_json::json!(stage);
            }
            if let Some(member) = member {
                line["member"] = serde_json::json!(member);
            }
            writeln!(metrics_file, "{line}")
        };
        let whose = member.map_or(String::new(), |member| format!("member {member} "));
        let written = match event {
            Event::Stage { name, .. } => {
                stage.clone_from(name);
                Ok(())
            }
            Event::Step { step, loss, .. } => {
                line(serde_json::json!({"step": step, "train/loss": loss}))
            }
            Event::Evaluated {
                split,
                step,
                epoch,
                round,
                metrics,
                ..
            } => {
                let mut values = serde_json::json!({"step": step, "epoch": epoch, "round": round});
                for (name, value) in metrics {
                    values[format!("{split}/{name}")] = serde_json::json!(value);
                }
                line(values)
            }
            Event::PluginMetric {
                plugin,
                name,
                value,
                step,
            } => {
                let mut values = serde_json::json!({"step": step});
                values[format!("{plugin}/{name}")] = serde_json::json!(value);
                line(values)
            }
            Event::Pruned { step, sparsity, .. } => {
                line(serde_json::json!({"step": step, "sparsity": sparsity}))
            }
            Event::Audited(audit) => {
                let mut values = serde_json::json!({"step": audit.step});
                values[format!("{}/flagged", audit.auditor)] = serde_json::json!(audit.flagged);
                for (name, value) in &audit.numbers {
                    values[format!("{}/{name}", audit.auditor)] = serde_json::json!(value);
                }
                line(values).and_then(|()| {
                    let text = serde_json::to_string_pretty(audit)?;
                    std::fs::write(path.join(audit_file(audit)), text + "\n")
                })
            }
            Event::Generation(generation) => {
                let metric = &generation.metric;
                let mut values = serde_json::json!({
                    "generation": generation.generation,
                    "step": generation.step,
                    "copies": generation.copies,
                });
                values[format!("{metric}/mean")] = serde_json::json!(generation.mean);
                if let Some(best) = generation.best {
                    values[format!("{metric}/best")] = serde_json::json!(best.value);
                    values["best"] = serde_json::json!(best.member);
                }
                line(values)
            }
            Event::Log {
                plugin,
                level,
                text,
                step,
            } => writeln!(
                log,
                "step {step} {whose}{plugin} {}: {text}",
                format!("{level:?}").to_lowercase()
            ),
            Event::Warning { text, .. } => {
                writeln!(log, "warning: {whose}{text}")
            }
            Event::Finished(finished) => {
                metrics_file
                    .flush()
                    .and_then(|()| log.flush())
                    .and_then(|()| {
                        let result = serde_json::json!({
                            "steps": finished.steps,
                            "seconds": finished.seconds,
                            "metrics": finished.metrics,
                        });
                        let (file, whole) = (path.join(FINISHED), path.join("result.json.tmp"));
                        std::fs::write(&whole, serde_json::to_string_pretty(&result)? + "\n")?;
                        std::fs::rename(&whole, &file)
                    })
            }
            Event::Interrupted { .. } | Event::Failed { .. } => {
                metrics_file.flush().and_then(|()| log.flush())
            }
            _ => Ok(()),
        };
        written.map_err(failed("written", &self.path))
    }

    /// Makes the metrics safe and gives their length, for the checkpoint.
    pub fn sync_metrics(&mut self) -> Result<u64, Diagnostic> {
        let path = self.path.join("metrics.jsonl");
        let mut sync = || -> std::io::Result<u64> {
            self.log.flush()?;
            self.metrics.flush()?;
            self.metrics.get_ref().sync_data()?;
            Ok(self.metrics.get_ref().metadata()?.len())
        };
        sync().map_err(failed("written", &path))
    }

    /// Cuts the metrics to a length: what follows belongs to steps that are lost.
    pub fn truncate_metrics(&mut self, length: u64) -> Result<(), Diagnostic> {
        let path = self.path.join("metrics.jsonl");
        let mut cut = || -> std::io::Result<()> {
            self.metrics.flush()?;
            let file = self.metrics.get_mut();
            if file.metadata()?.len() > length {
                file.set_len(length)?;
                file.seek(SeekFrom::End(0))?;
            }
            Ok(())
        };
        cut().map_err(failed("cut", &path))
    }
}

/// Where an audit's report stands in the run's folder.
fn audit_file(audit: &Audit) -> String {
    match audit.stage.as_str() {
        "" => format!("audit-{}.json", audit.auditor),
        stage => format!("audit-{stage}-{}.json", audit.auditor),
    }
}

/// A run can be gone on with if nothing differs that its result depends on.
fn same(path: &Path, before: &Lock, now: &Lock) -> Result<(), Diagnostic> {
    let differs = |what: String, was: String, is: String, help: &str| {
        Err(Diagnostic::new(format!(
            "`{}` is a run of something else: {what} differs",
            path.display()
        ))
        .at("--resume")
        .expected(was)
        .found(is)
        .help(help.to_string()))
    };
    for (was, is) in before.plugins.iter().zip(&now.plugins) {
        if (&was.name, was.slot) == (&is.name, is.slot) && was.sha256 != is.sha256 {
            return differs(
                format!("plugin `{}`", was.name),
                format!("{} {}, sha256 {}", was.name, was.version, was.sha256),
                format!("{} {}, sha256 {}", is.name, is.version, is.sha256),
                "the plugin was changed since; bring that version back, or begin a new run",
            );
        }
    }
    let text = |value: Result<String, serde_json::Error>| value.unwrap_or_default();
    macro_rules! compare {
        ($($what:literal: $($field:ident).+;)*) => { $(
            if before.$($field).+ != now.$($field).+ {
                return differs(
                    $what.to_string(),
                    text(serde_json::to_string(&before.$($field).+)),
                    text(serde_json::to_string(&now.$($field).+)),
                    "give --resume the same run file and the same --set as at first, or begin a new run",
                );
            }
        )* };
    }
    compare! {
        "the seed": plan.seed;
        "[data]": plan.data;
        "[model]": plan.model;
        "[schedule]": plan.schedule;
        "the list of stages": plan.stages;
        "`repeat`": plan.repeat;
        "[tuner]": plan.population;
        "the list of plugins and their options": plugins;
        "the interface version": interface;
    }
    Ok(())
}
