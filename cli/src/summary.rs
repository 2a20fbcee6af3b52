//! `summary.json` of a finished run, and the table people see at the end.

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Deserialize;

use super::text::{percent, rate};
use ringmaster_words::thousands;

/// The part of `summary.json` that the terminal shows. Scores are shares of 0..1.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Summary {
    pub(crate) steps: u64,
    pub(crate) samples: u64,
    #[serde(default)]
    pub(crate) resumed_samples: u64,
    pub(crate) training_seconds: f64,
    pub(crate) samples_per_second: f64,
    pub(crate) world_size: u32,
    #[serde(default)]
    pub(crate) zero_shot: Option<ZeroShot>,
    #[serde(default)]
    pub(crate) retrieval: Option<Retrieval>,
    #[serde(default)]
    pub(crate) checkpoint: Option<String>,
    #[serde(default)]
    pub(crate) eval_set: Option<String>,
    #[serde(default)]
    pub(crate) recoveries: u64,
    #[serde(default)]
    pub(crate) substituted: u64,
    #[serde(default)]
    pub(crate) damaged_shards: u64,
}

/// Classification among all distinct captions.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct ZeroShot {
    pub(crate) classes: u64,
    pub(crate) top1: f64,
    pub(crate) top5: f64,
}

/// Retrieval both ways.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Retrieval {
    pub(crate) image_to_text: Direction,
    pub(crate) text_to_image: Direction,
}

/// Retrieval one way.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Direction {
    #[serde(rename = "R@1")]
    pub(crate) r1: f64,
    #[serde(rename = "R@5")]
    pub(crate) r5: f64,
    #[serde(rename = "R@10")]
    pub(crate) r10: f64,
    pub(crate) mean_rank: f64,
    pub(crate) median_rank: f64,
}

impl Summary {
    /// Reads `summary.json`; none when it is empty or not one.
    pub(crate) fn from_json(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// Returns one line about the training itself.
    pub(crate) fn training_line(&self) -> String {
        let recovered = match self.recoveries {
            0 => String::new(),
            1 => " · 1 recovery".to_owned(),
            n => format!(" · {n} recoveries"),
        };
        let seconds = std::time::Duration::from_secs_f64(self.training_seconds.max(0.0));
        let own = match self.resumed_samples {
            0 => String::new(),
            resumed => {
                format!(
                    ", {} of them in this run,",
                    thousands(self.samples.saturating_sub(resumed))
                )
            }
        };
        format!(
            "{} steps · {} samples{own} in {} · {} samples/s on {} {}{recovered}",
            thousands(self.steps),
            thousands(self.samples),
            super::text::clock(seconds),
            rate(self.samples_per_second),
            self.world_size,
            if self.world_size == 1 { "rank" } else { "ranks" },
        )
    }

    /// Returns what was wrong with the data, one line each; usually nothing.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.substituted > 0 {
            notes.push(format!(
                "{} corrupt {} replaced; ranks.log names each",
                thousands(self.substituted),
                if self.substituted == 1 { "sample was" } else { "samples were" }
            ));
        }
        if self.damaged_shards > 0 {
            notes.push(format!(
                "{} of the training data {} off, and what follows the break was not trained on; \
                 ranks.log says where",
                match self.damaged_shards {
                    1 => "1 shard".to_owned(),
                    n => format!("{} shards", thousands(n)),
                },
                if self.damaged_shards == 1 { "breaks" } else { "break" }
            ));
        }
        notes
    }

    /// Returns the table of scores, or none when nothing was evaluated.
    pub(crate) fn table(&self) -> Option<String> {
        let zero_shot = self.zero_shot.as_ref()?;
        let mut table = new_table();
        let held_out = self.eval_set.as_deref().unwrap_or("held-out images");
        table.set_header(header([
            held_out,
            "top-1, R@1",
            "top-5, R@5",
            "R@10",
            "mean rank",
            "median",
        ]));
        let classes = format!("zero-shot of {}", thousands(zero_shot.classes));
        table.add_row(row([
            classes,
            percent(zero_shot.top1),
            percent(zero_shot.top5),
            String::new(),
            String::new(),
            String::new(),
        ]));
        if let Some(retrieval) = &self.retrieval {
            for (name, way) in [
                ("image → text", &retrieval.image_to_text),
                ("text → image", &retrieval.text_to_image),
            ] {
                table.add_row(row([
                    name.to_owned(),
                    percent(way.r1),
                    percent(way.r5),
                    percent(way.r10),
                    format!("{:.1}", way.mean_rank),
                    format!("{:.0}", way.median_rank),
                ]));
            }
        }
        Some(table.to_string())
    }
}

