//! What people and probes see, and what is refused.

use std::collections::HashMap;

use ringmaster_coordinator::fleet::Config;
use ringmaster_coordinator::server::{ADDRESSES_FILE, Addresses, Error, Server, ServerOptions};
use ringmaster_proto::v1;
use ringmaster_proto::v1::fleet_client::FleetClient;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::fake::{
    Agent, Coordinator, manifest, patient, register, run_two, status, submission, with, within,
};

#[tokio::test]
async fn the_addresses_file_is_there_while_the_coordinator_serves() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(folder.path(), patient()).await;
    let path = folder.path().join(ADDRESSES_FILE);
    let text = std::fs::read_to_string(&path).unwrap();
    let addresses: Addresses = serde_json::from_str(&text).unwrap();
    assert_eq!(&addresses, coordinator.server.addresses());
    coordinator.server.shutdown().await.unwrap();
    assert!(!path.exists());
}

#[tokio::test]
async fn every_listener_answers_the_health_check() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(folder.path(), patient()).await;
    let Addresses { people, fleet, health } = *coordinator.server.addresses();
    for (address, service) in [
        (health, ""),
        (health, "ringmaster.v1.Jobs"),
        (people, "ringmaster.v1.Jobs"),
        (fleet, "ringmaster.v1.Fleet"),
        (fleet, "ringmaster.v1.Ranks"),
    ] {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let mut client = HealthClient::new(endpoint.connect().await.unwrap());
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = client.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{address} {service}");
    }
    let mut wrong = FleetClient::connect(format!("http://{people}")).await.unwrap();
    let refused = wrong.ship_logs(tokio_stream::iter(Vec::new())).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unimplemented, "agents have their own listener");
}

#[tokio::test]
async fn a_state_directory_takes_one_coordinator_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let coordinator = Coordinator::start(folder.path(), patient()).await;
    let any = "127.0.0.1:0".parse().unwrap();
    let options = ServerOptions::new(folder.path(), any, any, any);
    let error = Server::start(options.clone()).await.unwrap_err();
    assert!(matches!(error, Error::InUse { .. }), "{error}");
    coordinator.server.shutdown().await.unwrap();
    Server::start(options).await.unwrap().shutdown().await.unwrap();
}

#[tokio::test]
async fn an_address_others_could_reach_is_refused_unless_insecure() {
    let folder = tempfile::tempdir().unwrap();
    let (any, open) = ("127.0.0.1:0".parse().unwrap(), "0.0.0.0:0".parse().unwrap());
    let options = ServerOptions::new(folder.path(), any, open, any);
    let error = Server::start(options.clone()).await.unwrap_err();
    assert!(error.to_string().contains("fleet address 0.0.0.0:0 is not loopback"), "{error}");
    let server = Server::start(ServerOptions { insecure: true, ..options }).await.unwrap();
    server.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_repeated_submission_is_one_job_also_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let request = submission(manifest("one", 1));
    let first = coordinator.jobs.submit(request.clone()).await.unwrap().into_inner().job_id;
    let second = coordinator.jobs.submit(request.clone()).await.unwrap().into_inner().job_id;
    assert_eq!(first, second);
    coordinator.server.shutdown().await.unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let third = coordinator.jobs.submit(request.clone()).await.unwrap().into_inner().job_id;
    assert_eq!(first, third);
    // Also where it would be refused by now, as by a coordinator of another version.
    let strange = v1::SubmitRequest { models: HashMap::new(), ..request };
    let fourth = coordinator.jobs.submit(strange).await.unwrap().into_inner().job_id;
    assert_eq!(first, fourth);
    let list = coordinator.jobs.list(v1::ListRequest { include_ended: true }).await.unwrap();
    let jobs = list.into_inner().jobs;
    assert_eq!(jobs.len(), 1);
    assert_eq!(jobs[0].manifest_yaml, manifest("one", 1));
    assert_eq!(jobs[0].labels["team"], "tests");
}

