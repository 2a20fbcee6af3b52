//! From an evaluation set to its scores.

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use ringmaster_data::{SampleError, Source};
use ringmaster_manifest::spec;
use tch::{Device, Kind, Tensor};

use super::scores::{Choice, Prediction, Scores};
use super::shard::{self, Part};
use super::{Error, pictures};
use crate::collective::{Collective, even_counts};
use crate::model::{Clip, Mode, normalize};
use crate::progress::{self, Work};
use ringmaster_inputs::image::Preprocess;
use ringmaster_inputs::text::Tokenizer;

/// Images or captions that go through a tower at a time.
const BATCH: usize = 64;
/// Decoded batches that wait for the model.
const AHEAD: usize = 2;
/// Images in the report's grid.
const GRID: usize = 60;

/// An opened evaluation set; it can be evaluated any number of times.
#[derive(Debug, Clone)]
pub struct EvalSet {
    name: String,
    dataset: Arc<Source>,
}

impl EvalSet {
    /// Opens a set of the manifest. Members have the names of the training data's; the caption is
    /// the text member, not one drawn from a list. The form goes by the names.
    ///
    /// # Errors
    /// When a shard is missing or cannot be read.
    pub fn open(set: &spec::EvalSet, data: &spec::Data) -> Result<Self, Error> {
        let dataset_type = spec::DatasetType::Auto;
        let data = spec::Data { json_text_key: None, dataset_type, ..data.clone() };
        let dataset = Source::open(&data, &spec::Source::train(set.data.clone()));
        let dataset = dataset.map_err(|source| Error::Open { set: set.name.clone(), source })?;
        Ok(Self { name: set.name.clone(), dataset: Arc::new(dataset) })
    }

    /// Returns the set's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Scores `clip` on `set` together with all other ranks, each of which embeds its part of the
/// images and captions. Every rank must call it at the same place of its program.
///
/// Samples whose image or caption is damaged are left out and counted.
///
/// # Errors
/// When data cannot be read, no sample is usable, or a peer is lost.
pub fn evaluate(
    clip: &Clip,
    tokenizer: &Tokenizer,
    collective: &dyn Collective,
    set: &EvalSet,
    preprocess: &Preprocess,
) -> Result<Scores, Error> {
    let _no_grad = tch::no_grad_guard();
    let samples = set.dataset.len();
    let shares = even_counts(samples as usize, collective.world_size());
    let first = shares[..collective.rank()].iter().sum::<usize>() as u64;
    let range = first..first + shares[collective.rank()] as u64;

    let part = embed_images(clip, set, preprocess, range)?;
    let outcome = shard::score(&part, collective, |captions| {
        embed_captions(clip, tokenizer, &set.name, captions)
    })?;
    if outcome.images.is_empty() {
        return Err(Error::Empty { set: set.name.clone(), samples });
    }
    let predictions = predictions(&outcome, set, collective.rank() == 0);
    Ok(Scores {
        name: set.name.clone(),
        images: outcome.images.len(),
        skipped: outcome.skipped,
        classes: outcome.classes.len(),
        top1: outcome.top1,
        top5: outcome.top5,
        retrieval: outcome.retrieval,
        predictions,
    })
}

// ---- Images: read and decoded on a thread of their own, embedded here ----

/// A decoded batch on its way to the model.
#[derive(Default)]
struct Decoded {
    values: Vec<f32>,
    indices: Vec<u64>,
    captions: Vec<String>,
    skipped: usize,
}

fn embed_images(
    clip: &Clip,
    set: &EvalSet,
    preprocess: &Preprocess,
    range: Range<u64>,
) -> Result<Part, Error> {
    let (sender, receiver) = sync_channel(AHEAD);
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("eval-reader".to_owned())
            .spawn_scoped(scope, move || read(set, *preprocess, range, &sender))
            .map_err(Error::Thread)?;
        // Moved, so that a failure here drops it and ends the reader, which the scope waits for.
        embed_batches(clip, &set.name, preprocess.image_size, receiver)
    })
}

