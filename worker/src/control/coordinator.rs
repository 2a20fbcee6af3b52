//! A rank's calls to the coordinator (`Ranks`), blocking, for threads that know nothing of async.
//!
//! One named thread owns a small runtime and the connection. A call that the network broke is sent
//! again for ever, with growing pauses: the coordinator may be restarting, its calls are idempotent,
//! and a rank without an agent ends anyway (see [`crate::control::agent`]).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable as _};
use ringmaster_proto::address::{self, Listener};
use ringmaster_proto::limits;
use ringmaster_proto::status::is_transient;
use ringmaster_proto::v1::ranks_client::RanksClient as Stub;
use ringmaster_proto::v1::{
    CheckpointPublishedReply, CheckpointPublishedRequest, CommitCheckpointReply,
    CommitCheckpointRequest, FinishReply, FinishRequest, JoinReply, JoinRequest, NoteRequest,
    ReportShardReply, ReportShardRequest,
};
use tokio::sync::{mpsc, oneshot, watch};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// Pauses before a broken call is sent again.
const PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(50))
    .with_max_delay(Duration::from_secs(2))
    .without_max_times();

/// Why a call gave no answer.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A newer generation exists; the message names it. The caller must drop what it was doing.
    #[error("this generation is superseded: {0}")]
    Superseded(String),
    /// [`RanksClient::interrupt`] was called while this join waited.
    #[error("the wait for the other ranks was interrupted")]
    Interrupted,
    /// The coordinator refuses the call; sending it again cannot help.
    #[error("the coordinator refuses {call}: {message} ({code:?})")]
    Refused { call: &'static str, code: Code, message: String },
    /// No coordinator can be where it was said to be.
    #[error("the coordinator's address cannot be used")]
    Address(#[source] address::Error),
    /// The thread or its runtime could not be started.
    #[error("cannot start the thread that calls the coordinator")]
    Thread {
        #[source]
        source: io::Error,
    },
    /// The thread ended; only at the end of the process.
    #[error("the thread that calls the coordinator has ended")]
    Closed,
}

/// Blocking facade of the `Ranks` service; clones share one connection.
#[derive(Debug, Clone)]
pub struct RanksClient {
    calls: mpsc::UnboundedSender<Call>,
    interruptions: Arc<watch::Sender<u64>>,
}

#[derive(Debug)]
enum Call {
    Join(Box<JoinRequest>, watch::Receiver<u64>, u64, Answer<JoinReply>),
    ReportShard(ReportShardRequest, Answer<ReportShardReply>),
    CommitCheckpoint(CommitCheckpointRequest, Answer<CommitCheckpointReply>),
    CheckpointPublished(CheckpointPublishedRequest, Answer<CheckpointPublishedReply>),
    Note(NoteRequest),
    Finish(FinishRequest, Answer<FinishReply>),
}

type Answer<T> = oneshot::Sender<Result<T, Error>>;

impl RanksClient {
    /// Starts the thread that calls the coordinator at `url`; connects at the first call.
    ///
    /// # Errors
    /// [`Error::Address`] or [`Error::Thread`].
    pub fn start(url: &str) -> Result<Self, Error> {
        let endpoint = address::endpoint(url, Listener::Fleet).map_err(Error::Address)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|source| Error::Thread { source })?;
        let (calls, inbox) = mpsc::unbounded_channel();
        std::thread::Builder::new()
            .name("ranks-client".into())
            .spawn(move || runtime.block_on(serve(&endpoint, inbox)))
            .map_err(|source| Error::Thread { source })?;
        Ok(Self { calls, interruptions: Arc::new(watch::Sender::new(0)) })
    }

    /// Waits until every rank of the generation has joined and returns their common plan.
    ///
    /// An interruption after [`RanksClient::interruptions`] returned `seen` ends the wait even if it came
    /// before this call: a caller that looks for commands between the two can miss none.
    ///
    /// # Errors
    /// [`Error::Superseded`], [`Error::Interrupted`], [`Error::Refused`].
    pub fn join(&self, request: JoinRequest, seen: u64) -> Result<JoinReply, Error> {
        let interruptions = self.interruptions.subscribe();
        self.call(|answer| Call::Join(Box::new(request), interruptions, seen, answer))
    }

    /// Returns how often [`RanksClient::interrupt`] was called.
    pub fn interruptions(&self) -> u64 {
        *self.interruptions.borrow()
    }

    /// Wakes a blocked join with [`Error::Interrupted`]; never blocks.
    pub fn interrupt(&self) {
        self.interruptions.send_modify(|count| *count += 1);
    }

    /// Reports this rank's uploaded part of a checkpoint.
    ///
    /// # Errors
    /// [`Error::Superseded`] for a stale generation, [`Error::Refused`].
    pub fn report_shard(&self, request: ReportShardRequest) -> Result<ReportShardReply, Error> {
        self.call(|answer| Call::ReportShard(request, answer))
    }

    /// Waits until every rank reported its part and the grant is durable.
    ///
    /// # Errors
    /// [`Error::Superseded`] for a stale generation: the caller must not publish. [`Error::Refused`].
    pub fn commit_checkpoint(
        &self,
        request: CommitCheckpointRequest,
    ) -> Result<CommitCheckpointReply, Error> {
        self.call(|answer| Call::CommitCheckpoint(request, answer))
    }

    /// Says that a checkpoint's manifest is in place.
    ///
    /// # Errors
    /// [`Error::Superseded`] for a stale generation, [`Error::Refused`].
    pub fn checkpoint_published(
        &self,
        request: CheckpointPublishedRequest,
    ) -> Result<CheckpointPublishedReply, Error> {
        self.call(|answer| Call::CheckpointPublished(request, answer))
    }

    /// Leaves a note for the job's history; returns before it has arrived, since nothing depends on
    /// it.
    pub fn note(&self, request: NoteRequest) {
        // The thread ends with the process only.
        let _ = self.calls.send(Call::Note(request));
    }

    /// Hands in the run's summary.
    ///
    /// # Errors
    /// [`Error::Superseded`] for a stale generation, [`Error::Refused`].
    pub fn finish(&self, request: FinishRequest) -> Result<FinishReply, Error> {
        self.call(|answer| Call::Finish(request, answer))
    }

    fn call<T>(&self, make: impl FnOnce(Answer<T>) -> Call) -> Result<T, Error> {
        let (answer, reply) = oneshot::channel();
        self.calls.send(make(answer)).map_err(|_| Error::Closed)?;
        reply.blocking_recv().map_err(|_| Error::Closed)?
    }
}

