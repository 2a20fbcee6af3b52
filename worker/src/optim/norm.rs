//! The squared L2 norm of a flat gradient buffer.

use tch::{Device, Kind, Tensor};

use crate::ffi::memory::HostBytes;

const LANES: usize = 16;

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
        Kind::Double => sum_of_squares(bytemuck::cast_slice::<u8, f64>(bytes)),
        _ => sum_of_squares(bytemuck::cast_slice::<u8, f32>(bytes)),
    }
}

fn sum_of_squares<T: Copy + Into<f64>>(values: &[T]) -> f64 {
    let square = |value: T| {
        let value: f64 = value.into();
        value * value
    };
    let mut sums = [0.0_f64; LANES];
    let chunks = values.chunks_exact(LANES);
    let tail: f64 = chunks.remainder().iter().map(|&v| square(v)).sum();
    for chunk in chunks {
        for (sum, &value) in sums.iter_mut().zip(chunk) {
            *sum += square(value);
        }
    }
    sums.iter().sum::<f64>() + tail
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
