//! How fast neighbours in a ring reach one another.
//!
//! In each phase of a round every other rank sends one block to the next one and receives nothing,
//! so that what a receiver measures is that one link: were all to send and receive at once, a slow
//! link would show at both its ends. The best of some rounds counts, because the cores may be busy
//! with something else in any one of them.

use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};

use crate::collective::{Collective, Error, ReduceOp};

/// Elements of the block, f32: 1 MiB.
const BLOCK: i64 = 1 << 18;
/// Rounds at most, after one that is not counted.
const ROUNDS: usize = 8;
/// Time that all rounds together are meant to take.
const BUDGET: Duration = Duration::from_millis(200);
/// A link is slow that does not reach this share of the median link's speed.
const SLOW: f64 = 1.0 / 3.0;
/// With fewer links there is no telling which of them is the odd one.
const JUDGED: usize = 3;

/// Bytes per second of every link, by its sender; link i leads from rank i to the next.
#[derive(Debug, Clone, PartialEq)]
pub struct Links {
    speeds: Vec<f64>,
}

/// Measures the links of a ring; every rank must call it at the same place. None for a single rank.
///
/// # Errors
/// The ring's.
pub fn measure(collective: &dyn Collective, device: Device) -> Result<Option<Links>, Error> {
    let world_size = collective.world_size();
    if world_size < 2 {
        return Ok(None);
    }
    let blocks = Blocks::new(device);
    // Connections warm up, buffers are made; and it shows how many rounds there is time for.
    let began = Instant::now();
    blocks.round(collective)?;
    // The slowest rank's time decides for all, so that every rank goes the same number of rounds.
    let longest = greatest(collective, &[began.elapsed().as_secs_f64()])?[0];
    let rounds = (BUDGET.as_secs_f64() / longest.max(1e-6)) as usize;
    let mut best = f64::INFINITY;
    for _ in 0..rounds.clamp(1, ROUNDS) {
        best = best.min(blocks.round(collective)?);
    }
    let mut times = vec![0.0; world_size];
    // What a rank receives comes over the link of the rank before it.
    times[(collective.rank() + world_size - 1) % world_size] = best;
    let times = greatest(collective, &times)?;
    let bytes = (BLOCK * 4) as f64;
    Ok(Some(Links { speeds: times.iter().map(|time| bytes / time.max(1e-9)).collect() }))
}

/// The greatest of every number over all ranks.
fn greatest(collective: &dyn Collective, numbers: &[f64]) -> Result<Vec<f64>, Error> {
    let tensor = Tensor::from_slice(numbers);
    // collective: all-reduce; every rank of the ring is measuring.
    collective.all_reduce(&tensor, ReduceOp::Max)?.wait()?;
    Ok((0..numbers.len() as i64).map(|i| tensor.double_value(&[i])).collect())
}

struct Blocks {
    full: Tensor,
    received: Tensor,
    empty: Tensor,
}

impl Blocks {
    fn new(device: Device) -> Self {
        let zeros = |len: i64| Tensor::zeros([len], (Kind::Float, device));
        Self { full: zeros(BLOCK), received: zeros(BLOCK), empty: zeros(0) }
    }

    /// Every link once; returns the seconds until this rank had its block.
    fn round(&self, collective: &dyn Collective) -> Result<f64, Error> {
        let (rank, world_size) = (collective.rank(), collective.world_size());
        let (next, previous) = ((rank + 1) % world_size, (rank + world_size - 1) % world_size);
        let mut seconds = 0.0;
        for phase in 0..phases(world_size) {
            let sends = phase_of(rank, world_size) == phase;
            let receives = phase_of(previous, world_size) == phase;
            let send = if sends { &self.full } else { &self.empty };
            let recv = if receives { &self.received } else { &self.empty };
            // collective: barrier. Without it a receiver would measure how late its sender is.
            collective.barrier()?;
            let began = Instant::now();
            // collective: exchange. A rank that sends or receives nothing in this phase takes part with an
            // empty tensor, as every rank has to.
            collective.exchange(send, next, recv, previous)?.wait()?;
            // On a GPU the exchange is only queued so far.
            collective.settle()?;
            if receives {
                seconds = began.elapsed().as_secs_f64();
            }
        }
        Ok(seconds)
    }
}

/// Phases in which every rank has sent once and no rank sends while it receives.
fn phases(world_size: usize) -> usize {
    2 + world_size % 2
}

/// The phase in which a rank sends. In a ring of odd length the last rank has one of its own.
fn phase_of(rank: usize, world_size: usize) -> usize {
    if world_size % 2 == 1 && rank + 1 == world_size { 2 } else { rank % 2 }
}

impl Links {
    /// Returns slowest, median and fastest speed, in bytes per second.
    pub fn spread(&self) -> [f64; 3] {
        let mut sorted = self.speeds.clone();
        sorted.sort_by(f64::total_cmp);
        [sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1]]
    }

    /// Returns the links that are much slower than the median: sender, receiver and speed.
    pub fn slow(&self) -> Vec<(usize, usize, f64)> {
        let count = self.speeds.len();
        let [_, median, _] = self.spread();
        if count < JUDGED {
            return Vec::new();
        }
        let links = self.speeds.iter().enumerate();
        let slow = links.filter(|(_, speed)| **speed < SLOW * median);
        slow.map(|(rank, speed)| (rank, (rank + 1) % count, *speed)).collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::collective::testing::with_ring;

    #[test]
    fn every_rank_sends_in_one_phase_and_receives_in_another() {
        for world_size in 2..10 {
            for rank in 0..world_size {
                let (own, next) = (rank, (rank + 1) % world_size);
                assert_ne!(phase_of(own, world_size), phase_of(next, world_size), "{world_size}");
                assert!(phase_of(rank, world_size) < phases(world_size));
            }
        }
    }

    #[test]
    fn all_ranks_learn_the_speed_of_every_link_of_a_ring() {
        for world_size in [1, 2, 3, 4] {
            let seen = with_ring(world_size, |ring| measure(ring, Device::Cpu).unwrap());
            assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
            match &seen[0] {
                None => assert_eq!(world_size, 1),
                Some(links) => {
                    assert_eq!(links.speeds.len(), world_size);
                    let [slowest, _, fastest] = links.spread();
                    // Between a slow modem and nothing that exists.
                    assert!(slowest > 1e3 && fastest < 1e12, "{links:?}");
                }
            }
        }
    }

    #[test]
    fn only_a_link_far_below_the_median_is_slow() {
        let links = Links { speeds: vec![9.0, 10.0, 3.1, 11.0, 3.4] };
        assert_eq!(links.spread(), [3.1, 9.0, 11.0]);
        assert_eq!(links.slow(), []);
        let links = Links { speeds: vec![9.0, 10.0, 2.0, 11.0] };
        assert_eq!(links.slow(), [(2, 3, 2.0)]);
        let links = Links { speeds: vec![9.0, 10.0, 9.5, 0.1] };
        assert_eq!(links.slow(), [(3, 0, 0.1)], "the last link leads back to the first rank");
        assert_eq!(Links { speeds: vec![1.0, 10.0] }.slow(), []);
    }
}
