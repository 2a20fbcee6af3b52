//! Shards, loader and order together, on tars built on the fly.
#![allow(clippy::unwrap_used)]

pub(crate) mod answers;
mod at_once;
mod folders;
mod loader;
mod mixture_run;
mod odd_tars;
mod parquet;
mod rows;
mod shards;
mod spent;
mod told;

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use ::image::{ImageFormat, Rgb, RgbImage};
use ringmaster_inputs::image::Preprocess;
use ringmaster_inputs::text::Tokenizer;
use ringmaster_manifest::spec::{self, AugCfg, DatasetType};
use tokio_util::sync::CancellationToken;

use crate::corrupt::Ledger;
use crate::order::Windows;
use crate::*;

const SIDE: u32 = 8;

fn png(value: u8) -> Vec<u8> {
    let image = RgbImage::from_fn(SIDE, SIDE, |x, y| Rgb([value, x as u8 * 9, y as u8 * 9]));
    let mut bytes = std::io::Cursor::new(Vec::new());
    image.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

/// Writes shards of `per_shard` samples; `damage` may change a member's bytes or drop it.
fn write_shards(
    folder: &Path,
    shards: usize,
    per_shard: usize,
    damage: impl Fn(usize, usize, &str, Vec<u8>) -> Option<Vec<u8>>,
) -> Vec<String> {
    (0..shards)
        .map(|shard| {
            let path = folder.join(format!("{shard:02}.tar"));
            let mut tar = tar::Builder::new(std::fs::File::create(&path).unwrap());
            for sample in 0..per_shard {
                let caption = format!("caption {shard} {sample}");
                let members = [("png", png((shard * 7 + sample) as u8)), ("txt", caption.into())];
                for (extension, bytes) in members {
                    let Some(bytes) = damage(shard, sample, extension, bytes) else { continue };
                    let mut header = tar::Header::new_gnu();
                    header.set_size(bytes.len() as u64);
                    header.set_mode(0o644);
                    header.set_cksum();
                    let name = format!("s{sample:04}.{extension}");
                    tar.append_data(&mut header, name, bytes.as_slice()).unwrap();
                }
            }
            tar.finish().unwrap();
            path.display().to_string()
        })
        .collect()
}

fn keep(_: usize, _: usize, _: &str, bytes: Vec<u8>) -> Option<Vec<u8>> {
    Some(bytes)
}

fn augmentation() -> AugCfg {
    AugCfg {
        scale: [0.5, 1.0],
        ratio: [0.75, 1.33],
        color_jitter: [0.2, 0.2, 0.2, 0.05],
        color_jitter_prob: 0.8,
        gray_scale_prob: 0.1,
        hflip_prob: 0.5,
        affine: None,
        re_prob: 0.0,
        re_count: 1,
        use_timm: false,
    }
}

/// What a manifest says of these shards.
fn data(sources: Vec<spec::Source>) -> spec::Data {
    spec::Data {
        sources,
        seed: 5,
        image_key: vec!["png".into()],
        text_key: "txt".into(),
        json_text_key: None,
        dataset_type: DatasetType::Auto,
        csv_separator: '\t',
        csv_img_key: "filepath".into(),
        csv_caption_key: "title".into(),
        parquet_img_key: vec!["image".into(), "url".into()],
        parquet_caption_key: vec!["caption".into()],
        lanes: 8,
        block_samples: 4,
        pool_samples: 64,
        readers: Some(2),
        memory: None,
        jpeg_scaled_decode: false,
        max_corrupt: 0.05,
        accept_new_data: false,
        aug_cfg: augmentation(),
    }
}

fn dataset(urls: Vec<String>, global_batch: u64) -> Result<Arc<Dataset>, Error> {
    Dataset::open(&data(vec![spec::Source::train(urls)]), global_batch).map(Arc::new)
}

fn open(urls: Vec<String>) -> Result<Source, Error> {
    let data = data(vec![spec::Source::train(urls)]);
    Source::open(&data, &data.sources[0])
}

fn read(source: &Source, index: u64) -> Result<RawSample, SampleError> {
    source.read(index)
}

/// Options of a plain loader of four whole batches, for tests that change some of them.
fn loader_options(dataset: &Arc<Dataset>, global_batch: u64) -> LoaderOptions {
    LoaderOptions {
        dataset: Arc::clone(dataset),
        global_batch,
        rows: 0..global_batch,
        first_step: 0,
        first_sample: 0,
        last_step: 4,
        preprocess: Preprocess::clip(SIDE),
        tokenizer: Arc::new(Tokenizer::clip(8)),
        aug: augmentation(),
        jpeg_scaled_decode: false,
        seed: 5,
        readers: 2,
        prefetch: 2,
        left_out: Windows::default(),
        ledger: Ledger::default(),
        memory: 1 << 30,
        max_corrupt: 0.05,
    }
}

/// Returns all batches of a loader.
fn load(options: LoaderOptions) -> Result<Vec<Batch>, Error> {
    let count = options.last_step - options.first_step;
    let mut loader = Loader::start(options)?;
    (0..count).map(|_| loader.next()).collect()
}
