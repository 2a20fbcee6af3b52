//! SIGTERM to a rank itself: the job checkpoints when it can.
//!
//! Whoever signals a single rank (a person, a batch system that signals every process of its job)
//! gives notice. The rank asks its peers, with the next *ready*, to stop at a common step boundary
//! after a checkpoint, as it does when its agent asks; no notice is needed by the others.

use std::io;

use nix::sys::signal::{SigSet, Signal};

/// SIGTERM, kept from ending this process.
#[derive(Debug)]
pub struct Termination(SigSet);

impl Termination {
    /// Blocks the signal for this thread and all it starts, so it must come before any other
    /// thread of the process.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn take() -> io::Result<Self> {
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGTERM);
        signals.thread_block()?;
        Ok(Self(signals))
    }

    /// Calls `notice` at every SIGTERM from now on, on a thread of its own.
    pub(crate) fn forward(self, notice: impl Fn() + Send + 'static) -> io::Result<()> {
        let wait = move || {
            // An error would mean an empty or invalid set.
            while self.0.wait().is_ok() {
                notice();
            }
        };
        let thread = std::thread::Builder::new().name("signals".into()).spawn(wait);
        thread.map(drop)
    }
}
