//! Tells what chosen tokens cost and how that changes with their log-probabilities: the loss of the trainer
//! `policy-gradient`, from its own file, through the host's autograd.

#[path = "../../../../plugins/policy-gradient/src/loss.rs"]
#[allow(dead_code)]
mod loss;

use espalier_sdk::data::Batch;
use espalier_sdk::{
    Error, Mode, Model, Options, Prediction, RunInfo, StepInfo, StepReport, Tensor, Trainer, grad,
    log,
};

use loss::{Rule, Surrogate, divergence};

/// Options under `[trainer.with]`.
#[derive(Options)]
struct Settings {
    /// What the advantage of a token multiplies.
    #[option(default = Rule::Ppo)]
    rule: Rule,
    /// How far below 1 the ratio goes.
    #[option(default = 0.2)]
    clip_low: f64,
    /// How far above 1 the ratio goes.
    #[option(default = 0.28)]
    clip_high: f64,
    /// Most that a negative advantage is multiplied by; 0 for no limit.
    #[option(default = 0)]
    dual_clip: f64,
    /// What gppo multiplies the two clipped cases by.
    #[option(default = [1.0, 1.0])]
    gppo_betas: Vec<f64>,
    /// Log-probabilities now.
    #[option(default = [0.0])]
    logprobs: Vec<f64>,
    /// Log-probabilities then; those of the reference for `divergence`.
    #[option(default = [0.0])]
    old: Vec<f64>,
    /// Advantages.
    #[option(default = [0.0])]
    advantages: Vec<f64>,
    /// Tells the divergence from `old` instead of the loss.
    #[option(default = false)]
    divergence: bool,
}

struct TokenLosses(Settings);

impl Trainer for TokenLosses {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        match settings.gppo_betas.len() {
            2 => Ok(TokenLosses(settings)),
            _ => Err(Error::invalid_option("`gppo-betas` must be two numbers")),
        }
    }

    fn step(&mut self, _at: &StepInfo) -> StepReport {
        let settings = &self.0;
        let list = |values: &[f64]| Tensor::from_list(values, &[values.len() as u32]);
        let logprobs = list(&settings.logprobs).requires_grad();
        let old = list(&settings.old);
        let surrogate = Surrogate {
            rule: settings.rule,
            clip_low: settings.clip_low,
            clip_high: settings.clip_high,
            dual_clip: settings.dual_clip,
            betas: [settings.gppo_betas[0], settings.gppo_betas[1]],
        };
        let losses = match settings.divergence {
            true => divergence(&logprobs, &old),
            false => surrogate.losses(&logprobs, &old, &list(&settings.advantages)),
        };
        let gradients = grad(&losses.sum(&[]), &[&logprobs])[0].to_list();
        for (place, (loss, gradient)) in losses.to_list().into_iter().zip(gradients).enumerate() {
            log::metric(&format!("loss-{place}"), loss);
            log::metric(&format!("gradient-{place}"), gradient);
        }
        StepReport::new(0.0, 1)
    }

    fn objective(&self, batch: &Batch) -> Tensor {
        Model::main()
            .forward(batch.fields(), Mode::TrainFrozenStats)
            .cross_entropy(batch.targets())
    }

    fn predict(&self, batch: &Batch) -> Prediction {
        Prediction::logits(Model::main().forward(batch.fields(), Mode::Eval))
    }
}

espalier_sdk::export!(trainer: TokenLosses);
