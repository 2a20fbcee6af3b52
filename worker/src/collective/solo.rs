//! A world of one rank: every collective is the identity.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tch::Tensor;

use super::{Aborter, Collective, Error, Pending, ReduceOp};

/// The collective of a single rank.
#[derive(Debug, Default)]
pub struct Solo {
    aborted: Arc<AtomicBool>,
    sequence: Cell<u64>,
}

impl Solo {
    /// Returns the collective of a world of one.
    pub fn new() -> Self {
        Self::default()
    }

    fn step(&self) -> Result<(), Error> {
        self.sequence.set(self.sequence.get() + 1);
        if self.aborted.load(Ordering::Relaxed) {
            return Err(Error::Aborted { reason: "aborted by this process".to_owned() });
        }
        Ok(())
    }

    fn copy(&self, from: &Tensor, to: &Tensor) -> Result<Pending, Error> {
        self.step()?;
        let mut to = to.shallow_clone();
        to.f_copy_(from).map_err(|e| Error::Tensor { operation: "copy", reason: e.to_string() })?;
        Ok(Pending::ready())
    }
}

impl Collective for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn all_reduce(&self, _tensor: &Tensor, _op: ReduceOp) -> Result<Pending, Error> {
        self.step().map(|()| Pending::ready())
    }

    fn all_gather(
        &self,
        input: &Tensor,
        output: &Tensor,
        _counts: &[usize],
    ) -> Result<Pending, Error> {
        self.copy(input, output)
    }

    fn reduce_scatter(
        &self,
        input: &Tensor,
        output: &Tensor,
        _counts: &[usize],
    ) -> Result<Pending, Error> {
        self.copy(input, output)
    }

    fn broadcast(&self, _tensor: &Tensor, _root: usize) -> Result<Pending, Error> {
        self.step().map(|()| Pending::ready())
    }

    fn exchange(
        &self,
        send: &Tensor,
        _to: usize,
        recv: &Tensor,
        _from: usize,
    ) -> Result<Pending, Error> {
        self.copy(send, recv)
    }

    fn barrier(&self) -> Result<(), Error> {
        self.step()
    }

    fn aborter(&self) -> Aborter {
        let aborted = Arc::clone(&self.aborted);
        Aborter::new(move |_| aborted.store(true, Ordering::Relaxed))
    }

    fn sequence(&self) -> u64 {
        self.sequence.get()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::contract_tests::{Backend, contract};
    use super::*;

    #[derive(Default)]
    struct Alone;

    impl Backend for Alone {
        const WORLD_SIZES: &'static [usize] = &[1];

        fn ring<T: Send>(
            &self,
            _world_size: usize,
            _deadline: Duration,
            body: impl Fn(&dyn Collective) -> T + Sync,
        ) -> Vec<T> {
            vec![body(&Solo::new())]
        }
    }

    contract!(alone, Alone);
}
