//! Line charts as inline SVG: axes, readable ticks, the raw values faint and a smoothed line over
//! them, marks where a recovery happened. Colours come from the page's style sheet.

use std::fmt::Write as _;

const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 50.0;
const RIGHT: f64 = 18.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 38.0;
/// Points drawn at most; more are merged, keeping the extremes.
const MAX_POINTS: usize = 800;
/// Largest over smallest value from which a logarithmic axis reads better.
const LOG_SPREAD: f64 = 40.0;

/// One curve over training steps.
#[derive(Debug, Clone)]
pub struct Chart<'a> {
    /// What it shows; also its accessible name.
    pub title: &'a str,
    /// (step, value), by step.
    pub points: &'a [(f64, f64)],
    /// Steps at which a recovery happened.
    pub marks: &'a [f64],
    /// Draw a smoothed line over the raw values.
    pub smooth: bool,
    /// Use a logarithmic axis where values spread widely.
    pub may_be_log: bool,
    /// Let the axis start at zero.
    pub from_zero: bool,
}

impl Chart<'_> {
    /// Returns the chart as an `<svg>` element, or a remark when there is nothing to draw.
    pub fn to_svg(&self) -> String {
        if self.points.is_empty() {
            return "<p class=\"empty\">No values were logged.</p>".to_owned();
        }
        let x = Axis::linear(self.points.iter().map(|point| point.0), false, 6);
        let y = self.value_axis();
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{} over steps\">",
            self.title
        );
        self.draw_grid(&mut svg, &x, &y);
        for &step in self.marks {
            let at = place_x(&x, step);
            let bottom = HEIGHT - BOTTOM;
            let _ = write!(
                svg,
                "<line class=\"mark\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{bottom}\"/>\
                 <text class=\"mark\" x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">↻</text>",
                TOP - 3.0
            );
        }
        let raw = thinned(self.points);
        if self.smooth && self.points.len() > 8 {
            polyline(&mut svg, "raw", &raw, &x, &y);
            polyline(&mut svg, "line", &thinned(&smoothed(self.points)), &x, &y);
        } else {
            polyline(&mut svg, "line", &raw, &x, &y);
        }
        svg.push_str("</svg>");
        svg
    }

    fn value_axis(&self) -> Axis {
        let values = || self.points.iter().map(|point| point.1);
        let smallest = values().fold(f64::INFINITY, f64::min);
        let largest = values().fold(f64::NEG_INFINITY, f64::max);
        if self.may_be_log && smallest > 0.0 && largest / smallest > LOG_SPREAD {
            return Axis::log(smallest, largest);
        }
        Axis::linear(values(), self.from_zero, 5)
    }

    fn draw_grid(&self, svg: &mut String, x: &Axis, y: &Axis) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for &tick in &y.ticks {
            let at = place_y(y, tick);
            let _ = write!(
                svg,
                "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 8.0,
                at + 4.0,
                y.label(tick)
            );
        }
        for &tick in &x.ticks {
            let at = place_x(x, tick);
            let _ = write!(
                svg,
                "<line class=\"tick\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{bottom}\" y2=\"{:.1}\"/>\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                bottom + 5.0,
                bottom + 19.0,
                x.label(tick)
            );
        }
        let _ = write!(
            svg,
            "<line class=\"axis\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{bottom}\" y2=\"{bottom}\"/>\
             <text class=\"unit\" x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\">step</text>",
            HEIGHT - 6.0
        );
    }
}

/// A range of values with round ticks.
#[derive(Debug, Clone, PartialEq)]
struct Axis {
    low: f64,
    high: f64,
    log: bool,
    ticks: Vec<f64>,
    /// Distance of linear ticks.
    step: f64,
}

impl Axis {
    fn linear(values: impl Iterator<Item = f64>, from_zero: bool, wanted: usize) -> Self {
        let (mut low, mut high) = values
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        if from_zero {
            (low, high) = (low.min(0.0), high.max(0.0));
        }
        if high - low < f64::EPSILON * high.abs().max(1e-30) {
            let margin = if high == 0.0 { 1.0 } else { high.abs() * 0.1 };
            (low, high) = (low - margin, high + margin);
        }
        let step = round_step((high - low) / wanted as f64);
        let first = (low / step).ceil() as i64;
        let last = (high / step).floor() as i64;
        let ticks = (first..=last).map(|count| count as f64 * step).collect();
        Self { low, high, log: false, ticks, step }
    }

    /// Ticks at 1, 2 and 5 of every decade, or only at 1 where there are many decades.
    fn log(smallest: f64, largest: f64) -> Self {
        let (low, high) = (smallest / 1.1, largest * 1.1);
        let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
        let factors: &[f64] = if (high / low).log10() < 3.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let ticks = decades
            .flat_map(|decade| factors.iter().map(move |factor| factor * 10_f64.powi(decade)))
            .filter(|tick| (low..=high).contains(tick))
            .collect();
        Self { low, high, log: true, ticks, step: 0.0 }
    }

