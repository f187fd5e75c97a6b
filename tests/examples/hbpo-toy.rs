//! HBPO's claim on a toy whose answer is known: problems of level k need 4, 8, 16 or 28 tokens of thought.
//!
//! At each token the policy stops with the probability sigmoid(a[k, t] + c[b, t]); the answer is right if it thought
//! long enough, else with probability 0.1; at 64 tokens it must stop. A head of its own chooses the budget b of 8, 16,
//! 32 or 40 by level and learns from the same advantage. With hbpo each budget is forced for 4 of 16 responses; the
//! others choose their own. REINFORCE, 16 problems of 16 responses, step 1.2 on the mean gradient, 1500 updates. What
//! is shown is measured on 500 responses of each level with budgets chosen by the policy.

use std::f64::consts::FRAC_PI_2;

use espalier_runtime::plan::OptionValue;
use espalier_tests::draw::Draw;
use espalier_tests::normalizer::{Normalizer, pays, rollout};

const NEEDED: [usize; 4] = [4, 8, 16, 28];
const BUDGETS: [f64; 4] = [8.0, 16.0, 32.0, 40.0];
const MOST: usize = 64;
const PROBLEMS: usize = 16;
const GROUP: usize = 16;
const UPDATES: usize = 1500;
const STEP: f64 = 1.2;
const SEEDS: u64 = 5;

struct Policy {
    /// Stop logits by level and token.
    a: [[f64; MOST]; 4],
    /// Stop logits by budget and token.
    c: [[f64; MOST]; 4],
    /// Budget logits by level.
    head: [[f64; 4]; 4],
}

struct Answer {
    level: usize,
    budget: usize,
    length: usize,
    right: bool,
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

fn softmax(logits: [f64; 4]) -> [f64; 4] {
    let most = logits.into_iter().fold(f64::NEG_INFINITY, f64::max);
    let weights = logits.map(|z| (z - most).exp());
    let sum: f64 = weights.iter().sum();
    weights.map(|w| w / sum)
}

impl Policy {
    fn new() -> Policy {
        Policy {
            a: [[-2.5; MOST]; 4],
            c: [[0.0; MOST]; 4],
            head: [[0.0; 4]; 4],
        }
    }

    fn answer(&self, draw: &mut Draw, level: usize, forced: Option<usize>) -> Answer {
        let budget = forced.unwrap_or_else(|| draw.place(&softmax(self.head[level])));
        let mut length = 0;
        while length < MOST && !draw.chance(sigmoid(self.a[level][length] + self.c[budget][length]))
        {
            length += 1;
        }
        let right = length >= NEEDED[level] || draw.chance(0.1);
        Answer {
            level,
            budget,
            length,
            right,
        }
    }

    /// One step along the mean of A times the gradient of the log-probability.
    fn learn(&mut self, answers: &[Answer], advantages: &[f64]) {
        let mut da = [[0.0; MOST]; 4];
        let mut dc = [[0.0; MOST]; 4];
        let mut dhead = [[0.0; 4]; 4];
        for (answer, advantage) in answers.iter().zip(advantages) {
            let (k, b) = (answer.level, answer.budget);
            for t in 0..MOST.min(answer.length + 1) {
                let stopped = f64::from(u8::from(t == answer.length));
                let g = advantage * (stopped - sigmoid(self.a[k][t] + self.c[b][t]));
                da[k][t] += g;
                dc[b][t] += g;
            }
            let p = softmax(self.head[k]);
            for (j, d) in dhead[k].iter_mut().enumerate() {
                *d += advantage * (f64::from(u8::from(j == b)) - p[j]);
            }
        }
        let step = STEP / answers.len() as f64;
        for k in 0..4 {
            for t in 0..MOST {
                self.a[k][t] += step * da[k][t];
                self.c[k][t] += step * dc[k][t];
            }
            for (z, d) in self.head[k].iter_mut().zip(dhead[k]) {
                *z += step * d;
            }
        }
    }
}

/// What a right answer is paid where the normaliser is grpo.
type Pay = fn(usize) -> f64;

struct Arm {
    name: &'static str,
    plugin: &'static str,
    options: &'static [(&'static str, OptionValue)],
    pay: Pay,
    budgets: &'static [usize],
}

