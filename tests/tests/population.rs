//! Populations: members that train side by side end in the same bits however often they are killed and on however many
//! threads; a copy is the other member; a population of one is the run that there would be without it.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use espalier_runtime::events::{Ending, Event, Observer, Schedule};
use espalier_runtime::plan::OptionValue;
use espalier_runtime::run::{self, RunOptions};
use espalier_runtime::runfile::{self, Overrides};
use espalier_tests::lab::Lab;
use espalier_tests::{espalier, workspace};
use serde_json::Value;

/// Everything that a population leaves.
#[derive(Debug, PartialEq)]
struct End {
    parameters: [u8; 32],
    metrics: String,
    lines: String,
    way: String,
    own: Vec<String>,
    last: Value,
}

fn end(folder: &Path, members: usize, said: &str) -> End {
    let mut last: Value = serde_json::from_str(said.lines().last().unwrap()).unwrap();
    assert_eq!(last["event"], "finished", "{last}");
    last["run"].take();
    last["seconds"].take();
    let text = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    End {
        parameters: run::parameters_of(folder)
            .unwrap()
            .content_digest()
            .unwrap(),
        metrics: text("metrics.jsonl"),
        lines: text("schedule.jsonl"),
        way: text("schedule.json"),
        own: (0..members)
            .map(|member| text(&format!("members/{member}/metrics.jsonl")))
            .collect(),
        last,
    }
}

fn command(file: &Path, place: [&str; 2], threads: &str) -> Command {
    let mut command = Command::new(espalier());
    command
        .arg("run")
        .arg(file)
        .args(place)
        .args(["--threads", threads, "--json"]);
    command
        .arg("--registry")
        .arg(workspace().join("registry.toml"));
    command
        .current_dir(workspace())
        .stderr(Stdio::piped())
        .stdout(Stdio::piped());
    command
}

