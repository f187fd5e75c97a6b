#![allow(unsafe_code)]
//! CPU storage: a dfdx buffer, the pointer to its elements, and the account it is charged to.
//!
//! dfdx 0.13 takes a `Vec` as it is and keeps its heap block in place for as long as the buffer lives, so
//! the pointer taken when the `Vec` was handed over stays valid, and slices cost nothing. The dfdx tensor
//! is never cloned nor indexed mutably, so nothing else reaches the block.
//!
//! Buffers up to 1 MiB are made in classes of sizes and kept by the thread that frees them, buffer and all, for
//! its next tensor of that class: a step in the steady state asks neither dfdx nor the allocator for anything.
//! A thread keeps at most 64 MiB, and gives them back when it ends. Larger blocks come from the allocator, which
//! keeps them too ([`crate::memory`]). Elements begin at a multiple of 64 bytes, a line of the cache and the
//! width of the widest vectors, unless the `Vec` came from elsewhere.

use std::cell::RefCell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use dfdx::tensor::{Cpu, CpuError, Tensor as Dfdx, TensorFromVec};

use crate::account::Charge;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};

/// One contiguous block of elements.
pub(crate) struct Storage {
    /// `None` only while it is being dropped.
    block: Option<Box<Block>>,
    elements: NonNull<u8>,
    len: usize,
    dtype: DType,
    /// What a recording knows it by; 0 until one has seen it.
    mark: AtomicU64,
}

/// A buffer and who pays for it.
struct Block {
    // Dropped before the charge is given back: fields drop in this order.
    buffer: Buffer,
    /// Where the elements begin.
    elements: NonNull<u8>,
    charge: Charge,
    /// The shelf it goes back to.
    class: Option<u8>,
}

// SAFETY: the pointers belong to `buffer`, whose element types are plain numbers; shared access is
// read-only and mutable access needs `&mut Storage`.
unsafe impl Send for Storage {}
// SAFETY: as above.
unsafe impl Sync for Storage {}

/// Keeps the block alive.
pub enum Buffer {
    /// Single precision.
    F32(Dfdx<(usize,), f32, Cpu>),
    /// Double precision.
    F64(Dfdx<(usize,), f64, Cpu>),
    /// Integers.
    I64(Dfdx<(usize,), i64, Cpu>),
    /// Truth values.
    Bool(Dfdx<(usize,), bool, Cpu>),
}

/// Hands a `Vec` to dfdx. The home of this trait is private, which seals [`Element`].
pub trait Stored:
    Copy + Default + std::fmt::Debug + PartialEq + PartialOrd + Send + Sync + 'static
{
    /// The buffer as one of the four, or what dfdx said.
    fn wrap(values: Vec<Self>) -> std::result::Result<Buffer, CpuError>;
}

macro_rules! stored {
    ($($t:ty => $variant:ident),*) => {$(
        impl Stored for $t {
            fn wrap(values: Vec<$t>) -> std::result::Result<Buffer, CpuError> {
                let len = values.len();
                device().try_tensor_from_vec(values, (len,)).map(Buffer::$variant)
            }
        }
    )*};
}
stored!(f32 => F32, f64 => F64, i64 => I64, bool => Bool);

fn device() -> &'static Cpu {
    static DEVICE: std::sync::OnceLock<Cpu> = std::sync::OnceLock::new();
    DEVICE.get_or_init(|| {
        crate::memory::keep_freed_blocks();
        Cpu::default()
    })
}

/// Bytes of a cache line: elements begin at a multiple of it.
const LINE: usize = 64;
/// Size classes: each line up to 512 bytes, then four a doubling up to 1 MiB.
const CLASSES: usize = 8 + 4 * 11;
/// Most bytes that a thread keeps.
const KEPT_BYTES: usize = 64 << 20;
/// What a kept block costs beside its elements, at most.
const BLOCK_OVERHEAD: usize = 320;

/// The class of a size in bytes.
fn class_of(bytes: usize) -> Option<u8> {
    let lines = bytes.div_ceil(LINE).max(1);
    if lines <= 8 {
        return Some((lines - 1) as u8);
    }
    // 2^p < lines <= 2^(p + 1), cut in four.
    let p = (lines - 1).ilog2() as usize;
    let quarter = (lines - 1 - (1 << p)) >> (p - 2);
    let class = 8 + 4 * (p - 3) + quarter;
    (class < CLASSES).then_some(class as u8)
}

