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
    /// Data brought into shape, beside what [`ringmaster_data`] reads and decodes.
    Data,
    /// Computed: a micro-batch through a tower, a batch evaluated.
    Compute,
    /// Bytes that went to peers or came from them.
    Transfer,
}

static DONE: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
static ENTERED: AtomicU64 = AtomicU64::new(0);
static WAITING: AtomicU64 = AtomicU64::new(0);
static UNGRANTED: AtomicU64 = AtomicU64::new(0);

/// Counts a piece of work.
pub fn advance(work: Work) {
    advance_by(work, 1);
}

/// Counts pieces of work that are done at once.
pub(crate) fn advance_by(work: Work, pieces: usize) {
    DONE[work as usize].fetch_add(pieces as u64, Ordering::Relaxed);
}

/// Returns how many pieces of the work that `phase` consists of this process has done.
pub(crate) fn of_phase(phase: Phase) -> u64 {
    let done = |work: Work| DONE[work as usize].load(Ordering::Relaxed);
    // Parts of checkpoints are counted where they are moved, and training data where it is read.
    let stored = ringmaster_checkpoint::moved;
    let read = ringmaster_data::moved;
    match phase {
        Phase::Start => done(Work::Data) + read() + done(Work::Compute) + stored(),
        // A state of many gigabytes may be on its way from a peer.
        Phase::Load => {
            done(Work::Data) + read() + done(Work::Compute) + done(Work::Transfer) + stored()
        }
        // What is waited for may be long, and on its way.
        Phase::Join | Phase::Collective => done(Work::Transfer),
        Phase::Data => done(Work::Data) + read(),
        Phase::Compute => done(Work::Compute),
        Phase::Eval => done(Work::Data) + read() + done(Work::Compute),
        Phase::Save | Phase::Done => stored(),
        Phase::Unspecified | Phase::Apply => 0,
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
pub(crate) struct Waiting(&'static AtomicU64);

impl Waiting {
    fn begin(count: &'static AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Begins a wait for peers.
pub(crate) fn wait_for_peers() -> Waiting {
    Waiting::begin(&WAITING)
}

/// Begins a wait for the permission to publish a checkpoint, which comes once all peers have stored their parts.
pub(crate) fn wait_for_grant() -> Waiting {
    Waiting::begin(&UNGRANTED)
}

/// Returns whether a rank in `phase` is blocked until its peers have done their part right now.
pub(crate) fn waits_for_peers(phase: Phase) -> bool {
    let blocked = |count: &AtomicU64| count.load(Ordering::Relaxed) > 0;
    match phase {
        Phase::Load | Phase::Compute | Phase::Eval => blocked(&WAITING),
        // A grant is waited for on the thread that writes. Only here does the rank itself wait for that one.
        Phase::Save => blocked(&WAITING) || blocked(&UNGRANTED),
        // Nothing is asked of a peer: another thread's wait is not this rank's.
        _ => false,
    }
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
    fn bytes_between_ranks_show_where_a_rank_waits_for_its_peers() {
        let shown = || [Phase::Join, Phase::Load, Phase::Collective].map(of_phase);
        let before = shown();
        advance_by(Work::Transfer, 1 << 20);
        for (before, after) in before.into_iter().zip(shown()) {
            assert!(after >= before + (1 << 20));
        }
    }

    #[test]
    fn a_wait_shows_until_it_ends() {
        let waiting = wait_for_peers();
        for phase in [Phase::Load, Phase::Compute, Phase::Eval, Phase::Save] {
            assert!(waits_for_peers(phase));
        }
        assert!(!waits_for_peers(Phase::Data) && !waits_for_peers(Phase::Join));
        drop(waiting);
    }

    #[test]
    fn a_rank_that_saves_waits_for_its_peers_until_the_coordinator_grants_the_commit() {
        let waiting = wait_for_grant();
        assert!(waits_for_peers(Phase::Save));
        drop(waiting);
    }
}
