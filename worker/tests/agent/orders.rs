//! What the coordinator orders reaches ranks, once, and in the right generation.

use std::time::Instant;

use ringmaster_proto::v1::coordinator_message::Message as Order;
use ringmaster_proto::v1::{Generation, Regenerate, StopRank};

use super::coordinator::Seen;
use super::harness::{Cluster, JOB, is_alive};

fn regenerate(rank: u32, generation: Generation) -> Order {
    Order::Regenerate(Regenerate { job_id: JOB.into(), rank, generation: Some(generation) })
}

fn stop(rank: u32, graceful: bool, grace_ms: u32) -> Order {
    let reason = "cancelled by a test".into();
    Order::StopRank(StopRank { job_id: JOB.into(), rank, graceful, grace_ms, reason })
}

#[tokio::test(flavor = "multi_thread")]
async fn regenerate_reaches_the_ranks_hook_and_its_heartbeats_show_the_new_generation() {
    let cluster = Cluster::start().await;
    cluster.start_training(0, "train").await;
    let generation = Generation::new(1, 2);
    cluster.coordinator.order(regenerate(0, generation)).await;
    let hook = cluster.coordinator.wait_for("the hook's line", |seen| seen.line("hook ")).await;
    assert_eq!(hook, "g1.2");
    cluster.coordinator.wait_for_status(0, |status| status.generation == Some(generation)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_for_a_rank_that_has_not_connected_yet_waits_for_it() {
    let cluster = Cluster::start().await;
    cluster.start_rank(0, Generation::new(1, 1), "train").await;
    cluster.coordinator.order(regenerate(0, Generation::new(1, 2))).await;
    cluster.coordinator.wait_for("the hook's line", |seen| seen.line("hook g1.2")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_regenerated_rank_exits_in_its_new_generation() {
    let cluster = Cluster::start().await;
    let pid = cluster.start_training(0, "train").await;
    let generation = Generation::new(1, 2);
    cluster.coordinator.order(regenerate(0, generation)).await;
    cluster.coordinator.wait_for("the hook's line", |seen| seen.line("hook ")).await;
    super::harness::signal(pid, nix::sys::signal::Signal::SIGKILL);
    assert_eq!(cluster.coordinator.wait_for_exit(0).await.generation, Some(generation));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graceful_stop_lets_the_rank_end_by_itself() {
    let cluster = Cluster::start().await;
    cluster.start_training(0, "train").await;
    cluster.coordinator.order(stop(0, true, 30_000)).await;
    let exit = cluster.coordinator.wait_for_exit(0).await;
    assert_eq!((exit.code, exit.signal), (Some(0), None));
    let find = |seen: &Seen| seen.line("stop graceful=true ");
    let reason = cluster.coordinator.wait_for("the rank's word", find).await;
    assert_eq!(reason, "cancelled by a test");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rank_that_does_not_stop_is_killed_when_its_grace_is_over() {
    let cluster = Cluster::start().await;
    let pid = cluster.start_training(0, "stubborn").await;
    let asked = Instant::now();
    cluster.coordinator.order(stop(0, true, 500)).await;
    let exit = cluster.coordinator.wait_for_exit(0).await;
    assert!(asked.elapsed().as_millis() >= 500, "it had its grace");
    assert_eq!(exit.signal, Some(9));
    assert_eq!(exit.reason, "killed after a grace of 0.5 s (cancelled by a test)");
    assert!(!is_alive(pid));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_graceful_stop_without_a_limit_lasts_until_somebody_sets_one() {
    let cluster = Cluster::start().await;
    let pid = cluster.start_training(0, "stubborn").await;
    cluster.coordinator.order(stop(0, true, 0)).await;
    let find = |seen: &Seen| seen.line("stop graceful=true ");
    cluster.coordinator.wait_for("the rank's word", find).await;
    cluster.coordinator.wait_for_heartbeats(10).await;
    assert!(is_alive(pid) && cluster.coordinator.seen().exits().is_empty());
    cluster.coordinator.order(stop(0, false, 0)).await;
    let exit = cluster.coordinator.wait_for_exit(0).await;
    assert_eq!((exit.signal, exit.cause.as_str()), (Some(9), "killed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_in_a_newer_generation_replaces_the_process_and_a_repeated_one_does_nothing() {
    let cluster = Cluster::start().await;
    let old = cluster.start_training(0, "stubborn").await;
    cluster.start_rank(0, Generation::new(1, 1), "train").await;
    cluster.coordinator.wait_for_heartbeats(4).await;
    assert!(is_alive(old));

    let generation = Generation::new(1, 2);
    cluster.start_rank(0, generation, "train").await;
    let new = cluster
        .coordinator
        .wait_for_status(0, |status| status.step == 5 && status.generation == Some(generation))
        .await;
    assert_ne!(new.pid, old);
    assert!(!is_alive(old));
    assert!(cluster.coordinator.seen().exits().is_empty(), "nobody needs the old one's exit");
}
