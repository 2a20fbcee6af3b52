//! The squared L2 norm of a flat gradient buffer.

use ringmaster_kernels::norm::{sum_of_squares_f32, sum_of_squares_f64};
use tch::{Device, Kind, Tensor};

use crate::ffi::memory::HostBytes;

/// Returns Σ g² in f64, always added in the same order; NaN or infinite when an element is.
///
/// Shape: `[P]`, f32 or f64, contiguous.
pub fn squared_norm(grad: &Tensor) -> f64 {
    if grad.device() != Device::Cpu {
        return grad.square().sum(Kind::Double).double_value(&[]);
    }
    let bytes = HostBytes::of(grad).expect("the flat gradient is contiguous");
    let bytes = bytes.read(0..bytes.len());
    match grad.kind() {
        Kind::Double => sum_of_squares_f64(bytemuck::cast_slice(bytes)),
        _ => sum_of_squares_f32(bytemuck::cast_slice(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_equals_libtorchs_and_a_single_nan_shows() {
        let grad = (Tensor::arange(1001, (Kind::Float, Device::Cpu)) * 0.37).sin();
        let wide = grad.to_kind(Kind::Double);
        let expected = wide.square().sum(Kind::Double).double_value(&[]);
        assert!((squared_norm(&grad) - expected).abs() < 1e-9 * expected);
        assert!((squared_norm(&wide) - expected).abs() < 1e-14 * expected);
        let _ = grad.narrow(0, 500, 1).fill_(f64::NAN);
        assert!(squared_norm(&grad).is_nan());
    }
}
