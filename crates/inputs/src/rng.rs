//! Counter-based randomness: a value is a pure function of a seed and what it is for, so neither
//! world size, nor micro-batching, nor a restart changes it.
//!
//! [`key`] folds words into a 64-bit key with SplitMix64's finaliser (Steele et al., "Fast
//! splittable pseudorandom number generators", OOPSLA 2014); [`Stream`] is SplitMix64 started at
//! such a key and gives the few dozen draws one decision needs.

use rand::RngCore;

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// What a draw is for; the first word of every key, so that uses never share a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub enum Site {
    /// Permutation of the blocks: (source, epoch).
    BlockOrder = 1,
    /// Shuffle inside a lane's window: (source, epoch, lane, window).
    WindowOrder = 2,
    /// Replacement of a corrupt sample: (source, position in its sequence, and then the attempt).
    Substitute = 3,
    /// Augmentation of one image: (source, position in its sequence).
    Augment = 4,
    /// Choice among a sample's captions: (source, position in its sequence).
    Caption = 5,
    /// Patch dropout: (step, global row).
    PatchDropout = 6,
    /// Initial weights: (hash of the parameter's name).
    Init = 7,
    /// Order digest: (step, global row, source, sample).
    OrderDigest = 8,
    /// Stochastic depth: (step, global row, block).
    DropPath = 9,
    /// Dropout: (step, global row, position), and then site and column.
    Dropout = 10,
    /// Places of the sources in a batch: (samples before it).
    Places = 11,
    /// Choice and order of samples outside of training: (1 for a choice, 2 for an order).
    Tool = 12,
}

/// Returns a 64-bit key for `seed`, `site` and the words that say which decision it is.
pub fn key(seed: u64, site: Site, words: &[u64]) -> u64 {
    let state = mix(seed.wrapping_add(GOLDEN));
    fold(mix(state ^ (site as u64).wrapping_mul(GOLDEN)), words)
}

/// Returns a 64-bit key of the words alone, to be mixed into another key.
pub fn mixed(words: &[u64]) -> u64 {
    fold(mix(GOLDEN), words)
}

fn fold(state: u64, words: &[u64]) -> u64 {
    words
        .iter()
        .fold(state, |state, word| mix(state.wrapping_add(GOLDEN) ^ mix(word.wrapping_add(GOLDEN))))
}

/// Returns a 64-bit key of a name (FNV-1a, then mixed), for draws that belong to a parameter.
pub fn key_of_name(name: &str) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in name.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    mix(hash)
}

/// A short sequence of draws for one decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    state: u64,
}

impl Stream {
    /// Starts the sequence for `seed`, `site` and `words`.
    pub fn new(seed: u64, site: Site, words: &[u64]) -> Self {
        Self { state: key(seed, site, words) }
    }

    /// Returns a sequence of its own for draws that are made elsewhere; this one goes on with the next draw.
    pub fn fork(&mut self) -> Self {
        Self { state: mix(self.next_u64()) }
    }

    /// Returns a value in [0, 1) with 53 random bits.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Returns a value in [low, high).
    pub fn uniform(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.unit()
    }

    /// Returns an integer in [0, n); `n` must not be zero.
    pub fn below(&mut self, n: u64) -> u64 {
        // Lemire's multiply-shift; its bias is below n / 2^64.
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// Returns true with probability `p`.
    pub fn chance(&mut self, p: f64) -> bool {
        self.unit() < p
    }

    /// Returns a standard normal value (Box–Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.unit()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Permutes `items` in place (Fisher–Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
    }
}

impl RngCore for Stream {
    fn next_u32(&mut self) -> u32 {
        (self.next_u64() >> 32) as u32
    }

    fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    fn fill_bytes(&mut self, dest: &mut [u8]) {
        for chunk in dest.chunks_mut(8) {
            let bytes = self.next_u64().to_le_bytes();
            chunk.copy_from_slice(&bytes[..chunk.len()]);
        }
    }
}

/// SplitMix64's finaliser: a permutation of the 64-bit numbers in which every bit of a value depends on all bits of
/// the argument.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_key_gives_the_same_draws_and_any_changed_word_others() {
        let draw = |seed, site, words: &[u64]| Stream::new(seed, site, words).next_u64();
        let base = draw(1, Site::Augment, &[2, 3]);
        assert_eq!(base, draw(1, Site::Augment, &[2, 3]));
        for other in [
            draw(2, Site::Augment, &[2, 3]),
            draw(1, Site::Caption, &[2, 3]),
            draw(1, Site::Augment, &[3, 2]),
            draw(1, Site::Augment, &[2, 3, 0]),
        ] {
            assert_ne!(base, other);
        }
    }

    #[test]
    fn uniform_and_normal_draws_have_their_moments() {
        let mut stream = Stream::new(7, Site::Init, &[]);
        let n = 20_000;
        let uniform: f64 = (0..n).map(|_| stream.uniform(-1.0, 3.0)).sum::<f64>() / f64::from(n);
        assert!((uniform - 1.0).abs() < 0.05, "{uniform}");
        let squares: f64 = (0..n).map(|_| stream.normal().powi(2)).sum::<f64>() / f64::from(n);
        assert!((squares - 1.0).abs() < 0.05, "{squares}");
    }
}
