//! What a person sees of a run: the composition, live progress, and a closing table.
//!
//! On a terminal, progress is one line that is redrawn (standard error) and notable events scroll above it.
//! Elsewhere there is one plain line for each evaluation and none for steps.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use espalier_runtime::events::{
    Audit, BuildStage, Building, Composition, Event, Finished, Generation, Level, Observer,
    PluginCounters, Schedule,
};
use espalier_runtime::options;
use espalier_runtime::plan::{OptionValue, Slot};
use espalier_runtime::profile::Profile;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::{self, Stream};
use crate::profile;

/// Characters of a line of the composition after its label.
const WIDTH: usize = 96;

/// How often the live line gets new words. The bar itself redraws at most 20 times a second.
const REFRESH: Duration = Duration::from_millis(100);

/// Observes a run for a person.
pub struct View {
    /// Where lines go that are worth keeping.
    stream: Stream,
    /// The live line, on a terminal only.
    bar: Option<ProgressBar>,
    /// True once the first step is about to begin: from here on a failure is the run's.
    pub started: bool,
    progress: Progress,
    counters: Vec<PluginCounters>,
    /// What auditors found, said again at the end.
    audits: Vec<Audit>,
    profile: Option<Profile>,
    /// How a population's best member came about.
    schedule: Option<Schedule>,
    /// The last line that a build gave where there is no live line, to say each crate's plugin once.
    building: String,
}

/// What the live line says.
#[derive(Default)]
struct Progress {
    step: u64,
    of: Option<u64>,
    epoch: u64,
    round: u64,
    loss: Option<f64>,
    /// Samples and seconds of the steps since the last refresh, and the smoothed rate.
    samples: u64,
    seconds: f64,
    rate: f64,
    sparsity: Option<f64>,
    /// Last measurement of each split, and the step it was made at.
    metrics: BTreeMap<String, (u64, BTreeMap<String, f64>)>,
    refreshed: Option<Instant>,
}

impl View {
    /// A view whose lasting lines go to `stream`.
    pub fn new(stream: Stream) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(spinner());
            bar
        });
        View {
            stream,
            bar,
            started: false,
            progress: Progress::default(),
            counters: Vec::new(),
            audits: Vec::new(),
            profile: None,
            schedule: None,
            building: String::new(),
        }
    }

    /// Takes the live line away; nothing is drawn after this.
    pub fn close(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    /// A line that stays, above the live one.
    fn line(&self, text: &str) {
        self.line_to(self.stream, text);
    }

    fn line_to(&self, stream: Stream, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::line(stream, text)),
            None => output::line(stream, text),
        }
    }

    fn building(&mut self, building: &Building) {
        if let Some(bar) = &self.bar {
            bar.set_message(building.text.clone());
            bar.tick();
            if building.stage == BuildStage::InstallingTarget || building.stage == BuildStage::Done
            {
                self.line_to(Stream::Error, &building.text);
            }
            return;
        }
        // Without a live line every crate would be a line: the first one says that it may take a while.
        let text = match building.stage {
            BuildStage::Crate | BuildStage::Compiling => building
                .text
                .split(": ")
                .next()
                .unwrap_or(&building.text)
                .to_string(),
            BuildStage::InstallingTarget | BuildStage::Done => building.text.clone(),
        };
        if text != self.building {
            output::line(Stream::Error, &text);
            self.building = text;
        }
    }

    fn start_bar(&self) {
        if let Some(bar) = &self.bar {
            bar.set_style(if self.progress.of.is_some() {
                steps()
            } else {
                spinner()
            });
            bar.set_message("");
            bar.reset_eta();
        }
    }

    fn refresh(&mut self) {
        let progress = &mut self.progress;
        let now = Instant::now();
        if self.bar.is_none()
            || progress
                .refreshed
                .is_some_and(|last| now.duration_since(last) < REFRESH)
        {
            return;
        }
        progress.refreshed = Some(now);
        progress.measure_rate();
        if let Some(bar) = &self.bar {
            if let Some(of) = progress.of {
                bar.set_length(of);
            }
            bar.set_position(progress.step);
            bar.set_message(progress.words());
        }
    }

    fn step(&mut self, step: u64, of: Option<u64>, epoch: u64, round: u64) {
        let progress = &mut self.progress;
        (progress.step, progress.of, progress.epoch, progress.round) = (step, of, epoch, round);
        self.refresh();
    }

    fn evaluated(&mut self, split: &str, epoch: u64, metrics: &BTreeMap<String, f64>) {
        // The last measurement of a run is made again at its end, where it says nothing new.
        let step = self.progress.step;
        let same = |(at, before): &(u64, BTreeMap<String, f64>)| *at == step && before == metrics;
        if self.progress.metrics.get(split).is_some_and(same) {
            return;
        }
        self.progress
            .metrics
            .insert(split.to_string(), (step, metrics.clone()));
        if self.bar.is_some() {
            return;
        }
        self.progress.measure_rate();
        let mut words = vec![];
        if self.progress.round > 0 {
            words.push(format!("round {}", self.progress.round));
        }
        words.push(format!("epoch {epoch:<3}"));
        words.push(match self.progress.of {
            Some(of) => format!("step {step:>width$}/{of}", width = of.to_string().len()),
            None => format!("step {step}"),
        });
        let metric = |(name, value): (&String, &f64)| {
            format!("{split} {name} {}", output::metric(name, *value))
        };
        words.extend(metrics.iter().map(metric));
        let sparsity = self
            .progress
            .sparsity
            .map(|sparsity| output::metric("sparsity", sparsity));
        words.extend(sparsity.map(|sparsity| format!("sparsity {sparsity}")));
        words.extend(self.progress.speed());
        self.line(&words.join("  "));
    }

    /// One line a generation, on a terminal too.
    fn generation(&mut self, generation: &Generation) {
        self.progress.step = generation.step;
        if let Some(bar) = &self.bar {
            bar.set_position(generation.step);
        }
        self.line(&generation_line(generation));
    }

    fn composition(&self, composition: &Composition) {
        for line in composition_lines(composition) {
            self.line(&line);
        }
    }

    fn finished(&mut self, finished: &Finished) {
        self.close();
        if let Some(schedule) = self.schedule.take() {
            for line in schedule_lines(&schedule) {
                output::line(self.stream, line);
            }
            output::line(self.stream, "");
        }
        for line in closing_lines(finished, &self.counters) {
            output::line(self.stream, line);
        }
        for audit in self
            .audits
            .iter()
            .filter(|audit| audit.flagged == Some(true))
        {
            output::line(self.stream, format!("  {}", verdict(audit)));
        }
        self.profile();
    }

    fn profile(&mut self) {
        if let Some(profile) = self.profile.take() {
            output::line(self.stream, "");
            for line in profile::lines(&profile) {
                output::line(self.stream, line);
            }
        }
    }
}

