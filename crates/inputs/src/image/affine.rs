//! Rotation, zoom and shift of a square image in one bilinear pass.

use ringmaster_manifest::spec;

use crate::rng::Stream;

/// Colour of what lies outside the image.
const WHITE: f32 = 255.0;

/// One drawn map: rotate about the centre, zoom, then shift.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Map {
    /// Radians; positive turns x towards y.
    pub angle: f64,
    /// Above 1 enlarges.
    pub zoom: f64,
    /// Shift to the right and down, in pixels.
    pub shift: [f64; 2],
}

impl Map {
    /// Draws a map: the angle and both shifts uniformly either way, the zoom uniformly in its
    /// logarithm, so that enlarging and shrinking by the same factor are equally likely.
    pub fn draw(config: &spec::Affine, side: u32, stream: &mut Stream) -> Self {
        let angle = stream.uniform(-config.degrees, config.degrees).to_radians();
        let zoom = stream.uniform(config.zoom[0].ln(), config.zoom[1].ln()).exp();
        let reach = config.translate * f64::from(side);
        let shift = [stream.uniform(-reach, reach), stream.uniform(-reach, reach)];
        Self { angle, zoom, shift }
    }

    /// Writes `source` under this map to `target`; what lies outside the source is white.
    ///
    /// Bilinear between pixel centres. At the border the source blends into white over one pixel,
    /// as if it lay on an endless white sheet.
    ///
    /// Shapes: source and target [3, side, side], values 0–255.
    pub fn apply(&self, source: &[f32], side: usize, target: &mut [f32]) {
        assert_eq!(source.len(), 3 * side * side);
        assert_eq!(target.len(), source.len());
        let centre = (side as f64 - 1.0) / 2.0;
        let (sin, cos) = self.angle.sin_cos();
        // A target pixel p shows the source at q = R(-angle) (p - centre - shift) / zoom + centre.
        let (dx, dy) = (cos / self.zoom, -sin / self.zoom); // change of q per column of p
        let plane = side * side;
        for row in 0..side {
            let px = -centre - self.shift[0];
            let py = row as f64 - centre - self.shift[1];
            let start_x = (cos * px + sin * py) / self.zoom + centre;
            let start_y = (-sin * px + cos * py) / self.zoom + centre;
            for column in 0..side {
                let x = start_x + dx * column as f64;
                let y = start_y + dy * column as f64;
                let taps = Taps::at(x, y, side);
                for channel in 0..3 {
                    target[channel * plane + row * side + column] =
                        taps.sample(&source[channel * plane..(channel + 1) * plane], side);
                }
            }
        }
    }
}

/// The four neighbours of a point and how far it lies between them.
struct Taps {
    x: i32,
    y: i32,
    fx: f32,
    fy: f32,
    inside: bool,
    outside: bool,
}

impl Taps {
    fn at(x: f64, y: f64, side: usize) -> Self {
        let (floor_x, floor_y) = (x.floor(), y.floor());
        let (left, top, last) = (floor_x as i32, floor_y as i32, side as i32 - 1);
        Self {
            x: left,
            y: top,
            fx: (x - floor_x) as f32,
            fy: (y - floor_y) as f32,
            inside: left >= 0 && top >= 0 && left < last && top < last,
            outside: left < -1 || top < -1 || left > last || top > last,
        }
    }

    fn sample(&self, plane: &[f32], side: usize) -> f32 {
        if self.outside {
            return WHITE;
        }
        let [a, b, c, d] = if self.inside {
            let at = self.y as usize * side + self.x as usize;
            [plane[at], plane[at + 1], plane[at + side], plane[at + side + 1]]
        } else {
            let value = |x: i32, y: i32| {
                let inside = x >= 0 && y >= 0 && x < side as i32 && y < side as i32;
                if inside { plane[y as usize * side + x as usize] } else { WHITE }
            };
            [
                value(self.x, self.y),
                value(self.x + 1, self.y),
                value(self.x, self.y + 1),
                value(self.x + 1, self.y + 1),
            ]
        };
        let above = a + (b - a) * self.fx;
        let below = c + (d - c) * self.fx;
        above + (below - above) * self.fy
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Site;

    fn picture(side: usize) -> Vec<f32> {
        (0..3 * side * side).map(|i| (i * 37 % 251) as f32).collect()
    }

    fn apply(map: Map, source: &[f32], side: usize) -> Vec<f32> {
        let mut target = vec![0.0; source.len()];
        map.apply(source, side, &mut target);
        target
    }

    const IDENTITY: Map = Map { angle: 0.0, zoom: 1.0, shift: [0.0, 0.0] };

    #[test]
    fn the_identity_changes_no_bit_at_odd_and_even_sizes() {
        for side in [1, 2, 5, 64] {
            assert_eq!(apply(IDENTITY, &picture(side), side), picture(side));
        }
    }

    #[test]
    fn a_whole_shift_moves_pixels_and_uncovers_white() {
        let side = 6;
        let source = picture(side);
        let moved = apply(Map { shift: [2.0, -1.0], ..IDENTITY }, &source, side);
        for y in 0..side {
            for x in 0..side {
                let expected =
                    if x >= 2 && y + 1 < side { source[(y + 1) * side + x - 2] } else { 255.0 };
                assert_eq!(moved[y * side + x], expected, "({x}, {y})");
            }
        }
    }

    #[test]
    fn a_quarter_turn_moves_every_pixel_to_its_place() {
        let side = 8;
        let source = picture(side);
        let turned = apply(Map { angle: std::f64::consts::FRAC_PI_2, ..IDENTITY }, &source, side);
        for y in 0..side {
            for x in 0..side {
                // x turns towards y: (x, y) lands on (side-1-y, x).
                let there = turned[x * side + side - 1 - y];
                assert!((there - source[y * side + x]).abs() < 1e-2);
            }
        }
    }

    #[test]
    fn shrinking_leaves_a_white_frame() {
        let side = 16;
        let black = vec![0.0; 3 * side * side];
        let small = apply(Map { zoom: 0.5, ..IDENTITY }, &black, side);
        assert!(small[..side * 3].iter().all(|&v| v == 255.0));
        assert!(small[side * 8 + 6..side * 8 + 10].iter().all(|&v| v == 0.0));
    }

    #[test]
    fn drawn_maps_stay_in_their_ranges() {
        let config = spec::Affine { degrees: 10.0, zoom: [0.8, 1.25], translate: 0.1 };
        for draw in 0..200 {
            let map = Map::draw(&config, 64, &mut Stream::new(1, Site::Augment, &[draw]));
            assert!(map.angle.to_degrees().abs() <= 10.0 + 1e-9);
            assert!((0.8 - 1e-9..=1.25 + 1e-9).contains(&map.zoom));
            assert!(map.shift.iter().all(|shift| shift.abs() <= 6.4));
        }
    }
}
