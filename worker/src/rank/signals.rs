//! SIGTERM to a rank itself: the job checkpoints when it can.
//!
//! Whoever signals a single rank (a person, a batch system that signals every process of its job)
//! gives notice. The rank asks its peers, with the next *ready*, to stop at a common step boundary
//! after a checkpoint, as it does when its agent asks; no notice is needed by the others.

use nix::sys::signal::{SigSet, Signal};

use super::Error;

/// SIGTERM, kept from ending this process.
#[derive(Debug)]
pub struct Termination(SigSet);

impl Termination {
    /// Blocks the signal for this thread and all it starts, so it must come before any other
    /// thread of the process.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn take() -> Result<Self, Error> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGTERM);
        signals.thread_block().map_err(|error| Error::Environment {
            what: format!("cannot block SIGTERM: {error}"),
        })?;
        Ok(Self(signals))
    }

    /// Calls `notice` at every SIGTERM from now on, on a thread of its own.
    pub(super) fn forward(self, notice: impl Fn() + Send + 'static) -> Result<(), Error> {
        let wait = move || {
            // An error would mean an empty or invalid set.
            while self.0.wait().is_ok() {
                notice();
            }
        };
        let thread = std::thread::Builder::new().name("signals".into()).spawn(wait);
        thread.map(drop).map_err(|error| Error::Environment {
            what: format!("cannot start the thread that takes signals: {error}"),
        })
    }
}
