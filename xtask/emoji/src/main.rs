//! The data of the main job: the same emoji as five vendors draw them, as webdataset shards.
//!
//! `emoji-set FOLDER PACKAGE=FILE…` writes the set into the empty `FOLDER` from the packages that
//! `cargo xtask setup` has downloaded and verified. A program of its own, because what it draws with
//! takes longer to compile than all of xtask, and only a machine without the set needs it.
//!
//! Four vendors are for training, Twitter's drawings are held out: they are only ever evaluated on.
//! Emoji are matched by code point, captions are their English names and keywords.
//!
//! Modules in reading order: [`source`] (packages and vendors), [`catalogue`] (which emoji there
//! are and how they are called), [`picture`] (a vendor's file to a 64 × 64 PNG), [`shard`] (tar
//! files), [`preview`] (a contact sheet to look at).

mod catalogue;
mod picture;
mod preview;
mod shard;
mod source;

use std::collections::BTreeSet;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use xtask::console::{self, Progress};

use self::catalogue::Emoji;
use self::shard::Sample;
use self::source::{Packages, Sources, VENDORS, Vendor};

/// Fewest distinct captions of the held-out vendor; fewer would make its accuracy flattering.
const MIN_HELD_OUT_CAPTIONS: usize = 1300;

const NOTICE: &str = include_str!("NOTICE.txt");

fn main() -> ExitCode {
    match arguments().and_then(|(folder, packages)| build(&packages, &folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::error(&error);
            ExitCode::FAILURE
        }
    }
}

/// The folder to fill, and where each package lies.
fn arguments() -> Result<(PathBuf, Packages)> {
    let mut words = env::args_os().skip(1);
    let folder = words.next().context("usage: emoji-set FOLDER PACKAGE=FILE…")?.into();
    let package = |word: std::ffi::OsString| {
        let word = word.into_string().ok().context("a package's path is no Unicode text")?;
        let (name, file) =
            word.split_once('=').with_context(|| format!("{word} is not PACKAGE=FILE"))?;
        Ok((name.to_owned(), PathBuf::from(file)))
    };
    Ok((folder, words.map(package).collect::<Result<_>>()?))
}

/// Builds the set from downloaded packages. The same packages give the same bytes.
fn build(packages: &Packages, folder: &Path) -> Result<()> {
    let sources = Sources::read(packages)?;
    let emoji = catalogue::read(&sources)?;
    let drawings = draw_all(&sources, &emoji);
    report(&sources, &emoji, &drawings);
    check_held_out(&emoji, &drawings)?;

    let samples = |held_out: bool| -> Result<Vec<Sample>> {
        let of_the_part = drawings.iter().filter(|drawing| drawing.vendor.held_out == held_out);
        of_the_part.filter_map(|drawing| drawing.sample(&emoji).transpose()).collect()
    };
    let mut shards = shard::write(folder, "train", samples(false)?)?;
    shards.extend(shard::write(folder, "twitter", samples(true)?)?);
    write_json(&folder.join("sizes.json"), &shard::sizes(&shards))?;
    write(&folder.join("NOTICE"), NOTICE.as_bytes())?;
    write(&folder.join("preview.png"), &preview::contact_sheet(&emoji, &drawings)?)?;
    // Last: who finds it finds a complete set.
    write_json(&folder.join("shards.json"), &shards)
}

/// One emoji as one vendor draws it.
struct Drawing {
    vendor: &'static Vendor,
    /// Index into the catalogue.
    emoji: usize,
    /// The PNG, or why the vendor's file could not be turned into one.
    png: Result<Vec<u8>>,
}

impl Drawing {
    /// The sample for the shards; none where the file could not be read.
    fn sample(&self, emoji: &[Emoji]) -> Result<Option<Sample>> {
        let Ok(png) = &self.png else { return Ok(None) };
        let emoji = &emoji[self.emoji];
        Ok(Some(Sample {
            key: format!("{}_{}", self.vendor.name, emoji.unified.to_lowercase()),
            png: png.clone(),
            text: emoji.label.clone(),
            json: emoji.to_json(self.vendor.name)?,
        }))
    }
}

/// Draws every emoji of every vendor on all cores; the order of the result does not depend on them.
fn draw_all(sources: &Sources, emoji: &[Emoji]) -> Vec<Drawing> {
    let mut work = Vec::new();
    for vendor in &VENDORS {
        for (index, entry) in emoji.iter().enumerate() {
            if let Some(file) = sources.drawing(vendor, &entry.unified) {
                work.push((vendor, index, file));
            }
        }
    }
    let progress = Progress::items("drawing emoji at 64 × 64", work.len() as u64);
    let next = AtomicUsize::new(0);
    let drawings = Mutex::new(Vec::with_capacity(work.len()));
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(&(vendor, emoji, file)) = work.get(index) else { break };
                    let drawing =
                        Drawing { vendor, emoji, png: picture::draw(vendor.format, file) };
                    drawings.lock().expect("pushing does not panic").push((index, drawing));
                    progress.add(1);
                }
            });
        }
    });
    progress.done();
    let mut drawings = drawings.into_inner().expect("pushing does not panic");
    drawings.sort_by_key(|(index, _)| *index);
    drawings.into_iter().map(|(_, drawing)| drawing).collect()
}

/// Prints how many emoji each vendor has, lacks and has in an unreadable file, with the reasons.
fn report(sources: &Sources, emoji: &[Emoji], drawings: &[Drawing]) {
    let heading = ["vendor", "use", "drawn", "not drawn by vendor", "unreadable", "other files"];
    let mut rows = vec![heading.map(str::to_owned).to_vec()];
    for vendor in &VENDORS {
        let of_vendor = || drawings.iter().filter(|drawing| drawing.vendor.name == vendor.name);
        let unreadable = of_vendor().filter(|drawing| drawing.png.is_err()).count();
        let found = of_vendor().count();
        rows.push(vec![
            vendor.name.to_owned(),
            (if vendor.held_out { "held out" } else { "train" }).to_owned(),
            (found - unreadable).to_string(),
            (emoji.len() - found).to_string(),
            unreadable.to_string(),
            // Skin tones, symbols outside Unicode's emoji, parts of flags.
            (sources.files_of(vendor) - found).to_string(),
        ]);
    }
    console::note(&format!("    {} base emoji with an English name:", emoji.len()));
    console::note(console::table(&rows).trim_end());
    for drawing in drawings {
        if let Err(error) = &drawing.png {
            let name = &emoji[drawing.emoji].label;
            console::note(&format!("    {} of {}: {error:#}", name, drawing.vendor.name));
        }
    }
}

fn check_held_out(emoji: &[Emoji], drawings: &[Drawing]) -> Result<()> {
    let captions: BTreeSet<&str> = drawings
        .iter()
        .filter(|drawing| drawing.vendor.held_out && drawing.png.is_ok())
        .map(|drawing| emoji[drawing.emoji].label.as_str())
        .collect();
    if captions.len() < MIN_HELD_OUT_CAPTIONS {
        bail!(
            "the held-out vendor has {} distinct captions, expected at least {MIN_HELD_OUT_CAPTIONS}",
            captions.len()
        );
    }
    console::note(&format!("    {} distinct captions are held out", captions.len()));
    Ok(())
}

fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(value)?;
    text.push(b'\n');
    write(path, &text)
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
