//! CLIP's InfoNCE, computed from one side (arXiv:2103.00020, §2.3).
//!
//! Text is gathered once; each rank computes only its rows of logits s_ij = t x_i·y_j, tile by
//! tile. The row log-sum-exp R_i is local; the column one, C_j, takes two all-reduces of B floats:
//! the maximum, then the rescaled sums. With G_ij = (exp(s_ij − R_i) + exp(s_ij − C_j) − 2 δ_ij) / 2B:
//! L = (1/2B) Σ_i (R_i + C_i − 2 s_ii), dX_r = t G Y (complete locally), dY = reduce-scatter of
//! t Gᵀ X_r, dt′ = Σ_ij G_ij s_ij. That is half the traffic of gathering both sides, and four
//! matrix products per pair (three when the rows fit [`Options::logits_budget`] and are kept).

use tch::{Kind, Tensor};

use super::{Error, Inputs, Output, tile};
use crate::collective::{Collective, ReduceOp};

/// How the work is divided; part of the numeric plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Bytes this rank may keep for its rows of logits instead of computing them twice.
    pub logits_budget: u64,
}

/// Computes the loss of the global batch and this rank's gradients.
///
/// Shapes: see [`Inputs`] and [`Output`]; the bias is ignored. Memory: B·d of text, B·d of its
/// gradient, and one tile of logits (or all of this rank's rows within the budget).
///
/// # Errors
/// A shape that does not fit the counts, a failed peer, or libtorch running out of memory.
pub fn all_gather(
    inputs: &Inputs<'_>,
    options: Options,
    collective: &dyn Collective,
) -> Result<Output, Error> {
    inputs.check(collective.rank(), collective.world_size())?;
    let mut rows = Rows::gather(inputs, options, collective)?;
    let (row_lse, column_lse) = rows.log_sum_exps(collective)?;
    rows.gradients(&row_lse, &column_lse, collective)
}

/// This rank's rows of the pair matrix.
struct Rows<'a> {
    inputs: &'a Inputs<'a>,
    scale: f64,
    batch: i64,
    /// Index in the global batch of this rank's first row.
    offset: i64,
    /// All text. Shape `[B, d]`.
    text: Tensor,
    tile_rows: usize,
    /// The logits of every tile, when they fit the budget.
    kept: Option<Vec<Tensor>>,
}

impl<'a> Rows<'a> {
    fn gather(
        inputs: &'a Inputs<'a>,
        options: Options,
        collective: &dyn Collective,
    ) -> Result<Self, Error> {
        let batch: usize = inputs.counts.iter().sum();
        let offset: usize = inputs.counts[..collective.rank()].iter().sum();
        let image = inputs.image;
        let text =
            Tensor::f_empty([batch as i64, image.size()[1]], (image.kind(), image.device()))?;
        collective.all_gather(&inputs.text.contiguous(), &text, inputs.counts)?.wait()?;
        let bytes = image.size()[0] as u64 * batch as u64 * image.kind().elt_size_in_bytes() as u64;
        Ok(Self {
            inputs,
            scale: inputs.log_scale.exp(),
            batch: batch as i64,
            offset: offset as i64,
            text,
            // Whole rows are needed for R_i; fewer rows at a time keep the tile small.
            tile_rows: (tile::TILE_ELEMENTS / batch.max(1)).clamp(16, tile::IMAGE_ROWS),
            kept: (bytes <= options.logits_budget).then(Vec::new),
        })
    }

    fn tiles(&self) -> Vec<std::ops::Range<usize>> {
        tile::ranges(self.inputs.image.size()[0] as usize, self.tile_rows).collect()
    }

    /// s = t X Yᵀ for some rows. Shape `[n, B]`.
    fn logits(&self, rows: &std::ops::Range<usize>) -> Result<Tensor, Error> {
        let image = self.inputs.image.narrow(0, rows.start as i64, rows.len() as i64);
        Ok(image.f_matmul(&self.text.tr())?.f_mul_scalar_(self.scale)?)
    }

