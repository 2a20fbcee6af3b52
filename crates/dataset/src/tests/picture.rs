//! Hashes and sizes of pictures.

use proptest::prelude::*;
use ringmaster_inputs::image::{self as inputs, decode};

use super::*;
use crate::picture as ours;

fn likeness(bytes: &[u8]) -> Option<ours::Likeness> {
    ours::Likeness::of(&decode(bytes).unwrap())
}

/// Returns bits of the hash and levels of colour in which two pictures differ.
fn difference(one: &[u8], other: &[u8]) -> (u32, u8) {
    let (one, other) = (likeness(one).unwrap(), likeness(other).unwrap());
    let colours = one.colours.iter().zip(&other.colours).map(|(a, b)| a.abs_diff(*b));
    ((one.hash ^ other.hash).count_ones(), colours.max().unwrap())
}

#[test]
fn pictures_are_alike_at_other_sizes_and_qualities_and_others_are_not() {
    for seed in 0..12 {
        let original = png(&picture(seed, 160, 120));
        let decoded = decode(&original).unwrap();
        let jpeg = ours::jpeg(&decoded, 80).unwrap();
        let small = ours::png(&ours::resized(&decoded, (80, 60)).unwrap()).unwrap();
        for same in [jpeg, small] {
            let (bits, levels) = difference(&original, &same);
            assert!(bits <= 3 && levels <= 12, "seed {seed}: {bits} bits, {levels} levels");
        }
        let (bits, levels) = difference(&original, &png(&picture(seed + 100, 160, 120)));
        assert!(bits > 3 && levels > 12, "seed {seed}: {bits} bits, {levels} levels");
    }
}

#[test]
fn a_picture_without_structure_is_like_no_other() {
    for level in [0, 128, 255] {
        assert_eq!(likeness(&png(&RgbImage::from_pixel(40, 30, Rgb([level; 3])))), None);
    }
    assert_eq!(likeness(&png(&RgbImage::from_pixel(1, 1, Rgb([7; 3])))), None);
}

proptest! {
    #[test]
    fn shrunk_sides_keep_their_ratio_within_half_a_pixel(
        width in 1_u32..70_000,
        height in 1_u32..70_000,
        most in 1_u32..5_000,
    ) {
        match ours::shrunk_size((width, height), most) {
            None => prop_assert!(width.max(height) <= most),
            Some((w, h)) => {
                prop_assert_eq!(w.max(h), most);
                prop_assert!(w <= width && h <= height && w.min(h) >= 1);
                let scale = f64::from(most) / f64::from(width.max(height));
                let short = (f64::from(width.min(height)) * scale).max(1.0);
                prop_assert!((f64::from(w.min(h)) - short).abs() <= 0.5 + 1e-6);
            }
        }
    }

    #[test]
    fn a_thumbnail_of_any_shape_fits(width in 1_u32..400, height in 1_u32..400, most in 1_u32..80) {
        let image = inputs::RgbImage::from_fn(width, height, |x, y| [x as u8, y as u8, 9]);
        let small = ours::thumbnail(&image, most).unwrap();
        let (long, own) = (small.width().max(small.height()), width.max(height));
        // Shrunk to the side, or enlarged as often as it fits.
        prop_assert_eq!(long, if own > most { most } else { most / own * own });
    }
}
