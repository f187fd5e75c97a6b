//! BNPO's claim without training: the second moment of what multiplies the gradient, E[A^2].
//!
//! Questions succeed with p ~ Beta(a, b). The closed forms know p, a and b; the components know rewards only, so p is
//! a group's mean and the density is fitted to the batch. The closed forms are the limit of large groups and batches;
//! `cargo test -p espalier-plugin-bnpo` holds them to 3 % with the true p.
//!
//! GRPO is shown times pi / 8, as the normalised density Beta(3/2, 3/2), which makes the three comparable.

use std::f64::consts::FRAC_PI_8;

use espalier_runtime::plan::OptionValue;
use espalier_tests::draw::Draw;
use espalier_tests::normalizer::{Normalizer, Rollout, pays, rollout};

/// Questions of a batch.
const QUESTIONS: u64 = 4096;
const SEEDS: u64 = 5;

fn batch(draw: &mut Draw, a: u32, b: u32, size: u32) -> Vec<Rollout> {
    let mut batch = Vec::new();
    for question in 0..QUESTIONS {
        let p = draw.beta(a, b);
        for _ in 0..size {
            batch.push(rollout(question, f64::from(u8::from(draw.chance(p)))));
        }
    }
    batch
}

fn main() {
    let spec = pays(0.0, 1.0);
    let mut reinforce = Normalizer::new("reinforce-baseline", &[], &spec);
    let mut grpo = Normalizer::new("grpo", &[], &spec);
    let mut bnpo = Normalizer::new("bnpo", &[], &spec);
    let clamp = [("clamp", OptionValue::Float(10.0))];
    let mut clamped = Normalizer::new("bnpo", &clamp, &spec);
    println!(
        "{QUESTIONS} questions a batch, mean of seeds 0 to {}.\n",
        SEEDS - 1
    );
    println!(
        "| a, b | responses | reinforce-baseline | grpo | bnpo | bnpo, clamp 10 | alpha | beta |"
    );
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    for ((a, b), closed) in [
        ((1, 4), [0.133333, 0.154213, 0.074435]),
        ((3, 3), [0.214286, 0.154213, 0.138889]),
        ((6, 2), [0.166667, 0.154213, 0.077638]),
    ] {
        let [r, g, n] = closed;
        let (alpha, beta) = (1.0 + f64::from(a) / 3.0, 1.0 + f64::from(b) / 3.0);
        println!(
            "| {a}, {b} | closed form | {r:.4} | {g:.4} | {n:.4} | | {alpha:.3} | {beta:.3} |"
        );
        for size in [8, 16, 64] {
            let mut sums = [0.0; 6];
            for seed in 0..SEEDS {
                let batch = batch(&mut Draw::new(seed), a, b, size);
                let moment = |normalizer: &mut Normalizer, scale: f64| {
                    let values = normalizer.values(&batch);
                    let squares: f64 = values.iter().map(|a| (scale * a).powi(2)).sum();
                    squares / values.len() as f64
                };
                let fit = [
                    moment(&mut reinforce, 1.0),
                    moment(&mut grpo, FRAC_PI_8),
                    moment(&mut bnpo, 1.0),
                    moment(&mut clamped, 1.0),
                    bnpo.metrics()["alpha"],
                    clamped.metrics()["beta"],
                ];
                for (sum, x) in sums.iter_mut().zip(fit) {
                    *sum += x / SEEDS as f64;
                }
            }
            let [r, g, n, c, alpha, beta] = sums;
            println!("| | {size} | {r:.4} | {g:.4} | {n:.4} | {c:.4} | {alpha:.3} | {beta:.3} |");
        }
    }
}
