//! Host memory of a libtorch tensor, lent to a communication thread.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

/// The bytes of a contiguous CPU tensor, usable from a thread that never calls ATen.
///
/// Contract: whoever makes one keeps the tensor alive, and lets nobody else touch the bytes that
/// are being transferred, until the transfer has reported its end. `collective::Pending` owns the
/// tensors for exactly that time.
#[derive(Debug, Clone, Copy)]
pub struct HostBytes {
    start: *mut u8,
    len: usize,
}

// SAFETY: the pointer is to plain numbers in libtorch-owned memory, which is not tied to a thread;
// the type's contract rules out concurrent use and use after free.
unsafe impl Send for HostBytes {}

impl HostBytes {
    /// No bytes.
    pub const EMPTY: Self = Self { start: std::ptr::null_mut(), len: 0 };

    /// Returns the bytes of `tensor`, or which property of it rules that out.
    ///
    /// # Errors
    /// The tensor is not on the CPU, not contiguous, not of dtype f32, f64, bf16 or i64, or begins
    /// at an address that is no multiple of its elements' size.
    pub fn of(tensor: &Tensor) -> Result<Self, String> {
        if tensor.device() != Device::Cpu {
            return Err(format!("tensor is on {:?}, tcp needs CPU memory", tensor.device()));
        }
        let width = match tensor.kind() {
            Kind::Float => 4,
            Kind::Double | Kind::Int64 => 8,
            Kind::BFloat16 => 2,
            other => return Err(format!("dtype {other:?} is none of f32, f64, bf16, i64")),
        };
        if !tensor.is_contiguous() {
            return Err(format!("tensor of shape {:?} is not contiguous", tensor.size()));
        }
        let start: *mut u8 = tensor.data_ptr().cast();
        if !start.addr().is_multiple_of(width) {
            let shape = tensor.size();
            return Err(format!("memory of shape {shape:?} is not aligned to {width} bytes"));
        }
        Ok(Self { start, len: tensor.numel() * width })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether these bytes, from `offset` on, are in the same place as all of `other`.
    pub fn lies_at(&self, offset: usize, other: &Self) -> bool {
        other.is_empty() || self.start.wrapping_add(offset) == other.start
    }

    /// Returns bytes to send.
    pub fn read(&self, range: Range<usize>) -> &[u8] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        if range.is_empty() {
            return &[];
        }
        // SAFETY: in bounds (asserted); alive and not written meanwhile by the type's contract.
        unsafe { std::slice::from_raw_parts(self.start.add(range.start), range.len()) }
    }

    /// Returns bytes to receive into.
    #[allow(clippy::mut_from_ref)] // as tensors are: handles share what they point at
    pub fn write(&self, range: Range<usize>) -> &mut [u8] {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {}", self.len);
        if range.is_empty() {
            return &mut [];
        }
        // SAFETY: in bounds (asserted); alive and used by this transfer alone by the type's contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_not_aligned_to_its_elements_is_refused() {
        let words = [0_u64; 3];
        let bytes: &[u8] = bytemuck::cast_slice(&words);
        for (kind, width) in
            [(Kind::BFloat16, 2), (Kind::Float, 4), (Kind::Double, 8), (Kind::Int64, 8)]
        {
            for offset in 0..=8 {
                // SAFETY: two elements of up to 8 bytes at an offset of up to 8 lie within the 24
                // bytes of `words`, which outlives the tensor; nobody writes to it, and the
                // tensor's elements are never read through it.
                let tensor = unsafe {
                    Tensor::from_blob(bytes[offset..].as_ptr(), &[2], &[1], kind, Device::Cpu)
                };
                let result = HostBytes::of(&tensor).map(|bytes| bytes.len());
                match offset % width {
                    0 => assert_eq!(result, Ok(2 * width)),
                    _ => assert!(result.is_err_and(|e| e.contains("not aligned"))),
                }
            }
        }
    }
}
