//! What nodes are charged with: faults that decay, kept over restarts.
//!
//! A fault is charged to a node once its job has shown that it was not the job's (see `jobs::evidence`).
//! Half of all faults are forgotten every hour, so that a node that fails now and then is not shut out for
//! ever, and one that fails every ten minutes is, however many steps its jobs do in between.

use std::collections::BTreeMap;

use crate::fleet::Batch;
use crate::state::{Change, FaultScore};

/// Half of a node's faults are forgotten in this time.
const HALF_LIFE_MS: f64 = 3_600_000.0;
/// Fewer faults than this are as good as none.
const FORGOTTEN: f64 = 0.05;
/// From so many faults on, lost ranks do not go back to a node by preference.
const SUSPECT: f64 = 1.0;

/// Faults by node, those of nodes that have not registered included.
#[derive(Debug, Default)]
pub(crate) struct Scores {
    by_node: BTreeMap<String, FaultScore>,
}

impl Scores {
    pub(crate) fn new(by_node: BTreeMap<String, FaultScore>) -> Self {
        Self { by_node }
    }

    /// Faults that a node is charged with by now.
    pub(crate) fn of(&self, node: &str, now_ms: i64) -> f64 {
        self.by_node.get(node).map_or(0.0, |score| decayed(*score, now_ms))
    }

    /// Whether lost ranks should not go back to a node if others can take them.
    pub(crate) fn is_suspect(&self, node: &str, now_ms: i64) -> bool {
        self.of(node, now_ms) >= SUSPECT
    }

    /// Charges a node with more faults, or takes some back; returns what it is charged with then.
    pub(crate) fn add(&mut self, batch: &mut Batch, node: &str, faults: f64) -> f64 {
        let at_ms = batch.now.unix_ms;
        let faults = self.of(node, at_ms) + faults;
        if faults < FORGOTTEN {
            self.forgive(batch, node);
            return 0.0;
        }
        let score = FaultScore { faults, at_ms };
        self.by_node.insert(node.to_owned(), score);
        batch.change(Change::NodeFaults { node: node.to_owned(), score: Some(score) });
        faults
    }

    /// Charges a node with nothing any more.
    pub(crate) fn forgive(&mut self, batch: &mut Batch, node: &str) {
        if self.by_node.remove(node).is_some() {
            batch.change(Change::NodeFaults { node: node.to_owned(), score: None });
        }
    }
}

/// What is left of a score. A clock that was set back forgets nothing.
fn decayed(score: FaultScore, now_ms: i64) -> f64 {
    let elapsed = (now_ms - score.at_ms).max(0) as f64;
    score.faults * (-elapsed / HALF_LIFE_MS).exp2()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000;

    #[test]
    fn half_of_the_faults_are_forgotten_every_hour_and_none_by_a_clock_that_is_set_back() {
        let score = FaultScore { faults: 3.0, at_ms: 10 * HOUR };
        for (at, expected) in [(10, 3.0), (11, 1.5), (12, 0.75), (9, 3.0)] {
            assert!((decayed(score, at * HOUR) - expected).abs() < 1e-12, "{at}");
        }
    }

    #[test]
    fn a_node_that_fails_every_ten_minutes_has_three_faults_within_the_hour() {
        let mut score = FaultScore { faults: 0.0, at_ms: 0 };
        for failure in 0..4 {
            let at_ms = failure * HOUR / 6;
            score = FaultScore { faults: decayed(score, at_ms) + 1.0, at_ms };
        }
        assert!(score.faults > 3.0, "{score:?}");
        // One that fails every two hours never comes near it.
        for failure in 1..100 {
            let at_ms = score.at_ms + failure * 2 * HOUR;
            score = FaultScore { faults: decayed(score, at_ms) + 1.0, at_ms };
        }
        assert!(score.faults < 1.5, "{score:?}");
    }
}
