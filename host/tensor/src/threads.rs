#![allow(unsafe_code)]
//! Worker threads for kernels, and the one way in which kernels split work.
//!
//! Work is cut into blocks whose size depends on the problem alone, never on the number of threads, and
//! partial results are combined in block order. So results have the same bits for any number of threads.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use crate::account::{Account, AccountScope};
use crate::autograd;
use crate::error::{Error, Result};
use crate::team::{self, Membership, Team};

/// Element count up to which a kernel runs on the calling thread alone.
pub const SERIAL_LIMIT: usize = 64 * 1024;

/// Elements in one block of a split elementwise kernel.
pub(crate) const BLOCK: usize = 16 * 1024;

/// A fixed number of worker threads.
pub struct Pool {
    pool: rayon::ThreadPool,
    team: Arc<Team>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

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
            .map(|pool| Pool {
                team: Team::new(pool.current_num_threads()),
                pool,
            })
            .map_err(|e| Error::argument("threads", format!("cannot start {n} threads: {e}")))
    }

    /// Runs `work` in this pool; kernels called in it use its threads. The caller's account and gradient
    /// mode hold inside.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        let account = Account::current();
        let enabled = autograd::grad_enabled();
        let team = &self.team;
        self.pool.install(move || {
            let _member = Membership::of(team);
            let _account = AccountScope::of(account);
            let previous = autograd::set_grad_enabled(enabled);
            let result = work();
            autograd::set_grad_enabled(previous);
            result
        })
    }

    /// The number of threads.
    pub fn threads(&self) -> usize {
        self.pool.current_num_threads()
    }
}

/// Calls `work(i)` for each `i` in `0..n`, on the current pool's threads.
///
/// Kernels come as `dyn`, so that hundreds of them share one compiled copy of the machinery. A call per block
/// costs nothing beside the block.
pub(crate) fn parallel(n: usize, work: &(dyn Fn(usize) + Sync)) {
    if !team::run(n, work) {
        (0..n).into_par_iter().for_each(work);
    }
}

/// Whether work of `total` elements is worth more than one thread, and there is more than one.
pub(crate) fn is_parallel(total: usize) -> bool {
    total > SERIAL_LIMIT && rayon::current_num_threads() > 1
}

/// A pointer that may cross threads; whoever does that says why it is sound.
pub(crate) struct Shared<E>(pub(crate) *mut E);

// SAFETY: the pointer itself may be read by any thread; each use keeps to elements of its own.
unsafe impl<E: Send> Sync for Shared<E> {}

impl<E> Shared<E> {
    /// The element at `i`. A method, so that closures capture the whole and not the bare pointer.
    pub(crate) fn at(&self, i: usize) -> *mut E {
        self.0.wrapping_add(i)
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
    let (block, len) = (block.max(1), out.len());
    if len <= block || !is_parallel(total) {
        for (i, chunk) in out.chunks_mut(block).enumerate() {
            work(i * block, chunk);
        }
        return;
    }
    let base = Shared(out.as_mut_ptr());
    parallel(len.div_ceil(block), &|i| {
        let first = i * block;
        // SAFETY: `parallel` calls each `i` once, blocks do not overlap and end within `out`, which is
        // borrowed mutably until `parallel` has returned.
        let chunk =
            unsafe { std::slice::from_raw_parts_mut(base.at(first), block.min(len - first)) };
        work(first, chunk);
    });
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
    let mut results: Vec<Option<R>> = Vec::new();
    results.resize_with(n.div_ceil(block), || None);
    for_blocks(&mut results, 1, total, |i, slot| {
        slot[0] = Some(work(i * block..((i + 1) * block).min(n)));
    });
    results.into_iter().flatten().collect()
}

/// Calls `work(scratch, index, item)` for each item, on the pool's threads where `threaded`. A scratch is made by
/// `fresh` and serves any number of items, one at a time: nothing may depend on what it held.
pub(crate) fn for_items<A: Send, S: Send>(
    items: Vec<A>,
    threaded: bool,
    fresh: impl Fn() -> S + Sync,
    work: impl Fn(&mut S, usize, A) + Sync,
) {
    if !threaded || items.len() < 2 || rayon::current_num_threads() == 1 {
        let mut scratch = fresh();
        for (index, item) in items.into_iter().enumerate() {
            work(&mut scratch, index, item);
        }
        return;
    }
    let idle = Mutex::new(Vec::new());
    let lock = || idle.lock().unwrap_or_else(PoisonError::into_inner);
    let mut items: Vec<Option<A>> = items.into_iter().map(Some).collect();
    for_blocks(&mut items, 1, usize::MAX, |index, slot| {
        let Some(item) = slot[0].take() else { return };
        // Bound first: in the condition, the lock would be held for as long as the work takes.
        let kept = lock().pop();
        let mut scratch = kept.unwrap_or_else(&fresh);
        work(&mut scratch, index, item);
        lock().push(scratch);
    });
}
