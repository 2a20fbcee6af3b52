//! What a data set holds: how much, of which sizes, which captions, and what occurs twice.
//!
//! Modules in reading order: here what is counted, [`histogram`], `captions` (the most frequent), [`duplicates`] and
//! `near` (images alike), `text` (tables for a terminal), `html` (a page) with `chart` (its histograms).

mod captions;
mod chart;
pub mod duplicates;
pub mod histogram;
mod html;
mod near;
mod text;

use std::collections::BTreeMap;

use ringmaster_data::{Flaw, SampleError};
use serde::Serialize;

use captions::Frequent;
pub use captions::Repeated;
use duplicates::{Duplicates, Images};
use histogram::{Bar, Distribution, Histogram, Ratios, Round};

use crate::look::{self, Looked};
use crate::page::Shown;
use crate::walk::{Order, walk};
use crate::{Error, Input, Meter};

/// Tokens of CLIP's context: what is behind them is cut off.
pub const CONTEXT_LENGTH: u8 = 77;
/// Bits in which hashes of pictures that look alike differ at most, unless somebody says otherwise.
pub const DISTANCE: u32 = 3;
/// Corrupt samples, captions and names that are listed.
const LISTED: usize = 20;

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Bits in which the hashes of two pictures may differ that count as alike, at most 16.
    pub distance: u32,
}

/// What a data set holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Stats {
    /// Samples that shards hold or declare.
    pub samples: u64,
    /// Shards.
    pub shards: u64,
    /// Bytes of all shards.
    pub shard_bytes: u64,
    /// Bytes of the images that can be used.
    pub image_bytes: u64,
    /// Samples that cannot be used.
    pub corrupt: u64,
    /// The first of them.
    pub first_corrupt: Vec<Corrupt>,
    /// Shards that break off: how many samples are lost with them is not known.
    pub damaged_shards: Vec<String>,
    /// Images by format.
    pub formats: BTreeMap<&'static str, u64>,
    /// Widths in pixels.
    pub width: Distribution,
    /// Heights in pixels.
    pub height: Distribution,
    /// Widths divided by heights.
    pub aspect_ratio: Vec<Bar>,
    /// Widths times heights.
    pub pixels: Distribution,
    /// Bytes of encoded images.
    pub bytes_per_image: Distribution,
    /// Captions per sample.
    pub captions_per_sample: Distribution,
    /// Characters of captions.
    pub caption_characters: Distribution,
    /// Tokens of captions by CLIP's tokenizer, start and end included; 1024 stands for more, too.
    pub caption_tokens: Distribution,
    /// Captions.
    pub captions: u64,
    /// Different captions; none where there are more than a million.
    pub different_captions: Option<u64>,
    /// Captions that are empty.
    pub empty_captions: u64,
    /// Captions of more than 77 tokens, whose ends CLIP does not see.
    pub long_captions: u64,
    /// The most frequent captions that occur at least twice. Counts are exact up to a million different captions.
    pub frequent_captions: Vec<Repeated>,
    /// Different images, by their bytes.
    pub different_images: u64,
    /// Images of the same bytes.
    pub exact_duplicates: Duplicates,
    /// Images of different bytes that look alike: their difference hashes differ in few bits, and their colours little.
    pub near_duplicates: Duplicates,
    /// Bits in which hashes of those differ at most.
    pub near_distance: u32,
}

/// A sample that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Corrupt {
    /// Its shard.
    pub shard: String,
    /// Its key.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

/// What is counted while samples pass.
#[derive(Debug, Default)]
struct Counting {
    stats: Stats,
    width: Histogram,
    height: Histogram,
    ratios: Ratios,
    pixels: Histogram,
    bytes: Histogram,
    captions: Histogram,
    characters: Histogram,
    tokens: Histogram,
    frequent: Frequent,
    images: Images,
}

