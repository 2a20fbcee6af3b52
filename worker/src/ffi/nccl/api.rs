//! The functions of `nccl.h`, looked up at run time.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use cudarc::nccl::sys;
use libloading::os::unix::Library;

use super::super::library::{self, Wanted};
use super::{DataType, Error, RedOp};

const LIBNCCL: Wanted = Wanted {
    names: &["libnccl.so.2", "libnccl.so"],
    folders: &["../../nvidia/nccl/lib"],
    remedy: "install PyTorch 2.11 for CUDA 13 and put its torch/lib into LD_LIBRARY_PATH \
             (or pip install nvidia-nccl-cu13 and name its lib folder there)",
};

/// The oldest NCCL whose non-blocking communicators can be finalised and aborted: 2.18.
const OLDEST: c_int = 21_800;
/// `ncclSuccess`.
pub(super) const SUCCESS: u32 = 0;
/// `ncclInProgress`.
const IN_PROGRESS: u32 = 7;

/// `ncclResult_t` as a plain number: a newer NCCL may return one that cudarc's enum does not have.
pub(super) type Code = u32;
pub(super) type Comm = sys::ncclComm_t;
pub(super) type StreamHandle = sys::cudaStream_t;

/// The functions of `nccl.h` that are used, with its types.
pub(super) struct Api {
    pub(super) version: c_int,
    pub(super) get_unique_id: unsafe extern "C" fn(*mut sys::ncclUniqueId) -> Code,
    pub(super) init: unsafe extern "C" fn(
        *mut Comm,
        c_int,
        sys::ncclUniqueId,
        c_int,
        *mut sys::ncclConfig_t,
    ) -> Code,
    pub(super) async_error: unsafe extern "C" fn(Comm, *mut Code) -> Code,
    pub(super) last_error: unsafe extern "C" fn(Comm) -> *const c_char,
    pub(super) finalize: unsafe extern "C" fn(Comm) -> Code,
    pub(super) destroy: unsafe extern "C" fn(Comm) -> Code,
    pub(super) abort: unsafe extern "C" fn(Comm) -> Code,
    pub(super) group_start: unsafe extern "C" fn() -> Code,
    pub(super) group_end: unsafe extern "C" fn() -> Code,
    pub(super) all_reduce: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        DataType,
        RedOp,
        Comm,
        StreamHandle,
    ) -> Code,
    pub(super) reduce: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        DataType,
        RedOp,
        c_int,
        Comm,
        StreamHandle,
    ) -> Code,
    pub(super) all_gather: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        DataType,
        Comm,
        StreamHandle,
    ) -> Code,
    pub(super) reduce_scatter: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        DataType,
        RedOp,
        Comm,
        StreamHandle,
    ) -> Code,
    pub(super) broadcast: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        DataType,
        c_int,
        Comm,
        StreamHandle,
    ) -> Code,
    pub(super) send:
        unsafe extern "C" fn(*const c_void, usize, DataType, c_int, Comm, StreamHandle) -> Code,
    pub(super) receive:
        unsafe extern "C" fn(*mut c_void, usize, DataType, c_int, Comm, StreamHandle) -> Code,
}

impl Api {
    /// Opens NCCL and looks the functions up, once.
    pub(super) fn get() -> Result<&'static Self, Error> {
        static LOADED: OnceLock<Result<Api, Error>> = OnceLock::new();
        LOADED.get_or_init(Self::open).as_ref().map_err(Clone::clone)
    }

    fn open() -> Result<Self, Error> {
        let library = library::open(&LIBNCCL)?;
        /// Looks a function up and gives it the type its field has.
        macro_rules! function {
            ($name:literal) => {{
                // SAFETY: the field's type is the function's declaration in nccl.h, with cudarc's
                // `repr(C)` types, which nccl.h has not changed since 2.18.
                *unsafe { library.get($name) }.map_err(|_| Error::Function { name: $name })?
            }};
        }
        let get_version: unsafe extern "C" fn(*mut c_int) -> Code = function!("ncclGetVersion");
        let mut version = 0;
        // SAFETY: the call fills the local it is given.
        if unsafe { get_version(&mut version) } != SUCCESS || version < OLDEST {
            return Err(Error::Version { version });
        }
        let api = Self {
            version,
            get_unique_id: function!("ncclGetUniqueId"),
            init: function!("ncclCommInitRankConfig"),
            async_error: function!("ncclCommGetAsyncError"),
            last_error: function!("ncclGetLastError"),
            finalize: function!("ncclCommFinalize"),
            destroy: function!("ncclCommDestroy"),
            abort: function!("ncclCommAbort"),
            group_start: function!("ncclGroupStart"),
            group_end: function!("ncclGroupEnd"),
            all_reduce: function!("ncclAllReduce"),
            reduce: function!("ncclReduce"),
            all_gather: function!("ncclAllGather"),
            reduce_scatter: function!("ncclReduceScatter"),
            broadcast: function!("ncclBroadcast"),
            send: function!("ncclSend"),
            receive: function!("ncclRecv"),
        };
        // The functions stay callable: the library is never closed.
        std::mem::forget::<Library>(library);
        Ok(api)
    }

    /// Makes an error of everything but success and "still working on it".
    pub(super) fn check(&self, call: &'static str, result: Code, comm: Comm) -> Result<(), Error> {
        match result {
            SUCCESS | IN_PROGRESS => Ok(()),
            other => Err(Error::Call { call, code: name_of(other), detail: self.last_words(comm) }),
        }
    }

    fn last_words(&self, comm: Comm) -> String {
        // SAFETY: NCCL takes any communicator, also none, and returns a string it owns or null.
        let words = unsafe { (self.last_error)(comm) };
        if words.is_null() {
            return String::new();
        }
        // SAFETY: not null, ends with a zero, and is read before any other call to NCCL.
        unsafe { CStr::from_ptr(words) }.to_string_lossy().trim().to_owned()
    }
}

/// Names of `nccl.h`.
fn name_of(code: Code) -> String {
    let name = match code {
        1 => "ncclUnhandledCudaError",
        2 => "ncclSystemError",
        3 => "ncclInternalError",
        4 => "ncclInvalidArgument",
        5 => "ncclInvalidUsage",
        6 => "ncclRemoteError",
        8 => "ncclTimeout",
        other => return format!("ncclResult_t {other}"),
    };
    name.to_owned()
}
