#![allow(unsafe_code)]
//! Threads that stay awake between one kernel and the next.
//!
//! A training step is a hundred kernels of some ten microseconds each, and a sleeping thread takes longer than that
//! to wake: with a pool that sleeps between them, the first thread does most of the work alone. So the threads of a
//! [`Team`] look out for the next kernel for a while ([`PATIENCE`]) before they go back to the pool. Nobody waits for
//! one that is still asleep: the caller takes up its blocks.
//!
//! Each thread starts on a share of its own, the same at each kernel of one size, so that what it wrote before is
//! still in its cache; then it helps the others. Which thread does a block never shows in the results.

use std::any::Any;
use std::cell::{Cell, RefCell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// How long a helper looks out for work before it goes back to sleep: longer than what lies between two kernels of a
/// step, shorter than anybody would mind a busy core.
const PATIENCE: Duration = Duration::from_micros(200);

/// Looks between two glances at the clock; each also offers the core to other programs.
const LOOKS: u32 = 128;

/// Threads of one pool that do kernels together.
pub(crate) struct Team {
    /// Set while one caller's work is being done; a second one goes its own way.
    busy: AtomicBool,
    /// Bit 0: there is work. Bits 1..=15: twice the helpers inside. Above: the number of the work.
    state: AtomicU64,
    work: UnsafeCell<Option<Work>>,
    /// A share of the blocks for each thread; the caller's is the first.
    shares: Box<[Share]>,
    /// Whether helper `i` is on the way or looking out. The first stands for the caller and stays false.
    awake: Box<[AtomicBool]>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// What helpers need to know; valid from publication until the caller has seen them all leave.
#[derive(Clone, Copy)]
struct Work {
    body: *const (dyn Fn(usize) + Sync),
    threads: usize,
}

/// Blocks `next..end` are not begun. On a cache line of its own.
#[repr(align(128))]
#[derive(Default)]
struct Share {
    next: AtomicUsize,
    end: AtomicUsize,
}

const OPEN: u64 = 1;
const HELPER: u64 = 2;
const HELPERS: u64 = 0xFFFE;
const NUMBER: u64 = 0x1_0000;

// SAFETY: `work` is written only by the thread that set `busy`, while the state says that there is no work and nobody
// is inside; helpers read it only between entering and leaving.
unsafe impl Sync for Team {}
// SAFETY: as above; the pointer in it is followed only while its owner waits.
unsafe impl Send for Team {}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Team>>> = const { RefCell::new(None) };
    /// Whether this thread is doing a block of some team's work.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Makes a team the current thread's until dropped.
pub(crate) struct Membership(Option<Arc<Team>>);

impl Membership {
    pub(crate) fn of(team: &Arc<Team>) -> Membership {
        Membership(CURRENT.replace(Some(team.clone())))
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

/// Calls `work(i)` for each `i` in `0..n` with the current thread's team. False, and nothing done, where there is no
/// team or it is at work already.
pub(crate) fn run(n: usize, work: &(dyn Fn(usize) + Sync)) -> bool {
    if INSIDE.get() {
        return false;
    }
    CURRENT.with_borrow(|team| team.as_ref().is_some_and(|team| team.run(n, work)))
}

impl Team {
    /// A team of `threads`, the caller among them.
    pub(crate) fn new(threads: usize) -> Arc<Team> {
        let threads = threads.clamp(1, 1024);
        Arc::new(Team {
            busy: AtomicBool::new(false),
            state: AtomicU64::new(0),
            work: UnsafeCell::new(None),
            shares: (0..threads).map(|_| Share::default()).collect(),
            awake: (0..threads).map(|_| AtomicBool::new(false)).collect(),
            panic: Mutex::new(None),
        })
    }

    fn run(self: &Arc<Team>, n: usize, work: &(dyn Fn(usize) + Sync)) -> bool {
        if self.busy.swap(true, Ordering::Acquire) {
            return false;
        }
        let threads = self.shares.len().min(n);
        for (i, share) in self.shares.iter().enumerate().take(threads) {
            share.next.store(i * n / threads, Ordering::Relaxed);
            share.end.store((i + 1) * n / threads, Ordering::Relaxed);
        }
        // SAFETY: the lifetime is the only difference. Helpers follow the pointer only while inside, and `Ending`
        // waits until all have left, whichever way this function ends.
        let body: *const (dyn Fn(usize) + Sync) = unsafe {
            std::mem::transmute::<&(dyn Fn(usize) + Sync), *const (dyn Fn(usize) + Sync + 'static)>(
                work,
            )
        };
        // SAFETY: `busy` is this thread's and the state says that nobody is inside (see `Ending`).
        unsafe { *self.work.get() = Some(Work { body, threads }) };
        let ending = Ending(self);
        let number = self.state.load(Ordering::Relaxed) & !(NUMBER - 1);
        self.state
            .store(number.wrapping_add(NUMBER) | OPEN, Ordering::Release);
        for helper in 1..threads {
            if !self.awake[helper].swap(true, Ordering::AcqRel) {
                let (team, caller) = (self.clone(), rayon::current_thread_index());
                rayon::spawn(move || team.help(helper, caller));
            }
        }
        self.share(0, threads, work);
        drop(ending);
        let panic = self.panic.lock().unwrap_or_else(|e| e.into_inner()).take();
        self.busy.store(false, Ordering::Release);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
        true
    }

    /// Does blocks until none is left that has not begun: first those of share `own`.
    fn share(&self, own: usize, threads: usize, work: &(dyn Fn(usize) + Sync)) {
        let _inside = Inside::new();
        for i in 0..threads {
            let share = &self.shares[(own + i) % threads];
            let end = share.end.load(Ordering::Relaxed);
            // Looked at first, so that a finished share's counter is not written again.
            while share.next.load(Ordering::Relaxed) < end {
                let block = share.next.fetch_add(1, Ordering::Relaxed);
                if block >= end {
                    break;
                }
                work(block);
            }
        }
    }

    /// A helper's time awake.
    fn help(&self, helper: usize, caller: Option<usize>) {
        // The pool may hand this to the very thread that it should help, when that one waits for something.
        if rayon::current_thread_index() == caller {
            self.awake[helper].store(false, Ordering::Release);
            return;
        }
        let (mut last, mut since, mut looks) = (0, Instant::now(), 0);
        loop {
            let state = self.state.load(Ordering::Relaxed);
            if state & OPEN != 0 && state & !(NUMBER - 1) != last {
                let entered = self.state.compare_exchange(
                    state,
                    state + HELPER,
                    Ordering::Acquire,
                    Ordering::Relaxed,
                );
                if entered.is_ok() {
                    last = state & !(NUMBER - 1);
                    self.work_inside(helper);
                    self.state.fetch_sub(HELPER, Ordering::Release);
                    (since, looks) = (Instant::now(), 0);
                }
                continue;
            }
            std::hint::spin_loop();
            looks += 1;
            if looks % LOOKS == 0 {
                if since.elapsed() > PATIENCE {
                    break;
                }
                // Other work of this pool, if there is any; else any other program's turn.
                if rayon::yield_now() != Some(rayon::Yield::Executed) {
                    std::thread::yield_now();
                }
            }
        }
        self.awake[helper].store(false, Ordering::Release);
    }

    fn work_inside(&self, helper: usize) {
        // SAFETY: between entering and leaving, the caller does not touch it.
        let Some(work) = (unsafe { *self.work.get() }) else {
            return;
        };
        if helper >= work.threads {
            return;
        }
        // SAFETY: the caller keeps the closure alive until all have left.
        let body = unsafe { &*work.body };
        if let Err(panic) =
            catch_unwind(AssertUnwindSafe(|| self.share(helper, work.threads, body)))
        {
            *self.panic.lock().unwrap_or_else(|e| e.into_inner()) = Some(panic);
        }
    }
}

/// Marks a thread as inside until dropped: a kernel called by a block must not call the team again.
struct Inside;

impl Inside {
    fn new() -> Inside {
        INSIDE.set(true);
        Inside
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        INSIDE.set(false);
    }
}

/// Lets nobody else enter and waits until all have left, also when the caller's own block panics.
struct Ending<'a>(&'a Team);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let state = &self.0.state;
        state.fetch_and(!OPEN, Ordering::Relaxed);
        let mut looks = 0u32;
        while state.load(Ordering::Acquire) & HELPERS != 0 {
            std::hint::spin_loop();
            looks += 1;
            if looks.is_multiple_of(1024) {
                std::thread::yield_now();
            }
        }
        if std::thread::panicking() {
            // The caller's own panic goes on; a helper's must not surface in the next work.
            *self.0.panic.lock().unwrap_or_else(|e| e.into_inner()) = None;
            self.0.busy.store(false, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> crate::threads::Pool {
        crate::threads::Pool::new(threads).expect("a few threads")
    }

    #[test]
    fn every_block_is_done_exactly_once() {
        for threads in [1, 2, 3, 5] {
            pool(threads).install(|| {
                for n in [0, 1, 2, 3, 7, 64, 1000] {
                    for _ in 0..50 {
                        let done: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                        assert!(run(n, &|i| {
                            done[i].fetch_add(1, Ordering::Relaxed);
                        }));
                        assert!(done.iter().all(|d| d.load(Ordering::Relaxed) == 1));
                    }
                }
            });
        }
    }

    #[test]
    fn work_inside_of_work_is_refused_and_done_another_way() {
        pool(2).install(|| {
            let count = AtomicUsize::new(0);
            assert!(run(4, &|_| {
                assert!(!run(4, &|_| ()));
                crate::threads::parallel(4, &|_| {
                    count.fetch_add(1, Ordering::Relaxed);
                });
            }));
            assert_eq!(count.load(Ordering::Relaxed), 16);
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_works_on() {
        pool(2).install(|| {
            for bad in [0, 63] {
                let caught = catch_unwind(|| run(64, &|i| assert_ne!(i, bad, "stop")));
                assert!(caught.is_err());
                assert!(catch_unwind(|| run(64, &|_| panic!("stop"))).is_err());
                let count = AtomicUsize::new(0);
                assert!(run(64, &|_| {
                    count.fetch_add(1, Ordering::Relaxed);
                }));
                assert_eq!(count.load(Ordering::Relaxed), 64);
            }
        });
    }

    #[test]
    fn outside_of_a_pool_there_is_no_team() {
        assert!(!run(3, &|_| ()));
    }
}
