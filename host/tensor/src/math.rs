//! Scalar functions for both float types, written so that loops over them vectorise.

use crate::dtype::Element;
use crate::lanes::Real as _;

/// Arithmetic common to f32, f64 and i64. Integers wrap on overflow.
pub(crate) trait Number: Element {
    fn plus(self, other: Self) -> Self;
    fn minus(self, other: Self) -> Self;
    fn times(self, other: Self) -> Self;
    fn absolute(self) -> Self;
    /// The larger; NaN if either is NaN.
    fn larger(self, other: Self) -> Self;
    /// The smaller; NaN if either is NaN.
    fn smaller(self, other: Self) -> Self;
}

/// Functions of real numbers.
pub(crate) trait Real:
    Number
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
{
    const ZERO: Self;
    const HALF: Self;
    const ONE: Self;
    fn exp(self) -> Self;
    fn exp_m1(self) -> Self;
    fn ln(self) -> Self;
    fn ln_1p(self) -> Self;
    fn sqrt(self) -> Self;
    fn sin(self) -> Self;
    fn cos(self) -> Self;
    /// Whether the next two may be asked: see [`crate::lanes::Real::easy_angle`].
    fn is_easy_angle(self) -> bool;
    /// The sine of an easy angle, the same bits.
    fn sin_easy(self) -> Self;
    /// The cosine of an easy angle, the same bits.
    fn cos_easy(self) -> Self;
    fn acos(self) -> Self;
    fn tanh(self) -> Self;
    fn erf(self) -> Self;
    /// 1 / (1 + exp(-x)), without overflow.
    #[inline(always)]
    fn sigmoid(self) -> Self {
        // exp(-x) overflows to infinity for very negative x, and the quotient is then 0 as it should be.
        Self::ONE / (Self::ONE + (-self).exp())
    }
}

macro_rules! float_number {
    ($t:ty) => {
        impl Number for $t {
            #[inline(always)]
            fn plus(self, other: $t) -> $t {
                self + other
            }
            #[inline(always)]
            fn minus(self, other: $t) -> $t {
                self - other
            }
            #[inline(always)]
            fn times(self, other: $t) -> $t {
                self * other
            }
            #[inline(always)]
            fn absolute(self) -> $t {
                self.abs()
            }
            #[inline(always)]
            fn larger(self, other: $t) -> $t {
                // The comparison is false where either is NaN; a NaN in `self` then wins, and one in
                // `other` is picked by the second test.
                if self < other || other != other {
                    other
                } else {
                    self
                }
            }
            #[inline(always)]
            fn smaller(self, other: $t) -> $t {
                if other < self || other != other {
                    other
                } else {
                    self
                }
            }
        }
    };
}
float_number!(f32);
float_number!(f64);

impl Number for i64 {
    #[inline(always)]
    fn plus(self, other: i64) -> i64 {
        self.wrapping_add(other)
    }
    #[inline(always)]
    fn minus(self, other: i64) -> i64 {
        self.wrapping_sub(other)
    }
    #[inline(always)]
    fn times(self, other: i64) -> i64 {
        self.wrapping_mul(other)
    }
    #[inline(always)]
    fn absolute(self) -> i64 {
        self.wrapping_abs()
    }
    #[inline(always)]
    fn larger(self, other: i64) -> i64 {
        self.max(other)
    }
    #[inline(always)]
    fn smaller(self, other: i64) -> i64 {
        self.min(other)
    }
}

impl Real for f64 {
    const ZERO: f64 = 0.0;
    const HALF: f64 = 0.5;
    const ONE: f64 = 1.0;
    #[inline(always)]
    fn exp(self) -> f64 {
        self.fast_exp()
    }
    #[inline(always)]
    fn exp_m1(self) -> f64 {
        self.fast_exp_m1()
    }
    #[inline(always)]
    fn ln(self) -> f64 {
        f64::ln(self)
    }
    #[inline(always)]
    fn ln_1p(self) -> f64 {
        f64::ln_1p(self)
    }
    #[inline(always)]
    fn sqrt(self) -> f64 {
        f64::sqrt(self)
    }
    #[inline(always)]
    fn sin(self) -> f64 {
        f64::sin(self)
    }
    #[inline(always)]
    fn cos(self) -> f64 {
        f64::cos(self)
    }
    #[inline(always)]
    fn is_easy_angle(self) -> bool {
        self.easy_angle()
    }
    #[inline(always)]
    fn sin_easy(self) -> Self {
        self.easy_sin()
    }
    #[inline(always)]
    fn cos_easy(self) -> Self {
        self.easy_cos()
    }
    #[inline(always)]
    fn acos(self) -> f64 {
        f64::acos(self)
    }
    #[inline(always)]
    fn tanh(self) -> f64 {
        self.fast_tanh()
    }
    #[inline(always)]
    fn erf(self) -> f64 {
        libm::erf(self)
    }
}

