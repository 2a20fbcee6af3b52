//! Nodes that do not reach one another, addresses at which nobody is, and nodes that are cut off.

use std::path::Path;
use std::time::Duration;

use ringmaster_coordinator::fleet::Config;
use ringmaster_proto::v1::agent_message::Message as FromAgent;
use ringmaster_proto::v1::coordinator_message::Message as ToAgent;
use ringmaster_proto::v1::{self, JobState, Phase, RingLossKind};

use crate::fake::{
    Agent, Coordinator, elastic, hasty, held, joined, manifest, patient, refused, register, status,
    with, within,
};

/// An agent that answers dials.
async fn answering(coordinator: &Coordinator, node: &str, slots: u32) -> Agent {
    let dial_address = format!("{node}:7");
    Agent::register(coordinator, v1::Register { dial_address, ..register(node, slots) }).await
}

async fn dial(agent: &mut Agent) -> v1::Dial {
    match agent.next().await {
        ToAgent::Dial(dial) => dial,
        other => panic!("not Dial: {other:?}"),
    }
}

/// Says that all peers were reached but these.
async fn answer(agent: &Agent, dial: &v1::Dial, unreached: &[&str]) {
    let unreached = dial.peers.iter().filter(|peer| unreached.contains(&peer.node.as_str()));
    let unreached = unreached.map(|peer| v1::Unreached {
        node: peer.node.clone(),
        address: peer.address.clone(),
        why: "connection refused".to_owned(),
    });
    agent
        .say(FromAgent::Dialled(v1::Dialled {
            job_id: dial.job_id.clone(),
            generation: dial.generation,
            unreached: unreached.collect(),
        }))
        .await;
}

/// A job of two ranks on two nodes, whose agents have been asked whether they reach one another.
async fn two_asked(coordinator: &mut Coordinator) -> (String, [Agent; 2], [v1::Dial; 2]) {
    let mut agents = [answering(coordinator, "n0", 1).await, answering(coordinator, "n1", 1).await];
    let job_id = coordinator.submit(manifest("two", 2)).await;
    let asked = [dial(&mut agents[0]).await, dial(&mut agents[1]).await];
    (job_id, agents, asked)
}

async fn event(coordinator: &mut Coordinator, job_id: &str, kind: &str) -> String {
    let events = coordinator.events(job_id).await;
    let event = events.into_iter().find(|event| event.kind == kind);
    event.unwrap_or_else(|| panic!("no event {kind}")).message
}

#[tokio::test]
async fn nodes_are_asked_whether_they_reach_one_another_before_ranks_are_started() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let (_, mut agents, asked) = two_asked(&mut coordinator).await;
    assert_eq!([&asked[0].peers[0].node, &asked[1].peers[0].node], ["n1", "n0"]);
    assert_eq!(asked[0].peers[0].address, "n1:7");
    for (agent, dial) in agents.iter().zip(&asked) {
        answer(agent, dial, &[]).await;
    }
    assert_eq!([agents[0].start_rank().await.rank, agents[1].start_rank().await.rank], [0, 1]);
}

#[tokio::test]
async fn two_nodes_that_do_not_reach_one_another_are_named_and_a_spare_takes_the_place_of_one() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let (job_id, mut agents, asked) = two_asked(&mut coordinator).await;
    let mut spare = answering(&coordinator, "n2", 1).await;
    answer(&agents[0], &asked[0], &["n1"]).await;
    answer(&agents[1], &asked[1], &["n0"]).await;

    // The spare is asked for n0 alone, and n0 for it.
    let asked = [dial(&mut agents[0]).await, dial(&mut spare).await];
    assert_eq!([&asked[0].peers[0].node, &asked[1].peers[0].node], ["n2", "n0"]);
    answer(&agents[0], &asked[0], &[]).await;
    answer(&spare, &asked[1], &[]).await;
    assert_eq!([agents[0].start_rank().await.rank, spare.start_rank().await.rank], [0, 1]);
    let told = event(&mut coordinator, &job_id, "unreachable").await;
    assert_eq!(told, "n0 does not reach n1 at n1:7: connection refused");
    let nodes = coordinator.nodes().await;
    assert!(nodes.iter().all(|node| node.availability == "ready" && node.faults == 0.0));
}

