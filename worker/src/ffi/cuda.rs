//! Opening libtorch's CUDA half at run time, so that one binary serves machines with and without.

use ringmaster_manifest::spec::Accelerator;
use tch::{Cuda, Device};

/// Why a rank has no GPU; says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// libtorch's CUDA half is not to be had.
    #[error(
        "accelerator: cuda needs libtorch_cuda.so of PyTorch 2.11 ({reason}); put its folder into \
         LD_LIBRARY_PATH, or use accelerator: cpu"
    )]
    Library {
        /// What the dynamic linker said.
        reason: String,
    },
    /// There is no GPU that works.
    #[error(
        "accelerator: cuda, but libtorch finds no CUDA device; check the driver with nvidia-smi, or use \
         accelerator: cpu"
    )]
    NoDevice,
    /// There are fewer GPUs than ranks on this node.
    #[error(
        "local rank {ordinal} has no GPU: this node shows {devices}; start the agent with --slots \
         {devices}"
    )]
    TooFew {
        /// Of the GPU that is wanted, among those that this process sees.
        ordinal: u32,
        /// That it sees.
        devices: i64,
    },
}

impl Error {
    /// Returns what kind of thing is wrong.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Library { .. } => "no libtorch_cuda",
            Self::NoDevice => "no device",
            Self::TooFew { .. } => "too few devices",
        }
    }
}

/// Returns the device of a rank, after opening `libtorch_cuda.so` when it is a GPU: the one that comes at
/// `ordinal` among those that this process sees. That is the local rank where a process sees all GPUs of its
/// node, and zero where its agent shows it its own alone.
///
/// libtorch caches its CUDA hooks at the first query: this must come before any other use of it.
///
/// # Errors
/// No `libtorch_cuda.so`, no GPU, or fewer GPUs than ranks on this node.
pub fn device(accelerator: Accelerator, ordinal: u32) -> Result<Device, Error> {
    if accelerator == Accelerator::Cpu {
        return Ok(Device::Cpu);
    }
    open_libtorch_cuda()?;
    if !Cuda::is_available() {
        return Err(Error::NoDevice);
    }
    let devices = Cuda::device_count();
    if i64::from(ordinal) >= devices {
        return Err(Error::TooFew { ordinal, devices });
    }
    Ok(Device::Cuda(ordinal as usize))
}

fn open_libtorch_cuda() -> Result<(), Error> {
    // SAFETY: libtorch_cuda's initialisers register its kernels with the libtorch_cpu that is
    // already loaded; both come from the same PyTorch release. The handle is leaked on purpose,
    // so no registered code is ever unloaded.
    let library = unsafe { libloading::os::unix::Library::new("libtorch_cuda.so") };
    match library {
        Ok(library) => {
            std::mem::forget(library);
            Ok(())
        }
        Err(error) => Err(Error::Library { reason: super::library::reason(&error) }),
    }
}

/// Returns the GPU that tests run on. On a machine without one the running test is noted as skipped,
/// and has to return; it fails instead where `RINGMASTER_REQUIRE` names `gpu`.
///
/// libtorch notices its CUDA half only before its first use, so tests of the GPU begin with this
/// and run in a process without others: their names begin with `gpu_`, to be selected.
#[cfg(test)]
pub(crate) fn test_device() -> Option<Device> {
    match device(Accelerator::Cuda, 0) {
        Ok(device) => Some(device),
        Err(why) => {
            ringmaster_tests::skips::skip("gpu", &format!("no GPU: {why}"));
            None
        }
    }
}