/// The largest size of a class, in bytes.
fn class_bytes(class: u8) -> usize {
    let class = usize::from(class);
    if class < 8 {
        return (class + 1) * LINE;
    }
    let (p, quarter) = ((class - 8) / 4 + 3, (class - 8) % 4);
    ((1 << p) + ((quarter + 1) << (p - 2))) * LINE
}

/// Blocks that a thread has freed, by element type and class.
#[allow(clippy::vec_box)] // a box is kept and given out again as it is
struct Shelves {
    // Boxed, so that a block stays where it is and only its pointer goes back and forth.
    #[allow(clippy::vec_box)]
    blocks: [[Vec<Box<Block>>; CLASSES]; 4],
    bytes: usize,
}

thread_local! {
    static SHELVES: RefCell<Shelves> = const {
        RefCell::new(Shelves { blocks: [const { [const { Vec::new() }; CLASSES] }; 4], bytes: 0 })
    };
}

fn row(dtype: DType) -> usize {
    match dtype {
        DType::F32 => 0,
        DType::F64 => 1,
        DType::I64 => 2,
        DType::Bool => 3,
    }
}

fn off_shelf(dtype: DType, class: u8) -> Option<Box<Block>> {
    SHELVES
        .try_with(|shelves| {
            let shelves = &mut *shelves.borrow_mut();
            let block = shelves.blocks[row(dtype)][usize::from(class)].pop()?;
            shelves.bytes -= class_bytes(class) + BLOCK_OVERHEAD;
            Some(block)
        })
        .ok()
        .flatten()
}

impl Drop for Storage {
    fn drop(&mut self) {
        let Some(mut block) = self.block.take() else {
            return;
        };
        let Some(class) = block.class else {
            return;
        };
        block.charge.give_back();
        let mut block = Some(block);
        // What does not fit is dropped outside, with the shelves free again.
        let _ = SHELVES.try_with(|shelves| {
            let shelves = &mut *shelves.borrow_mut();
            let bytes = class_bytes(class) + BLOCK_OVERHEAD;
            if shelves.bytes + bytes <= KEPT_BYTES {
                shelves.bytes += bytes;
                shelves.blocks[row(self.dtype)][usize::from(class)].extend(block.take());
            }
        });
    }
}

impl Storage {
    /// Takes over a `Vec` without copying it; a small one is copied into a block of a class.
    pub(crate) fn from_vec<E: Element>(op: &'static str, values: Vec<E>) -> Result<Storage> {
        if size_of_val(values.as_slice()) <= 1024 {
            let mut storage = Storage::unset::<E>(op, values.len())?;
            if let Some(to) = storage.slice_mut::<E>() {
                to.copy_from_slice(&values);
            }
            return Ok(storage);
        }
        let mut charge = Charge::default();
        charge.renew(op, bytes_of::<E>(values.len()))?;
        let len = values.len();
        let block = Block::wrap(op, values, charge, None, false)?;
        Ok(Storage::of::<E>(block, len))
    }

    /// `len` elements, each zero (false), charged before anything is allocated.
    pub(crate) fn zeroed<E: Element>(op: &'static str, len: usize) -> Result<Storage> {
        let (mut storage, fresh) = Storage::blank::<E>(op, len, zeroed_vec::<E>)?;
        if !fresh && let Some(all) = storage.slice_mut::<E>() {
            all.fill(E::default());
        }
        Ok(storage)
    }

    /// `len` elements of whatever numbers the memory holds, charged before anything is allocated: for a
    /// kernel that writes every one of them. A debug build fills them with NaN, -1 and true, so that a
    /// kernel that does not shows in its tests.
    pub(crate) fn unset<E: Element>(op: &'static str, len: usize) -> Result<Storage> {
        let (storage, _) = Storage::blank::<E>(op, len, unset_vec::<E>)?;
        if cfg!(debug_assertions) {
            // SAFETY: all bits set is a number of each of the three number types, and one is true; the block
            // holds `len` elements, and `storage` is the only way to it.
            unsafe {
                let bits = if E::DTYPE == DType::Bool { 1 } else { 0xFF };
                storage
                    .elements
                    .as_ptr()
                    .write_bytes(bits, len * size_of::<E>());
            }
        }
        Ok(storage)
    }

