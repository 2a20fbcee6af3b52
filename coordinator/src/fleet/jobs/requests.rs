//! What people ask of jobs: to submit one, to cancel it.

use rand::Rng as _;
use ringmaster_manifest::MAX_JOB_NAME;

use super::job::Job;
use super::spec::JobSpec;
use super::table::Jobs;
use crate::fleet::{Batch, Error};
use crate::state::{JobRecord, State};

/// RFC 4648's base 32 in lower case.
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A job as a client hands it in.
#[derive(Debug, Clone)]
pub struct Submission {
    /// The validated `TrainJob` as JSON.
    pub manifest: String,
    /// Name of the manifest file.
    pub file_name: String,
    /// Chosen by the client; a repeated one names the same job.
    pub request_id: String,
    /// Checkpoint URL to start from, or empty.
    pub resume_from: String,
    /// The file as the user wrote it.
    pub manifest_yaml: String,
}

impl Jobs {
    /// Stores and queues a job; returns its id. A request that is repeated makes no second one.
    pub(crate) fn submit(
        &mut self,
        batch: &mut Batch,
        submission: Submission,
    ) -> Result<String, Error> {
        if submission.request_id.is_empty() {
            return Err(Error::Invalid {
                field: "request_id",
                value: "empty".to_owned(),
                constraint: "it must be unique to the submission, so that it can be repeated"
                    .to_owned(),
            });
        }
        if let Some(job_id) = self.requests.get(&submission.request_id) {
            return Ok(job_id.clone());
        }
        let spec = JobSpec::read(&submission.manifest).map_err(|source| Error::Manifest {
            file_name: submission.file_name.clone(),
            source,
        })?;
        check(&spec)?;

        let job_id = self.new_job_id(&spec.name);
        self.last_sequence += 1;
        let record = new_record(&job_id, self.last_sequence, submission, &spec, batch.now.unix_ms);
        self.requests.insert(record.request_id.clone(), job_id.clone());
        let mut job = Job::new(record, spec);
        let message = format!("queued with {} ranks", job.record.ranks);
        job.event(batch, "submitted", message);
        let announced = job_id.clone();
        batch.effect(move |logs| logs.announce(&announced, false));
        self.by_id.insert(job_id.clone(), job);
        Ok(job_id)
    }

    fn new_job_id(&self, name: &str) -> String {
        loop {
            let mut random = rand::rng();
            let suffix: String =
                (0..6).map(|_| char::from(BASE32[random.random_range(0..32)])).collect();
            let job_id = format!("{name}-{suffix}");
            if !self.by_id.contains_key(&job_id) {
                return job_id;
            }
        }
    }
}

impl Job {
    /// Asks it to checkpoint and stop for good.
    pub(crate) fn cancel(&mut self, batch: &mut Batch, reason: String) {
        let was_asked = self.record.cancel_reason.is_some();
        if self.record.state.is_ended() || was_asked || self.is_finished() {
            return;
        }
        let reason = if reason.is_empty() { "cancelled by a client".to_owned() } else { reason };
        self.record.cancel_reason = Some(reason.clone());
        self.kill_at = Some(batch.now.at + batch.config.grace);
        self.event(batch, "cancelling", reason.clone());
        if self.record.state.is_placed() {
            self.record.reason = format!("stopping: {reason}");
            self.refuse_waiting(batch);
        } else {
            self.end(batch, State::Cancelled, &reason);
        }
    }
}

/// The name becomes part of ids, files and URLs, so it is checked again here.
fn check(spec: &JobSpec) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if (1..=MAX_JOB_NAME).contains(&spec.name.len()) && spec.name.chars().all(plain) {
        return Ok(());
    }
    Err(Error::Invalid {
        field: "metadata.name",
        value: format!("{:?}", spec.name),
        constraint: format!("use 1 to {MAX_JOB_NAME} lower-case letters, digits and dashes"),
    })
}

fn new_record(
    job_id: &str,
    sequence: u64,
    submission: Submission,
    spec: &JobSpec,
    now_ms: i64,
) -> JobRecord {
    JobRecord {
        job_id: job_id.to_owned(),
        sequence,
        name: spec.name.clone(),
        reason: "waits for its first placement".to_owned(),
        request_id: submission.request_id,
        manifest: submission.manifest,
        manifest_yaml: submission.manifest_yaml,
        file_name: submission.file_name,
        resume_from: submission.resume_from,
        priority: spec.priority,
        labels: spec.labels.clone(),
        ranks: spec.ranks,
        submitted_at_ms: now_ms,
        seats: vec![None; spec.ranks as usize],
        slots: vec![0; spec.ranks as usize],
        done: vec![false; spec.ranks as usize],
        ..JobRecord::default()
    }
}
