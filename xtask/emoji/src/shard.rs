//! Webdataset shards: tar files whose members share a key per sample.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use tar::{Builder, EntryType, Header};

use xtask::digest::sha256_of;

/// Samples in each shard but the last.
const SAMPLES: usize = 512;

/// Changes the order of the samples.
const SEED: &str = "ringmaster emoji";

/// One sample: an image, its caption and what is known about it.
pub(super) struct Sample {
    /// Common stem of the members; no dots.
    pub(super) key: String,
    pub(super) png: Vec<u8>,
    pub(super) text: String,
    pub(super) json: Vec<u8>,
}

/// What `shards.json` says about a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Shard {
    pub(super) samples: usize,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// Writes `<prefix>-0000.tar`, `<prefix>-0001.tar`, … in shuffled order, so that every shard mixes
/// vendors and groups.
///
/// Samples are ordered by a digest of their keys: shuffled, the same everywhere, and a sample more
/// or less leaves the order of the others alone.
pub(super) fn write(
    folder: &Path,
    prefix: &str,
    mut samples: Vec<Sample>,
) -> Result<BTreeMap<String, Shard>> {
    samples.sort_by_cached_key(|sample| sha256_of(format!("{SEED}/{}", sample.key).as_bytes()));
    let mut shards = BTreeMap::new();
    for (index, samples) in samples.chunks(SAMPLES).enumerate() {
        let name = format!("{prefix}-{index:04}.tar");
        let bytes = pack(samples)?;
        let path = folder.join(&name);
        fs::write(&path, &bytes).with_context(|| format!("cannot write {}", path.display()))?;
        let shard =
            Shard { samples: samples.len(), bytes: bytes.len() as u64, sha256: sha256_of(&bytes) };
        shards.insert(name, shard);
    }
    Ok(shards)
}

/// `sizes.json`: shard name to number of samples, as webdataset tools write it.
pub(super) fn sizes(shards: &BTreeMap<String, Shard>) -> BTreeMap<&str, usize> {
    shards.iter().map(|(name, shard)| (name.as_str(), shard.samples)).collect()
}

/// Packs samples into a tar file whose bytes depend on nothing else: no times, no owners.
fn pack(samples: &[Sample]) -> Result<Vec<u8>> {
    let mut builder = Builder::new(Vec::new());
    for sample in samples {
        let members: [(&str, &[u8]); 3] =
            [("png", &sample.png), ("txt", sample.text.as_bytes()), ("json", &sample.json)];
        for (extension, content) in members {
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::Regular);
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(0);
            builder.append_data(&mut header, format!("{}.{extension}", sample.key), content)?;
        }
    }
    Ok(builder.into_inner()?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn samples(count: usize) -> Vec<Sample> {
        let sample = |index| Sample {
            key: format!("vendor_{index}"),
            png: vec![1, 2, 3],
            text: "a name".to_owned(),
            json: b"{}".to_vec(),
        };
        (0..count).map(sample).collect()
    }

    #[test]
    fn shards_do_not_depend_on_the_order_samples_arrive_in() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut reversed = samples(600);
        reversed.reverse();
        let shards = write(one.path(), "train", samples(600)).unwrap();
        assert_eq!(shards, write(two.path(), "train", reversed).unwrap());
        let expected = [("train-0000.tar", 512), ("train-0001.tar", 88)];
        assert_eq!(sizes(&shards), expected.into());
    }

    #[test]
    fn members_of_a_sample_are_neighbours_and_carry_no_time() {
        let tar = pack(&samples(2)).unwrap();
        let mut archive = tar::Archive::new(tar.as_slice());
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 0);
            names.push(entry.path().unwrap().to_string_lossy().into_owned());
        }
        let stems = ["vendor_0", "vendor_1"];
        let expected: Vec<_> = stems
            .iter()
            .flat_map(|stem| ["png", "txt", "json"].map(|extension| format!("{stem}.{extension}")))
            .collect();
        assert_eq!(names, expected);
    }
}
