//! What a run waits for, in a sentence that says what to change.

use super::clock::Rates;

/// What limits the speed of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bottleneck {
    /// Readers wait for the store.
    Store,
    /// Readers decode.
    Decode,
    /// Ranks wait for one another.
    Peers,
    /// The compute thread is busy.
    Compute,
}

/// Share of an interval from which on a wait counts: below, getting rid of it gains less than a tenth.
const COUNTS: f64 = 0.1;

impl Bottleneck {
    /// Returns what an interval was limited by.
    pub(crate) fn of(rates: &Rates) -> Self {
        if rates.data_share >= COUNTS && rates.data_share >= rates.comm_share {
            match rates.store_share.is_some_and(|store| store >= rates.data_share / 2.0) {
                true => Self::Store,
                false => Self::Decode,
            }
        } else if rates.comm_share >= 2.0 * COUNTS {
            Self::Peers
        } else {
            Self::Compute
        }
    }

    /// Returns it in a sentence with what to change.
    pub(crate) fn sentence(self, rates: &Rates, readers: usize) -> String {
        let percent = |share: f64| format!("{:.0} %", share * 100.0);
        match self {
            Self::Store => format!(
                "{} of the time steps wait for data, and its readers for the store: bring the shards nearer, or give \
                 data.memory more room for what is fetched ahead",
                percent(rates.data_share)
            ),
            Self::Decode => format!(
                "{} of the time steps wait for data, and its {readers} readers decode: raise data.readers if cores are \
                 idle, or store smaller pictures",
                percent(rates.data_share)
            ),
            Self::Peers => format!(
                "{} of the time steps wait for other ranks: a larger batch.global exchanges less per sample; the \
                 slowest rank is named in the log",
                percent(rates.comm_share)
            ),
            Self::Compute => format!(
                "steps are limited by computation: data takes {} of the time, other ranks {}",
                percent(rates.data_share),
                percent(rates.comm_share)
            ),
        }
    }
}

/// Intervals that a bottleneck has to hold for: one on the border would be told again and again.
const HOLDS: u32 = 5;

/// Follows the intervals of a run.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    told: Option<Bottleneck>,
    /// What limited the last intervals, and how many of them.
    held: Option<(Bottleneck, u32)>,
}

impl Watch {
    /// Takes in an interval; returns what is worth telling: what has limited the run for a while, and was not told
    /// last.
    pub(crate) fn interval(&mut self, rates: &Rates) -> Option<Bottleneck> {
        let now = Bottleneck::of(rates);
        let times = match self.held {
            Some((same, times)) if same == now => times + 1,
            _ => 1,
        };
        self.held = Some((now, times));
        let news = times >= HOLDS && self.told != Some(now);
        news.then(|| *self.told.insert(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rates(data_share: f64, store: f64, comm_share: f64) -> Rates {
        Rates { data_share, store_share: Some(data_share * store), comm_share, ..Rates::default() }
    }

    #[test]
    fn a_slow_store_slow_decoding_slow_peers_and_slow_computation_are_told_apart() {
        for (rates, expected, said) in [
            (
                rates(0.6, 0.9, 0.1),
                Bottleneck::Store,
                "60 % of the time steps wait for data, and its readers for the",
            ),
            (rates(0.6, 0.1, 0.1), Bottleneck::Decode, "its 3 readers decode: raise data.readers"),
            (
                rates(0.05, 1.0, 0.5),
                Bottleneck::Peers,
                "50 % of the time steps wait for other ranks",
            ),
            (rates(0.09, 1.0, 0.1), Bottleneck::Compute, "limited by computation: data takes 9 %"),
        ] {
            assert_eq!(Bottleneck::of(&rates), expected);
            let sentence = expected.sentence(&rates, 3);
            assert!(sentence.contains(said), "{sentence}");
        }
    }

    /// A run at the border had a line every second.
    #[test]
    fn what_holds_is_told_once_and_what_comes_and_goes_is_not() {
        let (store, compute) = (rates(0.6, 0.9, 0.1), rates(0.0, 0.0, 0.0));
        let mut watch = Watch::default();
        let told =
            (0..40).filter_map(|i| watch.interval(if i % 2 == 0 { &store } else { &compute }));
        assert_eq!(told.count(), 0);
        let told: Vec<_> = (0..10).filter_map(|_| watch.interval(&store)).collect();
        assert_eq!(told, [Bottleneck::Store]);
        let told: Vec<_> = (0..10).filter_map(|_| watch.interval(&compute)).collect();
        assert_eq!(told, [Bottleneck::Compute]);
    }
}
