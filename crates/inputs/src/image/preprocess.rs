//! What evaluation sees of an image, and the normalisation that training shares with it.

use ringmaster_manifest::model_config::PreprocessCfg;
use ringmaster_manifest::model_config::preprocess::{Interpolation, ResizeMode};

use super::resize::{Filter, Rect, Scratch, Table, to_planes};
use super::{Error, RgbImage};

/// Size, shape and normalisation of a model's input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preprocess {
    /// Side S of the square input, in pixels.
    pub image_size: u32,
    /// Subtracted from red, green and blue after division by 255.
    pub mean: [f32; 3],
    /// What red, green and blue are divided by afterwards.
    pub std: [f32; 3],
    /// Filter of the resize; `random` is bicubic in evaluation.
    pub interpolation: Interpolation,
    /// How an image of another shape becomes square.
    pub resize_mode: ResizeMode,
    /// What [`ResizeMode::Longest`] fills the rest with, in 0 to 255.
    pub fill_color: u8,
}

impl Preprocess {
    /// Returns what a configuration in OpenCLIP's format asks for.
    pub fn new(config: &PreprocessCfg) -> Self {
        Self {
            image_size: config.size,
            mean: config.mean.map(|value| value as f32),
            std: config.std.map(|value| value as f32),
            interpolation: config.interpolation,
            resize_mode: config.resize_mode,
            fill_color: config.fill_color,
        }
    }

    /// Returns CLIP's preprocessing for a square input of `image_size` pixels.
    pub fn clip(image_size: u32) -> Self {
        Self::new(&PreprocessCfg { size: image_size, ..PreprocessCfg::default() })
    }

    /// Returns the number of values of one image: 3·S·S.
    pub fn values(&self) -> usize {
        3 * self.image_size as usize * self.image_size as usize
    }

    /// Writes `image` as the model's input: OpenCLIP's evaluation transform. The image is resized
    /// (antialiased; one that has the size already is left alone) as the mode says, and the values
    /// are normalised:
    /// * `shortest`: the shorter side to S, then the centre S × S;
    /// * `longest`: the longer side to S, then centred on the fill colour;
    /// * `squash`: both sides to S.
    ///
    /// Shapes: `output` [3, S, S].
    ///
    /// # Errors
    /// Returns [`Error::Shape`] if the image has no pixels, or is so long that its resized form
    /// would have a side of none (`longest`) or of more than 2³² − 1 (`shortest`).
    ///
    /// # Panics
    /// Panics if `output` does not hold [`Preprocess::values`] values.
    pub fn eval_into(
        &self,
        image: &RgbImage,
        scratch: &mut Scratch,
        output: &mut [f32],
    ) -> Result<(), Error> {
        self.fit_as(image, scratch, &self.table(), output)
    }

    /// As [`Preprocess::eval_into`], into a new vector.
    ///
    /// # Errors
    /// As [`Preprocess::eval_into`].
    pub fn eval(&self, image: &RgbImage) -> Result<Vec<f32>, Error> {
        let mut output = vec![0.0; self.values()];
        self.eval_into(image, &mut Scratch::default(), &mut output)?;
        Ok(output)
    }

    /// Writes the resized image as planes of values 0–255.
    pub(super) fn fit(
        &self,
        image: &RgbImage,
        scratch: &mut Scratch,
        planes: &mut [u8],
    ) -> Result<(), Error> {
        self.fit_as(image, scratch, &plain_values(), planes)
    }

