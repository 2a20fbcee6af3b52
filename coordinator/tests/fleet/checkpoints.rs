//! Granting checkpoints.

use ringmaster_proto::v1;
use tokio::task::JoinHandle;
use tonic::Status;

use crate::fake::{Agent, Coordinator, Rank, exited, killed, patient, run_two, within};

fn object(rank: u32) -> v1::StoredObject {
    v1::StoredObject {
        name: format!("optim-0000{rank}-of-00002.safetensors"),
        size: 10 + u64::from(rank),
        blake3: vec!["ab".repeat(32)],
        ..Default::default()
    }
}

async fn report(
    ranks: &Rank,
    job_id: &str,
    generation: v1::Generation,
    rank: u32,
) -> Result<(), Status> {
    let request = v1::ReportShardRequest {
        job_id: job_id.to_owned(),
        generation: Some(generation),
        rank,
        step: 2,
        objects: vec![object(rank)],
        failure: String::new(),
    };
    ranks.client.clone().report_shard(request).await.map(drop)
}

fn commit(
    ranks: &Rank,
    job_id: &str,
    generation: v1::Generation,
) -> JoinHandle<Result<Vec<v1::StoredObject>, Status>> {
    let request = v1::CommitCheckpointRequest {
        job_id: job_id.to_owned(),
        generation: Some(generation),
        step: 2,
        digest: u64::MAX,
    };
    let mut client = ranks.client.clone();
    tokio::spawn(async move { Ok(client.commit_checkpoint(request).await?.into_inner().objects) })
}

async fn publish(ranks: &Rank, job_id: &str, generation: v1::Generation) -> Result<(), Status> {
    let request = v1::CheckpointPublishedRequest {
        job_id: job_id.to_owned(),
        generation: Some(generation),
        step: 2,
        url: "file:///runs/two/step-2".to_owned(),
    };
    ranks.client.clone().checkpoint_published(request).await.map(drop)
}

#[tokio::test]
async fn a_rank_that_cannot_store_its_part_ends_the_wait_for_the_grant() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    let (job_id, generation) = (running.job_id.as_str(), running.generation);
    let ranks = coordinator.ranks().await;

    report(&ranks, job_id, generation, 0).await.unwrap();
    let waiting = commit(&ranks, job_id, generation);
    let request = v1::ReportShardRequest {
        job_id: job_id.to_owned(),
        generation: Some(generation),
        rank: 1,
        step: 2,
        objects: Vec::new(),
        failure: "no space left on device".to_owned(),
    };
    ranks.client.clone().report_shard(request).await.unwrap();
    let refused = within("the refusal", waiting).await.unwrap().unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert!(refused.message().contains("rank 1 could not store its part: no space"), "{refused}");

    // The last checkpoint of a run is tried until it succeeds.
    for rank in [0, 1] {
        report(&ranks, job_id, generation, rank).await.unwrap();
    }
    let again = within("the grant", commit(&ranks, job_id, generation)).await.unwrap().unwrap();
    assert_eq!(again, [object(0), object(1)]);
}

#[tokio::test]
async fn a_grant_waits_for_every_shard_and_names_all_objects() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    let (job_id, generation) = (running.job_id.as_str(), running.generation);
    let ranks = coordinator.ranks().await;

    report(&ranks, job_id, generation, 1).await.unwrap();
    let waiting = commit(&ranks, job_id, generation);
    assert!(!waiting.is_finished());
    report(&ranks, job_id, generation, 0).await.unwrap();
    let objects = within("the grant", waiting).await.unwrap().unwrap();
    assert_eq!(objects, [object(0), object(1)]);
    let again = within("the repeated grant", commit(&ranks, job_id, generation)).await;
    assert_eq!(again.unwrap().unwrap(), objects, "a lost answer is given again");

    publish(&ranks, job_id, generation).await.unwrap();
    publish(&ranks, job_id, generation).await.unwrap();
    let job = coordinator.get(job_id).await;
    assert_eq!((job.checkpoint_step, job.checkpoint_url.as_str()), (2, "file:///runs/two/step-2"));
    let kinds = coordinator.kinds(job_id).await;
    assert_eq!(kinds.iter().filter(|kind| *kind == "checkpoint").count(), 1);
}

