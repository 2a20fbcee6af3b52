//! Preemption, pause and resume.

use std::time::Duration;

use ringmaster_coordinator::fleet::Config;
use ringmaster_proto::v1;
use ringmaster_proto::v1::JobState;

use crate::fake::{
    Agent, Coordinator, Running, exited, killed, manifest, patient, refused, register,
    run_submitted, run_two, running_ranks, with,
};

/// An urgent job of two ranks.
fn urgent() -> String {
    with(&manifest("urgent", 2), "/resources/priority", 9)
}

async fn stops(agent: &mut Agent) -> [bool; 2] {
    [agent.stop_rank().await.graceful, agent.stop_rank().await.graceful]
}

#[tokio::test]
async fn a_job_makes_room_at_a_checkpoint_and_goes_on_from_it_later() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let Running { job_id, generation, starts, replies } =
        run_two(&mut coordinator, &mut agent).await;
    let urgent = coordinator.submit(urgent()).await;

    // The victim is asked to stop, and the other says for what it waits.
    assert_eq!(stops(&mut agent).await, [true, true]);
    let job = coordinator.get(&job_id).await;
    assert_eq!(job.state(), JobState::Preempting);
    assert!(job.reason.ends_with(&format!("makes room for job {urgent}")), "{}", job.reason);
    let expected = format!(
        "waits: needs 2 cpu slots, 0 free, 2 held by job {job_id} until its next checkpoint"
    );
    assert_eq!(coordinator.get(&urgent).await.reason, expected);

    // It checkpoints and ends; only then the other starts.
    let ranks = coordinator.ranks().await;
    ranks.checkpoint(&job_id, generation, 2, 2).await;
    assert_eq!(agent.exit(exited(&starts[0], 0)).await, []);
    agent.exit(exited(&starts[1], 0)).await;
    let running = run_submitted(&mut coordinator, &mut agent, urgent.clone()).await;
    let job = coordinator.get(&job_id).await;
    assert_eq!((job.state(), job.checkpoint_step), (JobState::Queued, 2));
    assert!(job.reason.contains(&format!("2 held by job {urgent}")), "{}", job.reason);
    let late = refused(ranks.join(&job_id, generation, 0, None)).await;
    assert_eq!(late.code(), tonic::Code::FailedPrecondition, "its old ranks are not let in");

    // When the urgent one has ended it goes on, in a new generation, with the plan it had.
    ranks.finish(&urgent, running.generation).await;
    agent.report(Vec::new());
    for start in &running.starts {
        agent.exit(exited(start, 0)).await;
    }
    coordinator.until_state(&urgent, JobState::Succeeded).await;
    let again = run_submitted(&mut coordinator, &mut agent, job_id.clone()).await;
    assert!(again.generation > generation);
    assert_eq!(again.replies[0].numeric_plan, replies[0].numeric_plan);
    assert_eq!(again.replies[0].checkpoint_hint, "file:///runs/step-2");
    let job = coordinator.get(&job_id).await;
    assert_eq!(job.recoveries, 0, "making room is no fault");
    let kinds = coordinator.kinds(&job_id).await;
    let expected = [
        "submitted",
        "placed",
        "running",
        "preempting",
        "checkpoint",
        "preempted",
        "placed",
        "running",
    ];
    assert_eq!(kinds, expected);
}

#[tokio::test]
async fn equal_priority_makes_no_room() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    let next = coordinator.submit(manifest("next", 2)).await;
    let expected = format!("waits: needs 2 cpu slots, 0 free, 2 held by job {}", running.job_id);
    coordinator.until(&next, "waiting", |job| job.reason == expected).await;
    assert_eq!(coordinator.get(&running.job_id).await.state(), JobState::Running);
}

#[tokio::test]
async fn a_victim_that_does_not_end_in_time_is_killed_and_queued_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let intervals = Config { grace: Duration::from_millis(50), ..patient() };
    let mut coordinator = Coordinator::start(folder.path(), intervals).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    let urgent = coordinator.submit(urgent()).await;
    assert_eq!(stops(&mut agent).await, [true, true]);
    assert_eq!(stops(&mut agent).await, [false, false]);
    for start in &running.starts {
        agent.exit(killed(start)).await;
    }
    assert_eq!(agent.start_rank().await.job_id, urgent);
    let job = coordinator.get(&running.job_id).await;
    assert_eq!((job.state(), job.recoveries), (JobState::Queued, 0));
}

#[tokio::test]
async fn a_restart_in_the_middle_of_making_room_goes_on_making_room() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    let urgent = coordinator.submit(urgent()).await;
    assert_eq!(stops(&mut agent).await, [true, true]);
    agent.exit(exited(&running.starts[0], 0)).await;
    coordinator.server.shutdown().await.unwrap();

    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    assert_eq!(coordinator.get(&running.job_id).await.state(), JobState::Preempting);
    let left = running_ranks(&running.starts[1..], running.generation);
    let back = v1::Register { running: left, ..register("n0", 2) };
    let mut agent = Agent::register(&coordinator, back).await;
    let stop = agent.stop_rank().await;
    assert_eq!((stop.rank, stop.graceful), (1, true), "it is told again");
    agent.exit(exited(&running.starts[1], 0)).await;
    assert_eq!(agent.start_rank().await.job_id, urgent);
    assert_eq!(coordinator.get(&running.job_id).await.state(), JobState::Queued);
}

