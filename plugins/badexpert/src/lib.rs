//! BaDExpert (Xie, Qi, He, Li, Wang, Mittal 2024, arXiv 2308.12439): extracts a backdoor by unlearning everything else.
//!
//! A copy of the model learns wrong labels on a small clean set for a short while: it forgets what it was built for, and
//! keeps the backdoor (the expert). A second copy learns the right labels (the auxiliary model). An input on which the expert
//! is still sure of the model's own answer, and the auxiliary is not, has most likely triggered a backdoor.
//!
//! 1. expert: Adam on labels (y + 1) mod C, until its accuracy on the clean set is below a limit;
//! 2. auxiliary: SGD with Nesterov's momentum on the true labels, its rate divided by 10 every second epoch;
//! 3. for each input, k the model's answer, x and y the confidence of expert and auxiliary in k, the score of `score`;
//! 4. the threshold is a quantile of the scores of clean inputs that the model gets right, half of the test split;
//! 5. what the suspect split's scores say, against the other half.

mod score;

use espalier_sdk::auditor::Report;
use espalier_sdk::data::{self, Sampling, SplitInfo, Stream};
use espalier_sdk::model;
use espalier_sdk::parameters::{AdamOptions, SgdOptions};
use espalier_sdk::{Auditor, Batch, Error, Mode, Model, Options, RunInfo, Tensor, no_grad};

use score::{auroc, score, share, threshold};

/// Options under `[auditor.with]`.
#[derive(Options)]
struct Settings {
    /// The split of clean samples that both copies learn from; the model must not have been trained on it.
    #[option(default = "validation")]
    clean: String,
    /// The split of inputs under suspicion.
    #[option(default = "triggered")]
    suspect: String,
    /// The expert's learning rate.
    #[option(default = 3e-3, min = 0.0)]
    expert_lr: f64,
    /// Most epochs of the expert.
    #[option(default = 10, min = 1)]
    expert_epochs: i64,
    /// The expert stops when its accuracy on the clean split is below this.
    #[option(default = 0.2, min = 0.0, max = 1.0)]
    stop_below: f64,
    /// Samples a step of the expert.
    #[option(default = 32, min = 1)]
    expert_batch: i64,
    /// The auxiliary model's learning rate, divided by 10 after epochs 2, 4, 6 and 8.
    #[option(default = 0.05, min = 0.0)]
    auxiliary_lr: f64,
    /// Epochs of the auxiliary model.
    #[option(default = 10, min = 0)]
    auxiliary_epochs: i64,
    /// Samples a step of the auxiliary model.
    #[option(default = 64, min = 1)]
    auxiliary_batch: i64,
    /// Height of the corner (1, h) of the region of rejection.
    #[option(default = 0.5, min = 0.0, max = 1.0)]
    h: f64,
    /// Share of clean inputs that may be rejected.
    #[option(default = 0.05, min = 0.0, max = 1.0)]
    fpr: f64,
    /// The result is flagged where at least this share of the suspect split is rejected.
    #[option(default = 0.5, min = 0.0, max = 1.0)]
    flag_at: f64,
}

struct BadExpert {
    settings: Settings,
    clean: SplitInfo,
}

/// What the three models say of a split.
struct Judged {
    /// The model's answers.
    answers: Vec<f64>,
    labels: Vec<f64>,
    /// Confidence of the expert and of the auxiliary model in those answers.
    x: Vec<f64>,
    y: Vec<f64>,
    expert: Vec<f64>,
    auxiliary: Vec<f64>,
}

impl Judged {
    fn len(&self) -> usize {
        self.answers.len()
    }

    fn map(&self, f: impl Fn(f64, f64) -> f64) -> Vec<f64> {
        self.x.iter().zip(&self.y).map(|(x, y)| f(*x, *y)).collect()
    }

    fn right(&self, answers: &[f64]) -> f64 {
        share(answers.iter().zip(&self.labels), |(a, b)| a == b)
    }
}

/// Inputs of a split, and nothing that tells their labels.
fn fields(split: &str, from: i32, to: i32) -> Vec<(String, Tensor)> {
    let names = data::split(split).map_or_else(Vec::new, |split| split.fields);
    let names = names.into_iter().map(|field| field.name);
    let names = names.filter(|name| name != "targets");
    names
        .map(|name| {
            let rows = data::field(split, &name).slice(0, from, to);
            (name, rows)
        })
        .collect()
}

