//! `report.html`: one page that needs no other file and no network.

use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::chart::Chart;
use super::records::Records;
use super::run::JobRecord;
use super::summary::{SetScores, Summary};
use crate::eval::{Prediction, Ranks, Scores};
use ringmaster_words::{self as words, thousands};

const STYLE: &str = include_str!("page.css");

/// What the page shows.
#[derive(Debug)]
pub struct Content<'a> {
    /// The result.
    pub summary: &'a Summary,
    /// The job, its versions and generations.
    pub record: &'a JobRecord,
    /// The curves' values.
    pub records: &'a Records,
    /// Newest scores of every evaluation set, with the predictions of the grid.
    pub scores: &'a [Scores],
    /// Seconds since 1970 when the run ended.
    pub ended: f64,
}

/// Returns the page.
pub fn render(content: &Content<'_>) -> String {
    let mut page = String::with_capacity(1 << 18);
    let name = escape(&content.summary.name);
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <title>{name} · Ringmaster</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
    );
    header(&mut page, content);
    tiles(&mut page, content.summary);
    curves(&mut page, content);
    for (scores, set) in content.scores.iter().zip(&content.summary.eval_sets) {
        results(&mut page, scores, set);
    }
    manifest(&mut page, content);
    page.push_str("</main>\n</body>\n</html>\n");
    page
}

// ---- Top of the page: what ran, and the numbers people look for first ----

fn header(page: &mut String, content: &Content<'_>) {
    let summary = content.summary;
    let _ = write!(
        page,
        "<header>\n<p class=\"kicker\">Ringmaster training report</p>\n<h1>{}</h1>\n\
         <p class=\"sub\">{} · {} loss · job <code>{}</code> · finished {} UTC</p>\n</header>\n",
        escape(&summary.name),
        escape(&summary.model),
        if summary.loss == "siglip" { "SigLIP" } else { "InfoNCE" },
        escape(&summary.job_id),
        utc(content.ended),
    );
}

fn tiles(page: &mut String, summary: &Summary) {
    page.push_str("<section class=\"tiles\" aria-label=\"Main numbers\">\n");
    let mut tile = |label: &str, value: String, note: String, class: &str| {
        let _ = writeln!(
            page,
            "<div class=\"tile {class}\"><div class=\"label\">{label}</div>\
             <div class=\"value\">{value}</div><div class=\"note\">{note}</div></div>"
        );
    };
    if let Some(zero_shot) = &summary.zero_shot {
        let chance = |k: f64| format!("chance {}", percent(k / zero_shot.classes.max(1) as f64, 2));
        tile("Zero-shot top-1", percent(zero_shot.top1, 1), chance(1.0), "main");
        tile("Zero-shot top-5", percent(zero_shot.top5, 1), chance(5.0), "main");
    }
    if let Some(retrieval) = &summary.retrieval {
        let note = format!("from text {}", percent(retrieval.text_to_image.r1, 1));
        tile("Retrieval R@1", percent(retrieval.image_to_text.r1, 1), note, "main");
    }
    let samples = thousands(summary.samples);
    let note = match summary.resumed_samples {
        0 => format!("{samples} samples"),
        resumed => {
            format!(
                "{samples} samples, {} in this run",
                thousands(summary.samples.saturating_sub(resumed))
            )
        }
    };
    tile("Samples / s", speed(summary.samples_per_second), note, "");
    let steps = format!("{} steps", thousands(summary.steps));
    tile("Training time", duration(summary.training_seconds), steps, "");
    let loss = summary.final_loss.map_or_else(|| "–".to_owned(), significant);
    tile("World size", summary.world_size.to_string(), format!("final loss {loss}"), "");
    let replaced = format!("corrupt samples: {}", thousands(summary.substituted));
    tile("Recoveries", summary.recoveries.to_string(), replaced, "");
    page.push_str("</section>\n");
}

// ---- Curves ----

fn curves(page: &mut String, content: &Content<'_>) {
    let marks = recovery_steps(content.records);
    page.push_str("<section>\n<h2>Training</h2>\n<div class=\"charts\">\n");
    for (title, key, smooth, may_be_log, from_zero) in [
        ("Loss", "train/loss", true, true, false),
        ("Learning rate", "train/lr", false, false, true),
        ("Gradient norm", "train/grad_norm", true, true, false),
    ] {
        let points = content.records.series(key);
        let chart = Chart { title, points: &points, marks: &marks, smooth, may_be_log, from_zero };
        let last = points.last().map_or_else(String::new, |point| significant(point.1));
        let _ = writeln!(
            page,
            "<figure class=\"chart\"><figcaption><span>{title}</span><b>{last}</b></figcaption>\
             {}</figure>",
            chart.to_svg()
        );
    }
    page.push_str("</div>\n");
    if !marks.is_empty() {
        page.push_str("<p class=\"hint\">↻ a rank was lost and the job recovered.</p>\n");
    }
    page.push_str("</section>\n");
}

/// Returns the first logged step of every generation but the first.
fn recovery_steps(records: &Records) -> Vec<f64> {
    let pairs = records.steps.windows(2);
    pairs
        .filter(|pair| pair[0].generation != pair[1].generation)
        .map(|pair| pair[1].step as f64)
        .collect()
}

// ---- Held-out data ----

