//! Runs one run file with several normalisers and seeds, and prints what came as a Markdown table.
//!
//! ```sh
//! cargo run --release -p espalier-tests --example normalizers -- examples/arithmetic-rl.toml 5 \
//!     reinforce-baseline grpo bnpo ngrpo:trainer.with.clip-low=0.16,trainer.with.clip-high=0.24 spo
//! ```
//!
//! After a normaliser's name and a colon come `path=value` settings of its own, separated by commas; a `path=value`
//! without a name is for all. The seeds count from 0. Columns, each as mean and deviation (n - 1) over the seeds: what the host measures on the test split at
//! the end; the steps of reinforcement learning until the mean success of the last five steps is over 60 % (of those
//! seeds that reached it); the coefficient of variation of the gradient's norm over those steps; the share of
//! responses with an advantage of 0.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use espalier_runtime::events::{Ending, Event};
use espalier_runtime::run::{self, RunOptions};
use espalier_runtime::runfile::{self, Overrides};
use espalier_tests::workspace;

/// A normaliser and the settings that belong to it.
struct Arm {
    label: String,
    sets: Vec<(String, String)>,
}

impl Arm {
    fn parse(text: &str, all: &[(String, String)]) -> Arm {
        let (name, rest) = text.split_once(':').unwrap_or((text, ""));
        let own = rest.split(',').filter_map(|set| set.split_once('='));
        let own = own.map(|(path, value)| (path.to_string(), value.to_string()));
        let plugin = ("normalizer.plugin".to_string(), name.to_string());
        Arm {
            label: text.to_string(),
            sets: std::iter::once(plugin)
                .chain(all.iter().cloned())
                .chain(own)
                .collect(),
        }
    }
}

/// The numbers of one run, by column.
type Row = BTreeMap<&'static str, f64>;

fn one(file: &std::path::Path, arm: &Arm, seed: u64, out: PathBuf) -> Result<Row, String> {
    let overrides = Overrides {
        sets: arm.sets.clone(),
        seed: Some(seed),
        threads: Some(1),
    };
    let options = RunOptions {
        out: Some(out),
        resume: None,
        registry: workspace().join("registry.toml"),
        cancel: Default::default(),
    };
    let mut events: Vec<Event> = Vec::new();
    let plan = runfile::load(file, &overrides).map_err(|error| error.to_string())?;
    let ending = run::execute(&plan, &options, &mut events).map_err(|error| error.to_string())?;
    let Ending::Finished(finished) = ending else {
        return Err("the run did not finish".into());
    };
    let mut series: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for event in &events {
        if let Event::PluginMetric { name, value, .. } = event {
            series.entry(name).or_default().push(*value);
        }
    }
    let get = |name: &str| series.get(name).map_or(&[][..], Vec::as_slice);
    let mut row = Row::new();
    for (column, metric) in [
        ("accuracy", "test/accuracy"),
        ("length", "test/length"),
        ("reward", "test/reward"),
    ] {
        row.extend(finished.metrics.get(metric).map(|x| (column, *x)));
    }
    let reached = get("success").windows(5);
    let reached = reached
        .map(|w| w.iter().sum::<f64>() / 5.0)
        .position(|x| x > 0.6);
    row.extend(reached.map(|at| ("steps to 60 %", (at + 5) as f64)));
    if !get("gradient-norm").is_empty() {
        let (mean, deviation) = spread(get("gradient-norm"));
        row.insert("gradient-norm variation", deviation / mean);
    }
    if !get("zero-advantages").is_empty() {
        row.insert("zero advantages", spread(get("zero-advantages")).0);
    }
    row.insert("seconds", finished.seconds);
    Ok(row)
}

fn spread(values: &[f64]) -> (f64, f64) {
    let mean = values.iter().sum::<f64>() / values.len() as f64;
    let squares: f64 = values.iter().map(|x| (x - mean).powi(2)).sum();
    (
        mean,
        (squares / (values.len() as f64 - 1.0).max(1.0)).sqrt(),
    )
}

fn main() -> Result<(), String> {
    let mut args = std::env::args().skip(1);
    let usage = "usage: normalizers FILE SEEDS NORMALIZER[:path=value,...] ...";
    let file = PathBuf::from(args.next().ok_or(usage)?);
    let seeds: u64 = args.next().and_then(|n| n.parse().ok()).ok_or(usage)?;
    let (names, all): (Vec<String>, Vec<String>) =
        args.partition(|text| text.contains(':') || !text.contains('='));
    let all: Vec<(String, String)> = all
        .iter()
        .filter_map(|set| set.split_once('='))
        .map(|(path, value)| (path.to_string(), value.to_string()))
        .collect();
    let arms: Vec<Arm> = names.iter().map(|text| Arm::parse(text, &all)).collect();
    if arms.is_empty() {
        return Err(usage.into());
    }
    let folder = std::env::temp_dir().join(format!("espalier-normalizers-{}", std::process::id()));
    let jobs: Vec<(usize, u64)> = (0..seeds)
        .flat_map(|seed| (0..arms.len()).map(move |arm| (arm, seed)))
        .collect();
    let (next, rows) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(&(arm, seed)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let out = folder.join(format!("{arm}-{seed}"));
                    let row = one(&file, &arms[arm], seed, out);
                    eprintln!("{} seed {seed}: {row:?}", arms[arm].label);
                    if let (Ok(mut rows), Ok(row)) = (rows.lock(), row) {
                        rows.push((arm, row));
                    }
                }
            });
        }
    });
    let _ = std::fs::remove_dir_all(&folder);
    let rows = rows.into_inner().map_err(|error| error.to_string())?;
    if rows.len() != jobs.len() {
        return Err(format!(
            "{} of {} runs failed",
            jobs.len() - rows.len(),
            jobs.len()
        ));
    }
    let columns = [
        "accuracy",
        "reward",
        "length",
        "steps to 60 %",
        "gradient-norm variation",
        "zero advantages",
        "seconds",
    ];
    let columns: Vec<&str> = columns
        .into_iter()
        .filter(|column| rows.iter().any(|(_, row)| row.contains_key(column)))
        .collect();
    println!("| normaliser | {} |", columns.join(" | "));
    println!("|{}", " --- |".repeat(columns.len() + 1));
    for (index, arm) in arms.iter().enumerate() {
        let cells = columns.iter().map(|column| {
            let mine = rows.iter().filter(|(arm, _)| *arm == index);
            let values: Vec<f64> = mine
                .filter_map(|(_, row)| row.get(column).copied())
                .collect();
            let (mean, deviation) = spread(&values);
            match values.len() as u64 {
                0 => "never".to_string(),
                n if n < seeds => format!("{mean:.3} ± {deviation:.3} ({n} of {seeds})"),
                _ => format!("{mean:.3} ± {deviation:.3}"),
            }
        });
        println!(
            "| {} | {} |",
            arm.label,
            cells.collect::<Vec<_>>().join(" | ")
        );
    }
    Ok(())
}
