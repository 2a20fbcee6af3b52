//! How a rank's ring came to its end, as far as that rank can tell: the coordinator puts together what all say.

use ringmaster_proto::v1::{Generation, RingLoss, RingLossKind};
use ringmaster_words::chain;

use crate::collective;
use crate::error::Error;
use crate::{eval, report};

/// Returns how the ring of `generation` ended by `error`. None for a rank that left because it `was_told` to: what
/// it met then is what it did itself.
pub(crate) fn ring_loss(generation: Generation, error: &Error, was_told: bool) -> Option<RingLoss> {
    let (kind, peers) = match error {
        Error::Superseded { .. } | Error::Report(report::Error::Superseded { .. }) => return None,
        Error::Collective(error) | Error::Eval(eval::Error::Collective(error)) => {
            of_ring(error, was_told)?
        }
        Error::WeightsDiffer { minority, .. } | Error::ReplicasDiffer { minority, .. } => {
            (RingLossKind::Differs, minority.clone())
        }
        _ => (RingLossKind::Other, Vec::new()),
    };
    Some(RingLoss { generation: Some(generation), kind: kind.into(), peers, how: chain(error) })
}

fn of_ring(error: &collective::Error, was_told: bool) -> Option<(RingLossKind, Vec<u32>)> {
    use collective::Error as E;
    let ranks = |peers: &[usize]| peers.iter().map(|peer| *peer as u32).collect();
    Some(match error {
        E::Connect { peers, .. } => (RingLossKind::Connect, ranks(peers)),
        E::PeerLost { peer, .. } | E::Deadline { peer, .. } => {
            (RingLossKind::Lost, ranks(&[*peer]))
        }
        // An order to join a newer generation ends collectives in this way.
        E::Aborted { .. } if was_told => return None,
        E::Aborted { .. } | E::Mismatch { .. } | E::Tensor { .. } => {
            (RingLossKind::Other, Vec::new())
        }
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LAST: Generation = Generation::new(2, 7);

    fn lost(error: collective::Error) -> Option<(RingLossKind, Vec<u32>)> {
        let loss = ring_loss(LAST, &error.into(), false)?;
        assert_eq!(loss.generation, Some(LAST));
        assert!(loss.how.starts_with("ring broke: "), "{}", loss.how);
        Some((loss.kind(), loss.peers))
    }

    fn aborted() -> collective::Error {
        collective::Error::Aborted { reason: "generation g2.8 begins".to_owned() }
    }

    #[test]
    fn a_broken_ring_names_the_peers_that_it_broke_at() {
        let reason = || "no route".to_owned();
        let connect =
            collective::Error::Connect { world_size: 4, peers: vec![1, 3], reason: reason() };
        assert_eq!(lost(connect), Some((RingLossKind::Connect, vec![1, 3])));
        let (operation, sequence) = ("barrier", 5);
        let closed = collective::Error::PeerLost { peer: 2, operation, sequence, reason: reason() };
        assert_eq!(lost(closed), Some((RingLossKind::Lost, vec![2])));
        assert_eq!(lost(aborted()), Some((RingLossKind::Other, Vec::new())));
        let mismatch =
            collective::Error::Mismatch { peer: 1, got: "a".to_owned(), want: "b".to_owned() };
        assert_eq!(lost(mismatch), Some((RingLossKind::Other, Vec::new())));
    }

    #[test]
    fn ranks_that_hold_another_state_are_named_with_their_kind() {
        for error in [
            Error::WeightsDiffer { step: 3, minority: vec![2] },
            Error::ReplicasDiffer { step: 3, lowest: 1.0, highest: 2.0, minority: vec![2] },
        ] {
            let loss = ring_loss(LAST, &error, true).unwrap();
            assert_eq!((loss.kind(), loss.peers), (RingLossKind::Differs, vec![2]));
        }
    }

    #[test]
    fn who_left_because_it_was_told_to_says_nothing() {
        let superseded = Error::Superseded { what: "generation g2.8 begins".to_owned() };
        assert_eq!(ring_loss(LAST, &superseded, false), None);
        assert_eq!(ring_loss(LAST, &aborted().into(), true), None);
    }
}
