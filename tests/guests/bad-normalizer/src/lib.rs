//! A normaliser that gives rewards less one half, until it is told to do something else.

use espalier_sdk::rewards::{Advantage, Drift, RewardSpec, Rollout};
use espalier_sdk::{Choice, Error, Normalizer, Options, RunInfo, TrackingNormalizer};

/// What it does wrong.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Deed {
    Nothing,
    NotANumber,
    Short,
    Segments,
    Refuse,
    Loop,
    Panic,
    NegativeWeight,
    WeightOfNobody,
    PanicInObserve,
}

/// Options under `[normalizer.with]`.
#[derive(Options)]
struct Settings {
    /// What it does wrong.
    #[option(default = Deed::Nothing)]
    deed: Deed,
}

struct Bad(Deed);

impl Normalizer for Bad {
    type Options = Settings;

    fn new(_run: &RunInfo, options: Settings, _rewards: &RewardSpec) -> Result<Self, Error> {
        Ok(Bad(options.deed))
    }

    fn normalize(&mut self, batch: &[Rollout]) -> Result<Vec<Advantage>, Error> {
        let mut all: Vec<Advantage> = batch
            .iter()
            .map(|r| Advantage::of(r.reward - 0.5))
            .collect();
        match self.0 {
            Deed::NotANumber => all[0].values[0] = f64::NAN,
            Deed::Short => drop(all.pop()),
            Deed::Segments => all[0].values = vec![0.0; batch[0].segments.len() + 2],
            Deed::Refuse => return Err(Error::incompatible("I do not like these rewards")),
            Deed::Loop => loop {
                std::hint::black_box(());
            },
            Deed::Panic => panic!("no advantages today"),
            _ => {}
        }
        Ok(all)
    }
}

impl TrackingNormalizer for Bad {
    fn observe(&mut self, _drifts: &[Drift]) {
        assert!(self.0 != Deed::PanicInObserve, "I do not want to know");
    }

    fn prompt_weights(&self, prompts: &[u64]) -> Vec<f64> {
        match self.0 {
            Deed::NegativeWeight => vec![-1.0; prompts.len()],
            Deed::WeightOfNobody => vec![1.0; prompts.len() + 1],
            _ => vec![1.0; prompts.len()],
        }
    }
}

espalier_sdk::export!(tracking normalizer: Bad);
