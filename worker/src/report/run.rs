//! The run folder: opened by rank 0, continued by whichever process becomes rank 0 next.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use ringmaster_manifest::spec::{LossKind, ReportTo, TrainJob};
use ringmaster_proto::v1::{Generation, StepMetrics};
use serde::{Deserialize, Serialize};

use super::page;
use super::records::{self, Line, Records};
use super::summary::{SetScores, Summary};
use super::tensorboard::EventWriter;
use crate::eval::Scores;

/// What a run folder needs to know to be opened.
#[derive(Debug)]
pub struct Options<'a> {
    /// Folder that holds run folders; created if needed.
    pub runs_dir: &'a Path,
    /// Id of the job: the folder's name.
    pub job_id: &'a str,
    /// Generation that opens it.
    pub generation: Generation,
    /// The job.
    pub job: &'a TrainJob,
    /// Ranks of this generation.
    pub world_size: usize,
    /// Versions worth keeping beside a result, by name: libtorch, build id, CPU capability …
    pub versions: BTreeMap<String, String>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Ending {
    /// False for a run that was stopped before its last step.
    pub finished: bool,
    /// Steps applied.
    pub steps: u64,
    /// Samples consumed, those before a resume included.
    pub samples: u64,
    /// Of these, the ones of steps that an earlier job had done before this one resumed from it.
    pub resumed_samples: u64,
    /// Seconds trained; none to take the time from the folder's first opening until now, without the
    /// time in which the job was stopped.
    pub training_seconds: Option<f64>,
    /// Corrupt samples replaced in all steps applied.
    pub substituted: u64,
    /// Shards of the training data that break off.
    pub damaged_shards: u64,
    /// URL of the last checkpoint.
    pub checkpoint: Option<String>,
}

/// A run folder that cannot be read or written.
#[expect(missing_docs, reason = "the message of each variant says what its fields are")]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An operation on one of its files failed.
    #[error("cannot {doing} {}", path.display())]
    Io { doing: &'static str, path: PathBuf, source: io::Error },
    /// A newer generation has opened the folder: this process was taken for lost.
    #[error("a newer generation writes to {}", folder.display())]
    Superseded { folder: PathBuf },
}

/// `job.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Id of the job.
    pub job_id: String,
    /// Seconds since 1970 when the folder was first opened.
    pub started: f64,
    /// Seconds since 1970 when the job was stopped before its end; absent while it trains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<f64>,
    /// Seconds for which it was stopped since it started.
    #[serde(default)]
    pub idle: f64,
    /// Generations that trained, oldest first.
    pub generations: Vec<String>,
    /// Versions of the process that opened it last.
    pub versions: BTreeMap<String, String>,
    /// The validated manifest.
    pub manifest: TrainJob,
}

impl JobRecord {
    /// How long the job has been stopped, if it goes on now.
    fn idle_until_now(&self) -> f64 {
        self.idle + self.stopped.map_or(0.0, |stopped| (now() - stopped).max(0.0))
    }
}

/// An open run folder.
#[derive(Debug)]
pub struct Run {
    folder: PathBuf,
    metrics: File,
    events: Option<EventWriter>,
    record: JobRecord,
    world_size: usize,
    last: Option<StepMetrics>,
    /// When `job.json` was written by this process, and how long it is: another generation changes it.
    entered: Option<(SystemTime, u64)>,
    /// Newest scores of every set, in the order of the manifest.
    scores: Vec<Scores>,
}

impl Run {
    /// Opens the job's folder, new or again, and points `latest` at it.
    ///
    /// # Errors
    /// When a file cannot be created or written.
    pub fn open(options: Options<'_>) -> Result<Self, Error> {
        let folder = options.runs_dir.join(options.job_id);
        fs::create_dir_all(&folder).map_err(failed("create", &folder))?;
        let metrics = open_lines(&folder.join("metrics.jsonl"))?;
        let events = if options.job.report_to.contains(&ReportTo::Tensorboard) {
            let events_folder = folder.join("tensorboard");
            fs::create_dir_all(&events_folder).map_err(failed("create", &events_folder))?;
            let created = EventWriter::create(&events_folder);
            Some(created.map_err(failed("create an event file in", &events_folder))?)
        } else {
            None
        };
        let mut versions = options.versions;
        versions
            .entry("ringmaster".to_owned())
            .or_insert_with(|| env!("CARGO_PKG_VERSION").to_owned());
        let earlier = read_record(&folder.join("job.json"));
        let record = JobRecord {
            job_id: options.job_id.to_owned(),
            started: earlier.as_ref().map_or_else(now, |record| record.started),
            stopped: None,
            idle: earlier.as_ref().map_or(0.0, JobRecord::idle_until_now),
            generations: earlier.map_or_else(Vec::new, |record| record.generations),
            versions,
            manifest: options.job.clone(),
        };
        let world_size = options.world_size;
        let mut run = Self {
            folder,
            metrics,
            events,
            record,
            world_size,
            last: None,
            entered: None,
            scores: Vec::new(),
        };
        run.enter(options.generation, world_size)?;
        point_latest(options.runs_dir, options.job_id)?;
        Ok(run)
    }

