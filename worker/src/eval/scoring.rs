//! Scores from similarities: pure functions over rows, with every tie broken by index.
//!
//! OpenCLIP's definitions: zero-shot top-k asks whether an image's own class is among the k most
//! similar; retrieval takes images and captions as 1:1 pairs, `rank` counts from 1, R@k is the
//! share of ranks up to k. Equal similarities rank by index, so a model that maps everything to
//! one point scores as chance would, not as perfect.

use serde::{Deserialize, Serialize};

/// Retrieval both ways over 1:1 pairs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Retrieval {
    /// Which caption belongs to an image.
    pub image_to_text: Ranks,
    /// Which image belongs to a caption.
    pub text_to_image: Ranks,
}

/// Retrieval one way. Shares are of 0..1, ranks count from 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ranks {
    /// Share of queries whose partner comes first.
    #[serde(rename = "R@1")]
    pub r1: f64,
    /// Share of queries whose partner is among the first 5.
    #[serde(rename = "R@5")]
    pub r5: f64,
    /// Share of queries whose partner is among the first 10.
    #[serde(rename = "R@10")]
    pub r10: f64,
    /// Mean rank of the partner.
    pub mean_rank: f64,
    /// Median rank of the partner; as in OpenCLIP, the half of an even count is rounded down.
    pub median_rank: f64,
}

impl Ranks {
    /// Summarises ranks that count from 0. No query at all gives zeros.
    pub fn from_zero_based(ranks: &[u64]) -> Self {
        let share_below =
            |k: u64| share(ranks.iter().filter(|&&rank| rank < k).count(), ranks.len());
        let mut sorted = ranks.to_vec();
        sorted.sort_unstable();
        let median = match sorted.len() {
            0 => 0.0,
            n if n % 2 == 1 => sorted[n / 2] as f64 + 1.0,
            n => ((sorted[n / 2 - 1] + sorted[n / 2]) / 2) as f64 + 1.0,
        };
        let mean = match ranks.len() {
            0 => 0.0,
            n => ranks.iter().sum::<u64>() as f64 / n as f64 + 1.0,
        };
        Self {
            r1: share_below(1),
            r5: share_below(5),
            r10: share_below(10),
            mean_rank: mean,
            median_rank: median,
        }
    }
}

/// Returns `part / whole`, or 0 of nothing.
pub fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Returns the indices of the `k` largest values, largest first; equal ones by index.
/// NaN ranks below everything.
pub fn top_k(row: &[f32], k: usize) -> Vec<usize> {
    let mut best: Vec<usize> = Vec::with_capacity(k + 1);
    for candidate in 0..row.len() {
        let place = best.partition_point(|&kept| !ranks_above(row[candidate], row[kept]));
        if place < k {
            best.insert(place, candidate);
            best.truncate(k);
        }
    }
    best
}

/// Returns how many values of the row come before the one at `own`: larger ones, and equal ones
/// with a lower index.
pub fn rank_of(row: &[f32], own: usize) -> u64 {
    let before = row.iter().enumerate().filter(|&(index, &value)| {
        ranks_above(value, row[own]) || (index < own && !ranks_above(row[own], value))
    });
    before.count() as u64
}

fn ranks_above(a: f32, b: f32) -> bool {
    a > b || (b.is_nan() && !a.is_nan())
}

/// Which class every text belongs to, for retrieval among all texts of rows that hold one value
/// per distinct caption.
#[derive(Debug, Clone)]
pub struct Classes {
    /// Class of every text.
    of_text: Vec<usize>,
    /// Texts of every class, ascending.
    members: Vec<Vec<usize>>,
}

impl Classes {
    /// Groups texts by class; classes are numbered below `count`.
    pub fn new(of_text: Vec<usize>, count: usize) -> Self {
        let mut members = vec![Vec::new(); count];
        for (text, &class) in of_text.iter().enumerate() {
            members[class].push(text);
        }
        Self { of_text, members }
    }

    /// Returns the class of a text.
    pub fn of(&self, text: usize) -> usize {
        self.of_text[text]
    }

    /// Returns the number of texts.
    pub fn texts(&self) -> usize {
        self.of_text.len()
    }

    /// Returns the number of classes.
    pub fn count(&self) -> usize {
        self.members.len()
    }

