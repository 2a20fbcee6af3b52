//! What a hostile week does to a cluster: a review's five scenarios, and what is of their kind.

use std::time::Duration;

use ringmaster_coordinator::fleet::Config;
use ringmaster_proto::v1::coordinator_message::Message as ToAgent;
use ringmaster_proto::v1::{self, Generation, JobState, Phase, StateSource};

use crate::fake::{
    Agent, Coordinator, Rank, elastic, exited, hasty, held, job, joined, killed, manifest, patient,
    refused, register, run_two, running_ranks, status, with, within,
};
use crate::stored;

/// A node whose connection closed is lost almost at once.
fn brief() -> Config {
    Config { session_grace: Duration::from_millis(100), ..patient() }
}

/// A job of one to two ranks that trains on n0 and n1.
struct Pair {
    coordinator: Coordinator,
    ranks: Rank,
    stays: Agent,
    goes: Agent,
    manifest: String,
    job_id: String,
    starts: [v1::StartRank; 2],
}

impl Pair {
    async fn train(state: &std::path::Path, runs: &std::path::Path) -> Self {
        let mut coordinator = Coordinator::start(state, brief()).await;
        let mut stays = Agent::connect(&coordinator, "n0", 1).await;
        let mut goes = Agent::connect(&coordinator, "n1", 1).await;
        let uri = format!("file://{}", runs.display());
        let manifest = with(&elastic("pair", 1, 2), "/checkpoint/uri", uri);
        let manifest = with(&manifest, "/schedule/steps", 1000);
        let job_id = coordinator.submit(manifest.clone()).await;
        let starts = [stays.start_rank().await, goes.start_rank().await];
        stays.report(vec![status(&starts[0], 0)]);
        goes.report(vec![status(&starts[1], 0)]);
        let ranks = coordinator.ranks().await;
        ranks.join_all(&job_id, starts[0].generation.unwrap(), &[(0, None), (1, None)]).await;
        coordinator.until_state(&job_id, JobState::Running).await;
        Self { coordinator, ranks, stays, goes, manifest, job_id, starts }
    }

    fn first(&self) -> Generation {
        self.starts[0].generation.unwrap()
    }

    /// n1 is cut off with its rank, which lives on, and n0 trains alone.
    async fn cut_off(&mut self) -> Generation {
        let register = v1::Register { accelerator: "other".to_owned(), ..register("n2", 1) };
        self.goes = Agent::register(&self.coordinator, register).await;
        let generation = self.stays.regenerate().await.generation.unwrap();
        joined(self.ranks.join(&self.job_id, generation, 0, held(300))).await;
        self.coordinator.until_state(&self.job_id, JobState::Running).await;
        generation
    }

    /// n1 comes back with its rank while a ring is being formed that the fresh rank of n0 is to be in.
    async fn come_back(&mut self, forming: Generation) -> [v1::JoinReply; 2] {
        let running = running_ranks(&self.starts[1..], self.first());
        let back = v1::Register { running, ..register("n1", 1) };
        self.goes = Agent::register(&self.coordinator, back).await;
        let told = self.goes.regenerate().await;
        assert_eq!((told.rank, told.generation), (1, Some(forming)));
        let seats = [(0, None), (1, held(300))];
        let replies = self.ranks.join_all(&self.job_id, forming, &seats).await;
        replies.try_into().unwrap()
    }
}

