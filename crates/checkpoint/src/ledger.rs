//! The corrupt samples that a run has met.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A sample of the training data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SampleKey {
    /// Number of its source.
    pub source: u32,
    /// Index in the source, counting through the shards.
    pub index: u64,
}

/// A sample that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Corrupt {
    /// Which.
    #[serde(flatten)]
    pub sample: SampleKey,
    /// Where it is and what is wrong with it.
    pub reason: String,
}

/// The distinct corrupt samples of a run, and how often one was replaced. It grows with the samples, not with the
/// steps: which sample takes the place of which follows from the order and from what is corrupt.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored", into = "Stored")]
pub struct Ledger {
    replaced: u64,
    corrupt: BTreeMap<SampleKey, String>,
}

/// A ledger as it is stored: JSON has no keys of several parts.
#[derive(Serialize, Deserialize)]
struct Stored {
    replaced: u64,
    corrupt: Vec<Corrupt>,
}

impl Ledger {
    /// Adds a corrupt sample; returns whether it was not known.
    pub fn add(&mut self, corrupt: &Corrupt) -> bool {
        let before = self.corrupt.len();
        self.corrupt.entry(corrupt.sample).or_insert_with(|| corrupt.reason.clone());
        self.corrupt.len() > before
    }

    /// Adds what a step found: rows whose sample was replaced, and corrupt samples.
    pub fn merge(&mut self, replaced: u64, corrupt: &[Corrupt]) {
        self.replaced += replaced;
        for corrupt in corrupt {
            self.add(corrupt);
        }
    }

    /// Returns why a sample is corrupt, if it is known to be.
    pub fn reason(&self, sample: SampleKey) -> Option<&str> {
        self.corrupt.get(&sample).map(String::as_str)
    }

    /// Returns the rows whose sample was replaced, in all steps.
    pub fn replaced(&self) -> u64 {
        self.replaced
    }

    /// Returns the number of distinct corrupt samples.
    pub fn len(&self) -> usize {
        self.corrupt.len()
    }

    /// Whether no sample is known to be corrupt.
    pub fn is_empty(&self) -> bool {
        self.corrupt.is_empty()
    }

    /// Returns what is wrong with each of them.
    pub fn reasons(&self) -> impl Iterator<Item = &str> {
        self.corrupt.values().map(String::as_str)
    }
}

impl From<Stored> for Ledger {
    fn from(stored: Stored) -> Self {
        let mut ledger = Self::default();
        ledger.merge(stored.replaced, &stored.corrupt);
        ledger
    }
}

impl From<Ledger> for Stored {
    fn from(ledger: Ledger) -> Self {
        let corrupt = ledger.corrupt.into_iter();
        let corrupt = corrupt.map(|(sample, reason)| Corrupt { sample, reason }).collect();
        Self { replaced: ledger.replaced, corrupt }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn corrupt(source: u32, index: u64, reason: &str) -> Corrupt {
        Corrupt { sample: SampleKey { source, index }, reason: reason.to_owned() }
    }

    #[test]
    fn a_ledger_grows_with_distinct_samples_and_keeps_what_it_heard_first() {
        let mut ledger = Ledger::default();
        for step in 0..1000 {
            ledger.merge(2, &[corrupt(0, 7, &format!("step {step}")), corrupt(1, 7, "b")]);
        }
        assert_eq!((ledger.replaced(), ledger.len()), (2000, 2));
        assert_eq!(ledger.reason(SampleKey { source: 0, index: 7 }), Some("step 0"));
        assert_eq!(ledger.reason(SampleKey { source: 1, index: 6 }), None);
        let json = serde_json::to_string(&ledger).unwrap();
        let expected = r#"{"replaced":2000,"corrupt":[{"source":0,"index":7,"reason":"step 0"},{"source":1,"index":7,"reason":"b"}]}"#;
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_str::<Ledger>(&json).unwrap(), ledger);
    }
}
