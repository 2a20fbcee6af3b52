//! What people are told of waits that take long.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ringmaster_proto::v1::{Generation, NoteKind};
use ringmaster_words as words;

use crate::control::history::History;

/// What takes no longer than this is not worth a word.
const PATIENCE: Duration = Duration::from_secs(30);
/// Between two words about the same wait.
const AGAIN: Duration = Duration::from_secs(60);
/// How often a call that blocks is looked at.
const GLANCE: Duration = Duration::from_secs(1);

/// The way to people's attention in one generation.
#[derive(Debug, Clone)]
pub(super) struct People {
    history: History,
    generation: Generation,
}

impl People {
    pub(super) fn new(history: History, generation: Generation) -> Self {
        Self { history, generation }
    }

    /// Leaves a note in the job's history.
    pub(super) fn tell(&self, kind: NoteKind, message: String) {
        self.history.note(self.generation, kind, message);
    }

    /// Begins a wait, for the reason `why`.
    pub(super) fn wait_for(&self, why: &'static str) -> Wait {
        Wait {
            people: self.clone(),
            why,
            pace: Pace::new(Instant::now()),
            since: SystemTime::now(),
        }
    }

    /// Returns what `call` returns; while it blocks, people hear `why`.
    pub(super) fn told_while<T>(&self, why: &'static str, call: impl FnOnce() -> T) -> T {
        let (done, is_done) = channel::<()>();
        std::thread::scope(|scope| {
            let watch = move || {
                let mut wait = self.wait_for(why);
                while is_done.recv_timeout(GLANCE) == Err(RecvTimeoutError::Timeout) {
                    wait.look();
                }
            };
            let watched = std::thread::Builder::new().name("wait".to_owned());
            if let Err(error) = watched.spawn_scoped(scope, watch) {
                tracing::debug!(%error, "nobody is told of a wait");
            }
            let answer = call();
            // Ends the watch.
            drop(done);
            answer
        })
    }
}

/// A wait that people hear of if it takes long.
#[derive(Debug)]
pub(super) struct Wait {
    people: People,
    why: &'static str,
    pace: Pace,
    since: SystemTime,
}

impl Wait {
    /// Says what is waited for if it is time to.
    pub(super) fn look(&mut self) {
        if !self.pace.is_due(Instant::now()) {
            return;
        }
        let message = waits(self.why, self.since);
        tracing::warn!("{message}");
        self.people.tell(NoteKind::Waits, message);
    }
}

/// The same each time: who reads it sees when the wait began, and the history keeps it once.
fn waits(why: &str, since: SystemTime) -> String {
    let since = since.duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = words::utc(i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
    format!("{why}, since {}", since.format("%Y-%m-%d %H:%M:%S UTC"))
}

/// When a wait is worth a word.
#[derive(Debug, Clone, Copy)]
struct Pace {
    next: Instant,
}

impl Pace {
    fn new(began: Instant) -> Self {
        Self { next: began + PATIENCE }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let is_due = now > self.next;
        if is_due {
            self.next = now + AGAIN;
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_told_after_half_a_minute_and_then_once_a_minute() {
        let began = Instant::now();
        let at = |seconds: u64| began + Duration::from_secs(seconds);
        let mut pace = Pace::new(began);
        let told: Vec<u64> = (0..200).filter(|second| pace.is_due(at(*second))).collect();
        assert_eq!(told, [31, 92, 153]);
    }

    #[test]
    fn a_wait_says_what_for_and_since_when() {
        let since = UNIX_EPOCH + Duration::from_secs(86_400 + 3_661);
        assert_eq!(waits("the run waits", since), "the run waits, since 1970-01-02 01:01:01 UTC");
    }
}
