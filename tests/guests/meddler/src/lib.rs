//! A pruner that counts events and, at step 5, does one thing that no pruner should. `tests/tests/policies.rs`
//! says what must follow.

use espalier_sdk::data::Stream;
use espalier_sdk::state::{Reader, Writer};
use espalier_sdk::{
    Choice, Directive, Error, Event, EventKind, Options, ParameterSet, Pruner, RunInfo, log,
};

/// What it does.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Deed {
    Nothing,
    Panic,
    MaskEverything,
    MetricFlood,
    Stop,
    AskObjective,
}

/// Options under `[pruner.with]`.
#[derive(Options)]
struct Settings {
    /// What it does at step 5.
    #[option(default = Deed::Nothing)]
    deed: Deed,
}

struct Meddler {
    deed: Deed,
    seen: u64,
}

impl Pruner for Meddler {
    type Options = Settings;
    const EVENTS: &'static [EventKind] = &[EventKind::Step];

    fn new(_run: &RunInfo, options: Settings) -> Result<Self, Error> {
        Ok(Meddler {
            deed: options.deed,
            seen: 0,
        })
    }

    fn on_event(&mut self, event: &Event) -> Directive {
        self.seen += 1;
        log::info(format!("step {}, seen {}", event.at.step, self.seen));
        if event.at.step != 5 {
            return Directive::Continue;
        }
        match self.deed {
            Deed::Nothing => {}
            Deed::Panic => panic!("at step 5"),
            Deed::MaskEverything => {
                let set = ParameterSet::main();
                for info in set.list() {
                    set.set_mask(&info.name, &set.value(&info.name).ones_like());
                }
            }
            Deed::MetricFlood => loop {
                log::metric("again", 1.0);
            },
            Deed::Stop => return Directive::Stop,
            Deed::AskObjective => {
                let batch = Stream::train(16, &[7]).next_endless();
                espalier_sdk::model::objective(&batch);
            }
        }
        Directive::Continue
    }

    fn save(&self) -> Vec<u8> {
        Writer::new(1).u64(self.seen).finish()
    }

    fn restore(&mut self, state: &[u8]) -> Result<(), Error> {
        let mut state = Reader::new(state, 1)?;
        self.seen = state.u64()?;
        state.end()
    }
}

espalier_sdk::export!(pruner: Meddler);
