#![allow(unsafe_code)]
//! Shared pointers whose heap cells are used again.
//!
//! A step makes and frees the same few dozen small things: a tensor's place, its storage, its node. glibc
//! keeps seven freed blocks of a size near at hand and takes ten times as long beyond. So each thread keeps the
//! cells it frees, up to [`KEPT`] of a size, and takes the last one first: it is still in the nearest cache.
//! Cells are given back to the allocator when the thread ends.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

/// Sizes are rounded up to a multiple of this, which is also every cell's alignment.
const GRAIN: usize = 64;
/// Sizes that are kept: up to 512 bytes.
const SIZES: usize = 8;
/// Most cells of one size that a thread keeps: 1.2 MiB at most, all sizes together.
const KEPT: u32 = 512;

/// A freed cell: the next one of its size.
struct Free(*mut Free);

/// The cells a thread has freed, by size.
struct Cells {
    first: [Cell<*mut Free>; SIZES],
    count: [Cell<u32>; SIZES],
}

thread_local! {
    static CELLS: Cells = const {
        Cells {
            first: [const { Cell::new(std::ptr::null_mut()) }; SIZES],
            count: [const { Cell::new(0) }; SIZES],
        }
    };
}

impl Drop for Cells {
    fn drop(&mut self) {
        for (size, first) in self.first.iter().enumerate() {
            let mut next = first.replace(std::ptr::null_mut());
            while !next.is_null() {
                let cell = next;
                // SAFETY: the list holds cells that `give` took over, each of this size's layout; `give` wrote
                // the next pointer into it, and it is freed once.
                unsafe {
                    next = (*cell).0;
                    dealloc(cell.cast(), layout(size));
                }
            }
        }
    }
}

fn layout(size: usize) -> Layout {
    // Both are powers of two or multiples of one far below any limit, so this cannot fail.
    Layout::from_size_align((size + 1) * GRAIN, GRAIN).unwrap_or(Layout::new::<[u64; 64]>())
}

/// A cell's memory, from this thread's or from the allocator.
fn take(size: usize) -> NonNull<u8> {
    let kept = CELLS.try_with(|cells| {
        let first = cells.first[size].get();
        if !first.is_null() {
            // SAFETY: the list holds freed cells, whose first word is the next pointer that `give` wrote.
            cells.first[size].set(unsafe { (*first).0 });
            cells.count[size].set(cells.count[size].get() - 1);
        }
        first.cast::<u8>()
    });
    match NonNull::new(kept.unwrap_or(std::ptr::null_mut())) {
        Some(cell) => cell,
        None => {
            // SAFETY: the layout has a size above zero.
            NonNull::new(unsafe { alloc(layout(size)) })
                .unwrap_or_else(|| handle_alloc_error(layout(size)))
        }
    }
}

/// Gives a cell's memory to this thread's, or back to the allocator.
///
/// # Safety
/// `cell` came from [`take`] with the same size and is not used again.
unsafe fn give(size: usize, cell: NonNull<u8>) {
    let kept = CELLS.try_with(|cells| {
        let count = cells.count[size].get();
        if count < KEPT {
            let free = cell.as_ptr().cast::<Free>();
            // SAFETY: the cell is the caller's to give, large enough and aligned for a pointer.
            unsafe { free.write(Free(cells.first[size].get())) };
            cells.first[size].set(free);
            cells.count[size].set(count + 1);
        }
        count < KEPT
    });
    if !kept.unwrap_or(false) {
        // SAFETY: as the caller promises.
        unsafe { dealloc(cell.as_ptr(), layout(size)) };
    }
}

/// A shared value, freed with its last pointer. As [`std::sync::Arc`], without weak pointers.
pub(crate) struct Counted<T> {
    cell: NonNull<Value<T>>,
    _owns: PhantomData<Value<T>>,
}

struct Value<T> {
    count: AtomicUsize,
    value: T,
}

// SAFETY: as for `Arc`: pointers on several threads share the value, and the last one may drop it on any.
unsafe impl<T: Send + Sync> Send for Counted<T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Counted<T> {}

impl<T> Counted<T> {
    const SIZE: usize = {
        assert!(align_of::<Value<T>>() <= GRAIN);
        assert!(size_of::<Value<T>>() <= GRAIN * SIZES);
        (size_of::<Value<T>>() - 1) / GRAIN
    };

    pub(crate) fn new(value: T) -> Counted<T> {
        let cell = take(Self::SIZE).cast::<Value<T>>();
        let count = AtomicUsize::new(1);
        // SAFETY: fresh memory, large enough and aligned (checked at compile time above).
        unsafe { cell.write(Value { count, value }) };
        Counted {
            cell,
            _owns: PhantomData,
        }
    }

