//! `ringmaster dataset`, as clap reads it.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use ringmaster_dataset::{Words, stats, write};

use crate::values;

const PLACES: &str = "SHARDS are tars, CSV or Parquet files, or folders of images (with a slash at the end): paths, or \
URLs of s3://, gs://, az:// or https:// (credentials come from the environment), with {000..127} and {a,b} as in a \
manifest's data.train. Quote them, or the shell expands the braces.";

#[derive(Debug, Args)]
pub(crate) struct Dataset {
    #[command(subcommand)]
    pub(crate) command: DatasetCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DatasetCommand {
    /// Count samples, sizes, captions and duplicates
    #[command(after_help = PLACES)]
    Stats(Stats),
    /// Read and decode every sample; exit code 1 if one cannot be used
    #[command(after_help = PLACES)]
    Verify(Verify),
    /// Write the samples as webdataset shards: as they are, shrunk, encoded anew, shuffled
    #[command(after_help = PLACES)]
    Write(Write),
    /// Make a contact sheet: some samples with their captions, in one picture or page
    #[command(after_help = PLACES)]
    Show(Show),
}

/// Which samples.
#[derive(Debug, Args)]
pub(crate) struct Input {
    /// Shards
    #[arg(value_name = "SHARDS", required = true)]
    shards: Vec<String>,
    /// Extensions tried for the image, joined by `;` [default: png;jpg;jpeg;webp]
    #[arg(long, value_name = "EXTENSIONS")]
    image_key: Option<String>,
    /// Extension of the caption [default: txt]
    #[arg(long, value_name = "EXTENSION")]
    text_key: Option<String>,
    /// Field of the .json member to take captions from instead
    #[arg(long, value_name = "FIELD")]
    json_text_key: Option<String>,
    /// Form: webdataset, csv, parquet or folder [default: by the names]
    #[arg(long, value_name = "FORM")]
    dataset_type: Option<String>,
    /// Between the columns of a CSV file [default: a tab]
    #[arg(long, value_name = "CHARACTER")]
    csv_separator: Option<String>,
    /// Column of the image in CSV and Parquet files [default: filepath; image;jpg;jpeg;png;webp;url]
    #[arg(long, value_name = "COLUMN", visible_alias = "csv-img-key")]
    img_key: Option<String>,
    /// Column of the caption in CSV and Parquet files [default: title; caption;text;title;txt]
    #[arg(long, value_name = "COLUMN", visible_alias = "csv-caption-key")]
    caption_key: Option<String>,
}

impl Input {
    pub(super) fn words(&self) -> Words {
        Words {
            shards: self.shards.clone(),
            image_key: self.image_key.clone(),
            text_key: self.text_key.clone(),
            json_text_key: self.json_text_key.clone(),
            dataset_type: self.dataset_type.clone(),
            csv_separator: self.csv_separator.clone(),
            img_key: self.img_key.clone(),
            caption_key: self.caption_key.clone(),
        }
    }

    /// Returns the shards as they were written.
    pub(super) fn title(&self) -> String {
        self.shards.join(" ")
    }
}

#[derive(Debug, Args)]
pub(crate) struct Stats {
    #[command(flatten)]
    pub(super) input: Input,
    /// Bits of 64 in which difference hashes of pictures that look alike may differ
    #[arg(long, value_name = "BITS", default_value_t = stats::DISTANCE, value_parser = clap::value_parser!(u32).range(0..=16))]
    pub(super) distance: u32,
    /// Write a page with histograms, some samples and the duplicates to this file
    #[arg(long, value_name = "FILE")]
    pub(super) html: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Verify {
    #[command(flatten)]
    pub(super) input: Input,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Show {
    #[command(flatten)]
    pub(super) input: Input,
    /// File to write: a picture (.png, .jpg) or a page (.html)
    #[arg(long, short, value_name = "FILE")]
    pub(super) output: PathBuf,
    /// Samples to show
    #[arg(long, short = 'n', value_name = "N", default_value_t = 60)]
    pub(super) samples: u64,
    /// Chooses the samples
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) seed: u64,
    /// The first samples rather than chosen ones
    #[arg(long, conflicts_with = "seed")]
    pub(super) first: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// The format that an image has; shrunk ones become JPEGs
    Keep,
    /// JPEG
    Jpeg,
    /// WebP without loss
    Webp,
    /// PNG
    Png,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Duplicates {
    /// Images of the same bytes
    Exact,
}

#[derive(Debug, Args)]
pub(crate) struct Write {
    #[command(flatten)]
    pub(super) input: Input,
    /// Folder to write to: a path, or a URL of a store
    #[arg(long, short, value_name = "FOLDER")]
    pub(super) output: String,
    /// Samples of a shard at most
    #[arg(long, value_name = "N", default_value_t = write::SAMPLES_PER_SHARD)]
    pub(super) samples_per_shard: u64,
    /// Bytes of a shard at most; a shard is made in memory [default: 512MiB]
    #[arg(long, value_name = "BYTES", value_parser = values::bytes)]
    pub(super) shard_bytes: Option<u64>,
    /// Shrink images whose longer side has more pixels than this
    #[arg(long, value_name = "PIXELS")]
    pub(super) max_side: Option<u32>,
    /// Format of the images
    #[arg(long, value_enum, default_value_t = Format::Keep)]
    pub(super) format: Format,
    /// Quality of JPEGs, 1 to 100
    #[arg(long, value_name = "Q", default_value_t = 95)]
    pub(super) quality: u8,
    /// Put the samples in an order that depends on this number only; each is then read by a request of its own
    #[arg(long, value_name = "SEED")]
    pub(super) shuffle: Option<u64>,
    /// Leave out samples whose image an earlier one has
    #[arg(long, value_enum, value_name = "WHICH")]
    pub(super) drop_duplicates: Option<Duplicates>,
    /// Leave out samples that cannot be used, instead of ending at the first
    #[arg(long)]
    pub(super) skip_corrupt: bool,
    /// Replace the shards that an earlier `write` left in the folder
    #[arg(long)]
    pub(super) overwrite: bool,
    /// Print JSON
    #[arg(long)]
    pub(super) json: bool,
}