/// Its ranks waited for their nodes to reach one another, and one was started there later.
#[tokio::test]
async fn ranks_that_have_not_been_started_leave_a_drained_node_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let (job_id, mut agents, asked) = two_asked(&mut coordinator).await;
    coordinator.set_node("n0", false).await;
    coordinator.until(&job_id, "waiting", |job| job.reason.starts_with("needs 2")).await;
    answer(&agents[0], &asked[0], &[]).await;
    answer(&agents[1], &asked[1], &[]).await;
    agents[1].start_rank().await;
    let mut spare = answering(&coordinator, "n2", 1).await;
    let asked = [dial(&mut agents[1]).await, dial(&mut spare).await];
    answer(&agents[1], &asked[0], &[]).await;
    answer(&spare, &asked[1], &[]).await;
    assert_eq!(spare.start_rank().await.rank, 0);
}

#[tokio::test]
async fn a_node_that_is_about_to_leave_is_no_spare() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { dial_deadline: Duration::from_secs(2), ..patient() };
    let mut coordinator = Coordinator::start(folder.path(), config).await;
    let mut leaves = answering(&coordinator, "n2", 1).await;
    leaves.say(FromAgent::Leaving(v1::Leaving { grace_ms: 60_000, ..Default::default() })).await;
    // What it says after that is answered once that has been heard.
    leaves.exit(v1::RankExited { exit_id: "nobody's".to_owned(), ..Default::default() }).await;
    let (_, mut agents, asked) = two_asked(&mut coordinator).await;
    answer(&agents[0], &asked[0], &["n1"]).await;
    answer(&agents[1], &asked[1], &["n0"]).await;
    assert_eq!(dial(&mut agents[0]).await.peers[0].node, "n1", "the two are tried again");
}

/// A job of one rank that is about to grow onto a second node, which has not said yet whom it reaches.
struct Growing {
    coordinator: Coordinator,
    _first: Agent,
    second: Agent,
    job_id: String,
    join: tokio::task::JoinHandle<Result<v1::JoinReply, tonic::Status>>,
}

async fn growing(state_dir: &Path, config: Config) -> Growing {
    let mut coordinator = Coordinator::start(state_dir, config).await;
    let mut first = answering(&coordinator, "n0", 1).await;
    let job_id = coordinator.submit(elastic("grow", 1, 2)).await;
    let start = first.start_rank().await;
    first.report(vec![status(&start, 0)]);
    let (ranks, generation) = (coordinator.ranks().await, start.generation.unwrap());
    joined(ranks.join(&job_id, generation, 0, None)).await;
    let second = answering(&coordinator, "n1", 1).await;
    ranks.checkpoint(&job_id, generation, 1, 2).await;
    let newer = loop {
        match first.next().await {
            ToAgent::Regenerate(regenerate) => break regenerate.generation.unwrap(),
            ToAgent::Dial(_) => {}
            other => panic!("{other:?}"),
        }
    };
    let join = ranks.join(&job_id, newer, 0, held(2));
    coordinator.until(&job_id, "1 of 2", |job| job.reason.starts_with("1 of 2 ranks")).await;
    Growing { coordinator, _first: first, second, job_id, join }
}

/// The others waited for it for ever.
#[tokio::test]
async fn a_ring_forms_without_a_rank_whose_node_was_drained_before_it_was_started() {
    let folder = tempfile::tempdir().unwrap();
    let mut growing = growing(folder.path(), patient()).await;
    growing.coordinator.set_node("n1", false).await;
    assert_eq!(joined(growing.join).await.world_size, 1);
    let told = event(&mut growing.coordinator, &growing.job_id, "seat_left").await;
    assert_eq!(told, "rank 1 had not been started on n1, which takes none now");
}

#[tokio::test]
async fn a_ring_forms_without_a_rank_whose_node_went_before_it_was_started() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { dial_deadline: Duration::from_secs(600), ..hasty() };
    let growing = growing(folder.path(), config).await;
    growing.second.fall_silent();
    assert_eq!(joined(growing.join).await.world_size, 1);
}

