//! Vector code for the processor at hand, and the few functions that a vectoriser cannot take from libm.
//!
//! [`simd_fn!`] compiles one generic body three times (baseline, AVX2, AVX-512) and picks at run time.
//! No multiplication is ever fused with an addition here, so that the three give the same bits: what a
//! run computes does not depend on the machine's vector width.

use std::ops::{Add, AddAssign, Div, DivAssign, Mul, MulAssign, Neg, Sub, SubAssign};

/// The floating-point numbers that kernels are written for: `f32` and `f64`.
pub(crate) trait Real:
    Copy
    + Send
    + Sync
    + Default
    + PartialOrd
    + std::fmt::Debug
    + 'static
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
{
    const ZERO: Self;
    const ONE: Self;
    const NEG_INFINITY: Self;

    /// The nearest value of this type.
    fn of(value: f64) -> Self;
    fn to_f64(self) -> f64;
    /// The square root, correctly rounded.
    fn root(self) -> Self;
    /// e^x to within 2 units in the last place; exact at 0 and the infinities, NaN for NaN. Vectorises.
    fn fast_exp(self) -> Self;
    /// [`fast_exp`](Self::fast_exp), bit for bit, of numbers up to 40: in softmax none is above 0.
    fn fast_exp_low(self) -> Self;
    /// tanh to within 6 units in the last place for f32 (one number in two hundred is off by more than one), 2 for f64;
    /// NaN for NaN, never beyond 1. Vectorises.
    fn fast_tanh(self) -> Self;
    /// e^x - 1, for f32 to within 3 units in the last place, where it vectorises.
    fn fast_exp_m1(self) -> Self;
    /// The sine of [easy](Self::easy_angle) radians, to within 2 units in the last place for f32, where it vectorises.
    fn easy_sin(self) -> Self;
    /// The cosine of [easy](Self::easy_angle) radians, to within 2 units in the last place for f32, where it
    /// vectorises.
    fn easy_cos(self) -> Self;
    /// Whether [`easy_sin`](Self::easy_sin) may be asked: for f32, up to 2^20 radians; for f64, always.
    fn easy_angle(self) -> bool;
    /// The natural logarithm: -inf at 0, NaN below, inf at inf. To within 2 units in the last place for f32, where
    /// it vectorises.
    fn log(self) -> Self;

    /// 1 / (1 + e^-x). Vectorises.
    #[inline(always)]
    fn fast_sigmoid(self) -> Self {
        Self::ONE / (Self::ONE + (-self).fast_exp())
    }

    /// The larger of the two; `self` where the two are equal, NaN where either is NaN.
    #[inline(always)]
    fn larger(self, other: Self) -> Self {
        #[allow(clippy::eq_op)]
        if self >= other || self != self {
            self
        } else {
            other
        }
    }
}

/// Cephes `expf` in parts: x = n ln 2 + r; gives e^r - 1, from a polynomial in r, and n.
#[inline(always)]
fn exp_parts(x: f32) -> (f32, i32) {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x - n * 0.693_359_4 - n * -2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let y = p * (r * r) + r;
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    (y, n)
}

/// x = n pi/2 + r; gives sin r, cos r (Cephes `sinf`, `cosf`) and n. The reduction is done in f64, pi/2 in two parts
/// of which the first has 33 bits, so that its product with n is exact.
#[inline(always)]
fn turned(x: f32) -> (f32, f32, i32) {
    const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52
    let x = f64::from(x);
    let shifted = x * std::f64::consts::FRAC_2_PI + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * 1.570_796_326_734_125_6 - n * 6.077_100_506_506_192e-11) as f32;
    let z = r * r;
    let p = (-1.951_529_6e-4 * z + 8.332_161e-3) * z - 1.666_665_5e-1;
    let q = (2.443_315_8e-5 * z - 1.388_731_6e-3) * z + 4.166_664_6e-2;
    (
        p * z * r + r,
        q * (z * z) + (1.0 - 0.5 * z),
        shifted.to_bits() as i32,
    )
}

