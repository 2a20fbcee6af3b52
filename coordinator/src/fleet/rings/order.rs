//! Who stands where in a ring whose seats need not all be taken.

use ringmaster_proto::Seat;

/// Returns the seats that are taken, in the order in which they form a ring.
///
/// Those of one node are neighbours, so that a chunk that travels round the ring crosses between
/// nodes as seldom as can be. Nodes stand in the order of their lowest seats, and within a node
/// seats count up: seats that are all taken, and adjacent on each node, stand in their own order.
pub(crate) fn order(seats: &[Option<String>]) -> Vec<Seat> {
    let mut nodes: Vec<(&str, Vec<Seat>)> = Vec::new();
    for (seat, node) in (0..).map(Seat).zip(seats) {
        let Some(node) = node.as_deref() else { continue };
        match nodes.iter_mut().find(|(name, _)| *name == node) {
            Some((_, its)) => its.push(seat),
            None => nodes.push((node, vec![seat])),
        }
    }
    nodes.into_iter().flat_map(|(_, its)| its).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seats(nodes: &[&str]) -> Vec<Option<String>> {
        nodes.iter().map(|node| (*node != "-").then(|| (*node).to_owned())).collect()
    }

    #[test]
    fn a_whole_job_with_adjacent_seats_stands_in_the_order_of_seats() {
        assert_eq!(order(&seats(&["b", "b", "a", "a"])), [0, 1, 2, 3].map(Seat));
    }

    #[test]
    fn vacant_seats_are_left_out_and_a_node_s_seats_stay_together() {
        assert_eq!(order(&seats(&["a", "-", "b", "a", "b"])), [0, 3, 2, 4].map(Seat));
        assert_eq!(order(&seats(&["-", "-"])), [Seat(0); 0]);
    }

    proptest! {
        #[test]
        fn every_taken_seat_stands_once_and_each_node_once(
            places in proptest::collection::vec(proptest::option::of(0..4_u8), 0..12)
        ) {
            let seats: Vec<_> = places.iter().map(|at| at.map(|at| format!("n{at}"))).collect();
            let ring = order(&seats);
            let mut sorted = ring.clone();
            sorted.sort_unstable();
            let taken: Vec<Seat> = (0..).map(Seat).zip(&seats)
                .filter_map(|(seat, node)| node.as_ref().map(|_| seat)).collect();
            prop_assert_eq!(sorted, taken);
            let mut nodes: Vec<_> = ring.iter().map(|seat| &seats[seat.index()]).collect();
            let different = nodes.iter().collect::<std::collections::BTreeSet<_>>().len();
            nodes.dedup();
            prop_assert_eq!(nodes.len(), different);
        }
    }
}
