//! The ranks of this node: what the coordinator asked for, what runs, what ended.
//!
//! [`Table`] is the agent's only shared state. Its methods are the critical sections: they take
//! one lock, wait for nothing, and are called from the session, the sockets, the thread that
//! starts ranks and the threads that wait for their ends.
//!
//! The life of an entry: `start` puts it in; `launch` runs exec under the lock, so that no process
//! can appear after `kill_all`; `ending` says that the leader is a zombie and must not be signalled
//! any more; `ended` removes it, when nothing of the rank is left, and either keeps its exit for
//! the coordinator or starts the rank's next life.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringmaster_proto::Seat;
use ringmaster_proto::v1::agent_command::Command;
use ringmaster_proto::v1::{
    AgentCommand, Generation, Heartbeat, Leaving, RankExited, RankStatus, Regenerate, RunningRank,
    StartRank, StopRank,
};
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use super::entry::{Ending, Entry, Launch, Line, NotStarted, Process, pack};
use super::exits::Exits;
use super::processes::Processes;
use super::secret::Secret;

/// A job's rank: (job id, seat).
pub type Key = (String, Seat);

/// How the reason ends for which a rank beyond the slots is refused.
pub const FULL: &str = "slots of this node are in use";
/// A pause between two looks at the ranks longer than this means that the agent itself stood
/// still, so silence says nothing about the ranks.
const OWN_STALL: Duration = Duration::from_secs(1);

/// The ranks of this node.
#[derive(Debug)]
pub struct Table {
    inner: Mutex<Inner>,
    emptied: Condvar,
    /// Exits the coordinator has not acknowledged.
    pub(super) exits: Exits,
    /// Woken when there is something to tell the coordinator at once.
    pub(super) news: Notify,
    slots: usize,
    launches: UnboundedSender<Key>,
    processes: Arc<dyn Processes>,
}

#[derive(Debug)]
struct Inner {
    closed: bool,
    /// A connected rank that says nothing for this long is killed.
    silence: Duration,
    /// Told to end: no rank is started any more.
    leaving: Option<Leaving>,
    /// A rank has said something that should not wait for the next heartbeat.
    urgent: bool,
    ranks: BTreeMap<Key, Entry>,
    highest: Generation,
    looked_at: Instant,
}

impl Table {
    /// Starts empty. Ranks to launch go to `launches`, those to end to `processes`; a connected rank that is
    /// silent for `silence` is to end.
    pub fn new(
        slots: usize,
        silence: Duration,
        exits: Exits,
        launches: UnboundedSender<Key>,
        processes: Arc<dyn Processes>,
    ) -> Self {
        let inner = Inner {
            closed: false,
            silence,
            leaving: None,
            urgent: false,
            ranks: BTreeMap::new(),
            highest: Generation::default(),
            looked_at: Instant::now(),
        };
        Self {
            inner: Mutex::new(inner),
            emptied: Condvar::new(),
            exits,
            news: Notify::new(),
            slots,
            launches,
            processes,
        }
    }

    // --- what the coordinator asks ---

    /// Starts a rank. One that already runs in this generation or a newer one is left alone; one
    /// of an older generation is killed first.
    pub(super) fn start(&self, start: StartRank) {
        let mut inner = self.lock();
        let generation = start.generation.unwrap_or_default();
        inner.highest = inner.highest.max(generation);
        if inner.closed {
            return;
        }
        let key = (start.job_id.clone(), Seat(start.rank));
        if let Some(entry) = inner.ranks.get_mut(&key) {
            if entry.target() >= generation {
                tracing::debug!(job_id = %key.0, rank = key.1.0, %generation, "runs already");
                return;
            }
            tracing::info!(job_id = %key.0, rank = key.1.0, %generation, "replacing the running process");
            entry.next = Some(start);
            entry.kill(&*self.processes, "replaced by a newer generation");
            return;
        }
        if let Some(leaving) = &inner.leaving {
            let reason = format!("this node's agent is ending: {}", leaving.reason);
            drop(inner);
            self.refuse(key, generation, reason);
            return;
        }
        if inner.ranks.len() >= self.slots {
            let reason = format!("all {} {FULL}", self.slots);
            drop(inner);
            self.refuse(key, generation, reason);
            return;
        }
        inner.ranks.insert(key.clone(), Entry::new(start));
        // Fails only when the thread that starts ranks is gone, which `Agent::run` notices.
        drop(self.launches.send(key));
    }

    /// Sends a rank into another generation.
    pub(super) fn regenerate(&self, regenerate: Regenerate) {
        let generation = regenerate.generation.unwrap_or_default();
        let key = (regenerate.job_id.clone(), Seat(regenerate.rank));
        let mut inner = self.lock();
        inner.highest = inner.highest.max(generation);
        let Some(entry) = inner.ranks.get_mut(&key) else {
            drop(inner);
            // Without this answer the coordinator would wait for a rank that is gone.
            self.refuse(key, generation, "the rank does not run on this node".to_owned());
            return;
        };
        if generation < entry.target() {
            tracing::warn!(job_id = %key.0, rank = key.1.0, %generation, "a stale generation is ignored");
            return;
        }
        entry.generation.store(pack(generation), Ordering::Relaxed);
        entry.send(Command::Regenerate(regenerate));
    }

