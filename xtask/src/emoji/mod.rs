//! The data of the main job: the same emoji as five vendors draw them, as webdataset shards.
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

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::num::NonZero;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use self::catalogue::Emoji;
use self::shard::{Sample, Shard};
use self::source::{PACKAGES, Sources, VENDORS, Vendor};
use crate::console::{self, Progress};
use crate::fetch;
use crate::tools::Tools;
use crate::workspace::Workspace;

/// The folder inside the cache folder, and what `data/emoji` links to.
pub(crate) const FOLDER: &str = "emoji-v1";

/// Changes whenever the bytes of the shards would: a set built by an older recipe is built again.
const RECIPE: u32 = 2;

/// Fewest distinct captions of the held-out vendor; fewer would make its accuracy flattering.
const MIN_HELD_OUT_CAPTIONS: usize = 1300;

const STAMP: &str = "stamp.json";

const NOTICE: &str = include_str!("NOTICE.txt");

/// Written last; its presence says that the folder was complete and verified once.
#[derive(Debug, Serialize, Deserialize)]
struct Stamp {
    recipe: u32,
    /// File name to SHA-256 of the packages the set was built from.
    packages: BTreeMap<String, String>,
    shards: BTreeMap<String, Shard>,
}

/// Whether a complete set of the current recipe is there. Instant: sizes are compared, not contents.
pub(crate) fn is_ready(folder: &Path) -> bool {
    let Some(stamp) = read_stamp(folder) else { return false };
    let complete = stamp.shards.iter().all(|(name, shard)| {
        fs::metadata(folder.join(name)).is_ok_and(|metadata| metadata.len() == shard.bytes)
    });
    stamp.recipe == RECIPE && stamp.packages == source::digests() && complete
}

/// Downloads the packages and builds the set.
pub(crate) fn ensure(workspace: &Workspace, tools: &Tools) -> Result<()> {
    let downloads = workspace.cache().join("downloads");
    fs::create_dir_all(&downloads)
        .with_context(|| format!("cannot create {}", downloads.display()))?;
    for package in &PACKAGES {
        fetch::fetch(package, &downloads, tools)?;
    }
    let partial = workspace.cache().join(format!(".{FOLDER}.partial"));
    fetch::fresh_folder(&partial)?;
    build(&downloads, &partial)?;
    verify(&partial)?;
    fetch::replace_folder(&partial, &workspace.cache().join(FOLDER))
}

/// Reads every shard again and compares its checksum.
pub(crate) fn verify(folder: &Path) -> Result<()> {
    let stamp = read_stamp(folder)
        .with_context(|| format!("{} has no readable {STAMP}", folder.display()))?;
    for (name, shard) in &stamp.shards {
        let path = folder.join(name);
        let found = fetch::sha256(&path)?;
        if found != shard.sha256 {
            bail!("{} has SHA-256 {found}, expected {}", path.display(), shard.sha256);
        }
    }
    Ok(())
}

fn read_stamp(folder: &Path) -> Option<Stamp> {
    serde_json::from_slice(&fs::read(folder.join(STAMP)).ok()?).ok()
}

/// Builds the set from downloaded packages. The same packages give the same bytes.
fn build(downloads: &Path, folder: &Path) -> Result<()> {
    let sources = Sources::read(downloads)?;
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
    write_json(&folder.join(STAMP), &Stamp { recipe: RECIPE, packages: source::digests(), shards })
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
            if let Some(file) = sources.drawing(vendor, entry) {
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