/// H1 without a roll-back.
#[tokio::test]
async fn a_rank_that_was_cut_off_does_not_take_its_job_behind_its_own_checkpoint() {
    let (state, runs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut pair = Pair::train(state.path(), runs.path()).await;
    let alone = pair.cut_off().await;
    pair.ranks.checkpoint(&pair.job_id, alone, 1, 480).await;
    pair.stays.report(Vec::new());
    let exit = v1::RankExited { generation: Some(alone), ..killed(&pair.starts[0]) };
    pair.stays.exit(exit).await;
    let forming = pair.stays.start_rank().await.generation.unwrap();
    for reply in pair.come_back(forming).await {
        assert_eq!(reply.source(), StateSource::Stored, "step 300 is behind step 480");
    }
}

/// H1, scenario s1.
#[tokio::test]
async fn a_rank_that_was_cut_off_does_not_undo_a_roll_back() {
    let (state, runs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut pair = Pair::train(state.path(), runs.path()).await;
    let (first, job_id) = (pair.first(), pair.job_id.clone());
    let url = stored::store(runs.path(), &job(&pair.manifest), &job_id, first, 200).await;
    pair.ranks.checkpoint_at(&job_id, first, 2, 200, &url).await;
    let alone = pair.cut_off().await;

    let request = v1::ResumeRequest { job_id: job_id.clone(), from_step: Some(200) };
    within("the answer", pair.coordinator.jobs.resume(request)).await.unwrap();
    assert!(pair.stays.stop_rank().await.graceful);
    pair.stays.report(Vec::new());
    let exit = v1::RankExited { generation: Some(alone), ..exited(&pair.starts[0], 0) };
    pair.stays.exit(exit).await;
    let forming = pair.stays.start_rank().await.generation.unwrap();
    for reply in pair.come_back(forming).await {
        assert_eq!(reply.source(), StateSource::Stored, "step 300 was given up");
        assert_eq!(reply.rolled_back_to, url);
    }

    // Nor later, when the job has saved anew and the roll-back is no longer pending.
    let newer = stored::store(runs.path(), &job(&pair.manifest), &job_id, forming, 210).await;
    pair.ranks.checkpoint_at(&job_id, forming, 2, 210, &newer).await;
    let told = pair.coordinator.get(&job_id).await;
    assert_eq!(told.rolled_back_to, "");
}

/// H5, scenario s2: nobody dies, and the ring breaks each time.
#[tokio::test]
async fn a_ring_that_breaks_again_and_again_uses_up_the_restart_budget() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let manifest = with(&manifest("two", 2), "/restart/max_without_progress", 2);
    let job_id = coordinator.submit(manifest).await;
    let starts = [agent.start_rank().await, agent.start_rank().await];
    agent.report(starts.iter().map(|start| status(start, 0)).collect());
    let ranks = coordinator.ranks().await;
    let mut generation = starts[0].generation.unwrap();
    let mut job = coordinator.get(&job_id).await;
    for round in 0..9 {
        ranks.join_all(&job_id, generation, &[(0, held(1)), (1, held(1))]).await;
        // No peer was reached: each joins again, at another port.
        let again = ranks.join_at(&job_id, generation, 0, held(1), format!("127.0.0.1:{round}"));
        refused(again).await;
        job = coordinator.get(&job_id).await;
        if job.state() == JobState::Failed {
            break;
        }
        generation = job.generation.unwrap();
    }
    assert_eq!((job.state(), job.recoveries), (JobState::Failed, 2), "nine rings broke: {job:?}");
    assert!(job.reason.contains("restart.max_without_progress"), "{}", job.reason);
}

/// M1, scenario s3.
#[tokio::test]
async fn a_seat_that_ended_well_takes_part_in_the_ring_that_follows_a_broken_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    agent.report(vec![status(&running.starts[1], 1)]);
    // Told to stop by a signal, it left after the others had been told; the ring broke before they could.
    agent.exit(exited(&running.starts[0], 0)).await;
    let ranks = coordinator.ranks().await;
    let elsewhere = "127.0.0.1:9999".to_owned();
    refused(ranks.join_at(&running.job_id, running.generation, 1, held(1), elsewhere)).await;
    let (mut started, mut told) = (None, None);
    while started.is_none() || told.is_none() {
        match agent.next().await {
            ToAgent::StartRank(start) => started = Some(start.rank),
            ToAgent::Regenerate(order) => told = Some(order.rank),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((started, told), (Some(0), Some(1)));
}

/// A lease, after which a kill that came to nothing counts as one.
fn hasty_and_impatient() -> Config {
    let mut config = hasty();
    let short = Duration::from_secs(2);
    config.deadlines.first_step = short;
    config.deadlines.set(Phase::Compute, short);
    config
}

fn hangs(start: &v1::StartRank) -> v1::RankStatus {
    v1::RankStatus { collective_sequence: 11, ..status(start, 7) }
}

fn waits(start: &v1::StartRank) -> v1::RankStatus {
    let phase = Phase::Collective.into();
    v1::RankStatus { phase, collective_sequence: 12, ..status(start, 7) }
}

/// H3, scenario s4.
#[tokio::test]
async fn a_rank_that_no_signal_ends_costs_its_slot_and_not_its_job() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), hasty_and_impatient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    let mut spare = Agent::connect(&coordinator, "n1", 1).await;
    agent.report(vec![waits(&running.starts[0]), hangs(&running.starts[1])]);
    let stop = agent.stop_rank().await;
    assert_eq!((stop.rank, stop.graceful), (1, false));
    // Nothing comes of it: the process stands in the kernel.
    let start = spare.start_rank().await;
    assert_eq!(start.rank, 1);
    assert!(start.generation.unwrap() > running.generation);
    let nodes = coordinator.nodes().await;
    let free: Vec<(&str, u32)> =
        nodes.iter().map(|node| (node.node.as_str(), node.free_slots)).collect();
    assert_eq!(free, [("n0", 0), ("n1", 0)], "its slot is not given to another");

    // It has gone after all.
    agent.exit(killed(&running.starts[1])).await;
    let free: Vec<u32> = coordinator.nodes().await.iter().map(|node| node.free_slots).collect();
    assert_eq!(free, [1, 0], "its slot is free again");
}