    /// Asks a rank to end and sets when it is killed.
    pub(super) fn stop(&self, stop: StopRank) {
        let mut inner = self.lock();
        let key = (stop.job_id.clone(), Seat(stop.rank));
        let Some(entry) = inner.ranks.get_mut(&key) else {
            tracing::debug!(job_id = %key.0, rank = key.1.0, "a rank to stop is not running");
            return;
        };
        let grace = Duration::from_millis(stop.grace_ms.into());
        let because = if grace.is_zero() {
            format!("killed: {}", stop.reason)
        } else {
            format!("killed after a grace of {} s ({})", grace.as_secs_f64(), stop.reason)
        };
        let kill_at = Instant::now() + grace;
        // A repeated stop may shorten the grace, never lengthen it.
        if entry.kill_at.as_ref().is_none_or(|(earlier, _)| kill_at < *earlier) {
            entry.kill_at = Some((kill_at, because));
        }
        entry.send(Command::Stop(stop));
        drop(inner);
        self.enforce(Instant::now());
    }

    /// Takes no rank any more, asks those that run to end gracefully, and has the coordinator told.
    pub fn leave(&self, grace: Duration, reason: &str) {
        let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
        self.lock().leaving = Some(Leaving { grace_ms, reason: reason.to_owned() });
        self.news.notify_one();
        self.stop_all(grace, reason);
    }

    /// Returns the notice that this node leaves, if it does.
    pub fn leaving(&self) -> Option<Leaving> {
        self.lock().leaving.clone()
    }

    /// Sets after which silence a connected rank is killed.
    pub(super) fn set_silence(&self, silence: Duration) {
        self.lock().silence = silence;
    }

    /// Asks every rank to end gracefully.
    pub(super) fn stop_all(&self, grace: Duration, reason: &str) {
        let keys: Vec<Key> = self.lock().ranks.keys().cloned().collect();
        for (job_id, seat) in keys {
            self.stop(StopRank {
                job_id,
                rank: seat.0,
                graceful: true,
                grace_ms: u32::try_from(grace.as_millis()).unwrap_or(u32::MAX),
                reason: reason.to_owned(),
            });
        }
    }

    // --- what the session tells the coordinator ---

    /// Returns whether a heartbeat is worth sending at once, and forgets it.
    pub(super) fn take_urgent(&self) -> bool {
        std::mem::take(&mut self.lock().urgent)
    }

    /// Returns the status of every rank; metrics only where they changed since the last call.
    pub(super) fn heartbeat(&self) -> Heartbeat {
        let mut inner = self.lock();
        let ranks = inner.ranks.values_mut().filter_map(Entry::report).collect();
        Heartbeat { ranks, sequence: 0 }
    }

    /// Returns the ranks that run and the highest generation seen, for a registration; the next
    /// heartbeat repeats metrics and every exit counts as not sent.
    pub(super) fn registration(&self) -> (Vec<RunningRank>, Generation) {
        self.exits.forget_sent();
        let mut inner = self.lock();
        let mut running = Vec::new();
        for ((job_id, seat), entry) in &mut inner.ranks {
            entry.metrics_sent = None;
            running.push(RunningRank {
                job_id: job_id.clone(),
                generation: Some(entry.target()),
                rank: seat.0,
                pid: entry.pid().unwrap_or(0),
            });
        }
        (running, inner.highest)
    }

    // --- what ranks say on their sockets ---

    /// Opens the line to the rank that was told `secret`, if it is one that runs; commands go to `sender`.
    /// Returns its process.
    pub fn connected(
        &self,
        key: &Key,
        secret: &Secret,
        sender: mpsc::UnboundedSender<AgentCommand>,
    ) -> Option<u32> {
        let mut inner = self.lock();
        let entry = inner.ranks.get_mut(key).filter(|entry| entry.secret == *secret)?;
        let pid = entry.pid()?;
        if let Line::Closed(waiting) = &mut entry.line {
            for command in waiting.drain(..) {
                drop(sender.send(command));
            }
        }
        entry.line = Line::Open(sender);
        entry.heard_at = Some(Instant::now());
        Some(pid)
    }

    /// Takes in what the rank says of itself.
    pub fn status(&self, key: &Key, pid: u32, status: RankStatus) {
        let mut inner = self.lock();
        if let Some(entry) = inner.ranks.get_mut(key).filter(|entry| entry.pid() == Some(pid)) {
            entry.heard_at = Some(Instant::now());
            if entry.update(RankStatus { pid, ..status }) {
                inner.urgent = true;
                self.news.notify_one();
            }
        }
    }

    // --- the life of a process ---

