//! The same job on a cluster: a coordinator, two agents, and the client's verbs.

use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use ringmaster_tests::binaries::binaries;
use ringmaster_tests::cluster::Cluster;
use ringmaster_tests::job::{Job, Run};
use ringmaster_tests::processes::{LIMIT, eventually};
use ringmaster_tests::timing::fastest_of;

#[test]
fn a_submitted_job_runs_on_two_agents_and_every_verb_shows_it() {
    let job = Job::new();
    let cluster = Cluster::start(&job, &[1, 1]);
    let id = cluster.submit(&job);
    let output = cluster.client(&job, &["logs", &id, "-f"]);
    let logs = job.transcript(&output);
    assert!(output.status.success() && logs.contains("step 20/20"), "{logs}");
    let ended = eventually(LIMIT, || cluster.state(&job, &id).contains("succeeded"));
    assert!(ended, "{}", cluster.describe(&job, &id));
    let described = cluster.describe(&job, &id).to_string();
    assert!(described.contains("node-0") || described.contains("node-1"), "{described}");
    let listed = cluster.json(&job, &["ls", "--all", "--json"]).to_string();
    assert!(listed.contains(&id), "{listed}");
    assert_eq!(job.latest_run().curve().len(), 20);
}

#[test]
fn a_cancelled_job_leaves_a_checkpoint_and_its_ranks_end() {
    let mut job = Job::new();
    job.steps = 100_000;
    let cluster = Cluster::start(&job, &[1, 1]);
    let id = cluster.submit(&job);
    let metrics = job.folder().join("runs").join(&id).join("metrics.jsonl");
    let training = eventually(LIMIT, || {
        std::fs::read_to_string(&metrics).is_ok_and(|text| text.lines().count() > 2)
    });
    assert!(training, "{}", cluster.describe(&job, &id));
    let output = cluster.client(&job, &["cancel", &id]);
    assert!(output.status.success(), "{}", job.transcript(&output));
    let ended = eventually(LIMIT, || cluster.state(&job, &id).contains("cancelled"));
    assert!(ended, "{}", cluster.describe(&job, &id));
    let checkpoint = job.folder().join("checkpoints").join(&id).join("latest.json");
    assert!(checkpoint.exists(), "cancelling saves the state first");
}

#[test]
fn an_agent_killed_with_its_rank_is_replaced_by_the_other_node() {
    let mut job = Job::new();
    (job.steps, job.ranks) = (3000, 1);
    let mut cluster = Cluster::start(&job, &[1, 1]);
    let id = cluster.submit(&job);
    let metrics = job.folder().join("runs").join(&id).join("metrics.jsonl");
    let lines = || std::fs::read_to_string(&metrics).map_or(0, |text| text.lines().count());
    assert!(eventually(LIMIT, || lines() > 5));
    let described = cluster.describe(&job, &id).to_string();
    let node = usize::from(described.contains("node-1"));
    cluster.kill_agent(node);
    let other = format!("node-{}", 1 - node);
    let moved = eventually(LIMIT, || {
        let described = cluster.describe(&job, &id);
        described["ranks"].to_string().contains(&other)
    });
    assert!(moved, "{}", cluster.describe(&job, &id));
    let output = cluster.client(&job, &["cancel", &id]);
    assert!(output.status.success(), "{}", job.transcript(&output));
}

#[test]
fn a_coordinator_that_ends_and_comes_back_costs_its_job_no_step() {
    let mut job = Job::new();
    (job.steps, job.when_busy) = (100_000, "skip");
    let mut cluster = Cluster::start(&job, &[1, 1]);
    let id = cluster.submit(&job);
    let run = Run { folder: job.folder().join("runs").join(&id) };
    let reached = || cluster.describe(&job, &id)["metrics"]["step"].as_u64() > Some(5);
    assert!(eventually(LIMIT, reached), "{:#?}", cluster.events(&job, &id));
    let pids = [0, 1].map(|rank| cluster.rank_pid(&job, &id, rank));
    for (round, signal) in [Signal::SIGTERM, Signal::SIGKILL].into_iter().enumerate() {
        cluster.coordinator.signal(signal);
        let code = cluster.coordinator.wait();
        assert_eq!(code, (signal == Signal::SIGTERM).then_some(0));
        let before = run.curve().len();
        let steps_on = || run.curve().len() > before + 10;
        assert!(eventually(LIMIT, steps_on), "no step without a coordinator");
        cluster.restart_coordinator(&job);
        let back = || {
            let output = cluster.client(&job, &["events", &id, "--json"]);
            output.status.success()
                && String::from_utf8_lossy(&output.stdout).matches("\"reattached\"").count() > round
        };
        assert!(eventually(LIMIT, back), "{:#?}", cluster.events(&job, &id));
        // One agent may be back before the other; until it has said so its rank has no process here.
        let now = || [0, 1].map(|rank| cluster.rank_pid(&job, &id, rank));
        assert!(eventually(LIMIT, || !now().contains(&0)), "{}", cluster.describe(&job, &id));
        assert_eq!(now(), pids, "the same processes");
    }
    let before = run.curve().len();
    assert!(eventually(LIMIT, || run.curve().len() > before + 10));
    let steps: Vec<u64> = run.curve().iter().map(|(step, ..)| *step).collect();
    assert_eq!(steps, (1..=steps.len() as u64).collect::<Vec<u64>>());
    let described = cluster.describe(&job, &id);
    assert_eq!((&described["recoveries"], &described["state"]), (&0.into(), &"running".into()));
}

#[test]
fn the_coordinator_starts_within_a_second_answers_health_checks_and_has_no_libtorch() {
    binaries();
    let mut running = None;
    let took = fastest_of(Duration::from_secs(1), || {
        let job = Job::new();
        let began = Instant::now();
        let cluster = Cluster::start(&job, &[]);
        let took = began.elapsed();
        running = Some((cluster, job));
        took
    });
    assert!(took < Duration::from_secs(1), "{took:?}");
    let (cluster, _job) = running.unwrap();

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
