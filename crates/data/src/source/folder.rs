//! Folders of images: one image with a caption is one sample, one folder one shard.
//!
//! Everything below the folder is listed once. A caption is in a file of the image's name, or in the folder's metadata,
//! which goes first. Images without one are left out, as OpenCLIP does with tars.

use std::ops::Range;

use bytes::Bytes;
use ringmaster_manifest::spec;
use ringmaster_words as words;
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::listing::{Candidate, Caption, Listing, Samples, Wanted};
use super::metadata::{self, Metadata};
use super::objects::Objects;
use super::{Shards, captions};
use crate::Error;
use crate::sample::{Block, Flaw, RawSample};
use crate::store::Object;

/// Which folders, and which of their files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// Folders: absolute paths or URLs, in order.
    pub(crate) urls: Vec<String>,
    /// Extensions of images; of images of the same name, the one whose extension comes first here.
    pub(crate) image_key: Vec<String>,
    /// Extension of captions.
    pub(crate) text_key: String,
    /// Field of a `.json` file that holds the caption or a list of captions instead; of several names, joined by `;`,
    /// the first that holds one counts.
    pub(crate) json_text_key: Option<String>,
    /// Column of captions in `metadata.csv` or field in `metadata.jsonl`; where it is not there, `text`.
    pub(crate) csv_caption_key: String,
}

impl Options {
    /// Returns what a manifest's `data` asks of a source.
    pub(crate) fn of(data: &spec::Data, source: &spec::Source) -> Self {
        Self {
            urls: source.data.clone(),
            image_key: data.image_key.clone(),
            text_key: data.text_key.clone(),
            json_text_key: data.json_text_key.clone(),
            csv_caption_key: data.csv_caption_key.clone(),
        }
    }
}

/// Opened folders.
#[derive(Debug)]
pub(crate) struct Folder {
    options: Options,
    objects: Objects,
    folders: Vec<Opened>,
    sizes: Vec<u64>,
}

/// A folder, and what is in it.
#[derive(Debug)]
struct Opened {
    object: Object,
    samples: Samples,
    metadata: Option<Metadata>,
}

impl Folder {
    /// Lists every folder.
    ///
    /// # Errors
    /// A folder that is missing, or in which no image has a caption, named; a store that fails.
    pub(crate) fn open(options: Options) -> Result<Self, Error> {
        let objects = Objects::default();
        let text = match options.json_text_key {
            Some(_) => "json".to_owned(),
            None => options.text_key.to_ascii_lowercase(),
        };
        let image = options.image_key.iter().map(|key| key.to_ascii_lowercase()).collect();
        let wanted = Wanted { image, text };
        let open =
            |url: &String| Opened::open(objects.object(url)?, &wanted, &options.csv_caption_key);
        let folders = options.urls.iter().map(open).collect::<Result<Vec<_>, Error>>()?;
        let sizes = folders.iter().map(|folder| folder.samples.len() as u64).collect();
        Ok(Self { options, objects, folders, sizes })
    }

    /// Returns the captions of a sample: out of its row, or of the file whose bytes these are.
    fn captions(
        &self,
        folder: &Opened,
        caption: Caption,
        file: Option<Result<Bytes, String>>,
        cancel: &CancellationToken,
    ) -> Result<Result<Vec<String>, String>, Error> {
        Ok(match (caption, &folder.metadata, file) {
            (Caption::Row(row), Some(metadata), _) => return metadata.captions(row, cancel),
            (Caption::File(name), _, Some(Err(reason))) => Err(format!("caption {name}: {reason}")),
            (_, _, Some(Ok(text))) => match &self.options.json_text_key {
                Some(fields) => captions::of_json(&text, fields),
                None => captions::of_text(&text),
            },
            _ => Err("no caption".to_owned()),
        })
    }
}

impl Shards for Folder {
    fn sizes(&self) -> &[u64] {
        &self.sizes
    }

    fn add_to(&self, fingerprint: &mut Sha256) {
        for Opened { object, samples, .. } in &self.folders {
            fingerprint.update(format!("folder {} {}\n", object.file_name(), samples.len()));
            for place in 0..samples.len() {
                let (name, bytes) = (samples.image(place), samples.bytes(place));
                fingerprint.update(format!("{name} {bytes}\n"));
            }
        }
    }

    fn is_remote(&self) -> bool {
        self.folders.iter().any(|folder| folder.object.is_remote())
    }

