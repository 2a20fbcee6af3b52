//! Groups of pictures that look alike, found without comparing all pairs.
//!
//! Two hashes that differ in at most D bits agree in at least one of D + 1 groups of bits, however the bits are
//! divided. So only hashes that agree in a group are compared. Where too many agree in one, which pictures with white
//! borders do, their other bits are divided again, by the same argument. Nothing is missed.

use crate::picture::Likeness;

/// Pictures that agree in some bits and are compared all with all.
const COMPARED: usize = 64;
/// Levels of 256 by which each colour of two pictures differs at most: more than encoders and resizing change, less
/// than other colours of the same shapes do.
const COLOUR_DISTANCE: u8 = 12;

/// Of the colours, green of a pixel beside the middle: it differs most.
const MIDDLE: usize = 16;

/// Returns the groups of pictures: two whose hashes differ in at most `distance` bits and whose colours differ little
/// are in one, and so are those that a chain of such pairs connects. A group is named by its smallest member.
pub(super) fn groups(pictures: &[Likeness], distance: u32) -> Vec<usize> {
    let mut groups = Groups { parents: (0..pictures.len()).collect(), pictures, distance };
    let mut all: Vec<usize> = (0..pictures.len()).collect();
    groups.connect(&mut all, u64::MAX);
    (0..pictures.len()).map(|member| groups.root(member)).collect()
}

struct Groups<'a> {
    pictures: &'a [Likeness],
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
            members.sort_unstable_by_key(|&member| self.pictures[member].hash & chosen);
            let mut rest = &mut members[..];
            while let [first, ..] = rest {
                let value = self.pictures[*first].hash & chosen;
                let end =
                    rest.partition_point(|&member| self.pictures[member].hash & chosen <= value);
                let (agreeing, others) = rest.split_at_mut(end);
                if agreeing.len() > 1 {
                    self.connect(agreeing, open & !chosen);
                }
                rest = others;
            }
        }
    }

    /// Compares all with all, but for those that differ too much in one colour already.
    fn compare(&mut self, members: &mut [usize]) {
        let pictures = self.pictures;
        let middle = |member: usize| pictures[member].colours[MIDDLE];
        members.sort_unstable_by_key(|&member| middle(member));
        for (place, &one) in members.iter().enumerate() {
            let most = middle(one).saturating_add(COLOUR_DISTANCE);
            let others = members[place + 1..].iter().take_while(|&&other| middle(other) <= most);
            for &other in others {
                if is_near(&pictures[one], &pictures[other], self.distance) {
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

fn is_near(one: &Likeness, other: &Likeness, distance: u32) -> bool {
    (one.hash ^ other.hash).count_ones() <= distance
        && one.colours.iter().zip(&other.colours).all(|(a, b)| a.abs_diff(*b) <= COLOUR_DISTANCE)
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
    use proptest::prelude::*;

    use super::*;

    fn grey(hash: u64, level: u8) -> Likeness {
        Likeness { hash, colours: [level; 48] }
    }

    /// Groups by comparing all pairs.
    fn by_force(pictures: &[Likeness], distance: u32) -> Vec<usize> {
        let count = pictures.len();
        let mut groups = Groups { parents: (0..count).collect(), pictures, distance };
        for one in 0..count {
            for other in 0..one {
                if is_near(&pictures[one], &pictures[other], distance) {
                    groups.join(one, other);
                }
            }
        }
        (0..count).map(|member| groups.root(member)).collect()
    }

    #[test]
    fn pictures_are_connected_up_to_the_distance_and_no_further() {
        let of = |hashes: &[u64]| hashes.iter().map(|&hash| grey(hash, 9)).collect::<Vec<_>>();
        assert_eq!(groups(&of(&[0, 0b111, 0b1111 << 40]), 3), [0, 0, 2]);
        assert_eq!(groups(&of(&[u64::MAX, 0, 1]), 0), [0, 1, 2]);
        assert_eq!(groups(&[grey(5, 100), grey(5, 113), grey(5, 112)], 3), [0, 0, 0]);
        assert_eq!(groups(&[grey(5, 100), grey(5, 113)], 3), [0, 1]);
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
            seeds in prop::collection::vec((any::<u64>(), 0_u8..40), 300..600),
            mask in any::<u64>(),
            second in any::<u64>(),
            distance in 0_u32..5,
        ) {
            let pictures: Vec<Likeness> =
                seeds.iter().map(|(seed, level)| grey(seed & mask & second, *level)).collect();
            prop_assert_eq!(groups(&pictures, distance), by_force(&pictures, distance));
        }
    }
}
