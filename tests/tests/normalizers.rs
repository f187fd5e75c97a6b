//! Every normaliser meets the same rollouts: what is degenerate gives finite advantages or a refusal in words, and what
//! cannot matter does not. The real components, called as a run calls them.
//!
//! Exact numbers of the methods stand beside the plugins, in `plugins/`.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use espalier_runtime::plan::OptionValue;
use espalier_tests::draw::Draw;
use espalier_tests::normalizer::{Bounds, Drift, Normalizer, RewardSpec, Rollout, pays, rollout};
use espalier_tests::workspace;

const ALL: [&str; 6] = ["reinforce-baseline", "grpo", "bnpo", "ngrpo", "spo", "hbpo"];

/// With its defaults, rewards from 0 to 1.
fn plain(name: &str) -> Normalizer {
    Normalizer::new(name, &[], &pays(0.0, 1.0))
}

/// Groups of 0/1 rewards with budgets and lengths, as environments give them.
fn ordinary(seed: u64, groups: u64, size: usize) -> Vec<Rollout> {
    let mut draw = Draw::new(seed);
    let mut batch = Vec::new();
    for group in 0..groups {
        let p = draw.unit();
        for i in 0..size {
            let mut one = rollout(group, f64::from(u8::from(draw.chance(p))));
            one.sample = batch.len() as u64;
            one.length = (draw.unit() * 60.0) as u32;
            one.well_formed = one.correct || draw.chance(0.9);
            one.tags = vec![("budget".into(), [8.0, 16.0, 32.0, 64.0][i % 4])];
            batch.push(one);
        }
    }
    batch
}

fn alike(reward: f64) -> Vec<Rollout> {
    (0..24).map(|i| rollout(i / 8, reward)).collect()
}

fn close(found: f64, expected: f64, what: &str) {
    let scale = 1.0 + expected.abs();
    let off = (found - expected).abs() / scale;
    assert!(off < 1e-9, "{what}: {found}, expected {expected}");
}

/// What must come of a batch.
enum Wanted {
    /// One finite number for each.
    Finite,
    /// That, or the plugin's refusal with this in it.
    FiniteOr(&'static str),
    /// The host's refusal, before the plugin sees anything, with all of this in it.
    Refused(&'static [&'static str]),
}

/// The table of degenerate rollouts.
fn degenerate() -> Vec<(&'static str, Vec<Rollout>, Wanted)> {
    let with = |place: usize, reward: f64| {
        let mut batch = ordinary(1, 3, 8);
        batch[place].reward = reward;
        batch
    };
    let mut empty = ordinary(2, 3, 8);
    for one in &mut empty {
        one.length = 0;
    }
    let mut single = ordinary(3, 3, 8);
    single.push(rollout(77, 1.0));
    let mut lone = ordinary(4, 1, 8);
    lone.truncate(1);
    vec![
        ("no rollout at all", Vec::new(), Wanted::Finite),
        ("one group", ordinary(0, 1, 8), Wanted::Finite),
        (
            "a group of one",
            single,
            Wanted::FiniteOr("group 77 has one response"),
        ),
        (
            "one rollout alone",
            lone,
            Wanted::FiniteOr("has one response"),
        ),
        ("all rewards 0", alike(0.0), Wanted::Finite),
        ("all rewards 1", alike(1.0), Wanted::Finite),
        // A reward whose mean does not round to itself.
        ("all rewards 0.1", alike(0.1), Wanted::Finite),
        ("empty responses", empty, Wanted::Finite),
        ("100,000 rollouts", ordinary(5, 12_500, 8), Wanted::Finite),
        (
            "a reward that is no number",
            with(3, f64::NAN),
            Wanted::Refused(&["3", "NaN"]),
        ),
        (
            "an infinite reward",
            with(4, f64::INFINITY),
            Wanted::Refused(&["4", "inf"]),
        ),
        (
            "a reward above its range",
            with(5, 1.5),
            Wanted::Refused(&["5", "1.5", "0", "1"]),
        ),
        (
            "a reward below its range",
            with(6, -0.25),
            Wanted::Refused(&["6", "-0.25", "0", "1"]),
        ),
    ]
}

