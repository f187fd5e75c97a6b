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
