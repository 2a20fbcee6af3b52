//! Nodes that are drained, and nodes that are excluded for their faults.

use std::path::Path;

use ringmaster_coordinator::fleet::Config;
use ringmaster_proto::v1;
use ringmaster_proto::v1::JobState;

use crate::fake::{
    Agent, Coordinator, Rank, elastic, exited, hasty, held, joined, killed, manifest, patient,
    register, running_ranks, status, with, within,
};

/// A job of two ranks, the first on n0 and the second on n1, that trains.
struct Spread {
    coordinator: Coordinator,
    first: Agent,
    second: Agent,
    job_id: String,
    generation: v1::Generation,
    starts: [v1::StartRank; 2],
}

async fn spread(state_dir: &Path, min_ranks: u32) -> Spread {
    let mut coordinator = Coordinator::start(state_dir, patient()).await;
    let mut first = Agent::connect(&coordinator, "n0", 1).await;
    let mut second = Agent::connect(&coordinator, "n1", 1).await;
    let job_id = coordinator.submit(elastic("spread", min_ranks, 2)).await;
    let starts = [first.start_rank().await, second.start_rank().await];
    first.report(vec![status(&starts[0], 0)]);
    second.report(vec![status(&starts[1], 0)]);
    let generation = starts[0].generation.unwrap();
    let ranks = coordinator.ranks().await;
    ranks.join_all(&job_id, generation, &[(0, None), (1, None)]).await;
    coordinator.until_state(&job_id, JobState::Running).await;
    Spread { coordinator, first, second, job_id, generation, starts }
}

fn availability(nodes: &[v1::Node]) -> Vec<&str> {
    nodes.iter().map(|node| node.availability.as_str()).collect()
}

#[tokio::test]
async fn a_drained_node_takes_no_ranks_until_it_is_opened_also_over_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let agent = Agent::connect(&coordinator, "n0", 1).await;
    let unknown =
        v1::SetNodeRequest { node: "n9".to_owned(), usable: false, reason: String::new() };
    let refused = coordinator.jobs.set_node(unknown).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::NotFound);

    for _ in 0..2 {
        let node = coordinator.set_node("n0", false).await;
        assert_eq!((node.availability.as_str(), node.connected), ("drained: new disk", true));
    }
    let job_id = coordinator.submit(manifest("one", 1)).await;
    let closed = "needs 1 cpu slot; the connected nodes have 0 in all, and 1 on nodes that are \
                  drained or excluded, or whose worker cannot start";
    coordinator.until(&job_id, "waiting", |job| job.reason == closed).await;
    drop(agent);
    coordinator.server.shutdown().await.unwrap();

    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let nodes = coordinator.nodes().await;
    assert_eq!(availability(&nodes), ["drained: new disk"]);
    assert!(!nodes[0].connected);
    let mut agent = Agent::connect(&coordinator, "n0", 1).await;
    coordinator.until(&job_id, "waiting", |job| job.reason == closed).await;
    assert_eq!(coordinator.set_node("n0", true).await.availability, "ready");
    assert_eq!(agent.start_rank().await.job_id, job_id);
}

#[tokio::test]
async fn ranks_of_a_drained_node_move_at_the_next_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let mut spread = spread(folder.path(), 2).await;
    let Spread { coordinator, first, second, job_id, generation, starts } = &mut spread;
    let mut spare = Agent::connect(coordinator, "n2", 1).await;
    coordinator.set_node("n1", false).await;
    let kinds = coordinator.kinds(job_id).await;
    assert_eq!(kinds.last().unwrap(), "node_drained");
    assert_eq!(coordinator.get(job_id).await.state(), JobState::Running, "it trains on");

    let ranks = coordinator.ranks().await;
    ranks.checkpoint(job_id, *generation, 2, 2).await;
    let start = spare.start_rank().await;
    let next = start.generation.unwrap();
    assert_eq!(start.rank, 1);
    assert_eq!(first.regenerate().await.generation, Some(next));
    let stop = second.stop_rank().await;
    assert_eq!((stop.rank, stop.graceful), (1, false), "its state lives on in rank 0");
    second.exit(killed(&starts[1])).await;
    let replies = ranks.join_all(job_id, next, &[(0, held(2)), (1, None)]).await;
    assert_eq!(replies[1].source(), v1::StateSource::Live);
    let job = coordinator.until_state(job_id, JobState::Running).await;
    assert_eq!((job.recoveries, job.ranks[1].node.as_str()), (0, "n2"));
    let nodes = coordinator.nodes().await;
    assert_eq!((nodes[1].node.as_str(), nodes[1].free_slots), ("n1", 1));
}