#[tokio::test]
async fn submissions_that_cannot_become_jobs_are_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let base = submission(manifest("one", 1));
    let cases = [
        (submission("{}".to_owned()), "job.yaml:1:1: missing key \"apiVersion\""),
        (submission("spec:\n  novel: [1,\n".to_owned()), "not valid YAML"),
        (v1::SubmitRequest { request_id: String::new(), ..base.clone() }, "request_id"),
        (v1::SubmitRequest { base_dir: "here".to_owned(), ..base.clone() }, "base_dir"),
        (v1::SubmitRequest { models: HashMap::new(), ..base.clone() }, "is \"tiny\"; expected one"),
        (submission(with(&manifest("one", 1), "/resources/ranks", 0)), "spec.resources.ranks is 0"),
        (submission(manifest("../evil", 1)), "lower-case letters"),
    ];
    for (request, expected) in cases {
        let status = coordinator.jobs.submit(request).await.unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        assert!(status.message().contains(expected), "{status}");
    }
    let unknown = v1::GetRequest { job_id: "no-such".to_owned() };
    assert_eq!(coordinator.jobs.get(unknown).await.unwrap_err().code(), tonic::Code::NotFound);
}

/// What travels in a call's trailers is bounded by clients, this one's too: the others are counted.
#[tokio::test]
async fn mistakes_of_a_manifest_come_with_their_places_as_many_as_a_client_takes() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let wrong: String = (0..99).map(|n| format!("novelty_{n}: ünknown\n")).collect();
    let status = coordinator.jobs.submit(submission(wrong)).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    let name = "ringmaster.v1.ManifestMistakes";
    let told: v1::ManifestMistakes = ringmaster_proto::status::details(&status, name).unwrap();
    assert!(told.mistakes.len() > 2, "{told:?}");
    assert!(told.mistakes.len() + told.left_out as usize >= 99, "{told:?}");
    let known = told.mistakes.iter().find(|mistake| mistake.field == "novelty_1").unwrap();
    assert_eq!((known.file.as_str(), known.line, known.column), ("job.yaml", 2, 1));
    let line = format!("{}:2:1: {}", known.file, known.message);
    assert!(status.message().contains(&line), "{status}");
    let list = coordinator.jobs.list(v1::ListRequest { include_ended: true }).await.unwrap();
    assert!(list.into_inner().jobs.is_empty());
}

#[tokio::test]
async fn an_agent_of_another_build_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let intervals = Config { build_id: Some("a1".to_owned()), ..patient() };
    let coordinator = Coordinator::start(folder.path(), intervals).await;
    let same = v1::Register { build_id: "a1".to_owned(), ..register("n0", 1) };
    let agent = Agent::register(&coordinator, same).await;
    assert_eq!(agent.registered.heartbeat_interval_ms, 50);

    let mut client = FleetClient::connect(coordinator.fleet_url()).await.unwrap();
    let other = v1::Register { build_id: "b2".to_owned(), ..register("n1", 1) };
    let first = v1::AgentMessage { message: Some(v1::agent_message::Message::Register(other)) };
    let (sender, outbound) = tokio::sync::mpsc::channel(1);
    sender.send(first).await.unwrap();
    let outbound = tokio_stream::wrappers::ReceiverStream::new(outbound);
    let mut inbound = client.session(outbound).await.unwrap().into_inner();
    let status = within("the refusal", inbound.message()).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition);
    assert!(status.message().contains("build b2"), "{status}");
}

