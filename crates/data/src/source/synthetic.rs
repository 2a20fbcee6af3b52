//! No data at all: every sample is the same small picture. It measures everything but reading, as `--dataset-type
//! synthetic` does: readers put noise in place of its pixels and decode nothing.

use std::ops::Range;

use bytes::Bytes;
use ringmaster_manifest::spec::SYNTHETIC;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::Shards;
use crate::Error;
use crate::sample::{Block, RawSample};

/// The caption of every sample, that of `OpenCLIP`'s.
pub(crate) const CAPTION: &str = "Dummy caption";
/// Samples of a shard, but for the last.
const SHARD: u64 = 1_000_000;
/// A white picture of one pixel, as a PNG.
const PICTURE: &[u8] = include_bytes!("white.png");

/// So many samples.
#[derive(Debug)]
pub(super) struct Synthetic {
    sizes: Vec<u64>,
}

impl Synthetic {
    /// Returns a source of as many samples as its names say.
    ///
    /// # Errors
    /// [`Error::Url`] for a name that says no number.
    pub(super) fn open(names: &[String]) -> Result<Self, Error> {
        let mut sizes = Vec::new();
        for name in names {
            let number =
                name.strip_prefix(SYNTHETIC).and_then(|samples| samples.parse::<u64>().ok());
            let mut left = number.ok_or_else(|| Error::Url {
                url: name.clone(),
                reason: format!("not {SYNTHETIC} and a number of samples behind it"),
            })?;
            while left > 0 {
                sizes.push(left.min(SHARD));
                left -= left.min(SHARD);
            }
        }
        Ok(Self { sizes })
    }
}

impl Shards for Synthetic {
    fn sizes(&self) -> &[u64] {
        &self.sizes
    }

    fn add_to(&self, fingerprint: &mut Sha256) {
        fingerprint.update(format!("{SYNTHETIC}{}\n", self.sizes.iter().sum::<u64>()));
    }

    fn is_remote(&self) -> bool {
        false
    }

    fn bytes(&self) -> u64 {
        0
    }

    fn is_synthetic(&self) -> bool {
        true
    }

    fn fetch(
        &self,
        shard: usize,
        places: Range<u64>,
        _: &CancellationToken,
    ) -> Result<Block, Error> {
        let sample = |place| {
            Ok(RawSample {
                key: format!("{SYNTHETIC}{}", shard as u64 * SHARD + place),
                image: Bytes::from_static(PICTURE),
                captions: vec![CAPTION.to_owned()],
            })
        };
        Ok(Block { first: places.start, samples: places.map(sample).collect(), bytes: 0 })
    }
}
