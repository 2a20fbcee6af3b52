//! Some samples to look at: which ones, read and made small, as one picture ([`sheet`]) or as a page, in a [`mod@file`].

pub mod file;
pub mod sheet;

use std::collections::HashSet;

use ringmaster_data::RawSample;
use ringmaster_inputs::image::{RgbImage, decode};
use ringmaster_inputs::rng::{Site, Stream};
use ringmaster_words::{chain, thousands};

pub use crate::page::Shown;
use crate::stats::duplicates::Duplicates;
use crate::walk::{Order, walk};
use crate::{Error, Input, Meter, page, picture};

/// Samples that are shown at most: a page or picture with more opens nowhere.
pub const MOST: u64 = 10_000;

/// Which samples are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How many.
    pub samples: u64,
    /// Chooses them; the first ones without.
    pub seed: Option<u64>,
}

/// Returns the indices of the samples to show, in the order of the set.
///
/// # Errors
/// [`Error::Asked`] for none or too many.
pub fn choose(total: u64, options: Options) -> Result<Vec<u64>, Error> {
    if !(1..=MOST).contains(&options.samples) {
        let what = format!("{} samples cannot be shown", thousands(options.samples));
        let remedy = format!("choose 1 to {}", thousands(MOST));
        return Err(Error::Asked { what, remedy });
    }
    let wanted = options.samples.min(total);
    let Some(seed) = options.seed else { return Ok((0..wanted).collect()) };
    // Floyd's way to choose without repetition: sample i of the last `wanted` ones, or one before it.
    let mut random = Stream::new(seed, Site::Tool, &[1]);
    let mut chosen = HashSet::new();
    for last in total - wanted..total {
        let one = random.below(last + 1);
        if !chosen.insert(one) {
            chosen.insert(last);
        }
    }
    let mut chosen: Vec<u64> = chosen.into_iter().collect();
    chosen.sort_unstable();
    Ok(chosen)
}

/// Reads samples and makes their images small: no side is longer than `side`. One that cannot be used is shown with the
/// reason.
///
/// # Errors
/// A store that fails; [`Error::Interrupted`].
pub fn samples(
    input: &Input,
    indices: Vec<u64>,
    side: u32,
    meter: &Meter,
) -> Result<Vec<Shown>, Error> {
    meter.begin("reading pictures", indices.len() as u64);
    let mut all = Vec::with_capacity(indices.len());
    let order = Order::Chosen(indices);
    let show = |(_, read): crate::walk::Read| match read {
        Ok(sample) => shown(sample, side),
        Err(flaw) => {
            Shown { key: flaw.key, captions: Vec::new(), size: None, picture: Err(flaw.reason) }
        }
    };
    walk(&input.source, &order, meter, show, |shown| {
        all.push(shown);
        Ok(())
    })?;
    Ok(all)
}

/// Reads the first samples of the largest groups of duplicates.
///
/// # Errors
/// As [`samples`].
pub fn duplicates(
    input: &Input,
    duplicates: &Duplicates,
    side: u32,
    meter: &Meter,
) -> Result<Vec<Vec<Shown>>, Error> {
    let groups = duplicates.largest.iter();
    groups.map(|group| samples(input, group.indices.clone(), side, meter)).collect()
}

fn shown(sample: RawSample, side: u32) -> Shown {
    let RawSample { key, image, captions } = sample;
    let decoded = decode(&image);
    let size = decoded.as_ref().ok().map(RgbImage::dimensions);
    let picture = decoded.and_then(|image| picture::thumbnail(&image, side));
    Shown { key, captions, size, picture: picture.map_err(|error| chain(&error)) }
}

/// Returns a page that shows samples and needs no other file.
pub fn to_html(title: &str, samples: &[Shown]) -> String {
    let mut content = format!("<p>{} samples</p>\n", thousands(samples.len() as u64));
    page::sheet(&mut content, samples);
    page::page(title, &content)
}
