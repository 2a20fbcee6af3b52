//! The background thread that writes checkpoints while training goes on.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use ringmaster_proto::v1::Generation;
use tokio_util::sync::CancellationToken;

use super::publish::{Grant, Published, Publisher};
use crate::Error;
use crate::state::Snapshot;

/// What a [`Writer`] is told.
#[derive(Clone)]
pub struct WriterOptions {
    /// `spec.checkpoint.uri`: URL or absolute path of the folder of job folders.
    pub uri: String,
    /// Names the job's folder.
    pub job_id: String,
    /// Names the checkpoints, and is fenced by the coordinator.
    pub generation: Generation,
    /// This rank.
    pub rank: usize,
    /// Ranks that write a slice each.
    pub world_size: usize,
    /// Newest published checkpoints of the job that stay; at least 1.
    pub keep_last: u32,
    /// Those of steps that are multiples of this stay for good.
    pub keep_every: Option<u64>,
    /// URLs of checkpoints that stay whatever else is said: what this run went on from.
    pub spared: Vec<String>,
    /// The coordinator.
    pub grant: Arc<dyn Grant>,
}

impl fmt::Debug for WriterOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriterOptions")
            .field("uri", &self.uri)
            .field("job_id", &self.job_id)
            .field("generation", &self.generation)
            .field("rank", &self.rank)
            .field("world_size", &self.world_size)
            .field("keep_last", &self.keep_last)
            .field("keep_every", &self.keep_every)
            .field("spared", &self.spared)
            .finish_non_exhaustive()
    }
}

/// Whether a snapshot was taken on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saved {
    /// It is being written.
    Started,
    /// The one before it is still being written; this one was dropped.
    Skipped,
}

/// Writes one snapshot at a time on a thread of its own.
///
/// Dropping it without [`Writer::finish`] abandons a snapshot that is not granted yet, at the next
/// phase and without waiting for it; a granted one is still published.
#[derive(Debug)]
pub struct Writer {
    snapshots: Option<Sender<Snapshot>>,
    results: Receiver<Result<Published, Error>>,
    in_flight: bool,
    /// Results not polled yet, oldest first.
    ended: VecDeque<Result<Published, Error>>,
    thread: Option<JoinHandle<()>>,
    /// Cancelled when the writer is dropped.
    abandon: CancellationToken,
}

impl Writer {
    /// Starts the thread.
    ///
    /// # Panics
    /// The system allows no further thread.
    pub fn new(options: WriterOptions) -> Self {
        let (snapshots, incoming) = channel();
        let (outgoing, results) = channel();
        let abandon = CancellationToken::new();
        let theirs = abandon.clone();
        let thread = std::thread::Builder::new()
            .name("checkpoint".to_owned())
            .spawn(move || serve(options, theirs, &incoming, &outgoing))
            .expect("a rank may start threads");
        Self {
            snapshots: Some(snapshots),
            results,
            in_flight: false,
            ended: VecDeque::new(),
            thread: Some(thread),
            abandon,
        }
    }

    /// Hands over a snapshot unless the one before it is still being written. Never waits.
    pub fn save(&mut self, snapshot: Snapshot) -> Saved {
        self.absorb();
        if self.in_flight {
            return Saved::Skipped;
        }
        let sender = self.snapshots.as_ref().expect("open until the writer is finished");
        if sender.send(snapshot).is_ok() {
            self.in_flight = true;
        } else {
            self.ended.push_back(Err(Error::WriterDied));
        }
        Saved::Started
    }

    /// Returns how the oldest write that ended and was not asked for yet went. Never waits.
    pub fn poll(&mut self) -> Option<Result<Published, Error>> {
        self.absorb();
        self.ended.pop_front()
    }

    /// Returns whether a snapshot is still being written. Never waits.
    pub fn busy(&mut self) -> bool {
        self.absorb();
        self.in_flight
    }

    /// Waits for the snapshot in flight, for as long as `patience` allows; how it went is left for
    /// [`Writer::poll`]. Returns whether nothing is in flight any more.
    pub fn wait(&mut self, patience: Duration) -> bool {
        if self.busy() {
            match self.results.recv_timeout(patience) {
                Ok(result) => self.ended.push_back(result),
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => {
                    self.ended.push_back(Err(Error::WriterDied));
                }
            }
            self.in_flight = false;
        }
        true
    }

    /// Waits for the snapshot in flight and returns the newest result not polled yet.
    ///
    /// # Errors
    /// That of the newest write.
    pub fn finish(mut self) -> Result<Option<Published>, Error> {
        self.snapshots = None;
        while !self.wait(Duration::MAX) {}
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| Error::WriterDied)?;
        }
        self.absorb();
        self.ended.pop_back().transpose()
    }

    fn absorb(&mut self) {
        loop {
            match self.results.try_recv() {
                Ok(result) => {
                    self.in_flight = false;
                    self.ended.push_back(result);
                }
                Err(TryRecvError::Disconnected) if self.in_flight && self.thread.is_some() => {
                    self.in_flight = false;
                    self.ended.push_back(Err(Error::WriterDied));
                }
                Err(_) => return,
            }
        }
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.abandon.cancel();
    }
}

/// The thread: one snapshot after the other until the writer is gone.
fn serve(
    options: WriterOptions,
    abandon: CancellationToken,
    snapshots: &Receiver<Snapshot>,
    results: &Sender<Result<Published, Error>>,
) {
    let publisher = match Publisher::new(options, abandon) {
        Ok(publisher) => publisher,
        // The first snapshot learns why; later ones find the thread gone.
        Err(error) => {
            if snapshots.recv().is_ok() {
                let _ = results.send(Err(error));
            }
            return;
        }
    };
    while let Ok(snapshot) = snapshots.recv() {
        // A writer that was dropped asks no more.
        let _ = results.send(publisher.publish(snapshot));
    }
}
