//! Scores of embeddings that are spread over the ranks.
//!
//! Every rank holds a contiguous part of the images. Captions are made distinct over all ranks,
//! each rank embeds a part of them, and all gather them; a rank then scores its own images. For
//! text → image every rank counts, per text, its own images that come before the text's partner,
//! and the counts are summed. No rank holds the images × captions matrix.

use std::collections::HashMap;

use tch::{Kind, Tensor};

use super::scoring::{Classes, Ranks, Retrieval, share, top_k};
use super::{Error, gather};
use crate::collective::{Collective, ReduceOp, even_counts};

/// Images whose similarities to all captions are held at a time.
const CHUNK: usize = 256;
/// Captions kept per image.
const TOP: usize = 5;

/// This rank's part of an evaluation set, embedded.
#[derive(Debug)]
pub struct Part {
    /// Rows of unit length, on the CPU. Shape [n, D], f32.
    pub images: Tensor,
    /// Index of each image's sample in the set.
    pub indices: Vec<u64>,
    /// Each image's own caption.
    pub captions: Vec<String>,
    /// Samples that could not be decoded.
    pub skipped: usize,
}

/// Scores of all ranks' parts; equal on every rank.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// Samples that could not be decoded, all ranks.
    pub skipped: usize,
    /// Share of images whose own caption is the most similar.
    pub top1: f64,
    /// Share of images whose own caption is among the five most similar.
    pub top5: f64,
    /// Retrieval over 1:1 pairs.
    pub retrieval: Retrieval,
    /// Distinct captions, in the order of their first appearance.
    pub classes: Vec<String>,
    /// One entry per image, in the order of the set.
    pub images: Vec<Image>,
}

/// What one image was taken for.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// Index of the sample.
    pub index: u64,
    /// Its own caption's class.
    pub class: usize,
    /// Place of its own caption among the distinct ones, from 1.
    pub place: u64,
    /// The most similar classes and their cosine similarity, best first.
    pub top: Vec<(usize, f32)>,
}

/// Scores `part` together with all other ranks' parts.
///
/// `embed` returns rows of unit length for distinct captions, on the CPU: shape [n, D], f32; it
/// is called once, with this rank's part of them, which may be empty.
///
/// # Errors
/// When a collective fails, or `embed` does.
pub fn score(
    part: &Part,
    collective: &dyn Collective,
    embed: impl FnOnce(&[String]) -> Result<Tensor, Error>,
) -> Result<Outcome, Error> {
    // Every rank learns which rank holds which image and caption.
    let counts = gather::counts(collective, part.captions.len())?;
    let first = counts[..collective.rank()].iter().sum::<usize>();
    let captions = gather::strings(collective, &part.captions)?;
    let skipped = gather::counts(collective, part.skipped)?.iter().sum();
    let indices: Vec<i64> = part.indices.iter().map(|&index| index as i64).collect();
    let indices = gather::rows(collective, &Tensor::from_slice(&indices), &counts)?; // [N]

    // Every rank gets the embedding of every distinct caption.
    let (names, of_text) = distinct(captions);
    let classes = Classes::new(of_text, names.len());
    let shares = even_counts(names.len(), collective.world_size());
    let from = shares[..collective.rank()].iter().sum::<usize>();
    let own_texts = embed(&names[from..from + shares[collective.rank()]])?; // [C_r, D]
    let texts = gather::rows(collective, &own_texts, &shares)?; // [C, D]

    // Every rank scores its own images.
    let rows = Rows { images: &part.images, texts: &texts, count: part.captions.len() };
    let own = score_images(&rows, first, &classes)?;
    let before = count_images_before(&rows, first, &classes, &own, collective, &counts)?;
    let scored = Scored::gather(&own, collective, &counts)?;
    Ok(outcome(scored, &before, gather::integers(&indices)?, &classes, names, skipped))
}

/// Returns the distinct strings in the order of their first appearance, and each string's class.
fn distinct(strings: Vec<String>) -> (Vec<String>, Vec<usize>) {
    let mut class_of: HashMap<String, usize> = HashMap::new();
    let mut names = Vec::new();
    let mut of_text = Vec::with_capacity(strings.len());
    for string in strings {
        let next = names.len();
        let class = *class_of.entry(string).or_insert_with_key(|name| {
            names.push(name.clone());
            next
        });
        of_text.push(class);
    }
    (names, of_text)
}

/// Similarities of a rank's images to all classes, a chunk at a time. The same chunk gives the
/// same bits each time, so that both passes over them agree on ties.
struct Rows<'a> {
    images: &'a Tensor,
    texts: &'a Tensor,
    count: usize,
}

