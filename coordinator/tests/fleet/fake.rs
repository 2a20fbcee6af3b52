//! A coordinator on free ports, fake agents, fake ranks.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ringmaster_coordinator::fleet::Config;
use ringmaster_coordinator::server::{Server, ServerOptions};
use ringmaster_manifest::ModelCatalogue;
use ringmaster_manifest::spec::TrainJob;
use ringmaster_proto::v1;
use ringmaster_proto::v1::agent_message::Message as FromAgent;
use ringmaster_proto::v1::coordinator_message::Message as ToAgent;
use ringmaster_proto::v1::fleet_client::FleetClient;
use ringmaster_proto::v1::jobs_client::JobsClient;
use ringmaster_proto::v1::ranks_client::RanksClient;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

/// Longer than anything here takes on a machine that works.
pub(crate) const DEADLINE: Duration = Duration::from_secs(120);

pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within {DEADLINE:?}"),
    }
}

/// Intervals under which only a test's own doing ends a lease.
pub(crate) fn patient() -> Config {
    let (heartbeat, lease) = (Duration::from_millis(50), DEADLINE * 4);
    Config { heartbeat, lease, session_grace: lease, ..Config::default() }
}

/// Intervals under which a silent agent is soon lost, and one that a busy machine holds up is not.
pub(crate) fn hasty() -> Config {
    Config { heartbeat: Duration::from_millis(50), lease: Duration::from_secs(3), ..patient() }
}

pub(crate) struct Coordinator {
    pub(crate) server: Server,
    pub(crate) jobs: JobsClient<Channel>,
}

impl Coordinator {
    pub(crate) async fn start(state_dir: &Path, intervals: Config) -> Self {
        let any = "127.0.0.1:0".parse().unwrap();
        let options = ServerOptions { intervals, ..ServerOptions::new(state_dir, any, any, any) };
        let server = Server::start(options).await.unwrap();
        let jobs =
            JobsClient::connect(format!("http://{}", server.addresses().people)).await.unwrap();
        Self { server, jobs }
    }

    pub(crate) fn fleet_url(&self) -> String {
        format!("http://{}", self.server.addresses().fleet)
    }

    pub(crate) async fn submit(&mut self, manifest: String) -> String {
        self.jobs.submit(submission(manifest)).await.unwrap().into_inner().job_id
    }

    pub(crate) async fn get(&mut self, job_id: &str) -> v1::Job {
        self.jobs.get(v1::GetRequest { job_id: job_id.to_owned() }).await.unwrap().into_inner()
    }

    /// Waits until the job is as wanted; returns it.
    pub(crate) async fn until(
        &mut self,
        job_id: &str,
        what: &str,
        wanted: impl Fn(&v1::Job) -> bool,
    ) -> v1::Job {
        let request = v1::WatchRequest { job_id: job_id.to_owned() };
        let mut updates = self.jobs.watch(request).await.unwrap().into_inner();
        let mut last = None;
        let found = async {
            while let Some(update) = updates.message().await.unwrap() {
                let job = update.job.unwrap();
                if wanted(&job) {
                    return job;
                }
                last = Some(job);
            }
            panic!("{job_id} ended before {what}: {last:?}");
        };
        within(what, found).await
    }

    pub(crate) async fn until_state(&mut self, job_id: &str, state: v1::JobState) -> v1::Job {
        self.until(job_id, state.as_str_name(), |job| job.state() == state).await
    }

    pub(crate) async fn events(&mut self, job_id: &str) -> Vec<v1::Event> {
        let request = v1::EventsRequest { job_id: job_id.to_owned() };
        self.jobs.events(request).await.unwrap().into_inner().events
    }

    pub(crate) async fn kinds(&mut self, job_id: &str) -> Vec<String> {
        self.events(job_id).await.into_iter().map(|event| event.kind).collect()
    }

    pub(crate) async fn cancel(&mut self, job_id: &str) -> v1::Job {
        let request = v1::CancelRequest { job_id: job_id.to_owned(), reason: "enough".to_owned() };
        self.jobs.cancel(request).await.unwrap().into_inner()
    }

