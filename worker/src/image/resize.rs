//! Resizing of 8-bit RGB, antialiased, with PIL's kernels.

use ::image::RgbImage;
use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

use super::Error;

/// The kernel of a resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Cubic convolution with a = −0.5 (Catmull–Rom).
    Bicubic,
    /// A triangle.
    Bilinear,
}

/// A rectangle of whole pixels inside an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rect {
    /// Columns left of it.
    pub left: u32,
    /// Rows above it.
    pub top: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

impl Rect {
    /// Returns the whole of `image`.
    pub fn of(image: &RgbImage) -> Self {
        Self { left: 0, top: 0, width: image.width(), height: image.height() }
    }
}

/// Buffers that one thread uses again for image after image.
#[derive(Default)]
pub struct Scratch {
    resizer: Resizer,
    /// The image between the two passes.
    rows: Vec<u8>,
    pixels: Vec<u8>,
}

impl Scratch {
    /// Returns `crop` of `image`, resized to `width` × `height`, as interleaved RGB.
    ///
    /// Pixels outside the crop have no influence, as if it had been cut out first. A crop that
    /// has the size asked for is copied unchanged.
    ///
    /// # Errors
    /// Returns [`Error::Shape`] if a side is zero or the crop leaves the image.
    pub fn resize(
        &mut self,
        image: &RgbImage,
        crop: Rect,
        width: u32,
        height: u32,
        filter: Filter,
    ) -> Result<&[u8], Error> {
        let shape =
            || Error::Shape { width: crop.width, height: crop.height, side: width.min(height) };
        if crop.width == 0 || crop.height == 0 || width == 0 || height == 0 {
            return Err(shape());
        }
        let source =
            TypedImageRef::<U8x3>::from_buffer(image.width(), image.height(), image.as_raw())
                .map_err(|_| shape())?;
        let source =
            TypedCroppedImage::from_ref(&source, crop.left, crop.top, crop.width, crop.height)
                .map_err(|_| shape())?;
        // First along rows, then along columns, as PIL: between the two passes values are cut off
        // at 0 and 255, so the other order gives others at hard edges.
        let mut rows = target(&mut self.rows, width, crop.height).ok_or_else(shape)?;
        let options = ResizeOptions::new()
            .resize_alg(ResizeAlg::Convolution(match filter {
                Filter::Bicubic => FilterType::CatmullRom,
                Filter::Bilinear => FilterType::Bilinear,
            }))
            .use_alpha(false);
        self.resizer.resize_typed(&source, &mut rows, &options).map_err(|_| shape())?;
        let mut pixels = target(&mut self.pixels, width, height).ok_or_else(shape)?;
        self.resizer.resize_typed(&rows, &mut pixels, &options).map_err(|_| shape())?;
        Ok(&self.pixels)
    }
}

/// Returns `buffer` as an image of this size.
fn target(buffer: &mut Vec<u8>, width: u32, height: u32) -> Option<TypedImage<'_, U8x3>> {
    buffer.resize(width as usize * height as usize * 3, 0);
    TypedImage::from_buffer(width, height, buffer).ok()
}

/// Writes the `window` of interleaved RGB rows of `width` pixels into three f32 planes of values
/// 0–255, its left and top at `place`.
///
/// Shapes: pixels [H, width, 3], planes [3, side, side].
pub(super) fn to_planes(
    pixels: &[u8],
    width: usize,
    window: Rect,
    place: (usize, usize),
    side: usize,
    planes: &mut [f32],
) {
    let (red, rest) = planes.split_at_mut(side * side);
    let (green, blue) = rest.split_at_mut(side * side);
    let columns = window.width as usize;
    for y in 0..window.height as usize {
        let start = ((window.top as usize + y) * width + window.left as usize) * 3;
        let row = &pixels[start..start + columns * 3];
        let begin = (place.1 + y) * side + place.0;
        let line = begin..begin + columns;
        let outputs =
            red[line.clone()].iter_mut().zip(&mut green[line.clone()]).zip(&mut blue[line]);
        for (pixel, ((r, g), b)) in row.chunks_exact(3).zip(outputs) {
            *r = f32::from(pixel[0]);
            *g = f32::from(pixel[1]);
            *b = f32::from(pixel[2]);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ::image::Rgb;

    use super::*;

    #[test]
    fn a_crop_of_the_size_asked_for_is_copied_unchanged() {
        let image = RgbImage::from_fn(9, 7, |x, y| Rgb([x as u8 * 20, y as u8 * 30, 7]));
        let mut scratch = Scratch::default();
        let crop = Rect { left: 2, top: 1, width: 4, height: 4 };
        let pixels = scratch.resize(&image, crop, 4, 4, Filter::Bicubic).unwrap().to_vec();
        for y in 0..4 {
            for x in 0..4 {
                let at = (y * 4 + x) as usize * 3;
                assert_eq!(pixels[at..at + 3], image.get_pixel(x + 2, y + 1).0);
            }
        }
    }

    #[test]
    fn pixels_outside_the_crop_have_no_influence() {
        let black_in_white = RgbImage::from_fn(20, 20, |x, y| {
            let inside = (5..15).contains(&x) && (5..15).contains(&y);
            Rgb(if inside { [0; 3] } else { [255; 3] })
        });
        let crop = Rect { left: 5, top: 5, width: 10, height: 10 };
        let mut scratch = Scratch::default();
        assert!(
            scratch
                .resize(&black_in_white, crop, 7, 7, Filter::Bicubic)
                .unwrap()
                .iter()
                .all(|&v| v == 0)
        );
        assert!(
            scratch
                .resize(&black_in_white, crop, 23, 23, Filter::Bicubic)
                .unwrap()
                .iter()
                .all(|&v| v == 0)
        );
    }

    #[test]
    fn halving_is_antialiased_and_keeps_the_mean() {
        let stripes = RgbImage::from_fn(64, 64, |x, _| Rgb([if x % 2 == 0 { 0 } else { 255 }; 3]));
        let mut scratch = Scratch::default();
        let half = scratch.resize(&stripes, Rect::of(&stripes), 32, 32, Filter::Bicubic).unwrap();
        let inner: Vec<u8> = half.chunks_exact(3).skip(2).take(28).map(|pixel| pixel[0]).collect();
        assert!(inner.iter().all(|&v| (100..=155).contains(&v)), "{inner:?}");
    }

    #[test]
    fn an_empty_side_is_an_error() {
        let image = RgbImage::new(0, 5);
        let error =
            Scratch::default().resize(&image, Rect::of(&image), 4, 4, Filter::Bicubic).unwrap_err();
        assert!(matches!(error, Error::Shape { width: 0, .. }), "{error}");
    }
}
