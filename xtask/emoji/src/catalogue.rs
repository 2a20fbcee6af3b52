//! Which emoji there are, how they are called, and what captions they get.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::source::{Sources, code_points};

/// One base emoji: no skin tones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Emoji {
    /// Fully qualified code points in hex, joined by hyphens.
    pub(super) unified: String,
    /// The emoji itself.
    pub(super) emoji: String,
    /// Its English name.
    pub(super) label: String,
    /// English keywords, the name left out.
    pub(super) keywords: Vec<String>,
    /// Unicode's group: `Smileys & Emotion`, `Animals & Nature`, …
    pub(super) group: String,
}

/// The `.json` member of a sample.
#[derive(Serialize)]
struct Metadata<'a> {
    label: &'a str,
    keywords: &'a [String],
    captions: Vec<String>,
    emoji: &'a str,
    unified: &'a str,
    vendor: &'a str,
    group: &'a str,
}

impl Emoji {
    /// The `.json` member of a sample of this emoji.
    pub(super) fn to_json(&self, vendor: &str) -> Result<Vec<u8>> {
        let metadata = Metadata {
            label: &self.label,
            keywords: &self.keywords,
            captions: captions(&self.label, &self.keywords),
            emoji: &self.emoji,
            unified: &self.unified,
            vendor,
            group: &self.group,
        };
        Ok(serde_json::to_vec(&metadata)?)
    }
}

/// The captions training may draw from, each as likely as the next: in half of the draws the name
/// alone, which is what evaluation asks for, in the others the name with one keyword, which tells
/// the text tower what the name means.
fn captions(label: &str, keywords: &[String]) -> Vec<String> {
    let mut captions = vec![label.to_owned(); keywords.len().max(1)];
    captions.extend(keywords.iter().map(|keyword| format!("{label}, {keyword}")));
    captions
}

/// Reads all base emoji, in Unicode's order.
///
/// # Errors
/// An emoji without an English name is an error: none is left out silently.
pub(super) fn read(sources: &Sources) -> Result<Vec<Emoji>> {
    parse(&sources.emoji_list, &sources.names)
}

fn parse(emoji_list: &[u8], names: &[u8]) -> Result<Vec<Emoji>> {
    #[derive(Deserialize)]
    struct Listed {
        unified: String,
        category: String,
        sort_order: u32,
    }
    #[derive(Deserialize)]
    struct Named {
        hexcode: String,
        label: String,
        emoji: String,
        #[serde(default)]
        tags: Vec<String>,
    }

    let mut listed: Vec<Listed> =
        serde_json::from_slice(emoji_list).context("cannot read the list of emoji")?;
    let named: Vec<Named> =
        serde_json::from_slice(names).context("cannot read the names of emoji")?;
    let named: BTreeMap<String, Named> =
        named.into_iter().map(|entry| (code_points(&entry.hexcode), entry)).collect();

    // By code points within a rank of Unicode's order, so that ties cannot depend on the file.
    listed.sort_by(|a, b| (a.sort_order, &a.unified).cmp(&(b.sort_order, &b.unified)));
    let mut emoji = Vec::with_capacity(listed.len());
    for entry in listed {
        let Some(name) = named.get(&code_points(&entry.unified)) else {
            bail!("the emoji {} has no English name", entry.unified);
        };
        emoji.push(Emoji {
            unified: entry.unified,
            emoji: name.emoji.clone(),
            label: name.label.clone(),
            keywords: name.tags.iter().filter(|tag| **tag != name.label).cloned().collect(),
            group: entry.category,
        });
    }
    Ok(emoji)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const LIST: &str = r#"[
        {"unified": "2764-FE0F", "category": "Smileys & Emotion", "sort_order": 2},
        {"unified": "1F431", "category": "Animals & Nature", "sort_order": 1}
    ]"#;
    const NAMES: &str = r#"[
        {"hexcode": "2764", "label": "red heart", "emoji": "❤️", "tags": ["love"]},
        {"hexcode": "1F431", "label": "cat face", "emoji": "🐱", "tags": ["cat face", "pet"]}
    ]"#;

    #[test]
    fn names_are_found_whatever_the_variation_selector() {
        let emoji = parse(LIST.as_bytes(), NAMES.as_bytes()).unwrap();
        let labels: Vec<_> = emoji.iter().map(|emoji| emoji.label.as_str()).collect();
        assert_eq!(labels, ["cat face", "red heart"]);
        assert_eq!(emoji[0].keywords, ["pet"]);
    }

    #[test]
    fn an_emoji_without_a_name_is_an_error() {
        let error = parse(LIST.as_bytes(), b"[]").unwrap_err();
        assert_eq!(error.to_string(), "the emoji 1F431 has no English name");
    }

    #[test]
    fn half_of_the_captions_are_the_name_alone() {
        let keywords = ["pet".to_owned(), "kitten".to_owned()];
        assert_eq!(
            captions("cat face", &keywords),
            ["cat face", "cat face", "cat face, pet", "cat face, kitten"]
        );
        assert_eq!(captions("cat face", &[]), ["cat face"]);
    }
}
