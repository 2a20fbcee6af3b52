//! Tests of which slots take ranks.

use std::time::Duration;

use ringmaster_proto::v1::StartRank;
use tokio::time::Instant;

use super::fake_tests::{Node, key, start};
use crate::entry::Ending;

fn failed_device() -> Ending {
    let reason = "CUDA error 719".to_owned();
    Ending { code: Some(77), reason, operation: "device".to_owned(), ..Ending::default() }
}

fn on_device(slot: u32, counter: u32) -> StartRank {
    StartRank { device: format!("GPU-{slot}"), ..start(slot, slot, counter) }
}

#[test]
fn processes_that_a_rank_left_hold_its_slot_after_its_exit() {
    let node = Node::new(2);
    node.launch(&start(0, 1, 1), 100);
    node.table.ending(&key(0), 100);
    node.table.keep_out(&key(0), 100, "a child survives SIGKILL");
    assert_eq!(node.slots_out(), [1]);
    node.table.ended(&key(0), 100, Ending { code: Some(0), ..Ending::default() });
    assert_eq!((node.exits().len(), node.exits()[0].undead), (1, false));
    assert_eq!(node.slots_out(), [1]);
    assert_eq!(node.table.slots_out().slots[0].reason, "a child survives SIGKILL");
    node.table.start(start(1, 1, 2));
    assert!(node.exits()[1].reason.contains("a child survives SIGKILL"), "{:?}", node.exits());
    node.table.release(&key(0), 100);
    assert!(node.slots_out().is_empty());
    node.launch(&start(1, 1, 3), 101);
}

#[test]
fn what_an_earlier_agent_left_holds_its_slot_until_it_has_gone() {
    let node = Node::new(2);
    node.table.keep_out_for(&key(0), 90, 1);
    assert_eq!(node.slots_out(), [1]);
    let reason = node.table.slots_out().slots.remove(0).reason;
    assert!(reason.starts_with("process 90, which an earlier agent"), "{reason}");
    node.table.start(start(0, 1, 2));
    assert!(node.exits()[0].reason.contains("an earlier agent"), "{:?}", node.exits());
    node.launch(&start(1, 0, 3), 100);
    node.table.release(&key(0), 90);
    assert!(node.slots_out().is_empty());
    node.launch(&start(0, 1, 4), 101);
}

#[test]
fn a_slot_whose_device_failed_takes_no_rank_until_a_later_probe_lists_it() {
    let node = Node::new(2);
    let before = Instant::now();
    node.launch(&on_device(0, 1), 100);
    node.launch(&on_device(1, 1), 101);
    assert_eq!(node.table.newest_fault(), None);
    node.table.ended(&key(1), 101, failed_device());
    assert_eq!(node.slots_out(), [1]);
    let reason = node.table.slots_out().slots.remove(0).reason;
    assert!(reason.contains("GPU-1") && reason.contains("CUDA error 719"), "{reason}");
    let fault = node.table.newest_fault().unwrap();
    assert!(fault >= before);

    let later = fault + Duration::from_secs(1);
    let uuids = |uuids: &[&str]| uuids.iter().map(|&uuid| uuid.to_owned()).collect::<Vec<_>>();
    node.table.listed(&uuids(&["GPU-0", "GPU-1"]), fault);
    node.table.listed(&uuids(&["GPU-0"]), later);
    assert_eq!(node.slots_out(), [1], "neither a probe from before nor one that lists others");
    node.table.start(on_device(1, 2));
    assert_eq!(node.exits()[1].cause, "slots");
    node.table.listed(&uuids(&["GPU-0", "GPU-1"]), later);
    assert!(node.slots_out().is_empty() && node.table.newest_fault().is_none());
    node.launch(&on_device(1, 3), 102);
}

#[test]
fn a_rank_without_a_device_of_its_own_takes_no_slot_along() {
    let node = Node::new(1);
    node.launch(&start(0, 0, 1), 100);
    node.table.ended(&key(0), 100, failed_device());
    assert!(node.slots_out().is_empty());
}

#[test]
fn a_slot_that_is_out_for_two_reasons_counts_once() {
    let node = Node::new(2);
    node.launch(&on_device(0, 1), 100);
    node.table.ending(&key(0), 100);
    node.table.keep_out(&key(0), 100, "a child survives SIGKILL");
    node.table.ended(&key(0), 100, failed_device());
    assert_eq!(node.slots_out(), [0]);
    node.launch(&on_device(1, 1), 101);
    node.table.release(&key(0), 100);
    assert_eq!(node.slots_out(), [0], "its device is still gone");
}
