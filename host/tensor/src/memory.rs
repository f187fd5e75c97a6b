#![allow(unsafe_code)]
//! Keeps freed blocks in the process, for the next tensor of their size.
//!
//! A training step frees and allocates the same megabytes again and again. glibc hands blocks of that size
//! back to the system at once, and fetching them again costs a page fault per 4 KiB: half of the time of a
//! small convolutional network's step. So blocks up to 32 MiB are kept, until 512 MiB of free memory have
//! gathered at the heap's end. Budgets do not see this: they count what tensors hold.

/// Tells the allocator once per process. Does nothing where the allocator is not glibc's.
pub(crate) fn keep_freed_blocks() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        use std::ffi::c_int;
        use std::sync::Once;

        /// From glibc's malloc.h.
        const M_TRIM_THRESHOLD: c_int = -1;
        const M_MMAP_THRESHOLD: c_int = -3;
        unsafe extern "C" {
            fn mallopt(parameter: c_int, value: c_int) -> c_int;
        }
        static ONCE: Once = Once::new();
        ONCE.call_once(|| {
            // SAFETY: glibc's mallopt takes any two integers, may be called at any time from any thread,
            // and refuses values it does not like.
            unsafe {
                mallopt(M_MMAP_THRESHOLD, 32 << 20);
                mallopt(M_TRIM_THRESHOLD, 512 << 20);
            }
        });
    }
}
