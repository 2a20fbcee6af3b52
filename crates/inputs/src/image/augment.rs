//! What training sees of an image: random geometry, colour and erasing.
//!
//! Pixels stay 8 bits: the model's side normalises them, and puts noise where they are erased.
//!
//! Every choice comes from the counter-based stream that the caller passes, in one fixed order, so
//! the result is a function of (image, configuration, stream) alone.

use ringmaster_manifest::model_config::preprocess::Interpolation;
use ringmaster_manifest::spec::AugCfg;

use super::affine::Map;
use super::color::{self, Jitter};
use super::preprocess::{Preprocess, plain_values};
use super::resize::{Filter, Rect, Scratch, to_planes};
use super::{Error, RgbImage};
use crate::rng::Stream;

/// Attempts to draw a rectangle that fits before falling back, as torchvision.
const ATTEMPTS: usize = 10;
/// Share of the image that random erasing covers; timm's default.
const ERASE_SCALE: [f64; 2] = [0.02, 1.0 / 3.0];
/// Height over width of the erased rectangle; timm's default.
const ERASE_RATIO: [f64; 2] = [0.3, 1.0 / 0.3];

/// The training transform of one configuration.
#[derive(Debug, Clone)]
pub struct Augment {
    config: AugCfg,
    preprocess: Preprocess,
}

/// A rectangle of an image that is erased.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hole {
    /// Where it is.
    pub rect: Rect,
    noise: Stream,
}

impl Hole {
    /// Returns what stands there after normalisation, as timm's mode `pixel` draws it: a standard normal value for
    /// each. Shape [3, height, width].
    pub fn noise(&self) -> Vec<f32> {
        let (mut stream, values) = (self.noise.clone(), 3 * self.rect.width * self.rect.height);
        (0..values).map(|_| stream.normal() as f32).collect()
    }
}

impl Augment {
    /// Returns the transform for `config` with the size and normalisation of `preprocess`.
    pub fn new(config: AugCfg, preprocess: Preprocess) -> Self {
        Self { config, preprocess }
    }

    /// Writes `image` as a training input, of values 0–255, and says which rectangles of it are erased.
    ///
    /// In this order: random resized crop, or, with `affine`, evaluation's resize and centre crop
    /// followed by one bilinear rotate-zoom-shift on white; colour jitter; grayscale; horizontal
    /// flip; after normalisation, erasing of rectangles, which become standard normal noise.
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
        output: &mut [u8],
    ) -> Result<Vec<Hole>, Error> {
        assert_eq!(output.len(), self.preprocess.values(), "the output must hold [3, S, S]");
        let config = &self.config;
        let side = self.preprocess.image_size as usize;

        self.geometry(image, stream, scratch, output)?;
        let jitter = stream.chance(config.color_jitter_prob);
        let jitter = jitter.then(|| Jitter::draw(&config.color_jitter, stream));
        let grey = stream.chance(config.gray_scale_prob);
        if jitter.is_some() || grey {
            let mut planes: Vec<f32> = output.iter().map(|value| f32::from(*value)).collect();
            jitter.inspect(|jitter| jitter.apply(&mut planes));
            if grey {
                color::grayscale(&mut planes);
            }
            color::to_bytes(&planes, output);
        }
        if stream.chance(config.hflip_prob) {
            output.chunks_exact_mut(side).for_each(<[u8]>::reverse);
        }
        let mut holes = Vec::new();
        if stream.chance(config.re_prob) {
            let count = 1 + stream.below(config.re_count.into()) as u32;
            for _ in 0..count {
                let rect = erased(self.preprocess.image_size, count, stream);
                holes.extend(rect.map(|rect| Hole { rect, noise: stream.fork() }));
            }
        }
        Ok(holes)
    }

    fn geometry(
        &self,
        image: &RgbImage,
        stream: &mut Stream,
        scratch: &mut Scratch,
        planes: &mut [u8],
    ) -> Result<(), Error> {
        let size = self.preprocess.image_size;
        if let Some(affine) = &self.config.affine {
            let map = Map::draw(affine, size, stream);
            self.preprocess.fit(image, scratch, planes)?;
            let source: Vec<f32> = planes.iter().map(|value| f32::from(*value)).collect();
            let mut target = vec![0.0; source.len()];
            map.apply(&source, size as usize, &mut target);
            color::to_bytes(&target, planes);
        } else {
            let crop = random_crop(image, &self.config, stream);
            let filter = self.crop_filter(stream);
            let pixels = scratch.resize(image, crop, size, size, filter)?;
            let whole = Rect { left: 0, top: 0, width: size, height: size };
            let side = size as usize;
            to_planes(pixels, side, whole, (0, 0), side, &plain_values(), planes);
        }
        Ok(())
    }

    /// OpenCLIP's own crop is bicubic whatever evaluation's resize is; timm's has the filter that the
    /// model asks for, and draws it if that is `random`. Nothing but training makes use of that word,
    /// so it counts with and without timm.
    fn crop_filter(&self, stream: &mut Stream) -> Filter {
        match self.preprocess.interpolation {
            Interpolation::Random if stream.chance(0.5) => Filter::Bilinear,
            Interpolation::Bilinear if self.config.use_timm => Filter::Bilinear,
            _ => Filter::Bicubic,
        }
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
        let w = (target * ratio).sqrt().round_ties_even() as u32;
        let h = (target / ratio).sqrt().round_ties_even() as u32;
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
        h = ((f64::from(width) / ratio[0]).round_ties_even() as u32).clamp(1, height);
    } else if own > ratio[1] {
        w = ((f64::from(height) * ratio[1]).round_ties_even() as u32).clamp(1, width);
    }
    Rect { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h }
}

