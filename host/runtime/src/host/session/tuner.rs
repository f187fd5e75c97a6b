//! What the host asks of a tuner.

use super::{Called, Exports, Session};
use crate::host::bindings::trainer::espalier::plugin::options::Value;
use crate::host::bindings::trainer::espalier::plugin::run::{Error, RunInfo};
use crate::host::bindings::tuner::exports::espalier::plugin::tuning::{
    Change, KnobInfo, MemberReport,
};

impl Session {
    /// Starts a tuner. The inner error is its own refusal.
    pub fn start_tuner(
        &mut self,
        info: RunInfo,
        settings: &[(String, Value)],
        space: &[KnobInfo],
        members: u32,
    ) -> Called<Result<(), Error>> {
        self.call("start", true, |store, exports| match exports {
            Exports::Tuner(t) => t
                .espalier_plugin_tuning()
                .call_start(store, info, settings, space, members),
            _ => Self::wrong_slot(),
        })
    }

    /// The knobs with which each member begins.
    pub fn propose(&mut self) -> Called<Vec<Vec<(String, Value)>>> {
        self.call("propose", true, |store, exports| match exports {
            Exports::Tuner(t) => t.espalier_plugin_tuning().call_propose(store),
            _ => Self::wrong_slot(),
        })
    }

    /// What becomes of the members.
    pub fn decide(&mut self, members: &[MemberReport]) -> Called<Vec<Change>> {
        self.call("decide", true, |store, exports| match exports {
            Exports::Tuner(t) => t.espalier_plugin_tuning().call_decide(store, members),
            _ => Self::wrong_slot(),
        })
    }
}
