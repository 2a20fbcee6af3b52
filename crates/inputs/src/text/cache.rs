//! The pieces of words that came before.

use std::collections::HashMap;

use rustc_hash::FxBuildHasher;

/// Words that are remembered; more than a large vocabulary of captions has.
const WORDS: usize = 1 << 16;
/// Longest word, in bytes, that is remembered.
const LONGEST: usize = 48;

/// Ids of words, one behind the other in one list.
#[derive(Debug, Default)]
pub(super) struct WordCache {
    places: HashMap<Box<str>, (u32, u32), FxBuildHasher>,
    ids: Vec<i64>,
}

impl WordCache {
    /// Appends the ids of `word`, from `split` where it is new.
    pub(super) fn push(
        &mut self,
        word: &str,
        ids: &mut Vec<i64>,
        split: impl FnOnce(&str) -> Vec<i64>,
    ) {
        if let Some(&(start, end)) = self.places.get(word) {
            return ids.extend_from_slice(&self.ids[start as usize..end as usize]);
        }
        let pieces = split(word);
        ids.extend_from_slice(&pieces);
        if self.places.len() < WORDS && word.len() <= LONGEST {
            let start = self.ids.len() as u32;
            self.ids.extend_from_slice(&pieces);
            self.places.insert(word.into(), (start, self.ids.len() as u32));
        }
    }
}
