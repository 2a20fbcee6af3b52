//! What happens to a tile of dot products between the matrix products: one pass that turns it, in
//! place, into the weights of both gradients and adds up what the loss is made of.
//!
//! In host memory the passes are loops of our own (`host`). On a GPU those that make weights are one
//! kernel each; the softmax's statistics are libtorch's operations (`device`).

mod device;
mod host;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use ringmaster_kernels::tile;
use tch::{Device, Kind, Tensor};

use super::Error;
use super::cuda::Epilogues;
use crate::ffi::slices;

/// Which entries of a tile are positives.
#[derive(Debug, Clone, Copy)]
pub(super) enum Marks<'a> {
    /// None of them.
    Nowhere,
    /// Entries (row + k, column + k) for k < length: the diagonal of the global batch.
    Diagonal { row: usize, column: usize, length: usize },
    /// Entries whose labels are equal. Shapes: `[n]`, `[m]`, i64, on the tile's device.
    Labels { rows: &'a Tensor, columns: &'a Tensor },
}

impl Marks<'_> {
    /// Runs `body` with the marks in a form that loops over host memory read.
    fn on_host<T>(&self, body: impl FnOnce(tile::Marks<'_>) -> T) -> T {
        match *self {
            Marks::Nowhere => body(tile::Marks::Nowhere),
            Marks::Diagonal { row, column, length } => {
                body(tile::Marks::Diagonal { row, column, length })
            }
            Marks::Labels { rows, columns } => {
                let (rows, columns) = (slices::to_i64(rows), slices::to_i64(columns));
                body(tile::Marks::Labels { rows: &rows, columns: &columns })
            }
        }
    }
}

/// What the passes of one call add up, where they run.
enum Sums {
    Host([f64; 3]),
    /// Shape `[3]`, f64, on the device.
    Device(Arc<Epilogues>, Tensor),
}

impl Sums {
    fn on(device: Device) -> Result<Self, Error> {
        Ok(match device {
            Device::Cuda(_) => Self::Device(
                Epilogues::for_device(device)?,
                Tensor::f_zeros([3], (Kind::Double, device))?,
            ),
            _ => Self::Host([0.0; 3]),
        })
    }

    /// Waits for the device and returns the sums.
    fn totals(&self) -> [f64; 3] {
        match self {
            Self::Host(sums) => *sums,
            Self::Device(_, sums) => {
                let sums = sums.to_device(Device::Cpu);
                [sums.double_value(&[0]), sums.double_value(&[1]), sums.double_value(&[2])]
            }
        }
    }
}

/// The sigmoid loss's pass over tiles, and what they have added up to.
pub(super) struct Sigmoid {
    scale: f64,
    bias: f64,
    sums: Sums,
}

impl Sigmoid {
    /// The pass for s = `scale`·a + `bias`, on tiles of `device`.
    pub(super) fn new(device: Device, scale: f64, bias: f64) -> Result<Self, Error> {
        Ok(Self { scale, bias, sums: Sums::on(device)? })
    }

    /// With z = ±1 replaces the dot products a, in place, by w = −z σ(−z s); on a GPU also writes
    /// them to `low`, in bf16.
    ///
    /// Shapes: `tile` and `low` `[n, m]`, contiguous; f32, on the CPU also f64.
    pub(super) fn pass(
        &mut self,
        tile: &mut Tensor,
        marks: Marks<'_>,
        low: Option<&Tensor>,
    ) -> Result<(), Error> {
        match &mut self.sums {
            Sums::Device(epilogues, sums) => {
                let marks = device::positives(marks);
                epilogues.siglip_tile(tile, self.scale, self.bias, marks, low, sums)?;
            }
            Sums::Host(sums) => {
                let (scale, bias) = (self.scale, self.bias);
                let more = marks.on_host(|marks| host::sigmoid(tile, scale, bias, marks));
                sums[0] += more[0];
                sums[1] += scale * more[1];
                sums[2] += more[2];
            }
        }
        Ok(())
    }

