//! The passes over a tile in f32, in vectors of `LANES` numbers.
//!
//! The loops over lanes have a fixed length and no branches, so the compiler turns them into vector
//! instructions, of the widest set that the machine has (`ffi`). Since a lane adds up the same
//! elements whatever the width, every machine gets the same bits.

use super::math::{exp_of_negative, join, ln_1p_of_unit};
use super::{Marks, RowMarks};
use crate::ffi::{self, Kernel};

/// Numbers worked on together: one AVX-512 register, two AVX2 ones.
const LANES: usize = 16;
/// Vectors whose sums stay in f32 before they are widened to f64.
const VECTORS: usize = 8;

type Lanes = [f32; LANES];
type Wide = [f64; LANES];

/// The sigmoid pass: see [`super`]. `columns` is m.
pub fn sigmoid(
    tile: &mut [f32],
    columns: usize,
    scale: f64,
    bias: f64,
    marks: Marks<'_>,
) -> [f64; 3] {
    let (scale, bias) = (scale as f32, bias as f32);
    ffi::dispatch(Sigmoid { tile, columns: columns.max(1), scale, bias, marks })
}

struct Sigmoid<'a> {
    tile: &'a mut [f32],
    columns: usize,
    scale: f32,
    bias: f32,
    marks: Marks<'a>,
}

impl Kernel for Sigmoid<'_> {
    type Output = [f64; 3];

    #[inline(always)]
    fn run(self) -> [f64; 3] {
        let mut sums = [[0.0; LANES]; 3];
        for (index, row) in self.tile.chunks_exact_mut(self.columns).enumerate() {
            // A loop of its own for each kind of row: most have no positives.
            match self.marks.row(index) {
                RowMarks::Nowhere => sigmoid_row(row, self.scale, self.bias, &Never, &mut sums),
                RowMarks::Column(at) => {
                    sigmoid_row(row, self.scale, self.bias, &At(at), &mut sums);
                }
                RowMarks::Labels { own, columns } => {
                    sigmoid_row(row, self.scale, self.bias, &Equal { own, columns }, &mut sums);
                }
            }
        }
        [-total(&sums[0]), total(&sums[1]), total(&sums[2])]
    }
}

/// Which columns of a row are positives, a vector at a time.
trait Positives {
    /// Sets lane k to 1 where column `from + k` is a positive, else to 0; lanes from `count` on
    /// lie beyond the row.
    fn mark(&self, from: usize, count: usize, lanes: &mut Lanes);
}

struct Never;
struct At(usize);
struct Equal<'a> {
    own: i64,
    columns: &'a [i64],
}

impl Positives for Never {
    #[inline(always)]
    fn mark(&self, _from: usize, _count: usize, lanes: &mut Lanes) {
        *lanes = [0.0; LANES];
    }
}

impl Positives for At {
    #[inline(always)]
    fn mark(&self, from: usize, _count: usize, lanes: &mut Lanes) {
        *lanes = [0.0; LANES];
        let lane = self.0.wrapping_sub(from);
        if lane < LANES {
            lanes[lane] = 1.0;
        }
    }
}

impl Positives for Equal<'_> {
    #[inline(always)]
    fn mark(&self, from: usize, count: usize, lanes: &mut Lanes) {
        *lanes = [0.0; LANES];
        for (lane, label) in lanes.iter_mut().zip(&self.columns[from..from + count]) {
            *lane = if *label == self.own { 1.0 } else { 0.0 };
        }
    }
}

