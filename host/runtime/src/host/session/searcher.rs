//! What the host asks of a searcher.

use super::{Called, Exports, Session};
use crate::host::bindings::searcher::exports::espalier::plugin::searching::SearchReport;
use crate::host::bindings::trainer::espalier::plugin::run::StepInfo;

impl Session {
    /// One step of a search.
    pub fn search(&mut self, at: StepInfo) -> Called<SearchReport> {
        self.call("step", true, |store, exports| match exports {
            Exports::Searcher(s) => s.espalier_plugin_searching().call_step(store, at),
            _ => Self::wrong_slot(),
        })
    }
}