/// H3: people get rid of the job all the same.
#[tokio::test]
async fn a_job_whose_rank_no_signal_ends_can_be_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { grace: Duration::from_millis(200), ..hasty_and_impatient() };
    let mut coordinator = Coordinator::start(folder.path(), config).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    agent.report(vec![waits(&running.starts[0]), hangs(&running.starts[1])]);
    coordinator.cancel(&running.job_id).await;
    while agent.stop_rank().await.graceful {}
    agent.report(vec![hangs(&running.starts[1])]);
    agent.exit(killed(&running.starts[0])).await;
    coordinator.until_state(&running.job_id, JobState::Cancelled).await;
}

/// M2, scenario s5.
#[tokio::test]
async fn a_part_that_could_not_be_stored_is_still_known_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    let shard = |rank: u32, failure: &str| v1::ReportShardRequest {
        job_id: running.job_id.clone(),
        generation: Some(running.generation),
        rank,
        step: 2,
        objects: Vec::new(),
        failure: failure.to_owned(),
    };
    let ranks = coordinator.ranks().await;
    ranks.client.clone().report_shard(shard(1, "the store is away")).await.unwrap();
    coordinator.server.shutdown().await.unwrap();

    let coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut client = coordinator.ranks().await.client;
    client.report_shard(shard(0, "")).await.unwrap();
    let commit = v1::CommitCheckpointRequest {
        job_id: running.job_id.clone(),
        generation: Some(running.generation),
        step: 2,
        digest: 7,
    };
    let refused = within("the refusal", client.commit_checkpoint(commit)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert!(refused.message().contains("the store is away"), "{refused}");
}

