//! Repeats a run from its lock and says where it diverges.
//!
//! A run is a function of its lock: the same plan and the same components give the same metrics to the last bit. What
//! may have changed since are the components, the data files, the program, and the lock itself.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;
use serde_json::Value;

use crate::diagnostic::Diagnostic;
use crate::events::{Ending, Event, Observer};
use crate::folder::Lock;
use crate::run::{self, Pins, RunOptions};

/// What a repetition found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// The run that was repeated.
    pub run: PathBuf,
    /// Lines of metrics that are equal, up to the first difference.
    pub equal: usize,
    /// Lines of metrics of the run.
    pub lines: usize,
    /// The first metric that differs; none if all are equal.
    pub difference: Option<Difference>,
    /// Whether the parameters at the end have the same bits; none where one of the two has none to compare.
    pub parameters: Option<bool>,
    /// Components that are others than the lock's.
    pub plugins: Vec<ChangedPlugin>,
    /// False if the run had not come to its end: it was repeated as far as it had come.
    pub finished: bool,
}

impl Verdict {
    /// Whether the repetition is the run, bit for bit.
    pub fn is_equal(&self) -> bool {
        self.difference.is_none() && self.parameters != Some(false)
    }
}

/// A metric that differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Difference {
    /// Line of `metrics.jsonl`, from 1.
    pub line: usize,
    /// The step that it belongs to.
    pub step: Option<u64>,
    /// Its name.
    pub metric: String,
    /// What the run says; none if it says nothing there.
    pub was: Option<Value>,
    /// What the repetition says; none if it says nothing there.
    pub is: Option<Value>,
}

/// A component that is another one than the lock's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ChangedPlugin {
    /// Its name.
    pub name: String,
    /// SHA-256 in the lock.
    pub was: String,
    /// SHA-256 now.
    pub is: String,
}

/// Repeats the run in `folder` into the new folder `out`.
///
/// # Errors
/// A folder that holds no run, a lock that can't be read, and everything that [`run::execute_pinned`] refuses.
pub fn verify(
    folder: &Path,
    out: &Path,
    registry: PathBuf,
    trust: Option<PathBuf>,
    observer: &mut (dyn Observer + Send),
) -> Result<Verdict, Diagnostic> {
    let lock = Lock::of_run(folder)?;
    let before = metrics(folder)?;
    let last = before.iter().filter_map(step_of).max();
    let cancel = Arc::new(AtomicBool::new(false));
    let options = RunOptions {
        out: Some(out.to_path_buf()),
        resume: None,
        registry,
        cancel: cancel.clone(),
    };
    let pins = Pins {
        trust,
        lock: None,
        locked: false,
    };
    let mut until = Until {
        observer,
        // A run that was stopped is repeated as far as it had come.
        last: last.filter(|_| !ended(folder)),
        cancel,
    };
    let ending = run::execute_pinned(&lock.plan, &options, &pins, &mut until)?;
    let finished = matches!(ending, Ending::Finished(_));
    let now = Lock::of_run(out)?;
    let after = metrics(out)?;
    let (equal, difference) = compare(&before, &after, finished);
    let parameters = match finished {
        true => same_parameters(folder, out),
        false => None,
    };
    let plugins = lock.plugins.iter().zip(&now.plugins);
    Ok(Verdict {
        run: folder.to_path_buf(),
        equal,
        lines: before.len(),
        difference,
        parameters,
        plugins: plugins
            .filter(|(was, is)| was.sha256 != is.sha256)
            .map(|(was, is)| ChangedPlugin {
                name: was.name.clone(),
                was: was.sha256.clone(),
                is: is.sha256.clone(),
            })
            .collect(),
        finished,
    })
}

/// Passes events on, and ends the run after a step.
struct Until<'a> {
    observer: &'a mut (dyn Observer + Send),
    last: Option<u64>,
    cancel: Arc<AtomicBool>,
}

