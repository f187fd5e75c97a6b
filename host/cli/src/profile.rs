//! The tables of `espalier run --profile`: where the time of a run went.

use std::path::PathBuf;

use espalier_runtime::profile::{DETAILED_STEPS, OperationTime, PartTime, Profile};

use crate::output;

/// Most rows of a table that could be long; the last one sums up what is left.
const MOST_ROWS: usize = 16;

/// The value of `--profile`: a file whose name says that it is JSON, so that a run file is never written over.
pub fn trace_file(text: &str) -> Result<PathBuf, String> {
    match text.ends_with(".json") {
        true => Ok(text.into()),
        false => Err("expected a file whose name ends in .json; the run file goes first".into()),
    }
}

/// The tables, line by line.
pub fn lines(profile: &Profile) -> Vec<String> {
    let whole = profile.seconds;
    let mut first = format!("profile  {} of wall time", time(whole));
    if let Some(seconds) = profile.processor_seconds {
        let threads = match profile.threads {
            1 => "1 thread".to_string(),
            n => format!("{n} threads"),
        };
        first.push_str(&format!(", {} of processor time, {threads}", time(seconds)));
    }
    if let Some(bytes) = profile.peak_process_bytes {
        first.push_str(&format!(", {} at the peak", output::bytes(bytes)));
    }
    let mut lines = vec![first];
    lines.push(parts(profile));
    lines.push(String::new());
    lines.push(calls(profile));
    if !profile.operations.is_empty() {
        lines.push(String::new());
        lines.push(operations(&profile.operations, whole));
    }
    lines.push(String::new());
    lines.push(memory(profile));
    lines.push(String::new());
    let epochs = match profile.trace_every {
        1 => "each epoch".to_string(),
        n => format!("every {n}th epoch"),
    };
    let trace = profile.trace.display();
    lines.push(format!(
        "  {trace}: the first {DETAILED_STEPS} steps of {epochs}, for ui.perfetto.dev or chrome://tracing"
    ));
    lines
}

fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(String::from).to_vec()
}

fn parts(profile: &Profile) -> String {
    let whole = profile.seconds;
    let of = |name: &str, part: &PartTime| {
        vec![
            name.to_string(),
            time(part.seconds()),
            share(part.seconds(), whole),
            time(part.guest_seconds),
            time(part.host_seconds),
            time(part.runner_seconds),
        ]
    };
    let mut rows = vec![row([
        "part",
        "time",
        "share",
        "in plugins",
        "in host operations",
        "in the runner",
    ])];
    rows.extend(profile.parts.iter().map(|part| of(&part.part, part)));
    let sum = |f: fn(&PartTime) -> f64| profile.parts.iter().map(f).sum::<f64>();
    let all = PartTime {
        part: String::new(),
        guest_seconds: sum(|p| p.guest_seconds),
        host_seconds: sum(|p| p.host_seconds),
        runner_seconds: sum(|p| p.runner_seconds),
    };
    rows.push(of("all", &all));
    output::table(&rows, &[1, 2, 3, 4, 5])
}

fn calls(profile: &Profile) -> String {
    let mut rows = vec![row([
        "plugin",
        "call",
        "calls",
        "time",
        "share",
        "a call",
        "in plugin",
        "in host operations",
    ])];
    rows.extend(profile.calls.iter().map(|call| {
        vec![
            call.plugin.clone(),
            call.call.clone(),
            output::grouped(call.calls),
            time(call.seconds()),
            share(call.seconds(), profile.seconds),
            time(call.seconds() / call.calls.max(1) as f64),
            time(call.guest_seconds),
            time(call.host_seconds),
        ]
    }));
    output::table(&rows, &[2, 3, 4, 5, 6, 7])
}

fn operations(all: &[OperationTime], whole: f64) -> String {
    let mut rows = vec![row([
        "host operation",
        "plugin",
        "calls",
        "time",
        "share",
        "a call",
    ])];
    let of = |name: String, plugin: &str, calls: u64, seconds: f64| {
        vec![
            name,
            plugin.to_string(),
            output::grouped(calls),
            time(seconds),
            share(seconds, whole),
            time(seconds / calls.max(1) as f64),
        ]
    };
    // A last row that sums up a single operation would be longer than naming it.
    let shown = match all.len() {
        n if n <= MOST_ROWS => n,
        _ => MOST_ROWS - 1,
    };
    for o in &all[..shown] {
        rows.push(of(o.operation.clone(), &o.plugin, o.calls, o.seconds));
    }
    if let rest @ [_, ..] = &all[shown..] {
        rows.push(of(
            format!("{} others", rest.len()),
            "",
            rest.iter().map(|o| o.calls).sum(),
            rest.iter().map(|o| o.seconds).sum(),
        ));
    }
    output::table(&rows, &[2, 3, 4, 5])
}

