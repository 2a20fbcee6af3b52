//! A collective in flight.

use std::cell::Cell;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use tch::Tensor;

use super::Error;

thread_local! {
    static WAITED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Returns the seconds this thread has been blocked in collectives since it last asked.
pub fn take_waited() -> f64 {
    WAITED.take().as_secs_f64()
}

/// A started collective. Holds its tensors, so their memory outlives the transfer; dropping it
/// waits for the end.
#[must_use = "a collective is complete only after wait()"]
#[derive(Debug)]
pub struct Pending {
    done: Option<Receiver<Result<(), Error>>>,
    _tensors: Vec<Tensor>,
}

impl Pending {
    /// Returns a collective that needed no communication.
    pub(super) fn ready() -> Self {
        Self { done: None, _tensors: Vec::new() }
    }

    pub(super) fn new(done: Receiver<Result<(), Error>>, tensors: Vec<Tensor>) -> Self {
        Self { done: Some(done), _tensors: tensors }
    }

    /// Waits until the tensors hold the result.
    ///
    /// # Errors
    /// Whatever ended the collective; the tensors' contents are then unspecified.
    pub fn wait(mut self) -> Result<(), Error> {
        self.finish()
    }

    fn finish(&mut self) -> Result<(), Error> {
        let Some(done) = self.done.take() else { return Ok(()) };
        let began = Instant::now();
        let result = done.recv().unwrap_or_else(|_| {
            Err(Error::Aborted { reason: "the communication thread ended".to_owned() })
        });
        WAITED.set(WAITED.get() + began.elapsed());
        result
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // An abandoned transfer still reads and writes the tensors: they must not be freed under it.
        let _ = self.finish();
    }
}
