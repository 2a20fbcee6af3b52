//! What is inflicted, when and for how long: drawn from a seed, the same for the same seed.

use std::ops::RangeInclusive;
use std::time::Duration;

/// Something that looks like a fault for a while and is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Act {
    /// A rank is stopped for tens of milliseconds again and again, so that it is up to five times slower.
    SlowRank,
    /// Busy loops take the processor from everybody.
    Starve,
    /// An agent is stopped for up to 1.2 s.
    StopAgent,
    /// The coordinator is stopped for 3 s.
    StopCoordinator,
    /// Of a hundred packets five are lost.
    LosePackets,
}

/// All of them, as tables name them.
pub const ACTS: [(&str, Act); 5] = [
    ("rank slowed up to 5 ×", Act::SlowRank),
    ("processor taken", Act::Starve),
    ("agent stopped ≤ 1.2 s", Act::StopAgent),
    ("coordinator stopped 3 s", Act::StopCoordinator),
    ("5 % of packets lost", Act::LosePackets),
];

/// One occurrence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Blow {
    /// Time without before it.
    pub(super) pause: Duration,
    /// Which of several is struck.
    pub(super) victim: usize,
    /// How long it lasts.
    pub(super) time: Duration,
    /// How many times slower it makes its victim; one where that is not the point.
    pub(super) slower: f64,
}

/// Returns the occurrences of an act, without an end. `stream` tells apart those that strike side by side.
pub(super) fn blows(
    act: Act,
    seed: u64,
    stream: u64,
    victims: usize,
) -> impl Iterator<Item = Blow> {
    let (pause, time) = ranges(act);
    let mut draw = Draw::new(seed, (act as u64) << 8 | stream);
    std::iter::repeat_with(move || Blow {
        pause: draw.milliseconds(pause.clone()),
        victim: draw.number(0..=victims.saturating_sub(1) as u64) as usize,
        time: draw.milliseconds(time.clone()),
        slower: if act == Act::SlowRank { draw.number(200..=500) as f64 / 100.0 } else { 1.0 },
    })
}

/// Milliseconds between two occurrences, and of one.
fn ranges(act: Act) -> (RangeInclusive<u64>, RangeInclusive<u64>) {
    match act {
        Act::SlowRank => (200..=2_000, 2_000..=10_000),
        Act::Starve => (5_000..=20_000, 5_000..=30_000),
        Act::StopAgent => (3_000..=12_000, 200..=1_200),
        Act::StopCoordinator => (20_000..=60_000, 3_000..=3_000),
        Act::LosePackets => (5_000..=20_000, 10_000..=40_000),
    }
}

/// Numbers from a seed (SplitMix64).
struct Draw(u64);

impl Draw {
    /// Starts one of several sequences of a seed.
    fn new(seed: u64, stream: u64) -> Self {
        let mut mixed = Self(stream);
        Self(seed ^ mixed.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn number(&mut self, range: RangeInclusive<u64>) -> u64 {
        range.start() + self.next() % (range.end() - range.start() + 1)
    }

    fn milliseconds(&mut self, range: RangeInclusive<u64>) -> Duration {
        Duration::from_millis(self.number(range))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_gives_the_same_and_streams_and_seeds_differ() {
        let first =
            |seed, stream| blows(Act::SlowRank, seed, stream, 3).take(50).collect::<Vec<Blow>>();
        assert_eq!(first(7, 0), first(7, 0));
        assert_ne!(first(7, 0), first(7, 1));
        assert_ne!(first(7, 0), first(8, 0));
    }

    /// A stop that is longer would be a fault, and its victim rightly replaced.
    #[test]
    fn no_blow_is_longer_or_harder_than_what_must_be_borne() {
        for seed in 0..20 {
            for blow in blows(Act::StopAgent, seed, 0, 3).take(200) {
                assert!(blow.time <= Duration::from_millis(1_200) && blow.victim < 3, "{blow:?}");
            }
            for blow in blows(Act::SlowRank, seed, 2, 1).take(200) {
                assert!((2.0..=5.0).contains(&blow.slower) && blow.victim == 0, "{blow:?}");
            }
            let coordinator = blows(Act::StopCoordinator, seed, 0, 1).take(50);
            assert!(coordinator.map(|blow| blow.time).all(|time| time == Duration::from_secs(3)));
        }
    }
}
