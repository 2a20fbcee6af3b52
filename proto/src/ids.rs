//! Numbers that are all counted from zero and must not be taken for one another.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A rank as its job knows it: the number that it keeps over generations, whoever else is lost.
///
/// `StartRank`, `Regenerate`, `RankStatus` and `JoinRequest` speak of seats, and so does what people see.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Seat(pub u32);

/// A rank as its ring knows it: its place among the ranks of one generation, without gaps.
///
/// `JoinReply` tells it, `ReportShard` names it, and every collective goes by it.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct RingRank(pub u32);

impl Seat {
    /// Returns its place in a list of all seats.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl RingRank {
    /// Returns its place in a list of a ring's ranks.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Seat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for RingRank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
