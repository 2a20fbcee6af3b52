//! Watching a job: every change of it and every line of its history, for those that ask.

use ringmaster_proto::v1;
use tokio::sync::mpsc;

use super::job::Job;
use crate::fleet::Batch;
use crate::state::Change;

/// Updates a watcher may be behind before it is given up.
const WATCH_QUEUE: usize = 1024;

impl Job {
    /// Returns it now and then every change.
    pub(crate) fn watch(&mut self) -> mpsc::Receiver<v1::JobUpdate> {
        let (sender, receiver) = mpsc::channel(WATCH_QUEUE);
        let first = v1::JobUpdate { job: Some(self.view()), event: None };
        sender.try_send(first).expect("a new channel has room");
        if !self.record.state.is_ended() {
            self.watchers.push(sender);
        }
        receiver
    }

    /// Ends a batch: returns what must become durable, if it has changed, and tells its watchers.
    pub(crate) fn flush(&mut self, batch: &mut Batch) -> Option<Change> {
        let is_dirty = std::mem::take(&mut self.dirty);
        let change = is_dirty.then(|| Change::Job(Box::new(self.record.clone())));
        if std::mem::take(&mut self.changed) || is_dirty {
            self.tell_watchers(batch);
        }
        change
    }

    fn tell_watchers(&mut self, batch: &mut Batch) {
        let events = std::mem::take(&mut self.news);
        let ended = self.record.state.is_ended();
        if self.watchers.is_empty() {
            return;
        }
        let view = self.view();
        let mut updates: Vec<v1::JobUpdate> = events
            .into_iter()
            .map(|event| v1::JobUpdate { job: Some(view.clone()), event: Some(event) })
            .collect();
        if updates.is_empty() {
            updates.push(v1::JobUpdate { job: Some(view), event: None });
        }
        // Metrics may be skipped for a slow reader; where history would be, its channel is closed.
        let is_history = updates.iter().any(|update| update.event.is_some()) || ended;
        self.watchers.retain(|watcher| {
            !watcher.is_closed() && (!is_history || watcher.capacity() >= updates.len())
        });
        let watchers =
            if ended { std::mem::take(&mut self.watchers) } else { self.watchers.clone() };
        batch.effect(move |_| {
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
