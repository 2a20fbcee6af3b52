//! The nearest names to a mistyped one.

/// Words of `OpenCLIP`'s command line and of other tools for keys named otherwise here.
const OTHER_NAMES: &[(&str, &str)] = &[
    ("wd", "weight_decay"),
    ("warmup", "warmup_steps"),
    ("batch_size", "global"),
    ("train_data", "train"),
    ("workers", "readers"),
    ("epochs", "samples"),
    ("max_steps", "steps"),
    ("total_steps", "steps"),
    ("world_size", "ranks"),
    ("gpus", "ranks"),
    ("save_every", "every_steps"),
    ("path", "uri"),
    ("url", "uri"),
];

/// Returns the known key that `key` was probably meant to be.
pub(crate) fn key<'a>(key: &str, known: &[&'a str]) -> Option<&'a str> {
    let other = OTHER_NAMES.iter().find(|(word, _)| *word == fold(key)).map(|(_, name)| *name);
    known.iter().copied().find(|name| Some(*name) == other).or_else(|| {
        let best = names(key, known.iter().copied(), 1);
        best.into_iter().next()
    })
}

/// Returns up to `limit` known names that look like `name`, the likeliest first.
pub(crate) fn names<'a>(
    name: &str,
    known: impl Iterator<Item = &'a str>,
    limit: usize,
) -> Vec<&'a str> {
    let folded = fold(name);
    let mut scored: Vec<(usize, &str)> = known
        .filter_map(|candidate| Some((distance(&folded, &fold(candidate))?, candidate)))
        .collect();
    scored.sort();
    scored.into_iter().take(limit).map(|(_, candidate)| candidate).collect()
}

/// Returns the edit distance of names close enough to be a slip; a third of the letters may differ,
/// and one name may be the start of the other.
fn distance(name: &str, candidate: &str) -> Option<usize> {
    let lengths = [name.chars().count(), candidate.chars().count()];
    let longest = lengths[0].max(lengths[1]);
    let apart = lengths[0].abs_diff(lengths[1]);
    let starts = candidate.starts_with(name) || name.starts_with(candidate);
    if starts && name.len() >= 3 && candidate.len() >= 3 {
        return Some(apart);
    }
    // The distance is at least the difference of the lengths; to compute it takes the product of these.
    if apart * 3 > longest {
        return None;
    }
    let edits = strsim::damerau_levenshtein(name, candidate);
    (edits * 3 <= longest).then_some(edits)
}

/// Case and the choice of separator are not worth a difference.
fn fold(name: &str) -> String {
    name.to_lowercase().replace(['-', '/', ' ', '.'], "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_other_spellings_and_other_tools_words_find_their_key() {
        let known = ["kind", "samples", "steps", "warmup_samples", "warmup_steps"];
        assert_eq!(key("warmup_sample", &known), Some("warmup_samples"));
        assert_eq!(key("Warmup-Steps", &known), Some("warmup_steps"));
        assert_eq!(key("stpes", &known), Some("steps"));
        assert_eq!(key("warmup", &known), Some("warmup_steps"));
        assert_eq!(key("wd", &["lr", "weight_decay"]), Some("weight_decay"));
        assert_eq!(key("colour", &known), None);
        assert_eq!(key("xy", &["lr"]), None);
    }

    #[test]
    fn the_likeliest_name_comes_first() {
        let known = ["ViT-B-16", "ViT-B-32", "ViT-L-14"];
        assert_eq!(names("vit-b/16", known.into_iter(), 2), ["ViT-B-16", "ViT-B-32"]);
        assert!(names("convnext", known.into_iter(), 2).is_empty());
    }
}
