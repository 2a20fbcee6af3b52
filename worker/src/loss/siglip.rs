//! SigLIP's pairwise sigmoid loss round the ring of ranks (arXiv:2303.15343, §3.2 and §3.3).
//!
//! With t = exp(t′), s_ij = t x_i·y_j + β and z_ij = +1 for pairs that belong together, −1 for all
//! others: L = −(1/B) Σ_ij log σ(z_ij s_ij). Let g_ij = ∂L/∂s_ij = −z_ij σ(−z_ij s_ij) / B. Then
//! dX_i = t Σ_j g_ij y_j, dY_j = t Σ_i g_ij x_i, dt′ = Σ_ij g_ij (s_ij − β) and dβ = Σ_ij g_ij.
//!
//! Text moves round the ring in blocks; each block's gradient travels the same way one hop behind,
//! collecting every rank's part, and is back at the block's owner after the last hop (`ring`). Loss and
//! gradient of a tile come from one pass over its dot products, so nothing is kept for a backward
//! pass: three matrix products per pair instead of autograd's three plus the pair matrix. Transfers
//! are in flight while tiles are computed.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::epilogue::{Marks, Sigmoid};
use super::pool::Chunk;
use super::ring::{BlockWork, Ring, Sum, narrow};
use super::tile::{self, Tile, Tiling};
use super::{Error, Inputs, Output, Positives};
use crate::collective::{Collective, ReduceOp};

/// How the work is divided; part of the numeric plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Sizes of sub-chunks and tiles.
    pub tiling: Tiling,
    /// Ranks that stand together in the ring, as those of a node; divides the world size. 1: flat.
    pub group: usize,
}

/// Computes the loss of the global batch and this rank's gradients.
///
/// Shapes: see [`Inputs`] and [`Output`]. The loss and the two scalar gradients accumulate in f64
/// and are summed over all ranks; the embedding gradients are complete when this returns. Memory
/// beyond inputs and outputs: four sub-chunks (two of text, two of its gradient) and one tile, for any
/// number of ranks (up to five more with groups); for bf16 inputs on a CPU also one tile's
/// rows of either side in f32.
///
/// # Errors
/// A shape that does not fit the counts, a group that does not divide the ranks, a failed peer, or
/// libtorch running out of memory.
pub fn ring(
    inputs: &Inputs<'_>,
    options: Options,
    collective: &dyn Collective,
) -> Result<Output, Error> {
    let rank = collective.rank();
    inputs.check(rank, collective.world_size())?;
    let ring = Ring::new(collective, inputs.text_counts, options.group, options.tiling.sub_chunk)?;
    let mut work = Work::new(inputs, options.tiling, rank)?;
    let like_text = (inputs.compute_kind(), inputs.text.device());
    let grad_text = Tensor::f_empty(inputs.text.size().as_slice(), like_text)?;
    let mut pools = ring.pools(&work.block(0..0), &grad_text)?;
    ring.pass(&mut work, &grad_text, &mut pools)?;
    work.finish(grad_text, collective)
}

/// This rank's images and what they have added up so far.
struct Work<'a> {
    inputs: &'a Inputs<'a>,
    tiling: Tiling,
    rank: usize,
    /// t.
    scale: f64,
    kind: Kind,
    tile: Tile,
    /// Σ w y, without the common factor t / B.
    grad_image: Tensor,
    /// Adds up Σ log σ(z s), Σ w (s − β) and Σ w with w = B g.
    epilogue: Sigmoid,
}

