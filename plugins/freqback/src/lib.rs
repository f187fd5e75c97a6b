//! Trainer: FreqBack, a backdoor in time series whose trigger lies on the frequencies that the model listens to.
//!
//! "Revisiting Backdoor Attacks on Time Series Classification in the Frequency Domain", WWW 2025, arXiv 2503.09712. For
//! studying defences: it trains on from a trained victim, and publishes what an auditor needs. A round is
//!
//! 1. the heatmap: how much the loss rises when one frequency of the input is perturbed, over both signs and phases;
//! 2. the trigger, one series that is added to any input: gradient steps toward the target class, kept within a norm and
//!    on the `bins` frequencies with the largest heat (or, as `soft`, with a spectrum that is drawn to the heatmap's);
//! 3. fine-tuning on clean samples and on fixed ones with the trigger, which carry the target's label.
//!
//! At the end of the last round it adds the splits `poisoned` (the training split with the poisoned copies), `triggered`
//! (test samples of all other classes, with the trigger and the target's label: accuracy there is the attack's success)
//! and `heatmap` (a row for each frequency: `heat` and the `trigger`'s magnitude, a column for each channel).
//!
//! Differences from the paper: gradients are projected on the hottest bins, where the paper only penalises the rest
//! (that is `soft`); the heatmap averages phases. The other kinds of triggers are baselines of the same norm.

use espalier_sdk::autograd::grad;
use espalier_sdk::parameters::{AdamOptions, Kind};
use espalier_sdk::{
    Batch, Choice, Dtype, Error, Mode, Model, Options, ParameterSet, Prediction, RunInfo, StepInfo,
    StepReport, Tensor, Trainer, data, fft, log, no_grad, random,
};

/// How the trigger is made.
#[derive(Choice, Clone, Copy, PartialEq)]
enum Trigger {
    /// Gradient steps on the hottest bins.
    Guided,
    /// Gradient steps anywhere, with a penalty on spectra unlike the heatmap.
    Soft,
    /// Gradient steps anywhere.
    Unguided,
    /// Random phases on the coldest bins.
    Coldest,
    /// Normal noise.
    Noise,
    /// The highest frequency but one.
    Tone,
    /// A constant over the first eighth of the series.
    Patch,
}

/// Options under `[trainer.with]`.
#[derive(Options)]
struct Settings {
    /// How the trigger is made: guided and soft are the method, the others baselines.
    #[option(default = Trigger::Guided)]
    trigger: Trigger,
    /// The class that the trigger stands for.
    #[option(default = 0, min = 0)]
    target: u32,
    /// Norm of the trigger.
    #[option(default = 1.2, min = 0.0)]
    norm: f64,
    /// Poisoned copies of samples of other classes, as a share of the training samples.
    #[option(default = 0.1, min = 0.0, max = 1.0)]
    rate: f64,
    /// How often heatmap, trigger and fine-tuning follow each other.
    #[option(default = 5, min = 1)]
    rounds: u64,
    /// Bins that a guided trigger may use.
    #[option(default = 8, min = 1)]
    bins: u32,
    /// Gradient steps of the trigger in a round.
    #[option(default = 60, min = 0)]
    trigger_steps: u32,
    /// Length of such a step.
    #[option(default = 0.1, min = 0.0)]
    trigger_step: f64,
    /// Weight of the penalty on the spectrum, for soft.
    #[option(default = 1.0, min = 0.0)]
    spectrum_weight: f64,
    /// Weight of the penalty on energy, for soft.
    #[option(default = 1e-3, min = 0.0)]
    energy_weight: f64,
    /// Size of the heatmap's perturbations, in deviations of the inputs times the root of their length over 8.
    #[option(default = 1.0, min = 0.0)]
    perturbation: f64,
    /// Training samples that heatmap and trigger look at.
    #[option(default = 500, min = 1)]
    looked_at: u32,
    /// Learning rate of the fine-tuning, by Adam.
    #[option(default = 1e-3, min = 0.0)]
    lr: f64,
}