    pub(crate) async fn pause(&mut self, job_id: &str) -> v1::Job {
        let request = v1::PauseRequest { job_id: job_id.to_owned(), reason: "lunch".to_owned() };
        self.jobs.pause(request).await.unwrap().into_inner()
    }

    pub(crate) async fn resume(&mut self, job_id: &str) -> v1::Job {
        let request = v1::ResumeRequest { job_id: job_id.to_owned(), from_step: None };
        self.jobs.resume(request).await.unwrap().into_inner()
    }

    pub(crate) async fn set_node(&mut self, node: &str, usable: bool) -> v1::Node {
        let (node, reason) = (node.to_owned(), "new disk".to_owned());
        let request = v1::SetNodeRequest { node, usable, reason };
        self.jobs.set_node(request).await.unwrap().into_inner()
    }

    pub(crate) async fn nodes(&mut self) -> Vec<v1::Node> {
        self.jobs.nodes(v1::NodesRequest {}).await.unwrap().into_inner().nodes
    }

    pub(crate) async fn ranks(&self) -> Rank {
        let client = RanksClient::connect(self.fleet_url()).await.unwrap();
        Rank { client }
    }
}

/// The name and configuration of the model that every job here has, which no coordinator knows.
fn model() -> (String, String) {
    ("tiny".to_owned(), include_str!("tiny.json").to_owned())
}

/// What hands a manifest in, once.
pub(crate) fn submission(manifest: String) -> v1::SubmitRequest {
    v1::SubmitRequest {
        request_id: format!("{:032x}", rand::random::<u128>()),
        manifest_yaml: manifest,
        file_name: "job.yaml".to_owned(),
        models: HashMap::from([model()]),
        ..Default::default()
    }
}

/// What a manifest means.
pub(crate) fn job(manifest: &str) -> TrainJob {
    let mut models = ModelCatalogue::default();
    let (name, text) = model();
    models.add(&name, &text).unwrap();
    ringmaster_manifest::parse(manifest, "job.yaml", Path::new("/"), &models).unwrap()
}

/// A manifest for `ranks` ranks, in the part of YAML that is JSON.
pub(crate) fn manifest(name: &str, ranks: u32) -> String {
    let text = include_str!("job.json");
    let mut manifest: serde_json::Value = serde_json::from_str(text).unwrap();
    manifest["metadata"]["name"] = name.into();
    manifest["spec"]["resources"]["ranks"] = ranks.into();
    manifest["spec"]["resources"]["min_ranks"] = ranks.into();
    format!("{manifest:#}")
}

/// A manifest for `min_ranks` to `ranks` ranks.
pub(crate) fn elastic(name: &str, min_ranks: u32, ranks: u32) -> String {
    with(&manifest(name, ranks), "/resources/min_ranks", min_ranks)
}

/// The same with another value at a JSON pointer into its `spec`.
pub(crate) fn with(manifest: &str, pointer: &str, value: impl Into<serde_json::Value>) -> String {
    let mut manifest: serde_json::Value = serde_json::from_str(manifest).unwrap();
    *manifest["spec"].pointer_mut(pointer).unwrap() = value.into();
    format!("{manifest:#}")
}

/// An agent that heartbeats by itself and otherwise does what the test says.
pub(crate) struct Agent {
    sender: mpsc::Sender<v1::AgentMessage>,
    inbound: Streaming<v1::CoordinatorMessage>,
    ranks: Arc<Mutex<Vec<v1::RankStatus>>>,
    beat: JoinHandle<()>,
    pub(crate) registered: v1::Registered,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.beat.abort();
    }
}

pub(crate) fn register(node: &str, slots: u32) -> v1::Register {
    v1::Register {
        node: node.to_owned(),
        slots,
        accelerator: "cpu".to_owned(),
        address: "127.0.0.1".to_owned(),
        pid: 100,
        cpus: slots * 2,
        ..Default::default()
    }
}

impl Agent {
    pub(crate) async fn connect(coordinator: &Coordinator, node: &str, slots: u32) -> Self {
        Self::register(coordinator, register(node, slots)).await
    }

    pub(crate) async fn register(coordinator: &Coordinator, register: v1::Register) -> Self {
        Self::try_register(coordinator, register).await.unwrap()
    }