fn results(page: &mut String, scores: &Scores, set: &SetScores) {
    let _ = write!(
        page,
        "<section>\n<h2>Held-out images: {}</h2>\n<p class=\"sub\">{} images the model never saw, \
         {} distinct captions to choose from{}.</p>\n",
        escape(&scores.name),
        thousands(scores.images as u64),
        thousands(scores.classes as u64),
        match set.skipped {
            0 => String::new(),
            n => format!("; {n} could not be decoded and are not scored"),
        }
    );
    page.push_str(
        "<table>\n<thead><tr><th>Retrieval</th><th>R@1</th><th>R@5</th><th>R@10</th>\
         <th>Mean rank</th><th>Median rank</th></tr></thead>\n<tbody>\n",
    );
    ranks_row(page, "Image → text", &set.retrieval.image_to_text);
    ranks_row(page, "Text → image", &set.retrieval.text_to_image);
    page.push_str("</tbody>\n</table>\n");
    if scores.predictions.is_empty() {
        page.push_str("</section>\n");
        return;
    }
    let right = scores.predictions.iter().filter(|prediction| prediction.place == 1).count();
    let _ = write!(
        page,
        "<h3>What the model took them for</h3>\n<p class=\"sub\">Its first choice under every \
         image: <span class=\"ok\">✓ right</span>, or beneath it what the image really is and the \
         place the model gave that. {right} of the {} shown, which were picked evenly over the set, are right.</p>\n\
         <div class=\"grid\">\n",
        scores.predictions.len()
    );
    for prediction in &scores.predictions {
        card(page, prediction);
    }
    page.push_str("</div>\n</section>\n");
}

fn ranks_row(page: &mut String, name: &str, ranks: &Ranks) {
    let _ = writeln!(
        page,
        "<tr><th>{name}</th><td>{}</td><td>{}</td><td>{}</td><td>{:.1}</td><td>{:.0}</td></tr>",
        percent(ranks.r1, 1),
        percent(ranks.r5, 1),
        percent(ranks.r10, 1),
        ranks.mean_rank,
        ranks.median_rank
    );
}

fn card(page: &mut String, prediction: &Prediction) {
    let chosen = prediction.top.first().map_or("–", |choice| choice.caption.as_str());
    let class = match prediction.place {
        1 => "card right",
        2..=5 => "card near",
        _ => "card",
    };
    let _ = write!(page, "<figure class=\"{class}\">");
    match &prediction.picture {
        Some(picture) => {
            let _ = write!(
                page,
                "<img alt=\"{}\" src=\"data:{};base64,{}\">",
                escape(&prediction.caption),
                picture.media_type,
                BASE64.encode(&picture.bytes)
            );
        }
        None => page.push_str("<div class=\"noimage\">no picture</div>"),
    }
    if prediction.place == 1 {
        let _ = write!(page, "<figcaption><b>✓ {}</b></figcaption>", escape(chosen));
    } else {
        let _ = write!(
            page,
            "<figcaption><b>{}</b><small>{}<span class=\"place\">place {}</span></small>\
             </figcaption>",
            escape(chosen),
            escape(&prediction.caption),
            thousands(prediction.place)
        );
    }
    page.push_str("</figure>\n");
}

// ---- What ran exactly ----

fn manifest(page: &mut String, content: &Content<'_>) {
    page.push_str("<section>\n<h2>Job</h2>\n<dl>\n");
    let mut entry = |name: &str, value: &str| {
        let _ = writeln!(page, "<dt>{}</dt><dd><code>{}</code></dd>", escape(name), escape(value));
    };
    entry("job", &content.summary.job_id);
    entry("generations", &content.record.generations.join(", "));
    if let Some(checkpoint) = &content.summary.checkpoint {
        entry("checkpoint", checkpoint);
    }
    for (name, version) in &content.record.versions {
        entry(name, version);
    }
    let manifest = serde_json::to_string_pretty(&content.record.manifest)
        .expect("a manifest has string keys and finite numbers");
    let _ = write!(
        page,
        "</dl>\n<details><summary>Manifest, with every default filled in</summary>\
         <pre>{}</pre></details>\n</section>\n",
        escape(&manifest)
    );
}

// ---- Text ----

fn escape(text: &str) -> String {
    html_escape::encode_quoted_attribute(text).into_owned()
}

fn percent(share: f64, digits: usize) -> String {
    format!("{:.digits$}\u{202f}%", share * 100.0)
}

fn speed(value: f64) -> String {
    if value < 100.0 { format!("{value:.1}") } else { thousands(value.round() as u64) }
}

/// Returns a value with four significant digits.
fn significant(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if !(1e-3..1e5).contains(&size) => format!("{value:.2e}"),
        size => format!("{value:.*}", (3 - size.log10().floor() as i32).clamp(0, 6) as usize),
    }
}

fn duration(seconds: f64) -> String {
    let whole = seconds.max(0.0).round() as u64;
    let (hours, minutes, rest) = (whole / 3600, whole / 60 % 60, whole % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m {rest:02}s"),
        _ => format!("{hours}h {minutes:02}m"),
    }
}

/// Returns seconds since 1970 as `2026-11-23 20:04`.
fn utc(seconds: f64) -> String {
    words::utc((seconds * 1000.0) as i64).format("%Y-%m-%d %H:%M").to_string()
}

#[cfg(test)]
#[path = "page_tests.rs"]
mod tests;