#[tokio::test]
async fn a_job_that_ends_while_it_is_to_make_room_has_succeeded() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    coordinator.submit(urgent()).await;
    assert_eq!(stops(&mut agent).await, [true, true]);
    coordinator.ranks().await.finish(&running.job_id, running.generation).await;
    for start in &running.starts {
        agent.exit(exited(start, 0)).await;
    }
    coordinator.until_state(&running.job_id, JobState::Succeeded).await;
}

#[tokio::test]
async fn a_job_that_makes_room_can_be_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    coordinator.submit(urgent()).await;
    assert_eq!(stops(&mut agent).await, [true, true]);
    coordinator.cancel(&running.job_id).await;
    for start in &running.starts {
        agent.exit(exited(start, 0)).await;
    }
    let job = coordinator.until_state(&running.job_id, JobState::Cancelled).await;
    assert_eq!(job.reason, "enough");
}

#[tokio::test]
async fn a_paused_job_stops_at_a_checkpoint_and_waits_to_be_resumed_also_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    let job_id = running.job_id.as_str();
    for _ in 0..2 {
        assert_eq!(coordinator.pause(job_id).await.state(), JobState::Preempting);
    }
    assert_eq!(stops(&mut agent).await, [true, true]);
    for start in &running.starts {
        agent.exit(exited(start, 0)).await;
    }
    coordinator.until_state(job_id, JobState::Paused).await;

    // Its slots are free for others, and it stays where it is.
    let other = coordinator.submit(manifest("other", 1)).await;
    let start = agent.start_rank().await;
    assert_eq!(start.job_id, other);
    coordinator.server.shutdown().await.unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let back = v1::Register {
        running: running_ranks(std::slice::from_ref(&start), start.generation.unwrap()),
        ..register("n0", 3)
    };
    let mut agent = Agent::register(&coordinator, back).await;
    let job = coordinator.pause(job_id).await;
    assert_eq!(job.state(), JobState::Paused);
    assert!(job.reason.starts_with("lunch; there is no checkpoint yet"), "{}", job.reason);

    assert_eq!(coordinator.resume(job_id).await.state(), JobState::Queued);
    let again = run_submitted(&mut coordinator, &mut agent, job_id.to_owned()).await;
    assert!(again.generation > running.generation);
    let job = coordinator.resume(job_id).await;
    assert_eq!(job.state(), JobState::Running, "resuming what runs is harmless");
}

#[tokio::test]
async fn a_ring_that_breaks_while_its_job_is_paused_is_not_formed_again() {
    // Seed 505 of the simulation: a rank that joined anew brought a pausing job back to life.
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let Running { job_id, generation, starts, .. } = run_two(&mut coordinator, &mut agent).await;
    coordinator.pause(&job_id).await;
    assert_eq!(stops(&mut agent).await, [true, true]);

    let again = v1::JoinRequest {
        job_id: job_id.clone(),
        generation: Some(generation),
        rank: 0,
        data_address: "127.0.0.1:9999".to_owned(),
        ..Default::default()
    };
    let late = coordinator.ranks().await.client.join(again).await.unwrap_err();
    assert_eq!(late.code(), tonic::Code::FailedPrecondition, "{late}");
    assert_eq!(stops(&mut agent).await, [false, false], "no checkpoint comes of it any more");
    for start in &starts {
        agent.exit(killed(start)).await;
    }
    let job = coordinator.until_state(&job_id, JobState::Paused).await;
    assert_eq!(job.generation, Some(generation));
    assert_eq!(job.recoveries, 0);
}

#[tokio::test]
async fn a_queued_job_is_paused_at_once_and_one_that_is_resumed_while_it_stops_is_queued() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let queued = coordinator.submit(manifest("queued", 2)).await;
    assert_eq!(coordinator.pause(&queued).await.state(), JobState::Paused);
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    coordinator.pause(&running.job_id).await;
    assert_eq!(stops(&mut agent).await, [true, true]);
    assert_eq!(coordinator.resume(&running.job_id).await.state(), JobState::Preempting);
    for start in &running.starts {
        agent.exit(exited(start, 0)).await;
    }
    assert_eq!(agent.start_rank().await.job_id, running.job_id);
    assert_eq!(coordinator.cancel(&queued).await.state(), JobState::Cancelled);
}

#[tokio::test]
async fn a_job_that_has_ended_cannot_be_paused() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let job_id = coordinator.submit(manifest("one", 1)).await;
    coordinator.cancel(&job_id).await;
    let request = v1::PauseRequest { job_id, reason: String::new() };
    let refused = coordinator.jobs.pause(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert!(refused.message().contains("is cancelled: enough"), "{refused}");
}
