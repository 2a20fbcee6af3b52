//! From any source to webdataset shards.
//!
//! Modules in reading order: here the way through, `image` (what a sample's image becomes), `shard` (samples as a tar),
//! `target` (the folder they go to). The same source and options give the same bytes.

mod image;
mod shard;
mod target;

use std::collections::{BTreeMap, HashSet};

use ringmaster_data::{Flaw, RawSample};
use ringmaster_inputs::rng::{Site, Stream};
use ringmaster_words::{chain, thousands};
use serde::Serialize;

use self::image::{Encoded, Refused};
pub use self::image::{Format, Images};
use self::shard::Shard;
use self::target::Target;
use crate::picture::{self, Digest};
use crate::walk::{Order, Read, walk};
use crate::{Error, Input, Meter};

/// Samples of a shard, unless somebody says otherwise.
pub const SAMPLES_PER_SHARD: u64 = 10_000;
/// Bytes of a shard, unless somebody says otherwise: it is made in memory.
pub const SHARD_BYTES: u64 = 512 << 20;
/// Bytes of a shard at most: stores take objects of 5 GiB in one request.
pub const MOST_SHARD_BYTES: u64 = 4 << 30;
/// Corrupt samples that are listed.
const LISTED: usize = 20;

/// What is written, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Absolute path or URL of the folder.
    pub output: String,
    /// Samples of a shard at most.
    pub samples_per_shard: u64,
    /// Bytes of a shard at most, unless a single sample has more.
    pub shard_bytes: u64,
    /// What becomes of images.
    pub images: Images,
    /// Puts the samples in an order that depends on this number only.
    pub shuffle: Option<u64>,
    /// Writes samples whose images have the same bytes once, the first of them.
    pub drop_duplicates: bool,
    /// Leaves samples out that cannot be used, rather than ending at the first.
    pub skip_corrupt: bool,
    /// Replaces what was written to the folder before.
    pub overwrite: bool,
}

/// What was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Written {
    /// Samples.
    pub samples: u64,
    /// Bytes of all shards.
    pub bytes: u64,
    /// Images that were encoded anew; the bytes of the others are as they were.
    pub encoded: u64,
    /// Samples left out because an earlier one has the same image.
    pub duplicates: u64,
    /// Samples left out because they cannot be used.
    pub corrupt: u64,
    /// The first of them, with their reasons.
    pub first_corrupt: Vec<String>,
    /// Samples of every shard, by its name: what `sizes.json` says.
    pub sizes: BTreeMap<String, u64>,
}

/// A sample as it goes into a shard.
#[derive(Debug)]
struct Prepared {
    key: String,
    digest: Digest,
    image: Encoded,
    captions: Vec<String>,
}

/// Why a sample does not go into a shard.
#[derive(Debug)]
enum Failed {
    Corrupt(Flaw),
    Encoder { key: String, reason: String },
}

/// Writes the samples of a source as shards `000000.tar`, … and `sizes.json` beside them. Keys of samples are running
/// numbers; an image is a member `.jpg`, `.png` or `.webp`, its first caption `.txt`, all of several captions a list
/// `captions` in `.json`.
///
/// A shard appears under its name when all of it is there, and `sizes.json` after the last one. Whatever ends the
/// writing early, the shards of this run are removed.
///
/// # Errors
/// Options that are out of bounds, a folder that is not empty (unless it is to be overwritten) or holds the source
/// itself; the first sample that cannot be used (unless those are left out); a store that fails;
/// [`Error::Interrupted`].
pub fn write(input: &Input, options: &Options, meter: &Meter) -> Result<Written, Error> {
    check(options)?;
    meter.begin("looking at what lies in the folder to write to", 0);
    let mut target = Target::open(&options.output, meter)?;
    target.prepare(&input.urls, options.overwrite)?;
    meter.begin("writing", input.samples());
    let mut writing = Writing::new(options, &mut target);
    let done = walk(
        &input.source,
        &order(input, options.shuffle),
        meter,
        |read| prepare(input, options.images, meter, read),
        |prepared| writing.take(prepared),
    );
    let done = done.and_then(|()| writing.finish());
    done.inspect_err(|_| target.discard())
}

