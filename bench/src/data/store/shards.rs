//! Tar shards that exist nowhere: any bytes of any of them are made when they are asked for.
//!
//! A sample is a JPEG and its caption. Both members have the same length in every sample, so that sample `i` begins at
//! byte `i * STRIDE` of its shard.

use std::collections::BTreeMap;
use std::ops::Range;

use ringmaster_inputs::rng::{Site, Stream};

use crate::data;

/// Shards of the data set.
pub(super) const SHARDS: u64 = 10_000;
/// Samples of a shard.
pub(super) const SAMPLES: u64 = 1_000;
/// Unit of a tar.
const BLOCK: u64 = 512;
/// Bytes of an image, whose end marker zeros follow.
const IMAGE: u64 = 39 * BLOCK;
/// Bytes of a caption.
const CAPTION: u64 = 40;
/// Bytes of a sample: two headers, and both members up to whole blocks.
const STRIDE: u64 = BLOCK + IMAGE + BLOCK + CAPTION.next_multiple_of(BLOCK);
/// Bytes of a shard, with its end marker.
pub(super) const LEN: u64 = SAMPLES * STRIDE + 2 * BLOCK;
/// Different images.
const IMAGES: u64 = 4;

/// What all shards are made of.
#[derive(Debug)]
pub(super) struct Shards {
    /// Each of [`IMAGE`] bytes.
    images: Vec<Vec<u8>>,
}

impl Shards {
    /// Draws the images.
    ///
    /// # Errors
    /// An image that cannot be encoded.
    pub(super) fn new() -> anyhow::Result<Self> {
        let images = (0..IMAGES).map(image).collect::<anyhow::Result<_>>()?;
        Ok(Self { images })
    }

    /// Returns the name of a shard.
    pub(super) fn name(shard: u64) -> String {
        format!("{shard:05}.tar")
    }

    /// Returns the shard of this name.
    pub(super) fn named(name: &str) -> Option<u64> {
        let shard = name.strip_suffix(".tar")?.parse().ok()?;
        (shard < SHARDS && Self::name(shard) == name).then_some(shard)
    }

    /// Returns what `sizes.json` says of them.
    pub(super) fn sizes() -> Vec<u8> {
        let all: BTreeMap<String, u64> =
            (0..SHARDS).map(|shard| (Self::name(shard), SAMPLES)).collect();
        serde_json::to_vec(&all).unwrap_or_default()
    }

    /// Returns the index of a shard as DALI's `wds2idx` writes it.
    pub(super) fn index(shard: u64) -> Vec<u8> {
        let mut text = format!("v1.2 {SAMPLES}\n");
        for sample in 0..SAMPLES {
            let (key, at) = (key(shard, sample), sample * STRIDE + BLOCK);
            let caption = at + IMAGE + BLOCK;
            text += &format!("jpg {at} {IMAGE} {key}.jpg txt {caption} {CAPTION} {key}.txt\n");
        }
        text.into_bytes()
    }

    /// Appends some bytes of a shard, which lie within it.
    pub(super) fn append(&self, shard: u64, range: Range<u64>, out: &mut Vec<u8>) {
        let mut at = range.start;
        for sample in range.start / STRIDE..SAMPLES {
            if at >= range.end {
                return;
            }
            let start = sample * STRIDE;
            self.append_sample(
                (shard, sample),
                at - start..range.end.min(start + STRIDE) - start,
                out,
            );
            at = start + STRIDE;
        }
        // The end marker.
        let zeros = range.end.saturating_sub(at.max(range.start));
        out.resize(out.len() + zeros as usize, 0);
    }

    /// Appends some bytes of a sample, which lie within it.
    fn append_sample(&self, (shard, sample): (u64, u64), range: Range<u64>, out: &mut Vec<u8>) {
        let key = key(shard, sample);
        let image = &self.images[((shard + sample) % IMAGES) as usize];
        let caption = format!("{:1$}", format!("made-up picture {key}"), CAPTION as usize);
        let mut start = 0;
        let mut append = |bytes: &[u8], len: u64| {
            let (from, to) = (range.start.max(start), range.end.min(start + len));
            if from < to {
                let (from, to) = ((from - start) as usize, (to - start) as usize);
                let there = &bytes[from.min(bytes.len())..to.min(bytes.len())];
                out.extend_from_slice(there);
                out.resize(out.len() + (to - from - there.len()), 0);
            }
            start += len;
        };
        append(&header(&key, "jpg", IMAGE), BLOCK);
        append(image, IMAGE);
        append(&header(&key, "txt", CAPTION), BLOCK);
        append(caption.as_bytes(), CAPTION.next_multiple_of(BLOCK));
    }
}

fn key(shard: u64, sample: u64) -> String {
    format!("{shard:05}{sample:04}")
}

fn header(key: &str, extension: &str, len: u64) -> [u8; BLOCK as usize] {
    let mut header = tar::Header::new_ustar();
    let name = format!("{key}.{extension}");
    // Field of the name: its first bytes.
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.set_size(len);
    header.set_mode(0o644);
    header.set_cksum();
    *header.as_bytes()
}

/// Draws an image of at most [`IMAGE`] bytes, as good as these allow.
fn image(number: u64) -> anyhow::Result<Vec<u8>> {
    for quality in (50..=95).rev().step_by(5) {
        let mut stream = Stream::new(1, Site::Augment, &[number]);
        let mut bytes = data::picture(&mut stream, (320, 240), quality)?;
        if bytes.len() as u64 <= IMAGE {
            bytes.resize(IMAGE as usize, 0);
            return Ok(bytes);
        }
    }
    anyhow::bail!("an image of 320 x 240 pixels takes more than {IMAGE} bytes")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn any_range_is_cut_out_of_a_tar_that_other_programs_read() {
        let shards = Shards::new().unwrap();
        let mut whole = Vec::new();
        shards.append(17, 0..LEN, &mut whole);
        assert_eq!(whole.len() as u64, LEN);
        for range in [0..1, 500..530, STRIDE - 3..2 * STRIDE + 9, LEN - 2000..LEN, LEN - 5..LEN] {
            let mut part = Vec::new();
            shards.append(17, range.clone(), &mut part);
            assert!(part == whole[range.start as usize..range.end as usize], "{range:?}");
        }
        let index = String::from_utf8(Shards::index(17)).unwrap();
        let mut lines = index.lines().skip(1);
        let mut archive = tar::Archive::new(whole.as_slice());
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let name = entry.path().unwrap().display().to_string();
            let (offset, size) = (entry.raw_file_position(), entry.size());
            names.push(format!("{} {offset} {size} {name}", name.rsplit_once('.').unwrap().1));
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes.len() as u64, size);
            if names.len() == 2 {
                assert_eq!(std::mem::take(&mut names).join(" "), lines.next().unwrap());
            }
        }
        assert_eq!(lines.next(), None);
    }
}
