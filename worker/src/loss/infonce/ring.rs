//! Text passed round the ring twice: no rank holds all of it.

use std::ops::Range;

use tch::Tensor;

use super::Options;
use super::passes::{Columns, Passes};
use crate::collective::Collective;
use crate::loss::epilogue::{self, Stats};
use crate::loss::pool::Chunk;
use crate::loss::ring::{BlockWork, Ring, Sum, narrow};
use crate::loss::{Error, Inputs, Output};

/// Computes the loss of the global batch and this rank's gradients, text passed round the ring.
///
/// Shapes: see [`Inputs`] and [`Output`]; the bias is ignored. In the first pass every
/// column's statistics travel behind its text, in the second they travel with it and the gradient
/// behind. Memory beyond inputs and outputs: four sub-chunks of text or its gradient and one tile,
/// for any number of ranks, and 32 bytes a row of this rank's. Four matrix products per pair; one and
/// a half times the traffic of [`super::all_gather`].
///
/// # Errors
/// As [`super::all_gather`], and a group that does not divide the ranks.
pub fn ring(
    inputs: &Inputs<'_>,
    options: Options,
    collective: &dyn Collective,
) -> Result<Output, Error> {
    let rank = collective.rank();
    inputs.check(rank, collective.world_size())?;
    let ring = Ring::new(collective, inputs.text_counts, options.group, options.tiling.sub_chunk)?;
    let passes = Passes::new(inputs, options.tiling, false)?;
    let own_stats = passes.no_stats(inputs.text_counts[rank])?;

    let mut first = First { passes, rank };
    let mut pools = ring.pools(&first.block(0..0), &own_stats)?;
    ring.pass(&mut first, &own_stats, &mut pools)?;

    let passes = first.passes;
    let grad_text =
        Tensor::f_empty(inputs.text.size().as_slice(), (passes.kind(), passes.device()))?;
    let mut second = Second { passes, rank, own_stats };
    let mut pools = ring.pools_after(pools, &second.own_stats, &grad_text)?;
    ring.pass(&mut second, &grad_text, &mut pools)?;
    second.passes.finish(&second.own_stats, grad_text, collective)
}

/// First pass: text goes round, its columns' statistics return to its owner.
struct First<'a> {
    passes: Passes<'a>,
    rank: usize,
}

impl BlockWork for First<'_> {
    fn block(&self, rows: Range<usize>) -> Vec<Tensor> {
        vec![narrow(self.passes.inputs.text, &rows)]
    }

    fn compute(
        &mut self,
        block: &[Tensor],
        owner: usize,
        rows: Range<usize>,
        sum: Sum<'_>,
    ) -> Result<Chunk, Error> {
        let (mut sum, empty) = sum.ready()?;
        if empty {
            epilogue::clear_stats(sum.first())?;
        }
        let start = self.passes.inputs.text_offset(owner) + rows.start;
        let columns = Columns { text: &block[0], rows, start, own: owner == self.rank };
        self.passes.first(&columns, sum.first_mut())?;
        Ok(sum)
    }

    fn combine(&self, sum: &mut Stats, part: &Stats) -> Result<(), Error> {
        epilogue::join_stats(sum, part)
    }
}

/// Second pass: text and statistics go round, the text's gradient returns to its owner.
struct Second<'a> {
    passes: Passes<'a>,
    rank: usize,
    own_stats: Stats,
}

impl BlockWork for Second<'_> {
    fn block(&self, rows: Range<usize>) -> Vec<Tensor> {
        vec![narrow(self.passes.inputs.text, &rows), narrow(&self.own_stats, &rows)]
    }

    fn compute(
        &mut self,
        block: &[Tensor],
        owner: usize,
        rows: Range<usize>,
        sum: Sum<'_>,
    ) -> Result<Chunk, Error> {
        let start = self.passes.inputs.text_offset(owner) + rows.start;
        let columns = Columns { text: &block[0], rows, start, own: owner == self.rank };
        self.passes.second(&columns, &block[1], sum)
    }

    fn combine(&self, sum: &mut Tensor, part: &Tensor) -> Result<(), Error> {
        let _ = sum.f_add_(part)?;
        Ok(())
    }
}
