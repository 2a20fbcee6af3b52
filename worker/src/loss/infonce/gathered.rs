//! Text gathered once, its gradient scattered back once.

use tch::Tensor;

use super::Options;
use super::passes::{Columns, Passes};
use crate::collective::{Collective, ReduceOp};
use crate::loss::epilogue::Softmax;
use crate::loss::ring::narrow;
use crate::loss::{Error, Inputs, Output, tile};

/// Computes the loss of the global batch and this rank's gradients, all text in memory.
///
/// Shapes: see [`Inputs`] and [`Output`]; the bias is ignored. Memory beyond inputs and outputs:
/// B·d of text, B·d of its gradient, O(B), and one tile (or all of this rank's dot products within
/// the budget).
///
/// # Errors
/// A shape that does not fit the counts, a failed peer, or libtorch running out of memory.
pub fn all_gather(
    inputs: &Inputs<'_>,
    options: Options,
    collective: &dyn Collective,
) -> Result<Output, Error> {
    let (rank, world_size) = (collective.rank(), collective.world_size());
    inputs.check(rank, world_size)?;
    let batch = inputs.batch() as u64;
    let bytes =
        inputs.image_counts[rank] as u64 * batch * inputs.compute_kind().elt_size_in_bytes() as u64;
    let mut passes = Passes::new(inputs, options.tiling, bytes <= options.logits_budget)?;
    let dim = inputs.dim();
    let all = [batch as i64, dim];
    let text = match world_size {
        1 => inputs.text.shallow_clone(),
        _ => Tensor::f_empty(all, (inputs.text.kind(), passes.device()))?,
    };
    let mut gathering = match world_size {
        1 => None,
        _ => Some(collective.all_gather(inputs.text, &text, inputs.text_counts)?),
    };
    let stats = Passes::no_stats(batch as usize)?;
    // Own columns first: the others are still on their way.
    let stretches = stretches(inputs, rank, world_size, options.tiling.sub_chunk);
    for stretch in &stretches {
        if !stretch.own
            && let Some(gathering) = gathering.take()
        {
            gathering.wait()?;
        }
        let text = match stretch.own {
            true => narrow(inputs.text, &stretch.rows),
            false => narrow(&text, &stretch.columns),
        };
        let columns = Columns { text: &text, rows: stretch.rows.clone(), own: stretch.own };
        passes.first(&columns, &mut narrow(&stats, &stretch.columns))?;
    }
    if let Some(gathering) = gathering {
        gathering.wait()?;
    }
    let mut stats = combine(&stats, collective)?;

    let grad_all_text = Tensor::f_empty(all, (passes.kind(), passes.device()))?;
    for stretch in &stretches {
        let text = narrow(&text, &stretch.columns);
        let columns = Columns { text: &text, rows: stretch.rows.clone(), own: stretch.own };
        let mut grad_text = narrow(&grad_all_text, &stretch.columns);
        passes.second(&columns, &mut narrow(&stats, &stretch.columns), &mut grad_text)?;
    }
    drop(text);
    let offset = inputs.text_offset(rank);
    stats = narrow(&stats, &(offset..offset + inputs.text_counts[rank]));
    let grad_text = match world_size {
        1 => grad_all_text,
        _ => {
            let own =
                Tensor::f_empty([inputs.text.size()[0], dim], (passes.kind(), passes.device()))?;
            collective.reduce_scatter(&grad_all_text, &own, inputs.text_counts)?.wait()?;
            own
        }
    };
    passes.finish(&stats, grad_text, collective)
}

/// A sub-chunk of one rank's text.
struct Stretch {
    /// Rows of its owner.
    rows: std::ops::Range<usize>,
    /// Rows of the global batch.
    columns: std::ops::Range<usize>,
    own: bool,
}

/// All sub-chunks, this rank's first.
fn stretches(
    inputs: &Inputs<'_>,
    rank: usize,
    world_size: usize,
    sub_chunk: usize,
) -> Vec<Stretch> {
    let mut stretches = Vec::new();
    for distance in 0..world_size {
        let owner = (rank + distance) % world_size;
        let offset = inputs.text_offset(owner);
        for rows in tile::ranges(inputs.text_counts[owner], sub_chunk) {
            let columns = offset + rows.start..offset + rows.end;
            stretches.push(Stretch { rows, columns, own: distance == 0 });
        }
    }
    stretches
}

/// Combines every rank's column statistics: the maximum of B numbers, then the sum of B rescaled
/// sums. A rank without rows has maximum −∞ and sum 0: exp(−∞) = 0 keeps it out.
fn combine(stats: &Softmax, collective: &dyn Collective) -> Result<Softmax, Error> {
    let maximum = stats.select(1, 0).contiguous(); // [B]
    let own_maximum = maximum.copy();
    collective.all_reduce(&maximum, ReduceOp::Max)?.wait()?;
    let sum = stats.select(1, 1) * (own_maximum - &maximum).exp(); // [B]
    collective.all_reduce(&sum, ReduceOp::Sum)?.wait()?;
    Ok(Tensor::f_stack(&[maximum, sum], 1)?) // [B, 2]
}