    /// Why the coordinator does not let this agent in.
    pub(crate) async fn refused(coordinator: &Coordinator, register: v1::Register) -> Status {
        match Self::try_register(coordinator, register).await {
            Ok(_) => panic!("the agent is let in"),
            Err(status) => status,
        }
    }

    pub(crate) async fn try_register(
        coordinator: &Coordinator,
        register: v1::Register,
    ) -> Result<Self, Status> {
        let mut client = FleetClient::connect(coordinator.fleet_url()).await.unwrap();
        let (sender, outbound) = mpsc::channel(64);
        let first = v1::AgentMessage { message: Some(FromAgent::Register(register)) };
        sender.send(first).await.unwrap();
        let response = client.session(ReceiverStream::new(outbound)).await?;
        let mut inbound = response.into_inner();
        let answer = within("registration", inbound.message()).await?.unwrap();
        let Some(ToAgent::Registered(registered)) = answer.message else {
            panic!("the first message is not Registered: {answer:?}");
        };
        let ranks = Arc::<Mutex<Vec<v1::RankStatus>>>::default();
        let beat = tokio::spawn(beat(sender.clone(), Arc::clone(&ranks)));
        Ok(Self { sender, inbound, ranks, beat, registered })
    }

    /// Reports these ranks from now on.
    pub(crate) fn report(&self, ranks: Vec<v1::RankStatus>) {
        *self.ranks.lock().unwrap() = ranks;
    }

    pub(crate) async fn say(&self, message: FromAgent) {
        self.sender.send(v1::AgentMessage { message: Some(message) }).await.unwrap();
    }

    /// The next message, whatever it is.
    pub(crate) async fn next(&mut self) -> ToAgent {
        let message = within("a message to the agent", self.inbound.message()).await;
        message.unwrap().expect("the session is open").message.unwrap()
    }

    pub(crate) async fn start_rank(&mut self) -> v1::StartRank {
        match self.next().await {
            ToAgent::StartRank(start) => start,
            other => panic!("not StartRank: {other:?}"),
        }
    }

    pub(crate) async fn regenerate(&mut self) -> v1::Regenerate {
        match self.next().await {
            ToAgent::Regenerate(regenerate) => regenerate,
            other => panic!("not Regenerate: {other:?}"),
        }
    }

    pub(crate) async fn stop_rank(&mut self) -> v1::StopRank {
        match self.next().await {
            ToAgent::StopRank(stop) => stop,
            other => panic!("not StopRank: {other:?}"),
        }
    }

    /// Reports an exit and waits for its acknowledgement; returns what else came before it.
    pub(crate) async fn exit(&mut self, exited: v1::RankExited) -> Vec<ToAgent> {
        let message = v1::AgentMessage { message: Some(FromAgent::RankExited(exited.clone())) };
        self.sender.send(message).await.unwrap();
        let mut others = Vec::new();
        loop {
            match self.next().await {
                ToAgent::ExitAck(ack) if ack.exit_id == exited.exit_id => return others,
                other => others.push(other),
            }
        }
    }

    /// Reports an exit that another attempt would meet, too, and the same of that attempt: no other node could
    /// make it.
    pub(crate) async fn fail_twice(&mut self, start: &v1::StartRank, reason: &str) {
        self.exit(hopeless(start, reason)).await;
        let again = loop {
            match self.next().await {
                ToAgent::StartRank(again) if again.rank == start.rank => break again,
                _ => {}
            }
        };
        self.exit(hopeless(&again, reason)).await;
    }

    /// Stops heartbeats while the connection stays up, as a stopped process would.
    pub(crate) fn fall_silent(&self) {
        self.beat.abort();
    }

    /// The status with which the coordinator ends the session.
    pub(crate) async fn ended(&mut self) -> Status {
        loop {
            match within("the end of the session", self.inbound.message()).await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok("closed"),
                Err(status) => return status,
            }
        }
    }
}

async fn beat(sender: mpsc::Sender<v1::AgentMessage>, ranks: Arc<Mutex<Vec<v1::RankStatus>>>) {
    let mut interval = tokio::time::interval(Duration::from_millis(50));
    loop {
        interval.tick().await;
        let ranks = ranks.lock().unwrap().clone();
        let message = FromAgent::Heartbeat(v1::Heartbeat { ranks, sequence: 0 });
        if sender.send(v1::AgentMessage { message: Some(message) }).await.is_err() {
            return;
        }
    }
}

