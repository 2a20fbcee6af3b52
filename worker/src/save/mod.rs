//! Checkpoints of a running job: a snapshot at a step boundary, written while training goes on.
//!
//! Modules in reading order: `folder` (whether checkpoints can be written at all), here what a generation saves,
//! `grant` (the coordinator's word on it), `trouble` and `waits` (what people are told).

mod folder;
mod grant;
mod trouble;
mod waits;

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ringmaster_checkpoint::{
    self as checkpoint, Memory, Published, Saved, Snapshot, SnapshotBuffer, Writer, WriterOptions,
};
use ringmaster_data::{Dataset, order};
use ringmaster_manifest::spec::{TrainJob, WhenBusy};
use ringmaster_proto::RingRank;
use ringmaster_proto::v1::Generation;
use tch::Tensor;

pub(crate) use self::folder::FolderCheck;
use self::grant::CoordinatorGrant;
use self::trouble::Trouble;
use self::waits::{People, Wait};

use crate::collective::tcp::AbortFlag;
use crate::collective::{self, Collective, ReduceOp};
use crate::control::coordinator::RanksClient;
use crate::control::history::History;
use crate::error::Error;
use crate::model::Params;
use crate::plan::NumericPlan;
use crate::replica::Replica;
use crate::replica::agreement;
use crate::replica::snapshot::Portion;
use ringmaster_agent::env::RankEnv;
use ringmaster_words as words;

/// Longest silence while something is waited for: after it the ring is looked at.
const GLANCE: Duration = Duration::from_millis(100);
/// Time a writer of an older generation has to let go of its snapshot: it was told to at once.
const HANDOVER: Duration = Duration::from_secs(2);
/// Time for which a run that has ended tries to store its last checkpoint before it counts as failed.
const LAST_PATIENCE: Duration = Duration::from_secs(3600);
/// Pause before the last checkpoint is tried again.
const LAST_PAUSE: Duration = Duration::from_secs(2);
/// What a run that has ended waits for.
const AT_THE_END: &str = "the run ends as soon as its last checkpoint is stored";

/// This rank's part in writing checkpoints of one generation.
pub(crate) struct Saving {
    writer: Writer,
    portion: Portion,
    memory: Memory,
    when_busy: WhenBusy,
    /// Rank 0 describes the run beside its tensors; empty elsewhere.
    state: Option<checkpoint::State>,
    /// The step last saved and when that was. What is written again is written byte for byte: it may have
    /// been published, and only the answer lost.
    saved_at: Option<(u64, i64)>,
    /// Set when the generation is over.
    abort: AbortFlag,
    last: Option<Published>,
    /// The step of the snapshot that was handed to the writer last.
    writing: u64,
    people: People,
    trouble: Trouble,
}

/// What a writer of checkpoints is started with.
pub(crate) struct Start<'a> {
    pub(crate) job: &'a TrainJob,
    pub(crate) env: &'a RankEnv,
    pub(crate) generation: Generation,
    pub(crate) client: &'a RanksClient,
    pub(crate) plan: &'a NumericPlan,
    pub(crate) dataset: &'a Dataset,
    pub(crate) params: &'a Params,
    /// Outlives generations, so that no two of them hold a snapshot each.
    pub(crate) memory: &'a Memory,
    pub(crate) abort: &'a AbortFlag,
    pub(crate) history: &'a History,
    /// URLs of checkpoints that the job may have to go back to: they stay, whatever retention says.
    pub(crate) spared: Vec<String>,
}

