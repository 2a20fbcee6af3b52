//! One manifest in a folder of its own, the commands that run it, and what they leave behind.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

use crate::binaries::binaries;
use crate::s3::Bucket;
use crate::tiny;

/// A tiny job and its folder.
#[derive(Debug)]
pub struct Job {
    folder: TempDir,
    /// Ranks.
    pub ranks: u32,
    /// Fewest ranks it may go on with; none: all.
    pub min_ranks: Option<u32>,
    /// `precision`.
    pub precision: &'static str,
    /// Samples of a step.
    pub global: u32,
    /// Lanes of the data order.
    pub lanes: u32,
    /// Steps.
    pub steps: u64,
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Steps between evaluations, if any before the last.
    pub eval_every: Option<u64>,
    /// `siglip` or `infonce`.
    pub loss: &'static str,
    /// `micro_per_rank`, if any.
    pub micro: Option<u32>,
    /// Shard pattern of the training data.
    pub train: String,
    /// Further keys of `data`, each after a comma.
    pub data_more: String,
    /// Shard pattern of held-out data; empty for none.
    pub held_out: String,
    /// `max_corrupt`.
    pub max_corrupt: f64,
    /// `model.pretrained`, if any.
    pub pretrained: Option<String>,
    /// Further keys of `model`, each after a comma.
    pub model_more: String,
    /// Whether a checkpoint that is due while the last one is being written waits. By default it does:
    /// steps of a tiny job take milliseconds, and tests count on its checkpoints.
    pub when_busy: &'static str,
    /// More of `checkpoint`, as in `, keep_last: 1`.
    pub checkpoint_more: String,
    /// Where checkpoints go, if not into the job's folder.
    pub uri: Option<String>,
    /// Variables for the command.
    pub env: BTreeMap<String, String>,
}

impl Default for Job {
    fn default() -> Self {
        Self::new()
    }
}