impl Rows<'_> {
    /// Calls `each` with the place of every image in this rank's part and its row.
    fn for_each(&self, mut each: impl FnMut(usize, &[f32])) -> Result<(), Error> {
        let failed = |source| Error::Tensor { operation: "similarity", source };
        let classes = self.texts.size()[0] as usize;
        for first in (0..self.count).step_by(CHUNK) {
            let rows = CHUNK.min(self.count - first);
            let chunk = self.images.narrow(0, first as i64, rows as i64);
            let similarities = chunk.f_matmul(&self.texts.tr()).map_err(failed)?; // [rows, C]
            let values = gather::floats(&similarities)?;
            for (offset, row) in values.chunks_exact(classes).enumerate() {
                each(first + offset, row);
            }
        }
        Ok(())
    }
}

/// Per-image results, in the order of the images.
#[derive(Debug, Default)]
struct Scored {
    /// Similarity to the image's own caption.
    own: Vec<f32>,
    /// Classes that come before its own.
    place: Vec<i64>,
    /// Texts that come before its own.
    text_rank: Vec<i64>,
    /// Most similar classes, `TOP` per image; -1 where there are fewer.
    top: Vec<i64>,
    /// Their similarities.
    top_values: Vec<f32>,
}

fn score_images(rows: &Rows<'_>, first: usize, classes: &Classes) -> Result<Scored, Error> {
    let mut scored = Scored::default();
    rows.for_each(|place, row| {
        let pair = first + place;
        let class = classes.of(pair);
        scored.own.push(row[class]);
        scored.place.push(super::scoring::rank_of(row, class) as i64);
        scored.text_rank.push(classes.rank_of_text(row, pair) as i64);
        let best = top_k(row, TOP);
        for slot in 0..TOP {
            let class = best.get(slot).copied();
            scored.top.push(class.map_or(-1, |class| class as i64));
            scored.top_values.push(class.map_or(0.0, |class| row[class]));
        }
    })?;
    Ok(scored)
}

/// Returns, for every text, how many images of all ranks come before its partner.
fn count_images_before(
    rows: &Rows<'_>,
    first: usize,
    classes: &Classes,
    scored: &Scored,
    collective: &dyn Collective,
    counts: &[usize],
) -> Result<Vec<i64>, Error> {
    let own = gather::rows(collective, &Tensor::from_slice(&scored.own), counts)?; // [N]
    let own = gather::floats(&own)?;
    let mut before = vec![0; classes.texts()];
    rows.for_each(|place, row| classes.count_before(first + place, row, &own, &mut before))?;
    let before = Tensor::from_slice(&before);
    // collective: all-reduce. Each rank has counted its own images; every rank needs the counts of all.
    collective.all_reduce(&before, ReduceOp::Sum)?.wait()?; // [N]
    gather::integers(&before)
}

impl Scored {
    /// Returns all ranks' results, in rank order.
    fn gather(&self, collective: &dyn Collective, counts: &[usize]) -> Result<Self, Error> {
        let integers = |values: &[i64], width: usize| -> Result<Vec<i64>, Error> {
            let own = Tensor::from_slice(values).reshape([-1, width as i64]); // [n, width]
            gather::integers(&gather::rows(collective, &own, counts)?)
        };
        let floats = |values: &[f32], width: usize| -> Result<Vec<f32>, Error> {
            let own = Tensor::from_slice(values).reshape([-1, width as i64]); // [n, width]
            gather::floats(&gather::rows(collective, &own.to_kind(Kind::Float), counts)?)
        };
        Ok(Self {
            own: floats(&self.own, 1)?,
            place: integers(&self.place, 1)?,
            text_rank: integers(&self.text_rank, 1)?,
            top: integers(&self.top, TOP)?,
            top_values: floats(&self.top_values, TOP)?,
        })
    }
}

fn outcome(
    scored: Scored,
    images_before: &[i64],
    indices: Vec<i64>,
    classes: &Classes,
    names: Vec<String>,
    skipped: usize,
) -> Outcome {
    let within = |k: i64| scored.place.iter().filter(|&&place| place < k).count();
    let unsigned = |ranks: &[i64]| ranks.iter().map(|&rank| rank as u64).collect::<Vec<_>>();
    let total = scored.place.len();
    let images = indices
        .iter()
        .enumerate()
        .map(|(pair, &index)| Image {
            index: index as u64,
            class: classes.of(pair),
            place: scored.place[pair] as u64 + 1,
            top: (pair * TOP..(pair + 1) * TOP)
                .filter(|&slot| scored.top[slot] >= 0)
                .map(|slot| (scored.top[slot] as usize, scored.top_values[slot]))
                .collect(),
        })
        .collect();
    Outcome {
        skipped,
        top1: share(within(1), total),
        top5: share(within(TOP as i64), total),
        retrieval: Retrieval {
            image_to_text: Ranks::from_zero_based(&unsigned(&scored.text_rank)),
            text_to_image: Ranks::from_zero_based(&unsigned(images_before)),
        },
        classes: names,
        images,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "shard_tests.rs"]
mod tests;
