//! NCCL: the library's functions, and a communicator that one thread owns.
//!
//! cudarc's types, but not its loader: that looks for `libnccl.so` and never for `libnccl.so.2`, the
//! only name the Python wheels ship, and it cannot be helped from inside the process: an already
//! loaded library is found again only under the name it calls itself (`libnccl.so.2`), and changes
//! of `LD_LIBRARY_PATH` after the start are not seen. So the few functions that are used are looked
//! up here, once, by the names of `nccl.h`.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::sync::OnceLock;

use cudarc::nccl::sys;
pub use cudarc::nccl::sys::{ncclDataType_t as DataType, ncclRedOp_t as RedOp};
use libloading::os::unix::Library;

use super::device_memory::DeviceBytes;
use super::driver::Stream;
use super::library::{self, Missing, Wanted};

const LIBNCCL: Wanted = Wanted {
    names: &["libnccl.so.2", "libnccl.so"],
    folders: &["../../nvidia/nccl/lib"],
    remedy: "install PyTorch 2.11 for CUDA 13 and put its torch/lib into LD_LIBRARY_PATH \
             (or pip install nvidia-nccl-cu13 and name its lib folder there)",
};

/// The oldest NCCL whose non-blocking communicators can be finalised and aborted: 2.18.
const OLDEST: c_int = 21_800;
/// `nccl.h` writes this into every configuration.
const CONFIG_MAGIC: u32 = 0xcafe_beef;
/// The version whose configuration structure cudarc's feature `nccl-02028` declares. NCCL reads what
/// it knows of it, older ones less, newer ones fill in the rest.
const CONFIG_VERSION: u32 = 22_800;
/// `ncclSuccess`.
const SUCCESS: u32 = 0;
/// `ncclInProgress`.
const IN_PROGRESS: u32 = 7;
/// `NCCL_CONFIG_UNDEF_INT`: let NCCL choose.
const UNDEFINED: c_int = c_int::MIN;

/// Why NCCL did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// There is no NCCL.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// It lacks a function.
    #[error(
        "the libnccl that was found has no {name}; ringmaster needs NCCL 2.18 or newer, PyTorch 2.11 brings 2.28"
    )]
    Function {
        /// The function.
        name: &'static str,
    },
    /// It is too old.
    #[error("NCCL is {}.{}, but must be 2.18 or newer; PyTorch 2.11 brings 2.28", .version / 10_000, .version / 100 % 100)]
    Version {
        /// As `ncclGetVersion` gives it.
        version: c_int,
    },
    /// A call failed, at once or later.
    #[error("{call}: {code}{}{detail}", if .detail.is_empty() { "" } else { ": " })]
    Call {
        /// The function, or `communicator` for what NCCL reports by itself.
        call: &'static str,
        /// NCCL's name of the error.
        code: String,
        /// NCCL's last words on it.
        detail: String,
    },
    /// The driver failed.
    #[error(transparent)]
    Driver(#[from] super::driver::Error),
}

/// `ncclResult_t` as a plain number: a newer NCCL may return one that cudarc's enum does not have.
type Code = u32;
type Comm = sys::ncclComm_t;
type StreamHandle = sys::cudaStream_t;

/// The functions of `nccl.h` that are used, with its types.
struct Api {
    version: c_int,
    get_unique_id: unsafe extern "C" fn(*mut sys::ncclUniqueId) -> Code,
    init: unsafe extern "C" fn(
        *mut Comm,
        c_int,
        sys::ncclUniqueId,
        c_int,
        *mut sys::ncclConfig_t,
    ) -> Code,
    async_error: unsafe extern "C" fn(Comm, *mut Code) -> Code,
    last_error: unsafe extern "C" fn(Comm) -> *const c_char,
    finalize: unsafe extern "C" fn(Comm) -> Code,
    destroy: unsafe extern "C" fn(Comm) -> Code,
    abort: unsafe extern "C" fn(Comm) -> Code,
    group_start: unsafe extern "C" fn() -> Code,
    group_end: unsafe extern "C" fn() -> Code,
    all_reduce: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        DataType,
        RedOp,
        Comm,
        StreamHandle,
    ) -> Code,
    reduce: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        DataType,
        RedOp,
        c_int,
        Comm,
        StreamHandle,
    ) -> Code,
    all_gather: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        DataType,
        Comm,
        StreamHandle,
    ) -> Code,
    reduce_scatter: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        DataType,
        RedOp,
        Comm,
        StreamHandle,
    ) -> Code,
    broadcast: unsafe extern "C" fn(
        *const c_void,
        *mut c_void,
        usize,
        DataType,
        c_int,
        Comm,
        StreamHandle,
    ) -> Code,
    send: unsafe extern "C" fn(*const c_void, usize, DataType, c_int, Comm, StreamHandle) -> Code,
    receive: unsafe extern "C" fn(*mut c_void, usize, DataType, c_int, Comm, StreamHandle) -> Code,
}