#[tokio::test]
async fn logs_are_kept_filtered_and_followed_until_the_job_ends() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    let mut fleet = FleetClient::connect(coordinator.fleet_url()).await.unwrap();
    let line = |rank, text: &str| v1::AgentLogLine {
        job_id: running.job_id.clone(),
        generation: Some(running.generation),
        rank,
        at_ms: 5,
        text: text.to_owned(),
    };
    let batch = v1::LogBatch { lines: vec![line(0, "a"), line(1, "b"), line(0, "c")] };
    fleet.ship_logs(tokio_stream::iter([batch])).await.unwrap();

    let base = v1::LogsRequest { job_id: running.job_id.clone(), ..Default::default() };
    for (request, expected) in [
        (base.clone(), vec!["a", "b", "c"]),
        (v1::LogsRequest { rank: Some(0), ..base.clone() }, vec!["a", "c"]),
        (v1::LogsRequest { tail: 1, ..base.clone() }, vec!["c"]),
    ] {
        let mut lines = coordinator.jobs.logs(request).await.unwrap().into_inner();
        let mut texts = Vec::new();
        while let Some(line) = within("a line", lines.message()).await.unwrap() {
            texts.push(line.text);
        }
        assert_eq!(texts, expected);
    }

    let request = v1::LogsRequest { follow: true, tail: 1, ..base };
    let mut lines = coordinator.jobs.logs(request).await.unwrap().into_inner();
    assert_eq!(within("the tail", lines.message()).await.unwrap().unwrap().text, "c");
    let batch = v1::LogBatch { lines: vec![line(1, "later")] };
    fleet.ship_logs(tokio_stream::iter([batch])).await.unwrap();
    let later = within("the later line", lines.message()).await.unwrap().unwrap();
    assert_eq!((later.text.as_str(), later.rank), ("later", 1));
    agent.fail_twice(&running.starts[0], "no data").await;
    assert_eq!(within("the end", lines.message()).await.unwrap(), None);
}

#[tokio::test]
async fn nodes_and_ranks_are_shown_with_what_they_do() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 3).await;
    let running = run_two(&mut coordinator, &mut agent).await;
    let metrics = v1::StepMetrics { step: 4, loss: 0.5, ..Default::default() };
    let mut first = status(&running.starts[0], 4);
    first.metrics = Some(metrics);
    agent.report(vec![first, status(&running.starts[1], 4)]);
    let job = coordinator
        .until(&running.job_id, "metrics", |job| job.metrics.is_some() && job.ranks[1].step == 4)
        .await;
    assert_eq!(job.metrics, Some(metrics));
    assert_eq!((job.ranks[1].node.as_str(), job.ranks[1].pid), ("n0", 1001));
    assert_eq!(job.ranks[1].phase(), v1::Phase::Compute);
    let nodes = coordinator.jobs.nodes(v1::NodesRequest {}).await.unwrap().into_inner().nodes;
    assert_eq!(nodes.len(), 1);
    assert_eq!((nodes[0].slots, nodes[0].free_slots, nodes[0].connected), (3, 1, true));
}

#[tokio::test]
async fn a_watch_shows_every_change_and_closes_with_the_final_state() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let job_id = coordinator.submit(manifest("one", 1)).await;
    let request = v1::WatchRequest { job_id: job_id.clone() };
    let mut updates = coordinator.jobs.watch(request).await.unwrap().into_inner();
    let first = within("the job now", updates.message()).await.unwrap().unwrap();
    assert_eq!((first.job.unwrap().state(), first.event), (v1::JobState::Queued, None));
    coordinator.cancel(&job_id).await;
    let mut kinds = Vec::new();
    let mut last = None;
    while let Some(update) = within("an update", updates.message()).await.unwrap() {
        kinds.extend(update.event.map(|event| event.kind));
        last = update.job;
    }
    assert_eq!(kinds, ["cancelling", "cancelled"]);
    assert_eq!(last.unwrap().state(), v1::JobState::Cancelled);
}

#[test]
fn a_coordinator_starts_inside_a_process_with_its_own_runtime_in_under_a_second() {
    let limit = std::time::Duration::from_secs(1);
    let took = ringmaster_tests::timing::fastest_of(limit, || {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let begun = std::time::Instant::now();
        let server = runtime.block_on(async {
            let any = "127.0.0.1:0".parse().unwrap();
            Server::start(ServerOptions::new(folder.path(), any, any, any)).await.unwrap()
        });
        let took = begun.elapsed();
        runtime.block_on(server.shutdown()).unwrap();
        took
    });
    assert!(took < limit, "{took:?}");
}
