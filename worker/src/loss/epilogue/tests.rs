//! The vector passes against the plain ones, odd sizes and extreme logits included.
#![allow(clippy::unwrap_used)]

use ringmaster_kernels::tile::Marks;
use tch::{Device, Kind, Tensor};

use super::host;
use super::*;

const SHAPES: [(i64, i64); 6] = [(1, 1), (3, 5), (7, 16), (4, 129), (33, 131), (2, 300)];

/// Dot products between −1 and 1, most of them small.
fn tile(n: i64, m: i64) -> Tensor {
    let index = Tensor::arange(n * m, (Kind::Double, Device::Cpu)).view([n, m]);
    (&index * 0.731).sin() * (&index * 0.213).cos()
}

fn assert_close(actual: f64, wanted: f64, scale: f64, what: &str) {
    assert!((actual - wanted).abs() <= 2e-6 * scale.max(1e-30), "{what}: {actual} for {wanted}");
}

fn assert_tensors_close(actual: &Tensor, wanted: &Tensor, what: &str) {
    let wanted = wanted.to_kind(Kind::Double);
    let error = (actual.to_kind(Kind::Double) - &wanted).abs();
    let relative = (error / (wanted.abs() + 1e-30)).max().double_value(&[]);
    assert!(relative < 4e-5, "{what}: largest relative error {relative:e}");
}

#[test]
fn the_sigmoid_pass_equals_the_plain_one_for_any_shape_marks_and_scale() {
    for (n, m) in SHAPES {
        let labels = |k: i64| (0..k).map(|i| i % 3).collect::<Vec<i64>>();
        let (rows, columns) = (labels(n), labels(m));
        let diagonal = Marks::Diagonal { row: 0, column: 0, length: n.min(m) as usize };
        for marks in [Marks::Nowhere, diagonal, Marks::Labels { rows: &rows, columns: &columns }] {
            for (scale, bias) in [(10.0, -10.0), (100.0, -10.0), (1.0, 0.0), (100.0, 90.0)] {
                // Both see the same f32 dot products.
                let mut fast = tile(n, m).to_kind(Kind::Float);
                let mut plain = fast.to_kind(Kind::Double);
                let sums = host::sigmoid(&mut fast, scale, bias, marks);
                let wanted = host::sigmoid(&mut plain, scale, bias, marks);
                let what = format!("{n}x{m} {marks:?} t {scale} β {bias}");
                assert_close(sums[0], wanted[0], wanted[0].abs(), &what);
                let total = plain.abs().sum(Kind::Double).double_value(&[]);
                assert_close(sums[1], wanted[1], total, &what);
                assert_close(sums[2], wanted[2], total, &what);
                // s itself is rounded to f32: up to 4e-6 at |s| = 100, which exp hands on.
                assert_tensors_close(&fast, &plain, &what);
            }
        }
    }
}

#[test]
fn the_softmax_passes_equal_the_plain_ones_in_any_number_of_tiles() {
    for (n, m) in SHAPES {
        for scale in [1.0, 14.3, 100.0] {
            let fast_tile = tile(n, m).to_kind(Kind::Float);
            let run = |kind| {
                let whole = fast_tile.to_kind(kind);
                let rows = no_stats(n, Device::Cpu).unwrap();
                let mut columns = no_stats(m, Device::Cpu).unwrap();
                for start in (0..n).step_by(2) {
                    let part = whole.narrow(0, start, 2.min(n - start));
                    let mut part_rows = rows.narrow(0, start, part.size()[0]);
                    host::stats(&mut part.contiguous(), scale, &mut part_rows, &mut columns);
                }
                let marks = Marks::Diagonal { row: 0, column: 0, length: n.min(m) as usize };
                let (row_lse, column_lse) = (log_sum_exp(&rows), log_sum_exp(&columns));
                let mut weights = whole.copy();
                let sums = host::weights(&mut weights, scale, &rows, &columns, marks);
                (row_lse, column_lse, weights, sums)
            };
            let (fast, plain) = (run(Kind::Float), run(Kind::Double));
            let what = format!("{n}x{m} t {scale}");
            for (fast, plain) in [(&fast.0, &plain.0), (&fast.1, &plain.1)] {
                let error = (fast - plain).abs().max().double_value(&[]);
                assert!(error < 1e-7 * scale.max(10.0) * 10.0, "{what}: {error:e}");
            }
            let error = (fast.2.to_kind(Kind::Double) - &plain.2).abs().max().double_value(&[]);
            assert!(error < 2e-5, "{what}: weights {error:e}");
            let total = plain.2.abs().sum(Kind::Double).double_value(&[]);
            assert!((fast.3[0] - plain.3[0]).abs() <= 1e-5 * total, "{what}: Σ w a");
            assert!((fast.3[1] - plain.3[1]).abs() < 1e-6 * n as f64, "{what}: Σ positives");
        }
    }
}

#[test]
fn the_plain_softmax_statistics_are_those_of_libtorch() {
    let (n, m) = (5, 7);
    let mut logits = tile(n, m);
    let (mut rows, mut columns) =
        (no_stats(n, Device::Cpu).unwrap(), no_stats(m, Device::Cpu).unwrap());
    host::stats(&mut logits, 30.0, &mut rows, &mut columns);
    let wanted = (&logits * 30.0).logsumexp([1_i64].as_slice(), false);
    assert!((log_sum_exp(&rows) - wanted).abs().max().double_value(&[]) < 1e-12);
    let wanted = (&logits * 30.0).logsumexp([0_i64].as_slice(), false);
    assert!((log_sum_exp(&columns) - wanted).abs().max().double_value(&[]) < 1e-12);
}

#[test]
fn statistics_of_nothing_leave_others_as_they_are() {
    let mut stats = no_stats(2, Device::Cpu).unwrap();
    join_stats(&mut stats, &no_stats(2, Device::Cpu).unwrap()).unwrap();
    assert_eq!(stats.double_value(&[0, 1]), 0.0);
    let some = Tensor::from_slice(&[3.0, 2.0, -1.0, 4.0]).view([2, 2]);
    join_stats(&mut stats, &some).unwrap();
    assert_eq!(stats, some);
}

#[test]
fn a_nan_in_a_tile_is_not_swallowed() {
    for kind in [Kind::Float, Kind::Double] {
        let broken = || {
            let tile = tile(3, 20).to_kind(kind);
            let _ = tile.get(1).get(17).fill_(f64::NAN);
            tile
        };
        let sums = host::sigmoid(&mut broken(), 10.0, -10.0, Marks::Nowhere);
        assert!(sums.iter().all(|sum| sum.is_nan()), "{kind:?} {sums:?}");
        let (mut rows, mut columns) =
            (no_stats(3, Device::Cpu).unwrap(), no_stats(20, Device::Cpu).unwrap());
        host::stats(&mut broken(), 10.0, &mut rows, &mut columns);
        assert!(log_sum_exp(&rows).double_value(&[1]).is_nan(), "{kind:?} rows");
        assert!(log_sum_exp(&columns).double_value(&[17]).is_nan(), "{kind:?} columns");
        assert!(!log_sum_exp(&columns).double_value(&[16]).is_nan(), "{kind:?} columns");
    }
}
