//! What the simulated agents saw.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Shared by all agents.
#[derive(Debug)]
pub(crate) struct Recorder {
    ranks: u32,
    registered: AtomicU64,
    measuring: AtomicBool,
    sent: AtomicU64,
    round_trips: Mutex<Vec<Duration>>,
    jobs: Mutex<Vec<Job>>,
    regenerated: AtomicU64,
    /// Sessions and calls that failed, with how often.
    troubles: Mutex<BTreeMap<String, u64>>,
}

#[derive(Debug, Default)]
struct Job {
    submitted: Option<Instant>,
    replied: Option<Duration>,
    started: u32,
    assigned: Option<Duration>,
    joined: u32,
    formed: Option<Duration>,
}

/// Everything that was seen, sorted.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) heartbeats_sent: u64,
    pub(crate) round_trips: Vec<Duration>,
    /// From the moment a submission was due to its reply.
    pub(crate) replies: Vec<Duration>,
    /// … to the arrival of its last rank's start at the agent.
    pub(crate) assignments: Vec<Duration>,
    /// … to the answer of its last rank's Join.
    pub(crate) rings: Vec<Duration>,
    pub(crate) regenerated: u64,
    pub(crate) troubles: u64,
    pub(crate) first_trouble: Option<String>,
}

impl Recorder {
    pub(crate) fn new(jobs: u32, ranks: u32) -> Self {
        Self {
            ranks,
            registered: AtomicU64::new(0),
            measuring: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            round_trips: Mutex::default(),
            jobs: Mutex::new((0..jobs).map(|_| Job::default()).collect()),
            regenerated: AtomicU64::new(0),
            troubles: Mutex::default(),
        }
    }

    // ---- Agents

    pub(crate) fn register(&self) {
        self.registered.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn registered(&self) -> u64 {
        self.registered.load(Ordering::Relaxed)
    }

    /// From now on heartbeats count, or no longer do.
    pub(crate) fn measure(&self, on: bool) {
        self.measuring.store(on, Ordering::Relaxed);
    }

    /// A heartbeat is handed to its stream; returns whether it counts.
    pub(crate) fn beat(&self) -> bool {
        let counts = self.measuring.load(Ordering::Relaxed);
        self.sent.fetch_add(counts.into(), Ordering::Relaxed);
        counts
    }

    pub(crate) fn round_trip(&self, time: Duration) {
        lock(&self.round_trips).push(time);
    }

    pub(crate) fn unanswered(&self) -> u64 {
        self.sent.load(Ordering::Relaxed) - lock(&self.round_trips).len() as u64
    }

    /// How heartbeats do so far, in words.
    pub(crate) fn beats_line(&self) -> String {
        let answered = lock(&self.round_trips);
        let newest = &answered[answered.len().saturating_sub(20_000)..];
        let worst = newest.iter().max().copied().unwrap_or_default();
        format!("slowest of the last heartbeats {:.1} ms", worst.as_secs_f64() * 1e3)
    }

    /// A session or a call failed although nothing should make it fail.
    pub(crate) fn lost(&self, what: &str) {
        *lock(&self.troubles).entry(what.to_owned()).or_default() += 1;
    }

    pub(crate) fn regenerate(&self) {
        self.regenerated.fetch_add(1, Ordering::Relaxed);
    }

    /// One of the failures, if there was any.
    pub(crate) fn trouble(&self) -> Option<String> {
        let troubles = lock(&self.troubles);
        let total: u64 = troubles.values().sum();
        troubles.keys().next().map(|first| format!("{total} failures, such as: {first}"))
    }

    // ---- Jobs

    pub(crate) fn submitted(&self, job: usize, due: Instant) {
        self.with(job, |job| job.submitted = Some(due));
    }

    pub(crate) fn replied(&self, job: usize) {
        self.with(job, |job| job.replied = job.since());
    }

    /// A rank's start has reached its agent.
    pub(crate) fn started(&self, job_id: &str) {
        let Some(index) = index_of(job_id) else { return };
        self.with(index, |job| {
            job.started += 1;
            if job.started == self.ranks {
                job.assigned = job.since();
            }
        });
    }

    /// A rank has been told the plan of its ring.
    pub(crate) fn joined(&self, job_id: &str) {
        let Some(index) = index_of(job_id) else { return };
        self.with(index, |job| {
            job.joined += 1;
            if job.joined == self.ranks {
                job.formed = job.since();
            }
        });
    }

    /// Jobs that were submitted, assigned whole, and formed.
    pub(crate) fn jobs(&self) -> (u64, u64, u64) {
        let jobs = lock(&self.jobs);
        let count = |wanted: fn(&Job) -> bool| jobs.iter().filter(|job| wanted(job)).count() as u64;
        (
            count(|job| job.replied.is_some()),
            count(|job| job.assigned.is_some()),
            count(|job| job.formed.is_some()),
        )
    }

    fn with(&self, index: usize, change: impl FnOnce(&mut Job)) {
        if let Some(job) = lock(&self.jobs).get_mut(index) {
            change(job);
        }
    }

    /// Takes what was seen, each list in rising order.
    pub(crate) fn take(&self) -> Seen {
        let sorted = |mut times: Vec<Duration>| {
            times.sort_unstable();
            times
        };
        let first_trouble = self.trouble();
        let jobs = lock(&self.jobs);
        let of =
            |time: fn(&Job) -> Option<Duration>| sorted(jobs.iter().filter_map(time).collect());
        Seen {
            heartbeats_sent: self.sent.load(Ordering::Relaxed),
            round_trips: sorted(std::mem::take(&mut *lock(&self.round_trips))),
            replies: of(|job| job.replied),
            assignments: of(|job| job.assigned),
            rings: of(|job| job.formed),
            regenerated: self.regenerated.load(Ordering::Relaxed),
            troubles: lock(&self.troubles).values().sum(),
            first_trouble,
        }
    }
}

impl Job {
    fn since(&self) -> Option<Duration> {
        self.submitted.map(|at| at.elapsed())
    }
}

/// Which job it is: they are called `bench-<index>`, and an id is the name with a suffix.
pub(crate) fn index_of(job_id: &str) -> Option<usize> {
    job_id.strip_prefix("bench-")?.split('-').next()?.parse().ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_job_counts_as_assigned_with_its_last_rank() {
        let recorder = Recorder::new(2, 2);
        recorder.submitted(1, Instant::now());
        recorder.replied(1);
        recorder.started("bench-00001-abcdef");
        assert_eq!(recorder.jobs(), (1, 0, 0));
        recorder.started("bench-00001-abcdef");
        assert_eq!(recorder.jobs(), (1, 1, 0));
        recorder.started("another-00001-abcdef");
        assert_eq!(recorder.take().assignments.len(), 1);
    }
}
