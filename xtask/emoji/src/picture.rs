//! A vendor's file to an RGB PNG of 64 × 64 pixels on white.

use std::io::Cursor;

use anyhow::{Context, Result, bail};
use image_webp::WebPDecoder;
use resize::Pixel;
use resvg::tiny_skia::{Color, Pixmap, Transform};
use resvg::usvg::{Options, Tree};
use rgb::FromSlice;

use super::source::Format;

/// Side of a finished picture: that of the vendors who ship bitmaps.
pub(super) const SIDE: u32 = 64;

/// Side at which vector drawings are rasterised before they are scaled down: the one of the
/// bitmaps that are larger than [`SIDE`], so that all styles go through the same filter.
const RASTER_SIDE: u32 = 256;

/// Rows of red, green and blue, one byte each.
struct Picture {
    width: usize,
    height: usize,
    pixels: Vec<u8>,
}

/// Draws one file.
pub(super) fn draw(format: Format, file: &[u8]) -> Result<Vec<u8>> {
    let picture = match format {
        Format::Png => decode_png(file)?,
        Format::Webp => decode_webp(file)?,
        Format::Svg => rasterise(file)?,
    };
    encode_png(&shrink(square(picture))?, SIDE, SIDE)
}

/// Decodes a PNG of any colour type, on white.
fn decode_png(file: &[u8]) -> Result<Picture> {
    let mut decoder = png::Decoder::new(Cursor::new(file));
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info()?;
    let bytes = reader.output_buffer_size().context("the picture does not fit into memory")?;
    let mut buffer = vec![0; bytes];
    let info = reader.next_frame(&mut buffer)?;
    let samples = &buffer[..info.buffer_size()];
    let pixels = match info.color_type {
        png::ColorType::Rgb => samples.to_vec(),
        png::ColorType::Rgba => {
            on_white(samples.chunks_exact(4).map(|p| ([p[0], p[1], p[2]], p[3])))
        }
        png::ColorType::Grayscale => samples.iter().flat_map(|grey| [*grey; 3]).collect(),
        png::ColorType::GrayscaleAlpha => {
            on_white(samples.chunks_exact(2).map(|p| ([p[0]; 3], p[1])))
        }
        png::ColorType::Indexed => bail!("the palette was not looked up"),
    };
    Ok(Picture { width: info.width as usize, height: info.height as usize, pixels })
}

/// Decodes a WebP, on white.
fn decode_webp(file: &[u8]) -> Result<Picture> {
    let mut decoder = WebPDecoder::new(Cursor::new(file))?;
    let (width, height) = decoder.dimensions();
    let bytes = decoder.output_buffer_size().context("the picture does not fit into memory")?;
    let mut samples = vec![0; bytes];
    decoder.read_image(&mut samples)?;
    let pixels = if decoder.has_alpha() {
        on_white(samples.chunks_exact(4).map(|p| ([p[0], p[1], p[2]], p[3])))
    } else {
        samples
    };
    Ok(Picture { width: width as usize, height: height as usize, pixels })
}

/// Composites colours with their alpha on white.
fn on_white(pixels: impl Iterator<Item = ([u8; 3], u8)>) -> Vec<u8> {
    pixels
        .flat_map(|(colour, alpha)| {
            let alpha = u32::from(alpha);
            let white = 255 * (255 - alpha) + 127;
            // At most 255, rounded to nearest.
            colour.map(|value| ((u32::from(value) * alpha + white) / 255) as u8)
        })
        .collect()
}

/// Draws an SVG on white, centred, as large as fits.
fn rasterise(file: &[u8]) -> Result<Picture> {
    let tree = Tree::from_data(file, &Options::default()).context("cannot parse the SVG")?;
    let side = RASTER_SIDE as f32;
    let scale = (side / tree.size().width()).min(side / tree.size().height());
    let left = (side - tree.size().width() * scale) / 2.0;
    let top = (side - tree.size().height() * scale) / 2.0;
    let mut canvas = Pixmap::new(RASTER_SIDE, RASTER_SIDE).context("the canvas has no pixels")?;
    // On an opaque canvas premultiplied colours, which these are, equal straight ones.
    canvas.fill(Color::WHITE);
    let transform = Transform::from_scale(scale, scale).post_translate(left, top);
    resvg::render(&tree, transform, &mut canvas.as_mut());
    let pixels = canvas.data().chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]);
    let side = RASTER_SIDE as usize;
    Ok(Picture { width: side, height: side, pixels: pixels.collect() })
}

