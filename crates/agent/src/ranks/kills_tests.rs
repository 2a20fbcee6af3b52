//! Tests of kills and of what they do not end. The clock stands still but for what a test lets pass.

use std::time::Duration;

use ringmaster_proto::v1::{ExitClass, Generation, RankStatus, StartRank};
use tokio::sync::mpsc;

use super::fake_tests::{Node, SILENCE, key, start, stop};
use super::{FULL, KILL_DEADLINE};
use crate::entry::{Ending, Killed};
use crate::exit::cause;
use crate::secret::Secret;

const MOMENT: Duration = Duration::from_millis(200);

fn because(node: &Node, pid: u32) -> (String, &'static str) {
    let Killed { because, cause } = node.table.killed_because(&key(0), pid).unwrap();
    (because, cause)
}

/// A process that hung in a driver held its job for ever: it neither ended nor could be replaced.
#[tokio::test(start_paused = true)]
async fn a_rank_that_survives_sigkill_is_given_up_and_only_its_slot_stays_taken() {
    let mut node = Node::new(2);
    node.launch(&start(0, 0, 1), 100);
    node.table.stop(stop(0, false, 0));
    assert_eq!(node.killed(), [100]);
    node.pass(KILL_DEADLINE - MOMENT);
    assert!(node.exits().is_empty() && node.slots_out().is_empty());
    assert_eq!(node.running(), [100]);

    node.pass(2 * MOMENT);
    let exit = node.exits().remove(0);
    assert!(exit.undead && exit.code.is_none() && exit.signal.is_none());
    assert_eq!((exit.rank, exit.generation), (0, Some(Generation::new(1, 1))));
    assert_eq!(exit.class(), ExitClass::Node);
    assert_eq!((exit.operation.as_str(), exit.cause.as_str()), ("end", "survives SIGKILL"));
    let reason = "process 100 in slot 0 is still there 5 s after SIGKILL (killed: test)";
    assert_eq!(exit.reason, reason);
    assert_eq!(node.table.slots_out().slots[0].reason, reason);
    assert_eq!((node.slots_out(), node.running()), (vec![0], vec![]));
    assert!(node.table.heartbeat().ranks.is_empty());
    assert_eq!(because(&node, 100), (reason.to_owned(), cause::SURVIVES));
    assert!(node.table.wait_until_empty(Duration::ZERO), "nobody waits for it");
}

#[tokio::test(start_paused = true)]
async fn an_undead_rank_leaves_its_key_to_another_and_its_slot_once_it_has_gone() {
    let mut node = Node::new(2);
    node.launch(&start(0, 0, 1), 100);
    node.table.stop(stop(0, false, 0));
    node.pass(KILL_DEADLINE + MOMENT);
    node.table.exits.acknowledge(&node.exits()[0].exit_id);

    node.table.start(start(0, 0, 2));
    let refusal = node.exits().remove(0);
    assert_eq!((refusal.class(), refusal.cause.as_str()), (ExitClass::Retry, "slots"));
    assert!(refusal.reason.contains("slot 0") && !refusal.reason.contains(FULL), "{refusal:?}");
    node.table.exits.acknowledge(&refusal.exit_id);
    node.launch(&start(0, 1, 3), 101);
    node.table.start(start(1, 1, 3));
    let refusal = node.exits().remove(0);
    assert!(refusal.reason.contains(FULL), "one slot of two is out: {refusal:?}");
    node.table.exits.acknowledge(&refusal.exit_id);

    // What its waiter says is not about the new process.
    node.table.ending(&key(0), 100);
    assert_eq!(node.running(), [101]);
    node.table.ended(&key(0), 100, Ending::default());
    assert_eq!((node.slots_out(), node.running()), (vec![], vec![101]));
    assert!(node.exits().is_empty(), "its exit was told");
    node.launch(&start(1, 0, 3), 102);
    node.table.ended(&key(0), 101, Ending { code: Some(0), ..Ending::default() });
    assert_eq!(node.exits()[0].code, Some(0));
}

