//! Two back ends as one: host tensors go over one, device tensors over the other.

use tch::{Device, Tensor};

use super::{Aborter, Collective, Error, Pending, ReduceOp};

/// The collective of ranks that compute on GPUs.
///
/// Embeddings, gradients and parameters are on the device; counts, flags and texts on the host. A
/// collective of host tensors first settles the device's: what the ranks tell one another this way
/// (*ready*, say) is said only by ranks whose earlier device collectives have all succeeded.
pub struct ByDevice {
    // Closed in this order: the device's first, while the host's still connects the ranks.
    device: Box<dyn Collective>,
    host: Box<dyn Collective>,
}

impl std::fmt::Debug for ByDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ByDevice")
    }
}

impl ByDevice {
    /// Joins the back ends of one rank; both know the same rank and world.
    ///
    /// # Panics
    /// When they do not.
    pub fn new(device: Box<dyn Collective>, host: Box<dyn Collective>) -> Self {
        let place = |c: &dyn Collective| (c.rank(), c.world_size());
        assert_eq!(place(device.as_ref()), place(host.as_ref()), "one rank has one place");
        Self { device, host }
    }

    /// Returns the back end of these tensors, ready for them.
    fn of(&self, operation: &'static str, tensors: &[&Tensor]) -> Result<&dyn Collective, Error> {
        let on_host = tensors.iter().filter(|t| t.device() == Device::Cpu).count();
        if on_host == 0 {
            return Ok(self.device.as_ref());
        }
        if on_host < tensors.len() {
            let devices: Vec<Device> = tensors.iter().map(|t| t.device()).collect();
            let reason = format!("tensors are on {devices:?}, but must be on one device");
            return Err(Error::Tensor { operation, reason });
        }
        // Waits until this rank's device collectives have succeeded, so that *ready* says so too.
        self.device.settle()?;
        Ok(self.host.as_ref())
    }
}

impl Collective for ByDevice {
    fn rank(&self) -> usize {
        self.host.rank()
    }

    fn world_size(&self) -> usize {
        self.host.world_size()
    }

    fn all_reduce(&self, tensor: &Tensor, op: ReduceOp) -> Result<Pending, Error> {
        self.of("all_reduce", &[tensor])?.all_reduce(tensor, op)
    }

    fn all_gather(
        &self,
        input: &Tensor,
        output: &Tensor,
        counts: &[usize],
    ) -> Result<Pending, Error> {
        self.of("all_gather", &[input, output])?.all_gather(input, output, counts)
    }

    fn reduce_scatter(
        &self,
        input: &Tensor,
        output: &Tensor,
        counts: &[usize],
    ) -> Result<Pending, Error> {
        self.of("reduce_scatter", &[input, output])?.reduce_scatter(input, output, counts)
    }

    fn broadcast(&self, tensor: &Tensor, root: usize) -> Result<Pending, Error> {
        self.of("broadcast", &[tensor])?.broadcast(tensor, root)
    }

    fn exchange(
        &self,
        send: &Tensor,
        to: usize,
        recv: &Tensor,
        from: usize,
    ) -> Result<Pending, Error> {
        self.of("exchange", &[send, recv])?.exchange(send, to, recv, from)
    }

    fn settle(&self) -> Result<(), Error> {
        self.device.settle()?;
        self.host.settle()
    }

    fn barrier(&self) -> Result<(), Error> {
        self.device.settle()?;
        self.host.barrier()
    }

    fn aborter(&self) -> Aborter {
        let (device, host) = (self.device.aborter(), self.host.aborter());
        Aborter::new(move |reason| {
            // The host's first: that is what the peers notice.
            host.abort(reason);
            device.abort(reason);
        })
    }

    fn sequence(&self) -> u64 {
        self.device.sequence() + self.host.sequence()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use tch::Kind;

    use super::super::Solo;
    use super::*;

    /// A device back end of one rank whose transfers fail unseen until it settles.
    #[derive(Default)]
    struct Faulty {
        fails: Arc<AtomicBool>,
        aborted: Arc<AtomicBool>,
    }

    impl Collective for Faulty {
        fn rank(&self) -> usize {
            0
        }

        fn world_size(&self) -> usize {
            1
        }

        fn all_reduce(&self, _: &Tensor, _: ReduceOp) -> Result<Pending, Error> {
            Ok(Pending::ready())
        }

        fn all_gather(&self, _: &Tensor, _: &Tensor, _: &[usize]) -> Result<Pending, Error> {
            Ok(Pending::ready())
        }

        fn reduce_scatter(&self, _: &Tensor, _: &Tensor, _: &[usize]) -> Result<Pending, Error> {
            Ok(Pending::ready())
        }

        fn broadcast(&self, _: &Tensor, _: usize) -> Result<Pending, Error> {
            Ok(Pending::ready())
        }

        fn exchange(&self, _: &Tensor, _: usize, _: &Tensor, _: usize) -> Result<Pending, Error> {
            Ok(Pending::ready())
        }

        fn settle(&self) -> Result<(), Error> {
            if self.fails.load(Ordering::Relaxed) {
                Err(Error::Aborted { reason: "a peer's GPU fell off".to_owned() })
            } else {
                Ok(())
            }
        }

        fn barrier(&self) -> Result<(), Error> {
            self.settle()
        }

        fn aborter(&self) -> Aborter {
            let aborted = Arc::clone(&self.aborted);
            Aborter::new(move |_| aborted.store(true, Ordering::Relaxed))
        }

        fn sequence(&self) -> u64 {
            5
        }
    }

    #[test]
    fn nothing_is_said_over_the_host_once_a_device_collective_has_failed() {
        let device = Faulty::default();
        let fails = Arc::clone(&device.fails);
        let both = ByDevice::new(Box::new(device), Box::new(Solo::new()));
        let flags = Tensor::zeros([4], (Kind::Double, Device::Cpu));
        both.all_reduce(&flags, ReduceOp::Max).unwrap().wait().unwrap();
        assert_eq!(both.sequence(), 6, "five of the device, one of the host");

        fails.store(true, Ordering::Relaxed);
        let error = both.all_reduce(&flags, ReduceOp::Max).unwrap_err();
        assert!(
            matches!(&error, Error::Aborted { reason } if reason.contains("fell off")),
            "{error}"
        );
        assert!(both.broadcast(&flags, 0).is_err());
        assert!(both.exchange(&flags, 0, &flags, 0).is_err());
        assert!(both.all_gather(&flags, &flags, &[4]).is_err());
        assert!(both.reduce_scatter(&flags, &flags, &[4]).is_err());
        assert!(both.barrier().is_err() && both.settle().is_err());
        assert_eq!(both.sequence(), 6, "the host back end was not touched");
    }

    #[test]
    fn an_abort_reaches_both_back_ends() {
        let device = Faulty::default();
        let aborted = Arc::clone(&device.aborted);
        let both = ByDevice::new(Box::new(device), Box::new(Solo::new()));
        both.aborter().abort("told to");
        assert!(aborted.load(Ordering::Relaxed));
        assert!(both.barrier().is_err(), "the host's is aborted too");
    }
}
