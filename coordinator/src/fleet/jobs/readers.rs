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
                let from =
                    std::iter::once(&other.record.resume_from).chain(&other.wants.pretrained);
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
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_of_the_job_whose_folder_it_lies_in_whatever_its_prefix_contains() {
        let step = "step-0000001000.g1.7";
        for place in [
            format!("s3://runs/a-aaaaaa/archive/b-bbbbbb/{step}"),
            format!("s3://runs/a-aaaaaa/archive/b-bbbbbb/{step}/model.safetensors"),
            "s3://a-aaaaaa/archive/b-bbbbbb/".to_owned(),
            format!("/runs-of-a-aaaaaa/b-bbbbbb/{step}/"),
        ] {
            assert_eq!(job_of(&place), Some("b-bbbbbb"), "{place}");
        }
        assert_eq!(job_of(&format!("/runs/a-aaaaaa/{step}")), Some("a-aaaaaa"));
        assert_eq!(job_of("/runs/a-aaaaaa-old/latest"), Some("latest"));
        assert_eq!((job_of(""), job_of(step)), (Some(""), None));
    }
}
