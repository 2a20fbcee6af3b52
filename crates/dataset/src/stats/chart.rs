//! Bars of a histogram: as SVG for a page, as block characters for a terminal.

use std::fmt::Write as _;

use ringmaster_words::thousands;

use super::histogram::Bar;

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 190.0;
const LEFT: f64 = 46.0;
const TOP: f64 = 12.0;
const BOTTOM: f64 = 34.0;
/// Columns between labels of ranges, in pixels of the picture.
const LABEL: f64 = 46.0;
/// Eighths of a character's width.
const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];

/// How values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    Count,
    Bytes,
    Ratio,
}

impl Unit {
    /// Returns a value in few characters: `12.5k`, `1.2 MiB`, `0.85`.
    pub(super) fn short(self, value: f64) -> String {
        match self {
            Self::Count => scaled(value, 1000.0, &["", "k", "M", "G", "T", "P", "E"]),
            Self::Bytes => {
                scaled(value, 1024.0, &[" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"])
            }
            Self::Ratio => format!("{value:.2}"),
        }
    }

    /// Returns a value as exactly as people read it.
    pub(super) fn long(self, value: f64) -> String {
        match self {
            Self::Count if value.fract() == 0.0 => thousands(value as u64),
            Self::Count => format!("{value:.1}"),
            _ => self.short(value),
        }
    }

    /// Returns the range of a bar.
    pub(super) fn range(self, bar: &Bar) -> String {
        // Of whole numbers the last one of the range is said, not the first behind it.
        let last = if self == Self::Count { bar.to - 1.0 } else { bar.to };
        if last <= bar.from {
            return self.short(bar.from);
        }
        format!("{} – {}", self.short(bar.from), self.short(last))
    }
}

fn scaled(value: f64, step: f64, units: &[&str]) -> String {
    let (mut value, mut unit) = (value, 0);
    while value >= step * 0.99995 && unit + 1 < units.len() {
        (value, unit) = (value / step, unit + 1);
    }
    let digits = match value {
        v if unit == 0 || (v - v.round()).abs() < 0.005 => 0,
        v if v < 10.0 => 2,
        _ => 1,
    };
    format!("{value:.digits$}{}", units[unit])
}

/// Returns one line per bar: its range, a bar of block characters, its count and share.
pub(super) fn lines(bars: &[Bar], unit: Unit, columns: usize) -> Vec<String> {
    let most = bars.iter().map(|bar| bar.count).max().unwrap_or(0);
    let total: u64 = bars.iter().map(|bar| bar.count).sum();
    let ranges: Vec<String> = bars.iter().map(|bar| unit.range(bar)).collect();
    let counts: Vec<String> = bars.iter().map(|bar| thousands(bar.count)).collect();
    let widest =
        |texts: &[String]| texts.iter().map(|text| text.chars().count()).max().unwrap_or(0);
    let (left, right) = (widest(&ranges), widest(&counts));
    let room = columns.saturating_sub(left + right + 13).clamp(8, 60);
    let line = |((bar, range), count): ((&Bar, &String), &String)| {
        let drawn = blocks(bar.count as f64 / most.max(1) as f64, room);
        let padding = " ".repeat(room - drawn.chars().count());
        let share = bar.count as f64 / total.max(1) as f64 * 100.0;
        format!("  {range:>left$}  {drawn}{padding}  {count:>right$} {share:>5.1}%")
    };
    bars.iter().zip(&ranges).zip(&counts).map(line).collect()
}

/// Returns a bar of a share of `room` characters, to an eighth of one; something, where there is anything.
fn blocks(share: f64, room: usize) -> String {
    let eighths = (share * room as f64 * 8.0).round() as usize;
    let eighths = if share > 0.0 { eighths.max(1) } else { 0 };
    format!("{}{}", "█".repeat(eighths / 8), EIGHTHS[eighths % 8])
}

/// Returns the bars as an `<svg>` element; those from `limit` on are marked.
pub(super) fn svg(bars: &[Bar], unit: Unit, limit: Option<f64>) -> String {
    let most = bars.iter().map(|bar| bar.count).max().unwrap_or(0).max(1) as f64;
    let (bottom, step) = (HEIGHT - BOTTOM, (WIDTH - LEFT - 8.0) / bars.len().max(1) as f64);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    grid(&mut svg, most);
    let every = (LABEL / step).ceil().max(1.0) as usize;
    for (number, bar) in bars.iter().enumerate() {
        let (x, height) = (LEFT + number as f64 * step, bar.count as f64 / most * (bottom - TOP));
        let height = if bar.count > 0 { height.max(1.0) } else { 0.0 };
        let is_over = limit.is_some_and(|limit| bar.from >= limit);
        let _ = write!(
            svg,
            "<rect{} x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\">\
             <title>{}: {}</title></rect>",
            if is_over { " class=\"over\"" } else { "" },
            x + 1.0,
            bottom - height,
            (step - 2.0).clamp(1.0, 60.0),
            unit.range(bar),
            thousands(bar.count)
        );
        if number % every == 0 {
            label(&mut svg, x, bottom, &unit.short(bar.from));
        }
    }
    let _ =
        write!(svg, "<line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{bottom}\" y2=\"{bottom}\"/></svg>");
    svg
}

/// Draws lines at the largest count and at half of it.
fn grid(svg: &mut String, most: f64) {
    let bottom = HEIGHT - BOTTOM;
    for share in [0.5, 1.0] {
        let y = bottom - share * (bottom - TOP);
        let label = Unit::Count.short((most * share).round());
        let _ = write!(
            svg,
            "<line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{label}</text>",
            LEFT - 6.0,
            y + 4.0
        );
    }
}

fn label(svg: &mut String, x: f64, bottom: f64, text: &str) {
    let _ = write!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
        x + 1.0,
        bottom + 17.0
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_written_short() {
        let short = [0.0, 999.0, 1000.0, 12_500.0, 1_240_000.0].map(|v| Unit::Count.short(v));
        assert_eq!(short, ["0", "999", "1k", "12.5k", "1.24M"]);
        assert_eq!(Unit::Bytes.short(1536.0), "1.50 KiB");
        assert_eq!(Unit::Count.long(12_500.0), "12,500");
    }

    #[test]
    fn bars_are_as_long_as_their_counts() {
        let bar = |from: f64, count| Bar { from, to: from + 1.0, count };
        let drawn =
            lines(&[bar(0.0, 100), bar(1.0, 50), bar(2.0, 0), bar(3.0, 1)], Unit::Count, 48);
        let lengths: Vec<usize> = drawn
            .iter()
            .map(|line| line.chars().filter(|c| ('█'..='▏').contains(c)).count())
            .collect();
        assert!(lengths[0].abs_diff(lengths[1] * 2) <= 1, "{lengths:?}");
        assert_eq!(lengths[2..], [0, 1]);
        assert!(drawn.iter().all(|line| line.chars().count() <= 48), "{drawn:#?}");
    }

    #[test]
    fn a_picture_has_a_bar_for_every_range() {
        let bars: Vec<Bar> =
            (0_u32..16).map(|n| Bar { from: n.into(), to: f64::from(n + 1), count: 5 }).collect();
        let drawn = svg(&bars, Unit::Count, Some(10.0));
        assert_eq!(drawn.matches("<rect").count(), 16);
        assert_eq!(drawn.matches("class=\"over\"").count(), 6);
        assert!(svg(&[], Unit::Bytes, None).ends_with("</svg>"));
    }
}
