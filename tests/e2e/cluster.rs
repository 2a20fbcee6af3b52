//! The same job on a cluster: a coordinator, two agents, and the client's verbs.

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringmaster_tests::binaries::binaries;
use ringmaster_tests::job::Job;
use ringmaster_tests::processes::eventually;
use serde_json::Value;

/// A child process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        if !eventually(Duration::from_secs(10), || matches!(self.0.try_wait(), Ok(Some(_)))) {
            let _ = self.0.kill();
        }
        let _ = self.0.wait();
    }
}

struct Cluster {
    agents: Vec<Running>,
    _coordinator: Running,
    people: String,
    fleet: String,
    health: SocketAddr,
}

impl Cluster {
    fn start(job: &Job, agents: usize) -> Self {
        let state = job.folder().join("coordinator");
        let coordinator = Command::new(&binaries().ringmaster)
            .arg("coordinator")
            .arg("--state-dir")
            .arg(&state)
            .args(["--listen", "127.0.0.1:0", "--fleet-listen", "127.0.0.1:0"])
            .args(["--health-listen", "127.0.0.1:0"])
            .stdout(Stdio::null())
            .spawn()
            .map(Running)
            .unwrap();
        let addresses = addresses(&state);
        let address = |name: &str| addresses[name].as_str().unwrap().to_owned();
        let mut cluster = Self {
            agents: Vec::new(),
            _coordinator: coordinator,
            people: format!("http://{}", address("people").trim_start_matches("http://")),
            fleet: format!("http://{}", address("fleet").trim_start_matches("http://")),
            health: address("health").trim_start_matches("http://").parse().unwrap(),
        };
        for node in 0..agents {
            let agent = Command::new(&binaries().worker)
                .args(["agent", "--coordinator", &cluster.fleet, "--slots", "1"])
                .args(["--node", &format!("node-{node}")])
                .arg("--work-dir")
                .arg(job.folder().join(format!("node-{node}")))
                .arg("--runs-dir")
                .arg(job.folder().join("runs"))
                .envs(&job.env)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn();
            cluster.agents.push(Running(agent.unwrap()));
        }
        cluster
    }

    fn client(&self, job: &Job, args: &[&str]) -> Output {
        Command::new(&binaries().ringmaster)
            .args(args)
            .args(["--coordinator", &self.people])
            .envs(&job.env)
            .output()
            .unwrap()
    }

