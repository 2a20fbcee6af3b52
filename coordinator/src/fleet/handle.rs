//! What may be asked of the fleet, and the handle that asks.

use ringmaster_proto::v1;
use tokio::sync::{mpsc, oneshot};

use super::{Error, RolledBack};

/// Where an answer goes.
pub(super) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// A job as a client hands it in.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The validated `TrainJob` as JSON.
    pub manifest: String,
    /// Name of the manifest file.
    pub file_name: String,
    /// Chosen by the client; a repeated one names the same job.
    pub request_id: String,
    /// Checkpoint URL to start from, or empty.
    pub resume_from: String,
    /// The file as the user wrote it.
    pub manifest_yaml: String,
}

#[derive(Debug)]
pub(super) enum Command {
    Submit(Box<Submission>, Reply<String>),
    Get(String, Reply<v1::Job>),
    List { include_ended: bool, reply: Reply<Vec<v1::Job>> },
    Watch(String, Reply<mpsc::Receiver<v1::JobUpdate>>),
    Cancel { job_id: String, reason: String, reply: Reply<v1::Job> },
    Pause { job_id: String, reason: String, reply: Reply<v1::Job> },
    Resume(String, Reply<v1::Job>),
    RollBack { job_id: String, url: String, step: u64, reply: Reply<RolledBack> },
    Hold { job_id: String, url: String, reply: Reply<()> },
    Release { job_id: String, url: String },
    SetNode(v1::SetNodeRequest, Reply<v1::Node>),
    Nodes(Reply<Vec<v1::Node>>),
    Open(Box<v1::Register>, mpsc::Sender<v1::CoordinatorMessage>, Reply<u64>),
    Heartbeat(u64, v1::Heartbeat),
    Exited(u64, Box<v1::RankExited>),
    Leaving(u64, v1::Leaving),
    Close(u64),
    Join(Box<v1::JoinRequest>, Reply<v1::JoinReply>),
    ReportShard(Box<v1::ReportShardRequest>, Reply<()>),
    Commit(v1::CommitCheckpointRequest, Reply<Vec<v1::StoredObject>>),
    Published(v1::CheckpointPublishedRequest, Reply<Vec<String>>),
    Note(v1::NoteRequest, Reply<()>),
    Finish(v1::FinishRequest, Reply<()>),
}

impl Command {
    /// True for what arrives all the time and by itself calls for no decision before the next tick.
    pub(super) fn is_heartbeat(&self) -> bool {
        matches!(self, Self::Heartbeat(..))
    }
}

/// Asks the fleet's task; clones ask the same one. Every method returns [`Error::Stopped`] once the
/// task has ended, and what the task acknowledged is durable.
#[derive(Debug, Clone)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
}

