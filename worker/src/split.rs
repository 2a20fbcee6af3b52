//! How things are divided among ranks: as evenly as possible, the first ranks taking one more.

use std::ops::Range;

/// Returns how many rows of `total` each of `world_size` ranks holds when they are split as evenly
/// as possible, the first ranks taking one more.
pub fn even_counts(total: usize, world_size: usize) -> Vec<usize> {
    (0..world_size)
        .map(|rank| total / world_size + usize::from(rank < total % world_size))
        .collect()
}

/// Returns which of `total` things in a row `rank` takes when [`even_counts`] divides them.
pub fn even_range(total: usize, rank: usize, world_size: usize) -> Range<usize> {
    let (each, over) = (total / world_size.max(1), total % world_size.max(1));
    let start = |rank: usize| rank * each + rank.min(over);
    start(rank)..start(rank + 1)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// With whole lanes, 63 ranks of 64 lanes gave one of them twice the work of the others.
    #[test]
    fn the_largest_share_is_within_a_row_of_the_smallest_for_any_number_of_ranks() {
        for ranks in 1..=128 {
            let counts = even_counts(4096, ranks);
            let (least, most) = (counts.iter().min().unwrap(), counts.iter().max().unwrap());
            assert!(most - least <= 1, "{ranks} ranks: {least} to {most} rows");
        }
    }

    #[test]
    fn counts_and_ranges_divide_alike_and_leave_nothing_out() {
        for (total, world_size) in [(0, 1), (7, 3), (4, 6), (12, 4), (1_000_003, 128)] {
            let counts = even_counts(total, world_size);
            let mut next = 0;
            for (rank, count) in counts.into_iter().enumerate() {
                assert_eq!(even_range(total, rank, world_size), next..next + count);
                next += count;
            }
            assert_eq!(next, total);
        }
    }
}
