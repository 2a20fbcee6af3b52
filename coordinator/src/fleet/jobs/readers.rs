//! Which checkpoints somebody is about to read: retention leaves them.

use ringmaster_checkpoint::step_of;

use super::job::Job;
use super::table::Jobs;

impl Job {
    /// Notes that somebody reads a checkpoint of it.
    pub(crate) fn hold(&mut self, url: String) {
        self.held.push(url);
    }

    /// One reader of a checkpoint has done.
    pub(crate) fn release(&mut self, url: &str) {
        if let Some(index) = self.held.iter().position(|other| other == url) {
            self.held.swap_remove(index);
        }
    }
}

impl Jobs {
    /// What of a job's checkpoints somebody is about to read.
    pub(crate) fn in_use(&self, job_id: &str) -> Vec<String> {
        let mut urls = Vec::new();
        if let Some(job) = self.by_id.get(job_id) {
            urls.extend(job.record.rollback.as_ref().map(|rollback| rollback.url.clone()));
            urls.extend(job.held.iter().cloned());
        }
        for other in self.by_id.values() {
            // Once it has saved, it goes on from there.
            let starts = !other.record.state.is_ended() && other.record.checkpoint_url.is_empty();
            if starts {
                let from = std::iter::once(&other.record.resume_from).chain(&other.spec.pretrained);
                urls.extend(from.filter(|url| job_of(url) == Some(job_id)).cloned());
            }
        }
        urls
    }
}

/// Returns the job that wrote what a URL names: its folder, one of its checkpoints, or a file of one.
fn job_of(url: &str) -> Option<&str> {
    let parts: Vec<&str> = url.trim_end_matches('/').split('/').collect();
    let checkpoint = parts.iter().rposition(|part| step_of(part).is_some());
    let folder = checkpoint.unwrap_or(parts.len()).checked_sub(1)?;
    parts.get(folder).copied()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::spec::JobSpec;
    use super::*;
    use crate::state::{JobRecord, Rollback};

    const STEP: &str = "step-0000001000.g1.7";

    fn job(resume_from: &str) -> Job {
        let record = JobRecord { resume_from: resume_from.to_owned(), ..JobRecord::default() };
        Job::new(record, JobSpec::default())
    }

    #[test]
    fn a_checkpoint_is_of_the_job_whose_folder_it_lies_in_whatever_its_prefix_contains() {
        for place in [
            format!("s3://runs/a-aaaaaa/archive/b-bbbbbb/{STEP}"),
            format!("s3://runs/a-aaaaaa/archive/b-bbbbbb/{STEP}/model.safetensors"),
            "s3://a-aaaaaa/archive/b-bbbbbb/".to_owned(),
            format!("/runs-of-a-aaaaaa/b-bbbbbb/{STEP}/"),
        ] {
            assert_eq!(job_of(&place), Some("b-bbbbbb"), "{place}");
        }
        assert_eq!(job_of(&format!("/runs/a-aaaaaa/{STEP}")), Some("a-aaaaaa"));
        assert_eq!(job_of("/runs/a-aaaaaa-old/latest"), Some("latest"));
        assert_eq!((job_of(""), job_of(STEP)), (Some(""), None));
    }

    #[test]
    fn a_job_that_starts_from_one_checkpoint_keeps_no_other_job_s() {
        let from = format!("s3://runs/a-aaaaaa/archive/b-bbbbbb/{STEP}");
        let mut jobs = Jobs::default();
        jobs.by_id.insert("a-aaaaaa".to_owned(), job(""));
        jobs.by_id.insert("b-bbbbbb".to_owned(), job(""));
        jobs.by_id.insert("heir-cccccc".to_owned(), job(&from));
        assert_eq!(jobs.in_use("a-aaaaaa"), Vec::<String>::new());
        assert_eq!(jobs.in_use("b-bbbbbb"), [from]);
        // What it is rolled back to and what is read of it are its own, wherever they lie.
        let b = jobs.get("b-bbbbbb").unwrap();
        b.record.rollback = Some(Rollback::new("/elsewhere".to_owned(), 9, b.generation()));
        b.hold("/read".to_owned());
        b.hold("/read".to_owned());
        b.release("/read");
        assert_eq!(jobs.in_use("b-bbbbbb")[..2], ["/elsewhere", "/read"]);
    }
}
