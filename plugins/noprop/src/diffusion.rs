//! The numbers of the diffusion: how much of the label is left in the noise, and how a step undoes some of it.

use std::f64::consts::PI;

/// The signal of the cosine schedule stays between this and 1 less this: its ratio to the noise has no end otherwise.
const EDGE: f64 = 0.01;

/// Signal level alphabar at a time from 0 (noise) to 1 (label): sin^2(pi t / 2), squeezed into [0.01, 0.99].
pub fn signal(t: f64) -> f64 {
    EDGE + (1.0 - 2.0 * EDGE) * (0.5 * PI * t).sin().powi(2)
}

/// Signal over noise, alphabar / (1 - alphabar).
pub fn ratio(signal: f64) -> f64 {
    signal / (1.0 - signal)
}

/// Derivative of the ratio by time, alphabar' / (1 - alphabar)^2.
pub fn ratio_slope(t: f64) -> f64 {
    let slope = (1.0 - 2.0 * EDGE) * 0.5 * PI * (PI * t).sin();
    slope / (1.0 - signal(t)).powi(2)
}

/// A step from the level `from` to the level `to`: z' = a u + b z + sqrt(c) noise, for the guess u of the label.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reverse {
    pub a: f64,
    pub b: f64,
    pub c: f64,
}

impl Reverse {
    /// Coefficients of q(z' | z, u), with alpha = from / to.
    pub fn between(from: f64, to: f64) -> Reverse {
        let alpha = from / to;
        Reverse {
            a: to.sqrt() * (1.0 - alpha) / (1.0 - from),
            b: alpha.sqrt() * (1.0 - to) / (1.0 - from),
            c: (1.0 - to) * (1.0 - alpha) / (1.0 - from),
        }
    }
}

/// Constant part of KL(q(z_0 | y) || N(0, I)) in `width` dimensions at the level `signal`: it is this plus
/// `signal |u|^2 / 2`.
pub fn kl_constant(signal: f64, width: u32) -> f64 {
    -0.5 * f64::from(width) * (signal + (1.0 - signal).ln())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-6 * b.abs().max(1.0), "{a} is not {b}");
    }

    #[test]
    fn one_step_has_the_known_coefficients() {
        let step = Reverse::between(0.2, 0.8);
        close(step.a, 0.838525);
        close(step.b, 0.125);
        close(step.c, 0.1875);
        close(ratio(0.8) - ratio(0.2), 3.75);
    }

    #[test]
    fn with_the_right_guess_a_step_gives_the_next_marginal() {
        let step = Reverse::between(0.2, 0.8);
        close(step.a + step.b * 0.2f64.sqrt(), 0.894427);
        for steps in [1u32, 5, 40] {
            for t in 1..=steps {
                let at = |t: u32| signal(f64::from(t) / f64::from(steps));
                let (from, to) = (at(t - 1), at(t));
                let step = Reverse::between(from, to);
                close(step.a + step.b * from.sqrt(), to.sqrt());
                close(step.b.powi(2) * (1.0 - from) + step.c, 1.0 - to);
            }
        }
    }

    #[test]
    fn the_weight_of_the_loss_is_that_of_the_step() {
        for t in 1..=10 {
            let at = |t: u32| signal(f64::from(t) / 10.0);
            let step = Reverse::between(at(t - 1), at(t));
            let growth = ratio(at(t)) - ratio(at(t - 1));
            close(step.a.powi(2) / (2.0 * step.c), growth / 2.0);
        }
    }

    #[test]
    fn the_slope_is_that_of_the_ratio() {
        for t in [0.1, 0.5, 0.9] {
            let h = 1e-6;
            let difference = (ratio(signal(t + h)) - ratio(signal(t - h))) / (2.0 * h);
            assert!((ratio_slope(t) / difference - 1.0).abs() < 1e-6, "{t}");
        }
    }

    #[test]
    fn the_first_level_costs_the_known_divergence() {
        // d = 10, |u| = 1.
        close(kl_constant(0.2, 10) + 0.5 * 0.2, 0.215718);
    }
}
