//! JPEGs as PIL reads them: the same files are taken, and give the same pixels.
//!
//! PIL, and so every PyTorch pipeline, decodes with libjpeg-turbo. What decodes here is a port of it
//! that comes with the build; `parity_tests` holds its pixels against PIL's.

use libjpeg_turbo_rs::{
    DecodeLimits, DecodeWarning, Decoder, Image, JpegError, PixelFormat, ScalingFactor,
};
use memchr::memchr;

use super::decode::MAX_PIXELS;
use super::{Error, RgbImage};

/// What decodes JPEGs, for records: its pixels are libjpeg-turbo's.
pub const DECODER: &str = "libjpeg-turbo-rs 0.9.0";

/// Scans that are read of one JPEG. Encoders write about ten; every one costs a walk over the picture.
const MAX_SCANS: usize = 500;

/// Markers, as the standard (ITU-T T.81, table B.1) names them.
const TEM: u8 = 0x01;
const SOF0: u8 = 0xC0;
const SOF15: u8 = 0xCF;
const DHT: u8 = 0xC4;
const JPG: u8 = 0xC8;
const DAC: u8 = 0xCC;
const RST0: u8 = 0xD0;
const SOI: u8 = 0xD8;
const EOI: u8 = 0xD9;
const SOS: u8 = 0xDA;

/// Decodes a JPEG to RGB, smaller where its short side is at least four times `side`.
///
/// # Errors
/// [`Error::Truncated`] if not all of the picture is there, [`Error::TooLarge`] from its header,
/// [`Error::Jpeg`] for what PIL refuses as well.
pub(super) fn decode(bytes: &[u8], side: Option<u32>) -> Result<RgbImage, Error> {
    check_markers(bytes)?;
    let limits = DecodeLimits { max_scans: MAX_SCANS, ..DecodeLimits::default() };
    let mut decoder = Decoder::new_with_limits(bytes, limits).map_err(failed)?;
    let header = decoder.header();
    let (width, height) = (u32::from(header.width), u32::from(header.height));
    if u64::from(width) * u64::from(height) > MAX_PIXELS {
        return Err(Error::TooLarge { width, height, limit: MAX_PIXELS });
    }
    if header.precision != 8 {
        return Err(unsupported(format!("samples of {} bits", header.precision)));
    }
    let format = match header.components.len() {
        1 | 3 => PixelFormat::Rgb,
        4 => PixelFormat::Cmyk,
        n => return Err(unsupported(format!("{n} colour components"))),
    };
    decoder.set_output_format(format);
    decoder.set_block_smoothing(true);
    if let Some(factor) = side.and_then(|side| scale(width.min(height), side)) {
        decoder.set_scale(factor);
    }
    let image = pixels(&mut decoder).map_err(failed)?;
    let (width, height) = (image.width as u32, image.height as u32);
    let values = match format {
        PixelFormat::Cmyk => rgb_of_cmyk(&image.data),
        _ => image.data,
    };
    Ok(RgbImage::from_raw(width, height, values).expect("three bytes were made of every pixel"))
}

/// Returns the smallest size that leaves twice the `side` of a `short` side, as PIL's `draft` chooses
/// it; none where that is the whole.
fn scale(short: u32, side: u32) -> Option<ScalingFactor> {
    let kept =
        |denominator: &u32| u64::from(short) >= 2 * u64::from(side) * u64::from(*denominator);
    let denominator = [8, 4, 2].into_iter().find(kept)?;
    ScalingFactor::try_new(1, denominator).ok()
}

fn unsupported(what: String) -> Error {
    Error::Jpeg { source: JpegError::Unsupported(what) }
}

fn failed(source: JpegError) -> Error {
    match source {
        JpegError::UnexpectedEof => Error::Truncated,
        source => Error::Jpeg { source },
    }
}

/// Decodes the pixels. Where a code means nothing, libjpeg warns and goes on, and PIL takes what
/// comes; a picture whose data end too early is refused.
fn pixels(decoder: &mut Decoder<'_>) -> Result<Image, JpegError> {
    match decoder.decode_image() {
        Err(JpegError::CorruptData(_)) => decoder.set_lenient(true),
        result => return result,
    }
    let image = decoder.decode_image()?;
    for warning in &image.warnings {
        match warning {
            DecodeWarning::TruncatedData { .. } => return Err(JpegError::UnexpectedEof),
            DecodeWarning::UnsupportedRecovered { detail } => {
                return Err(JpegError::Unsupported(detail.clone()));
            }
            _ => {}
        }
    }
    Ok(image)
}

/// Converts CMYK as PIL does, which takes every such JPEG for inverted, as Adobe writes them.
fn rgb_of_cmyk(pixels: &[u8]) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(pixels.len() / 4 * 3);
    for pixel in pixels.chunks_exact(4) {
        let white = u16::from(pixel[3]);
        rgb.extend(pixel[..3].iter().map(|ink| {
            // ink · white / 255, rounded.
            let product = u16::from(255 - ink) * white + 128;
            (white - ((product + (product >> 8)) >> 8)) as u8
        }));
    }
    rgb
}

