//! What evaluation sees of an image, and the normalisation that training shares with it.

use ::image::RgbImage;

use super::Error;
use super::decode::MAX_PIXELS;
use super::resize::{Rect, Scratch, to_planes};

/// OpenAI's mean of red, green and blue, in 0–1; OpenCLIP's default for CLIP models.
pub const CLIP_MEAN: [f32; 3] = [0.481_454_66, 0.457_827_5, 0.408_210_73];
/// OpenAI's standard deviation of red, green and blue, in 0–1.
#[expect(clippy::excessive_precision, reason = "as published, to be found by searching")]
pub const CLIP_STD: [f32; 3] = [0.268_629_54, 0.261_302_58, 0.275_777_11];

/// Size and normalisation of a model's input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Preprocess {
    /// Side S of the square input, in pixels.
    pub image_size: u32,
    /// Subtracted from red, green and blue after division by 255.
    pub mean: [f32; 3],
    /// What red, green and blue are divided by afterwards.
    pub std: [f32; 3],
}

impl Preprocess {
    /// Returns CLIP's preprocessing for a square input of `image_size` pixels.
    pub fn clip(image_size: u32) -> Self {
        Self { image_size, mean: CLIP_MEAN, std: CLIP_STD }
    }

    /// Returns the number of values of one image: 3·S·S.
    pub fn values(&self) -> usize {
        3 * self.image_size as usize * self.image_size as usize
    }

    /// Writes `image` as the model's input: the shorter side is resized to S (bicubic,
    /// antialiased; an image that has that size already is left alone), the centre S × S cut out,
    /// and the values normalised. This is OpenCLIP's evaluation transform of mode `shortest`.
    ///
    /// Shapes: `output` [3, S, S].
    ///
    /// # Errors
    /// Returns [`Error::Shape`] if the image has no pixels or is so long that its resized form
    /// would exceed the accepted number of pixels.
    ///
    /// # Panics
    /// Panics if `output` does not hold [`Preprocess::values`] values.
    pub fn eval_into(
        &self,
        image: &RgbImage,
        scratch: &mut Scratch,
        output: &mut [f32],
    ) -> Result<(), Error> {
        self.fit(image, scratch, output)?;
        self.normalize(output);
        Ok(())
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

    /// Writes the resized and centre-cropped image as planes of values 0–255.
    pub(super) fn fit(
        &self,
        image: &RgbImage,
        scratch: &mut Scratch,
        planes: &mut [f32],
    ) -> Result<(), Error> {
        assert_eq!(planes.len(), self.values(), "the output must hold [3, S, S]");
        let side = self.image_size;
        let (width, height) = self.fitted(image)?;
        // torchvision's CenterCrop rounds half to even.
        let offset = |long: u32| (f64::from(long - side) / 2.0).round_ties_even() as usize;
        let pixels = if (width, height) == image.dimensions() {
            image.as_raw()
        } else {
            scratch.resize(image, Rect::of(image), width, height)?
        };
        to_planes(pixels, width as usize, (offset(width), offset(height)), side as usize, planes);
        Ok(())
    }

    /// Returns the size at which the shorter side of `image` is S, as torchvision's Resize
    /// computes it: the longer side is rounded down.
    fn fitted(&self, image: &RgbImage) -> Result<(u32, u32), Error> {
        let side = u64::from(self.image_size);
        let (width, height) = (u64::from(image.width()), u64::from(image.height()));
        let error =
            Error::Shape { width: image.width(), height: image.height(), side: self.image_size };
        let short = width.min(height);
        if short == 0 || side == 0 {
            return Err(error);
        }
        let long = side * width.max(height) / short;
        if long * side > MAX_PIXELS.max(side * side) {
            return Err(error);
        }
        let long = long as u32;
        Ok(if width <= height { (self.image_size, long) } else { (long, self.image_size) })
    }

    /// Turns planes of values 0–255 into (x / 255 − mean) / std, in place.
    pub(super) fn normalize(&self, planes: &mut [f32]) {
        let side = self.image_size as usize;
        for (channel, plane) in planes.chunks_exact_mut(side * side).enumerate() {
            let (mean, std) = (self.mean[channel], self.std[channel]);
            for value in plane {
                *value = (*value / 255.0 - mean) / std;
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ::image::Rgb;

    use super::*;

    #[test]
    fn an_image_of_the_right_size_is_only_normalised() {
        let image = RgbImage::from_fn(64, 64, |x, y| Rgb([x as u8 * 4, y as u8 * 4, 9]));
        let preprocess = Preprocess::clip(64);
        let values = preprocess.eval(&image).unwrap();
        for (x, y, pixel) in image.enumerate_pixels() {
            for channel in 0..3 {
                let at = channel * 64 * 64 + (y * 64 + x) as usize;
                let expected =
                    (f32::from(pixel[channel]) / 255.0 - CLIP_MEAN[channel]) / CLIP_STD[channel];
                assert_eq!(values[at], expected);
            }
        }
    }

    #[test]
    fn the_centre_of_the_longer_side_is_kept() {
        // 10 columns at side 5: offset 2.5 rounds to the even 2.
        let image = RgbImage::from_fn(10, 5, |x, _| Rgb([x as u8; 3]));
        let plain = Preprocess { image_size: 5, mean: [0.0; 3], std: [1.0 / 255.0; 3] };
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

    #[test]
    fn a_hair_thin_image_is_refused_instead_of_filling_the_memory() {
        let error = Preprocess::clip(224).eval(&RgbImage::new(1, 600_000)).unwrap_err();
        assert!(error.to_string().contains("1 x 600000"), "{error}");
    }
}
