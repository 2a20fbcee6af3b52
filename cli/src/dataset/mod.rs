//! `ringmaster dataset`: looking at data sets, checking them, and writing them as shards.
//!
//! The work is done by `ringmaster_dataset`; here is what it is asked ([`args`]), how far it is ([`bar`]) and what
//! people and scripts read.

pub(crate) mod args;
mod bar;

use std::path::{Path, PathBuf};

use comfy_table::Table;
use ringmaster_dataset::show::file::{Form, save};
use ringmaster_dataset::verify::Verified;
use ringmaster_dataset::write::{Format, Images, Options, SHARD_BYTES, Written};
use ringmaster_dataset::{Error as DatasetError, Input, show, stats, verify, write};
use ringmaster_words::thousands;

use self::args::DatasetCommand;
use super::error::Error;
use super::location::location;
use super::output;

/// Columns of a terminal whose width is not known.
const COLUMNS: u16 = 100;
/// Samples on the page of `stats`.
const PAGE_SAMPLES: show::Options = show::Options { samples: 60, seed: Some(0) };
/// Bad samples that are printed; `--json` has all.
const SHOWN: usize = 100;

/// Does what was asked for.
pub(crate) async fn run(command: &DatasetCommand) -> Result<(), Error> {
    match command {
        DatasetCommand::Stats(args) => stats(args).await,
        DatasetCommand::Verify(args) => verify(args).await,
        DatasetCommand::Write(args) => write(args).await,
        DatasetCommand::Show(args) => show(args).await,
    }
}

fn here() -> Result<PathBuf, Error> {
    std::env::current_dir().map_err(|source| Error::io("find the working directory", source))
}

async fn stats(args: &args::Stats) -> Result<(), Error> {
    let html = args.html.clone();
    if let Some(file) = &html {
        check_page(file)?;
    }
    let (words, title, base_dir) = (args.input.words(), args.input.title(), here()?);
    let options = stats::Options { distance: args.distance };
    let found = bar::watch(move |meter| {
        let input = Input::open(&words, &base_dir, meter)?;
        let found = stats::stats(&input, options, meter)?;
        if let Some(file) = html {
            let side = Form::Html.side();
            let chosen = show::choose(input.samples(), PAGE_SAMPLES)?;
            let samples = show::samples(&input, chosen, side, meter)?;
            let alike = show::duplicates(&input, &found.near_duplicates, side, meter)?;
            save(&file, found.to_html(&title, &samples, &alike).as_bytes())?;
        }
        Ok(found)
    })
    .await?;
    if args.json {
        output::print_json(&found.to_json())?;
    } else {
        let columns = Table::new().width().unwrap_or(COLUMNS).clamp(60, 140);
        output::print(&found.to_text(columns.into()))?;
    }
    if let Some(file) = &args.html {
        output::error_line(&format!("wrote {}", file.display()));
    }
    Ok(())
}

fn check_page(file: &Path) -> Result<(), Error> {
    match Form::of(file) {
        Ok(Form::Html) => Ok(()),
        _ => Err(Error::Dataset(DatasetError::Asked {
            what: format!("--html {} names no page", file.display()),
            remedy: "name a file that ends in .html".to_owned(),
        })),
    }
}

async fn verify(args: &args::Verify) -> Result<(), Error> {
    let (words, base_dir) = (args.input.words(), here()?);
    let verified =
        bar::watch(move |meter| verify::verify(&Input::open(&words, &base_dir, meter)?, meter))
            .await?;
    if args.json {
        output::print_json(&verified.to_json())?;
    } else {
        report(&verified)?;
    }
    if verified.is_good() { Ok(()) } else { Err(Error::NotUsable { what: summary(&verified) }) }
}

fn report(verified: &Verified) -> Result<(), Error> {
    for flaw in verified.bad.iter().take(SHOWN) {
        output::print(&format!("✗ {flaw}"))?;
    }
    if verified.bad.len() > SHOWN {
        let more = thousands((verified.bad.len() - SHOWN) as u64);
        output::print(&format!("  and {more} more; --json lists all"))?;
    }
    for shard in &verified.damaged {
        output::print(&format!("✗ {}: {}", shard.url, shard.reason))?;
    }
    if verified.empty_captions > 0 {
        output::print(&format!("! {} captions are empty", thousands(verified.empty_captions)))?;
    }
    if verified.is_good() {
        output::print(&format!("✓ all {} samples can be used", thousands(verified.samples)))?;
    }
    Ok(())
}

fn summary(verified: &Verified) -> String {
    let (bad, of) = (thousands(verified.bad.len() as u64), thousands(verified.samples));
    match verified.damaged.len() {
        0 => format!("{bad} of {of} samples cannot be used"),
        1 => format!("{bad} of {of} samples cannot be used, and 1 shard breaks off"),
        more => format!("{bad} of {of} samples cannot be used, and {more} shards break off"),
    }
}

async fn show(args: &args::Show) -> Result<(), Error> {
    let form = Form::of(&args.output)?;
    let seed = if args.first { None } else { Some(args.seed) };
    let options = show::Options { samples: args.samples, seed };
    let (words, title, base_dir) = (args.input.words(), args.input.title(), here()?);
    let file = args.output.clone();
    let shown = bar::watch(move |meter| {
        let input = Input::open(&words, &base_dir, meter)?;
        let chosen = show::choose(input.samples(), options)?;
        let samples = show::samples(&input, chosen, form.side(), meter)?;
        save(&file, &form.bytes(&title, &samples)?)?;
        Ok(samples.len())
    })
    .await?;
    output::print(&format!("{}: {} samples", args.output.display(), thousands(shown as u64)))
}

async fn write(args: &args::Write) -> Result<(), Error> {
    let options = Options {
        output: location(&args.output)?,
        samples_per_shard: args.samples_per_shard,
        shard_bytes: args.shard_bytes.unwrap_or(SHARD_BYTES),
        images: Images {
            format: match args.format {
                args::Format::Keep => Format::Keep,
                args::Format::Jpeg => Format::Jpeg,
                args::Format::Webp => Format::WebP,
                args::Format::Png => Format::Png,
            },
            max_side: args.max_side,
            quality: args.quality,
        },
        shuffle: args.shuffle,
        drop_duplicates: args.drop_duplicates == Some(args::Duplicates::Exact),
        skip_corrupt: args.skip_corrupt,
        overwrite: args.overwrite,
    };
    let (words, base_dir) = (args.input.words(), here()?);
    let written = bar::watch(move |meter| {
        write::write(&Input::open(&words, &base_dir, meter)?, &options, meter)
    })
    .await?;
    if args.json {
        let json = serde_json::to_value(&written).expect("it has string keys and finite numbers");
        return output::print_json(&json);
    }
    tell(&args.output, &written)
}

fn tell(folder: &str, written: &Written) -> Result<(), Error> {
    let shards = match written.sizes.len() {
        1 => "1 shard".to_owned(),
        several => format!("{} shards", thousands(several as u64)),
    };
    let bytes = indicatif::BinaryBytes(written.bytes);
    let mut text = format!("{folder}: {} samples in {shards}, {bytes}", thousands(written.samples));
    for (count, what) in [
        (written.encoded, "images encoded anew"),
        (written.duplicates, "duplicates left out"),
        (written.corrupt, "corrupt samples left out"),
    ] {
        if count > 0 {
            text.push_str(&format!(" · {} {what}", thousands(count)));
        }
    }
    for reason in &written.first_corrupt {
        text.push_str(&format!("\n✗ {reason}"));
    }
    output::print(&text)
}
