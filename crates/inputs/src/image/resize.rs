//! Resizing of 8-bit RGB, antialiased, with PIL's kernels.

use std::ops::Range;

use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ImageView, ResizeAlg, ResizeOptions, Resizer};

use super::{Error, RgbImage};

/// The kernel of a resize.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    /// Cubic convolution with a = −0.5 (Catmull–Rom).
    Bicubic,
    /// A triangle.
    Bilinear,
}

impl Filter {
    fn kernel(self) -> FilterType {
        match self {
            Self::Bicubic => FilterType::CatmullRom,
            Self::Bilinear => FilterType::Bilinear,
        }
    }

    /// Half of the kernel's width, in pixels of the larger of the two images.
    fn support(self) -> f64 {
        match self {
            Self::Bicubic => 2.0,
            Self::Bilinear => 1.0,
        }
    }
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
            view(image.as_raw(), (image.width(), image.height()), crop).ok_or_else(shape)?;
        let window = Rect { left: 0, top: 0, width, height };
        self.two_passes(&source, (width, height), window, filter).ok_or_else(shape)
    }

    /// Returns the `window` of `image` resized to `size`, as interleaved RGB: what cutting it out
    /// afterwards gives, within one of 255, without computing the others.
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
        let whole = Rect::of(image);
        let source =
            view(image.as_raw(), (image.width(), image.height()), whole).ok_or_else(shape)?;
        self.two_passes(&source, size, window, filter).ok_or_else(shape)
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.rows.capacity() + self.pixels.capacity()
    }

    /// Resizes first along rows, then along columns, as PIL: between the two passes values are cut
    /// off at 0 and 255, so the other order gives others at hard edges. Of the source only the rows
    /// that the window needs are read, so memory is bounded by the window, however long the image.
    fn two_passes(
        &mut self,
        source: &View<'_>,
        (width, height): (u32, u32),
        window: Rect,
        filter: Filter,
    ) -> Option<&[u8]> {
        let across = Span::new(source.width(), width, window.left, window.width);
        let down = Span::new(source.height(), height, window.top, window.height);
        let rows = down.pixels(source.height(), filter);
        let (first, count) = (f64::from(rows.start), f64::from(rows.end - rows.start));
        let options = |left: f64, top: f64, width: f64, height: f64| {
            ResizeOptions::new()
                .resize_alg(ResizeAlg::Convolution(filter.kernel()))
                .use_alpha(false)
                .crop(left, top, width, height)
        };

        let mut half = target(&mut self.rows, window.width, rows.end - rows.start)?;
        let along_rows = options(across.start, first, across.length, count);
        self.resizer.resize_typed(source, &mut half, &along_rows).ok()?;

        let half = (window.width, rows.end - rows.start);
        let half = view(&self.rows, half, Rect { left: 0, top: 0, width: half.0, height: half.1 })?;
        let mut pixels = target(&mut self.pixels, window.width, window.height)?;
        let columns = f64::from(window.width);
        let along_columns = options(0.0, down.start - first, columns, down.length);
        self.resizer.resize_typed(&half, &mut pixels, &along_columns).ok()?;
        Some(&self.pixels)
    }
}

/// The part of one axis of the source that becomes the window, in pixels of the source.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: f64,
    length: f64,
    /// Pixels of the source for one of the resized axis.
    scale: f64,
}

impl Span {
    /// Returns where `length` pixels from `start` on lie, of an axis of `source` pixels that is
    /// resized to `target`.
    ///
    /// Each end is a product and then a quotient. The other way round, `target · (source / target)`
    /// ends above `source` at every thirtieth size or so (29 → 224), and the resizer refuses it.
    fn new(source: u32, target: u32, start: u32, length: u32) -> Self {
        let (source, target) = (f64::from(source), f64::from(target));
        let place = |at: u32| (f64::from(at) * source / target).min(source);
        let begin = place(start);
        // `begin + (end - begin)` rounds to no more than `source`: the rounding of the difference is
        // at most half a unit in the last place of `source`, a whole number whose last bit is zero.
        Self { start: begin, length: place(start + length) - begin, scale: source / target }
    }

    /// Returns the pixels of the source, of which there are `count`, that have an influence: those
    /// under the kernel, and one to each side so that rounding leaves none out.
    fn pixels(self, count: u32, filter: Filter) -> Range<u32> {
        let reach = filter.support() * self.scale.max(1.0) + 1.0;
        let first = (self.start - reach).floor().max(0.0);
        let end = (self.start + self.length + reach).ceil().min(f64::from(count));
        first as u32..end as u32
    }
}

/// A part of an image. Whatever is resized has this one type: the resizer compiles sixty kernels for each.
type View<'p> = TypedCroppedImage<'p, TypedImageRef<'p, U8x3>>;

/// Returns the `crop` of interleaved RGB rows of this size.
fn view(pixels: &[u8], (width, height): (u32, u32), crop: Rect) -> Option<View<'_>> {
    let image = TypedImageRef::from_buffer(width, height, pixels).ok()?;
    TypedCroppedImage::new(image, crop.left, crop.top, crop.width, crop.height).ok()
}

/// Returns `buffer` as an image of this size.
fn target(buffer: &mut Vec<u8>, width: u32, height: u32) -> Option<TypedImage<'_, U8x3>> {
    buffer.resize(width as usize * height as usize * 3, 0);
    TypedImage::from_buffer(width, height, buffer).ok()
}

/// What each of the 256 values of a channel becomes.
pub(super) type Table<T> = [[T; 256]; 3];

