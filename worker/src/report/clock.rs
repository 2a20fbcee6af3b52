//! Where the time of a rank's compute thread goes, from one log line to the next.

use std::time::Instant;

use ringmaster_data::Spent;
use ringmaster_proto::v1::StepMetrics;

use crate::collective;

/// Clock of one reporting interval: where the compute thread's time went.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
    /// Waiting for the loader.
    pub data: f64,
    /// Where the loader's readers spent their time.
    pub spent: Spent,
    /// Waiting for peers.
    pub comm: f64,
    pub samples: u64,
    /// Computing, by rank.
    busy: Vec<f64>,
}

impl Clock {
    pub(crate) fn start() -> Self {
        collective::take_waited();
        Self {
            start: Instant::now(),
            data: 0.0,
            spent: Spent::default(),
            comm: 0.0,
            samples: 0,
            busy: Vec::new(),
        }
    }

    /// Adds what the ranks have computed in a step.
    pub(crate) fn add_busy(&mut self, busy: &[f64]) {
        self.busy.resize(busy.len(), 0.0);
        for (sum, part) in self.busy.iter_mut().zip(busy) {
            *sum += part;
        }
    }

    /// Returns the share of the readers' time that they waited for the store.
    fn waiting_for_store(&self) -> Option<f64> {
        let all = self.spent.store + self.spent.decode;
        (all > 0.0).then(|| self.spent.store / all)
    }

    pub(crate) fn rates(&self) -> Rates {
        let elapsed = self.start.elapsed().as_secs_f64().max(1e-9);
        Rates {
            samples_per_second: self.samples as f64 / elapsed,
            data_share: self.data / elapsed,
            store_share: self.waiting_for_store().map(|share| share * self.data / elapsed),
            comm_share: self.comm / elapsed,
            slowest: slowest(&self.busy),
        }
    }
}

/// The rank that computed longest and its time over the median rank's, the lower one of two; none
/// for a single rank.
fn slowest(busy: &[f64]) -> Option<(u32, f64)> {
    let mut sorted: Vec<f64> = busy.to_vec();
    sorted.sort_by(f64::total_cmp);
    let median = *sorted.get(busy.len().saturating_sub(1) / 2)?;
    let (rank, most) = (0..).zip(busy).max_by(|(_, one), (_, other)| one.total_cmp(other))?;
    (busy.len() > 1 && median > 0.0).then_some((rank, most / median))
}

/// Speed, and where the compute thread's time went.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Rates {
    pub samples_per_second: f64,
    pub data_share: f64,
    /// The part of `data_share` in which readers waited for the store.
    pub store_share: Option<f64>,
    pub comm_share: f64,
    /// Rank that computes longest, and its time over the median's.
    pub slowest: Option<(u32, f64)>,
}

impl Rates {
    /// Returns those of an earlier step.
    pub(crate) fn of(metrics: &StepMetrics) -> Self {
        Self {
            samples_per_second: metrics.samples_per_second,
            data_share: metrics.data_share,
            store_share: metrics.store_share,
            comm_share: metrics.comm_share,
            slowest: metrics.slowest_rank.zip(metrics.slowest_over_median),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::slowest;

    #[test]
    fn the_slowest_rank_is_named_with_its_time_over_the_median() {
        assert_eq!(slowest(&[2.0, 3.0, 2.0, 1.0]), Some((1, 1.5)));
        assert_eq!(slowest(&[2.0, 3.0]), Some((1, 1.5)), "of two, the faster is the measure");
        assert_eq!(slowest(&[2.0]), None);
        assert_eq!(slowest(&[]), None);
    }
}
