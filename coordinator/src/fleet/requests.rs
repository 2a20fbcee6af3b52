//! What people ask: submit, list, watch, cancel.

use std::collections::BTreeSet;

use rand::Rng as _;
use ringmaster_manifest::MAX_JOB_NAME;
use ringmaster_proto::v1;
use tokio::sync::mpsc;

use super::cluster::Cluster;
use super::handle::Submission;
use super::job::Job;
use super::wants::Wants;
use super::{Error, view};
use crate::state::{JobRecord, State};

/// Updates a watcher may be behind before it is given up.
const WATCH_QUEUE: usize = 1024;
/// RFC 4648's base 32 in lower case.
const BASE32: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

impl Cluster {
    pub(super) fn submit(&mut self, submission: Submission) -> Result<String, Error> {
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
        let wants = Wants::read(&submission.manifest).map_err(|source| Error::Manifest {
            file_name: submission.file_name.clone(),
            source,
        })?;
        check(&wants)?;

        let job_id = self.new_job_id(&wants.name);
        self.last_sequence += 1;
        let record =
            new_record(&job_id, self.last_sequence, submission, &wants, self.ledger.now.unix_ms);
        self.requests.insert(record.request_id.clone(), job_id.clone());
        let mut job = Job::new(record, wants);
        let message = format!("queued with {} ranks", job.record.ranks);
        self.ledger.event(&mut job, "submitted", message);
        let announced = job_id.clone();
        self.ledger.effect(move |logs| logs.announce(&announced, false));
        self.jobs.insert(job_id.clone(), job);
        Ok(job_id)
    }

    fn new_job_id(&self, name: &str) -> String {
        loop {
            let mut random = rand::rng();
            let suffix: String =
                (0..6).map(|_| char::from(BASE32[random.random_range(0..32)])).collect();
            let job_id = format!("{name}-{suffix}");
            if !self.jobs.contains_key(&job_id) {
                return job_id;
            }
        }
    }

    pub(super) fn list(&self, include_ended: bool) -> Vec<v1::Job> {
        let mut jobs: Vec<&Job> = self
            .jobs
            .values()
            .filter(|job| include_ended || !job.record.state.is_ended())
            .collect();
        jobs.sort_by_key(|job| job.record.sequence);
        jobs.into_iter().map(view::job).collect()
    }

    pub(super) fn watch(&mut self, job_id: &str) -> Result<mpsc::Receiver<v1::JobUpdate>, Error> {
        let job = self.job(job_id)?;
        let (sender, receiver) = mpsc::channel(WATCH_QUEUE);
        let first = v1::JobUpdate { job: Some(view::job(job)), event: None };
        sender.try_send(first).expect("a new channel has room");
        if !job.record.state.is_ended() {
            job.watchers.push(sender);
        }
        Ok(receiver)
    }

    pub(super) fn cancel(&mut self, job_id: &str, reason: String) -> Result<v1::Job, Error> {
        let unknown = || Error::UnknownJob { job_id: job_id.to_owned() };
        let job = self.jobs.get_mut(job_id).ok_or_else(unknown)?;
        let was_asked = job.record.cancel_reason.is_some();
        if job.record.state.is_ended() || was_asked || job.is_finished() {
            return Ok(view::job(job));
        }
        let reason = if reason.is_empty() { "cancelled by a client".to_owned() } else { reason };
        job.record.cancel_reason = Some(reason.clone());
        job.kill_at = Some(self.ledger.now.at + self.config.grace);
        self.ledger.event(job, "cancelling", reason.clone());
        if !job.record.state.is_placed() {
            self.ledger.end(job, State::Cancelled, &reason);
        } else {
            job.record.reason = format!("stopping: {reason}");
            self.ledger.refuse_waiting(job);
        }
        Ok(view::job(job))
    }

    pub(super) fn list_nodes(&self) -> Vec<v1::Node> {
        let known: BTreeSet<&String> = self.nodes.keys().chain(self.closures.keys()).collect();
        let taken = self.taken_seats();
        known.into_iter().map(|name| self.view_node(name, &taken)).collect()
    }
}

/// The name becomes part of ids, files and URLs, so it is checked again here.
fn check(wants: &Wants) -> Result<(), Error> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if (1..=MAX_JOB_NAME).contains(&wants.name.len()) && wants.name.chars().all(plain) {
        return Ok(());
    }
    Err(Error::Invalid {
        field: "metadata.name",
        value: format!("{:?}", wants.name),
        constraint: format!("use 1 to {MAX_JOB_NAME} lower-case letters, digits and dashes"),
    })
}

fn new_record(
    job_id: &str,
    sequence: u64,
    submission: Submission,
    wants: &Wants,
    now_ms: i64,
) -> JobRecord {
    JobRecord {
        job_id: job_id.to_owned(),
        sequence,
        name: wants.name.clone(),
        state: State::Queued,
        reason: "waits for its first placement".to_owned(),
        request_id: submission.request_id,
        manifest: submission.manifest,
        manifest_yaml: submission.manifest_yaml,
        file_name: submission.file_name,
        resume_from: submission.resume_from,
        priority: wants.priority,
        labels: wants.labels.clone(),
        ranks: wants.ranks,
        submitted_at_ms: now_ms,
        started_at_ms: 0,
        ended_at_ms: 0,
        generation: None,
        formed: false,
        recoveries: 0,
        without_progress: 0,
        high_step: 0,
        cancel_reason: None,
        summary_json: String::new(),
        checkpoint_step: 0,
        checkpoint_url: String::new(),
        numeric_plan: None,
        threads: 0,
        seats: vec![None; wants.ranks as usize],
        slots: vec![0; wants.ranks as usize],
        done: vec![false; wants.ranks as usize],
        ring: Vec::new(),
        halt: None,
        rollback: None,
    }
}