impl Handle {
    pub(super) fn new(commands: mpsc::Sender<Command>) -> Self {
        Self { commands }
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, Error> {
        let (reply, answer) = oneshot::channel();
        self.tell(command(reply)).await?;
        answer.await.map_err(|_| Error::Stopped)?
    }

    async fn tell(&self, command: Command) -> Result<(), Error> {
        self.commands.send(command).await.map_err(|_| Error::Stopped)
    }

    /// Stores and queues a job; returns its id.
    ///
    /// # Errors
    /// [`Error::Manifest`] and [`Error::Invalid`] for what cannot become a job.
    pub async fn submit(&self, submission: Submission) -> Result<String, Error> {
        self.ask(|reply| Command::Submit(Box::new(submission), reply)).await
    }

    /// Returns a job as it stands.
    ///
    /// # Errors
    /// [`Error::UnknownJob`].
    pub async fn get(&self, job_id: String) -> Result<v1::Job, Error> {
        self.ask(|reply| Command::Get(job_id, reply)).await
    }

    /// Returns jobs in the order of submission.
    ///
    /// # Errors
    /// [`Error::Stopped`] only.
    pub async fn list(&self, include_ended: bool) -> Result<Vec<v1::Job>, Error> {
        self.ask(|reply| Command::List { include_ended, reply }).await
    }

    /// Returns the job now and then every change. The channel closes after the final state, and
    /// earlier when the reader is too slow for the history or the coordinator ends.
    ///
    /// # Errors
    /// [`Error::UnknownJob`].
    pub async fn watch(&self, job_id: String) -> Result<mpsc::Receiver<v1::JobUpdate>, Error> {
        self.ask(|reply| Command::Watch(job_id, reply)).await
    }

    /// Asks a job to checkpoint and stop; an ended one is returned as it is.
    ///
    /// # Errors
    /// [`Error::UnknownJob`].
    pub async fn cancel(&self, job_id: String, reason: String) -> Result<v1::Job, Error> {
        self.ask(|reply| Command::Cancel { job_id, reason, reply }).await
    }

    /// Asks a job to checkpoint, stop, and wait until it is resumed.
    ///
    /// # Errors
    /// [`Error::UnknownJob`]; [`Error::NotLive`] for one that has ended.
    pub async fn pause(&self, job_id: String, reason: String) -> Result<v1::Job, Error> {
        self.ask(|reply| Command::Pause { job_id, reason, reply }).await
    }

    /// Puts a job that is paused, failed or was cancelled back into the queue; one that goes on anyway
    /// is returned as it is.
    ///
    /// # Errors
    /// [`Error::UnknownJob`]; [`Error::Succeeded`].
    pub async fn resume(&self, job_id: String) -> Result<v1::Job, Error> {
        self.ask(|reply| Command::Resume(job_id, reply)).await
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
        self.ask(|reply| Command::RollBack { job_id, url, step, reply }).await
    }

    /// Says that somebody reads a checkpoint of a job: its retention leaves it until the hold is
    /// dropped.
    ///
    /// # Errors
    /// [`Error::UnknownJob`].
    pub async fn hold(&self, job_id: String, url: String) -> Result<Hold, Error> {
        let hold = Hold { job_id: job_id.clone(), url: url.clone(), handle: self.clone() };
        self.ask(|reply| Command::Hold { job_id, url, reply }).await?;
        Ok(hold)
    }

    /// Lets a node take ranks, or no more.
    ///
    /// # Errors
    /// [`Error::UnknownNode`].
    pub async fn set_node(&self, request: v1::SetNodeRequest) -> Result<v1::Node, Error> {
        self.ask(|reply| Command::SetNode(request, reply)).await
    }

    /// Returns the nodes that are closed, and those seen since the coordinator started.
    ///
    /// # Errors
    /// [`Error::Stopped`] only.
    pub async fn nodes(&self) -> Result<Vec<v1::Node>, Error> {
        self.ask(Command::Nodes).await
    }

    /// Opens an agent's session, replacing an older one of the same node; returns its number.
    /// Messages for the agent go to `outbound`, which is dropped when the session is over.
    ///
    /// # Errors
    /// [`Error::WrongBuild`] and [`Error::Invalid`].
    pub async fn open(
        &self,
        register: v1::Register,
        outbound: mpsc::Sender<v1::CoordinatorMessage>,
    ) -> Result<u64, Error> {
        self.ask(|reply| Command::Open(Box::new(register), outbound, reply)).await
    }

    /// Hands in an agent's heartbeat.
    ///
    /// # Errors
    /// [`Error::Stopped`] only.
    pub async fn heartbeat(&self, session: u64, heartbeat: v1::Heartbeat) -> Result<(), Error> {
        self.tell(Command::Heartbeat(session, heartbeat)).await
    }

    /// Hands in a rank's exit; the agent gets its acknowledgement through the session.
    ///
    /// # Errors
    /// [`Error::Stopped`] only.
    pub async fn exited(&self, session: u64, exited: v1::RankExited) -> Result<(), Error> {
        self.tell(Command::Exited(session, Box::new(exited))).await
    }

    /// Says that an agent was told to end: it takes no rank any more.
    ///
    /// # Errors
    /// [`Error::Stopped`] only.
    pub async fn leaving(&self, session: u64, leaving: v1::Leaving) -> Result<(), Error> {
        self.tell(Command::Leaving(session, leaving)).await
    }

    /// Says that an agent's stream has ended; its lease runs on.
    ///
    /// # Errors
    /// [`Error::Stopped`] only.
    pub async fn close(&self, session: u64) -> Result<(), Error> {
        self.tell(Command::Close(session)).await
    }

    /// Joins a rank to its generation; waits for the other ranks.
    ///
    /// # Errors
    /// [`Error::Stale`], also while it waits; [`Error::NotLive`], [`Error::Invalid`].
    pub async fn join(&self, request: v1::JoinRequest) -> Result<v1::JoinReply, Error> {
        self.ask(|reply| Command::Join(Box::new(request), reply)).await
    }

    /// Records a rank's part of a checkpoint.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::NotLive`], [`Error::Invalid`].
    pub async fn report_shard(&self, request: v1::ReportShardRequest) -> Result<(), Error> {
        self.ask(|reply| Command::ReportShard(Box::new(request), reply)).await
    }

    /// Waits for every rank's part and grants the checkpoint's publication; returns all objects.
    ///
    /// # Errors
    /// [`Error::Stale`], also while it waits: the caller must not publish; [`Error::NotLive`].
    pub async fn commit(
        &self,
        request: v1::CommitCheckpointRequest,
    ) -> Result<Vec<v1::StoredObject>, Error> {
        self.ask(|reply| Command::Commit(request, reply)).await
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
        self.ask(|reply| Command::Published(request, reply)).await
    }

    /// Puts what a ring has to say into its job's history, once.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::NotLive`], [`Error::Invalid`].
    pub async fn note(&self, request: v1::NoteRequest) -> Result<(), Error> {
        self.ask(|reply| Command::Note(request, reply)).await
    }

    /// Records the summary of a run that reached its end.
    ///
    /// # Errors
    /// [`Error::Stale`], [`Error::NotLive`].
    pub async fn finish(&self, request: v1::FinishRequest) -> Result<(), Error> {
        self.ask(|reply| Command::Finish(request, reply)).await
    }
}

/// Somebody reads a checkpoint as long as this lives.
#[derive(Debug)]
pub struct Hold {
    job_id: String,
    url: String,
    handle: Handle,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let (job_id, url) = (std::mem::take(&mut self.job_id), std::mem::take(&mut self.url));
        // A queue that is full for once costs a checkpoint that stays longer than needed.
        let _ = self.handle.commands.try_send(Command::Release { job_id, url });
    }
}
