//! A run that searches: what it is given, what it may not do, what is measured, and that it can be stopped.
#![allow(clippy::unwrap_used)]

use espalier_runtime::events::{Ending, Finished};
use espalier_tests::lab::Lab;

const COINS: &str = r#"
[run]
threads = 1
seed = 3
[environment]
plugin = "coin-steps"
with = { problems = 60, words = 64 }
[model]
layers = [{ kind = "embedding", features = 1, deviation = 1e-6 }, { kind = "tied-linear" }]
[searcher]
plugin = "entropic-pf"
prompts-per-step = 20
with = { particles = 4, ends = "length" }
"#;

fn metric(finished: &Finished, name: &str) -> f64 {
    *finished
        .metrics
        .get(name)
        .unwrap_or_else(|| panic!("no {name} in {:?}", finished.metrics))
}

#[test]
fn every_prompt_is_answered_and_what_was_spent_is_counted() {
    let lab = Lab::new("search-counts");
    let (found, _) = lab.finish("plain", COINS, &[]);
    assert_eq!(found.steps, 3, "60 prompts, 20 a step");
    assert_eq!(metric(&found, "test/answered"), 1.0);
    // Four particles, twelve steps of one token, each judged once.
    for name in ["tokens", "generations", "verifier-calls"] {
        assert_eq!(metric(&found, &format!("test/{name}")), 48.0, "{name}");
    }
    assert_eq!(metric(&found, "test/length"), 12.0);
    assert!(metric(&found, "test/success") > 0.15, "chance is 0.02");
    // Look-ahead draws and judges one step more behind each particle, but for the last step.
    let (ahead, _) = lab.finish("ahead", COINS, &[("searcher.with.lookahead", "true")]);
    assert_eq!(metric(&ahead, "test/generations"), 4.0 * (12.0 + 11.0));
    let (best, _) = lab.finish("best", COINS, &[("searcher.with.method", "best-of-n")]);
    assert_eq!(metric(&best, "test/tokens"), 48.0);
    assert_eq!(metric(&best, "test/verifier-calls"), 4.0);
}

#[test]
fn answers_do_not_depend_on_how_many_prompts_a_step_takes() {
    let lab = Lab::new("search-batches");
    let (one, _) = lab.finish("one", COINS, &[]);
    let (other, _) = lab.finish("other", COINS, &[("searcher.prompts-per-step", "7")]);
    assert_eq!(other.steps, 9);
    assert_eq!(one.metrics, other.metrics);
}

#[test]
fn a_budget_ends_the_search_and_prompts_without_an_answer_count_as_wrong() {
    let lab = Lab::new("search-budget");
    let (whole, _) = lab.finish("whole", COINS, &[]);
    // 960 tokens a step: the budget runs out in the second.
    let (tokens, _) = lab.finish("tokens", COINS, &[("searcher.max-tokens", "961")]);
    assert_eq!(tokens.steps, 2);
    assert!((metric(&tokens, "test/answered") - 2.0 / 3.0).abs() < 1e-12);
    assert!(metric(&tokens, "test/success") <= metric(&whole, "test/success"));
    assert_eq!(metric(&tokens, "test/tokens"), 48.0, "of those given");
    let (steps, _) = lab.finish("steps", COINS, &[("searcher.max-steps", "1")]);
    assert!((metric(&steps, "test/answered") - 1.0 / 3.0).abs() < 1e-12);
}

const POLICY: &str = r#"
[run]
threads = 1
[environment]
plugin = "modular-arithmetic"
with = { operands = 20, modulus = 2 }
[model]
layers = [
  { kind = "embedding", features = 16, deviation = 0.1 },
  { kind = "position" },
  { kind = "transformer-block", features = 16, heads = 2 },
  { kind = "layer-norm" },
  { kind = "tied-linear" },
]
"#;

const TRAINED: &str = r#"
[schedule]
steps = 60
batch-size = 16
steps-per-epoch = 60
[trainer]
plugin = "policy-gradient"
with = { warm-up-steps = 60, lr = 3e-3 }
[normalizer]
plugin = "grpo"
"#;

const LIKELIEST: &str = r#"
plugin = "entropic-pf"
with = { method = "best-of-n", particles = 1, temperature = 0.0 }
"#;

