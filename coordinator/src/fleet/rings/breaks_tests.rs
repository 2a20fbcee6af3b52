use super::*;

const RING: Generation = Generation::new(1, 4);

/// A ring with one rank on each of these nodes.
fn ring(nodes: &[&str]) -> Breaks {
    let mut breaks = Breaks::default();
    breaks.formed(RING, members(nodes));
    breaks
}

fn members(nodes: &[&str]) -> Vec<Member> {
    let member = |(seat, node): (Seat, &&str)| Member {
        seat,
        node: (*node).to_owned(),
        address: format!("{node}:9"),
    };
    (0..).map(Seat).zip(nodes).map(member).collect()
}

fn loss(kind: RingLossKind, peers: &[u32]) -> RingLoss {
    RingLoss {
        generation: Some(RING),
        kind: kind.into(),
        peers: peers.to_vec(),
        how: "refused".to_owned(),
    }
}

#[test]
fn two_ranks_that_lose_one_another_are_a_pair_with_their_addresses() {
    let mut breaks = ring(&["b", "a"]);
    breaks.hear(Seat(0), &loss(RingLossKind::Connect, &[1]));
    breaks.hear(Seat(1), &loss(RingLossKind::Connect, &[0]));
    let Some(Fault::Pair { nodes, often, what }) = breaks.judge() else { panic!("no pair") };
    assert_eq!((nodes, often), (["a".to_owned(), "b".to_owned()], 1));
    assert_eq!(what, "rank 1 on a (a:9) does not reach rank 0 on b (b:9): refused");
    assert_eq!(breaks.judge(), None, "it is said once");
}

#[test]
fn a_pair_is_counted_until_a_step_is_done() {
    let mut breaks = ring(&["a", "b"]);
    for expected in [1, 2, 3, 1] {
        breaks.formed(RING, members(&["a", "b"]));
        if expected == 1 {
            breaks.progressed();
        }
        breaks.hear(Seat(1), &loss(RingLossKind::Lost, &[0]));
        let often = match breaks.judge() {
            Some(Fault::Pair { often, .. }) => often,
            other => panic!("{other:?}"),
        };
        assert_eq!(often, expected);
    }
}

#[test]
fn a_node_that_several_others_do_not_reach_is_to_blame() {
    let mut breaks = ring(&["a", "b", "c"]);
    breaks.hear(Seat(0), &loss(RingLossKind::Connect, &[2]));
    breaks.hear(Seat(1), &loss(RingLossKind::Connect, &[2]));
    breaks.hear(Seat(2), &loss(RingLossKind::Connect, &[0, 1]));
    let Some(Fault::Node { node, what }) = breaks.judge() else { panic!("no node") };
    assert_eq!(node, "c");
    assert!(what.starts_with("several nodes do not reach c: rank 0 on a"), "{what}");
}

/// The first of two that do not reach one another gives up, and all others lose it.
#[test]
fn who_gives_up_because_it_does_not_reach_one_is_not_blamed_by_those_that_lose_it() {
    let mut breaks = ring(&["a", "b", "c"]);
    breaks.hear(Seat(0), &loss(RingLossKind::Connect, &[1]));
    breaks.hear(Seat(1), &loss(RingLossKind::Lost, &[0]));
    breaks.hear(Seat(2), &loss(RingLossKind::Lost, &[0]));
    let Some(Fault::Pair { nodes, what, .. }) = breaks.judge() else { panic!("no pair") };
    assert_eq!(nodes, ["a".to_owned(), "b".to_owned()]);
    assert_eq!(what, "rank 0 on a (a:9) does not reach rank 1 on b (b:9): refused");
}

#[test]
fn who_gives_up_and_cannot_tell_why_is_not_blamed_either() {
    let mut breaks = ring(&["a", "b", "c"]);
    breaks.hear(Seat(0), &loss(RingLossKind::Connect, &[]));
    breaks.hear(Seat(1), &loss(RingLossKind::Lost, &[0]));
    breaks.hear(Seat(2), &loss(RingLossKind::Lost, &[0]));
    assert_eq!(breaks.judge(), None);
}

#[test]
fn of_two_that_lose_one_another_neither_is_blamed_by_a_third_that_loses_them() {
    for third in [&[0][..], &[1], &[0, 1]] {
        let mut breaks = ring(&["c", "b", "a"]);
        breaks.hear(Seat(0), &loss(RingLossKind::Lost, &[1]));
        breaks.hear(Seat(1), &loss(RingLossKind::Lost, &[0]));
        breaks.hear(Seat(2), &loss(RingLossKind::Lost, third));
        let Some(Fault::Pair { nodes, .. }) = breaks.judge() else { panic!("no pair") };
        assert_eq!(nodes, ["b".to_owned(), "c".to_owned()]);
    }
}

/// Who dials names the first that it does not reach, and ends there.
#[test]
fn a_node_that_can_name_only_one_of_those_that_do_not_reach_it_is_to_blame_all_the_same() {
    let mut breaks = ring(&["b", "a", "c"]);
    breaks.hear(Seat(0), &loss(RingLossKind::Connect, &[1]));
    breaks.hear(Seat(1), &loss(RingLossKind::Connect, &[0]));
    breaks.hear(Seat(2), &loss(RingLossKind::Connect, &[1]));
    assert!(matches!(breaks.judge(), Some(Fault::Node { node, .. }) if node == "a"));
}

#[test]
fn ranks_of_one_node_that_lose_one_another_say_nothing_of_the_network() {
    let mut breaks = ring(&["a", "a"]);
    breaks.hear(Seat(0), &loss(RingLossKind::Lost, &[1]));
    assert_eq!(breaks.judge(), None);
}

#[test]
fn the_rank_whose_state_differs_from_most_is_named_and_two_of_them_are_not() {
    let mut breaks = ring(&["a", "b", "c"]);
    for seat in 0..3 {
        breaks.hear(Seat(seat), &loss(RingLossKind::Differs, &[1]));
    }
    assert!(matches!(breaks.judge(), Some(Fault::Node { node, .. }) if node == "b"));
    let mut breaks = ring(&["a", "b"]);
    breaks.hear(Seat(0), &loss(RingLossKind::Differs, &[]));
    assert_eq!(breaks.judge(), None);
}

#[test]
fn what_is_said_of_another_ring_or_by_a_stranger_or_after_a_loss_does_not_count() {
    let mut breaks = ring(&["a", "b"]);
    let older = Some(Generation::new(1, 3));
    breaks.hear(Seat(0), &RingLoss { generation: older, ..loss(RingLossKind::Lost, &[1]) });
    breaks.hear(Seat(7), &loss(RingLossKind::Lost, &[1]));
    breaks.hear(Seat(0), &loss(RingLossKind::Lost, &[9]));
    assert_eq!(breaks.judge(), None);
    breaks.hear(Seat(0), &loss(RingLossKind::Lost, &[1]));
    breaks.explained();
    breaks.hear(Seat(1), &loss(RingLossKind::Lost, &[0]));
    assert_eq!(breaks.judge(), None);
}