impl Progress {
    /// Takes the steps since the last call into the smoothed rate.
    fn measure_rate(&mut self) {
        if self.seconds > 0.0 {
            let rate = self.samples as f64 / self.seconds;
            self.rate = if self.rate > 0.0 {
                0.8 * self.rate + 0.2 * rate
            } else {
                rate
            };
            (self.samples, self.seconds) = (0, 0.0);
        }
    }

    /// Most important first: a narrow terminal cuts the end off.
    fn words(&self) -> String {
        let mut words = vec![match self.round {
            0 => format!("epoch {}", self.epoch + 1),
            round => format!("round {round} epoch {}", self.epoch + 1),
        }];
        let splits = ["validation", "test", "train"].into_iter();
        let newest = splits
            .filter_map(|split| Some((split, &self.metrics.get(split)?.1)))
            .next();
        if let Some((split, metrics)) = newest {
            let shown = ["accuracy", "return", "loss"].into_iter();
            let shown = shown
                .filter_map(|name| Some((name, *metrics.get(name)?)))
                .next();
            words
                .extend(shown.map(|(name, value)| {
                    format!("{split} {name} {}", output::metric(name, value))
                }));
        }
        words.extend(
            self.loss
                .map(|loss| format!("loss {}", output::metric("loss", loss))),
        );
        words.extend(
            self.sparsity
                .map(|value| format!("sparsity {}", output::metric("sparsity", value))),
        );
        words.extend(self.speed());
        words.join(" · ")
    }

    fn speed(&self) -> Option<String> {
        (self.rate > 0.0)
            .then(|| format!("{} samples/s", output::grouped(self.rate.round() as u64)))
    }
}

