//! This rank's images against some text: the two passes over some columns of the pair matrix.

use std::collections::BTreeMap;
use std::ops::Range;

use tch::{Device, Kind, Tensor};

use crate::collective::{Collective, ReduceOp};
use crate::loss::epilogue::{self, Softmax, Stats};
use crate::loss::pool::Chunk;
use crate::loss::ring::{Sum, narrow};
use crate::loss::siglip::diagonal;
use crate::loss::tile::{self, Tile, Tiling};
use crate::loss::{Error, Inputs, Output, Positives};

/// Some rank's text rows and where they belong.
pub(super) struct Columns<'a> {
    /// Shape `[m, d]`.
    pub(super) text: &'a Tensor,
    /// Rows of the owner.
    pub(super) rows: Range<usize>,
    /// First of them in the global batch.
    pub(super) start: usize,
    /// Whether this rank owns them.
    pub(super) own: bool,
}

/// This rank's images and what they have added up so far.
pub(super) struct Passes<'a> {
    pub(super) inputs: &'a Inputs<'a>,
    tiling: Tiling,
    scale: f64,
    kind: Kind,
    tile: Tile,
    /// Statistics of this rank's rows. Shape `[b_r, 2]`.
    row_stats: Stats,
    /// Dot products of the first pass, tile after tile, by the columns' start, when they may be kept.
    kept: Option<BTreeMap<usize, Vec<Tensor>>>,
    /// Σ w y, without the common factor t / 2B.
    grad_image: Tensor,
    /// Adds up Σ w s and Σ_i s_ii with w = 2B G.
    epilogue: Softmax,
}

impl<'a> Passes<'a> {
    pub(super) fn new(inputs: &'a Inputs<'a>, tiling: Tiling, keep: bool) -> Result<Self, Error> {
        if matches!(inputs.positives, Positives::Labels { .. }) {
            let what = "InfoNCE has one positive per row; labels need loss kind siglip".to_owned();
            return Err(Error::Unsupported { what });
        }
        let (kind, device) = (inputs.compute_kind(), inputs.image.device());
        let size = inputs.image.size();
        let columns = inputs.text_counts.iter().copied().max().unwrap_or(0).min(tiling.sub_chunk);
        let rows = (size[0] as usize).min(tiling.image_rows);
        let scale = inputs.log_scale.exp();
        Ok(Self {
            inputs,
            tiling,
            scale,
            kind,
            // Kept dot products have memory of their own.
            tile: Tile::new(rows, columns, inputs.image.kind(), device, !keep)?,
            row_stats: epilogue::no_stats(size[0], device)?,
            kept: keep.then(BTreeMap::new),
            grad_image: Tensor::f_zeros(size.as_slice(), (kind, device))?,
            epilogue: Softmax::new(device, scale)?,
        })
    }

    fn tiles(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        tile::ranges(self.inputs.image.size()[0] as usize, self.tiling.image_rows)
    }

    /// First pass: adds the logits of these columns to this rank's rows and to `column_stats`.
    /// Shape `[m, 2]`.
    pub(super) fn first(
        &mut self,
        columns: &Columns<'_>,
        column_stats: &mut Stats,
    ) -> Result<(), Error> {
        if columns.rows.is_empty() {
            return Ok(());
        }
        let text = tile::operand(columns.text, self.kind)?;
        for image_rows in self.tiles() {
            let image = tile::operand(&narrow(self.inputs.image, &image_rows), self.kind)?;
            let mut products = match &mut self.kept {
                None => self.tile.dot_products(&image, &text)?,
                Some(kept) => {
                    let products = Tile::own_dot_products(&image, &text)?;
                    kept.entry(columns.start).or_default().push(products.shallow_clone());
                    products
                }
            };
            let mut rows = narrow(&self.row_stats, &image_rows);
            self.epilogue.first(&mut products, &mut rows, column_stats)?;
        }
        Ok(())
    }