    /// Returns where a value lies, 0 at the low and 1 at the high end.
    fn share(&self, value: f64) -> f64 {
        if self.log {
            (value.ln() - self.low.ln()) / (self.high.ln() - self.low.ln())
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }

    /// Returns a tick's text with as many digits as tell it from its neighbours.
    fn label(&self, tick: f64) -> String {
        if tick == 0.0 {
            return "0".to_owned();
        }
        let size = tick.abs().max(if self.log { 0.0 } else { self.high.abs() * 0.1 });
        if size < 1e-2 {
            let text = format!("{tick:.2e}");
            let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
            let mantissa = mantissa.trim_end_matches('0').trim_end_matches('.');
            return format!("{mantissa}e{}", exponent.replace('-', "−"));
        }
        if size >= 1e6 {
            return format!("{}M", trimmed(tick / 1e6, 2));
        }
        if size >= 1e4 {
            return format!("{}k", trimmed(tick / 1e3, 2));
        }
        if self.log {
            trimmed(tick, 3)
        } else {
            format!("{tick:.*}", digits_after_point(self.step))
        }
    }
}

/// Returns 1, 2 or 5 times a power of ten, at least `rough`.
fn round_step(rough: f64) -> f64 {
    let power = 10_f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0].into_iter().find(|factor| factor * power >= rough * 0.999);
    factor.unwrap_or(10.0) * power
}

fn digits_after_point(step: f64) -> usize {
    (-(step * 1.001).log10().floor()).clamp(0.0, 8.0) as usize
}

fn trimmed(value: f64, digits: usize) -> String {
    let text = format!("{value:.digits$}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

fn place_x(axis: &Axis, value: f64) -> f64 {
    LEFT + axis.share(value) * (WIDTH - LEFT - RIGHT)
}

fn place_y(axis: &Axis, value: f64) -> f64 {
    HEIGHT - BOTTOM - axis.share(value) * (HEIGHT - BOTTOM - TOP)
}

fn polyline(svg: &mut String, class: &str, points: &[(f64, f64)], x: &Axis, y: &Axis) {
    if let [(step, value)] = points {
        let (cx, cy) = (place_x(x, *step), place_y(y, *value));
        let _ = write!(svg, "<circle class=\"{class}\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3\"/>");
        return;
    }
    let _ = write!(svg, "<polyline class=\"{class}\" points=\"");
    for &(step, value) in points {
        let _ = write!(svg, "{:.1},{:.1} ", place_x(x, step), place_y(y, value));
    }
    svg.push_str("\"/>");
}

/// Returns at most about `MAX_POINTS` points; of each merged run its extremes stay, in order.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    if points.len() <= MAX_POINTS {
        return points.to_vec();
    }
    let run = points.len().div_ceil(MAX_POINTS / 2);
    let mut kept = Vec::with_capacity(MAX_POINTS);
    for chunk in points.chunks(run) {
        let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let (Some(low), Some(high)) =
            (chunk.iter().min_by(by_value), chunk.iter().max_by(by_value))
        else {
            continue;
        };
        let (first, second) = if low.0 <= high.0 { (low, high) } else { (high, low) };
        kept.push(*first);
        if first != second {
            kept.push(*second);
        }
    }
    kept
}

/// Returns the mean over a window of about a 40th of the run, centred so that it does not lag
/// behind a steep start; towards both ends the window shrinks.
fn smoothed(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let half = (points.len() / 80).max(2);
    let mut sums = Vec::with_capacity(points.len() + 1); // sums[i] = Σ of the first i values
    sums.push(0.0);
    for &(_, value) in points {
        sums.push(sums[sums.len() - 1] + value);
    }
    let last = points.len().saturating_sub(1);
    let mean = |(place, &(step, _)): (usize, &(f64, f64))| {
        let reach = half.min(place).min(last - place);
        let (from, to) = (place - reach, place + reach + 1);
        (step, (sums[to] - sums[from]) / (to - from) as f64)
    };
    points.iter().enumerate().map(mean).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(low: f64, high: f64) -> Vec<String> {
        let axis = Axis::linear([low, high].into_iter(), false, 5);
        axis.ticks.iter().map(|&tick| axis.label(tick)).collect()
    }

    #[test]
    fn ticks_are_round_and_their_labels_differ() {
        assert_eq!(labels(0.0, 1200.0), ["0", "500", "1000"]);
        assert_eq!(labels(2.13, 3.94), ["2.5", "3.0", "3.5"]);
        assert_eq!(labels(0.0, 0.001), ["0", "2e−4", "4e−4", "6e−4", "8e−4", "1e−3"]);
        assert_eq!(labels(0.0, 60_000.0), ["0", "20k", "40k", "60k"]);
        for (low, high) in [(0.0, 1.0), (1.0, 1.003), (-3.0, 12.0), (0.0, 2.3e-5), (9e5, 3e6)] {
            let texts = labels(low, high);
            let distinct: std::collections::BTreeSet<_> = texts.iter().collect();
            assert!(texts.len() >= 3 && distinct.len() == texts.len(), "{texts:?}");
        }
    }

    #[test]
    fn a_wide_spread_gets_a_logarithmic_axis() {
        let axis = Axis::log(0.02, 9.0);
        let texts: Vec<String> = axis.ticks.iter().map(|&tick| axis.label(tick)).collect();
        assert_eq!(texts, ["0.02", "0.05", "0.1", "0.2", "0.5", "1", "2", "5"]);
    }

    #[test]
    fn thinning_keeps_spikes_and_bounds_the_points() {
        let mut points: Vec<(f64, f64)> = (0..100_000).map(|n| (f64::from(n), 1.0)).collect();
        points[77_777].1 = 50.0;
        let kept = thinned(&points);
        assert!(kept.len() <= MAX_POINTS, "{}", kept.len());
        assert!(kept.contains(&(77_777.0, 50.0)));
    }

    #[test]
    fn flat_single_and_empty_series_are_drawn_without_nan() {
        for points in [&[(1.0, 0.5), (2.0, 0.5)][..], &[(1.0, 0.0)][..], &[][..]] {
            let chart = Chart {
                title: "Loss",
                points,
                marks: &[1.0],
                smooth: true,
                may_be_log: true,
                from_zero: false,
            };
            let svg = chart.to_svg();
            assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        }
    }
}
