//! Who runs the processes of ranks: the operating system, or a simulation.

use std::fmt::Debug;

use super::{group, proc};

/// What a table of ranks asks of whoever started them.
pub trait Processes: Debug + Send + Sync {
    /// Ends a rank and all it started, at once. May be repeated; called with the table's lock held, so it
    /// must not call the table. The rank's end is told to the table as any other is.
    fn kill(&self, pid: u32);

    /// If a signal has stopped the process (state T): a number that is another one whenever it has run in
    /// between, since a process that is stopped now and then is slow and not stopped. Called without the
    /// table's lock.
    fn stopped(&self, _pid: u32) -> Option<u64> {
        None
    }
}

/// Ranks as leaders of sessions of this machine.
#[derive(Debug)]
pub(super) struct Sessions;

impl Processes for Sessions {
    fn kill(&self, pid: u32) {
        group::kill_session(pid);
    }

    fn stopped(&self, pid: u32) -> Option<u64> {
        proc::stopped(pid)
    }
}
