//! Exits that the coordinator has not acknowledged yet.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ringmaster_proto::v1::RankExited;
use tokio::time::Instant;

/// Keeps every exit until an ack names it, and says when to send it (again).
#[derive(Debug)]
pub struct Exits {
    // Ids of another life of this agent must not collide with this one's.
    prefix: String,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    // By number, so that exits are sent in the order they happened.
    pending: BTreeMap<u64, Pending>,
    count: u64,
}

#[derive(Debug)]
struct Pending {
    exit: RankExited,
    sent_at: Option<Instant>,
}

impl Exits {
    /// Starts without exits; `prefix` becomes the first part of every exit id.
    pub fn new(prefix: String) -> Self {
        Self { prefix, inner: Mutex::default() }
    }

    /// Keeps `exit` under a new id.
    pub(super) fn add(&self, mut exit: RankExited) {
        let mut inner = self.lock();
        inner.count += 1;
        let number = inner.count;
        exit.exit_id = format!("{}-{number}", self.prefix);
        inner.pending.insert(number, Pending { exit, sent_at: None });
    }

    /// Returns the exits that were not sent within `interval` before `now`, and counts them as sent.
    pub(super) fn due(&self, now: Instant, interval: Duration) -> Vec<RankExited> {
        let mut due = Vec::new();
        for pending in self.lock().pending.values_mut() {
            if pending.sent_at.is_none_or(|sent_at| now.duration_since(sent_at) >= interval) {
                pending.sent_at = Some(now);
                due.push(pending.exit.clone());
            }
        }
        due
    }

    /// Forgets when exits were sent: a new session has seen none of them.
    pub(super) fn forget_sent(&self) {
        for pending in self.lock().pending.values_mut() {
            pending.sent_at = None;
        }
    }

    /// Drops the exit that `exit_id` names; repeating it is harmless.
    pub(super) fn acknowledge(&self, exit_id: &str) {
        self.lock().pending.retain(|_, pending| pending.exit.exit_id != exit_id);
    }

    /// Returns whether every exit was acknowledged.
    pub fn is_empty(&self) -> bool {
        self.lock().pending.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(1);

    #[test]
    fn an_exit_is_sent_again_after_the_interval_and_at_once_in_a_new_session_until_acknowledged() {
        let exits = Exits::new("node-7".into());
        exits.add(RankExited { rank: 3, ..RankExited::default() });
        let start = Instant::now();
        let first = exits.due(start, INTERVAL);
        assert_eq!((first.len(), first[0].rank), (1, 3));
        assert!(exits.due(start, INTERVAL).is_empty());
        assert_eq!(exits.due(start + INTERVAL, INTERVAL), first);
        exits.forget_sent();
        assert_eq!(exits.due(start + INTERVAL, INTERVAL), first);
        exits.acknowledge("node-7-2");
        exits.acknowledge(&first[0].exit_id);
        assert!(exits.due(start + 9 * INTERVAL, INTERVAL).is_empty());
    }

    #[test]
    fn two_exits_have_two_ids_and_keep_their_order() {
        let exits = Exits::new("node-7".into());
        for rank in [5, 4] {
            exits.add(RankExited { rank, ..RankExited::default() });
        }
        let due = exits.due(Instant::now(), INTERVAL);
        assert_eq!(due.iter().map(|exit| exit.rank).collect::<Vec<_>>(), [5, 4]);
        assert_ne!(due[0].exit_id, due[1].exit_id);
    }
}
