#![allow(unsafe_code)]
//! Compiles inner loops again for wide vector units and picks the version the processor has.
//!
//! The loops are ordinary Rust that the compiler vectorises. Wider vectors do not change results: nothing
//! here reassociates or fuses floating-point operations, so each lane computes what scalar code would.

use crate::lanes::{Level, level};

/// An inner loop. `run` must be `#[inline(always)]` and call nothing that is not, or the wide version
/// contains a call to narrow code.
pub(crate) trait Kernel {
    /// What the loop returns.
    type Out;
    /// The loop.
    fn run(self) -> Self::Out;
}

/// Runs a loop in the widest version this processor supports (see [`level`]).
#[inline]
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Out {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
        fn widest<K: Kernel>(kernel: K) -> K::Out {
            kernel.run()
        }
        #[target_feature(enable = "avx2")]
        fn wide<K: Kernel>(kernel: K) -> K::Out {
            kernel.run()
        }
        match level() {
            // SAFETY: `level` has just seen that this processor has the features asked for.
            Level::Avx512 => return unsafe { widest(kernel) },
            // SAFETY: as above.
            Level::Avx2 => return unsafe { wide(kernel) },
            Level::Baseline => {}
        }
    }
    narrow(kernel)
}

/// Runs a loop in its ordinary version: for runs too short to be worth the choice.
#[inline(never)]
pub(crate) fn narrow<K: Kernel>(kernel: K) -> K::Out {
    kernel.run()
}

/// The sum of numbers in double precision, in the order in which `ops::reduce` sums a run, where this processor has
/// 512-bit vectors and the run is whole groups of 64. Written by hand: the compiler's version of that loop moves
/// numbers about and takes half as long again.
pub(crate) fn sum_wide(run: &[f32]) -> Option<f64> {
    #[cfg(target_arch = "x86_64")]
    if level() == Level::Avx512
        && let (groups, []) = run.as_chunks::<64>()
    {
        // SAFETY: `level` has just seen that this processor has the features asked for.
        return Some(unsafe { sum_groups(groups) });
    }
    let _ = run;
    None
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn sum_groups(groups: &[[f32; 64]]) -> f64 {
    use std::arch::x86_64::{
        __m512d, _mm_add_pd, _mm_add_sd, _mm_cvtsd_f64, _mm_unpackhi_pd, _mm256_add_pd,
        _mm256_castpd256_pd128, _mm256_extractf128_pd, _mm256_loadu_ps, _mm512_add_pd,
        _mm512_castpd512_pd256, _mm512_cvtps_pd, _mm512_extractf64x4_pd, _mm512_setzero_pd,
    };
    let mut sums: [__m512d; 8] = [_mm512_setzero_pd(); 8];
    for group in groups {
        let (eights, _) = group.as_chunks::<8>();
        for (sum, eight) in sums.iter_mut().zip(eights) {
            // SAFETY: the eight numbers are there, and the load needs no alignment.
            let numbers = unsafe { _mm256_loadu_ps(eight.as_ptr()) };
            *sum = _mm512_add_pd(*sum, _mm512_cvtps_pd(numbers));
        }
    }
    // Groups of sixteen lanes in pairs, then halves onto halves.
    let low = _mm512_add_pd(
        _mm512_add_pd(sums[0], sums[2]),
        _mm512_add_pd(sums[4], sums[6]),
    );
    let high = _mm512_add_pd(
        _mm512_add_pd(sums[1], sums[3]),
        _mm512_add_pd(sums[5], sums[7]),
    );
    let eight = _mm512_add_pd(low, high);
    let four = _mm256_add_pd(
        _mm512_castpd512_pd256(eight),
        _mm512_extractf64x4_pd::<1>(eight),
    );
    let two = _mm_add_pd(
        _mm256_castpd256_pd128(four),
        _mm256_extractf128_pd::<1>(four),
    );
    _mm_cvtsd_f64(_mm_add_sd(two, _mm_unpackhi_pd(two, two)))
}
