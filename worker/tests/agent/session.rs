//! The session survives what happens to it, and logs do not disturb it.

use ringmaster_agent::{Agent, Error, Options, RankProgram};
use ringmaster_proto::v1::Generation;

use super::coordinator::{Coordinator, Seen};
use super::harness::{BUILD_ID, Cluster, JOB, options, probe_program};

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_registers_what_it_is() {
    let cluster = Cluster::start().await;
    let seen = cluster.coordinator.seen();
    let register = seen.registrations()[0];
    assert_eq!((register.node.as_str(), register.slots), ("node-a", 2));
    assert_eq!((register.accelerator.as_str(), register.address.as_str()), ("cpu", "127.0.0.1"));
    assert_eq!(register.pid, std::process::id());
    assert!(register.running.is_empty() && register.cpus >= 1);
    assert_eq!(register.build_id, BUILD_ID);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_shares_its_host_registers_only_its_cores() {
    let cluster = Cluster::start_with(|options| options.cpus = 3).await;
    assert_eq!(cluster.coordinator.seen().registrations()[0].cpus, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_session_names_the_ranks_that_still_run() {
    let mut cluster = Cluster::start().await;
    let pid = cluster.start_training(1, "train").await;
    cluster.coordinator.crash();
    cluster.coordinator.resume().await;
    cluster.coordinator.wait_for_registrations(2).await;
    let seen = cluster.coordinator.seen();
    let register = seen.registrations()[1];
    let generation = Generation::new(1, 1);
    assert_eq!(register.highest_generation, Some(generation));
    let running = &register.running[..];
    assert_eq!(running.len(), 1);
    assert_eq!((running[0].job_id.as_str(), running[0].rank), (JOB, 1));
    assert_eq!((running[0].pid, running[0].generation), (pid, Some(generation)));
    // And it is the same process that goes on.
    cluster.coordinator.wait_for_heartbeats(2).await;
    assert_eq!(cluster.coordinator.seen().status(1).unwrap().pid, pid);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_refused_at_first_ends_with_the_coordinators_words() {
    let coordinator = Coordinator::start().await;
    coordinator.behave(|manners| manners.refuses_agents = Some("this is build 1, not 2".into()));
    let folder = tempfile::tempdir().unwrap();
    let agent = Agent::build(options(&coordinator, &folder)).unwrap();
    let error = agent.run(std::future::pending(), std::future::pending()).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }));
    assert!(error.to_string().contains("this is build 1, not 2"), "{error}");
}

/// `--coordinator` named the listener for commands: the agent tried for ever.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_ends_when_what_answers_has_no_service_for_agents() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let nothing = tonic::service::Routes::default();
    let server = tonic::transport::Server::builder().add_routes(nothing);
    tokio::spawn(server.serve_with_incoming(incoming));
    let folder = tempfile::tempdir().unwrap();
    let work_dir = folder.path().join("work");
    let options = Options::new(&url, "node-a", 1, work_dir, RankProgram::Other(probe_program()));
    let agent = Agent::build(options).unwrap();
    let error = agent.run(std::future::pending(), std::future::pending()).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&url) && text.contains("has no service for agents"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_arrive_complete_and_in_order_and_a_stuck_sink_delays_no_heartbeat() {
    let cluster = Cluster::start().await;
    cluster.coordinator.behave(|manners| manners.takes_no_logs = true);
    // More than all queues and windows between rank and sink hold.
    let count = 20_000;
    cluster.start_rank(0, Generation::new(1, 1), &format!("print {count}")).await;
    cluster.coordinator.wait_for_exit(0).await;
    cluster.coordinator.wait_for_heartbeats(10).await;
    assert!(cluster.coordinator.seen().lines.is_empty());

    cluster.coordinator.behave(|manners| manners.takes_no_logs = false);
    let last = format!("line {}", count - 1);
    let arrived = |seen: &Seen| seen.line(&last).map(|_| seen.lines.clone());
    let lines = cluster.coordinator.wait_for("the last line", arrived).await;
    let numbers: Vec<usize> =
        lines.iter().filter_map(|line| line.text.strip_prefix("line ")?.parse().ok()).collect();
    assert!(numbers.into_iter().eq(0..count));
    let line = lines.last().unwrap();
    assert_eq!((line.job_id.as_str(), line.rank), (JOB, 0));
    assert_eq!(line.generation, Some(Generation::new(1, 1)));
    assert!(line.at_ms > 1_700_000_000_000);
}