impl Real for f32 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f32::NEG_INFINITY;

    #[inline(always)]
    fn of(value: f64) -> Self {
        value as f32
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn root(self) -> Self {
        self.sqrt()
    }
    // Scaled by 2^n in two steps, so that results below the normal range are reached without a branch.
    #[inline(always)]
    fn fast_exp(self) -> Self {
        let x = if self > 89.0 { 89.0 } else { self };
        let x = if x < -104.0 { -104.0 } else { x };
        let (y, n) = exp_parts(x);
        let half = n >> 1;
        let low = f32::from_bits((half.wrapping_add(127) as u32) << 23);
        let high = f32::from_bits((n.wrapping_sub(half).wrapping_add(127) as u32) << 23);
        (y + 1.0) * low * high
    }
    // 2^(n + 64) is in range for every n here and the first product exact, so that the second rounds once.
    #[inline(always)]
    fn fast_exp_low(self) -> Self {
        const DOWN: f32 = 5.421_011e-20; // 2^-64
        let (y, n) = exp_parts(if self < -104.0 { -104.0 } else { self });
        (y + 1.0) * f32::from_bits((n.wrapping_add(127 + 64) as u32) << 23) * DOWN
    }
    // x P(x^2) / Q(x^2), of degrees 4 and 4, with the least relative error below 9.02 (fitted by reweighted least
    // squares, 2.2e-8); rounding makes up the rest of the bound. Past 9 the result is 1 to the last bit or nearly.
    #[inline(always)]
    fn fast_tanh(self) -> Self {
        const P: [f32; 4] = [
            1.338_268_6e-1,
            3.497_456_7e-3,
            2.063_580_5e-5,
            1.338_426_4e-8,
        ];
        const Q: [f32; 4] = [4.671_600_7e-1, 2.588_435_7e-2, 3.288_515_7e-4, 7.790_239e-7];
        // Here the quotient is above 1, so that everything from here on becomes 1.
        const END: f32 = 9.299_996;
        let a = self.abs();
        let a = if a > END { END } else { a };
        let z = a * a;
        let p = (((P[3] * z + P[2]) * z + P[1]) * z + P[0]) * z + 1.0;
        let q = (((Q[3] * z + Q[2]) * z + Q[1]) * z + Q[0]) * z + 1.0;
        let y = a * p / q;
        (if y > 1.0 { 1.0 } else { y }).copysign(self)
    }
    // 2^n (e^r - 1) + (2^n - 1) is exact to rounding near 0, where n = 0. 2^128 is twice 2^127.
    #[inline(always)]
    fn fast_exp_m1(self) -> Self {
        let x = if self > 89.0 { 89.0 } else { self };
        let (y, n) = exp_parts(if x < -40.0 { -40.0 } else { x });
        let top = n > 127;
        let scale = f32::from_bits((n.wrapping_add(if top { 126 } else { 127 }) as u32) << 23);
        let m = scale * y + (scale - 1.0);
        // -0 is -0.
        (m * if top { 2.0 } else { 1.0 }).copysign(self)
    }
    #[inline(always)]
    fn easy_sin(self) -> Self {
        let (sin, cos, quarter) = turned(self);
        let y = if quarter & 1 == 0 { sin } else { cos };
        let y = if quarter & 2 == 0 { y } else { -y };
        if self == 0.0 { self } else { y }
    }
    #[inline(always)]
    fn easy_cos(self) -> Self {
        let (sin, cos, quarter) = turned(self);
        let y = if quarter & 1 == 0 { cos } else { sin };
        if (quarter + 1) & 2 == 0 { y } else { -y }
    }
    #[inline(always)]
    fn easy_angle(self) -> bool {
        self.abs() <= 1_048_576.0
    }
    // Cephes `logf`: x = m 2^e with m in [sqrt(1/2), sqrt(2)), a polynomial in m - 1. Numbers below the normal
    // range are scaled up first.
    #[inline(always)]
    fn log(self) -> Self {
        const ROOT_HALF: i32 = 0x3F35_04F3;
        let tiny = self < f32::MIN_POSITIVE;
        let x = if tiny { self * 8_388_608.0 } else { self }; // 2^23
        let bits = x.to_bits() as i32;
        let e = bits.wrapping_sub(ROOT_HALF) >> 23;
        let f = f32::from_bits(bits.wrapping_sub(e << 23) as u32) - 1.0;
        let e = e as f32 - if tiny { 23.0 } else { 0.0 };
        let z = f * f;
        let mut p = 7.037_683_6e-2;
        p = p * f - 1.151_461e-1;
        p = p * f + 1.167_699_9e-1;
        p = p * f - 1.242_014_1e-1;
        p = p * f + 1.424_932_3e-1;
        p = p * f - 1.666_805_8e-1;
        p = p * f + 2.000_071_5e-1;
        p = p * f - 2.499_999_4e-1;
        p = p * f + 3.333_333e-1;
        let y = p * f * z - e * 2.121_944_4e-4 - 0.5 * z;
        let log = f + y + e * 0.693_359_4;
        let log = if self == f32::INFINITY { self } else { log };
        let log = if self == 0.0 { f32::NEG_INFINITY } else { log };
        if self >= 0.0 { log } else { f32::NAN }
    }
}

