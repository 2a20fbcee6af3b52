//! Colour changes as OpenCLIP makes them of PIL images: torchvision's `ColorJitter` and `Grayscale`.
//!
//! PIL stores 8 bits after every change, so the order of changes shows, and so does what each cuts
//! off: blends lose their fraction, and the hue turns between 8-bit values of HSV. `parity_tests`
//! holds the pixels against PIL's.
//!
//! Shapes: planes [3, n] (red, green, blue), values 0–255; every function leaves whole numbers.

use crate::rng::Stream;

/// One change of colour and its factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Change {
    /// Distance from black is multiplied by it.
    Brightness(f32),
    /// Distance from the image's mean grey is multiplied by it.
    Contrast(f32),
    /// Distance from each pixel's grey is multiplied by it.
    Saturation(f32),
    /// Added to the hue, in turns of the colour circle.
    Hue(f32),
}

/// One drawn jitter: up to four changes, in the order in which they are made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Jitter([Option<Change>; 4]);

impl Jitter {
    /// Draws factors from [max(0, 1 − s), 1 + s] for the first three strengths and [−s, s] for the
    /// hue, and one of the 24 orders, as torchvision's ColorJitter. A change of strength zero is
    /// not made at all.
    pub fn draw(strengths: &[f64; 4], stream: &mut Stream) -> Self {
        let mut factor = |low: f64, high: f64| stream.uniform(low, high) as f32;
        let [brightness, contrast, saturation] = [0, 1, 2].map(|at: usize| {
            let strength = strengths[at];
            factor((1.0 - strength).max(0.0), 1.0 + strength)
        });
        let hue = factor(-strengths[3], strengths[3]);
        let mut changes = [
            Change::Brightness(brightness),
            Change::Contrast(contrast),
            Change::Saturation(saturation),
            Change::Hue(hue),
        ]
        .map(Some);
        for (change, strength) in changes.iter_mut().zip(strengths) {
            *change = change.filter(|_| *strength != 0.0);
        }
        stream.shuffle(&mut changes);
        Self(changes)
    }

    /// Applies the jitter in place; without a change no bit changes.
    pub fn apply(&self, planes: &mut [f32]) {
        let mut first = true;
        for change in self.0.iter().flatten() {
            if std::mem::take(&mut first) {
                make_whole(planes);
            }
            change.apply(planes);
        }
    }

    #[cfg(test)]
    pub(super) fn of(changes: &[Change]) -> Self {
        Self(std::array::from_fn(|at| changes.get(at).copied()))
    }
}

impl Change {
    fn apply(self, planes: &mut [f32]) {
        match self {
            Self::Brightness(factor) => {
                planes.iter_mut().for_each(|value| *value = blended(0.0, *value, factor));
            }
            Self::Contrast(factor) => {
                let mean = mean_grey(planes);
                planes.iter_mut().for_each(|value| *value = blended(mean, *value, factor));
            }
            Self::Saturation(factor) => for_each_pixel(planes, |pixel| {
                let grey = luma(pixel);
                pixel.map(|value| blended(grey, value, factor))
            }),
            Self::Hue(factor) => {
                // Less than a whole step turns nothing, but goes through HSV and back.
                let steps = (f64::from(factor) * 255.0) as i32 as u8;
                for_each_pixel(planes, |pixel| {
                    let [hue, saturation, value] = to_hsv(pixel);
                    from_hsv([hue.wrapping_add(steps), saturation, value])
                });
            }
        }
    }
}

/// Makes every pixel grey.
pub fn grayscale(planes: &mut [f32]) {
    make_whole(planes);
    for_each_pixel(planes, |pixel| [luma(pixel); 3]);
}

/// Rounds values to the 8 bits that PIL has: a no-op unless they come from an affine map.
fn make_whole(planes: &mut [f32]) {
    planes.iter_mut().for_each(|value| *value = cut(*value + 0.5));
}

