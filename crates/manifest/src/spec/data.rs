//! `spec.data`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::limits::{MAX_ERASED, MAX_LANES};
use crate::number::ByteSize;
use crate::spec::written::{DataKeys, JitterStrengths, OneOrMany, PoolKeys, Readers};

/// Name of the source that `data.train` stands for.
const TRAIN: &str = "train";

/// Training data and how it is read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Data {
    /// What is read, at least one.
    // In a manifest: one as `train`, or several as `sources`.
    #[schemars(flatten, with = "DataKeys")]
    pub sources: Vec<Source>,
    /// Seed of the initial weights, the order and the augmentation. Default 0.
    #[schemars(extend("default" = 0))]
    pub seed: u64,
    /// Member extensions tried for the image, as `--image-key`: a list or text joined by `;`.
    /// Default png;jpg;jpeg;webp.
    // In a job: one by one, without dots.
    #[schemars(with = "Option<OneOrMany>", extend("default" = "png;jpg;jpeg;webp"))]
    pub image_key: Vec<String>,
    /// Member extension of the caption, as `--text-key`. Default txt.
    #[schemars(length(min = 1), extend("default" = "txt"))]
    pub text_key: String,
    /// Field of the `.json` member to take captions from instead of `text_key`; of a list one
    /// entry is drawn per sample.
    #[schemars(length(min = 1))]
    pub json_text_key: Option<String>,
    /// Form of every source, as `--dataset-type`. Default auto.
    #[schemars(extend("default" = "auto"))]
    pub dataset_type: DatasetType,
    /// What stands between the columns of a CSV file, as `--csv-separator`. Default a tab.
    #[schemars(extend("minLength" = 1, "maxLength" = 1, "default" = "\t"))]
    pub csv_separator: char,
    /// Column of a CSV file that names the image, by path or URL, as `--csv-img-key`. Relative paths start at the
    /// file's folder. Default filepath.
    #[schemars(length(min = 1), extend("default" = "filepath"))]
    pub csv_img_key: String,
    /// Column of a CSV file that holds the caption, as `--csv-caption-key`. Default title.
    #[schemars(length(min = 1), extend("default" = "title"))]
    pub csv_caption_key: String,
    /// Columns of a Parquet file tried for the image, its bytes or its URL: a list or text joined by `;`.
    /// Default image;jpg;jpeg;png;webp;url.
    // In a job: one by one.
    #[schemars(with = "Option<OneOrMany>", extend("default" = "image;jpg;jpeg;png;webp;url"))]
    pub parquet_img_key: Vec<String>,
    /// Columns of a Parquet file tried for the caption, a string or a list of strings.
    /// Default caption;text;title;txt.
    // In a job: one by one.
    #[schemars(with = "Option<OneOrMany>", extend("default" = "caption;text;title;txt"))]
    pub parquet_caption_key: Vec<String>,
    /// Parallel lanes of the data order, for locality of reading: a rank reads a contiguous run of
    /// them. Default 256.
    #[schemars(range(min = 1, max = MAX_LANES), extend("default" = 256))]
    pub lanes: u32,
    /// Longest run of samples of a shard that moves as one in the permutation, and is read at once.
    /// Default 128.
    #[schemars(range(min = 1), extend("default" = 128))]
    pub block_samples: u32,
    /// Samples out of which a batch is drawn.
    #[schemars(flatten, with = "PoolKeys")]
    pub pool_samples: u64,
    /// Decoding threads per rank, or `auto`: the cores of its slot that computing leaves idle, one at least.
    /// Default auto.
    // In a job: none for auto, as ranks choose where they run.
    #[schemars(with = "Readers", extend("default" = "auto"))]
    pub readers: Option<u32>,
    /// Bytes of shards that a rank keeps in memory at most: it never changes what is read. Default: half of what its
    /// node has free when it starts, divided among its ranks there.
    #[schemars(with = "Option<ByteSize>")]
    pub memory: Option<u64>,
    /// Decodes large JPEGs at a half, a quarter or an eighth of their size, where the short side is still at
    /// least twice the model's input: faster, and pixels differ slightly from those of `OpenCLIP`. For training
    /// alone. A crop of a small part of a picture gets fewer pixels than the whole has. Default false.
    #[schemars(extend("default" = false))]
    pub jpeg_scaled_decode: bool,
    /// Largest share of corrupt samples before the job fails. Default 0.01.
    #[schemars(range(min = 0.0, max = 1.0), extend("default" = 0.01))]
    pub max_corrupt: f64,
    /// Lets a run that resumes from another one's checkpoint go on with other data, or the same data in
    /// another order, after as many samples; `--accept-new-data` sets it. Default false.
    #[schemars(extend("default" = false))]
    pub accept_new_data: bool,
    /// Random augmentation, in `OpenCLIP`'s `--aug-cfg` words where it has them.
    #[schemars(extend("default" = {}))]
    pub aug_cfg: AugCfg,
}

/// Form of a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum DatasetType {
    /// By the end of its names: `.csv` and `.tsv` are csv, `.parquet` is parquet, `/` is a folder; all else is
    /// webdataset.
    Auto,
    /// Tars whose samples are consecutive members of one name.
    Webdataset,
    /// Files of rows that name an image and hold its caption.
    Csv,
    /// Parquet files, with the images or their URLs in a column.
    Parquet,
    /// Folders of images with their captions beside them.
    Folder,
    /// No data at all, to measure everything else: a source is named `synthetic:`, with its number of samples behind.
    Synthetic,
}

/// What the name of a source of no data begins with.
pub const SYNTHETIC: &str = "synthetic:";

