//! What a data set holds, as tables and bars for a terminal.

use std::ops::Range;

use comfy_table::{CellAlignment, Table, presets};
use ringmaster_words::thousands;

use super::Stats;
use super::chart::{self, Unit};
use super::duplicates::Duplicates;
use super::histogram::{Bar, Distribution};
use crate::page::shortened;

/// Corrupt samples, captions and groups that are shown.
const SHOWN: usize = 8;
/// Name of a fact that is said only where it is so.
pub(super) const BREAK_OFF: &str = "shards that break off";

/// Returns the text.
pub(super) fn render(stats: &Stats, columns: usize) -> String {
    let mut parts = vec![overview(stats), numbers(stats)];
    for (title, bars, unit) in charts(stats) {
        if bars.len() > 1 {
            parts.push(format!("{title}\n{}", chart::lines(bars, unit, columns).join("\n")));
        }
    }
    parts.extend(captions(stats, columns));
    parts.extend(duplicates("EXACT DUPLICATES", &stats.exact_duplicates, columns));
    parts.extend(duplicates("NEAR DUPLICATES", &stats.near_duplicates, columns));
    parts.extend(corrupt(stats));
    parts.join("\n\n")
}

/// Returns the histograms, in the order they are shown.
pub(super) fn charts(stats: &Stats) -> [(&'static str, &[Bar], Unit); 8] {
    [
        ("WIDTH, pixels", &stats.width.bars, Unit::Count),
        ("HEIGHT, pixels", &stats.height.bars, Unit::Count),
        ("ASPECT RATIO, width / height", &stats.aspect_ratio, Unit::Ratio),
        ("PIXELS PER IMAGE", &stats.pixels.bars, Unit::Count),
        ("BYTES PER IMAGE", &stats.bytes_per_image.bars, Unit::Bytes),
        ("CAPTIONS PER SAMPLE", &stats.captions_per_sample.bars, Unit::Count),
        ("CHARACTERS PER CAPTION", &stats.caption_characters.bars, Unit::Count),
        ("CLIP TOKENS PER CAPTION", &stats.caption_tokens.bars, Unit::Count),
    ]
}

/// Returns the distributions in numbers, in the order they are shown.
pub(super) fn distributions(stats: &Stats) -> [(&'static str, &Distribution, Unit); 7] {
    [
        ("width", &stats.width, Unit::Count),
        ("height", &stats.height, Unit::Count),
        ("pixels", &stats.pixels, Unit::Count),
        ("bytes of an image", &stats.bytes_per_image, Unit::Bytes),
        ("captions of a sample", &stats.captions_per_sample, Unit::Count),
        ("characters of a caption", &stats.caption_characters, Unit::Count),
        ("CLIP tokens of a caption", &stats.caption_tokens, Unit::Count),
    ]
}

/// A fact of a data set.
pub(super) struct Fact {
    pub(super) name: &'static str,
    pub(super) value: String,
    /// What goes with the value, or nothing.
    pub(super) note: String,
}

/// Returns the main facts.
pub(super) fn facts(stats: &Stats) -> Vec<Fact> {
    let fact = |name, value, note| Fact { name, value, note };
    let share = |name, count: u64, of: u64| {
        let note = match (count, of) {
            (0, _) | (_, 0) => String::new(),
            _ => format!("{:.2} %", count as f64 / of as f64 * 100.0),
        };
        fact(name, thousands(count), note)
    };
    let bytes = |name, count: u64| fact(name, Unit::Bytes.short(count as f64), String::new());
    let formats = stats.formats.iter().map(|(name, count)| format!("{name} {}", thousands(*count)));
    let different = stats.different_captions.map_or_else(|| "over a million".to_owned(), thousands);
    let mut facts = vec![
        fact("samples", thousands(stats.samples), formats.collect::<Vec<_>>().join(", ")),
        fact("shards", thousands(stats.shards), String::new()),
        bytes("bytes of shards", stats.shard_bytes),
        bytes("bytes of images", stats.image_bytes),
        share("corrupt samples", stats.corrupt, stats.samples),
        fact("captions", thousands(stats.captions), format!("{different} different")),
        share("empty captions", stats.empty_captions, stats.captions),
        share("captions > 77 tokens", stats.long_captions, stats.captions),
        share("exact duplicates", stats.exact_duplicates.extra, stats.samples),
        share("near duplicates", stats.near_duplicates.extra, stats.samples),
    ];
    if !stats.damaged_shards.is_empty() {
        let count = thousands(stats.damaged_shards.len() as u64);
        facts.insert(2, fact(BREAK_OFF, count, String::new()));
    }
    facts
}

fn overview(stats: &Stats) -> String {
    let mut table = plain();
    for Fact { name, value, note } in facts(stats) {
        table.add_row([name.to_owned(), value, note]);
    }
    right_aligned(&mut table, 1..2);
    trimmed(&table)
}

fn numbers(stats: &Stats) -> String {
    let mut table = plain();
    table.set_header(["", "MIN", "5 %", "MEDIAN", "MEAN", "95 %", "MAX"]);
    for (name, of, unit) in distributions(stats) {
        let values = [of.min, of.p5, of.median, of.mean, of.p95, of.max].map(|v| unit.long(v));
        table.add_row(std::iter::once(name.to_owned()).chain(values));
    }
    right_aligned(&mut table, 1..7);
    trimmed(&table)
}

fn captions(stats: &Stats, columns: usize) -> Option<String> {
    if stats.frequent_captions.is_empty() {
        return None;
    }
    let shown = stats.frequent_captions.iter().take(SHOWN).map(|one| {
        let caption = shortened(&printable(&one.caption), columns.saturating_sub(14).max(20));
        format!("  {:>9}  {caption}", thousands(one.count))
    });
    Some(format!("MOST FREQUENT CAPTIONS\n{}", shown.collect::<Vec<_>>().join("\n")))
}

fn duplicates(title: &str, found: &Duplicates, columns: usize) -> Option<String> {
    if found.groups == 0 {
        return None;
    }
    let shown = found.largest.iter().take(SHOWN).map(|group| {
        let keys = printable(&group.keys.join(", "));
        let keys = shortened(&keys, columns.saturating_sub(14).max(20));
        format!("  {:>9}  {keys}", thousands(group.count))
    });
    let count = thousands(found.groups);
    Some(format!("{title}, {count} groups\n{}", shown.collect::<Vec<_>>().join("\n")))
}

fn corrupt(stats: &Stats) -> Option<String> {
    if stats.corrupt == 0 && stats.damaged_shards.is_empty() {
        return None;
    }
    let broken = stats.damaged_shards.iter().map(|url| format!("  {url} breaks off"));
    let first = stats.first_corrupt.iter().take(SHOWN);
    let first = first.map(|one| format!("  {} {}: {}", one.shard, printable(&one.key), one.reason));
    let mut lines: Vec<String> = broken.chain(first).collect();
    if stats.corrupt > SHOWN as u64 {
        lines.push(format!(
            "  and {} more; `verify` lists all",
            thousands(stats.corrupt - SHOWN as u64)
        ));
    }
    Some(format!("CORRUPT\n{}", lines.join("\n")))
}

/// Returns text of other people's files without what would move a terminal's cursor.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn plain() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table
}

fn right_aligned(table: &mut Table, columns: Range<usize>) {
    for column in table.column_iter_mut().skip(columns.start).take(columns.len()) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

fn trimmed(table: &Table) -> String {
    table.to_string().lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}