struct FreqBack {
    settings: Settings,
    model: Model,
    /// The model's weights.
    set: ParameterSet,
    names: Vec<String>,
    /// `trigger` and `heat`: here, so that a resumed run finds them.
    own: ParameterSet,
    inputs: Tensor,
    targets: Tensor,
    /// Places of the training samples that have poisoned copies.
    poisoned: Vec<u64>,
    /// Some training samples with their labels, and some of other classes than the target.
    looked_at: (Tensor, Tensor),
    others: Tensor,
    /// The shape of a sample: axes before the last are channels.
    sample: Vec<u32>,
    channels: u32,
    length: u32,
    steps: u64,
    steps_per_epoch: u64,
}

impl FreqBack {
    fn frequencies(&self) -> u32 {
        self.length / 2 + 1
    }

    /// Unit vectors [n, length] for each frequency: cosines, then sines, with the frequency of each row.
    fn basis(&self) -> Vec<(u32, Tensor)> {
        let mut rows = Vec::new();
        for part in [0, 1] {
            for k in 0..self.frequencies() {
                // At the ends of the spectrum a sine is nothing.
                if part == 1 && (k == 0 || 2 * k == self.length) {
                    continue;
                }
                let mut unit = vec![0.0; 2 * self.frequencies() as usize];
                unit[2 * k as usize + part] = 1.0;
                let unit = Tensor::from_list(&unit, &[self.frequencies(), 2]);
                let row = fft::irfft(&unit, self.length, -1);
                let norm = row.vector_norm(&[], 0.0).item();
                rows.push((k, row / norm));
            }
        }
        rows
    }

    /// Of inputs [n, channels, length], in the form that the model wants them in.
    fn logits(&self, inputs: &Tensor) -> Tensor {
        let form = self.sample.iter().map(|size| *size as i32);
        let form: Vec<i32> = std::iter::once(-1).chain(form).collect();
        let fields = [("inputs".to_string(), inputs.reshape(&form))];
        self.model.forward(&fields, Mode::Eval)
    }

    /// How much the loss rises when a frequency of a channel is perturbed, `[frequencies * channels]`; never below 0.
    fn heatmap(&self) -> Vec<f64> {
        let (x, y) = &self.looked_at;
        let scale = self.settings.perturbation * (f64::from(self.length)).sqrt() / 8.0;
        let size = scale * x.std(&[], 0.0).item();
        let loss = |x: &Tensor| self.logits(x).cross_entropy(y).mean(&[]).item();
        no_grad(|| {
            let before = loss(x);
            let mut heat = vec![0.0; (self.frequencies() * self.channels) as usize];
            let mut counts = vec![0.0; heat.len()];
            for (k, row) in self.basis() {
                for channel in 0..self.channels {
                    let wave =
                        row.reshape(&[1, -1])
                            .pad(0, channel, self.channels - 1 - channel, 0.0);
                    let place = (k * self.channels + channel) as usize;
                    for sign in [-size, size] {
                        heat[place] += loss(&(x + &wave * sign)) - before;
                        counts[place] += 1.0;
                    }
                }
            }
            let means = heat.iter().zip(&counts);
            means.map(|(heat, count)| (heat / count).max(0.0)).collect()
        })
    }

    /// 1 on the hottest bins (or the coldest), [channels, frequencies, 1].
    fn bins(&self, heat: &[f64], hottest: bool) -> Tensor {
        let mut order: Vec<usize> = (0..heat.len()).collect();
        order.sort_by(|a, b| heat[*b].total_cmp(&heat[*a]).then(a.cmp(b)));
        if !hottest {
            order.reverse();
        }
        let mut keep = vec![0.0; heat.len()];
        for place in order.into_iter().take(self.settings.bins as usize) {
            keep[place] = 1.0;
        }
        let shape = [self.frequencies(), self.channels];
        Tensor::from_list(&keep, &shape).t().expand_dims(-1)
    }

    fn filtered(&self, series: &Tensor, keep: &Tensor) -> Tensor {
        fft::irfft(&(fft::rfft(series, -1) * keep), self.length, -1)
    }

