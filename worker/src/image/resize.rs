//! Resizing of 8-bit RGB, antialiased, with PIL's kernels.

use ::image::RgbImage;
use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ImageView, ResizeAlg, ResizeOptions, Resizer};

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
        let window = Rect { left: 0, top: 0, width, height };
        self.two_passes(&source, (width, height), window, filter).ok_or_else(shape)
    }

    /// Returns the `window` of `image` resized to `size`, as interleaved RGB: the same pixels as
    /// cutting it out afterwards, without computing the others.
    ///
    /// # Errors
    /// Returns [`Error::Shape`] if a side is zero or the window leaves the resized image.
    pub(super) fn resize_window(
        &mut self,
        image: &RgbImage,
        size: (u32, u32),
        window: Rect,
        filter: Filter,
    ) -> Result<&[u8], Error> {
        let shape = || Error::Shape {
            width: image.width(),
            height: image.height(),
            side: size.0.min(size.1),
        };
        let inside = window.left + window.width <= size.0 && window.top + window.height <= size.1;
        if window.width == 0
            || window.height == 0
            || image.width().min(image.height()) == 0
            || !inside
        {
            return Err(shape());
        }
        let source =
            TypedImageRef::<U8x3>::from_buffer(image.width(), image.height(), image.as_raw())
                .map_err(|_| shape())?;
        self.two_passes(&source, size, window, filter).ok_or_else(shape)
    }

    /// Resizes first along rows, then along columns, as PIL: between the two passes values are cut
    /// off at 0 and 255, so the other order gives others at hard edges.
    fn two_passes(
        &mut self,
        source: &impl ImageView<Pixel = U8x3>,
        (width, height): (u32, u32),
        window: Rect,
        filter: Filter,
    ) -> Option<&[u8]> {
        let kernel = match filter {
            Filter::Bicubic => FilterType::CatmullRom,
            Filter::Bilinear => FilterType::Bilinear,
        };
        // The window in the coordinates of what is resized, along one axis.
        let options = |left: f64, top: f64, width: f64, height: f64| {
            ResizeOptions::new()
                .resize_alg(ResizeAlg::Convolution(kernel))
                .use_alpha(false)
                .crop(left, top, width, height)
        };
        let (rows, columns) = (source.height(), f64::from(source.width()) / f64::from(width));
        let mut half = target(&mut self.rows, window.width, rows)?;
        let (left, across) = (f64::from(window.left), f64::from(window.width));
        let across = options(left * columns, 0.0, across * columns, f64::from(rows));
        self.resizer.resize_typed(source, &mut half, &across).ok()?;
        let scale = f64::from(rows) / f64::from(height);
        let mut pixels = target(&mut self.pixels, window.width, window.height)?;
        let (top, down) = (f64::from(window.top), f64::from(window.height));
        let down = options(0.0, top * scale, f64::from(window.width), down * scale);
        self.resizer.resize_typed(&half, &mut pixels, &down).ok()?;
        Some(&self.pixels)
    }
}

/// Returns `buffer` as an image of this size.
fn target(buffer: &mut Vec<u8>, width: u32, height: u32) -> Option<TypedImage<'_, U8x3>> {
    buffer.resize(width as usize * height as usize * 3, 0);
    TypedImage::from_buffer(width, height, buffer).ok()
}

/// What each of the 256 values of a channel becomes.
pub(super) type Table = [[f32; 256]; 3];

/// Writes the `window` of interleaved RGB rows of `width` pixels into three f32 planes, each value
/// as `table` has it, its left and top at `place`.
///
/// Shapes: pixels [H, width, 3], planes [3, side, side].
pub(super) fn to_planes(
    pixels: &[u8],
    width: usize,
    window: Rect,
    place: (usize, usize),
    side: usize,
    table: &Table,
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
            *r = table[0][usize::from(pixel[0])];
            *g = table[1][usize::from(pixel[1])];
            *b = table[2][usize::from(pixel[2])];
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