impl Saving {
    /// Starts the writer of a generation.
    pub(crate) fn start(start: &Start<'_>, collective: &dyn Collective) -> Self {
        let Start { job, env, generation, .. } = *start;
        let (rank, world_size) = (collective.rank(), collective.world_size());
        let people = People::new(start.history.clone(), generation);
        let ring_rank = RingRank(rank as u32);
        let client = start.client.clone();
        let grant =
            CoordinatorGrant::new(client, &env.job_id, generation, ring_rank, people.clone());
        let writer = Writer::new(WriterOptions {
            uri: job.checkpoint.uri.clone(),
            job_id: env.job_id.clone(),
            generation,
            rank,
            world_size,
            keep_last: job.checkpoint.keep_last,
            keep_every: job.checkpoint.keep_every,
            spared: start.spared.clone(),
            grant: Arc::new(grant),
        });
        let state = (rank == 0).then(|| {
            let plan = serde_json::to_value(start.plan).expect("a plan is plain data");
            let versions = [("ringmaster", env!("RINGMASTER_VERSION"))];
            let versions = versions.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
            let data = checkpoint::DataState {
                order: order::VERSION,
                fingerprint: start.dataset.fingerprint().to_owned(),
                cursor: checkpoint::Cursor::default(),
                ledger: checkpoint::Ledger::default(),
                left_out: Vec::new(),
            };
            checkpoint::State::describe(job, generation, world_size, plan, data, versions)
        });
        let portion = Portion::of(start.params, rank, world_size);
        start.memory.reserve(portion.layout.len);
        Self {
            writer,
            portion,
            memory: start.memory.clone(),
            when_busy: job.checkpoint.when_busy,
            state,
            saved_at: None,
            abort: start.abort.clone(),
            last: None,
            writing: 0,
            trouble: Trouble::new(people.clone()),
            people,
        }
    }

    /// Copies the state and starts writing it. While the last checkpoint is still being written this
    /// one is skipped or waits, as the manifest says, on all ranks alike: a checkpoint needs every
    /// rank's part.
    ///
    /// # Errors
    /// The ring breaks, or replicas differ; nothing is saved then.
    pub(crate) fn save(
        &mut self,
        replica: &Replica,
        collective: &dyn Collective,
    ) -> Result<(), Error> {
        if self.when_busy == WhenBusy::Wait {
            let mut wait = self.people.wait_for("training waits until a checkpoint is written");
            self.wait_for_writer(&mut wait)?;
        }
        self.collect();
        let began = Instant::now();
        let free = !self.writer.busy();
        let buffer = if free { self.memory.take(self.portion.layout.len, HANDOVER) } else { None };
        // A checkpoint needs every rank's part: one rank without memory makes all skip it.
        if any(buffer.is_none(), collective)? {
            tracing::warn!(
                step = replica.applied,
                "the previous checkpoint is still being written, this one is skipped"
            );
            // All ranks skip it; one of them says so.
            if self.state.is_some() {
                self.trouble.skipped(replica.applied, self.writing);
            }
            return agreement::compare(replica.digest(), replica.applied, collective);
        }
        self.trouble.taken();
        let buffer = buffer.expect("no rank is busy");
        self.write(buffer, replica, collective)?;
        tracing::info!(
            step = replica.applied,
            milliseconds = began.elapsed().as_millis() as u64,
            bytes = self.portion.layout.len,
            "snapshot taken, training goes on while it is written"
        );
        Ok(())
    }

    /// Writes the last checkpoint of a run, after the one in flight, and returns its URL. Nothing
    /// trains any more, so a store that is away is waited for.
    ///
    /// # Errors
    /// The ring breaks, replicas differ, or the store stays away for longer than an hour.
    pub(crate) fn save_last(
        mut self,
        replica: &Replica,
        collective: &dyn Collective,
    ) -> Result<Option<String>, Error> {
        let deadline = Instant::now() + LAST_PATIENCE;
        let mut wait = self.people.wait_for(AT_THE_END);
        loop {
            self.wait_for_writer(&mut wait)?;
            self.collect();
            let buffer = self.wait_for_memory()?;
            self.write(buffer, replica, collective)?;
            self.wait_for_writer(&mut wait)?;
            let failure = self.collect();
            // All leave the loop or none does, though stores and clocks differ from rank to rank.
            if !any(failure.is_some(), collective)? {
                return Ok(self.last.map(|published| published.url));
            }
            if any(Instant::now() > deadline, collective)? {
                let what =
                    failure.unwrap_or_else(|| "another rank could not store its part".to_owned());
                return Err(Error::NotSaved { step: replica.applied, what });
            }
            tracing::warn!(step = replica.applied, "the last checkpoint is tried again");
            self.pause(LAST_PAUSE, &mut wait)?;
        }
    }

