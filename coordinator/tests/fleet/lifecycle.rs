//! From submission to the end.

use ringmaster_proto::v1;
use ringmaster_proto::v1::JobState;

use crate::fake::{
    Agent, Coordinator, Running, exited, held, joined, killed, manifest, patient, refused, run_two,
    status, with, within,
};

#[tokio::test]
async fn a_job_goes_from_submission_through_a_lost_rank_to_success() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;

    // Submitted, placed, joined.
    let Running { job_id, generation: first, starts, replies } =
        run_two(&mut coordinator, &mut agent).await;
    assert!(job_id.starts_with("two-") && job_id.len() == "two-".len() + 6, "{job_id}");
    assert_eq!((starts[1].rank, starts[1].local_rank, starts[1].local_world_size), (1, 1, 2));
    assert_eq!((starts[0].world_size, starts[0].threads), (2, 2));
    assert_eq!(replies[0].peers, ["127.0.0.1:9000", "127.0.0.1:9001"]);
    assert_eq!(replies[0].token.len(), 32);
    assert_eq!([replies[0].rank, replies[1].rank], [0, 1]);
    let same = v1::JoinReply { rank: 0, ..replies[1].clone() };
    assert_eq!(replies[0], same, "everybody is told the same");
    assert_eq!((replies[0].source(), replies[0].source_rank), (v1::StateSource::Stored, 0));
    assert_eq!(replies[0].receivers, [1]);

    // Rank 1 is killed; rank 0 hears of a new generation and rank 1 is started again.
    agent.report(vec![status(&starts[0], 2)]);
    let before = agent.exit(killed(&starts[1])).await;
    assert_eq!(before, []);
    let regenerate = agent.regenerate().await;
    let start = agent.start_rank().await;
    let second = start.generation.unwrap();
    assert!(second > first);
    assert_eq!((start.rank, regenerate.rank, regenerate.generation), (1, 0, Some(second)));

    // The survivor brings its state.
    let ranks = coordinator.ranks().await;
    let survivor = ranks.join(&job_id, second, 0, held(2));
    let replacement = ranks.join(&job_id, second, 1, None);
    let (survivor, replacement) = (joined(survivor).await, joined(replacement).await);
    assert_eq!((survivor.source(), survivor.source_rank), (v1::StateSource::Live, 0));
    assert_eq!(survivor.receivers, [1]);
    assert_ne!(survivor.token, replies[0].token, "a new ring has a new secret");
    assert_eq!(replacement.numeric_plan, replies[0].numeric_plan, "the first plan is kept");
    let job = coordinator.until_state(&job_id, JobState::Running).await;
    assert_eq!((job.recoveries, job.generation), (1, Some(second)));

    // The end.
    ranks.finish(&job_id, second).await;
    agent.exit(exited(&start, 0)).await;
    assert_eq!(coordinator.get(&job_id).await.state(), JobState::Running);
    agent.exit(v1::RankExited { generation: Some(second), ..exited(&starts[0], 0) }).await;
    let job = coordinator.until_state(&job_id, JobState::Succeeded).await;
    assert_eq!(job.summary_json, "{\"steps\":3}");
    assert!(job.ended_at_ms >= job.started_at_ms && job.started_at_ms >= job.submitted_at_ms);
    assert_eq!(
        coordinator.kinds(&job_id).await,
        [
            "submitted",
            "placed",
            "running",
            "rank_lost",
            "recovering",
            "placed",
            "running",
            "finished",
            "succeeded"
        ]
    );
}

#[tokio::test]
async fn cancelling_a_running_job_lets_its_ranks_checkpoint_first() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;

    let job = coordinator.cancel(&running.job_id).await;
    assert_eq!((job.state(), job.reason.as_str()), (JobState::Running, "stopping: enough"));
    for rank in [0, 1] {
        let stop = agent.stop_rank().await;
        assert_eq!((stop.rank, stop.graceful, stop.grace_ms), (rank, true, 0));
    }
    coordinator.cancel(&running.job_id).await;
    for start in &running.starts {
        assert_eq!(agent.exit(exited(start, 0)).await, [], "repeating it is harmless");
    }
    let job = coordinator.until_state(&running.job_id, JobState::Cancelled).await;
    assert_eq!(job.reason, "enough");
}

#[tokio::test]
async fn cancelling_a_queued_job_ends_it_at_once_and_a_starting_one_without_grace() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let queued = coordinator.submit(manifest("queued", 2)).await;
    assert_eq!(coordinator.cancel(&queued).await.state(), JobState::Cancelled);

    let mut agent = Agent::connect(&coordinator, "n0", 1).await;
    let starting = coordinator.submit(manifest("starting", 1)).await;
    let start = agent.start_rank().await;
    coordinator.cancel(&starting).await;
    assert!(!agent.stop_rank().await.graceful, "there is no ring that could checkpoint");
    agent.exit(killed(&start)).await;
    coordinator.until_state(&starting, JobState::Cancelled).await;
}