impl Api {
    /// Opens NCCL and looks the functions up, once.
    fn get() -> Result<&'static Self, Error> {
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
    fn check(&self, call: &'static str, result: Code, comm: Comm) -> Result<(), Error> {
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

/// Returns NCCL's version as (major, minor, patch).
///
/// # Errors
/// There is no usable NCCL; says what to do.
pub fn version() -> Result<(u32, u32, u32), Error> {
    let version = Api::get()?.version.unsigned_abs();
    Ok((version / 10_000, version / 100 % 100, version % 100))
}

/// What the ranks of a communicator need to find one another.
#[derive(Clone, PartialEq, Eq)]
pub struct UniqueId([u8; Self::LEN]);

impl UniqueId {
    /// Bytes of an id.
    pub const LEN: usize = 128;

    /// Makes a new one: this process then listens for the other ranks, at an address of
    /// `NCCL_SOCKET_IFNAME` if that is set. Needs no GPU.
    ///
    /// # Errors
    /// There is no usable NCCL, or it finds no network interface.
    pub fn create() -> Result<Self, Error> {
        let api = Api::get()?;
        let mut id = sys::ncclUniqueId { internal: [0; Self::LEN] };
        // SAFETY: the call fills the local it is given.
        let result = unsafe { (api.get_unique_id)(&mut id) };
        api.check("ncclGetUniqueId", result, std::ptr::null_mut())?;
        Ok(Self(id.internal.map(|c| c as u8)))
    }

    /// Reads one that came over the network; none when the length is wrong.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Returns the bytes to send.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for UniqueId {
    // Whoever knows it can join the communicator.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("UniqueId(…)")
    }
}

/// Returns a configuration in which NCCL chooses everything, and no call blocks.
fn non_blocking() -> sys::ncclConfig_t {
    sys::ncclConfig_t {
        size: size_of::<sys::ncclConfig_t>(),
        magic: CONFIG_MAGIC,
        version: CONFIG_VERSION,
        blocking: 0,
        cgaClusterSize: UNDEFINED,
        minCTAs: UNDEFINED,
        maxCTAs: UNDEFINED,
        netName: std::ptr::null(),
        splitShare: UNDEFINED,
        trafficClass: UNDEFINED,
        commName: std::ptr::null(),
        collnetEnable: UNDEFINED,
        CTAPolicy: UNDEFINED,
        shrinkShare: UNDEFINED,
        nvlsCTAs: UNDEFINED,
        nChannelsPerNetPeer: UNDEFINED,
        nvlinkCentricSched: UNDEFINED,
    }
}

/// A rank's end of a group of GPUs. Not `Send`: NCCL forbids concurrent calls on one, so it stays on
/// the thread that made it.
///
/// No call blocks. After each one [`Communicator::is_ready`] must have returned true before the next,
/// and before anything may count on the queued work being in the stream.
pub struct Communicator {
    api: &'static Api,
    handle: Comm,
    _one_thread: PhantomData<*const ()>,
}

impl std::fmt::Debug for Communicator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Communicator").field("handle", &self.handle).finish_non_exhaustive()
    }
}

impl Communicator {
    /// Starts to form a communicator of `world_size` ranks on the device of `stream`.
    ///
    /// # Errors
    /// There is no usable NCCL, or it refuses at once.
    pub fn begin(
        id: &UniqueId,
        rank: usize,
        world_size: usize,
        stream: &Stream,
    ) -> Result<Self, Error> {
        let api = Api::get()?;
        stream.enter()?;
        let id = sys::ncclUniqueId { internal: id.0.map(|byte| byte as c_char) };
        let mut config = non_blocking();
        let mut handle = std::ptr::null_mut();
        // SAFETY: `handle` and `config` are locals NCCL reads or fills before it returns; size, magic
        // and version of `config` tell it how much of it there is.
        let result =
            unsafe { (api.init)(&mut handle, integer(world_size), id, integer(rank), &mut config) };
        api.check("ncclCommInitRankConfig", result, std::ptr::null_mut())?;
        Ok(Self { api, handle, _one_thread: PhantomData })
    }

    /// Whether the last call has done its part on the host.
    ///
    /// # Errors
    /// What went wrong since, here or at a peer; only [`Communicator::abort`] is left then.
    pub fn is_ready(&self) -> Result<bool, Error> {
        let mut state = SUCCESS;
        // SAFETY: the communicator is alive; `state` is a local the call fills.
        let result = unsafe { (self.api.async_error)(self.handle, &mut state) };
        self.api.check("ncclCommGetAsyncError", result, self.handle)?;
        self.api.check("communicator", state, self.handle)?;
        Ok(state == SUCCESS)
    }

