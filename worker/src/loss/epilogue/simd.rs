//! The passes over a tile in f32, in vectors of [`LANES`] numbers.
//!
//! The loops over lanes have a fixed length and no branches, so the compiler turns them into vector
//! instructions; `pulp` picks the widest set the machine has at run time. Since a lane adds up the
//! same elements whatever the width, every machine gets the same bits.

use pulp::Arch;

use super::math::{exp_of_negative, join, ln_1p_of_unit};
use super::{Marks, RowMarks};

/// Numbers worked on together: one AVX-512 register, two AVX2 ones.
const LANES: usize = 16;
/// Vectors whose sums stay in f32 before they are widened to f64.
const VECTORS: usize = 8;

type Lanes = [f32; LANES];
type Wide = [f64; LANES];

/// See [`super::sigmoid`].
pub(super) fn sigmoid(
    tile: &mut [f32],
    columns: usize,
    scale: f64,
    bias: f64,
    marks: Marks<'_>,
) -> [f64; 3] {
    let (scale, bias) = (scale as f32, bias as f32);
    Arch::new().dispatch(
        #[inline(always)]
        || {
            let mut sums = [[0.0; LANES]; 3];
            for (index, row) in tile.chunks_exact_mut(columns.max(1)).enumerate() {
                // A loop of its own for each kind of row: most have no positives.
                match marks.row(index) {
                    RowMarks::Nowhere => sigmoid_row(row, scale, bias, |_| -1.0, &mut sums),
                    RowMarks::Column(positive) => {
                        let z = |column| if column == positive { 1.0 } else { -1.0 };
                        sigmoid_row(row, scale, bias, z, &mut sums);
                    }
                    RowMarks::Labels { own, columns } => {
                        let z = |column: usize| if columns[column] == own { 1.0 } else { -1.0 };
                        sigmoid_row(row, scale, bias, z, &mut sums);
                    }
                }
            }
            [-total(&sums[0]), total(&sums[1]), total(&sums[2])]
        },
    )
}

#[inline(always)]
fn sigmoid_row(
    row: &mut [f32],
    scale: f32,
    bias: f32,
    z: impl Fn(usize) -> f32,
    sums: &mut [Wide; 3],
) {
    for (block, numbers) in row.chunks_mut(LANES * VECTORS).enumerate() {
        let mut partial = [[0.0; LANES]; 3];
        let first = block * LANES * VECTORS;
        let mut vectors = numbers.chunks_exact_mut(LANES);
        let mut column = first;
        for vector in vectors.by_ref() {
            let mut a: Lanes = std::array::from_fn(|k| vector[k]);
            let signs: Lanes = std::array::from_fn(|k| z(column + k));
            sigmoid_vector(&mut a, &signs, scale, bias, &mut partial);
            vector.copy_from_slice(&a);
            column += LANES;
        }
        let rest = vectors.into_remainder();
        if !rest.is_empty() {
            let mut a: Lanes = std::array::from_fn(|k| rest.get(k).copied().unwrap_or(0.0));
            let signs: Lanes =
                std::array::from_fn(|k| if k < rest.len() { z(column + k) } else { -1.0 });
            let mut tail = [[0.0; LANES]; 3];
            sigmoid_vector(&mut a, &signs, scale, bias, &mut tail);
            rest.copy_from_slice(&a[..rest.len()]);
            for (partial, tail) in partial.iter_mut().zip(&tail) {
                for k in 0..rest.len() {
                    partial[k] += tail[k];
                }
            }
        }
        for (sums, partial) in sums.iter_mut().zip(&partial) {
            for k in 0..LANES {
                sums[k] += f64::from(partial[k]);
            }
        }
    }
}

/// One vector of dot products to weights −z σ(−z s); adds −log σ(z s), w a and w to the sums.
#[inline(always)]
fn sigmoid_vector(a: &mut Lanes, z: &Lanes, scale: f32, bias: f32, sums: &mut [Lanes; 3]) {
    for k in 0..LANES {
        let u = -z[k] * scale.mul_add(a[k], bias);
        let e = exp_of_negative(-u.abs());
        let sigmoid = if u >= 0.0 { 1.0 } else { e } / (1.0 + e);
        let softplus = (if u >= 0.0 { u } else { 0.0 }) + ln_1p_of_unit(e);
        let weight = -z[k] * sigmoid;
        sums[0][k] += softplus;
        sums[1][k] = weight.mul_add(a[k], sums[1][k]);
        sums[2][k] += weight;
        a[k] = weight;
    }
}

/// Sums lanes pairwise, always in the same order.
#[inline(always)]
fn total(lanes: &Wide) -> f64 {
    let mut sums = *lanes;
    let mut width = LANES / 2;
    while width > 0 {
        for k in 0..width {
            sums[k] += sums[k + width];
        }
        width /= 2;
    }
    sums[0]
}

/// See [`super::softmax_stats`].
pub(super) fn stats(tile: &[f32], scale: f64, rows: &mut [f64], columns: &mut [f64]) {
    let width = columns.len() / 2;
    if width == 0 || rows.is_empty() {
        return;
    }
    let padded = width.next_multiple_of(LANES);
    // Of this tile alone; padding columns hold what no element can reach or change.
    let mut column_max = vec![f32::NEG_INFINITY; padded];
    let mut column_sum = vec![0.0_f64; padded];
    let mut row_max = vec![f32::NEG_INFINITY; rows.len() / 2];
    let scale = scale as f32;
    Arch::new().dispatch(
        #[inline(always)]
        || {
            for (row, maximum) in tile.chunks_exact(width).zip(&mut row_max) {
                *maximum = maxima(row, scale, &mut column_max);
            }
            for ((row, maximum), pair) in
                tile.chunks_exact(width).zip(&row_max).zip(rows.chunks_exact_mut(2))
            {
                let sum = exp_sums(row, scale, *maximum, &column_max, &mut column_sum);
                join(pair, f64::from(*maximum), sum);
            }
        },
    );
    for ((pair, maximum), sum) in columns.chunks_exact_mut(2).zip(&column_max).zip(&column_sum) {
        join(pair, f64::from(*maximum), *sum);
    }
}

