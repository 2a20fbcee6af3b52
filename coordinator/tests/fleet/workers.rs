//! Nodes whose worker cannot start.

use ringmaster_proto::v1;
use ringmaster_proto::v1::JobState;
use ringmaster_proto::v1::agent_message::Message as FromAgent;

use crate::fake::{Agent, Coordinator, exited, killed, manifest, patient, register, status, with};

fn broken() -> v1::Worker {
    v1::Worker { unusable: "/opt/worker: no libtorch".to_owned(), ..v1::Worker::default() }
}

fn sound() -> v1::Worker {
    v1::Worker { version: "0.1.0 (build 1)".to_owned(), ..v1::Worker::default() }
}

/// The exit that an agent makes up for a rank it could not start.
fn never_started(start: &v1::StartRank) -> v1::RankExited {
    let reason = "cannot start the rank".to_owned();
    v1::RankExited { code: None, reason, for_the_worker: true, ..exited(start, 0) }
}

#[tokio::test]
async fn a_node_whose_worker_cannot_start_gets_no_rank_until_it_can() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let unusable = v1::Register { worker: Some(broken()), ..register("n0", 1) };
    let mut agent = Agent::register(&coordinator, unusable).await;
    let job_id = coordinator.submit(manifest("one", 1)).await;
    let waits = "needs 1 cpu slot; the connected nodes have 0 in all, and 1 on nodes that are drained or \
                 excluded, or whose worker cannot start";
    coordinator.until(&job_id, "waiting", |job| job.reason == waits).await;
    assert_eq!(coordinator.nodes().await[0].availability, "unusable: /opt/worker: no libtorch");

    agent.say(FromAgent::Worker(sound())).await;
    assert_eq!(agent.start_rank().await.job_id, job_id);
    let node = coordinator.nodes().await.remove(0);
    assert_eq!((node.availability.as_str(), node.worker), ("ready", Some(sound())));
}

/// It counted as the job's fault and as the node's. By the time the coordinator hears of it, the worker may
/// be well again.
#[tokio::test]
async fn a_rank_that_a_broken_worker_could_not_start_harms_no_job_and_starts_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut first = Agent::connect(&coordinator, "n0", 1).await;
    let without_restarts = with(&manifest("one", 1), "/restart/max_without_progress", 0);
    let job_id = coordinator.submit(without_restarts).await;
    let start = first.start_rank().await;
    let mut second = Agent::connect(&coordinator, "n1", 1).await;
    first.say(FromAgent::Worker(broken())).await;
    first.exit(never_started(&start)).await;

    let elsewhere = second.start_rank().await;
    assert_eq!((elsewhere.job_id.as_str(), elsewhere.rank), (job_id.as_str(), 0));
    assert!(coordinator.nodes().await[0].availability.starts_with("unusable"));
}

#[tokio::test]
async fn ranks_go_on_where_the_worker_has_been_replaced_by_a_broken_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 1).await;
    let job_id = coordinator.submit(manifest("one", 1)).await;
    let start = agent.start_rank().await;
    agent.report(vec![status(&start, 0)]);
    let generation = start.generation.unwrap();
    let ranks = coordinator.ranks().await;
    ranks.join_all(&job_id, generation, &[(0, None)]).await;
    coordinator.until_state(&job_id, JobState::Running).await;

    agent.say(FromAgent::Worker(broken())).await;
    let _elsewhere = Agent::connect(&coordinator, "n1", 1).await;
    ranks.checkpoint(&job_id, generation, 1, 2).await;
    assert_eq!(coordinator.get(&job_id).await.state(), JobState::Running);
    assert_eq!(agent.exit(killed(&start)).await, [], "it was told nothing");
}