    /// Writes the resized image as planes of what `table` makes of its values.
    fn fit_as<T: Copy>(
        &self,
        image: &RgbImage,
        scratch: &mut Scratch,
        table: &Table<T>,
        planes: &mut [T],
    ) -> Result<(), Error> {
        assert_eq!(planes.len(), self.values(), "the output must hold [3, S, S]");
        let side = self.image_size as usize;
        let (width, height) = self.fitted(image)?;
        let (window, place) = self.window(width, height);
        if (window.width, window.height) != (self.image_size, self.image_size) {
            for (plane, table) in planes.chunks_exact_mut(side * side).zip(table) {
                plane.fill(table[usize::from(self.fill_color)]);
            }
        }
        if (width, height) == image.dimensions() {
            to_planes(image.as_raw(), width as usize, window, place, side, table, planes);
            return Ok(());
        }
        let filter = match self.interpolation {
            Interpolation::Bilinear => Filter::Bilinear,
            Interpolation::Bicubic | Interpolation::Random => Filter::Bicubic,
        };
        let pixels = scratch.resize_window(image, (width, height), window, filter)?;
        let whole = Rect { left: 0, top: 0, ..window };
        to_planes(pixels, window.width as usize, whole, place, side, table, planes);
        Ok(())
    }

    /// Returns what normalising makes of each value: (x / 255 − mean) / std.
    fn table(&self) -> Table<f32> {
        std::array::from_fn(|channel| {
            let (mean, std) = (self.mean[channel], self.std[channel]);
            std::array::from_fn(|value| (value as f32 / 255.0 - mean) / std)
        })
    }

    /// Returns the part of the resized image that is kept, and its left and top in the input.
    fn window(&self, width: u32, height: u32) -> (Rect, (usize, usize)) {
        let side = self.image_size;
        // torchvision's centre crop rounds half to even; its padding gives the odd pixel to the end.
        let cut = |long: u32| (f64::from(long.saturating_sub(side)) / 2.0).round_ties_even() as u32;
        let pad = |short: u32| (side.saturating_sub(short) / 2) as usize;
        let (width_kept, height_kept) = (width.min(side), height.min(side));
        let window =
            Rect { left: cut(width), top: cut(height), width: width_kept, height: height_kept };
        (window, (pad(width), pad(height)))
    }

    /// Returns the size an image is resized to.
    fn fitted(&self, image: &RgbImage) -> Result<(u32, u32), Error> {
        let side = u64::from(self.image_size);
        let (width, height) = (u64::from(image.width()), u64::from(image.height()));
        let error =
            Error::Shape { width: image.width(), height: image.height(), side: self.image_size };
        let short = width.min(height);
        if short == 0 || side == 0 {
            return Err(error);
        }
        match self.resize_mode {
            ResizeMode::Squash => Ok((self.image_size, self.image_size)),
            ResizeMode::Longest => {
                // Python's round, half to even, of each side over the larger ratio.
                let ratio = width.max(height) as f64 / side as f64;
                let scaled = |length: u64| (length as f64 / ratio).round_ties_even() as u32;
                match (scaled(width), scaled(height)) {
                    (0, _) | (_, 0) => Err(error),
                    size => Ok(size),
                }
            }
            ResizeMode::Shortest => {
                // As torchvision's Resize computes it: the longer side is rounded down.
                let long = side * width.max(height) / short;
                let long = u32::try_from(long).map_err(|_| error)?;
                let wide = width > height;
                Ok(if wide { (long, self.image_size) } else { (self.image_size, long) })
            }
        }
    }

    /// Returns planes of values 0–255 as (x / 255 − mean) / std: what a model's side makes of a training input.
    pub fn normalized(&self, planes: &[u8]) -> Vec<f32> {
        let (side, table) = (self.image_size as usize, self.table());
        let planes = planes.chunks_exact(side * side).zip(table.iter().cycle());
        planes
            .flat_map(|(plane, table)| plane.iter().map(|value| table[usize::from(*value)]))
            .collect()
    }
}

