//! Restarting the coordinator.

use std::path::Path;
use std::time::Duration;

use ringmaster_coordinator::fleet::Config;
use ringmaster_proto::v1;
use ringmaster_proto::v1::{JobState, Phase};

use crate::fake::{
    Agent, Coordinator, Rank, exited, hasty, joined, killed, manifest, patient, refused, register,
    run_two, running_ranks, status,
};

#[tokio::test]
async fn jobs_outlive_a_restart_and_later_generations_are_above_earlier_ones() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    let queued = coordinator.submit(manifest("queued", 2)).await;
    coordinator.server.shutdown().await.unwrap();

    // Ranks kept stepping; their agent comes back with them and nothing is redone.
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    assert_eq!(coordinator.get(&running.job_id).await.state(), JobState::Recovering);
    assert_eq!(coordinator.get(&queued).await.state(), JobState::Queued);
    let back = v1::Register {
        running: running_ranks(&running.starts, running.generation),
        ..register("n0", 2)
    };
    let mut agent = Agent::register(&coordinator, back).await;
    let job = coordinator.until_state(&running.job_id, JobState::Running).await;
    assert_eq!((job.recoveries, job.generation), (0, Some(running.generation)));

    // The next generation is of the new incarnation.
    assert_eq!(agent.exit(killed(&running.starts[0])).await, [], "nothing was started meanwhile");
    let start = agent.start_rank().await;
    assert_eq!(running.generation.incarnation, 1);
    assert_eq!(start.generation.unwrap().incarnation, 2);
    assert!(start.generation.unwrap().counter > running.generation.counter);
    let kinds = coordinator.kinds(&running.job_id).await;
    assert!(kinds.starts_with(&["submitted".to_owned(), "placed".to_owned()]), "{kinds:?}");
}

#[tokio::test]
async fn an_exit_the_old_coordinator_never_heard_of_is_acted_on_by_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    coordinator.server.shutdown().await.unwrap();

    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let survivors = vec![running_ranks(&running.starts, running.generation)[0].clone()];
    let back = v1::Register { running: survivors, ..register("n0", 2) };
    let mut agent = Agent::register(&coordinator, back).await;
    agent.exit(killed(&running.starts[1])).await;
    assert_eq!(agent.regenerate().await.rank, 0);
    assert_eq!(agent.start_rank().await.rank, 1);
    assert_eq!(coordinator.get(&running.job_id).await.recoveries, 1);
}

#[tokio::test]
async fn ranks_that_do_not_come_back_are_started_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    coordinator.server.shutdown().await.unwrap();

    let coordinator = Coordinator::start(folder.path(), hasty()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let starts = [agent.start_rank().await, agent.start_rank().await];
    assert!(starts[0].generation.unwrap() > running.generation);
    let ranks = coordinator.ranks().await;
    let generation = starts[0].generation.unwrap();
    let joins = [0, 1].map(|rank| ranks.join(&running.job_id, generation, rank, None));
    for join in joins {
        let reply = joined(join).await;
        assert_eq!(reply.numeric_plan, running.replies[0].numeric_plan, "the plan is kept");
    }
}

#[tokio::test]
async fn a_ring_that_was_forming_goes_on_forming_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 1).await;
    let job_id = coordinator.submit(manifest("one", 1)).await;
    let start = agent.start_rank().await;
    coordinator.server.shutdown().await.unwrap();

    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let ranks = coordinator.ranks().await;
    joined(ranks.join(&job_id, start.generation.unwrap(), 0, None)).await;
    coordinator.until_state(&job_id, JobState::Running).await;
}

#[tokio::test]
async fn a_rank_whose_plan_was_lost_with_the_coordinator_gets_a_new_generation() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    coordinator.server.shutdown().await.unwrap();

    let coordinator = Coordinator::start(folder.path(), patient()).await;
    let back = v1::Register {
        running: running_ranks(&running.starts, running.generation),
        ..register("n0", 2)
    };
    let mut agent = Agent::register(&coordinator, back).await;
    let ranks = coordinator.ranks().await;
    let status = refused(ranks.join(&running.job_id, running.generation, 1, None)).await;
    assert_eq!(status.code(), tonic::Code::Aborted);
    assert_eq!(agent.regenerate().await.rank, 0);
    assert_eq!(agent.regenerate().await.rank, 1);
}

#[tokio::test]
async fn generations_rise_above_what_an_agent_has_seen() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let seen = v1::Generation::new(7, 30);
    let register = v1::Register { highest_generation: Some(seen), ..register("n0", 1) };
    let mut agent = Agent::register(&coordinator, register).await;
    coordinator.submit(manifest("one", 1)).await;
    assert!(agent.start_rank().await.generation.unwrap() > seen);
}

