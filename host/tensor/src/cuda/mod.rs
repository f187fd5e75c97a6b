#![allow(unsafe_code)]
//! One NVIDIA GPU through cudarc: finding it, moving elements there and back, compiling kernels.
//!
//! The driver, the run-time compiler (NVRTC) and cuBLAS are loaded when first used, so this compiles, and
//! the processor works, on a machine that has none of them. cudarc panics where a library is missing or
//! too old; every way into it here looks for the library first and turns a panic into an error.

pub mod kernels;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaModule, CudaSlice, CudaStream, DeviceRepr};

use crate::account::Charge;
use crate::device::DeviceError;
use crate::dtype::Element;

/// An opened GPU. Clones share its context and its stream, on which all work runs in order.
#[derive(Clone, Debug)]
pub struct Gpu {
    ordinal: usize,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
}

/// The element types that cross to the GPU as they are.
pub trait GpuElement: Element + DeviceRepr + Default {}
impl GpuElement for f32 {}
impl GpuElement for f64 {}
impl GpuElement for i64 {}
impl GpuElement for bool {}

/// Elements in GPU memory, charged to the account that was current when they were put there.
#[derive(Debug)]
pub struct Buffer<E: GpuElement> {
    elements: CudaSlice<E>,
    gpu: Gpu,
    _charge: Charge,
}

/// Which of the three libraries this machine has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Libraries {
    /// libcuda, which comes with the driver.
    pub driver: bool,
    /// libnvrtc, which compiles kernels.
    pub compiler: bool,
    /// libcublas, which multiplies matrices.
    pub blas: bool,
}

impl Libraries {
    /// Looks for the libraries.
    pub fn find() -> Libraries {
        // SAFETY: these only try to load the libraries, which run no code of ours.
        unsafe {
            Libraries {
                driver: cudarc::driver::sys::is_culib_present(),
                compiler: cudarc::nvrtc::sys::is_culib_present(),
                blas: cudarc::cublas::sys::is_culib_present(),
            }
        }
    }
}

fn name_of(ordinal: usize) -> String {
    format!("cuda:{ordinal}")
}

/// Runs a call into cudarc; its error, or its panic, becomes [`DeviceError::Refused`].
fn guarded<R, E: std::fmt::Display>(
    ordinal: usize,
    doing: &'static str,
    call: impl FnOnce() -> Result<R, E>,
) -> Result<R, DeviceError> {
    let refused = |problem: String| DeviceError::Refused {
        name: name_of(ordinal),
        doing,
        problem,
    };
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(error)) => Err(refused(error.to_string())),
        Err(panic) => {
            let words = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied());
            Err(refused(
                words
                    .unwrap_or("the CUDA library is incomplete")
                    .to_string(),
            ))
        }
    }
}

impl Gpu {
    /// Opens GPU number `ordinal`.
    ///
    /// # Errors
    /// [`DeviceError::NoLibrary`] without a driver, [`DeviceError::NoSuchDevice`], [`DeviceError::Refused`].
    pub fn open(ordinal: usize) -> Result<Gpu, DeviceError> {
        if !Libraries::find().driver {
            return Err(DeviceError::NoLibrary {
                name: name_of(ordinal),
                library: "libcuda (the NVIDIA driver)",
                mend: "install the driver, or use device `cpu`",
            });
        }
        let count = guarded(ordinal, "counting GPUs", CudaContext::device_count)?;
        let count = usize::try_from(count).unwrap_or(0);
        if ordinal >= count {
            return Err(DeviceError::NoSuchDevice {
                name: name_of(ordinal),
                count,
            });
        }
        let context = guarded(ordinal, "opening the GPU", || CudaContext::new(ordinal))?;
        let stream = context.default_stream();
        Ok(Gpu {
            ordinal,
            context,
            stream,
        })
    }

    /// `cuda:N`.
    pub fn name(&self) -> String {
        name_of(self.ordinal)
    }

    /// The GPU's own name, such as "NVIDIA H100 80GB HBM3".
    ///
    /// # Errors
    /// [`DeviceError::Refused`].
    pub fn model(&self) -> Result<String, DeviceError> {
        guarded(self.ordinal, "asking for the GPU's name", || {
            self.context.name()
        })
    }

    /// Copies elements to the GPU.
    ///
    /// # Errors
    /// [`DeviceError::Engine`] over the account's limit, before anything is allocated;
    /// [`DeviceError::Refused`] where the GPU's memory is full.
    pub fn upload<E: GpuElement>(&self, elements: &[E]) -> Result<Buffer<E>, DeviceError> {
        let mut charge = Charge::default();
        charge.renew(
            "upload",
            (elements.len() as u64).saturating_mul(E::DTYPE.size() as u64),
        )?;
        let elements = guarded(self.ordinal, "copying to the GPU", || {
            // The driver refuses an allocation of nothing; one zero stands for it.
            if elements.is_empty() {
                self.stream.clone_htod(&[E::default()])
            } else {
                self.stream.clone_htod(elements)
            }
        })?;
        Ok(Buffer {
            elements,
            gpu: self.clone(),
            _charge: charge,
        })
    }

    /// Compiles CUDA source, such as [`kernels::ELEMENTWISE`], for this GPU.
    ///
    /// # Errors
    /// [`DeviceError::NoLibrary`] without NVRTC; [`DeviceError::Refused`] with the compiler's words.
    pub fn compile(&self, source: &str) -> Result<Arc<CudaModule>, DeviceError> {
        if !Libraries::find().compiler {
            return Err(DeviceError::NoLibrary {
                name: self.name(),
                library: "libnvrtc (the CUDA toolkit's run-time compiler)",
                mend: "install the CUDA toolkit's runtime libraries, or use device `cpu`",
            });
        }
        let ptx = guarded(self.ordinal, "compiling a kernel", || {
            cudarc::nvrtc::compile_ptx(source)
        })?;
        guarded(self.ordinal, "loading a kernel", || {
            self.context.load_module(ptx)
        })
    }
}

impl<E: GpuElement> Buffer<E> {
    /// The GPU that holds the elements.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Copies the first `len` elements back; waits for the GPU.
    ///
    /// # Errors
    /// [`DeviceError::Refused`].
    pub fn download(&self, len: usize) -> Result<Vec<E>, DeviceError> {
        let mut elements = guarded(self.gpu.ordinal, "copying from the GPU", || {
            let elements = self.gpu.stream.clone_dtoh(&self.elements)?;
            self.gpu.stream.synchronize()?;
            Ok::<_, cudarc::driver::DriverError>(elements)
        })?;
        elements.truncate(len);
        Ok(elements)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_gpu_gives_an_error_and_one_with_it_returns_what_was_sent() {
        match Gpu::open(0) {
            Err(error) => {
                eprintln!("no GPU here, so only the refusal is checked: {error}");
                assert!(error.to_string().contains("cuda:0"), "{error}");
            }
            Ok(gpu) => {
                let sent = [1.5f32, -2.0, f32::INFINITY];
                assert_eq!(gpu.upload(&sent).unwrap().download(3).unwrap(), sent);
                if Libraries::find().compiler {
                    gpu.compile(kernels::ELEMENTWISE).unwrap();
                }
            }
        }
    }

    #[test]
    fn a_gpu_that_does_not_exist_is_named() {
        let error = Gpu::open(4096).unwrap_err();
        assert!(error.to_string().contains("cuda:4096"), "{error}");
    }
}
