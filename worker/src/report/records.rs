//! `metrics.jsonl`: one JSON object per line, with OpenCLIP's metric keys.
//!
//! Every line has `step`, `samples`, `generation` and `time` (seconds since 1970); the other keys
//! are metrics: `train/…` of a training step, `val/…` of an evaluation.

use std::collections::BTreeMap;
use std::path::Path;

use ringmaster_proto::v1::StepMetrics;
use serde::{Deserialize, Serialize};

use crate::eval::Scores;

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Steps applied.
    pub step: u64,
    /// Samples consumed by all ranks.
    pub samples: u64,
    /// Generation that wrote the line, as `g1.7`.
    pub generation: String,
    /// Seconds since 1970.
    pub time: f64,
    /// Hash (16 hex digits) of which sample stood in which row of the global batch; the same for
    /// any number of ranks. Absent on lines of evaluations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order_digest: Option<String>,
    /// Metrics by OpenCLIP's key. A value that is no number (NaN, infinite) is null in the file.
    #[serde(flatten)]
    pub metrics: BTreeMap<String, Option<f64>>,
}

impl Line {
    /// Returns a metric that is there and finite.
    pub fn get(&self, key: &str) -> Option<f64> {
        self.metrics.get(key).copied().flatten()
    }

    /// Returns the line's metrics that are finite.
    pub fn finite(&self) -> impl Iterator<Item = (&str, f64)> {
        self.metrics.iter().filter_map(|(key, value)| Some((key.as_str(), (*value)?)))
    }
}

/// Returns the metrics of a training step under OpenCLIP's keys.
pub fn step_metrics(metrics: &StepMetrics, world_size: usize) -> BTreeMap<String, Option<f64>> {
    let per_rank = metrics.samples_per_second / world_size.max(1) as f64;
    let mut values = vec![
        ("train/loss", metrics.loss),
        ("train/logit_scale", metrics.logit_scale),
        ("train/lr", metrics.lr),
        ("train/grad_norm", metrics.grad_norm),
        ("train/samples_per_second", metrics.samples_per_second),
        // OpenCLIP's name, whatever a rank's accelerator is.
        ("train/samples_per_second_per_gpu", per_rank),
        ("train/data_share", metrics.data_share),
        ("train/compute_share", metrics.compute_share),
        ("train/comm_share", metrics.comm_share),
        ("train/substituted", metrics.substituted as f64),
    ];
    if let Some(bias) = metrics.logit_bias {
        values.push(("train/logit_bias", bias));
    }
    if let Some(share) = metrics.store_share {
        values.push(("train/store_share", share));
    }
    if let (Some(rank), Some(ratio)) = (metrics.slowest_rank, metrics.slowest_over_median) {
        values.push(("train/slowest_rank", f64::from(rank)));
        values.push(("train/slowest_over_median", ratio));
    }
    let finite = |value: f64| value.is_finite().then_some(value);
    values.into_iter().map(|(key, value)| (key.to_owned(), finite(value))).collect()
}

/// Returns the metrics of an evaluation under OpenCLIP's keys.
///
/// OpenCLIP knows one retrieval set and writes `val/image_to_text_R@1`; so does this while
/// `only_set` holds, and `val/<set>-image_to_text_R@1` otherwise.
pub fn eval_metrics(scores: &Scores, only_set: bool) -> BTreeMap<String, Option<f64>> {
    let name = &scores.name;
    let mut values = vec![
        (format!("val/{name}-zeroshot-val-top1"), scores.top1),
        (format!("val/{name}-zeroshot-val-top5"), scores.top5),
    ];
    let prefix = if only_set { "val/".to_owned() } else { format!("val/{name}-") };
    let retrieval = &scores.retrieval;
    for (direction, ranks) in
        [("image_to_text", &retrieval.image_to_text), ("text_to_image", &retrieval.text_to_image)]
    {
        for (metric, value) in [
            ("mean_rank", ranks.mean_rank),
            ("median_rank", ranks.median_rank),
            ("R@1", ranks.r1),
            ("R@5", ranks.r5),
            ("R@10", ranks.r10),
        ] {
            values.push((format!("{prefix}{direction}_{metric}"), value));
        }
    }
    values.into_iter().map(|(key, value)| (key, value.is_finite().then_some(value))).collect()
}