#[test]
fn degenerate_rollouts_give_finite_advantages_or_a_refusal_in_words() {
    for name in ALL {
        let mut normalizer = plain(name);
        for (what, batch, wanted) in degenerate() {
            let refusal = match (normalizer.normalize(&batch), &wanted) {
                (Ok(advantages), Wanted::Finite | Wanted::FiniteOr(_)) => {
                    assert_eq!(advantages.len(), batch.len(), "{name}, {what}");
                    for a in advantages {
                        assert!(a.values.len() == 1, "{name}, {what}: {:?}", a.values);
                        assert!(a.values[0].is_finite(), "{name}, {what}: {:?}", a.values);
                    }
                    continue;
                }
                (Ok(_), Wanted::Refused(_)) => panic!("{name} took {what}"),
                (Err(refusal), _) => refusal,
            };
            let words: &[&str] = match &wanted {
                Wanted::Finite => panic!("{name} refused {what}: {refusal}"),
                Wanted::FiniteOr(words) => &[*words],
                Wanted::Refused(words) => words,
            };
            for word in words {
                assert!(refusal.contains(word), "{name}, {what}: {refusal}");
            }
        }
        // It works on after every refusal.
        assert_eq!(normalizer.values(&ordinary(0, 2, 8)).len(), 16, "{name}");
    }
}

#[test]
fn only_bnpo_refuses_a_group_of_one() {
    let batch = [rollout(5, 1.0), rollout(6, 0.0), rollout(6, 1.0)];
    for name in ALL {
        let refused = plain(name).normalize(&batch).is_err();
        assert_eq!(refused, name == "bnpo", "{name}");
    }
}

#[test]
fn equal_rewards_give_exactly_zero_unless_the_method_says_otherwise() {
    for name in ALL {
        for reward in [0.0, 0.1, 1.0] {
            let found = plain(name).values(&alike(reward));
            let zero = found.iter().all(|a| *a == 0.0);
            // ngrpo compares with a response that got 1; hbpo pays nothing for wrong answers, so without budgets
            // equal ones stay equal. spo's prompts all begin alike.
            let expected = name != "ngrpo" || reward == 1.0;
            assert_eq!(zero, expected, "{name} on {reward}: {found:?}");
        }
    }
    let failing = plain("ngrpo").values(&alike(0.0));
    close(failing[0], -1.0 / (3.0 + 9e-6), "ngrpo where all fail");
    // hbpo: -f(b), 4 cos(pi 512 / 8192).
    let mut told = alike(0.0);
    for one in &mut told {
        one.tags = vec![("budget".into(), 512.0)];
    }
    let falling_short = plain("hbpo").values(&told);
    assert!((falling_short[0] + 3.923_141).abs() < 1e-6);
}

#[test]
fn the_order_of_rollouts_and_of_groups_does_not_matter() {
    for name in ALL {
        let batch = ordinary(8, 6, 8);
        let expected = plain(name).values(&batch);
        let mut draw = Draw::new(9);
        let mut order: Vec<usize> = (0..batch.len()).collect();
        for i in (1..order.len()).rev() {
            order.swap(i, (draw.unit() * (i + 1) as f64) as usize);
        }
        let shuffled: Vec<Rollout> = order.iter().map(|&i| batch[i].clone()).collect();
        for (found, &i) in plain(name).values(&shuffled).iter().zip(&order) {
            close(*found, expected[i], name);
        }
    }
}

#[test]
fn the_numbers_of_groups_and_prompts_do_not_matter() {
    let renamed = |number: u64| number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 77;
    for name in ALL {
        let (mut first, mut second) = (plain(name), plain(name));
        // Twice: what is remembered of a prompt goes with its number.
        for seed in [10, 11] {
            let batch = ordinary(seed, 4, 8);
            let mut other = batch.clone();
            for one in &mut other {
                one.group = renamed(one.group);
                one.prompt = renamed(one.prompt);
            }
            let expected = first.values(&batch);
            for (found, expected) in second.values(&other).iter().zip(&expected) {
                close(*found, *expected, name);
            }
        }
    }
}

