//! The squared L2 norm of a flat buffer.

const LANES: usize = 16;

/// Returns Σ v² in f64, always added in the same order; NaN or infinite when an element is.
#[inline(never)]
pub fn sum_of_squares_f32(values: &[f32]) -> f64 {
    sum_of_squares(values)
}

/// The same for f64.
#[inline(never)]
pub fn sum_of_squares_f64(values: &[f64]) -> f64 {
    sum_of_squares(values)
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
    fn every_element_counts_at_any_length() {
        for length in [0, 1, 15, 16, 17, 1003] {
            let values: Vec<f64> = (0..length).map(|i| f64::from(i) * 0.5).collect();
            let expected: f64 = values.iter().map(|v| v * v).sum();
            let narrow: Vec<f32> = values.iter().map(|v| *v as f32).collect();
            assert!((sum_of_squares_f64(&values) - expected).abs() <= 1e-12 * expected, "{length}");
            assert_eq!(sum_of_squares_f32(&narrow), sum_of_squares_f64(&values), "{length}");
        }
        assert!(sum_of_squares_f32(&[1.0, f32::NAN]).is_nan());
    }
}
