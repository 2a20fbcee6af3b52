//! What a drill measured, and whether that is what is promised of its kind.

use super::kind::Kind;
use super::timeline::Timeline;

/// What a drill measured.
#[derive(Debug)]
pub struct Report {
    /// What was done.
    pub kind: Kind,
    /// Every recovery; for a fault that spares the ranks, the longest time between two steps from
    /// the fault until everything stood again, beside which [`Report::calm`] is to be read; for a pair that
    /// cannot reach each other, the time from submission until the job's history names both.
    pub recoveries: Vec<Timeline>,
    /// How long the fresh rank of each recovery took from exec to Join, where one was started.
    pub starts: Vec<f64>,
    /// Median and longest time between two steps that no fault lies between, in seconds.
    pub calm: [f64; 2],
    /// Recoveries the coordinator counted; for a slow job, everything that was not calm about it.
    pub counted: u64,
    /// What else did not go as it must, a sentence each.
    pub complaints: Vec<String>,
}

/// The most that something may take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Limit {
    /// So many seconds.
    Seconds(f64),
    /// So many seconds more than *s*, the median time that a fresh rank of the same drill took from exec to
    /// Join.
    AfterStart(f64),
}

/// What is promised of a kind of fault.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Promise {
    /// Of the median.
    pub median: Limit,
    /// Of the longest.
    pub longest: Limit,
}

/// A report's figures, in seconds, beside what is promised.
#[derive(Debug)]
pub struct Verdict {
    /// What was done.
    pub kind: Kind,
    /// How often.
    pub runs: usize,
    /// Median, 95th percentile and longest of what was measured.
    pub median: f64,
    /// See above.
    pub p95: f64,
    /// See above.
    pub longest: f64,
    /// Median and longest of the fresh ranks' starts; none if none was started.
    pub start: Option<[f64; 2]>,
    /// What is promised.
    pub promise: Promise,
    /// Why the promise is not kept, a sentence each; empty if it is.
    pub broken: Vec<String>,
}

impl Report {
    /// Holds what was measured against what is promised.
    pub fn verdict(&self) -> Verdict {
        let totals = sorted(self.recoveries.iter().map(|recovery| recovery.total));
        let starts = sorted(self.starts.iter().copied());
        let start = (!starts.is_empty()).then(|| [at(&starts, 0.5), at(&starts, 1.0)]);
        let promise = promise(self.kind);
        let mut broken = self.complaints.clone();
        if self.kind.spares_ranks() && self.counted > 0 {
            broken.push(format!("{} recoveries of a job that was not disturbed", self.counted));
        }
        if totals.is_empty() {
            broken.push("nothing was measured".to_owned());
        }
        let (median, longest) = (at(&totals, 0.5), at(&totals, 1.0));
        for (what, took, limit) in
            [("median", median, promise.median), ("longest", longest, promise.longest)]
        {
            match limit.seconds(start) {
                Some(most) if took <= most => {}
                Some(most) => {
                    broken.push(format!("the {what} of {took:.3} s is above {most:.3} s"))
                }
                None => broken.push("no log tells how long a fresh rank took to start".to_owned()),
            }
        }
        let (kind, runs, p95) = (self.kind, totals.len(), at(&totals, 0.95));
        Verdict { kind, runs, median, p95, longest, start, promise, broken }
    }
}

impl Limit {
    /// Returns it in seconds, given median and longest of the fresh ranks' starts; none where those are
    /// needed and not there.
    pub fn seconds(self, start: Option<[f64; 2]>) -> Option<f64> {
        match self {
            Self::Seconds(seconds) => Some(seconds),
            Self::AfterStart(more) => start.map(|[median, _]| median + more),
        }
    }
}

impl Verdict {
    /// Whether the promise was kept.
    pub fn kept(&self) -> bool {
        self.broken.is_empty()
    }
}

