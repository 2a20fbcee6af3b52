//! The CUDA driver: contexts, streams, events, and kernels compiled at run time.
//!
//! cudarc looks every function up when it is first called and panics where the library is missing,
//! so everything here starts with a [`Context`], and [`Context::primary`] opens the library first.

use std::ffi::{CStr, c_void};
use std::sync::OnceLock;

use cudarc::driver::sys;

use super::library::{self, Missing, Wanted};

const LIBCUDA: Wanted = Wanted {
    // The second is among the names cudarc tries, and finds whatever the first has loaded.
    names: &["libcuda.so.1", "libcuda.so"],
    folders: &[],
    remedy: "install NVIDIA's driver (nvidia-smi must work), or use accelerator: cpu",
};

/// Why the driver did not do what was asked.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// There is no driver.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// The driver cannot be used at all, or shows no GPU.
    #[error(
        "the CUDA driver cannot be used ({code}); check it with nvidia-smi, or use accelerator: cpu"
    )]
    Unusable {
        /// CUDA's name of the error.
        code: String,
    },
    /// A call failed.
    #[error("{call} failed: {code}")]
    Call {
        call: &'static str,
        /// CUDA's name of the error.
        code: String,
    },
}

/// Makes an error of everything but success.
pub(super) fn check(call: &'static str, result: sys::CUresult) -> Result<(), Error> {
    match result {
        sys::CUresult::CUDA_SUCCESS => Ok(()),
        other => Err(Error::Call { call, code: format!("{other:?}") }),
    }
}

/// Opens and initialises the driver, once.
pub(super) fn load() -> Result<(), Error> {
    static LOADED: OnceLock<Result<(), Error>> = OnceLock::new();
    LOADED
        .get_or_init(|| {
            // Never closed: cudarc keeps what it finds in it for the process's life.
            std::mem::forget(library::open(&LIBCUDA)?);
            // SAFETY: the library is loaded, so cudarc finds it; cuInit takes no pointers.
            let result = unsafe { sys::cuInit(0) };
            match result {
                sys::CUresult::CUDA_SUCCESS => Ok(()),
                other => Err(Error::Unusable { code: format!("{other:?}") }),
            }
        })
        .clone()
}

/// The primary context of a device: the one libtorch works in.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    handle: sys::CUcontext,
    device: sys::CUdevice,
}

// SAFETY: the driver lets any number of threads make one context current and use it; the handle is
// never released (see `primary`).
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Returns the context of device `ordinal`, numbered as libtorch numbers them.
    ///
    /// # Errors
    /// There is no driver, no such device, or its context cannot be made.
    pub fn primary(ordinal: usize) -> Result<Self, Error> {
        load()?;
        let ordinal = i32::try_from(ordinal).unwrap_or(i32::MAX);
        let (mut device, mut handle) = (0, std::ptr::null_mut());
        // SAFETY: the driver is initialised; `device` is a local the call fills.
        check("cuDeviceGet", unsafe { sys::cuDeviceGet(&mut device, ordinal) })?;
        // SAFETY: `device` came from cuDeviceGet and `handle` is a local. The reference this takes
        // is never given back, so the context outlives every copy of `Self`.
        check("cuDevicePrimaryCtxRetain", unsafe {
            sys::cuDevicePrimaryCtxRetain(&mut handle, device)
        })?;
        Ok(Self { handle, device })
    }

    /// Makes it the calling thread's current context.
    fn enter(self) -> Result<(), Error> {
        // SAFETY: the handle is valid for the process's life.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(self.handle) })
    }

    /// Returns the bytes of device memory that no process has taken.
    ///
    /// # Errors
    /// The driver's.
    pub fn free_memory(self) -> Result<u64, Error> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: a context is current and both are locals the call fills.
        check("cuMemGetInfo", unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) })?;
        Ok(free as u64)
    }

    /// Returns the device's address on the PCI bus (`0000:17:00.0`), by which other libraries know it.
    ///
    /// # Errors
    /// The driver's.
    pub fn pci_address(self) -> Result<String, Error> {
        let mut text = [0_u8; 32];
        // SAFETY: `text` has as many bytes as are named; the device is valid.
        check("cuDeviceGetPCIBusId", unsafe {
            sys::cuDeviceGetPCIBusId(text.as_mut_ptr().cast(), text.len() as i32, self.device)
        })?;
        let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
        Ok(String::from_utf8_lossy(&text[..end]).into_owned())
    }

    /// Returns (major, minor) of the device's compute capability.
    ///
    /// # Errors
    /// The driver's.
    pub fn compute_capability(self) -> Result<(u32, u32), Error> {
        use sys::CUdevice_attribute as Attribute;
        let read = |attribute| {
            let mut value = 0;
            // SAFETY: `value` is a local the call fills; the device is valid.
            let result = unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, self.device) };
            check("cuDeviceGetAttribute", result)?;
            Ok::<_, Error>(u32::try_from(value).unwrap_or(0))
        };
        Ok((
            read(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            read(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ))
    }
}

