//! Histograms of chosen and random values.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;

use super::*;

fn of(values: &[u64]) -> Distribution {
    let mut histogram = Histogram::default();
    values.iter().for_each(|&value| histogram.add(value));
    histogram.distribution(Round::Decimal)
}

#[test]
fn one_value_is_one_bar_and_nothing_is_none() {
    let same = of(&[512, 512, 512]);
    assert_eq!(same.bars, [Bar { from: 512.0, to: 512.0, count: 3 }]);
    assert_eq!((same.min, same.median, same.mean, same.max), (512.0, 512.0, 512.0, 512.0));
    assert_eq!(of(&[]), Distribution::default());
    assert_eq!(of(&[0]).bars, [Bar { from: 0.0, to: 0.0, count: 1 }]);
}

#[test]
fn near_values_have_bars_of_one_width_and_far_ones_growing_ones() {
    let near: Vec<u64> = (5..=60).collect();
    let bars = of(&near).bars;
    assert!(bars.iter().all(|bar| bar.to - bar.from == 5.0), "{bars:?}");
    let far = of(&[1, 10, 1000]).bars;
    let edges: Vec<f64> = far.iter().map(|bar| bar.from).collect();
    assert_eq!(edges, [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]);
}

#[test]
fn bars_of_bytes_begin_at_powers_of_two() {
    let mut histogram = Histogram::default();
    [352, 3300, 5300, 8560].iter().for_each(|&bytes| histogram.add(bytes));
    let bars = histogram.distribution(Round::Binary).bars;
    assert!(bars.iter().all(|bar| bar.to - bar.from == 1024.0), "{bars:?}");
    histogram.add(50_000_000);
    let edges: Vec<f64> =
        histogram.distribution(Round::Binary).bars.iter().map(|bar| bar.from).collect();
    assert_eq!((edges[0], edges[1], edges.len()), (256.0, 1024.0, 9));
}

#[test]
fn values_above_a_limit_are_counted_exactly() {
    let mut histogram = Histogram::default();
    (70..90).for_each(|tokens| histogram.add(tokens));
    assert_eq!(histogram.above(77), 12);
}

#[test]
fn ratios_lie_in_the_range_of_their_kind() {
    let mut ratios = Ratios::default();
    for (width, height) in [(100, 100), (101, 100), (1, 5000), (5000, 1), (160, 90)] {
        ratios.add(width, height);
    }
    let bars = ratios.bars();
    assert_eq!(bars.iter().map(|bar| bar.count).sum::<u64>(), 5);
    let square = bars.iter().find(|bar| bar.from == 0.98).unwrap();
    assert_eq!(square.count, 2);
    assert_eq!((bars[0].count, bars.last().unwrap().to), (1, 5001.0));
}

proptest! {
    /// Values of every magnitude, zero and the largest among them.
    #[test]
    fn bars_adjoin_and_add_up(
        values in prop::collection::vec(
            (any::<u64>(), 0_u32..=64).prop_map(|(value, shift)| value.checked_shr(shift).unwrap_or(0)),
            1..200,
        ),
        round in prop_oneof![Just(Round::Decimal), Just(Round::Binary)],
    ) {
        let mut histogram = Histogram::default();
        values.iter().for_each(|&value| histogram.add(value));
        let shown = histogram.distribution(round);
        let count = values.len() as u64;
        prop_assert_eq!(shown.bars.iter().map(|bar| bar.count).sum::<u64>(), count);
        prop_assert!(shown.bars.len() <= 18, "{} bars", shown.bars.len());
        prop_assert!(shown.bars.windows(2).all(|two| two[0].to == two[1].from));
        let (min, max) = (*values.iter().min().unwrap(), *values.iter().max().unwrap());
        prop_assert_eq!((shown.min, shown.max), (min as f64, max as f64));
        prop_assert!(shown.p5 <= shown.median && shown.median <= shown.p95);
        let mut sorted = values.clone();
        sorted.sort_unstable();
        let median = sorted[(values.len() - 1) / 2] as f64;
        prop_assert!(shown.median <= median && shown.median >= median * (1.0 - 1.0 / 128.0));
    }
}
