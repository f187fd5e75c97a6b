//! Worker threads for kernels, and the one way in which kernels split work.
//!
//! Work is cut into blocks whose size depends on the problem alone, never on the number of threads, and
//! partial results are combined in block order. So results have the same bits for any number of threads.

use std::ops::Range;

use rayon::prelude::*;

use crate::account::{Account, AccountScope};
use crate::autograd;
use crate::error::{Error, Result};

/// Element count up to which a kernel runs on the calling thread alone.
pub const SERIAL_LIMIT: usize = 64 * 1024;

/// Elements in one block of a split elementwise kernel.
pub(crate) const BLOCK: usize = 16 * 1024;

/// A fixed number of worker threads.
#[derive(Debug)]
pub struct Pool(rayon::ThreadPool);

impl Pool {
    /// A pool of `n` threads; 0 means one per core.
    ///
    /// # Errors
    /// [`Error::Argument`] where the system refuses the threads.
    pub fn new(n: usize) -> Result<Pool> {
        rayon::ThreadPoolBuilder::new()
            .num_threads(n)
            .thread_name(|i| format!("tensor-{i}"))
            .build()
            .map(Pool)
            .map_err(|e| Error::argument("threads", format!("cannot start {n} threads: {e}")))
    }

    /// Runs `work` in this pool; kernels called in it use its threads. The caller's account and gradient
    /// mode hold inside.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let account = Account::current();
        let enabled = autograd::grad_enabled();
        self.0.install(move || {
            let _account = AccountScope::of(account);
            let previous = autograd::set_grad_enabled(enabled);
            let result = work();
            autograd::set_grad_enabled(previous);
            result
        })
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.0.current_num_threads()
    }
}

/// Calls `work(first, block)` for consecutive blocks of `out`, each `block` elements long (the last may
/// be shorter), in parallel where `total` (a measure of the work, in elements) is large.
pub(crate) fn for_blocks<E: Send>(
    out: &mut [E],
    block: usize,
    total: usize,
    work: impl Fn(usize, &mut [E]) + Sync,
) {
    let block = block.max(1);
    if total <= SERIAL_LIMIT || rayon::current_num_threads() == 1 {
        for (i, chunk) in out.chunks_mut(block).enumerate() {
            work(i * block, chunk);
        }
    } else {
        out.par_chunks_mut(block)
            .enumerate()
            .for_each(|(i, chunk)| work(i * block, chunk));
    }
}

/// Computes `work(range)` for consecutive ranges of `block` positions of `0..n`, in parallel where
/// `total` is large; results in order.
pub(crate) fn map_ranges<R: Send>(
    n: usize,
    block: usize,
    total: usize,
    work: impl Fn(Range<usize>) -> R + Sync,
) -> Vec<R> {
    let block = block.max(1);
    let range = |i: usize| i * block..((i + 1) * block).min(n);
    let blocks = n.div_ceil(block);
    if total <= SERIAL_LIMIT || rayon::current_num_threads() == 1 {
        (0..blocks).map(|i| work(range(i))).collect()
    } else {
        (0..blocks)
            .into_par_iter()
            .map(|i| work(range(i)))
            .collect()
    }
}
