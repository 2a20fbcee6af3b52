//! Many small ranges of an object as few requests.

use std::ops::Range;

use bytes::Bytes;

/// Returns the ranges to ask for, in order, so that all of `ranges` are covered and those less than `gap` bytes apart
/// come together. Empty ranges are covered by nothing.
pub(super) fn merged(ranges: &[Range<u64>], gap: u64) -> Vec<Range<u64>> {
    let mut sorted: Vec<Range<u64>> =
        ranges.iter().filter(|range| !range.is_empty()).cloned().collect();
    sorted.sort_unstable_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::new();
    for range in sorted {
        match merged.last_mut() {
            Some(last) if range.start.saturating_sub(last.end) < gap.max(1) => {
                last.end = last.end.max(range.end);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// Returns the bytes of `range` out of those of the merged ranges.
pub(super) fn cut(range: &Range<u64>, merged: &[Range<u64>], parts: &[Bytes]) -> Bytes {
    if range.is_empty() {
        return Bytes::new();
    }
    let number = merged.partition_point(|part| part.start <= range.start) - 1;
    let from = (range.start - merged[number].start) as usize;
    parts[number].slice(from..from + (range.end - range.start) as usize)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn neighbours_come_together_and_what_is_far_apart_does_not() {
        let ranges = [70..80, 0..10, 10..20, 15..18, 29..30, 40..50, 90..90];
        assert_eq!(merged(&ranges, 10), [0..30, 40..50, 70..80]);
        assert_eq!(merged(&ranges, 0), [0..20, 29..30, 40..50, 70..80]);
        assert_eq!(merged(&[], 10), []);
    }

    proptest! {
        #[test]
        fn every_range_is_cut_out_of_what_was_asked_for(
            starts in prop::collection::vec((0_u64..250, 0_u64..20), 0..20),
            gap in 0_u64..40,
        ) {
            let whole: Vec<u8> = (0..=255).chain(0..=255).collect();
            let ranges: Vec<_> = starts.iter().map(|(start, len)| *start..start + len).collect();
            let of = |range: &Range<u64>| whole[range.start as usize..range.end as usize].to_vec();
            let merged = merged(&ranges, gap);
            let parts: Vec<Bytes> = merged.iter().map(|range| of(range).into()).collect();
            prop_assert!(merged.windows(2).all(|pair| pair[0].end + gap.max(1) <= pair[1].start));
            for range in &ranges {
                prop_assert_eq!(cut(range, &merged, &parts), of(range));
            }
        }
    }
}
