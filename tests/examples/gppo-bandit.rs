//! The gradient-preserving clip against ordinary clipping where rollouts are used several times: a softmax policy
//! of 50 contexts and 20 arms, one of them right, which begins with a logit lowered by 1. Groups of 8, 8 updates on
//! the same rollouts, plain gradient descent on the logits.
//!
//! `cargo run --release -p espalier-tests --example gppo-bandit` prints a table in Markdown. The losses are the case
//! table of Klear-Reasoner (arXiv 2508.07629) written out; that the trainer `policy-gradient` has the same losses
//! and gradients is what tests/policy_gradient.rs checks.

const CONTEXTS: usize = 50;
const ARMS: usize = 20;
const GROUP: usize = 8;
const UPDATES: usize = 8;
const BATCHES: usize = 100;
const SEEDS: u64 = 5;

#[derive(Clone, Copy)]
enum Rule {
    Clip,
    Gppo([f64; 2]),
    Cispo,
}

struct Arm {
    name: &'static str,
    rule: Rule,
    low: f64,
    high: f64,
    step: f64,
}

/// Derivative of the loss of a sample with respect to its log-probability.
fn slope(arm: &Arm, ratio: f64, advantage: f64) -> f64 {
    let (low, high) = (1.0 - arm.low, 1.0 + arm.high);
    let above = advantage > 0.0 && ratio > high;
    let below = advantage < 0.0 && ratio < low;
    match arm.rule {
        Rule::Cispo => -advantage * ratio.clamp(low, high),
        Rule::Gppo([_, beta]) if above => -advantage * beta * high,
        Rule::Gppo([beta, _]) if below => -advantage * beta * low,
        Rule::Clip if above || below => 0.0,
        _ => -advantage * ratio,
    }
}

/// SplitMix64.
struct Dice(u64);

impl Dice {
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.unit()).ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = logits.iter().map(|x| (x - most).exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|w| w / total).collect()
}

struct Outcome {
    /// First batch after which the mean probability of the right arm is over 0.8.
    solved: Option<usize>,
    right: f64,
    clipped: f64,
    entropy: f64,
}

fn play(arm: &Arm, seed: u64) -> Outcome {
    let mut dice = Dice(seed.wrapping_mul(0x1234_5678_9abc_def1));
    // The right arm is arm 0 of every context.
    let mut logits: Vec<Vec<f64>> = (0..CONTEXTS)
        .map(|_| {
            (0..ARMS)
                .map(|arm| dice.normal() - f64::from(u8::from(arm == 0)))
                .collect()
        })
        .collect();
    let (mut solved, mut cut, mut all) = (None, 0_u64, 0_u64);
    let right =
        |logits: &[Vec<f64>]| logits.iter().map(|l| softmax(l)[0]).sum::<f64>() / CONTEXTS as f64;
    for batch in 1..=BATCHES {
        for logits in &mut logits {
            let old = softmax(logits);
            let drawn: Vec<usize> = (0..GROUP)
                .map(|_| {
                    let (dice, mut below) = (dice.unit(), 0.0);
                    let passes = |p: &f64| {
                        below += p;
                        dice < below
                    };
                    old.iter().position(passes).unwrap_or(ARMS - 1)
                })
                .collect();
            let rewards: Vec<f64> = drawn.iter().map(|&a| f64::from(u8::from(a == 0))).collect();
            let mean = rewards.iter().sum::<f64>() / GROUP as f64;
            let squares: f64 = rewards.iter().map(|r| (r - mean).powi(2)).sum();
            let deviation = (squares / (GROUP - 1) as f64).sqrt();
            for _ in 0..UPDATES {
                let now = softmax(logits);
                let mut gradient = vec![0.0; ARMS];
                for (&taken, reward) in drawn.iter().zip(&rewards) {
                    let advantage = (reward - mean) / (deviation + 1e-6);
                    let ratio = now[taken] / old[taken];
                    let slope = slope(arm, ratio, advantage) / GROUP as f64;
                    for (place, g) in gradient.iter_mut().enumerate() {
                        *g += slope * (f64::from(u8::from(place == taken)) - now[place]);
                    }
                    all += 1;
                    cut += u64::from(
                        advantage > 0.0 && ratio > 1.0 + arm.high
                            || advantage < 0.0 && ratio < 1.0 - arm.low,
                    );
                }
                for (logit, g) in logits.iter_mut().zip(gradient) {
                    *logit -= arm.step * g;
                }
            }
        }
        if solved.is_none() && right(&logits) > 0.8 {
            solved = Some(batch);
        }
    }
    let entropy = |logits: &Vec<f64>| -> f64 {
        let terms = softmax(logits)
            .into_iter()
            .filter(|p| *p > 0.0)
            .map(|p| -p * p.ln());
        terms.sum()
    };
    Outcome {
        solved,
        right: right(&logits),
        clipped: cut as f64 / all as f64,
        entropy: logits.iter().map(entropy).sum::<f64>() / CONTEXTS as f64,
    }
}

fn main() {
    let arm = |name, rule, low, high, step| Arm {
        name,
        rule,
        low,
        high,
        step,
    };
    let arms = [
        arm("PPO clip, 0.2/0.2, step 0.5", Rule::Clip, 0.2, 0.2, 0.5),
        arm(
            "clip higher, 0.2/0.28, step 0.5",
            Rule::Clip,
            0.2,
            0.28,
            0.5,
        ),
        arm(
            "GPPO (1, 1), step 0.5",
            Rule::Gppo([1.0, 1.0]),
            0.2,
            0.28,
            0.5,
        ),
        arm(
            "GPPO (0.25, 1), step 0.5",
            Rule::Gppo([0.25, 1.0]),
            0.2,
            0.28,
            0.5,
        ),
        arm("CISPO, step 0.5", Rule::Cispo, 0.2, 0.28, 0.5),
        arm(
            "clip higher, 0.2/0.28, step 1.0",
            Rule::Clip,
            0.2,
            0.28,
            1.0,
        ),
    ];
    println!(
        "| rule | batches to 0.8, {SEEDS} seeds | median | right at the end | clipped | entropy at the end |"
    );
    println!("| --- | --- | --- | --- | --- | --- |");
    for arm in &arms {
        let runs: Vec<Outcome> = (0..SEEDS).map(|seed| play(arm, seed)).collect();
        let mut solved: Vec<usize> = runs
            .iter()
            .map(|r| r.solved.unwrap_or(usize::MAX))
            .collect();
        let shown = |n: &usize| match *n {
            usize::MAX => "never".to_string(),
            n => n.to_string(),
        };
        let list: Vec<String> = solved.iter().map(shown).collect();
        solved.sort_unstable();
        let mean = |f: fn(&Outcome) -> f64| runs.iter().map(f).sum::<f64>() / SEEDS as f64;
        println!(
            "| {} | {} | {} | {:.3} | {:.3} | {:.2} |",
            arm.name,
            list.join(", "),
            shown(&solved[solved.len() / 2]),
            mean(|r| r.right),
            mean(|r| r.clipped),
            mean(|r| r.entropy)
        );
    }
}