/// Writes values as the 8 bits that PIL has.
pub(super) fn to_bytes(planes: &[f32], output: &mut [u8]) {
    for (value, byte) in planes.iter().zip(output) {
        *byte = cut(*value + 0.5) as u8;
    }
}

/// PIL's blend, from `from` by `factor` of the way to `to` or beyond: the fraction is cut off.
fn blended(from: f32, to: f32, factor: f32) -> f32 {
    cut(from + factor * (to - from))
}

/// Returns the whole part, within 0–255.
fn cut(value: f32) -> f32 {
    f32::from(value as u8)
}

/// Grey (ITU-R 601) in units of 2⁻¹⁶, rounded, as PIL's `convert("L")`.
fn luma([red, green, blue]: [f32; 3]) -> f32 {
    let sum = 19_595 * red as u32 + 38_470 * green as u32 + 7_471 * blue as u32;
    ((sum + 0x8000) >> 16) as f32
}

/// The mean of the grey values, rounded half up.
fn mean_grey(planes: &[f32]) -> f32 {
    let n = planes.len() / 3;
    let (red, rest) = planes.split_at(n);
    let (green, blue) = rest.split_at(n);
    let pixels = red.iter().zip(green).zip(blue);
    let sum: u64 = pixels.map(|((r, g), b)| luma([*r, *g, *b]) as u64).sum();
    (sum as f64 / n as f64 + 0.5) as u8 as f32
}

/// Hue, saturation and value of 8 bits each, fractions cut off; single precision where PIL has it.
fn to_hsv(pixel @ [red, green, blue]: [f32; 3]) -> [u8; 3] {
    let max = red.max(green).max(blue);
    let chroma = max - red.min(green).min(blue);
    if chroma == 0.0 {
        return [0, 0, max as u8];
    }
    let [r, g, b] = pixel.map(|value| (max - value) / chroma);
    let sixths = if red == max {
        b - g
    } else if green == max {
        (2.0 + f64::from(r) - f64::from(b)) as f32
    } else {
        (4.0 + f64::from(g) - f64::from(r)) as f32
    };
    let turns = f64::from(sixths) / 6.0 + 1.0; // 5/6 to 11/6
    let hue = if turns >= 1.0 { turns - 1.0 } else { turns } as f32;
    let eight_bits = |share: f32| (f64::from(share) * 255.0) as u8;
    [eight_bits(hue), eight_bits(chroma / max), max as u8]
}

/// The way back, rounded. The circle has six sectors of 42.5 steps; in each one colour rises or falls.
fn from_hsv([hue, saturation, value]: [u8; 3]) -> [f32; 3] {
    let full = f64::from(value);
    let sixths = f64::from(hue) * 6.0 / 255.0;
    let sector = sixths as u8; // 6 at the very end, which is 0
    let along = (sixths - f64::from(sector)) as f32;
    let share = (f64::from(saturation) / 255.0) as f32;
    let rounded = |value: f64| value.round() as f32;
    let least = rounded(full * (1.0 - f64::from(share)));
    let falling = rounded(full * (1.0 - f64::from(share * along)));
    let rising = rounded(full * (1.0 - f64::from(share) * (1.0 - f64::from(along))));
    let most = f32::from(value);
    match sector % 6 {
        0 => [most, rising, least],
        1 => [falling, most, least],
        2 => [least, most, rising],
        3 => [least, falling, most],
        4 => [rising, least, most],
        _ => [most, least, falling],
    }
}