/// Serves calls, several at once, until the last client is dropped.
async fn serve(endpoint: &Endpoint, mut inbox: mpsc::UnboundedReceiver<Call>) {
    let stub = Stub::new(endpoint.connect_lazy())
        .max_decoding_message_size(limits::MAX_MESSAGE_BYTES)
        .max_encoding_message_size(limits::MAX_MESSAGE_BYTES);
    let mut running = tokio::task::JoinSet::new();
    while let Some(call) = inbox.recv().await {
        running.spawn(dispatch(stub.clone(), call));
        while running.try_join_next().is_some() {}
    }
}

async fn dispatch(stub: Stub<Channel>, call: Call) {
    // Nobody waits for an answer whose thread has gone: sending it may fail.
    match call {
        Call::Join(request, interruptions, seen, answer) => {
            let reply = join(stub, *request, interruptions, seen).await;
            drop(answer.send(reply));
        }
        Call::ReportShard(request, answer) => {
            let send = || {
                let (mut stub, request) = (stub.clone(), request.clone());
                async move { stub.report_shard(request).await }
            };
            drop(answer.send(insist("ReportShard", send).await));
        }
        Call::CommitCheckpoint(request, answer) => {
            let send = || {
                let (mut stub, request) = (stub.clone(), request.clone());
                async move { stub.commit_checkpoint(request).await }
            };
            drop(answer.send(insist("CommitCheckpoint", send).await));
        }
        Call::CheckpointPublished(request, answer) => {
            let send = || {
                let (mut stub, request) = (stub.clone(), request.clone());
                async move { stub.checkpoint_published(request).await }
            };
            drop(answer.send(insist("CheckpointPublished", send).await));
        }
        Call::Note(request) => {
            let send = || {
                let (mut stub, request) = (stub.clone(), request.clone());
                async move { stub.note(request).await }
            };
            if let Err(error) = insist("Note", send).await {
                tracing::warn!(%error, "a note for the job's history was not taken");
            }
        }
        Call::Finish(request, answer) => {
            let send = || {
                let (mut stub, request) = (stub.clone(), request.clone());
                async move { stub.finish(request).await }
            };
            drop(answer.send(insist("Finish", send).await));
        }
    }
}