impl Real for f64 {
    const ZERO: Self = 0.0;
    const ONE: Self = 1.0;
    const NEG_INFINITY: Self = f64::NEG_INFINITY;

    #[inline(always)]
    fn of(value: f64) -> Self {
        value
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn root(self) -> Self {
        self.sqrt()
    }
    // Cephes `exp`: as for f32, with a rational function of r.
    #[inline(always)]
    fn fast_exp(self) -> Self {
        const ROUND: f64 = 6_755_399_441_055_744.0; // 1.5 * 2^52
        let x = if self > 710.0 { 710.0 } else { self };
        let x = if x < -746.0 { -746.0 } else { x };
        let shifted = x * std::f64::consts::LOG2_E + ROUND;
        let n = shifted - ROUND;
        let r = x - n * 6.931_457_519_531_25e-1 - n * 1.428_606_820_309_417_2e-6;
        let z = r * r;
        let p = r * ((1.261_771_930_748_105_8e-4 * z + 3.029_944_077_074_419_5e-2) * z + 1.0);
        let q = ((3.001_985_051_386_644_7e-6 * z + 2.524_483_403_496_841e-3) * z
            + 2.272_655_482_081_550_3e-1)
            * z
            + 2.0;
        let y = 1.0 + 2.0 * (p / (q - p));
        let n = (shifted.to_bits() as i64).wrapping_sub(ROUND.to_bits() as i64);
        let half = n >> 1;
        let low = f64::from_bits((half.wrapping_add(1023) as u64) << 52);
        let high = f64::from_bits((n.wrapping_sub(half).wrapping_add(1023) as u64) << 52);
        y * low * high
    }
    #[inline(always)]
    fn fast_exp_low(self) -> Self {
        self.fast_exp()
    }
    // Cephes `tanh`.
    #[inline(always)]
    fn fast_tanh(self) -> Self {
        let z = self * self;
        let p = (-9.643_991_794_250_523e-1 * z - 9.928_772_310_019_185e1) * z
            - 1.614_687_684_417_084_5e3;
        let q = ((z + 1.128_116_784_916_329_3e2) * z + 2.235_488_390_601_004_4e3) * z
            + 4.844_063_053_251_255e3;
        let small = self + self * z * (p / q);
        let a = self.abs();
        let large = (1.0 - 2.0 / ((a + a).fast_exp() + 1.0)).copysign(self);
        if a < 0.625 { small } else { large }
    }
    #[inline(always)]
    fn log(self) -> Self {
        self.ln()
    }
    #[inline(always)]
    fn fast_exp_m1(self) -> Self {
        self.exp_m1()
    }
    #[inline(always)]
    fn easy_sin(self) -> Self {
        self.sin()
    }
    #[inline(always)]
    fn easy_cos(self) -> Self {
        self.cos()
    }
    #[inline(always)]
    fn easy_angle(self) -> bool {
        true
    }
}

/// Which of the three compiled bodies this processor runs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    Baseline,
}

