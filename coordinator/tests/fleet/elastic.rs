//! Rings with fewer ranks than the job asks for, and how they grow.

use std::path::Path;

use ringmaster_proto::v1;
use ringmaster_proto::v1::JobState;
use ringmaster_proto::v1::coordinator_message::Message as ToAgent;

use crate::fake::{
    Agent, Coordinator, elastic, exited, hasty, held, killed, patient, refused, register, status,
    with,
};

/// A job of two to three ranks that trains with all three: two on n0, one on n1.
struct Three {
    coordinator: Coordinator,
    wide: Agent,
    narrow: Agent,
    job_id: String,
    starts: Vec<v1::StartRank>,
}

async fn three(state_dir: &Path) -> Three {
    let mut coordinator = Coordinator::start(state_dir, patient()).await;
    let mut wide = Agent::connect(&coordinator, "n0", 2).await;
    let mut narrow = Agent::connect(&coordinator, "n1", 1).await;
    let job_id = coordinator.submit(elastic("three", 2, 3)).await;
    let starts = vec![wide.start_rank().await, wide.start_rank().await, narrow.start_rank().await];
    wide.report(vec![status(&starts[0], 0), status(&starts[1], 0)]);
    narrow.report(vec![status(&starts[2], 0)]);
    let generation = starts[0].generation.unwrap();
    let ranks = coordinator.ranks().await;
    let replies = ranks.join_all(&job_id, generation, &[(0, None), (1, None), (2, None)]).await;
    assert_eq!(replies.iter().map(|reply| reply.rank).collect::<Vec<_>>(), [0, 1, 2]);
    coordinator.until_state(&job_id, JobState::Running).await;
    Three { coordinator, wide, narrow, job_id, starts }
}

/// The node n1 with its only slot goes away for good, as far as its agent's process says.
async fn lose_narrow(three: &mut Three) -> v1::Generation {
    // Its agent comes back with another accelerator: the slot the rank had is no more.
    let gone = v1::Register { accelerator: "cuda".to_owned(), pid: 101, ..register("n1", 1) };
    three.narrow = Agent::register(&three.coordinator, gone).await;
    let regenerates = [three.wide.regenerate().await, three.wide.regenerate().await];
    assert_eq!([regenerates[0].rank, regenerates[1].rank], [0, 1]);
    regenerates[0].generation.unwrap()
}

async fn shrunk(three: &mut Three) -> v1::Generation {
    let generation = lose_narrow(three).await;
    let ranks = three.coordinator.ranks().await;
    let replies = ranks.join_all(&three.job_id, generation, &[(1, held(4)), (0, held(4))]).await;
    for (reply, rank) in replies.iter().zip([1, 0]) {
        assert_eq!((reply.world_size, reply.rank), (2, rank));
        assert_eq!((reply.source(), reply.source_rank), (v1::StateSource::Live, 0));
        assert_eq!(reply.peers, ["127.0.0.1:9000", "127.0.0.1:9001"]);
    }
    let job = three.coordinator.until_state(&three.job_id, JobState::Running).await;
    assert_eq!((job.world_size, job.max_ranks, job.min_ranks), (2, 3, 2));
    assert_eq!(job.reason, "2 of 3 ranks train");
    assert_eq!((job.ranks.len(), job.ranks[2].node.as_str()), (3, ""));
    generation
}

/// A slot for the third rank is there again.
async fn spare(three: &Three) -> Agent {
    Agent::connect(&three.coordinator, "n2", 1).await
}

#[tokio::test]
async fn a_lost_rank_without_a_slot_leaves_a_smaller_ring_with_ranks_counted_anew() {
    let folder = tempfile::tempdir().unwrap();
    let mut three = three(folder.path()).await;
    // Rank 0 is lost for good: its slot is taken by a rank that does not end.
    let Three { coordinator, wide, narrow, job_id, starts, .. } = &mut three;
    let smaller = v1::Register {
        running: vec![v1::RunningRank {
            job_id: job_id.clone(),
            generation: starts[1].generation,
            rank: 1,
            pid: 1001,
            ..Default::default()
        }],
        pid: 101,
        ..register("n0", 1)
    };
    *wide = Agent::register(coordinator, smaller).await;
    let generation = wide.regenerate().await.generation.unwrap();
    assert_eq!(narrow.regenerate().await.rank, 2);
    let ranks = coordinator.ranks().await;
    let replies = ranks.join_all(job_id, generation, &[(2, held(4)), (1, held(4))]).await;
    assert_eq!([replies[0].rank, replies[1].rank], [1, 0]);
    assert_eq!(replies[0].peers, ["127.0.0.1:9001", "127.0.0.1:9002"]);
    let first = crate::fake::communicator_id(1, generation);
    assert!(replies.iter().all(|reply| reply.communicator_id == first));
    assert!(replies[0].numeric_plan.contains("rank 0 in"), "the first plan is kept");

    // A checkpoint is complete with two shards, counted by ring rank.
    ranks.checkpoint(job_id, generation, 2, 2).await;
    let third = v1::ReportShardRequest {
        job_id: job_id.clone(),
        generation: Some(generation),
        rank: 2,
        ..Default::default()
    };
    let refused = ranks.client.clone().report_shard(third).await.unwrap_err();
    assert!(refused.message().contains("has 2 ranks"), "{refused}");

    // And so is the run.
    ranks.finish(job_id, generation).await;
    for (agent, start) in [(wide, &starts[1]), (narrow, &starts[2])] {
        agent.exit(v1::RankExited { generation: Some(generation), ..exited(start, 0) }).await;
    }
    let job = coordinator.until_state(job_id, JobState::Succeeded).await;
    assert_eq!((job.world_size, job.recoveries), (2, 1));
}