    /// Returns the folder's path.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Notes that training goes on in `generation` with `world_size` ranks.
    ///
    /// # Errors
    /// When `job.json` cannot be written.
    pub fn enter(&mut self, generation: Generation, world_size: usize) -> Result<(), Error> {
        self.world_size = world_size;
        let generation = generation.to_string();
        if !self.record.generations.contains(&generation) {
            self.record.generations.push(generation);
        }
        self.write_record()?;
        self.entered = self.record_on_disk();
        Ok(())
    }

    fn write_record(&self) -> Result<(), Error> {
        let mut text = serde_json::to_string_pretty(&self.record)
            .expect("a job record has string keys and finite numbers");
        text.push('\n');
        self.write("job.json", text.as_bytes())
    }

    /// Returns the newest step whose training metrics are in the folder, whoever wrote them.
    ///
    /// # Errors
    /// When `metrics.jsonl` cannot be read.
    pub fn last_logged_step(&self) -> Result<u64, Error> {
        let path = self.folder.join("metrics.jsonl");
        let records = Records::read(&path).map_err(failed("read", &path))?;
        Ok(records.last_step())
    }

    /// Returns how many evaluation sets have scores at `step` in the folder, whoever wrote them.
    ///
    /// # Errors
    /// When `metrics.jsonl` cannot be read.
    pub fn evaluations_at(&self, step: u64) -> Result<usize, Error> {
        let path = self.folder.join("metrics.jsonl");
        let records = Records::read(&path).map_err(failed("read", &path))?;
        Ok(records.evals.iter().filter(|line| line.step == step).count())
    }

