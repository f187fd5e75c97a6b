//! Element types: the run-time name ([`DType`]) and the Rust types behind it ([`Element`], [`Float`]).

use std::fmt;

/// What a tensor's elements are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum DType {
    /// IEEE 754 single precision, the default for arithmetic.
    F32,
    /// IEEE 754 double precision.
    F64,
    /// Signed 64-bit integers: indices and class labels.
    I64,
    /// One byte, 0 or 1: results of comparisons, masks.
    Bool,
}

impl DType {
    /// Bytes per element.
    pub const fn size(self) -> usize {
        match self {
            DType::F32 => 4,
            DType::F64 | DType::I64 => 8,
            DType::Bool => 1,
        }
    }

    /// Whether gradients exist for this type.
    pub const fn is_float(self) -> bool {
        matches!(self, DType::F32 | DType::F64)
    }

    /// The name used in messages and in run files.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F64 => "f64",
            DType::I64 => "i64",
            DType::Bool => "bool",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A Rust type that tensors can hold: `f32`, `f64`, `i64` or `bool`.
pub trait Element: crate::storage::Stored {
    /// The run-time name of this type.
    const DTYPE: DType;
    /// Converts from a scalar: to i64 truncates toward zero (saturating, NaN gives 0), to bool is `!= 0`.
    fn from_f64(value: f64) -> Self;
    /// Converts to f64: i64 rounds above 2^53, bool gives 0 or 1.
    fn to_f64(self) -> f64;
    /// Converts to i64: truncates toward zero, saturates, NaN gives 0; exact from i64.
    fn to_i64(self) -> i64;
    /// Converts from i64; exact to i64.
    fn from_i64(value: i64) -> Self;
}

impl Element for f32 {
    const DTYPE: DType = DType::F32;
    #[inline(always)]
    fn from_f64(value: f64) -> f32 {
        value as f32
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn to_i64(self) -> i64 {
        self as i64
    }
    #[inline(always)]
    fn from_i64(value: i64) -> f32 {
        value as f32
    }
}

impl Element for f64 {
    const DTYPE: DType = DType::F64;
    #[inline(always)]
    fn from_f64(value: f64) -> f64 {
        value
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn to_i64(self) -> i64 {
        self as i64
    }
    #[inline(always)]
    fn from_i64(value: i64) -> f64 {
        value as f64
    }
}

impl Element for i64 {
    const DTYPE: DType = DType::I64;
    #[inline(always)]
    fn from_f64(value: f64) -> i64 {
        value as i64
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        self as f64
    }
    #[inline(always)]
    fn to_i64(self) -> i64 {
        self
    }
    #[inline(always)]
    fn from_i64(value: i64) -> i64 {
        value
    }
}

impl Element for bool {
    const DTYPE: DType = DType::Bool;
    #[inline(always)]
    fn from_f64(value: f64) -> bool {
        value != 0.0
    }
    #[inline(always)]
    fn to_f64(self) -> f64 {
        f64::from(u8::from(self))
    }
    #[inline(always)]
    fn to_i64(self) -> i64 {
        i64::from(self)
    }
    #[inline(always)]
    fn from_i64(value: i64) -> bool {
        value != 0
    }
}

/// Runs `$body` with the type alias `$t` set to the element type of a [`DType`].
macro_rules! with_element {
    ($dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $t = f32;
                $body
            }
            $crate::DType::F64 => {
                type $t = f64;
                $body
            }
            $crate::DType::I64 => {
                type $t = i64;
                $body
            }
            $crate::DType::Bool => {
                type $t = bool;
                $body
            }
        }
    };
}

/// Runs `$body` with `$t` set to `f32` or `f64`; any other [`DType`] returns [`crate::Error::DType`]
/// for operation `$op`.
macro_rules! with_float {
    ($op:expr, $dtype:expr, $t:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $t = f32;
                $body
            }
            $crate::DType::F64 => {
                type $t = f64;
                $body
            }
            other => {
                return Err($crate::Error::DType {
                    op: $op,
                    found: vec![other],
                    expected: "f32 or f64; cast with astype",
                });
            }
        }
    };
}

pub(crate) use {with_element, with_float};
