//! Databases of earlier versions: one fixture each, made by the code of its time.
//!
//! `tests/fixtures/state/v<N>.db` is the database of a coordinator with schema version N after the
//! same small history: jobs that succeeded (after a lost rank), failed and were cancelled, one that
//! runs with a published checkpoint and half of the next, one that is queued; from version 2 also one
//! that is paused, and a node that was drained; from version 3 also one that was rolled back and waits.
//! The fixture of the
//! present version is made by `RINGMASTER_FIXTURE=FILE cargo test --workspace --test fleet history`;
//! once released it is never made anew. `f17f4a4.db` is version 3 with other stored jobs.

use std::path::{Path, PathBuf};

use ringmaster_proto::v1;
use ringmaster_proto::v1::JobState;

use crate::fake::{
    Agent, Coordinator, Rank, exited, held, job, joined, killed, manifest, patient, register,
    run_submitted, status, submission, with,
};
use crate::stored;

fn fixture(name: &str) -> PathBuf {
    let name = format!("tests/fixtures/state/{name}.db");
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn object(rank: u32) -> v1::StoredObject {
    v1::StoredObject {
        name: format!("optim-0000{rank}-of-00002.safetensors"),
        size: 10,
        sha256: vec!["ab".repeat(32)],
        ..Default::default()
    }
}

async fn submit(coordinator: &mut Coordinator, name: &str, manifest: String) -> String {
    let request = v1::SubmitRequest {
        request_id: format!("request-{name}"),
        file_name: format!("{name}.yaml"),
        ..submission(format!("{manifest} # {name}"))
    };
    coordinator.jobs.submit(request).await.unwrap().into_inner().job_id
}

/// A job that loses a rank, recovers and succeeds.
async fn succeed(coordinator: &mut Coordinator, agent: &mut Agent, ranks: &Rank) {
    let job_id = submit(coordinator, "succeeded", manifest("succeeded", 2)).await;
    let running = run_submitted(coordinator, agent, job_id.clone()).await;
    agent.exit(killed(&running.starts[1])).await;
    let second = agent.regenerate().await.generation.unwrap();
    let start = agent.start_rank().await;
    ranks.join_all(&job_id, second, &[(0, held(2)), (1, None)]).await;
    ranks.finish(&job_id, second).await;
    agent.exit(exited(&start, 0)).await;
    agent.exit(v1::RankExited { generation: Some(second), ..exited(&running.starts[0], 0) }).await;
    coordinator.until_state(&job_id, JobState::Succeeded).await;
}

/// A job that runs, with a published checkpoint and half of the next.
async fn run(coordinator: &mut Coordinator, agent: &mut Agent, ranks: &Rank) {
    let job_id = submit(coordinator, "running", manifest("running", 2)).await;
    let running = run_submitted(coordinator, agent, job_id.clone()).await;
    agent.report(running.starts.iter().map(|start| status(start, 5)).collect());
    ranks.checkpoint(&job_id, running.generation, 2, 2).await;
    let half = v1::ReportShardRequest {
        job_id,
        generation: Some(running.generation),
        rank: 1,
        step: 4,
        objects: vec![object(1)],
        failure: String::new(),
    };
    ranks.client.clone().report_shard(half).await.unwrap();
}

/// A job that is rolled back while it is paused, and waits for a node that is closed.
async fn go_back(coordinator: &mut Coordinator, agent: &mut Agent, ranks: &Rank, folder: &Path) {
    let manifest = with(&manifest("back", 1), "/resources/accelerator", "cuda");
    let manifest = with(&manifest, "/checkpoint/uri", format!("file://{}", folder.display()));
    let job_id = submit(coordinator, "back", manifest.clone()).await;
    let start = agent.start_rank().await;
    let generation = start.generation.unwrap();
    joined(ranks.join(&job_id, generation, 0, None)).await;
    for step in [2, 4] {
        let url = stored::store(folder, &job(&manifest), &job_id, generation, step).await;
        ranks.checkpoint_at(&job_id, generation, 1, step, &url).await;
    }
    coordinator.set_node("n9", false).await;
    coordinator.pause(&job_id).await;
    agent.stop_rank().await;
    agent.exit(exited(&start, 0)).await;
    coordinator.until_state(&job_id, JobState::Paused).await;
    let request = v1::ResumeRequest { job_id, from_step: Some(2) };
    coordinator.jobs.resume(request).await.unwrap();
}

/// The history that every fixture holds, written to `database` in one file.
async fn make(database: &Path) {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let ranks = coordinator.ranks().await;
    succeed(&mut coordinator, &mut agent, &ranks).await;

    let failed = submit(&mut coordinator, "failed", manifest("failed", 1)).await;
    let start = agent.start_rank().await;
    agent.fail_twice(&start, "no data").await;
    coordinator.until_state(&failed, JobState::Failed).await;

    let large = with(&manifest("cancelled", 64), "/data/lanes", 64);
    let large = with(&large, "/batch/global", 64);
    let cancelled = submit(&mut coordinator, "cancelled", large).await;
    coordinator.cancel(&cancelled).await;

    run(&mut coordinator, &mut agent, &ranks).await;
    submit(&mut coordinator, "queued", manifest("queued", 1)).await;
    let paused = submit(&mut coordinator, "paused", manifest("paused", 1)).await;
    coordinator.pause(&paused).await;
    let gpus = v1::Register { accelerator: "cuda".to_owned(), ..register("n9", 1) };
    let mut closed = Agent::register(&coordinator, gpus).await;
    go_back(&mut coordinator, &mut closed, &ranks, folder.path()).await;
    coordinator.server.shutdown().await.unwrap();
    let whole = rusqlite::Connection::open(folder.path().join("ringmaster.db")).unwrap();
    // A place that exists nowhere and never will.
    let path = folder.path().to_str().unwrap();
    for (table, column) in [
        ("jobs", "manifest"),
        ("jobs", "manifest_yaml"),
        ("jobs", "checkpoint_url"),
        ("jobs", "rollback"),
        ("events", "message"),
        ("checkpoint_grants", "published_url"),
    ] {
        let replace = format!("UPDATE {table} SET {column} = replace({column}, ?1, '/proc/runs')");
        whole.execute(&replace, [path]).unwrap();
    }
    whole.execute("VACUUM INTO ?1", [database.to_str().unwrap()]).unwrap();
}

/// Opens a copy of a fixture and checks that its jobs are what they were and go on.
async fn goes_on(database: &Path, version: u32) {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(database, folder.path().join("ringmaster.db")).unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let request = v1::ListRequest { include_ended: true };
    let mut jobs = coordinator.jobs.list(request).await.unwrap().into_inner().jobs;
    if version >= 3 {
        let back = jobs.pop().unwrap();
        assert_eq!((back.state(), back.checkpoint_step), (JobState::Queued, 2));
        assert!(back.rolled_back_to.starts_with("/proc/runs/back-"), "{back:?}");
        assert_eq!(back.rolled_back_to, back.checkpoint_url);
    }
    if version >= 2 {
        let paused = jobs.pop().unwrap();
        assert_eq!((paused.state(), paused.reason.as_str()), (JobState::Paused, "lunch"));
        assert_eq!(coordinator.nodes().await[0].availability, "drained: new disk");
    }
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
    assert!(jobs[3].checkpoint_url.ends_with("/step-2"), "{}", jobs[3].checkpoint_url);
    assert!(jobs[4].manifest_yaml.ends_with(" # queued"), "{}", jobs[4].manifest_yaml);

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
        ..Default::default()
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
    goes_on(&fixture("v1"), 1).await;
}

#[tokio::test]
async fn a_database_of_version_2_goes_on() {
    goes_on(&fixture("v2"), 2).await;
}

#[tokio::test]
async fn a_database_of_version_3_goes_on() {
    goes_on(&fixture("v3"), 3).await;
}

/// Its jobs are stored as clients of that commit handed them in: without an envelope, of schema 1, and with every
/// key of the time. The others' are older and say less.
#[tokio::test]
async fn a_database_of_commit_f17f4a4_goes_on() {
    goes_on(&fixture("f17f4a4"), 3).await;
}

#[tokio::test]
async fn the_history_as_this_version_writes_it_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let database = folder.path().join("now.db");
    make(&database).await;
    if let Some(wanted) = std::env::var_os("RINGMASTER_FIXTURE") {
        std::fs::copy(&database, wanted).unwrap();
    }
    goes_on(&database, u32::MAX).await;
}
