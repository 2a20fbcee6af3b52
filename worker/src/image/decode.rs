//! Encoded bytes to 8-bit RGB.

use std::io::Cursor;

use ::image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits, RgbImage};

use super::Error;
use crate::ffi::turbojpeg::{self, Header};

/// Largest width × height that is decoded, in pixels; OpenCLIP's `--max-image-pixels` has the same
/// default. The header is checked before anything is decoded.
pub const MAX_PIXELS: u64 = 25_000_000;

/// Returns the image in `bytes` (PNG, JPEG, WebP or the first frame of a GIF, told apart by their
/// first bytes) as 8-bit RGB.
///
/// Colours are converted as PIL's `convert("RGB")` does: palettes are looked up, grey is repeated,
/// alpha is dropped (not blended), sub-byte depths are stretched to 0–255. Of 16-bit channels the
/// high byte is taken, as PIL does for colour; PIL saturates 16-bit grey instead, which turns
/// nearly every such image white, so grey is treated like colour here.
/// JPEGs are decoded by libjpeg-turbo, as PIL's, where it is installed ([`jpeg_decoder`]).
///
/// # Errors
/// Returns an [`Error`] if the format is unknown, the header announces more than [`MAX_PIXELS`],
/// or the bytes are damaged or cut short.
pub fn decode(bytes: &[u8]) -> Result<RgbImage, Error> {
    let (format, name) = sniff(bytes).ok_or(Error::UnknownFormat { bytes: bytes.len() })?;
    // The JPEG decoder fills what is missing with grey; PIL refuses, and so do we.
    if format == ImageFormat::Jpeg && !has_end_of_image(bytes) {
        return Err(Error::Truncated);
    }
    if format == ImageFormat::Jpeg
        && let Some(image) = turbo(bytes)
    {
        return image;
    }
    let failed = |source| Error::Decode { format: name, source };
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits());
    let decoder = reader.into_decoder().map_err(failed)?;
    let (width, height) = decoder.dimensions();
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(Error::TooLarge { width, height, limit: MAX_PIXELS });
    }
    let image = DynamicImage::from_decoder(decoder).map_err(failed)?;
    Ok(to_rgb(image))
}

/// Decodes a JPEG as PIL does, with libjpeg-turbo; none where that is not installed, or for colours
/// it does not turn into RGB.
fn turbo(bytes: &[u8]) -> Option<Result<RgbImage, Error>> {
    let header = match turbojpeg::header(bytes)? {
        Ok(header) if header.rgb => header,
        Ok(_) => return None,
        Err(reason) => return Some(Err(Error::Jpeg { reason })),
    };
    let Header { width, height, .. } = header;
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Some(Err(Error::TooLarge { width, height, limit: MAX_PIXELS }));
    }
    Some(match turbojpeg::decode(bytes, header)? {
        Ok(pixels) => Ok(RgbImage::from_raw(width, height, pixels)
            .expect("three bytes were made of every pixel")),
        Err(reason) => Err(Error::Jpeg { reason }),
    })
}

/// Returns the name of what decodes JPEGs here: pixels of different decoders differ by a few of 255.
pub fn jpeg_decoder() -> &'static str {
    match turbojpeg::missing() {
        None => "libjpeg-turbo",
        Some(_) => "zune-jpeg",
    }
}

fn sniff(bytes: &[u8]) -> Option<(ImageFormat, &'static str)> {
    match ::image::guess_format(bytes).ok()? {
        ImageFormat::Png => Some((ImageFormat::Png, "png")),
        ImageFormat::Jpeg => Some((ImageFormat::Jpeg, "jpeg")),
        ImageFormat::WebP => Some((ImageFormat::WebP, "webp")),
        ImageFormat::Gif => Some((ImageFormat::Gif, "gif")),
        _ => None,
    }
}

/// Bounds what a decoder may allocate: eight bytes (RGBA of 16 bits) per accepted pixel, twice.
fn limits() -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_alloc = Some(MAX_PIXELS * 16);
    limits
}

fn has_end_of_image(bytes: &[u8]) -> bool {
    bytes.windows(2).rev().any(|pair| pair == [0xFF, 0xD9])
}

