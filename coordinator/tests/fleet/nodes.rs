//! Nodes that are drained, and nodes that are excluded for their faults.

use ringmaster_coordinator::fleet::Config;
use ringmaster_proto::v1;
use ringmaster_proto::v1::JobState;

use crate::fake::{
    Agent, Coordinator, elastic, exited, held, killed, manifest, patient, register, running_ranks,
    status, with,
};

/// A job of two ranks, the first on n0 and the second on n1, that trains.
struct Spread {
    coordinator: Coordinator,
    first: Agent,
    second: Agent,
    job_id: String,
    generation: v1::Generation,
    starts: [v1::StartRank; 2],
}

async fn spread(state_dir: &std::path::Path, min_ranks: u32) -> Spread {
    let mut coordinator = Coordinator::start(state_dir, patient()).await;
    let mut first = Agent::connect(&coordinator, "n0", 1).await;
    let mut second = Agent::connect(&coordinator, "n1", 1).await;
    let job_id = coordinator.submit(elastic("spread", min_ranks, 2)).await;
    let starts = [first.start_rank().await, second.start_rank().await];
    first.report(vec![status(&starts[0], 0)]);
    second.report(vec![status(&starts[1], 0)]);
    let generation = starts[0].generation.unwrap();
    let ranks = coordinator.ranks().await;
    ranks.join_all(&job_id, generation, &[(0, None), (1, None)]).await;
    coordinator.until_state(&job_id, JobState::Running).await;
    Spread { coordinator, first, second, job_id, generation, starts }
}

fn availability(nodes: &[v1::Node]) -> Vec<&str> {
    nodes.iter().map(|node| node.availability.as_str()).collect()
}

#[tokio::test]
async fn a_drained_node_takes_no_ranks_until_it_is_opened_also_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let agent = Agent::connect(&coordinator, "n0", 1).await;
    let unknown =
        v1::SetNodeRequest { node: "n9".to_owned(), usable: false, reason: String::new() };
    let refused = coordinator.jobs.set_node(unknown).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::NotFound);

    for _ in 0..2 {
        let node = coordinator.set_node("n0", false).await;
        assert_eq!((node.availability.as_str(), node.connected), ("drained: new disk", true));
    }
    let job_id = coordinator.submit(manifest("one", 1)).await;
    let closed = "needs 1 cpu slot; the connected nodes have 0 in all, and 1 on nodes that are \
                  drained or excluded, or whose worker cannot start";
    coordinator.until(&job_id, "waiting", |job| job.reason == closed).await;
    drop(agent);
    coordinator.server.shutdown().await.unwrap();

    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let nodes = coordinator.nodes().await;
    assert_eq!(availability(&nodes), ["drained: new disk"]);
    assert!(!nodes[0].connected);
    let mut agent = Agent::connect(&coordinator, "n0", 1).await;
    coordinator.until(&job_id, "waiting", |job| job.reason == closed).await;
    assert_eq!(coordinator.set_node("n0", true).await.availability, "ready");
    assert_eq!(agent.start_rank().await.job_id, job_id);
}

#[tokio::test]
async fn ranks_of_a_drained_node_move_at_the_next_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let mut spread = spread(folder.path(), 2).await;
    let Spread { coordinator, first, second, job_id, generation, starts } = &mut spread;
    let mut spare = Agent::connect(coordinator, "n2", 1).await;
    coordinator.set_node("n1", false).await;
    let kinds = coordinator.kinds(job_id).await;
    assert_eq!(kinds.last().unwrap(), "node_drained");
    assert_eq!(coordinator.get(job_id).await.state(), JobState::Running, "it trains on");

    let ranks = coordinator.ranks().await;
    ranks.checkpoint(job_id, *generation, 2, 2).await;
    let start = spare.start_rank().await;
    let next = start.generation.unwrap();
    assert_eq!(start.rank, 1);
    assert_eq!(first.regenerate().await.generation, Some(next));
    let stop = second.stop_rank().await;
    assert_eq!((stop.rank, stop.graceful), (1, false), "its state lives on in rank 0");
    second.exit(killed(&starts[1])).await;
    let replies = ranks.join_all(job_id, next, &[(0, held(2)), (1, None)]).await;
    assert_eq!(replies[1].source(), v1::StateSource::Live);
    let job = coordinator.until_state(job_id, JobState::Running).await;
    assert_eq!((job.recoveries, job.ranks[1].node.as_str()), (0, "n2"));
    let nodes = coordinator.nodes().await;
    assert_eq!((nodes[1].node.as_str(), nodes[1].free_slots), ("n1", 1));
}

#[tokio::test]
async fn an_elastic_job_shrinks_off_a_drained_node_and_grows_when_it_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let mut spread = spread(folder.path(), 1).await;
    let Spread { coordinator, first, second, job_id, generation, starts } = &mut spread;
    coordinator.set_node("n0", false).await;
    let ranks = coordinator.ranks().await;
    ranks.checkpoint(job_id, *generation, 2, 1).await;
    let smaller = second.regenerate().await.generation.unwrap();
    assert!(!first.stop_rank().await.graceful);
    first.exit(killed(&starts[0])).await;
    let replies = ranks.join_all(job_id, smaller, &[(1, held(2))]).await;
    assert_eq!((replies[0].rank, replies[0].world_size), (0, 1));

    coordinator.set_node("n0", true).await;
    ranks.checkpoint(job_id, smaller, 1, 2).await;
    let start = first.start_rank().await;
    assert_eq!((start.rank, second.regenerate().await.generation), (0, start.generation));
}

