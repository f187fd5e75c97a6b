//! Nothing grows with the number of steps.
#![allow(clippy::unwrap_used)]

use espalier_tests::bench::{Bench, Targets};

/// Bytes of this process that lie in memory.
#[cfg(target_os = "linux")]
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: u64 = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[cfg(not(target_os = "linux"))]
fn resident() -> u64 {
    0
}

fn tiny(name: &str) -> Bench {
    let rows: Vec<Vec<f64>> = (0..8)
        .map(|row| {
            (0..8)
                .map(|column| f64::from((row * 5 + column * 3) % 7) / 7.0 - 0.4)
                .collect()
        })
        .collect();
    let rows: Vec<&[f64]> = rows.iter().map(Vec::as_slice).collect();
    let file = r#"
[model]
layers = [{ kind = "linear", features = 16 }, { kind = "relu" }, { kind = "linear", features = 2 }]
[trainer]
plugin = "backprop"
with = { optimizer = "sgd", lr = 0.01, momentum = 0.9 }
"#;
    let classes = [0, 1, 1, 0, 1, 0, 0, 1];
    Bench::new(name, &rows, Targets::Classes(&classes, 2), 1_000_000, file)
}

#[test]
fn a_hundred_thousand_steps_leave_no_handle_byte_or_node_behind() {
    let bench = tiny("growth");
    let mut losses = Vec::new();
    for step in 0..10_000 {
        losses.push(bench.step(step));
    }
    let (held, memory) = (bench.held(), resident());
    for step in 10_000..100_000 {
        bench.step(step);
    }
    assert_eq!(bench.held(), held);
    let grown = resident().saturating_sub(memory);
    assert!(grown < 1 << 20, "{grown} bytes in 90000 steps");
    // The same steps give the same bits again, whatever lies in the memory used again.
    let again = tiny("growth-again");
    for (step, loss) in losses.iter().enumerate().take(1000) {
        assert_eq!(
            again.step(step as u64).to_bits(),
            loss.to_bits(),
            "step {step}"
        );
    }
}
