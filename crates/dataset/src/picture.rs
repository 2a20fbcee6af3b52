//! What is computed of one picture: digests that tell it from others, and smaller versions of it.

use std::cell::RefCell;

use ringmaster_inputs::image::resize::Rect;
use ringmaster_inputs::image::{Error, Filter, RgbImage, Scratch};

/// Columns and rows of the grey picture that a difference hash compares neighbours of.
const HASH_SIZE: (u32, u32) = (9, 8);
/// Columns and rows of the colours that are compared.
const COLOURS_SIZE: (u32, u32) = (4, 4);
/// Grey levels by which a pixel has to be brighter than its left neighbour: less is noise of an encoder.
const HASH_MARGIN: i32 = 2;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Tells files of the same bytes: the first half of their BLAKE3 digest.
pub(crate) type Digest = [u8; 16];

/// Returns the digest of an encoded image.
pub(crate) fn digest(bytes: &[u8]) -> Digest {
    let mut half = [0; 16];
    half.copy_from_slice(&blake3::hash(bytes).as_bytes()[..16]);
    half
}

/// What pictures that look alike have in common, at whichever size and however they are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Likeness {
    /// Difference hash: whether a pixel of the picture, shrunk to 9 × 8 grey ones, is brighter than the one left of it.
    pub(crate) hash: u64,
    /// The picture shrunk to 4 × 4 pixels of red, green and blue: pictures of the same shapes may have other colours.
    pub(crate) colours: [u8; 48],
}

impl Likeness {
    /// Returns the likeness of a picture; none for one without any structure, as all those would be alike.
    pub(crate) fn of(image: &RgbImage) -> Option<Self> {
        SCRATCH.with_borrow_mut(|scratch| {
            let whole = Rect::of(image);
            let (width, height) = HASH_SIZE;
            let small = scratch.resize(image, whole, width, height, Filter::Bilinear).ok()?;
            let hash = difference_hash(small);
            let (width, height) = COLOURS_SIZE;
            let small = scratch.resize(image, whole, width, height, Filter::Bilinear).ok()?;
            let colours = small.try_into().ok()?;
            (hash != 0).then_some(Self { hash, colours })
        })
    }
}

/// Returns the difference hash of the pixels of a picture of [`HASH_SIZE`].
fn difference_hash(pixels: &[u8]) -> u64 {
    // The luma of ITU-R BT.601, in thousandths.
    let luma = |pixel: &[u8]| {
        299 * i32::from(pixel[0]) + 587 * i32::from(pixel[1]) + 114 * i32::from(pixel[2])
    };
    let grey: Vec<i32> = pixels.chunks_exact(3).map(luma).collect();
    let rows = grey.chunks_exact(HASH_SIZE.0 as usize);
    let brighter =
        rows.flat_map(|row| row.windows(2).map(|two| two[1] - two[0] >= HASH_MARGIN * 1000));
    brighter.fold(0, |hash, bit| hash << 1 | u64::from(bit))
}

/// Returns the size of a picture shrunk so that its longer side is at most `longest`; none where it is already.
pub(crate) fn shrunk_size((width, height): (u32, u32), longest: u32) -> Option<(u32, u32)> {
    let long = u64::from(width.max(height));
    let most = u64::from(longest);
    if long <= most {
        return None;
    }
    // Rounded to the nearest, one pixel at least.
    let side = |length: u32| {
        let side = (u64::from(length) * most * 2 + long) / (long * 2);
        u32::try_from(side).expect("it is at most `longest`").max(1)
    };
    Some((side(width), side(height)))
}

/// Returns a picture resized to these sides, antialiased.
///
/// # Errors
/// A side without pixels.
pub(crate) fn resized(image: &RgbImage, (width, height): (u32, u32)) -> Result<RgbImage, Error> {
    SCRATCH.with_borrow_mut(|scratch| {
        let pixels = scratch.resize(image, Rect::of(image), width, height, Filter::Bicubic)?;
        let resized = RgbImage::from_raw(width, height, pixels.to_vec());
        Ok(resized.expect("a resize gives the pixels of its size"))
    })
}

/// Returns a picture to look at: its longer side is at most `longest`, and small ones are enlarged by the largest whole
/// number with which that holds.
///
/// # Errors
/// A picture without pixels.
pub(crate) fn thumbnail(image: &RgbImage, longest: u32) -> Result<RgbImage, Error> {
    if let Some(size) = shrunk_size(image.dimensions(), longest) {
        return resized(image, size);
    }
    let (width, height) = image.dimensions();
    match longest / width.max(height).max(1) {
        0 | 1 => Ok(image.clone()),
        factor => resized(image, (width * factor, height * factor)),
    }
}

/// Returns a picture as PNG.
///
/// # Errors
/// What the encoder says.
pub(crate) fn png(image: &RgbImage) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, image.width(), image.height());
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(image.as_raw())?;
    writer.finish()?;
    Ok(bytes)
}

/// Returns a picture as JPEG, of `quality` 1 to 100, its colours at half the resolution as usual.
///
/// # Errors
/// What the encoder says, of sides above 65,535 for one.
pub(crate) fn jpeg(image: &RgbImage, quality: u8) -> Result<Vec<u8>, libjpeg_turbo_rs::JpegError> {
    use libjpeg_turbo_rs::{PixelFormat, Subsampling, compress};
    let (width, height) = (image.width() as usize, image.height() as usize);
    compress(image.as_raw(), width, height, PixelFormat::Rgb, quality, Subsampling::S420)
}

/// Returns a picture as WebP, without loss.
///
/// # Errors
/// What the encoder says, of sides above 16,384 for one.
pub(crate) fn webp(image: &RgbImage) -> Result<Vec<u8>, image_webp::EncodingError> {
    let mut bytes = Vec::new();
    let encoder = image_webp::WebPEncoder::new(&mut bytes);
    let (width, height) = image.dimensions();
    encoder.encode(image.as_raw(), width, height, image_webp::ColorType::Rgb8)?;
    Ok(bytes)
}
