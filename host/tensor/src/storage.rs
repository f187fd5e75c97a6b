#![allow(unsafe_code)]
//! CPU storage: a dfdx buffer, the pointer to its elements, and the account it is charged to.
//!
//! dfdx 0.13 takes a `Vec` as it is and keeps its heap block in place for as long as the buffer lives, so
//! the pointer taken when the `Vec` was handed over stays valid, and slices cost nothing. The dfdx tensor
//! is never cloned nor indexed mutably, so nothing else reaches the block.

use std::ptr::NonNull;

use dfdx::tensor::{Cpu, CpuError, Tensor as Dfdx, TensorFromVec};

use crate::account::Charge;
use crate::dtype::{DType, Element};
use crate::error::{Error, Result};

/// One contiguous block of elements.
pub(crate) struct Storage {
    // Dropped before the charge is given back: fields drop in this order.
    buffer: Buffer,
    elements: NonNull<u8>,
    len: usize,
    dtype: DType,
    _charge: Charge,
}

// SAFETY: the pointer belongs to `buffer`, whose element types are plain numbers; shared access is
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

impl Storage {
    /// Takes over a `Vec` without copying it.
    pub(crate) fn from_vec<E: Element>(op: &'static str, values: Vec<E>) -> Result<Storage> {
        let charge = Charge::take(op, bytes_of::<E>(values.len()))?;
        Storage::charged(op, values, charge)
    }

    /// `len` elements, each zero (false), charged before anything is allocated.
    pub(crate) fn zeroed<E: Element>(op: &'static str, len: usize) -> Result<Storage> {
        let charge = Charge::take(op, bytes_of::<E>(len))?;
        Storage::charged(op, zeroed_vec::<E>(op, len)?, charge)
    }

    /// `len` elements of whatever numbers the memory holds, charged before anything is allocated: for a
    /// kernel that writes every one of them. A debug build fills them with NaN, -1 and true, so that a
    /// kernel that does not shows in its tests.
    pub(crate) fn unset<E: Element>(op: &'static str, len: usize) -> Result<Storage> {
        let charge = Charge::take(op, bytes_of::<E>(len))?;
        Storage::charged(op, unset_vec::<E>(op, len)?, charge)
    }

    fn charged<E: Element>(
        op: &'static str,
        mut values: Vec<E>,
        charge: Charge,
    ) -> Result<Storage> {
        let len = values.len();
        // A `Vec` never points at null, even without a heap block.
        let elements =
            NonNull::new(values.as_mut_ptr().cast::<u8>()).unwrap_or(NonNull::dangling());
        let buffer = E::wrap(values).map_err(|e| Error::Internal {
            op,
            problem: e.to_string(),
        })?;
        Ok(Storage {
            buffer,
            elements,
            len,
            dtype: E::DTYPE,
            _charge: charge,
        })
    }

    /// The element type.
    pub(crate) fn dtype(&self) -> DType {
        debug_assert!(matches!(
            (&self.buffer, self.dtype),
            (Buffer::F32(_), DType::F32)
                | (Buffer::F64(_), DType::F64)
                | (Buffer::I64(_), DType::I64)
                | (Buffer::Bool(_), DType::Bool)
        ));
        self.dtype
    }

    /// All elements, or `None` if they are of another type.
    pub(crate) fn slice<E: Element>(&self) -> Option<&[E]> {
        if self.dtype != E::DTYPE {
            return None;
        }
        // SAFETY: the block holds `len` initialised elements of type `E` (checked above), was allocated
        // with `E`'s alignment, and lives as long as `self.buffer`; nobody writes while `self` is shared.
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
    if cfg!(debug_assertions) {
        // SAFETY: the block was allocated above with this size.
        unsafe { block.write_bytes(0xFF, layout.size()) };
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
