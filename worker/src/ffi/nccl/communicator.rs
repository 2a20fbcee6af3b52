//! A communicator: NCCL's calls as methods, with their SAFETY.

use std::ffi::{c_char, c_int, c_void};
use std::marker::PhantomData;

use cudarc::nccl::sys;

use super::super::device_memory::DeviceBytes;
use super::super::driver::Stream;
use super::api::{Api, Comm, SUCCESS, StreamHandle};
use super::{DataType, Error, RedOp, UniqueId, non_blocking};

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
