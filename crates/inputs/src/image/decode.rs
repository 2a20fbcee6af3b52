//! Encoded bytes to 8-bit RGB.

use ringmaster_weights::found;

use super::formats::{self, Format};
use super::{Error, RgbImage, jpeg};
use crate::panics;

/// Largest width × height that is decoded, in pixels; OpenCLIP's `--max-image-pixels` has the same
/// default. The header is checked before anything is decoded.
pub const MAX_PIXELS: u64 = 25_000_000;

/// Returns the image in `bytes` (PNG, JPEG, WebP or the first frame of a GIF, told apart by their
/// first bytes) as 8-bit RGB, its colours converted as PIL's `convert("RGB")` does ([`formats`]).
/// JPEGs have the pixels that PIL gives them.
///
/// # Errors
/// Returns an [`Error`] if the format is unknown, the header announces more than [`MAX_PIXELS`],
/// or the bytes are damaged or cut short.
pub fn decode(bytes: &[u8]) -> Result<RgbImage, Error> {
    decode_as(bytes, None)
}

/// Returns what [`decode`] does, but JPEGs at a half, a quarter or an eighth of their size where the
/// short side of that is still at least twice `side`: of each block only the low frequencies are
/// turned into pixels, which takes less time. Antialiased from there, pixels of an
/// input of that side differ slightly from those of the whole JPEG.
///
/// They are the pixels that PIL gives after `draft` with twice the side.
///
/// # Errors
/// As [`decode`].
pub fn decode_scaled(bytes: &[u8], side: u32) -> Result<RgbImage, Error> {
    decode_as(bytes, Some(side))
}

fn decode_as(bytes: &[u8], side: Option<u32>) -> Result<RgbImage, Error> {
    let unknown = || Error::UnknownFormat { bytes: bytes.len(), what: instead(bytes) };
    let format = Format::of(bytes).ok_or_else(unknown)?;
    let decoded = panics::caught(|| match format {
        Format::Png => formats::png(bytes),
        Format::Jpeg => jpeg::decode(bytes, side),
        Format::WebP => formats::webp(bytes),
        Format::Gif => formats::gif(bytes),
    });
    decoded.unwrap_or_else(|message| Err(Error::Panic { format: format.name(), message }))
}

