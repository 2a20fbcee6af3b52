//! The thread that owns the communicator: it queues, polls and, where it must, aborts.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use backon::{BackoffBuilder as _, ExponentialBuilder};

use super::super::tcp::AbortFlag;
use super::super::{Aborter, Error};
use super::ops::{self, Call};
use super::{Options, Queued, device_failed};
use crate::ffi::driver::{Context, Event, Stream};
use crate::ffi::nccl::{self, Communicator};
use crate::progress::{self, Work};
use ringmaster_agent::ffi::exit_now;

/// Between looks at the communicator while operations are in flight.
const POLL: Duration = Duration::from_micros(50);
/// The same while none is: how late the death of a peer is noticed that nobody waits for.
const IDLE: Duration = Duration::from_millis(100);
/// Pauses between looks at a call that NCCL has not finished.
const PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_micros(10))
    .with_max_delay(LONGEST_PAUSE)
    .without_max_times();
const LONGEST_PAUSE: Duration = Duration::from_millis(1);
/// Time the communicator has to close politely.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);
/// Exit code of a process that could not abort: of a failure that another process may not meet.
const LOST: i32 = 1;

/// What the thread is asked for.
pub(super) enum Command {
    Run(Box<Job>),
    /// Look at the abort flag now.
    Look,
    /// Finish what was started, then end.
    Close,
}

/// One started operation.
pub(super) struct Job {
    pub(super) sequence: u64,
    pub(super) operation: &'static str,
    pub(super) call: Call,
    /// What the compute thread had queued before.
    pub(super) after: Event,
    pub(super) reply: SyncSender<Result<Queued, Error>>,
}

/// What the compute thread, the thread and aborters know of one another.
#[derive(Debug)]
pub(super) struct Shared {
    flag: AbortFlag,
    abort_deadline: Duration,
    progress: Mutex<Progress>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Progress {
    /// All operations up to this one have succeeded here.
    done: u64,
    /// Set once nothing of this communicator runs on the device any more.
    failure: Option<Error>,
    /// The communicator is gone, this way or that.
    closed: bool,
    /// Somebody makes sure that an abort comes to an end.
    watched: bool,
}

impl Shared {
    pub(super) fn new(flag: AbortFlag, abort_deadline: Duration) -> Self {
        Self { flag, abort_deadline, progress: Mutex::default(), changed: Condvar::new() }
    }

    /// Fails once the communicator has.
    pub(super) fn check(&self) -> Result<(), Error> {
        self.lock().failure.clone().map_or(Ok(()), Err)
    }

    /// Why the thread takes no more commands.
    pub(super) fn ended(&self) -> Error {
        let reason = "the communicator is closed".to_owned();
        self.lock().failure.clone().unwrap_or(Error::Aborted { reason })
    }

