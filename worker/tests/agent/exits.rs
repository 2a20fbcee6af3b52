//! How ranks end, and what the coordinator hears of it.

use std::time::Duration;

use nix::sys::signal::Signal;
use ringmaster_agent::RankProgram;
use ringmaster_proto::v1::coordinator_message::Message as Order;
use ringmaster_proto::v1::{ExitClass, Generation, Phase, RankExited, StopRank};

use super::coordinator::Seen;
use super::harness::{Cluster, JOB, is_alive, signal, wait_until_gone};

const FIRST: Generation = Generation::new(1, 1);

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_is_reported_and_once_it_is_acknowledged_no_more() {
    let cluster = Cluster::start().await;
    cluster.start_rank(0, FIRST, "exit 3").await;
    let exit = cluster.coordinator.wait_for_exit(0).await;
    assert_eq!((exit.job_id.as_str(), exit.generation), (JOB, Some(FIRST)));
    assert_eq!((exit.code, exit.signal), (Some(3), None));
    assert!(exit.reason.starts_with("exited with code 3"), "{}", exit.reason);
    assert_eq!(identity(&exit), (ExitClass::Retry, "run", "code 3"));
    cluster.coordinator.wait_for_ack().await;
    let sent = exits_of_rank_0(&cluster);
    cluster.coordinator.wait_for_heartbeats(6).await;
    assert_eq!(exits_of_rank_0(&cluster), sent);
    // On a busy machine it may have been repeated before.
    assert!(sent.iter().all(|again| *again == exit), "{sent:#?}");
}

fn identity(exit: &RankExited) -> (ExitClass, &str, &str) {
    (exit.class(), &exit.operation, &exit.cause)
}

