//! Which files of a folder make a sample: an image, and what holds its caption.

use std::ops::Range;

/// Extensions of the files that make a sample, lower-case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Tried in this order for the image.
    pub(super) image: Vec<String>,
    /// Holds the caption.
    pub(super) text: String,
}

/// The files of a folder that may be part of a sample, as they are listed.
#[derive(Debug, Default)]
pub(super) struct Listing {
    files: Vec<File>,
    /// Files that were looked at, hidden ones left out.
    pub(super) seen: u64,
}

#[derive(Debug)]
struct File {
    name: String,
    bytes: u64,
    /// Place in [`Wanted::image`], and after those captions.
    rank: usize,
}

/// An image, and where its caption may be; numbers of files.
#[derive(Debug)]
pub(super) struct Candidate {
    image: usize,
    text: Option<usize>,
    row: Option<Range<u64>>,
}

/// Where the caption of an image is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Caption {
    /// In the file of this name.
    File(String),
    /// In this part of the folder's metadata.
    Row(Range<u64>),
}

/// The samples of a folder, in the order of their names: 40 bytes and the name for each.
#[derive(Debug, Default)]
pub(super) struct Samples {
    entries: Vec<Entry>,
    /// Name without extension, extension of the image and extension of the caption's file of each sample, end to end.
    names: String,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// Where the names of the sample begin in [`Samples::names`].
    start: usize,
    /// Bytes of the name without extension, and of the image's extension.
    stem: u32,
    extension: u32,
    bytes: u64,
    /// The caption's part of the metadata; empty if it is in a file.
    row: (u64, u32),
}

impl Wanted {
    /// Returns how a file is to be preferred among those of its name; none for what is no part of a sample.
    fn rank(&self, extension: &str) -> Option<usize> {
        let is = |wanted: &String| wanted.eq_ignore_ascii_case(extension);
        let image = self.image.iter().position(is);
        image.or_else(|| is(&self.text).then_some(self.image.len()))
    }
}

impl Listing {
    /// Notes a file, by its name below the folder. Hidden ones, and all in hidden folders, are no part of the data.
    pub(super) fn add(&mut self, name: &str, bytes: u64, wanted: &Wanted) {
        if name.split('/').any(|part| part.starts_with('.')) {
            return;
        }
        self.seen += 1;
        let Some((_, extension)) = split(name) else { return };
        if let Some(rank) = wanted.rank(extension) {
            self.files.push(File { name: name.to_owned(), bytes, rank });
        }
    }

    /// Puts images and captions of the same name together: of several images, the one whose extension is wanted first.
    pub(super) fn candidates(&mut self, wanted: &Wanted) -> Vec<Candidate> {
        self.files.sort_unstable_by(|a, b| {
            (stem(&a.name), a.rank, &a.name).cmp(&(stem(&b.name), b.rank, &b.name))
        });
        let mut candidates: Vec<Candidate> = Vec::new();
        for (number, file) in self.files.iter().enumerate() {
            let same = candidates
                .last_mut()
                .filter(|newest| stem(&self.files[newest.image].name) == stem(&file.name));
            let is_image = file.rank < wanted.image.len();
            match (same, is_image) {
                (Some(newest), false) => newest.text = newest.text.or(Some(number)),
                (None, true) => {
                    candidates.push(Candidate { image: number, text: None, row: None });
                }
                // A further image of the same name, or a caption without one.
                (Some(_), true) | (None, false) => {}
            }
        }
        candidates
    }

    /// Notes where the metadata has the caption of an image; of several rows for one, the first counts.
    pub(super) fn found(&self, candidates: &mut [Candidate], image: &str, row: Range<u64>) {
        let image = image.strip_prefix("./").unwrap_or(image);
        let place = candidates
            .binary_search_by(|candidate| stem(&self.files[candidate.image].name).cmp(stem(image)));
        let Ok(place) = place else { return };
        let candidate = &mut candidates[place];
        if self.files[candidate.image].name == image {
            candidate.row.get_or_insert(row);
        }
    }

    /// Returns the samples: images with a caption. The name of an image without one, if there is any, goes with them.
    pub(super) fn samples(&self, candidates: &[Candidate]) -> (Samples, Option<&str>) {
        let (mut samples, mut without) = (Samples::default(), None);
        for Candidate { image, text, row } in candidates {
            let image = &self.files[*image];
            let text = text.map(|text| self.files[text].name.as_str());
            match (text, row) {
                (_, Some(row)) => samples.push(image, "", row.clone()),
                (Some(text), None) => samples.push(image, text, 0..0),
                (None, None) => drop(without.get_or_insert(image.name.as_str())),
            }
        }
        samples.entries.shrink_to_fit();
        samples.names.shrink_to_fit();
        (samples, without)
    }
}

impl Samples {
    /// Returns how many there are.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns the name of an image.
    pub(super) fn image(&self, place: usize) -> String {
        let (stem, extension, _) = self.parts(place);
        format!("{stem}.{extension}")
    }

    /// Returns the bytes of an image.
    pub(super) fn bytes(&self, place: usize) -> u64 {
        self.entries[place].bytes
    }

    /// Returns where the caption of an image is.
    pub(super) fn caption(&self, place: usize) -> Caption {
        let (start, len) = self.entries[place].row;
        let (stem, _, extension) = self.parts(place);
        match len {
            0 => Caption::File(format!("{stem}.{extension}")),
            len => Caption::Row(start..start + u64::from(len)),
        }
    }

    fn push(&mut self, image: &File, text: &str, row: Range<u64>) {
        let extension = |name| split(name).map_or("", |(_, extension)| extension);
        let (stem, of_image) = (stem(&image.name), extension(&image.name));
        let start = self.names.len();
        for part in [stem, of_image, extension(text)] {
            self.names.push_str(part);
        }
        self.entries.push(Entry {
            start,
            stem: short(stem.len() as u64),
            extension: short(of_image.len() as u64),
            bytes: image.bytes,
            row: (row.start, short(row.end - row.start)),
        });
    }

    /// Returns name without extension, extension of the image, and extension of the caption's file.
    fn parts(&self, place: usize) -> (&str, &str, &str) {
        let Entry { start, stem, extension, .. } = self.entries[place];
        let end = self.entries.get(place + 1).map_or(self.names.len(), |next| next.start);
        let (stem, rest) = self.names[start..end].split_at(stem as usize);
        let (image, text) = rest.split_at(extension as usize);
        (stem, image, text)
    }
}

/// Lengths of names and of rows: stores and the readers of rows take none that is longer.
fn short(len: u64) -> u32 {
    u32::try_from(len).expect("names have at most 4 KiB and rows at most 16 MiB")
}

/// Splits a name at the last dot; none where no extension is after it.
fn split(name: &str) -> Option<(&str, &str)> {
    let base = name.rfind('/').map_or(0, |slash| slash + 1);
    let dot = base + name[base..].rfind('.').filter(|&dot| dot > 0)?;
    Some((&name[..dot], &name[dot + 1..]))
}

fn stem(name: &str) -> &str {
    split(name).map_or(name, |(stem, _)| stem)
}