#[tokio::test]
async fn an_elastic_job_shrinks_off_a_drained_node_and_grows_when_it_is_opened() {
    let folder = tempfile::tempdir().unwrap();
    let mut spread = spread(folder.path(), 1).await;
    let Spread { coordinator, first, second, job_id, generation, starts } = &mut spread;
    coordinator.set_node("n0", false).await;
    let ranks = coordinator.ranks().await;
    ranks.checkpoint(job_id, *generation, 2, 1).await;
    let smaller = second.regenerate().await.generation.unwrap();
    assert!(!first.stop_rank().await.graceful);
    first.exit(killed(&starts[0])).await;
    let replies = ranks.join_all(job_id, smaller, &[(1, held(2))]).await;
    assert_eq!((replies[0].rank, replies[0].world_size), (0, 1));

    coordinator.set_node("n0", true).await;
    ranks.checkpoint(job_id, smaller, 1, 2).await;
    let start = first.start_rank().await;
    assert_eq!((start.rank, second.regenerate().await.generation), (0, start.generation));
}

#[tokio::test]
async fn a_job_with_nowhere_to_go_stops_at_the_checkpoint_and_waits() {
    let folder = tempfile::tempdir().unwrap();
    let Spread { mut coordinator, mut first, mut second, job_id, generation, starts } =
        spread(folder.path(), 2).await;
    coordinator.set_node("n1", false).await;
    coordinator.ranks().await.checkpoint(&job_id, generation, 2, 2).await;
    assert!(first.stop_rank().await.graceful && second.stop_rank().await.graceful);

    // The coordinator is restarted in the middle of it.
    coordinator.server.shutdown().await.unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    let mut agents = Vec::new();
    for (start, node) in starts.iter().zip(["n0", "n1"]) {
        let running = running_ranks(std::slice::from_ref(start), generation);
        let back = v1::Register { running, ..register(node, 1) };
        let mut agent = Agent::register(&coordinator, back).await;
        if node == "n1" {
            assert!(agent.stop_rank().await.graceful);
        }
        agents.push(agent);
    }
    assert!(agents[0].stop_rank().await.graceful);
    for (start, agent) in starts.iter().zip(&mut agents) {
        agent.exit(exited(start, 0)).await;
    }
    let waits = |job: &v1::Job| {
        job.state() == JobState::Queued && job.reason.contains("1 on nodes that are drained")
    };
    coordinator.until(&job_id, "waiting", waits).await;
    coordinator.set_node("n1", true).await;
    let mut ranks = Vec::new();
    for agent in &mut agents {
        ranks.push(agent.start_rank().await.rank);
    }
    assert_eq!(ranks, [0, 1]);
}

/// A job of two ranks, one on each of two nodes.
struct Two {
    coordinator: Coordinator,
    ranks: Rank,
    agents: [Agent; 2],
    job_id: String,
    starts: [v1::StartRank; 2],
    generation: v1::Generation,
}