#[test]
fn the_likeliest_response_alone_finds_what_the_trained_model_was_measured_at() {
    let lab = Lab::new("search-from");
    let (trained, _) = lab.finish("policy", &format!("{POLICY}{TRAINED}"), &[]);
    let accuracy = metric(&trained, "test/accuracy");
    assert!(accuracy > 0.2, "{accuracy}: some are right");
    let from = lab.out("policy");
    let environment = POLICY.split("[model]").next().unwrap();
    let file = format!(
        "{environment}[model]\nfrom = {:?}\n[searcher]{LIKELIEST}",
        from.to_str().unwrap()
    );
    let (found, _) = lab.finish("found", &file, &[]);
    assert_eq!(metric(&found, "test/success"), accuracy);
    assert_eq!(lab.digest("found"), lab.digest("policy"), "read only");
    let checkpoints = from.join("checkpoints");
    let newest = std::fs::read_dir(checkpoints).unwrap();
    let newest = newest.map(|file| file.unwrap().path()).max().unwrap();
    let file = file.replace(from.to_str().unwrap(), newest.to_str().unwrap());
    let (again, _) = lab.finish("again", &file, &[]);
    assert_eq!(found.metrics, again.metrics, "the checkpoint itself");

    let stages = format!(
        "{POLICY}{TRAINED}\n[[stage]]\nname = \"learn\"\n[[stage]]\nname = \"answer\"\n[stage.searcher]{LIKELIEST}"
    );
    let (staged, _) = lab.finish("staged", &stages, &[]);
    assert_eq!(metric(&staged, "answer/test/success"), accuracy);
    assert_eq!(metric(&staged, "learn/test/accuracy"), accuracy);
}

#[test]
fn what_can_not_be_is_said_in_words() {
    let lab = Lab::new("search-words");
    let said = |file: &str, sets: &[(&str, &str)]| match lab.run("wrong", file, sets, false).0 {
        Ok(Ending::Finished(_)) | Ok(_) => panic!("it ran"),
        Err(error) => error.to_string(),
    };
    let unknown = said(COINS, &[("searcher.split", "exam")]);
    assert!(
        unknown.contains("no split `exam`") && unknown.contains("`train`"),
        "{unknown}"
    );
    let data = COINS.replace(
        "[environment]\nplugin = \"coin-steps\"\nwith = { problems = 60, words = 64 }",
        "[data]\nsource = \"digits\"",
    );
    assert!(said(&data, &[]).contains("a searcher needs an environment"));
    let trained = format!("{COINS}[trainer]\nplugin = \"backprop\"\n");
    assert!(said(&trained, &[]).contains("[trainer] has no place beside a searcher"));
    let world = COINS.replace(
        "plugin = \"coin-steps\"\nwith = { problems = 60, words = 64 }",
        "plugin = \"cartpole\"",
    );
    let world = said(
        &world,
        &[("model.layers", "[{ kind = \"linear\", features = 2 }]")],
    );
    assert!(world.contains("prompts to answer"), "{world}");
    let missing = said(COINS, &[("model.from", "nowhere")]);
    assert!(missing.contains("model.from"), "{missing}");
}

#[test]
fn a_searcher_sees_no_solution_no_answer_key_and_changes_nothing() {
    let lab = Lab::hostile("search-faulty");
    let file = COINS
        .replace("plugin = \"entropic-pf\"", "plugin = \"faulty-searcher\"")
        .replace("particles = 4, ends = \"length\"", "fault = \"nothing\"");
    let with = |fault: &'static str| [("searcher.with.fault", fault)];
    // Each of these panics where something came through.
    for (run, fault) in [
        ("solutions", "sees-solutions"),
        ("verdicts", "sees-verdicts"),
    ] {
        let (found, _) = lab.finish(run, &file, &with(fault));
        assert_eq!(metric(&found, "test/answered"), 1.0, "{fault}");
    }
    let said = |fault| match lab.run(fault, &file, &with(fault), false).0 {
        Ok(_) => panic!("it ran"),
        Err(error) => error.to_string(),
    };
    let trains = said("trains");
    assert!(
        trains.contains("assign") && trains.contains("a search is on"),
        "{trains}"
    );
    let others = said("answers-others");
    assert!(others.contains("which it was not given"), "{others}");
    let long = said("answers-too-long");
    assert!(
        long.contains("13 tokens") && long.contains("at most 12"),
        "{long}"
    );
}
