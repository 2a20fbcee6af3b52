//! Losing ranks and nodes.

use std::time::Duration;

use ringmaster_coordinator::fleet::Config;
use ringmaster_proto::v1;
use ringmaster_proto::v1::JobState;

use crate::fake::{
    Agent, Coordinator, communicator_id, exited, hasty, hopeless, joined, killed, manifest,
    patient, refused, register, run_submitted, run_two, running_ranks, status, with,
};

#[tokio::test]
async fn a_stale_generation_is_refused_and_the_newer_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    agent.exit(killed(&running.starts[1])).await;
    let current = agent.regenerate().await.generation.unwrap();
    agent.start_rank().await;

    let ranks = coordinator.ranks().await;
    let status = refused(ranks.join(&running.job_id, running.generation, 0, None)).await;
    assert_eq!(status.code(), tonic::Code::Aborted);
    assert!(status.message().contains(&current.to_string()), "{status}");
    let again = agent.regenerate().await;
    assert_eq!(again.generation, Some(current), "who asks for the old one is told of the new one");
}

#[tokio::test]
async fn a_join_that_waits_is_refused_when_its_generation_is_superseded() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let job_id = coordinator.submit(manifest("two", 2)).await;
    let starts = [agent.start_rank().await, agent.start_rank().await];
    let generation = starts[0].generation.unwrap();
    let ranks = coordinator.ranks().await;
    let waiting = ranks.join(&job_id, generation, 0, None);
    let joined_one = |job: &v1::Job| job.reason.starts_with("1 of 2 ranks");
    coordinator.until(&job_id, "the first join", joined_one).await;
    agent.exit(killed(&starts[1])).await;
    assert_eq!(refused(waiting).await.code(), tonic::Code::Aborted);
}

#[tokio::test]
async fn an_exit_that_is_reported_twice_is_one_loss() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    agent.exit(killed(&running.starts[1])).await;
    agent.regenerate().await;
    agent.start_rank().await;
    assert_eq!(agent.exit(killed(&running.starts[1])).await, []);
    let job = coordinator.get(&running.job_id).await;
    assert_eq!((job.recoveries, job.state()), (1, JobState::Recovering));
}

#[tokio::test]
async fn a_survivor_that_had_stopped_in_the_old_ring_is_started_again_in_the_new_one() {
    // Seed 664 of the simulation: an agent that left had its rank stop, just before the job's other
    // node was lost. The rank counted as done in a ring that was never formed, for ever.
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    agent.exit(killed(&running.starts[1])).await;
    agent.regenerate().await;
    let second = agent.start_rank().await;
    agent.exit(exited(&running.starts[0], 0)).await;
    let third = agent.start_rank().await;
    assert!(third.generation > second.generation);
    assert_eq!((third.rank, agent.regenerate().await.rank), (0, 1));
    let ranks = coordinator.ranks().await;
    let generation = third.generation.unwrap();
    ranks.join_all(&running.job_id, generation, &[(0, None), (1, None)]).await;
    coordinator.until_state(&running.job_id, JobState::Running).await;
}

#[tokio::test]
async fn a_survivor_that_dies_too_opens_yet_another_generation() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    agent.exit(killed(&running.starts[1])).await;
    agent.regenerate().await;
    let second = agent.start_rank().await;
    agent.exit(killed(&running.starts[0])).await;
    let third = agent.start_rank().await;
    assert!(third.generation > second.generation);
    assert_eq!((third.rank, agent.regenerate().await.rank), (0, 1));
    let ranks = coordinator.ranks().await;
    let generation = third.generation.unwrap();
    let joins = [0, 1].map(|rank| ranks.join(&running.job_id, generation, rank, None));
    for join in joins {
        assert_eq!(joined(join).await.source(), v1::StateSource::Stored);
    }
}

