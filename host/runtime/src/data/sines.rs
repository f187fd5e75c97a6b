//! Series made of sines: the class of a series is one of its frequencies. Nothing to download, and it is known which
//! frequencies matter.
//!
//! ```text
//! x_t = sin(2 pi f t / n + a) + 0.6 sin(2 pi 2 t / n + b) + noise N(0, 1)
//! ```
//!
//! with f of the class, the phases a and b uniform for each series, and a second sine that all classes share.

use espalier_tensor::DType;
use espalier_tensor::random::{self, Key};

use super::{Error, Raw, Result, Table, Targets, Values};
use crate::plan::Sines;

/// Amplitude and frequency of the sine that all classes share.
const COMMON: (f64, f64) = (0.6, 2.0);

/// Depends on the seed of the split alone. Classes take turns.
pub(super) fn read(sines: &Sines, seed: u64) -> Result<Raw> {
    let most = sines.length / 2;
    if let Some(wrong) = sines
        .frequencies
        .iter()
        .find(|f| **f < 1.0 || **f > f64::from(most))
    {
        return Err(Error::Plan {
            field: "frequencies",
            problem: format!(
                "{wrong} is no frequency of a series of {} steps; expected 1 to {most}",
                sines.length
            ),
        });
    }
    if sines.frequencies.len() < 2 {
        return Err(Error::Plan {
            field: "frequencies",
            problem: "expected two or more: one for each class".into(),
        });
    }
    Ok(Raw {
        train: table(sines, seed, 0, sines.count)?,
        test: Some(table(sines, seed, 1, sines.test_count)?),
    })
}

fn table(sines: &Sines, seed: u64, part: u64, count: u32) -> Result<Table> {
    let (count, length) = (count as usize, sines.length as usize);
    let classes = sines.frequencies.len();
    // The third number sets these draws apart from every other use of the generator.
    let key = |what: u64| Key::new(&[seed, 2 * part + what, 0x5349_4e45_0000_0001]);
    let drawn = |doing| move |source| Error::Tensor { doing, source };
    let phases = random::uniform(&key(0), &[count, 2], DType::F64)
        .and_then(|t| t.to_vec::<f64>())
        .map_err(drawn("drawing phases".to_string()))?;
    let noise = random::normal(&key(1), &[count, length], DType::F64)
        .and_then(|t| t.to_vec::<f64>())
        .map_err(drawn("drawing noise".to_string()))?;
    let turn = 2.0 * std::f64::consts::PI;
    let mut values = Vec::with_capacity(count * length);
    for (series, noise) in noise.chunks_exact(length.max(1)).enumerate() {
        let frequency = sines.frequencies[series % classes];
        let (a, b) = (turn * phases[2 * series], turn * phases[2 * series + 1]);
        for (t, noise) in noise.iter().enumerate() {
            let angle = turn * t as f64 / length as f64;
            let common = COMMON.0 * (COMMON.1 * angle + b).sin();
            values.push(((frequency * angle + a).sin() + common + sines.noise * noise) as f32);
        }
    }
    Ok(Table {
        count,
        shape: vec![1, length],
        inputs: Values::Floats(values),
        targets: Targets::Classes {
            labels: (0..count).map(|series| (series % classes) as i64).collect(),
            classes: classes as u32,
        },
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sines() -> Sines {
        Sines {
            count: 30,
            test_count: 9,
            length: 64,
            frequencies: vec![3.0, 5.0, 8.0],
            noise: 0.0,
        }
    }

    #[test]
    fn a_series_without_noise_has_its_own_frequency_and_the_common_one() {
        let raw = read(&sines(), 0).unwrap();
        let Values::Floats(values) = &raw.train.inputs else {
            panic!("floats");
        };
        for (series, x) in values.chunks_exact(64).enumerate().take(6) {
            for (k, expected) in [(2, 0.6 * 32.0), (3, 0.0), (5, 0.0), (8, 0.0)] {
                let own = [3, 5, 8][series % 3] == k;
                let expected = if own { 32.0 } else { expected };
                let part = |f: fn(f64) -> f64| {
                    let turn = |t: usize| 2.0 * std::f64::consts::PI * (k * t) as f64 / 64.0;
                    (0..64).map(|t| f64::from(x[t]) * f(turn(t))).sum::<f64>()
                };
                let magnitude = part(f64::cos).hypot(part(f64::sin));
                assert!(
                    (magnitude - expected).abs() < 1e-3,
                    "{series} {k}: {magnitude}"
                );
            }
        }
        assert_eq!(raw.test.unwrap().count, 9);
    }

    #[test]
    fn the_seed_of_the_split_draws_the_series_and_wrong_frequencies_are_refused() {
        let values = |seed| match read(&sines(), seed).unwrap().train.inputs {
            Values::Floats(values) => values,
            _ => Vec::new(),
        };
        assert_eq!(values(1), values(1));
        assert_ne!(values(1), values(2));
        for frequencies in [vec![3.0], vec![3.0, 40.0], vec![0.0, 2.0]] {
            let wrong = Sines {
                frequencies,
                ..sines()
            };
            assert!(read(&wrong, 0).is_err());
        }
    }
}
