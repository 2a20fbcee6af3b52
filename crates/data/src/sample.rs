//! Samples as they lie in their shard, and how they go wrong.

use bytes::Bytes;

use crate::Error;

/// A sample as it lies in its shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawSample {
    /// `shard/key`, for people.
    pub key: String,
    /// The encoded image.
    pub image: Bytes,
    /// Its captions; at least one.
    pub captions: Vec<String>,
}

/// What is wrong with a sample: its bytes, which will be so next time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{shard}, sample {key}: {reason}")]
pub struct Flaw {
    /// URL of the shard.
    pub shard: String,
    /// The sample's key, or its place in the shard.
    pub key: String,
    /// What it is.
    pub reason: String,
}

/// Why a sample could not be read.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// Its bytes are wrong.
    #[error(transparent)]
    Corrupt(#[from] Flaw),
    /// The store failed.
    #[error("sample store")]
    Store(#[from] Error),
}

/// Neighbouring samples of a shard whose bytes are at hand.
#[derive(Debug, Default)]
pub(crate) struct Block {
    /// Place in the shard of the first.
    pub(crate) first: u64,
    pub(crate) samples: Vec<Result<RawSample, Flaw>>,
    /// How much they hold.
    pub(crate) bytes: u64,
}

impl Block {
    /// Returns the sample at a place in the shard.
    ///
    /// # Panics
    /// When the block does not have this place.
    pub(crate) fn sample(&self, place: u64) -> Result<RawSample, Flaw> {
        self.samples[(place - self.first) as usize].clone()
    }
}

/// A shard that breaks off and whose number of samples nobody declared: how many are lost is not
/// known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// The shard.
    pub url: String,
    /// Samples before the break, which are used.
    pub samples: u64,
    /// Where it breaks off, and what to do.
    pub reason: String,
}