#[tokio::test]
async fn a_smaller_ring_grows_right_after_a_checkpoint_and_pays_nothing_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut three = three(folder.path()).await;
    let generation = shrunk(&mut three).await;
    let mut spare = spare(&three).await;
    let ranks = three.coordinator.ranks().await;
    let Three { coordinator, wide, job_id, .. } = &mut three;
    assert_eq!(coordinator.get(job_id).await.world_size, 2, "a slot alone changes nothing");

    ranks.checkpoint(job_id, generation, 2, 2).await;
    let start = spare.start_rank().await;
    let grown = start.generation.unwrap();
    assert!(grown > generation);
    assert_eq!((start.rank, start.local_rank, start.local_world_size), (2, 0, 1));
    let told = [wide.regenerate().await, wide.regenerate().await];
    assert!(told.iter().all(|told| told.generation == Some(grown)));
    let replies = ranks.join_all(job_id, grown, &[(0, held(5)), (1, held(5)), (2, None)]).await;
    assert_eq!(replies.iter().map(|reply| reply.rank).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!((replies[2].source(), &replies[2].receivers), (v1::StateSource::Live, &vec![2]));
    let job = coordinator.until_state(job_id, JobState::Running).await;
    assert_eq!((job.world_size, job.recoveries, job.reason.as_str()), (3, 1, "all 3 ranks train"));
    let kinds = coordinator.kinds(job_id).await;
    assert_eq!(kinds.iter().filter(|kind| *kind == "growing").count(), 1);
}

#[tokio::test]
async fn the_last_checkpoint_of_a_run_does_not_make_it_grow() {
    let folder = tempfile::tempdir().unwrap();
    let mut three = three(folder.path()).await;
    let generation = shrunk(&mut three).await;
    let mut spare = spare(&three).await;
    let ranks = three.coordinator.ranks().await;
    ranks.checkpoint(&three.job_id, generation, 2, 3).await;
    ranks.finish(&three.job_id, generation).await;
    for start in &three.starts[..2] {
        let exit = v1::RankExited { generation: Some(generation), ..exited(start, 0) };
        assert_eq!(three.wide.exit(exit).await, [], "nobody is told of a new generation");
    }
    three.coordinator.until_state(&three.job_id, JobState::Succeeded).await;
    let next = three.coordinator.submit(elastic("next", 1, 1)).await;
    // The smallest node that holds it: had the run grown, this one would be taken.
    assert_eq!(spare.start_rank().await.job_id, next);
}

#[tokio::test]
async fn a_job_starts_with_what_there_is_and_takes_more_as_long_as_its_ring_is_not_formed() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let job_id = coordinator.submit(elastic("many", 2, 4)).await;
    let mut one = Agent::connect(&coordinator, "n0", 1).await;
    let waits = |job: &v1::Job| job.reason.contains("needs 2 cpu slots");
    coordinator.until(&job_id, "waiting for its fewest ranks", waits).await;
    let mut two = Agent::connect(&coordinator, "n1", 1).await;
    let first = two.start_rank().await;
    assert_eq!((first.rank, one.start_rank().await.rank), (1, 0));
    // A third slot comes before the ring is formed, a fourth never.
    let mut three = Agent::connect(&coordinator, "n2", 1).await;
    let late = three.start_rank().await;
    assert_eq!((late.rank, late.generation), (2, first.generation));
    let ranks = coordinator.ranks().await;
    let generation = first.generation.unwrap();
    let replies = ranks.join_all(&job_id, generation, &[(2, None), (1, None), (0, None)]).await;
    assert_eq!(replies.iter().map(|reply| reply.rank).collect::<Vec<_>>(), [2, 1, 0]);
    assert!(replies.iter().all(|reply| reply.world_size == 3));
    let job = coordinator.until_state(&job_id, JobState::Running).await;
    assert_eq!((job.world_size, job.reason.as_str()), (3, "3 of 4 ranks train"));
}

