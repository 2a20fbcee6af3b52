//! What is where in a tar shard: built once by reading its headers, then every sample is a range.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Seek, SeekFrom};

use bytes::Bytes;
use ringmaster_weights::found;

use super::content::{Content, Reader};
use super::groups::Groups;
use super::members::{self, BLOCK, Span, Stop};
use super::sparse::Map;
use crate::Error;

/// Extensions of the members that make a sample, lower-case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Tried in this order for the image.
    pub(super) image: Vec<String>,
    /// Holds the caption.
    pub(super) text: String,
}

/// Consecutive members that share a key, as webdataset groups them: 40 bytes and the key, since
/// many shards are open at once and each may hold ten thousand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    /// Where the key ends in [`Index::keys`]; it starts where the one before ends.
    key_end: usize,
    image: Option<Span>,
    text: Option<Span>,
}

/// The samples of a shard, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Index {
    entries: Vec<Entry>,
    /// The keys, end to end.
    keys: String,
    /// Samples without an image, and without a caption.
    lacking: [u64; 2],
    /// Maps of the members that are stored without their holes, by the offset of their bytes.
    sparse: HashMap<u64, Map>,
    /// Members of each extension, of the first few.
    pub(super) extensions: BTreeMap<String, u64>,
    /// Links in place of an image or a caption, by key: what they are, in words.
    pub(super) links: HashMap<String, String>,
    /// Where and why the headers end early, when they do: what follows in the shard is lost.
    pub(super) broken: Option<String>,
    /// Whether the tar has an end marker.
    pub(super) is_complete: bool,
    /// Offset of an end marker that more follows.
    pub(super) more_after: Option<u64>,
    /// Whether offsets are those of the unpacked shard.
    pub(super) is_packed: bool,
}

/// Characters of a tar reader's message that are shown: it may quote the shard's bytes.
const DETAIL_CHARS: usize = 120;
/// Bytes behind the end marker in which more is looked for: archives are padded to less.
const TAIL: u64 = 1 << 20;

impl Index {
    /// Reads the headers of a shard that begins with these bytes.
    ///
    /// # Errors
    /// When the store fails; a damaged tar is not an error but [`Index::broken`].
    pub(super) fn read(
        content: &Content<'_>,
        beginning: Bytes,
        wanted: &Wanted,
    ) -> Result<Self, Error> {
        let mut reader = Reader::new(content, beginning.clone());
        let mut index = Self::default();
        let mut groups = Groups::new(wanted, &mut index);
        let mut next = 0;
        let stopped = members::each(&mut reader, &mut next, |member| groups.add(member));
        groups.end();
        let stopped = stopped.and_then(|()| Ok(index.read_tail(&mut reader, next)?));
        if let Some(error) = reader.failed {
            return Err(error);
        }
        match stopped {
            Ok(()) => {}
            Err(Stop::Store(error)) => return Err(error),
            Err(Stop::Broken(error)) => {
                let described = describe_break(&error, next, content.len(), &beginning);
                index.broken = Some(described);
            }
        }
        Ok(index)
    }

    /// Looks at what stands behind the last member.
    fn read_tail(&mut self, reader: &mut Reader<'_>, end: u64) -> io::Result<()> {
        reader.seek(SeekFrom::Start(end))?;
        let mut tail = Vec::new();
        reader.take(TAIL).read_to_end(&mut tail)?;
        self.is_complete = tail.len() as u64 >= BLOCK;
        self.more_after = tail.iter().any(|byte| *byte != 0).then_some(end);
        Ok(())
    }

    /// Appends a sample.
    pub(super) fn push(&mut self, key: &[u8], image: Option<Span>, text: Option<Span>) {
        self.keys.push_str(&String::from_utf8_lossy(key));
        self.entries.push(Entry { key_end: self.keys.len(), image, text });
        self.lacking[0] += u64::from(image.is_none());
        self.lacking[1] += u64::from(text.is_none());
    }

    /// Remembers the map of a member that is stored without its holes.
    pub(super) fn push_sparse(&mut self, span: Span, map: Map) {
        self.sparse.insert(span.offset(), map);
    }

