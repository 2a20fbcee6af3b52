//! Ranks that hang, agents that die or leave, and what people are told of a recovery.

use std::time::{Duration, Instant};

use ringmaster_coordinator::fleet::Config;
use ringmaster_proto::v1::{self, JobState, Phase};

use crate::fake::{
    Agent, Coordinator, Running, exited, held, joined, killed, manifest, patient, run_submitted,
    run_two, status,
};

/// A short deadline, though a busy machine holds nobody up for so long.
const SHORT: Duration = Duration::from_secs(2);

/// A short deadline for compute and the collective, also in first steps.
fn impatient() -> Config {
    let mut config = patient();
    config.deadlines.first_step = SHORT;
    config.deadlines.set(Phase::Compute, SHORT);
    config.deadlines.set(Phase::Collective, SHORT);
    config
}

fn in_phase(start: &v1::StartRank, step: u64, phase: Phase, sequence: u64) -> v1::RankStatus {
    v1::RankStatus { phase: phase.into(), collective_sequence: sequence, ..status(start, step) }
}

async fn message(coordinator: &mut Coordinator, job_id: &str, kind: &str) -> String {
    let events = coordinator.events(job_id).await;
    let event = events.into_iter().find(|event| event.kind == kind);
    event.unwrap_or_else(|| panic!("no event {kind}")).message
}

#[tokio::test]
async fn a_rank_that_hangs_is_stopped_and_named_while_its_peer_that_waits_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), impatient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let Running { job_id, starts, .. } = run_two(&mut coordinator, &mut agent).await;
    agent.report(vec![
        in_phase(&starts[0], 7, Phase::Collective, 12),
        in_phase(&starts[1], 7, Phase::Compute, 11),
    ]);
    let stop = agent.stop_rank().await;
    assert_eq!((stop.rank, stop.graceful, stop.grace_ms), (1, false, 0));
    assert!(stop.reason.contains("no progress in compute after step 7"), "{}", stop.reason);
    let hung = message(&mut coordinator, &job_id, "rank_hung").await;
    assert!(hung.starts_with("rank 1 on n0, in compute: it hangs"), "{hung}");

    // Its exit is a loss like any other: the survivor goes into the next generation.
    agent.report(vec![in_phase(&starts[0], 7, Phase::Collective, 12)]);
    agent.exit(killed(&starts[1])).await;
    coordinator.until(&job_id, "the recovery", |job| job.recoveries == 1).await;
}

#[tokio::test]
async fn progress_in_a_phase_is_no_standstill() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), impatient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let Running { job_id, starts, .. } = run_two(&mut coordinator, &mut agent).await;
    let began = Instant::now();
    let mut progress = 0;
    while began.elapsed() < SHORT * 3 / 2 {
        progress += 1;
        let slow = v1::RankStatus { progress, ..in_phase(&starts[1], 7, Phase::Compute, 11) };
        agent.report(vec![in_phase(&starts[0], 7, Phase::Collective, 12), slow]);
        // The lapse of time is what is tried.
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let kinds = coordinator.kinds(&job_id).await;
    assert!(!kinds.contains(&"rank_hung".to_owned()), "{kinds:?}");
}

#[tokio::test]
async fn a_ring_in_which_everybody_waits_is_formed_anew_without_a_culprit() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), impatient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let Running { job_id, generation, starts, .. } = run_two(&mut coordinator, &mut agent).await;
    agent.report(starts.iter().map(|s| in_phase(s, 3, Phase::Collective, 9)).collect());
    let seats = [agent.regenerate().await, agent.regenerate().await];
    assert!(seats.iter().all(|seat| seat.generation > Some(generation)), "{seats:?}");
    let why = message(&mut coordinator, &job_id, "recovering").await;
    assert!(why.contains("all ranks have waited in collective #9 after step 3"), "{why}");
}

#[tokio::test]
async fn an_agent_whose_connection_closed_for_good_is_lost_before_its_lease_ends() {
    let folder = tempfile::tempdir().unwrap();
    let config = Config { session_grace: Duration::from_millis(200), ..patient() };
    let mut coordinator = Coordinator::start(folder.path(), config).await;
    let mut steady = Agent::connect(&coordinator, "n0", 1).await;
    let dies = Agent::connect(&coordinator, "n1", 1).await;
    let job_id = coordinator.submit(manifest("two", 2)).await;
    steady.start_rank().await;
    drop(dies);
    let lost = |job: &v1::Job| job.ranks.iter().any(|rank| rank.node.is_empty());
    coordinator.until(&job_id, "the loss", lost).await;
    let how = message(&mut coordinator, &job_id, "rank_lost").await;
    assert!(how.contains("its agent's connection closed and did not come back"), "{how}");
}