/// Adds white on both sides of the shorter dimension.
fn square(picture: Picture) -> Picture {
    let Picture { width, height, .. } = picture;
    if width == height {
        return picture;
    }
    let side = width.max(height);
    let mut pixels = vec![255; side * side * 3];
    let (left, top) = ((side - width) / 2, (side - height) / 2);
    for (y, source) in picture.pixels.chunks_exact(width * 3).enumerate() {
        let start = ((top + y) * side + left) * 3;
        pixels[start..start + source.len()].copy_from_slice(source);
    }
    Picture { width: side, height: side, pixels }
}

/// Scales a square picture down to [`SIDE`] with a Lanczos filter; one of that size stays as it is.
fn shrink(picture: Picture) -> Result<Vec<u8>> {
    if picture.width == SIDE as usize {
        return Ok(picture.pixels);
    }
    let side = SIDE as usize;
    let mut small = vec![0; side * side * 3];
    let filter = resize::Type::Lanczos3;
    let mut resizer = resize::new(picture.width, picture.height, side, side, Pixel::RGB8, filter)?;
    resizer.resize(picture.pixels.as_rgb(), small.as_rgb_mut())?;
    Ok(small)
}

/// Encodes RGB pixels as PNG.
pub(super) fn encode_png(pixels: &[u8], width: u32, height: u32) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_color(png::ColorType::Rgb);
    encoder.set_compression(png::Compression::Balanced);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(bytes)
}

/// Decodes what [`draw`] made.
pub(super) fn pixels(png: &[u8]) -> Result<Vec<u8>> {
    Ok(decode_png(png)?.pixels)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const SVG: &str = r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">
        <rect x="0" y="0" width="16" height="32" fill="red"/></svg>"#;

    fn pixel(pixels: &[u8], x: usize, y: usize) -> [u8; 3] {
        let start = (y * SIDE as usize + x) * 3;
        pixels[start..start + 3].try_into().unwrap()
    }

    #[test]
    fn a_vector_drawing_fills_the_picture_and_lies_on_white() {
        let pixels = pixels(&draw(Format::Svg, SVG.as_bytes()).unwrap()).unwrap();
        assert_eq!(pixel(&pixels, 4, 60), [255, 0, 0]);
        assert_eq!(pixel(&pixels, 60, 4), [255, 255, 255]);
    }

    #[test]
    fn grey_pixels_with_alpha_are_composited_on_white() {
        let grey: Vec<u8> = std::iter::repeat_n([0, 128], 64 * 64).flatten().collect();
        let mut png = Vec::new();
        let mut encoder = png::Encoder::new(&mut png, 64, 64);
        encoder.set_color(png::ColorType::GrayscaleAlpha);
        let mut writer = encoder.write_header().unwrap();
        writer.write_image_data(&grey).unwrap();
        writer.finish().unwrap();
        let pixels = pixels(&draw(Format::Png, &png).unwrap()).unwrap();
        assert_eq!(pixel(&pixels, 10, 10), [127, 127, 127]);
    }

    #[test]
    fn the_same_file_gives_the_same_bytes() {
        let draw = || draw(Format::Svg, SVG.as_bytes()).unwrap();
        assert_eq!(draw(), draw());
    }

    #[test]
    fn a_drawing_that_is_no_square_is_centred_on_white() {
        let png = encode_png(&[0; 128 * 64 * 3], 128, 64).unwrap();
        let pixels = pixels(&draw(Format::Png, &png).unwrap()).unwrap();
        let column: Vec<_> = [4, 32, 60].map(|y| pixel(&pixels, 32, y)[0]).into();
        assert_eq!(column, [255, 0, 255]);
    }

    #[test]
    fn a_broken_file_is_an_error() {
        assert!(draw(Format::Svg, b"<svg").is_err());
        assert!(draw(Format::Png, b"not a png").is_err());
    }
}