    /// Returns Σ log σ(z s), Σ w (s − bias) and Σ w over all tiles so far.
    pub(super) fn totals(&self) -> [f64; 3] {
        self.sums.totals()
    }
}

/// Maximum and Σ exp(s − maximum) of rows or columns, as pairs. Shape `[k, 2]`, f64.
pub(super) type Stats = Tensor;

/// Returns the statistics of `k` rows or columns that nothing has been added to.
pub(super) fn no_stats(k: i64, device: Device) -> Result<Stats, Error> {
    let stats = Tensor::f_empty([k, 2], (Kind::Double, device))?;
    clear_stats(&stats)?;
    Ok(stats)
}

/// Makes statistics those of nothing.
pub(super) fn clear_stats(stats: &Stats) -> Result<(), Error> {
    let _ = stats.select(1, 0).f_fill_(f64::NEG_INFINITY)?;
    let _ = stats.select(1, 1).f_fill_(0.0)?;
    Ok(())
}

/// Adds the statistics of other elements of the same rows or columns to `stats`.
pub(super) fn join_stats(stats: &mut Stats, other: &Stats) -> Result<(), Error> {
    match stats.device() {
        Device::Cpu => host::join(stats, other),
        _ => device::join(stats, other)?,
    }
    Ok(())
}

/// Returns maximum + log sum, the log-sum-exp of each row or column. Shape `[k]`, f64.
pub(super) fn log_sum_exp(stats: &Stats) -> Tensor {
    stats.select(1, 0) + stats.select(1, 1).log()
}

/// The softmax loss's two passes over tiles, and what they have added up to.
pub(super) struct Softmax {
    scale: f64,
    sums: Sums,
}

impl Softmax {
    /// The passes for s = `scale`·a, on tiles of `device`.
    pub(super) fn new(device: Device, scale: f64) -> Result<Self, Error> {
        Ok(Self { scale, sums: Sums::on(device)? })
    }

    /// First pass: adds a tile's logits to the statistics of its rows and columns; the tile is only
    /// read. The maximum runs along, so no scale overflows.
    ///
    /// Shapes: `tile` as in [`Sigmoid::pass`], `rows` `[n, 2]`, `columns` `[m, 2]`.
    pub(super) fn first(
        &self,
        tile: &mut Tensor,
        rows: &mut Stats,
        columns: &mut Stats,
    ) -> Result<(), Error> {
        match self.sums {
            Sums::Device(..) => device::stats(tile, self.scale, rows, columns)?,
            Sums::Host(_) => host::stats(tile, self.scale, rows, columns),
        }
        Ok(())
    }

    /// Second pass, the statistics being complete: replaces a, in place, by w = softmax over the
    /// row + softmax over the column − 2 at positives, which are a diagonal; on a GPU also writes
    /// them to `low`, in bf16.
    pub(super) fn second(
        &mut self,
        tile: &mut Tensor,
        rows: &Stats,
        columns: &Stats,
        marks: Marks<'_>,
        low: Option<&Tensor>,
    ) -> Result<(), Error> {
        match &mut self.sums {
            Sums::Device(epilogues, sums) => {
                let (rows, columns) = (log_sum_exp(rows), log_sum_exp(columns));
                let (rows, columns) = (rows.to_kind(Kind::Float), columns.to_kind(Kind::Float));
                let marks = device::positives(marks);
                epilogues.infonce_tile(tile, self.scale, &rows, &columns, marks, low, sums)?;
            }
            Sums::Host(sums) => {
                let scale = self.scale;
                let more = marks.on_host(|marks| host::weights(tile, scale, rows, columns, marks));
                sums[0] += scale * more[0];
                sums[1] += scale * more[1];
            }
        }
        Ok(())
    }

    /// Returns Σ w s, and Σ s over the positives, of all second passes so far.
    pub(super) fn totals(&self) -> [f64; 2] {
        let [weighted, positives, _] = self.sums.totals();
        [weighted, positives]
    }
}
