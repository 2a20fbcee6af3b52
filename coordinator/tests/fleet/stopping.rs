//! How long ranks that are to stop may take, and what is said when they were not let finish.

use std::time::{Duration, Instant};

use ringmaster_coordinator::fleet::Config;
use ringmaster_proto::v1::{self, JobState, Phase};

use crate::fake::{
    Agent, Coordinator, Running, killed, manifest, patient, run_submitted, run_two, status, with,
    within,
};

/// Longer than a busy machine holds anybody up.
const GRACE: Duration = Duration::from_secs(2);

fn short() -> Config {
    Config { grace: GRACE, ..patient() }
}

fn saving(start: &v1::StartRank, progress: u64) -> v1::RankStatus {
    v1::RankStatus { progress, phase: Phase::Save.into(), ..status(start, 2) }
}

#[tokio::test]
async fn ranks_that_are_to_stop_are_left_alone_as_long_as_they_move_and_killed_when_they_do_not() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), short()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let Running { job_id, starts, .. } = run_two(&mut coordinator, &mut agent).await;
    coordinator.pause(&job_id).await;
    for _ in &starts {
        let stop = agent.stop_rank().await;
        assert_eq!((stop.graceful, stop.grace_ms), (true, 0));
    }
    let (began, mut parts) = (Instant::now(), 0);
    while began.elapsed() < 3 * GRACE {
        parts += 1;
        agent.report(starts.iter().map(|start| saving(start, parts)).collect());
        // The lapse of time is what is tried.
        tokio::time::sleep(GRACE / 10).await;
    }
    assert_eq!(coordinator.get(&job_id).await.state(), JobState::Preempting);

    // From here on they stand still.
    for _ in &starts {
        assert!(!agent.stop_rank().await.graceful);
    }
    agent.report(Vec::new());
    for start in &starts {
        agent.exit(killed(start)).await;
    }
    coordinator.until_state(&job_id, JobState::Paused).await;
    let events = coordinator.events(&job_id).await;
    let told = events.iter().find(|event| event.kind == "stopped_unsaved").unwrap();
    let expected = "its ranks were killed before they had saved: 2 steps after step 0 are lost";
    assert!(told.message.starts_with(expected), "{}", told.message);
}

#[tokio::test]
async fn a_manifest_may_set_an_end_to_stopping_whatever_ranks_do() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let manifest = with(&manifest("two", 2), "/checkpoint/every_steps", 2);
    let mut value: serde_json::Value = serde_json::from_str(&manifest).unwrap();
    value["spec"]["checkpoint"]["stop_within"] = 1.into();
    let job_id = coordinator.submit(format!("{value:#}")).await;
    let Running { job_id, starts, .. } = run_submitted(&mut coordinator, &mut agent, job_id).await;
    coordinator.pause(&job_id).await;
    let killed = async {
        let mut parts = 0;
        loop {
            parts += 1;
            agent.report(starts.iter().map(|start| saving(start, parts)).collect());
            if !agent.stop_rank().await.graceful {
                return;
            }
        }
    };
    within("the kill", killed).await;
}

#[tokio::test]
async fn a_grant_that_cannot_come_is_refused_and_said() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { commit_patience: Duration::from_millis(200), ..patient() };
    let mut coordinator = Coordinator::start(folder.path(), config).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let Running { job_id, generation, .. } = run_two(&mut coordinator, &mut agent).await;
    let mut client = coordinator.ranks().await.client;
    let shard = v1::ReportShardRequest {
        job_id: job_id.clone(),
        generation: Some(generation),
        rank: 0,
        step: 2,
        ..Default::default()
    };
    client.report_shard(shard).await.unwrap();
    let commit = v1::CommitCheckpointRequest {
        job_id: job_id.clone(),
        generation: Some(generation),
        step: 2,
        digest: 7,
    };
    let refused = within("the refusal", client.commit_checkpoint(commit)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    let job = coordinator.get(&job_id).await;
    let expected = "the checkpoint of step 2 is given up: rank 1 has not stored its part";
    assert!(job.checkpoint_trouble.starts_with(expected), "{}", job.checkpoint_trouble);
    let kinds = coordinator.kinds(&job_id).await;
    assert!(kinds.contains(&"checkpoint_failed".to_owned()), "{kinds:?}");
}
