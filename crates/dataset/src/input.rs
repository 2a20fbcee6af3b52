//! From words of a command line to an opened source.

use std::path::Path;

use ringmaster_data::{Damaged, Flaw, Source};
use ringmaster_manifest::{DataWords, spec};

use crate::{Error, Meter};

/// Samples that are read and worked on together: little enough that many such blocks fit memory.
const BLOCK_SAMPLES: u32 = 32;

/// Which samples a command is about, as a person says it. What is none has a manifest's default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Words {
    /// Paths and URLs of shards, with braces.
    pub shards: Vec<String>,
    /// Extensions tried for the image, joined by `;`.
    pub image_key: Option<String>,
    /// Extension of the caption.
    pub text_key: Option<String>,
    /// Field of the `.json` member that holds the captions instead.
    pub json_text_key: Option<String>,
    /// Form of the data.
    pub dataset_type: Option<String>,
    /// Between the columns of a CSV file.
    pub csv_separator: Option<String>,
    /// Column of the image in CSV and Parquet files.
    pub img_key: Option<String>,
    /// Column of the caption in CSV and Parquet files.
    pub caption_key: Option<String>,
}

/// An opened source and where it lies.
#[derive(Debug)]
pub struct Input {
    pub(crate) source: Source,
    /// Paths and URLs of its shards.
    pub(crate) urls: Vec<String>,
}

impl Words {
    /// Returns what a manifest with these words would have as `data`; relative paths start at `base_dir`.
    ///
    /// # Errors
    /// [`Error::Asked`] with every mistake.
    pub fn data(&self, base_dir: &Path) -> Result<spec::Data, Error> {
        let words = DataWords {
            train: &self.shards,
            image_key: self.image_key.as_deref(),
            text_key: self.text_key.as_deref(),
            json_text_key: self.json_text_key.as_deref(),
            dataset_type: self.dataset_type.as_deref(),
            csv_separator: self.csv_separator.as_deref(),
            img_key: self.img_key.as_deref(),
            caption_key: self.caption_key.as_deref(),
        };
        let mut data = ringmaster_manifest::data(words, base_dir).map_err(|errors| {
            let problems = errors.iter().map(|error| said(&error.problem.to_string()));
            let what = problems.collect::<Vec<_>>().join("; ");
            Error::Asked { what, remedy: "nothing was read".to_owned() }
        })?;
        data.block_samples = BLOCK_SAMPLES;
        Ok(data)
    }
}

/// Returns a mistake of a manifest in the words of a command line.
fn said(problem: &str) -> String {
    let words = [
        ("spec.data.train", "shards"),
        ("spec.data.image_key", "--image-key"),
        ("spec.data.text_key", "--text-key"),
        ("spec.data.json_text_key", "--json-text-key"),
        ("spec.data.dataset_type", "--dataset-type"),
        ("data.dataset_type", "--dataset-type"),
        ("spec.data.csv_separator", "--csv-separator"),
        ("spec.data.csv_img_key", "--img-key"),
        ("spec.data.parquet_img_key", "--img-key"),
        ("spec.data.csv_caption_key", "--caption-key"),
        ("spec.data.parquet_caption_key", "--caption-key"),
    ];
    words.iter().fold(problem.to_owned(), |text, (field, word)| text.replace(field, word))
}

impl Input {
    /// Opens what `words` name: finds the shards and how many samples each holds, which takes a look at all
    /// headers where nobody has counted before.
    ///
    /// # Errors
    /// Words that are wrong; a shard that is missing or holds no sample, named; a store that fails.
    pub fn open(words: &Words, base_dir: &Path, meter: &Meter) -> Result<Self, Error> {
        let data = words.data(base_dir)?;
        let urls = data.sources[0].data.clone();
        let shards =
            if urls.len() == 1 { "1 shard".to_owned() } else { format!("{} shards", urls.len()) };
        meter.begin(format!("opening {shards}"), 0);
        let source = Source::open(&data, &data.sources[0])?;
        meter.check()?;
        Ok(Self { source, urls })
    }

    /// Returns the number of samples.
    pub fn samples(&self) -> u64 {
        self.source.len()
    }

    /// Returns the shards that break off.
    pub fn damaged(&self) -> &[Damaged] {
        self.source.damaged()
    }

    /// Returns what is wrong with a sample whose bytes came, with the key that the source gave it.
    pub(crate) fn flaw(&self, index: u64, key: &str, reason: String) -> Flaw {
        let (name, own_key) = key.split_once('/').unwrap_or(("", key));
        let shard = self.urls.get(self.source.shard_of(index));
        // A form may cut its files into shards of its own.
        let shard = shard.filter(|_| self.urls.len() == self.source.shard_sizes().len());
        let shard = shard.map_or(name, String::as_str).to_owned();
        Flaw { shard, key: own_key.to_owned(), reason }
    }
}