#[tokio::test(start_paused = true)]
async fn a_rank_that_dies_of_its_kill_is_an_exit_like_any_other() {
    let mut node = Node::new(1);
    node.launch(&start(0, 0, 1), 100);
    node.table.stop(stop(0, false, 0));
    node.pass(KILL_DEADLINE - MOMENT);
    node.table.ending(&key(0), 100);
    // What it left may take as long again.
    node.pass(KILL_DEADLINE - MOMENT);
    assert!(node.exits().is_empty());
    node.table.ended(&key(0), 100, Ending { signal: Some(9), ..Ending::default() });
    let exits = node.exits();
    assert_eq!((exits.len(), exits[0].signal, exits[0].undead), (1, Some(9), false));
    assert!(node.slots_out().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_never_comes_back_does_not_hold_the_rank() {
    let mut node = Node::new(1);
    node.launch(&start(0, 0, 1), 100);
    node.table.stop(stop(0, false, 0));
    node.table.ending(&key(0), 100);
    node.pass(2 * KILL_DEADLINE - MOMENT);
    assert!(node.exits().is_empty());
    node.pass(2 * MOMENT);
    let exit = node.exits().remove(0);
    assert!(exit.undead && exit.reason.contains("what it left has not, 10 s"), "{exit:?}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_stood_still_itself_gives_nobody_up_for_that() {
    let mut node = Node::new(1);
    node.launch(&start(0, 0, 1), 100);
    node.table.stop(stop(0, false, 0));
    node.now += Duration::from_secs(60);
    node.table.enforce(node.now);
    node.pass(KILL_DEADLINE - MOMENT);
    assert!(node.exits().is_empty());
    node.pass(2 * MOMENT);
    assert!(node.exits()[0].undead);
}

#[tokio::test(start_paused = true)]
async fn the_next_generation_starts_beside_an_undead_one() {
    let mut node = Node::new(2);
    node.launch(&start(0, 0, 1), 100);
    assert_eq!(node.queue.try_recv().unwrap(), key(0));
    node.table.start(start(0, 1, 2));
    assert_eq!((node.killed(), node.queue.try_recv().ok()), (vec![100], None));
    node.pass(KILL_DEADLINE + MOMENT);
    let exit = node.exits().remove(0);
    assert!(exit.undead && exit.generation == Some(Generation::new(1, 1)), "{exit:?}");
    assert_eq!(node.queue.try_recv().unwrap(), key(0));
    let started = node.table.launch(&key(0), |start, _| Ok((101, start.generation)));
    assert_eq!(started.unwrap().0, Some(Generation::new(1, 2)));
}

#[tokio::test(start_paused = true)]
async fn a_rank_that_a_signal_stops_is_killed_unless_it_goes_on_in_time() {
    let mut node = Node::new(1);
    node.launch(&start(0, 0, 1), 100);
    let stop = |node: &Node| node.processes.stopped.lock().unwrap().insert(100, 1);
    let go_on = |node: &Node| node.processes.stopped.lock().unwrap().remove(&100);
    stop(&node);
    node.pass(Duration::from_millis(1400));
    go_on(&node);
    node.pass(MOMENT);
    stop(&node);
    node.pass(Duration::from_millis(1400));
    assert!(node.killed().is_empty());
    // What the agent itself slept through does not count.
    node.now += Duration::from_secs(60);
    node.pass(Duration::from_millis(1400));
    assert!(node.killed().is_empty());
    node.pass(2 * MOMENT);
    assert_eq!(node.killed(), [100], "once");
    let words = "stopped by a signal (state T) for 1.5 s".to_owned();
    assert_eq!(because(&node, 100), (words, cause::STOPPED));
}

#[tokio::test(start_paused = true)]
async fn a_rank_that_is_found_stopped_at_every_look_but_runs_in_between_is_left_alone() {
    let mut node = Node::new(1);
    node.launch(&start(0, 0, 1), 100);
    for switches in 0..60 {
        node.processes.stopped.lock().unwrap().insert(100, switches);
        node.pass(MOMENT);
    }
    assert!(node.killed().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_connected_rank_that_says_nothing_is_killed_and_one_that_never_connected_is_not() {
    let mut node = Node::new(2);
    node.table.start(start(0, 0, 1));
    let mut told = None;
    let exec = |_: &StartRank, secret: &Secret| {
        told = Some(secret.clone());
        Ok((100, ()))
    };
    assert!(node.table.launch(&key(0), exec).is_some());
    node.launch(&start(1, 1, 1), 101);
    let (sender, _commands) = mpsc::unbounded_channel();
    assert_eq!(node.table.connected(&key(0), &told.unwrap(), sender), Some(100));
    node.table.status(&key(0), 100, RankStatus::default());
    node.pass(SILENCE - MOMENT);
    assert!(node.killed().is_empty());
    node.pass(2 * MOMENT);
    assert_eq!(node.killed(), [100]);
    assert_eq!(because(&node, 100), ("no sign of life for 10 s".to_owned(), cause::SILENT));
}

#[tokio::test(start_paused = true)]
async fn a_stop_without_a_limit_kills_nobody_and_later_words_do() {
    let mut node = Node::new(2);
    node.launch(&start(0, 0, 1), 100);
    node.launch(&start(1, 1, 1), 101);
    node.table.stop(stop(0, true, 0));
    node.table.stop(stop(1, true, 0));
    node.pass(Duration::from_secs(120));
    assert!(node.killed().is_empty());
    node.table.stop(stop(0, false, 0));
    assert_eq!(node.killed(), [100]);
    // The agent that leaves has a limit of its own.
    node.table.leave(Duration::from_secs(2), "told to end");
    node.pass(MOMENT);
    assert_eq!(node.killed(), [100, 100, 101], "what has not gone yet is killed again");
}

#[tokio::test(start_paused = true)]
async fn another_deadline_may_be_set() {
    let mut node = Node::new(1);
    node.table = node.table.with_kill_deadline(Duration::from_secs(1));
    node.launch(&start(0, 0, 1), 100);
    node.table.kill_all("the agent ends");
    assert!(!node.table.wait_until_empty(Duration::ZERO));
    node.pass(Duration::from_secs(1) + MOMENT);
    assert!(node.exits()[0].undead);
    assert!(node.table.wait_until_empty(Duration::ZERO));
    assert!(!node.table.is_done(), "its exit is still to be told");
}
