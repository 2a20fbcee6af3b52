//! Collectives between GPUs, over NCCL.
//!
//! One thread per rank (`engine`) owns the communicator and a stream of its own, and never blocks in
//! either: it queues the operations in the order they were started and polls. An operation waits on
//! the device, by an event, for what the compute thread had queued before it was started; what the
//! compute thread queues after [`Pending::wait`] waits the same way for the operation. So the host
//! runs ahead of both, and a failure shows later than `wait`: [`Collective::settle`] is where it
//! shows at last, and [`super::ByDevice`] calls that before anything is said between ranks over the
//! host.
//!
//! The communicator is a non-blocking one: each call returns at once, its errors and those of the
//! network are polled. An abort, or a failure, ends all queued work before anybody is told, so no
//! stray transfer writes into memory that is in use again. Where even that hangs, the process ends
//! and counts as lost.
//!
//! Shares of unequal length travel as one broadcast, or one reduction, per rank in a group, which
//! NCCL runs together: padding to the longest would need two buffers of the padded size and copies
//! in and out. NCCL traffic is not encrypted.

mod engine;
mod ops;

#[cfg(test)]
mod stub_tests;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::sync::Arc;
use std::sync::mpsc::{Sender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

use self::engine::{Command, Job, Shared};
use self::ops::{Call, data_type};
use super::pending::add_waited;
use super::tcp::AbortFlag;
use super::{Aborter, Collective, Error, Pending, ReduceOp};
use crate::ffi::device_memory::DeviceBytes;
use crate::ffi::driver::{self, Context, Event, Stream};
pub use crate::ffi::nccl::{UniqueId, version};
use crate::ffi::{self, nccl as sys};

/// What a rank needs to know to join its generation's communicator.
#[derive(Debug, Clone)]
pub struct Options {
    /// Which communicator: rank 0 made it with [`UniqueId::create`] for this generation alone.
    pub id: UniqueId,
    /// This process's rank.
    pub rank: usize,
    /// Number of ranks.
    pub world_size: usize,
    /// Index of this rank's GPU, as libtorch counts.
    pub ordinal: usize,
    /// Time for all peers to come.
    pub connect_timeout: Duration,
    /// Time after which an operation that has not ended fails; none leaves that to the control plane.
    pub deadline: Option<Duration>,
    /// Time an abort has. A GPU or driver that takes longer hangs: the process then ends, and counts as
    /// lost, so that its successor finds the GPU free.
    pub abort_deadline: Duration,
    /// Told of a failure of this communicator, so that peers waiting elsewhere notice.
    pub on_failure: Option<Aborter>,
}

/// The NCCL back end.
#[derive(Debug)]
pub struct Nccl {
    rank: usize,
    world_size: usize,
    ordinal: usize,
    context: Context,
    sequence: Cell<u64>,
    commands: Sender<Command>,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Where an operation stands in the device's queue.
#[derive(Debug)]
pub(super) struct Queued {
    context: Context,
    done: Arc<Event>,
}

impl Queued {
    /// Lets what this thread queues from now on wait, on the device, for the operation.
    pub(super) fn precede_what_follows(self) -> Result<(), Error> {
        Stream::legacy(self.context).wait_for(&self.done).map_err(|e| device_failed(&e))
    }
}

/// A maximum, and where any rank had a NaN: NCCL's maximum passes over them.
#[derive(Debug)]
pub(super) struct Nans {
    maximum: Tensor,
    /// 1 there, else 0; of the dtype of `maximum`.
    mask: Tensor,
}

impl Nans {
    fn of(maximum: &Tensor) -> Result<Self, tch::TchError> {
        let mask = maximum.f_isnan()?.f_to_kind(maximum.kind())?;
        Ok(Self { maximum: maximum.shallow_clone(), mask })
    }

    /// Puts them back, once both have been reduced.
    pub(super) fn restore(mut self) -> Result<(), Error> {
        let restored =
            self.mask.f_gt(0.0).and_then(|at| self.maximum.f_masked_fill_(&at, f64::NAN));
        restored.map(drop).map_err(|e| refused("all_reduce", &e))
    }
}

fn refused(operation: &'static str, error: &tch::TchError) -> Error {
    Error::Tensor { operation, reason: error.to_string() }
}

fn device_failed(error: &driver::Error) -> Error {
    Error::Aborted { reason: error.to_string() }
}

impl Nccl {
    /// Joins the communicator together with all other ranks.
    ///
    /// # Errors
    /// [`Error::Connect`] without a driver, GPU or NCCL (says what to do), or when a peer does not
    /// come in time; [`Error::Aborted`] when `abort` is set meanwhile.
    pub fn connect(options: Options, abort: &AbortFlag) -> Result<Self, Error> {
        let world_size = options.world_size;
        // NCCL does not say which peer it waits for.
        let failed = |reason: String| Error::Connect { world_size, peers: Vec::new(), reason };
        let version = version().map_err(|e| failed(e.to_string()))?;
        let context = Context::primary(options.ordinal).map_err(|e| failed(e.to_string()))?;
        tracing::info!(
            nccl = format!("{}.{}.{}", version.0, version.1, version.2),
            rank = options.rank,
            world_size,
            "joining the communicator; NCCL traffic is not encrypted: it needs an isolated network"
        );
        let (rank, ordinal) = (options.rank, options.ordinal);
        let shared = Arc::new(Shared::new(abort.clone(), options.abort_deadline));
        let (commands, queue) = std::sync::mpsc::channel();
        let (ready, is_ready) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name(format!("nccl-{rank}"))
            .spawn({
                let shared = Arc::clone(&shared);
                move || engine::run(&options, context, &shared, &queue, &ready)
            })
            .map_err(|e| failed(format!("cannot start a thread: {e}")))?;
        // The thread answers in any case: it watches the time and the flag.
        is_ready.recv().unwrap_or_else(|_| Err(failed("the thread ended".to_owned())))?;
        Ok(Self {
            rank,
            world_size,
            ordinal,
            context,
            sequence: Cell::new(0),
            commands,
            shared,
            thread: Some(thread),
        })
    }

    fn start(
        &self,
        operation: &'static str,
        call: Call,
        nans: Option<Nans>,
        tensors: &[&Tensor],
    ) -> Result<Pending, Error> {
        self.shared.check()?;
        let after = Event::record(&Stream::legacy(self.context)).map_err(|e| device_failed(&e))?;
        let sequence = self.sequence.get() + 1;
        self.sequence.set(sequence);
        let (reply, queued) = sync_channel(1);
        let job = Job { sequence, operation, call, after, reply };
        self.commands.send(Command::Run(Box::new(job))).map_err(|_| self.shared.ended())?;
        let tensors = tensors.iter().map(|t| t.shallow_clone()).collect();
        Ok(Pending::on_device(queued, nans, tensors))
    }

    fn bytes(&self, operation: &'static str, tensor: &Tensor) -> Result<DeviceBytes, Error> {
        DeviceBytes::of(tensor, self.ordinal).map_err(|reason| Error::Tensor { operation, reason })
    }

    fn check_rank(&self, operation: &'static str, what: &str, rank: usize) -> Result<(), Error> {
        if rank < self.world_size {
            return Ok(());
        }
        let reason = format!("{what} {rank} is not a rank below {}", self.world_size);
        Err(Error::Tensor { operation, reason })
    }

    /// Checks a whole tensor and this rank's part of it, and returns every rank's bytes.
    fn shares(
        &self,
        operation: &'static str,
        part: &Tensor,
        whole: &Tensor,
        counts: &[usize],
    ) -> Result<Vec<usize>, Error> {
        let wrong = |reason: String| Error::Tensor { operation, reason };
        if counts.len() != self.world_size {
            return Err(wrong(format!("{} counts for {} ranks", counts.len(), self.world_size)));
        }
        if part.kind() != whole.kind() {
            return Err(wrong(format!("dtypes {:?} and {:?} differ", part.kind(), whole.kind())));
        }
        let (part, whole) = (part.size(), (whole.size(), whole.kind()));
        let rows = |count: usize| {
            let mut shape = part.clone();
            if let Some(first) = shape.first_mut() {
                *first = count as i64;
            }
            shape
        };
        if part.is_empty() || part != rows(counts[self.rank]) {
            return Err(wrong(format!("shape {part:?} does not have {} rows", counts[self.rank])));
        }
        let total = counts.iter().sum();
        if whole.0 != rows(total) {
            return Err(wrong(format!("shape {:?} is not {:?}", whole.0, rows(total))));
        }
        let row = part[1..].iter().product::<i64>() as usize * whole.1.elt_size_in_bytes();
        Ok(counts.iter().map(|count| count * row).collect())
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        // The thread finishes what was started and closes the communicator. Aborters that live on
        // keep the queue itself open.
        let _ = self.commands.send(Command::Close);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Collective for Nccl {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world_size(&self) -> usize {
        self.world_size
    }

    fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<Pending, Error> {
        const NAME: &str = "all_reduce";
        let data = self.bytes(NAME, tensor)?;
        let dtype = data_type(tensor.kind());
        let op = match op {
            ReduceOp::Sum => sys::RedOp::ncclSum,
            ReduceOp::Max => sys::RedOp::ncclMax,
        };
        let has_nans = op == sys::RedOp::ncclMax && tensor.kind() != Kind::Int64;
        let nans = has_nans.then(|| Nans::of(tensor)).transpose().map_err(|e| refused(NAME, &e))?;
        let mask = nans.as_ref().map(|nans| self.bytes(NAME, &nans.mask)).transpose()?;
        self.start(NAME, Call::AllReduce { data, dtype, op, mask }, nans, &[tensor])
    }

    fn all_gather(
        &self,
        input: &Tensor,
        output: &Tensor,
        counts: &[usize],
    ) -> Result<Pending, Error> {
        const NAME: &str = "all_gather";
        let (from, to) = (self.bytes(NAME, input)?, self.bytes(NAME, output)?);
        let shares = self.shares(NAME, input, output, counts)?;
        let dtype = data_type(input.kind());
        self.start(NAME, Call::AllGather { from, to, shares, dtype }, None, &[input, output])
    }

    fn reduce_scatter(
        &self,
        input: &Tensor,
        output: &Tensor,
        counts: &[usize],
    ) -> Result<Pending, Error> {
        const NAME: &str = "reduce_scatter";
        let (from, to) = (self.bytes(NAME, input)?, self.bytes(NAME, output)?);
        let shares = self.shares(NAME, output, input, counts)?;
        let dtype = data_type(input.kind());
        self.start(NAME, Call::ReduceScatter { from, to, shares, dtype }, None, &[input, output])
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Pending, Error> {
        const NAME: &str = "broadcast";
        self.check_rank(NAME, "root", root)?;
        let data = self.bytes(NAME, tensor)?;
        let dtype = data_type(tensor.kind());
        self.start(NAME, Call::Broadcast { data, dtype, root }, None, &[tensor])
    }

    fn exchange(
        &self,
        send: &Tensor,
        to: usize,
        recv: &Tensor,
        from: usize,
    ) -> Result<Pending, Error> {
        const NAME: &str = "exchange";
        self.check_rank(NAME, "to", to)?;
        self.check_rank(NAME, "from", from)?;
        let (sent, received) = (self.bytes(NAME, send)?, self.bytes(NAME, recv)?);
        let dtypes = (data_type(send.kind()), data_type(recv.kind()));
        let call = Call::Exchange { send: sent, to, recv: received, from, dtypes };
        self.start(NAME, call, None, &[send, recv])
    }

    fn settle(&self) -> Result<(), Error> {
        let began = Instant::now();
        let result = self.shared.wait_until_done(self.sequence.get());
        add_waited(began.elapsed());
        result
    }

    fn barrier(&self) -> Result<(), Error> {
        let one = Tensor::f_zeros([1], (Kind::Int64, Device::Cuda(self.ordinal)))
            .map_err(|e| refused("barrier", &e))?;
        // collective: all-reduce, as NCCL has no barrier; the host has to wait for its end.
        self.all_reduce(&one, ReduceOp::Sum)?.wait()?;
        self.settle()
    }

    fn aborter(&self) -> Aborter {
        let shared = Arc::clone(&self.shared);
        let commands = self.commands.clone();
        Aborter::new(move |reason| {
            shared.abort(reason);
            // Wakes the thread where it waits for work.
            let _ = commands.send(Command::Look);
        })
    }

    fn sequence(&self) -> u64 {
        self.sequence.get()
    }
}

/// Opens what this back end needs, and has the device do nothing once: what fails here would fail
/// in every communicator of this process.
///
/// # Errors
/// There is no driver, no such GPU or no NCCL (says what to do), or the device's context is broken.
pub fn check_device(ordinal: usize) -> Result<(), ffi::nccl::Error> {
    let stream = Stream::independent(Context::primary(ordinal)?)?;
    stream.synchronize()?;
    version().map(drop)
}
