//! A pruner that reaches for the optimiser. It compiles, because the SDK is one crate for all slots; the host
//! refuses it, because a capability is an import.

use espalier_sdk::parameters::SgdOptions;
use espalier_sdk::{Directive, Error, Event, EventKind, ParameterSet, Pruner, RunInfo};

struct Overreach;

impl Pruner for Overreach {
    type Options = ();
    const EVENTS: &'static [EventKind] = &[EventKind::Step];

    fn new(_run: &RunInfo, _options: ()) -> Result<Self, Error> {
        Ok(Overreach)
    }

    fn on_event(&mut self, _event: &Event) -> Directive {
        let set = ParameterSet::main();
        let names = set.trainable();
        let ones: Vec<_> = set.values(&names).iter().map(|v| v.detach()).collect();
        set.sgd(&names, &ones, SgdOptions::default());
        Directive::Continue
    }
}

espalier_sdk::export!(pruner: Overreach);
