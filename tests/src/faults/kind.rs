//! What is done to a cluster, and what is undone once the job trains again.

use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::cluster::{Cluster, node_name};
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
    /// SIGKILL to an agent; its ranks end with it.
    KillAgent,
    /// A node's cable is pulled: nobody hears anything, not even that it is gone.
    CutNode,
    /// SIGKILL to the coordinator, which is started again two seconds later.
    KillCoordinator,
    /// SIGSTOP to a rank and SIGCONT a second later: slow, not dead.
    SlowRank,
    /// No fault: a job of its own that is slow in some way.
    Slow(Slow),
}

/// All of them, and their words on the command line.
pub const KINDS: [(&str, Kind); 10] = [
    ("kill-rank", Kind::KillRank),
    ("stop-rank", Kind::StopRank),
    ("kill-agent", Kind::KillAgent),
    ("cut-node", Kind::CutNode),
    ("kill-coordinator", Kind::KillCoordinator),
    ("slow-rank", Kind::SlowRank),
    ("slow-first-step", Kind::Slow(Slow::FirstStep)),
    ("slow-step", Kind::Slow(Slow::Step)),
    ("slow-evaluation", Kind::Slow(Slow::Evaluation)),
    ("store-away", Kind::Slow(Slow::StoreAway(STORE_AWAY))),
];

impl Kind {
    /// Returns its word.
    pub fn word(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).map_or("", |(word, _)| word)
    }

    /// Returns true for one after which the ring stands as before: nobody may be replaced.
    pub fn spares_ranks(self) -> bool {
        matches!(self, Self::KillCoordinator | Self::SlowRank | Self::Slow(_))
    }

    /// Strikes at the given seat of a job as `describe --json` shows it.
    ///
    /// # Panics
    /// When there is nothing to strike at: the job is not running.
    pub fn strike(self, cluster: &mut Cluster, job: &Job, seen: &Value, seat: usize) {
        let rank = &seen["ranks"][seat];
        match self {
            Self::KillRank => signal_process(pid_of(rank), Signal::SIGKILL),
            Self::StopRank => signal_process(pid_of(rank), Signal::SIGSTOP),
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
        }
    }

    /// Puts things right again, whatever the cluster has made of it meanwhile.
    ///
    /// # Panics
    /// When an agent does not start again.
    pub fn mend(self, cluster: &mut Cluster, job: &Job, seen: &Value, seat: usize) {
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

fn node_of(rank: &Value) -> usize {
    let name = rank["node"].as_str().unwrap_or_default();
    let node = (0..64).find(|node| node_name(*node) == name);
    node.unwrap_or_else(|| panic!("no node in {rank}"))
}