fn new_table() -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED);
    table
}

fn header(names: [&str; 6]) -> Vec<Cell> {
    let align = |(column, name): (usize, &str)| Cell::new(name).set_alignment(alignment(column));
    names.into_iter().enumerate().map(align).collect()
}

fn row(values: [String; 6]) -> Vec<Cell> {
    let align = |(column, value)| Cell::new(value).set_alignment(alignment(column));
    values.into_iter().enumerate().map(align).collect()
}

fn alignment(column: usize) -> CellAlignment {
    if column == 0 { CellAlignment::Left } else { CellAlignment::Right }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;

    pub(crate) const EXAMPLE: &str = r#"{"steps":1200,"samples":307200,"training_seconds":331.5,
        "samples_per_second":926.7,"world_size":2,"recoveries":1,"eval_set":"twemoji",
        "zero_shot":{"classes":1820,"top1":0.1512,"top5":0.3534},
        "retrieval":{"image_to_text":{"R@1":0.1512,"R@5":0.3534,"R@10":0.46,"mean_rank":101.25,"median_rank":14},
        "text_to_image":{"R@1":0.1488,"R@5":0.34,"R@10":0.45,"mean_rank":98.5,"median_rank":15}},
        "checkpoint":"file:///c/emoji-abc234/step-0000001200.g1.2"}"#;

    #[test]
    fn the_table_fits_80_columns_and_shows_every_score() {
        let table = Summary::from_json(EXAMPLE).unwrap().table().unwrap();
        for line in table.lines() {
            assert!(line.chars().count() <= 80, "{line}");
        }
        for score in ["15.1 %", "35.3 %", "46.0 %", "45.0 %", "101.2", "1,820"] {
            assert!(table.contains(score), "{score} in\n{table}");
        }
    }

    /// All samples stood beside the time and the speed of the last few.
    #[test]
    fn a_resumed_run_tells_its_own_samples_from_those_of_the_run_before() {
        let mut summary = Summary::from_json(EXAMPLE).unwrap();
        summary.resumed_samples = 300_000;
        assert_eq!(
            summary.training_line(),
            "1,200 steps · 307,200 samples, 7,200 of them in this run, in 5:31 · 927 samples/s on 2 \
             ranks · 1 recovery"
        );
    }

    #[test]
    fn what_was_wrong_with_the_data_is_said() {
        let mut summary = Summary::from_json(EXAMPLE).unwrap();
        (summary.substituted, summary.damaged_shards) = (1, 2);
        let notes = summary.notes();
        assert_eq!(notes[0], "1 corrupt sample was replaced; ranks.log names each");
        assert!(notes[1].starts_with("2 shards of the training data break off"), "{notes:?}");
    }

    #[test]
    fn a_run_without_evaluation_has_no_table() {
        let text = r#"{"steps":1,"samples":2,"training_seconds":1,"samples_per_second":2,
            "world_size":1,"zero_shot":null,"retrieval":null,"checkpoint":null}"#;
        let summary = Summary::from_json(text).unwrap();
        assert_eq!(summary.table(), None);
        assert_eq!(summary.notes(), Vec::<String>::new());
        assert_eq!(
            summary.training_line(),
            "1 steps · 2 samples in 0:01 · 2.00 samples/s on 1 rank"
        );
    }
}