    /// Takes the snapshot and hands it to the writer.
    fn write(
        &mut self,
        mut buffer: SnapshotBuffer,
        replica: &Replica,
        collective: &dyn Collective,
    ) -> Result<(), Error> {
        let digest = replica.capture(&self.portion, &mut buffer);
        agreement::compare(digest, replica.applied, collective)?;
        let saved_at_ms = self.saved_at_ms(replica.applied);
        let state = self.state.clone().map(|mut state| {
            state.samples_before = replica.samples_before;
            state.advance_to(replica.applied);
            state.saved_at_ms = saved_at_ms;
            state.updates = replica.updates;
            state.resumed_samples = replica.resumed_samples;
            state.data.left_out = replica.left_out.stored();
            state.data.ledger = replica.ledger.clone();
            state
        });
        let snapshot = Snapshot {
            step: replica.applied,
            layout: Arc::clone(&self.portion.layout),
            bytes: buffer.filled(),
            state,
            digest,
        };
        self.writing = replica.applied;
        let saved = self.writer.save(snapshot);
        assert_eq!(saved, Saved::Started, "nothing is in flight here");
        Ok(())
    }

    /// Returns when this step was first saved; none where the clock stands before 1970.
    fn saved_at_ms(&mut self, step: u64) -> Option<i64> {
        if let Some((saved, at)) = self.saved_at
            && saved == step
        {
            return Some(at);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        let at = i64::try_from(now.as_millis()).ok()?;
        self.saved_at = Some((step, at));
        Some(at)
    }

    /// Waits for this rank's store. Other ranks may wait for this one in a collective meanwhile; an order
    /// to join a newer generation ends the wait through the abort flag.
    fn wait_for_writer(&mut self, wait: &mut Wait) -> Result<(), Error> {
        while !self.writer.wait(GLANCE) {
            self.check()?;
            wait.look();
        }
        Ok(())
    }

    /// A writer of an older generation may still be letting go of its snapshot.
    fn wait_for_memory(&self) -> Result<SnapshotBuffer, Error> {
        loop {
            if let Some(buffer) = self.memory.take(self.portion.layout.len, GLANCE) {
                return Ok(buffer);
            }
            self.check()?;
        }
    }

    fn pause(&self, pause: Duration, wait: &mut Wait) -> Result<(), Error> {
        let until = Instant::now() + pause;
        while Instant::now() < until {
            self.check()?;
            wait.look();
            std::thread::sleep(GLANCE);
        }
        Ok(())
    }

    /// Whether to go on: not once the ring has been given up, by an order or because it broke.
    fn check(&self) -> Result<(), Error> {
        match self.abort.get() {
            Some(reason) => Err(collective::Error::Aborted { reason }.into()),
            None => Ok(()),
        }
    }

    /// Notes how the writes that ended meanwhile went; a failed one does not stop training. Returns
    /// why the newest of them failed, if it did.
    fn collect(&mut self) -> Option<String> {
        let mut failure = None;
        while let Some(result) = self.writer.poll() {
            failure = None;
            match result {
                Ok(published) => {
                    if self.state.is_some() {
                        tracing::info!(step = published.step, url = %published.url, "checkpoint published");
                    }
                    self.trouble.stored();
                    self.last = Some(published);
                }
                Err(error) => {
                    let what = words::chain(&error);
                    tracing::warn!(error = %what, "a checkpoint was not published; training goes on");
                    self.trouble.failed(self.writing, &error);
                    failure = Some(what);
                }
            }
        }
        failure
    }
}

/// Whether `own` is true on any rank.
fn any(own: bool, collective: &dyn Collective) -> Result<bool, Error> {
    let flag = Tensor::from_slice(&[i64::from(own)]);
    // collective: all-reduce. Its callers ask at the same points of the program on every rank.
    collective.all_reduce(&flag, ReduceOp::Max)?.wait()?;
    Ok(flag.int64_value(&[0]) > 0)
}
