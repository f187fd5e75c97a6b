//! `espalier verify`: repeats a run and says whether it comes out the same.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use espalier_runtime::diagnostic::Diagnostic;
use espalier_runtime::registry::Registry;
use espalier_runtime::verify::{self, Difference, Verdict};

use crate::args::{self, exit};
use crate::output::{self, Paint, Stream};
use crate::view::View;

/// Carries out `espalier verify`.
pub fn command(args: args::Verify) -> ExitCode {
    match carry_out(&args) {
        Ok(verdict) if verdict.is_equal() => ExitCode::from(exit::OK),
        Ok(_) => ExitCode::from(exit::FAILED),
        Err(error) => {
            output::error(&error);
            ExitCode::from(exit::WRONG_INPUT)
        }
    }
}

/// A folder for a repetition that nobody keeps; gone with its end.
struct Passing(PathBuf);

impl Drop for Passing {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn carry_out(args: &args::Verify) -> Result<Verdict, Diagnostic> {
    let registry = match &args.registry {
        Some(file) => file.clone(),
        None => Registry::find(Path::new(""))?,
    };
    let passing = match &args.out {
        Some(_) => None,
        None => Some(Passing(
            std::env::temp_dir().join(format!("espalier-verify-{}", std::process::id())),
        )),
    };
    let out = match (&args.out, &passing) {
        (Some(out), _) => out.clone(),
        (None, Some(passing)) => passing.0.clone(),
        (None, None) => PathBuf::new(),
    };
    // The repetition tells of itself where the run's own words would go.
    let mut view = View::new(Stream::Error);
    let verdict = verify::verify(&args.run, &out, registry, args.trust.clone(), &mut view);
    view.close();
    let verdict = verdict?;
    if args.json {
        let text = serde_json::to_string(&verdict).map_err(|error| {
            Diagnostic::new("the verdict could not be written as JSON").because(&error)
        })?;
        output::line(Stream::Out, text);
    } else {
        output::line(Stream::Out, words(&verdict, Paint::of(Stream::Out)));
    }
    Ok(verdict)
}

fn words(verdict: &Verdict, paint: Paint) -> String {
    let run = verdict.run.display();
    let mut lines = Vec::new();
    match &verdict.difference {
        None if verdict.is_equal() => {
            let parameters = match verdict.parameters {
                Some(_) => " and the parameters",
                None => "",
            };
            lines.push(format!(
                "{} {run}: {} lines of metrics{parameters} have the same bits",
                paint.strong("equal"),
                verdict.equal
            ));
        }
        None => lines.push(format!(
            "{} {run}: the metrics are equal, the parameters at the end are not",
            paint.strong("differs")
        )),
        Some(Difference {
            line,
            step,
            metric,
            was,
            is,
        }) => {
            let step = step.map_or(String::new(), |step| format!("step {step}, "));
            let shown = |value: &Option<serde_json::Value>| {
                value
                    .as_ref()
                    .map_or("nothing".to_string(), ToString::to_string)
            };
            lines.push(format!("{} {run}: {step}{metric}", paint.strong("differs")));
            lines.push(format!("  run         {}", shown(was)));
            lines.push(format!("  repetition  {}", shown(is)));
            lines.push(format!(
                "  {} of {} lines of metrics.jsonl are equal before line {line}",
                verdict.equal, verdict.lines
            ));
        }
    }
    for plugin in &verdict.plugins {
        lines.push(format!(
            "  plugin {} is another component: sha256 {} in the lock, {} now",
            plugin.name, plugin.was, plugin.is
        ));
    }
    if !verdict.finished {
        lines.push(
            "  the run had not come to its end; it was repeated as far as it had come".into(),
        );
    }
    lines.join("\n")
}
