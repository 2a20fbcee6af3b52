//! A coordinator that decides nothing: it records what agents and ranks say and says what a test
//! tells it to.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringmaster_proto::v1::agent_message::Message as Report;
use ringmaster_proto::v1::coordinator_message::Message as Order;
use ringmaster_proto::v1::fleet_server::{Fleet, FleetServer};
use ringmaster_proto::v1::ranks_server::{Ranks, RanksServer};
use ringmaster_proto::v1::*;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Nothing here takes longer; only a failing test waits so long.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);
pub(crate) const HEARTBEAT_MS: u32 = 50;
/// A rank that no agent has.
const NOBODY: u32 = 99;

/// What happened, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    pub(crate) reports: Vec<Report>,
    pub(crate) lines: Vec<AgentLogLine>,
    pub(crate) joins: Vec<JoinRequest>,
    /// Exits acknowledged.
    pub(crate) acks: usize,
    /// Agents turned away because another one has their name.
    pub(crate) turned_away: usize,
}

impl Seen {
    pub(crate) fn registrations(&self) -> Vec<&Register> {
        let registers = self.reports.iter().filter_map(|report| match report {
            Report::Register(register) => Some(register),
            _ => None,
        });
        registers.collect()
    }

    pub(crate) fn exits(&self) -> Vec<&RankExited> {
        let exits = self.reports.iter().filter_map(|report| match report {
            Report::RankExited(exit) => Some(exit),
            _ => None,
        });
        exits.collect()
    }

    pub(crate) fn leaving(&self) -> Option<&Leaving> {
        self.reports.iter().find_map(|report| match report {
            Report::Leaving(leaving) => Some(leaving),
            _ => None,
        })
    }

    /// Which slots took no rank, each time that this changed after the registration.
    pub(crate) fn slots_out(&self) -> Vec<Vec<u32>> {
        let changes = self.reports.iter().filter_map(|report| match report {
            Report::SlotsOut(out) => {
                Some(out.slots.iter().map(|slot| slot.slot).collect::<Vec<_>>())
            }
            _ => None,
        });
        changes.collect()
    }

    pub(crate) fn dialled(&self) -> Option<&Dialled> {
        self.reports.iter().find_map(|report| match report {
            Report::Dialled(dialled) => Some(dialled),
            _ => None,
        })
    }

    /// What was said of the worker after the registration.
    pub(crate) fn workers(&self) -> Vec<&Worker> {
        let workers = self.reports.iter().filter_map(|report| match report {
            Report::Worker(worker) => Some(worker),
            _ => None,
        });
        workers.collect()
    }

    pub(crate) fn heartbeats(&self) -> usize {
        self.reports.iter().filter(|report| matches!(report, Report::Heartbeat(_))).count()
    }

    /// The newest status of a rank.
    pub(crate) fn status(&self, rank: u32) -> Option<&RankStatus> {
        self.reports.iter().rev().find_map(|report| match report {
            Report::Heartbeat(beat) => beat.ranks.iter().find(|status| status.rank == rank),
            _ => None,
        })
    }

    /// The rest of the first log line with this beginning.
    pub(crate) fn line(&self, beginning: &str) -> Option<String> {
        self.lines.iter().find_map(|line| Some(line.text.strip_prefix(beginning)?.to_owned()))
    }
}

/// How the fake behaves; tests change it at will.
#[derive(Debug, Default)]
pub(crate) struct Manners {
    pub(crate) withholds_acks: bool,
    pub(crate) refuses_agents: Option<String>,
    /// Another agent has the name of any that comes.
    pub(crate) knows_another: bool,
    pub(crate) takes_no_logs: bool,
    /// Answers by generation; a join of another generation waits.
    pub(crate) joins: HashMap<Generation, Result<JoinReply, Status>>,
}

#[derive(Debug)]
struct Shared {
    seen: watch::Sender<Seen>,
    manners: watch::Sender<Manners>,
    session: Mutex<Option<mpsc::Sender<Result<CoordinatorMessage, Status>>>>,
}

/// The fake, serving; stops when dropped.
#[derive(Debug)]
pub(crate) struct Coordinator {
    shared: Arc<Shared>,
    pub(crate) address: SocketAddr,
    // A runtime of its own: shut down, it takes every connection along, as a crash does.
    server: Option<Runtime>,
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        self.crash();
    }
}