impl BlockWork for Work<'_> {
    /// Text rows, and their labels where positives are by label.
    fn block(&self, rows: Range<usize>) -> Vec<Tensor> {
        let mut block = vec![narrow(self.inputs.text, &rows)];
        if let Positives::Labels { text, .. } = self.inputs.positives {
            block.push(narrow(text, &rows));
        }
        block
    }

    /// Adds all pairs of this rank's images with the block's text: Σ w x to the sum.
    fn compute(
        &mut self,
        block: &[Tensor],
        owner: usize,
        rows: Range<usize>,
        mut sum: Sum<'_>,
    ) -> Result<Chunk, Error> {
        let images = self.inputs.image.size()[0] as usize;
        if rows.is_empty() || images == 0 {
            return sum.finish();
        }
        let text = tile::operand(&block[0], self.kind)?;
        for image_rows in tile::ranges(images, self.tiling.image_rows) {
            let labels = self.image_labels(&image_rows);
            let marks = match (&labels, block.get(1)) {
                (Some(image), Some(text)) => Marks::Labels { rows: image, columns: text },
                _ => diagonal(&image_rows, &rows, owner == self.rank),
            };
            let image = tile::operand(&narrow(self.inputs.image, &image_rows), self.kind)?;
            let mut products = self.tile.dot_products(&image, &text)?;
            let low = self.tile.low(&products);
            self.epilogue.pass(&mut products, marks, low.as_ref())?;
            let weights = low.unwrap_or(products);
            let mut grad_image = narrow(&self.grad_image, &image_rows);
            tile::multiply_into(&mut grad_image, &weights, &text, false)?;
            // The first call waits for the sum of the ranks before; the products above hid its way here.
            sum = sum.add(&weights.tr(), &image)?;
        }
        sum.finish()
    }

    fn combine(&self, sum: &mut Tensor, part: &Tensor) -> Result<(), Error> {
        let _ = sum.f_add_(part)?;
        Ok(())
    }
}

impl<'a> Work<'a> {
    fn new(inputs: &'a Inputs<'a>, tiling: Tiling, rank: usize) -> Result<Self, Error> {
        let (kind, device) = (inputs.compute_kind(), inputs.image.device());
        let size = inputs.image.size();
        let columns = inputs.text_counts.iter().copied().max().unwrap_or(0).min(tiling.sub_chunk);
        let rows = (size[0] as usize).min(tiling.image_rows);
        let scale = inputs.log_scale.exp();
        Ok(Self {
            inputs,
            tiling,
            rank,
            scale,
            kind,
            tile: Tile::new(rows, columns, inputs.image.kind(), device, true)?,
            grad_image: Tensor::f_zeros(size.as_slice(), (kind, device))?,
            epilogue: Sigmoid::new(device, scale, inputs.bias)?,
        })
    }

    /// Labels of some images. Shape `[n]`.
    fn image_labels(&self, rows: &Range<usize>) -> Option<Tensor> {
        match self.inputs.positives {
            Positives::Labels { image, .. } => Some(narrow(image, rows)),
            Positives::Pairs => None,
        }
    }

    /// Applies the common factor and sums the scalars over all ranks: one small all-reduce.
    fn finish(
        mut self,
        mut grad_text: Tensor,
        collective: &dyn Collective,
    ) -> Result<Output, Error> {
        let sums = Tensor::from_slice(&self.epilogue.totals());
        // collective: all-reduce of the loss's sums; every rank enters it after its pass round the ring.
        let reduced = collective.all_reduce(&sums, ReduceOp::Sum)?;
        let batch = self.inputs.batch() as f64;
        let _ = self.grad_image.f_mul_scalar_(self.scale / batch)?;
        let _ = grad_text.f_mul_scalar_(self.scale / batch)?;
        // Waits for the slowest rank; the scaling above is done meanwhile.
        reduced.wait()?;
        let mean = |i: i64| sums.double_value(&[i]) / batch;
        Ok(Output {
            loss: -mean(0),
            grad_image: self.grad_image,
            grad_text,
            grad_log_scale: mean(1),
            grad_bias: mean(2),
        })
    }
}

/// The positives among `image_rows` and `text_rows` of some rank when images and texts come in pairs:
/// the diagonal of the global batch, which only meets a rank's `own` texts.
pub(super) fn diagonal(
    image_rows: &Range<usize>,
    text_rows: &Range<usize>,
    own: bool,
) -> Marks<'static> {
    let both = image_rows.start.max(text_rows.start)..image_rows.end.min(text_rows.end);
    if !own || both.is_empty() {
        return Marks::Nowhere;
    }
    Marks::Diagonal {
        row: both.start - image_rows.start,
        column: both.start - text_rows.start,
        length: both.len(),
    }
}
