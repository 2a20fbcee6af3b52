//! The matrix products of a loss and nothing else, in memory that is there already.

use tch::{Kind, TchError, Tensor};

use super::inputs::Shares;
use ringmaster_worker::loss::{Tiling, dot_products_into, multiply_into, operand};

/// Matrix products per pair: those of the dot products, and two for the gradients.
#[derive(Debug, Clone, Copy)]
pub(super) struct Units {
    /// How often the dot products are computed.
    pub(super) forward: usize,
}

/// Factors and results, in the dtypes in which the loss multiplies and sums.
struct Memory {
    image: Tensor,
    text: Tensor,
    products: Tensor,
    weights: Tensor,
    grad_image: Tensor,
    grad_text: Tensor,
}

impl Memory {
    /// For tiles of `n` × `m` pairs.
    fn new(image: &Tensor, text: &Tensor, n: i64, m: i64) -> Result<Self, TchError> {
        let sums = if image.kind() == Kind::Double { Kind::Double } else { Kind::Float };
        let (image, text) = (operand(image, sums)?, operand(text, sums)?);
        let (device, dim) = (image.device(), image.size()[1]);
        Ok(Self {
            products: Tensor::f_zeros([n * m], (sums, device))?,
            weights: Tensor::f_zeros([n * m], (image.kind(), device))?,
            grad_image: Tensor::f_zeros(image.size().as_slice(), (sums, device))?,
            grad_text: Tensor::f_zeros([m, dim], (sums, device))?,
            image,
            text,
        })
    }

    /// The products of one tile.
    fn run(
        &mut self,
        images: (i64, i64),
        texts: (i64, i64),
        units: Units,
        first: bool,
    ) -> Result<(), TchError> {
        let ((row, n), (column, m)) = (images, texts);
        let image = self.image.narrow(0, row, n);
        let text = self.text.narrow(0, column, m);
        let products = self.products.narrow(0, 0, n * m).view([n, m]);
        for _ in 0..units.forward {
            dot_products_into(&products, &image, &text)?;
        }
        let weights = self.weights.narrow(0, 0, n * m).view([n, m]);
        multiply_into(&mut self.grad_image.narrow(0, row, n), &weights, &text, false)?;
        multiply_into(&mut self.grad_text.narrow(0, 0, m), &weights.tr(), &image, first)
    }
}

/// The products of one call tile by tile, in the loss's own shapes.
pub(super) struct Tiled {
    memory: Memory,
    world_size: i64,
    image_rows: i64,
    sub_chunk: i64,
}

impl Tiled {
    pub(super) fn new(shares: &Shares, world_size: i64, tiling: Tiling) -> Result<Self, TchError> {
        let (rows, columns) = (shares.image.size()[0], shares.text.size()[0]);
        let image_rows = rows.min(tiling.image_rows as i64);
        let sub_chunk = columns.min(tiling.sub_chunk as i64);
        let memory = Memory::new(&shares.image, &shares.text, image_rows, sub_chunk)?;
        Ok(Self { memory, world_size, image_rows, sub_chunk })
    }

    pub(super) fn run(&mut self, units: Units) -> Result<(), TchError> {
        let (rows, columns) = (self.memory.image.size()[0], self.memory.text.size()[0]);
        for _ in 0..self.world_size {
            for column in (0..columns).step_by(self.sub_chunk as usize) {
                for row in (0..rows).step_by(self.image_rows as usize) {
                    let images = (row, self.image_rows.min(rows - row));
                    let texts = (column, self.sub_chunk.min(columns - column));
                    self.memory.run(images, texts, units, row == 0)?;
                }
            }
        }
        Ok(())
    }
}

/// The same products in one piece each: what a program with memory for all pairs would do.
pub(super) struct Dense {
    memory: Memory,
}

impl Dense {
    /// Pairs above which the whole matrix is not made.
    const MOST_PAIRS: i64 = 16 << 20;

    /// Returns none where the pair matrix would be large.
    pub(super) fn new(shares: &Shares, world_size: i64) -> Result<Option<Self>, TchError> {
        let rows = shares.image.size()[0];
        let batch = shares.text.size()[0] * world_size;
        if rows * batch > Self::MOST_PAIRS {
            return Ok(None);
        }
        let all_text = shares.text.f_repeat([world_size, 1])?;
        Ok(Some(Self { memory: Memory::new(&shares.image, &all_text, rows, batch)? }))
    }

    pub(super) fn run(&mut self, units: Units) -> Result<(), TchError> {
        let images = (0, self.memory.image.size()[0]);
        let texts = (0, self.memory.text.size()[0]);
        self.memory.run(images, texts, units, true)
    }
}
