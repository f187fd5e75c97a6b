//! Welch's t-test: whether two samples have different means, without assuming that they spread alike.

/// The two-sided probability of a difference at least as large as that between these means if there is none
/// (Welch 1947, degrees of freedom after Satterthwaite). None for samples of fewer than two.
pub(crate) fn welch(a: &[f64], b: &[f64]) -> Option<f64> {
    let ((mean_a, share_a), (mean_b, share_b)) = (moments(a)?, moments(b)?);
    let spread = share_a + share_b;
    if spread == 0.0 {
        // No spread at all: a difference is certain, or there is none.
        return Some(f64::from(u8::from(mean_a == mean_b)));
    }
    let t = (mean_a - mean_b) / spread.sqrt();
    let of = |share: f64, n: usize| share * share / (n as f64 - 1.0);
    let freedom = spread * spread / (of(share_a, a.len()) + of(share_b, b.len()));
    // P(|T| > t) = I_x(v/2, 1/2) with x = v / (v + t^2).
    Some(incomplete_beta(
        freedom / 2.0,
        0.5,
        freedom / (freedom + t * t),
    ))
}

/// Mean, and unbiased variance divided by the count.
fn moments(list: &[f64]) -> Option<(f64, f64)> {
    let n = list.len() as f64;
    if list.len() < 2 {
        return None;
    }
    let mean = list.iter().sum::<f64>() / n;
    let squares: f64 = list.iter().map(|x| (x - mean) * (x - mean)).sum();
    Some((mean, squares / (n - 1.0) / n))
}

/// The regularised incomplete beta function, by its continued fraction (Lentz's way).
fn incomplete_beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 || x >= 1.0 {
        return x.clamp(0.0, 1.0);
    }
    // The fraction converges quickly on one side of the mean; the other side follows by symmetry.
    if x > (a + 1.0) / (a + b + 2.0) {
        return 1.0 - incomplete_beta(b, a, 1.0 - x);
    }
    let front =
        (ln_gamma(a + b) - ln_gamma(a) - ln_gamma(b) + a * x.ln() + b * (1.0 - x).ln()).exp();
    let tiny = 1e-300;
    let safe = |y: f64| if y.abs() < tiny { tiny } else { y };
    let (mut c, mut d) = (1.0, 1.0 / safe(1.0 - (a + b) * x / (a + 1.0)));
    let mut fraction = d;
    for step in 1..500 {
        let m = f64::from(step);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let before = fraction;
        for coefficient in [even, odd] {
            d = 1.0 / safe(1.0 + coefficient * d);
            c = safe(1.0 + coefficient / c);
            fraction *= d * c;
        }
        if (fraction - before).abs() <= 1e-15 * fraction.abs() {
            break;
        }
    }
    front * fraction / a
}

/// The logarithm of the gamma function for x > 0 (Lanczos, g = 7, nine terms; relative error below 1e-14).
fn ln_gamma(x: f64) -> f64 {
    const G: f64 = 7.0;
    const TERMS: [f64; 8] = [
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    if x < 0.5 {
        let sine = (std::f64::consts::PI * x).sin();
        return (std::f64::consts::PI / sine).ln() - ln_gamma(1.0 - x);
    }
    let x = x - 1.0;
    let mut sum = 0.999_999_999_999_809_9;
    for (term, number) in TERMS.iter().zip(1..) {
        sum += term / (x + f64::from(number));
    }
    let t = x + G + 0.5;
    0.5 * std::f64::consts::TAU.ln() + (x + 0.5) * t.ln() - t + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logarithms_of_factorials() {
        assert!((ln_gamma(1.0)).abs() < 1e-13);
        assert!((ln_gamma(11.0) - 3_628_800_f64.ln()).abs() < 1e-12);
        assert!((ln_gamma(0.5) - std::f64::consts::PI.sqrt().ln()).abs() < 1e-13);
    }

    #[test]
    fn one_degree_of_freedom_is_the_arc_tangent() {
        // Student's t with v = 1 is Cauchy: P(|T| > t) = 1 - 2 atan(t) / pi.
        for t in [0.1_f64, 1.0, 12.706_204_736] {
            let exact = 1.0 - 2.0 * t.atan() / std::f64::consts::PI;
            assert!((incomplete_beta(0.5, 0.5, 1.0 / (1.0 + t * t)) - exact).abs() < 1e-12);
        }
    }

    #[test]
    fn the_tabled_quantile_of_ten_degrees_of_freedom() {
        // t = 2.228139 leaves 5 % outside.
        let t: f64 = 2.228_138_852;
        assert!((incomplete_beta(5.0, 0.5, 10.0 / (10.0 + t * t)) - 0.05).abs() < 1e-9);
    }

    #[test]
    fn equal_samples_do_not_differ_and_constant_ones_do_so_for_certain() {
        assert!(welch(&[1.0, 2.0, 3.0], &[1.0, 2.0, 3.0]).is_some_and(|p| (p - 1.0).abs() < 1e-12));
        assert_eq!(welch(&[1.0, 1.0], &[2.0, 2.0]), Some(0.0));
        assert_eq!(welch(&[1.0, 1.0], &[1.0, 1.0]), Some(1.0));
        assert_eq!(welch(&[1.0], &[1.0, 2.0]), None);
    }

    #[test]
    fn welchs_own_degrees_of_freedom() {
        // Means 2 and 5, variances 1 and 4 over 3 each: t = -3 / sqrt(5/3), v = (5/3)^2 / (1/18 + 16/18) = 50/17.
        let p = welch(&[1.0, 2.0, 3.0], &[3.0, 5.0, 7.0]).unwrap_or_default();
        let (t2, v) = (27.0 / 5.0, 50.0 / 17.0);
        assert!((p - incomplete_beta(v / 2.0, 0.5, v / (v + t2))).abs() < 1e-12);
        assert!(p > 0.05 && p < 0.12, "{p}");
    }
}
