//! Colour changes with torchvision's definitions (`adjust_brightness`, `adjust_contrast`,
//! `adjust_saturation`, `adjust_hue`, `to_grayscale`), on f32 planes of values 0–255.
//!
//! Every function clamps to 0–255 and leaves the planes bit for bit alone at its neutral factor.
//! Shapes: planes [3, n] (red, green, blue).

use crate::rng::Stream;

/// Share of red, green and blue in grey (ITU-R 601).
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// One drawn jitter, applied in the order of its fields.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Jitter {
    /// Factor of all values; neutral 1.
    pub brightness: f32,
    /// Distance from the image's mean grey is multiplied by it; neutral 1.
    pub contrast: f32,
    /// Distance from each pixel's grey is multiplied by it; neutral 1.
    pub saturation: f32,
    /// Added to the hue, in turns of the colour circle; neutral 0.
    pub hue: f32,
}

impl Jitter {
    /// Draws factors from [max(0, 1 − s), 1 + s] for the first three strengths and [−s, s] for
    /// the hue, as torchvision's ColorJitter.
    pub fn draw(strengths: &[f64; 4], stream: &mut Stream) -> Self {
        let mut factor = |strength: f64| {
            let low = (1.0 - strength).max(0.0);
            stream.uniform(low, 1.0 + strength) as f32
        };
        let (brightness, contrast, saturation) =
            (factor(strengths[0]), factor(strengths[1]), factor(strengths[2]));
        let hue = stream.uniform(-strengths[3], strengths[3]) as f32;
        Self { brightness, contrast, saturation, hue }
    }

    /// Applies the jitter in place. torchvision draws an order of the four for every image; here
    /// it is fixed.
    pub fn apply(&self, planes: &mut [f32]) {
        if self.brightness != 1.0 {
            brightness(planes, self.brightness);
        }
        if self.contrast != 1.0 {
            contrast(planes, self.contrast);
        }
        if self.saturation != 1.0 {
            saturation(planes, self.saturation);
        }
        if self.hue != 0.0 {
            hue(planes, self.hue);
        }
    }
}

fn brightness(planes: &mut [f32], factor: f32) {
    for value in planes {
        *value = clamp(*value * factor);
    }
}

fn contrast(planes: &mut [f32], factor: f32) {
    let mean = mean_grey(planes);
    for value in planes {
        *value = clamp(mean + (*value - mean) * factor);
    }
}

fn saturation(planes: &mut [f32], factor: f32) {
    for_each_pixel(planes, |pixel| {
        let grey = luma(pixel);
        pixel.map(|value| clamp(grey + (value - grey) * factor))
    });
}

/// Makes every pixel grey.
pub fn grayscale(planes: &mut [f32]) {
    for_each_pixel(planes, |pixel| [luma(pixel); 3]);
}

/// Turns the hue by `shift` of a full circle in HSV.
fn hue(planes: &mut [f32], shift: f32) {
    for_each_pixel(planes, |pixel| {
        let max = pixel[0].max(pixel[1]).max(pixel[2]);
        let min = pixel[0].min(pixel[1]).min(pixel[2]);
        let chroma = max - min;
        if chroma == 0.0 {
            return pixel;
        }
        let sixths = turned(hue_in_sixths(pixel, max, chroma) + shift * 6.0);
        // Channel n of HSV to RGB: v − c·clamp(min(k, 4 − k), 0, 1), k = (n + h) mod 6.
        [5.0, 3.0, 1.0].map(|n: f32| {
            let k = turned(n + sixths);
            max - chroma * k.min(4.0 - k).clamp(0.0, 1.0)
        })
    });
}

fn hue_in_sixths([red, green, blue]: [f32; 3], max: f32, chroma: f32) -> f32 {
    if max == red {
        (green - blue) / chroma
    } else if max == green {
        2.0 + (blue - red) / chroma
    } else {
        4.0 + (red - green) / chroma
    }
}

/// Brings an angle in sixths of a circle, at most a few turns off, into [0, 6).
fn turned(sixths: f32) -> f32 {
    sixths - 6.0 * (sixths / 6.0).floor()
}

fn mean_grey(planes: &[f32]) -> f32 {
    let n = planes.len() / 3;
    let sum = |channel: usize| -> f64 {
        planes[channel * n..(channel + 1) * n].iter().map(|&value| f64::from(value)).sum()
    };
    let weighted: f64 = (0..3).map(|channel| f64::from(LUMA[channel]) * sum(channel)).sum();
    (weighted / n as f64) as f32
}

fn luma([red, green, blue]: [f32; 3]) -> f32 {
    LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue
}

fn clamp(value: f32) -> f32 {
    value.clamp(0.0, 255.0)
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
    use super::*;
    use crate::rng::Site;

    fn picture() -> Vec<f32> {
        (0..3 * 50).map(|i| (i * 53 % 256) as f32).collect()
    }

    fn near(a: &[f32], b: &[f32]) {
        for (left, right) in a.iter().zip(b) {
            assert!((left - right).abs() < 1e-3, "{left} {right}");
        }
    }

    #[test]
    fn neutral_factors_change_no_bit() {
        let mut planes = picture();
        let neutral = Jitter::draw(&[0.0; 4], &mut Stream::new(3, Site::Augment, &[1]));
        assert_eq!(neutral, Jitter { brightness: 1.0, contrast: 1.0, saturation: 1.0, hue: 0.0 });
        neutral.apply(&mut planes);
        assert_eq!(planes, picture());
    }

    #[test]
    fn brightness_scales_and_saturates() {
        let mut planes = vec![10.0, 200.0, 30.0];
        brightness(&mut planes, 2.0);
        assert_eq!(planes, [20.0, 255.0, 60.0]);
    }

    #[test]
    fn no_contrast_is_the_mean_grey_and_no_saturation_is_grayscale() {
        let mut flat = picture();
        let mean = mean_grey(&flat);
        contrast(&mut flat, 0.0);
        assert!(flat.iter().all(|&value| value == mean));

        let (mut pale, mut grey) = (picture(), picture());
        saturation(&mut pale, 0.0);
        grayscale(&mut grey);
        near(&pale, &grey);
    }

    #[test]
    fn a_third_of_a_turn_takes_red_to_green_to_blue() {
        let mut planes = vec![200.0, 0.0, 0.0];
        hue(&mut planes, 1.0 / 3.0);
        near(&planes, &[0.0, 200.0, 0.0]);
        hue(&mut planes, 1.0 / 3.0);
        near(&planes, &[0.0, 0.0, 200.0]);
    }

    #[test]
    fn hue_there_and_back_is_the_identity_and_grey_stays_grey() {
        let mut planes = picture();
        hue(&mut planes, 0.37);
        hue(&mut planes, -0.37);
        near(&planes, &picture());
        let mut grey = vec![90.0; 3];
        hue(&mut grey, 0.2);
        assert_eq!(grey, [90.0; 3]);
    }
}