pub(crate) fn status(start: &v1::StartRank, step: u64) -> v1::RankStatus {
    v1::RankStatus {
        job_id: start.job_id.clone(),
        generation: start.generation,
        rank: start.rank,
        pid: 1000 + start.rank,
        step,
        phase: v1::Phase::Compute.into(),
        ..Default::default()
    }
}

/// What a survivor holds.
pub(crate) fn held(applied_step: u64) -> Option<v1::HeldState> {
    Some(v1::HeldState { applied_step, digest: 7, entered_ready: false, agreed: None })
}

/// The ranks of an agent that comes back, as it reports them.
pub(crate) fn running_ranks(
    starts: &[v1::StartRank],
    generation: v1::Generation,
) -> Vec<v1::RunningRank> {
    let ranks = starts.iter().map(|start| v1::RunningRank {
        job_id: start.job_id.clone(),
        generation: Some(generation),
        rank: start.rank,
        pid: 1000 + start.rank,
        started: start.generation,
    });
    ranks.collect()
}

pub(crate) fn exited(start: &v1::StartRank, code: i32) -> v1::RankExited {
    v1::RankExited {
        exit_id: format!("{}-{}-{:?}", start.job_id, start.rank, start.generation),
        job_id: start.job_id.clone(),
        generation: start.generation,
        rank: start.rank,
        code: Some(code),
        class: v1::ExitClass::Retry.into(),
        ..Default::default()
    }
}

/// An exit that every other attempt would meet, as the rank says.
pub(crate) fn hopeless(start: &v1::StartRank, reason: &str) -> v1::RankExited {
    v1::RankExited {
        reason: reason.to_owned(),
        class: v1::ExitClass::Job.into(),
        operation: "read manifest".to_owned(),
        cause: "manifest".to_owned(),
        ..exited(start, 78)
    }
}

pub(crate) fn killed(start: &v1::StartRank) -> v1::RankExited {
    v1::RankExited { code: None, signal: Some(9), ..exited(start, 0) }
}

/// What a rank would form its GPUs' communicator with; only rank 0's counts.
pub(crate) fn communicator_id(rank: u32, generation: v1::Generation) -> Vec<u8> {
    format!("made by rank {rank} for {generation}").into_bytes()
}

/// What ranks call.
#[derive(Clone)]
pub(crate) struct Rank {
    pub(crate) client: RanksClient<Channel>,
}

impl Rank {
    /// Starts to join; the reply comes once all have.
    pub(crate) fn join(
        &self,
        job_id: &str,
        generation: v1::Generation,
        rank: u32,
        held: Option<v1::HeldState>,
    ) -> JoinHandle<Result<v1::JoinReply, Status>> {
        self.join_at(job_id, generation, rank, held, format!("127.0.0.1:{}", 9000 + rank))
    }

    /// The same with another address for its peers.
    pub(crate) fn join_at(
        &self,
        job_id: &str,
        generation: v1::Generation,
        rank: u32,
        held: Option<v1::HeldState>,
        data_address: String,
    ) -> JoinHandle<Result<v1::JoinReply, Status>> {
        let request = request(job_id, generation, rank, held);
        self.ask(v1::JoinRequest { data_address, ..request })
    }

    /// The same by a rank that says how it left its last ring.
    pub(crate) fn leave(
        &self,
        job_id: &str,
        generation: v1::Generation,
        rank: u32,
        held: Option<v1::HeldState>,
        left: v1::RingLoss,
        port: u32,
    ) -> JoinHandle<Result<v1::JoinReply, Status>> {
        let data_address = format!("127.0.0.1:{port}");
        let request = request(job_id, generation, rank, held);
        self.ask(v1::JoinRequest { data_address, left: Some(left), ..request })
    }

    fn ask(&self, request: v1::JoinRequest) -> JoinHandle<Result<v1::JoinReply, Status>> {
        let mut client = self.client.clone();
        tokio::spawn(async move { Ok(client.join(request).await?.into_inner()) })
    }

