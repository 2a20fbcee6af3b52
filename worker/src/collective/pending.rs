//! A collective in flight.

use std::cell::Cell;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use tch::Tensor;

use super::Error;
use super::nccl::{Nans, Queued};

thread_local! {
    static WAITED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Returns the seconds this thread has been blocked in collectives since it last asked.
pub fn take_waited() -> f64 {
    WAITED.take().as_secs_f64()
}

/// Returns what [`take_waited`] would, and leaves it.
pub fn waited() -> f64 {
    WAITED.get().as_secs_f64()
}

/// Adds to what [`take_waited`] returns.
pub(super) fn add_waited(time: Duration) {
    WAITED.set(WAITED.get() + time);
}

/// A started collective. Holds its tensors, so their memory outlives the transfer; dropping it
/// waits for the end.
#[must_use = "a collective is complete only after wait()"]
#[derive(Debug)]
pub struct Pending {
    waits_for: Option<WaitsFor>,
    _tensors: Vec<Tensor>,
}

/// What a collective's tensors wait for.
#[derive(Debug)]
enum WaitsFor {
    /// The end of the transfer.
    End(Receiver<Result<(), Error>>),
    /// Its place in the device's queue; what this thread queues afterwards waits there.
    Queued(Receiver<Result<Queued, Error>>, Option<Nans>),
}

impl Pending {
    /// Returns a collective that needed no communication.
    pub(super) fn ready() -> Self {
        Self { waits_for: None, _tensors: Vec::new() }
    }

    pub(super) fn new(done: Receiver<Result<(), Error>>, tensors: Vec<Tensor>) -> Self {
        Self { waits_for: Some(WaitsFor::End(done)), _tensors: tensors }
    }

    /// Returns a collective of device tensors.
    pub(super) fn on_device(
        queued: Receiver<Result<Queued, Error>>,
        nans: Option<Nans>,
        tensors: Vec<Tensor>,
    ) -> Self {
        Self { waits_for: Some(WaitsFor::Queued(queued, nans)), _tensors: tensors }
    }

    /// Waits until the tensors hold the result.
    ///
    /// With device tensors: until whatever this thread asks of the device from now on sees the
    /// result. The host does not wait for the transfer itself, so a failure may show only later; no
    /// result of it may be kept before [`super::Collective::settle`] or a collective of host tensors
    /// has succeeded.
    ///
    /// # Errors
    /// Whatever ended the collective; the tensors' contents are then unspecified.
    pub fn wait(mut self) -> Result<(), Error> {
        self.finish()
    }

    fn finish(&mut self) -> Result<(), Error> {
        let Some(waits_for) = self.waits_for.take() else { return Ok(()) };
        let began = Instant::now();
        let _waiting = crate::progress::wait_for_peers();
        let result = match waits_for {
            WaitsFor::End(done) => done.recv().unwrap_or_else(|_| Err(thread_ended())),
            WaitsFor::Queued(queued, nans) => queued
                .recv()
                .unwrap_or_else(|_| Err(thread_ended()))
                .and_then(Queued::precede_what_follows)
                .and_then(|()| nans.map_or(Ok(()), Nans::restore)),
        };
        add_waited(began.elapsed());
        result
    }
}

fn thread_ended() -> Error {
    Error::Aborted { reason: "the communication thread ended".to_owned() }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // An abandoned transfer still reads and writes the tensors: they must not be freed under it.
        let _ = self.finish();
    }
}
