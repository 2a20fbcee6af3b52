//! `ringmaster checkpoints`: looking at checkpoints wherever they lie, checking and moving them.
//!
//! Files in reading order: here who answers and what URLs and paths mean; [`show`] (`ls` and
//! `describe`), [`verify`], [`change`] (`rm`, `copy`, `export`) and [`bar`] (how far it is).

mod bar;
mod change;
mod show;
mod verify;

use std::path::Path;

use ringmaster_checkpoint::browse::{Checkpoint, JobFolder, Target};

use super::args::CheckpointsCommand;
use super::error::Error;
use super::location::location;

/// Does what was asked for.
pub(crate) async fn run(command: &CheckpointsCommand) -> Result<(), Error> {
    match command {
        CheckpointsCommand::Ls(args) => show::ls(args).await,
        CheckpointsCommand::Describe(args) => show::describe(args).await,
        CheckpointsCommand::Verify(args) => verify::verify(args).await,
        CheckpointsCommand::Rm(args) => change::rm(args).await,
        CheckpointsCommand::Copy(args) => change::copy(args).await,
        CheckpointsCommand::Export(args) => change::export(args).await,
    }
}

/// Opens what a person named.
async fn open(given: &str) -> Result<Target, Error> {
    Ok(Target::open(&location(given)?).await?)
}

/// Returns the one checkpoint that was named: itself, or the newest complete one of a job.
async fn one(given: &str) -> Result<(JobFolder, Checkpoint), Error> {
    match open(given).await? {
        Target::One(job, checkpoint) => Ok((job, *checkpoint)),
        Target::Job(job) => {
            let newest = job.newest().await?;
            let nothing = || Error::Checkpoints {
                url: given.to_owned(),
                reason: "the job has no complete checkpoint".to_owned(),
                remedy: "`ringmaster checkpoints ls` shows what there is".to_owned(),
            };
            let checkpoint = newest.ok_or_else(nothing)?;
            Ok((job, checkpoint))
        }
        Target::Jobs(jobs) => Err(several(given, &jobs)),
    }
}

/// Somebody named a folder of jobs where one job or checkpoint is wanted.
fn several(given: &str, jobs: &[JobFolder]) -> Error {
    let example = jobs.first().map_or_else(String::new, |job| shown(job.url()));
    Error::Checkpoints {
        url: given.to_owned(),
        reason: format!("a folder of {} jobs", jobs.len()),
        remedy: format!("name one of them, as {example}"),
    }
}

/// Returns a URL as a person would write it here: a path where it is one, relative if it is below.
fn shown(url: &str) -> String {
    let Some(path) = super::job_file::local_folder(url) else { return url.to_owned() };
    let here = std::env::current_dir().unwrap_or_default();
    let path: &Path = path.strip_prefix(&here).unwrap_or(&path);
    if path.as_os_str().is_empty() { ".".to_owned() } else { path.display().to_string() }
}

/// Returns bytes for people.
fn bytes(count: u64) -> String {
    indicatif::BinaryBytes(count).to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn what_is_below_the_working_directory_is_shown_short() {
        let here = std::env::current_dir().unwrap();
        assert_eq!(shown(&here.join("runs").display().to_string()), "runs");
        assert_eq!(shown(&format!("file://{}/runs/a%20b", here.display())), "runs/a b");
        assert_eq!(shown("file:///elsewhere/runs"), "/elsewhere/runs");
        assert_eq!(shown("s3://b/runs"), "s3://b/runs");
    }
}