fn memory(profile: &Profile) -> String {
    let mut rows = vec![row(["plugin", "peak tensors", "peak handles"])];
    rows.extend(profile.memory.iter().map(|plugin| {
        vec![
            plugin.plugin.clone(),
            output::bytes(plugin.peak_tensor_bytes),
            output::grouped(plugin.peak_handles),
        ]
    }));
    output::table(&rows, &[1, 2])
}

/// Three digits: `1.23 s`, `45.6 ms`, `789 us`, `0.05 us`.
fn time(seconds: f64) -> String {
    let (value, unit) = match seconds {
        0.0 => return "-".into(),
        s if s >= 0.9995 => (s, "s"),
        s if s >= 0.9995e-3 => (s * 1e3, "ms"),
        s => (s * 1e6, "us"),
    };
    match value {
        v if v < 9.995 => format!("{v:.2} {unit}"),
        v if v < 99.95 => format!("{v:.1} {unit}"),
        v => format!("{v:.0} {unit}"),
    }
}

fn share(seconds: f64, whole: f64) -> String {
    format!("{:.1} %", 100.0 * seconds / whole.max(f64::MIN_POSITIVE))
}

#[cfg(test)]
mod tests {
    use espalier_runtime::profile::{CallTime, PluginMemory};

    use super::*;

    #[test]
    fn times_have_three_digits() {
        let times = [0.0, 1.234, 123.4, 0.0456, 0.99949e-3, 7.89e-7].map(time);
        assert_eq!(
            times,
            ["-", "1.23 s", "123 s", "45.6 ms", "999 us", "0.79 us"]
        );
    }

    #[test]
    fn a_run_file_is_not_taken_for_the_trace() {
        assert!(trace_file("out/trace.json").is_ok());
        assert!(trace_file("digits.toml").is_err());
    }

    #[test]
    fn the_tables_add_up_and_name_what_takes_time() {
        let part = |part: &str, guest_seconds, host_seconds, runner_seconds| PartTime {
            part: part.into(),
            guest_seconds,
            host_seconds,
            runner_seconds,
        };
        let profile = Profile {
            seconds: 2.0,
            processor_seconds: Some(3.0),
            threads: 2,
            peak_process_bytes: Some(64 << 20),
            parts: vec![
                part("steps", 0.25, 1.5, 0.0),
                part("runner", 0.0, 0.0, 0.25),
            ],
            calls: vec![CallTime {
                plugin: "backprop".into(),
                call: "step".into(),
                calls: 1000,
                guest_seconds: 0.25,
                host_seconds: 1.5,
            }],
            operations: (0..17)
                .map(|n| OperationTime {
                    plugin: "backprop".into(),
                    operation: format!("tensors.op-{n}"),
                    calls: 10,
                    seconds: 0.01,
                })
                .collect(),
            memory: vec![PluginMemory {
                plugin: "backprop".into(),
                peak_tensor_bytes: 3 << 20,
                peak_handles: 12,
            }],
            trace: "runs/a/profile.json".into(),
            trace_every: 1,
        };
        let text = lines(&profile).join("\n");
        let want = "profile  2.00 s of wall time, 3.00 s of processor time, 2 threads, 64.0 MiB at the peak
  part      time    share  in plugins  in host operations  in the runner
  steps   1.75 s   87.5 %      250 ms              1.50 s              -
  runner  250 ms   12.5 %           -                   -         250 ms
  all     2.00 s  100.0 %      250 ms              1.50 s         250 ms

  plugin    call  calls    time   share   a call  in plugin  in host operations
  backprop  step  1,000  1.75 s  87.5 %  1.75 ms     250 ms              1.50 s
";
        assert!(text.starts_with(want), "{text}");
        let rest = text.lines().find(|line| line.starts_with("  2 others"));
        assert!(
            rest.is_some_and(|line| line.ends_with(" 20  20.0 ms  1.0 %  1.00 ms")),
            "{text}"
        );
        assert!(text.contains("\n  backprop       3.0 MiB            12\n"));
    }
}