/// Checks that the image data end as they should: at a marker, and those of several scans at the end
/// of the image.
///
/// Markers are looked for where they can stand. What looks like one within a segment, as the end of
/// the thumbnail that cameras put into Exif data, is none.
fn check_markers(bytes: &[u8]) -> Result<(), Error> {
    let (mut rest, mut components, mut progressive) = (bytes, 0, false);
    while let Some(marker) = next_marker(&mut rest) {
        if marker == EOI {
            return Ok(());
        }
        let Some(body) = segment(&mut rest) else { break };
        match marker {
            DHT | JPG | DAC => {}
            SOF0..=SOF15 => {
                progressive = marker & 3 == 2;
                components = body.get(5).copied().unwrap_or(0);
            }
            SOS if !progressive => match body.first() {
                // All of it in one scan: whatever marker follows, the scan is over.
                Some(n) if *n >= components => {
                    return next_marker(&mut rest).map(drop).ok_or(Error::Truncated);
                }
                Some(n @ 2..) => {
                    let what = format!("{n} of {components} colour components in one scan");
                    return Err(unsupported(what));
                }
                _ => {}
            },
            _ => {}
        }
    }
    Err(Error::Truncated)
}

/// Moves behind the next marker that has a segment or ends the image. Restart markers and stuffed
/// bytes belong to the data of a scan.
fn next_marker(rest: &mut &[u8]) -> Option<u8> {
    loop {
        let start = memchr(0xFF, rest)?;
        let code = start + rest[start..].iter().position(|byte| *byte != 0xFF)?;
        let marker = rest[code];
        *rest = &rest[code + 1..];
        if !matches!(marker, 0 | TEM | RST0..=SOI) {
            return Some(marker);
        }
    }
}

