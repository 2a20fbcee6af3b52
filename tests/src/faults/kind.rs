//! What is done to a cluster, and what is undone once the job trains again.

use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::cluster::{Cluster, node_name};
use super::network::Network;

/// Time the coordinator stays away.
const COORDINATOR_AWAY: Duration = Duration::from_secs(2);
/// Time a slow rank stands still: hundreds of steps' time, and less than a lease.
const SLOW: Duration = Duration::from_secs(3);

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
    /// SIGSTOP to a rank and SIGCONT three seconds later: slow, not dead.
    SlowRank,
}

/// All of them, and their words on the command line.
pub const KINDS: [(&str, Kind); 6] = [
    ("kill-rank", Kind::KillRank),
    ("stop-rank", Kind::StopRank),
    ("kill-agent", Kind::KillAgent),
    ("cut-node", Kind::CutNode),
    ("kill-coordinator", Kind::KillCoordinator),
    ("slow-rank", Kind::SlowRank),
];

impl Kind {
    /// Returns its word.
    pub fn word(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).map_or("", |(word, _)| word)
    }

    /// Returns true for one after which the ring stands as before: nobody may be replaced.
    pub fn spares_ranks(self) -> bool {
        matches!(self, Self::KillCoordinator | Self::SlowRank)
    }

    /// Strikes at the given seat of a job as `describe --json` shows it.
    ///
    /// # Panics
    /// When there is nothing to strike at: the job is not running.
    pub fn strike(self, cluster: &mut Cluster, job: &Value, seat: usize) {
        let rank = &job["ranks"][seat];
        match self {
            Self::KillRank => signal(rank, Signal::SIGKILL),
            Self::StopRank => signal(rank, Signal::SIGSTOP),
            Self::KillAgent => cluster.kill_agent(node_of(rank)),
            Self::CutNode => match &cluster.network {
                Network::Namespaces(namespaces) => {
                    namespaces.cut(node_of(rank)).expect("a link that was made can be cut");
                }
                Network::Loopback => panic!("cut-node needs network namespaces"),
            },
            Self::KillCoordinator => {
                cluster.kill_coordinator();
                // Not to wait for anything: for so long there is none.
                std::thread::sleep(COORDINATOR_AWAY);
                cluster.start_coordinator();
            }
            Self::SlowRank => {
                signal(rank, Signal::SIGSTOP);
                // The fault itself is that nothing happens for so long.
                std::thread::sleep(SLOW);
                signal(rank, Signal::SIGCONT);
            }
        }
    }

    /// Puts things right again, whatever the cluster has made of it meanwhile.
    ///
    /// # Panics
    /// When an agent does not start again.
    pub fn mend(self, cluster: &mut Cluster, job: &Value, seat: usize) {
        let rank = &job["ranks"][seat];
        match self {
            Self::KillRank | Self::StopRank | Self::KillCoordinator | Self::SlowRank => {}
            Self::KillAgent => cluster.start_agent(node_of(rank)),
            Self::CutNode => {
                if let Network::Namespaces(namespaces) = &cluster.network {
                    namespaces.restore(node_of(rank)).expect("a link that was cut can be restored");
                }
            }
        }
    }
}

fn signal(rank: &Value, signal: Signal) {
    let pid = rank["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).filter(|pid| *pid > 1);
    let pid = pid.unwrap_or_else(|| panic!("no process to send {signal} to in {rank}"));
    kill(Pid::from_raw(pid), signal).expect("a running rank can be signalled");
}

fn node_of(rank: &Value) -> usize {
    let name = rank["node"].as_str().unwrap_or_default();
    let node = (0..64).find(|node| node_name(*node) == name);
    node.unwrap_or_else(|| panic!("no node in {rank}"))
}