    /// First pass: R of this rank's rows `[b_r]` and C of all columns `[B]`, by running maximum,
    /// so that no scale overflows. The sums are f64: the loss is a small difference of large ones.
    fn log_sum_exps(&mut self, collective: &dyn Collective) -> Result<(Tensor, Tensor), Error> {
        let (kind, device) = (self.inputs.image.kind(), self.inputs.image.device());
        let mut row_lse = Vec::new();
        let mut maximum = Tensor::full([self.batch], f64::NEG_INFINITY, (kind, device)); // [B]
        let mut sum = Tensor::zeros([self.batch], (Kind::Double, device)); // [B], Σ exp(s − maximum)
        for rows in self.tiles() {
            let logits = self.logits(&rows)?;
            let row_maximum = logits.f_amax([1_i64].as_slice(), true)?; // [n, 1]
            let row_sum = sum_exp(&logits, &row_maximum, 1)?; // [n]
            row_lse.push(row_maximum.squeeze_dim(1).to_kind(Kind::Double) + row_sum.log());
            let higher = maximum.f_maximum(&logits.f_amax([0_i64].as_slice(), false)?)?;
            sum *= (&maximum - &higher).to_kind(Kind::Double).exp();
            sum += sum_exp(&logits, &higher, 0)?;
            maximum = higher;
            if let Some(kept) = &mut self.kept {
                kept.push(logits);
            }
        }
        let global = maximum.copy();
        collective.all_reduce(&global, ReduceOp::Max)?.wait()?;
        // A rank without rows has maximum −∞ and sum 0: exp(−∞) = 0 keeps it out.
        let sum = sum * (&maximum - &global).to_kind(Kind::Double).exp();
        collective.all_reduce(&sum, ReduceOp::Sum)?.wait()?;
        let row_lse = match row_lse.is_empty() {
            true => Tensor::zeros([0], (Kind::Double, device)),
            false => Tensor::f_cat(&row_lse, 0)?,
        };
        Ok((row_lse, global.to_kind(Kind::Double) + sum.log()))
    }

    /// Second pass: G tile by tile, and everything that follows from it.
    fn gradients(
        self,
        row_lse: &Tensor,
        column_lse: &Tensor,
        collective: &dyn Collective,
    ) -> Result<Output, Error> {
        let image = self.inputs.image;
        let grad_image = image.zeros_like();
        let mut grad_all_text = self.text.zeros_like(); // [B, d]
        let mut sums = Tensor::zeros([2], (Kind::Double, image.device())); // [2B·L, 2B·dt′]
        for (index, rows) in self.tiles().into_iter().enumerate() {
            let logits = match &self.kept {
                Some(kept) => kept[index].shallow_clone(),
                None => self.logits(&rows)?,
            };
            let (start, count) = (rows.start as i64, rows.len() as i64);
            let own_row_lse = row_lse.narrow(0, start, count);
            let lse = own_row_lse.to_kind(logits.kind()).unsqueeze(1); // [n, 1]
            let mut weights = (&logits - lse).exp_(); // [n, B], 2B G
            weights += (&logits - column_lse.to_kind(logits.kind())).exp_();
            let diagonal = self.offset + start;
            let positives = |t: &Tensor| t.narrow(1, diagonal, count).diagonal(0, 0, 1);
            let _ = positives(&weights).f_sub_scalar_(2.0)?;
            let loss = own_row_lse.f_sum(Kind::Double)?
                + column_lse.narrow(0, diagonal, count).f_sum(Kind::Double)?
                - positives(&logits).f_sum(Kind::Double)? * 2.0;
            let _ = grad_image.narrow(0, start, count).f_addmm_(&weights, &self.text)?;
            let _ = grad_all_text.f_addmm_(&weights.tr(), &image.narrow(0, start, count))?;
            let grad_scale = logits.shallow_clone().f_mul_(&weights)?.f_sum(Kind::Double)?;
            sums += Tensor::f_stack(&[loss, grad_scale], 0)?;
        }
        self.finish(grad_image, grad_all_text, &sums, collective)
    }

    fn finish(
        self,
        mut grad_image: Tensor,
        grad_all_text: Tensor,
        sums: &Tensor,
        collective: &dyn Collective,
    ) -> Result<Output, Error> {
        let mut grad_text = self.inputs.text.zeros_like();
        let scatter = collective.reduce_scatter(&grad_all_text, &grad_text, self.inputs.counts)?;
        let sums = sums.to_device(tch::Device::Cpu).contiguous();
        collective.all_reduce(&sums, ReduceOp::Sum)?.wait()?;
        scatter.wait()?;
        let twice_batch = 2.0 * self.batch as f64;
        let _ = grad_image.f_mul_scalar_(self.scale / twice_batch)?;
        let _ = grad_text.f_mul_scalar_(self.scale / twice_batch)?;
        Ok(Output {
            loss: sums.double_value(&[0]) / twice_batch,
            grad_image,
            grad_text,
            grad_log_scale: sums.double_value(&[1]) / twice_batch,
            grad_bias: 0.0,
        })
    }
}

/// Σ exp(logits − maximum) along `dim`, in f64. The maximum broadcasts against the logits.
fn sum_exp(logits: &Tensor, maximum: &Tensor, dim: i64) -> Result<Tensor, tch::TchError> {
    let mut shifted = logits.f_sub(maximum)?;
    shifted.f_exp_()?.f_sum_dim_intlist([dim].as_slice(), false, Kind::Double)
}
