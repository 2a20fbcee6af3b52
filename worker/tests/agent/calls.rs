//! A rank's blocking calls to the coordinator.

use std::thread;

use ringmaster_proto::v1::coordinator_message::Message as Order;
use ringmaster_proto::v1::*;
use ringmaster_worker::control::coordinator::{Error, RanksClient};
use tonic::{Code, Status};

use super::coordinator::{Coordinator, Seen};
use super::harness::{Cluster, JOB};

const FIRST: Generation = Generation::new(1, 1);

fn request(generation: Generation) -> JoinRequest {
    JoinRequest { job_id: JOB.into(), generation: Some(generation), ..JoinRequest::default() }
}

async fn wait_for_joins(coordinator: &Coordinator, count: usize) {
    let find = |seen: &Seen| (seen.joins.len() >= count).then_some(());
    coordinator.wait_for("a join", find).await;
}

/// Joins on a thread of its own: the calls block.
fn join(client: &RanksClient) -> thread::JoinHandle<Result<JoinReply, Error>> {
    let client = client.clone();
    thread::spawn(move || client.join(request(FIRST), client.interruptions()))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_wakes_a_join_that_waits_for_its_peers() {
    let coordinator = Coordinator::start().await;
    let client = RanksClient::start(&coordinator.url()).unwrap();
    let waiting = join(&client);
    wait_for_joins(&coordinator, 1).await;
    assert!(!waiting.is_finished());
    client.interrupt();
    assert!(matches!(waiting.join().unwrap(), Err(Error::Interrupted)));

    // The next join is not affected.
    let reply = JoinReply { world_size: 2, ..JoinReply::default() };
    coordinator.behave(|manners| drop(manners.joins.insert(FIRST, Ok(reply.clone()))));
    assert_eq!(join(&client).join().unwrap().unwrap(), reply);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_superseded_join_says_so() {
    let coordinator = Coordinator::start().await;
    let aborted = Status::aborted("g1.3 is current");
    coordinator.behave(|manners| drop(manners.joins.insert(FIRST, Err(aborted))));
    let client = RanksClient::start(&coordinator.url()).unwrap();
    let error = join(&client).join().unwrap().unwrap_err();
    assert!(matches!(error, Error::Superseded(message) if message == "g1.3 is current"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_outlives_the_coordinator_it_was_sent_to() {
    let mut coordinator = Coordinator::start().await;
    let client = RanksClient::start(&coordinator.url()).unwrap();
    let waiting = join(&client);
    wait_for_joins(&coordinator, 1).await;
    coordinator.crash();
    coordinator.resume().await;
    wait_for_joins(&coordinator, 2).await;
    let reply = JoinReply { world_size: 2, token: vec![7; 32], ..JoinReply::default() };
    coordinator.behave(|manners| drop(manners.joins.insert(FIRST, Ok(reply.clone()))));
    assert_eq!(waiting.join().unwrap().unwrap(), reply);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_calls_return_the_coordinators_answer_or_its_refusal() {
    let coordinator = Coordinator::start().await;
    let client = RanksClient::start(&coordinator.url()).unwrap();
    thread::spawn(move || {
        client.report_shard(ReportShardRequest::default()).unwrap();
        client.checkpoint_published(CheckpointPublishedRequest::default()).unwrap();
        let commit = |step| CommitCheckpointRequest { step, ..CommitCheckpointRequest::default() };
        assert_eq!(client.commit_checkpoint(commit(7)).unwrap().objects[0].size, 7);
        assert!(matches!(client.commit_checkpoint(commit(0)), Err(Error::Superseded(_))));
        let error = client.finish(FinishRequest::default()).unwrap_err();
        assert!(matches!(error, Error::Refused { call: "Finish", code: Code::NotFound, .. }));
    })
    .join()
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_interrupts_a_ranks_join_and_it_joins_the_newer_generation() {
    let cluster = Cluster::start().await;
    cluster.start_rank(0, FIRST, "join").await;
    wait_for_joins(&cluster.coordinator, 1).await;
    let newer = Generation::new(1, 2);
    let reply = JoinReply { world_size: 2, ..JoinReply::default() };
    cluster.coordinator.behave(|manners| drop(manners.joins.insert(newer, Ok(reply))));
    let regenerate = Regenerate { job_id: JOB.into(), rank: 0, generation: Some(newer) };
    cluster.coordinator.order(Order::Regenerate(regenerate)).await;
    cluster.coordinator.wait_for("the newer join", |seen| seen.line("joined g1.2 of 2")).await;
    assert_eq!(cluster.coordinator.wait_for_exit(0).await.code, Some(0));
}