impl Two {
    async fn train(state_dir: &Path, config: Config) -> Self {
        let mut coordinator = Coordinator::start(state_dir, config).await;
        let mut agents = [
            Agent::connect(&coordinator, "n0", 1).await,
            Agent::connect(&coordinator, "n1", 1).await,
        ];
        let endless = with(&manifest("two", 2), "/restart/max_without_progress", 9);
        let job_id = coordinator.submit(with(&endless, "/schedule/steps", 1000)).await;
        let starts = [agents[0].start_rank().await, agents[1].start_rank().await];
        let (ranks, generation) = (coordinator.ranks().await, starts[0].generation.unwrap());
        ranks.join_all(&job_id, generation, &[(0, None), (1, None)]).await;
        coordinator.until_state(&job_id, JobState::Running).await;
        Self { coordinator, ranks, agents, job_id, starts, generation }
    }

    /// Both ranks have done so many steps.
    async fn step(&mut self, step: u64) {
        let in_ring = |start: &v1::StartRank| v1::RankStatus {
            generation: Some(self.generation),
            ..status(start, step)
        };
        for (agent, start) in self.agents.iter().zip(&self.starts) {
            agent.report(vec![in_ring(start)]);
        }
        let both = |job: &v1::Job| job.ranks.iter().all(|rank| rank.step == step);
        self.coordinator.until(&self.job_id, "the step", both).await;
    }

    /// The rank of a node is killed, started there again, and joins the other.
    async fn kill(&mut self, node: usize, step: u64) {
        let [survivor, other] = [1 - node, node];
        self.agents[other].report(Vec::new());
        let generation = Some(self.generation);
        let exit = v1::RankExited { generation, ..killed(&self.starts[other]) };
        self.agents[other].exit(exit).await;
        self.starts[other] = self.agents[other].start_rank().await;
        self.generation = self.agents[survivor].regenerate().await.generation.unwrap();
        let mut seats = [(0, held(step)), (1, held(step))];
        seats[other].1 = None;
        self.ranks.join_all(&self.job_id, self.generation, &seats).await;
    }

    /// Waits until an event of this kind is in the job's history.
    async fn until_event(&mut self, kind: &str) -> String {
        let told = async {
            loop {
                let events = self.coordinator.events(&self.job_id).await;
                if let Some(event) = events.into_iter().find(|event| event.kind == kind) {
                    return event.message;
                }
            }
        };
        within(kind, told).await
    }

    /// Waits until n0 and n1 are charged with so many faults.
    async fn until_faults(&mut self, expected: [f64; 2]) {
        let charged = async {
            loop {
                let nodes = self.coordinator.nodes().await;
                if nodes.iter().map(|node| node.faults.round()).eq(expected) {
                    return;
                }
            }
        };
        within("the charge", charged).await;
    }
}

#[tokio::test]
async fn a_node_that_fails_again_and_again_is_excluded_whatever_steps_lie_between() {
    let folder = tempfile::tempdir().unwrap();
    let mut two = Two::train(folder.path(), patient()).await;
    for fault in 1..4 {
        two.step(10 * fault).await;
        two.kill(0, 10 * fault).await;
        two.step(10 * fault + 5).await;
    }
    let told = two.until_event("node_excluded").await;
    assert!(told.starts_with("n0 was excluded: 3.0 faults within hours"), "{told}");
    let nodes = two.coordinator.nodes().await;
    let why = "excluded: 3.0 faults within hours; the last: a rank of job";
    assert!(nodes[0].availability.starts_with(why), "{}", nodes[0].availability);

    // It stays so over a restart, with what it is charged with, until somebody opens it.
    two.coordinator.server.shutdown().await.unwrap();
    let mut coordinator = Coordinator::start(folder.path(), patient()).await;
    assert!(coordinator.nodes().await[0].availability.starts_with(why));
    let _bad = Agent::connect(&coordinator, "n0", 1).await;
    assert!((coordinator.nodes().await[0].faults - 3.0).abs() < 0.1);
    let opened = coordinator.set_node("n0", true).await;
    assert_eq!((opened.availability.as_str(), opened.faults), ("ready", 0.0));
}