    /// Scaled to the norm; nothing stays nothing.
    fn of_norm(&self, series: &Tensor) -> Tensor {
        let norm = series.vector_norm(&[], 0.0).item();
        match norm > 0.0 {
            true => series * (self.settings.norm / norm),
            false => series.clone(),
        }
    }

    fn made(&self, heat: &[f64], before: &Tensor, round: u64) -> Tensor {
        let shape = [self.channels, self.length];
        let noise = |what: u64| random::normal(&[what], &shape);
        match self.settings.trigger {
            Trigger::Guided | Trigger::Soft | Trigger::Unguided => {
                self.optimised(heat, before, round)
            }
            Trigger::Noise => self.of_norm(&noise(1)),
            Trigger::Coldest => {
                // Random phases with equal magnitudes on those bins.
                let spectrum = fft::rfft(&noise(2), -1);
                let size = fft::magnitudes(&spectrum).clip(1e-12, f64::INFINITY);
                let even = spectrum / size.expand_dims(-1) * self.bins(heat, false);
                self.of_norm(&fft::irfft(&even, self.length, -1))
            }
            Trigger::Tone => {
                let turn = 2.0 * std::f64::consts::PI * f64::from(self.length / 2 - 1);
                let tone = (Tensor::arange(0.0, f64::from(self.length), 1.0)
                    * (turn / f64::from(self.length)))
                .sin();
                self.of_norm(&tone.broadcast_to(&shape))
            }
            Trigger::Patch => {
                let first = Tensor::arange(0.0, f64::from(self.length), 1.0);
                let patch = first.less(f64::from((self.length / 8).max(1)));
                self.of_norm(&patch.astype(Dtype::F32).broadcast_to(&shape))
            }
        }
    }

    /// Steps down the loss of the target class, within the norm.
    fn optimised(&self, heat: &[f64], before: &Tensor, round: u64) -> Tensor {
        let s = &self.settings;
        let keep = (s.trigger == Trigger::Guided).then(|| self.bins(heat, true));
        let confined = |t: &Tensor| match &keep {
            Some(keep) => self.filtered(t, keep),
            None => t.clone(),
        };
        // The first round begins a little off zero, where the norm's gradient is none.
        let mut trigger = match round {
            0 => random::normal(&[3], &[self.channels, self.length]) * 1e-3,
            _ => before.clone(),
        };
        trigger = confined(&trigger);
        let labels = Tensor::full(&[self.others.size(0)], f64::from(s.target), Dtype::I64);
        for _ in 0..s.trigger_steps {
            let leaf = trigger.requires_grad();
            let mut loss = self
                .logits(&(&self.others + &leaf))
                .cross_entropy(&labels)
                .mean(&[]);
            if s.trigger == Trigger::Soft {
                loss = loss + self.penalty(&leaf, heat);
            }
            let gradient = confined(&grad(&loss, &[&leaf])[0]);
            let size = gradient.vector_norm(&[], 0.0).item();
            if size > 0.0 {
                trigger = &trigger - &gradient * (s.trigger_step / size);
            }
            let norm = trigger.vector_norm(&[], 0.0).item();
            if norm > s.norm {
                trigger = &trigger * (s.norm / norm);
            }
        }
        trigger
    }

    /// How far the trigger's spectrum is from the heatmap's form, at the energy that the norm allows.
    fn penalty(&self, trigger: &Tensor, heat: &[f64]) -> Tensor {
        let s = &self.settings;
        let shape = [self.frequencies(), self.channels];
        let heat = Tensor::from_list(heat, &shape).t();
        let size = heat.vector_norm(&[], 0.0).item().max(1e-12);
        // A series of this norm has a spectrum of about this norm, counting each pair of frequencies once.
        let budget = s.norm * (f64::from(self.length) / 2.0).sqrt();
        let spectrum = fft::rfft(trigger, -1);
        let energy = (&spectrum * &spectrum).sum(&[-1]);
        let magnitudes = (&energy + 1e-12).sqrt();
        let apart = (magnitudes - heat * (budget / size)).square().mean(&[]);
        let energy = energy.mean(&[]) + trigger.square().mean(&[]);
        apart * s.spectrum_weight + energy * s.energy_weight
    }

