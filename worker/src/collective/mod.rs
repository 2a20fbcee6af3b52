//! Collectives between the ranks of one generation.
//!
//! [`Collective`] is the contract; [`tcp`] implements it over plain sockets for CPU tensors,
//! [`nccl`] for CUDA tensors, [`ByDevice`] for both at once, [`Solo`] for a world of one. Every operation
//! is started in the same order on every rank, returns a [`Pending`] at once and runs on the back end's own
//! thread, so communication overlaps the caller's computation. Reductions over tcp add in rank order: the
//! same bits on every rank, every run; NCCL chooses its own order, the same on every rank.

mod by_device;
pub(crate) mod bytes;
#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod contract_tests;
pub(crate) mod counted;
pub mod nccl;
mod pending;
mod solo;
pub mod tcp;
#[doc(hidden)]
pub mod testing;

use std::sync::Arc;
use std::time::Duration;

use tch::Tensor;

pub use by_device::ByDevice;
pub use pending::{Pending, take_waited, waited};
pub use ringmaster_kernels::reduce::ReduceOp;
pub use solo::Solo;

pub use crate::split::even_counts;

/// Why a collective failed. After any of these the ring is broken: form a new generation.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// A peer's connection closed or failed in the middle of the run.
    #[error("lost rank {peer} in {operation} #{sequence}: {reason}")]
    PeerLost {
        peer: usize,
        /// Name of the operation this rank was in.
        operation: &'static str,
        /// Sequence number of that operation.
        sequence: u64,
        reason: String,
    },
    /// [`Aborter::abort`] was called, here or by a failure of an earlier operation.
    #[error("collective aborted: {reason}")]
    Aborted { reason: String },
    /// The operation outlasted its deadline.
    #[error(
        "{operation} #{sequence} exceeded its deadline of {deadline:?} while waiting for rank {peer}"
    )]
    Deadline {
        operation: &'static str,
        sequence: u64,
        /// The rank that had not answered.
        peer: usize,
        deadline: Duration,
    },
    /// A peer is in another operation, or with other sizes: the ranks' programs differ.
    #[error(
        "rank {peer} sent {got} while this rank is in {want}; \
         all ranks must start the same collectives in the same order"
    )]
    Mismatch { peer: usize, got: String, want: String },
    /// The ring could not be formed.
    #[error("cannot form the ring of {world_size} ranks: {reason}")]
    Connect {
        world_size: usize,
        /// The ranks that were not to be reached, or did not come; empty where it is not known.
        peers: Vec<usize>,
        reason: String,
    },
    /// A tensor the back end cannot work on.
    #[error("{operation}: {reason}")]
    Tensor {
        operation: &'static str,
        /// Which property is wrong: device, dtype, layout or shape.
        reason: String,
    },
}

/// Ends every collective of a generation from any thread; waiting ranks return within a second.
#[derive(Clone)]
pub struct Aborter(Arc<dyn Fn(&str) + Send + Sync>);

impl Aborter {
    pub(crate) fn new(abort: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Arc::new(abort))
    }

    /// Aborts with a reason that the waiting operations report.
    pub fn abort(&self, reason: &str) {
        (self.0)(reason);
    }
}

impl std::fmt::Debug for Aborter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Aborter")
    }
}

/// Operations that all ranks of a generation start in the same order.
///
/// Tensors must be contiguous and of dtype f32, f64, bf16 or i64. The caller leaves them alone
/// until [`Pending::wait`] returns. Shares may be uneven or empty.
pub trait Collective: Send {
    /// This process's place in the ring, `0..world_size`.
    fn rank(&self) -> usize;

    /// Number of ranks in the ring.
    fn world_size(&self) -> usize;

    /// Combines `tensor` over all ranks, in place.
    fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<Pending, Error>;

    /// Concatenates every rank's `input` along dimension 0 into `output`.
    ///
    /// Shapes: input `[counts[rank], …]`, output `[Σ counts, …]`.
    fn all_gather(
        &self,
        input: &Tensor,
        output: &Tensor,
        counts: &[usize],
    ) -> Result<Pending, Error>;

    /// Sums `input` over all ranks and leaves this rank's rows of the sum in `output`.
    ///
    /// Shapes: input `[Σ counts, …]`, output `[counts[rank], …]`.
    fn reduce_scatter(
        &self,
        input: &Tensor,
        output: &Tensor,
        counts: &[usize],
    ) -> Result<Pending, Error>;

    /// Copies `tensor` of rank `root` to every rank.
    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Pending, Error>;

    /// Sends `send` to rank `to` while it receives `recv` from rank `from`.
    ///
    /// All ranks call it together, each rank being the `to` of exactly one and the `from` of
    /// exactly one: a ring, a ring between groups, a rotation inside a group. Lengths may differ
    /// from rank to rank; a receiver knows the length that its sender sends.
    fn exchange(
        &self,
        send: &Tensor,
        to: usize,
        recv: &Tensor,
        from: usize,
    ) -> Result<Pending, Error>;

    /// Returns once everything that this rank has started so far has succeeded here, device work
    /// included; what it brought may be kept from then on.
    ///
    /// # Errors
    /// What ended one of them.
    fn settle(&self) -> Result<(), Error> {
        // For back ends whose `Pending::wait` returns no sooner than that.
        Ok(())
    }

    /// Returns once every rank has called it.
    fn barrier(&self) -> Result<(), Error>;

    /// Returns a handle that ends every collective from another thread.
    fn aborter(&self) -> Aborter;

    /// Number of collectives started so far in this generation.
    fn sequence(&self) -> u64;
}