/// Its agent says of it the generation that it was told of, in which it is not yet. Until its deadline was watched
/// all the same, the others waited for it for ever.
#[tokio::test]
async fn a_rank_that_hangs_in_an_older_generation_is_stopped_after_a_restart_too() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    agent.exit(killed(&running.starts[1])).await;
    let newer = agent.regenerate().await.generation.unwrap();
    let fresh = agent.start_rank().await;
    coordinator.server.shutdown().await.unwrap();

    let mut config = patient();
    config.deadlines.first_step = Duration::from_secs(2);
    config.deadlines.set(Phase::Compute, Duration::from_secs(2));
    let coordinator = Coordinator::start(folder.path(), config).await;
    let starts = [running.starts[0].clone(), fresh.clone()];
    let back = v1::Register { running: running_ranks(&starts, newer), ..register("n0", 2) };
    let mut agent = Agent::register(&coordinator, back).await;
    let waits = v1::RankStatus { phase: Phase::Join.into(), ..status(&fresh, 0) };
    agent.report(vec![status(&running.starts[0], 7), waits]);
    let _waits = coordinator.ranks().await.join(&running.job_id, newer, 1, None);
    let stop = agent.stop_rank().await;
    assert_eq!((stop.rank, stop.graceful), (0, false));
    assert!(stop.reason.contains("no progress in compute after step 7"), "{}", stop.reason);
}

fn of(instance: &str) -> v1::Register {
    v1::Register { instance: instance.to_owned(), ..register("n0", 2) }
}

/// One that was started with the same name by mistake, and came first, took the name and the ranks' places.
#[tokio::test]
async fn after_a_restart_a_name_is_kept_for_the_agent_whose_ranks_are_awaited() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::register(&coordinator, of("a1")).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    coordinator.server.shutdown().await.unwrap();

    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let refused = Agent::refused(&coordinator, of("b2")).await;
    // Nothing has been given up yet of what it may run.
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    let expected =
        "another agent of the name n0 ran ranks before the coordinator restarted (process 100)";
    assert!(refused.message().starts_with(expected), "{refused}");

    let ranks = running_ranks(&running.starts, running.generation);
    let _agent = Agent::register(&coordinator, v1::Register { running: ranks, ..of("a1") }).await;
    let job = coordinator.until_state(&running.job_id, JobState::Running).await;
    assert_eq!((job.recoveries, job.generation), (0, Some(running.generation)));
}

#[tokio::test]
async fn after_a_restart_a_name_is_not_kept_for_an_agent_that_does_not_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::register(&coordinator, of("a1")).await;
    run_two(&mut coordinator, &mut agent).await;
    coordinator.server.shutdown().await.unwrap();

    let config = Config { lease: Duration::from_millis(500), ..patient() };
    let coordinator = Coordinator::start(folder.path(), config).await;
    let mut second = Agent::let_in(&coordinator, of("b2")).await;
    second.start_rank().await;
}

/// A job of one rank, which has called a coordinator that was restarted, and its agent has not.
struct Called {
    coordinator: Coordinator,
    ranks: Rank,
    start: v1::StartRank,
}

async fn called(state_dir: &Path, config: Config) -> Called {
    let mut coordinator = Coordinator::start(state_dir, patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 1).await;
    let job_id = coordinator.submit(manifest("one", 1)).await;
    let start = agent.start_rank().await;
    coordinator.server.shutdown().await.unwrap();

    let coordinator = Coordinator::start(state_dir, config).await;
    let ranks = coordinator.ranks().await;
    joined(ranks.join(&job_id, start.generation.unwrap(), 0, None)).await;
    Called { coordinator, ranks, start }
}

/// Its ranks called the coordinator before their agent did: the news of their ends counted for nothing.
#[tokio::test]
async fn a_run_that_ended_before_its_agent_came_back_succeeds() {
    let folder = tempfile::tempdir().unwrap();
    let Called { mut coordinator, ranks, start } = called(folder.path(), patient()).await;
    let (job_id, generation) = (start.job_id.clone(), start.generation.unwrap());
    ranks.finish(&job_id, generation).await;
    let mut agent = Agent::connect(&coordinator, "n0", 1).await;
    agent.exit(exited(&start, 0)).await;
    coordinator.until_state(&job_id, JobState::Succeeded).await;
}

/// Once all its ranks had called, nobody missed their agent any more.
#[tokio::test]
async fn an_agent_that_does_not_come_back_is_given_up_although_its_ranks_have_called() {
    let folder = tempfile::tempdir().unwrap();
    let Called { mut coordinator, start, .. } = called(folder.path(), hasty()).await;
    coordinator.until_state(&start.job_id, JobState::Running).await;
    let mut other = Agent::connect(&coordinator, "n1", 1).await;
    assert!(other.start_rank().await.generation > start.generation);
}
