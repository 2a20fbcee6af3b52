//! Databases of earlier versions: one fixture each, made by the code of its time.
//!
//! `tests/fixtures/state/v<N>.db` is the database of a coordinator with schema version N after the
//! same small history: jobs that succeeded (after a lost rank), failed and were cancelled, one that
//! runs with a published checkpoint and half of the next, one that is queued.

use std::path::{Path, PathBuf};

use ringmaster_proto::v1;
use ringmaster_proto::v1::JobState;

use crate::fake::{Agent, Coordinator, patient, register};

fn fixture(version: u32) -> PathBuf {
    let name = format!("tests/fixtures/state/v{version}.db");
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn object(rank: u32) -> v1::StoredObject {
    v1::StoredObject {
        name: format!("optim-0000{rank}-of-00002.safetensors"),
        size: 10,
        sha256: vec!["ab".repeat(32)],
    }
}

/// Opens a copy of a fixture and checks that its jobs are what they were and go on.
async fn goes_on(version: u32) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(fixture(version), folder.path().join("ringmaster.db")).unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let request = v1::ListRequest { include_ended: true };
    let jobs = coordinator.jobs.list(request).await.unwrap().into_inner().jobs;
    let states: Vec<_> = jobs.iter().map(|job| (job.name.as_str(), job.state())).collect();
    let expected = [
        ("succeeded", JobState::Succeeded),
        ("failed", JobState::Failed),
        ("cancelled", JobState::Cancelled),
        ("running", JobState::Recovering),
        ("queued", JobState::Queued),
    ];
    assert_eq!(states, expected);
    let sizes: Vec<_> = jobs.iter().map(|job| (job.world_size, job.max_ranks)).collect();
    assert_eq!(sizes, [(2, 2), (1, 1), (64, 64), (2, 2), (1, 1)]);
    assert_eq!((jobs[0].recoveries, jobs[0].summary_json.as_str()), (1, "{\"steps\":3}"));
    assert!(jobs[1].reason.contains("no data"), "{}", jobs[1].reason);
    assert_eq!(jobs[3].checkpoint_url, "file:///runs/running/step-2");
    assert_eq!(jobs[4].manifest_yaml, "kind: TrainJob # queued");

    // Histories.
    let expected = [
        "submitted",
        "placed",
        "running",
        "rank_lost",
        "recovering",
        "placed",
        "running",
        "finished",
        "succeeded",
    ];
    assert_eq!(coordinator.kinds(&jobs[0].job_id).await, expected);
    let expected = ["submitted", "placed", "running", "checkpoint", "reattaching"];
    assert_eq!(coordinator.kinds(&jobs[3].job_id).await, expected);

    // What runs is taken up again, with half of its next checkpoint; what is queued starts.
    let running = &jobs[3];
    let generation = running.generation.unwrap();
    let ranks = [0, 1].map(|rank| v1::RunningRank {
        job_id: running.job_id.clone(),
        generation: Some(generation),
        rank,
        pid: 1000 + rank,
    });
    let back = v1::Register { running: ranks.to_vec(), ..register("n0", 3) };
    let mut agent = Agent::register(&coordinator, back).await;
    coordinator.until_state(&running.job_id, JobState::Running).await;
    let mut client = coordinator.ranks().await.client;
    let shard = v1::ReportShardRequest {
        job_id: running.job_id.clone(),
        generation: Some(generation),
        rank: 0,
        step: 4,
        objects: vec![object(0)],
        failure: String::new(),
    };
    client.report_shard(shard).await.unwrap();
    let commit = v1::CommitCheckpointRequest {
        job_id: running.job_id.clone(),
        generation: Some(generation),
        step: 4,
        digest: 1,
    };
    let granted = client.commit_checkpoint(commit).await.unwrap().into_inner();
    assert_eq!(granted.objects, [object(0), object(1)]);
    let start = agent.start_rank().await;
    assert_eq!((&start.job_id, start.local_rank), (&jobs[4].job_id, 2));
    assert!(start.generation.unwrap() > generation);
}

#[tokio::test]
async fn a_database_of_version_1_goes_on() {
    goes_on(1).await;
}

#[tokio::test]
async fn a_database_of_version_2_goes_on() {
    goes_on(2).await;
}