    /// Joins these seats and returns what each was told, in the order given.
    pub(crate) async fn join_all(
        &self,
        job_id: &str,
        generation: v1::Generation,
        seats: &[(u32, Option<v1::HeldState>)],
    ) -> Vec<v1::JoinReply> {
        let joins: Vec<_> =
            seats.iter().map(|(seat, held)| self.join(job_id, generation, *seat, *held)).collect();
        let mut replies = Vec::new();
        for join in joins {
            replies.push(joined(join).await);
        }
        replies
    }

    /// Uploads, commits and publishes a checkpoint of a ring of `world_size`.
    pub(crate) async fn checkpoint(
        &self,
        job_id: &str,
        generation: v1::Generation,
        world_size: u32,
        step: u64,
    ) {
        let url = format!("file:///runs/step-{step}");
        self.checkpoint_at(job_id, generation, world_size, step, &url).await;
    }

    /// The same at this URL; returns what of the job's checkpoints somebody is about to read.
    pub(crate) async fn checkpoint_at(
        &self,
        job_id: &str,
        generation: v1::Generation,
        world_size: u32,
        step: u64,
        url: &str,
    ) -> Vec<String> {
        let mut client = self.client.clone();
        for rank in 0..world_size {
            let shard = v1::ReportShardRequest {
                job_id: job_id.to_owned(),
                generation: Some(generation),
                rank,
                step,
                ..Default::default()
            };
            client.report_shard(shard).await.unwrap();
        }
        let commit = v1::CommitCheckpointRequest {
            job_id: job_id.to_owned(),
            generation: Some(generation),
            step,
            digest: 7,
        };
        within("the grant", client.commit_checkpoint(commit)).await.unwrap();
        let published = v1::CheckpointPublishedRequest {
            job_id: job_id.to_owned(),
            generation: Some(generation),
            step,
            url: url.to_owned(),
        };
        client.checkpoint_published(published).await.unwrap().into_inner().in_use
    }

    pub(crate) async fn finish(&self, job_id: &str, generation: v1::Generation) {
        let request = v1::FinishRequest {
            job_id: job_id.to_owned(),
            generation: Some(generation),
            summary_json: "{\"steps\":3}".to_owned(),
        };
        self.client.clone().finish(request).await.unwrap();
    }
}

fn request(
    job_id: &str,
    generation: v1::Generation,
    rank: u32,
    held: Option<v1::HeldState>,
) -> v1::JoinRequest {
    v1::JoinRequest {
        job_id: job_id.to_owned(),
        generation: Some(generation),
        rank,
        data_address: format!("127.0.0.1:{}", 9000 + rank),
        held,
        numeric_plan: format!("{{\"of\":\"rank {rank} in {generation}\"}}"),
        communicator_id: communicator_id(rank, generation),
        left: None,
    }
}

pub(crate) async fn joined(join: JoinHandle<Result<v1::JoinReply, Status>>) -> v1::JoinReply {
    within("joining", join).await.unwrap().unwrap()
}

pub(crate) async fn refused(join: JoinHandle<Result<v1::JoinReply, Status>>) -> Status {
    within("the refusal", join).await.unwrap().unwrap_err()
}

/// Brings a job of two ranks on one agent to Running.
pub(crate) struct Running {
    pub(crate) job_id: String,
    pub(crate) generation: v1::Generation,
    pub(crate) starts: [v1::StartRank; 2],
    pub(crate) replies: [v1::JoinReply; 2],
}

pub(crate) async fn run_two(coordinator: &mut Coordinator, agent: &mut Agent) -> Running {
    let job_id = coordinator.submit(manifest("two", 2)).await;
    run_submitted(coordinator, agent, job_id).await
}

pub(crate) async fn run_submitted(
    coordinator: &mut Coordinator,
    agent: &mut Agent,
    job_id: String,
) -> Running {
    let starts = [agent.start_rank().await, agent.start_rank().await];
    agent.report(starts.iter().map(|start| status(start, 0)).collect());
    let generation = starts[0].generation.unwrap();
    let ranks = coordinator.ranks().await;
    let joins = [0, 1].map(|rank| ranks.join(&job_id, generation, rank, None));
    let [first, second] = joins;
    let replies = [joined(first).await, joined(second).await];
    coordinator.until_state(&job_id, v1::JobState::Running).await;
    Running { job_id, generation, starts, replies }
}
