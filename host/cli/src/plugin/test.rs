//! `espalier plugin test`: the conformance suite on one plugin.

use std::path::{Path, PathBuf};

use espalier_runtime::conformance::{self, Report, Verdict};
use espalier_runtime::diagnostic::Diagnostic;
use serde_json::json;

use super::target::Target;
use super::unwritable;
use crate::output::{self, Stream};

/// Tries a plugin on the laws of its slot; true if none is broken.
pub fn test(
    what: &str,
    json: bool,
    registry: Option<PathBuf>,
    setup: Option<&Path>,
) -> Result<bool, Diagnostic> {
    let target = Target::find(what, registry)?;
    let setup = target.setup(setup)?;
    let report = conformance::check(&target.name, &target.bytes, &setup)?;
    let passed = report.passed();
    if json {
        let mut object = serde_json::to_value(&report).map_err(unwritable)?;
        object["passed"] = json!(passed);
        output::line(Stream::Out, object);
    } else {
        output::line(Stream::Out, shown(&report));
    }
    Ok(passed)
}

/// Widest line of the explanation of a broken law.
const WIDTH: usize = 96;

fn shown(report: &Report) -> String {
    let mut text = format!(
        "{} {}, {}, on {}\n",
        report.plugin,
        report.version,
        report.slot.with_article(),
        report.problem
    );
    let width = report
        .findings
        .iter()
        .map(|f| f.law.len())
        .max()
        .unwrap_or(0);
    let (mut passed, mut broken, mut idle) = (0, 0, 0);
    for finding in &report.findings {
        let (mark, words) = match &finding.verdict {
            Verdict::Pass => {
                passed += 1;
                ("pass", finding.demands.to_string())
            }
            Verdict::NotApplicable { reason } => {
                idle += 1;
                (" -- ", format!("not applicable: {reason}"))
            }
            Verdict::Fail(_) => {
                broken += 1;
                ("FAIL", finding.demands.to_string())
            }
        };
        let indent = format!("\n  {:4}  {:width$}  ", "", "");
        let words = output::wrap(&words, WIDTH).join(&indent);
        text.push_str(&format!("\n  {mark}  {:width$}  {words}", finding.law));
        if let Verdict::Fail(fault) = &finding.verdict {
            let facts = [
                ("did", &fault.did),
                ("expected", &fault.expected),
                ("found", &fault.found),
                ("mend", &fault.mend),
            ];
            for (label, fact) in facts {
                let indent = format!("\n{:20}", "");
                let fact: Vec<String> = fact
                    .lines()
                    .flat_map(|line| output::wrap(line, WIDTH))
                    .collect();
                text.push_str(&format!("\n          {label:8}  {}", fact.join(&indent)));
            }
        }
    }
    let applicable = match idle {
        0 => String::new(),
        n => format!(", {n} not applicable"),
    };
    let summary = match broken {
        0 => format!("{passed} laws hold{applicable}"),
        1 => format!("1 law is broken, {passed} hold{applicable}"),
        n => format!("{n} laws are broken, {passed} hold{applicable}"),
    };
    text.push_str(&format!(
        "\n\n  {summary}, {}",
        output::seconds(report.seconds)
    ));
    text
}
