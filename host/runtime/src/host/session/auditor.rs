//! What the host asks of an auditor.

use super::{Called, Exports, Session};
use crate::host::bindings::auditor::exports::espalier::plugin::auditing::AuditReport;

impl Session {
    /// An auditor's look at the model as it is now.
    pub fn audit(&mut self) -> Called<AuditReport> {
        self.call("audit", true, |store, exports| match exports {
            Exports::Auditor(a) => a.espalier_plugin_auditing().call_audit(store),
            _ => Self::wrong_slot(),
        })
    }
}
