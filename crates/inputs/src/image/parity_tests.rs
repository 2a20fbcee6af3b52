//! Decoding, evaluation's transform and augmentation against PIL and OpenCLIP
//! (`tests/parity/preprocess_golden.py` writes the file).

use ringmaster_manifest::model_config::preprocess::{Interpolation, PreprocessCfg, ResizeMode};
use safetensors::SafeTensors;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::augment::erased_size;
use super::color::{self, Change, Jitter};
use super::resize::Rect;
use super::{Filter, Preprocess, RgbImage, Scratch, decode};

const GOLDEN: &[u8] = include_bytes!("../../../../tests/parity/golden/preprocess.safetensors");
/// Written by `tests/parity/resize_golden.py`, which has the same [`picture`].
const RESIZED: &str = include_str!("../../../../tests/parity/golden/resize.json");
/// Written by `tests/parity/augment_golden.py`, of the same pictures.
const AUGMENTED: &str = include_str!("../../../../tests/parity/golden/augment.json");

/// Largest difference, and the share of values that differ by more than one of 255.
fn difference(got: impl Iterator<Item = u8>, expected: &[u8]) -> (u8, f64) {
    let differences: Vec<u8> = got.zip(expected).map(|(a, b)| a.abs_diff(*b)).collect();
    assert_eq!(differences.len(), expected.len());
    let far = differences.iter().filter(|difference| **difference > 1).count();
    let most = differences.iter().max().copied().unwrap_or(0);
    (most, far as f64 / differences.len() as f64)
}

#[test]
fn images_of_every_kind_are_decoded_as_pil_decodes_them() {
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    let names = golden.names();
    let names = names.iter().filter_map(|name| name.strip_suffix(".file"));
    let mut compared = 0;
    for name in names {
        let file = golden.tensor(&format!("{name}.file")).unwrap();
        let expected = golden.tensor(&format!("{name}.rgb")).unwrap();
        let image = decode(file.data()).unwrap_or_else(|error| panic!("{name}: {error}"));
        let size = [image.height() as usize, image.width() as usize, 3];
        assert_eq!(expected.shape(), size, "{name}");
        let (most, far) = difference(image.as_raw().iter().copied(), expected.data());
        assert_eq!(most, 0, "{name}: {far} differ by more than one");
        compared += 1;
    }
    assert_eq!(compared, 17);
}

#[test]
fn inputs_are_those_of_open_clips_evaluation_transform() {
    let golden = SafeTensors::deserialize(GOLDEN).unwrap();
    let mut compared = 0;
    for (name, expected) in golden.tensors() {
        let parts: Vec<&str> = name.split('.').collect();
        let [picture, mode, filter, size] = parts[..] else { continue };
        let config = PreprocessCfg {
            size: size.parse().unwrap(),
            mean: [0.0; 3],
            std: [1.0; 3],
            resize_mode: match mode {
                "shortest" => ResizeMode::Shortest,
                "longest" => ResizeMode::Longest,
                _ => ResizeMode::Squash,
            },
            interpolation: match filter {
                "bicubic" => Interpolation::Bicubic,
                _ => Interpolation::Bilinear,
            },
            fill_color: 9,
            ..PreprocessCfg::default()
        };
        let file = golden.tensor(&format!("{picture}.file")).unwrap();
        let values = Preprocess::new(&config).eval(&decode(file.data()).unwrap()).unwrap();
        let got = values.iter().map(|value| (value * 255.0).round() as u8);
        let (most, far) = difference(got, expected.data());
        assert!(far <= 1e-3, "{name}: {far} differ by more than 1/255, by up to {most}");
        compared += 1;
    }
    assert_eq!(compared, 21);
}