/// Says what bytes are that begin as none of the formats that are decoded.
fn instead(bytes: &[u8]) -> String {
    let picture = match bytes {
        [b'I', b'I', b'*', 0, ..] | [b'M', b'M', 0, b'*', ..] => Some("tiff"),
        [b'B', b'M', _, _, _, _, 0, 0, 0, 0, ..] => Some("bmp"),
        [_, _, _, _, b'f', b't', b'y', b'p', b'a', b'v', b'i', ..] => Some("avif"),
        [_, _, _, _, b'f', b't', b'y', b'p', b'h' | b'm', ..] => Some("heic"),
        [b'8', b'B', b'P', b'S', ..] => Some("psd"),
        _ => None,
    };
    let start = &bytes[..bytes.len().min(found::BEGINNING)];
    picture.map(str::to_owned).or_else(|| found::described(start)).unwrap_or_else(|| match bytes {
        [] => "nothing".to_owned(),
        _ => "something unknown".to_owned(),
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::io::Cursor;

    use ::image::{
        DynamicImage, ExtendedColorType, GrayAlphaImage, GrayImage, ImageBuffer, ImageFormat, Luma,
        LumaA, Rgb, RgbImage, Rgba, RgbaImage,
    };
    use libjpeg_turbo_rs::{PixelFormat, Subsampling, compress};

    use super::*;

    fn encode(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        if format == ImageFormat::Jpeg {
            let (width, height) = (image.width() as usize, image.height() as usize);
            let pixels = image.to_rgb8().into_raw();
            return compress(&pixels, width, height, PixelFormat::Rgb, 90, Subsampling::S420)
                .unwrap();
        }
        let mut bytes = Vec::new();
        image.write_to(&mut Cursor::new(&mut bytes), format).unwrap();
        bytes
    }

    fn read(bytes: &[u8]) -> RgbImage {
        let image = decode(bytes).unwrap();
        RgbImage::from_raw(image.width(), image.height(), image.as_raw().to_vec()).unwrap()
    }

    fn picture() -> RgbImage {
        RgbImage::from_fn(13, 9, |x, y| Rgb([(x * 19) as u8, (y * 27) as u8, (x * y) as u8]))
    }

    #[test]
    fn png_of_every_colour_type_becomes_what_pil_makes_of_it() {
        let rgb = picture();
        assert_eq!(read(&encode(&rgb.clone().into(), ImageFormat::Png)), rgb);

        let alpha = RgbaImage::from_fn(13, 9, |x, y| {
            let Rgb([r, g, b]) = *rgb.get_pixel(x, y);
            Rgba([r, g, b, (x * 20) as u8])
        });
        assert_eq!(
            read(&encode(&alpha.into(), ImageFormat::Png)),
            rgb,
            "alpha is dropped, not blended"
        );

        let grey = GrayImage::from_fn(13, 9, |x, y| Luma([(x * y) as u8]));
        let grey_alpha = GrayAlphaImage::from_fn(13, 9, |x, y| LumaA([(x * y) as u8, x as u8]));
        let repeated = RgbImage::from_fn(13, 9, |x, y| Rgb([(x * y) as u8; 3]));
        assert_eq!(read(&encode(&grey.into(), ImageFormat::Png)), repeated);
        assert_eq!(read(&encode(&grey_alpha.into(), ImageFormat::Png)), repeated);

        let deep = ImageBuffer::<Rgb<u16>, _>::from_fn(13, 9, |x, y| {
            Rgb([x as u16 * 256 + 255, y as u16 * 256, 65_535])
        });
        let high = RgbImage::from_fn(13, 9, |x, y| Rgb([x as u8, y as u8, 255]));
        assert_eq!(read(&encode(&deep.into(), ImageFormat::Png)), high);
        let deep_grey =
            ImageBuffer::<Luma<u16>, _>::from_fn(13, 9, |x, y| Luma([(x * y) as u16 * 256 + 200]));
        assert_eq!(read(&encode(&deep_grey.into(), ImageFormat::Png)), repeated);
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
        let image = read(&bytes);
        assert_eq!(image.as_raw(), &[10, 20, 30, 40, 50, 60, 70, 80, 90, 1, 2, 3]);
    }

    #[test]
    fn webp_and_gif_are_exact_and_jpeg_is_near() {
        let rgb = picture();
        assert_eq!(read(&encode(&rgb.clone().into(), ImageFormat::WebP)), rgb);

        let flat = RgbImage::from_pixel(16, 16, Rgb([200, 100, 50]));
        let jpeg = read(&encode(&flat.clone().into(), ImageFormat::Jpeg));
        assert!(jpeg.iter().zip(flat.iter()).all(|(a, b)| a.abs_diff(*b) <= 2));

        let mut gif = Vec::new();
        {
            let mut encoder = ::image::codecs::gif::GifEncoder::new(&mut gif);
            encoder.encode(flat.as_raw(), 16, 16, ExtendedColorType::Rgb8).unwrap();
            let second = RgbImage::from_pixel(16, 16, Rgb([0, 0, 0]));
            encoder.encode(second.as_raw(), 16, 16, ExtendedColorType::Rgb8).unwrap();
        }
        assert_eq!(read(&gif), flat, "the first frame counts");
    }

    #[test]
    fn only_jpegs_are_decoded_at_part_of_their_size() {
        let rgb = picture();
        for (format, size) in
            [(ImageFormat::Jpeg, (4, 3)), (ImageFormat::Png, (13, 9)), (ImageFormat::WebP, (13, 9))]
        {
            let file = encode(&rgb.clone().into(), format);
            assert_eq!(decode_scaled(&file, 1).unwrap().dimensions(), size, "{format:?}");
            assert_eq!(decode_scaled(&file, 3).unwrap(), decode(&file).unwrap(), "{format:?}");
        }
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
        for (across, down) in [(1, 1), (2, 2), (4, 1), (4, 2), (3, 1), (1, 4)] {
            let image = read(&sampled(across, down));
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
        let refused = |bytes: &[u8]| decode(bytes).unwrap_err().to_string();
        let expected = "not a png, jpeg, webp or gif image but something unknown (5 bytes)";
        assert_eq!(refused(b"hello"), expected);
        assert_eq!(refused(b""), "not a png, jpeg, webp or gif image but nothing (0 bytes)");
        assert!(refused(b"II*\0\x08\0\0\0\0\0").contains(" image but tiff (10 bytes)"));
        let pointer = refused(b"version https://git-lfs.github.com/spec/v1\nsize 5\n");
        assert!(
            pointer.contains("but a git-lfs pointer, which stands for a file of 5 bytes; fetch")
        );
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