impl Observer for View {
    fn event(&mut self, event: &Event) {
        match event {
            Event::Building(building) => self.building(building),
            Event::Composition(composition) => self.composition(composition),
            Event::Started { step, of, .. } => {
                self.started = true;
                self.progress.of = *of;
                self.start_bar();
                if *step > 0 {
                    self.line(&format!("going on from step {step}"));
                }
            }
            Event::Stage {
                number,
                of,
                name,
                steps,
                ..
            } => {
                self.progress.loss = None;
                let steps = match steps {
                    0 => "no steps".to_string(),
                    steps => format!("{} steps", output::grouped(*steps)),
                };
                self.line(&format!("stage {} of {of}: {name}, {steps}", number + 1));
            }
            Event::Audited(audit) => {
                for line in audit_lines(audit) {
                    self.line(&line);
                }
                self.audits.push(audit.clone());
            }
            Event::Step {
                step,
                of,
                epoch,
                round,
                loss,
                samples,
                seconds,
            } => {
                self.progress.loss = *loss;
                self.progress.samples += samples;
                self.progress.seconds += seconds;
                self.step(*step, *of, *epoch, *round);
            }
            Event::Evaluated {
                split,
                epoch,
                metrics,
                ..
            } => self.evaluated(split, *epoch, metrics),
            Event::Log {
                plugin,
                level,
                text,
                ..
            } if *level != Level::Debug => {
                let stream = if *level >= Level::Warning {
                    Stream::Error
                } else {
                    self.stream
                };
                let mark = match level {
                    Level::Debug | Level::Info => "",
                    Level::Warning => "warning: ",
                    Level::Error => "error: ",
                };
                for line in text.lines() {
                    self.line_to(stream, &format!("{plugin}: {mark}{line}"));
                }
            }
            Event::Pruned { sparsity, .. } => self.progress.sparsity = Some(*sparsity),
            Event::Rewound {
                plugin,
                tag,
                step,
                round,
            } => {
                self.line(&format!(
                    "{plugin}: back to `{tag}` after step {step}, round {round} begins"
                ));
            }
            Event::Warning { text, help } => {
                self.line_to(Stream::Error, &format!("warning: {text}"));
                if let Some(help) = help {
                    self.line_to(Stream::Error, &format!("  help  {help}"));
                }
            }
            Event::Member { member, told } => match &**told {
                Event::Warning { .. } | Event::Log { .. } => {
                    for line in words_of(told) {
                        self.line_to(Stream::Error, &format!("member {member}: {line}"));
                    }
                }
                _ => {}
            },
            Event::Generation(generation) => self.generation(generation),
            Event::Schedule(schedule) => self.schedule = Some(schedule.clone()),
            Event::Counters { plugins } => self.counters = plugins.clone(),
            Event::Profile(profile) => self.profile = Some(profile.clone()),
            Event::Finished(finished) => self.finished(finished),
            Event::Interrupted { run, step } => {
                self.close();
                let run = run.display();
                output::line(
                    self.stream,
                    format!("stopped after step {step}; go on with --resume {run}"),
                );
                self.profile();
            }
            Event::Failed { .. } => self.close(),
            Event::Log { .. } | Event::PluginMetric { .. } | Event::Checkpoint { .. } => {}
        }
    }
}

