//! `bench data`: how fast shards become batches, beside a plain loop over bytes in memory and beside no data at all.
//!
//! `shards` makes the shards, `loader` and `plain` measure pictures per second, `epochs` what memory does, `step` what
//! a training step takes while readers work, on shards or on `synthetic:`, `store` what a store far away costs.

mod store;

use std::fs::{self, File};
use std::io::Write as _;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, bail};
use libjpeg_turbo_rs::{PixelFormat, Subsampling, compress};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use ringmaster_data::{Dataset, Loader, LoaderOptions, corrupt::Ledger, order::Windows};
use ringmaster_inputs::image::{Augment, Preprocess, RgbImage, Scratch, decode};
use ringmaster_inputs::rng::{Site, Stream};
use ringmaster_inputs::text::Tokenizer;
use ringmaster_manifest::spec::{Precision, TrainJob};
use ringmaster_manifest::{ModelCatalogue, parse};
use ringmaster_worker::model::{Clip, LogitInit, Mode};
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};
use tokio_util::sync::CancellationToken;

use crate::{median, memory};

/// Samples of a shard that is made.
const SHARD: usize = 256;
/// Ids of a caption.
const CONTEXT: usize = 77;

/// The command line of `bench data`.
#[derive(Debug, Clone, clap::Args)]
pub struct DataArgs {
    /// What to measure.
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Part {
    /// Makes shards of JPEGs as large as photographs on the web, with captions.
    Shards {
        /// Where; what is there already stays.
        folder: PathBuf,
        /// Samples.
        #[arg(long, default_value_t = 4096)]
        samples: usize,
    },
    /// Pictures per second of the loader.
    Loader(Reading),
    /// Pictures per second of decoding and transforming bytes in memory, one after the other.
    Plain(Reading),
    /// Resident memory after each of some epochs.
    Epochs {
        #[command(flatten)]
        reading: Reading,
        /// Epochs.
        #[arg(long, default_value_t = 10)]
        epochs: u64,
    },
    /// Seconds of a training step, the rank on the first core and its readers on the others.
    Step {
        #[command(flatten)]
        reading: Reading,
        /// Steps; the result is their median.
        #[arg(long, default_value_t = 15)]
        steps: u64,
    },
    /// Seconds to the first batch, and bytes per second of counting, of ten thousand shards in a store that waits 30 ms
    /// before each answer.
    Store(store::Options),
}

#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Reading {
    /// Shards, as `data.train` names them.
    pub(crate) shards: String,
    /// Side of the input, in pixels.
    #[arg(long, default_value_t = 224)]
    pub(crate) size: u32,
    /// Pictures that are measured, after a batch that is not.
    #[arg(long, default_value_t = 2048)]
    pub(crate) pictures: u64,
    /// Rows of a batch.
    #[arg(long, default_value_t = 128)]
    pub(crate) batch: u64,
    /// Threads that decode.
    #[arg(long, default_value_t = 1)]
    pub(crate) readers: usize,
}

/// Measures a part of the data supply and prints one line of JSON.
///
/// # Errors
/// Shards that cannot be read.
pub fn run(args: &DataArgs) -> anyhow::Result<()> {
    let line = match &args.part {
        Part::Shards { folder, samples } => shards(folder, *samples)?,
        Part::Loader(reading) => loader(reading)?,
        Part::Plain(reading) => plain(reading)?,
        Part::Epochs { reading, epochs } => over_epochs(reading, *epochs)?,
        Part::Step { reading, steps } => step(reading, *steps)?,
        Part::Store(options) => store::measure(options)?,
    };
    // A reader that has gone needs no more.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
    Ok(())
}

// ---- Shards ----

/// Makes tars of pictures of random sizes around 500 x 375.
fn shards(folder: &Path, samples: usize) -> anyhow::Result<Value> {
    fs::create_dir_all(folder)?;
    let (mut bytes, count) = (0, samples.div_ceil(SHARD));
    for shard in 0..count {
        let path = folder.join(format!("{shard:05}.tar"));
        if !path.exists() {
            write_shard(&path, shard, SHARD.min(samples - shard * SHARD))?;
        }
        bytes += fs::metadata(&path)?.len();
    }
    let names = format!("{}/{{00000..{:05}}}.tar", folder.display(), count - 1);
    Ok(json!({"bench": "data shards", "shards": names, "samples": samples, "bytes": bytes}))
}