#[tokio::test]
async fn every_rank_receives_rank_0s_communicator_id_of_its_own_generation() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    let first = communicator_id(0, running.generation);
    for reply in &running.replies {
        assert_eq!(reply.communicator_id, first);
    }

    // Rank 0 has joined the second generation, with an id, when rank 1 dies once more.
    agent.exit(killed(&running.starts[1])).await;
    let second = agent.regenerate().await.generation.unwrap();
    let start = agent.start_rank().await;
    let ranks = coordinator.ranks().await;
    let waiting = ranks.join(&running.job_id, second, 0, None);
    let joined_one = |job: &v1::Job| job.reason.starts_with("1 of 2 ranks");
    coordinator.until(&running.job_id, "the first join", joined_one).await;
    agent.exit(killed(&start)).await;
    assert_eq!(refused(waiting).await.code(), tonic::Code::Aborted);

    let third = agent.regenerate().await.generation.unwrap();
    agent.start_rank().await;
    let joins = [1, 0].map(|rank| ranks.join(&running.job_id, third, rank, None));
    for join in joins {
        assert_eq!(joined(join).await.communicator_id, communicator_id(0, third));
    }
    // An answer that was lost on the way is the same when it is asked for again.
    let again = joined(ranks.join(&running.job_id, third, 1, None)).await;
    assert_eq!(again.communicator_id, communicator_id(0, third));
}

#[tokio::test]
async fn recoveries_without_a_new_step_are_counted_and_the_job_fails() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 1).await;
    let manifest = with(&manifest("one", 1), "/restart/max_without_progress", 2);
    let job_id = coordinator.submit(manifest).await;
    let ranks = coordinator.ranks().await;

    // A new step resets the count.
    let mut start = agent.start_rank().await;
    for round in 0..4 {
        let generation = start.generation.unwrap();
        joined(ranks.join(&job_id, generation, 0, None)).await;
        agent.report(vec![status(&start, round + 1)]);
        let stepped = |job: &v1::Job| job.ranks[0].step == round + 1;
        coordinator.until(&job_id, "the step", stepped).await;
        agent.report(vec![]);
        agent.exit(killed(&start)).await;
        start = agent.start_rank().await;
    }
    // The fourth loss above was the first recovery without a step since; one more is allowed.
    agent.exit(killed(&start)).await;
    start = agent.start_rank().await;
    agent.exit(killed(&start)).await;
    let job = coordinator.until_state(&job_id, JobState::Failed).await;
    assert!(job.reason.contains("restart.max_without_progress"), "{}", job.reason);
    assert_eq!(job.recoveries, 5);
}

#[tokio::test]
async fn a_silent_agent_loses_its_ranks_which_then_run_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), hasty()).await;
    let mut silent = Agent::connect(&coordinator, "n0", 1).await;
    let mut steady = Agent::connect(&coordinator, "n1", 1).await;
    let job_id = coordinator.submit(manifest("two", 2)).await;
    let starts = [silent.start_rank().await, steady.start_rank().await];
    assert_eq!((starts[0].rank, starts[1].rank), (0, 1));
    let first = starts[0].generation.unwrap();
    let ranks = coordinator.ranks().await;
    for join in [0, 1].map(|rank| ranks.join(&job_id, first, rank, None)) {
        joined(join).await;
    }

    let mut spare = Agent::connect(&coordinator, "n2", 1).await;
    silent.fall_silent();
    let start = spare.start_rank().await;
    assert_eq!((start.rank, start.local_rank, start.local_world_size), (0, 0, 1));
    assert!(start.generation.unwrap() > first);
    assert_eq!(steady.regenerate().await.rank, 1);

    // The lost agent learns that its session is over; coming back, that its rank is not wanted.
    assert_eq!(silent.ended().await.code(), tonic::Code::Aborted);
    let running = vec![v1::RunningRank {
        job_id: job_id.clone(),
        generation: Some(first),
        rank: 0,
        pid: 1000,
        ..Default::default()
    }];
    let mut back =
        Agent::register(&coordinator, v1::Register { running, ..register("n0", 1) }).await;
    let stop = back.stop_rank().await;
    assert_eq!((stop.rank, stop.graceful), (0, false));
}

