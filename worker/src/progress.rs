//! What shows that this process moves on, for whoever watches it.
//!
//! A rank's status says its step and phase. Inside a long phase (an evaluation, a large upload, a
//! first look at thousands of shards) neither changes for minutes, and a watcher could not tell slow
//! from stuck. So whatever does a piece of such work counts it here, on whichever thread it runs;
//! the thread that writes statuses reads the counts that matter in the rank's phase. Work of another
//! kind must not: readers that fill their queue say nothing about a computation that hangs.
//!
//! These are counters of the process, not of an object, because a process is one rank: handing a
//! counter through reader, tower, evaluation and checkpoint code would put it into every signature
//! between them and the training loop. Nothing is decided by them here, and nothing waits for them.

use std::sync::atomic::{AtomicU64, Ordering};

use ringmaster_proto::v1::Phase;

/// What kind of work was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Data read or decoded: an object's bytes, a sample.
    Data,
    /// Computed: a micro-batch through a tower, a batch evaluated.
    Compute,
}

static DONE: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static ENTERED: AtomicU64 = AtomicU64::new(0);
static WAITING: AtomicU64 = AtomicU64::new(0);

/// Counts a piece of work.
pub fn advance(work: Work) {
    DONE[work as usize].fetch_add(1, Ordering::Relaxed);
}

/// Returns how many pieces of the work that `phase` consists of this process has done.
pub(crate) fn of_phase(phase: Phase) -> u64 {
    let done = |work: Work| DONE[work as usize].load(Ordering::Relaxed);
    // Parts of checkpoints are counted where they are moved.
    let stored = ringmaster_checkpoint::moved;
    match phase {
        Phase::Start | Phase::Load => done(Work::Data) + done(Work::Compute) + stored(),
        Phase::Data => done(Work::Data),
        Phase::Compute => done(Work::Compute),
        Phase::Eval => done(Work::Data) + done(Work::Compute),
        Phase::Save | Phase::Done => stored(),
        Phase::Unspecified | Phase::Join | Phase::Collective | Phase::Apply => 0,
    }
}

/// Counts a collective that this rank has entered.
pub(crate) fn enter_collective() {
    ENTERED.fetch_add(1, Ordering::Relaxed);
}

/// Returns the collectives entered in this generation.
pub(crate) fn collectives_entered() -> u64 {
    ENTERED.load(Ordering::Relaxed)
}

/// Starts counting collectives afresh: a new generation begins.
pub(crate) fn begin_generation() {
    ENTERED.store(0, Ordering::Relaxed);
}

/// Says, as long as it lives, that its thread is blocked until the peers have done their part.
#[derive(Debug)]
pub(crate) struct Waiting(());

/// Begins a wait for peers.
pub(crate) fn wait_for_peers() -> Waiting {
    WAITING.fetch_add(1, Ordering::Relaxed);
    Waiting(())
}

impl Drop for Waiting {
    fn drop(&mut self) {
        WAITING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns whether a thread is blocked in a collective right now.
pub(crate) fn waits_for_peers() -> bool {
    WAITING.load(Ordering::Relaxed) > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_shows_the_work_it_consists_of_and_no_other() {
        // Other tests of this process work meanwhile, so only growth can be told.
        let (evaluated, loaded) = (of_phase(Phase::Eval), of_phase(Phase::Load));
        let threads: Vec<_> = (0..4)
            .map(|_| std::thread::spawn(|| (0..25).for_each(|_| advance(Work::Compute))))
            .collect();
        for thread in threads {
            assert!(thread.join().is_ok());
        }
        assert!(of_phase(Phase::Eval) >= evaluated + 100);
        assert!(of_phase(Phase::Load) >= loaded + 100);
        assert_eq!(of_phase(Phase::Apply), 0);
    }

    #[test]
    fn a_wait_shows_until_it_ends() {
        let waiting = wait_for_peers();
        assert!(waits_for_peers());
        drop(waiting);
    }
}