fn read(
    set: &EvalSet,
    preprocess: Preprocess,
    range: Range<u64>,
    sender: &SyncSender<Result<Decoded, Error>>,
) {
    let mut batch = Decoded::default();
    for index in range {
        progress::advance(Work::Data);
        match set.dataset.read(index) {
            Ok(sample) => {
                let image = ringmaster_inputs::image::decode(&sample.image);
                let values = image.and_then(|image| preprocess.eval(&image));
                match (values, sample.captions.into_iter().next()) {
                    (Ok(values), Some(caption)) => {
                        batch.values.extend(values);
                        batch.indices.push(index);
                        batch.captions.push(caption);
                    }
                    _ => batch.skipped += 1,
                }
            }
            Err(SampleError::Corrupt(_)) => batch.skipped += 1,
            Err(source) => {
                // The receiver is gone only if embedding failed, which is reported there.
                let _ = sender.send(Err(Error::Read { set: set.name.clone(), index, source }));
                return;
            }
        }
        if batch.indices.len() == BATCH && sender.send(Ok(std::mem::take(&mut batch))).is_err() {
            return;
        }
    }
    let _ = sender.send(Ok(batch));
}

fn embed_batches(
    clip: &Clip,
    set: &str,
    image_size: u32,
    batches: Receiver<Result<Decoded, Error>>,
) -> Result<Part, Error> {
    let device = clip.params().flat().device();
    let side = i64::from(image_size);
    let mut embeddings = vec![no_rows(clip)];
    let (mut indices, mut captions, mut skipped) = (Vec::new(), Vec::new(), 0);
    for batch in batches {
        let batch = batch?;
        skipped += batch.skipped;
        if batch.indices.is_empty() {
            continue;
        }
        let images = Tensor::from_slice(&batch.values).reshape([-1, 3, side, side]); // [n, 3, S, S]
        let failed = |source| Error::Model { set: set.to_owned(), what: "images", source };
        let rows = clip.encode_image(&images.to_device(device), &Mode::Eval).map_err(failed)?;
        embeddings.push(unit_rows(&rows)); // [n, D]
        progress::advance(Work::Compute);
        indices.extend(batch.indices);
        captions.extend(batch.captions);
    }
    Ok(Part { images: Tensor::cat(&embeddings, 0), indices, captions, skipped })
}

fn embed_captions(
    clip: &Clip,
    tokenizer: &Tokenizer,
    set: &str,
    captions: &[String],
) -> Result<Tensor, Error> {
    let device = clip.params().flat().device();
    let mut embeddings = vec![no_rows(clip)];
    for chunk in captions.chunks(BATCH) {
        let tokens: Vec<i64> = chunk.iter().flat_map(|caption| tokenizer.encode(caption)).collect();
        let tokens = Tensor::from_slice(&tokens).reshape([chunk.len() as i64, -1]); // [n, L]
        let failed = |source| Error::Model { set: set.to_owned(), what: "captions", source };
        let rows = clip.encode_text(&tokens.to_device(device), &Mode::Eval).map_err(failed)?;
        embeddings.push(unit_rows(&rows)); // [n, D]
        progress::advance(Work::Compute);
    }
    Ok(Tensor::cat(&embeddings, 0))
}

/// Returns rows of unit length as they are compared: f32, on the CPU. Shapes: [n, D] -> [n, D].
fn unit_rows(rows: &Tensor) -> Tensor {
    normalize(rows).to_device(Device::Cpu).to_kind(Kind::Float)
}

/// Returns no row of the right width: [0, D].
fn no_rows(clip: &Clip) -> Tensor {
    Tensor::zeros([0, clip.config().embed_dim], (Kind::Float, Device::Cpu))
}

// ---- The report's grid ----

/// Returns up to `GRID` images spread evenly over the set, with pictures where wanted.
fn predictions(outcome: &shard::Outcome, set: &EvalSet, with_pictures: bool) -> Vec<Prediction> {
    let total = outcome.images.len();
    let shown = GRID.min(total);
    (0..shown)
        .map(|place| {
            let image = &outcome.images[place * total / shown];
            let name = |class: usize| outcome.classes[class].clone();
            let picture = with_pictures.then(|| set.dataset.read(image.index).ok()).flatten();
            Prediction {
                index: image.index,
                caption: name(image.class),
                place: image.place,
                top: image
                    .top
                    .iter()
                    .map(|&(class, similarity)| Choice { caption: name(class), similarity })
                    .collect(),
                picture: picture.and_then(|sample| pictures::picture(&sample.image)),
            }
        })
        .collect()
}