impl Coordinator {
    pub(crate) async fn start() -> Self {
        let shared = Arc::new(Shared {
            seen: watch::Sender::new(Seen::default()),
            manners: watch::Sender::new(Manners::default()),
            session: Mutex::new(None),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Some(serve(listener, Arc::clone(&shared)));
        Self { shared, address, server }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends the server and every connection; `resume` serves the same address again.
    pub(crate) fn crash(&mut self) {
        if let Some(runtime) = self.server.take() {
            runtime.shutdown_background();
        }
        self.hang_up();
    }

    pub(crate) async fn resume(&mut self) {
        let bind = async {
            loop {
                // The crashed server's socket closes a moment after the crash.
                match TcpListener::bind(self.address).await {
                    Ok(listener) => return listener,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        let listener = tokio::time::timeout(DEADLINE, bind).await.unwrap();
        self.server = Some(serve(listener, Arc::clone(&self.shared)));
    }

    /// Ends the agent's session, nothing else.
    pub(crate) fn hang_up(&self) {
        self.shared.session.lock().unwrap().take();
    }

    pub(crate) fn behave(&self, change: impl FnOnce(&mut Manners)) {
        self.shared.manners.send_modify(change);
    }

    pub(crate) async fn order(&self, order: Order) {
        let session = self.shared.session.lock().unwrap().clone().unwrap();
        session.send(Ok(CoordinatorMessage { message: Some(order) })).await.unwrap();
    }

    pub(crate) fn seen(&self) -> Seen {
        self.shared.seen.borrow().clone()
    }

    /// Waits until `find` finds what it looks for in what was seen.
    pub(crate) async fn wait_for<T>(
        &self,
        what: &str,
        mut find: impl FnMut(&Seen) -> Option<T>,
    ) -> T {
        let mut seen = self.shared.seen.subscribe();
        let wait = async {
            loop {
                if let Some(found) = find(&seen.borrow_and_update()) {
                    return found;
                }
                seen.changed().await.unwrap();
            }
        };
        match tokio::time::timeout(DEADLINE, wait).await {
            Ok(found) => found,
            Err(_) => panic!("{what} did not happen; seen: {:#?}", self.seen()),
        }
    }

    pub(crate) async fn wait_for_registrations(&self, count: usize) {
        let find = |seen: &Seen| (seen.registrations().len() >= count).then_some(());
        self.wait_for("a registration", find).await;
    }

    /// Waits for the first exit of a rank.
    pub(crate) async fn wait_for_exit(&self, rank: u32) -> RankExited {
        let find = |seen: &Seen| seen.exits().into_iter().find(|exit| exit.rank == rank).cloned();
        self.wait_for("an exit", find).await
    }

    /// Waits until a rank's heartbeats satisfy `wanted`.
    pub(crate) async fn wait_for_status(
        &self,
        rank: u32,
        wanted: impl Fn(&RankStatus) -> bool,
    ) -> RankStatus {
        let find = |seen: &Seen| seen.status(rank).filter(|status| wanted(status)).cloned();
        self.wait_for("a status", find).await
    }

    /// Waits until the agent has taken in an acknowledgement and all it was told before.
    pub(crate) async fn wait_for_ack(&self) {
        self.wait_for("an acknowledgement", |seen| (seen.acks > 0).then_some(())).await;
        // Orders are obeyed in turn, and this one is answered.
        let nobody = Regenerate {
            job_id: "nobody's".into(),
            rank: NOBODY,
            generation: Some(Generation::new(1, 1)),
        };
        self.order(Order::Regenerate(nobody)).await;
        self.wait_for_exit(NOBODY).await;
    }

    /// Waits for `count` more heartbeats: so long nothing else need have happened.
    pub(crate) async fn wait_for_heartbeats(&self, count: usize) {
        let before = self.seen().heartbeats();
        let find = |seen: &Seen| (seen.heartbeats() >= before + count).then_some(());
        self.wait_for("a heartbeat", find).await;
    }
}

fn serve(listener: TcpListener, shared: Arc<Shared>) -> Runtime {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("fake-coordinator")
        .enable_all()
        .build()
        .unwrap();
    let listener = listener.into_std().unwrap();
    runtime.spawn(async move {
        let incoming = TcpListenerStream::new(TcpListener::from_std(listener).unwrap());
        let service = Service(shared);
        let router = tonic::transport::Server::builder()
            .add_service(FleetServer::new(service.clone()))
            .add_service(RanksServer::new(service));
        router.serve_with_incoming(incoming).await.unwrap();
    });
    runtime
}

#[derive(Debug, Clone)]
struct Service(Arc<Shared>);

#[tonic::async_trait]
impl Fleet for Service {
    type SessionStream = ReceiverStream<Result<CoordinatorMessage, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<AgentMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        if let Some(why) = self.0.manners.borrow().refuses_agents.clone() {
            return Err(Status::failed_precondition(why));
        }
        if self.0.manners.borrow().knows_another {
            self.0.seen.send_modify(|seen| seen.turned_away += 1);
            return Err(Status::already_exists("n0 is connected"));
        }
        let (sender, receiver) = mpsc::channel(64);
        *self.0.session.lock().unwrap() = Some(sender.clone());
        let weak = sender.downgrade();
        let mut reports = request.into_inner();
        let shared = Arc::clone(&self.0);
        tokio::spawn(async move {
            while let Ok(Some(message)) = reports.message().await {
                let report = message.message.unwrap();
                let answer = match &report {
                    Report::Register(_) => Some(Order::Registered(Registered {
                        heartbeat_interval_ms: HEARTBEAT_MS,
                        lease_ms: 5 * HEARTBEAT_MS,
                    })),
                    Report::RankExited(exit) if !shared.manners.borrow().withholds_acks => {
                        Some(Order::ExitAck(ExitAck { exit_id: exit.exit_id.clone() }))
                    }
                    _ => None,
                };
                // Before the answer: an agent whose last exit is acknowledged may be gone at once.
                shared.seen.send_modify(|seen| seen.reports.push(report));
                // Hung up: this session ends.
                let Some(sender) = weak.upgrade() else { return };
                if let Some(order) = answer {
                    let acks = usize::from(matches!(order, Order::ExitAck(_)));
                    drop(sender.send(Ok(CoordinatorMessage { message: Some(order) })).await);
                    shared.seen.send_modify(|seen| seen.acks += acks);
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn ship_logs(
        &self,
        request: Request<Streaming<LogBatch>>,
    ) -> Result<Response<LogAck>, Status> {
        let mut manners = self.0.manners.subscribe();
        manners.wait_for(|manners| !manners.takes_no_logs).await.unwrap();
        let mut batches = request.into_inner();
        while let Some(batch) = batches.message().await? {
            self.0.seen.send_modify(|seen| seen.lines.extend(batch.lines));
        }
        Ok(Response::new(LogAck {}))
    }
}

#[tonic::async_trait]
impl Ranks for Service {
    async fn join(&self, request: Request<JoinRequest>) -> Result<Response<JoinReply>, Status> {
        let request = request.into_inner();
        let generation = request.generation.unwrap();
        self.0.seen.send_modify(|seen| seen.joins.push(request));
        let mut manners = self.0.manners.subscribe();
        let manners =
            manners.wait_for(|manners| manners.joins.contains_key(&generation)).await.unwrap();
        manners.joins[&generation].clone().map(Response::new)
    }

    async fn report_shard(
        &self,
        _: Request<ReportShardRequest>,
    ) -> Result<Response<ReportShardReply>, Status> {
        Ok(Response::new(ReportShardReply {}))
    }

    async fn commit_checkpoint(
        &self,
        request: Request<CommitCheckpointRequest>,
    ) -> Result<Response<CommitCheckpointReply>, Status> {
        match request.into_inner().step {
            0 => Err(Status::aborted("g1.9 is current")),
            step => {
                let object =
                    StoredObject { name: "state.json".into(), size: step, ..Default::default() };
                Ok(Response::new(CommitCheckpointReply { objects: vec![object] }))
            }
        }
    }

    async fn checkpoint_published(
        &self,
        _: Request<CheckpointPublishedRequest>,
    ) -> Result<Response<CheckpointPublishedReply>, Status> {
        Ok(Response::new(CheckpointPublishedReply::default()))
    }

    async fn note(&self, _: Request<NoteRequest>) -> Result<Response<NoteReply>, Status> {
        Ok(Response::new(NoteReply {}))
    }

    async fn finish(&self, _: Request<FinishRequest>) -> Result<Response<FinishReply>, Status> {
        Err(Status::not_found("no job of this name"))
    }
}