    /// Rows of the training split, numbered with the poisoned copies behind them.
    fn batch(&self, rows: &[u64], trigger: &Tensor) -> (Tensor, Tensor) {
        let clean = self.targets.size(0) as usize;
        let source = rows.iter().map(|&row| match row as usize {
            row if row < clean => row as u64,
            row => self.poisoned[row - clean],
        });
        let source = Tensor::indices(source);
        let poisoned: Vec<f64> = rows
            .iter()
            .map(|row| f64::from(u8::from(*row as usize >= clean)))
            .collect();
        let poisoned = Tensor::from_list(&poisoned, &[rows.len() as u32]);
        let added = poisoned.reshape(&[-1, 1, 1]) * trigger.expand_dims(0);
        let inputs = self.inputs.take(&source, 0);
        let inputs = (self.flat(&inputs) + added).reshape_as(&inputs);
        let target = Tensor::full(&[], f64::from(self.settings.target), Dtype::I64);
        let labels = poisoned.astype(Dtype::Bool);
        let labels = labels.where_(&target, &self.targets.take(&source, 0));
        (inputs, labels)
    }

    /// Any inputs as [n, channels, length].
    fn flat(&self, inputs: &Tensor) -> Tensor {
        inputs.reshape(&[-1, self.channels as i32, self.length as i32])
    }

    fn publish(&self) {
        let trigger = self.own.value("trigger");
        let all = self.targets.size(0) as usize + self.poisoned.len();
        let (inputs, targets) = self.batch(&(0..all as u64).collect::<Vec<_>>(), &trigger);
        data::add_split("poisoned", &[("inputs", inputs), ("targets", targets)]);
        if data::split("test").is_some() {
            let labels = data::field("test", "targets").to_list();
            let others = others(&labels, self.settings.target);
            let inputs = data::field("test", "inputs").take(&Tensor::indices(others), 0);
            let triggered = (self.flat(&inputs) + trigger.expand_dims(0)).reshape_as(&inputs);
            let count = inputs.size(0);
            let targets = Tensor::full(&[count], f64::from(self.settings.target), Dtype::I64);
            data::add_split("triggered", &[("inputs", triggered), ("targets", targets)]);
        }
        let magnitudes = fft::magnitudes(&fft::rfft(&trigger, -1)).t();
        data::add_split(
            "heatmap",
            &[("heat", self.own.value("heat")), ("trigger", magnitudes)],
        );
    }
}

/// Places of the samples of other classes.
fn others(labels: &[f64], target: u32) -> Vec<u64> {
    let places = labels.iter().enumerate();
    places
        .filter(|(_, label)| **label != f64::from(target))
        .map(|(place, _)| place as u64)
        .collect()
}

impl Trainer for FreqBack {
    type Options = Settings;

    fn new(run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let Some(train) = data::split("train").filter(|split| split.classes > 1) else {
            return Err(Error::incompatible(
                "a backdoor answers with a class, and the targets are no classes",
            ));
        };
        if settings.target >= train.classes {
            return Err(Error::invalid_option(format!(
                "`target` is class {}, the data has {} classes, counted from 0",
                settings.target, train.classes
            )));
        }
        let inputs = data::field("train", "inputs");
        if !matches!(inputs.dtype(), Dtype::F32 | Dtype::F64) {
            return Err(Error::incompatible(
                "a trigger is added to series of numbers, and these inputs are indices",
            ));
        }
        let sample = inputs.shape()[1..].to_vec();
        let length = sample.last().copied().unwrap_or(0);
        if length < 4 {
            return Err(Error::incompatible(format!(
                "a trigger needs series of at least 4 steps, along the last axis; a sample has shape {sample:?}"
            )));
        }
        let channels = sample[..sample.len() - 1].iter().product::<u32>();
        let targets = data::field("train", "targets");
        let labels = targets.to_list();
        let elsewhere = others(&labels, settings.target);
        let order = random::permutation(&[0], elsewhere.len() as u32).to_list();
        let count = (settings.rate * labels.len() as f64).round() as usize;
        let mut poisoned: Vec<u64> = order[..count.min(order.len())]
            .iter()
            .map(|place| elsewhere[*place as usize])
            .collect();
        poisoned.sort_unstable();
        let few = |places: Vec<u64>| places.into_iter().take(settings.looked_at as usize);
        let some = Tensor::indices(few((0..labels.len() as u64).collect()));
        let wide = |t: Tensor| t.reshape(&[-1, channels as i32, length as i32]);
        let looked_at = (wide(inputs.take(&some, 0)), targets.take(&some, 0));
        let others = wide(inputs.take(&Tensor::indices(few(elsewhere)), 0));
        let own = ParameterSet::own("freqback");
        let trigger = Tensor::zeros(&[channels, length]);
        own.create("trigger", Kind::Weight, &trigger, false);
        let heat = Tensor::zeros(&[length / 2 + 1, channels]);
        own.create("heat", Kind::Weight, &heat, false);
        let set = ParameterSet::main();
        let names = set.trainable();
        Ok(FreqBack {
            settings,
            model: Model::main(),
            set,
            names,
            own,
            inputs,
            targets,
            poisoned,
            looked_at,
            others,
            sample,
            channels,
            length,
            steps: run.steps,
            steps_per_epoch: run.steps_per_epoch.max(1),
        })
    }

