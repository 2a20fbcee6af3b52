//! This rank's rows of a batch through the towers and back, all at once or in micro-batches.

use tch::{Device, Kind, Tensor};

use super::pixels::Pixels;
use crate::error::Error;
use crate::model::{Clip, Mode, Tower, normalize};
use crate::progress::{self, Work};
use ringmaster_data::Batch;
use ringmaster_inputs::image::Preprocess;

/// What the random draws of a step depend on, beside the rows.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Draw {
    pub seed: u64,
    pub step: u64,
}

/// This rank's rows of the batch, on its device.
pub(crate) struct Share<'a> {
    clip: &'a Clip,
    images: Pixels,
    tokens: Tensor,
    rows: &'a [u64],
    /// Rows that go through a tower at once.
    micro: usize,
    draw: Draw,
}

/// Embeddings of one tower.
pub(crate) struct Encoded {
    /// Unit rows without a graph. Shape `[b_r, d]`.
    pub(crate) embeddings: Tensor,
    /// The same with their graph, when all rows went through the tower at once.
    graph: Option<Tensor>,
}

impl<'a> Share<'a> {
    /// `micro`: rows that go through a tower at once; none: all.
    pub(crate) fn new(
        clip: &'a Clip,
        (batch, preprocess): (&Batch, &Preprocess),
        rows: &'a [u64],
        micro: Option<u32>,
        draw: Draw,
        device: Device,
    ) -> Self {
        let n = rows.len() as i64;
        let length = clip.config().text_cfg.context_length;
        let tokens = Tensor::from_slice(&batch.tokens).view([n, length]);
        Self {
            clip,
            images: Pixels::new(batch, preprocess, device, Kind::Float),
            tokens: tokens.to_device(device),
            rows,
            micro: micro.map_or(rows.len(), |m| m as usize).max(1),
            draw,
        }
    }

    /// Embeds all rows; in micro-batches without a graph when they do not fit at once.
    pub(crate) fn encode(&self, tower: Tower) -> Result<Encoded, Error> {
        if self.rows.len() <= self.micro {
            let graph = self.forward(tower, 0..self.rows.len())?;
            return Ok(Encoded { embeddings: graph.detach(), graph: Some(graph) });
        }
        let parts: Result<Vec<Tensor>, Error> =
            tch::no_grad(|| self.micro_batches().map(|rows| self.forward(tower, rows)).collect());
        Ok(Encoded { embeddings: Tensor::cat(&parts?, 0), graph: None })
    }

    /// Sends the embedding gradients back through the tower into the flat gradient buffer. Without
    /// a kept graph the micro-batches go forward once more, this time with one (arXiv:2101.06983);
    /// counter-based randomness makes both passes the same.
    pub(crate) fn backward(
        &self,
        tower: Tower,
        encoded: Encoded,
        grad: &Tensor,
    ) -> Result<(), Error> {
        let params = self.clip.params();
        if let Some(graph) = encoded.graph {
            let surrogate = (graph * grad).sum(Kind::Float);
            return Ok(params.backward(tower, &surrogate, false)?);
        }
        for (index, rows) in self.micro_batches().enumerate() {
            let part = grad.narrow(0, rows.start as i64, rows.len() as i64);
            let surrogate = (self.forward(tower, rows)? * part).sum(Kind::Float);
            params.backward(tower, &surrogate, index > 0)?;
            progress::advance(Work::Compute);
        }
        Ok(())
    }

