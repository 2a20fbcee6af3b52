//! `Jobs`: what people and their tools call.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use ringmaster_manifest::ModelCatalogue;
use ringmaster_proto::v1;
use ringmaster_proto::v1::jobs_server::Jobs;
use tokio::runtime::{Handle as Runtime, RuntimeFlavor};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{log_status, stopped, submission, to_status};
use crate::fleet::{self, Handle};
use crate::logs::{Follow, Line, LogIndex};
use crate::state::{EventRecord, Store};

/// Log lines and updates in flight to one client.
const IN_FLIGHT: usize = 256;

/// The `Jobs` service.
#[derive(Debug, Clone)]
pub struct JobsService {
    fleet: Handle,
    store: Store,
    logs: LogIndex,
    models: Arc<ModelCatalogue>,
    stop: watch::Receiver<bool>,
}

impl JobsService {
    /// Returns the service over this fleet, its history and its logs. Manifests may name `models`; streams end
    /// when `stop` turns true.
    pub fn new(
        fleet: Handle,
        store: Store,
        logs: LogIndex,
        models: ModelCatalogue,
        stop: watch::Receiver<bool>,
    ) -> Self {
        Self { fleet, store, logs, models: Arc::new(models), stop }
    }
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Jobs for JobsService {
    type WatchStream = Answers<v1::JobUpdate>;
    type LogsStream = Answers<v1::LogLine>;

    async fn submit(
        &self,
        request: Request<v1::SubmitRequest>,
    ) -> Result<Response<v1::SubmitReply>, Status> {
        let request = request.into_inner();
        let request_id = request.request_id.clone();
        let job_id = match in_place(|| submission::read(request, &self.models)) {
            Ok(submission) => self.fleet.submit(submission).await.map_err(to_status)?,
            // What was taken once stays so, even if this coordinator would refuse the manifest.
            Err(refusal) => {
                let taken = self.fleet.submitted(request_id).await.map_err(to_status)?;
                taken.ok_or(refusal)?
            }
        };
        Ok(Response::new(v1::SubmitReply { job_id }))
    }

    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::Job>, Status> {
        let job = self.fleet.get(request.into_inner().job_id).await.map_err(to_status)?;
        Ok(Response::new(job))
    }

    async fn list(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListReply>, Status> {
        let include_ended = request.into_inner().include_ended;
        let jobs = self.fleet.list(include_ended).await.map_err(to_status)?;
        Ok(Response::new(v1::ListReply { jobs }))
    }

    async fn watch(
        &self,
        request: Request<v1::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let updates = self.fleet.watch(request.into_inner().job_id).await.map_err(to_status)?;
        let (sender, stream) = mpsc::channel(IN_FLIGHT);
        tokio::spawn(pass_on(updates, sender));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn cancel(
        &self,
        request: Request<v1::CancelRequest>,
    ) -> Result<Response<v1::Job>, Status> {
        let v1::CancelRequest { job_id, reason } = request.into_inner();
        let job = self.fleet.cancel(job_id, reason).await.map_err(to_status)?;
        Ok(Response::new(job))
    }

    async fn pause(&self, request: Request<v1::PauseRequest>) -> Result<Response<v1::Job>, Status> {
        let v1::PauseRequest { job_id, reason } = request.into_inner();
        let job = self.fleet.pause(job_id, reason).await.map_err(to_status)?;
        Ok(Response::new(job))
    }

    async fn resume(
        &self,
        request: Request<v1::ResumeRequest>,
    ) -> Result<Response<v1::Job>, Status> {
        let v1::ResumeRequest { job_id, from_step } = request.into_inner();
        let job = match from_step {
            None => self.fleet.resume(job_id).await,
            Some(step) => super::rollback::roll_back(&self.fleet, job_id, step).await,
        };
        Ok(Response::new(job.map_err(to_status)?))
    }

    async fn set_node(
        &self,
        request: Request<v1::SetNodeRequest>,
    ) -> Result<Response<v1::Node>, Status> {
        let node = self.fleet.set_node(request.into_inner()).await.map_err(to_status)?;
        Ok(Response::new(node))
    }

    async fn logs(
        &self,
        request: Request<v1::LogsRequest>,
    ) -> Result<Response<Self::LogsStream>, Status> {
        let v1::LogsRequest { job_id, rank, follow, tail } = request.into_inner();
        let logs = self.logs.clone();
        let wanted = job_id.clone();
        let reader = blocking(move || logs.follow(&wanted, rank, tail)).await?;
        let (sender, stream) = mpsc::channel(IN_FLIGHT);
        let mut stop = self.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stopped(&mut stop) => {}
                () = sender.closed() => {}
                () = ship(reader, &job_id, follow, &sender) => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn events(
        &self,
        request: Request<v1::EventsRequest>,
    ) -> Result<Response<v1::EventsReply>, Status> {
        let job_id = request.into_inner().job_id;
        self.fleet.get(job_id.clone()).await.map_err(to_status)?;
        let store = self.store.clone();
        let read = tokio::task::spawn_blocking(move || store.events(&job_id)).await;
        let events = read
            .map_err(|_| Status::internal("reading the history failed"))?
            .map_err(|source| to_status(fleet::Error::State { source }))?;
        let events = events.iter().map(EventRecord::to_proto).collect();
        Ok(Response::new(v1::EventsReply { events }))
    }

    async fn nodes(
        &self,
        _request: Request<v1::NodesRequest>,
    ) -> Result<Response<v1::NodesReply>, Status> {
        let nodes = self.fleet.nodes().await.map_err(to_status)?;
        Ok(Response::new(v1::NodesReply { nodes }))
    }
}

/// Does what may take longer than other tasks should wait, and lets them go on meanwhile. Where there is one
/// thread for all, as in simulations, they wait: so everything happens in the same order again.
fn in_place<T>(work: impl FnOnce() -> T) -> T {
    match Runtime::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Passes updates on until the job has ended. A channel that closes before that means that the
/// client was too slow or the coordinator ends, which the client is told.
async fn pass_on(
    mut updates: mpsc::Receiver<v1::JobUpdate>,
    sender: mpsc::Sender<Result<v1::JobUpdate, Status>>,
) {
    let mut ended = false;
    loop {
        let update = tokio::select! {
            biased;
            () = sender.closed() => return,
            update = updates.recv() => update,
        };
        let Some(update) = update else { break };
        ended = update.job.as_ref().is_some_and(|job| job.ended_at_ms > 0);
        if sender.send(Ok(update)).await.is_err() {
            return;
        }
    }
    if !ended {
        let status = Status::unavailable("the watch was cut off before the job ended; watch again");
        // The client may be gone already.
        let _ = sender.send(Err(status)).await;
    }
}

/// Sends what is there, and with `follow` what comes until the job ends.
async fn ship(
    mut reader: Follow,
    job_id: &str,
    follow: bool,
    sender: &mpsc::Sender<Result<v1::LogLine, Status>>,
) {
    loop {
        let read = blocking(move || {
            let page = reader.page();
            page.map(|page| (reader, page))
        });
        let page;
        (reader, page) = match read.await {
            Ok(read) => read,
            Err(status) => {
                // The client may be gone already.
                let _ = sender.send(Err(status)).await;
                return;
            }
        };
        if page.is_empty() && !(follow && reader.changed().await) {
            return;
        }
        for line in page {
            if sender.send(Ok(to_proto(job_id, line))).await.is_err() {
                return;
            }
        }
    }
}

/// Runs a read of the logs off the runtime.
async fn blocking<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, crate::logs::Error> + Send + 'static,
) -> Result<T, Status> {
    let read = tokio::task::spawn_blocking(read).await;
    read.map_err(|_| Status::internal("reading the log failed"))?.map_err(log_status)
}

fn to_proto(job_id: &str, line: Line) -> v1::LogLine {
    v1::LogLine {
        job_id: job_id.to_owned(),
        rank: line.rank,
        generation: Some(line.generation),
        at_ms: line.at_ms,
        text: line.text,
    }
}
