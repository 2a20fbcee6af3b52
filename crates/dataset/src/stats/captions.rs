//! Which captions are the most frequent, in bounded memory.

use std::collections::HashMap;

use serde::Serialize;

/// Different captions that are remembered at once, some 150 bytes each.
const MOST: usize = 1_000_000;

/// Counts captions. As long as there are no more than a million different ones, the counts are exact; beyond, rare ones
/// are forgotten, and a count may be too low.
#[derive(Debug)]
pub(super) struct Frequent {
    counts: HashMap<String, u64>,
    most: usize,
    /// How often rare captions were forgotten: no count is too low by more.
    forgotten: u64,
}

/// A caption and how often it occurs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Repeated {
    /// The caption.
    pub caption: String,
    /// How often.
    pub count: u64,
}

impl Default for Frequent {
    fn default() -> Self {
        Self::remembering(MOST)
    }
}

impl Frequent {
    fn remembering(most: usize) -> Self {
        Self { counts: HashMap::new(), most, forgotten: 0 }
    }

    pub(super) fn add(&mut self, caption: &str) {
        if let Some(count) = self.counts.get_mut(caption) {
            *count += 1;
            return;
        }
        while self.counts.len() >= self.most {
            self.forgotten += 1;
            self.counts.retain(|_, count| {
                *count -= 1;
                *count > 0
            });
        }
        self.counts.insert(caption.to_owned(), 1);
    }

    /// Returns the number of different captions; none where some were forgotten.
    pub(super) fn different(&self) -> Option<u64> {
        (self.forgotten == 0).then_some(self.counts.len() as u64)
    }

    /// Returns the captions that occur most often, at least twice, the most frequent first.
    pub(super) fn top(&self, shown: usize) -> Vec<Repeated> {
        let repeated = self.counts.iter().filter(|(_, count)| **count > 1);
        let mut all: Vec<(&String, u64)> = repeated.map(|(text, &count)| (text, count)).collect();
        all.sort_unstable_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(b.0)));
        all.truncate(shown);
        all.into_iter()
            .map(|(caption, count)| Repeated { caption: caption.clone(), count })
            .collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_exact_and_sorted_while_all_captions_fit() {
        let mut frequent = Frequent::default();
        ["b", "a", "c", "a", "b", "a"].iter().for_each(|caption| frequent.add(caption));
        let top = frequent.top(5);
        let shown: Vec<_> = top.iter().map(|one| (one.caption.as_str(), one.count)).collect();
        assert_eq!(shown, [("a", 3), ("b", 2)]);
        assert_eq!(frequent.different(), Some(3));
    }

    #[test]
    fn a_frequent_caption_survives_among_more_rare_ones_than_are_remembered() {
        let mut frequent = Frequent::remembering(10);
        for number in 0..1000 {
            frequent.add(&number.to_string());
            frequent.add("often");
        }
        assert!(frequent.counts.len() <= 10);
        let top = frequent.top(1);
        assert_eq!(top[0].caption, "often");
        assert!((1000 - frequent.forgotten..=1000).contains(&top[0].count), "{top:?}");
        assert_eq!(frequent.different(), None);
    }
}
