#![allow(unsafe_code)]
//! Compiles inner loops a second time for wide vector units and picks the version the processor has.
//!
//! The loops are ordinary Rust that the compiler vectorises. Wider vectors do not change results: nothing
//! here reassociates or fuses floating-point operations, so each lane computes what scalar code would.

/// An inner loop. `run` must be `#[inline(always)]` and call nothing that is not, or the wide version
/// contains a call to narrow code.
pub(crate) trait Kernel {
    /// What the loop returns.
    type Out;
    /// The loop.
    fn run(self) -> Self::Out;
}

/// Runs a loop in the widest version this processor supports.
#[inline]
pub(crate) fn dispatch<K: Kernel>(kernel: K) -> K::Out {
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx,avx2,bmi1,bmi2,fma,lzcnt,popcnt")]
        fn wide<K: Kernel>(kernel: K) -> K::Out {
            kernel.run()
        }
        if has_avx2() {
            // SAFETY: the processor has every feature enabled above.
            return unsafe { wide(kernel) };
        }
    }
    narrow(kernel)
}

/// Runs a loop in its ordinary version: for runs too short to be worth the choice.
#[inline(never)]
pub(crate) fn narrow<K: Kernel>(kernel: K) -> K::Out {
    kernel.run()
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn has_avx2() -> bool {
    static FOUND: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *FOUND.get_or_init(|| {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("lzcnt")
            && is_x86_feature_detected!("popcnt")
    })
}