    /// `len` elements and whether `make` made them: else they hold what a freed tensor held.
    fn blank<E: Element>(
        op: &'static str,
        len: usize,
        make: impl FnOnce(&'static str, usize) -> Result<Vec<E>>,
    ) -> Result<(Storage, bool)> {
        let charged = bytes_of::<E>(len);
        let class = usize::try_from(charged).ok().and_then(class_of);
        if let Some(mut block) = class.and_then(|class| off_shelf(E::DTYPE, class)) {
            block.charge.renew(op, charged)?;
            return Ok((Storage::of::<E>(block, len), false));
        }
        let mut charge = Charge::default();
        charge.renew(op, charged)?;
        let room = class.map_or(len, |class| class_bytes(class) / size_of::<E>());
        // A line more than asked for, so that some element lies at a line's beginning.
        let values = make(op, room.saturating_add(LINE / size_of::<E>()))?;
        let block = Block::wrap(op, values, charge, class, true)?;
        Ok((Storage::of::<E>(block, len), true))
    }

    fn of<E: Element>(block: Box<Block>, len: usize) -> Storage {
        Storage {
            elements: block.elements,
            block: Some(block),
            len,
            dtype: E::DTYPE,
            mark: AtomicU64::new(0),
        }
    }

    /// What a recording knows it by; 0 until one has seen it.
    pub(crate) fn mark(&self) -> u64 {
        self.mark.load(Ordering::Relaxed)
    }

    /// Sets [`mark`](Storage::mark).
    pub(crate) fn set_mark(&self, mark: u64) {
        self.mark.store(mark, Ordering::Relaxed);
    }

    /// The element type.
    pub(crate) fn dtype(&self) -> DType {
        debug_assert!(matches!(
            (self.block.as_ref().map(|block| &block.buffer), self.dtype),
            (Some(Buffer::F32(_)), DType::F32)
                | (Some(Buffer::F64(_)), DType::F64)
                | (Some(Buffer::I64(_)), DType::I64)
                | (Some(Buffer::Bool(_)), DType::Bool)
        ));
        self.dtype
    }

    /// All elements, or `None` if they are of another type.
    pub(crate) fn slice<E: Element>(&self) -> Option<&[E]> {
        if self.dtype != E::DTYPE {
            return None;
        }
        // SAFETY: the block holds `len` initialised elements of type `E` (checked above), was allocated
        // with `E`'s alignment, and lives as long as `self.block`; nobody writes while `self` is shared.
        Some(unsafe { std::slice::from_raw_parts(self.elements.as_ptr().cast::<E>(), self.len) })
    }

    /// All elements for writing, or `None` if they are of another type.
    pub(crate) fn slice_mut<E: Element>(&mut self) -> Option<&mut [E]> {
        if self.dtype != E::DTYPE {
            return None;
        }
        // SAFETY: as in `slice`, and `&mut self` makes this the only access; the pointer came from
        // `as_mut_ptr` of the `Vec` and no reference into the block was made since, other than through it.
        Some(unsafe {
            std::slice::from_raw_parts_mut(self.elements.as_ptr().cast::<E>(), self.len)
        })
    }
}

impl Block {
    /// Hands a `Vec` to dfdx. With `spare`, it is a line longer than needed, and its elements begin at a line's
    /// beginning.
    fn wrap<E: Element>(
        op: &'static str,
        mut values: Vec<E>,
        charge: Charge,
        class: Option<u8>,
        spare: bool,
    ) -> Result<Box<Block>> {
        let mut start = values.as_mut_ptr();
        if spare {
            let shift = start.align_offset(LINE);
            // At most a line, which is there to spare; were it more, the elements would stay where they are.
            if shift <= LINE / size_of::<E>() {
                start = start.wrapping_add(shift);
            }
        }
        // A `Vec` never points at null, even without a heap block.
        let elements = NonNull::new(start.cast::<u8>()).unwrap_or(NonNull::dangling());
        let buffer = E::wrap(values).map_err(|e| Error::Internal {
            op,
            problem: e.to_string(),
        })?;
        Ok(Box::new(Block {
            buffer,
            elements,
            charge,
            class,
        }))
    }
}

fn bytes_of<E: Element>(len: usize) -> u64 {
    (len as u64).saturating_mul(E::DTYPE.size() as u64)
}

/// A `Vec` of whatever numbers the memory holds, or an error as [`zeroed_vec`]. Truth values, of which not
/// every byte is one, come as false.
fn unset_vec<E: Element>(op: &'static str, len: usize) -> Result<Vec<E>> {
    let freezes = cfg!(any(target_arch = "x86_64", target_arch = "aarch64"));
    if len == 0 || E::DTYPE == DType::Bool || !freezes || cfg!(miri) {
        return zeroed_vec(op, len);
    }
    let refused = || Error::Memory {
        op,
        asked: bytes_of::<E>(len),
    };
    let layout = std::alloc::Layout::array::<E>(len).map_err(|_| refused())?;
    // SAFETY: the layout has a size above zero.
    let block = unsafe { std::alloc::alloc(layout) };
    if block.is_null() {
        return Err(refused());
    }
    // To the compiler, memory fresh from the allocator has no value at all, and reading it would be
    // undefined. An assembly block that is given the pointer may have written there, so afterwards the
    // bytes are some number.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    // SAFETY: the block has no instructions.
    unsafe {
        std::arch::asm!("/* {0} */", in(reg) block, options(nostack, preserves_flags));
    }
    // SAFETY: allocated above by the global allocator with the layout of `len` elements; any bytes are
    // numbers of the three element types that are left.
    Ok(unsafe { Vec::from_raw_parts(block.cast::<E>(), len, len) })
}

/// A zeroed `Vec`, or an error where the machine has no such block. Large blocks come from the system
/// already zero, so this costs no pass over memory.
pub(crate) fn zeroed_vec<E: Element>(op: &'static str, len: usize) -> Result<Vec<E>> {
    if len == 0 {
        return Ok(Vec::new());
    }
    let refused = || Error::Memory {
        op,
        asked: bytes_of::<E>(len),
    };
    let layout = std::alloc::Layout::array::<E>(len).map_err(|_| refused())?;
    // SAFETY: the layout has a size above zero.
    let block = unsafe { std::alloc::alloc_zeroed(layout) };
    if block.is_null() {
        return Err(refused());
    }
    // SAFETY: allocated above by the global allocator with the layout of `len` elements; all-zero bytes
    // are a valid value of each of the four element types.
    Ok(unsafe { Vec::from_raw_parts(block.cast::<E>(), len, len) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_the_smallest_class_that_holds_it() {
        let sizes: Vec<usize> = (0..CLASSES as u8).map(class_bytes).collect();
        assert_eq!(
            sizes[..10],
            [64, 128, 192, 256, 320, 384, 448, 512, 640, 768]
        );
        assert_eq!(sizes[CLASSES - 1], 1 << 20);
        assert!(sizes.is_sorted());
        for bytes in (0..3000).chain([(1 << 19) + 1, (1 << 20) - 1, 1 << 20]) {
            let smallest = sizes.iter().position(|&size| size >= bytes);
            assert_eq!(class_of(bytes).map(usize::from), smallest, "{bytes}");
        }
        assert_eq!(class_of((1 << 20) + 1), None);
    }

    #[test]
    fn a_freed_block_is_used_again_and_zeroed_where_zeros_are_asked_for() -> Result<()> {
        let mut first = Storage::unset::<f32>("test", 40)?;
        let at = first.elements;
        first
            .slice_mut::<f32>()
            .into_iter()
            .for_each(|all| all.fill(7.0));
        drop(first);
        let again = Storage::zeroed::<f32>("test", 33)?;
        assert_eq!(again.elements, at);
        assert_eq!(again.slice::<f32>(), Some(&[0.0; 33][..]));
        // Another element type of as many bytes takes another block.
        assert_ne!(Storage::zeroed::<f64>("test", 17)?.elements, at);
        Ok(())
    }

    #[test]
    fn a_block_used_again_is_charged_to_who_uses_it() -> Result<()> {
        use crate::account::Account;
        let (one, two) = (Account::new(None), Account::new(Some(100)));
        let scope = one.enter();
        let first = Storage::unset::<f32>("test", 25)?;
        assert_eq!((one.used_bytes(), two.used_bytes()), (100, 0));
        drop(first);
        drop(scope);
        let scope = two.enter();
        let second = Storage::unset::<f32>("test", 25)?;
        assert_eq!((one.used_bytes(), two.used_bytes()), (0, 100));
        drop(second);
        assert!(Storage::unset::<f32>("test", 26).is_err());
        drop(scope);
        assert_eq!((one.used_bytes(), two.used_bytes()), (0, 0));
        Ok(())
    }

    #[test]
    fn elements_begin_at_a_cache_line_and_a_thread_keeps_a_bounded_number_of_bytes() -> Result<()> {
        let mut held = Vec::new();
        for len in [1, 3, 17, 100, 4097, 65_536] {
            held.push(Storage::unset::<f32>("test", len)?);
            held.push(Storage::zeroed::<bool>("test", len)?);
        }
        assert!(held.iter().all(|s| s.elements.as_ptr().addr() % LINE == 0));
        let many = (0..80).map(|_| Storage::unset::<f64>("test", (1 << 17) - 1));
        drop(many.collect::<Result<Vec<_>>>()?);
        let kept = SHELVES.with(|shelves| shelves.borrow().bytes);
        assert!(kept <= KEPT_BYTES && kept > KEPT_BYTES / 2, "{kept}");
        Ok(())
    }
}