async fn join(
    stub: Stub<Channel>,
    request: JoinRequest,
    mut interruptions: watch::Receiver<u64>,
    seen: u64,
) -> Result<JoinReply, Error> {
    let send = || {
        let (mut stub, request) = (stub.clone(), request.clone());
        async move { stub.join(request).await }
    };
    tokio::select! {
        reply = insist("Join", send) => reply,
        // Fails only when every client is gone, and then nobody waits for the answer.
        _ = interruptions.wait_for(|&count| count != seen) => Err(Error::Interrupted),
    }
}

/// Sends a call until it is answered, one way or the other.
async fn insist<T, F>(call: &'static str, send: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<tonic::Response<T>, Status>>,
{
    let later = |status: &Status, pause: Duration| {
        let pause_ms = pause.as_millis() as u64;
        tracing::warn!(call, error = %status.message(), pause_ms, "no answer from the coordinator, trying again");
    };
    let answer = send.retry(PAUSES).when(is_transient).notify(later).await;
    answer.map(tonic::Response::into_inner).map_err(|status| refusal(call, &status))
}

fn refusal(call: &'static str, status: &Status) -> Error {
    let message = status.message().to_owned();
    match status.code() {
        Code::Aborted => Error::Superseded(message),
        code => Error::Refused { call, code, message },
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use backon::BackoffBuilder as _;

    use super::*;

    #[test]
    fn a_broken_call_is_never_given_up() {
        let mut pauses = PAUSES.build();
        assert_eq!(pauses.next(), Some(Duration::from_millis(50)));
        assert_eq!(pauses.nth(10_000), Some(Duration::from_secs(2)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_breaks_is_made_until_it_is_answered_and_a_refusal_at_once() {
        let mut calls = 0;
        let broken = || {
            calls += 1;
            let answer = if calls < 40 {
                Err(Status::unavailable("away"))
            } else {
                Ok(tonic::Response::new(calls))
            };
            std::future::ready(answer)
        };
        assert_eq!(insist("Join", broken).await.unwrap(), 40);
        let mut calls = 0;
        let refused = || {
            calls += 1;
            std::future::ready(Err::<tonic::Response<()>, _>(Status::not_found("no job x")))
        };
        assert!(insist("Join", refused).await.is_err());
        assert_eq!(calls, 1);
    }

    #[test]
    fn codes_say_whether_the_rank_is_out_of_date() {
        assert!(matches!(
            refusal("Join", &Status::aborted("g1.9 is current")),
            Error::Superseded(message) if message == "g1.9 is current"
        ));
        assert!(matches!(
            refusal("Join", &Status::not_found("no job x")),
            Error::Refused { code: Code::NotFound, .. }
        ));
    }

    #[test]
    fn an_interruption_between_looking_and_joining_counts() {
        // Nothing listens on port 9: the join itself would try for ever.
        let client = RanksClient::start("http://127.0.0.1:9").unwrap();
        let seen = client.interruptions();
        client.interrupt();
        let reply = client.join(JoinRequest::default(), seen);
        assert!(matches!(reply, Err(Error::Interrupted)));
    }

    #[test]
    fn an_address_that_can_never_work_is_refused_at_once() {
        for url in ["127.0.0.1 7071", "127.0.0.1:7071", "https://127.0.0.1:7071"] {
            let error = RanksClient::start(url).unwrap_err();
            assert!(matches!(&error, Error::Address(cause) if cause.to_string().contains(url)));
        }
    }
}
