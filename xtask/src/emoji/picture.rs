//! A vendor's file to an RGB PNG of 64 × 64 pixels on white.

use anyhow::{Context, Result};
use image::codecs::png::{CompressionType, FilterType as PngFilter, PngEncoder};
use image::imageops::FilterType;
use image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageFormat, RgbaImage};
use resvg::tiny_skia::{Color, Pixmap, Transform};
use resvg::usvg::{Options, Tree};

use super::source::Format;

/// Side of a finished picture: that of the vendors who ship bitmaps.
pub(super) const SIDE: u32 = 64;

/// Side at which vector drawings are rasterised before they are scaled down: the one of the
/// bitmaps that are larger than [`SIDE`], so that all styles go through the same filter.
const RASTER_SIDE: u32 = 256;

/// Draws one file.
///
/// Work per pixel at full size is left to functions that their libraries compile, not to generic
/// ones that would be compiled here: this crate is compiled without optimisation.
pub(super) fn draw(format: Format, file: &[u8]) -> Result<Vec<u8>> {
    let picture = match format {
        Format::Png => decode(file, ImageFormat::Png)?,
        Format::Webp => decode(file, ImageFormat::WebP)?,
        Format::Svg => rasterise(file)?,
    };
    encode_png(shrink(square(picture)).as_bytes(), SIDE, SIDE)
}

/// Decodes a bitmap of any colour type and composites it on white.
fn decode(file: &[u8], format: ImageFormat) -> Result<RgbaImage> {
    let mut picture = image::load_from_memory_with_format(file, format)?.into_rgba8();
    for pixel in picture.chunks_exact_mut(4) {
        let alpha = u32::from(pixel[3]);
        if alpha < 255 {
            let white = 255 * (255 - alpha) + 127;
            // At most 255, rounded to nearest.
            for colour in &mut *pixel {
                *colour = ((u32::from(*colour) * alpha + white) / 255) as u8;
            }
            pixel[3] = 255;
        }
    }
    Ok(picture)
}

/// Draws an SVG on white, centred, as large as fits.
fn rasterise(file: &[u8]) -> Result<RgbaImage> {
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
    RgbaImage::from_raw(RASTER_SIDE, RASTER_SIDE, canvas.take())
        .context("the canvas has another number of pixels")
}

/// Adds white on both sides of the shorter dimension.
fn square(picture: RgbaImage) -> RgbaImage {
    let (width, height) = picture.dimensions();
    if width == height {
        return picture;
    }
    let side = width.max(height);
    let mut padded = vec![255; side as usize * side as usize * 4];
    let (left, top) = (((side - width) / 2) as usize, ((side - height) / 2) as usize);
    for (y, source) in picture.chunks_exact(width as usize * 4).enumerate() {
        let start = ((top + y) * side as usize + left) * 4;
        padded[start..start + source.len()].copy_from_slice(source);
    }
    RgbaImage::from_raw(side, side, padded).expect("a square of four bytes a pixel")
}

/// Scales an opaque picture down to [`SIDE`] with a Lanczos filter; one of that size stays as it
/// is. The result is RGB.
fn shrink(picture: RgbaImage) -> DynamicImage {
    let picture = DynamicImage::ImageRgba8(picture);
    let small = if picture.width() == SIDE {
        picture
    } else {
        picture.resize_exact(SIDE, SIDE, FilterType::Lanczos3)
    };
    DynamicImage::ImageRgb8(small.into_rgb8())
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
