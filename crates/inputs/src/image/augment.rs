//! What training sees of an image: random geometry, colour and erasing, then normalisation.
//!
//! Every choice comes from the counter-based stream that the caller passes, in one fixed order, so
//! the result is a function of (image, configuration, stream) alone.

use ringmaster_manifest::spec::AugCfg;

use super::affine::Map;
use super::color::{self, Jitter};
use super::preprocess::{Preprocess, plain_values};
use super::resize::{Filter, Rect, Scratch, to_planes};
use super::{Error, RgbImage};
use crate::rng::Stream;

/// Attempts to draw a rectangle that fits before falling back, as torchvision.
const ATTEMPTS: usize = 10;
/// Share of the image that random erasing covers; torchvision's default.
const ERASE_SCALE: [f64; 2] = [0.02, 0.33];
/// Height over width of the erased rectangle; torchvision's default.
const ERASE_RATIO: [f64; 2] = [0.3, 3.3];

/// The training transform of one configuration.
#[derive(Debug, Clone)]
pub struct Augment {
    config: AugCfg,
    preprocess: Preprocess,
}

impl Augment {
    /// Returns the transform for `config` with the size and normalisation of `preprocess`.
    pub fn new(config: AugCfg, preprocess: Preprocess) -> Self {
        Self { config, preprocess }
    }

    /// Writes `image` as a training input.
    ///
    /// In this order: random resized crop (bicubic), or, with `affine`, evaluation's resize and
    /// centre crop followed by one bilinear rotate-zoom-shift on white; colour jitter; grayscale;
    /// horizontal flip; normalisation; erasing of a rectangle to the mean (0 after normalisation).
    ///
    /// Shapes: `output` [3, S, S].
    ///
    /// # Errors
    /// Returns [`Error::Shape`] for images that cannot be resized.
    ///
    /// # Panics
    /// Panics if `output` does not hold 3·S·S values.
    pub fn apply(
        &self,
        image: &RgbImage,
        stream: &mut Stream,
        scratch: &mut Scratch,
        output: &mut [f32],
    ) -> Result<(), Error> {
        assert_eq!(output.len(), self.preprocess.values(), "the output must hold [3, S, S]");
        let config = &self.config;
        let side = self.preprocess.image_size as usize;

        self.geometry(image, stream, scratch, output)?;
        if stream.chance(config.color_jitter_prob) {
            Jitter::draw(&config.color_jitter, stream).apply(output);
        }
        if stream.chance(config.gray_scale_prob) {
            color::grayscale(output);
        }
        if stream.chance(config.hflip_prob) {
            output.chunks_exact_mut(side).for_each(<[f32]>::reverse);
        }
        self.preprocess.normalize(output);
        if stream.chance(config.re_prob)
            && let Some(hole) = erased(self.preprocess.image_size, stream)
        {
            fill(output, side, hole, 0.0);
        }
        Ok(())
    }

    fn geometry(
        &self,
        image: &RgbImage,
        stream: &mut Stream,
        scratch: &mut Scratch,
        planes: &mut [f32],
    ) -> Result<(), Error> {
        let size = self.preprocess.image_size;
        if let Some(affine) = &self.config.affine {
            let map = Map::draw(affine, size, stream);
            self.preprocess.fit(image, scratch, planes)?;
            let source = planes.to_vec();
            map.apply(&source, size as usize, planes);
        } else {
            let crop = random_crop(image, &self.config, stream);
            // OpenCLIP's random crop is bicubic whatever evaluation's resize is.
            let pixels = scratch.resize(image, crop, size, size, Filter::Bicubic)?;
            let whole = Rect { left: 0, top: 0, width: size, height: size };
            let side = size as usize;
            to_planes(pixels, side, whole, (0, 0), side, &plain_values(), planes);
        }
        Ok(())
    }
}

/// Draws the rectangle of torchvision's RandomResizedCrop: an area and, in its logarithm, an
/// aspect ratio; after ten misfits the largest centred rectangle whose ratio is in range.
fn random_crop(image: &RgbImage, config: &AugCfg, stream: &mut Stream) -> Rect {
    let (width, height) = image.dimensions();
    let area = f64::from(width) * f64::from(height);
    for _ in 0..ATTEMPTS {
        let target = area * stream.uniform(config.scale[0], config.scale[1]);
        let ratio = stream.uniform(config.ratio[0].ln(), config.ratio[1].ln()).exp();
        let w = (target * ratio).sqrt().round() as u32;
        let h = (target / ratio).sqrt().round() as u32;
        if w > 0 && h > 0 && w <= width && h <= height {
            let top = stream.below(u64::from(height - h) + 1) as u32;
            let left = stream.below(u64::from(width - w) + 1) as u32;
            return Rect { left, top, width: w, height: h };
        }
    }
    central_crop(width, height, &config.ratio)
}

fn central_crop(width: u32, height: u32, ratio: &[f64; 2]) -> Rect {
    let own = f64::from(width) / f64::from(height);
    let (mut w, mut h) = (width, height);
    if own < ratio[0] {
        h = ((f64::from(width) / ratio[0]).round() as u32).clamp(1, height);
    } else if own > ratio[1] {
        w = ((f64::from(height) * ratio[1]).round() as u32).clamp(1, width);
    }
    Rect { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h }
}

