//! `Fleet`: agents' sessions and their logs.

use std::collections::BTreeMap;

use ringmaster_proto::v1;
use ringmaster_proto::v1::agent_message::Message;
use ringmaster_proto::v1::fleet_server::Fleet;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{stopped, to_status};
use crate::fleet::Handle;
use crate::logs::{Line, LogIndex};

/// Messages to an agent that may wait; one that is further behind loses its session.
const OUTBOUND: usize = 1024;

/// The `Fleet` service.
#[derive(Debug, Clone)]
pub struct FleetService {
    fleet: Handle,
    logs: LogIndex,
    stop: watch::Receiver<bool>,
}

impl FleetService {
    /// Returns the service over this fleet and these logs; its streams end when `stop` turns true.
    pub fn new(fleet: Handle, logs: LogIndex, stop: watch::Receiver<bool>) -> Self {
        Self { fleet, logs, stop }
    }
}

#[tonic::async_trait]
impl Fleet for FleetService {
    type SessionStream = ReceiverStream<Result<v1::CoordinatorMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        // The answer starts at once: an agent may wait for it before it registers.
        let (sender, outbound) = mpsc::channel(16);
        let session = Session { fleet: self.fleet.clone(), stop: self.stop.clone(), sender };
        tokio::spawn(session.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(outbound)))
    }

    async fn ship_logs(
        &self,
        request: Request<Streaming<v1::LogBatch>>,
    ) -> Result<Response<v1::LogAck>, Status> {
        let mut batches = request.into_inner();
        let mut stop = self.stop.clone();
        loop {
            let batch = tokio::select! {
                () = stopped(&mut stop) => return Err(stopping()),
                batch = batches.message() => batch?,
            };
            let Some(batch) = batch else { return Ok(Response::new(v1::LogAck {})) };
            let logs = self.logs.clone();
            // Off the runtime: appending waits for the disk, and that is the back-pressure.
            let done = tokio::task::spawn_blocking(move || append(&logs, batch)).await;
            done.map_err(|_| Status::internal("the log could not be written"))?;
        }
    }
}

fn append(logs: &LogIndex, batch: v1::LogBatch) {
    let mut by_job: BTreeMap<String, Vec<Line>> = BTreeMap::new();
    for line in batch.lines {
        by_job.entry(line.job_id).or_default().push(Line {
            at_ms: line.at_ms,
            generation: line.generation.unwrap_or_default(),
            rank: line.rank,
            text: line.text,
        });
    }
    for (job_id, lines) in by_job {
        // A full disk or a forgotten job costs these lines, not the agent's stream.
        if let Err(error) = logs.append(&job_id, lines) {
            tracing::warn!(%job_id, %error, "log lines are lost");
        }
    }
}

fn stopping() -> Status {
    Status::unavailable("the coordinator is shutting down")
}

/// One agent's stream, both ways.
struct Session {
    fleet: Handle,
    stop: watch::Receiver<bool>,
    sender: mpsc::Sender<Result<v1::CoordinatorMessage, Status>>,
}

impl Session {
    /// Answer to cancel: the session is closed and the agent told why. Answer to an error: the same.
    async fn run(self, inbound: Streaming<v1::AgentMessage>) {
        let sender = self.sender.clone();
        if let Err(status) = self.talk(inbound).await {
            // The agent may be gone already.
            let _ = sender.send(Err(status)).await;
        }
    }

    async fn talk(mut self, mut inbound: Streaming<v1::AgentMessage>) -> Result<(), Status> {
        let first = tokio::select! {
            biased;
            () = stopped(&mut self.stop) => return Err(stopping()),
            first = inbound.message() => first?,
        };
        let Some(Message::Register(register)) = first.and_then(|first| first.message) else {
            return Err(Status::invalid_argument("the first message of a session is Register"));
        };
        let (sender, outbound) = mpsc::channel(OUTBOUND);
        let id = self.fleet.open(register, sender).await.map_err(to_status)?;
        let result = self.relay(id, inbound, outbound).await;
        // Fails only when the fleet's task has ended, and the session with it.
        let _ = self.fleet.close(id).await;
        result
    }

    async fn relay(
        &self,
        id: u64,
        mut inbound: Streaming<v1::AgentMessage>,
        outbound: mpsc::Receiver<v1::CoordinatorMessage>,
    ) -> Result<(), Status> {
        // In a fixed order, here and wherever else it costs nothing: a simulation repeats itself.
        let mut outbound = ReceiverStream::new(outbound);
        let mut stop = self.stop.clone();
        loop {
            tokio::select! {
                biased;
                () = stopped(&mut stop) => return Err(stopping()),
                message = outbound.next() => {
                    let over = || to_status(crate::fleet::Error::SessionOver);
                    let message = message.ok_or_else(over)?;
                    if self.sender.send(Ok(message)).await.is_err() {
                        return Ok(());
                    }
                }
                message = inbound.message() => {
                    let Some(message) = message? else { return Ok(()) };
                    self.take(id, message).await?;
                }
            }
        }
    }

    async fn take(&self, id: u64, message: v1::AgentMessage) -> Result<(), Status> {
        match message.message {
            Some(Message::Heartbeat(heartbeat)) => self.fleet.heartbeat(id, heartbeat).await,
            Some(Message::RankExited(exited)) => self.fleet.exited(id, exited).await,
            Some(Message::Leaving(leaving)) => self.fleet.leaving(id, leaving).await,
            Some(Message::Worker(worker)) => self.fleet.worker(id, worker).await,
            Some(Message::SlotsOut(slots_out)) => self.fleet.slots_out(id, slots_out).await,
            Some(Message::Dialled(dialled)) => self.fleet.dialled(id, dialled).await,
            Some(Message::Register(_)) => {
                return Err(Status::invalid_argument("a session registers once"));
            }
            // Of a newer agent: what is not understood is not needed.
            None => Ok(()),
        }
        .map_err(to_status)
    }
}
