//! Toy problems, from numbers that are the same on every machine.

use super::Problem;
use super::bench::{Size, Trial};
use crate::host::bindings::trainer::espalier::plugin::rewards::{Bounds, RewardSpec, Rollout};
use crate::plan::Slot;

/// A stream of numbers: splitmix64.
pub(super) struct Draw(u64);

impl Draw {
    pub(super) fn new(seed: u64) -> Draw {
        Draw(seed)
    }

    pub(super) fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 up to 1.
    pub(super) fn unit(&mut self) -> f64 {
        (self.word() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// From 0 up to `n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.unit() * n as f64) as usize
    }

    /// The numbers below `n` in some order.
    pub(super) fn order(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

/// An outcome from 0 to 1 and one term from 0 to 1.
pub(super) fn pays() -> RewardSpec {
    let bounds = |name: &str| Bounds {
        name: name.into(),
        min: 0.0,
        max: 1.0,
    };
    RewardSpec {
        outcome: bounds(""),
        terms: vec![bounds("form")],
    }
}

/// A readable response of eight tokens; right from a reward of 0.5 on.
pub(super) fn rollout(sample: usize, group: u64, reward: f64) -> Rollout {
    Rollout {
        sample: sample as u64,
        prompt: group,
        group,
        parent: None,
        task: String::new(),
        reward,
        terms: vec![("form".into(), reward)],
        correct: reward >= 0.5,
        well_formed: true,
        length: 8,
        tags: Vec::new(),
        segments: Vec::new(),
    }
}

/// Groups of rollouts as environments give them: mixed rewards, lengths and stated budgets.
pub(super) fn rollouts(seed: u64, groups: u64, size: usize) -> Vec<Rollout> {
    let mut draw = Draw::new(seed);
    let mut batch = Vec::new();
    for group in 0..groups {
        let chance = draw.unit();
        for i in 0..size {
            let reward = f64::from(u8::from(draw.unit() < chance));
            let mut one = rollout(batch.len(), group, reward);
            one.length = 1 + draw.below(60) as u32;
            one.well_formed = one.correct || draw.unit() < 0.9;
            one.terms = vec![("form".into(), f64::from(u8::from(one.well_formed)))];
            one.tags = vec![("budget".into(), [8.0, 16.0, 32.0, 64.0][i % 4])];
            batch.push(one);
        }
    }
    batch
}

/// The whole numbers of an NPY file's header and its elements.
fn npy(kind: &str, shape: &[usize], elements: Vec<u8>) -> Vec<u8> {
    let sizes: Vec<String> = shape.iter().map(|n| format!("{n},")).collect();
    let mut header = format!(
        "{{'descr': '{kind}', 'fortran_order': False, 'shape': ({}), }}",
        sizes.join(" ")
    );
    while (10 + header.len() + 1) % 64 != 0 {
        header.push(' ');
    }
    header.push('\n');
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(elements);
    file
}

/// Classes of the toy problem; all sizes of its model are multiples of four, so that a half and three quarters of
/// any weight matrix are whole numbers.
pub(super) const CLASSES: usize = 4;

/// Inputs f32 [n, 1, 4, 4] around a centre for each class, and the classes i64 [n] or a sum of inputs f32 [n].
pub(super) fn samples(problem: Problem, size: Size) -> (Vec<u8>, Vec<u8>) {
    let count = match size {
        Size::Tiny => 2,
        _ => 96,
    };
    let mut draw = Draw::new(11);
    let (mut inputs, mut classes, mut values) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..count {
        let class = i % CLASSES;
        let mut sum = 0.0;
        for place in 0..16 {
            let bright = if place / 4 == class { 0.7 } else { 0.0 };
            let x = (bright + 0.3 * draw.unit()) as f32;
            sum += x * (place as f32 - 7.5) / 16.0;
            inputs.extend(x.to_le_bytes());
        }
        classes.extend((class as i64).to_le_bytes());
        values.extend(sum.to_le_bytes());
    }
    let inputs = npy("<f4", &[count, 1, 4, 4], inputs);
    match problem {
        Problem::Values => (inputs, npy("<f4", &[count], values)),
        _ => (inputs, npy("<i8", &[count], classes)),
    }
}

/// Letters in turn with some that are not: 96 windows of [`CONTEXT`], or two.
pub(super) fn text(size: Size) -> Vec<u8> {
    let windows = match size {
        Size::Tiny => 2,
        _ => 96,
    };
    let mut draw = Draw::new(12);
    let letter = |i: usize| match draw.unit() < 0.1 {
        true => b'z',
        false => b'a' + (i % 5) as u8,
    };
    (0..=windows * CONTEXT).map(letter).collect()
}

/// Bytes of a window of the toy text.
const CONTEXT: usize = 8;

/// Whether a plugin of the slot is tried in runs of the trainer `backprop`.
fn beside_a_trainer(slot: Slot) -> bool {
    matches!(slot, Slot::Pruner | Slot::Auditor | Slot::Transform)
}

/// The run of a trial in words.
pub(super) fn words(slot: Slot, trial: &Trial) -> String {
    let beside = match slot {
        Slot::Architecture => ", with the trainer backprop",
        _ if beside_a_trainer(slot) => ", with the trainer backprop",
        _ => "",
    };
    let what = match trial.size {
        Size::Ordinary | Size::Frozen => trial.problem.words().to_string(),
        Size::Tiny => format!("{}, as few as there can be", trial.problem.words()),
        Size::Empty if beside_a_trainer(slot) => format!(
            "{} and a model without a weight to train",
            trial.problem.words()
        ),
        Size::Empty => format!(
            "{} and a model with nothing to train",
            trial.problem.words()
        ),
    };
    let frozen = match trial.size {
        Size::Frozen => ", a frozen layer and a normalisation in the model",
        _ => "",
    };
    let options: Vec<String> = trial
        .options
        .iter()
        .map(|(name, value)| format!(", {name} = {}", crate::options::show(value)))
        .collect();
    format!(
        "ran {} steps on {what}{beside}{frozen}{}",
        trial.steps,
        options.concat()
    )
}

/// The layers that a plugin asks for in its conformance.toml, where they stand for those of [`run_file`]: on samples,
/// in a model of ordinary size. Where a frozen layer is to be tried it is the first that has a weight and is not frozen.
pub(super) fn layers(wanted: &[toml::Table], trial: &Trial) -> Option<String> {
    let samples = matches!(trial.problem, Problem::Classes | Problem::Values);
    let sized = matches!(trial.size, Size::Ordinary | Size::Frozen);
    if wanted.is_empty() || !samples || !sized {
        return None;
    }
    let mut layers = wanted.to_vec();
    if trial.size == Size::Frozen {
        let weighs = |layer: &&mut toml::Table| {
            let kind = layer.get("kind").and_then(toml::Value::as_str);
            matches!(kind, Some("linear" | "conv2d")) && !layer.contains_key("frozen")
        };
        if let Some(first) = layers.iter_mut().find(weighs) {
            first.insert("frozen".into(), toml::Value::Boolean(true));
        }
    }
    let layers = layers.into_iter().map(toml::Value::Table).collect();
    Some(toml::Value::Array(layers).to_string())
}

/// The run file of a trial. The plugin stands under the name `subject`.
pub(super) fn run_file(slot: Slot, trial: &Trial, subject: &str) -> String {
    let steps = trial.steps;
    let (outputs, loss) = match trial.problem {
        Problem::Values => (1, "loss = \"mse\""),
        _ => (CLASSES, ""),
    };
    let data = r#"
[data]
source = "npy"
inputs = "inputs.npy"
targets = "targets.npy"
"#;
    let linear = |features: usize, more: &str| {
        format!("{{ kind = \"linear\", features = {features}{more} }},\n")
    };
    let frozen = ", frozen = true";
    let stem = match trial.size {
        Size::Frozen => ", frozen = true, group = \"stem\"",
        Size::Empty if !beside_a_trainer(slot) => frozen,
        _ => "",
    };
    let rest = match trial.size {
        Size::Empty if !beside_a_trainer(slot) => frozen,
        _ => "",
    };
    let (setting, layers) = match trial.problem {
        Problem::Classes | Problem::Values => {
            let test = match trial.size {
                Size::Tiny => "test = 0.5\n",
                // An auditor learns from what the trainer has not seen.
                _ if slot == Slot::Auditor => "test = 0.25\nvalidation = 0.25\n",
                _ => "test = 0.25\n",
            };
            let layers = match (trial.size, slot) {
                (Size::Tiny, _) => linear(if loss.is_empty() { 2 } else { 1 }, ""),
                (Size::Empty, _) if beside_a_trainer(slot) => {
                    format!("{{ kind = \"layer-norm\" }},\n{}", linear(outputs, frozen))
                }
                (Size::Empty, _) => linear(outputs, frozen),
                (size, _) => {
                    let norm = match size {
                        Size::Frozen if slot == Slot::Pruner => "{ kind = \"layer-norm\" },\n",
                        _ => "",
                    };
                    format!(
                        "{}{norm}{{ kind = \"relu\" }},\n{}{{ kind = \"relu\" }},\n{}",
                        linear(24, stem),
                        linear(16, ""),
                        linear(outputs, "")
                    )
                }
            };
            (
                format!("{data}{test}"),
                format!("{{ kind = \"flatten\" }},\n{layers}"),
            )
        }
        Problem::Tasks => {
            let modulus = match trial.size {
                Size::Tiny => 2,
                _ => 10,
            };
            let setting = format!(
                "\n[environment]\nplugin = \"modular-arithmetic\"\nwith = {{ modulus = {modulus}, operands = {modulus} }}\n[normalizer]\nplugin = \"reinforce-baseline\"\n"
            );
            let layers = format!(
                "{{ kind = \"embedding\", features = 16, deviation = 0.1{rest} }},\n{}{{ kind = \"transformer-block\", features = 16, heads = 2{rest} }},\n{{ kind = \"tied-linear\"{rest} }},\n",
                linear(16, stem)
            );
            (setting, layers)
        }
        Problem::Text => {
            let test = match trial.size {
                Size::Tiny => 0.5,
                _ => 0.25,
            };
            let setting = format!(
                "\n[data]\nsource = \"text\"\npath = \"text.txt\"\ncontext = {CONTEXT}\ntest = {test}\n"
            );
            let layers = format!(
                "{{ kind = \"embedding\", entries = 256, features = 16{stem} }},\n{}",
                linear(256, rest)
            );
            (setting, layers)
        }
        Problem::World => {
            let setting = "\n[environment]\nplugin = \"cartpole\"\n".to_string();
            (
                setting,
                format!(
                    "{}{{ kind = \"tanh\" }},\n{}",
                    linear(16, stem),
                    linear(2, rest)
                ),
            )
        }
    };
    let batch = match trial.size {
        Size::Tiny => 1,
        _ => 8,
    };
    let epoch = match trial.problem {
        Problem::Tasks | Problem::World => format!(
            "steps-per-epoch = {}\nevaluation-episodes = 4\n",
            steps.div_ceil(3).max(1)
        ),
        _ => String::new(),
    };
    let plugins = match slot {
        _ if beside_a_trainer(slot) => {
            format!("[trainer]\nplugin = \"backprop\"\n[[{slot}]]\nplugin = \"{subject}\"\n")
        }
        Slot::Architecture => "[trainer]\nplugin = \"backprop\"\n".to_string(),
        _ => format!("[trainer]\nplugin = \"{subject}\"\n"),
    };
    if slot == Slot::Searcher {
        // Many more steps than a search needs that answers some prompts in each.
        return format!(
            "{}[model]\nlayers = [\n{layers}]\n[searcher]\nplugin = \"{subject}\"\nsplit = \"train\"\nprompts-per-step = {}\nmax-steps = {}\n",
            setting.split("[normalizer]").next().unwrap_or_default(),
            batch.min(4),
            steps.saturating_mul(40),
        );
    }
    let model = match slot {
        Slot::Architecture => format!("[architecture]\nplugin = \"{subject}\"\n"),
        _ => format!("[model]\nlayers = [\n{layers}]\n"),
    };
    format!(
        "{setting}{model}[schedule]\nsteps = {steps}\nbatch-size = {batch}\n{epoch}{loss}\n{plugins}"
    )
}