    /// Queues several calls as one: none waits for another.
    ///
    /// # Errors
    /// The first that any of them returns.
    pub fn group(
        &mut self,
        calls: impl FnOnce(&mut Self) -> Result<(), Error>,
    ) -> Result<(), Error> {
        // SAFETY: takes nothing; NCCL counts groups per thread, and each start here has its end.
        let started = unsafe { (self.api.group_start)() };
        self.api.check("ncclGroupStart", started, self.handle)?;
        let result = calls(self);
        // SAFETY: as above.
        let ended = unsafe { (self.api.group_end)() };
        result.and(self.api.check("ncclGroupEnd", ended, self.handle))
    }

    /// Combines `data` over all ranks in place.
    ///
    /// # Errors
    /// NCCL's.
    pub fn all_reduce(
        &mut self,
        data: DeviceBytes,
        dtype: DataType,
        op: RedOp,
        stream: &Stream,
    ) -> Result<(), Error> {
        let (pointer, count) = (pointer(data), elements(data, dtype));
        // SAFETY: `data` is device memory that its contract keeps alive and to this work alone until
        // the work queued here has ended.
        let result = unsafe {
            (self.api.all_reduce)(pointer, pointer, count, dtype, op, self.handle, raw(stream))
        };
        self.api.check("ncclAllReduce", result, self.handle)
    }

    /// Concatenates `from` of all ranks, which have one length, into `to`.
    ///
    /// # Errors
    /// NCCL's.
    pub fn all_gather(
        &mut self,
        from: DeviceBytes,
        to: DeviceBytes,
        dtype: DataType,
        stream: &Stream,
    ) -> Result<(), Error> {
        let count = elements(from, dtype);
        // SAFETY: as for all_reduce; the caller's `to` has room for all ranks' parts.
        let result = unsafe {
            (self.api.all_gather)(
                pointer(from),
                pointer(to),
                count,
                dtype,
                self.handle,
                raw(stream),
            )
        };
        self.api.check("ncclAllGather", result, self.handle)
    }

    /// Sums `from` over all ranks and leaves this rank's part, one of equal parts, in `to`.
    ///
    /// # Errors
    /// NCCL's.
    pub fn reduce_scatter(
        &mut self,
        from: DeviceBytes,
        to: DeviceBytes,
        dtype: DataType,
        stream: &Stream,
    ) -> Result<(), Error> {
        let count = elements(to, dtype);
        // SAFETY: as for all_reduce; the caller's `from` holds a part for every rank.
        let result = unsafe {
            (self.api.reduce_scatter)(
                pointer(from),
                pointer(to),
                count,
                dtype,
                RedOp::ncclSum,
                self.handle,
                raw(stream),
            )
        };
        self.api.check("ncclReduceScatter", result, self.handle)
    }

    /// Sums `from` of all ranks into `to` of rank `root`; the others give no `to`.
    ///
    /// # Errors
    /// NCCL's.
    pub fn reduce(
        &mut self,
        from: DeviceBytes,
        to: Option<DeviceBytes>,
        dtype: DataType,
        root: usize,
        stream: &Stream,
    ) -> Result<(), Error> {
        let target = to.map_or(std::ptr::null_mut(), pointer);
        let count = elements(from, dtype);
        assert!(to.is_none_or(|to| to.len() == from.len()), "the parts of a sum have one length");
        // SAFETY: as for all_reduce, both of one length; nccl.h lets all but the root pass null.
        let result = unsafe {
            (self.api.reduce)(
                pointer(from),
                target,
                count,
                dtype,
                RedOp::ncclSum,
                integer(root),
                self.handle,
                raw(stream),
            )
        };
        self.api.check("ncclReduce", result, self.handle)
    }

    /// Copies `from` of rank `root` to `to` of all; what the others give as `from` is not read.
    ///
    /// # Errors
    /// NCCL's.
    pub fn broadcast(
        &mut self,
        from: DeviceBytes,
        to: DeviceBytes,
        dtype: DataType,
        root: usize,
        stream: &Stream,
    ) -> Result<(), Error> {
        assert_eq!(from.len(), to.len(), "a copy is as long as its original");
        let count = elements(to, dtype);
        // SAFETY: as for all_reduce, both of one length.
        let result = unsafe {
            (self.api.broadcast)(
                pointer(from),
                pointer(to),
                count,
                dtype,
                integer(root),
                self.handle,
                raw(stream),
            )
        };
        self.api.check("ncclBroadcast", result, self.handle)
    }