/// All lines of a run that still count, in step order.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Records {
    /// Training steps.
    pub steps: Vec<Line>,
    /// Evaluations.
    pub evals: Vec<Line>,
}

impl Records {
    /// Reads `metrics.jsonl`; a file that is not there has no lines. A torn line, which a killed
    /// process may leave, is skipped.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn read(path: &Path) -> std::io::Result<Self> {
        let text = match std::fs::read(path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            result => result?,
        };
        let mut records = Self::default();
        for line in String::from_utf8_lossy(&text).lines() {
            if let Ok(line) = serde_json::from_str::<Line>(line) {
                records.push(line);
            }
        }
        Ok(records)
    }

    /// Adds the newest line. A training line at or before a step that is already there means a
    /// roll-back: what the abandoned attempt wrote from that step on counts no more.
    pub fn push(&mut self, line: Line) {
        let is_eval = line.metrics.keys().any(|key| key.starts_with("val/"));
        if is_eval {
            // Another set of the same evaluation has other keys and the same step.
            self.evals.retain(|old| {
                old.step < line.step
                    || (old.step == line.step && !old.metrics.keys().eq(line.metrics.keys()))
            });
            self.evals.push(line);
        } else {
            self.steps.retain(|old| old.step < line.step);
            self.evals.retain(|old| old.step < line.step);
            self.steps.push(line);
        }
    }

    /// Returns the newest training step; zero before the first.
    pub fn last_step(&self) -> u64 {
        self.steps.last().map_or(0, |line| line.step)
    }

    /// Returns (step, value) of a training metric wherever it is finite.
    pub fn series(&self, key: &str) -> Vec<(f64, f64)> {
        let points = self.steps.iter().filter_map(|line| Some((line.step as f64, line.get(key)?)));
        points.collect()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn line(step: u64, generation: &str, key: &str, value: f64) -> Line {
        Line {
            step,
            samples: step * 8,
            generation: generation.to_owned(),
            time: 0.0,
            order_digest: None,
            metrics: [(key.to_owned(), Some(value))].into(),
        }
    }

    #[test]
    fn a_roll_back_replaces_what_the_abandoned_attempt_logged() {
        let mut records = Records::default();
        for step in 1..=5 {
            records.push(line(step, "g1.1", "train/loss", 1.0));
        }
        records.push(line(4, "g1.1", "val/top1", 0.5));
        records.push(line(3, "g1.2", "train/loss", 2.0));
        assert_eq!(records.series("train/loss"), [(1.0, 1.0), (2.0, 1.0), (3.0, 2.0)]);
        assert!(records.evals.is_empty());
    }

    #[test]
    fn torn_lines_are_skipped_and_lines_round_trip() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut written = line(1, "g1.1", "train/loss", 0.25);
        written.metrics.insert("train/grad_norm".to_owned(), None);
        let text = serde_json::to_string(&written).unwrap();
        std::fs::write(&path, format!("{text}\n{{\"step\": 2, \"sam\n")).unwrap();
        assert_eq!(Records::read(&path).unwrap().steps, [written]);
        assert_eq!(Records::read(&folder.path().join("none")).unwrap(), Records::default());
    }

    #[test]
    fn training_keys_are_those_of_openclip() {
        let metrics = StepMetrics {
            loss: 2.0,
            logit_bias: Some(-10.0),
            samples_per_second: 100.0,
            grad_norm: f64::NAN,
            ..StepMetrics::default()
        };
        let values = step_metrics(&metrics, 4);
        assert_eq!(values["train/loss"], Some(2.0));
        assert_eq!(values["train/logit_bias"], Some(-10.0));
        assert_eq!(values["train/samples_per_second_per_gpu"], Some(25.0));
        assert_eq!(values["train/grad_norm"], None);
    }
}
