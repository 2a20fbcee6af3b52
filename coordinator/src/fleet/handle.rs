//! What may be asked of the fleet, and the handle that asks.
//!
//! A call is a closure over all that is known, which the fleet's task runs between two decisions. What it
//! answers goes out once everything that its batch changed is durable.

use ringmaster_proto::v1;
use tokio::sync::{mpsc, oneshot};

use super::cluster::Cluster;
use super::error::{Error, Reply};
use super::jobs::{Job, RolledBack, Submission, kind_of};

/// One call, on its way to the fleet's task.
pub(super) struct Call {
    /// The method that was called.
    pub(super) name: &'static str,
    /// True for what arrives all the time and by itself calls for no decision before the next tick.
    pub(super) is_heartbeat: bool,
    /// What the task does for it.
    pub(super) work: Box<dyn FnOnce(&mut Cluster) + Send>,
}

impl Call {
    fn new(name: &'static str, work: impl FnOnce(&mut Cluster) + Send + 'static) -> Self {
        Self { name, is_heartbeat: false, work: Box::new(work) }
    }
}

/// Asks the fleet's task; clones ask the same one. Every method returns [`Error::Stopped`] once the
/// task has ended, and what the task acknowledged is durable.
#[derive(Debug, Clone)]
pub struct Handle {
    calls: mpsc::Sender<Call>,
}

impl Handle {
    pub(super) fn new(calls: mpsc::Sender<Call>) -> Self {
        Self { calls }
    }

