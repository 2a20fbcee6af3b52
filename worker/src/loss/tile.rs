//! Splitting rows into tiles whose temporaries stay small.

use std::ops::Range;

/// Rows of images per tile: with the default 256 text rows a tile of f32 logits is 512 KiB, which
/// stays in a core's second-level cache.
pub(super) const IMAGE_ROWS: usize = 512;

/// Elements of a tile of logits that spans whole rows.
pub(super) const TILE_ELEMENTS: usize = 128 << 10;

/// Consecutive ranges of at most `step` rows that cover `rows`.
pub(super) fn ranges(rows: usize, step: usize) -> impl Iterator<Item = Range<usize>> {
    (0..rows).step_by(step).map(move |start| start..rows.min(start + step))
}
