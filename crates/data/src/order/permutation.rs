//! A permutation of any length, evaluated at any place without a table.

use ringmaster_inputs::rng::mix;

/// Rounds of the network: with four, a permutation of this kind cannot be told from a random one by looking at
/// pairs of places (Luby and Rackoff, "How to construct pseudorandom permutations", 1988); two more make up for
/// the halves being short.
const ROUNDS: usize = 6;

/// A balanced Feistel network over the smallest even number of bits that holds `len`, walked until it lands below
/// `len` (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
#[derive(Debug, Clone)]
pub(super) struct Permutation {
    len: u64,
    /// Bits of each half.
    half: u32,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// Returns the permutation of 0..`len` that belongs to `key`.
    pub(super) fn new(len: u64, key: u64) -> Self {
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        let keys = std::array::from_fn(|round| mix(key.wrapping_add(round as u64 + 1)));
        Self { len, half: bits.div_ceil(2).max(1), keys }
    }

    /// Returns what stands at `place`, which is below the length.
    pub(super) fn at(&self, place: u64) -> u64 {
        debug_assert!(place < self.len, "place {place} of {}", self.len);
        // The network permutes at most four times as many numbers: a walk is four steps long on average.
        let mut value = self.pass(place);
        while value >= self.len {
            value = self.pass(value);
        }
        value
    }

    fn pass(&self, value: u64) -> u64 {
        let mask = (1 << self.half) - 1;
        let (mut left, mut right) = (value >> self.half, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix(right ^ key) & mask));
        }
        (left << self.half) | right
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_has_a_value_of_its_own_whatever_the_length() {
        for len in (1..70).chain([255, 256, 257, 1000, 4097]) {
            for key in 0..3 {
                let permutation = Permutation::new(len, key);
                let mut seen: Vec<u64> = (0..len).map(|place| permutation.at(place)).collect();
                seen.sort_unstable();
                assert!(seen.into_iter().eq(0..len), "length {len}, key {key}");
            }
        }
    }

    /// Chi-square over (place, value), and over the distance of neighbours, which a weak network keeps.
    #[test]
    fn values_and_distances_of_neighbours_are_spread_evenly_over_keys() {
        for len in [5, 16, 31, 100] {
            let keys = 400 * len;
            let cells = (len * len) as usize;
            let (mut values, mut distances) = (vec![0_u64; cells], vec![0_u64; cells]);
            for key in 0..keys {
                let permutation = Permutation::new(len, mix(key));
                for place in 0..len {
                    let (here, next) = (permutation.at(place), permutation.at((place + 1) % len));
                    values[(place * len + here) as usize] += 1;
                    distances[(place * len + (next + len - here) % len) as usize] += 1;
                }
            }
            let square = |counts: &[u64], expected: f64| {
                let term = |&count: &u64| (count as f64 - expected).powi(2) / expected;
                counts.iter().map(term).sum::<f64>()
            };
            // Within a row the cells add up to `keys`: len · (len − 1) are free; of distances one less, as none is 0.
            let free = (len * (len - 1)) as f64;
            let found = square(&values, keys as f64 / len as f64);
            assert!((found - free).abs() < 6.0 * (2.0 * free).sqrt(), "{len}: {found} of {free}");
            distances.retain(|&count| count > 0);
            let free = (len * (len - 2)) as f64;
            let found = square(&distances, keys as f64 / (len - 1) as f64);
            assert!((found - free).abs() < 6.0 * (2.0 * free).sqrt(), "{len}: {found} of {free}");
        }
    }
}
