//! `bench tokenizer` and `bench preprocess`: how fast captions and pictures become a model's inputs,
//! on one core.

use std::io::{BufRead as _, Write as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use libjpeg_turbo_rs::{PixelFormat, Subsampling, compress};
use serde_json::{Value, json};

use crate::median;
use ringmaster_inputs::image::{Preprocess, RgbImage, Scratch, decode, jpeg};
use ringmaster_inputs::rng::{Site, Stream};
use ringmaster_inputs::text::Tokenizer;

/// The command line of `bench tokenizer`.
#[derive(Debug, Clone, clap::Args)]
pub struct TokenizerArgs {
    /// Captions, one JSON string a line; default: made up.
    #[arg(long, value_name = "FILE")]
    captions: Option<PathBuf>,
    /// `clip`, a tokenizer.json, a SentencePiece model, or a folder with either.
    #[arg(long, default_value = "clip")]
    tokenizer: String,
    /// Ids of a caption.
    #[arg(long, default_value_t = 77, value_parser = clap::value_parser!(u16).range(1..))]
    context_length: u16,
    /// Rounds over all captions; the result is their median.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repeats: u32,
}

/// The command line of `bench preprocess`.
#[derive(Debug, Clone, clap::Args)]
pub struct PreprocessArgs {
    /// A picture; default: a JPEG of 500 × 375 pixels, made up.
    #[arg(long, value_name = "FILE")]
    picture: Option<PathBuf>,
    /// Side of the input, in pixels.
    #[arg(long, default_value_t = 224, value_parser = clap::value_parser!(u32).range(1..=4096))]
    size: u32,
    /// Pictures of a round.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pictures: u32,
    /// Rounds; the result is their median.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    repeats: u32,
}

/// Measures a tokenizer and prints one line of JSON.
///
/// # Errors
/// Files that cannot be read.
pub fn tokenizer(args: &TokenizerArgs) -> anyhow::Result<()> {
    let length = usize::from(args.context_length);
    let tokenizer = match args.tokenizer.as_str() {
        "clip" => Tokenizer::clip(length),
        path => Tokenizer::open(path.as_ref(), length, false)?,
    };
    let captions = match &args.captions {
        Some(path) => read(path)?,
        None => made_up_captions(),
    };
    if captions.is_empty() {
        bail!("there are no captions to measure with");
    }
    let mut ids = 0;
    let seconds = rounds(args.repeats, || {
        for caption in &captions {
            ids += tokenizer.encode(caption).len();
        }
        Ok(())
    })?;
    let characters: usize = captions.iter().map(|caption| caption.chars().count()).sum();
    print(&json!({
        "bench": "tokenizer",
        "tokenizer": args.tokenizer,
        "captions": captions.len(),
        "characters_per_caption": characters as f64 / captions.len() as f64,
        "ids": ids / args.repeats.max(1) as usize,
        "captions_per_second": captions.len() as f64 / seconds,
    }))
}

/// Measures evaluation's transform and prints one line of JSON.
///
/// # Errors
/// A picture that cannot be read or decoded.
pub fn preprocess(args: &PreprocessArgs) -> anyhow::Result<()> {
    let bytes = match &args.picture {
        Some(path) => std::fs::read(path).with_context(|| path.display().to_string())?,
        None => made_up_picture()?,
    };
    let preprocess = Preprocess::clip(args.size);
    let (mut scratch, mut output) = (Scratch::default(), vec![0.0; preprocess.values()]);
    let image = decode(&bytes)?;
    let mut decoding = Duration::ZERO;
    let seconds = rounds(args.repeats, || {
        for _ in 0..args.pictures {
            let began = Instant::now();
            let image = decode(&bytes)?;
            decoding += began.elapsed();
            preprocess.eval_into(&image, &mut scratch, &mut output)?;
        }
        Ok(())
    })?;
    let pictures = f64::from(args.pictures);
    let rounds = f64::from(args.repeats) * pictures;
    print(&json!({
        "bench": "preprocess",
        "width": image.width(),
        "height": image.height(),
        "bytes": bytes.len(),
        "size": args.size,
        "decoder": jpeg::DECODER,
        "pictures_per_second": pictures / seconds,
        "decode_milliseconds": decoding.as_secs_f64() / rounds * 1e3,
        "milliseconds": seconds / pictures * 1e3,
    }))
}

/// Returns the median seconds of `repeats` rounds; the first fills caches.
fn rounds(repeats: u32, mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let mut seconds = Vec::new();
    for _ in 0..repeats {
        let began = Instant::now();
        work()?;
        seconds.push(began.elapsed().as_secs_f64());
    }
    Ok(median(seconds))
}

fn read(path: &PathBuf) -> anyhow::Result<Vec<String>> {
    let place = || path.display().to_string();
    let file = std::fs::File::open(path).with_context(place)?;
    let lines = std::io::BufReader::new(file).lines();
    let parse = |(number, line): (usize, std::io::Result<String>)| {
        let line = line.with_context(place)?;
        serde_json::from_str(&line)
            .with_context(|| format!("{}: line {} is no JSON string", path.display(), number + 1))
    };
    lines.enumerate().map(parse).collect()
}

fn made_up_captions() -> Vec<String> {
    const WORDS: [&str; 24] = [
        "a",
        "photo",
        "of",
        "the",
        "red",
        "small",
        "dog",
        "castle",
        "mountain",
        "in",
        "front",
        "two",
        "people",
        "walking",
        "beside",
        "river",
        "at",
        "sunset",
        "with",
        "colourful",
        "umbrellas",
        "vintage",
        "poster",
        "2019",
    ];
    let mut stream = Stream::new(0, Site::Caption, &[0]);
    let mut caption = || {
        let words = (0..6 + stream.below(12)).map(|_| WORDS[stream.below(24) as usize]);
        words.collect::<Vec<_>>().join(" ")
    };
    (0..10_000).map(|_| caption()).collect()
}

/// A smooth picture with some grain, as large as a photograph on the web.
fn made_up_picture() -> anyhow::Result<Vec<u8>> {
    let mut stream = Stream::new(0, Site::Augment, &[0]);
    let picture = RgbImage::from_fn(500, 375, |x, y| {
        let wave = |length: f64, shift: f64| {
            let along = f64::from(x) * shift + f64::from(y) * (1.0 - shift);
            60.0 * (along / length).sin()
        };
        [0.2, 0.5, 0.8].map(|shift| {
            let value = 128.0 + wave(40.0, shift) + wave(9.0, 1.0 - shift) / 3.0;
            (value + 3.0 * stream.normal()).clamp(0.0, 255.0) as u8
        })
    });
    Ok(compress(picture.as_raw(), 500, 375, PixelFormat::Rgb, 90, Subsampling::S420)?)
}

fn print(line: &Value) -> anyhow::Result<()> {
    // A reader that has gone needs no more.
    match writeln!(std::io::stdout().lock(), "{line}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
