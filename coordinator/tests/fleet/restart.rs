//! Restarting the coordinator.

use ringmaster_proto::v1;
use ringmaster_proto::v1::JobState;

use crate::fake::{
    Agent, Coordinator, Running, hasty, joined, killed, manifest, patient, refused, register,
    run_two,
};

fn running_ranks(running: &Running) -> Vec<v1::RunningRank> {
    let ranks = running.starts.iter().map(|start| v1::RunningRank {
        job_id: start.job_id.clone(),
        generation: start.generation,
        rank: start.rank,
        pid: 1000 + start.rank,
    });
    ranks.collect()
}

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
    let back = v1::Register { running: running_ranks(&running), ..register("n0", 2) };
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
    let survivors = vec![running_ranks(&running)[0].clone()];
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
    let back = v1::Register { running: running_ranks(&running), ..register("n0", 2) };
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
