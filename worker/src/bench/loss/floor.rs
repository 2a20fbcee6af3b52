//! The matrix products of a loss and nothing else: no loss can be faster than these.

use tch::Tensor;

use super::inputs::Shares;
use crate::loss::{Tiling, dot_products_into, multiply_into, operand};

/// Matrix products per pair: those of the dot products, and two for the gradients.
#[derive(Debug, Clone, Copy)]
pub(super) struct Units {
    /// How often the dot products are computed.
    pub(super) forward: usize,
}

/// Runs the products of one call tile by tile, in the loss's own shapes, on this rank's memory.
pub(super) fn tiled(
    shares: &Shares,
    world_size: i64,
    tiling: Tiling,
    units: Units,
) -> anyhow::Result<()> {
    let (image, text) = (&shares.image, &shares.text);
    let (rows, columns) = (image.size()[0], text.size()[0]);
    let kind = sum_kind(image);
    let (image_rows, sub_chunk) =
        (rows.min(tiling.image_rows as i64), columns.min(tiling.sub_chunk as i64));
    let tile = Tensor::f_zeros([image_rows * sub_chunk], (kind, image.device()))?;
    let factors = tile.f_to_kind(factor_kind(image))?;
    let grad_image = Tensor::f_zeros(image.size().as_slice(), (kind, image.device()))?;
    let part = Tensor::f_zeros([sub_chunk, image.size()[1]], (kind, image.device()))?;
    for _ in 0..world_size {
        for from in (0..columns).step_by(sub_chunk as usize) {
            let m = sub_chunk.min(columns - from);
            let text = operand(&text.narrow(0, from, m), kind);
            for first in (0..rows).step_by(image_rows as usize) {
                let n = image_rows.min(rows - first);
                let image = operand(&image.narrow(0, first, n), kind);
                let products = tile.narrow(0, 0, n * m).view([n, m]);
                for _ in 0..units.forward {
                    dot_products_into(&products, &image, &text)?;
                }
                let weights = factors.narrow(0, 0, n * m).view([n, m]);
                multiply_into(&mut grad_image.narrow(0, first, n), &weights, &text, false)?;
                let sum = &mut part.narrow(0, 0, m);
                multiply_into(sum, &weights.tr(), &image, first == 0)?;
            }
        }
    }
    Ok(())
}

/// The same products in one piece each: what a program with memory for all pairs would do.
pub(super) struct Dense {
    image: Tensor,
    all_text: Tensor,
    products: Tensor,
    weights: Tensor,
    grad_image: Tensor,
    grad_text: Tensor,
}

impl Dense {
    /// Pairs above which the whole matrix is not made.
    const MOST_PAIRS: i64 = 16 << 20;

    /// Returns none where the pair matrix would be large.
    pub(super) fn new(shares: &Shares, world_size: i64) -> anyhow::Result<Option<Self>> {
        let (b, dim) = (shares.image.size()[0], shares.image.size()[1]);
        let batch = b * world_size;
        if b * batch > Self::MOST_PAIRS {
            return Ok(None);
        }
        let options = (sum_kind(&shares.image), shares.image.device());
        Ok(Some(Self {
            image: operand(&shares.image, options.0),
            all_text: operand(&shares.text, options.0).f_repeat([world_size, 1])?,
            products: Tensor::f_zeros([b, batch], options)?,
            weights: Tensor::f_zeros([b, batch], (factor_kind(&shares.image), options.1))?,
            grad_image: Tensor::f_zeros([b, dim], options)?,
            grad_text: Tensor::f_zeros([batch, dim], options)?,
        }))
    }

    pub(super) fn run(&mut self, units: Units) -> anyhow::Result<()> {
        for _ in 0..units.forward {
            dot_products_into(&self.products, &self.image, &self.all_text)?;
        }
        multiply_into(&mut self.grad_image, &self.weights, &self.all_text, true)?;
        multiply_into(&mut self.grad_text, &self.weights.tr(), &self.image, true)?;
        Ok(())
    }
}

/// dtype of what the products multiply: see [`operand`].
fn factor_kind(embeddings: &Tensor) -> tch::Kind {
    operand(&embeddings.narrow(0, 0, 1), sum_kind(embeddings)).kind()
}

fn sum_kind(embeddings: &Tensor) -> tch::Kind {
    match embeddings.kind() {
        tch::Kind::Double => tch::Kind::Double,
        _ => tch::Kind::Float,
    }
}
