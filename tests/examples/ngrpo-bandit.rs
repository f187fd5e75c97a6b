//! NGRPO's claim on bandits: where the wrong answers of a policy are few and sure, groups in which all fail must teach.
//!
//! 32 prompts, each a softmax over 64 arms of which 2 are right; 8 responses a prompt and rollout, 2 updates of plain
//! gradient ascent with step 0.5 on the clipped surrogate, averaged over the responses. A prompt is solved when it is
//! answered right with a probability above 0.9. The counter-case starts from equal wrong arms. Four more rows exchange
//! the clip ranges, which are half of the method, or leave them out.

use espalier_runtime::plan::OptionValue;
use espalier_tests::draw::Draw;
use espalier_tests::normalizer::{Normalizer, pays, rollout};

const PROMPTS: usize = 32;
const ARMS: usize = 64;
const RIGHT: usize = 2;
const GROUP: usize = 8;
const UPDATES: usize = 2;
const STEP: f64 = 0.5;
const ROLLOUTS: usize = 300;
const SEEDS: u64 = 5;

struct Arm {
    name: &'static str,
    plugin: &'static str,
    options: &'static [(&'static str, OptionValue)],
    clip: (f64, f64),
}

const METHODS: [Arm; 7] = [
    Arm {
        name: "grpo",
        plugin: "grpo",
        options: &[],
        clip: (0.2, 0.2),
    },
    Arm {
        name: "ngrpo",
        plugin: "ngrpo",
        options: &[],
        clip: (0.16, 0.24),
    },
    Arm {
        name: "dapo (grpo, `drop-constant-groups`)",
        plugin: "grpo",
        options: &[("drop-constant-groups", OptionValue::Bool(true))],
        clip: (0.2, 0.28),
    },
    Arm {
        name: "grpo with ngrpo's clip range",
        plugin: "grpo",
        options: &[],
        clip: (0.16, 0.24),
    },
    Arm {
        name: "ngrpo with grpo's clip range",
        plugin: "ngrpo",
        options: &[],
        clip: (0.2, 0.2),
    },
    Arm {
        name: "grpo without clipping",
        plugin: "grpo",
        options: &[],
        clip: (1.0, f64::INFINITY),
    },
    Arm {
        name: "ngrpo without clipping",
        plugin: "ngrpo",
        options: &[],
        clip: (1.0, f64::INFINITY),
    },
];

/// Probabilities at the start.
fn confident() -> [f64; ARMS] {
    std::array::from_fn(|arm| match arm {
        0..RIGHT => 0.002,
        RIGHT..5 => 0.95 / 3.0,
        _ => (1.0 - 0.95 - 0.004) / 59.0,
    })
}

fn flat() -> [f64; ARMS] {
    std::array::from_fn(|arm| match arm {
        0..RIGHT => 0.01,
        _ => 0.98 / 62.0,
    })
}

fn softmax(logits: &[f64; ARMS]) -> [f64; ARMS] {
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights = logits.map(|z| (z - most).exp());
    let sum: f64 = weights.iter().sum();
    weights.map(|w| w / sum)
}

/// Share of solved prompts, mean probability of a right answer, mean entropy.
fn measured(logits: &[[f64; ARMS]]) -> [f64; 3] {
    let mut found = [0.0; 3];
    for prompt in logits {
        let p = softmax(prompt);
        let right: f64 = p[..RIGHT].iter().sum();
        let entropy: f64 = p.iter().map(|p| -p * p.max(1e-300).ln()).sum();
        found[0] += f64::from(u8::from(right > 0.9));
        found[1] += right;
        found[2] += entropy;
    }
    found.map(|sum| sum / logits.len() as f64)
}

/// What is measured after so many rollouts.
fn run(method: &Arm, start: [f64; ARMS], seed: u64, at: &[usize]) -> Vec<[f64; 3]> {
    let mut normalizer = Normalizer::new(method.plugin, method.options, &pays(0.0, 1.0));
    let mut draw = Draw::new(seed);
    let mut logits = vec![start.map(f64::ln); PROMPTS];
    let mut found = Vec::new();
    for count in 0..ROLLOUTS {
        let old: Vec<_> = logits.iter().map(softmax).collect();
        let chosen: Vec<usize> = old
            .iter()
            .flat_map(|p| (0..GROUP).map(|_| draw.place(p)).collect::<Vec<_>>())
            .collect();
        let batch: Vec<_> = chosen
            .iter()
            .enumerate()
            .map(|(i, arm)| rollout((i / GROUP) as u64, f64::from(u8::from(*arm < RIGHT))))
            .collect();
        let advantages = normalizer
            .normalize(&batch)
            .unwrap_or_else(|refusal| panic!("{refusal}"));
        for _ in 0..UPDATES {
            for (prompt, logits) in logits.iter_mut().enumerate() {
                let p = softmax(logits);
                let mut gradient = [0.0; ARMS];
                for i in prompt * GROUP..(prompt + 1) * GROUP {
                    let (arm, a) = (chosen[i], advantages[i].values[0]);
                    let ratio = p[arm] / old[prompt][arm];
                    // The gradient of min(ratio A, clip(ratio) A).
                    let clipped = match a > 0.0 {
                        true => ratio > 1.0 + method.clip.1,
                        false => ratio < 1.0 - method.clip.0,
                    };
                    if clipped || !advantages[i].keep {
                        continue;
                    }
                    for (j, g) in gradient.iter_mut().enumerate() {
                        let chosen = f64::from(u8::from(j == arm));
                        *g += a * ratio * (chosen - p[j]);
                    }
                }
                for (z, g) in logits.iter_mut().zip(gradient) {
                    *z += STEP * g / GROUP as f64;
                }
            }
        }
        if at.contains(&(count + 1)) {
            found.push(measured(&logits));
        }
    }
    found
}

fn table(title: &str, start: [f64; ARMS], at: &[usize]) {
    println!("{title}\n");
    let places: Vec<String> = at.iter().map(|n| format!("solved at {n}")).collect();
    println!(
        "| | {} | right at the end | entropy at the end |",
        places.join(" | ")
    );
    println!("|{}", " --- |".repeat(at.len() + 3));
    for method in &METHODS {
        let runs: Vec<_> = (0..SEEDS)
            .map(|seed| run(method, start, seed, at))
            .collect();
        let cell = |place: usize, what: usize| {
            let values: Vec<f64> = runs.iter().map(|run| run[place][what]).collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let least = values.iter().copied().fold(f64::INFINITY, f64::min);
            let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            format!("{mean:.2} ({least:.2} to {most:.2})")
        };
        let solved: Vec<String> = (0..at.len()).map(|place| cell(place, 0)).collect();
        let last = at.len() - 1;
        println!(
            "| {} | {} | {} | {} |",
            method.name,
            solved.join(" | "),
            cell(last, 1),
            cell(last, 2)
        );
    }
    println!();
}

fn main() {
    println!("Mean of seeds 0 to {} (least to most).\n", SEEDS - 1);
    table(
        "Confident and wrong: three wrong arms share 0.95.",
        confident(),
        &[50, 100, 150, 200, 300],
    );
    table(
        "Counter-case: all wrong arms alike.",
        flat(),
        &[50, 100, 150, 200, 300],
    );
}