    /// Returns the samples whose headers could be read.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Returns folder and base name, up to its first dot, of a sample.
    pub(super) fn key(&self, place: usize) -> &str {
        let start = place.checked_sub(1).map_or(0, |before| self.entries[before].key_end);
        &self.keys[start..self.entries[place].key_end]
    }

    /// Returns where image and caption of a sample are.
    ///
    /// # Errors
    /// In words, when the sample has but one of them.
    pub(super) fn members(&self, place: usize, wanted: &Wanted) -> Result<(Span, Span), String> {
        let Entry { image, text, .. } = self.entries[place];
        image.zip(text).ok_or_else(|| self.lack(place, wanted))
    }

    /// Returns the bytes of a member whose stored bytes these are.
    ///
    /// # Errors
    /// In words, when they cannot be made of them.
    pub(super) fn expanded(&self, span: Span, stored: Bytes) -> Result<Bytes, String> {
        match self.sparse.get(&span.offset()) {
            None => Ok(stored),
            Some(Ok(map)) => map.expand(&stored),
            Some(Err(reason)) => Err(reason.clone()),
        }
    }

    /// Says why a sample has no image or no caption.
    fn lack(&self, place: usize, wanted: &Wanted) -> String {
        let (what, number) = match self.entries[place].image {
            None => ("image", 0),
            Some(_) => ("caption", 1),
        };
        let names = wanted.names()[number].clone();
        let key = self.key(place);
        if let Some(link) = self.links.get(key) {
            return format!("no {what} ({names}): {link}");
        }
        if (0..self.len()).any(|other| other != place && self.key(other) == key) {
            return format!(
                "no {what} ({names}) beside its other members, and more of this key elsewhere in the shard: the \
                 members of a sample must stand next to each other, as tar --sort=name writes them"
            );
        }
        let (lacking, all) = (self.lacking[number], self.len());
        let (found, setting) = (self.found(), wanted.settings()[number]);
        format!(
            "no {what} ({names}), as {lacking} of the {all} samples here; found {found}; see {setting}"
        )
    }

    /// Says why a shard that is a sound tar has no sample.
    pub(super) fn nothing(&self, wanted: &Wanted) -> String {
        let [image, text] = wanted.names();
        let [image_key, text_key] = wanted.settings();
        if let Some(link) = self.links.values().next() {
            return format!(
                "no member but links is an image ({image}) or a caption ({text}): {link}"
            );
        }
        if self.extensions.is_empty() {
            return "an empty tar".to_owned();
        }
        format!(
            "no member is an image ({image}) or a caption ({text}); found {}; set {image_key} and {text_key} to the \
             extensions to read",
            self.found()
        )
    }

    /// Lists the extensions of the members, most frequent first.
    fn found(&self) -> String {
        const LISTED: usize = 6;
        let mut all: Vec<(&String, &u64)> = self.extensions.iter().collect();
        all.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let listed = all.iter().take(LISTED).map(|(name, count)| format!(".{name} ({count})"));
        listed.collect::<Vec<_>>().join(", ")
    }
}

impl Wanted {
    /// Returns what sets the extensions of images, and of captions.
    fn settings(&self) -> [&'static str; 2] {
        let text = if self.text == "json" { "data.json_text_key" } else { "data.text_key" };
        ["data.image_key", text]
    }

    /// Returns the extensions of images, and of captions, as they are written.
    fn names(&self) -> [String; 2] {
        [format!(".{}", self.image.join(", .")), format!(".{}", self.text)]
    }
}

/// Says where a shard, which begins with `first`, stops being a tar, without its raw bytes.
fn describe_break(error: &io::Error, offset: u64, len: u64, first: &[u8]) -> String {
    let start = &first[..first.len().min(found::BEGINNING)];
    if let Some(what) = found::described(start).filter(|_| offset == 0) {
        return format!("not a tar archive but {what}");
    }
    let detail: String =
        error.to_string().chars().flat_map(char::escape_default).take(DETAIL_CHARS).collect();
    if offset == 0 {
        return format!("not a tar archive: no tar header at byte 0 of {len} ({detail})");
    }
    format!(
        "breaks off at byte {offset} of {len} ({detail}); what follows is lost: copy or build the \
         shard again"
    )
}
