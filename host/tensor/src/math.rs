//! Scalar functions for both float types, written so that loops over them vectorise.

use crate::dtype::Element;

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
        f64::exp(self)
    }
    #[inline(always)]
    fn exp_m1(self) -> f64 {
        f64::exp_m1(self)
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
    fn acos(self) -> f64 {
        f64::acos(self)
    }
    #[inline(always)]
    fn tanh(self) -> f64 {
        f64::tanh(self)
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
        exp_f32(self)
    }
    #[inline(always)]
    fn exp_m1(self) -> f32 {
        f32::exp_m1(self)
    }
    #[inline(always)]
    fn ln(self) -> f32 {
        f32::ln(self)
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
        f32::sin(self)
    }
    #[inline(always)]
    fn cos(self) -> f32 {
        f32::cos(self)
    }
    #[inline(always)]
    fn acos(self) -> f32 {
        f32::acos(self)
    }
    #[inline(always)]
    fn tanh(self) -> f32 {
        tanh_f32(self)
    }
    #[inline(always)]
    fn erf(self) -> f32 {
        erf_f32(self)
    }
}

/// exp in single precision: x = n ln 2 + r with |r| <= ln 2 / 2 (two-part ln 2, as in Cephes expf),
/// exp r by a polynomial of degree 6, times 2^n in two steps so that subnormal results are rounded once.
/// At most about 1 unit in the last place from the true value.
#[inline(always)]
pub(crate) fn exp_f32(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, the first with few digits so that n times it is exact.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    // Past these the result is infinity or zero anyway; NaN passes through both comparisons.
    let clamped = if x > 89.0 { 89.0 } else { x };
    let clamped = if clamped < -104.5 { -104.5 } else { clamped };
    let shifted = clamped * LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.987_569_1e-4_f32;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let e = (p * r) * r + r + 1.0;
    // 2^n as a product of two powers that are both normal numbers.
    // The low bits of `shifted` are n: cheaper than a conversion, and garbage for NaN does no harm below.
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let power = |k: i32| f32::from_bits((k.wrapping_add(127) << 23) as u32);
    e * power(half) * power(n.wrapping_sub(half))
}

/// tanh in single precision: an odd polynomial up to 0.625 (Cephes tanhf), 1 - 2 / (exp 2|x| + 1) above.
/// About 2 units in the last place.
#[inline(always)]
pub(crate) fn tanh_f32(x: f32) -> f32 {
    let a = x.abs();
    let z = x * x;
    let mut p = -5.704_988_7e-3 * z + 2.063_909e-2;
    p = p * z - 5.373_971_6e-2;
    p = p * z + 1.333_144_2e-1;
    p = p * z - 3.333_328e-1;
    let near = (p * z) * x + x;
    let far = (1.0 - 2.0 / (exp_f32(a + a) + 1.0)).copysign(x);
    if a < 0.625 { near } else { far }
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
    let far = (1.0 - exp_f32(r)).copysign(x);
    let mut p = -5.967_617e-4 * s + 4.991_194_2e-3;
    p = p * s - 2.676_813_5e-2;
    p = p * s + 1.128_199_3e-1;
    p = p * s - 3.761_253_4e-1;
    p = p * s + 1.283_791_7e-1;
    let near = p * x + x;
    if t > 0.927_734_4 { far } else { near }
}
