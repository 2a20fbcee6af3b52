//! The command line's connection to a coordinator.

use std::error::Error as _;

use ringmaster_proto::address::{self, Listener};
use ringmaster_proto::limits;
use ringmaster_proto::v1::{
    self, CancelRequest, EventsRequest, GetRequest, Job, ListRequest, LogsRequest, NodesRequest,
    PauseRequest, ResumeRequest, SetNodeRequest, SubmitRequest, WatchRequest,
    jobs_client::JobsClient,
};
use tonic::transport::Channel;

use super::error::Error;
use super::greeting;

/// A client of the `Jobs` service. Connects on first use; clones share one connection.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    url: String,
    jobs: JobsClient<Channel>,
}

impl Client {
    /// Returns a client of the coordinator at `url`, without connecting yet.
    ///
    /// # Errors
    /// An address at which no coordinator can be.
    pub(crate) fn new(url: &str) -> Result<Self, Error> {
        let endpoint =
            address::endpoint(url, Listener::People).map_err(Error::CoordinatorAddress)?;
        let jobs = JobsClient::new(endpoint.connect_lazy())
            .max_decoding_message_size(limits::MAX_MESSAGE_BYTES)
            .max_encoding_message_size(limits::MAX_MESSAGE_BYTES);
        Ok(Self { url: url.to_owned(), jobs })
    }

    /// Hands in a job and returns its id.
    pub(crate) async fn submit(&self, request: SubmitRequest) -> Result<String, Error> {
        Ok(self.ask(request, async |mut jobs, request| jobs.submit(request).await).await?.job_id)
    }

    /// Returns one job.
    pub(crate) async fn get(&self, job_id: &str) -> Result<Job, Error> {
        let request = GetRequest { job_id: job_id.to_owned() };
        self.ask(request, async |mut jobs, request| jobs.get(request).await).await
    }

    /// Returns all live jobs, and the ended ones if asked for.
    pub(crate) async fn list(&self, include_ended: bool) -> Result<Vec<Job>, Error> {
        let request = ListRequest { include_ended };
        Ok(self.ask(request, async |mut jobs, request| jobs.list(request).await).await?.jobs)
    }

    /// Opens the stream of a job's changes.
    pub(crate) async fn watch(
        &self,
        job_id: &str,
    ) -> Result<tonic::Streaming<v1::JobUpdate>, tonic::Status> {
        let request = WatchRequest { job_id: job_id.to_owned() };
        Ok(self.jobs.clone().watch(request).await?.into_inner())
    }

    /// Asks a job to save its state and stop.
    pub(crate) async fn cancel(&self, job_id: &str, reason: &str) -> Result<Job, Error> {
        let request = CancelRequest { job_id: job_id.to_owned(), reason: reason.to_owned() };
        self.ask(request, async |mut jobs, request| jobs.cancel(request).await).await
    }

    /// Asks a job to save its state, stop, and wait until it is resumed.
    pub(crate) async fn pause(&self, job_id: &str, reason: &str) -> Result<Job, Error> {
        let request = PauseRequest { job_id: job_id.to_owned(), reason: reason.to_owned() };
        self.ask(request, async |mut jobs, request| jobs.pause(request).await).await
    }

    /// Puts a job that does not run back into the queue, or rolls one back to an older checkpoint.
    pub(crate) async fn resume(&self, job_id: &str, from_step: Option<u64>) -> Result<Job, Error> {
        let request = ResumeRequest { job_id: job_id.to_owned(), from_step };
        self.ask(request, async |mut jobs, request| jobs.resume(request).await).await
    }

    /// Opens the stream of a job's log lines.
    pub(crate) async fn logs(
        &self,
        request: LogsRequest,
    ) -> Result<tonic::Streaming<v1::LogLine>, Error> {
        self.ask(request, async |mut jobs, request| jobs.logs(request).await).await
    }

    /// Returns a job's history.
    pub(crate) async fn events(&self, job_id: &str) -> Result<Vec<v1::Event>, Error> {
        let request = EventsRequest { job_id: job_id.to_owned() };
        Ok(self.ask(request, async |mut jobs, request| jobs.events(request).await).await?.events)
    }

    /// Returns the nodes of the cluster.
    pub(crate) async fn nodes(&self) -> Result<Vec<v1::Node>, Error> {
        let request = NodesRequest {};
        Ok(self.ask(request, async |mut jobs, request| jobs.nodes(request).await).await?.nodes)
    }

    /// Lets a node take ranks, or no more.
    pub(crate) async fn set_node(
        &self,
        node: &str,
        usable: bool,
        reason: &str,
    ) -> Result<v1::Node, Error> {
        let (node, reason) = (node.to_owned(), reason.to_owned());
        let request = SetNodeRequest { node, usable, reason };
        self.ask(request, async |mut jobs, request| jobs.set_node(request).await).await
    }

    /// Makes one call.
    async fn ask<Q, A>(
        &self,
        request: Q,
        call: impl AsyncFnOnce(JobsClient<Channel>, Q) -> Result<tonic::Response<A>, tonic::Status>,
    ) -> Result<A, Error> {
        match call(self.jobs.clone(), request).await {
            Ok(reply) => Ok(reply.into_inner()),
            Err(status) => Err(self.error(status).await),
        }
    }

    /// Maps the coordinator's answer to the error a person reads.
    ///
    /// Where no coordinator listens, what is sent instead of HTTP/2 and the end of the connection arrive
    /// together, and a call may learn of the end alone. Then whoever listens is asked once more, without
    /// gRPC.
    pub(crate) async fn error(&self, status: tonic::Status) -> Error {
        // Only a status made on this side has a source: nobody has answered.
        let unanswered = status.source().is_some() && !address::is_foreign(&status);
        if unanswered && let Some(found) = greeting::foreign(&self.url).await {
            let why = format!("it does not speak gRPC without TLS: {found}");
            return Error::NoCoordinator { url: self.url.clone(), why };
        }
        Error::from_status(&self.url, &status)
    }
}
