//! A normaliser whose options are written by hand: one has no documentation, and whatever comes is taken.

use espalier_sdk::options::{Kind, OptionInfo, Setting, Value};
use espalier_sdk::rewards::{Advantage, RewardSpec, Rollout};
use espalier_sdk::{Error, Normalizer, Options, RunInfo};

struct Careless;

impl Options for Careless {
    fn infos() -> Vec<OptionInfo> {
        vec![OptionInfo {
            name: "strength".into(),
            kind: Kind::Number,
            default: Value::Number(0.5),
            min: Some(0.0),
            max: Some(1.0),
            doc: String::new(),
            live: false,
        }]
    }

    fn from_settings(_settings: &[Setting]) -> Result<Self, Error> {
        Ok(Careless)
    }

    fn live(&self) -> Vec<Setting> {
        Vec::new()
    }

    fn set_live(&mut self, _name: &str, _value: &Value) -> Result<(), Error> {
        Ok(())
    }
}

struct Faulty;

impl Normalizer for Faulty {
    type Options = Careless;

    fn new(_run: &RunInfo, _options: Careless, _rewards: &RewardSpec) -> Result<Self, Error> {
        Ok(Faulty)
    }

    fn normalize(&mut self, batch: &[Rollout]) -> Result<Vec<Advantage>, Error> {
        Ok(vec![Advantage::of(0.0); batch.len()])
    }
}

espalier_sdk::export!(normalizer: Faulty);