#[tokio::test]
async fn below_its_fewest_ranks_a_job_waits_and_its_survivors_are_kept() {
    let folder = tempfile::tempdir().unwrap();
    let mut three = three(folder.path()).await;
    shrunk(&mut three).await;
    // Rank 1 goes, too, and n0 has a slot less.
    let smaller = v1::Register {
        running: vec![v1::RunningRank {
            job_id: three.job_id.clone(),
            generation: three.starts[0].generation,
            rank: 0,
            pid: 1000,
            ..Default::default()
        }],
        pid: 101,
        ..register("n0", 1)
    };
    three.wide = Agent::register(&three.coordinator, smaller).await;
    let generation = three.wide.regenerate().await.generation.unwrap();
    let ranks = three.coordinator.ranks().await;
    let survivor = ranks.join(&three.job_id, generation, 0, held(6));
    let waits = |job: &v1::Job| {
        job.state() == JobState::Recovering && job.reason.contains("the connected nodes have 1")
    };
    three.coordinator.until(&three.job_id, "waiting", waits).await;
    assert!(!survivor.is_finished());

    let mut spare = spare(&three).await;
    let start = spare.start_rank().await;
    assert_eq!((start.rank, start.generation), (1, Some(generation)));
    let replacement = ranks.join(&three.job_id, generation, 1, None);
    let reply = crate::fake::joined(replacement).await;
    assert_eq!((reply.rank, reply.source(), reply.source_rank), (1, v1::StateSource::Live, 0));
    assert_eq!(crate::fake::joined(survivor).await.receivers, [1]);
}

#[tokio::test]
async fn a_smaller_ring_outlives_a_restart_of_the_coordinator_and_grows_after_it() {
    let folder = tempfile::tempdir().unwrap();
    let mut three = three(folder.path()).await;
    let generation = shrunk(&mut three).await;
    let ranks = three.coordinator.ranks().await;
    let half = v1::ReportShardRequest {
        job_id: three.job_id.clone(),
        generation: Some(generation),
        rank: 1,
        step: 2,
        ..Default::default()
    };
    ranks.client.clone().report_shard(half.clone()).await.unwrap();
    three.coordinator.server.shutdown().await.unwrap();

    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let running = three.starts[..2].iter().map(|start| v1::RunningRank {
        job_id: start.job_id.clone(),
        generation: Some(generation),
        rank: start.rank,
        pid: 1000 + start.rank,
        ..Default::default()
    });
    let back = v1::Register { running: running.collect(), ..register("n0", 2) };
    let mut wide = Agent::register(&coordinator, back).await;
    let job = coordinator.until_state(&three.job_id, JobState::Running).await;
    assert_eq!((job.world_size, job.generation), (2, Some(generation)));

    // The checkpoint that was half reported is completed; then the ring grows.
    let mut spare = Agent::connect(&coordinator, "n2", 1).await;
    let ranks = coordinator.ranks().await;
    ranks.checkpoint(&three.job_id, generation, 1, 2).await;
    let start = spare.start_rank().await;
    assert_eq!((start.rank, wide.regenerate().await.generation), (2, start.generation));
}

#[tokio::test]
async fn a_restart_in_the_middle_of_growing_goes_on_growing() {
    let folder = tempfile::tempdir().unwrap();
    let mut three = three(folder.path()).await;
    let generation = shrunk(&mut three).await;
    let mut spare = spare(&three).await;
    three.coordinator.ranks().await.checkpoint(&three.job_id, generation, 2, 2).await;
    let start = spare.start_rank().await;
    let grown = start.generation.unwrap();
    three.coordinator.server.shutdown().await.unwrap();

    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let running = |start: &v1::StartRank| v1::RunningRank {
        job_id: start.job_id.clone(),
        generation: start.generation,
        rank: start.rank,
        pid: 1000 + start.rank,
        ..Default::default()
    };
    let both = three.starts[..2].iter().map(running).collect();
    let back = v1::Register { running: both, ..register("n0", 2) };
    let mut wide = Agent::register(&coordinator, back).await;
    let new = v1::Register { running: vec![running(&start)], ..register("n2", 1) };
    let _spare = Agent::register(&coordinator, new).await;
    let told = [wide.regenerate().await, wide.regenerate().await];
    assert!(told.iter().all(|told| told.generation == Some(grown)), "{told:?}");
    let ranks = coordinator.ranks().await;
    let stale = refused(ranks.join(&three.job_id, generation, 0, held(5))).await;
    assert_eq!(stale.code(), tonic::Code::Aborted);
    let seats = [(0, held(5)), (1, held(5)), (2, None)];
    let replies = ranks.join_all(&three.job_id, grown, &seats).await;
    assert!(replies.iter().all(|reply| reply.world_size == 3));
    let job = coordinator.until_state(&three.job_id, JobState::Running).await;
    assert_eq!((job.world_size, job.recoveries), (3, 1), "growing is no recovery");
}

