//! What a batch of commands is about to make durable, and what may be told once it is.

use std::time::{SystemTime, UNIX_EPOCH};

use ringmaster_proto::v1::{self, Generation};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Error;
use super::handle::Reply;
use super::job::Job;
use crate::logs::LogIndex;
use crate::state::{Change, EventRecord};

/// Both clocks, read once per batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    /// For intervals. tokio's clock, which is the system's unless a simulation runs.
    pub(super) at: Instant,
    /// For people: Unix milliseconds.
    pub(super) unix_ms: i64,
}

impl Now {
    pub(super) fn read() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX);
        Self { at: Instant::now(), unix_ms }
    }
}

/// Something to do once the batch is durable.
pub(super) type Effect = Box<dyn FnOnce(&LogIndex) + Send>;

/// Collects a batch's changes and effects, and hands out numbers that are never used twice.
pub(super) struct Ledger {
    pub(super) now: Now,
    incarnation: u32,
    counter: u32,
    last_event: u64,
    changes: Vec<Change>,
    effects: Vec<Effect>,
}

impl Ledger {
    pub(super) fn new(incarnation: u32, counter: u32, last_event: u64, now: Now) -> Self {
        Self { now, incarnation, counter, last_event, changes: Vec::new(), effects: Vec::new() }
    }

    /// Adds a durable fact.
    pub(super) fn change(&mut self, change: Change) {
        self.changes.push(change);
    }

    /// Adds an effect.
    pub(super) fn effect(&mut self, effect: impl FnOnce(&LogIndex) + Send + 'static) {
        self.effects.push(Box::new(effect));
    }

    /// Answers a caller once the batch is durable.
    pub(super) fn reply<T: Send + 'static>(&mut self, reply: Reply<T>, answer: Result<T, Error>) {
        self.effect(move |_| {
            // A caller that has gone no longer needs the answer.
            let _ = reply.send(answer);
        });
    }

    /// Sends a message to an agent once the batch is durable. Settling ends the session of an agent
    /// that does not keep up; what it missed is worked out again when it registers.
    pub(super) fn send(
        &mut self,
        outbound: &mpsc::Sender<v1::CoordinatorMessage>,
        message: v1::coordinator_message::Message,
    ) {
        let outbound = outbound.clone();
        self.effect(move |_| {
            let message = v1::CoordinatorMessage { message: Some(message) };
            if outbound.try_send(message).is_err() {
                tracing::warn!("an agent's session is closed or full");
            }
        });
    }

    /// Adds a line to a job's history.
    pub(super) fn event(&mut self, job: &mut Job, kind: &str, message: String) {
        tracing::info!(job_id = %job.record.job_id, kind, "{message}");
        self.last_event += 1;
        let event = EventRecord {
            id: self.last_event,
            at_ms: self.now.unix_ms,
            job_id: job.record.job_id.clone(),
            kind: kind.to_owned(),
            message,
        };
        job.news.push(super::view::event(&event));
        job.dirty = true;
        self.changes.push(Change::Event(event));
    }

    /// Opens the next generation, for this job.
    pub(super) fn open_generation(&mut self, job: &mut Job, reason: &str) -> Generation {
        self.counter += 1;
        let generation = Generation::new(self.incarnation, self.counter);
        self.changes.push(Change::Generation {
            generation,
            job_id: job.record.job_id.clone(),
            at_ms: self.now.unix_ms,
            reason: reason.to_owned(),
        });
        job.record.generation = Some(generation);
        job.record.formed = false;
        job.dirty = true;
        generation
    }

    /// Raises the incarnation above what an agent has seen (of a coordinator whose database is
    /// lost, or older than the agent).
    pub(super) fn rise_above(&mut self, seen: Generation) {
        if seen <= Generation::new(self.incarnation, self.counter) {
            return;
        }
        self.incarnation = seen.incarnation + 1;
        self.changes.push(Change::Incarnation(self.incarnation));
    }

    /// Takes what the batch collected: changes of jobs first, then the rest.
    pub(super) fn take<'a>(
        &mut self,
        jobs: impl Iterator<Item = &'a mut Job>,
    ) -> (Vec<Change>, Vec<Effect>) {
        let mut changes = Vec::new();
        for job in jobs {
            if std::mem::take(&mut job.dirty) {
                changes.push(Change::Job(Box::new(job.record.clone())));
                job.changed = true;
            }
            if std::mem::take(&mut job.changed) {
                self.tell_watchers(job);
            }
        }
        changes.append(&mut self.changes);
        (changes, std::mem::take(&mut self.effects))
    }

    fn tell_watchers(&mut self, job: &mut Job) {
        let events = std::mem::take(&mut job.news);
        let ended = job.record.state.is_ended();
        if job.watchers.is_empty() {
            return;
        }
        let view = super::view::job(job);
        let mut updates: Vec<v1::JobUpdate> = events
            .into_iter()
            .map(|event| v1::JobUpdate { job: Some(view.clone()), event: Some(event) })
            .collect();
        if updates.is_empty() {
            updates.push(v1::JobUpdate { job: Some(view), event: None });
        }
        // Metrics may be skipped for a slow reader; where history would be, its channel is closed.
        let is_history = updates.iter().any(|update| update.event.is_some()) || ended;
        job.watchers.retain(|watcher| {
            !watcher.is_closed() && (!is_history || watcher.capacity() >= updates.len())
        });
        let watchers = if ended { std::mem::take(&mut job.watchers) } else { job.watchers.clone() };
        self.effect(move |_| {
            for watcher in watchers {
                for update in &updates {
                    if watcher.try_send(update.clone()).is_err() {
                        break;
                    }
                }
            }
        });
    }
}
