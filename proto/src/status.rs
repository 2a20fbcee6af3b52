//! Whether a failed call may be made again.

use std::error::Error as _;

use tonic::{Code, Status};

/// True when the network, not the coordinator's judgement, ended a call.
pub fn is_transient(status: &Status) -> bool {
    // Only a status made on this side has a source; one the coordinator sent has a code alone.
    status.source().is_some()
        || matches!(status.code(), Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded)
}

/// Whether a call was given up on this side because its connection ended before an answer came, for a reason
/// that nobody knows.
pub fn was_cut_off(status: &Status) -> bool {
    // A status from the other side has a code and a message, and no source.
    status.code() == Code::Cancelled && status.source().is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_network_ended_is_tried_again() {
        assert!(is_transient(&Status::unavailable("restarting")));
        assert!(!is_transient(&Status::aborted("g1.9 is current")));
    }
}
