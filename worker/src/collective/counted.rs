//! A collective that counts what this rank enters, where the training loop enters it.
//!
//! Back ends number their own operations; two of them together, or one that numbers what it queues
//! rather than what was asked for, would say something else than a watcher needs: how far into the
//! generation's common program this rank has come. All ranks run the same program, so of two ranks
//! the one with the lower count is behind, and the other can at most wait for it.

use tch::Tensor;

use crate::collective::{Aborter, Collective, Error, Pending, ReduceOp};
use crate::progress;

/// Counts into [`progress`] and passes on.
pub(crate) struct Counted(Box<dyn Collective>);

impl Counted {
    /// Begins a generation: the count starts at zero.
    pub(crate) fn begin(collective: Box<dyn Collective>) -> Self {
        progress::begin_generation();
        Self(collective)
    }

    fn enter(&self) -> &dyn Collective {
        progress::enter_collective();
        self.0.as_ref()
    }
}

impl Collective for Counted {
    fn rank(&self) -> usize {
        self.0.rank()
    }

    fn world_size(&self) -> usize {
        self.0.world_size()
    }

    fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<Pending, Error> {
        self.enter().all_reduce(tensor, op)
    }

    fn all_gather(
        &self,
        input: &Tensor,
        output: &Tensor,
        counts: &[usize],
    ) -> Result<Pending, Error> {
        self.enter().all_gather(input, output, counts)
    }

    fn reduce_scatter(
        &self,
        input: &Tensor,
        output: &Tensor,
        counts: &[usize],
    ) -> Result<Pending, Error> {
        self.enter().reduce_scatter(input, output, counts)
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Pending, Error> {
        self.enter().broadcast(tensor, root)
    }

    fn exchange(
        &self,
        send: &Tensor,
        to: usize,
        recv: &Tensor,
        from: usize,
    ) -> Result<Pending, Error> {
        self.enter().exchange(send, to, recv, from)
    }

    fn settle(&self) -> Result<(), Error> {
        let _waiting = progress::wait_for_peers();
        self.0.settle()
    }

    fn barrier(&self) -> Result<(), Error> {
        let _waiting = progress::wait_for_peers();
        self.enter().barrier()
    }

    fn aborter(&self) -> Aborter {
        self.0.aborter()
    }

    fn sequence(&self) -> u64 {
        self.0.sequence()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::collective::Solo;

    #[test]
    fn every_operation_counts_once_and_a_new_generation_starts_at_zero() {
        let run = || {
            let counted = Counted::begin(Box::new(Solo::new()));
            let t = Tensor::zeros([2], (Kind::Double, Device::Cpu));
            counted.all_reduce(&t, ReduceOp::Sum).unwrap().wait().unwrap();
            counted.all_gather(&t, &t.copy(), &[2]).unwrap().wait().unwrap();
            counted.reduce_scatter(&t, &t.copy(), &[2]).unwrap().wait().unwrap();
            counted.broadcast(&t, 0).unwrap().wait().unwrap();
            counted.exchange(&t, 0, &t.copy(), 0).unwrap().wait().unwrap();
            counted.settle().unwrap();
            counted.barrier().unwrap();
            progress::collectives_entered()
        };
        // Nothing else in this test process goes through `Counted`.
        assert_eq!((run(), run()), (6, 6));
    }
}