fn one(_length: usize) -> f64 {
    1.0
}

fn curve(length: usize) -> f64 {
    4.0 * (FRAC_PI_2 * length as f64 / MOST as f64).cos()
}

const LENGTH: (&str, OptionValue) = ("max-length", OptionValue::Integer(MOST as i64));
const ARMS: [Arm; 5] = [
    Arm {
        name: "hbpo",
        plugin: "hbpo",
        options: &[LENGTH],
        pay: one,
        budgets: &[0, 1, 2, 3],
    },
    Arm {
        name: "hbpo, `intra-weight = 2`",
        plugin: "hbpo",
        options: &[LENGTH, ("intra-weight", OptionValue::Float(2.0))],
        pay: one,
        budgets: &[0, 1, 2, 3],
    },
    Arm {
        name: "hbpo, budget 8 alone",
        plugin: "hbpo",
        options: &[LENGTH],
        pay: one,
        budgets: &[0],
    },
    Arm {
        name: "grpo, reward 0 or 1",
        plugin: "grpo",
        options: &[],
        pay: one,
        budgets: &[],
    },
    Arm {
        name: "grpo, reward f(L)",
        plugin: "grpo",
        options: &[],
        pay: curve,
        budgets: &[],
    },
];

/// By level: share of right answers, mean length, mean budget.
fn run(arm: &Arm, seed: u64) -> [[f64; 4]; 3] {
    let mut normalizer = Normalizer::new(arm.plugin, arm.options, &pays(0.0, 4.0));
    let mut draw = Draw::new(seed);
    let mut policy = Policy::new();
    for _ in 0..UPDATES {
        let mut answers = Vec::new();
        let mut batch = Vec::new();
        for problem in 0..PROBLEMS {
            let level = problem % 4;
            for j in 0..GROUP {
                let forced = match arm.budgets {
                    [] => None,
                    budgets => Some(budgets[j % budgets.len()]),
                };
                let answer = policy.answer(&mut draw, level, forced);
                let mut seen = rollout(problem as u64, 0.0);
                if answer.right {
                    seen.reward = (arm.pay)(answer.length);
                }
                seen.correct = answer.right;
                seen.length = answer.length as u32;
                if forced.is_some() {
                    seen.tags.push(("budget".into(), BUDGETS[answer.budget]));
                }
                batch.push(seen);
                answers.push(answer);
            }
        }
        policy.learn(&answers, &normalizer.values(&batch));
    }
    const TESTS: usize = 500;
    let forced = match arm.budgets {
        [only] => Some(*only),
        _ => None,
    };
    let by_level: [[f64; 3]; 4] = std::array::from_fn(|level| {
        let mut sums = [0.0; 3];
        for _ in 0..TESTS {
            let answer = policy.answer(&mut draw, level, forced);
            sums[0] += f64::from(u8::from(answer.right));
            sums[1] += answer.length as f64;
            sums[2] += BUDGETS[answer.budget];
        }
        sums.map(|sum| sum / TESTS as f64)
    });
    std::array::from_fn(|what| by_level.map(|level| level[what]))
}

fn main() {
    println!("Levels 0 / 1 / 2 / 3, mean of seeds 0 to {}.\n", SEEDS - 1);
    println!("| | right | least right of any level and seed | length | chosen budget |");
    println!("| --- | --- | --- | --- | --- |");
    for arm in &ARMS {
        let runs: Vec<_> = (0..SEEDS).map(|seed| run(arm, seed)).collect();
        let cell = |what: usize, digits: usize| {
            let levels = (0..4).map(|level| {
                let sum: f64 = runs.iter().map(|run| run[what][level]).sum();
                format!("{:.digits$}", sum / SEEDS as f64)
            });
            levels.collect::<Vec<_>>().join(" / ")
        };
        let least = runs.iter().flat_map(|run| run[0]).fold(1.0, f64::min);
        println!(
            "| {} | {} | {least:.3} | {} | {} |",
            arm.name,
            cell(0, 3),
            cell(1, 1),
            cell(2, 1)
        );
    }
}