    fn json(&self, job: &Job, args: &[&str]) -> Value {
        let output = self.client(job, args);
        assert!(output.status.success(), "{args:?}: {}", job.transcript(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

fn addresses(state: &Path) -> Value {
    let file = state.join("addresses.json");
    let mut value = Value::Null;
    let there = eventually(Duration::from_secs(20), || {
        let text = std::fs::read_to_string(&file).unwrap_or_default();
        serde_json::from_str(&text).map(|found| value = found).is_ok()
    });
    assert!(there, "the coordinator wrote no {}", file.display());
    value
}

/// Submits and returns the job's id, the last word on the first line of the answer.
fn submit(cluster: &Cluster, job: &Job) -> String {
    let manifest = job.write_manifest();
    let output = cluster.client(job, &["submit", manifest.to_str().unwrap()]);
    let text = job.transcript(&output);
    assert!(output.status.success(), "{text}");
    text.split_whitespace()
        .map(|word| word.trim_matches(|c: char| !c.is_ascii_alphanumeric()))
        .find(|word| word.starts_with("tiny-") && word.len() == "tiny-".len() + 6)
        .unwrap_or_else(|| panic!("no job id in {text}"))
        .to_owned()
}

fn state(cluster: &Cluster, job: &Job, id: &str) -> String {
    let described = cluster.json(job, &["describe", id, "--json"]);
    described["state"].as_str().unwrap_or_default().to_lowercase()
}

#[test]
fn a_submitted_job_runs_on_two_agents_and_every_verb_shows_it() {
    let job = Job::new();
    let cluster = Cluster::start(&job, 2);
    let id = submit(&cluster, &job);
    let output = cluster.client(&job, &["logs", &id, "-f"]);
    let logs = job.transcript(&output);
    assert!(output.status.success() && logs.contains("step 20/20"), "{logs}");
    let ended =
        eventually(Duration::from_secs(20), || state(&cluster, &job, &id).contains("succeeded"));
    assert!(ended, "{}", cluster.json(&job, &["describe", &id, "--json"]));
    let described = cluster.json(&job, &["describe", &id, "--json"]).to_string();
    assert!(described.contains("node-0") || described.contains("node-1"), "{described}");
    let listed = cluster.json(&job, &["ls", "--all", "--json"]).to_string();
    assert!(listed.contains(&id), "{listed}");
    assert_eq!(job.latest_run().curve().len(), 20);
}

#[test]
fn a_cancelled_job_leaves_a_checkpoint_and_its_ranks_end() {
    let mut job = Job::new();
    job.steps = 100_000;
    let cluster = Cluster::start(&job, 2);
    let id = submit(&cluster, &job);
    let metrics = job.folder().join("runs").join(&id).join("metrics.jsonl");
    let training = eventually(Duration::from_secs(60), || {
        std::fs::read_to_string(&metrics).is_ok_and(|text| text.lines().count() > 2)
    });
    assert!(training, "{}", cluster.json(&job, &["describe", &id, "--json"]));
    let output = cluster.client(&job, &["cancel", &id]);
    assert!(output.status.success(), "{}", job.transcript(&output));
    let ended =
        eventually(Duration::from_secs(40), || state(&cluster, &job, &id).contains("cancelled"));
    assert!(ended, "{}", cluster.json(&job, &["describe", &id, "--json"]));
    let checkpoint = job.folder().join("checkpoints").join(&id).join("latest.json");
    assert!(checkpoint.exists(), "cancelling saves the state first");
}

#[test]
fn an_agent_killed_with_its_rank_is_replaced_by_the_other_node() {
    let mut job = Job::new();
    (job.steps, job.ranks) = (3000, 1);
    let mut cluster = Cluster::start(&job, 2);
    let id = submit(&cluster, &job);
    let metrics = job.folder().join("runs").join(&id).join("metrics.jsonl");
    let lines = || std::fs::read_to_string(&metrics).map_or(0, |text| text.lines().count());
    assert!(eventually(Duration::from_secs(60), || lines() > 5));
    let described = cluster.json(&job, &["describe", &id, "--json"]).to_string();
    let node = usize::from(described.contains("node-1"));
    let agent = &mut cluster.agents[node].0;
    kill(Pid::from_raw(agent.id() as i32), Signal::SIGKILL).unwrap();
    agent.wait().unwrap();
    let other = format!("node-{}", 1 - node);
    let moved = eventually(Duration::from_secs(60), || {
        let described = cluster.json(&job, &["describe", &id, "--json"]);
        described["ranks"].to_string().contains(&other)
    });
    assert!(moved, "{}", cluster.json(&job, &["describe", &id, "--json"]));
    let output = cluster.client(&job, &["cancel", &id]);
    assert!(output.status.success(), "{}", job.transcript(&output));
}

#[test]
fn the_coordinator_starts_within_a_second_answers_health_checks_and_has_no_libtorch() {
    // The fastest of a few starts: other tests share the machine.
    let start = |_| {
        let job = Job::new();
        let began = Instant::now();
        let cluster = Cluster::start(&job, 0);
        (began.elapsed(), cluster, job)
    };
    binaries();
    let (took, cluster, _job) = (0..5).map(start).min_by_key(|(took, ..)| *took).unwrap();
    assert!(took < Duration::from_secs(1), "{took:?}");

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let status = runtime.block_on(async {
        let url = format!("http://{}", cluster.health);
        let channel =
            tonic::transport::Endpoint::from_shared(url).unwrap().connect().await.unwrap();
        let mut client = tonic_health::pb::health_client::HealthClient::new(channel);
        let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
        client.check(request).await.unwrap().into_inner().status
    });
    assert_eq!(status, i32::from(tonic_health::pb::health_check_response::ServingStatus::Serving));

    let linked = Command::new("ldd").arg(&binaries().ringmaster).output().unwrap();
    let linked = String::from_utf8_lossy(&linked.stdout).into_owned();
    assert!(linked.contains("libc.so"), "{linked}");
    assert!(!linked.contains("torch") && !linked.contains("libc10"), "{linked}");
}