fn accuracy(model: &Model, split: &str) -> f64 {
    let labels = data::field(split, "targets").to_list();
    let all = fields(split, 0, labels.len() as i32);
    let answers = no_grad(|| model.forward(&all, Mode::Eval).argmax(-1).to_list());
    share(answers.iter().zip(&labels), |(a, b)| a == b)
}

impl BadExpert {
    /// A copy of the run's model that has forgotten what it was built for.
    fn expert(&self) -> (Model, f64) {
        let s = &self.settings;
        let expert = Model::main().copy("expert");
        let set = expert.parameters();
        let names = set.trainable();
        let classes = f64::from(self.clean.classes);
        let stream = self.stream(s.expert_batch, 0);
        for epoch in 1..=s.expert_epochs {
            while let Some(batch) = stream.next_in_epoch() {
                let wrong = batch.targets() + 1.0;
                let last = wrong.equal(classes);
                let wrong = last.where_(&batch.targets().zeros_like(), &wrong);
                let loss = expert
                    .forward(&inputs(&batch), Mode::Train)
                    .cross_entropy(&wrong);
                let grads = set.grad(&loss.mean(&[]), &names);
                let options = AdamOptions {
                    lr: s.expert_lr,
                    ..Default::default()
                };
                set.adam(&names, &grads, options);
            }
            if accuracy(&expert, &s.clean) < s.stop_below {
                return (expert, epoch as f64);
            }
        }
        (expert, s.expert_epochs as f64)
    }

    /// A copy that has learnt the clean samples once more.
    fn auxiliary(&self) -> Model {
        let s = &self.settings;
        let auxiliary = Model::main().copy("auxiliary");
        let set = auxiliary.parameters();
        let names = set.trainable();
        let stream = self.stream(s.auxiliary_batch, 1);
        for epoch in 0..s.auxiliary_epochs {
            let drops = (epoch / 2).min(4) as i32;
            let options = SgdOptions {
                lr: s.auxiliary_lr * 0.1f64.powi(drops),
                momentum: 0.9,
                weight_decay: 1e-4,
                nesterov: true,
            };
            while let Some(batch) = stream.next_in_epoch() {
                let out = auxiliary.forward(&inputs(&batch), Mode::Train);
                let loss = out.cross_entropy(batch.targets()).mean(&[]);
                let grads = set.grad(&loss, &names);
                set.sgd(&names, &grads, options);
            }
        }
        auxiliary
    }

    fn stream(&self, size: i64, key: u64) -> Stream {
        let names: Vec<&str> = self.clean.fields.iter().map(|f| f.name.as_str()).collect();
        Stream::open(
            &self.clean.name,
            &names,
            size as u32,
            Sampling::Shuffled,
            &[key],
        )
    }

    fn judge(&self, split: &str, expert: &Model, auxiliary: &Model) -> Judged {
        const AT_ONCE: usize = 512;
        let labels = data::field(split, "targets").to_list();
        let mut all = Judged {
            answers: Vec::new(),
            x: Vec::new(),
            y: Vec::new(),
            expert: Vec::new(),
            auxiliary: Vec::new(),
            labels,
        };
        for from in (0..all.labels.len()).step_by(AT_ONCE) {
            let to = (from + AT_ONCE).min(all.labels.len());
            let inputs = fields(split, from as i32, to as i32);
            let batch = Batch::new(inputs.clone(), Tensor::indices(from as u64..to as u64));
            no_grad(|| {
                let k = model::predict(&batch).output().argmax(-1);
                for (other, confidence, answers) in [
                    (expert, &mut all.x, &mut all.expert),
                    (auxiliary, &mut all.y, &mut all.auxiliary),
                ] {
                    let p = other.forward(&inputs, Mode::Eval).softmax(-1);
                    confidence.extend(p.take_along_axis(&k.expand_dims(-1), -1).to_list());
                    answers.extend(p.argmax(-1).to_list());
                }
                all.answers.extend(k.to_list());
            });
        }
        all
    }
}