    fn bytes(&self) -> u64 {
        let of = |samples: &Samples| (0..samples.len()).map(|place| samples.bytes(place)).sum();
        self.folders.iter().map(|folder| of(&folder.samples)).fold(0, u64::saturating_add)
    }

    fn fetch(
        &self,
        shard: usize,
        places: Range<u64>,
        cancel: &CancellationToken,
    ) -> Result<Block, Error> {
        let folder = &self.folders[shard];
        let mut objects = Vec::new();
        for place in places.clone() {
            objects.push(folder.file(&folder.samples.image(place as usize)));
            if let Caption::File(name) = folder.samples.caption(place as usize) {
                objects.push(folder.file(&name));
            }
        }
        let files = self.objects.read(&objects, cancel)?;
        let bytes = files.iter().flatten().map(|file| file.len() as u64).sum();
        let mut files = files.into_iter();
        let mut samples = Vec::new();
        for place in places.clone() {
            let name = folder.samples.image(place as usize);
            let image = files.next().expect("an answer for each object");
            let caption = folder.samples.caption(place as usize);
            let file = match caption {
                Caption::File(_) => files.next(),
                Caption::Row(_) => None,
            };
            let captions = self.captions(folder, caption, file, cancel)?;
            samples.push(folder.sample(&name, image, captions));
        }
        Ok(Block { first: places.start, samples, bytes })
    }
}

impl Opened {
    fn open(object: Object, wanted: &Wanted, caption_key: &str) -> Result<Self, Error> {
        let (mut listing, mut found) = (Listing::default(), [false; 2]);
        object.list(|name, bytes| {
            for (found, of) in found.iter_mut().zip(metadata::NAMES) {
                *found |= name == of;
            }
            listing.add(name, bytes, wanted);
        })?;
        let mut candidates = listing.candidates(wanted);
        let mut not_in = Vec::new();
        let mut metadata = None;
        if let Some(place) = found.iter().position(|found| *found) {
            let file = object.below(metadata::NAMES[place])?;
            match Metadata::open(file, caption_key)? {
                Ok(opened) => metadata = Some(opened),
                Err(reason) => not_in.push(reason),
            }
        }
        if let Some(metadata) = &metadata {
            metadata.scan(|name, row| listing.found(&mut candidates, name, row))?;
            not_in.push("the metadata there names none of them".to_owned());
        }
        let (samples, without) = listing.samples(&candidates);
        if samples.len() == 0 {
            let reason = why_empty(&listing, &candidates, wanted, &not_in);
            return Err(Error::Empty { url: object.url, reason });
        }
        if let Some(example) = without {
            let (url, images) = (&object.url, candidates.len());
            let left_out = images - samples.len();
            tracing::warn!(%url, images, left_out, example, "images without a caption are left out");
        }
        Ok(Self { object, samples, metadata })
    }

    fn file(&self, name: &str) -> Result<Object, String> {
        self.object.below(name).map_err(|error| error.to_string())
    }

    fn sample(
        &self,
        name: &str,
        image: Result<Bytes, String>,
        captions: Result<Vec<String>, String>,
    ) -> Result<RawSample, Flaw> {
        let flaw = |reason| Flaw { shard: self.object.url.clone(), key: name.to_owned(), reason };
        let image = image.map_err(|reason| flaw(format!("image: {reason}")))?;
        let captions = captions.map_err(flaw)?;
        Ok(RawSample { key: format!("{}/{name}", self.object.file_name()), image, captions })
    }
}

/// Says why a folder has no sample, and what was looked for.
fn why_empty(
    listing: &Listing,
    candidates: &[Candidate],
    wanted: &Wanted,
    not_in: &[String],
) -> String {
    let images = format!(".{}", wanted.image.join(", ."));
    let files = words::thousands(listing.seen);
    match (listing.seen, candidates.len() as u64) {
        (0, _) => "there is no such folder, or no file below it".to_owned(),
        (_, 0) => format!(
            "none of the {files} files below it is an image ({images}); set data.image_key to the extensions of images"
        ),
        (_, count) => {
            let text = &wanted.text;
            let also = match not_in {
                [] => format!("and there is no {}", metadata::NAMES.join(" or ")),
                reasons => reasons.join("; "),
            };
            format!(
                "none of its {} images ({images}) has a caption: no file of an image's name ends in .{text} (see \
                 data.text_key and data.json_text_key), {also}",
                words::thousands(count)
            )
        }
    }
}
