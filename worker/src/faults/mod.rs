//! Faults that a test asks for, by rank, step and place instead of by the clock.
//!
//! `RINGMASTER_FAULT=rank=1,step=7,at=before_reduce,marker=/tmp/x` makes rank 1 die of SIGKILL in
//! step 7 before it reduces its gradients. The fault fires only if it can create the marker file,
//! so exactly once, however often the rank is restarted; the file tells the test that it did.
//!
//! `act=hang` makes the rank stand still for ever instead, with its other threads alive, and
//! `act=corrupt` (with `at=after_apply`) damages a weight in its memory. `act=pause,seconds=0.5`
//! makes it slow: it stands still for so long, and goes on. A pause needs no marker, and without one
//! it comes every time; with `step=2-9` it does so in several steps. Two more keys order what
//! happens on several ranks. `act=live` leaves the marker and lives on. `after=/tmp/y`, which may be
//! repeated, makes a rank that has left its own marker wait at its place until that file is there,
//! too: with the others' markers, all are where they should be before the first of them strikes.
//!
//! Only builds with the feature `faults`, or for development, have them: `--version` says `+faults`.
//! What people run refuses a rank that is asked for one.

#[cfg(faults)]
mod injected;
#[cfg(any(test, not(faults)))]
#[cfg_attr(faults, allow(dead_code))]
mod none;

#[cfg(faults)]
pub(crate) use injected::Faults;
#[cfg(not(faults))]
pub(crate) use none::Faults;

/// A point of a training step where a fault can strike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(faults), allow(dead_code))]
pub(crate) enum FaultPoint {
    /// Gradients computed, their reduction not started.
    BeforeReduce,
    /// *Ready* entered, and the news that all ranks did is lost: the rank lives and its ring breaks,
    /// as when a peer dies after its message has reached only some of the others.
    InReady,
    /// *Ready* passed, gradients not applied.
    BeforeApply,
    /// Gradients applied.
    AfterApply,
    /// An evaluation has begun, and nothing of it is done.
    InEval,
    /// The last checkpoint is published, the last evaluation not begun.
    BeforeLastEval,
    /// The summary is handed in, the last barrier not passed.
    AfterFinish,
}