    /// Appends the metrics of a training step.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn step(&mut self, metrics: &StepMetrics) -> Result<(), Error> {
        self.last = Some(*metrics);
        let values = records::step_metrics(metrics, self.world_size);
        let order = format!("{:016x}", metrics.order_digest);
        self.append(metrics.step, metrics.samples, Some(order), values)
    }

    /// Appends the scores of an evaluation after `step`, and after so many samples.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn eval(&mut self, step: u64, samples: u64, scores: &Scores) -> Result<(), Error> {
        let only_set = self.record.manifest.eval.zero_shot.len() <= 1;
        self.append(step, samples, None, records::eval_metrics(scores, only_set))?;
        match self.scores.iter_mut().find(|known| known.name == scores.name) {
            Some(known) => *known = scores.clone(),
            None => self.scores.push(scores.clone()),
        }
        Ok(())
    }

    /// Writes `summary.json` and `report.html` and returns the summary.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn finish(mut self, ending: &Ending) -> Result<Summary, Error> {
        self.check_current()?;
        let metrics_path = self.folder.join("metrics.jsonl");
        self.metrics.flush().map_err(failed("write", &metrics_path))?;
        let records = Records::read(&metrics_path).map_err(failed("read", &metrics_path))?;
        let summary = self.summary(ending, &records);
        if !ending.finished {
            self.record.stopped = Some(now());
            self.write_record()?;
        }
        self.write("summary.json", summary.to_json().as_bytes())?;
        let page = page::render(&page::Content {
            summary: &summary,
            record: &self.record,
            records: &records,
            scores: &self.scores,
            ended: now(),
        });
        self.write("report.html", page.as_bytes())?;
        Ok(summary)
    }

    fn summary(&self, ending: &Ending, records: &Records) -> Summary {
        let job = &self.record.manifest;
        let trained = || now() - self.record.started - self.record.idle;
        let seconds = ending.training_seconds.unwrap_or_else(trained);
        let own_samples = ending.samples.saturating_sub(ending.resumed_samples) as f64;
        let sets: Vec<SetScores> = self.scores.iter().map(SetScores::from).collect();
        let last_line = records.steps.last();
        Summary {
            job_id: self.record.job_id.clone(),
            name: job.name.clone(),
            model: job.model.name.clone(),
            loss: match job.loss.kind {
                LossKind::Siglip => "siglip".to_owned(),
                LossKind::Infonce => "infonce".to_owned(),
            },
            finished: ending.finished,
            steps: ending.steps,
            samples: ending.samples,
            resumed_samples: ending.resumed_samples,
            training_seconds: seconds,
            samples_per_second: if seconds > 0.0 { own_samples / seconds } else { 0.0 },
            world_size: self.world_size,
            final_loss: last_line.and_then(|line| line.get("train/loss")),
            recoveries: self.record.generations.len().saturating_sub(1),
            substituted: ending.substituted,
            damaged_shards: ending.damaged_shards,
            eval_set: sets.first().map(|set| set.name.clone()),
            zero_shot: sets.first().map(|set| set.zero_shot.clone()),
            retrieval: sets.first().map(|set| set.retrieval.clone()),
            eval_sets: sets,
            checkpoint: ending.checkpoint.clone(),
        }
    }

    /// Fails once a newer generation has entered the folder.
    ///
    /// A rank that was cut off may complete the step it was in from what was already on its way, when
    /// its network comes back: the others have done that step again by then, and written it down.
    fn check_current(&self) -> Result<(), Error> {
        let found = self.record_on_disk();
        if found.is_some() && found != self.entered {
            Err(Error::Superseded { folder: self.folder.clone() })
        } else {
            Ok(())
        }
    }

    fn record_on_disk(&self) -> Option<(SystemTime, u64)> {
        let about = fs::metadata(self.folder.join("job.json")).ok()?;
        Some((about.modified().ok()?, about.len()))
    }

    fn append(
        &mut self,
        step: u64,
        samples: u64,
        order_digest: Option<String>,
        metrics: BTreeMap<String, Option<f64>>,
    ) -> Result<(), Error> {
        self.check_current()?;
        let generation = self.record.generations.last().cloned().unwrap_or_default();
        let line = Line { step, samples, generation, time: now(), order_digest, metrics };
        let mut text = serde_json::to_string(&line).expect("a line has finite numbers only");
        text.push('\n');
        // One write per line: a killed process leaves at most one torn line, at the end.
        self.metrics
            .write_all(text.as_bytes())
            .map_err(failed("append to", &self.folder.join("metrics.jsonl")))?;
        if let Some(events) = &mut self.events {
            let written = events.scalars(line.time, step, line.finite());
            written.map_err(failed("append to", events.path()))?;
        }
        Ok(())
    }

    /// Replaces a file of the folder at once: readers see the old or the new one.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        let path = self.folder.join(name);
        let temporary = self.folder.join(format!(".{name}.{}", std::process::id()));
        fs::write(&temporary, bytes).map_err(failed("write", &temporary))?;
        fs::rename(&temporary, &path).map_err(failed("replace", &path))
    }
}

/// Opens a file of lines for appending; a torn last line is ended first.
fn open_lines(path: &Path) -> Result<File, Error> {
    let mut file = OpenOptions::new()
        .create(true)
        .read(true)
        .append(true)
        .open(path)
        .map_err(failed("open", path))?;
    let mut last = [b'\n'];
    if file.seek(SeekFrom::End(-1)).is_ok() {
        file.read_exact(&mut last).map_err(failed("read", path))?;
    }
    if last != [b'\n'] {
        file.write_all(b"\n").map_err(failed("append to", path))?;
    }
    Ok(file)
}

/// Returns an earlier `job.json`; an unreadable one counts as none.
fn read_record(path: &Path) -> Option<JobRecord> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Points `runs/latest` at a run folder, at once.
fn point_latest(runs_dir: &Path, job_id: &str) -> Result<(), Error> {
    let (link, temporary) =
        (runs_dir.join("latest"), runs_dir.join(format!(".latest.{}", std::process::id())));
    let _ = fs::remove_file(&temporary);
    std::os::unix::fs::symlink(job_id, &temporary).map_err(failed("link", &temporary))?;
    fs::rename(&temporary, &link).map_err(failed("replace", &link))
}

fn failed(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { doing, path, source }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |elapsed| elapsed.as_secs_f64())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
#[path = "run_tests.rs"]
mod tests;
