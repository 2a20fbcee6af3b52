//! Rows of a global batch, decoded.

use std::ops::Range;

use crate::corrupt::{Corrupt, SampleKey};

/// One rank's rows of a global batch.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// The global batch, 0-based.
    pub step: u64,
    /// The rows.
    pub rows: Range<u64>,
    /// Normalised pixels. Shape `[n, 3, S, S]`.
    pub images: Vec<f32>,
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
    pub(crate) images: Vec<f32>,
    pub(crate) tokens: Vec<i64>,
    pub(crate) samples: Vec<SampleKey>,
    pub(crate) replaced: u64,
    pub(crate) corrupt: Vec<Corrupt>,
}

impl Batch {
    /// Puts together what readers have decoded of a step's rows, in the order of rows.
    pub(crate) fn of(step: u64, rows: Range<u64>, parts: Vec<Unit>) -> Self {
        let mut batch = Self {
            step,
            rows,
            images: Vec::with_capacity(parts.iter().map(|p| p.images.len()).sum()),
            ..Self::default()
        };
        for part in parts {
            batch.images.extend(part.images);
            batch.tokens.extend(part.tokens);
            batch.samples.extend(part.samples);
            batch.replaced += part.replaced;
            batch.corrupt.extend(part.corrupt);
        }
        batch
    }
}