/// Several updates; a normaliser that tracks hears of drift after all but every third.
fn updates(normalizer: &mut Normalizer, from: u64, to: u64) -> Vec<Vec<u64>> {
    let steps = from..to;
    steps
        .map(|step| {
            let batch = ordinary(100 + step, 5, 4);
            let values = normalizer.values(&batch);
            if normalizer.tracks() && step % 3 != 2 {
                normalizer.observe(&[Drift {
                    prompt: step % 5,
                    mean_abs_logratio: 0.01,
                }]);
            }
            values.iter().map(|a| a.to_bits()).collect()
        })
        .collect()
}

#[test]
fn saving_and_restoring_in_the_middle_changes_no_bit() {
    for name in ALL {
        let mut through = plain(name);
        let whole = updates(&mut through, 0, 12);
        // After 3 updates a tracking normaliser has rewards that it has not learned from yet.
        for middle in [3, 5] {
            let mut first = through.fresh();
            updates(&mut first, 0, middle);
            let mut second = through.fresh();
            second.restore(&first.save()).unwrap();
            let rest = updates(&mut second, middle, 12);
            assert_eq!(rest, whole[middle as usize..], "{name}");
            assert_eq!(second.save(), through.save(), "{name}");
        }
    }
}

#[test]
fn bytes_of_something_else_are_refused() {
    for name in ALL {
        let refusal = plain(name).restore(&[9, 1, 2, 3]).unwrap_err();
        assert!(
            refusal.contains("saved state") || refusal.contains("saves nothing"),
            "{refusal}"
        );
    }
}

#[test]
fn spo_wants_prompts_in_doubt_and_learns_when_it_hears_of_the_update() {
    let mut spo = plain("spo");
    assert!(spo.tracks());
    assert_eq!(spo.prompt_weights(&[3]), [0.55]);
    spo.values(&[rollout(3, 1.0)]);
    // Not yet: the update is to come.
    assert_eq!(spo.prompt_weights(&[3]), [0.55]);
    spo.observe(&[]);
    // alpha = 0.48 + 1, beta = 0.48.
    let v: f64 = 1.48 / 1.96;
    close(
        spo.prompt_weights(&[3])[0],
        (v * (1.0 - v)).sqrt() + 0.05,
        "weight",
    );
    let others: Vec<&str> = ALL.into_iter().filter(|n| plain(n).tracks()).collect();
    assert_eq!(others, ["spo"]);
}

#[test]
fn bnpo_reports_its_fit_and_has_the_known_advantages() {
    let mut bnpo = plain("bnpo");
    let groups = [
        [1.0, 0.0, 0.0, 0.0],
        [1.0, 1.0, 0.0, 0.0],
        [1.0, 1.0, 1.0, 0.0],
    ];
    let batch: Vec<Rollout> = groups
        .iter()
        .enumerate()
        .flat_map(|(group, rewards)| rewards.map(|r| rollout(group as u64, r)))
        .collect();
    let found = bnpo.values(&batch);
    for (place, expected) in [(0, 0.680_174_8), (1, -0.226_724_9), (11, -0.680_174_8)] {
        assert!((found[place] - expected).abs() < 1e-7);
    }
    let metrics = bnpo.metrics();
    close(metrics["alpha"], 1.5, "alpha");
    close(metrics["beta"], 1.5, "beta");
    close(metrics["mu"], 0.5, "mu");
    close(metrics["s2"], 0.0625, "s2");
}