fn steps() -> ProgressStyle {
    // The template is fixed, so a fault in it shows in the first run; the plain style is good enough then.
    ProgressStyle::with_template("{bar:16} {pos}/{len}  {eta} left  {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("━╸─")
}

fn spinner() -> ProgressStyle {
    ProgressStyle::with_template("{spinner} {wide_msg}")
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
}

/// What a member of a population says that a person should see.
fn words_of(event: &Event) -> Vec<String> {
    match event {
        Event::Warning { text, help } => {
            let help = help.iter().map(|help| format!("  help  {help}"));
            std::iter::once(format!("warning: {text}"))
                .chain(help)
                .collect()
        }
        Event::Log {
            plugin,
            level,
            text,
            ..
        } if *level >= Level::Warning => text
            .lines()
            .map(|line| format!("{plugin}: {line}"))
            .collect(),
        _ => Vec::new(),
    }
}

fn generation_line(generation: &Generation) -> String {
    let name = &generation.metric;
    let mut words = vec![
        format!("generation {:<3}", generation.generation),
        format!("epoch {:<5}", generation.epoch),
    ];
    words.push(match &generation.best {
        Some(best) => format!(
            "{name} best {} (member {})",
            output::metric(name, best.value),
            best.member
        ),
        None => format!("{name} not finite for any member"),
    });
    if let Some(mean) = generation.mean {
        words.push(format!("mean {}", output::metric(name, mean)));
    }
    if generation.unmeasured > 0 && generation.best.is_some() {
        words.push(format!("{} not finite", generation.unmeasured));
    }
    words.push(match generation.copies.len() {
        1 => "1 copy".to_string(),
        n => format!("{n} copies"),
    });
    words.push(output::seconds(generation.seconds));
    words.join("  ")
}

/// The winner's knobs from the first step on; rows that say the same are one.
fn schedule_lines(schedule: &Schedule) -> Vec<String> {
    let metric = &schedule.metric;
    let value = schedule.value.map_or("not finite".to_string(), |value| {
        output::metric(metric, value)
    });
    let mut lines = vec![
        String::new(),
        format!("winner  member {}, {metric} {value}", schedule.member),
    ];
    let mut rows = vec![vec![
        "epochs".to_string(),
        "member".to_string(),
        "copied from".to_string(),
    ]];
    let names = schedule.rows.first().map(|row| &row.knobs);
    rows[0].extend(names.into_iter().flatten().map(|(name, _)| name.clone()));
    rows[0].push(metric.clone());
    let mut at = 0;
    while let Some(first) = schedule.rows.get(at) {
        let alike = |row: &espalier_runtime::events::ScheduleRow| {
            row.member == first.member && row.copied_from.is_none() && row.knobs == first.knobs
        };
        let mut last = at;
        while schedule.rows.get(last + 1).is_some_and(alike) {
            last += 1;
        }
        let end = &schedule.rows[last];
        let mut row = vec![
            format!("{:.4}", first.from_epoch)
                .trim_end_matches('0')
                .trim_end_matches('.')
                .to_string()
                + "-"
                + format!("{:.4}", end.to_epoch)
                    .trim_end_matches('0')
                    .trim_end_matches('.'),
            first.member.to_string(),
            first
                .copied_from
                .map_or("-".into(), |from| from.to_string()),
        ];
        row.extend(first.knobs.iter().map(|(_, value)| match value {
            OptionValue::Float(x) => short(*x),
            other => options::show(other),
        }));
        row.push(end.value.map_or("-".into(), |x| output::metric(metric, x)));
        rows.push(row);
        at = last + 1;
    }
    let right: Vec<usize> = (0..rows[0].len()).collect();
    lines.extend(output::table(&rows, &right).lines().map(str::to_string));
    lines
}

/// A knob in three digits.
fn short(x: f64) -> String {
    match x.abs() {
        0.0 => "0".into(),
        size if !(1e-3..1e4).contains(&size) => format!("{x:.2e}"),
        size if size < 0.1 => format!("{x:.4}"),
        _ => format!("{x:.3}"),
    }
}

fn composition_lines(run: &Composition) -> Vec<String> {
    let threads = if run.threads == 1 {
        "1 thread".to_string()
    } else {
        format!("{} threads", run.threads)
    };
    let mut data = format!("{} {:?}", run.data.source, run.data.shape);
    if let Some(classes) = run.data.classes {
        data.push_str(&format!(", {classes} classes"));
    }
    let splits = [
        ("train", run.data.train),
        ("validation", run.data.validation),
        ("test", run.data.test),
    ];
    let splits = splits.iter().filter(|(_, count)| *count > 0);
    let splits: Vec<String> = splits
        .map(|(name, count)| format!("{} {name}", output::grouped(*count as u64)))
        .collect();
    let parameters = output::grouped(run.model.parameters);
    let prunable = output::grouped(run.model.prunable);

    let mut rows: Vec<(String, String)> = vec![
        (
            "data".into(),
            match splits.is_empty() {
                true => data,
                false => format!("{data}: {}", splits.join(", ")),
            },
        ),
        ("model".into(), run.model.text.clone()),
        (
            String::new(),
            format!("{parameters} parameters, {prunable} of them prunable"),
        ),
        ("schedule".into(), run.schedule.clone()),
    ];
    let stages = run
        .stages
        .iter()
        .map(|stage| (String::new(), stage.clone()));
    rows.extend(stages);
    let several = run
        .plugins
        .iter()
        .filter(|plugin| plugin.slot == Slot::Pruner)
        .count()
        > 1;
    let mut order = 0;
    for plugin in &run.plugins {
        let mut label = plugin.slot.to_string();
        if several && plugin.slot == Slot::Pruner {
            order += 1;
            label = format!("{label} {order}");
        }
        let digest = plugin.sha256.get(..12).unwrap_or(&plugin.sha256);
        let size = output::bytes(plugin.size);
        rows.push((
            label,
            format!(
                "{} {}, sha256 {digest}, {size}",
                plugin.name, plugin.version
            ),
        ));
        let last = plugin.options.len().saturating_sub(1);
        let option = |(index, (name, value)): (usize, &(String, _))| {
            let comma = if index == last { "" } else { "," };
            format!("{name} = {}{comma}", options::show(value))
        };
        let options: Vec<String> = plugin.options.iter().enumerate().map(option).collect();
        let lines = output::wrap_words(options.iter().map(String::as_str), WIDTH);
        rows.extend(lines.into_iter().map(|line| (String::new(), line)));
    }
    let width = rows.iter().map(|(label, _)| label.len()).max().unwrap_or(0);
    let mut lines = vec![format!("{}  seed {}, {threads}", run.name, run.seed)];
    for (label, text) in rows {
        for (number, part) in output::wrap(&text, WIDTH).into_iter().enumerate() {
            let label = if number == 0 { label.as_str() } else { "" };
            lines.push(format!("  {label:width$}  {part}"));
        }
    }
    lines
}

/// An audit in one line.
fn verdict(audit: &Audit) -> String {
    let said = match audit.flagged {
        Some(true) => "FLAGGED: do not trust this result",
        Some(false) => "nothing found",
        None => "measured",
    };
    let place = match audit.stage.as_str() {
        "" => String::new(),
        stage => format!(", stage {stage}"),
    };
    format!("audit by {}{place}: {said}", audit.auditor)
}

/// What an auditor found, for a person: the verdict, its numbers, its note; tables are in the run's folder.
fn audit_lines(audit: &Audit) -> Vec<String> {
    let mut lines = vec![verdict(audit)];
    let number = |(name, value): &(String, f64)| vec![name.clone(), output::metric(name, *value)];
    let numbers: Vec<Vec<String>> = audit.numbers.iter().map(number).collect();
    if !numbers.is_empty() {
        let table = output::table(&numbers, &[1]);
        lines.extend(table.lines().map(str::to_string));
    }
    let note = audit
        .note
        .lines()
        .flat_map(|line| output::wrap(line, WIDTH));
    lines.extend(note.map(|line| format!("  {line}")));
    for table in &audit.tables {
        lines.push(format!(
            "  table `{}`: {} rows, in the run's folder",
            table.name,
            table.rows.len()
        ));
    }
    lines
}

fn closing_lines(finished: &Finished, counters: &[PluginCounters]) -> Vec<String> {
    let steps = output::grouped(finished.steps);
    let mut lines = vec![format!(
        "finished  {steps} steps in {}",
        output::seconds(finished.seconds)
    )];
    let metric = |(name, value): (&String, &f64)| vec![name.clone(), output::metric(name, *value)];
    let metrics: Vec<Vec<String>> = finished.metrics.iter().map(metric).collect();
    lines.push(output::table(&metrics, &[1]));
    if !counters.is_empty() {
        let head = [
            "plugin",
            "calls",
            "in plugin",
            "in host",
            "peak tensors",
            "peak handles",
            "restarts",
        ];
        let mut rows = vec![head.map(String::from).to_vec()];
        rows.extend(counters.iter().map(|plugin| {
            vec![
                plugin.name.clone(),
                output::grouped(plugin.calls.values().sum()),
                output::seconds(plugin.guest_seconds),
                output::seconds(plugin.host_seconds),
                output::bytes(plugin.peak_tensor_bytes),
                output::grouped(plugin.peak_handles),
                plugin.restarts.to_string(),
            ]
        }));
        if counters.iter().all(|plugin| plugin.restarts == 0) {
            rows.iter_mut().for_each(|row| row.truncate(6));
        }
        lines.push(String::new());
        lines.push(output::table(&rows, &[1, 2, 3, 4, 5, 6]));
    }
    lines.push(String::new());
    lines.push(format!("  {}", finished.run.display()));
    lines
}

#[cfg(test)]
mod tests {
    use espalier_runtime::events::{ComposedData, ComposedModel, ComposedPlugin};
    use espalier_runtime::plan::OptionValue;

    use super::*;

    #[test]
    fn the_composition_says_what_fills_each_slot() {
        let plugin = |slot, name: &str, options: &[(&str, OptionValue)]| ComposedPlugin {
            slot,
            name: name.into(),
            version: "0.1.0".into(),
            sha256: "0123456789abcdef".repeat(4),
            size: 70_000,
            options: options
                .iter()
                .map(|(name, value)| (name.to_string(), value.clone()))
                .collect(),
        };
        let composition = Composition {
            name: "digits".into(),
            seed: 7,
            threads: 2,
            data: ComposedData {
                source: "digits".into(),
                shape: vec![1, 8, 8],
                classes: Some(10),
                train: 1347,
                validation: 0,
                test: 450,
            },
            model: ComposedModel {
                text: "linear 10".into(),
                layers: 1,
                parameters: 650,
                prunable: 640,
            },
            plugins: vec![
                plugin(
                    Slot::Trainer,
                    "backprop",
                    &[("lr", OptionValue::Float(0.1))],
                ),
                plugin(Slot::Pruner, "a", &[]),
                plugin(Slot::Pruner, "b", &[]),
            ],
            schedule: "40 epochs of 21 steps".into(),
            stages: Vec::new(),
        };
        let want = "digits  seed 7, 2 threads
  data      digits [1, 8, 8], 10 classes: 1,347 train, 450 test
  model     linear 10
            650 parameters, 640 of them prunable
  schedule  40 epochs of 21 steps
  trainer   backprop 0.1.0, sha256 0123456789ab, 68.4 KiB
            lr = 0.1
  pruner 1  a 0.1.0, sha256 0123456789ab, 68.4 KiB
  pruner 2  b 0.1.0, sha256 0123456789ab, 68.4 KiB";
        assert_eq!(composition_lines(&composition).join("\n"), want);
    }

    #[test]
    fn a_generation_is_one_line_and_the_winners_way_a_table() {
        use espalier_runtime::events::{Copied, Leader, ScheduleRow};
        let generation = Generation {
            generation: 2,
            step: 64,
            epoch: 4.0,
            metric: "validation/accuracy".into(),
            best: Some(Leader {
                member: 7,
                value: 0.91,
            }),
            mean: Some(0.8237),
            unmeasured: 1,
            copies: vec![Copied { member: 3, from: 7 }],
            seconds: 0.064,
        };
        assert_eq!(
            generation_line(&generation),
            "generation 2    epoch 4      validation/accuracy best 91.00 % (member 7)  mean 82.37 %  \
             1 not finite  1 copy  64 ms"
        );
        let row = |generation: u64, member, copied_from, lr| ScheduleRow {
            generation,
            from_epoch: 2.0 * (generation as f64 - 1.0),
            to_epoch: 2.0 * generation as f64,
            member,
            copied_from,
            knobs: vec![("trainer.lr".into(), OptionValue::Float(lr))],
            value: Some(0.3 * generation as f64),
        };
        let schedule = Schedule {
            member: 1,
            metric: "validation/accuracy".into(),
            value: Some(0.9),
            rows: vec![
                row(1, 4, None, 0.0616),
                row(2, 4, None, 0.0616),
                row(3, 1, Some(4), 2.4e-5),
            ],
        };
        let want = "
winner  member 1, validation/accuracy 90.00 %
  epochs  member  copied from  trainer.lr  validation/accuracy
     0-4       4            -      0.0616              60.00 %
     4-6       1            4     2.40e-5              90.00 %";
        assert_eq!(schedule_lines(&schedule).join("\n"), want);
    }

    #[test]
    fn the_closing_table_shows_metrics_and_what_each_plugin_cost() {
        let metrics = [
            ("sparsity", 0.9),
            ("test/accuracy", 0.9711),
            ("test/loss", 0.1043),
        ];
        let finished = Finished {
            run: "runs/digits".into(),
            seconds: 6.31,
            steps: 1120,
            metrics: metrics
                .map(|(name, value)| (name.to_string(), value))
                .into(),
        };
        let counters = [PluginCounters {
            slot: Slot::Trainer,
            name: "backprop".into(),
            calls: [("predict".to_string(), 40), ("step".to_string(), 1120)].into(),
            guest_seconds: 0.31,
            host_seconds: 5.0,
            peak_tensor_bytes: 3 << 20,
            peak_graph_nodes: 40,
            peak_handles: 120,
            restarts: 0,
        }];
        let want = "finished  1,120 steps in 6.3 s
  sparsity       90.00 %
  test/accuracy  97.11 %
  test/loss       0.1043

  plugin    calls  in plugin  in host  peak tensors  peak handles
  backprop  1,160     310 ms    5.0 s       3.0 MiB           120

  runs/digits";
        assert_eq!(closing_lines(&finished, &counters).join("\n"), want);
    }
}
