//! Generations: ordered, printed as `g<incarnation>.<counter>`, parsed back.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use crate::v1::Generation;

impl Generation {
    /// Returns the generation with these parts.
    pub const fn new(incarnation: u32, counter: u32) -> Self {
        Self { incarnation, counter }
    }
}

impl PartialOrd for Generation {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Generation {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.incarnation, self.counter).cmp(&(other.incarnation, other.counter))
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "g{}.{}", self.incarnation, self.counter)
    }
}

/// Text that is not of the form `g<incarnation>.<counter>`.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a generation (expected g<incarnation>.<counter>, as in g1.7)")]
pub struct ParseError {
    text: String,
}

impl FromStr for Generation {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = || ParseError { text: text.to_owned() };
        let (incarnation, counter) =
            text.strip_prefix('g').and_then(|rest| rest.split_once('.')).ok_or_else(error)?;
        Ok(Self {
            incarnation: incarnation.parse().map_err(|_| error())?,
            counter: counter.parse().map_err(|_| error())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_incarnation_is_above_every_counter_of_the_old_one() {
        assert!(Generation::new(2, 1) > Generation::new(1, 900));
        assert!(Generation::new(2, 2) > Generation::new(2, 1));
    }

    #[test]
    fn text_round_trips_and_nonsense_is_refused() {
        let generation = Generation::new(3, 14);
        assert_eq!(generation.to_string().parse(), Ok(generation));
        for bad in ["", "g3", "3.14", "g3.x", "g-1.2"] {
            assert!(bad.parse::<Generation>().is_err(), "{bad}");
        }
    }
}