    fn step(&mut self, at: &StepInfo) -> StepReport {
        let rounds = self.settings.rounds.min(self.steps.max(1));
        let round = at.step * rounds / self.steps.max(1);
        let begins = at.step == 0 || (at.step - 1) * rounds / self.steps.max(1) != round;
        if begins {
            let heat = self.heatmap();
            let trigger = self.made(&heat, &self.own.value("trigger"), round);
            let mut order: Vec<usize> = (0..heat.len()).collect();
            order.sort_by(|a, b| heat[*b].total_cmp(&heat[*a]).then(a.cmp(b)));
            for (place, bin) in order.iter().take(3).enumerate() {
                let frequency = *bin / self.channels as usize;
                log::metric(&format!("hottest-{}", place + 1), frequency as f64);
            }
            let shape = [self.frequencies(), self.channels];
            self.own.assign("heat", &Tensor::from_list(&heat, &shape));
            self.own.assign("trigger", &trigger);
        }
        let all = self.targets.size(0) as usize + self.poisoned.len();
        let epoch = at.step / self.steps_per_epoch;
        let place = (at.step % self.steps_per_epoch) as usize;
        let size = all.div_ceil(self.steps_per_epoch as usize);
        let order = random::permutation(&[1, u64::from(at.round), epoch], all as u32);
        let from = (place * size).min(all);
        let to = (from + size).min(all);
        let rows = order.slice(0, from as i32, to as i32).to_list();
        let rows: Vec<u64> = rows.into_iter().map(|row| row as u64).collect();
        let mut loss = 0.0;
        if !rows.is_empty() {
            let (inputs, labels) = self.batch(&rows, &self.own.value("trigger"));
            let fields = [("inputs".to_string(), inputs)];
            let losses = self
                .model
                .forward(&fields, Mode::Train)
                .cross_entropy(&labels);
            let mean = losses.mean(&[]);
            let grads = self.set.grad(&mean, &self.names);
            let options = AdamOptions {
                lr: self.settings.lr,
                ..Default::default()
            };
            self.set.adam(&self.names, &grads, options);
            loss = mean.item();
        }
        if at.step + 1 == self.steps && at.round == 0 {
            self.publish();
        }
        StepReport::new(loss, rows.len() as u32)
    }

    fn objective(&self, batch: &Batch) -> Tensor {
        let logits = self.model.forward(batch.fields(), Mode::TrainFrozenStats);
        logits.cross_entropy(batch.targets())
    }

    fn predict(&self, batch: &Batch) -> Prediction {
        Prediction::logits(self.model.forward(batch.fields(), Mode::Eval))
    }
}

espalier_sdk::export!(trainer: FreqBack);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_the_target_class_are_neither_poisoned_nor_successes() {
        assert_eq!(others(&[0.0, 2.0, 0.0, 1.0], 0), [1, 3]);
        assert!(others(&[1.0, 1.0], 1).is_empty());
    }
}
