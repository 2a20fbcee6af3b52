//! Rows of a global batch, decoded.

use std::ops::Range;
use std::sync::Arc;

use ringmaster_inputs::image::Hole;

use crate::buffers::{Buffer, Pool};
use crate::corrupt::{Corrupt, SampleKey};

/// One rank's rows of a global batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// The global batch, 0-based.
    pub step: u64,
    /// The rows.
    pub rows: Range<u64>,
    /// Pixels, 0–255, which the model's side normalises. Shape `[n, 3, S, S]`.
    pub images: Buffer,
    /// What is erased of them after that, each with its place among these rows.
    pub holes: Vec<(usize, Hole)>,
    /// Token ids. Shape `[n, L]`.
    pub tokens: Vec<i64>,
    /// Every row's sample, replacements included.
    pub samples: Vec<SampleKey>,
    /// Rows whose sample was replaced.
    pub replaced: u64,
    /// Samples that were found corrupt in these rows, also among those tried as replacements.
    pub corrupt: Vec<Corrupt>,
}

/// A few decoded rows.
#[derive(Debug, Default)]
pub(crate) struct Unit {
    pub(crate) images: Buffer,
    /// Each with its place in the unit.
    pub(crate) holes: Vec<(usize, Hole)>,
    pub(crate) tokens: Vec<i64>,
    pub(crate) samples: Vec<SampleKey>,
    pub(crate) replaced: u64,
    pub(crate) corrupt: Vec<Corrupt>,
}

impl Batch {
    /// Puts together what readers have decoded of a step's rows, in the order of rows.
    pub(crate) fn of(step: u64, rows: Range<u64>, parts: Vec<Unit>, pool: &Arc<Pool>) -> Self {
        let mut batch = Self { step, rows, images: pool.take(), ..Self::default() };
        batch.images.reserve(parts.iter().map(|part| part.images.len()).sum());
        for part in parts {
            let first = batch.samples.len();
            batch.holes.extend(part.holes.into_iter().map(|(row, hole)| (first + row, hole)));
            batch.images.extend_from_slice(&part.images);
            batch.tokens.extend(part.tokens);
            batch.samples.extend(part.samples);
            batch.replaced += part.replaced;
            batch.corrupt.extend(part.corrupt);
        }
        batch
    }
}
