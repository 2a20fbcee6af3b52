//! What an evaluation returns.

use super::scoring::Retrieval;

/// Scores of one evaluation set; equal on every rank, pictures apart.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// The set's name in the manifest.
    pub name: String,
    /// Images scored.
    pub images: usize,
    /// Samples that could not be decoded and are not scored.
    pub skipped: usize,
    /// Distinct captions: the classes of zero-shot classification.
    pub classes: usize,
    /// Share of images whose own caption is the most similar.
    pub top1: f64,
    /// Share of images whose own caption is among the five most similar.
    pub top5: f64,
    /// Retrieval among all images and all their captions.
    pub retrieval: Retrieval,
    /// Some images, spread evenly over the set, with what the model took them for.
    pub predictions: Vec<Prediction>,
}

/// One image of an evaluation set and what the model took it for.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// Index of the sample in its set.
    pub index: u64,
    /// Its own caption.
    pub caption: String,
    /// Place of its own caption among all distinct ones, from 1.
    pub place: u64,
    /// The captions most similar to it, at most five, the most similar first.
    pub top: Vec<Choice>,
    /// A small picture of it; on rank 0 only.
    pub picture: Option<Picture>,
}

/// A caption and its similarity to an image.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The caption.
    pub caption: String,
    /// Cosine similarity, -1..1.
    pub similarity: f32,
}

/// An encoded image for the report.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    /// Its media type, as in `image/png`.
    pub media_type: &'static str,
    /// The file's bytes.
    pub bytes: Vec<u8>,
}
