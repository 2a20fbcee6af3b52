//! Groups of hashes that differ in few bits, found without comparing all pairs.
//!
//! Two hashes that differ in at most D bits agree in at least one of D + 1 groups of bits, however the bits are
//! divided. So only hashes that agree in a group are compared. Where too many agree in one, which pictures with white
//! borders do, their other bits are divided again, by the same argument. Nothing is missed.

/// Hashes that agree in some bits and are compared all with all.
const COMPARED: usize = 64;

/// Returns the groups of `hashes`, which are all different: two that differ in at most `distance` bits are in one, and
/// so are those that a chain of such pairs connects. A group is named by its smallest member.
pub(super) fn groups(hashes: &[u64], distance: u32) -> Vec<usize> {
    let mut groups = Groups { parents: (0..hashes.len()).collect(), hashes, distance };
    let mut all: Vec<usize> = (0..hashes.len()).collect();
    groups.connect(&mut all, u64::MAX);
    (0..hashes.len()).map(|member| groups.root(member)).collect()
}

struct Groups<'a> {
    hashes: &'a [u64],
    distance: u32,
    /// A smaller member of the same group, or the member itself.
    parents: Vec<usize>,
}

impl Groups<'_> {
    /// Connects those of `members` that are near; they agree in all bits but those of `open`.
    fn connect(&mut self, members: &mut [usize], open: u64) {
        let parts = self.distance + 1;
        if members.len() <= COMPARED || open.count_ones() < parts {
            return self.compare(members);
        }
        for part in 0..parts {
            let chosen = every(open, part, parts);
            members.sort_unstable_by_key(|&member| self.hashes[member] & chosen);
            let mut rest = &mut members[..];
            while let [first, ..] = rest {
                let value = self.hashes[*first] & chosen;
                let end = rest.partition_point(|&member| self.hashes[member] & chosen <= value);
                let (agreeing, others) = rest.split_at_mut(end);
                if agreeing.len() > 1 {
                    self.connect(agreeing, open & !chosen);
                }
                rest = others;
            }
        }
    }

    fn compare(&mut self, members: &[usize]) {
        for (place, &one) in members.iter().enumerate() {
            for &other in &members[place + 1..] {
                if (self.hashes[one] ^ self.hashes[other]).count_ones() <= self.distance {
                    self.join(one, other);
                }
            }
        }
    }

    fn join(&mut self, one: usize, other: usize) {
        let (one, other) = (self.root(one), self.root(other));
        self.parents[one.max(other)] = one.min(other);
    }

    fn root(&mut self, member: usize) -> usize {
        let mut root = member;
        while self.parents[root] != root {
            root = self.parents[root];
        }
        self.parents[member] = root;
        root
    }
}

/// Returns every `parts`-th of the bits of `open`, from the `part`-th on: bits of the whole picture, rather than those
/// of a corner of it.
fn every(open: u64, part: u32, parts: u32) -> u64 {
    let mut number = 0;
    (0..u64::BITS).filter(|bit| open >> bit & 1 == 1).fold(0, |chosen, bit| {
        let is_chosen = number % parts == part;
        number += 1;
        chosen | u64::from(is_chosen) << bit
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// Groups by comparing all pairs.
    fn by_force(hashes: &[u64], distance: u32) -> Vec<usize> {
        let mut groups = Groups { parents: (0..hashes.len()).collect(), hashes, distance };
        groups.compare(&(0..hashes.len()).collect::<Vec<_>>());
        (0..hashes.len()).map(|member| groups.root(member)).collect()
    }

    #[test]
    fn hashes_are_connected_up_to_the_distance_and_no_further() {
        assert_eq!(groups(&[0, 0b111, 0b1111 << 40], 3), [0, 0, 2]);
        assert_eq!(groups(&[u64::MAX, 0, 1], 0), [0, 1, 2]);
        assert_eq!(groups(&[], 3), Vec::<usize>::new());
    }

    #[test]
    fn parts_divide_the_bits_and_lie_all_over_them() {
        let parts: Vec<u64> = (0..4).map(|part| every(u64::MAX, part, 4)).collect();
        assert!(parts.iter().all(|part| part.count_ones() == 16));
        assert_eq!(parts.iter().fold(0, |all, part| all | part), u64::MAX);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        /// Few different bits, so that many agree in a part and the division goes on.
        #[test]
        fn no_pair_is_missed(
            seeds in prop::collection::vec(any::<u64>(), 300..600),
            mask in any::<u64>(),
            second in any::<u64>(),
            distance in 0_u32..5,
        ) {
            let different: HashSet<u64> = seeds.iter().map(|seed| seed & mask & second).collect();
            let hashes: Vec<u64> = different.into_iter().collect();
            prop_assert_eq!(groups(&hashes, distance), by_force(&hashes, distance));
        }
    }
}