/// Takes the segment that follows a marker, without its length; none where it is cut short.
fn segment<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = usize::from(u16::from_be_bytes(*rest.first_chunk()?));
    let (segment, after) = rest.split_at_checked(length)?;
    *rest = after;
    segment.get(2..)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use libjpeg_turbo_rs::{Subsampling, compress};
    use proptest::prelude::*;
    use safetensors::SafeTensors;

    use super::super::{Preprocess, decode, decode_scaled};
    use super::*;

    /// JPEGs and what PIL makes of them (`tests/parity/jpeg_golden.py`).
    const GOLDEN: &[u8] = include_bytes!("../../../../tests/parity/golden/jpeg.safetensors");

    /// The same JPEGs at part of their size (`tests/parity/jpeg_scaled_golden.py`).
    const SCALED: &str = include_str!("../../../../tests/parity/golden/jpeg-scaled.json");

    fn golden() -> SafeTensors<'static> {
        SafeTensors::deserialize(GOLDEN).unwrap()
    }

    fn file(name: &str) -> &'static [u8] {
        golden().tensor(&format!("{name}.file")).unwrap().data()
    }

    /// What PIL makes of the files, by `kind` of record, and their names.
    fn found(kind: &str) -> Vec<(String, Vec<usize>, &'static [u8])> {
        let mut found = Vec::new();
        for (name, tensor) in golden().tensors() {
            if let Some(name) = name.strip_suffix(kind) {
                found.push((name.to_owned(), tensor.shape().to_vec(), tensor.data()));
            }
        }
        found
    }

    fn read(name: &str) -> RgbImage {
        decode(file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    #[test]
    fn jpegs_of_every_layout_width_and_height_have_pils_pixels() {
        let found = found(".crc");
        for (name, _, expected) in &found {
            let image = read(name);
            let mut crc = flate2::Crc::new();
            crc.update(image.as_raw());
            let pixels = [image.height(), image.width(), crc.sum()].map(u32::to_le_bytes);
            assert_eq!(*expected, pixels.concat(), "{name}");
        }
        assert_eq!(found.len(), 82 + 7 * 40);
    }

    #[test]
    fn jpegs_at_part_of_their_size_have_pils_pixels() {
        type Sizes = Vec<(u32, u32, u32, u32)>;
        let golden: std::collections::BTreeMap<String, Sizes> =
            serde_json::from_str(SCALED).unwrap();
        let mut smaller = 0;
        for (name, sizes) in &golden {
            for (side, width, height, expected) in sizes {
                let image = decode_scaled(file(name), *side).unwrap();
                assert_eq!(image.dimensions(), (*width, *height), "{name} for {side}");
                let mut crc = flate2::Crc::new();
                crc.update(image.as_raw());
                assert_eq!(crc.sum(), *expected, "{name} for {side}");
                smaller += u32::from(image.dimensions() != read(name).dimensions());
            }
        }
        assert!(smaller > 300, "{smaller}");
        assert_eq!(golden.len(), 82 + 7 * 40);
    }

    /// 600 × 450 at 64 pixels: a half of it is decoded, which leaves 225 of the short side.
    #[test]
    fn an_input_from_part_of_a_jpeg_differs_slightly_from_that_of_the_whole() {
        let wave = |at: usize, length: f64| ((at as f64 / length).sin() * 60.0 + 120.0) as u8;
        let pixels: Vec<u8> = (0..600 * 450)
            .flat_map(|at| {
                [wave(at % 600, 9.0), wave(at / 600, 23.0), wave(at % 600 + at / 600, 5.0)]
            })
            .collect();
        let file = compress(&pixels, 600, 450, PixelFormat::Rgb, 90, Subsampling::S420).unwrap();
        let (whole, half) = (decode(&file).unwrap(), decode_scaled(&file, 64).unwrap());
        assert_eq!((half.dimensions(), whole.dimensions()), ((300, 225), (600, 450)));
        let preprocess = Preprocess { mean: [0.0; 3], std: [1.0; 3], ..Preprocess::clip(64) };
        let [whole, half] = [whole, half].map(|image| preprocess.eval(&image).unwrap());
        let differences = whole.iter().zip(&half).map(|(a, b)| (a - b).abs());
        let mean = differences.sum::<f32>() / whole.len() as f32 * 255.0;
        assert!(mean > 0.0 && mean < 1.0, "{mean} of 255");
    }

    #[test]
    fn jpegs_in_four_inks_have_pils_pixels() {
        let found = found(".rgb");
        for (name, shape, expected) in &found {
            let image = read(name);
            assert_eq!(*shape, [image.height() as usize, image.width() as usize, 3], "{name}");
            let pairs = image.as_raw().iter().zip(*expected);
            let far = pairs.map(|(a, b)| a.abs_diff(*b)).max();
            // Where such a picture has its colours at half the size, the port rounds a few up.
            let most = u8::from(name == "ycck-subsampled");
            assert!(far <= Some(most), "{name}: differs by up to {far:?}");
        }
        assert_eq!(found.len(), 4);
    }

    #[test]
    fn jpegs_that_pil_refuses_are_refused() {
        let found = found(".refused");
        for (name, ..) in &found {
            assert!(decode(file(name)).is_err(), "{name} is read");
        }
        assert_eq!(found.len(), 16);
    }

    /// The end marker of a thumbnail in Exif data passed for the picture's: 40 % of grey was trained on.
    #[test]
    fn a_jpeg_cut_short_anywhere_is_refused_whatever_markers_stand_in_it() {
        for name in [
            "odd-baseline-markers-inside-segments",
            "odd-progressive-markers-inside-segments",
            "restarts",
            "scans-apart",
            "pil-cmyk-progressive",
        ] {
            let file = file(name);
            decode(file).unwrap();
            for length in 2..file.len() {
                let error = decode(&file[..length]).expect_err(name);
                assert!(
                    matches!(error, Error::Truncated | Error::UnknownFormat { .. }),
                    "{name} {length}: {error}"
                );
            }
        }
    }

    /// What some downloaders do with a file that broke off.
    #[test]
    fn an_end_marker_put_behind_a_part_of_a_picture_does_not_make_it_whole() {
        let file = file("odd-baseline-markers-inside-segments");
        let data = file.len() - 2 - 100;
        for length in data..file.len() - 4 {
            let patched = [&file[..length], &[0xFF, EOI]].concat();
            assert!(matches!(decode(&patched), Err(Error::Truncated)), "{length}");
        }
    }

    /// The standard has them, though hardly anybody writes them: the reason is what the decoder lacks.
    #[test]
    fn layouts_that_are_not_read_are_refused_for_what_they_are() {
        let mut in_parts = file("layout-444").to_vec();
        let scan = in_parts.windows(2).position(|pair| pair == [0xFF, SOS]).unwrap();
        in_parts[scan + 4] = 2;
        let refused: [(&[u8], _); 2] = [
            (&in_parts, "unsupported feature: 2 of 3 colour components in one scan"),
            (file("odd-baseline-twelve-bits"), "unsupported feature: samples of 12 bits"),
        ];
        for (file, reason) in refused {
            let Err(Error::Jpeg { source }) = decode(file) else { panic!("is read: {reason}") };
            assert_eq!(source.to_string(), reason);
        }
    }

    #[test]
    fn a_header_of_too_many_pixels_is_refused_before_anything_is_decoded() {
        let mut file = file("layout-420").to_vec();
        let frame = file.windows(2).position(|pair| pair == [0xFF, SOF0]).unwrap();
        file[frame + 5..frame + 9].copy_from_slice(&[0xEA, 0x60, 0xEA, 0x60]);
        let error = decode(&file).unwrap_err();
        assert!(matches!(error, Error::TooLarge { width: 60_000, height: 60_000, .. }), "{error}");
    }

    fn names() -> Vec<String> {
        let golden = golden();
        let names = golden.names();
        let names = names.iter().filter_map(|name| name.strip_suffix(".file"));
        names.map(str::to_owned).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn flipped_bytes_never_make_the_decoder_panic(
            name in proptest::sample::select(names()),
            flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..5),
        ) {
            let mut file = file(&name).to_vec();
            for (at, value) in flips {
                let at = at.index(file.len());
                file[at] = value;
            }
            for decoded in [decode(&file), decode_scaled(&file, 1)] {
                prop_assert!(!matches!(decoded, Err(Error::Panic { .. })), "{decoded:?}");
            }
        }
    }
}