/// A queue of device work.
#[derive(Debug)]
pub struct Stream {
    context: Context,
    handle: sys::CUstream,
    owned: bool,
}

// SAFETY: streams are not tied to a thread.
unsafe impl Send for Stream {}

impl Stream {
    /// Returns the stream on which libtorch computes unless told otherwise, which nobody here does:
    /// the legacy default stream.
    pub fn legacy(context: Context) -> Self {
        // The driver's own name for it; a constant, not an address.
        let handle = std::ptr::without_provenance_mut(1);
        Self { context, handle, owned: false }
    }

    /// Makes a stream that neither waits for the legacy default stream nor is waited for by it.
    ///
    /// # Errors
    /// The driver's.
    pub fn independent(context: Context) -> Result<Self, Error> {
        context.enter()?;
        let mut handle = std::ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is current; `handle` is a local the call fills.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut handle, flags) })?;
        Ok(Self { context, handle, owned: true })
    }

    /// Lets what is queued from now on wait, on the device, until `event` has happened.
    ///
    /// # Errors
    /// The driver's.
    pub fn wait_for(&self, event: &Event) -> Result<(), Error> {
        self.context.enter()?;
        // SAFETY: both handles are alive; flags must be 0.
        check("cuStreamWaitEvent", unsafe { sys::cuStreamWaitEvent(self.handle, event.handle, 0) })
    }

    /// Blocks until everything queued so far has ended.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    pub fn synchronize(&self) -> Result<(), Error> {
        self.context.enter()?;
        // SAFETY: the handle is alive.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.handle) })
    }

    /// The driver's handle, which NCCL takes too.
    pub(super) fn handle(&self) -> sys::CUstream {
        self.handle
    }

    /// Makes the stream's context current, as NCCL and launches need it.
    pub(super) fn enter(&self) -> Result<(), Error> {
        self.context.enter()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.owned && self.context.enter().is_ok() {
            // SAFETY: this is the only owner; the driver frees the stream once its work has ended.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.handle) };
        }
    }
}

/// A point in a stream's work.
#[derive(Debug)]
pub struct Event {
    context: Context,
    handle: sys::CUevent,
}

// SAFETY: events are not tied to a thread, and the driver takes concurrent calls on one.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// Marks the end of what is queued on `stream` now.
    ///
    /// # Errors
    /// The driver's.
    pub fn record(stream: &Stream) -> Result<Self, Error> {
        stream.enter()?;
        let mut handle = std::ptr::null_mut();
        // Without timing: cheaper to record and to wait for.
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: the context is current; `handle` is a local the call fills.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut handle, flags) })?;
        let event = Self { context: stream.context, handle };
        // SAFETY: stream and event are alive and of one context, which is current.
        check("cuEventRecord", unsafe { sys::cuEventRecord(handle, stream.handle) })?;
        Ok(event)
    }

    /// Whether everything before it has ended.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    pub fn has_happened(&self) -> Result<bool, Error> {
        // SAFETY: the handle is alive.
        match unsafe { sys::cuEventQuery(self.handle) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            other => check("cuEventQuery", other).map(|()| true),
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if self.context.enter().is_ok() {
            // SAFETY: this is the only owner; destroying one that has not happened yet is allowed,
            // waits for it that are queued already stay in force.
            let _ = unsafe { sys::cuEventDestroy_v2(self.handle) };
        }
    }
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub enum Argument {
    /// Device address; 0 is a null pointer.
    Pointer(u64),
    /// `long long`.
    Long(i64),
    /// `int`.
    Int(i32),
    /// `float`.
    Float(f32),
}