    fn micro_batches(&self) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let (rows, micro) = (self.rows.len(), self.micro);
        (0..rows).step_by(micro).map(move |start| start..rows.min(start + micro))
    }

    /// Returns unit embeddings of some rows. Shape `[n, d]`.
    fn forward(&self, tower: Tower, rows: std::ops::Range<usize>) -> Result<Tensor, Error> {
        let mode = Mode::Train {
            seed: self.draw.seed,
            step: self.draw.step,
            rows: &self.rows[rows.clone()],
        };
        let part = |t: &Tensor| t.narrow(0, rows.start as i64, rows.len() as i64);
        let embeddings = match tower {
            Tower::Image => self.clip.encode_image(&self.images.rows(rows.clone()), &mode)?,
            _ => self.clip.encode_text(&part(&self.tokens), &mode)?,
        };
        progress::advance(Work::Compute);
        Ok(normalize(&embeddings))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ringmaster_manifest::model_config::{Layers, ModelConfig, TextConfig, VisionConfig};

    use super::*;
    use crate::collective::Solo;
    use crate::loss::{Inputs, Tiling, siglip};
    use crate::model::LogitInit;
    use ringmaster_data::corrupt::SampleKey;
    use ringmaster_inputs::rng::{Site, Stream};

    const ROWS: [u64; 7] = [40, 41, 42, 43, 44, 45, 46];
    const DRAW: Draw = Draw { seed: 3, step: 12 };

    fn clip() -> Clip {
        let config = ModelConfig {
            embed_dim: 12,
            vision_cfg: VisionConfig {
                layers: Layers::Blocks(2),
                width: 16,
                head_width: 8,
                patch_size: 4,
                image_size: 16,
                patch_dropout: 0.5,
                ..VisionConfig::default()
            },
            text_cfg: TextConfig {
                context_length: 9,
                vocab_size: 50,
                width: 16,
                heads: 2,
                layers: 2,
                ..TextConfig::default()
            },
            ..ModelConfig::default()
        };
        let init = LogitInit { scale: 2.3, bias: Some(-10.0) };
        Clip::with_kinds(&config, Kind::Double, Kind::Double, Device::Cpu, 5, init).unwrap()
    }

    fn batch() -> Batch {
        let mut stream = Stream::new(1, Site::Init, &[7]);
        let n = ROWS.len();
        Batch {
            images: (0..n * 3 * 16 * 16)
                .map(|_| stream.below(256) as u8)
                .collect::<Vec<_>>()
                .into(),
            samples: (0..n as u64).map(|index| SampleKey { source: 0, index }).collect(),
            tokens: (0..n * 9).map(|_| stream.below(50) as i64).collect(),
            ..Batch::default()
        }
    }

    /// Loss, ∂L/∂t′, ∂L/∂β and the flat gradient of both towers.
    fn gradients(micro: Option<u32>, draw: Draw) -> (Vec<f64>, Tensor) {
        let (clip, batch) = (clip(), batch());
        let preprocess = Preprocess::clip(16);
        let mut share = Share::new(&clip, (&batch, &preprocess), &ROWS, micro, draw, Device::Cpu);
        share.images = Pixels::new(&batch, &preprocess, Device::Cpu, Kind::Double);
        let image = share.encode(Tower::Image).unwrap();
        let text = share.encode(Tower::Text).unwrap();
        let counts = [ROWS.len()];
        let inputs = Inputs::pairs(&image.embeddings, &text.embeddings, &counts)
            .with_logits(clip.logit_scale(), clip.logit_bias().unwrap());
        let tiling = Tiling { sub_chunk: 4, image_rows: 4 };
        let options = siglip::Options { tiling, group: 1 };
        let loss = siglip::ring(&inputs, options, &Solo::new()).unwrap();
        share.backward(Tower::Image, image, &loss.grad_image).unwrap();
        share.backward(Tower::Text, text, &loss.grad_text).unwrap();
        let scalars = vec![loss.loss, loss.grad_log_scale, loss.grad_bias];
        (scalars, clip.params().grad().copy())
    }

    #[test]
    fn micro_batches_give_the_gradients_of_the_whole_with_patch_dropout_on() {
        let (scalars, whole) = gradients(None, DRAW);
        let size = whole.norm().double_value(&[]);
        for micro in [1, 2, 3, 5] {
            let (micro_scalars, split) = gradients(Some(micro), DRAW);
            for (ours, wanted) in micro_scalars.iter().zip(&scalars) {
                assert!((ours - wanted).abs() <= 1e-12 * wanted.abs(), "micro {micro}");
            }
            let error = (split - &whole).norm().double_value(&[]) / size;
            assert!(error < 1e-12, "micro {micro}: {error:e}");
        }
        // The test would not notice masks that are never drawn.
        let (_, other_step) = gradients(Some(3), Draw { step: 13, ..DRAW });
        assert!((other_step - whole).norm().double_value(&[]) / size > 1e-3);
    }
}