fn check(options: &Options) -> Result<(), Error> {
    let asked = |what: String, remedy: String| Err(Error::Asked { what, remedy });
    if options.samples_per_shard == 0 {
        return asked("shards of 0 samples hold nothing".to_owned(), "choose 1 or more".to_owned());
    }
    if !(1..=MOST_SHARD_BYTES).contains(&options.shard_bytes) {
        let what = format!("shards of {} bytes are not written", thousands(options.shard_bytes));
        return asked(what, format!("choose 1 to {}", thousands(MOST_SHARD_BYTES)));
    }
    options.images.check()
}

/// Returns the samples in the order in which they are written.
fn order(input: &Input, shuffle: Option<u64>) -> Order {
    let Some(seed) = shuffle else { return Order::stored(&input.source) };
    let mut indices: Vec<u64> = (0..input.samples()).collect();
    Stream::new(seed, Site::Tool, &[2]).shuffle(&mut indices);
    Order::Chosen(indices)
}

fn prepare(
    input: &Input,
    images: Images,
    meter: &Meter,
    (index, read): Read,
) -> Result<Prepared, Failed> {
    let corrupt = |flaw| {
        meter.count_bad();
        Failed::Corrupt(flaw)
    };
    let RawSample { key, image, captions } = read.map_err(corrupt)?;
    let digest = picture::digest(&image);
    match images.encode(image) {
        Ok(image) => Ok(Prepared { key, digest, image, captions }),
        Err(Refused::Corrupt(error)) => Err(corrupt(input.flaw(index, &key, chain(&error)))),
        Err(Refused::Encoder(reason)) => Err(Failed::Encoder { key, reason }),
    }
}

/// The shard that is being filled, and what was written before it.
struct Writing<'a> {
    options: &'a Options,
    target: &'a mut Target,
    shard: Shard,
    seen: HashSet<Digest>,
    written: Written,
}

impl<'a> Writing<'a> {
    fn new(options: &'a Options, target: &'a mut Target) -> Self {
        let (shard, seen, written) = (Shard::default(), HashSet::new(), Written::default());
        Self { options, target, shard, seen, written }
    }

    fn take(&mut self, prepared: Result<Prepared, Failed>) -> Result<(), Error> {
        match prepared {
            Ok(prepared) => self.add(&prepared),
            Err(Failed::Corrupt(flaw)) if self.options.skip_corrupt => {
                self.written.corrupt += 1;
                if self.written.first_corrupt.len() < LISTED {
                    self.written.first_corrupt.push(flaw.to_string());
                }
                Ok(())
            }
            Err(Failed::Corrupt(flaw)) => Err(Error::Corrupt { flaw }),
            Err(Failed::Encoder { key, reason }) => Err(Error::Sample { key, reason }),
        }
    }

    fn add(&mut self, sample: &Prepared) -> Result<(), Error> {
        if self.options.drop_duplicates && !self.seen.insert(sample.digest) {
            self.written.duplicates += 1;
            return Ok(());
        }
        let members = shard::members(self.written.samples, sample);
        let bytes = shard::bytes(&members);
        let is_full = self.shard.samples() == self.options.samples_per_shard
            || self.shard.bytes() + bytes > self.options.shard_bytes;
        if is_full && self.shard.samples() > 0 {
            self.close()?;
        }
        self.shard.append(&members).map_err(|error| Error::Sample {
            key: sample.key.clone(),
            reason: error.to_string(),
        })?;
        self.written.samples += 1;
        self.written.encoded += u64::from(sample.image.is_new);
        Ok(())
    }

    /// Stores the shard and begins the next one.
    fn close(&mut self) -> Result<(), Error> {
        let name = format!("{:06}.tar", self.written.sizes.len());
        let (samples, bytes) = std::mem::take(&mut self.shard).finish();
        self.written.bytes += bytes.len() as u64;
        self.target.put(&name, bytes)?;
        self.written.sizes.insert(name, samples);
        Ok(())
    }

    fn finish(mut self) -> Result<Written, Error> {
        if self.shard.samples() > 0 {
            self.close()?;
        }
        if self.written.samples == 0 {
            let what = "no sample of the source can be used".to_owned();
            return Err(Error::Asked { what, remedy: "`verify` says why".to_owned() });
        }
        let sizes = serde_json::to_vec_pretty(&self.written.sizes).expect("plain data serialises");
        self.target.put(target::SIZES, sizes)?;
        Ok(self.written)
    }
}