#[tokio::test]
async fn a_job_with_nowhere_to_go_stops_at_the_checkpoint_and_waits() {
    let folder = tempfile::tempdir().unwrap();
    let Spread { mut coordinator, mut first, mut second, job_id, generation, starts } =
        spread(folder.path(), 2).await;
    coordinator.set_node("n1", false).await;
    coordinator.ranks().await.checkpoint(&job_id, generation, 2, 2).await;
    assert!(first.stop_rank().await.graceful && second.stop_rank().await.graceful);

    // The coordinator is restarted in the middle of it.
    coordinator.server.shutdown().await.unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agents = Vec::new();
    for (start, node) in starts.iter().zip(["n0", "n1"]) {
        let running = running_ranks(std::slice::from_ref(start), generation);
        let back = v1::Register { running, ..register(node, 1) };
        let mut agent = Agent::register(&coordinator, back).await;
        if node == "n1" {
            assert!(agent.stop_rank().await.graceful);
        }
        agents.push(agent);
    }
    assert!(agents[0].stop_rank().await.graceful);
    for (start, agent) in starts.iter().zip(&mut agents) {
        agent.exit(exited(start, 0)).await;
    }
    let waits = |job: &v1::Job| {
        job.state() == JobState::Queued && job.reason.contains("1 on nodes that are drained")
    };
    coordinator.until(&job_id, "waiting", waits).await;
    coordinator.set_node("n1", true).await;
    let mut ranks = Vec::new();
    for agent in &mut agents {
        ranks.push(agent.start_rank().await.rank);
    }
    assert_eq!(ranks, [0, 1]);
}

/// Kills the job's rank on n0, again and again, and lets it join in between.
async fn fail_thrice(coordinator: &mut Coordinator, agent: &mut Agent, job_id: &str) {
    for fault in 0..3 {
        let start = agent.start_rank().await;
        let ranks = coordinator.ranks().await;
        ranks.join_all(job_id, start.generation.unwrap(), &[(0, None)]).await;
        agent.exit(killed(&start)).await;
        let job = coordinator.get(job_id).await;
        assert_eq!(job.recoveries, fault + 1);
    }
}

#[tokio::test]
async fn a_node_with_faults_in_a_row_is_excluded_and_the_job_goes_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut bad = Agent::connect(&coordinator, "n0", 1).await;
    let mut good = Agent::connect(&coordinator, "n1", 2).await;
    let job_id = coordinator.submit(manifest("one", 1)).await;
    fail_thrice(&mut coordinator, &mut bad, &job_id).await;
    let start = good.start_rank().await;
    assert_eq!(start.job_id, job_id);
    let nodes = coordinator.nodes().await;
    let why = "excluded: 3 faults in a row without a new step; the last: rank 0 of job";
    assert!(nodes[0].availability.starts_with(why), "{}", nodes[0].availability);
    let kinds = coordinator.kinds(&job_id).await;
    assert!(kinds.contains(&"node_excluded".to_owned()), "{kinds:?}");

    // It stays so over a restart, until somebody opens it.
    coordinator.server.shutdown().await.unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    assert!(coordinator.nodes().await[0].availability.starts_with(why));
    let mut bad = Agent::connect(&coordinator, "n0", 1).await;
    let next = coordinator.submit(manifest("next", 1)).await;
    coordinator.until(&next, "waiting", |job| job.reason.contains("drained or excluded")).await;
    coordinator.set_node("n0", true).await;
    assert_eq!(bad.start_rank().await.job_id, next);
}

#[tokio::test]
async fn a_new_step_ends_the_row_of_faults() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 1).await;
    let _other = Agent::connect(&coordinator, "n1", 2).await;
    let job_id = coordinator.submit(manifest("one", 1)).await;
    let ranks = coordinator.ranks().await;
    for round in 1..6 {
        let start = agent.start_rank().await;
        ranks.join_all(&job_id, start.generation.unwrap(), &[(0, None)]).await;
        agent.report(vec![status(&start, round)]);
        let stepped = |job: &v1::Job| job.ranks[0].step == round;
        coordinator.until(&job_id, "the step", stepped).await;
        agent.report(vec![]);
        agent.exit(killed(&start)).await;
    }
    agent.start_rank().await;
    assert_eq!(availability(&coordinator.nodes().await), ["ready", "ready"]);
}

#[tokio::test]
async fn the_last_node_is_not_excluded() {
    let folder = tempfile::tempdir().unwrap();
    let intervals = Config { exclude_after: 1, ..patient() };
    let mut coordinator = Coordinator::start(folder.path(), intervals).await;
    let mut agent = Agent::connect(&coordinator, "n0", 1).await;
    let endless = with(&manifest("one", 1), "/restart/max_without_progress", 9);
    let job_id = coordinator.submit(endless).await;
    fail_thrice(&mut coordinator, &mut agent, &job_id).await;
    let start = agent.start_rank().await;
    assert_eq!(availability(&coordinator.nodes().await), ["ready"]);

    // With another node beside it, the next fault excludes it.
    let mut other = Agent::connect(&coordinator, "n1", 1).await;
    agent.exit(killed(&start)).await;
    assert_eq!(other.start_rank().await.job_id, job_id);
    let nodes = coordinator.nodes().await;
    assert!(nodes[0].availability.starts_with("excluded: 4 faults"), "{}", nodes[0].availability);
}