impl Argument {
    /// The value's bytes, at the start of eight.
    fn bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        match self {
            Self::Pointer(value) => bytes = value.to_ne_bytes(),
            Self::Long(value) => bytes = value.to_ne_bytes(),
            Self::Int(value) => bytes[..4].copy_from_slice(&value.to_ne_bytes()),
            Self::Float(value) => bytes[..4].copy_from_slice(&value.to_ne_bytes()),
        }
        bytes
    }
}

/// Loaded device code.
#[derive(Debug)]
pub struct Module {
    context: Context,
    handle: sys::CUmodule,
}

// SAFETY: modules are not tied to a thread.
unsafe impl Send for Module {}
// SAFETY: as above; nothing here changes a module after it was loaded.
unsafe impl Sync for Module {}

/// A kernel of a [`Module`], which lives as long as the process.
#[derive(Debug)]
pub struct Function {
    context: Context,
    handle: sys::CUfunction,
}

// SAFETY: functions are not tied to a thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Module {
    /// Loads what [`super::nvrtc::compile`] made, for the rest of the process's life.
    ///
    /// # Errors
    /// The driver refuses the code: it is older than the compiler, say.
    pub fn load(context: Context, code: &super::nvrtc::Code) -> Result<Self, Error> {
        context.enter()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the bytes are a complete cubin, or PTX with its terminating zero; the driver
        // copies what it needs before it returns.
        check("cuModuleLoadData", unsafe {
            sys::cuModuleLoadData(&mut handle, code.bytes().as_ptr().cast())
        })?;
        Ok(Self { context, handle })
    }

    /// Returns one of its kernels.
    ///
    /// # Errors
    /// It has none of that name.
    pub fn function(&self, name: &CStr) -> Result<Function, Error> {
        self.context.enter()?;
        let mut handle = std::ptr::null_mut();
        // SAFETY: the module is loaded and never unloaded; `name` ends with a zero.
        check("cuModuleGetFunction", unsafe {
            sys::cuModuleGetFunction(&mut handle, self.handle, name.as_ptr())
        })?;
        Ok(Function { context: self.context, handle })
    }
}

impl Function {
    /// Queues the kernel on the legacy default stream, over two-dimensional blocks and grid.
    ///
    /// Contract: `arguments` are those of the kernel's declaration, in number, order and type, and
    /// its accesses stay inside live device memory. Each kernel has one caller, which checks the
    /// tensors it passes.
    ///
    /// # Errors
    /// The driver's.
    pub fn launch(
        &self,
        grid: (u32, u32),
        block: (u32, u32),
        arguments: &[Argument],
    ) -> Result<(), Error> {
        self.context.enter()?;
        let mut values: Vec<[u64; 1]> =
            arguments.iter().map(|a| [u64::from_ne_bytes(a.bytes())]).collect();
        let mut pointers: Vec<*mut c_void> =
            values.iter_mut().map(|value| value.as_mut_ptr().cast()).collect();
        let stream = Stream::legacy(self.context);
        // SAFETY: the function is loaded for the process's life and its context is current; each
        // pointer is to eight aligned bytes that begin with the value, which the driver copies
        // before it returns; number and types are the caller's contract.
        let result = unsafe {
            sys::cuLaunchKernel(
                self.handle,
                grid.0,
                grid.1,
                1,
                block.0,
                block.1,
                1,
                0,
                stream.handle,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        check("cuLaunchKernel", result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_laid_out_as_the_device_reads_them() {
        assert_eq!(Argument::Int(-2).bytes()[..4], (-2_i32).to_ne_bytes());
        assert_eq!(Argument::Float(1.5).bytes()[..4], 1.5_f32.to_ne_bytes());
        assert_eq!(Argument::Long(-3).bytes(), (-3_i64).to_ne_bytes());
        assert_eq!(Argument::Pointer(7).bytes(), 7_u64.to_ne_bytes());
    }

    #[test]
    fn without_a_usable_gpu_the_context_says_what_to_do() {
        // A machine with a GPU has nothing to say here.
        if let Err(error) = Context::primary(0) {
            let text = error.to_string();
            assert!(text.contains("nvidia-smi") && text.contains("accelerator: cpu"), "{text}");
        }
    }
}