#[tokio::test]
async fn a_job_with_vacant_seats_is_cancelled_like_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let mut three = three(folder.path()).await;
    shrunk(&mut three).await;
    three.coordinator.cancel(&three.job_id).await;
    for start in &three.starts[..2] {
        assert!(three.wide.stop_rank().await.graceful);
        let _ = start;
    }
    for start in &three.starts[..2] {
        three.wide.exit(exited(start, 0)).await;
    }
    three.coordinator.until_state(&three.job_id, JobState::Cancelled).await;
}

#[tokio::test]
async fn a_node_that_was_cut_off_comes_back_to_a_smaller_ring_and_its_old_rank_is_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), hasty()).await;
    let mut steady = Agent::connect(&coordinator, "n0", 2).await;
    let mut cut_off = Agent::connect(&coordinator, "n1", 2).await;
    let job_id = coordinator.submit(elastic("three", 2, 3)).await;
    let starts = [steady.start_rank().await, steady.start_rank().await, cut_off.start_rank().await];
    steady.report(vec![status(&starts[0], 0), status(&starts[1], 0)]);
    let first = starts[0].generation.unwrap();
    let ranks = coordinator.ranks().await;
    ranks.join_all(&job_id, first, &[(0, None), (1, None), (2, None)]).await;
    cut_off.fall_silent();
    let second = steady.regenerate().await.generation.unwrap();
    steady.regenerate().await;
    ranks.join_all(&job_id, second, &[(0, held(1)), (1, held(1))]).await;

    // The node is back, with the rank that never heard of anything.
    let running = vec![v1::RunningRank {
        job_id: job_id.clone(),
        generation: Some(first),
        rank: 2,
        pid: 1002,
        ..Default::default()
    }];
    let back = v1::Register { running, ..register("n1", 2) };
    let mut cut_off = Agent::register(&coordinator, back).await;
    let stop = cut_off.stop_rank().await;
    assert_eq!((stop.rank, stop.graceful), (2, false));

    // The seat goes to a new process on the same node, once the old one has gone.
    ranks.checkpoint(&job_id, second, 2, 2).await;
    let third = steady.regenerate().await.generation.unwrap();
    assert_eq!(cut_off.exit(killed(&starts[2])).await, []);
    let start = cut_off.start_rank().await;
    assert_eq!((start.rank, start.generation), (2, Some(third)));
    let job = coordinator.get(&job_id).await;
    assert_eq!(job.recoveries, 1, "the old process is not lost a second time");
}

#[tokio::test]
async fn ranks_of_one_node_are_neighbours_in_the_ring() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut a = Agent::connect(&coordinator, "a", 2).await;
    let mut b = Agent::connect(&coordinator, "b", 2).await;
    let job_id = coordinator.submit(with(&elastic("four", 4, 4), "/batch/global", 8)).await;
    let starts =
        [a.start_rank().await, a.start_rank().await, b.start_rank().await, b.start_rank().await];
    assert_eq!(starts.each_ref().map(|start| start.rank), [0, 1, 2, 3]);
    let ranks = coordinator.ranks().await;
    let seats = [(0, None), (1, None), (2, None), (3, None)];
    ranks.join_all(&job_id, starts[0].generation.unwrap(), &seats).await;
    let running = |range: std::ops::Range<usize>| -> Vec<v1::RunningRank> {
        let ranks = starts[range].iter().map(|start| v1::RunningRank {
            job_id: start.job_id.clone(),
            generation: start.generation,
            rank: start.rank,
            pid: 1000 + start.rank,
            ..Default::default()
        });
        ranks.collect()
    };

    // Rank 0 moves from a, which has a slot less, to b, which has one more.
    let larger = v1::Register { running: running(2..4), ..register("b", 3) };
    let mut b = Agent::register(&coordinator, larger).await;
    let smaller = v1::Register { running: running(1..2), pid: 101, ..register("a", 1) };
    let _a = Agent::register(&coordinator, smaller).await;
    let (mut start, mut told) = (None, 0);
    while start.is_none() || told < 2 {
        match b.next().await {
            ToAgent::StartRank(message) => start = Some(message),
            ToAgent::Regenerate(_) => told += 1,
            other => panic!("{other:?}"),
        }
    }
    let start = start.unwrap();
    let generation = start.generation.unwrap();
    assert_eq!((start.rank, start.local_rank, start.local_world_size), (0, 2, 3));
    let replies = ranks.join_all(&job_id, generation, &seats).await;
    assert_eq!(replies.iter().map(|reply| reply.rank).collect::<Vec<_>>(), [0, 3, 1, 2]);
    assert_eq!(replies[0].peers[1], "127.0.0.1:9002", "the neighbour is on b, too");
}