#[test]
fn bnpo_averages_the_advantages_of_its_terms() {
    let bounds = |name: &str, min: f64, max: f64| Bounds {
        name: name.into(),
        min,
        max,
    };
    let spec = RewardSpec {
        outcome: bounds("", 0.0, 1.0),
        terms: vec![bounds("accuracy", 0.0, 1.0), bounds("format", -1.0, 1.0)],
    };
    let decompose = [("decompose", OptionValue::Bool(true))];
    let batch: Vec<Rollout> = ordinary(20, 6, 8)
        .into_iter()
        .map(|mut one| {
            let format = if one.well_formed { 1.0 } else { -1.0 };
            one.terms = vec![("accuracy".into(), one.reward), ("format".into(), format)];
            one
        })
        .collect();
    let mut normalizer = Normalizer::new("bnpo", &decompose, &spec);
    let found = normalizer.values(&batch);
    assert!(normalizer.metrics().contains_key("format/alpha"));
    let alone = |reward: &dyn Fn(&Rollout) -> f64| {
        let batch: Vec<Rollout> = batch
            .iter()
            .map(|one| Rollout {
                reward: reward(one),
                terms: Vec::new(),
                ..one.clone()
            })
            .collect();
        plain("bnpo").values(&batch)
    };
    let accuracy = alone(&|one| one.terms[0].1);
    let format = alone(&|one| (one.terms[1].1 + 1.0) / 2.0);
    for i in 0..batch.len() {
        close(
            found[i],
            (accuracy[i] + format[i]) / 2.0,
            "mean of the terms",
        );
    }
    let registry = workspace().join("registry.toml");
    let refused = Normalizer::of(&registry, "bnpo", &decompose, &pays(0.0, 1.0));
    assert!(refused.is_err_and(|refusal| refusal.contains("decompose")));
}

#[test]
fn rewards_of_another_range_count_by_their_place_in_it() {
    // -1 to 3 instead of 0 to 1: bnpo and spo map it; grpo and ngrpo divide by the spread.
    for name in ["bnpo", "spo", "grpo", "ngrpo"] {
        let batch = ordinary(30, 5, 8);
        let expected = plain(name).values(&batch);
        let stretched: Vec<Rollout> = batch
            .iter()
            .map(|one| Rollout {
                reward: 4.0 * one.reward - 1.0,
                ..one.clone()
            })
            .collect();
        let found = Normalizer::new(name, &[], &pays(-1.0, 3.0)).values(&stretched);
        for (found, expected) in found.iter().zip(&expected) {
            // The epsilon of the spread is in units of reward.
            assert!(
                (found - expected).abs() < 1e-4,
                "{name}: {found}, {expected}"
            );
        }
    }
}

/// The first example of the guide is a plugin of the tests: the block and the file are the same, and it works.
#[test]
fn the_first_example_of_the_guide_is_short_compiles_and_normalises() {
    let read = |path: &str| std::fs::read_to_string(workspace().join(path)).unwrap();
    let guide = read("docs/writing-a-plugin.md");
    let (_, rest) = guide.split_once("```rust\n").unwrap();
    let (block, _) = rest.split_once("```").unwrap();
    assert_eq!(block, read("tests/guests/relative/src/lib.rs"));
    assert!(block.lines().count() < 40, "{}", block.lines().count());

    let registry = workspace().join("tests/guests/registry.toml");
    let start = |given: &[(&str, OptionValue)]| {
        Normalizer::of(Path::new(&registry), "relative", given, &pays(0.0, 1.0)).unwrap()
    };
    // Group 0: mean 1/4, deviation 1/2. Group 1: all alike.
    let batch = [(0, 1.0), (1, 1.0), (0, 0.0), (0, 0.0), (1, 1.0), (0, 0.0)];
    let batch = batch.map(|(group, reward)| rollout(group, reward));
    let found = start(&[]).values(&batch);
    let (up, down) = (0.75 / 0.500_001, -0.25 / 0.500_001);
    for (found, expected) in found.iter().zip([up, 0.0, down, down, 0.0, down]) {
        close(*found, expected, "relative");
    }
    let wide = start(&[("eps", OptionValue::Float(0.5))]).values(&batch);
    close(wide[0], 0.75, "relative with another epsilon");
}
