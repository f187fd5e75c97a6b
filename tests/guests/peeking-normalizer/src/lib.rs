//! A normaliser that looks at the policy's weights. It compiles, because the SDK is one crate for all slots; the host
//! refuses it, because a capability is an import.

use espalier_sdk::rewards::{Advantage, RewardSpec, Rollout};
use espalier_sdk::{Error, Normalizer, ParameterSet, RunInfo};

struct Peeking;

impl Normalizer for Peeking {
    type Options = ();

    fn new(_run: &RunInfo, _options: (), _rewards: &RewardSpec) -> Result<Self, Error> {
        Ok(Peeking)
    }

    fn normalize(&mut self, batch: &[Rollout]) -> Result<Vec<Advantage>, Error> {
        let weights = ParameterSet::main().list().len() as f64;
        Ok(batch.iter().map(|_| Advantage::of(weights)).collect())
    }
}

espalier_sdk::export!(normalizer: Peeking);
