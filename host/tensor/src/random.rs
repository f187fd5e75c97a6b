//! Random numbers as a pure function of a key: Philox 4x32-10 in counter mode.
//!
//! Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3". There is no stream
//! that a resumed run could lose: the same key gives the same numbers, in any order, on any number of
//! threads, and on another device. Nothing here calls libm, so that the numbers are the same bits on
//! every machine.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::lanes::simd_fn;
use crate::tensor::Tensor;
use crate::threads::for_blocks;

/// What names a sequence of random numbers.
///
/// Made from any list of words. The list is absorbed word by word into a 128-bit state `s`, which
/// starts from the list's length: `s = philox(counter = s, key = word) xor s` (a Davies-Meyer hash with
/// Philox as its cipher). Half of the state becomes Philox's key, the other half the upper half of its
/// counter; the lower half of the counter numbers the blocks. So two different lists, of one length or of
/// two, share a sequence with a probability of about 2^-128.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    key: [u32; 2],
    high: [u32; 2],
}

impl Key {
    /// The key of a list of words, such as seed, step and parameter number. An empty list is a key too.
    pub fn new(words: &[u64]) -> Key {
        let length = words.len() as u64;
        // "espalier" in ASCII keeps the start apart from counters that a user of plain Philox would use.
        let mut state = [
            length as u32,
            (length >> 32) as u32,
            0x6573_7061,
            0x6c69_6572,
        ];
        for &word in words {
            let mixed = philox(state, [word as u32, (word >> 32) as u32]);
            for (s, m) in state.iter_mut().zip(mixed) {
                *s ^= m;
            }
        }
        // One more round without a word: a list is not a prefix of the state of a longer one.
        let last = philox(state, [0x9E37_79B9, 0xBB67_AE85]);
        for (s, m) in state.iter_mut().zip(last) {
            *s ^= m;
        }
        Key {
            key: [state[0], state[1]],
            high: [state[2], state[3]],
        }
    }
}

