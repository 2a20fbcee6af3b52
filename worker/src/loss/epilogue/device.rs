//! The passes over a tile on a GPU: the kernels of [`crate::loss::cuda`], and libtorch's operations
//! for the statistics of the softmax.

use tch::{Kind, TchError, Tensor};

use super::{Marks, Stats};
use crate::loss::cuda::Positives;

/// Marks in the kernels' words.
pub(super) fn positives(marks: Marks<'_>) -> Positives<'_> {
    match marks {
        Marks::Nowhere => Positives::None,
        Marks::Diagonal { row, column, length } => Positives::Diagonal { row, column, length },
        Marks::Labels { rows, columns } => Positives::Labels { rows, columns },
    }
}

/// See [`super::Softmax::first`].
pub(super) fn stats(
    tile: &Tensor,
    scale: f64,
    rows: &mut Stats,
    columns: &mut Stats,
) -> Result<(), TchError> {
    let logits = tile.f_mul_scalar(scale)?; // [n, m]
    for (dim, stats) in [(1, rows), (0, columns)] {
        let maximum = logits.f_amax([dim].as_slice(), true)?;
        let sum = (&logits - &maximum).f_exp_()?.f_sum_dim_intlist(
            [dim].as_slice(),
            false,
            Kind::Double,
        )?; // [k]
        let maximum = maximum.squeeze_dim(dim).to_kind(Kind::Double); // [k]
        join(stats, &Tensor::f_stack(&[maximum, sum], 1)?)?;
    }
    Ok(())
}

/// See [`super::join_stats`].
pub(super) fn join(stats: &mut Stats, other: &Stats) -> Result<(), TchError> {
    let highest = stats.select(1, 0).f_maximum(&other.select(1, 0))?; // [k]
    let rescaled = |stats: &Tensor| {
        // Nothing on either side yet: −∞ − −∞ is NaN, and there is nothing to rescale.
        let factor = (stats.select(1, 0) - &highest).exp().nan_to_num(0.0, None, None);
        stats.select(1, 1) * factor
    };
    let sum = rescaled(stats) + rescaled(other);
    stats.f_copy_(&Tensor::f_stack(&[highest, sum], 1)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::loss::epilogue::{host, no_stats};

    /// The operations are libtorch's own, so the CPU's stand in for the GPU's.
    #[test]
    fn statistics_by_libtorch_operations_equal_those_of_the_loops() {
        let tile = (Tensor::arange(35, (Kind::Double, Device::Cpu)) * 0.7).sin().view([5, 7]);
        let fresh = || (no_stats(5, Device::Cpu).unwrap(), no_stats(7, Device::Cpu).unwrap());
        let ((mut rows, mut columns), (mut rows2, mut columns2)) = (fresh(), fresh());
        for scale in [3.0, 80.0] {
            stats(&tile, scale, &mut rows, &mut columns).unwrap();
            host::stats(&mut tile.copy(), scale, &mut rows2, &mut columns2);
        }
        for (ours, wanted) in [(&rows, &rows2), (&columns, &columns2)] {
            let error = (ours - wanted).abs().max().double_value(&[]);
            assert!(error < 1e-12, "{error:e}");
        }
        let mut nothing = no_stats(2, Device::Cpu).unwrap();
        join(&mut nothing, &no_stats(2, Device::Cpu).unwrap()).unwrap();
        assert_eq!(nothing, no_stats(2, Device::Cpu).unwrap());
    }
}