    /// Returns how many texts come before `own` for an image whose similarity to every class is
    /// `row`: those of more similar classes, and equally similar ones with a lower index.
    pub fn rank_of_text(&self, row: &[f32], own: usize) -> u64 {
        let own_value = row[self.of_text[own]];
        let mut before = 0;
        for (class, members) in self.members.iter().enumerate() {
            if ranks_above(row[class], own_value) {
                before += members.len();
            } else if !ranks_above(own_value, row[class]) {
                before += members.partition_point(|&text| text < own);
            }
        }
        before as u64
    }

    /// Adds to `before[j]`, for every text j, 1 if image `image` comes before image j (text j's
    /// partner) when images are ranked for text j. `row` is the image's similarity to every
    /// class, `own[j]` that of pair j.
    pub fn count_before(&self, image: usize, row: &[f32], own: &[f32], before: &mut [i64]) {
        for text in 0..self.of_text.len() {
            let value = row[self.of_text[text]];
            let is_before =
                ranks_above(value, own[text]) || (image < text && !ranks_above(own[text], value));
            before[text] += i64::from(is_before);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn top_k_breaks_ties_by_index_and_puts_nan_last() {
        assert_eq!(top_k(&[1.0, 3.0, 2.0, 3.0, 0.0], 3), [1, 3, 2]);
        assert_eq!(top_k(&[0.5; 4], 2), [0, 1]);
        assert_eq!(top_k(&[f32::NAN, -1.0], 5), [1, 0]);
        assert_eq!(top_k(&[], 5), [] as [usize; 0]);
    }

    #[test]
    fn a_model_that_knows_nothing_scores_as_chance() {
        let ranks: Vec<u64> = (0..100).map(|own| rank_of(&[0.25; 100], own)).collect();
        let scores = Ranks::from_zero_based(&ranks);
        assert_eq!((scores.r1, scores.r5, scores.r10), (0.01, 0.05, 0.10));
        assert_eq!((scores.mean_rank, scores.median_rank), (50.5, 50.0));
    }

    #[test]
    fn ranks_are_summarised_as_openclip_does() {
        let scores = Ranks::from_zero_based(&[0, 0, 4, 9, 30]);
        assert_eq!((scores.r1, scores.r5, scores.r10), (0.4, 0.6, 0.8));
        assert_eq!((scores.mean_rank, scores.median_rank), (9.6, 5.0));
        assert_eq!(Ranks::from_zero_based(&[]).r1, 0.0);
    }

    /// A small value set makes ties frequent.
    fn similarities() -> impl Strategy<Value = (Vec<usize>, usize, Vec<Vec<f32>>)> {
        (1_usize..9, 1_usize..5).prop_flat_map(|(texts, count)| {
            let of_text = prop::collection::vec(0..count, texts);
            let value = (0..4).prop_map(|value| value as f32 * 0.25);
            let rows = prop::collection::vec(prop::collection::vec(value, count), texts);
            (of_text, Just(count), rows)
        })
    }

    proptest! {
        #[test]
        fn class_rows_give_the_ranks_of_the_full_matrix((of_text, count, rows) in similarities()) {
            let n = of_text.len();
            let full: Vec<Vec<f32>> =
                rows.iter().map(|row| of_text.iter().map(|&class| row[class]).collect()).collect();
            let classes = Classes::new(of_text, count);
            let own: Vec<f32> = (0..n).map(|pair| full[pair][pair]).collect();
            let mut before = vec![0; n];
            for image in 0..n {
                prop_assert_eq!(
                    classes.rank_of_text(&rows[image], image),
                    rank_of(&full[image], image)
                );
                classes.count_before(image, &rows[image], &own, &mut before);
            }
            for text in 0..n {
                let column: Vec<f32> = full.iter().map(|row| row[text]).collect();
                prop_assert_eq!(before[text] as u64, rank_of(&column, text));
            }
        }

        #[test]
        fn top_k_is_the_head_of_a_stable_sort(row in prop::collection::vec(0_i8..5, 0..20), k in 0_usize..8) {
            let row: Vec<f32> = row.into_iter().map(f32::from).collect();
            let mut sorted: Vec<usize> = (0..row.len()).collect();
            sorted.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            sorted.truncate(k);
            prop_assert_eq!(top_k(&row, k), sorted);
        }
    }
}
