//! Inflicting: a thread for each kind of blow, and for each rank one, until it is over.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::plan::{Act, Blow, blows};
use crate::network::Namespaces;

/// How long a slowed rank takes for one stop and one run.
const CYCLE: Duration = Duration::from_millis(50);
/// Share of the packets that are lost.
pub(super) const LOST_SHARE: f64 = 0.05;
/// Busy loops per core.
const LOOPS_PER_CORE: usize = 2;

/// Who is struck.
#[derive(Debug)]
pub(super) struct Victims<'a> {
    /// Processes of the ranks.
    pub(super) ranks: Vec<u32>,
    /// Processes of the agents.
    pub(super) agents: Vec<u32>,
    /// The coordinator's.
    pub(super) coordinator: u32,
    /// Where packets can be lost; none where they cannot.
    pub(super) network: Option<&'a Namespaces>,
}

/// How often something was inflicted, and how long.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Tally {
    /// Times.
    pub times: u64,
    /// All of them together.
    pub total: Duration,
    /// The longest, as measured: longer than planned where this machine was busy. Of a rank that was slowed
    /// the longest single stop.
    pub longest: Duration,
}

/// Says when it is over, and counts until then.
#[derive(Debug, Default)]
pub(super) struct Unrest {
    is_over: Mutex<bool>,
    ends: Condvar,
    tallies: Mutex<BTreeMap<Act, Tally>>,
}

/// Ends the unrest where it is dropped, also when whoever watches is interrupted.
#[derive(Debug)]
pub(super) struct Ends<'a>(pub(super) &'a Unrest);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        *self.0.is_over.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.ends.notify_all();
    }
}

impl Unrest {
    /// Returns how often what was inflicted.
    pub(super) fn tallies(&self) -> BTreeMap<Act, Tally> {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Inflicts one kind of blow until it is over. Whoever is stopped goes on when this returns.
    pub(super) fn inflict(&self, act: Act, seed: u64, stream: u64, victims: &Victims<'_>) {
        let count = if act == Act::StopAgent { victims.agents.len() } else { 1 };
        for blow in blows(act, seed, stream, count) {
            if self.wait(blow.pause) {
                return;
            }
            let began = Instant::now();
            let longest = match act {
                Act::SlowRank => self.slow(victims.ranks[stream as usize], blow),
                Act::Starve => self.starve(blow.time),
                Act::StopAgent => self.stop(victims.agents[blow.victim], blow.time),
                Act::StopCoordinator => self.stop(victims.coordinator, blow.time),
                Act::LosePackets => self.lose(victims.network, blow.time),
            };
            self.count(act, began.elapsed(), longest);
        }
    }

    /// Stops and runs a process in turn; returns the longest stop.
    fn slow(&self, pid: u32, blow: Blow) -> Duration {
        let until = Instant::now() + blow.time;
        let running = CYCLE.div_f64(blow.slower);
        let mut longest = Duration::ZERO;
        while Instant::now() < until {
            longest = longest.max(self.stop(pid, CYCLE - running));
            if self.wait(running) {
                break;
            }
        }
        longest
    }

    /// Stops a process for so long; returns how long it was.
    fn stop(&self, pid: u32, time: Duration) -> Duration {
        let began = Instant::now();
        signal(pid, Signal::SIGSTOP);
        self.wait(time);
        signal(pid, Signal::SIGCONT);
        began.elapsed()
    }

    /// Keeps the cores busy.
    fn starve(&self, time: Duration) -> Duration {
        let began = Instant::now();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| {
            for _ in 0..LOOPS_PER_CORE * cores {
                scope.spawn(|| {
                    while began.elapsed() < time && !self.wait(Duration::ZERO) {
                        (0..100_000).for_each(|_| std::hint::spin_loop());
                    }
                });
            }
        });
        began.elapsed()
    }

    /// Loses packets for so long. That they can be lost was tried before.
    fn lose(&self, network: Option<&Namespaces>, time: Duration) -> Duration {
        let began = Instant::now();
        let loss = network.map(|network| network.lose(LOST_SHARE));
        self.wait(time);
        drop(loss);
        began.elapsed()
    }

    /// Waits, and returns true once it is over, which ends the wait.
    fn wait(&self, time: Duration) -> bool {
        let is_over = self.is_over.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.ends.wait_timeout_while(is_over, time, |is_over| !*is_over);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn count(&self, act: Act, total: Duration, longest: Duration) {
        let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        let tally = tallies.entry(act).or_default();
        tally.times += 1;
        tally.total += total;
        tally.longest = tally.longest.max(longest);
    }
}

/// One that has gone was lost, which its job's history tells.
fn signal(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::processes::{LIMIT, eventually};

    #[test]
    fn the_end_of_the_unrest_lets_whoever_is_stopped_go_on() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let status = || std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let victims = Victims {
            ranks: Vec::new(),
            agents: vec![child.id()],
            coordinator: child.id(),
            network: None,
        };
        let unrest = Unrest::default();
        std::thread::scope(|scope| {
            let ends = Ends(&unrest);
            // It would stop it for an hour.
            scope.spawn(|| unrest.stop(victims.agents[0], Duration::from_secs(3600)));
            assert!(eventually(LIMIT, || status().contains("State:\tT")));
            drop(ends);
        });
        assert!(!status().contains("State:\tT"), "{}", status());
        unrest.inflict(Act::StopCoordinator, 1, 0, &victims);
        assert!(unrest.tallies().is_empty(), "nothing is inflicted once it is over");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn blows_are_counted_with_the_longest_stop() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let unrest = Unrest::default();
        let blow = Blow {
            pause: Duration::ZERO,
            victim: 0,
            time: Duration::from_millis(200),
            slower: 5.0,
        };
        let longest = unrest.slow(child.id(), blow);
        assert!(longest >= Duration::from_millis(40), "{longest:?}");
        unrest.count(Act::SlowRank, blow.time, longest);
        unrest.count(Act::SlowRank, blow.time, Duration::ZERO);
        let tally = unrest.tallies()[&Act::SlowRank];
        assert_eq!((tally.times, tally.longest), (2, longest));
        assert_eq!(tally.total, Duration::from_millis(400));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
