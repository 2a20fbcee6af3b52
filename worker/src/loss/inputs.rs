//! What a loss is computed from, and the checks before anything is sent.

use tch::{Device, Kind, Tensor};

use super::Error;

/// A rank's part of the global batch.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// Image embeddings, rows of unit length. Shape `[b_r, d]`; f32, f64 or bf16.
    pub image: &'a Tensor,
    /// Text embeddings. Shape `[c_r, d]`, dtype of `image`.
    pub text: &'a Tensor,
    /// Image rows of every rank, by rank. Their sum B divides the loss.
    pub image_counts: &'a [usize],
    /// Text rows of every rank, by rank. Differs from the images' only with [`Positives::Labels`].
    pub text_counts: &'a [usize],
    /// Which pairs belong together.
    pub positives: Positives<'a>,
    /// t′; the logits are scaled by exp(t′).
    pub log_scale: f64,
    /// β, added to the logits; SigLIP only.
    pub bias: f64,
}

/// Which pairs belong together; all others are negatives.
#[derive(Debug, Clone, Copy)]
pub enum Positives<'a> {
    /// Row i of the images and row i of the texts, as OpenCLIP has it.
    Pairs,
    /// Rows with equal labels, wherever they stand: several captions of one image, or the same
    /// caption under several images. SigLIP only.
    Labels {
        /// Labels of the image rows. Shape `[b_r]`, i64.
        image: &'a Tensor,
        /// Labels of the text rows. Shape `[c_r]`, i64.
        text: &'a Tensor,
    },
}

impl<'a> Inputs<'a> {
    /// Returns inputs whose images and texts come in pairs, `counts[rank]` on every rank.
    pub fn pairs(image: &'a Tensor, text: &'a Tensor, counts: &'a [usize]) -> Self {
        Self {
            image,
            text,
            image_counts: counts,
            text_counts: counts,
            positives: Positives::Pairs,
            log_scale: 0.0,
            bias: 0.0,
        }
    }

    /// The same with another scale exp(t′) and bias β.
    #[must_use]
    pub fn with_logits(self, log_scale: f64, bias: f64) -> Self {
        Self { log_scale, bias, ..self }
    }

    /// Embedding width d.
    pub(super) fn dim(&self) -> i64 {
        self.image.size()[1]
    }

    /// Images in the global batch, B.
    pub(super) fn batch(&self) -> usize {
        self.image_counts.iter().sum()
    }

    /// Index in the global batch of `rank`'s first text.
    pub(super) fn text_offset(&self, rank: usize) -> usize {
        self.text_counts[..rank].iter().sum()
    }

    /// dtype of dot products and gradients: sums never accumulate in bf16.
    pub(super) fn compute_kind(&self) -> Kind {
        super::tile::sum_kind(self.image.kind())
    }

    pub(super) fn check(&self, rank: usize, world_size: usize) -> Result<(), Error> {
        for (what, counts) in
            [("image counts", self.image_counts), ("text counts", self.text_counts)]
        {
            if counts.len() != world_size {
                return Err(mismatch(what, format!("{world_size} ranks"), format!("{counts:?}")));
            }
        }
        let (image, kind) = (self.image.size(), self.image.kind());
        if image.len() != 2 || image[0] != self.image_counts[rank] as i64 {
            let expected = format!("[{}, d]", self.image_counts[rank]);
            return Err(mismatch("image embeddings", expected, format!("{image:?}")));
        }
        if !matches!(kind, Kind::Float | Kind::Double | Kind::BFloat16) {
            let expected = "f32, f64 or bf16".to_owned();
            return Err(mismatch("image embeddings", expected, format!("{kind:?}")));
        }
        let device = self.image.device();
        if kind == Kind::Double && device != Device::Cpu {
            let expected = "f32 or bf16 on a GPU".to_owned();
            return Err(mismatch("image embeddings", expected, format!("{kind:?}")));
        }
        if self.text.device() != device {
            let actual = format!("{:?}", self.text.device());
            return Err(mismatch("text embeddings", format!("on {device:?}"), actual));
        }
        let wanted = [self.text_counts[rank] as i64, image[1]];
        if self.text.size() != wanted || self.text.kind() != kind {
            let actual = format!("{:?} of {:?}", self.text.size(), self.text.kind());
            let expected = format!("{wanted:?} of {kind:?}");
            return Err(mismatch("text embeddings", expected, actual));
        }
        self.check_positives(rank)
    }

    fn check_positives(&self, rank: usize) -> Result<(), Error> {
        let Positives::Labels { image, text } = self.positives else {
            if self.image_counts != self.text_counts {
                let expected = format!("{:?}, as many as images", self.image_counts);
                return Err(mismatch("text counts", expected, format!("{:?}", self.text_counts)));
            }
            return Ok(());
        };
        for (what, labels, rows) in [
            ("image labels", image, self.image_counts[rank]),
            ("text labels", text, self.text_counts[rank]),
        ] {
            let (device, wanted) = (labels.device(), self.image.device());
            if labels.size() != [rows as i64] || labels.kind() != Kind::Int64 || device != wanted {
                let actual = format!("{:?} of {:?} on {device:?}", labels.size(), labels.kind());
                let expected = format!("[{rows}] of Int64 on {wanted:?}");
                return Err(mismatch(what, expected, actual));
            }
        }
        Ok(())
    }
}

fn mismatch(what: &'static str, expected: String, actual: String) -> Error {
    Error::Shape { what, expected, actual }
}
