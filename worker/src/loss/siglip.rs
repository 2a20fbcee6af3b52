//! SigLIP's pairwise sigmoid loss round the ring of ranks (arXiv:2303.15343, §3.2 and §3.3).
//!
//! With t = exp(t′), s_ij = t x_i·y_j + β and z_ij = +1 on the diagonal of the global batch, −1
//! elsewhere: L = −(1/B) Σ_ij log σ(z_ij s_ij). Let g_ij = ∂L/∂s_ij = −z_ij σ(−z_ij s_ij) / B. Then
//! dX_i = t Σ_j g_ij y_j, dY_j = t Σ_i g_ij x_i, dt′ = Σ_ij g_ij (s_ij − β) and dβ = Σ_ij g_ij.
//!
//! At hop h rank r works on the text of rank (r − h) mod W. Text moves on in sub-chunks; each
//! sub-chunk's gradient travels the same way one hop behind, collecting every rank's part, and is
//! home after W hops. Loss and gradient of a tile come from one pass over its logits, so nothing
//! is kept for a backward pass: three matrix products per pair instead of autograd's three plus
//! the pair matrix. The transfer of the next sub-chunk is in flight while a tile is computed.

use tch::{Kind, Tensor};

use super::{Error, Inputs, Output, tile};
use crate::collective::{Collective, Pending, ReduceOp};

/// How the work is divided; part of the numeric plan, since it fixes the order of additions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Text rows that travel together.
    pub sub_chunk: usize,
}

/// Computes the loss of the global batch and this rank's gradients.
///
/// Shapes: see [`Inputs`] and [`Output`]. The loss and the two scalar gradients accumulate in f64
/// and are summed over all ranks; the embedding gradients are complete when this returns.
///
/// # Errors
/// A shape that does not fit the counts, a failed peer, or libtorch running out of memory.
pub fn ring(
    inputs: &Inputs<'_>,
    options: Options,
    collective: &dyn Collective,
) -> Result<Output, Error> {
    let (rank, world_size) = (collective.rank(), collective.world_size());
    inputs.check(rank, world_size)?;
    let mut work = Work::new(inputs, rank);
    let most = inputs.counts.iter().copied().max().unwrap_or(0);
    let mut grad_text = inputs.text.zeros_like();
    // Every rank walks the same sub-chunk starts, so that the exchanges pair up even when some
    // ranks hold fewer rows (their later sub-chunks are empty).
    for range in tile::ranges(most, options.sub_chunk) {
        let lap = Lap { inputs, collective, start: range.start, step: range.len() };
        lap.run(&mut work, &mut grad_text)?;
    }
    work.finish(grad_text, collective)
}

/// One sub-chunk of every rank's text going once round the ring.
struct Lap<'a> {
    inputs: &'a Inputs<'a>,
    collective: &'a dyn Collective,
    start: usize,
    step: usize,
}

impl Lap<'_> {
    fn run(&self, work: &mut Work<'_>, grad_text: &mut Tensor) -> Result<(), Error> {
        let (rank, world_size) = (self.collective.rank(), self.collective.world_size());
        let mut text = self.rows_of(self.inputs.text, rank);
        // The gradient of `text`, as far as the ranks before this one have added to it.
        let mut arriving: Option<(Tensor, Pending)> = None;
        for hop in 0..world_size {
            let owner = (rank + world_size - hop) % world_size;
            let next_text = self.start_text(&text, owner, hop)?;
            let mut partial = text.zeros_like(); // [sub-chunk, d]
            work.add_tiles(&text, owner, self.start, &mut partial)?;
            if let Some((received, pending)) = arriving.take() {
                pending.wait()?;
                partial += received;
            }
            arriving = self.start_gradient(partial, owner, grad_text)?;
            if let Some((received, pending)) = next_text {
                pending.wait()?;
                text = received;
            }
        }
        if let Some((received, pending)) = arriving {
            pending.wait()?;
            self.rows_of(grad_text, rank).copy_(&received);
        }
        Ok(())
    }

    /// Passes the text on while the tile is computed; after the last hop nobody needs it.
    fn start_text(
        &self,
        text: &Tensor,
        owner: usize,
        hop: usize,
    ) -> Result<Option<(Tensor, Pending)>, Error> {
        if hop + 1 == self.collective.world_size() {
            return Ok(None);
        }
        let received = self.empty_like_sub_chunk_before(owner);
        let pending = self.pass_on(text, &received)?;
        Ok(Some((received, pending)))
    }

    /// Passes the text's gradient on; alone in the world it is already home.
    fn start_gradient(
        &self,
        partial: Tensor,
        owner: usize,
        grad_text: &Tensor,
    ) -> Result<Option<(Tensor, Pending)>, Error> {
        if self.collective.world_size() == 1 {
            self.rows_of(grad_text, owner).copy_(&partial);
            return Ok(None);
        }
        let received = self.empty_like_sub_chunk_before(owner);
        let pending = self.pass_on(&partial, &received)?;
        Ok(Some((received, pending)))
    }

    fn pass_on(&self, send: &Tensor, recv: &Tensor) -> Result<Pending, crate::collective::Error> {
        let (rank, world_size) = (self.collective.rank(), self.collective.world_size());
        let (next, previous) = ((rank + 1) % world_size, (rank + world_size - 1) % world_size);
        self.collective.exchange(send, next, recv, previous)
    }

    /// What arrives while this rank handles `owner`'s sub-chunk is that of the rank before it.
    fn empty_like_sub_chunk_before(&self, owner: usize) -> Tensor {
        let world_size = self.collective.world_size();
        let rows = self.rows((owner + world_size - 1) % world_size);
        let text = self.inputs.text;
        Tensor::empty([rows as i64, text.size()[1]], (text.kind(), text.device()))
    }

    fn rows(&self, owner: usize) -> usize {
        self.inputs.counts[owner].saturating_sub(self.start).min(self.step)
    }

    fn rows_of(&self, tensor: &Tensor, owner: usize) -> Tensor {
        let rows = self.rows(owner) as i64;
        let start = if rows == 0 { 0 } else { self.start as i64 };
        tensor.narrow(0, start, rows)
    }
}

