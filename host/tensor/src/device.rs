//! Where tensors live and kernels run: the processor, or one GPU.
//!
//! This is the seam for the second device. [`Device::open`] finds it and says clearly why it cannot be
//! had; [`crate::cuda`] moves elements there and back and compiles kernels. Operations run on the
//! processor for now: a storage on the GPU and the kernels behind each operation come with the GPU work.

use crate::error::Error;

/// A device that was found and opened.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Device {
    /// The processor and its memory.
    Cpu,
    /// One NVIDIA GPU.
    #[cfg(feature = "cuda")]
    Cuda(crate::cuda::Gpu),
}

/// Why a device could not be opened or used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// Not the name of a device.
    #[error("unknown device `{name}`: expected `cpu` or `cuda:N`, such as `cuda:0`")]
    Unknown {
        /// The name as given.
        name: String,
    },
    /// This build has no GPU support.
    #[error(
        "device `{name}`: this build runs on the processor only; \
         rebuild with `--features espalier-tensor/cuda`, or use device `cpu`"
    )]
    NotBuilt {
        /// The name as given.
        name: String,
    },
    /// A library of the CUDA installation was not found.
    #[error("device `{name}`: {library} was not found on this machine; {mend}")]
    NoLibrary {
        /// The device's name.
        name: String,
        /// The library and what it belongs to.
        library: &'static str,
        /// What to do.
        mend: &'static str,
    },
    /// The machine has fewer GPUs.
    #[error("device `{name}` does not exist: the driver reports {count} GPU(s), numbered from 0")]
    NoSuchDevice {
        /// The device's name.
        name: String,
        /// How many GPUs the driver reports.
        count: usize,
    },
    /// The driver or the compiler refused.
    #[error("device `{name}`: {doing} failed: {problem}")]
    Refused {
        /// The device's name.
        name: String,
        /// What was being done.
        doing: &'static str,
        /// The driver's or compiler's words.
        problem: String,
    },
    /// The engine refused, for instance for lack of budget.
    #[error(transparent)]
    Engine(#[from] Error),
}

impl Device {
    /// Opens `cpu` or `cuda:N`.
    ///
    /// # Errors
    /// [`DeviceError`] says what is missing. A machine without a GPU or its driver is an error, never a
    /// panic.
    pub fn open(name: &str) -> Result<Device, DeviceError> {
        if name == "cpu" {
            return Ok(Device::Cpu);
        }
        let number = name
            .strip_prefix("cuda:")
            .filter(|n| n.bytes().all(|b| b.is_ascii_digit()));
        let Some(ordinal) = number.and_then(|n| n.parse::<usize>().ok()) else {
            return Err(DeviceError::Unknown { name: name.into() });
        };
        open_gpu(name, ordinal)
    }

    /// The name that [`open`](Device::open) takes.
    pub fn name(&self) -> String {
        match self {
            Device::Cpu => "cpu".into(),
            #[cfg(feature = "cuda")]
            Device::Cuda(gpu) => gpu.name(),
        }
    }
}

#[cfg(feature = "cuda")]
fn open_gpu(_name: &str, ordinal: usize) -> Result<Device, DeviceError> {
    crate::cuda::Gpu::open(ordinal).map(Device::Cuda)
}

#[cfg(not(feature = "cuda"))]
fn open_gpu(name: &str, _ordinal: usize) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt { name: name.into() })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_no_device_are_refused() {
        assert!(matches!(Device::open("cpu"), Ok(Device::Cpu)));
        assert_eq!(Device::Cpu.name(), "cpu");
        for name in [
            "",
            "gpu",
            "cuda",
            "cuda:",
            "cuda:-1",
            "cuda:+1",
            "cuda:x",
            "cuda:99999999999999999999",
        ] {
            let error = Device::open(name).unwrap_err();
            assert_eq!(error, DeviceError::Unknown { name: name.into() });
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_gpu_support_says_how_to_get_it() {
        let error = Device::open("cuda:0").unwrap_err();
        assert!(
            error.to_string().contains("espalier-tensor/cuda"),
            "{error}"
        );
    }
}
