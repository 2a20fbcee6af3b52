//! Whether a failed call may be made again, and what a refusal says beside its text.

use std::error::Error as _;

use prost::Message;
use tonic::{Code, Status};

/// What stands before the name of a message in an [`Any`].
const TYPES: &str = "type.googleapis.com/";

/// `google.rpc.Status`: what clients of gRPC look for in the details of a status.
#[derive(Clone, PartialEq, Message)]
struct RichStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

/// `google.protobuf.Any`: a message and what it is.
#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// Returns a status whose details hold a message of this full name, as any client of gRPC finds it.
pub fn with_details(code: Code, text: String, name: &str, details: &impl Message) -> Status {
    let details = Any { type_url: format!("{TYPES}{name}"), value: details.encode_to_vec() };
    let rich = RichStatus { code: code.into(), message: text.clone(), details: vec![details] };
    Status::with_details(code, text, rich.encode_to_vec().into())
}

/// Returns the message of this full name that the details of a status hold, if they do.
pub fn details<M: Message + Default>(status: &Status, name: &str) -> Option<M> {
    let rich = RichStatus::decode(status.details()).ok()?;
    let wanted = rich.details.iter().find(|any| any.type_url == format!("{TYPES}{name}"))?;
    M::decode(wanted.value.as_slice()).ok()
}

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
    use crate::v1::Mistake;

    #[test]
    fn details_are_found_by_their_name() {
        let mistake = Mistake { line: 9, column: 15, ..Mistake::default() };
        let name = "ringmaster.v1.Mistake";
        let status = with_details(Code::InvalidArgument, "no".to_owned(), name, &mistake);
        assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "no"));
        assert_eq!(details(&status, name), Some(mistake));
        assert_eq!(details::<Mistake>(&status, "ringmaster.v1.Job"), None);
        assert_eq!(details::<Mistake>(&Status::unavailable("gone"), name), None);
    }

    #[test]
    fn only_what_the_network_ended_is_tried_again() {
        assert!(is_transient(&Status::unavailable("restarting")));
        assert!(!is_transient(&Status::aborted("g1.9 is current")));
    }
}