    /// Runs `exec` for a queued rank and notes the process id it returns; what else it returns is handed on.
    /// Returns none when nothing was started: the rank is no longer wanted, or `exec` failed, and then the
    /// entry is gone and its exit kept for the coordinator.
    pub fn launch<P>(
        &self,
        key: &Key,
        exec: impl FnOnce(&StartRank, &Secret) -> Result<(u32, P), NotStarted>,
    ) -> Option<(P, Launch)> {
        let mut inner = self.lock();
        if inner.closed {
            inner.ranks.remove(key);
            self.emptied.notify_all();
            return None;
        }
        let entry = inner.ranks.get_mut(key)?;
        if let Some(next) = entry.next.take() {
            *entry = Entry::new(next);
        }
        match exec(&entry.start, &entry.secret) {
            Ok((pid, process)) => {
                entry.process = Process::Running(pid);
                entry.status.pid = pid;
                let generation = Arc::clone(&entry.generation);
                Some((process, Launch { start: entry.start.clone(), generation }))
            }
            Err(NotStarted { why, for_the_worker }) => {
                let generation = entry.target();
                inner.ranks.remove(key);
                self.emptied.notify_all();
                drop(inner);
                let reason = format!("cannot start the rank: {why}");
                self.refuse_for(key.clone(), generation, reason, for_the_worker);
                None
            }
        }
    }

    /// Notes that the leader is a zombie: from now on only its waiter touches what is left.
    pub fn ending(&self, key: &Key) {
        if let Some(entry) = self.lock().ranks.get_mut(key)
            && let Process::Running(pid) = entry.process
        {
            entry.process = Process::Ended(pid);
        }
    }

    /// Returns why the agent killed this rank; none when it did not.
    pub fn killed_because(&self, key: &Key) -> Option<String> {
        self.lock().ranks.get(key)?.killed_because.clone()
    }

    /// Whether the process of this rank has connected.
    pub(super) fn has_connected(&self, key: &Key) -> bool {
        self.lock().ranks.get(key).is_some_and(Entry::has_connected)
    }

    /// Removes a rank of which nothing is left.
    pub fn ended(&self, key: &Key, ending: Ending) {
        let mut inner = self.lock();
        let Some(entry) = inner.ranks.remove(key) else { return };
        self.emptied.notify_all();
        let next = entry.next.clone();
        if next.is_none() || inner.closed {
            self.exits.add(entry.exit(ending));
            self.news.notify_one();
        }
        drop(inner);
        // The coordinator asked for the replacement, so it needs no word of the old process.
        if let Some(start) = next {
            self.start(start);
        }
    }

    // --- killing ---

    /// Kills ranks whose grace is over and those that have said nothing for too long.
    pub fn enforce(&self, now: Instant) {
        let mut inner = self.lock();
        let stalled = now.saturating_duration_since(inner.looked_at) > OWN_STALL;
        inner.looked_at = now;
        let silence = inner.silence;
        for entry in inner.ranks.values_mut() {
            if let Some((_, because)) = entry.kill_at.take_if(|(at, _)| *at <= now) {
                entry.kill(&*self.processes, &because);
            }
            let Some(heard_at) = &mut entry.heard_at else { continue };
            if stalled {
                *heard_at = now;
            } else if now.saturating_duration_since(*heard_at) > silence {
                entry.heard_at = None;
                let because = format!("no sign of life for {} s", silence.as_secs_f64());
                entry.kill(&*self.processes, &because);
            }
        }
    }

    /// Kills every rank and lets none start any more.
    pub fn kill_all(&self, because: &str) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.ranks.retain(|_, entry| entry.process != Process::Queued);
        for entry in inner.ranks.values_mut() {
            entry.kill(&*self.processes, because);
        }
        self.emptied.notify_all();
    }

    /// True when no rank is there, and every exit was acknowledged.
    pub fn is_done(&self) -> bool {
        self.lock().ranks.is_empty() && self.exits.is_empty()
    }

    /// Waits until no rank is left. Returns false when some are after `timeout`.
    pub(super) fn wait_until_empty(&self, timeout: Duration) -> bool {
        let busy = |inner: &mut Inner| !inner.ranks.is_empty();
        let waited = self.emptied.wait_timeout_while(self.lock(), timeout, busy);
        waited.unwrap_or_else(PoisonError::into_inner).0.ranks.is_empty()
    }

    /// Tells the coordinator that a rank it asked for does not run.
    fn refuse(&self, key: Key, generation: Generation, reason: String) {
        self.refuse_for(key, generation, reason, false);
    }

    fn refuse_for(
        &self,
        (job_id, Seat(rank)): Key,
        generation: Generation,
        reason: String,
        for_the_worker: bool,
    ) {
        tracing::warn!(%job_id, rank, %generation, %reason, "cannot serve the rank");
        self.exits.add(RankExited {
            job_id,
            rank,
            generation: Some(generation),
            reason,
            retryable: true,
            for_the_worker,
            ..RankExited::default()
        });
        self.news.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No method leaves the table half changed when it panics, and ranks must stay killable.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "ranks_tests.rs"]
mod tests;
