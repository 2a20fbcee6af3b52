//! Opening libtorch's CUDA half at run time, so that one binary serves machines with and without.

use ringmaster_manifest::spec::Accelerator;
use tch::{Cuda, Device};

/// Returns the device of a rank, after opening `libtorch_cuda.so` when it is a GPU.
///
/// libtorch caches its CUDA hooks at the first query: this must come before any other use of it.
///
/// # Errors
/// No `libtorch_cuda.so`, no GPU, or fewer GPUs than ranks on this node; says what to do.
pub fn device(accelerator: Accelerator, local_rank: u32) -> Result<Device, String> {
    if accelerator == Accelerator::Cpu {
        return Ok(Device::Cpu);
    }
    open_libtorch_cuda()?;
    if !Cuda::is_available() {
        return Err("accelerator: cuda, but libtorch finds no CUDA device; \
                    check the driver with nvidia-smi, or use accelerator: cpu"
            .to_owned());
    }
    let devices = Cuda::device_count();
    if i64::from(local_rank) >= devices {
        return Err(format!(
            "local rank {local_rank} has no GPU: this node shows {devices}; \
             start the agent with --slots {devices}"
        ));
    }
    Ok(Device::Cuda(local_rank as usize))
}

fn open_libtorch_cuda() -> Result<(), String> {
    // SAFETY: libtorch_cuda's initialisers register its kernels with the libtorch_cpu that is
    // already loaded; both come from the same PyTorch release. The handle is leaked on purpose,
    // so no registered code is ever unloaded.
    let library = unsafe { libloading::os::unix::Library::new("libtorch_cuda.so") };
    match library {
        Ok(library) => {
            std::mem::forget(library);
            Ok(())
        }
        Err(error) => Err(format!(
            "accelerator: cuda needs libtorch_cuda.so of PyTorch 2.11 ({}); \
             put its folder into LD_LIBRARY_PATH, or use accelerator: cpu",
            super::library::reason(&error)
        )),
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