/// Writes the `window` of interleaved RGB rows of `width` pixels into three planes, each value
/// as `table` has it, its left and top at `place`.
///
/// Shapes: pixels [H, width, 3], planes [3, side, side].
pub(super) fn to_planes<T: Copy>(
    pixels: &[u8],
    width: usize,
    window: Rect,
    place: (usize, usize),
    side: usize,
    table: &Table<T>,
    planes: &mut [T],
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
    use super::*;

    #[test]
    fn a_crop_of_the_size_asked_for_is_copied_unchanged() {
        let image = RgbImage::from_fn(9, 7, |x, y| [x as u8 * 20, y as u8 * 30, 7]);
        let mut scratch = Scratch::default();
        let crop = Rect { left: 2, top: 1, width: 4, height: 4 };
        let pixels = scratch.resize(&image, crop, 4, 4, Filter::Bicubic).unwrap().to_vec();
        for y in 0..4 {
            for x in 0..4 {
                let at = (y * 4 + x) as usize * 3;
                assert_eq!(pixels[at..at + 3], image.pixel(x + 2, y + 1));
            }
        }
    }

    #[test]
    fn pixels_outside_the_crop_have_no_influence() {
        let black_in_white = RgbImage::from_fn(20, 20, |x, y| {
            let inside = (5..15).contains(&x) && (5..15).contains(&y);
            if inside { [0; 3] } else { [255; 3] }
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
        let stripes = RgbImage::from_fn(64, 64, |x, _| [if x % 2 == 0 { 0 } else { 255 }; 3]);
        let mut scratch = Scratch::default();
        let half = scratch.resize(&stripes, Rect::of(&stripes), 32, 32, Filter::Bicubic).unwrap();
        let inner: Vec<u8> = half.chunks_exact(3).skip(2).take(28).map(|pixel| pixel[0]).collect();
        assert!(inner.iter().all(|&v| (100..=155).contains(&v)), "{inner:?}");
    }

    /// Sides of the inputs of all models in `configs/models`.
    fn sides() -> Vec<u32> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs/models");
        let mut sides = std::collections::BTreeSet::new();
        for entry in std::fs::read_dir(folder).unwrap() {
            let text = std::fs::read(entry.unwrap().path()).unwrap();
            let config: serde_json::Value = serde_json::from_slice(&text).unwrap();
            sides.extend(config["vision_cfg"]["image_size"].as_u64());
        }
        assert!(sides.len() >= 10, "{sides:?}");
        sides.into_iter().map(|side| u32::try_from(side).unwrap()).collect()
    }

    /// `window · (source / target)` rounded above the source at 29, 58, 116, … → 224, so that 7 to
    /// 13 % of random crops counted as corrupt pictures, and a job at 224 pixels failed.
    #[test]
    fn no_size_and_no_window_fails_for_rounding() {
        let mut scratch = Scratch::default();
        let mut draw = 1_u64;
        let mut below = move |limit: u32| {
            draw = draw
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((draw >> 33) % u64::from(limit)) as u32
        };
        for side in sides() {
            for length in 1..=1200 {
                let lying = RgbImage::new(length, 2);
                let standing = RgbImage::new(2, length);
                let (start, size) = (below(side), 1 + below(side));
                let window = (start, size.min(side - start));
                for (start, kept) in [(0, side), window] {
                    let row = Rect { left: start, top: 0, width: kept, height: 2 };
                    let pixels = scratch.resize_window(&lying, (side, 2), row, Filter::Bicubic);
                    assert_eq!(pixels.unwrap().len(), kept as usize * 6, "{length} -> {side}");
                    let column = Rect { left: 0, top: start, width: 2, height: kept };
                    let pixels =
                        scratch.resize_window(&standing, (2, side), column, Filter::Bilinear);
                    assert_eq!(pixels.unwrap().len(), kept as usize * 6, "{length} -> {side}");
                }
            }
        }
    }

    #[test]
    fn a_window_has_the_pixels_of_the_whole() {
        let image = RgbImage::from_fn(97, 83, |x, y| {
            [(x * 7 % 256) as u8, (y * 13 % 256) as u8, (x * y * 31 % 251) as u8]
        });
        for (width, height) in [(224, 224), (29, 58), (97, 40), (331, 83), (50, 301)] {
            for filter in [Filter::Bicubic, Filter::Bilinear] {
                let all = Rect { left: 0, top: 0, width, height };
                let mut scratch = Scratch::default();
                let whole = scratch
                    .resize(&image, Rect::of(&image), width, height, filter)
                    .unwrap()
                    .to_vec();
                let same = scratch.resize_window(&image, (width, height), all, filter).unwrap();
                assert_eq!(whole, same);
                let window = Rect { left: 7, top: 11, width: width - 13, height: height - 20 };
                let part = scratch.resize_window(&image, (width, height), window, filter).unwrap();
                for (y, row) in part.chunks_exact(window.width as usize * 3).enumerate() {
                    let start = ((y + 11) * width as usize + 7) * 3;
                    let pairs = row.iter().zip(&whole[start..start + row.len()]);
                    let most = pairs.map(|(a, b)| a.abs_diff(*b)).max();
                    // The resizer chooses the precision of its weights by the largest of the window.
                    assert!(most <= Some(1), "row {y} of {width} x {height}: {most:?}");
                }
            }
        }
    }

    #[test]
    fn an_empty_side_is_an_error() {
        let image = RgbImage::new(0, 5);
        let error =
            Scratch::default().resize(&image, Rect::of(&image), 4, 4, Filter::Bicubic).unwrap_err();
        assert!(matches!(error, Error::Shape { width: 0, .. }), "{error}");
    }
}