impl Observer for Until<'_> {
    fn event(&mut self, event: &Event) {
        if let (Event::Step { step, .. }, Some(last)) = (event, self.last)
            && *step >= last
        {
            self.cancel.store(true, Ordering::Relaxed);
        }
        self.observer.event(event);
    }
}

fn step_of(line: &Value) -> Option<u64> {
    line.get("step").and_then(Value::as_u64)
}

/// Whether a run has come to its end: only then its last metrics are those of the test.
fn ended(folder: &Path) -> bool {
    folder.join(crate::folder::FINISHED).is_file()
}

/// The lines of a run's metrics.
fn metrics(folder: &Path) -> Result<Vec<Value>, Diagnostic> {
    let file = folder.join("metrics.jsonl");
    let text = std::fs::read_to_string(&file).map_err(|error| {
        Diagnostic::new(format!("`{}` could not be read", file.display())).because_io(&error)
    })?;
    let mut lines = Vec::new();
    for (number, line) in text.lines().enumerate() {
        match serde_json::from_str(line) {
            Ok(value) => lines.push(value),
            // A run that was killed may leave half a line behind.
            Err(_) if number + 1 == text.lines().count() => {}
            Err(error) => {
                return Err(Diagnostic::new(format!("`{}` is damaged", file.display()))
                    .at(format!("line {}", number + 1))
                    .detail("because", error.to_string())
                    .expected("one JSON object a line, as a run writes them"));
            }
        }
    }
    Ok(lines)
}

/// How many lines are equal from the first on, and the first difference. A repetition that was ended early may end in
/// other lines than the run, which had gone on.
fn compare(before: &[Value], after: &[Value], finished: bool) -> (usize, Option<Difference>) {
    let longest = match finished {
        true => before.len().max(after.len()),
        false => before.len().min(after.len()),
    };
    for at in 0..longest {
        let (was, is) = (before.get(at), after.get(at));
        if was == is {
            continue;
        }
        let empty = serde_json::Map::new();
        let of = |line: Option<&Value>| line.and_then(Value::as_object).unwrap_or(&empty).clone();
        let (was, is) = (of(was), of(is));
        let differs = |name: &&String| was.get(*name) != is.get(*name);
        // Where the steps themselves differ, that is what is wrong.
        let step = "step".to_string();
        let name = [&step]
            .into_iter()
            .chain(was.keys())
            .chain(is.keys())
            .find(differs);
        let Some(name) = name else { continue };
        return (
            at,
            Some(Difference {
                line: at + 1,
                step: was.get("step").or(is.get("step")).and_then(Value::as_u64),
                metric: name.clone(),
                was: was.get(name).cloned(),
                is: is.get(name).cloned(),
            }),
        );
    }
    (longest, None)
}

fn same_parameters(a: &Path, b: &Path) -> Option<bool> {
    let digest = |folder: &Path| run::parameters_of(folder).ok()?.content_digest().ok();
    Some(digest(a)? == digest(b)?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_first_metric_that_differs_is_named_with_its_step() {
        let was = [
            json!({"step": 1, "train/loss": 2.0}),
            json!({"step": 2, "train/loss": 1.0, "x": 3}),
        ];
        let is = [
            json!({"step": 1, "train/loss": 2.0}),
            json!({"step": 2, "train/loss": 1.5, "x": 4}),
        ];
        let (equal, difference) = compare(&was, &is, true);
        let difference = difference.map(|d| (d.line, d.step, d.metric));
        assert_eq!(
            (equal, difference),
            (1, Some((2, Some(2), "train/loss".into())))
        );
        assert_eq!(compare(&was, &was, true), (2, None));
    }

    #[test]
    fn a_line_too_many_is_a_difference_only_after_a_whole_run() {
        let was = [json!({"step": 1})];
        let is = [json!({"step": 1}), json!({"step": 2, "train/loss": 1.0})];
        assert_eq!(compare(&was, &is, false), (1, None));
        let (equal, difference) = compare(&was, &is, true);
        assert_eq!(equal, 1);
        assert_eq!(
            difference.map(|d| (d.was, d.is)),
            Some((None, Some(json!(2))))
        );
    }
}