/// Grain with hard edges: what a rounding fault anywhere would change.
fn picture(width: u32, height: u32) -> RgbImage {
    let value = |x: u32, y: u32, channel: u32| {
        let products = [(x, 0x9E37_79B1), (y, 0x85EB_CA77), (channel, 0xC2B2_AE3D_u32)];
        let mixed = products.iter().fold(0_u32, |sum, (a, b)| sum.wrapping_add(a.wrapping_mul(*b)));
        ((mixed ^ (mixed >> 15)).wrapping_mul(0x2C1B_3C6D) >> 24) as u8
    };
    RgbImage::from_fn(width, height, |x, y| [0, 1, 2].map(|c| value(x, y, c)))
}

/// PIL's resize along one axis, plainly: for each pixel of the `target` the first source pixel and the
/// weights from there on, in units of 2⁻²².
fn weights(source: usize, target: usize, filter: Filter) -> Vec<(usize, Vec<i64>)> {
    let kernel = |x: f64| match filter {
        Filter::Bilinear => (1.0 - x).max(0.0),
        Filter::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
        Filter::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * -0.5,
        Filter::Bicubic => 0.0,
    };
    let scale = source as f64 / target as f64;
    let stretch = scale.max(1.0);
    let support = stretch * if filter == Filter::Bicubic { 2.0 } else { 1.0 };
    let row = |pixel: usize| {
        let centre = (pixel as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(source);
        let weight = |x: usize| kernel(((x as f64 - centre + 0.5) * (1.0 / stretch)).abs());
        let raw: Vec<f64> = (first..end).map(weight).collect();
        let sum: f64 = raw.iter().sum();
        let fixed = |weight: f64| (weight / sum * f64::from(1 << 22)).round() as i64;
        (first, raw.into_iter().map(fixed).collect())
    };
    (0..target).map(row).collect()
}

/// Resizes `image` along its long axis with [`weights`].
fn plainly(image: &RgbImage, (width, height): (u32, u32), filter: Filter) -> RgbImage {
    let across = width != image.width();
    let weights = if across {
        weights(image.width() as usize, width as usize, filter)
    } else {
        weights(image.height() as usize, height as usize, filter)
    };
    RgbImage::from_fn(width, height, |x, y| {
        let (first, row) = &weights[if across { x } else { y } as usize];
        let value = |channel: usize| {
            let pixels = (*first as u32..).map(|at| if across { (at, y) } else { (x, at) });
            let sum: i64 = row
                .iter()
                .zip(pixels)
                .map(|(weight, (x, y))| weight * i64::from(image.pixel(x, y)[channel]))
                .sum();
            ((sum + (1 << 21)) >> 22).clamp(0, 255) as u8
        };
        [0, 1, 2].map(value)
    })
}

/// The plain resize has PIL's bits, at every length, side and filter; ours is within one of 255 of it.
#[test]
fn images_of_every_length_are_resized_as_pil_resizes_them() {
    let golden: std::collections::BTreeMap<String, String> = serde_json::from_str(RESIZED).unwrap();
    let mut scratch = Scratch::default();
    for (name, expected) in &golden {
        let (filter, side) = name.split_once('.').unwrap();
        let filter = if filter == "bicubic" { Filter::Bicubic } else { Filter::Bilinear };
        let side: u32 = side.parse().unwrap();
        let mut digest = Sha256::new();
        for length in 1..=1200 {
            for (size, target) in [((length, 1), (side, 1)), ((1, length), (1, side))] {
                let image = picture(size.0, size.1);
                let whole = Rect::of(&image);
                let plain = plainly(&image, target, filter);
                digest.update(plain.as_raw());
                let ours = scratch.resize(&image, whole, target.0, target.1, filter).unwrap();
                let (most, _) = difference(ours.iter().copied(), plain.as_raw());
                assert!(most <= 1, "{size:?} to {target:?}: differs by up to {most}");
            }
        }
        assert_eq!(&hex::encode(digest.finalize()), expected, "{name}");
    }
    assert!(golden.len() >= 20);
}

/// One entry of [`AUGMENTED`].
#[derive(Deserialize)]
struct Colored {
    size: [u32; 2],
    changes: Vec<ColorStep>,
    crc: u32,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ColorStep {
    Jitter(String, f32),
    Grey(String),
}

fn change(step: &ColorStep) -> Option<Change> {
    let ColorStep::Jitter(name, factor) = step else { return None };
    let change = match name.as_str() {
        "brightness" => Change::Brightness,
        "contrast" => Change::Contrast,
        "saturation" => Change::Saturation,
        "hue" => Change::Hue,
        other => panic!("{other}"),
    };
    Some(change(*factor))
}

/// Returns interleaved values as planes.
fn planes(pixels: &[u8]) -> Vec<f32> {
    let channel = |at: usize| pixels.iter().skip(at).step_by(3).map(|value| f32::from(*value));
    channel(0).chain(channel(1)).chain(channel(2)).collect()
}

/// Adds planes of whole numbers to a checksum of interleaved values.
fn add_pixels(crc: &mut flate2::Crc, planes: &[f32]) {
    let n = planes.len() / 3;
    let pixels: Vec<u8> =
        (0..n).flat_map(|at| [0, n, 2 * n].map(|c| planes[c + at] as u8)).collect();
    assert!(planes.iter().all(|value| value.fract() == 0.0));
    crc.update(&pixels);
}

/// With the same draws every pixel is OpenCLIP's, in all orders, at sizes of 1 to 89 pixels.
#[test]
fn colours_are_jittered_and_greyed_as_open_clip_does_it_of_pil_images() {
    let golden: serde_json::Value = serde_json::from_str(AUGMENTED).unwrap();
    let cases: Vec<Colored> = serde_json::from_value(golden["colors"].clone()).unwrap();
    for Colored { size: [width, height], changes, crc } in &cases {
        let mut values = planes(picture(*width, *height).as_raw());
        let drawn: Vec<Change> = changes.iter().filter_map(change).collect();
        match &changes[..] {
            [ColorStep::Grey(name)] if name == "grey" => color::grayscale(&mut values),
            _ => Jitter::of(&drawn).apply(&mut values),
        }
        let mut got = flate2::Crc::new();
        add_pixels(&mut got, &values);
        assert_eq!(got.sum(), *crc, "{width} x {height}: {drawn:?}");
    }
    assert_eq!(cases.len(), 145);
}

#[test]
fn the_hue_of_every_colour_is_turned_as_pil_turns_it() {
    let golden: serde_json::Value = serde_json::from_str(AUGMENTED).unwrap();
    let hues = golden["hues"].as_object().unwrap();
    for (factor, expected) in hues {
        let jitter = Jitter::of(&[Change::Hue(factor.parse().unwrap())]);
        let mut got = flate2::Crc::new();
        for red in 0..=255 {
            let colours = RgbImage::from_fn(256, 256, |blue, green| [red, green as u8, blue as u8]);
            let mut values = planes(colours.as_raw());
            jitter.apply(&mut values);
            add_pixels(&mut got, &values);
        }
        assert_eq!(u64::from(got.sum()), expected.as_u64().unwrap(), "{factor}");
    }
    assert_eq!(hues.len(), 2);
}

#[test]
fn what_is_erased_has_the_size_that_timm_gives_it() {
    let golden: serde_json::Value = serde_json::from_str(AUGMENTED).unwrap();
    let cases: Vec<(u32, u32, f64, f64, u32, u32)> =
        serde_json::from_value(golden["erased"].clone()).unwrap();
    let mut refused = 0;
    for (side, count, area, shape, columns, rows) in &cases {
        let got = erased_size(*side, *count, [*area, *shape]).unwrap_or_default();
        refused += u32::from(got == (0, 0));
        // Of nothing timm erases nothing either.
        let seen = if got.0 * got.1 == 0 { (0, 0) } else { got };
        assert_eq!(seen, (*columns, *rows), "{count} of {side}: {area} {shape}");
    }
    assert!(cases.len() == 120 && refused < 12, "{refused}");
}
