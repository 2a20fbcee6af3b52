//! What a data set holds, as a page.

use std::fmt::Write as _;

use ringmaster_words::thousands;

use super::chart::{self, Unit};
use super::text::{BREAK_OFF, Fact, charts, distributions, facts};
use super::{CONTEXT_LENGTH, Stats};
use crate::page::Shown;
use crate::page::{self, escape};

/// Returns the page.
pub(super) fn render(
    stats: &Stats,
    title: &str,
    samples: &[Shown],
    alike: &[Vec<Shown>],
) -> String {
    let mut content = String::with_capacity(1 << 18);
    tiles(&mut content, stats);
    histograms(&mut content, stats);
    numbers(&mut content, stats);
    if !samples.is_empty() {
        content.push_str("<h2>Samples</h2>\n");
        page::sheet(&mut content, samples);
    }
    captions(&mut content, stats);
    groups(&mut content, stats, alike);
    copies(&mut content, stats);
    corrupt(&mut content, stats);
    page::page(title, &content)
}

fn tiles(page: &mut String, stats: &Stats) {
    page.push_str("<div class=\"tiles\">\n");
    for Fact { name, value, note } in facts(stats) {
        let is_trouble = name == BREAK_OFF || name == "corrupt samples" && stats.corrupt > 0;
        let class = if is_trouble { "tile warn" } else { "tile" };
        let (value, note) = (escape(&value), escape(&note));
        let _ = writeln!(
            page,
            "<div class=\"{class}\"><span>{}</span><b>{value}</b><span>{note}</span></div>",
            escape(name)
        );
    }
    page.push_str("</div>\n");
}

fn histograms(page: &mut String, stats: &Stats) {
    page.push_str("<h2>Distributions</h2>\n<div class=\"charts\">\n");
    for (title, bars, unit) in charts(stats) {
        let tokens = title.contains("TOKENS");
        let limit = tokens.then_some(f64::from(CONTEXT_LENGTH) + 1.0);
        let note = match stats.long_captions {
            long if tokens && long > 0 => {
                format!("{} captions are longer than the 77 that CLIP reads", thousands(long))
            }
            _ => String::new(),
        };
        let drawn = match bars {
            [] => "<p class=\"same\">none</p>".to_owned(),
            [only] if only.from == only.to => {
                format!("<p class=\"same\">all {}</p>", escape(&unit.long(only.from)))
            }
            [only] => format!("<p class=\"same\">all {}</p>", escape(&unit.range(only))),
            _ => chart::svg(bars, unit, limit),
        };
        let title = escape(&sentence(title));
        let _ = writeln!(
            page,
            "<figure class=\"chart\"><figcaption>{title}<small>{note}</small></figcaption>{drawn}</figure>"
        );
    }
    page.push_str("</div>\n");
}

/// Returns a heading of a terminal as one of a page: its first letter alone is large.
fn sentence(title: &str) -> String {
    let lower = title.to_lowercase().replace("clip", "CLIP");
    let mut letters = lower.chars();
    letters.next().into_iter().flat_map(char::to_uppercase).chain(letters).collect()
}

fn numbers(page: &mut String, stats: &Stats) {
    page.push_str("<h2>In numbers</h2>\n<table><tr><th></th>");
    for name in ["min", "5 %", "median", "mean", "95 %", "max"] {
        let _ = write!(page, "<th class=\"number\">{name}</th>");
    }
    page.push_str("</tr>\n");
    for (name, of, unit) in distributions(stats) {
        let _ = write!(page, "<tr><td>{name}</td>");
        for value in [of.min, of.p5, of.median, of.mean, of.p95, of.max] {
            let _ = write!(page, "<td class=\"number\">{}</td>", long(unit, value));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table>\n");
}

fn long(unit: Unit, value: f64) -> String {
    escape(&unit.long(value))
}

fn captions(page: &mut String, stats: &Stats) {
    if stats.frequent_captions.is_empty() {
        return;
    }
    page.push_str(
        "<h2>Most frequent captions</h2>\n<table><tr><th class=\"number\">times</th><th>caption</th></tr>\n",
    );
    for one in &stats.frequent_captions {
        let caption = match one.caption.as_str() {
            "" => "(empty)".to_owned(),
            caption => escape(&page::shortened(caption, 300)),
        };
        let count = thousands(one.count);
        let _ = writeln!(page, "<tr><td class=\"number\">{count}</td><td>{caption}</td></tr>");
    }
    page.push_str("</table>\n");
}

fn groups(page: &mut String, stats: &Stats, alike: &[Vec<Shown>]) {
    let found = &stats.near_duplicates;
    if found.groups == 0 || alike.is_empty() {
        return;
    }
    let _ = writeln!(
        page,
        "<h2>Pictures that look alike</h2>\n<p>{} groups of pictures with other bytes whose difference hashes differ \
         in at most {} of 64 bits and whose colours differ little, or that are connected by such pictures. The largest:</p>",
        thousands(found.groups),
        stats.near_distance
    );
    for (group, samples) in found.largest.iter().zip(alike) {
        let _ = write!(
            page,
            "<div class=\"group\"><div class=\"count\">{} ×</div>",
            thousands(group.count)
        );
        samples.iter().for_each(|sample| page::card(page, sample));
        page.push_str("</div>\n");
    }
}

fn copies(page: &mut String, stats: &Stats) {
    let found = &stats.exact_duplicates;
    if found.groups == 0 {
        return;
    }
    let _ = writeln!(
        page,
        "<h2>Images of the same bytes</h2>\n<p>{} images have several samples. The most frequent:</p>\n\
         <table><tr><th class=\"number\">times</th><th>first samples</th></tr>",
        thousands(found.groups)
    );
    for group in &found.largest {
        let (count, keys) = (thousands(group.count), escape(&group.keys.join(", ")));
        let _ = writeln!(page, "<tr><td class=\"number\">{count}</td><td>{keys}</td></tr>");
    }
    page.push_str("</table>\n");
}

fn corrupt(page: &mut String, stats: &Stats) {
    if stats.first_corrupt.is_empty() && stats.damaged_shards.is_empty() {
        return;
    }
    page.push_str(
        "<h2>Corrupt samples</h2>\n<table><tr><th>shard</th><th>sample</th><th>reason</th></tr>\n",
    );
    for url in &stats.damaged_shards {
        let _ = writeln!(
            page,
            "<tr><td>{}</td><td></td><td>the shard breaks off</td></tr>",
            escape(url)
        );
    }
    for one in &stats.first_corrupt {
        let [shard, key, reason] = [&one.shard, &one.key, &one.reason].map(|text| escape(text));
        let _ = writeln!(page, "<tr><td>{shard}</td><td>{key}</td><td>{reason}</td></tr>");
    }
    page.push_str("</table>\n");
}
