//! Whether a gang may start although another one is first.

/// The slots the head of a queue may see become free, in every order in which jobs may end.
///
/// The invariant: a gang that starts behind the head never delays it. Let the head lack `lack` slots. Jobs give their slots back all at once, so what becomes free is
/// some sum of the holders' sizes. A gang of `size` on free slots delays the head if there is a sum
/// that is enough without the gang and not enough with it: one in `lack..lack + size`. If there is
/// none, the head starts at the same moment with the gang as without, whatever ends when. The gang
/// then counts among the holders for the next one, so that several such gangs do not delay it either.
#[derive(Debug, Clone)]
pub(super) struct Backfill {
    lack: usize,
    /// Which sums below `lack + free` the holders can make, by sum.
    sums: Vec<bool>,
}

impl Backfill {
    /// Counts out what `holders`, of so many slots each, can free for a head that lacks `lack` slots
    /// while `free` are free.
    pub(super) fn new(lack: u32, free: u32, holders: impl IntoIterator<Item = u32>) -> Self {
        let mut sums = vec![false; lack as usize + free as usize];
        if let Some(none) = sums.first_mut() {
            *none = true;
        }
        let mut backfill = Self { lack: lack as usize, sums };
        for size in holders {
            backfill.add(size as usize);
        }
        backfill
    }

    fn add(&mut self, size: usize) {
        if size == 0 {
            return;
        }
        for sum in (size..self.sums.len()).rev() {
            self.sums[sum] |= self.sums[sum - size];
        }
    }

    /// The most slots from `fewest` to `most` that a gang may take without delaying the head; `most`
    /// must be free.
    pub(super) fn largest(&self, fewest: u32, most: u32) -> Option<u32> {
        // The first sum that would be enough for the head is the first that may be missed.
        let first = self.sums[self.lack.min(self.sums.len())..].iter().position(|sum| *sum);
        let harmless = first.map_or(most, |first| super::count(first).min(most));
        (harmless >= fewest && fewest > 0).then_some(harmless)
    }

    /// Takes in that a gang has started on so many of the free slots.
    pub(super) fn start(&mut self, size: u32) {
        // The head lacks them now, and gets them back when the gang ends.
        self.lack += size as usize;
        self.add(size as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gang_may_take_what_the_head_would_not_use_whichever_job_ends_first() {
        // Needs 4, 2 free, one job of 4: when that ends, 6 are free. Two may be taken.
        assert_eq!(Backfill::new(2, 2, [4]).largest(1, 2), Some(2));
        // With a job of 2 instead, each free slot is needed.
        assert_eq!(Backfill::new(2, 2, [2]).largest(1, 2), None);
        // With a job of 3, one is to spare.
        assert_eq!(Backfill::new(2, 2, [3]).largest(1, 2), Some(1));
        assert_eq!(Backfill::new(2, 2, [3]).largest(2, 2), None);
        // Small jobs add up.
        assert_eq!(Backfill::new(2, 2, [1, 1, 7]).largest(1, 2), None);
    }

    #[test]
    fn what_was_started_counts_for_the_next() {
        // Needs 5, 3 free, one job of 4: two are to spare.
        let mut backfill = Backfill::new(2, 3, [4]);
        assert_eq!(backfill.largest(1, 3), Some(2));
        backfill.start(1);
        assert_eq!(backfill.largest(1, 2), Some(1));
        backfill.start(1);
        assert_eq!(backfill.largest(1, 1), None);
    }
}