fn to_rgb(image: DynamicImage) -> RgbImage {
    let (width, height) = (image.width(), image.height());
    let pixels = match image {
        DynamicImage::ImageLuma16(grey) => high_bytes(grey.as_raw(), 1),
        DynamicImage::ImageLumaA16(grey) => high_bytes(grey.as_raw(), 2),
        DynamicImage::ImageRgb16(rgb) => high_bytes(rgb.as_raw(), 3),
        DynamicImage::ImageRgba16(rgba) => high_bytes(rgba.as_raw(), 4),
        other => return other.into_rgb8(),
    };
    RgbImage::from_raw(width, height, pixels).expect("three bytes were made of every pixel")
}

/// Returns three bytes per pixel from 16-bit samples with 1 (grey), 2 (grey, alpha), 3 or 4
/// channels.
fn high_bytes(samples: &[u16], channels: usize) -> Vec<u8> {
    let high = |sample: u16| (sample >> 8) as u8;
    let mut pixels = Vec::with_capacity(samples.len() / channels * 3);
    for pixel in samples.chunks_exact(channels) {
        if channels < 3 {
            pixels.extend([high(pixel[0]); 3]);
        } else {
            pixels.extend(pixel[..3].iter().map(|&sample| high(sample)));
        }
    }
    pixels
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ::image::{
        ExtendedColorType, GrayAlphaImage, GrayImage, ImageBuffer, Luma, LumaA, Rgb, Rgba,
        RgbaImage,
    };

    use super::*;

    fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Vec::new();
        image.write_to(&mut Cursor::new(&mut bytes), format).unwrap();
        bytes
    }

    fn picture() -> RgbImage {
        RgbImage::from_fn(13, 9, |x, y| Rgb([(x * 19) as u8, (y * 27) as u8, (x * y) as u8]))
    }

    #[test]
    fn png_of_every_colour_type_becomes_what_pil_makes_of_it() {
        let rgb = picture();
        assert_eq!(decode(&encode(&rgb.clone().into(), ImageFormat::Png)).unwrap(), rgb);

        let alpha = RgbaImage::from_fn(13, 9, |x, y| {
            let Rgb([r, g, b]) = *rgb.get_pixel(x, y);
            Rgba([r, g, b, (x * 20) as u8])
        });
        assert_eq!(
            decode(&encode(&alpha.into(), ImageFormat::Png)).unwrap(),
            rgb,
            "alpha is dropped, not blended"
        );

        let grey = GrayImage::from_fn(13, 9, |x, y| Luma([(x * y) as u8]));
        let grey_alpha = GrayAlphaImage::from_fn(13, 9, |x, y| LumaA([(x * y) as u8, x as u8]));
        let repeated = RgbImage::from_fn(13, 9, |x, y| Rgb([(x * y) as u8; 3]));
        assert_eq!(decode(&encode(&grey.into(), ImageFormat::Png)).unwrap(), repeated);
        assert_eq!(decode(&encode(&grey_alpha.into(), ImageFormat::Png)).unwrap(), repeated);

        let deep = ImageBuffer::<Rgb<u16>, _>::from_fn(13, 9, |x, y| {
            Rgb([x as u16 * 256 + 255, y as u16 * 256, 65_535])
        });
        let high = RgbImage::from_fn(13, 9, |x, y| Rgb([x as u8, y as u8, 255]));
        assert_eq!(decode(&encode(&deep.into(), ImageFormat::Png)).unwrap(), high);
        let deep_grey =
            ImageBuffer::<Luma<u16>, _>::from_fn(13, 9, |x, y| Luma([(x * y) as u16 * 256 + 200]));
        assert_eq!(decode(&encode(&deep_grey.into(), ImageFormat::Png)).unwrap(), repeated);
    }

    #[test]
    fn a_palette_png_is_looked_up_and_its_transparency_dropped() {
        let mut bytes = Vec::new();
        let mut encoder = png::Encoder::new(&mut bytes, 4, 1);
        encoder.set_color(png::ColorType::Indexed);
        encoder.set_depth(png::BitDepth::Two);
        encoder.set_palette(vec![10, 20, 30, 40, 50, 60, 70, 80, 90, 1, 2, 3]);
        encoder.set_trns(vec![0_u8, 128]);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&[0b00_01_10_11]).unwrap();
        writer.finish().unwrap();
        let image = decode(&bytes).unwrap();
        assert_eq!(image.as_raw(), &[10, 20, 30, 40, 50, 60, 70, 80, 90, 1, 2, 3]);
    }

    #[test]
    fn webp_and_gif_are_exact_and_jpeg_is_near() {
        let rgb = picture();
        assert_eq!(decode(&encode(&rgb.clone().into(), ImageFormat::WebP)).unwrap(), rgb);

        let flat = RgbImage::from_pixel(16, 16, Rgb([200, 100, 50]));
        let jpeg = decode(&encode(&flat.clone().into(), ImageFormat::Jpeg)).unwrap();
        assert!(jpeg.iter().zip(flat.iter()).all(|(a, b)| a.abs_diff(*b) <= 2));

        let mut gif = Vec::new();
        {
            let mut encoder = ::image::codecs::gif::GifEncoder::new(&mut gif);
            encoder.encode(flat.as_raw(), 16, 16, ExtendedColorType::Rgb8).unwrap();
            let second = RgbImage::from_pixel(16, 16, Rgb([0, 0, 0]));
            encoder.encode(second.as_raw(), 16, 16, ExtendedColorType::Rgb8).unwrap();
        }
        assert_eq!(decode(&gif).unwrap(), flat, "the first frame counts");
    }

    /// A grey JPEG of one minimum coded unit, its brightness sampled `across` × `down`.
    fn sampled(across: u8, down: u8) -> Vec<u8> {
        let mut bytes = vec![0xFF, 0xD8];
        let mut segment = |marker: u8, body: &[u8]| {
            bytes.extend([0xFF, marker, 0, body.len() as u8 + 2]);
            bytes.extend(body);
        };
        segment(0xDB, &[&[0][..], &[1; 64]].concat());
        let component = |id: u8, sampling: u8| [id, sampling, 0];
        let frame = [8, 0, 8 * down, 0, 8 * across, 3];
        let sampling = [component(1, across << 4 | down), component(2, 0x11), component(3, 0x11)];
        segment(0xC0, &[&frame[..], &sampling.concat()].concat());
        // One code of one bit in each table: no difference, and no further coefficients.
        let code = [&[1][..], &[0; 15], &[0]].concat();
        segment(0xC4, &[&[0x00][..], &code].concat());
        segment(0xC4, &[&[0x10][..], &code].concat());
        segment(0xDA, &[3, 1, 0, 2, 0, 3, 0, 0, 63, 0]);
        let bits = 2 * (usize::from(across * down) + 2);
        bytes.extend(vec![0; bits.div_ceil(8)]);
        bytes.extend([0xFF, 0xD9]);
        bytes
    }

    /// libjpeg-turbo has no name for some samplings, says so of the header and decodes them: so does PIL.
    #[test]
    fn jpegs_of_samplings_without_a_name_are_decoded() {
        if turbojpeg::missing().is_some() {
            return;
        }
        for (across, down) in [(1, 1), (2, 2), (4, 1), (4, 2), (3, 1), (1, 4)] {
            let image = decode(&sampled(across, down)).unwrap();
            assert_eq!(image.dimensions(), (8 * u32::from(across), 8 * u32::from(down)));
            assert!(image.iter().all(|value| *value == 128), "{across} x {down}");
        }
    }

    #[test]
    fn damaged_and_unknown_bytes_are_errors_that_say_which() {
        let png = encode(&picture().into(), ImageFormat::Png);
        let cut = decode(&png[..png.len() / 2]).unwrap_err();
        assert_eq!(cut.to_string(), "the png image cannot be decoded");
        let jpeg = encode(&picture().into(), ImageFormat::Jpeg);
        assert!(matches!(decode(&jpeg[..jpeg.len() - 2]), Err(Error::Truncated)));
        assert!(matches!(decode(b"hello"), Err(Error::UnknownFormat { bytes: 5 })));
        assert!(matches!(decode(b""), Err(Error::UnknownFormat { bytes: 0 })));
    }

    #[test]
    fn a_header_that_announces_too_many_pixels_is_refused_before_decoding() {
        let mut png = encode(&picture().into(), ImageFormat::Png);
        png[16..20].copy_from_slice(&60_000_u32.to_be_bytes());
        png[20..24].copy_from_slice(&60_000_u32.to_be_bytes());
        let mut crc = flate2::Crc::new();
        crc.update(&png[12..29]);
        png[29..33].copy_from_slice(&crc.sum().to_be_bytes());
        let error = decode(&png).unwrap_err();
        assert!(matches!(error, Error::TooLarge { width: 60_000, .. }), "{error}");
    }
}
