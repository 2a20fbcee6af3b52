//! How often which values occur, in bounded memory, and the bars that show it.

use std::collections::BTreeMap;

use serde::Serialize;

/// Significant bits of the numbers that values are counted as.
const BITS: u32 = 8;
/// Bars at most.
const MOST_BARS: u64 = 16;
/// Largest over smallest value from which bars of growing width read better.
const WIDE: u64 = 40;

/// Counts values. Values up to 255 are counted as they are, larger ones as the next lower number with eight
/// significant bits, less than 1 % away; smallest, largest and sum are exact.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Histogram {
    counts: BTreeMap<u64, u64>,
    /// Values in all.
    count: u64,
    sum: u128,
    smallest: Option<u64>,
    largest: u64,
}

/// Which numbers are round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// 1, 2, 5, 10, 20, …
    Decimal,
    /// 1, 2, 4, 8, …
    Binary,
}

/// How many values lie in a range.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Bar {
    /// The smallest value of the range.
    pub from: f64,
    /// Where the range ends: above all its values, or the largest of them where there is only one range.
    pub to: f64,
    /// Values in it.
    pub count: u64,
}

/// A histogram in some numbers, and as bars.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Distribution {
    /// Values in all.
    pub count: u64,
    /// The smallest.
    pub min: f64,
    /// A 20th of the values are smaller.
    pub p5: f64,
    /// Half of the values are smaller.
    pub median: f64,
    /// The arithmetic mean.
    pub mean: f64,
    /// A 20th of the values are larger.
    pub p95: f64,
    /// The largest.
    pub max: f64,
    /// All values, in ranges that adjoin.
    pub bars: Vec<Bar>,
}

impl Histogram {
    /// Counts a value.
    pub fn add(&mut self, value: u64) {
        *self.counts.entry(rounded(value)).or_default() += 1;
        self.count += 1;
        self.sum += u128::from(value);
        self.smallest = Some(self.smallest.map_or(value, |smallest| smallest.min(value)));
        self.largest = self.largest.max(value);
    }

    /// Returns the number of values above `limit`, which is at most 255.
    pub fn above(&self, limit: u8) -> u64 {
        self.counts.range(u64::from(limit) + 1..).map(|(_, count)| count).sum()
    }

    /// Returns the numbers and bars that show the values; bars begin and end at round numbers.
    pub fn distribution(&self, round: Round) -> Distribution {
        let Some(smallest) = self.smallest else { return Distribution::default() };
        Distribution {
            count: self.count,
            min: smallest as f64,
            p5: self.quantile(0.05),
            median: self.quantile(0.5),
            mean: self.sum as f64 / self.count as f64,
            p95: self.quantile(0.95),
            max: self.largest as f64,
            bars: self.bars(smallest, round),
        }
    }

    /// Returns the value that this share of all values is not above.
    fn quantile(&self, share: f64) -> f64 {
        let wanted = (share * self.count as f64).ceil().max(1.0) as u64;
        let mut below = 0;
        for (&value, &count) in &self.counts {
            below += count;
            if below >= wanted {
                return value as f64;
            }
        }
        self.largest as f64
    }

    fn bars(&self, smallest: u64, round: Round) -> Vec<Bar> {
        let edges = edges(rounded(smallest), rounded(self.largest), round);
        let [from, .., to] = edges[..] else {
            return vec![Bar { from: smallest as f64, to: self.largest as f64, count: self.count }];
        };
        debug_assert!(from <= rounded(smallest) && to > rounded(self.largest));
        let within = |two: &[u64]| self.counts.range(two[0]..two[1]).map(|(_, count)| count).sum();
        let bar = |two: &[u64]| Bar { from: two[0] as f64, to: two[1] as f64, count: within(two) };
        edges.windows(2).map(bar).collect()
    }
}

/// Returns the largest number of eight significant bits that is not above `value`.
fn rounded(value: u64) -> u64 {
    let drop = (u64::BITS - value.leading_zeros()).saturating_sub(BITS);
    value >> drop << drop
}

impl Round {
    /// Returns the round numbers of 64 bits, zero first, in growing order; the fewer, the higher
    /// `coarse` is.
    fn numbers(self, coarse: u32) -> Vec<u64> {
        let factors: &[u64] = match (self, coarse) {
            (Self::Decimal, 0) => &[1, 2, 5],
            _ => &[1],
        };
        let (base, step) = match self {
            Self::Decimal => (10_u64, coarse.max(1)),
            Self::Binary => (2, 1 << coarse),
        };
        let powers =
            (0..u64::BITS).step_by(step as usize).map_while(|power| base.checked_pow(power));
        let grown =
            powers.flat_map(|power| factors.iter().filter_map(move |f| power.checked_mul(*f)));
        std::iter::once(0).chain(grown).chain([u64::MAX]).collect()
    }
}

/// Returns round numbers, the first not above `low`, the last above `high`; only one where both are the same.
fn edges(low: u64, high: u64, round: Round) -> Vec<u64> {
    if low == high {
        return vec![low];
    }
    if high / low.max(1) >= WIDE {
        return growing_edges(low, high, round);
    }
    let least = (high - low).div_ceil(MOST_BARS - 1);
    let numbers = round.numbers(0);
    let step = numbers[numbers.partition_point(|&step| step < least)];
    (low / step..=high / step + 1).map(|edge| edge.saturating_mul(step)).collect()
}

/// Returns edges that grow with the values: the finest of which there are not too many.
fn growing_edges(low: u64, high: u64, round: Round) -> Vec<u64> {
    let within = |coarse| {
        let all = round.numbers(coarse);
        let first = all.partition_point(|&edge| edge <= low) - 1;
        let last = all.partition_point(|&edge| edge <= high).min(all.len() - 1);
        all[first..=last].to_vec()
    };
    let fits = |edges: &Vec<u64>| edges.len() as u64 <= MOST_BARS + 1;
    (0..).map(within).find(fits).expect("few numbers are left when steps are large")
}

/// Bounds of the bars of aspect ratios, width over height.
const RATIOS: [f64; 13] = [0.0, 0.25, 0.4, 0.55, 0.7, 0.85, 0.98, 1.02, 1.2, 1.45, 1.9, 2.6, 4.0];

/// Counts aspect ratios in fixed ranges.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ratios {
    counts: [u64; RATIOS.len()],
    largest: f64,
}

impl Ratios {
    /// Counts a picture of `width` × `height` pixels.
    pub fn add(&mut self, width: u32, height: u32) {
        let ratio = f64::from(width) / f64::from(height.max(1));
        let range = RATIOS.partition_point(|&bound| bound <= ratio) - 1;
        self.counts[range] += 1;
        self.largest = self.largest.max(ratio);
    }

    /// Returns the bars from the first to the last that is not empty.
    pub fn bars(&self) -> Vec<Bar> {
        let used = |range: &usize| self.counts[*range] > 0;
        let (Some(first), Some(last)) =
            ((0..RATIOS.len()).find(used), (0..RATIOS.len()).rev().find(used))
        else {
            return Vec::new();
        };
        let end = |range: usize| RATIOS.get(range + 1).copied().unwrap_or(self.largest + 1.0);
        let bar =
            |range: usize| Bar { from: RATIOS[range], to: end(range), count: self.counts[range] };
        (first..=last).map(bar).collect()
    }
}

#[cfg(test)]
#[path = "histogram_tests.rs"]
mod tests;
