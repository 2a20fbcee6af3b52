//! PNG, WebP and GIF to 8-bit RGB, each by its own library; told apart by their first bytes.
//!
//! Colours are converted as PIL's `convert("RGB")` does: palettes are looked up, grey is repeated,
//! alpha is dropped (not blended), sub-byte depths are stretched to 0–255. Of 16-bit channels the
//! high byte is taken, as PIL does for colour; PIL saturates 16-bit grey instead, which turns nearly
//! every such image white, so grey is treated like colour here.

use std::io::Cursor;

use image_webp::WebPDecoder;

use super::decode::MAX_PIXELS;
use super::{Error, RgbImage};

/// What a decoder may allocate beside its output: eight bytes (RGBA of 16 bits) per accepted pixel.
const MAX_BYTES: usize = MAX_PIXELS as usize * 8;

/// A format that is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// PNG; of an animation the default image.
    Png,
    /// JPEG.
    Jpeg,
    /// WebP; of an animation the first frame.
    WebP,
    /// GIF; the first frame.
    Gif,
}

impl Format {
    /// Returns the format that the first bytes of a file announce.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0x89, b'P', b'N', b'G', 0x0D, 0x0A, 0x1A, 0x0A, ..] => Some(Self::Png),
            [0xFF, 0xD8, 0xFF, ..] => Some(Self::Jpeg),
            [b'R', b'I', b'F', b'F', _, _, _, _, b'W', b'E', b'B', b'P', ..] => Some(Self::WebP),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Self::Gif),
            _ => None,
        }
    }

    /// Returns its name, as media types have it: `image/NAME`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::WebP => "webp",
            Self::Gif => "gif",
        }
    }
}

/// Decodes a PNG.
///
/// # Errors
/// Returns [`Error::TooLarge`] before decoding, or [`Error::Decode`] with the library's reason.
pub(super) fn png(bytes: &[u8]) -> Result<RgbImage, Error> {
    let failed = |source: png::DecodingError| refused(Format::Png, source);
    let limits = png::Limits { bytes: MAX_BYTES };
    let mut decoder = png::Decoder::new_with_limits(Cursor::new(bytes), limits);
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(failed)?;
    let (width, height) = (reader.info().width, reader.info().height);
    check_size(width, height)?;
    let mut samples = vec![0; reader.output_buffer_size().unwrap_or(0)];
    let info = reader.next_frame(&mut samples).map_err(failed)?;
    samples.truncate(info.buffer_size());
    let samples = match info.color_type {
        png::ColorType::Rgb => samples,
        png::ColorType::Rgba => without_alpha(&samples),
        png::ColorType::Grayscale => samples.into_iter().flat_map(|grey| [grey; 3]).collect(),
        png::ColorType::GrayscaleAlpha => {
            samples.chunks_exact(2).flat_map(|pixel| [pixel[0]; 3]).collect()
        }
        png::ColorType::Indexed => {
            return Err(refused(Format::Png, "its palette was not looked up"));
        }
    };
    image(Format::Png, info.width, info.height, samples)
}

/// Decodes a WebP.
///
/// # Errors
/// As [`png`].
pub(super) fn webp(bytes: &[u8]) -> Result<RgbImage, Error> {
    let failed = |source: image_webp::DecodingError| refused(Format::WebP, source);
    let mut decoder = WebPDecoder::new(Cursor::new(bytes)).map_err(failed)?;
    decoder.set_memory_limit(MAX_BYTES);
    let (width, height) = decoder.dimensions();
    check_size(width, height)?;
    let mut samples = vec![0; decoder.output_buffer_size().unwrap_or(0)];
    decoder.read_image(&mut samples).map_err(failed)?;
    let samples = if decoder.has_alpha() { without_alpha(&samples) } else { samples };
    image(Format::WebP, width, height, samples)
}

/// Decodes the first frame of a GIF onto its canvas, which is black elsewhere.
///
/// # Errors
/// As [`png`].
pub(super) fn gif(bytes: &[u8]) -> Result<RgbImage, Error> {
    let failed = |source: gif::DecodingError| refused(Format::Gif, source);
    let mut options = gif::DecodeOptions::new();
    options.set_color_output(gif::ColorOutput::RGBA);
    let limit = std::num::NonZeroU64::new(MAX_BYTES as u64).expect("it is a constant above zero");
    options.set_memory_limit(gif::MemoryLimit::Bytes(limit));
    let mut decoder = options.read_info(Cursor::new(bytes)).map_err(failed)?;
    let (width, height) = (u32::from(decoder.width()), u32::from(decoder.height()));
    check_size(width, height)?;
    let Some(frame) = decoder.read_next_frame().map_err(failed)? else {
        return Err(refused(Format::Gif, "it has no frame"));
    };
    let mut canvas = vec![0; width as usize * height as usize * 3];
    let (left, top) = (usize::from(frame.left), usize::from(frame.top));
    let visible = usize::from(frame.width).min((width as usize).saturating_sub(left));
    let rows = frame.buffer.chunks_exact(usize::from(frame.width).max(1) * 4);
    for (y, row) in rows.enumerate().take((height as usize).saturating_sub(top)) {
        let start = ((top + y) * width as usize + left) * 3;
        let line = without_alpha(&row[..visible * 4]);
        canvas[start..start + line.len()].copy_from_slice(&line);
    }
    image(Format::Gif, width, height, canvas)
}

fn refused(format: Format, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
    Error::Decode { format: format.name(), source: source.into() }
}

fn check_size(width: u32, height: u32) -> Result<(), Error> {
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(Error::TooLarge { width, height, limit: MAX_PIXELS });
    }
    Ok(())
}

fn without_alpha(samples: &[u8]) -> Vec<u8> {
    samples.chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]).collect()
}

fn image(format: Format, width: u32, height: u32, values: Vec<u8>) -> Result<RgbImage, Error> {
    let found = values.len();
    RgbImage::from_raw(width, height, values).ok_or_else(|| {
        let expected = u64::from(width) * u64::from(height) * 3;
        refused(
            format,
            format!("{found} values came out, {width} x {height} pixels have {expected}"),
        )
    })
}