/// Draws one of `count` rectangles of timm's RandomErasing; none if ten attempts did not fit.
fn erased(side: u32, count: u32, stream: &mut Stream) -> Option<Rect> {
    for _ in 0..ATTEMPTS {
        let draws = [stream.unit(), stream.unit()];
        if let Some((width, height)) = erased_size(side, count, draws) {
            let top = stream.below(u64::from(side - height) + 1) as u32;
            let left = stream.below(u64::from(side - width) + 1) as u32;
            return Some(Rect { left, top, width, height });
        }
    }
    None
}

/// Returns the columns and rows of one of `count` rectangles that two draws from [0, 1) give, if they
/// fit with room to spare.
pub(super) fn erased_size(side: u32, count: u32, [area, shape]: [f64; 2]) -> Option<(u32, u32)> {
    let between = |low: f64, high: f64, draw: f64| low + (high - low) * draw;
    let whole = f64::from(side) * f64::from(side);
    let target = between(ERASE_SCALE[0], ERASE_SCALE[1], area) * whole / f64::from(count);
    let ratio = between(ERASE_RATIO[0].ln(), ERASE_RATIO[1].ln(), shape).exp();
    let height = (target * ratio).sqrt().round_ties_even() as u32;
    let width = (target / ratio).sqrt().round_ties_even() as u32;
    (height < side && width < side).then_some((width, height))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::collections::BTreeSet;

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
            re_count: 1,
            use_timm: false,
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
            re_count: 3,
            use_timm: true,
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
        run_as(config, Preprocess::clip(size), image, draw)
    }

    fn run_as(config: AugCfg, preprocess: Preprocess, image: &RgbImage, draw: u64) -> Vec<f32> {
        let mut output = vec![0; preprocess.values()];
        let mut stream = Stream::new(5, Site::Augment, &[draw]);
        let holes = Augment::new(config, preprocess)
            .apply(image, &mut stream, &mut Scratch::default(), &mut output)
            .unwrap();
        let (mut values, side) = (preprocess.normalized(&output), preprocess.image_size as usize);
        for hole in holes {
            let Rect { left, top, width, height } = hole.rect;
            for (number, value) in hole.noise().into_iter().enumerate() {
                let (x, y) = (number % width as usize, number / width as usize);
                let (plane, y) = (y / height as usize, y % height as usize);
                values[(plane * side + top as usize + y) * side + left as usize + x] = value;
            }
        }
        values
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

    /// Where the values of all three planes differ from those of a plain image.
    fn changed(output: &[f32], plain: &[f32], side: usize) -> Vec<(usize, usize)> {
        let n = side * side;
        let differ = |at: &usize| (0..3).all(|c| output[c * n + at] != plain[c * n + at]);
        (0..n).filter(differ).map(|at| (at % side, at / side)).collect()
    }

    #[test]
    fn erasing_puts_noise_into_one_rectangle_of_timms_size_and_shape() {
        let mut erase = nothing();
        erase.re_prob = 1.0;
        let (mut shares, mut ratios, mut noise) = (Vec::new(), Vec::new(), Vec::new());
        for draw in 0..400 {
            let side = 32 + draw as usize % 37;
            let image = picture(side as u32, side as u32);
            let plain = run(nothing(), &image, side as u32, draw);
            let output = run(erase.clone(), &image, side as u32, draw);
            let hole = changed(&output, &plain, side);
            let (left, top) = hole[0];
            let (right, bottom) = hole[hole.len() - 1];
            let (width, height) = (right - left + 1, bottom - top + 1);
            assert_eq!(hole.len(), width * height, "one rectangle, all of it");
            let same = output.iter().zip(&plain).filter(|(a, b)| a == b).count();
            assert_eq!(same, 3 * (side * side - hole.len()), "and nothing else");
            shares.push(hole.len() as f64 / (side * side) as f64);
            ratios.push((height as f64 / width as f64).ln());
            let n = side * side;
            let of_plane = |c: usize| hole.iter().map(move |(x, y)| c * n + y * side + x);
            noise.extend((0..3).flat_map(of_plane).map(|at| f64::from(output[at])));
        }
        let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
        let most = |values: &[f64]| values.iter().copied().fold(f64::MIN, f64::max);
        // (0.02 + 1/3) / 2, give or take what rounding and 400 draws make of it.
        assert!((0.165..0.19).contains(&mean(&shares)), "{}", mean(&shares));
        assert!((0.30..0.36).contains(&most(&shares)), "{}", most(&shares));
        assert!(mean(&ratios).abs() < 0.1 && (1.0..1.35).contains(&most(&ratios)), "{ratios:?}");
        let squares: Vec<f64> = noise.iter().map(|value| value * value).collect();
        assert!(mean(&noise).abs() < 0.01, "{}", mean(&noise));
        assert!((mean(&squares) - 1.0).abs() < 0.02, "{}", mean(&squares));
        let products: Vec<f64> = noise.windows(2).map(|pair| pair[0] * pair[1]).collect();
        assert!(mean(&products).abs() < 0.01, "neighbours have nothing to do with each other");
    }

    #[test]
    fn several_rectangles_share_the_area_of_one() {
        let mut erase = nothing();
        (erase.re_prob, erase.re_count) = (1.0, 4);
        let image = picture(61, 61);
        let plain = run(nothing(), &image, 61, 0);
        let mut parts = BTreeSet::new();
        for draw in 0..200 {
            let output = run(erase.clone(), &image, 61, draw);
            let hole = changed(&output, &plain, 61);
            let share = hole.len() as f64 / (61.0 * 61.0);
            assert!((0.01..0.36).contains(&share), "{share}");
            let columns: BTreeSet<usize> = hole.iter().map(|(x, _)| *x).collect();
            let rows: BTreeSet<usize> = hole.iter().map(|(_, y)| *y).collect();
            parts.insert(columns.len() * rows.len() == hole.len());
        }
        assert_eq!(parts.len(), 2, "some images have one rectangle, some have more");
    }

    /// Says of each of 200 crops whether it is bilinear; all have the same draws otherwise.
    fn filters_of(interpolation: Interpolation, use_timm: bool) -> Vec<bool> {
        let config = AugCfg { scale: [0.5, 0.9], use_timm, ..nothing() };
        let with = |interpolation| Preprocess { interpolation, ..Preprocess::clip(24) };
        let timm = |use_timm| AugCfg { use_timm, ..config.clone() };
        let is_bilinear = |draw: u64| {
            let image = picture(40 + draw as u32 % 31, 35 + draw as u32 % 17);
            let made = run_as(config.clone(), with(interpolation), &image, draw);
            let bilinear = run_as(timm(true), with(Interpolation::Bilinear), &image, draw);
            let bicubic = run_as(timm(false), with(Interpolation::Bicubic), &image, draw);
            assert_ne!(bilinear, bicubic);
            assert!(made == bilinear || made == bicubic);
            made == bilinear
        };
        (0..200).map(is_bilinear).collect()
    }

    #[test]
    fn the_crop_is_bicubic_unless_timm_or_chance_says_otherwise() {
        let share = |interpolation, use_timm| {
            let filters = filters_of(interpolation, use_timm);
            filters.iter().filter(|bilinear| **bilinear).count()
        };
        for use_timm in [false, true] {
            assert_eq!(share(Interpolation::Bicubic, use_timm), 0);
            assert_eq!(share(Interpolation::Bilinear, use_timm), 200 * usize::from(use_timm));
            let drawn = share(Interpolation::Random, use_timm);
            assert!((75..=125).contains(&drawn), "{drawn} of 200 are bilinear");
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
