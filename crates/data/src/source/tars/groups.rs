//! Members of a tar, put together into samples as OpenCLIP does.
//!
//! A sample is a run of members that share a key; a second member of the same extension begins another one. A run with
//! neither an image nor a caption, as a README.md, is none.

use super::index::{Index, Wanted};
use super::members::{Kind, Member, Span};
use super::sparse::Map;

/// Extensions that are counted one by one.
const COUNTED: usize = 32;
/// Characters of a name from a shard that are shown.
const NAME_CHARS: usize = 80;

/// See the module.
#[derive(Debug)]
pub(super) struct Groups<'a> {
    wanted: &'a Wanted,
    index: &'a mut Index,
    /// Key of the open run, its extensions so far, and what of it is wanted.
    key: Vec<u8>,
    extensions: Vec<String>,
    image: Option<Span>,
    /// How far down `wanted.image` the image stands.
    preference: usize,
    text: Option<Span>,
}

impl<'a> Groups<'a> {
    pub(super) fn new(wanted: &'a Wanted, index: &'a mut Index) -> Self {
        let (key, extensions) = (Vec::new(), Vec::new());
        let (image, text, preference) = (None, None, usize::MAX);
        Self { wanted, index, key, extensions, image, preference, text }
    }

    /// Adds the next member.
    pub(super) fn add(&mut self, member: Member) {
        let Some((key, extension)) = split(&member.name) else { return };
        let extension = String::from_utf8_lossy(extension).to_ascii_lowercase();
        match member.kind {
            Kind::File(span, map) => self.add_file(key, extension, span, map),
            Kind::Link { target } => self.add_link(key, &extension, &member.name, &target),
        }
    }

    /// Closes the last run.
    pub(super) fn end(&mut self) {
        self.close();
    }

    fn add_file(&mut self, key: &[u8], extension: String, span: Span, map: Option<Map>) {
        let is_next = self.key != key || self.extensions.contains(&extension);
        if is_next || self.extensions.is_empty() {
            self.close();
            self.key = key.to_vec();
        }
        let place = self.wanted.image.iter().position(|wanted| *wanted == extension);
        let is_text = extension == self.wanted.text;
        if let Some(place) = place.filter(|&place| place < self.preference) {
            (self.image, self.preference) = (Some(span), place);
        }
        if is_text {
            self.text = Some(span);
        }
        if let Some(map) = map.filter(|_| is_text || place.is_some()) {
            self.index.push_sparse(span, map);
        }
        self.count(&extension);
        self.extensions.push(extension);
    }

    /// A link holds no bytes and is no part of a sample; what it stands for is missing there.
    fn add_link(&mut self, key: &[u8], extension: &str, name: &[u8], target: &[u8]) {
        let is_wanted =
            extension == self.wanted.text || self.wanted.image.iter().any(|w| w == extension);
        if is_wanted {
            let said = format!("{} is a link to {}", shown(name), shown(target));
            self.index.links.insert(String::from_utf8_lossy(key).into_owned(), said);
        }
    }

    fn count(&mut self, extension: &str) {
        let extension = shown(extension.as_bytes());
        let counts = &mut self.index.extensions;
        if counts.len() < COUNTED || counts.contains_key(&extension) {
            *counts.entry(extension).or_default() += 1;
        }
    }

    fn close(&mut self) {
        let (image, text) = (self.image.take(), self.text.take());
        if image.is_some() || text.is_some() {
            self.index.push(&self.key, image, text);
        }
        self.preference = usize::MAX;
        self.extensions.clear();
    }
}

/// Returns a name as it can be shown.
fn shown(name: &[u8]) -> String {
    let name = String::from_utf8_lossy(name);
    let plain = |c: char| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c };
    name.chars().map(plain).take(NAME_CHARS).collect()
}

/// Splits a member's name at the first dot of its base name into key and extension; hidden files
/// and names without an extension belong to no sample.
fn split(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let folder_end = name.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    let dot = name[folder_end..].iter().position(|byte| *byte == b'.').filter(|&dot| dot > 0)?;
    Some((&name[..folder_end + dot], &name[folder_end + dot + 1..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_split_at_the_first_dot_of_the_base_name() {
        let parts = |name: &'static str| {
            split(name.as_bytes()).map(|(key, extension)| [key, extension].map(str::from_utf8))
        };
        assert_eq!(parts("a/b.c/000.seg.png"), Some([Ok("a/b.c/000"), Ok("seg.png")]));
        assert_eq!(parts("x.txt"), Some([Ok("x"), Ok("txt")]));
        assert_eq!(parts("a/.hidden.png"), None);
        assert_eq!(parts("README"), None);
    }
}
