//! What a sample's image becomes on its way into a shard.

use bytes::Bytes;
use ringmaster_inputs::image::formats::Format as Found;
use ringmaster_inputs::image::{Error as Corrupt, RgbImage, decode};

use crate::{Error, picture};

/// Longest side that a JPEG has.
const JPEG_SIDE: u32 = 65_535;
/// Longest side that a WebP has.
const WEBP_SIDE: u32 = 16_384;

/// Which format images are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The one they have; those that are shrunk become JPEGs, and GIFs the PNG of their first frame.
    Keep,
    /// JPEG.
    Jpeg,
    /// WebP without loss.
    WebP,
    /// PNG.
    Png,
}

/// What becomes of images. Those that have the format and the size already keep their bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Images {
    /// The format.
    pub format: Format,
    /// Shrinks images whose longer side has more pixels than this; enlarges none.
    pub max_side: Option<u32>,
    /// Quality of JPEGs, 1 to 100.
    pub quality: u8,
}

/// An image as it goes into a shard.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) bytes: Bytes,
    /// Of the member.
    pub(super) extension: &'static str,
    /// Whether its bytes are others than they were.
    pub(super) is_new: bool,
}

/// Why an image does not go into a shard.
#[derive(Debug)]
pub(super) enum Refused {
    Corrupt(Corrupt),
    Encoder(String),
}

impl Images {
    pub(super) fn check(self) -> Result<(), Error> {
        let asked = |what: &str, remedy: &str| {
            Err(Error::Asked { what: what.to_owned(), remedy: remedy.to_owned() })
        };
        if self.max_side == Some(0) {
            return asked("images of 0 pixels cannot be written", "choose a side of 1 or more");
        }
        if !(1..=100).contains(&self.quality) {
            let what = format!("a JPEG has no quality of {}", self.quality);
            return asked(&what, "choose 1 to 100");
        }
        Ok(())
    }

    /// Returns an image as it is written. It is decoded in any case: what cannot be is not written.
    pub(super) fn encode(self, bytes: Bytes) -> Result<Encoded, Refused> {
        let image = decode(&bytes).map_err(Refused::Corrupt)?;
        let found = Found::of(&bytes);
        let size = self.max_side.and_then(|most| picture::shrunk_size(image.dimensions(), most));
        let wanted = self.wanted(found, size.unwrap_or(image.dimensions()), size.is_some());
        if size.is_none() && found == Some(wanted) {
            return Ok(Encoded { bytes, extension: extension(wanted), is_new: false });
        }
        let image = match size {
            Some(size) => picture::resized(&image, size).map_err(Refused::Corrupt)?,
            None => image,
        };
        let bytes = self.encoded(&image, wanted).map_err(Refused::Encoder)?.into();
        Ok(Encoded { bytes, extension: extension(wanted), is_new: true })
    }

    /// Returns the format in which an image of a size is written. A side that the format does not take makes it a PNG.
    fn wanted(self, found: Option<Found>, (width, height): (u32, u32), is_shrunk: bool) -> Found {
        let side = width.max(height);
        match (self.format, found) {
            (Format::Keep, Some(kept @ (Found::Jpeg | Found::Png | Found::WebP))) if !is_shrunk => {
                kept
            }
            (Format::Keep | Format::Jpeg, _) if side > JPEG_SIDE => Found::Png,
            (Format::Keep, _) if !is_shrunk => Found::Png,
            (Format::Keep | Format::Jpeg, _) => Found::Jpeg,
            (Format::WebP, _) if side <= WEBP_SIDE => Found::WebP,
            (Format::WebP | Format::Png, _) => Found::Png,
        }
    }

    fn encoded(self, image: &RgbImage, format: Found) -> Result<Vec<u8>, String> {
        match format {
            Found::Jpeg => picture::jpeg(image, self.quality).map_err(|error| error.to_string()),
            Found::WebP => picture::webp(image).map_err(|error| error.to_string()),
            Found::Png | Found::Gif => picture::png(image).map_err(|error| error.to_string()),
        }
    }
}

fn extension(format: Found) -> &'static str {
    match format {
        Found::Jpeg => "jpg",
        Found::Png => "png",
        Found::WebP => "webp",
        Found::Gif => "gif",
    }
}