/// What is promised of a kind of fault.
fn promise(kind: Kind) -> Promise {
    use Limit::{AfterStart, Seconds};
    let (median, longest) = match kind {
        Kind::KillRank => (AfterStart(0.1), AfterStart(0.4)),
        Kind::KillAgent => (AfterStart(0.6), Seconds(5.0)),
        // Found by what can be seen of them, not by the end of a lease.
        Kind::StopRank | Kind::CutNode => (AfterStart(2.1), Seconds(10.0)),
        // Silent for a lease of 5 s, then 5 s for the kill, then a new rank.
        Kind::UndeadRank => (Seconds(15.0), Seconds(15.0)),
        Kind::UnreachablePair => (Seconds(10.0), Seconds(10.0)),
        // No step is lost: none takes longer than the slowest without a fault, with some room for
        // the processes that start meanwhile on the same cores.
        Kind::KillCoordinator => (Seconds(1.0), Seconds(1.0)),
        // As long as it stood still, and a second to spare.
        Kind::SlowRank => (Seconds(4.0), Seconds(4.0)),
        Kind::Slow(slow) => {
            let limit = Seconds(slow.limit().as_secs_f64());
            (limit, limit)
        }
    };
    Promise { median, longest }
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Returns the value at `share` of the way from the lowest to the highest, rounded up to one that is there:
/// of an even number, the upper one of the middle. Zero of nothing.
pub fn at(sorted: &[f64], share: f64) -> f64 {
    let index = (share * sorted.len().saturating_sub(1) as f64).ceil() as usize;
    sorted.get(index).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slow::Slow;

    fn report(kind: Kind, totals: &[f64], starts: &[f64]) -> Report {
        let recovery = |total: &f64| Timeline { total: *total, parts: [0.0; 5] };
        Report {
            kind,
            recoveries: totals.iter().map(recovery).collect(),
            starts: starts.to_vec(),
            calm: [0.0; 2],
            counted: 1,
            complaints: Vec::new(),
        }
    }

    #[test]
    fn the_middle_of_an_even_number_is_the_upper_one_and_the_last_is_the_longest() {
        let values = sorted([4.0, 1.0, 3.0, 2.0].into_iter());
        let figures = [0.5, 0.95, 1.0].map(|share| at(&values, share));
        assert!(figures.iter().zip([3.0, 4.0, 4.0]).all(|(a, b)| (a - b).abs() < 1e-9));
        assert!(at(&[], 0.5).abs() < 1e-9 && (at(&[7.0], 0.5) - 7.0).abs() < 1e-9);
    }

    #[test]
    fn a_recovery_is_judged_by_what_it_takes_beyond_the_start_of_a_rank() {
        let starts = [0.3, 0.25, 0.2];
        assert!(report(Kind::KillRank, &[0.34, 0.3, 0.6], &starts).verdict().kept());
        let slow = report(Kind::KillRank, &[0.36, 0.36, 0.4], &starts).verdict();
        assert_eq!(slow.broken, ["the median of 0.360 s is above 0.350 s"]);
        let once = report(Kind::KillRank, &[0.3, 0.3, 0.66], &starts).verdict();
        assert_eq!(once.broken, ["the longest of 0.660 s is above 0.650 s"]);
        // The longest of these is not held against a start.
        let agent = report(Kind::KillAgent, &[0.8, 0.8, 4.0], &starts).verdict();
        assert!(agent.kept(), "{agent:?}");
    }

    #[test]
    fn without_a_start_nothing_is_promised_kept_that_counts_from_one() {
        let verdict = report(Kind::StopRank, &[2.0], &[]).verdict();
        assert_eq!(verdict.broken[0], "no log tells how long a fresh rank took to start");
        assert!(report(Kind::UndeadRank, &[12.0], &[]).verdict().kept());
    }

    #[test]
    fn complaints_false_recoveries_and_nothing_at_all_break_a_promise() {
        let mut undead = report(Kind::UndeadRank, &[12.0], &[]);
        undead.complaints.push("its slot is in service".to_owned());
        assert_eq!(undead.verdict().broken, ["its slot is in service"]);
        let step = Kind::Slow(Slow::Step);
        let disturbed = report(step, &[1.0], &[]).verdict();
        assert_eq!(disturbed.broken, ["1 recoveries of a job that was not disturbed"]);
        assert!(!report(Kind::KillAgent, &[], &[0.3]).verdict().kept());
    }
}