fn whole(file: &Path, place: [&str; 2], threads: &str) -> String {
    let output = command(file, place, threads).output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Kills the run after so many lines of events that hold some text; true if it was killed before its end.
fn kill_after(mut command: Command, text: &str, lines: usize) -> bool {
    let mut child = command.spawn().unwrap();
    let reader = BufReader::new(child.stdout.take().unwrap());
    let mut seen = 0;
    for line in reader.lines() {
        let line = line.unwrap_or_default();
        seen += usize::from(line.contains(text));
        if line.contains("\"event\":\"finished\"") {
            child.wait().unwrap();
            return false;
        }
        if seen == lines && line.contains(text) {
            // SIGKILL: nothing is flushed, nothing is closed.
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    seen >= lines
}

const MODEL: &str = r#"
[data]
source = "digits"
validation = 0.2
[model]
layers = [{ kind = "flatten" }, { kind = "linear", features = 16 }, { kind = "batch-norm" }, { kind = "relu" }, { kind = "dropout", name = "drop", rate = 0.2 }, { kind = "linear", features = 10 }]
"#;

#[test]
fn killed_again_and_again_and_on_any_number_of_threads_it_ends_in_the_same_bits() {
    let file = format!(
        r#"
{MODEL}
[schedule]
epochs = 30
batch-size = 128
[trainer]
plugin = "backprop"
with = {{ optimizer = "adam", lr = 1e-3 }}
[pruner]
plugin = "magnitude"
with = {{ sparsity = 0.5 }}
[tuner]
plugin = "pbt"
members = 4
with = {{ fraction = 0.5, resample = 0.25 }}
[tuner.space]
trainer.lr = {{ low = 1e-4, high = 0.1, log = true }}
"model.drop.rate" = {{ low = 0.0, high = 0.6 }}
"#
    );
    let lab = Lab::new("population-killed");
    let path = lab.folder().join("run.toml");
    std::fs::write(&path, file).unwrap();
    let folder = |name: &str| lab.out(name).to_str().unwrap().to_string();
    let (two, one, killed) = (folder("two"), folder("one"), folder("killed"));
    let said = whole(&path, ["--out", &two], "2");
    let expected = end(Path::new(&two), 4, &said);
    let lines = said.lines().count();
    let said = whole(&path, ["--out", &one], "1");
    assert_eq!(
        end(Path::new(&one), 4, &said),
        expected,
        "one thread and two threads differ"
    );
    assert!(
        expected.lines.contains("\"copied-from\":1"),
        "nothing was copied"
    );

    let (place, again) = (["--out", &killed], ["--resume", &killed]);
    // Random moments, the same in every run of the test.
    let mut state = 7_u64;
    for kill in 0..8 {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        // Anywhere, and where a generation is being made safe: that is told just before.
        let (text, after) = match kill % 2 {
            0 => ("", 1 + (state >> 33) as usize % (lines / 12)),
            _ => ("\"event\":\"generation\"", 2),
        };
        let started = Path::new(&killed).join("lock.toml").exists();
        let command = command(&path, if started { again } else { place }, "2");
        assert!(
            kill_after(command, text, after),
            "it ended before it was killed {} times",
            kill + 1
        );
    }
    let said = whole(&path, again, "2");
    let found = end(Path::new(&killed), 4, &said);
    assert_eq!(found.last, expected.last);
    assert!(found.metrics == expected.metrics, "metrics.jsonl differs");
    assert!(found.lines == expected.lines, "schedule.jsonl differs");
    assert!(found.own == expected.own, "a member's metrics differ");
    assert_eq!(found, expected);
}

/// Asks the run to stop once so many generations are over.
struct Stopper {
    cancel: Arc<AtomicBool>,
    after: usize,
}

impl Observer for Stopper {
    fn event(&mut self, event: &Event) {
        if matches!(event, Event::Generation(_)) {
            self.after -= 1;
            self.cancel.fetch_or(self.after == 0, Ordering::Relaxed);
        }
    }
}

#[test]
fn asked_to_stop_it_stops_after_a_generation_and_goes_on_from_there() {
    // Every round of the lottery takes the members back to an early step, one after another.
    let file = r#"
[data]
source = "digits"
validation = 0.2
train-limit = 200
[model]
layers = [{ kind = "flatten" }, { kind = "linear", features = 16 }, { kind = "relu" }, { kind = "linear", features = 10 }]
[schedule]
steps = 20
batch-size = 50
[trainer]
plugin = "backprop"
[pruner]
plugin = "lottery-ticket"
with = { rounds = 2, rewind-step = 5 }
[tuner]
plugin = "pbt"
members = 3
every-steps = 7
[tuner.space]
"trainer.lr" = { low = 1e-3, high = 0.3, log = true }
"#;
    let lab = Lab::new("population-stopped");
    let (whole, _) = lab.finish("whole", file, &[]);
    let path = lab.folder().join("run.toml");
    let plan = runfile::load(&path, &Overrides::default()).unwrap();
    let cancel = Arc::new(AtomicBool::new(false));
    let options = RunOptions {
        out: Some(lab.out("parted")),
        resume: None,
        registry: workspace().join("registry.toml"),
        cancel: cancel.clone(),
    };
    let mut stopper = Stopper { cancel, after: 3 };
    let ending = run::execute(&plan, &options, &mut stopper).unwrap();
    assert!(
        matches!(ending, Ending::Interrupted { step: 21, .. }),
        "{ending:?}"
    );
    let (ending, _) = lab.run("parted", file, &[], true);
    let Ending::Finished(parted) = ending.unwrap() else {
        panic!("it did not finish");
    };
    assert_eq!(parted.metrics, whole.metrics);
    assert!(parted.metrics["sparsity"] > 0.1);
    for name in ["metrics.jsonl", "schedule.jsonl", "schedule.json"] {
        let text = |run: &str| std::fs::read_to_string(lab.out(run).join(name)).unwrap();
        assert_eq!(text("parted"), text("whole"), "{name}");
    }
    assert_eq!(lab.digest("parted"), lab.digest("whole"));
}

fn knob(schedule: &Schedule, name: &str) -> String {
    let (_, value) = schedule.rows[0]
        .knobs
        .iter()
        .find(|(known, _)| known == name)
        .unwrap();
    match value {
        OptionValue::Float(x) => format!("{x:?}"),
        other => panic!("{other:?}"),
    }
}

fn schedule(events: &[Event]) -> Schedule {
    let found = events.iter().find_map(|event| match event {
        Event::Schedule(schedule) => Some(schedule.clone()),
        _ => None,
    });
    found.unwrap()
}

#[test]
fn a_population_of_one_is_the_run_with_its_knobs() {
    let plain = format!(
        "{MODEL}[schedule]\nepochs = 4\n[trainer]\nplugin = \"backprop\"\n[checkpoint]\nkeep = 1\n"
    );
    let tuned = format!(
        r#"{plain}
[tuner]
plugin = "pbt"
every = 3
[tuner.space]
"trainer.lr" = {{ low = 1e-3, high = 0.3, log = true }}
"trainer.weight-decay" = {{ low = 1e-5, high = 1e-2, log = true }}
"trainer.momentum" = {{ low = 0.5, high = 0.99 }}
"model.drop.rate" = {{ low = 0.3, high = 0.6 }}
"#
    );
    let lab = Lab::new("population-one");
    let (one, events) = lab.finish("one", &tuned, &[]);
    let schedule = schedule(&events);
    let sets = [
        ("trainer.with.lr", "trainer.lr"),
        ("trainer.with.weight-decay", "trainer.weight-decay"),
        ("trainer.with.momentum", "trainer.momentum"),
        ("model.layers.4.rate", "model.drop.rate"),
    ]
    .map(|(path, name)| (path, knob(&schedule, name)));
    let sets: Vec<(&str, &str)> = sets.iter().map(|(path, x)| (*path, x.as_str())).collect();
    let (alone, _) = lab.finish("alone", &plain, &sets);
    assert_eq!(one.metrics, alone.metrics);
    assert_eq!(lab.digest("one"), lab.digest("alone"));
    // Each of the knobs does something.
    for (path, _) in &sets {
        let others: Vec<(&str, &str)> = sets.iter().filter(|(p, _)| p != path).copied().collect();
        lab.finish(path, &plain, &others);
        assert_ne!(lab.digest(path), lab.digest("one"), "{path}");
    }
}

/// The loss of each member after each generation.
fn losses(folder: &Path, members: usize) -> Vec<Vec<f64>> {
    let text = std::fs::read_to_string(folder.join("schedule.jsonl")).unwrap();
    let mut all = vec![Vec::new(); members];
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let member = line["member"].as_u64().unwrap() as usize;
        all[member].push(line["value"].as_f64().unwrap());
    }
    all
}

#[test]
fn a_copy_goes_on_as_the_member_that_it_copied_would() {
    // One sample, so every batch is the same; with momentum, the next update shows whether it was copied too.
    let file = r#"
[data]
source = "digits"
validation = 0.2
train-limit = 1
[model]
layers = [{ kind = "flatten" }, { kind = "linear", features = 16 }, { kind = "batch-norm" }, { kind = "tanh" }, { kind = "linear", features = 10 }]
[schedule]
epochs = 6
[trainer]
plugin = "backprop"
with = { optimizer = "OPTIMIZER", lr = 0.01 }
[tuner]
plugin = "pbt"
members = 2
every = 2
metric = "validation/loss"
with = { explore = "none" }
[tuner.space]
"trainer.lr" = { low = 1e-3, high = 1e-2, log = true }
"#;
    for optimizer in ["sgd", "adam"] {
        let lab = Lab::new(&format!("population-copy-{optimizer}"));
        let (_, events) = lab.finish("run", &file.replace("OPTIMIZER", optimizer), &[]);
        let copies = events.iter().filter(
            |event| matches!(event, Event::Generation(generation) if generation.copies.len() == 1),
        );
        assert_eq!(copies.count(), 2);
        let losses = losses(&lab.out("run"), 2);
        assert_ne!(losses[0][0], losses[1][0]);
        assert_eq!(
            losses[0][1].to_bits(),
            losses[1][1].to_bits(),
            "{optimizer}"
        );
        assert_eq!(
            losses[0][2].to_bits(),
            losses[1][2].to_bits(),
            "{optimizer}"
        );
    }
}

#[test]
fn recorded_steps_follow_the_knobs() {
    // Dropout at the rate 0 is recorded as nothing at all: the step is no longer the recorded one when the rate rises. A
    // weight decay that changed as well would have the step recorded anew anyway.
    let model = MODEL
        .replace("{ kind = \"batch-norm\" }, ", "")
        .replace("rate = 0.2", "rate = 0.0");
    let file = |capture: bool| {
        format!(
            r#"
{model}
[schedule]
epochs = 8
[trainer]
plugin = "backprop"
with = {{ capture = {capture} }}
[tuner]
plugin = "pbt"
members = 4
with = {{ initial = "given", explore = "add", deviation = 0.4, fraction = 0.5 }}
[tuner.space]
"trainer.lr" = {{ low = 1e-3, high = 0.05, log = true }}
"model.drop.rate" = {{ low = 0.0, high = 0.6 }}
"#
        )
    };
    let lab = Lab::new("population-capture");
    let (plain, _) = lab.finish("plain", &file(false), &[]);
    let (captured, events) = lab.finish("captured", &file(true), &[]);
    assert_eq!(plain.metrics, captured.metrics);
    let lines = |name: &str| std::fs::read_to_string(lab.out(name).join("schedule.jsonl")).unwrap();
    assert_eq!(lines("plain"), lines("captured"));
    let mut rates = vec![Vec::new(); 4];
    for line in lines("plain").lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let rate = line["knobs"]["model.drop.rate"].as_f64().unwrap();
        rates[line["member"].as_u64().unwrap() as usize].push(rate);
    }
    let noted = events.iter().any(|event| match event {
        Event::Member { told, .. } => {
            matches!(&**told, Event::Log { text, .. } if text.contains("is captured"))
        }
        _ => false,
    });
    assert!(noted, "no step was recorded");
    let rises = |rates: &Vec<f64>| rates.windows(2).any(|w| w[0] == 0.0 && w[1] > 0.0);
    assert!(rates.iter().any(rises), "{rates:?}");
}

#[test]
fn the_example_of_certified_training_is_tuned_and_audited() {
    let file = std::fs::read_to_string(workspace().join("examples/ibp-fast-pbt.toml")).unwrap();
    let lab = Lab::new("population-ibp");
    let small = [
        ("schedule.epochs", "4"),
        ("tuner.members", "3"),
        ("data.train-limit", "300"),
        ("auditor.with.attack-steps", "3"),
    ];
    let (finished, events) = lab.finish("run", &file, &small);
    assert!(finished.metrics["test/accuracy"] > 0.5);
    let audits: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::Audited(audit) => Some(audit),
            _ => None,
        })
        .collect();
    assert_eq!(audits.len(), 1, "the best member alone");
    assert_eq!(audits[0].flagged, Some(false), "{audits:?}");
    assert!(lab.out("run").join("audit-ibp-certificate.json").exists());
    assert_eq!(schedule(&events).rows.len(), 2);
}