fn exits_of_rank_0(cluster: &Cluster) -> Vec<RankExited> {
    let seen = cluster.coordinator.seen();
    seen.exits().into_iter().filter(|exit| exit.rank == 0).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_is_repeated_under_the_same_id_until_it_is_acknowledged() {
    let cluster = Cluster::start().await;
    cluster.coordinator.behave(|manners| manners.withholds_acks = true);
    cluster.start_rank(0, FIRST, "exit 0").await;
    let twice = |seen: &Seen| (seen.exits().len() >= 2).then(|| seen.clone());
    let seen = cluster.coordinator.wait_for("a repeated exit", twice).await;
    assert_eq!(seen.exits()[0], seen.exits()[1]);

    // A lost session does not lose it either.
    let sent = seen.exits().len();
    cluster.coordinator.hang_up();
    cluster.coordinator.wait_for_registrations(2).await;
    let again = |seen: &Seen| (seen.exits().len() > sent).then_some(());
    cluster.coordinator.wait_for("the exit in the new session", again).await;

    cluster.coordinator.behave(|manners| manners.withholds_acks = false);
    cluster.coordinator.wait_for_ack().await;
    let sent = exits_of_rank_0(&cluster);
    cluster.coordinator.wait_for_heartbeats(6).await;
    assert_eq!(exits_of_rank_0(&cluster), sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_rank_is_reported_with_its_signal_and_where_it_was() {
    let cluster = Cluster::start().await;
    let pid = cluster.start_training(1, "train").await;
    signal(pid, Signal::SIGKILL);
    let exit = cluster.coordinator.wait_for_exit(1).await;
    assert_eq!((exit.code, exit.signal), (None, Some(9)));
    assert!(exit.reason.contains("SIGKILL"), "{}", exit.reason);
    assert_eq!(identity(&exit), (ExitClass::Retry, "run", "signal 9"));
    assert_eq!((exit.last_phase(), exit.last_step), (Phase::Compute, 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn last_words_travel_from_the_status_file() {
    let cluster = Cluster::start().await;
    cluster.start_rank(0, FIRST, "words /data/emoji-00007.tar does not exist").await;
    let exit = cluster.coordinator.wait_for_exit(0).await;
    assert_eq!(exit.reason, "/data/emoji-00007.tar does not exist");
    assert_eq!(identity(&exit), (ExitClass::Node, "open data", "data: missing"));
    assert_eq!((exit.code, exit.undead), (Some(77), false));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_on_any_thread_ends_the_rank_with_its_message() {
    let cluster = Cluster::start().await;
    cluster.start_rank(0, FIRST, "panic").await;
    let exit = cluster.coordinator.wait_for_exit(0).await;
    assert_eq!((exit.code, exit.class()), (Some(101), ExitClass::Retry));
    for part in ["\"loader\"", "probe.rs", "the flywheel came off"] {
        assert!(exit.reason.contains(part), "{}", exit.reason);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_that_is_turned_into_an_error_does_not_end_the_rank() {
    let cluster = Cluster::start().await;
    cluster.start_rank(0, FIRST, "catch").await;
    let exit = cluster.coordinator.wait_for_exit(0).await;
    assert_eq!(exit.code, Some(0), "{}", exit.reason);
    let message = cluster.coordinator.wait_for("the message", |seen| seen.line("caught ")).await;
    assert_eq!(message, "the decoder meets a file");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_a_rank_started_survives_it() {
    let cluster = Cluster::start().await;
    cluster.start_rank(0, FIRST, "abandon").await;
    let exit = cluster.coordinator.wait_for_exit(0).await;
    assert_eq!(exit.code, Some(0));
    let child = cluster.coordinator.wait_for("the child's pid", |seen| seen.line("child ")).await;
    // The exit is not known before everything is gone.
    assert!(!is_alive(child.parse().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_cannot_be_started_is_reported_as_an_exit() {
    let cluster = Cluster::start_with(|options| {
        options.rank_program = RankProgram::Other(vec!["/nonexistent/rank".into()])
    })
    .await;
    cluster.start_rank(0, FIRST, "exit 0").await;
    let exit = cluster.coordinator.wait_for_exit(0).await;
    assert_eq!((exit.code, exit.signal, exit.generation), (None, None, Some(FIRST)));
    assert!(exit.reason.contains("cannot start the rank"), "{}", exit.reason);
    assert_eq!(identity(&exit), (ExitClass::Node, "exec", "NotFound"));
}

/// While the first rank of a node was started on a file system that hung, no heartbeat left the node, and all
/// its jobs lost their ranks.
#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_that_hangs_stops_no_heartbeat_and_a_rank_that_waits_for_it_can_be_killed() {
    let mut work = None;
    let cluster = Cluster::start_with(|options| work = Some(options.work_dir.clone())).await;
    // Who opens a FIFO to write waits until somebody reads.
    let folder = work.unwrap().join(JOB);
    std::fs::create_dir_all(&folder).unwrap();
    let manifest = folder.join(format!("{FIRST}-rank0.manifest.json"));
    nix::unistd::mkfifo(&manifest, nix::sys::stat::Mode::S_IRWXU).unwrap();
    cluster.start_rank(0, FIRST, "exit 0").await;
    cluster.coordinator.wait_for_heartbeats(6).await;
    let reason = "cancelled by a test".into();
    let stop = StopRank { job_id: JOB.into(), reason, ..StopRank::default() };
    cluster.coordinator.order(Order::StopRank(stop)).await;
    let exit = cluster.coordinator.wait_for_exit(0).await;
    assert_eq!(exit.reason, "killed: cancelled by a test");
    assert_eq!(identity(&exit), (ExitClass::Retry, "run", "killed"));
    // The launcher goes on with the next one.
    let read = tokio::task::spawn_blocking(move || std::fs::read(manifest).unwrap());
    assert_eq!(read.await.unwrap(), b"exit 0");
    cluster.start_rank(1, FIRST, "exit 3").await;
    assert_eq!(cluster.coordinator.wait_for_exit(1).await.code, Some(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_fled_into_a_session_of_its_own_does_not_survive_either() {
    let cluster = Cluster::start().await;
    cluster.start_rank(0, FIRST, "daemon").await;
    let child = cluster.coordinator.wait_for("the child's pid", |seen| seen.line("child ")).await;
    cluster.coordinator.wait_for_exit(0).await;
    assert!(!is_alive(child.parse().unwrap()));
}

/// Its silence would show it only after three signs of life.
#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_process_is_found_by_its_state_and_killed() {
    let cluster = Cluster::start().await;
    let pid = cluster.start_training(0, "family").await;
    signal(pid, Signal::SIGSTOP);
    let exit = cluster.coordinator.wait_for_exit(0).await;
    assert_eq!(exit.signal, Some(9));
    assert_eq!(exit.reason, "stopped by a signal (state T) for 1.5 s");
    assert_eq!(identity(&exit), (ExitClass::Retry, "run", "stopped"));
    wait_until_gone(&[pid]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_told_to_end_says_that_it_leaves_and_lets_its_ranks_stop_by_themselves() {
    let cluster = Cluster::start().await;
    let pid = cluster.start_training(0, "train").await;
    let coordinator = cluster.stop().await;
    assert!(!is_alive(pid));
    let exit = coordinator.wait_for_exit(0).await;
    assert_eq!((exit.code, exit.signal), (Some(0), None));
    let find = |seen: &Seen| seen.line("stop graceful=true ");
    let reason = coordinator.wait_for("the rank's word", find).await;
    assert_eq!(reason, "the agent was told to end");
    assert_eq!(coordinator.seen().leaving().unwrap().grace_ms, 25_000);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_told_to_end_kills_what_does_not_stop_within_its_grace() {
    let grace = Duration::from_millis(500);
    let cluster = Cluster::start_with(|options| options.grace = grace).await;
    let pid = cluster.start_training(0, "stubborn").await;
    let coordinator = cluster.stop().await;
    assert!(!is_alive(pid));
    let exit = coordinator.wait_for_exit(0).await;
    assert_eq!(exit.signal, Some(9));
    assert!(exit.reason.contains("the agent"), "{}", exit.reason);
}