#[tokio::test]
async fn without_a_spare_the_budget_ends_a_job_with_the_sentence_that_names_the_two() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { dial_deadline: Duration::from_secs(2), ..patient() };
    let mut coordinator = Coordinator::start(folder.path(), config).await;
    let mut agents =
        [answering(&coordinator, "n0", 1).await, answering(&coordinator, "n1", 1).await];
    let once = with(&manifest("two", 2), "/restart/max_without_progress", 1);
    let job_id = coordinator.submit(once).await;
    for _ in 0..2 {
        let asked = [dial(&mut agents[0]).await, dial(&mut agents[1]).await];
        answer(&agents[0], &asked[0], &["n1"]).await;
        answer(&agents[1], &asked[1], &["n0"]).await;
    }
    let job = coordinator.until_state(&job_id, JobState::Failed).await;
    let why = "n0 does not reach n1 at n1:7: connection refused; 1 recoveries in a row";
    assert!(job.reason.starts_with(why), "{}", job.reason);
}

#[tokio::test]
async fn a_loopback_address_beside_others_ends_the_job_at_once_with_the_remedy() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let elsewhere = v1::Register { address: "10.9.8.7".to_owned(), ..register("n1", 1) };
    let _agents = [
        Agent::connect(&coordinator, "n0", 1).await,
        Agent::register(&coordinator, elsewhere).await,
    ];
    let job_id = coordinator.submit(manifest("two", 2)).await;
    let job = coordinator.until_state(&job_id, JobState::Failed).await;
    assert!(job.reason.starts_with("n0 says that its ranks are at 127.0.0.1"), "{}", job.reason);
    assert!(job.reason.contains("`--address ADDRESS`"), "{}", job.reason);
}

/// Two ranks on two nodes that train, with agents that answer no dials.
async fn train(coordinator: &mut Coordinator, agents: &mut [Agent; 2]) -> [v1::StartRank; 2] {
    let job_id = coordinator.submit(manifest("two", 2)).await;
    let starts = [agents[0].start_rank().await, agents[1].start_rank().await];
    let generation = starts[0].generation.unwrap();
    let ranks = coordinator.ranks().await;
    ranks.join_all(&job_id, generation, &[(0, None), (1, None)]).await;
    coordinator.until_state(&job_id, JobState::Running).await;
    starts
}

#[tokio::test]
async fn a_ring_that_its_ranks_left_for_one_another_names_the_pair_and_counts() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agents =
        [Agent::connect(&coordinator, "n0", 1).await, Agent::connect(&coordinator, "n1", 1).await];
    let starts = train(&mut coordinator, &mut agents).await;
    let (job_id, mut generation) = (starts[0].job_id.clone(), starts[0].generation.unwrap());
    let mut spare = Agent::connect(&coordinator, "n2", 1).await;
    let ranks = coordinator.ranks().await;
    for round in 0..2 {
        let left = |peer: u32| v1::RingLoss {
            generation: Some(generation),
            kind: RingLossKind::Connect.into(),
            peers: vec![peer],
            how: "timed out".to_owned(),
        };
        let again = ranks.leave(&job_id, generation, 0, held(0), left(1), 7000 + round);
        refused(again).await;
        let told = [agents[0].regenerate().await, agents[1].regenerate().await];
        let next = told[0].generation.unwrap();
        let joins = [0, 1].map(|seat: u32| {
            ranks.leave(&job_id, next, seat, held(0), left(1 - seat), 9000 + seat)
        });
        if round == 0 {
            // Once may be chance: the same two are tried again.
            for join in joins {
                crate::fake::joined(join).await;
            }
            generation = next;
            continue;
        }
        // The second time a spare takes the place of one of them.
        for join in joins {
            refused(join).await;
        }
        let start = spare.start_rank().await;
        assert_eq!((start.rank, &start.job_id), (1, &job_id));
    }
    let told = event(&mut coordinator, &job_id, "ring_lost").await;
    let expected =
        "rank 0 on n0 (127.0.0.1:9000) does not reach rank 1 on n1 (127.0.0.1:9001): timed out";
    assert_eq!(told, expected);
    assert_eq!(coordinator.get(&job_id).await.recoveries, 2);
}

