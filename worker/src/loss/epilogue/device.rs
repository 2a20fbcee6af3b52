//! The passes over a tile on a GPU: the kernels of [`crate::loss::cuda`], and libtorch's operations
//! for the statistics of the softmax, some rows at a time: their temporaries stay below a tile.

use tch::{Kind, TchError, Tensor};

use super::{Marks, Stats};
use crate::loss::cuda::Positives;

/// Rows whose statistics are taken together.
const ROWS: usize = 512;

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
    rows: &Stats,
    columns: &Stats,
) -> Result<(), TchError> {
    let width = tile.size()[1];
    for from in (0..tile.size()[0]).step_by(ROWS) {
        let count = (tile.size()[0] - from).min(ROWS as i64);
        let logits = tile.narrow(0, from, count).f_mul_scalar(scale)?; // [n, m]
        let own_rows = rows.narrow(0, from, count);
        for (dim, stats) in [(1, own_rows), (0, columns.narrow(0, 0, width))] {
            let maximum = logits.f_amax([dim].as_slice(), true)?;
            let sum = logits.f_sub(&maximum)?.f_exp_()?.f_sum_dim_intlist(
                [dim].as_slice(),
                false,
                Kind::Double,
            )?; // [k]
            let maximum = maximum.squeeze_dim(dim).f_to_kind(Kind::Double)?; // [k]
            join(&stats, &Tensor::f_stack(&[maximum, sum], 1)?)?;
        }
    }
    Ok(())
}

/// See [`super::join_stats`].
pub(super) fn join(stats: &Stats, other: &Stats) -> Result<(), TchError> {
    let highest = stats.select(1, 0).f_maximum(&other.select(1, 0))?; // [k]
    let rescaled = |stats: &Tensor| {
        // Nothing on either side yet: −∞ − −∞ is NaN, and there is nothing to rescale.
        let factor = (stats.select(1, 0) - &highest).exp();
        let factor = factor.where_self(&highest.ne(f64::NEG_INFINITY), &factor.zeros_like());
        stats.select(1, 1) * factor
    };
    let sum = rescaled(stats) + rescaled(other);
    stats.shallow_clone().f_copy_(&Tensor::f_stack(&[highest, sum], 1)?)?;
    Ok(())
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
        let ((rows, columns), (mut rows2, mut columns2)) = (fresh(), fresh());
        for scale in [3.0, 80.0] {
            stats(&tile, scale, &rows, &columns).unwrap();
            host::stats(&mut tile.copy(), scale, &mut rows2, &mut columns2);
        }
        for (ours, wanted) in [(&rows, &rows2), (&columns, &columns2)] {
            let error = (ours - wanted).abs().max().double_value(&[]);
            assert!(error < 1e-12, "{error:e}");
        }
        let nothing = no_stats(2, Device::Cpu).unwrap();
        join(&nothing, &no_stats(2, Device::Cpu).unwrap()).unwrap();
        assert_eq!(nothing, no_stats(2, Device::Cpu).unwrap());
    }
}
