//! The passes over a tile in host memory.
//!
//! [`simd`] does them for f32 with vectors of fixed length, so that every instruction set adds in the
//! same order; [`plain`] does them for f64, one number at a time, and is what [`simd`] is tested against.

use ringmaster_kernels::tile::{Marks, math, plain, simd};
use tch::{Kind, Tensor};

use super::Stats;
use crate::ffi::slices;

/// The sigmoid loss of a tile. With s = scale·a + bias and z = ±1 it replaces a, in place, by
/// w = −z σ(−z s), and returns Σ log σ(z s), Σ w a and Σ w.
///
/// Shapes: `tile` `[n, m]`, contiguous, f32 or f64, on the CPU.
pub(super) fn sigmoid(tile: &mut Tensor, scale: f64, bias: f64, marks: Marks<'_>) -> [f64; 3] {
    let columns = tile.size()[1] as usize;
    match tile.kind() {
        Kind::Double => {
            slices::with_f64(tile, |tile| plain::sigmoid(tile, columns, scale, bias, marks))
        }
        _ => slices::with_f32(tile, |tile| simd::sigmoid(tile, columns, scale, bias, marks)),
    }
}

/// Adds the statistics of other elements of the same rows or columns to `stats`.
pub(super) fn join(stats: &mut Stats, other: &Stats) {
    slices::read_f64(other, |other| {
        slices::with_f64(stats, |stats| {
            for (pair, other) in stats.chunks_exact_mut(2).zip(other.chunks_exact(2)) {
                math::join(pair, other[0], other[1]);
            }
        });
    });
}

/// Adds a tile's logits s = scale·a to the statistics of its rows and columns; the tile is only
/// read. The maximum runs along, so no scale overflows (scale > 0).
///
/// Shapes: `tile` `[n, m]` as above, `rows` `[n, 2]`, `columns` `[m, 2]`.
pub(super) fn stats(tile: &mut Tensor, scale: f64, rows: &mut Stats, columns: &mut Stats) {
    let kind = tile.kind();
    slices::with_f64(rows, |rows| {
        slices::with_f64(columns, |columns| match kind {
            Kind::Double => {
                slices::with_f64(tile, |tile| plain::stats(tile, scale, rows, columns));
            }
            _ => slices::with_f32(tile, |tile| simd::stats(tile, scale, rows, columns)),
        });
    });
}

/// The softmax loss of a tile, its rows' and columns' statistics complete: replaces a, in place, by
/// w = softmax over the row + softmax over the column − 2 at positives, and returns Σ w a and the
/// sum of a over the positives, which are a diagonal.
///
/// Shapes: as [`stats`].
pub(super) fn weights(
    tile: &mut Tensor,
    scale: f64,
    rows: &Stats,
    columns: &Stats,
    marks: Marks<'_>,
) -> [f64; 2] {
    let kind = tile.kind();
    slices::read_f64(rows, |rows| {
        slices::read_f64(columns, |columns| match kind {
            Kind::Double => {
                slices::with_f64(tile, |t| plain::weights(t, scale, rows, columns, marks))
            }
            _ => slices::with_f32(tile, |t| simd::weights(t, scale, rows, columns, marks)),
        })
    })
}