fn write_shard(path: &Path, shard: usize, samples: usize) -> anyhow::Result<()> {
    let partial = path.with_extension("part");
    let mut tar = tar::Builder::new(File::create(&partial)?);
    for sample in 0..samples {
        let key = format!("{shard:05}{sample:04}");
        let words = [shard as u64, sample as u64];
        let mut append = |extension: &str, bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            header.set_cksum();
            tar.append_data(&mut header, format!("{key}.{extension}"), bytes)
        };
        let mut stream = Stream::new(0, Site::Augment, &words);
        let size = (400 + stream.below(200) as u32, 300 + stream.below(150) as u32);
        append("jpg", &picture(&mut stream, size, 90)?)?;
        append("txt", format!("a made-up picture, number {sample} of shard {shard}").as_bytes())?;
    }
    tar.finish()?;
    Ok(fs::rename(&partial, path)?)
}

/// Draws a smooth picture with some grain, and encodes it as a JPEG of this quality.
pub(crate) fn picture(
    stream: &mut Stream,
    (width, height): (u32, u32),
    quality: u8,
) -> anyhow::Result<Vec<u8>> {
    let waves = [0.2, 0.5, 0.8].map(|shift| (shift, 20.0 + 40.0 * stream.unit()));
    let grain: Vec<f64> = (0..4096).map(|_| 3.0 * stream.normal()).collect();
    let image = RgbImage::from_fn(width, height, |x, y| {
        waves.map(|(shift, length)| {
            let along = f64::from(x) * shift + f64::from(y) * (1.0 - shift);
            let noise = grain[(x * 31 + y * 1999) as usize % grain.len()];
            (128.0 + 80.0 * (along / length).sin() + noise).clamp(0.0, 255.0) as u8
        })
    });
    let (width, height) = (width as usize, height as usize);
    Ok(compress(image.as_raw(), width, height, PixelFormat::Rgb, quality, Subsampling::S420)?)
}

// ---- The supply ----

/// A job over these shards; augmentation and order are the defaults.
pub(crate) fn job(reading: &Reading) -> anyhow::Result<TrainJob> {
    let Reading { shards, batch, .. } = reading;
    let yaml = format!(
        "apiVersion: ringmaster/v1\nkind: TrainJob\nmetadata: {{name: bench}}\nspec:\n  resources: {{ranks: 1, \
         accelerator: cpu}}\n  model: {{name: ViT-B-32}}\n  data: {{train: {shards:?}}}\n  loss: {{kind: siglip}}\n  \
         optimizer: {{lr: 1e-3}}\n  schedule: {{steps: 1000000}}\n  batch: {{global: {batch}}}\n  checkpoint: {{uri: \
         /tmp/unused}}\n"
    );
    Ok(parse(&yaml, "bench", &std::env::current_dir()?, &ModelCatalogue::builtin())?)
}

fn start(job: &TrainJob, reading: &Reading) -> anyhow::Result<(Arc<Dataset>, Loader)> {
    start_rows(job, reading, 0..reading.batch, 4 << 30)
}

/// Opens the shards, and starts a loader of some rows of every batch that keeps at most so many bytes of them.
pub(crate) fn start_rows(
    job: &TrainJob,
    reading: &Reading,
    rows: Range<u64>,
    memory: u64,
) -> anyhow::Result<(Arc<Dataset>, Loader)> {
    let dataset = Arc::new(Dataset::open(&job.data, reading.batch)?);
    let loader = Loader::start(LoaderOptions {
        dataset: Arc::clone(&dataset),
        global_batch: reading.batch,
        rows,
        first_step: 0,
        first_sample: 0,
        last_step: u64::MAX / reading.batch.max(1),
        preprocess: Preprocess {
            image_size: reading.size,
            ..Preprocess::new(&job.model.preprocess)
        },
        tokenizer: Arc::new(Tokenizer::clip(CONTEXT)),
        aug: job.data.aug_cfg.clone(),
        jpeg_scaled_decode: false,
        seed: 0,
        readers: reading.readers,
        prefetch: 3,
        left_out: Windows::default(),
        ledger: Ledger::default(),
        memory,
        max_corrupt: 0.0,
    })?;
    Ok((dataset, loader))
}