/// Its peers had been there before it failed, and no process is started in its place.
#[tokio::test]
async fn a_node_whose_rank_differs_is_charged_once_the_others_train_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agents = Vec::new();
    for node in ["n0", "n1", "n2"] {
        agents.push(Agent::connect(&coordinator, node, 1).await);
    }
    let job_id = coordinator.submit(elastic("three", 2, 3)).await;
    let mut starts = Vec::new();
    for agent in &mut agents {
        starts.push(agent.start_rank().await);
    }
    let ranks = coordinator.ranks().await;
    let first = starts[0].generation.unwrap();
    ranks.join_all(&job_id, first, &[(0, None), (1, None), (2, None)]).await;
    let left = || v1::RingLoss {
        generation: Some(first),
        kind: RingLossKind::Differs.into(),
        peers: vec![2],
        how: "digests".to_owned(),
    };
    refused(ranks.leave(&job_id, first, 0, held(0), left(), 7000)).await;
    let second = agents[0].regenerate().await.generation.unwrap();
    for join in [0, 1, 2].map(|seat| ranks.leave(&job_id, second, seat, held(0), left(), 9000)) {
        refused(join).await;
    }
    let third = agents[0].regenerate().await.generation.unwrap();
    let replies = ranks.join_all(&job_id, third, &[(0, held(0)), (1, held(0))]).await;
    assert_eq!(replies[0].world_size, 2);
    agents[0].report(vec![v1::RankStatus { generation: Some(third), ..status(&starts[0], 1) }]);
    let charged = async {
        while coordinator.nodes().await[2].faults.round() < 1.0 {
            tokio::task::yield_now().await;
        }
    };
    within("the charge", charged).await;
    let faults: Vec<f64> = coordinator.nodes().await.iter().map(|node| node.faults).collect();
    assert_eq!(faults[..2], [0.0, 0.0]);
}

fn in_phase(start: &v1::StartRank, phase: Phase) -> v1::RankStatus {
    v1::RankStatus { phase: phase.into(), collective_sequence: 12, ..status(start, 7) }
}

/// Cuts n1 off from a ring, with its rank in this phase; returns what the coordinator heard of n0.
async fn cut_off(state: &Path, peer: Phase) -> (Coordinator, [Agent; 2], String) {
    let mut coordinator = Coordinator::start(state, patient()).await;
    let mut agents =
        [Agent::connect(&coordinator, "n0", 1).await, Agent::connect(&coordinator, "n1", 1).await];
    let starts = train(&mut coordinator, &mut agents).await;
    agents[0].report(vec![in_phase(&starts[0], peer)]);
    agents[1].report(vec![in_phase(&starts[1], Phase::Compute)]);
    let job_id = starts[0].job_id.clone();
    let both = |job: &v1::Job| job.ranks.iter().all(|rank| rank.step == 7);
    coordinator.until(&job_id, "the step", both).await;
    agents[1].fall_silent();
    (coordinator, agents, job_id)
}

#[tokio::test]
async fn a_node_that_is_not_heard_of_is_lost_early_if_the_ranks_of_others_wait_for_its_own() {
    let folder = tempfile::tempdir().unwrap();
    // The lease would outlast this test.
    let (mut coordinator, mut agents, job_id) = cut_off(folder.path(), Phase::Collective).await;
    assert_eq!(agents[0].regenerate().await.rank, 0);
    let how = event(&mut coordinator, &job_id, "rank_lost").await;
    assert!(how.starts_with("rank 1 on n1: its node was not heard of for "), "{how}");
}

#[tokio::test]
async fn a_node_that_is_not_heard_of_keeps_its_lease_while_the_ranks_of_others_have_work() {
    let folder = tempfile::tempdir().unwrap();
    let (mut coordinator, _agents, job_id) = cut_off(folder.path(), Phase::Compute).await;
    // The lapse of time is what is tried.
    tokio::time::sleep(Config::default().early_loss * 2).await;
    let kinds = coordinator.kinds(&job_id).await;
    assert!(!kinds.contains(&"rank_lost".to_owned()), "{kinds:?}");
}