    /// Sends `data` to rank `peer`, which receives as much.
    ///
    /// # Errors
    /// NCCL's.
    pub fn send(
        &mut self,
        data: DeviceBytes,
        dtype: DataType,
        peer: usize,
        stream: &Stream,
    ) -> Result<(), Error> {
        let count = elements(data, dtype);
        // SAFETY: as for all_reduce.
        let result = unsafe {
            (self.api.send)(pointer(data), count, dtype, integer(peer), self.handle, raw(stream))
        };
        self.api.check("ncclSend", result, self.handle)
    }

    /// Receives `data` from rank `peer`.
    ///
    /// # Errors
    /// NCCL's.
    pub fn receive(
        &mut self,
        data: DeviceBytes,
        dtype: DataType,
        peer: usize,
        stream: &Stream,
    ) -> Result<(), Error> {
        let count = elements(data, dtype);
        // SAFETY: as for all_reduce.
        let result = unsafe {
            (self.api.receive)(pointer(data), count, dtype, integer(peer), self.handle, raw(stream))
        };
        self.api.check("ncclRecv", result, self.handle)
    }

    /// Starts to close: [`Communicator::is_ready`] says when all queued work has ended.
    ///
    /// # Errors
    /// NCCL's.
    pub fn finalize(&mut self) -> Result<(), Error> {
        // SAFETY: the communicator is alive.
        let result = unsafe { (self.api.finalize)(self.handle) };
        self.api.check("ncclCommFinalize", result, self.handle)
    }

    /// Frees a communicator whose [`Communicator::finalize`] has come to its end.
    ///
    /// # Errors
    /// NCCL's.
    pub fn destroy(self) -> Result<(), Error> {
        // SAFETY: alive until here, and nothing uses it afterwards: `self` is gone.
        let result = unsafe { (self.api.destroy)(self.handle) };
        self.api.check("ncclCommDestroy", result, std::ptr::null_mut())
    }

    /// Ends all queued work, whether peers are there or not, and frees the communicator. May block
    /// when the device or the network hangs: whoever calls it keeps a watch.
    ///
    /// # Errors
    /// NCCL's.
    pub fn abort(self) -> Result<(), Error> {
        // SAFETY: as for destroy.
        let result = unsafe { (self.api.abort)(self.handle) };
        self.api.check("ncclCommAbort", result, std::ptr::null_mut())
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

fn integer(value: usize) -> c_int {
    c_int::try_from(value).expect("ranks and their number fit an int")
}

fn pointer(data: DeviceBytes) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(data.address() as usize)
}

fn raw(stream: &Stream) -> StreamHandle {
    stream.handle().cast()
}

/// Returns how many elements of `dtype` there are.
fn elements(data: DeviceBytes, dtype: DataType) -> usize {
    let size = match dtype {
        DataType::ncclFloat32 => 4,
        DataType::ncclFloat64 | DataType::ncclInt64 => 8,
        DataType::ncclBfloat16 => 2,
        _ => 1,
    };
    data.len() / size
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_is_the_one_nccl_h_2_28_initialises() {
        let config = non_blocking();
        // 8 + 6·4 bytes, a pointer, 2·4, a pointer, 6·4: what a C compiler makes of nccl.h 2.28.9.
        assert_eq!(config.size, 80);
        assert_eq!(std::mem::offset_of!(sys::ncclConfig_t, blocking), 16);
        assert_eq!(std::mem::offset_of!(sys::ncclConfig_t, netName), 32);
        assert_eq!(std::mem::offset_of!(sys::ncclConfig_t, commName), 48);
        assert_eq!((config.magic, config.version), (0xcafe_beef, 22_800));
        assert_eq!((config.blocking, config.minCTAs), (0, i32::MIN));
        assert_eq!(size_of::<sys::ncclUniqueId>(), UniqueId::LEN);
    }

    #[test]
    fn an_id_survives_the_network_and_another_length_is_refused() {
        let id = UniqueId([7; UniqueId::LEN]);
        assert_eq!(UniqueId::from_bytes(id.as_bytes()), Some(id.clone()));
        assert_eq!(UniqueId::from_bytes(&[7; 127]), None);
        assert_eq!(format!("{id:?}"), "UniqueId(…)");
    }

    #[test]
    fn every_entry_works_or_says_how_to_get_nccl() {
        match (version(), UniqueId::create()) {
            (Ok(version), Ok(id)) => {
                assert!(version >= (2, 18, 0), "{version:?}");
                assert_ne!(id, UniqueId::create().unwrap(), "ids are never used twice");
            }
            (Err(error), Err(again)) => {
                let text = error.to_string();
                assert!(text.starts_with("cannot open libnccl.so.2 ("), "{text}");
                assert!(text.contains("LD_LIBRARY_PATH"), "{text}");
                assert_eq!(text, again.to_string());
            }
            other => panic!("{other:?}"),
        }
    }
}