    /// Has `work` done and returns what it answers.
    async fn ask<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce(&mut Cluster) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let and_answer = move |cluster: &mut Cluster, reply| {
            let answer = work(cluster);
            cluster.batch.reply(reply, answer);
        };
        self.ask_later(name, and_answer).await
    }

    /// Has `work` done, which answers now or in a later batch, and returns the answer.
    async fn ask_later<T: Send + 'static>(
        &self,
        name: &'static str,
        work: impl FnOnce(&mut Cluster, Reply<T>) + Send + 'static,
    ) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.send(Call::new(name, move |cluster| work(cluster, reply))).await?;
        answer.await.map_err(|_| Error::Stopped)?
    }

    /// Hands a call to the task.
    async fn send(&self, call: Call) -> Result<(), Error> {
        self.calls.send(call).await.map_err(|_| Error::Stopped)
    }

    /// Stores and queues a job; returns its id.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what cannot become a job.
    pub async fn submit(&self, submission: Submission) -> Result<String, Error> {
        self.ask("submit", move |cluster| cluster.jobs.submit(&mut cluster.batch, submission)).await
    }

    /// Returns the id of the job that a request has made, if it has made one.
    ///
    /// # Errors
    /// [`Error::Stopped`] only.
    pub async fn submitted(&self, request_id: String) -> Result<Option<String>, Error> {
        self.ask("submitted", move |cluster| Ok(cluster.jobs.submitted(&request_id))).await
    }

    /// Returns a job as it stands.
    ///
    /// # Errors
    /// [`Error::UnknownJob`].
    pub async fn get(&self, job_id: String) -> Result<v1::Job, Error> {
        self.ask("get", move |cluster| cluster.jobs.get(&job_id).map(|job| job.view())).await
    }

    /// Returns jobs in the order of submission.
    ///
    /// # Errors
    /// [`Error::Stopped`] only.
    pub async fn list(&self, include_ended: bool) -> Result<Vec<v1::Job>, Error> {
        self.ask("list", move |cluster| Ok(cluster.jobs.list(include_ended))).await
    }

    /// Returns the job now and then every change. The channel closes after the final state, and
    /// earlier when the reader is too slow for the history or the coordinator ends.
    ///
    /// # Errors
    /// [`Error::UnknownJob`].
    pub async fn watch(&self, job_id: String) -> Result<mpsc::Receiver<v1::JobUpdate>, Error> {
        self.ask("watch", move |cluster| cluster.jobs.get(&job_id).map(Job::watch)).await
    }

    /// Asks a job to checkpoint and stop; an ended one is returned as it is.
    ///
    /// # Errors
    /// [`Error::UnknownJob`].
    pub async fn cancel(&self, job_id: String, reason: String) -> Result<v1::Job, Error> {
        self.ask("cancel", move |cluster| {
            let job = cluster.jobs.get(&job_id)?;
            job.cancel(&mut cluster.batch, reason);
            Ok(job.view())
        })
        .await
    }

    /// Asks a job to checkpoint, stop, and wait until it is resumed.
    ///
    /// # Errors
    /// [`Error::UnknownJob`]; [`Error::NotLive`] for one that has ended.
    pub async fn pause(&self, job_id: String, reason: String) -> Result<v1::Job, Error> {
        self.ask("pause", move |cluster| {
            let job = cluster.jobs.get(&job_id)?;
            if job.record.state.is_ended() {
                return Err(job.not_live(job.record.state.word()));
            }
            job.pause(&mut cluster.batch, reason);
            Ok(job.view())
        })
        .await
    }

    /// Puts a job that is paused, failed or was cancelled back into the queue; one that goes on anyway
    /// is returned as it is.
    ///
    /// # Errors
    /// [`Error::UnknownJob`]; [`Error::Succeeded`].
    pub async fn resume(&self, job_id: String) -> Result<v1::Job, Error> {
        self.ask("resume", move |cluster| cluster.resume(&job_id)).await
    }

    /// Lets a job go on from an older checkpoint of its own, which the caller has verified, and gives
    /// up what is above it. Its ranks stop at a step boundary first.
    ///
    /// # Errors
    /// [`Error::UnknownJob`]; [`Error::Succeeded`]; [`Error::NotLive`] for one that is being cancelled.
    pub async fn roll_back(
        &self,
        job_id: String,
        url: String,
        step: u64,
    ) -> Result<RolledBack, Error> {
        self.ask("roll_back", move |cluster| cluster.roll_back(&job_id, url, step)).await
    }

    /// Says that somebody reads a checkpoint of a job: its retention leaves it until the hold is
    /// dropped.
    ///
    /// # Errors
    /// [`Error::UnknownJob`].
    pub async fn hold(&self, job_id: String, url: String) -> Result<ReadGuard, Error> {
        let hold = ReadGuard { job_id: job_id.clone(), url: url.clone(), handle: self.clone() };
        self.ask("hold", move |cluster| cluster.jobs.get(&job_id).map(|job| job.hold(url))).await?;
        Ok(hold)
    }

    /// Lets a node take ranks, or no more.
    ///
    /// # Errors
    /// [`Error::UnknownNode`].
    pub async fn set_node(&self, request: v1::SetNodeRequest) -> Result<v1::Node, Error> {
        self.ask("set_node", move |cluster| {
            cluster.nodes.set_node(&mut cluster.jobs, &mut cluster.batch, request)
        })
        .await
    }

    /// Returns the nodes that are closed, and those seen since the coordinator started.
    ///
    /// # Errors
    /// [`Error::Stopped`] only.
    pub async fn nodes(&self) -> Result<Vec<v1::Node>, Error> {
        self.ask("nodes", |cluster| Ok(cluster.nodes.list(&cluster.jobs, &cluster.batch))).await
    }

    /// Opens an agent's session, replacing an older one of the same node; returns its number.
    /// Messages for the agent go to `outbound`, which is dropped when the session is over.
    ///
    /// # Errors
    /// [`Error::WrongBuild`], [`Error::Invalid`], [`Error::NameTaken`] while another agent of the name is
    /// connected, and [`Error::NameAwaited`] while one is waited for.
    pub async fn open(
        &self,
        register: v1::Register,
        outbound: mpsc::Sender<v1::CoordinatorMessage>,
    ) -> Result<u64, Error> {
        self.ask("open", move |cluster| {
            cluster.nodes.open(&mut cluster.jobs, &mut cluster.batch, register, outbound)
        })
        .await
    }

    /// Hands in an agent's heartbeat.
    ///
    /// # Errors
    /// [`Error::Stopped`] only.
    pub async fn heartbeat(&self, session: u64, heartbeat: v1::Heartbeat) -> Result<(), Error> {
        let call = Call::new("heartbeat", move |cluster| {
            cluster.unsettled |=
                cluster.nodes.heartbeat(&mut cluster.jobs, &mut cluster.batch, session, heartbeat);
        });
        self.send(Call { is_heartbeat: true, ..call }).await
    }

    /// Hands in a rank's exit; the agent gets its acknowledgement through the session.
    ///
    /// # Errors
    /// [`Error::Stopped`] only.
    pub async fn exited(&self, session: u64, exited: v1::RankExited) -> Result<(), Error> {
        self.send(Call::new("exited", move |cluster| {
            cluster.nodes.exited(&mut cluster.jobs, &mut cluster.batch, session, &exited);
        }))
        .await
    }

    /// Says that an agent was told to end: it takes no rank any more.
    ///
    /// # Errors
    /// [`Error::Stopped`] only.
    pub async fn leaving(&self, session: u64, leaving: v1::Leaving) -> Result<(), Error> {
        self.send(Call::new("leaving", move |cluster| cluster.nodes.leave(session, &leaving))).await
    }

    /// Says what a connected agent's worker is from now on.
    ///
    /// # Errors
    /// [`Error::Stopped`] only.
    pub async fn worker(&self, session: u64, worker: v1::Worker) -> Result<(), Error> {
        self.send(Call::new("worker", move |cluster| cluster.nodes.take_worker(session, worker)))
            .await
    }

    /// Says which slots of a connected agent's node take no rank from now on.
    ///
    /// # Errors
    /// [`Error::Stopped`] only.
    pub async fn slots_out(&self, session: u64, slots_out: v1::SlotsOut) -> Result<(), Error> {
        self.send(Call::new("slots_out", move |cluster| {
            cluster.nodes.take_slots_out(session, slots_out);
        }))
        .await
    }

    /// Says which other nodes an agent reaches.
    ///
    /// # Errors
    /// [`Error::Stopped`] only.
    pub async fn dialled(&self, session: u64, dialled: v1::Dialled) -> Result<(), Error> {
        self.send(Call::new("dialled", move |cluster| {
            cluster.nodes.dialled(&mut cluster.jobs, &cluster.batch, session, dialled);
        }))
        .await
    }

    /// Says that an agent's stream has ended; its lease runs on.
    ///
    /// # Errors
    /// [`Error::Stopped`] only.
    pub async fn close(&self, session: u64) -> Result<(), Error> {
        self.send(Call::new("close", move |cluster| cluster.nodes.close(&cluster.batch, session)))
            .await
    }

    /// Joins a rank to its generation; waits for the other ranks.
    ///
    /// # Errors
    /// [`Error::Stale`], also while it waits; [`Error::NotLive`], [`Error::Invalid`].
    pub async fn join(&self, request: v1::JoinRequest) -> Result<v1::JoinReply, Error> {
        self.ask_later("join", move |cluster, reply| cluster.join(request, reply)).await
    }

    /// Records a rank's part of a checkpoint.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::NotLive`], [`Error::Invalid`].
    pub async fn report_shard(&self, request: v1::ReportShardRequest) -> Result<(), Error> {
        self.ask("report_shard", move |cluster| {
            let job = cluster.jobs.live(&request.job_id, request.generation)?;
            job.report_shard(&mut cluster.batch, request)
        })
        .await
    }

    /// Waits for every rank's part and grants the checkpoint's publication; returns all objects.
    ///
    /// # Errors
    /// [`Error::Stale`], also while it waits: the caller must not publish; [`Error::NotLive`].
    pub async fn commit(
        &self,
        request: v1::CommitCheckpointRequest,
    ) -> Result<Vec<v1::StoredObject>, Error> {
        self.ask_later("commit", move |cluster, reply| {
            match cluster.jobs.live(&request.job_id, request.generation) {
                Ok(job) => job.commit(&mut cluster.batch, &request, reply),
                Err(error) => cluster.batch.reply(reply, Err(error)),
            }
        })
        .await
    }

    /// Records that a granted checkpoint is in place; returns the places of the job that somebody is
    /// about to read.
    ///
    /// # Errors
    /// [`Error::Stale`] for one that was never granted.
    pub async fn published(
        &self,
        request: v1::CheckpointPublishedRequest,
    ) -> Result<Vec<String>, Error> {
        self.ask("published", move |cluster| {
            let job_id = request.job_id.clone();
            cluster.jobs.get(&job_id)?.published(&mut cluster.batch, request)?;
            Ok(cluster.jobs.in_use(&job_id))
        })
        .await
    }

    /// Puts what a ring has to say into its job's history, once.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::NotLive`], [`Error::Invalid`].
    pub async fn note(&self, request: v1::NoteRequest) -> Result<(), Error> {
        self.ask("note", move |cluster| {
            let kind = kind_of(&request)?;
            let job = cluster.jobs.live(&request.job_id, request.generation)?;
            job.note(&mut cluster.batch, kind, request.message);
            Ok(())
        })
        .await
    }

    /// Records the summary of a run that reached its end.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::NotLive`].
    pub async fn finish(&self, request: v1::FinishRequest) -> Result<(), Error> {
        self.ask("finish", move |cluster| {
            let job = cluster.jobs.live(&request.job_id, request.generation)?;
            job.finish(&mut cluster.batch, request.summary_json)
        })
        .await
    }
}

/// Somebody reads a checkpoint as long as this lives.
#[derive(Debug)]
pub struct ReadGuard {
    job_id: String,
    url: String,
    handle: Handle,
}

impl Drop for ReadGuard {
    fn drop(&mut self) {
        let (job_id, url) = (std::mem::take(&mut self.job_id), std::mem::take(&mut self.url));
        let call = Call::new("release", move |cluster| {
            // A job that is not known holds nothing.
            if let Ok(job) = cluster.jobs.get(&job_id) {
                job.release(&url);
            }
        });
        // A queue that is full for once costs a checkpoint that stays longer than needed.
        let _ = self.handle.calls.try_send(call);
    }
}