/// Returns the table that leaves values as they are.
pub(super) fn plain_values() -> Table<u8> {
    std::array::from_fn(|_| std::array::from_fn(|value| value as u8))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Values as they are, 0 to 255.
    fn plain(image_size: u32, resize_mode: ResizeMode) -> Preprocess {
        let (mean, std) = ([0.0; 3], [1.0 / 255.0; 3]);
        Preprocess { mean, std, resize_mode, ..Preprocess::clip(image_size) }
    }

    #[test]
    fn longest_centres_the_image_on_the_fill_colour() {
        let image = RgbImage::from_fn(6, 3, |_, _| [200; 3]);
        let filled = Preprocess { fill_color: 7, ..plain(6, ResizeMode::Longest) };
        let values = filled.eval(&image).unwrap();
        let column: Vec<i32> = values[..36].chunks(6).map(|row| row[2].round() as i32).collect();
        // Three rows over: one above, two below.
        assert_eq!(column, [7, 200, 200, 200, 7, 7]);
    }

    #[test]
    fn squash_keeps_everything_and_no_shape() {
        let image = RgbImage::from_fn(8, 2, |x, _| [if x < 4 { 0 } else { 255 }; 3]);
        let values = plain(2, ResizeMode::Squash).eval(&image).unwrap();
        let row: Vec<i32> = values[..2].iter().map(|value| value.round() as i32).collect();
        assert!(row[0] < 40 && row[1] > 215, "{row:?}");
    }

    #[test]
    fn an_image_of_the_right_size_is_only_normalised() {
        let image = RgbImage::from_fn(64, 64, |x, y| [x as u8 * 4, y as u8 * 4, 9]);
        let preprocess = Preprocess::clip(64);
        let Preprocess { mean, std, .. } = preprocess;
        let values = preprocess.eval(&image).unwrap();
        for (x, y) in (0..64).flat_map(|y| (0..64).map(move |x| (x, y))) {
            let pixel = image.pixel(x, y);
            for channel in 0..3 {
                let at = channel * 64 * 64 + (y * 64 + x) as usize;
                let expected = (f32::from(pixel[channel]) / 255.0 - mean[channel]) / std[channel];
                assert_eq!(values[at], expected);
            }
        }
    }

    #[test]
    fn the_centre_of_the_longer_side_is_kept() {
        // 10 columns at side 5: offset 2.5 rounds to the even 2.
        let image = RgbImage::from_fn(10, 5, |x, _| [x as u8; 3]);
        let plain = plain(5, ResizeMode::Shortest);
        let values = plain.eval(&image).unwrap();
        let first: Vec<i32> = values[..5].iter().map(|v| v.round() as i32).collect();
        assert_eq!(first, [2, 3, 4, 5, 6]);
    }

    #[test]
    fn sizes_are_torchvisions() {
        let size = |w, h| Preprocess::clip(224).fitted(&RgbImage::new(w, h)).unwrap();
        assert_eq!(size(500, 375), (298, 224));
        assert_eq!(size(375, 500), (224, 298));
        assert_eq!(size(64, 64), (224, 224));
    }

    /// OpenCLIP resizes the whole of it and then cuts; only what is kept is computed here.
    #[test]
    fn a_hair_thin_image_is_resized_in_little_memory() {
        let image = RgbImage::from_fn(1, 600_000, |_, y| [(y / 2400) as u8; 3]);
        let mut scratch = Scratch::default();
        let mut values = vec![0.0; 3 * 224 * 224];
        let plain = plain(224, ResizeMode::Shortest);
        plain.eval_into(&image, &mut scratch, &mut values).unwrap();
        // Row 299,999 of 600,000, in the middle, and its neighbours.
        assert!(values.iter().all(|value| (value - 124.5).abs() < 0.6), "{:?}", &values[..9]);
        assert!(scratch.bytes() < 1 << 20, "{} bytes", scratch.bytes());
    }

    #[test]
    fn an_image_without_a_pixel_left_is_refused() {
        let error = plain(224, ResizeMode::Longest).eval(&RgbImage::new(1, 1200)).unwrap_err();
        assert!(error.to_string().contains("1 x 1200"), "{error}");
        let error =
            plain(448, ResizeMode::Shortest).eval(&RgbImage::new(1, 10_000_000)).unwrap_err();
        assert!(error.to_string().contains("1 x 10000000"), "{error}");
    }
}