/// M10.
#[tokio::test]
async fn a_rank_that_lingers_after_its_run_was_finished_is_ended_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    coordinator.ranks().await.finish(&running.job_id, running.generation).await;
    agent.report(vec![status(&running.starts[1], 3)]);
    agent.exit(exited(&running.starts[0], 0)).await;
    coordinator.server.shutdown().await.unwrap();

    let config = Config { grace: Duration::from_millis(200), ..patient() };
    let mut coordinator = Coordinator::start(folder.path(), config).await;
    let running_ranks = running_ranks(&running.starts[1..], running.generation);
    let back = v1::Register { running: running_ranks, ..register("n0", 2) };
    let mut agent = Agent::register(&coordinator, back).await;
    agent.report(vec![status(&running.starts[1], 3)]);
    let stop = agent.stop_rank().await;
    assert_eq!((stop.rank, stop.graceful), (1, false));
    agent.exit(killed(&running.starts[1])).await;
    coordinator.until_state(&running.job_id, JobState::Succeeded).await;
}

/// H2: a job that trains grows onto a node that cannot run it.
#[tokio::test]
async fn a_node_that_cannot_run_a_rank_does_not_fail_a_job_that_trains_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 1).await;
    let manifest = with(&elastic("two", 1, 2), "/schedule/steps", 1000);
    let job_id = coordinator.submit(manifest).await;
    let start = agent.start_rank().await;
    agent.report(vec![status(&start, 1)]);
    let ranks = coordinator.ranks().await;
    let first = start.generation.unwrap();
    joined(ranks.join(&job_id, first, 0, None)).await;
    coordinator.until_state(&job_id, JobState::Running).await;
    let mut broken = Agent::connect(&coordinator, "n1", 1).await;
    ranks.checkpoint(&job_id, first, 1, 2).await;
    let grown = agent.regenerate().await.generation.unwrap();
    let start = broken.start_rank().await;

    let exit = node_fault(&start, "libtorch finds no CUDA device; check the driver");
    assert_eq!(broken.exit(exit).await, []);
    let next = agent.regenerate().await.generation.unwrap();
    assert!(next > grown);
    joined(ranks.join(&job_id, next, 0, held(2))).await;
    let job = coordinator.until_state(&job_id, JobState::Running).await;
    assert_eq!((job.world_size, job.ranks[1].node.as_str()), (1, ""));
    // Not even at the next checkpoint.
    ranks.checkpoint(&job_id, next, 1, 4).await;
    let job = coordinator.get(&job_id).await;
    assert_eq!((job.state(), job.generation), (JobState::Running, Some(next)));
}

/// An exit for which the rank's node is to blame, as the rank says.
fn node_fault(start: &v1::StartRank, reason: &str) -> v1::RankExited {
    v1::RankExited {
        reason: reason.to_owned(),
        class: v1::ExitClass::Node.into(),
        operation: "device".to_owned(),
        cause: "missing".to_owned(),
        ..exited(start, 77)
    }
}

/// The order was lost with the session, and was not given again: the rank was given up as if no signal ended it,
/// and lived on.
#[tokio::test]
async fn an_order_to_kill_that_is_lost_with_its_session_is_given_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), hasty_and_impatient()).await;
    let of_one = || v1::Register { instance: "a1".to_owned(), ..register("n0", 2) };
    let mut agent = Agent::register(&coordinator, of_one()).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    agent.report(vec![waits(&running.starts[0]), hangs(&running.starts[1])]);
    assert_eq!(agent.stop_rank().await.rank, 1);
    let register =
        v1::Register { running: running_ranks(&running.starts, running.generation), ..of_one() };
    let mut again = Agent::register(&coordinator, register.clone()).await;
    let stop = again.stop_rank().await;
    assert_eq!((stop.rank, stop.graceful), (1, false));

    // Also once it has been given up.
    again.report(vec![waits(&running.starts[0])]);
    coordinator.until(&running.job_id, "the loss", |job| job.recoveries == 1).await;
    let mut again = Agent::register(&coordinator, register).await;
    let stop = loop {
        match again.next().await {
            ToAgent::StopRank(stop) => break stop,
            ToAgent::Regenerate(regenerate) => assert_eq!(regenerate.rank, 0),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((stop.rank, stop.graceful), (1, false));
    assert!(stop.reason.contains("has not ended"), "{}", stop.reason);
}