impl Real for f32 {
    const ZERO: f32 = 0.0;
    const HALF: f32 = 0.5;
    const ONE: f32 = 1.0;
    #[inline(always)]
    fn exp(self) -> f32 {
        self.fast_exp()
    }
    #[inline(always)]
    fn exp_m1(self) -> f32 {
        self.fast_exp_m1()
    }
    #[inline(always)]
    fn ln(self) -> f32 {
        crate::lanes::Real::log(self)
    }
    #[inline(always)]
    fn ln_1p(self) -> f32 {
        f32::ln_1p(self)
    }
    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }
    #[inline(always)]
    fn sin(self) -> f32 {
        if self.easy_angle() {
            self.easy_sin()
        } else {
            f32::sin(self)
        }
    }
    #[inline(always)]
    fn cos(self) -> f32 {
        if self.easy_angle() {
            self.easy_cos()
        } else {
            f32::cos(self)
        }
    }
    #[inline(always)]
    fn is_easy_angle(self) -> bool {
        self.easy_angle()
    }
    #[inline(always)]
    fn sin_easy(self) -> Self {
        self.easy_sin()
    }
    #[inline(always)]
    fn cos_easy(self) -> Self {
        self.easy_cos()
    }
    #[inline(always)]
    fn acos(self) -> f32 {
        f32::acos(self)
    }
    #[inline(always)]
    fn tanh(self) -> f32 {
        self.fast_tanh()
    }
    #[inline(always)]
    fn erf(self) -> f32 {
        erf_f32(self)
    }
}

/// The error function in single precision: a polynomial below 475/512, 1 - exp(polynomial) above (after
/// N. Juffa's minimax fits; about 1 unit in the last place with fused arithmetic, 2 as written here).
#[inline(always)]
pub(crate) fn erf_f32(x: f32) -> f32 {
    let t = x.abs();
    let s = x * x;
    let mut r = -1.728_534_7e-5 * t + 3.831_971_3e-4;
    let u = -3.883_964_4e-3 * t + 2.425_462_2e-2;
    r = r * s + u;
    r = r * t - 1.067_778_8e-1;
    r = r * t - 6.348_467e-1;
    r = r * t - 1.287_175_1e-1;
    r = r * t - t;
    // Past t = 4 the result is 1 to the last bit; the bound keeps the polynomial from overflowing.
    let r = if t > 4.0 { -90.0 } else { r };
    let far = (1.0 - r.fast_exp()).copysign(x);
    let mut p = -5.967_617e-4 * s + 4.991_194_2e-3;
    p = p * s - 2.676_813_5e-2;
    p = p * s + 1.128_199_3e-1;
    p = p * s - 3.761_253_4e-1;
    p = p * s + 1.283_791_7e-1;
    let near = p * x + x;
    if t > 0.927_734_4 { far } else { near }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn erf_is_within_two_units_in_the_last_place() {
        for i in -60_000..60_000 {
            let x = i as f32 * 1e-4 + 3e-5;
            let (got, want) = (erf_f32(x), libm::erf(f64::from(x)) as f32);
            let apart = (i64::from(got.to_bits()) - i64::from(want.to_bits())).abs();
            assert!(apart <= 2, "erf({x}) = {got}, expected {want}");
        }
        assert_eq!(erf_f32(0.0), 0.0);
        assert_eq!(erf_f32(f32::INFINITY), 1.0);
        assert_eq!(erf_f32(f32::NEG_INFINITY), -1.0);
        assert!(erf_f32(f32::NAN).is_nan());
    }
}