    /// Second pass, over the same columns in any order: the gradients. Returns `sum` with
    /// Σ w x over this rank's images added, shape `[m, d]`; it is asked for only after the first
    /// tile's products.
    pub(super) fn second(
        &mut self,
        columns: &Columns<'_>,
        column_stats: &Stats,
        mut sum: Sum<'_>,
    ) -> Result<Chunk, Error> {
        if columns.rows.is_empty() || self.inputs.image.size()[0] == 0 {
            return sum.finish();
        }
        let text = tile::operand(columns.text, self.kind)?;
        let kept = self.kept.as_mut().and_then(|kept| kept.remove(&columns.start));
        let mut kept = kept.map(Vec::into_iter);
        for image_rows in self.tiles() {
            let image = tile::operand(&narrow(self.inputs.image, &image_rows), self.kind)?;
            let products = kept.as_mut().and_then(Iterator::next);
            let weights =
                self.weights(columns, &image_rows, &image, &text, column_stats, products)?;
            let mut grad_image = narrow(&self.grad_image, &image_rows);
            tile::multiply_into(&mut grad_image, &weights, &text, false)?;
            sum = sum.add(&weights.tr(), &image)?;
        }
        sum.finish()
    }

    /// A tile's w = 2B G, in the dtype in which it is multiplied. Shape `[n, m]`.
    fn weights(
        &mut self,
        columns: &Columns<'_>,
        image_rows: &Range<usize>,
        image: &Tensor,
        text: &Tensor,
        column_stats: &Stats,
        kept: Option<Tensor>,
    ) -> Result<Tensor, Error> {
        let mut products = match kept {
            Some(products) => products,
            None => self.tile.dot_products(image, text)?,
        };
        let low = self.tile.low(&products);
        let marks = diagonal(image_rows, &columns.rows, columns.own);
        let rows = narrow(&self.row_stats, image_rows);
        self.epilogue.second(&mut products, &rows, column_stats, marks, low.as_ref())?;
        Ok(low.unwrap_or(products))
    }

    /// Applies the common factor and sums the scalars over all ranks; `own_columns` are the
    /// complete statistics of this rank's texts.
    pub(super) fn finish(
        mut self,
        own_columns: &Stats,
        mut grad_text: Tensor,
        collective: &dyn Collective,
    ) -> Result<Output, Error> {
        let lse = |stats: &Stats| epilogue::log_sum_exp(stats).sum(Kind::Double).double_value(&[]);
        let [weighted, positives] = self.epilogue.totals();
        let twice_loss = lse(&self.row_stats) + lse(own_columns) - 2.0 * positives;
        let sums = Tensor::from_slice(&[twice_loss, weighted]);
        // collective: all-reduce of the loss's sums; every rank enters it after its second pass.
        let reduced = collective.all_reduce(&sums, ReduceOp::Sum)?;
        let twice_batch = 2.0 * self.inputs.batch() as f64;
        let _ = self.grad_image.f_mul_scalar_(self.scale / twice_batch)?;
        let _ = grad_text.f_mul_scalar_(self.scale / twice_batch)?;
        // Waits for the slowest rank; the scaling above is done meanwhile.
        reduced.wait()?;
        Ok(Output {
            loss: sums.double_value(&[0]) / twice_batch,
            grad_image: self.grad_image,
            grad_text,
            grad_log_scale: sums.double_value(&[1]) / twice_batch,
            grad_bias: 0.0,
        })
    }

    /// Statistics of `m` columns that nothing has been added to.
    pub(super) fn no_stats(&self, m: usize) -> Result<Stats, Error> {
        epilogue::no_stats(m as i64, self.device())
    }

    /// Device of the embeddings.
    pub(super) fn device(&self) -> Device {
        self.inputs.image.device()
    }

    /// dtype of gradients.
    pub(super) fn kind(&self) -> Kind {
        self.kind
    }
}