    /// Blocks until all operations up to `sequence` have succeeded, or one has failed.
    pub(super) fn wait_until_done(&self, sequence: u64) -> Result<(), Error> {
        let mut progress = self.lock();
        loop {
            if let Some(error) = &progress.failure {
                return Err(error.clone());
            }
            if progress.done >= sequence {
                return Ok(());
            }
            progress = self.changed.wait(progress).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Asks the thread to abort, and makes sure that it does.
    pub(super) fn abort(self: &Arc<Self>, reason: &str) {
        self.flag.set(reason);
        self.watch(reason);
    }

    /// Ends the process if the communicator is not gone in time: a rank that hangs in the driver is
    /// lost, and must not keep its GPU from its successor.
    fn watch(self: &Arc<Self>, reason: &str) {
        let mut progress = self.lock();
        if progress.closed || std::mem::replace(&mut progress.watched, true) {
            return;
        }
        drop(progress);
        let (shared, reason) = (Arc::clone(self), reason.to_owned());
        let watch = move || {
            let waited = shared.changed.wait_timeout_while(
                shared.lock(),
                shared.abort_deadline,
                |progress| !progress.closed,
            );
            let (progress, _) = waited.unwrap_or_else(PoisonError::into_inner);
            if !progress.closed {
                tracing::error!(
                    %reason,
                    deadline = ?shared.abort_deadline,
                    "NCCL did not abort in time; this process ends"
                );
                exit_now(LOST);
            }
        };
        let started = std::thread::Builder::new().name("nccl-abort-watch".to_owned()).spawn(watch);
        if let Err(error) = started {
            tracing::warn!(%error, "cannot watch over the abort of NCCL");
        }
    }

    fn done(&self, sequence: u64) {
        self.lock().done = sequence;
        self.changed.notify_all();
    }

    fn close(&self, failure: Option<Error>) {
        let mut progress = self.lock();
        progress.closed = true;
        if progress.failure.is_none() {
            progress.failure = failure;
        }
        drop(progress);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Wakes whoever waits when the thread ends, however it ends.
struct Ending<'a>(&'a Shared);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.close(Some(Error::Aborted { reason: "the communicator is closed".to_owned() }));
    }
}

/// An operation the device has not finished.
struct InFlight {
    sequence: u64,
    operation: &'static str,
    done: Arc<Event>,
    began: Instant,
}

struct Engine<'a> {
    shared: &'a Arc<Shared>,
    context: Context,
    stream: Stream,
    /// None once it is destroyed or aborted.
    communicator: Option<Communicator>,
    in_flight: VecDeque<InFlight>,
    deadline: Option<Duration>,
    on_failure: Option<Aborter>,
}

/// The thread's life: forms the communicator, answers `ready`, and serves `queue` until it is closed.
pub(super) fn run(
    options: &Options,
    context: Context,
    shared: &Arc<Shared>,
    queue: &Receiver<Command>,
    ready: &SyncSender<Result<(), Error>>,
) {
    let ending = Ending(shared);
    match Engine::connect(options, context, shared) {
        Ok(engine) => {
            let _ = ready.send(Ok(()));
            engine.serve(queue);
        }
        Err(error) => {
            let _ = ready.send(Err(error));
        }
    }
    drop(ending);
}

impl<'a> Engine<'a> {
    fn connect(
        options: &Options,
        context: Context,
        shared: &'a Arc<Shared>,
    ) -> Result<Self, Error> {
        let world_size = options.world_size;
        // NCCL does not say which peer it waits for.
        let failed = |reason: String| Error::Connect { world_size, peers: Vec::new(), reason };
        let stream = Stream::independent(context).map_err(|e| failed(e.to_string()))?;
        let communicator = Communicator::begin(&options.id, options.rank, world_size, &stream)
            .map_err(|e| failed(e.to_string()))?;
        let mut engine = Self {
            shared,
            context,
            stream,
            communicator: Some(communicator),
            in_flight: VecDeque::new(),
            deadline: options.deadline,
            on_failure: options.on_failure.clone(),
        };
        let formed = engine.until_ready(Some(options.connect_timeout));
        formed.map_err(|stopped| {
            engine.abort();
            match stopped {
                Stopped::Aborted(reason) => Error::Aborted { reason },
                Stopped::Late(after) => {
                    failed(format!("not all ranks had joined the communicator after {after:?}"))
                }
                Stopped::Failed(error) => failed(error.to_string()),
            }
        })?;
        Ok(engine)
    }

    fn serve(mut self, queue: &Receiver<Command>) {
        loop {
            let pause = if self.in_flight.is_empty() { IDLE } else { POLL };
            let looked = match queue.recv_timeout(pause) {
                Ok(Command::Run(job)) => match self.begin(&job) {
                    Ok(queued) => {
                        let _ = job.reply.send(Ok(queued));
                        self.look()
                    }
                    Err(error) => return self.fail(&error, Some(&job.reply), queue),
                },
                Ok(Command::Look) | Err(RecvTimeoutError::Timeout) => self.look(),
                Ok(Command::Close) | Err(RecvTimeoutError::Disconnected) => return self.close(),
            };
            if let Err(error) = looked {
                return self.fail(&error, None, queue);
            }
        }
    }

    /// Queues an operation on the stream, after what the compute thread had queued.
    fn begin(&mut self, job: &Job) -> Result<Queued, Error> {
        let lost = |error: &dyn std::fmt::Display| Error::Aborted {
            reason: format!("{} #{}: {error}", job.operation, job.sequence),
        };
        self.check_flag()?;
        self.stream.wait_for(&job.after).map_err(|e| lost(&e))?;
        let communicator = self.communicator.as_mut().expect("a serving engine has one");
        ops::queue(&job.call, communicator, &self.stream).map_err(|e| lost(&e))?;
        // The first operations connect to their peers, and those may be late.
        self.until_ready(self.deadline).map_err(|stopped| match stopped {
            Stopped::Aborted(reason) => Error::Aborted { reason },
            Stopped::Late(after) => late(job.operation, job.sequence, after),
            Stopped::Failed(error) => lost(&error),
        })?;
        let done = Arc::new(Event::record(&self.stream).map_err(|e| lost(&e))?);
        self.in_flight.push_back(InFlight {
            sequence: job.sequence,
            operation: job.operation,
            done: Arc::clone(&done),
            began: Instant::now(),
        });
        Ok(Queued { context: self.context, done })
    }

