//! Whom the agent ends, and whom it gives up.
//!
//! A kill has a deadline. A process that hangs in a driver or on a dead file system outlives SIGKILL; its job
//! must not wait for that. It counts as undead then: its exit is told, its key is free for another process,
//! and only its slot stays taken until it has gone after all.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use ringmaster_proto::v1::StartRank;
use tokio::time::Instant;

use super::slots::Holder;
use super::{Inner, Key, Table};
use crate::entry::{Ending, Entry, Killed, Process};
use crate::exit::{Class, cause, operation};

/// A pause between two looks at the ranks longer than this means that the agent itself stood
/// still, so silence says nothing about the ranks.
const OWN_STALL: Duration = Duration::from_secs(1);

impl Table {
    /// Kills ranks whose grace is over, that are stopped by a signal, or that have said nothing for too long,
    /// and gives up those that are still there long after they were killed.
    pub fn enforce(&self, now: Instant) {
        let stopped = self.stopped();
        let mut inner = self.lock();
        let stalled = now.saturating_duration_since(inner.looked_at) > OWN_STALL;
        inner.looked_at = now;
        let silence = inner.silence;
        let mut unstarted = Vec::new();
        for (key, entry) in &mut inner.ranks {
            if stalled {
                entry.restart_clocks(now);
            }
            let stopped = entry.pid().and_then(|pid| stopped.get(&pid).copied());
            let Some(killed) = entry.overdue(now, silence, stopped) else { continue };
            if entry.process == Process::Queued {
                unstarted.push((key.clone(), killed));
            } else {
                entry.kill(&*self.processes, now, killed);
            }
        }
        for (key, killed) in unstarted {
            self.give_up_unstarted(&mut inner, &key, killed);
        }
        let replacements = self.give_up_undead(&mut inner, now);
        drop(inner);
        for start in replacements {
            self.start(start);
        }
    }

    /// Returns the processes of ranks that a signal has stopped. /proc is read without the lock.
    fn stopped(&self) -> BTreeMap<u32, u64> {
        let running = |entry: &Entry| match entry.process {
            Process::Running(pid) => Some(pid),
            Process::Queued | Process::Ended(_) => None,
        };
        let running: Vec<u32> = self.lock().ranks.values().filter_map(running).collect();
        running.into_iter().filter_map(|pid| Some((pid, self.processes.stopped(pid)?))).collect()
    }

    /// Ends a rank that has no process yet. Its folder may be on a file system that does not answer.
    fn give_up_unstarted(&self, inner: &mut Inner, key: &Key, killed: Killed) {
        let Some(mut entry) = inner.ranks.remove(key) else { return };
        if let Some(next) = entry.next.take() {
            entry = Entry::new(next);
        }
        self.exits.add(entry.exit(Ending::from(killed)));
        self.emptied.notify_all();
        self.news.notify_one();
    }

    /// Gives up the ranks that survive SIGKILL, and returns what is to be started in their place.
    fn give_up_undead(&self, inner: &mut Inner, now: Instant) -> Vec<StartRank> {
        let undead = inner.ranks.iter().filter_map(|(key, entry)| {
            let (pid, why) = entry.survives(now, self.kill_deadline)?;
            Some(Holder { key: key.clone(), pid, slot: entry.start.local_rank, why })
        });
        let undead: Vec<Holder> = undead.collect();
        let mut replacements = Vec::new();
        for holder in undead {
            let Some(mut entry) = inner.ranks.remove(&holder.key) else { continue };
            let Holder { key, pid, slot, why } = &holder;
            tracing::error!(job_id = %key.0, rank = key.1.0, pid, slot, why, "the rank survives SIGKILL; its slot takes no rank until it has gone");
            replacements.extend(entry.next.take());
            self.exits.add(entry.exit(Ending {
                reason: why.clone(),
                class: Class::Node,
                operation: operation::END.to_owned(),
                cause: cause::SURVIVES.to_owned(),
                undead: true,
                ..Ending::default()
            }));
            inner.slots_out.bury(holder);
            self.emptied.notify_all();
            self.news.notify_one();
        }
        replacements
    }

    /// Kills every rank and lets none start any more.
    pub fn kill_all(&self, because: &str) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.ranks.retain(|_, entry| entry.process != Process::Queued);
        let (now, killed) =
            (Instant::now(), Killed { because: because.to_owned(), cause: cause::KILLED });
        for entry in inner.ranks.values_mut() {
            entry.kill(&*self.processes, now, killed.clone());
        }
        self.emptied.notify_all();
    }

    /// Whether a rank is there.
    pub(crate) fn has_ranks(&self) -> bool {
        !self.lock().ranks.is_empty()
    }

    /// True when no rank is there, and every exit was acknowledged. Undead ones are not waited for.
    pub fn is_done(&self) -> bool {
        self.lock().ranks.is_empty() && self.exits.is_empty()
    }

    /// Waits until no rank is left but undead ones. Returns false when some are after `timeout`.
    pub(crate) fn wait_until_empty(&self, timeout: Duration) -> bool {
        let busy = |inner: &mut Inner| !inner.ranks.is_empty();
        let waited = self.emptied.wait_timeout_while(self.lock(), timeout, busy);
        waited.unwrap_or_else(PoisonError::into_inner).0.ranks.is_empty()
    }
}