#[tokio::test]
async fn a_stale_generation_gets_no_grant_not_even_one_that_waits() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    let (job_id, generation) = (running.job_id.as_str(), running.generation);
    let ranks = coordinator.ranks().await;

    report(&ranks, job_id, generation, 0).await.unwrap();
    let waiting = commit(&ranks, job_id, generation);
    agent.exit(killed(&running.starts[1])).await;
    let status = within("the refusal", waiting).await.unwrap().unwrap_err();
    assert_eq!(status.code(), tonic::Code::Aborted);
    let late = [
        report(&ranks, job_id, generation, 1).await.unwrap_err(),
        within("the refusal", commit(&ranks, job_id, generation)).await.unwrap().unwrap_err(),
        publish(&ranks, job_id, generation).await.unwrap_err(),
    ];
    assert_eq!(late.map(|status| status.code()), [tonic::Code::Aborted; 3]);
}

#[tokio::test]
async fn a_checkpoint_half_reported_before_a_restart_is_granted_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    let (job_id, generation) = (running.job_id.as_str(), running.generation);
    report(&coordinator.ranks().await, job_id, generation, 1).await.unwrap();
    coordinator.server.shutdown().await.unwrap();

    let coordinator = Coordinator::start(folder.path(), patient()).await;
    let ranks = coordinator.ranks().await;
    report(&ranks, job_id, generation, 0).await.unwrap();
    let objects = within("the grant", commit(&ranks, job_id, generation)).await.unwrap();
    assert_eq!(objects.unwrap(), [object(0), object(1)]);
}

/// Seed 1102 of the simulation: a job that had made room went on with fewer ranks, and a part that the ring
/// before had stored completed its first checkpoint.
#[tokio::test]
async fn a_part_that_the_ring_before_a_pause_has_stored_is_no_part_of_the_next_one_s() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    let (job_id, first) = (running.job_id.clone(), running.generation);
    let ranks = coordinator.ranks().await;
    report(&ranks, &job_id, first, 1).await.unwrap();
    coordinator.pause(&job_id).await;
    agent.report(Vec::new());
    for start in &running.starts {
        agent.exit(exited(start, 0)).await;
    }
    coordinator.until_state(&job_id, v1::JobState::Paused).await;
    coordinator.resume(&job_id).await;
    let again = run_again(&mut coordinator, &mut agent, &job_id).await;

    report(&ranks, &job_id, again, 0).await.unwrap();
    let waiting = commit(&ranks, &job_id, again);
    let other = v1::StoredObject { size: 77, ..object(1) };
    let part = v1::ReportShardRequest {
        job_id: job_id.clone(),
        generation: Some(again),
        rank: 1,
        step: 2,
        objects: vec![other.clone()],
        failure: String::new(),
    };
    // Not before it is known that the wait has begun.
    report(&ranks, &job_id, again, 0).await.unwrap();
    ranks.client.clone().report_shard(part).await.unwrap();
    let objects = within("the grant", waiting).await.unwrap().unwrap();
    assert_eq!(objects, [object(0), other]);
}

/// Starts and joins both ranks of a job that was resumed; returns its generation.
async fn run_again(
    coordinator: &mut Coordinator,
    agent: &mut Agent,
    job_id: &str,
) -> v1::Generation {
    let mut starts = Vec::new();
    while starts.len() < 2 {
        if let v1::coordinator_message::Message::StartRank(start) = agent.next().await {
            starts.push(start);
        }
    }
    let generation = starts[0].generation.unwrap();
    coordinator.ranks().await.join_all(job_id, generation, &[(0, None), (1, None)]).await;
    generation
}
