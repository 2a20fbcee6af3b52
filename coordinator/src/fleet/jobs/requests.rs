//! What people ask of jobs: to submit one, to cancel it.

use rand::Rng as _;
use ringmaster_manifest::spec::TrainJob;
use ringmaster_proto::v1;

use super::job::Job;
use super::spec::JobSpec;
use super::table::Jobs;
use crate::fleet::{Batch, Error};
use crate::state::{JobRecord, State};

/// RFC 4648's base 32 in lower case.
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A job that a client hands in, and whose manifest has been read.
#[derive(Debug, Clone)]
pub struct Submission {
    spec: JobSpec,
    /// The job as it is stored.
    manifest: String,
    /// Name of the manifest file.
    file_name: String,
    /// Chosen by the client; a repeated one names the same job.
    request_id: String,
    /// Checkpoint URL to start from, or empty.
    resume_from: String,
    /// The file as somebody wrote it.
    manifest_yaml: String,
}

impl Submission {
    /// Returns the submission of a job, which is what the manifest of `request` means.
    pub fn new(job: TrainJob, request: v1::SubmitRequest) -> Self {
        let v1::SubmitRequest { file_name, request_id, resume_from, manifest_yaml, .. } = request;
        let manifest = ringmaster_manifest::to_json(&job);
        let spec = JobSpec::of(job);
        Self { spec, manifest, file_name, request_id, resume_from, manifest_yaml }
    }
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
        if let Some(job_id) = self.submitted(&submission.request_id) {
            return Ok(job_id);
        }
        let spec = submission.spec.clone();
        let job_id = self.new_job_id(&spec.name);
        self.last_sequence += 1;
        let record = new_record(&job_id, self.last_sequence, submission, batch.now.unix_ms);
        self.requests.insert(record.request_id.clone(), job_id.clone());
        let mut job = Job::new(record, spec);
        let message = format!("queued with {} ranks", job.record.ranks);
        job.event(batch, "submitted", message);
        let announced = job_id.clone();
        batch.effect(move |logs| logs.announce(&announced, false));
        self.by_id.insert(job_id.clone(), job);
        Ok(job_id)
    }

    /// Returns the id of the job that a request has made.
    pub(crate) fn submitted(&self, request_id: &str) -> Option<String> {
        self.requests.get(request_id).cloned()
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
        self.begin_to_stop(batch.now.at);
        self.event(batch, "cancelling", reason.clone());
        if self.record.state.is_placed() {
            self.record.reason = format!("stopping: {reason}");
            self.refuse_waiting(batch);
        } else {
            self.end(batch, State::Cancelled, &reason);
        }
    }
}

fn new_record(job_id: &str, sequence: u64, submission: Submission, now_ms: i64) -> JobRecord {
    let spec = submission.spec;
    JobRecord {
        job_id: job_id.to_owned(),
        sequence,
        name: spec.name,
        reason: "waits for its first placement".to_owned(),
        request_id: submission.request_id,
        manifest: submission.manifest,
        manifest_yaml: submission.manifest_yaml,
        file_name: submission.file_name,
        resume_from: submission.resume_from,
        priority: spec.priority,
        labels: spec.labels,
        ranks: spec.ranks,
        submitted_at_ms: now_ms,
        seats: vec![None; spec.ranks as usize],
        slots: vec![0; spec.ranks as usize],
        done: vec![false; spec.ranks as usize],
        ..JobRecord::default()
    }
}