const MULTIPLIER: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// One block: ten rounds of Philox 4x32.
fn philox(mut c: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(MULTIPLIER[0]) * u64::from(c[0]);
        let b = u64::from(MULTIPLIER[1]) * u64::from(c[2]);
        c = [
            (b >> 32) as u32 ^ c[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ c[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    c
}

/// Blocks computed side by side.
const WIDE: usize = 16;
/// 32-bit words per piece of work: a fixed number, so that the split never shows in the result.
const PIECE: usize = 4096;

// The type parameter only satisfies the macro: words are integers.
simd_fn! {
    /// Fills `out` with the words of blocks `first..` of a key; the last block may be cut short.
    fn fill_words<T>(key: &Key, first: u64, out: &mut [u32], _kind: std::marker::PhantomData<T>) {
        for (index, group) in out.chunks_mut(4 * WIDE).enumerate() {
            let mut c0 = [0u32; WIDE];
            let mut c1 = [0u32; WIDE];
            let mut c2 = [key.high[0]; WIDE];
            let mut c3 = [key.high[1]; WIDE];
            for lane in 0..WIDE {
                let block = first.wrapping_add((index * WIDE + lane) as u64);
                c0[lane] = block as u32;
                c1[lane] = (block >> 32) as u32;
            }
            let mut k = key.key;
            for _ in 0..10 {
                for lane in 0..WIDE {
                    let a = u64::from(MULTIPLIER[0]) * u64::from(c0[lane]);
                    let b = u64::from(MULTIPLIER[1]) * u64::from(c2[lane]);
                    c0[lane] = (b >> 32) as u32 ^ c1[lane] ^ k[0];
                    c1[lane] = b as u32;
                    c2[lane] = (a >> 32) as u32 ^ c3[lane] ^ k[1];
                    c3[lane] = a as u32;
                }
                k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
            }
            let mut words = [0u32; 4 * WIDE];
            for lane in 0..WIDE {
                words[4 * lane] = c0[lane];
                words[4 * lane + 1] = c1[lane];
                words[4 * lane + 2] = c2[lane];
                words[4 * lane + 3] = c3[lane];
            }
            let n = group.len();
            group.copy_from_slice(&words[..n]);
        }
    }
}

/// Runs `convert(words, out)` over `out` in pieces, each with `per` words for every output element.
fn fill<T: Send>(key: &Key, out: &mut [T], per: usize, convert: impl Fn(&[u32], &mut [T]) + Sync) {
    let step = PIECE / per;
    // Ten rounds of multiplications, and perhaps a logarithm: an element is worth eight ordinary ones.
    let total = 8 * out.len();
    for_blocks(out, step, total, |at, piece| {
        let mut words = [0u32; PIECE];
        let first = (at / step * PIECE / 4) as u64;
        // Box-Muller takes pairs, so an odd end still draws a whole block.
        let used = (piece.len() * per).next_multiple_of(4).min(PIECE);
        fill_words(
            key,
            first,
            &mut words[..used],
            std::marker::PhantomData::<f32>,
        );
        convert(&words[..used], piece);
    });
}

/// `n` words of 64 bits, every value equally likely.
pub fn bits(key: &Key, n: usize) -> Vec<u64> {
    let mut out = vec![0u64; n];
    fill(key, &mut out, 2, |words, piece| {
        for (value, pair) in piece.iter_mut().zip(words.chunks_exact(2)) {
            *value = u64::from(pair[0]) | u64::from(pair[1]) << 32;
        }
    });
    out
}

/// Numbers uniform on [0, 1), a function of `key` alone: 24 random bits each for f32, 53 for f64.
///
/// # Errors
/// [`Error::DType`] for integers and truth values, [`Error::Size`], [`Error::Budget`].
pub fn uniform(key: &Key, shape: &[usize], dtype: DType) -> Result<Tensor> {
    const OP: &str = "uniform";
    match dtype {
        DType::F32 => Tensor::build_unset::<f32>(OP, shape, |out| fill_uniform_f32(key, out)),
        DType::F64 => Tensor::build_unset::<f64>(OP, shape, |out| fill_uniform_f64(key, out)),
        other => Err(refused(OP, other)),
    }
}

/// Element `index` of the f64 sequence that [`uniform`] gives for `key`, by itself.
pub fn uniform_at(key: &Key, index: u64) -> f64 {
    let block = index / 2;
    let counter = [block as u32, (block >> 32) as u32, key.high[0], key.high[1]];
    let words = philox(counter, key.key);
    let half = (index % 2) as usize * 2;
    fraction(words[half], words[half + 1])
}

/// Standard normal numbers (mean 0, variance 1), a function of `key` alone.
///
/// # Errors
/// As [`uniform`].
pub fn normal(key: &Key, shape: &[usize], dtype: DType) -> Result<Tensor> {
    const OP: &str = "normal";
    match dtype {
        DType::F32 => Tensor::build_unset::<f32>(OP, shape, |out| fill_normal_f32(key, out)),
        DType::F64 => Tensor::build_unset::<f64>(OP, shape, |out| fill_normal_f64(key, out)),
        other => Err(refused(OP, other)),
    }
}

fn refused(op: &'static str, dtype: DType) -> Error {
    Error::DType {
        op,
        found: vec![dtype],
        expected: "f32 or f64; cast with astype",
    }
}

/// `kept` with probability 1 - p, else 0, each from 32 random bits.
pub(crate) fn fill_keep_f32(key: &Key, p: f64, kept: f64, out: &mut [f32]) {
    let (threshold, kept) = ((p * 4_294_967_296.0) as u32, kept as f32);
    fill(key, out, 1, |words, piece| {
        for (value, &word) in piece.iter_mut().zip(words) {
            *value = if word >= threshold { kept } else { 0.0 };
        }
    });
}

/// As [`fill_keep_f32`]; the same elements fall.
pub(crate) fn fill_keep_f64(key: &Key, p: f64, kept: f64, out: &mut [f64]) {
    let threshold = (p * 4_294_967_296.0) as u32;
    fill(key, out, 1, |words, piece| {
        for (value, &word) in piece.iter_mut().zip(words) {
            *value = if word >= threshold { kept } else { 0.0 };
        }
    });
}

/// Uniform on [0, 1): the upper 24 bits of a word each.
pub(crate) fn fill_uniform_f32(key: &Key, out: &mut [f32]) {
    fill(key, out, 1, |words, piece| {
        for (value, &word) in piece.iter_mut().zip(words) {
            *value = (word >> 8) as f32 * (1.0 / 16_777_216.0);
        }
    });
}

/// Uniform on [0, 1): the upper 53 bits of two words each.
pub(crate) fn fill_uniform_f64(key: &Key, out: &mut [f64]) {
    fill(key, out, 2, |words, piece| {
        for (value, pair) in piece.iter_mut().zip(words.chunks_exact(2)) {
            *value = fraction(pair[0], pair[1]);
        }
    });
}

#[inline(always)]
fn fraction(low: u32, high: u32) -> f64 {
    ((u64::from(low) | u64::from(high) << 32) >> 11) as f64 * (1.0 / 9_007_199_254_740_992.0)
}

/// Standard normal, by Box and Muller: two words make two numbers. Computed in f64 and rounded.
pub(crate) fn fill_normal_f32(key: &Key, out: &mut [f32]) {
    fill(key, out, 1, |words, piece| {
        let mut normals = [0f64; PIECE];
        let normals = &mut normals[..words.len()];
        for (pair, w) in normals.chunks_exact_mut(2).zip(words.chunks_exact(2)) {
            // (w + 1) / 2^32 lies in (0, 1], so that its logarithm is finite.
            pair[0] = (f64::from(w[0]) + 1.0) * (1.0 / 4_294_967_296.0);
            pair[1] = f64::from(w[1]) * (1.0 / 4_294_967_296.0);
        }
        box_muller(normals, 0f64);
        for (value, &normal) in piece.iter_mut().zip(normals.iter()) {
            *value = normal as f32;
        }
    });
}

/// Standard normal, by Box and Muller: four words make two numbers.
pub(crate) fn fill_normal_f64(key: &Key, out: &mut [f64]) {
    fill(key, out, 2, |words, piece| {
        let mut normals = [0f64; PIECE / 2];
        let normals = &mut normals[..words.len() / 2];
        for (pair, w) in normals.chunks_exact_mut(2).zip(words.chunks_exact(4)) {
            pair[0] = 1.0 - fraction(w[0], w[1]);
            pair[1] = fraction(w[2], w[3]);
        }
        box_muller(normals, 0f64);
        let n = piece.len();
        piece.copy_from_slice(&normals[..n]);
    });
}

simd_fn! {
    /// Turns pairs of uniforms, the first in (0, 1], the second in [0, 1), into pairs of normals.
    fn box_muller<T>(pairs: &mut [f64], _kind: T) {
        for pair in pairs.chunks_exact_mut(2) {
            let radius = (-2.0 * ln_of_fraction(pair[0])).sqrt();
            let (sin, cos) = sin_cos_of_turns(pair[1]);
            pair[0] = radius * cos;
            pair[1] = radius * sin;
        }
    }
}

/// ln x for normal x in (0, 1]; fdlibm's `log` without its branches.
#[inline(always)]
fn ln_of_fraction(x: f64) -> f64 {
    let bits = x.to_bits();
    // Move the mantissa into [sqrt(1/2), sqrt(2)).
    let shifted = bits.wrapping_add(0x3FF0_0000_0000_0000 - 0x3FE6_A09E_667F_3BCD);
    let k = (shifted >> 52) as i32 - 1023;
    let m = f64::from_bits((shifted & 0x000F_FFFF_FFFF_FFFF) + 0x3FE6_A09E_667F_3BCD);
    let f = m - 1.0;
    let s = f / (2.0 + f);
    let z = s * s;
    let w = z * z;
    let t1 = w
        * (3.999_999_999_940_942e-1
            + w * (2.222_219_843_214_978_4e-1 + w * 1.531_383_769_920_937_3e-1));
    let t2 = z
        * (6.666_666_666_666_735e-1
            + w * (2.857_142_874_366_239e-1
                + w * (1.818_357_216_161_805e-1 + w * 1.479_819_860_511_658_6e-1)));
    let half = 0.5 * f * f;
    let k = f64::from(k);
    k * 6.931_471_803_691_238e-1
        - ((half - (s * (half + (t1 + t2)) + k * 1.908_214_929_270_587_7e-10)) - f)
}

/// sin and cos of 2 pi u for u in [0, 1); fdlibm's kernels after an exact reduction to an eighth turn.
#[inline(always)]
fn sin_cos_of_turns(u: f64) -> (f64, f64) {
    let quarter = (4.0 * u + 0.5) as i32;
    let t = (u - f64::from(quarter) * 0.25) * std::f64::consts::TAU;
    let z = t * t;
    let s = t + t
        * z
        * (-1.666_666_666_666_663_2e-1
            + z * (8.333_333_333_322_49e-3
                + z * (-1.984_126_982_985_795e-4
                    + z * (2.755_731_370_707_006_8e-6
                        + z * (-2.505_076_025_340_686_3e-8 + z * 1.589_690_995_211_55e-10)))));
    let c = 1.0 - 0.5 * z
        + z * z
            * (4.166_666_666_666_66e-2
                + z * (-1.388_888_888_887_411e-3
                    + z * (2.480_158_728_947_673e-5
                        + z * (-2.755_731_435_139_066_3e-7
                            + z * (2.087_572_321_298_175e-9 + z * -1.135_964_755_778_819_5e-11)))));
    let (a, b) = if quarter & 1 == 0 { (s, c) } else { (c, -s) };
    if quarter & 2 == 0 { (a, b) } else { (-a, -b) }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    // Random123's kat_vectors, the lines "philox4x32 10".
    #[test]
    fn philox_meets_the_published_answers() {
        assert_eq!(
            philox([0; 4], [0; 2]),
            [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8]
        );
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd]
        );
        assert_eq!(
            philox(
                [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
                [0xa4093822, 0x299f31d0]
            ),
            [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1]
        );
    }

    #[test]
    fn wide_blocks_equal_single_blocks() {
        let key = Key::new(&[1, 2]);
        let mut words = vec![0u32; 4 * 37 + 3];
        let first = u64::from(u32::MAX) - 5; // crosses into the counter's second word
        fill_words(&key, first, &mut words, std::marker::PhantomData::<f32>);
        for (i, block) in words.chunks(4).enumerate() {
            let b = first + i as u64;
            let want = philox(
                [b as u32, (b >> 32) as u32, key.high[0], key.high[1]],
                key.key,
            );
            assert_eq!(block, &want[..block.len()]);
        }
    }

    #[test]
    fn different_lists_of_words_give_different_keys() {
        let lists: [&[u64]; 8] = [
            &[],
            &[0],
            &[0, 0],
            &[1],
            &[1 << 32],
            &[0, 1],
            &[1, 0],
            &[0, 0, 0],
        ];
        for (i, a) in lists.iter().enumerate() {
            for b in &lists[..i] {
                assert_ne!(
                    bits(&Key::new(a), 4),
                    bits(&Key::new(b), 4),
                    "{a:?} and {b:?}"
                );
            }
        }
    }

    #[test]
    fn a_longer_sequence_begins_with_the_shorter_one() {
        let key = Key::new(&[7]);
        let long = bits(&key, 10_000);
        assert_eq!(bits(&key, 3), long[..3]);
        assert_eq!(bits(&key, 5001), long[..5001]);
        let mut a = vec![0f32; 9001];
        let mut b = vec![0f32; 20_000];
        fill_normal_f32(&key, &mut a);
        fill_normal_f32(&key, &mut b);
        assert_eq!(a[..], b[..9001]);
    }

    #[test]
    fn one_number_alone_is_that_of_the_sequence() {
        let key = Key::new(&[3, 1]);
        let all = uniform(&key, &[9000], DType::F64)
            .unwrap()
            .to_list()
            .unwrap();
        for index in [0, 1, 2, 3, 2047, 2048, 8999] {
            assert_eq!(uniform_at(&key, index), all[index as usize]);
        }
    }

    #[test]
    fn the_number_of_threads_does_not_show() {
        let key = Key::new(&[3, 1, 4]);
        let with = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                let mut a = vec![0f64; 50_001];
                fill_normal_f64(&key, &mut a);
                (a, bits(&key, 30_001))
            })
        };
        assert_eq!(with(1), with(3));
    }

    #[test]
    fn uniforms_fill_the_unit_interval() {
        let key = Key::new(&[11]);
        let n = 1 << 16;
        let mut x = vec![0f32; n];
        fill_uniform_f32(&key, &mut x);
        assert!(x.iter().all(|&v| (0.0..1.0).contains(&v)));
        let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
        // The mean of n uniforms spreads by 1 / sqrt(12 n) = 0.0011.
        assert!((mean - 0.5).abs() < 0.005, "{mean}");
        let mut y = vec![0f64; n];
        fill_uniform_f64(&key, &mut y);
        assert!(y.iter().all(|&v| (0.0..1.0).contains(&v)));
        let second = y.iter().map(|v| v * v).sum::<f64>() / n as f64;
        assert!((second - 1.0 / 3.0).abs() < 0.005, "{second}");
    }

    #[test]
    fn normals_have_the_moments_of_the_normal_law() {
        let n = 1 << 17;
        let mut x = vec![0f64; n];
        fill_normal_f64(&Key::new(&[5]), &mut x);
        let mut y = vec![0f32; n];
        fill_normal_f32(&Key::new(&[6]), &mut y);
        let y: Vec<f64> = y.into_iter().map(f64::from).collect();
        for z in [x, y] {
            let moment = |p: i32| z.iter().map(|v| v.powi(p)).sum::<f64>() / n as f64;
            // Spreads over sqrt(n) = 362: 1, sqrt(2), sqrt(15), sqrt(96).
            assert!(moment(1).abs() < 0.012, "{}", moment(1));
            assert!((moment(2) - 1.0).abs() < 0.016, "{}", moment(2));
            assert!(moment(3).abs() < 0.045, "{}", moment(3));
            assert!((moment(4) - 3.0).abs() < 0.11, "{}", moment(4));
            let beyond = z.iter().filter(|v| v.abs() > 1.959_963_985).count() as f64 / n as f64;
            assert!((beyond - 0.05).abs() < 0.003, "{beyond}");
            let paired = z.chunks_exact(2).map(|p| p[0] * p[1]).sum::<f64>() / (n / 2) as f64;
            assert!(
                paired.abs() < 0.016,
                "the two of a pair are uncorrelated: {paired}"
            );
        }
    }

    #[test]
    fn own_logarithm_and_sine_agree_with_libm() {
        for i in 1..=4096u32 {
            let x = f64::from(i) / 4096.0;
            assert!(
                (ln_of_fraction(x) - x.ln()).abs() <= 4e-16 * x.ln().abs().max(1e-3),
                "ln {x}"
            );
            let u = f64::from(i - 1) / 4096.0 + 1e-5;
            let (s, c) = sin_cos_of_turns(u);
            let (ws, wc) = (u * std::f64::consts::TAU).sin_cos();
            assert!((s - ws).abs() < 2e-15 && (c - wc).abs() < 2e-15, "turn {u}");
        }
        assert!((ln_of_fraction(1e-10) - 1e-10f64.ln()).abs() < 1e-14);
        assert_eq!(ln_of_fraction(1.0), 0.0);
    }
}