#[tokio::test]
async fn a_rank_that_dies_while_the_job_is_being_cancelled_ends_the_others_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    coordinator.cancel(&running.job_id).await;
    assert!(agent.stop_rank().await.graceful && agent.stop_rank().await.graceful);
    agent.exit(killed(&running.starts[0])).await;
    let stop = agent.stop_rank().await;
    assert_eq!((stop.rank, stop.graceful), (1, false));
    agent.exit(killed(&running.starts[1])).await;
    coordinator.until_state(&running.job_id, JobState::Cancelled).await;
}

#[tokio::test]
async fn a_run_that_hands_in_its_summary_while_it_is_being_cancelled_has_succeeded() {
    // Found by simulation: the summary was acknowledged, and then the job ended Cancelled because
    // somebody had asked for it a moment before its last step.
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let Running { job_id, generation, starts, .. } = run_two(&mut coordinator, &mut agent).await;
    coordinator.cancel(&job_id).await;
    assert!(agent.stop_rank().await.graceful && agent.stop_rank().await.graceful);
    coordinator.ranks().await.finish(&job_id, generation).await;
    for start in &starts {
        agent.exit(exited(start, 0)).await;
    }
    coordinator.until_state(&job_id, JobState::Succeeded).await;
}

#[tokio::test]
async fn a_rank_lost_after_the_summary_ends_the_others_at_once_and_the_job_has_succeeded() {
    // The others would wait for it in the barrier that ends a run, until the grace was over.
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let Running { job_id, generation, starts, .. } = run_two(&mut coordinator, &mut agent).await;
    coordinator.ranks().await.finish(&job_id, generation).await;
    agent.exit(killed(&starts[0])).await;
    let stop = agent.stop_rank().await;
    assert_eq!((stop.rank, stop.graceful), (1, false));
    agent.exit(exited(&starts[1], 0)).await;
    let job = coordinator.until_state(&job_id, JobState::Succeeded).await;
    assert_eq!(job.recoveries, 0);
}

#[tokio::test]
async fn a_rank_that_says_that_nothing_helps_fails_the_job_and_the_others_are_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    agent.fail_twice(&running.starts[1], "/data/000.tar does not exist").await;
    let job = coordinator.until_state(&running.job_id, JobState::Failed).await;
    let why =
        "rank 1: /data/000.tar does not exist; it happened twice on n0, which alone could run it";
    assert!(job.reason.starts_with(why), "{}", job.reason);
    let stop = agent.stop_rank().await;
    assert_eq!((stop.rank, stop.graceful), (0, false));

    // Its slots are free again only once the other rank has gone.
    let next = coordinator.submit(manifest("next", 2)).await;
    let waits = |job: &v1::Job| job.reason.starts_with("waits: needs 2 cpu slots, 1 free");
    coordinator.until(&next, "waiting", waits).await;
    agent.exit(killed(&running.starts[0])).await;
    assert_eq!(agent.start_rank().await.job_id, next);
}

#[tokio::test]
async fn jobs_queue_by_priority_and_then_by_age() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let old = coordinator.submit(manifest("old", 1)).await;
    let new = coordinator.submit(manifest("new", 1)).await;
    let high = coordinator.submit(with(&manifest("high", 1), "/resources/priority", 9)).await;
    let mut agent = Agent::connect(&coordinator, "n0", 1).await;
    for expected in [&high, &old, &new] {
        let start = agent.start_rank().await;
        assert_eq!(&start.job_id, expected);
        let generation = start.generation.unwrap();
        let ranks = coordinator.ranks().await;
        joined(ranks.join(expected, generation, 0, None)).await;
        ranks.finish(expected, generation).await;
        agent.exit(exited(&start, 0)).await;
    }
    coordinator.until_state(&new, JobState::Succeeded).await;
}

#[tokio::test]
async fn a_waiting_join_is_answered_when_the_job_is_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let job_id = coordinator.submit(manifest("two", 2)).await;
    let start = agent.start_rank().await;
    let ranks = coordinator.ranks().await;
    let join = ranks.join(&job_id, start.generation.unwrap(), 0, None);
    let joined = |job: &v1::Job| job.reason.starts_with("1 of 2 ranks");
    coordinator.until(&job_id, "the first join", joined).await;
    coordinator.cancel(&job_id).await;
    let status = within("the answer", join).await.unwrap().unwrap_err();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
}

#[tokio::test]
async fn a_repeated_join_replaces_the_earlier_call_and_a_lost_answer_is_given_again() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let job_id = coordinator.submit(manifest("two", 2)).await;
    let generation = agent.start_rank().await.generation.unwrap();
    let ranks = coordinator.ranks().await;
    let earlier = ranks.join(&job_id, generation, 0, None);
    let joined_one = |job: &v1::Job| job.reason.starts_with("1 of 2 ranks");
    coordinator.until(&job_id, "the first join", joined_one).await;
    let later = ranks.join(&job_id, generation, 0, None);
    assert_eq!(refused(earlier).await.code(), tonic::Code::Aborted);
    let other = ranks.join(&job_id, generation, 1, None);
    let (later, other) = (joined(later).await, joined(other).await);
    assert_eq!((later.rank, other.rank), (0, 1));
    assert_eq!(later, v1::JoinReply { rank: 0, ..other.clone() });
    assert_eq!(joined(ranks.join(&job_id, generation, 1, None)).await, other);
}