#[tokio::test]
async fn a_broken_ring_and_a_closed_connection_together_are_a_dead_agent() {
    let folder = tempfile::tempdir().unwrap();
    // Neither the lease nor the grace of a closed connection would end within this test.
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agents =
        [Agent::connect(&coordinator, "n0", 1).await, Agent::connect(&coordinator, "n1", 1).await];
    let job_id = coordinator.submit(manifest("two", 2)).await;
    let starts = [agents[0].start_rank().await, agents[1].start_rank().await];
    let generation = starts[0].generation.unwrap();
    let ranks = coordinator.ranks().await;
    for join in [0, 1].map(|seat| ranks.join(&job_id, generation, seat, None)) {
        joined(join).await;
    }
    let [mut survivor, dies] = agents;
    survivor.report(vec![in_phase(&starts[0], 4, Phase::Collective, 9)]);
    coordinator.until(&job_id, "the step", |job| job.ranks[0].step == 4).await;
    drop(dies);
    survivor.report(vec![in_phase(&starts[0], 4, Phase::Join, 9)]);
    assert_eq!(survivor.regenerate().await.rank, 0);
}

#[tokio::test]
async fn a_node_whose_agent_leaves_gets_no_rank_and_its_job_goes_on_elsewhere() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut leaves = Agent::connect(&coordinator, "n0", 1).await;
    let job_id = coordinator.submit(manifest("one", 1)).await;
    let start = leaves.start_rank().await;
    let generation = start.generation.unwrap();
    let ranks = coordinator.ranks().await;
    joined(ranks.join(&job_id, generation, 0, None)).await;
    leaves.say(v1::agent_message::Message::Leaving(v1::Leaving::default())).await;
    leaves.exit(exited(&start, 0)).await;
    let waits = |job: &v1::Job| job.reason.starts_with("waits");
    coordinator.until(&job_id, "the wait for a slot", waits).await;
    let kinds = coordinator.kinds(&job_id).await;
    assert!(kinds.contains(&"stopped".to_owned()), "{kinds:?}");

    let mut other = Agent::connect(&coordinator, "n1", 1).await;
    assert!(other.start_rank().await.generation.unwrap() > generation);
}

#[tokio::test]
async fn ranks_that_end_well_without_a_summary_are_run_again_but_not_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let job_id = coordinator.submit(manifest("two", 2)).await;
    for _ in 0..4 {
        let running = run_submitted(&mut coordinator, &mut agent, job_id.clone()).await;
        agent.report(vec![]);
        for start in &running.starts {
            agent.exit(exited(start, 0)).await;
        }
    }
    let job = coordinator.until_state(&job_id, JobState::Failed).await;
    assert!(job.reason.contains("restart.max_without_progress"), "{}", job.reason);
}

#[tokio::test]
async fn people_are_told_what_a_recovery_took_once_the_first_new_step_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agent = Agent::connect(&coordinator, "n0", 2).await;
    let Running { job_id, starts, .. } = run_two(&mut coordinator, &mut agent).await;
    agent.report(vec![status(&starts[0], 7)]);
    let began = Instant::now();
    agent.exit(killed(&starts[1])).await;
    let mut again = Vec::new();
    let mut next = None;
    while again.is_empty() || next.is_none() {
        match agent.next().await {
            v1::coordinator_message::Message::StartRank(start) => again.push(start),
            v1::coordinator_message::Message::Regenerate(told) => next = told.generation,
            other => panic!("{other:?}"),
        }
    }
    let ranks = coordinator.ranks().await;
    let generation = next.unwrap();
    ranks.join_all(&job_id, generation, &[(0, held(7)), (1, None)]).await;
    let survivor = v1::StartRank { generation: next, ..starts[0].clone() };
    for step in [7, 8] {
        agent.report(vec![status(&survivor, step), status(&again[0], step)]);
        coordinator.until(&job_id, "the step", |job| job.ranks[1].step == step).await;
    }
    let message = message(&mut coordinator, &job_id, "recovered").await;
    let took = began.elapsed().as_secs_f64();
    let told = message.strip_prefix("recovered in ").and_then(|rest| rest.split_once(" s"));
    let told: f64 = told.unwrap_or_else(|| panic!("{message}")).0.parse().unwrap();
    // As it is rounded.
    assert!((0.0..=took + 0.1).contains(&told), "{message} after {took} s");
    for part in ["rejoin", "state", "first step"] {
        assert!(message.contains(part), "{message}");
    }
}
