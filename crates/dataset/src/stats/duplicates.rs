//! Images that occur more than once: the same bytes, or pictures that look alike.

use std::collections::HashMap;

use serde::Serialize;

use super::near;
use crate::picture::{Digest, Likeness};

/// Remembers every different image, by some 200 bytes.
#[derive(Debug, Default)]
pub(super) struct Images {
    exact: HashMap<Digest, Members>,
    /// Every different image that has some structure, with the index of the first sample that has it.
    pictures: Vec<Likeness>,
    indices: Vec<u64>,
}

/// Samples that have something in common.
#[derive(Debug, Clone)]
struct Members {
    count: u64,
    /// Indices of the first ones.
    first: Vec<u64>,
}

/// Images that occur more than once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Duplicates {
    /// Images that several samples have.
    pub groups: u64,
    /// Samples too many: those that would go if every such image stayed once.
    pub extra: u64,
    /// The largest groups, the largest first.
    pub largest: Vec<Group>,
}

/// Samples whose images are the same, or alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Group {
    /// How many samples.
    pub count: u64,
    /// Keys of the first ones.
    pub keys: Vec<String>,
    /// Their indices in the source.
    #[serde(skip)]
    pub(crate) indices: Vec<u64>,
}

/// Members of a group that are named.
const NAMED: usize = 4;
/// Groups that are named.
const SHOWN: usize = 12;

impl Images {
    pub(super) fn add(&mut self, index: u64, digest: Digest, likeness: Option<Likeness>) {
        // Images of the same bytes are one picture.
        let is_new = self.exact.entry(digest).or_default().count_in(index);
        if let (true, Some(likeness)) = (is_new, likeness) {
            self.pictures.push(likeness);
            self.indices.push(index);
        }
    }

    /// Returns the number of different images.
    pub(super) fn different(&self) -> u64 {
        self.exact.len() as u64
    }

    /// Returns images of the same bytes.
    pub(super) fn exact(&self) -> Duplicates {
        summed(self.exact.values().cloned())
    }

    /// Returns images of different bytes that look alike: their difference hashes differ in at most `distance` bits and
    /// their colours little, or a chain of such images connects them.
    pub(super) fn alike(&self, distance: u32) -> Duplicates {
        let mut groups: HashMap<usize, Members> = HashMap::new();
        let named = near::groups(&self.pictures, distance);
        for (group, &index) in named.into_iter().zip(&self.indices) {
            groups.entry(group).or_default().count_in(index);
        }
        summed(groups.into_values())
    }
}

impl Default for Members {
    fn default() -> Self {
        Self { count: 0, first: Vec::with_capacity(1) }
    }
}

impl Members {
    /// Returns whether it is the first member.
    fn count_in(&mut self, index: u64) -> bool {
        self.count += 1;
        if self.first.len() < NAMED {
            self.first.push(index);
        }
        self.count == 1
    }
}

fn summed(groups: impl Iterator<Item = Members>) -> Duplicates {
    let mut several: Vec<Members> = groups.filter(|group| group.count > 1).collect();
    several.sort_unstable_by(|a, b| b.count.cmp(&a.count).then_with(|| a.first.cmp(&b.first)));
    let shown = several.iter().take(SHOWN);
    let shown = shown.map(|group| Group {
        count: group.count,
        keys: Vec::new(),
        indices: group.first.clone(),
    });
    Duplicates {
        groups: several.len() as u64,
        extra: several.iter().map(|group| group.count - 1).sum(),
        largest: shown.collect(),
    }
}
