//! Samples of a run that no batch takes.

use std::ops::Range;

use super::Error;

/// Windows of the run's samples, counted from its beginning, that are left out: batches take what follows instead.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Windows(Vec<Range<u64>>);

impl Windows {
    /// Returns these windows.
    ///
    /// # Errors
    /// [`Error::Windows`] where one is empty, or begins before the one before it ends.
    pub fn new(windows: Vec<Range<u64>>) -> Result<Self, Error> {
        let mut next = 0;
        for window in &windows {
            if window.start < next || window.is_empty() {
                return Err(Error::Windows { windows });
            }
            next = window.end;
        }
        Ok(Self(windows))
    }

    /// Returns the windows as checkpoints hold them: first, and one past the last.
    pub fn stored(&self) -> Vec<[u64; 2]> {
        self.0.iter().map(|window| [window.start, window.end]).collect()
    }

    /// Returns the windows of a source's positions, when `count` says how many of the first samples it gives.
    pub(super) fn of_source(&self, count: impl Fn(u64) -> u64) -> Self {
        let mut next = 0;
        let windows = self.0.iter().filter_map(|window| {
            // Rounding may bring a count back by some rows: no position is left out twice.
            let positions = count(window.start).max(next)..count(window.end).max(next);
            next = positions.end;
            (!positions.is_empty()).then_some(positions)
        });
        Self(windows.collect())
    }

    /// Returns where the position stands that follows `before` positions which were not left out.
    pub(super) fn start(&self, before: u64) -> u64 {
        let windows = self.0.iter();
        windows.fold(before, |next, window| match window.start <= next {
            true => next + (window.end - window.start),
            false => next,
        })
    }

    /// Returns where positions stand, what is left out included: `count` of them that follow `before` which were not
    /// left out.
    pub(super) fn segments(&self, before: u64, count: u64) -> Vec<Range<u64>> {
        let (mut next, mut left, mut segments) = (before, count, Vec::new());
        for window in &self.0 {
            let end = window.start.min(next.saturating_add(left));
            if next < end {
                segments.push(next..end);
                left -= end - next;
            }
            if left == 0 {
                return segments;
            }
            // Whatever follows a window stands that much later.
            next = next.max(window.start) + (window.end - window.start);
        }
        segments.push(next..next + left);
        segments
    }
}

impl TryFrom<&[[u64; 2]]> for Windows {
    type Error = Error;

    fn try_from(stored: &[[u64; 2]]) -> Result<Self, Error> {
        Self::new(stored.iter().map(|[start, end]| *start..*end).collect())
    }
}