/// This rank's accumulators.
struct Work<'a> {
    inputs: &'a Inputs<'a>,
    rank: usize,
    scale: f64,
    batch: f64,
    grad_image: Tensor,
    /// [Σ log σ(z s), Σ g (s − β), Σ g], f64, on the device.
    sums: Tensor,
}

impl<'a> Work<'a> {
    fn new(inputs: &'a Inputs<'a>, rank: usize) -> Self {
        Self {
            inputs,
            rank,
            scale: inputs.log_scale.exp(),
            batch: inputs.counts.iter().sum::<usize>() as f64,
            grad_image: inputs.image.zeros_like(),
            sums: Tensor::zeros([3], (Kind::Double, inputs.image.device())),
        }
    }

    /// Adds all pairs of this rank's images with `text`, rows `start..` of rank `owner`.
    fn add_tiles(
        &mut self,
        text: &Tensor,
        owner: usize,
        start: usize,
        grad_text: &mut Tensor,
    ) -> Result<(), Error> {
        let columns = text.size()[0] as usize;
        if columns == 0 {
            return Ok(());
        }
        let rows = self.inputs.image.size()[0] as usize;
        for range in tile::ranges(rows, tile::IMAGE_ROWS) {
            // The diagonal of the global batch runs through the tile where image and text rows of
            // the same rank coincide.
            let positives = (owner == self.rank)
                .then(|| start.max(range.start)..(start + columns).min(range.end))
                .filter(|overlap| !overlap.is_empty());
            let positives =
                positives.map(|p| (p.start - range.start, p.start - start, p.end - p.start));
            self.add_tile(range, text, positives, grad_text)?;
        }
        Ok(())
    }

    /// One pass over one tile of logits: loss, both scalar gradients, dX and the partial dY.
    ///
    /// `positives` = (row, column, count) of the stretch of diagonal in this tile.
    fn add_tile(
        &mut self,
        rows: std::ops::Range<usize>,
        text: &Tensor,
        positives: Option<(usize, usize, usize)>,
        grad_text: &mut Tensor,
    ) -> Result<(), Error> {
        let (first, count) = (rows.start as i64, rows.len() as i64);
        let image = self.inputs.image.narrow(0, first, count); // [n, d]
        let mut logits = image.f_matmul(&text.tr())?; // [n, m], x·y
        let _ = logits.f_mul_scalar_(self.scale)?.f_add_scalar_(self.inputs.bias)?;
        // log σ(−s) for all pairs; σ(s) = −B g for the negatives.
        let mut log_sum = logits.f_neg()?.f_log_sigmoid()?.f_sum(Kind::Double)?;
        let weights = logits.f_sigmoid()?; // [n, m], B g
        if let Some((row, column, length)) = positives {
            // A positive has z = +1: its log σ(s) = log σ(−s) + s, and B g = σ(s) − 1.
            let diagonal = |t: &Tensor| {
                t.narrow(0, row as i64, length as i64)
                    .narrow(1, column as i64, length as i64)
                    .diagonal(0, 0, 1)
            };
            log_sum += diagonal(&logits).f_sum(Kind::Double)?;
            let _ = diagonal(&weights).f_sub_scalar_(1.0)?;
        }
        let mut sums = [log_sum, Tensor::default(), weights.f_sum(Kind::Double)?];
        // dX = (t/B) (B g) Y and dY = (t/B) (B g)ᵀ X; the common factor comes last, in `finish`.
        let _ = self.grad_image.narrow(0, first, count).f_addmm_(&weights, text)?;
        let _ = grad_text.f_addmm_(&weights.tr(), &image)?;
        // Σ g (s − β), in place: the logits are not needed after this.
        let _ = logits.f_sub_scalar_(self.inputs.bias)?.f_mul_(&weights)?;
        sums[1] = logits.f_sum(Kind::Double)?;
        self.sums += Tensor::f_stack(&sums, 0)?;
        Ok(())
    }

    /// Applies the common factor and sums the scalars over all ranks: one small all-reduce.
    fn finish(
        mut self,
        mut grad_text: Tensor,
        collective: &dyn Collective,
    ) -> Result<Output, Error> {
        let factor = self.scale / self.batch;
        let _ = self.grad_image.f_mul_scalar_(factor)?;
        let _ = grad_text.f_mul_scalar_(factor)?;
        let sums = self.sums.to_device(tch::Device::Cpu).contiguous();
        collective.all_reduce(&sums, ReduceOp::Sum)?.wait()?;
        let value = |i: i64| sums.double_value(&[i]) / self.batch;
        Ok(Output {
            loss: -value(0),
            grad_image: self.grad_image,
            grad_text,
            grad_log_scale: value(1),
            grad_bias: value(2),
        })
    }
}
