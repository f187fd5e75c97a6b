//! A normaliser that keeps every law but the one it is told to break: what the conformance suite is for.

use espalier_sdk::rewards::{Advantage, RewardSpec, Rollout, groups, mean};
use espalier_sdk::{Choice, Error, Normalizer, Options, RunInfo};

/// What is wrong with it.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Fault {
    Nothing,
    Unsaved,
    LeaksMemory,
    ZeroOverZero,
    ByPlace,
    PassesRewardsOn,
    NeverEnds,
    HoardsMemory,
    PanicsOnNothing,
    PanicsOnOne,
    PanicsAlways,
}

/// Options under `[normalizer.with]`.
#[derive(Options)]
struct Settings {
    /// The fault.
    #[option(default = Fault::Nothing)]
    fault: Fault,
}

struct Faulty {
    fault: Fault,
    /// Batches so far: remembered, and not saved.
    batches: f64,
    kept: Vec<Vec<u8>>,
}

impl Normalizer for Faulty {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings, _rewards: &RewardSpec) -> Result<Self, Error> {
        Ok(Faulty {
            fault: settings.fault,
            batches: 0.0,
            kept: Vec::new(),
        })
    }

    fn normalize(&mut self, batch: &[Rollout]) -> Result<Vec<Advantage>, Error> {
        self.batches += 1.0;
        let mut values = vec![0.0; batch.len()];
        for group in groups(batch) {
            let first = batch[group[0]].reward;
            let center = first + mean(group.iter().map(|&i| batch[i].reward - first));
            for i in group {
                values[i] = batch[i].reward - center;
            }
        }
        match self.fault {
            Fault::Nothing => {}
            Fault::Unsaved => values.iter_mut().for_each(|x| *x *= self.batches),
            Fault::LeaksMemory => self.kept.push(vec![1; 16 << 10]),
            Fault::ZeroOverZero => {
                let largest = values.iter().fold(0.0f64, |a, x| a.max(x.abs()));
                values.iter_mut().for_each(|x| *x /= largest);
            }
            Fault::ByPlace => values
                .iter_mut()
                .enumerate()
                .for_each(|(i, x)| *x *= 1.0 + i as f64),
            Fault::PassesRewardsOn => {
                values = batch.iter().map(|rollout| rollout.reward).collect();
            }
            Fault::NeverEnds => loop {
                std::hint::spin_loop();
            },
            Fault::HoardsMemory => self.kept.push(vec![1; 100 << 20]),
            Fault::PanicsOnNothing => assert!(!batch.is_empty(), "a batch is never empty"),
            Fault::PanicsOnOne => assert!(batch.len() != 1, "one rollout has no spread"),
            Fault::PanicsAlways => panic!("not written yet"),
        }
        Ok(values.into_iter().map(Advantage::of).collect())
    }
}

espalier_sdk::export!(normalizer: Faulty);
