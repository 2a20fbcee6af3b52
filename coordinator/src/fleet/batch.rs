//! What a batch of calls is about to make durable, and what may be told once it is.

use std::time::UNIX_EPOCH;

use ringmaster_proto::v1::{self, Generation};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::config::Config;
use super::error::{Error, Reply};
use crate::logs::LogIndex;
use crate::state::{Change, EventRecord, Loaded};

/// Both clocks, read once per batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    /// For intervals. tokio's clock, which is the system's unless a simulation runs.
    pub(super) at: Instant,
    /// For people: Unix milliseconds.
    pub(super) unix_ms: i64,
}

impl Now {
    pub(super) fn read(config: &Config) -> Self {
        let since_epoch = (config.wall_clock)().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX);
        Self { at: Instant::now(), unix_ms }
    }
}

/// Something to do once the batch is durable.
pub(super) type Effect = Box<dyn FnOnce(&LogIndex) + Send>;

/// One batch of calls: what its decisions depend on beside what is known, the changes that are made durable
/// together, and what is told afterwards. It also hands out the numbers that are never used twice.
pub(super) struct Batch {
    pub(super) now: Now,
    pub(super) config: Config,
    incarnation: u32,
    counter: u32,
    last_event: u64,
    changes: Vec<Change>,
    effects: Vec<Effect>,
}

impl Batch {
    pub(super) fn new(config: Config, loaded: &Loaded, now: Now) -> Self {
        Self {
            now,
            config,
            incarnation: loaded.incarnation,
            counter: loaded.counter,
            last_event: loaded.last_event,
            changes: Vec::new(),
            effects: Vec::new(),
        }
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

    /// Adds a line to a job's history; returns it as the wire shows it.
    pub(super) fn event(&mut self, job_id: &str, kind: &str, message: String) -> v1::Event {
        tracing::info!(%job_id, kind, "{message}");
        self.last_event += 1;
        let event = EventRecord {
            id: self.last_event,
            at_ms: self.now.unix_ms,
            job_id: job_id.to_owned(),
            kind: kind.to_owned(),
            message,
        };
        let shown = event.to_proto();
        self.changes.push(Change::Event(event));
        shown
    }

    /// Opens the next generation, for this job.
    pub(super) fn open_generation(&mut self, job_id: &str, reason: &str) -> Generation {
        self.counter += 1;
        let generation = Generation::new(self.incarnation, self.counter);
        self.changes.push(Change::Generation {
            generation,
            job_id: job_id.to_owned(),
            at_ms: self.now.unix_ms,
            reason: reason.to_owned(),
        });
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

    /// Ends the batch: takes what it collected.
    pub(super) fn take(&mut self) -> (Vec<Change>, Vec<Effect>) {
        (std::mem::take(&mut self.changes), std::mem::take(&mut self.effects))
    }
}
