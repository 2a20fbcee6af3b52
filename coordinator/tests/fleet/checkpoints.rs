//! Granting checkpoints.

use ringmaster_proto::v1;
use tokio::task::JoinHandle;
use tonic::Status;

use crate::fake::{Agent, Coordinator, Rank, killed, patient, run_two, within};

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
