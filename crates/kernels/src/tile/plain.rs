//! The passes over a tile in f64, one number at a time: the formulas as they are written down.

use super::Marks;
use super::math;

/// The sigmoid pass: see [`super`]. `columns` is m.
pub fn sigmoid(
    tile: &mut [f64],
    columns: usize,
    scale: f64,
    bias: f64,
    marks: Marks<'_>,
) -> [f64; 3] {
    let mut sums = [0.0; 3];
    for (index, row) in tile.chunks_exact_mut(columns.max(1)).enumerate() {
        let marks = marks.row(index);
        for (column, a) in row.iter_mut().enumerate() {
            let z = if marks.positive(column) { 1.0 } else { -1.0 };
            let u = -z * (scale * *a + bias);
            let e = (-u.abs()).exp();
            let softplus = u.max(0.0) + e.ln_1p(); // −log σ(z s)
            let sigmoid = if u >= 0.0 { 1.0 } else { e } / (1.0 + e); // σ(−z s)
            let weight = -z * sigmoid;
            sums[0] -= softplus;
            sums[1] += weight * *a;
            sums[2] += weight;
            *a = weight;
        }
    }
    sums
}

/// The statistics of a tile; the maximum runs along, so no scale overflows (scale > 0). See [`super`].
pub fn stats(tile: &[f64], scale: f64, rows: &mut [f64], columns: &mut [f64]) {
    let width = columns.len() / 2;
    for (row, pair) in tile.chunks_exact(width.max(1)).zip(rows.chunks_exact_mut(2)) {
        for (a, column) in row.iter().zip(columns.chunks_exact_mut(2)) {
            math::join(pair, scale * a, 1.0);
            math::join(column, scale * a, 1.0);
        }
    }
}

/// The weights of a tile whose rows' and columns' statistics are complete: see [`super`].
pub fn weights(
    tile: &mut [f64],
    scale: f64,
    rows: &[f64],
    columns: &[f64],
    marks: Marks<'_>,
) -> [f64; 2] {
    let width = columns.len() / 2;
    let mut sums = [0.0; 2];
    for (index, row) in tile.chunks_exact_mut(width.max(1)).enumerate() {
        let marks = marks.row(index);
        let share = |s: f64, pair: &[f64]| (s - pair[0]).exp() / pair[1];
        for (column, a) in row.iter_mut().enumerate() {
            let s = scale * *a;
            let mut weight = share(s, &rows[2 * index..]) + share(s, &columns[2 * column..]);
            if marks.positive(column) {
                weight -= 2.0;
                sums[1] += *a;
            }
            sums[0] += weight * *a;
            *a = weight;
        }
    }
    sums
}