#[tokio::test]
async fn a_job_that_fails_in_the_same_way_on_two_nodes_charges_neither() {
    let folder = tempfile::tempdir().unwrap();
    let mut two = Two::train(folder.path(), patient()).await;
    two.step(10).await;
    two.kill(0, 10).await;
    two.step(15).await;
    two.until_faults([1.0, 0.0]).await;
    for fault in 2..6 {
        two.kill(1, 10 * fault).await;
        two.step(10 * fault + 5).await;
    }
    two.until_faults([0.0, 0.0]).await;
    assert_eq!(availability(&two.coordinator.nodes().await), ["ready", "ready"]);
}

#[tokio::test]
async fn the_last_node_is_charged_and_not_excluded() {
    let folder = tempfile::tempdir().unwrap();
    let mut two = Two::train(folder.path(), Config { exclude_after: 1, ..patient() }).await;
    two.coordinator.set_node("n1", false).await;
    two.step(10).await;
    two.kill(0, 10).await;
    two.step(15).await;
    two.until_faults([1.0, 0.0]).await;
    assert_eq!(two.coordinator.nodes().await[0].availability, "ready");
}

#[tokio::test]
async fn a_second_agent_of_a_name_is_refused_while_the_first_is_heard_of() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), hasty()).await;
    let of = |instance: &str| v1::Register { instance: instance.to_owned(), ..register("n0", 1) };
    let mut first = Agent::register(&coordinator, of("a1")).await;
    let job_id = coordinator.submit(manifest("one", 1)).await;
    let start = first.start_rank().await;
    first.report(vec![status(&start, 1)]);

    let refused = Agent::refused(&coordinator, of("b2")).await;
    assert_eq!(refused.code(), tonic::Code::AlreadyExists);
    let expected =
        "an agent of the name n0 is connected already (data address 127.0.0.1, process 100)";
    assert!(refused.message().starts_with(expected), "{refused}");
    let job = coordinator.get(&job_id).await;
    assert_eq!((job.recoveries, job.generation), (0, start.generation), "the first goes on");

    // The same agent may come back at any time, and another one once this is not heard of any more.
    let running = running_ranks(std::slice::from_ref(&start), start.generation.unwrap());
    let again = Agent::register(&coordinator, v1::Register { running, ..of("a1") }).await;
    again.fall_silent();
    Agent::let_in(&coordinator, of("b2")).await;
}

/// A node's name went from one agent to another and back. What the first ran all the time was taken for what
/// the second had run, and its job stood for ever.
#[tokio::test]
async fn ranks_of_an_agent_that_comes_back_are_not_taken_for_those_of_another_of_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut coordinator = Coordinator::start(folder.path(), hasty()).await;
    let of = |instance: &str| v1::Register { instance: instance.to_owned(), ..register("n0", 1) };
    let mut first = Agent::register(&coordinator, of("a1")).await;
    let job_id = coordinator.submit(manifest("one", 1)).await;
    let start = first.start_rank().await;
    first.fall_silent();
    coordinator.until(&job_id, "the loss", |job| job.recoveries == 1).await;

    let mut second = Agent::register(&coordinator, of("b2")).await;
    let other = second.start_rank().await;
    second.report(vec![status(&other, 0)]);
    let generation = other.generation.unwrap();
    joined(coordinator.ranks().await.join(&job_id, generation, 0, None)).await;
    coordinator.until_state(&job_id, v1::JobState::Running).await;
    second.fall_silent();

    // The first is let in once the second is not heard of any more.
    let running = running_ranks(std::slice::from_ref(&start), start.generation.unwrap());
    let back = v1::Register { running, ..of("a1") };
    let mut first = Agent::let_in(&coordinator, back).await;
    first.report(vec![status(&start, 3)]);
    assert!(!first.stop_rank().await.graceful);
    first.exit(killed(&start)).await;
    let again = first.start_rank().await;
    assert!(again.generation > other.generation, "{again:?}");
}
