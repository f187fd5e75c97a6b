//! What the host asks of an auditor.

use super::{Called, Exports, Session};
use crate::host::bindings::auditor::exports::espalier::plugin::auditing::AuditReport;
use crate::host::guest::{misuse, named};

/// Most numbers of a report, all cells of its tables included.
const MOST_NUMBERS: usize = 1 << 18;

/// Most bytes of its note.
const LONGEST_NOTE: usize = 1 << 14;

impl Session {
    /// An auditor's look at the model as it is now.
    pub fn audit(&mut self) -> Called<AuditReport> {
        self.call("audit", true, |store, exports| match exports {
            Exports::Auditor(a) => {
                let report = a.espalier_plugin_auditing().call_audit(store)?;
                check(&report)?;
                Ok(report)
            }
            _ => Self::wrong_slot(),
        })
    }
}

/// Refuses a report that no reader could use, or keep.
fn check(report: &AuditReport) -> wasmtime::Result<()> {
    for (name, _) in &report.numbers {
        named("a report's number", name)?;
        if report.numbers.iter().filter(|(n, _)| n == name).count() > 1 {
            return misuse(format!("returned a report with two numbers `{name}`"));
        }
    }
    let mut size = report.numbers.len();
    for table in &report.tables {
        named("a report's table", &table.name)?;
        for column in &table.columns {
            named("a table's column", column)?;
        }
        let width = table.columns.len();
        if let Some(row) = table.rows.iter().position(|row| row.len() != width) {
            return misuse(format!(
                "returned a table `{}` of {width} columns whose row {row} has {} numbers",
                table.name,
                table.rows[row].len()
            ));
        }
        size = size.saturating_add(width * table.rows.len());
    }
    if size > MOST_NUMBERS || report.note.len() > LONGEST_NOTE {
        return misuse(format!(
            "returned a report of {size} numbers and a note of {} bytes; at most {MOST_NUMBERS} and {LONGEST_NOTE}",
            report.note.len()
        ));
    }
    Ok(())
}
