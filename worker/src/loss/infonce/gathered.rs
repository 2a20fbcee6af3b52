//! Text gathered once, its gradient reduced and scattered once.

use tch::Tensor;

use super::Options;
use super::passes::{Columns, Passes};
use crate::collective::{Collective, Pending, ReduceOp};
use crate::loss::epilogue::Stats;
use crate::loss::pool::{Chunk, Pool};
use crate::loss::ring::{Sum, narrow};
use crate::loss::{Error, Inputs, Output, tile};

/// Computes the loss of the global batch and this rank's gradients, all text in memory.
///
/// Shapes: see [`Inputs`] and [`Output`]; the bias is ignored. Memory beyond inputs and outputs:
/// B·d of text, four ranks' rows of its gradient, O(B), and one tile (or all of this rank's dot
/// products within the budget).
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
        // collective: all-gather of the text. Every rank enters it before its first tile, also one
        // without rows of its own.
        _ => Some(collective.all_gather(inputs.text, &text, inputs.text_counts)?),
    };
    let stats = passes.no_stats(batch as usize)?;
    // Own columns first: the others are still on their way.
    let blocks = blocks(inputs, rank, world_size, options.tiling.sub_chunk);
    for block in &blocks {
        if !block.own
            && let Some(gathering) = gathering.take()
        {
            // Waits until every rank's text is here: the first column of another rank needs it.
            gathering.wait()?;
        }
        let text = if block.own {
            narrow(inputs.text, &block.rows)
        } else {
            narrow(&text, &block.columns)
        };
        let columns = block.columns_of(&text);
        passes.first(&columns, &mut narrow(&stats, &block.columns))?;
    }
    // Still in flight where the other ranks have no text.
    if let Some(gathering) = gathering {
        gathering.wait()?;
    }
    let mut stats = combine(&stats, collective)?;

    let grad_text = reduce_scatter_gradient(&mut passes, &text, &stats, &blocks, collective)?;
    drop(text);
    let offset = inputs.text_offset(rank);
    stats = narrow(&stats, &(offset..offset + inputs.text_counts[rank]));
    passes.finish(&stats, grad_text, collective)
}

/// The second pass over all text, and the sum of all ranks' gradients of this rank's: a
/// reduce-scatter one rank's part at a time, each in flight while the next is computed. Every rank
/// adds in the order of the distance that a part has come, its own last.
fn reduce_scatter_gradient(
    passes: &mut Passes<'_>,
    text: &Tensor,
    stats: &Stats,
    blocks: &[TextBlock],
    collective: &dyn Collective,
) -> Result<Tensor, Error> {
    let (rank, world_size) = (collective.rank(), collective.world_size());
    let counts = passes.inputs.text_counts;
    let like = Tensor::f_empty([0, passes.inputs.dim()], (passes.kind(), passes.device()))?;
    let mut pool = Pool::like(&[like], counts.iter().copied().max().unwrap_or(0));
    let mut sum: Option<Chunk> = None;
    let mut in_flight: Option<(Chunk, Chunk, Pending)> = None;
    for distance in (1..world_size).chain([0]) {
        let owner = (rank + distance) % world_size;
        let part = pool.take(counts[owner])?;
        for block in blocks.iter().filter(|block| block.owner == owner) {
            let text = narrow(text, &block.columns);
            let columns = block.columns_of(&text);
            let stats = narrow(stats, &block.columns);
            let rows = Chunk::lent(vec![narrow(part.first(), &block.rows)]);
            passes.second(&columns, &stats, Sum::Empty(rows))?;
        }
        if let Some((sent, received, pending)) = in_flight.take() {
            // Waits for the rank that computed this rank's part while this one computed the part it sent.
            pending.wait()?;
            pool.give(sent);
            sum = Some(add(sum, received, &mut pool)?);
        }
        if distance == 0 {
            return Ok(add(sum, part, &mut pool)?.first().shallow_clone());
        }
        let received = pool.take(counts[rank])?;
        let from = (rank + world_size - distance) % world_size;
        // collective: exchange over the same distance on every rank. The part goes to the owner of its
        // rows and one of this rank's comes from as far behind; the next part is computed meanwhile.
        let pending = collective.exchange(part.first(), owner, received.first(), from)?;
        in_flight = Some((part, received, pending));
    }
    unreachable!("the last distance is this rank's own")
}

fn add(sum: Option<Chunk>, part: Chunk, pool: &mut Pool) -> Result<Chunk, Error> {
    let Some(mut sum) = sum else { return Ok(part) };
    let _ = sum.first_mut().f_add_(part.first())?;
    pool.give(part);
    Ok(sum)
}

/// Up to a sub-chunk of one rank's text.
struct TextBlock {
    owner: usize,
    /// Rows of its owner.
    rows: std::ops::Range<usize>,
    /// Rows of the global batch.
    columns: std::ops::Range<usize>,
    own: bool,
}

impl TextBlock {
    fn columns_of<'t>(&self, text: &'t Tensor) -> Columns<'t> {
        Columns { text, rows: self.rows.clone(), start: self.columns.start, own: self.own }
    }
}

/// All blocks, this rank's first.
fn blocks(inputs: &Inputs<'_>, rank: usize, world_size: usize, sub_chunk: usize) -> Vec<TextBlock> {
    let mut blocks = Vec::new();
    for distance in 0..world_size {
        let owner = (rank + distance) % world_size;
        let offset = inputs.text_offset(owner);
        for rows in tile::ranges(inputs.text_counts[owner], sub_chunk) {
            let columns = offset + rows.start..offset + rows.end;
            blocks.push(TextBlock { owner, rows, columns, own: distance == 0 });
        }
    }
    blocks
}

/// Combines every rank's column statistics: the maximum of B numbers, then the sum of B rescaled
/// sums. A rank without rows has maximum −∞ and sum 0: exp(−∞) = 0 keeps it out.
fn combine(stats: &Stats, collective: &dyn Collective) -> Result<Stats, Error> {
    let maximum = stats.select(1, 0).contiguous(); // [B]
    let own_maximum = maximum.copy();
    // collective: all-reduce. Waited for at once, as every other rank's maximum rescales the sums.
    collective.all_reduce(&maximum, ReduceOp::Max)?.wait()?;
    let sum = stats.select(1, 1) * (own_maximum - &maximum).exp(); // [B]
    // collective: all-reduce. The gradients of the second pass need every column's complete sum.
    collective.all_reduce(&sum, ReduceOp::Sum)?.wait()?;
    Ok(Tensor::f_stack(&[maximum, sum], 1)?) // [B, 2]
}
