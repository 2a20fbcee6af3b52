//! The session survives what happens to it, and logs do not disturb it.

use ringmaster_agent::{Agent, Error, Options, RankProgram};
use ringmaster_proto::v1::coordinator_message::Message as Order;
use ringmaster_proto::v1::{Dial, DialPeer, Generation, SlotsOut};

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
    assert_eq!(register.instance.len(), 16);
    assert!(register.dial_address.starts_with("127.0.0.1:"), "{}", register.dial_address);
    assert_eq!(register.slots_out, Some(SlotsOut::default()));
}

/// Two agents of one name replaced each other's session ten times a second, and each turn lost the other's
/// ranks.
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_whose_name_another_one_has_tries_again_until_that_one_is_gone() {
    let coordinator = Coordinator::start().await;
    coordinator.behave(|manners| manners.knows_another = true);
    let folder = tempfile::tempdir().unwrap();
    let agent = Agent::build(options(&coordinator, &folder)).unwrap();
    let running = tokio::spawn(agent.run(std::future::pending(), std::future::pending()));
    let twice = |seen: &Seen| (seen.turned_away >= 2).then_some(());
    coordinator.wait_for("a second attempt", twice).await;
    assert!(!running.is_finished() && coordinator.seen().registrations().is_empty());
    coordinator.behave(|manners| manners.knows_another = false);
    coordinator.wait_for_registrations(1).await;
    assert!(!running.is_finished());
}

/// They went on for an hour in a ring of which the coordinator knew nothing any more.
#[tokio::test(flavor = "multi_thread")]
async fn the_ranks_of_an_agent_whose_name_another_one_has_are_ended() {
    let mut cluster = Cluster::start().await;
    let pid = cluster.start_training(1, "train").await;
    cluster.coordinator.crash();
    cluster.coordinator.behave(|manners| manners.knows_another = true);
    cluster.coordinator.resume().await;
    let once = |seen: &Seen| (seen.turned_away >= 1).then_some(());
    cluster.coordinator.wait_for("an attempt", once).await;
    cluster.coordinator.behave(|manners| manners.knows_another = false);
    let exit = cluster.coordinator.wait_for_exit(1).await;
    assert_eq!(exit.signal, Some(9), "process {pid}: {exit:?}");
    assert!(exit.reason.contains("another agent has this node's name"), "{exit:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_session_is_of_the_same_instance_and_another_agent_is_another() {
    let mut cluster = Cluster::start().await;
    cluster.coordinator.crash();
    cluster.coordinator.resume().await;
    cluster.coordinator.wait_for_registrations(2).await;
    let instances = |cluster: &Cluster| -> Vec<String> {
        let seen = cluster.coordinator.seen();
        seen.registrations().iter().map(|register| register.instance.clone()).collect()
    };
    let of_one = instances(&cluster);
    assert_eq!(of_one[0], of_one[1]);
    assert_ne!(instances(&Cluster::start().await)[0], of_one[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_says_which_nodes_it_reaches_while_its_heartbeats_go_on() {
    let cluster = Cluster::start().await;
    let own = cluster.coordinator.seen().registrations()[0].dial_address.clone();
    // It takes connections and says nothing: found by the limit alone.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = (silent.local_addr().unwrap().to_string(), silent);
    let peer = |node: &str, address: &str| DialPeer { node: node.into(), address: address.into() };
    let generation = Some(Generation::new(1, 3));
    let peers = vec![peer("node-a", &own), peer("node-b", &own), peer("node-c", &silent.0)];
    let dial = Dial { job_id: JOB.into(), generation, peers };
    cluster.coordinator.order(Order::Dial(dial)).await;
    cluster.coordinator.wait_for_heartbeats(5).await;
    let dialled = |seen: &Seen| seen.dialled().cloned();
    let dialled = cluster.coordinator.wait_for("the answer", dialled).await;
    assert_eq!((dialled.job_id.as_str(), dialled.generation), (JOB, generation));
    let unreached: Vec<(&str, &str)> =
        dialled.unreached.iter().map(|peer| (peer.node.as_str(), peer.why.as_str())).collect();
    assert_eq!(unreached, [("node-b", "node-a answers there"), ("node-c", "no answer within 3 s")]);
}

#[test]
fn an_address_that_stands_for_any_is_refused_before_anything_starts() {
    let folder = tempfile::tempdir().unwrap();
    let program = RankProgram::Other(probe_program());
    let mut options =
        Options::new("http://127.0.0.1:9", "node-a", 1, folder.path().join("work"), program);
    options.address = Some("0.0.0.0".to_owned());
    assert!(matches!(Agent::build(options).unwrap_err(), Error::Advertised(_)));
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
