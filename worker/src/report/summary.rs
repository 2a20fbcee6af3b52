//! `summary.json`: the result of a run in numbers, and the same as text.

use serde::{Deserialize, Serialize};

use crate::eval::{Retrieval, Scores};

/// `summary.json`. Scores are shares of 0..1; absent ones are null.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// Id of the job.
    pub job_id: String,
    /// Its name.
    pub name: String,
    /// Name of the model's configuration.
    pub model: String,
    /// `siglip` or `infonce`.
    pub loss: String,
    /// False for a run that was stopped before its last step.
    #[serde(default = "yes")]
    pub finished: bool,
    /// Steps applied.
    pub steps: u64,
    /// Samples consumed, those before a resume included.
    pub samples: u64,
    /// Of these, the ones of steps that an earlier job had done before this one resumed from it: neither
    /// the time nor the speed below is about them.
    #[serde(default)]
    pub resumed_samples: u64,
    /// Seconds this job trained, evaluations and recoveries included.
    pub training_seconds: f64,
    /// Samples this job consumed per second of `training_seconds`.
    pub samples_per_second: f64,
    /// Ranks at the end.
    pub world_size: usize,
    /// Loss of the last logged step.
    pub final_loss: Option<f64>,
    /// Generations opened because a rank was lost.
    pub recoveries: usize,
    /// Corrupt samples that were replaced.
    pub substituted: u64,
    /// Shards of the training data that break off: their samples up to there were used.
    #[serde(default)]
    pub damaged_shards: u64,
    /// Name of the evaluation set the scores below belong to: the first of the manifest.
    pub eval_set: Option<String>,
    /// Classification of held-out images among all distinct captions.
    pub zero_shot: Option<ZeroShot>,
    /// Retrieval of held-out pairs both ways.
    pub retrieval: Option<Retrieval>,
    /// The same for every evaluation set.
    pub eval_sets: Vec<SetScores>,
    /// URL of the last checkpoint.
    pub checkpoint: Option<String>,
}

/// Summaries of before the field existed were of finished runs only.
fn yes() -> bool {
    true
}

/// `summary.json`'s `zero_shot`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ZeroShot {
    /// Distinct captions.
    pub classes: usize,
    /// Share of images whose own caption is the best match.
    pub top1: f64,
    /// Share of images whose own caption is among the five best.
    pub top5: f64,
}

/// Scores of one evaluation set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SetScores {
    /// The set's name.
    pub name: String,
    /// Its images.
    pub images: usize,
    /// Its samples that could not be decoded.
    pub skipped: usize,
    /// Classification.
    pub zero_shot: ZeroShot,
    /// Retrieval.
    pub retrieval: Retrieval,
}

impl From<&Scores> for SetScores {
    fn from(scores: &Scores) -> Self {
        Self {
            name: scores.name.clone(),
            images: scores.images,
            skipped: scores.skipped,
            zero_shot: ZeroShot { classes: scores.classes, top1: scores.top1, top5: scores.top5 },
            retrieval: scores.retrieval.clone(),
        }
    }
}

impl Summary {
    /// Returns the JSON text of `summary.json`.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self)
            .expect("strings and numbers always serialise; NaN becomes null");
        text.push('\n');
        text
    }

    /// Returns the result in a few lines of plain text, for the log.
    pub fn to_text(&self) -> String {
        let own = match self.resumed_samples {
            0 => String::new(),
            resumed => format!(", {} of them here", self.samples.saturating_sub(resumed)),
        };
        let mut text = format!(
            "{} steps, {} samples{own} in {:.0} s ({:.1} samples/s, world size {})",
            self.steps,
            self.samples,
            self.training_seconds,
            self.samples_per_second,
            self.world_size
        );
        if self.substituted > 0 {
            text.push_str(&format!("\n{} corrupt samples were replaced", self.substituted));
        }
        if self.damaged_shards > 0 {
            text.push_str(&format!("\n{} shards break off", self.damaged_shards));
        }
        for set in &self.eval_sets {
            let shares = |values: &[f64]| {
                let texts = values.iter().map(|value| format!("{:.1} %", value * 100.0));
                texts.collect::<Vec<_>>().join(" / ")
            };
            let (zero_shot, retrieval) = (&set.zero_shot, &set.retrieval);
            text.push_str(&format!(
                "\n{}: zero-shot top-1 / top-5 over {} captions: {}",
                set.name,
                zero_shot.classes,
                shares(&[zero_shot.top1, zero_shot.top5])
            ));
            for (way, ranks) in
                [("image→text", &retrieval.image_to_text), ("text→image", &retrieval.text_to_image)]
            {
                text.push_str(&format!(
                    "\n{}: {way} R@1 / R@5 / R@10: {}",
                    set.name,
                    shares(&[ranks.r1, ranks.r5, ranks.r10])
                ));
            }
        }
        text
    }
}
