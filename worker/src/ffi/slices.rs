//! Plain slices over the numbers of host tensors, for loops that libtorch has no operation for.

use tch::{Device, Kind, Tensor};

/// Runs `body` on the elements of a contiguous f32 tensor on the CPU.
///
/// # Panics
/// The tensor is on another device, of another dtype or not contiguous.
pub(crate) fn with_f32<T>(tensor: &mut Tensor, body: impl FnOnce(&mut [f32]) -> T) -> T {
    check(tensor, Kind::Float);
    // SAFETY: `check` says that these are `numel` f32 in host memory, aligned by libtorch's
    // allocator to its elements at least. Only tiles and statistics that are being made are written
    // through this: the compute thread made them, is alone with them, and sends them later.
    body(unsafe { std::slice::from_raw_parts_mut(start(tensor), tensor.numel()) })
}

/// Runs `body` on the elements of a contiguous f64 tensor on the CPU.
///
/// # Panics
/// As [`with_f32`].
pub(crate) fn with_f64<T>(tensor: &mut Tensor, body: impl FnOnce(&mut [f64]) -> T) -> T {
    check(tensor, Kind::Double);
    // SAFETY: as in `with_f32`, with f64.
    body(unsafe { std::slice::from_raw_parts_mut(start(tensor), tensor.numel()) })
}

/// Runs `body` on the elements of a contiguous f64 tensor on the CPU, which it only reads: others may
/// read them meanwhile, as a transfer that sends them does.
///
/// # Panics
/// As [`with_f32`].
pub(crate) fn read_f64<T>(tensor: &Tensor, body: impl FnOnce(&[f64]) -> T) -> T {
    check(tensor, Kind::Double);
    // SAFETY: as in `with_f32`, but shared: nobody writes while the caller holds the tensor for
    // reading, which the order of exchanges and passes sees to.
    body(unsafe { std::slice::from_raw_parts(start::<f64>(tensor), tensor.numel()) })
}

/// Returns a copy of an i64 tensor's elements, from whichever device.
pub fn to_i64(tensor: &Tensor) -> Vec<i64> {
    let mut out = vec![0; tensor.numel()];
    let host = tensor.to_device(Device::Cpu).contiguous().view(-1);
    host.copy_data(&mut out, tensor.numel());
    out
}

fn check(tensor: &Tensor, kind: Kind) {
    assert_eq!(tensor.device(), Device::Cpu, "a slice needs host memory");
    assert_eq!(tensor.kind(), kind, "a slice of another dtype");
    assert!(tensor.is_contiguous(), "a slice needs contiguous elements");
}

/// The first element; a dangling but aligned pointer when there is none.
fn start<T>(tensor: &Tensor) -> *mut T {
    if tensor.numel() == 0 {
        return std::ptr::NonNull::dangling().as_ptr();
    }
    tensor.data_ptr().cast()
}