/// A part of the training data with a name of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Source {
    /// Name in messages and metrics.
    #[schemars(length(min = 1), extend("format" = "set-name", "pattern" = "^[A-Za-z0-9][A-Za-z0-9._-]*$"))]
    pub name: String,
    /// Shards, as `data.train`.
    // In a job: absolute paths and URLs, expanded and split, in order.
    #[schemars(with = "OneOrMany")]
    pub data: Vec<String>,
    /// Share of the rows of a batch, relative to the other sources' weights. Default: as many as
    /// `upsample` gives.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub weight: Option<f64>,
    /// How often its samples are seen while those of a source of 1 are seen once, as
    /// `--train-data-upsampling-factors`. Default 1, without a weight.
    #[schemars(extend("exclusiveMinimum" = 0))]
    pub upsample: Option<f64>,
}

impl Source {
    /// Returns the source that `data.train` stands for.
    pub fn train(data: Vec<String>) -> Self {
        Self { name: TRAIN.to_owned(), data, weight: None, upsample: None }
    }

    /// Returns its form, which is not auto, when the manifest states this one.
    pub fn form(&self, stated: DatasetType) -> DatasetType {
        match stated {
            DatasetType::Auto => {
                self.data.first().map_or(DatasetType::Webdataset, |name| form(name))
            }
            stated => stated,
        }
    }

    /// Returns how much it weighs against the others, when it has these many samples.
    pub fn weighs(&self, samples: u64) -> f64 {
        self.weight.unwrap_or_else(|| self.upsample.unwrap_or(1.0) * samples as f64)
    }
}

/// Returns the form that a name says.
pub(crate) fn form(name: &str) -> DatasetType {
    let lower = name.to_ascii_lowercase();
    let plain = lower.strip_suffix(".gz").unwrap_or(&lower);
    if lower.starts_with(SYNTHETIC) {
        DatasetType::Synthetic
    } else if plain.ends_with(".csv") || plain.ends_with(".tsv") {
        DatasetType::Csv
    } else if lower.ends_with(".parquet") {
        DatasetType::Parquet
    } else if lower.ends_with('/') {
        DatasetType::Folder
    } else {
        DatasetType::Webdataset
    }
}

impl Data {
    /// Returns the field of a manifest that lists the shards of a source.
    pub fn field(&self, source: usize) -> String {
        match &self.sources[..] {
            [only] if only.name == TRAIN => "spec.data.train".to_owned(),
            _ => format!("spec.data.sources[{source}].data"),
        }
    }

    /// Returns every shard, with the field that lists it.
    pub fn shards(&self) -> impl Iterator<Item = (String, &String)> {
        self.sources.iter().enumerate().flat_map(|(number, source)| {
            let field = self.field(number);
            source.data.iter().map(move |url| (field.clone(), url))
        })
    }
}

/// Random augmentation. `OpenCLIP` heeds `ratio`, `re_prob` and `re_count` only with `use_timm`, and
/// `color_jitter_prob` and `gray_scale_prob` only without; here every key counts whenever it is given.
// The defaults are OpenCLIP's: a random resized crop of scale 0.9 to 1 and nothing else.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AugCfg {
    /// Area of the crop, as a share of the image. Default [0.9, 1.0].
    #[schemars(extend(
        "items" = {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
        "default" = [0.9, 1.0]
    ))]
    pub scale: [f64; 2],
    /// Aspect ratio of the crop. Default [0.75, 1.3333333333333333].
    #[schemars(extend(
        "items" = {"type": "number", "exclusiveMinimum": 0},
        "default" = [3.0 / 4.0, 4.0 / 3.0]
    ))]
    pub ratio: [f64; 2],
    /// Strengths of brightness, contrast, saturation and hue jitter: a list, without the hue if it has three
    /// numbers, or one number for the first three. Default all zero.
    // In a job: all four.
    #[schemars(with = "Option<JitterStrengths>", extend("default" = [0, 0, 0, 0]))]
    pub color_jitter: [f64; 4],
    /// Probability of the jitter. Default 0, or 1 with `use_timm`.
    #[schemars(with = "Option<f64>", range(min = 0.0, max = 1.0))]
    pub color_jitter_prob: f64,
    /// Probability of turning grey. Default 0.
    #[schemars(range(min = 0.0, max = 1.0), extend("default" = 0))]
    pub gray_scale_prob: f64,
    /// Probability of a horizontal flip. Default 0.
    #[schemars(range(min = 0.0, max = 1.0), extend("default" = 0))]
    pub hflip_prob: f64,
    /// Random affine map applied instead of the crop. Default none.
    pub affine: Option<Affine>,
    /// Probability of erasing random rectangles: they become noise. Default 0.
    #[schemars(range(min = 0.0, max = 1.0), extend("default" = 0))]
    pub re_prob: f64,
    /// Most rectangles that are erased of an image; their number is drawn, and they share the area. Default 1.
    #[schemars(range(min = 1, max = MAX_ERASED), extend("default" = 1))]
    pub re_count: u32,
    /// What `OpenCLIP` leaves to timm: the crop is resized with the filter `model.image_interpolation` (bicubic
    /// without this key, unless that is `random`), and a jitter without a probability is certain. Default false.
    #[schemars(extend("default" = false))]
    pub use_timm: bool,
}

/// A random rotation, zoom and shift, with white fill.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Affine {
    /// Largest rotation either way, in degrees. Default 0.
    #[schemars(range(min = 0.0, max = 180.0), extend("default" = 0))]
    pub degrees: f64,
    /// Range of the zoom factor; below 1 shrinks the image. Default [1, 1].
    #[schemars(extend("items" = {"type": "number", "exclusiveMinimum": 0}, "default" = [1, 1]))]
    pub zoom: [f64; 2],
    /// Largest shift either way, as a share of the side. Default 0.
    #[schemars(range(min = 0.0, max = 1.0), extend("default" = 0))]
    pub translate: f64,
}
