//! Whether all ranks of a ring hold the same state, and if not, who holds another.

use tch::{Device, Kind, Tensor};

use crate::collective::{self, Collective};
use crate::error::Error;

/// Compares the digests that all ranks have of their state after `step`.
///
/// # Errors
/// [`Error::WeightsDiffer`], on every rank alike, with those that hold another state than most; the ring's own.
pub(crate) fn compare(digest: u64, step: u64, collective: &dyn Collective) -> Result<(), Error> {
    let digests = gather(digest, collective)?;
    if all_equal(&digests) {
        return Ok(());
    }
    all_have_seen_it(collective);
    Err(Error::WeightsDiffer { step, minority: minority(&digests) })
}

/// Returns every rank's digest, by rank.
fn gather(digest: u64, collective: &dyn Collective) -> Result<Vec<u64>, collective::Error> {
    let own = Tensor::from_slice(&[digest.cast_signed()]);
    let counts = vec![1; collective.world_size()];
    let all = Tensor::zeros([counts.len() as i64], (Kind::Int64, Device::Cpu));
    // collective: all-gather of 8 bytes. Its callers come here at the same points of the program on every rank:
    // once a state is agreed on, and at every checkpoint that is due. A rank that fails before breaks the ring,
    // which ends the others' wait.
    collective.all_gather(&own, &all, &counts)?.wait()?;
    Ok((0..counts.len() as i64).map(|rank| all.int64_value(&[rank]).cast_unsigned()).collect())
}

/// Waits until every rank knows that the ranks differ. Whoever returns with an error breaks the ring, and a rank
/// that was told of that first would take it for the loss of a peer.
pub(crate) fn all_have_seen_it(collective: &dyn Collective) {
    // collective: barrier. All ranks have the same values before them, so all come here. That it may fail does
    // not matter: the ring ends now.
    let _ = collective.barrier();
}

/// Whether all ranks hold the same value.
pub(crate) fn all_equal(values: &[u64]) -> bool {
    values.windows(2).all(|pair| pair[0] == pair[1])
}

/// Returns the ranks that hold another value than more than half of all do; none where no value has so many.
pub(crate) fn minority<T: PartialEq>(values: &[T]) -> Vec<u32> {
    let count = |value: &T| values.iter().filter(|other| *other == value).count();
    let Some(majority) = values.iter().find(|value| 2 * count(value) > values.len()) else {
        return Vec::new();
    };
    (0..).zip(values).filter(|(_, value)| *value != majority).map(|(rank, _)| rank).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::collective::testing::with_ring;

    /// What every rank of a ring finds when they hold these digests.
    fn compared(digests: &[u64]) -> Vec<Result<(), Error>> {
        with_ring(digests.len(), |ring| compare(digests[ring.rank()], 7, ring))
    }

    #[test]
    fn ranks_that_hold_the_same_state_agree() {
        for digests in [&[5][..], &[u64::MAX; 2], &[1 << 63; 3]] {
            assert!(compared(digests).iter().all(Result::is_ok), "{digests:?}");
        }
    }

    #[test]
    fn a_rank_that_holds_another_state_than_most_is_named_on_every_rank() {
        for (digests, named) in [
            (&[1, 1, 2][..], &[2][..]),
            (&[u64::MAX, 3, 3][..], &[0][..]),
            (&[4, 9, 4, 8, 4][..], &[1, 3][..]),
        ] {
            for found in compared(digests) {
                let error = found.unwrap_err();
                assert!(
                    matches!(&error, Error::WeightsDiffer { step: 7, minority } if minority == named),
                    "{error:?}"
                );
            }
        }
        let text = compared(&[1, 1, 2])[0].as_ref().unwrap_err().to_string();
        assert!(text.contains("after step 7; ring rank 2 holds another than most"), "{text}");
    }

    #[test]
    fn nobody_is_named_where_no_state_is_that_of_most() {
        for digests in [&[1, 2][..], &[1, 2, 3], &[1, 1, 2, 2]] {
            for found in compared(digests) {
                let error = found.unwrap_err();
                assert!(
                    matches!(&error, Error::WeightsDiffer { minority, .. } if minority.is_empty()),
                    "{error:?}"
                );
            }
        }
    }
}
