//! Follows one job to its end, through coordinator restarts.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use ringmaster_proto::v1::{Job, JobState};
use tonic::Code;

use super::client::Client;
use super::error::Error;
use super::progress::Progress;
use super::text::is_final;

/// Pauses between attempts to reach a coordinator that is away.
const PAUSES: ExponentialBuilder = ExponentialBuilder::new()
    .with_min_delay(Duration::from_millis(200))
    .with_max_delay(LONGEST_PAUSE)
    .without_max_times();
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Shows a job's progress until it ends, and returns it as it ended.
///
/// A coordinator that goes away is waited for: its jobs go on without it.
///
/// # Errors
/// When the coordinator refuses the watch: for one, because it knows no such job.
pub(crate) async fn follow(
    client: &Client,
    job_id: &str,
    progress: &mut Progress,
) -> Result<Job, Error> {
    let mut away = None;
    loop {
        let status = match follow_once(client, job_id, progress, &mut away).await {
            Ok(job) => return Ok(job),
            Err(status) => status,
        };
        if !is_transient(&status) {
            return Err(client.error(status).await);
        }
        let pauses = away.get_or_insert_with(|| {
            progress.line("the coordinator does not answer; the job goes on, waiting for it");
            PAUSES.build()
        });
        tokio::time::sleep(pauses.next().unwrap_or(LONGEST_PAUSE)).await;
    }
}

/// Follows the job until it ends or the connection does. `away` holds the pauses of a coordinator that
/// does not answer, and none once it has.
async fn follow_once(
    client: &Client,
    job_id: &str,
    progress: &mut Progress,
    away: &mut Option<ExponentialBackoff>,
) -> Result<Job, tonic::Status> {
    let mut updates = client.watch(job_id).await?;
    while let Some(update) = updates.message().await? {
        *away = None;
        if let Some(event) = &update.event {
            progress.event(event);
        }
        let Some(job) = update.job else { continue };
        progress.job(&job);
        if is_final(job.state()) {
            return Ok(job);
        }
    }
    Err(tonic::Status::unavailable("the stream of updates ended before the job"))
}

/// Returns true for failures of the connection, as opposed to answers of the coordinator.
fn is_transient(status: &tonic::Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Aborted)
        || (status.code() == Code::Internal && status.message().contains("h2 protocol error"))
}

/// Returns an error unless the job succeeded.
pub(crate) fn outcome(job: &Job) -> Result<(), Error> {
    let (job_id, reason) = (job.job_id.clone(), job.reason.clone());
    match job.state() {
        JobState::Failed => Err(Error::JobFailed { job_id, reason }),
        JobState::Cancelled => Err(Error::JobCancelled { job_id, reason }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lost_connection_is_retried() {
        assert!(is_transient(&tonic::Status::unavailable("connection refused")));
        assert!(is_transient(&tonic::Status::internal("h2 protocol error: reset")));
        assert!(!is_transient(&tonic::Status::not_found("no job x")));
        assert!(!is_transient(&tonic::Status::internal("database is full")));
    }

    #[test]
    fn failed_and_cancelled_jobs_are_errors() {
        let mut job = Job { job_id: "a-bcdefg".to_owned(), ..Job::default() };
        job.set_state(JobState::Succeeded);
        assert!(outcome(&job).is_ok());
        job.set_state(JobState::Failed);
        assert_eq!(outcome(&job).map_err(|error| error.exit_code()), Err(1));
        job.set_state(JobState::Cancelled);
        assert_eq!(outcome(&job).map_err(|error| error.exit_code()), Err(130));
    }
}