/// The widest body that this processor can run (the standard library caches the detection).
#[inline(always)]
pub(crate) fn level() -> Level {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f")
            && std::arch::is_x86_feature_detected!("avx512bw")
            && std::arch::is_x86_feature_detected!("avx512dq")
            && std::arch::is_x86_feature_detected!("avx512vl")
        {
            return Level::Avx512;
        }
        if std::arch::is_x86_feature_detected!("avx2") {
            return Level::Avx2;
        }
    }
    Level::Baseline
}

/// Defines a function generic over [`Real`] whose body is compiled for each vector width.
macro_rules! simd_fn {
    ($(#[$meta:meta])* $vis:vis fn $name:ident<$t:ident>($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        #[allow(unsafe_code, clippy::too_many_arguments)]
        $vis fn $name<$t: $crate::lanes::Real>($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<$t: $crate::lanes::Real>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
            fn avx512<$t: $crate::lanes::Real>($($arg: $ty),*) $(-> $ret)? {
                body($($arg),*)
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            fn avx2<$t: $crate::lanes::Real>($($arg: $ty),*) $(-> $ret)? {
                body($($arg),*)
            }
            match $crate::lanes::level() {
                // SAFETY: `level` has just seen that this processor has the features asked for.
                #[cfg(target_arch = "x86_64")]
                $crate::lanes::Level::Avx512 => unsafe { avx512($($arg),*) },
                // SAFETY: as above.
                #[cfg(target_arch = "x86_64")]
                $crate::lanes::Level::Avx2 => unsafe { avx2($($arg),*) },
                $crate::lanes::Level::Baseline => body($($arg),*),
            }
        }
    };
}
pub(crate) use simd_fn;

/// Lanes of the fixed-order reductions: sixteen running results that are folded at the end, so that
/// the order of additions is the same on every machine.
pub(crate) const LANES: usize = 16;

/// Folds lane results pairwise, in a fixed order.
#[inline(always)]
pub(crate) fn fold<T: Copy>(mut lanes: [T; LANES], f: impl Fn(T, T) -> T) -> T {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// Lanes of a long reduction: four groups of sixteen, so that no addition waits for the one before it.
const WIDE: usize = 4 * LANES;

/// The sum of `f` over a slice. Sixty-four running sums while there are as many elements, joined to sixteen,
/// then sixteen: an order that depends on the length alone.
#[inline(always)]
pub(crate) fn sum_with<T: Real>(x: &[T], f: impl Fn(T) -> T) -> T {
    let (wide, rest) = x.as_chunks::<WIDE>();
    let mut sums = [T::ZERO; WIDE];
    for x in wide {
        for (sum, &x) in sums.iter_mut().zip(x) {
            *sum += f(x);
        }
    }
    let mut lanes = join(&sums);
    let (groups, rest) = rest.as_chunks::<LANES>();
    for x in groups {
        for (lane, &x) in lanes.iter_mut().zip(x) {
            *lane += f(x);
        }
    }
    for (lane, &x) in lanes.iter_mut().zip(rest) {
        *lane += f(x);
    }
    fold(lanes, |a, b| a + b)
}

/// The sum of `f` over two slices side by side, of the shorter one's length, in the order of [`sum_with`].
#[inline(always)]
pub(crate) fn sum_pairs<T: Real>(x: &[T], y: &[T], f: impl Fn(T, T) -> T) -> T {
    let n = x.len().min(y.len());
    let ((wide_x, x), (wide_y, y)) = (x[..n].as_chunks::<WIDE>(), y[..n].as_chunks::<WIDE>());
    let mut sums = [T::ZERO; WIDE];
    for (x, y) in wide_x.iter().zip(wide_y) {
        for i in 0..WIDE {
            sums[i] += f(x[i], y[i]);
        }
    }
    let mut lanes = join(&sums);
    let ((groups_x, x), (groups_y, y)) = (x.as_chunks::<LANES>(), y.as_chunks::<LANES>());
    for (x, y) in groups_x.iter().zip(groups_y) {
        for i in 0..LANES {
            lanes[i] += f(x[i], y[i]);
        }
    }
    for (lane, (&x, &y)) in lanes.iter_mut().zip(x.iter().zip(y)) {
        *lane += f(x, y);
    }
    fold(lanes, |a, b| a + b)
}

/// Writes `f` of each element of `x` to `y`; the sum of what was written, in the order of [`sum_with`].
#[inline(always)]
pub(crate) fn map_sum_to<T: Real>(x: &[T], y: &mut [T], f: impl Fn(T) -> T) -> T {
    let n = x.len().min(y.len());
    let (wide_x, x) = x[..n].as_chunks::<WIDE>();
    let (wide_y, y) = y[..n].as_chunks_mut::<WIDE>();
    let mut sums = [T::ZERO; WIDE];
    for (x, y) in wide_x.iter().zip(wide_y) {
        for i in 0..WIDE {
            y[i] = f(x[i]);
            sums[i] += y[i];
        }
    }
    let mut lanes = join(&sums);
    let (groups_x, x) = x.as_chunks::<LANES>();
    let (groups_y, y) = y.as_chunks_mut::<LANES>();
    for (x, y) in groups_x.iter().zip(groups_y) {
        for i in 0..LANES {
            y[i] = f(x[i]);
            lanes[i] += y[i];
        }
    }
    for ((lane, &x), y) in lanes.iter_mut().zip(x).zip(y) {
        *y = f(x);
        *lane += *y;
    }
    fold(lanes, |a, b| a + b)
}

/// Replaces each element by `f` of it; the sum of the results, in the order of [`sum_with`].
#[inline(always)]
pub(crate) fn map_sum<T: Real>(x: &mut [T], f: impl Fn(T) -> T) -> T {
    let (wide, rest) = x.as_chunks_mut::<WIDE>();
    let mut sums = [T::ZERO; WIDE];
    for x in wide {
        for (sum, x) in sums.iter_mut().zip(x) {
            *x = f(*x);
            *sum += *x;
        }
    }
    let mut lanes = join(&sums);
    let (groups, rest) = rest.as_chunks_mut::<LANES>();
    for x in groups {
        for (lane, x) in lanes.iter_mut().zip(x) {
            *x = f(*x);
            *lane += *x;
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *x = f(*x);
        *lane += *x;
    }
    fold(lanes, |a, b| a + b)
}

/// Four groups of lanes as one.
#[inline(always)]
fn join<T: Real>(sums: &[T; WIDE]) -> [T; LANES] {
    std::array::from_fn(|i| {
        (sums[i] + sums[i + LANES]) + (sums[i + 2 * LANES] + sums[i + 3 * LANES])
    })
}

/// The largest element, NaN if any is NaN, -inf if there is none.
#[inline(always)]
pub(crate) fn max_of<T: Real>(x: &[T]) -> T {
    let (wide, rest) = x.as_chunks::<WIDE>();
    let mut largest = [T::NEG_INFINITY; WIDE];
    for x in wide {
        for (max, &v) in largest.iter_mut().zip(x) {
            *max = max.larger(v);
        }
    }
    for (max, &v) in largest.iter_mut().zip(rest) {
        *max = max.larger(v);
    }
    let lanes = std::array::from_fn(|i| {
        let pair = |i: usize| largest[i].larger(largest[i + LANES]);
        pair(i).larger(pair(i + 2 * LANES))
    });
    fold(lanes, |a, b| a.larger(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ulps32(a: f32, b: f32) -> i64 {
        (i64::from(a.to_bits() as i32) - i64::from(b.to_bits() as i32)).abs()
    }

    #[test]
    fn exp_is_within_two_ulps_of_libm() {
        for i in -8700..8800 {
            let x = i as f32 * 0.01 + 0.003;
            assert!(
                ulps32(x.fast_exp(), f64::from(x).exp() as f32) <= 2,
                "f32 exp({x})"
            );
        }
        for i in -7000..7000 {
            let x = f64::from(i) * 0.1 + 0.0037;
            let (got, want) = (x.fast_exp(), x.exp());
            assert!(
                ((got - want) / want).abs() < 5e-16,
                "f64 exp({x}): {got} {want}"
            );
        }
    }

    #[test]
    fn exp_of_low_numbers_has_the_bits_of_exp() {
        let below = (0..f32::INFINITY.to_bits())
            .step_by(499)
            .map(|bits| -f32::from_bits(bits));
        let above = (0..4000).map(|i| i as f32 * 0.01);
        for x in below.chain(above).chain([f32::NEG_INFINITY, -103.9, -87.4]) {
            assert_eq!(
                x.fast_exp_low().to_bits(),
                x.fast_exp().to_bits(),
                "exp({x})"
            );
        }
        assert!(f32::NAN.fast_exp_low().is_nan());
    }

    #[test]
    fn exp_meets_the_special_values() {
        assert_eq!(0f32.fast_exp(), 1.0);
        assert_eq!(f32::INFINITY.fast_exp(), f32::INFINITY);
        assert_eq!(f32::NEG_INFINITY.fast_exp(), 0.0);
        assert!(f32::NAN.fast_exp().is_nan());
        assert_eq!(0f64.fast_exp(), 1.0);
        assert_eq!(f64::INFINITY.fast_exp(), f64::INFINITY);
        assert_eq!(f64::NEG_INFINITY.fast_exp(), 0.0);
        assert!(f64::NAN.fast_exp().is_nan());
        assert_eq!(1000f64.fast_exp(), f64::INFINITY);
        assert!(
            (-100f32).fast_exp() > 0.0,
            "results below the normal range are kept"
        );
    }

    #[test]
    fn log_is_within_two_ulps_of_libm() {
        // Every 1009th number above 0, those below the normal range included.
        for bits in (1..f32::INFINITY.to_bits()).step_by(1009) {
            let x = f32::from_bits(bits);
            let want = f64::from(x).ln() as f32;
            assert!(ulps32(Real::log(x), want) <= 2, "f32 log({x})");
        }
        for step in -20_000..20_000 {
            let x = 1.0 + step as f32 * 1e-5;
            let want = f64::from(x).ln() as f32;
            assert!(ulps32(Real::log(x), want) <= 2, "f32 log({x})");
        }
        assert_eq!(Real::log(1f32), 0.0);
        assert_eq!(Real::log(0f32), f32::NEG_INFINITY);
        assert_eq!(Real::log(-0f32), f32::NEG_INFINITY);
        assert_eq!(Real::log(f32::INFINITY), f32::INFINITY);
        assert!(Real::log(-1f32).is_nan() && Real::log(f32::NAN).is_nan());
        assert!(Real::log(f32::NEG_INFINITY).is_nan());
    }

    #[test]
    fn tanh_agrees_with_libm() {
        for i in -2000..2000 {
            let x = f64::from(i) * 0.01 + 0.0013;
            assert!(
                ((x.fast_tanh() - x.tanh()) / x.tanh()).abs() < 5e-16,
                "f64 tanh({x})"
            );
        }
        for bits in (0..f32::INFINITY.to_bits()).step_by(997) {
            let x = f32::from_bits(bits);
            let want = f64::from(x).tanh() as f32;
            assert!(ulps32(x.fast_tanh(), want) <= 6, "f32 tanh({x})");
            assert!(x.fast_tanh() <= 1.0, "f32 tanh({x})");
            assert_eq!((-x).fast_tanh(), -x.fast_tanh());
        }
        assert!(f32::NAN.fast_tanh().is_nan() && f64::NAN.fast_tanh().is_nan());
        assert_eq!(f64::INFINITY.fast_tanh(), 1.0);
        assert_eq!(f32::NEG_INFINITY.fast_tanh(), -1.0);
    }

    /// The largest distance in units in the last place from `exact`, over every `step`-th f32 that is asked for; NaN
    /// must meet NaN.
    fn farthest(
        step: usize,
        asked: impl Fn(f32) -> bool,
        fast: impl Fn(f32) -> f32,
        exact: impl Fn(f64) -> f64,
    ) -> (i64, f32) {
        let line = |x: f32| match x.to_bits() as i32 {
            below if below < 0 => i64::from(i32::MIN) - i64::from(below),
            bits => i64::from(bits),
        };
        let mut worst = (0, 0.0);
        for bits in (0..=u32::MAX).step_by(step) {
            let x = f32::from_bits(bits);
            if asked(x) {
                let (got, want) = (fast(x), exact(f64::from(x)) as f32);
                assert_eq!(got.is_nan(), want.is_nan(), "{x}: {got}, expected {want}");
                let apart = (line(got) - line(want)).abs();
                if !want.is_nan() && apart > worst.0 {
                    worst = (apart, x);
                }
            }
        }
        worst
    }

    fn meets_its_bounds(step: usize) {
        let any = |_: f32| true;
        let easy = |x: f32| x.easy_angle();
        let found = [
            farthest(step, any, |x| x.fast_exp(), f64::exp),
            farthest(step, any, |x| x.fast_exp_m1(), f64::exp_m1),
            farthest(step, any, |x| x.fast_tanh(), f64::tanh),
            farthest(step, any, Real::log, f64::ln),
            farthest(step, easy, |x| x.easy_sin(), f64::sin),
            farthest(step, easy, |x| x.easy_cos(), f64::cos),
            farthest(step, any, crate::math::erf_f32, libm::erf),
        ];
        let names = ["exp", "expm1", "tanh", "log", "sin", "cos", "erf"];
        for ((name, (apart, x)), bound) in names.iter().zip(found).zip([2, 3, 6, 2, 2, 2, 2]) {
            println!("{name}: {apart} units at {x}");
            assert!(
                apart <= bound,
                "{name}({x}) is off by {apart} units, more than {bound}"
            );
        }
    }

    #[test]
    fn functions_meet_their_bounds_at_every_four_thousandth_number() {
        meets_its_bounds(4093);
    }

    #[test]
    #[ignore = "every f32 there is, for seven functions: ten minutes"]
    fn functions_meet_their_bounds_everywhere() {
        meets_its_bounds(1);
    }

    #[test]
    fn special_values_of_the_fast_functions() {
        for x in [0.0f32, -0.0, 1e-45, -1e-45, 1e-38] {
            for y in [x.fast_exp_m1(), x.easy_sin(), x.fast_tanh()] {
                assert_eq!(y.to_bits(), x.to_bits(), "of {x}");
            }
        }
        assert_eq!(f32::INFINITY.fast_exp_m1(), f32::INFINITY);
        assert_eq!(f32::NEG_INFINITY.fast_exp_m1(), -1.0);
        assert!(f32::NAN.fast_exp_m1().is_nan());
        for x in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 1e9] {
            assert!(!x.easy_angle(), "{x} goes the long way");
        }
    }

    #[test]
    fn the_largest_of_nothing_is_minus_infinity_and_nan_wins() {
        assert_eq!(max_of::<f32>(&[]), f32::NEG_INFINITY);
        assert_eq!(max_of(&[1.0, 3.0, 2.0]), 3.0);
        let mut long = vec![0.0; 40];
        long[33] = f32::NAN;
        assert!(max_of(&long).is_nan());
    }

    #[test]
    fn lane_sums_cover_every_element() {
        for n in 0..300 {
            let mut x: Vec<f64> = (0..n).map(f64::from).collect();
            let want = f64::from(n * (n - 1).max(0) / 2);
            assert_eq!(sum_with(&x, |x| x), want);
            assert_eq!(
                sum_pairs(&x, &vec![2.0; n as usize], |x, y| x * y),
                2.0 * want
            );
            let mut y = x.clone();
            assert_eq!(map_sum_to(&x, &mut y, |x| 2.0 * x), 2.0 * want);
            assert_eq!(sum_with(&y, |y| y), 2.0 * want);
            assert_eq!(map_sum(&mut x, |x| 3.0 * x), 3.0 * want);
            assert_eq!(sum_with(&x, |x| x), 3.0 * want, "the results are kept");
            assert_eq!(
                max_of(&x),
                if n == 0 {
                    f64::NEG_INFINITY
                } else {
                    f64::from(3 * (n - 1))
                }
            );
        }
    }
}