    /// The value for writing, where this is the only pointer to it.
    pub(crate) fn get_mut(&mut self) -> Option<&mut T> {
        // Acquire: what other pointers did before they were dropped has happened.
        if self.value().count.load(Ordering::Acquire) != 1 {
            return None;
        }
        // SAFETY: this is the only pointer and it is borrowed mutably, so nobody else reaches the value or can
        // make another pointer.
        Some(unsafe { &mut self.cell.as_mut().value })
    }

    fn value(&self) -> &Value<T> {
        // SAFETY: the cell holds a value for as long as a pointer to it lives.
        unsafe { self.cell.as_ref() }
    }
}

/// Two values behind one pointer.
#[repr(C)]
pub(crate) struct Pair<A, B>(pub(crate) A, pub(crate) B);

impl<A, B> Counted<Pair<A, B>> {
    /// As [`new`](Counted::new), each value written where it stays: a pair of more than 128 bytes would be put together
    /// elsewhere and moved by a call.
    pub(crate) fn pair(a: A, b: B) -> Counted<Pair<A, B>> {
        let cell = take(Self::SIZE).cast::<Value<Pair<A, B>>>();
        let to = cell.as_ptr();
        // SAFETY: fresh memory, large enough and aligned (checked at compile time above); every field is written.
        unsafe {
            (&raw mut (*to).count).write(AtomicUsize::new(1));
            (&raw mut (*to).value.0).write(a);
            (&raw mut (*to).value.1).write(b);
        }
        Counted {
            cell,
            _owns: PhantomData,
        }
    }
}

impl<T> Deref for Counted<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value().value
    }
}

impl<T> Clone for Counted<T> {
    fn clone(&self) -> Counted<T> {
        // Relaxed: the new pointer is made from one that keeps the value alive.
        if self.value().count.fetch_add(1, Ordering::Relaxed) > isize::MAX as usize {
            // More pointers than memory could hold: some were forgotten. Going on would free too early.
            std::process::abort();
        }
        Counted {
            cell: self.cell,
            _owns: PhantomData,
        }
    }
}

impl<T> Drop for Counted<T> {
    fn drop(&mut self) {
        // The last pointer need not write: nobody else can change a count of one.
        if self.value().count.load(Ordering::Acquire) != 1
            && self.value().count.fetch_sub(1, Ordering::Release) != 1
        {
            return;
        }
        fence(Ordering::Acquire);
        // SAFETY: this was the last pointer, so the value is dropped once and nobody reaches the cell again; it
        // came from `take` with this size.
        unsafe {
            std::ptr::drop_in_place(&raw mut (*self.cell.as_ptr()).value);
            give(Self::SIZE, self.cell.cast());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_value_is_dropped_once_with_its_last_pointer() {
        let watched = Arc::new(());
        let first = Counted::new((watched.clone(), [1u64; 9]));
        let second = first.clone();
        drop(first);
        assert_eq!((Arc::strong_count(&watched), second.1), (2, [1; 9]));
        drop(second);
        assert_eq!(Arc::strong_count(&watched), 1);
    }

    #[test]
    fn a_shared_value_is_not_lent_for_writing() {
        let mut first = Counted::new(5);
        let second = first.clone();
        assert!(first.get_mut().is_none());
        drop(second);
        *first.get_mut().into_iter().next().unwrap_or(&mut 0) = 6;
        assert_eq!(*first, 6);
    }

    #[test]
    fn a_freed_cell_is_used_again_and_a_thread_keeps_a_bounded_number() {
        std::thread::spawn(|| {
            let one = Counted::new([0u8; 100]);
            let at = one.cell;
            drop(one);
            assert_eq!(Counted::new([1u8; 120]).cell.cast::<u8>(), at.cast());
            let many: Vec<_> = (0..2 * KEPT).map(|_| Counted::new([0u8; 100])).collect();
            drop(many);
            let size = Counted::<[u8; 100]>::SIZE;
            assert_eq!(CELLS.with(|cells| cells.count[size].get()), KEPT);
        })
        .join()
        .map_err(|_| "the thread panicked")
        .unwrap_or_else(|e| panic!("{e}"));
    }

    #[test]
    fn values_may_be_made_on_one_thread_and_dropped_on_another() {
        let shared = Counted::new(vec![1, 2, 3]);
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let mine = shared.clone();
                std::thread::spawn(move || (0..1000).map(|_| mine.clone().len()).sum::<usize>())
            })
            .collect();
        for thread in threads {
            assert_eq!(thread.join().unwrap_or(0), 3000);
        }
        assert_eq!(*shared, [1, 2, 3]);
    }
}
