//! The one place where domain errors become gRPC statuses.

use ringmaster_words::chain;
use tonic::{Code, Status};

use crate::{fleet, logs};

/// Returns the status of a domain error, with the whole chain of causes in its message.
///
/// `ABORTED` means that the caller's view is outdated (a newer generation, a newer session or call);
/// `FAILED_PRECONDITION` that repeating the call cannot help; `UNAVAILABLE` that it can.
#[allow(clippy::needless_pass_by_value)]
pub fn to_status(error: fleet::Error) -> Status {
    let code = match &error {
        fleet::Error::UnknownJob { .. } | fleet::Error::UnknownNode { .. } => Code::NotFound,
        fleet::Error::Stale { .. }
        | fleet::Error::NoSeat { .. }
        | fleet::Error::Replaced { .. }
        | fleet::Error::SessionOver => Code::Aborted,
        fleet::Error::NameTaken { .. } => Code::AlreadyExists,
        fleet::Error::NotLive { .. }
        | fleet::Error::WrongBuild { .. }
        | fleet::Error::Succeeded { .. }
        | fleet::Error::RollBack { .. }
        | fleet::Error::Manifest { .. }
        | fleet::Error::ShardFailed { .. } => Code::FailedPrecondition,
        fleet::Error::Invalid { .. } => Code::InvalidArgument,
        fleet::Error::State { .. } => Code::Internal,
        fleet::Error::Stopped | fleet::Error::NameAwaited { .. } => Code::Unavailable,
    };
    Status::new(code, chain(&error))
}

/// Returns the status of an error of the logs.
#[allow(clippy::needless_pass_by_value)]
pub fn log_status(error: logs::Error) -> Status {
    let code = match &error {
        logs::Error::UnknownJob { .. } => Code::NotFound,
        logs::Error::File { .. } => Code::Internal,
    };
    Status::new(code, chain(&error))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use ringmaster_proto::v1::Generation;

    use super::*;

    #[test]
    fn a_stale_generation_is_aborted_and_names_the_newer_one() {
        let status = to_status(fleet::Error::Stale {
            job_id: "a-abcdef".to_owned(),
            given: Generation::new(1, 2),
            current: Generation::new(1, 3),
        });
        assert_eq!(status.code(), Code::Aborted);
        assert_eq!(status.message(), "generation g1.2 of job a-abcdef has been superseded by g1.3");
    }

    #[test]
    fn causes_are_part_of_the_message() {
        let source = ringmaster_manifest::from_validated_json("x").unwrap_err();
        let status = to_status(fleet::Error::Manifest { file_name: "job.yaml".to_owned(), source });
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().contains("job.yaml"), "{status}");
        assert!(status.message().contains("expected value"), "{status}");
    }
}