impl Job {
    /// Returns a job of 20 steps on two ranks over 480 fresh samples.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let train = tiny::write_shards(&folder.path().join("train"), 12, &[]);
        let models = tiny::write_models(folder.path());
        let env = [("RINGMASTER_MODELS".to_owned(), models.display().to_string())].into();
        Self {
            folder,
            ranks: 2,
            min_ranks: None,
            precision: "fp32",
            global: 48,
            lanes: 16,
            steps: 20,
            checkpoint_every: 1000,
            eval_every: None,
            loss: "siglip",
            micro: None,
            train,
            data_more: String::new(),
            held_out: String::new(),
            max_corrupt: 0.01,
            pretrained: None,
            model_more: String::new(),
            when_busy: "wait",
            checkpoint_more: String::new(),
            uri: None,
            env,
        }
    }

    /// Returns the job's folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns the manifest's text.
    pub fn manifest(&self) -> String {
        let micro = self.micro.map_or_else(String::new, |m| format!(", micro_per_rank: {m}"));
        let pretrained = self.pretrained.as_ref();
        let pretrained =
            pretrained.map_or_else(String::new, |url| format!(", pretrained: \"{url}\""));
        let eval = match self.held_out.as_str() {
            "" => "{}".to_owned(),
            data => {
                let every =
                    self.eval_every.map_or_else(String::new, |n| format!(", every_steps: {n}"));
                format!("{{zero_shot: [{{name: shapes, data: \"{data}\"}}]{every}}}")
            }
        };
        format!(
            "apiVersion: ringmaster/v1\n\
             kind: TrainJob\n\
             metadata: {{name: tiny}}\n\
             spec:\n  \
               resources: {{ranks: {ranks}, min_ranks: {min_ranks}, threads_per_rank: 1}}\n  \
               model: {{name: {model}, precision: {precision}{pretrained}{model_more}}}\n  \
               data: {{train: \"{train}\", seed: 3, lanes: {lanes}, max_corrupt: {max_corrupt}{data_more}, \
                       aug_cfg: {{scale: [0.6, 1.0], hflip_prob: 0.5}}}}\n  \
               loss: {{kind: {loss}}}\n  \
               optimizer: {{lr: 2.0e-3, grad_clip_norm: 1.0}}\n  \
               schedule: {{warmup_steps: 4, steps: {steps}}}\n  \
               batch: {{global: {global}{micro}}}\n  \
               checkpoint: {{uri: \"{uri}\", every_steps: {every}, when_busy: {when_busy}{more}}}\n  \
               eval: {eval}\n  \
               report_to: [tensorboard]\n",
            ranks = self.ranks,
            min_ranks = self.min_ranks.unwrap_or(self.ranks),
            model = tiny::MODEL,
            precision = self.precision,
            pretrained = pretrained,
            model_more = self.model_more,
            global = self.global,
            lanes = self.lanes,
            train = self.train,
            max_corrupt = self.max_corrupt,
            data_more = self.data_more,
            loss = self.loss,
            steps = self.steps,
            uri = self.uri(),
            every = self.checkpoint_every,
            when_busy = self.when_busy,
            more = self.checkpoint_more,
        )
    }

    fn uri(&self) -> String {
        let inside = || self.folder().join("checkpoints").display().to_string();
        self.uri.clone().unwrap_or_else(inside)
    }

    /// Lets checkpoints go to a bucket, by the environment that leads there.
    pub fn save_to(&mut self, bucket: &Bucket) {
        self.uri = Some(bucket.url("runs"));
        self.env.extend(bucket.environment());
    }

    /// Writes the manifest and returns its path.
    pub fn write_manifest(&self) -> PathBuf {
        let path = self.folder().join("job.yaml");
        std::fs::write(&path, self.manifest()).expect("a temporary folder is writable");
        path
    }

    /// Returns `ringmaster train JOB.yaml …`, not yet started.
    pub fn train_command(&self, more: &[&str]) -> Command {
        let mut command = Command::new(&binaries().ringmaster);
        command
            .arg("train")
            .arg(self.write_manifest())
            .arg("--runs-dir")
            .arg(self.folder().join("runs"))
            .args(["--log-interval", "1"])
            .args(more)
            .envs(&self.env)
            .current_dir(self.folder())
            .stdin(Stdio::null());
        command
    }

    /// Trains to the end and returns what the run left.
    ///
    /// # Panics
    /// When the command fails; with everything it and its ranks said.
    pub fn train(&self, more: &[&str]) -> Run {
        let output = self.train_command(more).output().expect("ringmaster starts");
        assert!(output.status.success(), "{}", self.transcript(&output));
        self.latest_run()
    }

    /// Everything a command printed.
    pub fn transcript(&self, output: &Output) -> String {
        format!(
            "{}\n--- stdout\n{}\n--- stderr\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    }

    /// Returns what the newest run left behind.
    pub fn latest_run(&self) -> Run {
        let folder = std::fs::canonicalize(self.folder().join("runs/latest"))
            .expect("a run leaves runs/latest");
        Run { folder }
    }
}

/// A run folder.
#[derive(Debug)]
pub struct Run {
    /// Its path.
    pub folder: PathBuf,
}

impl Run {
    /// Returns `summary.json`.
    pub fn summary(&self) -> Value {
        let text = std::fs::read_to_string(self.folder.join("summary.json"));
        serde_json::from_str(&text.expect("summary.json exists")).expect("summary.json is JSON")
    }

    /// Returns the lines of `metrics.jsonl` that carry training metrics, in order.
    pub fn metrics(&self) -> Vec<Value> {
        self.records().into_iter().filter(|line| line.get("train/loss").is_some()).collect()
    }

    /// Returns the steps at which the model was evaluated, in the order they were written.
    pub fn evaluations(&self) -> Vec<u64> {
        let is_evaluation = |line: &Value| {
            line.as_object().is_some_and(|fields| fields.keys().any(|key| key.starts_with("val/")))
        };
        self.records()
            .iter()
            .filter(|line| is_evaluation(line))
            .map(|line| line["step"].as_u64().expect("a step is a number"))
            .collect()
    }

    /// Returns the whole lines of `metrics.jsonl`: of a run that trains, the last may be half-written.
    fn records(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(self.folder.join("metrics.jsonl"))
            .expect("metrics.jsonl exists");
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
    }

    /// Returns what the ranks logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("ranks.log")).expect("ranks.log exists")
    }

    /// Returns (step, loss, digest of the samples and their order) of every step.
    pub fn curve(&self) -> Vec<(u64, f64, String)> {
        let metrics = self.metrics();
        let text = |line: &Value| line["order_digest"].as_str().unwrap_or_default().to_owned();
        metrics
            .iter()
            .map(|line| {
                let step = line["step"].as_u64().expect("a step is a number");
                (step, line["train/loss"].as_f64().expect("a loss is a number"), text(line))
            })
            .collect()
    }

    /// Returns the bytes of every tensor of the final checkpoint, weights and optimizer.
    pub fn final_state(&self) -> BTreeMap<String, Vec<u8>> {
        let summary = self.summary();
        let url = summary["checkpoint"].as_str().expect("a finished run has a checkpoint");
        let folder = PathBuf::from(url.strip_prefix("file://").unwrap_or(url));
        let mut files = BTreeMap::new();
        for entry in std::fs::read_dir(&folder).expect("the checkpoint's folder exists") {
            let path = entry.expect("a readable folder").path();
            let name = path.file_name().expect("a file has a name").to_string_lossy().into_owned();
            if name.ends_with(".safetensors") {
                files.insert(name, std::fs::read(&path).expect("a readable file"));
            }
        }
        assert!(files.contains_key("model.safetensors"), "{folder:?} holds {:?}", files.keys());
        files
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_line_that_is_being_written_is_no_line_yet() {
        let folder = tempfile::tempdir().unwrap();
        let run = Run { folder: folder.path().to_owned() };
        let text = "{\"step\":1,\"train/loss\":2.5,\"order_digest\":\"x\"}\n\
                    {\"step\":1,\"val/top1\":0.5}\n{\"step\":2,\"train/lo";
        std::fs::write(folder.path().join("metrics.jsonl"), text).unwrap();
        assert_eq!(run.curve(), [(1, 2.5, "x".to_owned())]);
        assert_eq!(run.evaluations(), [1]);
        std::fs::write(folder.path().join("metrics.jsonl"), "{\"st").unwrap();
        assert!(run.metrics().is_empty());
    }
}
