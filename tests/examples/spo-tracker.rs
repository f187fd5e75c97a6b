//! SPO's claim without a policy: what a tracker saves that hears one response a prompt.
//!
//! 512 prompts whose log-odds of success are N(-0.5, spread^2) and rise by 0.004 a step; 64 responses a step, for 300
//! steps. `spo` sees 64 prompts once (`constant-rho = 0.92`), `grpo` sees 8 prompts 8 times. Compared: the squared
//! error of spo's baseline with that of the batch's mean, and the share of responses whose advantage is 0.

use espalier_runtime::plan::OptionValue;
use espalier_tests::draw::Draw;
use espalier_tests::normalizer::{Normalizer, Rollout, pays, rollout};

const PROMPTS: usize = 512;
const RESPONSES: usize = 64;
const GROUP: usize = 8;
const STEPS: usize = 300;
const SEEDS: u64 = 5;

/// So many different prompts in proportion to their weights.
fn prompts(draw: &mut Draw, weights: &[f64], count: usize) -> Vec<usize> {
    let mut left = weights.to_vec();
    let mut chosen = Vec::new();
    for _ in 0..count {
        let prompt = draw.place(&left);
        left[prompt] = 0.0;
        chosen.push(prompt);
    }
    chosen
}

fn answers(draw: &mut Draw, p: &[f64], chosen: &[usize], each: usize) -> Vec<Rollout> {
    let mut batch = Vec::new();
    for &prompt in chosen {
        for _ in 0..each {
            let right = draw.chance(p[prompt]);
            batch.push(rollout(prompt as u64, f64::from(u8::from(right))));
        }
    }
    batch
}

fn zeros(advantages: &[f64]) -> f64 {
    let zeros = advantages.iter().filter(|a| **a == 0.0).count();
    zeros as f64 / advantages.len() as f64
}

/// Deviation of the success rates at the start, squared errors of the tracker and of the batch's mean, shares of zero
/// advantages of spo and of grpo.
fn run(spread: f64, prioritised: bool, seed: u64) -> [f64; 5] {
    let spec = pays(0.0, 1.0);
    let constant = [("constant-rho", OptionValue::Float(0.92))];
    let mut spo = Normalizer::new("spo", &constant, &spec);
    let mut grpo = Normalizer::new("grpo", &[], &spec);
    let mut draw = Draw::new(seed);
    let odds: Vec<f64> = (0..PROMPTS)
        .map(|_| -0.5 + spread * draw.normal())
        .collect();
    let all: Vec<u64> = (0..PROMPTS as u64).collect();
    let mut found = [0.0; 5];
    for step in 0..STEPS {
        let rise = 0.004 * step as f64;
        let p: Vec<f64> = odds
            .iter()
            .map(|b| 1.0 / (1.0 + (-b - rise).exp()))
            .collect();
        if step == 0 {
            let mean = p.iter().sum::<f64>() / PROMPTS as f64;
            let square = p.iter().map(|p| (p - mean).powi(2)).sum::<f64>() / PROMPTS as f64;
            found[0] = square.sqrt();
        }
        let even = vec![1.0; PROMPTS];
        let weights = match prioritised {
            true => spo.prompt_weights(&all),
            false => even.clone(),
        };
        let chosen = prompts(&mut draw, &weights, RESPONSES);
        let batch = answers(&mut draw, &p, &chosen, 1);
        let mean = batch.iter().map(|r| r.reward).sum::<f64>() / RESPONSES as f64;
        let square = batch.iter().map(|r| (r.reward - mean).powi(2)).sum::<f64>();
        let advantages = spo.values(&batch);
        spo.observe(&[]);
        let chosen = prompts(&mut draw, &even, RESPONSES / GROUP);
        let groups = answers(&mut draw, &p, &chosen, GROUP);
        let add = [
            0.0,
            spo.metrics()["squared-error"],
            square / RESPONSES as f64,
            zeros(&advantages),
            zeros(&grpo.values(&groups)),
        ];
        for (sum, x) in found.iter_mut().zip(add) {
            *sum += x / STEPS as f64;
        }
    }
    found
}

fn main() {
    println!("Mean of seeds 0 to {} (least to most).\n", SEEDS - 1);
    println!(
        "| spread | std of p | prompts drawn | variance saved | zero advantages, spo | zero advantages, grpo |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    for spread in [1.0, 2.0, 3.0] {
        for (prioritised, word) in [(false, "alike"), (true, "by spo's weights")] {
            let runs: Vec<_> = (0..SEEDS)
                .map(|seed| run(spread, prioritised, seed))
                .collect();
            let mean =
                |f: &dyn Fn(&[f64; 5]) -> f64| runs.iter().map(f).sum::<f64>() / SEEDS as f64;
            let saved: Vec<f64> = runs.iter().map(|r| 100.0 * (1.0 - r[1] / r[2])).collect();
            let least = saved.iter().copied().fold(f64::INFINITY, f64::min);
            let most = saved.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            println!(
                "| {spread} | {:.2} | {word} | {:.0} % ({least:.0} to {most:.0}) | {:.1} % | {:.0} % |",
                mean(&|r| r[0]),
                saved.iter().sum::<f64>() / SEEDS as f64,
                100.0 * mean(&|r| r[3]),
                100.0 * mean(&|r| r[4]),
            );
        }
    }
}