/// Reads every sample and counts. Takes some 200 bytes of memory per different image, and 150 per different caption up
/// to a million of them.
///
/// # Errors
/// A store that fails; [`Error::Interrupted`]. A sample that cannot be used is counted.
pub fn stats(input: &Input, options: Options, meter: &Meter) -> Result<Stats, Error> {
    meter.begin("reading samples", input.samples());
    let mut counting = Counting::default();
    let tokenizer = look::counting_tokenizer();
    walk(
        &input.source,
        &Order::stored(&input.source),
        meter,
        |read| look::look(input, &tokenizer, meter, read),
        |looked| {
            counting.add(looked);
            Ok(())
        },
    )?;
    meter.begin("comparing pictures", 0);
    counting.finish(input, options, meter)
}

impl Counting {
    fn add(&mut self, looked: Result<Looked, Flaw>) {
        self.stats.samples += 1;
        match looked {
            Ok(looked) => self.add_good(&looked),
            Err(Flaw { shard, key, reason }) => {
                self.stats.corrupt += 1;
                if self.stats.first_corrupt.len() < LISTED {
                    self.stats.first_corrupt.push(Corrupt { shard, key, reason });
                }
            }
        }
    }

    fn add_good(&mut self, looked: &Looked) {
        *self.stats.formats.entry(looked.format.name()).or_default() += 1;
        self.stats.image_bytes += looked.bytes;
        self.width.add(looked.width.into());
        self.height.add(looked.height.into());
        self.ratios.add(looked.width, looked.height);
        self.pixels.add(u64::from(looked.width) * u64::from(looked.height));
        self.bytes.add(looked.bytes);
        self.images.add(looked.index, looked.digest, looked.likeness);
        self.captions.add(looked.captions.len() as u64);
        for caption in &looked.captions {
            self.stats.captions += 1;
            self.stats.empty_captions += u64::from(caption.text.is_empty());
            self.characters.add(caption.characters);
            self.tokens.add(caption.tokens);
            self.frequent.add(&caption.text);
        }
    }

    fn finish(self, input: &Input, options: Options, meter: &Meter) -> Result<Stats, Error> {
        let mut stats = Stats {
            shards: input.source.shard_sizes().len() as u64,
            shard_bytes: input.source.bytes(),
            damaged_shards: input.damaged().iter().map(|shard| shard.url.clone()).collect(),
            width: self.width.distribution(Round::Decimal),
            height: self.height.distribution(Round::Decimal),
            aspect_ratio: self.ratios.bars(),
            pixels: self.pixels.distribution(Round::Decimal),
            bytes_per_image: self.bytes.distribution(Round::Binary),
            captions_per_sample: self.captions.distribution(Round::Decimal),
            caption_characters: self.characters.distribution(Round::Decimal),
            caption_tokens: self.tokens.distribution(Round::Decimal),
            different_captions: self.frequent.different(),
            long_captions: self.tokens.above(CONTEXT_LENGTH),
            frequent_captions: self.frequent.top(LISTED),
            different_images: self.images.different(),
            exact_duplicates: self.images.exact(),
            near_duplicates: self.images.alike(options.distance),
            near_distance: options.distance,
            ..self.stats
        };
        name(&mut stats.exact_duplicates, input, meter)?;
        name(&mut stats.near_duplicates, input, meter)?;
        Ok(stats)
    }
}

/// Finds the keys of duplicates by reading them once more, which takes less memory than all keys.
fn name(duplicates: &mut Duplicates, input: &Input, meter: &Meter) -> Result<(), Error> {
    for group in &mut duplicates.largest {
        for &index in &group.indices {
            match input.source.read_until(index, meter.token()) {
                Ok(sample) => group.keys.push(sample.key),
                Err(SampleError::Corrupt(flaw)) => group.keys.push(flaw.key),
                Err(SampleError::Store(error)) => return Err(error.into()),
            }
        }
    }
    Ok(())
}

impl Stats {
    /// Returns tables and bars for a terminal of `columns` columns.
    pub fn to_text(&self, columns: usize) -> String {
        text::render(self, columns)
    }

    /// Returns what was counted, for programs.
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::to_value(self).expect("it has string keys and finite numbers")
    }

    /// Returns a page that needs no other file: tables, histograms, some samples, and pictures that look alike.
    pub fn to_html(&self, title: &str, samples: &[Shown], alike: &[Vec<Shown>]) -> String {
        html::render(self, title, samples, alike)
    }
}