fn loader(reading: &Reading) -> anyhow::Result<Value> {
    let (_, mut loader) = start(&job(reading)?, reading)?;
    // What was read ahead of the first batches was not in the time, and what is at the end will not be either.
    for _ in 0..4 {
        loader.next()?;
    }
    let began = Instant::now();
    let batches = reading.pictures.div_ceil(reading.batch);
    for _ in 0..batches {
        loader.next()?;
    }
    let seconds = began.elapsed().as_secs_f64();
    let spent = loader.take_spent();
    let fetched = loader.fetched().unwrap_or_default();
    Ok(json!({
        "bench": "data loader",
        "pictures_per_second": (batches * reading.batch) as f64 / seconds,
        "store_seconds": spent.store,
        "decode_seconds": spent.decode,
        "blocks": fetched.blocks,
        "bytes": fetched.bytes,
    }))
}

fn plain(reading: &Reading) -> anyhow::Result<Value> {
    let job = job(reading)?;
    let dataset = Dataset::open(&job.data, reading.batch)?;
    let count = reading.pictures.min(dataset.len());
    let samples = (0..count).map(|index| dataset.read(0, index, &CancellationToken::new()));
    let samples = samples.collect::<Result<Vec<_>, _>>()?;
    let preprocess =
        Preprocess { image_size: reading.size, ..Preprocess::new(&job.model.preprocess) };
    let augment = Augment::new(job.data.aug_cfg.clone(), preprocess);
    let tokenizer = Tokenizer::clip(CONTEXT);
    let (mut scratch, mut output) = (Scratch::default(), vec![0; preprocess.values()]);
    let mut ids = 0;
    let began = Instant::now();
    for (number, sample) in samples.iter().enumerate() {
        let mut stream = Stream::new(0, Site::Augment, &[0, number as u64]);
        augment.apply(&decode(&sample.image)?, &mut stream, &mut scratch, &mut output)?;
        ids += tokenizer.encode(&sample.captions[0]).len();
    }
    let seconds = began.elapsed().as_secs_f64();
    Ok(json!({"bench": "data plain", "pictures_per_second": count as f64 / seconds, "ids": ids}))
}

/// Reads whole epochs and looks at the memory after each.
fn over_epochs(reading: &Reading, epochs: u64) -> anyhow::Result<Value> {
    let (dataset, mut loader) = start(&job(reading)?, reading)?;
    let batches = dataset.order().epoch_len(0).div_ceil(reading.batch);
    let mut resident = Vec::new();
    for _ in 0..epochs {
        for _ in 0..batches {
            loader.next()?;
        }
        resident.push(memory::resident()?);
    }
    Ok(json!({"bench": "data epochs", "samples": dataset.len(), "resident_bytes": resident}))
}

// ---- A training step beside readers ----

/// Forward and backward of a small image tower on every batch; this thread on the first core, readers on the others.
fn step(reading: &Reading, steps: u64) -> anyhow::Result<Value> {
    let cores = std::thread::available_parallelism()?.get();
    if cores < 2 {
        bail!("a rank and its readers need two cores, and there is one");
    }
    let job = job(reading)?;
    let (first, others) = (0..1, 1..cores);
    // Threads inherit where their maker may run.
    run_on(others)?;
    let (_, mut loader) = start(&job, reading)?;
    run_on(first)?;
    tch::set_num_threads(1);
    let mut config = job.model.config.clone();
    config.vision_cfg.image_size = reading.size.into();
    let clip =
        Clip::new(&config, Precision::Fp32, Device::Cpu, 0, LogitInit { scale: 2.0, bias: None })?;
    let mut seconds = Vec::new();
    for number in 0..=steps {
        let began = Instant::now();
        let batch = loader.next()?;
        let side = i64::from(reading.size);
        let images = Tensor::from_slice(&batch.images).view([-1, 3, side, side]);
        let images = (images.to_kind(Kind::Float) / 127.5) - 1.0;
        clip.encode_image(&images, &Mode::Eval)?.sum(Kind::Float).backward();
        if number > 0 {
            seconds.push(began.elapsed().as_secs_f64());
        }
    }
    let spent = loader.take_spent();
    Ok(json!({
        "bench": "data step",
        "seconds": median(seconds),
        "decode_seconds": spent.decode,
        "pictures": (steps + 1) * reading.batch,
    }))
}

/// Keeps this thread, and those it starts, on some cores.
fn run_on(cores: Range<usize>) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    for core in cores {
        set.set(core)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).context("cannot choose the cores to run on")
}
