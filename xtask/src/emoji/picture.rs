//! A vendor's file to an RGB PNG of 64 × 64 pixels on white.

use anyhow::{Context, Result};
use fast_image_resize::images::Image;
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use image::codecs::png::{CompressionType, FilterType as PngFilter, PngEncoder};
use image::{ExtendedColorType, ImageEncoder, ImageFormat};
use resvg::tiny_skia::{Color, Pixmap, Transform};
use resvg::usvg::{Options, Tree};

use super::source::Format;

/// Side of a finished picture: that of the vendors who ship bitmaps.
pub(super) const SIDE: u32 = 64;

/// Side at which vector drawings are rasterised before they are scaled down: the one of the
/// bitmaps that are larger than [`SIDE`], so that all styles go through the same filter.
const RASTER_SIDE: u32 = 256;

/// Opaque RGB pixels, three bytes each, row by row.
struct Rgb {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

/// Draws one file.
pub(super) fn draw(format: Format, file: &[u8]) -> Result<Vec<u8>> {
    let picture = match format {
        Format::Png => decode(file, ImageFormat::Png)?,
        Format::Webp => decode(file, ImageFormat::WebP)?,
        Format::Svg => rasterise(file)?,
    };
    encode(&shrink(square(picture))?)
}

/// Decodes a bitmap of any colour type and composites it on white.
fn decode(file: &[u8], format: ImageFormat) -> Result<Rgb> {
    let rgba = image::load_from_memory_with_format(file, format)?.into_rgba8();
    let (width, height) = rgba.dimensions();
    let over_white = |colour: u8, alpha: u8| {
        let (colour, alpha) = (u32::from(colour), u32::from(alpha));
        // At most 255, rounded to nearest.
        ((colour * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    };
    let pixels = rgba
        .pixels()
        .flat_map(|pixel| {
            let [r, g, b, a] = pixel.0;
            [over_white(r, a), over_white(g, a), over_white(b, a)]
        })
        .collect();
    Ok(Rgb { width, height, pixels })
}

/// Draws an SVG on white, centred, as large as fits.
fn rasterise(file: &[u8]) -> Result<Rgb> {
    let tree = Tree::from_data(file, &Options::default()).context("cannot parse the SVG")?;
    let side = RASTER_SIDE as f32;
    let scale = (side / tree.size().width()).min(side / tree.size().height());
    let left = (side - tree.size().width() * scale) / 2.0;
    let top = (side - tree.size().height() * scale) / 2.0;
    let mut canvas = Pixmap::new(RASTER_SIDE, RASTER_SIDE).context("the canvas has no pixels")?;
    canvas.fill(Color::WHITE);
    let transform = Transform::from_scale(scale, scale).post_translate(left, top);
    resvg::render(&tree, transform, &mut canvas.as_mut());
    // On an opaque canvas premultiplied colours are the colours.
    let pixels = canvas.data().chunks_exact(4).flat_map(|pixel| [pixel[0], pixel[1], pixel[2]]);
    Ok(Rgb { width: RASTER_SIDE, height: RASTER_SIDE, pixels: pixels.collect() })
}

/// Adds white on both sides of the shorter dimension.
fn square(picture: Rgb) -> Rgb {
    let side = picture.width.max(picture.height);
    if picture.width == picture.height {
        return picture;
    }
    let mut pixels = vec![255; (side * side * 3) as usize];
    let row = (picture.width * 3) as usize;
    let (left, top) = ((side - picture.width) / 2, (side - picture.height) / 2);
    for (y, source) in picture.pixels.chunks_exact(row).enumerate() {
        let start = ((top as usize + y) * side as usize + left as usize) * 3;
        pixels[start..start + row].copy_from_slice(source);
    }
    Rgb { width: side, height: side, pixels }
}

/// Scales down to [`SIDE`] with a Lanczos filter; a picture of that size stays as it is.
fn shrink(picture: Rgb) -> Result<Rgb> {
    if picture.width == SIDE {
        return Ok(picture);
    }
    let source =
        Image::from_vec_u8(picture.width, picture.height, picture.pixels, PixelType::U8x3)?;
    let mut target = Image::new(SIDE, SIDE, PixelType::U8x3);
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Lanczos3));
    Resizer::new().resize(&source, &mut target, &options)?;
    Ok(Rgb { width: SIDE, height: SIDE, pixels: target.into_vec() })
}

fn encode(picture: &Rgb) -> Result<Vec<u8>> {
    encode_png(&picture.pixels, picture.width, picture.height)
}

/// Encodes RGB pixels as PNG.
pub(super) fn encode_png(pixels: &[u8], width: u32, height: u32) -> Result<Vec<u8>> {
    let mut png = Vec::new();
    PngEncoder::new_with_quality(&mut png, CompressionType::Default, PngFilter::Adaptive)
        .write_image(pixels, width, height, ExtendedColorType::Rgb8)?;
    Ok(png)
}

/// Decodes what [`draw`] made.
pub(super) fn pixels(png: &[u8]) -> Result<Vec<u8>> {
    Ok(image::load_from_memory_with_format(png, ImageFormat::Png)?.into_rgb8().into_raw())
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
        PngEncoder::new(&mut png).write_image(&grey, 64, 64, ExtendedColorType::La8).unwrap();
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
        let mut png = Vec::new();
        let black = [0; 128 * 64 * 3];
        PngEncoder::new(&mut png).write_image(&black, 128, 64, ExtendedColorType::Rgb8).unwrap();
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
