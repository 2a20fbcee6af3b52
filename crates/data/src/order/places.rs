//! Which rows of a batch each source of a mixture gets.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use ringmaster_inputs::rng::{Site, Stream};

/// Rows that are permuted together. Few: then every rank, which owns a contiguous run of rows, gets its share of each
/// source, and reads the same lanes of it in every batch.
const NEIGHBOURS: usize = 64;

/// Returns the source of every row of the batch that follows `before` samples, given how many rows each source has:
/// spread as evenly as possible, and permuted among neighbours.
pub(super) fn places(counts: &[u64], seed: u64, before: u64) -> Vec<u32> {
    // A source's i-th of c rows belongs at (i + ½)/c of the batch.
    let place = |source: usize, row: u64| {
        let share = (row as f64 + 0.5) / counts[source] as f64;
        // Positive numbers are ordered as their bits are.
        Reverse((share.to_bits(), source, row))
    };
    let sources = (0..counts.len()).filter(|&source| counts[source] > 0);
    let mut next: BinaryHeap<_> = sources.map(|source| place(source, 0)).collect();
    let mut places = Vec::with_capacity(counts.iter().sum::<u64>() as usize);
    while let Some(Reverse((_, source, row))) = next.pop() {
        places.push(source as u32);
        if row + 1 < counts[source] {
            next.push(place(source, row + 1));
        }
    }
    let mut stream = Stream::new(seed, Site::Places, &[before]);
    for neighbours in places.chunks_mut(NEIGHBOURS) {
        stream.shuffle(neighbours);
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_source_has_its_rows_and_every_part_of_the_batch_its_share_of_them() {
        let counts = [3000, 1000, 0, 96];
        let places = places(&counts, 1, 0);
        for (source, count) in counts.iter().enumerate() {
            let of = |rows: &[u32]| rows.iter().filter(|&&row| row == source as u32).count() as f64;
            assert_eq!(of(&places), *count as f64);
            for rows in places.chunks(64) {
                let expected = *count as f64 / 64.0;
                assert!((of(rows) - expected).abs() <= 2.0, "{} of source {source}", of(rows));
            }
        }
    }

    #[test]
    fn places_differ_from_batch_to_batch() {
        assert_ne!(places(&[40, 24], 1, 0), places(&[40, 24], 1, 64));
        assert_eq!(places(&[40, 24], 1, 64), places(&[40, 24], 1, 64));
        assert_ne!(places(&[40, 24], 1, 64), places(&[40, 24], 2, 64));
    }
}
