//! A coordinator on free ports, fake agents (`agent`), fake ranks (`rank`).

mod agent;
mod rank;

pub(crate) use agent::{Agent, exited, held, hopeless, killed, register, running_ranks, status};
pub(crate) use rank::{Rank, communicator_id, joined, refused};

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use ringmaster_coordinator::fleet::Config;
use ringmaster_coordinator::server::{Server, ServerOptions};
use ringmaster_manifest::ModelCatalogue;
use ringmaster_manifest::spec::TrainJob;
use ringmaster_proto::v1;
use ringmaster_proto::v1::jobs_client::JobsClient;
use ringmaster_proto::v1::ranks_client::RanksClient;
use tonic::transport::Channel;

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
    ("tiny".to_owned(), include_str!("../tiny.json").to_owned())
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
    let text = include_str!("../job.json");
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