#[inline(always)]
fn sigmoid_row(
    row: &mut [f32],
    scale: f32,
    bias: f32,
    positives: &impl Positives,
    sums: &mut [Wide; 3],
) {
    let mut from = 0;
    for block in row.chunks_mut(LANES * VECTORS) {
        let mut partial = [[0.0; LANES]; 3];
        let mut marked = [0.0; LANES];
        let (vectors, rest) = block.as_chunks_mut::<LANES>();
        for a in vectors {
            positives.mark(from, LANES, &mut marked);
            sigmoid_vector(a, &marked, scale, bias, &mut partial);
            from += LANES;
        }
        if !rest.is_empty() {
            let mut a = [0.0; LANES];
            a[..rest.len()].copy_from_slice(rest);
            positives.mark(from, rest.len(), &mut marked);
            let mut tail = [[0.0; LANES]; 3];
            sigmoid_vector(&mut a, &marked, scale, bias, &mut tail);
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
fn sigmoid_vector(a: &mut Lanes, positive: &Lanes, scale: f32, bias: f32, sums: &mut [Lanes; 3]) {
    for k in 0..LANES {
        let sign = 1.0 - 2.0 * positive[k]; // −z
        let u = sign * scale.mul_add(a[k], bias);
        let e = exp_of_negative(-u.abs());
        let sigmoid = if u >= 0.0 { 1.0 } else { e } / (1.0 + e);
        let softplus = (if u >= 0.0 { u } else { 0.0 }) + ln_1p_of_unit(e);
        let weight = sign * sigmoid;
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

/// The statistics of a tile; the maximum runs along, so no scale overflows (scale > 0). See [`super`].
pub fn stats(tile: &[f32], scale: f64, rows: &mut [f64], columns: &mut [f64]) {
    let width = columns.len() / 2;
    if width == 0 || rows.is_empty() {
        return;
    }
    // Of this tile alone.
    let mut column_max = vec![f32::NEG_INFINITY; width];
    let mut column_sum = vec![0.0_f64; width];
    let mut row_max = vec![f32::NEG_INFINITY; rows.len() / 2];
    let scale = scale as f32;
    ffi::dispatch(Stats {
        tile,
        scale,
        rows,
        row_max: &mut row_max,
        column_max: &mut column_max,
        column_sum: &mut column_sum,
    });
    for ((pair, maximum), sum) in columns.chunks_exact_mut(2).zip(&column_max).zip(&column_sum) {
        join(pair, f64::from(*maximum), *sum);
    }
}

struct Stats<'a> {
    tile: &'a [f32],
    scale: f32,
    rows: &'a mut [f64],
    row_max: &'a mut [f32],
    column_max: &'a mut [f32],
    column_sum: &'a mut [f64],
}

impl Kernel for Stats<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let width = self.column_max.len();
        for (row, maximum) in self.tile.chunks_exact(width).zip(self.row_max.iter_mut()) {
            *maximum = maxima(row, self.scale, self.column_max);
        }
        let rows = self.tile.chunks_exact(width).zip(&*self.row_max);
        for ((row, maximum), pair) in rows.zip(self.rows.chunks_exact_mut(2)) {
            let sum = exp_sums(row, self.scale, *maximum, self.column_max, self.column_sum);
            join(pair, f64::from(*maximum), sum);
        }
    }
}

/// Raises the columns' maxima to those of a row and returns the row's own.
#[inline(always)]
fn maxima(row: &[f32], scale: f32, column_max: &mut [f32]) -> f32 {
    let mut highest = [f32::NEG_INFINITY; LANES];
    let (vectors, rest) = row.as_chunks::<LANES>();
    let (columns, column_rest) = column_max.as_chunks_mut::<LANES>();
    for (a, column) in vectors.iter().zip(columns) {
        for k in 0..LANES {
            let s = scale * a[k];
            column[k] = if s > column[k] { s } else { column[k] };
            highest[k] = if s > highest[k] { s } else { highest[k] };
        }
    }
    for ((a, column), highest) in rest.iter().zip(column_rest).zip(&mut highest) {
        let s = scale * a;
        *column = if s > *column { s } else { *column };
        *highest = if s > *highest { s } else { *highest };
    }
    let mut most = f32::NEG_INFINITY;
    for s in highest {
        most = if s > most { s } else { most };
    }
    most
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
    let (vectors, rest) = row.as_chunks::<LANES>();
    let (maxima, maxima_rest) = column_max.as_chunks::<LANES>();
    let (sums, sums_rest) = column_sum.as_chunks_mut::<LANES>();
    for ((a, maximum), sum) in vectors.iter().zip(maxima).zip(sums) {
        for k in 0..LANES {
            let s = scale * a[k];
            row_sum[k] += f64::from(exp_of_negative(s - row_max));
            sum[k] += f64::from(exp_of_negative(s - maximum[k]));
        }
    }
    let rest = rest.iter().zip(maxima_rest).zip(sums_rest).zip(&mut row_sum);
    for (((a, maximum), sum), row_sum) in rest {
        let s = scale * a;
        *row_sum += f64::from(exp_of_negative(s - row_max));
        *sum += f64::from(exp_of_negative(s - maximum));
    }
    total(&row_sum)
}

/// The weights of a tile whose rows' and columns' statistics are complete: see [`super`].
pub fn weights(
    tile: &mut [f32],
    scale: f64,
    rows: &[f64],
    columns: &[f64],
    marks: Marks<'_>,
) -> [f64; 2] {
    if columns.is_empty() {
        return [0.0; 2];
    }
    let column_max: Vec<f32> = columns.chunks_exact(2).map(|pair| pair[0] as f32).collect();
    let column_factor: Vec<f32> =
        columns.chunks_exact(2).map(|pair| (1.0 / pair[1]) as f32).collect();
    ffi::dispatch(Weights {
        tile,
        scale: scale as f32,
        rows,
        column_max: &column_max,
        column_factor: &column_factor,
        marks,
    })
}

struct Weights<'a> {
    tile: &'a mut [f32],
    scale: f32,
    rows: &'a [f64],
    column_max: &'a [f32],
    /// 1 / Σ exp(s − maximum).
    column_factor: &'a [f32],
    marks: Marks<'a>,
}

impl Kernel for Weights<'_> {
    type Output = [f64; 2];

    #[inline(always)]
    fn run(self) -> [f64; 2] {
        let mut sums: Wide = [0.0; LANES];
        let mut positive_sum = 0.0;
        let rows = self.tile.chunks_exact_mut(self.column_max.len());
        for (index, (row, pair)) in rows.zip(self.rows.chunks_exact(2)).enumerate() {
            let own = Share { maximum: pair[0] as f32, factor: (1.0 / pair[1]) as f32 };
            let column = match self.marks.row(index) {
                RowMarks::Column(column) => Some((column, row[column])),
                _ => None,
            };
            let (maxima, factors) = (self.column_max, self.column_factor);
            weights_row(row, self.scale, &own, maxima, factors, &mut sums);
            if let Some((column, a)) = column {
                // Of the positive: its weight lacks the −2, and so does the sum.
                positive_sum += f64::from(a);
                row[column] -= 2.0;
                sums[0] -= 2.0 * f64::from(a);
            }
        }
        [total(&sums), positive_sum]
    }
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
    sums: &mut Wide,
) {
    let (vectors, rest) = row.as_chunks_mut::<LANES>();
    let (maxima, maxima_rest) = column_max.as_chunks::<LANES>();
    let (factors, factors_rest) = column_factor.as_chunks::<LANES>();
    for ((a, maximum), factor) in vectors.iter_mut().zip(maxima).zip(factors) {
        for k in 0..LANES {
            let w = weight(scale * a[k], own, maximum[k], factor[k]);
            sums[k] += f64::from(w) * f64::from(a[k]);
            a[k] = w;
        }
    }
    let rest = rest.iter_mut().zip(maxima_rest).zip(factors_rest).zip(sums);
    for (((a, maximum), factor), sum) in rest {
        let w = weight(scale * *a, own, *maximum, *factor);
        *sum += f64::from(w) * f64::from(*a);
        *a = w;
    }
}

#[inline(always)]
fn weight(s: f32, own: &Share, column_max: f32, column_factor: f32) -> f32 {
    let over_row = exp_of_negative(s - own.maximum) * own.factor;
    exp_of_negative(s - column_max).mul_add(column_factor, over_row)
}