/// Raises the columns' maxima to those of a row and returns the row's own.
#[inline(always)]
fn maxima(row: &[f32], scale: f32, column_max: &mut [f32]) -> f32 {
    let mut highest = [f32::NEG_INFINITY; LANES];
    for (index, column) in column_max.chunks_exact_mut(LANES).enumerate() {
        let s = load(row, index, f32::NEG_INFINITY, |a| scale * a);
        for k in 0..LANES {
            column[k] = if s[k] > column[k] { s[k] } else { column[k] };
            highest[k] = if s[k] > highest[k] { s[k] } else { highest[k] };
        }
    }
    highest.iter().fold(f32::NEG_INFINITY, |a, b| a.max(*b))
}

/// Adds exp(s − column maximum) of a row to the columns' sums and returns Σ exp(s − row maximum).
#[inline(always)]
fn exp_sums(
    row: &[f32],
    scale: f32,
    row_max: f32,
    column_max: &[f32],
    column_sum: &mut [f64],
) -> f64 {
    let mut row_sum: Wide = [0.0; LANES];
    let full = row.len() / LANES;
    for index in 0..full {
        let s = load(row, index, 0.0, |a| scale * a);
        let at = index * LANES;
        for k in 0..LANES {
            row_sum[k] += f64::from(exp_of_negative(s[k] - row_max));
            column_sum[at + k] += f64::from(exp_of_negative(s[k] - column_max[at + k]));
        }
    }
    let at = full * LANES;
    for (k, a) in row[at..].iter().enumerate() {
        let s = scale * a;
        row_sum[k] += f64::from(exp_of_negative(s - row_max));
        column_sum[at + k] += f64::from(exp_of_negative(s - column_max[at + k]));
    }
    total(&row_sum)
}

/// One vector of a row, mapped; `padding` where the row has ended.
#[inline(always)]
fn load(row: &[f32], index: usize, padding: f32, map: impl Fn(f32) -> f32) -> Lanes {
    let from = index * LANES;
    match row.get(from..from + LANES) {
        Some(vector) => std::array::from_fn(|k| map(vector[k])),
        None => std::array::from_fn(|k| row.get(from + k).map_or(padding, |a| map(*a))),
    }
}

/// See [`super::softmax_weights`].
pub(super) fn weights(
    tile: &mut [f32],
    scale: f64,
    rows: &[f64],
    columns: &[f64],
    marks: Marks<'_>,
) -> [f64; 2] {
    let width = columns.len() / 2;
    if width == 0 {
        return [0.0; 2];
    }
    let scale = scale as f32;
    let column_max: Vec<f32> = columns.chunks_exact(2).map(|pair| pair[0] as f32).collect();
    let column_factor: Vec<f32> =
        columns.chunks_exact(2).map(|pair| (1.0 / pair[1]) as f32).collect();
    let mut positive_sum = 0.0;
    let weighted = Arch::new().dispatch(
        #[inline(always)]
        || {
            let mut sums: Wide = [0.0; LANES];
            for (index, row) in tile.chunks_exact_mut(width).enumerate() {
                let own = Share {
                    maximum: rows[2 * index] as f32,
                    factor: (1.0 / rows[2 * index + 1]) as f32,
                };
                let marked = marks.row(index);
                let positive = |column: usize| if marked.positive(column) { 2.0_f32 } else { 0.0 };
                // Read before the pass below overwrites it.
                if let RowMarks::Column(column) = marked {
                    positive_sum += f64::from(row[column]);
                }
                weights_row(row, scale, &own, &column_max, &column_factor, positive, &mut sums);
            }
            total(&sums)
        },
    );
    [weighted, positive_sum]
}

/// A row's share of the softmax: exp(s − maximum) · factor.
struct Share {
    maximum: f32,
    factor: f32,
}

#[inline(always)]
fn weights_row(
    row: &mut [f32],
    scale: f32,
    own: &Share,
    column_max: &[f32],
    column_factor: &[f32],
    positive: impl Fn(usize) -> f32,
    sums: &mut Wide,
) {
    let weight = |a: f32, column: usize| {
        let s = scale * a;
        let over_row = exp_of_negative(s - own.maximum) * own.factor;
        let over_column = exp_of_negative(s - column_max[column]) * column_factor[column];
        over_row + over_column - positive(column)
    };
    let full = row.len() / LANES * LANES;
    for at in (0..full).step_by(LANES) {
        let a = load(row, at / LANES, 0.0, |a| a);
        let w: Lanes = std::array::from_fn(|k| weight(a[k], at + k));
        for k in 0..LANES {
            sums[k] += f64::from(w[k]) * f64::from(a[k]);
        }
        row[at..at + LANES].copy_from_slice(&w);
    }
    for (k, a) in row[full..].iter_mut().enumerate() {
        let w = weight(*a, full + k);
        sums[k] += f64::from(w) * f64::from(*a);
        *a = w;
    }
}