#[test]
fn what_is_reported_was_not_chosen_by() {
    let file = format!(
        r#"
{MODEL}
[schedule]
epochs = 2
[trainer]
plugin = "backprop"
[tuner]
plugin = "pbt"
members = 3
[tuner.space]
"trainer.lr" = {{ low = 1e-5, high = 0.3, log = true }}
"#
    );
    let lab = Lab::new("population-test-split");
    let (finished, events) = lab.finish("run", &file, &[]);
    let measured = |split: &str| {
        let all = events.iter().filter_map(|event| match event {
            Event::Member { member, told } => Some((*member, &**told)),
            _ => None,
        });
        all.filter(|(_, told)| matches!(told, Event::Evaluated { split: of, .. } if of == split))
            .map(|(member, _)| member)
            .collect::<Vec<u32>>()
    };
    let best = schedule(&events).member;
    assert_eq!(measured("test"), [best], "once, and only the best member");
    assert_eq!(measured("validation"), [0, 1, 2, 0, 1, 2, best]);
    let values = losses(&lab.out("run"), 3);
    let most = values.iter().map(|of| of[1]).fold(0.0, f64::max);
    assert_eq!(finished.metrics["validation/accuracy"], most);
}

#[test]
fn what_cannot_be_tuned_is_refused_in_words() {
    let base = format!("{MODEL}[schedule]\nepochs = 2\n[trainer]\nplugin = \"backprop\"\n");
    let lab = Lab::new("population-refusals");
    let refused = |tuner: &str, parts: &[&str]| {
        let (result, _) = lab.run("run", &format!("{base}{tuner}"), &[], false);
        let error = result.unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "`{part}` in\n{error}");
        }
        assert!(!lab.out("run").join("lock.toml").exists(), "{error}");
    };
    let lr = "[tuner.space]\n\"trainer.lr\" = { low = 1e-5, high = 0.3, log = true }\n";
    let pbt = "[tuner]\nplugin = \"pbt\"\n";
    refused(
        &format!("{pbt}[tuner.space]\n\"trainer.nesterov\" = {{ low = 0, high = 1 }}\n"),
        &[
            "`trainer.nesterov` cannot be changed during a run",
            "`trainer.lr`, `trainer.momentum`, `trainer.weight-decay` or `model.drop.rate`",
        ],
    );
    refused(
        &format!("{pbt}[tuner.space]\n\"model.dorp.rate\" = {{ low = 0, high = 0.5 }}\n"),
        &["did you mean `model.drop.rate`?"],
    );
    refused(
        &format!("{pbt}[tuner.space]\n\"model.drop.rate\" = {{ low = 0, high = 1 }}\n"),
        &["the domain of `model.drop.rate` does not go with it"],
    );
    refused(
        &format!("{pbt}[tuner.space]\n\"trainer.lr\" = {{ choices = [\"high\"] }}\n"),
        &["low = NUMBER and high = NUMBER"],
    );
    refused(
        &format!("{pbt}[tuner.space]\n\"trainer.lr\" = {{ low = 0, high = 1, log = true }}\n"),
        &["ratios have no meaning from 0 or below"],
    );
    refused(
        &format!("{pbt}[tuner.space]\n\"trainer.lr\" = {{ low = 2, high = 1 }}\n"),
        &["the knob's bounds hold nothing"],
    );
    refused(pbt, &["no `space` in [tuner]", "[tuner.space]"]);
    refused(
        &format!("{pbt}every = 2\nevery-steps = 3\n{lr}"),
        &["both `every` and `every-steps`"],
    );
    refused(
        &format!("{pbt}metric = \"test/accuracy\"\n{lr}"),
        &["choose by the samples that the result is reported on"],
    );
    refused(
        &format!("{pbt}metric = \"validation/f1\"\n{lr}"),
        &["which `validation/f1` is better", "goal = \"max\""],
    );
    refused(
        &format!("{pbt}{lr}[checkpoint]\nevery = 10\n"),
        &["a population is made safe each time that its tuner has decided"],
    );
    refused(
        &format!("{pbt}{lr}[[stage]]\nname = \"a\"\nschedule = {{ epochs = 1 }}\n"),
        &["a population has no stages"],
    );
    let without = base.replace("validation = 0.2\n", "");
    let (result, _) = lab.run("run", &format!("{without}{pbt}{lr}"), &[], false);
    let error = result.unwrap_err().to_string();
    assert!(error.contains("set data.validation"), "{error}");
    // This shows only once something has been measured.
    let unknown = format!("{base}{pbt}metric = \"validation/f1\"\ngoal = \"max\"\n{lr}");
    let (result, _) = lab.run("unknown", &unknown, &[], false);
    let error = result.unwrap_err().to_string();
    for part in ["nothing measures `validation/f1`", "`validation/accuracy`"] {
        assert!(error.contains(part), "`{part}` in\n{error}");
    }
}
