//! Device memory of a libtorch tensor, lent to a communication thread or a kernel.

use tch::{Device, Kind, Tensor};

/// The address and size of a contiguous CUDA tensor, usable from a thread that never calls ATen.
///
/// Contract: whoever makes one keeps the tensor alive until all work that was queued with it has
/// ended on the device, and orders other work on the same memory before or after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceBytes {
    address: u64,
    len: usize,
}

impl DeviceBytes {
    /// Returns the memory of `tensor`, or which property of it rules that out.
    ///
    /// # Errors
    /// The tensor is not on CUDA device `ordinal`, not contiguous, or not of dtype f32, f64, bf16
    /// or i64.
    pub fn of(tensor: &Tensor, ordinal: usize) -> Result<Self, String> {
        if tensor.device() != Device::Cuda(ordinal) {
            return Err(format!(
                "tensor is on {:?}, nccl needs memory of {:?}",
                tensor.device(),
                Device::Cuda(ordinal)
            ));
        }
        let kinds = [Kind::Float, Kind::Double, Kind::BFloat16, Kind::Int64];
        if !kinds.contains(&tensor.kind()) {
            return Err(format!("dtype {:?} is none of f32, f64, bf16, i64", tensor.kind()));
        }
        if !tensor.is_contiguous() {
            return Err(format!("tensor of shape {:?} is not contiguous", tensor.size()));
        }
        Ok(Self {
            address: address(tensor),
            len: tensor.numel() * tensor.kind().elt_size_in_bytes(),
        })
    }

    /// Memory that no tensor has, for tests that never touch it.
    #[cfg(test)]
    pub(crate) fn at(address: u64, len: usize) -> Self {
        Self { address, len }
    }

    /// Device address of the first byte; unspecified when there are none.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the part `start..start + len`.
    ///
    /// # Panics
    /// When that is out of bounds.
    #[must_use]
    pub fn part(&self, start: usize, len: usize) -> Self {
        let end = start.checked_add(len).expect("sizes of one allocation add up");
        assert!(end <= self.len, "{start}..{end} of {}", self.len);
        Self { address: self.address + start as u64, len }
    }
}

/// Returns the device address of a tensor's first element.
pub fn address(tensor: &Tensor) -> u64 {
    tensor.data_ptr() as u64
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn cpu_tensors_are_refused_by_name() {
        let tensor = Tensor::zeros([3], (Kind::Float, Device::Cpu));
        let error = DeviceBytes::of(&tensor, 1).unwrap_err();
        assert_eq!(error, "tensor is on Cpu, nccl needs memory of Cuda(1)");
    }

    #[test]
    fn parts_stay_in_bounds() {
        let bytes = DeviceBytes { address: 1000, len: 16 };
        assert_eq!(bytes.part(4, 12), DeviceBytes { address: 1004, len: 12 });
        assert!(bytes.part(16, 0).is_empty());
        assert!(std::panic::catch_unwind(|| bytes.part(8, 9)).is_err());
    }
}