#[tokio::test]
async fn a_job_without_slots_for_its_lost_rank_waits_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), hasty()).await;
    let mut silent = Agent::connect(&coordinator, "n0", 1).await;
    let mut steady = Agent::connect(&coordinator, "n1", 1).await;
    let job_id = coordinator.submit(manifest("two", 2)).await;
    let starts = [silent.start_rank().await, steady.start_rank().await];
    let generation = starts[0].generation.unwrap();
    let ranks = coordinator.ranks().await;
    for join in [0, 1].map(|rank| ranks.join(&job_id, generation, rank, None)) {
        joined(join).await;
    }
    silent.fall_silent();
    let waits = |job: &v1::Job| {
        job.state() == JobState::Recovering && job.reason.starts_with("needs 2 cpu slots")
    };
    coordinator.until(&job_id, "waiting", waits).await;
    steady.regenerate().await;

    // The node comes back with its rank alive: it takes its seat again and keeps its state.
    let running = vec![v1::RunningRank {
        job_id: job_id.clone(),
        generation: Some(generation),
        rank: 0,
        pid: 1000,
        ..Default::default()
    }];
    let mut back =
        Agent::register(&coordinator, v1::Register { running, ..register("n0", 1) }).await;
    assert_eq!(back.regenerate().await.rank, 0);
}

#[tokio::test]
async fn an_agent_that_reconnects_within_its_lease_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    drop(agent);
    let ranks = running_ranks(&running.starts, running.generation);
    let again = v1::Register { running: ranks, ..register("n0", 2) };
    let mut agent = Agent::register(&coordinator, again).await;
    let job = coordinator.get(&running.job_id).await;
    assert_eq!((job.state(), job.recoveries), (JobState::Running, 0));
    assert_eq!(agent.exit(killed(&running.starts[0])).await, [], "nothing was sent before");
}

/// The news of its end is on the way, and says more than that it is gone.
#[tokio::test]
async fn the_end_of_a_rank_that_its_agent_came_back_without_is_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    let ranks = running_ranks(&running.starts[..1], running.generation);
    let again = v1::Register { running: ranks, ..register("n0", 2) };
    let mut agent = Agent::register(&coordinator, again).await;
    // Whatever was to be decided meanwhile has been.
    coordinator.set_node("n0", true).await;
    agent.exit(hopeless(&running.starts[1], "no such file")).await;
    let events = coordinator.events(&running.job_id).await;
    let lost: Vec<&str> = events
        .iter()
        .filter(|event| event.kind == "rank_lost")
        .map(|event| event.message.as_str())
        .collect();
    assert_eq!(lost, ["rank 1 on n0: no such file"]);
}

#[tokio::test]
async fn an_agent_that_was_restarted_without_its_ranks_gets_them_started_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    let restarted = v1::Register { pid: 101, ..register("n0", 2) };
    let mut again = Agent::register(&coordinator, restarted).await;
    assert_eq!(agent.ended().await.code(), tonic::Code::Aborted, "the newer session replaces it");
    for rank in [0, 1] {
        let start = again.start_rank().await;
        assert_eq!(start.rank, rank);
        assert!(start.generation.unwrap() > running.generation);
    }
    assert_eq!(coordinator.get(&running.job_id).await.recoveries, 1, "one fault, one recovery");
}

#[tokio::test]
async fn a_rank_that_does_not_end_in_time_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let intervals = Config { grace: Duration::from_millis(50), ..patient() };
    let mut coordinator = Coordinator::start(folder.path(), intervals).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let job_id = coordinator.submit(manifest("two", 2)).await;
    run_submitted(&mut coordinator, &mut agent, job_id.clone()).await;
    coordinator.cancel(&job_id).await;
    let stops = [
        agent.stop_rank().await,
        agent.stop_rank().await,
        agent.stop_rank().await,
        agent.stop_rank().await,
    ];
    assert_eq!(stops.map(|stop| stop.graceful), [true, true, false, false]);
}