/// A batch's fields without its labels.
fn inputs(batch: &Batch) -> Vec<(String, Tensor)> {
    let fields = batch.fields().iter();
    fields
        .filter(|(name, _)| name != "targets")
        .cloned()
        .collect()
}

impl Auditor for BadExpert {
    type Options = Settings;

    fn new(_run: &RunInfo, settings: Settings) -> Result<Self, Error> {
        let Some(clean) = data::split(&settings.clean) else {
            return Err(Error::incompatible(format!(
                "there is no split `{}` of clean samples; `validation = 0.1` in [data] makes one, or say `clean = \"SPLIT\"`",
                settings.clean
            )));
        };
        if clean.classes < 2 {
            return Err(Error::incompatible(
                "a backdoor's expert needs a classifier, and the targets are no classes"
                    .to_string(),
            ));
        }
        let layers = Model::main().layers();
        let width = layers.last().map(|layer| layer.out_shape.clone());
        if width.as_deref() != Some(&[clean.classes][..]) {
            return Err(Error::incompatible(format!(
                "the model gives {:?} a sample, expected a number for each of {} classes",
                width.unwrap_or_default(),
                clean.classes
            )));
        }
        Ok(BadExpert { settings, clean })
    }

    fn audit(&mut self) -> Report {
        let s = &self.settings;
        let (expert, epochs) = self.expert();
        let auxiliary = self.auxiliary();
        if data::split("test").is_none() {
            return Report::new("There is no test split to calibrate on.");
        }
        let clean = self.judge("test", &expert, &auxiliary);
        let mut report = Report::new("")
            .number("accuracy", clean.right(&clean.answers))
            .number("expert-accuracy", clean.right(&clean.expert))
            .number("expert-epochs", epochs)
            .number("auxiliary-accuracy", clean.right(&clean.auxiliary));
        let scores = clean.map(|x, y| score(x, y, s.h));
        let correct = |i: &usize| clean.answers[*i] == clean.labels[*i];
        let even = (0..clean.len()).step_by(2).filter(correct);
        let calibration: Vec<f64> = even.map(|i| scores[i]).collect();
        let Some(limit) = threshold(&calibration, s.fpr) else {
            return report.number("calibrated-on", 0.0);
        };
        let odd: Vec<usize> = (1..clean.len()).step_by(2).collect();
        let kept = |i: &usize| scores[*i] >= limit;
        report = report
            .number("threshold", limit)
            .number("rejected-clean", share(odd.iter(), |i| !kept(i)))
            .number(
                "accuracy-after",
                share(odd.iter(), |i| kept(i) && correct(i)),
            );
        if data::split(&s.suspect).is_none() {
            return report.note(format!(
                "There is no split `{}`: the threshold is calibrated, and nothing was judged by it.",
                s.suspect
            ));
        }
        let suspect = self.judge(&s.suspect, &expert, &auxiliary);
        let theirs = suspect.map(|x, y| score(x, y, s.h));
        let rejected = share(theirs.iter(), |score| **score < limit);
        let success = |i: &usize| suspect.answers[*i] == suspect.labels[*i];
        let through = |i: &usize| success(i) && theirs[*i] >= limit;
        let area = |f: fn(f64, f64) -> f64| auroc(&clean.map(f), &suspect.map(f));
        report
            .number("attack-success", share(0..suspect.len(), success))
            .number("expert-attack-success", suspect.right(&suspect.expert))
            .number("auxiliary-attack-success", suspect.right(&suspect.auxiliary))
            .number("auroc", auroc(&scores, &theirs))
            .number("auroc-expert-alone", area(|x, _| -x))
            .number("auroc-auxiliary-alone", area(|_, y| y))
            .number("auroc-ratio", area(|x, y| y / x.max(1e-8)))
            .number("auroc-difference", area(|x, y| y - x))
            .number("rejected-suspect", rejected)
            .number("attack-success-after", share(0..suspect.len(), through))
            .note(format!(
                "{:.1} % of the split `{}` is rejected at a threshold that rejects {:.1} % of clean inputs.",
                100.0 * rejected,
                s.suspect,
                100.0 * share(odd.iter(), |i| !kept(i))
            ))
            .flag(rejected >= s.flag_at)
    }
}

espalier_sdk::export!(auditor: BadExpert);
