//! The ranks of this node: what the coordinator asked for, what runs, what ended.
//!
//! [`Table`] is the agent's only shared state. Its methods are the critical sections: they take
//! one lock, wait for nothing, and are called from the session, the sockets, the thread that
//! starts ranks and the threads that wait for their ends.
//!
//! Modules in reading order: this one (what the coordinator asks, what it is told, what ranks say), `life`
//! (of a process: started, ending, ended), `kills` (whom the agent ends, and whom it gives up), `slots`
//! (those that take no rank).

mod kills;
mod life;
mod slots;

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

use self::slots::Slots;
pub use super::entry::Key;
use super::entry::{Ending, Entry, Killed, Line, pack};
use super::exits::Exits;
use super::processes::Processes;
use super::secret::Secret;
use crate::exit::{Class, cause, operation};

/// How the reason ends for which a rank beyond the slots is refused.
pub const FULL: &str = "slots of this node are in use";
/// How long a rank may still be there after SIGKILL until it counts as undead. A process that the kernel can
/// end at all takes a second or two to give up its memory and its device.
pub const KILL_DEADLINE: Duration = Duration::from_secs(5);

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
    kill_deadline: Duration,
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
    slots_out: Slots,
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
            slots_out: Slots::default(),
            highest: Generation::default(),
            looked_at: Instant::now(),
        };
        Self {
            inner: Mutex::new(inner),
            emptied: Condvar::new(),
            exits,
            news: Notify::new(),
            slots,
            kill_deadline: KILL_DEADLINE,
            launches,
            processes,
        }
    }

    /// Gives up ranks that are still there so long after SIGKILL, instead of after [`KILL_DEADLINE`].
    #[must_use]
    pub fn with_kill_deadline(self, kill_deadline: Duration) -> Self {
        Self { kill_deadline, ..self }
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
            let because = "replaced by a newer generation".to_owned();
            entry.kill(&*self.processes, Instant::now(), Killed { because, cause: cause::KILLED });
            return;
        }
        if let Some((cause, reason)) = self.why_not(&inner, start.local_rank) {
            drop(inner);
            self.refuse(key, generation, cause, reason);
            return;
        }
        inner.ranks.insert(key.clone(), Entry::new(start));
        // Fails only when the thread that starts ranks is gone, which `Agent::run` notices.
        drop(self.launches.send(key));
    }

    /// Returns why no rank can start in this slot: the word, and the sentence.
    fn why_not(&self, inner: &Inner, slot: u32) -> Option<(&'static str, String)> {
        if let Some(leaving) = &inner.leaving {
            let reason = format!("this node's agent is ending: {}", leaving.reason);
            return Some((cause::LEAVING, reason));
        }
        if let Some(why) = inner.slots_out.why_out(slot) {
            let reason = format!("slot {slot} of this node takes no rank: {why}");
            return Some((cause::SLOTS, reason));
        }
        let is_full = inner.taken() >= self.slots;
        is_full.then(|| (cause::SLOTS, format!("all {} {FULL}", self.slots)))
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
            let reason = "the rank does not run on this node".to_owned();
            self.refuse(key, generation, cause::NOT_RUNNING, reason);
            return;
        };
        if generation < entry.target() {
            tracing::warn!(job_id = %key.0, rank = key.1.0, %generation, "a stale generation is ignored");
            return;
        }
        entry.generation.store(pack(generation), Ordering::Relaxed);
        entry.send(Command::Regenerate(regenerate));
    }

    /// Asks a rank to end and sets when it is killed: by nobody but who asks again, if it is to end
    /// gracefully and without a limit.
    pub(super) fn stop(&self, stop: StopRank) {
        let has_limit = !stop.graceful || stop.grace_ms > 0;
        let grace = has_limit.then(|| Duration::from_millis(stop.grace_ms.into()));
        self.stop_within(grace, stop);
    }

    fn stop_within(&self, grace: Option<Duration>, stop: StopRank) {
        let mut inner = self.lock();
        let key = (stop.job_id.clone(), Seat(stop.rank));
        let Some(entry) = inner.ranks.get_mut(&key) else {
            tracing::debug!(job_id = %key.0, rank = key.1.0, "a rank to stop is not running");
            return;
        };
        if let Some(grace) = grace {
            let because = if grace.is_zero() {
                format!("killed: {}", stop.reason)
            } else {
                format!("killed after a grace of {} s ({})", grace.as_secs_f64(), stop.reason)
            };
            let kill_at = Instant::now() + grace;
            // A repeated stop may shorten the grace, never lengthen it.
            if entry.kill_at.as_ref().is_none_or(|(earlier, _)| kill_at < *earlier) {
                entry.kill_at = Some((kill_at, Killed { because, cause: cause::KILLED }));
            }
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
            let stop = StopRank {
                job_id,
                rank: seat.0,
                graceful: true,
                grace_ms: u32::try_from(grace.as_millis()).unwrap_or(u32::MAX),
                reason: reason.to_owned(),
            };
            self.stop_within(Some(grace), stop);
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
                started: entry.start.generation,
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

    // --- what cannot be done ---

    /// Tells the coordinator that a rank it asked for does not run; another node may serve it, or this one
    /// later.
    fn refuse(&self, key: Key, generation: Generation, cause: &str, reason: String) {
        self.report(
            key,
            generation,
            Ending {
                reason,
                class: Class::Retry,
                operation: operation::START.to_owned(),
                cause: cause.to_owned(),
                ..Ending::default()
            },
        );
    }

    /// Tells the coordinator why a rank that it asked for never ran.
    fn report(&self, key: Key, generation: Generation, ending: Ending) {
        let reason = &ending.reason;
        tracing::warn!(job_id = %key.0, rank = key.1.0, %generation, %reason, "cannot serve the rank");
        self.exits.add(ending.of(key, generation, RankExited::default()));
        self.news.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No method leaves the table half changed when it panics, and ranks must stay killable.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod fake_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod kills_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod slots_tests;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