fn for_each_pixel(planes: &mut [f32], change: impl Fn([f32; 3]) -> [f32; 3]) {
    let n = planes.len() / 3;
    let (red, rest) = planes.split_at_mut(n);
    let (green, blue) = rest.split_at_mut(n);
    for ((r, g), b) in red.iter_mut().zip(green).zip(blue) {
        [*r, *g, *b] = change([*r, *g, *b]);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::rng::Site;

    fn picture() -> Vec<f32> {
        (0..3 * 50).map(|i| (i * 53 % 256) as f32).collect()
    }

    fn drawn(strengths: &[f64; 4], draw: u64) -> Jitter {
        Jitter::draw(strengths, &mut Stream::new(3, Site::Augment, &[draw]))
    }

    #[test]
    fn strengths_of_zero_change_no_bit_even_between_whole_numbers() {
        let mut planes: Vec<f32> = picture().iter().map(|value| value * 0.99).collect();
        let before = planes.clone();
        let neutral = drawn(&[0.0; 4], 1);
        assert_eq!(neutral, Jitter([None; 4]));
        neutral.apply(&mut planes);
        assert_eq!(planes, before);
    }

    /// 2400 draws over 24 orders: a count is 100 ± 10.
    #[test]
    fn every_order_is_drawn_as_often_as_any_other() {
        let mut counts = BTreeMap::<String, u32>::new();
        for draw in 0..2400 {
            let Jitter(changes) = drawn(&[0.4, 0.4, 0.4, 0.1], draw);
            let names = changes.map(|change| match change {
                Some(Change::Brightness(_)) => 'b',
                Some(Change::Contrast(_)) => 'c',
                Some(Change::Saturation(_)) => 's',
                Some(Change::Hue(_)) => 'h',
                None => '-',
            });
            *counts.entry(names.iter().collect()).or_default() += 1;
        }
        assert_eq!(counts.len(), 24, "{counts:?}");
        assert!(counts.values().all(|count| (60..=140).contains(count)), "{counts:?}");
    }

    #[test]
    fn factors_fill_their_ranges_and_leave_them_never() {
        let strengths = [0.4, 1.5, 0.2, 0.1];
        let ranges = [(0.6, 1.4), (0.0, 2.5), (0.8, 1.2), (-0.1, 0.1)];
        let mut found = [(f32::MAX, f32::MIN); 4];
        for change in (0..1000).flat_map(|draw| drawn(&strengths, draw).0).flatten() {
            let (at, factor) = match change {
                Change::Brightness(factor) => (0, factor),
                Change::Contrast(factor) => (1, factor),
                Change::Saturation(factor) => (2, factor),
                Change::Hue(factor) => (3, factor),
            };
            found[at] = (found[at].0.min(factor), found[at].1.max(factor));
        }
        for ((least, most), (low, high)) in found.into_iter().zip(ranges) {
            let margin = (high - low) * 0.02;
            assert!((low..low + margin).contains(&least), "{least} from {low}");
            assert!((high - margin..=high).contains(&most), "{most} to {high}");
        }
    }

    #[test]
    fn the_order_of_changes_shows() {
        let (bright, turned) = (Change::Brightness(1.4), Change::Hue(0.2));
        let (mut one, mut other) = (picture(), picture());
        Jitter::of(&[bright, turned]).apply(&mut one);
        Jitter::of(&[turned, bright]).apply(&mut other);
        assert_ne!(one, other);
    }

    #[test]
    fn no_contrast_is_the_mean_grey_and_no_saturation_is_grayscale() {
        let mut flat = picture();
        Change::Contrast(0.0).apply(&mut flat);
        assert!(flat.iter().all(|&value| value == mean_grey(&picture())));

        let (mut pale, mut grey) = (picture(), picture());
        Change::Saturation(0.0).apply(&mut pale);
        grayscale(&mut grey);
        assert_eq!(pale, grey);
    }

    #[test]
    fn a_third_of_a_turn_takes_red_to_green_to_blue() {
        let mut planes = vec![200.0, 0.0, 0.0];
        Change::Hue(1.0 / 3.0).apply(&mut planes);
        assert_eq!(planes, [0.0, 200.0, 0.0]);
        Change::Hue(1.0 / 3.0).apply(&mut planes);
        assert_eq!(planes, [0.0, 0.0, 200.0]);
    }

    #[test]
    fn values_between_whole_numbers_are_rounded_before_the_first_change() {
        let mut planes = vec![10.4, 10.5, 254.7];
        Jitter::of(&[Change::Brightness(1.0)]).apply(&mut planes);
        assert_eq!(planes, [10.0, 11.0, 255.0]);
    }
}
