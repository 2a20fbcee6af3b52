//! How many rows of a batch each source of a mixture gives.

use super::Error;

/// Shares are counted in parts of this power of two, so that a count is exact however far a run has come.
const PARTS: u32 = 52;
/// The smallest share that a source may have.
const SMALLEST: f64 = 1e-9;

/// The shares of the sources, which add up to one.
#[derive(Debug, Clone, PartialEq)]
pub struct Shares {
    shares: Vec<f64>,
    /// The source with the largest share, which takes what rounding leaves.
    carrier: usize,
}

impl Shares {
    /// Returns shares in proportion to these weights.
    ///
    /// # Errors
    /// [`Error::Weights`] when there is none, or one is no positive number.
    pub fn new(weights: &[f64]) -> Result<Self, Error> {
        let sum: f64 = weights.iter().sum();
        let shares: Vec<f64> = weights.iter().map(|weight| weight / sum).collect();
        if shares.is_empty() || !shares.iter().all(|share| (SMALLEST..=1.0).contains(share)) {
            return Err(Error::Weights { weights: weights.to_vec() });
        }
        // The first of the largest.
        let larger = |a: &&f64, b: &&f64| a.total_cmp(b);
        let largest = shares.iter().max_by(larger).copied().unwrap_or(1.0);
        let carrier = shares.iter().position(|share| *share == largest).unwrap_or(0);
        Ok(Self { shares, carrier })
    }

    /// Returns the number of sources.
    pub fn len(&self) -> usize {
        self.shares.len()
    }

    /// Whether there is none; shares that were made have one.
    pub fn is_empty(&self) -> bool {
        self.shares.is_empty()
    }

    /// Returns the share p of a source, before rounding of counts.
    pub fn of(&self, source: usize) -> f64 {
        self.shares[source]
    }

    /// Returns how many of the first `samples` samples of a run `source` gives: ⌊N·p⌋, and for the carrier the
    /// rest. A batch of B after N samples takes the difference of the counts at N + B and at N, so that a change
    /// of B changes no count.
    pub fn before(&self, source: usize, samples: u64) -> u64 {
        // A share is cut to whole parts and one is added: then a product that is a whole number is not cut below it,
        // for shares of denominators up to 2^52 over the samples of the run.
        let parts = |source: usize| (self.shares[source] * (1_u64 << PARTS) as f64) as u64 + 1;
        let floor =
            |source: usize| ((u128::from(samples) * u128::from(parts(source))) >> PARTS) as u64;
        if source != self.carrier {
            return floor(source);
        }
        let others = (0..self.len()).filter(|&other| other != source);
        samples - others.map(floor).sum::<u64>()
    }

    /// Returns the most rows that a source gives to a batch of this size.
    pub(super) fn most(&self, source: usize, global_batch: u64) -> u64 {
        let rows = |source: usize| global_batch as f64 * self.of(source);
        if source != self.carrier {
            return rows(source).ceil() as u64;
        }
        let others = (0..self.len()).filter(|&other| other != source);
        global_batch - others.map(|other| rows(other) as u64).sum::<u64>().min(global_batch)
    }

    /// Checks that a batch is large enough that the carrier's count never falls: every other source may give one
    /// row more than its share.
    ///
    /// # Errors
    /// [`Error::FewRows`].
    pub(super) fn check_batch(&self, global_batch: u64) -> Result<(), Error> {
        let sources = self.len() as u64;
        let least = ((sources - 1) as f64 / self.of(self.carrier)).ceil() as u64;
        if global_batch < least {
            return Err(Error::FewRows { global_batch, sources, least });
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_source_gives_everything() {
        let shares = Shares::new(&[0.2]).unwrap();
        assert_eq!(shares.before(0, 12_345_678_901_234), 12_345_678_901_234);
    }

    #[test]
    fn weights_that_are_no_shares_are_refused() {
        for weights in
            [&[][..], &[1.0, 0.0], &[1.0, -1.0], &[f64::NAN], &[f64::INFINITY], &[1.0, 1e-12]]
        {
            assert!(Shares::new(weights).is_err(), "{weights:?}");
        }
        assert_eq!(Shares::new(&[2.0, 1.0, 1.0]).unwrap().of(0), 0.5);
    }

    #[test]
    fn a_batch_of_fewer_rows_than_rounding_needs_is_refused() {
        let shares = Shares::new(&[1.0, 1.0, 1.0]).unwrap();
        assert!(shares.check_batch(6).is_ok());
        let error = shares.check_batch(5).unwrap_err().to_string();
        assert!(
            error.contains("5") && error.contains("3 sources") && error.contains("6"),
            "{error}"
        );
    }

    proptest! {
        /// Of weights that are whole numbers the counts are what arithmetic with whole numbers gives.
        #[test]
        fn counts_are_exact_however_far_a_run_has_come(
            weights in prop::collection::vec(1_u64..1000, 2..6),
            samples in 0_u64..50_000_000_000,
        ) {
            let sum: u64 = weights.iter().sum();
            let shares = Shares::new(&weights.iter().map(|w| *w as f64).collect::<Vec<_>>()).unwrap();
            for (source, weight) in weights.iter().enumerate().filter(|one| one.0 != shares.carrier) {
                // Far out, and where N·p is a whole number.
                for samples in [samples, samples / sum * sum] {
                    let exact = u128::from(samples) * u128::from(*weight) / u128::from(sum);
                    prop_assert_eq!(u128::from(shares.before(source, samples)), exact);
                }
            }
        }

        #[test]
        fn counts_follow_the_formula_add_up_and_never_fall(
            weights in prop::collection::vec(0.01_f64..5.0, 1..7),
            start in 0_u64..10_000_000_000,
            batches in prop::collection::vec(1_u64..5000, 1..8),
        ) {
            let shares = Shares::new(&weights).unwrap();
            let mut samples = start;
            for batch in batches {
                if shares.check_batch(batch).is_err() {
                    continue;
                }
                let counts = |samples| -> Vec<u64> {
                    (0..shares.len()).map(|source| shares.before(source, samples)).collect()
                };
                let (before, after) = (counts(samples), counts(samples + batch));
                prop_assert_eq!(after.iter().sum::<u64>(), samples + batch);
                for source in 0..shares.len() {
                    prop_assert!(after[source] >= before[source], "{} of {:?}", source, shares);
                    let expected = samples as f64 * shares.of(source);
                    let off = (before[source] as f64 - expected).abs();
                    prop_assert!(off <= shares.len() as f64, "{} of {:?}: {}", source, shares, off);
                }
                samples += batch;
            }
        }
    }
}
