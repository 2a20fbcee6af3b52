//! The command line's connection to a coordinator.

use ringmaster_proto::address::{self, Listener};
use ringmaster_proto::limits;
use ringmaster_proto::status::was_cut_off;
use ringmaster_proto::v1::{
    self, CancelRequest, EventsRequest, GetRequest, Job, ListRequest, LogsRequest, NodesRequest,
    PauseRequest, ResumeRequest, SetNodeRequest, SubmitRequest, WatchRequest,
    jobs_client::JobsClient,
};
use tonic::transport::Channel;

use super::error::Error;

/// How often a question is put to whoever ends the connection without a word.
const ATTEMPTS: u32 = 5;

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
        let reply = self.jobs.clone().submit(request).await.map_err(|status| self.error(status))?;
        Ok(reply.into_inner().job_id)
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
        let reply = self.jobs.clone().cancel(request).await.map_err(|status| self.error(status))?;
        Ok(reply.into_inner())
    }

    /// Asks a job to save its state, stop, and wait until it is resumed.
    pub(crate) async fn pause(&self, job_id: &str, reason: &str) -> Result<Job, Error> {
        let request = PauseRequest { job_id: job_id.to_owned(), reason: reason.to_owned() };
        let reply = self.jobs.clone().pause(request).await.map_err(|status| self.error(status))?;
        Ok(reply.into_inner())
    }

    /// Puts a job that does not run back into the queue, or rolls one back to an older checkpoint.
    pub(crate) async fn resume(&self, job_id: &str, from_step: Option<u64>) -> Result<Job, Error> {
        let request = ResumeRequest { job_id: job_id.to_owned(), from_step };
        let reply = self.jobs.clone().resume(request).await.map_err(|status| self.error(status))?;
        Ok(reply.into_inner())
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
        let reply = self.jobs.clone().set_node(request).await;
        Ok(reply.map_err(|status| self.error(status))?.into_inner())
    }

    /// Puts a question that changes nothing.
    ///
    /// Where no coordinator listens, what it sends instead of HTTP/2 and the end of its connection arrive
    /// together; whichever is noticed first decides whether the reason is known. So the question is put again
    /// while only the end is.
    async fn ask<Q: Clone, A>(
        &self,
        request: Q,
        call: impl AsyncFn(JobsClient<Channel>, Q) -> Result<tonic::Response<A>, tonic::Status>,
    ) -> Result<A, Error> {
        let mut attempt = 1;
        loop {
            match call(self.jobs.clone(), request.clone()).await {
                Ok(reply) => return Ok(reply.into_inner()),
                Err(status) if was_cut_off(&status) && attempt < ATTEMPTS => attempt += 1,
                Err(status) => return Err(self.error(status)),
            }
        }
    }

    /// Maps the coordinator's answer to the error a person reads.
    pub(crate) fn error(&self, status: tonic::Status) -> Error {
        Error::from_status(&self.url, &status)
    }
}