/// Draws the rectangle of torchvision's RandomErasing; none if ten attempts did not fit.
fn erased(side: u32, stream: &mut Stream) -> Option<Rect> {
    let area = f64::from(side) * f64::from(side);
    for _ in 0..ATTEMPTS {
        let target = area * stream.uniform(ERASE_SCALE[0], ERASE_SCALE[1]);
        let ratio = stream.uniform(ERASE_RATIO[0].ln(), ERASE_RATIO[1].ln()).exp();
        let height = (target * ratio).sqrt().round() as u32;
        let width = (target / ratio).sqrt().round() as u32;
        if height < side && width < side {
            let top = stream.below(u64::from(side - height) + 1) as u32;
            let left = stream.below(u64::from(side - width) + 1) as u32;
            return Some(Rect { left, top, width, height });
        }
    }
    None
}

fn fill(planes: &mut [f32], side: usize, hole: Rect, value: f32) {
    let columns = hole.left as usize..(hole.left + hole.width) as usize;
    for plane in planes.chunks_exact_mut(side * side) {
        for row in hole.top as usize..(hole.top + hole.height) as usize {
            plane[row * side..(row + 1) * side][columns.clone()].fill(value);
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ringmaster_manifest::spec;

    use super::*;
    use crate::rng::Site;

    fn nothing() -> AugCfg {
        AugCfg {
            scale: [1.0, 1.0],
            ratio: [1.0, 1.0],
            color_jitter: [0.0; 4],
            color_jitter_prob: 0.0,
            gray_scale_prob: 0.0,
            hflip_prob: 0.0,
            affine: None,
            re_prob: 0.0,
        }
    }

    fn everything() -> AugCfg {
        AugCfg {
            scale: [0.3, 1.0],
            ratio: [0.75, 4.0 / 3.0],
            color_jitter: [0.4, 0.4, 0.4, 0.1],
            color_jitter_prob: 0.8,
            gray_scale_prob: 0.2,
            hflip_prob: 0.5,
            affine: None,
            re_prob: 0.5,
        }
    }

    fn affine(mut config: AugCfg, strength: f64) -> AugCfg {
        let zoom = [1.0 / (1.0 + strength), 1.0 + strength];
        config.affine = Some(spec::Affine { degrees: 20.0 * strength, zoom, translate: strength });
        config
    }

    fn picture(width: u32, height: u32) -> RgbImage {
        RgbImage::from_fn(width, height, |x, y| {
            [(x * 7 % 256) as u8, (y * 5 % 256) as u8, ((x + y) * 3 % 256) as u8]
        })
    }

    fn run(config: AugCfg, image: &RgbImage, size: u32, draw: u64) -> Vec<f32> {
        let preprocess = Preprocess::clip(size);
        let mut output = vec![f32::NAN; preprocess.values()];
        let mut stream = Stream::new(5, Site::Augment, &[draw]);
        Augment::new(config, preprocess)
            .apply(image, &mut stream, &mut Scratch::default(), &mut output)
            .unwrap();
        output
    }

    #[test]
    fn zero_strengths_give_what_evaluation_sees() {
        let image = picture(64, 64);
        let eval = Preprocess::clip(64).eval(&image).unwrap();
        assert_eq!(run(nothing(), &image, 64, 0), eval);
        assert_eq!(run(affine(nothing(), 0.0), &image, 64, 0), eval);
        let mut certain = affine(nothing(), 0.0);
        certain.color_jitter_prob = 1.0;
        assert_eq!(run(certain, &image, 64, 0), eval, "a jitter of strength zero changes nothing");
    }

    #[test]
    fn the_same_stream_gives_the_same_bits_and_another_stream_others() {
        for config in [everything(), affine(everything(), 0.2)] {
            for (width, height) in [(64, 64), (97, 41), (20, 90)] {
                let image = picture(width, height);
                let first = run(config.clone(), &image, 48, 1);
                assert_eq!(first, run(config.clone(), &image, 48, 1));
                assert_ne!(first, run(config.clone(), &image, 48, 2));
                assert!(first.iter().all(|value| value.is_finite()));
            }
        }
    }

    #[test]
    fn a_certain_flip_mirrors_every_row() {
        let image = picture(8, 8);
        let mut flip = nothing();
        flip.hflip_prob = 1.0;
        let plain = run(nothing(), &image, 8, 0);
        let mirrored = run(flip, &image, 8, 0);
        for (a, b) in plain.chunks(8).zip(mirrored.chunks(8)) {
            assert!(a.iter().eq(b.iter().rev()));
        }
    }

    #[test]
    fn erasing_fills_one_rectangle_with_the_mean() {
        let mut erase = nothing();
        erase.re_prob = 1.0;
        let image = RgbImage::from_fn(64, 64, |_, _| [255; 3]);
        for draw in 0..50 {
            let output = run(erase.clone(), &image, 64, draw);
            let holes = output[..64 * 64].iter().filter(|&&value| value == 0.0).count();
            assert!((0.01..=0.35).contains(&(holes as f64 / 4096.0)), "{holes}");
        }
    }

    #[test]
    fn crops_keep_to_scale_and_ratio_and_fall_back_to_the_centre() {
        let config = everything();
        let image = picture(80, 60);
        for draw in 0..300 {
            let crop = random_crop(&image, &config, &mut Stream::new(2, Site::Augment, &[draw]));
            assert!(crop.left + crop.width <= 80 && crop.top + crop.height <= 60);
            let share = f64::from(crop.width * crop.height) / 4800.0;
            assert!((0.27..=1.0).contains(&share), "{crop:?}");
        }
        let long = picture(400, 10);
        let mut full = nothing();
        full.ratio = [0.75, 4.0 / 3.0];
        let crop = random_crop(&long, &full, &mut Stream::new(2, Site::Augment, &[0]));
        assert_eq!(crop, Rect { left: 193, top: 0, width: 13, height: 10 });
    }
}