    /// Polls everything there is to poll.
    fn look(&mut self) -> Result<(), Error> {
        self.check_flag()?;
        let mut reached = None;
        while let Some(first) = self.in_flight.front()
            && first.done.has_happened().map_err(|e| device_failed(&e))?
        {
            reached = Some(first.sequence);
            self.in_flight.pop_front();
        }
        // After the events: what has happened counts only where nothing has failed since.
        if let Some(communicator) = &self.communicator {
            communicator.is_ready().map_err(|error| Error::Aborted {
                reason: match self.in_flight.front() {
                    Some(first) => format!("{} #{}: {error}", first.operation, first.sequence),
                    None => error.to_string(),
                },
            })?;
        }
        if let Some(sequence) = reached {
            // NCCL tells of whole operations only, not of the bytes of one that is under way.
            progress::advance(Work::Transfer);
            self.shared.done(sequence);
        }
        match (self.in_flight.front(), self.deadline) {
            (Some(first), Some(deadline)) if first.began.elapsed() > deadline => {
                Err(late(first.operation, first.sequence, deadline))
            }
            _ => Ok(()),
        }
    }

    fn check_flag(&self) -> Result<(), Error> {
        self.shared.flag.get().map_or(Ok(()), |reason| Err(Error::Aborted { reason }))
    }

    /// Waits until NCCL has done its part of the last call on the host.
    fn until_ready(&self, limit: Option<Duration>) -> Result<(), Stopped> {
        let Some(communicator) = &self.communicator else { return Ok(()) };
        let began = Instant::now();
        let mut pauses = PAUSES.build();
        while !communicator.is_ready().map_err(Stopped::Failed)? {
            if let Some(reason) = self.shared.flag.get() {
                return Err(Stopped::Aborted(reason));
            }
            if let Some(limit) = limit
                && began.elapsed() > limit
            {
                return Err(Stopped::Late(limit));
            }
            // A thread of NCCL's own is at work; it wakes nobody when it is done.
            std::thread::sleep(pauses.next().unwrap_or(LONGEST_PAUSE));
        }
        Ok(())
    }

    /// Ends everything, and only then tells those who wait: their tensors are theirs again.
    fn fail(
        mut self,
        error: &Error,
        reply: Option<&SyncSender<Result<Queued, Error>>>,
        queue: &Receiver<Command>,
    ) {
        let reason = error.to_string();
        tracing::warn!(%reason, "aborting the communicator");
        if let Some(peers) = &self.on_failure {
            peers.abort(&reason);
        }
        self.shared.flag.set(&reason);
        self.abort();
        self.shared.close(Some(error.clone()));
        if let Some(reply) = reply {
            let _ = reply.send(Err(error.clone()));
        }
        for command in queue {
            match command {
                Command::Run(job) => {
                    let _ = job.reply.send(Err(error.clone()));
                }
                Command::Look => {}
                Command::Close => return,
            }
        }
    }

    /// Aborts the communicator and waits until none of its work is left on the device.
    fn abort(&mut self) {
        let Some(communicator) = self.communicator.take() else { return };
        self.shared.watch("a communicator is aborted");
        if let Err(error) = communicator.abort() {
            tracing::warn!(%error, "NCCL's abort failed");
        }
        if let Err(error) = self.stream.synchronize() {
            tracing::warn!(%error, "the device failed");
        }
        self.shared.close(None);
    }

    /// Lets what is in flight end, then closes the communicator.
    fn close(mut self) {
        let began = Instant::now();
        while !self.in_flight.is_empty() {
            if self.look().is_err() || began.elapsed() > CLOSE_DEADLINE {
                return self.abort();
            }
            std::thread::sleep(POLL);
        }
        let finalized = self.communicator.as_mut().map_or(Ok(()), Communicator::finalize);
        if finalized.is_err() || self.until_ready(Some(CLOSE_DEADLINE)).is_err() {
            return self.abort();
        }
        if let Some(Err(error)) = self.communicator.take().map(Communicator::destroy) {
            tracing::warn!(%error, "NCCL's communicator cannot be freed");
        }
        self.shared.close(None);
    }
}

/// Why a call of NCCL was not waited for.
enum Stopped {
    Aborted(String),
    Late(Duration),
    Failed(nccl::Error),
}

fn late(operation: &str, sequence: u64, deadline: Duration) -> Error {
    let reason = format!(
        "{operation} #{sequence} exceeded its deadline of {deadline:?}; \
         NCCL does not say which rank it waited for"
    );
    Error::Aborted { reason }
}
