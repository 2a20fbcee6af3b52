//! What is done to a cluster, and what is undone once the job trains again.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cluster::{Cluster, node_name};
use crate::frozen::Frozen;
use crate::job::Job;
use crate::network::Network;
use crate::processes::{pause, signal_process};
use crate::slow::Slow;

/// Time the coordinator stays away.
const COORDINATOR_AWAY: Duration = Duration::from_secs(2);
/// Time the store of the training data stays away.
const STORE_AWAY: Duration = Duration::from_secs(60);
/// Time a slow rank stands still: a hundred steps' time, and less than what an agent lets pass.
const SLOW: Duration = Duration::from_secs(1);

/// A fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// SIGKILL to a rank.
    KillRank,
    /// SIGSTOP to a rank: its connections stay open, and it says nothing any more.
    StopRank,
    /// A rank stands in state D, as in a driver or a file system that never answers: it says nothing, and
    /// SIGKILL does not end it.
    UndeadRank,
    /// SIGKILL to an agent; its ranks end with it.
    KillAgent,
    /// A node's cable is pulled: nobody hears anything, not even that it is gone.
    CutNode,
    /// Two nodes that both reach the coordinator and not each other, and a job that is placed on them.
    UnreachablePair,
    /// SIGKILL to the coordinator, which is started again two seconds later.
    KillCoordinator,
    /// SIGSTOP to a rank and SIGCONT a second later: slow, not dead.
    SlowRank,
    /// No fault: a job of its own that is slow in some way.
    Slow(Slow),
}

/// All of them, and their words on the command line.
pub const KINDS: [(&str, Kind); 12] = [
    ("kill-rank", Kind::KillRank),
    ("stop-rank", Kind::StopRank),
    ("undead-rank", Kind::UndeadRank),
    ("kill-agent", Kind::KillAgent),
    ("cut-node", Kind::CutNode),
    ("unreachable-pair", Kind::UnreachablePair),
    ("kill-coordinator", Kind::KillCoordinator),
    ("slow-rank", Kind::SlowRank),
    ("slow-first-step", Kind::Slow(Slow::FirstStep)),
    ("slow-step", Kind::Slow(Slow::Step)),
    ("slow-evaluation", Kind::Slow(Slow::Evaluation)),
    ("store-away", Kind::Slow(Slow::StoreAway(STORE_AWAY))),
];

/// What a strike leaves behind that is undone even where the drill breaks off.
#[derive(Debug, Default)]
pub struct Damage {
    frozen: Option<Frozen>,
}

impl Kind {
    /// Returns its word.
    pub fn word(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).map_or("", |(word, _)| word)
    }

    /// Returns true for one after which the ring stands as before: nobody may be replaced.
    pub fn spares_ranks(self) -> bool {
        matches!(self, Self::KillCoordinator | Self::SlowRank | Self::Slow(_))
    }

    /// Returns true for one after which the job trains while the cluster is still being put right.
    pub fn trains_meanwhile(self) -> bool {
        self.spares_ranks() || self == Self::UndeadRank
    }

    /// Strikes at the given seat of a job as `describe --json` shows it.
    ///
    /// # Panics
    /// When there is nothing to strike at (the job is not running), or this machine does not let itself be
    /// struck so.
    pub fn strike(self, cluster: &mut Cluster, job: &Job, seen: &Value, seat: usize) -> Damage {
        let mut damage = Damage::default();
        let rank = &seen["ranks"][seat];
        match self {
            Self::KillRank => signal_process(pid_of(rank), Signal::SIGKILL),
            Self::StopRank => signal_process(pid_of(rank), Signal::SIGSTOP),
            Self::UndeadRank => {
                let frozen = Frozen::new(pid_of(rank));
                damage.frozen = Some(frozen.unwrap_or_else(|why| panic!("undead-rank: {why}")));
            }
            Self::KillAgent => cluster.kill_agent(node_of(rank)),
            Self::CutNode => match &cluster.setup.network {
                Network::Namespaces(namespaces) => {
                    namespaces.cut(node_of(rank)).expect("a link that was made can be cut");
                }
                Network::Loopback => panic!("cut-node needs network namespaces"),
            },
            Self::KillCoordinator => {
                cluster.coordinator.signal(Signal::SIGKILL);
                cluster.coordinator.wait();
                pause(COORDINATOR_AWAY);
                cluster.restart_coordinator(job);
            }
            Self::SlowRank => {
                signal_process(pid_of(rank), Signal::SIGSTOP);
                pause(SLOW);
                signal_process(pid_of(rank), Signal::SIGCONT);
            }
            Self::Slow(slow) => unreachable!("{slow:?} lies in the job"),
            Self::UnreachablePair => unreachable!("it lies in the cluster"),
        }
        damage
    }

    /// Puts things right again, whatever the cluster has made of it meanwhile.
    ///
    /// # Panics
    /// When an agent does not start again.
    pub fn mend(self, damage: Damage, cluster: &mut Cluster, job: &Job, seen: &Value, seat: usize) {
        // A process that was frozen goes on, and ends of the SIGKILL that waits for it.
        drop(damage);
        let rank = &seen["ranks"][seat];
        match self {
            Self::KillAgent => cluster.restart_agent(job, node_of(rank)),
            Self::CutNode => {
                if let Network::Namespaces(namespaces) = &cluster.setup.network {
                    namespaces.restore(node_of(rank)).expect("a link that was cut can be restored");
                }
            }
            Self::KillRank
            | Self::StopRank
            | Self::UndeadRank
            | Self::UnreachablePair
            | Self::KillCoordinator
            | Self::SlowRank
            | Self::Slow(_) => {}
        }
    }
}

fn pid_of(rank: &Value) -> u32 {
    let pid = rank["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 1);
    pid.unwrap_or_else(|| panic!("no process in {rank}"))
}

/// Returns the number of a rank's node.
///
/// # Panics
/// When it has none.
pub(super) fn node_of(rank: &Value) -> usize {
    let name = rank["node"].as_str().unwrap_or_default();
    let node = (0..64).find(|node| node_name(*node) == name);
    node.unwrap_or_else(|| panic!("no node in {rank}"))
}
